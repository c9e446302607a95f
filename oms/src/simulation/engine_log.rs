//! The client of the simulated engine: the log of one volume, over one connection.
//!
//! **Invariants**
//! - A client that gives up tries the next host. A warning in an answer (the wait for a standby was
//!   cancelled) makes the result unknown.
//! - A statement that writes runs in a separate task, so that it continues without its client.
//!
//! Deliberately absent: the servers (`engine`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::runtime::seeded::seeded;
use crate::simulation::engine::{Reply, Role, SERVERS, Server, SimEngine, Statement};
use crate::storage::log::body::chain_in;
use crate::storage::log::{Answer, EngineRow, Entry, Head, LastWords, Log, LogError, Position};
use crate::storage::write_batch::Table;

/// Time after which a client gives up and tries the next host.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);

/// The log of a volume in the simulated engine, over one connection.
pub(crate) struct SimLog {
    engine: Arc<SimEngine>,
    volume: String,
    host: usize,
}

impl SimLog {
    pub(super) fn new(engine: Arc<SimEngine>, volume: &str) -> SimLog {
        SimLog {
            engine,
            volume: volume.to_owned(),
            host: 0,
        }
    }

    /// Chooses a server that accepts writes, beginning with the present host.
    async fn connect(&mut self) -> Result<usize, LogError> {
        for _ in 0..SERVERS {
            let takes_writes = {
                let inside = self.engine.inside();
                let server = &inside.servers[self.host];
                server.is_up && server.role == Role::Primary
            };
            if takes_writes {
                return Ok(self.host);
            }
            self.host = (self.host + 1) % SERVERS;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        Err(LogError::Away("no server takes writes".to_owned()))
    }

    fn lost<T>(&mut self, reason: &str) -> Result<T, LogError> {
        self.host = (self.host + 1) % SERVERS;
        Err(LogError::Unknown(reason.to_owned()))
    }

    async fn write(&mut self, statement: Statement) -> Result<u64, LogError> {
        let at = self.connect().await?;
        let (engine, volume) = (Arc::clone(&self.engine), self.volume.clone());
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(engine.dice().between(0, 2))).await;
            if engine.loses() {
                return;
            }
            let reply = engine.write(at, &volume, &statement).await;
            if let Some(reply) = reply.filter(|_| !engine.loses()) {
                let _ = answer.send(reply);
            }
        });
        match timeout(CLIENT_TIMEOUT, answered).await {
            Ok(Ok(Reply::Rows(rows))) => Ok(rows),
            Ok(Ok(Reply::Warned(rows))) if seeded("engine-warning-is-success") => Ok(rows),
            Ok(Ok(Reply::Warned(_))) => Err(LogError::Unknown(
                "the wait for a standby was cancelled".to_owned(),
            )),
            Ok(Ok(Reply::Cancelled)) => Err(LogError::Away("the statement was cancelled".to_owned())),
            Ok(Err(_)) => self.lost("the connection broke"),
            Err(_) => self.lost("no answer in time"),
        }
    }

    async fn read<T>(&mut self, read: impl FnOnce(&Server, &str) -> T) -> Result<T, LogError> {
        let at = self.connect().await?;
        tokio::time::sleep(Duration::from_millis(self.engine.dice().between(0, 2))).await;
        if self.engine.loses() {
            return self.lost("the connection broke");
        }
        let found = {
            let inside = self.engine.inside();
            let server = &inside.servers[at];
            (server.is_up && server.role == Role::Primary).then(|| read(server, &self.volume))
        };
        match found {
            Some(found) => Ok(found),
            None => self.lost("the connection broke"),
        }
    }
}

impl Log for SimLog {
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool> {
        let entry = entry.clone();
        Box::pin(async move { Ok(self.write(Statement::Append { entry, behind }).await? == 1) })
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<Entry>> {
        Box::pin(self.read(move |server, volume| server.entry(volume, seq)))
    }

    fn newest(&mut self) -> Answer<'_, Position> {
        Box::pin(self.read(|server, volume| {
            let newest = server.entries(volume).next_back();
            newest.map_or_else(Position::default, |entry| Position {
                seq: entry.seq,
                epoch: entry.epoch,
                chain: chain_in(&entry.body).unwrap(),
            })
        }))
    }

    fn head(&mut self) -> Answer<'_, Option<Head>> {
        Box::pin(self.read(Server::head))
    }

    fn create(&mut self) -> Answer<'_, ()> {
        Box::pin(async move { self.write(Statement::Create).await.map(drop) })
    }

    fn raise<'a>(&'a mut self, _owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>> {
        Box::pin(async move {
            let epoch = self.write(Statement::Raise { since, until }).await?;
            Ok(Some(epoch).filter(|epoch| *epoch > 0))
        })
    }

    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>> {
        let count = self.engine.dice().between(1, 20) as usize;
        Box::pin(self.read(move |server, volume| {
            let wanted = server
                .entries(volume)
                .filter(|entry| entry.seq > after && entry.seq <= last);
            wanted.take(count).cloned().collect()
        }))
    }

    fn rows<'a>(&'a mut self, take: &'a mut (dyn FnMut(EngineRow<'_>) -> bool + Send)) -> Answer<'a, ()> {
        Box::pin(self.read(move |server, volume| {
            for ((of, table, key), value) in &server.data.rows {
                let table = Table::of_code(*table).unwrap();
                if of == volume && !take(EngineRow { table, key, value }) {
                    break;
                }
            }
        }))
    }

    fn checkpoint<'a>(&'a mut self, from: u64, to: u64, words: &'a LastWords) -> Answer<'a, bool> {
        let words = Arc::new(LastWords {
            puts: words.puts.clone(),
            deletes: words.deletes.clone(),
        });
        Box::pin(async move { Ok(self.write(Statement::Checkpoint { from, to, words }).await? == 1) })
    }

    fn trim(&mut self, last: u64) -> Answer<'_, u64> {
        Box::pin(self.write(Statement::Trim { last }))
    }

    fn next_host(&mut self) {
        self.host = (self.host + 1) % SERVERS;
    }

    fn remove(&mut self) -> Answer<'_, ()> {
        Box::pin(async move { self.write(Statement::Remove).await.map(drop) })
    }
}
