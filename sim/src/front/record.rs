//! The shop front's record of its orders, which the audit compares with the order management and
//! the warehouse.

use crate::workload::{Basket, PlannedOrder};

/// Outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The request was not sent.
    NotSent,
    /// The request was answered with this HTTP status.
    Status(u16),
    /// The connection was refused.
    Refused,
    /// The connection was closed before the whole answer arrived. The request may have been
    /// performed.
    Closed,
    /// The whole answer did not arrive before the deadline. The request may have been performed.
    TimedOut,
    /// The request failed for another reason. The request may have been performed.
    Failed,
}

impl Outcome {
    /// Returns `true` for a status of 2xx. The order management must never lose the effect of such
    /// a request.
    pub fn is_acknowledged(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    /// Returns `true` for a status below 400, which is `ok` in `stats.csv`.
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Status(0..=399))
    }

    /// Returns the status, or the reason for which there is none, as in `stats.csv`.
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

    /// Combines the outcomes of two requests with the same content for one order. Returns the first
    /// acknowledged outcome, if there is one. Otherwise returns the later outcome, unless the later
    /// request was not sent.
    pub(super) fn merged(self, later: Self) -> Self {
        match self.is_acknowledged() || later == Self::NotSent {
            true => self,
            false => later,
        }
    }
}

/// An order of the front, with the outcomes of its requests. If there were several requests of one
/// kind, such as payments, the first acknowledged outcome is kept, otherwise the outcome of the
/// last request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedOrder {
    /// Id of the order.
    pub id: u64,
    /// Lines of the order.
    pub products: Basket,
    /// Transaction id of all payments of the order.
    pub transaction_id: u32,
    /// `true` if a payment was planned for the order; in a replay, `true` if the replayed log has a
    /// payment of the order.
    pub is_paid: bool,
    /// Outcome of the requests that placed the order: acknowledged if one of these requests was
    /// acknowledged.
    pub order: Outcome,
    /// Outcome of the payments: acknowledged if one of the payments was acknowledged, and `NotSent`
    /// if none was sent.
    pub payment: Outcome,
    /// Outcome of the cancellations: acknowledged if one of the cancellations was acknowledged, and
    /// `NotSent` if none was sent.
    pub cancel: Outcome,
    /// `true` if a payment was answered 409 with the problem `refund-wanted`: the answer promises
    /// that the payment is recorded for a refund.
    pub is_refund_promised: bool,
}

impl RecordedOrder {
    /// Returns a planned order with the outcome of its request, and without payment and
    /// cancellation.
    pub fn new(planned: PlannedOrder, order: Outcome) -> Self {
        Self {
            id: planned.id,
            products: planned.products,
            transaction_id: planned.transaction_id,
            is_paid: planned.is_paid,
            order,
            payment: Outcome::NotSent,
            cancel: Outcome::NotSent,
            is_refund_promised: false,
        }
    }
}

/// All orders that the front sent or dropped in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderRecord {
    orders: Vec<RecordedOrder>,
    /// `false` if the record is marked as begun before the order management had the stock of all
    /// stores. Then the audit cannot know which store was the first with an order's units.
    judges_stores: bool,
}

impl OrderRecord {
    /// Returns a record of orders with different ids, given in any sequence. The record is marked
    /// as begun after the order management had the stock of all stores.
    pub fn new(mut orders: Vec<RecordedOrder>) -> Self {
        orders.sort_unstable_by_key(|order| order.id);
        Self {
            orders,
            judges_stores: true,
        }
    }

    /// Returns this record, marked as begun before the order management had the stock of all
    /// stores.
    #[must_use]
    pub fn without_judged_stores(self) -> Self {
        Self {
            judges_stores: false,
            ..self
        }
    }

    /// Returns `false` if the record is marked as begun before the order management had the stock
    /// of all stores.
    pub fn judges_stores(&self) -> bool {
        self.judges_stores
    }

    /// Returns the orders, ordered by id.
    pub fn orders(&self) -> &[RecordedOrder] {
        &self.orders
    }

    /// Returns the recorded order with this id; `None` if the front neither sent nor dropped such
    /// an order.
    pub fn get(&self, id: u64) -> Option<&RecordedOrder> {
        let index = self.orders.binary_search_by_key(&id, |order| order.id).ok()?;
        self.orders.get(index)
    }

    /// Returns the recorded order with this id as a text. `None` if the front neither sent nor
    /// dropped such an order. Ids are compared as texts, because the front never writes leading
    /// zeros: the order "017" of another client is not the order 17 of the front.
    pub fn get_text(&self, id: &str) -> Option<&RecordedOrder> {
        let order = self.get(id.parse().ok()?)?;
        (order.id.to_string() == id).then_some(order)
    }

    /// Returns the number of orders that were sent without any of their planned payments.
    pub fn payments_not_sent(&self) -> u64 {
        let not_sent = self
            .orders
            .iter()
            .filter(|order| order.is_paid && order.order != Outcome::NotSent)
            .filter(|order| order.payment == Outcome::NotSent);
        not_sent.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_payment_stays_acknowledged() {
        let (good, unknown) = (Outcome::Status(200), Outcome::Status(404));
        assert_eq!(Outcome::NotSent.merged(unknown), unknown);
        assert_eq!(unknown.merged(good), good);
        assert_eq!(good.merged(Outcome::TimedOut), good);
        assert_eq!(unknown.merged(Outcome::NotSent), unknown);
    }

    #[test]
    fn ids_are_looked_up_as_texts() {
        let planned = PlannedOrder {
            id: 17,
            products: Basket::new(&[]),
            transaction_id: 5,
            is_paid: true,
            follow_ups: 0,
        };
        let record = OrderRecord::new(vec![RecordedOrder::new(planned, Outcome::Status(200))]);
        assert_eq!(record.get_text("17").map(|order| order.id), Some(17));
        for other in ["017", "+17", "18", "", "x17"] {
            assert_eq!(record.get_text(other), None, "{other:?}");
        }
    }
}
