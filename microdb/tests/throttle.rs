//! Tests that a throttled compaction waits without a thread and without a lock, so that no other
//! work waits for it.
//!
//! In most tests, the throttle is so strict that a wait for it would take days. Each wait of a test
//! is for a condition, with a deadline that only a stuck engine reaches.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use microdb::{Db, Durability, Error, Options};

const DEADLINE: Duration = Duration::from_secs(120);

const VALUE_BYTES: usize = 4_000;

fn options() -> Options {
    Options::new()
        .durability(Durability::Buffered)
        .segment_bytes_first(256 * 1024)
        .segment_bytes_max(256 * 1024)
        .checkpoint_log_bytes(64 * 1024)
}

fn throttled(folder: &Path) -> Db {
    options()
        .compaction_bytes_per_second(Some(1))
        .open(folder)
        .unwrap()
}

/// Puts 400 records, every second one twice. So a third of the log of a new database is dead,
/// spread over all segments.
fn fill(db: &Db) {
    let table = db.table("t").unwrap();
    for number in 0..400_u32 {
        table.put(number.to_be_bytes(), [1; VALUE_BYTES]).unwrap();
        if number % 2 == 1 {
            table.put((number - 1).to_be_bytes(), [2; VALUE_BYTES]).unwrap();
        }
    }
    db.sync().unwrap();
}

fn check(db: &Db) {
    let table = db.table("t").unwrap();
    for number in 0..400_u32 {
        let expected = if number % 2 == 0 { 2 } else { 1 };
        let value = table.get(number.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value[..], [expected; VALUE_BYTES]);
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "{what}: not in {DEADLINE:?}");
        std::thread::yield_now();
    }
}

/// Runs `work` in a separate thread. Panics if the work does not end before the deadline.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work()));
    let done = receiver.recv_timeout(DEADLINE);
    done.unwrap_or_else(|_| panic!("{what} waits for the throttle"))
}

#[test]
fn throttled_databases_leave_the_background_threads_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let slow = ["a", "b", "c", "d"].map(|name| throttled(&folder.path().join(name)));
    slow.iter().for_each(fill);
    for db in &slow {
        wait_for("a throttled copy", || db.stats().relocated_bytes > 0);
    }
    let fast = options().open(folder.path().join("fast")).unwrap();
    fill(&fast);
    wait_for("compaction of another database", || {
        fast.stats().segments_removed > 0
    });
    for db in &slow {
        assert!(db.stats().relocated_bytes < 500_000, "they are throttled");
    }
    check(&fast);
}

#[test]
fn checkpoints_continue_while_compaction_is_throttled() {
    let folder = tempfile::tempdir().unwrap();
    let db = throttled(folder.path());
    fill(&db);
    wait_for("a throttled copy", || db.stats().relocated_bytes > 0);
    let before = db.stats().checkpoints;
    let table = db.table("t").unwrap();
    wait_for("three more checkpoints", || {
        table.put("k", [3; VALUE_BYTES]).unwrap();
        db.stats().checkpoints >= before + 3
    });
    check(&db);
}

#[test]
fn backup_compact_wait_idle_and_close_do_not_wait_for_the_throttle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let db = throttled(&path);
    fill(&db);
    wait_for("a throttled copy", || db.stats().relocated_bytes > 0);
    let (copied, to) = (db.clone(), folder.path().join("copy"));
    in_time("backup_to", move || copied.backup_to(to)).unwrap();
    let settled = db.clone();
    in_time("settle", move || settled.wait_idle()).unwrap();
    check(&db);
    let compacted = db.clone();
    let report = in_time("compact", move || compacted.compact()).unwrap();
    assert!(report.bytes_after < 450 * VALUE_BYTES as u64, "{report:?}");
    fill(&db);
    check(&db);
    in_time("close", move || db.close()).unwrap();
    check(&Db::open(&path).unwrap());
    check(&Db::open(folder.path().join("copy")).unwrap());
}

#[test]
fn a_throttled_compaction_is_resumed_until_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    // A step of a compaction copies about 128 KiB at most and then waits for the throttle. So each
    // compaction takes many steps.
    let options = options().compaction_bytes_per_second(Some(4 << 20));
    let db = options.open(folder.path()).unwrap();
    fill(&db);
    wait_for("compaction", || {
        let stats = db.stats();
        stats.segments_removed > 0 && stats.log_bytes * 2 < stats.live_bytes * 3 + 4 * 256 * 1024
    });
    check(&db);
    drop(db);
    check(&Db::open(folder.path()).unwrap());
}

#[test]
fn a_rate_of_zero_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let opened = Options::new()
        .compaction_bytes_per_second(Some(0))
        .open(folder.path());
    let Err(Error::Invalid { what, reason }) = opened else {
        panic!("{opened:?}");
    };
    assert_eq!(what, "compaction_bytes_per_second");
    assert!(reason.contains("never end"), "{reason}");
}
