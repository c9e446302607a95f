//! fjall: a log-structured merge tree in Rust.
//!
//! If [`Setup::durable`] is `false`, only [`Engine::sync`] persists the journal
//! (`manual_journal_persist`). So a crash may lose the latest commits, as with buffered commits of
//! microdb.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Access, CACHE_BYTES, Engine, Records, Session, Setup};
use crate::Outcome;

pub(super) struct Fjall {
    db: Database,
    table: Keyspace,
    durable: bool,
}

impl Fjall {
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        let db = Database::builder(folder)
            .cache_size(CACHE_BYTES as u64)
            .manual_journal_persist(!setup.durable)
            .open()?;
        let table = db.keyspace("records", || {
            KeyspaceCreateOptions::default()
                .manual_journal_persist(!setup.durable)
                .expect_point_read_hits(false)
        })?;
        Ok(Self {
            db,
            table,
            durable: setup.durable,
        })
    }
}

impl Engine for Fjall {
    fn session(&self, _access: Access) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(FjallSession { engine: self }))
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.db.persist(PersistMode::SyncData)?)
    }

    fn wait_idle(&self) -> Outcome<()> {
        Ok(self.table.rotate_memtable_and_wait()?)
    }

    fn compact(&mut self) -> Outcome<()> {
        self.table.rotate_memtable_and_wait()?;
        Ok(self.table.major_compact()?)
    }
}

struct FjallSession<'a> {
    engine: &'a Fjall,
}

impl Session for FjallSession<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        self.engine.table.insert(key, value)?;
        if self.engine.durable {
            self.engine.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        let mut batch = self.engine.db.batch();
        if self.engine.durable {
            batch = batch.durability(Some(PersistMode::SyncData));
        }
        for (key, value) in records.iter() {
            batch.insert(&self.engine.table, key, value);
        }
        Ok(batch.commit()?)
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.engine.table.get(key)?;
        Ok(value.map(|value| visit(&value)).is_some())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        for record in self.engine.table.iter() {
            let (key, value) = record.into_inner()?;
            visit(&key, &value);
        }
        Ok(())
    }
}
