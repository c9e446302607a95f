//! Batches: a set of changes that become visible and durable together.
//!
//! - Records are encoded, checksummed and hashed as they are added, before any lock is taken.
//! - The first error is kept and returned by `commit`, so that adding a record cannot fail.
//!
//! Deliberately absent: reads. A change that depends on a read belongs in a transaction.

use std::sync::Arc;

use crate::engine::Handle;
use crate::engine::body::Body;
use crate::engine::catalog::TableCore;
use crate::engine::commit::Checks;
use crate::error::{Error, Result};
use crate::format::record::RecordKind;
use crate::options::Durability;
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
    engine: Arc<Handle>,
    body: Body,
    tables: Vec<Arc<TableCore>>,
    /// The first error of an added record, returned by `commit`.
    error: Option<Error>,
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
    /// # let events = db.table("events")?;
    /// let mut batch = db.batch();
    /// batch.put(&events, "a", "1");
    /// batch.put(&events, "a", "2"); // the last put of a key wins
    /// batch.commit()?;
    /// assert_eq!(events.get("a")?.as_deref(), Some(&b"2"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn put(&mut self, table: &Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.push(RecordKind::Put, table, key.as_ref(), value.as_ref());
    }

    /// Adds the deletion of a key. Deleting an absent key has no effect.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// let mut batch = db.batch();
    /// batch.delete(&events, "a");
    /// batch.commit()?;
    /// assert!(!events.contains_key("a")?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete(&mut self, table: &Table, key: impl AsRef<[u8]>) {
        self.push(RecordKind::Delete, table, key.as_ref(), &[]);
    }

    /// Adds a put to a typed table.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// let mut batch = db.batch();
    /// batch.put_typed(&stock, &812, &3);
    /// batch.put(&events, "812", "three came");
    /// batch.commit()?;
    /// assert_eq!(stock.get(&812)?, Some(3));
    /// # Ok(())
    /// # }
    /// ```
    pub fn put_typed<K, V>(&mut self, table: &crate::TypedTable<K, V>, key: &K, value: &V)
    where
        K: serde::Serialize + serde::de::DeserializeOwned,
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        match table.encode_both(key, value) {
            Ok((key, value)) => self.put(table.raw(), key, value),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }

    /// Adds the deletion of a key of a typed table. Deleting an absent key has no effect.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// let mut batch = db.batch();
    /// batch.delete_typed(&stock, &812);
    /// batch.commit()?;
    /// assert_eq!(stock.get(&812)?, None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn delete_typed<K, V>(&mut self, table: &crate::TypedTable<K, V>, key: &K)
    where
        K: serde::Serialize + serde::de::DeserializeOwned,
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        match table.encode_key(key) {
            Ok(key) => self.delete(table.raw(), key),
            Err(error) => _ = self.error.get_or_insert(error),
        }
    }

    /// Returns the number of changes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let mut batch = db.batch();
    /// batch.put(&events, "a", "1");
    /// batch.delete(&events, "b");
    /// assert_eq!(batch.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.body.ops.len()
    }

    /// Returns `true` if the batch has no changes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert!(db.batch().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.ops.is_empty()
    }

    /// Returns the encoded size in bytes, which is at most [`crate::BATCH_BYTES_MAX`].
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

    /// Commits with the durability of the database's options. Returns the sequence of the commit.
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
    /// - [`Error::TooLarge`], [`Error::ForeignTable`] or [`Error::TableDropped`] for one of the
    ///   added records.
    /// - Errors of the disk.
    ///
    /// Nothing of the batch is visible after an error, now or after a reopen. There is one
    /// exception: after [`Error::Poisoned`] or a failed sync, a reopen may find the whole batch or
    /// nothing of it.
    pub fn commit(self) -> Result<u64> {
        let durability = self.engine.options.durability;
        self.commit_with(durability)
    }

    /// Commits with the given durability.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let mut batch = db.batch();
    /// batch.put(&events, "a", "1");
    /// batch.commit_with(microdb::Durability::Buffered)?; // visible, but lost in a power cut
    /// db.sync()?; // durable from here
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Batch::commit`].
    pub fn commit_with(mut self, durability: Durability) -> Result<u64> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.body.ops.is_empty() {
            return self.engine.check_writable().map(|()| self.engine.sequence());
        }
        self.engine.wait_for_space(self.body.bytes.len())?;
        self.body.mark_superseded();
        let outcome = self
            .engine
            .commit(&mut self.body, &self.tables, durability, Checks::none())?;
        Ok(outcome.sequence)
    }

    /// Returns the encoded records, and the tables to which they refer by index.
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
        // The most recently used table is the most likely one.
        let known = self
            .tables
            .iter()
            .rposition(|known| Arc::ptr_eq(known, &table.core));
        if let Some(index) = known {
            return Ok(index as u32);
        }
        if !Arc::ptr_eq(&self.engine, &table.engine) {
            return Err(Error::ForeignTable {
                name: table.core.name(),
            });
        }
        self.tables.push(table.core.clone());
        Ok(self.tables.len() as u32 - 1)
    }
}
