//! A whole stock as it arrives: quantities by product and store.
//!
//! A snapshot is read line by line into one row of cells per product, a cell for each store: the
//! layout in which orders look for the first store that has everything (`stock_matrix`), and that
//! in which the warehouse writes its lines, so that two million of them are written one behind the
//! other and put in force without being moved again. Rows are numbered as products appear, columns
//! as stores do, so any id within the limits costs only what is used.
//!
//! Limits: product 1 to 1,000,000, store 1 to 10,000, quantity up to a thousand million, products x
//! stores 15 million. A line that appears twice counts once, with its last quantity.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::csv::FieldFault;
use crate::domain::stock::{CountedTo, StockHead};
use crate::domain::stock_matrix::{LANES, Layout, NO_STORE, StockMatrix};

/// Largest product id: the table that finds a product's row holds four bytes for each id up to the
/// largest.
pub(crate) const PRODUCT_MAX: u32 = 1_000_000;
/// Largest store id.
pub(crate) const STORE_MAX: u32 = 10_000;
/// Largest quantity of one product in one store: sums of what is promised of it then fit 32 bits.
pub(crate) const QUANTITY_MAX: u32 = 1_000_000_000;
/// Most cells (product in store) of a snapshot: seven times the usual stock. A snapshot is one
/// atomic batch, and a batch of the volume holds at most 64 MiB.
pub(crate) const CELLS_MAX: usize = 15_000_000;

/// Where an id has no row or column.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// The quantities of one store by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) store: u32,
    pub(crate) quantities: Vec<i32>,
    pub(crate) counted_to: CountedTo,
}

/// A stock by product and store.
#[derive(Clone, Debug, Default)]
pub(crate) struct StockSnapshot {
    products: Vec<u32>,
    row_of: Vec<u32>,
    /// In the order in which they appeared.
    stores: Vec<u32>,
    column_of: Vec<u32>,
    /// Cells of a row: whole lanes, and room for some more stores.
    width: usize,
    cells: Vec<i32>,
    /// What the stores of the rows that it was made from say.
    counted_to: BTreeMap<u32, CountedTo>,
    /// What all others count.
    counted_to_else: CountedTo,
}

/// Notes the place of an id.
pub(crate) fn note(places: &mut Vec<u32>, id: u32, place: usize) {
    let at = id as usize;
    if places.len() <= at {
        places.resize(at + 1, NOWHERE);
    }
    places[at] = place as u32;
}

/// The place of an id.
fn place(places: &[u32], id: u32) -> Option<usize> {
    match places.get(id as usize) {
        Some(&place) if place != NOWHERE => Some(place as usize),
        _ => None,
    }
}

impl StockSnapshot {
    /// The sheet that the volume's rows make.
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
        // Sixteen stores at a time: their cells of one product are one cache line.
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

    /// Takes one line: product, store, quantity.
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

    /// Gives a product a cell in each store, empty if no line sets it.
    pub(crate) fn name_product(&mut self, product: u32) -> Result<(), FieldFault> {
        if place(&self.row_of, product).is_none() {
            self.add_product(product)?;
        }
        Ok(())
    }

    /// Refuses a product or store that would make the stock too large: the shelves have a cell for
    /// each of either, however few lines name both.
    fn check_cells(field: usize, products: usize, stores: usize) -> Result<(), FieldFault> {
        if products * stores <= CELLS_MAX {
            return Ok(());
        }
        let reason =
            format!("the stock would have {products} products x {stores} stores, over {CELLS_MAX} cells");
        Err(FieldFault { field, reason })
    }

    /// Says whether a line is within the limits.
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
            // By a quarter, so that stores that come one by one do not move everything each time.
            let columns: Vec<usize> = (0..column).collect();
            let width = (column + column / 4 + 1).next_multiple_of(LANES);
            self.cells = self.laid_out(&columns, width);
            self.width = width;
        }
        note(&mut self.column_of, store, column);
        self.stores.push(store);
        Ok(column)
    }

    /// The cells of these columns in this order, in rows of another width.
    fn laid_out(&self, columns: &[usize], width: usize) -> Vec<i32> {
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

    /// Products by row.
    pub(crate) fn products(&self) -> &[u32] {
        &self.products
    }

    /// Stores in the order in which they appeared.
    pub(crate) fn stores(&self) -> &[u32] {
        &self.stores
    }

    /// True if any line named this store.
    pub(crate) fn has_store(&self, store: u32) -> bool {
        place(&self.column_of, store).is_some()
    }

    /// The quantity written for a product in a store.
    pub(crate) fn quantity(&self, product: u32, store: u32) -> i32 {
        match (place(&self.row_of, product), place(&self.column_of, store)) {
            (Some(row), Some(column)) => self.cells[row * self.width + column],
            _ => 0,
        }
    }

    /// Says up to which delivery the lines count.
    pub(crate) fn counts_to(&mut self, sequence: Option<u64>) {
        self.counted_to_else = CountedTo::Delivery(sequence);
    }

    /// Up to which delivery the quantities of a store count.
    pub(crate) fn counted_to(&self, store: u32) -> CountedTo {
        self.counted_to
            .get(&store)
            .copied()
            .unwrap_or(self.counted_to_else)
    }

    /// The stores that count up to another delivery than the head of their volume says.
    pub(crate) fn counted_apart(&self, head: &StockHead) -> BTreeMap<u32, Option<u64>> {
        let all = self
            .stores
            .iter()
            .map(|store| (*store, self.counted_to(*store).resolve(head)));
        all.filter(|(_, counted_to)| *counted_to != head.counted_to)
            .collect()
    }

    /// Hands each store with its quantities by row to `take`.
    pub(crate) fn each_store(&self, mut take: impl FnMut(u32, &[i32])) {
        let mut columns = vec![vec![0; self.products.len()]; LANES];
        // Sixteen stores at a time, as they lie in one cache line.
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

    /// True if it has the products and stores of this layout, with the products in the same rows.
    pub(crate) fn is_laid_out_as(&self, layout: &Layout) -> bool {
        self.row_of == layout.row_of && self.stores == layout.stores
    }

    /// The same stock to sell from, stores ascending; of a known layout if it has it.
    pub(crate) fn into_shelves(self, known: &Arc<Layout>) -> StockMatrix {
        let mut columns: Vec<usize> = (0..self.stores.len()).collect();
        columns.sort_unstable_by_key(|column| self.stores[*column]);
        let count = columns.len();
        let width = count.next_multiple_of(LANES);
        let is_in_place = width == self.width && columns.is_sorted();
        let mut cells = if is_in_place {
            self.cells
        } else {
            self.laid_out(&columns, width)
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
