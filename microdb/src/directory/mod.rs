//! The hash directory of one table: maps the hash of a key to the location of its newest record, in
//! about ten bytes per key.
//!
//! ```text
//! hash --top bits--> root --> chunk --scaled--> bucket --tag--> location
//!                                               (a cache line of eight slots)
//! ```
//!
//! The top bits of a hash select a chunk. The bits behind them, scaled to the number of buckets,
//! select a bucket. The tag, bits of the hash that each slot stores, selects slots. The directory
//! stores no keys. It returns *candidates*, and the caller compares the searched key with the keys
//! in their records. Wrong candidates are rare (see [`slot`]). The location of a present key is
//! never missing.
//!
//! - A key is in one of two buckets: its *home bucket* or its *second bucket* (see [`chunk`]). A
//!   key that finds no room in them is in the *stash*.
//! - There is one writer at a time, which holds the commit lock. Any number of readers take no lock
//!   and never wait. Each reader holds an epoch pin or a view, so memory that it reads is not
//!   freed.
//! - Growth rebuilds one chunk, usually of at most 64 KiB (see [`grow`]), and swaps the pointers to
//!   it. So no operation waits for a rebuild of the whole directory.
//! - A [`View`] keeps the directory of one moment for any length of time. A view shares its chunks
//!   with the directory, and the writer copies a shared chunk before changing it.
//! - One atomic store changes the location of a key, so readers see the old or the new location.
//!   Consistency of several keys is the caller's task.
//!
//! Deliberately absent: hashing of keys, access to records, locks.

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
    /// Offset of the damaged structure (a chunk, or the chunk table of the image) in the file of
    /// the checkpoint.
    pub(crate) offset: u64,
    /// Name of the damaged field.
    pub(crate) field: &'static str,
    /// The expected value, or the limit for the value. For a stash entry: its prefix.
    pub(crate) expected: u64,
    /// The value found. For a stash entry: its location. For a missing page ([`CUT`]): 0, because
    /// the map does not know the present length of the file.
    pub(crate) found: u64,
}

/// The damaged field of a mapped file with a missing page: the file was truncated while in use, or
/// the disk failed to read the page.
pub(crate) const CUT: &str = "length of the file, which was truncated while in use";
/// The field in an error for a page that the system could not read, although the file has its
/// length.
pub(crate) const UNREAD: &str = "page of the file, which the system could not read";

/// Keys that found no room in their chunk. A key gets there only if many keys have nearly equal
/// hashes, which is very unlikely with a secret hash seed. A lookup also searches a stash that is
/// not empty, so no key is lost, but lookups become slower.
type Stash = Vec<(Prefix, Location)>;

/// The top of the directory: 2^depth pointers to chunks. If the depth of a chunk is smaller than
/// that of the root, several adjacent entries point to this chunk.
struct Root {
    depth: u8,
    entries: Box<[ArcCell<Chunk>]>,
}

impl Root {
    #[inline(always)]
    fn index(&self, prefix: Prefix) -> usize {
        // The shift is split in two, because a shift by 64 bits (depth 0) would overflow.
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
/// Only one thread at a time may call `view` and the functions that change the directory. The
/// commit lock ensures this once the database is open.
pub(crate) struct Directory {
    root: ArcCell<Root>,
    /// Length of the stash. Readers search the stash only if it is not zero.
    stashed: AtomicUsize,
    stash: ArcCell<Stash>,
    keys: AtomicU64,
    bytes: AtomicU64,
    /// Number of views taken so far. A chunk made before the newest view was taken may be shared
    /// with a view.
    view_stamp: AtomicU64,
    /// Each view holds a clone of this token. If the token has no clone, no view exists.
    views: Token,
    /// Reports, when dropped, that the memory of a directory was freed. Declared last, so that the
    /// report follows the drop of all chunks. Chunks shared with a view are freed with the view.
    _end: End,
}

impl Directory {
    /// Returns an empty directory of a few hundred bytes.
    pub(crate) fn new() -> Self {
        Self::of_chunks(0, vec![Arc::new(Chunk::new(0, 0, 1, 0))], Vec::new())
    }

    /// Returns a directory with `1 << depth` root entries. The chunks must cover all hashes in
    /// ascending order, and no chunk may have a larger depth than `depth`.
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

    /// Returns the number of keys, including those in the stash.
    pub(crate) fn len(&self) -> u64 {
        self.keys.load(Ordering::Relaxed)
    }

    /// Returns the memory of the directory with its root and chunks in bytes. Mapped bytes, the
    /// stash, copies that are prepared and not used yet, and chunks held only by views are not
    /// counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that the directory reads from the map of a checkpoint, not from
    /// memory of its own. Visits every chunk.
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

    /// Makes the chunk of a key writable before the key is looked up and changed. Copies the chunk
    /// if it is in a checkpoint or shared with a view. Copying verifies a chunk of a checkpoint.
    /// Without this call, the look-up would verify the chunk first, and the copy would verify it
    /// again. Damage is ignored here, because the look-up reports it.
    #[inline]
    pub(crate) fn thaw(&self, guard: &Guard, hash: KeyHash) {
        let _ = self.writable(guard, hash.prefix());
    }

    /// Copies the chunk of a key in advance, for a later change of the key, if the chunk is in a
    /// checkpoint (see [`Chunk::prepare`]). Any thread may call this function while the writer
    /// works.
    ///
    /// # Errors
    /// If the chunk is in a checkpoint and damaged.
    #[inline]
    pub(crate) fn prepare(&self, guard: &Guard, hash: KeyHash) -> Result<(), Damage> {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prepare(self.stamp())
    }

    /// Prefetches the home bucket of a key into the processor's cache.
    #[inline]
    pub(crate) fn prefetch(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prefetch(prefix);
    }

    /// Prefetches into the processor's cache the second bucket of an absent key if its home bucket
    /// is full, because the key will probably be stored there.
    #[inline]
    pub(crate) fn prefetch_room(&self, guard: &Guard, hash: KeyHash) {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).prefetch_room(prefix);
    }

    /// Returns the possible locations of the record of this key: usually none or one, rarely more.
    ///
    /// # Errors
    /// If the chunk of the key is in a checkpoint and damaged.
    #[inline]
    pub(crate) fn candidates<'g>(
        &'g self,
        guard: &'g Guard,
        hash: KeyHash,
    ) -> Result<Candidates<'g>, Damage> {
        let prefix = hash.prefix();
        let chunk = self.root.load(guard).chunk(prefix, guard);
        chunk.verify()?;
        // The stash is read after the chunk. A rebuild that moves a key from its chunk to the stash
        // adds the key to the stash before it replaces the chunk. So a reader that got the new
        // chunk finds the key in the stash.
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

    /// Checks that no page of the checkpoint of a key's chunk was missing when it was read, because
    /// the file was truncated or the disk failed to read the page. If any mapped file was cut (see
    /// [`any_cut`](crate::raw::sigbus::any_cut)), call this function before reporting a key as
    /// absent: a missing page reads as zeros, like empty slots.
    ///
    /// # Errors
    /// If the chunk of the key is in a checkpoint with a missing page.
    #[cold]
    pub(crate) fn check_uncut(&self, guard: &Guard, hash: KeyHash) -> Result<(), Damage> {
        let prefix = hash.prefix();
        self.root.load(guard).chunk(prefix, guard).check_uncut()
    }

    /// Returns the first candidate for which `is_same` returns `true`, or `None`.
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
    /// If its chunk is in a checkpoint and damaged. After a successful `find` or `candidates` of
    /// this hash, the chunk has been verified at least once. Then the error occurs only for damage
    /// that arose later.
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

    /// Changes the location of a key from `from` to `to`. Returns `Ok(false)` without a change if
    /// the key is not at `from`.
    ///
    /// # Errors
    /// The errors of `insert`.
    pub(crate) fn relocate(
        &self,
        guard: &Guard,
        hash: KeyHash,
        from: Location,
        to: Location,
    ) -> Result<bool, Damage> {
        let prefix = hash.prefix();
        // The key is looked up before the chunk is copied, so that nothing is copied for a key that
        // is no longer at `from`.
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

    /// Removes the key at `from`. Returns `Ok(false)` without a change if the key is not at `from`.
    ///
    /// # Errors
    /// The errors of `insert`.
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

    /// Sets the location of a key to `to`, and adds the key if it is absent. Returns the previous
    /// location of the key, or `None` if it was absent.
    ///
    /// # Errors
    /// The errors of `find`. After an error, nothing has changed.
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

    /// Returns a view of the directory at this moment. The view may be kept for any length of time.
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

    /// Returns the chunk of a prefix for writing. First replaces the chunk by a copy if it is in a
    /// checkpoint or may be shared with a view.
    fn writable<'g>(&'g self, guard: &'g Guard, prefix: Prefix) -> Result<&'g Chunk, Damage> {
        let chunk = self.root.load(guard).chunk(prefix, guard);
        if self.is_writable(chunk) {
            return Ok(chunk);
        }
        // This function calls no `verify`, because each copy was verified when it was made.
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
        // Pairs with the release ordering of the decrement that drops the last view's token. So the
        // reads of that view happen before the stores of this writer.
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
        guard.flush();
        self.stashed.store(len, Ordering::Release);
    }
}

/// The part of a directory that is dropped last. Its drop reports to `raw::reclaim` that the memory
/// of a directory was freed.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        crate::raw::reclaim::note_freed_directory();
    }
}

/// Iterator over the locations at which the record of a key may be. The key's second bucket is read
/// only if the caller asks for more candidates than the home bucket has, and the flag of the key's
/// class is set.
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
