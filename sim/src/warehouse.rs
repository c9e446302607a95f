//! The warehouse: the other side of the order management's outbox, with real stock.
//!
//! It follows the contract for warehouses, `docs/warehouse.md` of the project. It answers slowly
//! and sometimes badly on purpose ([`Behaviour`]), sends its stock every 15 s, and writes a file of
//! sales every 10 s, the first of each at its start.
//!
//! Invariants:
//! - A delivery of units that are not in stock is refused and counted.
//! - Confirmed calls are in the ledger, which survives a kill or a power cut. A warehouse started
//!   again on the same folder goes on from there.
//! - A snapshot names the last delivery that it counts (`X-Stock-As-Of`).
//!
//! | also served | |
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
pub use stock::{Stock, StockCsv, StockShape};

/// Settings of a warehouse; `Default` is the original's.
#[derive(Debug, Clone, PartialEq)]
pub struct WarehouseConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The order management.
    pub oms: Endpoint,
    /// Folder of the statistics files, and of the ledger `warehouse/ledger.jsonl` below it.
    pub data: PathBuf,
    /// Seed of everything random.
    pub seed: u64,
    /// Numbers of products and stores in a new ledger. An existing ledger keeps its own numbers.
    pub shape: StockShape,
    /// Time from one stock snapshot to the next.
    pub snapshot_every: Duration,
    /// Time from one statistics file to the next. The first one is written at the start.
    pub stat_file_every: Duration,
    /// Lines of a statistics file: products 1 to this.
    pub stat_file_lines: u32,
    /// Behaviour at the start.
    pub behaviour: Behaviour,
    /// `true` if sold units come back into stock, bit by bit.
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
        if self.shape.products == 0 || self.shape.stores == 0 || self.shape.cells() > 100_000_000 {
            return wrong(
                "shape",
                "must be at least 1 product and 1 store, and at most 100,000,000 quantities",
            );
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

/// Books and ledger, which only change together.
#[derive(Debug)]
struct Inside {
    books: Books,
    ledger: Ledger,
}

impl Inside {
    /// Applies and writes an entry that these books have just decided on.
    fn enter(&mut self, entry: &Entry) -> Ticket {
        // Decided from these very books, under the same lock.
        self.books.apply(entry).expect("a decision fits its own books");
        self.ledger.append(entry)
    }
}

/// Counts since the start of this process.
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
    /// Names of the calls that are being carried out.
    in_flight: Mutex<HashSet<String>>,
    stopping: watch::Receiver<bool>,
    stocked: watch::Sender<bool>,
}

impl Shared {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        // An entry is applied whole or not at all, so that the books are sound even after a panic
        // elsewhere.
        self.inside.lock()
    }

    fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&self.behaviour.borrow())
    }

    /// Returns once the warehouse is to stop.
    async fn stopped(&self) {
        // An error means that the handle is gone, which is a stop as well.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    /// Returns once the warehouse goes away.
    async fn went_away(&self) {
        // The sender lives in this struct.
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
    /// Opens the ledger, listens, and begins to send stock, trying until the order management is
    /// up.
    ///
    /// # Errors
    /// If a setting cannot be used, the data folder cannot be written or is in use, the ledger is
    /// malformed, or the port is taken.
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

    /// Returns the address that the warehouse serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the counts of this moment.
    pub fn summary(&self) -> WarehouseSummary {
        self.shared.summary()
    }

    /// Returns a handle that changes the behaviour; it outlives the warehouse without effect.
    pub fn control(&self) -> WarehouseControl {
        WarehouseControl(Arc::clone(&self.shared))
    }

    /// Returns once the order management has taken a first snapshot of the stock.
    pub async fn stocked(&self) {
        // The sender lives in the shared state, which this handle holds.
        let _ = self.shared.stocked.subscribe().wait_for(|stocked| *stocked).await;
    }

    /// Stops: accepts no new calls, answers 503 to those that still wait, and finishes the ledger.
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

/// Changes the behaviour of a warehouse while it runs.
#[derive(Debug, Clone)]
pub struct WarehouseControl(Arc<Shared>);

impl WarehouseControl {
    /// Sets the behaviour of all calls that come from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.0.behaviour.send_replace(Arc::new(behaviour));
    }

    /// Returns the name of the behaviour in force.
    pub fn behaviour_name(&self) -> String {
        self.0.behaviour().name.clone()
    }
}

/// Returns the wall clock in unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
