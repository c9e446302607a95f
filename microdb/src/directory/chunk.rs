//! A chunk: the buckets of one range of hashes, rebuilt as a whole when it must grow (see
//! `rebuild.rs`).
//!
//! A key has two buckets. Its *home* is the position of its hash in the hash range of the chunk,
//! scaled to the number of buckets. Its *second* is at a distance from the home. The distance
//! depends on the key's *class*: three bits of its hash. In a chunk of one bucket, both are this
//! bucket.
//!
//! A new key is placed in its home, or else in its second, and a key may move to its second to make
//! room for another. A flag in the home marks the class of a key in its second as displaced. So
//! most lookups read one bucket (a cache line), no lookup reads more than two, and chunks fill to
//! nine tenths.
//!
//! **Races**: there are one writer and any number of readers. A reader of a key checks the key's
//! home, then the flag of the key's class in the home. If the flag is set, the reader also checks
//! the key's second.
//!
//! - In a chunk, a key moves only from home to second, never back.
//! - The writer sets the flag of the key's class before the key appears in the second bucket. The
//!   key appears in the second bucket before its old slot is reused.
//! - So a reader that does not find a present key in the home finds the flag set, and then the key
//!   in the second bucket.
//!
//! Deliberately absent: growth, which is in `grow.rs`.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::slot::{Location, PREFIX_BITS, Prefix, Rank, Slot, TAG_BITS, Tag};
use super::{CUT, Damage};
use crate::raw::buckets::{BUCKET_WORDS, BucketRef, Buckets};
use crate::raw::map::Map;

/// Number of keys per 1,024 slots at which a chunk grows. Beyond nine tenths, insertions move more
/// keys to make room, and more lookups need a second cache line.
const FULL_OF_1024: usize = 922;

/// Maximum length of a chain of moves with which an insertion makes room. If no such chain exists,
/// the chunk grows or the key is added to the stash. With three moves, random keys fill 94 % of the
/// slots or more before an insertion fails.
const MOVES_MAX: u32 = 3;

/// Distance from home to second bucket by class, in 1/65,536 of the number of other buckets,
/// without the 1 that [`Chunk::distance`] adds. The differences between the distances grow, so that
/// chains of moves spread over many buckets.
const DISTANCE: [usize; BUCKET_WORDS] = [0, 819, 2_458, 4_915, 8_192, 12_288, 17_203, 22_938];

/// The buckets for all hashes that begin with the `depth` bits of `path`. Fields used by lookups
/// are declared first, so that they share a cache line.
#[repr(C, align(64))]
pub(super) struct Chunk {
    buckets: Buckets,
    /// `true` if the next call of `verify` must check the checksum in `source` and the number of
    /// keys.
    unverified: AtomicBool,
    depth: u8,
    /// Number of extra bytes per slot: 0, 1 or 2. They hold the bits of a prefix that neither the
    /// tag nor the position of the slot determines.
    extra_bytes: u8,
    path: u32,
    keys: AtomicU32,
    /// Value of the directory's `view_stamp` when this chunk was made. Views taken later may share
    /// the chunk.
    born: u64,
    /// The extra bytes of all slots, which lookups never read. Empty for a mapped chunk: its extra
    /// bytes are in the map.
    extras: Box<[AtomicU8]>,
    /// Position of a mapped chunk in its checkpoint. `None` for a chunk in memory of its own.
    source: Option<Source>,
}

/// Position of a mapped chunk in the checkpoint, and the checksum of the chunk.
pub(super) struct Source {
    pub(super) map: Arc<Map>,
    /// Offset of the chunk in the file of the checkpoint.
    pub(super) offset: u64,
    pub(super) crc: u32,
    pub(super) seed: u32,
    /// A copy of the chunk, made for the writer in advance. Unset until a call of
    /// [`Chunk::prepare`] has made a copy.
    pub(super) prepared: OnceLock<Arc<Chunk>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        crate::raw::reclaim::note_freed(self.buckets.owned_bytes());
    }
}

/// Position of a slot: the index of its bucket in the chunk, and its index in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) bucket: usize,
    pub(super) word: usize,
}

/// Returns the number of extra bytes per slot for a chunk with this number of buckets and this
/// depth. Each home bucket has up to ceil(2^(34 - depth) / buckets) different prefixes. The tag and
/// the extra bytes must distinguish all of them.
pub(super) fn extra_bytes(buckets: usize, depth: u8) -> u8 {
    let width = PREFIX_BITS - u32::from(depth);
    (0..2)
        .find(|bytes| 1_u64 << width <= (buckets as u64) << (TAG_BITS + 8 * bytes))
        .unwrap_or(2) as u8
}

impl Chunk {
    /// Returns an empty chunk.
    pub(super) fn new(path: u32, depth: u8, buckets: usize, born: u64) -> Self {
        let extra_bytes = extra_bytes(buckets, depth);
        let extras = (0..buckets * BUCKET_WORDS * usize::from(extra_bytes))
            .map(|_| AtomicU8::new(0))
            .collect();
        Self {
            buckets: Buckets::zeroed(buckets),
            unverified: AtomicBool::new(false),
            depth,
            extra_bytes,
            path,
            keys: AtomicU32::new(0),
            born,
            extras,
            source: None,
        }
    }

    /// Returns a chunk that is read in place from the map of a checkpoint.
    pub(super) fn mapped(path: u32, depth: u8, buckets: Buckets, keys: u32, source: Source) -> Self {
        Self {
            unverified: AtomicBool::new(true),
            depth,
            extra_bytes: extra_bytes(buckets.count(), depth),
            path,
            keys: AtomicU32::new(keys),
            born: 0,
            extras: Box::default(),
            source: Some(source),
            buckets,
        }
    }

    pub(super) fn path(&self) -> u32 {
        self.path
    }

    pub(super) fn depth(&self) -> u8 {
        self.depth
    }

    pub(super) fn born(&self) -> u64 {
        self.born
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.load(Ordering::Relaxed) as usize
    }

    pub(super) fn bucket_count(&self) -> usize {
        self.buckets.count()
    }

    /// Returns the number of bits of a prefix that are not in the path.
    pub(super) fn width(&self) -> u32 {
        PREFIX_BITS - u32::from(self.depth)
    }

    pub(super) fn extra_bytes(&self) -> u8 {
        self.extra_bytes
    }

    pub(super) fn slots(&self) -> usize {
        self.buckets.count() * BUCKET_WORDS
    }

    /// Returns `true` if the buckets are in memory of their own, `false` if they are in a map.
    pub(super) fn is_owned(&self) -> bool {
        self.buckets.is_owned()
    }

    /// Verifies the checksum and the number of keys of a mapped chunk, unless its last verification
    /// succeeded.
    ///
    /// # Errors
    /// If the checksum or the number of keys of a mapped chunk is wrong.
    #[inline(always)]
    pub(super) fn verify(&self) -> Result<(), Damage> {
        if self.unverified.load(Ordering::Relaxed) {
            self.verify_again()
        } else {
            Ok(())
        }
    }

    /// Checks that no page of the checkpoint was missing when it was read, because the file was
    /// truncated or the disk failed to read the page. A missing page reads as zeros.
    ///
    /// # Errors
    /// If a page was missing.
    pub(super) fn check_uncut(&self) -> Result<(), Damage> {
        match &self.source {
            Some(source) if source.map.is_cut() => Err(Damage {
                offset: source.offset,
                field: CUT,
                expected: source.map.len() as u64,
                found: 0,
            }),
            _ => Ok(()),
        }
    }

    /// Verifies a mapped chunk once more if a page of the checkpoint was missing. Called after the
    /// bytes of a verified chunk were copied: a page that is lost between verification and copy
    /// reads as zeros in both from then on.
    ///
    /// # Errors
    /// The error of [`Chunk::check_uncut`], if the chunk is damaged.
    pub(super) fn verify_if_cut(&self) -> Result<(), Damage> {
        self.check_uncut()
            .or_else(|cut| self.verify_again().map_err(|_| cut))
    }

    /// Verifies a mapped chunk even if it was verified before, for instance because its bytes are
    /// about to be copied. After an error, each later call of `verify` verifies the chunk too.
    ///
    /// # Errors
    /// The errors of `verify`.
    #[cold]
    pub(super) fn verify_again(&self) -> Result<(), Damage> {
        if let Some(source) = &self.source {
            self.unverified.store(true, Ordering::Relaxed);
            source.verify(self.buckets.count(), self.depth)?;
            let in_use = |slots: [u64; BUCKET_WORDS]| slots.map(|slot| usize::from(!Slot(slot).is_empty()));
            let found = (0..self.buckets.count())
                .map(|bucket| {
                    in_use(self.buckets.bucket(bucket).load_all())
                        .iter()
                        .sum::<usize>()
                })
                .sum::<usize>();
            if found != self.keys() {
                let (expected, found) = (self.keys() as u64, found as u64);
                return Err(Damage {
                    offset: source.offset,
                    field: "keys of a chunk",
                    expected,
                    found,
                });
            }
            self.unverified.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Returns the memory of the chunk in bytes, including the reference counts of its `Arc`.
    pub(super) fn bytes(&self) -> u64 {
        (align_of::<Self>() + size_of::<Self>() + self.buckets.owned_bytes() + self.extras.len()) as u64
    }

    /// Returns the number of bytes that the chunk reads from the map of a checkpoint.
    pub(super) fn mapped_bytes(&self) -> u64 {
        if self.is_owned() {
            0
        } else {
            (self.slots() * (8 + usize::from(self.extra_bytes))) as u64
        }
    }

    /// Appends the buckets and extra bytes to `out` in the layout of a checkpoint.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        self.buckets.write_to(out);
        self.extra_array().for_each(|byte| out.push(byte));
    }

    fn extra_array(&self) -> impl Iterator<Item = u8> {
        let mapped = self
            .source
            .as_ref()
            .map_or(&[][..], |source| source.extras(self.buckets.count(), self.depth));
        let owned = self.extras.iter().map(|byte| byte.load(Ordering::Relaxed));
        owned.chain(mapped.iter().copied())
    }

    /// Returns `true` if the chunk should grow before another key is added.
    pub(super) fn is_full(&self) -> bool {
        self.keys() * 1_024 >= self.slots() * FULL_OF_1024
    }

    /// Returns the home bucket of a prefix of this chunk.
    #[inline(always)]
    pub(super) fn home(&self, prefix: Prefix) -> usize {
        let within = prefix.aligned() << self.depth;
        ((u128::from(within) * self.buckets.count() as u128) >> 64) as usize
    }

    /// Returns the distance from home to second bucket, in buckets. It is at least 1 and less than
    /// the number of buckets, or 0 if the chunk has only one bucket.
    #[inline]
    fn distance(&self, tag: Tag) -> usize {
        let others = self.buckets.count() - 1;
        others.min(1) + ((DISTANCE[tag.class()] * others) >> 16)
    }

    /// Returns the second bucket of keys with this home and tag.
    #[inline]
    pub(super) fn second(&self, home: usize, tag: Tag) -> usize {
        let bucket = home + self.distance(tag);
        if bucket >= self.buckets.count() {
            bucket - self.buckets.count()
        } else {
            bucket
        }
    }

    #[inline(always)]
    pub(super) fn bucket(&self, bucket: usize) -> BucketRef<'_> {
        self.buckets.bucket(bucket)
    }

    #[inline(always)]
    pub(super) fn prefetch(&self, prefix: Prefix) {
        self.buckets.prefetch(self.home(prefix));
    }

    /// Prefetches the second bucket of a prefix into the processor's cache if its home is full.
    #[inline]
    pub(super) fn prefetch_room(&self, prefix: Prefix) {
        let home = self.home(prefix);
        if self.free_word(home).is_none() {
            self.buckets.prefetch(self.second(home, prefix.tag()));
        }
    }

    // The functions from here to `home_of` are for the writer, except `free_word`. Only one thread
    // at a time calls them, so a relaxed load returns the latest value.

    fn slot(&self, place: Place) -> Slot {
        Slot(self.buckets.bucket(place.bucket).load(place.word))
    }

    /// Stores a slot, or empties it with `Slot(0)`. Keeps the flag in that slot, because the flag
    /// belongs to the bucket and not to the key.
    pub(super) fn store(&self, place: Place, slot: Slot) {
        let flag = self.slot(place).flag();
        self.buckets
            .store(place.bucket, place.word, slot.with_flag(flag).0);
    }

    pub(super) fn set_keys(&self, keys: usize) {
        self.keys.store(keys as u32, Ordering::Relaxed);
    }

    fn set_flag(&self, home: usize, class: usize, flag: bool) {
        let place = Place {
            bucket: home,
            word: class,
        };
        let slot = self.slot(place);
        if slot.flag() != flag {
            self.buckets.store(home, class, slot.with_flag(flag).0);
        }
    }

    pub(super) fn extra(&self, place: Place) -> u64 {
        let bytes = usize::from(self.extra_bytes);
        let first = (place.bucket * BUCKET_WORDS + place.word) * bytes;
        let bytes = &self.extras[first..first + bytes];
        bytes.iter().rev().fold(0, |extra, byte| {
            extra << 8 | u64::from(byte.load(Ordering::Relaxed))
        })
    }

    pub(super) fn store_extra(&self, place: Place, extra: u64) {
        let bytes = usize::from(self.extra_bytes);
        let first = (place.bucket * BUCKET_WORDS + place.word) * bytes;
        for (i, byte) in self.extras[first..first + bytes].iter().enumerate() {
            byte.store((extra >> (8 * i)) as u8, Ordering::Relaxed);
        }
    }

    fn free_word(&self, bucket: usize) -> Option<usize> {
        // All eight slots are tested without a branch. The position of the first free slot is
        // random, and a mispredicted branch costs more than the tests.
        let slots = self.buckets.bucket(bucket).load_all();
        let free = (0..BUCKET_WORDS).fold(0, |bits, word| {
            bits | u32::from(Slot(slots[word]).is_empty()) << word
        });
        (free != 0).then_some(free.trailing_zeros() as usize)
    }

    /// Returns the position of the key with this prefix and `location`. Returns `None` if the key
    /// is absent, has another location, or is in the stash.
    pub(super) fn find(&self, prefix: Prefix, location: Location) -> Option<Place> {
        let (home, tag) = (self.home(prefix), prefix.tag());
        [(home, Rank::Home), (self.second(home, tag), Rank::Second)]
            .into_iter()
            .find_map(|(bucket, rank)| {
                let sought = Slot::new(tag, rank, location);
                let slots = self.buckets.bucket(bucket).load_all();
                let word = slots
                    .iter()
                    .position(|slot| Slot(*slot).with_flag(false) == sought)?;
                Some(Place { bucket, word })
            })
    }

    /// Adds an absent key. Returns `false` without adding the key if there is no room.
    pub(super) fn insert(&self, prefix: Prefix, location: Location) -> bool {
        let (home, tag) = (self.home(prefix), prefix.tag());
        let second = self.second(home, tag);
        let Some((bucket, word)) = self.room(home, second) else {
            return false;
        };
        let place = Place { bucket, word };
        let rank = if bucket == home { Rank::Home } else { Rank::Second };
        if rank == Rank::Second {
            self.set_flag(home, tag.class(), true);
        }
        self.store_extra(place, prefix.extra());
        self.store(place, Slot::new(tag, rank, location));
        self.keys
            .store(self.keys.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        true
    }

    /// Returns a free slot (bucket, and index in the bucket) in the home or the second bucket,
    /// after moving other keys if necessary. Returns `None` if no chain of at most [`MOVES_MAX`]
    /// moves makes room.
    fn room(&self, home: usize, second: usize) -> Option<(usize, usize)> {
        (0..=MOVES_MAX).find_map(|moves| {
            let free = |bucket| self.vacate(bucket, moves).map(|word| (bucket, word));
            free(home).or_else(|| free(second))
        })
    }

    /// Finds or makes a free slot in `bucket`, by a chain of at most `moves` moves of keys from
    /// their home to their second bucket. Returns the index of the slot in the bucket, or `None` if
    /// there is no such chain.
    pub(super) fn vacate(&self, bucket: usize, moves: u32) -> Option<usize> {
        if let Some(word) = self.free_word(bucket) {
            return Some(word);
        }
        if moves == 0 {
            return None;
        }
        (0..BUCKET_WORDS).find(|word| {
            let from = Place { bucket, word: *word };
            let slot = self.slot(from);
            if slot.rank() == Rank::Second {
                return false;
            }
            let second = self.second(bucket, slot.tag());
            if second == bucket {
                return false;
            }
            let Some(free) = self.vacate(second, moves - 1) else {
                return false;
            };
            // The chain of moves may have returned to this bucket and changed this slot. Then
            // another slot is tried.
            if self.slot(from).with_flag(false) != slot.with_flag(false) {
                return false;
            }
            self.move_on(
                from,
                Place {
                    bucket: second,
                    word: free,
                },
            );
            true
        })
    }

    /// Moves a key from its home to a free slot of its second bucket. Readers rely on the order of
    /// the stores: the flag, the new slot, the old slot. Between the last two stores, the key is in
    /// both slots, which have the same location.
    fn move_on(&self, from: Place, to: Place) {
        let slot = self.slot(from);
        let location = slot.location().expect("only full buckets are vacated");
        self.set_flag(from.bucket, slot.tag().class(), true);
        self.store_extra(to, self.extra(from));
        self.store(to, Slot::new(slot.tag(), Rank::Second, location));
        self.store(from, Slot(0));
    }

    /// Changes the location of the key in slot `place` to `to`.
    pub(super) fn relocate(&self, place: Place, to: Location) {
        self.store(place, self.slot(place).with_location(to));
    }

    /// Removes the key in slot `place`. If the key was displaced and no other key needs the flag of
    /// its class, clears the flag, so that lookups stay short after many changes.
    pub(super) fn remove(&self, place: Place) {
        let slot = self.slot(place);
        self.store(place, Slot(0));
        self.keys
            .store(self.keys.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        if slot.rank() == Rank::Second {
            let class = slot.tag().class();
            let needed = self.buckets.bucket(place.bucket).load_all().iter().any(|other| {
                let other = Slot(*other);
                !other.is_empty() && other.rank() == Rank::Second && other.tag().class() == class
            });
            // All displaced keys of one home and one class are in one bucket, because their
            // distance is the same. So if this bucket has no other displaced key of the class, no
            // key needs the flag.
            if !needed {
                self.set_flag(self.home_of(place.bucket, slot), class, false);
            }
        }
    }

    /// Returns the home bucket of the key that `slot`, in `bucket`, holds.
    pub(super) fn home_of(&self, bucket: usize, slot: Slot) -> usize {
        match slot.rank() {
            Rank::Home => bucket,
            Rank::Second => {
                let distance = self.distance(slot.tag());
                if bucket >= distance {
                    bucket - distance
                } else {
                    bucket + self.buckets.count() - distance
                }
            }
        }
    }

    /// Returns the locations in one bucket.
    pub(super) fn locations(&self, bucket: usize) -> impl Iterator<Item = Location> + use<> {
        self.buckets
            .bucket(bucket)
            .load_all()
            .into_iter()
            .filter_map(|slot| Slot(slot).location())
    }

    /// Returns the number of set flags.
    #[cfg(test)]
    pub(super) fn flags(&self) -> usize {
        self.all_slots().filter(|slot| slot.flag()).count()
    }

    /// Returns the number of keys in their second bucket.
    #[cfg(test)]
    pub(super) fn displaced(&self) -> usize {
        self.all_slots()
            .filter(|slot| !slot.is_empty() && slot.rank() == Rank::Second)
            .count()
    }

    #[cfg(test)]
    fn all_slots(&self) -> impl Iterator<Item = Slot> {
        (0..self.buckets.count())
            .flat_map(|bucket| self.buckets.bucket(bucket).load_all())
            .map(Slot)
    }

    /// Copies a mapped chunk in advance for the writer, which needs a copy to change it. Does
    /// nothing if an earlier copy can be used. If a view was taken since that copy, only verifies
    /// the chunk. Any thread may call this function while the writer works, since a chunk in a
    /// checkpoint never changes.
    ///
    /// # Errors
    /// The errors of [`Chunk::copied`]. After a success, [`Chunk::prepared_or_copied`] fails only
    /// if a view was taken and the chunk was damaged since.
    pub(super) fn prepare(&self, born: u64) -> Result<(), Damage> {
        let Some(source) = &self.source else {
            return Ok(());
        };
        match source.prepared.get() {
            Some(copy) if copy.born() >= born => Ok(()),
            // A view was taken since the copy was made, so the writer will copy the chunk again.
            // Damage is reported already now.
            Some(_) => self.verify_again(),
            None => {
                let copy = self.copied(born)?;
                // The copy is dropped if another thread has already set one.
                let _ = source.prepared.set(Arc::new(copy));
                Ok(())
            }
        }
    }

    /// Returns the prepared copy of the chunk, or a new copy. No view taken up to the view stamp
    /// `born` shares the returned copy, so the writer may change it.
    ///
    /// # Errors
    /// The errors of [`Chunk::copied`].
    pub(super) fn prepared_or_copied(&self, born: u64) -> Result<Arc<Self>, Damage> {
        let prepared = self.source.as_ref().and_then(|source| source.prepared.get());
        match prepared.filter(|copy| copy.born() >= born) {
            Some(copy) => Ok(copy.clone()),
            None => self.copied(born).map(Arc::new),
        }
    }

    /// Returns a copy of the chunk in memory of its own.
    ///
    /// # Errors
    /// If the chunk is in a checkpoint and damaged there.
    pub(super) fn copied(&self, born: u64) -> Result<Self, Damage> {
        self.verify_again()?;
        let copy = Self {
            buckets: self.buckets.copied(),
            unverified: AtomicBool::new(false),
            depth: self.depth,
            extra_bytes: self.extra_bytes,
            path: self.path,
            keys: AtomicU32::new(self.keys.load(Ordering::Relaxed)),
            born,
            extras: self.extra_array().map(AtomicU8::new).collect(),
            source: None,
        };
        self.verify_if_cut()?;
        Ok(copy)
    }
}
