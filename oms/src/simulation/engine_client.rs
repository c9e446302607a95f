//! A connection to the simulated engine.
//!
//! **Invariants**
//! - A client that gives up tries the next host. A warning in an answer (the wait for a standby was
//!   cancelled) makes the result unknown.
//! - A statement that writes runs in a separate task, so that it continues without its client.
//! - A connection ends with the process of its server, and after a call without an answer or with a
//!   warning.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::postgres::SessionError;
use crate::runtime::seeded::seeded;
use crate::simulation::engine::{Reply, SERVERS, SimEngine};
use crate::simulation::engine_server::{Role, Server, Statement};

/// Time after which a client gives up and tries the next host.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// A function that is called at the moment when the engine acknowledges a statement that has
/// affected rows. The function gets the name of the statement's volume or node.
pub(super) type OnDone = Arc<dyn Fn(&str, &Statement) + Send + Sync>;

/// A client of the engine, with at most one connection at a time.
pub(super) struct SimClient {
    pub(super) engine: Arc<SimEngine>,
    host: usize,
    /// The server of the open connection, with the number of its start.
    open: Option<(usize, u64)>,
    connections: u64,
    on_done: Option<OnDone>,
}

impl SimClient {
    /// Creates a client without a connection. `host` is the server that it tries first.
    pub(super) fn new(engine: Arc<SimEngine>, host: usize) -> SimClient {
        SimClient {
            engine,
            host,
            open: None,
            connections: 0,
            on_done: None,
        }
    }

    /// Creates a client that calls `on_done` for each acknowledged statement that has affected
    /// rows.
    pub(super) fn watched(engine: Arc<SimEngine>, host: usize, on_done: OnDone) -> SimClient {
        SimClient {
            on_done: Some(on_done),
            ..SimClient::new(engine, host)
        }
    }

    /// Returns the number of connections opened so far.
    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    pub(super) fn host(&self) -> usize {
        self.host
    }

    pub(super) fn next_host(&mut self) {
        self.open = None;
        self.host = (self.host + 1) % SERVERS;
    }

    /// Chooses a server that takes writes, beginning with the present host. The connection is
    /// stored in `open` again only by a call that got an answer without a warning.
    async fn connect(&mut self) -> Result<(usize, u64), SessionError> {
        let open = self.open.take();
        for _ in 0..SERVERS {
            let (takes_writes, start) = {
                let inside = self.engine.inside();
                let server = &inside.servers[self.host];
                (server.is_up && server.role == Role::Primary, server.start)
            };
            if takes_writes {
                let connection = (self.host, start);
                if open != Some(connection) {
                    self.connections += 1;
                }
                return Ok(connection);
            }
            self.host = (self.host + 1) % SERVERS;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        Err(SessionError::Away {
            reason: "no server takes writes".to_owned(),
        })
    }

    fn lost<T>(&mut self, reason: &str) -> Result<T, SessionError> {
        self.next_host();
        Err(SessionError::Unknown {
            reason: reason.to_owned(),
        })
    }

    /// Executes a statement that writes. Returns the number in the reply.
    pub(super) async fn write(&mut self, name: &str, statement: Statement) -> Result<u64, SessionError> {
        let connection = self.connect().await?;
        let (engine, name, on_done) = (Arc::clone(&self.engine), name.to_owned(), self.on_done.clone());
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(engine.dice().between(0, 2))).await;
            if engine.loses() {
                return;
            }
            let reply = engine.write(connection.0, &name, &statement).await;
            if let (Some(Reply::Rows(1..)), Some(on_done)) = (&reply, on_done) {
                on_done(&name, &statement);
            }
            if let Some(reply) = reply.filter(|_| !engine.loses()) {
                let _ = answer.send(reply);
            }
        });
        match timeout(CLIENT_TIMEOUT, answered).await {
            Ok(Ok(Reply::Rows(rows))) => {
                self.open = Some(connection);
                Ok(rows)
            }
            Ok(Ok(Reply::Warned(rows))) if seeded("engine-warning-is-success") => Ok(rows),
            Ok(Ok(Reply::Warned(_))) => Err(SessionError::Unknown {
                reason: "the wait for a standby was cancelled".to_owned(),
            }),
            Ok(Ok(reply @ (Reply::Cancelled | Reply::Conflict))) => {
                self.open = Some(connection);
                let (code, message) = match reply {
                    Reply::Cancelled => ("57014", "the statement was cancelled"),
                    _ => ("40001", "the transaction conflicts with another one"),
                };
                Err(SessionError::Refused {
                    code: code.to_owned(),
                    message: message.to_owned(),
                })
            }
            Ok(Err(_)) => self.lost("the connection broke"),
            Err(_) => self.lost("no answer in time"),
        }
    }

    /// Reads from the primary that this client is connected to. Fails if no server takes writes, if
    /// the connection ends before the read, or if the network loses the call.
    pub(super) async fn read<T>(&mut self, read: impl FnOnce(&Server) -> T) -> Result<T, SessionError> {
        let connection = self.connect().await?;
        tokio::time::sleep(Duration::from_millis(self.engine.dice().between(0, 2))).await;
        if self.engine.loses() {
            return self.lost("the connection broke");
        }
        let found = {
            let inside = self.engine.inside();
            let server = &inside.servers[connection.0];
            let is_open = server.is_up && server.role == Role::Primary && server.start == connection.1;
            is_open.then(|| read(server))
        };
        match found {
            Some(found) => {
                self.open = Some(connection);
                Ok(found)
            }
            None => self.lost("the connection broke"),
        }
    }
}
