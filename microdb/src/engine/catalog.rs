//! Tables in memory: their directories, and the catalog of their names.
//!
//! - The catalog is table 0 of the log: the key is a name, the value a table id (4 bytes). For a
//!   typed table, the codec and the type of the keys may follow as text.
//! - Each record carries the id of its table, not the name. So renaming a table changes only the
//!   catalog.
//! - Clearing a table replaces its directory. Handles of the table stay valid.
//!
//! Deliberately absent: commits of changes, which are in `tables`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock, TryLockError};

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::format::key_codec::KeyCodec;
use crate::raw::epoch::ArcCell;
use crate::raw::sync::ignore_poison;

/// Id of the table that holds the catalog.
pub(crate) const CATALOG_TABLE: u32 = 0;

/// State of one table, shared by all handles.
pub(crate) struct TableCore {
    pub(crate) id: u32,
    pub(crate) name: RwLock<String>,
    pub(crate) dropped: AtomicBool,
    /// Codec and type of the keys, as recorded in the catalog when a typed table was created. Unset
    /// if nothing was recorded.
    pub(crate) key_codec: OnceLock<KeyCodec>,
    pub(crate) directory: ArcCell<Directory>,
}

impl TableCore {
    pub(crate) fn new(id: u32, name: &str) -> Self {
        Self {
            id,
            name: RwLock::new(name.to_owned()),
            dropped: AtomicBool::new(false),
            key_codec: OnceLock::new(),
            directory: ArcCell::new(Arc::new(Directory::new())),
        }
    }

    pub(crate) fn with_directory(id: u32, name: &str, directory: Directory) -> Self {
        Self {
            directory: ArcCell::new(Arc::new(directory)),
            ..Self::new(id, name)
        }
    }

    pub(crate) fn name(&self) -> String {
        ignore_poison(self.name.read()).clone()
    }

    /// Returns the name, or an empty text if the name is locked. In a forked child, the name stays
    /// locked if another thread of the parent was renaming the table at the fork.
    pub(crate) fn name_unless_locked(&self) -> String {
        match self.name.try_read() {
            Ok(name) => name.clone(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().clone(),
            Err(TryLockError::WouldBlock) => String::new(),
        }
    }

    pub(crate) fn set_name(&self, name: &str) {
        *ignore_poison(self.name.write()) = name.to_owned();
    }

    /// Returns the value of the table's catalog record.
    pub(crate) fn catalog_value(&self) -> Vec<u8> {
        let mut value = self.id.to_le_bytes().to_vec();
        if let Some(codec) = self.key_codec.get() {
            value.extend_from_slice(codec.text().as_bytes());
        }
        value
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    /// Fails for a dropped table.
    ///
    /// # Errors
    /// [`Error::TableDropped`] if the table was dropped.
    #[inline]
    pub(crate) fn check_not_dropped(&self) -> Result<()> {
        if self.is_dropped() && !crate::seeded::seeded("dropped-table-accepts-commits") {
            return Err(Error::TableDropped { name: self.name() });
        }
        Ok(())
    }
}

/// A change of the catalog. It is applied under the commit lock, in the step that makes its commit
/// visible. So a snapshot sees the catalog and the tables of one moment.
pub(crate) enum CatalogChange {
    Create(Arc<TableCore>),
    Drop(Arc<TableCore>),
    Rename {
        table: Arc<TableCore>,
        to: String,
    },
    /// Renames tables. Tables that had the new names are dropped.
    Replace {
        dropped: Vec<Arc<TableCore>>,
        renamed: Vec<(Arc<TableCore>, String)>,
    },
}

/// All tables by id, and all tables with a name also by name. Table 0 has no name. During replay,
/// `by_name` is empty, and a table that replay creates has no name. After replay, the open sets the
/// names.
#[derive(Clone, Default)]
pub(crate) struct Catalog {
    pub(crate) by_id: HashMap<u32, Arc<TableCore>>,
    pub(crate) by_name: HashMap<String, Arc<TableCore>>,
    /// Id of the next new table. No record of the log belongs to a table with this id or a higher
    /// one.
    pub(crate) next_id: u32,
}

impl Catalog {
    /// Returns a catalog without user tables. Its only entry is the table that holds the catalog.
    pub(crate) fn empty() -> Self {
        let mut catalog = Self {
            next_id: 1,
            ..Self::default()
        };
        catalog.table_or_new(CATALOG_TABLE);
        catalog
    }

    /// Returns the table with this id. If the id is new, creates a table without a name. An open
    /// sets the names after replay, from the live records of the catalog.
    pub(crate) fn table_or_new(&mut self, id: u32) -> &Arc<TableCore> {
        self.next_id = self.next_id.max(id.saturating_add(1));
        self.by_id
            .entry(id)
            .or_insert_with(|| Arc::new(TableCore::new(id, "")))
    }

    /// Applies a change to this catalog and to the tables in the change.
    pub(crate) fn apply(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::Create(table) => {
                self.next_id = self.next_id.max(table.id.saturating_add(1));
                self.by_id.insert(table.id, table.clone());
                self.by_name.insert(table.name(), table.clone());
            }
            CatalogChange::Drop(table) => self.drop_table(table),
            CatalogChange::Rename { table, to } => self.rename_table(table, to),
            CatalogChange::Replace { dropped, renamed } => {
                dropped.iter().for_each(|table| self.drop_table(table));
                renamed
                    .iter()
                    .for_each(|(table, to)| self.rename_table(table, to));
            }
        }
    }

    fn drop_table(&mut self, table: &TableCore) {
        table.dropped.store(true, Ordering::Release);
        self.by_name.remove(&table.name());
        self.by_id.remove(&table.id);
    }

    fn rename_table(&mut self, table: &Arc<TableCore>, to: &str) {
        self.by_name.remove(&table.name());
        table.set_name(to);
        self.by_name.insert(to.to_owned(), table.clone());
    }

    /// Returns the tables that have a name, sorted by name.
    pub(crate) fn named(&self) -> Vec<Arc<TableCore>> {
        let mut tables: Vec<_> = self.by_name.iter().collect();
        tables.sort_unstable_by_key(|(name, _)| *name);
        tables.into_iter().map(|(_, table)| table.clone()).collect()
    }
}
