//! Rate limit of background compaction.
//!
//! - Each copy moves the earliest time of the next copy.
//! - A pause is the caller's business: nothing here sleeps.
//!
//! Deliberately absent: bursts.

use std::time::{Duration, Instant};

/// Longest pause of a throttled compaction after one step. One year, so that no sum of times
/// overflows.
const PAUSE_SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Limits the rate of copies.
pub(super) struct Throttle<'a> {
    pub(super) bytes_per_second: u64,
    pub(super) not_before: &'a mut Option<Instant>,
}

impl Throttle<'_> {
    /// Accounts for copied bytes.
    pub(super) fn copied(&mut self, bytes: u64) {
        if bytes > 0 {
            let now = Instant::now();
            let seconds = bytes as f64 / self.bytes_per_second as f64;
            let from = self.not_before.map_or(now, |at| at.max(now));
            *self.not_before = Some(from + Duration::from_secs_f64(seconds.min(PAUSE_SECONDS_MAX)));
        }
    }

    /// Returns the time until the next copy is permitted.
    pub(super) fn wait(&self) -> Option<Duration> {
        let left = self
            .not_before
            .as_ref()?
            .saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}
