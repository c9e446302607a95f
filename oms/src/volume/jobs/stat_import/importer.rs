//! Adds statistics files to the statistics of one volume.
//!
//! **Invariants**
//! - One file is added at a time, so no sums of another file are lost when new sums replace the
//!   former ones.
//! - The key of a file is committed together with the new sums. A file with a stored key is not
//!   added again.
//! - The key of a file is its name. With an engine, the id of the folder and a slash come before
//!   the name.
//!
//! Deliberately absent: folders and their files (`stat_import`, `folder`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::domain::sales::{self, Statistics};
use crate::error::StorageError;
use crate::runtime::metrics::VolumeCounters;
use crate::storage::write_batch::WriteBatch;
use crate::volume::jobs::stat_import::name;
use crate::volume::state::VolumeState;

/// The outcome for a file that was passed to the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Imported {
    /// The lines of the file were added.
    Added,
    /// A file with the same key had been added before.
    Known,
    /// The file is never added, for this reason.
    Refused(String),
}

/// Adds files to the statistics of a volume.
pub(crate) struct Importer {
    pub(super) state: Arc<VolumeState>,
    pub(super) statistics: Arc<RwLock<Statistics>>,
    pub(super) counters: Arc<VolumeCounters>,
    turn: tokio::sync::Mutex<()>,
}

impl Importer {
    /// Creates an importer for a volume.
    pub(crate) fn new(
        state: Arc<VolumeState>,
        statistics: Arc<RwLock<Statistics>>,
        counters: Arc<VolumeCounters>,
    ) -> Importer {
        Importer {
            state,
            statistics,
            counters,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the outcome for a file if its key and name alone decide it. Returns `None` if the
    /// content of the file must be read.
    pub(super) fn foreseen(&self, key: &str, name: &str) -> Result<Option<Imported>, StorageError> {
        if self.state.storage.knows_stat_file(key)? {
            return Ok(Some(Imported::Known));
        }
        let now_ms = self.state.clock.now_ms();
        if name::is_implausible(name, now_ms) {
            let reason = "its name is more than a day ahead of this node's clock";
            return Ok(Some(Imported::Refused(reason.to_owned())));
        }
        let mark = self.state.storage.stat_files_forgotten()?;
        if name::may_be_forgotten(name, mark.as_deref(), now_ms) {
            let reason = "it is older than the stored names, so it may have been added before";
            return Ok(Some(Imported::Refused(reason.to_owned())));
        }
        Ok(None)
    }

    /// Adds the content of a whole file to the statistics. The caller must await this future to its
    /// end. If the future is dropped early, the sums may be committed but missing in memory.
    pub(crate) async fn add(&self, key: &str, name: &str, body: &[u8]) -> Result<Imported, StorageError> {
        let _turn = self.turn.lock().await;
        let state = &self.state;
        state.slots.check_statistics()?;
        if let Some(foreseen) = self.foreseen(key, name)? {
            return Ok(foreseen);
        }
        let file = match sales::read_file(body) {
            Ok(file) => file,
            Err(fault) => return Ok(Imported::Refused(fault.to_string())),
        };
        // Files are added one at a time, and nothing else changes the statistics while this volume
        // owns them. So the sums computed here are still current when they replace the former sums.
        let version = state.slots.version();
        let sums = self.statistics.read().with(&file);
        let mut batch = WriteBatch::default();
        batch.stat_file(key, state.clock.now_ms(), &sums);
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            // Once the slot of the statistics is sealed or has moved, no file is added here. The
            // volume that then owns the slot will add the file.
            state.slots.check_statistics()?;
            if state.slots.version() != version {
                return Err(StorageError::Closed);
            }
            batch.fence(state.slots.fence_of_statistics());
            permit.send(batch)
        };
        ticket.durable().await?;
        self.statistics.write().replace(sums);
        self.counters.stat_files.fetch_add(1, Ordering::Relaxed);
        Ok(Imported::Added)
    }
}
