//! microdb, used as an application would use it.
//!
//! All options are the defaults, except for the durability. If [`Setup::durable`] is `false`,
//! commits are `Durability::Buffered`, and [`Engine::sync`] makes them durable.

use std::path::Path;

use microdb::{Db, Durability, Options, Table};

use super::{Access, Engine, Records, Session, Setup, plus_one};
use crate::Outcome;
use crate::data::Key;

pub(super) struct Microdb {
    db: Db,
    table: Table,
}

impl Microdb {
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        let durability = if setup.durable {
            Durability::Sync
        } else {
            Durability::Buffered
        };
        let db = Options::new().durability(durability).open(folder)?;
        let table = db.table("records")?;
        Ok(Self { db, table })
    }
}

impl Engine for Microdb {
    fn session(&self, _access: Access) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(MicrodbSession {
            db: &self.db,
            table: self.table.clone(),
        }))
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.db.sync()?)
    }

    fn wait_idle(&self) -> Outcome<()> {
        Ok(self.db.wait_idle()?)
    }

    fn compact(&mut self) -> Outcome<()> {
        self.db.compact()?;
        Ok(())
    }

    fn dropped(&self) -> Option<String> {
        let report = self.db.recovery();
        (report.dropped_bytes > 0).then(|| report.to_string())
    }

    fn index_bytes(&self) -> Option<u64> {
        Some(self.db.stats().directory_bytes)
    }

    fn flushes(&self) -> Option<u64> {
        Some(self.db.stats().syncs)
    }
}

struct MicrodbSession<'a> {
    db: &'a Db,
    table: Table,
}

impl Session for MicrodbSession<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        self.table.put(key, value)?;
        Ok(())
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        let mut batch = self.db.batch();
        for (key, value) in records.iter() {
            batch.put(&self.table, key, value);
        }
        batch.commit()?;
        Ok(())
    }

    fn add_one(&mut self, key: &[u8]) -> Outcome<bool> {
        let table = self.table.clone();
        let added = self.db.transaction(|tx| {
            let value = tx.get(&table, key)?;
            // This closure can only return errors of microdb. So 0 replaces an absent value and a
            // value that has not 8 bytes. The workload then finds that the final count differs from
            // the number of increments, and fails.
            let next = plus_one(value.as_deref()).unwrap_or_default();
            tx.put(&table, key, next)
        });
        match added {
            Err(microdb::Error::Conflict { .. }) => Ok(false),
            added => Ok(added.map(|()| true)?),
        }
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.table.get(key)?;
        Ok(value.map(|value| visit(&value)).is_some())
    }

    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Outcome<()> {
        for (position, value) in self.table.multi_get(keys)?.into_iter().enumerate() {
            visit(position, value.as_deref());
        }
        Ok(())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        self.table.iter().for_each_record(|key, value| {
            visit(key, value);
            Ok::<_, microdb::Error>(())
        })?;
        Ok(())
    }
}
