//! Histograms of latencies and lags, all with the same bounds, and their percentiles.
//!
//! Invariants:
//! - A latency counts from the intended start of a request (no coordinated omission). All values
//!   are microseconds.
//! - All histograms have three significant digits and the same range, so that one histogram can be
//!   added to another.
//! - A latency above the range is recorded as the largest value and never lost.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Largest recorded latency, microseconds: ten minutes, far above the usual request timeouts.
const MAX_US: u64 = 600_000_000;
/// Significant decimal digits of a recorded latency.
const DIGITS: u8 = 3;

/// Minimum number of samples with which a table shows percentiles. With fewer samples, a percentile
/// says little more than the largest sample, so the table shows `-`.
pub const PERCENTILE_SAMPLES_MIN: u64 = 20;

/// Percentiles of a set of latencies, in microseconds; all 0 for an empty set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Number of latencies.
    pub count: u64,
    /// Median, microseconds.
    pub p50_us: u64,
    /// 90th percentile, microseconds.
    pub p90_us: u64,
    /// 99th percentile, microseconds.
    pub p99_us: u64,
    /// 99.9th percentile, microseconds.
    pub p999_us: u64,
    /// Largest latency, microseconds.
    pub max_us: u64,
}

/// A histogram of latencies in microseconds.
#[derive(Debug, Clone)]
pub struct LatencyHistogram(Histogram<u64>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        // The library accepts these constant bounds, so the call cannot fail.
        Self(Histogram::new_with_bounds(1, MAX_US, DIGITS).expect("sound bounds"))
    }
}

impl Latency {
    /// Returns `true` if there are enough latencies for percentiles in a table.
    pub fn has_percentiles(&self) -> bool {
        self.count >= PERCENTILE_SAMPLES_MIN
    }
}

impl LatencyHistogram {
    /// Adds one latency.
    pub fn record(&mut self, latency: Duration) {
        let us = latency.as_micros().min(MAX_US.into()) as u64;
        self.0.saturating_record(us);
    }

    /// Adds all latencies of another histogram to this one.
    pub fn add(&mut self, other: &Self) {
        // Both histograms have the same bounds, so no latency is out of range.
        self.0.add(&other.0).expect("the same bounds");
    }

    /// Removes all latencies and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Returns the latency at a quantile from 0 to 1, in microseconds; 0 for an empty histogram.
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// Returns the mean latency in microseconds; 0 for an empty histogram.
    pub fn mean_us(&self) -> f64 {
        self.0.mean()
    }

    /// Returns the percentiles of the histogram.
    pub fn summary(&self) -> Latency {
        Latency {
            count: self.0.len(),
            p50_us: self.0.value_at_quantile(0.5),
            p90_us: self.0.value_at_quantile(0.9),
            p99_us: self.0.value_at_quantile(0.99),
            p999_us: self.0.value_at_quantile(0.999),
            max_us: self.0.max(),
        }
    }

    /// Returns the buckets that contain latencies, in ascending order.
    pub fn buckets(&self) -> Vec<Bucket> {
        let recorded = self.0.iter_recorded();
        recorded
            .map(|step| Bucket {
                upto_us: step.value_iterated_to(),
                count: step.count_since_last_iteration(),
            })
            .collect()
    }
}

/// One bucket of a latency histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Largest latency that the bucket can contain, microseconds.
    pub upto_us: u64,
    /// Number of latencies in the bucket.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_gives_percentiles_within_three_digits() {
        let mut histogram = LatencyHistogram::default();
        assert_eq!(histogram.summary(), Latency::default());
        for us in 1..=1_000 {
            histogram.record(Duration::from_micros(us));
        }
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.p50_us, summary.p99_us), (1_000, 500, 990));
        assert_eq!((summary.p999_us, summary.max_us), (999, 1_000));
        let total: u64 = histogram.buckets().iter().map(|bucket| bucket.count).sum();
        assert_eq!(total, 1_000);
    }

    #[test]
    fn a_latency_above_the_range_counts_as_the_largest_one() {
        let mut histogram = LatencyHistogram::default();
        histogram.record(Duration::from_secs(3_600));
        let summary = histogram.summary();
        assert_eq!(summary.count, 1);
        assert!(
            (599_000_000..=601_000_000).contains(&summary.max_us),
            "{summary:?}"
        );
        histogram.clear();
        assert_eq!(histogram.summary(), Latency::default());
    }
}
