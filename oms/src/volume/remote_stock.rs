//! Orders with units in a store of another volume. That volume reserves the units, the order's
//! volume commits the order, and a settlement ends the reservation later.
//!
//! 1. The order's volume searches the stock of all volumes (`store_search`). If the first suitable
//!    store is in another volume, the order's volume reserves the units there or takes borrowed
//!    ones (`borrowing`). Then it commits the order.
//! 2. The order's volume confirms the reservation once the order is durable.
//! 3. When the units are released or delivered, a settlement is committed with the order's change
//!    and sent to the store's volume until that volume confirms it.
//!
//! Every step may be repeated. A repeated reservation has the same order, store and units as the
//! earlier one, and replaces it. A settlement of a reservation that does not exist changes nothing.
//!
//! A request may arrive late: after the request of a later attempt with other units. The order of
//! that attempt may be durable by then. So a request for other units than the reserved ones is
//! refused until the order's volume has said that the order does not need the reservation.
//!
//! A crash in step 1 may leave a reservation without an order. So the store's volume asks the
//! order's volume about each unconfirmed reservation, and releases it if the order does not exist
//! or does not need it. Each attempt to place an order has its own nonce (a random number), and the
//! release applies only to the reservation that the question was about. So if another attempt has
//! replaced the reservation since the question, the new reservation stays.
//!
//! **Invariants**
//! - A reservation has one row, and is tracked in one place: by an order of this volume or in
//!   `RemoteReservations`.
//! - At most one commit at a time changes a reservation. Other changes are rejected until the
//!   outcome of that commit is known.
//! - Units of a durable reservation are released in memory only after a commit that replaced or
//!   removed its row. If the row to remove did not exist (`Durable`), no units are released. So no
//!   units are released twice.

use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::channel::message::{Cell, Confirm, Reply, Reserve};
use crate::domain::loans::{AllotRequest, Recall};
use crate::domain::order::{Line, Order, OrderId};
use crate::domain::settlement::Settlement;
use crate::domain::stock::{Found, Stock};
use crate::runtime::seeded::seeded;
use crate::runtime::{self, watch};
use crate::storage::fence::Fence;
use crate::storage::group_commit::Durable;
use crate::storage::write_batch::WriteBatch;
use crate::volume::remote_reservations::{
    DueReservation, RemoteReservation, RemoteReservations, ReservationKey,
};
use crate::volume::state::{OrderError, VolumeState};
use crate::volume::store_search::Search;

/// Error message for a request to reserve units while other units of the store are reserved for the
/// same order.
const OTHER_UNITS: &str = "other units are still reserved for an earlier attempt to place the order; retry";
/// Usual time after which the order's volume is first asked about a reservation. Most reservations
/// are confirmed earlier and need no question.
pub(super) const ASK_AFTER: Duration = Duration::from_secs(2);
/// Longest time between two questions about a reservation. The time doubles with each question.
pub(super) const ASK_AFTER_MAX: Duration = Duration::from_secs(600);
/// Interval at which unconfirmed reservations are checked and unconfirmed settlements are sent
/// again.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// The 33 bits that are set in the nonces of orders with lent units. Other nonces lack the lowest
/// bit. Earlier releases chose all bits at random, so a reservation of theirs has these 33 bits
/// with a probability of 2^-33.
pub(super) const LENT_NONCES: u64 = 0xffff_ffff_0000_0001;
/// Maximum number of settlements that are sent together and removed in one commit.
const SETTLEMENTS_AT_A_TIME: usize = 256;

/// The future that returns the answer of another volume.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, OrderError>> + Send + 'a>>;

/// Client for the other volumes, in this process or another one.
pub(crate) trait RemoteVolumes: Send + Sync {
    /// Returns the first store of all other volumes that has the units of the search, if its number
    /// is below `search.below`. Returns the error `Moved` unless all volumes follow the ring of
    /// `search.epoch`. If two volumes followed different rings, a migrating store could be missing
    /// in the answers of both.
    fn find<'a>(&'a self, search: Search<'a>) -> Answer<'a, Option<u32>>;

    /// Reserves units in a store of another volume. Returns `false` if the store lacks some of
    /// them, or if the order has already taken lent units of this store.
    fn reserve<'a>(
        &'a self,
        order: &'a OrderId,
        nonce: u64,
        store: u32,
        lines: &'a [Line],
    ) -> Answer<'a, bool>;

    /// Tells the store's volume that the order of a reservation is durable. The message may be
    /// lost.
    fn confirm(&self, order: &OrderId, nonce: u64, store: u32);

    /// Sends a borrower's request to a store's volume.
    fn allot<'a>(&'a self, request: &'a AllotRequest) -> Answer<'a, Reply>;

    /// Asks a volume to return borrowed units. The message may be lost.
    fn recall(&self, borrower: &NodeName, recall: Recall);

    /// Sends a settlement to the store's volume. Returns once that volume has committed it.
    fn settle<'a>(&'a self, order: &'a OrderId, settlement: &'a Settlement) -> Answer<'a, ()>;

    /// Returns `true` if an order of another volume still needs its reservation in this store.
    fn keeps<'a>(&'a self, order: &'a OrderId, store: u32) -> Answer<'a, bool>;
}

/// A reservation for an order of another volume, with a queued row that may not be durable yet.
struct Reserving {
    /// Index of the request among the requests of its batch.
    at: usize,
    key: ReservationKey,
    fence: Fence,
    /// The former reservation of the order in that store, which the new one replaces.
    before: Option<RemoteReservation>,
}

/// Returns a nonce for a new reservation. The nonce says if the order takes borrowed units
/// (`is_lent`) or requests the reservation from the store's volume.
pub(super) fn new_nonce(is_lent: bool) -> u64 {
    let random = runtime::random_u64();
    if is_lent {
        random | LENT_NONCES
    } else {
        random & !1
    }
}

/// Returns `true` if the reservation with this nonce belongs to an order that took lent units.
pub(super) fn was_lent(nonce: u64) -> bool {
    nonce & LENT_NONCES == LENT_NONCES
}

/// Releases the units of a reservation in memory if the commit removed the reservation's row. If
/// there was no such row, releases nothing and logs an error.
pub(crate) fn release(stock: &mut Stock, order: &OrderId, store: u32, lines: &[Line], durable: Durable) {
    if seeded("released-twice") && durable.reservations_ended {
        stock.release(store, lines);
    }
    if durable.reservations_ended {
        stock.release(store, lines);
    } else {
        tracing::error!(%order, store, "units not released: their reservation has no row");
    }
}

impl VolumeState {
    /// Reserves units of stores of this volume for orders of other volumes. All requests share one
    /// lock of the stock and one write batch. The answer to each is `Reply::Reserved`,
    /// `Reply::Short` or an error.
    pub(crate) async fn reserve_all(self: &Arc<Self>, asks: Vec<Reserve>) -> Vec<Result<Reply, OrderError>> {
        let count = asks.len();
        let refused = |fault: OrderError| (0..count).map(|_| Err(fault.clone())).collect();
        let permit = match self.storage.permit().await {
            Ok(permit) => permit,
            Err(error) => return refused(error.into()),
        };
        let mut answers = Vec::with_capacity(count);
        let mut reserving = Vec::new();
        let ticket = {
            let (mut stock, mut remote_reservations) = (self.stock(), self.remote_reservations());
            let mut batch = WriteBatch::default();
            for (at, ask) in asks.iter().enumerate() {
                let begun = self.begin_reserving(&mut stock, &mut remote_reservations, &mut batch, at, ask);
                answers.push(begun.map(|begun| match begun {
                    Some(begun) => {
                        reserving.push(begun);
                        Reply::Reserved
                    }
                    None => Reply::Short(available(&stock, ask)),
                }));
            }
            if reserving.is_empty() {
                return answers;
            }
            permit.send(batch)
        };
        let state = Arc::clone(self);
        let ended = runtime::to_completion(async move {
            let durable = ticket.durable().await;
            let mut not_durable = Vec::new();
            let mut stock = state.stock();
            for Reserving {
                at,
                key,
                fence,
                before,
            } in reserving
            {
                // If the fence differs, the store has migrated since the batch was queued. The
                // migration has replaced or removed the store's state in memory, which must not be
                // changed here.
                if state.slots.fence_of_store(key.store) == fence {
                    state.finish_reserving(&mut stock, key, before, durable.is_ok());
                }
                if durable.is_err() {
                    not_durable.push(at);
                }
            }
            drop(stock);
            state.followers.stock_has_changed();
            (durable, not_durable)
        });
        match ended.await {
            Some((Ok(()), _)) => answers,
            Some((Err(error), not_durable)) => {
                for at in not_durable
                    .into_iter()
                    .skip(usize::from(seeded("batch-answered-in-part")))
                {
                    answers[at] = Err(error.clone().into());
                }
                answers
            }
            None => refused(OrderError::Interrupted),
        }
    }

    /// Begins to reserve units of a store of this volume. Returns `None` if the store lacks some of
    /// them, or if the order has taken lent units of this store.
    fn begin_reserving(
        &self,
        stock: &mut Stock,
        remote_reservations: &mut RemoteReservations,
        batch: &mut WriteBatch,
        at: usize,
        ask: &Reserve,
    ) -> Result<Option<Reserving>, OrderError> {
        let Reserve {
            order,
            nonce,
            store,
            lines,
        } = ask;
        if !self.slots.check_store(*store)? || self.slots.has_order(order) {
            return Err(OrderError::Moved);
        }
        let known = remote_reservations.get_mut(order, *store);
        if known.as_ref().is_some_and(|known| known.is_changing) {
            return Err(OrderError::Moved);
        }
        if known.as_ref().is_some_and(|known| was_lent(known.nonce)) {
            // The order took lent units and is durable, so this is a late request of an earlier
            // attempt, which must not replace the nonce. A new server of the order's volume may
            // report the order again. Only the nonce shows then that the units have left the loan
            // already.
            return Ok(None);
        }
        match known {
            Some(known) if *known.lines == **lines => {}
            Some(known) if !seeded("late-request-replaces") => {
                // Either attempt may be the later one, and the order may be durable with the
                // reserved units. Only the order's volume knows that.
                known.ask_at_once();
                self.settler_called.notify_one();
                return Err(OrderError::Busy(OTHER_UNITS));
            }
            _ => match stock.reserve_at(*store, lines) {
                Found::Free => {}
                Found::Short => return Ok(None),
                // The store has enough units only with those that are lent to other volumes. The
                // lent units are being recalled, and the caller asks again.
                Found::Lent => return Err(OrderError::Moved),
            },
        }
        let fence = self.slots.fence_of_store(*store);
        if !batch.fences().any(|other| other == fence) {
            batch.fence(fence);
        }
        let noted = (!seeded("nonce-forgotten")).then_some(*nonce);
        batch.reserve_for(order, *store, lines, noted);
        let mut now = RemoteReservation::new(lines, *nonce);
        now.is_changing = true;
        Ok(Some(Reserving {
            at,
            key: ReservationKey {
                order: order.clone(),
                store: *store,
            },
            fence,
            before: remote_reservations.insert(order, *store, now),
        }))
    }

    /// Records that the order of the reservation with this nonce is durable.
    pub(crate) fn confirm(&self, confirm: &Confirm) {
        self.remote_reservations()
            .confirm(&confirm.order, confirm.store, confirm.nonce);
    }

    /// Keeps the new reservation if its row is durable. Otherwise restores `before`, the former
    /// reservation of the order in that store, or releases the units if there was none.
    fn finish_reserving(
        &self,
        stock: &mut Stock,
        key: ReservationKey,
        before: Option<RemoteReservation>,
        is_durable: bool,
    ) {
        let ReservationKey { order, store } = key;
        let mut remote_reservations = self.remote_reservations();
        let Some(now) = remote_reservations.get_mut(&order, store) else {
            return;
        };
        now.is_changing = false;
        if is_durable {
            return;
        }
        match before {
            // Both reservations have the same units, so the stock does not change.
            Some(before) => drop(remote_reservations.insert(&order, store, before)),
            None => {
                stock.release(store, &now.lines);
                remote_reservations.remove(&order, store);
            }
        }
    }

    /// Ends the reservation of an order of another volume: its units are released or delivered, as
    /// the settlement says. A repeated settlement changes nothing.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        order: &OrderId,
        settlement: &Settlement,
    ) -> Result<(), OrderError> {
        self.end_reservation(order, settlement, None).await
    }

    /// Ends a reservation by a settlement. If `only` is given, only the reservation about which
    /// that question was asked ends. A reservation that was made again since the question stays.
    async fn end_reservation(
        self: &Arc<Self>,
        order: &OrderId,
        settlement: &Settlement,
        only: Option<&DueReservation>,
    ) -> Result<(), OrderError> {
        let permit = self.storage.permit().await?;
        let store = settlement.store;
        let (mut ticket, fence, is_held, delivered) = {
            let mut stock = self.stock();
            // While the slot of the order is sealed, the order is leaving this volume. Before the
            // order has left, its reservation may be missing in `RemoteReservations`. So the
            // settlement is rejected and sent again later.
            if !self.slots.check_store(store)? || self.slots.is_order_sealed(order) {
                return Err(OrderError::Moved);
            }
            let mut remote_reservations = self.remote_reservations();
            let is_it = |known: &&mut RemoteReservation| only.is_none_or(|asked| known.is_asked(asked));
            let known = remote_reservations.get_mut(order, store).filter(is_it);
            if known.as_ref().is_some_and(|known| known.is_changing) {
                return Err(OrderError::Moved);
            }
            let fence = self.slots.fence_of_store(store);
            let mut batch = WriteBatch::default();
            batch.fence(fence);
            let is_held = known.is_some();
            // A late request may have reserved the units again after the settlement was executed,
            // and now the settlement is repeated. The units left the store only once, so they are
            // released this time, not delivered.
            let delivered = settlement.delivered && !stock.has_delivery(order, store);
            if let Some(known) = known {
                known.is_changing = true;
                batch.unreserve(order, store);
                if delivered
                    && let Some(left) = stock.deliver(order, store, &known.lines, settlement.sequence)
                {
                    batch.delivery(order, left);
                }
            }
            (permit.send(batch), fence, is_held, delivered)
        };
        let (state, order) = (Arc::clone(self), order.clone());
        let ended = runtime::to_completion(async move {
            let durable = ticket.answer().await;
            let mut stock = state.stock();
            if is_held && state.slots.fence_of_store(store) == fence {
                state.finish_ending(&mut stock, &order, store, delivered, durable.as_ref().ok());
            }
            drop(stock);
            state.followers.stock_has_changed();
            Ok(durable.map(drop)?)
        });
        ended.await.unwrap_or(Err(OrderError::Interrupted))
    }

    /// Releases the units of a reservation and removes it from memory if the commit that ends it
    /// succeeded. Otherwise restores the state of the reservation before the commit.
    fn finish_ending(
        &self,
        stock: &mut Stock,
        order: &OrderId,
        store: u32,
        delivered: bool,
        durable: Option<&Durable>,
    ) {
        let mut remote_reservations = self.remote_reservations();
        let Some(known) = remote_reservations.get_mut(order, store) else {
            return;
        };
        known.is_changing = false;
        match durable {
            Some(durable) => {
                release(stock, order, store, &known.lines, *durable);
                remote_reservations.remove(order, store);
            }
            None if delivered => stock.undo_delivery(order),
            None => {}
        }
    }

    /// Returns `true` if an order of this volume still needs its reservation in that store. The
    /// caller gets `order` from the order's transactor (`Ask::Look`), so that the order is not
    /// being placed at the same time.
    ///
    /// # Errors
    /// `Busy` while the settlement of the order is not confirmed. The store's volume may have
    /// applied the settlement, and a delayed request may then have reserved the units. Neither
    /// `true` nor `false` would be safe for these units, so the store's volume must ask again
    /// later.
    pub(crate) fn keeps(&self, order: &Order, store: u32) -> Result<bool, OrderError> {
        if order.store != Some(store) {
            return Ok(false);
        }
        if self.settlements().contains_key(&order.id) {
            if seeded("settling-is-kept") {
                return Ok(true);
            }
            return Err(OrderError::Busy("the reservation of the order is being settled"));
        }
        Ok(order.state.holds_reservation())
    }

    /// Removes a reservation from `RemoteReservations` if its order is in this volume now and has
    /// neither a settlement nor a row in `spent`. From then on only the order tracks the
    /// reservation. Does nothing if the reservation has another nonce or is being changed.
    fn adopt_reservation(&self, order: &OrderId, store: u32, nonce: u64) {
        let _stock = self.stock();
        // An order with borrowed units may be reported to this volume again until its row in
        // `spent` is removed. The nonce in `RemoteReservations` shows that the units have left the
        // loan, so the reservation must stay there until then.
        let is_settled = self.settlements().contains_key(order) || self.allotments().is_unsettled(order);
        let mut remote_reservations = self.remote_reservations();
        let is_it = |known: &RemoteReservation| known.nonce == nonce && !known.is_changing;
        if self.slots.has_order(order)
            && !is_settled
            && remote_reservations.get(order, store).is_some_and(is_it)
        {
            remote_reservations.remove(order, store);
        }
    }
}

/// Sends settlements to other volumes, asks them about unconfirmed reservations, and calls
/// `forget_followers`, until `stop` becomes `true`.
pub(crate) async fn settle_always(
    state: Arc<VolumeState>,
    remote: Arc<dyn RemoteVolumes>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let called = state.settler_called.notified();
        let work = async {
            settle_all(&state, &remote).await;
            check_reservations(&state, remote.as_ref()).await;
            state.forget_followers();
            tokio::select! {
                biased;
                () = called => {}
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = work => {}
        }
    }
}

/// Sends every settlement once, except for those of orders with borrowed units that are not entered
/// yet. At most `SETTLEMENTS_AT_A_TIME` are sent together. If one of them is not answered, the next
/// ones are delayed by at most the timeout of a call.
async fn settle_all(state: &VolumeState, remote: &Arc<dyn RemoteVolumes>) {
    let mut sent = Bound::Unbounded;
    loop {
        let some: Vec<(OrderId, Settlement)> = state
            .settlements()
            .range((sent, Bound::Unbounded))
            // The store's volume must have written the reservation of an order with borrowed units
            // before it gets the settlement of the order.
            .filter(|(order, _)| !state.allotments().is_unsettled(order))
            .take(SETTLEMENTS_AT_A_TIME)
            .map(|(order, settlement)| (order.clone(), settlement.clone()))
            .collect();
        let Some((last, _)) = some.last() else { return };
        sent = Bound::Excluded(last.clone());
        let confirmed = send_settlements(remote, some).await;
        if !confirmed.is_empty()
            && let Err(fault) = remove_settlements(state, &confirmed).await
        {
            tracing::debug!(
                ?fault,
                "confirmed settlements not removed; they will be sent again"
            );
            return;
        }
    }
}

/// Sends settlements concurrently. Returns the orders that have a confirmed settlement.
async fn send_settlements(remote: &Arc<dyn RemoteVolumes>, some: Vec<(OrderId, Settlement)>) -> Vec<OrderId> {
    let mut sending = JoinSet::new();
    for (order, settlement) in some {
        let remote = Arc::clone(remote);
        sending.spawn(runtime::within(async move {
            match remote.settle(&order, &settlement).await {
                Ok(()) => Some(order),
                Err(_) if seeded("settlement-forgotten") => Some(order),
                Err(fault) => {
                    tracing::debug!(%order, ?fault, "settlement not confirmed; it will be sent again");
                    None
                }
            }
        }));
    }
    let mut confirmed: Vec<OrderId> = sending.join_all().await.into_iter().flatten().collect();
    // Sorted, because the tasks end in any sequence, and a simulation needs the same one in each
    // run.
    confirmed.sort_unstable();
    confirmed
}

/// Removes confirmed settlements in one commit, and then from memory. Leaves out the settlements of
/// orders that are migrating or have migrated.
async fn remove_settlements(state: &VolumeState, confirmed: &[OrderId]) -> Result<(), OrderError> {
    let permit = state.storage.permit().await?;
    let mut here = Vec::with_capacity(confirmed.len());
    let ticket = {
        let _stock = state.stock();
        let mut batch = WriteBatch::default();
        for order in confirmed {
            // If the order is migrating or has migrated, the row of its settlement migrates too,
            // and the order's next volume sends the settlement again and removes the row.
            if state.slots.check_order(order).is_ok() {
                batch.fence(state.slots.fence_of_order(order));
                batch.forget_settlement(order);
                here.push(order);
            }
        }
        permit.send(batch)
    };
    ticket.durable().await?;
    let mut settlements = state.settlements();
    for order in here {
        settlements.remove(order);
    }
    Ok(())
}

/// Returns the available quantities of the requested products in the requested store. Products that
/// the stock lacks are left out.
fn available(stock: &Stock, ask: &Reserve) -> Vec<Cell> {
    let cell = |line: &Line| {
        Some(Cell {
            at: line.id,
            available: stock.available_in(line.id, ask.store)?,
        })
    };
    ask.lines.iter().filter_map(cell).collect()
}

async fn check_reservations(state: &Arc<VolumeState>, remote: &dyn RemoteVolumes) {
    if seeded("orphans-forgotten") {
        return;
    }
    let due = state.remote_reservations().due(Instant::now());
    for asked in due {
        let DueReservation {
            order, store, nonce, ..
        } = &asked;
        match remote.keeps(order, *store).await {
            Ok(true) => {
                state.remote_reservations().confirm_asked(&asked);
                state.adopt_reservation(order, *store, *nonce);
            }
            Ok(false) => {
                tracing::info!(%order, store, "reservation without an order found");
                let settlement = Settlement {
                    store: *store,
                    lines: Box::default(),
                    delivered: false,
                    sequence: None,
                };
                if let Err(fault) = state.end_reservation(order, &settlement, Some(&asked)).await {
                    tracing::debug!(%order, ?fault, "reservation without an order not released; it will be checked again");
                }
            }
            Err(fault) => {
                tracing::debug!(%order, ?fault, "reservation not checked: the order's volume did not answer");
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
