//! The log of cluster events that the web console shows, as one node observed them.
//!
//! Events are computed as differences between two consecutive observations of the cluster. So the
//! code that changes the cluster need not report events. No event names a node that joins and
//! leaves between two observations.
//!
//! Invariants:
//! - At most `EVENTS_KEPT` events are kept. Event ids ascend by one.
//! - Each node computes events about the ring, the nodes and the handovers of volumes for its own
//!   log. Events about the warehouse, dead letters and faults of a volume come from the node that
//!   serves the volume.
//! - A node publishes a description (`NodeInfo`), and removes it when it stops in an orderly way. A
//!   node to which no volume is assigned any more is logged as left if it was leaving and is no
//!   member of the ring. Otherwise it is logged as died if its description remains. Without a
//!   description it is logged as stopped if it is a member of the ring, and as left if it is not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use imt_ring::NodeName;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterState;
use crate::control::topology::Topology;

/// Maximum number of events kept. It suffices for a rolling restart of 20 nodes, which produces
/// several events for each node.
const EVENTS_KEPT: usize = 256;

/// A copy of the parts of a topology from which events are computed. A move of slots from the only
/// volume of a cluster waits, for at most two seconds, until the topologies in which that volume
/// was the only one are released. So this copy is kept between two observations, and not the
/// [`Topology`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scene {
    state: ClusterState,
    /// The process start of each node with a published description, in UTC milliseconds since 1970.
    starts: BTreeMap<NodeName, u64>,
}

impl Scene {
    pub(super) fn of(topology: &Topology) -> Scene {
        Scene {
            state: topology.state.clone(),
            starts: topology
                .node_infos
                .iter()
                .map(|(name, info)| (name.clone(), info.started_at_ms))
                .collect(),
        }
    }

    /// Returns `true` if a topology has the version and the process starts of this scene. Then
    /// there are no events between the two.
    pub(super) fn is_of(&self, topology: &Topology) -> bool {
        let starts = topology
            .node_infos
            .iter()
            .map(|(name, info)| (name, info.started_at_ms));
        let known = self.starts.iter().map(|(name, at_ms)| (name, *at_ms));
        self.state.version == topology.state.version && starts.eq(known)
    }

    /// Returns the nodes that are assigned to serve at least one volume. A running node is assigned
    /// its own volume until it has left the ring. So these are the running nodes except those that
    /// have left.
    fn nodes(&self) -> BTreeSet<&NodeName> {
        self.state.serving.values().collect()
    }
}

/// The kinds of events in the console's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    NodeJoined,
    NodeRestarted,
    NodeStopped,
    NodeDied,
    NodeLeaving,
    NodeLeft,
    VolumeServed,
    MoveBegun,
    MoveUndone,
    RingChanged,
    WarehouseAway,
    WarehouseBack,
    DeadLetters,
    VolumeFailed,
    VolumeRecovered,
}

/// One entry of the console's log: a change of the cluster or of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) id: u64,
    /// Time at which a node observed the event, in UTC milliseconds since 1970.
    pub(super) at_ms: u64,
    pub(super) kind: Kind,
    /// The node that changed. For an event about a volume, the node that serves the volume. `None`
    /// for an event about the ring.
    pub(super) node: Option<String>,
    /// The volume that changed; `None` for an event about a node or the ring.
    pub(super) volume: Option<String>,
    /// A sentence that the console shows to the user.
    pub(super) text: String,
}

/// The parts of a served volume's state from which events are computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VolumeScene {
    pub(super) is_warehouse_away: bool,
    pub(super) dead_letters: u64,
    pub(super) fault: Option<String>,
}

/// A bounded list of the newest events.
#[derive(Debug, Default)]
pub(super) struct Log {
    next_id: u64,
    events: VecDeque<Event>,
}

impl Log {
    /// Appends an event and assigns the next id to it, in place of the id in `event`.
    pub(super) fn push(&mut self, event: Event) {
        self.next_id += 1;
        self.events.push_back(Event {
            id: self.next_id,
            ..event
        });
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    /// Returns the kept events with an id greater than `id`.
    pub(super) fn since(&self, id: u64) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.id > id)
    }

    /// Returns the id of the newest event, or 0 if there was no event.
    pub(super) fn newest(&self) -> u64 {
        self.next_id
    }
}

/// Events under construction that share one timestamp.
struct Draft {
    at_ms: u64,
    events: Vec<Event>,
}

impl Draft {
    fn add(&mut self, kind: Kind, node: Option<&NodeName>, volume: Option<&NodeName>, text: String) {
        self.events.push(Event {
            id: 0,
            at_ms: self.at_ms,
            kind,
            node: node.map(ToString::to_string),
            volume: volume.map(ToString::to_string),
            text,
        });
    }
}

/// Returns the events that explain the differences between two scenes of the cluster.
pub(super) fn differences(before: &Scene, now: &Scene, at_ms: u64) -> Vec<Event> {
    let mut draft = Draft {
        at_ms,
        events: Vec::new(),
    };
    nodes(&mut draft, before, now);
    ring(&mut draft, before, now);
    volumes(&mut draft, before, now);
    draft.events
}

fn nodes(draft: &mut Draft, before: &Scene, now: &Scene) {
    let (old, new) = (before.nodes(), now.nodes());
    for node in new.difference(&old) {
        let text = format!("{node} joined.");
        draft.add(Kind::NodeJoined, Some(node), None, text);
    }
    for node in old.difference(&new) {
        let is_member = now.state.ring.member(node).is_some();
        // A node that leaves for good is asked to stop only after it has lost its volume. Until
        // then its description remains, as after a death.
        let has_left = !is_member && before.state.leaving.contains(*node);
        let (kind, text) = if now.starts.contains_key(*node) && !has_left {
            (Kind::NodeDied, format!("{node} died without stopping."))
        } else if is_member {
            (Kind::NodeStopped, format!("{node} stopped."))
        } else {
            (Kind::NodeLeft, format!("{node} left for good."))
        };
        draft.add(kind, Some(node), None, text);
    }
    for node in old.intersection(&new) {
        let starts = (before.starts.get(*node), now.starts.get(*node));
        if let (Some(earlier), Some(later)) = starts
            && earlier < later
        {
            let text = format!("{node} restarted.");
            draft.add(Kind::NodeRestarted, Some(node), None, text);
        }
    }
    for node in now.state.leaving.difference(&before.state.leaving) {
        let text = format!("{node} is leaving: its slots move to the others.");
        draft.add(Kind::NodeLeaving, Some(node), None, text);
    }
}

fn ring(draft: &mut Draft, before: &Scene, now: &Scene) {
    let moving = |scene: &Scene| scene.state.moving.as_ref().map(|moving| moving.id);
    let (old, new) = (moving(before), moving(now));
    let is_committed = now.state.ring != before.state.ring;
    if old.is_some() && old != new && !is_committed {
        let text = "The move of slots was undone; the ring is unchanged.".to_owned();
        draft.add(Kind::MoveUndone, None, None, text);
    }
    if is_committed {
        let shares: Vec<String> = now
            .state
            .ring
            .members()
            .iter()
            .map(|member| {
                let slots = now.state.ring.slots_of(member.name()).count();
                format!("{} {slots}", member.name())
            })
            .collect();
        let epoch = now.state.ring.epoch().0;
        let text = format!("Ring epoch {epoch}: {} slots.", shares.join(", "));
        draft.add(Kind::RingChanged, None, None, text);
    }
    if new.is_some() && old != new {
        let steps = now.state.handovers();
        let slots: usize = steps.iter().map(|step| step.slots.len()).sum();
        let to: BTreeSet<&str> = steps.iter().map(|step| step.to.as_str()).collect();
        let to: Vec<&str> = to.into_iter().collect();
        let text = format!("{slots} slots began to move to {}.", to.join(", "));
        draft.add(Kind::MoveBegun, None, None, text);
    }
}

fn volumes(draft: &mut Draft, before: &Scene, now: &Scene) {
    for (volume, node) in &now.state.serving {
        let was = before.state.serving.get(volume);
        let is_first = was.is_none() && volume == node;
        if was != Some(node) && !is_first {
            let text = if volume == node {
                format!("{node} serves its own volume again.")
            } else {
                format!("{node} serves the volume of {volume}.")
            };
            draft.add(Kind::VolumeServed, Some(node), Some(volume), text);
        }
    }
}

/// Returns the events that explain the differences between two states of a volume that `node`
/// serves.
pub(super) fn volume_differences(
    node: &NodeName,
    volume: &NodeName,
    before: &VolumeScene,
    now: &VolumeScene,
    at_ms: u64,
) -> Vec<Event> {
    let mut draft = Draft {
        at_ms,
        events: Vec::new(),
    };
    let mut add = |kind, text| draft.add(kind, Some(node), Some(volume), text);
    if now.is_warehouse_away && !before.is_warehouse_away {
        let text = format!("{volume}: the warehouse does not answer; the circuit breaker opened.");
        add(Kind::WarehouseAway, text);
    }
    if before.is_warehouse_away && !now.is_warehouse_away {
        let text = format!("{volume}: the warehouse answers again; the circuit breaker closed.");
        add(Kind::WarehouseBack, text);
    }
    if now.dead_letters > before.dead_letters {
        let new = now.dead_letters - before.dead_letters;
        let plural = if new == 1 { "" } else { "s" };
        add(
            Kind::DeadLetters,
            format!("{volume}: {new} new dead letter{plural}."),
        );
    }
    match (&before.fault, &now.fault) {
        (None, Some(fault)) => add(Kind::VolumeFailed, format!("{volume} takes no orders: {fault}.")),
        (Some(_), None) => add(Kind::VolumeRecovered, format!("{volume} takes orders again.")),
        _ => {}
    }
    draft.events
}

#[cfg(test)]
mod tests {
    use imt_ring::Member;

    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn members(texts: &[&str]) -> Vec<Member> {
        texts.iter().map(|text| Member::new(text).unwrap()).collect()
    }

    fn scene(state: &ClusterState, described: &[&str]) -> Scene {
        Scene {
            state: state.clone(),
            starts: described.iter().map(|text| (name(text), 1)).collect(),
        }
    }

    fn nodes(texts: &[&str]) -> BTreeSet<NodeName> {
        texts.iter().map(|text| name(text)).collect()
    }

    fn texts(before: &Scene, now: &Scene) -> Vec<(Kind, String)> {
        let events = differences(before, now, 5);
        assert!(events.iter().all(|event| event.at_ms == 5));
        events.into_iter().map(|event| (event.kind, event.text)).collect()
    }

    #[test]
    fn a_join_a_death_and_a_return_are_told_once_each() {
        let alone = ClusterState::first(Member::new("a").unwrap()).unwrap();
        let joined = alone.with_nodes(&nodes(&["a", "b"])).unwrap();
        let both = ["a", "b"];
        let found = texts(&scene(&alone, &["a"]), &scene(&joined, &both));
        assert_eq!(found, [(Kind::NodeJoined, "b joined.".to_owned())]);
        let moving = joined.begin_move(&members(&both)).unwrap().unwrap();
        let found = texts(&scene(&joined, &both), &scene(&moving, &both));
        let text = "8192 slots began to move to b.".to_owned();
        assert_eq!(found, [(Kind::MoveBegun, text)]);
        let two = moving.commit_move().unwrap();
        let found = texts(&scene(&moving, &both), &scene(&two, &both));
        let text = "Ring epoch 2: a 8192, b 8192 slots.".to_owned();
        assert_eq!(found, [(Kind::RingChanged, text)]);
        let one = two.with_nodes(&nodes(&["a"])).unwrap();
        let served = (Kind::VolumeServed, "a serves the volume of b.".to_owned());
        let died = (Kind::NodeDied, "b died without stopping.".to_owned());
        let found = texts(&scene(&two, &both), &scene(&one, &both));
        assert_eq!(found, [died, served.clone()]);
        let stopped = (Kind::NodeStopped, "b stopped.".to_owned());
        let found = texts(&scene(&two, &both), &scene(&one, &["a"]));
        assert_eq!(found, [stopped, served]);
        let back = one.with_nodes(&nodes(&both)).unwrap();
        let found = texts(&scene(&one, &["a"]), &scene(&back, &both));
        assert_eq!(found[0].0, Kind::NodeJoined);
        assert_eq!(found[1].1, "b serves its own volume again.");
        assert_eq!(texts(&scene(&back, &both), &scene(&back, &both)), []);
    }

    #[test]
    fn a_leave_an_undone_move_and_a_quick_restart_are_told() {
        let alone = ClusterState::first(Member::new("a").unwrap()).unwrap();
        let joined = alone.with_nodes(&nodes(&["a", "b"])).unwrap();
        let both = ["a", "b"];
        let moving = joined.begin_move(&members(&both)).unwrap().unwrap();
        let undone = moving.undo_move().unwrap();
        let found = texts(&scene(&moving, &both), &scene(&undone, &both));
        assert_eq!(found[0].0, Kind::MoveUndone);
        let two = moving.commit_move().unwrap();
        let leaving = two.with_leaving(&name("b")).unwrap();
        let found = texts(&scene(&two, &both), &scene(&leaving, &both));
        assert_eq!(found[0].0, Kind::NodeLeaving);
        let given = leaving.begin_move(&members(&both)).unwrap().unwrap();
        let given = given.commit_move().unwrap();
        let gone = given.with_nodes(&nodes(&["a"])).unwrap();
        for still_described in [&["a"][..], &both] {
            let found = texts(&scene(&given, &both), &scene(&gone, still_described));
            assert_eq!(found, [(Kind::NodeLeft, "b left for good.".to_owned())]);
        }
        let mut later = scene(&two, &both);
        later.starts.insert(name("b"), 2);
        let found = texts(&scene(&two, &both), &later);
        assert_eq!(found, [(Kind::NodeRestarted, "b restarted.".to_owned())]);
    }

    #[test]
    fn a_volume_tells_of_its_warehouse_its_dead_letters_and_its_faults() {
        let (node, volume) = (name("a"), name("b"));
        let well = VolumeScene::default();
        let ill = VolumeScene {
            is_warehouse_away: true,
            dead_letters: 2,
            fault: Some("the disk is full".to_owned()),
        };
        let kinds = |before, now| -> Vec<Kind> {
            let events = volume_differences(&node, &volume, before, now, 5);
            events.into_iter().map(|event| event.kind).collect()
        };
        let begun = [Kind::WarehouseAway, Kind::DeadLetters, Kind::VolumeFailed];
        assert_eq!(kinds(&well, &ill), begun);
        assert_eq!(kinds(&ill, &well), [Kind::WarehouseBack, Kind::VolumeRecovered]);
        assert_eq!(kinds(&ill, &ill), []);
    }

    #[test]
    fn the_log_is_bounded_and_its_ids_grow() {
        let mut log = Log::default();
        let scenes = (
            VolumeScene::default(),
            VolumeScene {
                is_warehouse_away: true,
                ..VolumeScene::default()
            },
        );
        for _ in 0..EVENTS_KEPT + 3 {
            let events = volume_differences(&name("a"), &name("a"), &scenes.0, &scenes.1, 1);
            events.into_iter().for_each(|event| log.push(event));
        }
        assert_eq!(log.since(0).count(), EVENTS_KEPT);
        assert_eq!(log.newest(), EVENTS_KEPT as u64 + 3);
        assert_eq!(log.since(log.newest() - 1).count(), 1);
    }
}
