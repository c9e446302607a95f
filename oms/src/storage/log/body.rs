//! The bytes of a log entry (its body): a header with a hash chain, and the rows of a group commit.
//!
//! | field | bytes | meaning |
//! | --- | --- | --- |
//! | version | 1 | 1 |
//! | chain | 16 | XXH3-128 of the previous chain, this entry's number and epoch, the fields below |
//! | count | 4 | number of rows, little-endian |
//! | rows | | in order of their writes; a later row of the same key replaces an earlier one |
//!
//! A row has a byte with the code of its table, then the key and the value, each after its length
//! as a LEB128 varint. The highest bit of the first byte marks a removal, and a removed row has no
//! value.
//!
//! **Invariants**
//! - The chain of an entry depends on every entry before it. If two logs have the same chain at an
//!   entry, they have the same entries up to that entry.
//! - The reader trusts no byte. A wrong length causes an error, never a large allocation.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::error::DecodeError;
use crate::storage::codec::bytes::Reader;
use crate::storage::log::Position;
use crate::storage::write_batch::{Row, Table};

/// A hash over all entries of a log up to one entry.
pub(crate) type Chain = [u8; 16];

const VERSION: u8 = 1;
const CHAIN_AT: usize = 1;
const COUNT_AT: usize = CHAIN_AT + size_of::<Chain>();
/// Size of the header in bytes.
const HEADER_BYTES: usize = COUNT_AT + 4;
/// Number of leading bytes of a body that hold the version and the chain.
pub(crate) const CHAIN_BYTES: usize = COUNT_AT;
/// The bit that marks a removal, in the byte with the code of the table.
const REMOVAL: u8 = 0x80;

/// A body that is being written.
pub(crate) struct BodyWriter {
    bytes: Vec<u8>,
    count: u32,
}

impl BodyWriter {
    /// Creates an empty body with capacity for `row_bytes` bytes of rows.
    pub(crate) fn with_capacity(row_bytes: usize) -> BodyWriter {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + row_bytes);
        bytes.push(VERSION);
        bytes.resize(HEADER_BYTES, 0);
        BodyWriter { bytes, count: 0 }
    }

    /// Appends a row.
    pub(crate) fn add(&mut self, row: &Row<'_>) {
        let removal = if row.value.is_none() { REMOVAL } else { 0 };
        self.bytes.push(row.table as u8 | removal);
        self.blob(row.key);
        if let Some(value) = row.value {
            self.blob(value);
        }
        self.count += 1;
    }

    fn blob(&mut self, bytes: &[u8]) {
        let mut length = bytes.len();
        while length >= 0x80 {
            self.bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        self.bytes.push(length as u8);
        self.bytes.extend_from_slice(bytes);
    }

    /// Completes the body of the entry after `before`, written under `epoch`. Returns the body and
    /// the position of the entry.
    pub(crate) fn seal(mut self, before: &Position, epoch: u64) -> (Bytes, Position) {
        self.bytes[COUNT_AT..HEADER_BYTES].copy_from_slice(&self.count.to_le_bytes());
        let seq = before.seq + 1;
        let chain = chain_of(&before.chain, seq, epoch, &self.bytes[COUNT_AT..]);
        self.bytes[CHAIN_AT..COUNT_AT].copy_from_slice(&chain);
        (self.bytes.into(), Position { seq, epoch, chain })
    }
}

fn chain_of(before: &Chain, seq: u64, epoch: u64, rest: &[u8]) -> Chain {
    let mut hash = Xxh3::new();
    hash.update(before);
    hash.update(&seq.to_le_bytes());
    hash.update(&epoch.to_le_bytes());
    hash.update(rest);
    hash.digest128().to_le_bytes()
}

/// Returns the chain in the leading bytes of a body.
pub(crate) fn chain_in(bytes: &[u8]) -> Result<Chain, DecodeError> {
    let mut header = Reader::new(bytes)?;
    let mut chain = Chain::default();
    chain.copy_from_slice(header.take(size_of::<Chain>(), "a chain")?);
    Ok(chain)
}

/// A body that is being read.
#[derive(Clone, Copy)]
pub(crate) struct Body<'a> {
    bytes: &'a [u8],
    pub(crate) chain: Chain,
    pub(crate) count: u32,
}

impl<'a> Body<'a> {
    /// Reads the header of a body.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Body<'a>, DecodeError> {
        let chain = chain_in(bytes)?;
        let count = bytes.get(COUNT_AT..).and_then(<[u8]>::first_chunk::<4>);
        let count = u32::from_le_bytes(*count.ok_or(DecodeError {
            offset: COUNT_AT,
            expected: "a number of rows",
        })?);
        // A row takes at least two bytes, so a larger count is wrong.
        if count as usize > (bytes.len() - HEADER_BYTES) / 2 {
            return Err(DecodeError {
                offset: COUNT_AT,
                expected: "a number of rows that fit into the body",
            });
        }
        Ok(Body { bytes, chain, count })
    }

    /// Returns `true` if the chain in the header is the chain of an entry after `before`, written
    /// under `epoch`.
    pub(crate) fn follows(&self, before: &Position, epoch: u64) -> bool {
        self.chain == chain_of(&before.chain, before.seq + 1, epoch, &self.bytes[COUNT_AT..])
    }

    /// Passes each row to `take`. Returns the first error of `take`, or an error if the bytes are
    /// not exactly `count` valid rows.
    pub(crate) fn each_row<E: From<DecodeError>>(
        &self,
        mut take: impl FnMut(Row<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = Reader::new(self.bytes)?;
        reader.take(HEADER_BYTES - 1, "a header")?;
        for _ in 0..self.count {
            let code = reader.byte("a table")?;
            let table = Table::of_code(code & !REMOVAL).ok_or_else(|| reader.fault("a known table"))?;
            let key = reader.blob("a key")?;
            let value = if code & REMOVAL == 0 {
                Some(reader.blob("a value")?)
            } else {
                None
            };
            take(Row { table, key, value })?;
        }
        reader.end()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> BodyWriter {
        let mut body = BodyWriter::with_capacity(64);
        let long = [7; 300];
        for (table, key, value) in [
            (Table::Orders, &b"17"[..], Some(&b"row"[..])),
            (Table::Reservations, b"17/4", None),
            (Table::Arriving, b"", Some(&long)),
        ] {
            body.add(&Row { table, key, value });
        }
        body
    }

    fn rows_of(bytes: &[u8]) -> Result<usize, DecodeError> {
        let mut count = 0;
        Body::parse(bytes)?.each_row(|_| {
            count += 1;
            Ok::<_, DecodeError>(())
        })?;
        Ok(count)
    }

    #[test]
    fn a_body_reads_back_as_written_and_not_from_a_part() {
        let (bytes, position) = written().seal(&Position::default(), 3);
        let body = Body::parse(&bytes).unwrap();
        assert_eq!((body.count, position.seq), (3, 1));
        assert!(body.follows(&Position::default(), 3) && body.chain == position.chain);
        let mut read = Vec::new();
        body.each_row(|row| {
            read.push((row.table, row.key.to_vec(), row.value.map(<[u8]>::to_vec)));
            Ok::<_, DecodeError>(())
        })
        .unwrap();
        assert_eq!(read[0], (Table::Orders, b"17".to_vec(), Some(b"row".to_vec())));
        assert_eq!(read[1], (Table::Reservations, b"17/4".to_vec(), None));
        assert_eq!(read[2], (Table::Arriving, Vec::new(), Some(vec![7; 300])));
        for cut in 0..bytes.len() {
            assert!(rows_of(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(rows_of(&longer).is_err());
    }

    /// The bytes of version 1, which must not change, because logs in existing engines have this
    /// layout.
    #[test]
    fn the_layout_of_version_1_is_kept() {
        let before = Position {
            seq: 41,
            epoch: 6,
            chain: [9; 16],
        };
        let mut body = BodyWriter::with_capacity(0);
        for (table, key, value) in [
            (Table::Orders, &b"a"[..], Some(&b"xyz"[..])),
            (Table::Outbox, b"b", None),
        ] {
            body.add(&Row { table, key, value });
        }
        let (bytes, position) = body.seal(&before, 7);
        assert_eq!(bytes[..1], [1]);
        assert_eq!(bytes[1..17], position.chain);
        assert_eq!(bytes[17..], *b"\x02\0\0\0\x00\x01a\x03xyz\x83\x01b");
        assert_eq!(position.chain, GOLDEN_CHAIN);
    }

    const GOLDEN_CHAIN: Chain = [
        236, 59, 11, 149, 198, 170, 227, 76, 202, 105, 194, 4, 178, 185, 149, 95,
    ];

    #[test]
    fn the_chain_covers_place_epoch_rows_and_all_entries_before() {
        let first = Position::default();
        let (bytes, position) = written().seal(&first, 3);
        let body = Body::parse(&bytes).unwrap();
        assert!(!body.follows(&first, 4));
        assert!(!body.follows(&Position { seq: 1, ..first }, 3));
        assert!(!body.follows(
            &Position {
                chain: [1; 16],
                ..first
            },
            3
        ));
        let mut other = bytes.to_vec();
        *other.last_mut().unwrap() ^= 1;
        assert!(!Body::parse(&other).unwrap().follows(&first, 3));
        let (next, _) = BodyWriter::with_capacity(0).seal(&position, 3);
        assert!(Body::parse(&next).unwrap().follows(&position, 3));
        assert!(!Body::parse(&next).unwrap().follows(&first, 3));
    }

    #[test]
    fn a_wrong_count_or_length_is_rejected_without_a_large_allocation() {
        let (bytes, _) = written().seal(&Position::default(), 3);
        for at in [0, 17, 18, 20, 21, 22] {
            let mut wrong = bytes.to_vec();
            wrong[at] = 0xff;
            assert!(rows_of(&wrong).is_err(), "byte {at}");
        }
    }
}
