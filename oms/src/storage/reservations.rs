//! Existence of reservations while a group of batches is assembled.
//!
//! Units are released in memory only if the commit that removes their reservation found it. So each
//! removal needs a look-up, which must include the earlier batches of the same group. A new
//! reservation needs none.

use std::collections::HashMap;

/// Existence of reservations in the volume, with the batches of an uncommitted group applied.
pub(crate) struct Reservations<'a> {
    table: &'a microdb::Table,
    changed: HashMap<&'a [u8], bool>,
}

impl<'a> Reservations<'a> {
    /// Starts with the reservations of the volume.
    pub(crate) fn over(table: &'a microdb::Table) -> Reservations<'a> {
        Reservations {
            table,
            changed: HashMap::new(),
        }
    }

    /// Records that a row is written or removed. Returns `false` if the removed row does not exist.
    pub(crate) fn follow(&mut self, key: &'a [u8], is_put: bool) -> bool {
        let before = self.changed.insert(key, is_put);
        // A row that cannot be read counts as existing, so that its removal is written.
        is_put || before.unwrap_or_else(|| self.table.get(key).map_or(true, |row| row.is_some()))
    }
}
