//! The calls between nodes over HTTP/2: large transfers, and operations of the cluster.
//!
//! | path | meaning |
//! | --- | --- |
//! | `/peer/ping` | does the node answer at all? |
//! | `/peer/state` | the cluster's state has changed |
//! | `/peer/hello`, `/peer/leave/NODE`, `/peer/warehouse?URL` | to the coordinator |
//! | `/peer/engine/NAME?URL` | to the coordinator: volumes may be on this engine too |
//! | `/peer/node`, `/peer/stop` | the node's report, the order to stop |
//! | `/peer/console` | the node's figures for the console |
//! | `/peer/volume/V/OPERATION` | an operation at a volume (`VolumeCall`) |
//!
//! **Invariants**
//! - Each call shows the cluster's secret.
//! - A question and its answer are JSON, except for the bodies of `stock` and `stat-file` (CSV)
//!   and the answers of `read` (an HTTP response) and `export` (a page of rows).
//!
//! Deliberately absent: frequent and small messages, which use the channel.

use std::fmt;

use imt_ring::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First part of the paths of all calls between nodes.
const PREFIX: &str = "/peer/";

/// The path of `PeerCall::Ping`.
pub(crate) const PING: &str = "/peer/ping";

/// A call between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerCall {
    /// Does the node answer at all?
    Ping,
    /// The cluster's state has changed.
    State,
    /// A node starts or stops. To the coordinator.
    Hello,
    /// A node leaves the cluster permanently. To the coordinator.
    Leave(NodeName),
    /// The cluster's warehouse is at the URL of the query. To the coordinator.
    Warehouse,
    /// Further volumes may be on the engine of this name, with the URL of the query. To the
    /// coordinator.
    Engine(NodeName),
    /// Stop.
    Stop,
    /// Report on the node.
    Node,
    /// Figures for the console.
    Console,
    /// An operation at a volume.
    Volume(NodeName, VolumeCall),
}

/// An operation at a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeCall {
    /// A client's read with an answer that is too long for the channel.
    Read,
    /// Is a stock snapshot accepted?
    BeginStock,
    /// Apply the volume's part of a stock.
    Stock,
    /// A page of orders.
    Orders,
    /// A page of reservations.
    Reservations,
    /// A page of messages to the warehouse.
    Messages,
    /// The stores with a product.
    Product,
    /// Counts and states.
    Health,
    /// The ring that the volume follows.
    Epoch,
    /// Send a page of migrating rows.
    Export,
    /// Copy migrating rows.
    Import,
    /// Progress of the copy.
    Progress,
    /// Add a statistics file of a node's folder.
    StatFile,
}

/// A question in JSON to a volume, with an answer in JSON.
pub(crate) trait VolumeQuestion: Serialize + Send + Sync {
    /// The operation that answers the question.
    const CALL: VolumeCall;
    /// The answer.
    type Answer: DeserializeOwned + Send;
}

impl VolumeCall {
    const ALL: [VolumeCall; 13] = [
        VolumeCall::Read,
        VolumeCall::BeginStock,
        VolumeCall::Stock,
        VolumeCall::Orders,
        VolumeCall::Reservations,
        VolumeCall::Messages,
        VolumeCall::Product,
        VolumeCall::Health,
        VolumeCall::Epoch,
        VolumeCall::Export,
        VolumeCall::Import,
        VolumeCall::Progress,
        VolumeCall::StatFile,
    ];

    /// Returns the last segment of the path.
    pub(crate) fn name(self) -> &'static str {
        match self {
            VolumeCall::Read => "read",
            VolumeCall::BeginStock => "begin-stock",
            VolumeCall::Stock => "stock",
            VolumeCall::Orders => "orders",
            VolumeCall::Reservations => "reservations",
            VolumeCall::Messages => "messages",
            VolumeCall::Product => "product",
            VolumeCall::Health => "health",
            VolumeCall::Epoch => "epoch",
            VolumeCall::Export => "export",
            VolumeCall::Import => "import",
            VolumeCall::Progress => "progress",
            VolumeCall::StatFile => "stat-file",
        }
    }

    fn from_name(name: &str) -> Option<VolumeCall> {
        VolumeCall::ALL.into_iter().find(|call| call.name() == name)
    }
}

impl PeerCall {
    /// Returns `true` if a path is that of a call between nodes.
    pub(crate) fn is_path(path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    /// Parses a path.
    pub(crate) fn parse(path: &str) -> Option<PeerCall> {
        let rest = path.strip_prefix(PREFIX)?;
        Some(match rest.split_once('/').unwrap_or((rest, "")) {
            ("ping", "") => PeerCall::Ping,
            ("state", "") => PeerCall::State,
            ("hello", "") => PeerCall::Hello,
            ("warehouse", "") => PeerCall::Warehouse,
            ("stop", "") => PeerCall::Stop,
            ("node", "") => PeerCall::Node,
            ("console", "") => PeerCall::Console,
            ("engine", name) => PeerCall::Engine(NodeName::new(name).ok()?),
            ("leave", node) => PeerCall::Leave(NodeName::new(node).ok()?),
            ("volume", rest) => {
                let (volume, name) = rest.split_once('/')?;
                let call = VolumeCall::from_name(name)?;
                PeerCall::Volume(NodeName::new(volume).ok()?, call)
            }
            _ => return None,
        })
    }
}

/// Writes the path. Names of nodes need no percent encoding.
impl fmt::Display for PeerCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            PeerCall::Ping => f.write_str("ping"),
            PeerCall::State => f.write_str("state"),
            PeerCall::Hello => f.write_str("hello"),
            PeerCall::Leave(node) => write!(f, "leave/{node}"),
            PeerCall::Warehouse => f.write_str("warehouse"),
            PeerCall::Engine(name) => write!(f, "engine/{name}"),
            PeerCall::Stop => f.write_str("stop"),
            PeerCall::Node => f.write_str("node"),
            PeerCall::Console => f.write_str("console"),
            PeerCall::Volume(volume, call) => write!(f, "volume/{volume}/{}", call.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_call_parses_to_the_same_call() {
        let name = || NodeName::new("ada").unwrap();
        let mut calls = vec![
            PeerCall::Ping,
            PeerCall::State,
            PeerCall::Hello,
            PeerCall::Leave(name()),
            PeerCall::Engine(name()),
            PeerCall::Stop,
            PeerCall::Node,
            PeerCall::Console,
        ];
        calls.extend(VolumeCall::ALL.map(|call| PeerCall::Volume(name(), call)));
        assert_eq!(PeerCall::Ping.to_string(), PING);
        for call in calls {
            assert_eq!(PeerCall::parse(&call.to_string()), Some(call));
        }
        for path in [
            "/peer/",
            "/peer/ping/more",
            "/peer/leave/",
            "/peer/volume/ada",
            "/peer/volume/ada/lost",
            "/peer/volume//health",
            "/order",
        ] {
            assert_eq!(PeerCall::parse(path), None, "{path}");
        }
    }
}
