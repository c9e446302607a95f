//! The second thread of a replay: copies chunks of the directory before the first thread changes
//! them.
//!
//! - The first thread of a replay applies records to the directory. The second thread reads and
//!   verifies frames, and hands them over in pieces.
//! - The first change of a chunk verifies the chunk in the checkpoint and copies it into fresh
//!   memory. These copies take a quarter of the time of a replay. The second thread has time to
//!   spare, so it makes the copies for each piece that it has handed over.
//! - The copies only save time. Without this module, a replay takes longer and gives the same
//!   result.
//!
//! Deliberately absent: prefetching of the replaced records. In a trial it doubled the page table
//! misses instead of sharing them between the threads.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::directory::KeyHash;
use crate::engine::Engine;
use crate::engine::catalog::{Catalog, TableCore};
use crate::raw::epoch::pin;
use crate::recover::log_reader::Frame;

/// Number of keys between two checks of the first thread's progress.
const STEP_KEYS: usize = 64;

/// Id of the table and hash of a key.
type Key = (u32, KeyHash);

/// Copies chunks of the tables that existed before the replayed segment.
pub(super) struct Warmer<'a> {
    engine: &'a Engine,
    tables: HashMap<u32, Arc<TableCore>>,
    /// Number of pieces of frames that the first thread has processed.
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

    /// Records that the first thread has processed another piece.
    pub(super) fn piece_is_done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the keys of all records in a piece.
    pub(super) fn keys_of(&self, frames: &[Frame<'_>]) -> Vec<Key> {
        let records = frames.iter().flat_map(Frame::records);
        let key =
            |record: &crate::format::record::Record<'_>| (record.head.table, self.engine.hash(record.key()));
        records.map(|(_, record)| key(&record)).collect()
    }

    /// Copies the chunks that contain the keys of piece `number`. Begins with the last keys,
    /// because the first thread begins with the first. Stops once the first thread has processed
    /// the piece.
    pub(super) fn warm(&self, keys: &[Key], number: u64) {
        for keys in keys.rchunks(STEP_KEYS) {
            if self.done.load(Ordering::Relaxed) >= number {
                return;
            }
            let guard = pin();
            for (table, hash) in keys {
                if let Some(table) = self.tables.get(table) {
                    // Damage is ignored here, because the first thread finds it again.
                    let _ = table.directory.load(&guard).prepare(&guard, *hash);
                }
            }
        }
    }
}
