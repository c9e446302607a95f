//! Tests of opens beside other work, with leftover or damaged files, and in folders that cannot be
//! listed or synced.
//!
//! In some tests, a storage with an action at chosen calls wraps a disk in memory. The action
//! changes SUPER as a writer would each time a reader has listed the log, counts the listings, or
//! fails the listing or sync of a folder. So cases that `kill.rs` meets only by chance always
//! happen here.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::support::cut::Cuts;
use crate::support::disk::Disk;
use crate::support::image::Image;
use crate::support::random::Random;
use crate::support::workload::ROOT;
use microdb::storage::{OpenMode, Storage, StorageFile, StorageLock};
use microdb::{Db, Durability, Error, Options};

type Hook = dyn FnMut(&Disk) -> io::Result<()> + Send;

/// A disk with actions at some of its calls.
struct Watched {
    disk: Disk,
    /// Action at each listing of the log folder. A reader lists that folder once per attempt to
    /// open, and once more if it abandons the checkpoint during the replay.
    listed: Mutex<Box<Hook>>,
    /// Error of a sync of a folder above the database's folder; `None` for success.
    above: Option<io::ErrorKind>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disk.fmt(f)
    }
}

impl Storage for Watched {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.create_folder(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.disk.open(path, mode)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names = self.disk.list(folder);
        if folder.ends_with("log") {
            (self.listed.lock().unwrap())(&self.disk)?;
        }
        names
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.hard_link(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let is_above = Path::new(ROOT).starts_with(path) && path != Path::new(ROOT);
        match self.above {
            Some(kind) if is_above => Err(kind.into()),
            _ => self.disk.sync_folder(path),
        }
    }
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.disk.lock(path)
    }
}

fn options(storage: Arc<dyn Storage>) -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .background(false)
        .storage(storage)
}

fn watched(disk: Disk, listed: Box<Hook>) -> Options {
    let (listed, above) = (Mutex::new(listed), None);
    options(Arc::new(Watched { disk, listed, above }))
}

fn bytes(image: &Image, path: &str) -> Vec<u8> {
    let node = image.find(&Path::new(ROOT).join(path)).unwrap();
    image.file(node).bytes()
}

fn overwrite(disk: &Disk, path: &str, bytes: &[u8]) {
    let file = disk.open(&Path::new(ROOT).join(path), OpenMode::ReadWrite);
    file.unwrap().write_at(bytes, 0).unwrap();
}

/// Puts ten keys, each in a segment of its own.
fn write(db: &Db, byte: u8) {
    let table = db.table("t").unwrap();
    for key in 0..10u8 {
        table.put([key], vec![byte; 3000]).unwrap();
    }
}

fn is_whole(db: &Db, byte: u8) -> bool {
    let table = db.get_table("t").unwrap();
    (0..10u8).all(|key| table.get([key]).unwrap().as_deref() == Some(&[byte; 3000][..]))
}

/// Returns a disk with a compacted database, and the content of SUPER before the compaction. The
/// old SUPER names segments that are now removed.
fn gone_on() -> (Disk, Vec<u8>) {
    let disk = Disk::default();
    let db = options(Arc::new(disk.clone())).open(ROOT).unwrap();
    write(&db, 1);
    db.checkpoint().unwrap();
    let before = bytes(&disk.image(), "SUPER");
    write(&db, 2);
    db.compact().unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    (disk, before)
}

#[test]
fn a_reader_starts_over_when_the_writer_has_moved_on() {
    let (disk, before) = gone_on();
    let now = bytes(&disk.image(), "SUPER");
    overwrite(&disk, "SUPER", &before);
    assert!(
        options(Arc::new(disk.clone()))
            .read_only(true)
            .open(ROOT)
            .is_err()
    );
    let mut looks = 0;
    let once = move |disk: &Disk| {
        looks += 1;
        assert!(looks <= 2, "it has what it needs");
        overwrite(disk, "SUPER", &now);
        Ok(())
    };
    let db = watched(disk, Box::new(once)).read_only(true).open(ROOT).unwrap();
    assert!(is_whole(&db, 2));
}

#[test]
fn a_reader_beside_a_busy_writer_gives_up_with_the_last_error() {
    let (disk, before) = gone_on();
    // The two versions of SUPER alternate, so each attempt of the reader sees another SUPER and is
    // repeated. Neither version can be opened: one names removed segments, and the last segment of
    // the other is removed.
    let supers = [before, bytes(&disk.image(), "SUPER")];
    let segment = disk
        .list(&Path::new(ROOT).join("log"))
        .unwrap()
        .into_iter()
        .filter(|name| name.ends_with(".seg"))
        .max()
        .unwrap();
    disk.remove(&Path::new(ROOT).join("log").join(&segment)).unwrap();
    let looks = Arc::new(Mutex::new(0));
    let seen = looks.clone();
    let always = move |disk: &Disk| {
        let mut looks = seen.lock().unwrap();
        *looks += 1;
        assert!(*looks < 100, "it never gives up");
        overwrite(disk, "SUPER", &supers[(*looks + 1) % 2]);
        Ok(())
    };
    let error = watched(disk, Box::new(always)).read_only(true).open(ROOT);
    assert!(error.as_ref().is_err_and(Error::is_corrupt), "{error:?}");
    assert!(*looks.lock().unwrap() > 2);
}

#[test]
fn damage_is_reported_at_the_first_look_without_a_writer() {
    let (disk, _) = gone_on();
    let mut image = disk.image();
    // A bit in the middle of the oldest segment is flipped.
    let (_, node) = image
        .files()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"))
        .min()
        .unwrap();
    image.file_mut(node).flip(8 * 1000);
    for (path, node) in image.files() {
        // The checkpoints are damaged too, so that recovery must read the damaged segment.
        if path.parent().is_some_and(|folder| folder.ends_with("directory")) {
            image.file_mut(node).flip(8 * 20);
        }
    }
    for read_only in [true, false] {
        let looks = Arc::new(Mutex::new(0));
        let seen = looks.clone();
        let count = move |_: &Disk| {
            *seen.lock().unwrap() += 1;
            Ok(())
        };
        let disk = Disk::of(image.clone());
        let error = watched(disk, Box::new(count)).read_only(read_only).open(ROOT);
        assert!(error.as_ref().is_err_and(Error::is_corrupt), "{error:?}");
        assert_eq!(*looks.lock().unwrap(), 1, "read-only: {read_only}");
    }
}

#[test]
fn a_database_is_created_below_folders_that_cannot_be_synced() {
    use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, ReadOnlyFilesystem};
    for (kind, is_fine) in [
        (PermissionDenied, true),
        (ReadOnlyFilesystem, true),
        (InvalidInput, true),
        (NotFound, false),
    ] {
        let disk = Disk::default();
        let storage = Watched {
            disk,
            listed: Mutex::new(Box::new(|_| Ok(()))),
            above: Some(kind),
        };
        match options(Arc::new(storage)).open(ROOT) {
            Ok(db) => {
                assert!(is_fine, "{kind}");
                write(&db, 1);
                assert!(is_whole(&db, 1));
            }
            Err(Error::Io { source, .. }) => assert!(!is_fine && source.kind() == kind, "{source}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn names(disk: &Disk, folder: &str) -> Vec<String> {
    let mut names = disk.list(&Path::new(ROOT).join(folder)).unwrap();
    names.sort();
    names
}

fn create(disk: &Disk, path: &str, bytes: &[u8]) {
    let file = disk.open(&Path::new(ROOT).join(path), OpenMode::CreateNew);
    file.unwrap().write_at(bytes, 0).unwrap();
}

#[test]
fn leftover_checkpoints_are_removed_and_foreign_files_stay() {
    let (disk, _) = gone_on();
    let own = names(&disk, "directory");
    for name in [
        "0000000001.idx",
        "0000000099.idx",
        "0000000099.tmp",
        "notes.txt",
        "7.idx",
    ] {
        create(&disk, &format!("directory/{name}"), b"of no use");
    }
    let all = names(&disk, "directory");
    let open = |read_only| options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
    assert!(is_whole(&open(true).unwrap(), 2));
    assert_eq!(names(&disk, "directory"), all, "a reader changes nothing");
    let db = open(false).unwrap();
    assert!(is_whole(&db, 2) && db.recovery().clean && !db.recovery().checkpoint_unusable);
    let mut left = [own.as_slice(), &["notes.txt".into(), "7.idx".into()]].concat();
    left.sort();
    assert_eq!(names(&disk, "directory"), left);
    db.close().unwrap();

    // Recovery keeps a damaged checkpoint, so that it can be inspected.
    overwrite(&disk, &format!("directory/{}", own[0]), &[0x55; 64]);
    create(&disk, "directory/0000000099.tmp", b"of no use");
    let reader = open(true).unwrap();
    assert!(is_whole(&reader, 2) && reader.recovery().checkpoint_unusable);
    let db = open(false).unwrap();
    assert!(is_whole(&db, 2) && db.recovery().checkpoint_unusable);
    assert_eq!(names(&disk, "directory"), left);
}

#[test]
fn leftover_segments_and_seals_are_removed() {
    let disk = Disk::default();
    let db = options(Arc::new(disk.clone())).open(ROOT).unwrap();
    write(&db, 1);
    db.checkpoint().unwrap();
    let before = disk.image();
    let old = names(&disk, "log");
    write(&db, 2);
    db.compact().unwrap();
    db.close().unwrap();
    let own = names(&disk, "log");
    let gone: Vec<_> = old.iter().filter(|name| !own.contains(name)).collect();
    assert!(gone.len() > 2, "{gone:?}");
    for name in gone {
        create(
            &disk,
            &format!("log/{name}"),
            &bytes(&before, &format!("log/{name}")),
        );
    }
    create(&disk, "log/0000000777.seal", b"of no segment");
    create(&disk, "log/notes.txt", b"of somebody");
    let all = names(&disk, "log");
    let open = |read_only| options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
    assert!(is_whole(&open(true).unwrap(), 2));
    assert_eq!(names(&disk, "log"), all, "a reader changes nothing");
    let db = open(false).unwrap();
    assert!(is_whole(&db, 2));
    assert!(db.recovery().dropped_bytes == 0, "{:?}", db.recovery());
    db.close().unwrap();
    // The previous open removed segments and left their seals. The next open removes these seals.
    drop(open(false).unwrap());
    let left = names(&disk, "log");
    assert!(own.iter().all(|name| left.contains(name)), "{left:?}");
    let others: Vec<_> = left.iter().filter(|name| !own.contains(name)).collect();
    assert_eq!(others, ["notes.txt"]);
}

#[test]
fn segments_up_to_the_checkpoint_must_have_their_recorded_lengths() {
    let (disk, _) = gone_on();
    let db = options(Arc::new(disk.clone()))
        .read_only(true)
        .open(ROOT)
        .unwrap();
    let recovery = db.recovery();
    assert!(
        recovery.checkpoint > 0 && recovery.frames_replayed == 0,
        "{recovery:?}"
    );
    drop(db);
    let mut segments = names(&disk, "log");
    segments.retain(|name| name.ends_with(".seg"));
    // The last segment contains the position of the checkpoint.
    for name in [segments.first(), segments.last()] {
        let path = format!("log/{}", name.unwrap());
        let whole = bytes(&disk.image(), &path);
        let file = disk
            .open(&Path::new(ROOT).join(&path), OpenMode::ReadWrite)
            .unwrap();
        // Each cut keeps the header of the segment, which has 96 bytes.
        for len in [whole.len() - 1, whole.len() / 2, 96] {
            file.set_len(len as u64).unwrap();
            for read_only in [true, false] {
                let opened = options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
                let Err(Error::Corrupt {
                    path: named, field, ..
                }) = &opened
                else {
                    panic!("{opened:?}")
                };
                assert_eq!((named, *field), (&Path::new(ROOT).join(&path), "segment length"));
            }
        }
        file.write_at(&whole, 0).unwrap();
    }
    assert!(is_whole(&options(Arc::new(disk)).open(ROOT).unwrap(), 2));
}

#[test]
fn a_log_that_cannot_be_listed_is_not_treated_as_missing() {
    let (disk, _) = gone_on();
    disk.remove(&Path::new(ROOT).join("SUPER")).unwrap();
    for read_only in [true, false] {
        let fails = |_: &Disk| Err(io::Error::from_raw_os_error(5));
        let opened = watched(disk.clone(), Box::new(fails))
            .read_only(read_only)
            .open(ROOT);
        assert!(matches!(opened, Err(Error::Io { .. })), "{opened:?}");
        let opened = options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
        assert!(opened.is_err_and(|error| error.is_corrupt()));
    }
}

/// Returns the disk of a running writer. The states in SUPER do not name its later segments yet,
/// but every commit is in a file. The log is synced after each record for which `sync` returns
/// `true`. The records 0 to 29 are so long that three of them fill a segment.
fn unsettled(sync: fn(u32) -> bool) -> Image {
    let disk = Disk::default();
    let db = options(Arc::new(disk.clone()))
        .buffer_bytes(0)
        .open(ROOT)
        .unwrap();
    let table = db.table("t").unwrap();
    for number in 0..30u32 {
        let value = vec![number as u8 + 1; 1000];
        table
            .put_with(number.to_be_bytes(), value, Durability::Buffered)
            .unwrap();
        if sync(number) {
            db.sync().unwrap();
        }
    }
    disk.image()
}

/// Opens a changed copy of the image. Returns the handle and the number of records found, which
/// must be a prefix of all records.
fn found(image: &Image, change: impl FnOnce(&Disk)) -> microdb::Result<(Db, u32)> {
    let disk = Disk::unrecorded(image.clone());
    change(&disk);
    let db = options(Arc::new(disk.kill())).open(ROOT)?;
    let table = db.table("t").unwrap();
    let count = (0..30u32)
        .take_while(|number| table.contains_key(number.to_be_bytes()).unwrap())
        .count();
    assert_eq!(count as u64, table.len(), "a hole");
    Ok((db, count as u32))
}

fn remove(disk: &Disk, segment: u64) {
    disk.remove(&Path::new(ROOT).join(format!("log/{segment:010}.seg")))
        .unwrap();
}

/// Removes the hints from SUPER. The remaining states date from the creation of the database.
fn forget(disk: &Disk) {
    overwrite(
        disk,
        "SUPER",
        &[
            bytes(&disk.image(), "SUPER")[..32 * 1024].to_vec(),
            vec![0; 8 * 1024],
        ]
        .concat(),
    );
}

fn names_segment(found: microdb::Result<(Db, u32)>, segment: u64) {
    match found {
        Err(Error::Corrupt { path, .. }) => {
            assert!(path.ends_with(format!("{segment:010}.seg")), "{}", path.display());
        }
        Err(error) => panic!("{error}"),
        Ok((db, count)) => panic!("{count} {:?}", db.recovery()),
    }
}

#[test]
fn a_missing_segment_is_damage_if_later_bytes_were_durable_and_else_the_end() {
    // No record was synced, so the log ends before the missing segment, and later segments are
    // removed.
    let (db, count) = found(&unsettled(|_| false), |disk| remove(disk, 4)).unwrap();
    assert_eq!(count, 9, "three segments");
    assert!(!db.recovery().clean);
    drop(db);
    // Without `lost`, the hints of SUPER show that later bytes were durable. With `lost`, the open
    // learns this from the header of a later segment.
    for lost in [false, true] {
        let image = unsettled(|number| number == 20);
        let gone = |disk: &Disk, segment| {
            remove(disk, segment);
            if lost {
                forget(disk);
            }
        };
        for segment in [2, 4, 6, 7] {
            // Without the hints, an open learns the durable frontier only from the header of the
            // eighth segment. The header proves that the first seven segments were durable. The
            // open does not reach the end of the last of them, and the error names this segment.
            let named = if lost { 7 } else { segment };
            names_segment(found(&image, |disk| gone(disk, segment)), named);
        }
        let (_, count) = found(&image, |disk| gone(disk, 9)).unwrap();
        assert_eq!(count, 24, "behind all that was synced");
    }
}

#[test]
fn damage_below_a_later_frontier_is_not_a_torn_tail() {
    let flip = |disk: &Disk, segment: u64, at: u64| {
        let path = Path::new(ROOT).join(format!("log/{segment:010}.seg"));
        let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[byte[0] ^ 1], at).unwrap();
    };
    // Damages the third record in the third segment, and removes the hints.
    let damaged = |disk: &Disk| {
        forget(disk);
        flip(disk, 3, 3000);
    };
    // Fills the fourth segment with zeros from an offset on, and removes all later segments.
    let shorten = |disk: &Disk, to: usize| {
        let whole = bytes(&disk.image(), "log/0000000004.seg");
        let zeros = vec![0; whole.len() - to];
        overwrite(disk, "log/0000000004.seg", &[&whole[..to], &zeros].concat());
        let behind = names(disk, "log").into_iter();
        for name in behind.filter(|name| name.as_str() > "0000000004.seg") {
            disk.remove(&Path::new(ROOT).join("log").join(name)).unwrap();
        }
    };
    // The log was synced after the first record of the fourth segment. Only the frame of the second
    // record in that segment proves the sync. The offset of that frame is smaller than that of the
    // damage in the third segment.
    let image = unsettled(|number| number == 9);
    let (db, _) = found(&image, |_| {}).unwrap();
    let third = db.table("t").unwrap().location(11u32.to_be_bytes());
    let third = third.unwrap().unwrap().offset as usize - 48;
    drop(db);
    let told = found(&image, |disk| {
        damaged(disk);
        shorten(disk, third);
    });
    names_segment(told, 3);
    // The log was synced after the last record of the third segment. Only the header of the fourth
    // segment proves the sync.
    let told = found(&unsettled(|number| number == 8), |disk| {
        damaged(disk);
        shorten(disk, 96);
    });
    names_segment(told, 3);
    // No record was synced, so all bytes from the damaged frame on are dropped, and their number is
    // reported.
    let image = unsettled(|_| false);
    let (db, count) = found(&image, damaged).unwrap();
    assert_eq!(count, 8);
    let frame = end_of_the_eighth(&db);
    let used = |segment: u64| {
        let bytes = bytes(&image, &format!("log/{segment:010}.seg"));
        bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at as u64 + 1)
    };
    let last = names(&Disk::unrecorded(image.clone()), "log").len() as u64;
    let dropped = used(3) - frame + (4..=last).map(used).sum::<u64>();
    assert_eq!(db.recovery().dropped_bytes, dropped);
}

/// Returns the end of the frame with the eighth record, which is the last surviving one, in its
/// segment. Recovery has cut off the next frame.
fn end_of_the_eighth(db: &Db) -> u64 {
    let table = db.table("t").unwrap();
    let at = table.location(7u32.to_be_bytes()).unwrap().unwrap();
    let before = table.location(6u32.to_be_bytes()).unwrap().unwrap();
    assert_eq!((at.segment, before.segment), (3, 3));
    // All these frames have the same length, so the distance of two records is the length of a
    // frame. The record begins 48 bytes behind the start of its frame.
    u64::from(at.offset + (at.offset - before.offset)) - 48
}

#[test]
fn an_incomplete_segment_is_removed_and_counted() {
    let image = unsettled(|number| number == 29);
    let (_, count) = found(&image, |_| {}).unwrap();
    assert_eq!(count, 30);
    let (db, count) = found(&image, |disk| {
        create(disk, "log/0000000077.seg", &[1, 2, 3, 0, 0]);
    })
    .unwrap();
    let recovery = db.recovery();
    assert!(
        count == 30 && recovery.dropped_bytes == 3 && !recovery.clean,
        "{recovery:?}"
    );
}

#[test]
fn a_damaged_header_of_a_durable_segment_is_reported() {
    let image = unsettled(|number| number == 20);
    for segment in [1, 4, 7] {
        let opened = found(&image, |disk| {
            overwrite(disk, &format!("log/{segment:010}.seg"), &[0x55; 96]);
        });
        let Err(Error::Corrupt { path, field, .. }) = opened.map(|(_, count)| count) else {
            panic!("segment {segment}")
        };
        assert!(
            path.ends_with(format!("{segment:010}.seg")) && field == "segment magic",
            "{field}"
        );
    }
    // The ninth segment is after the durable frontier. Recovery treats it as a segment that was
    // still being created.
    let (_, count) = found(&image, |disk| overwrite(disk, "log/0000000009.seg", &[0x55; 96])).unwrap();
    assert_eq!(count, 24);
}

/// The creator of a database may die before the name of SUPER is durable. The next open must make
/// the name durable before any commit is acknowledged.
#[test]
fn the_first_durable_commit_makes_the_database_itself_durable() {
    let made = Disk::default();
    drop(options(Arc::new(made.clone())).open(ROOT).unwrap());
    let record = made.record();
    let mut making = Cuts::new(&record);
    let mut random = Random::new(1);
    let mut disks = 0;
    while making.step() {
        let disk = making.killed();
        let db = options(Arc::new(disk.clone())).open(ROOT).unwrap();
        db.table("t").unwrap().put("key", "value").unwrap();
        let promised = disk.record();
        let mut cuts = Cuts::new(&promised);
        while cuts.step() {}
        for image in cuts.disks(&mut random, 20) {
            let again = Arc::new(Disk::unrecorded(image));
            let opened = options(again).create(false).open(ROOT);
            let db = opened.unwrap_or_else(|error| panic!("died behind call {}: {error}", making.at()));
            let table = db.get_table("t").unwrap();
            assert_eq!(table.get("key").unwrap().as_deref(), Some(&b"value"[..]));
            disks += 1;
        }
    }
    assert!(disks > 20, "{disks}");
}

/// The version is read before any checksum is checked, because a later format may compute its
/// checksums in another way.
#[test]
fn newer_format_is_named_as_such_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    Db::open(&path).unwrap().close().unwrap();
    let super_file = path.join("SUPER");
    let mut bytes = std::fs::read(&super_file).unwrap();
    let copies = [0, 16 * 1024];
    for at in copies {
        bytes[at + 8..at + 12].copy_from_slice(&2_u32.to_le_bytes());
        bytes[at + 12..at + 200].fill(0xEE);
    }
    std::fs::write(&super_file, &bytes).unwrap();
    let before = std::fs::read(&super_file).unwrap();
    for read_only in [false, true] {
        let error = Options::new().read_only(read_only).open(&path).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Version {
                    found: 2,
                    supported: 1,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(error.to_string().contains("format version 2"), "{error}");
    }
    assert_eq!(std::fs::read(&super_file).unwrap(), before);
    // The newer version is also recognised if the first copy of the state in SUPER is damaged.
    bytes[..8].fill(0);
    std::fs::write(&super_file, &bytes).unwrap();
    assert!(matches!(Db::open(&path), Err(Error::Version { found: 2, .. })));
    // If one copy of the state is sound and the other copy has another version, that other copy
    // counts as damaged, and the database is not of a newer format.
    let other = folder.path().join("other");
    Db::open(&other).unwrap().close().unwrap();
    let super_file = other.join("SUPER");
    let mut bytes = std::fs::read(&super_file).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&super_file, &bytes).unwrap();
    Db::open(&other).unwrap();
}
