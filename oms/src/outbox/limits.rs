//! Limits of the calls to the warehouse.
//!
//! They bound memory (waiting messages), the load of the warehouse (calls in flight, retries), and
//! the time until a message is given up.

/// Limits of tries, waits and calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Maximum number of tries before a message becomes a dead letter.
    pub tries_max: u32,
    /// Maximum wait after the first failed try. It doubles with each further one.
    pub backoff_first_ms: u64,
    /// Maximum wait after any failed try. It also bounds the warehouse's `Retry-After`.
    pub backoff_max_ms: u64,
    /// Maximum number of calls in flight of each kind.
    pub in_flight_max: usize,
    /// Maximum number of waiting messages before new orders are rejected.
    pub waiting_max: usize,
    /// Number of retries permitted per hundred first tries. It keeps retries from adding to the
    /// load of a warehouse in trouble.
    pub retry_percent: u32,
    /// Number of further retries permitted per second. Unused ones are saved up to ten seconds'
    /// worth.
    pub retries_per_second: u32,
    /// Number of failed tries in a row that open a breaker.
    pub breaker_failures: u32,
    /// Wait of an open breaker before its first probe. It doubles with each failed probe.
    pub probe_first_ms: u64,
    /// Maximum wait between probes.
    pub probe_max_ms: u64,
}

impl Default for OutboxLimits {
    fn default() -> OutboxLimits {
        OutboxLimits {
            tries_max: 8,
            backoff_first_ms: 1_000,
            backoff_max_ms: 60_000,
            // A thousand orders per second at four seconds per call, and some room to catch up.
            in_flight_max: 6_400,
            // About 150 bytes each: an outage of an hour at 250 orders per second.
            waiting_max: 1_000_000,
            // A healthy warehouse needs seven retries per hundred.
            retry_percent: 20,
            retries_per_second: 20,
            // One answer in fifteen is a 504 on a healthy day, so sixteen in a row are no accident.
            breaker_failures: 16,
            probe_first_ms: 250,
            probe_max_ms: 2_000,
        }
    }
}

impl OutboxLimits {
    /// Returns the maximum wait after the `attempts`th failed try, in milliseconds.
    pub(crate) fn backoff_ms(&self, attempts: u32) -> u64 {
        let doubled = 1u64 << attempts.saturating_sub(1).min(32);
        self.backoff_first_ms
            .saturating_mul(doubled)
            .min(self.backoff_max_ms)
    }
}
