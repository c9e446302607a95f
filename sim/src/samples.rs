//! Small sample files in the formats of the original system, from which this project grew. They are
//! for tests and for trying the routes with curl.
//!
//! The samples are generated from a fixed seed, by the code that generates the stock, the
//! statistics files and the orders of a run. A test generates the samples again and compares every
//! byte with the files in `data/samples`. So these files always match the simulators.

use std::fs;
use std::path::Path;

use crate::seed::{Dice, Purpose};
use crate::warehouse::{Stock, StockShape, files};
use crate::wire::NewOrder;
use crate::workload::{Customers, plan_order};
use crate::{Error, Result};

/// Seed of the samples.
pub const SEED: u64 = 1;
/// Name of the sample of stock: 40 products in 20 stores, for `PUT /stocks`.
pub const STOCKS: &str = "stocks.csv";
/// Name of the sample statistics file, with a line for each of the 40 products. The number in the
/// name is a time in Unix milliseconds, in 2023.
pub const STAT_FILE: &str = "stat_001700000000000.csv";
/// Name of the sample of orders: a JSON list of ten bodies for `POST /order`, with products of the
/// sample of stock.
pub const ORDERS: &str = "orders.json";

/// Numbers of products and stores in the samples. They are small, so that people can read the
/// files.
const SHAPE: StockShape = StockShape {
    products: 40,
    stores: 20,
    units: 15,
};
const ORDER_COUNT: u64 = 10;

/// Returns name and content of each sample.
pub fn samples() -> [(&'static str, Vec<u8>); 3] {
    let stocks = Stock::first_day(SEED, SHAPE).into_csv().flatten().collect();
    let stat_file = files::stat_lines(SEED, 0, SHAPE.products).into_bytes();
    [(STOCKS, stocks), (STAT_FILE, stat_file), (ORDERS, orders())]
}

fn orders() -> Vec<u8> {
    let mut dice = Dice::new(SEED, Purpose::Requests);
    let customers = Customers {
        products: SHAPE.products,
        ..Customers::default()
    };
    let lines: Vec<String> = (1..=ORDER_COUNT)
        .map(|id| plan_order(&mut dice, id, &customers).0.to_wire())
        // An order has only texts and numbers, so its serialization cannot fail.
        .map(|order: NewOrder| serde_json::to_string(&order).expect("an order is plain data"))
        .collect();
    format!("[\n  {}\n]\n", lines.join(",\n  ")).into_bytes()
}

/// Writes the samples into a folder, which is created if it does not exist.
///
/// # Errors
/// If the folder or a file cannot be written.
pub fn write_samples(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    for (name, content) in samples() {
        let path = folder.join(name);
        fs::write(&path, content).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_in_the_repository_are_what_the_simulators_make() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/samples");
        for (name, content) in samples() {
            let kept = fs::read(folder.join(name)).unwrap_or_default();
            assert!(
                kept == content,
                "data/samples/{name} differs; `imt sim samples` writes it again, but find the reason first"
            );
            assert!(content.len() <= 20 * 1024, "{name} is {} bytes", content.len());
        }
    }

    #[test]
    fn every_sample_order_can_be_served_by_a_store_of_the_sample_stock() {
        let stock = Stock::first_day(SEED, SHAPE);
        let [_, _, (_, orders)] = samples();
        let orders: Vec<NewOrder> = serde_json::from_slice(&orders).unwrap();
        assert_eq!(orders.len(), 10);
        for order in orders {
            let has = |store| {
                order
                    .products
                    .iter()
                    .all(|p| stock.get(p.id, store).unwrap() >= p.quantity)
            };
            assert!((1..=SHAPE.stores).any(has), "{order:?}");
        }
    }
}
