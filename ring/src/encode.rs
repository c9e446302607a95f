//! The encoding of a whole ring as bytes, version 1. Numbers are little-endian, without padding.
//! Every ring has exactly one encoding, which ends with the ring's digest.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "IMT-RING"
//!      8     2  version, 1
//!     10     1  slot bits, 4 to 16
//!     11     1  replication, 1 to 8
//!     12     1  key hash: 1 XXH3-64, 2 SipHash-1-3
//!     13     1  reserved, 0
//!     14     2  number of members
//!     16     4  number of pinned slots
//!     20     4  length of all, digest included
//!     24     8  epoch
//!     32    16  XXH3-64: seed (8), zeros (8); SipHash-1-3: its key
//!     48     -  members by name: length (1), name, weight (4), length of zone (1, 0 if none), zone
//!      -     -  pinned slots, ascending: slot (4)
//!      -     -  a column for each replica: number of runs (4), then
//!               runs: slots (4), node (2); or if the number is 0, for each slot the node (2)
//!    end    16  XXH3-128 (seed 0) of all bytes before
//! ```
//!
//! A node is stored as the index of its member; 65,535 marks an empty cell. A column is written as
//! runs if and only if runs are shorter.

use alloc::vec::Vec;
use core::fmt;

use crate::ring::{NONE, Node};
use crate::{Digest, Epoch, Error, KeyHash, Member, NodeName, Options, Ring, Slot, ZoneName};
use crate::{MEMBERS_MAX, SLOTS_MAX};

const MAGIC: &[u8; 8] = b"IMT-RING";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 48;
const DIGEST_BYTES: usize = 16;
const RUN_BYTES: usize = 6;
const CELL_BYTES: usize = 2;
const _: () = assert!(HEADER_BYTES == 8 + 2 + 1 + 1 + 1 + 1 + 2 + 4 + 4 + 8 + 16);
const _: () = assert!(DIGEST_BYTES == size_of::<u128>());
const _: () = assert!(RUN_BYTES == size_of::<u32>() + size_of::<Node>() && CELL_BYTES == size_of::<Node>());

/// The error for bytes that are not an encoded ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Name of the wrong field.
    pub field: &'static str,
    /// Offset in the bytes at which the fault was found. It may be behind the wrong field.
    pub offset: usize,
    /// The reason why the field is wrong, such as `must be 0`.
    pub problem: &'static str,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.field, self.offset, self.problem)
    }
}

impl core::error::Error for DecodeError {}

/// Returns the encoding of a ring without the digest at its end.
pub(crate) fn content(ring: &Ring) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(HEADER_BYTES + ring.members.len() * 16 + ring.cells.len() * CELL_BYTES + 64);
    let (code, secret) = match ring.options.key_hash {
        KeyHash::Xxh3 { seed } => (1, u128::from(seed).to_le_bytes()),
        KeyHash::SipHash13 { key } => (2, key),
    };
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[
        ring.options.slots.trailing_zeros() as u8,
        ring.options.replication,
        code,
        0,
    ]);
    out.extend_from_slice(&(ring.members.len() as u16).to_le_bytes());
    out.extend_from_slice(&(ring.pins.len() as u32).to_le_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&ring.epoch.0.to_le_bytes());
    out.extend_from_slice(&secret);
    for member in &ring.members {
        let zone = member.zone().map_or("", ZoneName::as_str);
        out.push(member.name().as_str().len() as u8);
        out.extend_from_slice(member.name().as_str().as_bytes());
        out.extend_from_slice(&member.weight().to_le_bytes());
        out.push(zone.len() as u8);
        out.extend_from_slice(zone.as_bytes());
    }
    for pin in &ring.pins {
        out.extend_from_slice(&pin.0.to_le_bytes());
    }
    for column in ring.cells.chunks_exact(ring.options.slots as usize) {
        push_column(&mut out, column);
    }
    let length = (out.len() + DIGEST_BYTES) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    out
}

fn push_column(out: &mut Vec<u8>, column: &[Node]) {
    // Counts changes between neighbours in a loop that compilers vectorise.
    let changes = column.iter().zip(&column[1..]).filter(|(a, b)| a != b);
    let count = changes.count() + 1;
    if count * RUN_BYTES < column.len() * CELL_BYTES {
        out.extend_from_slice(&(count as u32).to_le_bytes());
        for run in column.chunk_by(|a, b| a == b) {
            out.extend_from_slice(&(run.len() as u32).to_le_bytes());
            out.extend_from_slice(&run[0].to_le_bytes());
        }
    } else {
        out.extend_from_slice(&[0; 4]);
        let start = out.len();
        out.resize(start + column.len() * CELL_BYTES, 0);
        let (bytes, _) = out[start..].as_chunks_mut::<CELL_BYTES>();
        for (bytes, node) in bytes.iter_mut().zip(column) {
            *bytes = node.to_le_bytes();
        }
    }
}

pub(crate) fn encode(ring: &Ring) -> Vec<u8> {
    let mut out = content(ring);
    out.extend_from_slice(&ring.digest().0.to_le_bytes());
    out
}

/// Reads fields from the front of a byte string and counts their offsets.
struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, field: &'static str, problem: &'static str) -> DecodeError {
        DecodeError {
            field,
            offset: self.offset,
            problem,
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or(self.error(field, "the bytes end in it"))?;
        self.bytes = rest;
        self.offset += N;
        Ok(*head)
    }

    fn slice(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .bytes
            .split_at_checked(length)
            .ok_or(self.error(field, "the bytes end in it"))?;
        self.bytes = rest;
        self.offset += length;
        Ok(head)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let length = usize::from(self.u8(field)?);
        let bytes = self.slice(field, length)?;
        core::str::from_utf8(bytes).map_err(|_| self.error(field, "is not text"))
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Ring, DecodeError> {
    let mut reader = Reader { bytes, offset: 0 };
    if reader.array::<8>("magic")? != *MAGIC {
        return Err(DecodeError {
            field: "magic",
            offset: 0,
            problem: "these bytes are not a ring",
        });
    }
    if reader.u16("version")? != VERSION {
        return Err(reader.error(
            "version",
            "was written by another release; this one reads version 1",
        ));
    }
    // The digest is checked before the fields behind the version, so that damage is reported as
    // damage. The later checks detect mistakes of the program that wrote the bytes.
    let content = check_digest(bytes)?;
    reader.bytes = content.get(reader.offset..).unwrap_or_default();
    let slot_bits = reader.u8("slot bits")?;
    let slots = 1u32.checked_shl(u32::from(slot_bits)).unwrap_or(0);
    let options = Options::new().slots(slots).replication(reader.u8("replication")?);
    let key_hash_code = reader.u8("key hash")?;
    if reader.u8("reserved")? != 0 {
        return Err(reader.error("reserved", "must be 0"));
    }
    let members = usize::from(reader.u16("number of members")?);
    let pins = reader.u32("number of pinned slots")?;
    let length = reader.u32("length")?;
    let epoch = Epoch(reader.array("epoch").map(u64::from_le_bytes)?);
    let secret: [u8; 16] = reader.array("hash key")?;
    let key_hash = match key_hash_code {
        1 => u64::try_from(u128::from_le_bytes(secret))
            .map(|seed| KeyHash::Xxh3 { seed })
            .map_err(|_| reader.error("hash key", "must be 0 behind the seed"))?,
        2 => KeyHash::SipHash13 { key: secret },
        _ => return Err(reader.error("key hash", "is neither 1 nor 2")),
    };
    let options = options.key_hash(key_hash);
    options
        .check()
        .map_err(|_| reader.error("options", "slots or replication are out of their limits"))?;
    if members > MEMBERS_MAX || pins > SLOTS_MAX || length as usize != bytes.len() {
        return Err(reader.error(
            "length",
            "does not fit the bytes, or there are too many members or pins",
        ));
    }
    let members = read_members(&mut reader, members)?;
    let pins = (0..pins)
        .map(|_| reader.u32("pinned slot").map(Slot))
        .collect::<Result<Vec<_>, _>>()?;
    let mut cells = Vec::with_capacity(slots as usize * usize::from(options.replication));
    for _ in 0..options.replication {
        read_column(&mut reader, slots, &mut cells)?;
    }
    if !reader.bytes.is_empty() {
        return Err(reader.error("digest", "there are bytes between the assignment and it"));
    }
    let problem = |error| match error {
        Error::BadMove { reason, .. } => reason,
        Error::DuplicateMember { .. } => "a member is there twice",
        Error::NoWeight => "no member has a weight",
        _ => "it is out of its limits",
    };
    let ring = Ring::from_parts(options, epoch, members, cells, pins)
        .map_err(|error| reader.error("assignment", problem(error)))?;
    if encode(&ring) != bytes {
        return Err(reader.error("assignment", "is not written in the one form that it has"));
    }
    Ok(ring)
}

/// Returns the bytes before the digest. Fails if the digest is missing or does not match these
/// bytes.
fn check_digest(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let wrong = |problem| DecodeError {
        field: "digest",
        offset: bytes.len().saturating_sub(DIGEST_BYTES),
        problem,
    };
    let (content, digest) = bytes
        .split_last_chunk::<DIGEST_BYTES>()
        .ok_or(wrong("the bytes end before it"))?;
    if Digest::of(content) != Digest(u128::from_le_bytes(*digest)) {
        return Err(wrong("does not match: the bytes are damaged or cut short"));
    }
    Ok(content)
}

fn read_members(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Member>, DecodeError> {
    let mut members: Vec<Member> = Vec::with_capacity(count);
    for _ in 0..count {
        let name = reader.text("member name")?;
        let name = NodeName::new(name).map_err(|_| reader.error("member name", "is not a name"))?;
        let weight = reader.u32("member weight")?;
        let zone = match reader.text("member zone")? {
            "" => None,
            zone => Some(ZoneName::new(zone).map_err(|_| reader.error("member zone", "is not a name"))?),
        };
        if members.last().is_some_and(|last| *last.name() >= name) {
            return Err(reader.error("member name", "is not in order"));
        }
        let member = Member::from_parts(name, weight, zone);
        members.push(member.map_err(|_| reader.error("member weight", "is above the limit"))?);
    }
    Ok(members)
}

fn read_column(reader: &mut Reader<'_>, slots: u32, cells: &mut Vec<Node>) -> Result<(), DecodeError> {
    let runs = reader.u32("number of runs")?;
    if runs == 0 {
        let column = reader.slice("nodes", slots as usize * CELL_BYTES)?;
        cells.extend(
            column
                .as_chunks::<CELL_BYTES>()
                .0
                .iter()
                .map(|node| Node::from_le_bytes(*node)),
        );
        return Ok(());
    }
    let mut left = slots;
    for _ in 0..runs {
        let length = reader.u32("run length")?;
        let node = reader.u16("run node")?;
        left = match left.checked_sub(length) {
            Some(left) if length > 0 => left,
            _ => return Err(reader.error("run length", "is 0, or goes beyond the last slot")),
        };
        cells.extend(core::iter::repeat_n(node, length as usize));
    }
    match left {
        0 => Ok(()),
        _ => Err(reader.error("number of runs", "the runs end before the last slot")),
    }
}

const _: () = assert!(NONE == 65_535, "the format says so");
