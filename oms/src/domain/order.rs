//! The life of one order, as a pure state machine.
//!
//! An order is its id, its lines and its history of events. Everything else, the state included, is
//! a fold over the events. `decide` returns the events that a command causes, or the reason to
//! refuse it. `apply` appends events to the order.
//!
//! **Invariants**
//! - A command that was executed before causes no new event.
//! - A payment that arrives before the warehouse confirms the announcement is kept.
//! - Every accepted payment that buys nothing becomes a wanted refund. These are payments for
//!   orders that ended unpaid, payments for orders that were refused or cancelled later, and
//!   further payments.
//!
//! Deliberately absent: the choice of the store (`stock`) and the messages to the warehouse
//! (`outbox`).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use crate::runtime::seeded::seeded;

/// Maximum length of an order id in bytes. It limits the keys of the order's rows, which contain
/// the id, and the memory of messages that wait for the warehouse.
pub const ORDER_ID_BYTES_MAX: usize = 64;

/// Maximum number of payments stored in addition to the first payment. Each stored payment makes
/// the order's row longer, and a shop that sends more has a defect.
pub const EXTRA_PAYMENTS_MAX: usize = 32;

/// The identity of an order: 1 to 64 characters of `A-Z a-z 0-9 - _ . ~ :`. The ids `.` and `..`
/// are not allowed, so every id is a path segment without encoding.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId(Arc<str>);

impl OrderId {
    /// Checks the text of an id. The error is a predicate, such as `is empty`. The caller puts the
    /// name of the field before it.
    pub fn parse(text: &str) -> Result<OrderId, &'static str> {
        if text.is_empty() {
            return Err("is empty");
        }
        if text.len() > ORDER_ID_BYTES_MAX {
            return Err("is longer than 64 bytes");
        }
        if text == "." || text == ".." {
            return Err("cannot be a path segment of dots");
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~:".contains(&byte);
        if !text.bytes().all(allowed) {
            return Err("may only hold letters, digits and - _ . ~ :");
        }
        Ok(OrderId(text.into()))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the bytes of the id.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrderId({})", self.0)
    }
}

impl Serialize for OrderId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for OrderId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<OrderId, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        OrderId::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// One product of an order and the wanted number of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    /// The product.
    #[schema(minimum = 1, maximum = 1_000_000, example = 812)]
    pub id: u32,
    /// Number of units, at least one.
    #[schema(minimum = 1, maximum = 1_000_000, example = 3)]
    pub quantity: u32,
}

/// The state of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OrderState)]
pub enum State {
    /// The order is accepted, and its store is not chosen yet.
    Received,
    /// A store has every product, and the units are reserved.
    Reserved,
    /// The warehouse confirmed that it prepares the order.
    Announced,
    /// The order was paid before the warehouse confirmed the announcement. Delivery starts with
    /// that confirmation.
    Paid,
    /// The order is paid and announced. The outbox has the delivery request for the warehouse.
    Delivering,
    /// The warehouse delivered the order.
    Delivered,
    /// No store had every product of the order.
    Rejected,
    /// The customer cancelled the order before it was paid.
    Cancelled,
    /// The order was not paid within the payment timeout, and ended.
    Expired,
    /// The warehouse refused the order permanently before it was paid.
    Failed,
    /// The order was paid and will not be delivered, so the customer needs a refund.
    RefundWanted,
}

impl State {
    /// All states, in the sequence of their numbers (`State as usize`).
    pub const ALL: [State; 11] = [
        State::Received,
        State::Reserved,
        State::Announced,
        State::Paid,
        State::Delivering,
        State::Delivered,
        State::Rejected,
        State::Cancelled,
        State::Expired,
        State::Failed,
        State::RefundWanted,
    ];

    /// Returns the name of the state in JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Received => "received",
            State::Reserved => "reserved",
            State::Announced => "announced",
            State::Paid => "paid",
            State::Delivering => "delivering",
            State::Delivered => "delivered",
            State::Rejected => "rejected",
            State::Cancelled => "cancelled",
            State::Expired => "expired",
            State::Failed => "failed",
            State::RefundWanted => "refund_wanted",
        }
    }

    /// Returns the state with this name, or `None` if no state has the name.
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Returns `true` while the order has reserved units.
    pub fn holds_reservation(self) -> bool {
        matches!(
            self,
            State::Reserved | State::Announced | State::Paid | State::Delivering
        )
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A change in the life of an order, as its history records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Units were reserved in a store.
    Reserved {
        /// The number of the store that has the units.
        store: u32,
    },
    /// No store had every product.
    Rejected,
    /// The warehouse confirmed the announcement.
    Announced,
    /// The customer paid the order.
    Paid {
        /// Transaction number of the payment.
        transaction: u64,
    },
    /// The delivery request was queued for the warehouse.
    DeliveryStarted,
    /// The warehouse delivered the order.
    Delivered {
        /// Number that the warehouse gave to the delivery, if it sent one.
        sequence: Option<u64>,
    },
    /// The customer cancelled the order.
    Cancelled,
    /// The order was not paid within the payment timeout.
    Expired,
    /// The warehouse refused the order permanently.
    Failed {
        /// Text of the warehouse's answer, with its reason.
        reason: String,
    },
    /// A payment bought nothing, so it must be refunded.
    RefundWanted {
        /// Transaction number of the payment that needs a refund.
        transaction: u64,
    },
}

impl Event {
    /// Returns the name of the event in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Reserved { .. } => "reserved",
            Event::Rejected => "rejected",
            Event::Announced => "announced",
            Event::Paid { .. } => "paid",
            Event::DeliveryStarted => "delivery_started",
            Event::Delivered { .. } => "delivered",
            Event::Cancelled => "cancelled",
            Event::Expired => "expired",
            Event::Failed { .. } => "failed",
            Event::RefundWanted { .. } => "refund_wanted",
        }
    }
}

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Time of the event in UTC milliseconds since 1970.
    pub at_ms: u64,
    /// The event that happened at this time.
    pub event: Event,
}

/// A request to change an existing order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The customer pays the order.
    Pay {
        /// Transaction number of the payment.
        transaction: u64,
    },
    /// The warehouse began to prepare the order.
    ConfirmAnnouncement,
    /// The warehouse will never prepare the order.
    RefuseAnnouncement {
        /// Text of the warehouse's answer, with its reason.
        reason: String,
    },
    /// The warehouse delivered the order.
    ConfirmDelivery {
        /// Number that the warehouse gave to the delivery, if it sent one.
        sequence: Option<u64>,
    },
    /// The warehouse will never deliver the order.
    RefuseDelivery {
        /// Text of the warehouse's answer, with its reason.
        reason: String,
    },
    /// The customer cancels the order.
    Cancel,
    /// The order was not paid within the payment timeout.
    Expire,
}

/// The reason to refuse a command or a repeated request to place an order.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// An order with this id was placed before with other lines.
    #[error("this order id was used before with other products")]
    OtherContent,
    /// The order has `EXTRA_PAYMENTS_MAX` payments after the first one already.
    #[error("{EXTRA_PAYMENTS_MAX} payments of this order are to be refunded already; no further one is kept")]
    TooManyPayments,
    /// The order's state does not allow the command.
    #[error("the order is {state} and cannot be {wanted}")]
    NotInState {
        /// The present state of the order.
        state: State,
        /// The participle that completes "cannot be", such as `paid`.
        wanted: &'static str,
    },
}

/// An order: its lines and its history, with the values that follow from the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The identity of the order.
    pub id: OrderId,
    /// The lines as the shop sent them.
    pub lines: Box<[Line]>,
    /// All events, oldest first. Never empty.
    pub history: Vec<Entry>,
    /// The current state.
    pub state: State,
    /// The store in which units were reserved, if any store had them.
    pub store: Option<u32>,
    /// Transaction of the first payment. In the state `RefundWanted`, this payment needs a refund.
    pub transaction: Option<u64>,
    /// Transactions of further payments. Each of them needs a refund, in every state of the order.
    pub extra_payments: Vec<u64>,
}

impl Order {
    /// Creates an order: reserved at `store`, or rejected if no store has every product.
    pub fn place(id: OrderId, lines: Box<[Line]>, store: Option<u32>, now_ms: u64) -> Order {
        let event = store.map_or(Event::Rejected, |store| Event::Reserved { store });
        Order::from_history(id, lines, vec![Entry { at_ms: now_ms, event }])
    }

    /// Creates the order that results from a history.
    pub fn from_history(id: OrderId, lines: Box<[Line]>, history: Vec<Entry>) -> Order {
        let mut order = Order {
            id,
            lines,
            history,
            state: State::Received,
            store: None,
            transaction: None,
            extra_payments: Vec::new(),
        };
        for at in 0..order.history.len() {
            let event = order.history[at].event.clone();
            order.follow(&event);
        }
        order
    }

    /// Returns the time of the first event, in UTC milliseconds since 1970.
    pub fn created_at_ms(&self) -> u64 {
        self.history.first().map_or(0, |entry| entry.at_ms)
    }

    /// Returns the time of the latest event, in UTC milliseconds since 1970.
    pub fn updated_at_ms(&self) -> u64 {
        self.history.last().map_or(0, |entry| entry.at_ms)
    }

    /// Appends events to the history. The time of an event is never before the time of an earlier
    /// event, even if the clock is set back.
    pub fn apply(&mut self, events: Vec<Event>, now_ms: u64) {
        let at_ms = now_ms.max(self.updated_at_ms());
        for event in events {
            self.follow(&event);
            self.history.push(Entry { at_ms, event });
        }
    }

    fn follow(&mut self, event: &Event) {
        match event {
            Event::Reserved { store } => {
                self.store = Some(*store);
                self.state = State::Reserved;
            }
            Event::Rejected => self.state = State::Rejected,
            // An early payment keeps the state `Paid` until delivery starts.
            Event::Announced if self.state == State::Paid => {}
            Event::Announced => self.state = State::Announced,
            Event::Paid { transaction } => {
                self.transaction = Some(*transaction);
                self.state = State::Paid;
            }
            Event::DeliveryStarted => self.state = State::Delivering,
            Event::Delivered { .. } => self.state = State::Delivered,
            Event::Cancelled => self.state = State::Cancelled,
            Event::Expired => self.state = State::Expired,
            Event::Failed { .. } => self.state = State::Failed,
            Event::RefundWanted { transaction } => match self.transaction {
                Some(paid_by) if paid_by != *transaction => self.extra_payments.push(*transaction),
                _ => {
                    self.transaction = Some(*transaction);
                    self.state = State::RefundWanted;
                }
            },
        }
    }

    /// Returns the transactions that need a refund.
    pub fn refunds(&self) -> impl Iterator<Item = u64> {
        let own = self.transaction.filter(|_| self.state == State::RefundWanted);
        own.into_iter().chain(self.extra_payments.iter().copied())
    }

    /// Checks a repeated request to place this order: the lines must be equal.
    pub fn placed_again(&self, lines: &[Line]) -> Result<(), Refusal> {
        if *self.lines == *lines {
            Ok(())
        } else {
            Err(Refusal::OtherContent)
        }
    }
}

/// Returns the events that a command causes. The list is empty if the command was executed before
/// or has no effect in the order's state.
pub fn decide(order: &Order, command: &Command) -> Result<Vec<Event>, Refusal> {
    let nothing = Ok(Vec::new());
    match command {
        Command::Pay { transaction } => decide_payment(order, *transaction),
        Command::ConfirmAnnouncement => match order.state {
            State::Reserved => Ok(vec![Event::Announced]),
            State::Paid => Ok(vec![Event::Announced, Event::DeliveryStarted]),
            _ => nothing,
        },
        Command::RefuseAnnouncement { reason } => match order.state {
            State::Reserved | State::Paid => Ok(refused(order, reason)),
            _ => nothing,
        },
        Command::ConfirmDelivery { sequence } => match order.state {
            State::Delivering => Ok(vec![Event::Delivered { sequence: *sequence }]),
            _ => nothing,
        },
        Command::RefuseDelivery { reason } => match order.state {
            State::Delivering => Ok(refused(order, reason)),
            _ => nothing,
        },
        Command::Cancel => match (order.state, order.transaction) {
            (State::Reserved | State::Announced, _) => Ok(vec![Event::Cancelled]),
            (State::Paid, Some(transaction)) => {
                Ok(vec![Event::Cancelled, Event::RefundWanted { transaction }])
            }
            (State::Cancelled, _) => nothing,
            (State::RefundWanted, _) if order.history.iter().any(|e| e.event == Event::Cancelled) => nothing,
            (state, _) => Err(Refusal::NotInState {
                state,
                wanted: "cancelled",
            }),
        },
        Command::Expire => match order.state {
            State::Reserved | State::Announced => Ok(vec![Event::Expired]),
            _ => nothing,
        },
    }
}

/// Returns the events of a permanent refusal by the warehouse. If the order was paid, the events
/// include a wanted refund.
fn refused(order: &Order, reason: &str) -> Vec<Event> {
    let failed = Event::Failed {
        reason: reason.to_owned(),
    };
    let refund = order
        .transaction
        .map(|transaction| Event::RefundWanted { transaction });
    std::iter::once(failed).chain(refund).collect()
}

fn decide_payment(order: &Order, transaction: u64) -> Result<Vec<Event>, Refusal> {
    if let Some(paid_by) = order.transaction {
        let is_repeated = paid_by == transaction || order.extra_payments.contains(&transaction);
        return if is_repeated && !seeded("payment-repeated") {
            Ok(Vec::new())
        } else if order.extra_payments.len() >= EXTRA_PAYMENTS_MAX {
            Err(Refusal::TooManyPayments)
        } else {
            Ok(vec![Event::RefundWanted { transaction }])
        };
    }
    match order.state {
        State::Reserved => Ok(vec![Event::Paid { transaction }]),
        State::Announced => Ok(vec![Event::Paid { transaction }, Event::DeliveryStarted]),
        // The order will not be delivered, so the payment needs a refund.
        State::Rejected | State::Cancelled | State::Expired | State::Failed => {
            Ok(vec![Event::RefundWanted { transaction }])
        }
        state => Err(Refusal::NotInState {
            state,
            wanted: "paid",
        }),
    }
}

#[cfg(test)]
mod tests;
