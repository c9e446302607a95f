//! Explanations of findings: the history of each affected order at the shop front, at the order
//! management and at the warehouse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use super::evidence::{self, Evidence};
use super::history::{History, HistoryEvent};
use super::{Finding, Waiting};
use crate::client::Client;
use crate::front::{OrderRecord, Outcome};
use crate::summary::plural;
use crate::wire::{Message, MessageKind, MessageState};

/// Maximum number of explained orders. Further orders with findings get no explanation.
const ORDERS_MAX: usize = 50;

/// Returns the lines of the history of each order with a finding, by the id of the order, for at
/// most [`ORDERS_MAX`] orders.
pub(super) async fn explain(
    oms: &Client,
    findings: &[Finding],
    record: &OrderRecord,
    evidence: &Evidence,
) -> BTreeMap<String, Vec<String>> {
    let orders: BTreeSet<&str> = findings.iter().filter_map(Finding::order).collect();
    let mut explained = BTreeMap::new();
    for order in orders.into_iter().take(ORDERS_MAX) {
        let history = evidence::history(oms, order).await;
        explained.insert(order.to_owned(), lines(order, history.as_ref(), record, evidence));
    }
    explained
}

/// Returns the lines of one order's history: the front's requests, the events, the reservation and
/// the messages of the order management, and the warehouse's deliveries.
fn lines(order: &str, history: Option<&History>, record: &OrderRecord, evidence: &Evidence) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(sent) = record.get_text(order) {
        let transaction = sent.transaction_id;
        let answered = [
            ("order".to_owned(), sent.order),
            (format!("payment {transaction}"), sent.payment),
            ("cancellation".to_owned(), sent.cancel),
        ];
        let parts = answered.into_iter().map(|(request, outcome)| match outcome {
            Outcome::NotSent => format!("{request} not sent"),
            outcome => format!("{request} answered {}", outcome.text()),
        });
        lines.push(format!("customer: {}", parts.collect::<Vec<_>>().join(", ")));
    }
    match history {
        Some(history) => lines.extend(history.events.iter().map(event_line)),
        None => lines.push("order management: it has no history of this order".to_owned()),
    }
    if let Some(reservation) = evidence.reservations.iter().find(|r| r.order == order) {
        lines.push(format!(
            "reservation: {} in store {}",
            units(&reservation.products),
            reservation.store
        ));
    }
    lines.extend(
        evidence
            .outbox
            .iter()
            .filter(|m| m.order == order)
            .map(message_line),
    );
    let deliveries = evidence.deliveries.iter().filter(|d| d.order == order);
    lines.extend(deliveries.map(|delivery| {
        format!(
            "warehouse: delivery {} of {} from store {} for payment {}",
            delivery.sequence,
            units(&delivery.products),
            delivery.store,
            delivery.transaction_id
        )
    }));
    if !evidence.deliveries.iter().any(|d| d.order == order) {
        lines.push("warehouse: no delivery".to_owned());
    }
    lines
}

fn units(products: &[crate::wire::Product]) -> String {
    let parts = products
        .iter()
        .map(|product| format!("{} x product {}", product.quantity, product.id));
    parts.collect::<Vec<_>>().join(", ")
}

fn event_line(event: &HistoryEvent) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(event.at_ms);
    let at = humantime::format_rfc3339_millis(at).to_string();
    let mut line = format!("{} {}", at.replace('T', " ").trim_end_matches('Z'), event.event);
    if let Some(store) = event.store_id {
        line.push_str(&format!(" in store {store}"));
    }
    if let Some(transaction) = event.transaction_id {
        line.push_str(&format!(", payment {transaction}"));
    }
    if let Some(sequence) = event.stock_sequence {
        line.push_str(&format!(", delivery {sequence}"));
    }
    if let Some(reason) = &event.reason {
        line.push_str(&format!(": {reason}"));
    }
    line
}

fn message_line(message: &Message) -> String {
    let state = match message.state {
        MessageState::Waiting => "waits",
        MessageState::Dead => "is dead",
    };
    let reason = message.last_error.as_deref().unwrap_or("not tried yet");
    let tries = plural(message.attempts.into(), "try");
    format!(
        "outbox: the message {} {state} after {tries}: {reason}",
        message.kind
    )
}

/// Groups the waiting messages by kind and reason, the largest group first.
pub(super) fn waiting(evidence: &Evidence) -> Vec<Waiting> {
    let mut groups: BTreeMap<(MessageKind, String), u64> = BTreeMap::new();
    for message in evidence
        .outbox
        .iter()
        .filter(|m| m.state == MessageState::Waiting)
    {
        let usual = match evidence.warehouse_away {
            true => "the warehouse is away",
            false => "not tried yet",
        };
        let reason = message.last_error.clone().unwrap_or_else(|| usual.to_owned());
        *groups.entry((message.kind, reason)).or_default() += 1;
    }
    let mut waiting: Vec<Waiting> = groups
        .into_iter()
        .map(|((kind, reason), messages)| Waiting {
            kind,
            reason,
            messages,
        })
        .collect();
    waiting.sort_by_key(|group| std::cmp::Reverse(group.messages));
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::RecordedOrder;
    use crate::wire::{Delivery, Product};
    use crate::workload::{Basket, PlannedOrder};

    #[test]
    fn an_order_is_explained_by_its_events_its_message_and_its_delivery() {
        let history = History {
            order: "17".to_owned(),
            events: vec![
                HistoryEvent {
                    at_ms: 1_795_893_049_896,
                    event: "reserved".to_owned(),
                    store_id: Some(3),
                    ..HistoryEvent::default()
                },
                HistoryEvent {
                    at_ms: 1_795_893_050_001,
                    event: "failed".to_owned(),
                    reason: Some("out of stock".to_owned()),
                    ..HistoryEvent::default()
                },
            ],
        };
        let evidence = Evidence {
            outbox: vec![Message {
                order: "17".to_owned(),
                kind: MessageKind::Deliver,
                state: MessageState::Dead,
                attempts: 8,
                last_error: Some("504".to_owned()),
            }],
            deliveries: vec![Delivery {
                order: "17".to_owned(),
                store: 3,
                products: vec![Product { id: 5, quantity: 2 }],
                transaction_id: 9,
                count: 1,
                sequence: 44,
            }],
            ..Evidence::default()
        };
        assert_eq!(
            lines("17", Some(&history), &OrderRecord::default(), &evidence),
            [
                "2026-11-28 19:10:49.896 reserved in store 3",
                "2026-11-28 19:10:50.001 failed: out of stock",
                "outbox: the message deliver is dead after 8 tries: 504",
                "warehouse: delivery 44 of 2 x product 5 from store 3 for payment 9",
            ]
        );
        let unknown = lines("18", None, &OrderRecord::default(), &evidence);
        assert_eq!(
            unknown,
            [
                "order management: it has no history of this order",
                "warehouse: no delivery"
            ]
        );
    }

    #[test]
    fn an_order_of_another_client_is_not_explained_by_requests_of_the_front() {
        let planned = PlannedOrder {
            id: 17,
            products: Basket::new(&[]),
            transaction_id: 5,
            is_paid: true,
            follow_ups: 0,
        };
        let record = OrderRecord::new(vec![RecordedOrder::new(planned, Outcome::Status(200))]);
        let of_customer = |id: &str| {
            let lines = lines(id, None, &record, &Evidence::default());
            lines.iter().any(|line| line.starts_with("customer: "))
        };
        assert!(of_customer("17"));
        assert!(!of_customer("017"), "the front never writes leading zeros");
    }

    #[test]
    fn messages_that_wait_are_grouped_by_kind_and_reason() {
        let message = |state, reason: Option<&str>| Message {
            order: "1".to_owned(),
            kind: MessageKind::Announce,
            state,
            attempts: 0,
            last_error: reason.map(str::to_owned),
        };
        let evidence = Evidence {
            outbox: vec![
                message(MessageState::Waiting, Some("refused")),
                message(MessageState::Waiting, None),
                message(MessageState::Waiting, None),
                message(MessageState::Dead, Some("504")),
            ],
            warehouse_away: true,
            ..Evidence::default()
        };
        let group = |reason: &str, messages| Waiting {
            kind: MessageKind::Announce,
            reason: reason.to_owned(),
            messages,
        };
        assert_eq!(
            waiting(&evidence),
            [group("the warehouse is away", 2), group("refused", 1)]
        );
    }
}
