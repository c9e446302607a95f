//! Which slots a volume has: here, on their way elsewhere, or elsewhere.
//!
//! A table of flags over one ring. A flag is read under the lock under which rows are queued, and changed under it
//! too, so a step either comes before the seal and is part of what is copied, or is refused. A ring with other slots for the volume
//! is another table: the rooms over a volume are furnished anew for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use imt_ring::{NodeName, Ring, Slot};

use crate::desk::Fault;
use crate::order::OrderId;

const ELSEWHERE: u8 = 0;
const HERE: u8 = 1;
const SEALED: u8 = 2;
/// The key whose slot the statistics live in: no order has a slash in its id.
const STATISTICS: &[u8] = b"statistics/";

/// The slot of an order.
pub(crate) fn of_order(ring: &Ring, order: &OrderId) -> Slot {
    ring.slot_of(order.as_bytes())
}

/// The slot of a store.
pub(crate) fn of_store(ring: &Ring, store: u32) -> Slot {
    ring.slot_of(format!("store/{store}").as_bytes())
}

/// The slot of the statistics.
pub(crate) fn of_statistics(ring: &Ring) -> Slot {
    ring.slot_of(STATISTICS)
}

/// The slots of one volume under one ring.
pub(crate) struct Slots {
    ring: Arc<Ring>,
    states: Box<[AtomicU8]>,
    /// True while the volume has every slot, and none is sealed: nothing need be looked up then.
    all_here: AtomicBool,
    /// True if there is no other volume.
    alone: bool,
    some_sealed: AtomicBool,
}

impl Slots {
    /// What the ring gives to a volume.
    pub(crate) fn of(ring: Arc<Ring>, volume: &NodeName) -> Slots {
        let mut states: Box<[AtomicU8]> = (0..ring.slots()).map(|_| AtomicU8::new(ELSEWHERE)).collect();
        let mut count = 0;
        for slot in ring.slots_of(volume) {
            *states[slot.0 as usize].get_mut() = HERE;
            count += 1;
        }
        let alone = count == states.len();
        Slots {
            ring,
            states,
            all_here: AtomicBool::new(alone),
            alone,
            some_sealed: AtomicBool::new(false),
        }
    }

    /// A volume that has everything.
    #[cfg(test)]
    pub(crate) fn everything() -> Slots {
        let name = NodeName::new("test").unwrap();
        let member = imt_ring::Member::new("test").unwrap();
        let ring = Ring::bootstrap([member], imt_ring::Options::new()).unwrap();
        Slots::of(Arc::new(ring), &name)
    }

    /// The ring that this is a part of.
    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// True if no other volume has anything.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    fn state(&self, slot: Slot) -> u8 {
        self.states[slot.0 as usize].load(Ordering::Acquire)
    }

    /// Refuses a step of an order whose slot is not here, or not any more.
    pub(crate) fn check_order(&self, order: &OrderId) -> Result<(), Fault> {
        if self.all_here.load(Ordering::Acquire) || self.state(of_order(&self.ring, order)) == HERE {
            Ok(())
        } else {
            Err(Fault::Moved)
        }
    }

    /// Whether a store is here; refused while it is on its way.
    pub(crate) fn check_store(&self, store: u32) -> Result<bool, Fault> {
        if self.all_here.load(Ordering::Acquire) {
            return Ok(true);
        }
        match self.state(of_store(&self.ring, store)) {
            HERE => Ok(true),
            ELSEWHERE => Ok(false),
            _ => Err(Fault::Moved),
        }
    }

    /// Refuses a change of the statistics where they are not.
    pub(crate) fn check_statistics(&self) -> Result<(), Fault> {
        if self.all_here.load(Ordering::Acquire) || self.state(of_statistics(&self.ring)) == HERE {
            Ok(())
        } else {
            Err(Fault::Moved)
        }
    }

    /// True if an order's rows lie here, sealed or not.
    pub(crate) fn has_order(&self, order: &OrderId) -> bool {
        self.state(of_order(&self.ring, order)) != ELSEWHERE
    }

    /// True if a store's rows lie here, sealed or not.
    pub(crate) fn has_store(&self, store: u32) -> bool {
        self.state(of_store(&self.ring, store)) != ELSEWHERE
    }

    /// True if the statistics lie here, sealed or not.
    pub(crate) fn has_statistics(&self) -> bool {
        self.state(of_statistics(&self.ring)) != ELSEWHERE
    }

    /// True if any slot is sealed.
    pub(crate) fn some_sealed(&self) -> bool {
        self.some_sealed.load(Ordering::Acquire)
    }

    /// Seals slots. To be called under the lock under which rows are queued.
    pub(crate) fn seal(&self, slots: impl Iterator<Item = u32>) {
        self.some_sealed.store(true, Ordering::Release);
        self.all_here.store(false, Ordering::Release);
        for slot in slots {
            if let Some(state) = self.states.get(slot as usize) {
                let _ = state.compare_exchange(HERE, SEALED, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Seals all there are.
    pub(crate) fn seal_all(&self) {
        self.seal(0..self.states.len() as u32);
    }

    /// Opens what was sealed again: it stays here after all.
    pub(crate) fn unseal(&self) {
        for state in &self.states {
            let _ = state.compare_exchange(SEALED, HERE, Ordering::AcqRel, Ordering::Relaxed);
        }
        self.some_sealed.store(false, Ordering::Release);
        self.all_here.store(self.alone, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_slot_takes_no_step_until_it_is_unsealed() {
        let slots = Slots::everything();
        let order = OrderId::parse("17").unwrap();
        slots.check_order(&order).unwrap();
        slots.seal(std::iter::once(of_order(&slots.ring, &order).0));
        assert!(matches!(slots.check_order(&order), Err(Fault::Moved)));
        assert!(slots.has_order(&order) && slots.some_sealed());
        slots.unseal();
        slots.check_order(&order).unwrap();
        assert!(!slots.some_sealed());
        slots.seal_all();
        assert!(matches!(slots.check_store(5), Err(Fault::Moved)));
    }
}
