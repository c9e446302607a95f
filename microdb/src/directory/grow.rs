//! How a directory grows and shrinks: one chunk at a time, by rebuilding it.
//!
//! A chunk grows by a factor of about the square root of two, from one bucket up; beyond its
//! largest size it splits into two. Factors smaller than two keep the directory full (on average
//! about 0.77 of the slots, 10.4 bytes a key); sixteen different sets of sizes, chosen by the top
//! four bits of the hashes, keep all chunks from growing at the same moment, so that this average
//! holds at any moment and not only over time.
//!
//! A rebuilt chunk is complete before its pointer is swapped, and the old one is never changed
//! again: readers in it see the moment of the swap.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk::Chunk;
use super::rebuild::Filler;
use super::slot::PREFIX_BITS;
use super::{Directory, Root};
use crate::raw::epoch::{ArcCell, Guard};

/// Buckets of a freshly split chunk, by the top four bits of its hashes: 512 x 2^(n/32). With the
/// next size (x1.41) at most 1,003 buckets: 63 KiB are rebuilt or copied in some tens of
/// microseconds, and a chunk header and root entry for 3,000 keys and more weigh nothing.
const SPLIT_SIZES: [usize; 16] = [
    512, 523, 535, 546, 558, 571, 583, 596, 609, 622, 636, 650, 664, 679, 693, 709,
];

/// Most buckets of a chunk that may not split: tags still tell its keys apart.
const BUCKETS_MAX: usize = 1 << 16;
/// Deepest chunk: 16 million chunks, 64 billion keys, more than locations can tell apart.
const DEPTH_MAX: u8 = 24;
/// A root may have an entry for this many keys, a sixtieth of what it has by good hashes: hashes
/// alike in their top bits would otherwise double it without end.
const KEYS_A_ROOT_ENTRY: u64 = 64;

/// About the square root of two larger.
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
    /// Gives the keys of a full chunk more room: a larger chunk, or two. `false` if room is not
    /// what it lacks (many equal prefixes).
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

    /// Gives memory back when most keys of a chunk are gone.
    pub(super) fn shrink_if_sparse(&self, guard: &Guard, chunk: &Chunk) {
        let size = chunk.bucket_count();
        // A fifth full shrinks to six tenths full: far enough from both limits that keys coming and
        // going do not rebuild it each time.
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

    /// The filled chunk; a larger one where luck is bad.
    fn finished(&self, guard: &Guard, filler: Filler) -> Arc<Chunk> {
        let (mut chunk, mut left) = filler.finish();
        // More room would not help where three quarters are free already: equal prefixes.
        while !left.is_empty() && chunk.keys() * 4 >= chunk.slots() && chunk.bucket_count() < BUCKETS_MAX {
            let size = next_size(chunk.bucket_count());
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

    /// Puts `new` in the place of `old`.
    pub(super) fn replace(&self, guard: &Guard, old: &Chunk, new: Arc<Chunk>) {
        self.usage(new.bytes(), old.bytes());
        self.install(guard, &new);
        // At most 64 KiB and rare; not to be left lying in this thread until it happens to pin
        // again.
        guard.flush();
    }

    /// Points the entries of a chunk's range to it.
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
