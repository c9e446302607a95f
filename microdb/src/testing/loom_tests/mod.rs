//! Loom models of the whole engine, and of its collector (`epoch`). A model of the engine opens a
//! database on a disk in memory and runs a few threads. Loom tries every order of their steps with
//! a limited number of preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p imt-microdb --lib loom` runs these models and
//! those of the directory. With `--cfg crossbeam_loom` in addition, the command runs
//! `loom_tests::epoch`, in which the steps of the collector are part of the model.

#[cfg(not(crossbeam_loom))]
mod commit;
#[cfg(not(crossbeam_loom))]
mod disk;
#[cfg(crossbeam_loom)]
mod epoch;

use loom::thread::{Builder, JoinHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Stack size of a thread in a model, in words. Loom's default is too small for opening a database.
const STACK_WORDS: usize = 1 << 16;

/// Starts a thread that is part of a loom model.
fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().stack_size(STACK_WORDS).spawn(body).unwrap()
}

/// Runs `model` in every order of its threads' steps with at most `preemptions` preemptions.
/// Returns the number of orders.
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
    // A model without concurrent steps has only one order and proves nothing.
    let runs = runs.load(Ordering::Relaxed);
    assert!(runs > 10, "{runs} orders");
    println!("{runs} orders");
    runs
}
