//! Which reservations there are while a group of changes is put together: whether one that is to
//! end is there at all.
//!
//! Units are given back in memory only if the commit that ends their reservation found it. One
//! look-up for each reservation that ends, and none for those that begin.

use std::collections::HashMap;

/// Which reservations there are, change by change of a group that is not committed yet.
pub(crate) struct Reservations<'a> {
    table: &'a microdb::Table,
    changed: HashMap<&'a [u8], bool>,
}

impl<'a> Reservations<'a> {
    /// Those of the volume, before any change.
    pub(crate) fn over(table: &'a microdb::Table) -> Reservations<'a> {
        Reservations {
            table,
            changed: HashMap::new(),
        }
    }

    /// Notes that a row is put or removed; false if one is removed that is not there.
    pub(crate) fn follow(&mut self, key: &'a [u8], is_put: bool) -> bool {
        let before = self.changed.insert(key, is_put);
        // A row that cannot be read is there.
        is_put || before.unwrap_or_else(|| self.table.get(key).map_or(true, |row| row.is_some()))
    }
}
