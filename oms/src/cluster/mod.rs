//! Traits for the membership of nodes, the shared state of the cluster, and the opening of volumes.
//!
//! **Invariants**
//! 1. At most one process serves a slot: the one that has opened the slot's volume. In a data
//!    folder, opening a volume takes a file lock, which the kernel grants to one process. In an
//!    engine, opening a volume raises its epoch, and commits with a lower epoch are refused.
//! 2. The slot of a command is checked under the same lock under which the command's rows are
//!    queued. If the slot is sealed or elsewhere, the command is rejected (`OrderError::Moved`) and
//!    routed again.
//! 3. The cluster's state, with the ring, is the only authority. Its replacement is the commit
//!    point of every change, and only the coordinator may replace it. On an engine, a process
//!    becomes the coordinator by such a replacement.
//! 4. If a volume contains rows of a slot that it does not own, these rows are never served.
//!
//! **States.** For a volume, a slot is *here*, *sealed* (still here, but accepting no writes,
//! during a move or before the volume is closed) or *elsewhere*. A move is *begun* while `moving`
//! in the state contains the next ring. The move is *committed* once the next ring has become the
//! ring, and *undone* if `moving` is emptied and the ring stays unchanged.
//!
//! **Crash at any step.**
//! - Before the move is committed, the copied rows belong to slots that the target does not own, so
//!   no process serves them. Stock rows are staged in the table `arriving`. The coordinator, or the
//!   next one, removes `moving`, the source unseals its slots, and the target deletes the copy.
//! - After the move is committed, the target activates the copied rows and the source deletes its
//!   rows. If a process crashes first, the next process that opens its volume does this work. No
//!   second move begins before all volumes have finished.
//!
//! Callers of the traits `Membership`, `Authority` and `Volumes` assume neither a shared disk nor
//! file locks.

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
    engine_answers, engine_secret, export_volume, init_engine, promote_standby, rebuild_volume,
    reload_standby, standby_position, view_engine,
};
pub(crate) use crate::cluster::local::LocalCluster;
pub use crate::cluster::local::{
    check_warehouse, has_coordinator, is_node_running, node_infos, read_ring, read_secret, read_warehouse,
};
pub use crate::cluster::peer_client::{NodeClient, NodeUnreachable};
pub(crate) use crate::cluster::state::{ClusterState, SlotSet, ranges, slots_in};

/// The description that the process of a node publishes for other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node's name.
    pub name: NodeName,
    /// The address of the node's HTTP API.
    pub address: SocketAddr,
    /// The operating system's id of the node's process.
    pub process: u32,
    /// Start of the node, in UTC milliseconds since 1970.
    pub started_at_ms: u64,
    /// The node's weight. The node's share of the slots is proportional to its weight.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// The failure zone of the node, such as a rack or a data center.
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

/// An event for the coordinator's task. Every node runs this task, but the task makes decisions
/// only while its process is the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// This process has become the coordinator.
    Elected,
    /// A node is gone: it has withdrawn, its process has ended or, on an engine, its beats have
    /// stopped.
    Gone(NodeName),
    /// The coordinator should compare the running nodes with the state, for example because a node
    /// has started or is stopping.
    Hello,
    /// An operator asks that the named node leaves the cluster permanently.
    Leave(NodeName),
    /// An operator sets another warehouse for the cluster.
    Warehouse(WarehouseUrl),
    /// An operator adds an engine that may store volumes, with this name and URL. The name may be
    /// known with another URL, which this URL replaces.
    Engine(String, String),
    /// Another process has become the coordinator, so this process no longer is.
    Deposed,
    /// Another process has taken the name of this node, or the row of this node in the engine was
    /// removed. So this process must end.
    Replaced,
    /// The cluster's state has changed.
    Changed,
}

/// Returns `known`, the URL of the cluster's warehouse. Fails if `asked`, the setting of this node,
/// is another URL.
fn agreed_warehouse(asked: Option<&WarehouseUrl>, known: String) -> Result<String, NodeError> {
    match asked {
        Some(asked) if asked.to_string() != known => Err(NodeError::OtherWarehouse {
            asked: asked.to_string(),
            known,
        }),
        _ => Ok(known),
    }
}

/// The membership of this node in the cluster.
pub(crate) trait Membership: Send + Sync {
    /// Returns this node's name.
    fn name(&self) -> &NodeName;

    /// Publishes this node's address and description.
    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError>;

    /// Returns the published descriptions of the nodes that run, including this node. A node that
    /// has retired has no description.
    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError>;

    /// Returns the published descriptions of all nodes, including nodes that are gone.
    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError>;

    /// Removes the published description of a node, unless the node's process runs.
    fn forget(&self, node: &NodeName) -> Result<(), NodeError>;

    /// Sends `Event::Gone` once, when `node` has withdrawn, its process has ended or, on an engine,
    /// its beats have stopped.
    fn watch(&self, node: &NodeName, events: tokio::sync::mpsc::UnboundedSender<Event>);

    /// Stands for election as the coordinator. Sends `Event::Elected` when this process becomes the
    /// coordinator, or at once if it is the coordinator already. On an engine, `Event::Deposed`,
    /// `Event::Replaced`, `Event::Changed` and `Event::Hello` go to `events` too.
    fn stand(self: Arc<Self>, events: tokio::sync::mpsc::UnboundedSender<Event>);

    /// Removes this node's description, because the node will stop. The coordinator then gives the
    /// node no further volumes and assigns its volumes to other nodes.
    fn retire(&self);

    /// Ends the membership of this node. In a data folder, its locks are released. On an engine,
    /// the next beat is its last one.
    fn withdraw(&self);

    /// Returns the secret by which nodes authenticate each other.
    fn secret(&self) -> &str;

    /// Returns `true` if volumes have logs that other nodes can follow.
    fn has_followers(&self) -> bool {
        false
    }
}

/// The future of a call that may wait for a disk or a network.
pub(crate) type Soon<'a, T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send + 'a>>;

/// Access to the cluster's state, which all nodes share.
pub(crate) trait Authority: Send + Sync {
    /// Returns the current state of the cluster.
    fn read(&self) -> Soon<'_, ClusterState>;

    /// Replaces the state atomically and durably. Fails unless this process is the coordinator and
    /// `next` has the version after the current one.
    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()>;
}

/// Tells if a volume that is to be opened must exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The volume is a member of the ring, so it was created earlier and must exist. Creating an
    /// empty volume in its place would hide the loss of its orders.
    Existing,
    /// The volume is not a member of the ring, so it has no slots. It is created if it does not
    /// exist.
    MaybeNew,
}

/// Identifies a volume's log in an engine, together with the volume's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeLog {
    /// The version of the cluster's state in which the volume was created; 0 if it is unknown. It
    /// distinguishes the volume from an earlier volume of the same name, which was removed.
    pub(crate) born: u64,
    /// The URL of the engine that stores the log; `None` for the engine with the cluster's state.
    pub(crate) engine: Option<String>,
}

/// Access to the volumes of the cluster.
pub(crate) trait Volumes: Send + Sync {
    /// Opens a volume. Returns `None` if the volume cannot be opened yet, for example because
    /// another process still has it open. In a data folder, no other process can open the volume
    /// until it is closed. On an engine, another process may take the volume over. Then
    /// `Volume::is_ours` returns `false`, and commits are rejected. Fails with an error of
    /// `NodeError::is_missing_volume` if an existing volume was expected and is not found.
    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>>;

    /// On an engine, tells the next server of a volume that this process has closed the volume.
    /// Must be called after the volume was closed. May be repeated, also after a success.
    fn release(self: Arc<Self>, _volume: NodeName) -> Soon<'static, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Removes a volume that no longer has slots, and that this process has opened and closed. May
    /// be repeated after an error. On an engine, has no effect on a volume that was opened since.
    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()>;

    /// Returns `true` if the volumes are files of this machine. Their removal needs no answer of
    /// another machine, and must not be interrupted.
    fn are_local(&self) -> bool {
        true
    }

    /// Makes this node follow these volumes, which other nodes serve, and no others. To follow a
    /// volume, the node applies each new entry of the volume's log to a local copy.
    fn follow(self: Arc<Self>, _volumes: BTreeMap<NodeName, VolumeLog>) -> Soon<'static, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}
