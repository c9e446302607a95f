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

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::directory::{KeyHash, Location};
use crate::engine::body::{Body, Op};
use crate::engine::catalog::TableCore;
use crate::engine::log::{Active, Core, is_out_of_room};
use crate::engine::nesting;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::record::{self, Record, RecordKind};
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::format::usage::SegmentUsage;
use crate::raw::epoch::{Guard, pin};
use crate::raw::reclaim;

/// Most records, and most bytes, that a step looks at: the commit lock is held for some tens of
/// microseconds.
const STEP_RECORDS: usize = 256;
/// See [`STEP_RECORDS`]. One record may be larger.
const STEP_BYTES: usize = 128 * 1024;

/// Segments may span this many ids before the oldest is compacted whatever it holds: a location has
/// 16 bits for them.
const SPAN_COMPACT: u64 = 60_000;

/// Tombstones may take up this share of the live bytes (and a segment) before the oldest segments,
/// which they wait for, are compacted.
const TOMBSTONE_SHARE: u64 = 8;

/// Longest pause of a throttled compaction after one step: a year, so that no sum of times
/// overflows.
const PAUSE_SECONDS_MAX: f64 = 365.0 * 86_400.0;

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

/// Copies waiting to be appended.
#[derive(Default)]
struct Step {
    body: Body,
    tables: Vec<Arc<TableCore>>,
    from: Vec<Location>,
}

/// A complete segment, and how much of it is dead.
struct Candidate {
    id: u64,
    dead: u64,
    bytes: u64,
}

/// The rest of a victim.
struct Victim {
    segment: Arc<Segment>,
    end: u32,
    place: Place,
}

/// A place in a victim.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The next record, and where its frame ends.
    at: u32,
    frame_end: u32,
}

impl Place {
    const START: Self = Self {
        at: SEGMENT_HEADER_BYTES,
        frame_end: SEGMENT_HEADER_BYTES,
    };
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

/// How a turn of emptying a segment ended.
enum Turn {
    /// Every record that is alive was copied.
    Emptied,
    /// The next turn is due after this time.
    Wait(Duration),
}

/// Limits the rate of copies.
struct Throttle<'a> {
    bytes_per_second: u64,
    not_before: &'a mut Option<Instant>,
}

impl Throttle<'_> {
    /// Takes note of copied bytes.
    fn copied(&mut self, bytes: u64) {
        if bytes > 0 {
            let now = Instant::now();
            let seconds = bytes as f64 / self.bytes_per_second as f64;
            let from = self.not_before.map_or(now, |at| at.max(now));
            *self.not_before = Some(from + Duration::from_secs_f64(seconds.min(PAUSE_SECONDS_MAX)));
        }
    }

    /// Returns how long the next copy has to wait.
    fn wait(&self) -> Option<Duration> {
        let left = self
            .not_before
            .as_ref()?
            .saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
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

    /// Whether the directory points to the record at `at`. No need to look at other records of that
    /// hash: a location is of one key.
    #[inline]
    fn is_live(&self, guard: &Guard, table: &TableCore, hash: KeyHash, at: Location) -> Result<bool> {
        let mut candidates = table
            .directory
            .load(guard)
            .candidates(guard, hash)
            .map_err(|damage| self.directory_damage(damage))?;
        Ok(candidates.any(|candidate| candidate == at))
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

    /// Copies all live records of a segment without a pause, and marks it as dying.
    fn empty_segment(&self, id: u64, report: &mut CompactReport) -> Result<()> {
        let mut place = Place::START;
        self.empty_from(id, &mut place, None, report).map(|_| ())
    }

    /// Copies the live records of a segment from `place` on, and marks the segment as dying once
    /// all are copied. `place` is left at the first record that was not copied.
    fn empty_from(
        &self,
        id: u64,
        place: &mut Place,
        mut throttle: Option<&mut Throttle<'_>>,
        report: &mut CompactReport,
    ) -> Result<Turn> {
        let segment = self.segments.load(&pin()).by_id(id).cloned();
        let end = lock(&self.core).usages.get(id).map_or(0, |usage| usage.end);
        let Some(segment) = segment.filter(|_| end > 0) else {
            return Ok(Turn::Emptied);
        };
        let mut victim = Victim {
            segment,
            end,
            place: *place,
        };
        let mut step = Step::default();
        loop {
            self.check_writable()?;
            if let Some(wait) = throttle.as_ref().and_then(|throttle| throttle.wait()) {
                self.write_if_due();
                return Ok(Turn::Wait(wait));
            }
            let copied = report.bytes_copied;
            let more = self.collect(&mut victim, &mut step)?;
            self.relocate(&mut step, id, report)?;
            *place = victim.place;
            if let Some(throttle) = &mut throttle {
                throttle.copied(report.bytes_copied - copied);
            }
            if !more {
                break;
            }
        }
        if let Some(usage) = lock(&self.core).usages.get_mut(id) {
            usage.dying = true;
        }
        self.write_if_due();
        Ok(Turn::Emptied)
    }

    /// Collects the next records that seem worth keeping. Whether there are more.
    fn collect(&self, victim: &mut Victim, step: &mut Step) -> Result<bool> {
        let guard = pin();
        let segment = victim.segment.clone();
        let mut looked = Vec::with_capacity(STEP_RECORDS);
        let start = victim.place.at;
        if start == SEGMENT_HEADER_BYTES {
            segment.begin_reading(start);
        }
        while victim.place.at < victim.end
            && looked.len() < STEP_RECORDS
            && ((victim.place.at - start) as usize) < STEP_BYTES
        {
            let offset = victim.place.at;
            if offset == victim.place.frame_end {
                let header =
                    FrameHeader::decode(victim.segment.bytes_at(offset), victim.segment.mask, offset)
                        .map_err(|flaw| victim.segment.damage(offset, &flaw))?;
                victim.place.at = offset + FRAME_HEADER_BYTES;
                victim.place.frame_end = victim.place.at.saturating_add(header.body_bytes);
                continue;
            }
            let record = segment.verified(offset)?;
            victim.place.at += record.bytes.len() as u32;
            if let Some(table) = self.table_by_id(record.head.table) {
                let hash = self.hash(record.key());
                table.directory.load(&guard).prefetch(&guard, hash);
                looked.push((table, hash, offset, record));
            }
        }
        segment.keep_reading(start, victim.place.at);
        for (table, hash, offset, record) in looked {
            self.collect_record(&guard, &segment, (table, hash), (offset, &record), step)?;
        }
        Ok(victim.place.at < victim.end)
    }

    fn collect_record(
        &self,
        guard: &Guard,
        segment: &Segment,
        (table, hash): (Arc<TableCore>, KeyHash),
        (offset, record): (u32, &Record<'_>),
        step: &mut Step,
    ) -> Result<()> {
        let at = Location::new(segment.id, offset);
        if record.head.kind == RecordKind::Put {
            // Only a first look, without the lock, to leave out what is certainly dead.
            if !self.is_live(guard, &table, hash, at)? {
                return Ok(());
            }
            return step.push(table, record, hash, at, None);
        }
        let origin = record
            .value()
            .first_chunk()
            .map_or(segment.id, |id| u64::from_le_bytes(*id));
        let older = lock(&self.core)
            .usages
            .iter()
            .any(|(id, usage)| id < origin && !usage.dying && id != segment.id);
        if older {
            step.push(table, record, hash, at, Some(origin))
        } else {
            Ok(())
        }
    }

    /// Appends the copies of what is still alive, and points the directory to them.
    fn relocate(&self, step: &mut Step, victim: u64, report: &mut CompactReport) -> Result<()> {
        if step.body.ops.is_empty() {
            return Ok(());
        }
        // Frames that are not published yet are not seen: until they are, nobody can tell which
        // records are alive.
        let mut core = self.lock_quiet();
        // Only now, because a pin never waits for a lock.
        let guard = pin();
        self.check_writable()?;
        step.keep_live(self, &guard)?;
        if step.body.ops.is_empty() {
            step.clear();
            return Ok(());
        }
        let crc = step.body.crc();
        let Core { end, .. } = *core;
        let place = self.append_frame(
            &mut core,
            FrameKind::Relocation,
            &mut step.body,
            crc,
            end.sequence,
            end.chain,
        )?;
        for (op, from) in step.body.ops.iter().zip(&step.from) {
            let table = &step.tables[op.table as usize];
            let to = Location::new(place.segment, place.body_at + op.at);
            let bytes = op.bytes as usize;
            if op.kind == RecordKind::Put {
                let directory = table.directory.load(&guard);
                let moved = directory.relocate(&guard, op.hash, *from, to);
                let moved = moved.map_err(|damage| self.poisoned(self.directory_damage(damage)))?;
                assert!(moved, "found under the same lock");
                core.usages.sub_live(*from, table.id, bytes);
                core.usages.add_live(to, table.id, bytes);
            } else {
                core.usages.add_tombstone(to, bytes);
            }
        }
        core.publish(place, step.body.ops.len());
        debug_assert!(place.segment != victim, "a victim is complete");
        report.records_copied += step.body.ops.len() as u64;
        report.bytes_copied += step.body.bytes.len() as u64;
        self.counters.relocated_bytes.add(step.body.bytes.len() as u64);
        drop(core);
        drop(guard);
        reclaim::request();
        step.clear();
        self.write_if_due();
        Ok(())
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

impl Step {
    fn clear(&mut self) {
        self.body.clear();
        self.tables.clear();
        self.from.clear();
    }

    /// Adds a copy of `record`; a tombstone with the segment it was first written to.
    fn push(
        &mut self,
        table: Arc<TableCore>,
        record: &Record<'_>,
        hash: KeyHash,
        from: Location,
        origin: Option<u64>,
    ) -> Result<()> {
        let index = self
            .tables
            .iter()
            .rposition(|known| known.id == table.id)
            .unwrap_or_else(|| {
                self.tables.push(table.clone());
                self.tables.len() - 1
            });
        let at = self.body.bytes.len();
        let crc = match origin {
            // The record as it is: its content checksum stays the same wherever it lies.
            None => {
                self.body.bytes.extend_from_slice(record.bytes);
                record.content_crc()
            }
            Some(origin) => {
                let value = origin.to_le_bytes();
                record::encode(
                    record.head.kind,
                    table.id,
                    record.key(),
                    &value,
                    &mut self.body.bytes,
                )
            }
        };
        let bytes = self.body.bytes.len() - at;
        let value_bytes = if origin.is_some() {
            8
        } else {
            record.head.value_bytes
        };
        self.body.ops.push(Op {
            kind: record.head.kind,
            table: index as u32,
            at: at as u32,
            bytes: bytes as u32,
            key_at: (bytes - value_bytes - record.head.key_bytes) as u16,
            key_bytes: record.head.key_bytes as u16,
            crc,
            hash,
            superseded: false,
        });
        self.from.push(from);
        Ok(())
    }

    /// Under the commit lock: leaves only puts that the directory points to, and tombstones of keys
    /// that are still absent.
    fn keep_live(&mut self, engine: &Engine, guard: &Guard) -> Result<()> {
        let mut keep = Vec::with_capacity(self.body.ops.len());
        for (op, from) in self.body.ops.iter().zip(&self.from) {
            let table = &self.tables[op.table as usize];
            keep.push(match op.kind {
                RecordKind::Clear => !table.is_dropped(),
                RecordKind::Put => engine.is_live(guard, table, op.hash, *from)?,
                RecordKind::Delete => {
                    !table.is_dropped() && engine.locate(guard, table, op.hash, self.body.key(op))?.is_none()
                }
            });
        }
        if keep.iter().all(|keep| *keep) {
            return Ok(());
        }
        let old = std::mem::take(&mut self.body);
        let from = std::mem::take(&mut self.from);
        for ((op, from), keep) in old.ops.iter().zip(from).zip(keep) {
            if keep {
                let (start, at) = (op.at as usize, self.body.bytes.len() as u32);
                self.body
                    .bytes
                    .extend_from_slice(&old.bytes[start..start + op.bytes as usize]);
                self.body.ops.push(Op { at, ..*op });
                self.from.push(from);
            }
        }
        Ok(())
    }
}
