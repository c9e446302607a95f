//! Prompt release of retired memory, maps and descriptors, independent of later calls by the user.
//!
//! - A round frees retired values. If enough memory was freed, the round returns it to the
//!   operating system.
//! - A retired value ([`crate::raw::epoch`]) is freed by a thread that calls the collector after
//!   the last pin that covers the value has ended. The thread that retired the value may never call
//!   the engine again. So a job that runs rounds is scheduled while any retired value waits.
//! - The job has a thread of its own, because other background threads may be waiting for a disk.
//!
//! Deliberately absent: any wait for readers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::raw::fork::PerProcess;
use crate::raw::pool::{self, Lane};
use crate::raw::{epoch, heap};

/// Time until the next round if a round did not free all values, mostly because of a pin. Pins last
/// for microseconds, so the first round nearly always succeeds. A thread that was preempted while
/// pinned runs again within milliseconds.
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// Time from a request to the first round. The delay lets a busy writer cause one round for many
/// retired values.
const FIRST_AFTER: Duration = Duration::from_millis(5);

/// `true` while the job is scheduled or running. Each process has its own flag, because a forked
/// child has no thread that would run the job of its parent.
static SCHEDULED: PerProcess<AtomicBool> = PerProcess::new();

fn scheduled() -> &'static AtomicBool {
    SCHEDULED.get(AtomicBool::default)
}

/// Number of bytes of directories that were freed since memory was last returned to the operating
/// system. [`note_freed_directory`] may add `TRIM_BYTES`.
static FREED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Number of freed bytes from which memory is returned to the operating system. Fewer bytes are
/// soon reused, and returning them would cost page faults later.
const TRIM_BYTES: usize = 16 << 20;

/// Number of freed bytes from which memory is returned to the operating system after a whole
/// directory was freed.
const TRIM_BYTES_AT_END: usize = 1 << 20;

/// Schedules the job that frees retired values, if any retired value is not freed yet.
#[inline]
pub(crate) fn request() {
    if epoch::retired() > 0 {
        schedule();
    }
}

/// Frees the retired values that no pin covers, and schedules the job if some remain. The caller
/// must hold no pin, which would prevent freeing.
pub(crate) fn now() {
    if !epoch::collect() {
        schedule();
    }
}

/// Records that `bytes` of a directory's parts were freed. Schedules the job once `TRIM_BYTES` were
/// freed.
pub(crate) fn note_freed(bytes: usize) {
    if FREED_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes >= TRIM_BYTES {
        schedule();
    }
}

/// Records that a whole directory was freed, for example because its table was cleared or its
/// database closed. From `TRIM_BYTES_AT_END` freed bytes on, the job then returns memory to the
/// operating system, as if `TRIM_BYTES` had been freed.
pub(crate) fn note_freed_directory() {
    if FREED_BYTES.load(Ordering::Relaxed) >= TRIM_BYTES_AT_END {
        note_freed(TRIM_BYTES);
    }
}

/// Performs a round before this call returns. The caller holds no pin. If another thread is
/// performing a round, this call first waits for the end of that round. If pins prevent the freeing
/// of some values for about a millisecond, the job is scheduled to free these values later.
pub(crate) fn finish() {
    let _round = round();
    // Pins of other databases end soon, but the wait for them has a bound.
    if !repeat_within(FINISH_WITHIN, epoch::collect) {
        schedule();
    }
    trim();
}

/// Time after which `finish` leaves the values that are still pinned to the job. Each attempt
/// yields the processor, which takes microseconds, or milliseconds on a loaded machine.
const FINISH_WITHIN: Duration = Duration::from_millis(1);

/// Repeats `collect` until it returns `true`, but begins no repetition after `limit`. Returns the
/// last result of `collect`.
fn repeat_within(limit: Duration, mut collect: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if collect() {
            return true;
        }
        if begun.elapsed() >= limit {
            return false;
        }
        std::thread::yield_now();
    }
}

/// Lock held during a round. So [`finish`] can wait for the end of a round that another thread has
/// begun.
static ROUND: PerProcess<Mutex<()>> = PerProcess::new();

/// Acquires the lock of the round, after waiting for the round of another thread. Freeing a value
/// never calls this function, so a round cannot deadlock with itself.
fn round() -> MutexGuard<'static, ()> {
    let round = ROUND.get(Mutex::default).lock();
    round.unwrap_or_else(PoisonError::into_inner)
}

/// Returns freed memory to the operating system if `TRIM_BYTES` were freed. The caller holds the
/// lock `ROUND`.
fn trim() {
    if FREED_BYTES.load(Ordering::Relaxed) >= TRIM_BYTES {
        FREED_BYTES.store(0, Ordering::Relaxed);
        heap::trim();
    }
}

#[cold]
fn schedule() {
    // A loom model permits only the threads that it creates itself.
    if cfg!(loom) || scheduled().swap(true, Ordering::AcqRel) {
        return;
    }
    pool::submit(Lane::Memory, FIRST_AFTER, work);
}

fn work() {
    let is_done = {
        let _round = round();
        let is_done = epoch::collect();
        trim();
        is_done
    };
    if is_done {
        scheduled().store(false, Ordering::Release);
        // A request between the collection and this store found the job still scheduled, so it
        // scheduled nothing. For such a request, the two calls below schedule the job if it is
        // needed.
        request();
        note_freed(0);
    } else {
        pool::submit(Lane::Memory, AGAIN_AFTER, work);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn collecting_is_repeated_until_it_succeeds_or_its_time_has_passed() {
        let mut calls = 0;
        let succeeds_at_third_call = || {
            calls += 1;
            calls == 3
        };
        assert!(repeat_within(Duration::MAX, succeeds_at_third_call));
        assert_eq!(calls, 3);
        let (limit, mut calls) = (Duration::from_millis(1), 0);
        let takes_all_the_time = || {
            calls += 1;
            let begun = Instant::now();
            while begun.elapsed() < limit {
                std::hint::spin_loop();
            }
            false
        };
        assert!(!repeat_within(limit, takes_all_the_time));
        assert_eq!(calls, 1);
    }
}
