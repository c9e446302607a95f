//! The search for the store of a new order: the store with the lowest number, over all volumes,
//! that has all units of the order.
//!
//! An earlier attempt to place an order with the same lines may have reserved its units, for
//! example if the order's slot migrated before the commit. The owner of the store counts these
//! units as available to that order. Copies of the stock show them as reserved. So all owners are
//! asked if a node routes a request again, and before an order is rejected. A request that the
//! client sends again may get a later store.
//!
//! **Invariants**
//! - All answers of a search follow the same ring.
//! - If the first store of all is in the order's volume and other orders take its units during the
//!   search, the search is repeated.
//!
//! Deliberately absent: the reservation of units in a store of another volume (`remote_stock`).

use imt_ring::Epoch;

use crate::domain::order::{Line, OrderId};
use crate::domain::stock::Stock;
use crate::runtime::seeded::seeded;
use crate::volume::remote_stock::{RemoteVolumes, new_nonce};
use crate::volume::state::{OrderError, VolumeState};

/// Maximum number of searches for the store of an order, if other orders take the units after each
/// search. `reserve_elsewhere` and the transactor count separately.
pub(crate) const PLACE_TRIES: u32 = 16;
/// Error message for an order that found no store in `PLACE_TRIES` searches.
pub(crate) const STOCK_CHANGES: &str = "the stock changes faster than a store can be found for the order";

/// A search of all other volumes for the first store with an order's units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search<'a> {
    pub(crate) order: &'a OrderId,
    pub(crate) lines: &'a [Line],
    /// `true` if an earlier try of the same request of the client may have reserved the units.
    pub(crate) is_repeated: bool,
    /// Only stores with lower numbers are searched. `None` for all stores.
    pub(crate) below: Option<u32>,
    /// The epoch of the ring that all answers must follow.
    pub(crate) epoch: Epoch,
}

/// The result of a search for the first store of a new order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Searched {
    /// The first store of this volume that had the units. The other volumes were asked only for
    /// stores with lower numbers. `None` if no store of this volume had the units, so that the
    /// other volumes were asked for all stores, or if nothing was searched.
    pub(crate) here: Option<u32>,
    /// The units for the order in a store of another volume. `None` unless that store is the first
    /// one of all volumes.
    pub(crate) elsewhere: Option<ReservedElsewhere>,
}

/// Units in a store of another volume for an order that is being placed. They are reserved in that
/// volume already, or will be taken from units that this volume has borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReservedElsewhere {
    pub(crate) store: u32,
    pub(crate) nonce: u64,
    /// `true` if the units are to be taken from those that this volume has borrowed.
    pub(crate) is_lent: bool,
}

impl VolumeState {
    /// Searches for the first store for a new order. If this store belongs to another volume,
    /// reserves the units there, unless borrowed units suffice. Returns no store if the order
    /// exists already. `is_repeated` is `true` if an earlier try of the client's request may
    /// have reserved units.
    pub(crate) async fn reserve_elsewhere(
        &self,
        remote: &dyn RemoteVolumes,
        id: &OrderId,
        lines: &[Line],
        is_repeated: bool,
    ) -> Result<Searched, OrderError> {
        for _ in 0..PLACE_TRIES {
            self.slots.check_order(id)?;
            if self.storage.order(id)?.is_some() {
                return Ok(Searched::default());
            }
            let (here, epoch) = self.first_store_and_epoch(id, lines)?;
            let search = Search {
                order: id,
                lines,
                is_repeated,
                below: here,
                epoch,
            };
            let Some(store) = remote.find(search).await? else {
                return Ok(Searched {
                    here,
                    elsewhere: None,
                });
            };
            let is_lent = self.allotments().suffices(store, lines, self.now().monotonic_ms);
            let nonce = new_nonce(is_lent);
            let reserved = ReservedElsewhere {
                store,
                nonce,
                is_lent,
            };
            if is_lent {
                return Ok(Searched {
                    here,
                    elsewhere: Some(reserved),
                });
            }
            if remote.reserve(id, nonce, store, lines).await? {
                let now_ms = self.now().monotonic_ms;
                if self.allotments().note_reserved(store, lines, now_ms) {
                    self.borrower_called.notify_one();
                }
                return Ok(Searched {
                    here,
                    elsewhere: Some(reserved),
                });
            }
        }
        Err(OrderError::Busy(STOCK_CHANGES))
    }

    /// Returns the first store of this volume that has an order's units. A store with a reservation
    /// of these units by an earlier attempt to place the order has them, unless a newer stock lacks
    /// them.
    pub(super) fn first_store_for(
        &self,
        stock: &mut Stock,
        order: &OrderId,
        lines: &[Line],
    ) -> Result<Option<u32>, OrderError> {
        let free = stock.first_store(lines);
        if seeded("own-units-not-counted") {
            return Ok(free);
        }
        let reservations = self.remote_reservations();
        let reserved =
            reservations.first_store_of(order, lines, free, |store| stock.has_reserved(store, lines))?;
        Ok(reserved.or(free))
    }

    /// Returns the first store of this volume that has an order's units, and the epoch of the ring
    /// that assigns the stores.
    fn first_store_and_epoch(
        &self,
        order: &OrderId,
        lines: &[Line],
    ) -> Result<(Option<u32>, Epoch), OrderError> {
        let mut stock = self.stock();
        let store = self.first_store_for(&mut stock, order, lines)?;
        Ok((store, self.slots.ring().epoch()))
    }

    /// Returns the first store of this volume that has an order's units, for a search by the ring
    /// of this epoch. Returns an error if the volume follows another ring, if the slot of the store
    /// is sealed, or while a commit changes the order's reservation in the store.
    pub(crate) fn find_store(
        &self,
        order: &OrderId,
        lines: &[Line],
        epoch: Epoch,
    ) -> Result<Option<u32>, OrderError> {
        let (store, followed) = self.first_store_and_epoch(order, lines)?;
        if followed != epoch && !seeded("epochs-mixed") {
            return Err(OrderError::Moved);
        }
        if let Some(store) = store {
            self.slots.check_store(store)?;
        }
        Ok(store)
    }
}

#[cfg(test)]
mod tests;
