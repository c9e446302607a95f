//! The writer of a volume's log: appends an entry, and returns once its outcome is known or the
//! writer is stopped.
//!
//! An entry without an acknowledgement is appended again. If the log already has an entry with its
//! number, the writer reads that entry. If the writer appended that entry itself, it may exist on
//! one machine only, so the writer appends an empty entry after it. An acknowledgement of the empty
//! entry means that both entries are durable. If a fail-over lost the entry, the writer appends it
//! again.
//!
//! **Invariants**
//! - A writer appends one entry at a time, and with it the empty entries that confirm this entry.
//! - After another owner was found, the writer appends nothing more.
//! - If the engine does not answer, the writer repeats its statements until the engine answers or
//!   the writer is stopped. A stop ends an append in flight after `STOP_WAIT`.
//!
//! Deliberately absent: SQL statements (`Log`), and rows in the local database (`cache`).

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::error::StorageError;
use crate::runtime::seeded::seeded;
use crate::storage::log::body::BodyWriter;
use crate::storage::log::{Entry, EntryHead, Log, LogError, Position};

/// Pause after a statement without a result, and before another host is tried. The pause is short,
/// because a reconnect is fast and may reach the new primary.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Time that an append in flight still has after the writer was stopped. It is longer than the
/// timeout of a usual append. The append of a large entry has up to 17 s, and a stop does not wait
/// that long.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// Number of entries that wait for an acknowledgement (an entry, and empty entries after it) from
/// which a writer that is being stopped gives up. Each further empty entry takes the timeout of an
/// append and few bytes, so a writer that is not being stopped has no such limit.
const UNACKNOWLEDGED_WHEN_STOPPING: usize = 16;

/// Number of answers in a row that lack the previous acknowledged entry or show an earlier epoch,
/// during one append. After one more such answer, that entry is treated as lost. The next host is
/// tried after each of these answers, so a primary that has the entry would be found earlier. A
/// writer that is being stopped treats the entry as lost after the first such answer.
const OLD_ANSWERS_MAX: u32 = 40;

/// The state that a writer and its volume share.
#[derive(Debug, Default)]
pub(crate) struct LogStatus {
    away: AtomicBool,
    stopping: AtomicBool,
    /// Notified when `stopping` becomes `true`.
    stop_called: Notify,
    ended: AtomicBool,
    acknowledged: AtomicU64,
}

impl LogStatus {
    /// Returns `true` while an entry waits for an engine that does not answer or refuses
    /// statements, or for space in the local database.
    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Release);
    }

    /// Returns `true` once the volume can commit no more: the volume has another owner, the writer
    /// gave up, or the local database failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Returns the number of the last acknowledged entry.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Makes the writer return instead of waiting for an engine that does not answer.
    pub(crate) fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop_called.notify_waiters();
    }

    /// Returns once the writer is being stopped.
    async fn stopped(&self) {
        let mut called = pin!(self.stop_called.notified());
        called.as_mut().enable();
        if !self.is_stopping() {
            called.await;
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The entry is durable. The position is that of the entry or of the last empty entry after it.
    Durable(Position),
    /// The volume has another owner or was removed, or another entry has this number.
    Refused {
        /// `true` if an earlier attempt to append had no result. So the entry may be in the log, or
        /// may still appear there.
        may_appear: bool,
    },
    /// The servers that answered lack the previous entry, although that entry was in the log
    /// earlier, or show an earlier epoch. The previous entry is treated as lost.
    PredecessorLost,
    /// The writer was stopped before the entry was acknowledged.
    Abandoned,
}

/// Appends an entry after `before`, and repeats the append until the outcome is known or `status`
/// stops the writer.
pub(crate) async fn settle(
    log: &mut dyn Log,
    before: Position,
    entry: (Bytes, Position),
    status: &LogStatus,
) -> Settled {
    let epoch = entry.1.epoch;
    let mut pending = vec![place(entry)];
    let (mut at, mut may_appear, mut old_answers) = (0, false, 0);
    loop {
        let behind = match at {
            0 => before,
            _ => pending[at - 1].1,
        };
        let behind = (behind.seq > 0).then_some((behind.seq, behind.epoch));
        let overdue = async {
            status.stopped().await;
            tokio::time::sleep(STOP_WAIT).await;
        };
        let answer = tokio::select! {
            biased;
            answer = log.append(&pending[at].0, behind) => answer,
            () = overdue => Err(LogError::Unknown("the volume is being closed".to_owned())),
        };
        let appended = match answer {
            Err(LogError::Unknown(_)) if seeded("engine-unknown-is-done") => Ok(true),
            Err(LogError::Unknown(_)) if seeded("engine-looks-only") => Ok(false),
            appended => appended,
        };
        let found = match appended {
            Ok(true) => {
                status.set_away(false);
                return Settled::Durable(pending[at].1);
            }
            Ok(false) => find_out(log, &pending[at].0, behind, epoch).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(Found::Same) if seeded("engine-found-is-durable") => return Settled::Durable(pending[at].1),
            Ok(Found::Same) => {
                // An entry of this writer in the log follows the previous acknowledged entry.
                old_answers = 0;
                at += 1;
                if at == pending.len() {
                    if status.is_stopping() && at >= UNACKNOWLEDGED_WHEN_STOPPING {
                        return Settled::Abandoned;
                    }
                    let position = pending[at - 1].1;
                    pending.push(place(BodyWriter::with_capacity(0).seal(&position, epoch)));
                }
            }
            Ok(Found::Another) => return Settled::Refused { may_appear },
            Ok(Found::NothingBefore) if at > 0 => at -= 1,
            Ok(Found::OldPrimary | Found::NothingBefore)
                if old_answers == OLD_ANSWERS_MAX || status.is_stopping() =>
            {
                return Settled::PredecessorLost;
            }
            Ok(Found::OldPrimary | Found::NothingBefore) => {
                old_answers += 1;
                if !seeded("engine-old-host-kept") {
                    log.next_host();
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Ok(Found::Nothing) if seeded("engine-looks-only") => {
                return Settled::Refused { may_appear: false };
            }
            // `find_out` has found the previous entry, or the log is empty.
            Ok(Found::Nothing) => old_answers = 0,
            Err(error) => {
                may_appear |= matches!(error, LogError::Unknown(_));
                if !status.is_away() {
                    tracing::warn!(seq = pending[at].1.seq, %error, "entry of the log not acknowledged");
                }
                status.set_away(true);
                if status.is_stopping() {
                    return Settled::Abandoned;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

fn place((body, position): (Bytes, Position)) -> (Entry, Position) {
    let Position { seq, epoch, .. } = position;
    (Entry { seq, epoch, body }, position)
}

/// The state of an entry in the log, after an attempt to append it added no row.
enum Found {
    /// An earlier attempt appended the entry.
    Same,
    /// The volume has another owner or was removed, or another entry has this number.
    Another,
    /// This server has an earlier epoch of the volume than the writer, so it is an old primary, or
    /// the engine has lost commits.
    OldPrimary,
    /// The previous entry does not exist at this server.
    NothingBefore,
    /// The entry is missing and nothing prevents another append.
    Nothing,
}

async fn find_out(
    log: &mut dyn Log,
    entry: &Entry,
    behind: Option<(u64, u64)>,
    epoch: u64,
) -> Result<Found, LogError> {
    if let Some(found) = log.look(entry.seq).await? {
        return Ok(if found == EntryHead::of(entry) {
            Found::Same
        } else {
            Found::Another
        });
    }
    match log.head().await? {
        Some(head) if head.epoch == epoch => {}
        Some(head) if head.epoch < epoch => return Ok(Found::OldPrimary),
        _ => return Ok(Found::Another),
    }
    let Some((seq, epoch)) = behind else {
        return Ok(Found::Nothing);
    };
    let is_there = log.look(seq).await?.is_some_and(|before| before.epoch == epoch);
    Ok(if is_there {
        Found::Nothing
    } else {
        Found::NothingBefore
    })
}

/// Appends entries to a volume's log on behalf of its owner.
pub(crate) struct LogWriter {
    log: Box<dyn Log>,
    volume: String,
    epoch: u64,
    position: Position,
    status: Arc<LogStatus>,
}

/// The body of an entry that is durable in the log.
pub(crate) struct Logged {
    pub(crate) body: Bytes,
    /// The position of the newest durable entry: this entry, or an empty entry after it.
    pub(crate) position: Position,
}

impl LogWriter {
    /// Creates the writer of the owner with `epoch`. Its first entry follows the entry at
    /// `position`.
    pub(crate) fn new(log: Box<dyn Log>, volume: &str, epoch: u64, position: Position) -> LogWriter {
        let status = LogStatus::default();
        status.acknowledged.store(position.seq, Ordering::Release);
        LogWriter {
            log,
            volume: volume.to_owned(),
            epoch,
            position,
            status: Arc::new(status),
        }
    }

    /// Returns the state that the writer shares with its volume.
    pub(crate) fn status(&self) -> &Arc<LogStatus> {
        &self.status
    }

    /// Returns the epoch of the owner.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Appends a body as an entry, and returns once the entry is durable. The error `Stale` means
    /// that the entry is not in the log and never will be. The error `EngineAway` means that the
    /// entry may be in the log.
    pub(crate) async fn append(&mut self, body: BodyWriter) -> Result<Logged, StorageError> {
        if self.status.has_ended() {
            return Err(StorageError::Stale);
        }
        let (body, position) = body.seal(&self.position, self.epoch);
        let entry = (body.clone(), position);
        match settle(&mut *self.log, self.position, entry, &self.status).await {
            Settled::Durable(position) => {
                self.position = position;
                self.status.acknowledged.store(position.seq, Ordering::Release);
                Ok(Logged { body, position })
            }
            Settled::Refused { may_appear } => {
                self.status.end();
                tracing::warn!(
                    volume = self.volume,
                    epoch = self.epoch,
                    "volume taken over by another process"
                );
                Err(if may_appear {
                    StorageError::EngineAway
                } else {
                    StorageError::Stale
                })
            }
            Settled::PredecessorLost => {
                self.status.end();
                tracing::error!(
                    volume = self.volume,
                    seq = self.position.seq,
                    "the engine has lost acknowledged entries; check its standbys and backups",
                );
                Err(StorageError::EngineAway)
            }
            Settled::Abandoned => {
                self.status.end();
                Err(StorageError::EngineAway)
            }
        }
    }
}

impl Drop for LogWriter {
    /// Ends the tasks that depend on the log, such as the checkpointer, however the writer ends.
    fn drop(&mut self) {
        self.status.end();
    }
}

#[cfg(test)]
mod tests;
