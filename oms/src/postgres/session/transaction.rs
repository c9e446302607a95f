//! Transactions of several statements, and streamed reads of one snapshot.
//!
//! **Invariants**
//! - A transaction runs on one server, so all its statements read and change the rows of this
//!   server.
//! - Each statement of a transaction may take as long at the server as its caller waits. The role's
//!   `statement_timeout` is for short statements. So statements on many rows need another limit.
//! - If the client vanishes or is paused between two statements of a transaction, the server ends
//!   the transaction after `PAUSE_MAX`. So its locks do not delay another process for long.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Client;

use crate::postgres::session::{Param, ReadFault, Row, Session, SessionError, check_size, rows_of, typed};

/// Maximum duration of a streamed read. While the read runs, PostgreSQL removes no rows that were
/// deleted or replaced after its begin, in any table of the database. A copy of a volume is read in
/// parts of a few megabytes, each by a read of its own.
const STREAM_TIME_MAX: Duration = Duration::from_secs(60);

/// Maximum time for which a transaction may wait for its client between two statements. The client
/// sends the next statement at once, and the time in which a statement arrives is not counted. A
/// takeover waits for the row of an append or for the guard of a checkpoint, so this time is short.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The SQL text of a statement, and its parameters.
pub(crate) type Statement<'a> = (&'a str, &'a [Param<'a>]);

/// Returns the SQL that limits the statements and the pauses of the present transaction.
fn limits(statement: Duration, pause: Duration) -> String {
    format!(
        "SET LOCAL statement_timeout = {}; SET LOCAL idle_in_transaction_session_timeout = {}",
        statement.as_millis(),
        pause.as_millis()
    )
}

impl Session {
    /// Executes statements one after another in a transaction, and then `guard`. Commits and
    /// returns `true` if `guard` affects a row. Otherwise rolls back and returns `false`. `timeout`
    /// covers connecting and the whole transaction, and is the server's limit for each statement.
    ///
    /// Only one statement at a time is in memory in its encoded form. The row that `guard` changes
    /// is locked for the commit only, and not for the other statements.
    pub(crate) async fn guarded(
        &mut self,
        statements: &[Statement<'_>],
        guard: Statement<'_>,
        timeout: Duration,
    ) -> Result<bool, SessionError> {
        for (_, params) in statements.iter().chain([&guard]) {
            check_size(params)?;
        }
        let deadline = Instant::now() + timeout;
        let open = self.begin(deadline).await?;
        let client = &open.client;
        let work = async {
            let begin = format!("BEGIN; {}", limits(timeout, PAUSE_MAX));
            let begun = client.batch_execute(&begin).await;
            begun.map_err(ReadFault::InTransaction)?;
            let all = async {
                for statement in statements {
                    execute(client, *statement).await?;
                }
                execute(client, guard).await
            };
            match all.await {
                Ok(0) => end(client, "ROLLBACK").await.map(|()| false),
                Ok(_) => end(client, "COMMIT").await.map(|()| true),
                Err(error) => Err(rolled_back(client, error).await),
            }
        };
        let outcome = timeout_at(deadline, work).await;
        self.finish(open, outcome.map_err(|_| timeout))
    }

    /// Executes a read-only statement with the server's limit of `timeout`, in place of that of the
    /// role. Returns its rows, of at most the size that `query` permits. `timeout` also covers
    /// connecting and the answer.
    pub(crate) async fn long_query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        timeout: Duration,
    ) -> Result<Vec<Row>, SessionError> {
        check_size(params)?;
        let deadline = Instant::now() + timeout;
        let open = self.begin(deadline).await?;
        let client = &open.client;
        let begin = format!("BEGIN READ ONLY; {}", limits(timeout, PAUSE_MAX));
        let work = async {
            let begun = client.batch_execute(&begin).await;
            begun.map_err(ReadFault::InTransaction)?;
            match rows_of(client, sql, params).await {
                Ok(rows) => end(client, "COMMIT").await.map(|()| rows),
                Err(ReadFault::Postgres(error)) => Err(rolled_back(client, error).await),
                // `finish` closes the connection, and so ends the transaction.
                Err(other) => Err(other),
            }
        };
        let outcome = timeout_at(deadline, work).await;
        self.finish(open, outcome.map_err(|_| timeout))
    }

    /// Executes read-only statements in one snapshot of one server, and passes each row to `each`
    /// as it arrives, with the index of its statement. `timeout` limits the time to connect, and
    /// then each wait for a row or for the end. `STREAM_TIME_MAX` limits the whole read.
    pub(crate) async fn stream(
        &mut self,
        statements: &[Statement<'_>],
        timeout: Duration,
        mut each: impl FnMut(usize, Row) -> Result<(), SessionError> + Send,
    ) -> Result<(), SessionError> {
        for (_, params) in statements {
            check_size(params)?;
        }
        let open = self.begin(Instant::now() + timeout).await?;
        let client = &open.client;
        let end = Instant::now() + STREAM_TIME_MAX;
        let until = || end.min(Instant::now() + timeout);
        let late = |_| {
            ReadFault::Late(if Instant::now() >= end {
                STREAM_TIME_MAX
            } else {
                timeout
            })
        };
        let work = async {
            let begin = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; {}",
                limits(STREAM_TIME_MAX, PAUSE_MAX)
            );
            let begun = timeout_at(until(), client.batch_execute(&begin)).await;
            begun.map_err(late)??;
            for (at, (sql, params)) in statements.iter().enumerate() {
                let asked = client.query_typed_raw(sql, typed(params));
                let stream = timeout_at(until(), asked).await.map_err(late)??;
                let mut stream = pin!(stream);
                loop {
                    let next = timeout_at(until(), stream.try_next()).await;
                    let Some(row) = next.map_err(late)?? else {
                        break;
                    };
                    each(at, Row(row)).map_err(ReadFault::Ours)?;
                }
            }
            let ended = timeout_at(until(), client.batch_execute("COMMIT")).await;
            ended.map_err(late)??;
            Ok(())
        };
        let outcome = work.await;
        // If the stream ended early, the connection still has an open transaction and unread rows.
        // So the connection is closed.
        let has_ended = outcome.is_ok();
        let result = self.finish(open, Ok(outcome));
        if !has_ended {
            self.open = None;
        }
        result
    }
}

/// Ends a transaction by this statement.
async fn end(client: &Client, sql: &str) -> Result<(), ReadFault> {
    let ended = client.batch_execute(sql).await;
    ended.map_err(ReadFault::InTransaction)
}

/// Rolls a transaction back after the error of one of its statements. Returns the error.
async fn rolled_back(client: &Client, error: tokio_postgres::Error) -> ReadFault {
    match client.batch_execute("ROLLBACK").await {
        Ok(()) => ReadFault::Postgres(error),
        Err(_) => ReadFault::InTransaction(error),
    }
}

async fn execute(client: &Client, (sql, params): Statement<'_>) -> Result<u64, tokio_postgres::Error> {
    let typed: Vec<_> = typed(params).collect();
    client.execute_typed(sql, &typed).await
}
