//! The HTTP API of a node.
//!
//! `request` parses a request, `control::handle` finds the volume that answers it, `fast_path`
//! calls the operation at that volume, and the other modules render the answer.
//!
//! **Invariants**
//! - A request gets the same status and body from every node of a cluster.
//! - Bad input is answered with a 4xx problem that names the field or line.
//!
//! Deliberately absent: decisions about orders and stock, which belong to `volume` and `domain`.

pub(crate) mod console;
pub(crate) mod content;
pub(crate) mod cors;
pub(crate) mod fan_out;
pub(crate) mod fast_path;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod gzip;
pub(crate) mod health;
pub(crate) mod idempotency;
pub(crate) mod internal;
pub(crate) mod node_status;
pub(crate) mod order_body;
pub(crate) mod orders;
pub(crate) mod params;
pub(crate) mod peer_channel;
pub(crate) mod problem;
pub(crate) mod reports;
pub(crate) mod request;
pub(crate) mod ring_document;
pub(crate) mod server;
pub(crate) mod stock_fan_out;
pub(crate) mod stock_query;
pub(crate) mod stock_upload;

use std::sync::{Arc, RwLock};

use tokio::sync::Semaphore;

use crate::domain::sales::Statistics;
use crate::runtime;
use crate::runtime::metrics::{Metrics, VolumeCounters};
use crate::volume::state::VolumeState;
use crate::volume::transactor::Transactors;

pub(crate) use crate::api::console::Console;
pub(crate) use crate::api::fast_path::{AnswerBody, Entrance};
pub(crate) use crate::api::problem::Problem;

/// Maximum number of stock snapshots being received at a time. Each takes some megabytes. The
/// second one is for a sender that tries again while its first upload is still being read.
pub(crate) const SNAPSHOTS_ARRIVING_MAX: usize = 2;

/// The state that all operations on one volume share.
pub(crate) struct App {
    /// Name of the volume.
    pub(crate) volume: String,
    pub(crate) up_since_ms: u64,
    /// Random number that distinguishes this instance from earlier ones over the same volume.
    incarnation: u64,
    pub(crate) transactors: Arc<Transactors>,
    pub(crate) statistics: Arc<RwLock<Statistics>>,
    pub(crate) counters: Arc<VolumeCounters>,
    snapshot_turns: Semaphore,
    applying: tokio::sync::Mutex<()>,
    in_progress: idempotency::InProgress,
}

impl App {
    /// Returns the shared state over the transactors of a volume.
    pub(crate) fn new(
        volume: String,
        transactors: Arc<Transactors>,
        statistics: Arc<RwLock<Statistics>>,
        metrics: &Metrics,
    ) -> App {
        App {
            counters: metrics.of_volume(&volume),
            volume,
            up_since_ms: transactors.state().clock.now_ms(),
            transactors,
            statistics,
            incarnation: runtime::random_u64(),
            snapshot_turns: Semaphore::new(SNAPSHOTS_ARRIVING_MAX),
            applying: tokio::sync::Mutex::new(()),
            in_progress: idempotency::InProgress::default(),
        }
    }

    pub(crate) fn state(&self) -> &Arc<VolumeState> {
        self.transactors.state()
    }

    /// Locks out stock uploads: no snapshot and no change of the stock is applied while the guard
    /// exists.
    pub(crate) async fn lock_stock_uploads(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.applying.lock().await
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_openapi_document_lists_every_order_state() {
        let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let states = &document["components"]["schemas"]["Order"]["properties"]["state"]["enum"];
        let names: Vec<&str> = crate::domain::order::State::ALL
            .iter()
            .map(|state| state.name())
            .collect();
        assert_eq!(*states, serde_json::json!(names));
    }
}
