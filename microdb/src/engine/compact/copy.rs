//! Copying the live records of one segment to the end of the log.
//!
//! - A step collects some records before it takes the commit lock. Under the commit lock, the step
//!   drops the records that are no longer needed. It appends copies of the remaining records and
//!   points the directory to the copies.
//! - A damaged record or frame header ends the copy with an error, and its segment is kept.
//!
//! Deliberately absent: the choice of segments, which is in `compact`.

use std::sync::Arc;
use std::time::Duration;

use super::CompactReport;
use super::throttle::Throttle;
use crate::directory::{KeyHash, Location};
use crate::engine::body::{Body, Op};
use crate::engine::catalog::TableCore;
use crate::engine::log::Core;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock};
use crate::error::Result;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::record::{self, Record, RecordKind};
use crate::format::segment::SEGMENT_HEADER_BYTES;
use crate::raw::epoch::{Guard, pin};
use crate::raw::reclaim;
use crate::seeded::seeded;

/// Maximum number of records in a step, so that the commit lock is held for at most some tens of
/// microseconds.
const STEP_RECORDS: usize = 256;

/// Number of bytes of the segment after which a step takes no further record.
const STEP_BYTES: usize = 128 * 1024;

/// Copies of records that wait to be appended, and the locations of the originals.
#[derive(Default)]
struct Step {
    body: Body,
    tables: Vec<Arc<TableCore>>,
    from: Vec<Location>,
}

/// The part of a segment that is still to be copied.
struct Victim {
    segment: Arc<Segment>,
    end: u32,
    place: Place,
}

/// A position in a segment being copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Offset of the next record, or of the next frame header if it equals `frame_end`, the end of
    /// the current frame.
    at: u32,
    frame_end: u32,
}

impl Place {
    pub(super) const START: Self = Self {
        at: SEGMENT_HEADER_BYTES,
        frame_end: SEGMENT_HEADER_BYTES,
    };
}

/// Outcome of [`Engine::empty_from`].
pub(super) enum Turn {
    /// All records that are still needed were copied. Also returned without a copy for a segment
    /// that no longer exists or is active.
    Emptied,
    /// The rate limit is reached. The next copy is permitted after this time.
    Wait(Duration),
}

impl Engine {
    /// Copies all records of a segment that are still needed, without a pause. Marks the segment as
    /// dying, so that the next checkpoint removes it.
    pub(super) fn empty_segment(&self, id: u64, report: &mut CompactReport) -> Result<()> {
        let mut place = Place::START;
        self.empty_from(id, &mut place, None, report).map(|_| ())
    }

    /// Copies the records of a segment from `place` on that are still needed. Once all are copied,
    /// marks the segment as dying, so that the next checkpoint removes it. Moves `place` behind
    /// each completed step.
    pub(super) fn empty_from(
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

    /// Collects copies of the next records that may still be needed. Returns `true` if the segment
    /// has more records.
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
        if segment.is_cut() {
            // A page lost after its verification reads as zeros, so a key may have been read wrong
            // and its live record taken for a dead one.
            return Err(segment.flaw(start));
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
            // This first check runs without the commit lock and excludes most dead records.
            if !self.is_live(guard, &table, hash, at)? {
                return Ok(());
            }
            return step.push(segment, table, record, hash, at, None);
        }
        let origin = record
            .value()
            .first_chunk()
            .map_or(segment.id, |id| u64::from_le_bytes(*id));
        let older = lock(&self.core)
            .usages
            .iter()
            // The checkpoint keeps an unverified dying segment if its byte counts are wrong.
            .any(|(id, usage)| id < origin && id != segment.id && (!usage.dying || usage.unverified));
        if older && !seeded("tombstone-early") {
            step.push(segment, table, record, hash, at, Some(origin))
        } else {
            Ok(())
        }
    }

    /// Appends the copies that are still needed, and points the directory to the copied puts.
    fn relocate(&self, step: &mut Step, victim: u64, report: &mut CompactReport) -> Result<()> {
        if step.body.ops.is_empty() {
            return Ok(());
        }
        // All frames must be published first. The directory still points to the records that an
        // unpublished frame replaces, so these records would look live.
        let mut core = self.lock_quiet();
        // The thread is pinned after it has the lock, because the pin of a waiting thread would
        // delay the freeing of memory.
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

    /// Returns `true` if the directory points to the record at `at`. Keys need no comparison, since
    /// a location belongs to one record.
    #[inline]
    fn is_live(&self, guard: &Guard, table: &TableCore, hash: KeyHash, at: Location) -> Result<bool> {
        let mut candidates = table
            .directory
            .load(guard)
            .candidates(guard, hash)
            .map_err(|damage| self.directory_damage(damage))?;
        Ok(candidates.any(|candidate| candidate == at))
    }
}

impl Step {
    fn clear(&mut self) {
        self.body.clear();
        self.tables.clear();
        self.from.clear();
    }

    /// Adds a copy of `record`, which is in `segment` at `from`, to the records that this step
    /// appends to the log. If `record` is a tombstone or a clear marker, `origin` is the id of the
    /// segment to which it was first written. For a put, `origin` is `None`.
    fn push(
        &mut self,
        segment: &Segment,
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
            // The record is copied unchanged, since its content checksum does not depend on its
            // position. The checksum is the stored one: a computed one would be valid even if the
            // bytes have changed since they were verified.
            None => {
                self.body.bytes.extend_from_slice(record.bytes);
                record.stored_crc() ^ segment.mask.at(from.offset())
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

    /// Drops the copies that are no longer needed. Keeps puts to which the directory points. Of
    /// tables that exist, also keeps tombstones of keys that are still absent, and clear markers.
    /// The caller holds the commit lock.
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
