//! The simulated warehouse: a server that receives the outbox messages of the order management, and
//! delivers from a stock of its own.
//!
//! The warehouse follows the contract for warehouses, `docs/warehouse.md`. On purpose, it answers
//! slowly and sometimes wrongly ([`Behaviour`]). By default it sends a stock snapshot every 15 s
//! and writes a statistics file every 10 s. The first snapshot and the first file are made at the
//! start.
//!
//! Invariants:
//! - A delivery of units that are not in stock is refused and counted.
//! - Confirmed calls are in the ledger, which survives a kill or a power cut. A warehouse that is
//!   started again on the same folder continues from its ledger.
//! - A snapshot states the sequence number of the last delivery that is subtracted in it
//!   (`X-Stock-As-Of`).
//!
//! | further routes | answer |
//! | --- | --- |
//! | `GET /summary` | counts |
//! | `GET /ledger`, `/restocks`, `/refusals` | pages of deliveries, arrivals of goods, refusals |

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Endpoint;
use crate::wire::WarehouseSummary;
use crate::{Error, Result};

mod behaviour;
mod books;
mod feeds;
pub(crate) mod files;
mod ledger;
mod routes;
mod server;
pub(crate) mod stock;
mod stream;

pub use behaviour::{Behaviour, CallBehaviour, Delay, Fault, Profile, SnapshotFault};
use books::{Books, Entry, LEDGER_VERSION, OrderCounts};
use ledger::{Ledger, Ticket};
pub use stock::{Stock, StockCsv, StockShape, UNITS_MAX};

/// Settings of a warehouse. `Default` gives the settings of the warehouse of the original system,
/// from which this project grew.
#[derive(Debug, Clone, PartialEq)]
pub struct WarehouseConfig {
    /// Address to listen on. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// Address of the order management.
    pub oms: Endpoint,
    /// Folder for the statistics files. The ledger is `warehouse/ledger.jsonl` in this folder.
    pub data: PathBuf,
    /// Seed of all random choices. An existing ledger keeps the stock of the seed with which it
    /// began.
    pub seed: u64,
    /// Numbers of products, stores and units of a new ledger. An existing ledger keeps its own
    /// numbers.
    pub shape: StockShape,
    /// Time from one stock snapshot to the next.
    pub snapshot_every: Duration,
    /// Time from one statistics file to the next. The first file is written at the start.
    pub stat_file_every: Duration,
    /// Number of lines of a statistics file: one for each product from 1.
    pub stat_file_lines: u32,
    /// Behaviour at the start. [`WarehouseControl`] can replace it later.
    pub behaviour: Behaviour,
    /// `true` to restock some of the quantities from which units were sold, before each snapshot.
    pub restock: bool,
}

impl Default for WarehouseConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9091)),
            oms: SocketAddr::from(([127, 0, 0, 1], 9090)).into(),
            data: PathBuf::from("data"),
            seed: 1,
            shape: StockShape::default(),
            snapshot_every: Duration::from_secs(15),
            stat_file_every: Duration::from_secs(10),
            stat_file_lines: 10_000,
            behaviour: Profile::Original.behaviour(),
            restock: true,
        }
    }
}

impl WarehouseConfig {
    fn check(&self) -> Result<()> {
        let wrong = |setting, problem: &str| {
            Err(Error::Config {
                setting,
                problem: problem.to_owned(),
            })
        };
        if let Some(problem) = self.shape.fault() {
            return wrong("shape", &problem);
        }
        if self.snapshot_every.is_zero() {
            return wrong("snapshot_every", "must be above 0");
        }
        if self.stat_file_every.is_zero() {
            return wrong("stat_file_every", "must be above 0");
        }
        Ok(())
    }
}

/// The books, which are the warehouse's state in memory, and the ledger on disk. One lock protects
/// both, because every entry that is applied to the books is also written to the ledger, in the
/// same sequence.
#[derive(Debug)]
struct Inside {
    books: Books,
    ledger: Ledger,
}

impl Inside {
    /// Applies an entry to the books and appends it to the ledger. The entry must be a decision of
    /// these books that was made under the same lock. Returns a ticket with which the caller can
    /// wait until the entry is durable.
    fn enter(&mut self, entry: &Entry) -> Ticket {
        // The books decided this entry under the same lock, so applying it cannot fail.
        self.books.apply(entry).expect("a decision fits its own books");
        self.ledger.append(entry)
    }
}

/// Counts since the start of this warehouse. The ledger does not contain them.
#[derive(Debug, Default)]
struct Counters {
    gateway_timeouts: AtomicU64,
    duplicates_after_answer: AtomicU64,
    conflicts: AtomicU64,
    in_progress: AtomicU64,
    malformed: AtomicU64,
    snapshots_sent: AtomicU64,
    snapshots_refused: AtomicU64,
    stat_files_written: AtomicU64,
    faults: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    fn count_fault(&self, name: &'static str) {
        let mut faults = self.faults.lock();
        *faults.entry(name).or_default() += 1;
    }
}

/// State shared by the warehouse's tasks.
#[derive(Debug)]
struct Shared {
    config: WarehouseConfig,
    behaviour: watch::Sender<Arc<Behaviour>>,
    inside: Mutex<Inside>,
    counters: Counters,
    /// Names of the calls that are in progress, such as `deliver KEY`.
    in_flight: Mutex<HashSet<String>>,
    stopping: watch::Receiver<bool>,
    stocked: watch::Sender<bool>,
}

impl Shared {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        // A panic does not poison this lock. The books are consistent even if another holder of the
        // lock panicked, because an entry that the books decided is always applied completely.
        self.inside.lock()
    }

    fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&self.behaviour.borrow())
    }

    /// Waits until a stop of the warehouse is requested.
    async fn stopped(&self) {
        // An error means that the sender is dropped, which also stops the warehouse.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// Waits until the behaviour makes the warehouse unreachable (`Behaviour::is_away`).
    async fn went_away(&self) {
        // The sender is a field of `self`, so `wait_for` cannot fail.
        let _ = self.behaviour.subscribe().wait_for(|now| now.is_away).await;
    }

    fn summary(&self) -> WarehouseSummary {
        let inside = self.inside();
        let OrderCounts {
            announced,
            delivered,
            refused,
        } = inside.books.counts();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shape = inside.books.stock().shape();
        let faults = self.counters.faults.lock();
        WarehouseSummary {
            behaviour: self.behaviour().name.clone(),
            announced,
            delivered,
            refused,
            conflicts: count(&self.counters.conflicts),
            in_progress: count(&self.counters.in_progress),
            malformed: count(&self.counters.malformed),
            gateway_timeouts: count(&self.counters.gateway_timeouts),
            duplicates_after_answer: count(&self.counters.duplicates_after_answer),
            snapshots_sent: count(&self.counters.snapshots_sent),
            snapshots_refused: count(&self.counters.snapshots_refused),
            stat_files_written: count(&self.counters.stat_files_written),
            faults: faults
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            restocked: inside.books.restocks().len() as u64,
            sequence: inside.books.sequence(),
            seed: inside.books.seed(),
            products: shape.products,
            stores: shape.stores,
            units: shape.units,
        }
    }
}

/// A running warehouse.
#[derive(Debug)]
pub struct Warehouse {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Warehouse {
    /// Opens the ledger, listens, and starts to send stock snapshots and to write statistics files.
    ///
    /// # Errors
    /// If a setting cannot be used, the warehouse cannot listen on its address, the data folder or
    /// the ledger cannot be read or written, the ledger is in use or malformed, or its thread
    /// cannot be started.
    pub async fn start(config: WarehouseConfig) -> Result<Self> {
        config.check()?;
        let folder = config.data.join("warehouse");
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| Error::Listen {
                address: config.listen,
                source,
            })?;
        let address = listener.local_addr().map_err(|source| Error::Listen {
            address: config.listen,
            source,
        })?;
        let begin = Entry::Begin {
            version: LEDGER_VERSION,
            seed: config.seed,
            base: unix_ms(),
            products: config.shape.products,
            stores: config.shape.stores,
            units: config.shape.units,
        };
        let path = folder.join("ledger.jsonl");
        let (ledger, books) = tokio::task::spawn_blocking(move || Ledger::open(&path, &begin))
            .await
            .map_err(|e| Error::io("open", &folder)(e.into()))??;
        let shape = books.stock().shape();
        if books.seed() != config.seed || shape != config.shape {
            tracing::info!(
                seed = books.seed(),
                products = shape.products,
                stores = shape.stores,
                units = shape.units,
                "stock continued from the ledger of this data folder"
            );
        }
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            behaviour: watch::Sender::new(Arc::new(config.behaviour.clone())),
            config,
            inside: Mutex::new(Inside { books, ledger }),
            counters: Counters::default(),
            in_flight: Mutex::default(),
            stopping,
            stocked: watch::Sender::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(
            listener,
            routes::router(Arc::clone(&shared)),
            Arc::clone(&shared),
        ));
        tasks.spawn(feeds::send_snapshots(Arc::clone(&shared)));
        tasks.spawn(feeds::write_stat_files(Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            stop,
            tasks,
        })
    }

    /// Returns the address on which the warehouse listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the current counts.
    pub fn summary(&self) -> WarehouseSummary {
        self.shared.summary()
    }

    /// Returns a handle that changes the behaviour. After the warehouse stops, the handle has no
    /// effect.
    pub fn control(&self) -> WarehouseControl {
        WarehouseControl(Arc::clone(&self.shared))
    }

    /// Waits until the order management has accepted a snapshot of the stock since the start of
    /// this warehouse. Returns at once if a snapshot was accepted before the call.
    pub async fn stocked(&self) {
        // `self` holds the shared state with the sender, so `wait_for` cannot fail.
        let _ = self.shared.stocked.subscribe().wait_for(|stocked| *stocked).await;
    }

    /// Stops the warehouse: accepts no new calls, answers 503 to calls that wait for their delay,
    /// and makes the ledger durable. Returns the last counts.
    pub async fn stop(mut self) -> WarehouseSummary {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        let finished = self.shared.inside().ledger.ticket();
        if let Err(error) = finished.durable().await {
            tracing::error!(%error, "the ledger is incomplete");
        }
        self.shared.summary()
    }
}

/// Handle that changes the behaviour of a running warehouse.
#[derive(Debug, Clone)]
pub struct WarehouseControl(Arc<Shared>);

impl WarehouseControl {
    /// Sets the behaviour for all calls and stock snapshots that begin from now on. A behaviour
    /// that makes the warehouse unreachable (`Behaviour::is_away`) also resets the open
    /// connections.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.0.behaviour.send_replace(Arc::new(behaviour));
    }

    /// Returns the name of the current behaviour.
    pub fn behaviour_name(&self) -> String {
        self.0.behaviour().name.clone()
    }
}

/// Returns the current time of day in unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
