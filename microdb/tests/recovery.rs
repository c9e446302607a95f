//! Torn tails and damage at many positions of small databases.
//!
//! After a reopen, the database must have the state after the last durable commit or a later
//! commit, or report an error that names the damage. The database must never return a wrong value,
//! and never report a damaged record as absent.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use microdb::{Db, Durability, Error, LogPosition, Options};

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn options() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .background(false)
}

fn contents(db: &Db) -> Result<Model, Error> {
    let Some(table) = db.get_table("t") else {
        return Ok(Model::new());
    };
    let mut model = Model::new();
    for record in &table {
        let (key, value) = record?;
        assert_eq!(table.get(&key)?.as_deref(), Some(&value[..]));
        model.insert(key.to_vec(), value.to_vec());
    }
    Ok(model)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.file_name() != "LOCK" {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Creates a database of several segments. Returns the database and the states that it may have
/// later: after the last durable commit, and after each later buffered commit.
fn build(path: &Path) -> (Db, Vec<Model>) {
    let db = options().open(path).unwrap();
    let table = db.table("t").unwrap();
    let mut model = Model::new();
    for number in 0..60u32 {
        let (key, value) = (
            (number % 37).to_be_bytes().to_vec(),
            vec![number as u8; (number * 7 % 150) as usize],
        );
        table.put_with(&key, &value, Durability::Buffered).unwrap();
        model.insert(key, value);
        if number % 9 == 8 {
            let key = (number % 11).to_be_bytes().to_vec();
            assert_eq!(table.delete(&key).unwrap(), model.remove(&key).is_some());
        }
    }
    db.sync().unwrap();
    let mut states = vec![model.clone()];
    for number in 0..6u32 {
        let mut batch = db.batch();
        for key in 0..2u32 {
            let (key, value) = ((100 + number + key).to_be_bytes().to_vec(), vec![9; 20]);
            batch.put(&table, &key, &value);
            model.insert(key, value);
        }
        batch.commit_with(Durability::Buffered).unwrap();
        states.push(model.clone());
    }
    (db, states)
}

#[test]
fn every_cut_of_the_log_keeps_what_was_durable() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let (db, states) = build(&live);
    // The copy has exactly the bytes of the last sync, because the buffered commits are not in the
    // files.
    let image = folder.path().join("image");
    copy(&live, &image);
    drop(db);
    // After a close, all commits are durable.
    for (path, durable) in [(&image, &states[0]), (&live, states.last().unwrap())] {
        let segments: Vec<_> = files(&path.join("log"));
        assert!(segments.len() > 2);
        for segment in &segments {
            let bytes = fs::read(segment).unwrap();
            // Cuts in the zeros at the end of the file are all equivalent, so only a few of them
            // are tried.
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            for cut in (0..bytes.len().min(used + 3)).rev().step_by(7) {
                fs::write(segment, &bytes[..cut]).unwrap();
                match options().read_only(true).open(path).and_then(|db| contents(&db)) {
                    Ok(found) => assert!(found == *durable, "{} cut to {cut}", segment.display()),
                    Err(error) => assert!(error.is_corrupt(), "{error}"),
                }
            }
            fs::write(segment, &bytes).unwrap();
        }
        assert_eq!(
            &contents(&options().read_only(true).open(path).unwrap()).unwrap(),
            durable
        );
    }
}

#[test]
fn every_flipped_bit_is_healed_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let (db, states) = build(&live);
    drop(db);
    let expected = states.last().unwrap();
    let (mut tried, mut named) = (0, 0);
    for path in files(&live) {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        for at in (0..bytes.len()).filter(|at| interesting(&bytes, *at)) {
            // `rot.rs` flips bits on a disk in memory, by default one of each byte outside of
            // padding. This test flips two or three bits of each chosen byte on a real disk.
            for bit in (at % 3..8).step_by(3) {
                file.write_all_at(&[bytes[at] ^ 1 << bit], at as u64).unwrap();
                match options().read_only(true).open(&live).and_then(|db| contents(&db)) {
                    Ok(found) => assert!(found == *expected, "{} byte {at} bit {bit}", path.display()),
                    Err(error) => {
                        assert!(
                            error.is_corrupt() || matches!(error, Error::Version { .. }),
                            "{error}"
                        );
                        named += 1;
                    }
                }
                tried += 1;
            }
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
    }
    assert!(tried > 4_000 && named > tried / 2, "{named} of {tried}");
}

/// Returns `true` for a byte to be damaged: each byte except those deep in a run of zeros. Of these
/// excepted bytes, one in 1024 is damaged.
fn interesting(bytes: &[u8], at: usize) -> bool {
    at.is_multiple_of(1024)
        || bytes[at.saturating_sub(8)..bytes.len().min(at + 8)]
            .iter()
            .any(|byte| *byte != 0)
}

#[test]
fn files_of_two_histories_of_a_database_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one"), folder.path().join("other"));
    drop(build(&one));
    copy(&one, &other);
    // From here the two databases diverge. Their records have the same lengths, so all positions
    // are equal and all checksums are valid in both.
    for (path, byte) in [(&one, 1), (&other, 2)] {
        let db = options().open(path).unwrap();
        let table = db.table("t").unwrap();
        for number in 0..80u32 {
            table.put(number.to_be_bytes(), [byte; 120]).unwrap();
        }
        db.close().unwrap();
        // Without the checkpoint, recovery must read the whole log. A checkpoint would replace the
        // part that it covers.
        fs::remove_dir_all(path.join("directory")).unwrap();
    }
    let expected = contents(&options().read_only(true).open(&one).unwrap()).unwrap();
    let mut mixed = 0;
    for segment in files(&one.join("log")) {
        let (own, foreign) = (
            fs::read(&segment).unwrap(),
            other.join("log").join(segment.file_name().unwrap()),
        );
        let foreign = fs::read(foreign).unwrap();
        if segment.extension().is_none_or(|kind| kind != "seg") || own == foreign {
            continue;
        }
        mixed += 1;
        fs::write(&segment, foreign).unwrap();
        match options().read_only(true).open(&one) {
            Err(error) => assert!(error.is_corrupt(), "{error}"),
            Ok(db) => {
                let sound = db.verify().unwrap().is_sound();
                assert!(
                    !sound && contents(&db).unwrap() == expected,
                    "{}",
                    segment.display()
                );
            }
        }
        fs::write(&segment, own).unwrap();
    }
    assert!(mixed > 2, "{mixed}");
    // SUPER of the other database states the chain of the other history at the durable frontier.
    fs::copy(other.join("SUPER"), one.join("SUPER")).unwrap();
    let error = options().read_only(true).open(&one).unwrap_err();
    assert!(error.is_corrupt(), "{error}");
}

/// After the durable frontier, neither SUPER nor a later segment proves which frames belong to the
/// log. Only the chain value in a frame shows that the frame does not follow the previous one.
#[test]
fn frames_of_two_histories_are_refused_behind_the_frontier() {
    const KEYS: [&str; 4] = ["one", "two", "three", "four"];
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let (db, states) = build(&live);
    let synced = folder.path().join("synced");
    copy(&live, &synced);
    drop(db);
    // Two copies of the synced database get further records, with the same lengths in both.
    let mut starts = Vec::new();
    let [own, foreign] = [1u8, 2].map(|byte| {
        let path = folder.path().join(format!("history {byte}"));
        copy(&synced, &path);
        let db = options().open(&path).unwrap();
        let table = db.table("t").unwrap();
        for key in KEYS {
            table.put_with(key, [byte; 50], Durability::Buffered).unwrap();
        }
        // A frame header has 48 bytes, and the record follows directly after it.
        starts = KEYS
            .map(|key| table.location(key).unwrap().unwrap().offset as usize - 48)
            .to_vec();
        drop((db, table));
        fs::read(files(&path.join("log")).pop().unwrap()).unwrap()
    });
    let last = files(&synced.join("log")).pop().unwrap();
    let mut expected = states[0].clone();
    expected.insert(KEYS[0].into(), vec![1; 50]);
    for (key, start) in KEYS.into_iter().zip(starts).skip(1) {
        fs::write(&last, [&own[..start], &foreign[start..]].concat()).unwrap();
        let db = options().read_only(true).open(&synced).unwrap();
        assert_eq!(contents(&db).unwrap(), expected, "up to {key}");
        assert!(db.recovery().dropped_bytes > 0);
        expected.insert(key.into(), vec![1; 50]);
    }
}

#[test]
fn a_torn_tail_is_cut_off_and_the_log_continues() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let (db, states) = build(&live);
    let before_close = folder.path().join("synced");
    copy(&live, &before_close);
    let frontier = db.stats().frontier;
    // Closing writes the buffered commits. In the copy, they are after the durable frontier of its
    // SUPER.
    drop(db);
    for path in files(&live.join("log")) {
        fs::copy(&path, before_close.join("log").join(path.file_name().unwrap())).unwrap();
    }
    let last = files(&before_close.join("log")).pop().unwrap();
    let bytes = fs::read(&last).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut outcomes = std::collections::BTreeSet::new();
    assert!(last.ends_with(format!("{:010}.seg", frontier.segment)));
    for cut in (frontier.offset as usize..=used).rev() {
        let again = folder.path().join("again");
        let _ = fs::remove_dir_all(&again);
        copy(&before_close, &again);
        let path = again.join("log").join(last.file_name().unwrap());
        // The blocks after the tear have old content: zeros or other bytes.
        let torn = File::options().write(true).open(&path).unwrap();
        torn.write_all_at(
            &vec![if cut % 2 == 0 { 0 } else { 0xA5 }; bytes.len() - cut],
            cut as u64,
        )
        .unwrap();
        let db = options().open(&again).unwrap();
        let found = contents(&db).unwrap();
        // The file must not keep any byte of the torn tail. Otherwise a recovery would read the
        // tail again once compaction has removed the segment with the continuation of the log.
        let torn = db.recovery().dropped_bytes > 0;
        assert!(
            !torn || fs::metadata(&path).unwrap().len() <= cut as u64,
            "cut at {cut}"
        );
        let state = states.iter().position(|state| *state == found);
        outcomes.insert(state.unwrap_or_else(|| panic!("cut at {cut}: part of a batch, or a hole")));
        assert!(!db.recovery().clean || cut == used, "{:?}", db.recovery());
        db.table("t").unwrap().put("after", "the tear").unwrap();
        drop(db);
        let db = options().open(&again).unwrap();
        assert!(db.recovery().clean, "{:?}", db.recovery());
        let mut expected = found;
        expected.insert(b"after".to_vec(), b"the tear".to_vec());
        assert_eq!(contents(&db).unwrap(), expected);
    }
    assert!(outcomes.len() > 1, "{outcomes:?}");
}

#[test]
fn damage_in_a_frame_is_named_with_its_position() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let db = options().open(&live).unwrap();
    let table = db.table("t").unwrap();
    table.put("before", "another frame").unwrap();
    let mut batch = db.batch();
    for key in ["first", "second", "third"] {
        batch.put(&table, key, [7; 50]);
    }
    batch.commit().unwrap();
    let places: Vec<LogPosition> = ["first", "second", "third"]
        .map(|key| table.location(key).unwrap().unwrap())
        .to_vec();
    let image = folder.path().join("image");
    copy(&live, &image);
    // The damaged bytes: one byte in each of the first two values, and the length of the last
    // record, which then extends beyond its frame. The damage of the last record is reported for
    // the frame, 48 bytes before the first record.
    let first = u64::from(places[0].offset);
    let damaged = |place: LogPosition| (u64::from(place.offset) + 20, u64::from(place.offset));
    let damaged = [
        damaged(places[0]),
        damaged(places[1]),
        (u64::from(places[2].offset) + 6, first - 48),
    ];
    let path = image.join(format!("log/{:010}.seg", places[0].segment));
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for (at, expected) in damaged {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        let error = options().read_only(true).open(&image).unwrap_err();
        let Error::Corrupt {
            path: named, offset, ..
        } = &error
        else {
            panic!("{error}")
        };
        assert_eq!((named, *offset), (&path, expected), "{error}");
        // `inspect` must name the same position for the damage.
        let seen = microdb::inspect::segment(&image, places[0].segment)
            .unwrap()
            .damage();
        let place = format!("{} at byte {expected}:", path.display());
        assert!(
            matches!(seen.as_slice(), [one] if one.starts_with(&place)),
            "{seen:?}"
        );
        file.write_all_at(&byte, at).unwrap();
    }
}

#[test]
fn differing_copies_of_super_are_repaired_and_sound_ones_are_not_written() {
    const COPY: usize = 16 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    drop(build(&live));
    let path = live.join("SUPER");
    let older = fs::read(&path).unwrap();
    let generation = || {
        microdb::inspect::folder(&live).unwrap().states[0]
            .clone()
            .unwrap()
    };
    let first = generation();
    let db = options().open(&live).unwrap();
    assert_eq!(fs::read(&path).unwrap(), older, "nothing was to be mended");
    db.table("t").unwrap().put("one", "more").unwrap();
    drop(db);
    assert!(generation() > first, "it counts on from where it was");
    let newer = fs::read(&path).unwrap();
    let found = contents(&options().read_only(true).open(&live).unwrap()).unwrap();
    // The two copies of the state in SUPER differ: the power was cut between their writes, or one
    // copy is damaged.
    let mixed = |first: &[u8], second: &[u8]| [&first[..COPY], &second[COPY..]].concat();
    let rotten = vec![0x55; newer.len()];
    for mixed in [
        mixed(&newer, &older),
        mixed(&newer, &[&rotten[..2 * COPY], &newer[2 * COPY..]].concat()),
        mixed(&rotten, &newer),
    ] {
        fs::write(&path, mixed).unwrap();
        let db = options().open(&live).unwrap();
        assert_eq!(contents(&db).unwrap(), found);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes[..COPY] == bytes[COPY..2 * COPY]);
        assert!(
            microdb::inspect::folder(&live)
                .unwrap()
                .states
                .iter()
                .all(Result::is_ok)
        );
    }
}

#[test]
fn a_checkpoint_is_used_until_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let db = options().open(&live).unwrap();
    assert!(db.recovery().created && db.recovery().clean);
    drop(db);
    let (db, states) = build(&live);
    db.checkpoint().unwrap();
    drop(db);
    for _ in 0..3 {
        let db = options().open(&live).unwrap();
        let recovery = db.recovery();
        assert!(
            !recovery.created && recovery.clean && recovery.checkpoint > 0 && !recovery.checkpoint_unusable,
            "{recovery:?}"
        );
        assert_eq!(recovery.durable_sequence, recovery.sequence);
        assert_eq!(Some(&contents(&db).unwrap()), states.last());
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    drop(build(&live));
    for path in files(&live) {
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let error = options().open(&live).unwrap_err();
        let Error::Corrupt { path: named, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(named, &path);
        fs::write(&path, bytes).unwrap();
    }
    options().open(&live).unwrap();
}

#[test]
fn files_of_another_database_or_position_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    drop(build(&one));
    drop(build(&two));
    let (mine, theirs) = (files(&one.join("log")), files(&two.join("log")));
    for (swap, with) in mine.iter().zip(&theirs).chain(mine.iter().zip(&mine[1..])) {
        let bytes = fs::read(swap).unwrap();
        fs::copy(with, swap).unwrap();
        assert!(options().open(&one).unwrap_err().is_corrupt());
        fs::write(swap, bytes).unwrap();
    }
    options().open(&one).unwrap();
}

/// The log to be replayed has more than a megabyte, so recovery reads frames ahead while it applies
/// earlier ones.
#[test]
fn a_long_torn_tail_is_replayed_up_to_the_tear_and_a_damaged_one_is_refused() {
    const BATCHES: u32 = 300;
    const RECORDS: u32 = 50;
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    // Each commit is written to its file at once, so the copied files contain all commits.
    let options = Options::new()
        .segment_bytes_first(8 << 20)
        .buffer_bytes(0)
        .background(false);
    let db = options.open(&live).unwrap();
    let table = db.table("t").unwrap();
    for batch in 0..BATCHES {
        let mut changes = db.batch();
        for record in 0..RECORDS {
            let key = (batch * 7 + record * 3) % 1_000;
            changes.put(&table, key.to_be_bytes(), [batch.to_be_bytes(); 40].concat());
        }
        changes.commit_with(Durability::Buffered).unwrap();
        if batch == BATCHES / 2 {
            db.sync().unwrap();
        }
    }
    let durable = db.stats().frontier;
    let image = folder.path().join("image");
    copy(&live, &image);
    drop((db, table));

    let model = |batches: u32| {
        let mut model = Model::new();
        for batch in 0..batches {
            for record in 0..RECORDS {
                let key = (batch * 7 + record * 3) % 1_000;
                model.insert(key.to_be_bytes().to_vec(), [batch.to_be_bytes(); 40].concat());
            }
        }
        model
    };
    let read_only = || Options::new().read_only(true).open(&image);
    let db = read_only().unwrap();
    assert_eq!(contents(&db).unwrap(), model(BATCHES));
    let seen = microdb::inspect::segment(&image, 1).unwrap().frames;
    let replayed = db.recovery();
    assert_eq!(
        replayed.frames_replayed,
        u64::from(BATCHES) + 1,
        "one names the table"
    );
    assert_eq!(replayed.records_replayed, u64::from(BATCHES * RECORDS) + 1);
    let bytes: u64 = seen.iter().map(|frame| frame.end - frame.offset).sum();
    assert_eq!(replayed.bytes_replayed, bytes);
    drop(db);

    let segment = files(&image.join("log")).pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let torn = (durable.offset as usize + end) / 2;
    fs::write(&segment, &bytes[..torn]).unwrap();
    let db = read_only().unwrap();
    let batches = db.recovery().frames_replayed as u32 - 1;
    assert!(batches > BATCHES / 2 && batches < BATCHES, "{batches}");
    assert_eq!(
        contents(&db).unwrap(),
        model(batches),
        "a frame was the table's name"
    );
    drop(db);

    let mut rotten = bytes;
    rotten[durable.offset as usize / 2] ^= 1;
    fs::write(&segment, &rotten).unwrap();
    let error = read_only().unwrap_err();
    assert!(error.is_corrupt(), "{error}");
    let opened = Options::new().open(&image);
    assert!(opened.unwrap_err().is_corrupt(), "and nothing was cut");
    assert_eq!(fs::read(&segment).unwrap(), rotten);
}
