//! Tests of commits at the maximum size of the log. Such commits wait until compaction frees space
//! or the database is closed, but do not wait during a backup. A segment without live records is
//! removed unread.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::checkpoint_gate::{Gate, GatedStorage};
use microdb::{Db, Durability, Error, Options};

const SEGMENT_BYTES: u32 = 64 << 10;
const KEYS: u32 = 500;
const WRITERS: u32 = 4;
/// Maximum wait for a condition that must become true.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(gate: &Arc<Gate>) -> Options {
    Options::new()
        .durability(Durability::Buffered)
        .segment_bytes_first(SEGMENT_BYTES)
        .segment_bytes_max(SEGMENT_BYTES)
        .storage(Arc::new(GatedStorage(gate.clone())))
}

fn log_max(db: &Db) -> (u64, u64) {
    let stats = db.stats();
    (
        stats.log_bytes,
        2 * stats.live_bytes + 4 * u64::from(SEGMENT_BYTES),
    )
}

/// Overwrites all keys of a writer `rounds` times, or until a commit is refused. Counts the
/// commits.
fn overwrite(db: &Db, writer: u32, rounds: u32, commits: &AtomicU64) -> microdb::Result<()> {
    let table = db.table("t")?;
    for round in 0..rounds {
        for key in 0..KEYS {
            table.put(
                [writer.to_le_bytes(), key.to_le_bytes()].concat(),
                [round as u8; 1000],
            )?;
            commits.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Waits until the writers are stopped at the maximum size of the log and commit nothing for 200
/// polls in a row. Fails if the log exceeds the second value of `log_max` during the wait.
fn wait_for_stalls(db: &Db, commits: &AtomicU64) {
    let started = Instant::now();
    // Number of polls in a row without a commit. A poll counts only if the log exceeds one and a
    // half times the live bytes, or if a commit has been slowed or has waited. A commit can still
    // pass from time to time, because its wait is limited to about a second.
    let mut at_bound = 0;
    while at_bound < 200 {
        let before = commits.load(Ordering::Relaxed);
        let (log, most) = log_max(db);
        assert!(log <= most, "{log} bytes of log, at most {most}");
        let stats = db.stats();
        let is_held = stats.write_stalls > 0 || log > stats.live_bytes * 3 / 2;
        at_bound = if is_held && commits.load(Ordering::Relaxed) == before {
            at_bound + 1
        } else {
            0
        };
        assert!(started.elapsed() < PATIENCE, "{stats}");
        std::thread::yield_now();
    }
}

#[test]
fn writers_wait_at_the_bound_until_segments_are_removed() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Arc::new(Gate::default()));
    let db = options(&gate).open(folder.path()).unwrap();
    let commits = AtomicU64::new(0);
    (0..WRITERS).for_each(|writer| overwrite(&db, writer, 1, &commits).unwrap());
    gate.close();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (db, commits) = (&db, &commits);
                scope.spawn(move || overwrite(db, writer, 20, commits).unwrap())
            })
            .collect();
        wait_for_stalls(&db, &commits);
        gate.open();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let (log, most) = log_max(&db);
            assert!(log <= most, "{log} bytes of log, at most {most}");
        }
    });
    let stats = db.stats();
    assert!(stats.write_stalls > 0 && stats.write_stall_ns > 0, "{stats}");
    assert!(stats.to_string().contains("waited for space"), "{stats}");
    db.close().unwrap();
}

#[test]
fn commits_that_wait_for_space_are_refused_when_the_database_is_closed() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Arc::new(Gate::default()));
    let db = options(&gate).open(folder.path()).unwrap();
    let commits = AtomicU64::new(0);
    (0..WRITERS).for_each(|writer| overwrite(&db, writer, 1, &commits).unwrap());
    gate.close();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (db, commits) = (&db, &commits);
                scope.spawn(move || overwrite(db, writer, 1000, commits))
            })
            .collect();
        wait_for_stalls(&db, &commits);
        let closing = {
            let db = db.clone();
            scope.spawn(move || db.close())
        };
        // One writer may compact on behalf of all writers, and then waits for the disk at the
        // closed gate. So only the other writers must have ended.
        let started = Instant::now();
        let left = || writers.iter().filter(|writer| writer.is_finished()).count();
        while left() + 1 < WRITERS as usize {
            assert!(started.elapsed() < PATIENCE, "commits still wait");
            std::thread::yield_now();
        }
        gate.open();
        for writer in writers {
            let refused = writer.join().unwrap();
            assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
        }
        closing.join().unwrap().unwrap();
    });
}

#[test]
fn a_long_backup_does_not_delay_commits() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Arc::new(Gate::default()));
    let db = options(&gate).open(folder.path().join("db")).unwrap();
    let commits = AtomicU64::new(0);
    overwrite(&db, 0, 2, &commits).unwrap();
    db.wait_idle().unwrap();
    gate.close();
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| db.backup_to(folder.path().join("copy")));
        while gate.waiting() == 0 {
            std::thread::yield_now();
        }
        // The records of these commits are more than ten times as large as the maximum size of the
        // log.
        overwrite(&db, 0, 30, &commits).unwrap();
        assert!(!backup.is_finished(), "it waits at the gate");
        gate.open();
        backup.join().unwrap().unwrap();
    });
    db.close().unwrap();
}

#[test]
fn a_segment_without_live_records_is_removed_unread() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Arc::new(Gate::default()));
    let db = options(&gate).background(false).open(folder.path()).unwrap();
    let commits = AtomicU64::new(0);
    (0..3).for_each(|_| overwrite(&db, 0, 1, &commits).unwrap());
    db.sync().unwrap();
    let stats = db.stats();
    let dead: Vec<u64> = stats
        .segments
        .iter()
        .filter(|segment| segment.sealed && segment.live_bytes == 0)
        .map(|segment| segment.id)
        .collect();
    assert!(dead.len() > 5, "{stats}");
    // Each sealed segment without live records is damaged. Any code that reads one would report
    // damage.
    for id in &dead {
        let path = folder.path().join(format!("log/{id:010}.seg"));
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xff; 1000], 5000).unwrap();
    }
    db.wait_idle().unwrap();
    let stats = db.stats();
    assert_eq!(stats.damaged_segments, 0, "{stats}");
    assert!(
        stats.segments.iter().all(|segment| !dead.contains(&segment.id)),
        "{stats}"
    );
    let sealed = |id: &u64| folder.path().join(format!("log/{id:010}.seal")).exists();
    assert!(!dead.iter().any(sealed));
    assert!(db.verify().unwrap().is_sound());
}
