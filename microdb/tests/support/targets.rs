//! The fuzz targets of the engine. This module is in the tests, so that `cargo test` can replay the
//! corpora of the targets on the same code.

use std::path::Path;
use std::sync::OnceLock;

use microdb::{Error, Options, fuzzing};

use super::cut::Cuts;
use super::disk::Disk;
use super::image::{Content, Image};
use super::random::Random;
use super::workload::{Op, Point, ROOT, Run, Shape, chain, read};

/// A fuzz target: a function that panics if the input reveals a fault.
type Target = fn(&[u8]);

/// All targets by name. The corpus of a target has the same name.
pub(crate) const TARGETS: [(&str, Target); 10] = [
    ("super_block", fuzzing::super_block),
    ("segment_header", fuzzing::segment_header),
    ("frame_header", fuzzing::frame_header),
    ("record", fuzzing::record),
    ("seal", fuzzing::seal),
    ("directory_image", fuzzing::directory_image),
    ("checkpoint", fuzzing::checkpoint),
    ("db_open", db_open),
    ("salvage", salvage),
    ("db_operations", db_operations),
];

/// Maximum number of operations in a run, which keeps runs on long inputs fast.
const OPS_MAX: u64 = 60;

/// Returns the disk of a closed database, to which `changed` applies its changes, and the
/// database's content.
fn base() -> &'static (Image, Point) {
    static BASE: OnceLock<(Image, Point)> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut random = Random::new(4);
        let shape = Shape::draw(&mut random);
        let mut run = Run::open(Disk::default(), shape, &Run::nothing()).unwrap();
        for number in 0..30 {
            run.step(&Op::draw_alone(&mut random, number)).unwrap();
        }
        run.close().unwrap();
        (run.disk.image(), run.last().clone())
    })
}

/// Returns the base database with changed or replaced files, as `data` describes; `None` if `data`
/// is empty. Each change has a file, an action, an offset and bytes. With an odd first byte,
/// checksums stay as they are. With an even first byte, those of SUPER, segments and checkpoints
/// are corrected, so that the code after the checks is reached. The second value is `true` for such
/// a database with corrected checksums, called a forgery.
fn changed(data: &[u8]) -> Option<(Image, bool)> {
    let (mode, mut data) = data.split_first()?;
    let mut image = base().0.clone();
    while let Some((head, rest)) = data.split_first_chunk::<5>() {
        let [file, what, low, high, len] = *head;
        let files = image.files();
        let Some((_, node)) = files.get(usize::from(file) % files.len().max(1)).cloned() else {
            break;
        };
        let at = u64::from(u16::from_le_bytes([low, high]));
        let (bytes, rest) = rest.split_at(usize::from(len).min(rest.len()));
        match what % 8 {
            0..4 => {
                let len = image.file(node).len().max(1);
                image.file_mut(node).write(at % len, bytes);
            }
            4 => image.file_mut(node).set_len(at),
            5 => *image.file_mut(node) = Content::of(bytes),
            6 => image.file_mut(node).write(at, bytes),
            _ => {
                let other = image.file(files[usize::from(low) % files.len()].1).clone();
                *image.file_mut(node) = other;
            }
        }
        data = rest;
    }
    let forged = mode & 1 == 0;
    if forged {
        repair(&mut image);
    }
    Some((image, forged))
}

/// Opens a database that was changed according to `data`. The open and every read must be right or
/// report damage, unless the database is a forgery. The open of a forgery may return any error, and
/// its reads any content or damage, but never a panic, a hang or a huge allocation.
pub(crate) fn db_open(data: &[u8]) {
    let Some((image, forged)) = changed(data) else {
        return;
    };
    let (disk, point) = (Disk::unrecorded(image), &base().1);
    let options = || {
        Options::new()
            .background(false)
            .storage(std::sync::Arc::new(disk.clone()))
    };
    let db = match options().open(ROOT) {
        Ok(db) => db,
        Err(Error::Corrupt { .. } | Error::Version { .. }) => return,
        Err(error) if forged => return drop(chain(&error)),
        Err(error) => panic!("the error names no damage: {}", chain(&error)),
    };
    match read(&db) {
        Ok(model) if !forged => assert_eq!(model, *point.model, "damage went unseen; {:?}", db.recovery()),
        Ok(_) | Err(Error::Corrupt { .. }) => {}
        Err(error) => panic!("{}", chain(&error)),
    }
    let _ = db.table("orders").and_then(|table| table.put("fuzz", "value"));
    let _ = db.close();
    let _ = options().read_only(true).open(ROOT).map(|db| read(&db).is_ok());
}

/// Salvages a database that was changed according to `data`. There must be no panic and no hang,
/// and the result must be sound. The result must be right, or the manifest must list the missing
/// records, unless the changed database is a forgery.
pub(crate) fn salvage(data: &[u8]) {
    const SAVED: &str = "/data/saved";
    let Some((image, forged)) = changed(data) else {
        return;
    };
    let disk = Disk::unrecorded(image);
    let options = || {
        Options::new()
            .background(false)
            .storage(std::sync::Arc::new(disk.clone()))
    };
    let manifest = match options().salvage(ROOT, SAVED) {
        Ok(manifest) => manifest,
        Err(Error::NotADatabase { .. } | Error::Version { .. }) => return,
        // A forged table may have an invalid name.
        Err(_) if forged => return,
        Err(error) => panic!("{}", chain(&error)),
    };
    let db = options().open(SAVED).unwrap();
    let model = read(&db).unwrap();
    assert!(
        forged || !manifest.is_complete() || model == *base().1.model,
        "something is missing and not on the list\n{manifest}"
    );
}

fn repair(image: &mut Image) {
    let Ok(node) = image.find(&Path::new(ROOT).join("SUPER")) else {
        return;
    };
    let mut bytes = image.file(node).bytes();
    let database = fuzzing::repair_super(&mut bytes);
    *image.file_mut(node) = Content::of(&bytes);
    let Some(database) = database else { return };
    for (path, node) in image.files() {
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        let repair = match path.extension().and_then(|ending| ending.to_str()) {
            Some("seg") => fuzzing::repair_segment,
            Some("idx") => fuzzing::repair_checkpoint,
            _ => continue,
        };
        if let Some(number) = stem {
            let mut bytes = image.file(node).bytes();
            repair(&mut bytes, database, number);
            *image.file_mut(node) = Content::of(&bytes);
        }
    }
}

/// Runs operations, reopenings and kills, and compares the database with the model. Then cuts the
/// power after an event that `data` selects, and checks that the database opens in a permitted
/// state.
pub(crate) fn db_operations(data: &[u8]) {
    let mut random = Random::of_bytes(data);
    let shape = Shape::draw(&mut random);
    let mut run =
        Run::open(Disk::default(), shape, &Run::nothing()).unwrap_or_else(|error| panic!("{error}"));
    let mut number = 0;
    while !random.is_exhausted() && number < OPS_MAX {
        let op = Op::draw(&mut random, number);
        run.step(&op)
            .unwrap_or_else(|error| panic!("operation {number}, {op:?}: {error}"));
        number += 1;
    }
    let record = run.disk.record();
    let mut cuts = Cuts::new(&record);
    let cut = random.index(record.events.len() + 1);
    while cuts.at() < cut && cuts.step() {}
    for image in cuts.disks(&mut random, 4) {
        if let Err(error) = Run::open(Disk::unrecorded(image), shape, run.allowed(cut)) {
            panic!("power cut at {cut} of {}: {error}", record.events.len());
        }
    }
}

/// Runs the target with the name `name` on an input.
pub(crate) fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    target(data);
}
