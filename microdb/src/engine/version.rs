//! Version of the visible state: shows a reader if several reads belong to one moment.
//!
//! - A sequence lock: the version is odd while a commit is being published, and even otherwise.
//!   Reads between two loads of the same even version saw the state of one moment.
//! - Readers never block a commit.
//! - Compaction does not change the version, because its copies change no value.
//!
//! Follows Transactional Locking II (Dice, Shalev, Shavit 2006), with one version for all keys.

use crate::raw::sync::{AtomicU64, Ordering, fence};

/// Version of the visible state.
pub(crate) struct Version(AtomicU64);

impl Version {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns the current version. It is odd while a commit is being published.
    #[inline]
    pub(crate) fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Returns `true` if `version` is even and still the current version. So if [`Version::load`]
    /// has returned it, no commit was being published then, and none has begun to be published
    /// since. Call this function after the reads to be validated.
    #[inline]
    pub(crate) fn is_still(&self, version: u64) -> bool {
        fence(Ordering::Acquire);
        version.is_multiple_of(2) && self.0.load(Ordering::Relaxed) == version
    }

    /// Makes the version odd before a commit is published. The caller holds the commit lock until
    /// [`Version::end`].
    #[inline]
    pub(crate) fn begin(&self) {
        let version = self.0.load(Ordering::Relaxed);
        self.0.store(version | 1, Ordering::Relaxed);
        // The fence orders the store of the odd version before the stores that publish the commit.
        // So a reader that still loads the old version after its reads has seen nothing of this
        // commit.
        fence(Ordering::Release);
    }

    /// Makes the version even again after a commit was published.
    #[inline]
    pub(crate) fn end(&self) {
        let version = self.0.load(Ordering::Relaxed);
        self.0.store((version | 1) + 1, Ordering::Release);
    }
}
