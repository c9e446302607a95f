//! The comparison of the audit: a pure function from the data of the two sides (order management
//! and warehouse) and the record of the shop front to the findings.
//!
//! The checks cover seven subjects:
//! - stock: a store delivers only units that it has and has all reserved units, and both sides have
//!   the same number of units. Each store has as many reserved units as its reservations;
//! - customers: each order has the lines of its request, and agrees with the answers to its
//!   requests. A promised refund is recorded, and no refund is recorded twice;
//! - orders: messages and deliveries fit the order's state, and each event of its history was
//!   permitted;
//! - reservations: each one belongs to an open order, and each open order with a store has one;
//! - the choice of stores: no order missed a store with a lower number that certainly had its
//!   units;
//! - counters: those of orders by state, deliveries and refusals equal the lengths of the lists of
//!   these items;
//! - the front's log of requests: it agrees with the front's record, the effect of each
//!   acknowledged request is kept, and no counter of the node is below the log.

use std::collections::{BTreeMap, HashMap};

use super::{Evidence, Finding, RequestLog, history, stock};
use crate::front::{OrderRecord, Outcome, RecordedOrder};
use crate::warehouse::Stock;
use crate::wire::{Delivery, Message, MessageKind, MessageState, Order, OrderState, Product, Reservation};

/// Compares the data of both sides with each other, with the front's record and with the front's
/// log of requests.
pub fn check(record: &OrderRecord, log: Option<&RequestLog>, evidence: &Evidence) -> Vec<Finding> {
    let view = View::new(record, evidence);
    let mut findings = view.duplicates.clone();
    findings.extend(evidence.refusals.iter().map(|refusal| Finding::DeliveryRefused {
        order: refusal.order.clone(),
        store: refusal.store,
        product: refusal.product,
        asked: refusal.asked,
        there: refusal.there,
    }));
    let shelves = stock::replay(evidence, &mut findings);
    check_reserved(&view, &shelves, &mut findings);
    stock::check_conserved(evidence, &shelves, &mut findings);
    stock::check_reserved_rows(evidence, &mut findings);
    stock::check_choice(evidence, record, &mut findings);
    check_counts(evidence, &mut findings);
    for sent in record.orders() {
        check_customer(&view, sent, &mut findings);
    }
    for order in &evidence.orders {
        check_order(&view, order, &mut findings);
    }
    for (order, deliveries) in &view.deliveries {
        let order = (*order).to_owned();
        if !view.orders.contains_key(order.as_str()) {
            findings.push(Finding::DeliveredUnknown { order: order.clone() });
        }
        let count = deliveries.iter().map(|d| d.count).max().unwrap_or_default();
        let count = count.max(deliveries.len() as u32);
        if count > 1 {
            findings.push(Finding::DeliveredTwice { order, count });
        }
    }
    for reservation in &evidence.reservations {
        check_reservation(&view, reservation, &mut findings);
    }
    for history in &evidence.histories {
        // An order in the state `Unknown` already has a finding. No history leads to this state, so
        // the history is not checked.
        let state = view.orders.get(history.order.as_str()).map(|order| order.state);
        if let Some(state) = state.filter(|state| *state != OrderState::Unknown) {
            history::check(history, state, &mut findings);
        }
    }
    if let Some(log) = log {
        log.check(record, evidence, &mut findings);
    }
    findings.sort_unstable();
    findings.dedup();
    findings
}

/// The front's record, and the evidence of both sides, indexed by order id.
struct View<'a> {
    record: &'a OrderRecord,
    orders: HashMap<&'a str, &'a Order>,
    reservations: HashMap<&'a str, &'a Reservation>,
    messages: HashMap<&'a str, Vec<&'a Message>>,
    deliveries: HashMap<&'a str, Vec<&'a Delivery>>,
    duplicates: Vec<Finding>,
    warehouse_away: bool,
    has_calls_in_flight: bool,
}

impl<'a> View<'a> {
    fn new(record: &'a OrderRecord, evidence: &'a Evidence) -> Self {
        let mut view = Self {
            record,
            orders: HashMap::with_capacity(evidence.orders.len()),
            reservations: HashMap::with_capacity(evidence.reservations.len()),
            messages: HashMap::new(),
            deliveries: HashMap::with_capacity(evidence.deliveries.len()),
            duplicates: Vec::new(),
            warehouse_away: evidence.warehouse_away,
            has_calls_in_flight: evidence.calls_in_flight > 0,
        };
        for order in &evidence.orders {
            if view.orders.insert(&order.id, order).is_some() {
                let order = order.id.clone();
                view.duplicates.push(Finding::OrderTwice { order });
            }
        }
        for reservation in &evidence.reservations {
            if view
                .reservations
                .insert(&reservation.order, reservation)
                .is_some()
            {
                let order = reservation.order.clone();
                view.duplicates.push(Finding::ReservationTwice { order });
            }
        }
        for message in &evidence.outbox {
            view.messages.entry(&message.order).or_default().push(message);
        }
        for delivery in &evidence.deliveries {
            view.deliveries.entry(&delivery.order).or_default().push(delivery);
        }
        view
    }

    /// Returns the front's record of an order; `None` for an order of another run.
    fn sent(&self, order: &Order) -> Option<&'a RecordedOrder> {
        self.record.get_text(&order.id)
    }
}

/// First part of the name of a counter of orders; the state follows.
const ORDERS_THAT_ARE: &str = "orders that are ";
/// Name of the warehouse's counter of deliveries.
const DELIVERIES: &str = "the warehouse's deliveries";
/// Name of the warehouse's counter of refusals.
const REFUSALS: &str = "the warehouse's refusals";

/// Returns `true` if the counter with this name never shrinks: an order never leaves the states
/// `Delivered` and `RefundWanted`, and nothing is removed from the warehouse's lists.
pub(super) fn only_grows(counter: &str) -> bool {
    match counter.strip_prefix(ORDERS_THAT_ARE) {
        Some(state) => [OrderState::Delivered, OrderState::RefundWanted]
            .iter()
            .any(|last| last.name() == state),
        None => counter == DELIVERIES || counter == REFUSALS,
    }
}

/// Checks that the counters of orders by state, of deliveries and of refusals equal the lengths of
/// the lists of these items.
fn check_counts(evidence: &Evidence, findings: &mut Vec<Finding>) {
    let mut compare = |what: String, counted: u64, listed: u64| {
        if counted != listed {
            findings.push(Finding::CountDiffers {
                what,
                counted,
                listed,
            });
        }
    };
    let mut listed: BTreeMap<&str, u64> = BTreeMap::new();
    for order in &evidence.orders {
        *listed.entry(order.state.name()).or_default() += 1;
    }
    for (state, counted) in &evidence.counted_orders {
        let listed = listed.get(state.as_str()).copied().unwrap_or_default();
        compare(format!("{ORDERS_THAT_ARE}{state}"), *counted, listed);
    }
    let warehouse = &evidence.warehouse;
    let deliveries = evidence.deliveries.len() as u64;
    compare(DELIVERIES.to_owned(), warehouse.delivered, deliveries);
    let refusals = evidence.refusals.len() as u64;
    compare(REFUSALS.to_owned(), warehouse.refused, refusals);
}

/// Checks that the warehouse has all units that are reserved for orders without a delivery.
fn check_reserved(view: &View<'_>, shelves: &Stock, findings: &mut Vec<Finding>) {
    let mut reserved: HashMap<(u32, u32), u32> = HashMap::new();
    let undelivered = view
        .reservations
        .values()
        .filter(|r| !view.deliveries.contains_key(r.order.as_str()));
    for reservation in undelivered {
        for product in &reservation.products {
            let sum = reserved.entry((reservation.store, product.id)).or_default();
            *sum = sum.saturating_add(product.quantity);
        }
    }
    for ((store, product), reserved) in reserved {
        let there = shelves.get(product, store).unwrap_or_default();
        if reserved > there {
            findings.push(Finding::Overreserved {
                store,
                product,
                reserved,
                there,
            });
        }
    }
}

/// Checks an order that the front sent: the order in the order management must have the lines that
/// the front sent. It must also agree with the answers to the front's requests about this order.
fn check_customer(view: &View<'_>, sent: &RecordedOrder, findings: &mut Vec<Finding>) {
    let id = sent.id.to_string();
    let Some(kept) = view.orders.get(id.as_str()) else {
        let is_acknowledged = [sent.order, sent.payment, sent.cancel]
            .into_iter()
            .any(Outcome::is_acknowledged);
        if is_acknowledged || sent.is_refund_promised {
            findings.push(Finding::OrderMissing { order: id });
        }
        return;
    };
    if kept.products[..] != sent.products[..] {
        findings.push(Finding::OrderDiffers { order: id.clone() });
    }
    if sent.order.is_acknowledged() && kept.is_rejected() {
        findings.push(Finding::AcknowledgedRejected { order: id.clone() });
    }
    if sent.order == Outcome::Status(409) && !kept.is_rejected() {
        findings.push(Finding::RejectedKept {
            order: id.clone(),
            state: kept.state,
        });
    }
    let is_cancelled = matches!(kept.state, OrderState::Cancelled | OrderState::RefundWanted);
    if sent.cancel.is_acknowledged() && !is_cancelled {
        findings.push(Finding::CancelLost {
            order: id.clone(),
            state: kept.state,
        });
    }
    let acknowledged = u64::from(sent.transaction_id);
    if sent.is_refund_promised && !kept.refund_transaction_ids.contains(&acknowledged) {
        findings.push(Finding::RefundLost {
            order: id.clone(),
            transaction: acknowledged,
        });
    }
    if sent.payment.is_acknowledged() && kept.transaction_id != Some(acknowledged) {
        findings.push(Finding::PaymentLost {
            order: id,
            acknowledged,
            kept: kept.transaction_id,
        });
    }
}

/// Returns the kind of the message that the outbox must have for an order in this state; `None` if
/// the state needs no message.
fn needed_message(state: OrderState) -> Option<MessageKind> {
    match state {
        OrderState::Reserved | OrderState::Paid => Some(MessageKind::Announce),
        OrderState::Delivering => Some(MessageKind::Deliver),
        _ => None,
    }
}

/// Checks that the reservation, the messages and the deliveries of an order fit its state, and that
/// no payment is recorded for a refund twice.
fn check_order(view: &View<'_>, order: &Order, findings: &mut Vec<Finding>) {
    let id = || order.id.clone();
    let state = order.state;
    if state == OrderState::Unknown {
        findings.push(Finding::StateUnknown { order: id() });
        return;
    }
    let mut refunds = order.refund_transaction_ids.clone();
    refunds.sort_unstable();
    let repeated = refunds.windows(2).filter(|pair| pair[0] == pair[1]);
    findings.extend(repeated.map(|pair| Finding::RefundTwice {
        order: id(),
        transaction: pair[0],
    }));
    match (state.is_open(), order.store_id) {
        (true, Some(store)) if !view.reservations.contains_key(order.id.as_str()) => {
            findings.push(Finding::ReservationMissing { order: id(), store });
        }
        (true, None) if state != OrderState::Received => {
            findings.push(Finding::StoreMissing { order: id(), state });
        }
        _ => {}
    }
    let messages = view
        .messages
        .get(order.id.as_str())
        .map(Vec::as_slice)
        .unwrap_or_default();
    let needed = needed_message(state);
    let has = |kind: MessageKind| messages.iter().any(|message| message.kind == kind);
    if let Some(deliveries) = view.deliveries.get(order.id.as_str()) {
        for delivery in deliveries {
            check_delivery(view, order, delivery, findings);
        }
        if state != OrderState::Delivered && !has(MessageKind::Deliver) {
            findings.push(Finding::DeliveryForgotten { order: id(), state });
        }
    } else if state == OrderState::Delivered {
        findings.push(Finding::DeliveredOnPaper { order: id() });
    } else if let Some(paid) = order.transaction_id {
        let is_refunded = state == OrderState::RefundWanted && order.refund_transaction_ids.contains(&paid);
        let is_served = needed.map_or(!messages.is_empty(), has);
        if !is_served && !is_refunded {
            findings.push(Finding::PaidNotDelivered { order: id(), state });
        }
        let without_reason = messages
            .iter()
            .filter(|m| m.state == MessageState::Waiting && m.last_error.is_none())
            .filter(|_| !view.warehouse_away)
            // The first try of a message waits for a place among the calls in flight.
            .filter(|m| m.attempts > 0 || !view.has_calls_in_flight);
        findings.extend(without_reason.map(|message| Finding::WaitsWithoutReason {
            order: id(),
            kind: message.kind,
        }));
    } else if let Some(kind) = needed.filter(|kind| !has(*kind)) {
        findings.push(Finding::MessageMissing {
            order: id(),
            state,
            kind,
        });
    }
}

/// Checks that a delivery has the ordered units, the order's store and the order's payment.
fn check_delivery(view: &View<'_>, order: &Order, delivery: &Delivery, findings: &mut Vec<Finding>) {
    let id = || order.id.clone();
    let sent = view.sent(order);
    let never_paid = sent.is_some_and(|sent| sent.payment == Outcome::NotSent);
    if order.transaction_id.is_none() || never_paid {
        findings.push(Finding::DeliveredUnpaid { order: id() });
    }
    let ordered: &[Product] = sent.map_or(&order.products, |sent| &sent.products);
    let paid = sent
        .map(|sent| sent.transaction_id.into())
        .or(order.transaction_id);
    let differs = [
        ("products", delivery.products != ordered),
        ("store", Some(delivery.store) != order.store_id),
        (
            "transaction",
            paid.is_some_and(|paid| paid != delivery.transaction_id),
        ),
    ];
    let otherwise = differs.into_iter().filter(|(_, differs)| *differs);
    findings.extend(otherwise.map(|(what, _)| Finding::DeliveredOtherwise { order: id(), what }));
}

/// Checks that a reservation belongs to an open order, with the same store and the same units.
fn check_reservation(view: &View<'_>, reservation: &Reservation, findings: &mut Vec<Finding>) {
    let order = view.orders.get(reservation.order.as_str());
    match order {
        Some(order) if order.state.is_open() => {
            if order.store_id != Some(reservation.store) || order.products != reservation.products {
                findings.push(Finding::ReservationDiffers {
                    order: order.id.clone(),
                    store: reservation.store,
                });
            }
        }
        _ => findings.push(Finding::ReservationOrphaned {
            order: reservation.order.clone(),
            store: reservation.store,
            state: order.map(|order| order.state),
        }),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
