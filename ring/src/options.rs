//! Properties that are chosen when a ring is created: the number of slots, the number of replicas,
//! and the hash of keys.

use crate::{Error, KeyHash};

/// Minimum number of slots. With fewer slots, shares would be too coarse to be useful.
pub const SLOTS_MIN: u32 = 16;
/// Maximum number of slots. With this number, the owners of all slots take 128 KiB and fit in a
/// second-level cache, and each of 1,000 nodes of equal weight still owns at least 65 slots.
pub const SLOTS_MAX: u32 = 65_536;
/// Maximum number of replicas of a slot, primary included. More are not needed in practice. With so
/// few replicas, the check that they are on distinct nodes can compare each pair.
pub const REPLICATION_MAX: u8 = 8;
/// Default number of slots. With up to 80 nodes of equal weight, the share of each node differs
/// from the exact share by at most 0.5 %. The owners of all slots take 32 KiB.
const SLOTS_DEFAULT: u32 = 16_384;

/// Properties of a new ring. [`Ring::double`](crate::Ring::double) changes the number of slots
/// later; the other properties stay.
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
    /// Returns the defaults: 16,384 slots, one replica (the primary alone), XXH3-64 with seed 0.
    #[must_use]
    pub const fn new() -> Options {
        Options {
            slots: SLOTS_DEFAULT,
            replication: 1,
            key_hash: KeyHash::Xxh3 { seed: 0 },
        }
    }

    /// Sets the number of slots: a power of two from [`SLOTS_MIN`] to [`SLOTS_MAX`]. Shares are
    /// rounded to whole slots, so a ring should have at least a hundred slots per node.
    #[must_use]
    pub const fn slots(mut self, slots: u32) -> Options {
        self.slots = slots;
        self
    }

    /// Sets the number of nodes that hold each slot, primary included: 1 to [`REPLICATION_MAX`].
    #[must_use]
    pub const fn replication(mut self, replication: u8) -> Options {
        self.replication = replication;
        self
    }

    /// Sets the function from a key to its hash.
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
