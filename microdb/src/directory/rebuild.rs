//! Rebuilding of a chunk from its slots alone, without reading records.
//!
//! **Quotienting** (Knuth, volume 3, 6.4, exercise 13; Cleary 1984; Pagh's quotient filters): a
//! slot need not store those bits of a prefix that follow from the position of the slot. The home
//! bucket of a key is its prefix, scaled to the number of buckets. Scaling keeps the order, so all
//! prefixes with one home bucket are in one short interval. In an interval no longer than 2^k, the
//! low k bits of a prefix identify it. The tag of a slot has the low 20 bits.
//!
//! For longer intervals (few buckets, small tables), one or two *extra* bytes per slot hold the
//! next bits. Extra bytes are stored beside the buckets, and lookups never read them. The position,
//! the tag and the extra bytes of a slot together determine the whole prefix.

use super::chunk::{Chunk, Place};
use super::slot::{Location, Prefix, Rank, Slot, TAG_BITS};
use crate::raw::buckets::BUCKET_WORDS;

impl Chunk {
    /// Visits every key with its prefix and location, nearly in order of prefix.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Prefix, Location)) {
        for bucket in 0..self.bucket_count() {
            let here = self.interval(bucket);
            let slots = self.bucket(bucket).load_all();
            for (word, slot) in slots.into_iter().map(Slot).enumerate() {
                let Some(location) = slot.location() else { continue };
                let first = match slot.rank() {
                    Rank::Home => here,
                    Rank::Second => self.interval(self.home_of(bucket, slot)),
                };
                visit(self.prefix_from(first, Place { bucket, word }, slot), location);
            }
        }
    }

    /// Returns the first prefix (without the bits of the path, which all prefixes of the chunk
    /// share) with this home bucket: the least v with v * buckets / 2^width >= home.
    fn interval(&self, home: usize) -> u64 {
        ((home as u64) << self.width()).div_ceil(self.bucket_count() as u64)
    }

    /// Returns the prefix of the key at `place`: the only prefix in the interval of its home with
    /// low bits equal to the tag and extra bytes of the slot. The interval begins at `first`.
    #[inline]
    fn prefix_from(&self, first: u64, place: Place, slot: Slot) -> Prefix {
        let known = slot.tag().0 | self.extra(place) << TAG_BITS;
        let known_bits = self.width().min(TAG_BITS + 8 * u32::from(self.extra_bytes()));
        let within = first + (known.wrapping_sub(first) & ((1 << known_bits) - 1));
        Prefix(u64::from(self.path()) << self.width() | within)
    }
}

/// Fills a new chunk with keys before other threads can see the chunk.
pub(super) struct Filler {
    chunk: Chunk,
    /// Number of used slots per bucket. No key is removed while a chunk is filled, so the used
    /// slots are the first ones of the bucket.
    used: Vec<u8>,
    /// Keys that found their home bucket full. They are placed last, so that they take no slot that
    /// another key needs in its home bucket.
    late: Vec<(Prefix, Location)>,
}

impl Filler {
    pub(super) fn new(path: u32, depth: u8, buckets: usize, born: u64) -> Self {
        Self {
            chunk: Chunk::new(path, depth, buckets, born),
            used: vec![0; buckets],
            late: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn add(&mut self, prefix: Prefix, location: Location) {
        let bucket = self.chunk.home(prefix);
        let word = usize::from(self.used[bucket]);
        if word == BUCKET_WORDS {
            self.late.push((prefix, location));
            return;
        }
        self.used[bucket] += 1;
        let place = Place { bucket, word };
        self.chunk.store_extra(place, prefix.extra());
        self.chunk
            .store(place, Slot::new(prefix.tag(), Rank::Home, location));
    }

    /// Returns the chunk, and the keys that found no room in it.
    pub(super) fn finish(self) -> (Chunk, Vec<(Prefix, Location)>) {
        let Self {
            chunk,
            used,
            mut late,
        } = self;
        chunk.set_keys(used.into_iter().map(usize::from).sum());
        late.retain(|(prefix, location)| !chunk.insert(*prefix, *location));
        (chunk, late)
    }
}
