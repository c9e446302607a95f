//! The log's growing end: appending, rolling to a new segment, writing, syncing.
//!
//! Two locks part the fast from the slow. Under `core` frames are appended to memory and published.
//! Under `writer` what was appended is handed to the operating system and synced; it takes `core`
//! only for the moment of looking where the log ends. So a commit that need not wait for the disk
//! never does.
//!
//! Blocks are allocated when a segment is made, before anything in it is promised: a full disk is
//! an error of the commit that would need the room, and of nothing else. A write or sync that fails
//! is never tried again; it poisons.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Instant;

use crate::engine::body::Body;
use crate::engine::segment_usage::SegmentUsages;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock, lock_briefly};
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::{
    Frontier, HINT_OFFSETS, SEGMENT_SPAN_MAX, STATE_BLOCK_BYTES, STATE_OFFSETS, State, encode_hint,
};
use crate::format::usage::SegmentUsage;
use crate::format::{LogPosition, SEGMENT_BYTES_LIMIT};
use crate::raw::epoch::pin;
use crate::raw::reclaim;
use crate::raw::tail::TailWriter;
use crate::storage::{OpenMode, StorageFile, map_or_read};

/// Frames end below this: an end must be a valid offset too.
pub(crate) const DATA_BYTES_LIMIT: u32 = SEGMENT_BYTES_LIMIT - 64;

/// Blocks are allocated this far ahead: few calls, and after a crash little that was never written
/// has to be looked through for a torn tail.
const ALLOCATE_BYTES: u32 = 4 << 20;

/// Behind the end of the log blocks stay allocated that only `clear` and `drop_table` may use: on a
/// full disk these have to work, since they are the way to free space. One of them takes 100 to 400
/// bytes.
const RESERVE_BYTES_MAX: u32 = 16 * 1024;

/// Small segments reserve this share (one in so many) of their capacity.
const RESERVE_SHARE: u32 = 8;

/// Backlog of unwritten bytes at which committers wait for the disk instead of filling the memory.
/// With the part of the oldest segment that is written already, 40 MiB of memory: two thirds of
/// what a database may have besides its directory.
const BACKLOG_BYTES_MAX: u64 = 24 << 20;

/// Complete segments that are written at once, however little they hold. Each has a descriptor.
const ROLLED_SEGMENTS_DUE: usize = 4;
/// Complete segments at which committers wait for the disk.
const ROLLED_SEGMENTS_MAX: usize = 16;
/// Complete, written segments that wait for the next sync. Each has a descriptor.
const UNSYNCED_SEGMENTS_MAX: usize = 16;

/// A log of so many segments gets larger ones: ids of segments have 16 bits in a location.
const MANY_SEGMENTS: usize = 1 << 14;

/// Tries to free the memory of a complete segment before the file's pages are laid over it.
const FREE_TRIES: usize = 4;

/// Bytes of complete segments that may wait in memory for a map. No segment is begun beyond: as
/// many as the largest segment has, so that one failure refuses nothing.
const UNMAPPED_BYTES_MAX: u64 = 64 << 20;

/// What the commit lock guards.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) active: Option<Active>,
    /// Where the log ends, with the last commit's sequence and chain; unpublished frames of a group
    /// included.
    pub(crate) end: Frontier,
    /// The same without them: what readers see.
    pub(crate) published: Frontier,
    /// Size of the log up to `published`, counted as `appended_bytes` and in records.
    pub(crate) published_size: LogSize,
    /// `published_size` at the moment that the last checkpoint covers. `None` if a full disk had
    /// room for none.
    pub(crate) checkpointed_size: Option<LogSize>,
    pub(crate) next_segment: u64,
    pub(crate) segment_bytes_next: u32,
    /// Segments that were active since the writer last looked.
    pub(crate) rolled: Vec<Rolled>,
    /// Frames are appended but not published: their group waits for the disk, or for a
    /// transaction's turn.
    pub(crate) in_flight: bool,
    /// Number of threads that wait for `in_flight` to end.
    pub(crate) quiet_waiters: u32,
    pub(crate) usages: SegmentUsages,
}

/// A segment that is complete, and not yet written to its end.
#[derive(Debug)]
pub(crate) struct Rolled {
    segment: Arc<Segment>,
    file: Arc<dyn StorageFile>,
    end: u32,
}

/// An amount of log: since the database was opened, or between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogSize {
    pub(crate) bytes: u64,
    pub(crate) records: u64,
}

impl LogSize {
    /// Returns how much was appended since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            records: self.records.saturating_sub(earlier.records),
        }
    }
}

impl Core {
    /// Takes note that the frame at `place`, with `records` records, is visible to readers.
    #[inline]
    pub(crate) fn publish(&mut self, place: Place, records: usize) {
        self.published = place.end;
        self.published_size.bytes = place.appended;
        self.published_size.records += records as u64;
    }
}

/// The segment that is appended to.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) tail: TailWriter,
    /// Where the tail begins in the segment.
    pub(crate) base: u32,
    /// Up to where the file has its blocks.
    pub(crate) allocated: u32,
}

impl Active {
    /// Allocates the blocks of the next `bytes`, and those of the reserve behind them. Bytes that
    /// may use the reserve need no more than their own. On error nothing has changed.
    fn allocate(&mut self, bytes: u32, may_use_reserve: bool) -> Result<()> {
        let need = self.end() + bytes;
        let with_reserve = need + self.reserve();
        if with_reserve <= self.allocated {
            return Ok(());
        }
        let ahead = need.saturating_add(ALLOCATE_BYTES).min(self.capacity());
        let mut allocated = self.allocate_to(ahead);
        if allocated.as_ref().is_err_and(is_out_of_room) {
            allocated = self.allocate_to(with_reserve.min(self.capacity()));
        }
        if may_use_reserve && need <= self.allocated {
            return Ok(());
        }
        allocated
    }

    fn allocate_to(&mut self, to: u32) -> Result<()> {
        let from = self.allocated;
        if from < to {
            let allocated = self.file.allocate(from.into(), (to - from).into());
            allocated.map_err(Error::io("cannot allocate the blocks of", &self.segment.path))?;
            self.allocated = to;
        }
        Ok(())
    }

    /// Gives back the blocks behind the end. Without harm if it fails.
    pub(crate) fn cut(&mut self) {
        let end = self.end();
        if self.allocated > end && self.file.set_len(end.into()).is_ok() {
            self.allocated = end;
        }
    }

    /// Offset at which frames end at the latest.
    fn capacity(&self) -> u32 {
        self.base + self.tail.buffer().capacity() as u32
    }

    /// Bytes behind the end that only frames which free space may use.
    fn reserve(&self) -> u32 {
        reserve_of(self.capacity())
    }

    pub(crate) fn end(&self) -> u32 {
        self.base + self.tail.filled() as u32
    }
}

/// What the writer lock guards.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// Segments not yet written or synced to their end, in the log's order; the last one is active.
    pub(crate) pending: VecDeque<Pending>,
    /// A file was made since the folder was last synced.
    pub(crate) folder_dirty: bool,
    pub(crate) hint_counter: u64,
    pub(crate) frontier: Frontier,
    pub(crate) state_generation: u64,
    /// The checkpoint that SUPER names; 0 for none.
    pub(crate) checkpoint: u64,
    /// The highest generation that a checkpoint of this database had.
    pub(crate) generation: u64,
}

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) segment: Arc<Segment>,
    /// Closed once the segment is complete and durable.
    pub(crate) file: Arc<dyn StorageFile>,
    /// Handed to the operating system up to here.
    pub(crate) written: u32,
    /// Its end, once it is no longer active.
    pub(crate) sealed_end: Option<u32>,
    pub(crate) dirty: bool,
    /// The file was cut to its end.
    pub(crate) cut: bool,
}

/// Complete segments that could not be mapped, and so stay in memory.
#[derive(Debug, Default)]
pub(crate) struct Unmapped {
    bytes: AtomicU64,
    /// The system's number of the last error.
    error: AtomicI32,
}

impl Unmapped {
    fn set(&self, bytes: u64) {
        if self.bytes.load(Ordering::Relaxed) != bytes {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
    }

    fn note(&self, error: &std::io::Error) {
        self.error
            .store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns `true` if so much waits that no segment may be begun.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > UNMAPPED_BYTES_MAX
    }

    /// Fails if [`Unmapped::is_full`].
    fn check(&self, log: &std::path::Path) -> Result<()> {
        if !self.is_full() {
            return Ok(());
        }
        let error = match self.error.load(Ordering::Relaxed) {
            0 => std::io::ErrorKind::OutOfMemory.into(),
            number => std::io::Error::from_raw_os_error(number),
        };
        Err(Error::io("cannot map complete segments of", log)(error))
    }
}

impl Pending {
    /// Returns `true` if the segment is complete, written and mapped.
    fn is_finished(&self) -> bool {
        let is_mapped = |end| self.written >= end && self.segment.is_mapped_to(end);
        self.sealed_end.is_some_and(is_mapped)
    }
}

/// Where a frame was put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) body_at: u32,
    /// End of the log after it.
    pub(crate) end: Frontier,
    /// `appended_bytes` at that end.
    pub(crate) appended: u64,
}

/// Returns the reserve of a segment of `capacity` bytes.
fn reserve_of(capacity: u32) -> u32 {
    (capacity / RESERVE_SHARE).min(RESERVE_BYTES_MAX)
}

/// Returns `true` if an operation failed only because the disk is full, and so can be tried again.
pub(crate) fn is_out_of_room(error: &Error) -> bool {
    matches!(error, Error::Io { .. }) && error.is_disk_full()
}

impl Engine {
    /// Appends a commit frame to the log in memory. On error nothing has changed.
    pub(crate) fn append(&self, core: &mut Core, body: &mut Body) -> Result<Place> {
        let sequence = core.end.sequence + 1;
        let body_crc = body.crc();
        let chain = checksum::chain(core.end.chain, sequence, body_crc, body.ops.len() as u32);
        self.append_frame(core, FrameKind::Commit, body, body_crc, sequence, chain)
    }

    pub(crate) fn append_frame(
        &self,
        core: &mut Core,
        kind: FrameKind,
        body: &mut Body,
        body_crc: u32,
        sequence: u64,
        chain: u64,
    ) -> Result<Place> {
        let bytes = FRAME_HEADER_BYTES as usize + body.bytes.len();
        let active = self.make_room(core, bytes, kind == FrameKind::Commit && body.frees_space())?;
        let (segment, offset) = (active.segment.id, active.end());
        let body_at = offset + FRAME_HEADER_BYTES;
        body.mask(active.segment.mask, body_at);
        let header = FrameHeader {
            kind,
            op_count: body.ops.len() as u32,
            sequence,
            body_bytes: body.bytes.len() as u32,
            body_crc,
            chain,
            frontier: self.frontier_position(),
        };
        let header = header.encode(active.segment.mask, offset);
        let appended = active
            .tail
            .append(&header)
            .and_then(|_| active.tail.append(&body.bytes));
        assert!(appended.is_some(), "room was made for the frame");
        active.tail.publish();
        let end = active.end();
        core.end = Frontier {
            position: LogPosition { segment, offset: end },
            sequence,
            chain,
        };
        let before = self.appended_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Place {
            segment,
            body_at,
            end: core.end,
            appended: before + bytes as u64,
        })
    }

    /// The active segment, with room for `bytes` more.
    fn make_room<'a>(
        &self,
        core: &'a mut Core,
        bytes: usize,
        may_use_reserve: bool,
    ) -> Result<&'a mut Active> {
        let room_with = |reserve: bool| {
            let has_room = |active: &Active| {
                let reserve = if reserve { active.reserve() } else { 0 };
                active.tail.room() >= bytes + reserve as usize
            };
            core.active.as_ref().is_some_and(has_room)
        };
        let (has_room, has_with_reserve) = (room_with(true), room_with(false));
        if !has_room {
            match self.roll(core, bytes) {
                Err(error) if may_use_reserve && has_with_reserve && is_out_of_room(&error) => {}
                rolled => rolled?,
            }
        }
        if let Some(active) = core.active.as_mut() {
            active.allocate(bytes as u32, may_use_reserve)?;
        }
        // `roll` has just made it, if there was none.
        core.active.as_mut().ok_or(Error::Closed)
    }

    /// Makes a new active segment with room for a frame of `bytes`.
    pub(crate) fn roll(&self, core: &mut Core, bytes: usize) -> Result<()> {
        self.check_identity()?;
        self.unmapped.check(&self.paths.log())?;
        let bytes = bytes as u32 + SEGMENT_HEADER_BYTES;
        let need = bytes + reserve_of(bytes.saturating_mul(2));
        let size = core.segment_bytes_next.max(need).min(DATA_BYTES_LIMIT);
        let mut tail = TailWriter::with_capacity(size as usize, 0, &self.spare)
            .map_err(Error::io("cannot get memory for a segment of", self.paths.root()))?;
        let storage = &self.options.storage;
        let mut id = core.next_segment;
        let (path, file) = loop {
            self.check_span(core, id)?;
            let path = self.paths.segment(id);
            match storage.open(&path, OpenMode::CreateNew) {
                // Not of this log, which never had this id. The file stays, and the id is passed
                // over.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => id += 1,
                opened => break (path.clone(), opened.map_err(Error::io("cannot create", &path))?),
            }
        };
        let allocated =
            [need.saturating_add(ALLOCATE_BYTES), bytes + reserve_of(size)].map(|to| to.min(size));
        let allocated = match file.allocate(0, allocated[0].into()) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                file.allocate(0, allocated[1].into()).map(|()| allocated[1])
            }
            first => first.map(|()| allocated[0]),
        };
        let allocated = allocated.map_err(|error| {
            // Nothing was promised yet; the next commit tries the same again.
            let _ = storage.remove(&path);
            Error::io("cannot allocate the blocks of", &path)(error)
        })?;
        let header = SegmentHeader {
            database: self.database,
            id,
            previous_end: core.end.position,
            sequence: core.end.sequence,
            chain: core.end.chain,
            frontier: self.frontier_position(),
            data_bytes_max: size,
        };
        assert!(
            tail.append(&header.encode()).is_some(),
            "a segment has room for its header"
        );
        tail.publish();
        let segment = Segment::in_memory(id, path, header.mask(), tail.buffer().clone());
        let segment = Arc::new(segment.in_storage(storage));
        self.segments.put(segment.clone());
        self.complete_active(core);
        core.usages.open(id, SegmentUsage::counting());
        core.next_segment = id + 1;
        let many = core.usages.span() > MANY_SEGMENTS;
        let max = if many {
            SEGMENT_BYTES_LIMIT
        } else {
            self.options.segment_bytes_max
        };
        core.segment_bytes_next = core.segment_bytes_next.saturating_mul(2).min(max);
        core.active = Some(Active {
            segment,
            file,
            tail,
            base: 0,
            allocated,
        });
        self.appended_bytes
            .fetch_add(SEGMENT_HEADER_BYTES.into(), Ordering::Relaxed);
        Ok(())
    }

    /// Makes the active segment a complete one.
    pub(crate) fn complete_active(&self, core: &mut Core) {
        if let Some(active) = core.active.take() {
            let end = active.end();
            core.usages.set_end(active.segment.id, end);
            core.rolled.push(Rolled {
                segment: active.segment,
                file: active.file,
                end,
            });
            self.rolled_segments.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn check_span(&self, core: &Core, id: u64) -> Result<()> {
        let oldest = core.usages.iter().next().map_or(id, |(oldest, _)| oldest);
        if id - oldest < SEGMENT_SPAN_MAX - 1 {
            return Ok(());
        }
        let reason = format!("segment {id} is too far from the oldest, {oldest}; compact the database");
        Err(Error::Invalid { what: "log", reason })
    }

    /// Hands buffered commits to the operating system if enough of them wait, unless another thread
    /// is at it.
    pub(crate) fn write_if_due(&self) {
        let (backlog, rolled) = (self.backlog(), self.rolled_segments.load(Ordering::Relaxed));
        if backlog < self.options.buffer_bytes && rolled < ROLLED_SEGMENTS_DUE {
            if backlog > 0 {
                self.schedule_write();
            }
            return;
        }
        let writer = if backlog < BACKLOG_BYTES_MAX && rolled < ROLLED_SEGMENTS_MAX {
            self.writer.try_lock().ok()
        } else {
            Some(lock(&self.writer))
        };
        // An error poisons, and the next commit says so; this one is already visible.
        if let Some(mut writer) = writer {
            let _ = self.write_log(&mut writer);
            drop(writer);
            if self.checkpoint_due() {
                self.schedule_housekeeping();
            }
        }
    }

    pub(crate) fn backlog(&self) -> u64 {
        let written = self.written_bytes.load(Ordering::Relaxed);
        self.appended_bytes
            .load(Ordering::Relaxed)
            .saturating_sub(written)
    }

    /// Writes all that was appended up to now. Returns where the log ended.
    pub(crate) fn write_log(&self, writer: &mut Writer) -> Result<Frontier> {
        self.check_poison()?;
        let (rolled, active, end) = {
            let mut core = lock_briefly(&self.core);
            self.note_sizes(&core);
            let active = core.active.as_ref();
            let active = active.map(|active| (active.segment.clone(), active.file.clone()));
            (std::mem::take(&mut core.rolled), active, core.end)
        };
        for Rolled { segment, file, end } in rolled {
            writer.pending_for(segment, file).sealed_end = Some(end);
        }
        if let Some((segment, file)) = active {
            writer.pending_for(segment, file);
        }
        if writer.pending.iter().any(|pending| pending.cut) {
            // Compaction may have removed segments that could not be mapped.
            let guard = pin();
            let known = self.segments.load(&guard);
            let is_there = |pending: &Pending| known.by_id(pending.segment.id).is_some();
            writer.pending.retain(|pending| !pending.cut || is_there(pending));
        }
        for pending in &mut writer.pending {
            self.write_segment(pending, end.position)
                .map_err(|error| self.poisoned(error))?;
        }
        while writer.pending.len() > UNSYNCED_SEGMENTS_MAX
            && let Some(oldest) = writer.pending.iter().position(Pending::is_finished)
        {
            // Its bytes become durable earlier than they have to.
            if let Some(mut oldest) = writer.pending.remove(oldest) {
                self.sync_segment(&mut oldest)?;
            }
        }
        self.unmapped.set(writer.unmapped_bytes());
        Ok(end)
    }

    fn sync_segment(&self, pending: &mut Pending) -> Result<()> {
        if !pending.dirty {
            return Ok(());
        }
        let started = Instant::now();
        let synced = pending.file.sync_data();
        synced.map_err(|error| self.poisoned(Error::io("cannot sync", &pending.segment.path)(error)))?;
        self.counters.sync_ns.add(started.elapsed().as_nanos() as u64);
        pending.dirty = false;
        self.counters.syncs.add(1);
        Ok(())
    }

    /// Tries again to map what could not be mapped, unless another thread writes.
    #[cold]
    pub(crate) fn map_again(&self) {
        if let Ok(mut writer) = self.writer.try_lock() {
            // Those that fail again refuse the next segment.
            let _ = self.write_log(&mut writer);
            writer.forget_finished();
        }
    }

    fn write_segment(&self, pending: &mut Pending, end: LogPosition) -> Result<()> {
        let segment = &pending.segment;
        let to = pending.sealed_end.unwrap_or(end.offset);
        if pending.written < to {
            let bytes = segment.bytes_at(pending.written);
            let bytes = &bytes[..(to - pending.written) as usize];
            let write = pending.file.write_at(bytes, pending.written.into());
            write.map_err(Error::io("cannot write", &segment.path))?;
            self.written_bytes
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            pending.written = to;
            pending.dirty = true;
        }
        let Some(sealed_end) = pending.sealed_end else {
            return Ok(());
        };
        if segment.is_mapped_to(sealed_end) {
            return Ok(());
        }
        // Sealed and written: give back what was allocated beyond the end, and let readers use the
        // file instead of memory.
        if !pending.cut {
            let cut = pending.file.set_len(sealed_end.into());
            cut.map_err(Error::io("cannot cut", &segment.path))?;
            pending.cut = true;
            self.rolled_segments.fetch_sub(1, Ordering::Relaxed);
        }
        let map = match map_or_read(pending.file.as_ref(), sealed_end.into()) {
            Ok(map) => map,
            // All is written, and read from memory: mapping is tried again with the next write.
            Err(error) => {
                self.unmapped.note(&error);
                return Ok(());
            }
        };
        let sealed = Segment::mapped(segment.id, segment.path.clone(), segment.mask, map, sealed_end);
        let sealed = Arc::new(sealed.in_storage(&self.options.storage));
        self.advise_reads(self.log_bytes(), std::iter::once(&*sealed));
        self.segments.replace(sealed.clone());
        let former = std::mem::replace(&mut pending.segment, sealed);
        free_tail(former, pending.file.as_ref(), sealed_end);
        // Its account has come to rest: perhaps there is something to compact.
        self.schedule_housekeeping();
        Ok(())
    }

    /// Makes durable all that was appended up to now. Returns the frontier.
    pub(crate) fn sync_log(&self) -> Result<Frontier> {
        let mut writer = lock(&self.writer);
        self.sync_with(&mut writer)
    }

    pub(crate) fn sync_with(&self, writer: &mut Writer) -> Result<Frontier> {
        let end = self.write_log(writer)?;
        if end.position <= writer.frontier.position {
            return Ok(writer.frontier);
        }
        for pending in &mut writer.pending {
            self.sync_segment(pending)?;
        }
        if writer.folder_dirty {
            let path = self.paths.log();
            let synced = self.options.storage.sync_folder(&path);
            synced.map_err(|error| self.poisoned(Error::io("cannot sync", &path)(error)))?;
            writer.folder_dirty = false;
        }
        self.check_lock()?;
        // Durable from here.
        writer.forget_finished();
        writer.frontier = end;
        self.frontier.store(end.position.to_u64(), Ordering::Release);
        self.write_hint(writer)?;
        Ok(end)
    }

    /// Remembers the frontier for the next open. Not synced: it may be lost, it can not claim too
    /// much.
    fn write_hint(&self, writer: &mut Writer) -> Result<()> {
        let Some(file) = &self.super_file else {
            return Ok(());
        };
        writer.hint_counter += 1;
        let hint = encode_hint(self.database, writer.hint_counter, &writer.frontier);
        let offset = HINT_OFFSETS[(writer.hint_counter % 2) as usize];
        let path = self.paths.super_file();
        let written = file.write_at(&hint, offset);
        written.map_err(|error| self.poisoned(Error::io("cannot write", &path)(error)))
    }

    /// Gives back the blocks that were allocated for more. Without harm if it fails.
    pub(crate) fn cut_active(&self) {
        if let Some(active) = &mut lock(&self.core).active {
            active.cut();
        }
    }

    /// Rewrites the state in SUPER, copy by copy, each synced before the other is touched.
    /// Segments in `emptied` are no longer part of the log.
    pub(crate) fn write_state(&self, emptied: &[u64]) -> Result<()> {
        self.check_identity()?;
        let mut writer = lock(&self.writer);
        // Segments that commits have begun behind the frontier are not durable: should the power
        // go, they may lack their header or even their name. They are found by their headers, if
        // they are there.
        let (live, next_segment) = {
            let core = lock(&self.core);
            let durable = |id: &u64| *id <= writer.frontier.position.segment;
            let ids = || core.usages.iter().map(|(id, _)| id);
            let live = ids().filter(|id| durable(id) && !emptied.contains(id)).collect();
            (live, ids().find(|id| !durable(id)).unwrap_or(core.next_segment))
        };
        writer.state_generation += 1;
        let state = State {
            database: self.database,
            hash_seed: self.hash_seed,
            generation: writer.state_generation,
            created_ms: self.created_ms,
            checkpoint: writer.checkpoint,
            frontier: writer.frontier,
            next_segment,
            live,
        };
        let Some(file) = &self.super_file else {
            return Ok(());
        };
        let path = self.paths.super_file();
        write_state_blocks(file.as_ref(), &state)
            .map_err(|error| self.poisoned(Error::io("cannot write", &path)(error)))
    }

    fn check_poison(&self) -> Result<()> {
        self.poison
            .get()
            .map_or(Ok(()), |cause| Err(Error::Poisoned { cause: cause.clone() }))
    }
}

/// Writes both state blocks, one after the other.
pub(crate) fn write_state_blocks(file: &dyn StorageFile, state: &State) -> std::io::Result<()> {
    let mut block = state.encode();
    block.resize(STATE_BLOCK_BYTES, 0);
    for offset in STATE_OFFSETS {
        file.write_at(&block, offset)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Frees the memory of a segment whose bytes are all in its file. What a snapshot or a value holds
/// of it reads the file's pages from now on.
fn free_tail(segment: Arc<Segment>, file: &dyn StorageFile, end: u32) {
    let Some((tail, base)) = segment.tail() else {
        return;
    };
    drop(segment);
    for _ in 0..FREE_TRIES {
        if tail.strong_count() == 0 {
            return;
        }
        // A reader has a pin for some microseconds. Memory that comes free whole is used again for
        // the next segment.
        std::thread::yield_now();
        reclaim::now();
    }
    // Without a map of its own, the memory stays until its holder is gone.
    if let Some(tail) = tail.upgrade()
        && let Ok(Some(mapping)) = file.map(end.into())
    {
        tail.lay_over(mapping.0, base as usize);
    }
}

impl Writer {
    /// Bytes of complete segments that are still read from memory.
    fn unmapped_bytes(&self) -> u64 {
        let waits = |pending: &Pending| pending.sealed_end.filter(|_| !pending.is_finished());
        self.pending.iter().filter_map(waits).map(u64::from).sum()
    }

    /// Drops the entries of segments that are synced and mapped.
    fn forget_finished(&mut self) {
        self.pending
            .retain(|pending| pending.dirty || !pending.is_finished());
    }

    /// The entry of a segment; new at the end if it is not known yet.
    fn pending_for(&mut self, segment: Arc<Segment>, file: Arc<dyn StorageFile>) -> &mut Pending {
        let known = self
            .pending
            .iter()
            .position(|pending| pending.segment.id == segment.id);
        let index = known.unwrap_or_else(|| {
            self.folder_dirty = true;
            self.pending.push_back(Pending {
                segment,
                file,
                written: 0,
                sealed_end: None,
                dirty: false,
                cut: false,
            });
            self.pending.len() - 1
        });
        &mut self.pending[index]
    }
}
