//! Writes of a commit group that are in the log but not visible yet.
//!
//! - Later commits of the group are checked against these writes.
//! - A transaction that runs again inside the group (that has its *turn*, see `group`) looks for a
//!   key in these writes first, then in the visible state.
//! - Clearing or dropping a table is treated as a write of every key, also of absent keys.
//!
//! Deliberately absent: values, which are read from the log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::directory::{KeyHash, Location};
use crate::engine::body::Body;
use crate::engine::catalog::{CatalogChange, TableCore};
use crate::engine::log::Place;
use crate::error::{Error, Result};
use crate::format::record::RecordKind;
use crate::seeded::seeded;

/// State of a key after the commits that the group has appended so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pending {
    /// The group has not written the key. The directory has the record of the key, if there is one.
    Untouched,
    /// The group has cleared the table, and has not written the key since.
    Absent,
    /// Location of the group's last put or deletion of the key, or of another key with the same
    /// hash. A reader compares the key of the record.
    At(Location),
}

/// Writes of a group by key, and the tables that the group clears and drops.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupWrites {
    /// Location of the last put or deletion, by table and key hash.
    keys: HashMap<(u32, u64), Location>,
    cleared: HashSet<u32>,
    dropped: HashSet<u32>,
}

impl GroupWrites {
    /// Adds a commit that was appended at `place`.
    pub(crate) fn add(
        &mut self,
        body: &Body,
        tables: &[Arc<TableCore>],
        change: Option<&CatalogChange>,
        place: Place,
    ) {
        for op in &body.ops {
            let table = tables[op.table as usize].id;
            let at = Location::new(place.segment, place.body_at + op.at);
            match op.kind {
                RecordKind::Put | RecordKind::Delete => _ = self.keys.insert((table, op.hash.0), at),
                RecordKind::Clear => {
                    self.keys.retain(|(id, _), _| *id != table);
                    self.cleared.insert(table);
                }
            }
        }
        match change {
            Some(CatalogChange::Drop(table)) => _ = self.dropped.insert(table.id),
            Some(CatalogChange::Replace { dropped, .. }) => {
                self.dropped.extend(dropped.iter().map(|table| table.id));
            }
            Some(CatalogChange::Create(_) | CatalogChange::Rename { .. }) | None => {}
        }
    }

    /// Returns the state of the key with this hash after the commits that the group has appended so
    /// far.
    pub(crate) fn key(&self, table: u32, hash: KeyHash) -> Pending {
        match self.keys.get(&(table, hash.0)) {
            Some(location) => Pending::At(*location),
            None if self.cleared.contains(&table) && !seeded("clear-conflicts-with-nothing") => {
                Pending::Absent
            }
            None => Pending::Untouched,
        }
    }

    /// Returns `true` if the group writes the key (or another key with the same hash), or clears or
    /// drops its table.
    pub(crate) fn touches(&self, table: u32, hash: KeyHash) -> bool {
        self.key(table, hash) != Pending::Untouched || self.dropped.contains(&table)
    }

    /// Refuses a commit to a table that was dropped by an earlier commit of this group, or before
    /// the group.
    ///
    /// # Errors
    /// [`Error::TableDropped`] if the table was dropped.
    pub(crate) fn check_not_dropped(&self, table: &TableCore) -> Result<()> {
        if self.dropped.contains(&table.id) && !seeded("dropped-table-accepts-commits") {
            return Err(Error::TableDropped { name: table.name() });
        }
        table.check_not_dropped()
    }
}
