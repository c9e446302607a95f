//! The header of each frame of the log.
//!
//! - The header has its own checksum, so that the lengths in it can be trusted before the body is
//!   read.
//! - The body is a sequence of records with a checksum each. The header has a checksum over the
//!   list of these checksums (before they are masked), so that no byte of a record is hashed twice.
//! - A commit frame has the next sequence number and the next link of the chain. A relocation frame
//!   (records copied by compaction) repeats the sequence number and the link of the last commit.
//!
//! Deliberately absent: the records, which are in `record`.

use super::{Flaw, LogPosition, Reader};
use crate::format::checksum::{self, SegmentMask};

/// Frame header, 48 bytes. Positions are packed by `LogPosition::to_u64`.
///
/// | offset | size | field | meaning |
/// | --- | --- | --- | --- |
/// | 0 | 4 | magic | `FRAME_MAGIC` |
/// | 4 | 4 | header crc | CRC-32C of bytes 8 to 47, XOR the mask of the frame's offset |
/// | 8 | 4 | kind | 1 commit, 2 relocation |
/// | 12 | 4 | op count | records in the body |
/// | 16 | 8 | sequence | of this commit; in a relocation, of the last commit before it |
/// | 24 | 4 | body bytes | length of the body |
/// | 28 | 4 | body crc | CRC-32C of the records' content checksums (unmasked), in order |
/// | 32 | 8 | chain | link of the chain at `sequence` |
/// | 40 | 8 | frontier | durable frontier known when the frame was made, packed |
pub(crate) const FRAME_HEADER_BYTES: u32 = 48;
const _: () = assert!(FRAME_HEADER_BYTES == 4 + 4 + 4 + 4 + 8 + 4 + 4 + 8 + 8);

/// First bytes of a frame, chosen so that UTF-8 text or zeros never look like a frame.
pub(crate) const FRAME_MAGIC: [u8; 4] = [0xF7, b'm', b'd', 0xB1];

/// Kind of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameKind {
    /// The frame has one batch of puts, deletes and clear markers, in the order of the batch.
    Commit,
    /// The frame has copies made by compaction: of puts that were live when the frame was appended,
    /// of tombstones of absent keys, and of clear markers. It may have no record.
    Relocation,
}

impl FrameKind {
    fn code(self) -> u32 {
        match self {
            Self::Commit => 1,
            Self::Relocation => 2,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Commit),
            2 => Some(Self::Relocation),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    pub(crate) op_count: u32,
    pub(crate) sequence: u64,
    pub(crate) body_bytes: u32,
    pub(crate) body_crc: u32,
    pub(crate) chain: u64,
    pub(crate) frontier: LogPosition,
}

impl FrameHeader {
    pub(crate) fn encode(&self, mask: SegmentMask, offset: u32) -> [u8; FRAME_HEADER_BYTES as usize] {
        let mut bytes = [0u8; FRAME_HEADER_BYTES as usize];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[8..12].copy_from_slice(&self.kind.code().to_le_bytes());
        bytes[12..16].copy_from_slice(&self.op_count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.chain.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.frontier.to_u64().to_le_bytes());
        let crc = checksum::crc(&bytes[8..]) ^ mask.at(offset);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the header at the start of `bytes`, which are at `offset` of their segment.
    pub(crate) fn decode(bytes: &[u8], mask: SegmentMask, offset: u32) -> Result<Self, Flaw> {
        let Some(header) = bytes.first_chunk::<{ FRAME_HEADER_BYTES as usize }>() else {
            return Err(Flaw::short(
                "frame header",
                FRAME_HEADER_BYTES as usize,
                bytes.len(),
            ));
        };
        let mut reader = Reader(header);
        let flaw = |at, field, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            Flaw::new(at, field, expected, found)
        };
        let short = || Flaw::short("frame header", FRAME_HEADER_BYTES as usize, header.len());
        let magic = reader.array::<4>().ok_or_else(short)?;
        if magic != FRAME_MAGIC {
            return Err(flaw(
                0,
                "frame magic",
                &format_args!("{FRAME_MAGIC:02x?}"),
                &format_args!("{magic:02x?}"),
            ));
        }
        let stored = reader.u32().ok_or_else(short)?;
        let crc = checksum::crc(reader.0) ^ mask.at(offset);
        if stored != crc {
            return Err(flaw(
                4,
                "frame header crc",
                &format_args!("{crc:08x}"),
                &format_args!("{stored:08x}"),
            ));
        }
        let code = reader.u32().ok_or_else(short)?;
        let kind = FrameKind::from_code(code).ok_or_else(|| flaw(8, "frame kind", &"1 or 2", &code))?;
        Ok(Self {
            kind,
            op_count: reader.u32().ok_or_else(short)?,
            sequence: Flaw::check_counter(16, "frame sequence", reader.u64().ok_or_else(short)?)?,
            body_bytes: reader.u32().ok_or_else(short)?,
            body_crc: reader.u32().ok_or_else(short)?,
            chain: reader.u64().ok_or_else(short)?,
            frontier: LogPosition::from_u64(reader.u64().ok_or_else(short)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::DatabaseId;

    #[test]
    fn any_flipped_bit_of_a_header_is_noticed() {
        let mask = SegmentMask::new(DatabaseId([9; 16]), 4);
        let header = FrameHeader {
            kind: FrameKind::Relocation,
            op_count: 3,
            sequence: 77,
            body_bytes: 1234,
            body_crc: 0xDEAD_BEEF,
            chain: 0x0123_4567_89AB_CDEF,
            frontier: LogPosition {
                segment: 4,
                offset: 96,
            },
        };
        let bytes = header.encode(mask, 4096);
        assert_eq!(FrameHeader::decode(&bytes, mask, 4096), Ok(header));
        assert!(FrameHeader::decode(&bytes, mask, 4097).is_err(), "another place");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&damaged, mask, 4096).is_err(), "bit {bit}");
        }
        let commit = FrameHeader {
            kind: FrameKind::Commit,
            ..header
        };
        assert_eq!(FrameHeader::decode(&commit.encode(mask, 0), mask, 0), Ok(commit));
        for cut in 0..bytes.len() {
            assert!(FrameHeader::decode(&bytes[..cut], mask, 4096).is_err());
        }
    }
}
