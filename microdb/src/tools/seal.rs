//! Sealing: stores a hash of each chunk of a complete segment, so that damage can be located and
//! healed.
//!
//! - Seals are made after a segment is complete and durable: in the background, and by operations
//!   such as a backup or a compaction. No commit waits for a hash.
//! - A segment is verified frame by frame before it is sealed, so that a seal never covers damage.
//! - Seals are derived from segments and need not be durable. A segment is valid without a seal,
//!   and the next call of `seal_segments` creates the seal.
//!
//! Deliberately absent: the layout, which is in `format::seal`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::engine::segments::Segment;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::seal::{SEAL_BYTES_MAX, Seal};
use crate::format::segment::SegmentHeader;
use crate::raw::epoch::pin;
use crate::recover::log_reader::{SegmentFile, next_frame};
use crate::storage::{OpenMode, Storage, read_exact};

impl Engine {
    /// Seals the complete, durable segments that have no valid seal. Segments known to have no live
    /// record, and segments that are not mapped yet, are skipped. Does nothing if the database is
    /// read-only, and stops early if it is closed. A damaged segment is not sealed, and `verify`
    /// reports the damage. If a seal cannot be written, the other segments are sealed all the same,
    /// and the first such error is returned.
    pub(crate) fn seal_segments(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        // One thread at a time seals. A close of the database waits for this lock.
        let mut sealed = lock(&self.sealed);
        let complete: Vec<(u64, u32)> = {
            let core = lock(&self.core);
            let durable = self.frontier_position().segment;
            core.complete()
                .filter(|(_, usage)| !usage.has_no_live_record())
                .map(|(id, usage)| (id, usage.end))
                .filter(|(id, _)| *id < durable)
                .collect()
        };
        sealed.retain(|id| complete.binary_search_by_key(id, |(id, _)| *id).is_ok());
        let mut result = Ok(());
        for (id, end) in complete {
            if self.closed.load(Ordering::Acquire) {
                break;
            }
            if sealed.contains(&id) {
                continue;
            }
            let segment = self.segments.load(&pin()).by_id(id).cloned();
            let Some(segment) = segment.filter(|segment| segment.is_mapped_to(end)) else {
                continue;
            };
            let valid = self.seal_of(id, end).is_some();
            let made = if valid {
                Ok(true)
            } else {
                self.seal_segment(&segment, end)
            };
            match made {
                Ok(true) => _ = sealed.insert(id),
                Ok(false) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Returns the valid seal of segment `id` with data up to offset `end`, if there is such a
    /// seal.
    pub(crate) fn seal_of(&self, id: u64, end: u32) -> Option<Seal> {
        let seal = read_seal(self.options.storage.as_ref(), &self.paths.seal(id)).ok()?;
        (seal.database == self.database && seal.segment == id && seal.data_bytes == end).then_some(seal)
    }

    /// Returns the length of a complete segment in bytes, or 0 if the segment is active or unknown.
    pub(crate) fn segment_end(&self, id: u64) -> u32 {
        lock(&self.core).usages.get(id).map_or(0, |usage| usage.end)
    }

    /// Verifies and seals a segment. Returns `false` if the segment was not sealed, because it is
    /// damaged or the file at its seal's path is the seal of another database.
    fn seal_segment(&self, segment: &Arc<Segment>, end: u32) -> Result<bool> {
        let bytes = segment.bytes_at(0).get(..end as usize);
        let Some(bytes) = bytes.filter(|_| is_whole(segment, self.database, end)) else {
            return Ok(false);
        };
        self.check_identity()?;
        let (storage, path) = (self.options.storage.as_ref(), self.paths.seal(segment.id));
        if read_seal(storage, &path).is_ok_and(|other| other.database != self.database) {
            // The file is the seal of another database, which must not be overwritten. This segment
            // stays without a seal.
            return Ok(false);
        }
        let seal = Seal::of(self.database, segment.id, bytes);
        if segment.is_cut() {
            // A page lost after its verification was hashed as zeros.
            return Ok(false);
        }
        write_seal(storage, &path, &seal).map(|()| true)
    }
}

/// Returns `true` if the header of a segment is valid and its complete frames end exactly at `end`.
pub(crate) fn is_whole(segment: &Arc<Segment>, database: crate::format::DatabaseId, end: u32) -> bool {
    let Ok(header) = SegmentHeader::decode(segment.bytes_at(0), database, segment.id) else {
        return false;
    };
    let file = SegmentFile {
        segment: segment.clone(),
        header,
        sealed_end: Some(end),
    };
    let mut at = file.start();
    while at.position.offset < end {
        match next_frame(&file, at) {
            Ok(frame) => at = frame.end,
            Err(_) => return false,
        }
    }
    at.position.offset == end
}

/// Reads and decodes the seal file at `path`.
pub(crate) fn read_seal(storage: &dyn Storage, path: &Path) -> Result<Seal> {
    let file = storage
        .open(path, OpenMode::Read)
        .map_err(Error::io("cannot open", path))?;
    let len = file
        .len()
        .map_err(Error::io("cannot read", path))?
        .min(SEAL_BYTES_MAX + 1);
    let bytes = read_exact(file.as_ref(), 0, len).map_err(Error::io("cannot read", path))?;
    Seal::decode(&bytes)
        .map_err(|flaw| Error::corrupt(path, flaw.at.into(), flaw.field, flaw.expected, flaw.found))
}

/// Writes a seal, and replaces an existing seal.
pub(crate) fn write_seal(storage: &dyn Storage, path: &Path, seal: &Seal) -> Result<()> {
    // There may be no seal yet. If a seal cannot be removed, the creation below fails.
    let _ = storage.remove(path);
    let file = storage
        .open(path, OpenMode::CreateNew)
        .map_err(Error::io("cannot create", path))?;
    file.write_at(&seal.encode(), 0).map_err(|error| {
        // If the removal fails too, the incomplete seal stays. Such a seal does not decode, so the
        // next call of `seal_segments` replaces it.
        let _ = storage.remove(path);
        Error::io("cannot write", path)(error)
    })
}
