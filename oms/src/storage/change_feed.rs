//! A volume's rows for those who copy them: all of one moment, and what changed since.
//!
//! Everything here reads the disk and is to be called where a thread may wait. A walk sees one
//! moment of all tables; a feed goes on from there, commit by commit, as long as it is wanted, and
//! holds on to what it has not read yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::StorageError;
use crate::storage::volume::{Volume, reading};
use crate::storage::write_batch::{TABLES, Table};
use microdb::Operation;

/// A row as it lies in a volume; without a value it was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawRow {
    pub(crate) table: Table,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

impl RawRow {
    /// Bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// All rows of one moment, table by table.
pub(crate) struct Walk {
    snapshot: microdb::Snapshot,
    tables: Vec<(Table, &'static str, microdb::Table)>,
    at: usize,
    rows: Option<microdb::Iter>,
}

/// What was committed after a moment.
pub(crate) struct Feed {
    changes: microdb::Changes,
    tables: HashMap<u32, Table>,
}

/// Some of what was committed, the last word for each key, by table and key.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) rows: Vec<RawRow>,
    /// True if there was no more.
    pub(crate) at_end: bool,
}

impl Volume {
    /// Begins to go through all rows of this moment.
    pub(crate) fn walk(&self) -> Walk {
        let tables = TABLES
            .into_iter()
            .map(|(table, name)| (table, name, self.volume.table(table).clone()));
        Walk {
            tables: tables.collect(),
            snapshot: self.volume.db.snapshot(),
            at: 0,
            rows: None,
        }
    }

    /// Begins to follow what is committed after a moment.
    pub(crate) fn feed(&self, after: u64) -> Result<Feed, StorageError> {
        let known: HashMap<&str, Table> = TABLES.iter().map(|(table, name)| (*name, *table)).collect();
        let tables = self.volume.db.tables().into_iter();
        Ok(Feed {
            changes: self.volume.db.changes_since(after).map_err(reading("log"))?,
            tables: tables
                .filter_map(|table| Some((table.id, *known.get(table.name.as_str())?)))
                .collect(),
        })
    }

    /// A row as it lies there now.
    pub(crate) fn raw(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let row = self.volume.table(table).get(key);
        let row = row.map_err(reading(TABLES[table as usize].1))?;
        Ok(row.map(|value| value.to_vec()))
    }

    /// Rows in all tables that move with slots.
    pub(crate) fn rows(&self) -> u64 {
        let moving = TABLES.iter().filter(|(table, _)| table.moves());
        moving.map(|(table, _)| self.volume.table(*table).len()).sum()
    }
}

impl Walk {
    /// The last commit that it sees.
    pub(crate) fn sequence(&self) -> u64 {
        self.snapshot.sequence()
    }

    /// Gives the next row to `take`, without copying it; false if there is none left.
    pub(crate) fn step(
        &mut self,
        take: impl FnOnce(Table, &[u8], &[u8]) -> Result<(), StorageError>,
    ) -> Result<bool, StorageError> {
        while let Some((table, name, handle)) = self.tables.get(self.at) {
            let rows = match &mut self.rows {
                Some(rows) => rows,
                None => self
                    .rows
                    .insert(self.snapshot.iter(handle).map_err(reading(name))?),
            };
            if let Some(row) = rows.next() {
                let (key, value) = row.map_err(reading(name))?;
                take(*table, &key, &value)?;
                return Ok(true);
            }
            self.at += 1;
            self.rows = None;
        }
        Ok(false)
    }
}

impl Feed {
    /// Takes note of what was committed meanwhile, so that nothing removes it before it is read.
    pub(crate) fn extend(&mut self) -> Result<(), StorageError> {
        self.changes.extend().map_err(reading("log"))
    }

    /// Reads on until there are `rows_max` rows that `wants`, many others were passed over, or
    /// nothing is left.
    pub(crate) fn read(
        &mut self,
        rows_max: usize,
        mut wants: impl FnMut(Table, &[u8], Option<&[u8]>) -> Result<bool, StorageError>,
    ) -> Result<Changed, StorageError> {
        let mut last: BTreeMap<(u8, Vec<u8>), RawRow> = BTreeMap::new();
        let mut passed = 0;
        while last.len() < rows_max && passed < rows_max * 16 {
            let Some(change) = self.changes.next() else {
                return Ok(Changed {
                    rows: last.into_values().collect(),
                    at_end: true,
                });
            };
            let change = change.map_err(|source| StorageError::Read {
                table: "log",
                source: Arc::new(source),
            })?;
            for operation in change.operations {
                let (id, key, value) = match operation {
                    Operation::Put { table, key, value } => (table, key, Some(value)),
                    Operation::Delete { table, key } => (table, key, None),
                    // Only what lies aside is ever cleared.
                    _ => continue,
                };
                passed += 1;
                if let Some(table) = self.tables.get(&id).copied()
                    && wants(table, &key, value.as_deref())?
                {
                    last.insert((table as u8, key.clone()), RawRow { table, key, value });
                }
            }
        }
        Ok(Changed {
            rows: last.into_values().collect(),
            at_end: false,
        })
    }
}
