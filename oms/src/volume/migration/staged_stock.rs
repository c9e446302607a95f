//! Stock that comes with slots: columns of stores, by the products of the volumes that they come
//! from.
//!
//! Each volume numbers the products of its stock by row, in the order in which it met them. Columns
//! that arrive are laid out anew by the rows of the volume that gets them, products that it does
//! not know coming last; then they are its own.

use std::collections::{BTreeMap, HashMap};

use crate::domain::stock::{CountedTo, StockHead};
use crate::domain::stock_snapshot::{CELLS_MAX, Column};
use crate::error::StorageError;
use crate::runtime::seeded::seeded;
use crate::storage::codec::{self, DecodeError};
use crate::storage::volume::{Volume, u32_key};
use crate::storage::write_batch::{CATALOGUE, STOCK_HEAD, Table, WriteBatch};

/// Stores that come from other volumes.
#[derive(Default)]
pub(crate) struct StagedStock {
    /// Products by row, once it fits the volume; by source until then.
    pub(crate) products: Vec<u32>,
    pub(crate) columns: Vec<Column>,
    /// What is known of the snapshots of the volume, and of those that columns come from.
    pub(crate) head: StockHead,
    catalogues: BTreeMap<u8, Vec<u32>>,
    came: Vec<(u8, Column)>,
    heads: BTreeMap<u8, StockHead>,
}

impl StagedStock {
    /// Takes a row that lay aside.
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
                self.came.push((source, column));
            }
            _ => {}
        }
        Ok(())
    }

    /// Lays the columns out by the products of a volume, and has them written there.
    pub(crate) fn fit(&mut self, storage: &Volume, batch: &mut WriteBatch) -> Result<(), StorageError> {
        self.head = storage.stock_head()?;
        for head in self.heads.values() {
            self.head = self.head.joined_with(head);
        }
        for (source, column) in &mut self.came {
            // From here on its own row says it: the head of this volume is another one.
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
            std::mem::take(&mut self.came),
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

    /// Refuses a stock that would be too large beside so many other stores.
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

/// Columns by the rows of `products`, which gets those that it lacks.
fn fit_columns(
    products: &mut Vec<u32>,
    catalogues: &BTreeMap<u8, Vec<u32>>,
    came: Vec<(u8, Column)>,
) -> Vec<Column> {
    let mut row_of: HashMap<u32, usize> = products.iter().copied().zip(0..).collect();
    let mut places: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for (source, catalogue) in catalogues {
        let place = |product: &u32| {
            *row_of.entry(*product).or_insert_with(|| {
                products.push(*product);
                products.len() - 1
            })
        };
        places.insert(*source, catalogue.iter().map(place).collect());
    }
    let fit = |(source, column): (u8, Column)| {
        let places = places.get(&source).map_or(&[][..], Vec::as_slice);
        let mut quantities = Vec::with_capacity(products.len());
        for (place, quantity) in places.iter().zip(&column.quantities) {
            if quantities.len() <= *place {
                quantities.resize(*place + 1, 0);
            }
            quantities[*place] = *quantity;
        }
        Column { quantities, ..column }
    };
    came.into_iter().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_two_sources_fit_the_products_of_the_volume_that_gets_them() {
        let mut products = vec![5, 7];
        let catalogues = BTreeMap::from([(0, vec![7, 9]), (1, vec![5, 7, 11])]);
        let column = |store, quantities: &[i32]| Column {
            store,
            quantities: quantities.to_vec(),
            counted_to: CountedTo::Delivery(Some(u64::from(store))),
        };
        let came = vec![
            (0, column(1, &[70, 90])),
            (1, column(2, &[50])),
            (1, column(3, &[1, 2, 3])),
            (4, column(4, &[8])),
        ];
        let columns = fit_columns(&mut products, &catalogues, came);
        assert_eq!(products, [5, 7, 9, 11]);
        let expected: [&[i32]; 4] = [&[0, 70, 90], &[50], &[1, 2, 0, 3], &[]];
        for (column, expected) in columns.iter().zip(expected) {
            assert_eq!(column.quantities, expected, "store {}", column.store);
            let counted_to = CountedTo::Delivery(Some(u64::from(column.store)));
            assert_eq!(column.counted_to, counted_to, "store {}", column.store);
        }
    }
}
