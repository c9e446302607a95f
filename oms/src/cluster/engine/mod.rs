//! Nodes on one or many machines that share an *engine*: a PostgreSQL server, or another server
//! with its protocol. The engine stores the cluster's state and the volumes. Further engines may
//! store some of the volumes instead.
//!
//! Each node has a row in the engine with a number, its *beat*, which it increments several times a
//! second. Each node reads the rows of all nodes equally often, which is called a *look*. If the
//! beat of a node stops changing, the other nodes conclude that the process of this node has ended.
//!
//! | part | content |
//! | --- | --- |
//! | `schema` | the tables, and the SQL of the statements about membership and state |
//! | `tables` | these statements as calls: in PostgreSQL, or in the simulation |
//! | `backend` | the engines and local copies of a node: PostgreSQL and folders, or simulated |
//! | `beat` | decisions from beats: which nodes are gone, how long this node may answer reads |
//! | `shared` | the data in memory that the tasks and the callers of this process share |
//! | `tasks` | two tasks, one that beats and one that looks, each with its own connection |
//! | `authority` | replaces the state by compare-and-swap; ends leases, removes rows of nodes |
//! | `volumes` | opens, releases and removes volumes; follows volumes that other nodes serve |
//! | `restored` | volumes in an engine that is later than the cluster's state, after a restore |
//! | `copies` | for the command line: export and rebuild of a volume |
//! | `joining` | the start of a node: checks the engine, takes the name, writes the first state |
//! | `warehouse` | the address of the warehouse, which all nodes share |
//! | `tools` | for the command line: tables, checks, a list of the nodes, control of standbys |
//!
//! **Invariants**
//! - The owner of a volume is the process that took over its log last. The engine refuses commits
//!   of former owners. So the safety of writes depends neither on beats nor on leases. Leases
//!   protect reads, and beats decide how soon a volume is taken over.
//! - The engine acknowledges a beat once its standbys have received it. An *old primary* is a
//!   server that still runs after a fail-over to another server. The standbys do not follow it any
//!   more, so it acknowledges no beat and cannot extend a lease.
//! - After `Authority::read` has read a state, it waits for a beat that is acknowledged on the same
//!   connection. So the state does not come from an old primary.
//! - While the engine does not respond, no node is declared gone.
//! - A volume is taken over once its former server has no lease. That server has released the
//!   volume, or could not extend its lease since the state changed at least `LEASE_WAIT` ago, or
//!   has ended or was silent for that time. In the last case, a *demand* is written to its row
//!   first.
//! - A demand is the version of the state that a silent server must know before a beat extends its
//!   lease. The demand is written only while the row still has the silent server's last beat, and
//!   every later beat returns the demand. So a beat that is under way while the state changes
//!   extends no lease.
//!
//! Replication and fail-over of the engine are the task of PostgreSQL and its operator.

mod authority;
pub(crate) mod backend;
pub(crate) mod beat;
#[cfg(test)]
mod checkpoint_tests;
mod copies;
mod joining;
#[cfg(test)]
mod log_tests;
mod restored;
pub(crate) mod schema;
mod shared;
pub(crate) mod tables;
mod tasks;
mod tools;
mod volumes;
mod warehouse;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use crate::cluster::engine::authority::StateTable;
use crate::cluster::engine::backend::Backend;
pub use crate::cluster::engine::copies::{VolumeCopy, export_volume, rebuild_volume};
pub(crate) use crate::cluster::engine::joining::Joining;
use crate::cluster::engine::restored::Complaints;
use crate::cluster::engine::shared::{Shared, Watcher};
pub use crate::cluster::engine::tools::{
    EngineCheck, EngineView, FurtherEngine, Verdict, check_engine, check_further_engine, engine_answers,
    engine_secret, init_engine, promote_standby, reload_standby, standby_position, view_engine,
};
use crate::cluster::engine::volumes::Waiting;
use crate::cluster::{Authority, ClusterState, Event, Membership, NodeInfo, Soon};
use crate::error::NodeError;
use crate::runtime;
use crate::storage::follow::Followers;

/// Longest wait for the acknowledgement of the last beat. The last beat tells the other nodes that
/// this process has ended.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// The membership of this process in an engine's cluster, and its access to the cluster's state and
/// volumes.
pub(crate) struct EngineCluster {
    backend: Arc<dyn Backend>,
    name: NodeName,
    secret: String,
    shared: Arc<Shared>,
    table: Arc<StateTable>,
    beating: parking_lot::Mutex<Option<JoinHandle<()>>>,
    followers: Followers,
    /// Volumes that wait for the end of their former server's lease.
    waiting: parking_lot::Mutex<BTreeMap<NodeName, Waiting>>,
    /// For each volume that this process has opened and not removed since: the epoch under which it
    /// was opened last.
    epochs: parking_lot::Mutex<BTreeMap<NodeName, u64>>,
    /// The last error of each volume that was not opened because it is ahead of the state.
    complaints: Complaints,
    /// Number of attempts to open a volume that failed although no former server of the volume had
    /// a lease. It selects the host of the engine that the next attempt tries first.
    unopened: AtomicUsize,
}

impl EngineCluster {
    /// Waits until the last beat of this process is acknowledged or has failed, for at most
    /// `FAREWELL_TIMEOUT`. Must be called after `withdraw`, which causes the last beat.
    pub(crate) async fn farewell(&self) {
        let beating = self.beating.lock().take();
        if let Some(beating) = beating {
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, beating).await;
        }
    }
}

impl Drop for EngineCluster {
    fn drop(&mut self) {
        self.shared.withdraw();
    }
}

impl Membership for EngineCluster {
    fn name(&self) -> &NodeName {
        &self.name
    }

    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError> {
        // The next beat writes the description to the engine.
        self.shared.publish(Some(node_info.clone()));
        Ok(())
    }

    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError> {
        Ok(self.shared.alive())
    }

    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError> {
        Ok(self.shared.node_infos())
    }

    fn forget(&self, node: &NodeName) -> Result<(), NodeError> {
        let Some(gone) = self.shared.gone(node) else {
            return Ok(());
        };
        let (table, node) = (Arc::clone(&self.table), node.clone());
        runtime::spawn(async move {
            if let Err(error) = table.remove_node(&node, &gone).await {
                let error = crate::error::with_causes(&error);
                tracing::debug!(%node, error, "row of a gone node not removed");
            }
        });
        Ok(())
    }

    fn watch(&self, node: &NodeName, events: UnboundedSender<Event>) {
        self.shared.watch(Watcher {
            node: node.clone(),
            events,
        });
    }

    fn stand(self: Arc<Self>, events: UnboundedSender<Event>) {
        self.shared.stand(events);
    }

    fn retire(&self) {
        self.shared.publish(None);
    }

    fn withdraw(&self) {
        self.shared.withdraw();
    }

    fn secret(&self) -> &str {
        &self.secret
    }

    fn has_followers(&self) -> bool {
        true
    }
}

impl Authority for EngineCluster {
    fn read(&self) -> Soon<'_, ClusterState> {
        Box::pin(async move { Ok(self.shared.read_state().await?.state) })
    }

    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()> {
        Box::pin(async move { self.table.replace(&self.shared, &next).await })
    }
}
