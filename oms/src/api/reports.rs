//! Reports on sales, reservations and messages to the warehouse, and the retry of a dead letter.
//!
//! **Invariants**
//! - Only the volume that owns the statistics reports sales.
//! - The entries of a page are sorted by the key that the cursor of the page contains.
//! - A page has all reservations of each of its orders, because its cursor is an order id.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::api::fan_out::{AskEntries, Entry};
use crate::api::fast_path::Json;
use crate::api::params::parse_message_key;
use crate::api::problem::Problem;
use crate::domain::order::{Line, OrderId};
use crate::domain::sales::ProductStats;
use crate::outbox::{Kind, MessageState};
use crate::runtime;
use crate::volume::app::App;
use crate::volume::state::OrderError;
use crate::volume::transactor::Ask;

/// Returns the sales of a product.
pub(super) fn product_sales(app: &App, product: u32) -> Result<Json, Problem> {
    app.state()
        .slots
        .has_statistics()
        .then_some(())
        .ok_or(OrderError::Moved)?;
    let sums = app.statistics.read().product(product);
    Json::of(&sums)
}

/// The sales of one product of a ranking.
#[derive(Serialize, ToSchema)]
struct Ranked {
    /// Id of the product.
    product: u32,
    #[serde(flatten)]
    stats: ProductStats,
}

/// The products with the highest revenue.
#[derive(Serialize, ToSchema)]
pub(super) struct Ranking {
    /// The products, most revenue first.
    products: Vec<Ranked>,
}

/// Returns the `count` products with the highest revenue.
pub(super) fn top_sales(app: &App, count: usize) -> Result<Json, Problem> {
    app.state()
        .slots
        .has_statistics()
        .then_some(())
        .ok_or(OrderError::Moved)?;
    let top = app.statistics.read().top(count);
    Json::of(&Ranking {
        products: top
            .into_iter()
            .map(|(product, stats)| Ranked { product, stats })
            .collect(),
    })
}

/// The units of a store that are reserved for an order.
#[derive(Serialize, ToSchema)]
#[schema(as = Reservation)]
pub(super) struct ListedReservation {
    /// Id of the order.
    order: OrderId,
    /// Id of the store.
    store: u32,
    /// The number of units reserved of each product.
    #[schema(value_type = Vec<Line>)]
    products: Box<[Line]>,
}

/// Returns the reservations of the first orders of this volume after the order id that `ask` names
/// (or from the start), sorted by order id. The limit of `ask` is the number of orders.
pub(super) async fn reservations(app: &App, ask: &AskEntries) -> Result<Vec<Entry<OrderId>>, Problem> {
    let after = ask.after.as_deref().map(OrderId::parse).transpose();
    let after = after.map_err(|reason| Problem::field("cursor", reason))?;
    let (state, limit) = (Arc::clone(app.state()), ask.limit);
    // The result includes the reservations of orders that took borrowed units. The order's volume
    // lists such a reservation, because the store's volume may not have it yet.
    let first = runtime::blocking(move || {
        let storage = &state.storage;
        storage.first_reservations(&state.slots, after.as_ref(), limit)
    });
    let first = first.await;
    let first = first.map_err(|error| Problem::internal(error.to_string()))??;
    let entry = |reservation: crate::domain::stock::Reservation| {
        let listed = ListedReservation {
            order: reservation.order.clone(),
            store: reservation.store,
            products: reservation.lines,
        };
        Entry::of(reservation.order, &listed)
    };
    first.into_values().flatten().map(entry).collect()
}

/// Returns the first outbox messages of this volume after the message that `ask` names (or from the
/// start), sorted by order id and kind.
pub(super) fn messages(app: &App, ask: &AskEntries) -> Result<Vec<Entry<(OrderId, String)>>, Problem> {
    let after = match ask.after.as_deref() {
        None => None,
        Some(text) => {
            let key = parse_message_key(text);
            Some(key.ok_or_else(|| Problem::field("cursor", "must be the key of a message, ORDER/KIND"))?)
        }
    };
    let messages = app
        .state()
        .outbox()
        .page(after.as_ref(), ask.limit, app.state().now());
    let entry = |message: &crate::outbox::ListedMessage| {
        let key = (message.order.clone(), message.kind.name().to_owned());
        Entry::of(key, message)
    };
    messages.iter().map(entry).collect()
}

/// A message that is retried.
#[derive(Serialize, ToSchema)]
#[schema(as = RetriedMessage)]
pub(super) struct Retried<'a> {
    /// Id of the order.
    order: &'a OrderId,
    /// The kind of the message: `announce` or `deliver`.
    kind: Kind,
    /// The state of the message, which is always `waiting`.
    state: MessageState,
}

/// Retries a dead letter: makes it a waiting message without failed attempts, which is due at once.
/// Changes nothing if the message is waiting already.
pub(super) async fn retry(app: &App, order: &OrderId, kind: Kind) -> Result<Json, Problem> {
    app.transactors.ask(order, Ask::Retry(kind)).await?;
    Json::of(&Retried {
        order,
        kind,
        state: MessageState::Waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::write_batch::WriteBatch;
    use crate::volume::transactor::tests::{close, transactors};

    #[tokio::test]
    async fn a_page_of_a_volume_has_all_reservations_of_its_first_orders() {
        let folder = tempfile::tempdir().unwrap();
        let transactors = transactors(folder.path(), 5).await;
        let app = App::of(&transactors);
        let id = |text: &str| OrderId::parse(text).unwrap();
        let lines = [Line { id: 7, quantity: 1 }];
        let mut batch = WriteBatch::default();
        for (order, store) in [("d", 1), ("b", 9), ("c", 4), ("a", 2), ("b", 10)] {
            batch.reserve_for(&id(order), store, &lines, Some(1));
        }
        batch.spend(&id("a"), 3, &lines, 1);
        let permit = app.state().storage.permit().await.unwrap();
        permit.send(batch).durable().await.unwrap();
        for (after, limit, expected) in [
            (None, 1, "aa"),
            (None, 2, "aabb"),
            (Some("a"), 1, "bb"),
            (Some("b"), 1, "c"),
            (Some("b"), 9, "cd"),
            (Some("d"), 9, ""),
        ] {
            let after = after.map(str::to_owned);
            let page = reservations(&app, &AskEntries { limit, after }).await.unwrap();
            let orders: String = page.iter().map(|entry| entry.key.as_str()).collect();
            assert_eq!(orders, expected);
        }
        close(transactors).await;
    }
}
