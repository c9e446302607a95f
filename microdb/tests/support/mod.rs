//! Parts that several tests share, above all a disk in memory that can have all kinds of faults.
//!
//! - [`disk::Disk`] implements the storage trait in memory and records each change and sync.
//! - [`cut::Cuts`] replays that record and builds the disks that a power cut at any of its events
//!   could leave.
//! - [`image::Image`] is the content of a disk. An image is cheap to copy, and tests can damage any
//!   byte.
//! - All random choices of the tests come from [`random::Random`], so a seed repeats them.
//!
//! Deliberately absent from the disk: knowledge of the database's format.

#![allow(
    dead_code,
    reason = "each test binary, and each fuzz target, uses its own part of this module"
)]
#![allow(
    clippy::unwrap_used,
    reason = "these are tests; a failure here must stop them"
)]

pub(crate) mod checkpoint_gate;
pub(crate) mod copies;
pub(crate) mod cut;
pub(crate) mod disk;
pub(crate) mod folder;
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
