//! The records of one frame, encoded before the commit lock is taken.
//!
//! - A body is the sequence of records of one frame, with their content checksums.
//! - Each checksum is masked under the commit lock, once the position of its record in the log is
//!   known. The mask ties the checksum to that position (see `format::checksum`).
//!
//! Deliberately absent: the frame header, which `log` writes.

use crate::directory::KeyHash;
use crate::error::{Error, Result};
use crate::format::checksum::{self, SegmentMask};
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::format::record::{self, RECORD_CRC_BYTES, RecordKind};
use crate::format::{BATCH_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::raw::prefetch::prefetch;

/// Distance, in operations, at which the search for duplicate keys prefetches entries of its hash
/// table into the processor's cache.
const PLACE_AHEAD: usize = 16;

/// One record of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) kind: RecordKind,
    /// Index of the record's table in the list of tables of the commit.
    pub(crate) table: u32,
    /// Offset of the record in the body. `bytes` is the length of the record.
    pub(crate) at: u32,
    pub(crate) bytes: u32,
    /// Offset of the key in the record. `key_bytes` is the length of the key.
    pub(crate) key_at: u16,
    pub(crate) key_bytes: u16,
    /// Content checksum of the record, before it is masked.
    pub(crate) crc: u32,
    pub(crate) hash: KeyHash,
    /// `true` if a later record of the commit has the same table and key.
    pub(crate) superseded: bool,
}

/// The encoded records of one frame, and one `Op` for each of them.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ops: Vec<Op>,
}

impl Body {
    /// Returns `true` if the body ends with a clear marker. Of all commits, only those that clear
    /// or drop tables contain clear markers.
    pub(crate) fn frees_space(&self) -> bool {
        self.ops.last().is_some_and(|op| op.kind == RecordKind::Clear)
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ops.clear();
    }

    /// Adds a record. `table` is the index of the table in the commit, `table_id` its id. Fails
    /// with [`Error::TooLarge`] and adds nothing if the key, the value or the body would be too
    /// large.
    pub(crate) fn push(
        &mut self,
        kind: RecordKind,
        (table, table_id): (u32, u32),
        hash: KeyHash,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        limit("key", key.len(), KEY_BYTES_MAX)?;
        limit("value", value.len(), VALUE_BYTES_MAX)?;
        let at = self.bytes.len();
        limit(
            "batch",
            at + key.len() + value.len() + 24 + FRAME_HEADER_BYTES as usize,
            BATCH_BYTES_MAX,
        )?;
        let crc = record::encode(kind, table_id, key, value, &mut self.bytes);
        let bytes = self.bytes.len() - at;
        self.ops.push(Op {
            kind,
            table,
            at: at as u32,
            bytes: bytes as u32,
            key_at: (bytes - key.len() - value.len()) as u16,
            key_bytes: key.len() as u16,
            crc,
            hash,
            superseded: false,
        });
        Ok(())
    }

    /// Marks each operation that is followed by another operation on the same key. No directory
    /// ever points to the record of a marked operation.
    pub(crate) fn mark_superseded(&mut self) {
        if self.ops.len() < 2 {
            return;
        }
        // `seen` is a hash table with linear probing, at most half full. An entry is the index of
        // an operation plus one; 0 is an empty entry. Hashes of keys use a secret seed, so their
        // low bits are evenly distributed.
        let places = (2 * self.ops.len()).next_power_of_two();
        let mut seen = vec![0_u32; places];
        let place = |op: &Op| (op.hash.0 as usize).wrapping_add(op.table as usize) & (places - 1);
        for index in (0..self.ops.len()).rev() {
            if let Some(ahead) = index.checked_sub(PLACE_AHEAD) {
                prefetch(&raw const seen[place(&self.ops[ahead])]);
            }
            let op = self.ops[index];
            let mut at = place(&op);
            while let Some(later) = seen[at].checked_sub(1) {
                let later = &self.ops[later as usize];
                if (later.hash, later.table) == (op.hash, op.table) && self.key(later) == self.key(&op) {
                    self.ops[index].superseded = true;
                    break;
                }
                at = (at + 1) & (places - 1);
            }
            if !self.ops[index].superseded {
                seen[at] = index as u32 + 1;
            }
        }
    }

    /// Returns the key of a record of this body.
    #[inline]
    pub(crate) fn key(&self, op: &Op) -> &[u8] {
        let start = op.at as usize + usize::from(op.key_at);
        &self.bytes[start..start + usize::from(op.key_bytes)]
    }

    /// Masks the checksum of each record with the record's position in the log. `offset` is the
    /// offset that the body will have in its segment.
    pub(crate) fn mask(&mut self, mask: SegmentMask, offset: u32) {
        for op in &self.ops {
            let at = op.at as usize;
            let crc = op.crc ^ mask.at(offset + op.at);
            self.bytes[at..at + RECORD_CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
    }

    /// Returns the checksum over the content checksums of the records, in order.
    pub(crate) fn crc(&self) -> u32 {
        // 64 checksums are hashed per call, because a call takes longer than hashing four bytes.
        let mut piece = [0; 64 * size_of::<u32>()];
        self.ops.chunks(64).fold(0, |crc, ops| {
            for (bytes, op) in piece.chunks_exact_mut(size_of::<u32>()).zip(ops) {
                bytes.copy_from_slice(&op.crc.to_le_bytes());
            }
            checksum::crc_append(crc, &piece[..size_of_val(&ops[0].crc) * ops.len()])
        })
    }
}

pub(crate) fn limit(what: &'static str, bytes: usize, bytes_max: usize) -> Result<()> {
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(Error::TooLarge {
        what,
        bytes: bytes as u64,
        bytes_max: bytes_max as u64,
    })
}
