//! Tests of seals and healing: a seal finds damaged chunks of its segment, and chunks of a backup
//! replace them.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use microdb::{Db, Durability, Error, Options, heal};

const RECORDS: u32 = 6000;

fn options() -> Options {
    let options = Options::new()
        .segment_bytes_first(200_000)
        .segment_bytes_max(200_000);
    options.durability(Durability::Buffered).background(false)
}

fn value(number: u32) -> Vec<u8> {
    (0..100_u32)
        .map(|byte| (number.wrapping_mul(31) + byte * 7) as u8)
        .collect()
}

/// Creates a database with several sealed segments and an active segment, and a backup that shares
/// no file with it, as on another disk. Returns both paths.
fn shop(folder: &Path) -> (PathBuf, PathBuf) {
    let (path, linked, backup) = (folder.join("shop"), folder.join("linked"), folder.join("backup"));
    let db = options().open(&path).unwrap();
    let table = db.table("t").unwrap();
    for number in 0..RECORDS {
        table.put(number.to_be_bytes(), value(number)).unwrap();
    }
    let report = db.backup_to(&linked).unwrap();
    assert!(report.segments_linked >= 4);
    copy(&linked, &backup);
    // The database has a commit that the backup does not have.
    table.put("late", "later than the backup").unwrap();
    db.close().unwrap();
    (path, backup)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let log = std::fs::read_dir(folder.join("log")).unwrap();
    log.map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn assert_whole(path: &Path) {
    let db = options().open(path).unwrap();
    let report = db.verify().unwrap();
    assert!(report.is_sound(), "{report:?}");
    let table = db.table("t").unwrap();
    assert_eq!(table.len(), u64::from(RECORDS) + 1);
    for number in 0..RECORDS {
        assert_eq!(
            table.get(number.to_be_bytes()).unwrap().as_deref(),
            Some(&value(number)[..])
        );
    }
}

#[test]
fn complete_segments_are_sealed_and_verified_by_their_seals() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = shop(folder.path());
    for path in [&path, &backup] {
        let db = options().read_only(true).open(path).unwrap();
        let report = db.verify().unwrap();
        assert!(
            report.sealed_segments >= 3 && report.unsealed_segments == 0,
            "{report:?}"
        );
        assert!(report.is_sound());
    }
    let seal = path.join("log/0000000001.seal");
    change(&seal, |bytes| bytes[100] ^= 1);
    let db = options().open(&path).unwrap();
    let report = db.verify().unwrap();
    assert_eq!(
        (report.is_sound(), report.unsealed_segments),
        (true, 1),
        "a damaged seal is no damage of the log"
    );
    db.checkpoint().unwrap();
    assert_eq!(db.verify().unwrap().unsealed_segments, 0, "and is made anew");
    // Byte 80 is in the segment header and in no frame. Healing finds this damage by the seal.
    drop(db);
    change(&path.join("log/0000000002.seg"), |bytes| bytes[80] ^= 1);
    let error = options().open(&path).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    assert_eq!(heal(&path, &backup).unwrap().chunks_healed, 1);
    assert_whole(&path);
}

#[test]
fn damaged_chunks_are_replaced_from_the_backup() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = shop(folder.path());
    let before = files(&path);
    let segment = |number: u32| path.join(format!("log/{number:010}.seg"));
    change(&segment(1), |bytes| bytes[0] ^= 1);
    change(&segment(1), |bytes| bytes[140_000] ^= 1);
    change(&segment(2), |bytes| bytes[60_000..130_000].fill(0));
    change(&segment(3), |bytes| bytes.truncate(70_000));
    std::fs::remove_file(segment(4)).unwrap();
    // The active segment has no seal, so healing checks its frames instead.
    let active = before
        .keys()
        .rfind(|path| path.extension().unwrap() == "seg")
        .unwrap();
    change(active, |bytes| bytes[20_000] ^= 1);
    assert!(options().open(&path).unwrap_err().is_corrupt());
    let report = heal(&path, &backup).unwrap();
    assert!(report.is_healed() && report.chunks_healed >= 8, "{report}");
    assert_eq!(files(&path), before, "{report}");
    assert_whole(&path);
    let again = heal(&path, &backup).unwrap();
    assert!(again.damaged.is_empty(), "{again}");
}

#[test]
fn without_seals_the_frames_locate_the_damage() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = shop(folder.path());
    let before = files(&path);
    for folder in [&path, &backup] {
        for seal in files(folder)
            .into_keys()
            .filter(|path| path.extension().unwrap() == "seal")
        {
            std::fs::remove_file(seal).unwrap();
        }
    }
    change(&path.join("log/0000000001.seg"), |bytes| {
        bytes[100_000..170_000].fill(7);
    });
    change(&path.join("log/0000000003.seg"), |bytes| bytes[3] = 7);
    let report = heal(&path, &backup).unwrap();
    assert!(report.is_healed() && report.chunks_healed >= 3, "{report}");
    for (path, bytes) in files(&path) {
        assert!(before[&path] == bytes, "{}", path.display());
    }
    assert_whole(&path);
}

#[test]
fn damage_missing_in_the_backup_is_reported_and_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = shop(folder.path());
    for folder in [&path, &backup] {
        change(&folder.join("log/0000000002.seg"), |bytes| bytes[5000] ^= 1);
    }
    let before = files(&path);
    let report = heal(&path, &backup).unwrap();
    assert!(!report.is_healed() && report.damaged.len() == 1, "{report}");
    assert_eq!((report.damaged[0].from, report.damaged[0].to), (0, 65_536));
    assert!(files(&path) == before);
    std::fs::remove_file(backup.join("log/0000000002.seg")).unwrap();
    assert!(
        heal(&path, &backup)
            .unwrap()
            .to_string()
            .contains("does not have this segment")
    );
}

#[test]
fn a_backup_with_its_own_history_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = shop(folder.path());
    // The backup is opened and written to. Its new commits go into the segment that was active when
    // the backup was made.
    let db = options().open(&backup).unwrap();
    for number in 0..400_u32 {
        db.table("t")
            .unwrap()
            .put(number.to_be_bytes(), "another value, for a while")
            .unwrap();
    }
    db.close().unwrap();
    let before = files(&path);
    assert!(heal(&path, &backup).unwrap().damaged.is_empty());
    assert!(files(&path) == before);
    // The last record of the original is damaged. The backup has different frames at that position.
    let active = before
        .keys()
        .rfind(|path| path.extension().unwrap() == "seg")
        .unwrap();
    change(active, |bytes| {
        let at = bytes.windows(5).rposition(|window| window == b"later").unwrap();
        bytes[at] ^= 1;
    });
    let damaged = files(&path);
    let report = heal(&path, &backup).unwrap();
    assert!(report.damaged.iter().all(|chunk| !chunk.healed), "{report}");
    assert!(files(&path) == damaged);
}

#[test]
fn healing_requires_a_closed_database_and_its_own_backup() {
    let folder = tempfile::tempdir().unwrap();
    let (path, backup) = shop(folder.path());
    let db = Db::open(&path).unwrap();
    assert!(matches!(heal(&path, &backup), Err(Error::Locked { .. })));
    drop(db);
    let other = folder.path().join("other");
    drop(Db::open(&other).unwrap());
    assert!(matches!(heal(&path, &other), Err(Error::Invalid { .. })));
    assert!(matches!(
        heal(&path, folder.path().join("none")),
        Err(Error::NotADatabase { .. })
    ));
}
