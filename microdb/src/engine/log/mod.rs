//! The growing end of the log: appending frames, and beginning a new segment when the active
//! segment is full.
//!
//! - Under the mutex `core`, frames are appended to memory and published. Under the mutex `writer`,
//!   appended bytes are handed to the operating system and synced. The writing thread does not hold
//!   `core` during a write or sync, so other threads can append in this time.
//! - Blocks are allocated before a frame is appended. A full disk is an error of the commit that
//!   needs the space, and of no other.
//! - A failed write or sync is never repeated. It poisons the database.
//!
//! Deliberately absent: reading (`segments`, `recover`) and removing segments (`checkpoint`).

mod super_file;
mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) use self::super_file::write_state_blocks;
pub(crate) use self::writer::{Pending, Unmapped, Writer};
use crate::engine::body::Body;
use crate::engine::segment_usage::SegmentUsages;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result, is_full_disk};
use crate::format::checksum;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::{Frontier, SEGMENT_SPAN_MAX};
use crate::format::usage::SegmentUsage;
use crate::format::{LogPosition, SEGMENT_BYTES_LIMIT, SEGMENT_ID_LIMIT};
use crate::raw::tail::TailWriter;
use crate::seeded::seeded;
use crate::storage::{OpenMode, StorageFile};

/// Upper bound for the end of the frames of a segment. It is below the segment limit, so that the
/// end is a valid offset too.
pub(crate) const DATA_BYTES_LIMIT: u32 = SEGMENT_BYTES_LIMIT - 64;

/// Number of bytes for which disk blocks are allocated ahead. A larger number means fewer calls of
/// the operating system, and a longer search for a torn tail after a crash.
const ALLOCATE_BYTES: u32 = 4 << 20;

/// Maximum number of bytes allocated behind the end of the log that only commits that clear or drop
/// tables may use. `clear` and `drop_table` must work on a full disk, since they free space. Their
/// commits take less than 400 bytes. A `replace_tables` that drops a table uses these bytes too.
const RESERVE_BYTES_MAX: u32 = 16 * 1024;

/// A segment reserves at most 1/`RESERVE_SHARE` of its capacity for commits that clear or drop
/// tables.
const RESERVE_SHARE: u32 = 8;

/// Number of ids from the oldest to the newest segment beyond which new segments are larger. The
/// reason is that a location has 16 bits for the segment id.
const MANY_SEGMENTS: usize = 1 << 14;

/// State that the commit lock (`Engine::core`) protects.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) active: Option<Active>,
    /// End of the log with the sequence and chain of the last commit, including unpublished frames
    /// of a group.
    pub(crate) end: Frontier,
    /// End of the published part of the log. Readers see the commits up to this end.
    pub(crate) published: Frontier,
    /// Size of the log that the open replayed and of the log that was published since. Its field
    /// `bytes` is the value of `Engine::appended_bytes` at `published`.
    pub(crate) published_size: LogSize,
    /// `published_size` at the moment of the last checkpoint since the open, or zero before. `None`
    /// while SUPER names no checkpoint because a full disk had no room for one.
    pub(crate) checkpointed_size: Option<LogSize>,
    pub(crate) next_segment: u64,
    pub(crate) segment_bytes_next: u32,
    /// Segments completed since the last call of `write_log`, which empties this list.
    pub(crate) rolled: Vec<Rolled>,
    /// `true` while a group is in flight: its frames are appended but not published. The group then
    /// waits for the disk, or for a transaction that runs again inside the group.
    pub(crate) in_flight: bool,
    /// Number of threads that wait until `in_flight` is `false`.
    pub(crate) quiet_waiters: u32,
    pub(crate) usages: SegmentUsages,
}

/// A complete segment that the next call of `write_log` writes to its end.
#[derive(Debug)]
pub(crate) struct Rolled {
    segment: Arc<Segment>,
    file: Arc<dyn StorageFile>,
    end: u32,
}

/// Size of the log that was appended between two moments. The sizes in [`Core`] also include the
/// log that the open replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogSize {
    pub(crate) bytes: u64,
    pub(crate) records: u64,
}

impl LogSize {
    /// Returns the amount appended since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(earlier.bytes),
            records: self.records.saturating_sub(earlier.records),
        }
    }
}

impl Core {
    /// Moves the end of the published log to the end of the frame at `place`, which has `records`
    /// records.
    #[inline]
    pub(crate) fn publish(&mut self, place: Place, records: usize) {
        self.published = place.end;
        self.published_size.bytes = place.appended;
        self.published_size.records += records as u64;
    }
}

/// The segment that receives new frames.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn StorageFile>,
    pub(crate) tail: TailWriter,
    /// Offset in the segment at which the memory buffer `tail` begins.
    pub(crate) base: u32,
    /// End of the allocated blocks of the file.
    pub(crate) allocated: u32,
}

impl Active {
    /// Allocates the blocks of the next `bytes` and of the reserve behind them. A commit that may
    /// use the reserve needs only blocks for its own bytes. On an error, `allocated` is unchanged.
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

    /// Frees the allocated blocks behind the last frame. A failure only wastes disk space.
    pub(crate) fn cut(&mut self) {
        let end = self.end();
        if self.allocated > end && self.file.set_len(end.into()).is_ok() {
            self.allocated = end;
        }
    }

    /// Returns the upper bound for the end of the segment's frames.
    fn capacity(&self) -> u32 {
        self.base + self.tail.buffer().capacity() as u32
    }

    /// Returns the number of bytes behind the last frame that only commits that clear or drop
    /// tables may use.
    fn reserve(&self) -> u32 {
        reserve_of(self.capacity())
    }

    pub(crate) fn end(&self) -> u32 {
        self.base + self.tail.filled() as u32
    }
}

/// Position of an appended frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) segment: u64,
    pub(crate) body_at: u32,
    /// Position directly after the frame, with the sequence and the chain of the log there.
    pub(crate) end: Frontier,
    /// Value of `Engine::appended_bytes` at the end of the frame.
    pub(crate) appended: u64,
}

/// Returns the number of bytes reserved for commits that clear or drop tables in a segment of
/// `capacity` bytes.
fn reserve_of(capacity: u32) -> u32 {
    (capacity / RESERVE_SHARE).min(RESERVE_BYTES_MAX)
}

/// Returns `true` if an operation failed only because the disk is full, so that it can be repeated.
pub(crate) fn is_out_of_room(error: &Error) -> bool {
    matches!(error, Error::Io { .. }) && error.is_disk_full()
}

impl Engine {
    /// Appends a commit frame to the log in memory. On an error no frame was appended.
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

    /// Returns the active segment, with allocated blocks for `bytes` more. If the active segment
    /// has no room for `bytes` and the reserve, creates a new one first. If the disk is too full
    /// for a new segment, a commit that may use the reserve stays in the present segment.
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
        // There is always an active segment here: `roll` has created one if there was none.
        core.active.as_mut().ok_or(Error::Closed)
    }

    /// Creates a new active segment with room for a frame of `bytes`.
    pub(crate) fn roll(&self, core: &mut Core, bytes: usize) -> Result<()> {
        if !seeded("lock-unchecked") {
            self.check_identity()?;
        }
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
                // The log has no segment with this id. The existing file is kept, and the id is
                // skipped.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => id += 1,
                opened => break (path.clone(), opened.map_err(Error::io("cannot create", &path))?),
            }
        };
        let allocated =
            [need.saturating_add(ALLOCATE_BYTES), bytes + reserve_of(size)].map(|to| to.min(size));
        let allocated = match file.allocate(0, allocated[0].into()) {
            Err(error) if is_full_disk(&error) => {
                file.allocate(0, allocated[1].into()).map(|()| allocated[1])
            }
            first => first.map(|()| allocated[0]),
        };
        let allocated = allocated.map_err(|error| {
            // The new file holds no commit yet, so it is removed. The next commit that needs room
            // tries again to create a segment. If the removal fails, that attempt skips the id.
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

    /// Completes the active segment, if there is one: no more frames are appended to it.
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
        // SUPER also stores the id behind this one (`State::next_segment`), so that id must be
        // below the limit too.
        if id + 1 >= SEGMENT_ID_LIMIT {
            let reason = format!("segment {id} has the last id; export and import the database");
            return Err(Error::Invalid { what: "log", reason });
        }
        let oldest = core.usages.iter().next().map_or(id, |(oldest, _)| oldest);
        if id - oldest < SEGMENT_SPAN_MAX - 1 {
            return Ok(());
        }
        let reason = format!("segment {id} is too far from the oldest, {oldest}; compact the database");
        Err(Error::Invalid { what: "log", reason })
    }

    /// Frees the blocks allocated ahead for the active segment. A failure only wastes disk space.
    pub(crate) fn cut_active(&self) {
        if let Some(active) = &mut lock(&self.core).active {
            active.cut();
        }
    }
}
