//! Checksums of content, and the masks that tie a checksum to a position in the log.
//!
//! - Content is covered by CRC-32C, which most processors compute in hardware. It detects every
//!   single flipped bit and every burst of up to 32 bits.
//! - A segment header, a frame header and a record store the checksum of their content XORed with a
//!   *mask*. The mask is computed from database id, segment id and offset. So a record can be
//!   checksummed before its position is known. The stored checksum of a copy at another position
//!   differs only in the mask.
//! - Stale or misplaced bytes were masked differently, so their checksum does not match. Examples
//!   are bytes from an older use of the disk blocks, from a file of another database, or from a
//!   block written to the wrong place. In a segment, two offsets never have the same mask, because
//!   multiplication by an odd number is a bijection. Across segments and databases, masks are equal
//!   with probability 2^-32.
//!
//! Deliberately absent: protection against forgery.

use crate::format::DatabaseId;

/// Odd constant (2^32 over the golden ratio) that spreads neighbouring offsets over all bits of the
/// mask.
const OFFSET_FACTOR: u32 = 0x9E37_79B1;

/// The part of a mask that ties a checksum to one segment of one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMask(u32);

impl SegmentMask {
    pub(crate) fn new(database: DatabaseId, segment: u64) -> Self {
        Self(crc32c::crc32c_append(
            crc32c::crc32c(&database.0),
            &segment.to_le_bytes(),
        ))
    }

    /// Returns the mask for the checksum of a structure at `offset` of the segment.
    #[inline]
    pub(crate) fn at(self, offset: u32) -> u32 {
        self.0 ^ offset.wrapping_mul(OFFSET_FACTOR)
    }
}

/// Returns the CRC-32C of `bytes`.
#[inline]
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Extends the CRC-32C `crc` by `bytes`.
#[inline]
pub(crate) fn crc_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// Returns the next link of the chain. A reader of the log recomputes the links to check that it
/// has seen each commit unchanged and in order. A link depends only on content and order of the
/// commits, not on the position of frames.
pub(crate) fn chain(previous: u64, sequence: u64, body_crc: u32, op_count: u32) -> u64 {
    let mut bytes = [0u8; 24];
    bytes[..8].copy_from_slice(&previous.to_le_bytes());
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..20].copy_from_slice(&body_crc.to_le_bytes());
    bytes[20..].copy_from_slice(&op_count.to_le_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_differ_between_databases_segments_and_offsets() {
        let one = SegmentMask::new(DatabaseId([1; 16]), 7);
        assert_ne!(one, SegmentMask::new(DatabaseId([2; 16]), 7));
        assert_ne!(one, SegmentMask::new(DatabaseId([1; 16]), 8));
        let mut seen: Vec<u32> = (0..100_000).map(|offset| one.at(offset)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 100_000);
    }
}
