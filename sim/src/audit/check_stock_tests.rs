//! Tests of the findings about stock on both sides, the choice of stores, histories and counters.

use super::*;
use crate::audit::{History, HistoryEvent};

#[test]
fn a_counter_that_disagrees_with_its_list_is_found() {
    let differs = |what: &str, counted, listed| Finding::CountDiffers {
        what: what.to_owned(),
        counted,
        listed,
    };
    found(
        |_, e| e.counted_orders = [("delivered".to_owned(), 3), ("delivering".to_owned(), 1)].into(),
        &[differs("orders that are delivered", 3, 2)],
    );
    found(
        |_, e| e.warehouse.delivered = 9,
        &[differs("the warehouse's deliveries", 9, 2)],
    );
}

/// Returns the units of a product in a store in the stock with which the warehouse began.
fn there(product: u32, store: u32) -> u32 {
    let shape = StockShape {
        products: 50,
        stores: 5,
        units: 15,
    };
    Stock::first_day(SEED, shape).get(product, store).unwrap()
}

#[test]
fn units_that_only_one_side_has_are_found_and_late_arrivals_are_none() {
    let [first, second] = products().map(|product| product.id);
    // Orders 1 and 5 were delivered, each with two units of each product.
    let left = |product| i64::from(there(product, STORE)) - 4;
    let on_hand = move |e: &mut Evidence, more: i64| {
        let products = [(first, left(first) + more), (second, left(second))];
        e.on_hand = [(STORE, products.into())].into();
    };
    let came = |units| Restock {
        store: STORE,
        product: first,
        units,
        after: 1_002,
    };
    found(|_, e| on_hand(e, 0), &[]);
    found(
        |_, e| on_hand(e, 1),
        &[Finding::StockDiffers {
            store: STORE,
            product: first,
            kept: left(first) + 1,
            there: (left(first)) as u32,
        }],
    );
    for (known, is_sound) in [(0, true), (3, true), (5, true), (2, false)] {
        let expected = Finding::StockDiffers {
            store: STORE,
            product: first,
            kept: left(first) + known,
            there: (left(first) + 5) as u32,
        };
        found(
            |_, e| {
                on_hand(e, known);
                e.restocks.extend([came(3), came(2)]);
            },
            if is_sound {
                &[]
            } else {
                std::slice::from_ref(&expected)
            },
        );
    }
}

#[test]
fn cells_with_a_delivery_that_may_not_be_counted_yet_are_not_compared() {
    let differs = |change: fn(&mut Evidence)| {
        let (record, mut evidence) = sound();
        evidence.on_hand = [(STORE, products().map(|product| (product.id, -1)).into())].into();
        change(&mut evidence);
        let found = check(&OrderRecord::new(record), None, &evidence).into_iter();
        found
            .filter(|f| matches!(f, Finding::StockDiffers { .. }))
            .count()
    };
    assert_eq!(differs(|_| {}), 2);
    // Order 1 was not delivered yet when the orders were read.
    assert_eq!(differs(|e| e.orders[0].state = OrderState::Delivering), 0);
    // The volume of the store has not counted the delivery yet, so the reservation is still there.
    assert_eq!(differs(|e| e.reservations.push(reservation("1"))), 0);
}

#[test]
fn reserved_units_without_a_reservation_are_found_and_the_reverse() {
    let [first, second] = products().map(|product| product.id);
    // Orders 2 and 3 each have a reservation of two units of each product.
    let reserved = move |e: &mut Evidence, of_first: u32| {
        e.reserved = [(STORE, [(first, of_first), (second, 4)].into())].into();
    };
    found(|_, e| reserved(e, 4), &[]);
    for kept in [6, 2, 0] {
        found(
            |_, e| reserved(e, kept),
            &[Finding::ReservedDiffers {
                store: STORE,
                product: first,
                kept,
                listed: 4,
            }],
        );
    }
}

/// Returns the findings about the choice of the store for order 3, after its lines were replaced by
/// one line with this product and quantity. The ring has `volumes` volumes.
fn skipped(product: u32, quantity: u32, volumes: usize) -> Vec<Finding> {
    let (mut record, mut evidence) = sound();
    evidence.volumes = volumes;
    let products = vec![Product {
        id: product,
        quantity,
    }];
    // The front's record is reduced to order 3, because the audit judges the choice of the store
    // only for orders in the record.
    record.truncate(3);
    record.drain(..2);
    record[0].products = Basket::new(&products);
    evidence.orders[2].products.clone_from(&products);
    evidence.reservations[1].products = products;
    evidence.warehouse.delivered = 2;
    let all = check(&OrderRecord::new(record), None, &evidence).into_iter();
    all.filter(|finding| matches!(finding, Finding::StoreSkipped { .. }))
        .collect()
}

#[test]
fn a_store_that_was_skipped_is_found_if_it_certainly_had_the_units() {
    // The product is in no other order, so that no other order takes its units.
    let is_free = |product: &u32| products().iter().all(|known| known.id != *product);
    let product = (1..=50)
        .filter(is_free)
        .find(|product| there(*product, 1) >= 2)
        .unwrap();
    let expected = Finding::StoreSkipped {
        order: "3".into(),
        chosen: Some(STORE),
        earlier: 1,
    };
    assert_eq!(skipped(product, 1, 2), std::slice::from_ref(&expected));
    // The order now has all units of the product in store 1. With one volume, the audit finds that
    // store 1 was skipped. With two volumes, the order's volume may have reserved these units in
    // store 1, lost the answer and asked again. So the audit must not report store 1.
    let all = there(product, 1);
    assert_eq!(skipped(product, all, 1), std::slice::from_ref(&expected));
    let others = skipped(product, all, 2);
    assert!(!others.contains(&expected), "{others:?}");
    // If a run began before all stores had stock, the audit does not judge the choice of the store
    // for the orders of the run.
    let (record, mut evidence) = sound();
    evidence.orders[2].store_id = Some(STORE);
    evidence.orders[2].products = vec![Product {
        id: product,
        quantity: 1,
    }];
    let is_judged = |record: &OrderRecord| {
        let mut findings = Vec::new();
        stock::check_choice(&evidence, record, &mut findings);
        findings.contains(&expected)
    };
    let record = OrderRecord::new(record);
    assert!(is_judged(&record));
    // The front never writes leading zeros, so the order "03" is no order of its run.
    let mut of_other = evidence.clone();
    of_other.orders[2].id = "03".into();
    let mut findings = Vec::new();
    stock::check_choice(&of_other, &record, &mut findings);
    let is_named = findings.iter().any(|finding| finding.order() == Some("03"));
    assert!(!is_named, "{findings:?}");
    assert!(!is_judged(&record.without_judged_stores()));
}

#[test]
fn an_illegal_event_in_a_history_is_found() {
    let event = |name: &str| HistoryEvent {
        event: name.to_owned(),
        ..HistoryEvent::default()
    };
    found(
        |_, e| {
            e.histories = vec![History {
                order: "3".into(),
                events: vec![event("received"), event("announced")],
            }];
        },
        &[Finding::TransitionIllegal {
            order: "3".into(),
            event: "announced".into(),
            state: OrderState::Received,
        }],
    );
}
