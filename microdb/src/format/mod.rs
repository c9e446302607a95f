//! Conversion between bytes and structs for the files of a database.
//!
//! - Functions of this module are pure: they read and write no file.
//! - Numbers of fixed size are little-endian. Structures are written and read field by field.
//! - Decoding cannot panic for any input. Each field is read from the front of a slice after a
//!   check of the slice's length.
//! - The layout of the fields of fixed size is a table in the comment of the constant for their
//!   size. An assertion checks at compile time that the sizes in the table add up. `docs/format.md`
//!   describes the same bytes for people.
//!
//! Deliberately absent: policy, such as the response to a damaged field; and the image of a
//! directory, which `directory` encodes.

pub(crate) mod checkpoint;
pub(crate) mod checksum;
pub(crate) mod frame;
pub(crate) mod key_codec;
pub(crate) mod names;
pub(crate) mod record;
pub(crate) mod seal;
pub(crate) mod segment;
pub(crate) mod super_block;
pub(crate) mod usage;

use std::fmt;

use serde::Serialize;

/// Format version that this build writes, and the only one that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Number of bits for the offset in a packed position (see [`LogPosition::to_u64`]). Segments have
/// at most 2^26 bytes = 64 MiB.
pub(crate) const OFFSET_BITS: u32 = 26;

/// Maximum size of a segment in bytes, so that every offset in it fits into [`OFFSET_BITS`] bits.
pub(crate) const SEGMENT_BYTES_LIMIT: u32 = 1 << OFFSET_BITS;

/// Exclusive upper bound of segment ids, so that a packed position fits into 64 bits. At one new
/// segment per millisecond, the ids last for eight years.
pub(crate) const SEGMENT_ID_LIMIT: u64 = 1 << (64 - OFFSET_BITS);

/// Exclusive upper bound of the counters in a file of the database: generations, numbers of hints
/// and sequences. A database that a running process opened can increment each of them for longer
/// than hardware lasts, so no increment overflows. A counter that is not below the bound is refused
/// as damage.
pub(crate) const COUNTER_LIMIT: u64 = 1 << 62;

/// Maximum size of a key, in bytes. The limit is low because look-ups compare keys, and keys are
/// copied into batches and into the read sets of transactions.
pub const KEY_BYTES_MAX: usize = 64 * 1024 - 1;

/// Maximum size of a value, in bytes: half of the largest segment, so that compaction can always
/// copy a record together with others into one segment.
pub const VALUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Maximum size of an encoded batch, in bytes. A record takes 7 to 17 bytes besides key and value.
/// The limit exists because a batch is one frame, which must fit into one segment.
pub const BATCH_BYTES_MAX: usize = SEGMENT_BYTES_LIMIT as usize - 64 * 1024;

/// Maximum length of a table name, in bytes. Most file systems have the same limit for file names.
pub const TABLE_NAME_BYTES_MAX: usize = 255;

/// Identity of a database: a random number chosen at creation.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// assert_eq!(db.id().to_string().len(), 32, "hexadecimal digits");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseId(pub [u8; 16]);

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A position in the log: a segment and an offset in it. Positions compare in the order of the log.
/// The default (0, 0) precedes every other position.
///
/// ```
/// let position = microdb::LogPosition { segment: 3, offset: 128 };
/// println!("{position}");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(into = "(u64, u32)")]
pub struct LogPosition {
    /// Id of the segment. The first segment has id 1.
    pub segment: u64,
    /// Offset in the segment, in bytes.
    pub offset: u32,
}

impl LogPosition {
    /// Returns the position packed as on disk: the segment id shifted left by 26 bits, plus the
    /// offset.
    pub(crate) fn to_u64(self) -> u64 {
        debug_assert!(self.offset < SEGMENT_BYTES_LIMIT && self.segment < 1 << (64 - OFFSET_BITS));
        (self.segment << OFFSET_BITS) | u64::from(self.offset)
    }

    pub(crate) fn from_u64(packed: u64) -> Self {
        Self {
            segment: packed >> OFFSET_BITS,
            offset: (packed as u32) & (SEGMENT_BYTES_LIMIT - 1),
        }
    }
}

/// The serialized form: segment and offset.
impl From<LogPosition> for (u64, u32) {
    fn from(position: LogPosition) -> Self {
        (position.segment, position.offset)
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// Damage found while bytes were decoded. A caller that reports the damage adds the file and
/// returns an `Error::Corrupt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// Offset of the damage from the start of the decoded structure, in bytes, or 0 if no single
    /// field is known to be damaged.
    pub(crate) at: u32,
    pub(crate) field: &'static str,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Flaw {
    pub(crate) fn new(
        at: u32,
        field: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self {
            at,
            field,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub(crate) fn short(field: &'static str, expected: usize, found: usize) -> Self {
        Self::new(
            0,
            field,
            format_args!("{expected} bytes"),
            format_args!("{found} bytes"),
        )
    }

    /// Returns `counter`, or a flaw in `field` if the counter is not below [`COUNTER_LIMIT`].
    pub(crate) fn check_counter(at: u32, field: &'static str, counter: u64) -> Result<u64, Self> {
        if counter < COUNTER_LIMIT {
            Ok(counter)
        } else {
            Err(Self::new(at, field, "a counter below 2^62", counter))
        }
    }
}

/// Reads fields from the front of a slice. Each method removes the bytes that it reads. It returns
/// `None` if too few bytes are left, or if a variable-length number is invalid.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let (value, used) = varint_decode(self.0)?;
        self.0 = self.0.get(used..)?;
        Some(value)
    }
}

/// Maximum length of a variable-length number, in bytes: 64 bits in groups of seven.
pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// Appends `value` in groups of seven bits, lowest first. Each group is a byte, and the top bit is
/// set in each byte except the last.
#[inline]
pub(crate) fn varint_encode(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Returns the number at the front of `bytes` and its length. Returns `None` if the number is
/// truncated, has more than 64 bits, or is not in its shortest form. So each number has one
/// encoding.
#[inline(always)]
pub(crate) fn varint_decode(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((u64::from(first), 1));
    }
    varint_decode_long(first, bytes)
}

fn varint_decode_long(first: u8, bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = u64::from(first & 0x7F);
    for index in 1..VARINT_BYTES_MAX {
        let byte = *bytes.get(index)?;
        if index == VARINT_BYTES_MAX - 1 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            return (byte != 0).then_some((value, index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_and_have_one_form() {
        for value in [0, 1, 127, 128, 300, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            varint_encode(value, &mut bytes);
            assert_eq!(varint_decode(&bytes), Some((value, bytes.len())));
            for cut in 0..bytes.len() {
                assert_eq!(varint_decode(&bytes[..cut]), None);
            }
        }
        assert_eq!(varint_decode(&[0x80, 0x00]), None, "padded zero");
        assert_eq!(varint_decode(&[0xFF; 11]), None, "too long");
        let tenth = |byte: u8| varint_decode(&[[0xFF; 9].as_slice(), &[byte]].concat());
        assert_eq!(tenth(1), Some((u64::MAX, VARINT_BYTES_MAX)));
        assert_eq!(
            (tenth(0), tenth(2), tenth(3)),
            (None, None, None),
            "more than 64 bits"
        );
    }

    #[test]
    fn positions_pack_in_log_order() {
        assert_eq!(SEGMENT_BYTES_LIMIT, 67_108_864);
        assert_eq!(SEGMENT_ID_LIMIT, 274_877_906_944);
        let one = LogPosition {
            segment: 3,
            offset: SEGMENT_BYTES_LIMIT - 1,
        };
        let two = LogPosition {
            segment: 4,
            offset: 0,
        };
        assert!(one < two && one.to_u64() < two.to_u64());
        assert_eq!(LogPosition::from_u64(one.to_u64()), one);
        assert_eq!(two.to_string(), "4:0");
    }

    #[test]
    fn ids_are_shown_in_hex() {
        let id = DatabaseId([0x0A; 16]);
        assert_eq!(id.to_string(), "0a".repeat(16));
        assert_eq!(format!("{id:?}"), id.to_string());
    }
}
