//! The part of a volume server that the operations of the API use.
//!
//! **Invariants**
//! - At most `SNAPSHOTS_ARRIVING_MAX` stock uploads (snapshots and changes) are received at the
//!   same time. They are applied one after the other.
//! - Two requests with the same idempotency key are never in progress at the same time in a volume.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::domain::sales::Statistics;
use crate::runtime;
use crate::runtime::metrics::{Metrics, VolumeCounters};
use crate::volume::jobs::stat_import::importer::Importer;
use crate::volume::state::VolumeState;
use crate::volume::transactor::Transactors;

/// Maximum number of stock uploads (snapshots and changes) that are received at the same time. A
/// usual snapshot uses some megabytes of memory. The limit is two, so that a sender may try again
/// while its first upload is still being read.
pub(crate) const SNAPSHOTS_ARRIVING_MAX: usize = 2;

/// The state that all operations on one volume share.
pub(crate) struct App {
    /// Name of the served volume.
    pub(crate) volume: String,
    pub(crate) up_since_ms: u64,
    /// Random number that distinguishes this volume server from earlier volume servers of the same
    /// volume.
    pub(crate) incarnation: u64,
    pub(crate) transactors: Arc<Transactors>,
    pub(crate) statistics: Arc<RwLock<Statistics>>,
    pub(crate) counters: Arc<VolumeCounters>,
    /// Adds statistics files to `statistics`, if this volume has the slot of the statistics.
    pub(crate) stat_files: Arc<Importer>,
    pub(crate) snapshot_turns: Semaphore,
    /// Locked while a stock upload is applied, and while slots are activated or released.
    pub(crate) applying: tokio::sync::Mutex<()>,
    pub(crate) in_progress: Arc<InProgress>,
}

impl App {
    /// Creates the shared state of a volume with these transactors.
    pub(crate) fn new(
        volume: String,
        transactors: Arc<Transactors>,
        statistics: Arc<RwLock<Statistics>>,
        metrics: &Metrics,
    ) -> App {
        let counters = metrics.of_volume(&volume);
        App {
            stat_files: Arc::new(Importer::new(
                Arc::clone(transactors.state()),
                Arc::clone(&statistics),
                Arc::clone(&counters),
            )),
            counters,
            volume,
            up_since_ms: transactors.state().clock.now_ms(),
            transactors,
            statistics,
            incarnation: runtime::random_u64(),
            snapshot_turns: Semaphore::new(SNAPSHOTS_ARRIVING_MAX),
            applying: tokio::sync::Mutex::new(()),
            in_progress: Arc::default(),
        }
    }

    /// Creates the shared state of the volume `a`, without statistics.
    #[cfg(test)]
    pub(crate) fn of(transactors: &Arc<Transactors>) -> App {
        App::new(
            "a".to_owned(),
            Arc::clone(transactors),
            Arc::new(RwLock::new(Statistics::default())),
            &Metrics::default(),
        )
    }

    pub(crate) fn state(&self) -> &Arc<VolumeState> {
        self.transactors.state()
    }

    /// Locks out stock uploads: no uploaded snapshot or change is applied while the guard exists.
    pub(crate) async fn lock_stock_uploads(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.applying.lock().await
    }
}

/// Idempotency keys of the requests in progress.
#[derive(Default)]
pub(crate) struct InProgress(Mutex<HashSet<String>>);

/// Reserves a key while its request is in progress. Dropping the claim frees the key. A claim may
/// outlive the connection of its request, because a separate task finishes the request.
pub(crate) struct Claim {
    of: Arc<InProgress>,
    key: String,
}

impl InProgress {
    /// Reserves a key. Returns `None` if another request with this key is in progress.
    pub(crate) fn claim(self: &Arc<Self>, key: &str) -> Option<Claim> {
        let mut keys = self.0.lock();
        // The claim is only created if the key was free: a claim that is dropped frees the key.
        keys.insert(key.to_owned()).then(|| Claim {
            of: Arc::clone(self),
            key: key.to_owned(),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut keys = self.of.0.lock();
        keys.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_claimed_by_one_request_at_a_time() {
        let keys = Arc::new(InProgress::default());
        let first = keys.claim("a");
        assert!(first.is_some());
        for _ in 0..2 {
            assert!(keys.claim("a").is_none());
        }
        assert!(keys.claim("b").is_some());
        drop(first);
        assert!(keys.claim("a").is_some());
    }
}
