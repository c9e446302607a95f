//! From a key's bytes to its slot.
//!
//! A key is hashed by a specified function over its bytes (never by `std::hash::Hash`, which promises nothing from one
//! release or process to the next), and the top bits of the hash are the slot: so when the slots are doubled, slot `s`
//! becomes `2s` and `2s + 1`, and nothing moves. `golden/keys.txt` holds vectors for other languages.

use core::fmt;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// An equal share of the circle of hashes, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The function from a key's bytes to 64 bits. It is part of the ring: two rings agree on a key's slot only if they
/// agree on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHash {
    /// XXH3-64 with a seed, as the xxHash specification defines it. The fastest; for keys that nobody chooses against us.
    Xxh3 {
        /// The seed.
        seed: u64,
    },
    /// SipHash-1-3 with a key of 16 bytes. For keys that a stranger chooses: without the key nobody can make
    /// many keys fall into one slot.
    SipHash13 {
        /// The secret; its first and last 8 bytes, little-endian, are SipHash's `k0` and `k1`.
        key: [u8; 16],
    },
}

impl Default for KeyHash {
    fn default() -> KeyHash {
        KeyHash::Xxh3 { seed: 0 }
    }
}

impl KeyHash {
    /// The 64-bit hash of a key.
    #[inline(always)] // With `Ring::locate`: a call and its result through memory would double a look-up.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        match self {
            KeyHash::Xxh3 { seed } => xxh3_64_with_seed(key, *seed),
            KeyHash::SipHash13 { key: secret } => siphash(secret, key),
        }
    }
}

#[inline(never)] // So that its size does not weigh on the other.
fn siphash(secret: &[u8; 16], key: &[u8]) -> u64 {
    SipHasher13::new_with_key(secret).hash(key)
}
