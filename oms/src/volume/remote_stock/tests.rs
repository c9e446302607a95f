//! What is held for orders elsewhere has one row and one end, whatever fails and whoever asks how
//! often.

use std::path::Path;

use imt_ring::{Member, NodeName, Ring};

use super::*;
use crate::domain::stock::Reservation;
use crate::domain::stock_snapshot::StockSnapshot;
use crate::outbox::OutboxLimits;
use crate::runtime::clock::Clock;
use crate::storage::fence::SlotOwnership;
use crate::storage::owned_slots::{Slots, of_order, of_store};
use crate::storage::volume::Volume;
use crate::volume::migration::staged_state::StagedState;
use crate::volume::migration::target::StagedRows;

/// A ring of one volume, and the one after it with another.
fn rings() -> (Arc<Ring>, Arc<Ring>) {
    let member = |name: &str| Member::new(name).unwrap();
    let alone = Ring::bootstrap([member("a")], imt_ring::Options::new()).unwrap();
    let plan = alone.plan(&[member("a"), member("b")]).unwrap();
    let shared = alone.apply(&plan).unwrap();
    (Arc::new(alone), Arc::new(shared))
}

fn name() -> NodeName {
    NodeName::new("a").unwrap()
}

/// The rooms over the volume `a`, under a ring.
fn open(folder: &Path, ring: &Arc<Ring>) -> Arc<VolumeState> {
    let storage = Volume::open(folder).unwrap();
    let slots = Slots::of(Arc::clone(ring), &name(), storage.slot_ownership().as_ref());
    let loaded = storage.load(&slots).unwrap();
    let (storage, slots) = (Arc::new(storage), Arc::new(slots));
    let limits = OutboxLimits::default();
    Arc::new(VolumeState::new(
        storage,
        slots,
        loaded,
        limits,
        Clock::System,
        None,
    ))
}

/// The same with five units of product 7 in each of 20 stores.
async fn stocked(folder: &Path, ring: &Arc<Ring>) -> Arc<VolumeState> {
    let state = open(folder, ring);
    let mut snapshot = StockSnapshot::default();
    (1..=20).for_each(|store| snapshot.set([7, store, 5]).unwrap());
    let mut batch = WriteBatch::default();
    batch.stock(&snapshot, &[]);
    commit(&state, batch).await;
    own(&state, state.slots.record()).await;
    close(&state).await;
    open(folder, ring)
}

async fn commit(state: &VolumeState, batch: WriteBatch) {
    let permit = state.storage.permit().await.unwrap();
    permit.send(batch).durable().await.unwrap();
}

/// Has the volume's record say that it has these slots.
async fn own(state: &VolumeState, record: SlotOwnership) {
    let mut batch = WriteBatch::default();
    batch.own(record);
    commit(state, batch).await;
}

async fn close(state: &Arc<VolumeState>) {
    let state = Arc::clone(state);
    let closing = tokio::task::spawn_blocking(move || state.storage.close());
    closing.await.unwrap().unwrap();
}

/// The first store and orders with numbers from `first` on that the ring gives to `a`, or to the
/// other.
fn store_where(ring: &Ring, is_here: bool) -> u32 {
    let is_wanted = |store: &u32| (ring.owner(of_store(ring, *store)).unwrap() == &name()) == is_here;
    (1..=20).find(is_wanted).unwrap()
}

fn orders_where(ring: &Ring, is_here: bool) -> impl Iterator<Item = OrderId> {
    let all = (0..).map(|number| OrderId::parse(&format!("o{number}")).unwrap());
    all.filter(move |order| (ring.owner(of_order(ring, order)).unwrap() == &name()) == is_here)
}

fn units(quantity: u32) -> [Line; 1] {
    [Line { id: 7, quantity }]
}

/// What is available of the one product, and what is set aside.
fn level(state: &VolumeState, store: u32) -> (i32, u32) {
    let levels = state.stock().product(7);
    let (_, level) = levels.into_iter().find(|(at, _)| *at == store).unwrap();
    (level.available, level.reserved)
}

fn settlement(store: u32, delivered: bool) -> Settlement {
    Settlement {
        store,
        lines: units(2).into(),
        delivered,
        sequence: delivered.then_some(9),
    }
}

#[tokio::test]
async fn a_settlement_that_cannot_be_written_changes_nothing_and_is_carried_out_when_it_is_told_again() {
    let (_, shared) = rings();
    for delivered in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let state = stocked(folder.path(), &shared).await;
        let store = store_where(&shared, true);
        let orders: Vec<OrderId> = orders_where(&shared, false).take(2).collect();
        for (nonce, (order, quantity)) in (1..).zip(orders.iter().zip([2, 1])) {
            assert!(
                state
                    .reserve_for(order, nonce, store, &units(quantity))
                    .await
                    .unwrap()
            );
        }
        assert_eq!(level(&state, store), (2, 3));
        // Every commit that speaks for a slot is refused now, as if the disk were full.
        own(&state, SlotOwnership(vec![0; shared.slots() as usize])).await;
        let settlement = settlement(store, delivered);
        for _ in 0..2 {
            state.settle(&orders[0], &settlement).await.unwrap_err();
            assert_eq!(level(&state, store), (2, 3));
            let repeated = state.reserve_for(&orders[0], 3, store, &units(2)).await;
            repeated.unwrap_err();
            let other = state.reserve_for(&orders[0], 4, store, &units(1)).await;
            other.unwrap_err();
            assert_eq!(level(&state, store), (2, 3));
        }
        own(&state, state.slots.record()).await;
        let expected = if delivered { (2, 1) } else { (4, 1) };
        for _ in 0..3 {
            let both = tokio::join!(
                state.settle(&orders[0], &settlement),
                state.settle(&orders[0], &settlement)
            );
            assert!(both.0.is_ok(), "{both:?}");
            assert!(matches!(both.1, Ok(()) | Err(OrderError::Moved)), "{both:?}");
            assert_eq!(level(&state, store), expected);
        }
        close(&state).await;
        let again = open(folder.path(), &shared);
        assert_eq!(level(&again, store), expected);
        close(&again).await;
    }
}

#[tokio::test]
async fn a_volume_that_is_opened_again_knows_what_was_asked_for_from_elsewhere() {
    let (alone, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let asked = orders_where(&shared, false).next().unwrap();
    assert!(state.reserve_for(&asked, 77, store, &units(2)).await.unwrap());
    let own_order = orders_where(&shared, true).next().unwrap();
    let lines: Box<[Line]> = units(1).into();
    let mut batch = WriteBatch::default();
    batch.reserve(&Order::place(own_order.clone(), lines, Some(store), 0), store);
    commit(&state, batch).await;
    close(&state).await;
    // Both orders are here now; whether the first one came to be, only it can say.
    let again = open(folder.path(), &alone);
    assert!(again.remote_reservations().get(&asked, store).is_some());
    assert!(again.remote_reservations().get(&own_order, store).is_none());
    // An answer about another try of it ends nothing, one about this try does, once.
    for (nonce, left) in [(76, (2, 3)), (77, (4, 1)), (77, (4, 1))] {
        let settlement = settlement(store, false);
        let ended = again.end_reservation(&asked, &settlement, Some(nonce)).await;
        ended.unwrap();
        assert_eq!(level(&again, store), left);
    }
    close(&again).await;
}

#[tokio::test]
async fn what_reaches_a_volume_beside_its_order_is_asked_after_if_it_was_asked_for_from_elsewhere() {
    let (alone, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, false);
    let orders: Vec<OrderId> = orders_where(&shared, false).take(2).collect();
    let mut staged_state = StagedState::default();
    for (order, nonce) in orders.iter().zip([Some(5), None]) {
        let reservation = Reservation {
            order: order.clone(),
            store,
            lines: units(1).into(),
            nonce,
        };
        staged_state.reserve(order, store, Some(reservation), false);
    }
    let staged = StagedRows::default();
    let permit = state.storage.permit().await.unwrap();
    let taken = state.activate_slots(&alone, &mut staged_state, staged, permit);
    taken.durable().await.unwrap();
    let is_held = |order: &OrderId| state.remote_reservations().get(order, store).is_some();
    assert!(is_held(&orders[0]), "the order must say whether it keeps it");
    assert!(!is_held(&orders[1]), "it was set aside by the order's own step");
    close(&state).await;
}
