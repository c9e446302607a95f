//! candystore: an append-only log with a memory-mapped hash index, in Rust. Of all rivals its
//! design is closest to that of microdb.
//!
//! - It has no atomic batches, so the records of a batch are stored one by one.
//! - Its background checkpoint is set to the interval of microdb (32 MiB of log). The default is
//!   128 KiB.
//! - It has no call for compaction.

use std::path::Path;

use candystore::{CandyStore, Config};

use super::{Access, Engine, Records, Session, Setup, Unsupported};
use crate::Outcome;

/// Size of the log between two background checkpoints, in bytes.
const CHECKPOINT_EVERY_BYTES: usize = 32 << 20;

pub(super) struct Candystore {
    db: CandyStore,
    durable: bool,
}

impl Candystore {
    pub(super) fn open(folder: &Path, setup: Setup) -> Outcome<Self> {
        let config = Config {
            checkpoint_interval: None,
            checkpoint_delta_bytes: Some(CHECKPOINT_EVERY_BYTES),
            ..Config::default()
        };
        Ok(Self {
            db: CandyStore::open(folder, config)?,
            durable: setup.durable,
        })
    }
}

impl Engine for Candystore {
    fn session(&self, _access: Access) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(CandystoreSession { engine: self }))
    }

    fn sync(&self) -> Outcome<()> {
        Ok(self.db.flush()?)
    }

    fn compact(&mut self) -> Outcome<()> {
        Err(Unsupported("compacts in the background only").into())
    }

    fn index_bytes(&self) -> Option<u64> {
        Some(self.db.stats().index_size_bytes)
    }
}

struct CandystoreSession<'a> {
    engine: &'a Candystore,
}

impl Session for CandystoreSession<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        if value.len() > candystore::MAX_USER_VALUE_SIZE {
            return Err(Unsupported("the value is larger than it takes").into());
        }
        self.engine.db.set(key, value)?;
        if self.engine.durable {
            self.engine.db.flush()?;
        }
        Ok(())
    }

    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()> {
        for (key, value) in records.iter() {
            if value.len() > candystore::MAX_USER_VALUE_SIZE {
                return Err(Unsupported("the value is larger than it takes").into());
            }
            self.engine.db.set(key, value)?;
        }
        if self.engine.durable {
            self.engine.db.flush()?;
        }
        Ok(())
    }

    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.engine.db.get(key)?;
        Ok(value.map(|value| visit(&value)).is_some())
    }

    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()> {
        for record in self.engine.db.iter_items() {
            let (key, value) = record?;
            visit(&key, &value);
        }
        Ok(())
    }
}
