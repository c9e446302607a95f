//! The local database as a copy of the beginning of a volume's log. The copy may be deleted while
//! no process has it open.
//!
//! **Invariants**
//! - The database holds the rows of the log up to the position in its table `meta`, key `log`. Rows
//!   and position are written in one commit without a sync, so after a crash both are from one
//!   commit, which may be an earlier one.
//! - A database without a position is empty or an unfinished copy, and is cleared and filled again.
//! - If the log lacks the last entry of the copy, or has another chain there, the copy cannot be
//!   continued. If no checkpoint of the log (`checkpoint`) has removed the entry, the engine has
//!   lost or changed entries, or an old primary has answered. `catch_up` then clears the copy and
//!   logs an error only if its caller permits it.
//!
//! Deliberately absent: the choice of the entries that are final (`takeover`, `follow`).

use std::path::Path;
use std::sync::Arc;

use crate::error::{DecodeError, StorageError};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::runtime::watch;
use crate::storage::codec::bytes::{Reader, Writer};
use crate::storage::log::body::{Body, Chain};
use crate::storage::log::{Entry, Log, LogError, Position, RowsPart};
use crate::storage::tables::{CopyBatch, VolumeTables};
use crate::storage::volume::broken;
use crate::storage::write_batch::{Row, TABLES, Table};

/// Key of the log position in the table `meta`.
pub(crate) const POSITION: &[u8] = b"log";
/// Size in bytes at which a commit is written while entries or rows are copied. Larger commits are
/// not faster.
const COPY_BYTES: usize = 1_024 * 1_024;
/// Maximum number of attempts to make a copy. An attempt fails if entries are removed from the log
/// while it runs.
const COPIES_MAX: usize = 3;

/// A local database that is a copy of the beginning of a log.
#[derive(Clone)]
pub(crate) struct Cache(pub(in crate::storage) Arc<VolumeTables>);

/// The table and key of a row.
type RowKey = (Table, Vec<u8>);

/// The reason why a cache was not brought up to date, or why a checkpoint was not made.
#[derive(Debug)]
pub(crate) enum CatchUpError {
    /// A statement failed, the engine has no such volume, or entries were removed from the log
    /// faster than they could be copied. A later attempt may succeed.
    Log(LogError),
    /// The engine lacks the last entry of the cache, or has another entry in its place. The server
    /// that answered may be an old primary.
    Differs(String),
    /// The local database or an entry of the log cannot be used.
    Storage(StorageError),
    /// The caller has stopped the copy (`catch_up_until`). A later attempt continues it.
    Stopped,
}

impl From<LogError> for CatchUpError {
    fn from(error: LogError) -> CatchUpError {
        CatchUpError::Log(error)
    }
}

impl From<StorageError> for CatchUpError {
    fn from(error: StorageError) -> CatchUpError {
        CatchUpError::Storage(error)
    }
}

/// Appends the encoded position to `bytes`.
pub(in crate::storage) fn encode_position(position: &Position, bytes: &mut Vec<u8>) {
    let mut row = Writer::new(bytes, 40);
    row.number(position.seq);
    row.number(position.epoch);
    row.raw(&position.chain);
}

fn decode_position(bytes: &[u8]) -> Result<Position, DecodeError> {
    let mut row = Reader::new(bytes)?;
    let mut position = Position {
        seq: row.number("an entry")?,
        epoch: row.number("an epoch")?,
        chain: Chain::default(),
    };
    position
        .chain
        .copy_from_slice(row.take(size_of::<Chain>(), "a chain")?);
    row.end()?;
    Ok(position)
}

impl Cache {
    /// Opens or creates the database in `folder`. Blocks.
    pub(crate) fn open(options: microdb::Options, folder: &Path) -> Result<Cache, StorageError> {
        Ok(Cache(Arc::new(VolumeTables::open(options, folder)?)))
    }

    /// Opens or creates the database in `folder` with microdb's default options. Blocks.
    pub(crate) fn open_in(folder: &Path) -> Result<Cache, StorageError> {
        Cache::open(microdb::Options::new(), folder)
    }

    /// Returns the position of the last log entry in the database. `None` if the database is new,
    /// cleared or an unfinished copy.
    pub(crate) fn position(&self) -> Result<Option<Position>, StorageError> {
        let row = self.0.meta(POSITION)?;
        row.map(|row| decode_position(&row).map_err(|fault| broken("meta", POSITION, fault)))
            .transpose()
    }

    /// Returns the highest epoch of a ring that brought slots to the volume; 0 if it has no slots.
    pub(crate) fn ring_epoch(&self) -> u64 {
        let record = self.0.record();
        let epochs = record.iter().flat_map(|record| &record.0);
        epochs.copied().max().unwrap_or(0)
    }

    /// Returns the keys of a table.
    #[cfg(test)]
    pub(crate) fn keys(&self, table: Table) -> Result<Vec<Vec<u8>>, StorageError> {
        let keys = self.0.table(table).into_iter();
        keys.map(|row| {
            Ok(row
                .map_err(crate::storage::volume::reading(table.name()))?
                .0
                .to_vec())
        })
        .collect()
    }

    /// Writes a position without rows.
    #[cfg(test)]
    pub(crate) fn move_to(&self, at: &Position) -> Result<(), StorageError> {
        self.0.batch().commit_at(at)
    }

    /// Returns the number of rows in all tables except `meta`.
    pub(crate) fn rows(&self) -> u64 {
        let tables = TABLES.iter().filter(|(table, _)| *table != Table::Meta);
        tables.map(|(table, _)| self.0.table(*table).len()).sum()
    }

    /// Writes a checkpoint of the local database and closes the database. Blocks.
    pub(crate) fn close_cleanly(&self) -> Result<(), StorageError> {
        self.0.checkpoint()?;
        self.close()
    }

    /// Closes the database. Blocks.
    pub(crate) fn close(&self) -> Result<(), StorageError> {
        self.0.close()
    }

    /// Removes all rows. The table with the position is cleared first, so that a crash cannot leave
    /// an incomplete database that has a position.
    pub(crate) fn clear(&self) -> Result<(), StorageError> {
        self.0.clear(Table::Meta)?;
        for (table, _) in TABLES {
            self.0.clear(table)?;
        }
        Ok(())
    }

    /// Writes a part of a copy, and the position if it is the last part. Returns the last row.
    fn fill(
        &self,
        rows: Vec<(Table, Vec<u8>, Vec<u8>)>,
        position: Option<&Position>,
    ) -> Result<Option<RowKey>, StorageError> {
        let mut batch = self.0.batch();
        for (table, key, value) in &rows {
            let (table, value) = (*table, Some(&value[..]));
            batch.add(&Row { table, key, value });
            if batch.bytes() >= COPY_BYTES {
                std::mem::replace(&mut batch, self.0.batch()).commit()?;
            }
        }
        match position {
            Some(position) => batch.commit_at(position)?,
            None => batch.commit()?,
        }
        Ok(rows.into_iter().next_back().map(|(table, key, _)| (table, key)))
    }

    /// Writes the rows of the entries after the position `at`. Returns the position of the last
    /// entry. For an unfinished copy, `copied` is its last row: later rows are left out, because a
    /// later part of the copy has them, and no position is written.
    fn apply(
        &self,
        mut at: Position,
        entries: &[Entry],
        copied: Option<&RowKey>,
    ) -> Result<Position, StorageError> {
        let is_copied = |row: &Row<'_>| {
            copied.is_none_or(|(table, key)| (row.table as u8, row.key) <= (*table as u8, &key[..]))
        };
        let commit = |batch: CopyBatch<'_>, at: &Position| match copied {
            None => batch.commit_at(at),
            Some(_) => batch.commit(),
        };
        let mut batch = self.0.batch();
        for entry in entries {
            let fault = |fault| StorageError::Log {
                entry: entry.seq,
                reason: format!("its bytes cannot be read: {fault}"),
            };
            let body = Body::parse(&entry.body).map_err(fault)?;
            if !body.follows(&at, entry.epoch) && !seeded("engine-chain-not-compared") {
                return Err(StorageError::Log {
                    entry: entry.seq,
                    reason: "its chain does not continue that of the entry before it".to_owned(),
                });
            }
            body.each_row(|row| {
                if is_copied(&row) {
                    batch.add(&row);
                }
                Ok(())
            })
            .map_err(fault)?;
            at = Position {
                seq: entry.seq,
                epoch: entry.epoch,
                chain: body.chain,
            };
            if batch.bytes() >= COPY_BYTES {
                commit(std::mem::replace(&mut batch, self.0.batch()), &at)?;
            }
        }
        commit(batch, &at)?;
        Ok(at)
    }
}

/// Copies log entries to the cache until the cache contains the entry `last`, and returns the
/// position of the cache. This position is after `last` if the cache, or the engine's rows, already
/// contained later entries. Begins at the position of the cache, or with the engine's rows if the
/// cache must be filled again.
///
/// The cache may contradict the log. If `drops` is `true`, such a cache is cleared and filled
/// again. Otherwise the result is `Differs`.
pub(crate) async fn catch_up(
    cache: &Cache,
    log: &mut dyn Log,
    volume: &str,
    last: u64,
    drops: bool,
) -> Result<Position, CatchUpError> {
    // The sender lives as long as the copy, so the copy is never stopped.
    let (_running, mut stopped) = watch::channel(false);
    catch_up_until(&mut stopped, cache, log, volume, last, drops).await
}

/// Does the work of `catch_up` until `stopped` becomes `true` or loses its sender. Then the result
/// is `Stopped`. A statement that waits for the engine is abandoned at once, and a write to the
/// local database is finished first. So no work on the cache goes on after this function.
pub(crate) async fn catch_up_until(
    stopped: &mut watch::Receiver<bool>,
    cache: &Cache,
    log: &mut dyn Log,
    volume: &str,
    last: u64,
    drops: bool,
) -> Result<Position, CatchUpError> {
    for _ in 0..COPIES_MAX {
        let mut at = match resume(stopped, cache, log, volume, drops).await? {
            Some(position) => position,
            None => copy_rows(stopped, cache, log).await?,
        };
        loop {
            if at.seq >= last {
                let refreshed = cache.clone();
                blocking(move || refreshed.0.refresh()).await?;
                return Ok(at);
            }
            let entries = unless_stopped(stopped, log.tail(at.seq, last)).await?;
            if !are_next(&at, &entries) {
                // Entries were removed from the log during this copy, or an old primary answered
                // without them. If the last entry of the cache was removed too, the next attempt
                // begins with newer rows of the engine.
                break;
            }
            let applied = cache.clone();
            at = blocking(move || applied.apply(at, &entries, None)).await?;
        }
    }
    Err(LogError::Away("entries were trimmed faster than they could be copied".to_owned()).into())
}

/// Returns the position of a cache that equals the beginning of the log. Returns `None` if the
/// cache must be filled again, and `Differs` if the cache contradicts the log and `drops` is
/// `false`.
async fn resume(
    stopped: &mut watch::Receiver<bool>,
    cache: &Cache,
    log: &mut dyn Log,
    volume: &str,
    drops: bool,
) -> Result<Option<Position>, CatchUpError> {
    let read = cache.clone();
    let Some(position) = blocking(move || read.position()).await? else {
        return Ok(None);
    };
    if seeded("engine-chain-not-compared") {
        return Ok(Some(position));
    }
    if position.seq == 0 {
        // The copy has no entry to compare. Once a checkpoint has copied entries of the log, the
        // first entries may be removed from the log, and the copy cannot be continued.
        let head = unless_stopped(stopped, log.head()).await?;
        let is_trimmed = head.is_some_and(|head| head.kept_from > 1);
        return Ok(Some(position).filter(|_| !is_trimmed));
    }
    let fault = match unless_stopped(stopped, log.look(position.seq)).await? {
        Some(head) if head.position() == Ok(position) => return Ok(Some(position)),
        Some(_) => "the engine has another one in its place",
        None => match unless_stopped(stopped, log.head()).await? {
            // The volume was removed, or its removal is not completed.
            None => return Err(LogError::Away("the engine has no such volume".to_owned()).into()),
            Some(head) if position.seq + 1 < head.kept_from => {
                tracing::info!(
                    volume,
                    seq = position.seq,
                    "cache older than the log; it is filled again"
                );
                return Ok(None);
            }
            Some(_) => "the engine does not have it",
        },
    };
    if !drops {
        return Err(CatchUpError::Differs(format!("entry {}: {fault}", position.seq)));
    }
    tracing::error!(
        volume,
        seq = position.seq,
        epoch = position.epoch,
        "cache dropped: its last entry was acknowledged, and {fault}; check the engine's standbys and \
         backups, orders may be lost",
    );
    Ok(None)
}

/// Fills a cache with the engine's rows. Returns the position of the last entry that the rows
/// contain. The rows are read in parts, each with its position in one transaction (`Log::rows`). A
/// position of another moment or server would hide that the rows lack entries.
///
/// Before a part is written, the earlier rows are brought to its position with the entries of the
/// log. So the copy is never further behind the log than the time of one part, and a copy of any
/// size ends although old entries are removed meanwhile.
async fn copy_rows(
    stopped: &mut watch::Receiver<bool>,
    cache: &Cache,
    log: &mut dyn Log,
) -> Result<Position, CatchUpError> {
    let cleared = cache.clone();
    blocking(move || cleared.clear()).await?;
    let (mut at, mut copied) = (Position::default(), None::<RowKey>);
    loop {
        let after = copied.as_ref().map(|(table, key)| (*table, &key[..]));
        let RowsPart { last, rows } = unless_stopped(stopped, log.rows(after)).await?;
        let position = match last {
            None => Position::default(),
            Some(head) => head.position().map_err(|fault| StorageError::Log {
                entry: head.seq,
                reason: format!("its bytes cannot be read: {fault}"),
            })?,
        };
        at = match &copied {
            None => position,
            Some(copied) => bring_to(stopped, cache, log, (at, position), copied).await?,
        };
        let (filled, is_last) = (cache.clone(), rows.is_empty());
        copied = blocking(move || filled.fill(rows, is_last.then_some(&at)))
            .await?
            .or(copied);
        if is_last {
            return Ok(at);
        }
    }
}

/// Brings the rows of an unfinished copy up to its row `copied` from one position to another.
async fn bring_to(
    stopped: &mut watch::Receiver<bool>,
    cache: &Cache,
    log: &mut dyn Log,
    (mut at, to): (Position, Position),
    copied: &RowKey,
) -> Result<Position, CatchUpError> {
    while at.seq < to.seq {
        let entries = unless_stopped(stopped, log.tail(at.seq, to.seq)).await?;
        if !are_next(&at, &entries) {
            return Err(LogError::Away("entries were trimmed during the copy".to_owned()).into());
        }
        let (applied, copied) = (cache.clone(), copied.clone());
        at = blocking(move || applied.apply(at, &entries, Some(&copied))).await?;
    }
    if at != to {
        return Err(LogError::Away("the rows of a copy are of two servers".to_owned()).into());
    }
    Ok(at)
}

/// Returns `true` if the entries follow the entry `at` without a gap, and there is an entry.
fn are_next(at: &Position, entries: &[Entry]) -> bool {
    let is_next = |(offset, entry): (u64, &Entry)| entry.seq == at.seq + 1 + offset;
    !entries.is_empty() && (0..).zip(entries).all(is_next)
}

/// Returns the result of a statement that only reads, or `Stopped` as soon as `stopped` is `true`
/// or has no sender. The statement is dropped then.
pub(in crate::storage) async fn unless_stopped<T>(
    stopped: &mut watch::Receiver<bool>,
    statement: impl Future<Output = Result<T, LogError>>,
) -> Result<T, CatchUpError> {
    tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => Err(CatchUpError::Stopped),
        result = statement => Ok(result?),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    runtime::blocking(work).await.unwrap_or(Err(StorageError::Closed))
}
