//! One record: a put or a delete of one key of a table, or a clear marker for a whole table.
//!
//! | size | field | meaning |
//! | --- | --- | --- |
//! | 4 | crc | CRC-32C of the rest of the record, XOR the mask of the record's offset |
//! | 1 | tag | bits 0 and 1 kind; bits 2 to 7 table id, or 63: the id follows |
//! | 0 to 5 | table | variable-length number, if the tag says so |
//! | 1 to 3 | key bytes | variable-length number |
//! | 1 to 4 | value bytes | variable-length number |
//! | | key | |
//! | | value | |
//!
//! - Records are not aligned. A small record takes seven bytes besides its key and value.
//! - [`Record::parse`] checks lengths and encoding, not the checksum. It never reads outside of its
//!   slice.
//!
//! Deliberately absent: a sequence number, which the frame has.

use super::{Flaw, varint_decode, varint_encode};
use crate::format::checksum::{self, SegmentMask};
use crate::seeded::seeded;

/// Largest table id that is stored in the tag itself. A larger id follows the tag.
const TABLE_INLINE_MAX: u32 = 62;
const TABLE_FOLLOWS: u8 = 63;

/// Size of the checksum at the start of a record, in bytes.
pub(crate) const RECORD_CRC_BYTES: usize = 4;

/// Kind of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecordKind {
    /// The record sets the value of its key.
    Put,
    /// The record deletes its key and is called a tombstone. A tombstone copied by compaction has a
    /// value of 8 bytes: the id of the segment to which the tombstone was first written.
    Delete,
    /// The record clears its whole table, alone or as a part of dropping the table. The key is
    /// empty. The value is empty too, except in a clear marker copied by compaction: there it is
    /// the id of the segment to which the marker was first written.
    Clear,
}

/// The decoded fields of a record that precede its key and value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHead {
    pub(crate) kind: RecordKind,
    pub(crate) table: u32,
    /// Offset of the key from the start of the record.
    pub(crate) key_at: usize,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
}

impl RecordHead {
    /// Returns the length of the whole record.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.key_at + self.key_bytes + self.value_bytes
    }
}

/// A record in a slice of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) head: RecordHead,
    /// All bytes of the record, including its checksum.
    pub(crate) bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// Decodes the record at the front of `bytes` without verifying it. Returns `None` if the
    /// record is malformed or does not end inside `bytes`.
    // Always inlined, so that the fields of the result stay in registers. Otherwise the caller
    // would load them from memory and wait for their stores to complete.
    #[inline(always)]
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let tag = *bytes.get(RECORD_CRC_BYTES)?;
        let kind = match tag & 3 {
            0 => RecordKind::Put,
            1 => RecordKind::Delete,
            2 => RecordKind::Clear,
            _ => return None,
        };
        let mut at = RECORD_CRC_BYTES + 1;
        let mut table = u32::from(tag >> 2);
        if tag >> 2 == TABLE_FOLLOWS {
            let (id, used) = varint_decode(bytes.get(at..)?)?;
            table = u32::try_from(id).ok()?;
            if table <= TABLE_INLINE_MAX {
                return None;
            }
            at += used;
        }
        let (key_bytes, used) = varint_decode(bytes.get(at..)?)?;
        at += used;
        let (value_bytes, used) = varint_decode(bytes.get(at..)?)?;
        at += used;
        let (key_bytes, value_bytes) = (
            usize::try_from(key_bytes).ok()?,
            usize::try_from(value_bytes).ok()?,
        );
        let end = at.checked_add(key_bytes)?.checked_add(value_bytes)?;
        let head = RecordHead {
            kind,
            table,
            key_at: at,
            key_bytes,
            value_bytes,
        };
        Some(Self {
            head,
            bytes: bytes.get(..end)?,
        })
    }

    #[inline]
    pub(crate) fn key(&self) -> &'a [u8] {
        self.bytes
            .get(self.head.key_at..self.head.key_at + self.head.key_bytes)
            .unwrap_or_default()
    }

    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        self.bytes
            .get(self.head.key_at + self.head.key_bytes..)
            .unwrap_or_default()
    }

    /// Returns the stored checksum.
    #[inline]
    pub(crate) fn stored_crc(&self) -> u32 {
        self.bytes
            .first_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Computes the checksum of the content, without a mask.
    #[inline]
    pub(crate) fn content_crc(&self) -> u32 {
        checksum::crc(self.bytes.get(RECORD_CRC_BYTES..).unwrap_or_default())
    }

    /// Returns `true` if the stored checksum of a record at `offset` matches its content.
    #[inline]
    pub(crate) fn is_intact(&self, mask: SegmentMask, offset: u32) -> bool {
        self.content_crc() ^ mask.at(offset) == self.stored_crc() || seeded("record-checksum")
    }

    /// Verifies the record like [`Record::is_intact`]. Returns a description of the damage as the
    /// error.
    #[inline]
    pub(crate) fn verify(&self, mask: SegmentMask, offset: u32) -> Result<(), Flaw> {
        if self.is_intact(mask, offset) {
            return Ok(());
        }
        let expected = self.content_crc() ^ mask.at(offset);
        let found = self.stored_crc();
        Err(Flaw::new(
            0,
            "record crc",
            format_args!("{expected:08x}"),
            format_args!("{found:08x}"),
        ))
    }
}

/// Appends a record with its content checksum, which is masked later, when the position is known.
/// Returns the content checksum.
#[inline]
pub(crate) fn encode(kind: RecordKind, table: u32, key: &[u8], value: &[u8], to: &mut Vec<u8>) -> u32 {
    let start = to.len();
    to.reserve(RECORD_CRC_BYTES + 16 + key.len() + value.len());
    to.extend_from_slice(&[0; RECORD_CRC_BYTES]);
    let kind = match kind {
        RecordKind::Put => 0,
        RecordKind::Delete => 1,
        RecordKind::Clear => 2,
    };
    if table <= TABLE_INLINE_MAX {
        to.push(kind | (table as u8) << 2);
    } else {
        to.push(kind | TABLE_FOLLOWS << 2);
        varint_encode(u64::from(table), to);
    }
    varint_encode(key.len() as u64, to);
    varint_encode(value.len() as u64, to);
    to.extend_from_slice(key);
    to.extend_from_slice(value);
    let crc = checksum::crc(&to[start + RECORD_CRC_BYTES..]);
    to[start..start + RECORD_CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DatabaseId;

    #[test]
    fn records_round_trip_for_all_kinds_and_sizes() {
        for kind in [RecordKind::Put, RecordKind::Delete, RecordKind::Clear] {
            for table in [0, 1, 62, 63, 64, 70_000, u32::MAX] {
                for (key, value) in [(0, 0), (1, 0), (16, 100), (127, 128), (65_535, 3)] {
                    let (key, value) = (vec![7; key], vec![8; value]);
                    let mut bytes = Vec::new();
                    encode(kind, table, &key, &value, &mut bytes);
                    bytes.push(99);
                    let record = Record::parse(&bytes).unwrap();
                    assert_eq!((record.head.kind, record.head.table), (kind, table));
                    assert_eq!((record.key(), record.value()), (&key[..], &value[..]));
                    assert_eq!(record.head.bytes() + 1, bytes.len());
                    assert_eq!(record.stored_crc(), record.content_crc());
                }
            }
        }
        let mut small = Vec::new();
        encode(RecordKind::Put, 1, &[1; 16], &[2; 100], &mut small);
        assert_eq!(
            small.len(),
            16 + 100 + 7,
            "a small record takes seven bytes besides key and value"
        );
    }

    #[test]
    fn any_flipped_bit_and_any_cut_of_a_record_is_noticed() {
        let mask = SegmentMask::new(DatabaseId([3; 16]), 9);
        let mut bytes = Vec::new();
        let crc = encode(RecordKind::Put, 5, b"some key", b"some value", &mut bytes);
        bytes[..4].copy_from_slice(&(crc ^ mask.at(500)).to_le_bytes());
        assert_eq!(Record::parse(&bytes).unwrap().verify(mask, 500), Ok(()));
        let flaw = Record::parse(&bytes).unwrap().verify(mask, 501).unwrap_err();
        let hex = |crc: u32| format!("{crc:08x}");
        assert_eq!(
            (flaw.expected, flaw.found),
            (hex(crc ^ mask.at(501)), hex(crc ^ mask.at(500)))
        );
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Record::parse(&damaged).is_none_or(|record| record.verify(mask, 500).is_err()),
                "bit {bit}"
            );
        }
        for cut in 0..bytes.len() {
            assert!(Record::parse(&bytes[..cut]).is_none());
        }
    }
}
