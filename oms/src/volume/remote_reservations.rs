//! Units of stores here that are set aside for orders elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::order::{Line, OrderId};
use crate::domain::stock::Reservation;
use crate::volume::remote_stock::{ASK_AFTER, ASK_AFTER_MAX};
use crate::volume::state::OrderError;

/// Units of a store here that are set aside for an order elsewhere.
#[derive(Debug)]
pub(crate) struct RemoteReservation {
    pub(crate) lines: Box<[Line]>,
    pub(crate) nonce: u64,
    ask_at: Instant,
    ask_after: Duration,
    /// Its order is durable, so it is not asked after.
    is_confirmed: bool,
    /// A change of its row is on its way to the disk.
    pub(crate) is_changing: bool,
}

impl RemoteReservation {
    /// What a row says is held.
    pub(crate) fn of(reservation: &Reservation) -> RemoteReservation {
        RemoteReservation::new(&reservation.lines, reservation.nonce.unwrap_or(0))
    }

    /// Units held from now on; asked after in a while.
    pub(crate) fn new(lines: &[Line], nonce: u64) -> RemoteReservation {
        RemoteReservation {
            lines: lines.into(),
            nonce,
            ask_at: Instant::now() + ASK_AFTER,
            ask_after: ASK_AFTER,
            is_confirmed: false,
            is_changing: false,
        }
    }

    /// The units.
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }
}

/// What is held for orders elsewhere, by store and order: an order that was given up may have left
/// something in a store beside the one that it has its units in. By store first, since stores come
/// and go with all that is held in them when slots move.
#[derive(Debug, Default)]
pub(crate) struct RemoteReservations {
    held: BTreeMap<u32, HashMap<OrderId, RemoteReservation>>,
    /// Those that are not confirmed, and some that were confirmed or removed since `due` was last
    /// called: few, so that what is due is found without a look at all that is held. Every order of
    /// another volume adds one and confirms it, so neither costs a look-up here.
    unconfirmed: Vec<(u32, OrderId)>,
}

impl RemoteReservations {
    /// What is held for orders elsewhere, of all reservations of a volume, and what was asked for
    /// from elsewhere: an order that is here by now must say whether it keeps that.
    pub(crate) fn among(
        reservations: &[Reservation],
        is_elsewhere: impl Fn(&OrderId) -> bool,
    ) -> RemoteReservations {
        let mut held = RemoteReservations::default();
        for reservation in reservations {
            if reservation.nonce.is_some() || is_elsewhere(&reservation.order) {
                held.insert(
                    &reservation.order,
                    reservation.store,
                    RemoteReservation::of(reservation),
                );
            }
        }
        held
    }

    pub(crate) fn get(&self, order: &OrderId, store: u32) -> Option<&RemoteReservation> {
        self.held.get(&store)?.get(order)
    }

    pub(crate) fn get_mut(&mut self, order: &OrderId, store: u32) -> Option<&mut RemoteReservation> {
        self.held.get_mut(&store)?.get_mut(order)
    }

    /// The order of a reservation is durable, and ends it by itself.
    pub(crate) fn confirm(&mut self, order: &OrderId, store: u32, nonce: u64) {
        let known = self.get_mut(order, store);
        if let Some(known) = known.filter(|known| known.nonce == nonce && !known.is_changing) {
            known.is_confirmed = true;
        }
    }

    /// Holds units; what was held in their place before.
    pub(crate) fn insert(
        &mut self,
        order: &OrderId,
        store: u32,
        held: RemoteReservation,
    ) -> Option<RemoteReservation> {
        self.unconfirmed.push((store, order.clone()));
        self.held.entry(store).or_default().insert(order.clone(), held)
    }

    /// Holds units no longer.
    pub(crate) fn remove(&mut self, order: &OrderId, store: u32) -> Option<RemoteReservation> {
        self.held.get_mut(&store)?.remove(order)
    }

    /// Takes what is held for an order in a store out, for a step of the order that changes its
    /// row; refused while another change of that is on its way.
    pub(crate) fn take_over(
        &mut self,
        order: &OrderId,
        store: u32,
    ) -> Result<Option<RemoteReservation>, OrderError> {
        if self.get(order, store).is_some_and(|known| known.is_changing) {
            return Err(OrderError::Moved);
        }
        Ok(self.remove(order, store))
    }

    /// Holds what others held; what is held here already stays as it is.
    pub(crate) fn join(&mut self, others: RemoteReservations) {
        self.unconfirmed.extend(others.unconfirmed);
        for (store, mut others) in others.held {
            let here = self.held.entry(store).or_default();
            if here.len() < others.len() {
                std::mem::swap(here, &mut others);
                here.extend(others);
            } else {
                for (order, held) in others {
                    here.entry(order).or_insert(held);
                }
            }
        }
    }

    /// Forgets what is held in stores that go.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        self.held.retain(|store, _| stays(*store));
        self.unconfirmed.retain(|(store, _)| stays(*store));
    }

    /// What is to be asked after by now, by order and store, with its nonce.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(OrderId, u32, u64)> {
        let mut due = Vec::new();
        let held = &mut self.held;
        self.unconfirmed.retain(|(store, order)| {
            let known = held.get_mut(store).and_then(|held| held.get_mut(order));
            let Some(known) = known.filter(|known| !known.is_confirmed) else {
                return false;
            };
            if known.ask_at <= now {
                known.ask_after = (known.ask_after * 2).min(ASK_AFTER_MAX);
                known.ask_at = now + known.ask_after;
                due.push((order.clone(), *store, known.nonce));
            }
            true
        });
        // Rows may have been read in any order.
        due.sort_unstable();
        due
    }
}
