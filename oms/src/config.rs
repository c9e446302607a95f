//! The settings of a node, and the parts that all volume servers of a node share.
//!
//! **Invariants**
//! - Settings are plain values. When a node starts, the module `node` checks the node's name,
//!   weight and zone, the origins and the warehouse's URL. With an engine, the module also checks
//!   the published address and the secret file.
//!
//! Deliberately absent: the reading of settings from files, arguments and environment variables.
//! The command `imt` (`cli/`) reads them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::outbox::OutboxLimits;
use crate::outbox::warehouse_client::Warehouse;
use crate::postgres::EngineUrl;
use crate::runtime::clock::Clock;
use crate::runtime::metrics::Metrics;

/// URL of the warehouse if neither the node's settings nor the cluster's state names one.
pub const DEFAULT_WAREHOUSE: &str = "http://127.0.0.1:9091";

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Name of the node and of its volume.
    pub name: String,
    /// The data folder. Without an engine, all nodes of the cluster share it. A missing folder is
    /// created.
    pub data: PathBuf,
    /// The engine that holds the cluster's state and the logs of volumes. Further engines may hold
    /// some of the logs. `None` keeps all in the data folder. With an engine, each node keeps local
    /// copies of volumes in a separate folder inside its data folder.
    pub engine: Option<EngineUrl>,
    /// With an engine: `HOST:PORT` at which the other nodes reach this node. `None` if that is the
    /// address of the API.
    pub advertise: Option<String>,
    /// With an engine: a file with the secret that authenticates the nodes to each other. `None`
    /// keeps the secret in the engine.
    pub secret_file: Option<PathBuf>,
    /// With an engine: the encryption of the connections to other nodes.
    pub peer_encryption: PeerEncryption,
    /// Address of the API. Port 0 selects any free port.
    pub listen: SocketAddr,
    /// URL of the warehouse: `http://HOST:PORT`, followed by the path of its routes if they have
    /// one. If other nodes run, it must be the URL that they call. `None` selects the URL that the
    /// cluster has stored, or [`DEFAULT_WAREHOUSE`] if the cluster has stored none.
    pub warehouse: Option<String>,
    /// Timeout of an announcement. The warehouse usually answers within 2 to 4 s.
    pub announce_timeout: Duration,
    /// Timeout of a delivery. The warehouse usually answers within 0.2 s.
    pub deliver_timeout: Duration,
    /// Limits and retries of messages to the warehouse.
    pub outbox: OutboxLimits,
    /// Limits of connections and requests.
    pub server: ServerLimits,
    /// Time after which an unpaid order expires.
    pub payment_timeout: Duration,
    /// Interval between two scans of the data folder for statistics files. Zero turns the scans
    /// off.
    pub stat_scan_every: Duration,
    /// Longest time for which the HTTP server waits for requests in progress when the node stops.
    pub drain_timeout: Duration,
    /// Weight of the node: its share of the slots relative to the weights of the other nodes.
    pub weight: u32,
    /// The zone (rack, room or site) of the node, if zones are used. Nodes of one zone may fail
    /// together.
    pub zone: Option<String>,
    /// Origins from which web pages may call the API, such as `https://shop.example`. The list is
    /// empty by default.
    pub cors_origins: Vec<String>,
    /// Maximum of the average number of rows per second that are copied to each volume of this node
    /// while slots migrate, from all source volumes together. The average begins with the copy.
    /// `None` is unlimited.
    pub move_rows_per_second: Option<u64>,
    /// `true` if the node lends units of stores with many orders to other nodes, and borrows units
    /// of such stores for its own orders [default: `true`]. The setting has no effect with an
    /// engine.
    pub allotments: bool,
}

impl NodeConfig {
    /// Returns the default settings of a node with this name on this data folder.
    pub fn new(name: impl Into<String>, data: impl Into<PathBuf>) -> NodeConfig {
        NodeConfig {
            name: name.into(),
            data: data.into(),
            engine: None,
            advertise: None,
            secret_file: None,
            peer_encryption: PeerEncryption::BetweenMachines,
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            warehouse: None,
            announce_timeout: Duration::from_secs(10),
            deliver_timeout: Duration::from_secs(5),
            outbox: OutboxLimits::default(),
            server: ServerLimits::default(),
            payment_timeout: Duration::from_secs(15 * 60),
            stat_scan_every: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            weight: 1,
            zone: None,
            cors_origins: Vec::new(),
            move_rows_per_second: None,
            allotments: true,
        }
    }
}

/// The encryption of connections between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEncryption {
    /// Connections between nodes are encrypted, except to and from loopback addresses. A node
    /// refuses an unencrypted connection of another node from any other address.
    BetweenMachines,
    /// Connections between nodes are never encrypted. The operator must keep strangers off the
    /// network between the nodes.
    Never,
}

/// Limits of the HTTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerLimits {
    /// Maximum number of open connections. Further connections wait in the kernel's queue.
    pub connections_max: usize,
    /// Maximum number of requests in progress. Further requests are answered with 503, except
    /// `GET /health/live`, `GET /health/ready` and `GET /metrics`.
    pub requests_max: usize,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        // A connection takes about 20 KB of memory and a request a few KB. So 8,192 connections and
        // 8,192 requests take some hundred megabytes.
        ServerLimits {
            connections_max: 8_192,
            requests_max: 8_192,
        }
    }
}

/// The parts of a node that all its volume servers share.
pub(crate) struct NodeContext {
    pub(crate) config: NodeConfig,
    pub(crate) wms: Arc<dyn Warehouse>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
}
