//! Threads for background work, shared by all databases of the process.
//!
//! - Two threads run long work, which may wait for the disk or a lock repeatedly, so that the
//!   compaction of one database does not delay all other databases. One thread runs short work,
//!   which must not wait for long work. One thread frees memory.
//! - Threads are started when the first job of their kind is submitted, so a process without
//!   background work has none of them. Threads never end.
//! - Among the waiting jobs of one kind, the job with the earliest due time runs first.
//!
//! Deliberately absent: results of jobs. A job reports through the state of its database.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::time::{Duration, Instant};

use crate::raw::fork::PerProcess;
use crate::raw::sync::ignore_poison;

/// Kinds of work. Each kind has threads of its own.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    /// Work that must not wait for long work: the write of buffered commits.
    Short,
    /// Work that may wait for the disk or a lock repeatedly, such as a compaction.
    Long,
    /// Freeing of retired memory.
    Memory,
}

type Job = Box<dyn FnOnce() + Send>;

/// A job with its due time, ordered by due time, then by order of submission.
struct Due {
    at: Instant,
    number: u64,
    job: Job,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Pool {
    /// The waiting jobs, and the number of the last submitted job.
    jobs: Mutex<(BinaryHeap<Reverse<Due>>, u64)>,
    changed: Condvar,
    started: Once,
    /// Number of threads, at most two. More threads would compete with the writers for processors.
    threads: usize,
    name: &'static str,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, (BinaryHeap<Reverse<Due>>, u64)> {
        ignore_poison(self.jobs.lock())
    }

    const fn new(threads: usize, name: &'static str) -> Self {
        Self {
            jobs: Mutex::new((BinaryHeap::new(), 0)),
            changed: Condvar::new(),
            started: Once::new(),
            threads,
            name,
        }
    }
}

struct Pools {
    long: Pool,
    short: Pool,
    memory: Pool,
}

impl Pools {
    const fn new() -> Self {
        Self {
            long: Pool::new(2, "microdb"),
            short: Pool::new(1, "microdb-short"),
            memory: Pool::new(1, "microdb-memory"),
        }
    }
}

/// The pools of this process. A forked child has no threads of its parent, so it has pools of its
/// own.
static POOLS: PerProcess<Pools> = PerProcess::new();

/// Runs `job` in the background after `delay`.
pub(crate) fn submit(lane: Lane, delay: Duration, job: impl FnOnce() + Send + 'static) {
    let pools = POOLS.get(Pools::new);
    let pool = match lane {
        Lane::Short => &pools.short,
        Lane::Long => &pools.long,
        Lane::Memory => &pools.memory,
    };
    pool.started.call_once(|| {
        for number in 0..pool.threads {
            // If no thread can be started, background work never runs. Work that a caller requests
            // directly, such as `Db::compact`, is done on the caller's thread.
            let _ = std::thread::Builder::new()
                .name(format!("{}-{number}", pool.name))
                .spawn(|| work(pool));
        }
    });
    let mut jobs = pool.lock();
    let (queue, number) = &mut *jobs;
    *number += 1;
    queue.push(Reverse(Due {
        at: Instant::now() + delay,
        number: *number,
        job: Box::new(job),
    }));
    pool.changed.notify_one();
}

fn work(pool: &Pool) {
    let mut jobs = pool.lock();
    loop {
        let wait = jobs
            .0
            .peek()
            .map(|Reverse(due)| due.at.saturating_duration_since(Instant::now()));
        match wait {
            None => jobs = ignore_poison(pool.changed.wait(jobs)),
            Some(wait) if !wait.is_zero() => {
                let waited = pool.changed.wait_timeout(jobs, wait);
                jobs = ignore_poison(waited).0;
            }
            Some(_) => {
                let Some(Reverse(due)) = jobs.0.pop() else {
                    continue;
                };
                drop(jobs);
                // A panicking job is a bug, but the thread must survive for the jobs of other
                // databases.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(due.job));
                jobs = pool.lock();
            }
        }
    }
}
