//! The quantities available for sale, by product and store.
//!
//! Each product has one row with a cell for each store, stores ascending. The search for the first
//! store with all products of an order compares sixteen stores at a time.
//!
//! **Invariants**
//! - Available = on hand - deducted. Here, on hand is the quantity of the current snapshot, with
//!   later changes of single cells (`step`). Deducted units are reserved, or their delivery is not
//!   counted by that snapshot.
//! - Deducted units are in separate cells. So a snapshot with the same layout replaces the
//!   quantities on hand in constant time, for any number of open orders.
//!
//! Deliberately absent: the reservations and deliveries themselves (`stock`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::order::Line;
use crate::domain::stock::Journal;
use crate::domain::stock_snapshot::{Column, NOWHERE, note};

/// Number of stores that are compared together: sixteen 32-bit cells fill one cache line and two
/// AVX2 registers.
pub(crate) const LANES: usize = 16;
/// Quantity of the cells that pad a row to a multiple of `LANES`: too low for any demand, and far
/// from overflow.
pub(crate) const NO_STORE: i32 = i32::MIN / 2;

/// The arrangement of the cells: one row for each product, one column for each store.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Row of each product, indexed by product id. `NOWHERE` for a product without a row.
    pub(crate) row_of: Vec<u32>,
    /// Store of each column, ascending.
    pub(crate) stores: Vec<u32>,
    /// Number of cells in a row: the number of stores, rounded up to a multiple of `LANES`.
    pub(crate) width: usize,
}

impl Layout {
    fn row(&self, product: u32) -> Option<usize> {
        match self.row_of.get(product as usize) {
            Some(&row) if row != NOWHERE => Some(row as usize),
            _ => None,
        }
    }

    fn cell(&self, product: u32, store: u32) -> Option<usize> {
        let row = self.row(product)?;
        let column = self.stores.binary_search(&store).ok()?;
        Some(row * self.width + column)
    }
}

/// Quantities on hand and deducted, by product and store.
#[derive(Debug, Default)]
pub(crate) struct StockMatrix {
    layout: Arc<Layout>,
    on_hand: Vec<i32>,
    /// Units that are reserved, or were delivered without being counted by the current snapshot.
    /// More than on hand if the snapshot has too few units.
    deducted: Vec<i32>,
    /// Changed cells, for the copies of this stock that other nodes keep.
    journal: Journal,
}

impl StockMatrix {
    /// Creates a matrix without deductions.
    pub(crate) fn new(layout: Arc<Layout>, on_hand: Vec<i32>) -> StockMatrix {
        StockMatrix {
            deducted: vec![0; on_hand.len()],
            layout,
            on_hand,
            journal: Journal::default(),
        }
    }

    /// Returns the record of changed cells.
    pub(crate) fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Returns the layout of the cells.
    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Replaces the quantities on hand, and keeps the deductions if the layouts are equal. If the
    /// layouts differ, all deductions become 0. Returns the former matrix, and `true` if the
    /// layouts are equal.
    pub(crate) fn replace(&mut self, other: StockMatrix) -> (StockMatrix, bool) {
        let mut before = std::mem::replace(self, other);
        self.journal = std::mem::take(&mut before.journal);
        self.journal.begin_generation();
        let same = Arc::ptr_eq(&before.layout, &self.layout) || before.layout == self.layout;
        if same {
            std::mem::swap(&mut self.deducted, &mut before.deducted);
        } else {
            // Write the zeros now. The kernel maps untouched zeros to one shared page, and the
            // first write to each page interrupts the other processors to flush their TLB. These
            // interrupts would slow down the first orders after the snapshot.
            std::hint::black_box(&mut self.deducted).fill(0);
        }
        (before, same)
    }

    /// Deducts units of a product in a store. Does nothing if the cell does not exist.
    pub(crate) fn deduct(&mut self, store: u32, line: Line) {
        if let Some(at) = self.layout.cell(line.id, store) {
            self.deducted[at] = self.deducted[at].saturating_add_unsigned(line.quantity);
            self.journal.note(at);
        }
    }

    /// Undoes the deduction of units of a product in a store. Does nothing if the cell does not
    /// exist.
    pub(crate) fn restore(&mut self, store: u32, line: Line) {
        if let Some(at) = self.layout.cell(line.id, store) {
            self.deducted[at] = self.deducted[at].saturating_sub_unsigned(line.quantity);
            self.journal.note(at);
        }
    }

    /// Returns `true` if the stock has a cell for a product in a store.
    pub(crate) fn has(&self, product: u32, store: u32) -> bool {
        self.layout.cell(product, store).is_some()
    }

    /// Returns `true` if the stock has a row for a product.
    pub(crate) fn has_product(&self, product: u32) -> bool {
        self.layout.row(product).is_some()
    }

    /// Changes the quantity on hand of a product in a store by a positive or negative number of
    /// units. Does nothing if the cell does not exist.
    pub(crate) fn step(&mut self, product: u32, store: u32, by: i32) {
        if let Some(at) = self.layout.cell(product, store) {
            self.on_hand[at] = self.on_hand[at].saturating_add(by);
            self.journal.note(at);
        }
    }

    fn available(&self, at: usize) -> i32 {
        self.on_hand[at].saturating_sub(self.deducted[at])
    }

    /// Returns the available quantities of a product, by store ascending. Empty for a product
    /// without a row.
    pub(crate) fn by_store(&self, product: u32) -> Vec<(u32, i32)> {
        let Some(row) = self.layout.row(product) else {
            return Vec::new();
        };
        let begin = row * self.layout.width;
        let stores = self.layout.stores.iter().enumerate();
        stores
            .map(|(column, store)| (*store, self.available(begin + column)))
            .collect()
    }

    /// Returns the available quantities in a store, by product ascending. `None` if the matrix has
    /// no such store.
    pub(crate) fn by_product(&self, store: u32) -> Option<Vec<(u32, i32)>> {
        let column = self.layout.stores.binary_search(&store).ok()?;
        let rows = self.layout.row_of.iter().enumerate();
        let rows = rows.filter(|(_, row)| **row != NOWHERE);
        let cells = rows.map(|(product, row)| {
            let at = *row as usize * self.layout.width + column;
            (product as u32, self.available(at))
        });
        Some(cells.collect())
    }

    /// Adds or replaces the stores in `columns`, which then have no deductions. `products` names
    /// the product of each row: first the known products in their present order, then the new
    /// products.
    pub(crate) fn add_stores(&mut self, products: &[u32], columns: &[Column]) {
        let mut row_of = self.layout.row_of.clone();
        for (row, product) in products.iter().enumerate() {
            note(&mut row_of, *product, row);
        }
        let mut stores = self.layout.stores.clone();
        stores.extend(columns.iter().map(|column| column.store));
        stores.sort_unstable();
        stores.dedup();
        self.arrange(row_of, stores, products.len().max(self.rows()), columns);
    }

    /// Keeps only the stores for which `stays` returns `true`.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        let stores = self.layout.stores.iter().copied();
        let stores = stores.filter(|store| stays(*store)).collect();
        self.arrange(self.layout.row_of.clone(), stores, self.rows(), &[]);
    }

    fn rows(&self) -> usize {
        self.on_hand.len() / self.layout.width.max(1)
    }

    /// Rebuilds the cells for these stores, ascending, and this number of rows. The quantities of a
    /// store come from `columns` if the store is listed there, or else from the existing cells,
    /// with their deductions. All other quantities and deductions are 0, except for the quantities
    /// of padding cells (`NO_STORE`).
    fn arrange(&mut self, row_of: Vec<u32>, stores: Vec<u32>, rows: usize, columns: &[Column]) {
        enum Origin<'a> {
            Nowhere,
            Here(usize),
            There(&'a [i32]),
        }
        let width = stores.len().next_multiple_of(LANES);
        let before = &self.layout;
        let there: HashMap<u32, &[i32]> = columns
            .iter()
            .map(|column| (column.store, &column.quantities[..]))
            .collect();
        let from = |store: &u32| match (there.get(store), before.stores.binary_search(store)) {
            (Some(quantities), _) => Origin::There(quantities),
            (None, Ok(at)) => Origin::Here(at),
            (None, Err(_)) => Origin::Nowhere,
        };
        let from: Vec<Origin<'_>> = stores.iter().map(from).collect();
        // The loop goes row by row. For sixteen rows it reads one cache line of each new column.
        // The lines of some hundred columns fit into the first-level cache together.
        let rearranged = |known: &[i32], filling: i32, takes_quantities: bool| {
            let mut cells = vec![0; rows * width];
            let mut known = known.chunks_exact(before.width.max(1));
            for (at, row) in cells.chunks_exact_mut(width.max(1)).enumerate() {
                let known = known.next().unwrap_or_default();
                for (cell, from) in row.iter_mut().zip(&from) {
                    let quantity = match from {
                        Origin::Here(column) => known.get(*column),
                        Origin::There(quantities) if takes_quantities => quantities.get(at),
                        Origin::There(_) | Origin::Nowhere => None,
                    };
                    *cell = quantity.copied().unwrap_or(0);
                }
                row[stores.len()..].fill(filling);
            }
            cells
        };
        self.on_hand = rearranged(&self.on_hand, NO_STORE, true);
        self.deducted = rearranged(&self.deducted, 0, false);
        self.layout = Arc::new(Layout {
            row_of,
            stores,
            width,
        });
        self.journal.begin_generation();
    }

    /// Returns the stores, ascending.
    pub(crate) fn stores(&self) -> &[u32] {
        &self.layout.stores
    }

    /// Returns the store with the lowest id that has every demanded quantity available. `None` if
    /// there is no such store. `demands` names each product once.
    pub(crate) fn first_store(&self, demands: &[Line]) -> Option<u32> {
        let mut rows: [Row<'_>; 4] = [Row::default(); 4];
        // Most orders have few products. An array on the stack holds the rows of up to four
        // products without an allocation.
        if demands.len() <= rows.len() {
            for (slot, line) in rows.iter_mut().zip(demands) {
                *slot = self.row(line)?;
            }
            return self.scan(&rows[..demands.len()]);
        }
        let rows = demands
            .iter()
            .map(|line| self.row(line))
            .collect::<Option<Vec<_>>>()?;
        self.scan(&rows)
    }

    /// Returns `true` if this store has every demanded quantity available. `demands` names each
    /// product once.
    pub(crate) fn has_all(&self, store: u32, demands: &[Line]) -> bool {
        demands.iter().all(|line| {
            let at = self.layout.cell(line.id, store);
            at.is_some_and(|at| self.available(at) >= line.quantity as i32)
        })
    }

    /// Returns the available quantity of the cell with this index. `None` if the index is out of
    /// range.
    pub(crate) fn available_at(&self, at: u32) -> Option<i32> {
        let at = at as usize;
        (at < self.on_hand.len()).then(|| self.available(at))
    }

    /// Sets the available quantity of the cell with this index. Returns `false` if the index is out
    /// of range.
    pub(crate) fn set_available_at(&mut self, at: u32, available: i32) -> bool {
        let Some(cell) = self.on_hand.get_mut(at as usize) else {
            return false;
        };
        *cell = available.saturating_add(self.deducted[at as usize]);
        true
    }

    /// Sets the available quantity of a product in a store. Does nothing if the cell does not
    /// exist.
    pub(crate) fn set_available(&mut self, product: u32, store: u32, available: i32) {
        if let Some(at) = self.layout.cell(product, store) {
            self.on_hand[at] = available.saturating_add(self.deducted[at]);
        }
    }

    /// Returns the available quantity of a product in a store. `None` if there is no such cell.
    pub(crate) fn available_in(&self, product: u32, store: u32) -> Option<i32> {
        self.layout.cell(product, store).map(|at| self.available(at))
    }

    /// Returns the product of each row.
    pub(crate) fn products(&self) -> Vec<u32> {
        let mut products = vec![0; self.rows()];
        for (product, row) in (0..).zip(&self.layout.row_of) {
            if *row != NOWHERE
                && let Some(place) = products.get_mut(*row as usize)
            {
                *place = product;
            }
        }
        products
    }

    /// Returns the available quantities of whole rows from row `first` on, without the padding
    /// cells. Returns at most `cells` quantities, but at least one row if row `first` exists.
    pub(crate) fn available_rows(&self, first: usize, cells: usize) -> Vec<i32> {
        let stores = self.layout.stores.len();
        let count = (cells / stores.max(1)).max(1);
        let rows = first..(first.saturating_add(count)).min(self.rows());
        let row = |row: usize| {
            let begin = row * self.layout.width;
            (begin..begin + stores).map(|at| self.available(at))
        };
        rows.flat_map(row).collect()
    }

    fn row(&self, line: &Line) -> Option<Row<'_>> {
        let begin = self.layout.row(line.id)? * self.layout.width;
        let cells = begin..begin + self.layout.width;
        Some(Row {
            on_hand: &self.on_hand[cells.clone()],
            deducted: &self.deducted[cells],
            wanted: line.quantity as i32,
        })
    }

    fn scan(&self, rows: &[Row<'_>]) -> Option<u32> {
        for block in (0..self.layout.width).step_by(LANES) {
            // A store lacks units if the difference is negative for any product, so the sign bits
            // are combined. On hand, deducted and wanted units are each at most about
            // `QUANTITY_MAX`, which is less than half of `i32::MAX`, so no difference wraps.
            let mut lacking = [0i32; LANES];
            for row in rows {
                let on_hand = &row.on_hand[block..block + LANES];
                let deducted = &row.deducted[block..block + LANES];
                for ((lane, on_hand), deducted) in lacking.iter_mut().zip(on_hand).zip(deducted) {
                    *lane |= on_hand.wrapping_sub(*deducted).wrapping_sub(row.wanted);
                }
            }
            if let Some(lane) = lacking.iter().position(|lane| *lane >= 0) {
                return Some(self.layout.stores[block + lane]);
            }
        }
        None
    }
}

/// The cells of one product and the wanted number of units.
#[derive(Clone, Copy, Default)]
struct Row<'a> {
    on_hand: &'a [i32],
    deducted: &'a [i32],
    wanted: i32,
}
