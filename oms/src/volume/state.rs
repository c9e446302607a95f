//! The state of one volume in memory, and the steps that change it.
//!
//! A step decides with the rules of `domain::order`. Then it changes the stock in memory and queues
//! the rows, both under the lock of the stock. The caller waits until the rows are durable and then
//! calls `finish`. `finish` updates the outbox and releases units, or reverts the stock if the
//! commit failed.
//!
//! **Invariants**
//! - A step takes units in memory and queues its rows under one lock, so memory and rows change in
//!   the same sequence.
//! - Neither the beginning of a step nor `finish` awaits, so neither is cancelled halfway.
//! - Only the transactor of an order runs its steps, so two steps of one order never run at the
//!   same time.
//! - The lock of the stock is acquired before the lock of the remote reservations, and the lock of
//!   the allotments after both.
//!
//! Deliberately absent: waiting and retrying, which belong to `transactor`.

mod messages;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::allotments::Allotments;
use crate::domain::order::{self, Command, Event, Line, Order, OrderId, Refusal};
use crate::domain::settlement::Settlement;
use crate::domain::stock::{Counting, Found, Stock};
use crate::error::StorageError;
use crate::outbox::{Kind, Message, Outbox, OutboxLimits};
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
pub(crate) use crate::volume::state::messages::wants;
use crate::volume::store_search::ReservedElsewhere;
use crate::volume::traced_orders::TracedOrders;

/// The reason why a request about an order failed or a step was not taken.
#[derive(Clone, Debug, Error)]
pub(crate) enum OrderError {
    /// The order does not exist.
    #[error("there is no such order")]
    Unknown,
    /// The order exists, but it has no message of this kind to retry.
    #[error("the order has no such message")]
    NoMessage,
    /// The rules of orders refuse the request, because of the order's state, its lines or the
    /// number of its payments.
    #[error(transparent)]
    Refused(Refusal),
    /// This volume does not own the order, store or statistics, or refuses the request for now: for
    /// example, because a slot is sealed, because lent units are being recalled, or because
    /// another commit changes the same reservation. The caller must look up the owner again, which
    /// may still be this volume, and repeat the request.
    #[error("the order or store is being moved to another node; retry")]
    Moved,
    /// The node that owns the order or store does not answer, cannot execute the request now, or
    /// answers unexpectedly. At the owner of a store: a borrower uses more units than were lent.
    #[error("{0}")]
    Away(String),
    /// The request cannot be executed now, for example because a queue is full, or the engine does
    /// not answer, so the change may or may not have been made. The caller may retry later.
    #[error("{0}")]
    Busy(&'static str),
    /// Reading or writing the volume failed.
    #[error(transparent)]
    Storage(StorageError),
    /// A step panicked, or the transactor ended without an answer. The order is in its last durable
    /// state.
    #[error("the order could not be processed; it is unchanged")]
    Interrupted,
}

impl From<StorageError> for OrderError {
    fn from(error: StorageError) -> OrderError {
        match error {
            StorageError::Busy => OrderError::Busy("the commit queue is full; retry"),
            StorageError::EngineAway => OrderError::Busy(
                "the engine of the volume does not answer, so the change may or may not have been made; retry",
            ),
            // This server of the volume is closing, the slot is sealed or not in this volume, or
            // another process serves the volume.
            StorageError::Closed | StorageError::Stale => OrderError::Moved,
            error => OrderError::Storage(error),
        }
    }
}

/// The result of a finished step.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The order after the step.
    pub(crate) order: Arc<Order>,
    /// `true` if the step changed nothing, for example because its command was executed before.
    pub(crate) repeated: bool,
}

/// The result of the first part of a step, before its rows are durable.
pub(crate) enum Begun {
    /// The step changes nothing, so no commit is needed.
    Done(Outcome),
    /// The rows are queued. `finish` must be called even if the client has disconnected.
    Pending(Pending),
    /// Nothing was queued, and the search for a store must be repeated. After the other volumes
    /// were asked, other orders took the units of the first store here. So the first suitable store
    /// may now be in another volume.
    SearchAgain(Box<[Line]>),
}

/// The results that other volumes contributed to the placement of an order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RemotePlacement {
    /// `true` if the stock of all other volumes was searched. `false` if there is no other volume.
    pub(crate) were_asked: bool,
    /// First store of this volume that had the units before the other volumes were asked. The other
    /// volumes were asked only for stores with lower numbers. `None` if no store of this volume had
    /// the units.
    pub(crate) asked_below: Option<u32>,
    /// Units in a store of another volume that are reserved or borrowed (see `remote_stock`).
    /// `None` if the search found no store in another volume.
    pub(crate) reserved: Option<ReservedElsewhere>,
}

impl RemotePlacement {
    /// Returns `true` if the answers of the other volumes also hold for the store `here`, because
    /// these volumes were asked for all stores with lower numbers than `here`.
    fn covers(&self, here: Option<u32>) -> bool {
        let is_earlier = |below| here.is_some_and(|here| here <= below);
        self.asked_below.is_none_or(is_earlier)
    }
}

/// A message to the warehouse that a step adds to the outbox.
struct Wanted {
    kind: Kind,
    message: Message,
}

/// A step with queued rows that may not be durable yet.
pub(crate) struct Pending {
    pub(crate) ticket: Ticket,
    order: Arc<Order>,
    units: Units,
    /// `true` if the order takes borrowed units.
    is_lent: bool,
    /// The fence of the order's store when the step began. `None` if the step changes no
    /// reservation in a store of this volume.
    store_fence: Option<Fence>,
    /// The entry of `RemoteReservations` for this order and store, which the step took over.
    replaced: Option<RemoteReservation>,
    answered: Option<Kind>,
    wanted: Option<Wanted>,
    settlement: Option<Settlement>,
}

/// The state of one volume in memory.
pub(crate) struct VolumeState {
    pub(crate) storage: Arc<Volume>,
    /// The slots that the volume owns. Changed only while the stock is locked.
    pub(crate) slots: Arc<Slots>,
    remote: Option<Arc<dyn RemoteVolumes>>,
    stock: Mutex<Stock>,
    outbox: Mutex<Outbox>,
    remote_reservations: Mutex<RemoteReservations>,
    settlements: Mutex<BTreeMap<OrderId, Settlement>>,
    allotments: Mutex<Allotments>,
    /// `true` if units of this volume's stores may be lent.
    lends: AtomicBool,
    /// Notified when a loan was made or changed, or when lent units may have to be recalled.
    pub(crate) lender_called: Notify,
    /// Notified when a borrower's request (`AllotRequest`) may have to be sent to a store's owner.
    pub(crate) borrower_called: Notify,
    /// Notified when the owners of stores have written reservations for orders with borrowed units,
    /// and the rows of these orders in `spent` are removed.
    pub(crate) orders_entered: Notify,
    /// Notified when a settlement may have to be sent, or a question about a remote reservation is
    /// due at once.
    pub(crate) settler_called: Notify,
    /// Notified when a message to the warehouse may be due.
    pub(crate) message_due: Notify,
    pub(crate) clock: Clock,
    /// The copies of the stock that other nodes keep.
    pub(crate) followers: Followers,
    /// For orders in progress, the trace of the latest traced request about the order.
    pub(crate) traced_orders: TracedOrders,
    /// The time at which `monotonic_ms` of this volume is 0.
    began: Instant,
}

impl VolumeState {
    /// Creates the state from the rows of an open volume. `remote` is the client for the other
    /// volumes, or `None` in tests that need no client.
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
        let counting = Counting {
            head: loaded.stock_head,
            overrides: loaded.snapshot.counted_to_overrides(&loaded.stock_head),
        };
        let mut stock = Stock::new(
            loaded.snapshot.into_matrix(&Arc::default()),
            counting,
            &loaded.reservations,
            loaded.deliveries,
        );
        stock.add_loans(loaded.loans, 0);
        let allotments = Allotments::new(slots.volume().clone(), loaded.borrower, loaded.spent);
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
            allotments: Mutex::new(allotments),
            lends: AtomicBool::new(false),
            lender_called: Notify::new(),
            borrower_called: Notify::new(),
            orders_entered: Notify::new(),
            settler_called: Notify::new(),
            message_due: Notify::new(),
            clock,
            followers: Followers::new(),
            traced_orders: TracedOrders::default(),
            began,
        }
    }

    /// Reads the wall clock and the monotonic clock.
    pub(crate) fn now(&self) -> Moment {
        Moment {
            wall_ms: self.clock.now_ms(),
            monotonic_ms: self.began.elapsed().as_millis() as u64,
        }
    }

    /// Locks the stock. The guard is never held across an await.
    pub(crate) fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock()
    }

    /// Locks the outbox. The guard is never held across an await.
    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock()
    }

    /// Locks the reservations for orders of other volumes. If the stock is locked too, the stock
    /// must be locked first.
    pub(crate) fn remote_reservations(&self) -> MutexGuard<'_, RemoteReservations> {
        self.remote_reservations.lock()
    }

    /// Locks the settlements that other volumes have not confirmed.
    pub(crate) fn settlements(&self) -> MutexGuard<'_, BTreeMap<OrderId, Settlement>> {
        self.settlements.lock()
    }

    /// Locks the allotments. No other lock is taken while the guard is held.
    pub(crate) fn allotments(&self) -> MutexGuard<'_, Allotments> {
        self.allotments.lock()
    }

    /// Turns allotments on or off: lending by this volume's stores, and borrowing for its orders.
    /// Behind an engine they stay off.
    pub(crate) fn set_allotments(&self, is_on: bool) {
        let is_on = is_on && !self.storage.is_behind_log();
        self.lends.store(is_on, Ordering::Relaxed);
        self.allotments().set_on(is_on);
    }

    /// Returns `true` if units of this volume's stores may be lent.
    pub(crate) fn lends(&self) -> bool {
        self.lends.load(Ordering::Relaxed)
    }

    /// Returns the client for other volumes, even if there is no other volume now.
    pub(crate) fn remote_client(&self) -> Option<&Arc<dyn RemoteVolumes>> {
        self.remote.as_ref()
    }

    /// Returns the client for other volumes if there is another volume now.
    pub(crate) fn remote(&self) -> Option<&Arc<dyn RemoteVolumes>> {
        self.remote.as_ref().filter(|_| !self.slots.is_alone())
    }

    /// Begins to place a new order: takes its units, unless another volume has reserved them, and
    /// queues its announcement to the warehouse, or rejects the order.
    pub(crate) fn place(
        &self,
        id: &OrderId,
        lines: Box<[Line]>,
        remote: RemotePlacement,
    ) -> Result<Begun, OrderError> {
        if self.outbox().is_full() {
            return Err(OrderError::Busy(
                "too many messages to the warehouse are not confirmed yet",
            ));
        }
        let now_ms = self.clock.now_ms();
        let message = Message::new(now_ms);
        let permit = self.storage.try_permit()?;
        let mut batch = WriteBatch::of_order();
        let (mut store_fence, mut replaced, mut has_units) = (None, None, false);
        let remote_store = remote.reserved.map(|reserved| reserved.store);
        let lent = remote.reserved.filter(|reserved| reserved.is_lent);
        let (order, ticket) = {
            let mut stock = self.stock();
            self.slots.check_order(id)?;
            if !remote.were_asked && self.remote().is_some() {
                // Another volume joined after the search. A store of that volume may have a lower
                // number than the suitable stores here.
                return Err(OrderError::Moved);
            }
            let here = match remote_store {
                None => self.first_store_for(&mut stock, id, &lines)?,
                Some(_) => None,
            };
            if let Some(store) = here
                && self.slots.some_sealed()
            {
                self.slots.check_store(store)?;
            }
            if remote.reserved.is_none() && !remote.covers(here) && !seeded("search-not-repeated") {
                return Ok(Begun::SearchAgain(lines));
            }
            if let Some(store) = here {
                let reserved = self.remote_reservations();
                has_units = reserved.get(id, store).is_some_and(|known| known.has(&lines))
                    && stock.has_reserved(store, &lines);
            }
            if let Some(store) = here
                && !has_units
                && stock.find_free(store, &lines) != Found::Free
            {
                // The store has enough units only with those that are lent to other volumes. The
                // lent units are being recalled, and the caller tries again.
                return Err(OrderError::Moved);
            }
            if let Some(store) = here {
                // An earlier attempt to place the order at another volume may have reserved units
                // here. If they are the same units, the order keeps them. Otherwise the reservation
                // is replaced.
                replaced = self.remote_reservations().take_over(id, store)?;
                if !has_units {
                    stock.reserve_units(store, &lines);
                }
            }
            let store = remote_store.or(here);
            if let Some(lent) = lent {
                let now_ms = self.now().monotonic_ms;
                let mut allotments = self.allotments();
                if !allotments.spend(id, lent.nonce, lent.store, &lines, now_ms) {
                    return Err(OrderError::Moved);
                }
                batch.spend(id, lent.store, &lines, lent.nonce);
            }
            batch.fence(self.slots.fence_of_order(id));
            let order = Order::place(id.clone(), lines, store, now_ms);
            batch.order(&order, None);
            if let Some(store) = store {
                if remote_store.is_none() {
                    let fence = self.slots.fence_of_store(store);
                    store_fence = Some(fence);
                    batch.fence(fence);
                    batch.reserve(&order, store);
                }
                batch.message(id, Kind::Announce, &message);
            }
            (order, permit.send(batch))
        };
        Ok(Begun::Pending(Pending {
            ticket,
            units: match (order.store, remote_store) {
                (Some(_), None) if !has_units => Units::Reserve,
                _ => Units::Unchanged,
            },
            is_lent: lent.is_some(),
            store_fence,
            replaced,
            settlement: None,
            answered: None,
            wanted: order.store.map(|_| Wanted {
                kind: Kind::Announce,
                message,
            }),
            order: Arc::new(order),
        }))
    }

    /// Begins a command on an order. `permit` is `None` for requests that do not wait for room in
    /// the commit queue (see `Ask::waits_for_room`).
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

    /// Returns the command, without its delivery number if the number is larger than any warehouse
    /// can have reached.
    ///
    /// The delivery is recorded even so, as a delivery without a number.
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
        if let Some(wanted) = &step.wanted {
            batch.message(&after.id, wanted.kind, &wanted.message);
        }
        let (mut settlement, mut store_fence, mut replaced) = (None, None, None);
        let ticket = {
            let mut stock = self.stock();
            self.slots.check_order(&after.id)?;
            batch.fence(self.slots.fence_of_order(&after.id));
            let is_here = match after.store {
                Some(store) if !matches!(step.units, Units::Unchanged) => self.slots.check_store(store)?,
                _ => true,
            };
            if !is_here {
                settlement = step.settlement(&after);
            } else if let (Units::Release | Units::Deliver { .. }, Some(store)) = (&step.units, after.store) {
                if self.allotments().is_unsettled(&after.id) {
                    // The order took borrowed units, and the store migrated to this volume before
                    // its former owner had written the order's reservation. So there is no
                    // reservation yet that this step could end.
                    return Err(OrderError::Moved);
                }
                let fence = self.slots.fence_of_store(store);
                store_fence = Some(fence);
                batch.fence(fence);
                // If the order migrated here, its reservation may be a remote one. The step takes
                // it over.
                replaced = self.remote_reservations().take_over(&after.id, store)?;
                batch.unreserve(&after.id, store);
            }
            if let Some(settlement) = &settlement {
                batch.settlement(&after.id, settlement);
            } else if let (Units::Deliver { sequence }, Some(store)) = (&step.units, after.store)
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
                Units::Unchanged
            } else {
                step.units
            },
            is_lent: false,
            store_fence,
            replaced,
            answered: step.answered,
            wanted: step.wanted,
            settlement,
        })
    }

    /// Finishes a step after its commit. If the commit failed, reverts the change of the stock in
    /// memory.
    pub(crate) fn finish(
        &self,
        step: Pending,
        durable: Result<Durable, StorageError>,
    ) -> Result<Outcome, OrderError> {
        let Pending {
            order,
            units,
            is_lent,
            store_fence,
            replaced,
            answered,
            wanted,
            settlement,
            ..
        } = step;
        if is_lent && self.allotments().end_spending(&order.id, durable.is_ok()) {
            self.borrower_called.notify_one();
        }
        if let (Some(store), Some(fence)) = (order.store, store_fence) {
            self.update_units(&order, store, fence, units, replaced, durable.as_ref().ok());
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
            if let Some(wanted) = wanted
                && self.slots.has_order(&order.id)
            {
                wake = outbox.set(order.id.clone(), wanted.kind, &wanted.message, self.now());
            }
        }
        if wake {
            self.message_due.notify_one();
        }
        Ok(Outcome {
            order,
            repeated: false,
        })
    }

    /// Updates the stock in memory after the commit of a step succeeded or failed.
    fn update_units(
        &self,
        order: &Order,
        store: u32,
        fence: Fence,
        units: Units,
        replaced: Option<RemoteReservation>,
        durable: Option<&Durable>,
    ) {
        let mut stock = self.stock();
        // If the fence differs, the store has migrated since the step began, even if it has
        // returned in the meantime. The migration has replaced or removed the store's state in
        // memory, which this step must not change.
        if self.slots.fence_of_store(store) != fence {
            return;
        }
        match (units, durable) {
            (Units::Reserve, Some(_)) => {
                if let Some(reservation) = replaced {
                    stock.release(store, reservation.lines());
                }
            }
            // Released units become available only after the commit. If they became available
            // earlier and the commit failed, they could be sold twice.
            (Units::Release | Units::Deliver { .. }, Some(durable)) => {
                remote_stock::release(&mut stock, &order.id, store, &order.lines, *durable);
            }
            (units, None) => {
                match units {
                    Units::Reserve => stock.release(store, &order.lines),
                    Units::Deliver { .. } => stock.undo_delivery(&order.id),
                    Units::Release | Units::Unchanged => {}
                }
                if let Some(reservation) = replaced {
                    self.remote_reservations().insert(&order.id, store, reservation);
                }
            }
            (Units::Unchanged, Some(_)) => {}
        }
    }
}

/// The effect of a step on the units of an order in its store.
enum Units {
    Unchanged,
    Reserve,
    Release,
    Deliver { sequence: Option<u64> },
}

/// The effects of a step in addition to the change of the order's own row.
struct Step {
    units: Units,
    answered: Option<Kind>,
    wanted: Option<Wanted>,
}

impl Step {
    /// Returns the settlement that the step needs if the order's store is in another volume. `None`
    /// if the step neither releases nor delivers units.
    fn settlement(&self, after: &Order) -> Option<Settlement> {
        let (delivered, sequence) = match self.units {
            Units::Deliver { sequence } => (true, sequence),
            Units::Release => (false, None),
            Units::Unchanged | Units::Reserve => return None,
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
            Some(sequence) => Units::Deliver { sequence },
            None if before.state.holds_reservation() && !after.state.holds_reservation() => Units::Release,
            None => Units::Unchanged,
        };
        let reservations_ended = |kind: &Kind| wants(before.state, *kind) && !wants(after.state, *kind);
        let has_begun = |kind: &Kind| !wants(before.state, *kind) && wants(after.state, *kind);
        Step {
            units,
            answered: Kind::ALL.into_iter().find(reservations_ended),
            wanted: Kind::ALL.into_iter().find(has_begun).map(|kind| Wanted {
                kind,
                message: Message::new(now_ms),
            }),
        }
    }
}
