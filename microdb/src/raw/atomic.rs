//! The atomics of what readers and the writer share: the standard ones, or loom's.
//!
//! With `--cfg loom` the model checker runs the real code through every order of these accesses (`docs/testing.md`). Counters that only say how much there is of
//! something use the standard ones directly: no decision hangs on their order.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
