//! The state of the cluster as the web console shows it. The state is computed from this node's
//! topology and the figures of all nodes.
//!
//! **Invariants**
//! - A node that is assigned a volume and did not answer the last request for figures is shown as
//!   silent. Its previous figures are not shown.
//! - A stream gets the ring when it begins and when the epoch changes. The ring is not in every
//!   message because its slots are most of the bytes.
//! - A stream gets each kept second and event once. Only the last `SECONDS_REPEATED` seconds are
//!   sent again, because a late response of a node may change the counts of these seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use imt_ring::{NodeName, Ring, Slot};
use serde::Serialize;

use super::events::{Event, Log};
use super::figures::{AskFigures, NodeFigures, VolumeFigures};
use super::samples::{Merged, RouteFigures, Sample, ShownSample};
use crate::api::internal::CopyProgress;
use crate::control::topology::Topology;

/// Number of seconds, up to the second of the cursor, that each message repeats, because a late
/// response of a node may have changed the counts of these seconds.
const SECONDS_REPEATED: u64 = 3;

/// The figures in the last response of a node. If the node did not answer the last request, only
/// `ask` and `fault` are set.
#[derive(Default)]
struct Heard {
    /// The next request to the node.
    ask: AskFigures,
    volumes: Vec<VolumeFigures>,
    missing: BTreeMap<String, String>,
    newest: Option<Sample>,
    /// The reason why the node did not answer the last request; `None` if the node answered.
    fault: Option<String>,
}

/// The last figures of all nodes, the seconds summed over the nodes, and the log of events.
#[derive(Default)]
pub(super) struct Overview {
    nodes: BTreeMap<NodeName, Heard>,
    merged: Merged,
    pub(super) log: Log,
}

/// The position of a stream or of a client that polls: the newest ring epoch, second and event that
/// were sent to it. Without an `epoch`, the next document contains the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) epoch: Option<u64>,
    pub(super) second: u64,
    pub(super) event: u64,
}

impl Overview {
    /// Returns the next request to a node.
    pub(super) fn question(&self, node: &NodeName) -> AskFigures {
        self.nodes
            .get(node)
            .map_or_else(AskFigures::default, |heard| heard.ask)
    }

    /// Stores the response of a node, or the reason why the node did not respond. Events of other
    /// nodes are added to the log. This node's own events are already in the log.
    pub(super) fn hear(&mut self, node: &NodeName, answer: Result<NodeFigures, String>, is_me: bool) {
        let heard = self.nodes.entry(node.clone()).or_default();
        let figures = match answer {
            Ok(figures) => figures,
            Err(fault) => {
                heard.volumes.clear();
                heard.missing.clear();
                heard.newest = None;
                heard.fault = Some(fault);
                return;
            }
        };
        if heard.ask.incarnation != figures.incarnation {
            heard.ask.event = 0;
        }
        heard.ask.incarnation = figures.incarnation;
        heard.ask.event = figures.events.last().map_or(heard.ask.event, |event| event.id);
        if let Some(newest) = figures.samples.last().filter(|_| is_me) {
            self.merged.forget_ahead_of(newest.second);
        }
        self.merged.add(&figures.samples);
        if let Some(newest) = figures.samples.last() {
            heard.ask.second = newest.second;
            heard.newest = Some(newest.clone());
        }
        heard.volumes = figures.volumes;
        heard.missing = figures.missing;
        heard.fault = None;
        for event in figures.events.into_iter().filter(|_| !is_me) {
            self.log.push(event);
        }
    }

    /// Removes the figures of nodes that are not in `nodes`.
    pub(super) fn keep(&mut self, nodes: &BTreeSet<NodeName>) {
        self.nodes.retain(|node, _| nodes.contains(node));
    }

    /// Returns the changes since the cursor, with the present state of nodes and volumes, and
    /// advances the cursor.
    pub(super) fn state<'a>(
        &'a self,
        topology: &'a Topology,
        trouble: Option<String>,
        now_ms: u64,
        cursor: &mut Cursor,
    ) -> State<'a> {
        let epoch = topology.ring.epoch().0;
        let ring = (cursor.epoch != Some(epoch)).then(|| RingShown::of(&topology.ring));
        // With several volumes, the second that has just ended is left out, because the figures of
        // other nodes may still be missing.
        let last = now_ms / 1_000 - u64::from(topology.state.serving.len() > 1);
        let after = cursor.second.min(last).saturating_sub(SECONDS_REPEATED);
        let samples = self.merged.between(after, last);
        let events = self.log.since(cursor.event);
        *cursor = Cursor {
            epoch: Some(epoch),
            second: last,
            event: self.log.newest(),
        };
        State {
            node: topology.me.as_str(),
            version: env!("CARGO_PKG_VERSION"),
            cursor: String::new(),
            now_ms,
            ring,
            moving: self.moving(topology, trouble),
            nodes: self.nodes(topology),
            volumes: self.volumes(topology),
            samples: samples.map(Sample::shown).collect(),
            events: events.collect(),
        }
    }

    fn moving(&self, topology: &Topology, trouble: Option<String>) -> Option<Moving> {
        let moving = topology.state.moving.as_ref()?;
        let volumes = self.nodes.values().flat_map(|heard| &heard.volumes);
        let copy: CopyProgress = volumes.map(|volume| volume.copy).sum();
        let steps = topology.state.handovers().into_iter().map(|step| Step {
            from: step.from.to_string(),
            to: step.to.to_string(),
            slots: step.slots.len(),
        });
        Some(Moving {
            epoch: moving.next.epoch().0,
            steps: steps.collect(),
            rows: copy.rows,
            about: copy.rows_expected,
            trouble,
        })
    }

    fn nodes<'a>(&'a self, topology: &'a Topology) -> Vec<NodeShown<'a>> {
        let present: BTreeSet<&NodeName> = topology.state.serving.values().collect();
        let known = present.iter().copied().chain(topology.volumes());
        let known: BTreeSet<&NodeName> = known.collect();
        let node = |name: &'a NodeName| {
            let heard = self.nodes.get(name).filter(|_| present.contains(name));
            let info = topology.node_infos.get(name);
            let member = topology.ring.member(name);
            let newest = heard.and_then(|heard| heard.newest.as_ref());
            let serving = topology.state.serving.iter();
            NodeShown {
                name: name.as_str(),
                status: status(topology, name, present.contains(name), heard),
                address: info.filter(|_| present.contains(name)).map(|info| info.address),
                zone: member.and_then(|member| member.zone().map(ToString::to_string)),
                weight: member.map_or_else(|| info.map_or(0, |info| info.weight), imt_ring::Member::weight),
                started_at_ms: info
                    .filter(|_| present.contains(name))
                    .map(|info| info.started_at_ms),
                slots: topology.ring.slots_of(name).count(),
                serves: serving
                    .filter(|(_, node)| *node == name)
                    .map(|(volume, _)| volume.as_str())
                    .collect(),
                requests: newest.map(|sample| sample.shown().clients),
                fault: heard.and_then(|heard| heard.fault.as_deref()),
            }
        };
        known.into_iter().map(node).collect()
    }

    fn volumes<'a>(&'a self, topology: &'a Topology) -> Vec<VolumeShown<'a>> {
        let names: BTreeSet<&NodeName> = topology.volumes().chain(topology.state.serving.keys()).collect();
        let volume = |name: &'a NodeName| {
            let node = topology.state.serving.get(name);
            let heard = node.and_then(|node| self.nodes.get(node));
            let figures = heard.and_then(|heard| {
                let mut volumes = heard.volumes.iter();
                volumes.find(|volume| volume.volume == name.as_str())
            });
            VolumeShown {
                name: name.as_str(),
                node: node.map(NodeName::as_str),
                slots: topology.ring.slots_of(name).count(),
                missing: heard.and_then(|heard| heard.missing.get(name.as_str()).map(String::as_str)),
                figures,
            }
        };
        names.into_iter().map(volume).collect()
    }
}

/// The status of a node. If several of them apply, the first of `Silent`, `Leaving`, `Joining` and
/// `Degraded` is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum NodeStatus {
    /// None of the other states applies.
    Serving,
    /// The node is not yet a member of the ring.
    Joining,
    /// The node leaves the cluster permanently, and its slots move to other nodes.
    Leaving,
    /// A volume assigned to the node is missing (without a database, or with an engine: without a
    /// log), or a volume that the node serves accepts no orders.
    Degraded,
    /// The node did not answer the last request for figures.
    Silent,
    /// No volume is assigned to the node, and it has no description. It was stopped in an orderly
    /// way, or has never run.
    Stopped,
    /// No volume is assigned to the node, but its description is present. So it was not stopped in
    /// an orderly way.
    Died,
}

fn status(topology: &Topology, name: &NodeName, is_present: bool, heard: Option<&Heard>) -> NodeStatus {
    let is_ill = |heard: &Heard| {
        !heard.missing.is_empty() || heard.volumes.iter().any(|volume| volume.fault.is_some())
    };
    match heard {
        _ if !is_present && topology.node_infos.contains_key(name) => NodeStatus::Died,
        _ if !is_present => NodeStatus::Stopped,
        Some(heard) if heard.fault.is_some() => NodeStatus::Silent,
        _ if topology.state.leaving.contains(name) => NodeStatus::Leaving,
        _ if topology.ring.member(name).is_none() => NodeStatus::Joining,
        Some(heard) if is_ill(heard) => NodeStatus::Degraded,
        _ => NodeStatus::Serving,
    }
}

/// The document that `GET /console/state` returns and each `state` event of a stream contains.
#[derive(Serialize)]
pub(super) struct State<'a> {
    /// The node that sends the document.
    node: &'a str,
    version: &'static str,
    /// Cursor for clients that poll. The response to a request with this text in the header
    /// `Last-Event-ID` omits an unchanged ring and the seconds and events that this document
    /// includes, except the last `SECONDS_REPEATED` seconds.
    pub(super) cursor: String,
    now_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ring: Option<RingShown>,
    moving: Option<Moving>,
    nodes: Vec<NodeShown<'a>>,
    volumes: Vec<VolumeShown<'a>>,
    samples: Vec<ShownSample<'a>>,
    events: Vec<&'a Event>,
}

/// The ring, with neighbouring slots of one owner combined into runs.
#[derive(Serialize)]
struct RingShown {
    epoch: u64,
    slots: u32,
    members: Vec<String>,
    /// Runs in slot order: index of the owner in `members`, and number of slots.
    runs: Vec<(usize, u32)>,
}

impl RingShown {
    fn of(ring: &Ring) -> RingShown {
        let members: Vec<String> = ring
            .members()
            .iter()
            .map(|member| member.name().to_string())
            .collect();
        let mut runs: Vec<(usize, u32)> = Vec::new();
        for slot in 0..ring.slots() {
            let owner = ring.owner(Slot(slot)).ok();
            let index = owner.and_then(|owner| members.iter().position(|name| name == owner.as_str()));
            match (index, runs.last_mut()) {
                (Some(index), Some((last, count))) if *last == index => *count += 1,
                (Some(index), _) => runs.push((index, 1)),
                (None, _) => {}
            }
        }
        RingShown {
            epoch: ring.epoch().0,
            slots: ring.slots(),
            members,
            runs,
        }
    }
}

/// A move of slots under way.
#[derive(Serialize)]
struct Moving {
    epoch: u64,
    steps: Vec<Step>,
    /// Number of rows copied so far.
    rows: u64,
    /// Estimated number of rows of the whole move.
    about: u64,
    /// The reason why the coordinator cannot take its next step. `None` if there is none, or if
    /// this node is not the coordinator.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct Step {
    from: String,
    to: String,
    slots: usize,
}

#[derive(Serialize)]
struct NodeShown<'a> {
    name: &'a str,
    status: NodeStatus,
    address: Option<SocketAddr>,
    zone: Option<String>,
    weight: u32,
    started_at_ms: Option<u64>,
    /// Number of slots that the ring assigns to the node's own volume.
    slots: usize,
    /// Volumes that the node is assigned to serve.
    serves: Vec<&'a str>,
    /// Requests of clients in the newest second that the node reported; null if no volume is
    /// assigned to the node, if it has not reported a second yet, or if it did not answer the last
    /// request for figures.
    requests: Option<RouteFigures>,
    fault: Option<&'a str>,
}

#[derive(Serialize)]
struct VolumeShown<'a> {
    name: &'a str,
    /// The node that is assigned to serve the volume; null if no node is assigned.
    node: Option<&'a str>,
    slots: usize,
    missing: Option<&'a str>,
    /// The volume's figures; null if no node is assigned, or while the assigned node does not
    /// answer or has not opened the volume.
    figures: Option<&'a VolumeFigures>,
}

#[cfg(test)]
mod tests {
    use imt_ring::{Member, Options};
    use serde_json::Value;

    use super::*;
    use crate::cluster::{ClusterState, NodeInfo};

    /// Returns a topology of the node `ada`, which serves the volume `ada`.
    fn topology() -> Topology {
        let member = Member::new("ada").unwrap();
        let name = member.name().clone();
        let mut state = ClusterState::of_ring(Ring::bootstrap([member], Options::new()).unwrap());
        state.serving = [(name.clone(), name.clone())].into();
        let info = NodeInfo {
            name: name.clone(),
            address: SocketAddr::from(([127, 0, 0, 1], 9_001)),
            process: 1,
            started_at_ms: 0,
            weight: 1,
            zone: None,
        };
        let ring = std::sync::Arc::new(state.ring.clone());
        Topology::new(name, state, ring, BTreeMap::new(), vec![info])
    }

    #[test]
    fn a_silent_node_is_shown_without_the_reasons_of_its_last_response() {
        let topology = topology();
        let mut overview = Overview::default();
        let shown = |overview: &Overview| -> Value {
            let state = overview.state(&topology, None, 9_000, &mut Cursor::default());
            serde_json::to_value(state).unwrap()
        };
        let figures = NodeFigures {
            incarnation: 1,
            volumes: Vec::new(),
            missing: [("ada".to_owned(), "the disk is gone".to_owned())].into(),
            samples: Vec::new(),
            events: Vec::new(),
        };
        overview.hear(&topology.me, Ok(figures), false);
        let document = shown(&overview);
        assert_eq!(document["nodes"][0]["status"], "degraded");
        assert_eq!(document["volumes"][0]["missing"], "the disk is gone");
        overview.hear(&topology.me, Err("no answer".to_owned()), false);
        let document = shown(&overview);
        assert_eq!(document["nodes"][0]["status"], "silent");
        assert_eq!(document["nodes"][0]["fault"], "no answer");
        assert_eq!(document["volumes"][0]["missing"], Value::Null);
    }
}
