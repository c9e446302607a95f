//! Expiry: ends orders that are not paid in time.
//!
//! Orders are stored by time of arrival, page by page, so expiry keeps no order in memory. Each
//! unpaid order on a due page is asked to expire.
//!
//! **Invariants**
//! - The time to pay is measured by the monotonic clock, from the moment at which this process
//!   first knew of the order (`Mark`). The wall clock only gives the order's age at that moment. So
//!   a step of the clock while the process runs neither ends an order early nor keeps it alive.
//! - An order with a time of arrival in the future was taken by a clock that was ahead. It counts
//!   as new when the volume is opened, so it waits for one payment timeout at most.
//! - Expiring an order twice, after a crash, changes nothing.
//!
//! Deliberately absent: a timer for each order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::order::{Command, State};
use crate::runtime::watch;
use crate::storage::write_batch::WriteBatch;
use crate::volume::state::OrderError;
use crate::volume::transactor::{Ask, Transactors};

/// Interval between two passes, and so the longest delay of an expiry.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Number of pages after which progress is committed. A crash repeats these pages at most.
const PAGES_PER_NOTE: u64 = 256;
/// Maximum number of marks for one payment timeout. It bounds the memory for any timeout.
const MARKS_PER_TIMEOUT: u32 = 1_024;

/// Expires unpaid orders until `stop` becomes true.
pub(crate) async fn run(
    transactors: Arc<Transactors>,
    payment_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut expiry = Expiry::new(&transactors, payment_timeout);
    loop {
        match expiry.expire_due(&transactors).await {
            // The order's slot is being migrated. Its next volume expires the order.
            Ok(()) | Err(OrderError::Moved) => {}
            Err(fault) => tracing::warn!(?fault, page = expiry.page, "pass over unpaid orders failed"),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PASS_INTERVAL) => {}
        }
    }
}

/// A moment at which this process knew all orders up to a page.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Orders on the pages before this one were known.
    end: u64,
    at: Instant,
    /// Wall-clock time at that moment in UTC milliseconds, corrected for a step forward just before
    /// it.
    wall_ms: u64,
}

/// The search for unpaid orders of one volume.
pub(crate) struct Expiry {
    timeout: Duration,
    /// First page with an order that may still be paid in time.
    page: u64,
    /// Oldest first. Marks before `page` are dropped.
    marks: VecDeque<Mark>,
    /// The last reading of both clocks.
    last: (u64, Instant),
}

impl Expiry {
    /// Continues from the progress that the volume recorded.
    pub(crate) fn new(transactors: &Transactors, timeout: Duration) -> Expiry {
        let state = transactors.state();
        Expiry {
            timeout,
            page: state.storage.counters().expired_page,
            marks: VecDeque::new(),
            last: (state.clock.now_ms(), Instant::now()),
        }
    }

    /// Expires every order that is due.
    pub(crate) async fn expire_due(&mut self, transactors: &Arc<Transactors>) -> Result<(), OrderError> {
        let state = transactors.state();
        self.mark(state.storage.counters().next_page, state.clock.now_ms());
        let recorded = state.storage.counters().expired_page;
        // Staged orders are skipped until they are active.
        let in_force = state.storage.first_inactive_page.load(Ordering::Acquire);
        let end = self.marks.back().map_or(0, |mark| mark.end).min(in_force);
        while self.page < end {
            if !self.page_is_over(transactors).await? {
                break;
            }
            self.page += 1;
            if self.page.is_multiple_of(PAGES_PER_NOTE) {
                record_progress(transactors, recorded, self.page).await?;
            }
        }
        record_progress(transactors, recorded, self.page).await
    }

    /// Records that all orders before `next_page` are known now.
    fn mark(&mut self, next_page: u64, wall_ms: u64) {
        let now = Instant::now();
        let passed_ms = (now - self.last.1).as_millis() as u64;
        let unstepped_ms = wall_ms.min(self.last.0.saturating_add(passed_ms));
        self.last = (wall_ms, now);
        let apart = self.timeout / MARKS_PER_TIMEOUT;
        let is_new = self
            .marks
            .back()
            .is_none_or(|mark| mark.end < next_page && now - mark.at >= apart);
        if is_new {
            self.marks.push_back(Mark {
                end: next_page,
                at: now,
                wall_ms: unstepped_ms,
            });
        }
    }

    /// Expires the due orders of a page. Returns `false` at the first order that is not due.
    async fn page_is_over(&mut self, transactors: &Arc<Transactors>) -> Result<bool, OrderError> {
        let state = transactors.state();
        let page = self.page;
        while self.marks.front().is_some_and(|mark| mark.end <= page) {
            self.marks.pop_front();
        }
        let Some(mark) = self.marks.front().copied() else {
            return Ok(false);
        };
        for id in state.storage.arrivals(page)? {
            if !state.slots.has_order(&id) {
                continue;
            }
            let Some(order) = state.storage.order(&id)? else {
                continue;
            };
            // An order that was paid or has ended does not hold up the page.
            let is_unpaid = matches!(order.state, State::Received | State::Reserved | State::Announced);
            if !is_unpaid {
                continue;
            }
            let age_then = Duration::from_millis(mark.wall_ms.saturating_sub(order.created_at_ms()));
            if age_then.saturating_add(mark.at.elapsed()) < self.timeout {
                return Ok(false);
            }
            if matches!(order.state, State::Reserved | State::Announced) {
                transactors.ask(&id, Ask::Command(Command::Expire)).await?;
            }
        }
        Ok(true)
    }
}

async fn record_progress(transactors: &Transactors, recorded: u64, page: u64) -> Result<(), OrderError> {
    if page < recorded + PAGES_PER_NOTE {
        return Ok(());
    }
    let mut batch = WriteBatch::default();
    batch.expired_to(page);
    let permit = transactors.state().storage.permit().await?;
    permit.send(batch).durable().await?;
    Ok(())
}

#[cfg(test)]
mod tests;
