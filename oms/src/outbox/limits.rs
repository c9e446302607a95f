//! How often, how long and how many at a time the warehouse is asked.

/// How messages are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Tries before a message is dead.
    pub tries_max: u32,
    /// Longest wait after the first failed try; it doubles with each further one.
    pub backoff_first_ms: u64,
    /// Longest wait after any failed try, whatever the warehouse's `Retry-After` asks for.
    pub backoff_max_ms: u64,
    /// Calls of each kind in flight at a time.
    pub in_flight_max: usize,
    /// Messages that may wait before new orders are turned away.
    pub waiting_max: usize,
    /// Second and further tries allowed for a hundred first ones: a warehouse in trouble is not
    /// given more to do by our asking again.
    pub retry_percent: u32,
    /// Second and further tries a second that are allowed all the same, and saved up to ten
    /// seconds' worth.
    pub retries_per_second: u32,
    /// Failed tries in a row that open a breaker.
    pub breaker_failures: u32,
    /// How long an open breaker waits before its first probe; it doubles with each failed one.
    pub probe_first_ms: u64,
    /// Longest wait between probes.
    pub probe_max_ms: u64,
}

impl Default for OutboxLimits {
    fn default() -> OutboxLimits {
        OutboxLimits {
            tries_max: 8,
            backoff_first_ms: 1_000,
            backoff_max_ms: 60_000,
            // A thousand orders a second at four seconds a call, and some room to catch up.
            in_flight_max: 6_400,
            // About 150 bytes each: an hour of the warehouse away at 250 orders a second.
            waiting_max: 1_000_000,
            // A warehouse on a good day needs seven in a hundred.
            retry_percent: 20,
            retries_per_second: 20,
            // One answer in fifteen is a 504 on a good day: sixteen in a row are no accident.
            breaker_failures: 16,
            probe_first_ms: 250,
            probe_max_ms: 2_000,
        }
    }
}

impl OutboxLimits {
    /// Returns the longest wait after the `attempts`th failed try, in milliseconds.
    pub(crate) fn backoff_ms(&self, attempts: u32) -> u64 {
        let doubled = 1u64 << attempts.saturating_sub(1).min(32);
        self.backoff_first_ms
            .saturating_mul(doubled)
            .min(self.backoff_max_ms)
    }
}
