//! Keeps what this process serves in line with the cluster's state: opens volumes, gives them up,
//! has posts follow the ring.
//!
//! One task, one step at a time. Whenever something may have changed it reads the state, lets go of
//! the volumes that are another node's, opens those that are this node's as soon as their lock is
//! free, has posts follow a ring that has changed, and publishes the view that follows. It decides
//! nothing: what it reads has been decided.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::{NodeName, Ring};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::{ClusterState, Expected, NodeInfo, Volumes};
use crate::control::handle::ClusterHandle;
use crate::control::remote_volumes::RemoteVolumeClient;
use crate::control::topology::Topology;
use crate::error::{NodeError, StorageError, with_reasons};
use crate::volume::migration::target::arriving_of;
use crate::volume::server::{NodeContext, VolumeServer};

/// Longest time until the state is read again though nobody said that it changed: a message may be
/// lost.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to open a volume that its last process has not let go of.
const OPEN_AGAIN: Duration = Duration::from_millis(10);

/// What a keeper works with.
pub(crate) struct Reconciler {
    cluster: Arc<ClusterHandle>,
    context: NodeContext,
    volumes: Arc<dyn Volumes>,
    servers: BTreeMap<NodeName, Arc<VolumeServer>>,
    ring: Arc<Ring>,
    version: u64,
    /// True once this node has served its own volume.
    has_served: bool,
}

/// Every node says who has what, so that whoever watches any of them sees it.
fn announce(ring: &Ring) {
    let shares: Vec<String> = ring
        .members()
        .iter()
        .map(|member| format!("{} {}", member.name(), ring.slots_of(member.name()).count()))
        .collect();
    tracing::info!(
        epoch = ring.epoch().0,
        "the ring has changed: {}",
        shares.join(", ")
    );
}

/// Furnishes a post anew whose slots have changed in a way that nothing was prepared for.
async fn restart(
    context: &NodeContext,
    cluster: &Arc<ClusterHandle>,
    server: &mut Arc<VolumeServer>,
    state: &ClusterState,
    ring: &Arc<Ring>,
) -> Result<(), NodeError> {
    let volume = server.volume.clone();
    tracing::info!(%volume, "the volume is furnished anew");
    server.rest().await;
    let storage = Arc::clone(&server.app.state().storage);
    let remote = RemoteVolumeClient::of(cluster, &volume);
    *server = VolumeServer::start(context, &volume, storage, state, ring, remote).await?;
    Ok(())
}

impl Reconciler {
    /// A keeper that serves nothing yet.
    pub(crate) fn new(
        cluster: Arc<ClusterHandle>,
        context: NodeContext,
        volumes: Arc<dyn Volumes>,
    ) -> Reconciler {
        let topology = cluster.topology();
        Reconciler {
            context,
            volumes,
            servers: BTreeMap::new(),
            ring: Arc::clone(&topology.ring),
            version: 0,
            has_served: false,
            cluster,
        }
    }

    /// Keeps in line until told to stop; then lets go of everything.
    pub(crate) async fn keep(
        mut self,
        mut stop: watch::Receiver<bool>,
        trouble: watch::Sender<Option<Arc<NodeError>>>,
    ) -> Result<(), NodeError> {
        let mut looked_at = self.cluster.started;
        while !*stop.borrow() {
            let cluster = Arc::clone(&self.cluster);
            if looked_at.elapsed() >= LOOK_AT_LEAST_EVERY {
                looked_at = Instant::now();
                cluster.metrics.sample(cluster.started.elapsed());
            }
            let look = cluster.look.notified();
            let mut again = LOOK_AT_LEAST_EVERY;
            match self.look(&stop).await {
                Ok(true) => {}
                Ok(false) => again = OPEN_AGAIN,
                Err(error) => {
                    tracing::error!(error = with_reasons(&error), "cannot follow the cluster's state");
                    trouble.send_replace(Some(Arc::new(error)));
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {}
                () = look => {}
                () = tokio::time::sleep(again) => {}
            }
        }
        self.let_go().await
    }

    async fn let_go(&mut self) -> Result<(), NodeError> {
        let servers = std::mem::take(&mut self.servers);
        let state = self.cluster.topology().state.clone();
        // The view is what holds the rooms: without it they are gone once they are closed.
        self.publish(&state)?;
        for server in servers.into_values() {
            server.close().await?;
        }
        Ok(())
    }

    /// Reads the state and follows it. False if a volume could not be opened yet.
    async fn look(&mut self, stop: &watch::Receiver<bool>) -> Result<bool, NodeError> {
        let state = self.cluster.authority.read().await?;
        let me = self.cluster.me.clone();
        let wanted: Vec<NodeName> = state
            .serving
            .iter()
            .filter(|(_, node)| **node == me)
            .map(|(volume, _)| volume.clone())
            .collect();
        let has_all = wanted.iter().all(|volume| self.servers.contains_key(volume));
        let has_more = self.servers.len() > wanted.len();
        if state.version == self.version && has_all && !has_more {
            // A node that came back at once answers elsewhere, and nothing else may have changed.
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
        // What came is served first: closing a volume takes longer.
        self.follow(&state, &wanted).await?;
        if has_more || self.servers.keys().any(|volume| !wanted.contains(volume)) {
            self.give_up(&state, &wanted).await?;
        }
        let (mut has_opened_all, mut lost) = (true, None);
        self.cluster.missing().retain(|volume, _| wanted.contains(volume));
        for volume in &wanted {
            if self.servers.contains_key(volume) || *stop.borrow() {
                continue;
            }
            match self.open(&state, volume).await {
                Ok(is_open) => {
                    has_opened_all &= is_open;
                    self.cluster.missing().remove(volume);
                }
                // The other volumes are served all the same, and this one as soon as it is there.
                Err(error @ NodeError::VolumeMissing { .. }) => {
                    self.note_missing(volume, &error);
                    lost = lost.or((*volume == me).then_some(error));
                }
                Err(error) => return Err(error),
            }
        }
        self.version = state.version;
        self.publish(&state)?;
        self.has_served |= self.servers.contains_key(&me);
        if let Some(error) = lost.filter(|_| !self.has_served) {
            return Err(error);
        }
        if state.leaving.contains(&me) && state.ring.member(&me).is_none() && self.servers.is_empty() {
            tracing::info!("this node has left the others for good");
            self.cluster.asked_to_stop.send_replace(true);
        }
        Ok(has_opened_all)
    }

    async fn give_up(&mut self, state: &ClusterState, wanted: &[NodeName]) -> Result<(), NodeError> {
        let gone: Vec<Arc<VolumeServer>> = self
            .servers
            .extract_if(.., |volume, _| !wanted.contains(volume))
            .map(|(_, server)| server)
            .collect();
        self.publish(state)?;
        for server in gone {
            server.close().await?;
            tracing::info!(volume = %server.volume, "handed the volume over");
            // The ring is the truth: a volume that it does not name has nothing that anybody needs.
            if state.ring.member(&server.volume).is_none() && !state.serving.contains_key(&server.volume) {
                Arc::clone(&self.volumes).remove(server.volume.clone()).await?;
            }
        }
        Ok(())
    }

    /// Posts that follow another ring follow this one: first those that get slots, so that these
    /// are served; where a move was undone, everything is as it was before it.
    async fn follow(&mut self, state: &ClusterState, wanted: &[NodeName]) -> Result<(), NodeError> {
        let is_behind = |server: &VolumeServer, ring: &Arc<Ring>| !Arc::ptr_eq(&server.ring(), ring);
        let ring = Arc::clone(&self.ring);
        let mut has_taken = false;
        for (volume, server) in &mut self.servers {
            if !wanted.contains(volume) || !is_behind(server, &ring) {
                continue;
            }
            has_taken = true;
            if !server.take_in(state, &ring).await? {
                restart(&self.context, &self.cluster, server, state, &ring).await?;
            }
        }
        if has_taken {
            self.publish(state)?;
        }
        for (_, server) in self
            .servers
            .iter_mut()
            .filter(|(volume, _)| wanted.contains(volume))
        {
            if is_behind(server, &ring) && !server.let_go(state, &ring).await? {
                restart(&self.context, &self.cluster, server, state, &ring).await?;
            }
            server.undo(state).await?;
        }
        Ok(())
    }

    async fn open(&mut self, state: &ClusterState, volume: &NodeName) -> Result<bool, NodeError> {
        let expected = match state.ring.member(volume) {
            Some(_) => Expected::Existing,
            None => Expected::MaybeNew,
        };
        let opened = Arc::clone(&self.volumes).open(volume.clone(), expected).await?;
        let Some(storage) = opened else {
            return Ok(false);
        };
        // What counts is what is in force now that nobody else can have the volume; it may have
        // waited for long.
        let now = self.cluster.authority.read().await?;
        if now.version != state.version {
            self.cluster.look.notify_one();
        }
        let storage = Arc::new(storage);
        let is_mine = now.serving.get(volume) == Some(&self.cluster.me);
        // What came of a move before its volume was last closed may be put in force any moment, by
        // a coordinator that has not heard of that: it must be neither taken out nor served until
        // the move is over.
        let under_way = now.moving.as_ref().map(|moving| moving.id);
        let is_decided = under_way.is_none() || arriving_of(&storage).await? != under_way;
        if !is_mine || !is_decided {
            let closed = crate::runtime::blocking(move || storage.close()).await;
            closed.unwrap_or(Err(StorageError::Closed))?;
            return Ok(!is_mine);
        }
        let ring = if now.ring == *self.ring {
            Arc::clone(&self.ring)
        } else {
            Arc::new(now.ring.clone())
        };
        let remote = RemoteVolumeClient::of(&self.cluster, volume);
        let server = VolumeServer::start(&self.context, volume, storage, &now, &ring, remote).await?;
        if *volume != self.cluster.me {
            tracing::info!(%volume, "took the volume over");
        }
        self.servers.insert(volume.clone(), server);
        Ok(true)
    }

    /// Remembers that a volume is missing; logs it the first time.
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
