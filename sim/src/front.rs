//! The shop front: customers who look, order and pay at a given rate, whatever the order management
//! does.
//!
//! The load is open: requests start when the timeline says, not when earlier answers allow, and a
//! latency counts from the intended start. So a pause of the server shows in full, with everybody
//! who would have come meanwhile. A request that could not start on time (the front itself was
//! late, or too many were in flight) is counted as late and still measured from its intended start.
//!
//! Promises: the timeline is a function of the seed; a payment follows its order whatever the
//! answer was, but never overtakes it; ids are never used twice on one data folder. What is
//! remembered of each order (content sent, acknowledged or not) is the audit's truth. Nothing is
//! retried: a customer who got no answer is an error counted.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::client::{Client, Endpoint, FailureKind};
use crate::warehouse::unix_ms;
use crate::wire::{Health, Payment};
use crate::workload::{Arrival, Arrivals, Request, Workload};
use crate::{Error, Result};

mod ids;
mod pacer;
mod record;
mod recorder;

pub use record::{OrderRecord, Outcome, RecordedOrder};
pub use recorder::{Latency, RouteReport};
use recorder::{Recorder, Sample, Target};

/// A request that starts later than this after its intended start counts as late: well above what a
/// timer and a busy scheduler cost, well below what a customer notices.
const LATE_AFTER: Duration = Duration::from_millis(10);
/// Arrivals handed over in advance of being taken; the pacer waits beyond it and catches up
/// afterwards.
const ARRIVALS_QUEUED: usize = 1024;
/// Between two looks at an order management that is not ready yet.
const READY_PAUSE: Duration = Duration::from_millis(50);

/// Everything about a front that can be set; `Default` is the original's.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontConfig {
    /// The order management.
    pub oms: Endpoint,
    /// The warehouse, for the audit after the run; the front itself never calls it.
    pub warehouse: Endpoint,
    /// `stats.csv` and `front.json` (the next free id) go here.
    pub data: PathBuf,
    /// Requests a second, payments not counted.
    pub rate: f64,
    /// For how long requests start; payments follow up to 4 s later.
    pub duration: Duration,
    /// The seed of everything random.
    pub seed: u64,
    /// How requests follow each other.
    pub arrivals: Arrivals,
    /// Products are drawn from 1 to this.
    pub products: u32,
    /// The most requests in flight at once. What is due beyond waits and counts as late. The
    /// default keeps a run with the order management in the same process below the usual limit of
    /// 1,024 open files.
    pub in_flight_max: usize,
    /// The longest time for one request.
    pub request_timeout: Duration,
    /// How long to wait at the start until the order management answers.
    pub ready_timeout: Duration,
    /// How long to wait, of that time, for it to have a first stock; then the run begins without.
    pub stock_timeout: Duration,
    /// Whether to write `stats.csv`.
    pub stats_csv: bool,
}

impl Default for FrontConfig {
    fn default() -> Self {
        Self {
            oms: std::net::SocketAddr::from(([127, 0, 0, 1], 9090)).into(),
            warehouse: std::net::SocketAddr::from(([127, 0, 0, 1], 9091)).into(),
            data: PathBuf::from("data"),
            rate: 1.0,
            duration: Duration::from_secs(30),
            seed: 1,
            arrivals: Arrivals::Fixed,
            products: 1000,
            in_flight_max: 384,
            request_timeout: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(30),
            stock_timeout: Duration::from_secs(20),
            stats_csv: true,
        }
    }
}

impl FrontConfig {
    fn check(&self) -> Result<()> {
        let wrong = |setting, problem: &str| {
            Err(Error::Config {
                setting,
                problem: problem.to_owned(),
            })
        };
        if !(self.rate > 0.0 && self.rate <= 1_000_000.0) {
            return wrong(
                "rate",
                "must be more than 0 and at most 1,000,000 requests a second",
            );
        }
        if self.duration.is_zero() || self.duration > Duration::from_secs(30 * 86_400) {
            return wrong("duration", "must be longer than nothing and at most 30 days");
        }
        if self.products < 2 {
            return wrong("products", "must be at least 2, for an order has two");
        }
        if self.in_flight_max == 0 || self.in_flight_max > Semaphore::MAX_PERMITS {
            return wrong("in_flight_max", "must be at least 1");
        }
        Ok(())
    }
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Until the order management answers and has stock.
    #[default]
    Waiting,
    /// Requests start.
    Running,
    /// No new ones; what is in flight is waited for.
    Finishing,
    /// All is answered.
    Done,
}

/// A run's progress, for a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Where the run is.
    pub phase: Phase,
    /// Since the first request's intended start.
    pub elapsed: Duration,
    /// For how long requests start.
    pub duration: Duration,
    /// Requests started.
    pub sent: u64,
    /// Requests answered or given up.
    pub answered: u64,
    /// Those with a status of 400 or more, or no answer.
    pub ko: u64,
    /// Those that could not start on time.
    pub late: u64,
    /// Orders acknowledged.
    pub orders: u64,
    /// Orders that no store has.
    pub rejected: u64,
    /// Payments acknowledged.
    pub payments: u64,
}

/// What a run was.
#[derive(Debug, Clone)]
pub struct FrontReport {
    /// Its seed.
    pub seed: u64,
    /// The rate asked for, payments not counted.
    pub rate: f64,
    /// When it began, unix milliseconds.
    pub started_at_ms: u64,
    /// From the first request's intended start to the last answer.
    pub elapsed: Duration,
    /// True if it was ended before its time.
    pub stopped_early: bool,
    /// Requests started, payments included.
    pub requests: u64,
    /// Those that could not start on time.
    pub late: u64,
    /// Payments that an early end kept from being sent.
    pub payments_not_sent: u64,
    /// Latencies and answers by route, in the order stats, order, payment.
    pub routes: Vec<RouteReport>,
    /// The requests' log; none if it was not wanted.
    pub stats_csv: Option<PathBuf>,
    /// Why the requests' log is not whole.
    pub stats_csv_problem: Option<String>,
    /// Every order sent and what became of it.
    pub record: OrderRecord,
}

/// What the front's tasks share.
struct Shop {
    client: Client,
    samples: Sender<Sample>,
    started: Instant,
    started_at_ms: u64,
}

/// One request on its way.
struct Task {
    arrival: Arrival,
    /// For a payment: resolves once the order is answered.
    after: Option<oneshot::Receiver<()>>,
    /// For an order: tells its payment.
    answered: Option<oneshot::Sender<()>>,
    _permit: OwnedSemaphorePermit,
}

/// Runs the front to its end, or until `stop` becomes true; then what is in flight is waited for,
/// and payments not yet due are left out. A dropped `stop` sender never stops it.
///
/// # Errors
/// When a setting makes no sense, the data folder cannot be written, or the order management does
/// not answer within `ready_timeout`. Once requests have started there is always a report.
pub async fn run_front(
    config: FrontConfig,
    progress: watch::Sender<Progress>,
    mut stop: watch::Receiver<bool>,
) -> Result<FrontReport> {
    config.check()?;
    std::fs::create_dir_all(&config.data).map_err(Error::io("create", &config.data))?;
    let client = Client::new(config.oms.clone(), config.request_timeout);
    progress.send_modify(|p| p.duration = config.duration);
    tokio::select! {
        ready = wait_ready(&client, &config) => ready?,
        () = stopped(&mut stop) => {}
    }
    let mut workload = Workload {
        seed: config.seed,
        rate: config.rate,
        duration: config.duration,
        arrivals: config.arrivals,
        first_id: 0,
        products: config.products,
    };
    // Reserved before the first is used: a run that is killed leaves a gap, never an id to be used
    // again.
    workload.first_id = ids::reserve(&config.data, workload.request_count())?;

    let sent = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let recorder = Recorder::start(&config, started, Arc::clone(&sent), progress.clone())?;
    let shop = Arc::new(Shop {
        client,
        samples: recorder.samples(),
        started,
        started_at_ms: unix_ms(),
    });
    let started_at_ms = shop.started_at_ms;
    progress.send_modify(|p| p.phase = Phase::Running);
    let stopped_early = dispatch(&config, &workload, &shop, &sent, &progress, &mut stop).await?;
    let elapsed = started.elapsed();
    drop(shop);
    let recorded = recorder.finish().await?;
    progress.send_modify(|p| p.phase = Phase::Done);
    Ok(FrontReport {
        seed: config.seed,
        rate: config.rate,
        started_at_ms,
        elapsed,
        stopped_early,
        requests: sent.load(Ordering::Relaxed),
        late: recorded.late,
        payments_not_sent: recorded.record.payments_not_sent(),
        routes: recorded.routes,
        stats_csv: config.stats_csv.then(|| config.data.join("stats.csv")),
        stats_csv_problem: recorded.stats_csv_problem,
        record: recorded.record,
    })
}

/// Waits until the order management answers, and has stock if it says so.
async fn wait_ready(client: &Client, config: &FrontConfig) -> Result<()> {
    let begun = Instant::now();
    loop {
        let problem = match client.get("/health").await {
            Ok(answer) if answer.status == 200 => {
                let stocked = serde_json::from_slice::<Health>(&answer.body)
                    .map_or(true, |health| health.stock_snapshots > 0);
                if stocked {
                    return Ok(());
                }
                if begun.elapsed() >= config.stock_timeout {
                    tracing::warn!("the order management has no stock yet; orders will be turned down");
                    return Ok(());
                }
                "it has no stock yet".to_owned()
            }
            // One that has no such route (the original had none) is there all the same.
            Ok(answer) if answer.status < 500 => return Ok(()),
            Ok(answer) => format!("{} {}", answer.status, answer.excerpt()),
            Err(failure) => failure.to_string(),
        };
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

/// Resolves when the run is to end early.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Starts every request of the timeline and waits until all are answered; true if the run was ended
/// early.
async fn dispatch(
    config: &FrontConfig,
    workload: &Workload,
    shop: &Arc<Shop>,
    sent: &AtomicU64,
    progress: &watch::Sender<Progress>,
    stop: &mut watch::Receiver<bool>,
) -> Result<bool> {
    let (queue, mut arrivals) = mpsc::channel(ARRIVALS_QUEUED);
    let pacer = pacer::Pacer::start(workload.schedule(), shop.started, queue)?;
    let in_flight = Arc::new(Semaphore::new(config.in_flight_max));
    let mut unpaid: HashMap<u64, oneshot::Receiver<()>> = HashMap::new();
    let mut stopped_early = false;
    loop {
        // The permit first: an arrival once taken is always sent.
        let next = async {
            let permit = Arc::clone(&in_flight).acquire_owned().await;
            (permit, arrivals.recv().await)
        };
        let (permit, arrival) = tokio::select! {
            next = next => next,
            () = stopped(stop) => {
                stopped_early = true;
                break;
            }
        };
        let (Ok(permit), Some(arrival)) = (permit, arrival) else {
            break;
        };
        if arrival.at >= config.duration {
            progress
                .send_if_modified(|p| std::mem::replace(&mut p.phase, Phase::Finishing) != Phase::Finishing);
        }
        let mut task = Task {
            arrival,
            after: None,
            answered: None,
            _permit: permit,
        };
        match arrival.request {
            Request::Order(order) => {
                let (answered, after) = oneshot::channel();
                unpaid.insert(order.id, after);
                task.answered = Some(answered);
            }
            Request::Payment { order, .. } => task.after = unpaid.remove(&order),
            Request::Stats { .. } => {}
        }
        sent.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(perform(Arc::clone(shop), task));
    }
    progress.send_modify(|p| p.phase = Phase::Finishing);
    drop(arrivals);
    pacer.stop().await;
    // Every request has a deadline, so all permits come back. Closed only after, so this cannot
    // fail.
    let all = in_flight.acquire_many(config.in_flight_max as u32).await;
    drop(all);
    Ok(stopped_early)
}

/// Sends one request and hands its sample on.
async fn perform(shop: Arc<Shop>, task: Task) {
    let Task {
        arrival,
        after,
        answered,
        _permit,
    } = task;
    let mut intended = shop.started + arrival.at;
    let mut at_ms = shop.started_at_ms + arrival.at.as_millis() as u64;
    if let Some(mut after) = after
        && matches!(after.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    {
        // A customer pays what the shop has answered: from then on it is due.
        let _ = after.await;
        intended = intended.max(Instant::now());
        at_ms = at_ms.max(unix_ms());
    }
    let late = intended.elapsed() > LATE_AFTER;
    let (target, answer) = match arrival.request {
        Request::Stats { id, product } => {
            let path = format!("/aggregate-stats/{product}");
            (Target::Stats { id, product }, shop.client.get(&path).await)
        }
        Request::Order(order) => (
            Target::Order(order),
            shop.client.post_json("/order", to_json(&order.to_wire())).await,
        ),
        Request::Payment {
            order,
            transaction_id,
        } => {
            let path = format!("/order/{order}/payment-callback");
            let body = Payment {
                transaction_id: transaction_id.into(),
            };
            (
                Target::Payment { order },
                shop.client.post_json(&path, to_json(&body)).await,
            )
        }
    };
    let took = intended.elapsed();
    let outcome = match answer {
        Ok(answer) => Outcome::Status(answer.status),
        Err(failure) => {
            tracing::debug!(?target, %failure, "no answer");
            match failure.kind {
                FailureKind::Refused => Outcome::Refused,
                FailureKind::Closed => Outcome::Closed,
                FailureKind::TimedOut => Outcome::TimedOut,
                FailureKind::Other => Outcome::Failed,
            }
        }
    };
    let sample = Sample {
        target,
        at_ms,
        took,
        late,
        outcome,
    };
    // The recorder lives as long as the shop.
    let _ = shop.samples.send(sample);
    if let Some(answered) = answered {
        let _ = answered.send(());
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Bytes {
    // Numbers, text and lists, into memory: this has no way to fail.
    serde_json::to_vec(value).expect("a request is plain data").into()
}
