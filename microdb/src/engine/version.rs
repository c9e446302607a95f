//! The version of the visible state: tells a reader whether several reads are of one moment.
//!
//! A sequence lock. The version is odd while a commit is being published and even at rest, so reads
//! between two equal even versions saw no commit in part. Readers never block a commit. Copies made
//! by compaction do not count: they change the place of a record and no value.
//!
//! The model of Transactional Locking II (Dice, Shalev, Shavit 2006), with one clock for all keys.

use crate::raw::sync::{AtomicU64, Ordering, fence};

/// Version of the visible state.
pub(crate) struct Version(AtomicU64);

impl Version {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns the current version; an odd one is a commit being published.
    #[inline]
    pub(crate) fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Returns `true` if nothing was published since [`Version::load`] gave `version`, and nothing
    /// was being published then. To be called after the reads that it is to vouch for.
    #[inline]
    pub(crate) fn is_still(&self, version: u64) -> bool {
        fence(Ordering::Acquire);
        version.is_multiple_of(2) && self.0.load(Ordering::Relaxed) == version
    }

    /// Begins to publish. The caller holds the commit lock until [`Version::end`].
    #[inline]
    pub(crate) fn begin(&self) {
        let version = self.0.load(Ordering::Relaxed);
        self.0.store(version | 1, Ordering::Relaxed);
        // What is published from here is not seen by a reader who sees the old version after it.
        fence(Ordering::Release);
    }

    /// Ends to publish.
    #[inline]
    pub(crate) fn end(&self) {
        let version = self.0.load(Ordering::Relaxed);
        self.0.store((version | 1) + 1, Ordering::Release);
    }
}
