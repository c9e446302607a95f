//! Writing and syncing of appended frames.
//!
//! - All functions that take a [`Writer`] run under the writer lock.
//! - A commit is durable only after the sync of its segment, the sync of the folder for new files,
//!   and a check of the lock.
//! - A complete segment is written, cut to its length and mapped. Then its memory is freed.
//!
//! Deliberately absent: retries. A failed write or sync poisons the database.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Instant;

use super::Rolled;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock, lock_briefly};
use crate::error::{Error, Result};
use crate::format::LogPosition;
use crate::format::super_block::Frontier;
use crate::raw::epoch::pin;
use crate::raw::reclaim;
use crate::seeded::seeded;
use crate::storage::StorageFile;

/// Number of unwritten bytes of the log at which committers wait for the disk instead of filling
/// the memory. The segment in which these bytes begin is in memory as a whole (16 MiB by default),
/// so the log takes about 40 MiB of memory at most.
const BACKLOG_BYTES_MAX: u64 = 24 << 20;

/// Number of complete segments, not yet written and cut, at which they are written immediately,
/// even if they have few bytes. Each of them keeps a file descriptor open.
const ROLLED_SEGMENTS_DUE: usize = 4;

/// Number of complete segments, not yet written and cut, at which committers wait for the disk.
const ROLLED_SEGMENTS_MAX: usize = 16;

/// Number of entries of `Writer::pending` above which the oldest complete segments are synced
/// early. Each entry keeps a file descriptor open.
const UNSYNCED_SEGMENTS_MAX: usize = 16;

/// Number of attempts to free the memory of a complete segment, before its pages are replaced by
/// those of the file.
const FREE_TRIES: usize = 4;

/// Number of bytes of complete segments in memory that could not be mapped, above which no new
/// segment is begun. One segment of the largest size fits, so that a single failed map refuses no
/// commit.
const UNMAPPED_BYTES_MAX: u64 = 64 << 20;

/// State that the writer lock (`Engine::writer`) protects.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// Segments that are not yet written, synced and mapped to their end, in log order. The first
    /// call of `write_log` after a segment was begun adds its entry. The open adds the entry of the
    /// segment in which the log continues.
    pub(crate) pending: VecDeque<Pending>,
    /// `true` if `write_log` found a new segment file since the last sync of the folder `log/`.
    pub(crate) folder_dirty: bool,
    pub(crate) hint_counter: u64,
    pub(crate) frontier: Frontier,
    pub(crate) state_generation: u64,
    /// Generation of the checkpoint that SUPER names, or 0 for none.
    pub(crate) checkpoint: u64,
    /// Highest generation of the checkpoints that this open found named in SUPER or has written.
    pub(crate) generation: u64,
}

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) segment: Arc<Segment>,
    /// File of the segment, kept open until the segment is complete and durable.
    pub(crate) file: Arc<dyn StorageFile>,
    /// Offset up to which the segment was handed to the operating system.
    pub(crate) written: u32,
    /// Offset of the end of the segment. `None` until `write_log` finds the segment complete.
    pub(crate) sealed_end: Option<u32>,
    pub(crate) dirty: bool,
    /// `true` if the file was cut to the end of the segment.
    pub(crate) cut: bool,
}

impl Pending {
    /// Returns `true` if the segment is complete, written and mapped.
    fn is_finished(&self) -> bool {
        let is_mapped = |end| self.written >= end && self.segment.is_mapped_to(end);
        self.sealed_end.is_some_and(is_mapped)
    }
}

/// Size of the complete segments that could not be mapped and are kept in memory.
#[derive(Debug, Default)]
pub(crate) struct Unmapped {
    bytes: AtomicU64,
    /// Error number (`errno`) of the last failed map, or 0.
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

    /// Returns `true` if more than [`UNMAPPED_BYTES_MAX`] bytes could not be mapped, so that no new
    /// segment may be begun.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > UNMAPPED_BYTES_MAX
    }

    /// Returns the error of the last failed map if [`Unmapped::is_full`].
    pub(super) fn check(&self, log: &std::path::Path) -> Result<()> {
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

impl Engine {
    /// Hands buffered commits to the operating system if enough bytes or complete segments are
    /// unwritten. Otherwise schedules the write of the unwritten bytes, if there are any. If
    /// another thread is writing, waits for that thread only if the backlog or the number of
    /// complete segments is at its limit, and otherwise writes nothing.
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
        // The caller's frames are already published, or their sync has failed. So the caller does
        // not return the error of this write. The error poisons the database, and the next commit
        // fails.
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

    /// Writes all appended bytes to the files of their segments, and maps complete segments. A
    /// failed map is no error: the next call tries again. Returns the end of the log.
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
            // If compaction has removed a complete segment, the entry of that segment in `pending`
            // is dropped, because its bytes need neither a sync nor a map.
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
            // The segment is synced earlier than required, so that its file descriptor can be
            // closed.
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

    /// Tries again to map complete segments after a failed map, unless another thread is writing.
    #[cold]
    pub(crate) fn map_again(&self) {
        if let Ok(mut writer) = self.writer.try_lock() {
            // An error is ignored here. A failed write poisons the database, so the commit fails
            // later. While too many segments are unmapped, `roll` fails with the error of the map.
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
        // The segment is complete and written: blocks allocated beyond its end are freed, and
        // readers use the file instead of memory.
        if !pending.cut {
            let cut = pending.file.set_len(sealed_end.into());
            cut.map_err(Error::io("cannot cut", &segment.path))?;
            pending.cut = true;
            self.rolled_segments.fetch_sub(1, Ordering::Relaxed);
        }
        let map = match self.options.map(pending.file.as_ref(), sealed_end.into()) {
            Ok(map) => map,
            // All bytes are written, and readers continue to use the memory. The next write tries
            // again to map the file.
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
        if !seeded("tails-kept") {
            free_tail(former, pending.file.as_ref(), sealed_end);
        }
        // The segment is complete, so compaction may be due.
        self.schedule_housekeeping();
        Ok(())
    }

    /// Makes all appended bytes durable. Returns the new durable frontier.
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
        // All frames up to `end` are durable from here on.
        writer.forget_finished();
        writer.frontier = end;
        self.frontier.store(end.position.to_u64(), Ordering::Release);
        self.write_hint(writer)?;
        Ok(end)
    }

    fn check_poison(&self) -> Result<()> {
        self.poison
            .get()
            .map_or(Ok(()), |cause| Err(Error::Poisoned { cause: cause.clone() }))
    }
}

/// Frees the memory buffer of a segment after all its bytes were written to its file. If snapshots
/// or values still hold the buffer, the pages of the file replace its memory.
fn free_tail(segment: Arc<Segment>, file: &dyn StorageFile, end: u32) {
    let Some((tail, base)) = segment.tail() else {
        return;
    };
    drop(segment);
    for _ in 0..FREE_TRIES {
        if tail.strong_count() == 0 {
            return;
        }
        // Most readers hold the memory for some microseconds only, so a short wait usually
        // suffices. The wait is worth its time, because memory that is freed as a whole can be
        // reused for the next segment.
        std::thread::yield_now();
        reclaim::now();
    }
    // If the map fails, the memory stays until its last holder releases it.
    if let Some(tail) = tail.upgrade()
        && let Ok(Some(mapping)) = file.map(end.into())
    {
        tail.lay_over(mapping.0, base as usize);
    }
}

impl Writer {
    /// Returns the total length, in bytes, of the complete segments that are not mapped to their
    /// end.
    fn unmapped_bytes(&self) -> u64 {
        let waits = |pending: &Pending| pending.sealed_end.filter(|_| !pending.is_finished());
        self.pending.iter().filter_map(waits).map(u64::from).sum()
    }

    /// Drops the entries in `pending` of segments that are synced and mapped.
    fn forget_finished(&mut self) {
        self.pending
            .retain(|pending| pending.dirty || !pending.is_finished());
    }

    /// Returns the entry of a segment in `pending`. Appends a new entry if the segment has none.
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
