//! The log of one volume in the simulated engine.
//!
//! Deliberately absent: the connection (`engine_client`) and the servers (`engine`).

use std::sync::Arc;

use crate::simulation::engine_client::SimClient;
use crate::simulation::engine_server::{Server, Statement};
use crate::simulation::engine_tables::TableStatement;
use crate::storage::log::body::chain_in;
use crate::storage::log::{Answer, Entry, EntryHead, Head, LastWords, Log, LogError, Position, RowsPart};
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

    fn rows<'a>(&'a mut self, after: Option<(Table, &'a [u8])>) -> Answer<'a, RowsPart> {
        let count = self.client.engine.dice().between(1, 20) as usize;
        let after = after.map(|(table, key)| (table as u8, key.to_vec()));
        Box::pin(async move {
            let read = self.read(move |server, volume| {
                let head = server.head(volume)?;
                let rows = server.data.rows.iter();
                let rows = rows.filter(|((of, table, key), _)| {
                    let is_after = |(last, last_key): &(u8, Vec<u8>)| (table, key) > (last, last_key);
                    of == volume && after.as_ref().is_none_or(is_after)
                });
                let row = |((_, table, key), value): (&(String, u8, Vec<u8>), &Vec<u8>)| {
                    (Table::of_code(*table).unwrap(), key.clone(), value.clone())
                };
                let rows: Vec<_> = rows.take(count).map(row).collect();
                let last = server.entry(volume, head.kept_from - 1);
                let last = last.map(|entry| EntryHead::of(&entry));
                Some((head.kept_from, RowsPart { last, rows }))
            });
            match read.await? {
                None => Err(LogError::Away("the engine has no such volume".to_owned())),
                Some((2.., RowsPart { last: None, .. })) => {
                    Err(LogError::Away("the entry before the rows is missing".to_owned()))
                }
                Some((_, part)) => Ok(part),
            }
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
