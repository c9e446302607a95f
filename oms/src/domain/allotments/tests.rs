//! Tests of the borrower: its usable units, and the contents and order of its requests.

use super::*;

fn line(id: u32, quantity: u32) -> Line {
    Line { id, quantity }
}

fn id(name: &str) -> OrderId {
    OrderId::parse(name).unwrap()
}

fn nowhere(_: u32) -> bool {
    false
}

/// Returns allotments with a borrowed store 1, of which `units` units of product 7 are usable.
fn with_units(units: u32) -> Allotments {
    let mut allotments = Allotments::new(NodeName::new("b").unwrap(), 4, Vec::new());
    allotments.set_on(true);
    allotments.incarnation_is_durable(5);
    for _ in 0..HOT_AFTER {
        allotments.note_reserved(1, &[line(7, 1)], 1_000);
    }
    assert_eq!(allotments.due(1_000, nowhere), [1]);
    let request = allotments.request(1, 1_000, false).unwrap();
    assert_eq!(request.wanted, [line(7, TARGET_FIRST)]);
    assert!(request.clears, "an earlier server may have borrowed units");
    allotments.answered(&request, &[line(7, units)], 1_000);
    allotments
}

#[test]
fn a_store_is_borrowed_from_once_it_is_hot_and_only_while_that_is_on() {
    let mut allotments = Allotments::new(NodeName::new("b").unwrap(), 0, Vec::new());
    for _ in 0..2 * HOT_AFTER {
        allotments.note_reserved(1, &[line(7, 1)], 10);
    }
    assert!(allotments.is_idle(), "it is off");
    allotments.set_on(true);
    for time in 0..2 * u64::from(HOT_AFTER) {
        allotments.note_reserved(1, &[line(7, 1)], time * WINDOW_MS);
    }
    assert!(allotments.is_idle(), "the store is not hot");
    for _ in 0..HOT_AFTER {
        allotments.note_reserved(1, &[line(7, 1)], 100 * WINDOW_MS);
    }
    assert_eq!(allotments.due(100 * WINDOW_MS, nowhere), [1]);
    assert_eq!(allotments.new_incarnation(), Some(1));
    assert!(
        allotments.request(1, 0, false).is_none(),
        "the incarnation is not durable"
    );
}

#[test]
fn units_are_taken_once_and_come_back_if_the_order_is_not_durable() {
    let mut allotments = with_units(5);
    let lines = [line(7, 2), line(7, 1)];
    assert!(allotments.spend(&id("a"), 1, 1, &lines, 1_000));
    assert!(!allotments.spend(&id("b"), 2, 1, &lines, 1_000), "two are left");
    assert!(!allotments.end_spending(&id("a"), false));
    assert_eq!(
        (allotments.usable(), allotments.is_unsettled(&id("a"))),
        (5, false)
    );
    assert!(allotments.spend(&id("b"), 2, 1, &lines, 1_000));
    assert!(!allotments.suffices(1, &[line(8, 1)], 1_000), "never borrowed");
    let claims = allotments.claims(1);
    assert_eq!((claims.incarnation, claims.usable), (5, [(7, 2)].into()));
    assert_eq!(claims.orders.len(), 1);
}

#[test]
fn a_request_is_repeated_unchanged_until_it_is_answered_and_answered_once() {
    let mut allotments = with_units(5);
    assert!(allotments.spend(&id("a"), 1, 1, &[line(7, 2)], 1_000));
    assert!(allotments.end_spending(&id("a"), true));
    let request = allotments.request(1, 1_200, false).unwrap();
    assert_eq!(request.spent.len(), 1);
    assert!(allotments.spend(&id("b"), 2, 1, &[line(7, 1)], 1_200));
    allotments.end_spending(&id("b"), true);
    assert_eq!(*allotments.request(1, 1_300, false).unwrap(), *request);
    assert!(allotments.is_unsettled(&id("a")));
    for _ in 0..2 {
        allotments.answered(&request, &[line(7, 4)], 1_300);
        assert_eq!(allotments.usable(), 6);
    }
    assert_eq!(allotments.entered(), [(id("a"), 1)]);
    allotments.forget(&allotments.entered());
    assert!(!allotments.is_unsettled(&id("a")) && allotments.is_unsettled(&id("b")));
}

fn recall(products: &[u32]) -> Recall {
    Recall {
        store: 1,
        products: products.to_vec(),
    }
}

#[test]
fn recalled_idle_and_suspended_units_are_unusable_before_they_are_returned() {
    let cases: [fn(&mut Allotments); 4] = [
        |allotments| allotments.recall(&recall(&[]), 1_000),
        |allotments| allotments.recall(&recall(&[7]), 1_000),
        |allotments| allotments.suspend(1_500),
        |allotments| allotments.set_on(false),
    ];
    for change in cases {
        let mut allotments = with_units(5);
        change(&mut allotments);
        assert!(!allotments.suffices(1, &[line(7, 1)], 1_000));
        assert_eq!(allotments.due(1_000, nowhere), [1]);
        let request = allotments.request(1, 1_000, false).unwrap();
        assert_eq!(request.returned, [line(7, 5)]);
        assert_eq!(allotments.usable(), 0);
    }
    let mut allotments = with_units(5);
    assert!(allotments.due(1_000 + IDLE_MS - 1, nowhere).is_empty());
    assert_eq!(allotments.due(1_000 + IDLE_MS, nowhere), [1]);
    let request = allotments.request(1, 1_000 + IDLE_MS, false).unwrap();
    allotments.answered(&request, &[], 1_000 + IDLE_MS);
    allotments.due(1_000 + IDLE_MS, nowhere);
    assert!(allotments.is_idle(), "an allotment without content is forgotten");
}

#[test]
fn a_new_server_enters_the_orders_of_the_earlier_one_and_has_no_units() {
    let row = Reservation {
        order: id("a"),
        store: 3,
        lines: [line(7, 2)].into(),
        nonce: Some(9),
    };
    let mut allotments = Allotments::new(NodeName::new("b").unwrap(), 6, vec![row]);
    assert_eq!(allotments.new_incarnation(), Some(7));
    allotments.incarnation_is_durable(7);
    assert_eq!(allotments.due(ENTER_WITHIN_MS, nowhere), [3]);
    let request = allotments.request(3, ENTER_WITHIN_MS, false).unwrap();
    assert_eq!((request.incarnation, request.sequence), (7, 1));
    assert_eq!(request.spent[0].nonce, 9);
    assert!(
        request.clears,
        "all other units of the earlier server are returned"
    );
    assert_eq!(allotments.usable(), 0);
}

#[test]
fn a_new_server_returns_other_units_only_with_the_last_of_the_earlier_orders() {
    let rows = (0..2 * SPENT_MAX).map(|number| Reservation {
        order: id(&format!("a{number}")),
        store: 3,
        lines: [line(7, 2)].into(),
        nonce: Some(9),
    });
    let mut allotments = Allotments::new(NodeName::new("b").unwrap(), 6, rows.collect());
    allotments.set_on(true);
    allotments.incarnation_is_durable(7);
    for _ in 1..HOT_AFTER {
        allotments.note_reserved(3, &[line(7, 1)], 1_000);
    }
    for clears in [false, true] {
        allotments.note_reserved(3, &[line(7, 1)], 1_000);
        let request = allotments.request(3, 1_000, false).unwrap();
        assert_eq!((request.spent.len(), request.clears), (SPENT_MAX, clears));
        assert_eq!(
            request.wanted.is_empty(),
            !clears,
            "nothing is borrowed until the loan is clear"
        );
        allotments.answered(&request, &[], 1_000);
    }
    allotments.note_reserved(3, &[line(8, 1)], 1_000);
    assert!(!allotments.request(3, 1_000, false).unwrap().clears);
}

#[test]
fn an_owner_with_a_newer_incarnation_ends_all_allotments_of_this_one() {
    let mut allotments = with_units(5);
    assert!(allotments.spend(&id("a"), 1, 1, &[line(7, 2)], 1_000));
    allotments.restart_after(8);
    assert_eq!((allotments.usable(), allotments.new_incarnation()), (0, Some(9)));
    allotments.incarnation_is_durable(9);
    assert!(
        allotments.request(1, 1_000, false).is_none(),
        "an order with units is not durable yet"
    );
    allotments.end_spending(&id("a"), true);
    let request = allotments.request(1, 1_000, false).unwrap();
    assert_eq!((request.incarnation, request.spent.len()), (9, 1));
    assert!(request.clears);
}

#[test]
fn an_order_that_fails_after_a_restart_makes_no_units_usable() {
    let mut allotments = with_units(5);
    assert!(allotments.spend(&id("a"), 1, 1, &[line(7, 2)], 1_000));
    allotments.restart_after(8);
    allotments.incarnation_is_durable(9);
    allotments.end_spending(&id("a"), false);
    assert_eq!(allotments.usable(), 0, "the next request returns these units");
    let request = allotments.request(1, 1_000, false).unwrap();
    assert!(request.clears && request.spent.is_empty());
}

#[test]
fn units_of_a_limited_number_of_stores_are_borrowed_also_after_a_restart_and_recalls() {
    let stores = 1..=3 * STORES_MAX as u32;
    let rows = stores.clone().step_by(2).map(|store| Reservation {
        order: id(&format!("a{store}")),
        store,
        lines: [line(7, 2)].into(),
        nonce: Some(9),
    });
    let mut allotments = Allotments::new(NodeName::new("b").unwrap(), 6, rows.collect());
    allotments.set_on(true);
    for store in stores.clone() {
        let recall = Recall {
            store,
            products: Vec::new(),
        };
        allotments.recall(&recall, 1_000);
    }
    let after = 1_000 + PAUSE_MS;
    let mut borrowed = 0;
    for store in stores {
        let mut reserve = || allotments.note_reserved(store, &[line(7, 1)], after);
        assert!(!reserve(), "store {store} is not hot yet");
        borrowed += usize::from((1..HOT_AFTER).any(|_| reserve()));
    }
    assert_eq!(borrowed, STORES_MAX);
}
