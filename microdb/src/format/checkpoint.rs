//! Layout of a checkpoint file. The file has three parts, in this order:
//!
//! - a *head* of fixed size: the identity of the file, and the position and checksum of the block;
//! - an *image* of the directory of each table, one behind the other;
//! - a *block* of variable size: the position in the log up to which the checkpoint is complete,
//!   and the tables and segments at that position.
//!
//! The head is written last. A checkpoint contains only data that can be derived from the log.
//! Instead of a damaged checkpoint, an open can replay the whole log.
//!
//! Deliberately absent: the layout of an image, which `directory` defines.

use super::super_block::{Frontier, SEGMENT_SPAN_MAX};
use super::{
    COUNTER_LIMIT, DatabaseId, FORMAT_VERSION, Flaw, LogPosition, Reader, SEGMENT_ID_LIMIT, varint_encode,
};
use crate::format::checksum;
use crate::format::usage::{Live, SegmentUsage};

/// Head of a checkpoint, 64 bytes:
///
/// | offset | size | field | meaning |
/// | --- | --- | --- | --- |
/// | 0 | 8 | magic | `CHECKPOINT_MAGIC` |
/// | 8 | 4 | version | of the format |
/// | 12 | 4 | crc | CRC-32C of bytes 16 to 63 and of the version |
/// | 16 | 16 | database | id |
/// | 32 | 8 | generation | as in the file's name |
/// | 40 | 8 | block offset | where the block behind the images begins |
/// | 48 | 8 | block bytes | length of the block |
/// | 56 | 4 | block crc | CRC-32C of the block |
/// | 60 | 4 | reserved | zero |
pub(crate) const HEAD_BYTES: usize = 64;
const _: () = assert!(HEAD_BYTES == 8 + 4 + 4 + 16 + 8 + 8 + 8 + 4 + 4);

/// First bytes of a checkpoint.
pub(crate) const CHECKPOINT_MAGIC: [u8; 8] = *b"mdb-idx\n";

/// Head of a checkpoint, with its identity and the position and checksum of its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) database: DatabaseId,
    pub(crate) generation: u64,
    pub(crate) block_offset: u64,
    pub(crate) block_bytes: u64,
    pub(crate) block_crc: u32,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&CHECKPOINT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.database.0);
        bytes[32..40].copy_from_slice(&self.generation.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.block_offset.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.block_bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.block_crc.to_le_bytes());
        let crc = checksum::crc_append(checksum::crc(&bytes[16..]), &bytes[8..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the head of checkpoint `generation` of `database`.
    pub(crate) fn decode(bytes: &[u8], database: DatabaseId, generation: u64) -> Result<Self, Flaw> {
        let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else {
            return Err(Flaw::short("checkpoint head", HEAD_BYTES, bytes.len()));
        };
        let short = || Flaw::short("checkpoint head", HEAD_BYTES, head.len());
        let mut reader = Reader(head);
        let magic = reader.array::<8>().ok_or_else(short)?;
        let version = reader.array::<4>().ok_or_else(short)?;
        let stored = reader.u32().ok_or_else(short)?;
        let crc = checksum::crc_append(checksum::crc(reader.0), &version);
        if magic != CHECKPOINT_MAGIC || stored != crc || u32::from_le_bytes(version) != FORMAT_VERSION {
            let found = format_args!("{} {stored:08x}", magic.escape_ascii());
            let expected = format_args!("{} {crc:08x}", CHECKPOINT_MAGIC.escape_ascii());
            return Err(Flaw::new(0, "checkpoint head", expected, found));
        }
        let found = Self {
            database: DatabaseId(reader.array().ok_or_else(short)?),
            generation: reader.u64().ok_or_else(short)?,
            block_offset: reader.u64().ok_or_else(short)?,
            block_bytes: reader.u64().ok_or_else(short)?,
            block_crc: reader.u32().ok_or_else(short)?,
        };
        if (found.database, found.generation) != (database, generation) {
            let expected = format_args!("{database} generation {generation}");
            let found = format_args!("{} generation {}", found.database, found.generation);
            return Err(Flaw::new(16, "checkpoint identity", expected, found));
        }
        Ok(found)
    }

    /// Returns the seed for the checksums of directory images. The seed depends on database and
    /// generation, so that an image of another checkpoint is refused.
    pub(crate) fn image_seed(database: DatabaseId, generation: u64) -> u32 {
        checksum::crc_append(checksum::crc(&database.0), &generation.to_le_bytes())
    }
}

/// A table of the database, and the position of the chunk table of its directory image (see
/// `directory::ImageTable`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TableEntry {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) image_offset: u64,
    pub(crate) image_bytes: u64,
}

/// The block of a checkpoint: its content besides head and directories.
///
/// Its encoding has these fields, in this order. Position, sequence and chain have 8 bytes each.
/// All other numbers have a variable length.
///
/// - position, sequence and chain of the log; next segment id; next table id
/// - number of tables, then for each table: id, length of the name, name, offset and length of the
///   chunk table in its directory image
/// - number of segments, then for each segment: id, end, tombstone bytes, number of entries of
///   `SegmentUsage::live`, then for each entry: table id, live bytes
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    pub(crate) at: Frontier,
    pub(crate) next_segment: u64,
    pub(crate) next_table: u32,
    pub(crate) tables: Vec<TableEntry>,
    pub(crate) usages: Vec<(u64, SegmentUsage)>,
}

impl Block {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [self.at.position.to_u64(), self.at.sequence, self.at.chain] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let number = |value: u64, bytes: &mut Vec<u8>| varint_encode(value, bytes);
        number(self.next_segment, &mut bytes);
        number(self.next_table.into(), &mut bytes);
        number(self.tables.len() as u64, &mut bytes);
        for table in &self.tables {
            number(table.id.into(), &mut bytes);
            number(table.name.len() as u64, &mut bytes);
            bytes.extend_from_slice(table.name.as_bytes());
            number(table.image_offset, &mut bytes);
            number(table.image_bytes, &mut bytes);
        }
        number(self.usages.len() as u64, &mut bytes);
        for (id, usage) in &self.usages {
            number(*id, &mut bytes);
            number(usage.end.into(), &mut bytes);
            number(usage.tombstones, &mut bytes);
            number(usage.live.len() as u64, &mut bytes);
            for live in &usage.live {
                number(live.table.into(), &mut bytes);
                number(live.bytes, &mut bytes);
            }
        }
        bytes
    }

    /// Decodes a block. The caller has verified its checksum. Returns `None` if the bytes are
    /// malformed, or if the segment ids do not ascend, span too much or reach `next_segment`. Also
    /// returns `None` if the sequence or `next_segment` is not below its limit.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let position = LogPosition::from_u64(reader.u64()?);
        let at = Frontier {
            position,
            sequence: reader.u64().filter(|sequence| *sequence < COUNTER_LIMIT)?,
            chain: reader.u64()?,
        };
        let next_segment = reader.varint().filter(|id| *id < SEGMENT_ID_LIMIT)?;
        let next_table = u32::try_from(reader.varint()?).ok()?;
        let mut tables = Vec::new();
        for _ in 0..reader.varint()? {
            let id = u32::try_from(reader.varint()?).ok()?;
            let name_bytes = usize::try_from(reader.varint()?).ok()?;
            let name = std::str::from_utf8(reader.bytes(name_bytes)?).ok()?.to_owned();
            tables.push(TableEntry {
                id,
                name,
                image_offset: reader.varint()?,
                image_bytes: reader.varint()?,
            });
        }
        let mut usages = Vec::new();
        for _ in 0..reader.varint()? {
            let id = reader.varint()?;
            let mut usage = SegmentUsage {
                end: u32::try_from(reader.varint()?).ok()?,
                tombstones: reader.varint()?,
                ..SegmentUsage::default()
            };
            for _ in 0..reader.varint()? {
                let table = u32::try_from(reader.varint()?).ok()?;
                usage.live.push(Live::saved(table, reader.varint()?));
            }
            // The ids of segments must ascend, and must not span more than a log may span.
            let first = usages.first().map_or(id, |(first, _)| *first);
            let ascends = usages.last().is_none_or(|(last, _)| *last < id);
            if !ascends || id - first >= SEGMENT_SPAN_MAX || id >= next_segment {
                return None;
            }
            usages.push((id, usage));
        }
        reader.0.is_empty().then_some(Self {
            at,
            next_segment,
            next_table,
            tables,
            usages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_blocks_round_trip_and_damage_is_noticed() {
        let database = DatabaseId([4; 16]);
        let head = Head {
            database,
            generation: 7,
            block_offset: 640,
            block_bytes: 99,
            block_crc: 5,
        };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes, database, 7), Ok(head));
        assert!(
            Head::decode(&bytes, database, 8).is_err()
                && Head::decode(&bytes, DatabaseId([5; 16]), 7).is_err()
        );
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::decode(&damaged, database, 7).is_err(), "bit {bit}");
        }
        let position = LogPosition {
            segment: 9,
            offset: 8,
        };
        let usage = SegmentUsage {
            end: 100,
            live: vec![Live::saved(0, 7), Live::saved(300, 8)],
            tombstones: 9,
            ..SegmentUsage::default()
        };
        let block = Block {
            at: Frontier {
                position,
                sequence: 3,
                chain: 4,
            },
            next_segment: 10,
            next_table: 301,
            tables: vec![TableEntry {
                id: 300,
                name: "t".to_owned(),
                image_offset: 64,
                image_bytes: 1 << 40,
            }],
            usages: vec![(3, usage), (9, SegmentUsage::default())],
        };
        let bytes = block.encode();
        assert_eq!(Block::decode(&bytes), Some(block));
        for cut in 0..bytes.len() {
            assert_eq!(Block::decode(&bytes[..cut]), None);
        }
    }

    #[test]
    fn segments_out_of_order_or_too_far_apart_are_refused() {
        let decoded = |ids: [u64; 2]| {
            let block = Block {
                at: Frontier::default(),
                next_segment: 3 + SEGMENT_SPAN_MAX,
                next_table: 1,
                tables: Vec::new(),
                usages: ids.map(|id| (id, SegmentUsage::default())).to_vec(),
            };
            Block::decode(&block.encode())
        };
        assert!(decoded([9, 3]).is_none() && decoded([3, 3]).is_none());
        assert!(decoded([3, 3 + SEGMENT_SPAN_MAX]).is_none());
        assert!(decoded([3, 2 + SEGMENT_SPAN_MAX]).is_some());
        assert!(
            decoded([4, 3 + SEGMENT_SPAN_MAX]).is_none(),
            "reaches next_segment"
        );
    }

    #[test]
    fn counters_that_could_not_go_on_are_refused() {
        let decoded = |sequence, next_segment| {
            let block = Block {
                at: Frontier {
                    sequence,
                    ..Frontier::default()
                },
                next_segment,
                next_table: 1,
                tables: Vec::new(),
                usages: Vec::new(),
            };
            Block::decode(&block.encode()).is_some()
        };
        assert!(decoded(COUNTER_LIMIT - 1, SEGMENT_ID_LIMIT - 1));
        assert!(!decoded(COUNTER_LIMIT, 1) && !decoded(1, SEGMENT_ID_LIMIT));
    }

    #[test]
    fn images_are_told_apart_by_database_and_generation() {
        let seed = |database, generation| Head::image_seed(DatabaseId([database; 16]), generation);
        assert!(seed(1, 1) != seed(2, 1) && seed(1, 1) != seed(1, 2));
    }
}
