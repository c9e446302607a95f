//! The routes that look: statistics, reservations, outbox.

use std::sync::{Arc, PoisonError};

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::lane::Json;
use super::orders::json;
use super::problem::Problem;
use super::query::{ListQuery, Path, Query};
use super::shelves::parse_product;
use super::{App, body};
use crate::desk::Fault;
use crate::order::{Line, OrderId};
use crate::outbox::{Kind, ListedMessage, smallest};
use crate::process;
use crate::stats::ProductStats;
use crate::transactor::Ask;

/// Most products of a ranking.
const TOP_MAX: usize = 1_000;

/// `GET /aggregate-stats/{product}`
pub(super) async fn product_stats(
    State(app): State<Arc<App>>,
    Path(product): Path<String>,
) -> Result<Json, Problem> {
    statistics(&app, &product)
}

/// What was sold of a product.
pub(super) fn statistics(app: &App, product: &str) -> Result<Json, Problem> {
    let product = parse_product(product)?;
    app.desk()
        .slots
        .has_statistics()
        .then_some(())
        .ok_or(Fault::Moved)?;
    let sums = app
        .statistics
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .product(product);
    Json::of(&sums)
}

#[derive(Serialize)]
struct Ranked {
    product: u32,
    #[serde(flatten)]
    stats: ProductStats,
}

#[derive(Serialize)]
struct Ranking {
    products: Vec<Ranked>,
}

/// `GET /aggregate-stats?top=N`
pub(super) async fn top_stats(
    State(app): State<Arc<App>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let count = query.top()?.unwrap_or(10);
    if !(1..=TOP_MAX).contains(&count) {
        return Err(Problem::field("top", format!("must be 1 to {TOP_MAX}")));
    }
    app.desk()
        .slots
        .has_statistics()
        .then_some(())
        .ok_or(Fault::Moved)?;
    let top = app
        .statistics
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .top(count);
    Ok(json(&Ranking {
        products: top
            .into_iter()
            .map(|(product, stats)| Ranked { product, stats })
            .collect(),
    }))
}

#[derive(Serialize)]
struct ListedReservation {
    order: OrderId,
    store: u32,
    products: Box<[Line]>,
}

#[derive(Serialize)]
struct ReservationPage {
    reservations: Vec<ListedReservation>,
    next: Option<String>,
}

/// `GET /reservations?limit=&cursor=`, by order id.
pub(super) async fn reservations(
    State(app): State<Arc<App>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit()?;
    let after = match query.cursor.as_deref().filter(|cursor| !cursor.is_empty()) {
        None => None,
        Some(cursor) => Some(OrderId::parse(cursor).map_err(|reason| Problem::field("cursor", reason))?),
    };
    let desk = Arc::clone(app.desk());
    let all = process::blocking(move || desk.store.reservations(&desk.slots)).await;
    let all = all.map_err(|error| Problem::internal(error.to_string()))??;
    let after = all
        .into_iter()
        .filter(|reservation| after.as_ref().is_none_or(|after| reservation.order > *after));
    let page = smallest(after, limit, |reservation| reservation.order.clone());
    let next = (page.len() == limit)
        .then(|| page.last().map(|last| last.order.to_string()))
        .flatten();
    let listed = page.into_iter().map(|reservation| ListedReservation {
        order: reservation.order,
        store: reservation.store,
        products: reservation.lines,
    });
    Ok(json(&ReservationPage {
        reservations: listed.collect(),
        next,
    }))
}

#[derive(Serialize)]
struct MessagePage {
    messages: Vec<ListedMessage>,
    next: Option<String>,
}

fn message_key(order: &str, kind: &str) -> Result<(OrderId, Kind), Problem> {
    let kind = Kind::from_name(kind).ok_or_else(|| Problem::field("kind", "is announce or deliver"))?;
    Ok((body::parse_id(order)?, kind))
}

/// `GET /outbox?limit=&cursor=`, by order id and kind.
pub(super) async fn outbox(
    State(app): State<Arc<App>>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit()?;
    let after = match query.cursor.as_deref().filter(|cursor| !cursor.is_empty()) {
        None => None,
        Some(cursor) => {
            let parts = cursor.rsplit_once('/');
            let (order, kind) =
                parts.ok_or_else(|| Problem::field("cursor", "is not one that a page gave"))?;
            Some(message_key(order, kind)?)
        }
    };
    let messages = app.desk().outbox().page(after.as_ref(), limit);
    let last = messages.last().filter(|_| messages.len() == limit);
    let next = last.map(|last| format!("{}/{}", last.order, last.kind.name()));
    Ok(json(&MessagePage { messages, next }))
}

#[derive(Serialize)]
struct Retried {
    order: OrderId,
    kind: Kind,
    state: &'static str,
}

/// `POST /outbox/{order}/{kind}/retry`
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    Path((order, kind)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (order, kind) = message_key(&order, &kind)?;
    app.transactors
        .ask(&order, Ask::Retry(kind))
        .await
        .map_err(|fault| match fault {
            Fault::Unknown => Problem::not_found("there is no such message"),
            fault => fault.into(),
        })?;
    Ok(json(&Retried {
        order,
        kind,
        state: "waiting",
    }))
}
