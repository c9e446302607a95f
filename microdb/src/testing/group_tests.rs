//! Tests of commits in one group: conflicts with clears and drops, turns, and lost turns.
//!
//! A transaction that fails its checks may run again in a *turn*: inside its group, before the
//! sync, while nothing else is committed. A run that takes too long loses its turn, and another
//! thread continues the group.
//!
//! A test holds the writer lock of the log, so that the group of a first commit waits. During this
//! wait, the test starts the other commits one by one, and they join the next group.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::directory::Location;
use crate::engine::lock;
use crate::{Db, Error, Options, Table};

/// Time limit for a step of a test, longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        std::thread::yield_now();
    }
}

fn open(path: &std::path::Path) -> Db {
    Options::new().background(false).open(path).unwrap()
}

type Step<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Runs each of `steps` in a thread. Each step makes one commit. These commits form one group, in
/// the order of `steps`, behind the group of a put to `other`.
fn in_one_group(db: &Db, other: &Table, steps: Vec<Step<'_>>) {
    std::thread::scope(|scope| {
        let writer = lock(&db.engine.writer);
        scope.spawn(|| other.put("first", "of all").unwrap());
        wait_for("the first group", || lock(&db.engine.core).in_flight);
        for (index, step) in steps.into_iter().enumerate() {
            scope.spawn(step);
            wait_for("joining", || lock(&db.engine.queue).waiting() == index + 1);
        }
        drop(writer);
    });
}

struct Fixture {
    folder: tempfile::TempDir,
    db: Db,
    table: Table,
    other: Table,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path());
    let (table, other) = (db.table("t").unwrap(), db.table("other").unwrap());
    table.put("k", "old").unwrap();
    Fixture {
        folder,
        db,
        table,
        other,
    }
}

#[test]
fn a_swap_behind_a_clear_of_its_group_finds_the_key_absent() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| table.clear().unwrap()),
            Box::new(|| assert!(!table.compare_and_swap("k", Some("old"), Some("new")).unwrap())),
        ],
    );
    assert_eq!(table.get("k").unwrap(), None);
    assert!(table.is_empty());
}

#[test]
fn a_swap_behind_a_put_behind_a_clear_of_its_group_fails_and_the_put_stays() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| table.clear().unwrap()),
            Box::new(|| table.put("k", "put").unwrap()),
            Box::new(|| assert!(!table.compare_and_swap("k", Some("old"), Some("new")).unwrap())),
        ],
    );
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"put"[..]));
}

#[test]
fn a_swap_of_an_absent_key_fails_behind_a_put_of_its_group() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| table.put("new", "first").unwrap()),
            Box::new(|| {
                assert!(
                    !table
                        .compare_and_swap("new", None::<&str>, Some("second"))
                        .unwrap()
                );
            }),
        ],
    );
    assert_eq!(table.get("new").unwrap().as_deref(), Some(&b"first"[..]));
}

#[test]
fn a_transaction_behind_a_clear_of_its_group_runs_again_and_reads_absence() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    let seen = std::sync::Mutex::new(Vec::new());
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| table.clear().unwrap()),
            Box::new(|| {
                db.transaction(|tx| {
                    let read = tx.get(&table, "k")?.map(|value| value.to_vec());
                    seen.lock().unwrap().push(read);
                    tx.put(&other, "seen", "by the transaction")
                })
                .unwrap();
            }),
        ],
    );
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen, [Some(b"old".to_vec()), None]);
}

#[test]
fn conflicting_transactions_commit_in_order_with_one_sync() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    let runs = AtomicU32::new(0);
    let count = || {
        let add = |tx: &mut crate::Transaction<'_>| {
            runs.fetch_add(1, Ordering::Relaxed);
            let count = tx.get(&table, "count")?.map_or(0, |count| count[0]);
            tx.put(&table, "count", [count + 1])?;
            Ok::<_, Error>(count + 1)
        };
        db.transaction(add).unwrap()
    };
    let groups = || db.engine.counters.groups.get();
    let before = groups();
    let results = std::sync::Mutex::new(Vec::new());
    let step = || -> Step<'_> {
        Box::new(|| {
            let counted = count();
            results.lock().unwrap().push(counted);
        })
    };
    in_one_group(&db, &other, (0..8).map(|_| step()).collect());
    let mut results = results.into_inner().unwrap();
    results.sort_unstable();
    assert_eq!(results, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(table.get("count").unwrap().as_deref(), Some(&[8][..]));
    // The first put and the transactions form two groups. There may be more groups: if the
    // scheduler delays a transaction's body for more than 1 ms, the transaction gets no turn and
    // commits in a later group.
    assert!(groups() - before >= 2);
    assert!(
        runs.load(Ordering::Relaxed) >= 15,
        "each but the first runs twice"
    );
}

#[test]
fn a_commit_behind_a_drop_of_its_group_is_refused() {
    let Fixture {
        folder,
        db,
        table,
        other,
    } = fixture();
    let refused = |result: crate::Result<()>| assert!(matches!(result, Err(Error::TableDropped { .. })));
    let mut batch = db.batch();
    batch.put(&other, "half", "of a batch");
    batch.put(&table, "k", "other half");
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| db.drop_table("t").unwrap()),
            Box::new(|| refused(table.put("gone", vec![7; 100_000]))),
            Box::new(|| refused(table.compare_and_swap("k", Some("old"), Some("new")).map(|_| ()))),
            Box::new(|| refused(db.transaction(|tx| tx.put(&table, "k", "new")))),
            Box::new(|| refused(batch.commit().map(|_| ()))),
            Box::new(|| {
                let kept = table.put_with("gone", vec![7; 100_000], crate::Durability::Buffered);
                refused(kept);
            }),
        ],
    );
    assert_eq!(other.get("half").unwrap(), None, "a batch is all or nothing");
    let live = || db.stats().live_bytes;
    assert!(live() < 1_000, "{}", live());
    drop((table, other));
    db.close().unwrap();
    let db = open(folder.path());
    assert!(db.get_table("t").is_none());
    assert!(db.stats().live_bytes < 1_000, "{}", db.stats().live_bytes);
}

#[test]
fn a_transaction_that_read_a_table_does_not_commit_behind_its_drop() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| db.drop_table("t").unwrap()),
            Box::new(|| {
                let result = db.transaction(|tx| {
                    tx.get(&table, "k")?;
                    tx.put(&other, "seen", "in time")
                });
                assert!(matches!(result, Err(Error::TableDropped { .. })), "{result:?}");
            }),
        ],
    );
    assert_eq!(other.get("seen").unwrap(), None);
}

#[test]
fn an_open_counts_bytes_of_unnamed_tables_as_dead() {
    let Fixture {
        folder,
        db,
        table,
        other,
    } = fixture();
    let segment = lock(&db.engine.core).published.position.segment;
    // The usage counts get live bytes of table 77, which does not exist. Databases of an earlier
    // version may have such counts, because that version acknowledged commits to a dropped table.
    let at = Location::new(segment, 4096);
    lock(&db.engine.core).usages.add_live(at, 77, 1 << 20);
    db.checkpoint().unwrap();
    assert!(db.stats().live_bytes > 1 << 20);
    drop((table, other));
    db.close().unwrap();
    assert!(open(folder.path()).stats().live_bytes < 1_000);
}

#[test]
fn a_body_that_waits_for_a_writer_loses_its_turn_and_commits_afterwards() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    let (runs, (ask, asked)) = (AtomicU32::new(0), channel());
    let (done, is_done) = channel();
    std::thread::scope(|scope| {
        let (other_table, another) = (&other, other.clone());
        scope.spawn(move || {
            // The transaction has its turn now, so this commit waits until the turn ends.
            asked.recv_timeout(PATIENCE).unwrap();
            another.put("asked", "for").unwrap();
            done.send(()).unwrap();
        });
        let (db, table, runs) = (&db, &table, &runs);
        let transaction: Step<'_> = Box::new(move || {
            let body = |tx: &mut crate::Transaction<'_>| {
                let value = tx.get(table, "k")?;
                if runs.fetch_add(1, Ordering::Relaxed) == 1 {
                    ask.send(()).unwrap();
                    is_done.recv_timeout(PATIENCE).unwrap();
                }
                tx.put(other_table, "copy", value.unwrap())
            };
            db.transaction(body).unwrap();
        });
        let put: Step<'_> = Box::new(|| table.put("k", "changed").unwrap());
        in_one_group(db, other_table, vec![put, transaction]);
    });
    assert!(runs.load(Ordering::Relaxed) >= 2);
    assert_eq!(other.get("copy").unwrap().as_deref(), Some(&b"changed"[..]));
}

#[test]
fn a_panic_in_a_turn_harms_no_other_member_of_the_group() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    let first = AtomicBool::new(true);
    in_one_group(
        &db,
        &other,
        vec![
            Box::new(|| table.put("k", "changed").unwrap()),
            Box::new(|| {
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    db.transaction(|tx| {
                        tx.get(&table, "k")?;
                        assert!(first.swap(false, Ordering::Relaxed), "on purpose");
                        tx.put(&table, "k", "never")
                    })
                }));
                assert!(result.is_err());
            }),
            Box::new(|| other.put("member", "of the group").unwrap()),
        ],
    );
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"changed"[..]));
    assert_eq!(
        other.get("member").unwrap().as_deref(),
        Some(&b"of the group"[..])
    );
    table.put("k", "after").unwrap();
    db.transaction(|tx| tx.put(&table, "k", "a transaction too"))
        .unwrap();
}

#[test]
fn a_run_in_a_lost_turn_is_acknowledged_after_the_commits_that_it_read() {
    let Fixture {
        db,
        table,
        other,
        folder: _folder,
    } = fixture();
    let (ran, has_run) = channel();
    let (write, may_write) = channel();
    std::thread::scope(|scope| {
        let (db, table, other) = (&db, &table, &other);
        let runs = AtomicU32::new(0);
        let put: Step<'_> = Box::new(|| table.put("k", "changed").unwrap());
        // In its last run, the transaction makes no write. Its first run writes, because a
        // transaction without writes would not join the group.
        let reader: Step<'_> = Box::new(move || {
            let seen = db.transaction(|tx| {
                let value = tx.get(table, "k")?.map(|value| value.to_vec());
                match runs.fetch_add(1, Ordering::Relaxed) {
                    0 => tx.put(other, "joins", "the group")?,
                    1 => {
                        // This run is in the turn. When `may_write` receives, the other thread
                        // holds the writer lock of the log, so nothing becomes durable until that
                        // thread releases the lock.
                        ran.send(()).unwrap();
                        may_write.recv_timeout(PATIENCE).unwrap();
                    }
                    _ => {}
                }
                Ok::<_, Error>(value)
            });
            let visible = table.get("k").unwrap().map(|value| value.to_vec());
            assert_eq!(
                seen.unwrap(),
                visible,
                "seen by the transaction, and not yet by others"
            );
        });
        scope.spawn(move || {
            has_run.recv_timeout(PATIENCE).unwrap();
            let writer = lock(&db.engine.writer);
            // The turn is lost once another thread has taken over the group. That thread then waits
            // for the writer lock.
            wait_for("the loss of the turn", || !lock(&db.engine.queue).is_paused());
            write.send(()).unwrap();
            // Gives the transaction time to return, which it must not do before the commits are
            // durable.
            for _ in 0..1_000 {
                std::thread::yield_now();
            }
            drop(writer);
        });
        in_one_group(db, other, vec![put, reader]);
    });
}

/// The frames of a group are at the end of the log before its sync. If the sync fails, a frame that
/// is published behind them would make the refused commits visible.
#[test]
fn a_compaction_that_waited_for_a_refused_group_publishes_nothing() {
    let Fixture {
        db,
        table,
        other: _other,
        folder: _folder,
    } = fixture();
    let before = db.engine.sequence();
    std::thread::scope(|scope| {
        let writer = lock(&db.engine.writer);
        let put = scope.spawn(|| table.put("k", "refused"));
        wait_for("the group", || lock(&db.engine.core).in_flight);
        let compacted = scope.spawn(|| db.compact());
        wait_for("the compaction", || lock(&db.engine.core).quiet_waiters > 0);
        let failed = Error::io("cannot sync", std::path::Path::new("log"));
        let _ = db.engine.poisoned(failed(std::io::ErrorKind::Other.into()));
        drop(writer);
        assert!(matches!(put.join().unwrap(), Err(Error::Poisoned { .. })));
        assert!(matches!(compacted.join().unwrap(), Err(Error::Poisoned { .. })));
    });
    assert_eq!(db.engine.sequence(), before);
}

#[test]
fn a_compaction_that_waited_while_the_database_was_closed_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path());
    db.table("t").unwrap().put("k", "value").unwrap();
    let end = lock(&db.engine.core).end;
    std::thread::scope(|scope| {
        let compacting = lock(&db.engine.compacting);
        let compacted = scope.spawn(|| db.compact());
        wait_for("the compaction", || db.engine.space.is_held());
        // A close that gets the lock before the compaction has this effect.
        db.engine.closed.store(true, Ordering::Release);
        drop(compacting);
        assert!(matches!(compacted.join().unwrap(), Err(Error::Closed)));
    });
    assert_eq!(lock(&db.engine.core).end, end);
}
