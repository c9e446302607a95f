//! The nodes, the volumes that they serve, and the changes of both: traits and the shared state.
//!
//! **Invariants**
//! 1. At most one process serves a slot. It has opened the volume that the ring assigns the slot
//!    to, and opening takes a file lock, which the kernel grants to one process.
//! 2. A command is checked against its slot under the lock that covers the queueing of its rows. A
//!    command after the seal is rejected (`OrderError::Moved`) and retried at the new owner.
//! 3. The file of the ring decides. Replacing it is the commit point of every change, and only the
//!    holder of the coordinator's lock replaces it.
//! 4. Rows in a volume that does not own their slot are never read.
//!
//! **States.** A slot of a volume is *here*, *sealed* (here, but no longer written, because it is
//! moving) or *elsewhere*. A move is *begun* (`moving` names the next ring), *committed* (the next
//! ring is the ring) or *undone* (`moving` is empty and the ring is unchanged).
//!
//! **Crash at any step.**
//! - Before the commit, the copied rows belong to slots that the target does not own, so no process
//!   reads them. Staged stock is in the table `arriving`. The next coordinator removes `moving`,
//!   the source unseals its slots, and the target deletes the copy.
//! - After the commit, the target activates the copy and the source deletes its rows, each when its
//!   volume is opened. No second move begins before all volumes have finished.
//!
//! Deliberately absent above the traits `Membership`, `Authority` and `Volumes`: any assumption
//! about a shared disk or file locks.

pub(crate) mod channel;
pub(crate) mod engine;
mod local;
pub(crate) mod peer_call;
pub(crate) mod peer_client;
mod peer_connector;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use imt_ring::{Member, NodeName};
use serde::{Deserialize, Serialize};

use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::NodeError;
use crate::storage::volume::Volume;

pub use crate::cluster::engine::{
    EngineCheck, EngineView, FurtherEngine, Verdict, VolumeCopy, check_engine, check_further_engine,
    engine_answers, export_volume, init_engine, promote_standby, rebuild_volume, reload_standby,
    standby_position, view_engine,
};
pub(crate) use crate::cluster::local::LocalCluster;
pub use crate::cluster::local::{
    check_warehouse, has_coordinator, is_node_running, node_infos, read_ring, read_secret, read_warehouse,
};
pub use crate::cluster::peer_client::{NodeClient, NodeUnreachable};
pub(crate) use crate::cluster::state::{ClusterState, SlotSet, ranges, slots_in};

/// The description that a node's process publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node's name.
    pub name: NodeName,
    /// The address of the node's HTTP API.
    pub address: SocketAddr,
    /// The id of the node's process.
    pub process: u32,
    /// Start of the process in UTC milliseconds.
    pub started_at_ms: u64,
    /// The node's share of the slots, relative to the weights of the other nodes.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// The failure zone of the node.
    #[serde(default)]
    pub zone: Option<String>,
}

fn default_weight() -> u32 {
    1
}

impl NodeInfo {
    /// Returns the node as a member of the ring.
    ///
    /// # Errors
    /// Returns an error if the weight or the zone is invalid.
    pub fn member(&self) -> Result<Member, imt_ring::Error> {
        let member = Member::new(&self.name)?.with_weight(self.weight)?;
        match &self.zone {
            Some(zone) => member.with_zone(zone),
            None => Ok(member),
        }
    }
}

/// An event for the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// This process has become the coordinator.
    Elected,
    /// A node has stopped or died.
    Gone(NodeName),
    /// A node has started, or asks the coordinator to check the cluster.
    Hello,
    /// A node asks to leave the cluster permanently.
    Leave(NodeName),
    /// An operator names another warehouse for the cluster.
    Warehouse(WarehouseUrl),
    /// An operator names a further engine for volumes: its name and its URL.
    Engine(String, String),
    /// Another process has become the coordinator in place of this one.
    Deposed,
    /// Another process has the name of this node. This one must end.
    Replaced,
    /// The state has changed.
    Changed,
}

/// Returns the warehouse of the cluster, or the refusal of a node that asks for another one.
fn agreed_warehouse(asked: Option<&WarehouseUrl>, known: String) -> Result<String, NodeError> {
    match asked {
        Some(asked) if asked.to_string() != known => Err(NodeError::OtherWarehouse {
            asked: asked.to_string(),
            known,
        }),
        _ => Ok(known),
    }
}

/// Membership of this node in the cluster.
pub(crate) trait Membership: Send + Sync {
    /// Returns this node's name.
    fn name(&self) -> &NodeName;

    /// Publishes this node's address and description.
    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError>;

    /// Returns the nodes that are alive, this one included.
    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError>;

    /// Returns the published descriptions of all nodes, alive or not.
    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError>;

    /// Removes the description of a node that is no longer a member, unless its process is alive.
    fn forget(&self, node: &NodeName) -> Result<(), NodeError>;

    /// Sends one event when that node stops.
    fn watch(&self, node: &NodeName, events: tokio::sync::mpsc::UnboundedSender<Event>);

    /// Stands for election: sends an event once, when this process becomes the coordinator. The
    /// event is sent immediately if it is the coordinator already.
    fn stand(self: Arc<Self>, events: tokio::sync::mpsc::UnboundedSender<Event>);

    /// Announces that this node will stop. It serves its volumes until other nodes do, and gets no
    /// more.
    fn retire(&self);

    /// Ends the membership of this node.
    fn withdraw(&self);

    /// Returns the secret that authenticates nodes to each other.
    fn secret(&self) -> &str;

    /// Returns `true` if each volume has a log that a second node can follow.
    fn has_followers(&self) -> bool {
        false
    }
}

/// A result that may need a wait for a disk or a network.
pub(crate) type Soon<'a, T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send + 'a>>;

/// Access to the cluster's state, which all nodes share.
pub(crate) trait Authority: Send + Sync {
    /// Returns the current state.
    fn read(&self) -> Soon<'_, ClusterState>;

    /// Replaces the state, atomically and durably. Fails unless this process is the coordinator and
    /// the state has the next version.
    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()>;
}

/// The expected existence of a volume that is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The ring names it, so it existed before. An empty volume in its place would hide the loss of
    /// its orders.
    Existing,
    /// It has no slots yet, and is created if it does not exist.
    MaybeNew,
}

/// The identity of the log of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeLog {
    /// The version of the cluster's state that created the volume.
    pub(crate) born: u64,
    /// The URL of the engine that has the log. `None` is the engine with the cluster's state.
    pub(crate) engine: Option<String>,
}

/// Access to the volumes of the cluster.
pub(crate) trait Volumes: Send + Sync {
    /// Opens a volume. Returns `None` if another process still has it open. While it is open here,
    /// no other process commits to it. Where ownership can be lost during the life of this process,
    /// the volume knows it (`Volume::is_ours`) and its commits are rejected. Fails with
    /// `NodeError::VolumeMissing` if an existing volume was expected and is not found.
    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>>;

    /// Tells the next server of a volume that this process has closed it. Call it after the close.
    fn release(self: Arc<Self>, _volume: NodeName) -> Soon<'static, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Removes a volume that has no slots any more.
    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()>;

    /// Keeps local copies of exactly these volumes, which other nodes serve, close to their logs.
    fn follow(self: Arc<Self>, _volumes: BTreeMap<NodeName, VolumeLog>) -> Soon<'static, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
