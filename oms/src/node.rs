//! A node as a process of this machine: its HTTP server, its data folder, its clock.
//!
//! **Invariants**
//! - The form of the warehouse's URL, the origins, and the node's name, weight and zone are checked
//!   before anything is written. A start that fails one of these checks leaves the data folder
//!   unchanged.
//! - A stop hands volumes over before the HTTP server stops. The remaining volumes are closed
//!   afterwards.
//!
//! Deliberately absent: membership, coordination and the choice of volumes, which belong to
//! `control::member`.

mod on_engine;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use imt_ring::{Member, NodeName};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::api::Console;
use crate::api::cors::{Cors, parse_origin};
use crate::api::forward::Api;
use crate::api::host_names::HostNames;
use crate::api::{routes, server, stat_files};
use crate::cluster::channel::{Protection, TcpDialer};
use crate::cluster::engine::EngineCluster;
use crate::cluster::peer_client::{Http, Peers};
use crate::cluster::{Authority, LocalCluster, Membership, NodeInfo, Volumes, read_ring};
use crate::config::{DEFAULT_WAREHOUSE, NodeConfig, NodeContext, PeerEncryption};
use crate::control::member::Member as ClusterMember;
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::NodeError;
use crate::outbox::warehouse_client::{Wms, WmsConfig};
use crate::runtime;
use crate::runtime::clock::Clock;
use crate::runtime::metrics::Metrics;

pub use crate::node::on_engine::read_secret_file;

/// A running node.
pub struct Node {
    address: SocketAddr,
    serving: JoinHandle<usize>,
    member: ClusterMember,
    /// The engine that holds the cluster's state. `None` if a data folder holds it.
    engine: Option<Arc<EngineCluster>>,
}

impl Node {
    /// Starts a node: listens, locks the node's name, joins the cluster, opens its volume and
    /// resumes unfinished work.
    ///
    /// # Errors
    /// Each kind of fault that an operator can correct has a separate variant of `NodeError`.
    /// Examples are a port in use, an unreadable data folder and an invalid setting.
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        let asked = asked_warehouse(&config)?;
        let cors = Cors::of(&config.cors_origins)?;
        let member = member(&config)?;
        if config.engine.is_none() {
            check_weight(&config.data, &config.name, config.weight)?;
        }
        let (listener, address) = listen(config.listen).await?;
        let Some(url) = config.engine.clone() else {
            let (data, name) = (config.data.clone(), config.name.clone());
            let joined = runtime::blocking(move || {
                let local = LocalCluster::join(&data, &name)?;
                let warehouse = local.agree_on_warehouse(asked.as_ref(), DEFAULT_WAREHOUSE)?;
                Ok::<_, NodeError>((local, warehouse))
            });
            let (local, warehouse) = joined.await.map_err(|error| NodeError::Config {
                setting: "data",
                reason: format!("could not be opened: {error}"),
            })??;
            let wms = Arc::new(Wms::new(wms_config(&config, &warehouse)?));
            return Node::begin(config, Arc::new(local), None, listener, address, cors, wms).await;
        };
        let advertised = on_engine::address(&config, &url, address).await?;
        let cluster = Arc::new(on_engine::join(&config, &url, member).await?);
        let warehouse = cluster
            .agree_on_warehouse(asked.as_ref(), DEFAULT_WAREHOUSE)
            .await?;
        let wms = Arc::new(Wms::new(wms_config(&config, &warehouse)?));
        let engine = Some(Arc::clone(&cluster));
        let node = Node::begin(config, cluster, engine, listener, advertised, cors, wms).await?;
        Ok(Node { address, ..node })
    }

    /// Starts to serve as a member of the cluster that `backend` gives access to. `address` is the
    /// address at which other nodes reach this node.
    async fn begin<C>(
        config: NodeConfig,
        backend: Arc<C>,
        engine: Option<Arc<EngineCluster>>,
        listener: TcpListener,
        address: SocketAddr,
        cors: Option<Cors>,
        wms: Arc<Wms>,
    ) -> Result<Node, NodeError>
    where
        C: Membership + Authority + Volumes + 'static,
    {
        backend.announce(&node_info(&config, backend.name(), address))?;
        let (limits, drain_timeout) = (config.server, config.drain_timeout);
        let encryption = match &config.engine {
            Some(_) => config.peer_encryption,
            // Nodes that share a data folder are on one machine, even if their addresses are not
            // loopback.
            None => PeerEncryption::Never,
        };
        let protection = Protection::new(encryption).map_err(|error| NodeError::Config {
            setting: "encryption between nodes",
            reason: format!("cannot be set up: {error}"),
        })?;
        let scan = (config.data.clone(), config.stat_scan_every);
        let hosts = host_names(&config);
        let context = NodeContext {
            config,
            wms,
            metrics: Arc::new(Metrics::of_routes(routes::names())),
            clock: Clock::System,
        };
        let dialer = TcpDialer::new(backend.secret(), protection.clone());
        let http = Http::new(backend.secret(), protection.clone());
        let counters = Arc::clone(context.metrics.channel());
        let peers = Peers::new(http, dialer, backend.secret(), counters);
        let member = ClusterMember::begin(backend, peers, context).await?;
        let console = Console::new(Arc::clone(member.cluster()), Clock::System);
        runtime::spawn(Arc::clone(&console).run(member.stopping()));
        let api = Api {
            cluster: Arc::clone(member.cluster()),
            console: Some(console),
            cors,
            hosts,
        };
        if engine.is_some() && !scan.1.is_zero() {
            let (folder, every) = scan;
            let cluster = Arc::clone(member.cluster());
            runtime::spawn(stat_files::run(cluster, folder, every, member.stopping()));
        }
        let stopping = member.stopping();
        let serving = server::serve(listener, api, limits, protection, stopping, drain_timeout);
        let serving = runtime::spawn(serving);
        let node = Node {
            address,
            serving,
            member,
            engine,
        };
        match node.member.admitted().await {
            Ok(()) => Ok(node),
            Err(error) => {
                // An error of this stop is dropped, because the error of the start explains more.
                let _ = node.stop().await;
                Err(error)
            }
        }
    }

    /// Returns the address of the API.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns a function that renders the number of slots of each volume, as this node sees them
    /// at the time of the call, and the progress of a migration that this node coordinates. The
    /// text is empty while this node serves the only volume and no migration is under way.
    pub fn overview(&self) -> impl Fn() -> String + Send + use<> {
        let cluster = Arc::clone(self.member.cluster());
        move || {
            let topology = cluster.topology();
            if topology.alone.is_some() {
                return String::new();
            }
            let share = |name| format!("{name} {}", topology.ring.slots_of(name).count());
            let shares: Vec<String> = topology.volumes().map(share).collect();
            let moving = match *cluster.progress() {
                Some(sum) => format!("; {} of about {} rows moved", sum.rows, sum.about),
                None => String::new(),
            };
            format!("; nodes and slots: {}{moving}", shares.join(", "))
        }
    }

    /// Waits until the node must stop: another process has asked for the stop or has taken over the
    /// node's name, or the node has left the cluster for good. On an engine, the node must stop
    /// also if its row was removed.
    pub async fn asked_to_stop(&self) {
        let mut asked = self.member.cluster().asked_to_stop.subscribe();
        // The sender lives as long as this node, so the wait cannot fail.
        let _ = asked.wait_for(|asked| *asked).await;
    }

    /// Stops the node. Hands its volumes over if there are other nodes, accepts no more
    /// connections, and finishes the requests in progress within the drain timeout. Then closes the
    /// remaining volumes. A close writes a checkpoint only if more than 256 KiB of the log are
    /// newer than the last checkpoint. The next node that serves one of these volumes repeats the
    /// volume's unanswered calls to the warehouse.
    ///
    /// # Errors
    /// `NodeError::Drain` if requests outlasted the drain timeout, or the error of a volume that
    /// could not be closed. The data is complete in both cases.
    pub async fn stop(self) -> Result<(), NodeError> {
        self.member.hand_over().await;
        self.member.begin_to_stop();
        let requests = self.serving.await.unwrap_or(0);
        let ended = self.member.end().await;
        if let Some(engine) = &self.engine {
            engine.farewell().await;
        }
        ended?;
        if requests > 0 {
            return Err(NodeError::Drain { requests });
        }
        Ok(())
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), NodeError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bound.await.map_err(|source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => NodeError::AddressInUse { address },
        _ => NodeError::Listen { address, source },
    })
}

/// Checks that at least one node of a data folder can own slots if this node joins with this
/// weight. Changes nothing.
///
/// # Errors
/// `NodeError::Config` for a weight of 0 where no other member of the ring has a weight above 0, or
/// the error of reading the ring.
pub fn check_weight(data: &Path, name: &str, weight: u32) -> Result<(), NodeError> {
    if weight > 0 {
        return Ok(());
    }
    let ring = read_ring(data)?;
    let mut members = ring.iter().flat_map(imt_ring::Ring::members);
    if members.any(|member| member.name().as_str() != name && member.weight() > 0) {
        return Ok(());
    }
    Err(NodeError::Config {
        setting: "weight",
        reason: "cannot be 0: no other node could own the orders; give the first node a weight of 1 or more"
            .to_owned(),
    })
}

/// Checks that a text is an origin as browsers send it, such as `https://shop.example`.
///
/// # Errors
/// A sentence that names the fault of the text.
pub fn check_origin(text: &str) -> Result<(), String> {
    parse_origin(text).map(drop)
}

/// Returns this node as a member of a ring. Fails if its name, weight or zone is invalid.
fn member(config: &NodeConfig) -> Result<Member, NodeError> {
    let invalid = |setting| {
        move |error: imt_ring::Error| NodeError::Config {
            setting,
            reason: format!("cannot be used: {error}"),
        }
    };
    let member = Member::new(&config.name).map_err(invalid("name"))?;
    let member = member.with_weight(config.weight).map_err(invalid("weight"))?;
    match &config.zone {
        Some(zone) => member.with_zone(zone).map_err(invalid("zone")),
        None => Ok(member),
    }
}

fn node_info(config: &NodeConfig, name: &NodeName, address: SocketAddr) -> NodeInfo {
    NodeInfo {
        name: name.clone(),
        address,
        process: std::process::id(),
        started_at_ms: Clock::System.now_ms(),
        weight: config.weight,
        zone: config.zone.clone(),
    }
}

fn warehouse_url(text: &str) -> Result<WarehouseUrl, NodeError> {
    text.parse().map_err(|error| NodeError::Config {
        setting: "warehouse",
        reason: format!("cannot be {text:?}: {error}"),
    })
}

fn asked_warehouse(config: &NodeConfig) -> Result<Option<WarehouseUrl>, NodeError> {
    config.warehouse.as_deref().map(warehouse_url).transpose()
}

/// Returns the host names by which a browser may reach the node.
fn host_names(config: &NodeConfig) -> HostNames {
    let system = rustix::system::uname();
    let machine = system.nodename().to_str().ok();
    let origins = config.cors_origins.iter();
    let allowed = origins.filter_map(|origin| Some(origin.split_once("://")?.1));
    let own = machine.into_iter().chain(config.advertise.as_deref());
    HostNames::of(own.chain(allowed))
}

fn wms_config(config: &NodeConfig, warehouse: &str) -> Result<WmsConfig, NodeError> {
    Ok(WmsConfig {
        base: warehouse_url(warehouse)?,
        announce_timeout: config.announce_timeout,
        deliver_timeout: config.deliver_timeout,
        connections_max: config.outbox.in_flight_max,
    })
}
