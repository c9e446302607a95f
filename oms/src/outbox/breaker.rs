//! The breaker of one kind of call: closed while the warehouse answers, open while it is away.
//!
//! Many failures in a row open it. While it is open nothing is sent but one probe at a time, with growing pauses; any answer, a
//! refusal included, closes it. So a warehouse that is away costs a few calls a minute, and messages keep their tries.

use super::OutboxLimits;

/// Whether calls of one kind are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breaker {
    /// They are; so many failed in a row.
    Closed { failures: u32 },
    /// They are not, but for a probe from that time on.
    Open {
        until_ms: u64,
        wait_ms: u64,
        probing: bool,
    },
}

/// What a breaker says to a call that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Go.
    Free,
    /// Go, and all others wait for what comes of it.
    Probe,
    /// Not before this time.
    At(u64),
    /// Not before the probe is back.
    AfterProbe,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker::Closed { failures: 0 }
    }
}

impl Breaker {
    /// When a call that is due at that time can be made, as far as is known now; never (`u64::MAX`) while a probe is out.
    pub(super) fn ready_ms(&self, due_ms: u64) -> u64 {
        match self {
            Breaker::Closed { .. } => due_ms,
            Breaker::Open { probing: true, .. } => u64::MAX,
            Breaker::Open { until_ms, .. } => due_ms.max(*until_ms),
        }
    }

    /// Lets a call that is due through, or says what it waits for.
    pub(super) fn pass(&mut self, now_ms: u64) -> Pass {
        match self {
            Breaker::Closed { .. } => Pass::Free,
            Breaker::Open { probing: true, .. } => Pass::AfterProbe,
            Breaker::Open { until_ms, .. } if *until_ms > now_ms => Pass::At(*until_ms),
            Breaker::Open { probing, .. } => {
                *probing = true;
                Pass::Probe
            }
        }
    }

    /// A call failed without an answer that settles it.
    pub(super) fn failed(&mut self, limits: &OutboxLimits, was_probe: bool, now_ms: u64) {
        *self = match *self {
            Breaker::Closed { failures } if failures + 1 < limits.breaker_failures => Breaker::Closed {
                failures: failures + 1,
            },
            Breaker::Closed { .. } => Breaker::open(limits.probe_first_ms, now_ms),
            Breaker::Open { wait_ms, .. } if was_probe => {
                Breaker::open((wait_ms * 2).min(limits.probe_max_ms), now_ms)
            }
            // It was on its way when the breaker opened.
            open @ Breaker::Open { .. } => open,
        };
    }

    fn open(wait_ms: u64, now_ms: u64) -> Breaker {
        Breaker::Open {
            until_ms: now_ms + wait_ms,
            wait_ms,
            probing: false,
        }
    }

    /// A probe came back without the warehouse having a part in it: another may go.
    pub(super) fn probe_is_back(&mut self) {
        if let Breaker::Open { probing, .. } = self {
            *probing = false;
        }
    }

    /// True while the warehouse is taken to be away.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Breaker::Open { .. })
    }
}
