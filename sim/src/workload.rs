//! What the shop asks, and when: a pure function of one seed.
//!
//! The whole timeline, payments included, is known before the first request is sent. Nothing in it
//! depends on how the order management answers, so a run can be repeated, and a slow answer cannot
//! slow the load down (open loop).
//!
//! The facts are the original's: 10 parts `GET /aggregate-stats/<1..1000>` to 2 parts order; an
//! order has two products (ids 1 to 1000, quantities 1 to 5); its payment follows 2 to 4 s later in
//! steps of 0.125 s, with a transaction id from 1 to 10,000.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::seed::{Dice, Purpose};
use crate::wire::{NewOrder, Product};

/// Parts of the mix that ask for statistics, and parts that order.
const MIX_STATS: u32 = 10;
const MIX_ORDER: u32 = 2;
/// Units of one product in an order.
const QUANTITY_MAX: u32 = 5;
/// Transaction ids.
const TRANSACTION_MAX: u32 = 10_000;
/// A payment follows after 2 s and 0 to 16 steps of 0.125 s.
const PAYMENT_AFTER_MIN_MS: u32 = 2_000;
const PAYMENT_STEP_MS: u32 = 125;
const PAYMENT_STEPS: u32 = 17;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    /// At equal distances.
    #[default]
    Fixed,
    /// As independent customers do: exponential distances around the same rate.
    Poisson,
}

/// An order that the shop will send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedOrder {
    /// Its id, also the request's.
    pub id: u64,
    /// Two distinct products.
    pub products: [Product; 2],
    /// What its payment will carry.
    pub transaction_id: u32,
}

impl PlannedOrder {
    /// The order as it goes over the wire.
    pub fn to_wire(&self) -> NewOrder {
        NewOrder {
            id: self.id.to_string(),
            products: self.products.to_vec(),
        }
    }
}

/// One request of the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// `GET /aggregate-stats/{product}`.
    Stats {
        /// The request's id.
        id: u64,
        /// The product asked for.
        product: u32,
    },
    /// `POST /order`.
    Order(PlannedOrder),
    /// `POST /order/{order}/payment-callback`.
    Payment {
        /// The order paid for.
        order: u64,
        /// The bank's number.
        transaction_id: u32,
    },
}

/// A request and its intended start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// After the start of the run.
    pub at: Duration,
    /// What is asked.
    pub request: Request,
}

/// Everything that decides a run's requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// The seed.
    pub seed: u64,
    /// Requests a second, payments not counted.
    pub rate: f64,
    /// For how long requests start; payments follow up to 4 s later.
    pub duration: Duration,
    /// How they follow each other.
    pub arrivals: Arrivals,
    /// The id of the first request; each has the next one.
    pub first_id: u64,
    /// Products are drawn from 1 to this.
    pub products: u32,
}

impl Workload {
    /// The timeline, in the order of intended starts.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            workload: *self,
            gaps: Dice::new(self.seed, Purpose::Arrivals),
            requests: Dice::new(self.seed, Purpose::Requests),
            drawn: 0,
            poisson_at_s: 0.0,
            upcoming: None,
            payments: BinaryHeap::new(),
        }
    }

    /// How many request ids the run needs: one for each request that is not a payment.
    pub fn request_count(&self) -> u64 {
        let mut schedule = self.schedule();
        while schedule.draw().is_some() {}
        schedule.drawn
    }
}

/// A workload's timeline, made as it is consumed.
#[derive(Debug, Clone)]
pub struct Schedule {
    workload: Workload,
    gaps: Dice,
    requests: Dice,
    drawn: u64,
    poisson_at_s: f64,
    upcoming: Option<Arrival>,
    /// (due, order, transaction id), the next one first.
    payments: BinaryHeap<Reverse<(Duration, u64, u32)>>,
}

impl Schedule {
    /// The next request that is not a payment; books the payment of an order.
    fn draw(&mut self) -> Option<Arrival> {
        let rate = self.workload.rate;
        let at_s = match self.workload.arrivals {
            // From the count and not the last start: nothing drifts over a long run.
            Arrivals::Fixed => self.drawn as f64 / rate,
            Arrivals::Poisson => {
                self.poisson_at_s += -self.gaps.unit().ln() / rate;
                self.poisson_at_s
            }
        };
        let at = Duration::from_secs_f64(at_s);
        if at >= self.workload.duration {
            return None;
        }
        let id = self.workload.first_id + self.drawn;
        self.drawn += 1;
        let request = if self.requests.below(MIX_STATS + MIX_ORDER) < MIX_STATS {
            Request::Stats {
                id,
                product: self.requests.between(1, self.workload.products),
            }
        } else {
            let (order, payment_after) = plan_order(&mut self.requests, id, self.workload.products);
            self.payments
                .push(Reverse((at + payment_after, id, order.transaction_id)));
            Request::Order(order)
        };
        Some(Arrival { at, request })
    }
}

/// Draws an order's content and how long after it the payment comes.
pub(crate) fn plan_order(dice: &mut Dice, id: u64, products: u32) -> (PlannedOrder, Duration) {
    let first = dice.between(1, products);
    // Of the others, each as likely: the draw skips the first.
    let second = match dice.between(1, products - 1) {
        drawn if drawn >= first => drawn + 1,
        drawn => drawn,
    };
    let products = [first, second].map(|id| Product {
        id,
        quantity: dice.between(1, QUANTITY_MAX),
    });
    let transaction_id = dice.between(1, TRANSACTION_MAX);
    let after_ms = PAYMENT_AFTER_MIN_MS + PAYMENT_STEP_MS * dice.below(PAYMENT_STEPS);
    let order = PlannedOrder {
        id,
        products,
        transaction_id,
    };
    (order, Duration::from_millis(after_ms.into()))
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        if self.upcoming.is_none() {
            self.upcoming = self.draw();
        }
        let payment_due = self.payments.peek().map(|Reverse((due, ..))| *due);
        match (self.upcoming, payment_due) {
            (Some(arrival), due) if due.is_none_or(|due| arrival.at < due) => {
                self.upcoming = None;
                Some(arrival)
            }
            (_, Some(_)) => {
                let Reverse((at, order, transaction_id)) = self.payments.pop()?;
                let request = Request::Payment {
                    order,
                    transaction_id,
                };
                Some(Arrival { at, request })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn workload(arrivals: Arrivals) -> Workload {
        Workload {
            seed: 42,
            rate: 500.0,
            duration: Duration::from_secs(20),
            arrivals,
            first_id: 1001,
            products: 1000,
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_seed_another() {
        for arrivals in [Arrivals::Fixed, Arrivals::Poisson] {
            let one: Vec<_> = workload(arrivals).schedule().collect();
            let two: Vec<_> = workload(arrivals).schedule().collect();
            assert_eq!(one, two);
            let other = Workload {
                seed: 43,
                ..workload(arrivals)
            };
            assert_ne!(one, other.schedule().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_schedule_has_the_originals_mix_and_ranges() {
        let arrivals: Vec<_> = workload(Arrivals::Fixed).schedule().collect();
        assert!(arrivals.is_sorted_by_key(|a| a.at));
        let mut orders = HashMap::new();
        let mut stats = 0;
        let mut payments = 0;
        for arrival in &arrivals {
            match arrival.request {
                Request::Stats { product, .. } => {
                    assert!((1..=1000).contains(&product));
                    stats += 1;
                }
                Request::Order(order) => {
                    let [a, b] = order.products;
                    assert_ne!(a.id, b.id);
                    assert!([a, b].iter().all(|p| (1..=1000).contains(&p.id)));
                    assert!([a, b].iter().all(|p| (1..=5).contains(&p.quantity)));
                    assert!((1..=10_000).contains(&order.transaction_id));
                    assert!(
                        orders
                            .insert(order.id, (arrival.at, order.transaction_id))
                            .is_none()
                    );
                }
                Request::Payment {
                    order,
                    transaction_id,
                } => {
                    let (ordered_at, expected) = orders[&order];
                    assert_eq!(transaction_id, expected);
                    let after_ms = (arrival.at - ordered_at).as_millis() as u32;
                    assert!((2000..=4000).contains(&after_ms) && after_ms.is_multiple_of(125));
                    payments += 1;
                }
            }
        }
        assert_eq!(stats + orders.len(), 10_000);
        assert_eq!(payments, orders.len());
        // 2 in 12 of 10,000, within five standard deviations.
        assert!((1480..1853).contains(&orders.len()), "{}", orders.len());
        assert_eq!(workload(Arrivals::Fixed).request_count(), 10_000);
    }

    #[test]
    fn poisson_arrivals_keep_the_rate_with_uneven_gaps() {
        let starts: Vec<_> = workload(Arrivals::Poisson)
            .schedule()
            .filter(|a| !matches!(a.request, Request::Payment { .. }))
            .map(|a| a.at.as_secs_f64())
            .collect();
        assert!((9_500..10_500).contains(&starts.len()), "{}", starts.len());
        assert_eq!(workload(Arrivals::Poisson).request_count(), starts.len() as u64);
        let short = starts.windows(2).filter(|w| w[1] - w[0] < 0.001).count();
        // An exponential gap is under half its mean in 39 of 100 cases; a fixed one never is.
        assert!((3_600..4_300).contains(&short), "{short}");
    }
}
