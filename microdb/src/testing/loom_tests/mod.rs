//! The engine itself under the model checker: opened on a disk in memory, a few threads, every
//! order of their steps that so many preemptions allow.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p microdb --lib loom` runs these and the
//! directory's; with `--cfg crossbeam_loom` besides, `loom_tests::epoch`, in which the collector's
//! own steps are part of the model.

#[cfg(not(crossbeam_loom))]
mod commit;
#[cfg(not(crossbeam_loom))]
mod disk;
#[cfg(crossbeam_loom)]
mod epoch;

use loom::thread::{Builder, JoinHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a thread's stack in a model; loom's own are too small to open a database on.
const STACK_WORDS: usize = 1 << 16;

/// A thread of a model.
fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().stack_size(STACK_WORDS).spawn(body).unwrap()
}

/// Runs `model` in every order of its threads that `preemptions` allow. Answers how many there
/// were.
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> u64 {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    let runs = Arc::new(AtomicU64::new(0));
    let counter = runs.clone();
    let model = Arc::new(model);
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        let model = model.clone();
        spawn(move || model()).join().unwrap();
    });
    // A model that loom sees no race in is run once, and proves nothing.
    let runs = runs.load(Ordering::Relaxed);
    assert!(runs > 10, "{runs} orders");
    println!("{runs} orders");
    runs
}
