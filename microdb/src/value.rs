//! Values returned by reads: short ones are copied, long ones usually shared with their segment.
//!
//! - A shared value keeps its segment readable, even after compaction removed the segment.
//! - After a read has noticed that the file of a shared value was truncated, or that the disk
//!   cannot read a page of it, access to the value's bytes panics.
//!
//! Deliberately absent: mutation.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::engine::segments::Segment;
use crate::raw::sigbus::any_cut;

/// Values of up to this many bytes are copied. A copy is cheaper than changing the reference count
/// of a segment, which all readers share. With these bytes, the length and the alignment, a
/// [`Value`] fills two cache lines.
const INLINE_BYTES_MAX: usize = 112;

/// A key or value read from a database; dereferences to `[u8]`.
///
/// A `Value` has 128 bytes, even for a short key. Up to 112 bytes are stored in place, so that a
/// read of them allocates nothing. A collection of many small keys or values is smaller as
/// `Vec<u8>` or `Box<[u8]>`.
///
/// A larger value usually shares the bytes of its segment, which is mapped or in memory. The
/// segment and its disk space are kept as long as the value exists. Use `to_vec` to keep bytes for
/// a long time. If another program truncates the file while the value exists, truncated bytes read
/// as zeros until a read has noticed the truncation; dereferencing panics from then on. Without
/// the handler of `Options::sigbus_handler`, a read of truncated bytes ends the process instead.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let value = events.get("k")?.unwrap();
/// assert_eq!(value, "v"); // comparable with all types of bytes
/// let bytes: &[u8] = &value; // nothing is copied
/// assert_eq!(bytes.len(), 1);
/// // Ordered like bytes, and found in maps by bytes.
/// let sorted: std::collections::BTreeMap<_, _> = events.iter().collect::<Result<_, _>>()?;
/// assert!(sorted.contains_key(&b"k"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Value(Repr);

/// The bytes of a copied value, aligned like the 16-byte stores that fill them. Without the
/// alignment, a load could span several of these stores, and would have to wait for all of them.
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
    /// Returns a value of the first `len` bytes of `bytes`. The slice `bytes` starts at `offset` of
    /// `segment` and may extend beyond the value.
    #[inline(always)]
    pub(crate) fn new(bytes: &[u8], len: usize, segment: &Arc<Segment>, offset: u32) -> Self {
        // All `INLINE_BYTES_MAX` bytes are copied, because a copy of constant length takes a few
        // instructions. Bytes behind the first `len` are never read.
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

    /// Returns a value with a copy of `bytes`.
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
            // The range was inside the segment when the value was made, and segments only grow.
            Repr::Shared { segment, offset, len } => {
                let bytes = &segment.bytes_at(*offset)[..*len as usize];
                // A panic is better than returning zeros that were never written.
                assert!(
                    !any_cut() || !segment.is_cut(),
                    "a page of {} could not be read: another program truncated the file, or the disk failed",
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

impl<T: AsRef<[u8]> + ?Sized> PartialOrd<T> for Value {
    fn partial_cmp(&self, other: &T) -> Option<Ordering> {
        Some((**self).cmp(other.as_ref()))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(other)
    }
}

/// Hash and order are those of the bytes, so a map with keys of this type can be searched by
/// `&[u8]`.
impl Borrow<[u8]> for Value {
    fn borrow(&self) -> &[u8] {
        self
    }
}

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
