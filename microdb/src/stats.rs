//! What an operator wants to know of an open database.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::db::Db;
use crate::engine::lock;
use crate::format::LogPosition;
use crate::raw::epoch::pin;

/// A count that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts since the database was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: Counter,
    pub(crate) records: Counter,
    pub(crate) groups: Counter,
    pub(crate) syncs: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) segments_removed: Counter,
    pub(crate) relocated_bytes: Counter,
}

/// The state of a database at one moment; see [`Db::stats`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Identity of the database, in hex.
    pub database: String,
    /// Sequence of the last visible commit.
    pub sequence: u64,
    /// Sequence up to which all commits survive power loss.
    pub durable_sequence: u64,
    /// Segment and offset of the durable frontier.
    pub frontier: (u64, u32),
    /// Keys in all tables.
    pub keys: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Bytes of the log's segments that are neither live records nor headers of live use.
    pub dead_bytes: u64,
    /// Bytes of all segments.
    pub log_bytes: u64,
    /// Bytes of the hash directories, in memory of their own or in place in the checkpoint's map.
    pub directory_bytes: u64,
    /// Bytes of commits that are visible but not yet handed to the operating system.
    pub buffered_bytes: u64,
    /// Commits since opening.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Groups in which durable commits shared a sync.
    pub groups: u64,
    /// Times that a file was synced.
    pub syncs: u64,
    /// Checkpoints written since opening.
    pub checkpoints: u64,
    /// Segments emptied by compaction and removed since opening.
    pub segments_removed: u64,
    /// Bytes that compaction has copied since opening.
    pub relocated_bytes: u64,
    /// Segments that compaction has set aside because of damage in them: verify the database, and heal it.
    pub damaged_segments: u64,
    /// The log, oldest segment first.
    pub segments: Vec<SegmentStats>,
}

/// One segment; see [`Stats`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SegmentStats {
    /// Its id.
    pub id: u64,
    /// Bytes of its frames and header.
    pub bytes: u64,
    /// Bytes of its live records.
    pub live_bytes: u64,
    /// Bytes of its tombstones.
    pub tombstone_bytes: u64,
    /// Whether it is complete.
    pub sealed: bool,
}

/// One table; see [`Db::tables`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// Its id, which its records carry.
    pub id: u32,
    /// Number of keys.
    pub keys: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
}

impl Db {
    /// The state of the database now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let engine = &self.engine;
        let (keys, directory_bytes) = engine.directory_totals();
        let durable = lock(&engine.writer).frontier;
        let core = lock(&engine.core);
        let active = core
            .active
            .as_ref()
            .map(|active| (active.segment.id, active.end()));
        let segments: Vec<SegmentStats> = core
            .accounts
            .iter()
            .map(|(id, account)| {
                let is_active = active.is_some_and(|(active, _)| active == id);
                SegmentStats {
                    id,
                    bytes: active
                        .filter(|_| is_active)
                        .map_or(account.end, |(_, end)| end)
                        .into(),
                    live_bytes: account.live_bytes(),
                    tombstone_bytes: account.tombstones,
                    sealed: !is_active,
                }
            })
            .collect();
        let log_bytes = segments.iter().map(|segment| segment.bytes).sum();
        let live_bytes = segments.iter().map(|segment| segment.live_bytes).sum();
        let LogPosition { segment, offset } = durable.position;
        Stats {
            database: engine.database.to_string(),
            sequence: core.published.sequence,
            durable_sequence: durable.sequence,
            frontier: (segment, offset),
            keys,
            live_bytes,
            dead_bytes: u64::saturating_sub(log_bytes, live_bytes),
            log_bytes,
            directory_bytes,
            buffered_bytes: engine.backlog(),
            commits: engine.counters.commits.get(),
            records: engine.counters.records.get(),
            groups: engine.counters.groups.get(),
            syncs: engine.counters.syncs.get(),
            checkpoints: engine.counters.checkpoints.get(),
            segments_removed: engine.counters.segments_removed.get(),
            relocated_bytes: engine.counters.relocated_bytes.get(),
            damaged_segments: lock(&engine.damaged).len() as u64,
            segments,
        }
    }
}

impl crate::engine::Engine {
    /// Keys and directory memory of all named tables.
    pub(crate) fn directory_totals(&self) -> (u64, u64) {
        let guard = pin();
        let tables = self.tables();
        let directories = tables.iter().map(|table| table.directory.load(&guard));
        directories.fold((0, 0), |(keys, bytes), directory| {
            (
                keys + directory.len(),
                bytes + directory.bytes() + directory.mapped_bytes(&guard),
            )
        })
    }
}
