//! The hash directory of one table: maps the hash of a key to the location of its newest record, in
//! about ten bytes per key.
//!
//! ```text
//! hash --top bits--> root --> chunk --scaled--> bucket --tag--> location
//!                                               (a cache line of eight slots)
//! ```
//!
//! The directory stores no keys. It returns *candidates*, and the caller compares keys in the
//! records. A wrong candidate is rare ([`slot`]), a missing one is impossible.
//!
//! - One writer at a time, which holds the commit lock. Any number of readers, which take no lock
//!   and never wait; a pin keeps memory alive for them.
//! - Growth rebuilds one chunk of at most 64 KiB ([`chunk`], [`grow`]) and swaps a pointer. The
//!   directory as a whole never stops.
//! - A [`View`] is the directory of one moment, for any length of time. Chunks are shared, and the
//!   writer copies a chunk before it first changes it.
//! - A key is one slot, changed by one store, so readers see its old or its new location.
//!   Consistency of several keys is the caller's task.
//!
//! Deliberately absent: the keyed hash, records, locks.

#[cfg(feature = "bench")]
pub(crate) mod bench_support;
mod chunk;
mod grow;
mod image;
mod probe;
mod rebuild;
mod slot;
mod view;

#[cfg(not(loom))]
#[cfg(test)]
mod image_tests;
#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chunk::Chunk;
pub(crate) use image::{EncodeError, IMAGE_ALIGN, ImageTable};
#[cfg(feature = "fuzzing")]
pub(crate) use image::{repair_image, seal};
use probe::Probe;
use slot::Prefix;
pub(crate) use slot::{KeyHash, Location};
pub(crate) use view::View;

use crate::raw::epoch::{ArcCell, Guard};
use crate::raw::sync::{AtomicUsize, Token, fence};
use crate::seeded::seeded;

/// Damage in a checkpoint's image of the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    /// Offset of the damaged structure (a chunk or the table) in the file of the checkpoint.
    pub(crate) offset: u64,
    /// Name of the damaged field.
    pub(crate) field: &'static str,
    /// The written value, or the limit.
    pub(crate) expected: u64,
    /// The value found.
    pub(crate) found: u64,
}

/// Keys without room in their chunk. Empty unless more than sixteen keys have nearly equal hashes,
/// which a keyed hash prevents. It exists so that even extreme bad luck costs time and never a key.
type Stash = Vec<(Prefix, Location)>;

/// The top of the directory: 2^depth pointers. A chunk of less depth occupies several adjacent
/// entries.
struct Root {
    depth: u8,
    entries: Box<[ArcCell<Chunk>]>,
}

impl Root {
    #[inline(always)]
    fn index(&self, prefix: Prefix) -> usize {
        // Shifted in two steps, because a shift by 64 bits (depth 0) is not defined.
        (prefix.aligned() >> 1 >> (63 - self.depth)) as usize
    }

    #[inline(always)]
    fn chunk<'g>(&'g self, prefix: Prefix, guard: &'g Guard) -> &'g Chunk {
        self.entries[self.index(prefix)].load(guard)
    }

    fn bytes(&self) -> u64 {
        (size_of::<Self>() + size_of_val(&*self.entries)) as u64
    }
}

/// The directory of one table.
///
/// Functions that change it, and `view`, may be called by one thread at a time. The commit lock of
/// the caller ensures that.
pub(crate) struct Directory {
    root: ArcCell<Root>,
    /// Length of the stash. Readers search the stash only if it is not zero.
    stashed: AtomicUsize,
    stash: ArcCell<Stash>,
    keys: AtomicU64,
    bytes: AtomicU64,
    /// Number of views so far. A chunk born before the newest view may be shared with one.
    view_stamp: AtomicU64,
    /// Each view holds a clone: if there is no other count, there is no view.
    views: Token,
    /// Declared last, so that all chunks are freed before it is dropped.
    _end: End,
}

impl Directory {
    /// Returns an empty directory of a few hundred bytes.
    pub(crate) fn new() -> Self {
        Self::of_chunks(0, vec![Arc::new(Chunk::new(0, 0, 1, 0))], Vec::new())
    }

    /// Returns a directory with `1 << depth` entries. The chunks must cover all hashes in ascending
    /// order, and no chunk may have a larger depth than `depth`.
    fn of_chunks(depth: u8, chunks: Vec<Arc<Chunk>>, stash: Stash) -> Self {
        let keys = chunks.iter().map(|chunk| chunk.keys() as u64).sum::<u64>() + stash.len() as u64;
        let mut bytes = chunks.iter().map(|chunk| chunk.bytes()).sum::<u64>();
        let mut entries = Vec::with_capacity(1 << depth);
        for chunk in chunks {
            entries.extend((0..1_u64 << (depth - chunk.depth())).map(|_| ArcCell::new(chunk.clone())));
        }
        let root = Root {
            depth,
            entries: entries.into_boxed_slice(),
        };
        bytes += size_of::<Self>() as u64 + root.bytes();
        Self {
            root: ArcCell::new(Arc::new(root)),
            stashed: AtomicUsize::new(stash.len()),
            stash: ArcCell::new(Arc::new(stash)),
            keys: AtomicU64::new(keys),
            bytes: AtomicU64::new(bytes),
            view_stamp: AtomicU64::new(0),
            views: Token::new(()),
            _end: End,
        }
    }

    /// Returns the number of keys.
    pub(crate) fn len(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// Returns the memory in bytes, without chunks held only by views.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes in the map of a checkpoint instead of own memory. Visits every chunk.
    pub(crate) fn mapped_bytes(&self, guard: &Guard) -> u64 {
        let mut last = std::ptr::null();
        let chunks = self
            .root
            .load(guard)
            .entries
            .iter()
            .map(|entry| entry.load(guard));
        chunks
            .filter(|chunk| !std::ptr::eq(std::mem::replace(&mut last, *chunk), *chunk))
            .map(Chunk::mapped_bytes)
            .sum()
    }

    /// Makes the chunk of a key writable before the key is changed, so that its checksum is
    /// verified once and not again for the copy. The change itself reports any damage.
    #[inline]
    pub(crate) fn thaw(&self, guard: &Guard, hash: KeyHash) {
        let _ = self.writable(guard, hash.prefix());
    }

    /// Prepares a later `thaw` of this key, in any thread, beside the writer.
    pub(crate) fn prepare(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prepare(self.stamp());
    }

    /// Prefetches the bucket of a key.
    #[inline]
    pub(crate) fn prefetch(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prefetch(prefix);
    }

    /// Prefetches the memory in which an absent key will be stored, if that is not its home bucket.
    #[inline]
    pub(crate) fn prefetch_room(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prefetch_room(prefix);
    }

    /// Returns the possible locations of the record of this key: usually none or one, rarely more.
    ///
    /// # Errors
    /// If the chunk is in a checkpoint and damaged.
    #[inline]
    pub(crate) fn candidates<'g>(
        &'g self,
        guard: &'g Guard,
        hash: KeyHash,
    ) -> Result<Candidates<'g>, Damage> {
        let prefix = hash.prefix();
        let chunk = self.root.load(guard).chunk(prefix, guard);
        chunk.verify()?;
        // Read after the chunk: a key that a rebuild moves from its chunk to the stash is in the
        // stash first.
        let stash = if self.stashed.load(Ordering::Acquire) == 0 {
            &[]
        } else {
            self.stash.load(guard).as_slice()
        };
        Ok(Candidates {
            probe: Probe::new(chunk, prefix),
            prefix,
            stash,
        })
    }

    /// Must be called before `candidates` without a match count as absence, if any map was cut.
    ///
    /// # Errors
    /// If the chunk is in a checkpoint that was truncated.
    #[cold]
    pub(crate) fn check_uncut(&self, guard: &Guard, hash: KeyHash) -> Result<(), Damage> {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).check_uncut()
    }

    /// Returns the location for which `is_same` returns `true`.
    ///
    /// # Errors
    /// Damage of a chunk in a checkpoint, and the errors of `is_same`.
    #[inline]
    pub(crate) fn find<E: From<Damage>>(
        &self,
        guard: &Guard,
        hash: KeyHash,
        mut is_same: impl FnMut(Location) -> Result<bool, E>,
    ) -> Result<Option<Location>, E> {
        for location in self.candidates(guard, hash)? {
            if is_same(location)? {
                return Ok(Some(location));
            }
        }
        Ok(None)
    }

    /// Adds an absent key.
    ///
    /// # Errors
    /// If its chunk is in a checkpoint and damaged. Never after a successful `find` or `candidates`
    /// of this hash.
    pub(crate) fn insert(&self, guard: &Guard, hash: KeyHash, to: Location) -> Result<(), Damage> {
        let prefix = hash.prefix();
        loop {
            let chunk = self.writable(guard, prefix)?;
            if chunk.is_full() && self.grow(guard, chunk) {
                continue;
            }
            if chunk.insert(prefix, to) {
                break;
            }
            if !self.grow(guard, chunk) {
                self.change_stash(guard, |stash| stash.push((prefix, to)));
                break;
            }
        }
        self.keys.store(self.len() + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Points the key from one location to another. Returns `Ok(false)` without a change if the key
    /// is not at `from`.
    ///
    /// # Errors
    /// As `insert`.
    pub(crate) fn relocate(
        &self,
        guard: &Guard,
        hash: KeyHash,
        from: Location,
        to: Location,
    ) -> Result<bool, Damage> {
        let prefix = hash.prefix();
        // Looked up first, so that an outdated relocation copies nothing.
        let chunk = self.chunk(guard, prefix)?;
        let Some(place) = chunk.find(prefix, from) else {
            return Ok(self.stash_position(guard, prefix, from).is_some_and(|position| {
                self.change_stash(guard, |stash| stash[position].1 = to);
                true
            }));
        };
        if self.is_writable(chunk) {
            chunk.relocate(place, to);
            return Ok(true);
        }
        let chunk = self.writable(guard, prefix)?;
        let place = chunk
            .find(prefix, from)
            .expect("a copied chunk has the same keys");
        chunk.relocate(place, to);
        Ok(true)
    }

    /// Removes the key at `from`. Returns `Ok(false)` without a change if it is not there.
    ///
    /// # Errors
    /// As `insert`.
    pub(crate) fn remove(&self, guard: &Guard, hash: KeyHash, from: Location) -> Result<bool, Damage> {
        let prefix = hash.prefix();
        if self.chunk(guard, prefix)?.find(prefix, from).is_some() {
            let chunk = self.writable(guard, prefix)?;
            chunk.remove(
                chunk
                    .find(prefix, from)
                    .expect("a copied chunk has the same keys"),
            );
            self.shrink_if_sparse(guard, chunk);
        } else if let Some(position) = self.stash_position(guard, prefix, from) {
            self.change_stash(guard, |stash| _ = stash.swap_remove(position));
        } else {
            return Ok(false);
        }
        self.keys.store(self.len() - 1, Ordering::Relaxed);
        Ok(true)
    }

    /// Points the key to `to`, present or not. Returns its previous location.
    ///
    /// # Errors
    /// As `find`; nothing has changed then.
    pub(crate) fn upsert<E: From<Damage>>(
        &self,
        guard: &Guard,
        hash: KeyHash,
        to: Location,
        is_same: impl FnMut(Location) -> Result<bool, E>,
    ) -> Result<Option<Location>, E> {
        let from = self.find(guard, hash, is_same)?;
        match from {
            Some(from) => _ = self.relocate(guard, hash, from, to)?,
            None => self.insert(guard, hash, to)?,
        }
        Ok(from)
    }

    /// Returns the directory of this moment, for any length of time.
    pub(crate) fn view(&self, guard: &Guard) -> View {
        self.view_stamp.store(self.stamp() + 1, Ordering::Relaxed);
        let root = self.root.load(guard);
        let mut chunks: Vec<Arc<Chunk>> = Vec::new();
        let mut index = Vec::with_capacity(root.entries.len());
        let mut last = std::ptr::null();
        for entry in &root.entries {
            let chunk: *const Chunk = entry.load(guard);
            if chunk != last {
                last = chunk;
                chunks.push(entry.load_arc(guard));
            }
            index.push(chunks.len() as u32 - 1);
        }
        View::new(
            root.depth,
            index,
            chunks,
            self.stash.load_arc(guard),
            self.len(),
            self.views.clone(),
        )
    }

    fn stamp(&self) -> u64 {
        self.view_stamp.load(Ordering::Relaxed)
    }

    fn chunk<'g>(&'g self, guard: &'g Guard, prefix: Prefix) -> Result<&'g Chunk, Damage> {
        let chunk = self.root.load(guard).chunk(prefix, guard);
        chunk.verify()?;
        Ok(chunk)
    }

    /// Returns the chunk of a prefix, in own memory and not shared with a view.
    fn writable<'g>(&'g self, guard: &'g Guard, prefix: Prefix) -> Result<&'g Chunk, Damage> {
        let chunk = self.root.load(guard).chunk(prefix, guard);
        if self.is_writable(chunk) {
            return Ok(chunk);
        }
        // Verified as it is copied.
        self.replace(guard, chunk, chunk.prepared_or_copied(self.stamp())?);
        Ok(self.root.load(guard).chunk(prefix, guard))
    }

    fn is_writable(&self, chunk: &Chunk) -> bool {
        chunk.is_owned() && !self.is_shared(chunk)
    }

    fn is_shared(&self, chunk: &Chunk) -> bool {
        if chunk.born() >= self.stamp() || seeded("view-not-copied") {
            return false;
        }
        let shared = Token::strong_count(&self.views) > 1;
        // Pairs with the Release of the last view's drop: its reads precede our stores.
        fence(Ordering::Acquire);
        shared
    }

    fn stash_position(&self, guard: &Guard, prefix: Prefix, location: Location) -> Option<usize> {
        self.stash
            .load(guard)
            .iter()
            .position(|stashed| *stashed == (prefix, location))
    }

    fn change_stash(&self, guard: &Guard, change: impl FnOnce(&mut Stash)) {
        let mut stash = self.stash.load(guard).clone();
        change(&mut stash);
        let len = stash.len();
        self.stash.replace(Arc::new(stash), guard);
        self.stashed.store(len, Ordering::Release);
    }
}

/// The last part of a directory to be dropped.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        crate::raw::reclaim::note_freed_directory();
    }
}

/// The locations that may hold a key, found on demand.
pub(crate) struct Candidates<'g> {
    probe: Probe<'g>,
    prefix: Prefix,
    stash: &'g [(Prefix, Location)],
}

impl Iterator for Candidates<'_> {
    type Item = Location;

    #[inline]
    fn next(&mut self) -> Option<Location> {
        self.probe.next().or_else(|| {
            while let Some(((prefix, location), rest)) = self.stash.split_first() {
                self.stash = rest;
                if *prefix == self.prefix {
                    return Some(*location);
                }
            }
            None
        })
    }
}
