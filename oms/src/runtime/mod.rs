//! Tasks, blocking work and randomness, with a substitute for the simulation. The submodules have
//! clocks, metrics, traces and other services of a process.
//!
//! In production a node is an operating system process, and these functions call tokio and `rand`.
//! In the simulation (`simulation`, tests only) several nodes share one thread and virtual time.
//! Each simulated node is a `Process` with tasks that are stopped, resumed and killed together.
//!
//! **Invariants**
//! - Code that the simulation runs uses these functions for its tasks, waits for a disk and random
//!   numbers. Otherwise the simulation could neither kill the tasks nor repeat a run from its seed.
//! - Work passed to `blocking` never waits for a task.

pub(crate) mod address;
pub(crate) mod clock;
pub(crate) mod exposition;
pub(crate) mod metrics;
pub(crate) mod process_metrics;
pub(crate) mod regular_file;
pub(crate) mod seeded;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod trace;
pub(crate) mod watch;

use tokio::task::JoinHandle;

/// Maximum number of rounds of `gather`.
const GATHER_ROUNDS_MAX: usize = 16;

/// Lets all tasks that are ready run, again and again as long as each round increases the number
/// that `progress` returns, for at most `GATHER_ROUNDS_MAX` rounds. So work that is done for many
/// tasks at a time, such as a sync, waits for the tasks that are ready, and for no timer.
pub(crate) async fn gather(progress: impl Fn() -> usize) {
    let mut known = progress();
    for _ in 0..GATHER_ROUNDS_MAX {
        tokio::task::yield_now().await;
        let before = std::mem::replace(&mut known, progress());
        if known == before {
            return;
        }
    }
}

/// Starts a task of this process.
pub(crate) fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[cfg(test)]
    if let Some(process) = simulated::Process::current() {
        return process.spawn(task);
    }
    tokio::spawn(task)
}

/// Runs work in a separate task, so that the work is finished even if its caller is dropped.
/// Returns `None` if the work panicked or was aborted.
pub(crate) async fn to_completion<F>(work: F) -> Option<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn(work).await.ok()
}

/// Wraps a task that is started by other means, such as a `JoinSet`, as a task of this process.
#[cfg(not(test))]
pub(crate) fn within<F: Future>(task: F) -> F {
    task
}

#[cfg(test)]
pub(crate) use crate::runtime::simulated::within;

/// Runs work on a thread for blocking work, because the work may wait for a disk.
pub(crate) fn blocking<T, F>(work: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    #[cfg(test)]
    if let Some(process) = simulated::Process::current() {
        return process.blocking(work);
    }
    tokio::task::spawn_blocking(work)
}

/// Returns a random number. In the simulation, the seed determines the number.
pub(crate) fn random_u64() -> u64 {
    #[cfg(test)]
    if let Some(process) = simulated::Process::current() {
        return process.dice().u64();
    }
    rand::random()
}

/// Returns a random number from 0 (included) to 1 (excluded).
pub(crate) fn random_share() -> f64 {
    #[cfg(test)]
    if let Some(process) = simulated::Process::current() {
        return process.dice().share();
    }
    rand::random()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Starts a task that adds 1 to the number in each of its rounds.
    fn start_counting(number: &Arc<AtomicUsize>, rounds: usize) -> JoinHandle<()> {
        let number = Arc::clone(number);
        tokio::spawn(async move {
            for _ in 0..rounds {
                number.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
    }

    #[tokio::test]
    async fn gather_ends_with_the_first_round_without_progress() {
        let number = Arc::new(AtomicUsize::new(0));
        let counting = start_counting(&number, 5);
        gather(|| number.load(Ordering::Relaxed)).await;
        assert_eq!(number.load(Ordering::Relaxed), 5);
        counting.await.unwrap();
        gather(|| number.load(Ordering::Relaxed)).await;
    }

    #[tokio::test]
    async fn gather_ends_although_progress_goes_on() {
        let number = Arc::new(AtomicUsize::new(0));
        let counting = start_counting(&number, usize::MAX);
        gather(|| number.load(Ordering::Relaxed)).await;
        assert!(number.load(Ordering::Relaxed) <= GATHER_ROUNDS_MAX + 1);
        counting.abort();
    }
}
