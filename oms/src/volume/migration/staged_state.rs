//! The state in memory of incoming slots, built page by page during the copy.
//!
//! **Invariants**
//! - Work that grows with the number of open orders is done here, before activation. Messages are
//!   parked in the outbox (stored there, but not sent), and reserved units are summed by store.
//! - No request reads this state before activation. Activation moves its maps into the state of the
//!   volume, in a time that hardly grows with the open orders.
//!
//! Deliberately absent: rows of stock, which are in `staged_stock`.

use std::collections::BTreeMap;

use imt_ring::NodeName;

use crate::cluster::SlotSet;
use crate::domain::loans::Loan;
use crate::domain::order::OrderId;
use crate::domain::reserved_units::ReservedUnits;
use crate::domain::sales::SumsByProduct;
use crate::domain::settlement::Settlement;
use crate::domain::stock::{Delivery, Reservation};
use crate::error::StorageError;
use crate::storage::change_feed::RawRow;
use crate::storage::codec::{self, DecodeError};
use crate::storage::write_batch::Table;
use crate::volume::migration::source::broken;
use crate::volume::remote_reservations::{RemoteReservation, RemoteReservations};
use crate::volume::state::VolumeState;

/// Number of reservations that `drop_slowly` drops before the task yields.
const DROPPED_AT_ONCE: usize = 500;

/// The state in memory of incoming slots.
#[derive(Default)]
pub(crate) struct StagedState {
    pub(crate) settlements: BTreeMap<OrderId, Settlement>,
    pub(crate) deliveries: BTreeMap<(OrderId, u32), Delivery>,
    pub(crate) sums: SumsByProduct,
    pub(crate) reserved_units: ReservedUnits,
    pub(crate) remote_reservations: RemoteReservations,
    /// Loans of the incoming stores.
    pub(crate) loans: BTreeMap<(u32, NodeName), Loan>,
    reservations: BTreeMap<(OrderId, u32), Reservation>,
}

impl StagedState {
    /// Applies a row of the incoming slots to this state.
    pub(crate) fn take(
        &mut self,
        state: &VolumeState,
        slots: &SlotSet,
        row: &RawRow,
    ) -> Result<(), StorageError> {
        let known = self.note(state, slots, row);
        known.map_err(|fault| broken(row.table, &row.key, fault))
    }

    fn note(&mut self, state: &VolumeState, slots: &SlotSet, row: &RawRow) -> Result<(), DecodeError> {
        fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
        }
        let (key, value) = (row.key.as_slice(), row.value.as_deref());
        match row.table {
            Table::Outbox => {
                let (order, kind) = codec::decode_message_key(key).ok_or(DecodeError {
                    offset: 0,
                    expected: "a message key",
                })?;
                let message = value.map(codec::decode_message).transpose()?;
                state.outbox().park(order, kind, message.as_ref(), state.now());
            }
            Table::Settlements => {
                let settlement = value.map(codec::decode_settlement).transpose()?;
                set(
                    &mut self.settlements,
                    crate::storage::volume::order_id(key)?,
                    settlement,
                );
            }
            Table::Reservations => {
                let (order, store) = codec::decode_order_store_key(key)?;
                let reservation = value.map(|value| codec::decode_reservation(order.clone(), value));
                // The reservation becomes a remote one if its order does not arrive in these slots:
                // the order is in this volume already, stays in another volume, or arrives from a
                // third volume. In each case the order and its reservation do not migrate together,
                // so the order must confirm that it still needs the units.
                let is_apart = state.slots.has_order(&order) || !slots.has(state.slots.slot_of_order(&order));
                self.reserve(&order, store, reservation.transpose()?, is_apart);
            }
            Table::Deliveries => {
                let delivery = value.map(codec::decode_delivery).transpose()?;
                set(
                    &mut self.deliveries,
                    codec::decode_order_store_key(key)?,
                    delivery,
                );
            }
            Table::Loans => {
                let loan = value.map(codec::decode_loan).transpose()?;
                set(&mut self.loans, codec::decode_loan_key(key)?, loan);
            }
            Table::Stats => {
                let product = crate::storage::volume::u32_key(key)?;
                match value {
                    Some(value) => drop(self.sums.insert(product, codec::decode_sums(value)?)),
                    None => drop(self.sums.remove(&product)),
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Sets or removes the reservation of an order in an incoming store. `is_apart` is `true` if
    /// the order does not arrive together with the store.
    pub(crate) fn reserve(
        &mut self,
        order: &OrderId,
        store: u32,
        reservation: Option<Reservation>,
        is_apart: bool,
    ) {
        let key = (order.clone(), store);
        if let Some(before) = self.reservations.remove(&key) {
            for line in &before.lines {
                self.reserved_units.take(store, *line);
            }
            self.remote_reservations.remove(order, store);
        }
        let Some(reservation) = reservation else { return };
        self.reserved_units.add(store, &reservation.lines);
        if is_apart || reservation.nonce.is_some() {
            self.remote_reservations
                .insert(order, store, RemoteReservation::of(&reservation));
        }
        self.reservations.insert(key, reservation);
    }

    /// Makes the reservations with an incoming settlement remote ones, because a settlement ends
    /// only a remote reservation. The orders no longer need the units, but the settlements have not
    /// been applied to the incoming stores yet. Call this once the copy is complete.
    pub(crate) fn add_settled_reservations(&mut self) {
        for (order, settlement) in &self.settlements {
            let key = (order.clone(), settlement.store);
            if let Some(reservation) = self.reservations.get(&key)
                && self.remote_reservations.get(order, settlement.store).is_none()
            {
                self.remote_reservations
                    .insert(order, settlement.store, RemoteReservation::of(reservation));
            }
        }
    }

    /// Drops the state that was needed only during the copy. The task yields after every
    /// `DROPPED_AT_ONCE` reservations, so that the drop of many reservations delays no other task.
    pub(crate) async fn drop_slowly(mut self) {
        while !self.reservations.is_empty() {
            for _ in 0..DROPPED_AT_ONCE {
                drop(self.reservations.pop_first());
            }
            tokio::task::yield_now().await;
        }
    }
}
