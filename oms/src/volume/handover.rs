//! The change of a volume's state in memory when the ring assigns other slots to the volume: slots
//! are released, and migrated slots are activated.
//!
//! **Invariants**
//! - A release or activation holds the lock of the stock, so no step of an order queues rows or
//!   changes the stock at the same time.
//! - The time of a release or activation grows with the stores, the settlements, and the deliveries
//!   that no stock snapshot reflects yet, but hardly with the open orders. `StagedState` prepares
//!   the state of incoming slots store by store, and `Exports` prepares the reservations that
//!   remain at the source.
//! - The batch that activates the rows is queued under the same locks, so every later step of an
//!   order is committed after the activation.
//!
//! Deliberately absent: the transfer of rows. The rows of incoming slots are in the volume already,
//! and `cleanup` removes the rows of released slots.

use std::sync::Arc;

use imt_ring::Ring;

use crate::runtime::seeded::seeded;
use crate::storage::group_commit::{Permit, Ticket};
use crate::volume::migration::staged_rows::StagedRows;
use crate::volume::migration::staged_state::StagedState;
use crate::volume::remote_reservations::RemoteReservations;
use crate::volume::state::VolumeState;

impl VolumeState {
    /// Applies a ring that may take slots away from this volume. If it does, removes the state of
    /// these slots from memory. Adds `left_behind` to the remote reservations: the reservations
    /// that orders of these slots keep in stores of this volume. `left_behind` is `None` if no slot
    /// is taken away. Call `forget_messages` afterwards.
    pub(crate) fn release_slots(&self, ring: &Arc<Ring>, left_behind: Option<RemoteReservations>) {
        let (mut stock, mut remote_reservations) = (self.stock(), self.remote_reservations());
        let mut settlements = self.settlements();
        let slots = &self.slots;
        slots.follow(ring);
        let Some(left_behind) = left_behind else { return };
        stock.depart(|store| slots.has_store(store));
        remote_reservations.retain_stores(|store| slots.has_store(store));
        remote_reservations.join(left_behind);
        settlements.retain(|order, _| slots.has_order(order));
    }

    /// Removes from the outbox the messages of orders in slots of other volumes: of migrated
    /// orders, or of orders of a migration that was undone. Yields between parts of the outbox, so
    /// that orders are not delayed. The dispatcher skips messages that are not removed yet.
    pub(crate) async fn forget_messages(&self) {
        let mut at = 0;
        while self.outbox().forget(at, |order| self.slots.has_order(order)) {
            at += 1;
            tokio::task::yield_now().await;
        }
    }

    /// Applies a ring that gives more slots to this volume, and activates their staged rows.
    /// Returns the ticket of the commit that makes the activation durable. The caller should drop
    /// the rest of `staged_state` later in another task, because the drop takes long.
    pub(crate) fn activate_slots(
        &self,
        ring: &Arc<Ring>,
        staged_state: &mut StagedState,
        mut staged: StagedRows,
        permit: Permit<'_>,
    ) -> Ticket {
        staged_state.add_settled_reservations();
        let (mut stock, mut remote_reservations) = (self.stock(), self.remote_reservations());
        let (mut settlements, mut outbox) = (self.settlements(), self.outbox());
        let slots = &self.slots;
        slots.follow(ring);
        let deliveries = std::mem::take(&mut staged_state.deliveries).into_iter();
        stock.arrive(
            &staged.stock.products,
            &staged.stock.columns,
            staged.stock.head,
            std::mem::take(&mut staged_state.reserved_units),
            deliveries
                .map(|((order, _), delivery)| (order, delivery))
                .collect(),
        );
        stock.add_loans(std::mem::take(&mut staged_state.loans), self.now().monotonic_ms);
        settlements.append(&mut staged_state.settlements);
        // The orders of some remote reservations are in slots of this volume now. Such a
        // reservation stays remote until its order confirms that it still needs the units, because
        // the slot of an order does not prove that the order exists.
        remote_reservations.join(std::mem::take(&mut staged_state.remote_reservations));
        // The parked messages may be due now, so the end of this function notifies the dispatcher.
        if !seeded("parked-forgotten") {
            outbox.activate_parked();
        }
        staged.batch.set_ownership(slots.record());
        let ticket = permit.send(staged.batch);
        drop((stock, remote_reservations, settlements, outbox));
        self.message_due.notify_one();
        self.settler_called.notify_one();
        self.lender_called.notify_one();
        ticket
    }
}

#[cfg(test)]
mod tests {
    use imt_ring::{Member, NodeName};

    use super::*;
    use crate::cluster;
    use crate::domain::order::{Line, OrderId, State};
    use crate::domain::settlement::Settlement;
    use crate::domain::stock::StockHead;
    use crate::domain::stock_snapshot::StockSnapshot;
    use crate::outbox::OutboxLimits;
    use crate::runtime::clock::Clock;
    use crate::storage::owned_slots::Slots;
    use crate::storage::volume::Volume;
    use crate::storage::write_batch::WriteBatch;
    use crate::volume::migration::source::{self, ExportRequest, Exports};
    use crate::volume::state::OrderError;
    use crate::volume::transactor::{Ask, Transactors};

    fn rings() -> (Arc<Ring>, Arc<Ring>) {
        let member = |name: &str| Member::new(name).unwrap();
        let alone = Ring::bootstrap([member("a")], imt_ring::Options::new()).unwrap();
        let plan = alone.plan(&[member("a"), member("b")]).unwrap();
        let shared = alone.apply(&plan).unwrap();
        (Arc::new(alone), Arc::new(shared))
    }

    /// Opens a volume with all slots, 40 stores with one product each, and an order in each store.
    async fn full(folder: &std::path::Path, ring: &Arc<Ring>) -> Arc<Transactors> {
        let storage = Arc::new(Volume::open(folder).unwrap());
        let slots = Arc::new(Slots::of(Arc::clone(ring), &NodeName::new("a").unwrap(), None));
        let mut snapshot = StockSnapshot::default();
        (1..=40).for_each(|store| snapshot.set([store, store, 5]).unwrap());
        let mut batch = WriteBatch::default();
        batch.stock(&snapshot, &[]);
        batch.stock_head(&StockHead::default());
        batch.set_ownership(slots.record());
        storage
            .permit()
            .await
            .unwrap()
            .send(batch)
            .durable()
            .await
            .unwrap();
        let loaded = storage.load(&slots).unwrap();
        let state = VolumeState::new(
            storage,
            slots,
            loaded,
            OutboxLimits::default(),
            Clock::System,
            None,
        );
        let transactors = Transactors::new(Arc::new(state));
        for store in 1..=40 {
            let id = OrderId::parse(&format!("o{store}")).unwrap();
            let line = Line {
                id: store,
                quantity: 2,
            };
            let placed = transactors.ask(&id, Ask::Place([line].into())).await.unwrap();
            assert_eq!(placed.order.store, Some(store));
        }
        transactors
    }

    /// Seals and copies all slots that a ring gives to volume `b`. Returns the reservations that
    /// orders in these slots keep in stores of this volume.
    async fn left_behind(state: &Arc<VolumeState>, ring: &Ring) -> RemoteReservations {
        let lost: Vec<u32> = state.slots.lost(ring).map(|slot| slot.0).collect();
        let mut request = ExportRequest {
            id: 1,
            to: NodeName::new("b").unwrap(),
            slots: cluster::ranges(&lost),
            page: 0,
            seal: true,
        };
        assert!(source::seal(state, &request).await.unwrap());
        let exports = Exports::default();
        // The first byte of a page is 1 on the last page.
        while exports.page(state, &request).await.unwrap()[0] == 0 {
            let early = exports.left_behind(&state.slots, 2, ring).await;
            assert!(early.is_none(), "no slot was copied for that migration");
            request.page += 1;
        }
        exports.left_behind(&state.slots, 1, ring).await.unwrap()
    }

    async fn close(state: &Arc<VolumeState>) {
        let state = Arc::clone(state);
        tokio::task::spawn_blocking(move || state.storage.close())
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn released_slots_are_forgotten_and_reservations_of_their_orders_remain() {
        let folder = tempfile::tempdir().unwrap();
        let (alone, shared) = rings();
        let transactors = full(folder.path(), &alone).await;
        let state = transactors.state();
        let left_behind = left_behind(state, &shared).await;
        state.release_slots(&shared, Some(left_behind));
        state.forget_messages().await;
        let id = |store: u32| OrderId::parse(&format!("o{store}")).unwrap();
        let (mut held, mut gone) = (Vec::new(), 0);
        for store in 1..=40 {
            let (has_order, has_store) = (state.slots.has_order(&id(store)), state.slots.has_store(store));
            let level = state.stock().product(store);
            let here = level.iter().find(|level| level.cell.store == store);
            assert_eq!(
                here.map(|level| level.reserved),
                has_store.then_some(2),
                "store {store}"
            );
            let is_told = state
                .outbox()
                .get(&id(store), crate::outbox::Kind::Announce)
                .is_some();
            assert_eq!(is_told, has_order, "a message migrates with its order");
            let is_held = state.remote_reservations().get(&id(store), store).is_some();
            assert_eq!(is_held, has_store && !has_order, "store {store}");
            held.extend(is_held.then_some(store));
            gone += usize::from(!has_order && !has_store);
            let asked = transactors.ask(&id(store), Ask::Look).await;
            assert_eq!(asked.is_ok(), has_order);
        }
        assert!(
            held.len() > 3 && gone > 3,
            "too few of a kind: {held:?} held, {gone} gone"
        );
        // The order's new volume sends the settlement twice. The repetition must change nothing.
        let store = held[0];
        let settlement = Settlement {
            store,
            lines: Box::default(),
            delivered: true,
            sequence: Some(4),
        };
        for _ in 0..2 {
            state.settle(&id(store), &settlement).await.unwrap();
            let level = state.stock().product(store)[0];
            assert_eq!((level.available, level.reserved), (3, 0));
        }
        close(state).await;
    }

    #[tokio::test]
    async fn writes_of_a_former_owner_are_rejected_at_commit() {
        let folder = tempfile::tempdir().unwrap();
        let (alone, shared) = rings();
        let transactors = full(folder.path(), &alone).await;
        let state = transactors.state();
        let mut waiting = Vec::new();
        // The batches get their fences while this volume owns all slots, and are queued after some
        // slots were released. So they resemble batches of a writer that was suspended in between.
        let stale: Vec<(OrderId, WriteBatch)> = (1..=40)
            .map(|number| {
                let id = OrderId::parse(&format!("o{number}")).unwrap();
                let mut batch = WriteBatch::default();
                batch.fence(state.slots.fence_of_order(&id));
                batch.forget_settlement(&id);
                (id, batch)
            })
            .collect();
        let left_behind = left_behind(state, &shared).await;
        state.release_slots(&shared, Some(left_behind));
        let mut seal = WriteBatch::default();
        seal.set_ownership(state.slots.record());
        // Nearly all batches share one group commit. A batch of a released slot must be rejected
        // without an effect on the other batches.
        let sealed = state.storage.permit().await.unwrap().send(seal);
        for (id, batch) in stale {
            waiting.push((id, state.storage.permit().await.unwrap().send(batch)));
        }
        sealed.durable().await.unwrap();
        let mut refused = 0;
        for (id, ticket) in waiting {
            match ticket.durable().await.map_err(OrderError::from) {
                Ok(()) => assert!(state.slots.has_order(&id), "{id}"),
                Err(OrderError::Moved) => {
                    assert!(!state.slots.has_order(&id), "{id}");
                    refused += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(refused > 3 && refused < 37, "{refused} of 40");
        let record = state.storage.slot_ownership().unwrap();
        assert_eq!(record, state.slots.record());
        close(state).await;
        let again = Volume::open(folder.path()).unwrap();
        assert_eq!(again.slot_ownership(), Some(record), "the record is durable");
        let counted = again.counters().orders[State::Reserved as usize];
        assert_eq!(counted, 40, "rejected batches were not counted");
        tokio::task::spawn_blocking(move || again.close())
            .await
            .unwrap()
            .unwrap();
    }
}
