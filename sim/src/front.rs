//! The shop front (the front): simulates customers who read statistics, order, pay and cancel at
//! planned moments.
//!
//! Invariants:
//! - The load is open: the intended start of each request is planned before the run and does not
//!   depend on answers. Latencies are measured from the intended start, so a pause of the server
//!   shows in full. Only a payment or cancellation that waits for the end of its order's request
//!   gets this end as its intended start.
//! - A late request is counted, and its latency is still measured from its intended start. A
//!   request with a lag above `drop_after` is dropped and counted, and so are the requests that
//!   wait for it. So a stalled server does not cause an ever longer backlog.
//! - A payment or cancellation is sent after the request that places its order has ended. The
//!   exceptions are payments that are planned before their order, and replays, which send all
//!   requests at the recorded times.
//! - Two runs with one data folder never use the same request id.
//! - For the audit, the front records the content of each order and the outcomes of its requests.
//!   No request is retried, except that with the setting `route` a request is sent once more, to
//!   another node, if its owner is unreachable (`owners`).

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
mod order_book;
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

/// Largest 99th percentile of the lag of a valid run. Above this limit, too many requests started
/// late, for example because the machine of the front was busy. Then the latencies are not those of
/// the server.
pub const LAG_P99_MAX: Duration = Duration::from_millis(5);
/// Maximum of [`FrontConfig::in_flight_max`]: the end of a run acquires all permits at once, and a
/// call to acquire permits takes a number of 32 bits.
const IN_FLIGHT_MAX: usize = if Semaphore::MAX_PERMITS < u32::MAX as usize {
    Semaphore::MAX_PERMITS
} else {
    u32::MAX as usize
};
/// Pause between two polls of an order management that is not ready yet.
const READY_PAUSE: Duration = Duration::from_millis(50);

/// Settings of a front. `Default` gives the settings of the shop front of the original system, from
/// which this project grew.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontConfig {
    /// Address of the order management.
    pub oms: Endpoint,
    /// Address of the warehouse, for the audit after the run. The front itself only reads the
    /// number of stores from it.
    pub warehouse: Endpoint,
    /// Folder of `stats.csv`, and of `front.json` with the next free request id.
    pub data: PathBuf,
    /// The run folder of this run; `None` for a run without one.
    pub run_folder: Option<PathBuf>,
    /// Seed of all random choices.
    pub seed: u64,
    /// Rate, shape and length of the load.
    pub load: Load,
    /// Behaviour of the customers.
    pub customers: Customers,
    /// Length of the warm-up at the start of the run. Requests with an intended start in the
    /// warm-up are left out of the latencies and lags of the whole run.
    pub warm_up: Duration,
    /// Maximum number of requests in flight, including payments and cancellations that wait for
    /// their order. Further requests wait and can become late. If the order management runs in the
    /// same process, each request takes two sockets of the process. With the default, the sockets
    /// stay below the usual limit of 1,024 open files.
    pub in_flight_max: usize,
    /// Largest lag of a request. A request with a larger lag is dropped.
    pub drop_after: Duration,
    /// Maximum time of one call. With `route`, a request can take two calls, and between them the
    /// time to read the routes again.
    pub request_timeout: Duration,
    /// Maximum wait, before the run, until the order management is ready. Afterwards the run fails.
    pub ready_timeout: Duration,
    /// Maximum wait, before the run, for the stock of all stores in the order management.
    /// Afterwards the run begins without the missing stock. The value must not exceed
    /// `ready_timeout`, after which the run fails.
    pub stock_timeout: Duration,
    /// `true` to write the log of requests, `stats.csv`.
    pub stats_csv: bool,
    /// `true` to send each request to the node that owns its order or the statistics. `false` to
    /// send all requests to `oms`.
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
    /// Checks that the settings can be used.
    ///
    /// # Errors
    /// [`Error::Config`] that names the first setting that cannot be used.
    pub fn check(&self) -> Result<()> {
        let wrong = |(setting, problem)| Err(Error::Config { setting, problem });
        if let Some(fault) = self.load.fault().or_else(|| self.customers.fault()) {
            return wrong(fault);
        }
        if self.in_flight_max == 0 || self.in_flight_max > IN_FLIGHT_MAX {
            let reason = format!("must be from 1 to {IN_FLIGHT_MAX}");
            return wrong(("in_flight_max", reason));
        }
        if self.warm_up >= self.load.duration() {
            let reason = "must be shorter than the run, because its requests are not measured";
            return wrong(("warm_up", reason.to_owned()));
        }
        if self.stock_timeout > self.ready_timeout {
            let reason = "must not exceed ready_timeout, after which the run fails";
            return wrong(("stock_timeout", reason.to_owned()));
        }
        Ok(())
    }
}

/// Results of a run.
#[derive(Debug, Clone)]
pub struct FrontReport {
    /// Seed of all random choices.
    pub seed: u64,
    /// Start of the sending window, unix milliseconds.
    pub started_at_ms: u64,
    /// Configured length of the sending window, the time in which orders and statistics requests
    /// start.
    pub duration: Duration,
    /// Actual length of the sending window; shorter than `duration` if the run was stopped in it.
    pub window: Duration,
    /// Time from the end of the sending window to the end of the last request; 0 if the last
    /// request ended in the window.
    pub drain: Duration,
    /// `true` if the run was stopped before its last planned request.
    pub stopped_early: bool,
    /// Number of requests started, payments and cancellations included, and dropped requests
    /// excluded.
    pub requests: u64,
    /// Number of requests that were sent and have an intended start in the sending window.
    pub requests_in_window: u64,
    /// Number of requests that started more than 10 ms after their intended start.
    pub late: u64,
    /// Number of requests that were dropped because their lag, or the lag of the order for which
    /// they waited, exceeded `drop_after`.
    pub dropped: u64,
    /// Lag of the sent requests without the warm-up: actual start minus intended start.
    pub lag: Latency,
    /// Number of orders that were sent without any of their planned payments, because the run was
    /// stopped early or requests were dropped.
    pub payments_not_sent: u64,
    /// Results of each route, in the order of [`Route::ALL`].
    pub routes: Vec<RouteReport>,
    /// Latencies of each route without the warm-up, in the order of [`Route::ALL`].
    pub histograms: [LatencyHistogram; Route::COUNT],
    /// Path of the log of requests; `None` if the settings wanted no log.
    pub stats_csv: Option<PathBuf>,
    /// Reason for which `stats.csv` or `series.csv` is incomplete; `None` if both are complete.
    pub log_problem: Option<String>,
    /// The orders that the front sent or dropped, with their outcomes.
    pub record: OrderRecord,
    /// Counts of requests that were sent to owners, forwarded or sent again; `None` if the setting
    /// `route` is `false`.
    pub routing: Option<RoutingCounts>,
}

impl FrontReport {
    /// Returns the number of requests per second of the sending window.
    pub fn rate(&self) -> f64 {
        self.requests_in_window as f64 / self.window.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Returns `true` if the 99th percentile of the lag was at most [`LAG_P99_MAX`], so that the
    /// latencies are those of the server.
    pub fn is_valid(&self) -> bool {
        u128::from(self.lag.p99_us) <= LAG_P99_MAX.as_micros()
    }

    /// Returns the results of a route.
    pub fn route(&self, route: Route) -> &RouteReport {
        &self.routes[route.index()]
    }
}

/// Runs the front to its end, or until `stop` becomes `true`. After a stop, the requests in flight
/// are completed, including payments and cancellations that wait for their order. The other planned
/// requests are never sent. A dropped `stop` sender never stops the run.
///
/// # Errors
/// If a setting cannot be used, a file or folder cannot be read or written, a thread cannot be
/// started, the order management is not ready within `ready_timeout`, its ring cannot be read (with
/// `route`), or `stop` becomes `true` while the front waits until the order management is ready.
/// Once requests have started, a report is returned, unless the recorder's thread panics.
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
    // All ids of the run are reserved durably before the first request. So no later run uses one of
    // these ids again, even if this run is killed.
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

/// Waits until the order management answers and has the stock of all stores of the warehouse. An
/// order management without `/health` only has to answer with a status below 500. If the warehouse
/// does not answer, one applied stock snapshot is enough. Returns `false` if the stock of some
/// stores is still missing after `stock_timeout`, and `true` if nothing is missing.
///
/// # Errors
/// [`Error::Unreachable`] if the order management is not ready within `ready_timeout`.
/// [`Error::Interrupted`] if `stop` becomes `true`.
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
                    // The server is no node of ours, so it is treated as one without `/health`.
                    Ok(health) if health.node.is_empty() => true,
                    // Several volumes apply the first snapshot one after the other. So the stock is
                    // complete only when all stores have stock.
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
            // A server without `/health` is ready if it answers with any status below 500. The
            // command `imt sim front` then refuses it.
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

/// Returns the number of the warehouse's stores, or 0 if it cannot be read.
async fn stores_of(config: &FrontConfig) -> u64 {
    let client = Client::new(config.warehouse.clone(), config.request_timeout);
    let summary = client
        .get_json::<WarehouseSummary>("the warehouse", "/summary")
        .await;
    summary.map_or(0, |summary| summary.stores.into())
}

/// Waits until `stop` becomes `true`. Never returns if the sender of `stop` is dropped before.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_stock_ends_at_the_latest_with_the_wait_for_the_server() {
        let config = |stock_s| FrontConfig {
            ready_timeout: Duration::from_secs(30),
            stock_timeout: Duration::from_secs(stock_s),
            ..FrontConfig::default()
        };
        config(30).check().unwrap();
        let error = config(31).check().unwrap_err().to_string();
        assert!(error.contains("stock_timeout: must not exceed"), "{error}");
    }

    #[test]
    fn the_number_of_requests_in_flight_is_at_most_what_one_acquisition_can_take() {
        let config = |in_flight_max| FrontConfig {
            in_flight_max,
            ..FrontConfig::default()
        };
        config(1).check().unwrap();
        config(IN_FLIGHT_MAX).check().unwrap();
        for wrong in [0, IN_FLIGHT_MAX + 1] {
            let error = config(wrong).check().unwrap_err().to_string();
            assert!(
                error.contains("in_flight_max: must be from 1 to 4294967295"),
                "{error}"
            );
        }
    }
}
