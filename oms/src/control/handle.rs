//! The handle of the cluster: this node's view of the other nodes, and the clients to reach them.
//!
//! **Invariants**
//! - Each try to execute a request uses one topology from its beginning to its end.
//! - While this node serves the cluster's only volume and no slots move, requests go directly to
//!   its server, which consumes their bodies. Such a request keeps its topology until it ends. It
//!   cannot be repeated at another volume, so `earlier_requests` waits for its end.
//!
//! Deliberately absent: delivery of a request to its volume (`errand`), and HTTP (`api`).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use imt_ring::NodeName;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use crate::cluster::peer_client::Peers;
use crate::cluster::{Authority, Event, Membership};
use crate::control::stock_copies::StockCopies;
use crate::control::topology::Topology;
use crate::runtime::metrics::Metrics;
use crate::runtime::watch;
use crate::volume::app::SNAPSHOTS_ARRIVING_MAX;
use crate::volume::migration::target::Imported;

/// Longest time for a routed request of a client to reach its volume and get an answer. The parts
/// of a stock upload have another timeout.
pub(crate) const ROUTING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for requests of an earlier topology before slots are sealed.
const EARLIER_REQUESTS_TIMEOUT: Duration = Duration::from_secs(2);

/// The topology of this node, its access to other nodes and to the cluster's state, and the signals
/// to its tasks.
pub(crate) struct ClusterHandle {
    pub(crate) me: NodeName,
    pub(crate) peers: Arc<Peers>,
    pub(crate) membership: Arc<dyn Membership>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
    /// Events for the coordinator's task of this process.
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// Wakes the reconciler, which then reads the cluster's state.
    pub(crate) look: Notify,
    /// `true` once this node must stop: another process has asked for the stop, the node has left
    /// the cluster for good, or `Event::Replaced` has arrived.
    pub(crate) asked_to_stop: watch::Sender<bool>,
    /// Reason why this process, as the coordinator, cannot take the next step now. Most often, a
    /// migration waits or has failed.
    trouble: Mutex<Option<String>>,
    /// Volumes that are assigned to this node but have no database (with an engine: no log), each
    /// with an error text.
    missing: Mutex<BTreeMap<NodeName, String>>,
    /// Progress of a migration, if this process coordinates one.
    progress: Mutex<Option<Imported>>,
    topology: RwLock<Arc<Topology>>,
    earlier: Mutex<Vec<Weak<Topology>>>,
    changed: Notify,
    /// Limits the number of concurrent stock uploads that `api::stock_fan_out` handles.
    pub(crate) snapshot_turns: Semaphore,
    /// Copies of the stock of volumes that other nodes serve.
    pub(crate) stock_copies: StockCopies,
}

impl ClusterHandle {
    /// Returns a handle with its first topology.
    pub(crate) fn new(
        topology: Topology,
        peers: Arc<Peers>,
        membership: Arc<dyn Membership>,
        authority: Arc<dyn Authority>,
        metrics: Arc<Metrics>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Arc<ClusterHandle> {
        Arc::new(ClusterHandle {
            me: topology.me.clone(),
            peers,
            membership,
            authority,
            metrics,
            started: Instant::now(),
            events,
            look: Notify::new(),
            asked_to_stop: watch::Sender::new(false),
            trouble: Mutex::default(),
            missing: Mutex::default(),
            progress: Mutex::default(),
            topology: RwLock::new(Arc::new(topology)),
            earlier: Mutex::default(),
            changed: Notify::new(),
            snapshot_turns: Semaphore::new(SNAPSHOTS_ARRIVING_MAX),
            stock_copies: StockCopies::default(),
        })
    }

    /// Locks the progress of the migration that this process coordinates. `None` if no progress is
    /// set.
    pub(crate) fn progress(&self) -> MutexGuard<'_, Option<Imported>> {
        self.progress.lock()
    }

    /// Returns the reason why the coordinator cannot take its next step now, such as a failed
    /// migration. `None` if no reason is set.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.clone()
    }

    /// Sets the reason why the coordinator cannot take its next step now. `None` removes the
    /// reason. Returns `true` if the reason has changed.
    pub(crate) fn set_trouble(&self, reason: Option<String>) -> bool {
        let mut trouble = self.trouble.lock();
        let is_new = *trouble != reason;
        *trouble = reason;
        is_new
    }

    /// Locks the map of volumes that are assigned to this node but have no database (with an
    /// engine: no log), each with an error text.
    pub(crate) fn missing(&self) -> MutexGuard<'_, BTreeMap<NodeName, String>> {
        self.missing.lock()
    }

    /// Returns the current topology.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read())
    }

    /// Publishes a topology. Later requests are routed by it.
    pub(crate) fn publish(&self, topology: Topology) {
        let topology = Arc::new(topology);
        let before = {
            let mut current = self.topology.write();
            std::mem::replace(&mut *current, topology)
        };
        if before.alone.is_some() {
            let mut earlier = self.earlier.lock();
            earlier.retain(|topology| topology.strong_count() > 0);
            earlier.push(Arc::downgrade(&before));
        }
        drop(before);
        self.changed.notify_waiters();
    }

    /// Returns a future that ends when a topology is published after this call, even if the future
    /// is polled only later.
    pub(crate) fn topology_changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Waits until all requests have ended that went directly to the only volume of an earlier
    /// topology, because they cannot be repeated at another volume. Gives up after
    /// `EARLIER_REQUESTS_TIMEOUT`.
    pub(crate) async fn earlier_requests(&self) {
        let until = Instant::now() + EARLIER_REQUESTS_TIMEOUT;
        let under_way = || {
            let earlier = self.earlier.lock();
            earlier.iter().any(|topology| topology.strong_count() > 0)
        };
        while under_way() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
