//! The seal of a complete segment: a BLAKE3 hash of each chunk of 64 KiB, and a root over the
//! hashes.
//!
//! - A seal is a file beside its segment. The segment's file may be a hard link shared with a
//!   backup, so nothing is appended to it. Truncating the segment does not damage its seal.
//! - A seal can be computed again from its segment. A missing or damaged seal is rewritten after
//!   the frames of the segment have been verified.
//!
//! Deliberately absent: signatures.

use super::{DatabaseId, FORMAT_VERSION, Flaw, Reader};

/// Seal, 80 bytes, then the hashes:
///
/// | offset | size | field | meaning |
/// | --- | --- | --- | --- |
/// | 0 | 8 | magic | `SEAL_MAGIC` |
/// | 8 | 4 | version | of the format |
/// | 12 | 4 | chunk bytes | 65,536 |
/// | 16 | 16 | database | id |
/// | 32 | 8 | segment | id |
/// | 40 | 4 | data bytes | of the segment, header included |
/// | 44 | 4 | chunks | data bytes / chunk bytes, rounded up |
/// | 48 | 32 | root | BLAKE3 of bytes 0 to 47 and of all hashes |
/// | 80 | 32 x chunks | hashes | BLAKE3 of each chunk; the last one may be shorter |
const FIXED_BYTES: usize = 80;
const _: () = assert!(FIXED_BYTES == 8 + 4 + 4 + 16 + 8 + 4 + 4 + 32);
/// Number of bytes at the front of a seal that the root covers. The root covers all hashes too.
const COVERED_BYTES: usize = 48;

/// First bytes of a seal.
pub(crate) const SEAL_MAGIC: [u8; 8] = *b"mdb-seal";

/// Size of a chunk in bytes. A chunk is the smallest unit that `heal` can replace. The hash of a
/// chunk has 32 bytes, 1/2,048 of the size of the chunk.
pub(crate) const SEAL_CHUNK_BYTES: u32 = 64 * 1024;

/// Maximum size of a seal, in bytes.
pub(crate) const SEAL_BYTES_MAX: u64 =
    FIXED_BYTES as u64 + 32 * (super::SEGMENT_BYTES_LIMIT / SEAL_CHUNK_BYTES) as u64;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    pub(crate) database: DatabaseId,
    pub(crate) segment: u64,
    pub(crate) data_bytes: u32,
    pub(crate) root: [u8; 32],
    pub(crate) chunks: Vec<[u8; 32]>,
}

impl Seal {
    /// Returns the seal of a segment with the content `bytes`.
    pub(crate) fn of(database: DatabaseId, segment: u64, bytes: &[u8]) -> Self {
        let chunks = bytes.chunks(SEAL_CHUNK_BYTES as usize);
        let mut seal = Self {
            database,
            segment,
            data_bytes: bytes.len() as u32,
            root: [0; 32],
            chunks: chunks.map(|chunk| *blake3::hash(chunk).as_bytes()).collect(),
        };
        seal.root = seal.computed_root();
        seal
    }

    /// Returns `true` if `bytes` are the original content of chunk `index`. Returns `false` if the
    /// segment has no such chunk.
    pub(crate) fn is_chunk(&self, index: usize, bytes: &[u8]) -> bool {
        self.chunks
            .get(index)
            .is_some_and(|hash| blake3::hash(bytes).as_bytes() == hash)
    }

    /// Returns the offsets of chunk `index` in the segment. The range is empty if the segment has
    /// no such chunk.
    pub(crate) fn range(&self, index: usize) -> std::ops::Range<u32> {
        let start = (index as u32).saturating_mul(SEAL_CHUNK_BYTES);
        start.min(self.data_bytes)..start.saturating_add(SEAL_CHUNK_BYTES).min(self.data_bytes)
    }

    fn covered(&self) -> [u8; COVERED_BYTES] {
        let mut bytes = [0; COVERED_BYTES];
        bytes[..8].copy_from_slice(&SEAL_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&SEAL_CHUNK_BYTES.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.database.0);
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[44..48].copy_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        bytes
    }

    fn computed_root(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.covered());
        hasher.update(self.chunks.as_flattened());
        *hasher.finalize().as_bytes()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.covered().to_vec();
        bytes.extend_from_slice(&self.root);
        bytes.extend_from_slice(self.chunks.as_flattened());
        bytes
    }

    /// Decodes a seal. The caller must check that the seal names the expected segment and database.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Flaw> {
        let short = || Flaw::short("seal", FIXED_BYTES, bytes.len());
        let mut reader = Reader(bytes);
        let magic = reader.array::<8>().ok_or_else(short)?;
        if magic != SEAL_MAGIC {
            let (expected, found) = (SEAL_MAGIC.escape_ascii(), magic.escape_ascii());
            return Err(Flaw::new(0, "seal magic", expected, found));
        }
        let version = reader.u32().ok_or_else(short)?;
        if version != FORMAT_VERSION {
            return Err(Flaw::new(8, "seal version", FORMAT_VERSION, version));
        }
        let chunk_bytes = reader.u32().ok_or_else(short)?;
        if chunk_bytes != SEAL_CHUNK_BYTES {
            return Err(Flaw::new(12, "seal chunk bytes", SEAL_CHUNK_BYTES, chunk_bytes));
        }
        let database = DatabaseId(reader.array().ok_or_else(short)?);
        let segment = reader.u64().ok_or_else(short)?;
        let data_bytes = reader.u32().ok_or_else(short)?;
        let count = reader.u32().ok_or_else(short)?;
        let root = reader.array().ok_or_else(short)?;
        let expected = data_bytes.div_ceil(SEAL_CHUNK_BYTES);
        let (chunks, rest) = reader.0.as_chunks::<32>();
        if count != expected || chunks.len() as u32 != count || !rest.is_empty() {
            let found = format_args!("{count}, and {} bytes of hashes", reader.0.len());
            return Err(Flaw::new(44, "seal chunks", expected, found));
        }
        let seal = Self {
            database,
            segment,
            data_bytes,
            root,
            chunks: chunks.to_vec(),
        };
        if seal.computed_root() != root {
            return Err(Flaw::new(
                48,
                "seal root",
                "the hash of what it covers",
                "another",
            ));
        }
        Ok(seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_as_long_as_described() {
        assert_eq!((SEAL_CHUNK_BYTES, SEAL_BYTES_MAX), (65_536, 80 + 1024 * 32));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_of_a_seal_is_noticed() {
        let bytes: Vec<u8> = (0..150_000_u32).map(|byte| byte as u8).collect();
        let seal = Seal::of(DatabaseId([1; 16]), 7, &bytes);
        assert_eq!((seal.chunks.len(), seal.range(2)), (3, 131_072..150_000));
        for index in 0..3 {
            let range = seal.range(index);
            assert!(seal.is_chunk(index, &bytes[range.start as usize..range.end as usize]));
        }
        assert!(!seal.is_chunk(0, &bytes[..5]) && !seal.is_chunk(3, &[]) && seal.range(3).is_empty());
        let encoded = seal.encode();
        assert_eq!((encoded.len(), SEAL_BYTES_MAX), (80 + 3 * 32, 80 + 1024 * 32));
        // A forged seal: its root is valid, but its number of hashes does not fit the length of its
        // segment.
        let mut forged = seal.clone();
        forged.data_bytes = 65_536;
        forged.root = forged.computed_root();
        assert_eq!(Seal::decode(&forged.encode()).unwrap_err().field, "seal chunks");
        assert_eq!(Seal::decode(&encoded), Ok(seal));
        for bit in 0..encoded.len() * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Seal::decode(&damaged).is_err(), "bit {bit}");
        }
        for cut in 0..encoded.len() {
            assert!(Seal::decode(&encoded[..cut]).is_err());
        }
        assert!(
            Seal::decode(&[encoded, vec![0; 32]].concat()).is_err(),
            "too long"
        );
    }
}
