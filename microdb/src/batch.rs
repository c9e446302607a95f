//! Batches: a set of changes that become visible and durable together.
//!
//! - Records are encoded, checksummed and hashed as they are added, before any lock is taken.
//! - The first error is kept and returned by `commit`, so that adding a record cannot fail. Records
//!   added after that error are ignored.
//!
//! Deliberately absent: reads. A change that depends on a read belongs in a transaction.

use std::sync::Arc;

use crate::any_table::{AnyTable, KeyFor, ValueFor};
use crate::engine::Handle;
use crate::engine::body::Body;
use crate::engine::catalog::TableCore;
use crate::engine::commit::Checks;
use crate::error::{Error, Result};
use crate::format::record::RecordKind;
use crate::options::Durability;
use crate::sequence::Sequence;
use crate::table::Table;

/// A set of changes to any tables of one database, committed atomically.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path())?;
/// let (accounts, journal) = (db.table("accounts")?, db.table("journal")?);
/// let mut batch = db.batch();
/// batch.put(&accounts, b"alice", b"90");
/// batch.put(&accounts, b"bob", b"110");
/// batch.put(&journal, b"1", b"alice gave bob 10");
/// batch.commit()?;
/// # Ok(())
/// # }
/// ```
pub struct Batch {
    body: Body,
    tables: Vec<Arc<TableCore>>,
    /// The first error of an added record, returned by `commit`. `None` if every record could be
    /// added.
    error: Option<Error>,
    /// Declared last, so that it is dropped after the other fields, which use memory of the
    /// database. The drop of the last `Handle` returns all of that memory to the system.
    engine: Arc<Handle>,
}

impl Batch {
    pub(crate) fn new(engine: &Arc<Handle>) -> Self {
        Self {
            engine: engine.clone(),
            body: Body::default(),
            tables: Vec::new(),
            error: None,
        }
    }

    /// Adds a put. An error of the record, such as a key that is too large, is returned by
    /// `commit`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// let (stock, events) = (db.typed_table::<u32, u16>("stock")?, db.table("events")?);
    /// let mut batch = db.batch();
    /// batch.put(&stock, &812, &3); // typed tables take references
    /// batch.put(&events, "812", "two came");
    /// batch.put(&events, "812", "three came"); // the last put of a key wins
    /// batch.commit()?;
    /// assert_eq!(events.get("812")?.unwrap(), "three came");
    /// # Ok(())
    /// # }
    /// ```
    pub fn put<T: AnyTable>(&mut self, table: &T, key: impl KeyFor<T>, value: impl ValueFor<T>) {
        let encoded = key
            .key_bytes(table)
            .and_then(|key| Ok((key, value.value_bytes(table)?)));
        match encoded {
            Ok((key, value)) => self.push(RecordKind::Put, table.raw(), &key, &value),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }

    /// Adds the deletion of a key. Deleting an absent key has no visible effect.
    pub fn delete<T: AnyTable>(&mut self, table: &T, key: impl KeyFor<T>) {
        match key.key_bytes(table) {
            Ok(key) => self.push(RecordKind::Delete, table.raw(), &key, &[]),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }

    /// Returns the number of changes, including those that a later change of the same key replaces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.body.ops.len()
    }

    /// Returns `true` if the batch has no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.ops.is_empty()
    }

    /// Returns the encoded size of all changes in bytes, which is at most
    /// [`crate::BATCH_BYTES_MAX`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let mut batch = db.batch();
    /// batch.put(&events, "a", vec![0; 1_000]);
    /// if batch.bytes() > 500 {
    ///     batch.commit()?; // before the batch exceeds the limit of a commit
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.bytes.len()
    }

    /// Commits with the durability of the database's options. Returns the sequence of the commit,
    /// or that of the last visible commit if the batch is empty.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let mut batch = db.batch();
    /// batch.put(&events, "a", "1");
    /// let sequence = batch.commit()?; // durable from here on
    /// assert_eq!(db.sequence(), sequence);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::TooLarge`], [`Error::ForeignTable`], [`Error::TableDropped`] or [`Error::Encode`]
    ///   for one of the added records.
    /// - The other errors of [`Table::put`].
    ///
    /// Nothing of the batch is visible after an error, now or after a reopen. There are two
    /// exceptions:
    /// - After [`Error::Poisoned`], a reopen may find the whole batch or nothing of it.
    /// - If the cause of [`Error::Poisoned`] is [`Error::Corrupt`], damage of a checkpoint was
    ///   found during this or an earlier commit. Reads of this handle may then find some records of
    ///   the batch. A reopen finds the whole batch if it was durable.
    pub fn commit(self) -> Result<Sequence> {
        let durability = self.engine.options.durability;
        self.commit_with(durability)
    }

    /// Commits like [`Batch::commit`], with the given durability instead of that of the options.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let mut batch = db.batch();
    /// batch.put(&events, "a", "1");
    /// batch.commit_with(microdb::Durability::Buffered)?; // visible, but a power cut may lose it
    /// db.sync()?; // durable from here
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Batch::commit`].
    pub fn commit_with(mut self, durability: Durability) -> Result<Sequence> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.body.ops.is_empty() {
            self.engine.check_writable()?;
            return Ok(Sequence(self.engine.sequence()));
        }
        self.engine.wait_for_space(self.body.bytes.len())?;
        self.body.mark_superseded();
        let outcome = self
            .engine
            .commit(&mut self.body, &self.tables, durability, Checks::none())?;
        Ok(Sequence(outcome.sequence))
    }

    /// Returns the encoded records, and the tables to which they refer by index. Returns the first
    /// error of an added record instead, if there was one.
    pub(crate) fn into_parts(self) -> Result<(Body, Vec<Arc<TableCore>>)> {
        match self.error {
            Some(error) => Err(error),
            None => Ok((self.body, self.tables)),
        }
    }

    fn push(&mut self, kind: RecordKind, table: &Table, key: &[u8], value: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let pushed = self.table_index(table).and_then(|index| {
            let hash = self.engine.hash(key);
            self.body.push(kind, (index, table.core.id), hash, key, value)
        });
        self.error = pushed.err();
    }

    fn table_index(&mut self, table: &Table) -> Result<u32> {
        // A change most likely belongs to the table that was added last, so the search starts at
        // the end.
        let known = self
            .tables
            .iter()
            .rposition(|known| Arc::ptr_eq(known, &table.core));
        if let Some(index) = known {
            return Ok(index as u32);
        }
        if !Arc::ptr_eq(&self.engine, &table.engine) {
            return Err(Error::ForeignTable { name: table.name() });
        }
        self.tables.push(table.core.clone());
        Ok(self.tables.len() as u32 - 1)
    }
}
