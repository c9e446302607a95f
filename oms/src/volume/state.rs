//! What carries out the decisions about orders: the rooms of one volume and the few functions that
//! change them.
//!
//! Each function here begins one atomic step: it decides with `order`, changes the stock in memory
//! and queues the rows under one lock, so that memory and volume change in the same order. Whoever
//! began it waits until the rows are durable and then calls `finish`, which tells the outbox and
//! gives units back; if the rows could not be made durable it sets memory back. Nothing here waits,
//! so a step is never left half begun. Steps are taken by the order's transactor alone, so no two
//! run for one order at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::order::{self, Command, Event, Line, Order, OrderId, Refusal, State};
use crate::domain::settlement::Settlement;
use crate::domain::stock::Stock;
use crate::error::StorageError;
use crate::outbox::{Kind, Message, MessageState, Outbox, OutboxLimits};
use crate::runtime::clock::{Clock, Moment};
use crate::runtime::seeded::seeded;
use crate::storage::fence::Fence;
use crate::storage::group_commit::{Durable, Permit, Ticket};
use crate::storage::owned_slots::Slots;
use crate::storage::volume::{Loaded, Volume};
use crate::storage::write_batch::WriteBatch;
use crate::volume::followers::Followers;
use crate::volume::remote_reservations::{RemoteReservation, RemoteReservations};
use crate::volume::remote_stock::{self, RemoteVolumes};

/// Why a step was not taken.
#[derive(Clone, Debug)]
pub(crate) enum OrderError {
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
    Storage(StorageError),
    /// The transactor ended without an answer; the order is as it last became durable.
    Interrupted,
}

impl From<StorageError> for OrderError {
    fn from(error: StorageError) -> OrderError {
        match error {
            StorageError::Busy => OrderError::Busy("too many changes are waiting to become durable"),
            // The volume changes hands, or the node stops.
            StorageError::Closed | StorageError::Stale => OrderError::Moved,
            error => OrderError::Storage(error),
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

/// A step that was begun.
pub(crate) enum Begun {
    /// Nothing was to be done.
    Done(Outcome),
    /// Its rows are queued: to be waited for and finished, whoever asked for it and whether they
    /// still listen.
    Pending(Pending),
}

/// A step whose rows are queued and not yet known to be durable.
pub(crate) struct Pending {
    pub(crate) ticket: Ticket,
    order: Arc<Order>,
    units: Units,
    /// What the store of these units was to the volume when the step was begun.
    store_fence: Option<Fence>,
    /// What was held in that store for the order, as for one of another volume, until the step.
    replaced: Option<RemoteReservation>,
    answered: Option<Kind>,
    wanted: Option<(Kind, Message)>,
    settlement: Option<Settlement>,
}

/// The rooms of one volume.
pub(crate) struct VolumeState {
    pub(crate) storage: Arc<Volume>,
    /// Which slots are here; changed under the lock of the stock.
    pub(crate) slots: Arc<Slots>,
    remote: Option<Arc<dyn RemoteVolumes>>,
    stock: Mutex<Stock>,
    outbox: Mutex<Outbox>,
    remote_reservations: Mutex<RemoteReservations>,
    settlements: Mutex<BTreeMap<OrderId, Settlement>>,
    /// Told whenever there is something to settle.
    pub(crate) settler_called: Notify,
    /// Told whenever the courier may have something to do.
    pub(crate) courier_called: Notify,
    pub(crate) clock: Clock,
    /// The zero of this volume's monotonic milliseconds.
    /// Copies of the stock that other nodes keep.
    pub(crate) followers: Followers,
    began: Instant,
}

impl VolumeState {
    /// The rooms over an open volume, furnished from it.
    /// `remote` reaches the other volumes; without it there are none.
    pub(crate) fn new(
        storage: Arc<Volume>,
        slots: Arc<Slots>,
        loaded: Loaded,
        limits: OutboxLimits,
        clock: Clock,
        remote: Option<Arc<dyn RemoteVolumes>>,
    ) -> VolumeState {
        let settlements: BTreeMap<OrderId, Settlement> = loaded.settlements.into_iter().collect();
        let remote_reservations = RemoteReservations::among(&loaded.reservations, |order| {
            !slots.has_order(order) || settlements.contains_key(order)
        });
        let counted = (
            loaded.stock_head,
            loaded.snapshot.counted_apart(&loaded.stock_head),
        );
        let stock = Stock::new(
            loaded.snapshot.into_shelves(&Arc::default()),
            counted,
            &loaded.reservations,
            loaded.deliveries,
        );
        let began = Instant::now();
        let opened = Moment {
            wall_ms: clock.now_ms(),
            monotonic_ms: 0,
        };
        let outbox = Outbox::new(limits, &loaded.messages, opened);
        VolumeState {
            storage,
            remote,
            slots,
            stock: Mutex::new(stock),
            outbox: Mutex::new(outbox),
            remote_reservations: Mutex::new(remote_reservations),
            settlements: Mutex::new(settlements),
            settler_called: Notify::new(),
            courier_called: Notify::new(),
            clock,
            followers: Followers::new(),
            began,
        }
    }

    /// Reads both clocks.
    pub(crate) fn now(&self) -> Moment {
        Moment {
            wall_ms: self.clock.now_ms(),
            monotonic_ms: self.began.elapsed().as_millis() as u64,
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
    pub(crate) fn remote_reservations(&self) -> MutexGuard<'_, RemoteReservations> {
        self.remote_reservations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What other volumes must be told.
    pub(crate) fn settlements(&self) -> MutexGuard<'_, BTreeMap<OrderId, Settlement>> {
        self.settlements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to other volumes, whether there are any now or not.
    pub(crate) fn any_far(&self) -> Option<&Arc<dyn RemoteVolumes>> {
        self.remote.as_ref()
    }

    /// The other volumes, if there are any.
    pub(crate) fn remote(&self) -> Option<&Arc<dyn RemoteVolumes>> {
        self.remote.as_ref().filter(|_| !self.slots.is_alone())
    }

    /// Takes a new order: sets its units aside, or rejects it, and has it announced. `there` is the
    /// store of another volume that holds its units already (see `remote_stock`); `looked` says
    /// that other volumes were asked, if there were any.
    pub(crate) fn place(
        &self,
        id: &OrderId,
        lines: Box<[Line]>,
        there: Option<u32>,
        looked: bool,
    ) -> Result<Pending, OrderError> {
        if self.outbox().is_full() {
            return Err(OrderError::Busy("too many messages wait for the warehouse"));
        }
        let now_ms = self.clock.now_ms();
        let message = Message::new(now_ms);
        let permit = self.storage.try_permit()?;
        let mut batch = WriteBatch::of_order();
        let (mut store_fence, mut replaced) = (None, None);
        let (order, ticket) = {
            let mut stock = self.stock();
            self.slots.check_order(id)?;
            if !looked && self.remote().is_some() {
                // Another volume has come meanwhile, and with it stores that may come first.
                return Err(OrderError::Moved);
            }
            if there.is_none()
                && self.slots.some_sealed()
                && let Some(store) = stock.first_store(&lines)
            {
                self.slots.check_store(store)?;
            }
            let here = match there {
                None => stock.first_store(&lines),
                Some(_) => None,
            };
            if let Some(store) = here {
                // What is held for it, when it was to live elsewhere, is replaced.
                replaced = self.remote_reservations().take_over(id, store)?;
                stock.promise(store, &lines);
            }
            let store = there.or(here);
            batch.fence(self.slots.fence_of_order(id));
            let order = Order::place(id.clone(), lines, store, now_ms);
            batch.order(&order, None);
            if let Some(store) = store {
                if there.is_none() {
                    let fence = self.slots.fence_of_store(store);
                    store_fence = Some(fence);
                    batch.fence(fence);
                    batch.reserve(&order, store);
                }
                batch.message(id, Kind::Announce, &message);
            }
            (order, permit.send(batch))
        };
        Ok(Pending {
            ticket,
            units: match (order.store, there) {
                (Some(_), None) => Units::SetAside,
                _ => Units::Stay,
            },
            store_fence,
            replaced,
            settlement: None,
            answered: None,
            wanted: order.store.map(|_| (Kind::Announce, message)),
            order: Arc::new(order),
        })
    }

    /// Carries a command out on an order; `permit` is for those that wait for room (see
    /// `Ask::waits_for_room`).
    pub(crate) fn command(
        &self,
        order: Arc<Order>,
        command: &Command,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        let command = self.with_plausible_number(&order, command);
        let events = order::decide(&order, &command).map_err(OrderError::Refused)?;
        if events.is_empty() {
            return Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            }));
        }
        let permit = match permit {
            Some(permit) => permit,
            None => self.storage.try_permit()?,
        };
        let now_ms = self.clock.now_ms();
        let mut after = Order::clone(&order);
        after.apply(events.clone(), now_ms);
        let step = Step::of(&order, &after, &events, now_ms);
        self.take(permit, step, &order, after).map(Begun::Pending)
    }

    /// Returns the command without the number of a delivery that no warehouse can have reached.
    ///
    /// The delivery itself stays: it counts as one without a number.
    fn with_plausible_number<'a>(&self, order: &Order, command: &'a Command) -> Cow<'a, Command> {
        let Command::ConfirmDelivery {
            sequence: Some(sequence),
        } = command
        else {
            return Cow::Borrowed(command);
        };
        let largest = self.stock().largest_plausible(self.clock.now_ms());
        if *sequence <= largest {
            return Cow::Borrowed(command);
        }
        tracing::warn!(order = %order.id, sequence, largest, "delivery number ignored: X-Stock-Sequence is too far ahead");
        Cow::Owned(Command::ConfirmDelivery { sequence: None })
    }

    fn take(
        &self,
        permit: Permit<'_>,
        step: Step,
        before: &Order,
        after: Order,
    ) -> Result<Pending, OrderError> {
        let mut batch = WriteBatch::of_order();
        batch.order(&after, Some(before));
        if let Some(kind) = step.answered {
            batch.forget_message(&after.id, kind);
        }
        if let Some((kind, message)) = &step.wanted {
            batch.message(&after.id, *kind, message);
        }
        let (mut settlement, mut store_fence, mut replaced) = (None, None, None);
        let ticket = {
            let mut stock = self.stock();
            self.slots.check_order(&after.id)?;
            batch.fence(self.slots.fence_of_order(&after.id));
            let is_here = match after.store {
                Some(store) if !matches!(step.units, Units::Stay) => self.slots.check_store(store)?,
                _ => true,
            };
            if !is_here {
                settlement = step.settlement(&after);
            } else if let (Units::Return | Units::Leave { .. }, Some(store)) = (&step.units, after.store) {
                let fence = self.slots.fence_of_store(store);
                store_fence = Some(fence);
                batch.fence(fence);
                // It came from another volume, and takes what was held for it here.
                replaced = self.remote_reservations().take_over(&after.id, store)?;
                batch.unreserve(&after.id, store);
            }
            if let Some(settlement) = &settlement {
                batch.settlement(&after.id, settlement);
            } else if let (Units::Leave { sequence }, Some(store)) = (&step.units, after.store)
                && let Some(delivery) = stock.deliver(&after.id, store, &after.lines, *sequence)
            {
                batch.delivery(&after.id, delivery);
            }
            permit.send(batch)
        };
        Ok(Pending {
            ticket,
            order: Arc::new(after),
            units: if settlement.is_some() {
                Units::Stay
            } else {
                step.units
            },
            store_fence,
            replaced,
            answered: step.answered,
            wanted: step.wanted,
            settlement,
        })
    }

    /// Ends a step once its rows are durable, or takes it back in memory if they could not be made
    /// so.
    pub(crate) fn finish(
        &self,
        step: Pending,
        durable: Result<Durable, StorageError>,
    ) -> Result<Outcome, OrderError> {
        let Pending {
            order,
            units,
            store_fence,
            replaced,
            answered,
            wanted,
            settlement,
            ..
        } = step;
        if let (Some(store), Some(fence)) = (order.store, store_fence) {
            self.end_units(&order, store, fence, (units, replaced), durable.as_ref().ok());
            self.followers.stock_has_changed();
        }
        if !seeded("not-durable") {
            durable?;
        }
        if let Some(settlement) = settlement {
            let mut settlements = self.settlements();
            if self.slots.has_order(&order.id) {
                settlements.insert(order.id.clone(), settlement);
            }
            drop(settlements);
            self.settler_called.notify_one();
        }
        let mut wake = false;
        if answered.is_some() || wanted.is_some() {
            let mut outbox = self.outbox();
            if let Some(kind) = answered {
                outbox.remove(&order.id, kind);
            }
            if let Some((kind, message)) = wanted
                && self.slots.has_order(&order.id)
            {
                wake = outbox.set(order.id.clone(), kind, &message, self.now());
            }
        }
        if wake {
            self.courier_called.notify_one();
        }
        Ok(Outcome {
            order,
            repeated: false,
        })
    }

    /// Has the stock in memory follow what became of a step's rows in the volume.
    fn end_units(
        &self,
        order: &Order,
        store: u32,
        fence: Fence,
        (units, replaced): (Units, Option<RemoteReservation>),
        durable: Option<&Durable>,
    ) {
        let mut stock = self.stock();
        // A store that has gone to another volume meanwhile took these rows with it, whether or not
        // it came back.
        if self.slots.fence_of_store(store) != fence {
            return;
        }
        match (units, durable) {
            (Units::SetAside, Some(_)) => {
                if let Some(reservation) = replaced {
                    stock.release(store, reservation.lines());
                }
            }
            // Only now may another order have them: had they been given back before, a commit that
            // fails could leave the same units promised twice.
            (Units::Return | Units::Leave { .. }, Some(durable)) => {
                remote_stock::release(&mut stock, &order.id, store, &order.lines, *durable);
            }
            (units, None) => {
                match units {
                    Units::SetAside => stock.release(store, &order.lines),
                    Units::Leave { .. } => stock.undo_delivery(&order.id),
                    Units::Return | Units::Stay => {}
                }
                if let Some(reservation) = replaced {
                    self.remote_reservations().insert(&order.id, store, reservation);
                }
            }
            (Units::Stay, Some(_)) => {}
        }
    }

    /// Writes down how a message of an order fares, if the order still wants it sent.
    pub(crate) fn note_message(
        &self,
        order: Arc<Order>,
        kind: Kind,
        message: &Message,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        if !wants(order.state, kind) {
            return Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            }));
        }
        let permit = match permit {
            Some(permit) => permit,
            None => self.storage.try_permit()?,
        };
        let mut batch = WriteBatch::default();
        batch.message(&order.id, kind, message);
        let ticket = {
            let _stock = self.stock();
            self.slots.check_order(&order.id)?;
            batch.fence(self.slots.fence_of_order(&order.id));
            permit.send(batch)
        };
        Ok(Begun::Pending(Pending {
            ticket,
            order,
            units: Units::Stay,
            store_fence: None,
            replaced: None,
            answered: None,
            wanted: None,
            settlement: None,
        }))
    }

    /// Has a dead message tried again.
    pub(crate) fn retry_message(
        &self,
        order: Arc<Order>,
        kind: Kind,
        permit: Option<Permit<'_>>,
    ) -> Result<Begun, OrderError> {
        let state = self.outbox().get(&order.id, kind).map(|message| message.state);
        match state {
            None => return Err(OrderError::Unknown),
            Some(MessageState::Waiting) => {
                return Ok(Begun::Done(Outcome {
                    order,
                    repeated: true,
                }));
            }
            Some(MessageState::Dead) => {}
        }
        let message = Message::new(self.clock.now_ms());
        match self.note_message(order, kind, &message, permit)? {
            Begun::Done(_) => Err(OrderError::Unknown),
            Begun::Pending(mut step) => {
                step.wanted = Some((kind, message));
                Ok(Begun::Pending(step))
            }
        }
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
    SetAside,
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
    /// What a store of another volume is to be told.
    fn settlement(&self, after: &Order) -> Option<Settlement> {
        let (delivered, sequence) = match self.units {
            Units::Leave { sequence } => (true, sequence),
            Units::Return => (false, None),
            Units::Stay | Units::SetAside => return None,
        };
        Some(Settlement {
            store: after.store?,
            lines: after.lines.clone(),
            delivered,
            sequence,
        })
    }

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
