//! The environment that the simulated nodes share: names, election, the cluster's state, clocks,
//! engines, the disk and the trace.
//!
//! `Node` is an implementation of the traits in `cluster` like `cluster::local`, without files or
//! locks of an operating system. Behind an engine it only starts the real implementation,
//! `cluster::engine`, with a simulated engine (`engine_membership`).
//!
//! **Invariants**
//! - Without an engine, a process that dies loses its name and the role of coordinator immediately.
//!   Watchers are notified a moment later, unless another process has the name by then.
//! - Events are added to the trace (`World::note`), so that two runs of a seed can be compared.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::{Member as RingMember, NodeName};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use crate::cluster::{Authority, ClusterState, Event, Expected, Membership, NodeInfo, Soon, Volumes};
use crate::control::handle::ClusterHandle;
use crate::error::{NodeError, StorageError};
use crate::runtime;
use crate::runtime::simulated::{Dice, Process};
use crate::simulation::disk::Disk;
use crate::simulation::engine::SimEngine;
use crate::storage::volume::Volume;

/// Start of every simulation in UTC milliseconds.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// The secret that authenticates nodes to each other.
pub(super) const SECRET: &str = "open sesame";

/// One start of a node: a process with a name.
pub(super) struct Incarnation {
    pub(super) name: NodeName,
    pub(super) address: SocketAddr,
    pub(super) process: Arc<Process>,
    /// The handle that receives the node's requests. `None` while the node does not listen.
    pub(super) cluster: Option<Arc<ClusterHandle>>,
    /// `true` until the process dies, exits or withdraws from the cluster, or, without an engine,
    /// loses its lease.
    pub(super) is_member: bool,
    /// Behind an engine, the folder with the process's copies of volumes.
    folder: PathBuf,
}

struct Watch {
    node: NodeName,
    events: UnboundedSender<Event>,
}

#[derive(Default)]
pub(super) struct Inside {
    state: Option<Arc<ClusterState>>,
    /// The moment of the last change of the warehouse's address. `None` before the first change.
    warehouse_since: Option<Instant>,
    pub(super) incarnations: Vec<Incarnation>,
    /// Published descriptions of nodes. The description of a node remains when the node dies.
    node_infos: BTreeMap<NodeName, NodeInfo>,
    coordinator: Option<usize>,
    standing: Vec<(usize, UnboundedSender<Event>)>,
    watches: Vec<Watch>,
    trace: Trace,
    /// Number of occurrences by name, such as `deaths`, from `count` and `set_state`. Separate from
    /// the events of `trace`.
    counts: BTreeMap<&'static str, u64>,
}

/// The events of a run as a hash, and as text if requested. Also the violations among them.
#[derive(Default)]
struct Trace {
    hash: Xxh3,
    count: u64,
    lines: Option<Vec<String>>,
    violations: Vec<String>,
}

/// URL of the second engine, which the cluster's state has as a further engine.
pub(super) const FURTHER_ENGINE: &str = "postgres://imt@further/shop";

/// The shared environment of all nodes.
pub(crate) struct World {
    inside: Mutex<Inside>,
    pub(super) dice: Dice,
    pub(super) disk: Disk,
    /// The engines with the logs of the volumes: none, one or two. The second engine is the engine
    /// at `FURTHER_ENGINE`.
    pub(super) engines: Vec<Arc<SimEngine>>,
    began: Instant,
    skew_ms: BTreeMap<&'static str, AtomicI64>,
    /// `true` if a process that is stopped for too long loses its name and volumes, as with leases.
    /// `false` if a process keeps both until it dies, as with locks. `false` also behind an engine,
    /// where the nodes themselves decide about leases.
    pub(super) has_leases: bool,
    /// `true` if nodes borrow units in advance from stores with many orders, as in three runs of
    /// four.
    pub(super) has_allotments: bool,
    /// Number of calls, answers, frames and attempts to open a connection that are lost, per
    /// thousand.
    pub(super) loss: std::sync::atomic::AtomicU64,
}

impl World {
    /// Creates a world without nodes. With an engine, each node keeps its copies of volumes in a
    /// separate folder.
    pub(super) fn new(seed: u64, names: &[&'static str], keeps_lines: bool, engines: usize) -> Arc<World> {
        let inside = Inside {
            trace: Trace {
                lines: keeps_lines.then(Vec::new),
                ..Trace::default()
            },
            ..Inside::default()
        };
        let dice = Dice::of(seed);
        let has_engine = engines > 0;
        Arc::new(World {
            inside: Mutex::new(inside),
            has_leases: dice.between(0, 1) == 1 && !has_engine,
            has_allotments: !seed.is_multiple_of(4),
            engines: (0..engines).map(|_| SimEngine::new(dice.clone())).collect(),
            disk: Disk::new(has_engine),
            dice,
            began: Instant::now(),
            skew_ms: names.iter().map(|name| (*name, AtomicI64::new(0))).collect(),
            loss: 0.into(),
        })
    }

    /// Returns `true` if the cluster is behind an engine.
    pub(super) fn has_engine(&self) -> bool {
        !self.engines.is_empty()
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    /// Adds an event to the trace.
    pub(super) fn note(&self, event: impl FnOnce() -> String) {
        let at_ms = self.began.elapsed().as_millis() as u64;
        let line = format!("{at_ms:>8} {}", event());
        let trace = &mut self.inside().trace;
        trace.count += 1;
        trace.hash.update(line.as_bytes());
        if let Some(lines) = &mut trace.lines {
            lines.push(line);
        }
    }

    /// Counts one occurrence of a kind of event.
    pub(super) fn count(&self, event: &'static str) {
        *self.inside().counts.entry(event).or_default() += 1;
    }

    /// Returns the number of occurrences by kind of event.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inside().counts.clone()
    }

    /// Records a violation, which makes the run fail.
    pub(super) fn violated(&self, violation: String) {
        self.note(|| format!("VIOLATION {violation}"));
        self.inside().trace.violations.push(violation);
    }

    /// Returns the hash and the length of the trace, the violations, and the kept lines.
    pub(super) fn trace(&self) -> (u64, u64, Vec<String>, Vec<String>) {
        let trace = &mut self.inside().trace;
        let lines = trace.lines.take().unwrap_or_default();
        (trace.hash.digest(), trace.count, trace.violations.clone(), lines)
    }

    /// Returns the time by the clock of a node, in UTC milliseconds.
    pub(super) fn now_ms(&self, name: &str) -> u64 {
        let skew = self
            .skew_ms
            .get(name)
            .map_or(0, |skew| skew.load(Ordering::Relaxed));
        (BEGINNING_MS + self.began.elapsed().as_millis() as u64).saturating_add_signed(skew)
    }

    /// Sets the deviation of a node's clock from the right time, in milliseconds.
    pub(super) fn set_clock(&self, name: &str, skew_ms: i64) {
        if let Some(skew) = self.skew_ms.get(name) {
            skew.store(skew_ms, Ordering::Relaxed);
        }
    }

    /// Returns the epoch of the current ring. `None` before the cluster has its first state.
    pub(super) fn epoch(&self) -> Option<u64> {
        self.observe_state();
        let inside = self.inside();
        inside.state.as_ref().map(|state| state.ring.epoch().0)
    }

    /// Returns the current state of the cluster. `None` before the first state.
    pub(super) fn state(&self) -> Option<ClusterState> {
        self.observe_state();
        self.inside().state.as_deref().cloned()
    }

    /// Behind an engine, records the cluster's state that the engine has at this moment.
    pub(super) fn observe_state(&self) {
        let Some(row) = self.engines.first().and_then(|engine| engine.cluster()) else {
            return;
        };
        let known = self.inside().state.clone();
        if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &row.state)) {
            return;
        }
        self.set_state(row.state, &row.coordinator);
    }

    /// Records a new state of the cluster, which the node `writer` has written.
    fn set_state(&self, next: Arc<ClusterState>, writer: &str) {
        {
            let mut inside = self.inside();
            if let Some(before) = inside.state.clone() {
                let change = match (&before.moving, &next.moving) {
                    (None, Some(_)) => "moves begun",
                    (Some(_), None) if before.ring == next.ring => "moves undone",
                    (Some(_), None) => "moves committed",
                    _ => "other changes",
                };
                *inside.counts.entry(change).or_default() += 1;
                if before.serving != next.serving {
                    *inside.counts.entry("volumes that changed hands").or_default() += 1;
                }
                if before.warehouse != next.warehouse {
                    *inside.counts.entry("changes of the warehouse").or_default() += 1;
                    inside.warehouse_since = Some(Instant::now());
                }
            }
            inside.state = Some(Arc::clone(&next));
        }
        self.note(|| {
            let moving = next.moving.as_ref().map(|moving| moving.id);
            let epoch = next.ring.epoch().0;
            format!(
                "{writer} replaces the state by version {}: epoch {epoch}, moving {moving:?}, {:?}",
                next.version, next.serving
            )
        });
    }

    /// Returns the warehouse's address in the cluster's state, and the moment of its last change:
    /// the beginning of the run if the address never changed.
    pub(super) fn warehouse(&self) -> (Option<String>, Instant) {
        self.observe_state();
        let inside = self.inside();
        let known = inside.state.as_ref().and_then(|state| state.warehouse.clone());
        (known, inside.warehouse_since.unwrap_or(self.began))
    }

    /// Ends the reachability of all processes. The handle of a process refers to this world, so the
    /// memory of a run is freed only after this call.
    pub(super) fn end(&self) {
        let (handles, standing, watches) = {
            let inside = &mut *self.inside();
            let handles: Vec<_> = inside
                .incarnations
                .iter_mut()
                .map(|one| one.cluster.take())
                .collect();
            let standing = std::mem::take(&mut inside.standing);
            (handles, standing, std::mem::take(&mut inside.watches))
        };
        drop((handles, standing, watches));
    }

    /// Returns the number and the process of the last incarnation with this name that is a member
    /// of the cluster. The process may be stopped. `None` if there is no such member.
    pub(super) fn running(&self, name: &str) -> Option<(usize, Arc<Process>)> {
        let inside = self.inside();
        let found = inside.holder(name)?;
        Some((found, Arc::clone(&inside.incarnations[found].process)))
    }

    /// Starts a process with this name. Returns `None` if a process has the name already. Behind an
    /// engine, a stopped process does not keep another one from starting.
    pub(super) fn start(self: &Arc<Self>, name: &'static str) -> Option<Arc<Node>> {
        let node = NodeName::new(name).ok()?;
        let mut inside = self.inside();
        let holder = inside.holder(name);
        if holder
            .is_some_and(|holder| !self.has_engine() || !inside.incarnations[holder].process.is_stopped())
        {
            return None;
        }
        let id = inside.incarnations.len();
        let mut former = inside.incarnations.iter().rev();
        let folder = match former.find(|one| one.name.as_str() == name) {
            // A second process is on another machine, with another folder.
            Some(former) if !former.process.is_dead() => PathBuf::from(format!("/caches/{name}-{id}")),
            Some(former) => former.folder.clone(),
            None => PathBuf::from(format!("/caches/{name}")),
        };
        let world = Arc::downgrade(self);
        let process = Process::new(self.dice.clone(), move || {
            if let Some(world) = world.upgrade() {
                world.report_death(id, name);
            }
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 10_000 + id as u16));
        inside.incarnations.push(Incarnation {
            name: node.clone(),
            address,
            process,
            cluster: None,
            is_member: true,
            folder,
        });
        if !self.has_engine() {
            inside.coordinator.get_or_insert(id);
            if inside.state.is_none() {
                let member = RingMember::new(name).ok()?;
                inside.state = ClusterState::first(member).ok().map(Arc::new);
            }
        }
        drop(inside);
        self.note(|| format!("{name} starts as process {id}"));
        Some(Arc::new(Node {
            world: Arc::clone(self),
            id,
            name: node,
        }))
    }

    fn report_death(self: &Arc<Self>, id: usize, name: &str) {
        // Behind an engine, `Node::exit` ends the membership of a process and then kills it, so
        // that its tasks end. Such a kill is a normal exit and is not counted as a death.
        let is_exit = self.has_engine() && !self.inside().incarnations[id].is_member;
        if !is_exit {
            self.note(|| format!("{name} dies"));
            self.count("deaths");
            self.end_membership(id);
        }
    }

    /// Ends the membership of a process. A moment later, another coordinator is elected and
    /// watchers of the name are notified, if needed.
    pub(super) fn end_membership(self: &Arc<Self>, id: usize) {
        let mut inside = self.inside();
        let Some(incarnation) = inside.incarnations.get_mut(id) else {
            return;
        };
        incarnation.is_member = false;
        // A process that has lost its lease while it was stopped does not know the loss, so it
        // still listens and answers.
        if incarnation.process.is_dead() || !incarnation.process.is_fenced() {
            incarnation.cluster = None;
        }
        let name = incarnation.name.clone();
        let must_elect = inside.coordinator == Some(id);
        if must_elect {
            inside.coordinator = None;
        }
        let is_watched = inside.watches.iter().any(|watch| watch.node == name);
        drop(inside);
        if must_elect {
            let (world, wait) = (Arc::clone(self), self.moment());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                world.elect();
            });
        }
        if is_watched {
            let (world, wait) = (Arc::clone(self), self.moment());
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                world.report_end(&name);
            });
        }
    }

    /// Takes the lease from a process that was stopped for too long. The process may resume, and
    /// detects the loss only then.
    pub(super) fn expire(self: &Arc<Self>, id: usize) {
        let process = Arc::clone(&self.inside().incarnations[id].process);
        if process.is_stopped() && !process.is_fenced() {
            process.fence();
            self.note(|| format!("process {id} has lost its lease"));
            self.count("leases lost");
            self.end_membership(id);
        }
    }

    fn moment(&self) -> Duration {
        Duration::from_millis(self.dice.between(0, 4))
    }

    /// Makes one of the members that stand for election the coordinator, unless there is a
    /// coordinator. A stopped process cannot be chosen.
    pub(super) fn elect(&self) {
        let mut inside = self.inside();
        if inside.coordinator.is_some() {
            return;
        }
        let Inside {
            incarnations,
            standing,
            ..
        } = &mut *inside;
        standing.retain(|(id, _)| incarnations[*id].is_member);
        let awake: Vec<usize> = (0..standing.len())
            .filter(|at| !incarnations[standing[*at].0].process.is_stopped())
            .collect();
        if awake.is_empty() {
            return;
        }
        let at = awake[self.dice.between(0, awake.len() as u64 - 1) as usize];
        let (id, events) = standing.remove(at);
        let name = incarnations[id].name.clone();
        inside.coordinator = Some(id);
        drop(inside);
        self.note(|| format!("{name} becomes the coordinator"));
        let _ = events.send(Event::Elected);
    }

    /// Notifies the watchers of a node that the node has ended, unless its name is in use again.
    fn report_end(&self, node: &NodeName) {
        let mut inside = self.inside();
        if inside.holder(node.as_str()).is_some() {
            return;
        }
        let watches = std::mem::take(&mut inside.watches);
        let (ended, rest): (Vec<Watch>, Vec<Watch>) =
            watches.into_iter().partition(|watch| watch.node == *node);
        inside.watches = rest;
        drop(inside);
        for watch in ended {
            let _ = watch.events.send(Event::Gone(node.clone()));
        }
    }
}

impl Inside {
    fn holder(&self, name: &str) -> Option<usize> {
        let found = |one: &Incarnation| one.is_member && one.name.as_str() == name;
        self.incarnations.iter().rposition(found)
    }
}

/// A process as a member of the cluster.
pub(super) struct Node {
    pub(super) world: Arc<World>,
    pub(super) id: usize,
    pub(super) name: NodeName,
}

impl Node {
    pub(super) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.world.inside().incarnations[self.id].process)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.world.inside().incarnations[self.id].address
    }

    /// Starts to receive requests, unless the process is no longer a member.
    pub(super) fn listen(&self, cluster: &Arc<ClusterHandle>) {
        let incarnation = &mut self.world.inside().incarnations[self.id];
        incarnation.cluster = incarnation.is_member.then(|| Arc::clone(cluster));
    }
}

impl Node {
    /// Behind an engine, returns the folder with the copies of volumes.
    pub(super) fn folder(&self) -> PathBuf {
        self.world.inside().incarnations[self.id].folder.clone()
    }

    pub(super) fn options(&self) -> microdb::Options {
        microdb::Options::new()
            .storage(Arc::new(self.world.disk.clone()))
            .background(false)
            .segment_bytes_first(16 * 1_024)
            .segment_bytes_max(256 * 1_024)
    }

    /// Ends the membership of the process, and then kills the process.
    pub(super) fn exit(&self) {
        self.world.end_membership(self.id);
        self.process().kill();
    }
}

impl Membership for Node {
    fn name(&self) -> &NodeName {
        &self.name
    }

    fn announce(&self, node_info: &NodeInfo) -> Result<(), NodeError> {
        self.world
            .inside()
            .node_infos
            .insert(node_info.name.clone(), node_info.clone());
        Ok(())
    }

    fn alive(&self) -> Result<Vec<NodeInfo>, NodeError> {
        let inside = self.world.inside();
        let lives = |node_info: &&NodeInfo| {
            node_info.name == self.name || inside.holder(node_info.name.as_str()).is_some()
        };
        Ok(inside.node_infos.values().filter(lives).cloned().collect())
    }

    fn node_infos(&self) -> Result<Vec<NodeInfo>, NodeError> {
        Ok(self.world.inside().node_infos.values().cloned().collect())
    }

    fn forget(&self, node: &NodeName) -> Result<(), NodeError> {
        let mut inside = self.world.inside();
        if inside.holder(node.as_str()).is_none() {
            inside.node_infos.remove(node);
        }
        Ok(())
    }

    fn watch(&self, node: &NodeName, events: UnboundedSender<Event>) {
        let mut inside = self.world.inside();
        let is_member = inside.holder(node.as_str()).is_some();
        inside.watches.push(Watch {
            node: node.clone(),
            events,
        });
        drop(inside);
        if !is_member {
            self.world.report_end(node);
        }
    }

    fn stand(self: Arc<Self>, events: UnboundedSender<Event>) {
        let mut inside = self.world.inside();
        if inside.coordinator == Some(self.id) {
            let _ = events.send(Event::Elected);
            return;
        }
        inside.standing.push((self.id, events));
        drop(inside);
        self.world.elect();
    }

    fn retire(&self) {
        let mut inside = self.world.inside();
        if inside.incarnations[self.id].is_member {
            inside.node_infos.remove(&self.name);
        }
    }

    fn withdraw(&self) {
        self.retire();
        self.world.note(|| format!("{} withdraws", self.name));
        self.world.end_membership(self.id);
    }

    fn secret(&self) -> &str {
        SECRET
    }
}

impl Authority for Node {
    fn read(&self) -> Soon<'_, ClusterState> {
        let state = self.world.state().ok_or_else(|| NodeError::NotAdmitted {
            name: self.name.to_string(),
        });
        Box::pin(std::future::ready(state))
    }

    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()> {
        Box::pin(async move {
            let rejected = |reason: &str| NodeError::Ring {
                path: PathBuf::from("the cluster state"),
                reason: reason.to_owned(),
            };
            let node = Arc::clone(&self);
            let written = runtime::blocking(move || {
                let may = {
                    let inside = node.world.inside();
                    let known = inside.state.as_ref();
                    let follows = known.is_some_and(|known| known.version + 1 == next.version);
                    inside.coordinator == Some(node.id) && follows
                };
                if may {
                    node.world.set_state(Arc::new(next), node.name.as_str());
                }
                may
            });
            if !written.await.unwrap_or(false) {
                return Err(rejected(
                    "the state has changed, or another node is the coordinator",
                ));
            }
            Ok(())
        })
    }
}

impl Volumes for Node {
    // The simulated disk loses no volume, and the first volume is created when it is opened. So
    // `_expected` needs no check.
    fn open(self: Arc<Self>, volume: NodeName, _expected: Expected) -> Soon<'static, Option<Volume>> {
        Box::pin(async move {
            let (options, holder) = (self.options(), self.process());
            let folder = PathBuf::from("/volumes").join(volume.as_str());
            let opened = runtime::blocking(move || {
                let storage = Volume::open_by(options, &folder)?;
                Ok::<_, StorageError>(storage.leased_while(move || !holder.is_fenced()))
            });
            match opened.await {
                Ok(Ok(storage)) => {
                    self.world.note(|| format!("{} opens {volume}", self.name));
                    Ok(Some(storage))
                }
                Ok(Err(error)) if error.is_locked() => Ok(None),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Ok(None),
            }
        })
    }

    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        self.world.note(|| format!("{} removes {volume}", self.name));
        self.world
            .disk
            .remove_folder(&PathBuf::from("/volumes").join(volume.as_str()));
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The clock of a simulated node.
#[derive(Clone)]
pub(crate) struct VirtualClock {
    pub(super) world: Weak<World>,
    pub(super) name: &'static str,
}

impl VirtualClock {
    /// Returns the node's time in UTC milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        self.world
            .upgrade()
            .map_or(BEGINNING_MS, |world| world.now_ms(self.name))
    }
}

impl std::fmt::Debug for VirtualClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the clock of {}", self.name)
    }
}
