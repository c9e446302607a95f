//! Collects the outcomes of the shop front's requests by order, for the record of orders.
//!
//! Invariants:
//! - The outcomes of the requests of an order may arrive in any sequence, and several times for one
//!   kind of request. An acknowledged outcome of an order in the record is never lost.

use std::collections::HashMap;

use super::{OrderRecord, Outcome, RecordedOrder};
use crate::workload::PlannedOrder;

/// The orders of a run while the run is not over.
#[derive(Default)]
pub(super) struct OrderBook {
    orders: Vec<RecordedOrder>,
    /// Index of each order in `orders`, by the id of the order.
    places: HashMap<u64, usize>,
    /// Outcomes of payments and cancellations that ended before the request that places their
    /// order, by the id of the order.
    early: HashMap<u64, FollowUps>,
}

/// Outcomes of an order's payments and cancellations.
struct FollowUps {
    payment: Outcome,
    cancel: Outcome,
    is_refund_promised: bool,
}

impl Default for FollowUps {
    fn default() -> Self {
        Self {
            payment: Outcome::NotSent,
            cancel: Outcome::NotSent,
            is_refund_promised: false,
        }
    }
}

impl OrderBook {
    /// Adds the outcome of the request that places an order. In a replay, there can be several such
    /// requests for one order, because the replayed log may contain an order more than once.
    pub(super) fn add_order(&mut self, planned: PlannedOrder, outcome: Outcome) {
        if let Some(known) = self.known(planned.id) {
            known.order = known.order.merged(outcome);
            return;
        }
        let FollowUps {
            payment,
            cancel,
            is_refund_promised,
        } = self.early.remove(&planned.id).unwrap_or_default();
        self.places.insert(planned.id, self.orders.len());
        self.orders.push(RecordedOrder {
            payment,
            cancel,
            is_refund_promised,
            ..RecordedOrder::new(planned, outcome)
        });
    }

    /// Adds the outcome of a payment.
    pub(super) fn add_payment(&mut self, order: u64, outcome: Outcome) {
        let payment = match self.known(order) {
            Some(known) => &mut known.payment,
            None => &mut self.early.entry(order).or_default().payment,
        };
        *payment = payment.merged(outcome);
    }

    /// Records that the answer to a payment promised a refund.
    pub(super) fn add_refund(&mut self, order: u64) {
        match self.known(order) {
            Some(known) => known.is_refund_promised = true,
            None => self.early.entry(order).or_default().is_refund_promised = true,
        }
    }

    /// Adds the outcome of a cancellation.
    pub(super) fn add_cancel(&mut self, order: u64, outcome: Outcome) {
        let cancel = match self.known(order) {
            Some(known) => &mut known.cancel,
            None => &mut self.early.entry(order).or_default().cancel,
        };
        *cancel = cancel.merged(outcome);
    }

    /// Returns the record of all orders. Payments and cancellations are left out if
    /// [`Self::add_order`] was not called for their order, because the lines of such an order are
    /// unknown.
    pub(super) fn into_record(self) -> OrderRecord {
        OrderRecord::new(self.orders)
    }

    fn known(&mut self, order: u64) -> Option<&mut RecordedOrder> {
        let place = *self.places.get(&order)?;
        self.orders.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Product;
    use crate::workload::Basket;

    const GOOD: Outcome = Outcome::Status(200);

    fn planned(id: u64) -> PlannedOrder {
        PlannedOrder {
            id,
            products: Basket::new(&[Product { id: 1, quantity: 1 }]),
            transaction_id: 5,
            is_paid: true,
            follow_ups: 0,
        }
    }

    /// Returns the outcomes of order, payment and cancellation of the order 7.
    fn outcomes(book: OrderBook) -> [Outcome; 3] {
        let record = book.into_record();
        assert_eq!(record.orders().len(), 1);
        let order = record.get(7).unwrap();
        [order.order, order.payment, order.cancel]
    }

    #[test]
    fn requests_that_end_before_their_order_are_recorded() {
        let mut book = OrderBook::default();
        book.add_payment(7, GOOD);
        book.add_payment(7, Outcome::TimedOut);
        book.add_cancel(7, Outcome::Status(409));
        book.add_payment(8, Outcome::Status(404));
        book.add_order(planned(7), GOOD);
        assert_eq!(outcomes(book), [GOOD, GOOD, Outcome::Status(409)]);
    }

    #[test]
    fn a_promised_refund_is_recorded_before_and_after_its_order() {
        for is_early in [true, false] {
            let mut book = OrderBook::default();
            if is_early {
                book.add_refund(7);
            }
            book.add_order(planned(7), Outcome::Status(409));
            assert_eq!(book.orders[0].is_refund_promised, is_early);
            book.add_refund(7);
            book.add_order(planned(7), GOOD);
            assert!(book.into_record().get(7).unwrap().is_refund_promised);
        }
    }

    #[test]
    fn an_order_sent_twice_keeps_every_acknowledged_outcome() {
        for (first, second, expected) in [
            (GOOD, Outcome::TimedOut, GOOD),
            (Outcome::TimedOut, GOOD, GOOD),
            (GOOD, Outcome::NotSent, GOOD),
            (Outcome::NotSent, Outcome::Status(409), Outcome::Status(409)),
        ] {
            let mut book = OrderBook::default();
            book.add_order(planned(7), first);
            book.add_payment(7, GOOD);
            book.add_cancel(7, GOOD);
            book.add_order(planned(7), second);
            book.add_payment(7, Outcome::TimedOut);
            book.add_cancel(7, Outcome::Status(409));
            assert_eq!(outcomes(book), [expected, GOOD, GOOD], "{first:?}, {second:?}");
        }
    }
}
