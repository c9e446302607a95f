//! Checkpoints of a volume's log. A checkpoint copies the last value of each row from log entries
//! into the engine's table of rows, and removes old entries.
//!
//! **Invariants**
//! - The engine's rows are the result of all log entries before `kept_from`. A checkpoint changes
//!   `kept_from` by compare-and-swap in the transaction that writes the rows. So concurrent
//!   checkpoints cannot mix, and a checkpoint needs no ownership and can be repeated.
//! - Only acknowledged entries become rows.
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
use crate::storage::log::{LastWords, Log, LogError};
use crate::storage::write_batch::Table;

/// Minimum time from the acknowledgement of an entry to its removal. The engine cancels statements
/// after 30 s or earlier (`cluster::engine::joining` checks its settings). So no statement of a
/// former owner runs for `KEPT_FOR`.
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
/// Size in bytes of the changes read from the log at which a transaction is complete. A larger
/// transaction would delay the commits of other volumes.
const WORDS_BYTES_MAX: usize = 8 * 1_024 * 1_024;

/// Makes the checkpoints of one volume, in the process that owns the volume.
pub(crate) struct Checkpointer {
    log: Box<dyn Log>,
    /// Numbers of acknowledged entries, each with the time of the checkpoint that first found it
    /// acknowledged.
    known: VecDeque<(u64, Instant)>,
    kept_from: u64,
}

impl Checkpointer {
    pub(crate) fn new(log: Box<dyn Log>) -> Checkpointer {
        Checkpointer {
            log,
            known: VecDeque::new(),
            kept_from: 0,
        }
    }

    /// Makes checkpoints until the volume can commit no more or is being closed, or an entry of the
    /// log cannot be decoded. After a failed statement, or if another process has removed entries,
    /// a later checkpoint is tried.
    pub(crate) async fn run(mut self, volume: String, status: Arc<LogStatus>) {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if status.has_ended() || status.is_stopping() {
                return;
            }
            let acknowledged = status.acknowledged();
            let is_due = last.elapsed() >= INTERVAL || acknowledged >= self.kept_from + ENTRIES_MAX;
            if status.is_away() || !is_due {
                continue;
            }
            last = Instant::now();
            match self.pass(acknowledged).await {
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
        loop {
            let Some(head) = self.log.head().await? else {
                return Ok(0);
            };
            self.kept_from = head.kept_from;
            // The first entry has the number 1, and `kept_from` is 1 for a new volume.
            let mut at = head.kept_from.saturating_sub(1);
            let mut words = Words::default();
            while at < acknowledged && words.bytes < WORDS_BYTES_MAX {
                let entries = self.log.tail(at, acknowledged).await?;
                for entry in &entries {
                    if entry.seq != at + 1 {
                        // Another process has made a checkpoint and removed this entry.
                        let missing = format!("entry {} is not in the log any more", at + 1);
                        return Err(LogError::Away(missing).into());
                    }
                    words.add(&entry.body).map_err(|fault| StorageError::Log {
                        entry: entry.seq,
                        reason: format!("its bytes cannot be read: {fault}"),
                    })?;
                    at = entry.seq;
                }
                if entries.is_empty() {
                    // Another process has made a checkpoint and removed these entries, or an old
                    // primary without these entries has answered.
                    break;
                }
            }
            if at < head.kept_from {
                break;
            }
            if self
                .log
                .checkpoint(head.kept_from, at + 1, &words.finish())
                .await?
            {
                self.kept_from = at + 1;
            }
            if at >= acknowledged {
                break;
            }
        }
        let is_old = |(_, since): &(u64, Instant)| {
            now.duration_since(*since) >= KEPT_FOR || seeded("engine-trims-at-once")
        };
        let old = self.known.iter().take_while(|known| is_old(known)).count();
        if let Some((last, _)) = self.known.drain(..old).next_back() {
            self.log.trim(last).await?;
        }
        Ok(self.kept_from)
    }
}

/// The last value of each row that a range of log entries writes. `None` for a row that these
/// entries remove last.
#[derive(Default)]
struct Words {
    rows: BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>,
    bytes: usize,
}

impl Words {
    fn add(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        Body::parse(body)?.each_row(|row| {
            let value = row.value.map(<[u8]>::to_vec);
            self.bytes += row.key.len() + value.as_ref().map_or(0, Vec::len);
            self.rows.insert((row.table as u8, row.key.to_vec()), value);
            Ok(())
        })
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
