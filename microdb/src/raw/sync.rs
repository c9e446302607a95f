//! The locks and atomics of what threads of an open database share: the standard ones, or loom's.
//!
//! With `--cfg loom` the model checker runs the real code through every order of these accesses
//! (`docs/testing.md`). Counters that only say how much there is of something use the standard ones
//! directly, since no decision hangs on their order; so does what outlives a database, such as the
//! pool of threads.

use std::time::Duration;

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};

/// Something that is counted and holds nothing.
#[cfg(not(loom))]
pub(crate) type Token = std::sync::Arc<()>;

use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::TryLockError;

/// A lock whose holder panicked is taken all the same: what the locks guard is changed only after
/// everything that can fail.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often, and after how many pauses of the processor each time, a lock that is held for a
/// moment is tried before the thread goes to sleep: some microseconds in all. Going to sleep and
/// being woken takes longer than most commits hold the lock.
#[cfg(not(loom))]
const SPIN_TRIES: u32 = 64;
/// See [`SPIN_TRIES`].
#[cfg(not(loom))]
const SPIN_PAUSES: u32 = 16;

/// Like [`lock`], for a lock that is usually held for less than a microsecond.
pub(crate) fn lock_briefly<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // In a model trying again is only the same race once more.
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

/// Lets go of the `held` lock until `condvar` is notified, at most for `bound`. May return early.
#[cfg(not(loom))]
pub(crate) fn wait_at_most<'m, T>(
    condvar: &Condvar,
    held: MutexGuard<'m, T>,
    bound: Duration,
) -> MutexGuard<'m, T> {
    let waited = condvar.wait_timeout(held, bound);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// In a model there is no time.
#[cfg(loom)]
pub(crate) fn wait_at_most<'m, T>(
    condvar: &Condvar,
    held: MutexGuard<'m, T>,
    _bound: Duration,
) -> MutexGuard<'m, T> {
    condvar.wait(held).unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of the `held` lock of `mutex` until `condvar` is notified and `condition` is false, at
/// most for `bound`.
#[cfg(not(loom))]
pub(crate) fn wait_while_at_most<'m, T>(
    condvar: &Condvar,
    _mutex: &'m Mutex<T>,
    held: MutexGuard<'m, T>,
    bound: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    let waited = condvar.wait_timeout_while(held, bound, condition);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// In a model there is no time: others may do anything before the lock is taken again, or nothing.
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

/// The standard one with a flag that loom sees.
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

/// The same with a count that loom sees, in the standard one's orders.
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
