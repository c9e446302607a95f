//! The calls between nodes over HTTP/2: large transfers, and operations of the cluster.
//!
//! | path | meaning |
//! | --- | --- |
//! | `/peer/ping` | checks that the node responds |
//! | `/peer/state` | notifies the node that the cluster's state has changed |
//! | `/peer/hello` | tells the coordinator that a node has started or stops |
//! | `/peer/leave/NODE` | asks the coordinator to let a node leave permanently |
//! | `/peer/warehouse?URL` | asks the coordinator to set the cluster's warehouse |
//! | `/peer/engine/NAME?URL` | tells the coordinator that this engine may store volumes too |
//! | `/peer/node` | returns the state of the node for commands of operators |
//! | `/peer/stop` | stops the node |
//! | `/peer/console` | returns the node's figures for the console, a page in the browser |
//! | `/peer/volume/V/OPERATION` | executes an operation at volume V (`VolumeCall`) |
//!
//! **Invariants**
//! - Each call contains the cluster's secret, or uses a connection that has proven it.
//! - Calls for the coordinator are sent to all nodes, and only the coordinator acts on them.
//! - The bodies of requests and responses are JSON. Some requests have none. The request bodies of
//!   `stock` and `stat-file` are CSV. The response of `read` is the response for the client, and
//!   that of `export` is a page of rows.
//!
//! Frequent small messages use the channel instead.

use std::fmt;

use imt_ring::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Prefix of the paths of all calls between nodes.
const PREFIX: &str = "/peer/";

/// The path of `PeerCall::Ping`.
pub(crate) const PING: &str = "/peer/ping";

/// A call between nodes. Each variant has a path of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerCall {
    /// Check that the node responds.
    Ping,
    /// Notify the node that the cluster's state has changed.
    State,
    /// Tell the coordinator that a node has started or stops.
    Hello,
    /// Ask the coordinator to let a node leave the cluster permanently.
    Leave(NodeName),
    /// Ask the coordinator to set the URL in the query as the cluster's warehouse.
    Warehouse,
    /// Tell the coordinator that the engine with this name, and with the URL in the query, may
    /// store volumes too.
    Engine(NodeName),
    /// Stop the called node.
    Stop,
    /// Read the state of the called node, for commands of operators.
    Node,
    /// Read the called node's figures for the console, a page in the browser.
    Console,
    /// Execute an operation at a volume.
    Volume(NodeName, VolumeCall),
}

/// An operation at a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeCall {
    /// Execute a client's read with a response that is too long for the channel.
    Read,
    /// Ask if the volume accepts a stock upload, before its lines are sent.
    BeginStock,
    /// Apply the volume's part of a stock upload.
    Stock,
    /// Read a page of orders.
    Orders,
    /// Read a page of reservations.
    Reservations,
    /// Read a page of messages to the warehouse.
    Messages,
    /// Read the stock of a product in the volume's stores.
    Product,
    /// Read the volume's health: counts, such as those of orders and messages, and flags for
    /// faults.
    Health,
    /// Read the epoch of the ring that the volume follows. The response is `null` while the volume
    /// is prepared for a migration (as a target, or as a source with sealed slots) or removes rows
    /// of an earlier one.
    Epoch,
    /// Read a page of rows of slots that leave the volume. In the last copy round of a migration,
    /// seal these slots first.
    Export,
    /// Copy rows of slots that move to the volume, from the volume that owns the slots now.
    Import,
    /// Read the progress of the copies that `Import` began.
    Progress,
    /// Import a statistics file from a node's folder.
    StatFile,
}

/// A JSON request to a volume, with a JSON response.
pub(crate) trait VolumeQuestion: Serialize + Send + Sync {
    /// The operation that handles the request.
    const CALL: VolumeCall;
    /// The type of the response.
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

    /// Returns the operation's name, the last segment of the path.
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
    /// Returns `true` if the path has the prefix of calls between nodes, also for an unknown call.
    pub(crate) fn is_path(path: &str) -> bool {
        path.starts_with(PREFIX)
    }

    /// Parses the path of a call. Returns `None` if there is no such call.
    pub(crate) fn parse(path: &str) -> Option<PeerCall> {
        let rest = path.strip_prefix(PREFIX)?;
        let Some((call, rest)) = rest.split_once('/') else {
            return Some(match rest {
                "ping" => PeerCall::Ping,
                "state" => PeerCall::State,
                "hello" => PeerCall::Hello,
                "warehouse" => PeerCall::Warehouse,
                "stop" => PeerCall::Stop,
                "node" => PeerCall::Node,
                "console" => PeerCall::Console,
                _ => return None,
            });
        };
        Some(match call {
            "engine" => PeerCall::Engine(NodeName::new(rest).ok()?),
            "leave" => PeerCall::Leave(NodeName::new(rest).ok()?),
            "volume" => {
                let (volume, name) = rest.split_once('/')?;
                let call = VolumeCall::from_name(name)?;
                PeerCall::Volume(NodeName::new(volume).ok()?, call)
            }
            _ => return None,
        })
    }
}

/// Writes the path of the call, without a query. Names of nodes need no percent encoding.
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

    fn name() -> NodeName {
        NodeName::new("ada").unwrap()
    }

    /// Returns the call that the list of all calls has after `call`. `None` after the last call.
    /// The match makes the compiler reject a new variant of `PeerCall` that is missing in the list.
    fn next(call: &PeerCall) -> Option<PeerCall> {
        Some(match call {
            PeerCall::Ping => PeerCall::State,
            PeerCall::State => PeerCall::Hello,
            PeerCall::Hello => PeerCall::Leave(name()),
            PeerCall::Leave(_) => PeerCall::Warehouse,
            PeerCall::Warehouse => PeerCall::Engine(name()),
            PeerCall::Engine(_) => PeerCall::Stop,
            PeerCall::Stop => PeerCall::Node,
            PeerCall::Node => PeerCall::Console,
            PeerCall::Console => PeerCall::Volume(name(), VolumeCall::ALL[0]),
            PeerCall::Volume(_, call) => {
                let at = VolumeCall::ALL.iter().position(|known| known == call)?;
                PeerCall::Volume(name(), *VolumeCall::ALL.get(at + 1)?)
            }
        })
    }

    #[test]
    fn the_path_of_a_call_parses_to_the_same_call() {
        assert_eq!(PeerCall::Ping.to_string(), PING);
        for call in std::iter::successors(Some(PeerCall::Ping), next) {
            assert_eq!(PeerCall::parse(&call.to_string()), Some(call));
        }
        for path in [
            "/peer/",
            "/peer/ping/",
            "/peer/ping/more",
            "/peer/stop/",
            "/peer/leave",
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
