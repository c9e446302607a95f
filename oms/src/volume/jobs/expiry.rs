//! Expiry: ends orders that are not paid in time.
//!
//! Orders wait in the volume in order of arrival, page by page, so nothing is kept in memory for
//! them. Each order on a page that is due is asked to expire if it is still unpaid. Asking twice,
//! after a crash, changes nothing.
//!
//! - The time to pay is measured by the monotonic clock from the moment at which this process first
//!   knew of an order (`Mark`). The age that the order had by then is the only use of the time of
//!   day. So a step of the clock while the process runs neither ends nor keeps an order.
//! - An order from a time that is still to come was taken by a clock that was ahead. It counts as
//!   new when the volume is opened: it waits for one payment timeout at most.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::order::{Command, State};
use crate::storage::write_batch::WriteBatch;
use crate::volume::state::OrderError;
use crate::volume::transactor::{Ask, Transactors};

/// Longest wait before looking again: how late an expiry may come.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Pages after which progress is written down; a crash repeats the look at these at most.
const PAGES_PER_NOTE: u64 = 256;
/// Largest number of marks for one payment timeout: a bound of memory, whatever the timeout.
const MARKS_PER_TIMEOUT: u32 = 1_024;

/// Expires unpaid orders until told to stop.
pub(crate) async fn expire_always(
    transactors: Arc<Transactors>,
    payment_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut expiry = Expiry::new(&transactors, payment_timeout);
    loop {
        match expiry.look(&transactors).await {
            // The order's slot is being migrated; its next volume looks at the order again.
            Ok(()) | Err(OrderError::Moved) => {}
            Err(fault) => tracing::warn!(?fault, page = expiry.page, "unpaid orders not looked for"),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK_AT_LEAST_EVERY) => {}
        }
    }
}

/// A moment at which all orders up to a page were known.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Orders on the pages before this one were known.
    end: u64,
    at: Instant,
    /// The time of day then, without a step forward just before: UTC milliseconds.
    wall_ms: u64,
}

/// The search for unpaid orders of one volume.
pub(crate) struct Expiry {
    timeout: Duration,
    /// The first page with an order whose time to pay is not over.
    page: u64,
    /// Oldest first; those before `page` are dropped.
    marks: VecDeque<Mark>,
    /// The time of day when it was last read.
    last: (u64, Instant),
}

impl Expiry {
    /// Begins where the volume's notes say.
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
    pub(crate) async fn look(&mut self, transactors: &Arc<Transactors>) -> Result<(), OrderError> {
        let state = transactors.state();
        self.mark(state.storage.counters().next_page, state.clock.now_ms());
        let noted = state.storage.counters().expired_page;
        // Orders that are being migrated to this volume are looked at once they are in force.
        let in_force = state.storage.first_inactive_page.load(Ordering::Acquire);
        let end = self.marks.back().map_or(0, |mark| mark.end).min(in_force);
        while self.page < end {
            if !self.page_is_over(transactors).await? {
                break;
            }
            self.page += 1;
            if self.page.is_multiple_of(PAGES_PER_NOTE) {
                note(transactors, noted, self.page).await?;
            }
        }
        note(transactors, noted, self.page).await
    }

    /// Notes which orders are known now.
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

    /// Expires the orders of a page that are due. Returns `false` at the first one that is not.
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
            // An order that has ended or is paid waits for nothing, so no later order waits for it.
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

async fn note(transactors: &Transactors, noted: u64, page: u64) -> Result<(), OrderError> {
    if page < noted + PAGES_PER_NOTE {
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
