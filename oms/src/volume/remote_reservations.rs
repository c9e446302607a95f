//! Reservations in stores of this volume for orders of other volumes. A reservation may stay here
//! after its order has migrated to this volume (see `RemoteReservations::among`).
//!
//! Deliberately absent: rows, and messages between volumes (`remote_stock`).

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::order::{Line, OrderId};
use crate::domain::stock::Reservation;
use crate::volume::remote_stock::{ASK_AFTER, ASK_AFTER_MAX, was_lent};
use crate::volume::state::OrderError;

/// Units of a store of this volume that are reserved for an order of another volume.
#[derive(Debug)]
pub(crate) struct RemoteReservation {
    pub(crate) lines: Box<[Line]>,
    pub(crate) nonce: u64,
    /// The time of the next question to the order's volume: does the order still need the units?
    ask_at: Instant,
    ask_after: Duration,
    /// `true` once the order is known to be durable. The order's volume is then no longer asked.
    is_confirmed: bool,
    /// `true` while a commit that changes the reservation's row is not finished.
    pub(crate) is_changing: bool,
}

impl RemoteReservation {
    /// Creates the unconfirmed reservation from its row. The nonce is 0 if the row has none,
    /// because the volume of the store placed the order itself.
    pub(crate) fn of(reservation: &Reservation) -> RemoteReservation {
        RemoteReservation::new(&reservation.lines, reservation.nonce.unwrap_or(0))
    }

    /// Creates an unconfirmed reservation. The first question about it is due after `ASK_AFTER`.
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

    /// Creates the reservation of an order that is known to be durable.
    pub(crate) fn confirmed(lines: &[Line], nonce: u64) -> RemoteReservation {
        RemoteReservation {
            is_confirmed: true,
            ..RemoteReservation::new(lines, nonce)
        }
    }

    /// Returns the reserved products and quantities.
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Returns `true` if exactly these units are reserved, and not by an order that took lent
    /// units.
    pub(crate) fn has(&self, lines: &[Line]) -> bool {
        *self.lines == *lines && !was_lent(self.nonce)
    }

    /// Makes the next question about the reservation due at once. Has no effect if the order is
    /// known to be durable, because `due` skips such a reservation.
    pub(crate) fn ask_at_once(&mut self) {
        self.ask_at = self.ask_at.min(Instant::now());
    }

    /// Returns `true` if `asked` is the last question about this reservation, and neither the
    /// reservation nor the time of its next question has changed since.
    pub(crate) fn is_asked(&self, asked: &DueReservation) -> bool {
        self.nonce == asked.nonce && self.ask_at == asked.next_question
    }
}

/// Identifies a reservation. The store is part of the key, because an abandoned attempt to place an
/// order may have left a reservation in another store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReservationKey {
    pub(crate) order: OrderId,
    pub(crate) store: u32,
}

/// An unconfirmed reservation about which the order's volume must be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DueReservation {
    pub(crate) order: OrderId,
    pub(crate) store: u32,
    pub(crate) nonce: u64,
    /// The time of the next question about this reservation. A later reservation of the same order
    /// may have the same nonce, but has another time.
    next_question: Instant,
}

/// The reservations for orders of other volumes, by store and order. The store comes first because
/// a store migrates with all its reservations.
#[derive(Debug, Default)]
pub(crate) struct RemoteReservations {
    by_store: BTreeMap<u32, HashMap<OrderId, RemoteReservation>>,
    /// The unconfirmed reservations, and those that were confirmed or removed since the last call
    /// of `due`. A reservation that was replaced has several entries. Most reservations are
    /// confirmed soon, so the list is short, and `due` needs no scan of all reservations. `confirm`
    /// and `remove` leave the entries of a reservation to the next call of `due`, so they need no
    /// search in the list.
    unconfirmed: Vec<(u32, OrderId)>,
}

impl RemoteReservations {
    /// Selects the reservations that another volume requested (with a nonce), and those of orders
    /// for which `is_elsewhere` returns `true`. A requested reservation is selected even if the
    /// slot of its order is here, because the order may not exist.
    pub(crate) fn among(
        reservations: &[Reservation],
        is_elsewhere: impl Fn(&OrderId) -> bool,
    ) -> RemoteReservations {
        let mut selected = RemoteReservations::default();
        for reservation in reservations {
            if reservation.nonce.is_some() || is_elsewhere(&reservation.order) {
                selected.insert(
                    &reservation.order,
                    reservation.store,
                    RemoteReservation::of(reservation),
                );
            }
        }
        selected
    }

    pub(crate) fn get(&self, order: &OrderId, store: u32) -> Option<&RemoteReservation> {
        self.by_store.get(&store)?.get(order)
    }

    pub(crate) fn get_mut(&mut self, order: &OrderId, store: u32) -> Option<&mut RemoteReservation> {
        self.by_store.get_mut(&store)?.get_mut(order)
    }

    /// Returns the first store in which an earlier attempt to place the order has reserved exactly
    /// these units. Searches the stores below `below`, or all stores if `below` is `None`. Skips
    /// stores for which `is_backed` returns `false`. Returns an error while a commit changes the
    /// found reservation.
    pub(crate) fn first_store_of(
        &self,
        order: &OrderId,
        lines: &[Line],
        below: Option<u32>,
        is_backed: impl Fn(u32) -> bool,
    ) -> Result<Option<u32>, OrderError> {
        let stores = self.by_store.range(..below.unwrap_or(u32::MAX));
        let reserved = |(store, known): (&u32, &HashMap<OrderId, RemoteReservation>)| {
            let known = known.get(order).filter(|known| known.has(lines))?;
            is_backed(*store).then_some((*store, known.is_changing))
        };
        match stores.filter_map(reserved).next() {
            Some((_, true)) => Err(OrderError::Moved),
            Some((store, false)) => Ok(Some(store)),
            None => Ok(None),
        }
    }

    /// Records that the order of a reservation is durable, so that the order's volume is not asked
    /// again. Does nothing if the reservation has another nonce or is being changed.
    pub(crate) fn confirm(&mut self, order: &OrderId, store: u32, nonce: u64) {
        let known = self.get_mut(order, store);
        if let Some(known) = known.filter(|known| known.nonce == nonce && !known.is_changing) {
            known.is_confirmed = true;
        }
    }

    /// Confirms a reservation after its order's volume has answered. The answer may be late: since
    /// the question, the reservation may have ended and a repeated request may have made it again.
    /// Such an answer changes nothing, and the question is repeated.
    pub(crate) fn confirm_asked(&mut self, asked: &DueReservation) {
        let known = self.get(&asked.order, asked.store);
        if known.is_some_and(|known| known.is_asked(asked)) {
            self.confirm(&asked.order, asked.store, asked.nonce);
        }
    }

    /// Adds a reservation. Returns the former reservation of the order in that store, if any.
    pub(crate) fn insert(
        &mut self,
        order: &OrderId,
        store: u32,
        reservation: RemoteReservation,
    ) -> Option<RemoteReservation> {
        if !reservation.is_confirmed {
            self.unconfirmed.push((store, order.clone()));
        }
        self.by_store
            .entry(store)
            .or_default()
            .insert(order.clone(), reservation)
    }

    /// Removes a reservation and returns it.
    pub(crate) fn remove(&mut self, order: &OrderId, store: u32) -> Option<RemoteReservation> {
        self.by_store.get_mut(&store)?.remove(order)
    }

    /// Removes and returns the reservation of an order of this volume, so that a step of the order
    /// can change the reservation's row. Returns an error while another commit changes that row.
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

    /// Adds the reservations of `others`, except where this volume has a reservation of that order
    /// in that store.
    pub(crate) fn join(&mut self, others: RemoteReservations) {
        self.unconfirmed.extend(others.unconfirmed);
        for (store, mut others) in others.by_store {
            let here = self.by_store.entry(store).or_default();
            if here.len() < others.len() {
                std::mem::swap(here, &mut others);
                here.extend(others);
            } else {
                for (order, reservation) in others {
                    here.entry(order).or_insert(reservation);
                }
            }
        }
    }

    /// Keeps only the reservations in stores for which `stays` returns `true`.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        self.by_store.retain(|store, _| stays(*store));
        self.unconfirmed.retain(|(store, _)| stays(*store));
    }

    /// Returns the unconfirmed reservations about which the order's volume must be asked now,
    /// sorted. Schedules the next question about each.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<DueReservation> {
        let mut due = Vec::new();
        let by_store = &mut self.by_store;
        self.unconfirmed.retain(|(store, order)| {
            let known = by_store
                .get_mut(store)
                .and_then(|reservations| reservations.get_mut(order));
            let Some(known) = known.filter(|known| !known.is_confirmed) else {
                return false;
            };
            if known.ask_at <= now {
                known.ask_after = (known.ask_after * 2).min(ASK_AFTER_MAX);
                known.ask_at = now + known.ask_after;
                due.push(DueReservation {
                    order: order.clone(),
                    store: *store,
                    nonce: known.nonce,
                    next_question: known.ask_at,
                });
            }
            true
        });
        // Sorted, because a simulation needs the same sequence in each run.
        due.sort_unstable();
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: u32 = 3;

    fn line() -> [Line; 1] {
        [Line { id: 1, quantity: 2 }]
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_known_to_be_durable_is_never_asked_about() {
        let order = OrderId::parse("a").unwrap();
        let mut known = RemoteReservations::default();
        known.insert(&order, STORE, RemoteReservation::confirmed(&line(), 7));
        assert_eq!(known.due(Instant::now() + ASK_AFTER_MAX), []);
    }

    /// The entry of the former reservation leaves the list of unconfirmed ones while the new
    /// reservation is there.
    #[tokio::test(start_paused = true)]
    async fn a_reservation_that_is_restored_is_asked_about_again() {
        let order = OrderId::parse("a").unwrap();
        let mut known = RemoteReservations::default();
        known.insert(&order, STORE, RemoteReservation::new(&line(), 6));
        let before = known.insert(&order, STORE, RemoteReservation::confirmed(&line(), 7));
        assert_eq!(known.due(Instant::now() + ASK_AFTER_MAX), []);
        known.remove(&order, STORE);
        known.insert(&order, STORE, before.unwrap());
        let due = known.due(Instant::now() + ASK_AFTER_MAX);
        assert_eq!(due.iter().map(|asked| asked.nonce).collect::<Vec<_>>(), [6]);
    }
}
