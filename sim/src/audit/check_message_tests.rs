//! Tests of the findings about promised refunds, and about messages that the state of an order
//! needs.

use super::*;

#[test]
fn a_promised_refund_that_is_not_recorded_is_found() {
    let promised = |record: &mut Vec<RecordedOrder>| {
        record[3].payment = Outcome::Status(409);
        record[3].is_refund_promised = true;
    };
    let lost = Finding::RefundLost {
        order: "4".into(),
        transaction: 104,
    };
    // Another problem with the status 409 promises no refund.
    found(|record, _| record[3].payment = Outcome::Status(409), &[]);
    found(|record, _| promised(record), std::slice::from_ref(&lost));
    found(
        |record, e| {
            promised(record);
            e.orders[3].state = OrderState::RefundWanted;
            e.orders[3].transaction_id = Some(9);
            e.orders[3].refund_transaction_ids = vec![9];
        },
        &[lost],
    );
    found(
        |record, e| {
            promised(record);
            e.orders[3].state = OrderState::RefundWanted;
            e.orders[3].transaction_id = Some(104);
            e.orders[3].refund_transaction_ids = vec![104];
        },
        &[],
    );
    found(
        |record, e| {
            promised(record);
            e.orders.remove(3);
        },
        &[Finding::OrderMissing { order: "4".into() }],
    );
}

#[test]
fn a_refund_that_is_recorded_twice_is_found() {
    found(
        |_, e| e.orders[0].refund_transaction_ids = vec![7, 8, 7],
        &[Finding::RefundTwice {
            order: "1".into(),
            transaction: 7,
        }],
    );
}

fn message(order: &str, kind: MessageKind) -> Message {
    Message {
        order: order.into(),
        kind,
        state: MessageState::Waiting,
        attempts: 1,
        last_error: Some("504 Gateway Timeout".into()),
    }
}

#[test]
fn an_order_that_is_never_announced_is_found() {
    let missing = |order: &str| Finding::MessageMissing {
        order: order.into(),
        state: OrderState::Reserved,
        kind: MessageKind::Announce,
    };
    let reserved = |e: &mut Evidence| e.orders[2].state = OrderState::Reserved;
    found(|_, e| reserved(e), &[missing("3")]);
    found(
        |_, e| {
            reserved(e);
            e.outbox.push(message("3", MessageKind::Deliver));
        },
        &[missing("3")],
    );
    found(
        |_, e| {
            reserved(e);
            e.outbox.push(message("3", MessageKind::Announce));
        },
        &[],
    );
}

#[test]
fn a_paid_order_with_the_message_of_another_state_is_found() {
    for (state, needed, other) in [
        (OrderState::Paid, MessageKind::Announce, MessageKind::Deliver),
        (
            OrderState::Delivering,
            MessageKind::Deliver,
            MessageKind::Announce,
        ),
    ] {
        let with = |e: &mut Evidence, kind| {
            e.orders[1].state = state;
            e.outbox[0].kind = kind;
        };
        found(|_, e| with(e, needed), &[]);
        found(
            |_, e| with(e, other),
            &[Finding::PaidNotDelivered {
                order: "2".into(),
                state,
            }],
        );
    }
}

#[test]
fn an_untried_message_may_wait_while_calls_are_in_flight() {
    let waits = |attempts, calls_in_flight| {
        move |_: &mut Vec<RecordedOrder>, e: &mut Evidence| {
            e.outbox[0].last_error = None;
            e.outbox[0].attempts = attempts;
            e.calls_in_flight = calls_in_flight;
        }
    };
    let without_reason = [Finding::WaitsWithoutReason {
        order: "2".into(),
        kind: MessageKind::Deliver,
    }];
    found(waits(0, 1), &[]);
    found(waits(0, 0), &without_reason);
    found(waits(1, 1), &without_reason);
}
