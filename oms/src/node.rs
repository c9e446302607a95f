//! A node: the rooms wired together, started in order and stopped in the reverse of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api::gate::Gate;
use crate::clock::Clock;
use crate::cluster::{Authority, Card, Event, Keeper, LocalCluster, Membership, Volumes, coordinate};
use crate::error::NodeError;
use crate::metrics::Metrics;
use crate::outbox::OutboxLimits;
use crate::peers::Peers;
use crate::post::Kit;
use crate::router::View;
use crate::server::{self, ServerLimits};
use crate::wms::{Wms, WmsConfig};

/// Longest time for a node to be let in by the others.
const ADMISSION: Duration = Duration::from_secs(30);
/// Longest time for the others to take a node's volumes over; after it they are let go of, and taken over then.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How often a node that is not let in yet, or that wants to go, says hello.
const HELLO: Duration = Duration::from_millis(200);

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
    /// The node's share of the slots, against those of the others.
    pub weight: u32,
    /// The zone that the node fails with, if there are zones.
    pub zone: Option<String>,
    /// Most rows a second that are copied to this node from another one while slots move; as fast as it goes if not set.
    pub move_rows_per_second: Option<u64>,
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
            weight: 1,
            zone: None,
            move_rows_per_second: None,
        }
    }
}

/// A running node.
pub struct Node {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    stop_keeping: watch::Sender<bool>,
    serving: JoinHandle<usize>,
    coordinating: JoinHandle<()>,
    keeping: JoinHandle<Result<(), NodeError>>,
    gate: Arc<Gate>,
}

impl Node {
    /// Starts a node: takes its name, joins the others, listens, opens its volume, and resumes what was under way.
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
        let (data, name) = (config.data.clone(), config.name.clone());
        let joined = tokio::task::spawn_blocking(move || LocalCluster::join(&data, &name)).await;
        let cluster = Arc::new(joined.map_err(|error| NodeError::Config {
            setting: "data",
            reason: format!("could not be opened: {error}"),
        })??);
        cluster.announce(&card(&config, &cluster, address)?)?;

        let metrics = Arc::new(Metrics::default());
        let (events, told) = mpsc::unbounded_channel();
        let state = cluster.read()?;
        let ring = Arc::new(state.ring.clone());
        let name = cluster.name().clone();
        let view = View::new(name, state, ring, BTreeMap::new(), cluster.cards()?);
        let gate = Gate::new(
            view,
            Arc::new(Peers::new(cluster.secret())),
            Arc::clone(&cluster) as Arc<dyn Membership>,
            Arc::clone(&cluster) as Arc<dyn Authority>,
            Arc::clone(&metrics),
            events,
        );
        let (stop, stopped) = watch::channel(false);
        let (stop_keeping, keep_stopped) = watch::channel(false);
        let serving = tokio::spawn(server::serve(
            listener,
            Arc::clone(&gate),
            Arc::clone(&metrics),
            config.server,
            stopped.clone(),
            config.drain_timeout,
        ));
        let coordinating = tokio::spawn(coordinate(Arc::clone(&gate), told, stopped));
        let kit = Kit { config, wms, metrics };
        let (trouble, troubles) = watch::channel(None);
        let keeper = Keeper::new(Arc::clone(&gate), kit, cluster as Arc<dyn Volumes>);
        let keeping = tokio::spawn(keeper.keep(keep_stopped, trouble));
        let node = Node {
            address,
            stop,
            stop_keeping,
            serving,
            coordinating,
            keeping,
            gate,
        };
        match node.admitted(troubles).await {
            Ok(()) => Ok(node),
            Err(error) => {
                // What went wrong at the start says more than what goes wrong at this stop.
                let _ = node.stop().await;
                Err(error)
            }
        }
    }

    /// Says hello to the others and waits until this node serves its own volume.
    async fn admitted(&self, mut troubles: watch::Receiver<Option<Arc<NodeError>>>) -> Result<(), NodeError> {
        let gate = &self.gate;
        let others = gate.membership.alive()?;
        let until = Instant::now() + ADMISSION;
        let mut changes = gate.changes();
        while !gate.view().posts.contains_key(&gate.me) {
            if let Some(error) = troubles.borrow_and_update().as_ref() {
                return Err(NodeError::Failed {
                    source: Arc::clone(error),
                });
            }
            if Instant::now() >= until {
                return Err(NodeError::NotAdmitted {
                    name: gate.me.to_string(),
                });
            }
            for card in others.iter().filter(|card| card.name != gate.me) {
                let (peers, address) = (Arc::clone(&gate.peers), card.address);
                tokio::spawn(async move {
                    // Whoever does not answer does not coordinate either; this is said again.
                    let _ = peers.ask::<bool>(address, "/peer/hello", &(), HELLO).await;
                });
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = troubles.changed() => {}
                () = tokio::time::sleep(HELLO) => {}
            }
        }
        Ok(())
    }

    /// Has the others take this node's volumes over, if there are others: until they have, and while the last requests
    /// are answered, this node passes on what it is asked.
    async fn hand_over(&self) {
        let gate = &self.gate;
        let others = gate.membership.alive().unwrap_or_default();
        let others: Vec<&Card> = others.iter().filter(|card| card.name != gate.me).collect();
        if others.is_empty() {
            return;
        }
        gate.membership.retire();
        let _ = gate.events.send(Event::Hello);
        let until = Instant::now() + HAND_OVER;
        let mut changes = gate.changes();
        while !gate.view().posts.is_empty() && Instant::now() < until {
            for card in &others {
                let (peers, address) = (Arc::clone(&gate.peers), card.address);
                tokio::spawn(async move {
                    // Whoever does not answer does not coordinate either; this is said again.
                    let _ = peers.ask::<bool>(address, "/peer/hello", &(), HELLO).await;
                });
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(HELLO) => {}
            }
        }
    }

    /// Where the API answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Says in a few words who shares the orders, as this node sees it at each call; nothing while it is alone.
    pub fn overview(&self) -> impl Fn() -> String + Send + use<> {
        let gate = Arc::clone(&self.gate);
        move || {
            let view = gate.view();
            if view.alone.is_some() {
                return String::new();
            }
            let share = |name| format!("{name} {}", view.ring.slots_of(name).count());
            let shares: Vec<String> = view.volumes().map(share).collect();
            let moving = match *gate.progress() {
                Some((rows, about)) => format!("; {rows} of about {about} rows moved"),
                None => String::new(),
            };
            format!("; nodes and slots: {}{moving}", shares.join(", "))
        }
    }

    /// Waits until the node is asked to stop by another process, or has left the others for good.
    pub async fn asked_to_stop(&self) {
        let mut asked = self.gate.asked_to_stop.subscribe();
        // The sender lives as long as this node.
        let _ = asked.wait_for(|asked| *asked).await;
    }

    /// Stops: takes no more connections, finishes the requests in progress, checkpoints and lets go of the volumes, which
    /// other nodes take over if there are any. Calls to the warehouse that are in flight are made again by whoever has the volume next.
    ///
    /// # Errors
    /// If requests outlasted the drain timeout, or the volume could not be closed; the data is whole in both cases.
    pub async fn stop(self) -> Result<(), NodeError> {
        self.hand_over().await;
        let _ = self.stop.send(true);
        let requests = self.serving.await.unwrap_or(0);
        // Ends at the stop signal; if it panicked it has said so.
        let _ = self.coordinating.await;
        let _ = self.stop_keeping.send(true);
        let kept = self.keeping.await;
        self.gate.membership.withdraw();
        kept.map_err(|error| NodeError::Config {
            setting: "data",
            reason: error.to_string(),
        })??;
        if requests > 0 {
            return Err(NodeError::Drain { requests });
        }
        Ok(())
    }
}

fn card(config: &NodeConfig, cluster: &LocalCluster, address: SocketAddr) -> Result<Card, NodeError> {
    let card = Card {
        name: cluster.name().clone(),
        address,
        process: std::process::id(),
        started_at_ms: Clock::System.now_ms(),
        weight: config.weight,
        zone: config.zone.clone(),
    };
    match card.member() {
        Ok(_) => Ok(card),
        Err(error) => Err(NodeError::Config {
            setting: "weight or zone",
            reason: format!("cannot be used: {error}"),
        }),
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
