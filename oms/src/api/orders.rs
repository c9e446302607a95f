//! The operations on orders: place, pay, cancel, show, show the history, list.
//!
//! **Invariants**
//! - A repeated order or payment gets the same response as the first request, even if the state of
//!   the order has changed since.
//! - For one page of a list, a volume reads at most `ORDERS_PER_PAGE_READ_MAX` orders.
//!
//! The rules for state changes of an order are in `domain::order`.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::api::fan_out::{self, AskOrders};
use crate::api::fast_path::Json;
use crate::api::params::Position;
use crate::api::problem::{Kind, Problem};
use crate::domain::order::{Command, Entry, Event, Line, Order, OrderId, State as OrderState};
use crate::runtime;
use crate::volume::app::App;
use crate::volume::state::Outcome;
use crate::volume::transactor::Ask;

/// Maximum number of orders that a volume reads for one page of a list. If few orders match the
/// filter, the client gets a short page early instead of a full page late.
const ORDERS_PER_PAGE_READ_MAX: usize = 50_000;

/// The answer to a placed order or a payment. It does not depend on later events of the order.
#[derive(Serialize, ToSchema)]
#[schema(as = AcceptedOrder)]
pub(super) struct Accepted<'a> {
    /// Id of the order.
    id: &'a OrderId,
    /// The products, as they were ordered.
    products: &'a [Line],
    /// The store in which the units were reserved.
    #[schema(required = true, nullable = false, example = 5)]
    store_id: Option<u32>,
    /// `reserved` for an order, `paid` for a payment.
    state: OrderState,
    /// Transaction id of the payment; absent in the answer to an order.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 4_711)]
    transaction_id: Option<u64>,
    /// Time at which the order arrived, in UTC milliseconds since 1970.
    #[schema(example = 1_795_893_049_896_u64)]
    created_at_ms: u64,
}

/// The current state of an order.
#[derive(Serialize, ToSchema)]
#[schema(as = Order)]
pub(super) struct Current<'a> {
    /// Id of the order.
    id: &'a OrderId,
    /// The products, as they were ordered.
    products: &'a [Line],
    /// The store in which the units were reserved; null if no store had all products.
    #[schema(required = true, example = 5)]
    store_id: Option<u32>,
    /// The state of the order.
    state: OrderState,
    /// Transaction id of the first payment, also if it is to be refunded; absent without a payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = 4_711)]
    transaction_id: Option<u64>,
    /// Transaction ids of the payments to be refunded; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    refund_transaction_ids: Vec<u64>,
    /// Time at which the order arrived, in UTC milliseconds since 1970.
    #[schema(example = 1_795_893_049_896_u64)]
    created_at_ms: u64,
    /// Time of the last event of the order, in UTC milliseconds since 1970.
    #[schema(example = 1_795_893_050_112_u64)]
    updated_at_ms: u64,
}

impl<'a> Current<'a> {
    fn of(order: &'a Order) -> Current<'a> {
        Current {
            id: &order.id,
            products: &order.lines,
            store_id: order.store,
            state: order.state,
            transaction_id: order.transaction,
            refund_transaction_ids: order.refunds().collect(),
            created_at_ms: order.created_at_ms(),
            updated_at_ms: order.updated_at_ms(),
        }
    }
}

/// Renders a value as a JSON response with its content type.
pub(crate) fn json(value: &impl Serialize) -> Response {
    Json::of(value).into_response()
}

fn accepted(order: &Order, state: OrderState, transaction_id: Option<u64>) -> Result<Json, Problem> {
    Json::of(&Accepted {
        id: &order.id,
        products: &order.lines,
        store_id: order.store,
        state,
        transaction_id,
        created_at_ms: order.created_at_ms(),
    })
}

/// Sends a request to the transactor (the actor) of an order, and returns the outcome of the
/// request.
async fn ask(app: &App, id: &OrderId, ask: Ask) -> Result<Outcome, Problem> {
    Ok(app.transactors.ask(id, ask).await?)
}

/// Places an order: reserves its units in the store with the lowest id that has all of them.
/// Returns the problem 409 if no store has all of them, or if the id is that of an order with other
/// lines.
/// `is_repeated` is `true` if an earlier try of the client's request may have reserved the units.
pub(super) async fn place(
    app: &App,
    id: &OrderId,
    lines: Box<[Line]>,
    is_repeated: bool,
) -> Result<Json, Problem> {
    let place = if is_repeated {
        Ask::PlaceAgain(lines)
    } else {
        Ask::Place(lines)
    };
    let Outcome { order, repeated } = ask(app, id, place).await?;
    if order.store.is_none() {
        return Err(insufficient_stock(&order).replayed(repeated));
    }
    Ok(accepted(&order, OrderState::Reserved, None)?.replayed(repeated))
}

/// Maximum number of order lines that the text of a problem names.
const LINES_NAMED_MAX: usize = 10;

/// Returns the problem 409: no single store has all products of an order.
fn insufficient_stock(order: &Order) -> Problem {
    let named = order.lines.iter().take(LINES_NAMED_MAX);
    let mut lines: Vec<String> = named
        .map(|line| format!("{} of product {}", line.quantity, line.id))
        .collect();
    if order.lines.len() > LINES_NAMED_MAX {
        lines.push(format!("{} other products", order.lines.len() - LINES_NAMED_MAX));
    }
    let detail = format!(
        "no single store has {} for order {}",
        lines.join(" and "),
        order.id
    );
    Problem::new(Kind::InsufficientStock, detail)
}

/// Records the payment of an order. Returns the problem 409 if the payment has to be refunded.
pub(super) async fn pay(app: &App, id: &OrderId, transaction: u64) -> Result<Json, Problem> {
    let Outcome { order, repeated } = ask(app, id, Ask::Command(Command::Pay { transaction })).await?;
    let pays = |entry: &Entry| entry.event == Event::Paid { transaction };
    if !order.history.iter().any(pays) {
        let detail = match order.transaction.filter(|paid_by| *paid_by != transaction) {
            Some(paid_by) => format!(
                "order {id} is already paid by transaction {paid_by}; transaction {transaction} was recorded for a refund"
            ),
            None => {
                format!("order {id} had ended before it was paid; the payment was recorded for a refund")
            }
        };
        return Err(Problem::new(Kind::RefundWanted, detail).replayed(repeated));
    }
    Ok(accepted(&order, OrderState::Paid, order.transaction)?.replayed(repeated))
}

/// Cancels an order and returns its new state.
pub(super) async fn cancel(app: &App, id: &OrderId) -> Result<Json, Problem> {
    let outcome = ask(app, id, Ask::Command(Command::Cancel)).await?;
    Json::of(&Current::of(&outcome.order))
}

fn find(app: &App, id: &OrderId) -> Result<Order, Problem> {
    app.state().slots.check_order(id)?;
    let order = app.state().storage.order(id)?;
    order.ok_or_else(|| Problem::not_found(format!("there is no order {id}")))
}

/// Returns the current state of an order.
pub(super) fn show(app: &App, id: &OrderId) -> Result<Json, Problem> {
    Json::of(&Current::of(&find(app, id)?))
}

/// An event of an order.
#[derive(Serialize, ToSchema)]
#[schema(as = OrderEvent)]
struct HistoryEntry<'a> {
    /// Time of the event, in UTC milliseconds since 1970.
    at_ms: u64,
    /// Name of the event. Most events have the name of the order's new state. `delivery_started`
    /// changes the state to `delivering`. `announced` keeps the state of an order that is already
    /// paid, and `refund_wanted` keeps the state if another payment has paid the order.
    #[schema(example = "reserved")]
    event: &'static str,
    /// The store in which the units were reserved, for the event of a reservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    store_id: Option<u32>,
    /// Transaction id of the payment, for the event of a payment or of a wanted refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    transaction_id: Option<u64>,
    /// The warehouse's number of the delivery, for the event of a delivery; absent if the warehouse
    /// sent none. The number may exceed 2^53.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    stock_sequence: Option<u64>,
    /// The reason why the warehouse refused the order, for the event of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<&'a str>,
}

/// The events of an order.
#[derive(Serialize, ToSchema)]
pub(super) struct History<'a> {
    /// Id of the order.
    id: &'a OrderId,
    /// The events, oldest first.
    events: Vec<HistoryEntry<'a>>,
}

/// Returns the events of an order, oldest first.
pub(super) fn history(app: &App, id: &OrderId) -> Result<Json, Problem> {
    let order = find(app, id)?;
    let entry = |at_ms: u64, event: &'static str| HistoryEntry {
        at_ms,
        event,
        store_id: None,
        transaction_id: None,
        stock_sequence: None,
        reason: None,
    };
    let events = order.history.iter().map(|past| {
        let plain = entry(past.at_ms, past.event.name());
        match &past.event {
            Event::Reserved { store } => HistoryEntry {
                store_id: Some(*store),
                ..plain
            },
            Event::Paid { transaction } | Event::RefundWanted { transaction } => HistoryEntry {
                transaction_id: Some(*transaction),
                ..plain
            },
            Event::Delivered { sequence } => HistoryEntry {
                stock_sequence: *sequence,
                ..plain
            },
            Event::Failed { reason } => HistoryEntry {
                reason: Some(reason),
                ..plain
            },
            _ => plain,
        }
    });
    let received = entry(order.created_at_ms(), OrderState::Received.name());
    Json::of(&History {
        id: &order.id,
        events: std::iter::once(received).chain(events).collect(),
    })
}

/// An order in a volume's page of a list, with the position after the order.
#[derive(Serialize, Deserialize)]
pub(crate) struct OrderEntry {
    pub(crate) created_at_ms: u64,
    pub(crate) after: Position,
    pub(crate) order: Box<RawValue>,
}

/// A page of orders of one volume, in the sequence in which they came to the volume.
#[derive(Serialize, Deserialize)]
pub(crate) struct OrdersPage {
    pub(crate) entries: Vec<OrderEntry>,
    /// The position after the last order that was read, which may be later than the last entry.
    pub(crate) end: Position,
    /// `true` if there are unread orders after `end`.
    pub(crate) more: bool,
}

/// Returns a page of the orders of this volume that match the filter.
pub(super) async fn page(app: &App, ask: AskOrders) -> Result<OrdersPage, Problem> {
    let state = Arc::clone(app.transactors.state());
    let walk = runtime::blocking(move || walk(&state, &ask)).await;
    walk.map_err(|error| Problem::internal(error.to_string()))?
}

fn walk(state: &crate::volume::state::VolumeState, ask: &AskOrders) -> Result<OrdersPage, Problem> {
    let storage = &state.storage;
    let pages_end = storage.counters().next_page;
    let mut entries = Vec::new();
    let mut read = 0;
    let mut position = ask.from;
    while position.page < pages_end {
        let ids = storage.arrivals(position.page)?;
        while let Some(id) = ids.get(position.at as usize) {
            if entries.len() == ask.limit || read == ORDERS_PER_PAGE_READ_MAX {
                return Ok(OrdersPage {
                    entries,
                    end: position,
                    more: true,
                });
            }
            read += 1;
            position.at += 1;
            // An id that is followed by the same id stands in the place of an order that has moved
            // to another volume (`migration::cleanup`).
            let is_stand_in = ids.get(position.at as usize) == Some(id);
            if is_stand_in || !state.slots.has_order(id) {
                continue;
            }
            let Some(order) = storage.order(id)?.filter(|order| ask.filter.selects(order)) else {
                continue;
            };
            entries.push(OrderEntry {
                created_at_ms: order.created_at_ms(),
                after: position,
                order: fan_out::raw(&Current::of(&order))?,
            });
        }
        position = Position {
            page: position.page + 1,
            at: 0,
        };
    }
    Ok(OrdersPage {
        entries,
        end: position,
        more: false,
    })
}

#[cfg(test)]
mod tests {
    use imt_ring::{Member, Ring};

    use super::*;
    use crate::api::params::{OrdersQuery, Values};
    use crate::outbox::OutboxLimits;
    use crate::runtime::clock::Clock;
    use crate::storage::codec;
    use crate::storage::owned_slots::Slots;
    use crate::storage::volume::Volume;
    use crate::storage::write_batch::{Table, WriteBatch};
    use crate::volume::migration::cleanup::{StaleRows, remove_stale_rows};
    use crate::volume::state::VolumeState;

    /// Returns the ids of at most `limit` orders after a position, and the position after them.
    fn listed(state: &VolumeState, from: Position, limit: usize) -> (Vec<String>, Position) {
        let filter = OrdersQuery::parse(&Values::default()).unwrap().filter;
        let page = walk(state, &AskOrders { filter, limit, from }).unwrap();
        let ids = page.entries.iter().map(|entry| {
            let order: serde_json::Value = serde_json::from_str(entry.order.get()).unwrap();
            order["id"].as_str().unwrap().to_owned()
        });
        (ids.collect(), page.end)
    }

    #[tokio::test]
    async fn a_list_continues_at_its_cursor_after_a_cleanup_of_the_page() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(Volume::open(folder.path()).unwrap());
        let id = |number: u32| OrderId::parse(&format!("o{number}")).unwrap();
        let mut batch = WriteBatch::default();
        for number in 0..40 {
            let lines = [Line { id: 7, quantity: 1 }].into();
            let order = Order::place(id(number), lines, None, 1);
            let mut row = Vec::new();
            codec::encode_order(&order, &mut row);
            batch.put_raw(Table::Orders, order.id.as_bytes(), &row);
            batch.add_arrival(order.id);
        }
        let permit = storage.permit().await.unwrap();
        permit.send(batch).durable().await.unwrap();
        let slots = Arc::new(Slots::everything());
        let loaded = storage.load(&slots).unwrap();
        let limits = OutboxLimits::default();
        let state = VolumeState::new(Arc::clone(&storage), slots, loaded, limits, Clock::System, None);
        let (first, cursor) = listed(&state, Position::default(), 20);
        assert_eq!(first.len(), 20);

        let members = ["test", "other"].map(|name| Member::new(name).unwrap());
        let shared = Ring::bootstrap(members, imt_ring::Options::new()).unwrap();
        state.slots.follow(&Arc::new(shared));
        let stay = |numbers: std::ops::Range<u32>| -> Vec<String> {
            let here = numbers.map(id).filter(|id| state.slots.has_order(id));
            here.map(|id| id.to_string()).collect()
        };
        assert!(stay(0..20).len() < 20, "some orders before the cursor moved");
        let removed = remove_stale_rows(&storage, &state.slots, StaleRows::NeverActive, || false);
        assert!(removed.await.unwrap());
        assert_eq!(listed(&state, cursor, 40).0, stay(20..40));
        assert_eq!(listed(&state, Position::default(), 40).0, stay(0..40));
        let closing = tokio::task::spawn_blocking(move || storage.close());
        closing.await.unwrap().unwrap();
    }
}
