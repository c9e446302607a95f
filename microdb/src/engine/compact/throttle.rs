//! Rate limit of background compaction.
//!
//! - Each copy postpones the earliest time of the next copy by the number of copied bytes divided
//!   by the rate.
//! - The caller pauses. No function of this module sleeps.
//!
//! Deliberately absent: bursts. A time without copies does not permit a higher rate afterwards.

use std::time::{Duration, Instant};

/// Longest pause, in seconds, of a throttled compaction after one step. It is one year, so that
/// adding it to a point in time never overflows.
const PAUSE_SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Limits the rate of copies.
pub(super) struct Throttle<'a> {
    pub(super) bytes_per_second: u64,
    pub(super) not_before: &'a mut Option<Instant>,
}

impl Throttle<'_> {
    /// Postpones the next copy by the time that `bytes` take at the permitted rate.
    pub(super) fn copied(&mut self, bytes: u64) {
        if bytes > 0 {
            let now = Instant::now();
            let seconds = bytes as f64 / self.bytes_per_second as f64;
            let from = self.not_before.map_or(now, |at| at.max(now));
            *self.not_before = Some(from + Duration::from_secs_f64(seconds.min(PAUSE_SECONDS_MAX)));
        }
    }

    /// Returns the time until the next copy is permitted, or `None` if a copy is permitted now.
    pub(super) fn wait(&self) -> Option<Duration> {
        let left = self
            .not_before
            .as_ref()?
            .saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}
