//! Tests of [`check`] without a log of requests: consistent evidence is changed, and the audit must
//! find the change.

use super::*;
use crate::warehouse::StockShape;
use crate::wire::{MessageKind, Refusal, Restock, WarehouseSummary};
use crate::workload::Basket;

const SEED: u64 = 11;
const STORE: u32 = 3;

fn products() -> [Product; 2] {
    let shape = StockShape {
        products: 50,
        stores: 5,
        units: 15,
    };
    let stock = Stock::first_day(SEED, shape);
    let mut there = (1..=50).filter(|p| stock.get(*p, STORE).unwrap() >= 8);
    [(); 2].map(|()| Product {
        id: there.next().unwrap(),
        quantity: 2,
    })
}

/// Returns order lines with more units than any store has.
fn unavailable() -> [Product; 2] {
    products().map(|product| Product {
        quantity: 99,
        ..product
    })
}

fn order(id: &str, state: OrderState, transaction_id: Option<u64>) -> Order {
    Order {
        id: id.into(),
        products: products().to_vec(),
        store_id: (state != OrderState::Rejected).then_some(STORE),
        state,
        transaction_id,
        refund_transaction_ids: transaction_id
            .filter(|_| state == OrderState::RefundWanted)
            .into_iter()
            .collect(),
        created_at_ms: 1,
        updated_at_ms: 2,
    }
}

fn sent(id: u64, order: u16, payment: Outcome) -> RecordedOrder {
    RecordedOrder {
        id,
        products: Basket::new(&products()),
        is_paid: true,
        cancel: Outcome::NotSent,
        is_refund_promised: false,
        transaction_id: 100 + id as u32,
        order: Outcome::Status(order),
        payment,
    }
}

fn reservation(order: &str) -> Reservation {
    Reservation {
        order: order.into(),
        store: STORE,
        products: products().to_vec(),
    }
}

/// Returns the front's record and the evidence of both sides without a contradiction. Order 1 is
/// delivered. Order 2 is in the state `Delivering`, and its delivery message waits in the outbox.
/// Order 3 is unpaid, and order 4 was rejected. Order 5 belongs to an earlier run and is delivered.
fn sound() -> (Vec<RecordedOrder>, Evidence) {
    let paid = Outcome::Status(200);
    let mut record = vec![
        sent(1, 200, paid),
        sent(2, 200, paid),
        sent(3, 200, Outcome::Closed),
        sent(4, 409, Outcome::Status(409)),
    ];
    record[3].products = Basket::new(&unavailable());
    let delivery = |order: &str, sequence: u64, transaction_id| Delivery {
        order: order.into(),
        store: STORE,
        products: products().to_vec(),
        transaction_id,
        count: 1,
        sequence,
    };
    let mut evidence = Evidence {
        orders: vec![
            order("1", OrderState::Delivered, Some(101)),
            order("2", OrderState::Delivering, Some(102)),
            order("3", OrderState::Announced, None),
            order("4", OrderState::Rejected, None),
            order("5", OrderState::Delivered, Some(77)),
        ],
        reservations: vec![reservation("2"), reservation("3")],
        outbox: vec![Message {
            order: "2".into(),
            kind: MessageKind::Deliver,
            state: MessageState::Waiting,
            attempts: 2,
            last_error: Some("504 Gateway Timeout".into()),
        }],
        deliveries: vec![delivery("5", 1001, 77), delivery("1", 1002, 101)],
        restocks: vec![],
        refusals: vec![],
        warehouse: WarehouseSummary {
            seed: SEED,
            products: 50,
            stores: 5,
            units: 15,
            delivered: 2,
            ..WarehouseSummary::default()
        },
        ..Evidence::default()
    };
    evidence.orders[3].products = unavailable().to_vec();
    (record, evidence)
}

/// Applies `change` to the record and the evidence of [`sound`], and expects exactly the findings
/// `expected`.
#[track_caller]
fn found(change: impl FnOnce(&mut Vec<RecordedOrder>, &mut Evidence), expected: &[Finding]) {
    let (mut record, mut evidence) = sound();
    change(&mut record, &mut evidence);
    // The counters of the warehouse are set to the lengths of its lists, unless `change` has set
    // the counter of deliveries.
    if evidence.warehouse.delivered == 2 {
        evidence.warehouse.delivered = evidence.deliveries.len() as u64;
        evidence.warehouse.refused = evidence.refusals.len() as u64;
    }
    assert_eq!(check(&OrderRecord::new(record), None, &evidence), expected);
    for finding in expected {
        assert!(!finding.to_string().is_empty());
    }
}

#[test]
fn sound_evidence_is_clean() {
    found(|_, _| {}, &[]);
}

#[test]
fn a_refused_delivery_is_found() {
    let refusal = Refusal {
        order: "9".into(),
        store: 2,
        product: 7,
        asked: 3,
        there: 1,
    };
    let expected = Finding::DeliveryRefused {
        order: "9".into(),
        store: 2,
        product: 7,
        asked: 3,
        there: 1,
    };
    found(|_, e| e.refusals.push(refusal), &[expected]);
}

#[test]
fn a_delivery_beyond_what_was_there_is_found_and_goods_that_came_count() {
    let first = products()[0].id;
    let there = Stock::first_day(
        SEED,
        StockShape {
            products: 50,
            stores: 5,
            units: 15,
        },
    )
    .get(first, STORE)
    .unwrap();
    let all = |e: &mut Evidence, quantity| {
        for products in [&mut e.deliveries[0].products, &mut e.orders[4].products] {
            products[0].quantity = quantity;
        }
    };
    let expected = [
        Finding::Oversold {
            order: "1".into(),
            store: STORE,
            product: first,
            delivered: 2,
            there: 0,
        },
        Finding::Overreserved {
            store: STORE,
            product: first,
            reserved: 4,
            there: 0,
        },
    ];
    found(|_, e| all(e, there), &expected);
    let came = |after| Restock {
        store: STORE,
        product: first,
        units: 6,
        after,
    };
    // Delivery 1001 takes all units of the product. If goods arrive between it and delivery 1002,
    // there is no finding. If the goods arrive after delivery 1002, this delivery is oversold, but
    // the goods cover the open reservations.
    found(
        |_, e| {
            all(e, there);
            e.restocks.push(came(1001));
        },
        &[],
    );
    found(
        |_, e| {
            all(e, there);
            e.restocks.push(came(1002));
        },
        &expected[..1],
    );
}

#[test]
fn more_reserved_than_there_is_found() {
    let first = products()[0].id;
    let there = Stock::first_day(
        SEED,
        StockShape {
            products: 50,
            stores: 5,
            units: 15,
        },
    )
    .get(first, STORE)
    .unwrap()
        - 4;
    found(
        |record, e| {
            let mut lines = record[1].products.to_vec();
            lines[0].quantity = there;
            record[1].products = Basket::new(&lines);
            e.orders[1].products[0].quantity = there;
            e.reservations[0].products[0].quantity = there;
        },
        &[Finding::Overreserved {
            store: STORE,
            product: first,
            reserved: there + 2,
            there,
        }],
    );
}

#[test]
fn an_acknowledged_order_that_is_gone_is_found() {
    found(
        |_, e| {
            e.orders.remove(2);
            e.reservations.remove(1);
        },
        &[Finding::OrderMissing { order: "3".into() }],
    );
    // The request for the order timed out, but its cancellation was acknowledged. So the order
    // existed, and its absence is a finding.
    found(
        |record, e| {
            e.orders.remove(2);
            e.reservations.remove(1);
            record[2].order = Outcome::TimedOut;
            record[2].cancel = Outcome::Status(200);
        },
        &[Finding::OrderMissing { order: "3".into() }],
    );
    // If no request about the order was acknowledged, its absence is no finding.
    found(
        |record, e| {
            e.orders.remove(2);
            e.reservations.remove(1);
            record[2].order = Outcome::TimedOut;
        },
        &[],
    );
}

#[test]
fn an_order_listed_twice_is_found() {
    found(
        |_, e| e.orders.push(e.orders[3].clone()),
        &[Finding::OrderTwice { order: "4".into() }],
    );
}

#[test]
fn an_order_with_another_content_is_found() {
    found(
        |_, e| e.orders[3].products[1].quantity += 1,
        &[Finding::OrderDiffers { order: "4".into() }],
    );
}

#[test]
fn a_customer_told_one_thing_and_kept_as_another_is_found() {
    found(
        |record, _| record[3].order = Outcome::Status(200),
        &[Finding::AcknowledgedRejected { order: "4".into() }],
    );
    found(
        |record, _| record[2].order = Outcome::Status(409),
        &[Finding::RejectedKept {
            order: "3".into(),
            state: OrderState::Announced,
        }],
    );
}

#[test]
fn an_open_order_without_a_store_is_found() {
    found(
        |_, e| {
            e.orders[2].store_id = None;
            e.reservations.remove(1);
        },
        &[Finding::StoreMissing {
            order: "3".into(),
            state: OrderState::Announced,
        }],
    );
}

#[test]
fn a_lost_payment_is_found() {
    let lost = |kept| Finding::PaymentLost {
        order: "3".into(),
        acknowledged: 103,
        kept,
    };
    found(
        |record, _| record[2].payment = Outcome::Status(200),
        &[lost(None)],
    );
    found(
        |record, e| {
            record[2].payment = Outcome::Status(200);
            e.orders[2].transaction_id = Some(9);
            e.outbox.push(Message {
                order: "3".into(),
                kind: MessageKind::Deliver,
                state: MessageState::Dead,
                attempts: 20,
                last_error: None,
            });
        },
        &[lost(Some(9))],
    );
}

#[test]
fn a_paid_order_that_nobody_will_deliver_is_found() {
    found(
        |_, e| e.outbox.clear(),
        &[Finding::PaidNotDelivered {
            order: "2".into(),
            state: OrderState::Delivering,
        }],
    );
}

#[test]
fn a_payment_that_is_to_be_refunded_is_no_finding_and_one_that_is_forgotten_is() {
    found(
        |record, evidence| {
            // The warehouse refused order 2 after it was paid.
            evidence.orders[1] = order("2", OrderState::RefundWanted, Some(102));
            evidence.reservations.remove(0);
            evidence.outbox.clear();
            // Order 4 was paid although no store had its units.
            record[3].payment = Outcome::Status(409);
            evidence.orders[3] = order("4", OrderState::RefundWanted, Some(104));
            evidence.orders[3].store_id = None;
            evidence.orders[3].products = unavailable().to_vec();
        },
        &[],
    );
    for state in [
        OrderState::Failed,
        OrderState::Cancelled,
        OrderState::Expired,
        OrderState::RefundWanted,
    ] {
        found(
            |_, evidence| {
                evidence.orders[1] = order("2", state, Some(102));
                evidence.orders[1].refund_transaction_ids.clear();
                evidence.reservations.remove(0);
                evidence.outbox.clear();
            },
            &[Finding::PaidNotDelivered {
                order: "2".into(),
                state,
            }],
        );
    }
}

#[test]
fn every_state_of_an_order_is_read_by_its_name() {
    for state in [
        OrderState::Received,
        OrderState::Reserved,
        OrderState::Announced,
        OrderState::Paid,
        OrderState::Delivering,
        OrderState::Delivered,
        OrderState::Rejected,
        OrderState::Cancelled,
        OrderState::Expired,
        OrderState::Failed,
        OrderState::RefundWanted,
    ] {
        let text = format!("\"{}\"", state.name());
        assert_eq!(serde_json::from_str::<OrderState>(&text).unwrap(), state);
    }
}

#[test]
fn a_paid_order_that_waits_for_no_reason_is_found() {
    found(
        |_, e| e.outbox[0].last_error = None,
        &[Finding::WaitsWithoutReason {
            order: "2".into(),
            kind: MessageKind::Deliver,
        }],
    );
}

#[test]
fn a_message_may_wait_without_a_reason_while_the_warehouse_is_away() {
    found(
        |_, e| {
            e.outbox[0].last_error = None;
            e.warehouse_away = true;
        },
        &[],
    );
}

#[test]
fn a_cancellation_without_effect_is_found() {
    let cancelled = |record: &mut Vec<RecordedOrder>| record[2].cancel = Outcome::Status(200);
    found(
        |record, _| cancelled(record),
        &[Finding::CancelLost {
            order: "3".into(),
            state: OrderState::Announced,
        }],
    );
    found(
        |record, e| {
            cancelled(record);
            e.orders[2].state = OrderState::Cancelled;
            e.reservations.pop();
        },
        &[],
    );
}

#[test]
fn a_state_that_is_not_known_is_a_finding_and_no_end_of_the_audit() {
    let read: OrderState = serde_json::from_str("\"returned\"").unwrap();
    assert_eq!(read, OrderState::Unknown);
    found(
        |_, e| e.orders[4].state = read,
        &[Finding::StateUnknown { order: "5".into() }],
    );
}

#[test]
fn a_second_delivery_is_found_by_count_and_by_entry() {
    let twice = Finding::DeliveredTwice {
        order: "1".into(),
        count: 2,
    };
    found(|_, e| e.deliveries[1].count = 2, std::slice::from_ref(&twice));
    found(
        |_, e| {
            let mut again = e.deliveries[1].clone();
            again.sequence += 1;
            e.deliveries.push(again);
            e.reservations.clear();
            e.orders.truncate(2);
            e.orders.remove(1);
            e.outbox.clear();
            e.deliveries.remove(0);
        },
        &[twice]
            .into_iter()
            .chain(["2", "3"].map(|order| Finding::OrderMissing { order: order.into() }))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>(),
    );
}

#[test]
fn a_delivery_of_something_else_is_found() {
    let otherwise = |order: &str, what| Finding::DeliveredOtherwise {
        order: order.into(),
        what,
    };
    found(
        |_, e| e.deliveries[1].products[0].quantity -= 1,
        &[otherwise("1", "products")],
    );
    found(|_, e| e.orders[0].store_id = Some(4), &[otherwise("1", "store")]);
    found(
        |_, e| e.deliveries[1].transaction_id += 1,
        &[otherwise("1", "transaction")],
    );
    found(
        |_, e| e.deliveries[0].transaction_id += 1,
        &[otherwise("5", "transaction")],
    );
}

#[test]
fn a_delivery_without_payment_is_found() {
    let unpaid = |order: &str| Finding::DeliveredUnpaid { order: order.into() };
    found(|record, _| record[0].payment = Outcome::NotSent, &[unpaid("1")]);
    found(|_, e| e.orders[4].transaction_id = None, &[unpaid("5")]);
}

#[test]
fn a_delivery_of_an_unknown_order_is_found() {
    found(
        |_, e| drop(e.orders.remove(4)),
        &[Finding::DeliveredUnknown { order: "5".into() }],
    );
}

#[test]
fn a_delivery_on_paper_only_is_found() {
    found(
        |_, e| drop(e.deliveries.remove(0)),
        &[Finding::DeliveredOnPaper { order: "5".into() }],
    );
}

#[test]
fn a_delivery_that_the_order_management_forgot_is_found() {
    found(
        |_, e| {
            e.orders[0].state = OrderState::Delivering;
            e.reservations.push(reservation("1"));
        },
        &[Finding::DeliveryForgotten {
            order: "1".into(),
            state: OrderState::Delivering,
        }],
    );
    // The warehouse delivered order 1 but answered 504, so the delivery message is still in the
    // outbox. There is no finding, because the message will be sent again.
    found(
        |_, e| {
            e.orders[0].state = OrderState::Delivering;
            e.reservations.push(reservation("1"));
            let mut message = e.outbox[0].clone();
            message.order = "1".into();
            e.outbox.push(message);
        },
        &[],
    );
}

#[test]
fn a_reservation_without_an_open_order_is_found() {
    let orphaned = |order: &str, state| Finding::ReservationOrphaned {
        order: order.into(),
        store: STORE,
        state,
    };
    found(
        |_, e| e.reservations.push(reservation("5")),
        &[orphaned("5", Some(OrderState::Delivered))],
    );
    found(
        |_, e| e.reservations.push(reservation("99")),
        &[orphaned("99", None)],
    );
}

#[test]
fn a_reservation_held_twice_is_found() {
    found(
        |_, e| e.reservations.push(reservation("3")),
        &[Finding::ReservationTwice { order: "3".into() }],
    );
}

#[test]
fn a_reservation_of_something_else_is_found() {
    let differs = |store| Finding::ReservationDiffers {
        order: "3".into(),
        store,
    };
    found(
        |_, e| e.reservations[1].products[0].quantity = 1,
        &[differs(STORE)],
    );
    found(|_, e| e.orders[2].store_id = Some(1), &[differs(STORE)]);
}

#[test]
fn an_open_order_that_holds_nothing_is_found() {
    found(
        |_, e| drop(e.reservations.remove(1)),
        &[Finding::ReservationMissing {
            order: "3".into(),
            store: STORE,
        }],
    );
}

#[path = "check_message_tests.rs"]
mod message_tests;
#[path = "check_stock_tests.rs"]
mod stock_tests;
