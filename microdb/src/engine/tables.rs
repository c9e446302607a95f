//! Tables of an open database: look-up, creation, renaming, dropping and clearing.
//!
//! - Each change is one durable commit, made while the mutex `ddl` is held.
//! - Changes are refused inside the body of a transaction on this database.
//!
//! Deliberately absent: reading and writing of the records in tables.

use std::sync::Arc;

use crate::engine::body::{Body, limit};
use crate::engine::catalog::{CATALOG_TABLE, CatalogChange, TableCore};
use crate::engine::nesting;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::TABLE_NAME_BYTES_MAX;
use crate::format::key_codec::KeyCodec;
use crate::format::record::RecordKind;
use crate::raw::epoch::pin;
use crate::raw::sync::ignore_poison;

impl Engine {
    pub(crate) fn table_named(&self, name: &str) -> Option<Arc<TableCore>> {
        ignore_poison(self.catalog.read()).by_name.get(name).cloned()
    }

    /// Returns all tables that have a name, sorted by name.
    pub(crate) fn named_tables(&self) -> Vec<Arc<TableCore>> {
        ignore_poison(self.catalog.read()).named()
    }

    pub(crate) fn table_by_id(&self, id: u32) -> Option<Arc<TableCore>> {
        ignore_poison(self.catalog.read()).by_id.get(&id).cloned()
    }

    /// Returns the id of the next new table. No record of the log belongs to a table with this id
    /// or a higher one.
    pub(crate) fn next_table(&self) -> u32 {
        ignore_poison(self.catalog.read()).next_id
    }

    /// Returns all tables, the catalog first.
    pub(crate) fn tables(&self) -> Vec<Arc<TableCore>> {
        let catalog = ignore_poison(self.catalog.read());
        let mut tables: Vec<_> = catalog.by_id.values().cloned().collect();
        tables.sort_unstable_by_key(|table| table.id);
        tables
    }

    /// Returns the table `name`. If the table does not exist, creates it and records `key_codec`,
    /// if there is one, in the catalog. If the table does not exist and the database is read-only,
    /// fails with [`Error::NoSuchTable`].
    pub(crate) fn create_table(&self, name: &str, key_codec: Option<&KeyCodec>) -> Result<Arc<TableCore>> {
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
        let id = ignore_poison(self.catalog.read()).next_id;
        if id == u32::MAX {
            let reason = "all ids of tables are used; export and import the database".to_owned();
            return Err(Error::Invalid {
                what: "table",
                reason,
            });
        }
        let table = Arc::new(TableCore::new(id, name));
        if let Some(codec) = key_codec {
            let _ = table.key_codec.set(codec.clone());
        }
        let change = CatalogChange::Create(table.clone());
        self.change_catalog(&[(RecordKind::Put, name, &table)], &[], Some(change))?;
        Ok(table)
    }

    pub(crate) fn drop_table(&self, name: &str) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        let table = self.table_named(name).ok_or_else(|| Error::NoSuchTable {
            name: name.to_owned(),
        })?;
        let change = CatalogChange::Drop(table.clone());
        self.change_catalog(
            &[(RecordKind::Delete, name, &table)],
            std::slice::from_ref(&table),
            Some(change),
        )
    }

    pub(crate) fn rename_table(&self, from: &str, to: &str) -> Result<()> {
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
            (RecordKind::Delete, from, &*table),
            (RecordKind::Put, to, &*table),
        ];
        let change = CatalogChange::Rename {
            table: table.clone(),
            to: to.to_owned(),
        };
        self.change_catalog(&names, &[], Some(change))
    }

    pub(crate) fn replace_tables(&self, pairs: &[(&str, &str)]) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        let mut seen = std::collections::HashSet::new();
        let (mut renamed, mut dropped) = (Vec::new(), Vec::new());
        for (from, to) in pairs {
            check_name(to)?;
            if !seen.insert(*from) || !seen.insert(*to) {
                let reason = format!("{from:?} or {to:?} occurs twice in the list of replacements");
                return Err(Error::Invalid {
                    what: "table name",
                    reason,
                });
            }
            let table = self.table_named(from).ok_or_else(|| Error::NoSuchTable {
                name: (*from).to_owned(),
            })?;
            dropped.extend(self.table_named(to));
            renamed.push((table, (*to).to_owned()));
        }
        let names = pairs.iter().zip(&renamed).flat_map(|((from, to), (table, _))| {
            [
                (RecordKind::Delete, *from, &**table),
                (RecordKind::Put, *to, &**table),
            ]
        });
        let names: Vec<_> = names.collect();
        let cleared = dropped.clone();
        let change = CatalogChange::Replace {
            dropped,
            renamed: renamed.clone(),
        };
        self.change_catalog(&names, &cleared, Some(change))
    }

    pub(crate) fn clear_table(&self, table: &Arc<TableCore>) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_process()?;
        let _ddl = lock(&self.ddl);
        table.check_not_dropped()?;
        self.change_catalog(&[], std::slice::from_ref(table), None)
    }

    /// Commits changes of catalog records, and markers that clear tables, as one durable batch.
    fn change_catalog(
        &self,
        names: &[(RecordKind, &str, &TableCore)],
        cleared: &[Arc<TableCore>],
        change: Option<CatalogChange>,
    ) -> Result<()> {
        let catalog = ignore_poison(self.catalog.read());
        let mut tables = vec![catalog.by_id[&CATALOG_TABLE].clone()];
        drop(catalog);
        let mut body = Body::default();
        for (kind, name, table) in names {
            let value = if *kind == RecordKind::Put {
                table.catalog_value()
            } else {
                Vec::new()
            };
            body.push(
                *kind,
                (0, CATALOG_TABLE),
                self.hash(name.as_bytes()),
                name.as_bytes(),
                &value,
            )?;
        }
        for table in cleared {
            tables.push(table.clone());
            let index = tables.len() as u32 - 1;
            body.push(RecordKind::Clear, (index, table.id), self.hash(&[]), &[], &[])?;
        }
        self.commit_change(body, tables, change)
    }

    /// Returns the number of keys in all tables, and the size of their directories in bytes,
    /// including parts in the mapped checkpoint.
    pub(crate) fn directory_totals(&self) -> (u64, u64) {
        let tables = self.tables();
        let guard = pin();
        let directories = tables.iter().map(|table| table.directory.load(&guard));
        directories.fold((0, 0), |(keys, bytes), directory| {
            (
                keys + directory.len(),
                bytes + directory.bytes() + directory.mapped_bytes(&guard),
            )
        })
    }
}

fn check_name(name: &str) -> Result<()> {
    limit("table name", name.len(), TABLE_NAME_BYTES_MAX)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        let reason = "it must not be empty or contain control characters".to_owned();
        return Err(Error::Invalid {
            what: "table name",
            reason,
        });
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use crate::raw::epoch;

    /// Maximum time until the memory is freed. Only a test that fails waits so long.
    const FREED_WITHIN: Duration = Duration::from_secs(60);

    #[test]
    fn the_directory_of_a_cleared_table_is_freed_though_its_thread_makes_no_further_call() {
        let folder = tempfile::tempdir().unwrap();
        let db = crate::Db::open(folder.path().join("db")).unwrap();
        let table = db.table("t").unwrap();
        table.put("k", "v").unwrap();
        let old = Arc::downgrade(&table.core.directory.load_arc(&epoch::pin()));
        let stop = Arc::new(AtomicBool::new(false));
        let (cleared, is_cleared) = mpsc::channel();
        let thread = {
            let (table, stop) = (table.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                table.clear().unwrap();
                cleared.send(()).unwrap();
                // The thread stays alive, so the end of the thread cannot hand its retired values
                // to the collector (see `raw::epoch`).
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park();
                }
            })
        };
        is_cleared.recv().unwrap();
        let until = Instant::now() + FREED_WITHIN;
        while old.strong_count() > 0 {
            assert!(Instant::now() < until, "the old directory is still in memory");
            epoch::collect();
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        thread.join().unwrap();
    }
}
