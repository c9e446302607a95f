//! What of the rows that arrive will be in memory, made ready while they arrive.
//!
//! Whatever takes time with the number of open orders is done here, page by page, in rooms that
//! nobody looks into yet: messages are parked in the outbox, what is promised and what is held is
//! summed up by store. Putting it in force is then a matter of handing over a few rooms, however
//! many orders are open.

use std::collections::BTreeMap;

use crate::cluster::SlotSet;
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

/// Reservations that are let go of before others have their turn.
const FORGOTTEN_AT_ONCE: usize = 500;

/// What of the rows that arrive will be in memory.
#[derive(Default)]
pub(crate) struct StagedState {
    pub(crate) settlements: BTreeMap<OrderId, Settlement>,
    pub(crate) deliveries: BTreeMap<(OrderId, u32), Delivery>,
    pub(crate) sums: SumsByProduct,
    pub(crate) reserved_units: ReservedUnits,
    pub(crate) remote_reservations: RemoteReservations,
    reservations: BTreeMap<(OrderId, u32), Reservation>,
}

impl StagedState {
    /// Keeps in mind what a row means that arrived with these slots.
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
                // An order that was here before had its units there held for it as for one of
                // another volume; whether one that comes at the same time from a third one keeps
                // them is to be asked.
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

    /// What is set aside for an order in a store, if it is; `is_apart` if the order does not come
    /// with the store.
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

    /// Holds what settlements are about that arrived: their orders have it from themselves no
    /// longer. To be called once nothing more arrives.
    pub(crate) fn hold_what_is_settled(&mut self) {
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

    /// Lets go of what was needed only while it came: many small things, some at a time.
    pub(crate) async fn forget(mut self) {
        while !self.reservations.is_empty() {
            for _ in 0..FORGOTTEN_AT_ONCE {
                drop(self.reservations.pop_first());
            }
            tokio::task::yield_now().await;
        }
    }
}
