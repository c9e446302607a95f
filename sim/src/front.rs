//! The shop front: customers who look, order, pay and cancel at given moments.
//!
//! Invariants:
//! - The load is open: requests start at the moments of the timeline, not when earlier answers
//!   allow it. Latencies count from the intended start: a pause of the server shows in full.
//! - A request that starts late is counted and still measured from its intended start. One that is
//!   later than `drop_after` is dropped and counted, so that a stalled server cannot pile requests
//!   up without bound.
//! - A payment or cancellation never overtakes its order, except for payments planned ahead of it.
//! - Ids are never used twice on one data folder.
//! - The record of orders (content, acknowledged or not) is the audit's truth. Nothing is retried,
//!   except that a routed request goes to another node if its owner is away (`owners`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use crate::client::{Client, Endpoint};
use crate::latency::{Latency, LatencyHistogram};
use crate::telemetry::{Phase, Route, Telemetry};
use crate::warehouse::unix_ms;
use crate::wire::{Health, WarehouseSummary};
use crate::workload::{Customers, Load, Workload};
use crate::{Error, Result};

mod dispatch;
mod ids;
mod owners;
mod pacer;
mod record;
mod recorder;
mod stats_csv;

use dispatch::{Shop, Way, dispatch};
use owners::Owners;
pub use owners::RoutingCounts;
pub use record::{OrderRecord, Outcome, RecordedOrder};
use recorder::Recorder;
pub use recorder::RouteReport;

/// Largest 99th percentile of the schedule lag of a run that measures the server.
pub const LAG_P99_MAX: Duration = Duration::from_millis(5);
/// Pause between two polls of an order management that is not ready yet.
const READY_PAUSE: Duration = Duration::from_millis(50);

/// Settings of a front; `Default` is the original's.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontConfig {
    /// The order management.
    pub oms: Endpoint,
    /// The warehouse, for the audit after the run. The front itself never calls it.
    pub warehouse: Endpoint,
    /// Folder of `stats.csv` and of `front.json` (the next free id).
    pub data: PathBuf,
    /// Folder of this run's records; `None` for a run without.
    pub run_folder: Option<PathBuf>,
    /// Seed of everything random.
    pub seed: u64,
    /// Moments of the requests.
    pub load: Load,
    /// Behaviour of the customers.
    pub customers: Customers,
    /// Time from the start that is left out of the latencies.
    pub warm_up: Duration,
    /// Most requests in flight. Requests beyond it wait and count as late. The default keeps a run
    /// with the order management in the same process below the usual limit of 1,024 open files.
    pub in_flight_max: usize,
    /// Requests that are later than this are dropped.
    pub drop_after: Duration,
    /// Longest time of one request.
    pub request_timeout: Duration,
    /// Longest wait for an order management that does not answer.
    pub ready_timeout: Duration,
    /// Longest wait, within `ready_timeout`, for a first stock. The run then begins without.
    pub stock_timeout: Duration,
    /// `true` to write `stats.csv`.
    pub stats_csv: bool,
    /// `true` to send each request to the node that owns its order, instead of sending all requests
    /// to `oms`.
    pub route: bool,
}

impl Default for FrontConfig {
    fn default() -> Self {
        Self {
            oms: std::net::SocketAddr::from(([127, 0, 0, 1], 9090)).into(),
            warehouse: std::net::SocketAddr::from(([127, 0, 0, 1], 9091)).into(),
            data: PathBuf::from("data"),
            run_folder: None,
            seed: 1,
            load: Load::steady(1.0, Duration::from_secs(30), crate::workload::Arrivals::Fixed),
            customers: Customers::default(),
            warm_up: Duration::ZERO,
            in_flight_max: 384,
            drop_after: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(30),
            stock_timeout: Duration::from_secs(20),
            stats_csv: true,
            route: false,
        }
    }
}

impl FrontConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] that names the first setting that cannot be used.
    pub fn check(&self) -> Result<()> {
        let wrong = |(setting, problem)| Err(Error::Config { setting, problem });
        if let Some(fault) = self.load.fault().or_else(|| self.customers.fault()) {
            return wrong(fault);
        }
        if self.in_flight_max == 0 || self.in_flight_max > Semaphore::MAX_PERMITS {
            return wrong(("in_flight_max", "must be at least 1".to_owned()));
        }
        if self.warm_up >= self.load.duration() {
            let reason = "must be shorter than the run, because its requests are not measured";
            return wrong(("warm_up", reason.to_owned()));
        }
        Ok(())
    }
}

/// Results of a run.
#[derive(Debug, Clone)]
pub struct FrontReport {
    /// Seed of all random choices.
    pub seed: u64,
    /// Start of the first request, unix milliseconds.
    pub started_at_ms: u64,
    /// Length of the sending window that was asked for.
    pub duration: Duration,
    /// Length of the sending window; shorter than `duration` after an early end.
    pub window: Duration,
    /// Time from the end of the window to the last answer.
    pub drain: Duration,
    /// `true` if the run was stopped before its end.
    pub stopped_early: bool,
    /// Requests started, payments and cancellations included.
    pub requests: u64,
    /// Requests with an intended start in the window.
    pub requests_in_window: u64,
    /// Requests that started late.
    pub late: u64,
    /// Requests that were never started because they were too late.
    pub dropped: u64,
    /// Schedule lag: actual start minus intended start.
    pub lag: Latency,
    /// Payments that an early end, or a dropped request, kept from being sent.
    pub payments_not_sent: u64,
    /// The routes, as in [`Route::ALL`].
    pub routes: Vec<RouteReport>,
    /// Latencies of the routes without the warm-up, as in [`Route::ALL`].
    pub histograms: [LatencyHistogram; Route::COUNT],
    /// Log of requests; `None` if none was wanted.
    pub stats_csv: Option<PathBuf>,
    /// Reason for which the log of requests or the series is incomplete.
    pub log_problem: Option<String>,
    /// Every order sent, with its outcome.
    pub record: OrderRecord,
    /// Counts of a run that sent requests to the owners of their orders; `None` otherwise.
    pub routing: Option<RoutingCounts>,
}

impl FrontReport {
    /// Returns the requests per second of the sending window.
    pub fn rate(&self) -> f64 {
        self.requests_in_window as f64 / self.window.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Returns `true` if the schedule was kept well enough for the latencies to be the server's.
    pub fn is_valid(&self) -> bool {
        u128::from(self.lag.p99_us) <= LAG_P99_MAX.as_micros()
    }

    /// Returns the results of a route.
    pub fn route(&self, route: Route) -> &RouteReport {
        &self.routes[route.index()]
    }
}

/// Runs the front to its end, or until `stop` becomes true. Requests in flight are then waited for,
/// and payments that are not due yet are left out. A dropped `stop` sender never stops the run.
///
/// # Errors
/// If a setting cannot be used, the data folder cannot be written, the order management does not
/// answer within `ready_timeout`, or `stop` comes before the first request. Once requests have
/// started there is always a report.
pub async fn run_front(
    config: FrontConfig,
    telemetry: &Telemetry,
    mut stop: watch::Receiver<bool>,
) -> Result<FrontReport> {
    config.check()?;
    std::fs::create_dir_all(&config.data).map_err(Error::io("create", &config.data))?;
    let client = Client::new(config.oms.clone(), config.request_timeout);
    let duration = config.load.duration();
    telemetry.update(|state| {
        state.sending_window = duration;
        state.seed = config.seed;
    });
    let has_stock = wait_until_ready(&config, stop.clone()).await?;
    let way = match config.route {
        true => Way::Owners(Owners::read(client).await?),
        false => Way::Entry(Box::new(client)),
    };
    let mut workload = Workload {
        seed: config.seed,
        first_id: 0,
        load: config.load.clone(),
        customers: config.customers.clone(),
    };
    // Reserved before the first is used: a run that is killed leaves a gap, never an id to be used
    // again.
    workload.first_id = ids::reserve(&config.data, workload.request_count())?;

    let sent = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let recorder = Recorder::start(&config, started, Arc::clone(&sent), telemetry.clone())?;
    let owners = match &way {
        Way::Entry(_) => None,
        Way::Owners(owners) => Some(Arc::clone(owners)),
    };
    let shop = Arc::new(Shop {
        way,
        samples: recorder.samples(),
        sent: Arc::clone(&sent),
        started,
        started_at_ms: unix_ms(),
    });
    let started_at_ms = shop.started_at_ms;
    telemetry.update(|state| {
        state.phase = Phase::Sending;
        state.started_at_ms = started_at_ms;
    });
    let ended_early = dispatch(&config, &workload, &shop, telemetry, &mut stop).await?;
    let elapsed = started.elapsed();
    drop(shop);
    let recorded = recorder.finish().await?;
    let window = ended_early.unwrap_or(duration).min(duration);
    Ok(FrontReport {
        seed: config.seed,
        started_at_ms,
        duration,
        window,
        drain: elapsed.saturating_sub(window),
        stopped_early: ended_early.is_some(),
        requests: sent.load(Ordering::Relaxed),
        requests_in_window: recorded.in_window,
        late: recorded.late,
        dropped: recorded.dropped,
        lag: recorded.lag,
        payments_not_sent: recorded.record.payments_not_sent(),
        routes: recorded.routes,
        histograms: recorded.histograms,
        stats_csv: recorded.stats_csv,
        log_problem: recorded.log_problem,
        record: match has_stock {
            true => recorded.record,
            false => recorded.record.without_judged_stores(),
        },
        routing: owners.map(|owners| owners.counts()),
    })
}

/// Waits until the order management answers and has stock. Returns `false` if it still lacks some
/// of the warehouse's stores after `stock_timeout`.
///
/// # Errors
/// [`Error::Unreachable`] if it does not answer within `ready_timeout`, [`Error::Interrupted`]
/// when `stop` becomes true.
pub async fn wait_until_ready(config: &FrontConfig, mut stop: watch::Receiver<bool>) -> Result<bool> {
    let client = Client::new(config.oms.clone(), config.request_timeout);
    tokio::select! {
        ready = wait_ready(&client, config) => ready,
        () = stopped(&mut stop) => Err(Error::Interrupted {
            address: config.oms.to_string(),
        }),
    }
}

async fn wait_ready(client: &Client, config: &FrontConfig) -> Result<bool> {
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        let problem = match client.get("/health").await {
            Ok(answer) if answer.status == 200 => {
                let stocked = match serde_json::from_slice::<Health>(&answer.body) {
                    // Several volumes take the first snapshot one after the other.
                    Ok(health) => health.stock_snapshots > 0 && health.stores >= stores_of(config).await,
                    Err(_) => true,
                };
                if stocked {
                    return Ok(true);
                }
                if begun.elapsed() >= config.stock_timeout {
                    tracing::warn!(
                        "the stock of some stores is missing; orders will be rejected, and their stores are not judged"
                    );
                    return Ok(false);
                }
                "it has no stock yet".to_owned()
            }
            // A server without this route (as the original) is there all the same.
            Ok(answer) if answer.status < 500 => return Ok(true),
            Ok(answer) => format!("{} {}", answer.status, answer.excerpt()),
            Err(failure) => failure.to_string(),
        };
        if !is_told && begun.elapsed() >= Duration::from_secs(1) {
            is_told = true;
            tracing::info!("waiting for {}: {problem}", client.endpoint());
        }
        if begun.elapsed() >= config.ready_timeout {
            return Err(Error::Unreachable {
                who: "the order management",
                address: client.endpoint().to_string(),
                problem,
            });
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}

/// Returns the number of the warehouse's stores, or 0 if it does not tell.
async fn stores_of(config: &FrontConfig) -> u64 {
    let client = Client::new(config.warehouse.clone(), config.request_timeout);
    let summary = client
        .get_json::<WarehouseSummary>("the warehouse", "/summary")
        .await;
    summary.map_or(0, |summary| summary.stores.into())
}

/// Resolves when the run is to end early.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
