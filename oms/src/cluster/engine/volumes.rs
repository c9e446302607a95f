//! Opens a volume that has its log in an engine. First the local copy is brought up to date. Then
//! the log is taken over, and the last entries are copied.
//!
//! **Invariants**
//! - A log is taken over only under a valid lease. So a process that was replaced does not take a
//!   volume from its successor.
//! - A takeover appends an entry to the log and makes this process the owner of the volume. The
//!   volume is served once the local copy has all entries up to that one.
//! - If the engine does not respond, or the log has a newer owner, the volume stays closed without
//!   an error. In the first case the caller tries again. In the second case the state names another
//!   node.
//!
//! The choice of the volumes is in `control`. Beats and leases are in `beat`.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;

use crate::cluster::engine::EngineCluster;
use crate::cluster::engine::beat::LEASE_WAIT;
use crate::cluster::engine::joining::check_fitness;
use crate::cluster::{Authority, Expected, Soon, VolumeLog, Volumes};
use crate::error::{NodeError, StorageError, with_causes};
use crate::postgres::{EngineUrl, Session, SessionError};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::follow::Follower;
use crate::storage::log::cache::{Cache, CatchUpError, catch_up};
use crate::storage::log::engine::EngineLog;
use crate::storage::log::takeover::{Takeover, is_before, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{Log, LogError};
use crate::storage::volume::Volume;

/// Pause if the former server of a volume may still have a lease. The caller repeats the attempt at
/// once, so without the pause it would spin.
const LEASE_PAUSE: Duration = Duration::from_millis(10);
/// Pause after a failed takeover. The caller repeats the attempt at once, so without the pause it
/// would spin.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The parameters of opening a volume.
pub(crate) struct Opening<'a> {
    pub(crate) volume: &'a str,
    /// The node that opens the volume.
    pub(crate) owner: &'a str,
    /// The version of the cluster's state in which the volume was assigned to the node.
    pub(crate) since: u64,
    pub(crate) expected: Expected,
    /// The engine's URL, for error messages.
    pub(crate) place: String,
    /// Two connections to the log: one for commits, one for checkpoints.
    pub(crate) logs: [Box<dyn Log>; 2],
}

/// The reason why a volume was not opened.
enum Unopened {
    /// The volume cannot be opened now, but a later attempt may succeed.
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

/// Returns the folder with a node's local copy of a volume.
pub(super) fn cache_folder(data: &Path, node: &str, volume: &str) -> PathBuf {
    data.join("cache").join(node).join(volume)
}

impl EngineCluster {
    fn cache_folder(&self, volume: &str) -> PathBuf {
        cache_folder(&self.data, self.name.as_str(), volume)
    }

    /// Returns the URL of the engine that stores a log.
    fn engine_of(&self, log: &VolumeLog) -> Result<Arc<EngineUrl>, NodeError> {
        match &log.engine {
            None => Ok(Arc::clone(&self.url)),
            Some(text) => further_engine(text, &self.url).map(Arc::new),
        }
    }

    /// Returns the URL of the engine that stores a log, or `None` if that engine cannot be used
    /// now.
    async fn usable_engine_of(&self, log: &VolumeLog) -> Option<Arc<EngineUrl>> {
        match self.engine_of(log) {
            Ok(url) => self.is_fit(&url).await.then_some(url),
            Err(error) => {
                tracing::error!(error = with_causes(&error), "engine of a volume cannot be used");
                None
            }
        }
    }

    /// Returns `true` if an engine may be used. The engine with the cluster's state was checked
    /// when the node joined. The tables and settings of another engine are checked once, as soon as
    /// this engine responds. Returns `false` while the engine does not respond, and if the check
    /// fails.
    async fn is_fit(&self, url: &Arc<EngineUrl>) -> bool {
        let text = url.to_string();
        let fit = || self.fit.lock();
        if Arc::ptr_eq(url, &self.url) || fit().contains(&text) {
            return true;
        }
        match check_fitness(&mut Session::new(Arc::clone(url), "node"), url).await {
            Ok(()) => {
                fit().insert(text);
                true
            }
            Err(error) if error.is_engine_away() => {
                tracing::debug!(error = with_causes(&error), "engine of a volume does not answer");
                false
            }
            Err(error) => {
                tracing::error!(error = with_causes(&error), "engine of a volume cannot be used");
                false
            }
        }
    }
}

fn log_in(url: &Arc<EngineUrl>, volume: &str, purpose: &'static str) -> Box<dyn Log> {
    Box::new(EngineLog::new(Arc::clone(url), volume, purpose))
}

/// Parses the URL of an engine other than `first`, the engine with the cluster's state. The state
/// contains this URL without a password. Each node takes the password from its environment or
/// password file, or else uses the password of `first`.
pub(super) fn further_engine(text: &str, first: &EngineUrl) -> Result<EngineUrl, NodeError> {
    let parsed: Result<EngineUrl, _> = text.parse();
    parsed
        .map(|url| url.or_password_of(first))
        .map_err(|error| NodeError::EngineUnfit {
            url: text.to_owned(),
            reason: error.to_string(),
        })
}

/// Empties a local copy that belongs to a former volume of the same name. A former volume was
/// removed before version `born` of the cluster's state created the present one.
pub(crate) fn of_this_life(cache: Cache, born: u64) -> Result<Cache, StorageError> {
    let position = cache.position()?;
    if position.is_some_and(|position| position.seq > 0 && is_before(position.epoch, born)) {
        tracing::info!("local copy is of a volume that was removed and created again; it is filled again");
        cache.clear()?;
    }
    Ok(cache)
}

/// Opens or creates the local copy of a volume. An unreadable copy is deleted and created again,
/// because the engine stores all its rows.
pub(super) fn open_cache(folder: &Path) -> Result<Cache, StorageError> {
    // Mode 0700 keeps other users of the machine from reading orders.
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

/// The wait for the end of a former server's lease.
pub(super) struct Waiting {
    /// The version of the cluster's state in which the volume was assigned to this node.
    since: u64,
    /// The time at which this process learned of that version.
    learned: Duration,
    log: EngineLog,
}

impl EngineCluster {
    /// Returns `true` once no former server of a volume can answer reads. The former server is this
    /// node, or has released the volume, or its beat has not changed for `LEASE_WAIT`, or this
    /// process has known the assignment for `LEASE_WAIT`. In the last case, the former server has
    /// either read the new state or has no lease: beats do not extend the lease of a process that
    /// does not know the present state.
    async fn is_free(&self, volume: &NodeName, since: u64, url: &Arc<EngineUrl>) -> bool {
        let known = self.waiting.lock().remove(volume);
        let known = known.filter(|waiting| waiting.since == since);
        let mut waiting = known.unwrap_or_else(|| Waiting {
            since,
            learned: self.shared.now(),
            log: EngineLog::new(Arc::clone(url), volume.as_str(), "owner"),
        });
        let learned = waiting.learned;
        let is_free = match waiting.log.owner().await {
            Ok(None) => true,
            Ok(Some(owner)) => {
                owner == self.name.as_str()
                    || self.shared.now().saturating_sub(learned) >= LEASE_WAIT
                    || self.shared.is_without_lease(&owner, learned)
            }
            Err(_) => false,
        };
        if !is_free {
            self.shared.urge_look.notify_one();
            self.waiting.lock().insert(volume.clone(), waiting);
        }
        is_free
    }

    async fn release_log(&self, volume: &NodeName) -> Result<(), NodeError> {
        // The engine that stores a volume never changes, so the last state that this process knows
        // names the right engine.
        let Some(identity) = self.shared.known_log_of(volume) else {
            return Ok(());
        };
        let url = self.engine_of(&identity)?;
        let mut log = EngineLog::new(Arc::clone(&url), volume.as_str(), "release");
        log.release(self.name.as_str())
            .await
            .map_err(|error| NodeError::Engine {
                action: "release a volume",
                url: url.to_string(),
                source: SessionError::Away {
                    reason: error.to_string(),
                },
            })
    }

    async fn remove_log(&self, volume: &NodeName) -> Result<(), NodeError> {
        let state = Authority::read(self).await?;
        let url = self.engine_of(&state.log_of(volume))?;
        let removed = log_in(&url, volume.as_str(), "remove").remove().await;
        removed.map_err(|error| NodeError::Engine {
            action: "remove a log",
            url: url.to_string(),
            source: SessionError::Away {
                reason: error.to_string(),
            },
        })
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
            let identity = state.log_of(&volume);
            // An unusable engine must affect only the volumes that it stores. So the function
            // returns no error, and the caller tries again later.
            let Some(url) = self.usable_engine_of(&identity).await else {
                tokio::time::sleep(RETRY_PAUSE).await;
                return Ok(None);
            };
            if !self.is_free(&volume, state.since(&volume), &url).await {
                tokio::time::sleep(LEASE_PAUSE).await;
                return Ok(None);
            }
            let followed = self.followers.take(name).await;
            let folder = self.cache_folder(name);
            let opening = Opening {
                volume: name,
                owner: self.name.as_str(),
                since: state.since(&volume),
                expected,
                place: url.to_string(),
                logs: ["log", "checkpoint"].map(|purpose| log_in(&url, name, purpose)),
            };
            let born = identity.born;
            let cache = move || of_this_life(followed.map_or_else(|| open_cache(&folder), Ok)?, born);
            let lease = self.shared.lease_of(&volume, state.since(&volume));
            open(opening, cache, lease).await
        })
    }

    fn release(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.release_log(&volume).await {
                // Without the release, the next server waits until the lease of this process has
                // ended.
                let error = with_causes(&error);
                tracing::debug!(%volume, error, "closed volume not released in the engine");
            }
            Ok(())
        })
    }

    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        Box::pin(async move {
            if let Err(error) = self.remove_log(&volume).await {
                // The rows that remain in the engine only take space, because the volume no longer
                // owns their slots.
                let error = with_causes(&error);
                tracing::warn!(%volume, error, "rows of an empty volume not removed from the engine");
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

    fn follow(self: Arc<Self>, volumes: BTreeMap<NodeName, VolumeLog>) -> Soon<'static, ()> {
        Box::pin(async move {
            let mut lives = BTreeMap::new();
            let mut engines = BTreeMap::new();
            for (volume, log) in &volumes {
                match self.engine_of(log) {
                    Ok(url) => {
                        lives.insert(volume.clone(), log.born);
                        engines.insert(volume, url);
                    }
                    Err(error) => {
                        tracing::error!(%volume, error = with_causes(&error), "volume not followed");
                    }
                }
            }
            let start = |volume: &NodeName| {
                let folder = self.cache_folder(volume.as_str());
                let born = lives.get(volume).copied().unwrap_or(0);
                let url = engines.get(volume).unwrap_or(&self.url);
                let open = move || of_this_life(open_cache(&folder)?, born);
                Follower::start(open, log_in(url, volume.as_str(), "follow"), volume.as_str())
            };
            self.followers.set(&lives, start).await;
            Ok(())
        })
    }
}

/// Takes over a volume and opens it with its local copy. Returns `None` if that is not possible
/// yet.
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
        // The local copy is locked because this process has just lost the volume and is still
        // closing the copy.
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
    // Most entries are copied before the takeover, while the former owner can still commit. That
    // shortens the time in which no node serves the volume.
    if newest.seq > 1 {
        match catch_up(cache, &mut *log, volume, newest.seq - 1, false).await {
            // An old primary that lacks the newest entries may have returned the log. So the
            // difference is only logged, and `catch_up` compares the hash chains again after the
            // takeover.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::log::Position;

    #[test]
    fn a_copy_of_an_earlier_volume_of_the_name_is_emptied_and_a_present_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = Position {
            seq: 17,
            epoch: (5 << 20) + 3,
            ..Position::default()
        };
        let cache = open_cache(folder.path()).unwrap();
        cache.move_to(&at).unwrap();
        for born in [0, 4, 5] {
            let kept = of_this_life(cache.clone(), born).unwrap();
            assert_eq!(kept.position().unwrap(), Some(at), "born at {born}");
        }
        let emptied = of_this_life(cache, 6).unwrap();
        assert_eq!((emptied.position().unwrap(), emptied.rows()), (None, 0));
    }
}
