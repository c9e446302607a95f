//! The database handle, and the making, naming and dropping of tables.

use std::path::Path;
use std::sync::Arc;

use crate::engine::catalog::TableCore;
use crate::engine::compact::CompactReport;
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::{Closing, Handle, lock};
use crate::error::Result;
use crate::format::DatabaseId;
use crate::options::Options;
use crate::recover;
use crate::stats::TableInfo;
use crate::table::Table;
use crate::typed::TypedTable;

/// An open database: one folder. Cheap to clone, usable from any thread; the last handle closes it.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let other = db.clone(); // the same database, for another thread
/// std::thread::spawn(move || other.table("events")?.put("k", "w")).join().unwrap()?;
/// assert_eq!(events.get("k")?.as_deref(), Some(&b"w"[..]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Db {
    pub(crate) engine: Arc<Handle>,
}

impl Db {
    /// Opens the database in the folder `path` with the default options, or creates it there.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Db::open(&path)?; // made, if it is not there
    /// println!("{}", db.recovery());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Locked`](crate::Error::Locked) if it is open elsewhere;
    /// [`Error::Corrupt`](crate::Error::Corrupt) if what was once durable is damaged (nothing is
    /// changed then); [`Error::Version`](crate::Error::Version);
    /// [`Error::Invalid`](crate::Error::Invalid) for the empty path;
    /// [`Error::Io`](crate::Error::Io).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Options::new().open(path)
    }

    pub(crate) fn open_with(path: &Path, options: Options) -> Result<Self> {
        Ok(Self {
            engine: Handle::new(recover::open(path, options)?),
        })
    }

    /// The table called `name`, made if it does not exist (durably, whatever the options say).
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let orders = db.table("orders")?; // made, if it is not there
    /// orders.put("17", "paid")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::Invalid`](crate::Error::Invalid) for
    /// the name; [`Error::NoSuchTable`](crate::Error::NoSuchTable) if it does not exist and the
    /// database is read-only; those of a commit.
    pub fn table(&self, name: &str) -> Result<Table> {
        let core = match self.engine.table_named(name) {
            Some(core) => core,
            None => self.engine.create_table(name)?,
        };
        Ok(Table {
            engine: self.engine.clone(),
            core,
        })
    }

    /// The table called `name`, if there is one.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert!(db.get_table("events").is_some());
    /// assert!(db.get_table("evens").is_none());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn get_table(&self, name: &str) -> Option<Table> {
        self.engine.table_named(name).map(|core| Table {
            engine: self.engine.clone(),
            core,
        })
    }

    /// The table called `name` with keys and values of these types, made if it does not exist.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<(u32, u16), u16>("stock")?;
    /// stock.put(&(812, 5), &3)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Db::table`].
    pub fn typed_table<K, V>(&self, name: &str) -> Result<TypedTable<K, V>>
    where
        K: serde::Serialize + serde::de::DeserializeOwned,
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.table(name).map(TypedTable::new)
    }

    /// All tables, by name.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// for table in db.tables() {
    ///     println!("{}: {} keys, {} bytes", table.name, table.keys, table.live_bytes);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn tables(&self) -> Vec<TableInfo> {
        let tables = self.engine.named_tables();
        let live_bytes = lock(&self.engine.core).usages.bytes_by_table();
        let guard = crate::raw::epoch::pin();
        let info = |table: Arc<TableCore>| TableInfo {
            name: table.name(),
            id: table.id,
            keys: table.directory.load(&guard).len(),
            live_bytes: live_bytes.get(&table.id).copied().unwrap_or(0),
        };
        tables.into_iter().map(info).collect()
    }

    /// Drops a table with all its records, durably. Handles to it give
    /// [`Error::TableDropped`](crate::Error::TableDropped) from now on.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.drop_table("events")?;
    /// assert!(db.get_table("events").is_none());
    /// assert!(events.get("k").is_err(), "nor is it reached by a handle from before");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchTable`](crate::Error::NoSuchTable); those of a commit.
    pub fn drop_table(&self, name: &str) -> Result<()> {
        self.engine.drop_table(name)
    }

    /// Gives a table another name, durably. Handles to it stay valid.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.rename_table("events", "old events")?;
    /// assert!(db.table("old events")?.contains_key("k")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchTable`](crate::Error::NoSuchTable),
    /// [`Error::TableExists`](crate::Error::TableExists); those of a commit.
    pub fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        self.engine.rename_table(from, to)
    }

    /// Puts tables in the place of others, all in one durable commit. Each pair names a table and
    /// the name that it gets. The table that had this name is dropped. Handles to the first stay
    /// valid.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("old", "v")?;
    /// db.table("events, new")?.put("new", "v")?;
    /// db.replace_tables(&[("events, new", "events")])?;
    /// assert!(db.get_table("events, new").is_none());
    /// let events = db.table("events")?;
    /// assert!(events.contains_key("new")? && !events.contains_key("old")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoSuchTable`](crate::Error::NoSuchTable); [`Error::Invalid`](crate::Error::Invalid)
    /// if a name occurs twice; those of a commit. Nothing has changed then.
    pub fn replace_tables(&self, pairs: &[(&str, &str)]) -> Result<()> {
        self.engine.replace_tables(pairs)
    }

    /// Makes all commits up to now durable.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put_with("k", "v", microdb::Durability::Buffered)?;
    /// db.sync()?; // whatever was committed is durable from here on
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a write or sync fails, now or before.
    pub fn sync(&self) -> Result<()> {
        self.engine.check_writable()?;
        self.engine.sync_log().map(|_| ())
    }

    /// Writes a checkpoint now, so that the next open need not replay what is in the log up to
    /// here. Happens by itself when the log has grown, and on close.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.checkpoint()?; // the next opening has nothing to replay
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the disk is full (commits go on);
    /// [`Error::Poisoned`](crate::Error::Poisoned).
    pub fn checkpoint(&self) -> Result<()> {
        self.engine.checkpoint()?;
        if !self.engine.options.background {
            // Derived, and no reason to fail: see `seal`.
            let _ = self.engine.seal_segments();
        }
        Ok(())
    }

    /// What opening found.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let report = db.recovery();
    /// assert!(report.created && report.dropped_bytes == 0);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.engine.recovery
    }

    /// Identity of the database: random, made with it.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?;
    /// assert_eq!(microdb::Db::open(copy)?.id(), db.id(), "a backup is of the same database");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn id(&self) -> DatabaseId {
        self.engine.database
    }

    /// The path by which the database was opened. A database that was renamed since goes on in its
    /// folder, which this path does not name any more.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert!(db.path().ends_with("shop"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn path(&self) -> &Path {
        self.engine.paths.root()
    }

    /// Sequence of the last commit that readers see.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let before = db.sequence();
    /// events.put("k", "v")?;
    /// assert_eq!(db.sequence(), before + 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.engine.sequence()
    }

    /// Compacts the whole log now: copies what is alive out of every segment that holds anything
    /// dead, writes a checkpoint, and removes the segments. Commits and reads go on meanwhile.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// for _ in 0..100 {
    ///     events.put("k", "v")?;
    /// }
    /// let report = db.compact()?;
    /// assert!(report.bytes_after <= report.bytes_before);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if a record is damaged: its segment is kept, all
    /// others have been compacted; those of a commit.
    pub fn compact(&self) -> Result<CompactReport> {
        self.engine.compact()
    }

    /// Waits until nothing is left of the background work that is due now: compaction and
    /// checkpoint. Commits and reads go on meanwhile, and may make more of it due.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.wait_idle()?; // nothing is left to be done in the background
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Db::compact`].
    pub fn wait_idle(&self) -> Result<()> {
        self.engine.wait_idle()
    }

    /// Makes everything durable and lets go of the folder. Other handles give
    /// [`Error::Closed`](crate::Error::Closed) from now on. Dropping the last handle does the same,
    /// but has nobody to tell if it fails. A handle in a `static` is never dropped: without this
    /// call, the buffered commits of the last moments are lost when the process ends.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.close()?; // says what dropping it could not
    /// assert!(events.get("k").is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a write or sync fails, now or before.
    pub fn close(self) -> Result<()> {
        self.engine.close(Closing::Usual)
    }

    /// Closes like [`Db::close`], for a handover to another process that opens the database at
    /// once. A checkpoint takes as long as the directory is large; here none is written for a log
    /// of up to 256 KiB, which the next open replays in some tens of milliseconds.
    /// [`Db::checkpoint`] a moment before leaves a smaller log.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// db.checkpoint()?; // while others still use the database
    /// events.put("k", "v")?;
    /// db.close_quickly()?; // hardly longer than a sync
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Db::close`].
    pub fn close_quickly(self) -> Result<()> {
        self.engine.close(Closing::Quick)
    }
}

impl Options {
    /// Opens the database in the folder `path`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().create(true).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`crate::Db::open`]; and [`Error::Invalid`](crate::Error::Invalid) if the options
    /// contradict each other.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Db> {
        self.check()?;
        Db::open_with(path.as_ref(), self)
    }
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Db({})", self.path().display())
    }
}
