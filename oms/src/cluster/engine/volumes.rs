//! Opens a volume whose log is in an engine: bring the local copy up to date, take the log over,
//! copy the last entries.
//!
//! **Invariants**
//! - A log is taken over only under a valid lease. So a process that was replaced does not take a
//!   volume from its successor.
//! - A takeover appends an entry of its own to the log. The volume is served once the local copy
//!   has all entries up to that one.
//! - If the engine does not answer, or the log has a newer owner, the volume stays closed. Neither
//!   is an error: the caller tries again, or the state names another node.
//!
//! Deliberately absent: the choice of the volumes (`control`), beats and leases (`beat`).

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;

use crate::cluster::engine::EngineCluster;
use crate::cluster::{Authority, Expected, Soon, Volumes};
use crate::error::{NodeError, StorageError, with_causes};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::follow::Follower;
use crate::storage::log::cache::{Cache, CatchUpError, catch_up};
use crate::storage::log::engine::EngineLog;
use crate::storage::log::takeover::{Takeover, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{Log, LogError};
use crate::storage::volume::Volume;

/// Pause after a takeover that did not succeed, because the caller tries again at once.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The parameters of opening a volume.
pub(crate) struct Opening<'a> {
    pub(crate) volume: &'a str,
    /// The node that opens it.
    pub(crate) owner: &'a str,
    /// The version of the cluster's state in which the node serves the volume.
    pub(crate) since: u64,
    pub(crate) expected: Expected,
    /// The engine's URL, for errors.
    pub(crate) place: String,
    /// Two connections to the log: for commits and for checkpoints.
    pub(crate) logs: [Box<dyn Log>; 2],
}

/// The reason why a volume was not opened.
enum Unopened {
    /// A later attempt may succeed.
    Later,
    Failed(NodeError),
}

impl From<LogError> for Unopened {
    fn from(error: LogError) -> Unopened {
        tracing::debug!(%error, "volume not opened yet");
        Unopened::Later
    }
}

impl From<CatchUpError> for Unopened {
    fn from(error: CatchUpError) -> Unopened {
        match error {
            CatchUpError::Log(error) => error.into(),
            CatchUpError::Differs(_) => Unopened::Later,
            CatchUpError::Storage(error) => Unopened::Failed(error.into()),
        }
    }
}

/// Returns the folder of a node's local copy of a volume.
pub(super) fn cache_folder(data: &Path, node: &str, volume: &str) -> PathBuf {
    data.join("cache").join(node).join(volume)
}

impl EngineCluster {
    fn cache_folder(&self, volume: &str) -> PathBuf {
        cache_folder(&self.data, self.name.as_str(), volume)
    }

    fn log(&self, volume: &str, purpose: &'static str) -> Box<dyn Log> {
        Box::new(EngineLog::new(Arc::clone(&self.url), volume, purpose))
    }
}

/// Opens or creates the local copy of a volume. An unreadable copy is deleted and created again,
/// because the engine has all its rows.
pub(super) fn open_cache(folder: &Path) -> Result<Cache, StorageError> {
    // Other users of the machine must not read orders.
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    match Cache::open_in(folder) {
        Err(error) if !error.is_locked() && !error.is_full_disk() => {
            tracing::error!(
                folder = %folder.display(),
                error = with_causes(&error),
                "local copy of a volume is unreadable; deleting it and copying the volume again",
            );
            let _ = std::fs::remove_dir_all(folder);
            let _ = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder);
            Cache::open_in(folder)
        }
        opened => opened,
    }
}

impl Volumes for EngineCluster {
    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>> {
        Box::pin(async move {
            let state = Authority::read(&*self).await?;
            if state.serving.get(&volume) != Some(&self.name) {
                return Ok(None);
            }
            let name = volume.as_str();
            let followed = self.followers.take(name).await;
            let folder = self.cache_folder(name);
            let opening = Opening {
                volume: name,
                owner: self.name.as_str(),
                since: state.since(&volume),
                expected,
                place: self.url.to_string(),
                logs: [self.log(name, "log"), self.log(name, "checkpoint")],
            };
            let cache = move || followed.map_or_else(|| open_cache(&folder), Ok);
            open(opening, cache, self.lease()).await
        })
    }

    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.log(volume.as_str(), "remove").remove().await {
                // The rows only take space: no node opens a volume without slots.
                tracing::warn!(%volume, %error, "rows of an empty volume not removed from the engine");
            }
            let folder = self.cache_folder(volume.as_str());
            let removed = runtime::blocking(move || std::fs::remove_dir_all(folder)).await;
            if let Ok(Err(error)) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%volume, %error, "local copy of an empty volume not removed");
            }
            Ok(())
        })
    }

    fn follow(self: Arc<Self>, volumes: BTreeSet<NodeName>) -> Soon<'static, ()> {
        Box::pin(async move {
            let start = |volume: &str| {
                let folder = self.cache_folder(volume);
                Follower::start(move || open_cache(&folder), self.log(volume, "follow"), volume)
            };
            self.followers.set(&volumes, start).await;
            Ok(())
        })
    }
}

/// Takes a volume over and opens it with a local copy. Returns `None` if this is not possible yet.
pub(crate) async fn open(
    opening: Opening<'_>,
    cache: impl FnOnce() -> Result<Cache, StorageError> + Send + 'static,
    lease: impl Fn() -> bool + Send + Sync + 'static,
) -> Result<Option<Volume>, NodeError> {
    if !lease() {
        tokio::time::sleep(RETRY_PAUSE).await;
        return Ok(None);
    }
    let opened = runtime::blocking(cache).await;
    let cache = match opened.unwrap_or(Err(StorageError::Closed)) {
        Ok(cache) => cache,
        // This process lost the volume a moment ago and is still closing its copy.
        Err(error) if error.is_locked() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match take(opening, &cache, &lease).await {
        Ok(writer) => {
            let volume = Volume::behind_log(cache, writer)?;
            Ok(Some(volume.leased_while(lease)))
        }
        Err(unopened) => {
            let closed = runtime::blocking(move || cache.close()).await;
            closed.unwrap_or(Err(StorageError::Closed))?;
            match unopened {
                Unopened::Failed(error) => Err(error),
                Unopened::Later => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    Ok(None)
                }
            }
        }
    }
}

async fn take(
    opening: Opening<'_>,
    cache: &Cache,
    lease: &(impl Fn() -> bool + Sync),
) -> Result<LogWriter, Unopened> {
    let Opening { volume, owner, .. } = opening;
    let [mut log, checkpoints] = opening.logs;
    let newest = log.newest().await?;
    // Copies most entries before the takeover, while the former owner can still commit. That
    // shortens the time in which no node serves the volume.
    if newest.seq > 1 {
        match catch_up(cache, &mut *log, volume, newest.seq - 1, false).await {
            // An old primary may have answered, which lacks the newest entries. The copy after the
            // takeover compares again.
            Err(CatchUpError::Differs(fault)) => tracing::warn!(volume, fault, "local copy differs"),
            copied => drop(copied?),
        }
    }
    if !lease() {
        return Err(Unopened::Later);
    }
    let creates = opening.expected == Expected::MaybeNew;
    let (epoch, position) = match take_over(&mut *log, owner, opening.since, creates).await? {
        Takeover::Owned { epoch, position } => (epoch, position),
        Takeover::Newer => return Err(Unopened::Later),
        Takeover::Missing => {
            return Err(Unopened::Failed(NodeError::VolumeNotInEngine {
                volume: volume.to_owned(),
                url: opening.place,
            }));
        }
    };
    let copied = catch_up(cache, &mut *log, volume, position.seq, true).await?;
    if copied != position && !seeded("engine-chain-not-compared") {
        let reason = "the entry differs from the one that this process wrote at the takeover".to_owned();
        let entry = position.seq;
        return Err(Unopened::Failed(StorageError::Log { entry, reason }.into()));
    }
    if !lease() {
        return Err(Unopened::Later);
    }
    tracing::info!(
        volume,
        epoch,
        entry = position.seq,
        "volume taken over in the engine"
    );
    let writer = LogWriter::new(log, volume, epoch, position);
    let status = Arc::clone(writer.status());
    runtime::spawn(Checkpointer::new(checkpoints).run(volume.to_owned(), status));
    Ok(writer)
}
