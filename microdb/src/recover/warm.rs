//! Replay's second thread: copies chunks of the directory before the thread that applies records
//! comes to them.
//!
//! A record that is applied changes its chunk, and a chunk is copied out of the checkpoint when it
//! is first changed: verified, copied, into memory that nobody has touched yet. That is a quarter
//! of the time of a replay. The thread that reads and verifies frames has time to spare, and makes
//! the copies for each piece that it has handed over.
//!
//! Nothing here decides anything: without this module a replay gives the same result, later. The
//! records that are replaced are not touched ahead: that was tried, and doubled the misses of the
//! page tables instead of sharing them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::directory::KeyHash;
use crate::engine::Engine;
use crate::engine::catalog::{Catalog, TableCore};
use crate::raw::epoch::pin;
use crate::recover::log_reader::Frame;

/// Keys between two looks at whether the other thread has come that far.
const STEP_KEYS: usize = 64;

/// A key of a piece of the log, and the id of its table.
type Key = (u32, KeyHash);

/// Knows the tables that the log had before a segment.
pub(super) struct Warmer<'a> {
    engine: &'a Engine,
    tables: HashMap<u32, Arc<TableCore>>,
    /// Pieces that were applied.
    done: AtomicU64,
}

impl<'a> Warmer<'a> {
    pub(super) fn new(engine: &'a Engine, catalog: &Catalog) -> Self {
        Self {
            engine,
            tables: catalog.by_id.clone(),
            done: AtomicU64::new(0),
        }
    }

    /// Takes note that another piece was applied.
    pub(super) fn piece_is_done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the keys of a piece.
    pub(super) fn keys_of(&self, frames: &[Frame<'_>]) -> Vec<Key> {
        let records = frames.iter().flat_map(Frame::records);
        let key =
            |record: &crate::format::record::Record<'_>| (record.head.table, self.engine.hash(record.key()));
        records.map(|(_, record)| key(&record)).collect()
    }

    /// Copies the chunks of the keys of piece number `number`, from its end: the other thread
    /// begins at its beginning. Stops once that thread is done with the piece.
    pub(super) fn warm(&self, keys: &[Key], number: u64) {
        for keys in keys.rchunks(STEP_KEYS) {
            if self.done.load(Ordering::Relaxed) >= number {
                return;
            }
            let guard = pin();
            for (table, hash) in keys {
                if let Some(table) = self.tables.get(table) {
                    table.directory.load(&guard).prepare(&guard, *hash);
                }
            }
        }
    }
}
