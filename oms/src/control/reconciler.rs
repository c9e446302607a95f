//! The reconciler: makes the volumes that this process serves match the cluster's state.
//!
//! One task runs one pass at a time. A pass reads the state and gives a changed ring to the volume
//! servers. It closes volumes that this node has lost: they are or were assigned to another node,
//! were removed, or can commit no more. It opens volumes that are assigned to this node as soon as
//! `Volumes::open` permits it (`openings`). Finally the pass publishes the new topology, and names
//! the volumes that this node must follow.
//!
//! **Invariants**
//! - The reconciler decides nothing: it only applies the state.
//! - A volume server is removed from the published topology before it is closed.
//! - A missing volume (without a database, or with an engine: without a log) does not keep the
//!   other volumes from being served.
//! - A pass waits for single volumes only for a limited time (`volume_steps`). So an engine that is
//!   away does not delay the volumes of other engines. The stop of the node waits for it with a
//!   bound.
//! - A pass that could not do all its work is followed by another one with the same state.
//!
//! Deliberately absent: copying rows, which the volume servers do among themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::{NodeName, Ring};
use tokio::time::Instant;

use crate::cluster::{ClusterState, NodeInfo, Volumes};
use crate::config::NodeContext;
use crate::control::handle::ClusterHandle;
use crate::control::openings::{Engine, Openings};
use crate::control::topology::Topology;
use crate::control::volume_steps::{Departure, End, Inputs, Kind, Outcome, Steps, is_behind};
use crate::error::{NodeError, with_causes};
use crate::runtime::watch;
use crate::volume::server::VolumeServer;

/// Longest pause between two reads of the cluster's state. It bounds the delay after a lost
/// notification.
const PASS_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Longest time for which a pass waits for the steps that it has begun, in each of its phases.
/// Steps usually end within milliseconds. A longer wait would delay the other volumes, and a
/// shorter one would put off the further steps of volumes with slow disks.
const STEP_WAIT: Duration = Duration::from_millis(250);
/// Pause between two attempts to open a volume that could not be opened yet, for example because
/// another process has not closed it.
const OPEN_RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Pause before a volume is tried again after an error. Each error is logged.
const OPEN_ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Pause before the state is read again from an engine that does not answer, and shortest pause
/// after a pass with an error.
const ENGINE_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Time after which a step on a volume that is to be closed stops waiting for the engine. At the
/// stop of a node, steps that have not ended after twice this time are dropped. The step is given
/// as much time as the queued writes of a volume that is closed (`VolumeServer::close`).
const STEP_PATIENCE: Duration = Duration::from_secs(5);
/// Number of failed attempts to release or remove a volume after which a node that leaves the
/// cluster for good stops all the same. The rows that remain in an engine only take space, because
/// the volume no longer owns their slots.
const LEAVE_FAILURES: u32 = 4;

/// The state of the reconciler task.
pub(crate) struct Reconciler {
    cluster: Arc<ClusterHandle>,
    context: Arc<NodeContext>,
    volumes: Arc<dyn Volumes>,
    servers: BTreeMap<NodeName, Arc<VolumeServer>>,
    /// For each open volume, the version of the cluster's state that assigned the volume to this
    /// node. If the present state names a later version for the volume, the volume was assigned to
    /// another node in between.
    opened: BTreeMap<NodeName, u64>,
    openings: Openings,
    /// Volumes that this node no longer serves, and that no step is closing, releasing or removing
    /// now.
    departing: BTreeMap<NodeName, Departure>,
    steps: Steps,
    found: Findings,
    ring: Arc<Ring>,
    version: u64,
    /// `true` once this node has served its own volume.
    has_served: bool,
}

/// The outcomes of steps since the last pass that the next pass reports.
#[derive(Default)]
struct Findings {
    /// The error of this node's own volume, if that volume is missing.
    lost: Option<NodeError>,
    /// The first other error. An error that an operator can mend has precedence over an engine that
    /// does not answer.
    failed: Option<NodeError>,
}

impl Findings {
    fn fail(&mut self, error: NodeError) {
        if self.failed.as_ref().is_none_or(NodeError::is_engine_away) {
            self.failed = Some(error);
        }
    }
}

/// Logs the ring. Every node does so, so that the log of any node shows the assignment.
fn announce(ring: &Ring) {
    let shares: Vec<String> = ring
        .members()
        .iter()
        .map(|member| format!("{} {}", member.name(), ring.slots_of(member.name()).count()))
        .collect();
    tracing::info!(epoch = ring.epoch().0, "ring changed: {}", shares.join(", "));
}

impl Reconciler {
    /// Returns a reconciler that serves no volume yet.
    pub(crate) fn new(
        cluster: Arc<ClusterHandle>,
        context: NodeContext,
        volumes: Arc<dyn Volumes>,
    ) -> Reconciler {
        let topology = cluster.topology();
        Reconciler {
            context: Arc::new(context),
            volumes,
            servers: BTreeMap::new(),
            opened: BTreeMap::new(),
            openings: Openings::default(),
            departing: BTreeMap::new(),
            steps: Steps::new(),
            found: Findings::default(),
            ring: Arc::clone(&topology.ring),
            version: 0,
            has_served: false,
            cluster,
        }
    }

    /// Runs passes until `stop` becomes true, then closes all volumes. The close waits for engines
    /// that do not answer for at most twice `STEP_PATIENCE`, the time that `VolumeServer::close`
    /// waits, and the timeouts of a few statements.
    pub(crate) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        trouble: watch::Sender<Option<Arc<NodeError>>>,
    ) -> Result<(), NodeError> {
        let mut last_pass = self.cluster.started;
        while !*stop.borrow() {
            let cluster = Arc::clone(&self.cluster);
            if last_pass.elapsed() >= PASS_INTERVAL_MAX {
                last_pass = Instant::now();
                cluster.metrics.sample(cluster.started.elapsed());
            }
            let look = cluster.look.notified();
            let (mut again, mut least) = (PASS_INTERVAL_MAX, OPEN_RETRY_PAUSE);
            match self.pass(&stop).await {
                Ok(()) => {}
                Err(error) if error.is_engine_away() => {
                    tracing::debug!(error = with_causes(&error), "an engine does not answer now");
                    (again, least) = (ENGINE_RETRY_PAUSE, ENGINE_RETRY_PAUSE);
                }
                Err(error) => {
                    tracing::error!(error = with_causes(&error), "applying the cluster's state failed");
                    trouble.send_replace(Some(Arc::new(error)));
                    least = ENGINE_RETRY_PAUSE;
                }
            }
            if let Some(pause) = self.openings.pause(|engine| self.steps.openings_at(engine)) {
                again = again.min(pause.max(least));
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {}
                end = self.steps.next() => self.note_late(end),
                () = look => {}
                () = tokio::time::sleep(again) => {}
            }
        }
        self.close_all(stop).await
    }

    /// Closes all volumes and lets other nodes open them. Steps that do not end are dropped.
    async fn close_all(mut self, stop: watch::Receiver<bool>) -> Result<(), NodeError> {
        for (volume, server) in std::mem::take(&mut self.servers) {
            self.departing.insert(volume, Departure::of(server));
        }
        // The published topology holds references to the servers. Publishing a topology without
        // servers lets their memory be freed once they are closed.
        let state = self.cluster.topology().state.clone();
        let mut ended = self.publish(&state);
        let begun = Instant::now();
        let mut limits = [begun + STEP_PATIENCE, begun + STEP_PATIENCE * 2].into_iter();
        let mut limit = limits.next();
        loop {
            let ready = |volume: &NodeName, _: &mut Departure| !self.steps.is_busy(volume);
            let ready: Vec<_> = self.departing.extract_if(.., ready).collect();
            for (volume, departure) in ready {
                let (volumes, stop) = (Arc::clone(&self.volumes), stop.clone());
                self.steps.depart(volumes, volume, departure, false, stop);
            }
            if self.steps.is_empty() {
                return ended;
            }
            let expired = async {
                match limit {
                    Some(limit) => tokio::time::sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                end = self.steps.next() => if let Some(end) = end {
                    ended = ended.and(self.note_end_at_stop(end));
                },
                () = expired => {
                    limit = limits.next();
                    match limit {
                        Some(_) => self.steps.hurry(),
                        None => self.steps.drop_all(),
                    }
                }
            }
        }
    }

    /// Takes the outcome of a step while the node stops. Returns the error of a close.
    fn note_end_at_stop(&mut self, end: End) -> Result<(), NodeError> {
        match end.outcome {
            Ok(Outcome::Served(server)) => self.keep_closing(end.volume, server),
            // No release is repeated at a stop: the next server of the volume waits until the lease
            // of this process has ended.
            Ok(Outcome::Departed(fault)) => return fault.map_or(Ok(()), Err),
            Ok(Outcome::Remains(departure)) => return departure.fault.map_or(Ok(()), Err),
            Ok(Outcome::NotYet | Outcome::Elsewhere) => {}
            Err(error) => {
                let (volume, error) = (end.volume, with_causes(&error));
                tracing::debug!(%volume, error, "step on a volume ended by the stop");
            }
        }
        Ok(())
    }

    /// Notes a server as the one that must be closed before its volume is released.
    fn keep_closing(&mut self, volume: NodeName, server: Arc<VolumeServer>) {
        match self.departing.get_mut(&volume) {
            Some(departure) => departure.server = Some(server),
            None => drop(self.departing.insert(volume, Departure::of(server))),
        }
    }

    /// Takes the outcome of a step that ended between two passes. Publishes an opened volume at
    /// once, because its requests wait.
    fn note_late(&mut self, end: Option<End>) {
        let Some(end) = end else { return };
        let is_served = matches!(end.outcome, Ok(Outcome::Served(_)));
        self.note_end(end);
        if !is_served {
            return;
        }
        let state = self.cluster.topology().state.clone();
        if let Err(error) = self.publish(&state) {
            self.found.fail(error);
        }
    }

    fn note_end(&mut self, end: End) {
        let End {
            volume,
            kind,
            outcome,
        } = end;
        match (kind, outcome) {
            (Kind::Opening { since, engine }, outcome) => {
                self.note_opening(volume, since, engine, outcome);
            }
            (_, Ok(Outcome::Served(server))) => match self.servers.get_mut(&volume) {
                Some(served) => *served = server,
                None => self.keep_closing(volume, server),
            },
            (_, Ok(Outcome::Remains(departure))) => drop(self.departing.insert(volume, departure)),
            (_, Ok(Outcome::Departed(Some(fault))) | Err(fault)) => self.found.fail(fault),
            (_, Ok(Outcome::Departed(None) | Outcome::NotYet | Outcome::Elsewhere)) => {}
        }
    }

    /// Takes the outcome of an opening. The other volumes are served even if one of them, such as a
    /// missing or damaged one, cannot be opened. A later pass tries this volume again.
    fn note_opening(
        &mut self,
        volume: NodeName,
        since: u64,
        engine: Engine,
        outcome: Result<Outcome, NodeError>,
    ) {
        let error = match outcome {
            Ok(outcome) => {
                self.cluster.missing().remove(&volume);
                match outcome {
                    Outcome::Served(server) => {
                        self.opened.insert(volume.clone(), since);
                        self.servers.insert(volume, server);
                    }
                    Outcome::NotYet => self.openings.note_failure(volume, engine, OPEN_RETRY_PAUSE),
                    Outcome::Elsewhere | Outcome::Departed(_) | Outcome::Remains(_) => {}
                }
                return;
            }
            Err(error) => error,
        };
        let pause = match error.is_engine_away() {
            true => OPEN_RETRY_PAUSE,
            false => OPEN_ERROR_PAUSE,
        };
        self.openings.note_failure(volume.clone(), engine, pause);
        if !error.is_missing_volume() {
            self.found.fail(error);
            return;
        }
        self.note_missing(&volume, &error);
        if volume == self.cluster.me {
            self.found.lost.get_or_insert(error);
        }
    }

    /// Takes the outcomes of the steps that this pass has begun, as far as they end in time.
    async fn await_steps(&mut self, stop: &watch::Receiver<bool>) {
        let until = Instant::now() + STEP_WAIT;
        while let Some(end) = self.steps.next_until(until, stop).await {
            self.note_end(end);
        }
    }

    /// Returns `true` if the open volume stays with this node: the state has assigned the volume to
    /// this node ever since it was opened, and the volume can commit.
    fn is_kept(&self, state: &ClusterState, volume: &NodeName) -> bool {
        let has_ended = |server: &Arc<VolumeServer>| server.app.state().storage.has_ended();
        state.serving.get(volume) == Some(&self.cluster.me)
            && self.opened.get(volume) == Some(&state.since(volume))
            && !self.servers.get(volume).is_some_and(has_ended)
    }

    /// Returns the servers of kept volumes without a step under way.
    fn ready(&self, state: &ClusterState) -> Vec<Arc<VolumeServer>> {
        let is_ready = |(volume, _): &(&NodeName, &Arc<VolumeServer>)| {
            self.is_kept(state, volume) && !self.steps.is_busy(volume)
        };
        let ready = self.servers.iter().filter(is_ready);
        ready.map(|(_, server)| Arc::clone(server)).collect()
    }

    /// Reads the state and applies it.
    async fn pass(&mut self, stop: &watch::Receiver<bool>) -> Result<(), NodeError> {
        let state = Arc::new(self.cluster.authority.read().await?);
        if let Some(warehouse) = &state.warehouse {
            self.context.wms.follow(warehouse);
        }
        let me = self.cluster.me.clone();
        let wanted: Vec<NodeName> = state
            .serving
            .iter()
            .filter(|(_, node)| **node == me)
            .map(|(volume, _)| volume.clone())
            .collect();
        if state.version == self.version && self.is_settled(&state, &wanted) {
            // A node that restarted quickly may have a new address although the state is unchanged.
            let topology = self.cluster.topology();
            let node_infos = self.cluster.membership.node_infos()?;
            let is_known = |node_info: &NodeInfo| topology.node_infos.get(&node_info.name) == Some(node_info);
            if !node_infos.iter().all(is_known) {
                self.publish(&state)?;
            }
            return Ok(());
        }
        if state.ring != *self.ring {
            self.ring = Arc::new(state.ring.clone());
            announce(&self.ring);
        }
        let inputs = Inputs {
            cluster: Arc::clone(&self.cluster),
            context: Arc::clone(&self.context),
            volumes: Arc::clone(&self.volumes),
            state: Arc::clone(&state),
            ring: Arc::clone(&self.ring),
        };
        // Slots are activated before volumes are closed: requests wait for the activation, and
        // closing volumes takes longer than activating slots.
        let has_settled_all = self.follow_ring(&inputs, stop).await?;
        self.hand_over(&inputs, stop).await?;
        self.open_all(&inputs, &wanted, stop).await?;
        self.publish(&state)?;
        self.has_served |= self.servers.contains_key(&me);
        self.follow(&state).await?;
        let is_tried = |departure: &Departure| departure.failures >= LEAVE_FAILURES;
        let is_done =
            self.servers.is_empty() && self.steps.is_empty() && self.departing.values().all(is_tried);
        if state.leaving.contains(&me) && state.ring.member(&me).is_none() && is_done {
            tracing::info!("node left the cluster for good");
            self.cluster.asked_to_stop.send_replace(true);
        }
        let Findings { lost, failed } = std::mem::take(&mut self.found);
        if let Some(error) = failed {
            return Err(error);
        }
        if has_settled_all && self.steps.is_empty() && self.departing.is_empty() {
            self.version = state.version;
        }
        if let Some(error) = lost.filter(|_| !self.has_served) {
            return Err(error);
        }
        Ok(())
    }

    /// Returns `true` if a pass with this state would change nothing, provided that an earlier pass
    /// has applied the state.
    fn is_settled(&self, state: &ClusterState, wanted: &[NodeName]) -> bool {
        let is_served = |volume: &NodeName| self.is_kept(state, volume);
        let is_settled = |server: &Arc<VolumeServer>| {
            !server.must_restart() && !server.has_outdated_seals(state) && !is_behind(server, &self.ring)
        };
        wanted.iter().all(is_served)
            && self.servers.len() <= wanted.len()
            && self.servers.values().all(is_settled)
            && self.steps.is_empty()
            && self.departing.is_empty()
            && self.found.failed.is_none()
    }

    /// Closes the volumes that this node has lost, releases them, and removes those that nobody
    /// needs. A release or removal that failed is repeated in later passes.
    async fn hand_over(&mut self, inputs: &Inputs, stop: &watch::Receiver<bool>) -> Result<(), NodeError> {
        let state = &inputs.state;
        let lost: Vec<NodeName> = self
            .servers
            .keys()
            .filter(|volume| !self.is_kept(state, volume))
            .cloned()
            .collect();
        for volume in &lost {
            if let Some(server) = self.servers.remove(volume) {
                self.opened.remove(volume);
                self.departing.insert(volume.clone(), Departure::of(server));
            }
        }
        // No server that is still published may be closed. An earlier pass may have failed here.
        if self
            .departing
            .values()
            .any(|departure| departure.server.is_some())
        {
            self.publish(state)?;
        }
        // A closed volume that this node opens again needs no release any more.
        let is_mine = |volume: &NodeName| state.serving.get(volume) == Some(&self.cluster.me);
        self.departing
            .retain(|volume, departure| departure.server.is_some() || !is_mine(volume));
        let now = Instant::now();
        let overdue = self.departing.iter().filter(|(volume, departure)| {
            self.steps.is_busy(volume) && now >= departure.begun + STEP_PATIENCE
        });
        overdue.for_each(|(volume, _)| self.steps.stop_waiting(volume));
        let is_due = |volume: &NodeName, departure: &mut Departure| {
            !self.steps.is_busy(volume) && now >= departure.due
        };
        let due: Vec<(NodeName, Departure)> = self.departing.extract_if(.., is_due).collect();
        for (volume, departure) in due {
            // A volume that is not a member of the ring and is not assigned to a node has no data
            // that is needed.
            let removes = state.ring.member(&volume).is_none() && !state.serving.contains_key(&volume);
            let (volumes, stop) = (Arc::clone(&self.volumes), stop.clone());
            self.steps.depart(volumes, volume, departure, removes, stop);
        }
        self.await_steps(stop).await;
        Ok(())
    }

    /// Applies the ring to the volume servers that still use an earlier ring. Slots that a volume
    /// gained are activated in all servers before lost slots are released, so that gained slots are
    /// served at once. If a migration was undone, its staged rows and seals are removed. A server
    /// that could not commit activated slots is restarted once its volume can commit. Returns
    /// `false` if that was not begun for a volume, because another step of the volume is under way.
    async fn follow_ring(
        &mut self,
        inputs: &Inputs,
        stop: &watch::Receiver<bool>,
    ) -> Result<bool, NodeError> {
        let state = &inputs.state;
        let behind = self.ready(state).into_iter();
        let behind: Vec<_> = behind.filter(|server| is_behind(server, &inputs.ring)).collect();
        for server in &behind {
            self.steps.gain(inputs.clone(), server);
        }
        self.await_steps(stop).await;
        if !behind.is_empty() {
            self.publish(state)?;
        }
        let ready = self.ready(state);
        let is_kept = |volume: &&NodeName| self.is_kept(state, volume);
        let has_begun_all = ready.len() == self.servers.keys().filter(is_kept).count();
        for server in &ready {
            self.steps.settle(inputs.clone(), server);
        }
        self.await_steps(stop).await;
        Ok(has_begun_all)
    }

    /// Opens the volumes in `wanted` that are not open.
    async fn open_all(
        &mut self,
        inputs: &Inputs,
        wanted: &[NodeName],
        stop: &watch::Receiver<bool>,
    ) -> Result<(), NodeError> {
        self.cluster.missing().retain(|volume, _| wanted.contains(volume));
        let is_closed = |volume: &&NodeName| {
            !self.servers.contains_key(*volume)
                && !self.departing.contains_key(*volume)
                && !self.steps.is_busy(volume)
        };
        let closed: Vec<&NodeName> = wanted.iter().filter(is_closed).collect();
        self.openings.begin_pass(&inputs.state, wanted, &closed);
        let until = Instant::now() + STEP_WAIT;
        loop {
            while !*stop.borrow()
                && let Some((volume, engine)) = self.openings.next(|engine| self.steps.openings_at(engine))
            {
                self.steps.open(inputs.clone(), volume, engine);
            }
            let Some(end) = self.steps.next_until(until, stop).await else {
                return Ok(());
            };
            let is_served = matches!(end.outcome, Ok(Outcome::Served(_)));
            // A volume that has just been closed may be assigned to this node again. This pass has
            // left it out, so another pass must follow at once.
            if end.kind == Kind::Departing {
                self.cluster.look.notify_one();
            }
            self.note_end(end);
            // The next opening may take long, if its engine does not answer.
            if is_served && (!self.steps.is_empty() || self.openings.has_due()) {
                self.publish(&inputs.state)?;
            }
        }
    }

    /// Makes this node follow the volumes that the state names, also if volumes could not be opened
    /// or changed in this pass. Volumes of which a step may have the local copy open are left out.
    async fn follow(&self, state: &ClusterState) -> Result<(), NodeError> {
        let is_followed = |(volume, node): &(&NodeName, &NodeName)| {
            **node == self.cluster.me && !self.steps.need_copy(volume)
        };
        let followed = state.following.iter().filter(is_followed);
        let followed = followed
            .map(|(volume, _)| (volume.clone(), state.log_of(volume)))
            .collect();
        Arc::clone(&self.volumes).follow(followed).await
    }

    /// Records that a volume is missing, and logs it the first time.
    fn note_missing(&self, volume: &NodeName, error: &NodeError) {
        let known = self.cluster.missing().insert(volume.clone(), error.to_string());
        if known.is_none() {
            tracing::error!(%volume, %error, "volume missing");
        }
    }

    /// Publishes the topology if it has changed. A requester that waits for a change asks for a
    /// pass before each wait, so a pass without a change must not wake it.
    fn publish(&self, state: &ClusterState) -> Result<(), NodeError> {
        let node_infos = self.cluster.membership.node_infos()?;
        let topology = Topology::new(
            self.cluster.me.clone(),
            state.clone(),
            Arc::clone(&self.ring),
            self.servers.clone(),
            node_infos,
        );
        if !self.cluster.topology().is_same(&topology) {
            self.cluster.publish(topology);
        }
        Ok(())
    }
}
