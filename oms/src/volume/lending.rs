//! The owner's side of allotments: lends units of a store to other volumes, *enters* the orders
//! that took lent units (replaces these units of the loan by a usual reservation), and recalls
//! units.
//!
//! **Invariants**
//! - A grant is durable before the borrower gets it. Returned units are free only once their return
//!   is durable.
//! - A request changes a loan at most once, because the row of the loan contains the incarnation
//!   and the number of the last request.
//! - The commit that takes an order's units out of a loan also writes the order's reservation.
//! - A search for an order's store counts lent units as available, so it skips no store because of
//!   them. The placement of an order that needs lent units is repeated until they are returned. At
//!   its deadline the client gets 503.
//! - Only a part of the free units is lent, and never the last `RECALL_BELOW` of a product.
//!
//! Deliberately absent: the use of borrowed units (`borrowing`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::time::Instant;

use crate::cluster::channel::message::Reply;
use crate::domain::allotments::{CELLS_MAX, TARGET_FIRST};
use crate::domain::loans::{AllotRequest, Change, Recall, SpentUnits, Turn};
use crate::domain::order::Line;
use crate::domain::stock::{RECALL_BELOW, Stock};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::runtime::watch;
use crate::storage::fence::Fence;
use crate::storage::group_commit::Durable;
use crate::storage::write_batch::WriteBatch;
use crate::volume::remote_reservations::RemoteReservation;
use crate::volume::remote_stock::RemoteVolumes;
use crate::volume::state::{OrderError, VolumeState};

/// Interval at which the loans are checked while units are lent, or while a volume with a loan has
/// left the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time after which a recall is sent again, in milliseconds.
const RECALL_EVERY_MS: u64 = 200;
/// Time without a request of the borrower after which its loan is recalled, in milliseconds. A
/// volume that uses borrowed units sends requests many times a second. If there are none, the
/// volume server that borrowed the units has ended or is unreachable.
const FORGOTTEN_AFTER_MS: u64 = 5_000;
/// Divisor of the free units of a product beyond `RECALL_BELOW`. With one request each, all other
/// volumes together borrow at most an eighth of these units, in tests at most half of them.
const SHARE: i64 = if cfg!(test) { 2 } else { 8 };

/// Longest wait for the return of lent units that exceed the quantities of a new stock. A borrower
/// returns them within some milliseconds, unless its node does not answer.
const COVERED_WITHIN: Duration = Duration::from_secs(1);

/// The change of a loan while its rows are committed.
struct Changing {
    change: Change,
    granted: Box<[Line]>,
    /// Orders that this change enters.
    entered: Vec<Entered>,
}

/// An order that took lent units, while its usual reservation is being committed.
struct Entered {
    spent: SpentUnits,
    /// The former reservation of the order in this store, which the new one replaces.
    before: Option<RemoteReservation>,
}

impl VolumeState {
    /// Applies a borrower's request to its loan. Returns the answer once the change is durable.
    pub(crate) async fn allot(self: &Arc<Self>, request: AllotRequest) -> Result<Reply, OrderError> {
        let permit = self.storage.permit().await?;
        let store = request.store;
        let (mut ticket, fence, changing) = {
            let mut stock = self.stock();
            if !self.slots.check_store(store)? {
                return Err(OrderError::Moved);
            }
            let mut batch = WriteBatch::default();
            let changing = match self.begin_allotting(&mut stock, &request, &mut batch)? {
                Ok(changing) => changing,
                Err(reply) => return Ok(reply),
            };
            let fence = self.slots.fence_of_store(store);
            batch.fence(fence);
            (permit.send(batch), fence, changing)
        };
        let reply = Reply::Allotted {
            incarnation: request.incarnation,
            granted: changing.granted.to_vec(),
        };
        if seeded("allotment-used-early") {
            let state = Arc::clone(self);
            drop(runtime::spawn(async move {
                let durable = ticket.answer().await;
                state.end_allotting(fence, changing, durable.as_ref().ok());
            }));
            return Ok(reply);
        }
        let state = Arc::clone(self);
        let ended = runtime::to_completion(async move {
            let durable = ticket.answer().await;
            state.end_allotting(fence, changing, durable.as_ref().ok());
            Ok(durable.map(drop)?)
        });
        ended.await.unwrap_or(Err(OrderError::Interrupted))?;
        Ok(reply)
    }

    /// Begins to change a loan. If the request changes nothing, the inner `Err` contains the answer
    /// to it.
    fn begin_allotting(
        &self,
        stock: &mut Stock,
        request: &AllotRequest,
        batch: &mut WriteBatch,
    ) -> Result<Result<Changing, Reply>, OrderError> {
        let AllotRequest { borrower, store, .. } = request;
        let known = stock.loans().get(*store, borrower);
        if known.is_some_and(|known| known.is_changing) {
            return Err(OrderError::Moved);
        }
        match known.map(|known| (&known.loan, known.loan.turn(request))) {
            None | Some((_, Turn::Newer)) => {}
            Some((before, Turn::Repeated)) => {
                return Ok(Err(Reply::Allotted {
                    incarnation: before.incarnation,
                    granted: before.granted.to_vec(),
                }));
            }
            Some((before, Turn::Outdated)) => {
                return Ok(Err(Reply::Allotted {
                    incarnation: before.incarnation.max(request.incarnation + 1),
                    granted: Vec::new(),
                }));
            }
        }
        let mut remote_reservations = self.remote_reservations();
        let mut entered = Vec::new();
        for spent in &request.spent {
            let known = remote_reservations.get(&spent.order, *store);
            if known.is_some_and(|known| known.is_changing) {
                return Err(OrderError::Moved);
            }
            // If the known reservation has the same nonce, an earlier request has entered the
            // order, and it must not be entered again.
            if known.is_none_or(|known| known.nonce != spent.nonce) {
                entered.push(spent);
            }
        }
        let granted = self.grant(stock, request);
        let lines: Vec<Line> = entered
            .iter()
            .flat_map(|spent| spent.lines.iter().copied())
            .collect();
        let now_ms = self.now().monotonic_ms;
        let Some(change) = stock.loans().begin(request, &lines, granted.clone(), now_ms) else {
            tracing::error!(%borrower, store, "volume uses more units than it has borrowed");
            return Err(OrderError::Away("more units are used than were lent".to_owned()));
        };
        let entered = entered.into_iter().map(|spent| {
            batch.reserve_for(&spent.order, *store, &spent.lines, Some(spent.nonce));
            // The order is durable at the borrower, so its volume need not be asked.
            let mut now = RemoteReservation::confirmed(&spent.lines, spent.nonce);
            now.is_changing = true;
            Entered {
                before: remote_reservations.insert(&spent.order, *store, now),
                spent: spent.clone(),
            }
        });
        let entered = entered.collect();
        if let Some(open) = stock.loans().get(*store, borrower) {
            batch.loan(*store, borrower, &open.loan);
        }
        Ok(Ok(Changing {
            change,
            granted,
            entered,
        }))
    }

    /// Returns the units to lend for a request: of each wanted product at most the wanted quantity,
    /// and at most the borrower's share of the free units (see `SHARE`). With `wants_all`,
    /// `TARGET_FIRST` units of every other product are wanted too. A loan gets at most `CELLS_MAX`
    /// products. Returns nothing if lending is off or the borrower is no member of the ring.
    fn grant(&self, stock: &mut Stock, request: &AllotRequest) -> Box<[Line]> {
        let ring = self.slots.ring();
        if !self.lends() || ring.member(&request.borrower).is_none() {
            return Box::default();
        }
        let others = (ring.members().len() as i64 - 1).max(1);
        let known = stock.loans().get(request.store, &request.borrower);
        let lent = known.map_or(0, |known| known.loan.units.len());
        let room = CELLS_MAX.saturating_sub(lent);
        let grant = |wanted: Line| {
            let free = stock.free(request.store, wanted.id) - i64::from(RECALL_BELOW);
            let units = (free / (SHARE * others)).clamp(0, i64::from(wanted.quantity));
            (units > 0).then_some(Line {
                id: wanted.id,
                quantity: units as u32,
            })
        };
        let all = if request.wants_all {
            stock.products()
        } else {
            Vec::new()
        };
        let named: BTreeSet<u32> = request.wanted.iter().map(|wanted| wanted.id).collect();
        let unnamed = all.into_iter().filter(|id| !named.contains(id)).map(|id| Line {
            id,
            quantity: TARGET_FIRST,
        });
        let wanted = request.wanted.iter().copied().chain(unnamed);
        wanted.filter_map(grant).take(room).collect()
    }

    /// Ends the change of a loan after its commit. Reverts the change if `durable` is `None`,
    /// because the commit failed.
    fn end_allotting(&self, fence: Fence, changing: Changing, durable: Option<&Durable>) {
        let Changing { change, entered, .. } = changing;
        let store = change.store;
        let mut stock = self.stock();
        // If the fence differs, the store has migrated in the meantime, and its loans with it.
        if self.slots.fence_of_store(store) != fence {
            return;
        }
        stock
            .loans()
            .end(change, durable.is_some(), self.now().monotonic_ms);
        let mut remote_reservations = self.remote_reservations();
        for Entered { spent, before } in entered {
            if durable.is_none() {
                remote_reservations.remove(&spent.order, store);
                if let Some(before) = before {
                    remote_reservations.insert(&spent.order, store, before);
                }
                continue;
            }
            stock.reserve_units(store, &spent.lines);
            if let Some(now) = remote_reservations.get_mut(&spent.order, store) {
                now.is_changing = false;
            }
            if let Some(before) = before {
                stock.release(store, before.lines());
            }
        }
        drop((stock, remote_reservations));
        self.lender_called.notify_one();
        self.followers.stock_has_changed();
    }

    /// Waits until borrowers have returned the lent units that exceed the quantities of a new
    /// stock. Then no order takes units that the new stock lacks. Ends after `COVERED_WITHIN` in
    /// any case, because a borrower may not answer.
    pub(crate) async fn loans_are_covered(&self) {
        let until = Instant::now() + COVERED_WITHIN;
        loop {
            {
                let mut stock = self.stock();
                if stock.covers_loans() || Instant::now() >= until {
                    return;
                }
                // A borrower may have got a grant after it processed an earlier recall, so the
                // recall is repeated.
                stock.recall_scarce();
            }
            self.lender_called.notify_one();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Removes the loan of a volume that has left the cluster. All orders of that volume were
    /// entered before its slots were sealed, so no order uses the units that are still lent.
    async fn forget_borrower(self: &Arc<Self>, store: u32, borrower: NodeName) -> Result<(), OrderError> {
        let permit = self.storage.permit().await?;
        let (mut ticket, fence) = {
            let mut stock = self.stock();
            let is_member = self.slots.ring().member(&borrower).is_some();
            if is_member || !self.slots.check_store(store)? {
                return Ok(());
            }
            let Some(open) = stock
                .loans()
                .get_mut(store, &borrower)
                .filter(|open| !open.is_changing)
            else {
                return Ok(());
            };
            open.is_changing = true;
            let mut batch = WriteBatch::default();
            let fence = self.slots.fence_of_store(store);
            batch.fence(fence);
            batch.forget_loan(store, &borrower);
            (permit.send(batch), fence)
        };
        let state = Arc::clone(self);
        let ended = runtime::to_completion(async move {
            let durable = ticket.answer().await;
            let mut stock = state.stock();
            if state.slots.fence_of_store(store) == fence {
                if durable.is_ok() {
                    stock.loans().remove(store, &borrower);
                } else if let Some(open) = stock.loans().get_mut(store, &borrower) {
                    open.is_changing = false;
                }
            }
            drop(stock);
            state.followers.stock_has_changed();
            Ok(durable.map(drop)?)
        });
        ended.await.unwrap_or(Err(OrderError::Interrupted))
    }

    /// Recalls the lent units of the products that `take_recalled` returns, and loans without a
    /// request for `FORGOTTEN_AFTER_MS`. Repeats recalls that are not answered. Returns `true` if
    /// units are lent or a volume with a loan has left the cluster. The returned list names the
    /// loans of volumes that have left: the store and the volume of each.
    fn look_at_loans(&self, remote: &dyn RemoteVolumes) -> (bool, Vec<(u32, NodeName)>) {
        let now_ms = self.now().monotonic_ms;
        let ring = self.slots.ring();
        let mut stock = self.stock();
        let scarce = stock.loans().take_recalled();
        let (mut gone, mut recalls) = (Vec::new(), Vec::new());
        let mut is_lent = false;
        for ((store, borrower), open) in stock.loans().iter_mut() {
            if ring.member(borrower).is_none() {
                gone.push((*store, borrower.clone()));
                is_lent = true;
                continue;
            }
            if open.loan.units.is_empty() {
                continue;
            }
            is_lent = true;
            let products = scarce.get(store).into_iter().flatten();
            let products: BTreeSet<u32> = products
                .filter(|product| open.loan.units.contains_key(product))
                .copied()
                .collect();
            if now_ms >= open.heard_ms + FORGOTTEN_AFTER_MS {
                open.recalled = Some(BTreeSet::new());
            } else if !products.is_empty() {
                let is_known = match &open.recalled {
                    None => false,
                    Some(known) => known.is_empty() || known.is_superset(&products),
                };
                if !is_known {
                    open.recalled.get_or_insert_default().extend(products);
                    open.recall_at_ms = now_ms;
                }
            }
            if let Some(products) = &open.recalled
                && now_ms >= open.recall_at_ms
            {
                open.recall_at_ms = now_ms + RECALL_EVERY_MS;
                let recall = Recall {
                    store: *store,
                    products: products.iter().copied().collect(),
                };
                recalls.push((borrower.clone(), recall));
            }
        }
        drop(stock);
        for (borrower, recall) in recalls {
            if !seeded("recall-forgotten") {
                remote.recall(&borrower, recall);
            }
        }
        (is_lent, gone)
    }
}

/// Recalls units, and removes the loans of volumes that have left, until `stop` becomes `true`.
pub(crate) async fn lend_always(
    state: Arc<VolumeState>,
    remote: Arc<dyn RemoteVolumes>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let called = state.lender_called.notified();
        let work = async {
            let (is_lent, gone) = state.look_at_loans(remote.as_ref());
            for (store, borrower) in gone {
                if let Err(fault) = state.forget_borrower(store, borrower).await {
                    tracing::debug!(
                        store,
                        ?fault,
                        "the loan of a volume that has left remains for now"
                    );
                }
            }
            if is_lent {
                tokio::time::sleep(LOOK_EVERY).await;
            } else {
                called.await;
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
