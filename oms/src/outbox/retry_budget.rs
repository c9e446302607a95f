//! The retry budget: retries are limited to a share of the first tries, plus a few per second.
//!
//! A warehouse in trouble fails calls, and each failed call is retried. Without a budget, its load
//! would grow with its trouble. First tries never wait for the budget.

use crate::outbox::OutboxLimits;

/// The number of retries permitted now.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// Saved budget in hundredths of a try.
    saved: u64,
    filled_at_ms: Option<u64>,
}

impl RetryBudget {
    /// Adds the budget for the time since the last call, up to ten seconds' worth. The first call
    /// fills it.
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

    /// Adds the share that a first try contributes.
    pub(super) fn first_try(&mut self, limits: &OutboxLimits) {
        // The bound keeps a busy hour from paying for a flood of retries later.
        let most = 100 * 100 + u64::from(limits.retries_per_second) * 10 * 100;
        self.saved = (self.saved + u64::from(limits.retry_percent)).min(most);
    }

    /// Spends one retry. Returns `false` if the budget is used up.
    pub(super) fn allows_retry(&mut self) -> bool {
        let allows = self.saved >= 100;
        if allows {
            self.saved -= 100;
        }
        allows
    }
}

/// Wait of a retry for which the budget has no room.
pub(super) const BUDGET_WAIT_MS: u64 = 500;
