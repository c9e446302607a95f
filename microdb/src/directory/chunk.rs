//! A chunk: the buckets of one range of hashes, rebuilt as a whole when it must grow (see
//! `rebuild.rs`).
//!
//! A key has two buckets. Its *home* is its place in the chunk's range, scaled to the number of
//! buckets; its *second* lies at a distance that its class gives. It lies in the home if that had
//! room, and a flag in the home says which classes went on. So nearly every lookup reads one cache
//! line, none more than two, and chunks fill to nine tenths.
//!
//! **Races**: one writer, any readers. Readers look at the home, then its flag, then the second
//! bucket. A key only ever moves from home to second (never back within one chunk), its flag is set
//! before it appears there, and its copy there before its old slot is reused. So a reader who
//! misses it in the home finds its flag, and then the copy.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::Damage;
use super::slot::{Location, PREFIX_BITS, Prefix, Rank, Slot, TAG_BITS, Tag};
use crate::raw::buckets::{BUCKET_WORDS, BucketRef, Buckets};
use crate::raw::map::Map;

/// Keys that a chunk takes before it grows, of 1,024 slots: beyond nine tenths, room is found ever
/// more slowly and more lookups need their second line.
const FULL_OF_1024: usize = 922;

/// Moves in a row that an insertion tries before it asks for growth. With three, random keys fill a
/// chunk to 0.94 or more before one fails.
const MOVES_MAX: u32 = 3;

/// Distance from home to second bucket by class, in 1/65,536 of the chunk. Growing gaps: chains of
/// moves then reach far, and fullness spreads.
const DISTANCE: [usize; BUCKET_WORDS] = [0, 819, 2_458, 4_915, 8_192, 12_288, 17_203, 22_938];

/// The buckets of the hashes that begin with `path` (its `depth` bits). What lookups need comes
/// first, in one cache line.
#[repr(C, align(64))]
pub(super) struct Chunk {
    buckets: Buckets,
    /// Whether the checksum of `source` is still to be verified.
    unverified: AtomicBool,
    depth: u8,
    /// Extra bytes a slot: 0, 1 or 2.
    extra_bytes: u8,
    path: u32,
    keys: AtomicU32,
    /// The directory's view stamp when this chunk was made: views taken since may share it.
    born: u64,
    /// `extra_bytes` for each slot. Only the writer reads or writes them. Empty if mapped: a chunk
    /// is copied before it is changed.
    extras: Box<[AtomicU8]>,
    /// Where a mapped chunk comes from.
    source: Option<Source>,
}

/// Where in a checkpoint a mapped chunk lies, and the checksum that vouches for it.
pub(super) struct Source {
    pub(super) map: Arc<Map>,
    /// Offset in the file.
    pub(super) offset: u64,
    pub(super) crc: u32,
    pub(super) seed: u32,
    /// A copy of the chunk that another thread has made for the writer to put in its place; see
    /// [`Chunk::prepare`].
    pub(super) prepared: OnceLock<Arc<Chunk>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        crate::raw::reclaim::note_freed(self.buckets.owned_bytes());
    }
}

/// The place of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) bucket: usize,
    pub(super) word: usize,
}

/// Extra bytes a slot that a chunk of `buckets` at `depth` needs: the fewest such that every home's
/// interval (of ceil(2^(34 - depth) / buckets) prefixes) is no longer than what tag and extras can
/// tell apart.
pub(super) fn extra_bytes(buckets: usize, depth: u8) -> u8 {
    let width = PREFIX_BITS - u32::from(depth);
    (0..2)
        .find(|bytes| 1_u64 << width <= (buckets as u64) << (TAG_BITS + 8 * bytes))
        .unwrap_or(2) as u8
}

impl Chunk {
    /// An empty chunk.
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

    /// A chunk in place in a checkpoint.
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

    /// Bits of a prefix that the path does not say.
    pub(super) fn width(&self) -> u32 {
        PREFIX_BITS - u32::from(self.depth)
    }

    pub(super) fn extra_bytes(&self) -> u8 {
        self.extra_bytes
    }

    pub(super) fn slots(&self) -> usize {
        self.buckets.count() * BUCKET_WORDS
    }

    /// Whether it can be changed in place.
    pub(super) fn is_owned(&self) -> bool {
        self.buckets.is_owned()
    }

    /// Makes sure that the chunk is as it was written.
    ///
    /// # Errors
    /// If it lies in a checkpoint and its checksum is not the written one, or it has not as many
    /// keys as the table says.
    #[inline(always)]
    pub(super) fn verify(&self) -> Result<(), Damage> {
        if self.unverified.load(Ordering::Relaxed) {
            self.verify_again()
        } else {
            Ok(())
        }
    }

    /// Makes sure that what was just read of it were no pages that its file does not have any more.
    ///
    /// # Errors
    /// If the checkpoint was cut short.
    pub(super) fn check_uncut(&self) -> Result<(), Damage> {
        match &self.source {
            Some(source) if source.map.is_cut() => Err(Damage {
                offset: source.offset,
                field: "length of the file, which was cut short while it was in use",
                expected: source.map.len() as u64,
                found: 0,
            }),
            _ => Ok(()),
        }
    }

    /// As `verify`, whether or not it was done before: for when the bytes are about to be taken
    /// over.
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

    /// Bytes of memory, the counts of its `Arc` included.
    pub(super) fn bytes(&self) -> u64 {
        (align_of::<Self>() + size_of::<Self>() + self.buckets.owned_bytes() + self.extras.len()) as u64
    }

    /// Bytes of a checkpoint's map that it uses in place.
    pub(super) fn mapped_bytes(&self) -> u64 {
        if self.is_owned() {
            0
        } else {
            (self.slots() * (8 + usize::from(self.extra_bytes))) as u64
        }
    }

    /// Appends buckets and extras as they go into a checkpoint.
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

    /// Whether it should grow before it takes another key.
    pub(super) fn is_full(&self) -> bool {
        self.keys() * 1_024 >= self.slots() * FULL_OF_1024
    }

    /// The home bucket of a prefix that belongs here.
    #[inline(always)]
    pub(super) fn home(&self, prefix: Prefix) -> usize {
        let within = prefix.aligned() << self.depth;
        ((u128::from(within) * self.buckets.count() as u128) >> 64) as usize
    }

    /// Distance from home to second bucket: 1 to count - 1 (0 only where there is but one bucket).
    #[inline]
    fn distance(&self, tag: Tag) -> usize {
        let others = self.buckets.count() - 1;
        others.min(1) + ((DISTANCE[tag.class()] * others) >> 16)
    }

    /// The second bucket of keys with this home and tag.
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

    /// Asks for the second bucket of a prefix whose home is full.
    #[inline]
    pub(super) fn prefetch_room(&self, prefix: Prefix) {
        let home = self.home(prefix);
        if self.free_word(home).is_none() {
            self.buckets.prefetch(self.second(home, prefix.tag()));
        }
    }

    // Below: the writer's side. One at a time; it alone calls these, and sees its own stores.

    fn slot(&self, place: Place) -> Slot {
        Slot(self.buckets.bucket(place.bucket).load(place.word))
    }

    /// Stores a key's slot, keeping the flag that lies there (it belongs to the bucket).
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
        // All eight without a branch: where the first free one lies is random, and a mispredicted
        // branch costs more than they do.
        let slots = self.buckets.bucket(bucket).load_all();
        let free = (0..BUCKET_WORDS).fold(0, |bits, word| {
            bits | u32::from(Slot(slots[word]).is_empty()) << word
        });
        (free != 0).then_some(free.trailing_zeros() as usize)
    }

    /// The place of the key with this prefix that lies at `location`.
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

    /// Adds a key that is not here; `false` (and nothing done) if it finds no room.
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

    /// A free word in the home or else in the second bucket, made by moving others on if need be.
    fn room(&self, home: usize, second: usize) -> Option<(usize, usize)> {
        (0..=MOVES_MAX).find_map(|moves| {
            let free = |bucket| self.vacate(bucket, moves).map(|word| (bucket, word));
            free(home).or_else(|| free(second))
        })
    }

    /// A free word in `bucket`, made by at most `moves` moves of keys from home to second.
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
            // The chain may have come back through this bucket and changed the very slot.
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

    /// Moves a key from its home to a free slot of its second bucket, in the order that readers
    /// rely on. Leaves `from` to be overwritten: until then the key is in both places, which
    /// readers take as one.
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
    /// stay short however many keys come and go.
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

    /// The home of a key that lies in `bucket`.
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

    /// The locations of one bucket.
    pub(super) fn locations(&self, bucket: usize) -> impl Iterator<Item = Location> + use<> {
        self.buckets
            .bucket(bucket)
            .load_all()
            .into_iter()
            .filter_map(|slot| Slot(slot).location())
    }

    /// Flags that are set.
    #[cfg(test)]
    pub(super) fn flags(&self) -> usize {
        self.all_slots().filter(|slot| slot.flag()).count()
    }

    /// Keys in their second bucket.
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
    /// the writer is at other chunks, since a chunk in a checkpoint never changes. Damage is met
    /// again by the writer.
    pub(super) fn prepare(&self, born: u64) {
        if let Some(source) = &self.source
            && source.prepared.get().is_none()
            && let Ok(copy) = self.copied(born)
        {
            // The writer or a third thread may have been faster.
            let _ = source.prepared.set(Arc::new(copy));
        }
    }

    /// Returns a copy that may be changed while there are no views newer than `born`.
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

    /// The same keys in memory of its own.
    ///
    /// # Errors
    /// If it lies in a checkpoint and has rotted there.
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
