//! The log of one volume in the simulated engine.
//!
//! Deliberately absent: the connection (`engine_client`) and the servers (`engine`).

use std::sync::Arc;
use std::time::Duration;

use crate::simulation::engine_client::SimClient;
use crate::simulation::engine_server::{Server, Statement};
use crate::simulation::engine_tables::TableStatement;
use crate::storage::log::body::chain_in;
use crate::storage::log::{Answer, EngineRow, Entry, EntryHead, Head, LastWords, Log, LogError, Position};
use crate::storage::write_batch::Table;

/// The log of a volume in the simulated engine, over one connection.
pub(crate) struct SimLog {
    client: SimClient,
    volume: String,
}

impl SimLog {
    pub(super) fn new(client: SimClient, volume: &str) -> SimLog {
        SimLog {
            client,
            volume: volume.to_owned(),
        }
    }

    async fn write(&mut self, statement: Statement) -> Result<u64, LogError> {
        Ok(self.client.write(&self.volume, statement).await?)
    }

    async fn read<T>(&mut self, read: impl FnOnce(&Server, &str) -> T) -> Result<T, LogError> {
        let volume = &self.volume;
        Ok(self.client.read(|server| read(server, volume)).await?)
    }
}

impl Log for SimLog {
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool> {
        let entry = entry.clone();
        Box::pin(async move { Ok(self.write(Statement::Append { entry, behind }).await? == 1) })
    }

    fn look(&mut self, seq: u64) -> Answer<'_, Option<EntryHead>> {
        Box::pin(
            self.read(move |server, volume| server.entry(volume, seq).map(|entry| EntryHead::of(&entry))),
        )
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

    fn owner(&mut self) -> Answer<'_, Option<String>> {
        Box::pin(async move {
            let owner = self.read(Server::owner).await?;
            Ok(Some(owner).filter(|owner| !owner.is_empty()))
        })
    }

    fn confirm(&mut self) -> Answer<'_, bool> {
        Box::pin(async move {
            let connections = self.client.connections();
            self.write(Statement::Table(TableStatement::Probe)).await?;
            Ok(self.client.connections() == connections)
        })
    }

    fn release(&mut self, epoch: u64) -> Answer<'_, ()> {
        Box::pin(async move { self.write(Statement::Release { epoch }).await.map(drop) })
    }

    fn create(&mut self) -> Answer<'_, ()> {
        Box::pin(async move { self.write(Statement::Create).await.map(drop) })
    }

    fn raise<'a>(&'a mut self, owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>> {
        let owner = owner.to_owned();
        Box::pin(async move {
            let raise = Statement::Raise { owner, since, until };
            let epoch = self.write(raise).await?;
            Ok(Some(epoch).filter(|epoch| *epoch > 0))
        })
    }

    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>> {
        let count = self.client.engine.dice().between(1, 20) as usize;
        Box::pin(self.read(move |server, volume| {
            let wanted = server
                .entries(volume)
                .filter(|entry| entry.seq > after && entry.seq <= last);
            wanted.take(count).cloned().collect()
        }))
    }

    fn rows<'a>(
        &'a mut self,
        take: &'a mut (dyn FnMut(EngineRow<'_>) -> bool + Send),
    ) -> Answer<'a, Option<EntryHead>> {
        Box::pin(async move {
            let read = self.read(move |server, volume| {
                let head = server.head(volume)?;
                let rows = server.data.rows.iter();
                let rows = rows.filter(|((of, ..), _)| of == volume);
                let rows: Vec<_> = rows
                    .map(|((_, table, key), value)| (*table, key.clone(), value.clone()))
                    .collect();
                let last = server.entry(volume, head.kept_from - 1);
                Some((head.kept_from, last.map(|entry| EntryHead::of(&entry)), rows))
            });
            let (rows, last) = match read.await? {
                None => return Err(LogError::Away("the engine has no such volume".to_owned())),
                Some((2.., None, _)) => {
                    return Err(LogError::Away("the entry before the rows is missing".to_owned()));
                }
                Some((_, last, rows)) => (rows, last),
            };
            // The rows are of one moment, and arrive one after another.
            for (table, key, value) in &rows {
                let wait = self.client.engine.dice().between(0, 2);
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let table = Table::of_code(*table).unwrap();
                if !take(EngineRow { table, key, value }) {
                    break;
                }
            }
            Ok(last)
        })
    }

    fn checkpoint<'a>(&'a mut self, from: u64, last: &'a Position, words: &'a LastWords) -> Answer<'a, bool> {
        let words = Arc::new(LastWords {
            puts: words.puts.clone(),
            deletes: words.deletes.clone(),
        });
        let last = *last;
        Box::pin(async move { Ok(self.write(Statement::Checkpoint { from, last, words }).await? == 1) })
    }

    fn trim(&mut self, epoch: u64, after: u64, last: u64) -> Answer<'_, Option<u64>> {
        let count = self.client.engine.dice().between(1, 20) as usize;
        Box::pin(async move {
            let part = self.read(|server, volume| {
                let head = server.head(volume).filter(|head| head.epoch == epoch);
                let kept_from = head.map_or(0, |head| head.kept_from);
                let last = last.min(kept_from.saturating_sub(2));
                let entries = server.entries(volume).map(|entry| entry.seq);
                entries
                    .filter(|seq| (after + 1..=last).contains(seq))
                    .take(count)
                    .last()
            });
            let Some(last) = part.await? else { return Ok(None) };
            self.write(Statement::Trim { epoch, after, last }).await?;
            Ok(Some(last))
        })
    }

    fn next_host(&mut self) {
        self.client.next_host();
    }

    fn remove(&mut self, epoch: u64) -> Answer<'_, ()> {
        Box::pin(async move { self.write(Statement::Remove { epoch }).await.map(drop) })
    }
}
