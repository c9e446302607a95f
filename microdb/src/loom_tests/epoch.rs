//! Reclamation: what a pinned reader has reached stays, and what nobody can reach any more goes. The collector's own steps are part of the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{check, spawn};
use crate::raw::epoch::{ArcCell, pin};
use loom::cell::UnsafeCell;

/// A value that the model checker watches, and that counts when it goes.
struct Watched {
    value: UnsafeCell<usize>,
    dropped: Arc<AtomicUsize>,
}

/// What a value is once it was dropped.
const GONE: usize = usize::MAX;

impl Watched {
    fn new(value: usize, dropped: &Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            value: UnsafeCell::new(value),
            dropped: dropped.clone(),
        })
    }

    fn read(&self) -> usize {
        // SAFETY: stored to only when it is dropped; that nobody reads it then is what is being checked.
        self.value.with(|value| unsafe { *value })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: as above.
        self.value.with_mut(|value| unsafe { *value = GONE });
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn loom_a_pinned_reader_keeps_what_it_reached_while_the_writer_retires_it() {
    let freed_early = Arc::new(AtomicUsize::new(0));
    let early = freed_early.clone();
    check(2, move || {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = Arc::new(ArcCell::new(Watched::new(1, &dropped)));
        let reader = spawn({
            let cell = cell.clone();
            move || {
                let guard = pin();
                let seen = cell.load(&guard);
                let first = seen.read();
                assert!(first == 1 || first == 2, "{first}");
                let kept = cell.load_arc(&guard);
                assert!(kept.read() >= first);
                assert_eq!(seen.read(), first, "freed under a pin");
                drop(guard);
                assert!(kept.read() <= 2, "freed with a count");
            }
        });
        cell.replace(Watched::new(2, &dropped), &pin());
        // Each moves the epoch on if nobody is pinned in an older one, and frees what is two epochs old.
        (0..3).for_each(|_| pin().flush());
        early.fetch_add(dropped.load(Ordering::Relaxed), Ordering::Relaxed);
        reader.join().unwrap();
        drop(cell);
        (0..3).for_each(|_| pin().flush());
        assert!(dropped.load(Ordering::Relaxed) <= 2, "freed twice");
    });
    // Without, the model would show only that nothing is ever freed.
    assert!(
        freed_early.load(Ordering::Relaxed) > 0,
        "nothing was freed beside the reader"
    );
}
