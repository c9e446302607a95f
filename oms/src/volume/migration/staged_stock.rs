//! The stock of incoming slots: the quantities of each store, rearranged in the order of this
//! volume's products.
//!
//! Each volume has its products in rows of the stock matrix, in the order in which they first
//! appeared. A store is a column of that matrix. So a column from another volume has its quantities
//! in a different order.
//!
//! **Invariants**
//! - A fitted (rearranged) column has the row order of this volume. Products that are new to the
//!   volume are appended.
//! - Each fitted column names the last delivery that its quantities count. A row of an earlier
//!   release names no delivery, because the stock head of the source (facts about its snapshots)
//!   names it. This volume has another head.

use std::collections::{BTreeMap, HashMap};

use crate::domain::stock::{CountedTo, StockHead};
use crate::domain::stock_snapshot::{CELLS_MAX, Column};
use crate::error::StorageError;
use crate::runtime::seeded::seeded;
use crate::storage::codec::{self, DecodeError};
use crate::storage::volume::{Volume, u32_key};
use crate::storage::write_batch::{CATALOGUE, STOCK_HEAD, Table, WriteBatch};

/// The stock of the stores that migrate to this volume.
#[derive(Default)]
pub(crate) struct StagedStock {
    /// Product ids in the row order of this volume, with the new ones at the end. Empty before
    /// `fit`.
    pub(crate) products: Vec<u32>,
    pub(crate) columns: Vec<Column>,
    /// The stock head of this volume, joined with the stock heads of the sources.
    pub(crate) head: StockHead,
    catalogues: BTreeMap<u8, Vec<u32>>,
    arrived: Vec<(u8, Column)>,
    heads: BTreeMap<u8, StockHead>,
}

impl StagedStock {
    /// Adds a row of the table `Arriving`, which came from the table `table` of the source.
    pub(crate) fn take(
        &mut self,
        source: u8,
        table: Table,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), DecodeError> {
        match table {
            Table::Meta if key == STOCK_HEAD => {
                self.heads.insert(source, codec::decode_stock_head(value)?);
            }
            Table::Stock if key == CATALOGUE => {
                self.catalogues.insert(source, codec::decode_catalogue(value)?);
            }
            Table::Stock => {
                let (counted_to, quantities) = codec::decode_quantities(value)?;
                let column = Column {
                    store: u32_key(key)?,
                    quantities,
                    counted_to,
                };
                self.arrived.push((source, column));
            }
            _ => {}
        }
        Ok(())
    }

    /// Rearranges the columns in the row order of a volume. Adds to a batch the rows of the
    /// columns, the catalogue if it has new products, and the stock head if a source has one.
    pub(crate) fn fit(&mut self, storage: &Volume, batch: &mut WriteBatch) -> Result<(), StorageError> {
        self.head = storage.stock_head()?;
        for head in self.heads.values() {
            self.head = self.head.joined_with(head);
        }
        for (source, column) in &mut self.arrived {
            // If an earlier release wrote the row of the column, the stock head of the source names
            // the last counted delivery. This volume has another head, so the column must name the
            // delivery itself.
            let head = self.heads.get(source).copied().unwrap_or_default();
            column.counted_to = CountedTo::Delivery(column.counted_to.resolve(&head));
            if seeded("counts-mixed") {
                column.counted_to = CountedTo::OfVolume;
            }
        }
        self.products = storage.catalogue()?;
        let known = self.products.len();
        self.columns = fit_columns(
            &mut self.products,
            &self.catalogues,
            std::mem::take(&mut self.arrived),
        );
        if self.products.len() > known {
            batch.catalogue(&self.products);
        }
        self.columns.iter().for_each(|column| batch.column(column));
        if !self.heads.is_empty() {
            batch.stock_head(&self.head);
        }
        Ok(())
    }

    /// Returns an error if the stock would be too large with these columns and the `stores` stores
    /// of this volume.
    pub(crate) fn check(&self, stores: usize) -> Result<(), String> {
        let (products, stores) = (self.products.len(), stores + self.columns.len());
        if products * stores <= CELLS_MAX {
            return Ok(());
        }
        Err(format!(
            "the stock would have {products} products x {stores} stores, over {CELLS_MAX} cells"
        ))
    }
}

/// Returns the columns in the row order of `products`. Appends missing product ids to `products`.
fn fit_columns(
    products: &mut Vec<u32>,
    catalogues: &BTreeMap<u8, Vec<u32>>,
    arrived: Vec<(u8, Column)>,
) -> Vec<Column> {
    let mut row_of: HashMap<u32, usize> = products.iter().copied().zip(0..).collect();
    let mut rows: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for (source, catalogue) in catalogues {
        let place = |product: &u32| {
            *row_of.entry(*product).or_insert_with(|| {
                products.push(*product);
                products.len() - 1
            })
        };
        rows.insert(*source, catalogue.iter().map(place).collect());
    }
    let fit = |(source, column): (u8, Column)| {
        let rows = rows.get(&source).map_or(&[][..], Vec::as_slice);
        let mut quantities = Vec::with_capacity(products.len());
        for (place, quantity) in rows.iter().zip(&column.quantities) {
            if quantities.len() <= *place {
                quantities.resize(*place + 1, 0);
            }
            quantities[*place] = *quantity;
        }
        Column { quantities, ..column }
    };
    arrived.into_iter().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_two_sources_are_fitted_to_the_products_of_the_target() {
        let mut products = vec![5, 7];
        let catalogues = BTreeMap::from([(0, vec![7, 9]), (1, vec![5, 7, 11])]);
        let column = |store, quantities: &[i32]| Column {
            store,
            quantities: quantities.to_vec(),
            counted_to: CountedTo::Delivery(Some(u64::from(store))),
        };
        let arrived = vec![
            (0, column(1, &[70, 90])),
            (1, column(2, &[50])),
            (1, column(3, &[1, 2, 3])),
            (4, column(4, &[8])),
        ];
        let columns = fit_columns(&mut products, &catalogues, arrived);
        assert_eq!(products, [5, 7, 9, 11]);
        let expected: [&[i32]; 4] = [&[0, 70, 90], &[50], &[1, 2, 0, 3], &[]];
        for (column, expected) in columns.iter().zip(expected) {
            assert_eq!(column.quantities, expected, "store {}", column.store);
            let counted_to = CountedTo::Delivery(Some(u64::from(column.store)));
            assert_eq!(column.counted_to, counted_to, "store {}", column.store);
        }
    }
}
