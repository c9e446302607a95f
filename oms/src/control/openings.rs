//! Attempts to open the volumes that are assigned to this node and that it does not serve yet.
//!
//! In a data folder, volumes are opened one after the other. With an engine, an attempt can take
//! seconds, because the engine of the volume may not answer, or because the local copy must be
//! filled. There, attempts run beside each other and beside the passes of the reconciler.
//!
//! **Invariants**
//! - A volume has at most one attempt at a time. If the volume is not wanted any more, or was
//!   assigned to this node again, the volume that the attempt opens is closed and released. No other
//!   attempt begins before that.
//! - Each engine has at most `PLACES` attempts at a time, so volumes of other engines do not wait for
//!   an engine that does not answer. The volume with the oldest last attempt begins first, so a
//!   volume that cannot be opened keeps no other one from being tried.
//! - With an engine, `next` waits for an attempt at most `PATIENCE`, once a pass.
//!
//! Deliberately absent: the choice of the volumes, and the servers of open volumes (`reconciler`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use imt_ring::NodeName;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};

use crate::cluster::{ClusterState, Expected, Volumes};
use crate::error::{NodeError, StorageError, with_causes};
use crate::runtime;
use crate::storage::volume::Volume;

/// Maximum number of attempts at a time for the volumes of one engine. An attempt has three
/// connections, and a buffer of 1 MiB while it fills a local copy.
const PLACES: usize = 4;
/// Longest wait of a pass for the end of an attempt. A usual attempt takes less. The wait also
/// limits the number of passes in a second while attempts take longer.
const PATIENCE: Duration = Duration::from_millis(100);
/// Pause before a volume is tried again after an error. Each error is logged.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the end of all attempts when the node stops. It is longer than a statement of a
/// takeover takes. An attempt that fills a local copy may take longer, and is then ended.
const END_TIMEOUT: Duration = Duration::from_secs(3);

type Outcome = Result<Option<Volume>, NodeError>;

/// A volume to be opened.
struct Due {
    volume: NodeName,
    /// The URL of the volume's engine; `None` for the first engine.
    engine: Option<String>,
    /// The version of the cluster's state that assigned the volume to this node.
    since: u64,
    expected: Expected,
}

/// An attempt that has not ended.
struct Attempt {
    due: Due,
    /// Identifies the task of the attempt, or the task that closes the opened volume.
    task: Id,
    is_wanted: bool,
}

/// The last attempt of a volume that is not open.
struct Tried {
    /// Number of the attempt among all attempts.
    number: u64,
    again_at: Instant,
}

/// The end of an attempt.
pub(crate) struct Opened {
    pub(crate) volume: NodeName,
    /// The version of the cluster's state that had assigned the volume to this node when the attempt
    /// began.
    pub(crate) since: u64,
    pub(crate) outcome: Outcome,
}

/// The attempts of a node.
pub(crate) struct Openings {
    volumes: Arc<dyn Volumes>,
    /// `true` if the volumes have their logs in an engine.
    is_engine: bool,
    due: VecDeque<Due>,
    tasks: JoinSet<Outcome>,
    under_way: Vec<Attempt>,
    tried: BTreeMap<NodeName, Tried>,
    count: u64,
    has_waited: bool,
}

impl Openings {
    /// Returns a value without attempts. `is_engine` is `true` if the volumes have their logs in an
    /// engine.
    pub(crate) fn new(volumes: Arc<dyn Volumes>, is_engine: bool) -> Openings {
        Openings {
            volumes,
            is_engine,
            due: VecDeque::new(),
            tasks: JoinSet::new(),
            under_way: Vec::new(),
            tried: BTreeMap::new(),
            count: 0,
            has_waited: false,
        }
    }

    /// Returns `true` if no attempt is under way or due.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.due.is_empty()
    }

    /// Sets the volumes to open in this pass. Each of them is tried at most once before the next
    /// call. A volume with an attempt under way, or with an error less than `ERROR_PAUSE` ago, is
    /// not tried again.
    pub(crate) fn begin_pass(&mut self, state: &ClusterState, unserved: &[NodeName]) {
        self.has_waited = false;
        self.tried.retain(|volume, _| unserved.contains(volume));
        for attempt in &mut self.under_way {
            let Due { volume, since, .. } = &attempt.due;
            attempt.is_wanted &= unserved.contains(volume) && state.since(volume) == *since;
        }
        let now = Instant::now();
        let is_due = |volume: &&NodeName| {
            let is_paused = self.tried.get(*volume).is_some_and(|tried| now < tried.again_at);
            !is_paused
                && !self
                    .under_way
                    .iter()
                    .any(|attempt| attempt.due.volume == **volume)
        };
        let mut due: Vec<&NodeName> = unserved.iter().filter(is_due).collect();
        due.sort_by_key(|volume| self.tried.get(*volume).map_or(0, |tried| tried.number));
        let due = due.into_iter().map(|volume| Due {
            volume: volume.clone(),
            engine: state.log_of(volume).engine,
            since: state.since(volume),
            expected: match state.ring.member(volume) {
                Some(_) => Expected::Existing,
                None => Expected::MaybeNew,
            },
        });
        self.due = due.collect();
    }

    /// Returns the end of an attempt. Returns `None` if there is no attempt, or if no attempt ends in
    /// time.
    pub(crate) async fn next(&mut self) -> Option<Opened> {
        if !self.is_engine {
            let Due {
                volume,
                since,
                expected,
                ..
            } = self.due.pop_front()?;
            let outcome = Arc::clone(&self.volumes).open(volume.clone(), expected).await;
            self.note(&volume, &outcome);
            return Some(Opened {
                volume,
                since,
                outcome,
            });
        }
        loop {
            self.fill_places();
            let patience = if std::mem::replace(&mut self.has_waited, true) {
                Duration::ZERO
            } else {
                PATIENCE
            };
            let ended = timeout(patience, self.tasks.join_next_with_id()).await.ok()??;
            // The first end of an attempt ends the wait of this pass, unless it concerns a volume
            // that is not wanted.
            let (task, outcome) = match ended {
                Ok((task, outcome)) => (task, outcome),
                // A panic of the task has already been reported.
                Err(error) => (error.id(), Ok(None)),
            };
            let at = self.under_way.iter().position(|attempt| attempt.task == task)?;
            let attempt = self.under_way.swap_remove(at);
            match outcome {
                Ok(Some(opened)) if !attempt.is_wanted => self.give_back(attempt, opened),
                // The outcome for a volume that this node does not have any more is of no interest.
                _ if !attempt.is_wanted => {}
                outcome => {
                    let Due { volume, since, .. } = attempt.due;
                    self.note(&volume, &outcome);
                    return Some(Opened {
                        volume,
                        since,
                        outcome,
                    });
                }
            }
        }
    }

    /// Ends all attempts, and closes the volumes that they have opened.
    pub(crate) async fn end(&mut self) {
        self.due.clear();
        for attempt in &mut self.under_way {
            attempt.is_wanted = false;
        }
        let until = Instant::now() + END_TIMEOUT;
        while let Ok(Some(ended)) = timeout_at(until, self.tasks.join_next_with_id()).await {
            let Ok((task, Ok(Some(opened)))) = ended else {
                continue;
            };
            if let Some(at) = self.under_way.iter().position(|attempt| attempt.task == task) {
                let attempt = self.under_way.swap_remove(at);
                self.give_back(attempt, opened);
            }
        }
        self.tasks.abort_all();
        self.under_way.clear();
    }

    fn fill_places(&mut self) {
        for due in std::mem::take(&mut self.due) {
            let same = self
                .under_way
                .iter()
                .filter(|attempt| attempt.due.engine == due.engine);
            if same.count() >= PLACES {
                self.due.push_back(due);
                continue;
            }
            let opening = Arc::clone(&self.volumes).open(due.volume.clone(), due.expected);
            let task = self.tasks.spawn(runtime::within(opening)).id();
            self.under_way.push(Attempt {
                due,
                task,
                is_wanted: true,
            });
        }
    }

    /// Closes and releases a volume that was opened and is not wanted any more.
    fn give_back(&mut self, attempt: Attempt, opened: Volume) {
        let (volumes, volume) = (Arc::clone(&self.volumes), attempt.due.volume.clone());
        let closing = async move {
            let closed = runtime::blocking(move || opened.close()).await;
            let closed = closed
                .unwrap_or(Err(StorageError::Closed))
                .map_err(NodeError::from);
            let released = match closed {
                Ok(()) => volumes.release(volume.clone()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = released {
                let error = with_causes(&error);
                tracing::warn!(%volume, error, "volume that is not assigned to this node not closed cleanly");
            }
            Ok(None)
        };
        let task = self.tasks.spawn(runtime::within(closing)).id();
        self.under_way.push(Attempt { task, ..attempt });
    }

    /// Delays the next attempt of a volume that could not be opened or served because of an error.
    pub(crate) fn pause(&mut self, volume: &NodeName, error: &NodeError) {
        let is_paused = self.is_engine && !error.is_engine_away();
        self.set_tried(volume, if is_paused { ERROR_PAUSE } else { Duration::ZERO });
    }

    fn note(&mut self, volume: &NodeName, outcome: &Outcome) {
        match outcome {
            Ok(Some(_)) => drop(self.tried.remove(volume)),
            Ok(None) => self.set_tried(volume, Duration::ZERO),
            Err(error) => self.pause(volume, error),
        }
    }

    fn set_tried(&mut self, volume: &NodeName, pause: Duration) {
        self.count += 1;
        let tried = Tried {
            number: self.count,
            again_at: Instant::now() + pause,
        };
        self.tried.insert(volume.clone(), tried);
    }
}

#[cfg(test)]
mod tests;
