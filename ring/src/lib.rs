//! A consistent ring of equal slots that says exactly what it will move.
//!
//! The circle of hashes is cut into equal slots (a power of two), and a table says which node owns each: strategy 3 of
//! the Dynamo paper. A key is hashed, the top bits are its slot, the slot's owner is one array read. A ring never
//! changes: [`Ring::plan`] says what would move to reach another set of members, and [`Ring::apply`] makes the next
//! ring, one epoch later, from exactly the ring that the plan was made for.
//!
//! The crate is pure: no IO, no clock, no randomness, `no_std` with `alloc`. Deliberately absent is routing by
//! load (consistent hashing "with bounded loads"): it moves keys whenever the load does, which a single owner of
//! state cannot bear. Overload is answered by new weights through a plan.
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
mod options;
pub mod picture;
mod place;
mod plan;
mod quota;
mod ring;
mod union;

pub use balance::{Balance, NodeShare, Spread, ZoneShare};
pub use digest::{Digest, ParseDigestError};
pub use encode::DecodeError;
pub use error::Error;
pub use key::{KeyHash, Slot};
pub use member::{MEMBERS_MAX, Member, NAME_BYTES_MAX, NodeName, WEIGHT_MAX, ZoneName};
pub use options::{Options, REPLICATION_MAX, SLOTS_MAX, SLOTS_MIN};
pub use plan::{Move, ParseRoleError, Plan, Role, SlotRange};
pub use ring::{Epoch, Location, Ring};
