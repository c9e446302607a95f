//! The cluster's state: the ring, the server of each volume, and the move in progress.
//!
//! Every change is a pure function. It returns the next state, or reports that nothing changes or
//! why the change is impossible.
//!
//! **Invariants**
//! - The version grows by one with every change.
//! - At most one move is in progress.
//!
//! Deliberately absent: files, locks and messages, which are in the other modules of `cluster`.

use std::collections::{BTreeMap, BTreeSet};

use imt_ring::{Member, NodeName, Options, Ring, Slot};
use serde::{Deserialize, Serialize};

use crate::cluster::VolumeLog;

/// Version of the layout in which the state is written.
const FORMAT: u32 = 3;
/// Oldest version of the layout that can be read. States in this layout lack the fields `since` and
/// `following`.
const OLDEST_FORMAT: u32 = 2;

/// The cluster's state, which all nodes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterState {
    format: u32,
    /// Version of the state. It grows by one with every change.
    pub(crate) version: u64,
    /// The assignment of slots to volumes.
    pub(crate) ring: Ring,
    /// The node to which each volume is assigned. The node serves the volume, or will open it.
    pub(crate) serving: BTreeMap<NodeName, NodeName>,
    /// The version of the state in which each volume was assigned to its present server. The log of
    /// a volume rejects takeovers with an earlier version.
    #[serde(default)]
    pub(crate) since: BTreeMap<NodeName, u64>,
    /// The version of the state in which each volume was created. If a node leaves and returns, its
    /// volume is a new one. A local copy of the earlier volume must not be used for the new one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) born: BTreeMap<NodeName, u64>,
    /// The follower of each volume: the node that applies the volume's log to a local copy, so that
    /// it can take over the volume quickly. Empty unless volumes have logs that other nodes can
    /// read.
    #[serde(default)]
    pub(crate) following: BTreeMap<NodeName, NodeName>,
    /// Nodes that are leaving permanently. Their slots move to other volumes, and then their
    /// processes stop.
    pub(crate) leaving: BTreeSet<NodeName>,
    /// The move in progress; `None` without a move.
    pub(crate) moving: Option<Moving>,
    /// The id of the committed move that led to the current ring; 0 before the first move.
    pub(crate) committed: u64,
    /// The URLs, without passwords, of the further engines by name. A further engine is an engine
    /// other than the first one, which stores this state.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) engines: BTreeMap<String, String>,
    /// The name of the further engine that stores a volume's log, for each volume that is not on
    /// the first engine. The entry of a removed volume is kept, so that volumes of one name never
    /// have logs on two further engines.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) placed: BTreeMap<NodeName, String>,
    /// URL of the warehouse that every node calls; `None` until a node has stored one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warehouse: Option<String>,
}

/// A move of slots between volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Moving {
    /// The id of the move: the version of the state that began it.
    pub(crate) id: u64,
    /// The ring that becomes active when the move is committed.
    pub(crate) next: Ring,
}

/// The reason why a node cannot begin to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unleavable {
    NoMember,
    Leaving,
    Last,
}

impl Unleavable {
    /// Returns the reason as text for the operator.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Unleavable::NoMember => "it is not a member of the ring",
            Unleavable::Leaving => "it is leaving already",
            Unleavable::Last => "no other member with a weight above 0 can take over its orders",
        }
    }
}

/// The slots that a move transfers from one volume to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    pub(crate) from: NodeName,
    pub(crate) to: NodeName,
    pub(crate) slots: Vec<u32>,
}

impl ClusterState {
    /// Creates the first state of a cluster, with one node.
    pub(crate) fn first(member: Member) -> Result<ClusterState, imt_ring::Error> {
        let name = member.name().clone();
        let mut state = ClusterState::of_ring(Ring::bootstrap([member], Options::new())?);
        state.since = BTreeMap::from([(name.clone(), state.version)]);
        state.born = BTreeMap::from([(name.clone(), state.version)]);
        state.serving = BTreeMap::from([(name.clone(), name)]);
        Ok(state)
    }

    /// Creates version 1 of a state with this ring, in which no volume is assigned to a node. It is
    /// also the state of a data folder of the first layout, in which `ring.json` contains only a
    /// ring.
    pub(crate) fn of_ring(ring: Ring) -> ClusterState {
        ClusterState {
            format: FORMAT,
            version: 1,
            ring,
            serving: BTreeMap::new(),
            since: BTreeMap::new(),
            born: BTreeMap::new(),
            following: BTreeMap::new(),
            leaving: BTreeSet::new(),
            moving: None,
            committed: 0,
            engines: BTreeMap::new(),
            placed: BTreeMap::new(),
            warehouse: None,
        }
    }

    /// Returns `true` if this program can read the state's layout.
    pub(crate) fn is_known_format(&self) -> bool {
        (OLDEST_FORMAT..=FORMAT).contains(&self.format)
    }

    fn changed(mut self) -> ClusterState {
        self.format = FORMAT;
        self.version += 1;
        self
    }

    /// Returns the version of the state in which a volume was assigned to its present server; 0 if
    /// the state does not contain it, as after an assignment under format 2.
    pub(crate) fn since(&self, volume: &NodeName) -> u64 {
        self.since.get(volume).copied().unwrap_or(0)
    }

    /// Returns the identity of a volume's log. In the result, `born` is 0 if the state does not
    /// contain the version in which the volume was created.
    pub(crate) fn log_of(&self, volume: &NodeName) -> VolumeLog {
        VolumeLog {
            born: self.born.get(volume).copied().unwrap_or(0),
            engine: self
                .placed
                .get(volume)
                .map(|name| self.engines.get(name).cloned().unwrap_or_default()),
        }
    }

    /// Assigns the volumes of the ring and of the running nodes (`alive`) to running nodes. All
    /// other volumes are removed, and so is the volume of a running node that is leaving and is no
    /// member of the ring. A move is undone if one of its volumes gets another server or none, and
    /// continues otherwise. Returns `None` if nothing changes.
    ///
    /// The first choice is the volume's own node, then its present server, then its follower, then
    /// the node with the fewest volumes. The last two choices exclude leaving nodes. If all four
    /// choices give no node, the first running node by name is chosen.
    pub(crate) fn with_nodes(&self, alive: &BTreeSet<NodeName>) -> Option<ClusterState> {
        let mut next = self.clone();
        // A node that is no longer a member is removed from `leaving` once its process has ended.
        let is_member = |name: &NodeName| self.ring.member(name).is_some();
        next.leaving
            .retain(|name| alive.contains(name) || is_member(name));
        let has_left = |name: &NodeName| self.leaving.contains(name) && !is_member(name);
        let volumes: BTreeSet<NodeName> = self
            .ring
            .members()
            .iter()
            .map(|member| member.name().clone())
            .chain(alive.iter().filter(|name| !has_left(name)).cloned())
            .collect();
        next.serving.clear();
        for volume in &volumes {
            let known = self.serving.get(volume).filter(|node| alive.contains(*node));
            if let Some(node) = alive.get(volume).or(known) {
                next.serving.insert(volume.clone(), node.clone());
            }
        }
        for volume in &volumes {
            if next.serving.contains_key(volume) {
                continue;
            }
            let load = |node: &NodeName| next.serving.values().filter(|server| *server == node).count();
            let follower = self.following.get(volume);
            let candidates = alive.iter().filter(|node| !self.leaving.contains(*node));
            let survivor =
                candidates.min_by_key(|node| (Some(*node) != follower, load(node), (*node).clone()));
            if let Some(node) = survivor.or_else(|| alive.first()) {
                next.serving.insert(volume.clone(), node.clone());
            }
        }
        let handovers = self.handovers();
        let mut parts = handovers
            .iter()
            .flat_map(|handover| [&handover.from, &handover.to]);
        if parts.any(|volume| next.serving.get(volume) != self.serving.get(volume)) {
            next.moving = None;
        }
        let is_same = |volume: &NodeName| next.serving.get(volume) == self.serving.get(volume);
        next.since.retain(|volume, _| next.serving.contains_key(volume));
        for volume in next.serving.keys().filter(|volume| !is_same(volume)) {
            next.since.insert(volume.clone(), self.version + 1);
        }
        next.born.retain(|volume, _| next.serving.contains_key(volume));
        let is_new =
            |volume: &NodeName| !self.serving.contains_key(volume) && self.ring.member(volume).is_none();
        let new: Vec<NodeName> = next
            .serving
            .keys()
            .filter(|volume| is_new(volume))
            .cloned()
            .collect();
        for volume in new {
            next.place(&volume);
            next.born.insert(volume, self.version + 1);
        }
        (next != *self).then(|| next.changed())
    }

    /// Assigns a new volume to the engine with the fewest volumes. Among engines with equally few,
    /// the engine with this state is preferred, then the first by name. A name that was placed on a
    /// further engine before stays there.
    fn place(&mut self, volume: &NodeName) {
        if self.placed.contains_key(volume) {
            return;
        }
        let load = |engine: Option<&String>| {
            let others = self.serving.keys().filter(|other| *other != volume);
            others.filter(|other| self.placed.get(*other) == engine).count()
        };
        let engines = std::iter::once(None).chain(self.engines.keys().map(Some));
        if let Some(engine) = engines.min_by_key(|engine| load(*engine)).flatten().cloned() {
            self.placed.insert(volume.clone(), engine);
        }
    }

    /// Returns the state in which the engine `name` has this URL. The engine may be new or known.
    /// Returns `None` if the state has this name with this URL already.
    pub(crate) fn with_engine(&self, name: &str, url: &str) -> Option<ClusterState> {
        if self.engines.get(name).is_some_and(|known| known == url) {
            return None;
        }
        let mut state = self.clone().changed();
        state.engines.insert(name.to_owned(), url.to_owned());
        Some(state)
    }

    /// Assigns each volume a follower: a running node that is not leaving and is not the volume's
    /// server. A volume has no follower if there is no such node. The first choice is the present
    /// follower, then the volume's own node, then the node that follows the fewest volumes. Returns
    /// `None` if nothing changes.
    pub(crate) fn with_followers(&self, alive: &BTreeSet<NodeName>) -> Option<ClusterState> {
        let mut next = self.clone();
        next.following.clear();
        let can_follow = |volume: &NodeName, node: &NodeName| {
            alive.contains(node) && !self.leaving.contains(node) && self.serving.get(volume) != Some(node)
        };
        for volume in self.serving.keys() {
            let present = self.following.get(volume);
            let preferred = [present, Some(volume)].into_iter().flatten();
            let mut preferred = preferred.filter(|node| can_follow(volume, node));
            if let Some(node) = preferred.next() {
                next.following.insert(volume.clone(), node.clone());
            }
        }
        for volume in self.serving.keys() {
            if next.following.contains_key(volume) {
                continue;
            }
            let load = |node: &NodeName| next.following.values().filter(|known| *known == node).count();
            let candidates = alive.iter().filter(|node| can_follow(volume, node));
            if let Some(node) = candidates.min_by_key(|node| (load(node), (*node).clone())) {
                next.following.insert(volume.clone(), node.clone());
            }
        }
        (next != *self).then(|| next.changed())
    }

    /// Returns the unchanged state with the next version. On an engine, a process writes this state
    /// to become the coordinator.
    pub(crate) fn renewed(&self) -> ClusterState {
        self.clone().changed()
    }

    /// Begins a move if nodes have joined, are leaving, or have another weight or zone. Returns
    /// `None` if the members of the ring need no change, or if no member would be left.
    pub(crate) fn begin_move(&self, alive: &[Member]) -> Result<Option<ClusterState>, imt_ring::Error> {
        let mut target: BTreeMap<NodeName, Member> = BTreeMap::new();
        let known = self.ring.members().iter().chain(alive);
        for member in known.filter(|member| !self.leaving.contains(member.name())) {
            target.insert(member.name().clone(), member.clone());
        }
        let target: Vec<Member> = target.into_values().collect();
        if target.is_empty() || target == self.ring.members() {
            return Ok(None);
        }
        let plan = self.ring.plan(&target)?;
        let next = self.ring.apply(&plan)?;
        let mut state = self.clone().changed();
        let id = state.version;
        state.moving = Some(Moving { id, next });
        Ok(Some(state))
    }

    /// Returns the state after the commit of the move, with `moving.next` as its ring, or `None` if
    /// there is no move.
    pub(crate) fn commit_move(&self) -> Option<ClusterState> {
        let mut state = self.clone().changed();
        let moving = state.moving.take()?;
        state.ring = moving.next;
        state.committed = moving.id;
        Some(state)
    }

    /// Returns the state without the move in progress, or `None` if there is no move.
    pub(crate) fn undo_move(&self) -> Option<ClusterState> {
        self.moving.as_ref()?;
        let mut state = self.clone().changed();
        state.moving = None;
        Some(state)
    }

    /// Returns the state in which `node` is marked as leaving. Fails if the node is not a member of
    /// the ring and has no volume, if the node is leaving already, or if no other member with a
    /// weight above 0 stays in the cluster. A new node has a volume before it becomes a member.
    pub(crate) fn with_leaving(&self, node: &NodeName) -> Result<ClusterState, Unleavable> {
        let takes_slots = |member: &Member| {
            member.name() != node && member.weight() > 0 && !self.leaving.contains(member.name())
        };
        if self.ring.member(node).is_none() && !self.serving.contains_key(node) {
            return Err(Unleavable::NoMember);
        }
        if self.leaving.contains(node) {
            return Err(Unleavable::Leaving);
        }
        if !self.ring.members().iter().any(takes_slots) {
            return Err(Unleavable::Last);
        }
        let mut state = self.clone();
        state.leaving.insert(node.clone());
        Ok(state.changed())
    }

    /// Returns the reason why a request that `node` leaves interrupts the move in progress. Returns
    /// `None` if the request is refused, because then the plan of the move stays valid.
    pub(crate) fn leave_interruption(&self, node: &NodeName) -> Option<String> {
        let leaves = self.with_leaving(node).is_ok();
        leaves.then(|| format!("node {node} was asked to leave the cluster"))
    }

    /// Returns the state with another warehouse, or `None` if the URL is unchanged. A move in
    /// progress continues.
    pub(crate) fn with_warehouse(&self, warehouse: &str) -> Option<ClusterState> {
        if self.warehouse.as_deref() == Some(warehouse) {
            return None;
        }
        let mut state = self.clone().changed();
        state.warehouse = Some(warehouse.to_owned());
        Some(state)
    }

    /// Returns the reason why `with_nodes` has undone the move of this state in `next`: the server
    /// of one of its volumes changed. Returns `None` if no move was undone.
    pub(crate) fn interruption(&self, next: &ClusterState) -> Option<String> {
        if self.moving.is_none() || next.moving.is_some() {
            return None;
        }
        let handovers = self.handovers();
        let mut parts = handovers
            .iter()
            .flat_map(|handover| [&handover.from, &handover.to]);
        let changed = parts.find(|volume| self.serving.get(*volume) != next.serving.get(*volume));
        let volume = changed.map_or("", NodeName::as_str);
        let server = |state: &ClusterState| {
            let node = changed.and_then(|volume| state.serving.get(volume));
            node.map_or_else(|| "no node".to_owned(), |node| format!("node {node}"))
        };
        let (before, after) = (server(self), server(next));
        Some(format!(
            "volume {volume}, which takes part in the migration, is served by {after} instead of {before}"
        ))
    }

    /// Returns the slots that the move in progress transfers, grouped by source and target. The
    /// list is empty without a move.
    pub(crate) fn handovers(&self) -> Vec<Handover> {
        let Some(moving) = &self.moving else {
            return Vec::new();
        };
        let mut found: BTreeMap<(NodeName, NodeName), Vec<u32>> = BTreeMap::new();
        for slot in 0..self.ring.slots() {
            if let (Ok(from), Ok(to)) = (self.ring.owner(Slot(slot)), moving.next.owner(Slot(slot)))
                && from != to
            {
                found.entry((from.clone(), to.clone())).or_default().push(slot);
            }
        }
        let handover = |((from, to), slots)| Handover { from, to, slots };
        found.into_iter().map(handover).collect()
    }
}

/// Converts ascending slots to runs of consecutive slots. A run is a pair of its first and its last
/// slot. Messages between nodes contain slots in this form.
pub(crate) fn ranges(slots: &[u32]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &slot in slots {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == slot => *last = slot,
            _ => runs.push((slot, slot)),
        }
    }
    runs
}

/// Returns the slots in these runs. A run is a pair of its first and its last slot.
pub(crate) fn slots_in(ranges: &[(u32, u32)]) -> impl Iterator<Item = u32> {
    ranges.iter().flat_map(|(first, last)| *first..=*last)
}

/// A set of slots. A look-up takes constant time.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotSet(Vec<bool>);

impl SlotSet {
    /// Creates a set from runs, which are pairs of first and last slot. `slots` is the number of
    /// slots of the ring.
    pub(crate) fn of(ranges: &[(u32, u32)], slots: u32) -> SlotSet {
        let mut set = vec![false; slots as usize];
        // Another node may have sent these runs, so they may contain numbers that are no slots of
        // the ring. Such numbers are ignored.
        for (first, last) in ranges {
            (*first..=*last.min(&slots)).for_each(|slot| {
                if let Some(is_in) = set.get_mut(slot as usize) {
                    *is_in = true;
                }
            });
        }
        SlotSet(set)
    }

    /// Returns `true` if the set contains the slot.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.0.get(slot.0 as usize).copied().unwrap_or(false)
    }

    /// Returns the number of slots in the set.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().filter(|is_in| **is_in).count()
    }
}

#[cfg(test)]
mod tests;
