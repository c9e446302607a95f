//! The detection of a first engine that was restored from an older backup than a further engine.
//!
//! The first engine has the cluster's state: the version that assigned a volume to a node, and the
//! ring. A further engine has the epoch of the volume, which contains such a version, and the rows
//! of the volume, which contain the epoch of the ring that brought its slots. If the state is the
//! older one, the volume is not opened, and the error is logged once for each cause.
//!
//! **Invariants**
//! - A volume is *ahead* if the engine has a later version or ring than a state that was read and
//!   confirmed afterwards. Each version is durable in the first engine before a node uses it, and
//!   the version that assigns a volume only grows. So a volume is ahead only if the first engine
//!   lost states. A state that is merely read too early is read again.
//! - Nothing is written to the log of a volume that is ahead when the attempt to open it begins. If
//!   the ring is found to be later only after the takeover, the log has one more empty entry.
//!
//! The version is not raised automatically above the one that was found, for three reasons:
//! - The log may have a server of another cluster. A copy of the first engine, for example for a
//!   test, names the same further engines. Both clusters have the same right to the log, as far as
//!   they can see. A cluster that raises the version takes the volume from the original, and both
//!   would write to one log. *One owner* would then hold for moments only.
//! - The rows may be of another ring. If slots came to the volume since the backup, the state
//!   assigns these slots to another volume. This volume would remove their rows as outdated
//!   (`volume::migration::cleanup`). The removed rows may be the only ones of acknowledged orders.
//! - The engines are equally trustworthy. To restore the further engine as well, or to keep its
//!   later rows, is the decision of an operator.
//!
//! Deliberately absent: copies of a volume that differ from its log (`storage::log::cache`).

use std::collections::BTreeMap;

use imt_ring::NodeName;
use parking_lot::Mutex;

use crate::cluster::engine::EngineCluster;
use crate::cluster::{Authority, VolumeLog};
use crate::error::NodeError;
use crate::storage::log::takeover::{first_epoch, is_after};

/// Evidence that a volume's log is later than the cluster's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// The log has this epoch.
    Epoch(u64),
    /// A ring of this epoch brought slots to the volume.
    Ring(u64),
}

/// The last cause that was logged for each subject, such as a volume or an engine.
#[derive(Default)]
pub(super) struct Complaints(Mutex<BTreeMap<String, String>>);

impl Complaints {
    /// Records a cause. Returns `true` if it is not the last one of the subject.
    pub(super) fn is_new(&self, subject: &str, cause: &str) -> bool {
        let mut known = self.0.lock();
        if known.get(subject).is_some_and(|known| known == cause) {
            return false;
        }
        known.insert(subject.to_owned(), cause.to_owned());
        true
    }

    /// Removes the cause of a subject, which has no fault any more.
    pub(super) fn clear(&self, subject: &str) {
        self.0.lock().remove(subject);
    }

    /// Removes the causes of all subjects for which `is_kept` returns `false`.
    pub(super) fn retain(&self, is_kept: impl Fn(&str) -> bool) {
        self.0.lock().retain(|subject, _| is_kept(subject));
    }

    /// Returns the last cause of a subject.
    #[cfg(test)]
    pub(super) fn of(&self, subject: &str) -> Option<String> {
        self.0.lock().get(subject).cloned()
    }
}

impl EngineCluster {
    /// Reads the state again. Returns `true` if the volume is still assigned to this node and is
    /// ahead of that state, and logs this error if it is new.
    pub(super) async fn is_ahead(
        &self,
        volume: &NodeName,
        place: &VolumeLog,
        found: Ahead,
    ) -> Result<bool, NodeError> {
        let state = Authority::read(self).await?;
        let since = state.since(volume);
        // The epoch of a slot is at least 1, also in a ring with the epoch 0.
        let ring = state.ring.epoch().0.max(1);
        let (is_ahead, fault) = match found {
            Ahead::Epoch(epoch) => (
                is_after(epoch, since),
                format!(
                    "its log has the epoch {epoch}, and the state assigns it from epoch {} on",
                    first_epoch(since)
                ),
            ),
            Ahead::Ring(epoch) => (
                epoch > ring,
                format!(
                    "it got slots from a ring of epoch {epoch}, and the ring of the state has epoch {ring}"
                ),
            ),
        };
        if !is_ahead || state.serving.get(volume) != Some(&self.name) {
            return Ok(false);
        }
        let first = VolumeLog {
            born: 0,
            engine: None,
        };
        let (first, engine) = (self.backend.url_of(&first), self.backend.url_of(place));
        let cause = format!(
            "{fault}: the state in the engine {first} is older than the volume in the engine {engine}, \
             as after the restore of an older backup, or in a copy of the engine {first}; stop all \
             nodes, and restore both engines to the same time, or follow \"Backup and restore\" in \
             docs/scale-out.md"
        );
        if self.complaints.is_new(volume.as_str(), &cause) {
            tracing::error!(%volume, cause, "volume not opened");
        }
        Ok(true)
    }

    /// Returns the last cause for which a volume was not opened.
    #[cfg(test)]
    pub(crate) fn complaint_of(&self, volume: &NodeName) -> Option<String> {
        self.complaints.of(volume.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Complaints;

    #[test]
    fn a_cause_is_new_until_it_is_known_and_after_it_was_cleared() {
        let complaints = Complaints::default();
        assert!(complaints.is_new("ada", "one"));
        assert!(!complaints.is_new("ada", "one"));
        assert!(complaints.is_new("bob", "one"));
        assert!(complaints.is_new("ada", "other"));
        assert!(complaints.is_new("ada", "one"));
        complaints.clear("ada");
        assert!(complaints.is_new("ada", "one"));
        complaints.retain(|subject| subject == "ada");
        assert!(!complaints.is_new("ada", "one") && complaints.is_new("bob", "one"));
    }
}
