//! Tests that need access to the inside of the engine, for example for damage or background work at
//! chosen moments.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::engine::commit::{Check, Checks};
use crate::engine::lock;
use crate::format::segment::SegmentHeader;
use crate::format::super_block::{
    Frontier, SEGMENT_SPAN_MAX, STATE_BLOCK_BYTES, STATE_OFFSETS, SUPER_BYTES, State,
};
use crate::raw::epoch::pin;
use crate::{Db, Durability, Error, Options};

/// Returns a database with 300 records in several segments, all of them synced. All segments but
/// the last are complete.
fn shop(folder: &Path) -> Db {
    let options = Options::new().segment_bytes_first(4096).segment_bytes_max(4096);
    let db = options
        .durability(Durability::Buffered)
        .background(false)
        .open(folder)
        .unwrap();
    let table = db.table("t").unwrap();
    for number in 0..300 {
        table.put(format!("key {number}"), [7; 100]).unwrap();
    }
    db.sync().unwrap();
    db
}

/// Overwrites one byte of the record of `key` in the file of its segment.
fn rot(db: &Db, key: &str) {
    let table = db.table("t").unwrap();
    let guard = pin();
    let (location, _) = db
        .engine
        .locate(
            &guard,
            &table.core,
            db.engine.hash(key.as_bytes()),
            key.as_bytes(),
        )
        .unwrap()
        .unwrap();
    let segment = db.engine.segments.load(&guard).get(location).unwrap();
    let path = segment.path.clone();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"K", u64::from(location.offset()) + 7).unwrap();
}

#[test]
fn a_check_fails_on_a_record_damaged_after_its_read() {
    let folder = tempfile::tempdir().unwrap();
    let db = shop(folder.path());
    let table = db.table("t").unwrap();
    let check = |expected| Check {
        table: table.core.clone(),
        hash: db.engine.hash(b"key 3"),
        key: b"key 3".to_vec(),
        expected,
    };
    let checked = || {
        let checks = Checks {
            version: u64::MAX,
            keys: vec![check(None)],
        };
        db.engine.check_all(&checks, None)
    };
    assert!(checked().is_err(), "it is there");
    rot(&db, "key 3");
    let error = checked().unwrap_err();
    assert!(error.is_corrupt(), "{error}");
}

#[test]
fn background_compaction_starts_at_a_third_of_dead_bytes_with_the_emptiest_segment() {
    let folder = tempfile::tempdir().unwrap();
    let db = shop(folder.path());
    let table = db.table("t").unwrap();
    let overwrite = |numbers: std::ops::Range<u32>| {
        numbers.for_each(|number| table.put(format!("key {number}"), [8; 100]).unwrap());
        db.sync().unwrap();
    };
    let ids = || {
        db.stats()
            .segments
            .iter()
            .map(|segment| segment.id)
            .collect::<Vec<_>>()
    };
    let first = ids();
    // More than a quarter of the log is already dead: each frame has one record, and frame headers
    // count as dead bytes.
    overwrite(100..108);
    db.engine.compact_in_background().unwrap();
    assert_eq!(
        ids()[..first.len()],
        first,
        "less than a third of the log is dead"
    );
    overwrite(100..250);
    db.engine.compact_in_background().unwrap();
    let stats = db.stats();
    let left = ids();
    assert!(left.contains(&first[0]), "nothing in it is dead");
    assert!(
        !left.contains(&first[first.len() / 2]),
        "nothing in it is alive, {left:?} of {first:?}"
    );
    assert!(stats.log_bytes * 2 < stats.live_bytes * 3 + 2 * 4096, "{stats}");
    assert_eq!(table.get("key 120").unwrap().as_deref(), Some(&[8; 100][..]));
    assert_eq!(table.get("key 20").unwrap().as_deref(), Some(&[7; 100][..]));
}

#[test]
fn background_compaction_skips_a_damaged_segment() {
    let folder = tempfile::tempdir().unwrap();
    let db = shop(folder.path());
    let table = db.table("t").unwrap();
    for number in (0..300).filter(|number| number % 5 != 0) {
        table.delete(format!("key {number}")).unwrap();
    }
    rot(&db, "key 5");
    rot(&db, "key 255");
    let before = db.stats().segments.len();
    db.engine.compact_in_background().unwrap();
    let stats = db.stats();
    assert_eq!(stats.damaged_segments, 2);
    assert!(
        stats.segments.len() < before / 2,
        "{before} segments before, {} now",
        stats.segments.len()
    );
    assert!(table.get("key 5").unwrap_err().is_corrupt());
    assert_eq!(table.get("key 10").unwrap().as_deref(), Some(&[7; 100][..]));
}

/// Rewrites both copies of the state in SUPER with `change` applied, and removes the hints. Returns
/// the new state.
fn change_super(folder: &Path, change: impl FnOnce(State) -> State) -> State {
    let path = folder.join("SUPER");
    let mut bytes = std::fs::read(&path).unwrap();
    let state = change(State::decode(&bytes[..STATE_BLOCK_BYTES]).unwrap());
    assert_eq!(bytes.len(), SUPER_BYTES);
    bytes.fill(0);
    let block = state.encode();
    for offset in STATE_OFFSETS {
        let offset = offset as usize;
        bytes[offset..offset + block.len()].copy_from_slice(&block);
    }
    std::fs::write(&path, &bytes).unwrap();
    state
}

/// A crash never leaves a checkpoint without the segment that contains the checkpoint's position in
/// the log. An incomplete copy of the files may leave such a checkpoint, and opening the copy must
/// report damage.
#[test]
fn a_checkpoint_without_the_log_behind_it_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let db = shop(folder.path());
    db.checkpoint().unwrap();
    db.close().unwrap();
    let log = folder.path().join("log");
    let last = change_super(folder.path(), |state| state)
        .frontier
        .position
        .segment;
    for kept in [last, 1] {
        // SUPER and the log lose all segments with ids from `kept` on.
        for entry in std::fs::read_dir(&log).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.as_str() >= format!("{kept:010}").as_str() {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        change_super(folder.path(), |state| State {
            frontier: Frontier::default(),
            live: (1..kept).collect(),
            ..state
        });
        for read_only in [true, false] {
            let opened = Options::new().read_only(read_only).open(folder.path());
            let Err(Error::Corrupt { path, expected, .. }) = opened else {
                panic!("{:?}", opened.map(|db| db.recovery().clone()))
            };
            assert_eq!(path, log.join(format!("{last:010}.seg")), "{expected}");
        }
    }
}

#[test]
fn ids_of_segments_may_be_large_and_not_too_far_apart() {
    let folder = tempfile::tempdir().unwrap();
    Db::open(folder.path()).unwrap().close().unwrap();
    change_super(folder.path(), |state| State {
        next_segment: 100_000,
        ..state
    });
    shop(folder.path()).close().unwrap();
    let db = shop(folder.path());
    assert!(db.stats().segments.len() > 2 && db.stats().segments[0].id == 100_000);
    db.close().unwrap();
    let state = change_super(folder.path(), |state| state);
    let log = folder.path().join("log");
    for (id, is_fine) in [
        (100_000 + SEGMENT_SPAN_MAX - 1, true),
        (100_000 + SEGMENT_SPAN_MAX, false),
    ] {
        let header = SegmentHeader {
            database: state.database,
            id,
            previous_end: state.frontier.position,
            sequence: state.frontier.sequence,
            chain: state.frontier.chain,
            frontier: state.frontier.position,
            data_bytes_max: 4096,
        };
        let path = log.join(format!("{id:010}.seg"));
        std::fs::write(&path, header.encode()).unwrap();
        match Options::new().read_only(true).open(folder.path()) {
            Ok(_) => assert!(is_fine, "{id}"),
            Err(error) => assert!(
                !is_fine
                    && matches!(&error, Error::Corrupt { field: "segment id", path: named, .. } if *named == path),
                "{id}: {error}"
            ),
        }
        std::fs::remove_file(&path).unwrap();
    }
}

/// A get of a short value copies a fixed number of bytes, so it may read beyond the value. A read
/// from a mapped page beyond the end of the file would raise the signal SIGBUS.
#[test]
fn a_tail_cut_off_by_an_open_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    shop(folder.path()).close().unwrap();
    let state = change_super(folder.path(), |state| state);
    let last = folder
        .path()
        .join(format!("log/{:010}.seg", state.frontier.position.segment));
    let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    file.write_all_at(&[0xA5; 10_000], state.frontier.position.offset.into())
        .unwrap();
    let db = Db::open(folder.path()).unwrap();
    assert!(db.recovery().dropped_bytes > 0);
    let guard = pin();
    for segment in db.engine.segments.load(&guard).iter() {
        let len = std::fs::metadata(&segment.path).unwrap().len();
        assert!(
            u64::from(segment.end()) <= len,
            "{} has {len} bytes",
            segment.path.display()
        );
    }
}

/// Compaction copies a clear marker as long as the log has a segment older than the marker. The
/// copy is behind records that were put after the clear, and replay of the copy must not remove
/// them.
#[test]
fn replay_of_a_copied_clear_marker_clears_records_before_its_first_position() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let options = Options::new().segment_bytes_first(4096).segment_bytes_max(4096);
    let options = options.durability(Durability::Buffered).background(false);
    let db = options.clone().open(&path).unwrap();
    let table = |name| db.table(name).unwrap();
    table("cleared").put("old", [1; 10]).unwrap();
    let mut kept = 0;
    while db.stats().segments.len() < 2 {
        table("kept").put(format!("key {kept}"), [2; 500]).unwrap();
        kept += 1;
    }
    table("cleared").clear().unwrap();
    let cleared_in = db.stats().segments.len() as u64;
    table("cleared").put("new", [1; 100]).unwrap();
    while db.stats().segments.len() < 6 {
        table("overwritten").put("key", [3; 100]).unwrap();
    }
    db.sync().unwrap();
    db.engine.compact_in_background().unwrap();
    let left: Vec<u64> = db.stats().segments.iter().map(|segment| segment.id).collect();
    assert!(left[0] == 1 && !left.contains(&cleared_in), "{left:?}");
    table("cleared").put("newer", [1; 100]).unwrap();
    let live = |db: &Db| {
        let tables = db
            .tables()
            .into_iter()
            .map(|table| (table.name, table.live_bytes));
        (db.stats().live_bytes, tables.collect::<Vec<_>>())
    };
    let expected = live(&db);
    db.close().unwrap();
    let check = |db: &Db| {
        let table = db.get_table("cleared").unwrap();
        let found: Vec<_> = ["old", "new", "newer"]
            .map(|key| table.get(key).unwrap().is_some())
            .into();
        assert_eq!((found, table.len()), (vec![false, true, true], 2));
        assert_eq!(db.get_table("kept").unwrap().len(), kept);
    };
    for directory in [true, false] {
        if !directory {
            std::fs::remove_dir_all(path.join("directory")).unwrap();
        }
        let db = options.clone().read_only(true).open(&path).unwrap();
        assert_eq!(db.recovery().checkpoint_unusable, !directory);
        check(&db);
        assert_eq!(live(&db), expected, "with its checkpoint: {directory}");
    }
    let saved = folder.path().join("saved");
    crate::tools::salvage::salvage(&path, &saved).unwrap();
    check(&Db::open(&saved).unwrap());
}

/// Compaction copies a segment in several steps, and this test simulates a crash between two steps.
/// The log then has the clear marker in segment 2, `new` behind it, and at the end the copy of the
/// marker. Replay of the copy must not remove `new`, which is not copied yet.
#[test]
fn replay_of_a_copied_clear_marker_keeps_later_records_of_its_segment() {
    let folder = tempfile::tempdir().unwrap();
    let (path, crashed) = (folder.path().join("db"), folder.path().join("crashed"));
    let options = Options::new()
        .segment_bytes_first(64 << 10)
        .segment_bytes_max(64 << 10)
        .durability(Durability::Buffered)
        .background(false);
    let db = options.clone().open(&path).unwrap();
    let table = |name| db.table(name).unwrap();
    table("cleared").put("old", "value").unwrap();
    let mut kept = 0;
    while db.stats().segments.len() < 2 {
        table("kept").put(format!("key {kept}"), [2; 1000]).unwrap();
        kept += 1;
    }
    table("cleared").clear().unwrap();
    // One step of compaction covers fewer than 400 records, so the marker and `new` are copied in
    // different steps.
    (0..400).for_each(|_| table("overwritten").put("key", "value").unwrap());
    table("cleared").put("new", "value").unwrap();
    assert_eq!(table("cleared").location("new").unwrap().unwrap().segment, 2);
    while db.stats().segments.len() < 5 {
        table("overwritten").put("key", [3; 1000]).unwrap();
    }
    db.sync().unwrap();
    let segment = |folder: &Path, id: u64| folder.join(format!("log/{id:010}.seg"));
    std::fs::create_dir_all(crashed.join("log")).unwrap();
    std::fs::create_dir(crashed.join("directory")).unwrap();
    std::fs::copy(path.join("SUPER"), crashed.join("SUPER")).unwrap();
    (1..=5).for_each(|id| _ = std::fs::copy(segment(&path, id), segment(&crashed, id)).unwrap());
    db.engine.compact_in_background().unwrap();
    db.sync().unwrap();
    // The crashed log ends with the frame that contains the copied marker.
    let copies = crate::tools::inspect::segment(&path, 5).unwrap().frames;
    let marker = copies
        .iter()
        .find(|frame| frame.records.iter().any(|record| record.kind == "clear"));
    let marker = marker.unwrap();
    assert!(marker.records.iter().all(|record| record.key != b"new"));
    let written = std::fs::read(segment(&path, 5)).unwrap();
    std::fs::write(segment(&crashed, 5), &written[..marker.end as usize]).unwrap();
    let db = options.open(&crashed).unwrap();
    assert_eq!(db.recovery().checkpoint, 0);
    let table = db.get_table("cleared").unwrap();
    assert!(table.get("old").unwrap().is_none() && table.get("new").unwrap().is_some());
    assert_eq!((table.len(), db.get_table("kept").unwrap().len()), (1, kept));
}

/// The byte counts of the first segment, loaded from a checkpoint, may be wrong. A checkpoint then
/// keeps the segment, and must keep the tombstone that hides a put in that segment.
#[test]
fn a_tombstone_stays_while_an_older_segment_is_not_verified_as_dead() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new().segment_bytes_first(4096).segment_bytes_max(4096);
    let options = options.durability(Durability::Buffered).background(false);
    let db = options.clone().open(folder.path()).unwrap();
    let table = |name| db.table(name).unwrap();
    table("t").put("deleted", "value").unwrap();
    while db.stats().segments.len() < 2 {
        table("kept").put("key", [2; 500]).unwrap();
    }
    table("t").delete("deleted").unwrap();
    let active = lock(&db.engine.core).end.position.segment;
    while db.stats().segments.last().unwrap().id == active {
        table("kept").put("key", [3; 500]).unwrap();
    }
    db.sync().unwrap();
    // The first segment still has the live records of the catalog.
    if let Some(first) = lock(&db.engine.core).usages.get_mut(1) {
        (first.counted, first.live) = (false, Vec::new());
    }
    // The second call finds the first segment already marked.
    for _ in 0..2 {
        db.engine.drop_dead_segments();
        let core = lock(&db.engine.core);
        let is_dying = |id| core.usages.get(id).unwrap().dying;
        assert!(is_dying(1) && !is_dying(active));
    }
    db.checkpoint().unwrap();
    assert_eq!(db.stats().segments[0].id, 1, "it has live records");
    db.close().unwrap();
    std::fs::remove_dir_all(folder.path().join("directory")).unwrap();
    let db = options.read_only(true).open(folder.path()).unwrap();
    assert!(db.recovery().checkpoint_unusable);
    assert_eq!(db.get_table("t").unwrap().get("deleted").unwrap(), None);
}
