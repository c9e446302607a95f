//! Read-only bytes of a file: mapped, or copied to memory if the storage cannot map files.
//!
//! - The first byte of a map or copy is aligned to 64 bytes, so that cache-line structures can be
//!   used in place ([`super::buckets::Buckets::mapped`]).
//! - Mapped bytes are only as immutable as their file. Segments grow by appending, checkpoints are
//!   written once, and the lock of the folder excludes other writers. Callers read only bytes that
//!   never change again.
//! - If another program changes a mapped file, checksums detect the change when the bytes are
//!   verified next. Overwritten bytes read as the new content. Truncated bytes read as zeros, if
//!   the handler of [`super::sigbus`] is installed.
//!
//! Deliberately absent: writable maps.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use super::sigbus::Watch;

/// Alignment in bytes of the first byte of every map, which is the size of a cache line. Mapped
/// pages have a larger alignment.
const ALIGN: usize = 64;

/// Maximum number of bytes in one read-ahead request to the operating system.
const ASK_BYTES: usize = 128 * 1024;

/// Advice given to the operating system for a map: none, read ahead in large pages, or read only
/// touched pages. Without advice, the system reads ahead in small pages.
const NO_ADVICE: u8 = 0;
const READ_AHEAD: u8 = 1;
const SCATTERED: u8 = 2;

/// A cache line of copied bytes. The type gives the copy its alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; ALIGN]);

/// Memory that holds the bytes of the file.
enum Memory {
    /// The pages of the file and their SIGBUS watch. Fields are dropped in order, so the watch ends
    /// before the pages are unmapped.
    Mapped(Watch, memmap2::Mmap),
    Copied(Box<[Line]>),
}

/// Read-only bytes of a file. The first byte is aligned to 64 bytes.
pub(crate) struct Map {
    memory: Memory,
    len: usize,
    /// The last advice given to the operating system: `NO_ADVICE`, `READ_AHEAD` or `SCATTERED`.
    advice: AtomicU8,
}

impl Map {
    /// Maps the first `len` bytes of `file`. The file must not be shorter, and bytes that are read
    /// must never change again (see the header of this file).
    ///
    /// # Errors
    /// Errors of `mmap`.
    pub(crate) fn of_file(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if len == 0 {
            return Ok(Self::of_bytes(&[]));
        }
        // SAFETY: a read-only map of a regular file. The bytes read from it are never changed again
        // by this process, nor by another process that respects the lock of the folder. The header
        // of this module covers other programs.
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(file)? };
        Ok(Self {
            memory: Memory::Mapped(Watch::new(map.as_ptr(), len), map),
            len,
            advice: AtomicU8::new(NO_ADVICE),
        })
    }

    /// Returns a copy of `bytes` as a map, for storages that cannot map.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let mut lines = vec![Line([0; ALIGN]); bytes.len().div_ceil(ALIGN)];
        for (line, chunk) in lines.iter_mut().zip(bytes.chunks(ALIGN)) {
            line.0[..chunk.len()].copy_from_slice(chunk);
        }
        Self {
            memory: Memory::Copied(lines.into_boxed_slice()),
            len: bytes.len(),
            advice: AtomicU8::new(NO_ADVICE),
        }
    }

    /// Returns the mapping of a file, and ends its SIGBUS watch. Returns `None` for a copy.
    pub(super) fn into_mapping(self) -> Option<memmap2::Mmap> {
        match self.memory {
            Memory::Mapped(_, map) => Some(map),
            Memory::Copied(_) => None,
        }
    }

    /// Returns `true` for a map of a file, `false` for a copy.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.memory, Memory::Mapped(..))
    }

    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns `len` bytes at `offset`, or `None` if the range ends beyond the map.
    #[inline]
    pub(crate) fn get(&self, offset: usize, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: offset + len <= self.len. Both kinds of memory have this many initialised bytes
        // as long as `self` lives. Requested bytes never change again.
        Some(unsafe { std::slice::from_raw_parts(self.first().add(offset), len) })
    }

    /// Returns `true` if a read touched a page that could not be provided: the file was truncated,
    /// or the disk failed to read the page. Such a page reads as zeros.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(&self.memory, Memory::Mapped(watch, _) if watch.is_cut())
    }

    /// Returns the address of the byte at `offset`, or the end of the map if `offset` is beyond it.
    /// For prefetching only.
    #[inline]
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        self.first().wrapping_add(offset.min(self.len))
    }

    /// Advises the operating system about reads of this map. If `scattered` is `true`, the system
    /// reads only touched pages. Otherwise it may read ahead in large pages, which need one entry
    /// of the page table instead of hundreds. A failure costs only speed.
    pub(crate) fn advise(&self, scattered: bool) {
        let Memory::Mapped(_, map) = &self.memory else {
            return;
        };
        if scattered {
            self.advice.store(SCATTERED, Ordering::Relaxed);
            let _ = map.advise(memmap2::Advice::Random);
            let _ = map.advise(memmap2::Advice::NoHugePage);
        } else {
            // `Normal` only reverts `Random`. It is omitted otherwise, because the number of system
            // calls matters when a database with many segments is opened.
            if self.advice.swap(READ_AHEAD, Ordering::Relaxed) == SCATTERED {
                let _ = map.advise(memmap2::Advice::Normal);
            }
            let _ = map.advise(memmap2::Advice::HugePage);
        }
    }

    /// Returns `true` if the operating system reads only touched pages of this map.
    fn is_scattered(&self) -> bool {
        self.advice.load(Ordering::Relaxed) == SCATTERED
    }

    /// Requests `len` bytes at `offset` from the disk without waiting. For bytes in memory this
    /// costs only system calls. Does nothing unless the advice is to read only touched pages: with
    /// other advice, the operating system itself reads ahead in larger pieces.
    pub(crate) fn will_need(&self, offset: usize, len: usize) {
        let Memory::Mapped(_, map) = &self.memory else {
            return;
        };
        if !self.is_scattered() {
            return;
        }
        let end = offset.saturating_add(len).min(self.len);
        // The kernel may ignore the part of a request that exceeds the read-ahead size of the
        // device. `ASK_BYTES` is the usual size.
        for at in (offset.min(end)..end).step_by(ASK_BYTES) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, at, ASK_BYTES.min(end - at));
        }
    }

    fn first(&self) -> *const u8 {
        match &self.memory {
            Memory::Mapped(_, map) => map.as_ptr(),
            Memory::Copied(lines) => lines.as_ptr().cast(),
        }
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if matches!(self.memory, Memory::Mapped(..)) {
            "mapped"
        } else {
            "copied"
        };
        write!(f, "Map({kind}, {} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn mapped_and_copied_bytes_read_alike() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        for map in [Map::of_file(&file, 10_000).unwrap(), Map::of_bytes(&bytes)] {
            map.advise(true);
            map.advise(false);
            for (offset, len) in [
                (0, 10_000),
                (9_999, 1),
                (10_000, 1),
                (5_000, usize::MAX),
                (usize::MAX, 1),
            ] {
                map.will_need(offset, len);
            }
            assert_eq!(map.len(), 10_000);
            assert_eq!(map.get(0, 0).unwrap().as_ptr().addr() % ALIGN, 0);
            for (offset, len) in [(0, 10_000), (1, 9_999), (9_999, 1), (10_000, 0), (63, 130)] {
                assert_eq!(map.get(offset, len).unwrap(), &bytes[offset..offset + len]);
            }
            for (offset, len) in [(0, 10_001), (10_000, 1), (usize::MAX, 2)] {
                assert!(map.get(offset, len).is_none());
            }
        }
    }

    #[test]
    fn nothing_of_an_empty_file_is_mapped() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Map::of_file(&file, 0).unwrap().len(), 0);
    }
}
