//! Reads a volume's rows for a copy: all rows of one moment, and the commits after that moment.
//!
//! **Invariants**
//! - A walk (`Walk`) sees all tables as of one commit.
//! - A feed (`Feed`) starts after a given commit, such as the last one that a walk sees, and reads
//!   the later commits in order. The commits that existed at the start or the last extension of a
//!   feed stay readable until the feed has read them, even after compaction.
//! - Calls of this module may read the disk, so they belong on a thread that may block.
//!
//! Deliberately absent: the choice of the rows to copy (`volume::migration`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::StorageError;
use crate::storage::volume::{Volume, reading};
use crate::storage::write_batch::{TABLES, Table};
use microdb::{Operation, Sequence};

/// A row as stored in the database. The value is `None` if the row was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawRow {
    pub(crate) table: Table,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

impl RawRow {
    /// Returns the size of key and value in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Iterates over the rows of all tables, table by table, as of the moment of its creation.
pub(crate) struct Walk {
    snapshot: microdb::Snapshot,
    tables: Vec<(Table, &'static str, microdb::Table)>,
    at: usize,
    rows: Option<microdb::Iter>,
}

/// Reads the commits after a sequence number from the log of the database, up to the start or the
/// last extension of the feed.
pub(crate) struct Feed {
    changes: microdb::Changes,
    tables: HashMap<u32, Table>,
    /// Operations of the last commit that an earlier read left over.
    left: std::vec::IntoIter<Operation>,
}

/// The result of one read of a feed: for each row, the last change that the caller wanted, sorted
/// by table and key.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) rows: Vec<RawRow>,
    /// `true` if the read met the end of the feed. `Feed::extend` may add further changes.
    pub(crate) at_end: bool,
}

impl Volume {
    /// Starts a walk over all rows as of this call.
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

    /// Starts a feed of the commits after a sequence number, up to this call.
    pub(crate) fn feed(&self, after: Sequence) -> Result<Feed, StorageError> {
        let known: HashMap<&str, Table> = TABLES.iter().map(|(table, name)| (*name, *table)).collect();
        let tables = self.volume.db.tables().into_iter();
        Ok(Feed {
            changes: self.volume.db.changes_since(after).map_err(reading("log"))?,
            tables: tables
                .filter_map(|table| Some((table.id, *known.get(table.name.as_str())?)))
                .collect(),
            left: Vec::new().into_iter(),
        })
    }

    /// Returns the current value of a row. `None` if the row does not exist.
    pub(crate) fn raw(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let row = self.volume.table(table).get(key);
        let row = row.map_err(reading(TABLES[table as usize].1))?;
        Ok(row.map(|value| value.to_vec()))
    }

    /// Returns the total number of rows in the tables for which `Table::moves` returns `true`.
    pub(crate) fn rows(&self) -> u64 {
        let moving = TABLES.iter().filter(|(table, _)| table.moves());
        moving.map(|(table, _)| self.volume.table(*table).len()).sum()
    }
}

impl Walk {
    /// Returns the sequence number of the last commit that the walk sees.
    pub(crate) fn sequence(&self) -> Sequence {
        self.snapshot.sequence()
    }

    /// Passes the next row to `take` without copying it. Returns `false` at the end.
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
    /// Extends the feed to all commits made so far. From then on, the part of the log with these
    /// commits is kept until the feed has read it.
    pub(crate) fn extend(&mut self) -> Result<(), StorageError> {
        self.changes.extend().map_err(reading("log"))
    }

    /// Reads changes until `rows_max` different rows that `wants` accepts were found, their keys
    /// and values have at least `bytes_max` bytes, or no change is left. So all rows except the one
    /// found last have fewer than `bytes_max` bytes together. Also ends after `16 * rows_max`
    /// changes, to bound the time of one call. A commit may be split between two calls.
    pub(crate) fn read(
        &mut self,
        rows_max: usize,
        bytes_max: usize,
        mut wants: impl FnMut(Table, &[u8], Option<&[u8]>) -> Result<bool, StorageError>,
    ) -> Result<Changed, StorageError> {
        let mut last: BTreeMap<(u8, Vec<u8>), RawRow> = BTreeMap::new();
        let (mut bytes, mut passed) = (0, 0);
        let mut at_end = false;
        while last.len() < rows_max && bytes < bytes_max && passed < rows_max * 16 {
            let Some(operation) = self.next_operation()? else {
                at_end = true;
                break;
            };
            let (id, key, value) = match operation {
                Operation::Put { table, key, value } => (table, key, Some(value)),
                Operation::Delete { table, key } => (table, key, None),
                // All other operations clear a table. No table of an open volume is cleared,
                // except for that of staged rows, which do not move with slots.
                _ => continue,
            };
            passed += 1;
            if let Some(table) = self.tables.get(&id).copied()
                && wants(table, &key, value.as_deref())?
            {
                let row = RawRow { table, key, value };
                bytes += row.bytes();
                let replaced = last.insert((table as u8, row.key.clone()), row);
                bytes -= replaced.map_or(0, |replaced| replaced.bytes());
            }
        }
        Ok(Changed {
            rows: last.into_values().collect(),
            at_end,
        })
    }

    /// Returns the next operation of the commits, or `None` at the end of the feed.
    fn next_operation(&mut self) -> Result<Option<Operation>, StorageError> {
        loop {
            if let Some(operation) = self.left.next() {
                return Ok(Some(operation));
            }
            let Some(change) = self.changes.next() else {
                return Ok(None);
            };
            let change = change.map_err(|source| StorageError::Read {
                table: "log",
                source: Arc::new(source),
            })?;
            self.left = change.operations.into_iter();
        }
    }
}
