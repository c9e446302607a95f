//! The database handle: one method for each operation on a whole database.
//!
//! - The methods delegate to `engine`, `recover` and `tools`, which do the work.
//! - The drop of the last handle closes the database. Tables, batches, snapshots, iterators and
//!   change feeds hold a handle too.
//!
//! Deliberately absent: access to records, which is in `table`, `batch`, `transaction` and
//! `snapshot`.

mod operations;

use std::path::Path;
use std::sync::Arc;

use crate::engine::catalog::TableCore;
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::{Closing, Handle, lock};
use crate::error::Result;
use crate::format::DatabaseId;
use crate::format::key_codec::KeyCodec;
use crate::options::Options;
use crate::recover;
use crate::sequence::Sequence;
use crate::stats::TableInfo;
use crate::table::Table;
use crate::typed::TypedTable;
use crate::typed::codec::Codec;

pub use self::operations::diff;

/// An open database in one folder. Cheap to clone and usable from any thread. Dropping the last
/// handle closes the database. Tables, batches, snapshots, iterators and change feeds are handles
/// too.
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
    /// Opens the database in the folder `path` with the default options. Creates the database if it
    /// does not exist.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Db::open(&path)?; // created if it does not exist
    /// println!("{}", db.recovery());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Locked`](crate::Error::Locked) if another process or handle has the database open
    ///   for writing.
    /// - [`Error::Corrupt`](crate::Error::Corrupt) if the open finds damaged bytes before the
    ///   durable frontier. No file except LOCK is changed in that case. Most records that the
    ///   checkpoint covers are not verified by the open, but when they are read.
    /// - [`Error::Version`](crate::Error::Version) for a newer format.
    /// - [`Error::Invalid`](crate::Error::Invalid) for the empty path, or if another process makes
    ///   SUPER while this process creates the database.
    /// - [`Error::Io`](crate::Error::Io) for errors of the operating system, or
    ///   [`Error::Poisoned`](crate::Error::Poisoned) if SUPER cannot be written.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Options::new().open(path)
    }

    pub(crate) fn open_with(path: &Path, options: Options) -> Result<Self> {
        Ok(Self {
            engine: Handle::new(recover::open(path, options)?),
        })
    }

    /// Returns the table `name`, and creates it if it does not exist. The creation is always
    /// durable, for every [`Durability`](crate::Durability).
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let orders = db.table("orders")?; // created if it does not exist
    /// orders.put("17", "paid")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::Invalid`](crate::Error::Invalid)
    ///   for an unusable name. `Error::Invalid` also if all ids of tables are used.
    /// - [`Error::NoSuchTable`](crate::Error::NoSuchTable) if the table does not exist and the
    ///   database is read-only.
    /// - The errors of [`Table::put`].
    pub fn table(&self, name: &str) -> Result<Table> {
        self.engine.check_process()?;
        let core = match self.engine.table_named(name) {
            Some(core) => core,
            None => self.engine.create_table(name, None)?,
        };
        Ok(Table {
            engine: self.engine.clone(),
            core,
        })
    }

    /// Returns the table `name`, or `None` if it does not exist. In a forked child, always returns
    /// `None`.
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
        self.engine.check_process().ok()?;
        self.engine.table_named(name).map(|core| Table {
            engine: self.engine.clone(),
            core,
        })
    }

    /// Returns the table `name` with typed keys and values in the default encoding, and creates it
    /// if it does not exist.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// let stock = db.typed_table::<(u32, u16), u16>("stock")?;
    /// stock.put(&(812, 5), &3)?;
    /// assert_eq!(stock.get(&(812, 5))?, Some(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Db::table`].
    #[cfg(feature = "bincode")]
    pub fn typed_table<K, V>(&self, name: &str) -> Result<TypedTable<K, V>>
    where
        K: serde::Serialize + serde::de::DeserializeOwned,
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.typed_table_with(name)
    }

    /// Returns the table `name` with typed keys and values in the encoding `C`, and creates it if
    /// it does not exist. [`Codec`] has an example.
    ///
    /// A new table records the names of its encoding and of its type of keys, so that tools can
    /// show keys (see [`TableInfo::keys_as`]). Nothing is recorded if both names, separated by a
    /// blank, take more than 255 bytes, or if the name of the encoding is empty or has a blank.
    /// Neither encoding nor type is checked when the table is opened again.
    ///
    /// # Errors
    /// The errors of [`Db::table`].
    pub fn typed_table_with<K, V, C>(&self, name: &str) -> Result<TypedTable<K, V, C>>
    where
        K: serde::Serialize + serde::de::DeserializeOwned,
        V: serde::Serialize + serde::de::DeserializeOwned,
        C: Codec,
    {
        self.engine.check_process()?;
        let core = match self.engine.table_named(name) {
            Some(core) => core,
            None => self
                .engine
                .create_table(name, KeyCodec::of::<K>(C::NAME).as_ref())?,
        };
        Ok(TypedTable::new(Table {
            engine: self.engine.clone(),
            core,
        }))
    }

    /// Returns all tables, sorted by name. Returns none in a forked child.
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
        if self.engine.check_process().is_err() {
            return Vec::new();
        }
        let tables = self.engine.named_tables();
        let live_bytes = lock(&self.engine.core).usages.bytes_by_table();
        let guard = crate::raw::epoch::pin();
        let info = |table: Arc<TableCore>| TableInfo {
            name: table.name(),
            id: table.id,
            keys: table.directory.load(&guard).len(),
            keys_as: table.key_codec.get().cloned(),
            live_bytes: live_bytes.get(&table.id).copied().unwrap_or(0),
        };
        tables.into_iter().map(info).collect()
    }

    /// Drops a table with all its records, durably. Gets and writes through existing handles of the
    /// table fail with [`Error::TableDropped`](crate::Error::TableDropped) from then on.
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
    /// [`Error::NoSuchTable`](crate::Error::NoSuchTable), and the errors of [`Table::put`].
    pub fn drop_table(&self, name: &str) -> Result<()> {
        self.engine.drop_table(name)
    }

    /// Renames a table, durably. Existing handles to the table stay valid.
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
    /// [`Error::TableExists`](crate::Error::TableExists),
    /// [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::Invalid`](crate::Error::Invalid) for
    /// an unusable new name, and the errors of [`Table::put`].
    pub fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        self.engine.rename_table(from, to)
    }

    /// Renames tables in one durable commit, and drops the tables that had the new names. Each pair
    /// holds the current name of a table and its new name. Handles to the renamed tables stay
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
    /// [`Error::NoSuchTable`](crate::Error::NoSuchTable);
    /// [`Error::TooLarge`](crate::Error::TooLarge) or [`Error::Invalid`](crate::Error::Invalid) for
    /// an unusable new name; [`Error::Invalid`](crate::Error::Invalid) if a name occurs twice; the
    /// errors of [`Table::put`]. Nothing has changed after an error, except perhaps after
    /// [`Error::Poisoned`](crate::Error::Poisoned).
    pub fn replace_tables(&self, pairs: &[(&str, &str)]) -> Result<()> {
        self.engine.replace_tables(pairs)
    }

    /// Makes all earlier commits durable.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put_with("k", "v", microdb::Durability::Buffered)?;
    /// db.sync()?; // all earlier commits are durable from here
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a failure in this call or in an earlier one
    /// left the state of the disk unknown. [`Error::ReadOnly`](crate::Error::ReadOnly) for a
    /// read-only database, [`Error::Closed`](crate::Error::Closed) after a close, and
    /// [`Error::Forked`](crate::Error::Forked) in a forked child.
    pub fn sync(&self) -> Result<()> {
        self.engine.check_writable()?;
        self.engine.sync_log().map(|_| ())
    }

    /// Writes a checkpoint, so that the next open need not replay the log up to this moment.
    /// Checkpoints are also written in the background as the log grows, unless
    /// [`Options::background`] is `false`. [`Db::close`] writes one if the next open would
    /// otherwise replay much. Each checkpoint removes the segments that compaction has emptied.
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
    /// [`Error::Io`](crate::Error::Io) if the checkpoint cannot be written, for example on a full
    /// disk, or if an old file cannot be removed. Commits remain possible after this error.
    /// [`Error::Corrupt`](crate::Error::Corrupt) if the directory is damaged. Further errors are
    /// those of [`Db::sync`].
    pub fn checkpoint(&self) -> Result<()> {
        self.engine.checkpoint()?;
        if !self.engine.options.background {
            // A failure is ignored, because a seal can be computed again from its segment.
            let _ = self.engine.seal_segments();
        }
        Ok(())
    }

    /// Returns the report on the recovery that was performed when the database was opened.
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

    /// Returns the identity of the database, chosen at random when it was created.
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

    /// Returns the path given to `open`. A database that was renamed while open stays usable, but
    /// this path no longer names its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.engine.paths.root()
    }

    /// Returns the sequence of the last visible commit. Returns [`Sequence::ZERO`] in a forked
    /// child.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let before = db.sequence();
    /// events.put("k", "v")?;
    /// assert_eq!(db.sequence(), before.next());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        match self.engine.check_process() {
            Ok(()) => Sequence(self.engine.sequence()),
            Err(_) => Sequence::ZERO,
        }
    }

    /// Makes all commits durable, and unlocks the folder so that the database can be opened again.
    /// Gets and writes through other handles fail with [`Error::Closed`](crate::Error::Closed) from
    /// then on. A further call, through another handle, has no effect.
    ///
    /// Dropping the last handle also closes the database, but cannot report an error. Rust never
    /// drops a handle in a `static`: without this call, the last buffered commits can be lost when
    /// the process ends.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.close()?; // reports an error that a drop would hide
    /// assert!(events.get("k").is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a failure in this call or in an earlier one
    /// left the state of the disk unknown. [`Error::Forked`](crate::Error::Forked) in a forked
    /// child, where nothing is closed.
    pub fn close(self) -> Result<()> {
        self.engine.close(Closing::Usual)
    }

    /// Closes like [`Db::close`], but faster, because another process waits to open the database.
    ///
    /// `close` of a large database usually writes a checkpoint, which takes time proportional to
    /// the size of the directory. This method writes none if the log since the last checkpoint has
    /// at most 256 KiB. The next open replays such a log in about a millisecond, and copies each
    /// part of the directory that the log changes.
    ///
    /// For random keys, the copying took 12 ms of processor time with a million keys, and 50 ms
    /// with four million. Call [`Db::checkpoint`] just before this method, so that the next open
    /// has little log to replay.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// db.checkpoint()?; // while others still use the database
    /// events.put("k", "v")?;
    /// db.close_quickly()?; // about the time of one sync
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Db::close`].
    pub fn close_quickly(self) -> Result<()> {
        self.engine.close(Closing::Quick)
    }
}

impl Options {
    /// Opens the database in the folder `path`. Creates it there if it does not exist, unless
    /// [`Options::create`] or [`Options::read_only`] forbids that.
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
    /// The errors of [`crate::Db::open`], [`Error::Invalid`](crate::Error::Invalid) if an option
    /// has an invalid value, and [`Error::NotADatabase`](crate::Error::NotADatabase) if there is no
    /// database and the options do not permit to create one.
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
