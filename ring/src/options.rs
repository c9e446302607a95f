//! What is fixed when a ring begins: how many slots, how many replicas, and how keys are hashed.

use crate::{Error, KeyHash};

/// The fewest slots of a ring: below, shares are too coarse to be worth a ring.
pub const SLOTS_MIN: u32 = 16;
/// The most slots of a ring: a table of 128 KiB still lives in the second-level cache, and 65 slots a node are left at 1,000 nodes.
pub const SLOTS_MAX: u32 = 65_536;
/// The most replicas of a slot (the primary included): more than anyone keeps, few enough to compare pairwise.
pub const REPLICATION_MAX: u8 = 8;
/// Slots when nothing is said: shares within 0.5 % of exact up to 80 nodes, and a table of 32 KiB.
const SLOTS_DEFAULT: u32 = 16_384;

/// How a ring begins. Only [`Ring::double`](crate::Ring::double) changes any of it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Options {
    pub(crate) slots: u32,
    pub(crate) replication: u8,
    pub(crate) key_hash: KeyHash,
}

impl Default for Options {
    fn default() -> Options {
        Options::new()
    }
}

impl Options {
    /// 16,384 slots, one replica (the primary alone), XXH3-64 with seed 0.
    #[must_use]
    pub const fn new() -> Options {
        Options {
            slots: SLOTS_DEFAULT,
            replication: 1,
            key_hash: KeyHash::Xxh3 { seed: 0 },
        }
    }

    /// The number of slots: a power of two from [`SLOTS_MIN`] to [`SLOTS_MAX`]. A node's share is exact to one slot,
    /// so take a hundred or more a node.
    #[must_use]
    pub const fn slots(mut self, slots: u32) -> Options {
        self.slots = slots;
        self
    }

    /// How many nodes hold each slot, the primary included: 1 to [`REPLICATION_MAX`].
    #[must_use]
    pub const fn replication(mut self, replication: u8) -> Options {
        self.replication = replication;
        self
    }

    /// How a key's bytes become its slot.
    #[must_use]
    pub const fn key_hash(mut self, key_hash: KeyHash) -> Options {
        self.key_hash = key_hash;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.slots.is_power_of_two() || self.slots < SLOTS_MIN || self.slots > SLOTS_MAX {
            return Err(Error::Slots { slots: self.slots });
        }
        if self.replication == 0 || self.replication > REPLICATION_MAX {
            return Err(Error::Replication {
                replication: self.replication,
            });
        }
        Ok(())
    }
}
