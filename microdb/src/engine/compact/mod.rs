//! Compaction: moves what is alive out of segments that are mostly dead, so that these can be
//! removed.
//!
//! A step takes a few records from the victim, and under the commit lock appends copies of those
//! that the directory still points to and points it to the copies. Because looking, appending and
//! pointing are one step, the log stays true when read from front to back: at the place where a
//! copy stands, it was its key's live record. Replay needs no other rule.
//!
//! A tombstone is kept as long as any segment older than the one it was first written to is part of
//! the log: only there can a put be that it hides. A copied tombstone carries the id of that
//! segment.
//!
//! An emptied victim stays until a checkpoint that does not need it is durable (see `checkpoint`).
//! Views of older moments keep its bytes readable.

mod copy;
mod throttle;

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::copy::{Place, Turn};
use self::throttle::Throttle;
use crate::engine::body::Body;
use crate::engine::log::{Active, Core, is_out_of_room};
use crate::engine::nesting;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameKind};
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::format::usage::SegmentUsage;

/// Segments may span this many ids before the oldest is compacted whatever it holds: a location has
/// 16 bits for them.
const SPAN_COMPACT: u64 = 60_000;

/// Tombstones may take up this share of the live bytes (and a segment) before the oldest segments,
/// which they wait for, are compacted.
const TOMBSTONE_SHARE: u64 = 8;

/// What a compaction did; see [`Db::compact`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let report = db.compact()?;
/// println!("{} bytes before, {} after", report.bytes_before, report.bytes_after);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CompactReport {
    /// Size of the log before, in bytes.
    pub bytes_before: u64,
    /// Size of the log after, in bytes.
    pub bytes_after: u64,
    /// Segments emptied and removed.
    pub segments_removed: u64,
    /// Records copied.
    pub records_copied: u64,
    /// Bytes of them.
    pub bytes_copied: u64,
}

/// A complete segment, and how much of it is dead.
struct Candidate {
    id: u64,
    dead: u64,
    bytes: u64,
}

/// State of background compaction between two of its turns. A turn ends when the copies so far are
/// ahead of `compaction_bytes_per_second`. No lock and no thread is held until the next turn.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// The segment that is emptied in part, by id: a reference to it would keep its file from being
    /// given back.
    begun: Option<(u64, Place)>,
    /// The moment from which the next record may be copied.
    not_before: Option<Instant>,
}

impl Engine {
    /// See `Db::compact`.
    pub(crate) fn compact(&self) -> Result<CompactReport> {
        nesting::check_outside(self)?;
        self.check_writable()?;
        // Commits do not wait for a compaction by request, however long it takes.
        let _hold = self.space.hold();
        let mut compaction = lock(&self.compacting);
        // The throttled compaction begins again with a segment that it finds then.
        *compaction = Compaction::default();
        let mut report = CompactReport {
            bytes_before: self.log_bytes(),
            ..CompactReport::default()
        };
        let removed = self.counters.segments_removed.get();
        let emptied = self.empty_all(&mut report);
        // Removes the emptied segments whatever ended the work: on a full disk this is the room for
        // the rest.
        let checkpointed = self.checkpoint();
        let damage = emptied?;
        checkpointed?;
        // Derived, and no reason to fail.
        let _ = self.seal_segments();
        report.segments_removed = self.counters.segments_removed.get() - removed;
        report.bytes_after = self.log_bytes();
        damage.map_or(Ok(report), Err)
    }

    /// See `Db::wait_idle`.
    pub(crate) fn wait_idle(&self) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_writable()?;
        // Derived, and no reason to fail.
        let _ = self.seal_segments();
        // Without the throttle: the caller waits.
        self.compact_due(&mut lock(&self.compacting), None)?;
        if self.checkpoint_due() {
            self.checkpoint()?;
        }
        Ok(())
    }
}

impl Engine {
    /// Empties every segment that holds anything dead. Segments without a live record go first:
    /// they cost no copy, and on a full disk they are the room for the copies. Returns the first
    /// damage found.
    fn empty_all(&self, report: &mut CompactReport) -> Result<Option<Error>> {
        self.drop_dead_segments();
        if self.is_removal_worth_a_checkpoint() {
            self.checkpoint()?;
        }
        let sealed = match self.seal_active() {
            // All other segments can be compacted without it.
            Err(error) if is_out_of_room(&error) => Err(error),
            sealed => Ok(sealed?),
        };
        self.drop_dead_segments();
        let mut damage = None;
        for Candidate { id: victim, .. } in self.victims(|_, dead| dead > 0) {
            let mut emptied = self.empty_segment(victim, report);
            if emptied.as_ref().is_err_and(is_out_of_room) && self.dying_bytes() > 0 {
                self.checkpoint()?;
                emptied = self.empty_segment(victim, report);
            }
            match emptied {
                // It stays, and the others need not wait for it.
                Err(error @ Error::Corrupt { .. }) => {
                    self.set_aside(victim);
                    damage.get_or_insert(error);
                }
                other => other?,
            }
        }
        sealed?;
        Ok(damage)
    }

    /// Returns the bytes of the segments that the next checkpoint removes.
    fn dying_bytes(&self) -> u64 {
        let core = lock(&self.core);
        let removable = core
            .usages
            .iter()
            .filter(|(id, usage)| core.is_removable(*id, usage));
        removable.map(|(_, usage)| u64::from(usage.end)).sum()
    }

    /// Returns `true` if the segments that wait for removal are worth the cost of a checkpoint,
    /// which is the size of the directory.
    fn is_removal_worth_a_checkpoint(&self) -> bool {
        let dying = self.dying_bytes();
        dying > 0 && dying > 2 * self.directory_totals().1
    }
}

impl Engine {
    /// Compacts the segments that are worth it, at most at `compaction_bytes_per_second`. Ends when
    /// the database is closed. Returns how long to wait before the next turn, if there is work left
    /// that the rate does not allow yet.
    pub(crate) fn compact_in_background(&self) -> Result<Option<Duration>> {
        let mut compaction = lock(&self.compacting);
        self.compact_due(&mut compaction, self.options.compaction_bytes_per_second)
    }

    /// See [`Engine::compact_in_background`]; for the holder of `compacting`.
    fn compact_due(&self, compaction: &mut Compaction, rate: Option<u64>) -> Result<Option<Duration>> {
        let mut report = CompactReport::default();
        let mut is_above_target = self.is_above_target();
        let compacted = self.empty_due(compaction, rate, &mut is_above_target, &mut report);
        // Emptied segments are removed whatever ended the work. A turn that goes on later leaves
        // few of them for then. Of a log that is small enough, the next checkpoint removes what is
        // dead.
        if !matches!(compacted, Ok(Some(_))) && is_above_target && self.dying_bytes() > 0 {
            let checkpointed = self.checkpoint();
            let wait = compacted?;
            return checkpointed.map(|_| wait);
        }
        compacted
    }

    /// Empties segments until none is worth it or the throttle demands a pause, whose length is
    /// returned.
    fn empty_due(
        &self,
        compaction: &mut Compaction,
        rate: Option<u64>,
        found_victim: &mut bool,
        report: &mut CompactReport,
    ) -> Result<Option<Duration>> {
        loop {
            self.drop_dead_segments();
            // A checkpoint costs as much as the directory is large: worth it once enough would be
            // freed.
            if self.is_removal_worth_a_checkpoint() {
                self.checkpoint()?;
            }
            let Some((victim, mut place)) = self.begun_or_next_victim(compaction) else {
                return Ok(None);
            };
            *found_victim = true;
            let mut throttle = rate.map(|bytes_per_second| Throttle {
                bytes_per_second,
                not_before: &mut compaction.not_before,
            });
            match self.empty_from(victim, &mut place, throttle.as_mut(), report) {
                Ok(Turn::Emptied) => {}
                Ok(Turn::Wait(wait)) => {
                    compaction.begun = Some((victim, place));
                    return Ok(Some(wait));
                }
                // Tried again after the next open, or when asked for; meanwhile the others go on.
                Err(Error::Corrupt { .. }) => self.set_aside(victim),
                Err(error) => return Err(error),
            }
        }
    }

    /// The segment that the last turn left emptied in part, if it is still there, or else the next
    /// victim.
    fn begun_or_next_victim(&self, compaction: &mut Compaction) -> Option<(u64, Place)> {
        let is_left = |id: u64| {
            let core = lock(&self.core);
            core.usages.get(id).is_some_and(|usage| !usage.dying)
        };
        let begun = compaction.begun.take().filter(|(id, _)| is_left(*id));
        begun.or_else(|| self.next_victim().map(|victim| (victim, Place::START)))
    }

    /// Frees space for a commit that waits for it: empties the segments with the most dead bytes
    /// until a checkpoint is worth its cost, and writes it. Returns `true` if segments were
    /// removed. The caller holds `compacting`.
    pub(crate) fn free_space(&self) -> Result<bool> {
        let removed = self.counters.segments_removed.get();
        let enough = self
            .directory_totals()
            .1
            .max(self.options.segment_bytes_max.into());
        let mut report = CompactReport::default();
        self.drop_dead_segments();
        while self.dying_bytes() < enough {
            let damaged = lock(&self.damaged).clone();
            let victims = self.victims(|id, dead| dead > 0 && !damaged.contains(&id));
            let Some(victim) = victims.first() else { break };
            match self.empty_segment(victim.id, &mut report) {
                Err(Error::Corrupt { .. }) => self.set_aside(victim.id),
                other => other?,
            }
        }
        if self.dying_bytes() > 0 {
            self.checkpoint()?;
        }
        Ok(self.counters.segments_removed.get() > removed)
    }

    /// Marks the segments without a live record as dying, unread: no record of theirs is copied,
    /// verified or sealed. Tombstones go with the oldest segments, because they hide nothing any
    /// more.
    pub(crate) fn drop_dead_segments(&self) {
        let damaged = lock(&self.damaged).clone();
        let mut core = lock(&self.core);
        let complete: Vec<u64> = core.complete().map(|(id, _)| id).collect();
        let ids: Vec<u64> = core.usages.iter().map(|(id, _)| id).collect();
        let mut is_oldest = true;
        for id in ids {
            let Some(usage) = core.usages.get_mut(id) else {
                continue;
            };
            if usage.dying {
                continue;
            }
            // Numbers of records decide, where they were counted. Bytes are only a hint, which the
            // checkpoint verifies.
            let is_dead = if usage.counted {
                usage.has_no_live_record()
            } else {
                usage.live_bytes() == 0 && !damaged.contains(&id)
            };
            if is_dead && (is_oldest || usage.tombstones == 0) && complete.binary_search(&id).is_ok() {
                usage.dying = true;
                usage.unverified = !usage.counted;
            } else {
                is_oldest = false;
            }
        }
    }

    /// Returns `true` if the log, with the segments that are emptied already, is larger than
    /// compaction keeps it.
    fn is_above_target(&self) -> bool {
        let sizes = self.sizes(&lock(&self.core));
        sizes.log + u64::from(self.options.segment_bytes_max) > sizes.soft
    }

    /// The segment that background compaction should empty next. None while dead bytes are less
    /// than their share of the whole log: the longer a segment waits, the less of it is left to
    /// copy. Then the one with the largest dead share, which is never less than that of the whole.
    fn next_victim(&self) -> Option<u64> {
        let percent = u64::from(self.options.compaction_dead_percent);
        let damaged = lock(&self.damaged).clone();
        let victims = self.victims(|id, _| !damaged.contains(&id));
        let dead: u64 = victims.iter().map(|victim| victim.dead).sum();
        let bytes: u64 = victims.iter().map(|victim| victim.bytes).sum();
        if dead * 100 >= bytes * percent
            && let Some(victim) = victims.first().filter(|victim| victim.dead > 0)
        {
            return Some(victim.id);
        }
        self.old_segments().filter(|old| !damaged.contains(old))
    }

    /// Leaves a segment with damage in it to whoever heals it: compaction cannot read all of it,
    /// and may not lose what it cannot read.
    pub(crate) fn set_aside(&self, segment: u64) {
        lock(&self.damaged).insert(segment);
    }

    /// Bytes of all segments.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.sizes(&lock(&self.core)).log
    }

    /// Complete segments of which `wanted` says so, by id and dead bytes; the one with the largest
    /// dead share first.
    fn victims(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<Candidate> {
        let core = lock(&self.core);
        let oldest = core.usages.iter().next().map_or(0, |(id, _)| id);
        let mut victims = Vec::new();
        for (id, usage) in core.complete() {
            let bytes = u64::from(usage.end);
            // A tombstone in the oldest segment waits for nothing.
            let kept = usage.live_bytes() + if id == oldest { 0 } else { usage.tombstones };
            let dead = bytes.saturating_sub(kept + u64::from(SEGMENT_HEADER_BYTES));
            if wanted(id, dead) {
                victims.push(Candidate { id, dead, bytes });
            }
        }
        victims.sort_unstable_by_key(|victim| Reverse((victim.dead * 1000 / victim.bytes, victim.id)));
        victims
    }

    /// The oldest segment, if ids span too far or too many tombstones wait for it.
    fn old_segments(&self) -> Option<u64> {
        let core = lock(&self.core);
        let mut sealed = core.complete();
        let (oldest, _) = sealed.next()?;
        let tombstones: u64 = core.usages.iter().map(|(_, usage)| usage.tombstones).sum();
        let live: u64 = core.usages.iter().map(|(_, usage)| usage.live_bytes()).sum();
        let too_many = tombstones > live / TOMBSTONE_SHARE + u64::from(self.options.segment_bytes_max);
        (core.next_segment - oldest > SPAN_COMPACT || too_many).then_some(oldest)
    }

    /// Makes the active segment a complete one, so that it can be compacted too. The log goes on in
    /// a new segment, with a frame without records: the log then ends there, and the other segment
    /// can be removed. If the disk has no room for a new segment, the log goes on in the active
    /// one.
    fn seal_active(&self) -> Result<()> {
        let mut core = self.lock_quiet();
        if let Some(active) = &mut core.active
            && active.end() > SEGMENT_HEADER_BYTES
        {
            let mut rolled = self.roll(&mut core, FRAME_HEADER_BYTES as usize);
            if rolled.as_ref().is_err_and(is_out_of_room) {
                // The blocks that are allocated ahead may be all the room that is needed.
                core.active.as_mut().into_iter().for_each(Active::cut);
                rolled = self.roll(&mut core, FRAME_HEADER_BYTES as usize);
            }
            rolled?;
            let (mut body, end) = (Body::default(), core.end);
            let crc = body.crc();
            let (sequence, chain) = (end.sequence, end.chain);
            let place =
                self.append_frame(&mut core, FrameKind::Relocation, &mut body, crc, sequence, chain)?;
            core.publish(place, 0);
        }
        drop(core);
        self.sync_log().map(|_| ())
    }
}

impl Core {
    /// Returns `true` if the next checkpoint removes the segment. The segment at the end of the log
    /// stays, even with nothing alive in it: the next segment names it as the one before.
    pub(crate) fn is_removable(&self, id: u64, usage: &SegmentUsage) -> bool {
        usage.dying && id != self.published.position.segment
    }

    /// Segments to which nothing is added any more, and whose records have all been published: of a
    /// group that waits for the disk, frames may lie in a segment that is no longer active, and
    /// look as if they were dead.
    pub(crate) fn complete(&self) -> impl Iterator<Item = (u64, &SegmentUsage)> {
        let (quiet, published) = (self.end == self.published, self.published.position.segment);
        let complete = move |id: u64| quiet || id < published;
        self.usages
            .iter()
            .filter(move |(id, usage)| usage.end > 0 && !usage.dying && complete(*id))
    }
}
