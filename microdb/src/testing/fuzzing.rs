//! Entry points for the fuzzers of `fuzz/`: targets, which pass arbitrary bytes to the parsers of
//! the format, and helpers of tests.
//!
//! - Compiled only with the feature `fuzzing`, and not part of the interface.
//! - A parser may refuse bytes. It must not panic or allocate without bound. Most targets also
//!   compare accepted bytes, or the values decoded from them, with a new encoding.
//! - Hardly any random bytes have a valid checksum. So most targets parse their bytes unchanged,
//!   and again with corrected checksums, as a forger would write them. [`repair_super`],
//!   [`repair_segment`] and [`repair_checkpoint`] correct the checksums of whole files.

use std::sync::Arc;

use crate::directory::{Directory, ImageTable, KeyHash, repair_image, seal as seal_table};
use crate::format::checkpoint::{Block, HEAD_BYTES, Head};
use crate::format::checksum::{self, SegmentMask};
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, FrameKind};
use crate::format::record::{RECORD_CRC_BYTES, Record};
use crate::format::seal::Seal;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::{
    HINT_BYTES, HINT_OFFSETS, STATE_BLOCK_BYTES, STATE_OFFSETS, State, decode_hint, encode_hint,
};
use crate::format::{DatabaseId, VARINT_BYTES_MAX, varint_decode, varint_encode};
use crate::raw::epoch::pin;
use crate::raw::map::Map;

/// Runs `child` in a forked process, for tests that fork. Returns the process id, or -1 if the fork
/// failed.
pub fn fork(child: impl FnOnce() -> bool) -> i32 {
    crate::raw::fork::fork(child)
}

/// Waits for a child of [`fork`]. Returns `true` if its closure returned `true`.
#[must_use]
pub fn wait(child: i32) -> bool {
    crate::raw::fork::wait(child)
}

/// Database id that the parsers expect in the bytes.
const DATABASE: DatabaseId = DatabaseId([7; 16]);
/// Offset in the segment that is assumed for a frame or record without a segment.
const OFFSET: u32 = 4096;

/// Parses `bytes` as a state block of SUPER, and as a hint.
pub fn super_block(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(state) = State::decode(bytes) {
            let again = State::decode(&state.encode());
            assert_eq!(
                again.as_ref(),
                Ok(&state),
                "a state that is read is written the same"
            );
        }
        if let Some((counter, frontier)) = decode_hint(bytes, DATABASE) {
            assert_eq!(
                decode_hint(&encode_hint(DATABASE, counter, &frontier), DATABASE),
                Some((counter, frontier))
            );
        }
    };
    check(bytes);
    let mut repaired = bytes.to_vec();
    repair_state(&mut repaired);
    check(&repaired);
    repair_hint(&mut repaired, DATABASE);
    check(&repaired);
}

/// Parses the header of a segment.
pub fn segment_header(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(header) = SegmentHeader::decode(bytes, DATABASE, 1) {
            assert_eq!(
                (header.database, header.id),
                (DATABASE, 1),
                "the header of the requested segment"
            );
        }
    };
    check(bytes);
    let mut repaired = bytes.to_vec();
    repair_segment_header(&mut repaired, DATABASE, 1);
    check(&repaired);
}

/// Parses the header of a frame.
pub fn frame_header(bytes: &[u8]) {
    let mask = SegmentMask::new(DATABASE, 1);
    let check = |bytes: &[u8]| {
        if let Ok(header) = FrameHeader::decode(bytes, mask, OFFSET) {
            let len = FRAME_HEADER_BYTES as usize;
            assert_eq!(
                header.encode(mask, OFFSET)[..],
                bytes[..len],
                "decoded bytes are encoded identically"
            );
        }
    };
    check(bytes);
    let mut repaired = bytes.to_vec();
    if let Some(header) = repaired.first_chunk_mut::<{ FRAME_HEADER_BYTES as usize }>() {
        let crc = checksum::crc(&header[8..]) ^ mask.at(OFFSET);
        header[..4].copy_from_slice(&FRAME_MAGIC);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    check(&repaired);
}

/// Parses `bytes` as a record, and as a variable-length number.
pub fn record(bytes: &[u8]) {
    let mask = SegmentMask::new(DATABASE, 1);
    if let Some(record) = Record::parse(bytes) {
        assert!(record.bytes.len() <= bytes.len());
        assert_eq!(record.bytes.len(), record.head.bytes());
        assert_eq!(record.key().len(), record.head.key_bytes);
        assert_eq!(record.value().len(), record.head.value_bytes);
        let _ = record.verify(mask, OFFSET);
    }
    if let Some((value, used)) = varint_decode(bytes) {
        let mut again = Vec::with_capacity(VARINT_BYTES_MAX);
        varint_encode(value, &mut again);
        assert_eq!(again, bytes[..used], "one number, one form");
    }
}

/// Parses the seal of a segment.
pub fn seal(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(seal) = Seal::decode(bytes) {
            assert_eq!(seal.encode(), bytes, "decoded bytes are encoded identically");
            for index in 0..=seal.chunks.len() {
                let range = seal.range(index);
                assert!(range.start <= range.end && range.end <= seal.data_bytes);
            }
        }
    };
    check(bytes);
    let mut repaired = bytes.to_vec();
    if repaired.len() >= 80 {
        let mut root = blake3::Hasher::new();
        root.update(&repaired[..48]).update(&repaired[80..]);
        repaired[48..80].copy_from_slice(root.finalize().as_bytes());
        check(&repaired);
    }
}

/// Opens the image of a directory, as it is in a checkpoint.
pub fn directory_image(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        let map = Arc::new(Map::of_bytes(bytes));
        let table = ImageTable {
            offset: 0,
            bytes: bytes.len() as u64,
        };
        let Ok(directory) = Directory::from_image(&map, table, 0) else {
            return;
        };
        follow(&directory);
    };
    check(bytes);
    let mut repaired = bytes.to_vec();
    if repaired.len() >= 8 {
        seal_table(&mut repaired, 0, 0);
        check(&repaired);
    }
}

/// Opens a whole checkpoint file: head, block, and the directories to which the block refers.
pub fn checkpoint(bytes: &[u8]) {
    let check = |bytes: &[u8]| {
        let Ok(head) = Head::decode(bytes, DATABASE, 1) else {
            return;
        };
        assert_eq!(
            head.encode()[..],
            bytes[..HEAD_BYTES],
            "decoded bytes are encoded identically"
        );
        let Some(block) = block_of(bytes, &head) else {
            return;
        };
        assert_eq!(
            Block::decode(&block.encode()).as_ref(),
            Some(&block),
            "a block that is read is written the same"
        );
        let map = Arc::new(Map::of_bytes(bytes));
        for table in &block.tables {
            let image = ImageTable {
                offset: table.image_offset,
                bytes: table.image_bytes,
            };
            if let Ok(directory) = Directory::from_image(&map, image, Head::image_seed(DATABASE, 1)) {
                follow(&directory);
            }
        }
    };
    check(bytes);
    let mut repaired = bytes.to_vec();
    repair_checkpoint(&mut repaired, DATABASE.0, 1);
    check(&repaired);
}

/// Decodes the block to which the head of a checkpoint refers. Its checksum is not verified.
fn block_of(bytes: &[u8], head: &Head) -> Option<Block> {
    Block::decode(block_bytes(bytes, head)?)
}

fn block_bytes<'a>(bytes: &'a [u8], head: &Head) -> Option<&'a [u8]> {
    let offset = usize::try_from(head.block_offset).ok()?;
    let len = usize::try_from(head.block_bytes).ok()?;
    bytes.get(offset..offset.checked_add(len)?)
}

/// Looks up keys in a directory and iterates over it, as reads do.
fn follow(directory: &Directory) {
    let guard = pin();
    for hash in [0, u64::MAX / 2, u64::MAX] {
        let _ = directory.candidates(&guard, KeyHash(hash)).map(Iterator::count);
    }
    let view = directory.view(&guard);
    let _ = view.iter().take(10_000).filter(Result::is_ok).count();
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn get_u32(bytes: &[u8], at: usize) -> Option<usize> {
    bytes
        .get(at..at + 4)?
        .first_chunk()
        .map(|field| u32::from_le_bytes(*field) as usize)
}

fn repair_state(block: &mut [u8]) {
    let Some(used) = get_u32(block, 16) else { return };
    if let (Some(covered), Some(version)) = (block.get(16..used), block.get(8..12)) {
        let crc = checksum::crc_append(checksum::crc(covered), version);
        put_u32(block, 12, crc);
    }
}

fn repair_hint(block: &mut [u8], database: DatabaseId) {
    if let Some(covered) = block.get(8..HINT_BYTES) {
        let crc = checksum::crc_append(checksum::crc(&database.0), covered);
        put_u32(block, 4, crc);
    }
}

fn repair_segment_header(bytes: &mut [u8], database: DatabaseId, id: u64) {
    if let (Some(covered), Some(version)) = (bytes.get(16..SEGMENT_HEADER_BYTES as usize), bytes.get(8..12)) {
        let crc = checksum::crc_append(checksum::crc(covered), version);
        put_u32(bytes, 12, crc ^ SegmentMask::new(database, id).at(0));
    }
}

/// Corrects the checksums of the states in a SUPER file, and those of its hints if a state is
/// valid. Returns the database id of the first valid state.
pub fn repair_super(bytes: &mut [u8]) -> Option<[u8; 16]> {
    let mut database = None;
    for offset in STATE_OFFSETS {
        let end = bytes.len().min(offset as usize + STATE_BLOCK_BYTES);
        let Some(block) = bytes.get_mut(offset as usize..end) else {
            continue;
        };
        repair_state(block);
        database = database.or(State::decode(block).ok().map(|state| state.database));
    }
    for offset in HINT_OFFSETS {
        if let (Some(database), Some(block)) = (database, bytes.get_mut(offset as usize..)) {
            repair_hint(block, database);
        }
    }
    database.map(|database| database.0)
}

/// Corrects magic, identity and all checksums of checkpoint `generation`: those of the head, the
/// block, the directory tables and their chunks.
pub fn repair_checkpoint(bytes: &mut [u8], database: [u8; 16], generation: u64) {
    let database = DatabaseId(database);
    if bytes.len() < HEAD_BYTES {
        return;
    }
    let offset_of = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
    let mut head = Head {
        database,
        generation,
        block_offset: offset_of(40),
        block_bytes: offset_of(48),
        block_crc: 0,
    };
    head.block_crc = block_bytes(bytes, &head).map_or(0, checksum::crc);
    bytes[..HEAD_BYTES].copy_from_slice(&head.encode());
    let tables = block_of(bytes, &head).map(|block| block.tables);
    for table in tables.unwrap_or_default() {
        let image = ImageTable {
            offset: table.image_offset,
            bytes: table.image_bytes,
        };
        repair_image(bytes, image, Head::image_seed(database, generation));
    }
}

/// Corrects the checksums, record counts, sequences and chains of segment `id`, up to the first
/// frame without its magic bytes or with too large a length. Changes no frame if the header of the
/// segment stays invalid. Changes no record behind one that cannot be parsed, up to the next frame.
pub fn repair_segment(bytes: &mut [u8], database: [u8; 16], id: u64) {
    let database = DatabaseId(database);
    repair_segment_header(bytes, database, id);
    let Ok(header) = SegmentHeader::decode(bytes, database, id) else {
        return;
    };
    let (mask, mut sequence, mut chain) = (header.mask(), header.sequence, header.chain);
    let mut at = SEGMENT_HEADER_BYTES as usize;
    loop {
        let body_at = at + FRAME_HEADER_BYTES as usize;
        let Some(body_bytes) = get_u32(bytes, at + 24) else {
            return;
        };
        if bytes.get(at..at + 4) != Some(&FRAME_MAGIC)
            || bytes.get(body_at..body_at.saturating_add(body_bytes)).is_none()
        {
            return;
        }
        let (mut crc, mut count, mut record_at) = (0, 0u32, body_at);
        while let Some(record) = Record::parse(&bytes[record_at..body_at + body_bytes]) {
            let (content, len) = (record.content_crc(), record.bytes.len().max(RECORD_CRC_BYTES));
            put_u32(bytes, record_at, content ^ mask.at(record_at as u32));
            crc = checksum::crc_append(crc, &content.to_le_bytes());
            count += 1;
            record_at += len;
        }
        put_u32(bytes, at + 12, count);
        put_u32(bytes, at + 28, crc);
        if get_u32(bytes, at + 8) == Some(1) {
            sequence = sequence.wrapping_add(1);
            chain = checksum::chain(chain, sequence, crc, count);
        }
        bytes[at + 16..at + 24].copy_from_slice(&sequence.to_le_bytes());
        bytes[at + 32..at + 40].copy_from_slice(&chain.to_le_bytes());
        let header_crc = checksum::crc(&bytes[at + 8..body_at]) ^ mask.at(at as u32);
        put_u32(bytes, at + 4, header_crc);
        at = body_at + body_bytes;
    }
}

/// Fails to compile when a further kind of frame is added, so that `repair_segment` gets extended.
const _: fn(FrameKind) = |kind| match kind {
    FrameKind::Commit | FrameKind::Relocation => {}
};
