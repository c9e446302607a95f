//! LMDB through heed: a copy-on-write B-tree in a memory map.
//!
//! Durable commits use the defaults of LMDB. If [`Setup::durable`] is `false`, commits write
//! directly into the memory map, and nothing is flushed before [`Engine::sync`]. No mode of LMDB is
//! faster. A session with [`Access::Read`] keeps one read transaction open.

use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CompactionOption, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithTls};

use super::{Access, Engine, Records, Session, Setup, Unsupported, plus_one};
use crate::Outcome;

type Table = Database<Bytes, Bytes>;

pub(super) struct Lmdb {
    env: Env,
    table: Table,
    path: PathBuf,
}

impl Lmdb {
    #[expect(
        unsafe_code,
        reason = "heed requires the caller to guarantee that no other process changes the file"
    )]
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        // Room for four times the data and 1 GiB more: random inserts leave pages two thirds full,
        // and old versions of pages remain until their readers end.
        let map_bytes = (setup.data_bytes * 4 + (1 << 30)).next_multiple_of(1 << 20);
        let mut options = EnvOpenOptions::new();
        options.map_size(usize::try_from(map_bytes)?).max_readers(64);
        if !setup.durable {
            // SAFETY: with these flags a power failure can damage the database. Workloads without
            // durability accept that.
            unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP | EnvFlags::NO_META_SYNC) };
        }
        // SAFETY: the folder belongs to this run, and only this process has the database open.
        let env = unsafe { options.open(folder)? };
        let mut transaction = env.write_txn()?;
        let table = env.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok(Self {
            env,
            table,
            path: folder.to_path_buf(),
        })
    }
}

impl Engine for Lmdb {
    fn session(&self, access: Access) -> Outcome<Box<dyn Session + '_>> {
        let view = match access {
            Access::Read => Some(self.env.read_txn()?),
            Access::ReadWrite => None,
        };
        Ok(Box::new(LmdbSession { engine: self, view }))
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.env.force_sync()?)
    }

    fn compact(&mut self) -> Outcome<()> {
        let compacted = self.path.join("compacted.mdb");
        drop(self.env.copy_to_path(&compacted, CompactionOption::Enabled)?);
        // The open memory map still refers to the old file, so the space of the old file is freed
        // only when the engine is dropped.
        std::fs::rename(compacted, self.path.join("data.mdb"))?;
        Ok(())
    }
}

struct LmdbSession<'a> {
    engine: &'a Lmdb,
    view: Option<RoTxn<'a, WithTls>>,
}

impl Session for LmdbSession<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        let mut transaction = self.engine.env.write_txn()?;
        self.engine.table.put(&mut transaction, key, value)?;
        Ok(transaction.commit()?)
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        let mut transaction = self.engine.env.write_txn()?;
        for (key, value) in records.iter() {
            self.engine.table.put(&mut transaction, key, value)?;
        }
        Ok(transaction.commit()?)
    }

    fn add_one(&mut self, key: &[u8]) -> Outcome<bool> {
        let mut transaction = self.engine.env.write_txn()?;
        let next = plus_one(self.engine.table.get(&transaction, key)?)?;
        self.engine.table.put(&mut transaction, key, &next)?;
        transaction.commit()?;
        Ok(true)
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let fresh;
        let view = match &self.view {
            Some(view) => view,
            None => {
                fresh = self.engine.env.read_txn()?;
                &fresh
            }
        };
        let value = self.engine.table.get(view, key)?;
        Ok(value.map(visit).is_some())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let view = self
            .view
            .as_ref()
            .ok_or(Unsupported("a scan needs a reading session"))?;
        for record in self.engine.table.iter(view)? {
            let (key, value) = record?;
            visit(key, value);
        }
        Ok(())
    }
}
