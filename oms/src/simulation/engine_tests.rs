//! Tests of a volume's log against the simulated engine: most with one fault of the engine, and one
//! with random faults and several owners.
//!
//! Tests with a comment "Detects the mistake" fail if this deliberate mistake is selected
//! (`runtime::seeded`).

mod follower_tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::domain::order::{Order, OrderId};
use crate::error::StorageError;
use crate::runtime::simulated::{Dice, Process};
use crate::simulation::disk::Disk;
use crate::simulation::engine::{Reply, SimEngine};
use crate::simulation::engine_server::Statement;
use crate::simulation::faults::cause_engine_faults;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::follow::Follower;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::cache::{Cache, catch_up};
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::writer::{LogWriter, Logged};
use crate::storage::log::{Log, Position};
use crate::storage::volume::Volume;
use crate::storage::write_batch::{Row, Table, WriteBatch};

pub(super) const VOLUME: &str = "ada";

/// Runs a test in virtual time, with an engine without faults.
pub(super) fn simulated<F: Future<Output = ()>>(test: impl FnOnce(Arc<SimEngine>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async { test(SimEngine::new(Dice::of(7))).await });
}

/// Returns the body of a log entry with one row.
fn body(id: u64) -> BodyWriter {
    let mut body = BodyWriter::with_capacity(32);
    body.add(&Row {
        table: Table::Orders,
        key: id.to_string().as_bytes(),
        value: Some(b"row"),
    });
    body
}

pub(super) async fn owner(engine: &Arc<SimEngine>, name: &str, since: u64) -> LogWriter {
    loop {
        let mut log = engine.log(VOLUME);
        match take_over(&mut log, name, since, true).await {
            Ok(Takeover::Owned { epoch, position }) => {
                return LogWriter::new(Box::new(log), VOLUME, epoch, position);
            }
            Ok(other) => panic!("{name}: {other:?}"),
            Err(_) => {}
        }
    }
}

/// Appends an entry in a separate task.
pub(super) fn append(
    mut writer: LogWriter,
    id: u64,
) -> JoinHandle<(LogWriter, Result<Logged, StorageError>)> {
    tokio::spawn(async move {
        let logged = writer.append(body(id)).await;
        (writer, logged)
    })
}

/// Starts to append an entry while the standbys are paused. Returns once the entry waits for them.
async fn append_without_standbys(
    engine: &Arc<SimEngine>,
) -> JoinHandle<(LogWriter, Result<Logged, StorageError>)> {
    let writer = owner(engine, "ada", 1).await;
    engine.pause_standbys(true);
    let appending = append(writer, 1);
    wait_ms(100).await;
    appending
}

pub(super) async fn wait_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

pub(super) fn cache_at(folder: &str) -> Cache {
    cache_on(&Disk::new(true), folder)
}

fn cache_on(disk: &Disk, folder: &str) -> Cache {
    let options = microdb::Options::new()
        .storage(Arc::new(disk.clone()))
        .background(false)
        .segment_bytes_first(16 * 1_024)
        .segment_bytes_max(256 * 1_024);
    Cache::open(options, Path::new(folder)).unwrap()
}

/// Brings a copy up to date with the engine. Returns the ids of the orders in the copy.
async fn ids_in(engine: &Arc<SimEngine>, cache: &Cache) -> BTreeSet<u64> {
    let mut log = engine.log(VOLUME);
    let last = loop {
        if let Ok(newest) = log.newest().await {
            break newest.seq;
        }
    };
    while catch_up(cache, &mut log, VOLUME, last, true).await.is_err() {
        wait_ms(100).await;
    }
    ids_of(cache)
}

pub(super) fn ids_of(cache: &Cache) -> BTreeSet<u64> {
    let keys = cache.keys(Table::Orders).unwrap();
    keys.iter()
        .map(|key| std::str::from_utf8(key).unwrap().parse().unwrap())
        .collect()
}

/// Detects the mistake `engine-warning-is-success`: the writer treats an entry as durable although
/// the wait for a standby was cancelled.
#[test]
fn an_entry_with_a_cancelled_wait_counts_only_once_a_standby_has_it() {
    simulated(|engine| async move {
        let appending = append_without_standbys(&engine).await;
        engine.cancel_waits();
        wait_ms(300).await;
        engine.fail_over(false).await;
        engine.pause_standbys(false);
        appending.await.unwrap().1.unwrap();
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1].into());
    });
}

/// Detects the mistake `engine-found-is-durable`: the writer treats its entry as durable because it
/// found the entry in the log, although no standby has it.
#[test]
fn a_found_entry_counts_only_with_an_acknowledged_one_behind_it() {
    simulated(|engine| async move {
        let appending = append_without_standbys(&engine).await;
        // The primary restarts. Now the entry is visible, but no standby has it.
        engine.restart_primary();
        wait_ms(500).await;
        assert!(!appending.is_finished());
        engine.fail_over(false).await;
        engine.pause_standbys(false);
        let (mut writer, logged) = appending.await.unwrap();
        logged.unwrap();
        writer.append(body(2)).await.unwrap();
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1, 2].into());
    });
}

#[test]
fn a_found_entry_and_the_one_behind_it_are_confirmed_together() {
    simulated(|engine| async move {
        let appending = append_without_standbys(&engine).await;
        engine.restart_primary();
        wait_ms(500).await;
        engine.pause_standbys(false);
        let (mut writer, logged) = appending.await.unwrap();
        // The log has the owner's first entry, the appended entry, and an empty entry that confirms
        // the appended one.
        assert_eq!(logged.unwrap().position.seq, 3);
        assert_eq!(writer.append(body(2)).await.unwrap().position.seq, 4);
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1, 2].into());
    });
}

/// Detects the mistake `engine-looks-only`: after an append without an answer, the writer looks for
/// the entry in the log, and does not append it again.
#[test]
fn an_unanswered_entry_is_repeated_until_it_is_known() {
    simulated(|engine| async move {
        let writer = owner(&engine, "ada", 1).await;
        engine.pause_standbys(true);
        let appending = append(writer, 1);
        // During this wait, the client of the statement gives up, and the server still waits for a
        // standby.
        wait_ms(5_000).await;
        assert!(!appending.is_finished());
        engine.pause_standbys(false);
        appending.await.unwrap().1.unwrap();
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1].into());
    });
}

/// Detects the mistake `engine-unknown-is-done`: the writer treats an append without an answer as a
/// success.
#[test]
fn an_entry_that_died_with_the_primary_is_appended_again() {
    simulated(|engine| async move {
        let appending = append_without_standbys(&engine).await;
        engine.fail_over(false).await;
        engine.pause_standbys(false);
        appending.await.unwrap().1.unwrap();
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1].into());
    });
}

/// Detects the mistake `engine-no-fence`: the engine accepts entries of a former owner.
#[test]
fn a_former_owner_appends_nothing() {
    simulated(|engine| async move {
        let mut former = owner(&engine, "ada", 1).await;
        former.append(body(1)).await.unwrap();
        let mut present = owner(&engine, "bob", 2).await;
        present.append(body(2)).await.unwrap();
        let refused = former.append(body(3)).await;
        assert!(matches!(refused, Err(StorageError::Stale)), "{:?}", refused.err());
        assert!(former.status().has_ended());
        present.append(body(4)).await.unwrap();
        assert_eq!(ids_in(&engine, &cache_at("/a")).await, [1, 2, 4].into());
    });
}

/// Detects the mistake `engine-no-own-entry`: a new owner appends no entry of its own when it takes
/// over the volume. So an append that the former owner has sent before can still get the next
/// number in the log.
#[test]
fn a_commit_in_flight_is_refused_or_known_to_the_takeover() {
    simulated(|engine| async move {
        let mut former = owner(&engine, "ada", 1).await;
        former.append(body(1)).await.unwrap();
        engine.stall_next(Duration::from_millis(700));
        let appending = append(former, 2);
        wait_ms(50).await;
        // The statement of the former owner checked the epoch before the takeover, and tries to
        // write its row after the takeover.
        let present = owner(&engine, "bob", 2).await;
        let known = ids_in(&engine, &cache_at("/a")).await;
        let in_time = appending.await.unwrap().1.is_ok();
        assert!(!in_time || known.contains(&2));
        assert_eq!(ids_in(&engine, &cache_at("/b")).await, known);
        drop(present);
    });
}

/// Detects the mistake `engine-trims-at-once`: a checkpoint removes entries at once, so a former
/// owner can append at the number of a removed entry.
#[test]
fn the_place_of_a_young_entry_is_not_freed_for_a_former_owner() {
    simulated(|engine| async move {
        let mut former = owner(&engine, "ada", 1).await;
        former.append(body(1)).await.unwrap();
        engine.stall_next(Duration::from_millis(900));
        let appending = append(former, 2);
        wait_ms(20).await;
        let mut present = owner(&engine, "bob", 2).await;
        for id in 3..6 {
            present.append(body(id)).await.unwrap();
        }
        let mut checkpointer = Checkpointer::new(Box::new(engine.log(VOLUME)), present.epoch());
        checkpointer.pass(present.status().acknowledged()).await.unwrap();
        checkpointer.pass(present.status().acknowledged()).await.unwrap();
        assert!(
            appending.await.unwrap().1.is_err(),
            "the former owner was acknowledged"
        );
    });
}

#[test]
fn a_statement_that_is_not_written_at_its_timeout_is_cancelled() {
    simulated(|engine| async move {
        drop(owner(&engine, "ada", 1).await);
        let raise = |stall_ms: u64| {
            engine.stall_next(Duration::from_millis(stall_ms));
            let engine = Arc::clone(&engine);
            let statement = Statement::Raise {
                owner: "ada".to_owned(),
                since: 0,
                until: u64::MAX,
            };
            tokio::spawn(async move {
                let started = Instant::now();
                let reply = engine.write(0, VOLUME, &statement).await.unwrap();
                (reply, started.elapsed().as_millis())
            })
        };
        let (written, _) = raise(4_900).await.unwrap();
        assert!(matches!(written, Reply::Rows(1..)), "{written:?}");
        assert_eq!(raise(5_100).await.unwrap(), (Reply::Cancelled, 5_000));
        // The timeout includes the wait for a row that another statement has locked.
        engine.pause_standbys(true);
        let holder = raise(0);
        wait_ms(10).await;
        assert_eq!(raise(4_000).await.unwrap(), (Reply::Cancelled, 5_000));
        assert_eq!(raise(0).await.unwrap(), (Reply::Cancelled, 2_000));
        // The wait for a standby is not cancelled.
        wait_ms(10_000).await;
        assert!(!holder.is_finished());
        engine.pause_standbys(false);
        assert!(matches!(holder.await.unwrap().0, Reply::Rows(1..)));
    });
}

#[test]
fn old_entries_are_trimmed_and_a_new_copy_begins_with_the_rows() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        let mut checkpointer = Checkpointer::new(Box::new(engine.log(VOLUME)), writer.epoch());
        let behind = cache_at("/behind");
        for id in 1..=20 {
            writer.append(body(id)).await.unwrap();
            if id == 3 {
                ids_in(&engine, &behind).await;
            }
        }
        let acknowledged = writer.status().acknowledged();
        assert_eq!(checkpointer.pass(acknowledged).await.unwrap(), acknowledged + 1);
        assert_eq!(engine.log(VOLUME).tail(0, 1).await.unwrap().len(), 1);
        wait_ms(60_000).await;
        writer.append(body(21)).await.unwrap();
        checkpointer.pass(acknowledged).await.unwrap();
        assert!(engine.log(VOLUME).look(acknowledged - 1).await.unwrap().is_none());
        let all: BTreeSet<u64> = (1..=21).collect();
        assert_eq!(ids_in(&engine, &cache_at("/new")).await, all);
        assert_eq!(ids_in(&engine, &behind).await, all, "a copy older than the log");
        let begun = cache_at("/begun");
        begun.move_to(&Position::default()).unwrap();
        let mut log = engine.log(VOLUME);
        let last = log.newest().await.unwrap().seq;
        catch_up(&begun, &mut log, VOLUME, last, false).await.unwrap();
        assert_eq!(ids_of(&begun), all, "a copy without an entry");
    });
}

/// Detects the mistake `engine-chain-not-compared`: a copy is continued without a comparison with
/// the log of the engine.
#[test]
fn a_copy_of_entries_that_a_restored_engine_does_not_have_is_dropped() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        writer.append(body(1)).await.unwrap();
        let backup = engine.backup();
        for id in 2..6 {
            writer.append(body(id)).await.unwrap();
        }
        let cache = cache_at("/a");
        assert_eq!(ids_in(&engine, &cache).await.len(), 5);
        engine.restore(backup);
        assert!(writer.append(body(6)).await.is_err(), "its predecessor is lost");
        let mut present = owner(&engine, "bob", 2).await;
        for id in 10..20 {
            present.append(body(id)).await.unwrap();
        }
        let expected: BTreeSet<u64> = std::iter::once(1).chain(10..20).collect();
        assert_eq!(ids_in(&engine, &cache).await, expected);
    });
}

/// Runs a follower for as long as it needs to drop a copy that contradicts the log. Returns the
/// follower's copy.
async fn follow(open: impl Fn() -> Cache + Send + Sync + 'static, engine: &Arc<SimEngine>) -> Cache {
    let log = Box::new(engine.log(VOLUME));
    let follower = Follower::start(move || Ok(open()), log, VOLUME);
    wait_ms(60_000).await;
    follower.stop().await.unwrap()
}

#[test]
fn a_follower_drops_its_copy_if_the_engine_lost_the_whole_log() {
    simulated(|engine| async move {
        engine.log(VOLUME).create().await.unwrap();
        let backup = engine.backup();
        let mut writer = owner(&engine, "ada", 1).await;
        for id in 1..=5 {
            writer.append(body(id)).await.unwrap();
        }
        let disk = Disk::new(true);
        let open = move || cache_on(&disk, "/a");
        let cache = follow(open.clone(), &engine).await;
        assert_eq!(ids_of(&cache), (1..5).collect());
        cache.close().unwrap();
        engine.restore(backup);
        assert!(ids_of(&follow(open, &engine).await).is_empty());
    });
}

#[test]
fn a_copy_resumes_at_its_position() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        let disk = Disk::new(true);
        for id in 1..=5 {
            writer.append(body(id)).await.unwrap();
        }
        let cache = cache_on(&disk, "/a");
        ids_in(&engine, &cache).await;
        let before = cache.position().unwrap();
        cache.close().unwrap();
        let cache = cache_on(&disk, "/a");
        assert_eq!(cache.position().unwrap(), before);
        writer.append(body(6)).await.unwrap();
        assert_eq!(ids_in(&engine, &cache).await, (1..=6).collect());
    });
}

#[test]
fn a_newer_takeover_is_not_undone_by_an_older_state() {
    simulated(|engine| async move {
        let mut present = owner(&engine, "bob", 6).await;
        let mut log = engine.log(VOLUME);
        assert_eq!(
            take_over(&mut log, "ada", 5, true).await.unwrap(),
            Takeover::Newer { epoch: 6 << 20 }
        );
        present.append(body(1)).await.unwrap();
        let mut other = engine.log("none");
        assert_eq!(
            take_over(&mut other, "ada", 5, false).await.unwrap(),
            Takeover::Missing
        );
    });
}

/// Detects the mistake `engine-epoch-without-takeovers`: an epoch does not count the takeovers
/// under one version of the state, so the epochs of two versions mix.
#[test]
fn each_takeover_under_one_state_has_a_higher_epoch_below_those_of_later_states() {
    simulated(|engine| async move {
        let mut epochs = Vec::new();
        for since in [5, 5, 5, 6, 6] {
            let mut log = engine.log(VOLUME);
            match take_over(&mut log, "ada", since, true).await.unwrap() {
                Takeover::Owned { epoch, .. } => epochs.push(epoch),
                other => panic!("under the state {since}: {other:?}, after {epochs:?}"),
            }
        }
        assert!(epochs.is_sorted_by(|former, next| former < next), "{epochs:?}");
        let versions: Vec<u64> = epochs.iter().map(|epoch| epoch >> 20).collect();
        assert_eq!(versions, [5, 5, 5, 6, 6]);
    });
}

/// Detects the mistake `engine-away-is-failure`: the local database counts as failed because the
/// engine does not answer.
#[test]
fn a_volume_with_an_engine_that_does_not_answer_has_not_failed() {
    simulated(|engine| async move {
        let process = Process::new(Dice::of(1), || {});
        let task = process.spawn(async move {
            let writer = owner(&engine, "ada", 1).await;
            let cache = cache_at("/a");
            ids_in(&engine, &cache).await;
            let volume = Volume::behind_log(cache, writer).unwrap();
            engine.pause_standbys(true);
            let mut batch = WriteBatch::of_order();
            let id = OrderId::parse("17").unwrap();
            batch.order(&Order::place(id, Box::default(), None, 1), None);
            let ticket = volume.try_permit().unwrap().send(batch);
            wait_ms(3_000).await;
            assert!(!volume.has_failed(), "while the entry waits");
            volume.stop_waiting();
            let given_up = ticket.durable().await;
            assert!(matches!(given_up, Err(StorageError::EngineAway)), "{given_up:?}");
            assert!(!volume.has_failed(), "after the entry was given up");
        });
        task.await.unwrap();
    });
}

/// Detects the mistake `engine-published-first`: the rows are visible to readers before the engine
/// has acknowledged the entry.
#[test]
fn readers_see_a_row_once_the_engine_has_acknowledged_it() {
    simulated(|engine| async move {
        let process = Process::new(Dice::of(1), || {});
        let inner = Arc::clone(&process);
        let task = process.spawn(async move {
            let writer = owner(&engine, "ada", 1).await;
            let cache = cache_at("/a");
            ids_in(&engine, &cache).await;
            let volume = Volume::behind_log(cache, writer).unwrap();
            engine.pause_standbys(true);
            let id = OrderId::parse("17").unwrap();
            let mut batch = WriteBatch::of_order();
            batch.order(&Order::place(id.clone(), Box::default(), None, 1), None);
            let ticket = volume.try_permit().unwrap().send(batch);
            wait_ms(3_000).await;
            assert!(volume.order(&id).unwrap().is_none());
            assert!(matches!(
                volume.try_permit().err(),
                Some(StorageError::EngineAway)
            ));
            assert!(!volume.has_failed() && volume.is_ours());
            engine.pause_standbys(false);
            ticket.durable().await.unwrap();
            assert!(volume.order(&id).unwrap().is_some());
            assert_eq!(volume.counters().orders.iter().sum::<u64>(), 1);
            volume.try_permit().unwrap();
            drop(inner);
        });
        task.await.unwrap();
    });
}

/// The outcomes of the test with random faults.
#[derive(Default)]
struct Record {
    acknowledged: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    takeovers: u64,
    violations: Vec<String>,
}

/// Owns the volume repeatedly until the time `until`: takes it over, appends entries, and then
/// stops or is replaced by another owner.
async fn own(
    engine: Arc<SimEngine>,
    name: &'static str,
    numbers: Arc<(AtomicU64, AtomicU64)>,
    record: Arc<Mutex<Record>>,
    until: Instant,
) {
    let dice = engine.dice().clone();
    let (versions, ids) = &*numbers;
    let disk = Disk::new(true);
    while Instant::now() < until {
        wait_ms(dice.between(0, 1_500)).await;
        let mut log = engine.log(VOLUME);
        let since = versions.fetch_add(1, Ordering::Relaxed);
        let before: BTreeSet<u64> = record.lock().acknowledged.clone();
        let taken = take_over(&mut log, name, since, true).await;
        let Ok(Takeover::Owned { epoch, position }) = taken else {
            continue;
        };
        let cache = cache_on(&disk, "/copy");
        let copied = catch_up(&cache, &mut log, VOLUME, position.seq, true).await;
        let known = ids_of(&cache);
        let _ = cache.close();
        let Ok(copied) = copied else { continue };
        {
            let mut record = record.lock();
            record.takeovers += 1;
            if copied != position {
                record
                    .violations
                    .push(format!("{name}: copied {copied:?} for {position:?}"));
            }
            let lost: Vec<_> = before.difference(&known).collect();
            if !lost.is_empty() {
                record
                    .violations
                    .push(format!("{name} at {position:?} lacks {lost:?}"));
            }
        }
        let mut checkpointer = Checkpointer::new(Box::new(engine.log(VOLUME)), epoch);
        let mut writer = LogWriter::new(Box::new(log), VOLUME, epoch, position);
        loop {
            let id = ids.fetch_add(1, Ordering::Relaxed);
            let appended = tokio::time::timeout(Duration::from_secs(30), writer.append(body(id))).await;
            match appended {
                Ok(Ok(_)) => drop(record.lock().acknowledged.insert(id)),
                Ok(Err(StorageError::Stale)) => drop(record.lock().refused.insert(id)),
                Ok(Err(_)) | Err(_) => break,
            }
            if writer.status().has_ended() || dice.between(0, 60) == 0 {
                break;
            }
            if dice.between(0, 20) == 0 {
                let _ = checkpointer.pass(writer.status().acknowledged()).await;
            }
            wait_ms(dice.between(0, 20)).await;
        }
    }
}

fn run_owners(seed: u64) -> Record {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let engine = SimEngine::new(Dice::of(seed));
        let until = Instant::now() + Duration::from_secs(30);
        let record = Arc::new(Mutex::new(Record::default()));
        let numbers = Arc::new((AtomicU64::new(1), AtomicU64::new(1)));
        let faults = tokio::spawn(cause_engine_faults(Arc::clone(&engine), until, true));
        let owners = ["ada", "bob", "cleo"].map(|name| {
            let (engine, numbers, record) = (Arc::clone(&engine), Arc::clone(&numbers), Arc::clone(&record));
            tokio::spawn(own(engine, name, numbers, record, until))
        });
        faults.await.unwrap();
        for owner in owners {
            owner.await.unwrap();
        }
        while engine.is_failing_over() {
            wait_ms(100).await;
        }
        let last = owner(&engine, "last", numbers.0.load(Ordering::Relaxed)).await;
        let found = ids_in(&engine, &cache_at("/end")).await;
        drop(last);
        let mut record = Arc::try_unwrap(record).ok().unwrap().into_inner();
        let lost: Vec<_> = record.acknowledged.difference(&found).copied().collect();
        let stale: Vec<_> = record.refused.intersection(&found).copied().collect();
        if !lost.is_empty() {
            record.violations.push(format!("acknowledged and lost: {lost:?}"));
        }
        if !stale.is_empty() {
            record.violations.push(format!("refused and found: {stale:?}"));
        }
        record
    })
}

#[test]
fn several_owners_lose_nothing_under_any_fault_of_the_engine() {
    let (mut acknowledged, mut refused, mut takeovers) = (0, 0, 0);
    for seed in 1..=150 {
        let record = run_owners(seed);
        assert!(
            record.violations.is_empty(),
            "seed {seed}: {:#?}",
            record.violations
        );
        acknowledged += record.acknowledged.len();
        refused += record.refused.len();
        takeovers += record.takeovers;
    }
    println!("{acknowledged} acknowledged, {refused} refused, {takeovers} takeovers");
    assert!(acknowledged > 1_000 && refused > 10 && takeovers > 100);
}
