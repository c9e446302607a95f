//! What a volume keeps in memory when the ring gives it other slots: what goes is forgotten, what came is taken in.
//!
//! All of it happens under the locks of the rooms, in between two steps of orders, in the time of a few thousand look-ups; the
//! rows lie in the volume already, or are rubbish from here on. The changes that put what came in force are queued under the
//! same locks, so every step that follows is committed after them.

use std::sync::Arc;

use imt_ring::Ring;

use crate::among::Held;
use crate::cluster::{Arrived, Aside};
use crate::desk::Desk;
use crate::error::StoreError;
use crate::stock::Reservation;
use crate::store::{Permit, Ticket};

impl Desk {
    /// Reservations of stores that stay, for orders that go: from now on they are held for another volume. Blocks; to be asked
    /// once the slots that go are sealed, so that they are the same until the ring is followed.
    pub(crate) fn left_behind(&self, ring: &Ring) -> Result<Vec<Reservation>, StoreError> {
        let mut all = self.store.reservations(&self.slots)?;
        let volume = self.slots.volume();
        let is_here = |slot| ring.owner(slot).is_ok_and(|owner| owner == volume);
        all.retain(|held| {
            is_here(crate::slots::of_store(ring, held.store))
                && !is_here(crate::slots::of_order(ring, &held.order))
        });
        Ok(all)
    }

    /// Follows a ring: forgets what goes, and holds on to what it `left_behind`; none if nothing goes.
    pub(crate) fn let_go(&self, ring: &Arc<Ring>, left_behind: Option<&[Reservation]>) {
        let (mut stock, mut held) = (self.stock(), self.held());
        let (mut settlements, mut outbox) = (self.settlements(), self.outbox());
        let slots = &self.slots;
        slots.follow(ring);
        let Some(left_behind) = left_behind else { return };
        stock.depart(|store| slots.has_store(store));
        held.retain(|(_, store), _| slots.has_store(*store));
        for reservation in left_behind {
            let key = (reservation.order.clone(), reservation.store);
            held.entry(key)
                .or_insert_with(|| Held::new(&reservation.lines, 0));
        }
        settlements.retain(|order, _| slots.has_order(order));
        outbox.retain(|order| slots.has_order(order));
    }

    /// Follows a ring: takes in what came of another volume and lies here.
    pub(crate) fn take_in(
        &self,
        ring: &Arc<Ring>,
        arrived: Arrived,
        aside: Aside,
        permit: Permit<'_>,
    ) -> Ticket {
        let (mut stock, mut held) = (self.stock(), self.held());
        let (mut settlements, mut outbox) = (self.settlements(), self.outbox());
        let slots = &self.slots;
        slots.follow(ring);
        let reservations: Vec<Reservation> = arrived.reservations.into_values().collect();
        let deliveries = arrived.deliveries.into_iter();
        stock.arrive(
            &aside.stock.products,
            &aside.stock.columns,
            aside.stock.head,
            &reservations,
            deliveries
                .map(|((order, _), delivery)| (order, delivery))
                .collect(),
        );
        settlements.extend(arrived.settlements);
        // An order that is here now has its units from itself, not held for it; so it is with what came.
        let is_elsewhere = |order: &_| !slots.has_order(order) || settlements.contains_key(order);
        held.retain(|(order, _), _| is_elsewhere(order));
        for reservation in reservations.iter().filter(|held| is_elsewhere(&held.order)) {
            let key = (reservation.order.clone(), reservation.store);
            held.insert(key, Held::new(&reservation.lines, 0));
        }
        for ((order, kind), message) in arrived.messages {
            // The courier is called below, whatever is due.
            let _ = outbox.set(order, kind, message);
        }
        let ticket = permit.send(aside.changes);
        drop((stock, held, settlements, outbox));
        self.courier_called.notify_one();
        self.settler_called.notify_one();
        ticket
    }
}
