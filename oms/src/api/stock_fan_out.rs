//! Stock uploads, except at a node that serves the only volume while no slots move: the receiving
//! node reads the body once and splits it by store. Each volume applies its part.
//!
//! **Invariants**
//! - Each volume of the ring is asked to accept the upload before the body is read. No part is sent
//!   before all lines are read.
//! - Each volume replaces the quantities in memory in one step. After a crash, only some stores may
//!   have their new quantities (`stock_upload::apply`).
//! - Failed parts are sent again for up to `APPLY_TIMEOUT`. The upload fails earlier if a part is
//!   rejected, if this node must serve a volume that is missing, or if a node is silent (answers
//!   neither calls nor pings).
//! - If the upload fails after a confirmed part may have changed stock, or after a part may have
//!   been applied without a confirmation, the problem `partly-applied` lists the stores of
//!   confirmed parts and all other stores of the upload. A part of a whole snapshot changes stock
//!   also without stores: it empties the volume.
//! - Each part names all products of the upload, also products without a line for the part's
//!   stores, because a volume's stock has a cell for each pair of product and store.
//!
//! Deliberately absent: atomicity across volumes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use imt_ring::NodeName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::forward::VolumeErrand;
use crate::api::problem::{Kind, Problem};
use crate::api::stock_upload::{
    self, BeginStock, Begun, ChangedCells, Part, STOCK_BYTES_MAX, SnapshotTaken, as_of, check_content_type,
    implausible, no_lines, read_cells, read_lines, stale,
};
use crate::api::{content, internal};
use crate::cluster::peer_call::VolumeCall;
use crate::control::errand::Attempt;
use crate::control::handle::{ClusterHandle, ROUTING_TIMEOUT};
use crate::control::topology::Topology;
use crate::domain::routing_key::RoutingKey;
use crate::domain::stock_snapshot::StockSnapshot;
use crate::runtime;

/// Longest time for all volumes to apply an upload after its body was read. The simulated warehouse
/// waits longer for the response (60 s).
const APPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest pause before failed parts are sent again. A change of the topology ends the pause early.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Handles `PUT /stocks`, except at a node that serves the only volume while no slots move.
pub(crate) async fn replace(
    cluster: &Arc<ClusterHandle>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    content::check_length(headers, STOCK_BYTES_MAX)?;
    check_content_type(headers)?;
    let as_of = as_of(headers)?;
    let _turn = stock_upload::turn(&cluster.snapshot_turns)?;
    let arrivals = begin(cluster, as_of).await?;
    let mut snapshot = StockSnapshot::default();
    let lines = read_lines(headers, body, STOCK_BYTES_MAX, |fields| snapshot.set(fields)).await?;
    if lines == 0 {
        return Err(no_lines());
    }
    let fan_out = StockFanOut {
        cluster: Arc::clone(cluster),
        stores: snapshot.stores().iter().copied().collect(),
        stock: Arc::new(Stock::Whole(snapshot)),
        as_of,
        arrivals,
        until: Instant::now() + APPLY_TIMEOUT,
    };
    fan_out.answer(lines).await
}

/// Handles `PATCH /stocks`, except at a node that serves the only volume while no slots move.
pub(crate) async fn change(
    cluster: &Arc<ClusterHandle>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    content::check_length(headers, stock_upload::PATCH_BYTES_MAX)?;
    check_content_type(headers)?;
    let _turn = stock_upload::turn(&cluster.snapshot_turns)?;
    let arrivals = begin(cluster, None).await?;
    let ChangedCells { lines, cells } = read_cells(headers, body).await?;
    if lines == 0 {
        return Err(no_lines());
    }
    let fan_out = StockFanOut {
        cluster: Arc::clone(cluster),
        stores: cells.iter().map(|[_, store, _]| *store).collect(),
        stock: Arc::new(Stock::Cells(cells)),
        as_of: None,
        arrivals,
        until: Instant::now() + APPLY_TIMEOUT,
    };
    fan_out.answer(lines).await
}

/// Asks every volume if it accepts an upload. Returns a token of each volume that marks the present
/// moment at that volume. A snapshot without a delivery number does not count deliveries that are
/// confirmed at the volume afterwards.
async fn begin(
    cluster: &Arc<ClusterHandle>,
    as_of: Option<u64>,
) -> Result<BTreeMap<NodeName, String>, Problem> {
    let until = Instant::now() + ROUTING_TIMEOUT;
    let volumes: Vec<NodeName> = cluster.topology().volumes().cloned().collect();
    let mut asked = JoinSet::new();
    for volume in volumes {
        let cluster = Arc::clone(cluster);
        asked.spawn(runtime::within(async move {
            let ask = BeginStock { as_of };
            let known = |topology: &Topology| topology.known(&volume);
            let begun = internal::ask_volume(&cluster, known, &ask, until).await;
            (volume, begun)
        }));
    }
    let mut tokens = BTreeMap::new();
    let (mut refusal, mut bound) = (None, None);
    for (volume, begun) in asked.join_all().await {
        match begun {
            Ok(Begun::Taken { token }) => drop(tokens.insert(volume, token)),
            Ok(Begun::Stale { as_of, newest }) => refusal = Some(stale(as_of, newest)),
            Ok(Begun::Implausible { largest }) => {
                bound = Some(bound.map_or(largest, |bound: u64| bound.min(largest)));
            }
            // The volume has left the ring, so it needs no token. Its deliveries migrate with its
            // stores to other volumes. A delivery that migrates to another volume after that volume
            // has created its token is treated as not counted by the snapshot.
            Err(problem) if problem.is_moved() => {}
            Err(problem) => return Err(problem),
        }
    }
    match bound.map(implausible).or(refusal) {
        Some(refusal) => Err(refusal),
        None => Ok(tokens),
    }
}

/// The content of a stock upload that several volumes apply.
enum Stock {
    Whole(StockSnapshot),
    Cells(Vec<[u32; 3]>),
}

struct StockFanOut {
    cluster: Arc<ClusterHandle>,
    stock: Arc<Stock>,
    stores: BTreeSet<u32>,
    as_of: Option<u64>,
    arrivals: BTreeMap<NodeName, String>,
    until: Instant,
}

/// The volumes that confirmed their parts of the present ring, and all stores of confirmed parts.
#[derive(Clone, Default)]
struct Confirmed {
    /// Epoch of the ring by which the parts of `volumes` were split.
    epoch: u64,
    volumes: BTreeSet<NodeName>,
    stores: BTreeSet<u32>,
    /// `true` once a part was confirmed that may have changed stock.
    has_changed: bool,
}

impl Confirmed {
    /// Forgets the volumes that confirmed their parts of an earlier ring than that of `epoch`.
    /// Under another ring each volume owns other stores, and a whole snapshot empties the stores
    /// that a part omits. So every volume must confirm its part of the new ring. The stores of
    /// confirmed parts stay recorded.
    fn follow(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.volumes.clear();
        }
    }

    fn add(&mut self, volume: NodeName, stores: Vec<u32>, is_whole: bool) {
        self.has_changed |= is_whole || !stores.is_empty();
        self.volumes.insert(volume);
        self.stores.extend(stores);
    }
}

/// The part of an upload for one volume.
struct VolumePart {
    volume: NodeName,
    stores: Vec<u32>,
    csv: Bytes,
}

/// The failures of one round, in which all unconfirmed parts are sent.
#[derive(Default)]
struct Failures {
    reason: Option<String>,
    /// `true` if a node answers neither calls nor pings, or if this node must serve a volume that
    /// is missing (without a database, or with an engine: without a log). Then the parts are not
    /// sent again.
    is_silent: bool,
    /// `true` if a part may have been applied although its volume did not confirm it.
    is_unknown: bool,
    refusal: Option<Response>,
}

impl StockFanOut {
    async fn answer(&self, lines: u64) -> Result<Response, Problem> {
        if let Some(refusal) = self.apply().await? {
            return Ok(refusal);
        }
        let stores = self.stores.len();
        tracing::info!(lines, stores, as_of = self.as_of, "stock applied");
        let taken = SnapshotTaken {
            lines,
            stores,
            applied: true,
        };
        Ok(crate::api::orders::json(&taken))
    }

    /// Sends every volume its part and retries failed parts. Returns `None` once all parts are
    /// confirmed. If a volume rejects its part, returns the rejecting response, unless a confirmed
    /// part may have changed stock, or a part may have been applied without a confirmation. In
    /// these two cases the result is the problem `partly-applied`.
    async fn apply(&self) -> Result<Option<Response>, Problem> {
        let mut confirmed = Confirmed::default();
        let mut is_unknown = false;
        loop {
            let changed = self.cluster.topology_changed();
            let topology = self.cluster.topology();
            confirmed.follow(topology.ring.epoch().0);
            let parts = self.parts(&topology, &confirmed).await?;
            let failures = self.send(&topology, parts, &mut confirmed).await;
            is_unknown |= failures.is_unknown;
            drop(topology);
            if let Some(refusal) = failures.refusal {
                if !confirmed.has_changed && !is_unknown {
                    return Ok(Some(refusal));
                }
                let status = refusal.status();
                return Err(self.partly_applied(status, "a node rejected its part", &confirmed));
            }
            let Some(reason) = failures.reason else {
                return Ok(None);
            };
            if failures.is_silent || Instant::now() >= self.until {
                if !confirmed.has_changed && !is_unknown {
                    return Err(Problem::busy(format!("{reason}; nothing was applied")));
                }
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Err(self.partly_applied(status, &reason, &confirmed));
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep(RETRY_PAUSE) => {}
            }
        }
    }

    fn partly_applied(&self, status: StatusCode, reason: &str, confirmed: &Confirmed) -> Problem {
        let applied: Vec<u32> = confirmed.stores.iter().copied().collect();
        let failed: Vec<u32> = self.stores.difference(&confirmed.stores).copied().collect();
        tracing::warn!(
            reason,
            applied = applied.len(),
            failed = failed.len(),
            "stock applied in part"
        );
        Problem::partly_applied(status, reason, applied, failed)
    }

    /// Sends the parts in parallel. Records the volumes and stores of the parts that are confirmed,
    /// and returns the failures of the others.
    async fn send(
        &self,
        topology: &Arc<Topology>,
        parts: Vec<VolumePart>,
        confirmed: &mut Confirmed,
    ) -> Failures {
        let mut asked = JoinSet::new();
        for VolumePart { volume, stores, csv } in parts {
            let call = self.call(topology, &volume, csv);
            let (cluster, topology, until) = (Arc::clone(&self.cluster), Arc::clone(topology), self.until);
            asked.spawn(runtime::within(async move {
                let answer = cluster.try_errand(&topology, &volume, &call, until).await;
                (volume, stores, answer)
            }));
        }
        let mut failures = Failures::default();
        for (volume, stores, answer) in asked.join_all().await {
            match answer {
                Ok(Attempt::Done(response)) if response.status().is_success() => {
                    confirmed.add(volume, stores, self.is_whole());
                }
                Ok(Attempt::Moved { .. }) => {
                    failures.reason = Some("some stores are being moved to another node; retry".to_owned());
                }
                Ok(Attempt::Done(response)) if response.status().is_server_error() => {
                    failures.reason = Some(format!("{volume} answered {}", response.status()));
                    // A volume may write its part in several batches, so an internal error may
                    // follow after some stores. After a status 503 with another problem than
                    // "partly applied", nothing was applied.
                    let is_busy = response.status() == StatusCode::SERVICE_UNAVAILABLE;
                    failures.is_unknown |= !is_busy || is_partly_applied(response).await;
                }
                Ok(Attempt::Done(response)) => failures.refusal = Some(response),
                Err(unanswered) => {
                    failures.is_silent |= unanswered.is_silent;
                    failures.is_unknown |= unanswered.was_sent;
                    failures.reason = Some(unanswered.reason);
                }
            }
        }
        failures
    }

    fn is_whole(&self) -> bool {
        matches!(*self.stock, Stock::Whole(_))
    }

    fn call(&self, topology: &Topology, volume: &NodeName, csv: Bytes) -> VolumeErrand {
        let part = Part {
            is_whole: self.is_whole(),
            epoch: topology.ring.epoch().0,
            as_of: self.as_of,
            arrival: self.arrivals.get(volume).cloned(),
        };
        VolumeErrand::new(VolumeCall::Stock, csv).with_query(part.to_query())
    }

    /// Returns the parts of the volumes that have not confirmed their part of this ring yet.
    async fn parts(
        &self,
        topology: &Arc<Topology>,
        confirmed: &Confirmed,
    ) -> Result<Vec<VolumePart>, Problem> {
        let (stock, topology, confirmed) = (Arc::clone(&self.stock), Arc::clone(topology), confirmed.clone());
        let parts = runtime::blocking(move || split(&stock, &topology, &confirmed)).await;
        parts.map_err(|error| Problem::internal(error.to_string()))
    }
}

/// Returns `true` if a volume answered with the problem "partly applied".
async fn is_partly_applied(response: Response) -> bool {
    let body = response.into_body().collect().await;
    let problem = body
        .ok()
        .and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
    problem.is_some_and(|problem: serde_json::Value| problem["type"] == Kind::PartlyApplied.urn())
}

/// Splits an upload by the owners of its stores. In a part, a line with store 0 only names a
/// product.
fn split(stock: &Stock, topology: &Topology, confirmed: &Confirmed) -> Vec<VolumePart> {
    let products: BTreeSet<u32>;
    let mut names = String::new();
    let mut name = |product: &u32| {
        // Writing to a `String` cannot fail.
        let _ = writeln!(names, "{product},0,0");
    };
    match stock {
        Stock::Whole(snapshot) => snapshot.products().iter().for_each(&mut name),
        Stock::Cells(cells) => {
            products = cells.iter().map(|[product, ..]| *product).collect();
            products.iter().for_each(&mut name);
        }
    }
    let mut parts: BTreeMap<NodeName, (Vec<u32>, String)> = topology
        .volumes()
        .filter(|volume| !confirmed.volumes.contains(*volume))
        .map(|volume| (volume.clone(), (Vec::new(), names.clone())))
        .collect();
    let mut add = |store: u32, lines: &mut dyn Iterator<Item = (u32, u32)>| {
        let volume = topology.volume_of(&RoutingKey::Store(store));
        let Some((stores, csv)) = volume.and_then(|volume| parts.get_mut(&volume)) else {
            return;
        };
        stores.push(store);
        for (product, quantity) in lines {
            let _ = writeln!(csv, "{product},{store},{quantity}");
        }
    };
    match stock {
        Stock::Whole(snapshot) => snapshot.each_store(|store, quantities| {
            let cells = snapshot.products().iter().zip(quantities);
            // The first line of a store is always sent, because it names the store even if all
            // quantities are 0.
            let lines = cells
                .enumerate()
                .filter(|(at, (_, quantity))| *at == 0 || **quantity != 0);
            add(
                store,
                &mut lines.map(|(_, (product, quantity))| (*product, *quantity as u32)),
            );
        }),
        Stock::Cells(cells) => {
            for [product, store, quantity] in cells {
                // The store's lines may have been confirmed under an earlier ring. Deliveries since
                // then may have lowered its quantity, and applying the line again would undo that.
                if !confirmed.stores.contains(store) {
                    add(*store, &mut std::iter::once((*product, *quantity)));
                }
            }
        }
    }
    let part = |(volume, (stores, csv)): (NodeName, (Vec<u32>, String))| VolumePart {
        volume,
        stores,
        csv: csv.into(),
    };
    parts.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmed_part_without_stores_has_changed_stock_if_the_upload_is_whole() {
        let volume = || NodeName::new("ada").unwrap();
        let mut confirmed = Confirmed::default();
        confirmed.follow(1);
        confirmed.add(volume(), Vec::new(), false);
        assert!(!confirmed.has_changed, "the part only names products");
        confirmed.add(volume(), Vec::new(), true);
        confirmed.follow(2);
        assert!(
            confirmed.has_changed,
            "the part emptied a volume of the earlier ring"
        );
        assert!(confirmed.volumes.is_empty() && confirmed.stores.is_empty());
        let mut confirmed = Confirmed::default();
        confirmed.add(volume(), vec![7], false);
        assert!(confirmed.has_changed);
    }
}
