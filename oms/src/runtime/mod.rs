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

/// Lets all tasks that are ready run, again and again until the number that `progress` returns has
/// not changed in two rounds, for at most `GATHER_ROUNDS_MAX` rounds. So work that is done for many
/// tasks at a time, such as a sync, waits for the tasks that are ready, and for no timer. One round
/// without a change says little, because this task may be the first one in a round.
pub(crate) async fn gather(progress: impl Fn() -> usize) {
    let (mut known, mut quiet) = (progress(), 0);
    for _ in 0..GATHER_ROUNDS_MAX {
        tokio::task::yield_now().await;
        let before = std::mem::replace(&mut known, progress());
        quiet = if known == before { quiet + 1 } else { 0 };
        if quiet == 2 {
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

    /// Calls `gather` beside a task that makes progress in this number of rounds. Returns the
    /// number of rounds of the call.
    async fn rounds_of_gather(rounds_with_progress: usize) -> usize {
        let (rounds, progress) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, made) = (Arc::clone(&rounds), Arc::clone(&progress));
        let counting = tokio::spawn(async move {
            loop {
                if counted.fetch_add(1, Ordering::Relaxed) < rounds_with_progress {
                    made.fetch_add(1, Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
        });
        gather(|| progress.load(Ordering::Relaxed)).await;
        counting.abort();
        rounds.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn gather_ends_two_rounds_after_the_last_progress() {
        for with_progress in [0, 1, 5] {
            let rounds = rounds_of_gather(with_progress).await;
            let expected = with_progress + 1..=with_progress + 3;
            assert!(expected.contains(&rounds), "{with_progress}: {rounds}");
        }
    }

    #[tokio::test]
    async fn gather_ends_although_progress_goes_on() {
        let rounds = rounds_of_gather(usize::MAX).await;
        assert!(
            (GATHER_ROUNDS_MAX - 1..=GATHER_ROUNDS_MAX + 1).contains(&rounds),
            "{rounds}"
        );
    }
}
