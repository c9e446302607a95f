//! Transactions: optimistic and serializable.
//!
//! What a transaction reads is remembered as the place of the record (or that there was none); what it writes is kept aside. At the
//! commit, under the commit lock, every read is checked to be still what it was; then the writes become one frame. If
//! not, all is forgotten and the closure runs again. Reads see the transaction's own writes. A run that will be forgotten may have
//! read keys of different moments; what commits has not.

use std::collections::HashMap;

use crate::batch::Batch;
use crate::commit::Check;
use crate::db::Db;
use crate::directory::Location;
use crate::engine::Found;
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::raw::epoch::pin;
use crate::table::Table;
use crate::value::Value;

/// Table id and key.
type KeyName = (u32, Vec<u8>);

/// A transaction that is running; see [`Db::transaction`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// db.transaction(|tx| {
///     let seen = tx.get(&events, "k")?;
///     tx.put(&events, "k", if seen.is_some() { "again" } else { "first" })
/// })?;
/// # Ok(())
/// # }
/// ```
pub struct Transaction<'a> {
    db: &'a Db,
    /// What was read and where it lay; by table and key.
    reads: HashMap<KeyName, (Check, Option<Value>)>,
    /// What will be written; by table and key.
    writes: HashMap<KeyName, (Table, Option<Vec<u8>>)>,
}

impl Transaction<'_> {
    /// The value of `key`, as this transaction sees it.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// db.transaction(|tx| {
    ///     tx.put(&events, "k", "v")?;
    ///     assert!(tx.get(&events, "k")?.is_some(), "it sees what it has written");
    ///     Ok(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::get`]; [`Error::ForeignTable`].
    pub fn get(&mut self, table: &Table, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.own(table)?;
        let name = (table.core.id, key.as_ref().to_vec());
        if let Some((_, value)) = self.writes.get(&name) {
            return Ok(value.as_deref().map(Value::copied));
        }
        if let Some((_, value)) = self.reads.get(&name) {
            return Ok(value.clone());
        }
        let (guard, hash) = (pin(), self.db.engine.hash(&name.1));
        let found = self.db.engine.lookup(&guard, &table.core, hash, &name.1)?;
        let expected: Option<Location> = found.as_ref().map(|found| found.location);
        let value = found.as_ref().map(Found::value);
        if let Some(found) = &found {
            found.check_uncut()?;
        }
        let check = Check {
            table: table.core.clone(),
            hash,
            key: name.1.clone(),
            expected,
        };
        self.reads.insert(name, (check, value.clone()));
        Ok(value)
    }

    /// Puts a value, if the transaction commits.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// db.transaction(|tx| {
    ///     tx.put(&events, "a", "1")?;
    ///     tx.put(&events, "b", "2")
    /// })?;
    /// assert_eq!(events.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForeignTable`].
    pub fn put(&mut self, table: &Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.write(table, key.as_ref(), Some(value.as_ref().to_vec()))
    }

    /// Deletes a key, if the transaction commits.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("from", "5")?;
    /// db.transaction(|tx| {
    ///     let units = tx.get(&events, "from")?.unwrap();
    ///     tx.delete(&events, "from")?;
    ///     tx.put(&events, "to", units)
    /// })?;
    /// assert!(!events.contains_key("from")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForeignTable`].
    pub fn delete(&mut self, table: &Table, key: impl AsRef<[u8]>) -> Result<()> {
        self.write(table, key.as_ref(), None)
    }

    fn write(&mut self, table: &Table, key: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        self.own(table)?;
        self.writes
            .insert((table.core.id, key.to_vec()), (table.clone(), value));
        Ok(())
    }

    fn own(&self, table: &Table) -> Result<()> {
        if std::sync::Arc::ptr_eq(&self.db.engine, &table.engine) {
            return Ok(());
        }
        Err(Error::ForeignTable { name: table.name() })
    }

    fn commit(self, durability: Durability) -> Result<()> {
        let mut batch = Batch::new(&self.db.engine);
        for ((_, key), (table, value)) in &self.writes {
            match value {
                Some(value) => batch.put(table, key, value),
                None => batch.delete(table, key),
            }
        }
        let checks = self.reads.into_values().map(|(check, _)| check).collect();
        batch.commit_checked(durability, checks)
    }
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Transaction({} read, {} written)",
            self.reads.len(),
            self.writes.len()
        )
    }
}

impl Db {
    /// Runs `body` as a transaction: what it reads and writes through [`Transaction`] is as if nobody else had been there. It
    /// may run several times, if other writers get in between; an error of its own ends it with nothing written.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// # let visits = db.table("visits")?;
    /// let count = db.transaction(|tx| {
    ///     let count = tx.get(&visits, "home")?.map_or(0, |count| count[0]) + 1;
    ///     tx.put(&visits, "home", [count])?;
    ///     Ok(count)
    /// })?;
    /// # assert_eq!(count, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `body`; [`Error::Conflict`] once the tries of the options are used up; as [`Batch::commit`].
    pub fn transaction<T>(&self, mut body: impl FnMut(&mut Transaction<'_>) -> Result<T>) -> Result<T> {
        let tries = self.engine.options.transaction_tries;
        for _ in 0..tries {
            let mut transaction = Transaction {
                db: self,
                reads: HashMap::new(),
                writes: HashMap::new(),
            };
            let result = body(&mut transaction)?;
            match transaction.commit(self.engine.options.durability) {
                Ok(()) => return Ok(result),
                Err(Error::Conflict { .. }) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Err(Error::Conflict { tries })
    }
}
