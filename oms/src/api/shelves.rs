//! The routes that look at stock: a product in all stores, a store with all its products.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::App;
use super::orders::json;
use super::problem::Problem;
use super::query::Path;
use crate::sheet::{PRODUCT_MAX, STORE_MAX};
use crate::stock::Level;

/// The quantities of one product in one store.
#[derive(Serialize)]
struct Quantities {
    on_hand: i64,
    reserved: u32,
    available: i32,
}

impl Quantities {
    fn of(level: Level) -> Quantities {
        Quantities {
            on_hand: i64::from(level.available) + i64::from(level.reserved),
            reserved: level.reserved,
            available: level.available,
        }
    }
}

#[derive(Serialize)]
struct InStore {
    store_id: u32,
    #[serde(flatten)]
    quantities: Quantities,
}

#[derive(Serialize)]
struct OfProduct {
    product: u32,
    #[serde(flatten)]
    quantities: Quantities,
}

#[derive(Serialize)]
struct ProductPage {
    product: u32,
    stores: Vec<InStore>,
}

#[derive(Serialize)]
struct StorePage {
    store: u32,
    products: Vec<OfProduct>,
}

/// `GET /stocks/{product}`
pub(super) async fn product(
    State(app): State<Arc<App>>,
    Path(product): Path<String>,
) -> Result<Response, Problem> {
    let product = parse_product(&product)?;
    let levels = app.desk().stock().product(product);
    if levels.is_empty() {
        return Err(Problem::not_found(format!(
            "no store has ever had product {product}"
        )));
    }
    let stores = levels.into_iter().map(|(store_id, level)| InStore {
        store_id,
        quantities: Quantities::of(level),
    });
    Ok(json(&ProductPage {
        product,
        stores: stores.collect(),
    }))
}

/// `GET /stores/{store}`
pub(super) async fn store(
    State(app): State<Arc<App>>,
    Path(store): Path<String>,
) -> Result<Response, Problem> {
    let store = parse("store", &store, STORE_MAX)?;
    let levels = app.desk().stock().store(store);
    let levels = levels.ok_or_else(|| Problem::not_found(format!("the stock has no store {store}")))?;
    let products = levels.into_iter().map(|(product, level)| OfProduct {
        product,
        quantities: Quantities::of(level),
    });
    Ok(json(&StorePage {
        store,
        products: products.collect(),
    }))
}

/// Parses a product id from a path.
pub(super) fn parse_product(text: &str) -> Result<u32, Problem> {
    parse("product", text, PRODUCT_MAX)
}

fn parse(field: &str, text: &str, largest: u32) -> Result<u32, Problem> {
    let number = text.parse().ok().filter(|number| (1..=largest).contains(number));
    number.ok_or_else(|| Problem::field(field, format!("a {field} id is 1 to {largest}")))
}
