//! Counters of a node.
//!
//! **Invariants**
//! - Counting a request updates three atomics, takes no lock and allocates no memory.
//! - Requests are counted by the routes that the API names, so that ids in paths create no new time
//!   series in Prometheus.
//! - The counters of a volume outlive its volume server, so they do not begin at 0 again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::runtime::exposition::{Family, Value};

/// Route name of all requests that are not counted by their own route: health checks, the console,
/// calls between nodes, `GET /metrics`, `GET /ring`, `GET /openapi.json` and requests that match no
/// route.
pub(crate) const OTHER_ROUTE: &str = "other";

/// Upper bounds of the latency buckets in microseconds: fine around a millisecond, the usual time
/// of an order, and coarse above.
pub(crate) const BUCKETS_US: [u64; 14] = [
    250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000, 60_000, 125_000, 250_000, 500_000, 1_000_000,
    5_000_000,
];

#[derive(Default)]
struct Route {
    /// Number of responses by the first digit of the status, 1 to 5.
    answers: [AtomicU64; 5],
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

/// The counters of a route at one moment.
#[derive(Clone, Debug)]
pub(crate) struct RouteCounts {
    pub(crate) route: &'static str,
    /// Number of requests by the first digit of their response's status, 1 to 5.
    pub(crate) answers: [u64; 5],
    /// Number of requests by latency bucket. The last bucket has no upper bound.
    pub(crate) buckets: [u64; BUCKETS_US.len() + 1],
    /// Sum of all durations in microseconds.
    pub(crate) sum_us: u64,
}

/// The counters of a node's requests, of its channel to other nodes, and of the volumes that it
/// serves or has served.
pub(crate) struct Metrics {
    /// The name and the counters of each route. The last route is `OTHER_ROUTE`.
    routes: Vec<(&'static str, Route)>,
    recent: Mutex<Recent>,
    volumes: Mutex<BTreeMap<String, Arc<VolumeCounters>>>,
    channel: Arc<ChannelCounters>,
}

/// Counters of the channel to other nodes. The number of messages divided by the number of frames
/// is the average number of messages in a frame.
#[derive(Debug, Default)]
pub(crate) struct ChannelCounters {
    /// Messages that were queued, such as requests and answers.
    pub(crate) messages: AtomicU64,
    /// Frames that were passed to a connection.
    pub(crate) frames: AtomicU64,
    /// Bytes in these frames, headers included.
    pub(crate) bytes: AtomicU64,
}

/// Counters of one volume since the start of this process.
///
/// The counters outlive the volume's server. So they do not begin at 0 again when the volume leaves
/// this process and returns. Two of the fields are gauges, which may decrease.
#[derive(Default)]
pub(crate) struct VolumeCounters {
    /// Number of steps of transactors that ended in a panic.
    pub(crate) transactor_panics: AtomicU64,
    /// Number of group commits with at least one durable batch.
    pub(crate) commits: AtomicU64,
    /// Number of durable write batches in all group commits.
    pub(crate) batches: AtomicU64,
    /// Number of orders that took borrowed units.
    pub(crate) orders_from_borrowed_units: AtomicU64,
    /// Number of stock snapshots applied.
    pub(crate) stock_snapshots: AtomicU64,
    /// Number of statistics files added to the statistics.
    pub(crate) stat_files: AtomicU64,
    /// Number of statistics files renamed to `NAME.rejected`: files that can never be added, files
    /// that stayed incomplete for too long, and files that were changed after they were added.
    pub(crate) stat_files_set_aside: AtomicU64,
    /// Number of statistics files that the last complete scan left to wait: new, being written, or
    /// incomplete (a gauge). Without an engine, 0 while the volume does not have the statistics.
    pub(crate) stat_files_waiting: AtomicU64,
    /// End of the last complete scan for statistics files in UTC milliseconds (a gauge). 0 until
    /// the first scan is complete, and without an engine also while the volume does not have the
    /// statistics.
    pub(crate) stat_scan_ended_ms: AtomicU64,
}

/// Number of intervals between the samples for the recent rate. With one sample per second the rate
/// covers ten to eleven seconds.
const SAMPLES: usize = 10;

/// Samples of the number of answered requests of clients, oldest first: time and count.
#[derive(Debug, Default)]
struct Recent(VecDeque<(Duration, u64)>);

impl Recent {
    fn sample(&mut self, at: Duration, count: u64) {
        if self.0.len() > SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((at, count));
    }

    /// Returns the requests per second since the oldest sample, or since the node's start if there
    /// is no sample. 0 if no time has passed since then.
    fn rate(&self, at: Duration, count: u64) -> f64 {
        let (from, before) = self.0.front().copied().unwrap_or_default();
        let seconds = at.saturating_sub(from).as_secs_f64();
        if seconds > 0.0 {
            count.saturating_sub(before) as f64 / seconds
        } else {
            0.0
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::of_routes([])
    }
}

impl Metrics {
    /// Returns counters for routes with these names.
    pub(crate) fn of_routes(names: impl IntoIterator<Item = &'static str>) -> Metrics {
        let names = names.into_iter().chain([OTHER_ROUTE]);
        Metrics {
            routes: names.map(|name| (name, Route::default())).collect(),
            recent: Mutex::default(),
            volumes: Mutex::default(),
            channel: Arc::default(),
        }
    }

    /// Returns the counters of the channel to other nodes.
    pub(crate) fn channel(&self) -> &Arc<ChannelCounters> {
        &self.channel
    }

    fn route(&self, index: RouteIndex) -> &Route {
        // The last route (`OTHER_ROUTE`) always exists, so the index is never out of range.
        &self.routes[index.0.min(self.routes.len() - 1)].1
    }

    /// Returns the counters of a volume. All calls for one volume return the same counters.
    pub(crate) fn of_volume(&self, volume: &str) -> Arc<VolumeCounters> {
        let mut volumes = self.volumes.lock();
        Arc::clone(volumes.entry(volume.to_owned()).or_default())
    }

    /// Returns the counters of all routes.
    pub(crate) fn counts(&self) -> Vec<RouteCounts> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = |(name, route): &(&'static str, Route)| RouteCounts {
            route: name,
            answers: route.answers.each_ref().map(load),
            buckets: route.buckets.each_ref().map(load),
            sum_us: load(&route.sum_us),
        };
        self.routes.iter().map(counts).collect()
    }

    /// Returns the number of answered requests about orders, stock, messages and statistics: of all
    /// routes but `OTHER_ROUTE`. Health checks and calls between nodes are no load of clients.
    pub(crate) fn requests(&self) -> u64 {
        let of_clients = self.routes.iter().filter(|(name, _)| *name != OTHER_ROUTE);
        let answers = of_clients.flat_map(|(_, route)| &route.answers);
        answers.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock()
    }

    /// Records the number of requests of clients at the time `at` after the node's start. The
    /// reconciler calls this about once per second.
    pub(crate) fn sample(&self, at: Duration) {
        self.recent().sample(at, self.requests());
    }

    /// Returns the average number of requests of clients per second since the oldest kept sample,
    /// or since the node's start if there is no sample.
    pub(crate) fn requests_per_second(&self, at: Duration) -> f64 {
        self.recent().rate(at, self.requests())
    }
}

/// The route under which a request is counted, as an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteIndex(usize);

impl RouteIndex {
    /// The route of all requests that are not counted by their own route (`OTHER_ROUTE`).
    pub(crate) const OTHER: RouteIndex = RouteIndex(usize::MAX);

    /// Returns the route at this position among the names passed to `Metrics::of_routes`.
    pub(crate) fn nth(at: usize) -> RouteIndex {
        RouteIndex(at)
    }
}

impl Metrics {
    /// Counts one answered request.
    pub(crate) fn count(&self, route: RouteIndex, status: u16, took: Duration) {
        let route = self.route(route);
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        let took_us = took.as_micros() as u64;
        let bucket = BUCKETS_US.partition_point(|bound| *bound < took_us);
        route.answers[class].fetch_add(1, Ordering::Relaxed);
        route.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        route.sum_us.fetch_add(took_us, Ordering::Relaxed);
    }

    /// Returns the metric families of requests and of the channel to other nodes.
    pub(crate) fn families(&self) -> Vec<Family> {
        let mut answers = Vec::new();
        let mut durations = Vec::new();
        for counts in self.counts() {
            let route = || ("route", counts.route.to_owned());
            for (class, count) in counts.answers.iter().enumerate().filter(|(_, count)| **count > 0) {
                let labels = vec![route(), ("status", STATUS[class].to_owned())];
                answers.push((labels, Value::Counter(*count as f64)));
            }
            if counts.buckets.iter().all(|count| *count == 0) {
                continue;
            }
            let bound = |at: usize| BUCKETS_US.get(at).map_or(f64::INFINITY, |us| *us as f64 / 1e6);
            let buckets = counts.buckets.iter().enumerate();
            let buckets = buckets.map(|(at, count)| (bound(at), *count)).collect();
            let sum = counts.sum_us as f64 / 1e6;
            durations.push((vec![route()], Value::Histogram(sum, buckets)));
        }
        let counter = |name, help, counter: &AtomicU64| {
            Family::single(name, help, Value::Counter(counter.load(Ordering::Relaxed) as f64))
        };
        let channel = &self.channel;
        vec![
            counter(
                "imt_peer_messages_total",
                "Requests and answers sent to other nodes on the channel.",
                &channel.messages,
            ),
            counter(
                "imt_peer_frames_total",
                "Frames written to other nodes.",
                &channel.frames,
            ),
            counter(
                "imt_peer_bytes_total",
                "Bytes of frames written to other nodes.",
                &channel.bytes,
            ),
            Family {
                name: "imt_requests_total",
                help: "Requests answered, by route and class of status.",
                samples: answers,
            },
            Family {
                name: "imt_request_duration_seconds",
                help: "Time from the head of a request to its response.",
                samples: durations,
            },
        ]
    }
}

const STATUS: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::exposition;

    #[test]
    fn the_rate_covers_the_last_samples() {
        let second = Duration::from_secs;
        let mut recent = Recent::default();
        assert!(
            (recent.rate(second(2), 10) - 5.0).abs() < 1e-9,
            "first, since the start"
        );
        for at in 0..100 {
            recent.sample(second(at), if at < 50 { at * 1_000 } else { 50_000 });
        }
        assert!(
            recent.rate(second(100), 50_000).abs() < 1e-9,
            "no requests in the sampled time"
        );
        assert!((recent.rate(second(109), 50_200) - 10.0).abs() < 1e-9);
        assert!(
            recent.rate(second(89), 50_000).abs() < 1e-9,
            "a clock that does not advance"
        );
    }

    #[test]
    fn the_rate_of_requests_leaves_out_health_checks_and_calls_between_nodes() {
        let metrics = Metrics::of_routes(["POST /order"]);
        for route in [RouteIndex::nth(0), RouteIndex::OTHER, RouteIndex::OTHER] {
            metrics.count(route, 200, Duration::ZERO);
        }
        assert_eq!(metrics.requests(), 1);
        let rate = metrics.requests_per_second(Duration::from_secs(2));
        assert!((rate - 0.5).abs() < 1e-9, "{rate}");
        let counted = metrics.counts();
        let other = counted.iter().find(|counts| counts.route == OTHER_ROUTE).unwrap();
        assert_eq!(other.answers[1], 2, "the metric counts them");
    }

    #[test]
    fn buckets_are_cumulative_and_the_last_one_counts_all() {
        let metrics = Metrics::of_routes(["GET /orders", "POST /order"]);
        let route = RouteIndex::nth(1);
        for took_us in [100, 250, 251, 9_000_000] {
            metrics.count(route, 200, Duration::from_micros(took_us));
        }
        metrics.count(route, 409, Duration::from_micros(1));
        let text = exposition::render(metrics.families());
        for expected in [
            "imt_requests_total{route=\"POST /order\",status=\"2xx\"} 4",
            "imt_requests_total{route=\"POST /order\",status=\"4xx\"} 1",
            "imt_request_duration_seconds_bucket{route=\"POST /order\",le=\"0.00025\"} 3",
            "imt_request_duration_seconds_bucket{route=\"POST /order\",le=\"0.0005\"} 4",
            "imt_request_duration_seconds_bucket{route=\"POST /order\",le=\"+Inf\"} 5",
            "imt_request_duration_seconds_count{route=\"POST /order\"} 5",
        ] {
            assert!(
                text.lines().any(|line| line == expected),
                "{expected} not in\n{text}"
            );
        }
    }
}
