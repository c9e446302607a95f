//! The coordinator: decides who serves what and which slots move, and writes it down.
//!
//! Every node has this task; it does something once the coordinator's lock is this process's. A
//! round looks at who lives and at the state, and brings the state in line: volumes of the dead to
//! survivors, a node's own volume back to it, slots to a new node and from one that leaves. Each
//! step is one replacement of the state's file, after which all nodes are told; a coordinator that
//! dies in between leaves a state from which the next goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::{Member, NodeName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::internal::ask_volume;
use crate::cluster::peer_client::NoAnswer;
use crate::cluster::state::{Handover, Unleavable};
use crate::cluster::{ClusterState, Event, NodeInfo, ranges};
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::error::{NodeError, with_reasons};
use crate::runtime;
use crate::volume::migration::target::{ImportRequest, Imported, Progress};

/// How long telling a node that the state has changed may take: it looks by itself soon after.
const TELL_PATIENCE: Duration = Duration::from_millis(500);
/// How long a volume may take to have nothing of an earlier ring about it.
const SETTLE_PATIENCE: Duration = Duration::from_secs(600);
/// Longest time of one question after that. The reason why a volume does not answer is known after
/// it.
const SETTLE_TRY: Duration = Duration::from_secs(2);
/// How long one volume's slots may take to be copied, while they are served as ever.
const COPY_PATIENCE: Duration = Duration::from_secs(6 * 3_600);
/// How long sealed slots may take to be copied: requests for them wait meanwhile.
const SEALED_PATIENCE: Duration = Duration::from_secs(3);
/// When catching up takes no longer than this, little is left.
const NEAR: Duration = Duration::from_millis(100);
/// Rounds of catching up before slots are sealed all the same: then they change as fast as they are
/// copied.
const ROUNDS_MAX: u32 = 20;
/// How often the progress of a move is looked at.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How often it is logged, in looks.
const PROGRESS_LOGGED: u32 = 5;
/// Looks in a row at which a target may not answer before the copy is given up: it lives, or this
/// would be known, but it stands still.
const SILENT_LOOKS_MAX: u32 = 10;
/// Looks in a row at which a target may not be copying what it was asked to before that is asked
/// anew.
const IDLE_LOOKS_MAX: u32 = 3;
/// Before a move that failed is begun again.
const MOVE_AGAIN: Duration = Duration::from_millis(500);
/// Between two questions whether a volume is settled.
const ASK_AGAIN: Duration = Duration::from_millis(20);

struct Coordinator {
    cluster: Arc<ClusterHandle>,
    /// The other nodes that were seen and are not gone. One that is about to go has no card any
    /// more, and is to hear at once that others have what it served.
    watched: BTreeMap<NodeName, NodeInfo>,
    leaving: Vec<NodeName>,
    is_elected: bool,
}

/// Coordinates, whenever this process is the coordinator, until told to stop.
pub(crate) async fn coordinate(
    cluster: Arc<ClusterHandle>,
    mut events: mpsc::UnboundedReceiver<Event>,
    mut stop: watch::Receiver<bool>,
) {
    let mut coordinator = Coordinator {
        watched: BTreeMap::new(),
        leaving: Vec::new(),
        is_elected: false,
        cluster: Arc::clone(&cluster),
    };
    Arc::clone(&cluster.membership).stand(cluster.events.clone());
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            event = events.recv() => match event {
                Some(event) => coordinator.note(event),
                None => return,
            },
        }
        while let Ok(event) = events.try_recv() {
            coordinator.note(event);
        }
        if !coordinator.is_elected {
            continue;
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = coordinator.work(&mut events) => {}
        }
    }
}

impl Coordinator {
    fn note(&mut self, event: Event) {
        match event {
            Event::Elected => {
                self.is_elected = true;
                tracing::info!(node = %self.cluster.me, "coordinates from here on");
            }
            Event::Gone(node) => {
                self.watched.remove(&node);
                tracing::warn!(%node, "a node is gone");
            }
            // All nodes are asked; it concerns the coordinator only.
            Event::Leave(node) if self.is_elected => self.leaving.push(node),
            Event::Leave(_) => {}
            Event::Hello => {}
        }
    }

    /// Rounds until there is nothing to do.
    async fn work(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) {
        loop {
            match self.round(events).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let reason = with_reasons(&error);
                    if self.cluster.set_trouble(Some(reason.clone())) {
                        tracing::error!(error = reason, "cannot coordinate");
                    }
                    self.look_again_later();
                    return;
                }
            }
        }
    }

    fn look_again_later(&self) {
        let events = self.cluster.events.clone();
        runtime::spawn(async move {
            tokio::time::sleep(MOVE_AGAIN).await;
            let _ = events.send(Event::Hello);
        });
    }

    /// One step; true if there may be another.
    async fn round(&mut self, events: &mut mpsc::UnboundedReceiver<Event>) -> Result<bool, NodeError> {
        let node_infos = self.alive()?;
        let names: BTreeSet<NodeName> = node_infos.keys().cloned().collect();
        let state = self.cluster.authority.read().await?;
        if let Some(next) = state.with_nodes(&names) {
            announce_serving(&state, &next);
            self.replace(&next).await?;
            return Ok(true);
        }
        if let Some(node) = self.leaving.pop() {
            match state.with_leaving(&node) {
                Ok(next) => self.replace(&next).await?,
                Err(Unleavable::Leaving) => tracing::info!(%node, "node is leaving already"),
                Err(fault) => tracing::warn!(%node, reason = fault.reason(), "node cannot leave"),
            }
            return Ok(true);
        }
        if let Some(undone) = state.undo_move() {
            tracing::warn!("a move of slots was broken off; it is undone");
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
                self.forget_cards(&state, &node_infos);
                Ok(false)
            }
            Some(begun) => self.move_slots(&state, &begun, &node_infos, events).await,
        }
    }

    /// Removes the cards of nodes that are neither there nor members: they have left, or never got
    /// a slot.
    fn forget_cards(&self, state: &ClusterState, alive: &BTreeMap<NodeName, NodeInfo>) {
        let membership = &self.cluster.membership;
        let is_known = |name: &NodeName| {
            alive.contains_key(name) || state.ring.member(name).is_some() || state.leaving.contains(name)
        };
        let node_infos = membership.node_infos().unwrap_or_default();
        for node_info in node_infos.iter().filter(|node_info| !is_known(&node_info.name)) {
            if let Err(error) = membership.forget(&node_info.name) {
                tracing::warn!(node = %node_info.name, error = with_reasons(&error), "cannot remove the card of a node");
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
                tracing::error!(node = %node_info.name, %error, "the node says something of itself that cannot be");
                None
            }
        };
        node_infos.values().filter_map(member).collect()
    }

    /// Puts a state in force and tells everybody.
    async fn replace(&self, next: &ClusterState) -> Result<(), NodeError> {
        Arc::clone(&self.cluster.authority).replace(next.clone()).await?;
        self.cluster.look.notify_one();
        for node_info in self.watched.values() {
            let (cluster, address) = (Arc::clone(&self.cluster), node_info.address);
            runtime::spawn(async move {
                let told = cluster
                    .peers
                    .ask::<bool>(address, "/peer/state", &(), TELL_PATIENCE);
                if let Err(NoAnswer(reason)) = told.await {
                    tracing::debug!(%address, reason, "a node was not told of the new state");
                }
            });
        }
        Ok(())
    }

    /// Moves slots until they are moved, or something comes in between.
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
                    self.note(event);
                }
                return Ok(true);
            }
            settled = all_settled(&cluster, state) => if let Err(reason) = settled {
                cluster.set_trouble(Some(reason));
                self.look_again_later();
                return Ok(false);
            },
        }
        self.replace(begun).await?;
        let start = Instant::now();
        let mut now = begun.clone();
        let copying = copy_all(&cluster, begun, node_infos);
        tokio::pin!(copying);
        let mut is_trouble = true;
        let outcome = loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                outcome = &mut copying => break outcome,
            };
            let Some(event) = event else {
                break Err("the node stops".to_owned());
            };
            let must_end = matches!(event, Event::Leave(_));
            let reason = format!("{event:?}");
            self.note(event);
            // Whoever has no part in the move may come and go beside it.
            let node_infos = self.alive()?;
            if let Some(next) = now.with_nodes(&node_infos.keys().cloned().collect()) {
                announce_serving(&now, &next);
                self.replace(&next).await?;
                now = next;
            }
            if must_end || now.moving.is_none() {
                is_trouble = false;
                break Err(reason);
            }
        };
        *cluster.progress() = None;
        match outcome {
            Ok(moved) => {
                if let Some(done) = now.commit_move() {
                    // Whoever came meanwhile is to hear of it, too.
                    self.alive()?;
                    // From here on the slots are where they were copied to.
                    self.replace(&done).await?;
                    cluster.set_trouble(None);
                    tracing::info!(
                        rows = moved.rows,
                        took_ms = start.elapsed().as_millis() as u64,
                        sealed_ms = moved.sealed_at.elapsed().as_millis() as u64,
                        "slots were moved"
                    );
                }
                Ok(true)
            }
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "slots could not be moved; they stay where they are for now"
                );
                if is_trouble {
                    cluster.set_trouble(Some(reason));
                }
                if let Some(undone) = now.undo_move() {
                    self.alive()?;
                    self.replace(&undone).await?;
                }
                self.look_again_later();
                Ok(false)
            }
        }
    }
}

/// Waits until no volume has anything of an earlier ring about it. While a volume is waited for,
/// the gate has the reason.
async fn all_settled(cluster: &Arc<ClusterHandle>, state: &ClusterState) -> Result<(), String> {
    let until = Instant::now() + SETTLE_PATIENCE;
    for volume in state.serving.keys() {
        loop {
            let name = |_: &Topology| Some(volume.clone());
            let try_until = until.min(Instant::now() + SETTLE_TRY);
            let epoch = ask_volume::<Option<u64>>(cluster, name, "epoch", &(), try_until).await;
            let reason = match epoch {
                Ok(Some(epoch)) if epoch == state.ring.epoch().0 => break,
                Ok(_) => format!("volume {volume} still removes the rows of an earlier move"),
                Err(problem) => problem.detail().to_owned(),
            };
            if Instant::now() >= until {
                return Err(reason);
            }
            cluster.set_trouble(Some(reason));
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    Ok(())
}

/// What was copied.
struct Moved {
    rows: u64,
    /// When the first slot was sealed.
    sealed_at: Instant,
}

/// Slots that pass from one volume to another, and whom to ask.
#[derive(Clone)]
struct Copying {
    target: SocketAddr,
    handover: Handover,
    request: ImportRequest,
}

/// Has every target copy what it gets: first all there is, while it is served, then what changed
/// meanwhile, until little is left; then the rest, sealed.
async fn copy_all(
    cluster: &Arc<ClusterHandle>,
    state: &ClusterState,
    node_infos: &BTreeMap<NodeName, NodeInfo>,
) -> Result<Moved, String> {
    let id = state.moving.as_ref().map_or(0, |moving| moving.id);
    let address = |volume: &NodeName| {
        let node = state.serving.get(volume).and_then(|node| node_infos.get(node));
        node.map(|node_info| node_info.address)
            .ok_or_else(|| format!("nobody serves {volume}"))
    };
    let mut copying = Vec::new();
    for (source, handover) in state.handovers().into_iter().enumerate() {
        let request = ImportRequest {
            address: address(&handover.from)?,
            volume: handover.from.to_string(),
            source: u8::try_from(source).map_err(|_| "over 255 passages in one move".to_owned())?,
            id,
            slots: ranges(&handover.slots),
            seal: false,
        };
        copying.push(Copying {
            target: address(&handover.to)?,
            handover,
            request,
        });
    }
    for _ in 0..ROUNDS_MAX {
        let start = Instant::now();
        let round = round(cluster, &copying, COPY_PATIENCE);
        tokio::pin!(round);
        let (mut looks, mut silent) = (0, 0);
        loop {
            tokio::select! {
                biased;
                done = &mut round => {
                    done?;
                    break;
                }
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    looks += 1;
                    let all_answer = show_progress(cluster, &copying, looks % PROGRESS_LOGGED == 1).await;
                    silent = if all_answer { 0 } else { silent + 1 };
                    if silent > SILENT_LOOKS_MAX {
                        return Err("a node that gets slots does not answer".to_owned());
                    }
                }
            }
        }
        if start.elapsed() <= NEAR {
            break;
        }
    }
    let sealed_at = Instant::now();
    for copy in &mut copying {
        copy.request.seal = true;
    }
    let rows = round(cluster, &copying, SEALED_PATIENCE).await?;
    Ok(Moved { rows, sealed_at })
}

/// Has every target copy until nothing is left for now; how many rows all of them have then.
async fn round(cluster: &Arc<ClusterHandle>, copying: &[Copying], patience: Duration) -> Result<u64, String> {
    let mut copies = JoinSet::new();
    for copy in copying.iter().cloned() {
        let cluster = Arc::clone(cluster);
        copies.spawn(runtime::within(async move {
            let Handover { from, to, slots } = &copy.handover;
            let path = format!("/peer/volume/{to}/inner/import");
            let asked = cluster.peers.ask::<Imported>(copy.target, &path, &copy.request, patience);
            let answer = tokio::select! {
                biased;
                answer = asked => answer,
                () = until_nobody_copies(&cluster, &copy) => Err(NoAnswer("the question, or its answer, got lost".to_owned())),
            };
            match answer {
                Ok(Imported { rows, bytes, .. }) => {
                    let slots = slots.len();
                    tracing::debug!(%from, %to, slots, rows, bytes, sealed = copy.request.seal, "slots were copied");
                    Ok(rows)
                }
                Err(NoAnswer(reason)) => Err(format!("{from} to {to}: {reason}")),
            }
        }));
    }
    let mut rows = 0;
    while let Some(copied) = copies.join_next().await {
        rows += copied.map_err(|error| error.to_string())??;
    }
    Ok(rows)
}

/// Returns if a target that answers is not copying what it was asked to.
async fn until_nobody_copies(cluster: &ClusterHandle, copy: &Copying) {
    let path = format!("/peer/volume/{}/inner/progress", copy.handover.to);
    let mut idle = 0;
    while idle < IDLE_LOOKS_MAX {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let told = cluster
            .peers
            .ask::<Progress>(copy.target, &path, &(), TELL_PATIENCE)
            .await;
        // Whether it does not answer at all is another question.
        let is_idle = told.is_ok_and(|progress| !progress.importing.contains(&copy.request.source));
        idle = if is_idle { idle + 1 } else { 0 };
    }
}

/// Says how far a move has come. False if not every target answers.
async fn show_progress(cluster: &Arc<ClusterHandle>, copying: &[Copying], log: bool) -> bool {
    let (mut rows, mut about) = (0, 0);
    let mut all_answer = true;
    let mut asked = BTreeSet::new();
    for copy in copying
        .iter()
        .filter(|copy| asked.insert(copy.handover.to.clone()))
    {
        let path = format!("/peer/volume/{}/inner/progress", copy.handover.to);
        let told = cluster
            .peers
            .ask::<Progress>(copy.target, &path, &(), TELL_PATIENCE);
        match told.await {
            Ok(Progress { copied, .. }) => {
                rows += copied.rows;
                about += copied.about;
            }
            Err(_) => all_answer = false,
        }
    }
    if log {
        tracing::info!("slots are being copied: {rows} of about {about} rows");
    }
    *cluster.progress() = Some((rows, about));
    all_answer
}

fn announce_serving(before: &ClusterState, after: &ClusterState) {
    for (volume, node) in &after.serving {
        match before.serving.get(volume) {
            Some(known) if known == node => {}
            Some(known) => tracing::info!(%volume, from = %known, to = %node, "the volume changes hands"),
            None => tracing::info!(%volume, %node, "a node joins"),
        }
    }
}
