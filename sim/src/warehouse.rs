//! The warehouse: the other side of the order management's outbox, with real stock.
//!
//! It is a server as a real one would be (`POST /order/new`, `POST /order/process_delivery`), slow
//! and now and then unreliable on purpose, and it feeds the order management: the whole stock at
//! the start and every 15 s, a file of sales every 10 s. It checks its real stock at each delivery
//! and counts every attempt to take what is not there.
//!
//! Promises: what it has confirmed is in its ledger, which survives a kill or a power cut, and a
//! warehouse started again on the same folder goes on from there. A snapshot says which deliveries
//! it counts (`X-Stock-As-Of`).
//!
//! It follows the contract for warehouses, `docs/warehouse.md` of the project.
//!
//! | also served | |
//! | --- | --- |
//! | `GET /summary` | counts |
//! | `GET /ledger`, `/restocks`, `/refusals` `?limit=&cursor=` | what was delivered, came in, was refused |

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Endpoint;
use crate::wire::WarehouseSummary;
use crate::{Error, Result};

mod books;
mod feeds;
pub(crate) mod files;
mod ledger;
mod routes;
mod server;
pub(crate) mod stock;

use books::{Books, Entry, LEDGER_VERSION};
use ledger::{Ledger, Ticket};
pub use stock::{Stock, StockCsv, StockShape};

/// A delay drawn from equal steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// The shortest.
    pub min: Duration,
    /// From one to the next.
    pub step: Duration,
    /// How many there are, the shortest included; at least 1.
    pub steps: u32,
}

/// Everything about a warehouse that can be set; `Default` is the original's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarehouseConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The order management.
    pub oms: Endpoint,
    /// Stat files go here, the ledger to `warehouse/ledger.jsonl` below it.
    pub data: PathBuf,
    /// The seed of everything random.
    pub seed: u64,
    /// How many products and stores a new ledger begins with; an existing one knows its own.
    pub shape: StockShape,
    /// From one stock snapshot to the next.
    pub snapshot_every: Duration,
    /// From one stat file to the next; the first comes after as long.
    pub stat_file_every: Duration,
    /// Lines of a stat file: products 1 to this.
    pub stat_file_lines: u32,
    /// How long an announced order takes.
    pub announce_after: Delay,
    /// How long a delivery takes.
    pub delivery_after: Duration,
    /// One delivery in so many is answered 504, half of these after it was made; 0 for none.
    pub timeout_one_in: u32,
    /// Whether what was sold comes back, bit by bit.
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
            announce_after: Delay {
                min: Duration::from_secs(2),
                step: Duration::from_millis(250),
                steps: 9,
            },
            delivery_after: Duration::from_millis(200),
            timeout_one_in: 15,
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
                "1 product and store at least, 100,000,000 quantities at most",
            );
        }
        if self.snapshot_every.is_zero() {
            return wrong("snapshot_every", "must be longer than nothing");
        }
        if self.stat_file_every.is_zero() {
            return wrong("stat_file_every", "must be longer than nothing");
        }
        if self.announce_after.steps == 0 {
            return wrong("announce_after", "must have at least one step");
        }
        Ok(())
    }
}

/// What may only change together.
#[derive(Debug)]
struct Inside {
    books: Books,
    ledger: Ledger,
}

impl Inside {
    /// Books an entry that these books have just decided on.
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
    snapshots_sent: AtomicU64,
    stat_files_written: AtomicU64,
}

/// What the warehouse's tasks share.
#[derive(Debug)]
struct House {
    config: WarehouseConfig,
    inside: Mutex<Inside>,
    counters: Counters,
    /// Names of the calls that are being carried out.
    in_flight: Mutex<HashSet<String>>,
    stopping: watch::Receiver<bool>,
    stocked: watch::Sender<bool>,
}

impl House {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        // An entry is applied whole or not at all, so the books are sound even after a panic
        // elsewhere.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the warehouse is told to stop.
    async fn stopped(&self) {
        // An error means that the handle is gone: that is a stop, too.
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }

    fn summary(&self) -> WarehouseSummary {
        let inside = self.inside();
        let (announced, delivered, refused) = inside.books.counts();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shape = inside.books.stock().shape();
        WarehouseSummary {
            announced,
            delivered,
            refused,
            gateway_timeouts: count(&self.counters.gateway_timeouts),
            duplicates_after_answer: count(&self.counters.duplicates_after_answer),
            snapshots_sent: count(&self.counters.snapshots_sent),
            stat_files_written: count(&self.counters.stat_files_written),
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
    house: Arc<House>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Warehouse {
    /// Opens the ledger, listens, and begins to feed the order management, trying until it is up.
    ///
    /// # Errors
    /// When a setting makes no sense, the data folder cannot be written or is in use, the ledger is
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
        if books.seed() != config.seed {
            tracing::info!(
                ledger = books.seed(),
                given = config.seed,
                "the stock goes on as this data folder's ledger has it, begun with another seed"
            );
        }
        let (stop, stopping) = watch::channel(false);
        let house = Arc::new(House {
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
            routes::router(Arc::clone(&house)),
            Arc::clone(&house),
        ));
        tasks.spawn(feeds::send_snapshots(Arc::clone(&house)));
        tasks.spawn(feeds::write_stat_files(Arc::clone(&house)));
        Ok(Self {
            address,
            house,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its counts now.
    pub fn summary(&self) -> WarehouseSummary {
        self.house.summary()
    }

    /// Returns once the order management has taken a first snapshot of the stock.
    pub async fn stocked(&self) {
        // The sender lives in the house, which this handle holds.
        let _ = self.house.stocked.subscribe().wait_for(|stocked| *stocked).await;
    }

    /// Stops: no new calls, calls in flight are answered (503 where they still wait), the ledger is
    /// finished.
    pub async fn stop(mut self) -> WarehouseSummary {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        let finished = self.house.inside().ledger.ticket();
        if let Err(error) = finished.durable().await {
            tracing::error!(%error, "the ledger is not whole");
        }
        self.house.summary()
    }
}

/// The wall clock, unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
