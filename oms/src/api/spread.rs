//! Stock for stores of several volumes: read once, parted by store, taken in by each volume for itself.
//!
//! Every line is read before any is applied, so a malformed body changes nothing anywhere. Each volume takes its part in one
//! atomic step; a part whose stores moved meanwhile is parted again. A snapshot that one volume refuses as stale is answered
//! so; others may have taken theirs, and the next snapshot makes them alike again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use imt_ring::NodeName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::gate::{Call, Gate};
use super::orders::json;
use super::problem::Problem;
use super::stocks::{
    ARRIVAL, PART, PATCH_BYTES_MAX, PATCH_LINES_MAX, STOCK_BYTES_MAX, SnapshotTaken, as_of,
    check_content_type, read_lines,
};
use super::{body, peer};
use crate::csv::FieldFault;
use crate::process;
use crate::router::{Subject, View};
use crate::sheet::{CELLS_MAX, Sheet};

/// How long a snapshot may take to be taken in everywhere; the warehouse waits longer.
const STOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Quantities by store: product and quantity as they came.
type ByStore = BTreeMap<u32, Vec<(u32, u32)>>;

/// `PUT /stocks` and `PATCH /stocks` where there are several volumes.
pub(super) async fn stock(
    gate: &Arc<Gate>,
    method: &Method,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let until = Instant::now() + STOCK_PATIENCE;
    let is_whole = *method == Method::PUT;
    body::check_length(
        headers,
        if is_whole {
            STOCK_BYTES_MAX
        } else {
            PATCH_BYTES_MAX
        },
    )?;
    check_content_type(headers)?;
    let as_of = as_of(headers)?;
    for post in gate.view().posts.values().filter(|_| is_whole) {
        post.app.check_as_of(as_of)?;
    }
    let arrivals = match as_of {
        None if is_whole => arrivals(gate, until).await?,
        _ => BTreeMap::new(),
    };
    let mut stores = ByStore::new();
    let mut cells = 0;
    let lines_max = if is_whole { CELLS_MAX } else { PATCH_LINES_MAX };
    let lines = read_lines(headers, body, |[product, store, quantity]| {
        Sheet::check([product, store, quantity])?;
        cells += 1;
        if cells > lines_max {
            let reason = format!("the body has more than {lines_max} lines");
            return Err(FieldFault { field: 0, reason });
        }
        stores.entry(store).or_default().push((product, quantity));
        Ok(())
    })
    .await?;
    let count = stores.len();
    let task = Spread {
        gate: Arc::clone(gate),
        method: method.clone(),
        as_of,
        arrivals,
        until,
    };
    match task.apply(stores).await? {
        Some(refusal) => Ok(refusal),
        None => {
            tracing::info!(lines, stores = count, as_of, "took stock in");
            Ok(json(&SnapshotTaken {
                lines,
                stores: count,
                applied: true,
            }))
        }
    }
}

/// Has every volume note the moment, so that deliveries that are confirmed from here on are not taken for counted.
async fn arrivals(gate: &Arc<Gate>, until: Instant) -> Result<BTreeMap<NodeName, String>, Problem> {
    let mut tokens = BTreeMap::new();
    let volumes: Vec<NodeName> = gate.view().volumes().cloned().collect();
    for volume in volumes {
        match peer::ask_volume::<String>(gate, |view| view.known(&volume), "arrival", &(), until).await {
            Ok(token) => drop(tokens.insert(volume, token)),
            // It has left: its stores are with others, which take what they do not know of for not counted.
            Err(problem) if problem.is_moved() => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(tokens)
}

struct Spread {
    gate: Arc<Gate>,
    method: Method,
    as_of: Option<u64>,
    arrivals: BTreeMap<NodeName, String>,
    until: Instant,
}

impl Spread {
    /// Has every volume take its part; the answer of one that refuses.
    async fn apply(&self, stores: ByStore) -> Result<Option<Response>, Problem> {
        let stores = Arc::new(stores);
        let mut done: Vec<u32> = Vec::new();
        loop {
            let changes = self.gate.changes();
            let view = self.gate.view();
            let parts = self.parts(&view, &stores, &done);
            let mut asked = JoinSet::new();
            for (volume, part) in parts {
                let (stores, gate, until) = (Arc::clone(&stores), Arc::clone(&self.gate), self.until);
                let (call, view) = (self.head(&volume), Arc::clone(&view));
                asked.spawn(process::within(async move {
                    let call = Call {
                        body: csv(&stores, &part),
                        ..call
                    };
                    let answer = once(&gate, &view, &volume, &call, until).await;
                    drop(view);
                    (part, answer)
                }));
            }
            let mut is_whole = true;
            for (part, answer) in asked.join_all().await {
                match answer {
                    Ok(response) if response.status().is_success() => done.extend(part),
                    Ok(response)
                        if response.status() == StatusCode::MISDIRECTED_REQUEST
                            || response.status().is_server_error() =>
                    {
                        is_whole = false;
                    }
                    Ok(response) => return Ok(Some(response)),
                    Err(_) if Instant::now() < self.until => is_whole = false,
                    Err(problem) => return Err(problem),
                }
            }
            if is_whole {
                return Ok(None);
            }
            if Instant::now() >= self.until {
                return Err(Problem::busy(
                    "some stores are changing their place; send the stock again",
                ));
            }
            tokio::select! {
                biased;
                () = changes => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// The stores of each volume that are still to be done. A whole snapshot concerns volumes without a line too.
    fn parts(&self, view: &View, stores: &ByStore, done: &[u32]) -> BTreeMap<NodeName, Vec<u32>> {
        let mut parts: BTreeMap<NodeName, Vec<u32>> = BTreeMap::new();
        if self.method == Method::PUT && done.is_empty() {
            parts.extend(view.volumes().map(|volume| (volume.clone(), Vec::new())));
        }
        for store in stores.keys().filter(|store| !done.contains(store)) {
            if let Some(volume) = view.volume_of(&Subject::Store(*store)) {
                parts.entry(volume).or_default().push(*store);
            }
        }
        if self.method == Method::PUT {
            // A part replaces a volume's whole stock: what was done there before is said again.
            for store in done {
                if let Some(volume) = view.volume_of(&Subject::Store(*store))
                    && let Some(part) = parts.get_mut(&volume)
                {
                    part.push(*store);
                }
            }
        }
        parts
    }

    fn head(&self, volume: &NodeName) -> Call {
        let mut headers = HeaderMap::new();
        headers.insert(PART, HeaderValue::from_static("1"));
        if let Some(as_of) = self.as_of {
            headers.insert("x-stock-as-of", HeaderValue::from(as_of));
        }
        if let Some(Ok(token)) = self.arrivals.get(volume).map(|token| token.parse()) {
            headers.insert(ARRIVAL, token);
        }
        Call {
            method: self.method.clone(),
            path_and_query: "/stocks".to_owned(),
            headers,
            body: Bytes::new(),
        }
    }
}

/// One try: a part that is refused is parted anew, not asked again.
async fn once(
    gate: &Arc<Gate>,
    view: &View,
    volume: &NodeName,
    call: &Call,
    until: Instant,
) -> Result<Response, Problem> {
    match gate.attempt(view, volume, "public", call, until).await? {
        Ok(response) => Ok(response),
        Err(reason) => Err(Problem::not_here(volume.as_str(), &reason.0)),
    }
}

fn csv(stores: &ByStore, part: &[u32]) -> Bytes {
    let mut text = String::new();
    for store in part {
        for (product, quantity) in stores.get(store).into_iter().flatten() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{product},{store},{quantity}");
        }
    }
    text.into()
}
