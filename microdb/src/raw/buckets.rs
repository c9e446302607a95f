//! Cache-line buckets of eight 64-bit words, in owned memory or in place in a read-only [`Map`].
//!
//! - Readers load words while the one writer stores them. Each access is a single atomic load or
//!   store, so a reader sees either the old or the new value of a word.
//! - Words are little-endian in memory. So a checkpoint stores the bytes of a chunk unchanged.
//! - Loads are Relaxed, because the language permits no stronger atomic access to read-only
//!   (mapped) memory. [`fence_loads`] orders them.
//! - Words in a map are never stored to, so [`Buckets::store`] panics on them. The writer stores
//!   into a copy.
//!
//! Deliberately absent: the meaning of the words.

use std::ptr::NonNull;
use std::sync::Arc;

use super::map::Map;
use super::prefetch::prefetch;
use crate::raw::sync::{AtomicU64, Ordering, fence};

/// Number of words in a bucket, which is one cache line.
pub(crate) const BUCKET_WORDS: usize = 8;
/// Size of a bucket in bytes.
pub(crate) const BUCKET_BYTES: usize = 64;

#[repr(C, align(64))]
struct Bucket([AtomicU64; BUCKET_WORDS]);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == BUCKET_BYTES);

/// Owner of the memory that holds the words.
enum Memory {
    /// Memory of a `Box<[Bucket]>`, freed on drop.
    Owned,
    /// Bytes of a map, used in place.
    Mapped(Arc<Map>),
}

/// A fixed number of buckets.
pub(crate) struct Buckets {
    first: NonNull<Bucket>,
    count: usize,
    memory: Memory,
}

// SAFETY: owned words are only accessed atomically, and mapped words are only read. `Map` itself is
// Send and Sync.
unsafe impl Send for Buckets {}
// SAFETY: owned words are only accessed atomically, and mapped words are only read. `Map` itself is
// Sync.
unsafe impl Sync for Buckets {}

impl Buckets {
    /// Returns `count` buckets of zeros.
    pub(crate) fn zeroed(count: usize) -> Self {
        #[cfg(loom)]
        let memory = (0..count)
            .map(|_| Bucket(std::array::from_fn(|_| AtomicU64::new(0))))
            .collect::<Box<[_]>>();
        #[cfg(not(loom))]
        // SAFETY: all-zero bytes are a valid `AtomicU64`.
        let memory = unsafe { Box::<[Bucket]>::new_zeroed_slice(count).assume_init() };
        Self::owned(memory)
    }

    fn owned(memory: Box<[Bucket]>) -> Self {
        let count = memory.len();
        let memory = Box::into_raw(memory);
        let first = NonNull::new(memory.cast::<Bucket>()).expect("a box is never null");
        Self {
            first,
            count,
            memory: Memory::Owned,
        }
    }

    /// Returns the `count` buckets at `offset` of `map`, in place. Returns `None` if they do not
    /// fit or are not aligned to a cache line.
    pub(crate) fn mapped(map: &Arc<Map>, offset: usize, count: usize) -> Option<Self> {
        let bytes = map.get(offset, count.checked_mul(BUCKET_BYTES)?)?;
        let first = NonNull::from(bytes).cast::<Bucket>();
        first.is_aligned().then(|| Self {
            first,
            count,
            memory: Memory::Mapped(map.clone()),
        })
    }

    /// Returns the number of buckets.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Returns `true` if the buckets are in owned memory. Only then can words be stored.
    #[inline]
    pub(crate) fn is_owned(&self) -> bool {
        matches!(self.memory, Memory::Owned)
    }

    /// Returns the size of the owned memory in bytes, which is 0 for mapped buckets.
    pub(crate) fn owned_bytes(&self) -> usize {
        if self.is_owned() {
            self.count * BUCKET_BYTES
        } else {
            0
        }
    }

    /// Returns the bucket at `index`.
    ///
    /// # Panics
    /// If `index` is out of range, which is a bug of the caller.
    #[inline(always)]
    pub(crate) fn bucket(&self, index: usize) -> BucketRef<'_> {
        assert!(index < self.count, "bucket {index} of {}", self.count);
        // SAFETY: `index` is in the range of the allocation or map, which lives as long as `self`.
        // Loads through the reference are Relaxed atomic loads of eight bytes, which are permitted
        // on read-only memory too. `store` stores to owned memory only.
        BucketRef(unsafe { &(*self.first.as_ptr().add(index)).0 })
    }

    /// Stores a word with Release ordering: a reader that has loaded this word sees all earlier
    /// stores of the writer in its loads after [`fence_loads`].
    ///
    /// # Panics
    /// On mapped buckets, because their memory is read-only, and if `index` or `word` is out of
    /// range.
    #[inline]
    pub(crate) fn store(&self, index: usize, word: usize, value: u64) {
        assert!(self.is_owned(), "stored into a read-only map");
        self.bucket(index).0[word].store(value.to_le(), Ordering::Release);
    }

    /// Returns a copy in owned memory.
    pub(crate) fn copied(&self) -> Self {
        #[cfg(not(loom))]
        if !self.is_owned() {
            let mut memory = Box::<[Bucket]>::new_uninit_slice(self.count);
            // SAFETY: both ranges hold `count` buckets and do not overlap. Nobody stores to a map,
            // no other thread has the copy yet, and the copy is initialised completely.
            let memory = unsafe {
                std::ptr::copy_nonoverlapping(self.first.as_ptr(), memory.as_mut_ptr().cast(), self.count);
                memory.assume_init()
            };
            return Self::owned(memory);
        }
        let copy = Self::zeroed(self.count);
        for index in 0..self.count {
            let (from, to) = (self.bucket(index), copy.bucket(index));
            for (from, to) in from.0.iter().zip(to.0) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        copy
    }

    /// Appends all words to `out`, each as eight bytes in little-endian order.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.count * BUCKET_BYTES);
        for index in 0..self.count {
            for word in self.bucket(index).load_all() {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// Prefetches the cache line of a bucket. Any index is permitted.
    #[inline(always)]
    pub(crate) fn prefetch(&self, index: usize) {
        prefetch(self.first.as_ptr().wrapping_add(index));
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        if self.is_owned() {
            let memory = std::ptr::slice_from_raw_parts_mut(self.first.as_ptr(), self.count);
            // SAFETY: pointer and length come from `Box::into_raw` in `owned`, and the memory is
            // freed only here.
            drop(unsafe { Box::from_raw(memory) });
        }
    }
}

/// A reference to one bucket, through which its words are loaded.
#[derive(Clone, Copy)]
pub(crate) struct BucketRef<'a>(&'a [AtomicU64; BUCKET_WORDS]);

impl BucketRef<'_> {
    /// Loads a word, unordered with other loads until [`fence_loads`].
    #[inline(always)]
    pub(crate) fn load(self, word: usize) -> u64 {
        u64::from_le(self.0[word].load(Ordering::Relaxed))
    }

    /// Loads each word once, in no particular order.
    #[inline(always)]
    pub(crate) fn load_all(self) -> [u64; BUCKET_WORDS] {
        std::array::from_fn(|word| self.load(word))
    }
}

/// Orders the loads before this call before the loads after it. If an earlier load has read a word,
/// the later loads see all stores that the writer made before it stored this word.
#[inline(always)]
pub(crate) fn fence_loads() {
    fence(Ordering::Acquire);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owned_buckets_start_empty_and_keep_what_is_stored() {
        let buckets = Buckets::zeroed(3);
        assert_eq!(
            (
                buckets.count(),
                buckets.owned_bytes(),
                buckets.bucket(2).load_all()
            ),
            (3, 192, [0; 8])
        );
        buckets.store(1, 7, 42);
        let copy = buckets.copied();
        buckets.store(1, 7, 43);
        assert_eq!((copy.bucket(1).load(7), buckets.bucket(1).load(7)), (42, 43));
        buckets.prefetch(usize::MAX);
        assert_eq!(Buckets::zeroed(0).owned_bytes(), 0);
    }

    #[test]
    fn mapped_buckets_are_read_in_place_and_little_endian() {
        let mut bytes = vec![0; 64 * 3];
        bytes[64 + 8..64 + 16].copy_from_slice(&0x0102_0304_0506_0708_u64.to_le_bytes());
        let map = Arc::new(Map::of_bytes(&bytes));
        let buckets = Buckets::mapped(&map, 64, 2).unwrap();
        assert_eq!(
            (buckets.bucket(0).load(1), buckets.owned_bytes()),
            (0x0102_0304_0506_0708, 0)
        );
        let copy = buckets.copied();
        copy.store(0, 0, 9);
        assert_eq!((copy.bucket(0).load(0), buckets.bucket(0).load(0)), (9, 0));
        assert!(Buckets::mapped(&map, 64, 3).is_none());
        assert!(Buckets::mapped(&map, 8, 1).is_none());
    }

    #[test]
    #[should_panic(expected = "stored into a read-only map")]
    fn mapped_buckets_cannot_be_stored_to() {
        let map = Arc::new(Map::of_bytes(&[0; 64]));
        Buckets::mapped(&map, 0, 1).unwrap().store(0, 0, 1);
    }

    #[test]
    #[should_panic(expected = "bucket 2 of 2")]
    fn there_is_no_bucket_beyond_the_last() {
        let _ = Buckets::zeroed(2).bucket(2);
    }
}
