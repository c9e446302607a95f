//! One connection to an engine, and the result of each statement.
//!
//! **Invariants**
//! - A session has at most one connection, and one statement or transaction in flight. If the
//!   caller drops the future of a call, the connection is closed. So a late answer is never taken
//!   for the answer to the next call.
//! - A session connects only to a server that accepts writes, except for sessions of
//!   `Session::to_any`. After a fault of the connection or the server during a call, the next
//!   attempt to connect begins with the next host of the URL.
//! - The timeout of a call covers connecting, sending and the answer. For `stream`, it covers
//!   connecting, and then each wait for a row. Such a timeout is necessary, because PostgreSQL's
//!   timeouts do not end a wait for standbys.
//! - Two calls use the same connection if `connections` did not change between them. They then use
//!   the same server, unless a connection pooler in transaction mode is between.
//! - A success after a warning is an unknown result, because PostgreSQL reports a cancelled wait
//!   for standbys by a warning and a success.
//! - A connection on which a transaction may still be open is closed after the call. The server
//!   would refuse all further statements on it.
//!
//! Transactions are in `transaction`.
//!
//! Deliberately absent: cancel requests, prepared statements, and repetition. Only the caller knows
//! which statements can be repeated safely.

mod transaction;

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::{ChannelBinding, Config, SslMode, TargetSessionAttrs};
use tokio_postgres::error::Severity;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Socket};

use crate::error::with_causes;
use crate::postgres::tls;
use crate::postgres::url::{Encryption, EngineUrl, Host};
use crate::runtime;
use crate::runtime::seeded::seeded;

/// Longest time to open a TCP connection to a host. With several hosts in the URL, the limit
/// includes TLS and login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time without traffic after which the kernel sends keepalive probes on a connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Maximum total size in bytes of the parameters of one statement. The largest commit, that of a
/// stock, has up to 60 MB.
const PARAMS_BYTES_MAX: usize = 64 * 1_024 * 1_024;
/// Maximum total size in bytes of the rows that one `query` returns. Larger results must use
/// `stream`.
const ROWS_BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// The reason why a statement failed. The variants differ in the possible effect of the statement.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The engine refused the statement, so it has no effect.
    #[error("the engine refused a statement: {message} (SQLSTATE {code})")]
    Refused {
        /// The SQLSTATE code of the error.
        code: String,
        /// The engine's error message.
        message: String,
    },
    /// No suitable server can be used now: no connection to a host can be opened, or the server is
    /// a standby, starting or stopping. The statement was not sent, or it has no effect.
    #[error("the engine cannot be reached: {reason}")]
    Away {
        /// The faults of the hosts, as text.
        reason: String,
    },
    /// The statement was sent, but its result is unknown. It may have no effect, a durable effect,
    /// or an effect that a fail-over can lose.
    #[error("the result of a statement is not known: {reason}")]
    Unknown {
        /// The fault as text.
        reason: String,
    },
    /// The engine answered with data in an unexpected form, or the call exceeds a size limit. If
    /// the parameters were too large, the statement was not sent. Otherwise it may have an effect.
    #[error("the engine's data cannot be used: {reason}")]
    Invalid {
        /// The fault as text.
        reason: String,
    },
}

/// A parameter of a statement, with its SQL type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Param<'a> {
    Text(&'a str),
    OptText(Option<&'a str>),
    Int4(i32),
    Int8(i64),
    Bytes(&'a [u8]),
    Int2s(&'a [i16]),
    ByteArrays(&'a [&'a [u8]]),
}

impl Param<'_> {
    fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Param::Text(value) => (value, Type::TEXT),
            Param::OptText(value) => (value, Type::TEXT),
            Param::Int4(value) => (value, Type::INT4),
            Param::Int8(value) => (value, Type::INT8),
            Param::Bytes(value) => (value, Type::BYTEA),
            Param::Int2s(values) => (values, Type::INT2_ARRAY),
            Param::ByteArrays(values) => (values, Type::BYTEA_ARRAY),
        }
    }

    fn size(&self) -> usize {
        match self {
            Param::Int4(_) | Param::Int8(_) => 8,
            Param::Text(value) => value.len(),
            Param::OptText(value) => value.map_or(0, str::len),
            Param::Bytes(value) => value.len(),
            Param::Int2s(values) => values.len() * 6,
            Param::ByteArrays(values) => values.iter().map(|value| value.len() + 4).sum(),
        }
    }
}

/// A row of a result. Its methods return the value of a column by index.
#[derive(Debug)]
pub(crate) struct Row(tokio_postgres::Row);

impl Row {
    fn get<'a, T: FromSql<'a>>(&'a self, column: usize) -> Result<T, SessionError> {
        self.0.try_get(column).map_err(|error| SessionError::Invalid {
            reason: format!("column {column} of a result: {}", with_causes(&error)),
        })
    }

    pub(crate) fn bool(&self, column: usize) -> Result<bool, SessionError> {
        self.get(column)
    }

    pub(crate) fn text(&self, column: usize) -> Result<&str, SessionError> {
        self.get(column)
    }

    /// Returns a text, or `None` for NULL.
    pub(crate) fn opt_text(&self, column: usize) -> Result<Option<&str>, SessionError> {
        self.get(column)
    }

    pub(crate) fn int2(&self, column: usize) -> Result<i16, SessionError> {
        self.get(column)
    }

    pub(crate) fn int4(&self, column: usize) -> Result<i32, SessionError> {
        self.get(column)
    }

    pub(crate) fn int8(&self, column: usize) -> Result<i64, SessionError> {
        self.get(column)
    }

    /// Returns a number, or `None` for NULL.
    pub(crate) fn opt_int8(&self, column: usize) -> Result<Option<i64>, SessionError> {
        self.get(column)
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<&[u8], SessionError> {
        self.get(column)
    }

    /// Returns bytes, or `None` for NULL.
    pub(crate) fn opt_bytes(&self, column: usize) -> Result<Option<&[u8]>, SessionError> {
        self.get(column)
    }
}

/// A session with an engine. It has at most one connection, which is opened on demand and again
/// after a fault.
pub(crate) struct Session {
    url: Arc<EngineUrl>,
    purpose: &'static str,
    servers: TargetSessionAttrs,
    /// Index of the host of the present connection, or of the next attempt to connect.
    host: usize,
    open: Option<Open>,
    connections: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} to {})", self.purpose, self.url)
    }
}

/// The warnings that one connection has received.
#[derive(Default)]
struct Warnings {
    count: AtomicU64,
    last: Mutex<String>,
}

/// An open connection with its state.
struct Open {
    client: Client,
    connection: JoinHandle<()>,
    warnings: Arc<Warnings>,
    /// Number of warnings on this connection before the present call, to detect new warnings.
    warned: u64,
    /// `true` while a call is in flight, so that an answer is expected.
    is_busy: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        // When the client is dropped, the task of an idle connection ends the session and stops.
        // The task of a busy connection would first wait for the answer, so it is aborted.
        if self.is_busy {
            self.connection.abort();
        }
    }
}

/// The reason why a call returned no result.
enum ReadFault {
    Postgres(tokio_postgres::Error),
    /// An error after which a transaction may still be open on the connection.
    InTransaction(tokio_postgres::Error),
    /// The answer or its next row did not arrive within this time.
    Late(Duration),
    Ours(SessionError),
}

impl From<tokio_postgres::Error> for ReadFault {
    fn from(error: tokio_postgres::Error) -> ReadFault {
        ReadFault::Postgres(error)
    }
}

impl Session {
    /// Creates a session without a connection. `purpose` becomes part of the application name that
    /// `pg_stat_activity` shows.
    pub(crate) fn new(url: Arc<EngineUrl>, purpose: &'static str) -> Session {
        Session {
            url,
            purpose,
            servers: TargetSessionAttrs::ReadWrite,
            host: 0,
            open: None,
            connections: 0,
        }
    }

    /// Creates a session that may connect to any server, including standbys.
    pub(crate) fn to_any(url: Arc<EngineUrl>, purpose: &'static str) -> Session {
        Session {
            servers: TargetSessionAttrs::Any,
            ..Session::new(url, purpose)
        }
    }

    /// Returns the number of connections opened so far. If the number changes during a call, the
    /// engine may have failed over in the meantime.
    pub(crate) fn connections(&self) -> u64 {
        self.connections
    }

    /// Returns the host of the present connection, or of the next attempt to connect.
    pub(crate) fn host(&self) -> String {
        self.url
            .hosts
            .get(self.host)
            .map_or_else(String::new, Host::to_string)
    }

    /// Closes the connection. The next call opens another one, beginning with the next host.
    pub(crate) fn disconnect(&mut self) {
        self.open = None;
        self.next_host();
    }

    fn next_host(&mut self) {
        self.host = (self.host + 1) % self.url.hosts.len().max(1);
    }

    /// Executes a statement and returns its rows. `timeout` covers connecting, sending and the
    /// answer.
    pub(crate) async fn query(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        timeout: Duration,
    ) -> Result<Vec<Row>, SessionError> {
        check_size(params)?;
        let deadline = Instant::now() + timeout;
        let open = self.begin(deadline).await?;
        let outcome = timeout_at(deadline, rows_of(&open.client, sql, params)).await;
        self.finish(open, outcome.map_err(|_| timeout))
    }

    /// Executes a statement and returns the number of rows that it affected.
    pub(crate) async fn execute(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
        timeout: Duration,
    ) -> Result<u64, SessionError> {
        check_size(params)?;
        let deadline = Instant::now() + timeout;
        let open = self.begin(deadline).await?;
        let typed: Vec<_> = typed(params).collect();
        let outcome = timeout_at(deadline, open.client.execute_typed(sql, &typed)).await;
        let outcome = outcome.map(|result| result.map_err(ReadFault::Postgres));
        self.finish(open, outcome.map_err(|_| timeout))
    }

    /// Executes several statements without parameters, separated by semicolons, as one transaction.
    pub(crate) async fn batch(&mut self, sql: &str, timeout: Duration) -> Result<(), SessionError> {
        let deadline = Instant::now() + timeout;
        let open = self.begin(deadline).await?;
        let outcome = timeout_at(deadline, open.client.batch_execute(sql)).await;
        let outcome = outcome.map(|result| result.map_err(ReadFault::Postgres));
        self.finish(open, outcome.map_err(|_| timeout))
    }

    /// Takes the open connection out of the session, or opens a new connection. While a call runs,
    /// its future owns the connection, so dropping the future closes the connection.
    async fn begin(&mut self, deadline: Instant) -> Result<Open, SessionError> {
        let open = self.open.take().filter(|open| !open.client.is_closed());
        let mut open = match open {
            Some(open) => open,
            None => self.connect(deadline).await?,
        };
        open.warned = open.warnings.count.load(Ordering::Acquire);
        open.is_busy = true;
        Ok(open)
    }

    /// Classifies the outcome of a call. The connection is kept only after a success or a refusal
    /// without new warnings, and only if no transaction is open on it.
    fn finish<T>(
        &mut self,
        mut open: Open,
        outcome: Result<Result<T, ReadFault>, Duration>,
    ) -> Result<T, SessionError> {
        let host = self.host();
        let has_warned = open.warnings.count.load(Ordering::Acquire) != open.warned;
        let is_open = matches!(&outcome, Ok(Err(ReadFault::InTransaction(_))));
        let error = match outcome {
            Ok(Ok(value)) if !has_warned => {
                open.is_busy = false;
                self.open = Some(open);
                return Ok(value);
            }
            Ok(Ok(_)) => {
                let last = open.warnings.last.lock();
                // The next connection uses the same host, because this host responds.
                return Err(SessionError::Unknown {
                    reason: format!("{host} warned: {last}"),
                });
            }
            Ok(Err(ReadFault::Ours(error))) => return Err(error),
            Ok(Err(ReadFault::Postgres(error) | ReadFault::InTransaction(error))) => judged(&error, &host),
            Ok(Err(ReadFault::Late(timeout))) | Err(timeout) => not_in_time(timeout, &host),
        };
        // The codes of class 25 tell that the state of the transaction does not permit a statement,
        // for example after an earlier error.
        let is_kept = match &error {
            SessionError::Refused { code, .. } => !code.starts_with("25"),
            SessionError::Unknown { .. } => seeded("engine-silent-host-kept"),
            _ => false,
        };
        if is_kept && !is_open && !has_warned {
            open.is_busy = false;
            self.open = Some(open);
        } else {
            drop(open);
            self.next_host();
        }
        Err(error)
    }

    /// Connects to the first host that responds and, if `servers` requires it, accepts writes.
    /// Begins with the host at index `host`.
    async fn connect(&mut self, deadline: Instant) -> Result<Open, SessionError> {
        let mut reasons: Vec<String> = Vec::new();
        let url = Arc::clone(&self.url);
        for _ in 0..url.hosts.len() {
            let Some(host) = url.hosts.get(self.host) else {
                break;
            };
            let until = match url.hosts.len() {
                1 => deadline,
                _ => deadline.min(Instant::now() + CONNECT_TIMEOUT),
            };
            let reason = match timeout_at(until, connect(&url, host, self.purpose, self.servers)).await {
                Ok(Ok(open)) => {
                    self.connections += 1;
                    return Ok(open);
                }
                Ok(Err(reason)) => reason,
                Err(_) => "no answer in time".to_owned(),
            };
            reasons.push(format!("{host}: {reason}"));
            self.next_host();
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(SessionError::Away {
            reason: reasons.join("; "),
        })
    }
}

/// Executes a statement and returns its rows, of at most `ROWS_BYTES_MAX` bytes.
async fn rows_of(client: &Client, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, ReadFault> {
    let mut rows = Vec::new();
    let mut bytes = 0_usize;
    let mut stream = pin!(client.query_typed_raw(sql, typed(params)).await?);
    while let Some(row) = stream.try_next().await? {
        bytes = bytes.saturating_add(row.raw_size_bytes());
        if bytes > ROWS_BYTES_MAX {
            return Err(ReadFault::Ours(SessionError::Invalid {
                reason: format!("a result has more than {ROWS_BYTES_MAX} bytes"),
            }));
        }
        rows.push(Row(row));
    }
    Ok(rows)
}

fn typed<'a>(params: &'a [Param<'_>]) -> impl Iterator<Item = (&'a (dyn ToSql + Sync), Type)> {
    params.iter().map(Param::typed)
}

fn check_size(params: &[Param<'_>]) -> Result<(), SessionError> {
    let size: usize = params.iter().map(Param::size).sum();
    if size > PARAMS_BYTES_MAX {
        return Err(SessionError::Invalid {
            reason: format!("a statement has {size} bytes of parameters, at most {PARAMS_BYTES_MAX}"),
        });
    }
    Ok(())
}

fn not_in_time(timeout: Duration, host: &str) -> SessionError {
    SessionError::Unknown {
        reason: format!("{host}: no answer within {} ms", timeout.as_millis()),
    }
}

/// Classifies an error by the effect of its statement. `Refused` and `Away` mean that the statement
/// has no effect. With every other error the result is `Unknown`.
fn judged(error: &tokio_postgres::Error, host: &str) -> SessionError {
    let Some(answer) = error.as_db_error() else {
        return SessionError::Unknown {
            reason: format!("{host}: {}", with_causes(error)),
        };
    };
    let code = answer.code().code();
    let message = match answer.detail() {
        Some(detail) => format!("{} ({detail})", answer.message()),
        None => answer.message().to_owned(),
    };
    // 25006: the server became a standby. 57P03: the server is starting or stopping. In both cases
    // the statement did not run.
    if code == "25006" || code == "57P03" {
        return SessionError::Away {
            reason: format!("{host}: {message}"),
        };
    }
    let is_error = answer.parsed_severity() == Some(Severity::Error);
    // 08: connection faults. 57P: shutdown or crash of the server. 58: system faults. XX: internal
    // faults. 40003: unknown completion. None of these codes shows that the transaction was rolled
    // back.
    let classes = ["08", "57P", "58", "XX", "40003"];
    if !is_error || classes.iter().any(|class| code.starts_with(class)) {
        return SessionError::Unknown {
            reason: format!("{host}: {message} (SQLSTATE {code})"),
        };
    }
    SessionError::Refused {
        code: code.to_owned(),
        message,
    }
}

async fn connect(
    url: &EngineUrl,
    host: &Host,
    purpose: &str,
    servers: TargetSessionAttrs,
) -> Result<Open, String> {
    let mut config = Config::new();
    config
        .host(&host.name)
        .port(host.port)
        .user(&url.user)
        .dbname(&url.database)
        .application_name(format!("imt {purpose}"))
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives(true)
        .keepalives_idle(KEEPALIVE_IDLE)
        .target_session_attrs(servers)
        .channel_binding(ChannelBinding::Prefer);
    if let Some(password) = &host.password {
        config.password(password);
    }
    let connector = match &host.encryption {
        Encryption::Off => {
            config.ssl_mode(SslMode::Disable);
            let connected = config.connect(NoTls).await;
            let (client, connection) = connected.map_err(|error| with_causes(&error))?;
            return Ok(opened(client, connection));
        }
        Encryption::Unchecked => tls::unchecked()?,
        Encryption::Checked { roots } => tls::checked(roots)?,
    };
    config.ssl_mode(SslMode::Require);
    let connected = config.connect(connector).await;
    let (client, connection) = connected.map_err(|error| with_causes(&error))?;
    Ok(opened(client, connection))
}

fn opened<T>(client: Client, connection: Connection<Socket, T>) -> Open
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let warnings = Arc::new(Warnings::default());
    Open {
        client,
        connection: runtime::spawn(drive(connection, Arc::clone(&warnings))),
        warnings,
        warned: 0,
        is_busy: false,
    }
}

/// Drives a connection: transfers bytes between the socket and the client. Warnings are counted
/// before the answers that follow them are passed to the client.
async fn drive<T>(mut connection: Connection<Socket, T>, warnings: Arc<Warnings>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                let is_harmless = matches!(
                    notice.parsed_severity(),
                    Some(Severity::Notice | Severity::Info | Severity::Debug | Severity::Log)
                );
                if !is_harmless {
                    let mut last = warnings.last.lock();
                    notice.message().clone_into(&mut last);
                    warnings.count.fetch_add(1, Ordering::Release);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = with_causes(&error), "connection to the engine ended");
                return;
            }
            None => return,
        }
    }
}
