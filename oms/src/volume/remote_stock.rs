//! Orders and stores that live in different volumes: reserve there, commit here, settle later.
//!
//! The order's volume asks the others for their first store, has the units reserved where the first
//! of all is, and commits the order after that. When the units return or leave, what became of them
//! is committed with the order's change (`settlements`) and told to the store's volume until it
//! knows. Every step may be repeated: a reservation is known by its order, a settlement for a
//! reservation that is gone has been done before.
//!
//! A crash between reservation and order leaves a reservation without an order. The order's volume
//! confirms a reservation once the order is durable. The store's volume asks after each reservation
//! that is not confirmed now and then and releases those that nobody keeps. A nonce guards that: a
//! reservation that was asked for anew meanwhile is not the one that was asked after. The nonce is
//! part of the row, so that a volume that is opened, or that order and store have reached in one
//! move, still knows which reservations it must ask after.
//!
//! **One reservation, one row, one holder.** A row is an order's own, whose steps end it, or it is
//! in `RemoteReservations`, never both. What is held is changed by one commit at a time: until that
//! is known to have happened or not, whoever else wants to change it must ask again. Units are
//! given back in memory only after the commit that took their row out, and only if the row was
//! there: the committer says so (`Durable`). So nothing is given back twice, whoever asks for it
//! how often.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cluster::channel::message::{Cell, Confirm, Reply, Reserve};
use crate::domain::loans::AllotRequest;
use crate::domain::order::{Line, Order, OrderId};
use crate::domain::settlement::Settlement;
use crate::domain::stock::{Found, Stock};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::storage::fence::Fence;
use crate::storage::group_commit::Durable;
use crate::storage::write_batch::WriteBatch;
use crate::volume::remote_reservations::{RemoteReservation, RemoteReservations};
use crate::volume::state::{OrderError, VolumeState};

/// How often an order looks for a store again because another order was faster.
const PLACE_TRIES: u32 = 16;
/// How old a reservation for another volume's order is when its volume is first asked whether it is
/// kept. Most are confirmed before that, and not asked after.
pub(super) const ASK_AFTER: Duration = Duration::from_secs(2);
/// Longest time between two such questions.
pub(super) const ASK_AFTER_MAX: Duration = Duration::from_secs(600);
/// How often reservations are looked through, and settlements that failed are tried again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Settlements told at a time.
const SETTLEMENTS_AT_A_TIME: usize = 256;

/// The answer of another volume.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, OrderError>> + Send + 'a>>;

/// The other volumes, wherever they are.
pub(crate) trait RemoteVolumes: Send + Sync {
    /// The first store of all other volumes that has these units, if it comes before `below`.
    fn find<'a>(&'a self, lines: &'a [Line], below: Option<u32>) -> Answer<'a, Option<u32>>;

    /// Sets units aside in a store of another volume; false if it has them no more.
    fn reserve<'a>(
        &'a self,
        order: &'a OrderId,
        nonce: u64,
        store: u32,
        lines: &'a [Line],
    ) -> Answer<'a, bool>;

    /// Tells a store's volume that the order of a reservation is durable. May get lost.
    fn confirm(&self, order: &OrderId, nonce: u64, store: u32);

    /// Sends a borrower's request to a store's volume.
    fn allot<'a>(&'a self, request: &'a AllotRequest) -> Answer<'a, Reply>;

    /// Asks a volume to return the borrowed units of a store. May get lost.
    fn recall(&self, borrower: &NodeName, store: u32);

    /// Tells a store's volume what became of an order's units.
    fn settle<'a>(&'a self, order: &'a OrderId, settlement: &'a Settlement) -> Answer<'a, ()>;

    /// Whether an order of another volume keeps its units in this store.
    fn keeps<'a>(&'a self, order: &'a OrderId, store: u32) -> Answer<'a, bool>;
}

/// A reservation in a store of another volume, made for an order that is being placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReservedElsewhere {
    pub(crate) store: u32,
    pub(crate) nonce: u64,
    /// `true` if the units are to be taken from those that this volume has borrowed.
    pub(crate) is_lent: bool,
}

/// A reservation for an order of another volume whose row is on its way to the disk.
struct Reserving {
    /// Its place among the requests of the batch.
    at: usize,
    key: (OrderId, u32),
    fence: Fence,
    /// What was held before.
    before: Option<RemoteReservation>,
}

/// Gives units back whose reservation has ended, unless they were given back before.
pub(crate) fn release(stock: &mut Stock, order: &OrderId, store: u32, lines: &[Line], durable: Durable) {
    if seeded("released-twice") && durable.reservations_ended {
        stock.release(store, lines);
    }
    if durable.reservations_ended {
        stock.release(store, lines);
    } else {
        tracing::error!(%order, store, "units were to be given back that were not set aside any more");
    }
}

impl VolumeState {
    /// Looks for a new order's store where other volumes have stores too. One of another volume has
    /// the units set aside when it is answered; none means that the first store, if there is any,
    /// is here.
    pub(crate) async fn look_among(
        &self,
        remote: &dyn RemoteVolumes,
        id: &OrderId,
        lines: &[Line],
    ) -> Result<Option<ReservedElsewhere>, OrderError> {
        for _ in 0..PLACE_TRIES {
            self.slots.check_order(id)?;
            if self.storage.order(id)?.is_some() {
                return Ok(None);
            }
            let here = self.stock().first_store(lines);
            let Some(store) = remote.find(lines, here).await? else {
                return Ok(None);
            };
            let nonce = runtime::random_u64();
            let elsewhere = |is_lent| ReservedElsewhere {
                store,
                nonce,
                is_lent,
            };
            if self.allotments().suffices(store, lines, self.now().monotonic_ms) {
                return Ok(Some(elsewhere(true)));
            }
            if remote.reserve(id, nonce, store, lines).await? {
                let now_ms = self.now().monotonic_ms;
                self.allotments().note_reserved(store, lines, now_ms);
                self.borrower_called.notify_one();
                return Ok(Some(elsewhere(false)));
            }
        }
        Err(OrderError::Busy(
            "the stock changes faster than a store can be found for the order",
        ))
    }

    /// Reserves units of stores here for orders elsewhere: all in one pass over the stock and in
    /// one write batch. Answers each by `Reply::Reserved` or `Reply::Short`.
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
                let begun = self.begin_reserving((&mut stock, &mut remote_reservations), &mut batch, at, ask);
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
        let ended = to_its_end(async move {
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
                // A store that has gone meanwhile took its rows with it.
                if state.slots.fence_of_store(key.1) == fence {
                    state.end_reserving(&mut stock, key, before, durable.is_ok());
                }
                if durable.is_err() {
                    not_durable.push(at);
                }
            }
            drop(stock);
            state.followers.stock_has_changed();
            Ok((durable, not_durable))
        });
        match ended.await {
            Ok((Ok(()), _)) => answers,
            Ok((Err(error), not_durable)) => {
                for at in not_durable
                    .into_iter()
                    .skip(usize::from(seeded("batch-answered-in-part")))
                {
                    answers[at] = Err(error.clone().into());
                }
                answers
            }
            Err(fault) => refused(fault),
        }
    }

    /// Begins to reserve units of a store here. `None` if the store lacks some.
    fn begin_reserving(
        &self,
        (stock, remote_reservations): (&mut Stock, &mut RemoteReservations),
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
        let known = remote_reservations.get(order, *store);
        if known.is_some_and(|known| known.is_changing) {
            return Err(OrderError::Moved);
        }
        let is_known = known.is_some_and(|known| *known.lines == **lines);
        if !is_known {
            match stock.reserve_at(*store, lines) {
                Found::Free => {}
                Found::Short => return Ok(None),
                // The units are being called back from other volumes; the caller asks again.
                Found::Lent => return Err(OrderError::Moved),
            }
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
            key: (order.clone(), *store),
            fence,
            before: remote_reservations.insert(order, *store, now),
        }))
    }

    /// The first store here that has these units; refused if that store is being moved.
    pub(crate) fn find_store(&self, lines: &[Line]) -> Result<Option<u32>, OrderError> {
        let store = self.stock().first_store(lines);
        if let Some(store) = store {
            self.slots.check_store(store)?;
        }
        Ok(store)
    }

    /// The order of a reservation is durable. It is not asked after any more: only a settlement
    /// ends the reservation.
    pub(crate) fn confirm(&self, confirm: &Confirm) {
        self.remote_reservations()
            .confirm(&confirm.order, confirm.store, confirm.nonce);
    }

    /// What was asked for is held from here on, or what was held `before`.
    fn end_reserving(
        &self,
        stock: &mut Stock,
        (order, store): (OrderId, u32),
        before: Option<RemoteReservation>,
        is_durable: bool,
    ) {
        let mut remote_reservations = self.remote_reservations();
        let Some(now) = remote_reservations.get_mut(&order, store) else {
            return;
        };
        now.is_changing = false;
        let is_same = before.as_ref().is_some_and(|before| before.lines == now.lines);
        match before {
            Some(before) if is_durable && !is_same => stock.release(store, &before.lines),
            _ if is_durable => {}
            before => {
                if !is_same {
                    stock.release(store, &now.lines);
                }
                remote_reservations.remove(&order, store);
                if let Some(before) = before {
                    remote_reservations.insert(&order, store, before);
                }
            }
        }
    }

    /// Ends a reservation for an order elsewhere as its volume says. Done before, it changes
    /// nothing.
    pub(crate) async fn settle(
        self: &Arc<Self>,
        order: &OrderId,
        settlement: &Settlement,
    ) -> Result<(), OrderError> {
        self.end_reservation(order, settlement, None).await
    }

    async fn end_reservation(
        self: &Arc<Self>,
        order: &OrderId,
        settlement: &Settlement,
        only: Option<u64>,
    ) -> Result<(), OrderError> {
        let permit = self.storage.permit().await?;
        let store = settlement.store;
        let (mut ticket, fence, is_held) = {
            let mut stock = self.stock();
            // An order that is leaving this volume: whether it still has units here is known once
            // it has left.
            if !self.slots.check_store(store)? || self.slots.is_order_sealed(order) {
                return Err(OrderError::Moved);
            }
            let mut remote_reservations = self.remote_reservations();
            let is_it = |known: &&mut RemoteReservation| only.is_none_or(|nonce| nonce == known.nonce);
            let known = remote_reservations.get_mut(order, store).filter(is_it);
            if known.as_ref().is_some_and(|known| known.is_changing) {
                return Err(OrderError::Moved);
            }
            let fence = self.slots.fence_of_store(store);
            let mut batch = WriteBatch::default();
            batch.fence(fence);
            let is_held = known.is_some();
            if let Some(known) = known {
                known.is_changing = true;
                batch.unreserve(order, store);
                if settlement.delivered
                    && let Some(left) = stock.deliver(order, store, &known.lines, settlement.sequence)
                {
                    batch.delivery(order, left);
                }
            }
            (permit.send(batch), fence, is_held)
        };
        let (state, order, delivered) = (Arc::clone(self), order.clone(), settlement.delivered);
        to_its_end(async move {
            let durable = ticket.answer().await;
            let mut stock = state.stock();
            if is_held && state.slots.fence_of_store(store) == fence {
                state.end_ending(&mut stock, (&order, store), delivered, durable.as_ref().ok());
            }
            drop(stock);
            state.followers.stock_has_changed();
            Ok(durable.map(drop)?)
        })
        .await
    }

    /// What was held is not any more, or as it was before.
    fn end_ending(
        &self,
        stock: &mut Stock,
        (order, store): (&OrderId, u32),
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

    /// Whether an order here keeps units in that store. Asked through the order's transactor, so
    /// that no placing of it is under way.
    pub(crate) fn is_kept(&self, order: &Order, store: u32) -> bool {
        order.store == Some(store)
            && (order.state.holds_reservation() || self.settlements().contains_key(&order.id))
    }

    /// An order keeps units that were held for it. If it has come here meanwhile, it has them from
    /// itself from now on.
    fn have(&self, order: &OrderId, store: u32, nonce: u64) {
        let _stock = self.stock();
        let is_told = self.settlements().contains_key(order);
        let mut remote_reservations = self.remote_reservations();
        let is_it = |known: &RemoteReservation| known.nonce == nonce && !known.is_changing;
        if self.slots.has_order(order) && !is_told && remote_reservations.get(order, store).is_some_and(is_it)
        {
            remote_reservations.remove(order, store);
        }
    }
}

/// Does what must not be left half done, whether or not whoever asked for it still waits.
pub(super) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, OrderError>> + Send + 'static,
) -> Result<T, OrderError> {
    runtime::spawn(work).await.unwrap_or(Err(OrderError::Interrupted))
}

/// Tells other volumes what became of their units, and asks them after units held for them, until
/// told to stop.
pub(crate) async fn settle_always(
    state: Arc<VolumeState>,
    remote: Arc<dyn RemoteVolumes>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let called = state.settler_called.notified();
        let work = async {
            settle_all(&state, &remote).await;
            ask_after_reservations(&state, remote.as_ref()).await;
            state.forget_followers();
            tokio::select! {
                biased;
                () = called => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = work => {}
        }
    }
}

async fn settle_all(state: &VolumeState, remote: &Arc<dyn RemoteVolumes>) {
    loop {
        let some: Vec<(OrderId, Settlement)> = state
            .settlements()
            .iter()
            // The store's volume must know of a reservation before it learns of its end.
            .filter(|(order, _)| !state.allotments().is_unsettled(order))
            .take(SETTLEMENTS_AT_A_TIME)
            .map(|(order, settlement)| (order.clone(), settlement.clone()))
            .collect();
        let count = some.len();
        let told = tell_settlements(remote, some).await;
        let is_complete = told.len() == count;
        if !told.is_empty()
            && let Err(fault) = forget_settlements(state, &told).await
        {
            tracing::debug!(
                ?fault,
                "settlements could not be forgotten; they will be told again"
            );
            return;
        }
        if count == 0 || !is_complete {
            return;
        }
    }
}

/// Tells settlements, all at once. Returns the orders whose stores know.
async fn tell_settlements(remote: &Arc<dyn RemoteVolumes>, some: Vec<(OrderId, Settlement)>) -> Vec<OrderId> {
    let mut telling = JoinSet::new();
    for (order, settlement) in some {
        let remote = Arc::clone(remote);
        telling.spawn(runtime::within(async move {
            match remote.settle(&order, &settlement).await {
                Ok(()) => Some(order),
                Err(_) if seeded("settlement-forgotten") => Some(order),
                Err(fault) => {
                    tracing::debug!(%order, ?fault, "a store of another volume could not be told; it will be again");
                    None
                }
            }
        }));
    }
    let mut told: Vec<OrderId> = telling.join_all().await.into_iter().flatten().collect();
    // They end in any order.
    told.sort_unstable();
    told
}

/// Forgets settlements that their stores know of, in one commit.
async fn forget_settlements(state: &VolumeState, told: &[OrderId]) -> Result<(), OrderError> {
    let permit = state.storage.permit().await?;
    let mut here = Vec::with_capacity(told.len());
    let ticket = {
        let _stock = state.stock();
        let mut batch = WriteBatch::default();
        for order in told {
            // The row of an order that has gone went with it.
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

/// What a store here has of the products of a request.
fn available(stock: &Stock, ask: &Reserve) -> Vec<Cell> {
    let cell = |line: &Line| {
        Some(Cell {
            at: line.id,
            available: stock.available_in(line.id, ask.store)?,
        })
    };
    ask.lines.iter().filter_map(cell).collect()
}

async fn ask_after_reservations(state: &Arc<VolumeState>, remote: &dyn RemoteVolumes) {
    if seeded("orphans-forgotten") {
        return;
    }
    let due = state.remote_reservations().due(Instant::now());
    for (order, store, nonce) in due {
        match remote.keeps(&order, store).await {
            Ok(true) => {
                state.remote_reservations().confirm(&order, store, nonce);
                state.have(&order, store, nonce);
            }
            Ok(false) => {
                tracing::info!(%order, store, "units were set aside for an order that does not keep them");
                let settlement = Settlement {
                    store,
                    lines: Box::default(),
                    delivered: false,
                    sequence: None,
                };
                if let Err(fault) = state.end_reservation(&order, &settlement, Some(nonce)).await {
                    tracing::debug!(%order, ?fault, "an orphaned reservation could not be released yet");
                }
            }
            Err(fault) => tracing::debug!(%order, ?fault, "nobody says yet whether a reservation is kept"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
