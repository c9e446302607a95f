//! The fingerprint of a whole ring: XXH3-128 with seed 0 over its encoding without the digest at
//! the end.
//!
//! Two rings have equal digests if options, epoch, members, assignment and pins are equal. A digest
//! detects accidental damage, and a ring that is used in place of another. It does not protect
//! against forgery.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use xxhash_rust::xxh3::xxh3_128;

/// The fingerprint of a ring. Its text form is 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct Digest(pub u128);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Digest {
        Digest(xxh3_128(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;
    fn from_str(text: &str) -> Result<Digest, ParseDigestError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseDigestError);
        }
        u128::from_str_radix(text, 16)
            .map(Digest)
            .map_err(|_| ParseDigestError)
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;
    fn try_from(text: String) -> Result<Digest, ParseDigestError> {
        text.parse()
    }
}

/// The error for a text that is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseDigestError;

impl fmt::Display for ParseDigestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest is 32 hexadecimal digits")
    }
}

impl core::error::Error for ParseDigestError {}
