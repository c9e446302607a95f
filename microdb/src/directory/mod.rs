//! The hash directory of one table: from a key's hash to where its newest record lies, in about ten
//! bytes a key.
//!
//! ```text
//! hash --top bits--> root --> chunk --scaled--> bucket (a cache line of eight slots) --tag--> location
//! ```
//!
//! The directory knows no keys: it answers *candidates*, and whoever reads the record compares. A
//! wrong candidate is rare ([`slot`]), a missing one impossible.
//!
//! - One writer at a time (the caller holds the commit lock), any number of readers, which take no
//!   lock and wait for nothing: a pin keeps what they walk on alive.
//! - Growth rebuilds one chunk of at most 64 KiB ([`chunk`], [`grow`]) and swaps a pointer; the
//!   directory as a whole never stands still.
//! - A [`View`] is the directory of one moment, for as long as wanted: chunks are shared, and
//!   copied by the writer when it first changes one after.
//! - A key is one slot, changed by one store, so readers see its old location or its new one. What
//!   several keys do together is the caller's to arrange.
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

/// Damage in a checkpoint's image of the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    /// Where the damaged structure (a chunk or the table) begins in the checkpoint's file.
    pub(crate) offset: u64,
    /// What of it is not as it should be.
    pub(crate) field: &'static str,
    /// The value that was written, or the limit.
    pub(crate) expected: u64,
    /// The value that was found.
    pub(crate) found: u64,
}

/// Keys that found no room in their chunk. Empty unless more than sixteen keys have nearly equal
/// hashes, which a keyed hash does not let happen: it is here so that the worst luck costs time and
/// never a key.
type Stash = Vec<(Prefix, Location)>;

/// The top of the directory: 2^depth pointers; a chunk of less depth stands in several, side by
/// side.
struct Root {
    depth: u8,
    entries: Box<[ArcCell<Chunk>]>,
}

impl Root {
    #[inline(always)]
    fn index(&self, prefix: Prefix) -> usize {
        // In two steps, because a shift by all 64 bits (depth 0) would not do.
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
/// Functions that change it may be called by one thread at a time, as `view`: the caller's commit
/// lock sees to that.
pub(crate) struct Directory {
    root: ArcCell<Root>,
    /// Length of the stash; readers look into it only if it is not zero.
    stashed: AtomicUsize,
    stash: ArcCell<Stash>,
    keys: AtomicU64,
    bytes: AtomicU64,
    /// Counts views. A chunk born before the newest view may be shared with one.
    view_stamp: AtomicU64,
    /// Each view holds a clone: no other count than ours, no view.
    views: Token,
    /// Last, so that all chunks are freed before it is dropped.
    _end: End,
}

impl Directory {
    /// An empty directory, of a few hundred bytes.
    pub(crate) fn new() -> Self {
        Self::of_chunks(0, vec![Arc::new(Chunk::new(0, 0, 1, 0))], Vec::new())
    }

    /// A directory of these chunks, which cover all hashes in order, none deeper than `depth`.
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

    /// Number of keys.
    pub(crate) fn len(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// Bytes of memory, chunks that only views still hold aside.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that lie in a checkpoint's map and not in memory of its own. Looks at every chunk.
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

    /// Makes the chunk of a key that will be changed soon one that can be, so that its checksum is
    /// looked at once and not once more for the copy. If it is damaged, whoever makes the change is
    /// told.
    #[inline]
    pub(crate) fn thaw(&self, guard: &Guard, hash: KeyHash) {
        let _ = self.writable(guard, hash.prefix());
    }

    /// Makes what `thaw` of this key will need, in any thread, while the writer goes on.
    pub(crate) fn prepare(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prepare(self.stamp());
    }

    /// Asks for the bucket of a key that will be sought soon.
    #[inline]
    pub(crate) fn prefetch(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prefetch(prefix);
    }

    /// Asks for the memory in which a key that is not there will find room, if that is not the
    /// bucket that every look begins with.
    #[inline]
    pub(crate) fn prefetch_room(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prefetch_room(prefix);
    }

    /// Where a record of this key may lie: usually nowhere or at one place, rarely at more.
    ///
    /// # Errors
    /// If the chunk lies in a checkpoint and is damaged.
    #[inline]
    pub(crate) fn candidates<'g>(
        &'g self,
        guard: &'g Guard,
        hash: KeyHash,
    ) -> Result<Candidates<'g>, Damage> {
        let prefix = hash.prefix();
        let chunk = self.root.load(guard).chunk(prefix, guard);
        chunk.verify()?;
        // After the chunk: a key that a rebuild puts from its chunk into the stash is in the stash
        // first.
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

    /// To be asked before `candidates` without a match are taken for absence, if any map was cut.
    ///
    /// # Errors
    /// If the chunk lies in a checkpoint that was cut short.
    #[cold]
    pub(crate) fn check_uncut(&self, guard: &Guard, hash: KeyHash) -> Result<(), Damage> {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).check_uncut()
    }

    /// Where the record lies of which `is_same` says that it has the key.
    ///
    /// # Errors
    /// Damage in a checkpoint's chunk, and what `is_same` answers.
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

    /// Adds a key that is not there.
    ///
    /// # Errors
    /// If its chunk lies in a checkpoint and is damaged: never after `find` or `candidates` of this
    /// hash succeeded.
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

    /// Points the key from one location to another; `Ok(false)` and nothing done if it is not at
    /// `from` (any more).
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
        // Looked for first, so that a relocation that comes too late copies nothing.
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

    /// Removes the key that is at `from`; `Ok(false)` and nothing done if it is not there (any
    /// more).
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

    /// Points the key to `to`, wherever it was or was not; answers where it was.
    ///
    /// # Errors
    /// As `find`; nothing is done then.
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

    /// The directory of this moment, to be kept as long as wanted.
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

    /// The chunk of a prefix, in memory of its own and shared with no view.
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
        if chunk.born() >= self.stamp() {
            return false;
        }
        let shared = Token::strong_count(&self.views) > 1;
        // Pairs with the Release of the last view's drop: its reads come before our stores.
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

/// The last part of a directory that is dropped.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        crate::raw::reclaim::note_freed_directory();
    }
}

/// The locations that may hold a key, found as they are asked for.
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
