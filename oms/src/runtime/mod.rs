//! What a task belongs to: the process that it ends with.
//!
//! A node is a process of the operating system, and here everything is what it seems: tasks,
//! threads that may wait for a disk, chance. In the simulation (`simulation`, tests only) several
//! nodes share one thread and virtual time; each is a `Process` of its own there, so that all its
//! tasks can be killed, stopped and continued at any place where they wait, and so that chance
//! comes from the seed. Therefore whoever starts a task, waits for a disk or throws dice does it by
//! these functions and by nothing else. What is given to `blocking` waits for a disk only: never
//! for another task.

pub(crate) mod clock;
pub(crate) mod metrics;
pub(crate) mod regular_file;
pub(crate) mod seeded;
#[cfg(test)]
pub(crate) mod simulated;

use tokio::task::JoinHandle;

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

/// A task of this process that something else starts (a `JoinSet`).
#[cfg(not(test))]
pub(crate) fn within<F: Future>(task: F) -> F {
    task
}

#[cfg(test)]
pub(crate) use crate::runtime::simulated::within;

/// Does something that may wait for a disk where no other task waits for it.
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

/// A number that nobody guesses.
pub(crate) fn random_u64() -> u64 {
    #[cfg(test)]
    if let Some(process) = simulated::Process::current() {
        return process.dice().u64();
    }
    rand::random()
}

/// A number from 0 to 1, without 1.
pub(crate) fn random_share() -> f64 {
    #[cfg(test)]
    if let Some(process) = simulated::Process::current() {
        return process.dice().share();
    }
    rand::random()
}
