//! Statistics of an open database, for operators.
//!
//! - Counters begin at zero with each open. Sizes are the current ones.
//! - Taking statistics reads no record.
//!
//! Deliberately absent: resetting counters, and rates. A caller computes rates from the difference
//! between two [`Stats`].

use std::fmt;

use serde::Serialize;

use crate::engine::counters::Bytes;
use crate::engine::histogram::Histogram;
use crate::engine::{Engine, lock};
use crate::format::LogPosition;
use crate::format::key_codec::KeyCodec;
use crate::format::super_block::Frontier;
use crate::sequence::Sequence;

/// The current state of a database, returned by [`Db::stats`](crate::Db::stats). The figures are
/// read one after the other, so a commit of another thread during the call may be in only some of
/// them.
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
    /// Identity of the database, in hexadecimal.
    pub database: String,
    /// Sequence of the last visible commit.
    pub sequence: Sequence,
    /// Sequence of the last durable commit. This commit and all earlier commits survive power loss.
    pub durable_sequence: Sequence,
    /// Durable frontier: everything before it survives power loss.
    pub frontier: LogPosition,
    /// Number of keys in all tables, including the names of tables, which are keys of the catalog.
    pub keys: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Bytes of the log other than live records.
    pub dead_bytes: u64,
    /// Bytes of all segments.
    pub log_bytes: u64,
    /// Bytes of the hash directories, in memory or in the mapped checkpoint.
    pub directory_bytes: u64,
    /// Bytes appended to the log in memory and not yet handed to the operating system.
    pub buffered_bytes: u64,
    /// Number of commits since opening.
    pub commits: u64,
    /// Number of records in the commits since opening.
    pub records: u64,
    /// Number of commit groups since opening. The commits of one group share a sync, if one of them
    /// is durable.
    pub groups: u64,
    /// Number of syncs of segment files since opening.
    pub syncs: u64,
    /// Number of checkpoints written since opening.
    pub checkpoints: u64,
    /// Number of segments removed since opening. A segment is removed once it has no live records,
    /// for example because compaction has copied them.
    pub segments_removed: u64,
    /// Bytes copied by compaction since opening.
    pub relocated_bytes: u64,
    /// Number of commits since opening that were slowed, or waited for compaction, because the log
    /// was near its bound.
    pub write_stalls: u64,
    /// Total delay of the commits counted in `write_stalls`, in nanoseconds.
    pub write_stall_ns: u64,
    /// Distribution of the number of commits per commit group that was synced.
    pub group_commits: Histogram,
    /// Distribution of the durations of syncs of segment files, in nanoseconds.
    pub sync_ns: Histogram,
    /// Distribution of the times that durable commits take from joining a commit group to the
    /// result, in nanoseconds.
    pub durable_commit_ns: Histogram,
    /// Number of segments that background compaction skips because of damage or wrong usage counts.
    /// Verify the database, then heal it.
    pub damaged_segments: u64,
    /// Segments of the log, oldest first.
    pub segments: Vec<SegmentStats>,
}

/// Statistics of one segment, part of [`Stats`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// for segment in db.stats().segments {
///     let (id, live, bytes) = (segment.id, segment.live_bytes, segment.bytes);
///     println!("segment {id}: {live} of {bytes} bytes are live");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SegmentStats {
    /// Id of the segment.
    pub id: u64,
    /// Bytes of the segment's header and frames.
    pub bytes: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Bytes of tombstones and clear markers.
    pub tombstone_bytes: u64,
    /// `true` if the segment is complete, so that no more frames are appended to it. Always `true`
    /// in a database that is open read-only.
    pub sealed: bool,
}

/// Statistics of one table, returned by [`Db::tables`](crate::Db::tables).
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
    /// Name of the table.
    pub name: String,
    /// Id of the table, stored in each of its records.
    pub id: u32,
    /// Number of keys.
    pub keys: u64,
    /// Encoding and type of the keys, if the table was created as a typed table and they were
    /// recorded.
    pub keys_as: Option<KeyCodec>,
    /// Bytes of live records.
    pub live_bytes: u64,
}

/// The parts of [`Stats`] that are read with locks held.
#[derive(Default)]
struct Measured {
    keys: u64,
    directory_bytes: u64,
    durable: Frontier,
    sequence: u64,
    segments: Vec<SegmentStats>,
    damaged_segments: u64,
}

impl Measured {
    fn of(engine: &Engine) -> Self {
        let (keys, directory_bytes) = engine.directory_totals();
        let durable = lock(&engine.writer).frontier;
        let core = lock(&engine.core);
        let active = core
            .active
            .as_ref()
            .map(|active| (active.segment.id, active.end()));
        let segments = core
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
        Self {
            keys,
            directory_bytes,
            durable,
            sequence: core.published.sequence,
            segments,
            damaged_segments: lock(&engine.damaged).len() as u64,
        }
    }
}

impl Stats {
    /// Returns the current statistics of `engine`. In a forked child, the figures of [`Measured`],
    /// which need a lock, and the sums over segments are 0, and the list of segments is empty.
    pub(crate) fn of(engine: &Engine) -> Self {
        let Measured {
            keys,
            directory_bytes,
            durable,
            sequence,
            segments,
            damaged_segments,
        } = match engine.check_process() {
            Ok(()) => Measured::of(engine),
            Err(_) => Measured::default(),
        };
        let log_bytes = segments.iter().map(|segment| segment.bytes).sum();
        // The sum saturates, because a forged checkpoint may contain any numbers.
        let live = segments.iter().map(|segment| segment.live_bytes);
        let live_bytes = live.fold(0, u64::saturating_add);
        Stats {
            database: engine.database.to_string(),
            sequence: Sequence(sequence),
            durable_sequence: Sequence(durable.sequence),
            frontier: durable.position,
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
            damaged_segments,
            segments,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64, whole: u64| part * 100 / whole.max(1);
        writeln!(f, "database   {}", self.database)?;
        writeln!(
            f,
            "commits    {} visible, {} durable (up to {})",
            self.sequence, self.durable_sequence, self.frontier
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
                "stalls     {} commits waited for space, {ms} ms in total",
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
        for (name, histogram) in [("commits per sync", &self.group_commits)] {
            if histogram.count > 0 {
                let Histogram {
                    mean, p50, p99, max, ..
                } = histogram;
                writeln!(f, "{name}: mean {mean}, p50 {p50}, p99 {p99}, max {max}")?;
            }
        }
        for (name, histogram) in [
            ("sync", &self.sync_ns),
            ("durable commit", &self.durable_commit_ns),
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
                    "{name}: mean {:.0} us, p50 {:.0}, p99 {:.0}, p99.9 {:.0}, max {:.0}",
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

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::directory::Location;
    use crate::engine::lock;

    #[test]
    fn sums_of_forged_counts_saturate() {
        let folder = tempfile::tempdir().unwrap();
        let options = crate::Options::new().segment_bytes_first(4096).background(false);
        let db = options.segment_bytes_max(4096).open(folder.path()).unwrap();
        let table = db.table("t").unwrap();
        for number in 0..10_u32 {
            table.put(number.to_le_bytes(), [7; 900]).unwrap();
        }
        let segments = db.stats().segments;
        assert!(segments.len() > 1);
        for segment in segments {
            let at = Location::new(segment.id, 64);
            lock(&db.engine.core).usages.add_live(at, 77, usize::MAX);
        }
        let stats = db.stats();
        assert_eq!((stats.live_bytes, stats.dead_bytes), (u64::MAX, 0));
    }
}
