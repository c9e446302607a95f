//! Lock-free histograms with four buckets per power of two.
//!
//! - A value below 2^41 is recorded with an error of at most a quarter. That is enough to
//!   distinguish 1 ms from 10 ms, or 1 commit per sync from 30.
//! - Recording takes two atomic additions with relaxed ordering.
//!
//! Deliberately absent: resetting.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Binary logarithm of the number of buckets per power of two.
const STEPS_LOG: u32 = 2;
const STEPS: usize = 1 << STEPS_LOG;
/// Number of buckets, enough to distinguish values below 2^41 (36 minutes in nanoseconds). The last
/// bucket also holds all values from 2^41 on.
const BUCKETS: usize = STEPS * 40;

/// Counts of values per bucket.
pub(crate) struct Counts {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.histogram(), f)
    }
}

/// Returns the bucket of a value. Each value below 4 has a bucket of its own. The bucket of any
/// other value is given by the highest bit of the value and the two bits below that bit.
fn bucket(value: u64) -> usize {
    let Some(high) = value.checked_ilog2().filter(|high| *high >= STEPS_LOG) else {
        return value as usize;
    };
    let step = (value >> (high - STEPS_LOG)) as usize - STEPS;
    ((high - STEPS_LOG + 1) as usize * STEPS + step).min(BUCKETS - 1)
}

/// Returns the largest value of a bucket. For the last bucket, this is 2^41 - 1, although the
/// bucket also counts all larger values.
fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let shift = (bucket / STEPS - 1) as u32;
    (((STEPS + bucket % STEPS + 1) as u64) << shift) - 1
}

impl Counts {
    #[inline]
    pub(crate) fn add(&self, value: u64) {
        self.buckets[bucket(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn histogram(&self) -> Histogram {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let quantile = |share: f64| {
            let rank = ((count as f64 * share).ceil() as u64).max(1);
            let mut below = 0;
            let found = counts.iter().position(|bucket| {
                below += bucket;
                below >= rank
            });
            found.map_or(0, upper)
        };
        Histogram {
            count,
            mean: self.sum.load(Ordering::Relaxed).checked_div(count).unwrap_or(0),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
        }
    }
}

/// Distribution of values. Each figure except count and mean is the upper end of a bucket, so it is
/// up to a quarter too high. Values from 2^41 on (36 minutes in nanoseconds) are shown as 2^41 - 1.
/// Without values, all figures are 0.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let syncs = db.stats().sync_ns;
/// println!("{} syncs, half of them within {} ns", syncs.count, syncs.p50);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Histogram {
    /// Number of values.
    pub count: u64,
    /// Mean of the values, rounded down.
    pub mean: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Maximum.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_is_at_most_a_quarter_wide() {
        let mut values: Vec<u64> = (0..5000).collect();
        values.extend((0..40).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]));
        for value in values {
            let upper = upper(bucket(value));
            assert!(
                upper >= value && upper <= value + value / STEPS as u64,
                "{value} in a bucket up to {upper}"
            );
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let counts = Counts::default();
        assert_eq!(counts.histogram(), Histogram::default());
        (1..=1000).for_each(|value| counts.add(value));
        let found = counts.histogram();
        assert_eq!((found.count, found.mean), (1000, 500));
        for (found, expected) in [
            (found.p50, 500),
            (found.p90, 900),
            (found.p99, 990),
            (found.max, 1000),
        ] {
            assert!(
                (expected..=expected + expected / 4).contains(&found),
                "{found} for {expected}"
            );
        }
    }
}
