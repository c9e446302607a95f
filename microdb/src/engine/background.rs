//! Background work of an open database: checkpoints, compaction, sealing, and handing buffered
//! commits to the operating system.
//!
//! - Jobs run on the thread pool shared by all databases, and only if there is work.
//! - A job returns its error to no caller. A failed write or sync of the log or of SUPER poisons
//!   the database, so the next commit fails with
//!   [`Error::Poisoned`](crate::error::Error::Poisoned). A checkpoint, seal or compaction that
//!   fails for another reason (full disk, damaged record) loses no data. A later job tries again.
//!   Compaction then skips a segment with a damaged record until the next open, and sealing leaves
//!   such a segment without a seal.
//!
//! Deliberately absent: threads of a single database.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::engine::{Engine, lock};
use crate::raw::pool::{self, Lane};
use crate::raw::sync::{AtomicBool, Ordering};

/// Delay of the job that hands buffered commits in memory to the operating system. Commits handed
/// over survive a crash of the process.
const WRITE_AFTER: Duration = Duration::from_millis(100);

/// Maximum delay of a scheduled compaction, even if the rate limit requires a longer pause. The
/// pool keeps a job of a closed database until the job's delay has passed, so the delay must not be
/// long.
const COMPACTION_WAIT_MAX: Duration = Duration::from_secs(10);

/// The number of running jobs of a database.
#[derive(Default)]
pub(crate) struct RunningJobs {
    number: Mutex<usize>,
    ended: Condvar,
}

impl RunningJobs {
    /// Waits until no job of the database is running.
    pub(crate) fn wait_for_end(&self) {
        let number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.ended.wait_while(number, |number| *number > 0));
    }
}

/// Counts one job as running until this value is dropped, which also happens if the job panics.
struct RunningJob(Arc<RunningJobs>);

impl RunningJob {
    fn begin(jobs: Arc<RunningJobs>) -> Self {
        *jobs.number.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(jobs)
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        *self.0.number.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_all();
    }
}

/// State of a database's background jobs: the engine, the number of running jobs, and one flag for
/// each kind of job. A flag is `true` while a job of its kind waits in the pool.
#[derive(Default)]
pub(crate) struct Background {
    engine: OnceLock<Weak<Engine>>,
    pub(crate) running: Arc<RunningJobs>,
    write_scheduled: AtomicBool,
    housekeeping_scheduled: AtomicBool,
    compaction_scheduled: AtomicBool,
}

impl Background {
    pub(crate) fn attach(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    fn schedule(&self, lane: Lane, flag: fn(&Self) -> &AtomicBool, delay: Duration, work: fn(&Engine)) {
        // The flag is loaded before the swap, because a swap takes the cache line away from other
        // committing threads.
        if flag(self).load(Ordering::Relaxed) || flag(self).swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(engine) = self.engine.get().cloned() else {
            return;
        };
        let running = self.running.clone();
        pool::submit(lane, delay, move || {
            // The job begins before its weak reference to the engine is upgraded, and ends after
            // the upgraded reference is dropped. So [`RunningJobs::wait_for_end`] returns only
            // after that drop.
            let _job = RunningJob::begin(running);
            if let Some(engine) = engine.upgrade() {
                flag(&engine.background).store(false, Ordering::Release);
                work(&engine);
            }
        });
    }
}

impl Engine {
    /// Schedules the write of buffered commits after [`WRITE_AFTER`]. Does nothing if such a job
    /// already waits in the pool, or if the options forbid background work.
    #[inline]
    pub(crate) fn schedule_write(&self) {
        if self.options.background {
            self.background.schedule(
                Lane::Short,
                |background| &background.write_scheduled,
                WRITE_AFTER,
                |engine| {
                    if !engine.closed.load(Ordering::Acquire) {
                        let _ = engine.write_log(&mut lock(&engine.writer));
                    }
                },
            );
        }
    }

    /// Schedules a job that seals segments. The job also compacts segments and writes a checkpoint
    /// if these steps are due. Does nothing if such a job already waits in the pool, if the
    /// database is read-only, or if the options forbid background work.
    pub(crate) fn schedule_housekeeping(&self) {
        if self.options.background && !self.options.read_only {
            let flag: fn(&Background) -> &AtomicBool = |background| &background.housekeeping_scheduled;
            self.background
                .schedule(Lane::Long, flag, Duration::ZERO, |engine| {
                    // While the size of the log slows commits, compaction runs before sealing,
                    // because the segments that it removes need no seal.
                    let is_crowded = engine.is_crowded();
                    let mut next_turn = Ok(None);
                    if is_crowded {
                        next_turn = engine.compact_in_background();
                    }
                    let _ = engine.seal_segments();
                    if !is_crowded {
                        next_turn = engine.compact_in_background();
                    }
                    if engine.checkpoint_due() {
                        let _ = engine.checkpoint();
                    }
                    if let Ok(Some(wait)) = next_turn {
                        engine.schedule_compaction(wait);
                    }
                });
        }
    }

    /// Schedules a compaction to continue after `wait`, or after [`COMPACTION_WAIT_MAX`] if that is
    /// shorter, because the rate limit has paused it. Seals and checkpoints may be scheduled before
    /// that time.
    fn schedule_compaction(&self, wait: Duration) {
        let flag: fn(&Background) -> &AtomicBool = |background| &background.compaction_scheduled;
        let delay = wait.min(COMPACTION_WAIT_MAX);
        self.background
            .schedule(Lane::Long, flag, delay, Self::schedule_housekeeping);
    }
}
