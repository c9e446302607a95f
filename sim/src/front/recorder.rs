//! Off the hot path: latencies, counts, the record of orders, and `stats.csv`.
//!
//! Sending a request costs its task one push into a channel; all the rest happens in a thread of
//! its own, in batches (so that a push hardly ever wakes it). The channel has no bound of its own:
//! it holds at most what the front is answered while one batch is written.
//!
//! `stats.csv`, in the original's format:
//! `REQUEST_ID,TIMESTAMP_MS,PATH,DURATION_MS,ok|ko,STATUS_OR_REASON`, where the time stamp is the
//! intended start and the duration counts from it. It tells of the latest run only.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::watch;

use super::{FrontConfig, OrderRecord, Outcome, Progress, RecordedOrder};
use crate::workload::PlannedOrder;
use crate::{Error, Result};

/// How long samples gather before they are worked through.
const BATCH: Duration = Duration::from_millis(20);
/// At least this often the progress is published.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// A payment's request id in `stats.csv` is its order's plus this.
const PAYMENT_ID: u64 = 900_000_000;
/// Latencies are kept in microseconds up to this (ten minutes), three digits exact.
const LATENCY_MAX_US: u64 = 600_000_000;

/// What a sample is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Stats { id: u64, product: u32 },
    Order(PlannedOrder),
    Payment { order: u64 },
}

/// One request that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) target: Target,
    /// The intended start, unix milliseconds.
    pub(super) at_ms: u64,
    /// From the intended start to the end.
    pub(super) took: Duration,
    /// Whether it started too late.
    pub(super) late: bool,
    pub(super) outcome: Outcome,
}

/// Latencies from the intended start, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half of the requests took at most this.
    pub p50_us: u64,
    /// Nine in ten.
    pub p90_us: u64,
    /// 99 in a hundred.
    pub p99_us: u64,
    /// 999 in a thousand.
    pub p999_us: u64,
    /// All.
    pub max_us: u64,
}

/// What a route answered, and how fast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteReport {
    /// Method and path.
    pub route: &'static str,
    /// Requests over.
    pub requests: u64,
    /// Answered with a status under 400.
    pub ok: u64,
    /// All others, by status or reason.
    pub errors: BTreeMap<String, u64>,
    /// How long they took.
    pub latency: Latency,
}

/// The routes in the order of their reports.
const ROUTES: [&str; 3] = [
    "GET /aggregate-stats/{product}",
    "POST /order",
    "POST /order/{id}/payment-callback",
];

/// What the recorder leaves at the end.
pub(super) struct Recorded {
    pub(super) late: u64,
    pub(super) routes: Vec<RouteReport>,
    pub(super) record: OrderRecord,
    pub(super) stats_csv_problem: Option<String>,
}

/// The running recorder.
pub(super) struct Recorder {
    samples: Sender<Sample>,
    thread: JoinHandle<Recorded>,
}

impl Recorder {
    /// Begins `stats.csv` anew and waits for samples.
    pub(super) fn start(
        config: &FrontConfig,
        started: Instant,
        sent: Arc<AtomicU64>,
        progress: watch::Sender<Progress>,
    ) -> Result<Self> {
        let csv = match config.stats_csv {
            true => Some(StatsCsv::create(config.data.join("stats.csv"))?),
            false => None,
        };
        let (samples, queue) = mpsc::channel();
        let book = Book {
            histograms: std::array::from_fn(|_| {
                // The bounds are constants that fit together.
                Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("sound bounds")
            }),
            errors: Default::default(),
            ok: [0; 3],
            late: 0,
            orders: Vec::new(),
            places: HashMap::new(),
            csv,
        };
        let thread = std::thread::Builder::new()
            .name("front-recorder".into())
            .spawn(move || book.keep(&queue, started, &sent, &progress))
            .map_err(|source| Error::Io {
                action: "start the front's thread",
                path: "front-recorder".into(),
                source,
            })?;
        Ok(Self { samples, thread })
    }

    /// Where samples go.
    pub(super) fn samples(&self) -> Sender<Sample> {
        self.samples.clone()
    }

    /// Ends it once all other senders are gone.
    pub(super) async fn finish(self) -> Result<Recorded> {
        drop(self.samples);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        match joined {
            Ok(Ok(recorded)) => Ok(recorded),
            _ => Err(Error::Io {
                action: "finish the front's thread",
                path: "front-recorder".into(),
                source: std::io::Error::other("it panicked; see the log"),
            }),
        }
    }
}

/// Everything the recorder keeps.
struct Book {
    histograms: [Histogram<u64>; 3],
    errors: [BTreeMap<Outcome, u64>; 3],
    ok: [u64; 3],
    late: u64,
    orders: Vec<RecordedOrder>,
    /// Order id to its place in `orders`.
    places: HashMap<u64, usize>,
    csv: Option<StatsCsv>,
}

impl Book {
    fn keep(
        mut self,
        queue: &Receiver<Sample>,
        started: Instant,
        sent: &AtomicU64,
        progress: &watch::Sender<Progress>,
    ) -> Recorded {
        let mut published = Instant::now();
        loop {
            match queue.recv_timeout(PROGRESS_EVERY) {
                Ok(sample) => {
                    self.enter(&sample);
                    // Let a batch gather: one wake-up for all of it.
                    std::thread::sleep(BATCH);
                    while let Ok(sample) = queue.try_recv() {
                        self.enter(&sample);
                    }
                    if let Some(csv) = &mut self.csv {
                        csv.write_out(false);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if published.elapsed() >= PROGRESS_EVERY {
                published = Instant::now();
                self.publish(started, sent, progress);
            }
        }
        self.publish(started, sent, progress);
        self.close()
    }

    fn enter(&mut self, sample: &Sample) {
        let route = match sample.target {
            Target::Stats { .. } => 0,
            Target::Order(order) => {
                self.places.insert(order.id, self.orders.len());
                self.orders.push(RecordedOrder::new(order, sample.outcome));
                1
            }
            Target::Payment { order } => {
                // A payment is sent after its order's answer, so the order is here.
                if let Some(place) = self.places.remove(&order) {
                    self.orders[place].payment = sample.outcome;
                }
                2
            }
        };
        let took_us = sample.took.as_micros().min(LATENCY_MAX_US.into()) as u64;
        self.histograms[route].saturating_record(took_us);
        match sample.outcome.is_ok() {
            true => self.ok[route] += 1,
            false => *self.errors[route].entry(sample.outcome).or_default() += 1,
        }
        self.late += u64::from(sample.late);
        if let Some(csv) = &mut self.csv {
            csv.add(sample);
        }
    }

    fn publish(&self, started: Instant, sent: &AtomicU64, progress: &watch::Sender<Progress>) {
        let ko: u64 = self.errors.iter().flat_map(BTreeMap::values).sum();
        let answered = self.ok.iter().sum::<u64>() + ko;
        progress.send_modify(|p| {
            p.elapsed = started.elapsed();
            p.sent = sent.load(Ordering::Relaxed);
            p.answered = answered;
            p.ko = ko;
            p.late = self.late;
            p.orders = self.ok[1];
            p.rejected = self.errors[1]
                .get(&Outcome::Status(409))
                .copied()
                .unwrap_or_default();
            p.payments = self.ok[2];
        });
    }

    fn close(mut self) -> Recorded {
        let stats_csv_problem = self.csv.take().and_then(StatsCsv::close);
        let routes = ROUTES.iter().enumerate().map(|(index, route)| {
            let histogram = &self.histograms[index];
            let errors = &self.errors[index];
            RouteReport {
                route,
                requests: self.ok[index] + errors.values().sum::<u64>(),
                ok: self.ok[index],
                errors: errors
                    .iter()
                    .map(|(outcome, count)| (outcome.text(), *count))
                    .collect(),
                latency: Latency {
                    p50_us: histogram.value_at_quantile(0.5),
                    p90_us: histogram.value_at_quantile(0.9),
                    p99_us: histogram.value_at_quantile(0.99),
                    p999_us: histogram.value_at_quantile(0.999),
                    max_us: histogram.max(),
                },
            }
        });
        Recorded {
            late: self.late,
            routes: routes.collect(),
            record: OrderRecord::new(std::mem::take(&mut self.orders)),
            stats_csv_problem,
        }
    }
}

/// The requests' log, written in large pieces. After a failure it is left as it is, and the failure
/// kept.
struct StatsCsv {
    path: PathBuf,
    file: File,
    text: Vec<u8>,
    problem: Option<String>,
}

/// Written out once it has grown to this.
const CSV_PIECE_BYTES: usize = 64 * 1024;

impl StatsCsv {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self {
            path,
            file,
            text: Vec::with_capacity(2 * CSV_PIECE_BYTES),
            problem: None,
        })
    }

    fn add(&mut self, sample: &Sample) {
        if self.problem.is_some() {
            return;
        }
        let (at_ms, took_ms) = (sample.at_ms, (sample.took.as_micros() + 500) / 1000);
        // Writing to a Vec cannot fail.
        let _ = match sample.target {
            Target::Stats { id, product } => {
                write!(self.text, "{id},{at_ms},/aggregate-stats/{product},{took_ms}")
            }
            Target::Order(order) => write!(self.text, "{},{at_ms},/order,{took_ms}", order.id),
            Target::Payment { order } => {
                let id = PAYMENT_ID + order;
                write!(
                    self.text,
                    "{id},{at_ms},/order/{order}/payment-callback,{took_ms}"
                )
            }
        };
        let _ = match (sample.outcome, sample.outcome.is_ok()) {
            (Outcome::Status(status), true) => writeln!(self.text, ",ok,{status}"),
            (outcome, _) => writeln!(self.text, ",ko,{}", outcome.text()),
        };
    }

    /// Writes what has gathered, if it is much or `all` is wanted.
    fn write_out(&mut self, all: bool) {
        if self.text.is_empty() || (!all && self.text.len() < CSV_PIECE_BYTES) {
            return;
        }
        if let Err(error) = self.file.write_all(&self.text) {
            tracing::error!(path = %self.path.display(), %error, "the requests' log cannot be written");
            self.problem = Some(format!("cannot write {}: {error}", self.path.display()));
        }
        self.text.clear();
    }

    /// Writes the rest; why it is not whole, if it is not.
    fn close(mut self) -> Option<String> {
        self.write_out(true);
        self.problem
    }
}
