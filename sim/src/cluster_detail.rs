//! The ring and the nodes in detail, as the web console of a node describes them.
//!
//! A node without a web console answers 404. Then the detail is empty, and the views of a run show
//! the members of the ring from `GET /health` instead.

use serde::{Deserialize, Serialize};

use crate::client::Client;

/// Path of the JSON document with the web console's state.
const PATH: &str = "/console/state";

/// The ring and the nodes in detail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDetail {
    /// Names of the members of the ring. [`SlotRun::member`] is an index into this list.
    pub members: Vec<String>,
    /// Owners of all slots, as runs of neighbouring slots with the same owner, in the order of the
    /// slots.
    pub runs: Vec<SlotRun>,
    /// All nodes of the cluster, also those that are no members of the ring.
    pub nodes: Vec<NodeDetail>,
    /// The move of slots that is under way; `None` if no slots are being moved.
    pub moving: Option<MoveDetail>,
}

/// Neighbouring slots with the same owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRun {
    /// Index of the owner in [`ClusterDetail::members`].
    pub member: usize,
    /// Number of these slots.
    pub slots: u64,
}

/// The status of a node, as the node that was asked sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// None of the other statuses applies. If the status comes from `GET /health`: this node or
    /// another one serves the volume of this node.
    Serving,
    /// The node is not yet a member of the ring.
    Joining,
    /// The node leaves the cluster permanently, and its slots move to other nodes.
    Leaving,
    /// A volume assigned to the node is missing, or a volume that the node serves accepts no
    /// orders.
    Degraded,
    /// The node has not answered the last request for figures.
    Silent,
    /// The node was stopped gracefully, or has never run.
    Stopped,
    /// The process of the node ended without a graceful stop.
    Died,
    /// No node serves the volume of this node, or the volume did not answer. The status comes from
    /// `GET /health`, which gives no further detail.
    #[serde(rename = "not served")]
    NotServed,
    /// A status that this version of the simulator does not know.
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

/// Detail of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// The node's name.
    pub name: String,
    /// The node's status.
    pub status: NodeStatus,
    /// Number of slots of the node's own volume.
    #[serde(default)]
    pub slots: u64,
    /// Names of the volumes that the node serves.
    #[serde(default)]
    pub serves: Vec<String>,
    /// Requests of clients that the node handled in its last full second; `None` if they are
    /// unknown, for example because the node does not answer.
    #[serde(default)]
    pub requests: Option<NodeRequests>,
}

/// Requests of clients that one node handled in one second, without calls between nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequests {
    /// Number of requests.
    pub requests: u64,
    /// 99th percentile of the requests' latency, microseconds; `None` without a request.
    #[serde(default)]
    pub p99_us: Option<u64>,
}

/// A move of slots under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveDetail {
    /// Number of rows copied so far.
    #[serde(default)]
    pub rows: u64,
    /// Estimated number of rows of the whole move.
    #[serde(default)]
    pub about: u64,
}

/// The newest detail, and the cursor of the document from which it was read. The next request sends
/// the cursor, so that the node leaves out a ring that has not changed.
#[derive(Debug, Default)]
pub(crate) struct Known {
    cursor: String,
    detail: ClusterDetail,
}

#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    cursor: String,
    /// The ring; `None` if it has not changed since the document with the request's cursor.
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
    /// Replaces the known detail by that in `document`. If the document has no ring, the known ring
    /// stays.
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

    /// Returns a copy of the newest detail.
    pub(crate) fn detail(&self) -> ClusterDetail {
        self.detail.clone()
    }
}

/// Requests the web console's document from a node and applies it to `known`. `known` is cleared if
/// there is no answer, or the answer has another status than 200 or is not such a document.
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
