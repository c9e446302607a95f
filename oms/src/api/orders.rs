//! The routes of orders: place, pay, cancel, look at.

use std::fmt::Display;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use serde::Serialize;

use super::lane::Json;
use super::problem::Problem;
use super::query::{ListQuery, Path, Query};
use super::{App, body};
use crate::desk::Outcome;
use crate::order::{Command, Event, Line, Order, OrderId, State as OrderState};
use crate::process;
use crate::transactor::Ask;

/// Orders looked at for one page of a list: a filter that finds little ends its page early instead of late.
const LOOKED_AT_MAX: usize = 50_000;

/// A cursor behind everything.
const AT_END: &str = "18446744073709551615.0";

/// An order as it is answered when it is taken; the same however far it has come since.
#[derive(Serialize)]
struct Accepted<'a> {
    id: &'a OrderId,
    products: &'a [Line],
    store_id: Option<u32>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<u64>,
    created_at_ms: u64,
}

/// An order as it is now.
#[derive(Serialize)]
pub(super) struct Current<'a> {
    id: &'a OrderId,
    products: &'a [Line],
    store_id: Option<u32>,
    state: OrderState,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<u64>,
    created_at_ms: u64,
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
            created_at_ms: order.created_at_ms(),
            updated_at_ms: order.updated_at_ms(),
        }
    }
}

/// Renders JSON with its content type.
pub(super) fn json(value: &impl Serialize) -> Response {
    Json::of(value).into_response()
}

fn accepted(order: &Order, state: &'static str, transaction_id: Option<u64>) -> Result<Json, Problem> {
    Json::of(&Accepted {
        id: &order.id,
        products: &order.lines,
        store_id: order.store,
        state,
        transaction_id,
        created_at_ms: order.created_at_ms(),
    })
}

/// Asks the transactor of an order.
async fn ask(app: &App, id: &OrderId, ask: Ask) -> Result<Outcome, Problem> {
    Ok(app.transactors.ask(id, ask).await?)
}

/// `POST /order`
pub(super) async fn place(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json, Problem> {
    take(&app, &headers, body).await
}

/// Takes an order from a body.
pub(super) async fn take<B>(app: &App, headers: &HeaderMap, body: B) -> Result<Json, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let order = body::parse_order(&body::read_small(headers, body).await?)?;
    let Outcome { order, repeated } = ask(app, &order.id, Ask::Place(order.lines)).await?;
    if order.store.is_none() {
        let detail = format!("no store has all products of order {}", order.id);
        return Err(Problem::conflict("no-store", detail).replayed(repeated));
    }
    Ok(accepted(&order, OrderState::Reserved.name(), None)?.replayed(repeated))
}

/// `POST /order/{id}/payment-callback`
pub(super) async fn pay(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json, Problem> {
    take_payment(&app, &id, &headers, body).await
}

/// Takes an order's payment from a body.
pub(super) async fn take_payment<B>(
    app: &App,
    id: &str,
    headers: &HeaderMap,
    body: B,
) -> Result<Json, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let id = body::parse_id(id)?;
    let transaction = body::parse_payment(&body::read_small(headers, body).await?)?;
    let Outcome { order, repeated } = ask(app, &id, Ask::Command(Command::Pay { transaction })).await?;
    let was_paid = order
        .history
        .iter()
        .any(|entry| matches!(entry.event, Event::Paid { .. }));
    if !was_paid {
        let detail = format!("order {id} had ended before it was paid; the payment is kept, to be refunded");
        return Err(Problem::conflict("refund-wanted", detail).replayed(repeated));
    }
    Ok(accepted(&order, OrderState::Paid.name(), order.transaction)?.replayed(repeated))
}

/// `POST /order/{id}/cancel`
pub(super) async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = body::parse_id(&id)?;
    let outcome = ask(&app, &id, Ask::Command(Command::Cancel)).await?;
    Ok(json(&Current::of(&outcome.order)))
}

fn find(app: &App, id: &str) -> Result<Order, Problem> {
    let id = body::parse_id(id)?;
    app.desk().slots.check_order(&id)?;
    let order = app.desk().store.order(&id)?;
    order.ok_or_else(|| Problem::not_found(format!("there is no order {id}")))
}

/// `GET /order/{id}`
pub(super) async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Response, Problem> {
    Ok(json(&Current::of(&find(&app, &id)?)))
}

#[derive(Serialize)]
struct HistoryEntry<'a> {
    at_ms: u64,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    store_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stock_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct History<'a> {
    id: &'a OrderId,
    events: Vec<HistoryEntry<'a>>,
}

/// `GET /order/{id}/history`
pub(super) async fn history(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let order = find(&app, &id)?;
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
    Ok(json(&History {
        id: &order.id,
        events: std::iter::once(received).chain(events).collect(),
    }))
}

#[derive(Serialize)]
struct OrderPage<'a> {
    orders: Vec<Current<'a>>,
    next: Option<String>,
}

/// `GET /orders?state=&store=&since=&limit=&cursor=`, in order of arrival.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let filter = Filter::of(&query)?;
    let limit = query.limit()?;
    let cursor = query
        .cursor
        .as_deref()
        .map(|cursor| own_cursor(&app.volume, cursor));
    let (page, at) = match cursor.filter(|cursor| !cursor.is_empty()) {
        None => (0, 0),
        Some(cursor) => cursor
            .split_once('.')
            .and_then(|(page, at)| Some((page.parse().ok()?, at.parse().ok()?)))
            .ok_or_else(|| Problem::field("cursor", "is not one that a page gave"))?,
    };
    let desk = Arc::clone(app.transactors.desk());
    let walk = process::blocking(move || walk(&desk, &filter, limit, page, at)).await;
    let (orders, next) = walk.map_err(|error| Problem::internal(error.to_string()))??;
    Ok(json(&OrderPage {
        orders: orders.iter().map(Current::of).collect(),
        next,
    }))
}

/// The part of a cursor that is about this volume. One that was given while there were other volumes says in which of them it
/// stands: before this one, or behind it.
fn own_cursor<'a>(volume: &str, cursor: &'a str) -> &'a str {
    match cursor.split_once('~') {
        None => cursor,
        Some((of, inner)) if of == volume => inner,
        Some((of, _)) if of < volume => "",
        Some(_) => AT_END,
    }
}

struct Filter {
    state: Option<OrderState>,
    store: Option<u32>,
    since_ms: u64,
}

impl Filter {
    fn of(query: &ListQuery) -> Result<Filter, Problem> {
        let state = match query.state.as_deref().filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => Some(OrderState::from_name(name).ok_or_else(|| {
                let names: Vec<&str> = OrderState::ALL.iter().map(|state| state.name()).collect();
                Problem::field("state", format!("is none of {}", names.join(", ")))
            })?),
        };
        Ok(Filter {
            state,
            store: query.store()?,
            since_ms: query.since()?.unwrap_or(0),
        })
    }

    fn lets_pass(&self, order: &Order) -> bool {
        self.state.is_none_or(|state| state == order.state)
            && self.store.is_none_or(|store| Some(store) == order.store)
            && order.created_at_ms() >= self.since_ms
    }
}

fn walk(
    desk: &crate::desk::Desk,
    filter: &Filter,
    limit: usize,
    mut page: u64,
    mut at: usize,
) -> Result<(Vec<Order>, Option<String>), Problem> {
    let store = &desk.store;
    let end = store.book().next_page;
    let mut found = Vec::new();
    let mut looked_at = 0;
    while page < end {
        let ids = store.arrivals(page)?;
        while let Some(id) = ids.get(at) {
            if found.len() == limit || looked_at == LOOKED_AT_MAX {
                return Ok((found, Some(format!("{page}.{at}"))));
            }
            looked_at += 1;
            at += 1;
            if !desk.slots.has_order(id) {
                continue;
            }
            found.extend(store.order(id)?.filter(|order| filter.lets_pass(order)));
        }
        page += 1;
        at = 0;
    }
    Ok((found, None))
}

/// Answers what matched a path but not its method.
pub(super) async fn method_not_allowed() -> Problem {
    Problem::method()
}

/// Answers what matched no path.
pub(super) async fn no_such_path() -> (StatusCode, Problem) {
    (StatusCode::NOT_FOUND, Problem::not_found("there is no such path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_a_time_with_other_volumes_goes_on_where_it_stood() {
        for (cursor, own) in [
            ("3.4", "3.4"),
            ("", ""),
            ("lyon~3.4", "3.4"),
            ("alpha~3.4", ""),
            ("lyon~", ""),
            ("paris~3.4", AT_END),
        ] {
            assert_eq!(own_cursor("lyon", cursor), own, "{cursor}");
        }
        assert_eq!(AT_END.split_once('.').unwrap().0, u64::MAX.to_string());
    }
}
