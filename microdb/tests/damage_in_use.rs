//! Tests of damage to an open database: files truncated while they are mapped, and bytes damaged
//! after the open. One more test reads a key while batches write it several times.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::folder::copy_folder;
use crate::support::other::{self, Other, say};
use microdb::{Db, Durability, Error, Options};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");
/// Number of the signal that a process gets for a read after the end of a mapped file.
const SIGBUS: i32 = 7;

fn options() -> Options {
    let options = Options::new()
        .segment_bytes_first(100_000)
        .segment_bytes_max(100_000);
    options.durability(Durability::Buffered).background(false)
}

fn key(number: u32) -> Vec<u8> {
    format!("key number {number}").into_bytes()
}

fn value(number: u32) -> Vec<u8> {
    (0..200_u32)
        .map(|byte| (number.wrapping_mul(31) + byte * 7) as u8)
        .collect()
}

/// Creates and closes a database with several sealed segments, an active segment, and a checkpoint
/// of all of them. Returns its path.
fn shop(folder: &Path) -> PathBuf {
    let path = folder.join("shop");
    let db = options().open(&path).unwrap();
    let table = db.table("t").unwrap();
    for number in 0..1500 {
        table.put(key(number), value(number)).unwrap();
    }
    db.checkpoint().unwrap();
    db.close().unwrap();
    path
}

fn segment(path: &Path, id: u32) -> PathBuf {
    path.join(format!("log/{id:010}.seg"))
}

/// Writes `with` over the first occurrence of `text`, in place. So existing maps of the file show
/// the change.
fn overwrite(path: &Path, text: &[u8], with: &[u8]) {
    use std::os::unix::fs::FileExt;
    let bytes = std::fs::read(path).unwrap();
    let at = bytes
        .windows(text.len())
        .position(|window| window == text)
        .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(with, at as u64).unwrap();
}

/// Returns the path of the only checkpoint of a database.
fn checkpoint_of(path: &Path) -> PathBuf {
    let mut checkpoints = std::fs::read_dir(path.join("directory")).unwrap();
    checkpoints.next().unwrap().unwrap().path()
}

/// Changes a bit of the first chunk of the table `t` in the checkpoint of a database, in place.
fn damage_first_chunk(path: &Path) {
    use std::os::unix::fs::FileExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).open(checkpoint_of(path)).unwrap();
    let mut byte = [0];
    // The file begins with a head of 64 bytes and the small image of the catalog's directory. Then
    // comes the first chunk of the table `t`, which is long enough to contain this offset.
    let at = 4096 + 100;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn cut(path: &Path, len: u64) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

/// Reads every key by `get`, from a snapshot, by `multi_get` and by iteration. Each read must
/// return the right value or an error that names `damaged`. Returns the number of keys with an
/// error.
fn read(db: &Db, damaged: &Path) -> u32 {
    let table = db.table("t").unwrap();
    let names = |error: Error| match error {
        Error::Corrupt { path, .. } => assert_eq!(path, damaged),
        error => panic!("{error}"),
    };
    let mut errors = 0;
    let snapshot = db.snapshot();
    for number in 0..1500 {
        match table.get(key(number)) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value(number)[..]), "key {number}"),
            Err(error) => {
                names(error);
                errors += 1;
            }
        }
        match snapshot.get(&table, key(number)) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value(number)[..]), "key {number}"),
            Err(error) => names(error),
        }
        match table.multi_get(&[key(number)]) {
            Ok(found) => assert_eq!(found[0].as_deref(), Some(&value(number)[..]), "key {number}"),
            Err(error) => names(error),
        }
    }
    let (mut seen, mut failed) = (0, 0);
    for record in &table {
        match record {
            Ok((key, value)) => {
                assert_eq!(table.get(&key).ok().flatten().as_deref(), Some(&*value));
                seen += 1;
            }
            Err(error) => {
                names(error);
                failed += 1;
            }
        }
    }
    assert!(
        seen == 1500 - errors && (failed > 0) == (errors > 0),
        "{seen} seen, {failed} failed, {errors} errors"
    );
    errors
}

/// Returns the number of records in segment `id` that end after byte `len` of its file.
fn records_behind(db: &Db, id: u64, len: u64) -> u32 {
    let table = db.table("t").unwrap();
    let is_behind = |number: &u32| {
        let at = table.location(key(*number)).unwrap().unwrap();
        // The record's header has 8 bytes: checksum, tag, length of the key, length of the value.
        // Key and value follow.
        let bytes = 4 + 1 + 1 + 2 + key(*number).len() + value(*number).len();
        at.segment == id && u64::from(at.offset) + bytes as u64 > len
    };
    (0..1500).filter(is_behind).count() as u32
}

#[test]
fn a_segment_truncated_while_mapped_is_damage_and_not_a_crash() {
    for len in [0, 50, 30_000, 70_000] {
        let folder = tempfile::tempdir().unwrap();
        let path = shop(folder.path());
        let db = options().open(&path).unwrap();
        assert_eq!(read(&db, Path::new("")), 0);
        let lost = records_behind(&db, 2, len);
        assert!(lost > 50, "cut to {len}: {lost} records");
        cut(&segment(&path, 2), len);
        // Exactly the reads of the lost records fail.
        assert_eq!(read(&db, &segment(&path, 2)), lost, "cut to {len}");
        let message = db.verify().unwrap().damage.join("\n");
        assert!(message.contains("0000000002.seg"), "{message}");
        // Writes to the database and syncs still work.
        db.table("t").unwrap().put("new", "value").unwrap();
        db.sync().unwrap();
        drop(db);
        // The next open fails and names the segment, or reads of the lost records fail.
        match options().open(&path) {
            Err(error) => assert!(error.to_string().contains("0000000002.seg"), "{error}"),
            Ok(db) => {
                let table = db.table("t").unwrap();
                let errors = (0..1500).filter(|number| table.get(key(*number)).is_err());
                assert_eq!(errors.count(), lost as usize, "cut to {len}");
            }
        }
    }
}

/// Missing pages read as zeros, which are here the bytes that were written. So every checksum of
/// the segment is right although the disk no longer has the segment.
#[test]
fn a_truncated_segment_with_right_checksums_is_neither_sealed_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    // The second value does not fit into the first segment, which therefore ends with zeros.
    for key in ["first", "second"] {
        table.put(key, vec![0_u8; 60_000]).unwrap();
    }
    db.sync().unwrap();
    cut(&segment(folder.path(), 1), 40_960);
    db.wait_idle().unwrap();
    assert!(!folder.path().join("log/0000000001.seal").exists());
    let error = db.compact().unwrap_err();
    assert!(
        error.is_corrupt() && error.to_string().contains("0000000001.seg"),
        "{error}"
    );
    let stats = db.stats();
    assert_eq!((stats.damaged_segments, stats.segments[0].id), (1, 1));
}

/// Entry point of the second process, which truncates a mapped file and reads after the new end of
/// the file.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((part, folder)) = other::part() else {
        return;
    };
    // The first process has created the database. Creating it here would already install the SIGBUS
    // handler.
    let path = folder.join("shop");
    let db = options().sigbus_handler(part == "installed").open(&path).unwrap();
    let table = db.table("t").unwrap();
    cut(&segment(&path, 2), 0);
    let lost = (0..1500)
        .filter(|number| table.get(key(*number)).is_err())
        .count();
    say(&format!("{lost} errors"));
}

#[test]
fn process_that_refuses_the_handler_ends_by_the_signal_and_another_gets_errors() {
    let folder = tempfile::tempdir().unwrap();
    let start = |part: &str| {
        let folder = folder.path().join(part);
        shop(&folder);
        Other::start(ENTRY, part, &folder)
    };
    let mut refused = start("refused");
    assert_eq!(refused.said(), None, "the process ends at the first read");
    assert_eq!(refused.child.wait().unwrap().signal(), Some(SIGBUS));
    let mut installed = start("installed");
    let said = installed.said().unwrap();
    let errors = said.strip_suffix(" errors").unwrap();
    assert!(errors.parse::<u32>().unwrap() > 100, "{said}");
    installed.ended_well();
}

#[test]
fn a_checkpoint_truncated_while_mapped_hides_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    for touched in [false, true] {
        let copy = folder.path().join(format!("copy-{touched}"));
        let db = options().open(&path).unwrap();
        db.backup_to(&copy).unwrap();
        drop(db);
        let checkpoint = checkpoint_of(&copy);
        let db = options().open(&copy).unwrap();
        if touched {
            assert_eq!(read(&db, Path::new("")), 0);
        }
        cut(&checkpoint, 0);
        let table = db.table("t").unwrap();
        let (mut errors, mut named) = (0, 0);
        for number in 0..1500 {
            match table.get(key(number)) {
                Ok(found) => assert_eq!(found.as_deref(), Some(&value(number)[..]), "key {number}"),
                Err(error) if error.is_corrupt() => {
                    let text = error.to_string();
                    assert!(text.contains(checkpoint.to_str().unwrap()), "{text}");
                    named += u32::from(text.contains(" bytes, found 0 bytes"));
                    errors += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        // If nothing was read before the truncation (`touched` is `false`), the first read finds a
        // wrong checksum, because the missing bytes read as zeros. Then no error need name the
        // length.
        assert!(named > 0 || !touched, "no error names the length");
        assert_eq!(
            errors, 1500,
            "each key needs a part of the directory that is gone"
        );
        assert!(table.iter().any(|record| record.is_err()));
        drop((table, db));
        // The log alone is sufficient for recovery, because a checkpoint is only derived from it.
        assert_eq!(read(&options().open(&copy).unwrap(), Path::new("")), 0);
    }
}

#[test]
fn verify_finds_damage_in_a_chunk_of_the_checkpoint_that_was_verified_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    let checkpoint = checkpoint_of(&path);
    let db = options().open(&path).unwrap();
    assert!(db.verify().unwrap().is_sound());
    damage_first_chunk(&path);
    let report = db.verify().unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    let [damage] = &report.derived_damage[..] else {
        panic!("{:?}", report.derived_damage);
    };
    assert!(damage.contains(&checkpoint.display().to_string()), "{damage}");
    // The keys of this chunk are in doubt, and no read takes them for absent.
    let table = db.table("t").unwrap();
    for number in 0..1500 {
        match table.get(key(number)) {
            Ok(found) => assert_eq!(found.as_deref(), Some(&value(number)[..])),
            Err(error) => assert!(error.is_corrupt(), "{error}"),
        }
    }
}

#[test]
fn a_batch_that_meets_a_damaged_directory_is_refused_before_any_record_is_visible() {
    let folder = tempfile::tempdir().unwrap();
    let origin = folder.path().join("origin");
    let db = options().open(&origin).unwrap();
    let table = db.table("t").unwrap();
    // 20,000 keys need several chunks in the checkpoint.
    for number in 0..20_000 {
        table.put(key(number), "old").unwrap();
    }
    db.checkpoint().unwrap();
    db.close().unwrap();
    // All copies of the database have equal chunks. So reads of one damaged copy show which keys
    // are in the first chunk.
    let sample = folder.path().join("sample");
    copy_folder(&origin, &sample);
    damage_first_chunk(&sample);
    let db = options().open(&sample).unwrap();
    let table = db.table("t").unwrap();
    let (lost, whole): (Vec<u32>, Vec<u32>) =
        (0..20_000).partition(|number| table.get(key(*number)).is_err());
    assert!(lost.len() > 1_000 && whole.len() > 2_000, "{} lost", lost.len());
    for (durability, were_read, wholes) in [
        (Durability::Buffered, false, 1),
        (Durability::Buffered, true, 1),
        (Durability::Buffered, false, 600),
        (Durability::Sync, true, 600),
    ] {
        let case = format!("{durability:?}, read before: {were_read}, {wholes} keys of whole chunks");
        let path = folder.path().join(&case);
        copy_folder(&origin, &path);
        let db = options().open(&path).unwrap();
        let table = db.table("t").unwrap();
        if were_read {
            assert!((0..20_000).all(|number| table.contains_key(key(number)).unwrap()));
        }
        damage_first_chunk(&path);
        let mut batch = db.batch();
        for number in whole.iter().take(wholes).chain(lost.first()) {
            batch.put(&table, key(*number), "new");
        }
        let error = batch.commit_with(durability).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{case}: {error}");
        let all_old = |table: &microdb::Table| {
            let value = |number: &u32| table.get(key(*number)).unwrap().unwrap().to_vec();
            whole.iter().take(wholes).all(|number| value(number) == b"old")
        };
        assert!(all_old(&table), "{case}");
        // Commits of keys in undamaged chunks still succeed.
        table.put(key(whole[1_000]), "new").unwrap();
        drop((table, db));
        let table = options().open(&path).unwrap().table("t").unwrap();
        assert!(all_old(&table), "{case}, after a reopen");
        let changed = table.get(key(whole[1_000])).unwrap();
        assert_eq!(changed.as_deref(), Some(&b"new"[..]), "{case}");
    }
}

#[test]
fn a_damaged_key_is_neither_absent_nor_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    let db = options().open(&path).unwrap();
    let table = db.table("t").unwrap();
    overwrite(&segment(&path, 1), b"key number 77", b"kez");
    assert!(table.get(key(77)).unwrap_err().is_corrupt());
    assert!(table.delete(key(77)).unwrap_err().is_corrupt());
    let swapped = table.compare_and_swap(key(77), None::<&[u8]>, Some("free"));
    assert!(swapped.unwrap_err().is_corrupt());
    let read = db.transaction(|tx| tx.get(&table, key(77)).map(|_| ()));
    assert!(read.unwrap_err().is_corrupt());
    // A put for the key with the damaged record is accepted, and reads return its value.
    table.put(key(77), "anew").unwrap();
    assert_eq!(table.get(key(77)).unwrap().as_deref(), Some(&b"anew"[..]));
}

#[test]
fn a_rotten_record_keeps_its_own_segment_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    let db = options().open(&path).unwrap();
    let table = db.table("t").unwrap();
    for number in (0..1500).filter(|number| number % 4 != 0) {
        table.delete(key(number)).unwrap();
    }
    overwrite(&segment(&path, 1), b"key number 76", b"kez");
    let error = db.compact().unwrap_err();
    assert!(
        error.is_corrupt() && error.to_string().contains("0000000001.seg"),
        "{error}"
    );
    let stats = db.stats();
    assert_eq!(stats.damaged_segments, 1);
    let ids: Vec<u64> = stats.segments.iter().map(|segment| segment.id).collect();
    assert!(
        ids.contains(&1) && !ids.contains(&2) && !ids.contains(&3),
        "{ids:?}"
    );
    for number in (0..1500).step_by(4).filter(|number| *number != 76) {
        assert_eq!(
            table.get(key(number)).unwrap().as_deref(),
            Some(&value(number)[..])
        );
    }
    assert!(table.get(key(76)).unwrap_err().is_corrupt());
}

#[test]
fn nobody_sees_the_middle_of_a_batch_that_writes_a_key_twice() {
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    table.put("k", "last").unwrap();
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let found = table.get("k").unwrap();
                assert_eq!(found.as_deref(), Some(&b"last"[..]));
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The loop ends after a minimum of batches and a minimum of reads, so that it is
        // independent of the speed of the machine.
        let mut batches = 0;
        while batches < 30_000 || reads.load(Ordering::Relaxed) < 10_000 {
            batches += 1;
            let mut batch = db.batch();
            batch.put(&table, "k", "middle");
            batch.delete(&table, "k");
            batch.put(&table, "k", "last");
            batch.commit().unwrap();
        }
        done.store(true, Ordering::Release);
    });
    let mut batch = db.batch();
    batch.put(&table, "k", "x");
    batch.put(&table, "other", "y");
    batch.delete(&table, "k");
    batch.commit().unwrap();
    assert_eq!((table.get("k").unwrap(), table.len()), (None, 1));
    let live = db.stats().live_bytes;
    drop((table, db));
    let db = options().open(folder.path()).unwrap();
    assert_eq!(
        (db.table("t").unwrap().len(), db.stats().live_bytes),
        (1, live),
        "replay comes to the same"
    );
}
