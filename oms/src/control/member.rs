//! A node among the others: coordinating, keeping volumes, answering through the gate; however it
//! is reached and wherever its volumes lie.
//!
//! What is below comes in from outside: membership, authority and volumes (`cluster`), the calls
//! between nodes (`peer_client`), the warehouse and the clock (`NodeContext`). `node` brings those
//! of a real process, the simulation brings its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api::cors::Cors;
use crate::cluster::peer_client::Peers;
use crate::cluster::{Authority, Event, Membership, NodeInfo, Volumes};
use crate::control::coordinator::coordinate;
use crate::control::handle::ClusterHandle;
use crate::control::reconciler::Reconciler;
use crate::control::topology::Topology;
use crate::error::{NodeError, with_reasons};
use crate::runtime;
use crate::volume::server::NodeContext;

/// Longest time for a node to be let in by the others.
const ADMISSION: Duration = Duration::from_secs(30);
/// Longest time for the others to take a node's volumes over; after it they are let go of, and
/// taken over then.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How often a node that is not let in yet, or that wants to go, says hello.
const HELLO: Duration = Duration::from_millis(200);

/// A node at work.
pub(crate) struct Member {
    cluster: Arc<ClusterHandle>,
    stop: watch::Sender<bool>,
    stop_keeping: watch::Sender<bool>,
    coordinating: JoinHandle<()>,
    keeping: JoinHandle<Result<(), NodeError>>,
    troubles: watch::Receiver<Option<Arc<NodeError>>>,
}

impl Member {
    /// Begins to coordinate, if that falls to this node, and to serve what it is given to serve.
    pub(crate) async fn begin<C>(
        backend: Arc<C>,
        peers: Peers,
        context: NodeContext,
    ) -> Result<Member, NodeError>
    where
        C: Membership + Authority + Volumes + 'static,
    {
        let (events, told) = mpsc::unbounded_channel();
        let state = backend.read().await?;
        let ring = Arc::new(state.ring.clone());
        let name = backend.name().clone();
        let topology = Topology::new(name, state, ring, BTreeMap::new(), backend.node_infos()?);
        let cors = Cors::of(&context.config.cors_origins)?;
        let cluster = ClusterHandle::new(
            topology,
            Arc::new(peers),
            Arc::clone(&backend) as Arc<dyn Membership>,
            Arc::clone(&backend) as Arc<dyn Authority>,
            Arc::clone(&context.metrics),
            cors,
            events,
        );
        let (stop, stopped) = watch::channel(false);
        let (stop_keeping, keep_stopped) = watch::channel(false);
        let (trouble, troubles) = watch::channel(None);
        let reconciler = Reconciler::new(Arc::clone(&cluster), context, backend as Arc<dyn Volumes>);
        Ok(Member {
            coordinating: runtime::spawn(coordinate(Arc::clone(&cluster), told, stopped)),
            keeping: runtime::spawn(reconciler.keep(keep_stopped, trouble)),
            cluster,
            stop,
            stop_keeping,
            troubles,
        })
    }

    /// The way in.
    pub(crate) fn cluster(&self) -> &Arc<ClusterHandle> {
        &self.cluster
    }

    /// Says when this node begins to stop.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Says hello to the others and waits until this node serves its own volume.
    pub(crate) async fn admitted(&self) -> Result<(), NodeError> {
        let cluster = &self.cluster;
        let mut troubles = self.troubles.clone();
        let others = cluster.membership.alive()?;
        let until = Instant::now() + ADMISSION;
        loop {
            let batch = cluster.batch();
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
                () = batch => {}
                _ = troubles.changed() => {}
                () = tokio::time::sleep(HELLO) => {}
            }
        }
    }

    /// Has the others take this node's volumes over, if there are others: until they have, and
    /// while the last requests are answered, this node passes on what it is asked.
    pub(crate) async fn hand_over(&self) {
        let cluster = &self.cluster;
        let others = cluster.membership.alive().unwrap_or_default();
        if others.iter().all(|node_info| node_info.name == cluster.me) {
            return;
        }
        // Whoever takes a volume over has little to replay then, and closing it has little to
        // write: nobody serves it meanwhile.
        for server in cluster.topology().servers.values() {
            if let Err(error) = server.checkpoint().await {
                tracing::warn!(volume = %server.volume, error = with_reasons(&error), "no checkpoint could be written before the volume changes hands");
            }
        }
        cluster.membership.retire();
        let _ = cluster.events.send(Event::Hello);
        let until = Instant::now() + HAND_OVER;
        loop {
            let batch = cluster.batch();
            if cluster.topology().servers.is_empty() || Instant::now() >= until {
                return;
            }
            self.say_hello(&others);
            tokio::select! {
                biased;
                () = batch => {}
                () = tokio::time::sleep(HELLO) => {}
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
                // Whoever does not answer does not coordinate either; this is said again.
                let _ = peers.ask::<bool>(address, "/peer/hello", &(), HELLO).await;
            });
        }
    }

    /// Coordinates no more; what comes through the gate is answered until the end.
    pub(crate) fn begin_to_stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Lets go of everything.
    pub(crate) async fn end(self) -> Result<(), NodeError> {
        // Ends at the stop signal; if it panicked it has said so.
        let _ = self.coordinating.await;
        let _ = self.stop_keeping.send(true);
        let kept = self.keeping.await;
        self.cluster.membership.withdraw();
        kept.map_err(|error| NodeError::Config {
            setting: "data",
            reason: error.to_string(),
        })?
    }
}
