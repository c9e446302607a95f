//! The digests computed last, kept in memory by the engine.
//!
//! - A digest is computed only on request, by `tools::digest`.
//! - The cache is empty after a failed computation, so that it never holds digests of only some
//!   tables.
//!
//! Deliberately absent: the computation of digests.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::sequence::Sequence;

/// A 256-bit digest, displayed in hexadecimal.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// println!("{}", db.digest()?.root); // 64 hexadecimal digits
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DigestHash(pub [u8; 32]);

impl fmt::Display for DigestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DigestHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DigestHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Digest and number of keys of each prefix that has keys. The prefix of a key is the top 12 bits
/// of its XXH3 hash. The cache and the digests returned to callers share the map.
pub(crate) type Prefixes = Arc<BTreeMap<u16, (DigestHash, u64)>>;

/// The digests computed last, kept by the engine.
pub(crate) struct DigestCache {
    pub(crate) sequence: Sequence,
    pub(crate) tables: HashMap<u32, Prefixes>,
}
