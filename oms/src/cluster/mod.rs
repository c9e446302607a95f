//! Who the nodes are and which of them serves what: the only place that knows locks, folders and the ring's file.
//!
//! Above this seam a node knows two things: the ring in force, and whether it serves the volume that the ring
//! names. How that is decided is an implementation's business. `local` is many processes on one machine: whoever holds
//! the lock of a volume serves it, and the kernel gives that lock to one process at a time.

mod local;

use std::net::SocketAddr;
use std::sync::Arc;

use imt_ring::{NodeName, Ring};

use crate::error::NodeError;
use crate::store::Store;

pub(crate) use local::LocalCluster;
pub use local::read_ring;

/// Which node serves which volume.
pub(crate) trait Ownership: Send + Sync {
    /// The ring in force.
    fn ring(&self) -> Arc<Ring>;

    /// True if this process serves the volume of that name.
    fn serves(&self, volume: &NodeName) -> bool;

    /// Opens the volume that is this node's own.
    fn open_volume(&self) -> Result<Store, NodeError>;
}

/// Being a node among others.
pub(crate) trait Membership: Send + Sync {
    /// This node's name.
    fn name(&self) -> &NodeName;

    /// Says where this node answers.
    fn announce(&self, address: SocketAddr, now_ms: u64) -> Result<(), NodeError>;

    /// Says that this node is no longer there.
    fn withdraw(&self);
}
