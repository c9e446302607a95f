//! Frees retired memory, maps and descriptors promptly, without waiting for some later call of a
//! user.
//!
//! A value that was retired ([`crate::raw::epoch`]) is freed by a thread that works for the
//! collector after the last pin on it has ended. The thread that retired it may never call again,
//! so this module guarantees such a thread: while any value waits, a job is scheduled. The job has
//! a thread of its own, because the other background threads may be waiting for a disk.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::raw::pool::{self, Lane};
use crate::raw::{epoch, heap};

/// Time between two rounds while a pin is in the way. Pins last for microseconds, so the first
/// round nearly always succeeds; a thread that was preempted with a pin gets its next turn within
/// milliseconds.
const AGAIN_AFTER: Duration = Duration::from_millis(2);

/// Time from a request to the first round, so that a busy writer costs one round for many retired
/// values.
const FIRST_AFTER: Duration = Duration::from_millis(5);

static SCHEDULED: AtomicBool = AtomicBool::new(false);

/// Bytes of directories that were freed since the allocator last gave memory back to the system.
static FREED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// So many freed bytes are given back to the system. Fewer are soon used again, and giving back
/// costs page faults later.
const TRIM_BYTES: usize = 16 << 20;

/// After the end of a directory, so few freed bytes are given back.
const TRIM_BYTES_AT_END: usize = 1 << 20;

/// Schedules the job if a retired value waits to be freed.
#[inline]
pub(crate) fn request() {
    if epoch::retired() > 0 {
        schedule();
    }
}

/// Frees retired values now as far as no pin is in the way, and schedules the job for the rest. The
/// caller holds no pin.
pub(crate) fn now() {
    if !epoch::collect() {
        schedule();
    }
}

/// Notes that parts of a directory were freed.
pub(crate) fn note_freed(bytes: usize) {
    if FREED_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes >= TRIM_BYTES {
        schedule();
    }
}

/// Notes that a whole directory was freed: its table was cleared or dropped, or its database is
/// gone.
pub(crate) fn note_freed_directory() {
    if FREED_BYTES.load(Ordering::Relaxed) >= TRIM_BYTES_AT_END {
        note_freed(TRIM_BYTES);
    }
}

#[cold]
fn schedule() {
    // In a model there are no threads but its own.
    if cfg!(loom) || SCHEDULED.swap(true, Ordering::AcqRel) {
        return;
    }
    pool::submit(Lane::Memory, FIRST_AFTER, work);
}

fn work() {
    let is_done = epoch::collect();
    if FREED_BYTES.load(Ordering::Relaxed) >= TRIM_BYTES {
        FREED_BYTES.store(0, Ordering::Relaxed);
        heap::trim();
    }
    if is_done {
        SCHEDULED.store(false, Ordering::Release);
        // A value that was retired before the store found the job scheduled.
        request();
        note_freed(0);
    } else {
        pool::submit(Lane::Memory, AGAIN_AFTER, work);
    }
}
