//! What an open database does by itself: hand over what was buffered, write checkpoints, compact.
//!
//! All on the shared pool, and only when there is something to do. A failure here is no commit's
//! failure: a failed write or sync poisons, and the next commit says so; a checkpoint or compaction
//! that fails (a full disk, a damaged record) leaves everything as it was and is tried again when
//! the log has grown.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::engine::{Engine, lock};
use crate::raw::pool::{self, Lane};
use crate::raw::sync::{AtomicBool, Ordering};

/// How long buffered commits wait in memory at most before they are handed to the operating system,
/// from where they survive a crash of the process.
const WRITE_AFTER: Duration = Duration::from_millis(100);

/// Longest delay of a scheduled job. A closed database is forgotten by the pool once its jobs were
/// due.
const COMPACTION_WAIT_MAX: Duration = Duration::from_secs(10);

/// Which work is waiting for the pool, and how to end it.
#[derive(Default)]
pub(crate) struct Background {
    engine: OnceLock<Weak<Engine>>,
    write_scheduled: AtomicBool,
    housekeeping_scheduled: AtomicBool,
    compaction_scheduled: AtomicBool,
}

impl Background {
    pub(crate) fn attach(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    fn schedule(&self, lane: Lane, flag: fn(&Self) -> &AtomicBool, delay: Duration, work: fn(&Engine)) {
        // Looked at first, since a store would take the cache line from the other committers.
        if flag(self).load(Ordering::Relaxed) || flag(self).swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(engine) = self.engine.get().cloned() else {
            return;
        };
        pool::submit(lane, delay, move || {
            if let Some(engine) = engine.upgrade() {
                flag(&engine.background).store(false, Ordering::Release);
                work(&engine);
            }
        });
    }
}

impl Engine {
    /// Sees to it that buffered commits do not stay in memory for long.
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

    /// Sees to it that checkpoints and compactions are made if they are due.
    pub(crate) fn schedule_housekeeping(&self) {
        if self.options.background && !self.options.read_only {
            let flag: fn(&Background) -> &AtomicBool = |background| &background.housekeeping_scheduled;
            self.background
                .schedule(Lane::Long, flag, Duration::ZERO, |engine| {
                    // While writers are slowed, space comes first. What is removed needs no seal.
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

    /// Schedules the next turn of a throttled compaction. Other housekeeping does not wait for it.
    fn schedule_compaction(&self, wait: Duration) {
        let flag: fn(&Background) -> &AtomicBool = |background| &background.compaction_scheduled;
        let delay = wait.min(COMPACTION_WAIT_MAX);
        self.background
            .schedule(Lane::Long, flag, delay, Self::schedule_housekeeping);
    }
}
