//! Tests of checkpoints, copies and large entries of a volume's log, against a real engine (see
//! `log_tests`).

use crate::cluster::engine::log_tests::{PATIENCE, TIMEOUT, body, engine, log, owner};
use crate::postgres::Session;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::cache::{Cache, catch_up};
use crate::storage::log::engine::EngineLog;
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{EngineRow, Log, LogError};
use crate::storage::write_batch::{Row, Table};

#[tokio::test]
#[ignore = "needs an engine"]
async fn large_entries_are_read_checkpointed_and_removed_in_parts() {
    const ENTRIES: u64 = 20;
    const STORES: u64 = 61;
    let url = engine().await;
    let mut reader = log(&url);
    let taken = take_over(&mut reader, "ada", 1, true).await.unwrap();
    let Takeover::Owned { epoch, position } = taken else {
        panic!("{taken:?}");
    };
    let mut writer = LogWriter::new(Box::new(log(&url)), "ada", epoch, position);
    let stock = vec![7; 4 << 20];
    for store in 0..ENTRIES {
        let mut body = BodyWriter::with_capacity(stock.len());
        body.add(&Row {
            table: Table::Stock,
            key: &(store as u32).to_be_bytes(),
            value: Some(&stock),
        });
        writer.append(body).await.unwrap();
    }
    let (mut at, last) = (0, position.seq + ENTRIES);
    while at < last {
        let entries = reader.tail(at, last).await.unwrap();
        let bytes: usize = entries.iter().map(|entry| entry.body.len()).sum();
        assert!(entries.len() == 1 || bytes <= 8 << 20, "{bytes}");
        for entry in entries {
            assert_eq!(entry.seq, at + 1);
            at += 1;
        }
    }
    // This entry and the one before have more bytes than the parameters of a statement may have.
    let mut body = BodyWriter::with_capacity(62 << 20);
    for store in ENTRIES..ENTRIES + STORES {
        body.add(&Row {
            table: Table::Stock,
            key: &(store as u32).to_be_bytes(),
            value: Some(&stock[..1 << 20]),
        });
    }
    let last = writer.append(body).await.unwrap().position;
    let head = reader.look(last.seq).await.unwrap().unwrap();
    assert_eq!((head.bytes.len(), head.position()), (17, Ok(last)));
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)));
    assert_eq!(checkpointer.pass(last.seq).await.unwrap(), last.seq + 1);
    let (mut removed, mut parts) = (0, 0);
    while let Some(seq) = reader.trim(removed, last.seq).await.unwrap() {
        (removed, parts) = (seq, parts + 1);
    }
    assert_eq!(removed, last.seq - 1);
    assert!(parts > 1, "80 MiB were removed by one statement");
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open_in(folder.path()).unwrap();
    let copied = catch_up(&cache, &mut reader, "ada", last.seq, true).await;
    assert_eq!(copied.unwrap(), last);
    assert_eq!(cache.rows(), ENTRIES + STORES);
}

/// A checkpoint that is made while a copy reads the rows changes neither these rows nor the
/// position of the copy.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn the_rows_of_a_copy_and_its_position_are_of_one_moment() {
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    writer.append(body(1)).await.unwrap();
    let first = writer.append(body(2)).await.unwrap().position;
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)));
    assert_eq!(checkpointer.pass(first.seq).await.unwrap(), first.seq + 1);
    let last = writer.append(body(3)).await.unwrap().position;
    let (mut reader, runtime) = (log(&url), tokio::runtime::Handle::current());
    let mut keys = Vec::new();
    let mut take = |row: EngineRow<'_>| {
        if keys.is_empty() {
            let pass = checkpointer.pass(last.seq);
            let kept_from = tokio::task::block_in_place(|| runtime.block_on(pass)).unwrap();
            assert_eq!(kept_from, last.seq + 1);
        }
        keys.push(row.key.to_vec());
        true
    };
    let head = reader.rows(&mut take).await.unwrap().unwrap();
    assert_eq!((keys.len(), head.position()), (2, Ok(first)));
    let head = reader.rows(&mut |_| true).await.unwrap().unwrap();
    assert_eq!(head.position(), Ok(last));
    let mut missing = EngineLog::new(url, "bob", "log");
    let none = missing.rows(&mut |_| true).await;
    assert!(matches!(none, Err(LogError::Away(_))), "{none:?}");
}

/// Waits until a session of the database waits for a row that another one has locked.
async fn lock_is_awaited(session: &mut Session) {
    let sql = "SELECT 1 FROM pg_stat_activity \
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = async {
        while session.query(sql, &[], TIMEOUT).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_takeover_does_not_wait_for_the_rows_of_a_checkpoint() {
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    writer.append(body(1)).await.unwrap();
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)));
    let acknowledged = writer.status().acknowledged();
    checkpointer.pass(acknowledged).await.unwrap();
    let last = writer.append(body(1)).await.unwrap().position;
    // The next checkpoint waits for the row, until its `lock_timeout` of 2 s.
    let mut holder = Session::new(url.clone(), "test");
    let hold = "BEGIN; UPDATE imt_row SET value = value";
    holder.batch(hold, TIMEOUT).await.unwrap();
    let waiting = tokio::spawn(async move { (checkpointer.pass(last.seq).await, checkpointer) });
    lock_is_awaited(&mut Session::new(url.clone(), "test")).await;
    let taken = take_over(&mut log(&url), "bob", 2, false).await.unwrap();
    assert!(matches!(taken, Takeover::Owned { .. }), "{taken:?}");
    holder.batch("COMMIT", TIMEOUT).await.unwrap();
    // The checkpoint has ended with a result or after its `lock_timeout`. It can be repeated.
    let (_, mut checkpointer) = waiting.await.unwrap();
    assert_eq!(checkpointer.pass(last.seq).await.unwrap(), last.seq + 1);
}
