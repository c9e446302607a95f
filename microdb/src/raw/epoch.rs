//! Epoch protection: a pinned reader's values stay alive until the pin ends, and nobody waits.
//!
//! [`pin`] announces a reader. An [`ArcCell`] owns one count of an `Arc`. [`ArcCell::load`] follows
//! it without touching the count, because a shared count is a cache line that all readers would
//! fight for. [`ArcCell::replace`] retires the old value: its count is released once every pin that
//! could have seen it has ended. [`ArcCell::load_arc`] takes a count of its own, for use beyond the
//! pin.
//!
//! Invariants:
//!
//! - A pin covers one operation, or one piece of a long one. Retired values cannot be freed while
//!   it lives. Long-lived views hold `Arc`s instead.
//! - The collector belongs to this crate. A pin of another crate of the process delays nothing
//!   here.
//! - [`retired`] counts the values that wait for a pin to end. The collector frees a value only
//!   when some thread works for it, so while the count is not zero somebody has to call [`collect`]
//!   again. `reclaim.rs` does so.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::raw::sync::{AtomicPtr, Ordering};

/// A pin on the epoch. Only [`pin`] makes one, so it belongs to the collector that [`ArcCell`]
/// retires to.
pub(crate) struct Guard(crossbeam_epoch::Guard);

/// Number of values that were retired and not yet freed, in the whole process.
static RETIRED: AtomicUsize = AtomicUsize::new(0);

/// Rounds of collection that free a value if no pin is in the way: one retires it, two move the
/// epoch on.
const ROUNDS: usize = 3;

#[cfg(not(loom))]
mod collector {
    use std::sync::OnceLock;

    use crossbeam_epoch::{Collector, Guard, LocalHandle};

    static COLLECTOR: OnceLock<Collector> = OnceLock::new();

    thread_local! {
        static HANDLE: LocalHandle = register();
    }

    fn register() -> LocalHandle {
        COLLECTOR.get_or_init(Collector::new).register()
    }

    #[inline]
    pub(super) fn pin() -> Guard {
        // A thread that is ending may have no handle any more. It gets one for this pin.
        HANDLE
            .try_with(LocalHandle::pin)
            .unwrap_or_else(|_| register().pin())
    }
}

/// Pins the current thread. Costs a few nanoseconds; pins nest.
#[inline]
pub(crate) fn pin() -> Guard {
    #[cfg(not(loom))]
    return Guard(collector::pin());
    // The model checker knows the default collector only.
    #[cfg(loom)]
    Guard(crossbeam_epoch::pin())
}

/// Returns the number of values that were retired and not yet freed.
#[inline]
pub(crate) fn retired() -> usize {
    RETIRED.load(Ordering::Relaxed)
}

/// Frees retired values as far as pins permit. Returns `true` if none is left. Frees nothing that
/// the caller's own pin covers.
pub(crate) fn collect() -> bool {
    for _ in 0..ROUNDS {
        if retired() == 0 {
            return true;
        }
        pin().flush();
    }
    retired() == 0
}

impl Guard {
    /// Hands this thread's retired values to the collector now. They would otherwise wait for a
    /// later pin of this thread.
    pub(crate) fn flush(&self) {
        self.0.flush();
    }

    /// Drops `value` once every pin of this moment has ended.
    fn retire<T: Send + 'static>(&self, value: T) {
        RETIRED.fetch_add(1, Ordering::Relaxed);
        self.0.defer(move || {
            drop(value);
            RETIRED.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// A replaceable `Arc` that pinned readers follow without counting.
pub(crate) struct ArcCell<T: Send + Sync + 'static> {
    /// From `Arc::into_raw`; the cell owns that count.
    pointer: AtomicPtr<T>,
}

impl<T: Send + Sync + 'static> ArcCell<T> {
    /// A cell that holds `value`.
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self {
            pointer: AtomicPtr::new(Arc::into_raw(value).cast_mut()),
        }
    }

    /// What the cell holds now. Stays valid as long as the pin, whatever is put into the cell
    /// meanwhile.
    #[inline(always)]
    pub(crate) fn load<'g>(&'g self, _guard: &'g Guard) -> &'g T {
        // SAFETY: the pointer comes from `Arc::into_raw` and the cell owns a count of it. That
        // count is given back in two places only: `replace`, which defers it beyond every pin that
        // existed when the pointer left the cell (this one among them, if it read the old pointer),
        // and `drop`, which cannot run while the cell is borrowed for 'g.
        unsafe { &*self.pointer.load(Ordering::Acquire) }
    }

    /// What the cell holds now, with a count of its own, to be kept beyond the pin.
    pub(crate) fn load_arc(&self, _guard: &Guard) -> Arc<T> {
        let pointer = self.pointer.load(Ordering::Acquire);
        // SAFETY: as in `load`, the pointee is alive with a count of at least one throughout this
        // call, so one more may be taken; `from_raw` then owns exactly the count taken here.
        unsafe {
            Arc::increment_strong_count(pointer);
            Arc::from_raw(pointer)
        }
    }

    /// Puts `value` into the cell. The old value's count is given back once no pin can have seen
    /// it.
    pub(crate) fn replace(&self, value: Arc<T>, guard: &Guard) {
        let old = self
            .pointer
            .swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        // SAFETY: `swap` hands each pointer out once, so this is the cell's own count of it, and it
        // is not given back before the epoch allows it.
        let old = unsafe { Arc::from_raw(old) };
        if cfg!(all(loom, not(crossbeam_loom))) {
            // Without the collector's own model, runs share its garbage, and they may share
            // nothing; what is checked then is what readers find, not when memory comes back. That
            // has a model of its own.
            std::mem::forget(old);
        } else {
            guard.retire(old);
        }
    }
}

impl<T: Send + Sync + 'static> Drop for ArcCell<T> {
    fn drop(&mut self) {
        // SAFETY: the cell owns this count, and `&mut self` proves that no reference from `load` is
        // alive: they all borrow the cell.
        drop(unsafe { Arc::from_raw(self.pointer.load(Ordering::Relaxed)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    struct Counted(u64, Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0 = u64::MAX;
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_pinned_reader_keeps_what_it_saw() {
        let drops = Arc::new(AtomicUsize::new(0));
        let cell = ArcCell::new(Arc::new(Counted(1, drops.clone())));
        let guard = pin();
        let seen = cell.load(&guard);
        let kept = cell.load_arc(&guard);
        cell.replace(Arc::new(Counted(2, drops.clone())), &pin());
        assert_eq!((seen.0, kept.0, cell.load(&guard).0), (1, 1, 2));
        assert_eq!(drops.load(Ordering::SeqCst), 0);
        drop(guard);
        drop(cell);
        assert_eq!(kept.0, 1);
    }

    #[test]
    fn readers_never_see_a_freed_value() {
        let drops = Arc::new(AtomicUsize::new(0));
        let cell = ArcCell::new(Arc::new(Counted(0, drops.clone())));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let guard = pin();
                        let seen = cell.load(&guard).0;
                        assert!(seen >= last && seen != u64::MAX);
                        last = seen;
                    }
                });
            }
            for value in 1..=20_000 {
                cell.replace(Arc::new(Counted(value, drops.clone())), &pin());
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
