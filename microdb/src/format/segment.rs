//! The header of each segment.
//!
//! - The header ties the segment to its database and to the previous segment: it contains the
//!   position at which the previous segment ended, and the sequence and chain there.
//! - A segment that SUPER does not list is part of the log only if it continues the last segment
//!   before it. So an open notices a missing segment.
//! - An open takes the end of each segment except the last one from the header of the segment that
//!   continues it, or from the length of the file if compaction removed the continuing segment. So
//!   bytes behind the place at which an earlier recovery cut a torn tail are not part of the log.
//!   The last segment ends with its last complete frame.
//!
//! Deliberately absent: the seal, which is a separate file.

use super::{DatabaseId, FORMAT_VERSION, Flaw, LogPosition, Reader, SEGMENT_ID_LIMIT};
use crate::format::checksum::{self, SegmentMask};

/// Segment header, 96 bytes. Positions are packed by `LogPosition::to_u64`.
///
/// | offset | size | field | meaning |
/// | --- | --- | --- | --- |
/// | 0 | 8 | magic | `SEGMENT_MAGIC` |
/// | 8 | 4 | version | of the format |
/// | 12 | 4 | crc | CRC-32C of bytes 16 to 95 and of the version, XOR the mask of offset 0 |
/// | 16 | 16 | database | id of the database |
/// | 32 | 8 | id | of this segment |
/// | 40 | 8 | previous end | end of the log before this segment, packed; 0 in the first segment |
/// | 48 | 8 | sequence | of the last commit before this segment |
/// | 56 | 8 | chain | link of the chain at that commit |
/// | 64 | 8 | frontier | durable frontier when the segment was begun, packed |
/// | 72 | 4 | data bytes max | frames end at or below this offset |
/// | 76 | 20 | reserved | zero |
pub(crate) const SEGMENT_HEADER_BYTES: u32 = 96;
const RESERVED_BYTES: usize = 20;
const _: () =
    assert!(SEGMENT_HEADER_BYTES as usize == 8 + 4 + 4 + 16 + 8 + 8 + 8 + 8 + 8 + 4 + RESERVED_BYTES);

/// First bytes of a segment.
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"mdb-seg\n";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentHeader {
    pub(crate) database: DatabaseId,
    pub(crate) id: u64,
    pub(crate) previous_end: LogPosition,
    pub(crate) sequence: u64,
    pub(crate) chain: u64,
    pub(crate) frontier: LogPosition,
    pub(crate) data_bytes_max: u32,
}

impl SegmentHeader {
    pub(crate) fn mask(&self) -> SegmentMask {
        SegmentMask::new(self.database, self.id)
    }

    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut bytes = [0u8; SEGMENT_HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.database.0);
        bytes[32..40].copy_from_slice(&self.id.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.previous_end.to_u64().to_le_bytes());
        bytes[48..56].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.chain.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.frontier.to_u64().to_le_bytes());
        bytes[72..76].copy_from_slice(&self.data_bytes_max.to_le_bytes());
        let crc = checksum::crc_append(checksum::crc(&bytes[16..]), &bytes[8..12]) ^ self.mask().at(0);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the header of segment `id` of `database`.
    pub(crate) fn decode(bytes: &[u8], database: DatabaseId, id: u64) -> Result<Self, Flaw> {
        let Some(header) = bytes.first_chunk::<{ SEGMENT_HEADER_BYTES as usize }>() else {
            return Err(Flaw::short(
                "segment header",
                SEGMENT_HEADER_BYTES as usize,
                bytes.len(),
            ));
        };
        let short = || Flaw::short("segment header", SEGMENT_HEADER_BYTES as usize, header.len());
        let mut reader = Reader(header);
        let magic = reader.array::<8>().ok_or_else(short)?;
        if magic != SEGMENT_MAGIC {
            let (expected, found) = (SEGMENT_MAGIC.escape_ascii(), magic.escape_ascii());
            return Err(Flaw::new(0, "segment magic", expected, found));
        }
        let version = reader.array::<4>().ok_or_else(short)?;
        // The version is checked before the checksum, because a newer version may compute the
        // checksum in another way.
        if u32::from_le_bytes(version) > FORMAT_VERSION {
            let found = u32::from_le_bytes(version);
            return Err(Flaw::new(8, "segment version", FORMAT_VERSION, found));
        }
        let stored = reader.u32().ok_or_else(short)?;
        let crc =
            checksum::crc_append(checksum::crc(reader.0), &version) ^ SegmentMask::new(database, id).at(0);
        if stored != crc {
            let (expected, found) = (format_args!("{crc:08x}"), format_args!("{stored:08x}"));
            return Err(Flaw::new(12, "segment header crc", expected, found));
        }
        let version = u32::from_le_bytes(version);
        if version != FORMAT_VERSION {
            return Err(Flaw::new(8, "segment version", FORMAT_VERSION, version));
        }
        let header = Self {
            database: DatabaseId(reader.array().ok_or_else(short)?),
            id: reader.u64().ok_or_else(short)?,
            previous_end: LogPosition::from_u64(reader.u64().ok_or_else(short)?),
            sequence: reader.u64().ok_or_else(short)?,
            chain: reader.u64().ok_or_else(short)?,
            frontier: LogPosition::from_u64(reader.u64().ok_or_else(short)?),
            data_bytes_max: reader.u32().ok_or_else(short)?,
        };
        // The checksum may be forged or match by chance, so the fields are compared too.
        if (header.database, header.id) != (database, id) {
            let found = format_args!("{} {}", header.database, header.id);
            return Err(Flaw::new(
                16,
                "segment database and id",
                format_args!("{database} {id}"),
                found,
            ));
        }
        if id >= SEGMENT_ID_LIMIT {
            return Err(Flaw::new(32, "segment id", "an id below 2^38", id));
        }
        Flaw::check_counter(48, "segment sequence", header.sequence)?;
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::COUNTER_LIMIT;

    #[test]
    fn any_flipped_bit_of_a_segment_header_is_noticed() {
        let database = DatabaseId([5; 16]);
        let header = SegmentHeader {
            database,
            id: 12,
            previous_end: LogPosition {
                segment: 11,
                offset: 777,
            },
            sequence: 99,
            chain: 0xABCD,
            frontier: LogPosition {
                segment: 10,
                offset: 5,
            },
            data_bytes_max: 1 << 20,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes, database, 12), Ok(header));
        assert!(SegmentHeader::decode(&bytes, database, 13).is_err(), "renamed");
        assert!(
            SegmentHeader::decode(&bytes, DatabaseId([6; 16]), 12).is_err(),
            "another database's"
        );
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                SegmentHeader::decode(&damaged, database, 12).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn ids_and_sequences_that_could_not_go_on_are_refused() {
        let database = DatabaseId([5; 16]);
        let flaw = |id, sequence| {
            let header = SegmentHeader {
                database,
                id,
                previous_end: LogPosition::default(),
                sequence,
                chain: 1,
                frontier: LogPosition::default(),
                data_bytes_max: 1 << 20,
            };
            SegmentHeader::decode(&header.encode(), database, id)
                .err()
                .map(|flaw| flaw.field)
        };
        assert_eq!(flaw(SEGMENT_ID_LIMIT - 1, COUNTER_LIMIT - 1), None);
        assert_eq!(flaw(SEGMENT_ID_LIMIT, 1), Some("segment id"));
        assert_eq!(flaw(1, COUNTER_LIMIT), Some("segment sequence"));
    }
}
