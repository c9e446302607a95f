//! Locks and atomics for state shared by the threads of a database: from the standard library, or
//! from loom.
//!
//! - With `--cfg loom`, the model checker runs the real code through many orders of these accesses
//!   (`docs/testing.md`).
//! - Pure statistics use the standard atomics directly, because no decision depends on the order of
//!   their accesses. State that outlives a database, such as the thread pool, uses them too.
//!
//! Deliberately absent: new kinds of locks.

use std::time::Duration;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};

/// A value without content. Its reference count is its only use.
#[cfg(not(loom))]
pub(crate) type Token = std::sync::Arc<()>;

use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::TryLockError;

/// Returns the guard even if a holder of the lock panicked. Guarded state stays consistent, because
/// it is changed only after everything that can fail.
pub(crate) fn ignore_poison<G>(taken: Result<G, PoisonError<G>>) -> G {
    taken.unwrap_or_else(PoisonError::into_inner)
}

/// Acquires a lock, even if an earlier holder panicked (see [`ignore_poison`]).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    ignore_poison(mutex.lock())
}

/// Number of attempts of [`lock_briefly`] before the thread sleeps. All attempts together take some
/// microseconds. Most commits hold the engine's lock for less time than a thread needs to sleep and
/// wake up.
#[cfg(not(loom))]
const SPIN_TRIES: u32 = 64;
/// Number of processor pauses between two attempts.
#[cfg(not(loom))]
const SPIN_PAUSES: u32 = 16;

/// Acquires a lock that is usually held for less than a microsecond. Tries several times before the
/// thread sleeps.
pub(crate) fn lock_briefly<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // In a loom model, another attempt would only repeat the same race.
    #[cfg(not(loom))]
    for _ in 0..SPIN_TRIES {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => (0..SPIN_PAUSES).for_each(|_| std::hint::spin_loop()),
        }
    }
    lock(mutex)
}

/// Releases the `held` lock until `condvar` is notified or `bound` has passed, then acquires the
/// lock again. May return early.
#[cfg(not(loom))]
pub(crate) fn wait_at_most<'m, T>(
    condvar: &Condvar,
    held: MutexGuard<'m, T>,
    bound: Duration,
) -> MutexGuard<'m, T> {
    let waited = condvar.wait_timeout(held, bound);
    ignore_poison(waited).0
}

/// Variant of `wait_at_most` for loom. It ignores the bound, because a loom model has no time.
#[cfg(loom)]
pub(crate) fn wait_at_most<'m, T>(
    condvar: &Condvar,
    held: MutexGuard<'m, T>,
    _bound: Duration,
) -> MutexGuard<'m, T> {
    ignore_poison(condvar.wait(held))
}

/// Waits on `condvar` until `condition` is false or `bound` has passed. Releases the `held` lock of
/// `mutex` during the wait only. Does not wait if `condition` is already false at the call.
#[cfg(not(loom))]
pub(crate) fn wait_while_at_most<'m, T>(
    condvar: &Condvar,
    _mutex: &'m Mutex<T>,
    held: MutexGuard<'m, T>,
    bound: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    let waited = condvar.wait_timeout_while(held, bound, condition);
    ignore_poison(waited).0
}

/// Variant of `wait_while_at_most` for loom, where no time passes. If `condition` is true, it
/// releases the lock once, so that other threads may run, and acquires the lock again.
#[cfg(loom)]
pub(crate) fn wait_while_at_most<'m, T>(
    _condvar: &Condvar,
    mutex: &'m Mutex<T>,
    mut held: MutexGuard<'m, T>,
    _bound: Duration,
    mut condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    if condition(&mut held) {
        drop(held);
        held = lock(mutex);
    }
    held
}

/// A standard `OnceLock` with an atomic flag, so that loom observes the accesses.
#[cfg(loom)]
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    value: std::sync::OnceLock<T>,
}

#[cfg(loom)]
impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self {
            is_set: AtomicBool::new(false),
            value: std::sync::OnceLock::new(),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        let is_set = self.is_set.load(Ordering::Acquire);
        self.value.get().filter(|_| is_set)
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        self.is_set.swap(true, Ordering::AcqRel);
        self.value.get_or_init(make)
    }
}

/// A replacement for `Arc<()>`. Its count is an atomic of loom, so that loom observes the accesses.
/// These accesses have the memory orders that `Arc` uses.
#[cfg(loom)]
pub(crate) struct Token(std::sync::Arc<AtomicUsize>);

#[cfg(loom)]
impl Token {
    pub(crate) fn new((): ()) -> Self {
        Self(std::sync::Arc::new(AtomicUsize::new(1)))
    }

    pub(crate) fn strong_count(this: &Self) -> usize {
        this.0.load(Ordering::Relaxed)
    }
}

#[cfg(loom)]
impl Clone for Token {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

#[cfg(loom)]
impl Drop for Token {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}
