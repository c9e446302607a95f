//! The stock of the simulated warehouse: the units of each product in each store, and its form as
//! CSV.
//!
//! The stock of the first day, with which a new ledger begins, is a function of the seed and the
//! shape. So the audit can compute this stock itself, and check the warehouse's deliveries against
//! it.
//!
//! The CSV (`PRODUCT,STORE,QUANTITY`; by default 2,000,000 lines, about 22 MB) is generated in
//! pieces while it is sent. The whole text is never in memory, and a slow receiver slows the
//! generation down.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde::{Deserialize, Serialize};

use crate::seed::{Dice, Purpose};

/// Default of [`StockShape::units`], as in the original system.
const UNITS_USUAL: u32 = 15;

/// Largest permitted [`StockShape::units`]. The stock keeps each quantity in 16 bits.
pub const UNITS_MAX: u32 = u16::MAX as u32;

/// Maximum number of quantities, products times stores. They take 200 MB of memory.
const CELLS_MAX: usize = 100_000_000;

/// Approximate size of a piece of the CSV in bytes: so large that the fixed cost of sending a piece
/// does not matter, and so small that a piece is generated in about 0.1 ms and does not delay other
/// tasks.
const PIECE_BYTES: usize = 64 * 1024;

/// Numbers of products, stores and units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockShape {
    /// Number of products. Products are numbered from 1.
    pub products: u32,
    /// Number of stores. Stores are numbered from 1.
    pub stores: u32,
    /// Maximum number of units of one product in one store, also after a restocking: 1 to
    /// [`UNITS_MAX`]. A ledger without this number has the default.
    #[serde(default = "units_usual")]
    pub units: u32,
}

/// Returns the default of [`StockShape::units`].
pub(crate) fn units_usual() -> u32 {
    UNITS_USUAL
}

impl Default for StockShape {
    /// Returns the numbers of the original system, from which this project grew: 10,000 products in
    /// 200 stores, with at most 15 units of each product in each store.
    fn default() -> Self {
        Self {
            products: 10_000,
            stores: 200,
            units: UNITS_USUAL,
        }
    }
}

impl StockShape {
    /// Returns the number of quantities: products times stores.
    pub fn cells(&self) -> usize {
        self.products as usize * self.stores as usize
    }

    /// Returns the problem if a warehouse cannot have this stock.
    pub(crate) fn fault(&self) -> Option<String> {
        if self.cells() == 0 || self.cells() > CELLS_MAX {
            return Some("products x stores must be from 1 to 100,000,000".to_owned());
        }
        if self.units == 0 || self.units > UNITS_MAX {
            return Some(format!("units must be from 1 to {UNITS_MAX}"));
        }
        None
    }
}

/// The units of every product in every store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock {
    shape: StockShape,
    /// The quantities, ordered by product, then by store.
    quantities: Vec<u16>,
}

impl Stock {
    /// Returns the stock of the first day. On average half of the quantities are 0, the others are
    /// 1 to [`StockShape::units`].
    pub fn first_day(seed: u64, shape: StockShape) -> Self {
        let mut dice = Dice::new(seed, Purpose::Stock);
        let units = shape.units;
        let quantities = (0..shape.cells())
            .map(|_| match dice.below(2 * units) {
                drawn if drawn < units => 0,
                drawn => (drawn - units + 1) as u16,
            })
            .collect();
        Self { shape, quantities }
    }

    /// Returns the numbers of products, stores and units.
    pub fn shape(&self) -> StockShape {
        self.shape
    }

    /// Returns the units of a product in a store; `None` if there is no such product or store.
    pub fn get(&self, product: u32, store: u32) -> Option<u32> {
        self.cell(product, store).map(|cell| self.quantities[cell].into())
    }

    /// Removes units from the stock. Returns `false`, and changes nothing, if there is no such
    /// product or store, or if the store has too few units.
    pub(crate) fn take(&mut self, product: u32, store: u32, units: u32) -> bool {
        let Some(cell) = self.cell(product, store) else {
            return false;
        };
        let Some(left) = u32::from(self.quantities[cell]).checked_sub(units) else {
            return false;
        };
        self.quantities[cell] = left as u16;
        true
    }

    /// Adds units to the stock. Returns `false`, and changes nothing, if there is no such product
    /// or store, or if the quantity would not fit into 16 bits.
    pub(crate) fn put(&mut self, product: u32, store: u32, units: u32) -> bool {
        let Some(cell) = self.cell(product, store) else {
            return false;
        };
        let sum = u32::from(self.quantities[cell]).saturating_add(units);
        let Ok(sum) = u16::try_from(sum) else {
            return false;
        };
        self.quantities[cell] = sum;
        true
    }

    fn cell(&self, product: u32, store: u32) -> Option<usize> {
        let product = product.checked_sub(1).filter(|p| *p < self.shape.products)?;
        let store = store.checked_sub(1).filter(|s| *s < self.shape.stores)?;
        Some(product as usize * self.shape.stores as usize + store as usize)
    }

    /// Returns the stock as a body for `PUT /stocks`, generated while it is sent.
    pub fn into_csv(self) -> StockCsv {
        let stores = (1..=self.shape.stores)
            .map(|store| format!(",{store},"))
            .collect();
        let largest = self.quantities.iter().max().copied().unwrap_or_default();
        let quantities = (0..=largest).map(|quantity| format!("{quantity}\n")).collect();
        StockCsv {
            stock: self,
            next_product: 1,
            stores,
            quantities,
        }
    }
}

/// A stock as CSV in pieces. It is an iterator of pieces and also an HTTP body.
///
/// A line is composed of three texts: the product's number, the store's number with its commas, and
/// the quantity with its line end. All three are formatted before the loop over the stores, so that
/// the 2,000,000 lines need no formatting of numbers.
#[derive(Debug, Clone)]
pub struct StockCsv {
    stock: Stock,
    next_product: u32,
    stores: Vec<String>,
    quantities: Vec<String>,
}

impl Iterator for StockCsv {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let shape = self.stock.shape;
        if self.next_product > shape.products {
            return None;
        }
        let stores = shape.stores as usize;
        let mut piece = Vec::with_capacity(PIECE_BYTES + stores * 20);
        while piece.len() < PIECE_BYTES && self.next_product <= shape.products {
            let product = self.next_product.to_string();
            let first = (self.next_product as usize - 1) * stores;
            let row = &self.stock.quantities[first..first + stores];
            for (store, quantity) in self.stores.iter().zip(row) {
                piece.extend_from_slice(product.as_bytes());
                piece.extend_from_slice(store.as_bytes());
                piece.extend_from_slice(self.quantities[*quantity as usize].as_bytes());
            }
            self.next_product += 1;
        }
        Some(piece.into())
    }
}

impl Body for StockCsv {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().next().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.next_product > self.stock.shape.products
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_first_days_quantities_are_zero_and_the_rest_one_to_fifteen() {
        let stock = Stock::first_day(1, StockShape::default());
        let zeros = stock.quantities.iter().filter(|q| **q == 0).count();
        assert_eq!(stock.quantities.len(), 2_000_000);
        assert!((995_000..1_005_000).contains(&zeros), "{zeros}");
        for quantity in 1..=15 {
            let count = stock.quantities.iter().filter(|q| **q == quantity).count();
            assert!((65_000..68_400).contains(&count), "{quantity}: {count}");
        }
        assert_eq!(stock.quantities.iter().max(), Some(&15));
        assert_eq!(stock, Stock::first_day(1, StockShape::default()));
        assert_ne!(stock, Stock::first_day(2, StockShape::default()));
    }

    #[test]
    fn a_stock_of_more_units_has_quantities_up_to_that_number() {
        for units in [1, 40_000, UNITS_MAX] {
            let shape = StockShape {
                units,
                ..StockShape::default()
            };
            let stock = Stock::first_day(1, shape);
            let most = stock.quantities.iter().max().copied().unwrap();
            assert!(
                u32::from(most) <= units && u32::from(most) > units * 9 / 10,
                "{most}"
            );
            let zeros = stock.quantities.iter().filter(|q| **q == 0).count();
            assert!((990_000..1_010_000).contains(&zeros), "{units}: {zeros}");
        }
    }

    #[test]
    fn the_csv_has_every_quantity_on_a_line_of_its_own() {
        let shape = StockShape {
            products: 1200,
            stores: 7,
            units: 15,
        };
        let mut stock = Stock::first_day(3, shape);
        assert!(stock.put(2, 3, 200), "a quantity of three digits");
        let text: Vec<u8> = stock.clone().into_csv().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let mut lines = text.lines();
        for product in 1..=1200 {
            for store in 1..=7 {
                let quantity = stock.get(product, store).unwrap();
                assert_eq!(
                    lines.next(),
                    Some(format!("{product},{store},{quantity}").as_str())
                );
            }
        }
        assert_eq!(lines.next(), None);
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn taking_and_putting_never_leave_the_shelves_they_are_meant_for() {
        let shape = StockShape {
            products: 2,
            stores: 2,
            units: 15,
        };
        let mut stock = Stock {
            shape,
            quantities: vec![3, 0, 0, 0],
        };
        assert!(!stock.take(1, 1, 4));
        assert!(!stock.take(1, 2, 1));
        for (product, store) in [(0, 1), (1, 0), (3, 1), (1, 3)] {
            assert!(!stock.take(product, store, 0), "{product} {store}");
            assert!(!stock.put(product, store, 1), "{product} {store}");
            assert_eq!(stock.get(product, store), None);
        }
        assert!(!stock.put(1, 1, 65_533));
        assert_eq!(stock.quantities, [3, 0, 0, 0]);
        assert!(stock.take(1, 1, 3) && stock.put(2, 2, 9));
        assert_eq!(stock.quantities, [0, 0, 0, 9]);
    }
}
