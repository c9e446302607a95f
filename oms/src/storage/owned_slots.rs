//! The slots of a volume and the state of each: here, sealed for a move or before the volume is
//! closed, or elsewhere.
//!
//! **Invariants**
//! - A command checks the state of its slot and queues its rows under the lock of the stock. A
//!   state is changed under the same lock. So either the rows of a command are queued before the
//!   seal and copied with the slot, or the command is rejected.
//! - Callers skip rows of slots that are elsewhere. The cleanup removes these rows later.
//!
//! Deliberately absent: the durable record of the slots (`fence`) and the copying
//! (`volume::migration`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use imt_ring::{NodeName, Ring, Slot};
use parking_lot::RwLock;

use crate::domain::order::OrderId;
use crate::domain::routing_key;
use crate::error::StorageError;
use crate::storage::codec::{self, DecodeError};
use crate::storage::fence::{Fence, SlotOwnership};
use crate::storage::volume::u32_key;
use crate::storage::write_batch::{CATALOGUE, STATS_FORGOTTEN, STOCK_HEAD, Table};

const ELSEWHERE: u8 = 0;
const HERE: u8 = 1;
const SEALED: u8 = 2;
/// Key that is hashed to find the slot of the statistics. The slash makes the key different from
/// all order ids.
const STATISTICS: &[u8] = b"statistics/";

/// Kinds of changes that a new ring makes to the slots of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotChanges {
    pub(crate) adds: bool,
    pub(crate) removes: bool,
}

/// Returns the slot of an order.
pub(crate) fn of_order(ring: &Ring, order: &OrderId) -> Slot {
    ring.slot_of(order.as_bytes())
}

/// Returns the slot of a store.
pub(crate) fn of_store(ring: &Ring, store: u32) -> Slot {
    use std::io::Write;
    // "store/" and ten digits fit into 16 bytes, so the write succeeds.
    let mut name = [0; 16];
    let mut rest = &mut name[..];
    let _ = write!(rest, "store/{store}");
    let unused = rest.len();
    ring.slot_of(&name[..name.len() - unused])
}

/// Returns the slot of the statistics.
pub(crate) fn of_statistics(ring: &Ring) -> Slot {
    ring.slot_of(STATISTICS)
}

/// The rule by which a row moves when slots move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// The row belongs to this slot and moves with it.
    Slot(Slot),
    /// Each volume has its own row with this key. Any move of slots copies the row of the source to
    /// the target, where it is staged beside the target's own row.
    Copied,
    /// The row stays in its volume when slots move.
    Volume,
    /// The slot of the row is unknown, because the row was removed and only its former value named
    /// the slot.
    Unknown,
}

/// Returns the rule by which a row moves. `value` is `None` if the row was removed.
pub(crate) fn home_of(
    ring: &Ring,
    table: Table,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<Home, DecodeError> {
    let of_order_key = |key: &[u8]| Home::Slot(ring.slot_of(key));
    Ok(match table {
        Table::Orders | Table::Settlements => of_order_key(key),
        Table::Outbox => match key.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => of_order_key(&key[..slash]),
            None => {
                return Err(DecodeError {
                    offset: 0,
                    expected: "a message key",
                });
            }
        },
        Table::Reservations | Table::Deliveries => {
            Home::Slot(of_store(ring, codec::decode_order_store_key(key)?.1))
        }
        Table::Stock if key == CATALOGUE => Home::Copied,
        Table::Stock => Home::Slot(of_store(ring, u32_key(key)?)),
        Table::Stats | Table::StatFiles => Home::Slot(of_statistics(ring)),
        Table::Meta if key == STOCK_HEAD => Home::Copied,
        Table::Meta if key == STATS_FORGOTTEN => Home::Slot(of_statistics(ring)),
        Table::Answers => match value {
            None => Home::Unknown,
            Some(value) => match routing_key::order_of(&codec::decode_answer(value)?.request) {
                Some(order) => Home::Slot(of_order(ring, &order)),
                None => Home::Volume,
            },
        },
        Table::Loans => Home::Slot(of_store(ring, codec::decode_loan_key(key)?.0)),
        Table::Meta | Table::Arrivals | Table::Arriving | Table::Spent => Home::Volume,
    })
}

/// The slots of one volume.
pub(crate) struct Slots {
    volume: NodeName,
    /// A ring of the cluster that is used only to find slots. All rings of a cluster assign a key
    /// to the same slot.
    hashing: Arc<Ring>,
    ring: RwLock<Arc<Ring>>,
    states: Box<[AtomicU8]>,
    /// For each slot, the epoch in its fence; 0 if the slot is elsewhere. This is the epoch of the
    /// ring that brought the slot to the volume. If the stored ownership has no epoch for the slot,
    /// the epoch is that of the ring with which these slots were created.
    epochs: Box<[AtomicU64]>,
    /// `true` while the volume owns every slot and none is sealed. Checks then skip the look-up of
    /// a slot.
    all_here: AtomicBool,
    /// `true` if the volume owns every slot of the ring.
    alone: AtomicBool,
    /// Id of the move for which slots are sealed; `u64::MAX` if all are sealed before the volume is
    /// closed; 0 if none is sealed.
    sealed_for: AtomicU64,
    /// Number of rings applied to these slots, including the first one.
    version: AtomicU64,
}

impl Slots {
    /// Creates the slots that the ring assigns to a volume. The epochs come from `record`, the
    /// stored ownership. A slot without an epoch there gets the epoch of the ring.
    pub(crate) fn of(ring: Arc<Ring>, volume: &NodeName, record: Option<&SlotOwnership>) -> Slots {
        let known = |slot: u32| record.and_then(|record| record.0.get(slot as usize)).copied();
        let slots = Slots {
            volume: volume.clone(),
            hashing: Arc::clone(&ring),
            states: (0..ring.slots()).map(|_| AtomicU8::new(ELSEWHERE)).collect(),
            epochs: (0..ring.slots())
                .map(|slot| AtomicU64::new(known(slot).unwrap_or(0)))
                .collect(),
            ring: RwLock::new(Arc::clone(&ring)),
            all_here: AtomicBool::new(false),
            alone: AtomicBool::new(false),
            sealed_for: AtomicU64::new(0),
            version: AtomicU64::new(0),
        };
        slots.follow(&ring);
        slots
    }

    /// Creates the slots of a volume that owns every slot.
    #[cfg(test)]
    pub(crate) fn everything() -> Slots {
        let name = NodeName::new("test").unwrap();
        let member = imt_ring::Member::new("test").unwrap();
        let ring = Ring::bootstrap([member], imt_ring::Options::new()).unwrap();
        Slots::of(Arc::new(ring), &name, None)
    }

    /// Applies a ring: the volume then has exactly the slots that the ring assigns to it, and none
    /// is sealed. Call this while the stock is locked, because the same lock protects the queueing
    /// of rows.
    pub(crate) fn follow(&self, ring: &Arc<Ring>) {
        let mut count = 0;
        for ((slot, state), since) in (0..).zip(&self.states).zip(&self.epochs) {
            let is_here = ring.owner(Slot(slot)).is_ok_and(|owner| *owner == self.volume);
            count += usize::from(is_here);
            if !is_here {
                since.store(0, Ordering::Release);
            } else if since.load(Ordering::Acquire) == 0 {
                // An epoch is at least 1, because 0 means that the slot is elsewhere.
                since.store(ring.epoch().0.max(1), Ordering::Release);
            }
            state.store(if is_here { HERE } else { ELSEWHERE }, Ordering::Release);
        }
        let is_alone = count == self.states.len();
        *self.ring.write() = Arc::clone(ring);
        self.alone.store(is_alone, Ordering::Release);
        self.sealed_for.store(0, Ordering::Release);
        self.all_here.store(is_alone, Ordering::Release);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Compares the slots of this volume with those that a ring assigns to it.
    pub(crate) fn differences(&self, ring: &Ring) -> SlotChanges {
        let mut changes = SlotChanges::default();
        for (slot, state) in (0..).zip(&self.states) {
            let will_be = ring.owner(Slot(slot)).is_ok_and(|owner| *owner == self.volume);
            let is = state.load(Ordering::Acquire) != ELSEWHERE;
            changes.adds |= will_be && !is;
            changes.removes |= is && !will_be;
        }
        changes
    }

    /// Returns the slots of this volume that a ring assigns to other volumes.
    pub(crate) fn lost(&self, ring: &Ring) -> impl Iterator<Item = Slot> {
        let here = (0..).zip(&self.states);
        let here = here.filter(|(_, state)| state.load(Ordering::Acquire) != ELSEWHERE);
        here.map(|(slot, _)| Slot(slot))
            .filter(|slot| ring.owner(*slot).map_or(true, |owner| *owner != self.volume))
    }

    /// Returns the slot ownership to store: the slots that are here and not sealed.
    pub(crate) fn record(&self) -> SlotOwnership {
        self.record_of(|state| state == HERE)
    }

    /// Returns the slot ownership to store before the seals are removed: all slots that are here,
    /// sealed or not.
    pub(crate) fn record_without_seals(&self) -> SlotOwnership {
        self.record_of(|state| state != ELSEWHERE)
    }

    fn record_of(&self, is_owned: impl Fn(u8) -> bool) -> SlotOwnership {
        let epoch = |(state, since): (&AtomicU8, &AtomicU64)| {
            let is_owned = is_owned(state.load(Ordering::Acquire));
            if is_owned {
                since.load(Ordering::Acquire)
            } else {
                0
            }
        };
        SlotOwnership(self.states.iter().zip(&self.epochs).map(epoch).collect())
    }

    fn fence(&self, slot: Slot) -> Fence {
        Fence {
            slot: slot.0,
            epoch: self.epochs[slot.0 as usize].load(Ordering::Acquire),
        }
    }

    /// Returns the slot of an order.
    pub(crate) fn slot_of_order(&self, order: &OrderId) -> Slot {
        of_order(&self.hashing, order)
    }

    /// Returns the slot of a store.
    pub(crate) fn slot_of_store(&self, store: u32) -> Slot {
        of_store(&self.hashing, store)
    }

    /// Returns the fence of a batch that changes an order.
    pub(crate) fn fence_of_order(&self, order: &OrderId) -> Fence {
        self.fence(self.slot_of_order(order))
    }

    /// Returns the fence of a batch that changes a store.
    pub(crate) fn fence_of_store(&self, store: u32) -> Fence {
        self.fence(self.slot_of_store(store))
    }

    /// Returns the fence of a batch that changes the statistics.
    pub(crate) fn fence_of_statistics(&self) -> Fence {
        self.fence(of_statistics(&self.hashing))
    }

    /// Returns the ring applied last.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.read())
    }

    /// Returns the name of the volume.
    pub(crate) fn volume(&self) -> &NodeName {
        &self.volume
    }

    /// Returns a number that grows with every applied ring.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns `true` if this volume owns every slot of the ring.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }

    /// Returns the rule by which a row moves. `value` is `None` if the row was removed.
    pub(crate) fn home_of(
        &self,
        table: Table,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<Home, DecodeError> {
        home_of(&self.hashing, table, key, value)
    }

    /// Returns `true` if the rows of a slot are here, sealed or not.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.state(slot) != ELSEWHERE
    }

    fn state(&self, slot: Slot) -> u8 {
        self.states[slot.0 as usize].load(Ordering::Acquire)
    }

    /// Returns an error if the slot of an order is elsewhere or sealed.
    pub(crate) fn check_order(&self, order: &OrderId) -> Result<(), StorageError> {
        if self.all_here.load(Ordering::Acquire) || self.state(of_order(&self.hashing, order)) == HERE {
            Ok(())
        } else {
            Err(StorageError::Stale)
        }
    }

    /// Returns `true` if a store is here and `false` if it is elsewhere. Returns an error while the
    /// store's slot is sealed.
    pub(crate) fn check_store(&self, store: u32) -> Result<bool, StorageError> {
        if self.all_here.load(Ordering::Acquire) {
            return Ok(true);
        }
        match self.state(of_store(&self.hashing, store)) {
            HERE => Ok(true),
            ELSEWHERE => Ok(false),
            _ => Err(StorageError::Stale),
        }
    }

    /// Returns an error if the slot of the statistics is elsewhere or sealed.
    pub(crate) fn check_statistics(&self) -> Result<(), StorageError> {
        if self.all_here.load(Ordering::Acquire) || self.state(of_statistics(&self.hashing)) == HERE {
            Ok(())
        } else {
            Err(StorageError::Stale)
        }
    }

    /// Returns `true` if an order's rows are here, sealed or not.
    pub(crate) fn has_order(&self, order: &OrderId) -> bool {
        self.state(of_order(&self.hashing, order)) != ELSEWHERE
    }

    /// Returns `true` if a store's rows are here, sealed or not.
    pub(crate) fn has_store(&self, store: u32) -> bool {
        self.state(of_store(&self.hashing, store)) != ELSEWHERE
    }

    /// Returns `true` if the statistics are here, sealed or not.
    pub(crate) fn has_statistics(&self) -> bool {
        self.state(of_statistics(&self.hashing)) != ELSEWHERE
    }

    /// Returns `true` if an order's slot is sealed.
    pub(crate) fn is_order_sealed(&self, order: &OrderId) -> bool {
        self.some_sealed() && self.state(of_order(&self.hashing, order)) == SEALED
    }

    /// Returns `true` if any slot is sealed.
    pub(crate) fn some_sealed(&self) -> bool {
        self.sealed_for.load(Ordering::Acquire) > 0
    }

    /// Returns the id of the move for which slots are sealed, or `u64::MAX` if all are sealed
    /// before the volume is closed. `None` if no slot is sealed.
    pub(crate) fn sealed_for(&self) -> Option<u64> {
        Some(self.sealed_for.load(Ordering::Acquire)).filter(|id| *id > 0)
    }

    /// Seals those of the slots that are here, for the move with this id. Call this while the stock
    /// is locked, because the same lock protects the queueing of rows.
    pub(crate) fn seal(&self, slots: impl Iterator<Item = u32>, id: u64) {
        self.sealed_for.store(id, Ordering::Release);
        self.all_here.store(false, Ordering::Release);
        for slot in slots {
            if let Some(state) = self.states.get(slot as usize) {
                let _ = state.compare_exchange(HERE, SEALED, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Seals all slots, so that no further rows are queued before the volume is closed.
    pub(crate) fn seal_all(&self) {
        self.seal(0..self.states.len() as u32, u64::MAX);
    }

    /// Unseals all slots after an abandoned move.
    pub(crate) fn unseal(&self) {
        for state in &self.states {
            let _ = state.compare_exchange(SEALED, HERE, Ordering::AcqRel, Ordering::Relaxed);
        }
        self.sealed_for.store(0, Ordering::Release);
        self.all_here.store(self.is_alone(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_slot_rejects_commands_until_it_is_unsealed() {
        let slots = Slots::everything();
        let order = OrderId::parse("17").unwrap();
        slots.check_order(&order).unwrap();
        slots.seal(std::iter::once(of_order(&slots.ring(), &order).0), 3);
        assert!(matches!(slots.check_order(&order), Err(StorageError::Stale)));
        assert!(slots.has_order(&order) && slots.is_order_sealed(&order));
        assert_eq!(slots.sealed_for(), Some(3));
        slots.unseal();
        slots.check_order(&order).unwrap();
        assert!(!slots.some_sealed());
        slots.seal_all();
        assert!(matches!(slots.check_store(5), Err(StorageError::Stale)));
    }
}
