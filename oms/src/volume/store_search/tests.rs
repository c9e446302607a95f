//! Tests of the search for an order's store: rings, and units that an earlier attempt reserved.

use std::sync::Arc;

use imt_ring::Ring;

use super::*;
use crate::storage::owned_slots::Slots;
use crate::volume::remote_stock::tests::{
    close, level, name, open, orders_where, own, reserve, rings, stocked, store_where, units,
};
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
    // The reservation is not for these units.
    assert_ne!(found(&order, 4), Some(store));
    close(&state).await;
}

/// The slot of an order migrates after an attempt to place the order has reserved all units of the
/// first store.
#[tokio::test]
async fn an_order_keeps_the_units_that_its_earlier_attempt_reserved() {
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
        transactors
            .ask(&other, Ask::Place(units(5).into()))
            .await
            .unwrap();
    }
    assert!(first_free().is_some_and(|free| free > store));
    let placed = transactors
        .ask(&order, Ask::Place(units(5).into()))
        .await
        .unwrap();
    assert_eq!(placed.order.store, Some(store));
    assert_eq!(level(&state, store), (0, 5));
    close(&state).await;
}
