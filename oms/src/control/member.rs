//! A node among the others: coordinating, keeping volumes, answering through the gate; however it
//! is reached and wherever its volumes lie.
//!
//! What is below comes in from outside: membership, authority and volumes (`cluster`), the calls
//! between nodes (`peers`), the warehouse and the clock (the kit). `node` brings those of a real
//! process, the simulation brings its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api::cors::Cors;
use crate::cluster::peer_client::Peers;
use crate::cluster::{Authority, Card, Event, Membership, Volumes};
use crate::control::coordinator::coordinate;
use crate::control::handle::Gate;
use crate::control::reconciler::Keeper;
use crate::control::topology::View;
use crate::error::{NodeError, with_reasons};
use crate::runtime;
use crate::volume::server::Kit;

/// Longest time for a node to be let in by the others.
const ADMISSION: Duration = Duration::from_secs(30);
/// Longest time for the others to take a node's volumes over; after it they are let go of, and
/// taken over then.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How often a node that is not let in yet, or that wants to go, says hello.
const HELLO: Duration = Duration::from_millis(200);

/// A node at work.
pub(crate) struct Member {
    gate: Arc<Gate>,
    stop: watch::Sender<bool>,
    stop_keeping: watch::Sender<bool>,
    coordinating: JoinHandle<()>,
    keeping: JoinHandle<Result<(), NodeError>>,
    troubles: watch::Receiver<Option<Arc<NodeError>>>,
}

impl Member {
    /// Begins to coordinate, if that falls to this node, and to serve what it is given to serve.
    pub(crate) async fn begin<C>(cluster: Arc<C>, peers: Peers, kit: Kit) -> Result<Member, NodeError>
    where
        C: Membership + Authority + Volumes + 'static,
    {
        let (events, told) = mpsc::unbounded_channel();
        let state = cluster.read().await?;
        let ring = Arc::new(state.ring.clone());
        let name = cluster.name().clone();
        let view = View::new(name, state, ring, BTreeMap::new(), cluster.cards()?);
        let cors = Cors::of(&kit.config.cors_origins)?;
        let gate = Gate::new(
            view,
            Arc::new(peers),
            Arc::clone(&cluster) as Arc<dyn Membership>,
            Arc::clone(&cluster) as Arc<dyn Authority>,
            Arc::clone(&kit.metrics),
            cors,
            events,
        );
        let (stop, stopped) = watch::channel(false);
        let (stop_keeping, keep_stopped) = watch::channel(false);
        let (trouble, troubles) = watch::channel(None);
        let keeper = Keeper::new(Arc::clone(&gate), kit, cluster as Arc<dyn Volumes>);
        Ok(Member {
            coordinating: runtime::spawn(coordinate(Arc::clone(&gate), told, stopped)),
            keeping: runtime::spawn(keeper.keep(keep_stopped, trouble)),
            gate,
            stop,
            stop_keeping,
            troubles,
        })
    }

    /// The way in.
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Says when this node begins to stop.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Says hello to the others and waits until this node serves its own volume.
    pub(crate) async fn admitted(&self) -> Result<(), NodeError> {
        let gate = &self.gate;
        let mut troubles = self.troubles.clone();
        let others = gate.membership.alive()?;
        let until = Instant::now() + ADMISSION;
        loop {
            let changes = gate.changes();
            if gate.view().posts.contains_key(&gate.me) {
                return Ok(());
            }
            if let Some(error) = troubles.borrow_and_update().as_ref() {
                return Err(NodeError::Failed {
                    source: Arc::clone(error),
                });
            }
            if Instant::now() >= until {
                return Err(NodeError::NotAdmitted {
                    name: gate.me.to_string(),
                });
            }
            self.say_hello(&others);
            tokio::select! {
                biased;
                () = changes => {}
                _ = troubles.changed() => {}
                () = tokio::time::sleep(HELLO) => {}
            }
        }
    }

    /// Has the others take this node's volumes over, if there are others: until they have, and
    /// while the last requests are answered, this node passes on what it is asked.
    pub(crate) async fn hand_over(&self) {
        let gate = &self.gate;
        let others = gate.membership.alive().unwrap_or_default();
        if others.iter().all(|card| card.name == gate.me) {
            return;
        }
        // Whoever takes a volume over has little to replay then, and closing it has little to
        // write: nobody serves it meanwhile.
        for post in gate.view().posts.values() {
            if let Err(error) = post.checkpoint().await {
                tracing::warn!(volume = %post.volume, error = with_reasons(&error), "no checkpoint could be written before the volume changes hands");
            }
        }
        gate.membership.retire();
        let _ = gate.events.send(Event::Hello);
        let until = Instant::now() + HAND_OVER;
        loop {
            let changes = gate.changes();
            if gate.view().posts.is_empty() || Instant::now() >= until {
                return;
            }
            self.say_hello(&others);
            tokio::select! {
                biased;
                () = changes => {}
                () = tokio::time::sleep(HELLO) => {}
            }
        }
    }

    fn say_hello(&self, others: &[Card]) {
        for card in others.iter().filter(|card| card.name != self.gate.me) {
            let (peers, address) = (Arc::clone(&self.gate.peers), card.address);
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
        self.gate.membership.withdraw();
        kept.map_err(|error| NodeError::Config {
            setting: "data",
            reason: error.to_string(),
        })?
    }
}
