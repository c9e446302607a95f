//! Messages on the wire, as the simulators understand them.
//!
//! These types are defined here and not imported from the order management, so that a run can
//! reveal an accidental change of the order management's formats. Reading is lenient: unknown
//! fields are ignored, and optional fields may be absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of an order: a product and its quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Product {
    /// The product's number, from 1.
    pub id: u32,
    /// Number of units.
    pub quantity: u32,
}

/// The body of `POST /order`, which places an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOrder {
    /// The order's id. The shop front uses integers as text.
    pub id: String,
    /// The lines of the order.
    pub products: Vec<Product>,
}

/// The body of `POST /order/{id}/payment-callback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The bank's number for the payment. The shop front draws it from 1 to 10,000.
    pub transaction_id: u64,
}

/// State of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// The order is accepted, and no store is chosen yet.
    Received,
    /// A store has reserved the units of the order.
    Reserved,
    /// The warehouse has confirmed that it prepares the order, and the order is not paid yet.
    Announced,
    /// The customer has paid the order before the warehouse confirmed the announcement. The
    /// delivery is not requested yet.
    Paid,
    /// The order is paid and announced. The request to deliver it is in the outbox.
    Delivering,
    /// The warehouse has delivered the order.
    Delivered,
    /// No store had the units of the order, and the order was not paid.
    Rejected,
    /// The customer has cancelled the order before it was paid.
    Cancelled,
    /// The order was not paid in time.
    Expired,
    /// The warehouse has refused the order for good, before the order was paid.
    Failed,
    /// The order is paid and will not be delivered, so the payment must be refunded.
    RefundWanted,
    /// A state that this version of the simulator does not know. The audit reports it.
    #[serde(other)]
    Unknown,
}

impl OrderState {
    /// All known states: first the states of a usual order in sequence, then the others.
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

    /// Returns the name of the state in JSON.
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

    /// Returns `true` if the order may still be delivered. Once the store of such an order is
    /// chosen, its units must be reserved.
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

/// An order, as `GET /order/{id}` and `GET /orders` return it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The order's id.
    pub id: String,
    /// The lines of the order.
    pub products: Vec<Product>,
    /// Number of the chosen store; `None` if no store is chosen.
    #[serde(default)]
    pub store_id: Option<u32>,
    /// The state of the order.
    pub state: OrderState,
    /// Transaction id of the first payment; `None` before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
    /// Transaction ids of the payments that must be refunded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refund_transaction_ids: Vec<u64>,
    /// Time of creation, unix milliseconds.
    #[serde(default)]
    pub created_at_ms: u64,
    /// Time of the last change, unix milliseconds.
    #[serde(default)]
    pub updated_at_ms: u64,
}

impl Order {
    /// Returns `true` if the order was rejected, because no store had its units. A rejected order
    /// that was paid is in the state `RefundWanted`, and has no store.
    pub fn is_rejected(&self) -> bool {
        match self.state {
            OrderState::Rejected => true,
            OrderState::RefundWanted => self.store_id.is_none(),
            _ => false,
        }
    }
}

/// A page of `GET /orders`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrdersPage {
    /// The orders of this page.
    pub orders: Vec<Order>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// Units of a store that are reserved for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Id of the order for which the units are reserved.
    pub order: String,
    /// Number of the store that has the units.
    pub store: u32,
    /// The reserved units of each product.
    pub products: Vec<Product>,
}

/// A page of `GET /reservations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReservationsPage {
    /// The reservations of this page.
    pub reservations: Vec<Reservation>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// Kind of a message in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageKind {
    /// A message that asks the warehouse to prepare the order.
    Announce,
    /// A message that asks the warehouse to deliver the order.
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
    /// The message waits for its first or next try, or a call is in flight.
    Waiting,
    /// The message is a dead letter: it is not sent again until an operator acts.
    Dead,
}

/// A message in the outbox, which the warehouse has not yet confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Id of the order that the message is about.
    pub order: String,
    /// The kind of the message.
    pub kind: MessageKind,
    /// The state of the message.
    pub state: MessageState,
    /// Number of failed attempts to send the message, since it was added or an operator retried it.
    #[serde(default)]
    pub attempts: u32,
    /// Reason of the last failed attempt. Without one, the reason of the open circuit breaker;
    /// `None` if the breaker is closed.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// A page of `GET /outbox`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxPage {
    /// The messages of this page.
    pub messages: Vec<Message>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// The node that serves a volume, as in `GET /ring`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Owner {
    /// The node's name.
    pub node: String,
    /// The node's address, `HOST:PORT`.
    pub address: String,
}

/// The document of `GET /ring`: the ring, and the address of the node that serves each volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RingDocument {
    /// The assignment of slots to volumes.
    #[serde(flatten)]
    pub ring: imt_ring::Ring,
    /// The node that serves each volume, by the volume's name.
    pub owners: BTreeMap<String, Owner>,
}

/// The ring in `GET /health`: its members and their slots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingHealth {
    /// Number of slots of each member, by name.
    #[serde(default)]
    pub members: BTreeMap<String, u64>,
}

/// State of the order management's calls to the warehouse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WarehouseStatus {
    /// The circuit breaker for announcements or for deliveries is open in at least one volume.
    /// There, messages of this kind wait in the outbox, except for probes.
    Away,
    /// No circuit breaker is open. `failing` and unknown words are read as `Ok`, because a run does
    /// not distinguish them.
    #[default]
    #[serde(other)]
    Ok,
}

/// The fields of `GET /health` that a simulation needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Name of the node that answered.
    #[serde(default)]
    pub node: String,
    /// Epoch of the newest ring that the node knows.
    #[serde(default)]
    pub epoch: u64,
    /// Number of orders by state in the volumes that answered, earlier runs included.
    #[serde(default)]
    pub orders: BTreeMap<String, u64>,
    /// Number of messages in the outbox that the warehouse has not confirmed, dead letters
    /// included.
    #[serde(default)]
    pub outbox: u64,
    /// Number of dead letters in the outbox.
    #[serde(default)]
    pub outbox_dead: u64,
    /// Number of calls to the warehouse in flight.
    #[serde(default)]
    pub outbox_in_flight: u64,
    /// State of the calls to the warehouse.
    #[serde(default)]
    pub warehouse: WarehouseStatus,
    /// Number of stock snapshots that the order management has applied.
    #[serde(default)]
    pub stock_snapshots: u64,
    /// Number of stores in the order management's stock.
    #[serde(default)]
    pub stores: u64,
    /// Number of statistics files that the order management has applied.
    #[serde(default)]
    pub stat_files: u64,
    /// Members of the ring and their slots.
    #[serde(default)]
    pub ring: RingHealth,
    /// Start of the node that answered, unix milliseconds; 0 if the answer lacks it.
    #[serde(default)]
    pub up_since_ms: u64,
    /// Names of the volumes that are served by the node that answered.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// Names of the volumes that no node serves, or that did not answer.
    #[serde(default)]
    pub unreachable: Vec<String>,
}

/// The body of `POST /order/new` and `POST /order/process_delivery`, sent to the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarehouseOrder {
    /// The order's id.
    pub id: String,
    /// The lines of the order.
    pub products: Vec<Product>,
    /// Number of the store that has reserved the units.
    pub store_id: u32,
    /// Transaction id of the payment; only in deliveries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<u64>,
}

/// The document of `GET /summary` of the warehouse. A count is that of the whole ledger, unless it
/// is described as a count since the start of the warehouse's process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarehouseSummary {
    /// Name of the warehouse's current behaviour.
    #[serde(default)]
    pub behaviour: String,
    /// Number of orders that the warehouse has accepted for preparation.
    pub announced: u64,
    /// Number of deliveries that the warehouse has made.
    pub delivered: u64,
    /// Number of deliveries that the warehouse refused because the store does not have the units.
    /// Each of them is an attempt of the order management to sell units that do not exist.
    pub refused: u64,
    /// Number of calls that the warehouse refused since its start, because their order or
    /// idempotency key was used before with other content.
    #[serde(default)]
    pub conflicts: u64,
    /// Number of calls that the warehouse refused since its start, because an earlier try was still
    /// in progress.
    #[serde(default)]
    pub in_progress: u64,
    /// Number of calls that the warehouse refused since its start, because their body was
    /// malformed.
    #[serde(default)]
    pub malformed: u64,
    /// Number of calls that the warehouse answered 504 since its start, performed or not.
    pub gateway_timeouts: u64,
    /// Number of delivery calls since the warehouse's start that the warehouse confirmed although
    /// it had already confirmed the same delivery since its start.
    pub duplicates_after_answer: u64,
    /// Number of stock snapshots that the order management accepted since the warehouse's start. A
    /// repetition on purpose is not counted.
    pub snapshots_sent: u64,
    /// Number of stock snapshots that the order management refused since the warehouse's start,
    /// repetitions on purpose included.
    #[serde(default)]
    pub snapshots_refused: u64,
    /// Number of statistics files that the warehouse wrote since its start.
    pub stat_files_written: u64,
    /// Number of deliberate faults of the warehouse since its start, by name.
    #[serde(default)]
    pub faults: BTreeMap<String, u64>,
    /// Number of times that units of a product were added to a store.
    #[serde(default)]
    pub restocked: u64,
    /// Sequence number of the last delivery in the ledger; before the first delivery, the number
    /// with which the ledger began.
    pub sequence: u64,
    /// Seed of the stock with which the warehouse's ledger began.
    #[serde(default)]
    pub seed: u64,
    /// Number of products in the warehouse.
    #[serde(default)]
    pub products: u32,
    /// Number of stores of the warehouse.
    #[serde(default)]
    pub stores: u32,
    /// Maximum number of units of a product in a store ([`StockShape::units`]).
    ///
    /// [`StockShape::units`]: crate::warehouse::StockShape::units
    #[serde(default = "crate::warehouse::stock::units_usual")]
    pub units: u32,
}

impl WarehouseSummary {
    /// Returns the differences of the counts to an earlier summary of the same process. The other
    /// fields, such as the sequence number, are those of `self`.
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
    /// Id of the delivered order.
    pub order: String,
    /// Number of the store from which the warehouse delivered.
    pub store: u32,
    /// The delivered lines.
    pub products: Vec<Product>,
    /// Transaction id of the payment.
    pub transaction_id: u64,
    /// Number of deliveries of this order in the ledger. More than one delivery is an error.
    pub count: u32,
    /// Sequence number of the delivery in the ledger.
    pub sequence: u64,
}

/// A page of `GET /ledger` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPage {
    /// The deliveries of this page, ordered by sequence number.
    pub deliveries: Vec<Delivery>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// Units of a product that were put back into stock in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restock {
    /// Number of the store that received the units.
    pub store: u32,
    /// Number of the product.
    pub product: u32,
    /// Number of units that arrived.
    pub units: u32,
    /// Sequence number of the last delivery before the units arrived; before the first delivery,
    /// the number with which the ledger began.
    pub after: u64,
}

/// A page of `GET /restocks` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestocksPage {
    /// The restocked units of this page, oldest first.
    pub restocks: Vec<Restock>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// A delivery that the warehouse refused because the store does not have the units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Id of the order that was not delivered.
    pub order: String,
    /// Id of the store that has too few units for the order.
    pub store: u32,
    /// Id of the first product of the order with too few units.
    pub product: u32,
    /// Number of units of this product in the lines of the order, up to the first line with too few
    /// units in stock.
    pub asked: u32,
    /// Number of units of this product that were in stock.
    pub there: u32,
}

/// A page of `GET /refusals` on the warehouse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalsPage {
    /// The refusals of this page, oldest first.
    pub refusals: Vec<Refusal>,
    /// Cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// The body of an error answer (`application/problem+json`, RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Kind of the problem: a URI that ends with a stable name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short description of the problem.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// Detailed description of the problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Name of the invalid field in the request's body; `None` if the answer names no field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}
