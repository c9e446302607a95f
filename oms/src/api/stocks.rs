//! The routes that take stock in: a whole snapshot while it arrives, or some lines of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use flate2::write::GzDecoder;
use serde::Serialize;

use super::gate::epoch_of;
use super::orders::json;
use super::problem::Problem;
use super::{App, body};
use crate::changes::Changes;
use crate::csv::{FieldFault, LineReader};
use crate::desk::{Desk, Fault};
use crate::process;
use crate::sheet::Sheet;
use crate::shelves::{Layout, Shelves};
use crate::slots::Slots;
use crate::stock::{Arrival, CellStep, StaleSnapshot};
use crate::store::Ticket;

/// Largest snapshot: the usual one has 22 MB.
pub(super) const STOCK_BYTES_MAX: usize = 100 * 1_000 * 1_000;

/// Most lines of a change: beyond it a whole snapshot costs no more.
pub(super) const PATCH_LINES_MAX: usize = 100_000;
/// Largest change.
pub(super) const PATCH_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Says that a body is the part of a snapshot that is for this volume.
pub(crate) const PART: &str = "x-imt-part";
/// When the whole snapshot began to arrive, as `Arrival` of this volume's rooms.
pub(crate) const ARRIVAL: &str = "x-imt-arrival";

impl App {
    /// A token for this moment.
    pub(crate) fn arrival_token(&self) -> String {
        let Arrival(ordinal) = self.desk().stock().arrival();
        format!("{}.{ordinal}", self.incarnation)
    }

    /// Refuses a snapshot that says it counts more deliveries than there can have been.
    pub(crate) fn check_as_of(&self, as_of: Option<u64>) -> Result<(), Problem> {
        let desk = self.desk();
        let largest = desk.stock().largest_plausible(desk.clock.now_ms());
        match as_of {
            Some(as_of) if as_of > largest => Err(Problem::field(
                "X-Stock-As-Of",
                format!("must be at most {largest} now; it is the number of the last delivery counted"),
            )),
            _ => Ok(()),
        }
    }

    /// The moment of a token. One of earlier rooms over the volume stands before everything that these know of.
    fn arrival_of(&self, headers: &HeaderMap) -> Option<Arrival> {
        let token = headers.get(ARRIVAL)?.to_str().ok()?;
        let (incarnation, ordinal) = token.split_once('.')?;
        let is_ours = incarnation == self.incarnation.to_string();
        Some(Arrival(if is_ours { ordinal.parse().ok()? } else { 0 }))
    }
}

#[derive(Serialize)]
pub(super) struct SnapshotTaken {
    pub(super) lines: u64,
    pub(super) stores: usize,
    pub(super) applied: bool,
}

/// Refuses a body that says it is a form: a client that sets no type sends one by accident, and a body of one line
/// would replace the whole stock. Every other type, and none, is taken for CSV.
pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value
        .and_then(|value| value.split(';').next())
        .unwrap_or("")
        .trim();
    let is_form = ["application/x-www-form-urlencoded", "multipart/form-data"]
        .iter()
        .any(|form| essence.eq_ignore_ascii_case(form));
    if is_form {
        return Err(Problem::content_type(essence));
    }
    Ok(())
}

pub(super) fn as_of(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
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
    check_content_type(&headers)?;
    let as_of = as_of(&headers)?;
    app.check_as_of(as_of)?;
    let _turn = app
        .snapshot_turns
        .try_acquire()
        .map_err(|_| Problem::busy("other snapshots are arriving"))?;
    let slots = slots_meant(&app, &headers)?;
    let arrival = {
        let stock = app.desk().stock();
        stock.accepts(as_of).map_err(stale)?;
        app.arrival_of(&headers).unwrap_or_else(|| stock.arrival())
    };
    let mut sheet = Sheet::default();
    let lines = read_lines(&headers, body, |fields| sheet.set(fields)).await?;
    sheet.counts_to(as_of);
    let stores = sheet.stores().len();
    to_its_end(apply(Arc::clone(&app), sheet, as_of, arrival, slots)).await?;
    tracing::info!(lines, stores, as_of, "took a stock snapshot in");
    Ok(json(&SnapshotTaken {
        lines,
        stores,
        applied: true,
    }))
}

/// Reads a body line by line as it arrives; no more of it is in memory than the last piece and what `take` keeps.
pub(super) async fn read_lines(
    headers: &HeaderMap,
    mut body: Body,
    mut take: impl FnMut([u32; 3]) -> Result<(), FieldFault>,
) -> Result<u64, Problem> {
    let mut reader = LineReader::default();
    let mut plain = Plain::of(headers)?;
    let mut bytes = 0;
    let mut read = |piece: &[u8]| {
        bytes += piece.len();
        if bytes > STOCK_BYTES_MAX {
            return Err(Problem::too_large(STOCK_BYTES_MAX));
        }
        reader.feed(piece, &mut take).map_err(Problem::csv)
    };
    while let Some(piece) = body::next_piece(&mut body).await? {
        plain.unpack(&piece, &mut read)?;
        // A sender on the same machine always has the next piece ready: without this, the requests that wait for this thread
        // would wait for megabytes.
        tokio::task::yield_now().await;
    }
    plain.end(&mut read)?;
    let lines = reader.finish(take).map_err(Problem::csv)?;
    // A part of a snapshot may have no line for this volume.
    if lines == 0 && !headers.contains_key(PART) {
        return Err(Problem::body(
            "the body has no lines; a stock that is empty has lines of quantity 0",
        ));
    }
    Ok(lines)
}

/// A body as it was before its encoding.
enum Plain {
    AsSent,
    Gzip(Box<GzDecoder<Vec<u8>>>),
}

impl Plain {
    fn of(headers: &HeaderMap) -> Result<Plain, Problem> {
        match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Ok(Plain::AsSent),
            Some(b"gzip") => Ok(Plain::Gzip(Box::new(GzDecoder::new(Vec::new())))),
            Some(_) => Err(Problem::encoding()),
        }
    }

    fn unpack(
        &mut self,
        piece: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let Plain::Gzip(decoder) = self else {
            return take(piece);
        };
        // A thousandfold at most: four kilobytes become four megabytes, never a piece as a whole.
        for part in piece.chunks(4_096) {
            decoder.write_all(part).map_err(broken_gzip)?;
            take(decoder.get_ref())?;
            decoder.get_mut().clear();
        }
        Ok(())
    }

    /// Hands the last of the body over, and checks its length and sum.
    fn end(self, mut take: impl FnMut(&[u8]) -> Result<(), Problem>) -> Result<(), Problem> {
        match self {
            Plain::AsSent => Ok(()),
            Plain::Gzip(decoder) => take(&decoder.finish().map_err(broken_gzip)?),
        }
    }
}

fn broken_gzip(error: std::io::Error) -> Problem {
    Problem::body(format!(
        "the body is not gzip as its content-encoding says: {error}"
    ))
}

/// A whole stock, ready to be put in force.
struct Prepared {
    shelves: Shelves,
    stores: Vec<u32>,
    /// Rows that may be written before the others; see `Changes::stock_in_parts`.
    parts: Vec<Changes>,
    last: Changes,
}

impl Prepared {
    fn of(sheet: Sheet, known: &Arc<Layout>) -> Prepared {
        let mut last = Changes::default();
        let parts = if sheet.is_laid_out_as(known) {
            Changes::stock_in_parts(&sheet)
        } else {
            last.stock(&sheet, &known.stores);
            Vec::new()
        };
        Prepared {
            stores: sheet.stores().to_vec(),
            shelves: sheet.into_shelves(known),
            parts,
            last,
        }
    }
}

/// Puts a whole sheet in force: encoded beside the orders, written between them, swapped in between two of them.
///
/// A stock with the products and stores of the one before is written store by store. Should the process die meanwhile, some
/// stores have their new quantities: their rows say up to which delivery they count, so that nothing is subtracted twice. Where
/// neither snapshots nor deliveries are numbered, too little may be sold then until the snapshot comes again, never too much.
async fn apply(
    app: Arc<App>,
    sheet: Sheet,
    as_of: Option<u64>,
    arrival: Arrival,
    slots: u64,
) -> Result<(), Problem> {
    // One at a time: the stores that a snapshot replaces are those of the one before it.
    let _applying = app.applying.lock().await;
    let desk = app.desk();
    let known = {
        let stock = desk.stock();
        stock.accepts(as_of).map_err(stale)?;
        stock.layout()
    };
    let prepared = process::blocking(move || Prepared::of(sheet, &known)).await;
    let Prepared {
        shelves,
        stores,
        parts,
        mut last,
    } = prepared.map_err(|error| Problem::internal(error.to_string()))?;
    if let Err(problem) = write(desk, parts, &stores, slots).await {
        // Some stores may have been written: memory is what the volume is.
        restore(desk).await?;
        return Err(problem);
    }
    let permit = desk.store.permit().await?;
    let (applied, ticket) = {
        let mut stock = desk.stock();
        check_stores(&desk.slots, &stores, slots)?;
        stores
            .iter()
            .for_each(|store| last.fence(desk.slots.fence_of_store(*store)));
        let applied = stock.apply(shelves, as_of, arrival).map_err(stale)?;
        last.stock_head(&applied.head);
        applied
            .counted
            .iter()
            .for_each(|(order, delivery)| last.forget_delivery(order, delivery.store));
        (applied, permit.send(last))
    };
    if let Err(error) = ticket.durable().await {
        let (shelves, counted_apart) = read_shelves(desk).await?;
        desk.stock().undo(applied, shelves, counted_apart);
        return Err(error.into());
    }
    app.counters.stock_snapshots.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Writes parts of a stock, two at a time: while one is synced, the next one is on its way.
async fn write(desk: &Desk, parts: Vec<Changes>, stores: &[u32], slots: u64) -> Result<(), Problem> {
    let mut before: Option<Ticket> = None;
    for part in parts {
        let permit = desk.store.permit().await?;
        let ticket = {
            let _stock = desk.stock();
            check_stores(&desk.slots, stores, slots)?;
            permit.send(part)
        };
        if let Some(before) = before.replace(ticket) {
            before.durable().await?;
        }
    }
    match before {
        Some(ticket) => Ok(ticket.durable().await?),
        None => Ok(()),
    }
}

/// The stock as the volume has it, and the stores that count up to another delivery than its head says.
async fn read_shelves(desk: &Arc<Desk>) -> Result<(Shelves, BTreeMap<u32, Option<u64>>), Problem> {
    let desk = Arc::clone(desk);
    let read = process::blocking(move || {
        let known = desk.stock().layout();
        let sheet = desk.store.sheet(&desk.slots)?;
        let counted_apart = sheet.counted_apart(&desk.store.stock_head()?);
        Ok::<_, Problem>((sheet.into_shelves(&known), counted_apart))
    });
    read.await.map_err(|error| Problem::internal(error.to_string()))?
}

/// Puts the stock as the volume has it on the shelves.
async fn restore(desk: &Arc<Desk>) -> Result<(), Problem> {
    loop {
        let version = desk.slots.version();
        // Whatever was queued is in the volume then, or will never be.
        let _ = desk
            .store
            .permit()
            .await?
            .send(Changes::default())
            .durable()
            .await;
        let (shelves, counted_apart) = read_shelves(desk).await?;
        let mut stock = desk.stock();
        if desk.slots.version() == version {
            let before = stock.become_those(shelves, counted_apart);
            drop(stock);
            drop(before);
            return Ok(());
        }
    }
}

/// Does what must not be left half done, whether or not the sender waits for it.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let done = process::spawn(work).await;
    done.map_err(|error| Problem::internal(error.to_string()))?
}

/// `PATCH /stocks`: the lines given replace what is on hand of their products in their stores, as of now.
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    body::check_length(&headers, PATCH_BYTES_MAX)?;
    check_content_type(&headers)?;
    let _turn = app
        .snapshot_turns
        .try_acquire()
        .map_err(|_| Problem::busy("other snapshots are arriving"))?;
    let slots = slots_meant(&app, &headers)?;
    let mut cells = Vec::new();
    let lines = read_lines(&headers, body, |fields| {
        if cells.len() == PATCH_LINES_MAX {
            let reason = format!("a change has at most {PATCH_LINES_MAX} lines; send a whole snapshot");
            return Err(FieldFault { field: 0, reason });
        }
        cells.push(fields);
        // Checked here, where line and column are known; the sheet that it belongs into is read later.
        Sheet::check(fields)
    })
    .await?;
    let stores = to_its_end(change(Arc::clone(&app), cells, slots)).await?;
    Ok(json(&SnapshotTaken {
        lines,
        stores,
        applied: true,
    }))
}

/// The slots that a body is about: those that are here. A part was made by somebody who had a ring in mind; by another one
/// it would be another part, and what it leaves out would be lost.
fn slots_meant(app: &App, headers: &HeaderMap) -> Result<u64, Problem> {
    let slots = &app.desk().slots;
    let version = slots.version();
    let is_part = headers.contains_key(PART);
    let is_meant = !is_part || epoch_of(headers) == Some(slots.ring().epoch().0);
    is_meant.then_some(version).ok_or_else(Problem::moved)
}

/// Refuses stock of stores that are not here, or that are on their way elsewhere, and stock that was read when other slots
/// were here.
fn check_stores(slots: &Slots, stores: &[u32], version: u64) -> Result<(), Problem> {
    if slots.version() != version {
        return Err(Fault::Moved.into());
    }
    if slots.is_alone() && !slots.some_sealed() {
        return Ok(());
    }
    for store in stores {
        if !slots.check_store(*store)? {
            return Err(Fault::Moved.into());
        }
    }
    // What a snapshot leaves out is gone with it: it must not meet a store that has been copied out.
    if slots.some_sealed() {
        Err(Fault::Moved.into())
    } else {
        Ok(())
    }
}

/// Puts some cells in force and says in how many stores: only the stores concerned are read, changed and written.
async fn change(app: Arc<App>, cells: Vec<[u32; 3]>, slots: u64) -> Result<usize, Problem> {
    let _applying = app.applying.lock().await;
    let desk = Arc::clone(app.desk());
    let prepared = process::blocking(move || {
        let stores: BTreeSet<u32> = cells.iter().map(|[_, store, _]| *store).collect();
        let known = cells.iter().map(|[product, store, _]| (*product, *store));
        let mut sheet = if desk.stock().has_all(known) {
            desk.store.sheet_of(&stores)?
        } else {
            // It grows: whether it may is a matter of all of it.
            desk.store.sheet(&desk.slots)?
        };
        // What left since the snapshot is still subtracted from it: the new quantities already lack it.
        let left = desk.stock().uncounted();
        let mut steps = Vec::with_capacity(cells.len());
        for [product, store, quantity] in cells {
            let left = left.get(&(store, product)).copied().unwrap_or(0);
            let before = sheet.quantity(product, store);
            let after = quantity.saturating_add(left);
            sheet
                .set([product, store, after])
                .map_err(|fault| Problem::body(fault.reason))?;
            steps.push(CellStep {
                product,
                store,
                by: after as i32 - before,
            });
        }
        let mut changes = Changes::default();
        changes.stores(&sheet, &stores);
        let stores: Vec<u32> = stores.into_iter().collect();
        Ok::<_, Problem>((changes, steps, stores))
    });
    let (mut changes, mut steps, stores) = prepared
        .await
        .map_err(|error| Problem::internal(error.to_string()))??;
    let desk = app.desk();
    let permit = desk.store.permit().await?;
    let (has_room, ticket) = {
        let mut stock = desk.stock();
        check_stores(&desk.slots, &stores, slots)?;
        stores
            .iter()
            .for_each(|store| changes.fence(desk.slots.fence_of_store(*store)));
        (stock.step(&steps), permit.send(changes))
    };
    let durable = ticket.durable().await;
    if has_room && durable.is_err() {
        steps.iter_mut().for_each(|step| step.by = -step.by);
        desk.stock().step(&steps);
    } else if !has_room && durable.is_ok() {
        // A product or a store that the stock did not have before: its shelves are made anew, with a place for it.
        restore(desk).await?;
    }
    durable?;
    Ok(stores.len())
}

#[cfg(test)]
mod implausible_tests;
#[cfg(test)]
mod tests;
