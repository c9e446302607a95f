//! The budget of second tries: a share of the first ones, and a few a second besides.
//!
//! A warehouse in trouble fails calls, and each failed call wants to be made again: without a
//! budget it would get the more to do the worse it fares. First tries never wait for the budget.

use crate::outbox::OutboxLimits;

/// How many tries may be made again now.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// In hundredths of a try.
    saved: u64,
    filled_at_ms: Option<u64>,
}

impl RetryBudget {
    /// Adds what time brings, up to ten seconds' worth; the first look finds it full.
    pub(super) fn fill(&mut self, limits: &OutboxLimits, now_ms: u64) {
        let full = u64::from(limits.retries_per_second) * 10 * 100;
        let since_ms = match self.filled_at_ms {
            None => u64::MAX,
            Some(at_ms) => now_ms.saturating_sub(at_ms),
        };
        let brought = since_ms.saturating_mul(u64::from(limits.retries_per_second)) / 10;
        if brought > 0 {
            self.saved = self.saved.max(full.min(self.saved.saturating_add(brought)));
            self.filled_at_ms = Some(now_ms);
        }
    }

    /// A first try was made: it pays for a part of a second one.
    pub(super) fn first_try(&mut self, limits: &OutboxLimits) {
        // A busy hour does not pay for a flood of repetitions later.
        let most = 100 * 100 + u64::from(limits.retries_per_second) * 10 * 100;
        self.saved = (self.saved + u64::from(limits.retry_percent)).min(most);
    }

    /// True if a second try may be made now; it is then paid for.
    pub(super) fn allows_retry(&mut self) -> bool {
        let allows = self.saved >= 100;
        if allows {
            self.saved -= 100;
        }
        allows
    }
}

/// How long a try waits that the budget does not allow yet.
pub(super) const BUDGET_WAIT_MS: u64 = 500;
