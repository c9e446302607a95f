//! A disk for tests, and what can be done to it.
//!
//! [`disk::Disk`] stands behind the engine's storage trait, keeps everything in memory and writes
//! down each call. [`cut::Cuts`] replays that record and builds the disks that could be found after
//! the power went at any call of it. [`image::Image`] is such a disk at rest: copied for next to
//! nothing, and open to damage of every kind. All chance comes from [`random::Random`], so that a
//! seed repeats a run.

#![allow(dead_code, reason = "each test binary uses its own part of this module")]
#![allow(
    clippy::unwrap_used,
    reason = "these are tests; a failure here must stop them"
)]

pub(crate) mod checkpoint_gate;
pub(crate) mod copies;
pub(crate) mod cut;
pub(crate) mod disk;
pub(crate) mod gate;
pub(crate) mod image;
pub(crate) mod mount;
pub(crate) mod other;
pub(crate) mod random;
pub(crate) mod struck;
pub(crate) mod targets;
pub(crate) mod usage;
pub(crate) mod witness;
pub(crate) mod workload;
