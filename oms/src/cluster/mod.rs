//! Who the nodes are, which of them serves what, and how that changes: the only place that knows
//! locks and folders.
//!
//! **Invariants.** (1) A slot is served by one process at most: the one that has open the volume
//! that the ring names, and a volume opens under a file lock that the kernel gives to one process.
//! (2) Every step of an order is checked against its slot under the lock under which its rows are
//! queued, so a step that comes after the slot was sealed is refused (`OrderError::Moved`) and
//! asked again elsewhere. (3) The ring's file is the truth; replacing it is the commit point of
//! every change, and only the holder of the coordinator's lock replaces it. (4) Rows of slots that
//! the ring gives to another volume are rubbish wherever they lie, and are never looked at.
//!
//! **A slot in a volume** is *here*, *sealed* (here, but on its way: nothing is committed any
//! more), or *elsewhere*. **A volume** is served by the node that `serving` names, or waited for
//! while it changes hands. **A move** is *begun* (`moving` names the ring to be), *committed* (the
//! ring is that ring) or *undone* (`moving` is gone, the ring is as it was).
//!
//! **Crash at any step.** Before the commit: the copy lies at the target in slots that the ring
//! gives elsewhere (a store's stock aside, in `arriving`), so nobody reads it; whoever coordinates
//! next takes `moving` away, sources unseal, targets clear. After it: the copy is adopted, and the
//! source's rows are purged, by whoever opens those volumes. No second move begins until every
//! volume has done so. Above this seam nobody assumes a shared disk or a lock: see `Membership`,
//! `Authority`, `Volumes`.

pub(crate) mod channel;
mod local;
pub(crate) mod peer_client;
pub(crate) mod state;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use imt_ring::{Member, NodeName};
use serde::{Deserialize, Serialize};

use crate::error::NodeError;
use crate::storage::volume::Volume;

pub(crate) use crate::cluster::local::LocalCluster;
pub use crate::cluster::local::{has_coordinator, is_node_running, node_infos, read_ring, read_secret};
pub(crate) use crate::cluster::state::{ClusterState, SlotSet, ranges, slots_in};

/// What a node's process says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node's name.
    pub name: NodeName,
    /// Where it answers.
    pub address: SocketAddr,
    /// Its process.
    pub process: u32,
    /// UTC milliseconds at which it started.
    pub started_at_ms: u64,
    /// Its share of the slots, against those of the others.
    #[serde(default = "usual_weight")]
    pub weight: u32,
    /// The zone that it fails with.
    #[serde(default)]
    pub zone: Option<String>,
}

fn usual_weight() -> u32 {
    1
}

impl NodeInfo {
    /// The node as a member of the ring.
    ///
    /// # Errors
    /// If the weight or the zone is not one.
    pub fn member(&self) -> Result<Member, imt_ring::Error> {
        let member = Member::new(&self.name)?.with_weight(self.weight)?;
        match &self.zone {
            Some(zone) => member.with_zone(zone),
            None => Ok(member),
        }
    }
}

/// Something that the coordinator must look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// This process is the coordinator from here on.
    Elected,
    /// A node ended, or its process died.
    Gone(NodeName),
    /// A node is there, or wants something looked at.
    Hello,
    /// A node is to leave for good.
    Leave(NodeName),
}

/// Being a node among others.
pub(crate) trait Membership: Send + Sync {
    /// This node's name.
    fn name(&self) -> &NodeName;

    /// Says where this node answers.
    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError>;

    /// The nodes that live, this one included.
    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError>;

    /// What the nodes say of themselves, whether they live or not.
    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError>;

    /// Removes the card of a node that is no longer a member, unless its process lives.
    fn forget(&self, node: &NodeName) -> Result<(), NodeError>;

    /// Asks to be told, once, when that node is gone.
    fn watch(&self, node: &NodeName, tell: tokio::sync::mpsc::UnboundedSender<Event>);

    /// Asks to be told, once, when this process is the coordinator; at once if it is already.
    fn stand(self: Arc<Self>, tell: tokio::sync::mpsc::UnboundedSender<Event>);

    /// Says that this node is about to go: it serves until others do, and is given nothing more.
    fn retire(&self);

    /// Says that this node is no longer there.
    fn withdraw(&self);

    /// What nodes show each other to be let in.
    fn secret(&self) -> &str;
}

/// An answer that may have to be waited for: from a disk here, from a network elsewhere.
pub(crate) type Soon<'a, T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send + 'a>>;

/// Where the truth about the cluster is kept.
pub(crate) trait Authority: Send + Sync {
    /// What is in force.
    fn read(&self) -> Soon<'_, ClusterState>;

    /// Puts another state in force: durable, whole or not at all. Refused unless this process is
    /// the coordinator and the state follows the one in force.
    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()>;
}

/// The expectation about a volume that is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The ring names it: it exists, or was lost. An empty one in its place would pass for its
    /// orders.
    Existing,
    /// It has no slots yet: it is made if it is not there.
    MaybeNew,
}

/// The volumes that this process may open.
pub(crate) trait Volumes: Send + Sync {
    /// Opens a volume, `None` if another process still has it. As long as it is open here, nobody
    /// else commits in it; where it can be lost while this process lives, what is opened says so
    /// (`Volume::is_ours`), and commits in it are refused. Fails with `NodeError::VolumeMissing` if
    /// a volume that must exist is not there.
    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>>;

    /// Removes a volume that is of no use to anybody any more.
    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()>;
}
