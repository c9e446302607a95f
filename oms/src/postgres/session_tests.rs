//! Tests of statement results. The tests that are ignored by default need a real server, and the
//! environment variable `IMT_ENGINE` must be its URL.

mod encrypted;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::postgres::{EngineUrl, Param, Session, SessionError};
use crate::runtime;

const TIMEOUT: Duration = Duration::from_secs(10);

fn url() -> EngineUrl {
    let text = std::env::var("IMT_ENGINE").expect("IMT_ENGINE is the URL of an engine");
    text.parse().unwrap()
}

fn session() -> Session {
    Session::new(Arc::new(url()), "test")
}

async fn one(session: &mut Session) -> i32 {
    let rows = session.query("SELECT 7::int", &[], TIMEOUT).await.unwrap();
    rows[0].int4(0).unwrap()
}

#[tokio::test]
#[ignore = "needs an engine"]
async fn a_refused_statement_keeps_the_connection_and_an_unknown_one_does_not() {
    let mut session = session();
    assert_eq!(one(&mut session).await, 7);
    let refused = session.query("SELECT 1 / 0", &[], TIMEOUT).await.unwrap_err();
    assert!(matches!(refused, SessionError::Refused { code, .. } if code == "22012"));
    assert_eq!((one(&mut session).await, session.connections()), (7, 1));
    // If a wait for standbys is cancelled, PostgreSQL sends a warning and reports success. The
    // commit can then be lost with the primary, so a warning must make the result unknown.
    let warning = "DO $$ BEGIN RAISE WARNING 'canceling wait'; END $$";
    let unknown = session.execute(warning, &[], TIMEOUT).await.unwrap_err();
    assert!(matches!(&unknown, SessionError::Unknown { reason } if reason.contains("canceling wait")));
    assert_eq!((one(&mut session).await, session.connections()), (7, 2));
    let harmless = "DO $$ BEGIN RAISE NOTICE 'only a remark'; END $$";
    session.execute(harmless, &[], TIMEOUT).await.unwrap();
    let late = session
        .query("SELECT pg_sleep(30)", &[], Duration::from_millis(50))
        .await;
    assert!(matches!(late, Err(SessionError::Unknown { .. })), "{late:?}");
    assert_eq!((one(&mut session).await, session.connections()), (7, 3));
    let end = session
        .query("SELECT pg_terminate_backend(pg_backend_pid())", &[], TIMEOUT)
        .await;
    assert!(matches!(end, Err(SessionError::Unknown { .. })), "{end:?}");
    assert_eq!((one(&mut session).await, session.connections()), (7, 4));
}

#[tokio::test]
#[ignore = "needs an engine"]
async fn a_call_that_is_dropped_takes_its_connection_with_it() {
    let mut session = session();
    one(&mut session).await;
    let slow = session.query("SELECT 8::int FROM pg_sleep(30)", &[], TIMEOUT);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), slow)
            .await
            .is_err()
    );
    assert_eq!((one(&mut session).await, session.connections()), (7, 2));
}

/// Returns the first column of the only row of a statement.
async fn number(session: &mut Session, sql: &str) -> i64 {
    let rows = session.query(sql, &[], TIMEOUT).await.unwrap();
    rows[0].int8(0).unwrap()
}

#[tokio::test]
#[ignore = "needs an engine"]
async fn a_transaction_with_a_guard_is_committed_only_if_the_guard_affects_a_row() {
    let mut session = session();
    let table = format!("imt_test_{:016x}", runtime::random_u64());
    let create = format!("CREATE TABLE {table} (id bigint PRIMARY KEY)");
    session.batch(&create, TIMEOUT).await.unwrap();
    let insert = format!("INSERT INTO {table} VALUES ($1)");
    let guard = format!("UPDATE {table} SET id = $2 WHERE id = $1");
    let count = format!("SELECT count(*) FROM {table}");
    let (one, two) = ([Param::Int8(1)], [Param::Int8(2)]);
    let both = [(insert.as_str(), &one[..]), (insert.as_str(), &two[..])];
    for (from, is_committed) in [(7, false), (2, true)] {
        let params = [Param::Int8(from), Param::Int8(3)];
        let committed = session.guarded(&both, (&guard, &params[..]), TIMEOUT).await;
        assert_eq!(committed, Ok(is_committed));
        assert_eq!(number(&mut session, &count).await, 2 * i64::from(is_committed));
    }
    let params = [Param::Int8(1), Param::Int8(9)];
    let refused = session.guarded(&both, (&guard, &params[..]), TIMEOUT).await;
    assert!(matches!(refused, Err(SessionError::Refused { code, .. }) if code == "23505"));
    assert_eq!(
        (number(&mut session, &count).await, session.connections()),
        (2, 1)
    );
    let drop = format!("DROP TABLE {table}");
    session.batch(&drop, TIMEOUT).await.unwrap();
}

/// The role of a cluster has a `statement_timeout` that its transactions must not be bound by.
#[tokio::test]
#[ignore = "needs an engine"]
async fn a_transaction_has_the_limit_of_its_caller_and_not_that_of_the_role() {
    let mut session = session();
    session
        .batch("SET statement_timeout = 1000", TIMEOUT)
        .await
        .unwrap();
    let slow = "SELECT 1::bigint FROM pg_sleep(1.5)";
    let refused = session.query(slow, &[], TIMEOUT).await.unwrap_err();
    assert!(matches!(refused, SessionError::Refused { code, .. } if code == "57014"));
    let none: &[Param<'_>] = &[];
    let statements = [(slow, none)];
    let run = session.guarded(&statements, (slow, none), TIMEOUT).await;
    assert_eq!(run, Ok(true));
    assert_eq!(session.long_query(slow, &[], TIMEOUT).await.unwrap().len(), 1);
    session.stream(&statements, TIMEOUT, |_, _| Ok(())).await.unwrap();
    let limit = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'";
    assert_eq!(
        (number(&mut session, limit).await, session.connections()),
        (1_000, 1)
    );
}

/// The server ends a transaction of a paused client soon, so that its locks delay nobody long.
#[tokio::test]
#[ignore = "needs an engine"]
async fn a_transaction_of_a_paused_client_ends_soon() {
    let mut session = session();
    let short = "SELECT 1::bigint FROM pg_settings WHERE setting::bigint BETWEEN 1 AND 2000 \
        AND name = 'idle_in_transaction_session_timeout'";
    let none: &[Param<'_>] = &[];
    assert_eq!(session.guarded(&[], (short, none), TIMEOUT).await, Ok(true));
    assert_eq!(session.long_query(short, &[], TIMEOUT).await.unwrap().len(), 1);
}

#[tokio::test]
#[ignore = "needs an engine"]
async fn a_session_recovers_from_a_transaction_that_was_not_ended() {
    let mut session = session();
    // PostgreSQL accepts BEGIN, and refuses a limit of this size.
    let large = Duration::from_secs(10_000_000);
    let sql = "SELECT 1::bigint";
    let none: &[Param<'_>] = &[];
    for connections in [2, 3] {
        let refused = match connections {
            2 => session.guarded(&[], (sql, none), large).await.map(drop),
            _ => session.long_query(sql, &[], large).await.map(drop),
        };
        assert!(matches!(&refused, Err(SessionError::Refused { code, .. }) if code == "22023"));
        assert_eq!((one(&mut session).await, session.connections()), (7, connections));
    }
    let refused = session.batch("BEGIN; SELECT 1 / 0", TIMEOUT).await;
    assert!(matches!(&refused, Err(SessionError::Refused { code, .. }) if code == "22012"));
    let refused = session.query(sql, &[], TIMEOUT).await;
    assert!(matches!(&refused, Err(SessionError::Refused { code, .. }) if code == "25P02"));
    assert_eq!((one(&mut session).await, session.connections()), (7, 4));
}

/// Another session commits between two statements of a stream. The second statement reads the
/// snapshot of the first one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an engine"]
async fn the_statements_of_a_stream_read_one_snapshot() {
    let (mut session, mut other) = (session(), session());
    let table = format!("imt_test_{:016x}", runtime::random_u64());
    let create = format!("CREATE TABLE {table} (id bigint PRIMARY KEY)");
    other.batch(&create, TIMEOUT).await.unwrap();
    let (count, insert) = (
        format!("SELECT count(*) FROM {table}"),
        format!("INSERT INTO {table} VALUES (1)"),
    );
    let none: &[Param<'_>] = &[];
    let statements = [(count.as_str(), none), (count.as_str(), none)];
    let (mut counts, handle) = (Vec::new(), tokio::runtime::Handle::current());
    let each = |at, row: crate::postgres::Row| {
        if at == 0 {
            let inserted = other.batch(&insert, TIMEOUT);
            tokio::task::block_in_place(|| handle.block_on(inserted))?;
        }
        counts.push(row.int8(0)?);
        Ok(())
    };
    session.stream(&statements, TIMEOUT, each).await.unwrap();
    assert_eq!(counts, [0, 0]);
    assert_eq!(number(&mut session, &count).await, 1);
    let drop = format!("DROP TABLE {table}");
    session.batch(&drop, TIMEOUT).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an engine"]
async fn rows_are_streamed_and_a_stream_may_end_early() {
    let mut session = session();
    let sql = "SELECT n FROM generate_series(1::bigint, $1) n";
    let mut sum = 0;
    let each = |at, row: crate::postgres::Row| {
        assert_eq!(at, usize::from(sum >= 6));
        sum += row.int8(0)?;
        Ok(())
    };
    let (few, many) = ([Param::Int8(3)], [Param::Int8(100_000)]);
    let both = [(sql, &few[..]), (sql, &many[..])];
    let streamed = session.stream(&both, TIMEOUT, each).await;
    assert_eq!((streamed, sum), (Ok(()), 6 + 5_000_050_000));
    let wrong = session
        .stream(&both, TIMEOUT, |_, row| row.text(0).map(drop))
        .await;
    assert!(matches!(wrong, Err(SessionError::Invalid { .. })), "{wrong:?}");
    assert_eq!((one(&mut session).await, session.connections()), (7, 2));
}

#[tokio::test]
async fn an_engine_that_nobody_runs_is_away_with_the_fault_of_each_host() {
    // The listener is closed at once, so connections to its port are refused.
    let port = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let (first, second) = (port(), port());
    let url = format!("postgres://a@127.0.0.1:{first},127.0.0.1:{second}/b");
    let mut session = Session::new(Arc::new(url.parse().unwrap()), "test");
    let error = session.query("SELECT 1", &[], TIMEOUT).await.unwrap_err();
    let SessionError::Away { reason } = error else {
        panic!("{error}");
    };
    for port in [first, second] {
        assert!(reason.contains(&format!("127.0.0.1:{port}: ")), "{reason}");
    }
}

/// Accepts one connection and answers its login and its first statement. All further statements
/// get no answer.
async fn answer_one_statement(listener: tokio::net::TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = [0; 1_024];
    // One read gets a whole message of the client: the message is small, and the client sends
    // nothing more before its answer.
    assert!(stream.read(&mut read).await.unwrap() > 0);
    // Login accepted ("R"), and ready for a statement ("Z").
    stream
        .write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
        .await
        .unwrap();
    assert!(stream.read(&mut read).await.unwrap() > 0);
    // Statement completed ("C"), and ready for the next one.
    let completed = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
    stream.write_all(completed).await.unwrap();
    while stream.read(&mut read).await.is_ok_and(|bytes| bytes > 0) {}
}

#[tokio::test]
async fn a_stream_without_an_answer_names_its_host_and_the_next_host_follows() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = listener.local_addr().unwrap();
    let server = tokio::spawn(answer_one_statement(listener));
    let url = format!("postgres://a@{first},127.0.0.1:1/b");
    let mut session = Session::to_any(Arc::new(url.parse().unwrap()), "test");
    // This statement opens the connection, so the short timeout of the stream begins after it.
    session.batch("SELECT 1", TIMEOUT).await.unwrap();
    assert_eq!(session.host(), first.to_string());
    let none: &[Param<'_>] = &[];
    let statements = [("SELECT 1", none)];
    let late = session.stream(&statements, Duration::from_millis(1), |_, _| Ok(()));
    let reason = format!("{first}: no answer within 1 ms");
    assert_eq!(late.await, Err(SessionError::Unknown { reason }));
    assert_eq!(session.host(), "127.0.0.1:1");
    // The session has closed its connection, so the server's task ends.
    server.await.unwrap();
}

/// Detects the mistake `engine-silent-host-kept`: an old primary without standbys never answers a
/// commit, and the session keeps its connection.
#[tokio::test]
async fn a_commit_without_an_answer_closes_its_connection_and_the_next_host_follows() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = listener.local_addr().unwrap();
    let server = tokio::spawn(answer_one_statement(listener));
    let url = format!("postgres://a@{first},127.0.0.1:1/b");
    let mut session = Session::to_any(Arc::new(url.parse().unwrap()), "test");
    session.batch("SELECT 1", TIMEOUT).await.unwrap();
    let commit = "INSERT INTO entries VALUES (1)";
    let late = session.execute(commit, &[], Duration::from_millis(1)).await;
    let reason = format!("{first}: no answer within 1 ms");
    assert_eq!(late, Err(SessionError::Unknown { reason }));
    assert_eq!(session.host(), "127.0.0.1:1");
    // The session has closed its connection, so the server's task ends.
    server.await.unwrap();
}

#[tokio::test]
async fn a_call_with_too_many_bytes_is_not_sent() {
    let mut session = Session::new(Arc::new("postgres://a@127.0.0.1:1/b".parse().unwrap()), "test");
    let bytes = vec![0_u8; 65 * 1_024 * 1_024];
    let error = session
        .execute("SELECT $1", &[Param::Bytes(&bytes)], TIMEOUT)
        .await;
    assert!(matches!(error, Err(SessionError::Invalid { .. })), "{error:?}");
    assert_eq!(session.connections(), 0);
}
