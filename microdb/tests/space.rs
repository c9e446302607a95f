//! Tests of the bounds of memory, descriptors and disk space. The bounds hold at all times, so
//! during most workloads a thread samples the bounded values.
//!
//! Memory and descriptors are counted for the whole process. So each workload that is measured runs
//! in a separate process: this test binary, with its part selected by the environment.
//! `MICRODB_SOAK_SECONDS=600` runs the soak test for ten minutes instead of some seconds.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::mount::Mounted;
use crate::support::other::{self, Other};
use crate::support::random::Random;
use crate::support::usage::{anonymous_bytes, descriptors, disk_bytes, maps};
use microdb::{Db, Durability, Options, Snapshot, Table, Value};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

/// Maximum anonymous memory of a database in bytes, besides its directory.
const MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Maximum number of file descriptors of a database, independent of its size.
const DESCRIPTORS_MAX: u64 = 64;
/// Default size of the largest segments in bytes.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Maximum wait for a condition that must become true.
const PATIENCE: Duration = Duration::from_secs(30);

/// Entry point of the second process that a test starts. An environment variable selects its
/// workload.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((part, folder)) = other::part() else {
        return;
    };
    match part.as_str() {
        "overwrite" => overwrite(&folder),
        "hold snapshots" => hold_snapshots(&folder),
        "hold values" => hold_values(&folder),
        "fall silent" => fall_silent(&folder),
        "few descriptors" => few_descriptors(&folder),
        "large batch" => large_batch(&folder),
        "soak" => soak(&folder),
        "drop" => drop_busy_databases(&folder),
        other => panic!("no part is called {other}"),
    }
}

fn play(part: &str) {
    let folder = tempfile::tempdir().unwrap();
    Other::start(ENTRY, part, folder.path()).ended_well();
}

/// Memory in bytes and number of descriptors of the process before it opened a database.
struct Before {
    memory: u64,
    descriptors: u64,
}

impl Before {
    fn new() -> Self {
        Self {
            memory: anonymous_bytes(),
            descriptors: descriptors(),
        }
    }

    /// Samples memory, descriptors, disk space and the size of the log, and checks their bounds,
    /// until `done`. `views` is the number of snapshots, each of which may keep a separate
    /// directory. Returns the number of samples.
    fn watch(&self, db: &Db, views: &AtomicU64, done: &AtomicBool) -> u64 {
        let mut samples = 0;
        let mut most = (0, 0, 0, 0);
        while !done.load(Ordering::Relaxed) {
            // The directory and the live bytes grow, or hardly shrink, in these workloads. Both are
            // read last, so that the bounds computed from them are not too low for the values read
            // before.
            let (memory, open) = (anonymous_bytes(), descriptors());
            let disk = disk_bytes(db.path());
            let stats = db.stats();
            let views = views.load(Ordering::Relaxed);
            let memory_max = self.memory + (1 + views) * stats.directory_bytes + MEMORY_BYTES_MAX;
            assert!(
                memory <= memory_max,
                "{memory} bytes of memory, at most {memory_max}\n{stats}"
            );
            let open_max = self.descriptors + DESCRIPTORS_MAX;
            assert!(open <= open_max, "{open} descriptors, at most {open_max}");
            let log_max = 2 * stats.live_bytes + 4 * SEGMENT_BYTES;
            assert!(stats.log_bytes <= log_max, "at most {log_max}\n{stats}");
            // Besides the log, the folder has seals, and two checkpoints while one is being
            // written.
            let disk_max = log_max + 2 * stats.directory_bytes + (4 << 20);
            assert!(
                disk <= disk_max,
                "{disk} bytes on disk, at most {disk_max}\n{stats}"
            );
            most = (
                memory.max(most.0),
                open.max(most.1),
                disk.max(most.2),
                stats.log_bytes.max(most.3),
            );
            samples += 1;
        }
        println!(
            "most: {} KiB of memory (before: {}), {} descriptors, {} KiB on disk, {} KiB of log; {samples} samples\n{}",
            most.0 >> 10,
            self.memory >> 10,
            most.1,
            most.2 >> 10,
            most.3 >> 10,
            db.stats()
        );
        samples
    }

    /// Waits until the process has at most as many descriptors as before and hardly more memory,
    /// and until no file below `folder` is mapped into its memory. Panics after `PATIENCE`.
    fn check_given_back(&self, folder: &Path) {
        let started = Instant::now();
        loop {
            let (memory, open, maps) = (anonymous_bytes(), descriptors(), maps(folder));
            // The allocator may keep some freed pages.
            if memory <= self.memory + (8 << 20) && open <= self.descriptors && maps.is_empty() {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "not given back: {memory} bytes of memory ({} before), {open} descriptors ({} before), {maps:?}",
                self.memory,
                self.descriptors
            );
            std::thread::yield_now();
        }
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

fn key(writer: u64, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&writer.to_le_bytes());
    key[8..].copy_from_slice(&number.to_le_bytes());
    key
}

fn value(writer: u64, number: u64, version: u64, bytes: usize) -> Vec<u8> {
    let mut value = [writer, number, version].map(u64::to_le_bytes).concat();
    value.resize(bytes, version as u8);
    value
}

/// Returns the version number in a value, and checks that the value belongs to this key.
fn version(value: &[u8], writer: u64, number: u64) -> u64 {
    let word = |at: usize| u64::from_le_bytes(value[at..at + 8].try_into().unwrap());
    assert_eq!((word(0), word(8)), (writer, number));
    assert!(value[24..].iter().all(|byte| *byte == word(16) as u8));
    word(16)
}

/// Opens a database with buffered commits. Returns its handle and a table.
fn buffered(folder: &Path) -> (Db, Table) {
    let options = Options::new().durability(Durability::Buffered);
    let db = options.open(folder).unwrap();
    let table = db.table("t").unwrap();
    (db, table)
}

/// Workload: eight writers overwrite 8 MB many times.
fn overwrite(folder: &Path) {
    const KEYS: u64 = 1000;
    const ROUNDS: u64 = 60;
    let before = Before::new();
    let (db, table) = buffered(folder);
    let (views, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(before.watch(&db, &views, &done) > 0));
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let table = &table;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        for number in 0..KEYS {
                            table
                                .put(key(writer, number), value(writer, number, round, 1000))
                                .unwrap();
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    for writer in 0..8 {
        for number in 0..KEYS {
            let found = table.get(key(writer, number)).unwrap().unwrap();
            assert_eq!(version(&found, writer, number), ROUNDS - 1);
        }
    }
    drop(table);
    db.close().unwrap();
    before.check_given_back(folder);
}

#[test]
fn eight_writers_that_overwrite_stay_within_all_bounds_and_all_is_given_back() {
    play("overwrite");
}

/// Workload: snapshots are taken in many rounds and kept. They are taken with many different active
/// segments.
fn hold_snapshots(folder: &Path) {
    const KEYS: u64 = 1000;
    let before = Before::new();
    let (db, table) = buffered(folder);
    let (views, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut snapshots: Vec<(u64, Snapshot)> = Vec::new();
    std::thread::scope(|scope| {
        // A removed segment that a snapshot still holds has no name in the folder any more. The
        // disk space of such segments is neither counted nor bounded.
        scope.spawn(|| assert!(before.watch(&db, &views, &done) > 0));
        for round in 0..150 {
            for number in 0..KEYS {
                table.put(key(0, number), value(0, number, round, 2000)).unwrap();
            }
            if round % 7 == 0 {
                views.fetch_add(1, Ordering::Relaxed);
                snapshots.push((round, db.snapshot()));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    for (round, snapshot) in &snapshots {
        for number in 0..KEYS {
            let found = snapshot.get(&table, key(0, number)).unwrap().unwrap();
            assert_eq!(version(&found, 0, number), *round);
        }
    }
    drop((snapshots, table));
    db.close().unwrap();
    before.check_given_back(folder);
}

#[test]
fn snapshots_of_many_moments_hold_no_memory_of_segments_and_no_descriptors() {
    play("hold snapshots");
}

/// Workload: values are read soon after they were put, and kept. Each value shares the bytes of its
/// segment, which usually is still the active one when the value is read.
fn hold_values(folder: &Path) {
    let before = Before::new();
    let (db, table) = buffered(folder);
    let (views, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut values: Vec<(u64, Value)> = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(before.watch(&db, &views, &done) > 0));
        for round in 0..400 {
            for number in 0..100 {
                table
                    .put(key(0, number), value(0, number, round, 10_000))
                    .unwrap();
            }
            values.push((round, table.get(key(0, 1)).unwrap().unwrap()));
        }
        done.store(true, Ordering::Relaxed);
    });
    for (round, value) in &values {
        assert_eq!(version(value, 0, 1), *round);
    }
    drop((values, table));
    db.close().unwrap();
    before.check_given_back(folder);
}

#[test]
fn values_of_many_moments_hold_no_memory_of_segments() {
    play("hold values");
}

/// Workload: four writers overwrite records, and then live on without a further call. The memory of
/// removed segments must be freed nevertheless.
fn fall_silent(folder: &Path) {
    let before = Before::new();
    let options = Options::new()
        .segment_bytes_first(1 << 20)
        .segment_bytes_max(1 << 20);
    let db = options.durability(Durability::Buffered).open(folder).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (db, stop) = (db.clone(), stop.clone());
            std::thread::spawn(move || {
                let table = db.table("t").unwrap();
                for round in 0..40 {
                    for number in 0..100 {
                        table
                            .put(key(writer, number), value(writer, number, round, 5000))
                            .unwrap();
                    }
                }
                // The thread stays alive with its thread-local part of the epoch-based memory
                // reclamation. The thread makes no further call.
                drop((table, db));
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park();
                }
            })
        })
        .collect();
    let removed = || {
        maps(folder)
            .iter()
            .filter(|line| line.contains("(deleted)"))
            .count()
    };
    wait_until("segments are removed", || db.stats().segments_removed > 20);
    db.sync().unwrap();
    db.wait_idle().unwrap();
    wait_until("no removed segment is mapped", || removed() == 0);
    db.close().unwrap();
    before.check_given_back(folder);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.thread().unpark();
        writer.join().unwrap();
    }
}

#[test]
fn removed_segments_are_given_back_though_the_threads_that_removed_them_never_call_again() {
    play("fall silent");
}

/// Workload: hundreds of segments, with a limit of descriptors far below that number.
fn few_descriptors(folder: &Path) {
    let before = Before::new();
    let limit = before.descriptors + DESCRIPTORS_MAX;
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(limit);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let options = || {
        let options = Options::new()
            .segment_bytes_first(16 << 10)
            .segment_bytes_max(16 << 10);
        options.durability(Durability::Buffered)
    };
    for round in 0..2 {
        let db = options().open(folder).unwrap();
        let table = db.table("t").unwrap();
        // All records are live, so that no segment is removed. Many snapshots exist at the same
        // time.
        let mut snapshots = Vec::new();
        for number in 0..8000 {
            table
                .put(key(round, number), value(round, number, 0, 1000))
                .unwrap();
            if number % 100 == 0 {
                snapshots.push(db.snapshot());
            }
        }
        assert!(db.stats().segments.len() > 400, "{}", db.stats());
        assert!(descriptors() <= limit);
        for number in 0..8000 {
            let found = table.get(key(round, number)).unwrap().unwrap();
            version(&found, round, number);
        }
        assert!(db.verify().unwrap().is_sound());
        drop((snapshots, table));
        db.close().unwrap();
        before.check_given_back(folder);
    }
    let db = options().read_only(true).open(folder).unwrap();
    assert_eq!(db.get_table("t").unwrap().iter().count(), 16_000);
    assert!(descriptors() <= limit);
}

#[test]
fn a_log_of_any_number_of_segments_needs_a_constant_number_of_descriptors() {
    play("few descriptors");
}

/// Number of records in a large batch. Such a batch replaces each chunk of the directory many
/// times.
const LARGE_BATCH: u32 = 400_000;
/// Number of rounds before the memory is measured for comparison. During these rounds, segments and
/// the allocator's memory still grow.
const LARGE_ROUNDS_FIRST: u32 = 8;
const LARGE_ROUNDS: u32 = 24;
/// Maximum growth of memory in all later rounds together: the active segment, the memory for the
/// next segment, and some memory of the allocator. A leak of the directories would be twice as
/// large.
const LARGE_GROWTH_MAX: u64 = 2 * SEGMENT_BYTES + (4 << 20);

/// Workload: a batch of many small records replaces each chunk of the directory many times, and a
/// clear replaces all chunks.
fn large_batch(folder: &Path) {
    let before = Before::new();
    let (db, table) = buffered(folder);
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut settled = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(anonymous_bytes(), Ordering::Relaxed);
            }
        });
        for round in 0..LARGE_ROUNDS {
            let mut batch = db.batch();
            for number in 0..LARGE_BATCH {
                batch.put(&table, number.to_le_bytes(), []);
            }
            batch.commit().unwrap();
            table.clear().unwrap();
            // After the sync all segments are written and mapped. The process keeps the remaining
            // memory for later rounds.
            db.sync().unwrap();
            db.wait_idle().unwrap();
            if round < LARGE_ROUNDS_FIRST {
                settled = Some(anonymous_bytes());
            }
        }
        let settled = settled.unwrap();
        wait_until("the memory of earlier rounds is given back", || {
            anonymous_bytes() <= settled + LARGE_GROWTH_MAX
        });
        done.store(true, Ordering::Relaxed);
    });
    let most = most.load(Ordering::Relaxed) - before.memory;
    println!("most: {} KiB", most >> 10);
    // The bound counts, for each record: in the batch, up to 12 bytes of the encoded record and 48
    // of its operation, both twice, since a vector may have twice the capacity that it needs, and 8
    // in the hash table that finds duplicate keys; up to 12 in the segment; 13 in the directory.
    // `MEMORY_BYTES_MAX` covers everything else.
    let records = u64::from(LARGE_BATCH);
    let own = records * (2 * (12 + 48) + 8) + records * 12;
    assert!(most <= own + records * 13 + MEMORY_BYTES_MAX, "{most}");
    drop(table);
    db.close().unwrap();
    // Memory is not compared with the value before the first batch, because the allocator keeps
    // some.
    wait_until("maps and descriptors are given back", || {
        maps(folder).is_empty() && descriptors() <= before.descriptors
    });
}

#[test]
fn a_large_batch_and_a_clear_leave_no_old_parts_of_the_directory() {
    play("large batch");
}

/// Mounts a file system in memory (tmpfs) of `mib` MiB.
fn small_disk(folder: &Path, mib: u64) -> Mounted {
    let size = format!("size={mib}m");
    Mounted::new(&["-t", "tmpfs", "-o", &size, "tmpfs"], folder).unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_disk_of_64_mib_with_4_mib_alive_is_never_full() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    std::fs::create_dir(&place).unwrap();
    let _mounted = small_disk(&place, 64);
    let db = Options::new()
        .durability(Durability::Buffered)
        .open(place.join("db"))
        .unwrap();
    let table = db.table("t").unwrap();
    for round in 0..60 {
        for number in 0..1000 {
            table.put(key(0, number), value(0, number, round, 4096)).unwrap();
        }
    }
    for number in 0..1000 {
        assert_eq!(
            version(&table.get(key(0, number)).unwrap().unwrap(), 0, number),
            59
        );
    }
    drop(table);
    db.close().unwrap();
}

/// Workload: drops databases with busy background work. After the drop, no map is left.
fn drop_busy_databases(folder: &Path) {
    for round in 0..30 {
        // Small segments keep the background work busy all the time.
        let options = Options::new().durability(Durability::Buffered);
        let options = options.segment_bytes_first(256 * 1024).segment_bytes_max(1 << 20);
        let db = options.open(folder.join("db")).unwrap();
        let table = db.table("t").unwrap();
        for number in 0..1000 * (1 + round % 4) {
            table.put(key(0, number), value(0, number, round, 1000)).unwrap();
        }
        db.sync().unwrap();
        assert!(!maps(folder).is_empty(), "segments are mapped");
        drop(table);
        drop(db);
        assert!(maps(folder).is_empty(), "round {round}: {:?}", maps(folder));
    }
}

#[test]
fn maps_are_gone_when_the_drop_of_the_last_handle_returns() {
    play("drop");
}

const SOAK_WRITERS: u64 = 8;
const SOAK_KEYS: u64 = 2000;
const SOAK_ACCOUNTS: u64 = 64;
const SOAK_MONEY: u64 = 1000;

fn soak_seconds() -> u64 {
    std::env::var("MICRODB_SOAK_SECONDS").map_or(5, |text| text.parse().unwrap())
}

/// For each key: the version of the last put begun, and the newest acknowledged version.
struct Marks(Vec<(AtomicU64, AtomicU64)>);

impl Marks {
    fn at(&self, writer: u64, number: u64) -> &(AtomicU64, AtomicU64) {
        &self.0[(writer * SOAK_KEYS + number) as usize]
    }
}

fn soak_write(table: &Table, writer: u64, marks: &Marks, end: Instant) {
    let mut random = Random::new(writer);
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        for _ in 0..100 {
            let number = random.below(SOAK_KEYS);
            let (begun, acknowledged) = marks.at(writer, number);
            let next = begun.fetch_add(1, Ordering::AcqRel) + 1;
            let bytes = 24 + random.below(2000) as usize;
            // Most puts are buffered. A durable put syncs all earlier ones.
            let durability = if round % 20 == 0 {
                Durability::Sync
            } else {
                Durability::Buffered
            };
            table
                .put_with(
                    key(writer, number),
                    value(writer, number, next, bytes),
                    durability,
                )
                .unwrap();
            acknowledged.store(next, Ordering::Release);
        }
    }
}

fn soak_read(table: &Table, seed: u64, marks: &Marks, end: Instant) {
    let mut random = Random::new(seed);
    while Instant::now() < end {
        let (writer, number) = (random.below(SOAK_WRITERS), random.below(SOAK_KEYS));
        let (begun, acknowledged) = marks.at(writer, number);
        let least = acknowledged.load(Ordering::Acquire);
        let seen = table.get(key(writer, number)).unwrap();
        let seen = seen.map_or(0, |value| version(&value, writer, number));
        assert!(
            least <= seen && seen <= begun.load(Ordering::Acquire),
            "{least} {seen}"
        );
    }
}

fn soak_transfer(db: &Db, accounts: &Table, end: Instant) {
    let mut random = Random::new(77);
    let number = |value: Option<Value>| u64::from_le_bytes(value.unwrap()[..].try_into().unwrap());
    while Instant::now() < end {
        let (from, to) = (random.below(SOAK_ACCOUNTS), random.below(SOAK_ACCOUNTS));
        let (from, to) = (from.to_le_bytes(), to.to_le_bytes());
        db.transaction(|tx| {
            let left = number(tx.get(accounts, from)?);
            let amount = left.min(7);
            tx.put(accounts, from, (left - amount).to_le_bytes())?;
            let there = number(tx.get(accounts, to)?);
            tx.put(accounts, to, (there + amount).to_le_bytes())
        })
        .unwrap();
    }
}

fn soak_snapshots(db: &Db, table: &Table, accounts: &Table, views: &AtomicU64, end: Instant) {
    let mut random = Random::new(78);
    while Instant::now() < end {
        // The snapshot is counted in `views` from before it is taken until after it is dropped.
        views.fetch_add(1, Ordering::Relaxed);
        let snapshot = db.snapshot();
        let money = snapshot.iter(accounts).unwrap().map(|record| {
            let (_, value) = record.unwrap();
            u64::from_le_bytes(value[..].try_into().unwrap())
        });
        assert_eq!(money.sum::<u64>(), SOAK_ACCOUNTS * SOAK_MONEY);
        let (writer, number) = (random.below(SOAK_WRITERS), random.below(SOAK_KEYS));
        let seen = || {
            snapshot
                .get(table, key(writer, number))
                .unwrap()
                .map(|value| version(&value, writer, number))
        };
        let first = seen();
        for _ in 0..200 {
            assert_eq!(seen(), first, "a snapshot does not change");
        }
        drop(snapshot);
        views.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Workload: writers, readers, snapshots and transactions run at once, while all bounds are
/// watched.
fn soak(folder: &Path) {
    let before = Before::new();
    let options = || Options::new().durability(Durability::Buffered);
    let db = options().open(folder).unwrap();
    let (table, accounts) = (db.table("t").unwrap(), db.table("accounts").unwrap());
    for account in 0..SOAK_ACCOUNTS {
        accounts
            .put(account.to_le_bytes(), SOAK_MONEY.to_le_bytes())
            .unwrap();
    }
    let marks = (0..SOAK_WRITERS * SOAK_KEYS).map(|_| (AtomicU64::new(0), AtomicU64::new(0)));
    let marks = Marks(marks.collect());
    let (views, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let end = Instant::now() + Duration::from_secs(soak_seconds());
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(before.watch(&db, &views, &done) > 0));
        std::thread::scope(|scope| {
            for writer in 0..SOAK_WRITERS {
                let (table, marks) = (&table, &marks);
                scope.spawn(move || soak_write(table, writer, marks, end));
            }
            for reader in 0..2 {
                let (table, marks) = (&table, &marks);
                scope.spawn(move || soak_read(table, 100 + reader, marks, end));
            }
            scope.spawn(|| soak_transfer(&db, &accounts, end));
            scope.spawn(|| soak_snapshots(&db, &table, &accounts, &views, end));
        });
        done.store(true, Ordering::Relaxed);
    });
    drop((table, accounts));
    db.close().unwrap();
    before.check_given_back(folder);
    let db = options().open(folder).unwrap();
    let table = db.table("t").unwrap();
    for writer in 0..SOAK_WRITERS {
        for number in 0..SOAK_KEYS {
            let seen = table.get(key(writer, number)).unwrap();
            let seen = seen.map_or(0, |value| version(&value, writer, number));
            assert_eq!(seen, marks.at(writer, number).1.load(Ordering::Acquire));
        }
    }
    let accounts = db.table("accounts").unwrap();
    let money = accounts
        .iter()
        .map(|record| u64::from_le_bytes(record.unwrap().1[..].try_into().unwrap()));
    assert_eq!(money.sum::<u64>(), SOAK_ACCOUNTS * SOAK_MONEY);
    assert!(db.verify().unwrap().is_sound());
}

#[test]
fn a_soak_stays_within_all_bounds_and_loses_nothing() {
    play("soak");
}

#[test]
#[ignore = "needs root"]
fn a_soak_on_a_disk_of_256_mib_stays_within_all_bounds_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    std::fs::create_dir(&place).unwrap();
    let _mounted = small_disk(&place, 256);
    Other::start(ENTRY, "soak", &place.join("db")).ended_well();
}
