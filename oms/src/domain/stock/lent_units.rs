//! Units of the stock that are lent to other volumes (`domain::loans`).

use std::collections::BTreeMap;

use imt_ring::NodeName;

use crate::domain::loans::{Loan, Loans};
use crate::domain::order::Line;
use crate::domain::stock::{Cell, Stock};

/// Number of free units of a product in a store below which its lent units are recalled. The return
/// of lent units takes a few messages. Orders take the remaining free units in the meantime, so
/// most orders need not wait.
pub(crate) const RECALL_BELOW: u32 = if cfg!(test) { 2 } else { 256 };

/// The outcome of a search for the units of an order in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The store has all units of the order free.
    Free,
    /// The store has all units of the order, but some are lent to other volumes. The lent units are
    /// being recalled.
    Lent,
    /// The store has too few units of the order, even with the lent units.
    Short,
}

impl Stock {
    /// Checks if the units of an order are free in a store. The caller has checked that they are
    /// available, lent units included. If a product has too few free units for the order, its lent
    /// units are recalled.
    pub(crate) fn find_free(&mut self, store: u32, lines: &[Line]) -> Found {
        if !self.loans.any() {
            return Found::Free;
        }
        self.sum_demands(lines);
        let mut found = Found::Free;
        for line in &self.demands {
            if self.free(store, line.id) < i64::from(line.quantity) {
                found = Found::Lent;
                self.loans.recall(store, line.id);
            }
        }
        found
    }

    /// Returns the units of a product in a store that are neither reserved nor lent. Negative if
    /// the store has fewer units than are reserved and lent.
    pub(crate) fn free(&self, store: u32, product: u32) -> i64 {
        let available = self.matrix.available_in(product, store).unwrap_or(0);
        i64::from(available) - i64::from(self.loans.of(store, product))
    }

    /// Recalls the lent units of a product in a store if fewer than `RECALL_BELOW` of its units are
    /// free.
    pub(super) fn recall_if_scarce(&mut self, store: u32, product: u32) {
        if self.loans.of(store, product) > 0 && self.free(store, product) < i64::from(RECALL_BELOW) {
            self.loans.recall(store, product);
        }
    }

    /// Returns the loans from this volume's stores to other volumes.
    pub(crate) fn loans(&mut self) -> &mut Loans {
        &mut self.loans
    }

    /// Returns `true` if, in each store, the units on hand suffice for all deducted and lent units
    /// of each lent product. After a new snapshot with fewer units, they may not suffice.
    pub(crate) fn covers_loans(&self) -> bool {
        let stores = self.loans.stores().into_iter();
        let mut cells = stores.flat_map(|store| {
            let products = self.loans.products(store).into_iter();
            products.map(move |product| Cell { product, store })
        });
        cells.all(|cell| {
            self.loans.of(cell.store, cell.product) == 0 || self.free(cell.store, cell.product) >= 0
        })
    }

    /// Adds the loans of stores that were read from this volume's rows, at its opening or after a
    /// migration to it.
    pub(crate) fn add_loans(&mut self, loans: BTreeMap<(u32, NodeName), Loan>, now_ms: u64) {
        for ((store, borrower), loan) in loans {
            self.loans.set(store, &borrower, loan, now_ms);
        }
    }

    /// Recalls the lent units of each product in each store where fewer than `RECALL_BELOW` of its
    /// units are free.
    pub(crate) fn recall_scarce(&mut self) {
        for store in self.loans.stores() {
            for product in self.loans.products(store) {
                self.recall_if_scarce(store, product);
            }
        }
    }
}
