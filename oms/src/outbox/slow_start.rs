//! How many calls of one kind are made at a time: few at first, more with each answer.
//!
//! A volume that is opened with a long outbox does not know whether the warehouse is there.
//! Thousands of calls at once to one that is not would fail at once, and keep the processors from
//! the orders until the breaker has opened; one that has just come back would get them all in its
//! first moment. So a lane starts slowly (RFC 5681, 3.1, has the idea): each answer makes room for
//! two more.

/// Calls in flight before any was answered: enough that a warehouse which takes seconds is asked by
/// thousands within ten.
const FIRST: usize = 256;
/// Further calls that an answer makes room for.
const GROWTH: usize = 2;

/// The room of one lane, below what its limits allow at most.
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

    /// Returns `true` if another call may be made beside those in flight.
    pub(super) fn has_room(self, in_flight: usize, in_flight_max: usize) -> bool {
        in_flight < self.room(in_flight_max)
    }

    /// A call was answered, whatever the answer.
    pub(super) fn answered(&mut self, in_flight_max: usize) {
        self.0 = (self.0 + GROWTH).min(in_flight_max.max(FIRST));
    }

    /// The warehouse is taken to be away.
    pub(super) fn shut(&mut self) {
        *self = SlowStart::default();
    }
}
