//! Bound of the size of the log. Commits wait at the bound, except in the cases named below.
//!
//! ```text
//! 0         live      target       soft                hard
//! |----------|----------|-- compaction --|-- slow writers --|-- waiting writers compact --
//! ```
//!
//! Background compaction keeps the log at `target`, the size at which the share of dead bytes
//! equals the option `compaction_dead_percent`. If compaction cannot keep up, commits sleep from
//! `soft` on, and longer the nearer the log is to `hard`. At `hard`, a commit waits until
//! compaction has freed space. If no other thread compacts, the thread of the commit does. So
//! writers are never faster than compaction for long.
//!
//! Invariants:
//!
//! - With the default options, `hard` is at most twice the live bytes plus three segments. A fourth
//!   segment is room for frames that other threads append at the same time.
//! - Compaction never waits for space.
//! - A commit waits before it takes any lock and before it joins a group. Commits that change the
//!   catalog or clear a table do not wait, because they hold a lock that a checkpoint needs. The
//!   commit of a transaction in its turn does not wait, because its group waits for it. Without the
//!   option `background`, no commit waits or is slowed.
//! - A commit stops waiting after [`WAIT_MAX`], or later if a compaction on its own thread ends
//!   later. It does not wait while a backup or a requested compaction holds the segments. Nor does
//!   it wait if the last attempt to free space freed nothing, until as many bytes as one segment
//!   were appended.
//! - A snapshot, an iterator, a feed or a value may still hold removed segments. Their disk space
//!   is not part of the size, since readers must not stop writers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, TryLockError};
use std::time::{Duration, Instant};

use crate::engine::log::Core;
use crate::engine::{Engine, lock, lock_briefly};
use crate::error::Result;
use crate::raw::sync::ignore_poison;
use crate::seeded::seeded;

/// Time after which a commit no longer waits for space.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Interval at which a waiting commit checks the size of the log again, in case nothing wakes it.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Maximum number of bytes that other commits append after a sleeping commit, before the next
/// commit sleeps too.
const PACE_BYTES: u64 = 64 * 1024;
/// Duration of a sleep while the log is just below `hard`. Together with [`PACE_BYTES`], this
/// duration permits at most about 32 MB/s, which compaction reaches on slow disks too.
const PACE_SLEEP_MAX: Duration = Duration::from_millis(2);

/// Distance between `target` and `hard`, besides two segments, in percent of the live bytes. The
/// distance gives compaction time to take effect.
const SLACK_PERCENT: u64 = 15;

/// Limits for commits, as values of `Engine::appended_bytes`. So a commit can check them without a
/// lock.
#[derive(Debug)]
pub(crate) struct Space {
    /// Value of `Engine::appended_bytes` from which commits are slowed.
    soft_at: AtomicU64,
    /// Value of `Engine::appended_bytes` up to which commits do not wait, because the last attempt
    /// to free space freed nothing.
    excused_to: AtomicU64,
    /// Number of running backups and requested compactions. They keep segments from being removed
    /// for a long time.
    holders: AtomicUsize,
    lock: Mutex<()>,
    freed: Condvar,
}

impl Default for Space {
    fn default() -> Self {
        Self {
            // With this value no commit waits. `note_sizes` replaces it once the size of the log is
            // known.
            soft_at: AtomicU64::new(u64::MAX),
            excused_to: AtomicU64::new(0),
            holders: AtomicUsize::new(0),
            lock: Mutex::new(()),
            freed: Condvar::new(),
        }
    }
}

/// Size of the log and its limits, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) log: u64,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Represents a running backup or requested compaction. While a value of this type exists, a commit
/// above `hard` continues at once. Commits between `soft` and `hard` are slowed as usual.
pub(crate) struct Holder<'a>(&'a Space);

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Space {
    /// Registers an operation that keeps segments from being removed for a long time. Commits do
    /// not wait at `hard` until the returned value is dropped.
    pub(crate) fn hold(&self) -> Holder<'_> {
        self.holders.fetch_add(1, Ordering::AcqRel);
        self.freed.notify_all();
        Holder(self)
    }

    /// Returns `true` while a value returned by [`Space::hold`] exists.
    #[cfg(test)]
    pub(crate) fn is_held(&self) -> bool {
        self.holders.load(Ordering::Acquire) > 0
    }

    /// Wakes waiting commits: space was freed, or the database is closed.
    pub(crate) fn wake(&self) {
        drop(ignore_poison(self.lock.lock()));
        self.freed.notify_all();
    }

    fn wait(&self) {
        let held = ignore_poison(self.lock.lock());
        drop(self.freed.wait_timeout(held, LOOK_AGAIN));
    }
}

impl Engine {
    /// Returns the current size of the log and its limits.
    pub(crate) fn sizes(&self, core: &Core) -> Sizes {
        let active = core.active.as_ref().map_or(0, |active| u64::from(active.end()));
        let (live, segment) = (
            core.usages.live_bytes(),
            u64::from(self.options.segment_bytes_max),
        );
        // Share of live bytes in the log, in percent, below which compaction begins. If the option
        // `compaction_dead_percent` is 100, the share is 0, and the log has no limit.
        let alive_percent = 100_u64.saturating_sub(self.options.compaction_dead_percent.into());
        let target = (live.saturating_mul(100)).checked_div(alive_percent);
        let target = target.unwrap_or(u64::MAX / 2);
        Sizes {
            log: core.usages.bytes() + active,
            soft: target.saturating_add(segment),
            hard: target
                .saturating_add(live / 100 * SLACK_PERCENT)
                .saturating_add(2 * segment),
        }
    }

    /// Updates `soft_at`, the value of `Engine::appended_bytes` from which commits are slowed.
    pub(crate) fn note_sizes(&self, core: &Core) {
        let Sizes { log, soft, .. } = self.sizes(core);
        let appended = self.appended_bytes.load(Ordering::Relaxed);
        let soft_at = appended.saturating_add(soft.saturating_sub(log));
        self.space.soft_at.store(soft_at, Ordering::Relaxed);
    }

    /// Returns `true` if the log is so large that commits are slowed.
    pub(crate) fn is_crowded(&self) -> bool {
        let sizes = self.sizes(&lock(&self.core));
        sizes.log > sizes.soft
    }

    /// Slows a commit of `bytes` if the log is above `soft`, and delays it while the log is at
    /// `hard`. The rules are in the header of this file. The caller holds no lock.
    ///
    /// # Errors
    /// The errors of [`Engine::check_writable`] if the commit is slowed or delayed, for example
    /// after a close during the wait.
    #[inline]
    pub(crate) fn wait_for_space(&self, bytes: usize) -> Result<()> {
        // Without background work, the user decides when to compact, so commits do not wait.
        if !self.options.background {
            return Ok(());
        }
        let end = self.appended_bytes.load(Ordering::Relaxed) + bytes as u64;
        if end <= self.space.soft_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.hold_back(bytes as u64)
    }

    #[cold]
    fn hold_back(&self, bytes: u64) -> Result<()> {
        let started = Instant::now();
        let mut held = false;
        let result = loop {
            if let Err(error) = self.check_writable() {
                break Err(error);
            }
            let (Sizes { log, soft, hard }, appended) = {
                let core = lock_briefly(&self.core);
                self.note_sizes(&core);
                (self.sizes(&core), self.appended_bytes.load(Ordering::Relaxed))
            };
            let end = log + bytes;
            if end <= soft {
                break Ok(());
            }
            self.schedule_housekeeping();
            if end <= hard || seeded("writers-not-held") {
                // Only this commit sleeps. Other commits continue until `free` more bytes are
                // appended.
                let free = bytes + PACE_BYTES.min((hard - end) / 2);
                self.space.soft_at.store(appended + free, Ordering::Relaxed);
                let fullness = (end - soft) as f64 / (hard - soft).max(1) as f64;
                std::thread::sleep(PACE_SLEEP_MAX.mul_f64(fullness.clamp(0.0, 1.0)));
                held = true;
                break Ok(());
            }
            let is_excused = appended < self.space.excused_to.load(Ordering::Relaxed)
                || self.space.holders.load(Ordering::Acquire) > 0;
            if is_excused || started.elapsed() >= WAIT_MAX {
                break Ok(());
            }
            held = true;
            self.help();
        };
        if held {
            self.counters.write_stalls.add(1);
            self.counters
                .write_stall_ns
                .add(started.elapsed().as_nanos() as u64);
        }
        result
    }

    /// Frees space on this thread. If another thread is compacting, waits for at most
    /// [`LOOK_AGAIN`] instead. If a backup or a requested compaction has begun, returns at once.
    fn help(&self) {
        let one = match self.compacting.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.space.wait(),
        };
        if self.space.holders.load(Ordering::Acquire) > 0 {
            return;
        }
        let freed = self.free_space();
        drop(one);
        if !matches!(freed, Ok(true)) {
            // No space could be freed: the disk may be full, or the dead bytes may be unreadable.
            // Freeing is tried again only after as many bytes as one segment were appended.
            let appended = self.appended_bytes.load(Ordering::Relaxed);
            let next = appended + u64::from(self.options.segment_bytes_max);
            self.space.excused_to.fetch_max(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Durability, Options};

    #[test]
    fn the_hard_limit_is_below_twice_the_live_bytes_and_four_segments() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::new().background(false).durability(Durability::Buffered);
        let db = options.open(folder.path()).unwrap();
        let table = db.table("t").unwrap();
        for number in 0..1000_u32 {
            table.put(number.to_le_bytes(), [7; 1000]).unwrap();
            let sizes = db.engine.sizes(&super::lock(&db.engine.core));
            let live = db.stats().live_bytes;
            assert!(sizes.soft < sizes.hard, "{sizes:?}");
            // The name of this test counts four segments, but `hard` may use only three of them.
            // The fourth is room for commits that have already passed the check.
            assert!(sizes.hard <= 2 * live + (3 << 24), "{sizes:?}");
            assert_eq!(sizes.log, db.stats().log_bytes);
        }
    }
}
