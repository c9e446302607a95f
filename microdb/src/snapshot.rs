//! Views of one moment: snapshots, and iterators over their records.
//!
//! - A view holds the directory as it was at that moment, and the segments of the log at that
//!   moment.
//! - Commits wait while a view is taken, but not while it exists. While a view shares a part of the
//!   directory, a commit copies this part before it changes it.
//! - A segment removed by compaction stays readable until the last view that holds it is dropped.
//!
//! Deliberately absent: key order, and writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::any_table::{AnyTable, KeyFor};
use crate::directory::{Location, View};
use crate::engine::catalog::TableCore;
use crate::engine::log_order::Walk;
use crate::engine::segments::SegmentTable;
use crate::engine::{Engine, Found, Handle, is_key_of, lock};
use crate::error::{Error, Result};
use crate::raw::epoch::pin;
use crate::raw::sigbus::any_cut;
use crate::raw::sync::ignore_poison;
use crate::seeded::seeded;
use crate::sequence::Sequence;
use crate::table::Table;
use crate::value::Value;

/// All tables of a database at one moment. Taking a snapshot is cheap. A snapshot keeps disk space
/// that compaction would otherwise free.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "before")?;
/// let snapshot = db.snapshot();
/// events.put("k", "after")?;
/// assert_eq!(snapshot.get(&events, "k")?.as_deref(), Some(&b"before"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Snapshot {
    segments: Arc<SegmentTable>,
    views: Arc<BTreeMap<u32, View>>,
    sequence: u64,
    /// Declared last, so that it is dropped after the other fields, which use memory of the
    /// database. The drop of the last `Handle` frees all of that memory.
    engine: Arc<Handle>,
}

impl Snapshot {
    /// Returns the sequence of the last commit that the snapshot sees.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence(self.sequence)
    }

    /// Returns the value of `key` at the moment of the snapshot, or `None` if the key was absent or
    /// the table did not exist at that moment.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let snapshot = db.snapshot();
    /// events.delete("k")?;
    /// assert!(snapshot.get(&events, "k")?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForeignTable`], [`Error::Corrupt`] if the record or the directory is damaged,
    /// [`Error::Io`] if the disk cannot read the record, and [`Error::Forked`]. For a typed table
    /// also [`Error::Encode`] and [`Error::Decode`].
    pub fn get<T: AnyTable>(&self, table: &T, key: impl KeyFor<T>) -> Result<Option<T::Value>> {
        self.view(table.raw())?;
        let key = key.key_bytes(table)?;
        let value = self.get_in(table.raw().core.id, &key)?;
        value.map(|value| table.value_of(&key, value)).transpose()
    }

    /// Returns `true` if the table had a record of `key` at the moment of the snapshot.
    ///
    /// # Errors
    /// The errors of [`Snapshot::get`].
    pub fn contains_key<T: AnyTable>(&self, table: &T, key: impl KeyFor<T>) -> Result<bool> {
        self.view(table.raw())?;
        let key = key.key_bytes(table)?;
        Ok(self.find_in(table.raw().core.id, &key)?.is_some())
    }

    /// Returns the value of `key` in the table with the id `table`, or `None` if the key or the
    /// table was absent at the moment of the snapshot.
    pub(crate) fn get_in(&self, table: u32, key: &[u8]) -> Result<Option<Value>> {
        let Some(found) = self.find_in(table, key)? else {
            return Ok(None);
        };
        let value = found.value();
        found.check_uncut()?;
        Ok(Some(value))
    }

    /// Returns the location of the record of `key` in the table with the id `table`, or `None` if
    /// the key or the table was absent at the moment of the snapshot.
    pub(crate) fn location_in(&self, table: u32, key: &[u8]) -> Result<Option<Location>> {
        Ok(self.find_in(table, key)?.map(|found| found.location))
    }

    fn find_in(&self, table: u32, key: &[u8]) -> Result<Option<Found<'_>>> {
        self.engine.check_process()?;
        let Some(view) = self.views.get(&table) else {
            return Ok(None);
        };
        let mut damaged = None;
        let candidates = view.candidates(self.engine.hash(key));
        for location in candidates.map_err(|damage| self.engine.directory_damage(damage))? {
            let segment = self.segments.find(location, self.engine.paths.root())?;
            match segment.verified(location.offset()) {
                Ok(record) if is_key_of(&record, table, key) => {
                    return Ok(Some(Found {
                        location,
                        segment,
                        record,
                    }));
                }
                Ok(_) => {}
                Err(error) => damaged = Some(error),
            }
        }
        if any_cut() {
            let uncut = view.check_uncut(self.engine.hash(key));
            uncut.map_err(|damage| self.engine.directory_damage(damage))?;
        }
        damaged.map_or(Ok(None), Err)
    }

    /// Returns an iterator over all records of the table at the moment of the snapshot, in no
    /// particular order.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("a", "1")?;
    /// let snapshot = db.snapshot();
    /// events.put("b", "2")?;
    /// assert_eq!(snapshot.iter(&events)?.count(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::ForeignTable`] and [`Error::Forked`].
    pub fn iter<T: AnyTable>(&self, table: &T) -> Result<T::Iter> {
        let raw = table.raw();
        let view = self.view(raw)?;
        let (engine, segments) = (self.engine.clone(), self.segments.clone());
        Ok(table.records_of(Iter::new(engine, segments, raw.core.id, view)))
    }

    /// Returns the number of keys of the table at the moment of the snapshot, or 0 if the table did
    /// not exist at that moment.
    ///
    /// # Errors
    /// [`Error::ForeignTable`] and [`Error::Forked`].
    pub fn len<T: AnyTable>(&self, table: &T) -> Result<u64> {
        Ok(self.view(table.raw())?.map_or(0, View::len))
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn segments(&self) -> &SegmentTable {
        &self.segments
    }

    /// Returns the directory views of all tables by table id, including the catalog.
    pub(crate) fn views(&self) -> &BTreeMap<u32, View> {
        &self.views
    }

    /// Returns the directory view of a table, or `None` if the table did not exist at the moment of
    /// the snapshot. Fails for a table of another database, and in a forked child.
    fn view(&self, table: &Table) -> Result<Option<&View>> {
        self.engine.check_process()?;
        if !Arc::ptr_eq(&self.engine, &table.engine) {
            return Err(Error::ForeignTable { name: table.name() });
        }
        Ok(self.views.get(&table.core.id))
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Snapshot(sequence {})", self.sequence)
    }
}

/// Iterator over the keys and values of a table at one moment, in no particular order.
///
/// After an error the iterator continues with the next record. The error for a damaged part of the
/// directory stands for all records of that part. All other readable records are returned. In a
/// forked child the iterator returns [`Error::Forked`] once and ends.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("a", "1")?;
/// let mut bytes = 0;
/// for record in events.iter() {
///     let (key, value) = record?;
///     bytes += key.len() + value.len();
/// }
/// assert_eq!(bytes, 2);
/// # Ok(())
/// # }
/// ```
pub struct Iter {
    segments: Arc<SegmentTable>,
    table: u32,
    walk: Walk,
    left: u64,
    /// `true` once the iterator has returned [`Error::Forked`]. It returns nothing after that.
    is_refused: bool,
    /// Declared last, so that it is dropped after the other fields, which use memory of the
    /// database. The drop of the last `Handle` frees all of that memory.
    engine: Arc<Handle>,
}

impl Iter {
    fn new(engine: Arc<Handle>, segments: Arc<SegmentTable>, table: u32, view: Option<&View>) -> Self {
        let left = view.map_or(0, View::len);
        Self {
            engine,
            segments,
            table,
            walk: Walk::new(view),
            left,
            is_refused: false,
        }
    }

    /// Returns the verified record at `location`.
    #[inline(always)]
    fn record_at(&self, location: Location) -> Result<Found<'_>> {
        if let Some(segment) = self.segments.get(location)
            && let Some(record) = segment.intact(location.offset())
            && record.head.table == self.table
        {
            return Ok(Found {
                location,
                segment,
                record,
            });
        }
        Err(self.unreadable(location))
    }

    /// Returns the location of the next record, or `None` at the end. Returns an error for a
    /// damaged part of the directory, and once in a forked child.
    #[inline(always)]
    fn next_place(&mut self) -> Option<Result<Location>> {
        if let Err(forked) = self.engine.check_process() {
            return self.refuse(forked);
        }
        let place = self.walk.next(&self.segments)?;
        if place.is_ok() {
            self.left = self.left.saturating_sub(1);
        }
        Some(place.map_err(|damage| self.engine.directory_damage(damage)))
    }

    /// Calls `visit` with the key and value of each remaining record, without copying them. This is
    /// the fastest way to read a table. Stops at the first error. The next call continues with the
    /// following record.
    ///
    /// The name differs from [`Iterator::for_each`], which takes the iterator by value and would
    /// hide this method.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let words = db.table("words")?;
    /// words.put(b"one", b"1")?;
    /// words.put(b"three", b"333")?;
    /// let mut bytes = 0;
    /// words.iter().for_each_record(|_key, value| {
    ///     bytes += value.len();
    ///     Ok::<_, microdb::Error>(()) // or an error of the program, which ends the walk
    /// })?;
    /// assert_eq!(bytes, 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a record or the directory is damaged, [`Error::Io`] if the disk cannot
    /// read a record, [`Error::Forked`], and the errors of `visit`.
    pub fn for_each_record<E: From<Error>>(
        &mut self,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(location) = self.next_place() {
            let found = self.record_at(location?)?;
            visit(found.record.key(), found.record.value())?;
            found.check_uncut()?;
        }
        Ok(())
    }

    /// Returns the error at the first call and `None` at every later call, so that a caller that
    /// continues after errors reaches the end.
    #[cold]
    fn refuse(&mut self, forked: Error) -> Option<Result<Location>> {
        (!std::mem::replace(&mut self.is_refused, true)).then_some(Err(forked))
    }

    /// Returns the error that explains why `location` holds no readable record of this table.
    #[cold]
    fn unreadable(&self, location: Location) -> Error {
        let segment = match self.segments.find(location, self.engine.paths.root()) {
            Ok(segment) => segment,
            Err(error) => return error,
        };
        match segment.verified(location.offset()) {
            Ok(record) => {
                let (at, found) = (location.offset().into(), record.head.table);
                Error::corrupt(&segment.path, at, "table", self.table, found)
            }
            Err(error) => error,
        }
    }
}

impl Iterator for Iter {
    type Item = Result<(Value, Value)>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let location = self.next_place()?;
        Some(location.and_then(|location| {
            let found = self.record_at(location)?;
            let pair = (found.key(), found.value());
            found.check_uncut()?;
            Ok(pair)
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The number of items is unknown, because each damage of the directory hides records and
        // adds an error.
        (0, None)
    }
}

impl std::fmt::Debug for Iter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Iter({} records left)", self.left)
    }
}

impl Handle {
    pub(crate) fn iter_table(self: &Arc<Self>, table: &TableCore) -> Iter {
        if self.check_process().is_err() {
            // The first call of `next` returns the error.
            return Iter::new(self.clone(), self.segments.load_arc(&pin()), table.id, None);
        }
        let (segments, view) = {
            // While `core` is locked, no commit and no compaction changes the directory. The thread
            // is pinned after it has the lock, because the pin of a waiting thread would delay the
            // freeing of memory.
            let _core = lock(&self.core);
            let guard = pin();
            (
                self.segments.load_arc(&guard),
                table.directory.load(&guard).view(&guard),
            )
        };
        Iter::new(self.clone(), segments, table.id, Some(&view))
    }
}

impl Snapshot {
    /// Takes a snapshot of all tables at this moment. Commits wait while it is taken. In a forked
    /// child, the snapshot has no table, and its reads fail.
    pub(crate) fn of(engine: &Arc<Handle>) -> Self {
        if engine.check_process().is_err() {
            return Snapshot {
                engine: engine.clone(),
                segments: engine.segments.load_arc(&pin()),
                views: Arc::default(),
                sequence: 0,
            };
        }
        // While `core` is locked, no commit and no compaction changes a directory or the catalog.
        let mut core = lock(&engine.core);
        // The thread is pinned after it has the lock, because the pin of a waiting thread would
        // delay the freeing of memory.
        let guard = pin();
        let catalog = ignore_poison(engine.catalog.read());
        let mut tables: Vec<_> = catalog.by_id.values().cloned().collect();
        drop(catalog);
        // The tables are visited in a fixed order, because the model checker must be able to repeat
        // each step exactly.
        tables.sort_unstable_by_key(|table| table.id);
        let mut views = BTreeMap::new();
        for table in tables {
            if seeded("snapshot-of-two-moments") {
                drop(core);
                std::thread::yield_now();
                core = lock(&engine.core);
            }
            views.insert(table.id, table.directory.load(&guard).view(&guard));
        }
        Snapshot {
            engine: engine.clone(),
            segments: engine.segments.load_arc(&guard),
            views: Arc::new(views),
            sequence: core.published.sequence,
        }
    }
}
