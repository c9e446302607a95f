//! The second thread of a replay: copies chunks of the directory before the first thread changes
//! them.
//!
//! - The first change of a chunk verifies the chunk in the checkpoint and copies it into fresh
//!   memory. That takes a quarter of the time of a replay. The thread that reads and verifies
//!   frames has time to spare, and makes these copies for each piece that it has handed over.
//! - Nothing here decides anything. Without this module a replay gives the same result, later.
//!
//! Deliberately absent: prefetching of the replaced records. A trial doubled the misses of the page
//! tables instead of sharing them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::directory::KeyHash;
use crate::engine::Engine;
use crate::engine::catalog::{Catalog, TableCore};
use crate::raw::epoch::pin;
use crate::recover::log_reader::Frame;

/// Number of keys between two checks of the other thread's progress.
const STEP_KEYS: usize = 64;

/// Table id and hash of a key in a piece of the log.
type Key = (u32, KeyHash);

/// Holds the tables that the log had before a segment.
pub(super) struct Warmer<'a> {
    engine: &'a Engine,
    tables: HashMap<u32, Arc<TableCore>>,
    /// Number of applied pieces.
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

    /// Records that another piece was applied.
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

    /// Copies the chunks of the keys of piece `number`, beginning at the end because the other
    /// thread begins at the front. Stops when that thread is done with the piece.
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
