//! What can go wrong, typed: each variant names the thing that is wrong and says what would be right, so that a person
//! can act on it and a program can match on it. Nothing in this crate panics on what it is given.

use alloc::string::String;
use core::fmt;

use crate::{DecodeError, Digest, Epoch, NodeName, Slot};
use crate::{MEMBERS_MAX, NAME_BYTES_MAX, REPLICATION_MAX, SLOTS_MAX, SLOTS_MIN, WEIGHT_MAX};

/// Why a ring, a member or a plan was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The ring has no members, so a key has no owner.
    Empty,
    /// The number of slots is not a power of two within the limits.
    Slots {
        /// The number that was asked for.
        slots: u32,
    },
    /// The number of replicas is not within the limits.
    Replication {
        /// The number that was asked for.
        replication: u8,
    },
    /// A node's or zone's name is empty, too long, or has a character that names may not have.
    Name {
        /// The name as given (cut to a readable length).
        name: String,
    },
    /// A weight is above the limit, or not a number.
    Weight {
        /// The weight as given.
        weight: String,
    },
    /// Two members have the same name.
    DuplicateMember {
        /// The name that is there twice.
        name: NodeName,
    },
    /// There are more members than a ring takes.
    TooManyMembers {
        /// How many were given.
        members: usize,
    },
    /// There are members, but none has a weight above 0: nobody could own a slot.
    NoWeight,
    /// The plan would leave a ring that has owners without any member: there is nowhere for the slots to go.
    NoMembers,
    /// The node is not a member of this ring.
    UnknownNode {
        /// Its name.
        name: NodeName,
    },
    /// The slot is not one of this ring's.
    UnknownSlot {
        /// The slot that was asked for.
        slot: Slot,
        /// How many slots the ring has.
        slots: u32,
    },
    /// The plan was made from another epoch.
    StalePlan {
        /// The epoch that the plan was made from.
        plan: Epoch,
        /// The epoch of the ring that it was applied to.
        ring: Epoch,
    },
    /// The plan was made from another ring of the same epoch.
    OtherRing {
        /// The digest of the ring that the plan was made from.
        plan: Digest,
        /// The digest of the ring that it was applied to.
        ring: Digest,
    },
    /// A move of the plan does not fit the ring, although epoch and digest do: the plan was changed after it was made.
    BadMove {
        /// The first slot where it does not fit.
        slot: Slot,
        /// What does not fit.
        reason: &'static str,
    },
    /// The plan's moves do not lead to the ring that the plan promises: it was changed after it was made.
    BadPlan {
        /// The digest that the plan promises.
        promised: Digest,
        /// The digest that its moves lead to.
        reached: Digest,
    },
    /// The epoch counter is at its end.
    EpochsExhausted,
    /// Bytes or text are not an encoded ring.
    Decode(DecodeError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Empty => write!(
                f,
                "the ring has no members, so the key has no owner; add a member first"
            ),
            Error::Slots { slots } => {
                write!(
                    f,
                    "{slots} slots: must be a power of two from {SLOTS_MIN} to {SLOTS_MAX}"
                )
            }
            Error::Replication { replication } => {
                write!(f, "{replication} replicas: must be from 1 to {REPLICATION_MAX}")
            }
            Error::Name { name } => write!(
                f,
                "name {name:?}: must be 1 to {NAME_BYTES_MAX} ASCII letters, digits, '-', '_' or '.', and begin with a letter or digit"
            ),
            Error::Weight { weight } => write!(
                f,
                "weight {weight:?}: must be a whole number from 0 to {WEIGHT_MAX}"
            ),
            Error::DuplicateMember { name } => write!(f, "member {name} is there twice"),
            Error::TooManyMembers { members } => {
                write!(f, "{members} members: a ring takes at most {MEMBERS_MAX}")
            }
            Error::NoWeight => write!(f, "no member has a weight above 0, so nobody could own a slot"),
            Error::NoMembers => write!(
                f,
                "no member would be left to take the slots; add one before the last leaves"
            ),
            Error::UnknownNode { name } => write!(f, "{name} is not a member of the ring"),
            Error::UnknownSlot { slot, slots } => write!(
                f,
                "slot {slot}: the ring has slots 0 to {}",
                slots.saturating_sub(1)
            ),
            Error::StalePlan { plan, ring } => {
                write!(
                    f,
                    "the plan was made from epoch {plan}, the ring is at epoch {ring}; plan again"
                )
            }
            Error::OtherRing { plan, ring } => write!(
                f,
                "the plan was made from another ring of the same epoch (digest {plan}, this ring has {ring}); plan again"
            ),
            Error::BadMove { slot, reason } => {
                write!(f, "the plan does not fit the ring at slot {slot}: {reason}")
            }
            Error::BadPlan { promised, reached } => {
                write!(
                    f,
                    "the plan promises the ring {promised}, its moves lead to {reached}"
                )
            }
            Error::EpochsExhausted => write!(f, "the ring is at its last epoch"),
            Error::Decode(_) => write!(f, "not a readable ring"),
        }
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Error::Decode(source) => Some(source),
            _ => None,
        }
    }
}

impl From<DecodeError> for Error {
    fn from(source: DecodeError) -> Error {
        Error::Decode(source)
    }
}
