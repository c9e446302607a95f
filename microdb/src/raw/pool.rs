//! The threads for work in the background, shared by all databases of the process.
//!
//! Two for long work, so that one database's compaction does not keep all others waiting, and one
//! for short work, which must not wait for any. They are started when first needed: a database that
//! has nothing to do has no thread and no timer. Work is given with a due time; what is due first
//! runs first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::raw::fork::PerProcess;

/// What kind of work a thread is for.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    /// What waits for the disk once at most.
    Short,
    /// Anything longer.
    Long,
    /// Freeing retired memory: never waits for a disk or a lock.
    Memory,
}

type Job = Box<dyn FnOnce() + Send>;

/// A job and when it is due; ordered by that, then by arrival.
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
    jobs: Mutex<(BinaryHeap<Reverse<Due>>, u64)>,
    changed: Condvar,
    started: Once,
    /// Few: more would compete with the writers that they work for.
    threads: usize,
    name: &'static str,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, (BinaryHeap<Reverse<Due>>, u64)> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A forked child has none of its parent's threads, so it starts its own.
static POOLS: PerProcess<Pools> = PerProcess::new();

/// Runs `job` in the background, after `delay`.
pub(crate) fn submit(lane: Lane, delay: Duration, job: impl FnOnce() + Send + 'static) {
    let pools = POOLS.get(Pools::new);
    let pool = match lane {
        Lane::Short => &pools.short,
        Lane::Long => &pools.long,
        Lane::Memory => &pools.memory,
    };
    pool.started.call_once(|| {
        for number in 0..pool.threads {
            // Without threads nothing happens in the background; what is asked for still does.
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
            None => jobs = pool.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner),
            Some(wait) if !wait.is_zero() => {
                let waited = pool.changed.wait_timeout(jobs, wait);
                jobs = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            Some(_) => {
                let Some(Reverse(due)) = jobs.0.pop() else {
                    continue;
                };
                drop(jobs);
                // A job that panics is a bug of ours, but no reason to take the other databases'
                // thread away.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(due.job));
                jobs = pool.lock();
            }
        }
    }
}
