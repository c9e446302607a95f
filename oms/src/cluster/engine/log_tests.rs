//! Tests of a volume's log and checkpoint, of a release and of a beat, against a real engine.
//!
//! The environment variable `IMT_ENGINE` must be the URL of a PostgreSQL server, with a role that
//! may create databases. Each test that uses the server creates a separate database.
//! `IMT_FENCE_ROUNDS` sets the number of rounds of `no_former_owner_commits_and_nothing_is_lost`.
//! The owner of a volume is the task of a test that took over the volume's log last. The views have
//! tests of their own (`views`).

mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imt_ring::Member;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::cluster::ClusterState;
use crate::cluster::engine::beat::Beat;
use crate::cluster::engine::init_engine;
use crate::cluster::engine::tables::{ClusterTables, FirstState, SqlTables};
use crate::error::{DecodeError, StorageError};
use crate::postgres::{EngineUrl, Session};
use crate::storage::checkpoint::Checkpointer;
use crate::storage::log::body::{Body, BodyWriter};
use crate::storage::log::cache::{Cache, catch_up};
use crate::storage::log::engine::EngineLog;
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{LastWords, Log, LogError, Position};
use crate::storage::write_batch::{Row, Table};

pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for an expected event, after which the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Creates a database with the tables of `schema`, and returns its URL.
pub(super) async fn engine() -> Arc<EngineUrl> {
    let url: EngineUrl = std::env::var("IMT_ENGINE").unwrap().parse().unwrap();
    let name = format!("log_test_{:016x}", rand::random::<u64>());
    let mut session = Session::new(Arc::new(url.clone()), "test");
    let sql = format!("CREATE DATABASE {name}");
    session.batch(&sql, PATIENCE).await.unwrap();
    let url = url.with_database(&name);
    init_engine(&url).await.unwrap();
    Arc::new(url)
}

pub(super) fn log(url: &Arc<EngineUrl>) -> EngineLog {
    EngineLog::new(Arc::clone(url), "ada", "log")
}

pub(super) fn body(id: u64) -> BodyWriter {
    let mut body = BodyWriter::with_capacity(32);
    body.add(&Row {
        table: Table::Orders,
        key: id.to_string().as_bytes(),
        value: Some(b"row"),
    });
    body
}

/// The results of all appends of all owners. Each appended entry contains an id of its own.
#[derive(Default)]
struct Record {
    /// The id in each acknowledged entry, with the epoch of the owner that appended the entry.
    acknowledged: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    unknown: u64,
    /// Number of the log entry that each takeover appended, by epoch.
    takeovers: BTreeMap<u64, u64>,
}

struct Fencing {
    url: Arc<EngineUrl>,
    is_fenced: bool,
    ids: AtomicU64,
    record: Mutex<Record>,
}

impl Fencing {
    fn log(&self) -> EngineLog {
        if self.is_fenced {
            log(&self.url)
        } else {
            log(&self.url).without_fence()
        }
    }

    /// Takes over the volume without regard to leases, and appends entries until an append is
    /// refused or has an unknown outcome. Returns without an append if the volume has a newer
    /// owner.
    async fn own(self: Arc<Self>, name: String, since: u64, ready: tokio::sync::oneshot::Sender<Position>) {
        let mut log = self.log();
        let (epoch, position) = loop {
            match take_over(&mut log, &name, since, true).await {
                Ok(Takeover::Owned { epoch, position }) => break (epoch, position),
                Ok(Takeover::Newer { .. }) => return,
                Ok(Takeover::Missing) => panic!("the volume is missing"),
                Err(_) => {}
            }
        };
        self.record.lock().takeovers.insert(epoch, position.seq);
        let _ = ready.send(position);
        let mut writer = LogWriter::new(Box::new(log), "ada", epoch, position);
        loop {
            let id = self.ids.fetch_add(1, Ordering::Relaxed);
            let appended = writer.append(body(id)).await;
            let mut record = self.record.lock();
            match appended {
                Ok(_) => drop(record.acknowledged.insert(id, epoch)),
                Err(StorageError::Stale) => {
                    record.refused.insert(id);
                    return;
                }
                Err(_) => {
                    record.unknown += 1;
                    return;
                }
            }
        }
    }

    /// Starts an owner. Waits until that owner has the volume, or a newer owner has it. Returns the
    /// owner's task, and the position of its takeover; `None` if a newer owner has the volume.
    async fn take(self: &Arc<Self>, name: &str, since: u64) -> (JoinHandle<()>, Option<Position>) {
        let (ready, taken) = tokio::sync::oneshot::channel();
        let owner = tokio::spawn(Arc::clone(self).own(name.to_owned(), since, ready));
        (owner, tokio::time::timeout(PATIENCE, taken).await.unwrap().ok())
    }

    /// Reads the whole log. Returns the entry numbers and epochs at which each id occurs, and the
    /// violations of the log's invariants.
    async fn read(&self) -> (BTreeMap<u64, Vec<(u64, u64)>>, Vec<String>) {
        let mut log = log(&self.url);
        let (mut found, mut faults) = (BTreeMap::<u64, Vec<(u64, u64)>>::new(), Vec::new());
        let mut at = Position::default();
        loop {
            let entries = log.tail(at.seq, u64::MAX >> 1).await.unwrap();
            if entries.is_empty() {
                return (found, faults);
            }
            for entry in entries {
                let body = Body::parse(&entry.body).unwrap();
                if entry.seq != at.seq + 1 || !body.follows(&at, entry.epoch) {
                    faults.push(format!("entry {} does not follow {at:?}", entry.seq));
                }
                if entry.epoch < at.epoch {
                    faults.push(format!(
                        "stale: entry {} of epoch {} after {at:?}",
                        entry.seq, entry.epoch
                    ));
                }
                at = Position {
                    seq: entry.seq,
                    epoch: entry.epoch,
                    chain: body.chain,
                };
                body.each_row(|row| {
                    let id = std::str::from_utf8(row.key).unwrap().parse().unwrap();
                    found.entry(id).or_default().push((entry.seq, entry.epoch));
                    Ok::<_, DecodeError>(())
                })
                .unwrap();
            }
        }
    }

    /// Terminates the engine's connections to owners, including those with a commit in flight.
    async fn break_connections(&self, session: &mut Session) {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
            WHERE datname = current_database() AND application_name = 'imt log'";
        session.query(sql, &[], TIMEOUT).await.unwrap();
    }

    async fn run(self: &Arc<Self>, rounds: u64) -> Vec<String> {
        let mut session = Session::new(Arc::clone(&self.url), "test");
        let (mut owner, _) = self.take("first", 1).await;
        let (mut faults, mut former) = (Vec::new(), Vec::new());
        let (mut at, mut found) = (0, BTreeSet::new());
        for round in 0..rounds {
            let since = round + 2;
            // After a random pause, the takeover begins at an arbitrary moment between or during
            // the owner's commits.
            tokio::time::sleep(Duration::from_micros(rand::random::<u64>() % 20_000)).await;
            if rand::random::<u8>() % 10 < 3 {
                self.break_connections(&mut session).await;
            }
            let known: BTreeSet<u64> = self.record.lock().acknowledged.keys().copied().collect();
            let second = (rand::random::<u8>().is_multiple_of(10)).then(|| {
                let (ready, _) = tokio::sync::oneshot::channel();
                tokio::spawn(Arc::clone(self).own(format!("second {round}"), since, ready))
            });
            let (next, position) = self.take(&format!("owner {round}"), since).await;
            // The new owner must find every entry that was acknowledged before its takeover.
            if let Some(position) = position {
                at = self.read_on(at, position.seq, &mut found).await;
                let lost: Vec<_> = known.difference(&found).collect();
                if !lost.is_empty() {
                    faults.push(format!("round {round}: the takeover does not know {lost:?}"));
                }
            }
            // The last takeover of the round gets the newest epoch. So, with the fence, the engine
            // refuses the next append of each former owner, and the tasks of these owners end.
            if let Some(second) = second {
                let (third, _) = self.take(&format!("third {round}"), since).await;
                for ended in [second, next, owner] {
                    if self.is_fenced {
                        tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
                    } else {
                        former.push(ended);
                    }
                }
                owner = third;
            } else {
                if self.is_fenced {
                    tokio::time::timeout(PATIENCE, owner).await.unwrap().unwrap();
                } else {
                    former.push(owner);
                }
                owner = next;
            }
        }
        let (last, _) = self.take("last", rounds + 10).await;
        if self.is_fenced {
            tokio::time::timeout(PATIENCE, owner).await.unwrap().unwrap();
        } else {
            former.push(owner);
        }
        former.push(last);
        for task in former {
            task.abort();
            let _ = task.await;
        }
        let (found, own_faults) = self.read().await;
        faults.extend(own_faults);
        let record = self.record.lock();
        for (id, epoch) in &record.acknowledged {
            match found.get(id).map(Vec::as_slice) {
                None => faults.push(format!("lost: {id} of epoch {epoch}")),
                Some([(seq, _)]) => {
                    let newer = record.takeovers.range(epoch + 1..).next();
                    if newer.is_some_and(|(_, own)| own < seq) {
                        faults.push(format!("stale: {id} of epoch {epoch} at {seq} was acknowledged"));
                    }
                }
                Some(places) => faults.push(format!("{id} is in the log at {places:?}")),
            }
        }
        for id in record.refused.iter().filter(|id| found.contains_key(id)) {
            faults.push(format!("refused and in the log: {id}"));
        }
        println!(
            "{rounds} rounds: {} acknowledged, {} refused, {} unknown at the end of an owner, {} takeovers, \
             {} faults",
            record.acknowledged.len(),
            record.refused.len(),
            record.unknown,
            record.takeovers.len(),
            faults.len(),
        );
        faults
    }

    /// Adds to `ids` the ids of the entries after entry `at`, up to entry `last`. Returns the
    /// number of the last entry read.
    async fn read_on(&self, mut at: u64, last: u64, ids: &mut BTreeSet<u64>) -> u64 {
        let mut log = log(&self.url);
        while at < last {
            for entry in log.tail(at, last).await.unwrap() {
                at = entry.seq;
                let body = Body::parse(&entry.body).unwrap();
                body.each_row(|row| {
                    ids.insert(std::str::from_utf8(row.key).unwrap().parse().unwrap());
                    Ok::<_, DecodeError>(())
                })
                .unwrap();
            }
        }
        at
    }
}

async fn fencing(is_fenced: bool) -> Arc<Fencing> {
    Arc::new(Fencing {
        url: engine().await,
        is_fenced,
        ids: AtomicU64::new(1),
        record: Mutex::default(),
    })
}

/// A beat waits for its row while a transaction replaces the state and demands the new version.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_beat_under_way_returns_the_demanded_version() {
    let url = engine().await;
    let mut tables = SqlTables::new(Arc::clone(&url), "test", TIMEOUT);
    let state = ClusterState::first(Member::new("ada").unwrap()).unwrap();
    let first = FirstState {
        state: &state,
        volume: "ada",
        coordinator: "ada/7",
        secret: "",
    };
    assert!(tables.write_first(first).await.unwrap());
    assert!(tables.add_node("ada", 7).await.unwrap());
    let numbered = |number| Beat {
        incarnation: 7,
        number,
    };
    assert_eq!(tables.beat("ada", &numbered(2), None).await.unwrap(), Some(1));
    let without_demand = "UPDATE imt_node SET beat = 4 WHERE name = 'ada' \
        RETURNING (SELECT version FROM imt_cluster)";
    for version in [2, 3] {
        let sql = format!(
            "BEGIN; UPDATE imt_cluster SET version = {version}; \
             UPDATE imt_node SET must_know = {version} WHERE name = 'ada'; \
             SELECT pg_sleep(1); COMMIT"
        );
        let mut other = Session::new(Arc::clone(&url), "other");
        let holding = tokio::spawn(async move { other.batch(&sql, TIMEOUT).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        if version == 2 {
            let late = tables.beat("ada", &numbered(3), None).await.unwrap();
            assert_eq!(late, Some(2));
        } else {
            let mut session = Session::new(Arc::clone(&url), "test");
            let late = session.query(without_demand, &[], TIMEOUT).await.unwrap();
            assert_eq!(late[0].int8(0).unwrap(), 2, "the version before the transaction");
        }
        holding.await.unwrap().unwrap();
    }
    assert!(
        !tables.demand("ada", &numbered(3), 5).await.unwrap(),
        "an earlier beat"
    );
    assert_eq!(tables.beat("ada", &numbered(5), None).await.unwrap(), Some(3));
    assert!(tables.demand("ada", &numbered(5), 5).await.unwrap());
    assert!(
        tables.demand("ada", &numbered(5), 4).await.unwrap(),
        "a repetition"
    );
    assert_eq!(tables.beat("ada", &numbered(6), None).await.unwrap(), Some(5));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn no_former_owner_commits_and_nothing_is_lost() {
    let rounds = std::env::var("IMT_FENCE_ROUNDS").ok();
    let rounds = rounds.map_or(100, |rounds| rounds.parse().unwrap());
    let faults = fencing(true).await.run(rounds).await;
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn the_fence_test_notices_a_missing_fence() {
    let faults = fencing(false).await.run(20).await;
    // Without the fence, entries of the former owner are in the log: they are stale, or they do not
    // follow the entry before.
    assert!(!faults.is_empty());
}

pub(super) async fn owner(url: &Arc<EngineUrl>, since: u64) -> LogWriter {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut log = log(url);
        if let Ok(Takeover::Owned { epoch, position }) = take_over(&mut log, "bob", since, true).await {
            return LogWriter::new(Box::new(log), "ada", epoch, position);
        }
    }
    panic!("the volume was not taken");
}

/// Returns the numbers of rows in the tables of volumes, of entries and of rows.
pub(super) async fn counts(session: &mut Session) -> [i64; 3] {
    let sql = "SELECT (SELECT count(*) FROM imt_volume), (SELECT count(*) FROM imt_log), \
        (SELECT count(*) FROM imt_row)";
    let rows = session.query(sql, &[], TIMEOUT).await.unwrap();
    [0, 1, 2].map(|column| rows[0].int8(column).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn rows_and_log_together_fill_a_copy_and_old_entries_are_trimmed() {
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)), writer.epoch());
    for id in 1..=50 {
        writer.append(body(id)).await.unwrap();
        if id == 20 {
            // This entry removes the row with key 7, so the checkpoint must not have that row.
            let mut removal = BodyWriter::with_capacity(8);
            removal.add(&Row {
                table: Table::Orders,
                key: b"7",
                value: None,
            });
            writer.append(removal).await.unwrap();
            let acknowledged = writer.status().acknowledged();
            assert_eq!(checkpointer.pass(acknowledged).await.unwrap(), acknowledged + 1);
        }
    }
    let (acknowledged, mut reader) = (writer.status().acknowledged(), log(&url));
    let kept_from = reader.head().await.unwrap().unwrap().kept_from;
    let (last, none) = (reader.newest().await.unwrap(), LastWords::default());
    let other = Position {
        chain: [7; 16],
        ..last
    };
    let later = Position {
        seq: last.seq + 1,
        ..last
    };
    for (from, last, kind) in [
        (kept_from - 1, last, "another checkpoint was made"),
        (kept_from, other, "the log has another entry"),
        (kept_from, later, "the log has no such entry"),
    ] {
        assert!(!reader.checkpoint(from, &last, &none).await.unwrap(), "{kind}");
    }
    let epoch = reader.head().await.unwrap().unwrap().epoch;
    assert_eq!(reader.trim(epoch - 1, 0, acknowledged).await.unwrap(), None);
    let mut trimmed = 0;
    while let Some(seq) = reader.trim(epoch, trimmed, acknowledged).await.unwrap() {
        trimmed = seq;
    }
    assert_eq!(trimmed, kept_from - 2, "the entry before the kept ones stays");
    assert!(reader.look(kept_from - 2).await.unwrap().is_none());
    assert!(reader.look(kept_from - 1).await.unwrap().is_some());
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open_in(folder.path()).unwrap();
    catch_up(&cache, &mut reader, "ada", acknowledged, true)
        .await
        .unwrap();
    let keys: BTreeSet<Vec<u8>> = cache.keys(Table::Orders).unwrap().into_iter().collect();
    let expected: BTreeSet<Vec<u8>> = (1..=50)
        .filter(|id| *id != 7)
        .map(|id| id.to_string().into_bytes())
        .collect();
    assert_eq!(keys, expected);
    let mut session = Session::new(Arc::clone(&url), "test");
    let found = counts(&mut session).await;
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
    reader.remove(epoch - 1).await.unwrap();
    assert_eq!(counts(&mut session).await, found);
    reader.remove(epoch).await.unwrap();
    assert_eq!(counts(&mut session).await, [0; 3]);
    assert_eq!(reader.head().await.unwrap(), None);
    assert!(matches!(writer.append(body(99)).await, Err(StorageError::Stale)));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn an_engine_that_is_away_has_no_effect() {
    let url: EngineUrl = "postgres://nobody@127.0.0.1:1/none".parse().unwrap();
    let mut log = EngineLog::new(Arc::new(url), "ada", "log");
    assert!(matches!(log.newest().await, Err(LogError::Away(_))));
}

/// Takes the volume over under this version of the cluster's state. Returns the new epoch.
async fn epoch_of(log: &mut EngineLog, name: &str, since: u64) -> u64 {
    match take_over(log, name, since, true).await.unwrap() {
        Takeover::Owned { epoch, .. } => epoch,
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_late_release_of_a_former_owner_keeps_the_row_of_the_newer_owner() {
    let url = engine().await;
    let (mut former, mut present) = (log(&url), log(&url));
    let first = epoch_of(&mut former, "bob", 1).await;
    // The same node opens the volume again, and then another node.
    for (name, since) in [("bob", 1), ("cleo", 2)] {
        let epoch = epoch_of(&mut present, name, since).await;
        let head = present.head().await.unwrap();
        former.release(first).await.unwrap();
        assert_eq!(present.owner().await.unwrap().as_deref(), Some(name));
        assert_eq!(present.head().await.unwrap(), head, "epoch {epoch}");
    }
    // This release begins before the takeover is committed, waits for the row, and sees a new epoch
    // in the row.
    let second = present.head().await.unwrap().unwrap().epoch;
    let mut session = Session::new(Arc::clone(&url), "test");
    let raise = "BEGIN; UPDATE imt_volume SET epoch = epoch + 1, owner = 'dora' WHERE volume = 'ada'";
    session.batch(raise, TIMEOUT).await.unwrap();
    let mut late = EngineLog::new(Arc::clone(&url), "ada", "late");
    let releasing = tokio::spawn(async move { late.release(second).await });
    let mut observer = Session::new(Arc::clone(&url), "test");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name = 'imt late' AND wait_event_type = 'Lock'";
    let deadline = Instant::now() + PATIENCE;
    while observer.query(waits, &[], TIMEOUT).await.unwrap()[0]
        .int8(0)
        .unwrap()
        == 0
    {
        assert!(
            Instant::now() < deadline && !releasing.is_finished(),
            "it does not wait"
        );
    }
    session.batch("COMMIT", TIMEOUT).await.unwrap();
    releasing.await.unwrap().unwrap();
    assert_eq!(present.owner().await.unwrap().as_deref(), Some("dora"));
    // The release of the present owner clears the name, and keeps the epoch.
    present.release(second + 1).await.unwrap();
    assert_eq!(present.owner().await.unwrap(), None);
    assert_eq!(present.head().await.unwrap().unwrap().epoch, second + 1);
}
