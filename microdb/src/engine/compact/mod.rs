//! Compaction: moves live records out of segments with many dead bytes, so that these segments can
//! be removed.
//!
//! - Checking that a record is live, appending its copy and pointing the directory to the copy are
//!   one step under the commit lock. So the log stays correct when it is read from front to back:
//!   the copied record was still the live record of its key when the copy was appended. Replay
//!   treats copies like other records, except for copied clear markers (see `recover::replay`).
//! - The tombstone of a key that is still absent is kept while the log has a segment, not yet
//!   emptied, that is older than the one to which the tombstone was first written. Only such a
//!   segment can contain a put that the tombstone hides. A copied tombstone carries the id of the
//!   segment to which it was first written. The same holds for clear markers.
//! - An emptied segment stays until a state of SUPER without the segment is durable (see
//!   `checkpoint`). A snapshot taken before can read the segment even after the file was removed.
//!
//! Deliberately absent: removal of files, which is in `checkpoint`.

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

/// Maximum distance between the ids of the oldest and the newest segment. Beyond this distance, the
/// oldest segment is compacted even if the log has few dead bytes, because a location has only 16
/// bits for the id.
const SPAN_COMPACT: u64 = 60_000;

/// Tombstones may take 1/`TOMBSTONE_SHARE` of the live bytes, plus the maximum size of a segment.
/// Beyond this sum, the oldest segment is compacted, because a tombstone can be dropped once no
/// older segment exists.
const TOMBSTONE_SHARE: u64 = 8;

/// Result of a compaction, returned by [`Db::compact`](crate::Db::compact).
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
    /// Size of the log before the compaction, in bytes.
    pub bytes_before: u64,
    /// Size of the log after the compaction, in bytes.
    pub bytes_after: u64,
    /// Number of segments that were emptied and removed.
    pub segments_removed: u64,
    /// Number of records that were copied.
    pub records_copied: u64,
    /// Bytes of the copied records.
    pub bytes_copied: u64,
}

/// A complete segment with its size and the number of its dead bytes.
struct Candidate {
    id: u64,
    dead: u64,
    bytes: u64,
}

/// State of background compaction between two turns. A turn is a run of background compaction. A
/// turn ends when no segment is left to compact, when its copies exceed the rate
/// `compaction_bytes_per_second`, or with an error. Between two turns, compaction holds no lock and
/// no thread.
#[derive(Debug, Default)]
pub(crate) struct Compaction {
    /// Id of the partly copied segment, and the position of the next record in it. `None` if no
    /// segment is partly copied. An `Arc` of the segment would prevent its memory from being freed.
    begun: Option<(u64, Place)>,
    /// Earliest time of the next throttled copy. `None` if no throttled copy has been made since
    /// the open or the last requested compaction.
    not_before: Option<Instant>,
}

impl Engine {
    /// Implements [`Db::compact`](crate::Db::compact).
    pub(crate) fn compact(&self) -> Result<CompactReport> {
        nesting::check_outside(self)?;
        self.check_writable()?;
        // Until `_hold` is dropped, commits do not wait for space, because a requested compaction
        // may take long.
        let _hold = self.space.hold();
        let mut compaction = lock(&self.compacting);
        // Checked again, because a close may have ended while this thread waited for the lock, and
        // another process may have the database open since.
        self.check_writable()?;
        // Forgets the progress of a throttled background compaction, because this compaction covers
        // all segments.
        *compaction = Compaction::default();
        let mut report = CompactReport {
            bytes_before: self.log_bytes(),
            ..CompactReport::default()
        };
        let removed = self.counters.segments_removed.get();
        let emptied = self.empty_all(&mut report);
        // The checkpoint removes the emptied segments even after an error. On a full disk, their
        // space is needed to compact the remaining segments.
        let checkpointed = self.checkpoint();
        let damage = emptied?;
        checkpointed?;
        // A failure is ignored, because a seal can be computed again from its segment.
        let _ = self.seal_segments();
        report.segments_removed = self.counters.segments_removed.get() - removed;
        report.bytes_after = self.log_bytes();
        damage.map_or(Ok(report), Err)
    }

    /// Implements [`Db::wait_idle`](crate::Db::wait_idle).
    pub(crate) fn wait_idle(&self) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_writable()?;
        // A failure is ignored, because a seal can be computed again from its segment.
        let _ = self.seal_segments();
        // The rate limit does not apply, because the caller waits for the result.
        self.compact_due(&mut lock(&self.compacting), None)?;
        if self.checkpoint_due() {
            self.checkpoint()?;
        }
        Ok(())
    }
}

impl Engine {
    /// Completes the active segment, and empties every complete segment with dead bytes. If
    /// segments without live records are worth a checkpoint, they are removed first: this needs no
    /// copies, and on a full disk it frees the space for copies. Returns the first damage found, or
    /// `None` without damage.
    fn empty_all(&self, report: &mut CompactReport) -> Result<Option<Error>> {
        self.drop_dead_segments();
        if self.is_removal_worth_a_checkpoint() {
            self.checkpoint()?;
        }
        let sealed = match self.seal_active() {
            // If the disk has no space for a new active segment, the other segments are compacted,
            // and the error is returned at the end.
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
                // The damaged segment is kept, and the remaining segments are compacted.
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

    /// Returns the size, in bytes, of the segments marked for removal by the next checkpoint.
    fn dying_bytes(&self) -> u64 {
        let core = lock(&self.core);
        let removable = core
            .usages
            .iter()
            .filter(|(id, usage)| core.is_removable(*id, usage));
        removable.map(|(_, usage)| u64::from(usage.end)).sum()
    }

    /// Returns `true` if the segments that a checkpoint would remove have more than twice the size
    /// of the directory, so that they are worth the cost of the checkpoint, which writes the
    /// directory.
    fn is_removal_worth_a_checkpoint(&self) -> bool {
        let dying = self.dying_bytes();
        dying > 0 && dying > 2 * self.directory_totals().1
    }
}

impl Engine {
    /// Compacts segments as long as `next_victim` finds one, at most at the rate
    /// `compaction_bytes_per_second`. Returns the time until the next turn if the rate limit ended
    /// this turn. Copying ends with an error if the database is closed or poisoned.
    pub(crate) fn compact_in_background(&self) -> Result<Option<Duration>> {
        let mut compaction = lock(&self.compacting);
        self.compact_due(&mut compaction, self.options.compaction_bytes_per_second)
    }

    /// Compacts segments like [`Engine::compact_in_background`], for a caller that holds the lock
    /// `compacting`. `rate` is the maximum number of bytes copied per second.
    fn compact_due(&self, compaction: &mut Compaction, rate: Option<u64>) -> Result<Option<Duration>> {
        let mut report = CompactReport::default();
        let mut is_above_target = self.is_above_target();
        let compacted = self.empty_due(compaction, rate, &mut is_above_target, &mut report);
        // Emptied segments are removed even after an error. In two cases a later checkpoint removes
        // them: the rate limit ended the turn, or there was no segment to empty and
        // `is_above_target` returned `false`. (`empty_due` sets `is_above_target` if it finds a
        // segment.)
        if !matches!(compacted, Ok(Some(_))) && is_above_target && self.dying_bytes() > 0 {
            let checkpointed = self.checkpoint();
            let wait = compacted?;
            return checkpointed.map(|_| wait);
        }
        compacted
    }

    /// Empties segments until no segment is due, or the throttle requires a pause. Returns the
    /// length of the pause. Sets `found_victim` if a segment was due.
    fn empty_due(
        &self,
        compaction: &mut Compaction,
        rate: Option<u64>,
        found_victim: &mut bool,
        report: &mut CompactReport,
    ) -> Result<Option<Duration>> {
        loop {
            self.drop_dead_segments();
            // The cost of a checkpoint is proportional to the size of the directory, so the
            // checkpoint must free enough bytes.
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
                // Background compaction skips a damaged segment until the next open. The other
                // segments are compacted.
                Err(Error::Corrupt { .. }) => self.set_aside(victim),
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the segment that the last turn has copied in part, if it still exists and is not
    /// emptied. Otherwise returns the next segment to compact, or `None` if no segment is due. The
    /// place is the position at which copying begins.
    fn begun_or_next_victim(&self, compaction: &mut Compaction) -> Option<(u64, Place)> {
        let is_left = |id: u64| {
            let core = lock(&self.core);
            core.usages.get(id).is_some_and(|usage| !usage.dying)
        };
        let begun = compaction.begun.take().filter(|(id, _)| is_left(*id));
        begun.or_else(|| self.next_victim().map(|victim| (victim, Place::START)))
    }

    /// Frees space for a waiting commit: empties the segments with the largest share of dead bytes,
    /// and writes a checkpoint to remove them. It stops emptying once the emptied segments together
    /// have at least the size of the directory and at least the maximum size of one segment. It
    /// also stops if no other undamaged segment has dead bytes. Returns `true` if segments were
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

    /// Marks complete segments without live records as dying, without reading them. So the next
    /// checkpoint removes them, and compaction neither copies nor verifies their records. A segment
    /// with tombstones is marked only if all older segments are dying, because then no older put
    /// exists that they could hide. An older segment marked by its byte counts does not suffice,
    /// because the checkpoint keeps that segment if the counts are wrong.
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
                is_oldest &= !usage.unverified;
                continue;
            }
            // If the live records of the segment were counted since its beginning, their number
            // decides. Otherwise the live bytes decide. The number of live bytes may be wrong, so
            // the checkpoint verifies the decision.
            let is_dead = if usage.counted {
                usage.has_no_live_record()
            } else {
                usage.live_bytes() == 0 && !damaged.contains(&id)
            };
            if is_dead && (is_oldest || usage.tombstones == 0) && complete.binary_search(&id).is_ok() {
                usage.dying = true;
                usage.unverified = !usage.counted;
                is_oldest &= usage.counted;
            } else {
                is_oldest = false;
            }
        }
    }

    /// Returns `true` if the log, including emptied segments, would exceed its soft limit with one
    /// more segment of the maximum size.
    fn is_above_target(&self) -> bool {
        let sizes = self.sizes(&lock(&self.core));
        sizes.log + u64::from(self.options.segment_bytes_max) > sizes.soft
    }

    /// Returns the next segment for background compaction: the one with the largest share of dead
    /// bytes. While the share in all complete segments is below the option
    /// `compaction_dead_percent`, returns only a segment that [`Engine::old_segments`] returns.
    /// Damaged segments are skipped. Returns `None` if no segment is due. The later a segment is
    /// compacted, the fewer live records must be copied.
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

    /// Excludes a segment with damage, or with wrong usage counts, from background compaction until
    /// the next open. Compaction must not lose records that it cannot read or count.
    pub(crate) fn set_aside(&self, segment: u64) {
        lock(&self.damaged).insert(segment);
    }

    /// Returns the size of all segments in bytes.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.sizes(&lock(&self.core)).log
    }

    /// Returns the segments of [`Core::complete`] for which `wanted` (id, dead bytes) is `true`,
    /// the one with the largest share of dead bytes first.
    fn victims(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<Candidate> {
        let core = lock(&self.core);
        let oldest = core.usages.iter().next().map_or(0, |(id, _)| id);
        let mut victims = Vec::new();
        for (id, usage) in core.complete() {
            let bytes = u64::from(usage.end);
            // Tombstones in the oldest segment are dead bytes, because no older put exists that
            // they could hide.
            let tombstones = if id == oldest { 0 } else { usage.tombstones };
            // The sums saturate, because a forged checkpoint may contain any numbers.
            let kept = usage.live_bytes().saturating_add(tombstones);
            let dead = bytes.saturating_sub(kept.saturating_add(u64::from(SEGMENT_HEADER_BYTES)));
            if wanted(id, dead) {
                victims.push(Candidate { id, dead, bytes });
            }
        }
        victims.sort_unstable_by_key(|victim| Reverse((victim.dead * 1000 / victim.bytes, victim.id)));
        victims
    }

    /// Returns the oldest complete segment if its id is too far from the newest id, or if
    /// tombstones take too many bytes. Otherwise returns `None`.
    fn old_segments(&self) -> Option<u64> {
        let core = lock(&self.core);
        let mut sealed = core.complete();
        let (oldest, _) = sealed.next()?;
        // The sums saturate, because a forged checkpoint may contain any numbers.
        let (mut tombstones, mut live) = (0_u64, 0_u64);
        for (_, usage) in core.usages.iter() {
            tombstones = tombstones.saturating_add(usage.tombstones);
            live = live.saturating_add(usage.live_bytes());
        }
        let too_many = tombstones > live / TOMBSTONE_SHARE + u64::from(self.options.segment_bytes_max);
        (core.next_segment - oldest > SPAN_COMPACT || too_many).then_some(oldest)
    }

    /// Completes the active segment if it has frames, so that it can be compacted too, and syncs
    /// the log. The log continues in a new segment with an empty frame. The end of the log is then
    /// in the new segment, so the completed segment can be removed. If the disk has no space for a
    /// new segment, the function returns the error, and the log continues in the active segment.
    fn seal_active(&self) -> Result<()> {
        let mut core = self.lock_quiet();
        // If the sync of a group has failed, its refused frames are at the end of the log. A frame
        // published behind them would make them visible.
        self.check_writable()?;
        if let Some(active) = &mut core.active
            && active.end() > SEGMENT_HEADER_BYTES
        {
            let mut rolled = self.roll(&mut core, FRAME_HEADER_BYTES as usize);
            if rolled.as_ref().is_err_and(is_out_of_room) {
                // Cutting the active segment frees its blocks allocated ahead, which may be enough
                // space for the new segment.
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
    /// Returns `true` if the next checkpoint may remove the segment. The segment with the end of
    /// the published log stays even without live records, because the header of the next segment
    /// will refer to that end.
    pub(crate) fn is_removable(&self, id: u64, usage: &SegmentUsage) -> bool {
        usage.dying && id != self.published.position.segment
    }

    /// Returns the complete segments that are not dying and have only published records.
    /// Unpublished frames of a group may be in a segment that is no longer active. Their records
    /// would look dead, because the directory does not point to them yet.
    pub(crate) fn complete(&self) -> impl Iterator<Item = (u64, &SegmentUsage)> {
        let (quiet, published) = (self.end == self.published, self.published.position.segment);
        let complete = move |id: u64| quiet || id < published;
        self.usages
            .iter()
            .filter(move |(id, usage)| usage.end > 0 && !usage.dying && complete(*id))
    }
}
