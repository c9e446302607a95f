//! Loom models of reclamation: a value reached by a pinned reader is not freed, and an unreachable
//! value is freed. The steps of the collector are part of the models.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{check, spawn};
use crate::raw::epoch::{ArcCell, pin};

/// A value in an atomic of loom, so that loom checks the order of its accesses. A drop is counted
/// in `dropped`.
struct Watched {
    value: loom::sync::atomic::AtomicUsize,
    dropped: Arc<AtomicUsize>,
}

/// Content of a `Watched` before its value is written.
const BEFORE: usize = 0;
/// Content of a `Watched` after its drop.
const GONE: usize = usize::MAX;

impl Watched {
    /// Returns a watched value. `value` is stored in a separate step, so a reader that is not
    /// ordered behind the writer may still see `BEFORE`.
    fn new(value: usize, dropped: &Arc<AtomicUsize>) -> Arc<Self> {
        let watched = Self {
            value: loom::sync::atomic::AtomicUsize::new(BEFORE),
            dropped: dropped.clone(),
        };
        watched.value.store(value, Ordering::Relaxed);
        Arc::new(watched)
    }

    fn read(&self) -> usize {
        self.value.load(Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.value.store(GONE, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn loom_a_pinned_reader_keeps_what_it_reached_while_the_writer_retires_it() {
    let freed_early = Arc::new(AtomicUsize::new(0));
    let early = freed_early.clone();
    check(1, move || {
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
        // Each flush advances the epoch if no thread is pinned in an older epoch, and frees values
        // that were retired two epochs ago.
        (0..3).for_each(|_| pin().flush());
        early.fetch_add(dropped.load(Ordering::Relaxed), Ordering::Relaxed);
        reader.join().unwrap();
        drop(cell);
        (0..3).for_each(|_| pin().flush());
        assert!(dropped.load(Ordering::Relaxed) <= 2, "freed twice");
    });
    // Without this check, the model would pass even if no value were ever freed before the thread
    // of the reader is joined.
    assert!(
        freed_early.load(Ordering::Relaxed) > 0,
        "nothing was freed beside the reader"
    );
}

/// Notices a pointer that is loaded with relaxed ordering. The memory fences of two pins order
/// everything behind the later pin. So the fault only shows if the reader pins before the writer
/// pins, and loads the pointer after the writer has replaced it. This order needs two preemptions,
/// which the larger model above cannot afford.
#[test]
fn loom_a_pointer_is_published_after_its_value() {
    check(2, || {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = Arc::new(ArcCell::new(Watched::new(1, &dropped)));
        let reader = spawn({
            let cell = cell.clone();
            move || {
                let seen = cell.load(&pin()).read();
                assert!(seen == 1 || seen == 2, "{seen}");
            }
        });
        cell.replace(Watched::new(2, &dropped), &pin());
        reader.join().unwrap();
    });
}
