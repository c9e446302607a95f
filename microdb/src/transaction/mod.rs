//! Transactions: strictly serializable, optimistic first, exclusive after conflicts.
//!
//! - A run buffers its writes. For each read it records the location of the record, or that the key
//!   is absent. The commit checks all reads under the commit lock, then writes one frame.
//! - All reads of a run belong to one moment. If a commit was published between two reads, the
//!   earlier reads are checked before the later read is returned. After too many checks the run
//!   continues in a snapshot. A transaction without writes therefore needs no check at its end.
//! - A run with an outdated read gets [`Error::Conflict`] from its next read of a key that it has
//!   neither read nor written, or at its commit if it has writes. A run of [`Db::transaction`] is
//!   then repeated, even if the body ignores that error.
//! - A transaction with conflicts gets a turn in the commit group (see [`crate::engine::group`]),
//!   in which no other commit can interfere. A short body with [`Durability::Sync`] gets its turn
//!   at the first conflict.
//! - The body must not write through the database itself (see [`crate::engine::nesting`]).
//! - A transaction that the caller commits has one run and no turn. The caller's thread may make
//!   other commits while that transaction is open.
//! - Memory is bounded: the size of a batch limits the writes, and [`READ_BYTES_MAX`] the reads.

mod attempts;
mod one_key;

use std::collections::HashMap;
use std::sync::Arc;

use crate::any_table::{AnyTable, KeyFor, ValueFor};
use crate::batch::Batch;
use crate::db::Db;
use crate::directory::KeyHash;
use crate::engine::body::{Body, limit};
use crate::engine::catalog::TableCore;
use crate::engine::commit::{Check, Checks};
use crate::engine::group_writes::{GroupWrites, Pending};
use crate::engine::{Found, is_key_of};
use crate::error::{Error, Result};
use crate::format::BATCH_BYTES_MAX;
use crate::options::Durability;
use crate::raw::epoch::pin;
use crate::seeded::seeded;
use crate::sequence::Sequence;
use crate::snapshot::Snapshot;
use crate::table::Table;
use crate::value::Value;

/// Maximum memory of a transaction's reads in bytes, so that an endless body cannot use all memory.
const READ_BYTES_MAX: usize = 64 << 20;

/// Estimated memory of a read in bytes, in addition to two copies of its key and to its value.
const ENTRY_BYTES: usize = 192;

/// Number of repeated checks of earlier reads, besides two per read, after which a run continues in
/// a snapshot. Transactions with a handful of reads rarely need more checks. A snapshot costs more,
/// because writers then copy parts of the directory.
const CHECKS_MAX: usize = 64;

/// Maximum number of attempts of a read. An attempt fails if the run has earlier reads and a commit
/// is published during the attempt. After the last attempt, the run continues in a snapshot.
const READ_TRIES: u32 = 16;

/// Table id and key.
type KeyName = (u32, Vec<u8>);

/// A running transaction, passed to the body by [`Db::transaction`], or begun by [`Db::begin`].
///
/// Dropping a transaction that was begun by [`Db::begin`] discards its writes.
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
    /// Reads of this run, by table and key, each with the check that the commit makes and the value
    /// that was read.
    reads: HashMap<KeyName, (Check, Option<Value>)>,
    /// Writes of this run, by table and key. `None` as the value stands for a deletion.
    writes: HashMap<KeyName, (Table, Option<Vec<u8>>)>,
    /// Estimated memory of the reads, and size of the keys and values of the writes, in bytes.
    read_bytes: usize,
    write_bytes: usize,
    /// All reads are valid while the visible state has this version. Not used once `snapshot` is
    /// set.
    version: u64,
    /// Set during a turn: the earlier writes of the commit group, which this transaction reads.
    /// Cleared by the first read that finds `version` outdated, and on the move to a snapshot.
    group: Option<Arc<GroupWrites>>,
    /// Set once the run continues in a snapshot. All further reads use this snapshot.
    snapshot: Option<Snapshot>,
    /// Number of checks of earlier reads so far.
    checked: usize,
    /// `true` if an earlier read is outdated, so that this run cannot commit.
    outdated: bool,
}

impl Transaction<'_> {
    /// Returns the value of `key` as seen by this transaction, which includes its own writes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// db.transaction(|tx| {
    ///     tx.put(&events, "k", "v")?;
    ///     assert!(tx.get(&events, "k")?.is_some(), "it sees its own writes");
    ///     Ok::<_, microdb::Error>(())
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - The errors of [`Table::get`], [`Error::ForeignTable`], and those of
    ///   [`TypedTable::get`](crate::TypedTable::get) for a typed table.
    /// - [`Error::Conflict`] if another commit changed a key that this run has read. A record that
    ///   compaction has moved may count as changed. Return the error with `?`. [`Db::transaction`]
    ///   repeats the body even if the body ignores the error.
    /// - [`Error::TooLarge`] if the reads take more than 64 MiB.
    pub fn get<T: AnyTable>(&mut self, table: &T, key: impl KeyFor<T>) -> Result<Option<T::Value>> {
        let key = key.key_bytes(table)?.into_owned();
        match self.get_bytes(table.raw(), key.clone())? {
            Some(value) => table.value_of(&key, value).map(Some),
            None => Ok(None),
        }
    }

    /// Returns `true` if the table has a value for `key`, as seen by this transaction, which
    /// includes its own writes.
    ///
    /// # Errors
    /// The errors of [`Transaction::get`].
    pub fn contains_key<T: AnyTable>(&mut self, table: &T, key: impl KeyFor<T>) -> Result<bool> {
        let key = key.key_bytes(table)?.into_owned();
        Ok(self.get_bytes(table.raw(), key)?.is_some())
    }

    fn get_bytes(&mut self, table: &Table, key: Vec<u8>) -> Result<Option<Value>> {
        self.db.engine.check_process()?;
        self.own(table)?;
        if self.outdated {
            return Err(self.conflict());
        }
        let name = (table.core.id, key);
        if let Some((_, value)) = self.writes.get(&name) {
            return Ok(value.as_deref().map(Value::copied));
        }
        if let Some((_, value)) = self.reads.get(&name) {
            return Ok(value.clone());
        }
        let (check, value) = self.read(table, &name.1)?;
        self.read_bytes += 2 * name.1.len() + value.as_ref().map_or(0, |value| value.len()) + ENTRY_BYTES;
        limit("transaction's reads", self.read_bytes, READ_BYTES_MAX)?;
        self.reads.insert(name, (check, value.clone()));
        Ok(value)
    }

    /// Reads a key at the moment to which all earlier reads belong. If that moment has passed,
    /// moves all reads to a later moment first.
    fn read(&mut self, table: &Table, key: &[u8]) -> Result<(Check, Option<Value>)> {
        let db = self.db;
        let hash = db.engine.hash(key);
        for _ in 0..READ_TRIES {
            if self.snapshot.is_some() {
                break;
            }
            let version = db.engine.version.load();
            let is_moment_of_reads = version == self.version && version.is_multiple_of(2);
            if !is_moment_of_reads && !seeded("earlier-reads-unchecked") {
                self.group = None;
                if !self.are_reads_valid_at(version)? {
                    continue;
                }
                self.version = version;
            }
            let read = self.read_now(table, hash, key)?;
            // The first read of a run belongs to one moment without a check. The next read detects
            // if a commit was published since.
            if self.reads.is_empty() || db.engine.version.is_still(version) {
                return Ok(read);
            }
        }
        self.read_snapshot(table, hash, key)
    }

    /// Checks the earlier reads against the state at `version`. Returns `false`, after which the
    /// caller tries again, if a commit was being published before or during the check, or if the
    /// reads were moved to a snapshot. Fails if a read is outdated.
    fn are_reads_valid_at(&mut self, version: u64) -> Result<bool> {
        if self.reads.is_empty() {
            return Ok(true);
        }
        if !version.is_multiple_of(2) {
            // Taking the commit lock waits for the commit that is being published.
            drop(crate::engine::lock_briefly(&self.db.engine.core));
            return Ok(false);
        }
        self.checked += self.reads.len();
        if self.checked > CHECKS_MAX + 2 * self.reads.len() {
            return self.go_on_in_snapshot().map(|()| false);
        }
        let guard = pin();
        for (check, _) in self.reads.values() {
            if !self.db.engine.is_as_read(&guard, check)? {
                return Err(self.conflict());
            }
        }
        Ok(self.db.engine.version.is_still(version))
    }

    fn read_now(&mut self, table: &Table, hash: KeyHash, key: &[u8]) -> Result<(Check, Option<Value>)> {
        let engine = &self.db.engine;
        let guard = pin();
        let pending = match &self.group {
            Some(group) if !seeded("turn-without-the-group") => {
                group.check_not_dropped(&table.core)?;
                group.key(table.core.id, hash)
            }
            _ => Pending::Untouched,
        };
        let found = match pending {
            Pending::Untouched => engine.lookup(&guard, &table.core, hash, key)?,
            Pending::Absent => None,
            Pending::At(location) => {
                let segment = engine.segments.load(&guard).find(location, engine.paths.root())?;
                let record = segment.verified(location.offset())?;
                if record.head.table != table.core.id || record.key() != key {
                    // Another key has an equal 64-bit hash. The next run may read the requested key
                    // from the directory.
                    return Err(self.conflict());
                }
                is_key_of(&record, table.core.id, key).then_some(Found {
                    location,
                    segment,
                    record,
                })
            }
        };
        let (expected, value) = match &found {
            Some(found) => (Some(found.location), Some(found.value())),
            None => (None, None),
        };
        if let Some(found) = &found {
            found.check_uncut()?;
        }
        let check = Check {
            table: table.core.clone(),
            hash,
            key: key.to_vec(),
            expected,
        };
        Ok((check, value))
    }

    /// Moves all reads to the moment of a new snapshot. Fails if one of the reads is outdated at
    /// that moment.
    fn go_on_in_snapshot(&mut self) -> Result<()> {
        let snapshot = self.db.snapshot();
        for (check, _) in self.reads.values() {
            let location = snapshot.location_in(check.table.id, &check.key)?;
            if location != check.expected {
                return Err(self.conflict());
            }
        }
        self.group = None;
        self.snapshot = Some(snapshot);
        Ok(())
    }

    fn read_snapshot(&mut self, table: &Table, hash: KeyHash, key: &[u8]) -> Result<(Check, Option<Value>)> {
        if self.snapshot.is_none() {
            self.go_on_in_snapshot()?;
        }
        table.core.check_not_dropped()?;
        let Some(snapshot) = &self.snapshot else {
            return Err(self.conflict());
        };
        let check = Check {
            table: table.core.clone(),
            hash,
            key: key.to_vec(),
            expected: snapshot.location_in(table.core.id, key)?,
        };
        Ok((check, snapshot.get_in(table.core.id, key)?))
    }

    /// Marks this run as unable to commit. Returns the error for the body.
    fn conflict(&mut self) -> Error {
        self.outdated = true;
        Error::Conflict { tries: 1 }
    }

    /// Adds a put of `value` to the writes of the transaction. A key or value that exceeds its own
    /// limit, but not the size of a batch, is refused only by the commit.
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
    /// [`Error::ForeignTable`], [`Error::Forked`], and [`Error::TooLarge`] if the writes exceed the
    /// size of a batch. For a typed table also [`Error::Encode`].
    pub fn put<T: AnyTable>(
        &mut self,
        table: &T,
        key: impl KeyFor<T>,
        value: impl ValueFor<T>,
    ) -> Result<()> {
        let value = value.value_bytes(table)?.into_owned();
        self.write(table.raw(), &key.key_bytes(table)?, Some(value))
    }

    /// Adds a deletion of `key` to the writes of the transaction.
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
    /// [`Error::ForeignTable`], [`Error::Forked`], and [`Error::TooLarge`] if the writes exceed the
    /// size of a batch. For a typed table also [`Error::Encode`].
    pub fn delete<T: AnyTable>(&mut self, table: &T, key: impl KeyFor<T>) -> Result<()> {
        self.write(table.raw(), &key.key_bytes(table)?, None)
    }

    fn write(&mut self, table: &Table, key: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        self.db.engine.check_process()?;
        self.own(table)?;
        let bytes = |value: &Option<Vec<u8>>| key.len() + value.as_ref().map_or(0, Vec::len);
        let name = (table.core.id, key.to_vec());
        let replaced = self.writes.get(&name).map_or(0, |(_, value)| bytes(value));
        self.write_bytes = self.write_bytes + bytes(&value) - replaced;
        limit("transaction's writes", self.write_bytes, BATCH_BYTES_MAX)?;
        self.writes.insert(name, (table.clone(), value));
        Ok(())
    }

    fn own(&self, table: &Table) -> Result<()> {
        if Arc::ptr_eq(&self.db.engine, &table.engine) {
            return Ok(());
        }
        Err(Error::ForeignTable { name: table.name() })
    }

    fn begin(db: &Db, group: Option<Arc<GroupWrites>>) -> Transaction<'_> {
        Transaction {
            db,
            reads: HashMap::new(),
            writes: HashMap::new(),
            read_bytes: 0,
            write_bytes: 0,
            version: db.engine.version.load(),
            group,
            snapshot: None,
            checked: 0,
            outdated: false,
        }
    }

    fn encoded(&self) -> Result<(Body, Vec<Arc<TableCore>>)> {
        let mut batch = Batch::new(&self.db.engine);
        for ((_, key), (table, value)) in &self.writes {
            match value {
                Some(value) => batch.put(table, key, value),
                None => batch.delete(table, key),
            }
        }
        batch.into_parts()
    }

    fn checks(&self) -> Checks {
        Checks {
            // The version of the snapshot's moment is unknown. With `u64::MAX`, which is never the
            // current version, the commit looks up again all keys that were read.
            version: if self.snapshot.is_some() {
                u64::MAX
            } else {
                self.version
            },
            keys: self.reads.values().map(|(check, _)| check.clone()).collect(),
        }
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

impl Transaction<'_> {
    /// Commits a transaction that was begun with [`Db::begin`], with the durability of the
    /// database's options. Returns the sequence of the commit. A transaction without writes needs
    /// no check, because its reads belong to one moment, and gets the sequence of the database's
    /// last commit.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if another commit changed a key that the transaction has read. A
    ///   record that compaction has moved may count as changed. Nothing was written. Begin a new
    ///   transaction, or use [`Db::transaction`], which repeats its body.
    /// - The errors of [`Batch::commit`].
    pub fn commit(self) -> Result<Sequence> {
        let durability = self.db.engine.options.durability;
        self.commit_with(durability)
    }

    /// Commits with the given durability, like [`Transaction::commit`].
    ///
    /// # Errors
    /// The errors of [`Transaction::commit`].
    pub fn commit_with(mut self, durability: Durability) -> Result<Sequence> {
        self.db.engine.check_process()?;
        if self.outdated {
            return Err(self.conflict());
        }
        let engine = &self.db.engine;
        if self.writes.is_empty() {
            // All reads were valid at one moment, so there is nothing to commit.
            return Ok(Sequence(engine.sequence()));
        }
        let (mut body, tables) = self.encoded()?;
        engine.wait_for_space(body.bytes.len())?;
        let checks = if seeded("begun-transaction-unchecked") {
            Checks::none()
        } else {
            self.checks()
        };
        let outcome = engine.commit(&mut body, &tables, durability, checks)?;
        Ok(Sequence(outcome.sequence))
    }
}

impl Db {
    /// Begins a transaction that the caller commits. Its reads and writes are strictly
    /// serializable, like those of [`Db::transaction`].
    ///
    /// No key is locked and no run is repeated: if the transaction has writes,
    /// [`Transaction::commit`] fails with [`Error::Conflict`] if another commit changed a key that
    /// was read. Under contention [`Db::transaction`] is the better choice, because it repeats the
    /// body, if necessary while no other commit is made.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// # let stock = db.typed_table::<String, u32>("stock")?;
    /// # stock.put("lamp", &1)?;
    /// let mut tx = db.begin();
    /// if let Some(units @ 1..) = tx.get(&stock, "lamp")? {
    ///     tx.put(&stock, "lamp", &(units - 1))?;
    ///     tx.commit()?;
    /// } // otherwise dropped: nothing is written
    /// assert_eq!(stock.get("lamp")?, Some(0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A transaction that stays open while others commit may continue in a snapshot, which keeps
    /// disk space that compaction would otherwise free.
    #[must_use]
    pub fn begin(&self) -> Transaction<'_> {
        Transaction::begin(self, None)
    }

    /// Runs `body` as a transaction: its reads and writes through [`Transaction`] are strictly
    /// serializable. The body may run several times if other writers interfere. An error of the
    /// body ends the transaction without a write, and is returned unchanged, unless the run must be
    /// repeated because of a conflict.
    ///
    /// ```
    /// use microdb::{Db, Error, TypedTable};
    ///
    /// #[derive(Debug, PartialEq)]
    /// enum Refused {
    ///     TooFew { left: u32 },
    ///     Database(String),
    /// }
    ///
    /// impl From<Error> for Refused {
    ///     fn from(error: Error) -> Self {
    ///         Self::Database(error.to_string())
    ///     }
    /// }
    ///
    /// fn take(db: &Db, stock: &TypedTable<String, u32>, units: u32) -> Result<u32, Refused> {
    ///     db.transaction(|tx| {
    ///         let left = tx.get(stock, "lamp")?.unwrap_or(0);
    ///         let rest = left.checked_sub(units).ok_or(Refused::TooFew { left })?;
    ///         tx.put(stock, "lamp", &rest)?;
    ///         Ok(rest)
    ///     })
    /// }
    ///
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = Db::open(folder.path())?;
    /// let stock = db.typed_table::<String, u32>("stock")?;
    /// stock.put("lamp", &3)?;
    /// assert_eq!(take(&db, &stock, 2), Ok(1));
    /// assert_eq!(take(&db, &stock, 2), Err(Refused::TooFew { left: 1 }));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The compiler infers the type of the error from the return type of the function, as above. If
    /// the result is not returned, the body names the type: `Ok::<_, microdb::Error>(rest)`.
    ///
    /// All reads of a run belong to one moment. If another commit changed a key that a run has
    /// read, a later read of another key fails with [`Error::Conflict`], or the commit of the run's
    /// writes notices the change. Then the body runs again.
    ///
    /// After one or more conflicts, the body gets a *turn*: it is repeated while other writers
    /// wait. The turn succeeds if the body ends within a time limit: 50 ms at first, doubled after
    /// each turn that exceeds it, 10 s at most. A body should not wait for a thread that writes to
    /// the same database, because in a turn both would wait for each other until the time limit has
    /// passed.
    ///
    /// The body must not write through the database itself, nor create tables. Only writes through
    /// [`Transaction`] are part of the transaction.
    ///
    /// # Errors
    /// - The errors of `body`, and those of [`Batch::commit`].
    /// - [`Error::InTransaction`] inside the body of a transaction on the same database, or inside
    ///   bodies on four other databases.
    /// - [`Error::Conflict`] after the maximum number of runs in the options.
    pub fn transaction<T, E: From<Error>>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        attempts::run(self, &mut body)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::lock;
    use crate::format::record::RecordKind;

    /// Returns the writes of a group that deletes `key`. The deletion gets the hash of `hashed`, as
    /// if both keys had equal hashes.
    fn deletion(db: &Db, table: &Table, key: &[u8], hashed: &[u8]) -> Result<Arc<GroupWrites>> {
        let mut body = Body::default();
        let (hash, id) = (db.engine.hash(hashed), table.core.id);
        body.push(RecordKind::Delete, (0, id), hash, key, b"")?;
        let tables = [table.core.clone()];
        let mut core = lock(&db.engine.core);
        let place = db.engine.append(&mut core, &mut body)?;
        let mut writes = GroupWrites::default();
        writes.add(&body, &tables, None, place);
        db.engine.publish(&mut core, &body, &tables, None, place)?;
        Ok(writes.into())
    }

    #[test]
    fn a_deletion_in_a_group_hides_no_other_key_with_an_equal_hash() {
        let folder = tempfile::tempdir().unwrap();
        let options = crate::Options::new().background(false);
        let db = options.open(folder.path()).unwrap();
        let table = db.table("t").unwrap();
        table.put("k", "v").unwrap();
        let collides = deletion(&db, &table, b"other", b"k").unwrap();
        let read = Transaction::begin(&db, Some(collides)).get(&table, "k");
        assert!(matches!(read, Err(Error::Conflict { .. })), "{read:?}");
        assert_eq!(table.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        let deletes = deletion(&db, &table, b"k", b"k").unwrap();
        let read = Transaction::begin(&db, Some(deletes)).get(&table, "k");
        assert_eq!(read.unwrap(), None);
    }
}
