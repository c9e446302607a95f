//! Counters of an open database, and the display of sizes with units.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::histogram::Counts;

/// A count that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts since the database was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commits: Counter,
    pub(crate) records: Counter,
    pub(crate) groups: Counter,
    pub(crate) syncs: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) segments_removed: Counter,
    pub(crate) relocated_bytes: Counter,
    pub(crate) write_stalls: Counter,
    pub(crate) write_stall_ns: Counter,
    pub(crate) group_commits: Counts,
    pub(crate) sync_ns: Counts,
    pub(crate) durable_commit_ns: Counts,
}

/// A number of bytes, displayed with a unit, for example "1.5 MiB".
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        for unit in ["bytes", "KiB", "MiB", "GiB"] {
            if value < 1024.0 {
                let decimals = usize::from(unit != "bytes");
                return write!(f, "{value:.decimals$} {unit}");
            }
            value /= 1024.0;
        }
        write!(f, "{value:.1} TiB")
    }
}
