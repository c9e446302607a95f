//! The permitted transitions of an order's state: a pure function from the history of an order to
//! findings.
//!
//! The rules are those that the order management must follow. They are written here a second time
//! and not taken from the order management's code. So the audit detects a change that was made in
//! only one of the two places.

use serde::Deserialize;

use super::Finding;
use crate::wire::OrderState;

/// An event in the history of an order, as `GET /order/{id}/history` returns it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct HistoryEvent {
    /// Time of the event, unix milliseconds.
    #[serde(default)]
    pub at_ms: u64,
    /// Name of the event.
    pub event: String,
    /// Number of the store; only for the event `reserved`.
    #[serde(default)]
    pub store_id: Option<u32>,
    /// Transaction id of the payment; only for the events `paid` and `refund_wanted`.
    #[serde(default)]
    pub transaction_id: Option<u64>,
    /// Sequence number of the delivery in the warehouse's ledger; only for the event `delivered`.
    #[serde(default)]
    pub stock_sequence: Option<u64>,
    /// Reason for which the warehouse refused the order; only for the event `failed`.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The events of an order, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Id of the order.
    pub order: String,
    /// Events of the order, oldest first.
    pub events: Vec<HistoryEvent>,
}

/// State of an order at one event of its history, while the history is checked event by event.
/// `paid` is the transaction id of the first payment.
#[derive(Default)]
struct Walk {
    state: Option<OrderState>,
    is_announced: bool,
    paid: Option<u64>,
}

impl Walk {
    /// Returns the state after an event; `None` if the event is not permitted in the current state.
    /// Also notes an announcement or a payment of the order, on which the later events depend.
    fn after(&mut self, event: &HistoryEvent) -> Option<OrderState> {
        use OrderState::{
            Announced, Cancelled, Delivered, Delivering, Expired, Failed, Paid, Received, RefundWanted,
            Rejected, Reserved,
        };
        let next = match (event.event.as_str(), self.state) {
            ("received", None) => Received,
            ("reserved", Some(Received)) => Reserved,
            ("rejected", Some(Received)) => Rejected,
            ("announced", Some(Reserved)) => {
                self.is_announced = true;
                Announced
            }
            // The payment came before the announcement was confirmed. The order stays paid until
            // its delivery starts.
            ("announced", Some(Paid)) if !self.is_announced => {
                self.is_announced = true;
                Paid
            }
            ("paid", Some(Reserved | Announced)) => {
                self.paid = event.transaction_id;
                Paid
            }
            ("delivery_started", Some(Paid)) if self.is_announced => Delivering,
            ("delivered", Some(Delivering)) => Delivered,
            ("cancelled", Some(Reserved | Announced | Paid)) => Cancelled,
            ("expired", Some(Reserved | Announced)) => Expired,
            ("failed", Some(Reserved | Paid | Delivering)) => Failed,
            // The order already has a payment, and the event is about a payment with another
            // transaction id, which is to be refunded. The state of the order stays the same.
            ("refund_wanted", Some(state))
                if self.paid.is_some_and(|paid| Some(paid) != event.transaction_id) =>
            {
                state
            }
            ("refund_wanted", Some(Rejected | Cancelled | Expired | Failed)) => {
                self.paid = event.transaction_id;
                RefundWanted
            }
            _ => return None,
        };
        Some(next)
    }
}

/// Checks that each event of an order was permitted in the state before it, and that the last event
/// leads to `state`. Stops at the first event that was not permitted. An empty history gives no
/// finding.
pub(super) fn check(history: &History, state: OrderState, findings: &mut Vec<Finding>) {
    let mut walk = Walk::default();
    for event in &history.events {
        match walk.after(event) {
            Some(next) => walk.state = Some(next),
            None => {
                findings.push(Finding::TransitionIllegal {
                    order: history.order.clone(),
                    event: event.event.clone(),
                    state: walk.state.unwrap_or(OrderState::Unknown),
                });
                return;
            }
        }
    }
    if let Some(expected) = walk.state.filter(|expected| *expected != state) {
        findings.push(Finding::StateDiffers {
            order: history.order.clone(),
            state,
            expected,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(events: &[&str]) -> History {
        let events = events.iter().map(|text| {
            let (event, transaction) = text.split_once(' ').unwrap_or((text, ""));
            HistoryEvent {
                event: event.to_owned(),
                transaction_id: transaction.parse().ok(),
                ..HistoryEvent::default()
            }
        });
        History {
            order: "7".to_owned(),
            events: events.collect(),
        }
    }

    fn found(events: &[&str], state: OrderState) -> Vec<Finding> {
        let mut findings = Vec::new();
        check(&history(events), state, &mut findings);
        findings
    }

    #[test]
    fn every_legal_life_of_an_order_is_clean() {
        use OrderState::{Cancelled, Delivered, Expired, Failed, Received, RefundWanted, Rejected, Reserved};
        let lives: [(&[&str], OrderState); 12] = [
            (&["received"], Received),
            (&["received", "reserved"], Reserved),
            (&["received", "rejected"], Rejected),
            (&["received", "rejected", "refund_wanted 3"], RefundWanted),
            (
                &[
                    "received",
                    "reserved",
                    "announced",
                    "paid 3",
                    "delivery_started",
                    "delivered",
                ],
                Delivered,
            ),
            (
                &[
                    "received",
                    "reserved",
                    "paid 3",
                    "announced",
                    "delivery_started",
                    "delivered",
                ],
                Delivered,
            ),
            (
                &[
                    "received",
                    "reserved",
                    "paid 3",
                    "refund_wanted 4",
                    "announced",
                    "delivery_started",
                    "refund_wanted 5",
                    "delivered",
                    "refund_wanted 6",
                ],
                Delivered,
            ),
            (&["received", "reserved", "announced", "cancelled"], Cancelled),
            (
                &["received", "reserved", "paid 3", "cancelled", "refund_wanted 3"],
                RefundWanted,
            ),
            (
                &["received", "reserved", "announced", "expired", "refund_wanted 9"],
                RefundWanted,
            ),
            (&["received", "reserved", "failed"], Failed),
            (&["received", "reserved", "announced", "expired"], Expired),
        ];
        for (events, state) in lives {
            assert_eq!(found(events, state), [], "{events:?}");
        }
    }

    #[test]
    fn an_illegal_event_is_found_with_the_state_before_it() {
        use OrderState::{Announced, Cancelled, Delivered, Paid, Reserved, Unknown};
        let wrong: [(&[&str], &str, OrderState); 7] = [
            (&["reserved"], "reserved", Unknown),
            (&["received", "reserved", "delivered"], "delivered", Reserved),
            (
                &["received", "reserved", "announced", "delivered"],
                "delivered",
                Announced,
            ),
            (
                &["received", "reserved", "paid 3", "delivery_started"],
                "delivery_started",
                Paid,
            ),
            (
                &["received", "reserved", "cancelled", "paid 3"],
                "paid",
                Cancelled,
            ),
            (
                &[
                    "received",
                    "reserved",
                    "announced",
                    "paid 3",
                    "delivery_started",
                    "delivered",
                    "delivered",
                ],
                "delivered",
                Delivered,
            ),
            (&["received", "reserved", "sold"], "sold", Reserved),
        ];
        for (events, event, state) in wrong {
            let expected = Finding::TransitionIllegal {
                order: "7".to_owned(),
                event: event.to_owned(),
                state,
            };
            assert_eq!(found(events, Delivered), [expected], "{events:?}");
        }
    }

    #[test]
    fn a_state_that_its_history_does_not_lead_to_is_found() {
        assert_eq!(
            found(&["received", "reserved"], OrderState::Paid),
            [Finding::StateDiffers {
                order: "7".to_owned(),
                state: OrderState::Paid,
                expected: OrderState::Reserved,
            }]
        );
    }
}
