//! Changes of one key that depend on its value: `update` and `take`.
//!
//! - Each change is a transaction of one key. After one or several conflicts its function runs
//!   again inside a commit group, while no other commit is made. So each of many threads that
//!   change one key makes progress.
//!
//! Deliberately absent: changes of several keys, for which the caller writes a transaction.

use std::borrow::Borrow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::db::Db;
use crate::error::Result;
use crate::table::Table;
use crate::typed::TypedTable;
use crate::typed::codec::Codec;
use crate::value::Value;

impl Table {
    /// Replaces the value of `key` by the result of `change`, which is called with the current
    /// value. As argument or result, `None` stands for an absent key. Returns the new value.
    ///
    /// The function may run several times, for example if other writers change the key.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let log = db.table("log")?;
    /// for word in ["one", " two"] {
    ///     log.update("k", |text| {
    ///         let mut text = text.map_or(Vec::new(), |text| text.to_vec());
    ///         text.extend_from_slice(word.as_bytes());
    ///         Some(text)
    ///     })?;
    /// }
    /// assert_eq!(log.get("k")?.unwrap(), "one two");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Db::transaction`] and [`Table::get`].
    pub fn update<N: AsRef<[u8]>>(
        &self,
        key: impl AsRef<[u8]>,
        mut change: impl FnMut(Option<Value>) -> Option<N>,
    ) -> Result<Option<N>> {
        let key = key.as_ref();
        let db = Db {
            engine: self.engine.clone(),
        };
        db.transaction(|tx| {
            let current = tx.get(self, key)?;
            let is_absent = current.is_none();
            let new = change(current);
            match &new {
                Some(new) => tx.put(self, key, new)?,
                // A tombstone for an absent key would only take space, so none is written.
                None if is_absent => {}
                None => tx.delete(self, key)?,
            }
            Ok(new)
        })
    }

    /// Deletes a key and returns its value. Returns `None` if the key is absent.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let jobs = db.table("jobs")?;
    /// jobs.put("1", "send")?;
    /// assert_eq!(jobs.take("1")?.unwrap(), "send"); // for one of several workers
    /// assert_eq!(jobs.take("1")?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::update`].
    pub fn take(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let mut taken = None;
        self.update(key, |current| {
            taken = current;
            None::<&[u8]>
        })?;
        Ok(taken)
    }
}

impl<K, V, C> TypedTable<K, V, C>
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
    C: Codec,
{
    /// Replaces the value of `key` by the result of `change`, which is called with the current
    /// value. As argument or result, `None` stands for an absent key. Returns the new value.
    ///
    /// The function may run several times, for example if other writers change the key.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let visits = db.typed_table::<String, u64>("visits")?;
    /// let count = visits.update("home", |count| Some(count.unwrap_or(0) + 1))?;
    /// assert_eq!(count, Some(1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Db::transaction`], [`TypedTable::get`] and [`TypedTable::put`].
    pub fn update<Q>(&self, key: &Q, mut change: impl FnMut(Option<V>) -> Option<V>) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        let key = self.encode_key(key)?;
        let db = Db {
            engine: self.raw().engine.clone(),
        };
        db.transaction(|tx| {
            let current = tx.get(self.raw(), &key)?;
            let is_absent = current.is_none();
            let current = current.map(|value| self.decode_value(&key, &value));
            let new = change(current.transpose()?);
            match &new {
                Some(new) => tx.put(self.raw(), &key, self.encode_value(new)?)?,
                // A tombstone for an absent key would only take space, so none is written.
                None if is_absent => {}
                None => tx.delete(self.raw(), &key)?,
            }
            Ok(new)
        })
    }

    /// Deletes a key and returns its value. Returns `None` if the key is absent.
    ///
    /// # Errors
    /// The errors of [`TypedTable::update`].
    pub fn take<Q>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        let mut taken = None;
        self.update(key, |current| {
            taken = current;
            None
        })?;
        Ok(taken)
    }
}
