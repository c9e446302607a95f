//! The warehouse of the simulation: keeps the real stock, and sees everything that must not be.
//!
//! It fails before it acted and after, as the real one does, and knows a message that comes again.
//! A delivery of units that are not there, of an order that was never announced or with other
//! content than announced, or a second one under another transaction is a violation.
//!
//! In some runs it answers messages about some orders with an error until it is cured; in others it
//! refuses the deliveries of some orders for good.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::order::{Line, Order};
use crate::outbox::warehouse_client::{Answer, Telling, Warehouse};
use crate::outbox::{Failure, FailureKind, Kind};
use crate::simulation::world::World;

/// Stores of the simulation.
pub(super) const STORES: u32 = 6;
/// Products of the simulation.
pub(super) const PRODUCTS: u32 = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Announced {
    store: Option<u32>,
    lines: Box<[Line]>,
}

#[derive(Default)]
struct Inside {
    on_hand: BTreeMap<(u32, u32), i64>,
    announced: BTreeMap<String, Announced>,
    /// Number and transaction of every delivery.
    delivered: BTreeMap<String, (u64, Option<u64>)>,
}

/// The way in which the warehouse treats chosen orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whim {
    /// As all others.
    None,
    /// Every message about two orders in three is answered with an error, until it is cured.
    Fails,
    /// The delivery of one order in three is refused for good.
    Refuses,
}

/// The one warehouse.
pub(super) struct Hall {
    world: Arc<World>,
    whim: Whim,
    is_cured: AtomicBool,
    inside: Mutex<Inside>,
}

impl Hall {
    pub(super) fn new(world: &Arc<World>) -> Arc<Hall> {
        let mut inside = Inside::default();
        for store in 1..=STORES {
            for product in 1..=PRODUCTS {
                let units = world.dice.between(0, 12) as i64;
                inside.on_hand.insert((store, product), units);
            }
        }
        let whim = match world.dice.between(0, 3) {
            0 => Whim::Fails,
            1 => Whim::Refuses,
            _ => Whim::None,
        };
        world.note(|| format!("the warehouse's whim: {whim:?}"));
        Arc::new(Hall {
            world: Arc::clone(world),
            whim,
            is_cured: AtomicBool::new(false),
            inside: Mutex::new(inside),
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if every message about an order is answered with an error.
    pub(super) fn is_failing(&self, order: &str) -> bool {
        self.whim == Whim::Fails
            && !number_of(order).is_multiple_of(3)
            && !self.is_cured.load(Ordering::Relaxed)
    }

    /// Returns `true` if the delivery of an order is refused for good.
    pub(super) fn is_refused(&self, order: &str) -> bool {
        self.whim == Whim::Refuses && number_of(order).is_multiple_of(3)
    }

    /// Ends the errors. Returns `true` if there were any.
    pub(super) fn cure(&self) -> bool {
        self.is_cured.store(true, Ordering::Relaxed);
        self.whim == Whim::Fails
    }

    /// The whole stock, and up to which delivery it is counted.
    pub(super) fn snapshot(&self) -> (String, u64) {
        let inside = self.inside();
        let mut csv = String::new();
        for ((store, product), units) in &inside.on_hand {
            let _ = writeln!(csv, "{product},{store},{units}");
        }
        (csv, inside.delivered.len() as u64)
    }

    pub(super) fn on_hand(&self, store: u32, product: u32) -> i64 {
        self.inside().on_hand.get(&(store, product)).copied().unwrap_or(0)
    }

    /// The transaction under which an order was delivered.
    pub(super) fn delivered(&self, order: &str) -> Option<Option<u64>> {
        self.inside()
            .delivered
            .get(order)
            .map(|(_, transaction)| *transaction)
    }

    pub(super) fn deliveries(&self) -> usize {
        self.inside().delivered.len()
    }

    fn announce(&self, order: &Order) {
        let new = Announced {
            store: order.store,
            lines: order.lines.clone(),
        };
        let known = self
            .inside()
            .announced
            .entry(order.id.to_string())
            .or_insert_with(|| new.clone())
            .clone();
        if known != new {
            self.world.violated(format!(
                "{} is announced as {new:?}, and was as {known:?}",
                order.id
            ));
        }
    }

    fn deliver(&self, order: &Order) -> u64 {
        let mut wrong = Vec::new();
        let mut inside = self.inside();
        let id = order.id.to_string();
        if let Some((sequence, transaction)) = inside.delivered.get(&id).copied() {
            drop(inside);
            if transaction != order.transaction {
                self.world.violated(format!("{id} is delivered for two payments"));
            }
            return sequence;
        }
        let announced = inside.announced.get(&id);
        if announced.is_none_or(|known| known.store != order.store || known.lines != order.lines) {
            wrong.push(format!("{id} is delivered as it was not announced"));
        }
        for line in &order.lines {
            let units = inside
                .on_hand
                .entry((order.store.unwrap_or(0), line.id))
                .or_default();
            *units -= i64::from(line.quantity);
            if *units < 0 {
                wrong.push(format!("{id} is delivered from units that are not there"));
            }
        }
        let sequence = inside.delivered.len() as u64 + 1;
        inside.delivered.insert(id, (sequence, order.transaction));
        drop(inside);
        wrong.into_iter().for_each(|what| self.world.violated(what));
        sequence
    }

    async fn answer(&self, kind: Kind, order: &Order) -> Answer {
        let dice = &self.world.dice;
        let failed = |reason: &str| Answer::Failed(Failure::new(FailureKind::Unreachable, reason));
        tokio::time::sleep(Duration::from_millis(dice.between(5, 200))).await;
        if dice.between(1, 12) == 1 {
            return failed("504 before it acted");
        }
        if self.is_failing(order.id.as_str()) {
            self.world.count("messages answered with an error");
            return Answer::Failed(Failure::new(FailureKind::Error, "500"));
        }
        if kind == Kind::Deliver && self.is_refused(order.id.as_str()) {
            self.world.count("deliveries refused");
            return Answer::Refused {
                reason: "out of stock".to_owned(),
            };
        }
        let sequence = match kind {
            Kind::Announce => {
                self.announce(order);
                None
            }
            Kind::Deliver => Some(self.deliver(order)),
        };
        self.world
            .note(|| format!("the warehouse takes {} {}", kind.name(), order.id));
        tokio::time::sleep(Duration::from_millis(dice.between(5, 200))).await;
        if dice.between(1, 12) == 1 {
            return failed("504 after it acted");
        }
        Answer::Done { sequence }
    }
}

/// The number of an order's customer.
fn number_of(order: &str) -> u64 {
    order.trim_start_matches('o').parse().unwrap_or(0)
}

impl Warehouse for Hall {
    fn tell<'a>(&'a self, kind: Kind, order: &'a Order) -> Telling<'a> {
        Box::pin(self.answer(kind, order))
    }
}
