//! Copies a volume out of the engine, for the commands `imt volume export` and `imt volume
//! rebuild`.
//!
//! **Invariants**
//! - The engine is only read. Nodes may run during an export. A rebuild needs exclusive use of the
//!   node's local copy.
//! - A copy contains the effects of all entries of the volume's log up to one entry. The result
//!   names that entry.
//!
//! The commands' output is in the crate `cli`.

use std::path::Path;
use std::sync::Arc;

use imt_ring::NodeName;

use crate::cluster::engine::backend::{copy_folder, further_engine, open_copy};
use crate::cluster::engine::tools::state_in;
use crate::error::{NodeError, StorageError};
use crate::postgres::{EngineUrl, SessionError};
use crate::runtime;
use crate::storage::log::cache::{Cache, CatchUpError, catch_up};
use crate::storage::log::engine::EngineLog;
use crate::storage::log::{Log, LogError};

/// The extent of a finished copy of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeCopy {
    /// Number of the last log entry that the copy contains.
    pub entry: u64,
    /// Number of rows in the copy, without those of the table `meta`.
    pub rows: u64,
}

/// Copies a volume from the engine into a new MicroDb database in `folder`.
///
/// # Errors
/// `NodeError::Config` if the folder exists, `NodeError::VolumeNotInEngine` for an unknown volume,
/// `NodeError::EngineUnfit` if the stored URL of the volume's engine is invalid,
/// `NodeError::Engine` if an engine cannot be reached or read, or `NodeError::Storage` for a fault
/// of the new database or of a log entry.
pub async fn export_volume(url: &EngineUrl, volume: &str, folder: &Path) -> Result<VolumeCopy, NodeError> {
    if folder.exists() {
        return Err(NodeError::Config {
            setting: "folder",
            reason: format!("{} exists; name a folder that does not exist", folder.display()),
        });
    }
    let url = &engine_of(url, volume).await?;
    let mut log = known(url, volume).await?;
    let last = log.newest().await.map_err(failed(url))?.seq;
    let target = folder.to_owned();
    let cache = blocking(move || Cache::open_in(&target)).await?;
    filled(url, volume, &mut log, cache, last).await
}

/// Deletes the local copy of a volume in a node's data folder, and copies the volume from the
/// engine again. While the function runs, the node must neither serve nor follow the volume.
///
/// # Errors
/// The errors of `export_volume` except `NodeError::Config`. `NodeError::Storage` also if the local
/// copy is in use.
pub async fn rebuild_volume(
    url: &EngineUrl,
    volume: &str,
    node: &str,
    data: &Path,
) -> Result<VolumeCopy, NodeError> {
    let url = &engine_of(url, volume).await?;
    let mut log = known(url, volume).await?;
    // The newest entry may not be acknowledged yet, so a fail-over could still replace it. A node
    // that finds an entry of its local copy missing in the log treats that entry as lost and copies
    // the volume again. So the newest entry is left out.
    let last = log.newest().await.map_err(failed(url))?.seq.saturating_sub(1);
    let folder = copy_folder(data, node, volume);
    let cache = blocking(move || {
        let cache = open_copy(&folder)?;
        cache.clear()?;
        Ok(cache)
    });
    let cache = cache.await?;
    filled(url, volume, &mut log, cache, last).await
}

/// Returns the engine that stores a volume. The cluster's state, which is stored in the first
/// engine, names the engine of each volume that is stored in a further engine.
async fn engine_of(first: &EngineUrl, volume: &str) -> Result<EngineUrl, NodeError> {
    let state = state_in(first).await?;
    let place = state.and_then(|state| {
        let volume = NodeName::new(volume).ok()?;
        state.log_of(&volume).engine
    });
    match place {
        Some(text) => further_engine(&text, first),
        None => Ok(first.clone()),
    }
}

async fn known(url: &EngineUrl, volume: &str) -> Result<EngineLog, NodeError> {
    let mut log = EngineLog::new(Arc::new(url.clone()), volume, "copy");
    match log.head().await.map_err(failed(url))? {
        Some(_) => Ok(log),
        None => Err(NodeError::VolumeNotInEngine {
            volume: volume.to_owned(),
            url: url.to_string(),
        }),
    }
}

async fn filled(
    url: &EngineUrl,
    volume: &str,
    log: &mut EngineLog,
    cache: Cache,
    last: u64,
) -> Result<VolumeCopy, NodeError> {
    let copied = catch_up(&cache, log, volume, last, true).await;
    let rows = cache.rows();
    // A clean close writes a checkpoint of the database, so the next open replays none of its log.
    let closed = blocking(move || cache.close_cleanly()).await;
    match copied {
        Ok(position) => {
            closed?;
            let entry = position.seq;
            Ok(VolumeCopy { entry, rows })
        }
        Err(CatchUpError::Log(error)) => Err(failed(url)(error)),
        Err(CatchUpError::Differs(fault)) => Err(failed(url)(LogError::Away(fault))),
        Err(CatchUpError::Storage(error)) => Err(error.into()),
        Err(CatchUpError::Stopped) => Err(StorageError::Closed.into()),
    }
}

fn failed(url: &EngineUrl) -> impl Fn(LogError) -> NodeError {
    let url = url.to_string();
    move |error| {
        let source = match error {
            LogError::Away(reason) => SessionError::Away { reason },
            LogError::Unknown(reason) => SessionError::Unknown { reason },
        };
        NodeError::Engine {
            action: "read the volume",
            url: url.clone(),
            source,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, NodeError> {
    let done = runtime::blocking(work).await;
    Ok(done.unwrap_or(Err(StorageError::Closed))?)
}
