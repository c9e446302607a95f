//! The traces of orders in progress. With them, a call to the warehouse belongs to the trace of the
//! request that caused it.
//!
//! **Invariants**
//! - At most `ORDERS_MAX` orders are kept. A newer order displaces the oldest one.
//! - While no order has a trace, each function only reads an atomic counter.
//!
//! Deliberately absent: durability. After a restart or a migration of the order, its calls are no
//! longer part of the trace.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::domain::order::OrderId;
use crate::runtime::trace::{self, TraceContext};

/// Maximum number of orders with a trace. This number of traces uses some megabytes of memory.
const ORDERS_MAX: usize = 16_384;

/// The traces of orders, by order.
#[derive(Default)]
pub(crate) struct TracedOrders {
    count: AtomicUsize,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    traces: HashMap<OrderId, TraceContext>,
    /// Orders from the oldest to the newest. Some of them may have no trace any more.
    arrivals: VecDeque<OrderId>,
}

impl TracedOrders {
    /// Stores the trace of the current task for an order, if the task has a trace. A later request
    /// about the order replaces the trace of an earlier request.
    pub(crate) fn note(&self, order: &OrderId) {
        let Some(context) = trace::current() else {
            return;
        };
        let mut inside = self.inside.lock();
        if inside.traces.insert(order.clone(), context).is_none() {
            inside.arrivals.push_back(order.clone());
        }
        while inside.arrivals.len() > ORDERS_MAX
            && let Some(oldest) = inside.arrivals.pop_front()
        {
            inside.traces.remove(&oldest);
        }
        self.count.store(inside.traces.len(), Ordering::Relaxed);
    }

    /// Returns the trace of an order.
    pub(crate) fn of(&self, order: &OrderId) -> Option<TraceContext> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let inside = self.inside.lock();
        inside.traces.get(order).copied()
    }

    /// Removes the trace of an order after its last call.
    pub(crate) fn forget(&self, order: &OrderId) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut inside = self.inside.lock();
        // The order's entry in `arrivals` stays until it becomes the oldest entry.
        inside.traces.remove(order);
        self.count.store(inside.traces.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(number: usize) -> OrderId {
        OrderId::parse(&number.to_string()).unwrap()
    }

    #[tokio::test]
    async fn an_order_has_the_trace_of_its_request_until_it_is_forgotten() {
        let traced = TracedOrders::default();
        traced.note(&order(1));
        assert_eq!(traced.of(&order(1)), None, "a request without a trace");
        let context = TraceContext::root();
        context.scope(async { traced.note(&order(1)) }).await;
        assert_eq!(traced.of(&order(1)), Some(context));
        assert_eq!(traced.of(&order(2)), None);
        traced.forget(&order(1));
        assert_eq!(traced.of(&order(1)), None);
    }

    #[tokio::test]
    async fn the_oldest_order_is_displaced() {
        let traced = TracedOrders::default();
        TraceContext::root()
            .scope(async {
                for number in 0..=ORDERS_MAX {
                    traced.note(&order(number));
                }
            })
            .await;
        assert_eq!(traced.of(&order(0)), None);
        assert!(traced.of(&order(1)).is_some() && traced.of(&order(ORDERS_MAX)).is_some());
    }
}
