//! A stock snapshot, as uploaded or as stored in a volume: quantities by product and store.
//!
//! Lines are written into one row of cells per product, with one cell for each store. The warehouse
//! sorts its lines by product and store, and the search for a store needs the same layout
//! (`stock_matrix`). So the cells are written in sequence. They become the current stock without
//! another copy if the stores are ascending and the rows are not wider than necessary.
//!
//! A snapshot *counts* a delivery if its quantities are already without the delivered units.
//!
//! **Invariants**
//! - Rows and columns of an upload are numbered by the first appearance of their product or store.
//!   So the number of cells depends on the numbers of products and stores, not on their ids.
//! - Limits: product 1 to 1,000,000; store 1 to 10,000; quantity up to 1,000,000,000; products x
//!   stores up to 15 million.
//! - If several lines name the same product and store, the last line decides the quantity.
//!
//! Deliberately absent: reservations and deliveries (`stock`), and the text of the lines (`csv`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::csv::FieldFault;
use crate::domain::stock::{CountedTo, StockHead};
use crate::domain::stock_matrix::{LANES, Layout, NO_STORE, StockMatrix};

/// Largest product id. The table from product to row has four bytes for each id up to the largest
/// id in use.
pub(crate) const PRODUCT_MAX: u32 = 1_000_000;
/// Largest store id.
pub(crate) const STORE_MAX: u32 = 10_000;
/// Largest quantity of one product in one store. At most this many units of a product in a store
/// can be reserved. So the sum of quantity and reserved units fits into 32 bits.
pub(crate) const QUANTITY_MAX: u32 = 1_000_000_000;
/// Maximum number of cells (product in store) of a snapshot: seven times the size of a typical
/// stock. A snapshot with new products or stores is one atomic batch, and a batch of the volume has
/// at most 64 MiB: 15 million cells of 4 bytes fit.
pub(crate) const CELLS_MAX: usize = 15_000_000;

/// Value for an id without a row or column, in a table from ids to rows or columns.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// The quantities of one store, by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) store: u32,
    pub(crate) quantities: Vec<i32>,
    pub(crate) counted_to: CountedTo,
}

/// A snapshot, complete or still being filled line by line: quantities by product and store.
#[derive(Clone, Debug, Default)]
pub(crate) struct StockSnapshot {
    products: Vec<u32>,
    row_of: Vec<u32>,
    /// Store of each column.
    stores: Vec<u32>,
    column_of: Vec<u32>,
    /// Number of cells of a row: a multiple of `LANES`, and at least the number of stores.
    width: usize,
    cells: Vec<i32>,
    /// Last delivery that a store's quantities count, for each store with a number of its own. Only
    /// a snapshot from the rows of a volume can have such stores.
    counted_to: BTreeMap<u32, CountedTo>,
    /// Last delivery that the quantities of the stores not in `counted_to` count.
    counted_to_default: CountedTo,
}

/// Records the row or column of an id in a table.
pub(crate) fn note(places: &mut Vec<u32>, id: u32, place: usize) {
    let at = id as usize;
    if places.len() <= at {
        places.resize(at + 1, NOWHERE);
    }
    places[at] = place as u32;
}

/// Returns the row or column of an id. `None` if the id has none.
fn place(places: &[u32], id: u32) -> Option<usize> {
    match places.get(id as usize) {
        Some(&place) if place != NOWHERE => Some(place as usize),
        _ => None,
    }
}

impl StockSnapshot {
    /// Creates a snapshot from the rows of a volume.
    pub(crate) fn from_rows(products: Vec<u32>, mut columns: Vec<Column>) -> StockSnapshot {
        columns.sort_unstable_by_key(|column| column.store);
        let width = columns.len().next_multiple_of(LANES);
        let mut snapshot = StockSnapshot {
            cells: vec![0; products.len() * width],
            width,
            products,
            ..StockSnapshot::default()
        };
        for (row, product) in snapshot.products.iter().enumerate() {
            note(&mut snapshot.row_of, *product, row);
        }
        for (at, column) in columns.iter().enumerate() {
            note(&mut snapshot.column_of, column.store, at);
            snapshot.stores.push(column.store);
            if column.counted_to != CountedTo::OfVolume {
                snapshot.counted_to.insert(column.store, column.counted_to);
            }
        }
        // The cells of sixteen consecutive stores (a block) share one cache line in each row.
        for (block, stores) in columns.chunks(LANES).enumerate() {
            for (lane, column) in stores.iter().enumerate() {
                let rows = snapshot.cells.chunks_exact_mut(width);
                for (row, quantity) in rows.zip(&column.quantities) {
                    row[block * LANES + lane] = *quantity;
                }
            }
        }
        snapshot
    }

    /// Sets the quantity of one line: product, store, quantity. Fails if the line exceeds one of
    /// the limits of a snapshot, or would add too many cells.
    #[inline]
    pub(crate) fn set(&mut self, [product, store, quantity]: [u32; 3]) -> Result<(), FieldFault> {
        let row = match place(&self.row_of, product) {
            Some(row) => row,
            None => self.add_product(product)?,
        };
        let column = match place(&self.column_of, store) {
            Some(column) => column,
            None => self.add_store(store)?,
        };
        if quantity > QUANTITY_MAX {
            return StockSnapshot::check([product, store, quantity]);
        }
        self.cells[row * self.width + column] = quantity as i32;
        Ok(())
    }

    /// Ensures that a product has a cell in each store, with quantity 0 if no line sets it. Fails
    /// if the id is out of range, or if the product would add too many cells.
    pub(crate) fn name_product(&mut self, product: u32) -> Result<(), FieldFault> {
        if place(&self.row_of, product).is_none() {
            self.add_product(product)?;
        }
        Ok(())
    }

    /// Rejects a product or store that would make the stock too large. The matrix has a cell for
    /// each product in each store, however few of them have a line.
    fn check_cells(field: usize, products: usize, stores: usize) -> Result<(), FieldFault> {
        if products * stores <= CELLS_MAX {
            return Ok(());
        }
        let reason =
            format!("the stock would have {products} products x {stores} stores, over {CELLS_MAX} cells");
        Err(FieldFault { field, reason })
    }

    /// Checks that product, store and quantity of a line are within their limits. The number of
    /// cells is not checked.
    pub(crate) fn check([product, store, quantity]: [u32; 3]) -> Result<(), FieldFault> {
        let (field, reason) = if product == 0 || product > PRODUCT_MAX {
            (0, format!("a product id is 1 to {PRODUCT_MAX}"))
        } else if store == 0 || store > STORE_MAX {
            (1, format!("a store id is 1 to {STORE_MAX}"))
        } else if quantity > QUANTITY_MAX {
            (2, format!("the quantity is larger than {QUANTITY_MAX}"))
        } else {
            return Ok(());
        };
        Err(FieldFault { field, reason })
    }

    #[cold]
    fn add_product(&mut self, product: u32) -> Result<usize, FieldFault> {
        StockSnapshot::check([product, 1, 0])?;
        StockSnapshot::check_cells(0, self.products.len() + 1, self.stores.len())?;
        let row = self.products.len();
        note(&mut self.row_of, product, row);
        self.products.push(product);
        self.cells.resize(self.products.len() * self.width, 0);
        Ok(row)
    }

    #[cold]
    fn add_store(&mut self, store: u32) -> Result<usize, FieldFault> {
        StockSnapshot::check([1, store, 0])?;
        StockSnapshot::check_cells(1, self.products.len(), self.stores.len() + 1)?;
        let column = self.stores.len();
        if column == self.width {
            // The width grows by at least a quarter, so that not every new store causes a copy of
            // all cells.
            let columns: Vec<usize> = (0..column).collect();
            let width = (column + column / 4 + 1).next_multiple_of(LANES);
            self.cells = self.rearranged(&columns, width);
            self.width = width;
        }
        note(&mut self.column_of, store, column);
        self.stores.push(store);
        Ok(column)
    }

    /// Returns the cells of these columns, in this order, in rows of `width` cells.
    fn rearranged(&self, columns: &[usize], width: usize) -> Vec<i32> {
        let mut cells = vec![0; self.products.len() * width];
        if self.width > 0 && width > 0 {
            let rows = self.cells.chunks_exact(self.width);
            for (to, from) in cells.chunks_exact_mut(width).zip(rows) {
                for (cell, column) in to.iter_mut().zip(columns) {
                    *cell = from[*column];
                }
            }
        }
        cells
    }

    /// Returns the product of each row.
    pub(crate) fn products(&self) -> &[u32] {
        &self.products
    }

    /// Returns the store of each column.
    pub(crate) fn stores(&self) -> &[u32] {
        &self.stores
    }

    /// Returns `true` if the snapshot has this store.
    pub(crate) fn has_store(&self, store: u32) -> bool {
        place(&self.column_of, store).is_some()
    }

    /// Returns the quantity of a product in a store. 0 if no line has set it.
    pub(crate) fn quantity(&self, product: u32, store: u32) -> i32 {
        match (place(&self.row_of, product), place(&self.column_of, store)) {
            (Some(row), Some(column)) => self.cells[row * self.width + column],
            _ => 0,
        }
    }

    /// Sets the number of the last delivery that is counted by the quantities of every store
    /// without a number of its own. `None` if the upload states no number.
    pub(crate) fn counts_to(&mut self, sequence: Option<u64>) {
        self.counted_to_default = CountedTo::Delivery(sequence);
    }

    /// Returns the last delivery that the quantities of a store count.
    pub(crate) fn counted_to(&self, store: u32) -> CountedTo {
        self.counted_to
            .get(&store)
            .copied()
            .unwrap_or(self.counted_to_default)
    }

    /// Returns the stores that count deliveries up to another number than `head.counted_to`, each
    /// with that number.
    pub(crate) fn counted_to_overrides(&self, head: &StockHead) -> BTreeMap<u32, Option<u64>> {
        let all = self
            .stores
            .iter()
            .map(|store| (*store, self.counted_to(*store).resolve(head)));
        all.filter(|(_, counted_to)| *counted_to != head.counted_to)
            .collect()
    }

    /// Calls `take` with each store and its quantities by row.
    pub(crate) fn each_store(&self, mut take: impl FnMut(u32, &[i32])) {
        let mut columns = vec![vec![0; self.products.len()]; LANES];
        // Sixteen stores are read at a time, because their cells share a cache line.
        for (block, stores) in self.stores.chunks(LANES).enumerate() {
            let rows = self.cells.chunks_exact(self.width);
            for (at, row) in rows.enumerate() {
                let lanes = &row[block * LANES..][..LANES];
                for (column, quantity) in columns.iter_mut().zip(lanes) {
                    column[at] = *quantity;
                }
            }
            for (store, quantities) in stores.iter().zip(&columns) {
                take(*store, quantities);
            }
        }
    }

    /// Returns `true` if the snapshot has the products and stores of this layout in the same rows
    /// and columns.
    pub(crate) fn has_layout(&self, layout: &Layout) -> bool {
        self.row_of == layout.row_of && self.stores == layout.stores
    }

    /// Returns the snapshot as a matrix with ascending stores. The matrix shares `known` if the
    /// layouts are equal.
    pub(crate) fn into_matrix(self, known: &Arc<Layout>) -> StockMatrix {
        let mut columns: Vec<usize> = (0..self.stores.len()).collect();
        columns.sort_unstable_by_key(|column| self.stores[*column]);
        let count = columns.len();
        let width = count.next_multiple_of(LANES);
        let is_in_place = width == self.width && columns.is_sorted();
        let mut cells = if is_in_place {
            self.cells
        } else {
            self.rearranged(&columns, width)
        };
        for row in cells.chunks_exact_mut(width.max(1)) {
            row[count..].fill(NO_STORE);
        }
        let layout = Layout {
            row_of: self.row_of,
            stores: columns.iter().map(|column| self.stores[*column]).collect(),
            width,
        };
        let is_known = layout == **known;
        StockMatrix::new(
            if is_known {
                Arc::clone(known)
            } else {
                Arc::new(layout)
            },
            cells,
        )
    }
}

#[cfg(test)]
mod tests;
