//! The retry budget: retries are limited to a share of the first tries, plus a few per second.
//!
//! A warehouse in trouble fails calls, and each failed call is retried. Without a budget, the
//! retries would increase the load and the trouble. First tries never wait for the budget.

use crate::outbox::OutboxLimits;

/// The number of retries permitted now.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// Number of permitted retries, in hundredths of a retry.
    saved: u64,
    filled_at_ms: Option<u64>,
}

impl RetryBudget {
    /// Adds `retries_per_second` for the time since the last addition, until `saved` reaches the
    /// retries of ten seconds. The first call adds the retries of ten seconds.
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

    /// Adds the share of a retry that each first try permits (`retry_percent`).
    pub(super) fn first_try(&mut self, limits: &OutboxLimits) {
        // Without this bound, the first tries of a busy hour would permit a flood of retries later.
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

/// Pause of the failed messages of one kind after their budget was used up, in milliseconds.
pub(super) const BUDGET_WAIT_MS: u64 = 500;
