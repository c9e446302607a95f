//! The computation of a key's slot from the bytes of the key.
//!
//! A key is hashed by a specified function over its bytes. `std::hash::Hash` is not used, because
//! its result may differ between releases and processes. The top bits of the hash are the number of
//! the slot. So when the slots are doubled, slot `s` becomes `2s` and `2s + 1`, and no key changes
//! its node. `golden/keys.txt` has test vectors for implementations in other languages.

use core::fmt;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One of the equal shares of the hash circle, as a number from 0.
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

/// The function from a key's bytes to 64 bits. Each ring has such a function. Two rings agree on
/// the slot of a key only if their functions are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHash {
    /// XXH3-64 with a seed, as defined by the xxHash specification. The fastest choice, for keys
    /// that no adversary chooses.
    Xxh3 {
        /// Seed of the hash.
        seed: u64,
    },
    /// SipHash-1-3 with a secret of 16 bytes, for keys that strangers choose. Without the secret,
    /// nobody can compute the slot of a key.
    SipHash13 {
        /// The secret. Its first 8 bytes, little-endian, are SipHash's `k0`, and its last 8 bytes
        /// `k1`.
        key: [u8; 16],
    },
}

impl Default for KeyHash {
    fn default() -> KeyHash {
        KeyHash::Xxh3 { seed: 0 }
    }
}

impl KeyHash {
    /// Returns the 64-bit hash of a key.
    #[inline(always)] // Inlined into `Ring::locate`, which a call would make twice as slow.
    #[must_use]
    pub fn hash(&self, key: &[u8]) -> u64 {
        match self {
            KeyHash::Xxh3 { seed } => xxh3_64_with_seed(key, *seed),
            KeyHash::SipHash13 { key: secret } => siphash(secret, key),
        }
    }
}

#[inline(never)] // Not inlined, so that its size does not slow the path of XXH3 down.
fn siphash(secret: &[u8; 16], key: &[u8]) -> u64 {
    SipHasher13::new_with_key(secret).hash(key)
}
