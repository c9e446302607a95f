//! Planned requests of the shop front and their intended starts: a pure function of the
//! settings and one seed.
//!
//! Invariants:
//! - The whole timeline, payments included, is fixed before the first request is sent. The timeline
//!   does not depend on answers. So a run is repeatable, and a slow answer cannot slow the load
//!   down (open loop).
//! - Requests are ordered by their intended starts. A payment or cancellation comes after its
//!   order, except for a payment that is planned ahead of its order. In a replay, the
//!   recorded starts decide the sequence.
//! - Every statistics request and every order has a new id, from `first_id` on. A replay gives one
//!   id to all requests that placed the same order. Payments and cancellations have no id of their
//!   own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::seed::{Dice, Purpose};

mod customers;
mod profile;
mod replay;

pub(crate) use customers::plan_order;
pub use customers::{BASKET_MAX, Basket, Customers, Habits, PlannedOrder, Popularity, Zipf};
use profile::Moments;
pub use profile::{Arrivals, LoadPhase};
pub use replay::Replay;
use replay::Replayed;

/// One planned request of the shop front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// `GET /aggregate-stats/{product}`.
    Stats {
        /// Id of the request in the log of requests.
        id: u64,
        /// Number of the product.
        product: u32,
    },
    /// `POST /order`.
    Order(PlannedOrder),
    /// `POST /order/{order}/payment-callback`.
    Payment {
        /// Id of the order.
        order: u64,
        /// The bank's number of the payment.
        transaction_id: u32,
        /// `true` for a payment ahead of its order, and for each payment of a replay. Such a
        /// payment does not wait for the answer to its order.
        is_early: bool,
    },
    /// `POST /order/{order}/cancel`.
    Cancel {
        /// Id of the order.
        order: u64,
    },
}

/// A request and its intended start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Intended start, since the start of the sending window.
    pub at: Duration,
    /// The request to send.
    pub request: Request,
}

/// Source of the intended starts. Phases determine the starts of statistics requests and orders. If
/// an order has a payment ahead of it, the phases determine the start of this payment, and the
/// order follows 0.1 s later. All other payments and cancellations start at random times after
/// their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Phases, each with a rate of requests.
    Phases(Vec<LoadPhase>),
    /// The requests of an earlier run, with the same times between them.
    Replay(Replay),
}

impl Load {
    /// Returns a load with one phase of a constant rate.
    pub fn steady(rate: f64, duration: Duration, arrivals: Arrivals) -> Self {
        Self::Phases(vec![LoadPhase::steady("steady", rate, duration, arrivals)])
    }

    /// Returns the length of the sending window, the time in which orders and statistics requests
    /// start. Only an order after an early payment can start up to 0.1 s later.
    pub fn duration(&self) -> Duration {
        match self {
            Self::Phases(phases) => phases.iter().map(|phase| phase.duration).sum(),
            // The window must contain the start of the last request, but does not contain its own
            // end. So it ends 1 ms after this start.
            Self::Replay(replay) => replay.duration() + Duration::from_millis(1),
        }
    }

    /// Returns the first setting that cannot be used, with the reason; `None` if all can be used,
    /// and for a replay.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let Self::Phases(phases) = self else {
            return None;
        };
        let wrong_rate = |rate: f64| !(0.0..=1_000_000.0).contains(&rate);
        for phase in phases {
            if wrong_rate(phase.rate) || wrong_rate(phase.rate_end) || phase.rate + phase.rate_end <= 0.0 {
                let reason = "must be above 0 and at most 1,000,000 requests per second, for example 100";
                return Some(("rate", reason.to_owned()));
            }
            if phase.duration.is_zero() {
                return Some(("duration", "must be above 0, for example 30s".to_owned()));
            }
        }
        let total = self.duration();
        if total.is_zero() || total > Duration::from_secs(30 * 86_400) {
            return Some((
                "duration",
                "must be above 0 and at most 30 days, for example 30s".to_owned(),
            ));
        }
        None
    }
}

/// All settings that determine the requests of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Seed of all random choices.
    pub seed: u64,
    /// Lowest id of the run. The ids of orders and statistics requests begin with it.
    pub first_id: u64,
    /// Source of the intended starts.
    pub load: Load,
    /// Behaviour of the customers.
    pub customers: Customers,
}

impl Workload {
    /// Returns the timeline: all requests, ordered by their intended starts.
    pub fn schedule(&self) -> Schedule {
        let source = match &self.load {
            Load::Phases(phases) => {
                let dice = Dice::new(self.seed, Purpose::Arrivals);
                Source::Moments(Box::new(Moments::new(phases, dice)))
            }
            Load::Replay(replay) => Source::Replay {
                replay: replay.clone(),
                place: 0,
                next_id: self.first_id + replay.orders(),
            },
        };
        Schedule {
            seed: self.seed,
            first_id: self.first_id,
            customers: self.customers.clone(),
            source,
            requests: Dice::new(self.seed, Purpose::Requests),
            habits: Dice::new(self.seed, Purpose::Habits),
            drawn: 0,
            upcoming: None,
            follow_ups: BinaryHeap::new(),
            follow_ups_made: 0,
        }
    }

    /// Returns the number of ids that must be reserved for the run. A replay may use fewer ids.
    pub fn request_count(&self) -> u64 {
        match &self.load {
            Load::Phases(phases) => {
                Moments::new(phases, Dice::new(self.seed, Purpose::Arrivals)).count() as u64
            }
            Load::Replay(replay) => replay.orders() + replay.len() as u64,
        }
    }
}

#[derive(Debug, Clone)]
enum Source {
    Moments(Box<Moments>),
    Replay {
        replay: Replay,
        place: usize,
        /// Id of the next statistics request.
        next_id: u64,
    },
}

/// A planned request that belongs to an order: a payment, a cancellation, or an order that is sent
/// after its payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FollowUp {
    at: Duration,
    /// Unique number that orders follow-ups with equal times.
    number: u64,
    kind: FollowUpKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FollowUpKind(Request);

/// Treats any two kinds as equal. The comparison of two [`FollowUp`]s never reaches the kind,
/// because the preceding field `number` is unique.
impl PartialOrd for FollowUpKind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FollowUpKind {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// The timeline of a workload, generated lazily.
#[derive(Debug, Clone)]
pub struct Schedule {
    seed: u64,
    first_id: u64,
    customers: Customers,
    source: Source,
    requests: Dice,
    habits: Dice,
    drawn: u64,
    upcoming: Option<Arrival>,
    follow_ups: BinaryHeap<Reverse<FollowUp>>,
    follow_ups_made: u64,
}

impl Schedule {
    fn follow_up(&mut self, at: Duration, request: Request) {
        self.follow_ups_made += 1;
        self.follow_ups.push(Reverse(FollowUp {
            at,
            number: self.follow_ups_made,
            kind: FollowUpKind(request),
        }));
    }

    /// Draws the next statistics request or order, and plans the requests that belong to this
    /// order. If the order has an early payment, returns this payment and plans the order. In a
    /// replay, returns the next request of the log, of any kind. Returns `None` after the last one.
    fn draw(&mut self) -> Option<Arrival> {
        let at = match &mut self.source {
            Source::Moments(moments) => moments.next()?,
            Source::Replay { .. } => return self.draw_replayed(),
        };
        let id = self.first_id + self.drawn;
        self.drawn += 1;
        let parts = self.customers.stats_parts + self.customers.order_parts;
        if self.requests.below(parts) < self.customers.stats_parts {
            let product = self.customers.draw_product(&mut self.requests);
            let request = Request::Stats { id, product };
            return Some(Arrival { at, request });
        }
        let (mut order, usual) = plan_order(&mut self.requests, id, &self.customers);
        let course = self.customers.habits.draw(&mut self.habits, usual);
        let transaction_id = order.transaction_id;
        let payment = |is_early| Request::Payment {
            order: id,
            transaction_id,
            is_early,
        };
        let ordered_at = match course.has_early_payment {
            true => at + customers::EARLY_BY,
            false => at,
        };
        for after in [course.payment_after, course.repeated_after]
            .into_iter()
            .flatten()
        {
            self.follow_up(ordered_at + after, payment(false));
            order.follow_ups += 1;
        }
        if let Some(after) = course.cancel_after {
            self.follow_up(ordered_at + after, Request::Cancel { order: id });
            order.follow_ups += 1;
        }
        order.is_paid = course.payment_after.is_some();
        let request = Request::Order(order);
        if course.has_early_payment {
            self.follow_up(ordered_at, request);
            let request = payment(true);
            return Some(Arrival { at, request });
        }
        Some(Arrival { at, request })
    }

    fn draw_replayed(&mut self) -> Option<Arrival> {
        let Source::Replay {
            replay,
            place,
            next_id,
        } = &mut self.source
        else {
            return None;
        };
        let (at, replayed) = replay.get(*place)?;
        *place += 1;
        // The content of each order is drawn from a random stream of its own. So a replayed payment
        // can draw the transaction id of its order again.
        let planned = |number: u64| {
            let mut dice = Dice::numbered(self.seed, Purpose::Requests, number + 1);
            plan_order(&mut dice, self.first_id + number, &self.customers).0
        };
        let request = match replayed {
            Replayed::Stats { product } => {
                *next_id += 1;
                Request::Stats {
                    id: *next_id - 1,
                    product,
                }
            }
            // An order without a recorded payment must not count as one with a payment not sent.
            Replayed::Order { number } => Request::Order(PlannedOrder {
                is_paid: replay.is_paid(number),
                ..planned(number)
            }),
            // A replayed payment is sent at its recorded time, even if its order has no answer yet.
            Replayed::Payment { number } => Request::Payment {
                order: self.first_id + number,
                transaction_id: planned(number).transaction_id,
                is_early: true,
            },
            Replayed::Cancel { number } => Request::Cancel {
                order: self.first_id + number,
            },
        };
        Some(Arrival { at, request })
    }
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        if self.upcoming.is_none() {
            self.upcoming = self.draw();
        }
        let due = self.follow_ups.peek().map(|Reverse(next)| next.at);
        match self.upcoming {
            Some(arrival) if due.is_none_or(|due| arrival.at < due) => {
                self.upcoming = None;
                Some(arrival)
            }
            _ => {
                let Reverse(FollowUp { at, kind, .. }) = self.follow_ups.pop()?;
                let FollowUpKind(request) = kind;
                Some(Arrival { at, request })
            }
        }
    }
}

#[cfg(test)]
#[path = "workload_tests.rs"]
mod tests;
