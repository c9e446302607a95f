//! Limits of the calls of one volume to the warehouse.
//!
//! The limits bound memory (messages), the load of the warehouse (calls in flight, retries), and
//! the time until a message is given up.

/// Limits of the messages, tries, waits and calls in flight of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Number of failed tries after which a message becomes a dead letter. A malformed message
    /// becomes a dead letter after its first try. A message is tried more often if its failures may
    /// be those of an outage (`queue`).
    pub tries_max: u32,
    /// Maximum wait after the first failed try, in milliseconds, unless the warehouse requests a
    /// longer wait (`Retry-After`). The maximum doubles with each further failed try.
    pub backoff_first_ms: u64,
    /// Maximum wait after any failed try, in milliseconds. This value also limits the wait that the
    /// warehouse requests by `Retry-After`.
    pub backoff_max_ms: u64,
    /// Maximum number of calls in flight of each kind.
    pub in_flight_max: usize,
    /// Number of messages of both kinds from which on new orders are rejected. Messages about
    /// earlier orders are still added. Dead letters are included, because they need the same
    /// memory.
    pub messages_max: usize,
    /// Number of retries permitted per hundred first tries of the same kind of message. The limit
    /// keeps retries from adding to the load of a warehouse in trouble.
    pub retry_percent: u32,
    /// Number of retries of each kind of message permitted per second in addition to
    /// `retry_percent`. Unused retries of up to ten seconds are saved.
    pub retries_per_second: u32,
    /// Number of counted failures in a row that open the circuit breaker of a kind of message.
    /// `queue` decides if a failure counts.
    pub breaker_failures: u32,
    /// Wait of an open breaker before its first probe, in milliseconds. The wait doubles with each
    /// probe that finds the warehouse unreachable.
    pub probe_first_ms: u64,
    /// Maximum wait between probes, in milliseconds, unless the warehouse requests a longer wait
    /// (`Retry-After`).
    pub probe_max_ms: u64,
}

impl Default for OutboxLimits {
    fn default() -> OutboxLimits {
        OutboxLimits {
            tries_max: 8,
            backoff_first_ms: 1_000,
            backoff_max_ms: 60_000,
            // A thousand orders per second at four seconds per call have 4,000 calls in flight. The
            // rest is room to catch up after an outage.
            in_flight_max: 6_400,
            // A message takes about 150 bytes. A million messages cover an outage of an hour at 250
            // orders per second.
            messages_max: 1_000_000,
            // A healthy warehouse answers one call in fifteen with a 504, so it needs about seven
            // retries per hundred first tries.
            retry_percent: 20,
            retries_per_second: 20,
            // A healthy warehouse answers one call in fifteen with a 504. So sixteen failures in a
            // row are not a coincidence but an outage.
            breaker_failures: 16,
            probe_first_ms: 250,
            probe_max_ms: 2_000,
        }
    }
}

impl OutboxLimits {
    /// Returns the maximum wait after the `attempts`th failed try, in milliseconds, without regard
    /// to a wait that the warehouse requests.
    pub(crate) fn backoff_ms(&self, attempts: u32) -> u64 {
        let doubled = 1u64 << attempts.saturating_sub(1).min(32);
        self.backoff_first_ms
            .saturating_mul(doubled)
            .min(self.backoff_max_ms)
    }
}
