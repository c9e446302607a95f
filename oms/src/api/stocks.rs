//! The routes of stock: take a snapshot in while it arrives, look at a product.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;

use super::orders::json;
use super::problem::Problem;
use super::{App, body};
use crate::csv::LineReader;
use crate::sheet::{PRODUCT_MAX, Sheet};
use crate::stock::{Arrival, StaleSnapshot};
use crate::store::Changes;

/// Largest snapshot: the usual one has 22 MB.
pub(super) const STOCK_BYTES_MAX: usize = 100 * 1_000 * 1_000;

#[derive(Serialize)]
struct SnapshotTaken {
    lines: u64,
    stores: usize,
    applied: bool,
}

fn as_of(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("x-stock-as-of") else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Problem::field("X-Stock-As-Of", "must be a whole number"))
}

fn stale(stale: StaleSnapshot) -> Problem {
    let StaleSnapshot { as_of, newest } = stale;
    let detail = format!("the snapshot is as of {as_of}, and one as of {newest} was applied before");
    Problem::conflict("stale-snapshot", detail)
}

/// `PUT /stocks`
pub(super) async fn put(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    body::check_length(&headers, STOCK_BYTES_MAX)?;
    let as_of = as_of(&headers)?;
    let _turn = app
        .snapshot_turns
        .try_acquire()
        .map_err(|_| Problem::busy("other snapshots are arriving"))?;
    let arrival = {
        let stock = app.desk().stock();
        stock.accepts(as_of).map_err(stale)?;
        stock.arrival()
    };
    let (sheet, lines) = read_sheet(body).await?;
    let stores = sheet.columns().len();
    apply(&app, sheet, as_of, arrival).await?;
    tracing::info!(lines, stores, as_of, "took a stock snapshot in");
    Ok(json(&SnapshotTaken {
        lines,
        stores,
        applied: true,
    }))
}

/// Reads a snapshot line by line as it arrives; no more of it is in memory than the last piece and the result.
async fn read_sheet(mut body: Body) -> Result<(Sheet, u64), Problem> {
    let mut reader = LineReader::default();
    let mut sheet = Sheet::default();
    let mut bytes = 0;
    while let Some(piece) = body::next_piece(&mut body).await? {
        bytes += piece.len();
        if bytes > STOCK_BYTES_MAX {
            return Err(Problem::too_large(STOCK_BYTES_MAX));
        }
        reader
            .feed(&piece, |fields| sheet.set(fields))
            .map_err(Problem::csv)?;
    }
    let lines = reader.finish(|fields| sheet.set(fields)).map_err(Problem::csv)?;
    if lines == 0 {
        return Err(Problem::body(
            "the snapshot has no lines; a stock that is empty has lines of quantity 0",
        ));
    }
    Ok((sheet, lines))
}

/// Puts a whole sheet in force: turned round and encoded beside the orders, swapped in between two of them.
async fn apply(app: &App, sheet: Sheet, as_of: Option<u64>, arrival: Arrival) -> Result<(), Problem> {
    // One at a time: the stores that a snapshot replaces are those of the one before it.
    let _applying = app.applying.lock().await;
    let desk = Arc::clone(app.desk());
    let stores_before = desk.stock().stores().to_vec();
    let prepared = tokio::task::spawn_blocking(move || {
        let mut changes = Changes::default();
        changes.stock(&sheet, &stores_before);
        (sheet.shelves(), changes)
    });
    let (shelves, mut changes) = prepared
        .await
        .map_err(|error| Problem::internal(error.to_string()))?;
    let permit = desk.store.permit().await?;
    let (applied, ticket) = {
        let mut stock = desk.stock();
        let applied = stock.apply(shelves, as_of, arrival).map_err(stale)?;
        changes.stock_head(&applied.head);
        applied
            .counted
            .iter()
            .for_each(|(order, _)| changes.forget_delivery(order));
        (applied, permit.send(changes))
    };
    if let Err(error) = ticket.durable().await {
        let before = desk.store.sheet()?;
        desk.stock().undo(applied, before.shelves());
        return Err(error.into());
    }
    Ok(())
}

#[derive(Serialize)]
struct ProductInStore {
    store_id: u32,
    on_hand: i64,
    reserved: u32,
    available: i32,
}

#[derive(Serialize)]
struct ProductStock {
    product: u32,
    stores: Vec<ProductInStore>,
}

/// `GET /stocks/{product}`
pub(super) async fn product(
    State(app): State<Arc<App>>,
    Path(product): Path<String>,
) -> Result<Response, Problem> {
    let product = parse_product(&product)?;
    let shelves = app.desk().stock().product(product);
    if shelves.is_empty() {
        return Err(Problem::not_found(format!(
            "no store has ever had product {product}"
        )));
    }
    let stores = shelves.into_iter().map(|shelf| ProductInStore {
        store_id: shelf.store,
        on_hand: i64::from(shelf.available) + i64::from(shelf.reserved),
        reserved: shelf.reserved,
        available: shelf.available,
    });
    Ok(json(&ProductStock {
        product,
        stores: stores.collect(),
    }))
}

/// Parses a product id from a path.
pub(super) fn parse_product(text: &str) -> Result<u32, Problem> {
    let product = text
        .parse()
        .ok()
        .filter(|product| (1..=PRODUCT_MAX).contains(product));
    product.ok_or_else(|| Problem::field("product", format!("a product id is 1 to {PRODUCT_MAX}")))
}
