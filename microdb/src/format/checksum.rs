//! Checksums: what each covers, and how it is tied to its place.
//!
//! Content is covered by CRC-32C (hardware has it, and it notices every single flipped bit and
//! every burst of up to 32 bits). What is stored is the content's checksum XORed with a *mask* made
//! of database id, segment id and offset. So a record can be checksummed before its place is known,
//! and copied to another place without being read again, and yet stale or misplaced bytes (an older
//! use of the blocks, another database's file, a block written to the wrong place) never pass:
//! their mask differs. Within a segment two offsets never have the same mask (multiplying by an odd
//! number is a bijection); across segments and databases they have with probability 2^-32.

use crate::format::DatabaseId;

/// An odd constant (2^32 over the golden ratio): spreads neighbouring offsets over all bits of the
/// mask.
const OFFSET_FACTOR: u32 = 0x9E37_79B1;

/// What ties a checksum to one segment of one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMask(u32);

impl SegmentMask {
    pub(crate) fn new(database: DatabaseId, segment: u64) -> Self {
        Self(crc32c::crc32c_append(
            crc32c::crc32c(&database.0),
            &segment.to_le_bytes(),
        ))
    }

    /// The mask for something that begins at `offset`.
    #[inline]
    pub(crate) fn at(self, offset: u32) -> u32 {
        self.0 ^ offset.wrapping_mul(OFFSET_FACTOR)
    }
}

/// CRC-32C of `bytes`.
#[inline]
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// CRC-32C of `bytes` after what `crc` covers.
#[inline]
pub(crate) fn crc_append(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// The chain: what a follower recomputes to know that it has seen each commit, unchanged and in
/// order. It depends on content and order only, never on where the log keeps the frames.
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
