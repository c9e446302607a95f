//! Tracks the existence of reservations while a group of batches is assembled.
//!
//! Units are released in memory only if the commit that removes their reservation found that
//! reservation, or could not look for it. So each removal needs a look-up, which must include the
//! earlier batches of the same group. A new reservation needs no look-up.

use std::collections::HashMap;

/// The existence of reservations after all batches that were added to a group so far.
pub(crate) struct Reservations<'a> {
    table: &'a microdb::Table,
    changed: HashMap<&'a [u8], bool>,
}

impl<'a> Reservations<'a> {
    /// Creates the state before the first batch of a group: the reservations in the table.
    pub(crate) fn over(table: &'a microdb::Table) -> Reservations<'a> {
        Reservations {
            table,
            changed: HashMap::new(),
        }
    }

    /// Records that the row of `key` is written (`is_put`) or removed. Returns `false` if a row to
    /// remove does not exist.
    pub(crate) fn follow(&mut self, key: &'a [u8], is_put: bool) -> bool {
        let before = self.changed.insert(key, is_put);
        // If the row cannot be read, it is treated as existing, so that its units are released.
        is_put || before.unwrap_or_else(|| self.table.get(key).map_or(true, |row| row.is_some()))
    }
}
