//! The directory in a checkpoint: chunks in their memory layout, and a table with their positions
//! and checksums.
//!
//! ```text
//! image = chunk, chunk, .., table          each chunk at a multiple of 64 in the file
//!
//! chunk  | buckets, 64 bytes each: eight slots, little-endian (see `slot.rs`)
//!        | extra bytes, 0, 1 or 2 for each slot (see `chunk.rs`; given by buckets and depth)
//!        | zeros up to a multiple of 64
//!
//! table  | header | chunk entries, in order of their hashes | stash entries |
//! ```
//!
//! - An open reads only the table, which has about a thousandth of the size of a large image.
//! - A chunk is used in place from the map. Its checksum is verified at the first access, and again
//!   when the chunk is copied, for a change or for the next checkpoint. So damage that exists at
//!   the first access is reported, and damage is never copied.
//! - Checksums are CRC-32 over the seed of the caller (which depends on the database and the
//!   checkpoint), the offset in the file, and the bytes. So a table of another database or
//!   checkpoint is refused.
//!
//! Deliberately absent: the records to which locations point.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use super::chunk::{Chunk, Source, extra_bytes};
use super::slot::{Location, PREFIX_BITS, Prefix};
use super::view::Parts;
use super::{Damage, Directory, Stash, View};
use crate::raw::buckets::{BUCKET_BYTES, BUCKET_WORDS, Buckets};
use crate::raw::map::Map;

/// Alignment of chunks in the file, in bytes: the size of a cache line.
pub(crate) const IMAGE_ALIGN: u64 = 64;

/// First bytes of the chunk table of an image: "DIR1".
const MAGIC: u32 = u32::from_le_bytes(*b"DIR1");

/// Header of the table of an image:
///
/// | offset | bytes | header field |
/// | --- | --- | --- |
/// | 0 | 4 | magic |
/// | 4 | 4 | checksum of the rest of the table |
/// | 8 | 4 | number of chunks |
/// | 12 | 4 | number of stash entries |
/// | 16 | 8 | number of keys |
pub(super) const HEADER_BYTES: usize = 4 + 4 + 4 + 4 + 8;

/// Entry of a chunk in the table of an image:
///
/// | offset | bytes | chunk entry field |
/// | --- | --- | --- |
/// | 0 | 8 | offset in the file, a multiple of 64 |
/// | 8 | 4 | path: the leading bits of the chunk's hashes |
/// | 12 | 4 | depth: number of these bits |
/// | 16 | 4 | buckets |
/// | 20 | 4 | keys |
/// | 24 | 4 | checksum of the chunk |
/// | 28 | 4 | zero |
const ENTRY_BYTES: usize = 8 + 6 * 4;

/// Size of a stash entry in bytes: prefix and location.
const STASH_ENTRY_BYTES: usize = 8 + 8;

const _: () = assert!(HEADER_BYTES == 24 && ENTRY_BYTES == 32);

/// Maximum number of buckets of a chunk, as in `grow.rs`.
const BUCKETS_MAX: u32 = 1 << 16;
/// Maximum depth of a chunk, as in `grow.rs`.
const DEPTH_MAX: u32 = 24;

/// Position of the table of an image in the file. An image is opened by its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ImageTable {
    /// Offset of the table in the file.
    pub(crate) offset: u64,
    /// Length of the table in bytes. The image ends with the table.
    pub(crate) bytes: u64,
}

/// Reason why an image could not be written.
#[derive(Debug)]
pub(crate) enum EncodeError {
    /// Writing to the output failed.
    Io(io::Error),
    /// A chunk that is to be copied from an older checkpoint is damaged.
    Damage(Damage),
}

impl From<io::Error> for EncodeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Damage> for EncodeError {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

/// Returns the checksum of `bytes`, which are at `offset` in the file. The checksum also covers
/// `seed` and `offset`.
fn checksum(seed: u32, offset: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&offset.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Stores the checksum of an image's table in the header of the table.
pub(crate) fn seal(table: &mut [u8], offset: u64, seed: u32) {
    let crc = checksum(seed, offset, &table[8..]);
    table[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Corrects the checksums of an image's chunks and of its table, so that fuzzing reaches the code
/// behind these checks.
#[cfg(feature = "fuzzing")]
pub(crate) fn repair_image(bytes: &mut [u8], image: ImageTable, seed: u32) {
    let place = usize::try_from(image.offset)
        .ok()
        .zip(usize::try_from(image.bytes).ok());
    let Some((at, end)) = place.and_then(|(at, len)| Some((at, at.checked_add(len)?))) else {
        return;
    };
    if end > bytes.len() || end - at < HEADER_BYTES {
        return;
    }
    for entry in (at + HEADER_BYTES..end).step_by(ENTRY_BYTES) {
        let Some(fields) = bytes
            .get(entry..entry + ENTRY_BYTES)
            .and_then(<[u8]>::first_chunk::<ENTRY_BYTES>)
        else {
            break;
        };
        let offset = u64::from_le_bytes(part(fields, 0));
        let [depth, buckets] = [12, 16].map(|at| u32::from_le_bytes(part(fields, at)));
        if buckets > BUCKETS_MAX || depth > DEPTH_MAX {
            continue;
        }
        let chunk = usize::try_from(offset).ok().and_then(|start| {
            let len = image_bytes(buckets as usize, depth as u8);
            bytes.get(start..start.checked_add(len)?)
        });
        if let Some(crc) = chunk.map(|chunk| checksum(seed, offset, chunk)) {
            bytes[entry + 24..entry + 28].copy_from_slice(&crc.to_le_bytes());
        }
    }
    seal(&mut bytes[at..end], image.offset, seed);
}

/// Returns the size of a chunk in the image, in bytes, with padding.
fn image_bytes(buckets: usize, depth: u8) -> usize {
    let extras = buckets * BUCKET_WORDS * usize::from(extra_bytes(buckets, depth));
    (buckets * BUCKET_BYTES + extras).next_multiple_of(IMAGE_ALIGN as usize)
}

impl Source {
    /// Verifies that the bytes of the chunk in the map are as they were written.
    ///
    /// # Errors
    /// If the checksum is wrong.
    pub(super) fn verify(&self, buckets: usize, depth: u8) -> Result<(), Damage> {
        let (offset, expected) = (self.offset, u64::from(self.crc));
        let (at, len) = (offset as usize, image_bytes(buckets, depth));
        // In a map without read-ahead, requests all pages of the chunk from the disk at once.
        // Otherwise the checksum would wait for each page in turn.
        self.map.will_need(at, len);
        let bytes = self.map.get(at, len).unwrap_or_default();
        let found = u64::from(checksum(self.seed, offset, bytes));
        if found == expected {
            Ok(())
        } else {
            Err(Damage {
                offset,
                field: "chunk checksum",
                expected,
                found,
            })
        }
    }

    /// Returns the extra bytes that follow the buckets.
    pub(super) fn extras(&self, buckets: usize, depth: u8) -> &[u8] {
        let len = buckets * BUCKET_WORDS * usize::from(extra_bytes(buckets, depth));
        self.map
            .get(self.offset as usize + buckets * BUCKET_BYTES, len)
            .unwrap_or_default()
    }
}

impl View {
    /// Writes the image of this view, which begins at offset `start` of the file. Returns the
    /// position of its table. Each chunk is released once it is written. If the writer of the
    /// directory changes a chunk during the call, it works on a copy, so both versions are in
    /// memory until the version of the view is written.
    ///
    /// # Errors
    /// The errors of `out`, and damage of a chunk in an older checkpoint.
    ///
    /// # Panics
    /// If `start` is not a multiple of [`IMAGE_ALIGN`], which is a bug of the caller.
    pub(crate) fn encode(
        self,
        out: &mut dyn Write,
        start: u64,
        seed: u32,
    ) -> Result<ImageTable, EncodeError> {
        assert!(
            start.is_multiple_of(IMAGE_ALIGN),
            "an image cannot begin at offset {start}"
        );
        let mut offset = start;
        let mut table = vec![0; HEADER_BYTES];
        let mut bytes = Vec::new();
        let Parts {
            chunks,
            stash,
            keys,
            // The token is kept until the last chunk is written. While it exists, the directory
            // copies shared chunks before changing them.
            token: _token,
        } = self.into_parts();
        let chunk_count = chunks.len() as u32;
        for chunk in chunks {
            chunk.verify_again()?;
            bytes.clear();
            chunk.write_to(&mut bytes);
            chunk.verify_if_cut()?;
            bytes.resize(image_bytes(chunk.bucket_count(), chunk.depth()), 0);
            out.write_all(&bytes)?;
            table.extend(offset.to_le_bytes());
            let crc = checksum(seed, offset, &bytes);
            let (buckets, in_chunk) = (chunk.bucket_count() as u32, chunk.keys() as u32);
            for field in [chunk.path(), chunk.depth().into(), buckets, in_chunk, crc, 0] {
                table.extend(field.to_le_bytes());
            }
            offset += bytes.len() as u64;
        }
        for (prefix, location) in &*stash {
            table.extend(prefix.0.to_le_bytes());
            table.extend(location.to_bits().to_le_bytes());
        }
        table[..4].copy_from_slice(&MAGIC.to_le_bytes());
        table[8..12].copy_from_slice(&chunk_count.to_le_bytes());
        table[12..16].copy_from_slice(&(stash.len() as u32).to_le_bytes());
        table[16..24].copy_from_slice(&keys.to_le_bytes());
        seal(&mut table, offset, seed);
        out.write_all(&table)?;
        Ok(ImageTable {
            offset,
            bytes: table.len() as u64,
        })
    }
}

impl Directory {
    /// Opens an image in place. `map` is the whole file. `table` is the result of [`View::encode`],
    /// and `seed` is the seed of that call. Reads only the table.
    ///
    /// # Errors
    /// If the table is damaged. A damaged chunk is found at its first access.
    pub(crate) fn from_image(map: &Arc<Map>, table: ImageTable, seed: u32) -> Result<Self, Damage> {
        let fields = Fields::of(map, table, seed)?;
        let mut chunks = Vec::with_capacity(fields.entries.len());
        let depth = fields
            .entries
            .iter()
            .map(|entry| u32::from_le_bytes(part(entry, 12)))
            .max()
            .unwrap_or(0);
        // Limits the root, so that a forged table cannot require unbounded memory.
        let root_max = (fields.entries.len() as u64 * 64).max(1 << 16);
        if depth > DEPTH_MAX || 1 << depth > root_max {
            return Err(fields.damage("depth", root_max, depth.into()));
        }
        let mut covered = 0;
        for entry in fields.entries {
            let chunk = fields.chunk(map, entry, seed)?;
            let width = depth - u32::from(chunk.depth());
            if u64::from(chunk.path()) << width != covered {
                return Err(fields.damage("path", covered, u64::from(chunk.path()) << width));
            }
            covered += 1 << width;
            chunks.push(Arc::new(chunk));
        }
        if covered != 1 << depth {
            return Err(fields.damage("hashes covered", 1 << depth, covered));
        }
        let stash = fields
            .stash
            .iter()
            .map(|entry| fields.stashed(entry))
            .collect::<Result<Stash, Damage>>()?;
        let directory = Self::of_chunks(depth as u8, chunks, stash);
        if directory.len() != fields.keys {
            return Err(fields.damage("keys", fields.keys, directory.len()));
        }
        Ok(directory)
    }
}

/// Returns the `N` bytes at `offset` of the header or of an entry of the table.
fn part<const N: usize, const LEN: usize>(entry: &[u8; LEN], offset: usize) -> [u8; N] {
    std::array::from_fn(|i| entry[offset + i])
}

/// The parsed table of an image. Its checksum and lengths are valid.
struct Fields<'a> {
    table: ImageTable,
    keys: u64,
    entries: &'a [[u8; ENTRY_BYTES]],
    stash: &'a [[u8; STASH_ENTRY_BYTES]],
}

impl<'a> Fields<'a> {
    fn of(map: &'a Map, table: ImageTable, seed: u32) -> Result<Self, Damage> {
        let damage = |field, expected, found| Damage {
            offset: table.offset,
            field,
            expected,
            found,
        };
        let end = table.offset.saturating_add(table.bytes);
        let in_map = usize::try_from(table.offset)
            .ok()
            .zip(usize::try_from(table.bytes).ok());
        let bytes = in_map.and_then(|(offset, len)| map.get(offset, len));
        let bytes = bytes.ok_or(damage("end of the directory table", map.len() as u64, end))?;
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(damage(
                "directory table bytes",
                HEADER_BYTES as u64,
                bytes.len() as u64,
            ));
        };
        let magic = u32::from_le_bytes(part(header, 0));
        if magic != MAGIC {
            return Err(damage("directory table magic", MAGIC.into(), magic.into()));
        }
        let expected = u32::from_le_bytes(part(header, 4));
        let found = checksum(seed, table.offset, &bytes[8..]);
        if found != expected {
            return Err(damage("directory table checksum", expected.into(), found.into()));
        }
        let chunks = u64::from(u32::from_le_bytes(part(header, 8)));
        let stashed = u64::from(u32::from_le_bytes(part(header, 12)));
        let expected = chunks * ENTRY_BYTES as u64 + stashed * STASH_ENTRY_BYTES as u64;
        if chunks == 0 || expected != rest.len() as u64 {
            return Err(damage("directory table entries", expected, rest.len() as u64));
        }
        let (entries, stash) = rest.split_at(chunks as usize * ENTRY_BYTES);
        let keys = u64::from_le_bytes(part(header, 16));
        Ok(Self {
            table,
            keys,
            entries: entries.as_chunks().0,
            stash: stash.as_chunks().0,
        })
    }

    fn damage(&self, field: &'static str, expected: u64, found: u64) -> Damage {
        Damage {
            offset: self.table.offset,
            field,
            expected,
            found,
        }
    }

    fn chunk(&self, map: &Arc<Map>, entry: &[u8; ENTRY_BYTES], seed: u32) -> Result<Chunk, Damage> {
        let offset = u64::from_le_bytes(part(entry, 0));
        let [path, depth, buckets, keys, crc, zero] =
            [8, 12, 16, 20, 24, 28].map(|at| u32::from_le_bytes(part(entry, at)));
        if buckets == 0 || buckets > BUCKETS_MAX {
            return Err(self.damage("buckets", BUCKETS_MAX.into(), buckets.into()));
        }
        let slots = u64::from(buckets) * BUCKET_WORDS as u64;
        if u64::from(keys) > slots {
            return Err(self.damage("keys of a chunk", slots, keys.into()));
        }
        if zero != 0 {
            return Err(self.damage("reserved field of a chunk", 0, zero.into()));
        }
        let len = image_bytes(buckets as usize, depth as u8);
        let place = usize::try_from(offset)
            .ok()
            .filter(|offset| map.get(*offset, len).is_some());
        let mapped = place.and_then(|offset| Buckets::mapped(map, offset, buckets as usize));
        let mapped = mapped.ok_or(self.damage("chunk offset", map.len() as u64, offset))?;
        let source = Source {
            map: map.clone(),
            offset,
            crc,
            seed,
            prepared: OnceLock::new(),
        };
        Ok(Chunk::mapped(path, depth as u8, mapped, keys, source))
    }

    fn stashed(&self, entry: &[u8; STASH_ENTRY_BYTES]) -> Result<(Prefix, Location), Damage> {
        let (prefix, location) = (
            u64::from_le_bytes(part(entry, 0)),
            u64::from_le_bytes(part(entry, 8)),
        );
        let valid = Location::from_bits(location).filter(|_| prefix >> PREFIX_BITS == 0);
        valid
            .map(|location| (Prefix(prefix), location))
            .ok_or(self.damage("stash entry", prefix, location))
    }
}
