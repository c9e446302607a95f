//! The start of an ownership: a process raises the volume's epoch and appends an empty entry, its
//! *own entry*.
//!
//! **Invariants**
//! - A statement of the former owner that begins after the raised epoch is visible appends nothing.
//!   A statement that began earlier may still append one entry. The own entry then gets the next
//!   number.
//! - So the log up to the own entry is final. Entries that were copied before are compared with the
//!   log again after the takeover.
//! - A volume counts as missing only if the server that lacks it then acknowledges a commit. An old
//!   primary acknowledges no commit.
//! - The takeover is complete only when the engine has acknowledged the own entry, or an empty
//!   entry after it.
//!
//! Deliberately absent: the right to take a volume, which a lease and the cluster's state give
//! (`cluster`).

use crate::runtime::seeded::seeded;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::writer::{LogStatus, Settled, settle};
use crate::storage::log::{Log, LogError, Position};

/// Number of low bits of an epoch, which count the takeovers under one version of the cluster's
/// state. The higher bits hold that version.
const TAKEOVER_BITS: u32 = 20;
/// Maximum number of attempts to append the own entry. Each former owner can take the number of the
/// own entry once, with a commit that is in flight. A fail-over of the engine can also make an
/// attempt fail.
const ATTEMPTS_MAX: usize = 64;

/// Returns `true` if an epoch is older than the version `born` of the cluster's state, which
/// created the volume.
pub(crate) fn is_before(epoch: u64, born: u64) -> bool {
    epoch < first_epoch(born)
}

/// Returns `true` if an epoch was given under a later version of the cluster's state than `since`.
pub(crate) fn is_after(epoch: u64, since: u64) -> bool {
    epoch >> TAKEOVER_BITS > since
}

/// Returns the lowest epoch that a node gets which was assigned the volume by version `since` of
/// the cluster's state.
pub(crate) fn first_epoch(since: u64) -> u64 {
    if seeded("engine-epoch-without-takeovers") {
        return since;
    }
    since << TAKEOVER_BITS
}

/// The outcome of a takeover.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// This process owns the volume.
    Owned {
        epoch: u64,
        /// The position of the own entry, or of a later empty entry.
        position: Position,
    },
    /// Another process has taken the volume over under a newer epoch, or the volume was removed
    /// during the takeover.
    Newer {
        /// The newer epoch; 0 if the volume was removed.
        epoch: u64,
    },
    /// The engine has no such volume.
    Missing,
}

/// Makes `owner` the owner of a volume. `since` is the version of the cluster's state that assigned
/// the volume to this node. If `creates` is set, a missing volume is created.
pub(crate) async fn take_over(
    log: &mut dyn Log,
    owner: &str,
    since: u64,
    creates: bool,
) -> Result<Takeover, LogError> {
    if creates {
        log.create().await?;
    }
    let (least, until) = (first_epoch(since), first_epoch(since + 1));
    let Some(epoch) = log.raise(owner, least, until).await? else {
        if let Some(head) = log.head().await? {
            return Ok(Takeover::Newer { epoch: head.epoch });
        }
        // An old primary may lack a volume that was created after the fail-over.
        if !log.confirm().await? {
            return Err(LogError::Away("the missing volume was not confirmed".to_owned()));
        }
        return Ok(Takeover::Missing);
    };
    if seeded("engine-no-own-entry") {
        let newest = log.newest().await?;
        return Ok(Takeover::Owned {
            epoch,
            position: newest,
        });
    }
    // This status stops the writer. So `settle` returns `Abandoned` after a statement without a
    // result, and the caller tries the takeover again.
    let status = LogStatus::default();
    status.stop_waiting();
    for _ in 0..ATTEMPTS_MAX {
        let newest = log.newest().await?;
        let entry = BodyWriter::with_capacity(0).seal(&newest, epoch);
        match settle(log, newest, entry, &status).await {
            Settled::Durable(position) => return Ok(Takeover::Owned { epoch, position }),
            Settled::Refused { .. } => {
                let newer = log.head().await?.map_or(0, |head| head.epoch);
                if newer != epoch {
                    return Ok(Takeover::Newer { epoch: newer });
                }
            }
            // A fail-over of the engine lost the newest entry, or the server that answered is an
            // old primary.
            Settled::PredecessorLost => {}
            Settled::Abandoned => {
                return Err(LogError::Unknown("the own entry was not acknowledged".to_owned()));
            }
        }
    }
    Err(LogError::Away("other entries take every place".to_owned()))
}
