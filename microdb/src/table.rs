//! Tables of bytes: the handle that most callers hold.

use std::cell::Cell;
use std::sync::Arc;

use crate::engine::Handle;
use crate::engine::body::Body;
use crate::engine::catalog::TableCore;
use crate::engine::commit::{Check, Checks, Outcome};
use crate::error::{Error, Result};
use crate::format::record::RecordKind;
use crate::options::Durability;
use crate::raw::epoch::pin;
use crate::seeded::seeded;
use crate::snapshot::Iter;
use crate::value::Value;

/// A table: keys to values, both bytes. Cheap to clone, usable from any thread.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// for record in &events {
///     let (key, value) = record?;
///     assert_eq!((&key[..], &value[..]), (&b"k"[..], &b"v"[..]));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Table {
    pub(crate) engine: Arc<Handle>,
    pub(crate) core: Arc<TableCore>,
}

thread_local! {
    /// A body for single puts, so that one needs no allocation.
    static SPARE_BODY: Cell<Option<Body>> = const { Cell::new(None) };
}

/// A spare body that grew beyond this is let go.
const SPARE_BYTES_MAX: usize = 64 * 1024;

impl Table {
    /// The table's name.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert_eq!(events.name(), "events");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn name(&self) -> String {
        self.core.name()
    }

    /// The value of `key`; its checksum was verified.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// assert_eq!(events.get("k")?.as_deref(), Some(&b"v"[..]));
    /// assert_eq!(events.get("another")?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the record, or the part of the directory that leads to it, is damaged.
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine.get(&self.core, key.as_ref())
    }

    /// The values of many keys, in their order; faster than one by one, since it waits for many
    /// memory accesses at once. Each is read by itself: use a [`crate::Snapshot`] where they must
    /// be of one moment.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// let values = events.multi_get(&["a", "b"])?;
    /// assert!(values[0].is_some() && values[1].is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        self.engine.multi_get(&self.core, keys)
    }

    /// Where the record of `key` lies in the log now: segment and offset. For looking at it with
    /// [`crate::tools::inspect`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// if let Some((segment, offset)) = events.location("k")? {
    ///     println!("in segment {segment} at byte {offset}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::get`].
    pub fn location(&self, key: impl AsRef<[u8]>) -> Result<Option<(u64, u32)>> {
        let (key, guard) = (key.as_ref(), pin());
        let found = self
            .engine
            .lookup(&guard, &self.core, self.engine.hash(key), key)?;
        Ok(found.map(|found| (found.segment.id, found.location.offset())))
    }

    /// Returns `true` if there is a value for `key`.
    ///
    /// Reads the whole record: one checksum covers key and value, and without it nobody can say
    /// that this is the key. For large values that costs as much as [`Table::get`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// assert!(events.contains_key("k")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let (key, guard) = (key.as_ref(), pin());
        Ok(self
            .engine
            .lookup(&guard, &self.core, self.engine.hash(key), key)?
            .is_some())
    }

    /// Puts a value, with the database's durability.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?; // on the disk when this returns
    /// events.put("k", "w")?; // in place of it
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Io`] if the disk is full (nothing has changed then);
    /// [`Error::Poisoned`] after a failed write or sync.
    #[inline]
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.put_with(key, value, self.engine.options.durability)
    }

    /// Puts a value with a durability of its own.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// for number in 0..100_u32 {
    ///     events.put_with(number.to_be_bytes(), "v", microdb::Durability::Buffered)?;
    /// }
    /// db.sync()?; // one sync for all of them
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::put`].
    #[inline]
    pub fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        durability: Durability,
    ) -> Result<()> {
        self.commit_one(
            RecordKind::Put,
            key.as_ref(),
            value.as_ref(),
            durability,
            Checks::none(),
        )
        .map(|_| ())
    }

    /// Deletes a key, with the database's durability. Whether it was there.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// assert!(events.delete("k")?, "it was there");
    /// assert!(!events.delete("k")?, "and is not any more");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::put`]; [`Error::Corrupt`] if it cannot be told whether the key is there.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.delete_with(key, self.engine.options.durability)
    }

    /// Deletes a key with a durability of its own. Whether it was there.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// assert!(events.delete_with("k", microdb::Durability::Buffered)?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::delete`].
    pub fn delete_with(&self, key: impl AsRef<[u8]>, durability: Durability) -> Result<bool> {
        self.engine.check_writable()?;
        // A tombstone for a key that is not there would only take up room.
        while self.contains_key(key.as_ref())? {
            let outcome =
                self.commit_one(RecordKind::Delete, key.as_ref(), &[], durability, Checks::none())?;
            if outcome.replaced > 0 {
                return Ok(true);
            }
            // Another writer was faster, or the record was damaged in between: look again.
        }
        Ok(false)
    }

    /// Replaces the value of `key` by `new` if it is `expected`; `None` stands for absence on
    /// either side. Whether it was, and so was replaced.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert!(events.compare_and_swap("lock", None::<&str>, Some("me"))?);
    /// assert!(!events.compare_and_swap("lock", None::<&str>, Some("you"))?);
    /// assert!(events.compare_and_swap("lock", Some("me"), None::<&str>)?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::put`] and [`Table::get`].
    pub fn compare_and_swap<K, E, N>(&self, key: K, expected: Option<E>, new: Option<N>) -> Result<bool>
    where
        K: AsRef<[u8]>,
        E: AsRef<[u8]>,
        N: AsRef<[u8]>,
    {
        let key = key.as_ref();
        let durability = self.engine.options.durability;
        loop {
            let version = self.engine.version.load();
            let check = {
                let (guard, hash) = (pin(), self.engine.hash(key));
                let found = self.engine.lookup(&guard, &self.core, hash, key)?;
                let as_expected = match (&found, &expected) {
                    (None, None) => true,
                    (Some(found), Some(expected)) => found.record.value() == expected.as_ref(),
                    _ => false,
                };
                if !as_expected {
                    return Ok(false);
                }
                let expected = found.map(|found| found.location);
                Check {
                    table: self.core.clone(),
                    hash,
                    key: key.to_vec(),
                    expected,
                }
            };
            let is_absent = check.expected.is_none();
            let mut checks = Checks {
                version,
                keys: vec![check],
            };
            if seeded("swap-without-check") {
                checks = Checks::none();
            }
            let committed = match &new {
                Some(new) => self.commit_one(RecordKind::Put, key, new.as_ref(), durability, checks),
                // Absent as expected, and to stay so: nothing to write.
                None if is_absent => return self.engine.check_writable().map(|()| true),
                None => self.commit_one(RecordKind::Delete, key, &[], durability, checks),
            };
            match committed {
                Ok(_) => return Ok(true),
                // Another writer was there in between; look again. One of the two made progress.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// All records, as they are now, in no particular order. Writers are not blocked and not seen.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// events.put("b", "2")?;
    /// let records = events.iter().collect::<microdb::Result<Vec<_>>>()?;
    /// assert_eq!(records.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn iter(&self) -> Iter {
        self.engine.iter_table(&self.core)
    }

    /// All keys, as [`Table::iter`]. A collected key takes 128 bytes, the size of a [`Value`]: use
    /// `to_vec` for many small keys that are kept.
    ///
    /// Reads the values too: a record has one checksum, and a key is returned only if it holds.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// for key in events.keys() {
    ///     assert_eq!(&key?[..], b"a");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(&self) -> impl Iterator<Item = Result<Value>> + use<> {
        self.iter().map(|record| record.map(|(key, _)| key))
    }

    /// All values, as [`Table::iter`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// for value in events.values() {
    ///     assert_eq!(&value?[..], b"1");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn values(&self) -> impl Iterator<Item = Result<Value>> + use<> {
        self.iter().map(|record| record.map(|(_, value)| value))
    }

    /// The records whose key begins with `prefix`, in no particular order. Looks at every key of
    /// the table: the engine is made for access by key.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("2026-11/a", "1")?;
    /// events.put("2026-12/b", "2")?;
    /// assert_eq!(events.scan_prefix("2026-11/").count(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan_prefix<P: AsRef<[u8]>>(
        &self,
        prefix: P,
    ) -> impl Iterator<Item = Result<(Value, Value)>> + use<P> {
        let prefix = prefix.as_ref().to_vec();
        self.iter().filter(move |record| match record {
            Ok((key, _)) => key.starts_with(&prefix),
            Err(_) => true,
        })
    }

    /// Number of keys.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// assert_eq!(events.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn len(&self) -> u64 {
        self.core.directory.load(&pin()).len()
    }

    /// Whether there is no key.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert!(events.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all records at once, in constant time. Always durable when this returns, also in a
    /// database whose options say [`Durability::Buffered`].
    ///
    /// A transaction or a swap that has read a key of the table conflicts with it.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// events.clear()?;
    /// assert!(events.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Table::put`].
    pub fn clear(&self) -> Result<()> {
        self.engine.clear_table(&self.core)
    }

    fn commit_one(
        &self,
        kind: RecordKind,
        key: &[u8],
        value: &[u8],
        durability: Durability,
        checks: Checks,
    ) -> Result<Outcome> {
        // A thread that ends has no spare body any more: its other local values may still write.
        let mut body = SPARE_BODY.try_with(Cell::take).ok().flatten().unwrap_or_default();
        body.clear();
        let hash = self.engine.hash(key);
        let pushed = body.push(kind, (0, self.core.id), hash, key, value);
        let tables = std::slice::from_ref(&self.core);
        let pushed = pushed.and_then(|()| self.engine.wait_for_space(body.bytes.len()));
        let result = pushed.and_then(|()| self.engine.commit(&mut body, tables, durability, checks));
        if body.bytes.capacity() <= SPARE_BYTES_MAX {
            let _ = SPARE_BODY.try_with(|spare| spare.set(Some(body)));
        }
        result
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({:?})", self.name())
    }
}

impl IntoIterator for &Table {
    type Item = Result<(Value, Value)>;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}
