//! A consistent ring of equal slots. A plan lists exactly the slots that a change of members moves.
//!
//! The hash circle is divided into equal slots, a power of two in number. A table names the owner
//! of each slot, as in strategy 3 of the Dynamo paper. A key is hashed, the top bits of the hash
//! are its slot, and one array read finds the owner.
//!
//! A ring is immutable. [`Ring::plan`] lists the moves that lead to another set of members.
//! [`Ring::apply`] carries out a plan: it makes the next ring, one epoch later. A plan can be
//! applied only to the ring from which it was made.
//!
//! The crate is pure: no IO, no clock, no randomness, `no_std` with `alloc`. Routing by load
//! (consistent hashing "with bounded loads") is deliberately absent. It moves keys whenever the
//! load changes. If a node alone has the state of its keys, that state cannot be copied that often.
//! Against overload, make a plan with new weights.
//!
//! ```
//! use imt_ring::{Member, Options, Ring};
//!
//! # fn main() -> Result<(), imt_ring::Error> {
//! let ring = Ring::bootstrap([Member::new("paris")?, Member::new("lyon")?], Options::new())?;
//! let location = ring.locate(b"order 17")?;
//! println!("slot {} of epoch {} is {}'s", location.slot, location.epoch, location.owner);
//!
//! let plan = ring.plan_join(Member::new("nantes")?)?;
//! assert_eq!(plan.moved, 16_384 / 3);
//! let next = ring.apply(&plan)?;
//! assert_eq!(next.epoch().0, ring.epoch().0 + 1);
//! # Ok(())
//! # }
//! ```
#![no_std]

extern crate alloc;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

mod balance;
mod digest;
mod encode;
mod error;
#[cfg(feature = "serde")]
mod json;
mod key;
mod member;
mod merged;
mod options;
mod placement;
mod plan;
mod quota;
pub mod render;
mod ring;

pub use balance::{Balance, NodeShare, Spread, ZoneShare};
pub use digest::{Digest, ParseDigestError};
pub use encode::DecodeError;
pub use error::Error;
pub use key::{KeyHash, Slot};
pub use member::{MEMBERS_MAX, Member, NAME_BYTES_MAX, NodeName, WEIGHT_MAX, ZoneName};
pub use options::{Options, REPLICATION_MAX, SLOTS_MAX, SLOTS_MIN};
pub use plan::{Move, ParseRoleError, Plan, Role, SlotRange};
pub use ring::{Epoch, Location, Ring};
