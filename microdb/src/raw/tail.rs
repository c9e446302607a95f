//! Append-only memory that one writer fills while any number of readers read its published part.
//!
//! ```text
//! 0            published            filled              capacity
//! |-- readers --|-- the writer only --|-- not yet written --|
//! ```
//!
//! A committed record is read from this memory until its bytes can be read from the file. The
//! memory is one piece of fixed capacity, so that each record is contiguous and all unwritten bytes
//! go to the disk in one write. A writer that needs more space starts another buffer.
//!
//! A snapshot may hold a buffer for hours. Once the bytes are in the file, [`TailBuffer::lay_over`]
//! replaces whole pages of the memory by the pages of the file. Readers find the same bytes at the
//! same addresses, and the replaced memory is freed.
//!
//! Invariants:
//!
//! - `published <= filled <= capacity`.
//! - Bytes below `filled` never change again.
//! - Only the one [`TailWriter`] changes `published` and `filled`, and it only increases them.
//!   Readers therefore need no lock and never wait.
//!
//! Deliberately absent: growth.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use memmap2::{MmapMut, UncheckedAdvice};

use super::map::Map;
use super::sigbus::Watch;
use super::sync::ignore_poison;

/// Memory of one buffer that has no readers any more. It is kept for the next buffer of the same
/// size, because fresh memory costs a fault per page. The operating system may take the pages back
/// if memory runs short.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Option<MmapMut>>);

/// Minimum size in bytes of a buffer that is kept. Keeping a smaller buffer saves too few page
/// faults.
const SPARE_BYTES_MIN: usize = 4 << 20;
/// Maximum size in bytes of a buffer that is kept. The limit exists because an idle database keeps
/// this memory.
const SPARE_BYTES_MAX: usize = 16 << 20;

impl Spare {
    fn take(&self, bytes: usize) -> Option<MmapMut> {
        let mut spare = ignore_poison(self.0.lock());
        spare.take_if(|map| map.len() == bytes)
    }

    fn keep(&self, map: MmapMut) {
        // SAFETY: the advice may discard the bytes. The next owner of the memory reads only bytes
        // that it has written.
        let _ = unsafe { map.unchecked_advise(UncheckedAdvice::Free) };
        *ignore_poison(self.0.lock()) = Some(map);
    }
}

/// Memory of a segment, shared by readers through an `Arc`. Its one writer is the [`TailWriter`]
/// that created it.
pub(crate) struct TailBuffer {
    /// The first byte of the buffer, in `map`. The writer writes through this pointer and never
    /// through `map`.
    memory: NonNull<u8>,
    /// The map that owns the memory. On drop of the buffer, the map is unmapped or kept as spare
    /// memory.
    map: ManuallyDrop<MmapMut>,
    /// Receives the memory when the buffer is dropped, if its size is suitable, no file has
    /// replaced it, and the [`Spare`] still exists.
    spare: Weak<Spare>,
    capacity: usize,
    /// `true` once the writer is dropped. No byte is written after that.
    finished: AtomicBool,
    /// SIGBUS watch of the file's pages that replace the memory. Set immediately before the
    /// replacement.
    file: OnceLock<Watch>,
    /// Number of bytes visible to readers. Stored with Release after the bytes are written, loaded
    /// with Acquire before they are read.
    published: AtomicUsize,
}

// SAFETY: this value owns the memory, which is plain bytes. Bytes below `published` are immutable,
// and were written before the Release store that a reader's Acquire load has seen. Only the single
// `TailWriter`, which cannot be cloned, accesses bytes above `published`. It writes them through
// `&mut self`.
unsafe impl Send for TailBuffer {}
// SAFETY: readers access only bytes below `published`, which are immutable. Only the single
// `TailWriter` accesses the other bytes. It writes them through `&mut self`.
unsafe impl Sync for TailBuffer {}

impl TailBuffer {
    /// Returns a full, published buffer with a copy of `bytes`.
    ///
    /// # Errors
    /// Errors of `mmap` if there is no memory.
    pub(crate) fn of_bytes(bytes: &[u8]) -> io::Result<Arc<Self>> {
        let mut writer = TailWriter::with_capacity(bytes.len(), 0, &Arc::default())?;
        writer.append(bytes);
        writer.publish();
        Ok(writer.buffer.clone())
    }

    /// Returns the number of bytes visible to readers.
    #[inline]
    pub(crate) fn published(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    /// Returns the maximum number of bytes in this buffer.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns `len` published bytes at `offset`, or `None` if not all of them are published.
    #[inline]
    pub(crate) fn get(&self, offset: usize, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len)? > self.published() {
            return None;
        }
        // SAFETY: the range is below `published`, so it is initialised, and immutable until the
        // buffer is dropped. The borrow of `self` prevents that drop.
        Some(unsafe { self.bytes(offset..offset + len) })
    }

    /// Returns the address of the byte at `offset`, or the end of the buffer if `offset` is beyond
    /// it. For prefetching only.
    #[inline]
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        self.memory.as_ptr().wrapping_add(offset.min(self.capacity))
    }

    /// Returns `true` if a read touched a page that the file that replaced the memory could not
    /// provide (see [`Map::is_cut`]).
    pub(crate) fn is_cut(&self) -> bool {
        self.file.get().is_some_and(Watch::is_cut)
    }

    /// Replaces whole pages of the memory by the pages of `file`, to which the bytes were written
    /// at offset `base`. Returns `false` and replaces nothing if the buffer covers no whole page of
    /// the file, was replaced before, or still has a writer. The same holds if `file` is too short,
    /// is not mapped or has another owner, and if the page borders of memory and file do not match.
    /// If the kernel refuses the replacement, the memory stays in use, and the result is `true`.
    pub(crate) fn lay_over(&self, file: Arc<Map>, base: usize) -> bool {
        let page = page_bytes();
        let end = base + self.published();
        let (first, last) = (base.next_multiple_of(page), end / page * page);
        let to = self.memory.as_ptr().wrapping_add(first - base);
        let is_finished = self.finished.load(Ordering::Acquire);
        if !is_finished || last <= first || last > file.len() || !to.addr().is_multiple_of(page) {
            return false;
        }
        let Some(map) = Arc::into_inner(file).and_then(Map::into_mapping) else {
            return false;
        };
        let mut laid = false;
        // The watch must exist before the pages are moved. A second call finds the watch set and
        // moves nothing.
        self.file.get_or_init(|| {
            laid = true;
            Watch::new(to, last - first)
        });
        if laid {
            // SAFETY: `first..last` are whole pages of the map, which has no other owner and is not
            // used afterwards. `to` is the page of our own memory with the same bytes of the file,
            // so the pages fit. The writer is gone. Readers see the same bytes before and after:
            // `published` bytes were written to the file, and these bytes never change again (see
            // `map` on other programs). The kernel exchanges the pages in one step, and a reader
            // that touches them during the exchange waits.
            unsafe { move_pages(map, first..last, to) };
        }
        laid
    }

    /// Returns the bytes of `range`.
    ///
    /// # Safety
    /// The range must be below `TailWriter::filled`, as seen by a thread that synchronised with the
    /// writer.
    unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: the caller promises that `range` is inside the allocation and has been written.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(range.start), range.len()) }
    }
}

impl Drop for TailBuffer {
    fn drop(&mut self) {
        // SAFETY: `map` is taken only here, and not used afterwards.
        let map = unsafe { ManuallyDrop::take(&mut self.map) };
        // `file.take` drops the watch before the pages, because a watch must not outlive its pages.
        if self.file.take().is_none()
            && (SPARE_BYTES_MIN..=SPARE_BYTES_MAX).contains(&self.capacity)
            && let Some(spare) = self.spare.upgrade()
        {
            spare.keep(map);
        }
    }
}

impl std::fmt::Debug for TailBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TailBuffer({} of {} bytes)", self.published(), self.capacity)
    }
}

/// The only writer of a [`TailBuffer`]. It cannot be cloned, so a buffer never has two writers.
#[derive(Debug)]
pub(crate) struct TailWriter {
    buffer: Arc<TailBuffer>,
    filled: usize,
}

impl TailWriter {
    /// Returns a writer of a new, empty buffer of `capacity` bytes. Uses the memory of `spare` if
    /// its size fits. Fresh memory is not touched before it is written, so unused pages cost
    /// nothing. `base` is the offset in the file at which the bytes will begin.
    ///
    /// # Errors
    /// Errors of `mmap` if there is no memory.
    pub(crate) fn with_capacity(capacity: usize, base: u32, spare: &Arc<Spare>) -> io::Result<Self> {
        // Page borders of the file must match those of the memory, as `lay_over` exchanges whole
        // pages.
        let shift = base as usize % page_bytes();
        let bytes = (shift + capacity).max(1);
        let mut map = match spare.take(bytes) {
            Some(map) => map,
            None => MmapMut::map_anon(bytes)?,
        };
        let memory = NonNull::new(map.as_mut_ptr().wrapping_add(shift)).ok_or(io::ErrorKind::OutOfMemory)?;
        let buffer = TailBuffer {
            memory,
            map: ManuallyDrop::new(map),
            spare: Arc::downgrade(spare),
            capacity,
            finished: AtomicBool::new(false),
            file: OnceLock::new(),
            published: AtomicUsize::new(0),
        };
        Ok(Self {
            buffer: Arc::new(buffer),
            filled: 0,
        })
    }

    /// Returns the buffer, which readers share.
    pub(crate) fn buffer(&self) -> &Arc<TailBuffer> {
        &self.buffer
    }

    /// Returns the number of appended bytes, published or not.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Returns the number of bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        self.buffer.capacity - self.filled
    }

    /// Appends `bytes` without publishing them. Returns their offset, or `None` without appending
    /// if they do not fit.
    #[inline]
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Option<usize> {
        if bytes.len() > self.room() {
            return None;
        }
        let offset = self.filled;
        // SAFETY: the target is inside the allocation and above `filled`. No reference to it
        // exists, because readers use bytes below `published <= filled` and slices of `get` end
        // below `filled`. For the same reason `bytes` cannot overlap the target.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.buffer.memory.as_ptr().add(offset),
                bytes.len(),
            );
        }
        self.filled += bytes.len();
        Some(offset)
    }

    /// Publishes all appended bytes.
    #[inline]
    pub(crate) fn publish(&mut self) {
        self.publish_up_to(self.filled);
    }

    /// Publishes the first `len` bytes.
    ///
    /// # Panics
    /// If fewer bytes were appended, which is a bug of the caller.
    pub(crate) fn publish_up_to(&mut self, len: usize) {
        assert!(
            len <= self.filled,
            "published {len} of {} appended bytes",
            self.filled
        );
        if len > self.buffer.published.load(Ordering::Relaxed) {
            self.buffer.published.store(len, Ordering::Release);
        }
    }

    /// Returns `len` appended bytes at `offset`, published or not. Returns `None` if fewer bytes
    /// were appended.
    pub(crate) fn get(&self, offset: usize, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len)? > self.filled {
            return None;
        }
        // SAFETY: the range is below `filled`, so this writer has written it and never changes it
        // again.
        Some(unsafe { self.buffer.bytes(offset..offset + len) })
    }
}

impl Drop for TailWriter {
    fn drop(&mut self) {
        self.buffer.finished.store(true, Ordering::Release);
    }
}

/// Returns the size of a page of memory in bytes.
fn page_bytes() -> usize {
    // SAFETY: `sysconf` has no preconditions.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// Moves the pages of `range` of a map to the address `to`, where they replace the pages there.
/// Unmaps the rest of the map.
///
/// # Safety
/// `range` is not empty, begins and ends at page borders and lies inside the map. The pages at `to`
/// belong to the caller. Users of these pages depend only on their bytes, which equal those of the
/// moved pages.
unsafe fn move_pages(map: memmap2::Mmap, range: Range<usize>, to: *mut u8) {
    let (start, len) = (map.as_ptr().cast_mut(), map.len().next_multiple_of(page_bytes()));
    // This function owns the pages from here on.
    std::mem::forget(map);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the pages of `range` are mapped and owned here. The caller promises that the pages at
    // `to` may be replaced.
    let moved = unsafe {
        libc::mremap(
            start.add(range.start).cast(),
            range.len(),
            range.len(),
            flags,
            to.cast::<libc::c_void>(),
        )
    };
    // Pages that were not moved are unmapped. If the kernel refused the move, all pages of the map
    // are unmapped, and the pages at `to` are unchanged.
    let rest = if moved == libc::MAP_FAILED {
        [0..len, len..len]
    } else {
        [0..range.start, range.end..len]
    };
    for rest in rest.into_iter().filter(|rest| !rest.is_empty()) {
        // SAFETY: the pages are mapped, owned here, and without references, because the map was not
        // shared.
        unsafe { libc::munmap(start.add(rest.start).cast(), rest.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_what_is_published_and_no_more() {
        let mut writer = TailWriter::with_capacity(10, 0, &Arc::default()).unwrap();
        let reader = writer.buffer().clone();
        assert_eq!(writer.append(b"abcd"), Some(0));
        assert_eq!(writer.get(0, 4), Some(&b"abcd"[..]));
        assert_eq!((reader.published(), reader.get(0, 1)), (0, None));
        writer.publish_up_to(3);
        assert_eq!(
            (reader.get(0, 3), reader.get(0, 4), reader.get(3, 0)),
            (Some(&b"abc"[..]), None, Some(&b""[..]))
        );
        assert_eq!(writer.append(b"1234567"), None);
        assert_eq!(writer.append(b"123456"), Some(4));
        writer.publish();
        assert_eq!((writer.room(), writer.filled()), (0, 10));
        assert_eq!(reader.get(2, 8), Some(&b"cd123456"[..]));
        assert_eq!(reader.get(usize::MAX, 2), None);
    }

    #[test]
    fn memory_is_used_again_once_nobody_reads_it() {
        let spare = Arc::default();
        let mut first = TailWriter::with_capacity(SPARE_BYTES_MIN, 0, &spare).unwrap();
        first.append(b"old").unwrap();
        first.publish();
        let address = first.buffer().address(0);
        let reader = first.buffer().clone();
        drop(first);
        let second = TailWriter::with_capacity(SPARE_BYTES_MIN, 0, &spare).unwrap();
        assert_ne!(second.buffer().address(0), address, "still read");
        assert_eq!(reader.get(0, 3), Some(&b"old"[..]));
        drop(reader);
        let larger = TailWriter::with_capacity(2 * SPARE_BYTES_MIN, 0, &spare).unwrap();
        let third = TailWriter::with_capacity(SPARE_BYTES_MIN, 0, &spare).unwrap();
        assert_eq!(third.buffer().address(0), address);
        assert_eq!(
            (third.filled(), third.buffer().get(0, 1)),
            (0, None),
            "nothing of before is seen"
        );
        drop((second, larger, spare));
        drop(third);
    }

    #[test]
    fn a_buffer_that_is_held_gives_its_memory_back_once_the_file_has_its_bytes() {
        use std::os::unix::fs::FileExt;
        // A base of 5000 stands for a reopened log, where the memory begins in the middle of a page
        // of the file.
        for base in [0_u32, 5000] {
            let bytes: Vec<u8> = (0..50_000_u32).map(|at| (at % 251) as u8).collect();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, base.into()).unwrap();
            let mut writer = TailWriter::with_capacity(100_000, base, &Arc::default()).unwrap();
            writer.append(&bytes).unwrap();
            writer.publish();
            let reader = writer.buffer().clone();
            let seen = reader.get(0, bytes.len()).unwrap();
            let map = || Arc::new(Map::of_file(&file, u64::from(base) + 50_000).unwrap());
            assert!(!reader.lay_over(map(), base as usize), "there is a writer");
            drop(writer);
            assert!(
                !reader.lay_over(Arc::new(Map::of_bytes(&bytes)), base as usize),
                "a copy"
            );
            let shared = map();
            assert!(!reader.lay_over(shared.clone(), base as usize), "another owner");
            drop(shared);
            assert!(reader.lay_over(map(), base as usize));
            assert!(!reader.lay_over(map(), base as usize), "a second time");
            assert_eq!(seen, bytes, "a slice from before shows the same bytes");
            assert_eq!(reader.get(10_000, 40_000).unwrap(), &bytes[10_000..]);
            assert!(!reader.is_cut());
            // This byte is written only to the file. The buffer shows it, so the buffer consists of
            // the pages of the file.
            file.write_all_at(&[255], u64::from(base) + 20_000).unwrap();
            assert_eq!(reader.get(20_000, 1).unwrap(), [255]);
        }
    }

    #[test]
    fn concurrent_readers_see_every_published_byte() {
        const LEN: usize = 100_000;
        let mut writer = TailWriter::with_capacity(LEN, 0, &Arc::default()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let reader = writer.buffer().clone();
                scope.spawn(move || {
                    let mut seen = 0;
                    while seen < LEN {
                        let published = reader.published();
                        let bytes = reader.get(seen, published - seen).unwrap();
                        for (i, byte) in bytes.iter().enumerate() {
                            assert_eq!(*byte, ((seen + i) % 253) as u8);
                        }
                        seen = published;
                    }
                });
            }
            for i in 0..LEN {
                writer.append(&[(i % 253) as u8]).unwrap();
                if i % 7 == 0 || i == LEN - 1 {
                    writer.publish();
                }
            }
        });
    }
}
