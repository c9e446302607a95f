//! The operations that read stock: a product in all stores, and a store with all its products.
//!
//! **Invariants**
//! - `on_hand` is always the sum of `available` and `reserved`.
//! - Only the volume that owns a store's slot reports the store.

use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::api::fan_out::Entry;
use crate::api::fast_path::Json;
use crate::api::orders::json;
use crate::api::problem::Problem;
use crate::domain::stock::Level;
use crate::volume::app::App;

/// The quantities of one product in one store.
#[derive(Serialize, ToSchema)]
struct Quantities {
    /// Units in the store, including reserved units.
    on_hand: i64,
    /// Units reserved for orders.
    reserved: u32,
    /// Units that orders can still reserve. The number is negative if a new stock has fewer units
    /// than are reserved.
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

/// The quantities of a product in a store.
#[derive(Serialize, ToSchema)]
struct InStore {
    /// Id of the store.
    store_id: u32,
    #[serde(flatten)]
    quantities: Quantities,
}

/// The quantities of a product.
#[derive(Serialize, ToSchema)]
struct OfProduct {
    /// Id of the product.
    product: u32,
    #[serde(flatten)]
    quantities: Quantities,
}

/// A product in all stores.
#[derive(Serialize, ToSchema)]
#[schema(as = ProductStock)]
pub(super) struct ProductPage {
    /// Id of the product.
    product: u32,
    /// All stores of each volume with the product in its stock, by ascending id. A store without a
    /// unit of the product is listed too.
    #[schema(value_type = Vec<InStore>)]
    stores: Vec<Box<RawValue>>,
}

/// A store with all its products.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreStock)]
pub(super) struct StorePage {
    /// Id of the store.
    store: u32,
    /// The products, by ascending id.
    products: Vec<OfProduct>,
}

/// Returns all stores of this volume, or no store if the volume's stock does not have the product.
pub(super) fn product(app: &App, product: u32) -> Result<Vec<Entry<u32>>, Problem> {
    let levels = app.state().stock().product(product);
    let entry = |level: Level| {
        let (store_id, quantities) = (level.cell.store, Quantities::of(level));
        Entry::of(store_id, &InStore { store_id, quantities })
    };
    levels.into_iter().map(entry).collect()
}

/// Renders the stock of a product, merged from the stores of all volumes. Without a store, returns
/// the problem 404.
pub(super) fn render_product(product: u32, stores: Vec<Box<RawValue>>) -> Result<Response, Problem> {
    if stores.is_empty() {
        let detail = format!("no store has ever had product {product}");
        return Err(Problem::not_found(detail));
    }
    Ok(json(&ProductPage { product, stores }))
}

/// Returns a store with the quantities of all its products.
pub(super) fn store(app: &App, store: u32) -> Result<Json, Problem> {
    let state = app.state();
    // If another volume owns the store's slot, only that volume reports the store.
    if !state.slots.has_store(store) {
        return Err(Problem::moved());
    }
    let levels = state.stock().store(store);
    let levels = levels.ok_or_else(|| Problem::not_found(format!("the stock has no store {store}")))?;
    let products = levels.into_iter().map(|level| OfProduct {
        product: level.cell.product,
        quantities: Quantities::of(level),
    });
    Json::of(&StorePage {
        store,
        products: products.collect(),
    })
}
