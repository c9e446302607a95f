//! The database handle, and the making, naming and dropping of tables.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use crate::batch::{Body, limit};
use crate::engine::catalog::{CATALOG_TABLE, CatalogChange, TableCore};
use crate::engine::nesting;
use crate::engine::{Closing, Engine, Handle, lock};
use crate::error::{Error, Result};
use crate::format::DatabaseId;
use crate::format::record::RecordKind;
use crate::options::{Options, TABLE_NAME_BYTES_MAX};
use crate::recover::{self, RecoveryReport};
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
    /// [`Error::Locked`] if it is open elsewhere; [`Error::Corrupt`] if what was once durable is
    /// damaged (nothing is changed then); [`Error::Version`]; [`Error::Invalid`] for the empty
    /// path; [`Error::Io`].
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
    /// [`Error::TooLarge`] or [`Error::Invalid`] for the name; [`Error::NoSuchTable`] if it does
    /// not exist and the database is read-only; those of a commit.
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

    /// Drops a table with all its records, durably. Handles to it give [`Error::TableDropped`] from
    /// now on.
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
    /// [`Error::NoSuchTable`]; those of a commit.
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
    /// [`Error::NoSuchTable`], [`Error::TableExists`]; those of a commit.
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
    /// [`Error::NoSuchTable`]; [`Error::Invalid`] if a name occurs twice; those of a commit.
    /// Nothing has changed then.
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
    /// [`Error::Poisoned`] if a write or sync fails, now or before.
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
    /// [`Error::Io`] if the disk is full (commits go on); [`Error::Poisoned`].
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

    /// Makes everything durable and lets go of the folder. Other handles give [`Error::Closed`]
    /// from now on. Dropping the last handle does the same, but has nobody to tell if it fails. A
    /// handle in a `static` is never dropped: without this call, the buffered commits of the last
    /// moments are lost when the process ends.
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
    /// [`Error::Poisoned`] if a write or sync fails, now or before.
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

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Db({})", self.path().display())
    }
}

impl Engine {
    pub(crate) fn table_named(&self, name: &str) -> Option<Arc<TableCore>> {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_name
            .get(name)
            .cloned()
    }

    /// All tables that have a name, in its order.
    pub(crate) fn named_tables(&self) -> Vec<Arc<TableCore>> {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .named()
    }

    pub(crate) fn table_by_id(&self, id: u32) -> Option<Arc<TableCore>> {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .get(&id)
            .cloned()
    }

    /// No table ever had this id or a higher one.
    pub(crate) fn next_table(&self) -> u32 {
        self.catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .next_id
    }

    /// All tables, the catalog first.
    pub(crate) fn tables(&self) -> Vec<Arc<TableCore>> {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        let mut tables: Vec<_> = catalog.by_id.values().cloned().collect();
        tables.sort_unstable_by_key(|table| table.id);
        tables
    }

    fn create_table(&self, name: &str) -> Result<Arc<TableCore>> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        if let Some(table) = self.table_named(name) {
            return Ok(table);
        }
        check_name(name)?;
        if self.options.read_only {
            return Err(Error::NoSuchTable {
                name: name.to_owned(),
            });
        }
        let id = self
            .catalog
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .next_id;
        let table = Arc::new(TableCore::new(id, name));
        let change = CatalogChange::Create(table.clone());
        self.change_catalog(&[(RecordKind::Put, name, id)], &[], Some(change))?;
        Ok(table)
    }

    fn drop_table(&self, name: &str) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        let table = self.table_named(name).ok_or_else(|| Error::NoSuchTable {
            name: name.to_owned(),
        })?;
        let change = CatalogChange::Drop(table.clone());
        self.change_catalog(&[(RecordKind::Delete, name, table.id)], &[table], Some(change))
    }

    fn rename_table(&self, from: &str, to: &str) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        let table = self.table_named(from).ok_or_else(|| Error::NoSuchTable {
            name: from.to_owned(),
        })?;
        if self.table_named(to).is_some() {
            return Err(Error::TableExists { name: to.to_owned() });
        }
        check_name(to)?;
        let names = [
            (RecordKind::Delete, from, table.id),
            (RecordKind::Put, to, table.id),
        ];
        let to = to.to_owned();
        self.change_catalog(&names, &[], Some(CatalogChange::Rename { table, to }))
    }

    fn replace_tables(&self, pairs: &[(&str, &str)]) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        let mut seen = std::collections::HashSet::new();
        let (mut names, mut renamed, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for (from, to) in pairs {
            check_name(to)?;
            if !seen.insert(*from) || !seen.insert(*to) {
                let reason = format!("{from:?} or {to:?} occurs twice among the tables to be replaced");
                return Err(Error::Invalid {
                    what: "table name",
                    reason,
                });
            }
            let table = self.table_named(from).ok_or_else(|| Error::NoSuchTable {
                name: (*from).to_owned(),
            })?;
            names.push((RecordKind::Delete, *from, table.id));
            names.push((RecordKind::Put, *to, table.id));
            dropped.extend(self.table_named(to));
            renamed.push((table, (*to).to_owned()));
        }
        let cleared = dropped.clone();
        let change = CatalogChange::Replace { dropped, renamed };
        self.change_catalog(&names, &cleared, Some(change))
    }

    pub(crate) fn clear_table(&self, table: &Arc<TableCore>) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        table.check_not_dropped()?;
        self.change_catalog(&[], std::slice::from_ref(table), None)
    }

    /// Commits changes of the catalog's records, and markers that empty tables, as one durable
    /// batch.
    fn change_catalog(
        &self,
        names: &[(RecordKind, &str, u32)],
        cleared: &[Arc<TableCore>],
        change: Option<CatalogChange>,
    ) -> Result<()> {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        let mut tables = vec![catalog.by_id[&CATALOG_TABLE].clone()];
        drop(catalog);
        let mut body = Body::default();
        for (kind, name, id) in names {
            let value = if *kind == RecordKind::Put {
                &id.to_le_bytes()[..]
            } else {
                &[]
            };
            body.push(
                *kind,
                (0, CATALOG_TABLE),
                self.hash(name.as_bytes()),
                name.as_bytes(),
                value,
            )?;
        }
        for table in cleared {
            tables.push(table.clone());
            let index = tables.len() as u32 - 1;
            body.push(RecordKind::Clear, (index, table.id), self.hash(&[]), &[], &[])?;
        }
        self.commit_change(body, tables, change)
    }
}

fn check_name(name: &str) -> Result<()> {
    limit("table name", name.len(), TABLE_NAME_BYTES_MAX)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        let reason = "it is empty or has control characters".to_owned();
        return Err(Error::Invalid {
            what: "table name",
            reason,
        });
    }
    Ok(())
}
