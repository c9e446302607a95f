//! Requests per second: the time series behind the console's charts.
//!
//! A node records its own requests once a second, even while no page is open. So a newly opened
//! page shows the recent minutes at once. The node to which a page is connected adds up the seconds
//! of all nodes.
//!
//! Invariants:
//! - A node's seconds are ascending, without gaps between the first and the last.
//! - `Recorder::record` loses no request: the counts of responses and of latencies (`answers` and
//!   `buckets`) of all seconds that one call adds are in sum the increase of the counters since the
//!   previous call.
//! - At most `SECONDS_KEPT` seconds are kept.
//!
//! Requests that are not counted by their own route, such as calls between nodes and probes, are
//! recorded under the route "other" (`metrics::OTHER_ROUTE`). These requests are not part of the
//! sum for clients.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::runtime::metrics::{BUCKETS_US, OTHER_ROUTE, RouteCounts};

/// Number of seconds kept, which is the time span of the charts.
pub(super) const SECONDS_KEPT: u64 = 300;
/// Largest backward step of the clock, in seconds, after which the series of seconds continues.
/// After a larger step, the recorder removes the old seconds and begins a new series.
const CLOCK_STEP_MAX: u64 = 5;

/// Counts of the requests of one second, on one node or summed over several nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sample {
    /// The second's end, in seconds since 1970.
    pub(super) second: u64,
    /// Counts of the routes with at least one response or latency in the second.
    pub(super) routes: Vec<RouteSample>,
}

/// Counts of the requests of one route within a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RouteSample {
    pub(super) route: Cow<'static, str>,
    /// Number of requests by the first digit of the response's status, 1 to 5.
    pub(super) answers: [u64; 5],
    /// Number of requests by latency bucket (`metrics::BUCKETS_US`).
    pub(super) buckets: Vec<u64>,
}

impl RouteSample {
    /// Returns `true` if nothing was counted. The counters are read while requests are answered, so
    /// the latency of a request may be counted in another second than its response.
    fn is_empty(&self) -> bool {
        self.answers.iter().chain(&self.buckets).all(|count| *count == 0)
    }

    fn add(&mut self, other: &RouteSample) {
        for (sum, count) in self.answers.iter_mut().zip(other.answers) {
            *sum += count;
        }
        let buckets = self.buckets.len().max(other.buckets.len());
        self.buckets.resize(buckets, 0);
        for (sum, count) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += count;
        }
    }
}

impl Sample {
    /// Adds the counts of another sample of the same second.
    pub(super) fn add(&mut self, other: &Sample) {
        for theirs in &other.routes {
            match self.routes.iter_mut().find(|ours| ours.route == theirs.route) {
                Some(ours) => ours.add(theirs),
                None => self.routes.push(theirs.clone()),
            }
        }
    }

    /// Returns the sum over all routes for clients, without the route "other".
    fn of_clients(&self) -> RouteSample {
        let mut whole = RouteSample::default();
        for route in self.routes.iter().filter(|route| route.route != OTHER_ROUTE) {
            whole.add(route);
        }
        whole
    }

    /// Returns the second in the form that the console's page reads.
    pub(super) fn shown(&self) -> ShownSample<'_> {
        let figures = |route: &RouteSample| RouteFigures {
            requests: route.answers.iter().sum(),
            refused: route.answers[3],
            failed: route.answers[4],
            p50_us: percentile_us(&route.buckets, 0.5),
            p99_us: percentile_us(&route.buckets, 0.99),
        };
        let routes = self.routes.iter();
        ShownSample {
            second: self.second,
            clients: figures(&self.of_clients()),
            routes: routes.map(|route| (&*route.route, figures(route))).collect(),
        }
    }
}

/// One second in the form that the console's page reads.
#[derive(Serialize)]
pub(super) struct ShownSample<'a> {
    second: u64,
    /// Sum over all routes except "other".
    pub(super) clients: RouteFigures,
    routes: BTreeMap<&'a str, RouteFigures>,
}

/// Request counts and latencies of one second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct RouteFigures {
    pub(super) requests: u64,
    /// Number of responses with a 4xx status.
    pub(super) refused: u64,
    /// Number of responses with a 5xx status.
    pub(super) failed: u64,
    pub(super) p50_us: Option<u64>,
    pub(super) p99_us: Option<u64>,
}

/// Estimates a latency percentile from bucket counts by linear interpolation within the bucket.
/// Returns `None` if there are no requests. For requests above the last bound, returns that bound.
fn percentile_us(buckets: &[u64], share: f64) -> Option<u64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = (total as f64 * share).max(1.0);
    let mut below = 0.0;
    for (at, count) in buckets.iter().enumerate() {
        let count = *count as f64;
        if below + count >= rank {
            let bound = |at: usize| BUCKETS_US.get(at).or(BUCKETS_US.last()).map_or(0, |bound| *bound);
            let (from, to) = (at.checked_sub(1).map_or(0, bound), bound(at));
            let within = (rank - below) / count;
            return Some(from + ((to - from) as f64 * within).round() as u64);
        }
        below += count;
    }
    BUCKETS_US.last().copied()
}

/// Records the requests that this node answers in each second, and keeps the counts of the last
/// `SECONDS_KEPT` seconds.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    before: BTreeMap<&'static str, RouteCounts>,
    samples: VecDeque<Sample>,
}

impl Recorder {
    /// Records the requests since the previous call, as requests of the seconds up to `second`.
    ///
    /// If the previous call was several seconds ago, the requests are distributed evenly over those
    /// seconds, but over at most the last `SECONDS_KEPT` of them. If the last recorded second is
    /// `second` or up to `CLOCK_STEP_MAX` later, the requests are recorded in the second after the
    /// last recorded one.
    pub(super) fn record(&mut self, second: u64, counts: Vec<RouteCounts>) {
        let mut new = Vec::new();
        for counts in counts {
            let before = self.before.insert(counts.route, counts.clone());
            new.push(since(&counts, before.as_ref()));
        }
        new.retain(|route| !route.is_empty());
        let last = self.samples.back().map(|sample| sample.second);
        let last = last.filter(|last| second + CLOCK_STEP_MAX >= *last);
        if last.is_none() {
            // Either this is the first call, or `second` is more than `CLOCK_STEP_MAX` before the
            // last recorded second.
            self.samples.clear();
        }
        let from = last.map_or(second, |last| last + 1);
        let to = second.max(from);
        let from = from.max(to.saturating_sub(SECONDS_KEPT - 1));
        let seconds = to - from + 1;
        for at in 0..seconds {
            let routes = new.iter().map(|route| part(route, at, seconds));
            let routes = routes.filter(|route| !route.is_empty());
            self.samples.push_back(Sample {
                second: from + at,
                routes: routes.collect(),
            });
        }
        while self.samples.len() as u64 > SECONDS_KEPT {
            self.samples.pop_front();
        }
    }

    /// Returns the seconds after `second`. If `second` is more than `CLOCK_STEP_MAX` ahead of the
    /// newest recorded second, the clock was set back, and all seconds are returned.
    pub(super) fn since(&self, second: u64) -> Vec<Sample> {
        let newest = self.samples.back().map_or(0, |sample| sample.second);
        let second = if second > newest + CLOCK_STEP_MAX {
            0
        } else {
            second
        };
        let samples = self.samples.iter();
        samples.filter(|sample| sample.second > second).cloned().collect()
    }
}

/// Returns the requests of a route between two readings of its counters. Without an earlier
/// reading, returns all requests that the counters have.
fn since(now: &RouteCounts, before: Option<&RouteCounts>) -> RouteSample {
    let mut new = RouteSample {
        route: Cow::Borrowed(now.route),
        answers: now.answers,
        buckets: now.buckets.to_vec(),
    };
    if let Some(before) = before {
        let counts = new.answers.iter_mut().zip(&before.answers);
        let buckets = new.buckets.iter_mut().zip(&before.buckets);
        for (count, before) in counts.chain(buckets) {
            *count = count.saturating_sub(*before);
        }
    }
    new
}

/// Returns part number `at` of `parts` nearly equal parts. The counts of all parts add up to
/// `whole`.
fn part(whole: &RouteSample, at: u64, parts: u64) -> RouteSample {
    let of = |count: &u64| count * (at + 1) / parts - count * at / parts;
    RouteSample {
        route: whole.route.clone(),
        answers: whole.answers.each_ref().map(of),
        buckets: whole.buckets.iter().map(of).collect(),
    }
}

/// The recent seconds, summed over all nodes.
#[derive(Debug, Default)]
pub(super) struct Merged(BTreeMap<u64, Sample>);

impl Merged {
    /// Adds seconds of one node, and keeps the newest `SECONDS_KEPT` seconds. The caller must pass
    /// each second of a node only once.
    pub(super) fn add(&mut self, samples: &[Sample]) {
        for sample in samples {
            let second = sample.second;
            let sum = self.0.entry(second).or_insert_with(|| Sample {
                second,
                routes: Vec::new(),
            });
            sum.add(sample);
        }
        while self.0.len() as u64 > SECONDS_KEPT {
            self.0.pop_first();
        }
    }

    /// Removes seconds more than `CLOCK_STEP_MAX` ahead of this node's newest second: they were
    /// recorded before a clock was set back, or by a node with a fast clock.
    pub(super) fn forget_ahead_of(&mut self, newest: u64) {
        self.0.retain(|second, _| *second <= newest + CLOCK_STEP_MAX);
    }

    /// Returns the seconds after `after`, up to and including `last`.
    pub(super) fn between(&self, after: u64, last: u64) -> impl Iterator<Item = &Sample> {
        let samples = self.0.iter();
        samples
            .filter(move |(second, _)| **second > after && **second <= last)
            .map(|(_, sample)| sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(route: &'static str, answered: u64) -> RouteCounts {
        let mut counts = RouteCounts {
            route,
            answers: [0; 5],
            buckets: [0; BUCKETS_US.len() + 1],
            sum_us: 0,
        };
        counts.answers[1] = answered;
        counts.buckets[2] = answered;
        counts
    }

    fn requests(samples: &[Sample]) -> Vec<(u64, u64)> {
        let of = |sample: &Sample| {
            let answers = sample.routes.iter().flat_map(|route| route.answers);
            (sample.second, answers.sum())
        };
        samples.iter().map(of).collect()
    }

    #[test]
    fn seconds_have_no_gaps_and_add_up_to_the_counters() {
        let mut recorder = Recorder::default();
        recorder.record(100, vec![counts("POST /order", 7)]);
        recorder.record(101, vec![counts("POST /order", 10)]);
        recorder.record(104, vec![counts("POST /order", 20)]);
        let found = requests(&recorder.since(0));
        assert_eq!(found, [(100, 7), (101, 3), (102, 3), (103, 3), (104, 4)]);
        assert_eq!(recorder.since(103).len(), 1);
        recorder.record(104, vec![counts("POST /order", 21)]);
        assert_eq!(
            requests(&recorder.since(104)),
            [(105, 1)],
            "a clock that lags a bit"
        );
    }

    #[test]
    fn a_latency_that_is_counted_before_its_response_is_kept() {
        let mut recorder = Recorder::default();
        let mut early = counts("POST /order", 0);
        early.buckets[2] = 1;
        recorder.record(10, vec![early]);
        recorder.record(11, vec![counts("POST /order", 1)]);
        let samples = recorder.since(0);
        let routes = samples.iter().flat_map(|sample| &sample.routes);
        let latencies: u64 = routes.flat_map(|route| &route.buckets).sum();
        assert_eq!(latencies, 1);
        assert_eq!(requests(&samples), [(10, 0), (11, 1)]);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_a_new_series_and_memory_is_bounded() {
        let mut recorder = Recorder::default();
        for second in 1_000..2_000 {
            recorder.record(second, vec![counts("POST /order", second)]);
        }
        assert_eq!(recorder.since(0).len() as u64, SECONDS_KEPT);
        recorder.record(50, vec![counts("POST /order", 2_000)]);
        assert_eq!(
            requests(&recorder.since(0)),
            [(50, 1)],
            "1,999 were counted before"
        );
        recorder.record(1_000_000, vec![counts("POST /order", 2_600)]);
        let found = requests(&recorder.since(0));
        assert_eq!(found.len() as u64, SECONDS_KEPT);
        assert_eq!(found.iter().map(|(_, count)| count).sum::<u64>(), 600);
    }

    #[test]
    fn nodes_are_added_by_second_and_internal_calls_are_not_clients() {
        let mut recorders = [Recorder::default(), Recorder::default()];
        let mut merged = Merged::default();
        for recorder in &mut recorders {
            recorder.record(9, vec![counts("POST /order", 0), counts(OTHER_ROUTE, 0)]);
            recorder.record(10, vec![counts("POST /order", 4), counts(OTHER_ROUTE, 90)]);
            merged.add(&recorder.since(0));
        }
        let shown: Vec<_> = merged.between(9, 10).map(Sample::shown).collect();
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].clients.requests, 8);
        assert_eq!(shown[0].routes[OTHER_ROUTE].requests, 180);
    }

    #[test]
    fn a_merged_series_follows_a_clock_that_is_set_back() {
        let mut recorder = Recorder::default();
        let mut merged = Merged::default();
        for second in 1_000..1_000 + SECONDS_KEPT {
            recorder.record(second, vec![counts("POST /order", second)]);
        }
        merged.add(&recorder.since(0));
        recorder.record(50, vec![counts("POST /order", 2_000)]);
        let after = recorder.since(1_000 + SECONDS_KEPT - 1);
        assert_eq!(after.len(), 1, "the new series is told in full");
        merged.forget_ahead_of(50);
        merged.add(&after);
        let kept: Vec<u64> = merged.between(0, u64::MAX).map(|sample| sample.second).collect();
        assert_eq!(kept, [50]);
    }

    #[test]
    fn percentiles_lie_in_their_bucket() {
        let mut buckets = vec![0; BUCKETS_US.len() + 1];
        assert_eq!(percentile_us(&buckets, 0.5), None);
        buckets[1] = 99;
        buckets[5] = 1;
        assert_eq!(percentile_us(&buckets, 0.5), Some(250 + 126));
        assert_eq!(percentile_us(&buckets, 0.99), Some(500));
        assert_eq!(percentile_us(&buckets, 1.0), Some(8_000));
        buckets[BUCKETS_US.len()] = 1_000;
        assert_eq!(percentile_us(&buckets, 0.99), Some(5_000_000));
    }
}
