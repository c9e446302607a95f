//! Checkpoints of a volume's log. A checkpoint copies the last value of each row from log entries
//! into the engine's table of rows, and removes old entries.
//!
//! **Invariants**
//! - The engine's rows are the result of all log entries before `kept_from`. A checkpoint changes
//!   `kept_from` by compare-and-swap in the transaction that writes the rows. So concurrent
//!   checkpoints cannot mix, and a checkpoint needs no ownership and can be repeated.
//! - Only acknowledged entries become rows. The entries are read with several statements, so an old
//!   primary may have answered some of them. The chain of each entry is compared, and the statement
//!   that completes the checkpoint compares the last one with the log of its own server.
//! - A checkpoint ends before an entry that would make it larger than `WORDS_BYTES_MAX`, but has at
//!   least one entry. So its size is bounded by that of the largest entry, and every entry becomes
//!   rows at last.
//! - An entry stays in the log for at least `KEPT_FOR` after its acknowledgement. A statement of a
//!   former owner ends before that time, so it cannot append at the number of a removed entry.
//!
//! Deliberately absent: the tables (`cluster::engine::schema`), and help for a follower that needs
//! a removed entry. Such a follower copies the engine's rows again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{DecodeError, StorageError};
use crate::runtime::seeded::seeded;
use crate::storage::log::body::Body;
use crate::storage::log::cache::CatchUpError;
use crate::storage::log::writer::LogStatus;
use crate::storage::log::{Entry, LastWords, Log, LogError, Position};
use crate::storage::write_batch::Table;

/// Minimum time from the acknowledgement of an entry to its removal. The engine cancels appends
/// after 30 s or earlier: `cluster::engine::joining` checks its settings, and the append of a large
/// entry sets a limit of its own for each statement. Its INSERT and a pause of its client end
/// within 20 s, and after the INSERT no other entry can get its number. So no append of a former
/// owner inserts an entry after `KEPT_FOR`.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(60);
/// Interval between two checkpoints if at most `ENTRIES_MAX` entries are appended.
const INTERVAL: Duration = Duration::from_secs(30);
/// Number of acknowledged entries that may be missing in the engine's rows. With more, a checkpoint
/// is made before `INTERVAL` has passed. The rows of an order change several times, and a
/// checkpoint writes only the last value of a row. So a checkpoint of many entries writes fewer
/// rows for each entry.
const ENTRIES_MAX: u64 = 4_096;
/// Interval between two checks whether a checkpoint is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// First pause after a pass that left acknowledged entries. Each further such pass doubles the
/// pause, up to `INTERVAL`.
const FAULT_PAUSE: Duration = Duration::from_secs(2);
/// Maximum size in bytes of the entries of one checkpoint, unless it has a single entry. A larger
/// transaction would delay the commits of other volumes.
const WORDS_BYTES_MAX: usize = 8 * 1_024 * 1_024;

/// Makes the checkpoints of one volume, in the process that owns the volume.
pub(crate) struct Checkpointer {
    log: Box<dyn Log>,
    /// The epoch of the owner. Once the volume has another epoch, no entries are removed, because a
    /// new volume of the same name has other numbers.
    epoch: u64,
    /// Numbers of acknowledged entries, each with the time of the checkpoint that first found it
    /// acknowledged.
    known: VecDeque<(u64, Instant)>,
    kept_from: u64,
}

impl Checkpointer {
    /// Creates the checkpointer of the owner with this epoch.
    pub(crate) fn new(log: Box<dyn Log>, epoch: u64) -> Checkpointer {
        Checkpointer {
            log,
            epoch,
            known: VecDeque::new(),
            kept_from: 0,
        }
    }

    /// Makes checkpoints until the volume can commit no more or is being closed, or an entry of the
    /// log cannot be decoded. After a failed statement, or if another process has removed entries,
    /// a later checkpoint is tried after a pause.
    pub(crate) async fn run(mut self, volume: String, status: Arc<LogStatus>) {
        let (mut last, mut pause) = (Instant::now(), Duration::ZERO);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if status.has_ended() || status.is_stopping() {
                return;
            }
            let acknowledged = status.acknowledged();
            let are_many = acknowledged >= self.kept_from + ENTRIES_MAX;
            let is_due = last.elapsed() >= if are_many { pause } else { INTERVAL };
            if status.is_away() || !is_due {
                continue;
            }
            let passed = self.pass(acknowledged).await;
            last = Instant::now();
            pause = match passed {
                Ok(kept_from) if kept_from > acknowledged => Duration::ZERO,
                _ => (pause * 2).clamp(FAULT_PAUSE, INTERVAL),
            };
            match passed {
                Ok(_) => {}
                Err(CatchUpError::Log(error)) => tracing::warn!(volume, %error, "checkpoint not made"),
                Err(CatchUpError::Differs(_) | CatchUpError::Stopped) => {}
                Err(CatchUpError::Storage(error)) => {
                    tracing::error!(volume, %error, "checkpoints ended: the log cannot be read");
                    return;
                }
            }
        }
    }

    /// Copies the rows of the entries up to `acknowledged` into the table of rows, and removes old
    /// entries. Returns the number of the first entry that is not in this table, as far as this
    /// process knows, or 0 if the volume does not exist.
    pub(crate) async fn pass(&mut self, acknowledged: u64) -> Result<u64, CatchUpError> {
        let now = Instant::now();
        if self.known.back().is_none_or(|(seq, _)| *seq < acknowledged) {
            self.known.push_back((acknowledged, now));
        }
        let is_old = |(_, since): &(u64, Instant)| {
            now.duration_since(*since) >= KEPT_FOR || seeded("engine-trims-at-once")
        };
        // Of the old numbers, the last one is enough. It stays until its entries are removed.
        while self.known.get(1).is_some_and(is_old) {
            self.known.pop_front();
        }
        while self.checkpoint(acknowledged).await? {}
        if let Some((last, _)) = self.known.front().copied().filter(is_old) {
            let mut removed = 0;
            while let Some(seq) = self.log.trim(self.epoch, removed, last).await? {
                removed = seq;
            }
            self.known.pop_front();
        }
        Ok(self.kept_from)
    }

    /// Makes one checkpoint of the entries up to `acknowledged`, if there are entries that are not
    /// in the table of rows. Returns `true` if such entries are left.
    async fn checkpoint(&mut self, acknowledged: u64) -> Result<bool, CatchUpError> {
        let Some(head) = self.log.head().await? else {
            self.kept_from = 0;
            return Ok(false);
        };
        self.kept_from = head.kept_from;
        if head.kept_from > acknowledged {
            return Ok(false);
        }
        let mut at = self.before(head.kept_from).await?;
        let mut words = Words::default();
        while at.seq < acknowledged && !words.is_full {
            let entries = self.log.tail(at.seq, acknowledged).await?;
            if entries.is_empty() {
                // Another process has made a checkpoint and removed these entries, or an old
                // primary without these entries has answered.
                break;
            }
            for entry in &entries {
                if !words.add(&mut at, entry)? {
                    break;
                }
            }
        }
        if at.seq < head.kept_from {
            return Ok(false);
        }
        if !self.log.checkpoint(head.kept_from, &at, &words.finish()).await? {
            let reason = format!(
                "another process was faster, or another server has entry {}",
                at.seq
            );
            return Err(LogError::Away(reason).into());
        }
        self.kept_from = at.seq + 1;
        Ok(at.seq < acknowledged)
    }

    /// Returns the position of the entry before `kept_from`.
    async fn before(&mut self, kept_from: u64) -> Result<Position, CatchUpError> {
        // The first entry has the number 1, and `kept_from` is 1 for a new volume.
        let seq = kept_from.saturating_sub(1);
        if seq == 0 {
            return Ok(Position::default());
        }
        let Some(head) = self.log.look(seq).await? else {
            return Err(missing(seq).into());
        };
        head.position().map_err(|fault| unreadable(seq, &fault).into())
    }
}

/// The error about an entry that the server does not have. Another process may have made a
/// checkpoint and removed the entry.
fn missing(seq: u64) -> LogError {
    LogError::Away(format!("entry {seq} is not in the log any more"))
}

fn unreadable(entry: u64, fault: &DecodeError) -> StorageError {
    StorageError::Log {
        entry,
        reason: format!("its bytes cannot be read: {fault}"),
    }
}

/// The last value of each row that a range of log entries writes. `None` for a row that these
/// entries remove last.
#[derive(Default)]
struct Words {
    rows: BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>,
    /// Size of the entries in bytes.
    bytes: usize,
    /// `true` once the next entry would make the checkpoint too large.
    is_full: bool,
}

impl Words {
    /// Adds the entry after the entry `at`, and moves `at` to it. Returns `false` and adds nothing
    /// if the checkpoint would become too large.
    fn add(&mut self, at: &mut Position, entry: &Entry) -> Result<bool, CatchUpError> {
        if entry.seq != at.seq + 1 {
            return Err(missing(at.seq + 1).into());
        }
        self.is_full = self.bytes > 0 && self.bytes + entry.body.len() > WORDS_BYTES_MAX;
        if self.is_full {
            return Ok(false);
        }
        let unreadable = |fault| unreadable(entry.seq, &fault);
        let body = Body::parse(&entry.body).map_err(unreadable)?;
        if !body.follows(at, entry.epoch) {
            let reason = format!("entry {} does not follow the entry before it", entry.seq);
            return Err(LogError::Away(reason).into());
        }
        let rows = &mut self.rows;
        let read = body.each_row(|row| {
            let value = row.value.map(<[u8]>::to_vec);
            rows.insert((row.table as u8, row.key.to_vec()), value);
            Ok(())
        });
        read.map_err(unreadable)?;
        self.bytes += entry.body.len();
        *at = Position {
            seq: entry.seq,
            epoch: entry.epoch,
            chain: body.chain,
        };
        Ok(true)
    }

    fn finish(self) -> LastWords {
        let mut words = LastWords::default();
        for ((code, key), value) in self.rows {
            let Some(table) = Table::of_code(code) else {
                continue;
            };
            match value {
                Some(value) => words.puts.push((table, key, value)),
                None => words.deletes.push((table, key)),
            }
        }
        words
    }
}
