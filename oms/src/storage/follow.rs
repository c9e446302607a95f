//! A warm follower: keeps a local copy of a volume that another node serves, and applies the
//! volume's log to the copy. A takeover then only has to read the last entries.
//!
//! **Invariants**
//! - A follower applies an entry only after it sees a later entry, or if a checkpoint contains the
//!   entry. A fail-over of the engine may lose a newest entry that no checkpoint contains. If the
//!   engine still loses an applied entry, the next comparison of the copy with the log detects the
//!   loss.
//! - A follower that is stopped returns its open copy, so that a takeover can use this copy. The
//!   stop waits for a write to the copy, and never for the engine.
//! - A local database that fails is closed and opened again, because after a failed sync it refuses
//!   all further commits. A full disk is no such failure.
//!
//! Deliberately absent: the choice of the volumes to follow, which the cluster's state makes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use parking_lot::{Mutex, MutexGuard};
use tokio::task::JoinHandle;

use crate::error::{StorageError, with_causes};
use crate::runtime;
use crate::runtime::watch;
use crate::storage::log::Log;
use crate::storage::log::cache::{Cache, CatchUpError, catch_up_until, unless_stopped};

/// Pause between two reads of the newest log entry, and before a locked copy is opened again.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of reads that contradict the local copy, without a success in between, after which the
/// next contradiction drops the copy. Fewer contradictions may come from an old primary, a server
/// that a fail-over left behind.
const DIFFERS_MAX: u32 = 20;
/// Pause after a contradiction, or after an error of the engine or of the local database. A locked
/// database is no such error.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// A task that applies the log of one volume to a local copy.
pub(crate) struct Follower {
    /// The local copy, once the task has opened it.
    cache: Arc<Mutex<Option<Cache>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts a task that opens the local copy with `open` and applies the log to it. If this
    /// process served the volume before, its volume server may still be closing the copy. The copy
    /// is then locked, so `open` fails and the task tries again.
    pub(crate) fn start(
        open: impl Fn() -> Result<Cache, StorageError> + Send + Sync + 'static,
        log: Box<dyn Log>,
        volume: &str,
    ) -> Follower {
        let (stop, stopped) = watch::channel(false);
        let cache = Arc::new(Mutex::new(None));
        let task = run(
            Arc::new(open),
            Arc::clone(&cache),
            log,
            volume.to_owned(),
            stopped,
        );
        Follower {
            cache,
            stop,
            task: runtime::spawn(task),
        }
    }

    /// Stops the task, and returns the local copy if it is open.
    pub(crate) async fn stop(self) -> Option<Cache> {
        self.stop.send_replace(true);
        // A panic of the task has already been reported. A copy that the panic left incomplete does
        // no harm, because the next user compares the copy with the log.
        let _ = self.task.await;
        self.cache.lock().take()
    }
}

/// The followers of a node by volume, each with the version of the cluster's state that created the
/// volume.
#[derive(Default)]
pub(crate) struct Followers(Mutex<BTreeMap<String, (u64, Follower)>>);

impl Followers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Follower)>> {
        self.0.lock()
    }

    /// Stops the follower of a volume, and returns its open local copy. `None` if the volume has no
    /// follower, or if the follower has not opened the copy.
    pub(crate) async fn take(&self, volume: &str) -> Option<Cache> {
        let follower = self.all().remove(volume);
        follower?.1.stop().await
    }

    /// Sets the volumes to follow: starts missing followers with `start`, and stops the followers
    /// of all other volumes. Each volume has the version of the cluster's state that created it,
    /// and an access to its log.
    pub(crate) async fn set<L>(
        &self,
        volumes: BTreeMap<NodeName, (u64, L)>,
        start: impl Fn(&NodeName, u64, L) -> Follower,
    ) {
        let gone: Vec<Follower> = {
            // The number `born` distinguishes a volume from an earlier volume with the same name,
            // which had another log.
            let is_wanted = |volume: &str, born: u64| {
                let mut volumes = volumes.iter();
                volumes.any(|(wanted, (wanted_born, _))| wanted.as_str() == volume && *wanted_born == born)
            };
            let mut all = self.all();
            let gone = all.extract_if(.., |volume, (born, _)| !is_wanted(volume, *born));
            gone.map(|(_, (_, follower))| follower).collect()
        };
        for follower in gone {
            close(follower.stop().await).await;
        }
        let mut all = self.all();
        for (volume, (born, log)) in volumes {
            let follower = || (born, start(&volume, born, log));
            all.entry(volume.as_str().to_owned()).or_insert_with(follower);
        }
    }
}

async fn run(
    open: Arc<dyn Fn() -> Result<Cache, StorageError> + Send + Sync>,
    place: Arc<Mutex<Option<Cache>>>,
    mut log: Box<dyn Log>,
    volume: String,
    mut stopped: watch::Receiver<bool>,
) {
    let mut cache = None;
    let (mut applied, mut differs) = (None, 0);
    loop {
        let drops = differs >= DIFFERS_MAX;
        let copy = (&mut cache, &mut applied);
        let stepped = step(&mut stopped, &open, copy, &mut *log, &volume, drops).await;
        let wait = match stepped {
            // The wait below ends at once.
            Err(CatchUpError::Stopped) => Duration::ZERO,
            Ok(()) => {
                differs = 0;
                POLL_INTERVAL
            }
            Err(CatchUpError::Differs(fault)) => {
                tracing::warn!(volume, fault, "follower waits: the engine may be an old primary");
                differs += 1;
                log.next_host();
                FAULT_PAUSE
            }
            Err(CatchUpError::Log(error)) => {
                tracing::debug!(volume, %error, "follower waits for the engine");
                FAULT_PAUSE
            }
            Err(CatchUpError::Storage(error)) if error.is_locked() => POLL_INTERVAL,
            Err(CatchUpError::Storage(error)) => {
                tracing::error!(
                    volume,
                    error = with_causes(&error),
                    "follower failed; it goes on in a while"
                );
                if must_reopen(&error) {
                    applied = None;
                    *place.lock() = None;
                    close(cache.take()).await;
                }
                FAULT_PAUSE
            }
        };
        place.lock().clone_from(&cache);
        tokio::select! {
            biased;
            // Dropping the follower also ends the task, because the sender of `stopped` is then
            // gone.
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Returns `true` if an error may come from a local database that accepts no further commit until
/// it is opened again.
fn must_reopen(error: &StorageError) -> bool {
    !error.is_full_disk() && !matches!(error, StorageError::Log { .. })
}

/// Closes a local copy. An error does no harm: the lock is released in any case, and a copy that
/// was not closed cleanly may open at an earlier log entry.
async fn close(cache: Option<Cache>) {
    if let Some(cache) = cache {
        let _ = runtime::blocking(move || cache.close()).await;
    }
}

async fn step(
    stopped: &mut watch::Receiver<bool>,
    open: &Arc<dyn Fn() -> Result<Cache, StorageError> + Send + Sync>,
    (cache, applied): (&mut Option<Cache>, &mut Option<u64>),
    log: &mut dyn Log,
    volume: &str,
    drops: bool,
) -> Result<(), CatchUpError> {
    let cache = match cache {
        Some(cache) => cache,
        None => {
            let open = Arc::clone(open);
            let opened = runtime::blocking(move || open()).await;
            cache.insert(opened.unwrap_or(Err(StorageError::Closed))?)
        }
    };
    let newest = unless_stopped(stopped, log.newest()).await?.seq;
    if newest == 0 && unless_stopped(stopped, log.head()).await?.is_none() {
        // The volume does not exist yet, or was removed. In the second case, a later call of
        // `Followers::set` stops the task.
        return Ok(());
    }
    let last = newest.saturating_sub(1);
    // `last` may be below `applied`, for example because the log became shorter or was lost.
    // `catch_up` detects such a loss of entries.
    if *applied != Some(last) {
        let caught_up = catch_up_until(stopped, cache, log, volume, last, drops).await?;
        *applied = Some(caught_up.seq);
    }
    Ok(())
}
