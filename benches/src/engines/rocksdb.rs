//! RocksDB: a log-structured merge tree.
//!
//! Settings: Bloom filters of ten bits per key, a block cache for the whole data set, two
//! background threads, no compression. If [`Setup::durable`] is `false`, the log is buffered in the
//! process (`manual_wal_flush`), as in microdb. Statistics are enabled in durable runs only,
//! because only these runs report the number of log flushes.

use std::path::Path;

use rocksdb::statistics::Ticker;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, Options, WaitForCompactOptions,
    WriteBatch, WriteOptions,
};

use super::{Access, CACHE_BYTES, Engine, Records, Session, Setup};
use crate::Outcome;
use crate::data::Key;

const FAMILY: &str = "default";

pub(super) struct Rocksdb {
    db: DB,
    options: Options,
    durable: bool,
}

impl Rocksdb {
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
        blocks.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.increase_parallelism(2);
        options.set_compression_type(DBCompressionType::None);
        options.set_block_based_table_factory(&blocks);
        options.set_manual_wal_flush(!setup.durable);
        if setup.durable {
            options.enable_statistics();
        }
        // A column family that is opened only by its name would get default options.
        let family = ColumnFamilyDescriptor::new(FAMILY, options.clone());
        let db = DB::open_cf_descriptors(&options, folder, [family])?;
        Ok(Self {
            db,
            options,
            durable: setup.durable,
        })
    }

    fn write_options(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(self.durable);
        options
    }
}

impl Engine for Rocksdb {
    fn session(&self, _access: Access) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(RocksdbSession {
            engine: self,
            write: self.write_options(),
        }))
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.db.flush_wal(true)?)
    }

    fn wait_idle(&self) -> Outcome<()> {
        let mut wait = WaitForCompactOptions::default();
        wait.set_flush(true);
        Ok(self.db.wait_for_compact(&wait)?)
    }

    fn compact(&mut self) -> Outcome<()> {
        self.wait_idle()?;
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        self.wait_idle()
    }

    fn flushes(&self) -> Option<u64> {
        self.durable
            .then(|| self.options.get_ticker_count(Ticker::WalFileSynced))
    }
}

struct RocksdbSession<'a> {
    engine: &'a Rocksdb,
    write: WriteOptions,
}

impl Session for RocksdbSession<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        Ok(self.engine.db.put_opt(key, value, &self.write)?)
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in records.iter() {
            batch.put(key, value);
        }
        Ok(self.engine.db.write_opt(batch, &self.write)?)
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.engine.db.get_pinned(key)?;
        Ok(value.map(|value| visit(&value)).is_some())
    }

    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Outcome<()> {
        let family = self
            .engine
            .db
            .cf_handle(FAMILY)
            .ok_or("RocksDB has no default column family")?;
        let values = self.engine.db.batched_multi_get_cf(family, keys, false);
        for (position, value) in values.into_iter().enumerate() {
            visit(position, value?.as_deref());
        }
        Ok(())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        let mut records = self.engine.db.raw_iterator();
        records.seek_to_first();
        while let Some((key, value)) = records.item() {
            visit(key, value);
            records.next();
        }
        Ok(records.status()?)
    }
}
