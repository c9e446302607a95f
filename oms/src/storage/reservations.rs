//! Tracks the existence of reservations while a group of batches is assembled.
//!
//! Units are released in memory only if the commit that removes their reservation found that
//! reservation. So each removal needs a look-up, which must include the earlier batches of the same
//! group. A new reservation needs no look-up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::error::StorageError;
use crate::storage::volume::reading;
use crate::storage::write_batch::{Table, WriteBatch};

/// The existence of reservations after all batches that were added to a group so far.
pub(crate) struct Reservations<'a> {
    table: &'a microdb::Table,
    known: HashMap<&'a [u8], bool>,
}

impl<'a> Reservations<'a> {
    /// Creates the state before the first batch of a group: the reservations in the table.
    pub(crate) fn over(table: &'a microdb::Table) -> Reservations<'a> {
        Reservations {
            table,
            known: HashMap::new(),
        }
    }

    /// Adds the changes of a batch. Returns `false` if one of the reservations that it removes does
    /// not exist.
    ///
    /// # Errors
    /// `Read` if a reservation that the batch removes cannot be read, `Closed` if the database is
    /// closed. Then the batch must not be committed, because its units could be released twice.
    /// `self` still has the state before the batch.
    pub(crate) fn follow(&mut self, batch: &'a WriteBatch) -> Result<bool, StorageError> {
        let changes = || batch.rows().filter(|row| row.table == Table::Reservations);
        for row in changes().filter(|row| row.value.is_none()) {
            if let Entry::Vacant(place) = self.known.entry(row.key) {
                let found = self.table.get(row.key).map_err(reading("reservations"))?;
                place.insert(found.is_some());
            }
        }
        let mut all_exist = true;
        for row in changes() {
            let existed = self.known.insert(row.key, row.value.is_some());
            all_exist &= row.value.is_some() || existed == Some(true);
        }
        Ok(all_exist)
    }
}
