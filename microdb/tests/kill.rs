//! Tests with other processes: a writer that is killed at any time, writers that exclude each
//! other, and readers beside a writer that compacts.
//!
//! - The other process is this test binary. An environment variable selects its part. A writer
//!   prints numbers of durable commits to a pipe that outlives the process. A number promises all
//!   earlier commits of the writer too. So acknowledged commits are known without the database.
//! - A kill leaves the page cache intact, so all bytes written before it survive. So these tests
//!   cover recovery from any intermediate state of the process, and not forgotten syncs (see
//!   `power_cut.rs`).
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::other::{self, Other, say};
use crate::support::random::Random;
use crate::support::witness::{self, WRITERS, number};
use microdb::{Error, Options};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

/// Number of kills. Before each kill, the test reads at most 149 numbers of commits.
/// `MICRODB_KILL_ROUNDS` sets another number of kills.
const ROUNDS: u64 = 20;
/// Number of keys that a round writes in one batch. A reader must find the number of one round in
/// all of them.
const ALIKE: u64 = 100;

/// Entry point of the second process that a test starts. An environment variable selects its work.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((part, folder)) = other::part() else {
        return;
    };
    let folder = folder.as_path();
    match part.as_str() {
        "write" => write(folder),
        "open" => try_to_open(folder),
        "hold" => hold(folder),
        "read" => read_until_told(folder),
        other => panic!("no part is called {other}"),
    }
}

fn options() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(16 * 1024)
        .buffer_bytes(1000)
        .checkpoint_log_bytes(30_000)
}

/// Commits without end, each writer in a separate table. Prints the numbers that [`witness::work`]
/// promises.
fn write(folder: &Path) {
    let db = options().open(folder).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let db = db.clone();
            scope.spawn(move || {
                let error = witness::work(&db, writer, |number| say(&format!("{writer} {number}")));
                panic!("nothing is wrong with this disk: {error}");
            });
        }
    });
}

#[test]
fn kill_9_at_any_moment_keeps_every_acknowledged_commit_whole() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = std::env::var("MICRODB_KILL_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut random = Random::new(9);
    let mut acknowledged = BTreeMap::<u64, u64>::new();
    let (mut replayed, mut dropped) = (0, 0);
    for round in 0..rounds {
        let mut other = Other::start(ENTRY, "write", folder.path());
        let mut note = |line: String| {
            let (writer, number) = line.split_once(' ').unwrap();
            acknowledged.insert(writer.parse().unwrap(), number.parse().unwrap());
        };
        for _ in 0..random.below(150) {
            note(other.said().unwrap());
        }
        other.kill();
        // Lines that were printed before the kill are still in the pipe.
        while let Some(line) = other.said() {
            note(line);
        }
        other.child.wait().unwrap();
        let db = options()
            .open(folder.path())
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        replayed += db.recovery().frames_replayed;
        dropped += u64::from(db.recovery().dropped_bytes > 0);
        witness::check(&db, &acknowledged).unwrap_or_else(|error| panic!("round {round}: {error}"));
        db.close().unwrap();
    }
    println!(
        "kills: {rounds}, promises up to {acknowledged:?}, {replayed} frames replayed, {dropped} torn tails"
    );
}

/// Tries to open the database for writing, and prints the result.
fn try_to_open(folder: &Path) {
    match options().open(folder) {
        Ok(db) => {
            db.table("t").unwrap().put("k", "v").unwrap();
            say("opened");
        }
        Err(Error::Locked { holder, .. }) => say(&format!("locked by {}", holder.unwrap_or(0))),
        Err(error) => say(&format!("{error:?}")),
    }
}

/// Opens the database for writing and holds it until the standard input ends.
fn hold(folder: &Path) {
    let _db = options().open(folder).unwrap();
    say("open");
    let _ = std::io::stdin().lines().count();
}

#[test]
fn two_processes_never_write_at_the_same_time_and_death_frees_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path()).unwrap();
    let ours = format!("locked by {}", std::process::id());
    assert_eq!(Other::start(ENTRY, "open", folder.path()).said(), Some(ours));
    db.close().unwrap();
    assert_eq!(
        Other::start(ENTRY, "open", folder.path()).said().as_deref(),
        Some("opened")
    );
    let mut holder = Other::start(ENTRY, "hold", folder.path());
    assert_eq!(holder.said().as_deref(), Some("open"));
    match options().open(folder.path()) {
        Err(Error::Locked {
            holder: Some(pid), ..
        }) => assert_eq!(pid, holder.child.id()),
        other => panic!("{other:?}"),
    }
    holder.kill();
    holder.child.wait().unwrap();
    options().open(folder.path()).unwrap();
}

/// Opens the database read-only, again and again, until the standard input ends. At each open, all
/// keys must show the same round, and the round must not be older than at the previous open.
fn read_until_told(folder: &Path) {
    let told = std::thread::spawn(|| std::io::stdin().lines().count());
    let (mut last, mut times) = (0, 0);
    loop {
        let db = Options::new().read_only(true).open(folder).unwrap();
        let table = db.get_table("alike").unwrap();
        let rounds: Vec<u64> = (0..ALIKE)
            .map(|key| number(&table.get(key.to_string()).unwrap().unwrap()))
            .collect();
        assert!(rounds.iter().all(|round| *round == rounds[0]), "{rounds:?}");
        assert_eq!(table.iter().map(Result::unwrap).count() as u64, ALIKE);
        assert!(rounds[0] >= last, "round {} after {last}", rounds[0]);
        last = rounds[0];
        times += 1;
        say(&format!("{last}"));
        if told.is_finished() {
            break;
        }
    }
    assert!(times > 0);
}

#[test]
fn readers_in_other_processes_see_whole_commits_while_the_writer_compacts() {
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path()).unwrap();
    let table = db.table("alike").unwrap();
    let write = |round: u64| {
        let mut batch = db.batch();
        for key in 0..ALIKE {
            batch.put(&table, key.to_string(), format!("{round} {}", "y".repeat(40)));
        }
        batch.commit().unwrap();
    };
    write(1);
    let mut readers: Vec<Other> = (0..2)
        .map(|_| Other::start(ENTRY, "read", folder.path()))
        .collect();
    let mut round = 1;
    // Each reader opens the database several times while this process commits and compacts.
    for _ in 0..12 {
        for reader in &mut readers {
            let said = reader
                .said()
                .unwrap_or_else(|| panic!("a reader ended: {:?}", reader.child.wait()));
            let seen: u64 = said.parse().unwrap();
            assert!(seen <= round);
            for _ in 0..4 {
                round += 1;
                write(round);
            }
            db.compact().unwrap();
        }
    }
    readers.into_iter().for_each(Other::ended_well);
}
