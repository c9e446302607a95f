//! A warm follower: keeps the local copy of a volume that another node serves close to its log, so
//! that a takeover only has to read the last entries.
//!
//! **Invariants**
//! - A follower applies an entry once another one follows it. The writer appends the next entry
//!   only after the former one was acknowledged or found, so an entry that may vanish is not
//!   applied.
//! - A follower that is stopped gives its open copy to the takeover.
//!
//! Deliberately absent: the choice of the volumes to follow, which is in the cluster's state.

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
use crate::storage::log::cache::{Cache, CatchUpError, catch_up};

/// Interval between two looks at the log.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of looks in sequence that show another log, until the local copy is dropped.
const DIFFERS_MAX: u32 = 20;
/// Pause after a fault of the engine.
const FAULT_PAUSE: Duration = Duration::from_secs(1);

/// A task that follows the log of one volume.
pub(crate) struct Follower {
    /// The local copy, once it is open.
    cache: Arc<Mutex<Option<Cache>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts to follow a log with the local copy that `open` opens. The copy may still be locked
    /// by a server of this process that is being closed.
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

    /// Stops, and returns the local copy if it is open.
    pub(crate) async fn stop(self) -> Option<Cache> {
        self.stop.send_replace(true);
        // A panic of the task has been reported. The copy is checked against the log again.
        let _ = self.task.await;
        self.cache.lock().take()
    }
}

/// The followers of a node, by volume, with the version of the state that created the volume.
#[derive(Default)]
pub(crate) struct Followers(Mutex<BTreeMap<String, (u64, Follower)>>);

impl Followers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Follower)>> {
        self.0.lock()
    }

    /// Stops the follower of a volume, and returns its open local copy.
    pub(crate) async fn take(&self, volume: &str) -> Option<Cache> {
        let follower = self.all().remove(volume);
        follower?.1.stop().await
    }

    /// Follows exactly these volumes. Each has the version of the cluster's state that created it.
    /// `start` starts the follower of one.
    pub(crate) async fn set(&self, volumes: &BTreeMap<NodeName, u64>, start: impl Fn(&NodeName) -> Follower) {
        // A volume that was removed and created again has another log.
        let is_wanted = |volume: &str, born: u64| {
            let mut volumes = volumes.iter();
            volumes.any(|(wanted, wanted_born)| wanted.as_str() == volume && *wanted_born == born)
        };
        let gone: Vec<Follower> = self
            .all()
            .extract_if(.., |volume, (born, _)| !is_wanted(volume, *born))
            .map(|(_, (_, follower))| follower)
            .collect();
        for follower in gone {
            if let Some(cache) = follower.stop().await {
                // A copy that is not closed cleanly begins with an earlier entry next time.
                let _ = runtime::blocking(move || cache.close()).await;
            }
        }
        let mut all = self.all();
        for (volume, born) in volumes {
            let follower = || (*born, start(volume));
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
    let (mut applied, mut differs) = (0, 0);
    loop {
        let drops = differs >= DIFFERS_MAX;
        let wait = match step(&open, &mut cache, &mut *log, &volume, drops, &mut applied).await {
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
                FAULT_PAUSE
            }
        };
        place.lock().clone_from(&cache);
        tokio::select! {
            biased;
            // Both a stop and a dropped follower end the task.
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn step(
    open: &Arc<dyn Fn() -> Result<Cache, StorageError> + Send + Sync>,
    cache: &mut Option<Cache>,
    log: &mut dyn Log,
    volume: &str,
    drops: bool,
    applied: &mut u64,
) -> Result<(), CatchUpError> {
    let cache = match cache {
        Some(cache) => cache,
        None => {
            let open = Arc::clone(open);
            let opened = runtime::blocking(move || open()).await;
            cache.insert(opened.unwrap_or(Err(StorageError::Closed))?)
        }
    };
    let last = log.newest().await?.seq.saturating_sub(1);
    // A log that became shorter has lost entries, which `catch_up` finds out.
    if last > 0 && last != *applied {
        *applied = catch_up(cache, log, volume, last, drops).await?.seq;
    }
    Ok(())
}
