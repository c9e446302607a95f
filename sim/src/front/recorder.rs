//! The recorder: a thread that collects latencies and counts, the record of orders, and the logs of
//! the shop front.
//!
//! Invariants:
//! - To record its result, the task of a request only sends a sample into a channel. The recorder's
//!   thread sleeps while samples collect, so that sending a sample hardly ever wakes the thread.
//! - The channel has no limit, but contains only the samples that arrive while the thread sleeps or
//!   processes a batch.
//! - Counts, and the latencies and lags of single seconds, include the warm-up. Latencies and lags
//!   of the whole run do not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::order_book::OrderBook;
use super::stats_csv::{self, TextLog};
use super::{FrontConfig, OrderRecord, Outcome};
use crate::latency::{Latency, LatencyHistogram};
use crate::telemetry::{Route, RouteSecond, RouteState, SecondPoint, Telemetry};
use crate::workload::PlannedOrder;
use crate::{Error, Result, series};

/// Time for which samples collect in the channel before the thread processes them.
const BATCH: Duration = Duration::from_millis(20);
/// Minimum time between two publications of the counts in the telemetry, except at the end of the
/// run.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Minimum time from the end of a second to the publication of its counts, except at the end of the
/// run. In this time, the last samples of the second arrive.
const SECOND_SLACK: Duration = Duration::from_millis(100);

/// Name of the problem in the answer 409 to a payment that is recorded for a refund.
const REFUND_WANTED: &str = "refund-wanted";

/// The request to which a sample belongs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Stats { id: u64, product: u32 },
    Order(PlannedOrder),
    Payment { order: u64 },
    Cancel { order: u64 },
}

impl Target {
    fn route(self) -> Route {
        match self {
            Self::Stats { .. } => Route::Stats,
            Self::Order(_) => Route::Order,
            Self::Payment { .. } => Route::Payment,
            Self::Cancel { .. } => Route::Cancel,
        }
    }
}

/// The result of one request.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) target: Target,
    /// Intended start of the request, since the start of the sending window.
    pub(super) at: Duration,
    /// Intended start of the request, unix milliseconds.
    pub(super) at_ms: u64,
    /// Time from the intended start to the end of the request.
    pub(super) took: Duration,
    /// Time from the intended start to the actual start.
    pub(super) lag: Duration,
    pub(super) is_late: bool,
    /// Outcome of the request; `NotSent` if it was dropped.
    pub(super) outcome: Outcome,
    /// Name of the problem (RFC 9457) in an error answer; `None` if there is no valid name.
    pub(super) problem: Option<Box<str>>,
}

impl Sample {
    /// Returns `true` if the answer says that the payment is recorded for a refund.
    fn promises_refund(&self) -> bool {
        self.outcome == Outcome::Status(409) && self.problem.as_deref() == Some(REFUND_WANTED)
    }
}

/// Results of a route in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteReport {
    /// Short name of the route, as in [`Route::name`].
    pub name: &'static str,
    /// Method and path template of the route.
    pub route: &'static str,
    /// Number of requests that were sent and ended, with or without an answer.
    pub requests: u64,
    /// Number of requests answered with a status below 400.
    pub ok: u64,
    /// Number of failed requests, by status and problem (RFC 9457), or by the reason of a missing
    /// answer.
    pub errors: BTreeMap<String, u64>,
    /// Percentiles of the latency, without the requests of the warm-up.
    pub latency: Latency,
    /// Mean latency without the requests of the warm-up, microseconds.
    pub mean_us: f64,
}

/// Results of the recorder at the end of a run.
pub(super) struct Recorded {
    pub(super) late: u64,
    pub(super) dropped: u64,
    pub(super) lag: Latency,
    pub(super) routes: Vec<RouteReport>,
    pub(super) histograms: [LatencyHistogram; Route::COUNT],
    pub(super) record: OrderRecord,
    pub(super) stats_csv: Option<PathBuf>,
    pub(super) log_problem: Option<String>,
    /// Number of requests that were sent and have an intended start in the sending window, the time
    /// in which orders and statistics requests start.
    pub(super) in_window: u64,
}

/// A running recorder.
pub(super) struct Recorder {
    samples: Sender<Sample>,
    thread: JoinHandle<Recorded>,
}

impl Recorder {
    /// Creates the configured log files and starts the recorder's thread.
    pub(super) fn start(
        config: &FrontConfig,
        started: Instant,
        sent: Arc<AtomicU64>,
        telemetry: Telemetry,
    ) -> Result<Self> {
        let (csv, stats_csv) = match config.stats_csv {
            true => stats_csv::create(config).map(|(log, path)| (Some(log), Some(path)))?,
            false => (None, None),
        };
        let series = config.run_folder.as_ref().map(|folder| {
            let mut log = TextLog::create(folder.join(series::FILE))?;
            log.add(&series::header());
            Ok(log)
        });
        let (samples, queue) = mpsc::channel();
        let book = Book {
            warm_up: config.warm_up,
            window: config.load.duration(),
            started,
            sent,
            telemetry,
            routes: Default::default(),
            lag: LatencyHistogram::default(),
            late: 0,
            dropped: 0,
            ended: 0,
            failed: 0,
            in_window: 0,
            orders: OrderBook::default(),
            second: Second::default(),
            sent_before: 0,
            csv,
            stats_csv,
            series: series.transpose()?,
        };
        let thread = std::thread::Builder::new()
            .name("front-recorder".into())
            .spawn(move || book.keep(&queue))
            .map_err(|source| Error::Io {
                action: "start the thread",
                path: "front-recorder".into(),
                source,
            })?;
        Ok(Self { samples, thread })
    }

    /// Returns a sender for samples.
    pub(super) fn samples(&self) -> Sender<Sample> {
        self.samples.clone()
    }

    /// Waits until all other senders of samples are dropped and the thread has processed all
    /// samples. Returns the results of the run.
    pub(super) async fn finish(self) -> Result<Recorded> {
        drop(self.samples);
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await;
        match joined {
            Ok(Ok(recorded)) => Ok(recorded),
            _ => Err(Error::Io {
                action: "finish the thread",
                path: "front-recorder".into(),
                source: std::io::Error::other(
                    "the thread that records requests panicked; the log has the panic",
                ),
            }),
        }
    }
}

/// Counts of one route.
#[derive(Default)]
struct RouteBook {
    latency: LatencyHistogram,
    ok: u64,
    failed: u64,
    errors: BTreeMap<(Outcome, Option<Box<str>>), u64>,
}

impl RouteBook {
    fn errors(&self) -> BTreeMap<String, u64> {
        let named = |(outcome, problem): &(Outcome, Option<Box<str>>)| match problem {
            Some(problem) => format!("{} {problem}", outcome.text()),
            None => outcome.text(),
        };
        self.errors
            .iter()
            .map(|(key, count)| (named(key), *count))
            .collect()
    }

    fn state(&self) -> RouteState {
        RouteState {
            requests: self.ok + self.failed,
            ok: self.ok,
            errors: self.errors(),
            latency: self.latency.summary(),
        }
    }
}

/// Counts of the second that is not yet published. A sample counts in this second if it is
/// processed before the publication, even if its request ended later than the second.
#[derive(Default)]
struct Second {
    point: SecondPoint,
    lag: LatencyHistogram,
    latencies: [LatencyHistogram; Route::COUNT],
}

/// All data that the recorder's thread keeps.
struct Book {
    warm_up: Duration,
    window: Duration,
    started: Instant,
    sent: Arc<AtomicU64>,
    telemetry: Telemetry,
    routes: [RouteBook; Route::COUNT],
    lag: LatencyHistogram,
    late: u64,
    dropped: u64,
    ended: u64,
    failed: u64,
    in_window: u64,
    orders: OrderBook,
    second: Second,
    sent_before: u64,
    csv: Option<TextLog>,
    stats_csv: Option<PathBuf>,
    series: Option<TextLog>,
}

impl Book {
    fn keep(mut self, queue: &Receiver<Sample>) -> Recorded {
        let mut published = Instant::now();
        loop {
            match queue.recv_timeout(PUBLISH_EVERY) {
                Ok(sample) => {
                    self.enter(&sample);
                    // The thread sleeps while further samples collect, so that one wake-up
                    // processes all of them.
                    std::thread::sleep(BATCH);
                    while let Ok(sample) = queue.try_recv() {
                        self.enter(&sample);
                    }
                    if let Some(csv) = &mut self.csv {
                        csv.write_piece();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if published.elapsed() >= PUBLISH_EVERY {
                published = Instant::now();
                self.close_seconds(self.started.elapsed().saturating_sub(SECOND_SLACK));
                self.publish();
            }
        }
        // The last second, which is not over yet, is closed as well, so that the counts of all
        // seconds add up to the totals of the run.
        let elapsed = self.started.elapsed();
        self.close_seconds(elapsed + Duration::from_secs(1));
        self.publish();
        self.close()
    }

    fn enter(&mut self, sample: &Sample) {
        let index = sample.target.route().index();
        let is_dropped = sample.outcome == Outcome::NotSent;
        self.enter_order(sample);
        self.late += u64::from(sample.is_late && !is_dropped);
        self.dropped += u64::from(is_dropped);
        self.second.point.late += u64::from(sample.is_late && !is_dropped);
        self.second.point.dropped += u64::from(is_dropped);
        if let Some(csv) = &mut self.csv {
            csv.add(&stats_csv::line(sample));
        }
        if is_dropped {
            return;
        }
        self.ended += 1;
        self.in_window += u64::from(sample.at < self.window);
        let route = &mut self.routes[index];
        let is_ok = sample.outcome.is_ok();
        match is_ok {
            true => route.ok += 1,
            false => {
                self.failed += 1;
                route.failed += 1;
                *route
                    .errors
                    .entry((sample.outcome, sample.problem.clone()))
                    .or_default() += 1;
            }
        }
        if sample.at >= self.warm_up {
            route.latency.record(sample.took);
            self.lag.record(sample.lag);
        }
        let second = &mut self.second;
        second.point.ok += u64::from(is_ok);
        second.point.failed += u64::from(!is_ok);
        second.lag.record(sample.lag);
        second.latencies[index].record(sample.took);
        second.point.routes[index].requests += 1;
        second.point.routes[index].failed += u64::from(!is_ok);
    }

    fn enter_order(&mut self, sample: &Sample) {
        match sample.target {
            Target::Stats { .. } => {}
            Target::Order(planned) => self.orders.add_order(planned, sample.outcome),
            Target::Payment { order } => {
                self.orders.add_payment(order, sample.outcome);
                if sample.promises_refund() {
                    self.orders.add_refund(order);
                }
            }
            Target::Cancel { order } => self.orders.add_cancel(order, sample.outcome),
        }
    }

    /// Closes and publishes all seconds that ended by `until`, a time since the start of the run.
    fn close_seconds(&mut self, until: Duration) {
        while until >= Duration::from_secs(self.second.point.second + 1) {
            let second = self.second.point.second;
            let sent = self.sent.load(Ordering::Relaxed);
            let point = &mut self.second.point;
            point.sent = sent - self.sent_before;
            self.sent_before = sent;
            point.lag_p99_us = self.second.lag.quantile_us(0.99);
            for (route, latencies) in point.routes.iter_mut().zip(&self.second.latencies) {
                let RouteSecond { requests, failed, .. } = *route;
                let latency = latencies.summary();
                *route = RouteSecond {
                    requests,
                    failed,
                    p50_us: latency.p50_us,
                    p99_us: latency.p99_us,
                    max_us: latency.max_us,
                };
            }
            let point = std::mem::take(point);
            self.telemetry.update(|state| {
                state.sent = sent;
                state.answered = self.ended;
                state.push_second(point);
            });
            if let Some(log) = &mut self.series {
                self.telemetry.read(|state| {
                    if let Some(point) = state.seconds.back() {
                        log.add(&series::line(point));
                    }
                });
                log.write_all();
            }
            self.second.point.second = second + 1;
            self.second.lag.clear();
            self.second.latencies.iter_mut().for_each(LatencyHistogram::clear);
        }
    }

    fn publish(&self) {
        let routes = std::array::from_fn(|index| self.routes[index].state());
        let lag = self.lag.summary();
        self.telemetry.update(|state| {
            state.elapsed = self.started.elapsed();
            state.sent = self.sent.load(Ordering::Relaxed);
            state.answered = self.ended;
            state.failed = self.failed;
            state.late = self.late;
            state.dropped = self.dropped;
            state.lag = lag;
            state.routes = routes;
        });
    }

    fn close(mut self) -> Recorded {
        let csv_problem = self.csv.take().and_then(TextLog::close);
        let series_problem = self.series.take().and_then(TextLog::close);
        let routes = Route::ALL.iter().map(|route| {
            let book = &self.routes[route.index()];
            RouteReport {
                name: route.name(),
                route: route.template(),
                requests: book.ok + book.failed,
                ok: book.ok,
                errors: book.errors(),
                latency: book.latency.summary(),
                mean_us: book.latency.mean_us(),
            }
        });
        Recorded {
            late: self.late,
            dropped: self.dropped,
            lag: self.lag.summary(),
            routes: routes.collect(),
            histograms: self.routes.map(|book| book.latency),
            record: self.orders.into_record(),
            stats_csv: self.stats_csv,
            log_problem: csv_problem.or(series_problem),
            in_window: self.in_window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_problem_of_the_status_409_promises_a_refund() {
        let promises = |status, problem: Option<&str>| {
            let sample = Sample {
                target: Target::Payment { order: 7 },
                at: Duration::ZERO,
                at_ms: 0,
                took: Duration::ZERO,
                lag: Duration::ZERO,
                is_late: false,
                outcome: Outcome::Status(status),
                problem: problem.map(Into::into),
            };
            sample.promises_refund()
        };
        assert!(promises(409, Some("refund-wanted")));
        for (status, problem) in [(409, Some("refused")), (409, None), (503, Some("refund-wanted"))] {
            assert!(!promises(status, problem), "{status} {problem:?}");
        }
    }
}
