//! The borrower's side of allotments: requests units from the owners of hot stores, and reports to
//! each owner the orders that took borrowed units. The owner *enters* such an order: it replaces
//! the lent units by a usual reservation.
//!
//! **Invariants**
//! - An order and its borrowed units are committed together.
//! - The settlement of an order with borrowed units is sent only after the owner has entered the
//!   order and the order's row in `spent` is removed (`Allotments::is_unsettled`).
//! - No slot leaves this volume before all its orders with borrowed units are entered
//!   (`leave_no_order`).
//! - Each volume server that borrows units has a new incarnation (a number that grows), which is
//!   durable before the first request to an owner. A server begins a further incarnation if an
//!   owner does not accept a request (`Allotments::restart_after`).
//!
//! A node with `--engine` borrows nothing. A commit without an answer from the engine may have
//! become durable, so the units of its order could be neither used again nor returned.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::channel::message::Reply;
use crate::domain::loans::Recall;
use crate::domain::order::OrderId;
use crate::error::StorageError;
use crate::runtime;
use crate::runtime::watch;
use crate::storage::write_batch::WriteBatch;
use crate::volume::remote_stock::RemoteVolumes;
use crate::volume::state::{OrderError, VolumeState};

/// Interval at which the allotments are checked, and pause before a failed request is repeated.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time in milliseconds for which this volume borrows nothing after the target of a migration has
/// requested a page.
const SUSPENDED_MS: u64 = 2_000;
/// Longest wait until the owners of stores have entered the orders of slots that are to be sealed.
/// It is half of the 3 s after which a migration is undone because sealing takes too long.
const ENTERED_WITHIN: Duration = Duration::from_millis(1_500);

impl VolumeState {
    /// Makes borrowed units unusable on request of their store's owner, and wakes `borrow_always`
    /// to return them.
    pub(crate) fn recall(&self, recall: &Recall) {
        self.allotments().recall(recall, self.now().monotonic_ms);
        self.borrower_called.notify_one();
    }

    /// Stops borrowing for `SUSPENDED_MS`, because slots of this volume migrate.
    pub(crate) fn suspend_borrowing(&self) {
        let until_ms = self.now().monotonic_ms + SUSPENDED_MS;
        self.allotments().suspend(until_ms);
        self.borrower_called.notify_one();
    }

    /// Waits until all orders with borrowed units for which `is_asked` returns `true` are entered
    /// by the owners of their stores.
    ///
    /// # Errors
    /// `Busy` if this takes longer than `ENTERED_WITHIN`.
    pub(crate) async fn leave_no_order(
        &self,
        is_asked: impl Fn(&OrderId) -> bool,
    ) -> Result<(), StorageError> {
        self.suspend_borrowing();
        let until = Instant::now() + ENTERED_WITHIN;
        while self.allotments().any_unsettled(&is_asked) {
            if Instant::now() >= until {
                return Err(StorageError::Busy);
            }
            let entered = self.orders_entered.notified();
            self.borrower_called.notify_one();
            let _ = tokio::time::timeout(LOOK_EVERY, entered).await;
        }
        Ok(())
    }

    /// Commits this volume's incarnation as a borrower if the incarnation is not durable yet. Later
    /// requests to owners contain this incarnation, until a new one begins.
    async fn begin_incarnation(&self) -> Result<(), OrderError> {
        let Some(incarnation) = self.allotments().new_incarnation() else {
            return Ok(());
        };
        let mut batch = WriteBatch::default();
        batch.borrower(incarnation);
        self.storage.permit().await?.send(batch).durable().await?;
        self.allotments().incarnation_is_durable(incarnation);
        Ok(())
    }

    /// Removes the rows in `spent` of all orders that the owners of their stores have entered, in
    /// one commit.
    async fn forget_entered(&self) -> Result<(), OrderError> {
        let entered = self.allotments().entered();
        if entered.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (order, store) in &entered {
            batch.forget_spent(order, *store);
        }
        self.storage.permit().await?.send(batch).durable().await?;
        self.allotments().forget(&entered);
        self.orders_entered.notify_waiters();
        if !self.settlements().is_empty() {
            self.settler_called.notify_one();
        }
        Ok(())
    }

    fn due_stores(&self) -> Vec<u32> {
        let is_here = |store| self.slots.has_store(store);
        self.allotments().due(self.now().monotonic_ms, is_here)
    }
}

/// Sends the next request about a store to the store's owner, and applies the answer.
async fn ask_owner(state: &VolumeState, remote: &dyn RemoteVolumes, store: u32) {
    let (now_ms, is_here) = (state.now().monotonic_ms, state.slots.has_store(store));
    let request = state.allotments().request(store, now_ms, is_here);
    let Some(request) = request else {
        // No request can be sent now, for example because the incarnation is not durable, or
        // because orders that took units of this store are still being committed.
        tokio::time::sleep(LOOK_EVERY).await;
        return;
    };
    match remote.allot(&request).await {
        Ok(Reply::Allotted { incarnation, granted }) => {
            let now_ms = state.now().monotonic_ms;
            let mut allotments = state.allotments();
            if incarnation == request.incarnation {
                allotments.answered(&request, &granted, now_ms);
            } else {
                allotments.restart_after(incarnation.max(request.incarnation));
            }
        }
        Ok(other) => tracing::error!(
            store,
            ?other,
            "an owner answered a request for units by something else"
        ),
        Err(fault) => {
            tracing::debug!(store, ?fault, "an owner did not answer a request for units");
            // `borrow_always` repeats the request after this task has ended. The pause bounds the
            // rate of requests to an owner that fails.
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Requests units from owners and reports to them the orders that took borrowed units, until `stop`
/// becomes `true`.
pub(crate) async fn borrow_always(
    state: Arc<VolumeState>,
    remote: Arc<dyn RemoteVolumes>,
    mut stop: watch::Receiver<bool>,
) {
    let mut asking = JoinSet::new();
    // The stores of the running tasks, with the id of each task. A task that panicked has no
    // result, so the store of an ended task is found by the id of the task.
    let mut asked = BTreeMap::new();
    loop {
        let called = state.borrower_called.notified();
        let work = async {
            if let Err(fault) = state.forget_entered().await {
                tracing::debug!(?fault, "rows of entered orders could not be removed yet");
            }
            let mut due = state.due_stores();
            if !due.is_empty()
                && let Err(fault) = state.begin_incarnation().await
            {
                tracing::debug!(?fault, "the incarnation as a borrower could not be stored yet");
                due.clear();
            }
            for store in due {
                if let Entry::Vacant(place) = asked.entry(store) {
                    let (state, remote) = (Arc::clone(&state), Arc::clone(&remote));
                    let task = asking.spawn(runtime::within(async move {
                        ask_owner(&state, remote.as_ref(), store).await;
                    }));
                    place.insert(task.id());
                }
            }
            let is_idle = asked.is_empty() && state.allotments().is_idle();
            tokio::select! {
                biased;
                Some(ended) = asking.join_next_with_id() => {
                    // A panic of the task has been logged. The next round of the loop starts a new
                    // task.
                    let ended = ended.map_or_else(|panic| panic.id(), |(id, ())| id);
                    asked.retain(|_, task| *task != ended);
                }
                () = called => {}
                () = tokio::time::sleep(LOOK_EVERY), if !is_idle => {}
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = work => {}
        }
    }
}

#[cfg(test)]
mod tests;
