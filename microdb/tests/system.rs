//! Real faults of the operating system: no descriptors, a small disk that fills up, a read-only
//! file system, a removed or renamed folder, an unreadable disk, a clock that jumps. Also a log
//! that is larger than memory.
//!
//! The storage in memory (`support::disk`), with which `faults.rs` tests, can fail at every call.
//! These tests check that real faults have the same effects. Tests that need root, loop devices or
//! mounts are ignored by default, and fail without them.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::{Path, PathBuf};

use crate::support::mount::{Mounted, command};
use crate::support::other::{self, Other, say};
use crate::support::workload::chain;
use microdb::{Db, Durability, Error, Options};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

/// Error numbers of the system: no free descriptor, unreadable disk, read-only file system.
const EMFILE: i32 = 24;
const EIO: i32 = 5;
const EROFS: i32 = 30;

fn options() -> Options {
    Options::new()
        .segment_bytes_first(16 * 1024)
        .segment_bytes_max(16 * 1024)
        .buffer_bytes(4000)
        .background(false)
}

fn key(number: u64) -> String {
    format!("key {number}")
}

fn value(number: u64) -> String {
    format!("value of {number} {}", "v".repeat(300 + number as usize % 100))
}

/// Number of records in a batch, which is committed with one sync.
const BATCH: u64 = 8;

/// Puts records in batches from `number` on, until a batch is refused or `end` is reached. Returns
/// the first record without acknowledgement, and the error if a batch was refused.
fn fill(db: &Db, mut number: u64, end: u64) -> (u64, Option<Error>) {
    let put = |numbers: std::ops::Range<u64>| -> microdb::Result<()> {
        let (table, mut batch) = (db.table("t")?, db.batch());
        for number in numbers {
            batch.put(&table, key(number), value(number));
        }
        batch.commit().map(drop)
    };
    while number < end {
        if let Err(error) = put(number..number + BATCH) {
            return (number, Some(error));
        }
        number += BATCH;
    }
    (number, None)
}

/// Checks that all records before `end` exist, and no later ones except, perhaps, the batch from
/// `end` on: a batch that was refused may have been written.
fn check(db: &Db, end: u64) {
    let table = db.table("t").unwrap();
    for number in 0..end {
        let found = table.get(key(number)).unwrap();
        assert_eq!(
            found.as_deref(),
            Some(value(number).as_bytes()),
            "record {number}"
        );
    }
    assert!(
        [end, end + BATCH].contains(&table.len()),
        "{} records, {end} acknowledged",
        table.len()
    );
    assert!(db.verify().unwrap().is_sound());
}

/// Returns the system's error number that caused an error; `None` if there is no such number.
fn reason(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        Error::Poisoned { cause } => reason(cause),
        _ => None,
    }
}

/// A loop device with ext4 on an image file, until this value is dropped.
struct DiskFile {
    image: PathBuf,
    device: String,
}

impl DiskFile {
    fn new(image: PathBuf, mib: u64) -> Result<Self, String> {
        let file = std::fs::File::create(&image);
        file.and_then(|file| file.set_len(mib << 20)).unwrap();
        let path = image.to_str().unwrap();
        command(
            "mkfs.ext4",
            &["-q", "-F", "-m", "0", "-b", "4096", "-O", "^has_journal", path],
        )?;
        let device = command("losetup", &["--find", "--show", path])?;
        Ok(Self { image, device })
    }

    fn mount(&self) -> Result<Mounted, String> {
        Mounted::new(&[&self.device], &self.image.with_extension("mounted"))
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = command("losetup", &["--detach", &self.device]);
    }
}

/// Entry point of the second process, which opens and fills databases with a limited number of file
/// descriptors.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((part, folder)) = other::part() else {
        return;
    };
    assert_eq!(part, "descriptors");
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = |current| {
        let limit = Rlimit {
            current,
            maximum: hard,
        };
        setrlimit(Resource::Nofile, limit).unwrap();
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let (mut refused, mut whole) = (0, 0);
    // The cases range from too few descriptors to open the database to enough for all of the work.
    for spare in 0..40 {
        let path = folder.join(spare.to_string());
        limit(Some(open + spare));
        let mut acknowledged = 0;
        let work = |acknowledged: &mut u64| -> microdb::Result<()> {
            let db = options().open(&path)?;
            for _ in 0..8 {
                let (end, error) = fill(&db, *acknowledged, *acknowledged + 40);
                *acknowledged = end;
                error.map_or(Ok(()), Err)?;
                db.checkpoint()?;
            }
            db.compact()?;
            db.backup_to(path.with_extension("backup"))?;
            db.close()
        };
        match work(&mut acknowledged) {
            Ok(()) => whole += 1,
            Err(error) if reason(&error) == Some(EMFILE) => refused += 1,
            Err(error) => return say(&format!("WRONG {spare} spare descriptors: {}", chain(&error))),
        }
        limit(hard);
        let db = options().open(&path).unwrap();
        check(&db, acknowledged);
    }
    say(&format!("{refused} {whole}"));
}

#[test]
fn a_process_without_descriptors_gets_an_error_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Other::start(ENTRY, "descriptors", folder.path());
    let said = other
        .said()
        .unwrap_or_else(|| panic!("the other process said nothing"));
    let (refused, whole) = said.split_once(' ').unwrap_or_else(|| panic!("{said}"));
    let number = |text: &str| text.parse::<u32>().unwrap_or_else(|_| panic!("{said}"));
    assert!(number(refused) > 10 && number(whole) > 0, "{said}");
    other.ended_well();
}

#[test]
#[ignore = "needs root"]
fn a_full_file_system_refuses_commits_until_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let tmpfs = ["-t", "tmpfs", "-o", "size=512k", "tmpfs"];
    let tmpfs = Mounted::new(&tmpfs, &folder.path().join("tmpfs")).unwrap();
    let disk = DiskFile::new(folder.path().join("image"), 4).unwrap();
    let ext4 = disk.mount().unwrap();
    for mounted in [tmpfs, ext4] {
        let ballast = mounted.0.join("ballast");
        let room = 200_000;
        std::fs::write(&ballast, vec![1; room]).unwrap();
        let path = mounted.0.join("db");
        let mut db = options().open(&path).unwrap();
        let (mut end, mut refusals) = (0, 0);
        // In each round the disk fills up and is then given more space.
        for round in 0..3 {
            let (acknowledged, error) = fill(&db, end, u64::MAX);
            end = acknowledged;
            let error = error.unwrap();
            assert!(error.is_disk_full(), "{}", chain(&error));
            refusals += 1;
            check_reads(&db, end);
            std::fs::write(&ballast, vec![1; room - (round + 1) * 60_000]).unwrap();
            if matches!(error, Error::Poisoned { .. }) {
                drop(db);
                db = options().open(&path).unwrap();
            }
            let (further, _) = fill(&db, end, end + BATCH);
            assert_eq!(further, end + BATCH, "there is room again");
            end = further;
        }
        drop(db);
        check(&options().open(&path).unwrap(), end);
        println!("{}: {refusals} refusals, {end} records", mounted.0.display());
    }
}

fn check_reads(db: &Db, end: u64) {
    let table = db.table("t").unwrap();
    for number in (0..end).step_by(7) {
        assert_eq!(
            table.get(key(number)).unwrap().as_deref(),
            Some(value(number).as_bytes())
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_read_only_file_system_is_readable_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let db = options().open(&path).unwrap();
    let (end, _) = fill(&db, 0, 200);
    db.close().unwrap();
    let there = path.to_str().unwrap();
    let mounted = Mounted::new(&["--bind", there], &folder.path().join("ro")).unwrap();
    let place = mounted.0.to_str().unwrap();
    command("mount", &["-o", "remount,ro,bind", place]).unwrap();
    let error = options().open(&mounted.0).unwrap_err();
    assert_eq!(reason(&error), Some(EROFS), "{}", chain(&error));
    check(&options().read_only(true).open(&mounted.0).unwrap(), end);
    let error = options().open(mounted.0.join("new")).unwrap_err();
    assert_eq!(reason(&error), Some(EROFS), "{}", chain(&error));
    let manifest = microdb::salvage(&mounted.0, folder.path().join("saved")).unwrap();
    assert!(manifest.is_complete() && manifest.records == end, "{manifest}");
}

#[test]
fn removed_database_acknowledges_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let db = options().open(&path).unwrap();
    let (end, _) = fill(&db, 0, 200);
    std::fs::remove_dir_all(&path).unwrap();
    let (further, error) = fill(&db, end, end + 1000);
    assert_eq!(further, end, "acknowledged into a folder that is gone");
    let error = error.unwrap();
    assert!(
        matches!(error, Error::Poisoned { .. }) && chain(&error).contains("LOCK was removed"),
        "{}",
        chain(&error)
    );
    check_reads(&db, end);
    assert!(db.checkpoint().is_err() && db.backup_to(folder.path().join("copy")).is_err());
    drop(db);
    assert!(!path.exists(), "nothing is made where the database was");
    assert!(matches!(
        options().create(false).open(&path),
        Err(Error::NotADatabase { .. })
    ));
}

#[test]
fn a_renamed_database_stays_usable() {
    let folder = tempfile::tempdir().unwrap();
    let (path, away) = (folder.path().join("db"), folder.path().join("away"));
    let db = options().open(&path).unwrap();
    let (end, _) = fill(&db, 0, 200);
    std::fs::rename(&path, &away).unwrap();
    let (further, error) = fill(&db, end, end + 1000);
    assert!(error.is_none() && further == end + 1000, "{error:?}");
    db.checkpoint().unwrap();
    db.backup_to(folder.path().join("copy")).unwrap();
    db.close().unwrap();
    assert!(!path.exists());
    check(&options().open(&away).unwrap(), further);
    check(&options().open(folder.path().join("copy")).unwrap(), further);
}

/// A loop device returns an IO error for reads after the end of its file. So it behaves like a disk
/// with an unreadable end.
#[test]
#[ignore = "needs root"]
fn a_disk_that_cannot_be_read_is_an_error_and_not_a_sigbus() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskFile::new(folder.path().join("image"), 16).unwrap();
    let mounted = disk.mount().unwrap();
    let place = mounted.0.clone();
    // All records are in one segment, so that the start of the segment is readable and its end is
    // not.
    let options = || options().segment_bytes_first(2 << 20).segment_bytes_max(2 << 20);
    let db = options().open(place.join("db")).unwrap();
    let table = db.table("t").unwrap();
    // A copy of SUPER from before the first record. This copy does not prove that any record is
    // durable.
    let young = std::fs::read(place.join("db/SUPER")).unwrap();
    let end = 3000;
    for number in 0..end {
        table
            .put_with(key(number), value(number), Durability::Buffered)
            .unwrap();
    }
    db.checkpoint().unwrap();
    drop((table, db));
    // The checkpoint is moved to another disk, so that it stays readable.
    let (checkpoints, moved) = (place.join("db/directory"), folder.path().join("directory"));
    std::fs::create_dir(&moved).unwrap();
    for entry in std::fs::read_dir(&checkpoints).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), moved.join(entry.file_name())).unwrap();
    }
    std::fs::remove_dir_all(&checkpoints).unwrap();
    std::os::unix::fs::symlink(&moved, &checkpoints).unwrap();
    drop(mounted);
    let bytes = std::fs::read(&disk.image).unwrap();
    let first = |number: u64| {
        let text = value(number).into_bytes();
        bytes.windows(text.len()).position(|window| window == text)
    };
    let cut = first(end / 2).unwrap() / 4096 * 4096;
    let file = std::fs::OpenOptions::new().write(true).open(&disk.image).unwrap();
    file.set_len(cut as u64).unwrap();
    // The disk is mounted again, so that none of its data is in the page cache.
    let _mounted = disk.mount().unwrap();
    let db = options().open(place.join("db")).unwrap();
    let table = db.table("t").unwrap();
    let (mut right, mut unreadable) = (0, 0);
    for number in 0..end {
        match table.get(key(number)) {
            Ok(found) => {
                assert_eq!(
                    found.as_deref(),
                    Some(value(number).as_bytes()),
                    "record {number}"
                );
                right += 1;
            }
            Err(error) => {
                assert_eq!(reason(&error), Some(EIO), "record {number}: {}", chain(&error));
                unreadable += 1;
            }
        }
    }
    assert!(
        right > 50 && unreadable > 50,
        "{right} right, {unreadable} unreadable"
    );
    assert!(!db.verify().unwrap().is_sound());
    println!("{right} records right, {unreadable} named");
    drop((table, db));
    // With the SUPER from before the first record, nothing proves that the records were durable.
    // The unreadable part must still be an IO error and not a torn tail, and nothing may be cut
    // off.
    std::fs::write(place.join("young"), young).unwrap();
    std::fs::rename(place.join("young"), place.join("db/SUPER")).unwrap();
    command("sync", &["--file-system", place.to_str().unwrap()]).unwrap();
    // Writes since the truncation may have extended the image file, so it is truncated again.
    file.set_len(cut as u64).unwrap();
    let segment = place.join("db/log/0000000001.seg");
    let before = std::fs::metadata(&segment).unwrap().len();
    let error = options().open(place.join("db")).unwrap_err();
    assert_eq!(reason(&error), Some(EIO), "{}", chain(&error));
    assert_eq!(std::fs::metadata(&segment).unwrap().len(), before);
}

/// The engine uses the order of commits and not the time of day, so a wall clock that jumps changes
/// nothing. The wall clock is read only once, when a database is created, for display.
#[test]
fn the_wall_clock_is_read_once_in_the_life_of_a_database() {
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                sources(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let asks = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        text.matches("SystemTime::now").count()
            + text.matches("elapsed()").count() * usize::from(text.contains("SystemTime"))
    };
    let asking: Vec<(String, usize)> = found
        .iter()
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                asks(path),
            )
        })
        .filter(|(_, times)| *times > 0)
        .collect();
    assert_eq!(
        asking,
        [("mod.rs".to_owned(), 1)],
        "only `recover/mod.rs`, where a database is made"
    );
    // The time of the creation is only displayed. Writes do not depend on it.
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path().join("db")).unwrap();
    db.table("t")
        .unwrap()
        .put_with("k", "v", Durability::Sync)
        .unwrap();
    assert!(db.stats().keys >= 1);
}

/// Counts the process' maps of files in `folder` that are not removed. Returns the number advised
/// for random reads, and the number with the usual read-ahead.
fn maps(folder: &Path) -> (usize, usize) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut random, mut normal, mut ours) = (0, 0, false);
    for line in smaps.lines() {
        match line.strip_prefix("VmFlags:") {
            Some(flags) if ours && flags.split(' ').any(|flag| flag == "rr") => random += 1,
            Some(_) if ours => normal += 1,
            _ if line.contains('/') => {
                ours = line.contains(folder.to_str().unwrap()) && !line.ends_with("(deleted)");
            }
            _ => {}
        }
        if line.starts_with("VmFlags:") {
            ours = false;
        }
    }
    (random, normal)
}

/// If a log is larger than memory, a get must read one page and not the device's read-ahead. A log
/// that fits into memory must be read ahead.
#[test]
fn only_a_log_larger_than_memory_is_read_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 100_000;
    // Each database has a separate folder, so that `maps` counts only the maps of one database.
    let path = |name: &str| folder.path().join(name);
    let grown = path("grown");
    let db = options().memory_bytes(Some(limit)).open(&grown).unwrap();
    let (end, error) = fill(&db, 0, 160);
    assert!(error.is_none() && db.stats().log_bytes < limit);
    let (random, normal) = maps(&grown);
    assert!(random == 0 && normal > 1, "{random} {normal}");
    let (end, error) = fill(&db, end, 480);
    assert!(error.is_none() && db.stats().log_bytes > limit);
    let (random, normal) = maps(&grown);
    assert!(random > 4 && normal == 0, "{random} {normal}");
    check(&db, end);
    for (name, bytes) in [
        ("small", Some(limit)),
        ("large", Some(10 * limit)),
        ("asked", None),
    ] {
        db.backup_to(path(name)).unwrap();
        let db = options().memory_bytes(bytes).open(path(name)).unwrap();
        check(&db, end);
        // The counts include the map of the checkpoint.
        let (random, normal) = maps(&path(name));
        let expected = if name == "small" { normal == 0 } else { random == 0 };
        assert!(expected && random + normal > 4, "{name}: {random} {normal}");
        assert!(db.verify().unwrap().is_sound());
    }
    // After most of the log is removed, the remaining log fits into `limit`.
    let table = db.table("t").unwrap();
    for number in 40..end {
        table.put_with(key(number), "", Durability::Buffered).unwrap();
    }
    db.compact().unwrap();
    fill(&db, 0, 40);
    let (random, normal) = maps(&grown);
    assert!(random == 0 && normal > 1, "{random} {normal}");
}
