//! Segments of the log as seen by readers.
//!
//! - A segment is readable bytes: a map of its file, followed by a memory buffer with the bytes
//!   behind the map. Either may be missing.
//! - Readers find segments in a table that is replaced as a whole, never changed, so they take no
//!   lock.
//! - A removed segment stays readable for readers that hold an earlier table.
//!
//! Deliberately absent: appending and syncing (`log`), and the usage of segments (`segment_usage`).

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::directory::{CUT, Location, UNREAD};
use crate::error::{Error, Result};
use crate::format::checksum::SegmentMask;
use crate::format::record::Record;
use crate::raw::epoch::{ArcCell, Guard, pin};
use crate::raw::map::Map;
use crate::raw::prefetch::prefetch;
use crate::raw::reclaim;
use crate::raw::sync::{Mutex, lock};
use crate::raw::tail::TailBuffer;
use crate::seeded::seeded;
use crate::storage::{OpenMode, Storage};

/// Offset of the end of the key in a record with seven bytes of header and a key of 24 bytes. Most
/// keys are not longer.
const SHORT_KEY_END: usize = 31;

/// Number of bytes requested from the disk for a look-up. Most records are shorter.
const MOST_RECORDS_BYTES: u32 = 256;
/// Length, in bytes, from which a record is requested from the disk as a whole before it is
/// verified. Otherwise the verification would wait for each page of the record in turn.
const LARGE_RECORD_BYTES: usize = 8192;

/// Number of bytes that a sequential reader requests ahead, enough to keep a disk busy. The end of
/// each request is rounded down to a multiple of [`AHEAD_STEP_BYTES`].
const AHEAD_BYTES: u32 = 4 << 20;
/// Granularity, in bytes, of the requests of a sequential reader (see [`AHEAD_BYTES`]).
const AHEAD_STEP_BYTES: u32 = 128 * 1024;

/// Returns the end of the bytes requested from the disk by a sequential reader at `offset`.
fn asked_up_to(offset: u32) -> u32 {
    (offset.saturating_add(AHEAD_BYTES) / AHEAD_STEP_BYTES).saturating_mul(AHEAD_STEP_BYTES)
}

/// The bytes of one segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: u64,
    pub(crate) path: PathBuf,
    pub(crate) mask: SegmentMask,
    /// Storage in which the file is opened to explain a failed read. A segment keeps no file
    /// descriptor, because its map stays valid without a descriptor.
    storage: Option<Arc<dyn Storage>>,
    /// Map of the file. Only its first `head_bytes` bytes are read.
    head: Option<Arc<Map>>,
    head_bytes: u32,
    /// Memory buffer with the bytes behind the map, if the segment is active or not mapped yet, or
    /// if a read-only open has copied bytes instead of mapping them.
    tail: Option<Arc<TailBuffer>>,
}

impl Segment {
    /// Returns a segment that is read from `map` up to offset `bytes`, or up to the end of the map
    /// if the map is shorter. The segment has no memory buffer.
    pub(crate) fn mapped(id: u64, path: PathBuf, mask: SegmentMask, map: Arc<Map>, bytes: u32) -> Self {
        Self {
            id,
            path,
            mask,
            storage: None,
            head_bytes: bytes.min(map.len() as u32),
            head: Some(map),
            tail: None,
        }
    }

    /// Returns this segment with the storage of its file, with which a failed read can be
    /// explained.
    pub(crate) fn in_storage(mut self, storage: &Arc<dyn Storage>) -> Self {
        self.storage = Some(storage.clone());
        self
    }

    /// Returns this segment with the bytes behind the map in `tail`.
    pub(crate) fn with_tail(&self, tail: Arc<TailBuffer>) -> Self {
        Self {
            tail: Some(tail),
            ..self.shallow()
        }
    }

    /// Returns a new segment that is only in memory.
    pub(crate) fn in_memory(id: u64, path: PathBuf, mask: SegmentMask, tail: Arc<TailBuffer>) -> Self {
        Self {
            id,
            path,
            mask,
            storage: None,
            head: None,
            head_bytes: 0,
            tail: Some(tail),
        }
    }

    /// Returns the mapped part of this segment up to `end`, without the memory buffer.
    pub(crate) fn cut_to(&self, end: u32) -> Self {
        Self {
            head_bytes: self.head_bytes.min(end),
            ..self.shallow()
        }
    }

    fn shallow(&self) -> Self {
        Self {
            id: self.id,
            path: self.path.clone(),
            mask: self.mask,
            storage: self.storage.clone(),
            head: self.head.clone(),
            head_bytes: self.head_bytes,
            tail: None,
        }
    }

    /// Returns a weak reference to the memory buffer, and the offset of the buffer in the segment.
    /// Returns `None` if the segment has no buffer.
    pub(crate) fn tail(&self) -> Option<(Weak<TailBuffer>, u32)> {
        let tail = self.tail.as_ref()?;
        Some((Arc::downgrade(tail), self.head_bytes))
    }

    /// Returns `true` if all bytes up to `end` are read from the file and none from memory.
    pub(crate) fn is_mapped_to(&self, end: u32) -> bool {
        self.tail.is_none() && self.head_bytes >= end
    }

    /// Returns the end of the readable bytes.
    pub(crate) fn end(&self) -> u32 {
        self.head_bytes + self.tail.as_ref().map_or(0, |tail| tail.published() as u32)
    }

    /// Returns the readable bytes from `offset` to the end of the map or the buffer, or an empty
    /// slice if `offset` is beyond the end. No frame crosses from the map into the buffer.
    #[inline]
    pub(crate) fn bytes_at(&self, offset: u32) -> &[u8] {
        if offset < self.head_bytes {
            let len = (self.head_bytes - offset) as usize;
            return self
                .head
                .as_ref()
                .and_then(|map| map.get(offset as usize, len))
                .unwrap_or_default();
        }
        let Some(tail) = &self.tail else { return &[] };
        let at = (offset - self.head_bytes) as usize;
        tail.published()
            .checked_sub(at)
            .and_then(|len| tail.get(at, len))
            .unwrap_or_default()
    }

    /// Returns the bytes from `from` to `to`, or less if the map or the buffer ends before. The map
    /// of a read-only view ends at the durable frontier, which may be anywhere in `from..to`. Then
    /// the bytes are a copy of both parts.
    pub(crate) fn bytes_between(&self, from: u32, to: u32) -> Cow<'_, [u8]> {
        let up_to = |at: u32| {
            let bytes = self.bytes_at(at);
            &bytes[..bytes.len().min(to.saturating_sub(at) as usize)]
        };
        let first = up_to(from);
        let at = from.saturating_add(first.len() as u32);
        if at >= to || at != self.head_bytes {
            return Cow::Borrowed(first);
        }
        Cow::Owned([first, up_to(at)].concat())
    }

    /// Returns the record at `offset` without verifying its checksum, or `None` if the bytes there
    /// are not a complete record.
    #[inline]
    pub(crate) fn record(&self, offset: u32) -> Option<Record<'_>> {
        Record::parse(self.bytes_at(offset))
    }

    /// Returns the verified record at `offset`, or `None` for damage, which [`Segment::verified`]
    /// describes.
    #[inline(always)]
    pub(crate) fn intact(&self, offset: u32) -> Option<Record<'_>> {
        let record = Record::parse(self.bytes_at(offset))?;
        if record.bytes.len() >= LARGE_RECORD_BYTES {
            self.will_need(offset, record.bytes.len() as u32);
        }
        Some(record).filter(|record| record.is_intact(self.mask, offset))
    }

    /// Returns the verified record at `offset`.
    #[inline]
    pub(crate) fn verified(&self, offset: u32) -> Result<Record<'_>> {
        self.intact(offset).ok_or_else(|| self.flaw(offset))
    }

    /// Returns an error that describes the damage of the record at `offset`.
    #[cold]
    pub(crate) fn flaw(&self, offset: u32) -> Error {
        let Some(record) = self.record(offset) else {
            return self.malformed(offset);
        };
        match record.verify(self.mask, offset) {
            Err(flaw) => self.damage(offset, &flaw),
            // The record is intact at this second read. So the first read failed, for example
            // because of unreliable memory.
            Ok(()) => self.malformed(offset),
        }
    }

    /// Advises the system to read only touched pages of the map if `scattered`, and to read ahead
    /// otherwise.
    pub(crate) fn advise(&self, scattered: bool) {
        if let Some(map) = &self.head {
            map.advise(scattered);
        }
    }

    /// Requests `len` bytes at `offset` from the disk, as far as they are in the map. Does nothing
    /// unless the map is marked for random access.
    #[cold]
    pub(crate) fn will_need(&self, offset: u32, len: u32) {
        if let Some(map) = &self.head {
            let end = offset.saturating_add(len).min(self.head_bytes);
            map.will_need(offset as usize, end.saturating_sub(offset) as usize);
        }
    }

    /// Requests the record at `offset` from the disk before a look-up. Its length is unknown; the
    /// request covers the length of most records.
    pub(crate) fn will_look(&self, offset: u32) {
        self.will_need(offset, MOST_RECORDS_BYTES);
    }

    /// Requests from the disk the first bytes of a sequential read that begins at `offset`.
    pub(crate) fn begin_reading(&self, offset: u32) {
        self.will_need(offset, asked_up_to(offset).saturating_sub(offset));
    }

    /// Requests from the disk the next bytes for a sequential reader that is reading `from..to`.
    #[inline]
    pub(crate) fn keep_reading(&self, from: u32, to: u32) {
        let (from, to) = (asked_up_to(from), asked_up_to(to));
        if from < to {
            self.will_need(from, to - from);
        }
    }

    /// Prefetches the three cache lines of a small record at `offset` into the processor's cache.
    #[inline]
    pub(crate) fn prefetch(&self, offset: u32) {
        if let Some(address) = self.address(offset) {
            prefetch(address);
            prefetch(address.wrapping_add(64));
            prefetch(address.wrapping_add(128));
        }
    }

    /// Returns `true` if a read has touched a mapped page of the file that the system could not
    /// provide: the file was truncated while mapped, or the disk cannot read the page.
    pub(crate) fn is_cut(&self) -> bool {
        self.head.as_ref().is_some_and(|map| map.is_cut())
            || self.tail.as_ref().is_some_and(|tail| tail.is_cut())
    }

    /// Returns the error for a page that the map could not provide. Reading the file without the
    /// map shows if the file was truncated or the disk cannot read the page.
    #[cold]
    fn cut_short(&self, offset: u32) -> Error {
        let unreadable = Error::io("cannot read", &self.path);
        let storage = self.storage.as_ref().ok_or(std::io::ErrorKind::Unsupported);
        let file = storage
            .map_err(Into::into)
            .and_then(|storage| storage.open(&self.path, OpenMode::Read));
        let (file, len) = match file.and_then(|file| Ok((file.clone(), file.len()?))) {
            Ok(found) => found,
            Err(error) => return unreadable(error),
        };
        if len < u64::from(self.head_bytes) {
            let (expected, found) = (
                format_args!("{} bytes", self.head_bytes),
                format_args!("{len} bytes"),
            );
            return Error::corrupt(&self.path, offset.into(), CUT, expected, found);
        }
        match file.read_at(&mut [0; 512], offset.into()) {
            Err(error) => unreadable(error),
            Ok(_) => Error::corrupt(
                &self.path,
                offset.into(),
                UNREAD,
                "the bytes that were written",
                "nothing",
            ),
        }
    }

    /// Prefetches the record at `offset` into the processor's cache, up to the end of a short key.
    #[inline]
    pub(crate) fn prefetch_key(&self, offset: u32) {
        if let Some(address) = self.address(offset) {
            prefetch(address);
            prefetch(address.wrapping_add(SHORT_KEY_END));
        }
    }

    /// Returns the address of the byte at `offset`, for prefetching only.
    #[inline]
    fn address(&self, offset: u32) -> Option<*const u8> {
        if offset < self.head_bytes {
            self.head.as_ref().map(|map| map.address(offset as usize))
        } else {
            let tail = self.tail.as_ref();
            tail.map(|tail| tail.address((offset - self.head_bytes) as usize))
        }
    }

    #[cold]
    fn malformed(&self, offset: u32) -> Error {
        if self.is_cut() {
            return self.cut_short(offset);
        }
        Error::corrupt(
            &self.path,
            offset.into(),
            "record lengths",
            "a record within the segment",
            "nonsense",
        )
    }

    #[cold]
    pub(crate) fn damage(&self, offset: u32, flaw: &crate::format::Flaw) -> Error {
        if self.is_cut() {
            return self.cut_short(offset);
        }
        let at = u64::from(offset) + u64::from(flaw.at);
        Error::corrupt(&self.path, at, flaw.field, &flaw.expected, &flaw.found)
    }
}

/// All segments of a moment, by the low 16 bits of their ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentTable {
    /// Id of the first entry of `segments`. The ids of the entries are consecutive. An entry is
    /// `None` if its segment was removed, or if no segment has its id.
    first: u64,
    segments: Vec<Option<Arc<Segment>>>,
}

impl SegmentTable {
    #[inline]
    pub(crate) fn get(&self, location: Location) -> Option<&Arc<Segment>> {
        let index = location.segment16().wrapping_sub(self.first as u16);
        self.segments.get(usize::from(index))?.as_ref()
    }

    /// Returns the segment of `location`, or an error if there is none.
    #[inline]
    pub(crate) fn find(&self, location: Location, root: &Path) -> Result<&Arc<Segment>> {
        self.get(location).ok_or_else(|| missing(location, root))
    }

    pub(crate) fn by_id(&self, id: u64) -> Option<&Arc<Segment>> {
        self.segments
            .get(usize::try_from(id.checked_sub(self.first)?).ok()?)?
            .as_ref()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.segments.iter().flatten()
    }

    fn put(&mut self, segment: Arc<Segment>) {
        if self.segments.is_empty() {
            self.first = segment.id;
        }
        debug_assert!(segment.id >= self.first, "segments are added in order");
        let index = (segment.id - self.first) as usize;
        if index >= self.segments.len() {
            self.segments.resize(index + 1, None);
        }
        self.segments[index] = Some(segment);
    }

    fn remove(&mut self, id: u64) {
        let index = id
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.segments.get_mut(index)) {
            *entry = None;
        }
        let gap = self.segments.iter().take_while(|entry| entry.is_none()).count();
        self.segments.drain(..gap);
        self.first += gap as u64;
    }
}

#[cold]
fn missing(location: Location, root: &Path) -> Error {
    Error::corrupt(
        root,
        0,
        "directory slot",
        "a location in a live segment",
        format_args!("segment number {} (modulo 65,536)", location.segment16()),
    )
}

/// The current table of segments, which is replaced as a whole at each change.
pub(crate) struct Segments {
    table: ArcCell<SegmentTable>,
    edit: Mutex<()>,
}

impl Segments {
    pub(crate) fn new(segments: impl IntoIterator<Item = Arc<Segment>>) -> Self {
        let mut table = SegmentTable::default();
        segments.into_iter().for_each(|segment| table.put(segment));
        Self {
            table: ArcCell::new(Arc::new(table)),
            edit: Mutex::new(()),
        }
    }

    /// Returns the current table.
    #[inline]
    pub(crate) fn load<'g>(&'g self, guard: &'g Guard) -> &'g SegmentTable {
        self.table.load(guard)
    }

    /// Returns a counted reference to the current table. The bytes of its segments stay readable
    /// even after their files are removed.
    pub(crate) fn load_arc(&self, guard: &Guard) -> Arc<SegmentTable> {
        self.table.load_arc(guard)
    }

    /// Adds segments in the order of their ids. Each change copies the table. So one change for all
    /// segments takes linear time, while a change for each of them would take quadratic time.
    pub(crate) fn put_all(&self, segments: impl IntoIterator<Item = Arc<Segment>>) {
        self.change(|table| segments.into_iter().for_each(|segment| table.put(segment)));
    }

    /// Adds a segment, or replaces the segment with the same id.
    pub(crate) fn put(&self, segment: Arc<Segment>) {
        self.change(|table| table.put(segment));
    }

    /// Replaces the segment with the same id, unless it was removed.
    pub(crate) fn replace(&self, segment: Arc<Segment>) {
        self.change(|table| {
            if table.by_id(segment.id).is_some() {
                table.put(segment);
            }
        });
    }

    /// Removes segments from the current table. Readers that hold an earlier table can still read
    /// them.
    pub(crate) fn remove(&self, ids: &[u64]) {
        if !ids.is_empty() {
            self.change(|table| ids.iter().for_each(|id| table.remove(*id)));
        }
    }

    /// Replaces the table. The old table holds maps, memory and disk space of removed segments, so
    /// it is freed now, or as soon as its readers have ended.
    fn change(&self, change: impl FnOnce(&mut SegmentTable)) {
        {
            let _edit = lock(&self.edit);
            let guard = pin();
            let mut table = self.table.load(&guard).clone();
            change(&mut table);
            self.table.replace(Arc::new(table), &guard);
        }
        if !seeded("removed-segments-kept") {
            reclaim::now();
        }
    }
}
