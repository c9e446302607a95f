//! Epoch-based reclamation: a replaced value stays alive while a pinned reader may see it. Neither
//! readers nor writers wait.
//!
//! [`pin`] announces a reader. An [`ArcCell`] owns one reference count of an `Arc`.
//! [`ArcCell::load`] follows the pointer without changing the count, because a shared count is a
//! cache line for which all readers would compete. [`ArcCell::replace`] retires the old value: its
//! count is released once every pin that could have seen the value has ended. [`ArcCell::load_arc`]
//! increments the count, so that its caller can use the value after the pin has ended.
//!
//! Invariants:
//!
//! - A pin covers one operation, or one piece of a long operation, because no value that is retired
//!   during the pin can be freed before the pin ends. Long-lived views hold `Arc`s instead.
//! - The collector belongs to this crate. Pins that other crates of the process take delay nothing
//!   here.
//! - Each process has a collector of its own. The memory of a forked child contains the pins of its
//!   parent, but not the threads that would end these pins.
//! - [`retired`] counts the retired values that are not freed yet. A value is freed only when some
//!   thread uses the collector, for example in [`collect`]. So `collect` must be repeated while the
//!   count is not zero, and `reclaim.rs` repeats it.
//!
//! Deliberately absent: a wait for readers.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::raw::fork::PerProcess;
use crate::raw::sync::{AtomicPtr, Ordering};
use crate::seeded::seeded;

/// A pin on the epoch. Only [`pin`] creates guards, so each belongs to the collector that
/// [`ArcCell`] uses.
pub(crate) struct Guard(crossbeam_epoch::Guard);

/// Number of retired values of the process that are not freed yet.
static RETIRED: PerProcess<AtomicUsize> = PerProcess::new();

fn retired_values() -> &'static AtomicUsize {
    RETIRED.get(AtomicUsize::default)
}

/// Number of rounds after which a value retired by the calling thread is freed if no pin prevents
/// it: one round hands it to the collector, two advance the epoch.
const ROUNDS: usize = 3;

#[cfg(not(loom))]
mod collector {
    use std::cell::RefCell;

    use crossbeam_epoch::{Collector, Guard, LocalHandle};

    use crate::raw::fork::{Birth, PerProcess};

    static COLLECTOR: PerProcess<Collector> = PerProcess::new();

    thread_local! {
        /// The handle through which this thread pins the epoch, and the process in which the handle
        /// was registered.
        static HANDLE: RefCell<Option<(Birth, LocalHandle)>> = const { RefCell::new(None) };
    }

    fn register() -> LocalHandle {
        COLLECTOR.get(Collector::new).register()
    }

    #[inline]
    pub(super) fn pin() -> Guard {
        let known = HANDLE.try_with(|handle| match &*handle.borrow() {
            Some((birth, handle)) if birth.is_here() => Some(handle.pin()),
            _ => None,
        });
        match known {
            Ok(Some(guard)) => guard,
            _ => pin_first(),
        }
    }

    #[cold]
    fn pin_first() -> Guard {
        let registered = HANDLE.try_with(|handle| {
            let new = register();
            let guard = new.pin();
            let former = handle.borrow_mut().replace((Birth::now(), new));
            // In a forked child, `former` is the handle of the parent's thread, registered with a
            // collector that the child never uses. It is not dropped, because the drop would access
            // that collector for no benefit.
            std::mem::forget(former);
            guard
        });
        // The thread-local handle of a thread that is ending may be gone. Such a thread registers a
        // handle for this one pin.
        registered.unwrap_or_else(|_| register().pin())
    }
}

/// Pins the current thread, in a few nanoseconds. A pinned thread may pin again.
#[inline]
pub(crate) fn pin() -> Guard {
    #[cfg(not(loom))]
    return Guard(collector::pin());
    // The model checker loom supports only crossbeam's default collector.
    #[cfg(loom)]
    Guard(crossbeam_epoch::pin())
}

/// Returns the number of retired values of the process that are not freed yet.
#[inline]
pub(crate) fn retired() -> usize {
    retired_values().load(Ordering::Relaxed)
}

/// Frees the retired values that no pin covers, except values that their threads have not handed to
/// the collector yet. Returns `true` if no retired value remains. A pin of the caller also prevents
/// freeing.
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
    /// Hands the retired values of this thread to the collector now, instead of once there are many
    /// of them.
    pub(crate) fn flush(&self) {
        self.0.flush();
    }

    /// Drops `value` at some time after every pin that exists now has ended.
    fn retire<T: Send + 'static>(&self, value: T) {
        let retired = retired_values();
        retired.fetch_add(1, Ordering::Relaxed);
        self.0.defer(move || {
            drop(value);
            retired.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// A replaceable `Arc` that pinned readers follow without changing its reference count.
pub(crate) struct ArcCell<T: Send + Sync + 'static> {
    /// Pointer from `Arc::into_raw`. The cell owns its reference count.
    pointer: AtomicPtr<T>,
}

impl<T: Send + Sync + 'static> ArcCell<T> {
    /// Returns a cell with `value`.
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self {
            pointer: AtomicPtr::new(Arc::into_raw(value).cast_mut()),
        }
    }

    /// Returns the current value. It stays valid as long as the pin, even if the value of the cell
    /// is replaced.
    #[inline(always)]
    pub(crate) fn load<'g>(&'g self, _guard: &'g Guard) -> &'g T {
        let order = if seeded("reached-unordered") {
            Ordering::Relaxed
        } else {
            Ordering::Acquire
        };
        // SAFETY: the pointer comes from `Arc::into_raw`, and the cell owns a count of it. Only
        // `replace` and `drop` release that count. `replace` releases the count after every pin has
        // ended that existed when the pointer left the cell. If this call reads the old pointer,
        // `_guard` is such a pin. `drop` cannot run while the cell is borrowed for 'g.
        unsafe { &*self.pointer.load(order) }
    }

    /// Returns the current value with a reference count of its own, so that the value outlives the
    /// pin.
    pub(crate) fn load_arc(&self, _guard: &Guard) -> Arc<T> {
        let pointer = self.pointer.load(Ordering::Acquire);
        // SAFETY: as in `load`, the value is alive with a count of at least one during this call,
        // so the count may be incremented. `from_raw` then owns exactly the count added here.
        unsafe {
            Arc::increment_strong_count(pointer);
            Arc::from_raw(pointer)
        }
    }

    /// Replaces the value. The count of the old value is released once every pin that may have seen
    /// the old value has ended.
    pub(crate) fn replace(&self, value: Arc<T>, guard: &Guard) {
        let old = self
            .pointer
            .swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        // SAFETY: `swap` returns each pointer once, so `old` has the count that the cell owned.
        // `retire` releases that count only when the epoch permits it.
        let old = unsafe { Arc::from_raw(old) };
        if cfg!(all(loom, not(crossbeam_loom))) {
            // Loom runs this code many times in one process, and no run may see state of another
            // run. The collector is a static variable, which all runs would share. So the value is
            // leaked here instead of retired. Builds with `--cfg crossbeam_loom` retire it, and
            // their tests check the collector.
            std::mem::forget(old);
        } else if seeded("retired-at-once") {
            drop(old);
        } else {
            guard.retire(old);
        }
    }
}

impl<T: Send + Sync + 'static> Drop for ArcCell<T> {
    fn drop(&mut self) {
        // SAFETY: the cell owns this count, and `&mut self` proves that no reference from `load` is
        // alive, since all of them borrow the cell.
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
    fn pins_of_the_parent_delay_nothing_in_a_forked_child() {
        let drops = Arc::new(AtomicUsize::new(0));
        let cell = |value| Arc::new(Counted(value, drops.clone()));
        let (pinned, is_pinned) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _guard = pin();
                pinned.send(()).unwrap();
                let _ = is_done.recv();
            });
            is_pinned.recv().unwrap();
            // The retired value waits for the pin of the other thread.
            ArcCell::new(cell(1)).replace(cell(2), &pin());
            let child = crate::raw::fork::fork(|| {
                let before = drops.load(Ordering::SeqCst);
                ArcCell::new(cell(3)).replace(cell(4), &pin());
                // The second value of the cell is freed when the cell is dropped. So two drops are
                // expected.
                collect() && retired() == 0 && drops.load(Ordering::SeqCst) == before + 2
            });
            assert!(crate::raw::fork::wait(child));
            drop(done);
        });
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
