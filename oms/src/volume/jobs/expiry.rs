//! Expiry: ends orders that are not paid in time.
//!
//! The ids of orders are stored in the sequence of their arrival, in numbered pages, so expiry
//! keeps no order in memory. Each unpaid order that is due gets the command to expire.
//!
//! **Invariants**
//! - The time to pay is measured by the monotonic clock, from the moment at which this volume
//!   server first knew the order (`Mark`). The wall clock gives only the order's age at that
//!   moment. So a step of the wall clock while the server runs expires no order early, and delays
//!   expiry by at most the time between two marks.
//! - An order's time of arrival may be in the future, because the clock was ahead when the order
//!   arrived or was set back since. Such an order is treated as new when the volume is opened, so
//!   it waits for at most one payment timeout.
//! - Expiring an order twice, after a crash, changes nothing.
//! - An order that cannot be read or expired delays no other order.
//!
//! Deliberately absent: a timer for each order.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::order::{Command, State};
use crate::runtime::watch;
use crate::storage::write_batch::WriteBatch;
use crate::volume::state::OrderError;
use crate::volume::transactor::{Ask, Transactors};

/// Interval between two passes over unpaid orders. An order usually expires too late by at most
/// this time.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Number of finished pages after which progress is committed. After a crash, the search repeats
/// fewer than twice as many pages.
const PAGES_PER_NOTE: u64 = 256;
/// Maximum number of marks within one payment timeout. It bounds the memory for marks if the
/// timeout is long.
const MARKS_PER_TIMEOUT: u32 = 1_024;
/// Maximum number of pages with an order that cannot be read or expired. With more such pages, the
/// search stops before the next one.
const STUCK_PAGES_MAX: usize = 64;

/// Expires unpaid orders until `stop` becomes `true`.
pub(crate) async fn run(
    transactors: Arc<Transactors>,
    payment_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let mut expiry = Expiry::new(&transactors, payment_timeout);
    loop {
        match expiry.expire_due(&transactors).await {
            // The order's slot is being migrated, this volume server is closing, or the order
            // cannot take the step yet. A later pass, here or in the next server with the slot,
            // will expire the order.
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

/// A moment, and the pages of arrivals on which this volume server knew all orders at that moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// First page of arrivals that had not been written at the moment of the mark.
    end: u64,
    at: Instant,
    /// Wall-clock time at the moment of the mark in UTC milliseconds, less the sum of all steps
    /// since the previous mark if the sum is a step forward.
    wall_ms: u64,
}

/// The search for unpaid orders of one volume, page by page.
pub(crate) struct Expiry {
    timeout: Duration,
    /// First page that the search has not reached.
    page: u64,
    /// Earlier pages with an order that could not be read or expired. Each pass tries them again.
    stuck: BTreeSet<u64>,
    /// Marks from the oldest to the newest. A mark is removed once `page` has reached `Mark::end`.
    marks: VecDeque<Mark>,
    /// The last reading of the wall clock (UTC milliseconds) and of the monotonic clock.
    last: (u64, Instant),
    /// Sum of all steps of the wall clock since the newest mark, in milliseconds. Steps back are
    /// negative.
    stepped_ms: i64,
}

impl Expiry {
    /// Creates a search that continues at the progress recorded in the volume.
    pub(crate) fn new(transactors: &Transactors, timeout: Duration) -> Expiry {
        let state = transactors.state();
        Expiry {
            timeout,
            page: state.storage.counters().expired_page,
            stuck: BTreeSet::new(),
            marks: VecDeque::new(),
            last: (state.clock.now_ms(), Instant::now()),
            stepped_ms: 0,
        }
    }

    /// Expires the orders that were not paid in time.
    pub(crate) async fn expire_due(&mut self, transactors: &Arc<Transactors>) -> Result<(), OrderError> {
        let state = transactors.state();
        self.mark(state.storage.counters().next_page, state.clock.now_ms());
        let recorded = state.storage.counters().expired_page;
        // The pass ends before the first page that may list staged orders of a migration.
        let in_force = state.storage.first_inactive_page.load(Ordering::Acquire);
        let end = self.marks.back().map_or(0, |mark| mark.end).min(in_force);
        let mut fault = None;
        for page in self.stuck.clone() {
            match self.page_is_over(transactors, page).await {
                Ok(true) => _ = self.stuck.remove(&page),
                Ok(false) => {}
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        while self.page < end {
            match self.page_is_over(transactors, self.page).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    fault = fault.or(Some(error));
                    if self.stuck.len() == STUCK_PAGES_MAX {
                        break;
                    }
                    self.stuck.insert(self.page);
                }
            }
            self.page += 1;
            if self.page.is_multiple_of(PAGES_PER_NOTE) {
                record_progress(transactors, recorded, self.finished_to()).await?;
            }
        }
        record_progress(transactors, recorded, self.finished_to()).await?;
        fault.map_or(Ok(()), Err)
    }

    /// Returns the first page that is not finished.
    fn finished_to(&self) -> u64 {
        self.stuck.first().copied().unwrap_or(self.page)
    }

    /// Adds a mark: this volume server knows all orders on the pages before `next_page` from now
    /// on. Adds none if the newest mark covers these pages or is too recent (`MARKS_PER_TIMEOUT`).
    fn mark(&mut self, next_page: u64, wall_ms: u64) {
        let now = Instant::now();
        let passed_ms = (now - self.last.1).as_millis() as u64;
        let expected_ms = self.last.0.saturating_add(passed_ms);
        let step_ms = wall_ms.cast_signed().saturating_sub_unsigned(expected_ms);
        self.stepped_ms = self.stepped_ms.saturating_add(step_ms);
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
                wall_ms: wall_ms.saturating_sub(self.stepped_ms.max(0).unsigned_abs()),
            });
            self.stepped_ms = 0;
        }
    }

    /// Expires the due orders of a page. Returns `false` if an unpaid order may still be paid in
    /// time, or if no mark covers the page. After an error it continues with the next order, so
    /// that an order that cannot be read or expired delays no other order. Then it returns the
    /// first error.
    async fn page_is_over(&mut self, transactors: &Arc<Transactors>, page: u64) -> Result<bool, OrderError> {
        let state = transactors.state();
        while self.marks.front().is_some_and(|mark| mark.end <= page) {
            self.marks.pop_front();
        }
        let Some(mark) = self.marks.front().copied() else {
            return Ok(false);
        };
        let (mut is_over, mut fault) = (true, None);
        for id in state.storage.arrivals(page)? {
            if !state.slots.has_order(&id) {
                continue;
            }
            let order = match state.storage.order(&id) {
                Ok(Some(order)) => order,
                Ok(None) => continue,
                Err(error) => {
                    fault = fault.or(Some(error.into()));
                    continue;
                }
            };
            // Orders that were paid or have ended need no expiry.
            let is_unpaid = matches!(order.state, State::Received | State::Reserved | State::Announced);
            if !is_unpaid {
                continue;
            }
            let age_then = Duration::from_millis(mark.wall_ms.saturating_sub(order.created_at_ms()));
            if age_then.saturating_add(mark.at.elapsed()) < self.timeout {
                is_over = false;
                continue;
            }
            if matches!(order.state, State::Reserved | State::Announced) {
                let expired = transactors.ask(&id, Ask::Command(Command::Expire)).await;
                fault = fault.or(expired.err());
            }
        }
        fault.map_or(Ok(is_over), Err)
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
