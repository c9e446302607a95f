//! Sales statistics: revenue and units of each product over all statistics files of the warehouse.
//!
//! A file `stat_TTTTTTTTTTTTTTT.csv` has lines `PRODUCT,UNITS_SOLD,UNIT_PRICE`. This module
//! computes the sums of one file and of all files.
//!
//! **Invariant**: a line adds at most 64 bits (units times price, 32 bits each). So sums of 128
//! bits do not overflow for any number of lines that files can have.
//!
//! Deliberately absent: the rule that each file counts exactly once (see `stat_import` and
//! `storage`).

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::csv::{CsvError, FieldFault, LineReader};
use crate::domain::stock_snapshot::PRODUCT_MAX;

/// Revenue and units of one product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Sum of units times price, over all lines of the product.
    pub(crate) revenue: u128,
    /// Sum of units, over all lines of the product.
    pub(crate) units: u128,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.revenue = self.revenue.saturating_add(other.revenue);
        self.units = self.units.saturating_add(other.units);
    }
}

/// The statistics of one product in an API response.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct ProductStats {
    /// Revenue (chiffre d'affaires): units times price. May exceed 2^53.
    #[schema(value_type = u64, example = 5_600)]
    pub ca: u128,
    /// Units sold. May exceed 2^53.
    #[schema(value_type = u64, example = 14)]
    pub total_qty: u128,
    /// Revenue per unit; 0 if no unit was sold.
    pub mean_price: f64,
}

impl From<Sums> for ProductStats {
    fn from(sums: Sums) -> ProductStats {
        let mean_price = if sums.units == 0 {
            0.0
        } else {
            sums.revenue as f64 / sums.units as f64
        };
        ProductStats {
            ca: sums.revenue,
            total_qty: sums.units,
            mean_price,
        }
    }
}

/// Sums by product.
pub(crate) type SumsByProduct = HashMap<u32, Sums>;

/// Returns the sums of a whole file. If a line is faulty, returns the fault of the first such line.
pub(crate) fn read_file(body: &[u8]) -> Result<SumsByProduct, CsvError> {
    let mut sums = SumsByProduct::new();
    let mut take = |[product, units, price]: [u32; 3]| {
        if product == 0 || product > PRODUCT_MAX {
            return Err(FieldFault {
                field: 0,
                reason: format!("a product id is 1 to {PRODUCT_MAX}"),
            });
        }
        let units = u128::from(units);
        sums.entry(product).or_default().add(Sums {
            revenue: units * u128::from(price),
            units,
        });
        Ok(())
    };
    let mut reader = LineReader::default();
    reader.feed(body, &mut take)?;
    reader.finish(&mut take)?;
    Ok(sums)
}

/// The sums over all imported files.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    by_product: SumsByProduct,
}

impl Statistics {
    /// Creates the statistics from the rows of the volume.
    pub(crate) fn new(by_product: SumsByProduct) -> Statistics {
        Statistics { by_product }
    }

    /// Returns the sums of every product in `file`, after the addition of the file. The caller
    /// writes these sums to the volume before it calls `replace`.
    pub(crate) fn with(&self, file: &SumsByProduct) -> SumsByProduct {
        let sum = |(product, added): (&u32, &Sums)| {
            let mut sums = self.by_product.get(product).copied().unwrap_or_default();
            sums.add(*added);
            (*product, sums)
        };
        file.iter().map(sum).collect()
    }

    /// Replaces all sums. Used when the statistics migrate to this volume or away from it.
    pub(crate) fn replace_all(&mut self, by_product: SumsByProduct) {
        self.by_product = by_product;
    }

    /// Replaces the sums of some products, after the new sums were written to the volume.
    pub(crate) fn replace(&mut self, sums: SumsByProduct) {
        self.by_product.extend(sums);
    }

    /// Returns the statistics of a product; zeros for an unknown product.
    pub(crate) fn product(&self, product: u32) -> ProductStats {
        self.by_product.get(&product).copied().unwrap_or_default().into()
    }

    /// Returns the `count` products with the highest revenue, highest first. Products with equal
    /// revenue are sorted by id.
    pub(crate) fn top(&self, count: usize) -> Vec<(u32, ProductStats)> {
        let mut all: Vec<(u32, Sums)> = self
            .by_product
            .iter()
            .map(|(product, sums)| (*product, *sums))
            .collect();
        all.sort_unstable_by_key(|(product, sums)| (std::cmp::Reverse(sums.revenue), *product));
        all.truncate(count);
        all.into_iter()
            .map(|(product, sums)| (product, sums.into()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_add_up_to_revenue_units_and_mean() {
        let mut statistics = Statistics::default();
        for body in [b"5,2,10\n6,1,1\n".as_slice(), b"5,1,40"] {
            let file = read_file(body).unwrap();
            statistics.replace(statistics.with(&file));
        }
        assert_eq!(
            statistics.product(5),
            ProductStats {
                ca: 60,
                total_qty: 3,
                mean_price: 20.0
            }
        );
        assert_eq!(
            statistics.product(9),
            ProductStats {
                ca: 0,
                total_qty: 0,
                mean_price: 0.0
            }
        );
        assert_eq!(statistics.top(1), [(5, statistics.product(5))]);
        assert_eq!(
            serde_json::to_string(&statistics.product(9)).unwrap(),
            r#"{"ca":0,"total_qty":0,"mean_price":0.0}"#
        );
    }

    #[test]
    fn a_malformed_line_is_named_and_rejects_the_whole_file() {
        let error = read_file(b"5,2,10\n5,2\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 4));
        assert_eq!(read_file(b"0,2,10\n").unwrap_err().column, 1);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let line = format!("7,{0},{0}\n", u32::MAX).repeat(1_000);
        let file = read_file(line.as_bytes()).unwrap();
        assert_eq!(
            file[&7].revenue,
            u128::from(u32::MAX) * u128::from(u32::MAX) * 1_000
        );
    }
}
