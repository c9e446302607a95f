//! Units promised, by store and product.
//!
//! By store first, since stores come and go with all that is promised of them when slots move.

use std::collections::{BTreeMap, HashMap};

use crate::domain::order::Line;

/// How much is promised of each product in each store.
#[derive(Debug, Default)]
pub(crate) struct ReservedUnits(BTreeMap<u32, HashMap<u32, u32>>);

impl ReservedUnits {
    /// Promises units of a store.
    pub(crate) fn add(&mut self, store: u32, lines: &[Line]) {
        let reserved = self.0.entry(store).or_default();
        for line in lines {
            *reserved.entry(line.id).or_default() += line.quantity;
        }
    }

    /// Promises units no longer; false if none were.
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

    /// How much is promised of a product in a store.
    pub(crate) fn of(&self, store: u32, product: u32) -> u32 {
        let reserved = self.0.get(&store).and_then(|reserved| reserved.get(&product));
        reserved.copied().unwrap_or(0)
    }

    /// Everything, store by store.
    pub(crate) fn each(&self, mut take: impl FnMut(u32, Line)) {
        for (store, reserved) in &self.0 {
            for (&id, &quantity) in reserved {
                take(*store, Line { id, quantity });
            }
        }
    }

    /// Takes in what is promised of stores that come.
    pub(crate) fn join(&mut self, others: ReservedUnits) {
        self.0.extend(others.0);
    }

    /// Forgets stores that go.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        self.0.retain(|store, _| stays(*store));
    }
}
