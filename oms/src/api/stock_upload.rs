//! Stock uploads at one volume: a whole snapshot (`PUT`), or some lines (`PATCH`), parsed while
//! they arrive.
//!
//! **Invariants**
//! - Nothing is applied before the whole body has been read and checked.
//! - One upload is applied at a time. Memory and rows change under the lock of the stock, in one
//!   order.
//! - If a commit fails, the stock in memory is set back to the stock of the volume.
//! - An upload that was split or read under another set of slots is answered "moved".
//!
//! Deliberately absent: splitting a stock over volumes, which is in `stock_fan_out`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::Query;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::content;
use crate::api::fast_path::Json;
use crate::api::problem::Problem;
use crate::domain::csv::{FieldFault, LineReader};
use crate::domain::stock::{Arrival, CellStep, StaleSnapshot};
use crate::domain::stock_matrix::{Layout, StockMatrix};
use crate::domain::stock_snapshot::{PRODUCT_MAX, StockSnapshot};
use crate::runtime;
use crate::storage::group_commit::Ticket;
use crate::storage::owned_slots::Slots;
use crate::storage::write_batch::WriteBatch;
use crate::volume::app::App;
use crate::volume::state::{OrderError, VolumeState};

/// Maximum size of a snapshot in bytes. The usual one has 22 MB.
pub(super) const STOCK_BYTES_MAX: usize = 100 * 1_000 * 1_000;

/// Maximum number of lines of a change. A larger change costs as much as a whole snapshot.
pub(super) const PATCH_LINES_MAX: usize = 100_000;
/// Maximum size of a change in bytes.
pub(super) const PATCH_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Maximum size of one volume's part, in bytes: a whole stock and a line for each product.
const PART_BYTES_MAX: usize = STOCK_BYTES_MAX + 16 * PRODUCT_MAX as usize;

/// The question to a volume whether it accepts a snapshot.
#[derive(Serialize, Deserialize)]
pub(crate) struct BeginStock {
    pub(super) as_of: Option<u64>,
}

/// The answer of a volume before a snapshot is sent to it.
#[derive(Serialize, Deserialize)]
pub(crate) enum Begun {
    /// The volume accepts the snapshot.
    Taken {
        /// Token that marks this moment.
        token: String,
    },
    /// A newer snapshot was applied.
    Stale { as_of: u64, newest: u64 },
    /// The number of the snapshot is above the largest one that the volume accepts now.
    Implausible { largest: u64 },
}

/// The parameters of one volume's part of a stock. The part itself is CSV; a line of store 0 only
/// names a product.
#[derive(Serialize, Deserialize)]
pub(crate) struct Part {
    /// `true` if the part replaces the whole stock of the volume.
    pub(super) is_whole: bool,
    /// Epoch of the ring by which the stock was split.
    pub(super) epoch: u64,
    pub(super) as_of: Option<u64>,
    /// Token of the moment at which the upload began.
    pub(super) arrival: Option<String>,
}

impl Part {
    /// Returns the query of a call between nodes. None of its values needs percent encoding.
    pub(super) fn to_query(&self) -> String {
        let mut query = format!("is_whole={}&epoch={}", self.is_whole, self.epoch);
        if let Some(as_of) = self.as_of {
            query.push_str(&format!("&as_of={as_of}"));
        }
        if let Some(arrival) = &self.arrival {
            query.push_str(&format!("&arrival={arrival}"));
        }
        query
    }

    fn parse(query: &str) -> Result<Part, Problem> {
        let uri = format!("/?{query}").parse::<Uri>();
        let uri = uri.map_err(|error| Problem::field("query", error.to_string()))?;
        let part = Query::<Part>::try_from_uri(&uri);
        let Query(part) = part.map_err(|fault| Problem::field("query", fault.body_text()))?;
        Ok(part)
    }
}

impl App {
    /// Returns a token that marks this moment in the order of deliveries.
    fn arrival_token(&self) -> String {
        let Arrival(ordinal) = self.state().stock().arrival();
        format!("{}.{ordinal}", self.incarnation)
    }

    /// Checks that the warehouse can have made as many deliveries as the snapshot counts. The error
    /// is the largest plausible number.
    fn check_as_of(&self, as_of: Option<u64>) -> Result<(), u64> {
        let state = self.state();
        let largest = state.stock().largest_plausible(state.clock.now_ms());
        match as_of {
            Some(as_of) if as_of > largest => Err(largest),
            _ => Ok(()),
        }
    }

    /// Returns the moment of a token. A token of an earlier instance of this volume's server marks
    /// the beginning, so that no delivery known here counts as included in the snapshot.
    fn arrival_of(&self, token: &str) -> Option<Arrival> {
        let (incarnation, ordinal) = token.split_once('.')?;
        let is_ours = incarnation == self.incarnation.to_string();
        Some(Arrival(if is_ours { ordinal.parse().ok()? } else { 0 }))
    }
}

/// Checks whether this volume accepts a snapshot, and returns a token for this moment.
pub(super) fn begin(app: &App, ask: &BeginStock) -> Result<Begun, Problem> {
    if app.state().storage.has_failed() {
        return Err(Problem::busy(
            "the volume takes no more writes because a commit failed",
        ));
    }
    app.state().storage.check_engine()?;
    if let Err(largest) = app.check_as_of(ask.as_of) {
        return Ok(Begun::Implausible { largest });
    }
    if let Err(StaleSnapshot { as_of, newest }) = app.state().stock().accepts(ask.as_of) {
        return Ok(Begun::Stale { as_of, newest });
    }
    let token = app.arrival_token();
    Ok(Begun::Taken { token })
}

/// Reserves one of the `SNAPSHOTS_ARRIVING_MAX` uploads.
pub(super) fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, Problem> {
    turns
        .try_acquire()
        .map_err(|_| Problem::busy("too many stock uploads are in progress"))
}

#[derive(Serialize)]
pub(super) struct SnapshotTaken {
    pub(super) lines: u64,
    pub(super) stores: usize,
    pub(super) applied: bool,
}

/// Rejects a form. A client such as curl sends its body as a form by default, and a body of one
/// line would replace the whole stock. Any other type, or none, is read as CSV.
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

/// 400: the snapshot claims to count more deliveries than the warehouse can have made.
pub(super) fn implausible(largest: u64) -> Problem {
    Problem::field(
        "X-Stock-As-Of",
        format!("must be at most {largest} now; it is the number of the last delivery that the stock counts"),
    )
}

/// 409: a newer snapshot was applied before.
pub(super) fn stale(as_of: u64, newest: u64) -> Problem {
    let detail = format!(
        "the snapshot is as of delivery {as_of}, but a snapshot as of delivery {newest} was applied before"
    );
    Problem::conflict("stale-snapshot", detail)
}

impl From<StaleSnapshot> for Problem {
    fn from(StaleSnapshot { as_of, newest }: StaleSnapshot) -> Problem {
        stale(as_of, newest)
    }
}

/// 400: a stock upload without lines.
pub(super) fn no_lines() -> Problem {
    Problem::body("the body has no lines; to empty a stock, send its lines with quantity 0")
}

/// Executes `PUT /stocks`.
pub(super) async fn put(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Json, Problem> {
    content::check_length(headers, STOCK_BYTES_MAX)?;
    check_content_type(headers)?;
    let as_of = as_of(headers)?;
    let _turn = turn(&app.snapshot_turns)?;
    app.check_as_of(as_of).map_err(implausible)?;
    let slots = app.state().slots.version();
    let arrival = {
        let stock = app.state().stock();
        stock.accepts(as_of)?;
        stock.arrival()
    };
    let mut snapshot = StockSnapshot::default();
    let lines = read_lines(headers, body, STOCK_BYTES_MAX, |fields| snapshot.set(fields)).await?;
    if lines == 0 {
        return Err(no_lines());
    }
    snapshot.counts_to(as_of);
    let stores = snapshot.stores().len();
    run_to_completion(apply(Arc::clone(app), snapshot, as_of, arrival, slots)).await?;
    tracing::info!(volume = app.volume, lines, stores, as_of, "stock applied");
    Json::of(&SnapshotTaken {
        lines,
        stores,
        applied: true,
    })
}

/// Reads a body line by line as it arrives. Memory use is bounded by one piece of the body and the
/// lines that `take` stores.
pub(super) async fn read_lines(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    mut take: impl FnMut([u32; 3]) -> Result<(), FieldFault>,
) -> Result<u64, Problem> {
    let mut reader = LineReader::default();
    let read = |piece: &[u8]| reader.feed(piece, &mut take).map_err(Problem::csv);
    content::read(headers, body, limit, read).await?;
    reader.finish(take).map_err(Problem::csv)
}

/// Reads all lines of a change.
pub(super) async fn read_cells(headers: &HeaderMap, body: Body) -> Result<(u64, Vec<[u32; 3]>), Problem> {
    let mut cells = Vec::new();
    let lines = read_lines(headers, body, PATCH_BYTES_MAX, |fields| {
        if cells.len() == PATCH_LINES_MAX {
            let reason = format!("a change has at most {PATCH_LINES_MAX} lines; send a whole snapshot");
            return Err(FieldFault { field: 0, reason });
        }
        cells.push(fields);
        // Checked here, where line and column are known. The snapshot to change is read later.
        StockSnapshot::check(fields)
    });
    Ok((lines.await?, cells))
}

/// Applies this volume's part of a stock that another node received.
pub(super) async fn take_part(app: &Arc<App>, query: &str, body: Body) -> Result<Json, Problem> {
    let part = Part::parse(query)?;
    let _turn = turn(&app.snapshot_turns)?;
    let slots = {
        let slots = &app.state().slots;
        let version = slots.version();
        // Another ring splits the stock differently, and this part would empty the stores that it
        // omits.
        if slots.ring().epoch().0 != part.epoch {
            return Err(Problem::moved());
        }
        version
    };
    let headers = HeaderMap::new();
    let taken = |lines, stores| {
        Json::of(&SnapshotTaken {
            lines,
            stores,
            applied: true,
        })
    };
    if !part.is_whole {
        let (mut cells, mut products) = (Vec::new(), Vec::new());
        let lines = read_lines(&headers, body, PART_BYTES_MAX, |fields| {
            match fields {
                [product, 0, _] => products.push(product),
                fields => cells.push(fields),
            }
            Ok(())
        });
        let lines = lines.await?;
        let stores = run_to_completion(change(Arc::clone(app), cells, products, slots)).await?;
        app.state().copies_are_current().await;
        return taken(lines, stores);
    }
    let arrival = {
        let stock = app.state().stock();
        stock.accepts(part.as_of)?;
        let named = part.arrival.as_deref().and_then(|token| app.arrival_of(token));
        named.unwrap_or_else(|| stock.arrival())
    };
    let mut snapshot = StockSnapshot::default();
    let lines = read_lines(&headers, body, PART_BYTES_MAX, |fields| match fields {
        [product, 0, _] => snapshot.name_product(product),
        fields => snapshot.set(fields),
    });
    let lines = lines.await?;
    snapshot.counts_to(part.as_of);
    let stores = snapshot.stores().len();
    run_to_completion(apply(Arc::clone(app), snapshot, part.as_of, arrival, slots)).await?;
    app.state().copies_are_current().await;
    taken(lines, stores)
}

/// A whole stock, encoded and ready to be applied.
struct Prepared {
    matrix: StockMatrix,
    stores: Vec<u32>,
    /// Batches that may be written before the last one; see `WriteBatch::stock_in_parts`.
    parts: Vec<WriteBatch>,
    last: WriteBatch,
}

impl Prepared {
    fn of(snapshot: StockSnapshot, known: &Arc<Layout>) -> Prepared {
        let mut last = WriteBatch::default();
        let parts = if snapshot.has_layout(known) {
            WriteBatch::stock_in_parts(&snapshot)
        } else {
            last.stock(&snapshot, &known.stores);
            Vec::new()
        };
        Prepared {
            stores: snapshot.stores().to_vec(),
            matrix: snapshot.into_matrix(known),
            parts,
            last,
        }
    }
}

/// Applies a whole stock: encodes it on a blocking thread, writes its parts between the commits of
/// orders, and swaps the stock in memory under its lock.
///
/// A stock with the products and stores of the one before is written store by store. If the process
/// dies in between, some stores have their new quantities. Their rows record the last delivery that
/// they count, so no delivery is subtracted twice. If neither snapshots nor deliveries are
/// numbered, too few units may be sold until the next snapshot, never too many.
async fn apply(
    app: Arc<App>,
    snapshot: StockSnapshot,
    as_of: Option<u64>,
    arrival: Arrival,
    slots: u64,
) -> Result<(), Problem> {
    // Only one upload at a time: a snapshot replaces the stores of the snapshot before it.
    let _applying = app.applying.lock().await;
    let state = app.state();
    let known = {
        let stock = state.stock();
        stock.accepts(as_of)?;
        stock.layout()
    };
    let prepared = runtime::blocking(move || Prepared::of(snapshot, &known)).await;
    let Prepared {
        matrix,
        stores,
        parts,
        mut last,
    } = prepared.map_err(|error| Problem::internal(error.to_string()))?;
    if let Err(problem) = write(state, parts, &stores, slots).await {
        // Some stores may have been written, so memory is read again from the volume.
        restore(state).await?;
        return Err(problem);
    }
    let permit = state.storage.permit().await?;
    let (applied, ticket) = {
        let mut stock = state.stock();
        check_stores(&state.slots, &stores, slots)?;
        stores
            .iter()
            .for_each(|store| last.fence(state.slots.fence_of_store(*store)));
        let applied = stock.apply(matrix, as_of, arrival)?;
        last.stock_head(&applied.head);
        applied
            .counted
            .iter()
            .for_each(|(order, delivery)| last.forget_delivery(order, delivery.store));
        (applied, permit.send(last))
    };
    if let Err(error) = ticket.durable().await {
        let (matrix, counted_to_overrides) = read_matrix(state).await?;
        state.stock().undo(applied, matrix, counted_to_overrides);
        return Err(error.into());
    }
    app.counters.stock_snapshots.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Writes the parts of a stock. The next part is queued while the one before is being synced.
async fn write(
    state: &VolumeState,
    parts: Vec<WriteBatch>,
    stores: &[u32],
    slots: u64,
) -> Result<(), Problem> {
    let mut before: Option<Ticket> = None;
    for part in parts {
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            check_stores(&state.slots, stores, slots)?;
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

/// Reads the stock of the volume, and the stores that count up to another delivery than the stock
/// as a whole.
async fn read_matrix(state: &Arc<VolumeState>) -> Result<(StockMatrix, BTreeMap<u32, Option<u64>>), Problem> {
    let state = Arc::clone(state);
    let read = runtime::blocking(move || {
        let known = state.stock().layout();
        let snapshot = state.storage.snapshot(&state.slots)?;
        let counted_to_overrides = snapshot.counted_to_overrides(&state.storage.stock_head()?);
        Ok::<_, Problem>((snapshot.into_matrix(&known), counted_to_overrides))
    });
    read.await.map_err(|error| Problem::internal(error.to_string()))?
}

/// Replaces the stock in memory by the stock of the volume.
async fn restore(state: &Arc<VolumeState>) -> Result<(), Problem> {
    loop {
        let version = state.slots.version();
        // After this empty commit, every write queued before has been written or has failed.
        let _ = state
            .storage
            .permit()
            .await?
            .send(WriteBatch::default())
            .durable()
            .await;
        let (matrix, counted_to_overrides) = read_matrix(state).await?;
        let mut stock = state.stock();
        if state.slots.version() == version {
            let before = stock.replace_quantities(matrix, counted_to_overrides);
            drop(stock);
            drop(before);
            return Ok(());
        }
    }
}

/// Runs work in a task of its own, so that a client that disconnects cannot cancel it halfway.
async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let done = runtime::spawn(work).await;
    done.map_err(|error| Problem::internal(error.to_string()))?
}

/// Executes `PATCH /stocks`: each line replaces the quantity on hand of a product in a store, as of
/// now.
pub(super) async fn patch(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Json, Problem> {
    content::check_length(headers, PATCH_BYTES_MAX)?;
    check_content_type(headers)?;
    let _turn = turn(&app.snapshot_turns)?;
    let slots = app.state().slots.version();
    let (lines, cells) = read_cells(headers, body).await?;
    if lines == 0 {
        return Err(no_lines());
    }
    let stores = run_to_completion(change(Arc::clone(app), cells, Vec::new(), slots)).await?;
    Json::of(&SnapshotTaken {
        lines,
        stores,
        applied: true,
    })
}

/// Rejects stock of stores that this volume does not own or that are sealed for a migration, and
/// stock that was read under another set of slots.
fn check_stores(slots: &Slots, stores: &[u32], version: u64) -> Result<(), Problem> {
    if slots.version() != version {
        return Err(OrderError::Moved.into());
    }
    if slots.is_alone() && !slots.some_sealed() {
        return Ok(());
    }
    for store in stores {
        if !slots.check_store(*store)? {
            return Err(OrderError::Moved.into());
        }
    }
    // A snapshot empties the stores that it omits. It must not do so after a store has been copied
    // to another volume.
    if slots.some_sealed() {
        Err(OrderError::Moved.into())
    } else {
        Ok(())
    }
}

/// Applies some cells, and returns the number of changed stores. Only these stores are read,
/// changed and written. A product in `products` gets a cell in each store.
async fn change(
    app: Arc<App>,
    cells: Vec<[u32; 3]>,
    products: Vec<u32>,
    slots: u64,
) -> Result<usize, Problem> {
    let _applying = app.applying.lock().await;
    let state = Arc::clone(app.state());
    let prepared = runtime::blocking(move || {
        let stores: BTreeSet<u32> = cells.iter().map(|[_, store, _]| *store).collect();
        let known = cells.iter().map(|[product, store, _]| (*product, *store));
        let has_products = {
            let stock = state.stock();
            products.iter().all(|product| stock.has_product(*product))
        };
        let mut snapshot = if state.stock().has_all(known) && has_products {
            state.storage.snapshot_of(&stores)?
        } else {
            // New products or stores enlarge the stock, and its size limit is checked on the whole.
            state.storage.snapshot(&state.slots)?
        };
        let too_large = |fault: FieldFault| Problem::body(fault.reason);
        for product in products {
            snapshot.name_product(product).map_err(too_large)?;
        }
        // Deliveries since the last snapshot are still subtracted from the row. The new quantity
        // excludes them already, so they are added here.
        let left = state.stock().uncounted();
        let mut steps = Vec::with_capacity(cells.len());
        for [product, store, quantity] in cells {
            let left = left.get(&(store, product)).copied().unwrap_or(0);
            let before = snapshot.quantity(product, store);
            let after = quantity.saturating_add(left);
            snapshot.set([product, store, after]).map_err(too_large)?;
            steps.push(CellStep {
                product,
                store,
                by: after as i32 - before,
            });
        }
        let mut batch = WriteBatch::default();
        batch.stores(&snapshot, &stores);
        let stores: Vec<u32> = stores.into_iter().collect();
        Ok::<_, Problem>((batch, steps, stores, has_products))
    });
    let (mut batch, mut steps, stores, has_products) = prepared
        .await
        .map_err(|error| Problem::internal(error.to_string()))??;
    let state = app.state();
    let permit = state.storage.permit().await?;
    let (has_room, ticket) = {
        let mut stock = state.stock();
        check_stores(&state.slots, &stores, slots)?;
        stores
            .iter()
            .for_each(|store| batch.fence(state.slots.fence_of_store(*store)));
        (has_products && stock.step(&steps), permit.send(batch))
    };
    let durable = ticket.durable().await;
    if has_room && durable.is_err() {
        steps.iter_mut().for_each(|step| step.by = -step.by);
        state.stock().step(&steps);
    } else if !has_room && durable.is_ok() {
        // The matrix in memory has no cell for a new product or store, so it is built again.
        restore(state).await?;
    }
    durable?;
    Ok(stores.len())
}

#[cfg(test)]
mod implausible_tests;
#[cfg(test)]
mod tests;
