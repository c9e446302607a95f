//! What a read gives back: bytes, copied if few, else shared with the segment that holds them.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::engine::segments::Segment;
use crate::raw::sigbus::any_cut;

/// Up to this many bytes are copied: cheaper than counting references to a segment that all readers
/// share. With its length a value is then two cache lines.
const INLINE_BYTES_MAX: usize = 112;

/// A key or value read from a database; derefs to `[u8]`.
///
/// A `Value` has 128 bytes, even for a short key: up to 112 bytes are held in place, so that a read
/// allocates nothing. A collection of many small keys or values is smaller as `Vec<u8>` or
/// `Box<[u8]>`.
///
/// Larger ones share the memory of their segment (usually a map of its file): while such a value
/// lives, the segment's memory does. Use `to_vec` to keep bytes for long: should a stranger cut
/// that file short meanwhile, dereferencing panics once a read has met the end of the file (bytes
/// that were cut off read as zeros until then).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let value = events.get("k")?.unwrap();
/// assert_eq!(value, "v"); // whatever is bytes can be compared with it
/// let bytes: &[u8] = &value; // nothing is copied
/// assert_eq!(bytes.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Value(Repr);

/// Aligned as moves of it are made: a move that loads across the borders of the stores before it
/// waits for all of them.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Inline([u8; INLINE_BYTES_MAX]);

const _: () = assert!(size_of::<Value>() == 128);

#[derive(Clone)]
enum Repr {
    Inline {
        len: u8,
        bytes: Inline,
    },
    Shared {
        segment: Arc<Segment>,
        offset: u32,
        len: u32,
    },
    Owned(Arc<[u8]>),
}

impl Value {
    /// The first `len` of `bytes`, which lie at `offset` of `segment` and go on behind the value
    /// where there is more.
    #[inline(always)]
    pub(crate) fn new(bytes: &[u8], len: usize, segment: &Arc<Segment>, offset: u32) -> Self {
        // A copy of a length that the compiler knows is a few instructions; what is too much of it
        // is never looked at.
        match bytes.first_chunk::<INLINE_BYTES_MAX>() {
            Some(bytes) if len <= INLINE_BYTES_MAX => Self(Repr::Inline {
                len: len as u8,
                bytes: Inline(*bytes),
            }),
            _ => Self::inline(&bytes[..len]).unwrap_or_else(|| {
                Self(Repr::Shared {
                    segment: segment.clone(),
                    offset,
                    len: len as u32,
                })
            }),
        }
    }

    /// A copy of `bytes`.
    pub(crate) fn copied(bytes: &[u8]) -> Self {
        Self::inline(bytes).unwrap_or_else(|| Self(Repr::Owned(bytes.into())))
    }

    #[inline]
    fn inline(from: &[u8]) -> Option<Self> {
        if from.len() > INLINE_BYTES_MAX {
            return None;
        }
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..from.len()].copy_from_slice(from);
        Some(Self(Repr::Inline {
            len: from.len() as u8,
            bytes: Inline(bytes),
        }))
    }
}

impl Deref for Value {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes.0[..usize::from(*len)],
            // The range was within the segment when the value was made, and a segment only grows.
            Repr::Shared { segment, offset, len } => {
                let bytes = &segment.bytes_at(*offset)[..*len as usize];
                // Zeros that nobody put there are worse than a panic.
                assert!(
                    !any_cut() || !segment.is_cut(),
                    "{} was cut short while in use",
                    segment.path.display()
                );
                bytes
            }
            Repr::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Value {}

impl std::hash::Hash for Value {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl From<Value> for Vec<u8> {
    fn from(value: Value) -> Self {
        value.to_vec()
    }
}
