//! What carries out the decisions about orders: the rooms of one volume and the few functions that change them.
//!
//! Each function here is one atomic step: it decides with `order`, changes the stock in memory and queues the
//! rows under one lock, so that memory and volume change in the same order, then waits until the rows are
//! durable, and only then tells the outbox. If the rows could not be made durable, memory is set back. A step is
//! called by the order's transactor alone, so no two run for one order at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::among::{Far, Held, Settlement, held_for_others};
use crate::changes::Changes;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::order::{self, Command, Event, Line, Order, OrderId, Refusal, State};
use crate::outbox::{Kind, Message, MessageState, Outbox, OutboxLimits};
use crate::slots::Slots;
use crate::stock::Stock;
use crate::store::{Loaded, Permit, Store};

/// Why a step was not taken.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// There is no such order.
    Unknown,
    /// The order's state forbids it.
    Refused(Refusal),
    /// What it is about is not here, or not any more: whoever asked must look where it is now.
    Moved,
    /// Another node has it and does not answer.
    Away(String),
    /// Too much waits already; come back later.
    Busy(&'static str),
    /// The volume could not do its part.
    Store(StoreError),
    /// The transactor ended without an answer; the order is as it last became durable.
    Interrupted,
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        match error {
            StoreError::Busy => Fault::Busy("too many changes are waiting to become durable"),
            // The volume changes hands, or the node stops.
            StoreError::Closed => Fault::Moved,
            error => Fault::Store(error),
        }
    }
}

/// What became of an order.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The order as it now is.
    pub(crate) order: Arc<Order>,
    /// True if the command had been carried out before.
    pub(crate) repeated: bool,
}

/// The rooms of one volume.
pub(crate) struct Desk {
    pub(crate) store: Arc<Store>,
    /// Which slots are here; changed under the lock of the stock.
    pub(crate) slots: Arc<Slots>,
    far: Option<Arc<dyn Far>>,
    stock: Mutex<Stock>,
    outbox: Mutex<Outbox>,
    held: Mutex<HashMap<OrderId, Held>>,
    settlements: Mutex<HashMap<OrderId, Settlement>>,
    /// Told whenever there is something to settle.
    pub(crate) settler_called: Notify,
    /// Told whenever the courier may have something to do.
    pub(crate) courier_called: Notify,
    pub(crate) clock: Clock,
}

impl Desk {
    /// The rooms over an open volume, furnished from it.
    /// `far` reaches the other volumes; without it there are none.
    pub(crate) fn new(
        store: Arc<Store>,
        slots: Arc<Slots>,
        loaded: Loaded,
        limits: OutboxLimits,
        clock: Clock,
        far: Option<Arc<dyn Far>>,
    ) -> Desk {
        let settlements: HashMap<OrderId, Settlement> = loaded.settlements.into_iter().collect();
        let held = held_for_others(&loaded.reservations, |order| {
            !slots.has_order(order) || settlements.contains_key(order)
        });
        let shelves = loaded.sheet.shelves();
        let stock = Stock::new(
            shelves,
            loaded.stock_head,
            &loaded.reservations,
            loaded.deliveries,
        );
        let outbox = Outbox::new(limits, loaded.messages);
        Desk {
            store,
            far: far.filter(|_| !slots.is_alone()),
            slots,
            stock: Mutex::new(stock),
            outbox: Mutex::new(outbox),
            held: Mutex::new(held),
            settlements: Mutex::new(settlements),
            settler_called: Notify::new(),
            courier_called: Notify::new(),
            clock,
        }
    }

    /// The stock. Held for microseconds only, never across an await.
    pub(crate) fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outbox. Held for microseconds only, never across an await.
    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held for orders elsewhere. Taken after the stock, where both are.
    pub(crate) fn held(&self) -> MutexGuard<'_, HashMap<OrderId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What other volumes must be told.
    pub(crate) fn settlements(&self) -> MutexGuard<'_, HashMap<OrderId, Settlement>> {
        self.settlements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other volumes, if there are any.
    pub(crate) fn far(&self) -> Option<&Arc<dyn Far>> {
        self.far.as_ref()
    }

    /// Takes a new order: sets its units aside, or rejects it, and has it announced.
    pub(crate) async fn place(&self, id: &OrderId, lines: Box<[Line]>) -> Result<Outcome, Fault> {
        if self.outbox().is_full() {
            return Err(Fault::Busy("too many messages wait for the warehouse"));
        }
        match &self.far {
            None => self.place_here(id, lines).await,
            Some(far) => self.place_among(far.as_ref(), id, lines).await,
        }
    }

    /// Takes a new order with the units of a store that is here, or rejects it.
    pub(crate) async fn place_here(&self, id: &OrderId, lines: Box<[Line]>) -> Result<Outcome, Fault> {
        let now_ms = self.clock.now_ms();
        let message = Message::new(now_ms);
        let permit = self.store.try_permit()?;
        let (order, ticket) = {
            let mut stock = self.stock();
            self.slots.check_order(id)?;
            if self.slots.some_sealed()
                && let Some(store) = stock.first_store(&lines)
            {
                self.slots.check_store(store)?;
            }
            let store = stock.reserve(&lines);
            let order = Order::place(id.clone(), lines, store, now_ms);
            let mut changes = Changes::default();
            changes.order(&order, None);
            if let Some(store) = store {
                changes.reserve(&order, store);
                changes.message(id, Kind::Announce, &message);
            }
            (order, permit.send(changes))
        };
        if let Err(error) = ticket.durable().await {
            if let Some(store) = order.store {
                self.stock().release(store, &order.lines);
            }
            return Err(error.into());
        }
        if order.store.is_some() {
            self.outbox().set(id.clone(), Kind::Announce, message);
            self.courier_called.notify_one();
        }
        Ok(Outcome {
            order: Arc::new(order),
            repeated: false,
        })
    }

    /// Carries a command out on an order.
    pub(crate) async fn command(&self, order: Arc<Order>, command: &Command) -> Result<Outcome, Fault> {
        let events = order::decide(&order, command).map_err(Fault::Refused)?;
        if events.is_empty() {
            return Ok(Outcome {
                order,
                repeated: true,
            });
        }
        // What the public asks may be turned away; what the warehouse answered is waited for.
        let permit = match command {
            Command::Pay { .. } | Command::Cancel => self.store.try_permit()?,
            _ => self.store.permit().await?,
        };
        let now_ms = self.clock.now_ms();
        let mut after = Order::clone(&order);
        after.apply(events.clone(), now_ms);
        let step = Step::of(&order, &after, &events, now_ms);
        self.take(permit, step, &order, &after).await?;
        Ok(Outcome {
            order: Arc::new(after),
            repeated: false,
        })
    }

    async fn take(&self, permit: Permit<'_>, step: Step, before: &Order, after: &Order) -> Result<(), Fault> {
        let mut changes = Changes::default();
        changes.order(after, Some(before.state));
        if let Some(kind) = step.answered {
            changes.forget_message(&after.id, kind);
        }
        if let Some((kind, message)) = &step.wanted {
            changes.message(&after.id, *kind, message);
        }
        let mut settlement = None;
        let ticket = {
            let mut stock = self.stock();
            self.slots.check_order(&after.id)?;
            let ends = !matches!(step.units, Units::Stay);
            let is_here = match after.store {
                Some(store) if ends => self.slots.check_store(store)?,
                _ => true,
            };
            match (&step.units, after.store) {
                (Units::Leave { .. } | Units::Return, Some(store)) if !is_here => {
                    let sequence = match step.units {
                        Units::Leave { sequence } => Some(sequence),
                        _ => None,
                    };
                    let what = settlement.insert(Settlement {
                        store,
                        lines: after.lines.clone(),
                        delivered: sequence.is_some(),
                        sequence: sequence.flatten(),
                    });
                    changes.settlement(&after.id, what);
                }
                (Units::Leave { sequence }, Some(store)) => {
                    changes.unreserve(&after.id);
                    if let Some(delivery) = stock.deliver(&after.id, store, &after.lines, *sequence) {
                        changes.delivery(&after.id, delivery);
                    }
                }
                (Units::Return, Some(store)) => {
                    changes.unreserve(&after.id);
                    stock.release(store, &after.lines);
                }
                _ => {}
            }
            permit.send(changes)
        };
        // Units given back in memory can be promised to another order before this is durable; that order's rows are
        // committed after these, so it never becomes durable without them. If these fail, memory keeps what
        // it has until the volume is opened again: it takes no more commits after a failed one.
        ticket.durable().await?;
        if let Some(settlement) = settlement {
            self.settlements().insert(after.id.clone(), settlement);
            self.settler_called.notify_one();
        }
        let mut outbox = self.outbox();
        if let Some(kind) = step.answered {
            outbox.remove(&after.id, kind);
        }
        if let Some((kind, message)) = step.wanted {
            outbox.set(after.id.clone(), kind, message);
            drop(outbox);
            self.courier_called.notify_one();
        }
        Ok(())
    }

    /// Writes down how a message of an order fares, if the order still wants it sent.
    pub(crate) async fn note_message(
        &self,
        order: &Order,
        kind: Kind,
        message: &Message,
    ) -> Result<bool, Fault> {
        if !wants(order.state, kind) {
            return Ok(false);
        }
        let permit = self.store.permit().await?;
        let ticket = {
            let _stock = self.stock();
            self.slots.check_order(&order.id)?;
            let mut changes = Changes::default();
            changes.message(&order.id, kind, message);
            permit.send(changes)
        };
        ticket.durable().await?;
        Ok(true)
    }

    /// Has a dead message tried again.
    pub(crate) async fn retry_message(&self, order: &Order, kind: Kind) -> Result<(), Fault> {
        let state = self.outbox().get(&order.id, kind).map(|message| message.state);
        match state {
            None => return Err(Fault::Unknown),
            Some(MessageState::Waiting) => return Ok(()),
            Some(MessageState::Dead) => {}
        }
        let message = Message::new(self.clock.now_ms());
        if !self.note_message(order, kind, &message).await? {
            return Err(Fault::Unknown);
        }
        self.outbox().set(order.id.clone(), kind, message);
        self.courier_called.notify_one();
        Ok(())
    }
}

/// True if an order in this state has a message of that kind to send.
pub(crate) fn wants(state: State, kind: Kind) -> bool {
    match kind {
        Kind::Announce => matches!(state, State::Reserved | State::Paid),
        Kind::Deliver => state == State::Delivering,
    }
}

/// What becomes of an order's units.
enum Units {
    Stay,
    Return,
    Leave { sequence: Option<u64> },
}

/// What events ask for beside the order's own row.
struct Step {
    units: Units,
    answered: Option<Kind>,
    wanted: Option<(Kind, Message)>,
}

impl Step {
    fn of(before: &Order, after: &Order, events: &[Event], now_ms: u64) -> Step {
        let delivered = events.iter().find_map(|event| match event {
            Event::Delivered { sequence } => Some(*sequence),
            _ => None,
        });
        let units = match delivered {
            Some(sequence) => Units::Leave { sequence },
            None if before.state.holds_reservation() && !after.state.holds_reservation() => Units::Return,
            None => Units::Stay,
        };
        let has_ended = |kind: &Kind| wants(before.state, *kind) && !wants(after.state, *kind);
        let has_begun = |kind: &Kind| !wants(before.state, *kind) && wants(after.state, *kind);
        Step {
            units,
            answered: Kind::ALL.into_iter().find(has_ended),
            wanted: Kind::ALL
                .into_iter()
                .find(has_begun)
                .map(|kind| (kind, Message::new(now_ms))),
        }
    }
}
