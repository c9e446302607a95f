//! A node as a member of the cluster: it takes part in the election of the coordinator, serves its
//! volumes and routes requests.
//!
//! **Invariants**
//! - Everything outside the process is passed in: membership, authority and volumes (`cluster`),
//!   calls between nodes (`peer_client`), the warehouse and the clock (`NodeContext`). So the
//!   simulation runs this code unchanged.
//! - If other nodes run, a stopping node lets them take over its volumes before it stops
//!   coordinating and serving. It waits at most `HAND_OVER_TIMEOUT`.
//!
//! Deliberately absent: sockets and files, which `node` opens for a real process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::peer_call::PeerCall;
use crate::cluster::peer_client::Peers;
use crate::cluster::{Authority, Event, Membership, NodeInfo, Volumes};
use crate::config::NodeContext;
use crate::control::coordinator::coordinate;
use crate::control::handle::ClusterHandle;
use crate::control::reconciler::Reconciler;
use crate::control::topology::Topology;
use crate::error::{NodeError, with_causes};
use crate::runtime;
use crate::runtime::watch;

/// Longest time until a starting node serves its own volume. Afterwards the start fails.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that a stopping node waits for other nodes to take over its volumes. Afterwards it
/// closes its remaining volumes, which other nodes can then open.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest pause between two calls of a node to the other nodes (`PeerCall::Hello`) while it waits
/// for its admission, or for its volumes to be taken over. Also the timeout of such a call.
const HELLO_INTERVAL: Duration = Duration::from_millis(200);

/// A running node as a member of the cluster.
pub(crate) struct Member {
    cluster: Arc<ClusterHandle>,
    stop: watch::Sender<bool>,
    stop_reconciling: watch::Sender<bool>,
    coordinating: JoinHandle<()>,
    reconciling: JoinHandle<Result<(), NodeError>>,
    troubles: watch::Receiver<Option<Arc<NodeError>>>,
}

impl Member {
    /// Starts the tasks of the coordinator and of the reconciler.
    pub(crate) async fn begin<C>(
        backend: Arc<C>,
        peers: Peers,
        context: NodeContext,
    ) -> Result<Member, NodeError>
    where
        C: Membership + Authority + Volumes + 'static,
    {
        let (events, received) = mpsc::unbounded_channel();
        let state = backend.read().await?;
        let ring = Arc::new(state.ring.clone());
        let name = backend.name().clone();
        let topology = Topology::new(name, state, ring, BTreeMap::new(), backend.node_infos()?);
        let cluster = ClusterHandle::new(
            topology,
            Arc::new(peers),
            Arc::clone(&backend) as Arc<dyn Membership>,
            Arc::clone(&backend) as Arc<dyn Authority>,
            Arc::clone(&context.metrics),
            events,
        );
        let (stop, stopped) = watch::channel(false);
        let (stop_reconciling, reconciler_stopped) = watch::channel(false);
        let (trouble, troubles) = watch::channel(None);
        let reconciler = Reconciler::new(Arc::clone(&cluster), context, backend as Arc<dyn Volumes>);
        Ok(Member {
            coordinating: runtime::spawn(coordinate(Arc::clone(&cluster), received, stopped)),
            reconciling: runtime::spawn(reconciler.run(reconciler_stopped, trouble)),
            cluster,
            stop,
            stop_reconciling,
            troubles,
        })
    }

    /// Returns the handle through which requests are routed.
    pub(crate) fn cluster(&self) -> &Arc<ClusterHandle> {
        &self.cluster
    }

    /// Returns a signal that becomes `true` when this node begins to stop.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Contacts the other nodes and waits until this node serves its own volume. Fails after
    /// `ADMISSION_TIMEOUT`, or if the reconciler could not apply the cluster's state.
    pub(crate) async fn admitted(&self) -> Result<(), NodeError> {
        let cluster = &self.cluster;
        let mut troubles = self.troubles.clone();
        let others = cluster.membership.alive()?;
        let until = Instant::now() + ADMISSION_TIMEOUT;
        loop {
            let changed = cluster.topology_changed();
            if cluster.topology().servers.contains_key(&cluster.me) {
                return Ok(());
            }
            if let Some(error) = troubles.borrow_and_update().as_ref() {
                return Err(NodeError::Failed {
                    source: Arc::clone(error),
                });
            }
            if Instant::now() >= until {
                return Err(NodeError::NotAdmitted {
                    name: cluster.me.to_string(),
                });
            }
            self.say_hello(&others);
            tokio::select! {
                biased;
                () = changed => {}
                _ = troubles.changed() => {}
                () = tokio::time::sleep(HELLO_INTERVAL) => {}
            }
        }
    }

    /// Lets other nodes take over this node's volumes. Does nothing if no other node is alive, and
    /// waits for at most `HAND_OVER_TIMEOUT`. Until this node stops serving, it forwards requests
    /// for the volumes that were taken over.
    pub(crate) async fn hand_over(&self) {
        let cluster = &self.cluster;
        let others = cluster.membership.alive().unwrap_or_default();
        if others.iter().all(|node_info| node_info.name == cluster.me) {
            return;
        }
        // Each volume is still served while a checkpoint of its database is written. Afterwards,
        // closing writes little. In a data folder, the next node also replays little. So the time
        // without service is short.
        for server in cluster.topology().servers.values() {
            if let Err(error) = server.checkpoint().await {
                tracing::warn!(volume = %server.volume, error = with_causes(&error), "no checkpoint written before the hand-over");
            }
        }
        cluster.membership.retire();
        let _ = cluster.events.send(Event::Hello);
        let until = Instant::now() + HAND_OVER_TIMEOUT;
        loop {
            let changed = cluster.topology_changed();
            if cluster.topology().servers.is_empty() || Instant::now() >= until {
                return;
            }
            self.say_hello(&others);
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep(HELLO_INTERVAL) => {}
            }
        }
    }

    fn say_hello(&self, others: &[NodeInfo]) {
        for node_info in others
            .iter()
            .filter(|node_info| node_info.name != self.cluster.me)
        {
            let (peers, address) = (Arc::clone(&self.cluster.peers), node_info.address);
            runtime::spawn(async move {
                // The answer is of no use: a lost message is repeated after `HELLO_INTERVAL`.
                let _ = peers
                    .ask::<bool>(address, &PeerCall::Hello, &(), HELLO_INTERVAL)
                    .await;
            });
        }
    }

    /// Stops coordinating and signals the stop. The volumes are still served until `end`.
    pub(crate) fn begin_to_stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Closes all volumes and withdraws the node from the cluster. Must be called after
    /// `begin_to_stop`, because the function waits for the end of the coordinator's task. The wait
    /// for an engine that does not answer has a bound (`Reconciler::run`).
    pub(crate) async fn end(self) -> Result<(), NodeError> {
        // The task ends at the stop signal. A panic in it has already been logged.
        let _ = self.coordinating.await;
        let _ = self.stop_reconciling.send(true);
        let reconciled = self.reconciling.await;
        self.cluster.membership.withdraw();
        reconciled.map_err(|error| NodeError::Config {
            setting: "data",
            reason: error.to_string(),
        })?
    }
}
