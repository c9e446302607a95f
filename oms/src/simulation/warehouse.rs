//! The simulated warehouse, which keeps the real stock and checks every message.
//!
//! Like calls to a real warehouse, some calls fail before they have an effect, and some calls fail
//! after their effect. A repeated message has no second effect.
//!
//! **Violations**
//! - a delivery without units on hand
//! - a delivery of an order that was not announced, or was announced with other content
//! - a second announcement of an order with other content
//! - a second delivery for another transaction
//! - a call to another address than that of the cluster's state, longer than `FOLLOW_TIME_MAX`
//!   (behind an engine `FOLLOW_TIME_MAX_OF_ENGINE`) after the last change of the address
//!
//! In some runs the warehouse answers messages about some orders with an error until `cure` is
//! called. In other runs it permanently refuses the deliveries of some orders.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::domain::order::{Line, Order};
use crate::outbox::warehouse_client::{Answer, SendFuture, Warehouse};
use crate::outbox::{Failure, FailureKind, Kind};
use crate::runtime::simulated::Dice;
use crate::simulation::world::World;

/// Number of stores in the simulation.
pub(super) const STORES: u32 = 6;
/// Number of products in the simulation.
pub(super) const PRODUCTS: u32 = 4;
/// Longest time until a process uses a changed address of the warehouse, in runs without an engine.
/// The process may be stopped for 4 s of this time.
const FOLLOW_TIME_MAX: Duration = Duration::from_secs(10);
/// `FOLLOW_TIME_MAX` of runs behind an engine. A process learns the address from the cluster's
/// state, and reads of the state may fail for several seconds while the engine has a fault.
const FOLLOW_TIME_MAX_OF_ENGINE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Announced {
    store: Option<u32>,
    lines: Box<[Line]>,
}

#[derive(Default)]
struct Inside {
    on_hand: BTreeMap<(u32, u32), i64>,
    announced: BTreeMap<String, Announced>,
    /// Number and transaction of the delivery of each delivered order. Deliveries are numbered in
    /// sequence from 1.
    delivered: BTreeMap<String, (u64, Option<u64>)>,
}

/// The treatment of chosen orders in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    /// All orders are treated alike.
    None,
    /// Every message about two of every three orders is answered with an error, until `cure` is
    /// called.
    Fails,
    /// The delivery of one of every three orders is permanently refused.
    Refuses,
}

/// The warehouse of a run.
pub(super) struct WarehouseModel {
    world: Arc<World>,
    behaviour: Behaviour,
    is_cured: AtomicBool,
    inside: Mutex<Inside>,
}

impl WarehouseModel {
    /// Creates a warehouse with a random behaviour. It has up to 12 units of each product in each
    /// store, or up to 120 if it is busy.
    pub(super) fn new(world: &Arc<World>, is_busy: bool) -> Arc<WarehouseModel> {
        WarehouseModel::with(world, if is_busy { 120 } else { 12 }, |dice| {
            match dice.between(0, 3) {
                0 => Behaviour::Fails,
                1 => Behaviour::Refuses,
                _ => Behaviour::None,
            }
        })
    }

    /// Creates a warehouse that treats all orders alike. Single calls still fail at random.
    pub(super) fn without_faults(world: &Arc<World>) -> Arc<WarehouseModel> {
        WarehouseModel::with(world, 12, |_| Behaviour::None)
    }

    fn with(
        world: &Arc<World>,
        units_max: u64,
        draw: impl FnOnce(&Dice) -> Behaviour,
    ) -> Arc<WarehouseModel> {
        let mut inside = Inside::default();
        for store in 1..=STORES {
            for product in 1..=PRODUCTS {
                let units = world.dice.between(0, units_max) as i64;
                inside.on_hand.insert((store, product), units);
            }
        }
        let behaviour = draw(&world.dice);
        world.note(|| format!("the warehouse behaves: {behaviour:?}"));
        Arc::new(WarehouseModel {
            world: Arc::clone(world),
            behaviour,
            is_cured: AtomicBool::new(false),
            inside: Mutex::new(inside),
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    /// Returns `true` if every message about an order is answered with an error at present.
    pub(super) fn is_failing(&self, order: &str) -> bool {
        self.behaviour == Behaviour::Fails
            && !number_of(order).is_multiple_of(3)
            && !self.is_cured.load(Ordering::Relaxed)
    }

    /// Returns `true` if the delivery of an order is permanently refused.
    pub(super) fn is_refused(&self, order: &str) -> bool {
        self.behaviour == Behaviour::Refuses && number_of(order).is_multiple_of(3)
    }

    /// Ends the errors of `Behaviour::Fails`. Returns `true` if this run had such errors.
    pub(super) fn cure(&self) -> bool {
        self.is_cured.store(true, Ordering::Relaxed);
        self.behaviour == Behaviour::Fails
    }

    /// Returns the whole stock as CSV, and the number of the last delivery that this stock
    /// reflects.
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

    /// Returns the transaction of an order's delivery. `None` if the order was not delivered.
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
            self.world
                .violated(format!("{} is announced as {new:?} after {known:?}", order.id));
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
            wrong.push(format!("{id} is delivered but was not announced like this"));
        }
        for line in &order.lines {
            let units = inside
                .on_hand
                .entry((order.store.unwrap_or(0), line.id))
                .or_default();
            *units -= i64::from(line.quantity);
            if *units < 0 {
                wrong.push(format!("{id} is delivered without units on hand"));
            }
        }
        let sequence = inside.delivered.len() as u64 + 1;
        inside.delivered.insert(id, (sequence, order.transaction));
        drop(inside);
        wrong.into_iter().for_each(|fault| self.world.violated(fault));
        sequence
    }

    async fn answer(&self, kind: Kind, order: &Order) -> Answer {
        let dice = &self.world.dice;
        let failed = |reason: &str| Answer::Failed(Failure::new(FailureKind::Unreachable, reason));
        tokio::time::sleep(Duration::from_millis(dice.between(5, 200))).await;
        if dice.between(1, 12) == 1 {
            return failed("504 before any effect");
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
            .note(|| format!("the warehouse accepts {} {}", kind.name(), order.id));
        tokio::time::sleep(Duration::from_millis(dice.between(5, 200))).await;
        if dice.between(1, 12) == 1 {
            return failed("504 after the effect");
        }
        Answer::Done { sequence }
    }
}

/// Returns the number of the customer in an order id such as `o17`, or 0 for an id of another form.
fn number_of(order: &str) -> u64 {
    order.trim_start_matches('o').parse().unwrap_or(0)
}

/// The warehouse client of one simulated process.
pub(super) struct Caller {
    model: Arc<WarehouseModel>,
    name: &'static str,
    address: Mutex<String>,
}

impl Caller {
    /// Returns a client that has no address of the warehouse yet.
    pub(super) fn new(model: &Arc<WarehouseModel>, name: &'static str) -> Caller {
        Caller {
            model: Arc::clone(model),
            name,
            address: Mutex::default(),
        }
    }

    /// Records a violation if the client calls another address than that of the cluster's state,
    /// although that address has not changed for `FOLLOW_TIME_MAX`, or behind an engine for
    /// `FOLLOW_TIME_MAX_OF_ENGINE`.
    fn check_address(&self) {
        let world = &self.model.world;
        let (known, since) = world.warehouse();
        let called = self.address();
        let longest = if world.has_engine() {
            FOLLOW_TIME_MAX_OF_ENGINE
        } else {
            FOLLOW_TIME_MAX
        };
        if known.is_some_and(|known| known != called) && since.elapsed() > longest {
            world.violated(format!("{} still calls the warehouse at {called:?}", self.name));
        }
    }
}

impl Warehouse for Caller {
    fn send<'a>(&'a self, kind: Kind, order: &'a Order) -> SendFuture<'a> {
        self.check_address();
        Box::pin(self.model.answer(kind, order))
    }

    fn address(&self) -> String {
        self.address.lock().clone()
    }

    fn follow(&self, warehouse: &str) {
        *self.address.lock() = warehouse.to_owned();
    }
}
