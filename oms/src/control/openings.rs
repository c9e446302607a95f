//! The choice of the volumes that are opened next.
//!
//! An opening can take seconds, because the engine of the volume may not answer, or because the
//! local copy must be filled. So openings run beside each other (`volume_steps`).
//!
//! **Invariants**
//! - Each engine has at most `PLACES` openings at a time, so volumes of other engines do not wait
//!   for an engine that does not answer. A data folder counts as one engine.
//! - Untried volumes come first, then the volume with the oldest last attempt. So a volume that
//!   cannot be opened keeps no other one from being tried.
//! - In one pass of the reconciler, each volume is tried at most once. Between two attempts at a
//!   volume there is a pause.
//!
//! Deliberately absent: the openings themselves (`volume_steps`), and the choice of the volumes
//! that this node must serve (`reconciler`).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use imt_ring::NodeName;
use tokio::time::Instant;

use crate::cluster::ClusterState;

/// Maximum number of openings at a time for the volumes of one engine. An opening has three
/// connections, and a buffer of 1 MiB while it fills a local copy.
pub(super) const PLACES: usize = 4;

/// The URL of a volume's engine. `None` for the first engine, and for a data folder.
pub(super) type Engine = Option<String>;

/// The last attempt at a volume that is not open.
struct Tried {
    engine: Engine,
    /// Number of the attempt among all attempts.
    number: u64,
    /// Time before which no further attempt begins.
    due: Instant,
}

/// The volumes that are to be opened, and the ends of earlier attempts.
#[derive(Default)]
pub(super) struct Openings {
    /// The volumes that this pass can still try, in turn.
    due: VecDeque<(NodeName, Engine)>,
    /// Volumes without an attempt under way. The last attempt of each has failed.
    tried: BTreeMap<NodeName, Tried>,
    /// Number of failed attempts so far.
    count: u64,
}

impl Openings {
    /// Sets the volumes that a pass may open: those in `closed` without a pause. Forgets attempts
    /// at volumes that are not in `wanted`.
    pub(super) fn begin_pass(&mut self, state: &ClusterState, wanted: &[NodeName], closed: &[&NodeName]) {
        self.tried.retain(|volume, _| wanted.contains(volume));
        let now = Instant::now();
        let tried = |volume: &NodeName| self.tried.get(volume);
        let is_due = |volume: &&NodeName| tried(volume).is_none_or(|tried| tried.due <= now);
        let mut due: Vec<&NodeName> = closed.iter().copied().filter(is_due).collect();
        due.sort_by_key(|volume| tried(volume).map_or(0, |tried| tried.number));
        let due = due.into_iter();
        self.due = due
            .map(|volume| (volume.clone(), state.log_of(volume).engine))
            .collect();
    }

    /// Returns `true` if this pass has volumes left to try. They wait for a place.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Returns the next volume of this pass with a free place at its engine. `under_way` returns
    /// the number of openings under way at an engine.
    pub(super) fn next(&mut self, under_way: impl Fn(&Engine) -> usize) -> Option<(NodeName, Engine)> {
        let has_place = |(_, engine): &(NodeName, Engine)| under_way(engine) < PLACES;
        let at = self.due.iter().position(has_place)?;
        let next = self.due.remove(at)?;
        self.tried.remove(&next.0);
        Some(next)
    }

    /// Records that an attempt has failed, and that the next one must not begin before this pause.
    pub(super) fn note_failure(&mut self, volume: NodeName, engine: Engine, pause: Duration) {
        self.count += 1;
        let tried = Tried {
            engine,
            number: self.count,
            due: Instant::now() + pause,
        };
        self.tried.insert(volume, tried);
    }

    /// Returns the time until a volume with a free place may be tried again. `None` if no volume
    /// has failed, or if each one waits for a place. A place becomes free with the end of an
    /// opening.
    pub(super) fn pause(&self, under_way: impl Fn(&Engine) -> usize) -> Option<Duration> {
        let tried = self.tried.values();
        let next = tried.filter(|tried| under_way(&tried.engine) < PLACES);
        let due = next.map(|tried| tried.due).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests;
