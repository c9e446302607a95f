//! A node: the rooms wired together, started in order and stopped in the reverse of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hyper::Uri;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{self, App};
use crate::clock::Clock;
use crate::cluster::{LocalCluster, Membership, Ownership};
use crate::desk::Desk;
use crate::error::NodeError;
use crate::metrics::Metrics;
use crate::outbox::OutboxLimits;
use crate::server::{self, ServerLimits};
use crate::stats::Statistics;
use crate::transactor::Transactors;
use crate::wms::{Wms, WmsConfig};
use crate::{courier, expiry, stat_files, sweep};

/// How a node is to run.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name, and that of its volume.
    pub name: String,
    /// The data folder, shared with the simulators; made if it is not there.
    pub data: PathBuf,
    /// Where the API answers; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where the warehouse answers, `http://HOST:PORT`.
    pub warehouse: String,
    /// How long the warehouse may take to answer an announcement. It takes 2 to 4 s on a good day.
    pub announce_timeout: Duration,
    /// How long the warehouse may take to answer a delivery. It takes 0.2 s on a good day.
    pub deliver_timeout: Duration,
    /// How messages to the warehouse are tried.
    pub outbox: OutboxLimits,
    /// Bounds of connections and requests.
    pub server: ServerLimits,
    /// How long an order may stay unpaid before it expires.
    pub payment_timeout: Duration,
    /// How often the data folder is searched for statistics files.
    pub stat_scan_every: Duration,
    /// How long requests in progress may take to finish at a stop.
    pub drain_timeout: Duration,
}

impl NodeConfig {
    /// The usual settings of a node of that name on that data folder.
    pub fn new(name: impl Into<String>, data: impl Into<PathBuf>) -> NodeConfig {
        NodeConfig {
            name: name.into(),
            data: data.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            warehouse: "http://127.0.0.1:9091".to_owned(),
            announce_timeout: Duration::from_secs(10),
            deliver_timeout: Duration::from_secs(5),
            outbox: OutboxLimits::default(),
            server: ServerLimits::default(),
            payment_timeout: Duration::from_secs(15 * 60),
            stat_scan_every: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// A running node.
pub struct Node {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<usize>,
    working: Vec<JoinHandle<()>>,
    transactors: Arc<Transactors>,
    cluster: Arc<LocalCluster>,
}

impl Node {
    /// Starts a node: takes its name, opens its volume, listens, and resumes what was under way.
    ///
    /// # Errors
    /// Everything that a person can put right is a `NodeError` of its own: a taken port, a data folder that is in
    /// use or unreadable, a setting that makes no sense.
    pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
        let wms = Arc::new(warehouse(&config)?);
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| NodeError::Listen {
                address: config.listen,
                source,
            })?;
        let address = listener.local_addr().map_err(|source| NodeError::Listen {
            address: config.listen,
            source,
        })?;

        let (data, name, limits) = (config.data.clone(), config.name.clone(), config.outbox);
        let opened = tokio::task::spawn_blocking(move || open(&data, &name, limits)).await;
        let (cluster, desk, statistics) = opened.map_err(|error| NodeError::Config {
            setting: "data",
            reason: format!("could not be opened: {error}"),
        })??;
        cluster.announce(address, desk.clock.now_ms())?;

        let transactors = Transactors::new(Arc::new(desk));
        let statistics = Arc::new(RwLock::new(statistics));
        let (stop, stopped) = watch::channel(false);
        let working = vec![
            tokio::spawn(courier::carry(Arc::clone(&transactors), wms, stopped.clone())),
            tokio::spawn(stat_files::scan_always(
                config.data.clone(),
                config.stat_scan_every,
                Arc::clone(transactors.desk()),
                Arc::clone(&statistics),
                stopped.clone(),
            )),
            tokio::spawn(expiry::expire_always(
                Arc::clone(&transactors),
                config.payment_timeout,
                stopped.clone(),
            )),
            tokio::spawn(sweep::sweep_always(
                Arc::clone(transactors.desk()),
                stopped.clone(),
            )),
        ];
        let ownership: Arc<dyn Ownership> = cluster.clone();
        let metrics = Arc::new(Metrics::default());
        let app = App::new(
            cluster.name().to_string(),
            Arc::clone(&transactors),
            statistics,
            ownership,
            Arc::clone(&metrics),
        );
        let routes = api::routes(Arc::new(app));
        let serving = tokio::spawn(server::serve(
            listener,
            routes,
            metrics,
            config.server,
            stopped,
            config.drain_timeout,
        ));
        Ok(Node {
            address,
            stop,
            serving,
            working,
            transactors,
            cluster,
        })
    }

    /// Where the API answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: takes no more connections, finishes the requests in progress, checkpoints and lets go of the volume.
    /// Calls to the warehouse that are in flight are made again by the next start.
    ///
    /// # Errors
    /// If requests outlasted the drain timeout, or the volume could not be closed; the data is whole in both cases.
    pub async fn stop(self) -> Result<(), NodeError> {
        let _ = self.stop.send(true);
        let requests = self.serving.await.unwrap_or(0);
        for task in self.working {
            // Each ends at the stop signal; one that panicked has said so.
            let _ = task.await;
        }
        let desk = Arc::clone(self.transactors.desk());
        let closed = tokio::task::spawn_blocking(move || desk.store.close()).await;
        closed.map_err(|error| NodeError::Config {
            setting: "data",
            reason: error.to_string(),
        })??;
        self.cluster.withdraw();
        if requests > 0 {
            return Err(NodeError::Drain { requests });
        }
        Ok(())
    }
}

fn warehouse(config: &NodeConfig) -> Result<Wms, NodeError> {
    let wrong = |reason: String| NodeError::Config {
        setting: "warehouse",
        reason,
    };
    let base: Uri = config
        .warehouse
        .parse()
        .map_err(|error| wrong(format!("is not an address ({error}): {}", config.warehouse)))?;
    let wms = WmsConfig {
        base,
        announce_timeout: config.announce_timeout,
        deliver_timeout: config.deliver_timeout,
        connections_max: config.outbox.in_flight_max,
    };
    Wms::new(wms).map_err(|error| wrong(error.to_string()))
}

type Opened = (Arc<LocalCluster>, Desk, Statistics);

fn open(data: &std::path::Path, name: &str, limits: OutboxLimits) -> Result<Opened, NodeError> {
    let cluster = LocalCluster::join(data, name)?;
    let store = cluster.open_volume()?;
    let mut loaded = store.load()?;
    let statistics = Statistics::new(std::mem::take(&mut loaded.sums));
    tracing::debug!(
        reservations = loaded.reservations.len(),
        messages = loaded.messages.len(),
        deliveries = loaded.deliveries.len(),
        "the volume was read"
    );
    Ok((
        Arc::new(cluster),
        Desk::new(store, loaded, limits, Clock::System),
        statistics,
    ))
}
