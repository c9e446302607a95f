//! The front's record of its orders: the truth that the audit compares both sides with.

use crate::workload::{Basket, PlannedOrder};

/// End of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The request was not sent.
    NotSent,
    /// The request was answered with this HTTP status.
    Status(u16),
    /// No server listened: the request was not carried out.
    Refused,
    /// The connection was closed before the answer. The request may have been carried out.
    Closed,
    /// There was no answer in time. The request may have been carried out.
    TimedOut,
    /// The request failed otherwise. It may have been carried out.
    Failed,
}

impl Outcome {
    /// Returns `true` if the request was answered with success: it must never be lost.
    pub fn is_acknowledged(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    /// Returns `true` for a status below 400, which is `ok` in `stats.csv`.
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Status(0..=399))
    }

    /// Returns the status or the reason, as in `stats.csv`.
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

    /// Returns the outcome of two requests with the same meaning: an acknowledgement stays.
    fn merged(self, later: Self) -> Self {
        match self.is_acknowledged() || later == Self::NotSent {
            true => self,
            false => later,
        }
    }
}

/// An order of the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedOrder {
    /// Id.
    pub id: u64,
    /// Content.
    pub products: Basket,
    /// Transaction id of the payments.
    pub transaction_id: u32,
    /// `true` if a payment was planned.
    pub is_paid: bool,
    /// End of the order's request.
    pub order: Outcome,
    /// End of the payments: acknowledged if any of them was.
    pub payment: Outcome,
    /// End of the cancellation.
    pub cancel: Outcome,
}

impl RecordedOrder {
    /// Returns an order as planned, not yet paid, with the end of its request.
    pub fn new(planned: PlannedOrder, order: Outcome) -> Self {
        Self {
            id: planned.id,
            products: planned.products,
            transaction_id: planned.transaction_id,
            is_paid: planned.is_paid,
            order,
            payment: Outcome::NotSent,
            cancel: Outcome::NotSent,
        }
    }

    /// Adds the end of a payment.
    pub(super) fn add_payment(&mut self, outcome: Outcome) {
        self.payment = self.payment.merged(outcome);
    }
}

/// All orders of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderRecord {
    orders: Vec<RecordedOrder>,
    /// `true` if the order management had the stock of all stores before the first order. Otherwise
    /// the audit cannot know which store was the first one.
    judges_stores: bool,
}

impl OrderRecord {
    /// Returns a record of these orders, given in any order; ids must differ.
    pub fn new(mut orders: Vec<RecordedOrder>) -> Self {
        orders.sort_unstable_by_key(|order| order.id);
        Self {
            orders,
            judges_stores: true,
        }
    }

    /// Returns the record of orders that came before the stock of all stores.
    #[must_use]
    pub fn without_judged_stores(self) -> Self {
        Self {
            judges_stores: false,
            ..self
        }
    }

    /// Returns `true` if the order management had the stock of all stores before the first order.
    pub fn judges_stores(&self) -> bool {
        self.judges_stores
    }

    /// Returns the orders by id.
    pub fn orders(&self) -> &[RecordedOrder] {
        &self.orders
    }

    /// Returns the order of an id.
    pub fn get(&self, id: u64) -> Option<&RecordedOrder> {
        let index = self.orders.binary_search_by_key(&id, |order| order.id).ok()?;
        self.orders.get(index)
    }

    /// Returns the number of orders that were sent without their planned payment.
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
}
