//! What the front remembers of its orders: the truth that the audit holds both sides against.

use crate::wire::Product;
use crate::workload::PlannedOrder;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was never sent.
    NotSent,
    /// It was answered with this HTTP status.
    Status(u16),
    /// Nobody listened: it was not carried out.
    Refused,
    /// The connection was closed before the answer; it may have been carried out.
    Closed,
    /// There was no answer in time; it may have been carried out.
    TimedOut,
    /// It failed otherwise; it may have been carried out.
    Failed,
}

impl Outcome {
    /// Answered with success: from then on it must never be lost.
    pub fn is_acknowledged(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    /// In the sense of `stats.csv`: answered with a status under 400.
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Status(0..=399))
    }

    /// The status or the reason, as in `stats.csv`.
    pub fn text(self) -> String {
        match self {
            Self::NotSent => "not sent".into(),
            Self::Status(status) => status.to_string(),
            Self::Refused => "connection refused".into(),
            Self::Closed => "connection closed".into(),
            Self::TimedOut => "timed out".into(),
            Self::Failed => "failed".into(),
        }
    }
}

/// An order the front has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedOrder {
    /// Its id.
    pub id: u64,
    /// Its content.
    pub products: [Product; 2],
    /// The payment's content.
    pub transaction_id: u32,
    /// What became of the order.
    pub order: Outcome,
    /// What became of the payment.
    pub payment: Outcome,
}

impl RecordedOrder {
    /// An order as planned, with what became of it; not yet paid.
    pub fn new(planned: PlannedOrder, order: Outcome) -> Self {
        Self {
            id: planned.id,
            products: planned.products,
            transaction_id: planned.transaction_id,
            order,
            payment: Outcome::NotSent,
        }
    }
}

/// All orders of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderRecord {
    orders: Vec<RecordedOrder>,
}

impl OrderRecord {
    /// A record of these orders, in any order; ids must differ.
    pub fn new(mut orders: Vec<RecordedOrder>) -> Self {
        orders.sort_unstable_by_key(|order| order.id);
        Self { orders }
    }

    /// The orders, by id.
    pub fn orders(&self) -> &[RecordedOrder] {
        &self.orders
    }

    /// The order of an id.
    pub fn get(&self, id: u64) -> Option<&RecordedOrder> {
        let index = self.orders.binary_search_by_key(&id, |order| order.id).ok()?;
        self.orders.get(index)
    }

    /// How many payments were never sent.
    pub fn payments_not_sent(&self) -> u64 {
        let not_sent = self
            .orders
            .iter()
            .filter(|order| order.payment == Outcome::NotSent);
        not_sent.count() as u64
    }
}
