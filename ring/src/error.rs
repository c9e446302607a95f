//! Errors of the crate. A variant contains the wrong value, if there is a value, and the text of
//! the error states the limits, if there are any. So a person can act on the text, and a program
//! can match on the variant. No input makes this crate panic.

use alloc::string::String;
use core::fmt;

use crate::{DecodeError, Digest, Epoch, NodeName, Slot};
use crate::{MEMBERS_MAX, NAME_BYTES_MAX, REPLICATION_MAX, SLOTS_MAX, SLOTS_MIN, WEIGHT_MAX};

/// The reason why a call of this crate failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The ring has no members, so a key has no owner.
    Empty,
    /// The number of slots is not a power of two within the limits.
    Slots {
        /// Requested number of slots.
        slots: u32,
    },
    /// The number of replicas is not within the limits.
    Replication {
        /// Requested number of replicas.
        replication: u8,
    },
    /// The name of a node or zone is empty, too long, has a character that is not allowed, or does
    /// not begin with a letter or digit.
    Name {
        /// The invalid name, cut to 64 characters.
        name: String,
    },
    /// A weight is above the limit, or not a whole number from 0.
    Weight {
        /// The invalid weight, as text.
        weight: String,
    },
    /// Two members have the same name.
    DuplicateMember {
        /// The name that occurs twice.
        name: NodeName,
    },
    /// There are more members than a ring can have.
    TooManyMembers {
        /// Number of members given.
        members: usize,
    },
    /// All weights are 0, so the slots without a pin would have no owner.
    NoWeight,
    /// The plan would leave no members, although all slots need an owner.
    NoMembers,
    /// The node is not a member of this ring.
    UnknownNode {
        /// Name of the node.
        name: NodeName,
    },
    /// The ring has no slot with this number.
    UnknownSlot {
        /// The requested slot.
        slot: Slot,
        /// Number of slots of the ring.
        slots: u32,
    },
    /// The plan was made from a ring of another epoch.
    StalePlan {
        /// Epoch of the ring that the plan was made from.
        plan: Epoch,
        /// Epoch of the ring that the plan was applied to.
        ring: Epoch,
    },
    /// The plan was made from another ring of the same epoch.
    OtherRing {
        /// Digest of the ring that the plan was made from.
        plan: Digest,
        /// Digest of the ring that the plan was applied to.
        ring: Digest,
    },
    /// A move or a pin of the plan does not fit the ring, although epoch and digest match. So the
    /// plan was changed after it was made.
    BadMove {
        /// A slot at which the plan does not fit.
        slot: Slot,
        /// The reason why the plan does not fit.
        reason: &'static str,
    },
    /// The plan's members, moves and pins lead to another ring than the plan promises. So the plan
    /// was changed after it was made.
    BadPlan {
        /// Digest that the plan states for the next ring.
        promised: Digest,
        /// Digest of the ring to which the plan leads.
        reached: Digest,
    },
    /// The epoch has its largest value, so the ring cannot have a successor.
    EpochsExhausted,
    /// The bytes are not an encoded ring.
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
