//! The traces of orders in progress. With them, a call to the warehouse belongs to the trace of the
//! latest traced command about its order (place, pay, cancel or retry), usually the command that
//! caused the call. A request that only reads the order does not change its trace.
//!
//! **Invariants**
//! - At most `ORDERS_MAX` orders are kept. A newer order displaces the oldest one.
//! - While no order has a trace, the functions `of` and `forget` only read an atomic counter.
//!
//! Deliberately absent: durability. After a restart or a migration of the order, its calls are no
//! longer part of the trace.

use std::collections::{BTreeMap, HashMap};
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
    traces: HashMap<OrderId, Traced>,
    /// The orders in `traces` from the oldest to the newest, by `Traced::number`.
    arrivals: BTreeMap<u64, OrderId>,
    /// Number of the next order.
    next: u64,
}

struct Traced {
    context: TraceContext,
    number: u64,
}

impl TracedOrders {
    /// Stores the trace of the current task for an order, if the task has a trace. A later request
    /// about the order replaces the trace of an earlier request.
    pub(crate) fn note(&self, order: &OrderId) {
        let Some(context) = trace::current() else {
            return;
        };
        let mut inside = self.inside.lock();
        if let Some(known) = inside.traces.get_mut(order) {
            known.context = context;
            return;
        }
        let number = inside.next;
        inside.next += 1;
        inside.traces.insert(order.clone(), Traced { context, number });
        inside.arrivals.insert(number, order.clone());
        if inside.traces.len() > ORDERS_MAX
            && let Some((_, oldest)) = inside.arrivals.pop_first()
        {
            inside.traces.remove(&oldest);
        }
        self.count.store(inside.traces.len(), Ordering::Relaxed);
    }

    /// Returns the trace of an order. `None` if no trace is stored for the order.
    pub(crate) fn of(&self, order: &OrderId) -> Option<TraceContext> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let inside = self.inside.lock();
        inside.traces.get(order).map(|traced| traced.context)
    }

    /// Removes the trace of an order after the last call to the warehouse about the order.
    pub(crate) fn forget(&self, order: &OrderId) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut inside = self.inside.lock();
        if let Some(Traced { number, .. }) = inside.traces.remove(order) {
            inside.arrivals.remove(&number);
        }
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

    #[tokio::test]
    async fn a_forgotten_order_that_is_noted_again_is_the_newest_and_displaces_no_other() {
        let traced = TracedOrders::default();
        TraceContext::root()
            .scope(async {
                traced.note(&order(1));
                traced.forget(&order(1));
                traced.note(&order(0));
                traced.note(&order(1));
                (2..ORDERS_MAX).for_each(|number| traced.note(&order(number)));
                assert!(traced.of(&order(0)).is_some() && traced.of(&order(1)).is_some());
                for _ in 0..ORDERS_MAX {
                    traced.forget(&order(2));
                    traced.note(&order(2));
                }
                assert!(traced.of(&order(0)).is_some() && traced.of(&order(1)).is_some());
                traced.note(&order(ORDERS_MAX));
                assert!(traced.of(&order(0)).is_none() && traced.of(&order(1)).is_some());
            })
            .await;
    }
}
