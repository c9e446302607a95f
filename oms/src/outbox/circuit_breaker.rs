//! The circuit breaker of one kind of call.
//!
//! Many failures in a row open the breaker (`queue` decides if a failure counts). While the breaker
//! is open, only probes are sent, so an unreachable warehouse costs few calls. An answer that shows
//! that the warehouse has examined a message closes the breaker: done, refused, malformed or in
//! progress.
//!
//! - While the warehouse is unreachable, one probe is sent at a time, with doubling pauses.
//! - While the warehouse answers with errors, the messages may be at fault instead of the
//!   warehouse. Then several messages are sent as probes at a time, to find soon a message that
//!   succeeds.
//!
//! Deliberately absent: the choice of the message to send as a probe (`queue`).

use crate::outbox::{Failure, FailureKind, OutboxLimits};

/// Maximum number of probes in flight. With this number, even 150 failing messages are all tried as
/// probes within a few seconds, so a message that succeeds is found soon.
const PROBES_MAX: u32 = 16;

/// The state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CircuitBreaker {
    /// Calls are made. `failures` is the number of counted failures since the last answer that
    /// shows that the warehouse has examined a message.
    Closed { failures: u32 },
    /// The breaker lets only probes through.
    Open {
        /// Monotonic time before which no further probe is sent, in milliseconds.
        until_ms: u64,
        /// Current pause between two probes, in milliseconds.
        wait_ms: u64,
        /// Number of probes in flight.
        out: u32,
        /// Current maximum number of probes in flight, from 1 to `PROBES_MAX`.
        room: u32,
    },
}

/// The decision of a breaker about a call that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The call may be made.
    Free,
    /// The call may be made as a probe.
    Probe,
    /// No call may be made before this monotonic time in milliseconds.
    At(u64),
    /// No call may be made before a probe has ended.
    AfterProbe,
}

impl Default for CircuitBreaker {
    fn default() -> CircuitBreaker {
        CircuitBreaker::Closed { failures: 0 }
    }
}

impl CircuitBreaker {
    /// Returns the earliest monotonic time at which a call that is due at `due_ms` may be made, as
    /// far as known now. Returns `u64::MAX` while the maximum number of probes is in flight.
    pub(super) fn ready_ms(&self, due_ms: u64) -> u64 {
        match self {
            CircuitBreaker::Closed { .. } => due_ms,
            CircuitBreaker::Open { out, room, .. } if out >= room => u64::MAX,
            CircuitBreaker::Open { until_ms, .. } => due_ms.max(*until_ms),
        }
    }

    /// Permits a call that is due and counts it if it is a probe, or returns the condition that it
    /// must wait for.
    pub(super) fn pass(&mut self, now_ms: u64) -> Pass {
        match self {
            CircuitBreaker::Closed { .. } => Pass::Free,
            CircuitBreaker::Open { out, room, .. } if *out >= *room => Pass::AfterProbe,
            CircuitBreaker::Open { until_ms, .. } if *until_ms > now_ms => Pass::At(*until_ms),
            CircuitBreaker::Open { out, .. } => {
                *out += 1;
                Pass::Probe
            }
        }
    }

    /// Counts a call that failed with `FailureKind::Unreachable` or `FailureKind::Error`.
    pub(super) fn failed(&mut self, limits: &OutboxLimits, failure: &Failure, was_probe: bool, now_ms: u64) {
        // The warehouse may request a wait of any length, so the wait is bounded.
        let asked_ms = failure.retry_after_ms.unwrap_or(0).min(limits.backoff_max_ms);
        match self {
            CircuitBreaker::Closed { failures } if *failures + 1 < limits.breaker_failures => *failures += 1,
            CircuitBreaker::Closed { .. } => {
                *self = CircuitBreaker::Open {
                    until_ms: now_ms + limits.probe_first_ms.max(asked_ms),
                    wait_ms: limits.probe_first_ms,
                    out: 0,
                    room: 1,
                };
            }
            CircuitBreaker::Open {
                until_ms,
                wait_ms,
                out,
                room,
            } if was_probe => {
                if failure.kind == FailureKind::Error {
                    *wait_ms = limits.probe_first_ms;
                    *room = (*room * 2).min(PROBES_MAX);
                } else {
                    *wait_ms = (*wait_ms * 2).min(limits.probe_max_ms);
                    *room = 1;
                }
                *until_ms = now_ms + (*wait_ms).max(asked_ms);
                *out = out.saturating_sub(1);
            }
            // The call began before the breaker opened, so its failure changes nothing.
            CircuitBreaker::Open { .. } => {}
        }
    }

    /// Ends a probe without a result: the call was not made, or this node could not store its
    /// answer.
    pub(super) fn cancel_probe(&mut self) {
        if let CircuitBreaker::Open { out, .. } = self {
            *out = out.saturating_sub(1);
        }
    }

    /// Returns `true` if exactly one probe is in flight.
    pub(super) fn has_one_probe(&self) -> bool {
        matches!(self, CircuitBreaker::Open { out: 1, .. })
    }

    /// Returns the number of counted failures in a row. An open breaker returns the number that
    /// opened it.
    pub(super) fn failures(&self, limits: &OutboxLimits) -> u32 {
        match self {
            CircuitBreaker::Closed { failures } => *failures,
            CircuitBreaker::Open { .. } => limits.breaker_failures,
        }
    }

    /// Returns `true` while only probes are sent.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, CircuitBreaker::Open { .. })
    }
}
