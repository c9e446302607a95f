//! A chunk: the buckets of one range of hashes, rebuilt as a whole when it must grow (see
//! `rebuild.rs`).
//!
//! A key has two buckets. Its *home* is its position in the range of the chunk, scaled to the
//! number of buckets. Its *second* is at a distance given by its class. A key is in its home if
//! that had room. Otherwise a flag in the home marks the class as displaced. So nearly every lookup
//! reads one cache line, none reads more than two, and chunks fill to nine tenths.
//!
//! **Races**: one writer, any number of readers. Readers check the home, then its flag, then the
//! second bucket.
//!
//! - In a chunk, a key moves only from home to second, never back.
//! - Its flag is set before the key appears in the second bucket, and the key appears there before
//!   its old slot is reused.
//! - So a reader who misses the key in the home finds its flag, and then the key.
//!
//! Deliberately absent: growth, which is in `grow.rs`.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::Damage;
use super::slot::{Location, PREFIX_BITS, Prefix, Rank, Slot, TAG_BITS, Tag};
use crate::raw::buckets::{BUCKET_WORDS, BucketRef, Buckets};
use crate::raw::map::Map;

/// Number of keys per 1,024 slots at which a chunk grows. Beyond nine tenths, room is found ever
/// more slowly and more lookups need a second cache line.
const FULL_OF_1024: usize = 922;

/// Maximum number of moves in a row of an insertion before it asks for growth. With three, random
/// keys fill a chunk to 0.94 or more before one fails.
const MOVES_MAX: u32 = 3;

/// Distance from home to second bucket by class, in 1/65,536 of the chunk. The gaps grow, so that
/// chains of moves reach far and the load spreads.
const DISTANCE: [usize; BUCKET_WORDS] = [0, 819, 2_458, 4_915, 8_192, 12_288, 17_203, 22_938];

/// The buckets of the hashes that begin with `path` (its `depth` bits). Fields used by lookups come
/// first, in one cache line.
#[repr(C, align(64))]
pub(super) struct Chunk {
    buckets: Buckets,
    /// `true` while the checksum of `source` is still to be verified.
    unverified: AtomicBool,
    depth: u8,
    /// Extra bytes per slot: 0, 1 or 2.
    extra_bytes: u8,
    path: u32,
    keys: AtomicU32,
    /// View stamp of the directory when this chunk was made. Views taken since may share the chunk.
    born: u64,
    /// `extra_bytes` for each slot, used only by the writer. Empty if mapped, because a chunk is
    /// copied before it is changed.
    extras: Box<[AtomicU8]>,
    /// Origin of a mapped chunk.
    source: Option<Source>,
}

/// Position of a mapped chunk in a checkpoint, and its checksum.
pub(super) struct Source {
    pub(super) map: Arc<Map>,
    /// Offset in the file.
    pub(super) offset: u64,
    pub(super) crc: u32,
    pub(super) seed: u32,
    /// A copy of the chunk that another thread made for the writer; see [`Chunk::prepare`].
    pub(super) prepared: OnceLock<Arc<Chunk>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        crate::raw::reclaim::note_freed(self.buckets.owned_bytes());
    }
}

/// Position of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) bucket: usize,
    pub(super) word: usize,
}

/// Returns the extra bytes per slot for a chunk of `buckets` at `depth`. The interval of a home has
/// ceil(2^(34 - depth) / buckets) prefixes. Tag and extras must distinguish all of them.
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

    /// Returns a chunk in place in a checkpoint.
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

    /// Returns `true` if the chunk can be changed in place.
    pub(super) fn is_owned(&self) -> bool {
        self.buckets.is_owned()
    }

    /// Verifies that the chunk is as it was written.
    ///
    /// # Errors
    /// If it is in a checkpoint and its checksum or its number of keys is wrong.
    #[inline(always)]
    pub(super) fn verify(&self) -> Result<(), Damage> {
        if self.unverified.load(Ordering::Relaxed) {
            self.verify_again()
        } else {
            Ok(())
        }
    }

    /// Checks that the bytes just read were not in truncated pages of the file.
    ///
    /// # Errors
    /// If the checkpoint was truncated.
    pub(super) fn check_uncut(&self) -> Result<(), Damage> {
        match &self.source {
            Some(source) if source.map.is_cut() => Err(Damage {
                offset: source.offset,
                field: "length of the file, which was truncated while in use",
                expected: source.map.len() as u64,
                found: 0,
            }),
            _ => Ok(()),
        }
    }

    /// Like `verify`, even if done before, for bytes that are about to be copied.
    ///
    /// # Errors
    /// As `verify`.
    #[cold]
    pub(super) fn verify_again(&self) -> Result<(), Damage> {
        if let Some(source) = &self.source {
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

    /// Returns the memory in bytes, including the counts of the `Arc`.
    pub(super) fn bytes(&self) -> u64 {
        (align_of::<Self>() + size_of::<Self>() + self.buckets.owned_bytes() + self.extras.len()) as u64
    }

    /// Returns the bytes used in place in the map of a checkpoint.
    pub(super) fn mapped_bytes(&self) -> u64 {
        if self.is_owned() {
            0
        } else {
            (self.slots() * (8 + usize::from(self.extra_bytes))) as u64
        }
    }

    /// Appends buckets and extras in the layout of a checkpoint.
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

    /// Returns `true` if the chunk should grow before it takes another key.
    pub(super) fn is_full(&self) -> bool {
        self.keys() * 1_024 >= self.slots() * FULL_OF_1024
    }

    /// Returns the home bucket of a prefix of this chunk.
    #[inline(always)]
    pub(super) fn home(&self, prefix: Prefix) -> usize {
        let within = prefix.aligned() << self.depth;
        ((u128::from(within) * self.buckets.count() as u128) >> 64) as usize
    }

    /// Returns the distance from home to second bucket: 1 to count - 1, or 0 if there is only one
    /// bucket.
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

    /// Prefetches the second bucket of a prefix if its home is full.
    #[inline]
    pub(super) fn prefetch_room(&self, prefix: Prefix) {
        let home = self.home(prefix);
        if self.free_word(home).is_none() {
            self.buckets.prefetch(self.second(home, prefix.tag()));
        }
    }

    // Functions of the writer follow. Only one thread at a time calls them, so it sees its own
    // stores.

    fn slot(&self, place: Place) -> Slot {
        Slot(self.buckets.bucket(place.bucket).load(place.word))
    }

    /// Stores the slot of a key and keeps the flag of the slot, which belongs to the bucket.
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
        // All eight without a branch: the position of the first free slot is random, and a
        // mispredicted branch costs more.
        let slots = self.buckets.bucket(bucket).load_all();
        let free = (0..BUCKET_WORDS).fold(0, |bits, word| {
            bits | u32::from(Slot(slots[word]).is_empty()) << word
        });
        (free != 0).then_some(free.trailing_zeros() as usize)
    }

    /// Returns the position of the key with this prefix and `location`.
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

    /// Adds an absent key. Returns `false` without a change if there is no room.
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

    /// Returns a free word in the home or else in the second bucket, after moving other keys if
    /// necessary.
    fn room(&self, home: usize, second: usize) -> Option<(usize, usize)> {
        (0..=MOVES_MAX).find_map(|moves| {
            let free = |bucket| self.vacate(bucket, moves).map(|word| (bucket, word));
            free(home).or_else(|| free(second))
        })
    }

    /// Frees a word in `bucket` by at most `moves` moves of keys from home to second.
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
            // The chain may have returned to this bucket and changed this slot.
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

    /// Moves a key from its home to a free slot of its second bucket, in the order on which readers
    /// rely. Leaves `from` to be overwritten. Until then the key is in both places, which readers
    /// treat as one.
    fn move_on(&self, from: Place, to: Place) {
        let slot = self.slot(from);
        let location = slot.location().expect("only full buckets are vacated");
        self.set_flag(from.bucket, slot.tag().class(), true);
        self.store_extra(to, self.extra(from));
        self.store(to, Slot::new(slot.tag(), Rank::Second, location));
        self.store(from, Slot(0));
    }

    /// Points the key at `place` to `to`.
    pub(super) fn relocate(&self, place: Place, to: Location) {
        self.store(place, self.slot(place).with_location(to));
    }

    /// Removes the key at `place`, and its flag with the last key that needed it, so that lookups
    /// stay short after many changes.
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
            // Keys of one class in one second bucket all have the same home.
            if !needed {
                self.set_flag(self.home_of(place.bucket, slot), class, false);
            }
        }
    }

    /// Returns the home of a key in `bucket`.
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

    /// Makes the copy that the writer will need to change this chunk. Any thread may do so while
    /// the writer works on other chunks, since a chunk in a checkpoint never changes. The writer
    /// finds any damage again.
    pub(super) fn prepare(&self, born: u64) {
        if let Some(source) = &self.source
            && source.prepared.get().is_none()
            && let Ok(copy) = self.copied(born)
        {
            // The writer or a third thread may have been faster.
            let _ = source.prepared.set(Arc::new(copy));
        }
    }

    /// Returns a copy that may be changed as long as there are no views newer than `born`.
    ///
    /// # Errors
    /// As [`Chunk::copied`].
    pub(super) fn prepared_or_copied(&self, born: u64) -> Result<Arc<Self>, Damage> {
        let prepared = self.source.as_ref().and_then(|source| source.prepared.get());
        match prepared.filter(|copy| copy.born() >= born) {
            Some(copy) => Ok(copy.clone()),
            None => self.copied(born).map(Arc::new),
        }
    }

    /// Returns a chunk with the same keys in own memory.
    ///
    /// # Errors
    /// If the chunk is in a checkpoint and damaged there.
    pub(super) fn copied(&self, born: u64) -> Result<Self, Damage> {
        self.verify_again()?;
        Ok(Self {
            buckets: self.buckets.copied(),
            unverified: AtomicBool::new(false),
            depth: self.depth,
            extra_bytes: self.extra_bytes,
            path: self.path,
            keys: AtomicU32::new(self.keys.load(Ordering::Relaxed)),
            born,
            extras: self.extra_array().map(AtomicU8::new).collect(),
            source: None,
        })
    }
}
