//! Growth and shrinking of a directory: one chunk at a time, by rebuilding it.
//!
//! - The first chunk begins with one bucket. A chunk grows by a factor of about the square root of
//!   two, or by one bucket while it is very small. Beyond its largest size it splits into two. A
//!   chunk that cannot split grows further, up to `BUCKETS_MAX` buckets.
//! - With a factor below two, few slots stay unused: on average, about 0.77 of the slots are used,
//!   which gives 10.4 bytes per key.
//! - Sixteen different sets of sizes, chosen by the top four bits of the hashes, keep chunks from
//!   growing at the same time. So the average of a large table holds at any time.
//! - A rebuilt chunk is complete before its pointer is swapped, and the old chunk is never changed
//!   again. Readers that still use the old chunk see its state at the swap.
//!
//! Deliberately absent: a resize of the whole directory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk::Chunk;
use super::rebuild::Filler;
use super::slot::PREFIX_BITS;
use super::{Directory, Root};
use crate::raw::epoch::{ArcCell, Guard};

/// Number of buckets of each half after a split, by the top four bits (n) of its hashes: 512 x
/// 2^(n/32). Such a chunk usually grows only once more, by a factor of 1.41, before it splits. So a
/// chunk of this kind has at most 63 KiB of buckets, which are rebuilt or copied in tens of
/// microseconds. Each half begins with about 2,600 keys or more, so the memory of its header and
/// root entry is negligible.
const SPLIT_SIZES: [usize; 16] = [
    512, 523, 535, 546, 558, 571, 583, 596, 609, 622, 636, 650, 664, 679, 693, 709,
];

/// Maximum number of buckets of a chunk that cannot split. Such a chunk has at most 4 MiB. Keys
/// that find no room in it are added to the stash.
const BUCKETS_MAX: usize = 1 << 16;
/// Maximum depth of a chunk. It permits 16 million chunks, which can hold about 64 billion keys.
const DEPTH_MAX: u8 = 24;
/// The root doubles only if it then has at least this number of keys per entry on average, a
/// sixtieth of the usual number. The root is the array of pointers to the chunks, indexed by the
/// top bits of a hash. Without this limit, many hashes with equal top bits would double the size of
/// the root again and again.
const KEYS_A_ROOT_ENTRY: u64 = 64;

/// Returns the next larger number of buckets: about `buckets` times the square root of two, and at
/// least one more than `buckets`.
fn next_size(buckets: usize) -> usize {
    (buckets + 1).max(buckets * 181 / 128)
}

fn split_size(path: u32, depth: u8) -> usize {
    let top_four = if depth >= 4 {
        path >> (depth - 4)
    } else {
        path << (4 - depth)
    };
    SPLIT_SIZES[top_four as usize]
}

impl Directory {
    /// Replaces a chunk that is full or has no room for a key by a larger chunk or by two chunks.
    /// Returns `false` if the chunk has `BUCKETS_MAX` buckets and cannot split, or if less than
    /// half of its slots are used. In the latter case many keys have nearly equal prefixes, and
    /// more room would not help.
    pub(super) fn grow(&self, guard: &Guard, chunk: &Chunk) -> bool {
        if chunk.keys() * 2 < chunk.slots() {
            return false;
        }
        let size = chunk.bucket_count();
        let size_max = next_size(split_size(chunk.path(), chunk.depth()));
        if size < size_max {
            self.resize(guard, chunk, next_size(size).min(size_max));
        } else if self.may_split(chunk) {
            self.split(guard, chunk);
        } else if size < BUCKETS_MAX {
            self.resize(guard, chunk, next_size(size).min(BUCKETS_MAX));
        } else {
            return false;
        }
        true
    }

    /// Rebuilds a chunk with fewer buckets if less than a fifth of its slots are used.
    pub(super) fn shrink_if_sparse(&self, guard: &Guard, chunk: &Chunk) {
        let size = chunk.bucket_count();
        // A chunk that is one fifth full is rebuilt to be about six tenths full. Shrinking begins
        // at one fifth and growth at nine tenths, so few rebuilds happen while the number of keys
        // changes up and down.
        if size > 1 && chunk.keys() * 5 < chunk.slots() {
            self.resize(guard, chunk, (chunk.keys() / 5).clamp(1, size - 1));
        }
    }

    fn may_split(&self, chunk: &Chunk) -> bool {
        chunk.depth() < DEPTH_MAX && 1 << (chunk.depth() + 1) <= self.len() / KEYS_A_ROOT_ENTRY
    }

    fn resize(&self, guard: &Guard, chunk: &Chunk, size: usize) {
        let mut filler = Filler::new(chunk.path(), chunk.depth(), size, self.stamp());
        chunk.for_each(|prefix, location| filler.add(prefix, location));
        let resized = self.finished(guard, filler);
        self.replace(guard, chunk, resized);
    }

    fn split(&self, guard: &Guard, chunk: &Chunk) {
        let depth = chunk.depth() + 1;
        if depth > self.root.load(guard).depth {
            self.double_root(guard);
        }
        let path = chunk.path() << 1;
        let mut halves =
            [path, path | 1].map(|path| Filler::new(path, depth, split_size(path, depth), self.stamp()));
        let half_bit = PREFIX_BITS - u32::from(depth);
        chunk.for_each(|prefix, location| halves[(prefix.0 >> half_bit & 1) as usize].add(prefix, location));
        let halves = halves.map(|half| self.finished(guard, half));
        self.usage(halves[0].bytes() + halves[1].bytes(), chunk.bytes());
        for half in halves {
            self.install(guard, &half);
        }
        guard.flush();
    }

    /// Returns the filled chunk, or a larger chunk if keys found no room. If a larger chunk would
    /// not help or would exceed `BUCKETS_MAX`, these keys are added to the stash.
    fn finished(&self, guard: &Guard, filler: Filler) -> Arc<Chunk> {
        let (mut chunk, mut left) = filler.finish();
        // If keys find no room although three quarters of the slots are free, their prefixes are
        // nearly equal, and a larger chunk would not help.
        while !left.is_empty() && chunk.keys() * 4 >= chunk.slots() && chunk.bucket_count() < BUCKETS_MAX {
            let size = next_size(chunk.bucket_count()).min(BUCKETS_MAX);
            let mut larger = Filler::new(chunk.path(), chunk.depth(), size, self.stamp());
            chunk.for_each(|prefix, location| larger.add(prefix, location));
            left.iter()
                .for_each(|(prefix, location)| larger.add(*prefix, *location));
            (chunk, left) = larger.finish();
        }
        if !left.is_empty() {
            self.change_stash(guard, |stash| stash.append(&mut left));
        }
        Arc::new(chunk)
    }

    /// Replaces the chunk `old` by the chunk `new` in the root.
    pub(super) fn replace(&self, guard: &Guard, old: &Chunk, new: Arc<Chunk>) {
        self.usage(new.bytes(), old.bytes());
        self.install(guard, &new);
        // Hands the retired chunk to the collector now, not later, so that its memory is freed
        // soon.
        guard.flush();
    }

    /// Points all root entries of a chunk's range to the chunk.
    fn install(&self, guard: &Guard, chunk: &Arc<Chunk>) {
        let root = self.root.load(guard);
        let shift = root.depth - chunk.depth();
        let first = (chunk.path() as usize) << shift;
        for entry in &root.entries[first..first + (1 << shift)] {
            entry.replace(chunk.clone(), guard);
        }
    }

    fn double_root(&self, guard: &Guard) {
        let old = self.root.load(guard);
        let twice = old.entries.iter().flat_map(|entry| [entry, entry]);
        let entries = twice.map(|entry| ArcCell::new(entry.load_arc(guard))).collect();
        let new = Root {
            depth: old.depth + 1,
            entries,
        };
        self.usage(new.bytes(), old.bytes());
        self.root.replace(Arc::new(new), guard);
    }

    fn usage(&self, added: u64, removed: u64) {
        self.bytes
            .store(self.bytes() + added - removed, Ordering::Relaxed);
    }
}
