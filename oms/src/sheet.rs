//! A whole stock as it arrives: quantities by store and product.
//!
//! A snapshot is read line by line into one column per store, in the layout in which the store's row is
//! kept, so that two million lines become two hundred rows without sorting. Rows are numbered as products
//! appear, so any product id within the limit costs only what is used. `Shelves` is the same stock turned
//! round, one row of stores per product, which is what finding the first store that has everything needs.
//!
//! Limits: product 1 to 1,000,000, store 1 to 10,000, quantity up to a thousand million, products x stores 15 million. A
//! line that appears twice counts once, with its last quantity.

use crate::csv::FieldFault;
use crate::order::Line;

/// Largest product id: the table that finds a product's row holds four bytes for each id up to the largest.
pub(crate) const PRODUCT_MAX: u32 = 1_000_000;
/// Largest store id.
pub(crate) const STORE_MAX: u32 = 10_000;
/// Largest quantity of one product in one store: sums of what is promised of it then fit 32 bits.
pub(crate) const QUANTITY_MAX: u32 = 1_000_000_000;
/// Most cells (product in store) of a snapshot: seven times the usual stock. A snapshot is one atomic batch, and
/// a batch of the volume holds at most 64 MiB.
pub(crate) const CELLS_MAX: usize = 15_000_000;

const NOWHERE: u32 = u32::MAX;

/// The quantities of one store by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) store: u32,
    pub(crate) quantities: Vec<i32>,
}

/// A stock by store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sheet {
    products: Vec<u32>,
    row_of: Vec<u32>,
    columns: Vec<Column>,
    column_of: Vec<u32>,
}

impl Sheet {
    /// The sheet that the volume's rows make.
    pub(crate) fn from_rows(products: Vec<u32>, columns: Vec<Column>) -> Sheet {
        let mut sheet = Sheet {
            products,
            columns,
            ..Sheet::default()
        };
        for (row, product) in sheet.products.iter().enumerate() {
            let at = *product as usize;
            if sheet.row_of.len() <= at {
                sheet.row_of.resize(at + 1, NOWHERE);
            }
            sheet.row_of[at] = row as u32;
        }
        for (column, store) in sheet.columns.iter().map(|column| column.store).enumerate() {
            let at = store as usize;
            if sheet.column_of.len() <= at {
                sheet.column_of.resize(at + 1, NOWHERE);
            }
            sheet.column_of[at] = column as u32;
        }
        sheet
    }

    /// Takes one line: product, store, quantity.
    #[inline]
    pub(crate) fn set(&mut self, [product, store, quantity]: [u32; 3]) -> Result<(), FieldFault> {
        let row = match self.row_of.get(product as usize) {
            Some(&row) if row != NOWHERE => row as usize,
            _ => self.add_product(product)?,
        };
        let column = match self.column_of.get(store as usize) {
            Some(&column) if column != NOWHERE => column as usize,
            _ => self.add_store(store)?,
        };
        if quantity > QUANTITY_MAX {
            return Sheet::check([product, store, quantity]);
        }
        let quantities = &mut self.columns[column].quantities;
        if let Some(cell) = quantities.get_mut(row) {
            *cell = quantity as i32;
            return Ok(());
        }
        quantities.resize(row, 0);
        quantities.push(quantity as i32);
        Ok(())
    }

    /// Refuses a product or store that would make the stock too large: the shelves have a cell for each of either, however
    /// few lines name both.
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
        Sheet::check([product, 1, 0])?;
        Sheet::check_cells(0, self.products.len() + 1, self.columns.len())?;
        let at = product as usize;
        if self.row_of.len() <= at {
            self.row_of.resize(at + 1, NOWHERE);
        }
        self.row_of[at] = self.products.len() as u32;
        self.products.push(product);
        Ok(self.products.len() - 1)
    }

    #[cold]
    fn add_store(&mut self, store: u32) -> Result<usize, FieldFault> {
        Sheet::check([1, store, 0])?;
        Sheet::check_cells(1, self.products.len(), self.columns.len() + 1)?;
        let at = store as usize;
        if self.column_of.len() <= at {
            self.column_of.resize(at + 1, NOWHERE);
        }
        self.column_of[at] = self.columns.len() as u32;
        let quantities = Vec::with_capacity(self.products.len());
        self.columns.push(Column { store, quantities });
        Ok(self.columns.len() - 1)
    }

    /// Products by row.
    pub(crate) fn products(&self) -> &[u32] {
        &self.products
    }

    /// Stores in the order in which they appeared.
    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// True if any line named this store.
    pub(crate) fn has_store(&self, store: u32) -> bool {
        self.column_of
            .get(store as usize)
            .is_some_and(|column| *column != NOWHERE)
    }

    /// The quantity written for a product in a store.
    pub(crate) fn quantity(&self, product: u32, store: u32) -> i32 {
        let row = self.row_of.get(product as usize).copied().unwrap_or(NOWHERE) as usize;
        let column = self.column_of.get(store as usize).copied().unwrap_or(NOWHERE) as usize;
        self.columns
            .get(column)
            .and_then(|column| column.quantities.get(row))
            .copied()
            .unwrap_or(0)
    }

    /// The same stock by product, stores ascending.
    pub(crate) fn shelves(&self) -> Shelves {
        let mut order: Vec<&Column> = self.columns.iter().collect();
        order.sort_unstable_by_key(|column| column.store);
        let width = order.len().next_multiple_of(LANES);
        let mut cells = vec![0i32; self.products.len() * width];
        // Sixteen stores at a time: their cells of one product are one cache line.
        for (block, stores) in order.chunks(LANES).enumerate() {
            for (lane, column) in stores.iter().enumerate() {
                let at = block * LANES + lane;
                let rows = cells.chunks_exact_mut(width.max(1));
                for (row, quantity) in rows.zip(&column.quantities) {
                    row[at] = *quantity;
                }
            }
        }
        for row in cells.chunks_exact_mut(width.max(1)) {
            row[order.len()..].fill(NO_STORE);
        }
        Shelves {
            row_of: self.row_of.clone(),
            stores: order.iter().map(|column| column.store).collect(),
            width,
            cells,
        }
    }
}

/// Stores looked at together: sixteen 32-bit cells are one cache line and two AVX2 registers.
const LANES: usize = 16;
/// Fills a row up to whole lanes: never enough for anyone, and far from overflow.
const NO_STORE: i32 = i32::MIN / 2;

/// What is available, by product and store; may be negative where a snapshot has less than is promised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelves {
    row_of: Vec<u32>,
    /// Ascending.
    stores: Vec<u32>,
    width: usize,
    cells: Vec<i32>,
}

impl Shelves {
    fn row(&self, product: u32) -> Option<usize> {
        match self.row_of.get(product as usize) {
            Some(&row) if row != NOWHERE => Some(row as usize),
            _ => None,
        }
    }

    fn cell(&mut self, product: u32, store: u32) -> Option<&mut i32> {
        let row = self.row(product)?;
        let column = self.stores.binary_search(&store).ok()?;
        self.cells.get_mut(row * self.width + column)
    }

    /// Takes units of a product away in a store; a cell that the stock does not have stays absent.
    pub(crate) fn take(&mut self, store: u32, line: Line) {
        if let Some(cell) = self.cell(line.id, store) {
            *cell = cell.saturating_sub_unsigned(line.quantity);
        }
    }

    /// True if the stock has a cell for a product in a store.
    pub(crate) fn has(&self, product: u32, store: u32) -> bool {
        self.row(product).is_some() && self.stores.binary_search(&store).is_ok()
    }

    /// Changes what is available of a product in a store.
    pub(crate) fn step(&mut self, product: u32, store: u32, by: i32) {
        if let Some(cell) = self.cell(product, store) {
            *cell = cell.saturating_add(by);
        }
    }

    /// Gives units of a product back to a store.
    pub(crate) fn give(&mut self, store: u32, line: Line) {
        if let Some(cell) = self.cell(line.id, store) {
            *cell = cell.saturating_add_unsigned(line.quantity);
        }
    }

    /// What is available of a product, by store.
    pub(crate) fn by_store(&self, product: u32) -> Vec<(u32, i32)> {
        let Some(row) = self.row(product) else {
            return Vec::new();
        };
        let cells = &self.cells[row * self.width..];
        self.stores.iter().copied().zip(cells.iter().copied()).collect()
    }

    /// What is available in a store, by product ascending; `None` if there is no such store.
    pub(crate) fn by_product(&self, store: u32) -> Option<Vec<(u32, i32)>> {
        let column = self.stores.binary_search(&store).ok()?;
        let rows = self.row_of.iter().enumerate().filter(|(_, row)| **row != NOWHERE);
        Some(
            rows.map(|(product, row)| (product as u32, self.cells[*row as usize * self.width + column]))
                .collect(),
        )
    }

    /// Puts stores in, in place of what was there of them. `products` are all products by row: those that are here in their
    /// order, then new ones.
    pub(crate) fn add_stores(&mut self, products: &[u32], columns: &[Column]) {
        for (row, product) in products.iter().enumerate() {
            let at = *product as usize;
            if self.row_of.len() <= at {
                self.row_of.resize(at + 1, NOWHERE);
            }
            self.row_of[at] = row as u32;
        }
        let mut stores = self.stores.clone();
        stores.extend(columns.iter().map(|column| column.store));
        stores.sort_unstable();
        stores.dedup();
        let known = self.cells.len() / self.width.max(1);
        self.arrange(stores, products.len().max(known));
        for column in columns {
            let Ok(at) = self.stores.binary_search(&column.store) else {
                continue;
            };
            let quantities = column.quantities.iter().copied().chain(std::iter::repeat(0));
            for (row, quantity) in self.cells.chunks_exact_mut(self.width.max(1)).zip(quantities) {
                row[at] = quantity;
            }
        }
    }

    /// Takes stores out.
    pub(crate) fn retain_stores(&mut self, stays: impl Fn(u32) -> bool) {
        let stores = self
            .stores
            .iter()
            .copied()
            .filter(|store| stays(*store))
            .collect();
        let rows = self.cells.len() / self.width.max(1);
        self.arrange(stores, rows);
    }

    /// Lays the cells out for these stores, ascending, and so many products; a cell that was not there has nothing.
    fn arrange(&mut self, stores: Vec<u32>, rows: usize) {
        let width = stores.len().next_multiple_of(LANES);
        let from: Vec<Option<usize>> = stores
            .iter()
            .map(|store| self.stores.binary_search(store).ok())
            .collect();
        let mut cells = vec![0i32; rows * width];
        let before = self.cells.chunks_exact(self.width.max(1));
        for (row, known) in cells.chunks_exact_mut(width.max(1)).zip(before) {
            for (cell, from) in row.iter_mut().zip(&from) {
                if let Some(from) = from {
                    *cell = known[*from];
                }
            }
        }
        for row in cells.chunks_exact_mut(width.max(1)) {
            row[stores.len()..].fill(NO_STORE);
        }
        (self.stores, self.width, self.cells) = (stores, width, cells);
    }

    /// The stores, ascending.
    pub(crate) fn stores(&self) -> &[u32] {
        &self.stores
    }

    /// The first store, ascending, that has every demanded quantity. `demands` holds each product once.
    pub(crate) fn first_store(&self, demands: &[Line]) -> Option<u32> {
        let mut rows: [(&[i32], i32); 4] = [(&[], 0); 4];
        // Nearly every order has few products: their rows are found once and stay in registers.
        if demands.len() <= rows.len() {
            for (slot, line) in rows.iter_mut().zip(demands) {
                *slot = self.row_cells(line)?;
            }
            return self.scan(&rows[..demands.len()]);
        }
        let rows = demands
            .iter()
            .map(|line| self.row_cells(line))
            .collect::<Option<Vec<_>>>()?;
        self.scan(&rows)
    }

    /// True if a store has every demanded quantity. `demands` holds each product once.
    pub(crate) fn has_all(&self, store: u32, demands: &[Line]) -> bool {
        let Ok(column) = self.stores.binary_search(&store) else {
            return false;
        };
        demands.iter().all(|line| {
            let cell = self
                .row(line.id)
                .and_then(|row| self.cells.get(row * self.width + column));
            cell.is_some_and(|cell| *cell >= line.quantity as i32)
        })
    }

    fn row_cells(&self, line: &Line) -> Option<(&[i32], i32)> {
        let start = self.row(line.id)? * self.width;
        Some((&self.cells[start..start + self.width], line.quantity as i32))
    }

    fn scan(&self, rows: &[(&[i32], i32)]) -> Option<u32> {
        for block in (0..self.width).step_by(LANES) {
            // A store lacks something if any difference is negative: the sign bits are gathered.
            let mut lacking = [0i32; LANES];
            for (cells, quantity) in rows {
                let cells = &cells[block..block + LANES];
                for (lane, cell) in lacking.iter_mut().zip(cells) {
                    *lane |= cell.wrapping_sub(*quantity);
                }
            }
            if let Some(lane) = lacking.iter().position(|lane| *lane >= 0) {
                return Some(self.stores[block + lane]);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shelves_find_what_a_plain_search_finds() {
        // A small generator of its own: the test must be the same in every run.
        let mut seed = 42u64;
        let mut next = |below: u32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((seed >> 33) as u32) % below
        };
        for stores in [1, 5, 16, 17, 33] {
            let mut sheet = Sheet::default();
            for product in (1..=40).rev() {
                for store in 1..=stores {
                    sheet.set([product * 7, store * 3, next(4)]).unwrap();
                }
            }
            let shelves = sheet.shelves();
            for _ in 0..500 {
                let count = next(6) + 1;
                let mut demands: Vec<Line> = Vec::new();
                for _ in 0..count {
                    let id = (next(40) + 1) * 7;
                    if demands.iter().all(|line| line.id != id) {
                        demands.push(Line {
                            id,
                            quantity: next(3) + 1,
                        });
                    }
                }
                let plain = (1..=stores).map(|store| store * 3).find(|store| {
                    demands
                        .iter()
                        .all(|line| sheet.quantity(line.id, *store) >= line.quantity as i32)
                });
                assert_eq!(
                    shelves.first_store(&demands),
                    plain,
                    "{stores} stores, {demands:?}"
                );
            }
        }
    }

    #[test]
    fn stores_come_and_go_and_the_shelves_are_those_of_a_sheet_that_has_just_them() {
        let mut all = Sheet::default();
        for product in 1..=9 {
            for store in 1..=40 {
                all.set([product * 3, store, product * 100 + store]).unwrap();
            }
        }
        all.set([100, 40, 7]).unwrap();
        let only = |stores: &dyn Fn(u32) -> bool| {
            let columns: Vec<Column> = all
                .columns()
                .iter()
                .filter(|column| stores(column.store))
                .cloned()
                .collect();
            Sheet::from_rows(all.products().to_vec(), columns)
        };
        let (odd, even) = (only(&|store| store % 2 == 1), only(&|store| store % 2 == 0));
        let mut shelves = odd.shelves();
        shelves.add_stores(even.products(), even.columns());
        let whole = all.shelves();
        assert_eq!((&shelves.stores, &shelves.cells), (&whole.stores, &whole.cells));
        shelves.retain_stores(|store| store % 2 == 0);
        let left = even.shelves();
        assert_eq!((&shelves.stores, &shelves.cells), (&left.stores, &left.cells));
        shelves.retain_stores(|_| false);
        assert_eq!(shelves.first_store(&[Line { id: 3, quantity: 1 }]), None);
        let mut none = Shelves::default();
        none.add_stores(all.products(), all.columns());
        assert_eq!(
            (&none.stores, &none.cells, &none.row_of),
            (&whole.stores, &whole.cells, &whole.row_of)
        );
        none.add_stores(&[], &[]);
        assert_eq!(none.cells, whole.cells);
    }

    #[test]
    fn a_product_or_store_that_no_line_named_has_nothing() {
        let mut sheet = Sheet::default();
        sheet.set([5, 2, 3]).unwrap();
        let shelves = sheet.shelves();
        assert_eq!(shelves.first_store(&[Line { id: 6, quantity: 1 }]), None);
        assert_eq!(shelves.first_store(&[Line { id: 5, quantity: 4 }]), None);
        assert_eq!(shelves.first_store(&[Line { id: 5, quantity: 3 }]), Some(2));
        assert_eq!(
            Shelves::default().first_store(&[Line { id: 5, quantity: 1 }]),
            None
        );
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_field() {
        let mut sheet = Sheet::default();
        for (fields, field) in [
            ([0, 1, 1], 0),
            ([PRODUCT_MAX + 1, 1, 1], 0),
            ([1, 0, 1], 1),
            ([1, STORE_MAX + 1, 1], 1),
            ([1, 1, QUANTITY_MAX + 1], 2),
        ] {
            assert_eq!(sheet.set(fields).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_snapshot_cannot_ask_for_more_cells_than_the_limit() {
        let mut sheet = Sheet::default();
        // Many products in one store, then one product in many stores: each such line costs a whole column.
        let faults = (1..=PRODUCT_MAX)
            .map(|product| sheet.set([product, 1, 1]))
            .filter(Result::is_err)
            .count();
        assert_eq!(faults, 0);
        let refused = (2..=STORE_MAX)
            .find_map(|store| sheet.set([PRODUCT_MAX, store, 1]).err())
            .unwrap();
        assert!(refused.reason.contains("cells"));
    }
}
