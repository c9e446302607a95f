//! The life of one order, as a pure state machine.
//!
//! An order is its content (who asked for what) and the events that befell it; everything else, the
//! state included, is a fold over the events. `decide` says which events a command brings about, or
//! why it is refused; `apply` makes them part of the order. Neither reads a clock, a store or a
//! network, so every pair of state and command is tested on its own.
//!
//! Promises: a command repeated brings about nothing new; a payment that comes before the warehouse
//! has confirmed the announcement is kept; every payment that buys nothing is kept as a wanted
//! refund: one for an order that ended unpaid or is refused after it was paid, and a second one for
//! an order that was paid. Absent on purpose: which store has the goods (`stock`), what is told to
//! the warehouse (`outbox`).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest order id in bytes: ids are part of every key, and keys stay in memory while a message
/// waits.
pub const ORDER_ID_BYTES_MAX: usize = 64;

/// Largest number of payments kept for an order beside the one that paid it. Each makes the order's
/// row longer, and a shop that sends more is in a loop.
pub const EXTRA_PAYMENTS_MAX: usize = 32;

/// The identity of an order: 1 to 64 of `A-Z a-z 0-9 - _ . ~ :`, so that it stands in a path as it
/// is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId(Arc<str>);

impl OrderId {
    /// Takes an id over, or says what is wrong with it.
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

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the bytes of a key.
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

/// One product of an order and how many units of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The product.
    pub id: u32,
    /// Units asked for, at least one.
    pub quantity: u32,
}

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Taken, and not yet decided whether a store has it.
    Received,
    /// A store has every product, and its units are set aside.
    Reserved,
    /// The warehouse confirmed that it prepares the order.
    Announced,
    /// Paid before the warehouse confirmed the announcement; delivery follows that.
    Paid,
    /// Paid and announced: the warehouse is told to deliver.
    Delivering,
    /// The warehouse delivered.
    Delivered,
    /// No store had every product.
    Rejected,
    /// Cancelled by the customer before it was paid.
    Cancelled,
    /// Never paid within the payment timeout.
    Expired,
    /// The warehouse refused it for good.
    Failed,
    /// Paid, but it will not be delivered: the customer's money is to go back.
    RefundWanted,
}

impl State {
    /// Every state, in the order of their codes.
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

    /// The name used in JSON.
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

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// True while the order holds units of a store.
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

/// Something that befell an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This store's units were set aside.
    Reserved {
        /// The store.
        store: u32,
    },
    /// No store had every product.
    Rejected,
    /// The warehouse confirmed the announcement.
    Announced,
    /// The customer paid.
    Paid {
        /// The payment's transaction.
        transaction: u64,
    },
    /// Delivery was asked of the warehouse.
    DeliveryStarted,
    /// The warehouse delivered.
    Delivered {
        /// The delivery's place in the warehouse's ledger, if the warehouse says it.
        sequence: Option<u64>,
    },
    /// The customer cancelled.
    Cancelled,
    /// The payment timeout passed.
    Expired,
    /// The warehouse refused for good.
    Failed {
        /// The warehouse's answer.
        reason: String,
    },
    /// A payment stands against an order that will not be delivered.
    RefundWanted {
        /// The payment's transaction.
        transaction: u64,
    },
}

impl Event {
    /// The name used in JSON.
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

/// An event and when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// UTC milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: Event,
}

/// What can be asked of an order that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The customer pays.
    Pay {
        /// The payment's transaction.
        transaction: u64,
    },
    /// The warehouse took the order into preparation.
    ConfirmAnnouncement,
    /// The warehouse will never prepare it.
    RefuseAnnouncement {
        /// Its answer.
        reason: String,
    },
    /// The warehouse delivered.
    ConfirmDelivery {
        /// The delivery's place in the warehouse's ledger, if it says it.
        sequence: Option<u64>,
    },
    /// The warehouse will never deliver it.
    RefuseDelivery {
        /// Its answer.
        reason: String,
    },
    /// The customer does not want it any more.
    Cancel,
    /// The payment timeout passed.
    Expire,
}

/// Why a command is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The same id was used for another content.
    OtherContent,
    /// Too many other transactions paid this order.
    TooManyPayments,
    /// The command makes no sense in this state.
    NotInState {
        /// The order's state.
        state: State,
        /// What was wanted of it.
        wanted: &'static str,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::OtherContent => write!(f, "this order id was used before with other products"),
            Refusal::TooManyPayments => write!(
                f,
                "{EXTRA_PAYMENTS_MAX} payments of this order are to be refunded already; no further one is kept"
            ),
            Refusal::NotInState { state, wanted } => write!(f, "the order is {state} and cannot be {wanted}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// An order: its content and its history, with what follows from them at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its id.
    pub id: OrderId,
    /// What was asked for, as it was sent.
    pub lines: Box<[Line]>,
    /// What befell it, oldest first, never empty.
    pub history: Vec<Entry>,
    /// Where it stands.
    pub state: State,
    /// The store whose units are its own, if any had them.
    pub store: Option<u32>,
    /// The transaction that paid it.
    pub transaction: Option<u64>,
    /// Further transactions, whose money is to go back whatever the state.
    pub extra_payments: Vec<u64>,
}

impl Order {
    /// A new order: set aside at `store`, or rejected if no store has it.
    pub fn place(id: OrderId, lines: Box<[Line]>, store: Option<u32>, now_ms: u64) -> Order {
        let event = store.map_or(Event::Rejected, |store| Event::Reserved { store });
        Order::from_history(id, lines, vec![Entry { at_ms: now_ms, event }])
    }

    /// The order that this history makes.
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

    /// UTC milliseconds at which the order was taken.
    pub fn created_at_ms(&self) -> u64 {
        self.history.first().map_or(0, |entry| entry.at_ms)
    }

    /// UTC milliseconds of its latest event.
    pub fn updated_at_ms(&self) -> u64 {
        self.history.last().map_or(0, |entry| entry.at_ms)
    }

    /// Makes events part of the order. Time never runs backwards in a history, whatever the clock
    /// does.
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
            // A payment that came first keeps its state until delivery is asked for.
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

    /// Returns the transactions whose money is to go back.
    pub fn refunds(&self) -> impl Iterator<Item = u64> {
        let own = self.transaction.filter(|_| self.state == State::RefundWanted);
        own.into_iter().chain(self.extra_payments.iter().copied())
    }

    /// The answer to the same order placed again: itself if the content is the same.
    pub fn placed_again(&self, lines: &[Line]) -> Result<(), Refusal> {
        if *self.lines == *lines {
            Ok(())
        } else {
            Err(Refusal::OtherContent)
        }
    }
}

/// The events that a command brings about; none if it was carried out before or comes too late to
/// matter.
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

/// The warehouse refused for good: a payment that was taken is to go back.
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
        return if paid_by == transaction || order.extra_payments.contains(&transaction) {
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
        // The money came although nothing will be delivered for it: it is not forgotten.
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
