//! Prompt release of retired memory, maps and descriptors, independent of later calls by the user.
//!
//! - A retired value ([`crate::raw::epoch`]) is freed by a thread that works for the collector
//!   after the last pin has ended. The thread that retired it may never call again. So a job is
//!   scheduled while any retired value waits.
//! - The job has a thread of its own, because other background threads may be waiting for a disk.
//!
//! Deliberately absent: any wait for readers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::raw::fork::PerProcess;
use crate::raw::pool::{self, Lane};
use crate::raw::{epoch, heap};

/// Time between two rounds while a pin is in the way. Pins last for microseconds, so the first
/// round nearly always succeeds. A thread preempted with a pin runs again within milliseconds.
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// Time from a request to the first round, so that a busy writer causes one round for many retired
/// values.
const FIRST_AFTER: Duration = Duration::from_millis(5);

/// `true` while the job is scheduled. A forked child has no thread that would run the job of its
/// parent.
static SCHEDULED: PerProcess<AtomicBool> = PerProcess::new();

fn scheduled() -> &'static AtomicBool {
    SCHEDULED.get(AtomicBool::default)
}

/// Bytes of directories freed since memory was last returned to the system.
static FREED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Freed bytes from which memory is returned to the system. Fewer are soon reused, and returning
/// them would cost page faults later.
const TRIM_BYTES: usize = 16 << 20;

/// Freed bytes from which memory is returned to the system after a directory was dropped.
const TRIM_BYTES_AT_END: usize = 1 << 20;

/// Schedules the job if a retired value waits to be freed.
#[inline]
pub(crate) fn request() {
    if epoch::retired() > 0 {
        schedule();
    }
}

/// Frees retired values as far as pins permit, and schedules the job for the rest. The caller holds
/// no pin.
pub(crate) fn now() {
    if !epoch::collect() {
        schedule();
    }
}

/// Records that parts of a directory were freed.
pub(crate) fn note_freed(bytes: usize) {
    if FREED_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes >= TRIM_BYTES {
        schedule();
    }
}

/// Records that a whole directory was freed, because its table was cleared or dropped or its
/// database closed.
pub(crate) fn note_freed_directory() {
    if FREED_BYTES.load(Ordering::Relaxed) >= TRIM_BYTES_AT_END {
        note_freed(TRIM_BYTES);
    }
}

/// Frees retired values and returns freed memory to the system before this call returns, as far as
/// pins permit. The caller holds no pin. A round that another thread has begun is waited for.
pub(crate) fn finish() {
    let _round = round();
    // Pins of other databases end soon, but nobody waits for them without a bound.
    let is_done = (0..FINISH_ROUNDS).any(|_| {
        let is_done = epoch::collect();
        if !is_done {
            std::thread::yield_now();
        }
        is_done
    });
    if !is_done {
        schedule();
    }
    trim();
}

/// Number of tries of `finish`, together about a millisecond.
const FINISH_ROUNDS: u32 = 1000;

/// Held during a round: while values are freed, and while memory is returned to the system, which
/// locks the allocator.
static ROUND: PerProcess<Mutex<()>> = PerProcess::new();

/// Begins a round, after the round of another thread. No retired value begins one when it is freed.
fn round() -> MutexGuard<'static, ()> {
    let round = ROUND.get(Mutex::default).lock();
    round.unwrap_or_else(PoisonError::into_inner)
}

/// Returns freed memory to the system, in a round.
fn trim() {
    if FREED_BYTES.load(Ordering::Relaxed) >= TRIM_BYTES {
        FREED_BYTES.store(0, Ordering::Relaxed);
        heap::trim();
    }
}

#[cold]
fn schedule() {
    // A model has no threads except its own.
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
        // A value retired before the store found the job scheduled, so the request is repeated.
        request();
        note_freed(0);
    } else {
        pool::submit(Lane::Memory, AGAIN_AFTER, work);
    }
}
