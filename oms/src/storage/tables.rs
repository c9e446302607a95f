//! The tables of a volume's database, and the commit of a group of batches to these tables.
//!
//! A commit has three steps: collect the rows of the group, make them durable in a log, and publish
//! them in the database. Without an engine, one commit of microdb does the last two steps: it syncs
//! microdb's own log and then publishes the rows. Behind an engine, the volume's log makes the rows
//! durable first, and the database is then written without a sync.
//!
//! **Invariants**
//! - Readers see a row only after it is durable.
//! - Without an engine, rows are not copied for the volume's log, and no memory is allocated for
//!   it.
//!
//! Deliberately absent: the interpretation of the rows (`volume`).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use microdb::Db;
use parking_lot::Mutex;

use crate::error::StorageError;
use crate::runtime::metrics::VolumeCounters;
use crate::runtime::seeded::seeded;
use crate::storage::codec::{self, Counters};
use crate::storage::fence::SlotOwnership;
use crate::storage::group_commit::Committed;
use crate::storage::log::Position;
use crate::storage::log::body::{Body, BodyWriter};
use crate::storage::log::cache::{POSITION, encode_position};
use crate::storage::log::writer::{LogWriter, Logged};
use crate::storage::reservations::Reservations;
use crate::storage::volume::{broken, reading};
use crate::storage::write_batch::{COUNTERS, Row, SLOTS, TABLES, Table, WriteBatch};

/// Pause between two attempts to write durable rows to a full disk.
const PUBLISH_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The database, with the state that its readers and the committer share.
pub(super) struct VolumeTables {
    pub(super) db: Db,
    handles: Vec<microdb::Table>,
    counters: Mutex<Counters>,
    /// Slot ownership as of the last commit that changed the ownership. `None` admits every fence.
    record: Mutex<Option<SlotOwnership>>,
    pub(super) failed: AtomicBool,
    /// Counters of the volume's commits. Not set before the volume is served.
    pub(super) commit_counters: OnceLock<Arc<VolumeCounters>>,
}

impl VolumeTables {
    pub(super) fn table(&self, table: Table) -> &microdb::Table {
        &self.handles[table as usize]
    }

    pub(super) fn counters(&self) -> parking_lot::MutexGuard<'_, Counters> {
        // The counters are always replaced as a whole, so a panic of another thread cannot leave
        // them half changed.
        self.counters.lock()
    }

    pub(super) fn record(&self) -> parking_lot::MutexGuard<'_, Option<SlotOwnership>> {
        self.record.lock()
    }
}

/// The rows of a group after the check of the fences, ready to be published.
pub(super) struct Prepared<'a> {
    rows: microdb::Batch,
    counters: Counters,
    newest: Option<&'a SlotOwnership>,
    committed: Committed,
}

impl VolumeTables {
    /// Commits the batches of a group as one microdb batch, except for those that `rows_of` leaves
    /// out. microdb's own log makes the rows durable.
    pub(super) fn commit(&self, group: &[WriteBatch]) -> Result<Committed, StorageError> {
        match self.rows_of(group, None) {
            // The rows are durable and visible after this call: microdb publishes a durable commit
            // after its sync.
            Ok(prepared) => self.publish(prepared, None),
            Err(none_left) => Ok(none_left),
        }
    }

    /// Collects the rows of a group, except for the batches that the fence rejects or that remove
    /// an unreadable reservation. Also appends these rows to `body`, if given. Returns `Err` with
    /// the outcome of the group if no batch is left.
    fn rows_of<'a>(
        &self,
        group: &'a [WriteBatch],
        mut body: Option<&mut BodyWriter>,
    ) -> Result<Prepared<'a>, Committed> {
        let mut counters = *self.counters();
        let (mut arrived, mut committed) = (Vec::new(), Committed::default());
        let mut reservations = Reservations::over(self.table(Table::Reservations));
        let record = self.record();
        let mut newest: Option<&SlotOwnership> = None;
        let mut rows = self.db.batch();
        let mut add = |row: &Row<'_>| {
            let table = self.table(row.table);
            match row.value {
                Some(value) => rows.put(table, row.key, value),
                None => rows.delete(table, row.key),
            }
            if let Some(body) = &mut body {
                body.add(row);
            }
        };
        for (at, batch) in group.iter().enumerate() {
            let current = newest.or(record.as_ref());
            if current.is_some_and(|slots| !batch.fences().all(|fence| slots.admits(fence))) {
                committed.rejected.push(at);
                continue;
            }
            match reservations.follow(batch) {
                Ok(true) => {}
                Ok(false) => committed.without_reservation.push(at),
                Err(error) => {
                    committed.failed.push((at, error));
                    continue;
                }
            }
            newest = batch.record().or(newest);
            for row in batch.rows() {
                add(&row);
            }
            arrived.extend(batch.arrived());
            batch.count(&mut counters);
        }
        if committed.durable(group.len()) == 0 {
            return Err(committed);
        }
        if !arrived.is_empty() {
            let key = &counters.next_page.to_be_bytes();
            let mut ids = Vec::new();
            codec::encode_arrivals(arrived.into_iter(), &mut ids);
            let (table, value) = (Table::Arrivals, Some(&ids[..]));
            add(&Row { table, key, value });
            counters.next_page += 1;
        }
        let mut row = Vec::new();
        codec::encode_counters(&counters, &mut row);
        let (table, key, value) = (Table::Meta, COUNTERS, Some(&row[..]));
        add(&Row { table, key, value });
        Ok(Prepared {
            rows,
            counters,
            newest,
            committed,
        })
    }

    /// Makes the rows of a group visible. Without a `position`, the commit of microdb also makes
    /// the rows durable. With a `position`, the volume's log has already made the rows durable.
    /// Then the database is written without a sync, and the position is stored with the rows.
    fn publish(
        &self,
        prepared: Prepared<'_>,
        position: Option<&Position>,
    ) -> Result<Committed, StorageError> {
        let Prepared { mut rows, .. } = prepared;
        let published = match position {
            None => rows.commit(),
            Some(position) => {
                self.put_position(&mut rows, position);
                rows.commit_with(microdb::Durability::Buffered)
            }
        };
        published.map_err(|source| StorageError::Commit {
            source: Arc::new(source),
        })?;
        *self.counters() = prepared.counters;
        if let Some(newest) = prepared.newest {
            *self.record() = Some(newest.clone());
        }
        Ok(prepared.committed)
    }

    fn put_position(&self, rows: &mut microdb::Batch, position: &Position) {
        let mut row = Vec::new();
        encode_position(position, &mut row);
        rows.put(self.table(Table::Meta), POSITION, row);
    }

    /// Appends the batches as one entry to the volume's log, except for those that `rows_of` leaves
    /// out, and publishes them once the entry is durable.
    pub(super) async fn commit_logged(
        &self,
        log: &mut LogWriter,
        group: &[WriteBatch],
    ) -> Result<Committed, StorageError> {
        // In the body, a row takes at most 8 bytes more than in its batch: the table and two
        // lengths.
        let expected = group.iter().map(|batch| batch.bytes() + 8 * batch.rows().len());
        let mut body = BodyWriter::with_capacity(256 + expected.sum::<usize>());
        let prepared = match self.rows_of(group, Some(&mut body)) {
            Ok(prepared) => prepared,
            Err(none_left) => return Ok(none_left),
        };
        let (counters, newest) = (prepared.counters, prepared.newest);
        let committed = prepared.committed.clone();
        if seeded("engine-published-first") {
            let position = Position::default();
            self.publish(prepared, Some(&position))?;
            log.append(body).await?;
            return Ok(committed);
        }
        let logged = log.append(body).await?;
        let Err(mut fault) = self.publish(prepared, Some(&logged.position)) else {
            return Ok(committed);
        };
        // The rows are durable in the log, so an error would mislead the callers. On a full disk,
        // the local database is tried again until it accepts the rows or the volume is closed.
        // Another fault ends the volume.
        while fault.is_full_disk() && !log.status().is_stopping() {
            self.failed.store(true, Ordering::Relaxed);
            log.status().set_away(true);
            tokio::time::sleep(PUBLISH_RETRY_PAUSE).await;
            match self.publish_body(&logged) {
                Ok(()) => {
                    log.status().set_away(false);
                    *self.counters() = counters;
                    if let Some(newest) = newest {
                        *self.record() = Some(newest.clone());
                    }
                    return Ok(committed);
                }
                Err(again) => fault = again,
            }
        }
        log.status().end();
        self.failed.store(true, Ordering::Relaxed);
        let error = crate::error::with_causes(&fault);
        tracing::error!(error, "durable rows not written to the local database");
        // The next owner serves the rows, so the callers must not learn that nothing was changed.
        Err(StorageError::EngineAway)
    }

    fn publish_body(&self, logged: &Logged) -> Result<(), StorageError> {
        let mut batch = self.batch();
        let read = Body::parse(&logged.body).and_then(|body| {
            body.each_row(|row| {
                batch.add(&row);
                Ok(())
            })
        });
        read.map_err(|fault| StorageError::Log {
            entry: logged.position.seq,
            reason: format!("its bytes cannot be read: {fault}"),
        })?;
        batch.commit_at(&logged.position)
    }
}

/// Rows copied from a log or from the engine's table of rows, to be written in one commit.
pub(super) struct CopyBatch<'a> {
    tables: &'a VolumeTables,
    rows: microdb::Batch,
}

impl CopyBatch<'_> {
    pub(super) fn add(&mut self, row: &Row<'_>) {
        let table = self.tables.table(row.table);
        match row.value {
            Some(value) => self.rows.put(table, row.key, value),
            None => self.rows.delete(table, row.key),
        }
    }

    /// Returns the size of the rows in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes()
    }

    /// Writes the rows without a sync.
    pub(super) fn commit(self) -> Result<(), StorageError> {
        let written = self.rows.commit_with(microdb::Durability::Buffered);
        written.map(drop).map_err(|source| StorageError::Commit {
            source: Arc::new(source),
        })
    }

    /// Writes the rows without a sync, together with `position`, the last log entry that the
    /// database then contains.
    pub(super) fn commit_at(mut self, position: &Position) -> Result<(), StorageError> {
        self.tables.put_position(&mut self.rows, position);
        self.commit()
    }
}

impl VolumeTables {
    /// Opens or creates the database in `folder`.
    pub(super) fn open(options: microdb::Options, folder: &Path) -> Result<VolumeTables, StorageError> {
        let opening = |source: microdb::Error| StorageError::Open {
            folder: folder.to_owned(),
            source: Arc::new(source),
        };
        let db = options.open(folder).map_err(opening)?;
        let mut handles = Vec::with_capacity(TABLES.len());
        for (at, (table, name)) in TABLES.into_iter().enumerate() {
            debug_assert_eq!(at, table as usize);
            handles.push(db.table(name).map_err(opening)?);
        }
        let tables = VolumeTables {
            db,
            handles,
            counters: Mutex::new(Counters::default()),
            record: Mutex::default(),
            failed: AtomicBool::new(false),
            commit_counters: OnceLock::new(),
        };
        tables.refresh()?;
        Ok(tables)
    }

    /// Reads counters and slot ownership from their rows.
    pub(super) fn refresh(&self) -> Result<(), StorageError> {
        let (mut counters, mut record) = (Counters::default(), None);
        if let Some(row) = self.meta(COUNTERS)? {
            counters = codec::decode_counters(&row).map_err(|fault| broken("meta", COUNTERS, fault))?;
        }
        if let Some(row) = self.meta(SLOTS)? {
            record = Some(SlotOwnership::decode(&row).map_err(|fault| broken("meta", SLOTS, fault))?);
        }
        *self.counters() = counters;
        *self.record() = record;
        Ok(())
    }

    /// Returns a row of the table `meta`.
    pub(super) fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let row = self.table(Table::Meta).get(key).map_err(reading("meta"))?;
        Ok(row.map(|row| row.to_vec()))
    }

    /// Creates an empty batch of copied rows.
    pub(super) fn batch(&self) -> CopyBatch<'_> {
        CopyBatch {
            tables: self,
            rows: self.db.batch(),
        }
    }

    /// Removes all rows of a table.
    pub(super) fn clear(&self, table: Table) -> Result<(), StorageError> {
        let cleared = self.table(table).clear();
        cleared.map_err(|source| StorageError::Commit {
            source: Arc::new(source),
        })
    }

    /// Writes a checkpoint of the database, so that the next open replays little of microdb's own
    /// log.
    pub(super) fn checkpoint(&self) -> Result<(), StorageError> {
        let written = self.db.checkpoint();
        written.map_err(|source| StorageError::Commit {
            source: Arc::new(source),
        })
    }

    /// Closes the database.
    pub(super) fn close(&self) -> Result<(), StorageError> {
        // The next server of the volume waits until the database is closed. So this call writes no
        // checkpoint if little log has been written since the last checkpoint. A stopping node has
        // written that checkpoint shortly before.
        let closed = self.db.clone().close_quickly();
        closed.map_err(|source| StorageError::Commit {
            source: Arc::new(source),
        })
    }
}
