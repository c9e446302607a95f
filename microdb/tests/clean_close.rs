//! Tests that a closed database opens with almost nothing to replay, even if other work of the
//! engine was in progress at the close.
//!
//! No test here reads the clock. The recovery report contains the amount of log that an open
//! replayed.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::sync::Arc;

use crate::support::disk::Disk;
use crate::support::gate::Gate;
use crate::support::image::Image;
use microdb::{Db, Durability, Options};

/// Maximum number of bytes that an open replays after a clean close. The engine promises this
/// bound.
const REPLAYED_BYTES_MAX: u64 = 256 * 1024;

/// Number of bytes that `prepared` writes twice, and that a test writes while the gate holds the
/// work, or as the durable batch. It is far above `REPLAYED_BYTES_MAX`.
const MEANWHILE_BYTES: usize = 1 << 20;

const VALUE_BYTES: usize = 4000;

const ROOT: &str = "/db";

/// Kind of the engine's work that is in progress when the database is closed.
#[derive(Clone, Copy, Debug)]
enum Work {
    Checkpoint,
    Compaction,
    Housekeeping,
    DurableBatch,
}

/// Way in which the database is closed: with `close`, or by dropping its last handle.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Close,
    Drop,
}

fn options(gate: &Gate) -> Options {
    Options::new()
        .durability(Durability::Buffered)
        .segment_bytes_first(256 * 1024)
        .segment_bytes_max(1 << 20)
        .background(false)
        .storage(Arc::new(gate.clone()))
}

/// Puts values of `bytes` bytes in total, under consecutive keys from `first` on.
fn fill(db: &Db, first: usize, bytes: usize) {
    let table = db.table("t").unwrap();
    for number in first..first + bytes / VALUE_BYTES {
        table.put(number.to_be_bytes(), [7; VALUE_BYTES]).unwrap();
    }
}

fn run(db: &Db, work: Work) {
    // Work may fail if the database is closed before the work is complete, so its result is
    // ignored. Only the durable batch must succeed.
    match work {
        Work::Checkpoint => drop(db.checkpoint()),
        Work::Compaction => drop(db.compact()),
        Work::Housekeeping => drop(db.wait_idle()),
        Work::DurableBatch => {
            let table = db.table("t").unwrap();
            let mut batch = db.batch();
            for number in 0..MEANWHILE_BYTES / VALUE_BYTES {
                batch.put(&table, (1_000_000 + number).to_be_bytes(), [8; VALUE_BYTES]);
            }
            batch.commit_with(Durability::Sync).unwrap();
        }
    }
}

/// Opens a database and writes 2 MiB. About a third of the log is dead, and a checkpoint covers the
/// first MiB.
fn prepared(gate: &Gate) -> Db {
    let db = options(gate).open(ROOT).unwrap();
    fill(&db, 0, MEANWHILE_BYTES);
    db.checkpoint().unwrap();
    fill(&db, 100, MEANWHILE_BYTES);
    db
}

fn end(db: Db, ending: Ending) {
    match ending {
        Ending::Close => db.close().unwrap(),
        Ending::Drop => drop(db),
    }
}

/// Stops `work` before its call to the disk with the index `at` (from 0; [`Gate`] does not count
/// all calls). Starts the close of the database in a thread, releases the work, and checks the next
/// open. Returns `false` if the work has no such call.
fn close_during(work: Work, ending: Ending, at: u64) -> bool {
    let gate = Gate::new(Arc::new(Disk::unrecorded(Image::default())));
    let db = prepared(&gate);
    let was_held = std::thread::scope(|scope| {
        let worker = db.clone();
        let gate_of_worker = &gate;
        let (armed, is_armed) = std::sync::mpsc::channel();
        scope.spawn(move || {
            gate_of_worker.run_held_at(at, || {
                armed.send(()).unwrap();
                run(&worker, work);
                if matches!(ending, Ending::Close) {
                    return;
                }
                drop(worker);
            });
        });
        is_armed.recv().unwrap();
        let was_held = gate.wait_for_held();
        // A put would wait for the durable batch, which is stopped. So there are no puts beside
        // that batch.
        if was_held && !matches!(work, Work::DurableBatch) {
            fill(&db, 10_000, MEANWHILE_BYTES);
        }
        let closing = scope.spawn(move || end(db, ending));
        gate.release();
        closing.join().unwrap();
        was_held
    });
    let place = format!("{work:?} held at call {at}, then {ending:?}");
    let db = options(&gate).open(ROOT).unwrap();
    let report = db.recovery();
    assert!(report.clean, "{place}: {report}");
    assert!(
        report.bytes_replayed <= REPLAYED_BYTES_MAX,
        "{place}: {} bytes were replayed",
        report.bytes_replayed
    );
    let table = db.table("t").unwrap();
    assert!(table.contains_key(99_usize.to_be_bytes()).unwrap());
    if was_held {
        let late = match work {
            Work::DurableBatch => 1_000_200_usize,
            _ => 10_200,
        };
        assert!(table.contains_key(late.to_be_bytes()).unwrap(), "{place}");
    }
    was_held
}

fn close_at_every_call_of(work: Work) {
    for ending in [Ending::Close, Ending::Drop] {
        let held = (0..).take_while(|at| close_during(work, ending, *at)).count();
        assert!(held > 3, "{work:?} has {held} calls to the disk");
    }
}

#[test]
fn an_open_replays_little_after_a_close_during_a_checkpoint() {
    close_at_every_call_of(Work::Checkpoint);
}

#[test]
fn an_open_replays_little_after_a_close_during_a_compaction() {
    close_at_every_call_of(Work::Compaction);
}

#[test]
fn an_open_replays_little_after_a_close_during_background_work() {
    close_at_every_call_of(Work::Housekeeping);
}

#[test]
fn an_open_replays_little_after_a_close_during_a_durable_batch() {
    close_at_every_call_of(Work::DurableBatch);
}

#[test]
fn a_checkpoint_counts_the_log_that_was_written_while_it_was_made() {
    let gate = Gate::new(Arc::new(Disk::unrecorded(Image::default())));
    let db = prepared(&gate);
    std::thread::scope(|scope| {
        let worker = db.clone();
        let gate = &gate;
        let (armed, is_armed) = std::sync::mpsc::channel();
        scope.spawn(move || {
            gate.run_held_at(2, || {
                armed.send(()).unwrap();
                worker.checkpoint().unwrap();
            })
        });
        is_armed.recv().unwrap();
        assert!(gate.wait_for_held());
        fill(&db, 10_000, MEANWHILE_BYTES);
        gate.release();
    });
    // The log after the checkpoint is large enough for another checkpoint. So the close writes
    // another one, and the next open replays little.
    let before = db.stats().checkpoints;
    drop(db);
    let db = options(&gate).open(ROOT).unwrap();
    assert!(db.recovery().bytes_replayed <= REPLAYED_BYTES_MAX);
    assert!(db.recovery().checkpoint > before, "the close wrote one more");
}

#[test]
fn an_open_after_a_close_replays_few_records_however_large_the_directory_is() {
    let gate = Gate::new(Arc::new(Disk::unrecorded(Image::default())));
    let db = options(&gate).open(ROOT).unwrap();
    let table = db.table("t").unwrap();
    let mut batch = db.batch();
    for number in 0..400_000_u32 {
        batch.put(&table, number.to_be_bytes(), b"");
    }
    batch.commit().unwrap();
    db.checkpoint().unwrap();
    assert!(db.stats().directory_bytes > 4 << 20);
    for number in 0..1_000_u32 {
        table.put((number * 397).to_be_bytes(), b"x").unwrap();
    }
    drop(table);
    db.close().unwrap();
    let db = options(&gate).open(ROOT).unwrap();
    assert!(db.recovery().records_replayed <= 64, "{}", db.recovery());
}

#[test]
fn a_quick_close_writes_no_checkpoint_for_a_small_log_however_large_the_directory_is() {
    let gate = Gate::new(Arc::new(Disk::unrecorded(Image::default())));
    let db = options(&gate).open(ROOT).unwrap();
    let table = db.table("t").unwrap();
    let mut batch = db.batch();
    for number in 0..400_000_u32 {
        batch.put(&table, number.to_be_bytes(), b"");
    }
    batch.commit().unwrap();
    db.checkpoint().unwrap();
    for number in 0..500_u32 {
        table.put((number * 397).to_be_bytes(), b"x").unwrap();
    }
    drop(table);
    db.close_quickly().unwrap();
    let db = options(&gate).open(ROOT).unwrap();
    assert_eq!(db.recovery().records_replayed, 500, "{}", db.recovery());
    let table = db.table("t").unwrap();
    for number in 0..20_000_u32 {
        table.put(number.to_be_bytes(), b"y").unwrap();
    }
    drop(table);
    db.close_quickly().unwrap();
    let db = options(&gate).open(ROOT).unwrap();
    assert!(
        db.recovery().bytes_replayed <= REPLAYED_BYTES_MAX,
        "{}",
        db.recovery()
    );
}

#[test]
fn a_read_only_open_maps_the_durable_log_and_copies_what_is_behind_it() {
    let gate = Gate::new(Arc::new(Disk::unrecorded(Image::default())));
    let read_only = || options(&gate).read_only(true).open(ROOT).unwrap();
    let open_options = options(&gate).segment_bytes_first(16 << 20);
    let db = open_options.segment_bytes_max(16 << 20).open(ROOT).unwrap();
    fill(&db, 0, 8 << 20);
    db.sync().unwrap();
    // The writer still has the database open. The writer's segment has some MiB of allocated blocks
    // after the durable frontier, and the writer may cut off these blocks at any time.
    db.table("t").unwrap().put("behind", "buffered").unwrap();
    let before = gate.read_bytes();
    let reader = read_only();
    assert!(
        gate.read_bytes() - before <= 4 << 20,
        "the durable part is mapped"
    );
    assert!(
        reader
            .table("t")
            .unwrap()
            .contains_key(999_usize.to_be_bytes())
            .unwrap()
    );
    drop(reader);
    db.close().unwrap();
    let before = gate.read_bytes();
    let reader = read_only();
    assert!(gate.read_bytes() - before < 64 * 1024, "SUPER, and no segment");
    let table = reader.table("t").unwrap();
    assert!(table.contains_key(999_usize.to_be_bytes()).unwrap());
    assert!(table.contains_key("behind").unwrap());
}

/// Maximum number of an open's calls to the disk for locks, SUPER, the checkpoint and folders. The
/// calls for segments are not included.
const OPENING_CALLS_MAX: u64 = 24;
/// Maximum number of an open's calls for each segment: open, length, header, map.
const CALLS_PER_SEGMENT_MAX: u64 = 4;

#[test]
fn an_open_after_a_close_changes_nothing_and_makes_few_calls_for_a_segment() {
    let gate = Gate::new(Arc::new(Disk::unrecorded(Image::default())));
    let db = prepared(&gate);
    fill(&db, 1_000, 20 * MEANWHILE_BYTES);
    let segments = db.stats().segments.len() as u64;
    assert!(segments > 20, "{segments} segments");
    db.close().unwrap();
    let mut opened = None;
    let calls = gate.run_held_at(u64::MAX - 1, || opened = Some(options(&gate).open(ROOT).unwrap()));
    assert_eq!(
        gate.changes(),
        0,
        "an open that has nothing to repair waits for no write"
    );
    let most = OPENING_CALLS_MAX + CALLS_PER_SEGMENT_MAX * segments;
    assert!(calls <= most, "{calls} calls for {segments} segments");
    let db = opened.unwrap();
    let table = db.get_table("t").unwrap();
    assert_eq!(
        table.get(1_000_usize.to_be_bytes()).unwrap().as_deref(),
        Some(&[7; VALUE_BYTES][..])
    );
}
