//! The beginning of an ownership: a process raises the volume's epoch and appends an entry of its
//! own.
//!
//! **Invariants**
//! - Statements that begin after the raised epoch is visible append nothing for the former owner.
//!   One that began before can fill the next place, once. The own entry takes a place behind it.
//! - So the log up to the own entry is final. Only then are its entries read.
//! - A raised epoch counts with the acknowledgement of the own entry.
//!
//! Deliberately absent: the right to take a volume, which a lease and the cluster's state give
//! (`cluster`).

use crate::runtime::seeded::seeded;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::writer::{LogStatus, Settled, settle};
use crate::storage::log::{Log, LogError, Position};

/// Number of bits of an epoch below the version of the cluster's state. They count the takeovers
/// under one version.
const TAKEOVER_BITS: u32 = 20;
/// Maximum number of attempts to append the own entry. A commit of the former owner can take the
/// place once; each further loss of the place needs a further takeover.
const ATTEMPTS_MAX: usize = 64;

/// Returns `true` if an owner took this epoch before the version `born` of the cluster's state.
pub(crate) fn is_before(epoch: u64, born: u64) -> bool {
    epoch < born << TAKEOVER_BITS
}

/// The outcome of a takeover.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// The volume is owned.
    Owned {
        /// The epoch of the owner.
        epoch: u64,
        /// The position of the own entry, or of one behind it.
        position: Position,
    },
    /// A newer owner has the volume.
    Newer,
    /// The engine has no such volume.
    Missing,
}

/// Takes a volume for `owner`. `since` is the version of the cluster's state that gave the volume
/// to this node. A new volume is created if `creates`.
pub(crate) async fn take_over(
    log: &mut dyn Log,
    owner: &str,
    since: u64,
    creates: bool,
) -> Result<Takeover, LogError> {
    if creates {
        log.create().await?;
    }
    let (least, until) = (since << TAKEOVER_BITS, (since + 1) << TAKEOVER_BITS);
    let Some(epoch) = log.raise(owner, least, until).await? else {
        let known = log.head().await?;
        return Ok(if known.is_some() {
            Takeover::Newer
        } else {
            Takeover::Missing
        });
    };
    if seeded("engine-no-own-entry") {
        let newest = log.newest().await?;
        return Ok(Takeover::Owned {
            epoch,
            position: newest,
        });
    }
    // The wait for an unknown outcome is left to the caller's next attempt.
    let status = LogStatus::default();
    status.stop_waiting();
    for _ in 0..ATTEMPTS_MAX {
        let newest = log.newest().await?;
        let entry = BodyWriter::with_capacity(0).seal(&newest, epoch);
        match settle(log, newest, entry, &status).await {
            Settled::Durable(position) => return Ok(Takeover::Owned { epoch, position }),
            Settled::Refused { .. } => {
                if log.head().await?.is_none_or(|head| head.epoch != epoch) {
                    return Ok(Takeover::Newer);
                }
            }
            // The newest entry was on one machine only, and a fail-over lost it.
            Settled::PredecessorLost => {}
            Settled::Abandoned => {
                return Err(LogError::Unknown("the own entry was not acknowledged".to_owned()));
            }
        }
    }
    Err(LogError::Away("other entries take every place".to_owned()))
}
