//! Tests of checkpoints, copies and large entries of a volume's log, against a real engine (see
//! `log_tests`).

use crate::cluster::engine::log_tests::{PATIENCE, TIMEOUT, body, counts, engine, log, owner};
use crate::postgres::Session;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::cache::{Cache, catch_up};
use crate::storage::log::engine::EngineLog;
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{Log, LogError};
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
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)), writer.epoch());
    assert_eq!(checkpointer.pass(last.seq).await.unwrap(), last.seq + 1);
    let (mut removed, mut parts) = (0, 0);
    while let Some(seq) = reader.trim(epoch, removed, last.seq).await.unwrap() {
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

/// Checkpoints between two parts of the rows change rows of both parts.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn the_rows_are_read_in_parts_each_with_its_position() {
    const ROWS: u64 = 10_000;
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    let mut many = BodyWriter::with_capacity(1 << 20);
    for id in 0..ROWS {
        many.add(&Row {
            table: Table::Orders,
            key: format!("{id:05}").as_bytes(),
            value: Some(b"row"),
        });
    }
    let first = writer.append(many).await.unwrap().position;
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)), writer.epoch());
    assert_eq!(checkpointer.pass(first.seq).await.unwrap(), first.seq + 1);
    let (mut reader, mut after, mut keys, mut heads) = (log(&url), None, Vec::new(), Vec::new());
    loop {
        let row = after
            .as_ref()
            .map(|(table, key): &(Table, Vec<u8>)| (*table, &key[..]));
        let part = reader.rows(row).await.unwrap();
        heads.push(part.last.unwrap().position().unwrap());
        let Some((table, key, _)) = part.rows.last() else {
            break;
        };
        after = Some((*table, key.clone()));
        keys.extend(part.rows.into_iter().map(|(_, key, _)| key));
        // The key is after those of the first part.
        let position = writer.append(body(99_999)).await.unwrap().position;
        checkpointer.pass(position.seq).await.unwrap();
    }
    assert!(keys.is_sorted() && keys.len() as u64 == ROWS + 1);
    let seqs: Vec<u64> = heads.iter().map(|head| head.seq).collect();
    let expected: Vec<u64> = (first.seq..).take(seqs.len()).collect();
    assert!(seqs.len() > 3 && seqs == expected, "{seqs:?}");
    assert_eq!(heads[0], first);
    let mut missing = EngineLog::new(url, "bob", "log");
    let none = missing.rows(None).await;
    assert!(matches!(none, Err(LogError::Away(_))), "{none:?}");
}

/// Waits until a session of the database waits for a row that another one has locked.
async fn lock_is_awaited(session: &mut Session) {
    lock_is_awaited_by(session, "true").await;
}

/// Waits until a session of the database waits for a lock, and `condition` holds for its row in
/// `pg_stat_activity`.
async fn lock_is_awaited_by(session: &mut Session, condition: &str) {
    let sql = format!(
        "SELECT 1 FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock' AND {condition}"
    );
    let waiting = async {
        while session.query(&sql, &[], TIMEOUT).await.unwrap().is_empty() {
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
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)), writer.epoch());
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

/// A checkpoint that has written a new row and changed `kept_from` is committed while a removal
/// waits for it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_removal_leaves_no_rows_of_a_checkpoint_in_flight() {
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    let last = writer.append(body(1)).await.unwrap().position;
    let (mut remover, epoch) = (log(&url), writer.epoch());
    let mut checkpoint = Session::new(url.clone(), "test");
    let sql = format!(
        "BEGIN; INSERT INTO imt_row VALUES ('ada', 0, 'k', 'v'); \
         UPDATE imt_volume SET kept_from = {} WHERE volume = 'ada'",
        last.seq + 1
    );
    checkpoint.batch(&sql, TIMEOUT).await.unwrap();
    let removing = tokio::spawn(async move { (remover.remove(epoch).await, remover) });
    let mut session = Session::new(url.clone(), "test");
    lock_is_awaited(&mut session).await;
    checkpoint.batch("COMMIT", TIMEOUT).await.unwrap();
    let (removed, mut remover) = removing.await.unwrap();
    // The removal may have given up before the commit. It can be repeated.
    if removed.is_err() {
        remover.remove(epoch).await.unwrap();
    }
    assert_eq!(counts(&mut session).await, [0; 3]);
}

/// A removal that was not completed leaves a marked volume. Its next owner begins with an empty
/// one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_volume_that_is_being_removed_counts_as_missing_and_returns_empty() {
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    for id in 1..=3 {
        writer.append(body(id)).await.unwrap();
    }
    let mut checkpointer = Checkpointer::new(Box::new(log(&url)), writer.epoch());
    let acknowledged = writer.status().acknowledged();
    checkpointer.pass(acknowledged - 1).await.unwrap();
    let mut session = Session::new(url.clone(), "test");
    let mark = "UPDATE imt_volume SET kept_from = 0";
    session.batch(mark, TIMEOUT).await.unwrap();
    let mut reader = log(&url);
    assert_eq!(reader.head().await.unwrap(), None);
    assert!(reader.rows(None).await.is_err());
    assert!(writer.append(body(4)).await.is_err());
    assert_eq!(checkpointer.pass(acknowledged).await.unwrap(), 0);
    let taken = take_over(&mut reader, "bob", 2, false).await;
    assert_eq!(taken, Ok(Takeover::Missing));
    let present = owner(&url, 2).await;
    let own = present.status().acknowledged();
    assert_eq!((own, counts(&mut session).await), (1, [1, 1, 0]));
    // Rows and entries without a volume are removed before a volume of the name is created.
    reader.remove(present.epoch()).await.unwrap();
    let left = "INSERT INTO imt_row VALUES ('ada', 0, 'k', 'v'), ('bob', 0, 'k', 'v'); \
        INSERT INTO imt_log VALUES ('ada', 500, 7, 'x'), ('bob', 500, 7, 'x')";
    session.batch(left, TIMEOUT).await.unwrap();
    let present = owner(&url, 3).await;
    let own = present.status().acknowledged();
    assert_eq!((own, counts(&mut session).await), (1, [1, 2, 1]));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn a_volume_of_many_rows_and_entries_is_removed_in_parts() {
    let url = engine().await;
    let writer = owner(&url, 1).await;
    let mut session = Session::new(url.clone(), "test");
    let many = "INSERT INTO imt_row SELECT v, n % 3, int4send(n), 'v'::bytea \
            FROM generate_series(1, 10000) n, (VALUES ('ada'), ('bob')) AS volumes (v); \
        INSERT INTO imt_log SELECT v, n, 7, 'x'::bytea \
            FROM generate_series(2, 3000) n, (VALUES ('ada'), ('bob')) AS volumes (v)";
    session.batch(many, TIMEOUT).await.unwrap();
    log(&url).remove(writer.epoch()).await.unwrap();
    assert_eq!(counts(&mut session).await, [0, 2_999, 10_000]);
}

/// A statement that the role's limit cancels is repeated with a longer limit.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn entries_that_take_longer_than_a_statement_of_the_role_are_read() {
    let url = engine().await;
    let mut writer = owner(&url, 1).await;
    let last = writer.append(body(1)).await.unwrap().position;
    let (mut holder, mut session) = (
        Session::new(url.clone(), "test"),
        Session::new(url.clone(), "test"),
    );
    let limits = "DO $$ BEGIN \
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET lock_timeout = 0', \
            current_user, current_database()); \
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET statement_timeout = 500', \
            current_user, current_database()); \
        END $$";
    session.batch(limits, TIMEOUT).await.unwrap();
    let lock = "BEGIN; LOCK TABLE imt_log IN ACCESS EXCLUSIVE MODE";
    holder.batch(lock, TIMEOUT).await.unwrap();
    let mut reader = log(&url);
    let reading = tokio::spawn(async move { reader.tail(0, last.seq).await });
    // Only the repetition is a statement in a transaction that began earlier.
    lock_is_awaited_by(&mut session, "xact_start < query_start").await;
    holder.batch("COMMIT", TIMEOUT).await.unwrap();
    let entries = reading.await.unwrap().unwrap();
    assert_eq!(entries.last().map(|entry| entry.seq), Some(last.seq));
}
