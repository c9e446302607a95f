//! What the nodes of the simulation share: names, the coordinator's place, the truth, the disk; and
//! the trace of what happened.
//!
//! It is the second implementation of the seam under `cluster/` (the first is `cluster::local`):
//! membership, authority and volumes without a file or a lock of an operating system. A process
//! that dies loses its name and its place at once, and those who wait for that hear of it a moment
//! later, unless somebody else has the name by then.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use imt_ring::{Member as RingMember, NodeName};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use crate::cluster::{Authority, ClusterState, Event, Expected, Membership, NodeInfo, Soon, Volumes};
use crate::control::handle::ClusterHandle;
use crate::error::{NodeError, StorageError};
use crate::runtime;
use crate::runtime::simulated::{Dice, Process};
use crate::simulation::disk::Disk;
use crate::storage::volume::Volume;

/// UTC milliseconds at which every simulation begins.
const BEGINNING_MS: u64 = 1_700_000_000_000;
/// What the nodes show each other.
pub(super) const SECRET: &str = "open sesame";

/// One start of a node: a process with a name.
pub(super) struct Incarnation {
    pub(super) name: NodeName,
    pub(super) address: SocketAddr,
    pub(super) process: Arc<Process>,
    /// Where its requests come in, once it listens.
    pub(super) cluster: Option<Arc<ClusterHandle>>,
    /// True until it dies or has let go of its name.
    pub(super) is_there: bool,
}

struct Watch {
    node: NodeName,
    tell: UnboundedSender<Event>,
}

#[derive(Default)]
pub(super) struct Inside {
    truth: Option<ClusterState>,
    pub(super) incarnations: Vec<Incarnation>,
    /// What nodes say of themselves; it stays when they die.
    node_infos: BTreeMap<NodeName, NodeInfo>,
    coordinator: Option<usize>,
    standing: Vec<(usize, UnboundedSender<Event>)>,
    watches: Vec<Watch>,
    trace: Trace,
    /// How often what happened.
    counts: BTreeMap<&'static str, u64>,
}

/// What happened, as a hash; and in words, if somebody wants to read it.
#[derive(Default)]
struct Trace {
    hash: Xxh3,
    count: u64,
    lines: Option<Vec<String>>,
    violations: Vec<String>,
}

/// Everything that the nodes have in common.
pub(crate) struct World {
    inside: Mutex<Inside>,
    pub(super) dice: Dice,
    pub(super) disk: Disk,
    began: Instant,
    skew_ms: BTreeMap<&'static str, AtomicI64>,
    /// True if a process that does nothing for long loses its name and its volumes, as with leases;
    /// else it keeps them while it lives, as with locks.
    pub(super) has_leases: bool,
    /// Of a thousand messages, how many get lost.
    pub(super) loss: std::sync::atomic::AtomicU64,
}

impl World {
    pub(super) fn new(seed: u64, names: &[&'static str], is_told: bool) -> Arc<World> {
        let inside = Inside {
            trace: Trace {
                lines: is_told.then(Vec::new),
                ..Trace::default()
            },
            ..Inside::default()
        };
        let dice = Dice::of(seed);
        Arc::new(World {
            inside: Mutex::new(inside),
            has_leases: dice.between(0, 1) == 1,
            dice,
            disk: Disk::default(),
            began: Instant::now(),
            skew_ms: names.iter().map(|name| (*name, AtomicI64::new(0))).collect(),
            loss: 0.into(),
        })
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that something happened.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        let at_ms = self.began.elapsed().as_millis() as u64;
        let line = format!("{at_ms:>8} {}", what());
        let trace = &mut self.inside().trace;
        trace.count += 1;
        trace.hash.update(line.as_bytes());
        if let Some(lines) = &mut trace.lines {
            lines.push(line);
        }
    }

    /// Counts something that happened.
    pub(super) fn count(&self, what: &'static str) {
        *self.inside().counts.entry(what).or_default() += 1;
    }

    /// How often what happened.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inside().counts.clone()
    }

    /// Writes down that something happened that must not.
    pub(super) fn violated(&self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        self.inside().trace.violations.push(what);
    }

    /// The trace's hash and length, what must not have happened, and the lines if they were kept.
    pub(super) fn trace(&self) -> (u64, u64, Vec<String>, Vec<String>) {
        let trace = &mut self.inside().trace;
        let lines = trace.lines.take().unwrap_or_default();
        (trace.hash.digest(), trace.count, trace.violations.clone(), lines)
    }

    /// UTC milliseconds by the clock of a node.
    pub(super) fn now_ms(&self, name: &str) -> u64 {
        let skew = self
            .skew_ms
            .get(name)
            .map_or(0, |skew| skew.load(Ordering::Relaxed));
        (BEGINNING_MS + self.began.elapsed().as_millis() as u64).saturating_add_signed(skew)
    }

    /// Sets a node's clock so far from the right time.
    pub(super) fn set_clock(&self, name: &str, skew_ms: i64) {
        if let Some(skew) = self.skew_ms.get(name) {
            skew.store(skew_ms, Ordering::Relaxed);
        }
    }

    /// The epoch of the ring that is in force.
    pub(super) fn epoch(&self) -> Option<u64> {
        let inside = self.inside();
        inside.truth.as_ref().map(|truth| truth.ring.epoch().0)
    }

    /// What is in force.
    pub(super) fn truth(&self) -> Option<ClusterState> {
        self.inside().truth.clone()
    }

    /// The newest process of that name, if it is there.
    pub(super) fn at_work(&self, name: &str) -> Option<(usize, Arc<Process>)> {
        let inside = self.inside();
        let found = inside.holder(name)?;
        Some((found, Arc::clone(&inside.incarnations[found].process)))
    }

    /// A new process of that name; `None` if there is one.
    pub(super) fn start(self: &Arc<Self>, name: &'static str) -> Option<Arc<Node>> {
        let node = NodeName::new(name).ok()?;
        let mut inside = self.inside();
        if inside.holder(name).is_some() {
            return None;
        }
        let id = inside.incarnations.len();
        let world = Arc::downgrade(self);
        let process = Process::new(self.dice.clone(), move || {
            if let Some(world) = world.upgrade() {
                world.note(|| format!("{name} dies"));
                world.count("deaths");
                world.is_gone(id);
            }
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 10_000 + id as u16));
        inside.incarnations.push(Incarnation {
            name: node.clone(),
            address,
            process,
            cluster: None,
            is_there: true,
        });
        if inside.coordinator.is_none() {
            inside.coordinator = Some(id);
        }
        if inside.truth.is_none() {
            let member = RingMember::new(name).ok()?;
            inside.truth = ClusterState::first(member).ok();
        }
        drop(inside);
        self.note(|| format!("{name} starts as process {id}"));
        Some(Arc::new(Node {
            world: Arc::clone(self),
            id,
            name: node,
        }))
    }

    /// A process is there no more: whoever waited for its name or its place is told.
    fn is_gone(self: &Arc<Self>, id: usize) {
        let mut inside = self.inside();
        let Some(incarnation) = inside.incarnations.get_mut(id) else {
            return;
        };
        incarnation.is_there = false;
        // One that has lost its lease and does not know listens still, and answers whoever asks it.
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
                world.tell_of(&name);
            });
        }
    }

    /// A process that has done nothing for too long loses what it had; it may go on, and finds out.
    pub(super) fn expire(self: &Arc<Self>, id: usize) {
        let process = Arc::clone(&self.inside().incarnations[id].process);
        if process.is_stopped() && !process.is_fenced() {
            process.fence();
            self.note(|| format!("process {id} has lost its lease"));
            self.count("leases lost");
            self.is_gone(id);
        }
    }

    fn moment(&self) -> Duration {
        Duration::from_millis(self.dice.between(0, 4))
    }

    /// Gives the coordinator's place to one of those who wait for it. One who is stopped cannot
    /// take it.
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
        standing.retain(|(id, _)| incarnations[*id].is_there);
        let awake: Vec<usize> = (0..standing.len())
            .filter(|at| !incarnations[standing[*at].0].process.is_stopped())
            .collect();
        if awake.is_empty() {
            return;
        }
        let at = awake[self.dice.between(0, awake.len() as u64 - 1) as usize];
        let (id, tell) = standing.remove(at);
        let name = incarnations[id].name.clone();
        inside.coordinator = Some(id);
        drop(inside);
        self.note(|| format!("{name} coordinates"));
        let _ = tell.send(Event::Elected);
    }

    /// Tells those who wait for a node's end; nobody, if its name is taken again.
    fn tell_of(&self, node: &NodeName) {
        let mut inside = self.inside();
        if inside.holder(node.as_str()).is_some() {
            return;
        }
        let watches = std::mem::take(&mut inside.watches);
        let (told, rest): (Vec<Watch>, Vec<Watch>) =
            watches.into_iter().partition(|watch| watch.node == *node);
        inside.watches = rest;
        drop(inside);
        for watch in told {
            let _ = watch.tell.send(Event::Gone(node.clone()));
        }
    }
}

impl Inside {
    fn holder(&self, name: &str) -> Option<usize> {
        let found = |one: &Incarnation| one.is_there && one.name.as_str() == name;
        self.incarnations.iter().rposition(found)
    }
}

/// A process as a node among the others.
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

    /// From here on requests come in.
    pub(super) fn listen(&self, cluster: &Arc<ClusterHandle>) {
        let incarnation = &mut self.world.inside().incarnations[self.id];
        incarnation.cluster = incarnation.is_there.then(|| Arc::clone(cluster));
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

    fn watch(&self, node: &NodeName, tell: UnboundedSender<Event>) {
        let mut inside = self.world.inside();
        let is_there = inside.holder(node.as_str()).is_some();
        inside.watches.push(Watch {
            node: node.clone(),
            tell,
        });
        drop(inside);
        if !is_there {
            self.world.tell_of(node);
        }
    }

    fn stand(self: Arc<Self>, tell: UnboundedSender<Event>) {
        let mut inside = self.world.inside();
        if inside.coordinator == Some(self.id) {
            let _ = tell.send(Event::Elected);
            return;
        }
        inside.standing.push((self.id, tell));
        drop(inside);
        self.world.elect();
    }

    fn retire(&self) {
        let mut inside = self.world.inside();
        if inside.incarnations[self.id].is_there {
            inside.node_infos.remove(&self.name);
        }
    }

    fn withdraw(&self) {
        self.retire();
        self.world.note(|| format!("{} withdraws", self.name));
        self.world.is_gone(self.id);
    }

    fn secret(&self) -> &str {
        SECRET
    }
}

impl Authority for Node {
    fn read(&self) -> Soon<'_, ClusterState> {
        let truth = self.world.truth().ok_or_else(|| NodeError::NotAdmitted {
            name: self.name.to_string(),
        });
        Box::pin(std::future::ready(truth))
    }

    fn replace(self: Arc<Self>, next: ClusterState) -> Soon<'static, ()> {
        Box::pin(async move {
            let refused = |reason: &str| NodeError::Ring {
                path: PathBuf::from("the truth"),
                reason: reason.to_owned(),
            };
            let (node, state) = (Arc::clone(&self), next.clone());
            let written = runtime::blocking(move || {
                let mut inside = node.world.inside();
                let before = inside.truth.clone();
                let follows = inside
                    .truth
                    .as_ref()
                    .is_some_and(|truth| truth.version + 1 == state.version);
                let may = inside.coordinator == Some(node.id) && follows;
                if let Some(before) = before.filter(|_| may) {
                    let change = match (&before.moving, &state.moving) {
                        (None, Some(_)) => "moves begun",
                        (Some(_), None) if before.ring == state.ring => "moves undone",
                        (Some(_), None) => "moves committed",
                        _ => "other changes",
                    };
                    *inside.counts.entry(change).or_default() += 1;
                    if before.serving != state.serving {
                        *inside.counts.entry("volumes that changed hands").or_default() += 1;
                    }
                    inside.truth = Some(state);
                }
                may
            });
            if !written.await.unwrap_or(false) {
                return Err(refused("another state is in force, or another node coordinates"));
            }
            self.world.note(|| {
                let moving = next.moving.as_ref().map(|moving| moving.id);
                let epoch = next.ring.epoch().0;
                format!(
                    "{} puts {} in force: epoch {epoch}, moving {moving:?}, {:?}",
                    self.name, next.version, next.serving
                )
            });
            Ok(())
        })
    }
}

impl Volumes for Node {
    // The disk of the simulation loses no volume, and the first one is not made before it is
    // opened.
    fn open(self: Arc<Self>, volume: NodeName, _expected: Expected) -> Soon<'static, Option<Volume>> {
        Box::pin(async move {
            let folder = PathBuf::from("/volumes").join(volume.as_str());
            let (disk, holder) = (self.world.disk.clone(), self.process());
            let opened = runtime::blocking(move || {
                let options = microdb::Options::new()
                    .storage(Arc::new(disk))
                    .background(false)
                    .segment_bytes_first(16 * 1_024)
                    .segment_bytes_max(256 * 1_024);
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

/// The clock of a node of the simulation.
#[derive(Clone)]
pub(crate) struct VirtualClock {
    pub(super) world: Weak<World>,
    pub(super) name: &'static str,
}

impl VirtualClock {
    /// UTC milliseconds since 1970.
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
