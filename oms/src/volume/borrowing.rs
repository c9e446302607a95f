//! The borrower's side of allotments: asks the owners of hot stores for units, and tells them which
//! orders took some.
//!
//! **Invariants**
//! - An order and its borrowed units are one commit.
//! - The settlement of such an order is sent once the owner has entered the reservation and the row
//!   in `spent` is gone (`Allotments::is_unsettled`).
//! - No slot leaves this volume while an order in it is not entered (`leave_no_order`).
//! - The incarnation is durable before the first request of a server.
//!
//! Behind an engine nothing is borrowed: a commit without an answer may have become durable there,
//! so the units of its order could be neither used again nor given back.

use std::collections::BTreeSet;
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

/// Pause between two looks at the allotments while there are any.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time for which nothing is borrowed after a migration has asked for a page.
const SUSPENDED_MS: u64 = 2_000;
/// Longest wait for the owners to enter orders of slots that are to be sealed. A migration is
/// undone if sealing takes 3 s.
const ENTERED_WITHIN: Duration = Duration::from_millis(1_500);

impl VolumeState {
    /// Returns borrowed units on request of their store's owner.
    pub(crate) fn recall(&self, recall: &Recall) {
        self.allotments().recall(recall, self.now().monotonic_ms);
        self.borrower_called.notify_one();
    }

    /// Stops borrowing for a while, because slots of this volume migrate.
    pub(crate) fn suspend_borrowing(&self) {
        let until_ms = self.now().monotonic_ms + SUSPENDED_MS;
        self.allotments().suspend(until_ms);
        self.borrower_called.notify_one();
    }

    /// Waits until the owners have entered all orders of some slots that took borrowed units.
    ///
    /// # Errors
    /// `Busy` if an owner does not answer in time.
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

    /// Makes the incarnation durable that the next request names.
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

    /// Removes the rows of orders that their owners have entered, in one commit.
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

/// Sends the next request about a store, and takes its answer.
async fn ask_owner(state: &VolumeState, remote: &dyn RemoteVolumes, store: u32) {
    let (now_ms, is_here) = (state.now().monotonic_ms, state.slots.has_store(store));
    let request = state.allotments().request(store, now_ms, is_here);
    let Some(request) = request else {
        // Orders are being committed, or the incarnation is not durable.
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
            // The request is repeated, but not at once.
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Asks owners for units and enters orders until told to stop.
pub(crate) async fn borrow_always(
    state: Arc<VolumeState>,
    remote: Arc<dyn RemoteVolumes>,
    mut stop: watch::Receiver<bool>,
) {
    let mut asking = JoinSet::new();
    let mut asked = BTreeSet::new();
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
                if asked.insert(store) {
                    let (state, remote) = (Arc::clone(&state), Arc::clone(&remote));
                    asking.spawn(runtime::within(async move {
                        ask_owner(&state, remote.as_ref(), store).await;
                        store
                    }));
                }
            }
            let is_idle = asked.is_empty() && state.allotments().is_idle();
            tokio::select! {
                biased;
                Some(ended) = asking.join_next() => match ended {
                    Ok(store) => drop(asked.remove(&store)),
                    // A panic has been logged. Its store is unknown, so all may be asked again.
                    Err(_) if asking.is_empty() => asked.clear(),
                    Err(_) => {}
                },
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
