//! Damage to small databases: each read must return the right value or an error that names the
//! damaged file.
//!
//! - The databases are created by random work. In the end they are closed, or their process is
//!   killed, or the power is cut.
//! - Then one file is damaged, or two files are exchanged. A bit flips. Blocks of 64, 512 or 4096
//!   bytes are zeroed, overwritten by another one or swapped. The file ends early or is too long.
//!   Or the file is missing, empty, a copy of another file, of another database, or an earlier
//!   version of itself.
//! - A value must never be wrong, no record or table may be missing without an error, and no error
//!   may name a file without a part in the damage, unless SUPER is an old or a foreign one. The
//!   engine must not panic, nor allocate memory according to a damaged length.
//!
//! `MICRODB_ROT_SEEDS` sets the number of databases per ending, and `MICRODB_ROT_FIRST_SEED` the
//! first seed. `MICRODB_ROT_ALL_BITS` flips all bits of all bytes, including padding, instead of a
//! sample.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::support::cut::Cuts;
use crate::support::disk::Disk;
use crate::support::image::{Content, Image};
use crate::support::random::{Random, mix};
use crate::support::workload::{KEYS, Op, Point, ROOT, Run, Shape, chain, key};
use microdb::{Db, Error};

/// Limit of the process' address space in bytes. The limit suffices for all these tests. An
/// allocation by a damaged length of several gigabytes would exceed it.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
const OPS: u64 = 14;
/// In padding, one bit in this many is flipped. The number is a prime, so that all bit positions
/// occur.
const PADDING_STRIDE: usize = 509;

#[derive(Default, Debug)]
struct Tally {
    cases: u64,
    /// Number of cases in which the content was a permitted one and nothing reported the damage.
    right: u64,
    /// Numbers of cases in which the open, or a later read, reported the damage.
    named_by_open: u64,
    named_by_read: u64,
}

/// A database that is no longer open, its permitted contents, and earlier versions of its files.
struct Subject {
    name: String,
    shape: Shape,
    image: Image,
    allowed: Vec<Point>,
    earlier: Vec<Image>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Closed,
    Killed,
    PowerCut,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().expect("the variable holds a number"))
}

/// Returns the databases to damage: one for each ending and seed. There are `count` seeds unless
/// `MICRODB_ROT_SEEDS` is set. Also limits the address space of the process to
/// [`MEMORY_BYTES_MAX`].
fn subjects(salt: u64, count: u64) -> Vec<Subject> {
    let limit = rustix::process::Rlimit {
        current: Some(MEMORY_BYTES_MAX),
        maximum: None,
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::As, limit);
    let first = number("MICRODB_ROT_FIRST_SEED").unwrap_or(1);
    let seeds = first..first + number("MICRODB_ROT_SEEDS").unwrap_or(count);
    let endings = [Ending::Closed, Ending::Killed, Ending::PowerCut];
    seeds
        .flat_map(|seed| endings.map(|ending| subject(mix(seed ^ (salt << 32)), ending)))
        .collect()
}

fn subject(seed: u64, ending: Ending) -> Subject {
    let mut random = Random::new(seed);
    let shape = Shape::draw(&mut random);
    let mut run = Run::open(Disk::default(), shape, &Run::nothing()).unwrap();
    let mut earlier = Vec::new();
    for number in 0..OPS {
        run.step(&Op::draw_alone(&mut random, number)).unwrap();
        if number % 4 == 3 {
            earlier.push(run.disk.image());
        }
    }
    let name = format!("{ending:?} {seed:x} {shape:?}");
    if ending == Ending::Closed {
        run.close().unwrap();
    }
    let record = run.disk.record();
    let mut cuts = Cuts::new(&record);
    while cuts.step() {}
    let image = match ending {
        Ending::PowerCut => cuts.disks(&mut random, 7).pop().unwrap(),
        _ => run.disk.image(),
    };
    let mut allowed = run.allowed(cuts.at()).to_vec();
    if ending == Ending::PowerCut {
        // The cut may have lost the newest hint or frame that states the durable frontier. Then
        // damage behind the frontier of the newest surviving statement looks like a torn tail. So
        // all states from that surviving frontier on are permitted. There is no other exception.
        let disk = Disk::unrecorded(image.clone());
        let db = shape.options(&disk).read_only(true).open(ROOT).unwrap();
        let durable = db.recovery().durable_sequence;
        allowed = run
            .history()
            .iter()
            .filter(|point| point.sequence >= durable)
            .cloned()
            .collect();
    }
    Subject {
        name,
        shape,
        image,
        allowed,
        earlier,
    }
}

/// Opens a damaged copy of the subject and checks the promises that the head of this module lists.
/// An error may name only the files in `damaged`.
fn judge(subject: &Subject, image: Image, damaged: &[&Path], what: &str, tally: &mut Tally) {
    tally.cases += 1;
    let disk = Disk::unrecorded(image);
    let verdict = catch_unwind(AssertUnwindSafe(|| examine(subject, &disk, damaged, tally)));
    match verdict {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{what} of {damaged:?} in {}: {error}", subject.name),
        Err(_) => panic!("{what} of {damaged:?} in {}: panic", subject.name),
    }
}

fn examine(subject: &Subject, disk: &Disk, damaged: &[&Path], tally: &mut Tally) -> Result<(), String> {
    let before = disk.image();
    match subject.shape.options(disk).open(ROOT) {
        Err(error) => {
            tally.named_by_open += 1;
            named(&error, damaged)?;
            if !disk.image().same_as(&before) {
                return Err(format!(
                    "open refused ({}) and yet changed the files",
                    chain(&error)
                ));
            }
            Ok(())
        }
        Ok(db) => {
            let damage_met = compare(&db, &subject.allowed, damaged)?;
            if damage_met {
                tally.named_by_read += 1;
            } else {
                tally.right += 1;
            }
            Ok(())
        }
    }
}

/// Checks that `error` reports damage and names one of the damaged files.
fn named(error: &Error, damaged: &[&Path]) -> Result<(), String> {
    match error {
        Error::Corrupt { path, .. } if damaged.iter().any(|damaged| path.starts_with(damaged)) => Ok(()),
        error => Err(format!(
            "the error names no damage, or a sound file: {} ({error:?})",
            chain(error)
        )),
    }
}

/// Reads the whole database and compares it with the permitted states. Returns `true` if a read
/// reported damage.
fn compare(db: &Db, allowed: &[Point], damaged: &[&Path]) -> Result<bool, String> {
    let tables: Vec<String> = db.tables().into_iter().map(|info| info.name).collect();
    let mut found: BTreeMap<(String, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
    let mut damage_met = false;
    let mut whole: Vec<String> = Vec::new();
    for name in &tables {
        let Some(table) = db.get_table(name) else {
            return Err(format!("no table {name}"));
        };
        for key in (0..KEYS).map(key) {
            match table.get(&key) {
                Ok(value) => _ = found.insert((name.clone(), key), value.map(|value| value.to_vec())),
                Err(error) => {
                    named(&error, damaged)?;
                    damage_met = true;
                }
            }
        }
        let mut records = 0;
        let mut complete = true;
        for record in &table {
            match record {
                Ok((key, value)) => {
                    records += 1;
                    if found
                        .get(&(name.clone(), key.to_vec()))
                        .is_some_and(|found| found.as_deref() != Some(&value))
                    {
                        return Err(format!(
                            "iteration and get differ on {name} {}",
                            key.escape_ascii()
                        ));
                    }
                }
                Err(error) => {
                    named(&error, damaged)?;
                    (damage_met, complete) = (true, false);
                }
            }
        }
        if complete
            && found
                .iter()
                .filter(|((table, _), value)| table == name && value.is_some())
                .count()
                > records
        {
            return Err(format!("iteration leaves out records of {name}"));
        }
        if complete {
            whole.push(name.clone());
        }
    }
    let agrees = |point: &&Point| {
        let names: Vec<_> = point.model.keys().cloned().collect();
        names == tables
            && found
                .iter()
                .all(|((table, key), value)| point.model[table].get(key) == value.as_ref())
    };
    match allowed.iter().find(agrees) {
        Some(_) => Ok(damage_met),
        None => Err(format!(
            "tables {tables:?}, {found:?} is none of the {} states allowed; {:?}",
            allowed.len(),
            db.recovery()
        )),
    }
}

/// Returns the non-empty files of a database.
fn files(image: &Image) -> Vec<(PathBuf, usize)> {
    image
        .files()
        .into_iter()
        .filter(|(_, node)| image.file(*node).len() > 0)
        .collect()
}

fn with(image: &Image, node: usize, content: Content) -> Image {
    let mut image = image.clone();
    *image.file_mut(node) = content;
    image
}

#[test]
fn any_flipped_bit_is_named_or_does_not_matter() {
    let mut tally = Tally::default();
    let all = number("MICRODB_ROT_ALL_BITS").is_some();
    for subject in subjects(1, 1) {
        for (path, node) in files(&subject.image) {
            let content = subject.image.file(node);
            let bytes = content.bytes();
            for bit in 0..bytes.len() * 8 {
                // Long runs of zeros are padding, in which few bits are flipped. In each other byte
                // one bit is flipped. All bits are flipped if requested.
                let near = bytes[(bit / 8).saturating_sub(16)..(bit / 8 + 16).min(bytes.len())]
                    .iter()
                    .any(|byte| *byte != 0);
                let due = if near {
                    bit % 8 == bit / 8 % 8
                } else {
                    bit % PADDING_STRIDE == 0
                };
                if due || all {
                    let mut flipped = content.clone();
                    flipped.flip(bit as u64);
                    judge(
                        &subject,
                        with(&subject.image, node, flipped),
                        &[&path],
                        &format!("bit {bit}"),
                        &mut tally,
                    );
                }
            }
        }
    }
    println!("flipped bits: {tally:?}");
    assert!(tally.right > 0 && tally.named_by_open > 0);
}

#[test]
fn zeroed_copied_and_swapped_blocks_are_named_or_do_not_matter() {
    let mut tally = Tally::default();
    for subject in subjects(2, 1) {
        for (path, node) in files(&subject.image) {
            let bytes = subject.image.file(node).bytes();
            for block in [64, 512, 4096] {
                let used: Vec<usize> = (0..bytes.len().div_ceil(block))
                    .filter(|index| bytes[index * block..].iter().take(block).any(|byte| *byte != 0))
                    .collect();
                let range = |index: usize| index * block..(index * block + block).min(bytes.len());
                for one in &used {
                    let mut zeroed = bytes.clone();
                    zeroed[range(*one)].fill(0);
                    let image = with(&subject.image, node, Content::of(&zeroed));
                    judge(
                        &subject,
                        image,
                        &[&path],
                        &format!("zeroed block {one} of {block} bytes"),
                        &mut tally,
                    );
                    for two in used
                        .iter()
                        .filter(|two| range(**two).len() == range(*one).len() && *two != one)
                    {
                        let mut copied = bytes.clone();
                        copied.copy_within(range(*one), two * block);
                        let image = with(&subject.image, node, Content::of(&copied));
                        judge(
                            &subject,
                            image,
                            &[&path],
                            &format!("block {one} over {two}, {block} bytes"),
                            &mut tally,
                        );
                        copied[range(*one)].copy_from_slice(&bytes[range(*two)]);
                        let image = with(&subject.image, node, Content::of(&copied));
                        judge(
                            &subject,
                            image,
                            &[&path],
                            &format!("blocks {one} and {two} swapped, {block} bytes"),
                            &mut tally,
                        );
                    }
                }
            }
        }
    }
    println!("blocks: {tally:?}");
}

#[test]
fn files_cut_short_or_too_long_are_named_or_do_not_matter() {
    let mut tally = Tally::default();
    for subject in subjects(3, 1) {
        let mut random = Random::new(3);
        for (path, node) in files(&subject.image) {
            let content = subject.image.file(node);
            let bytes = content.bytes();
            for len in 0..bytes.len() {
                let near = bytes[len.saturating_sub(16)..(len + 16).min(bytes.len())]
                    .iter()
                    .any(|byte| *byte != 0);
                if near || len % 61 == 0 {
                    let mut cut = content.clone();
                    cut.set_len(len as u64);
                    let image = with(&subject.image, node, cut);
                    judge(
                        &subject,
                        image,
                        &[&path],
                        &format!("cut to {len} bytes"),
                        &mut tally,
                    );
                }
            }
            for more in [1, 7, 512, 4096, 70_000] {
                for rubbish in [false, true] {
                    let mut longer = bytes.clone();
                    longer.extend(if rubbish {
                        random.bytes(more)
                    } else {
                        vec![0; more]
                    });
                    let image = with(&subject.image, node, Content::of(&longer));
                    judge(
                        &subject,
                        image,
                        &[&path],
                        &format!("{more} bytes more, rubbish: {rubbish}"),
                        &mut tally,
                    );
                }
                let mut longer = bytes.clone();
                longer.extend(bytes.iter().cycle().take(more));
                let image = with(&subject.image, node, Content::of(&longer));
                judge(
                    &subject,
                    image,
                    &[&path],
                    &format!("{more} of its own bytes again"),
                    &mut tally,
                );
            }
        }
    }
    println!("lengths: {tally:?}");
}

#[test]
fn missing_exchanged_old_and_foreign_files_are_named_or_do_not_matter() {
    let mut tally = Tally::default();
    let subjects = subjects(4, 20);
    for (index, subject) in subjects.iter().enumerate() {
        let files = files(&subject.image);
        for (path, node) in &files {
            let (folder, name) = subject.image.parent(path).unwrap();
            let mut gone = subject.image.clone();
            gone.folder_mut(folder).remove(&name);
            judge(subject, gone, &[path], "the absence", &mut tally);
            judge(
                subject,
                with(&subject.image, *node, Content::default()),
                &[path],
                "the emptiness",
                &mut tally,
            );
            for (other_path, other) in files.iter().filter(|(other, _)| other != path) {
                let content = subject.image.file(*other).clone();
                let image = with(&subject.image, *node, content);
                judge(
                    subject,
                    image,
                    &[path, other_path],
                    "a copy of another file in place",
                    &mut tally,
                );
                let mut image = with(&subject.image, *node, subject.image.file(*other).clone());
                *image.file_mut(*other) = subject.image.file(*node).clone();
                judge(subject, image, &[path, other_path], "an exchange", &mut tally);
            }
            for (age, image) in subject.earlier.iter().enumerate() {
                let Ok(old) = image.find(path) else { continue };
                let content = image.file(old).clone();
                // An earlier SUPER names segments that were removed since then, and lacks segments
                // that were created since then. So an error may name any file of the database.
                let mut suspects: Vec<&Path> = vec![path];
                if path.ends_with("SUPER") {
                    suspects.push(Path::new(ROOT));
                }
                let what = format!("version {age}");
                judge(
                    subject,
                    with(&subject.image, *node, content),
                    &suspects,
                    &what,
                    &mut tally,
                );
            }
            let others = subjects.iter().enumerate().filter(|(other, _)| *other != index);
            for (_, other) in others {
                if let Ok(foreign) = other.image.find(path) {
                    let content = other.image.file(foreign).clone();
                    // SUPER of another database does not match any other file. So an error may name
                    // any file of the database.
                    let mut suspects: Vec<&Path> = vec![path];
                    if path.ends_with("SUPER") {
                        suspects.push(Path::new(ROOT));
                    }
                    judge(
                        subject,
                        with(&subject.image, *node, content),
                        &suspects,
                        "another database's",
                        &mut tally,
                    );
                }
            }
        }
    }
    println!("files: {tally:?}");
}
