//! A simulated process: tasks that are stopped, resumed and killed together.
//!
//! Every task is wrapped in a `Confined`. Before each poll, the wrapper asks the task's process if
//! the task may run. During the poll this process is the current process, so tasks that are started
//! then belong to it.
//!
//! **Invariants**
//! - A killed process polls no task, and starts none while its tasks are being dropped.
//! - A kill can be set for any later poll, so a process can die at every place where a task waits.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::{AbortHandle, JoinHandle};

thread_local! {
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// The source of all randomness of a simulation.
#[derive(Clone)]
pub(crate) struct Dice(Arc<Mutex<ChaCha8Rng>>);

impl Dice {
    /// Creates the source for a seed.
    pub(crate) fn of(seed: u64) -> Dice {
        Dice(Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed))))
    }

    fn rng(&self) -> MutexGuard<'_, ChaCha8Rng> {
        self.0.lock()
    }

    pub(crate) fn u64(&self) -> u64 {
        self.rng().random()
    }

    /// Returns a number from 0 (included) to 1 (excluded).
    pub(crate) fn share(&self) -> f64 {
        self.rng().random()
    }

    /// Returns a number from `first` to `last`, both included.
    pub(crate) fn between(&self, first: u64, last: u64) -> u64 {
        self.rng().random_range(first..=last)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunState {
    Runs,
    Stopped,
    Dead,
}

struct Inside {
    run_state: RunState,
    /// Tasks to be polled when the process is resumed.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// Number of polls that are left until the process is killed. `None` if no kill is set.
    polls_left: Option<u64>,
    /// `true` once the process has lost its lease, so that other processes may take over its
    /// volumes. On a disk that all nodes share, every further write of the process then fails.
    is_fenced: bool,
}

/// Function that is called once, when the process dies.
type OnDeath = Box<dyn Fn() + Send + Sync>;

/// A simulated process.
pub(crate) struct Process {
    inside: Mutex<Inside>,
    dice: Dice,
    on_death: OnDeath,
}

impl Process {
    /// Creates a process without tasks. `on_death` is called when the process is killed.
    pub(crate) fn new(dice: Dice, on_death: impl Fn() + Send + Sync + 'static) -> Arc<Process> {
        Arc::new(Process {
            inside: Mutex::new(Inside {
                run_state: RunState::Runs,
                waiting: Vec::new(),
                tasks: Vec::new(),
                polls_left: None,
                is_fenced: false,
            }),
            dice,
            on_death: Box::new(on_death),
        })
    }

    /// Returns the process of the running task. `None` outside of a simulated process.
    pub(crate) fn current() -> Option<Arc<Process>> {
        CURRENT.with_borrow(Clone::clone)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    pub(crate) fn dice(&self) -> &Dice {
        &self.dice
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.inside().run_state == RunState::Dead
    }

    /// Returns `true` if the process has lost its lease or is dead.
    pub(crate) fn is_fenced(&self) -> bool {
        let inside = self.inside();
        inside.is_fenced || inside.run_state == RunState::Dead
    }

    /// Takes the lease from the process without notifying the process.
    pub(crate) fn fence(&self) {
        self.inside().is_fenced = true;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.inside().run_state == RunState::Stopped
    }

    /// Starts a task of the process. The task never runs if the process is dead.
    pub(crate) fn spawn<F>(self: &Arc<Self>, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(Confined::new(Some(Arc::clone(self)), task));
        let mut inside = self.inside();
        if inside.run_state == RunState::Dead {
            handle.abort();
            return handle;
        }
        if inside.tasks.len() == inside.tasks.capacity() {
            inside.tasks.retain(|task| !task.is_finished());
        }
        inside.tasks.push(handle.abort_handle());
        handle
    }

    /// Runs work after a short pause in virtual time, during which the process may die.
    pub(crate) fn blocking<T, F>(self: &Arc<Self>, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let pause = Duration::from_millis(self.dice.between(0, 3));
        self.spawn(async move {
            if pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(pause).await;
            }
            work()
        })
    }

    /// Stops the process until it is resumed: no task of it is polled. Does nothing if the process
    /// is dead.
    pub(crate) fn stop(&self) {
        let mut inside = self.inside();
        if inside.run_state == RunState::Runs {
            inside.run_state = RunState::Stopped;
        }
    }

    pub(crate) fn resume(&self) {
        let waiting = {
            let mut inside = self.inside();
            if inside.run_state == RunState::Stopped {
                inside.run_state = RunState::Runs;
            }
            std::mem::take(&mut inside.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Lets the process do this number of polls, and kills it at the next poll.
    pub(crate) fn kill_after(&self, polls: u64) {
        self.inside().polls_left = Some(polls);
    }

    /// Kills the process and all its tasks.
    pub(crate) fn kill(&self) {
        let tasks = {
            let mut inside = self.inside();
            if inside.run_state == RunState::Dead {
                return;
            }
            inside.run_state = RunState::Dead;
            std::mem::take(&mut inside.tasks)
        };
        for task in tasks {
            task.abort();
        }
        (self.on_death)();
    }

    /// Returns `true` if a task may be polled. A stopped process keeps `waker` for `resume`. If a
    /// kill is set for a running process, counts the poll, or kills the process if no polls are
    /// left.
    fn may_poll(&self, waker: &Waker) -> bool {
        let dies = {
            let mut inside = self.inside();
            match inside.run_state {
                RunState::Dead => return false,
                RunState::Stopped => {
                    inside.waiting.push(waker.clone());
                    return false;
                }
                RunState::Runs => match &mut inside.polls_left {
                    None => false,
                    Some(0) => true,
                    Some(left) => {
                        *left -= 1;
                        false
                    }
                },
            }
        };
        if dies {
            self.kill();
        }
        !dies
    }
}

/// Makes a process the current process of this thread. Restores the former process when dropped.
struct CurrentProcess(Option<Arc<Process>>);

impl CurrentProcess {
    fn of(process: Option<Arc<Process>>) -> CurrentProcess {
        CurrentProcess(CURRENT.replace(process))
    }
}

impl Drop for CurrentProcess {
    fn drop(&mut self) {
        CURRENT.replace(self.0.take());
    }
}

/// A task of a process. Without a process, the task runs like any other task.
pub(crate) struct Confined<F> {
    process: Option<Arc<Process>>,
    task: Option<Pin<Box<F>>>,
}

impl<F> Confined<F> {
    fn new(process: Option<Arc<Process>>, task: F) -> Confined<F> {
        Confined {
            process,
            task: Some(Box::pin(task)),
        }
    }
}

/// Wraps a task that is started by other means as a task of the current process.
pub(crate) fn within<F: Future>(task: F) -> Confined<F> {
    Confined::new(Process::current(), task)
}

impl<F: Future> Future for Confined<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let process = self.process.clone();
        if let Some(process) = &process
            && !process.may_poll(cx.waker())
        {
            return Poll::Pending;
        }
        let _current = process.is_some().then(|| CurrentProcess::of(process));
        match &mut self.task {
            Some(task) => task.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Confined<F> {
    fn drop(&mut self) {
        // Destructors that run while a task is dropped belong to the task's process too.
        let _current = self
            .process
            .is_some()
            .then(|| CurrentProcess::of(self.process.clone()));
        self.task = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::runtime;

    /// Returns a process and a counter. The only task of the process increments the counter at each
    /// poll. When the task is dropped, it starts another task, which would add 1,000,000 if it ran.
    fn counting(deaths: &Arc<AtomicU64>) -> (Arc<Process>, Arc<AtomicU64>) {
        struct Last(Arc<AtomicU64>);
        impl Drop for Last {
            fn drop(&mut self) {
                let count = Arc::clone(&self.0);
                runtime::spawn(async move { count.fetch_add(1_000_000, Ordering::Relaxed) });
            }
        }
        let (deaths, count) = (Arc::clone(deaths), Arc::new(AtomicU64::new(0)));
        let process = Process::new(Dice::of(1), move || {
            deaths.fetch_add(1, Ordering::Relaxed);
        });
        let last = Last(Arc::clone(&count));
        process.spawn(async move {
            loop {
                last.0.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        (process, count)
    }

    async fn turns(count: usize) {
        for _ in 0..count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_killed_process_runs_no_task_even_while_its_tasks_are_dropped() {
        let deaths = Arc::new(AtomicU64::new(0));
        let (process, count) = counting(&deaths);
        process.kill_after(5);
        turns(100).await;
        assert!(process.is_dead());
        assert_eq!(count.load(Ordering::Relaxed), 5);
        process.kill();
        assert_eq!(deaths.load(Ordering::Relaxed), 1, "a process dies once");
        assert!(process.spawn(async {}).await.is_err());
    }

    #[tokio::test]
    async fn a_resumed_process_continues_at_its_place() {
        let deaths = Arc::new(AtomicU64::new(0));
        let (process, count) = counting(&deaths);
        turns(10).await;
        process.stop();
        let before = count.load(Ordering::Relaxed);
        turns(100).await;
        assert!(before > 0 && process.is_stopped());
        assert_eq!(count.load(Ordering::Relaxed), before);
        process.resume();
        turns(10).await;
        assert!(count.load(Ordering::Relaxed) > before);
    }
}
