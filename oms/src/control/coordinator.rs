//! The coordinator: assigns volumes to nodes, starts migrations of slots and records the decisions
//! in the cluster's state.
//!
//! Every node runs this task. The task decides only while its process is the coordinator. Each
//! round compares the running nodes with the state and takes the next necessary step. For example,
//! a step assigns volumes of dead nodes to running nodes, returns a volume to its own node, or
//! moves slots to a new node or away from a leaving one.
//!
//! **Invariants**
//! - Each decision takes effect by one replacement of the state. Afterwards the other running nodes
//!   are notified.
//! - The commit point of a migration is the replacement that makes the new ring the active one.
//! - A coordinator that ends between two steps leaves a state from which the next coordinator
//!   continues.
//!
//! Deliberately absent: opening volumes, which the reconciler does, and the copies of a migration
//! (`copying`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::{Member, NodeName};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cluster::peer_call::{PeerCall, VolumeCall, VolumeQuestion};
use crate::cluster::peer_client::NoAnswer;
use crate::cluster::state::Unleavable;
use crate::cluster::{ClusterState, Event, NodeInfo};
use crate::control::copying::copy_all;
use crate::control::errand::{Attempt, Destination, Errand};
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::{NodeError, with_causes};
use crate::runtime;
use crate::runtime::watch;
use crate::volume::server::VolumeServer;

/// Timeout of the message that tells a node of a new state of the cluster, and of a request for the
/// progress of a copy. A node that misses the message usually reads the state within a second,
/// because every node reads the state periodically.
const NOTIFY_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time that a migration waits, before it begins, for all volumes to follow the ring and to
/// remove the rows of earlier migrations.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(600);
/// Timeout of one request that asks a volume if the rows of earlier migrations are removed. Shorter
/// than `CLEANUP_TIMEOUT`, so that the node's status soon shows why the migration waits.
const CLEANUP_QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause before the next round, after a round failed, or after a migration failed, was
/// interrupted or could not begin. An event ends the pause early.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause between two requests that ask a volume if the rows of earlier migrations are removed.
const CLEANUP_QUESTION_PAUSE: Duration = Duration::from_millis(20);

struct Coordinator {
    cluster: Arc<ClusterHandle>,
    /// Other nodes that were seen alive and were not reported as gone since. A stopping node stays
    /// in the map after it has removed its description, so that it is notified as soon as the state
    /// assigns its volumes to other nodes.
    watched: BTreeMap<NodeName, NodeInfo>,
    leaving: BTreeSet<NodeName>,
    /// Warehouse that an operator has set and that is not yet in the cluster's state.
    warehouse: Option<WarehouseUrl>,
    /// Names and URLs of the engines that operators have added and that are not yet in the
    /// cluster's state.
    engines: BTreeMap<String, String>,
    is_elected: bool,
}

/// Acts as the coordinator whenever this process is elected, until `stop` becomes true.
pub(crate) async fn coordinate(
    cluster: Arc<ClusterHandle>,
    mut events: mpsc::UnboundedReceiver<Event>,
    mut stop: watch::Receiver<bool>,
) {
    let mut coordinator = Coordinator {
        watched: BTreeMap::new(),
        leaving: BTreeSet::new(),
        warehouse: None,
        engines: BTreeMap::new(),
        is_elected: false,
        cluster: Arc::clone(&cluster),
    };
    Arc::clone(&cluster.membership).stand(cluster.events.clone());
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            event = events.recv() => match event {
                Some(event) => coordinator.handle_event(event),
                None => return,
            },
        }
        while let Ok(event) = events.try_recv() {
            coordinator.handle_event(event);
        }
        if !coordinator.is_elected {
            continue;
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = coordinator.run_rounds(&mut events) => {}
        }
    }
}

impl Coordinator {
    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Elected => {
                self.is_elected = true;
                tracing::info!(node = %self.cluster.me, "node became the coordinator");
            }
            Event::Gone(node) => {
                self.watched.remove(&node);
                // A stopping node removes its description before its process ends. A killed node
                // leaves its description behind.
                let node_infos = self.cluster.membership.node_infos().unwrap_or_default();
                if node_infos.iter().any(|node_info| node_info.name == node) {
                    tracing::warn!(%node, "node went down");
                } else if self.cluster.topology().ring.member(&node).is_some() {
                    tracing::info!(%node, "node stopped");
                } else {
                    tracing::info!(%node, "node left");
                }
            }
            // Operators' requests go to all nodes. Only the coordinator acts on them.
            Event::Leave(node) if self.is_elected => _ = self.leaving.insert(node),
            Event::Leave(_) => {}
            Event::Warehouse(warehouse) => self.warehouse = Some(warehouse).filter(|_| self.is_elected),
            Event::Engine(name, url) if self.is_elected => _ = self.engines.insert(name, url),
            Event::Engine(..) => {}
            Event::Hello => {}
            Event::Changed => self.cluster.look.notify_one(),
            Event::Deposed => {
                self.is_elected = false;
                // A process that is not the coordinator publishes no trouble and acts on no
                // operator's request, so all of them are dropped.
                self.cluster.set_trouble(None);
                self.warehouse = None;
                self.engines.clear();
                self.leaving.clear();
                tracing::warn!(node = %self.cluster.me, "another node became the coordinator");
            }
            Event::Replaced => {
                self.is_elected = false;
                tracing::error!(node = %self.cluster.me, "another process has this node's name; stopping");
                self.cluster.asked_to_stop.send_replace(true);
            }
        }
    }

    /// Runs rounds until no further step can follow at once. After a failure, starts the next round
    /// later.
    async fn run_rounds(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) {
        // Another process may have become the coordinator during the last round.
        while self.is_elected {
            match self.round(events).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let reason = with_causes(&error);
                    if self.cluster.set_trouble(Some(reason.clone())) {
                        tracing::error!(error = reason, "coordination failed");
                    }
                    self.retry_later();
                    return;
                }
            }
        }
    }

    /// Writes to the state the warehouse that an operator has set, and returns the new state.
    /// `None` if no warehouse was set, or if the state has it already. If writing fails, the
    /// request is kept for the next round.
    async fn set_named_warehouse(&mut self, state: &ClusterState) -> Result<Option<ClusterState>, NodeError> {
        let Some(named) = self.warehouse.as_ref().map(ToString::to_string) else {
            return Ok(None);
        };
        let next = state.with_warehouse(&named);
        if let Some(next) = &next {
            self.replace(next).await?;
            let before = state.warehouse.as_deref().unwrap_or("none");
            tracing::info!(from = before, to = named, "warehouse of the cluster changed");
        }
        self.warehouse = None;
        Ok(next)
    }

    /// Writes to the state the engines that operators have added, and returns the new state. `None`
    /// if no engine was added, or if the state has all of them already. If writing fails, the
    /// request is kept for the next round.
    async fn add_named_engines(&mut self, state: &ClusterState) -> Result<Option<ClusterState>, NodeError> {
        let mut last = None;
        while let Some((name, url)) = self.engines.first_key_value() {
            if let Some(next) = last.as_ref().unwrap_or(state).with_engine(name, url) {
                self.replace(&next).await?;
                tracing::info!(name, url, "engine added; new volumes are placed on it too");
                last = Some(next);
            }
            self.engines.pop_first();
        }
        Ok(last)
    }

    fn retry_later(&self) {
        let events = self.cluster.events.clone();
        runtime::spawn(async move {
            tokio::time::sleep(RETRY_PAUSE).await;
            let _ = events.send(Event::Hello);
        });
    }

    /// Runs the next step that the cluster needs. Returns `true` if another step may follow at
    /// once.
    async fn round(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Result<bool, NodeError> {
        let node_infos = self.alive()?;
        let names: BTreeSet<NodeName> = node_infos.keys().cloned().collect();
        let state = self.cluster.authority.read().await?;
        if let Some(next) = state.with_nodes(&names) {
            announce_serving(&state, &next);
            self.replace(&next).await?;
            return Ok(true);
        }
        if self.set_named_warehouse(&state).await?.is_some()
            || self.add_named_engines(&state).await?.is_some()
        {
            return Ok(true);
        }
        if self.cluster.membership.has_followers()
            && let Some(next) = state.with_followers(&names)
        {
            self.replace(&next).await?;
            return Ok(true);
        }
        if let Some(node) = self.leaving.last() {
            match state.with_leaving(node) {
                Ok(next) => self.replace(&next).await?,
                Err(Unleavable::Leaving) => tracing::info!(%node, "node is leaving already"),
                Err(fault) => tracing::warn!(%node, reason = fault.reason(), "node cannot leave"),
            }
            self.leaving.pop_last();
            return Ok(true);
        }
        if let Some(undone) = state.undo_move() {
            tracing::warn!("unfinished migration undone");
            self.replace(&undone).await?;
            return Ok(true);
        }
        let members = self.members(&node_infos);
        let begun = state.begin_move(&members).map_err(|error| NodeError::Config {
            setting: "weight",
            reason: error.to_string(),
        })?;
        match begun {
            None => {
                self.cluster.set_trouble(None);
                self.forget_node_infos(&state, &node_infos);
                Ok(false)
            }
            Some(begun) => self.move_slots(&state, &begun, &node_infos, events).await,
        }
    }

    /// Removes the descriptions of nodes that are neither alive nor leaving, and that are not
    /// members of the ring.
    fn forget_node_infos(&self, state: &ClusterState, alive: &BTreeMap<NodeName, NodeInfo>) {
        let membership = &self.cluster.membership;
        let is_known = |name: &NodeName| {
            alive.contains_key(name) || state.ring.member(name).is_some() || state.leaving.contains(name)
        };
        let node_infos = membership.node_infos().unwrap_or_default();
        for node_info in node_infos.iter().filter(|node_info| !is_known(&node_info.name)) {
            if let Err(error) = membership.forget(&node_info.name) {
                tracing::warn!(node = %node_info.name, error = with_causes(&error), "description of a node not removed");
            }
        }
    }

    fn alive(&mut self) -> Result<BTreeMap<NodeName, NodeInfo>, NodeError> {
        let mut found = BTreeMap::new();
        for node_info in self.cluster.membership.alive()? {
            if node_info.name != self.cluster.me
                && self
                    .watched
                    .insert(node_info.name.clone(), node_info.clone())
                    .is_none()
            {
                self.cluster
                    .membership
                    .watch(&node_info.name, self.cluster.events.clone());
            }
            found.insert(node_info.name.clone(), node_info);
        }
        Ok(found)
    }

    fn members(&self, node_infos: &BTreeMap<NodeName, NodeInfo>) -> Vec<Member> {
        let member = |node_info: &NodeInfo| match node_info.member() {
            Ok(member) => Some(member),
            Err(error) => {
                tracing::error!(node = %node_info.name, %error, "invalid node description");
                None
            }
        };
        node_infos.values().filter_map(member).collect()
    }

    /// Writes the next state and notifies the other nodes.
    async fn replace(&self, next: &ClusterState) -> Result<(), NodeError> {
        Arc::clone(&self.cluster.authority).replace(next.clone()).await?;
        self.cluster.look.notify_one();
        for node_info in self.watched.values() {
            let (cluster, address) = (Arc::clone(&self.cluster), node_info.address);
            runtime::spawn(async move {
                let answer = cluster
                    .peers
                    .ask::<bool>(address, &PeerCall::State, &(), NOTIFY_TIMEOUT);
                if let Err(NoAnswer(reason)) = answer.await {
                    tracing::debug!(%address, reason, "node not notified of the new state");
                }
            });
        }
        Ok(())
    }

    /// Migrates slots until they are moved, a step fails, or an event interrupts the migration.
    /// Returns `true` if another step may follow at once.
    async fn move_slots(
        &mut self,
        state: &ClusterState,
        begun: &ClusterState,
        node_infos: &BTreeMap<NodeName, NodeInfo>,
        events: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Result<bool, NodeError> {
        let cluster = Arc::clone(&self.cluster);
        tokio::select! {
            biased;
            event = events.recv() => {
                if let Some(event) = event {
                    self.handle_event(event);
                }
                return Ok(true);
            }
            cleaned_up = all_cleaned_up(&cluster, state) => if let Err(reason) = cleaned_up {
                cluster.set_trouble(Some(reason));
                self.retry_later();
                return Ok(false);
            },
        }
        self.replace(begun).await?;
        let start = Instant::now();
        let mut now = begun.clone();
        let progress = ShownProgress(Arc::clone(&cluster));
        let copying = copy_all(&cluster, begun, node_infos);
        tokio::pin!(copying);
        let outcome = loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                outcome = &mut copying => break outcome.map_err(Unmoved::Failed),
            };
            let Some(event) = event else {
                break Err(Unmoved::Interrupted("the coordinator stops".to_owned()));
            };
            let mut interruption = match &event {
                Event::Leave(node) => now.leave_interruption(node),
                _ => None,
            };
            self.handle_event(event);
            // If nodes have joined or ended, the new assignment of volumes is written. The
            // migration continues unless a source or target volume gets another server or none.
            let names = self.alive()?.into_keys().collect();
            if let Some(next) = now.with_nodes(&names) {
                announce_serving(&now, &next);
                interruption = interruption.or(now.interruption(&next));
                self.replace(&next).await?;
                now = next;
            }
            if let Some(next) = self.set_named_warehouse(&now).await? {
                now = next;
            }
            if let Some(next) = self.add_named_engines(&now).await? {
                now = next;
            }
            if cluster.membership.has_followers()
                && let Some(next) = now.with_followers(&names)
            {
                self.replace(&next).await?;
                now = next;
            }
            if let Some(interruption) = interruption {
                break Err(Unmoved::Interrupted(interruption));
            }
        };
        drop(progress);
        match outcome {
            Ok(moved) => {
                if let Some(done) = now.commit_move() {
                    // `alive` also adds nodes that joined during the copy to `watched`, so that
                    // `replace` notifies them.
                    self.alive()?;
                    // This replacement is the commit point. Afterwards the targets own the slots.
                    self.replace(&done).await?;
                    cluster.set_trouble(None);
                    tracing::info!(
                        rows = moved.rows,
                        took_ms = start.elapsed().as_millis() as u64,
                        sealed_ms = moved.sealed_at.elapsed().as_millis() as u64,
                        "slots migrated"
                    );
                }
                Ok(true)
            }
            Err(unmoved) => {
                match unmoved {
                    Unmoved::Failed(reason) => {
                        tracing::warn!(
                            reason,
                            "migration failed; the slots stay with their volumes until it is retried"
                        );
                        cluster.set_trouble(Some(reason));
                    }
                    Unmoved::Interrupted(reason) => tracing::info!(
                        reason,
                        "migration interrupted; the slots stay with their volumes, and it is planned again"
                    ),
                }
                if let Some(undone) = now.undo_move() {
                    self.alive()?;
                    self.replace(&undone).await?;
                }
                self.retry_later();
                Ok(false)
            }
        }
    }
}

/// Removes the progress of a migration from the node's report when the migration ends, also by an
/// error.
struct ShownProgress(Arc<ClusterHandle>);

impl Drop for ShownProgress {
    fn drop(&mut self) {
        *self.0.progress() = None;
    }
}

/// The reason why a migration ended without a move of slots.
enum Unmoved {
    /// A step of the migration failed, for this reason.
    Failed(String),
    /// An event made the plan of the migration outdated, or the coordinator stops. Contains the
    /// reason as text.
    Interrupted(String),
}

/// The question to a volume for the epoch of the ring that it follows. The answer is `None` while
/// the volume is prepared for a migration (as a target, or as a source with sealed slots) or
/// removes rows of an earlier one.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct AskEpoch;

impl VolumeQuestion for AskEpoch {
    const CALL: VolumeCall = VolumeCall::Epoch;
    type Answer = Option<u64>;
}

impl Errand for AskEpoch {
    type Outcome = Option<u64>;

    async fn here(&self, to: &Destination<'_>, server: &Arc<VolumeServer>) -> Attempt<Option<u64>> {
        if !server.app.state().storage.is_ours() {
            return Attempt::Moved { epoch: to.epoch() };
        }
        Attempt::Done(server.settled_epoch().map(|epoch| epoch.0))
    }

    async fn there(
        &self,
        to: &Destination<'_>,
        address: SocketAddr,
    ) -> Result<Attempt<Option<u64>>, NoAnswer> {
        let patience = to.until.saturating_duration_since(Instant::now());
        let peers = &to.cluster.peers;
        let asked = peers.ask_volume(address, to.volume, self, patience).await;
        asked.map(Attempt::Done)
    }
}

/// Waits until every volume follows the ring and has removed the rows of earlier migrations. The
/// reason for the wait is published with `set_trouble`. Fails with this reason after
/// `CLEANUP_TIMEOUT`.
async fn all_cleaned_up(cluster: &Arc<ClusterHandle>, state: &ClusterState) -> Result<(), String> {
    let until = Instant::now() + CLEANUP_TIMEOUT;
    for volume in state.serving.keys() {
        loop {
            let name = |_: &Topology| Some(volume.clone());
            let try_until = until.min(Instant::now() + CLEANUP_QUESTION_TIMEOUT);
            let reason = match cluster.perform(name, &AskEpoch, try_until).await {
                Ok((Some(epoch), _)) if epoch == state.ring.epoch().0 => break,
                Ok(_) => format!("volume {volume} is still removing the rows of an earlier migration"),
                Err(undelivered) => undelivered.to_string(),
            };
            if Instant::now() >= until {
                return Err(reason);
            }
            cluster.set_trouble(Some(reason));
            tokio::time::sleep(CLEANUP_QUESTION_PAUSE).await;
        }
    }
    Ok(())
}

fn announce_serving(before: &ClusterState, after: &ClusterState) {
    for (volume, node) in &after.serving {
        match before.serving.get(volume) {
            Some(known) if known == node => {}
            Some(known) => tracing::info!(%volume, from = %known, to = %node, "volume reassigned"),
            None => tracing::info!(%volume, %node, "node joined"),
        }
    }
}
