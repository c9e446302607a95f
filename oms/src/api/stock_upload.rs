//! Stock uploads at one volume: a whole snapshot (`PUT`) or some changed quantities (`PATCH`).
//! Bodies are parsed while they arrive.
//!
//! **Invariants**
//! - Nothing is applied before the whole body has been read and checked.
//! - One upload is applied at a time. So the stock in memory and the rows get all uploads in the
//!   same order.
//! - If a commit fails, the stock in memory is made equal to the stock in the volume's rows again.
//! - If the volume's set of slots changed since the upload was split or its reading began, or if a
//!   slot of the volume is sealed, the result is the problem "moved" (421).
//!
//! Splitting an upload over several volumes is in `stock_fan_out`.

mod apply;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Query;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use utoipa::ToSchema;

use crate::api::content;
use crate::api::fast_path::Json;
use crate::api::problem::{Kind, Problem};
use crate::api::stock_upload::apply::{apply, change};
use crate::cluster::peer_call::{VolumeCall, VolumeQuestion};
use crate::domain::csv::{FieldFault, LineReader};
use crate::domain::stock::{Arrival, StaleSnapshot};
use crate::domain::stock_snapshot::{PRODUCT_MAX, StockSnapshot};
use crate::runtime;
use crate::volume::app::App;

/// Maximum size of a snapshot in bytes. A typical snapshot has 22 MB.
pub(super) const STOCK_BYTES_MAX: usize = 100 * 1_000 * 1_000;

/// Maximum number of lines of a `PATCH`. A larger change costs as much as a whole snapshot.
pub(super) const PATCH_LINES_MAX: usize = 100_000;
/// Maximum size of a `PATCH` in bytes.
pub(super) const PATCH_BYTES_MAX: usize = 4 * 1_024 * 1_024;

/// Maximum size in bytes of one volume's part of an upload: a whole snapshot and one additional
/// line for each product.
const PART_BYTES_MAX: usize = STOCK_BYTES_MAX + 16 * PRODUCT_MAX as usize;

/// Asks a volume if it accepts an upload: a snapshot, or a `PATCH` (always without `as_of`).
#[derive(Serialize, Deserialize)]
pub(crate) struct BeginStock {
    pub(super) as_of: Option<u64>,
}

impl VolumeQuestion for BeginStock {
    const CALL: VolumeCall = VolumeCall::BeginStock;
    type Answer = Begun;
}

/// The answer of a volume to [`BeginStock`].
#[derive(Serialize, Deserialize)]
pub(crate) enum Begun {
    /// The volume accepts the upload.
    Taken {
        /// Token that marks the present moment in the volume's sequence of confirmed deliveries.
        token: String,
    },
    /// The volume rejects the snapshot, because a snapshot with a higher delivery number was
    /// applied to it, or to one of its stores.
    Stale { as_of: u64, newest: u64 },
    /// The volume rejects the snapshot, because its delivery number is above the largest number
    /// that the volume considers possible now.
    Implausible { largest: u64 },
}

/// The parameters of one volume's part of an upload. The part itself is the CSV body of the call.
/// In this body, a line with store 0 only names a product.
#[derive(Serialize, Deserialize)]
pub(crate) struct Part {
    /// `true` if the part replaces the whole stock of the volume.
    pub(super) is_whole: bool,
    /// Epoch of the ring by which the upload was split.
    pub(super) epoch: u64,
    pub(super) as_of: Option<u64>,
    /// The volume's token from the time at which the upload began. `None` if the volume joined the
    /// ring later.
    pub(super) arrival: Option<String>,
}

impl Part {
    /// Returns the query string of the call between nodes. None of the values needs percent
    /// encoding.
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
    /// Returns a token that marks the present moment in the sequence of confirmed deliveries.
    fn arrival_token(&self) -> String {
        let Arrival(ordinal) = self.state().stock().arrival();
        format!("{}.{ordinal}", self.incarnation)
    }

    /// Checks that the delivery number in the snapshot's `X-Stock-As-Of` is plausible. The error is
    /// the largest plausible number. A snapshot without a number always passes.
    fn check_as_of(&self, as_of: Option<u64>) -> Result<(), u64> {
        let state = self.state();
        let largest = state.stock().largest_plausible(state.clock.now_ms());
        match as_of {
            Some(as_of) if as_of > largest => Err(largest),
            _ => Ok(()),
        }
    }

    /// Returns the moment at which an upload began, as marked by the token of its part. A part has
    /// no token of this volume server if the volume joined the ring, or got a new volume server,
    /// after the upload began. Then the moment is unknown, and the result is the moment before all
    /// known deliveries. So these deliveries are subtracted from the snapshot, unless their numbers
    /// show that the snapshot counts them. Until the next snapshot, too few units may be sold, but
    /// never too many.
    fn arrival_of(&self, token: Option<&str>) -> Arrival {
        let of_this_server = token
            .and_then(|token| token.split_once('.'))
            .filter(|(incarnation, _)| *incarnation == self.incarnation.to_string());
        let ordinal = of_this_server.and_then(|(_, ordinal)| ordinal.parse().ok());
        Arrival(ordinal.unwrap_or(0))
    }
}

/// Checks if this volume accepts an upload. If so, returns a token that marks the present moment.
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

/// Takes a permit for one of the `SNAPSHOTS_ARRIVING_MAX` concurrent uploads. If all permits are
/// taken, returns the problem 503 without waiting.
pub(super) fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, Problem> {
    turns
        .try_acquire()
        .map_err(|_| Problem::busy("too many stock uploads are in progress"))
}

/// The answer to a stock upload.
#[derive(Serialize, ToSchema)]
pub(super) struct SnapshotTaken {
    /// Number of lines in the body, without empty lines.
    pub(super) lines: u64,
    /// Number of stores in the body.
    pub(super) stores: usize,
    /// Always `true`.
    pub(super) applied: bool,
}

/// Rejects HTML forms. A client such as curl labels its body as a form by default, and a form with
/// one line would replace the whole stock. A body with any other type, or none, is read as CSV.
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

/// Returns the problem 400: the delivery number in the snapshot's `X-Stock-As-Of` is above
/// `largest`, the largest plausible number.
pub(super) fn implausible(largest: u64) -> Problem {
    Problem::field(
        "X-Stock-As-Of",
        format!("must be at most {largest} now; it is the number of the last delivery that the stock counts"),
    )
}

/// Returns the problem 409: a snapshot with a higher delivery number was applied before.
pub(super) fn stale(as_of: u64, newest: u64) -> Problem {
    let detail = format!(
        "the snapshot is as of delivery {as_of}, but a snapshot as of delivery {newest} was applied before"
    );
    Problem::new(Kind::StaleSnapshot, detail)
}

impl From<StaleSnapshot> for Problem {
    fn from(StaleSnapshot { as_of, newest }: StaleSnapshot) -> Problem {
        stale(as_of, newest)
    }
}

/// Returns the problem 400: a stock upload has no lines.
pub(super) fn no_lines() -> Problem {
    Problem::body("the body has no lines; to empty a stock, send its lines with quantity 0")
}

/// Handles `PUT /stocks` at a node that serves the only volume while no slots move.
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

/// Passes the lines of a body, except for empty lines, to `take` as they arrive, and returns their
/// number. Apart from the data that `take` stores, memory use is bounded by one piece of the body
/// and its decoded content.
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

/// The parsed lines of a `PATCH`.
pub(super) struct ChangedCells {
    /// Number of lines, empty lines excluded.
    pub(super) lines: u64,
    /// Product, store and new quantity of each changed cell.
    pub(super) cells: Vec<[u32; 3]>,
}

/// Reads all lines of a `PATCH`.
pub(super) async fn read_cells(headers: &HeaderMap, body: Body) -> Result<ChangedCells, Problem> {
    let mut cells = Vec::new();
    let lines = read_lines(headers, body, PATCH_BYTES_MAX, |fields| {
        if cells.len() == PATCH_LINES_MAX {
            let reason = format!("a change has at most {PATCH_LINES_MAX} lines; send a whole snapshot");
            return Err(FieldFault { field: 0, reason });
        }
        cells.push(fields);
        // Each line is checked while it is read, because the numbers of line and column, which the
        // error names, are not known later. The stored stock that the lines change is read later.
        StockSnapshot::check(fields)
    });
    let lines = lines.await?;
    Ok(ChangedCells { lines, cells })
}

/// Applies this volume's part of an upload that the receiving node has split (`stock_fan_out`).
pub(super) async fn take_part(app: &Arc<App>, query: &str, body: Body) -> Result<Json, Problem> {
    let part = Part::parse(query)?;
    let _turn = turn(&app.snapshot_turns)?;
    let slots = {
        let slots = &app.state().slots;
        let version = slots.version();
        // Another ring would split the upload differently. So this part may omit stores of this
        // volume, and a part that replaces the whole stock would empty those stores.
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
        let arrival = app.arrival_of(part.arrival.as_deref());
        let stores = run_to_completion(change(Arc::clone(app), cells, products, arrival, slots)).await?;
        app.state().copies_are_current().await;
        app.state().loans_are_covered().await;
        return taken(lines, stores);
    }
    app.state().stock().accepts(part.as_of)?;
    let arrival = app.arrival_of(part.arrival.as_deref());
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
    app.state().loans_are_covered().await;
    taken(lines, stores)
}

/// Runs `work` in a separate task, so that a client that disconnects cannot cancel it halfway.
async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    let done = runtime::spawn(work).await;
    done.map_err(|error| Problem::internal(error.to_string()))?
}

/// Handles `PATCH /stocks` at a node that serves the only volume while no slots move. Each line
/// replaces the quantity on hand of a product in a store, as of the present moment.
pub(super) async fn patch(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Json, Problem> {
    content::check_length(headers, PATCH_BYTES_MAX)?;
    check_content_type(headers)?;
    let _turn = turn(&app.snapshot_turns)?;
    let slots = app.state().slots.version();
    let ChangedCells { lines, cells } = read_cells(headers, body).await?;
    if lines == 0 {
        return Err(no_lines());
    }
    // The quantities count all deliveries before they are applied.
    let arrival = Arrival(u64::MAX);
    let stores = run_to_completion(change(Arc::clone(app), cells, Vec::new(), arrival, slots)).await?;
    Json::of(&SnapshotTaken {
        lines,
        stores,
        applied: true,
    })
}

#[cfg(test)]
mod implausible_tests;
#[cfg(test)]
mod tests;
