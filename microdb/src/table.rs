//! Tables of byte keys and byte values.
//!
//! - A get takes no lock, and returns only bytes with a verified checksum.
//! - A single put encodes its record in a spare buffer of the thread, so the encoding of a small
//!   record allocates nothing.
//! - A delete of an absent key writes nothing, unless another commit deletes the key at the same
//!   time.
//!
//! Deliberately absent: key order. A scan by prefix reads every key.

use std::cell::Cell;
use std::sync::Arc;

use crate::engine::Handle;
use crate::engine::body::Body;
use crate::engine::catalog::TableCore;
use crate::engine::commit::{Check, Checks, Outcome};
use crate::error::{Error, Result};
use crate::format::LogPosition;
use crate::format::record::RecordKind;
use crate::options::Durability;
use crate::raw::epoch::pin;
use crate::seeded::seeded;
use crate::snapshot::Iter;
use crate::value::Value;

/// A table of byte keys and byte values. Cheap to clone and usable from any thread.
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
    pub(crate) core: Arc<TableCore>,
    /// Declared last, so that it is dropped after `core`, which uses memory of the database. The
    /// drop of the last `Handle` frees all of that memory.
    pub(crate) engine: Arc<Handle>,
}

thread_local! {
    /// Buffer in which a single put or delete of this thread encodes its record, so that the
    /// encoding allocates nothing.
    static SPARE_BODY: Cell<Option<Body>> = const { Cell::new(None) };
}

/// Maximum size in bytes of a buffer that the thread keeps for its next put or delete. A larger
/// buffer is freed.
const SPARE_BYTES_MAX: usize = 64 * 1024;

impl Table {
    /// Returns the name of the table. In a forked child, the name is empty if another thread of the
    /// parent was renaming the table at the fork.
    #[must_use]
    pub fn name(&self) -> String {
        match self.engine.check_process() {
            Ok(()) => self.core.name(),
            Err(_) => self.core.name_unless_locked(),
        }
    }

    /// Returns the value of `key`, after verifying the checksum of its record. Returns `None` if
    /// the key is absent.
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
    /// [`Error::Corrupt`] if the record, or the part of the directory that leads to it, is damaged;
    /// [`Error::Io`] if the disk cannot read the record; [`Error::TableDropped`], [`Error::Closed`]
    /// and [`Error::Forked`].
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.engine.get(&self.core, key.as_ref())
    }

    /// Returns the values of several keys, in the order of `keys`, with `None` for each absent key.
    /// Faster than single reads, because the memory accesses of several keys overlap. Commits may
    /// become visible between the reads of two keys. A [`crate::Snapshot`] returns values of one
    /// moment.
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
    /// The errors of [`Table::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        self.engine.multi_get(&self.core, keys)
    }

    /// Returns the current location of the record of `key`, or `None` if the key is absent, for use
    /// with [`crate::inspect`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// if let Some(at) = events.location("k")? {
    ///     println!("in segment {} at byte {}", at.segment, at.offset);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::get`].
    pub fn location(&self, key: impl AsRef<[u8]>) -> Result<Option<LogPosition>> {
        let (key, guard) = (key.as_ref(), pin());
        let found = self
            .engine
            .lookup(&guard, &self.core, self.engine.hash(key), key)?;
        Ok(found.map(|found| LogPosition {
            segment: found.segment.id,
            offset: found.location.offset(),
        }))
    }

    /// Returns `true` if the table has a value for `key`.
    ///
    /// Reads the whole record, because one checksum covers key and value. So for a large value, the
    /// call takes as long as [`Table::get`].
    ///
    /// # Errors
    /// The errors of [`Table::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let (key, guard) = (key.as_ref(), pin());
        Ok(self
            .engine
            .lookup(&guard, &self.core, self.engine.hash(key), key)?
            .is_some())
    }

    /// Puts a value with the durability of the database's options.
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
    /// - [`Error::TooLarge`] if the key or the value is too large.
    /// - [`Error::Io`] if the log cannot grow, for example on a full disk (nothing has changed).
    /// - [`Error::Poisoned`] if a failure in this call or in an earlier one left the state of the
    ///   disk unknown.
    /// - [`Error::Corrupt`] if the part of the directory that leads to the record is damaged.
    /// - [`Error::TableDropped`], [`Error::ReadOnly`], [`Error::Closed`], [`Error::Forked`] and
    ///   [`Error::InTransaction`]. [`Error::Invalid`] if the ids of the segments span too far or
    ///   are used up.
    #[inline]
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.put_with(key, value, self.engine.options.durability)
    }

    /// Puts a value with the given durability.
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
    /// The errors of [`Table::put`].
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

    /// Deletes a key with the durability of the database's options. Returns `true` if the key
    /// existed.
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
    /// The errors of [`Table::put`] and [`Table::get`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.delete_with(key, self.engine.options.durability)
    }

    /// Deletes a key with the given durability. Returns `true` if the key existed.
    ///
    /// # Errors
    /// The errors of [`Table::delete`].
    pub fn delete_with(&self, key: impl AsRef<[u8]>, durability: Durability) -> Result<bool> {
        self.engine.check_writable()?;
        // A tombstone for an absent key would only take space, so the key is looked up first.
        while self.contains_key(key.as_ref())? {
            let outcome =
                self.commit_one(RecordKind::Delete, key.as_ref(), &[], durability, Checks::none())?;
            if outcome.replaced > 0 {
                return Ok(true);
            }
            // Another commit deleted the key between the check and this commit, so the check is
            // repeated.
        }
        Ok(false)
    }

    /// Replaces the value of `key` by `new` if the current value is `expected`. As `expected` or
    /// `new`, `None` stands for an absent key. Returns `true` if the value was as expected, or
    /// `false` without a change.
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
    /// The errors of [`Table::put`] and [`Table::get`].
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
                // The key is absent and `new` is `None` too, so nothing is written.
                None if is_absent => return self.engine.check_writable().map(|()| true),
                None => self.commit_one(RecordKind::Delete, key, &[], durability, checks),
            };
            match committed {
                Ok(_) => return Ok(true),
                // Another commit changed the key after the comparison, or compaction moved its
                // record. So the comparison is repeated. The repetition cannot block all threads,
                // because the other commit or the compaction made progress.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns an iterator over all records of this moment, in no particular order. Commits wait
    /// while the iterator is created, but not while it exists. The iterator does not see later
    /// commits. In a forked child it returns only [`Error::Forked`].
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

    /// Returns an iterator over all keys, like [`Table::iter`]. A collected key takes 128 bytes,
    /// the size of a [`Value`]. Use `to_vec` to keep many small keys.
    ///
    /// Reads the values too: a record has one checksum over key and value, and a key is returned
    /// only if the checksum matches.
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

    /// Returns an iterator over all values, like [`Table::iter`].
    pub fn values(&self) -> impl Iterator<Item = Result<Value>> + use<> {
        self.iter().map(|record| record.map(|(_, value)| value))
    }

    /// Returns an iterator over the records with keys that begin with `prefix`, in no particular
    /// order. Reads every record of the table, because the engine keeps no order of keys.
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

    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.core.directory.load(&pin()).len()
    }

    /// Returns `true` if the table has no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all records without reading them. The removal is always durable on return, even if
    /// the options of the database say [`Durability::Buffered`].
    ///
    /// For open transactions and compare-and-swaps, the removal counts as a change of every record
    /// of the table.
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
    /// The errors of [`Table::put`].
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
        // If the thread is ending, its thread-local buffer may be gone already, while destructors
        // of its other thread-local values may still call this function.
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
