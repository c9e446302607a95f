//! redb: a copy-on-write B-tree with checksummed pages, in Rust.
//!
//! If [`Setup::durable`] is `false`, each commit is `Durability::None`. Then [`Engine::sync`] makes
//! an empty durable commit, which also makes all earlier commits durable.

use std::path::Path;

use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::{Access, CACHE_BYTES, Engine, Records, Session, Setup, Unsupported, plus_one};
use crate::Outcome;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

pub(super) struct Redb {
    db: Database,
    durable: bool,
}

impl Redb {
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(folder.join("data.redb"))?;
        let engine = Self {
            db,
            durable: setup.durable,
        };
        let transaction = engine.begin()?;
        transaction.open_table(TABLE)?;
        transaction.commit()?;
        Ok(engine)
    }

    fn begin(&self) -> Outcome<WriteTransaction> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(if self.durable {
            Durability::Immediate
        } else {
            Durability::None
        })?;
        Ok(transaction)
    }

    fn view(&self) -> Outcome<ReadOnlyTable<&'static [u8], &'static [u8]>> {
        Ok(self.db.begin_read()?.open_table(TABLE)?)
    }
}

impl Engine for Redb {
    fn session(&self, access: Access) -> Outcome<Box<dyn Session + '_>> {
        let view = match access {
            Access::Read => Some(self.view()?),
            Access::ReadWrite => None,
        };
        Ok(Box::new(RedbSession { engine: self, view }))
    }

    fn sync(&self) -> Outcome<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        Ok(transaction.commit()?)
    }

    fn compact(&mut self) -> Outcome<()> {
        self.db.compact()?;
        Ok(())
    }
}

struct RedbSession<'a> {
    engine: &'a Redb,
    view: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl Session for RedbSession<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        let transaction = self.engine.begin()?;
        transaction.open_table(TABLE)?.insert(key, value)?;
        Ok(transaction.commit()?)
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        let transaction = self.engine.begin()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in records.iter() {
                table.insert(key, value)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn add_one(&mut self, key: &[u8]) -> Outcome<bool> {
        let transaction = self.engine.begin()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            let next = plus_one(table.get(key)?.as_ref().map(|value| value.value()))?;
            table.insert(key, next.as_slice())?;
        }
        transaction.commit()?;
        Ok(true)
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = match &self.view {
            Some(view) => view.get(key)?,
            None => self.engine.view()?.get(key)?,
        };
        Ok(value.map(|value| visit(value.value())).is_some())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let view = self
            .view
            .as_ref()
            .ok_or(Unsupported("a scan needs a reading session"))?;
        for record in view.iter()? {
            let (key, value) = record?;
            visit(key.value(), value.value());
        }
        Ok(())
    }
}
