//! The way from a key's bytes to its slot.
//!
//! A key is hashed by a specified function over its bytes. `std::hash::Hash` is not used, because
//! its result may differ between releases and processes. The top bits of the hash are the slot. So
//! when the slots are doubled, slot `s` becomes `2s` and `2s + 1`, and no key changes its node.
//! `golden/keys.txt` holds test vectors for other languages.

use core::fmt;

use siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// An equal share of the hash circle, counted from 0.
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

/// The function from a key's bytes to 64 bits. It is part of the ring: two rings agree on the slot
/// of a key only if their functions are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHash {
    /// XXH3-64 with a seed, as the xxHash specification defines it. The fastest choice, for keys
    /// that no adversary chooses.
    Xxh3 {
        /// The seed.
        seed: u64,
    },
    /// SipHash-1-3 with a key of 16 bytes, for keys chosen by strangers. Without the secret nobody
    /// can find many keys of one slot.
    SipHash13 {
        /// The secret. Its first and last 8 bytes, little-endian, are SipHash's `k0` and `k1`.
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
