//! Layout of the eight bytes of a slot, and the types for hashes and locations.
//!
//! ```text
//! 63    62    61              42 41             26 25              0
//! | flag | rank | tag (20 bits)  | segment mod 2^16 | offset (26 bits) |
//! ```
//!
//! - *location* (the low 42 bits): location of the newest record of a key. Zero marks an empty
//!   slot, because no record begins at offset 0.
//! - *tag*: the low 20 bits of the key's *prefix*, which is the top 34 bits of its hash. Tags
//!   distinguish most keys of a bucket without reading records.
//! - *rank*: 0 if the key is in its home bucket, 1 if it is in its second bucket (see `chunk.rs`).
//! - *flag*: unrelated to the key of this slot. A key has a *class*, the low three bits of its tag.
//!   Slot `c` of a bucket stores the flag of class `c`. The flag is set if a key of this class that
//!   has the bucket as its home is in its second bucket. If the flag is not set, a lookup of such a
//!   key ends in the home bucket.

/// Number of bits of a hash that the directory can recover from a slot, its position and its extra
/// bytes (see `rebuild.rs`). With 34 bits, the probability that a lookup finds another key with the
/// same prefix is keys / 2^34, or 0.12 % at 20 million keys. Tables of more than about 100,000 keys
/// need no extra bytes.
pub(super) const PREFIX_BITS: u32 = 34;
/// Number of low bits of the prefix that a slot stores as its tag.
pub(super) const TAG_BITS: u32 = 20;
/// Number of bits of a location: 16 of the segment id, 26 of the offset (segments have at most 64
/// MiB).
const LOCATION_BITS: u32 = 42;
const OFFSET_BITS: u32 = 26;

const LOCATION_MASK: u64 = (1 << LOCATION_BITS) - 1;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
const FLAG: u64 = 1 << 63;
const RANK: u64 = 1 << 62;

const _: () = assert!(1 + 1 + TAG_BITS + LOCATION_BITS == 64);
const _: () = assert!(TAG_BITS < PREFIX_BITS && PREFIX_BITS <= TAG_BITS + 16);

/// Position in the log at which a record begins: the low 16 bits of the segment's id, and the
/// offset in the segment.
///
/// The segments of a log span fewer than 65,536 ids, so the low bits identify one of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Location(u64);

impl Location {
    /// Returns the location at `offset` of the segment with id `segment`.
    ///
    /// # Panics
    /// If the offset is 0, or 64 MiB or more, which is a bug of the caller. The segment header is
    /// at offset 0, and zero marks an empty slot.
    #[inline]
    pub(crate) fn new(segment: u64, offset: u32) -> Self {
        assert!(
            offset != 0 && offset >> OFFSET_BITS == 0,
            "no record can begin at offset {offset}"
        );
        Self((segment & 0xFFFF) << OFFSET_BITS | u64::from(offset))
    }

    /// Returns the low 16 bits of the segment id.
    #[inline]
    pub(crate) fn segment16(self) -> u16 {
        (self.0 >> OFFSET_BITS) as u16
    }

    /// Returns the offset in the segment.
    #[inline]
    pub(crate) fn offset(self) -> u32 {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as u32
    }

    /// Returns all 42 bits, a number that increases along the log until the 16 bits of the segment
    /// id wrap.
    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the location with these bits, or `None` if no record can begin there.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        (bits <= LOCATION_MASK && bits & ((1 << OFFSET_BITS) - 1) != 0).then_some(Self(bits))
    }
}

/// The 64-bit hash of a key, keyed with the seed of the database so that nobody without the seed
/// can choose colliding keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeyHash(pub(crate) u64);

impl KeyHash {
    /// Returns the top bits of the hash. The directory uses only these bits, because it cannot
    /// recover the other bits from a slot and its position.
    #[inline(always)]
    pub(super) fn prefix(self) -> Prefix {
        Prefix(self.0 >> (64 - PREFIX_BITS))
    }
}

/// The top [`PREFIX_BITS`] bits of a hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Prefix(pub(super) u64);

impl Prefix {
    /// Returns the low bits, which are stored in a slot.
    #[inline(always)]
    pub(super) fn tag(self) -> Tag {
        Tag(self.0 & TAG_MASK)
    }

    /// Returns the bits above the tag. Their low bytes are stored as extra bytes if the position of
    /// a slot does not determine them.
    #[inline(always)]
    pub(super) fn extra(self) -> u64 {
        self.0 >> TAG_BITS
    }

    /// Returns the prefix shifted to the top of 64 bits.
    #[inline(always)]
    pub(super) fn aligned(self) -> u64 {
        self.0 << (64 - PREFIX_BITS)
    }
}

/// The low [`TAG_BITS`] bits of a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag(pub(super) u64);

impl Tag {
    /// Returns the class of the key, from 0 to 7. The class selects the flag of the key, and the
    /// distance from its home to its second bucket.
    #[inline(always)]
    pub(super) fn class(self) -> usize {
        (self.0 & 7) as usize
    }

    /// Returns the bits of a slot with this tag and rank, without location and flag.
    #[inline(always)]
    pub(super) fn pattern(self, rank: Rank) -> Pattern {
        Pattern(self.0 << LOCATION_BITS | if rank == Rank::Second { RANK } else { 0 })
    }
}

/// The bucket in which a key is stored: its home bucket or its second bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rank {
    Home,
    Second,
}

/// A tag and a rank, shifted to their bit positions in a slot.
#[derive(Clone, Copy)]
pub(super) struct Pattern(u64);

impl Pattern {
    /// Returns `true` if `slot` has this tag and rank. An empty slot may match, so the location
    /// must be checked too.
    #[inline(always)]
    pub(super) fn matches(self, slot: Slot) -> bool {
        (slot.0 ^ self.0) & !(FLAG | LOCATION_MASK) == 0
    }
}

/// The eight bytes of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot(pub(super) u64);

impl Slot {
    /// Returns the slot of a key at `location`. Its flag is not set.
    #[inline]
    pub(super) fn new(tag: Tag, rank: Rank, location: Location) -> Self {
        Self(tag.pattern(rank).0 | location.0)
    }

    #[inline(always)]
    pub(super) fn is_empty(self) -> bool {
        self.0 & LOCATION_MASK == 0
    }

    #[inline(always)]
    pub(super) fn location(self) -> Option<Location> {
        (!self.is_empty()).then_some(Location(self.0 & LOCATION_MASK))
    }

    #[inline(always)]
    pub(super) fn tag(self) -> Tag {
        Tag(self.0 >> LOCATION_BITS & TAG_MASK)
    }

    #[inline(always)]
    pub(super) fn rank(self) -> Rank {
        if self.0 & RANK == 0 {
            Rank::Home
        } else {
            Rank::Second
        }
    }

    /// Returns the flag that is stored in this slot.
    #[inline(always)]
    pub(super) fn flag(self) -> bool {
        self.0 & FLAG != 0
    }

    #[inline]
    pub(super) fn with_flag(self, flag: bool) -> Self {
        Self(if flag { self.0 | FLAG } else { self.0 & !FLAG })
    }

    /// Returns the slot of the same key at another location.
    #[inline]
    pub(super) fn with_location(self, location: Location) -> Self {
        Self(self.0 & !LOCATION_MASK | location.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_gives_back_what_was_put_in() {
        for tag in [Tag(0), Tag(1), Tag(TAG_MASK)] {
            for rank in [Rank::Home, Rank::Second] {
                for (segment, offset) in [(0, 1), (0xFFFF, (1 << 26) - 1), (0x1_0002, 64)] {
                    let location = Location::new(segment, offset);
                    for flag in [false, true] {
                        let slot = Slot::new(tag, rank, location).with_flag(flag);
                        assert_eq!((slot.tag(), slot.rank(), slot.flag()), (tag, rank, flag));
                        assert_eq!(slot.location(), Some(location));
                        assert!(tag.pattern(rank).matches(slot));
                        assert!(!Tag(tag.0 ^ 1).pattern(rank).matches(slot));
                        assert_eq!(
                            (location.segment16(), location.offset()),
                            (segment as u16, offset)
                        );
                    }
                }
            }
        }
        assert!(Slot(0).is_empty() && Slot(0).with_flag(true).is_empty());
    }

    #[test]
    #[should_panic(expected = "no record can begin at offset 0")]
    fn offset_zero_is_no_location() {
        let _ = Location::new(7, 0);
    }
}
