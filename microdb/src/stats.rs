//! What an operator wants to know of an open database.

use std::fmt;

use serde::Serialize;

use crate::db::Db;
use crate::engine::counters::Bytes;
use crate::engine::histogram::Histogram;
use crate::engine::lock;
use crate::format::LogPosition;

/// The state of a database at one moment; see [`Db::stats`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let stats = db.stats();
/// assert!(stats.keys >= 1 && stats.syncs >= 1);
/// println!("{stats}");
/// # Ok(())
/// # }
/// ```
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
    /// Keys in all tables, and the names of tables, which are keys of the catalog.
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
    /// Commits since opening that were slowed, or waited for compaction, because the log was near
    /// its bound.
    pub write_stalls: u64,
    /// Time in nanoseconds for which these commits were held back, in all.
    pub write_stall_ns: u64,
    /// How many commits shared a sync.
    pub group_commits: Histogram,
    /// How long the disk took to sync a segment, in nanoseconds.
    pub sync_ns: Histogram,
    /// How long durable commits took, from the call to the acknowledgement, in nanoseconds.
    pub durable_commit_ns: Histogram,
    /// Segments that compaction has set aside because of damage in them: verify the database, and
    /// heal it.
    pub damaged_segments: u64,
    /// The log, oldest segment first.
    pub segments: Vec<SegmentStats>,
}

/// One segment; see [`Stats`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// for segment in db.stats().segments {
///     println!("segment {}: {} of {} bytes are alive", segment.id, segment.live_bytes, segment.bytes);
/// }
/// # Ok(())
/// # }
/// ```
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
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let table = &db.tables()[0];
/// assert_eq!((table.name.as_str(), table.keys), ("events", 0));
/// # Ok(())
/// # }
/// ```
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
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// println!("{} bytes a key in memory", db.stats().directory_bytes / db.stats().keys);
    /// # Ok(())
    /// # }
    /// ```
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
            .usages
            .iter()
            .map(|(id, usage)| {
                let is_active = active.is_some_and(|(active, _)| active == id);
                SegmentStats {
                    id,
                    bytes: active
                        .filter(|_| is_active)
                        .map_or(usage.end, |(_, end)| end)
                        .into(),
                    live_bytes: usage.live_bytes(),
                    tombstone_bytes: usage.tombstones,
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
            write_stalls: engine.counters.write_stalls.get(),
            write_stall_ns: engine.counters.write_stall_ns.get(),
            group_commits: engine.counters.group_commits.histogram(),
            sync_ns: engine.counters.sync_ns.histogram(),
            durable_commit_ns: engine.counters.durable_commit_ns.histogram(),
            damaged_segments: lock(&engine.damaged).len() as u64,
            segments,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64, whole: u64| part * 100 / whole.max(1);
        let (segment, offset) = self.frontier;
        writeln!(f, "database   {}", self.database)?;
        writeln!(
            f,
            "commits    {} visible, {} durable (up to {segment}:{offset})",
            self.sequence, self.durable_sequence
        )?;
        let (keys, live, dead) = (self.keys, Bytes(self.live_bytes), Bytes(self.dead_bytes));
        writeln!(f, "live       {keys} keys, {live}")?;
        let (log, segments, percent) = (
            Bytes(self.log_bytes),
            self.segments.len(),
            share(self.dead_bytes, self.log_bytes),
        );
        writeln!(
            f,
            "log        {log} in {segments} segments, {dead} ({percent} %) of it dead"
        )?;
        let per_key = self.directory_bytes as f64 / self.keys.max(1) as f64;
        writeln!(
            f,
            "directory  {} ({per_key:.1} bytes a key)",
            Bytes(self.directory_bytes)
        )?;
        writeln!(f, "buffered   {}", Bytes(self.buffered_bytes))?;
        let (commits, records, syncs) = (self.commits, self.records, self.syncs);
        writeln!(
            f,
            "since open {commits} commits with {records} records; {syncs} syncs, {} checkpoints",
            self.checkpoints
        )?;
        let (removed, copied) = (self.segments_removed, Bytes(self.relocated_bytes));
        writeln!(f, "compaction {removed} segments removed, {copied} copied")?;
        if self.write_stalls > 0 {
            let ms = self.write_stall_ns / 1_000_000;
            writeln!(
                f,
                "stalls     {} commits waited for space, {ms} ms in all",
                self.write_stalls
            )?;
        }
        if self.damaged_segments > 0 {
            writeln!(
                f,
                "DAMAGED    {} segments: verify, then heal or salvage",
                self.damaged_segments
            )?;
        }
        for (name, histogram) in [("commits a sync", &self.group_commits)] {
            if histogram.count > 0 {
                let Histogram {
                    mean, p50, p99, max, ..
                } = histogram;
                writeln!(
                    f,
                    "{name}: mean {mean}, half at most {p50}, 99 % at most {p99}, all at most {max}"
                )?;
            }
        }
        for (name, histogram) in [
            ("a sync", &self.sync_ns),
            ("a durable commit", &self.durable_commit_ns),
        ] {
            if histogram.count > 0 {
                let us = |ns: u64| ns as f64 / 1000.0;
                let Histogram {
                    mean,
                    p50,
                    p99,
                    p999,
                    max,
                    ..
                } = *histogram;
                writeln!(
                    f,
                    "{name}: mean {:.0} us, half at most {:.0}, 99 % at most {:.0}, 99.9 % at most {:.0}, all at most {:.0}",
                    us(mean),
                    us(p50),
                    us(p99),
                    us(p999),
                    us(max)
                )?;
            }
        }
        Ok(())
    }
}
