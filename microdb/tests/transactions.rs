//! Tests of transactions: progress under contention, consistent reads, bounds, forbidden writes,
//! errors of bodies, and begun transactions. Also tests of the change feed, of snapshots and of
//! destructors at the end of a thread.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use microdb::{BATCH_BYTES_MAX, Db, Durability, Error, Options, Table, VALUE_BYTES_MAX};

fn open(durability: Durability) -> (tempfile::TempDir, Db, Table) {
    let folder = tempfile::tempdir().unwrap();
    let db = Options::new().durability(durability).open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    (folder, db, table)
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// Runs commits in a separate thread, as another user of the database would, and waits for its end.
fn beside(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(work);
    });
}

#[test]
fn a_hot_counter_of_32_threads_meets_no_conflict() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let (_folder, db, table) = open(durability);
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        db.transaction(|tx| {
                            let count = tx.get(&table, "hot")?.map_or(0, |count| number(&count));
                            tx.put(&table, "hot", (count + 1).to_le_bytes())
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(number(&table.get("hot").unwrap().unwrap()), 640);
    }
}

#[test]
fn a_transaction_makes_progress_beside_writers_that_never_pause() {
    let (_folder, db, table) = open(Durability::Buffered);
    let (done, written) = (Mutex::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !*done.lock().unwrap() {
                    let next = written.fetch_add(1, Ordering::Relaxed);
                    table.put("hot", next.to_le_bytes()).unwrap();
                }
            });
        }
        for _ in 0..50 {
            db.transaction(|tx| {
                let hot = tx.get(&table, "hot")?;
                // The body runs long enough for other writers to interfere, unless the transaction
                // has an exclusive turn.
                for _ in 0..2_000 {
                    std::hint::black_box(&hot);
                    std::hint::spin_loop();
                }
                tx.put(&table, "copy", hot.as_deref().unwrap_or_default())
            })
            .unwrap();
        }
        *done.lock().unwrap() = true;
    });
}

#[test]
fn a_conflict_in_the_last_try_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let db = Options::new().transaction_tries(1).open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    let result = db.transaction(|tx| {
        tx.get(&table, "k")?;
        beside(|| table.put("k", "changed").unwrap());
        tx.put(&table, "k", "never")
    });
    assert!(matches!(result, Err(Error::Conflict { tries: 1 })), "{result:?}");
    assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"changed"[..]));
}

#[test]
fn a_write_through_the_database_inside_a_body_is_refused_and_runs_the_body_once() {
    let (_folder, db, table) = open(Durability::Sync);
    table.put("k", "v").unwrap();
    let runs = AtomicU32::new(0);
    let check = |what: &str, write: &dyn Fn() -> microdb::Result<()>| {
        runs.store(0, Ordering::Relaxed);
        let result = db.transaction(|tx| {
            runs.fetch_add(1, Ordering::Relaxed);
            tx.get(&table, "k")?;
            tx.put(&table, "k", "by the transaction")?;
            write()
        });
        assert!(matches!(result, Err(Error::InTransaction)), "{what}: {result:?}");
        assert_eq!(runs.load(Ordering::Relaxed), 1, "{what}");
        assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"v"[..]), "{what}");
    };
    let swap = || table.compare_and_swap("k", Some("v"), Some("w")).map(|_| ());
    let batch = || {
        let mut batch = db.batch();
        batch.put(&table, "k", "w");
        batch.commit().map(|_| ())
    };
    check("put", &|| table.put("k", "w"));
    check("delete", &|| table.delete("k").map(|_| ()));
    check("swap", &swap);
    check("batch", &batch);
    check("transaction", &|| db.transaction(|tx| tx.put(&table, "k", "w")));
    check("clear", &|| table.clear());
    check("drop", &|| db.drop_table("t"));
    check("rename", &|| db.rename_table("t", "u"));
    check("new table", &|| db.table("new").map(|_| ()));
    check("compact", &|| db.compact().map(|_| ()));
    // After the body has ended, all these calls are permitted again.
    table.put("k", "w").unwrap();
}

#[test]
fn a_body_may_read_through_the_database_and_write_to_another_one() {
    let (_folder, db, table) = open(Durability::Sync);
    let (_other_folder, other, other_table) = open(Durability::Sync);
    table.put("k", "v").unwrap();
    db.transaction(|tx| {
        assert_eq!(db.table("t")?.iter().count(), 1);
        other_table.put("log", "entry")?;
        other.transaction(|inner| {
            inner.put(&other_table, "inner", "value")?;
            assert!(matches!(table.put("k", "w"), Err(Error::InTransaction)));
            Ok::<_, Error>(())
        })?;
        assert!(matches!(table.put("k", "w"), Err(Error::InTransaction)));
        tx.put(&table, "k", "by the transaction")
    })
    .unwrap();
    assert_eq!(
        table.get("k").unwrap().as_deref(),
        Some(&b"by the transaction"[..])
    );
    assert!(other_table.contains_key("inner").unwrap());
}

#[test]
fn a_body_that_panics_leaves_the_thread_outside_of_the_transaction() {
    let (_folder, db, table) = open(Durability::Sync);
    let body = || db.transaction(|_| -> microdb::Result<()> { panic!("on purpose") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err());
    table.put("k", "v").unwrap();
}

/// Sets the keys `a` and `b` in one batch, so that their values always add up to ten.
fn shift(db: &Db, table: &Table, units: u64) {
    let mut batch = db.batch();
    batch.put(table, "a", units.to_le_bytes());
    batch.put(table, "b", (10 - units).to_le_bytes());
    batch.commit().unwrap();
}

#[test]
fn a_read_after_another_commit_is_refused_if_an_earlier_read_is_outdated() {
    let (_folder, db, table) = open(Durability::Sync);
    shift(&db, &table, 3);
    let mut runs = Vec::new();
    db.transaction(|tx| {
        let a = number(&tx.get(&table, "a")?.unwrap());
        if runs.is_empty() {
            beside(|| shift(&db, &table, 7));
        }
        let b = tx.get(&table, "b").map(|b| number(&b.unwrap()));
        runs.push((a, b.as_ref().ok().copied()));
        // The body ignores the error of the read, but the engine repeats the run in spite of that.
        tx.put(&table, "seen", b.unwrap_or(99).to_le_bytes())
    })
    .unwrap();
    assert_eq!(runs, [(3, None), (7, Some(3))]);
    assert_eq!(number(&table.get("seen").unwrap().unwrap()), 3);
}

#[test]
fn a_read_after_a_commit_of_other_keys_succeeds() {
    let (_folder, db, table) = open(Durability::Sync);
    shift(&db, &table, 3);
    let mut runs = 0;
    let sum = db.transaction(|tx| {
        runs += 1;
        let a = number(&tx.get(&table, "a")?.unwrap());
        beside(|| table.put("another", "key").unwrap());
        let b = number(&tx.get(&table, "b")?.unwrap());
        Ok::<_, Error>(a + b)
    });
    assert_eq!((sum.unwrap(), runs), (10, 1));
}

#[test]
fn a_run_with_many_reads_beside_many_commits_sees_one_moment() {
    let (_folder, db, table) = open(Durability::Buffered);
    for key in 0..300_u32 {
        table.put(key.to_le_bytes(), "v").unwrap();
    }
    shift(&db, &table, 3);
    let mut runs = 0;
    let sums = db.transaction(|tx| {
        runs += 1;
        for key in 0..300_u32 {
            assert!(tx.get(&table, key.to_le_bytes())?.is_some());
            table_beside(&table);
        }
        // After many reads beside many commits, the run reads from a snapshot. So `a` and `b` are
        // consistent in spite of the commit between their reads.
        let a = number(&tx.get(&table, "a")?.unwrap());
        beside(|| shift(&db, &table, a + 1));
        let b = number(&tx.get(&table, "b")?.unwrap());
        Ok::<_, Error>(a + b)
    });
    assert_eq!((sums.unwrap(), runs), (10, 1));
    // A run in a snapshot may also write. If a key that it read has changed since the snapshot, the
    // checks of its commit fail, and the run is repeated.
    let mut runs = 0;
    db.transaction(|tx| {
        runs += 1;
        for key in 0..300_u32 {
            assert!(tx.get(&table, key.to_le_bytes())?.is_some());
            table_beside(&table);
        }
        let a = number(&tx.get(&table, "a")?.unwrap());
        if runs == 1 {
            beside(|| shift(&db, &table, a + 1));
        }
        tx.put(&table, "copy of a", a.to_le_bytes())
    })
    .unwrap();
    assert_eq!(runs, 2);
    assert_eq!(table.get("copy of a").unwrap(), table.get("a").unwrap());
}

/// Commits a change of a key that no transaction reads.
fn table_beside(table: &Table) {
    beside(|| table.put("unread", "value").unwrap());
}

#[test]
fn reads_and_writes_of_a_transaction_are_bounded() {
    let (_folder, db, table) = open(Durability::Sync);
    let too_large = |result: microdb::Result<()>| assert!(matches!(result, Err(Error::TooLarge { .. })));
    too_large(db.transaction(|tx| {
        for key in 0..2_000_u32 {
            let key: Vec<u8> = key.to_le_bytes().into_iter().cycle().take(60_000).collect();
            tx.get(&table, key)?;
        }
        Ok(())
    }));
    let value = vec![1; VALUE_BYTES_MAX];
    too_large(db.transaction(|tx| {
        let puts = (BATCH_BYTES_MAX / VALUE_BYTES_MAX) as u32;
        (0..puts).try_for_each(|key| tx.put(&table, key.to_le_bytes(), &value))?;
        let refused = tx.put(&table, "one more", &value);
        assert!(refused.is_err(), "at the put, before memory grows");
        refused
    }));
    // Only the last put of a key counts for the limit of a transaction's size.
    db.transaction(|tx| (0..8).try_for_each(|_| tx.put(&table, "k", &value)))
        .unwrap();
}

/// Error type of the calling program, to which errors of the engine are converted.
#[derive(PartialEq, Debug)]
enum Refused {
    TooFew { left: u64 },
    Database(String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Database(error.to_string())
    }
}

#[test]
fn an_error_of_the_body_is_returned_unchanged_and_one_of_the_engine_is_converted() {
    let (_folder, db, table) = open(Durability::Sync);
    table.put("k", 3_u64.to_le_bytes()).unwrap();
    let take = |units: u64| {
        db.transaction(|tx| {
            let left = number(&tx.get(&table, "k")?.unwrap());
            // This put is discarded if the body returns an error.
            tx.put(&table, "k", left.saturating_sub(units).to_le_bytes())?;
            if units > left {
                return Err(Refused::TooFew { left });
            }
            Ok(left - units)
        })
    };
    assert_eq!(take(2), Ok(1));
    assert_eq!(take(2), Err(Refused::TooFew { left: 1 }));
    assert_eq!(number(&table.get("k").unwrap().unwrap()), 1);
    // The body returns an error, and the key that it has read changes before the body ends.
    let folder = tempfile::tempdir().unwrap();
    let db = Options::new().transaction_tries(2).open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    let mut runs = 0;
    let result: Result<(), Refused> = db.transaction(|tx| {
        runs += 1;
        tx.get(&table, "k")?;
        if runs == 1 {
            beside(|| table.put("k", "changed").unwrap());
        }
        Err(Refused::TooFew { left: runs })
    });
    // All reads of the body are of one moment, so its error was right at that moment. The engine
    // returns this error. It neither repeats the run nor reports a conflict.
    assert_eq!((result, runs), (Err(Refused::TooFew { left: 1 }), 1));
    let value = vec![0; VALUE_BYTES_MAX + 1];
    let result: Result<(), Refused> = db.transaction(|tx| Ok(tx.put(&table, "k", &value)?));
    assert!(matches!(result, Err(Refused::Database(reason)) if reason.contains("exceeds the limit")));
}

#[test]
fn a_body_that_fails_after_an_outdated_read_runs_again() {
    let (_folder, db, table) = open(Durability::Sync);
    shift(&db, &table, 3);
    for returns_conflict in [true, false] {
        // The second read of the first run gets a conflict. The error with which the body then ends
        // follows from that conflict alone, so the engine must not return it.
        let mut runs = 0;
        let result: Result<u64, Refused> = db.transaction(|tx| {
            runs += 1;
            let a = number(&tx.get(&table, "a")?.unwrap());
            if runs == 1 {
                beside(|| shift(&db, &table, a + 1));
            }
            match tx.get(&table, "b") {
                Err(error) if returns_conflict => Err(error.into()),
                Err(_) => Err(Refused::TooFew { left: 99 }),
                Ok(b) => Ok(a + number(&b.unwrap())),
            }
        });
        assert_eq!((result, runs), (Ok(10), 2), "{returns_conflict}");
    }
    // If the last run is outdated too, the result is a conflict and not the error of the body.
    let folder = tempfile::tempdir().unwrap();
    let db = Options::new().transaction_tries(1).open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    let result: Result<(), Refused> = db.transaction(|tx| {
        tx.get(&table, "a")?;
        beside(|| shift(&db, &table, 1));
        assert!(matches!(tx.get(&table, "b"), Err(Error::Conflict { .. })));
        Err(Refused::TooFew { left: 99 })
    });
    let conflict = Refused::from(Error::Conflict { tries: 1 });
    assert_eq!(result, Err(conflict));
}

#[test]
fn begun_transaction_commits_once_or_reports_the_conflict() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let (_folder, db, table) = open(durability);
        shift(&db, &table, 3);
        let before = db.sequence();
        let mut tx = db.begin();
        let a = number(&tx.get(&table, "a").unwrap().unwrap());
        tx.put(&table, "sum", (a + 1).to_le_bytes()).unwrap();
        assert!(table.get("sum").unwrap().is_none(), "invisible before the commit");
        // The same thread may commit beside its open transaction. There is no conflict, because the
        // transaction has not read the changed key.
        table.put("another", "key").unwrap();
        assert_eq!(tx.commit().unwrap(), before + 2);
        assert_eq!(number(&table.get("sum").unwrap().unwrap()), 4);
        // A commit fails if a key that was read has changed, or has been created since the read.
        for key in ["a", "new"] {
            let mut tx = db.begin();
            let _ = tx.get(&table, key).unwrap();
            tx.put(&table, "sum", "never").unwrap();
            table.put(key, 9_u64.to_le_bytes()).unwrap();
            let result = tx.commit();
            assert!(
                matches!(result, Err(Error::Conflict { tries: 1 })),
                "{key}: {result:?}"
            );
        }
        // A later read detects the conflict. After that, the transaction can never commit.
        let mut tx = db.begin();
        let _ = tx.get(&table, "a").unwrap();
        shift(&db, &table, 4);
        assert!(matches!(tx.get(&table, "b"), Err(Error::Conflict { .. })));
        tx.put(&table, "sum", "never").unwrap();
        assert!(matches!(tx.commit(), Err(Error::Conflict { .. })));
        assert_eq!(number(&table.get("sum").unwrap().unwrap()), 4);
    }
}

#[test]
fn begun_transaction_without_writes_needs_no_commit_and_a_dropped_one_writes_nothing() {
    let (folder, db, table) = open(Durability::Sync);
    shift(&db, &table, 3);
    let sequence = db.sequence();
    let mut tx = db.begin();
    let a = number(&tx.get(&table, "a").unwrap().unwrap());
    // The values read are outdated. A transaction without writes commits nevertheless.
    shift(&db, &table, 7);
    assert_eq!((a, tx.commit().unwrap()), (3, sequence.next()));
    let mut tx = db.begin();
    tx.put(&table, "k", "v").unwrap();
    drop(tx);
    assert!(table.get("k").unwrap().is_none());
    assert_eq!(db.sequence(), sequence.next());
    // A transaction without writes also commits on a read-only database, and one with writes is
    // refused.
    let path = db.path().to_owned();
    db.close().unwrap();
    let db = Options::new().read_only(true).open(&path).unwrap();
    let table = db.table("t").unwrap();
    let mut tx = db.begin();
    assert!(tx.get(&table, "a").unwrap().is_some());
    tx.commit().unwrap();
    let mut tx = db.begin();
    tx.put(&table, "k", "v").unwrap();
    assert!(matches!(tx.commit(), Err(Error::ReadOnly)));
    drop(folder);
}

#[test]
fn begun_transaction_cannot_commit_inside_the_body_of_another_one() {
    let (_folder, db, table) = open(Durability::Sync);
    let result = db.transaction(|_| {
        let mut inner = db.begin();
        inner.put(&table, "k", "v")?;
        inner.commit()
    });
    assert!(matches!(result, Err(Error::InTransaction)), "{result:?}");
    assert!(table.is_empty());
}

struct AtExit(Db, Table);

impl Drop for AtExit {
    fn drop(&mut self) {
        let Self(db, table) = self;
        assert_eq!(table.get("before").unwrap().as_deref(), Some(&b"the end"[..]));
        table.put("put", "at exit").unwrap();
        table.delete("before").unwrap();
        assert!(
            table
                .compare_and_swap("swap", None::<&str>, Some("at exit"))
                .unwrap()
        );
        let mut batch = db.batch();
        batch.put(table, "batch", "at exit");
        batch.commit().unwrap();
        db.transaction(|tx| tx.put(table, "transaction", "at exit"))
            .unwrap();
        assert_eq!(db.snapshot().iter(table).unwrap().count(), 4);
    }
}

thread_local! {
    static AT_EXIT: RefCell<Option<AtExit>> = const { RefCell::new(None) };
}

#[test]
fn the_destructor_of_a_thread_local_value_may_read_and_write() {
    let (_folder, db, table) = open(Durability::Sync);
    let thread = std::thread::spawn({
        let (db, table) = (db.clone(), table.clone());
        move || {
            // This value is set before the engine's thread-local values, so it is destroyed after
            // them.
            AT_EXIT.with(|at_exit| *at_exit.borrow_mut() = Some(AtExit(db, table.clone())));
            table.put("before", "the end").unwrap();
        }
    });
    thread.join().unwrap();
    for key in ["put", "swap", "batch", "transaction"] {
        assert_eq!(table.get(key).unwrap().as_deref(), Some(&b"at exit"[..]), "{key}");
    }
    drop(db);
}

#[test]
fn changes_since_a_sequence_that_no_commit_has_is_an_error_that_names_the_last_one() {
    let (_folder, db, table) = open(Durability::Sync);
    table.put("k", "v").unwrap();
    let last = db.sequence();
    assert_eq!(db.changes_since(last).unwrap().count(), 0);
    let error = db.changes_since(last + 1).unwrap_err();
    assert!(matches!(error, Error::FeedAhead { asked, last: named } if (asked, named) == (last + 1, last)));
    assert!(error.to_string().contains(&last.to_string()), "{error}");
}

#[test]
fn a_snapshot_that_sees_a_batch_sees_it_in_tables_made_just_before() {
    let (_folder, db, table) = open(Durability::Buffered);
    let made: Mutex<Vec<Table>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1..=100_u64 {
                let new = db.table(&format!("new {count}")).unwrap();
                let mut batch = db.batch();
                batch.put(&table, "count", count.to_le_bytes());
                batch.put(&new, "k", count.to_le_bytes());
                made.lock().unwrap().push(new);
                batch.commit().unwrap();
            }
        });
        let mut count = 0;
        while count < 100 {
            let snapshot = db.snapshot();
            count = snapshot
                .get(&table, "count")
                .unwrap()
                .map_or(0, |count| number(&count));
            if count > 0 {
                let new = made.lock().unwrap()[count as usize - 1].clone();
                let seen = snapshot.get(&new, "k").unwrap();
                assert_eq!(seen.map(|seen| number(&seen)), Some(count));
            }
        }
    });
}

#[test]
fn a_body_that_waits_for_a_compaction_loses_its_turn_to_it() {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new().durability(Durability::Buffered).background(false);
    let options = options.segment_bytes_first(4096).segment_bytes_max(4096);
    let db = options.open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    for round in 0..200_u8 {
        table.put([round % 100], [round; 100]).unwrap();
    }
    let (compact, begin) = std::sync::mpsc::channel();
    let (compacted, is_compacted) = std::sync::mpsc::channel();
    let mut runs = 0;
    std::thread::scope(|scope| {
        let db = &db;
        scope.spawn(move || {
            begin.recv_timeout(PATIENCE).unwrap();
            db.compact().unwrap();
            compacted.send(()).unwrap();
        });
        let body = |tx: &mut microdb::Transaction<'_>| {
            runs += 1;
            let value = tx.get(&table, [1])?;
            match runs {
                // In the first eight runs, another commit makes the read outdated. Then the
                // buffered transaction gets an exclusive turn.
                1..=8 => beside(|| table.put([1], "changed").unwrap()),
                // The ninth run has the turn and waits for a compaction. The compaction must not
                // wait for the end of the turn.
                9 => {
                    compact.send(()).unwrap();
                    is_compacted.recv_timeout(PATIENCE).unwrap();
                }
                _ => {}
            }
            tx.put(&table, [2], value.unwrap())
        };
        db.transaction(body).unwrap();
    });
    assert!(runs >= 9);
    assert_eq!(table.get([2]).unwrap().as_deref(), Some(&b"changed"[..]));
}
