//! The reconciler: makes the volumes that this process serves match the cluster's state.
//!
//! One task runs one pass at a time. A pass reads the state and gives a changed ring to the volume
//! servers. It closes volumes that this node has lost: they are or were assigned to another node,
//! were removed, or can commit no more. It opens volumes that are assigned to this node as soon as
//! `Volumes::open` permits it (`openings`). Finally the pass publishes the new topology.
//!
//! **Invariants**
//! - The reconciler decides nothing: it only applies the state.
//! - A volume server is removed from the published topology before it is closed.
//! - A missing volume (without a database, or with an engine: without a log) does not keep the
//!   other volumes from being served, and neither does an engine that does not answer.
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
use crate::control::openings::{Opened, Openings};
use crate::control::remote_volumes::RemoteVolumeClient;
use crate::control::topology::Topology;
use crate::error::{NodeError, StorageError, with_causes};
use crate::runtime::watch;
use crate::storage::volume::Volume;
use crate::volume::migration::target::staged_migration;
use crate::volume::server::VolumeServer;

/// Longest pause between two reads of the cluster's state. It bounds the delay after a lost
/// notification.
const PASS_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Pause between two attempts to open a volume that could not be opened yet, for example because
/// another process has not closed it.
const OPEN_RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Pause before the state is read again from an engine that does not answer.
const ENGINE_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two checks of the engine while a volume server starts. If the engine does not
/// answer, the volume is closed and opened again later, because the other volumes of the node wait.
const START_PATIENCE: Duration = Duration::from_secs(1);

/// The state of the reconciler task.
pub(crate) struct Reconciler {
    cluster: Arc<ClusterHandle>,
    context: NodeContext,
    volumes: Arc<dyn Volumes>,
    servers: BTreeMap<NodeName, Arc<VolumeServer>>,
    /// For each open volume, the version of the cluster's state that assigned the volume to this
    /// node. If the present state names a later version for the volume, the volume was assigned to
    /// another node in between.
    opened: BTreeMap<NodeName, u64>,
    /// The attempts to open volumes that this node does not serve yet.
    openings: Openings,
    ring: Arc<Ring>,
    version: u64,
    /// `true` once this node has served its own volume.
    has_served: bool,
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

/// Restarts a volume server after a change of its slots that it cannot apply while it runs.
async fn restart(
    context: &NodeContext,
    cluster: &Arc<ClusterHandle>,
    server: &mut Arc<VolumeServer>,
    state: &ClusterState,
    ring: &Arc<Ring>,
) -> Result<(), NodeError> {
    let volume = server.volume.clone();
    tracing::info!(%volume, "volume server restarted");
    server.quiesce().await;
    let storage = Arc::clone(&server.app.state().storage);
    let remote = RemoteVolumeClient::of(cluster, &volume);
    *server = VolumeServer::start(context, &volume, storage, state, ring, remote).await?;
    Ok(())
}

/// Closes a volume that has no server.
async fn close(storage: &Arc<Volume>) -> Result<(), StorageError> {
    let storage = Arc::clone(storage);
    let closed = crate::runtime::blocking(move || storage.close()).await;
    closed.unwrap_or(Err(StorageError::Closed))
}

/// Waits for the start of a volume server. Returns `None` if a commit of the start waits for the
/// engine of the volume at two checks in a row, of which one is made each `START_PATIENCE`.
async fn unless_away<T>(start: impl Future<Output = T>, storage: &Volume) -> Option<T> {
    tokio::pin!(start);
    let mut was_away = false;
    loop {
        let waited = tokio::time::timeout(START_PATIENCE, &mut start).await;
        if let Ok(started) = waited {
            return Some(started);
        }
        let is_away = storage.check_engine().is_err();
        if is_away && was_away {
            return None;
        }
        was_away = is_away;
    }
}

impl Reconciler {
    /// Returns a reconciler that serves no volume yet.
    pub(crate) fn new(
        cluster: Arc<ClusterHandle>,
        context: NodeContext,
        volumes: Arc<dyn Volumes>,
    ) -> Reconciler {
        let topology = cluster.topology();
        let openings = Openings::new(Arc::clone(&volumes), cluster.membership.has_followers());
        Reconciler {
            context,
            volumes,
            openings,
            servers: BTreeMap::new(),
            opened: BTreeMap::new(),
            ring: Arc::clone(&topology.ring),
            version: 0,
            has_served: false,
            cluster,
        }
    }

    /// Runs passes until `stop` becomes true, then closes all volumes.
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
            let mut again = PASS_INTERVAL_MAX;
            match self.pass(&stop).await {
                Ok(true) => {}
                Ok(false) => again = OPEN_RETRY_PAUSE,
                Err(error) if error.is_engine_away() => {
                    tracing::debug!(
                        error = with_causes(&error),
                        "the cluster's state cannot be read now"
                    );
                    again = ENGINE_RETRY_PAUSE;
                }
                Err(error) => {
                    tracing::error!(error = with_causes(&error), "applying the cluster's state failed");
                    trouble.send_replace(Some(Arc::new(error)));
                    if !self.openings.is_idle() {
                        again = ENGINE_RETRY_PAUSE;
                    }
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {}
                () = look => {}
                () = tokio::time::sleep(again) => {}
            }
        }
        self.openings.end().await;
        self.close_all().await
    }

    async fn close_all(&mut self) -> Result<(), NodeError> {
        let servers = std::mem::take(&mut self.servers);
        let state = self.cluster.topology().state.clone();
        // The published topology holds references to the servers. Publishing a topology without
        // servers lets their memory be freed once they are closed.
        self.publish(&state)?;
        let mut ended = Ok(());
        for server in servers.into_values() {
            let closed = self.close_one(&server).await;
            ended = ended.and(closed);
        }
        ended
    }

    /// Closes a volume and lets other nodes open it.
    async fn close_one(&self, server: &VolumeServer) -> Result<(), NodeError> {
        server.close().await?;
        Arc::clone(&self.volumes).release(server.volume.clone()).await
    }

    /// Reads the state and applies it. Returns `false` if a volume could not be opened yet. A
    /// missing volume does not count.
    async fn pass(&mut self, stop: &watch::Receiver<bool>) -> Result<bool, NodeError> {
        let state = self.cluster.authority.read().await?;
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
        let has_ended = |server: &Arc<VolumeServer>| server.app.state().storage.has_ended();
        let is_current = |volume: &&NodeName| {
            self.opened.get(*volume) == Some(&state.since(volume))
                && !self.servers.get(*volume).is_some_and(has_ended)
        };
        let kept: Vec<NodeName> = wanted.iter().filter(is_current).cloned().collect();
        let has_all = kept.len() == wanted.len();
        let has_more = self.servers.len() > wanted.len();
        let is_settled =
            |server: &Arc<VolumeServer>| !server.must_restart() && !server.has_outdated_seals(&state);
        let are_settled = self.servers.values().all(is_settled);
        let is_settled = are_settled && self.openings.is_idle();
        if state.version == self.version && has_all && !has_more && is_settled {
            // A node that restarted quickly may have a new address although the state is unchanged.
            let topology = self.cluster.topology();
            let node_infos = self.cluster.membership.node_infos()?;
            let is_known = |node_info: &NodeInfo| topology.node_infos.get(&node_info.name) == Some(node_info);
            if !node_infos.iter().all(is_known) {
                self.publish(&state)?;
            }
            return Ok(true);
        }
        if state.ring != *self.ring {
            self.ring = Arc::new(state.ring.clone());
            announce(&self.ring);
        }
        // Slots are activated before volumes are closed: requests wait for the activation, and
        // closing volumes takes longer than activating slots.
        self.follow_ring(&state, &kept).await?;
        if has_more || self.servers.keys().any(|volume| !kept.contains(volume)) {
            self.hand_over(&state, &kept).await?;
        }
        let (mut has_opened_all, mut lost, mut failed) = (true, None, None);
        self.cluster.missing().retain(|volume, _| wanted.contains(volume));
        let unserved = wanted.iter().filter(|volume| !self.servers.contains_key(volume));
        let unserved: Vec<NodeName> = unserved.filter(|_| !*stop.borrow()).cloned().collect();
        self.openings.begin_pass(&state, &unserved);
        while !*stop.borrow()
            && let Some(Opened {
                volume,
                since,
                outcome,
            }) = self.openings.next().await
        {
            let served = match outcome {
                Ok(Some(storage)) => self.serve(&state, &volume, since, storage).await,
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            match served {
                Ok(is_open) => {
                    has_opened_all &= is_open;
                    self.cluster.missing().remove(&volume);
                    // The next volume may take long, if its engine does not answer.
                    if is_open && !self.openings.is_idle() {
                        self.publish(&state)?;
                    }
                }
                // A missing volume does not end the pass. The other volumes are served, and a later
                // pass opens this volume once it exists.
                Err(error) if error.is_missing_volume() => {
                    self.note_missing(&volume, &error);
                    lost = lost.or((volume == me).then_some(error));
                }
                // The other volumes are served even if one of them, such as a damaged one, cannot
                // be opened. A later pass tries this volume again.
                Err(error) => {
                    self.openings.pause(&volume, &error);
                    failed = failed.or(Some(error));
                }
            }
        }
        has_opened_all &= self.openings.is_idle();
        self.publish(&state)?;
        self.has_served |= self.servers.contains_key(&me);
        if let Some(error) = failed {
            return Err(error);
        }
        let is_followed = |(_, node): &(&NodeName, &NodeName)| **node == me;
        let followed = state.following.iter().filter(is_followed);
        let followed = followed
            .map(|(volume, _)| (volume.clone(), state.log_of(volume)))
            .collect();
        Arc::clone(&self.volumes).follow(followed).await?;
        self.version = state.version;
        if let Some(error) = lost.filter(|_| !self.has_served) {
            return Err(error);
        }
        if state.leaving.contains(&me) && state.ring.member(&me).is_none() && self.servers.is_empty() {
            tracing::info!("node left the cluster for good");
            self.cluster.asked_to_stop.send_replace(true);
        }
        Ok(has_opened_all)
    }

    async fn hand_over(&mut self, state: &ClusterState, wanted: &[NodeName]) -> Result<(), NodeError> {
        let gone: Vec<Arc<VolumeServer>> = self
            .servers
            .extract_if(.., |volume, _| !wanted.contains(volume))
            .map(|(_, server)| server)
            .collect();
        self.opened.retain(|volume, _| self.servers.contains_key(volume));
        self.publish(state)?;
        // This node no longer knows these servers, so each of them is closed even if another one
        // cannot be closed.
        let mut ended = Ok(());
        for server in gone {
            let closed = self.hand_over_one(state, &server).await;
            ended = ended.and(closed);
        }
        ended
    }

    async fn hand_over_one(&self, state: &ClusterState, server: &VolumeServer) -> Result<(), NodeError> {
        let has_ended = server.app.state().storage.has_ended();
        match server.close().await {
            Err(error) if has_ended => {
                tracing::warn!(volume = %server.volume, error = with_causes(&error), "lost volume not closed cleanly");
            }
            closed => closed?,
        }
        Arc::clone(&self.volumes).release(server.volume.clone()).await?;
        // A volume that is not a member of the ring and is not assigned to a node has no data that
        // is needed.
        if state.ring.member(&server.volume).is_none() && !state.serving.contains_key(&server.volume) {
            Arc::clone(&self.volumes).remove(server.volume.clone()).await?;
            tracing::info!(volume = %server.volume, "volume removed, its node left");
        } else {
            tracing::info!(volume = %server.volume, "volume handed over");
        }
        Ok(())
    }

    /// Applies the ring to the volume servers that still use an earlier ring. Slots that a volume
    /// gained are activated in all servers before lost slots are released, so that gained slots are
    /// served at once. If a migration was undone, its staged rows and seals are removed. A server
    /// that could not commit activated slots is restarted once its volume can commit.
    async fn follow_ring(&mut self, state: &ClusterState, wanted: &[NodeName]) -> Result<(), NodeError> {
        let is_behind = |server: &VolumeServer, ring: &Arc<Ring>| !Arc::ptr_eq(&server.ring(), ring);
        let ring = Arc::clone(&self.ring);
        let mut has_taken = false;
        for (volume, server) in &mut self.servers {
            if !wanted.contains(volume) || !is_behind(server, &ring) {
                continue;
            }
            has_taken = true;
            if !server.activate_slots(state, &ring).await? {
                restart(&self.context, &self.cluster, server, state, &ring).await?;
            }
        }
        if has_taken {
            self.publish(state)?;
        }
        for (volume, server) in &mut self.servers {
            if wanted.contains(volume) && server.must_restart_now().await {
                restart(&self.context, &self.cluster, server, state, &ring).await?;
            }
        }
        for (_, server) in self
            .servers
            .iter_mut()
            .filter(|(volume, _)| wanted.contains(volume))
        {
            if is_behind(server, &ring) && !server.release_slots(state, &ring).await? {
                restart(&self.context, &self.cluster, server, state, &ring).await?;
            }
            server.undo(state).await?;
        }
        Ok(())
    }

    /// Serves a volume that was opened while the state of version `since` was the last one that had
    /// assigned the volume. Returns `false` if the volume was closed again, to be opened later.
    async fn serve(
        &mut self,
        state: &ClusterState,
        volume: &NodeName,
        since: u64,
        storage: Volume,
    ) -> Result<bool, NodeError> {
        // The state is read again, because it may have changed while the volume was being opened.
        // In a data folder, no other process can open the volume from here on.
        let now = self.cluster.authority.read().await?;
        if now.version != state.version {
            self.cluster.look.notify_one();
        }
        let storage = Arc::new(storage);
        let is_mine = now.serving.get(volume) == Some(&self.cluster.me);
        // The volume may contain staged rows of a migration that is neither committed nor undone.
        // Such rows may be neither served nor removed, because a coordinator that does not know of
        // this restart may still commit the migration. So the volume is closed again until the
        // migration has ended.
        let under_way = now.moving.as_ref().map(|moving| moving.id);
        let is_decided = under_way.is_none() || staged_migration(&storage).await? != under_way;
        if !is_mine || !is_decided {
            close(&storage).await?;
            if !is_mine {
                Arc::clone(&self.volumes).release(volume.clone()).await?;
            }
            return Ok(!is_mine);
        }
        let ring = if now.ring == *self.ring {
            Arc::clone(&self.ring)
        } else {
            Arc::new(now.ring.clone())
        };
        let remote = RemoteVolumeClient::of(&self.cluster, volume);
        let opened = Arc::clone(&storage);
        let start = VolumeServer::start(&self.context, volume, storage, &now, &ring, remote);
        let Some(server) = unless_away(start, &opened).await else {
            tracing::warn!(%volume, "volume closed again: its engine stopped answering while the volume was opened");
            close(&opened).await?;
            return Ok(false);
        };
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                // The error of the start explains more than one of the close.
                let _ = close(&opened).await;
                return Err(error);
            }
        };
        if *volume != self.cluster.me {
            tracing::info!(%volume, "volume taken over");
        }
        self.servers.insert(volume.clone(), server);
        self.opened.insert(volume.clone(), since);
        Ok(true)
    }

    /// Records that a volume is missing, and logs it the first time.
    fn note_missing(&self, volume: &NodeName, error: &NodeError) {
        let known = self.cluster.missing().insert(volume.clone(), error.to_string());
        if known.is_none() {
            tracing::error!(%volume, %error, "volume missing");
        }
    }

    fn publish(&self, state: &ClusterState) -> Result<(), NodeError> {
        let node_infos = self.cluster.membership.node_infos()?;
        let ring = Arc::clone(&self.ring);
        self.cluster.publish(Topology::new(
            self.cluster.me.clone(),
            state.clone(),
            ring,
            self.servers.clone(),
            node_infos,
        ));
        Ok(())
    }
}
