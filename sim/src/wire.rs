//! What goes over the wire, as this side of it understands it.
//!
//! The simulators know the order management only by its public routes, as a real shop and a real
//! warehouse would, so these types are their own and not borrowed from it: if the two drift apart,
//! a run shows it. Reading is lenient (unknown fields are ignored, what an audit can do without is
//! optional), writing is exact.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One product of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Product {
    /// The product's number, from 1.
    pub id: u32,
    /// How many units.
    pub quantity: u32,
}

/// The body of `POST /order`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOrder {
    /// The order's id: an integer as text.
    pub id: String,
    /// What is ordered.
    pub products: Vec<Product>,
}

/// The body of `POST /order/{id}/payment-callback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The bank's number for the payment, 1 to 10,000.
    pub transaction_id: u64,
}

/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Taken in, not yet decided.
    Received,
    /// A store holds the units.
    Reserved,
    /// The warehouse knows of it.
    Announced,
    /// The payment is in.
    Paid,
    /// The warehouse has been asked to deliver.
    Delivering,
    /// The warehouse has delivered.
    Delivered,
    /// No store has it.
    Rejected,
    /// Called off.
    Cancelled,
    /// Never paid.
    Expired,
    /// The warehouse refused it for good.
    Failed,
    /// Paid, but it will not be delivered: the money is to go back.
    RefundWanted,
}

impl OrderState {
    /// The state's name as it goes over the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Reserved => "reserved",
            Self::Announced => "announced",
            Self::Paid => "paid",
            Self::Delivering => "delivering",
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::RefundWanted => "refund_wanted",
        }
    }

    /// True while the order may still be delivered, and so must hold its units.
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::Received | Self::Reserved | Self::Announced | Self::Paid | Self::Delivering
        )
    }
}

impl std::fmt::Display for OrderState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An order as the order management shows it (`GET /order/{id}`, `GET /orders`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The order's id.
    pub id: String,
    /// What was ordered.
    pub products: Vec<Product>,
    /// The store that has it; none before one was found.
    #[serde(default)]
    pub store_id: Option<u32>,
    /// Where it stands.
    pub state: OrderState,
    /// The payment, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
    /// Payments whose money is to go back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refund_transaction_ids: Vec<u64>,
    /// When it was created, unix milliseconds.
    #[serde(default)]
    pub created_at_ms: u64,
    /// When it last changed, unix milliseconds.
    #[serde(default)]
    pub updated_at_ms: u64,
}

/// A page of `GET /orders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrdersPage {
    /// The orders of this page.
    pub orders: Vec<Order>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// Units that a store holds for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The order they are held for.
    pub order: String,
    /// The store that holds them.
    pub store: u32,
    /// The units.
    pub products: Vec<Product>,
}

/// A page of `GET /reservations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationsPage {
    /// The reservations of this page.
    pub reservations: Vec<Reservation>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// What a message in the outbox tells the warehouse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageKind {
    /// Take the order into preparation.
    Announce,
    /// Deliver it.
    Deliver,
}

impl std::fmt::Display for MessageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Announce => "announce",
            Self::Deliver => "deliver",
        })
    }
}

/// Whether a message in the outbox is still being tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageState {
    /// It will be tried (again).
    Waiting,
    /// It was given up and waits for an operator.
    Dead,
}

/// A message that the warehouse has not yet confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The order it is about.
    pub order: String,
    /// What it tells.
    pub kind: MessageKind,
    /// Whether it is still being tried.
    pub state: MessageState,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// Why the last try failed; none before one did.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// A page of `GET /outbox`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxPage {
    /// The messages of this page.
    pub messages: Vec<Message>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// The counts of `GET /health` that a simulation needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The node that answered.
    #[serde(default)]
    pub node: String,
    /// The epoch of its ring.
    #[serde(default)]
    pub epoch: u64,
    /// Orders by state.
    #[serde(default)]
    pub orders: BTreeMap<String, u64>,
    /// Messages that the warehouse has not yet confirmed.
    #[serde(default)]
    pub outbox: u64,
    /// Stock snapshots taken in.
    #[serde(default)]
    pub stock_snapshots: u64,
    /// Stat files taken in.
    #[serde(default)]
    pub stat_files: u64,
}

/// The body of `POST /order/new` and `POST /order/process_delivery` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarehouseOrder {
    /// The order's id.
    pub id: String,
    /// What to prepare or deliver.
    pub products: Vec<Product>,
    /// The store that has it.
    pub store_id: u32,
    /// The payment; on deliveries only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
}

/// `GET /summary` on the warehouse.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarehouseSummary {
    /// Orders taken into preparation.
    pub announced: u64,
    /// Deliveries made.
    pub delivered: u64,
    /// Deliveries refused because the store has not the units: attempts to oversell.
    pub refused: u64,
    /// Deliveries answered with a gateway time-out, acted on or not, since this warehouse was
    /// started.
    pub gateway_timeouts: u64,
    /// Deliveries asked for again after they had been confirmed, since this warehouse was started.
    pub duplicates_after_answer: u64,
    /// Stock snapshots that the order management has taken, since this warehouse was started.
    pub snapshots_sent: u64,
    /// Stat files written since this warehouse was started.
    pub stat_files_written: u64,
    /// The sequence of the last delivery.
    pub sequence: u64,
    /// The seed of the stock on the first day.
    #[serde(default)]
    pub seed: u64,
    /// How many products there are.
    #[serde(default)]
    pub products: u32,
    /// How many stores there are.
    #[serde(default)]
    pub stores: u32,
}

/// A delivery in the warehouse's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The order delivered.
    pub order: String,
    /// The store it was taken from.
    pub store: u32,
    /// What was delivered.
    pub products: Vec<Product>,
    /// The payment it was delivered for.
    pub transaction_id: u64,
    /// How many deliveries this order has had; more than one is one too many.
    pub count: u32,
    /// The delivery's place in the ledger.
    pub sequence: u64,
}

/// A page of `GET /ledger` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPage {
    /// The deliveries of this page, by sequence.
    pub deliveries: Vec<Delivery>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// Units that came back into stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restock {
    /// The store.
    pub store: u32,
    /// The product.
    pub product: u32,
    /// How many units came.
    pub units: u32,
    /// The sequence of the last delivery before they came.
    pub after: u64,
}

/// A page of `GET /restocks` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestocksPage {
    /// The restocked units of this page, oldest first.
    pub restocks: Vec<Restock>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// A delivery that the warehouse refused because the store has not the units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The order.
    pub order: String,
    /// The store.
    pub store: u32,
    /// The first product that is short.
    pub product: u32,
    /// How many units were asked for.
    pub asked: u32,
    /// How many there were.
    pub there: u32,
}

/// A page of `GET /refusals` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalsPage {
    /// The refusals of this page, oldest first.
    pub refusals: Vec<Refusal>,
    /// Where the next page begins; none after the last.
    pub next: Option<String>,
}

/// An error answer (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of problem; a stable name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The problem in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What exactly is wrong, and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The field of the body that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
