//! Messages on the wire, as this side understands them.
//!
//! The simulators know the order management only by its public routes, as a real shop and a real
//! warehouse would. These types are their own and not borrowed from it: if the two drift apart, a
//! run shows it. Reading is lenient (unknown fields are ignored, optional ones may be absent),
//! writing is exact.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One product of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Product {
    /// The product's number, from 1.
    pub id: u32,
    /// Number of units.
    pub quantity: u32,
}

/// The body of `POST /order`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOrder {
    /// The order's id: an integer as text.
    pub id: String,
    /// The lines.
    pub products: Vec<Product>,
}

/// The body of `POST /order/{id}/payment-callback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The bank's number for the payment, 1 to 10,000.
    pub transaction_id: u64,
}

/// State of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Accepted, and no store chosen yet.
    Received,
    /// A store has reserved the units.
    Reserved,
    /// The warehouse prepares it.
    Announced,
    /// Paid.
    Paid,
    /// The warehouse has been asked to deliver.
    Delivering,
    /// The warehouse has delivered.
    Delivered,
    /// No store has the units.
    Rejected,
    /// Cancelled by the customer.
    Cancelled,
    /// Not paid in time.
    Expired,
    /// Refused by the warehouse for good.
    Failed,
    /// Paid, and the money is to go back, because the order will not be delivered.
    RefundWanted,
    /// A state that this program does not know, which the audit reports.
    #[serde(other)]
    Unknown,
}

impl OrderState {
    /// All states, in the order of an order's life.
    pub const ALL: [Self; 11] = [
        Self::Received,
        Self::Reserved,
        Self::Announced,
        Self::Paid,
        Self::Delivering,
        Self::Delivered,
        Self::Rejected,
        Self::Cancelled,
        Self::Expired,
        Self::Failed,
        Self::RefundWanted,
    ];

    /// Returns the name on the wire.
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
            Self::Unknown => "unknown",
        }
    }

    /// Returns `true` while the order may still be delivered, and so must have its units reserved.
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
    /// The lines.
    pub products: Vec<Product>,
    /// The chosen store; `None` before the choice.
    #[serde(default)]
    pub store_id: Option<u32>,
    /// The state of the order.
    pub state: OrderState,
    /// Transaction id of the payment; `None` before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
    /// Transaction ids of payments to be refunded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refund_transaction_ids: Vec<u64>,
    /// Time of creation, unix milliseconds.
    #[serde(default)]
    pub created_at_ms: u64,
    /// Time of the last change, unix milliseconds.
    #[serde(default)]
    pub updated_at_ms: u64,
}

/// A page of `GET /orders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrdersPage {
    /// The orders of this page.
    pub orders: Vec<Order>,
    /// Cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// Units of a store that are reserved for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The order.
    pub order: String,
    /// The store.
    pub store: u32,
    /// The units.
    pub products: Vec<Product>,
}

/// A page of `GET /reservations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationsPage {
    /// The reservations of this page.
    pub reservations: Vec<Reservation>,
    /// Cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// Kind of a message in the outbox.
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

/// State of a message in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageState {
    /// To be sent, or sent again.
    Waiting,
    /// Dead letter: waits for an operator.
    Dead,
}

/// A message that the warehouse has not yet confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The order.
    pub order: String,
    /// The kind of the message.
    pub kind: MessageKind,
    /// The state of the message.
    pub state: MessageState,
    /// Number of tries.
    #[serde(default)]
    pub attempts: u32,
    /// Reason of the last failed try; `None` before one.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// A page of `GET /outbox`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxPage {
    /// The messages of this page.
    pub messages: Vec<Message>,
    /// Cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// The server of a volume, as in `GET /ring`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Owner {
    /// The node's name.
    pub node: String,
    /// The node's address, `HOST:PORT`.
    pub address: String,
}

/// `GET /ring`: the ring, and where the server of each volume answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RingDocument {
    /// The ring.
    #[serde(flatten)]
    pub ring: imt_ring::Ring,
    /// The server of each volume.
    pub owners: BTreeMap<String, Owner>,
}

/// Members of the ring and their slots, as in `GET /health`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingHealth {
    /// Slots by member.
    #[serde(default)]
    pub members: BTreeMap<String, u64>,
}

/// State of the calls to the warehouse, as a node reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarehouseStatus {
    /// The circuit breaker is open, and messages wait.
    Away,
    /// Messages are sent. Words of later versions are read as this one.
    #[default]
    #[serde(other)]
    Ok,
}

/// The part of `GET /health` that a simulation needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The node that answered.
    #[serde(default)]
    pub node: String,
    /// Epoch of its ring.
    #[serde(default)]
    pub epoch: u64,
    /// Orders by state.
    #[serde(default)]
    pub orders: BTreeMap<String, u64>,
    /// Messages that the warehouse has not confirmed, dead ones included.
    #[serde(default)]
    pub outbox: u64,
    /// Dead letters.
    #[serde(default)]
    pub outbox_dead: u64,
    /// Calls to the warehouse in flight.
    #[serde(default)]
    pub outbox_in_flight: u64,
    /// State of the calls to the warehouse.
    #[serde(default)]
    pub warehouse: WarehouseStatus,
    /// Stock snapshots applied.
    #[serde(default)]
    pub stock_snapshots: u64,
    /// Stores with stock.
    #[serde(default)]
    pub stores: u64,
    /// Statistics files applied.
    #[serde(default)]
    pub stat_files: u64,
    /// The ring.
    #[serde(default)]
    pub ring: RingHealth,
    /// Start of the node that answered, unix milliseconds.
    #[serde(default)]
    pub up_since_ms: u64,
    /// Volumes served by the node that answered.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Volumes that are missing or did not answer.
    #[serde(default)]
    pub unreachable: Vec<String>,
}

/// The body of `POST /order/new` and `POST /order/process_delivery` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarehouseOrder {
    /// The order's id.
    pub id: String,
    /// The lines.
    pub products: Vec<Product>,
    /// The store.
    pub store_id: u32,
    /// Transaction id of the payment; on deliveries only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
}

/// `GET /summary` on the warehouse. Counts are those of the ledger, or since the start of the
/// warehouse's process where so marked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarehouseSummary {
    /// Name of the behaviour in force.
    #[serde(default)]
    pub behaviour: String,
    /// Orders taken into preparation.
    pub announced: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Deliveries refused because the store has not the units: attempts to oversell.
    pub refused: u64,
    /// Calls refused because their order or key was used before with another content, since the
    /// start.
    #[serde(default)]
    pub conflicts: u64,
    /// Calls refused because an earlier try was still being carried out, since the start.
    #[serde(default)]
    pub in_progress: u64,
    /// Calls refused because of a malformed body, since the start.
    #[serde(default)]
    pub malformed: u64,
    /// Calls answered 504, carried out or not, since the start.
    pub gateway_timeouts: u64,
    /// Deliveries asked for again after their confirmation, since the start.
    pub duplicates_after_answer: u64,
    /// Stock snapshots taken by the order management, since the start.
    pub snapshots_sent: u64,
    /// Stock snapshots refused by the order management, since the start.
    #[serde(default)]
    pub snapshots_refused: u64,
    /// Statistics files written, since the start.
    pub stat_files_written: u64,
    /// Faults by name, since the start.
    #[serde(default)]
    pub faults: BTreeMap<String, u64>,
    /// Quantities that were filled up.
    #[serde(default)]
    pub restocked: u64,
    /// Sequence of the last delivery.
    pub sequence: u64,
    /// Seed of the stock on the first day.
    #[serde(default)]
    pub seed: u64,
    /// Number of products.
    #[serde(default)]
    pub products: u32,
    /// Number of stores.
    #[serde(default)]
    pub stores: u32,
}

impl WarehouseSummary {
    /// Returns the counts since an earlier summary of the same process.
    pub fn since(&self, before: &Self) -> Self {
        let faults = self.faults.iter().map(|(name, count)| {
            let earlier = before.faults.get(name).copied().unwrap_or_default();
            (name.clone(), count.saturating_sub(earlier))
        });
        Self {
            announced: self.announced.saturating_sub(before.announced),
            delivered: self.delivered.saturating_sub(before.delivered),
            refused: self.refused.saturating_sub(before.refused),
            conflicts: self.conflicts.saturating_sub(before.conflicts),
            in_progress: self.in_progress.saturating_sub(before.in_progress),
            malformed: self.malformed.saturating_sub(before.malformed),
            gateway_timeouts: self.gateway_timeouts.saturating_sub(before.gateway_timeouts),
            duplicates_after_answer: self
                .duplicates_after_answer
                .saturating_sub(before.duplicates_after_answer),
            snapshots_sent: self.snapshots_sent.saturating_sub(before.snapshots_sent),
            snapshots_refused: self.snapshots_refused.saturating_sub(before.snapshots_refused),
            stat_files_written: self.stat_files_written.saturating_sub(before.stat_files_written),
            restocked: self.restocked.saturating_sub(before.restocked),
            faults: faults.collect(),
            behaviour: self.behaviour.clone(),
            ..*self
        }
    }
}

/// A delivery in the warehouse's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The order.
    pub order: String,
    /// The store.
    pub store: u32,
    /// The lines.
    pub products: Vec<Product>,
    /// Transaction id of the payment.
    pub transaction_id: u64,
    /// Number of deliveries of this order; more than one is an error.
    pub count: u32,
    /// Number of the delivery in the ledger.
    pub sequence: u64,
}

/// A page of `GET /ledger` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPage {
    /// The deliveries of this page, by sequence.
    pub deliveries: Vec<Delivery>,
    /// Cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// Units that came back into stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restock {
    /// The store.
    pub store: u32,
    /// The product.
    pub product: u32,
    /// Number of units.
    pub units: u32,
    /// Sequence of the last delivery before the units arrived.
    pub after: u64,
}

/// A page of `GET /restocks` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestocksPage {
    /// The restocked units of this page, oldest first.
    pub restocks: Vec<Restock>,
    /// Cursor of the next page; `None` on the last one.
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
    /// Units asked for.
    pub asked: u32,
    /// Units in stock.
    pub there: u32,
}

/// A page of `GET /refusals` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalsPage {
    /// The refusals of this page, oldest first.
    pub refusals: Vec<Refusal>,
    /// Cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// An error answer (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Kind of the problem, a stable name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The problem in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The problem in detail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The wrong field of the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
