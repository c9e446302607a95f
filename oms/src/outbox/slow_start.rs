//! The bound of calls in flight of one kind: low at first, higher with each answer.
//!
//! A process that opens a volume with a long outbox does not know yet if the warehouse is
//! reachable. If the warehouse is unreachable, thousands of calls would fail together and take
//! processor time from orders until the breaker opens. A warehouse that has just restarted would
//! receive all these calls in its first moment. So each queue starts slowly, similar to RFC 5681,
//! 3.1: each answer raises the bound by two calls, up to the configured limit.

/// Maximum number of calls in flight before the first answer, and after each reset. A warehouse
/// that takes seconds per call still gets thousands of calls within ten seconds.
const FIRST: usize = 256;
/// Number of further calls that an answer permits.
const GROWTH: usize = 2;

/// The current bound of one queue. The configured limit of calls in flight also applies.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlowStart(usize);

impl Default for SlowStart {
    fn default() -> SlowStart {
        SlowStart(FIRST)
    }
}

impl SlowStart {
    /// Returns the number of calls that may be in flight.
    pub(super) fn room(self, in_flight_max: usize) -> usize {
        self.0.min(in_flight_max)
    }

    /// Returns `true` if another call may be made in addition to the calls in flight.
    pub(super) fn has_room(self, in_flight: usize, in_flight_max: usize) -> bool {
        in_flight < self.room(in_flight_max)
    }

    /// Raises the bound after an answer that shows that the warehouse is reachable.
    pub(super) fn answered(&mut self, in_flight_max: usize) {
        self.0 = (self.0 + GROWTH).min(in_flight_max.max(FIRST));
    }

    /// Resets the bound, because the breaker is open.
    pub(super) fn reset(&mut self) {
        *self = SlowStart::default();
    }
}
