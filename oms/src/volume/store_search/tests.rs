//! Tests of the search for an order's store: rings, and units that an earlier attempt reserved.

use std::sync::Arc;

use imt_ring::Ring;
use tempfile::TempDir;

use super::*;
use crate::domain::stock_snapshot::StockSnapshot;
use crate::storage::fence::SlotOwnership;
use crate::storage::owned_slots::Slots;
use crate::volume::remote_stock::tests::{
    close, level, name, open, orders_where, own, reserve, rings, stocked, store_where, units,
};
use crate::volume::state::Outcome;
use crate::volume::transactor::{Ask, Transactors};

#[tokio::test]
async fn a_search_by_another_ring_gets_no_answer() {
    let (alone, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let order = orders_where(&shared, true).next().unwrap();
    let found = |ring: &Ring| state.find_store(&order, &units(1), ring.epoch());
    assert_eq!(found(&shared).unwrap(), Some(store_where(&shared, true)));
    // Under the ring `alone` all stores are in this volume. This volume follows `shared`, so its
    // answer could miss a store that is now in the other volume.
    assert!(matches!(found(&alone), Err(OrderError::Moved)));
    close(&state).await;
}

#[tokio::test]
async fn a_search_counts_units_that_the_order_has_reserved() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let (store, orders) = (store_where(&shared, true), orders_where(&shared, false));
    let [order, other]: [OrderId; 2] = orders.take(2).collect::<Vec<_>>().try_into().unwrap();
    assert!(reserve(&state, &order, 1, store, 5).await.unwrap());
    let found = |order, quantity| {
        let found = state.find_store(order, &units(quantity), shared.epoch());
        found.unwrap()
    };
    assert_eq!(found(&order, 5), Some(store));
    assert_ne!(found(&other, 5), Some(store));
    // The order has reserved five units, and a search for four units does not count them.
    assert_ne!(found(&order, 4), Some(store));
    close(&state).await;
}

/// A volume to which the slot of an order has moved, after an attempt to place the order at another
/// volume had reserved all units of a store. No store with a lower number has the units.
struct Moved {
    _folder: TempDir,
    state: Arc<VolumeState>,
    order: OrderId,
    store: u32,
}

impl Moved {
    async fn new() -> Moved {
        let (alone, shared) = rings();
        let folder = tempfile::tempdir().unwrap();
        let state = stocked(folder.path(), &shared).await;
        let store = store_where(&shared, true);
        let order = orders_where(&shared, false).next().unwrap();
        assert!(reserve(&state, &order, 1, store, 5).await.unwrap());
        let everything = Slots::of(Arc::clone(&alone), &name(), None).record();
        own(&state, everything).await;
        close(&state).await;
        drop(state);
        let state = open(folder.path(), &alone);
        let transactors = Transactors::new(Arc::clone(&state));
        let first_free = || state.stock().first_store(&units(5));
        let mut others = orders_where(&alone, true).filter(|other| *other != order);
        while first_free().is_some_and(|free| free < store) {
            let other = others.next().unwrap();
            let place = Ask::Place(units(5).into());
            transactors.ask(&other, place).await.unwrap();
        }
        assert!(first_free().is_some_and(|free| free > store));
        assert_eq!(level(&state, store), (0, 5));
        Moved {
            _folder: folder,
            state,
            order,
            store,
        }
    }

    async fn place(&self) -> Result<Outcome, OrderError> {
        let transactors = Transactors::new(Arc::clone(&self.state));
        transactors.ask(&self.order, Ask::Place(units(5).into())).await
    }
}

#[tokio::test]
async fn an_order_keeps_the_units_that_its_earlier_attempt_reserved() {
    let moved = Moved::new().await;
    let placed = moved.place().await.unwrap();
    assert_eq!(placed.order.store, Some(moved.store));
    assert_eq!(level(&moved.state, moved.store), (0, 5));
    close(&moved.state).await;
}

#[tokio::test]
async fn a_failed_commit_keeps_the_reservation_of_the_earlier_attempt() {
    let moved = Moved::new().await;
    let everything = moved.state.slots.record();
    // Under this record the volume owns no slot, so all commits with a fence are rejected.
    own(&moved.state, SlotOwnership(vec![0; everything.0.len()])).await;
    moved.place().await.unwrap_err();
    let kept = moved
        .state
        .remote_reservations()
        .get(&moved.order, moved.store)
        .map(|known| known.nonce);
    assert_eq!(kept, Some(1));
    assert_eq!(level(&moved.state, moved.store), (0, 5));
    own(&moved.state, everything).await;
    let placed = moved.place().await.unwrap();
    assert_eq!(placed.order.store, Some(moved.store));
    assert_eq!(level(&moved.state, moved.store), (0, 5));
    close(&moved.state).await;
}

/// A new stock arrives between the two attempts to place an order.
#[tokio::test]
async fn reserved_units_that_a_new_stock_lacks_are_not_counted() {
    let (_, shared) = rings();
    let folder = tempfile::tempdir().unwrap();
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    let order = orders_where(&shared, false).next().unwrap();
    assert!(reserve(&state, &order, 1, store, 5).await.unwrap());
    for (quantity, is_found) in [(5, true), (4, false)] {
        let mut snapshot = StockSnapshot::default();
        snapshot.set([7, store, quantity]).unwrap();
        let mut stock = state.stock();
        let (layout, arrival) = (stock.layout(), stock.arrival());
        stock.apply(snapshot.into_matrix(&layout), None, arrival).unwrap();
        drop(stock);
        let found = state.find_store(&order, &units(5), shared.epoch());
        assert_eq!(found.unwrap(), is_found.then_some(store), "{quantity}");
    }
    close(&state).await;
}
