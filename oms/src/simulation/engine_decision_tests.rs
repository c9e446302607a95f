//! Tests of decisions from several statements on a log, of which different servers may execute
//! single ones: the copy of a volume, and a checkpoint. Also tests of the size of checkpoints.
//!
//! Tests with a comment "Detects the mistake" fail if this deliberate mistake is selected
//! (`runtime::seeded`).

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::simulation::engine::SimEngine;
use crate::simulation::engine_log::SimLog;
use crate::simulation::engine_server::Role;
use crate::simulation::engine_tests::{VOLUME, append, cache_at, ids_of, owner, simulated, wait_ms};
use crate::storage::checkpoint::Checkpointer;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::cache::{CatchUpError, catch_up};
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{Answer, Entry, EntryHead, Head, LastWords, Log, LogError, Position, RowsPart};
use crate::storage::write_batch::{Row, Table};

/// A kind of call, for the choice of the server that executes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Head,
    Look,
    Rows,
    Tail,
    Checkpoint,
    Other,
}

/// A log that executes each call at the server that `server_of` returns, as an index of `servers`.
struct Spread<F> {
    servers: Vec<SimLog>,
    server_of: F,
    /// The sizes of the checkpoints in bytes.
    sizes: Arc<Mutex<Vec<usize>>>,
    /// Number of calls of `trim` that fail.
    failing_trims: u32,
}

impl<F: Fn(Call) -> usize> Spread<F> {
    fn over(servers: Vec<SimLog>, server_of: F) -> Spread<F> {
        Spread {
            servers,
            server_of,
            sizes: Arc::default(),
            failing_trims: 0,
        }
    }

    fn at(&mut self, call: Call) -> &mut SimLog {
        let at = (self.server_of)(call);
        &mut self.servers[at]
    }
}

impl<F: Fn(Call) -> usize + Send> Log for Spread<F> {
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool> {
        self.at(Call::Other).append(entry, behind)
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<EntryHead>> {
        self.at(Call::Look).look(seq)
    }

    fn newest(&mut self) -> Answer<'_, Position> {
        self.at(Call::Other).newest()
    }

    fn head(&mut self) -> Answer<'_, Option<Head>> {
        self.at(Call::Head).head()
    }

    fn owner(&mut self) -> Answer<'_, Option<String>> {
        self.at(Call::Other).owner()
    }

    fn confirm(&mut self) -> Answer<'_, bool> {
        self.at(Call::Other).confirm()
    }

    fn release(&mut self, epoch: u64) -> Answer<'_, ()> {
        self.at(Call::Other).release(epoch)
    }

    fn create(&mut self) -> Answer<'_, ()> {
        self.at(Call::Other).create()
    }

    fn raise<'a>(&'a mut self, owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>> {
        self.at(Call::Other).raise(owner, since, until)
    }

    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>> {
        self.at(Call::Tail).tail(after, last)
    }

    fn rows<'a>(&'a mut self, after: Option<(Table, &'a [u8])>) -> Answer<'a, RowsPart> {
        self.at(Call::Rows).rows(after)
    }

    fn checkpoint<'a>(&'a mut self, from: u64, last: &'a Position, words: &'a LastWords) -> Answer<'a, bool> {
        self.sizes.lock().push(words.bytes());
        self.at(Call::Checkpoint).checkpoint(from, last, words)
    }

    fn trim(&mut self, epoch: u64, after: u64, last: u64) -> Answer<'_, Option<u64>> {
        if self.failing_trims > 0 {
            self.failing_trims -= 1;
            return Box::pin(async { Err(LogError::Unknown("no answer".to_owned())) });
        }
        self.at(Call::Other).trim(epoch, after, last)
    }

    fn next_host(&mut self) {
        self.at(Call::Other).next_host();
    }

    fn remove(&mut self, epoch: u64) -> Answer<'_, ()> {
        self.at(Call::Other).remove(epoch)
    }
}

/// Returns the body of an entry with one row of this many bytes.
fn body(id: u64, bytes: usize) -> BodyWriter {
    let mut body = BodyWriter::with_capacity(bytes + 32);
    body.add(&Row {
        table: Table::Orders,
        key: id.to_string().as_bytes(),
        value: Some(&vec![7; bytes]),
    });
    body
}

/// Promotes a standby, while the old primary (the server 0) goes on without standbys. Returns the
/// index of the new primary, and the task that would end the old one.
async fn with_two_primaries(engine: &Arc<SimEngine>) -> (usize, JoinHandle<()>) {
    let failing = Arc::clone(engine);
    let failing = tokio::spawn(async move { failing.fail_over_within(true, 100, 600_000).await });
    wait_ms(500).await;
    engine.pause_standbys(false);
    let servers = &engine.inside().servers;
    let is_primary = |at: &usize| servers[*at].role == Role::Primary;
    (
        (1..servers.len()).find(is_primary).expect("a new primary"),
        failing,
    )
}

/// Takes the volume over at one server. Returns the writer and the position of its own entry.
async fn owner_at(engine: &Arc<SimEngine>, server: usize, since: u64) -> (LogWriter, Position) {
    let mut log = engine.log_at(server, VOLUME);
    match take_over(&mut log, "bob", since, false).await {
        Ok(Takeover::Owned { epoch, position }) => {
            (LogWriter::new(Box::new(log), VOLUME, epoch, position), position)
        }
        other => panic!("{other:?}"),
    }
}

/// Returns the ids of the orders in the rows of the volume at one server.
async fn ids_in_rows(engine: &Arc<SimEngine>, server: usize) -> BTreeSet<u64> {
    let (mut log, mut ids) = (engine.log_at(server, VOLUME), BTreeSet::new());
    let mut after = None::<(Table, Vec<u8>)>;
    loop {
        let after_row = after.as_ref().map(|(table, key)| (*table, &key[..]));
        let part = log.rows(after_row).await.unwrap();
        let Some((table, key, _)) = part.rows.last() else {
            break;
        };
        after = Some((*table, key.clone()));
        let keys = part
            .rows
            .iter()
            .map(|(_, key, _)| std::str::from_utf8(key).unwrap());
        ids.extend(keys.map(|key| key.parse::<u64>().unwrap()));
    }
    ids
}

/// The rows of an old primary lack a checkpoint of the new one. A copy that has these rows and the
/// position of the new primary would lack the entries of the checkpoint.
#[test]
fn a_copy_from_two_servers_is_complete_or_fails() {
    let calls = [Call::Head, Call::Look, Call::Rows, Call::Tail];
    for mask in 0..1_usize << calls.len() {
        let is_complete = Arc::new(Mutex::new(false));
        let outcome = Arc::clone(&is_complete);
        simulated(|engine| async move {
            let mut ada = owner(&engine, "ada", 1).await;
            for id in 1..=3 {
                ada.append(body(id, 9)).await.unwrap();
            }
            let (new, failing) = with_two_primaries(&engine).await;
            let (mut bob, _) = owner_at(&engine, new, 2).await;
            bob.append(body(10, 9)).await.unwrap();
            let last = bob.status().acknowledged();
            let mut checkpointer = Checkpointer::new(Box::new(engine.log_at(new, VOLUME)), bob.epoch());
            assert_eq!(checkpointer.pass(last).await.unwrap(), last + 1);
            assert!(ids_in_rows(&engine, 0).await.is_empty(), "the old primary");
            let server_of = move |call| {
                let at = calls.iter().position(|known| *known == call);
                usize::from(at.is_none_or(|at| mask & (1 << at) != 0))
            };
            let servers = vec![engine.log_at(0, VOLUME), engine.log_at(new, VOLUME)];
            let mut log = Spread::over(servers, server_of);
            let cache = cache_at("/a");
            match catch_up(&cache, &mut log, VOLUME, last, true).await {
                Ok(position) => {
                    assert_eq!(position.seq, last, "{mask:b}");
                    assert_eq!(ids_of(&cache), [1, 2, 3, 10].into(), "{mask:b}");
                    *outcome.lock() = true;
                }
                Err(CatchUpError::Log(_)) => {}
                Err(error) => panic!("{mask:b}: {error:?}"),
            }
            failing.abort();
        });
        let is_of_one_server = mask == (1 << calls.len()) - 1;
        assert!(
            !is_of_one_server || *is_complete.lock(),
            "a copy of the new primary failed"
        );
    }
}

/// Detects the mistake `engine-checkpoint-of-another-server`: the statement that completes a
/// checkpoint does not compare the entries with the log of its server.
#[test]
fn a_checkpoint_of_entries_that_another_server_has_changes_nothing() {
    simulated(|engine| async move {
        let mut ada = owner(&engine, "ada", 1).await;
        for id in 1..=3 {
            ada.append(body(id, 9)).await.unwrap();
        }
        // The wait of the next commit is cancelled. So the commit is visible at its server, and the
        // fail-over loses it.
        engine.pause_standbys(true);
        let appending = append(ada, 4);
        wait_ms(100).await;
        engine.cancel_waits();
        wait_ms(20).await;
        appending.abort();
        let (new, failing) = with_two_primaries(&engine).await;
        let (bob, own) = owner_at(&engine, new, 2).await;
        let lost = engine.log_at(0, VOLUME).look(own.seq).await.unwrap().unwrap();
        assert!(lost.epoch < own.epoch, "{lost:?}");
        let servers = || vec![engine.log_at(0, VOLUME), engine.log_at(new, VOLUME)];
        let mixed = Spread::over(servers(), |call| usize::from(call == Call::Checkpoint));
        let mut checkpointer = Checkpointer::new(Box::new(mixed), own.epoch);
        let pass = checkpointer.pass(own.seq).await;
        assert!(matches!(pass, Err(CatchUpError::Log(_))), "{pass:?}");
        assert!(ids_in_rows(&engine, new).await.is_empty());
        let mut checkpointer = Checkpointer::new(Box::new(Spread::over(servers(), |_| 1)), own.epoch);
        assert_eq!(checkpointer.pass(own.seq).await.unwrap(), own.seq + 1);
        assert_eq!(ids_in_rows(&engine, new).await, [1, 2, 3].into());
        drop(bob);
        failing.abort();
    });
}

#[test]
fn a_checkpoint_ends_before_an_entry_that_would_make_it_too_large() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        for (id, mib) in [(1, 5), (2, 5), (3, 20), (4, 0), (5, 2), (6, 2)] {
            writer.append(body(id, mib << 20)).await.unwrap();
        }
        let log = Spread::over(vec![engine.log(VOLUME)], |_| 0);
        let sizes = Arc::clone(&log.sizes);
        let acknowledged = writer.status().acknowledged();
        let passed = Checkpointer::new(Box::new(log), writer.epoch())
            .pass(acknowledged)
            .await;
        assert_eq!(passed.unwrap(), acknowledged + 1);
        let mib: Vec<usize> = sizes.lock().iter().map(|bytes| bytes >> 20).collect();
        assert_eq!(mib, [5, 5, 20, 4]);
        assert_eq!(ids_in_rows(&engine, 0).await, (1..=6).collect());
    });
}

/// The engine has no such volume, so each pass leaves all entries.
#[test]
fn a_checkpointer_pauses_longer_after_each_pass_that_leaves_entries() {
    simulated(|engine| async move {
        let position = Position {
            seq: 100_000,
            epoch: 7,
            ..Position::default()
        };
        let writer = LogWriter::new(Box::new(engine.log(VOLUME)), VOLUME, 7, position);
        let passes = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&passes);
        let log = Spread::over(vec![engine.log(VOLUME)], move |call| {
            *counted.lock() += usize::from(call == Call::Head);
            0
        });
        let checkpointer = Checkpointer::new(Box::new(log), 7);
        let status = Arc::clone(writer.status());
        let running = tokio::spawn(checkpointer.run(VOLUME.to_owned(), status));
        wait_ms(300_000).await;
        running.abort();
        let passes = *passes.lock();
        assert!((5..20).contains(&passes), "{passes}");
    });
}

#[test]
fn entries_that_were_not_trimmed_are_trimmed_by_the_next_checkpoint() {
    simulated(|engine| async move {
        let mut writer = owner(&engine, "ada", 1).await;
        for id in 1..=70 {
            writer.append(body(id, 9)).await.unwrap();
        }
        let mut log = Spread::over(vec![engine.log(VOLUME)], |_| 0);
        log.failing_trims = 1;
        let mut checkpointer = Checkpointer::new(Box::new(log), writer.epoch());
        let acknowledged = writer.status().acknowledged();
        checkpointer.pass(acknowledged).await.unwrap();
        wait_ms(60_000).await;
        assert!(checkpointer.pass(acknowledged).await.is_err());
        assert_eq!(engine.log(VOLUME).tail(0, 1).await.unwrap().len(), 1);
        checkpointer.pass(acknowledged).await.unwrap();
        // The last entry stays, because the next one is written behind it.
        let left = engine.log(VOLUME).tail(0, acknowledged).await.unwrap();
        let left: Vec<u64> = left.iter().map(|entry| entry.seq).collect();
        assert_eq!(left, [acknowledged]);
    });
}

#[test]
fn a_volume_that_an_old_primary_lacks_is_not_reported_as_missing() {
    simulated(|engine| async move {
        let (new, failing) = with_two_primaries(&engine).await;
        engine.log_at(new, VOLUME).create().await.unwrap();
        let old = take_over(&mut engine.log_at(0, VOLUME), "ada", 1, false).await;
        assert!(old.is_err(), "{old:?}");
        owner_at(&engine, new, 1).await;
        let none = take_over(&mut engine.log_at(new, "none"), "ada", 1, false).await;
        assert_eq!(none, Ok(Takeover::Missing));
        failing.abort();
    });
}
