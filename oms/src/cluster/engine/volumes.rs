//! Opens a volume that has its log in an engine. First the local copy is brought up to date. Then
//! the log is taken over, and the last entries are copied.
//!
//! **Invariants**
//! - A log is taken over only under a valid lease. So a process that was replaced does not take a
//!   volume from its successor.
//! - Before a log is taken over, no former server of the volume can answer reads (`is_free`). The
//!   clocks of two machines are not compared. They must only run at about the same rate.
//! - A volume is released and removed with the epoch under which it was opened. So a release or
//!   removal that is repeated, or that the engine executes late, has no effect on a later opening.
//! - A takeover appends an entry to the log and makes this process the owner of the volume. The
//!   volume is served once the local copy has all entries up to that one.
//! - If a statement on the log fails, or the log has a newer owner, the volume stays closed without
//!   an error. The caller then tries again, unless the state assigns the volume to another node by
//!   then. A log or a ring that is later than the state stays later (`restored`).
//! - An access that waits for the end of a lease is kept only while the volume is assigned to this
//!   node.
//!
//! The choice of the volumes is in `control`. Beats and leases are in `beat` and `shared`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use imt_ring::NodeName;

use crate::cluster::engine::EngineCluster;
use crate::cluster::engine::beat::LEASE_WAIT;
use crate::cluster::engine::restored::Ahead;
use crate::cluster::{Authority, ClusterState, Expected, Soon, VolumeLog, Volumes};
use crate::error::{NodeError, StorageError, with_causes};
use crate::postgres::SessionError;
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::storage::checkpoint::Checkpointer;
use crate::storage::follow::Follower;
use crate::storage::log::cache::{Cache, CatchUpError, catch_up};
use crate::storage::log::takeover::{Takeover, is_before, take_over};
use crate::storage::log::writer::LogWriter;
use crate::storage::log::{Log, LogError};
use crate::storage::volume::Volume;

/// Pause after an attempt to open a volume that failed because the former server may still have a
/// lease, or because the owner of the log could not be read or confirmed. The pause bounds the
/// number of statements until the lease ends.
const LEASE_PAUSE: Duration = Duration::from_millis(10);
/// Pause after an attempt to open a volume that failed because its engine is not usable, its log
/// could not be taken over, or this node had no lease. The next attempt would probably fail too if
/// it followed at once.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Pause after an attempt to open a volume that is ahead of the cluster's state. Only an operator
/// can end this fault.
const AHEAD_PAUSE: Duration = Duration::from_secs(1);

/// Number of failed attempts after which the hosts of the engine are tried in the same order again.
/// It is a multiple of the usual numbers of hosts, so that each host comes first equally often.
const SERVERS_MAX: usize = 12;

/// The parameters of opening a volume.
struct Opening<'a> {
    volume: &'a str,
    /// The node that opens the volume.
    owner: &'a str,
    /// The version of the cluster's state in which the volume was assigned to the node.
    since: u64,
    expected: Expected,
    /// The engine's URL, for error messages.
    place: String,
    /// The epoch of the cluster's ring.
    ring: u64,
    /// Two connections to the log: one for commits, one for checkpoints.
    logs: [Box<dyn Log>; 2],
}

/// The reason why a volume was not opened.
enum Unopened {
    /// The volume cannot be opened now, but a later attempt may succeed.
    Later,
    /// The log is later than the state with which the attempt began. The state must be read again.
    Ahead(Ahead),
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
            CatchUpError::Differs(_) | CatchUpError::Stopped => Unopened::Later,
            CatchUpError::Storage(error) => Unopened::Failed(error.into()),
        }
    }
}

/// Empties a local copy that belongs to a former volume of the same name. A former volume was
/// removed before version `born` of the cluster's state created the present one.
fn of_this_life(cache: Cache, born: u64) -> Result<Cache, StorageError> {
    let position = cache.position()?;
    if position.is_some_and(|position| position.seq > 0 && is_before(position.epoch, born)) {
        tracing::info!("local copy is of a volume that was removed and created again; it is filled again");
        cache.clear()?;
    }
    Ok(cache)
}

/// The log of a volume that this process has opened.
struct OpenedLog {
    log: Box<dyn Log>,
    /// The epoch under which this process opened the volume last.
    epoch: u64,
    /// The engine's URL, for error messages.
    url: String,
}

fn failed(action: &'static str, url: String, error: LogError) -> NodeError {
    let source = match error {
        LogError::Away(reason) => SessionError::Away { reason },
        LogError::Unknown(reason) => SessionError::Unknown { reason },
    };
    NodeError::Engine { action, url, source }
}

/// The wait for the end of a former server's lease.
pub(super) struct Waiting {
    /// The version of the cluster's state in which the volume was assigned to this node.
    since: u64,
    /// A time at which this process already knew that version.
    learned: Duration,
    log: Box<dyn Log>,
}

impl EngineCluster {
    /// Returns `true` once no former server of a volume can answer reads. Returns `false` also if
    /// the owner of the log could not be read and confirmed. There are three cases of `true`:
    /// - No other node has the volume: the former server has released it, or was this node, or
    ///   there was none.
    /// - `LEASE_WAIT` has passed since this process learned that it must serve the volume. Every
    ///   beat that was sent later returns the new version, so the former server learns of the
    ///   change before a beat extends its lease again.
    /// - The former server has ended or was silent for that time, and a demand was written to its
    ///   row before its next beat (`ClusterTables::demand`).
    async fn is_free(&self, volume: &NodeName, state: &ClusterState, place: &VolumeLog) -> bool {
        let since = state.since(volume);
        let known = self.waiting.lock().remove(volume);
        let known = known.filter(|waiting| waiting.since == since);
        let learned = self.shared.now();
        let mut waiting = match known {
            Some(known) => known,
            None => match self.log(place, volume.as_str(), "owner") {
                Ok(log) => Waiting { since, learned, log },
                Err(_) => return false,
            },
        };
        let is_free = match waiting.log.owner().await {
            Ok(Some(owner)) if owner != self.name.as_str() => {
                self.shared.now().saturating_sub(waiting.learned) >= LEASE_WAIT
                    || seeded("engine-lease-not-awaited")
                    || self.is_without_lease(&owner, state.version).await
            }
            Ok(_) if seeded("engine-owner-not-confirmed") => true,
            // An old primary may show an earlier owner, so the answer must be confirmed.
            Ok(_) => waiting.log.confirm().await == Ok(true),
            Err(_) => false,
        };
        if !is_free {
            self.shared.urge_look.notify_one();
            let mut all = self.waiting.lock();
            if self.shared.has_assigned(volume, since) {
                all.insert(volume.clone(), waiting);
            }
        }
        is_free
    }

    /// Returns the number of volumes that wait for the end of a lease.
    #[cfg(test)]
    pub(crate) fn waiting_for_leases(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Removes the data about attempts to open volumes that are not assigned to this node any more.
    fn forget_attempts(&self) {
        let is_kept =
            |volume: &NodeName, waiting: &mut Waiting| self.shared.has_assigned(volume, waiting.since);
        self.waiting.lock().retain(is_kept);
        self.complaints
            .retain(|volume| NodeName::new(volume).is_ok_and(|volume| self.shared.is_mine(&volume)));
    }

    /// Returns `true` if a node has ended or has been silent for `LEASE_WAIT`, and the engine has
    /// recorded a demand: before a later beat extends the node's lease, the node must know the
    /// cluster's state of this `version` or of a later one.
    async fn is_without_lease(&self, node: &str, version: u64) -> bool {
        let Some(last) = self.shared.silent(node) else {
            return false;
        };
        if seeded("engine-silence-trusted") {
            return true;
        }
        self.table.demand(node, &last, version).await.unwrap_or(false)
    }

    /// Returns an access to the log of a volume that this process has opened, with the epoch of the
    /// last opening. `None` if the process has not opened the volume, or has removed it since.
    fn opened_log(&self, volume: &NodeName, purpose: &'static str) -> Result<Option<OpenedLog>, NodeError> {
        let epoch = self.epochs.lock().get(volume).copied();
        // A log stays in its engine, so an old state of the cluster also names the right engine.
        let (Some(epoch), Some(place)) = (epoch, self.shared.known_log_of(volume)) else {
            return Ok(None);
        };
        let log = self.backend.log(&place, volume.as_str(), purpose)?;
        let url = self.backend.url_of(&place);
        Ok(Some(OpenedLog { log, epoch, url }))
    }

    async fn release_log(&self, volume: &NodeName) -> Result<(), NodeError> {
        let Some(OpenedLog { mut log, epoch, url }) = self.opened_log(volume, "release")? else {
            return Ok(());
        };
        let released = log.release(epoch).await;
        released.map_err(|error| failed("release a volume", url, error))
    }

    async fn remove_log(&self, volume: &NodeName) -> Result<(), NodeError> {
        let Some(OpenedLog { mut log, epoch, url }) = self.opened_log(volume, "remove")? else {
            return Ok(());
        };
        let removed = log.remove(epoch).await;
        removed.map_err(|error| failed("remove the log of a volume", url, error))?;
        let mut epochs = self.epochs.lock();
        if epochs.get(volume) == Some(&epoch) {
            epochs.remove(volume);
        }
        Ok(())
    }

    async fn remove_copy(&self, volume: &NodeName) -> Result<(), NodeError> {
        let (backend, copied) = (Arc::clone(&self.backend), volume.clone());
        let removed = runtime::blocking(move || backend.remove_copy(copied.as_str())).await;
        match removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(NodeError::Folder {
                action: "remove the local copy of a volume in",
                path: self.backend.folder_of_copy(volume.as_str()),
                source,
            }),
            _ => Ok(()),
        }
    }

    async fn open_volume(&self, volume: NodeName, expected: Expected) -> Result<Option<Volume>, NodeError> {
        let state = Authority::read(self).await?;
        self.forget_attempts();
        if state.serving.get(&volume) != Some(&self.name) {
            return Ok(None);
        }
        let (name, place) = (volume.as_str(), state.log_of(&volume));
        // An unusable engine must affect only the volumes that it stores. So this is not an error.
        if !self.backend.is_usable(&place).await {
            tokio::time::sleep(RETRY_PAUSE).await;
            return Ok(None);
        }
        if !self.is_free(&volume, &state, &place).await {
            tokio::time::sleep(LEASE_PAUSE).await;
            return Ok(None);
        }
        let log = |purpose| self.log(&place, name, purpose);
        let opening = Opening {
            volume: name,
            owner: self.name.as_str(),
            since: state.since(&volume),
            expected,
            place: self.backend.url_of(&place),
            // The epoch of a slot is at least 1, also in a ring with the epoch 0.
            ring: state.ring.epoch().0.max(1),
            logs: [log("log")?, log("checkpoint")?],
        };
        let followed = self.followers.take(name).await;
        let (backend, copied) = (Arc::clone(&self.backend), volume.clone());
        let born = place.born;
        let cache = move || {
            let cache = followed.map_or_else(|| backend.open_copy(copied.as_str()), Ok)?;
            of_this_life(cache, born)
        };
        let lease = self.shared.lease_of(&volume, state.since(&volume));
        match open(opening, cache, lease).await? {
            Attempted::Opened(opened, epoch) => {
                self.complaints.clear(name);
                self.epochs.lock().insert(volume, epoch);
                return Ok(Some(*opened));
            }
            Attempted::Unopened(Some(found)) if self.is_ahead(&volume, &place, found).await? => {
                tokio::time::sleep(AHEAD_PAUSE).await;
            }
            Attempted::Unopened(_) => {}
        }
        self.unopened.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Creates an access to a log for an attempt to open its volume. After a failed attempt, the
    /// next one begins with another host of the engine: an old primary accepts connections, but
    /// acknowledges no takeover.
    fn log(&self, place: &VolumeLog, volume: &str, purpose: &'static str) -> Result<Box<dyn Log>, NodeError> {
        let mut log = self.backend.log(place, volume, purpose)?;
        for _ in 0..self.unopened.load(Ordering::Relaxed) % SERVERS_MAX {
            log.next_host();
        }
        Ok(log)
    }

    async fn follow_volumes(&self, volumes: BTreeMap<NodeName, VolumeLog>) {
        self.forget_attempts();
        let mut logs = BTreeMap::new();
        for (volume, place) in volumes {
            match self.backend.log(&place, volume.as_str(), "follow") {
                Ok(log) => drop(logs.insert(volume, (place.born, log))),
                Err(error) => {
                    tracing::error!(%volume, error = with_causes(&error), "volume not followed");
                }
            }
        }
        let start = |volume: &NodeName, born, log| {
            let (backend, copied) = (Arc::clone(&self.backend), volume.clone());
            let open = move || of_this_life(backend.open_copy(copied.as_str())?, born);
            Follower::start(open, log, volume.as_str())
        };
        self.followers.set(logs, start).await;
    }
}

impl Volumes for EngineCluster {
    fn are_local(&self) -> bool {
        false
    }

    fn open(self: Arc<Self>, volume: NodeName, expected: Expected) -> Soon<'static, Option<Volume>> {
        Box::pin(async move { self.open_volume(volume, expected).await })
    }

    fn release(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        Box::pin(async move { self.release_log(&volume).await })
    }

    fn remove(self: Arc<Self>, volume: NodeName) -> Soon<'static, ()> {
        Box::pin(async move {
            let log_removed = self.remove_log(&volume).await;
            let copy_removed = self.remove_copy(&volume).await;
            log_removed.and(copy_removed)
        })
    }

    fn follow(self: Arc<Self>, volumes: BTreeMap<NodeName, VolumeLog>) -> Soon<'static, ()> {
        Box::pin(async move {
            self.follow_volumes(volumes).await;
            Ok(())
        })
    }
}

/// The result of an attempt to open a volume.
enum Attempted {
    /// The volume with its epoch.
    Opened(Box<Volume>, u64),
    /// The volume cannot be opened yet, in some cases with evidence that it is ahead.
    Unopened(Option<Ahead>),
}

/// Takes over a volume and opens it with its local copy.
async fn open(
    opening: Opening<'_>,
    cache: impl FnOnce() -> Result<Cache, StorageError> + Send + 'static,
    lease: impl Fn() -> bool + Send + Sync + 'static,
) -> Result<Attempted, NodeError> {
    if !(lease() || seeded("engine-opens-without-lease")) {
        tokio::time::sleep(RETRY_PAUSE).await;
        return Ok(Attempted::Unopened(None));
    }
    let opened = runtime::blocking(cache).await;
    let cache = match opened.unwrap_or(Err(StorageError::Closed)) {
        Ok(cache) => cache,
        // The local copy is locked, for example because this process has just lost the volume and
        // is still closing the copy.
        Err(error) if error.is_locked() => return Ok(Attempted::Unopened(None)),
        Err(error) => return Err(error.into()),
    };
    match take(opening, &cache, &lease).await {
        Ok((writer, epoch)) => {
            let volume = Volume::behind_log(cache, writer)?;
            Ok(Attempted::Opened(Box::new(volume.leased_while(lease)), epoch))
        }
        Err(unopened) => {
            let closed = runtime::blocking(move || cache.close()).await;
            closed.unwrap_or(Err(StorageError::Closed))?;
            let found = match unopened {
                Unopened::Failed(error) => return Err(error),
                Unopened::Later => None,
                Unopened::Ahead(found) => Some(found),
            };
            tokio::time::sleep(RETRY_PAUSE).await;
            Ok(Attempted::Unopened(found))
        }
    }
}

/// Fails if a ring of a later epoch than `ring` brought slots to the volume.
fn is_not_later(cache: &Cache, ring: u64) -> Result<(), Unopened> {
    match cache.ring_epoch() {
        epoch if epoch > ring => Err(Unopened::Ahead(Ahead::Ring(epoch))),
        _ => Ok(()),
    }
}

async fn take(
    opening: Opening<'_>,
    cache: &Cache,
    lease: &(impl Fn() -> bool + Sync),
) -> Result<(LogWriter, u64), Unopened> {
    let Opening { volume, owner, .. } = opening;
    let [mut log, checkpoints] = opening.logs;
    let newest = log.newest().await?;
    // Most entries are copied before the takeover. A former owner that still runs can commit until
    // the takeover, so this order shortens the time in which no node commits. A removed volume may
    // have left entries without a record.
    if newest.seq > 1 && log.head().await?.is_some() {
        match catch_up(cache, &mut *log, volume, newest.seq - 1, false).await {
            // An old primary that lacks the newest entries may have returned the log. So the
            // difference is only logged, and `catch_up` compares the hash chains again after the
            // takeover.
            Err(CatchUpError::Differs(fault)) => tracing::warn!(volume, fault, "local copy differs"),
            copied => {
                copied?;
                // A volume of a later ring may have rows that this node would remove as outdated.
                // So its log is left as it is.
                is_not_later(cache, opening.ring)?;
            }
        }
    }
    if !(lease() || seeded("engine-opens-without-lease")) {
        return Err(Unopened::Later);
    }
    let creates = opening.expected == Expected::MaybeNew;
    let (epoch, position) = match take_over(&mut *log, owner, opening.since, creates).await? {
        Takeover::Owned { epoch, position } => (epoch, position),
        Takeover::Newer { epoch } => return Err(Unopened::Ahead(Ahead::Epoch(epoch))),
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
    is_not_later(cache, opening.ring)?;
    if !(lease() || seeded("engine-opens-without-lease")) {
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
    runtime::spawn(Checkpointer::new(checkpoints, writer.epoch()).run(volume.to_owned(), status));
    Ok((writer, epoch))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::cluster::engine::backend::open_copy;
    use crate::runtime::simulated::{Dice, Process};
    use crate::simulation::engine::SimEngine;
    use crate::storage::log::Position;

    #[test]
    fn a_copy_of_an_earlier_volume_of_the_name_is_emptied_and_a_present_one_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = Position {
            seq: 17,
            epoch: (5 << 20) + 3,
            ..Position::default()
        };
        let cache = open_copy(folder.path()).unwrap();
        cache.move_to(&at).unwrap();
        for born in [0, 4, 5] {
            let kept = of_this_life(cache.clone(), born).unwrap();
            assert_eq!(kept.position().unwrap(), Some(at), "born at {born}");
        }
        let emptied = of_this_life(cache, 6).unwrap();
        assert_eq!((emptied.position().unwrap(), emptied.rows()), (None, 0));
    }

    /// Tries to open a volume with a lease that ends after this number of checks. Returns the epoch
    /// of the volume in the engine, and `true` if the volume was opened.
    async fn open_with_lease_for(checks: u32) -> (u64, bool) {
        let engine = SimEngine::new(Dice::of(7));
        let mut log = engine.log("ada");
        log.create().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let opening = Opening {
            volume: "ada",
            owner: "bob",
            since: 1,
            expected: Expected::Existing,
            place: "the engine of a test".to_owned(),
            ring: 1,
            logs: [Box::new(engine.log("ada")), Box::new(engine.log("ada"))],
        };
        let made = AtomicU32::new(0);
        let lease = move || made.fetch_add(1, Ordering::Relaxed) < checks;
        let attempted = open(opening, move || open_copy(&path), lease).await.unwrap();
        let epoch = log.head().await.unwrap().unwrap().epoch;
        (epoch, matches!(attempted, Attempted::Opened(..)))
    }

    /// Detects the mistake `engine-opens-without-lease`.
    #[test]
    fn a_volume_is_taken_over_and_opened_only_under_a_lease() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        // The lease is checked before the local copy is opened, before the takeover and after it.
        let first = 1 << 20;
        for (checks, expected) in [
            (0, (0, false)),
            (1, (0, false)),
            (2, (first, false)),
            (3, (first, true)),
        ] {
            let process = Process::new(Dice::of(1), || {});
            let opened =
                runtime.block_on(async { process.spawn(open_with_lease_for(checks)).await.unwrap() });
            assert_eq!(opened, expected, "{checks} checks");
        }
    }
}
