//! Tests of lending: after failures and repeated requests, each unit is still either lent, reserved
//! or free, and is not counted twice.

use std::task::Poll;

use parking_lot::Mutex;

use super::*;
use crate::domain::order::OrderId;
use crate::domain::settlement::Settlement;
use crate::domain::stock::{Cell, CellStep};
use crate::volume::remote_stock::Answer;
use crate::volume::remote_stock::tests::{
    close, level, name, open, orders_where, reserve, rings, stocked, store_where,
};
use crate::volume::store_search::Search;

fn borrower() -> NodeName {
    NodeName::new("b").unwrap()
}

fn line(quantity: u32) -> Line {
    Line { id: 7, quantity }
}

fn request(incarnation: u64, sequence: u64, store: u32) -> AllotRequest {
    AllotRequest {
        borrower: borrower(),
        incarnation,
        sequence,
        store,
        clears: false,
        spent: Vec::new(),
        returned: Vec::new(),
        wanted: vec![line(9)],
        wants_all: false,
    }
}

fn spent(order: &OrderId, quantity: u32) -> SpentUnits {
    SpentUnits {
        order: order.clone(),
        nonce: 5 | crate::volume::remote_stock::LENT_NONCES,
        lines: [line(quantity)].into(),
    }
}

async fn granted(state: &Arc<VolumeState>, request: &AllotRequest) -> (u64, u32) {
    match state.allot(request.clone()).await.unwrap() {
        Reply::Allotted { incarnation, granted } => {
            (incarnation, granted.iter().map(|line| line.quantity).sum())
        }
        other => panic!("{other:?}"),
    }
}

fn lent(state: &VolumeState, store: u32) -> u32 {
    state.stock().loans().of(store, 7)
}

/// A client for other volumes that records recalls and does nothing else.
#[derive(Default)]
struct Recalled(Mutex<Vec<Recall>>);

impl RemoteVolumes for Recalled {
    fn find<'a>(&'a self, _: Search<'a>) -> Answer<'a, Option<u32>> {
        Box::pin(async { Ok(None) })
    }

    fn reserve<'a>(&'a self, _: &'a OrderId, _: u64, _: u32, _: &'a [Line]) -> Answer<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn confirm(&self, _: &OrderId, _: u64, _: u32) {}

    fn allot<'a>(&'a self, _: &'a AllotRequest) -> Answer<'a, Reply> {
        Box::pin(async { Err(OrderError::Moved) })
    }

    fn recall(&self, volume: &NodeName, recall: Recall) {
        assert_eq!(*volume, borrower());
        self.0.lock().push(recall);
    }

    fn settle<'a>(&'a self, _: &'a OrderId, _: &'a Settlement) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn keeps<'a>(&'a self, _: &'a OrderId, _: u32) -> Answer<'a, bool> {
        Box::pin(async { Ok(true) })
    }
}

#[tokio::test]
async fn a_loan_is_durable_and_a_repeated_or_outdated_request_changes_nothing() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    // The store has five units. Two are never lent in tests, and half of the others, rounded down,
    // are lent.
    assert_eq!(granted(&state, &request(1, 1, store)).await, (1, 1));
    assert_eq!(granted(&state, &request(1, 1, store)).await, (1, 1));
    assert_eq!((level(&state, store), lent(&state, store)), ((5, 0), 1));
    close(&state).await;
    let state = open(folder.path(), &shared);
    assert_eq!((level(&state, store), lent(&state, store)), ((5, 0), 1));
    assert_eq!(
        granted(&state, &request(1, 1, store)).await,
        (1, 1),
        "known again"
    );
    let mut order = orders_where(&shared, false);
    let order = order.next().unwrap();
    let mut enter = request(1, 2, store);
    (enter.wanted, enter.spent) = (Vec::new(), vec![spent(&order, 1)]);
    for _ in 0..2 {
        assert_eq!(granted(&state, &enter).await, (1, 0));
        assert_eq!((level(&state, store), lent(&state, store)), ((4, 1), 0));
    }
    let (last, units) = granted(&state, &request(1, 1, store)).await;
    assert!(last > 1 && units == 0, "an outdated request is refused");
    // The order has a usual reservation now, so a settlement ends it, and a repeated settlement
    // changes nothing.
    let settlement = Settlement {
        store,
        lines: Box::default(),
        delivered: true,
        sequence: Some(3),
    };
    for _ in 0..2 {
        state.settle(&order, &settlement).await.unwrap();
        assert_eq!(level(&state, store), (4, 0));
    }
    close(&state).await;
}

#[tokio::test]
async fn a_grant_is_answered_once_it_is_durable() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    let mut answering = std::pin::pin!(state.allot(request(1, 1, store)));
    // The commit begins only after this task yields, so an answer at the first poll would come
    // before the commit.
    let first = std::future::poll_fn(|context| Poll::Ready(answering.as_mut().poll(context)));
    assert!(first.await.is_pending(), "answered before the commit");
    answering.await.unwrap();
    close(&state).await;
    let state = open(folder.path(), &shared);
    assert_eq!(lent(&state, store), 1);
    close(&state).await;
}

#[tokio::test]
async fn a_late_reservation_does_not_make_an_order_enter_twice() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    granted(&state, &request(1, 1, store)).await;
    let mut order = orders_where(&shared, false);
    let order = order.next().unwrap();
    let mut enter = request(1, 2, store);
    (enter.wanted, enter.spent) = (Vec::new(), vec![spent(&order, 1)]);
    granted(&state, &enter).await;
    assert!(!reserve(&state, &order, 1, store, 1).await.unwrap());
    // The next server of the borrower does not know that the order has a reservation here, and
    // reports the order again. The units must not leave the loan twice.
    (enter.incarnation, enter.sequence, enter.clears) = (2, 1, true);
    assert_eq!(granted(&state, &enter).await, (2, 0));
    assert_eq!((level(&state, store), lent(&state, store)), ((4, 1), 0));
    close(&state).await;
}

#[tokio::test]
async fn a_new_server_of_the_borrower_returns_the_units_of_the_earlier_one() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    granted(&state, &request(1, 1, store)).await;
    let mut order = orders_where(&shared, false);
    let order = order.next().unwrap();
    let mut restart = request(2, 1, store);
    restart.clears = true;
    (restart.wanted, restart.spent) = (Vec::new(), vec![spent(&order, 2)]);
    let refused = state.allot(restart.clone()).await;
    assert!(refused.is_err(), "more than was lent");
    restart.spent = vec![spent(&order, 1)];
    assert_eq!(granted(&state, &restart).await, (2, 0));
    assert_eq!((level(&state, store), lent(&state, store)), ((4, 1), 0));
    // The third server of the borrower does not know that the order has a reservation here, and
    // reports the order again. The units must not leave the loan twice.
    restart.incarnation = 3;
    assert_eq!(granted(&state, &restart).await, (3, 0));
    assert_eq!((level(&state, store), lent(&state, store)), ((4, 1), 0));
    let (last, _) = granted(&state, &request(2, 7, store)).await;
    assert!(last >= 3, "an earlier server is refused");
    close(&state).await;
}

#[tokio::test]
async fn lent_units_are_recalled_for_an_order_and_their_store_is_never_passed_over() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    granted(&state, &request(1, 1, store)).await;
    let mut order = orders_where(&shared, false);
    let order = order.next().unwrap();
    let moved = reserve(&state, &order, 1, store, 5).await;
    assert!(matches!(moved, Err(OrderError::Moved)), "the caller asks again");
    let remote = Recalled::default();
    let (is_lent, gone) = state.look_at_loans(&remote);
    assert!(is_lent && gone.is_empty());
    let products = vec![7];
    assert_eq!(*remote.0.lock(), [Recall { store, products }]);
    let mut back = request(1, 2, store);
    (back.wanted, back.returned) = (Vec::new(), vec![line(1)]);
    granted(&state, &back).await;
    assert!(reserve(&state, &order, 1, store, 5).await.unwrap());
    let settlement = Settlement {
        store,
        lines: Box::default(),
        delivered: false,
        sequence: None,
    };
    state.settle(&order, &settlement).await.unwrap();
    // The borrower has a unit again and does not return it. The order must wait: a search still
    // finds this store, and the reservation is not refused.
    assert_eq!(granted(&state, &request(1, 3, store)).await, (1, 1));
    for _ in 0..3 {
        let waits = reserve(&state, &order, 2, store, 5).await;
        assert!(matches!(waits, Err(OrderError::Moved)));
        let lines = [line(5)];
        assert_eq!(state.stock().first_store(&lines), Some(store));
    }
    // The borrower returns the unit, so the order gets all five units.
    let mut back = request(1, 4, store);
    (back.wanted, back.returned) = (Vec::new(), vec![line(1)]);
    granted(&state, &back).await;
    assert!(reserve(&state, &order, 3, store, 5).await.unwrap());
    close(&state).await;
}

#[tokio::test]
async fn a_lower_quantity_recalls_lent_units() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    granted(&state, &request(1, 1, store)).await;
    let steps = [CellStep {
        cell: Cell { product: 7, store },
        by: -5,
    }];
    {
        let mut stock = state.stock();
        stock.loans().take_recalled();
        assert!(stock.step(&steps));
        assert!(stock.loans().take_recalled().contains_key(&store));
    }
    // A borrower can get a grant after a recall, so the recall is repeated until it has an effect.
    state.loans_are_covered().await;
    assert!(state.stock().loans().take_recalled().contains_key(&store));
    close(&state).await;
}

#[tokio::test]
async fn a_snapshot_changes_no_loan_and_the_loan_of_a_volume_that_left_ends() {
    let (folder, (alone, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    state.set_allotments(true);
    let store = store_where(&shared, true);
    granted(&state, &request(1, 1, store)).await;
    for (on_hand, is_covered) in [(0, false), (1, true)] {
        let mut stock = state.stock();
        let (layout, arrival) = (stock.layout(), stock.arrival());
        let mut snapshot = crate::domain::stock_snapshot::StockSnapshot::default();
        snapshot.set([7, store, on_hand]).unwrap();
        stock.apply(snapshot.into_matrix(&layout), None, arrival).unwrap();
        assert_eq!(stock.covers_loans(), is_covered);
    }
    assert_eq!((level(&state, store), lent(&state, store)), ((1, 0), 1));
    assert!(state.stock().loans().take_recalled().contains_key(&store));
    close(&state).await;
    let state = open(folder.path(), &alone);
    let remote = Recalled::default();
    let (_, gone) = state.look_at_loans(&remote);
    assert_eq!(gone, [(store, borrower())]);
    state.forget_borrower(store, borrower()).await.unwrap();
    assert_eq!((level(&state, store), lent(&state, store)), ((5, 0), 0));
    close(&state).await;
    let state = open(folder.path(), &alone);
    assert_eq!(lent(&state, store), 0, "its row is gone");
    assert_eq!(state.slots.volume(), &name());
    close(&state).await;
}

#[tokio::test]
async fn nothing_is_lent_while_it_is_off_and_never_the_last_units() {
    let (folder, (_, shared)) = (tempfile::tempdir().unwrap(), rings());
    let state = stocked(folder.path(), &shared).await;
    let store = store_where(&shared, true);
    assert_eq!(granted(&state, &request(1, 1, store)).await, (1, 0));
    state.set_allotments(true);
    let mut orders = orders_where(&shared, false);
    assert!(
        reserve(&state, &orders.next().unwrap(), 1, store, 2)
            .await
            .unwrap()
    );
    assert_eq!(
        granted(&state, &request(1, 2, store)).await,
        (1, 0),
        "three are free"
    );
    close(&state).await;
}
