//! Ring and nodes in detail, as the web console of a node describes them.
//!
//! A node without a console answers 404, and the detail stays empty: the views fall back to
//! `GET /health`.

use serde::{Deserialize, Serialize};

use crate::client::Client;

/// Path of the console's document.
const PATH: &str = "/console/state";

/// Ring and nodes in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDetail {
    /// Members of the ring, in the order of [`SlotRun::member`].
    pub members: Vec<String>,
    /// Owners of the slots, in the order of the slots.
    pub runs: Vec<SlotRun>,
    /// All nodes, members or not.
    pub nodes: Vec<NodeDetail>,
    /// A move of slots under way.
    pub moving: Option<MoveDetail>,
}

/// Neighbouring slots of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRun {
    /// Index of the member.
    pub member: usize,
    /// Number of slots.
    pub slots: u64,
}

/// The status of a node, as another node sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// The node serves its volumes.
    Serving,
    /// The node is no member of the ring yet.
    Joining,
    /// The slots of the node are moved to other nodes.
    Leaving,
    /// A volume of the node is missing or takes no writes.
    Degraded,
    /// The process runs and does not answer.
    Silent,
    /// The node was stopped.
    Stopped,
    /// The process ended without a stop.
    Died,
    /// No node serves the volume of this node. `GET /health` tells no more.
    #[serde(rename = "not served")]
    NotServed,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl NodeStatus {
    /// Returns the status in one or two words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Joining => "joining",
            Self::Leaving => "leaving",
            Self::Degraded => "degraded",
            Self::Silent => "silent",
            Self::Stopped => "stopped",
            Self::Died => "died",
            Self::NotServed => "not served",
            Self::Unknown => "unknown",
        }
    }
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// The node's name.
    pub name: String,
    /// The node's status.
    pub status: NodeStatus,
    /// Slots of its own volume.
    #[serde(default)]
    pub slots: u64,
    /// Volumes that it serves.
    #[serde(default)]
    pub serves: Vec<String>,
    /// Requests of its newest second; `None` if it does not answer.
    #[serde(default)]
    pub requests: Option<NodeRequests>,
}

/// Requests of one second on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequests {
    /// Number of requests.
    pub requests: u64,
    /// 99th percentile of their latency, microseconds.
    #[serde(default)]
    pub p99_us: Option<u64>,
}

/// A move of slots under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveDetail {
    /// Rows copied so far.
    #[serde(default)]
    pub rows: u64,
    /// Estimated rows of the whole move.
    #[serde(default)]
    pub about: u64,
}

/// The detail as it was read last, and the cursor of that reading.
#[derive(Debug, Default)]
pub(crate) struct Known {
    cursor: String,
    detail: ClusterDetail,
}

#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    cursor: String,
    /// `None` if it is that of the cursor.
    #[serde(default)]
    ring: Option<Ring>,
    #[serde(default)]
    nodes: Vec<NodeDetail>,
    #[serde(default)]
    moving: Option<MoveDetail>,
}

#[derive(Default, Deserialize)]
struct Ring {
    #[serde(default)]
    members: Vec<String>,
    #[serde(default)]
    runs: Vec<(usize, u64)>,
}

impl Known {
    /// Takes a document over. A ring that it leaves out is the known one.
    fn take(&mut self, document: Document) {
        if let Some(ring) = document.ring {
            let runs = ring.runs.into_iter();
            self.detail.members = ring.members;
            self.detail.runs = runs.map(|(member, slots)| SlotRun { member, slots }).collect();
        }
        self.cursor = document.cursor;
        self.detail.nodes = document.nodes;
        self.detail.moving = document.moving;
    }

    /// Returns the detail as it was read last.
    pub(crate) fn detail(&self) -> ClusterDetail {
        self.detail.clone()
    }
}

/// Asks a node for the changes of its console's document. A node that does not answer or has no
/// console leaves nothing known.
pub(crate) async fn ask(client: &Client, known: &mut Known) {
    let cursor = Some(("last-event-id", known.cursor.as_str())).filter(|(_, cursor)| !cursor.is_empty());
    let answer = client.get_with(PATH, cursor).await.ok();
    let answer = answer.filter(|answer| answer.status == 200);
    match answer.and_then(|answer| serde_json::from_slice::<Document>(&answer.body).ok()) {
        Some(document) => known.take(document),
        None => *known = Known::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_of_the_console_is_read_and_unknown_fields_are_skipped() {
        let text = r#"{
            "node": "a", "version": "0.1.0", "now_ms": 5,
            "ring": {"epoch": 2, "slots": 16384, "members": ["a", "b"], "runs": [[0, 8192], [1, 8192]]},
            "moving": {"epoch": 3, "steps": [], "rows": 10, "about": 40, "trouble": null},
            "nodes": [
                {"name": "a", "status": "serving", "weight": 1, "slots": 8192, "serves": ["a", "b"],
                 "requests": {"requests": 95, "refused": 0, "failed": 0, "p50_us": 400, "p99_us": 2100}},
                {"name": "b", "status": "died", "slots": 8192, "serves": [], "requests": null}
            ],
            "volumes": [], "samples": [], "events": []
        }"#;
        let mut known = Known::default();
        known.take(serde_json::from_str(text).unwrap());
        let detail = known.detail();
        assert_eq!(detail.members, ["a", "b"]);
        assert_eq!(detail.runs.iter().map(|run| run.slots).sum::<u64>(), 16_384);
        assert_eq!(detail.nodes[0].serves, ["a", "b"]);
        let requests = detail.nodes[0].requests.unwrap();
        assert_eq!((requests.requests, requests.p99_us), (95, Some(2_100)));
        assert_eq!(
            (detail.nodes[1].status, detail.nodes[1].requests),
            (NodeStatus::Died, None)
        );
        assert_eq!(detail.moving, Some(MoveDetail { rows: 10, about: 40 }));
        known.take(serde_json::from_str(r#"{"nodes": [{"name": "a", "status": "resting"}]}"#).unwrap());
        assert_eq!(
            known.detail().nodes[0].status,
            NodeStatus::Unknown,
            "of a later version"
        );
        known.take(serde_json::from_str(r#"{"cursor": "a-1-2-2", "ring": null, "nodes": []}"#).unwrap());
        assert_eq!(
            known.detail().members,
            ["a", "b"],
            "a ring that is left out is the known one"
        );
        assert!(known.detail().nodes.is_empty());
        let mut empty = Known::default();
        empty.take(serde_json::from_str("{}").unwrap());
        assert_eq!(empty.detail(), ClusterDetail::default());
    }
}
