//! The operations that show stock: a product in all stores, and a store with all its products.
//!
//! **Invariants**
//! - `on_hand` is always the sum of `available` and `reserved`.
//! - A store is shown only by the volume that owns its slot.

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
    /// Units in the store: available and reserved ones.
    on_hand: i64,
    /// Units reserved for orders, or lent to other volumes for their next orders.
    reserved: u32,
    /// Those of the reserved units that are lent. An order that needs them gets them back. Absent
    /// if there are none.
    #[serde(skip_serializing_if = "is_none_lent")]
    lent: u32,
    /// Units that an order can still get. Negative if a new stock has fewer units than are
    /// reserved.
    available: i32,
}

fn is_none_lent(lent: &u32) -> bool {
    *lent == 0
}

impl Quantities {
    fn of(level: Level) -> Quantities {
        Quantities {
            on_hand: i64::from(level.available) + i64::from(level.reserved),
            reserved: level.reserved,
            lent: level.lent,
            available: level.available,
        }
    }
}

/// The quantities of a product in a store.
#[derive(Serialize, ToSchema)]
struct InStore {
    /// The store.
    store_id: u32,
    #[serde(flatten)]
    quantities: Quantities,
}

/// The quantities of a product.
#[derive(Serialize, ToSchema)]
struct OfProduct {
    /// The product.
    product: u32,
    #[serde(flatten)]
    quantities: Quantities,
}

/// A product in all stores.
#[derive(Serialize, ToSchema)]
#[schema(as = ProductStock)]
pub(super) struct ProductPage {
    /// The product.
    product: u32,
    /// The stores that have, or had, the product, by ascending id.
    #[schema(value_type = Vec<InStore>)]
    stores: Vec<Box<RawValue>>,
}

/// A store with all its products.
#[derive(Serialize, ToSchema)]
#[schema(as = StoreStock)]
pub(super) struct StorePage {
    /// The store.
    store: u32,
    /// The products, by ascending id.
    products: Vec<OfProduct>,
}

/// Lists the stores of this volume that have, or had, a product.
pub(super) fn product(app: &App, product: u32) -> Result<Vec<Entry<u32>>, Problem> {
    let levels = app.state().stock().product(product);
    let entry = |level: Level| {
        let (store_id, quantities) = (level.cell.store, Quantities::of(level));
        Entry::of(store_id, &InStore { store_id, quantities })
    };
    levels.into_iter().map(entry).collect()
}

/// Renders a product with its stores in all volumes.
pub(super) fn render_product(product: u32, stores: Vec<Box<RawValue>>) -> Result<Response, Problem> {
    if stores.is_empty() {
        let detail = format!("no store has ever had product {product}");
        return Err(Problem::not_found(detail));
    }
    Ok(json(&ProductPage { product, stores }))
}

/// Shows a store with all its products.
pub(super) fn store(app: &App, store: u32) -> Result<Json, Problem> {
    let state = app.state();
    // A store that is being migrated, or was migrated, is shown by its new volume.
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
