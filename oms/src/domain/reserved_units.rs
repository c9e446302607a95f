//! Reserved units by store and product. `loans` counts lent units in the same way.
//!
//! The outer map has the stores as keys, so that a store that migrates to another volume is removed
//! with all its reserved units in one step.

use std::collections::{BTreeMap, HashMap};

use crate::domain::order::Line;

/// The reserved quantity of each product in each store.
#[derive(Debug, Default)]
pub(crate) struct ReservedUnits(BTreeMap<u32, HashMap<u32, u32>>);

impl ReservedUnits {
    /// Adds the units of these lines to the reserved units of a store.
    pub(crate) fn add(&mut self, store: u32, lines: &[Line]) {
        let reserved = self.0.entry(store).or_default();
        for line in lines {
            *reserved.entry(line.id).or_default() += line.quantity;
        }
    }

    /// Removes the units of a line from the reserved units of a store. Returns `false` if the store
    /// had no reserved units of the product.
    pub(crate) fn take(&mut self, store: u32, line: Line) -> bool {
        let Some(reserved) = self.0.get_mut(&store) else {
            return false;
        };
        let Some(quantity) = reserved.get_mut(&line.id) else {
            return false;
        };
        debug_assert!(
            *quantity >= line.quantity,
            "more units are released than were reserved"
        );
        *quantity = quantity.saturating_sub(line.quantity);
        if *quantity == 0 {
            reserved.remove(&line.id);
        }
        true
    }

    /// Returns the reserved quantity of a product in a store.
    pub(crate) fn of(&self, store: u32, product: u32) -> u32 {
        let reserved = self.0.get(&store).and_then(|reserved| reserved.get(&product));
        reserved.copied().unwrap_or(0)
    }

    /// Calls `take` with each store, product and reserved quantity.
    pub(crate) fn each(&self, mut take: impl FnMut(u32, Line)) {
        for (store, reserved) in &self.0 {
            for (&id, &quantity) in reserved {
                take(*store, Line { id, quantity });
            }
        }
    }

    /// Adds the stores of `others`, for example stores that migrate to this volume. If a store is
    /// in both, the units in `others` replace the known ones.
    pub(crate) fn join(&mut self, others: ReservedUnits) {
        self.0.extend(others.0);
    }

    /// Keeps only the stores for which `stays` returns `true`. The other stores migrate to another
    /// volume.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        self.0.retain(|store, _| stays(*store));
    }
}
