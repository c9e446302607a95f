//! What nodes ask of each other, under `/peer/`, with the cluster's secret.
//!
//! | path | meaning |
//! | --- | --- |
//! | `/peer/volume/V/public/...` | a public read with an answer too long for the channel |
//! | `/peer/volume/V/inner/begin-stock`, `stock` | stock for several volumes (`stock_fan_out`) |
//! | `/peer/volume/V/inner/orders`, `reservations`, `messages`, `product` | lists (`fan_out`) |
//! | `/peer/volume/V/inner/health` | health of all volumes |
//! | `/peer/volume/V/inner/epoch`, `import`, `export`, `progress` | moving slots (`cluster`) |
//! | `/peer/state` | the cluster's state has changed |
//! | `/peer/hello`, `/peer/leave/NODE` | to the coordinator |
//! | `/peer/node`, `/peer/stop` | how the node is; that it is to stop |
//! | `/peer/console` | the figures of the node for the console (`console`) |
//! | `/peer/ping` | whether the node answers at all |
//!
//! Calls about a volume carry the epoch of the ring that they were routed by. 421 says that the
//! volume, or what of it is asked for, is not here, and by which epoch: whoever is behind reads the
//! state anew, and the caller asks again.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use imt_ring::NodeName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::api::fast_path::Entrance;
use crate::api::forward::{Call, Side, call_volume};
use crate::api::health::VolumeHealth;
use crate::api::orders::{self, json};
use crate::api::problem::Problem;
use crate::api::request::Operation;
use crate::api::{order_body, reports, stock_query, stock_upload};
use crate::cluster::Event;
use crate::cluster::peer_client::{EPOCH, SECRET, epoch_of};
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::volume::migration::source::ExportRequest;
use crate::volume::migration::target::{self, ImportRequest};
use crate::volume::server::VolumeServer;

/// What a node says of itself to an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// The volumes that it serves, with the slots of each.
    pub volumes: BTreeMap<String, usize>,
    /// Orders in these volumes.
    pub orders: u64,
    /// Requests answered since the start.
    pub requests: u64,
    /// Requests a second of the last ten seconds.
    pub requests_per_second: f64,
    /// Every node's slots, by name.
    pub slots: BTreeMap<String, usize>,
    /// Which node serves which volume.
    pub serving: BTreeMap<String, String>,
    /// Nodes that are leaving for good.
    pub leaving: Vec<String>,
    /// The reason why slots that should move do not, if this node coordinates.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Volumes that the node is to serve and whose database is missing, with the reason in words.
    #[serde(default)]
    pub missing: BTreeMap<String, String>,
    /// True while slots move.
    pub moving: bool,
    /// Rows that have come to the volumes served here with a move that is under way, and how many
    /// there will be, about.
    pub copied: (u64, u64),
    /// Epoch of the ring.
    pub epoch: u64,
}

/// Answers a node.
pub(crate) async fn answer(cluster: &Arc<ClusterHandle>, request: Request) -> Response {
    if let Some(refused) = refuse_strangers(cluster, request.headers()) {
        return refused;
    }
    let answered = answer_node(cluster, request).await;
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Returns the answer to a request that does not show the cluster's secret; `None` if it does.
pub(crate) fn refuse_strangers(cluster: &ClusterHandle, headers: &HeaderMap) -> Option<Response> {
    let shown = headers.get(SECRET).map(HeaderValue::as_bytes);
    if is_same(shown.unwrap_or_default(), cluster.membership.secret().as_bytes()) {
        return None;
    }
    let problem = Problem::not_found("this is for nodes only");
    Some((StatusCode::FORBIDDEN, problem).into_response())
}

/// Compares in a time that does not depend on where the difference is.
fn is_same(shown: &[u8], secret: &[u8]) -> bool {
    let differences = shown
        .iter()
        .zip(secret)
        .fold(0, |all, (one, other)| all | (one ^ other));
    shown.len() == secret.len() && differences == 0
}

async fn answer_node(cluster: &Arc<ClusterHandle>, request: Request) -> Result<Response, Problem> {
    let path = request.uri().path().trim_start_matches("/peer/").to_owned();
    let done = || Ok(json(&true));
    match path.split_once('/').unwrap_or((&path, "")) {
        ("volume", rest) => {
            let (volume, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let (side, operation) = rest.split_once('/').unwrap_or((rest, ""));
            let topology = cluster.topology();
            let epoch = topology.ring.epoch().0;
            let server = NodeName::new(volume)
                .ok()
                .and_then(|volume| topology.servers.get(&volume).cloned());
            drop(topology);
            if server.is_none() || epoch_of(request.headers()) > Some(epoch) {
                cluster.look.notify_one();
            }
            let Some(server) = server else {
                return Ok(with_epoch(Problem::moved().into_response(), epoch));
            };
            let query = request
                .uri()
                .query()
                .map_or(String::new(), |query| format!("?{query}"));
            let path = format!("/{operation}{query}");
            if side == "public" {
                let uri = Uri::try_from(path).map_err(|_| Problem::field("path", "is none"))?;
                let operation = Operation::parse(request.method(), &uri)?;
                let (head, body) = request.into_parts();
                let entrance = Entrance::of(&server.app);
                let answer = entrance.answer(operation, &head.headers, body).await;
                return Ok(with_epoch(answer.map(Body::new), epoch));
            }
            Ok(with_epoch(
                inner(cluster, &server, &path, request.into_body()).await,
                epoch,
            ))
        }
        ("ping", "") => done(),
        ("state", "") => {
            cluster.look.notify_one();
            done()
        }
        ("hello", "") => {
            let _ = cluster.events.send(Event::Hello);
            done()
        }
        ("leave", node) => {
            let node = NodeName::new(node).map_err(|error| Problem::field("node", error.to_string()))?;
            let _ = cluster.events.send(Event::Leave(node));
            done()
        }
        ("stop", "") => {
            cluster.asked_to_stop.send_replace(true);
            done()
        }
        ("node", "") => Ok(json(&report(cluster))),
        _ => Err(Problem::not_found("there is no such path between nodes")),
    }
}

/// A refusal says by which ring it is one.
fn with_epoch(mut answer: Response, epoch: u64) -> Response {
    if answer.status() == StatusCode::MISDIRECTED_REQUEST {
        answer.headers_mut().insert(EPOCH, HeaderValue::from(epoch));
    }
    answer
}

fn report(cluster: &Arc<ClusterHandle>) -> NodeReport {
    let topology = cluster.topology();
    let slots_of = |name: &NodeName| topology.ring.slots_of(name).count();
    let orders = topology
        .servers
        .values()
        .map(|server| server.app.state().storage.counters());
    NodeReport {
        volumes: topology
            .servers
            .keys()
            .map(|name| (name.to_string(), slots_of(name)))
            .collect(),
        orders: orders.map(|counters| counters.orders.iter().sum::<u64>()).sum(),
        requests: cluster.metrics.requests(),
        requests_per_second: cluster.metrics.requests_per_second(cluster.started.elapsed()),
        slots: topology
            .volumes()
            .map(|name| (name.to_string(), slots_of(name)))
            .collect(),
        serving: topology
            .state
            .serving
            .iter()
            .map(|(volume, node)| (volume.to_string(), node.to_string()))
            .collect(),
        leaving: topology.state.leaving.iter().map(ToString::to_string).collect(),
        trouble: cluster.trouble(),
        missing: cluster
            .missing()
            .iter()
            .map(|(volume, reason)| (volume.to_string(), reason.clone()))
            .collect(),
        moving: topology.state.moving.is_some(),
        copied: topology.servers.values().fold((0, 0), |(rows, about), server| {
            let copied = server.progress().copied;
            (rows + copied.rows, about + copied.about)
        }),
        epoch: topology.ring.epoch().0,
    }
}

/// Carries out an operation between nodes at a volume that is served here.
pub(crate) async fn inner(
    cluster: &Arc<ClusterHandle>,
    server: &Arc<VolumeServer>,
    path: &str,
    body: Body,
) -> Response {
    let (operation, query) = path.split_once('?').unwrap_or((path, ""));
    let answered = match operation.trim_start_matches('/') {
        "stock" => stock_upload::take_part(&server.app, query, body)
            .await
            .map(IntoResponse::into_response),
        operation => match order_body::read_small(&HeaderMap::new(), body).await {
            Ok(body) if matches!(operation, "export" | "import") => {
                copy(cluster, server, operation, &body).await
            }
            Ok(body) => operate(server, operation, &body).await,
            Err(problem) => Err(problem),
        },
    };
    if !server.app.state().storage.is_ours() {
        // A read may be old.
        return Problem::moved().into_response();
    }
    answered.unwrap_or_else(IntoResponse::into_response)
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| Problem::body(error.to_string()))
}

async fn operate(server: &Arc<VolumeServer>, operation: &str, body: &Bytes) -> Result<Response, Problem> {
    match operation {
        "begin-stock" => Ok(json(&stock_upload::begin(&server.app, &parse(body)?)?)),
        "orders" => Ok(json(&orders::page(&server.app, parse(body)?).await?)),
        "reservations" => Ok(json(&reports::reservations(&server.app, &parse(body)?).await?)),
        "messages" => Ok(json(&reports::messages(&server.app, &parse(body)?)?)),
        "product" => Ok(json(&stock_query::product(&server.app, parse(body)?)?)),
        "health" => Ok(json(&VolumeHealth::of(&server.app))),
        "epoch" => Ok(json(&server.settled_epoch().map(|epoch| epoch.0))),
        "progress" => Ok(json(&server.progress())),
        _ => Err(Problem::not_found("there is no such operation")),
    }
}

async fn copy(
    cluster: &Arc<ClusterHandle>,
    server: &Arc<VolumeServer>,
    operation: &str,
    body: &Bytes,
) -> Result<Response, Problem> {
    if operation == "import" {
        let request: ImportRequest = parse(body)?;
        server.expect(&cluster.authority, request.id).await?;
        let copied = target::import(&cluster.peers, server, &request).await;
        return match copied {
            Ok(imported) => Ok(json(&imported)),
            Err(error) => Err(Problem::internal(error.to_string())),
        };
    }
    let request: ExportRequest = parse(body)?;
    if request.seal {
        // Requests that came when this was the only volume cannot be asked again elsewhere: they
        // finish first.
        cluster.earlier_requests().await;
        server.seal(&cluster.authority, &request).await?;
    }
    match server.exports.page(server.app.state(), &request).await {
        Ok(page) => Ok(Body::from(page).into_response()),
        Err(crate::volume::migration::source::ExportError::Storage(error)) => Err(error.into()),
        Err(crate::volume::migration::source::ExportError::OutOfTurn) => {
            let detail = "the copy of these slots was broken off and must begin anew";
            Err(Problem::conflict("no-such-copy", detail))
        }
    }
}

/// Asks something of a volume, wherever it is, until it answers or the time is over.
pub(crate) async fn ask_volume<T: DeserializeOwned>(
    cluster: &Arc<ClusterHandle>,
    volume: impl Fn(&Topology) -> Option<NodeName>,
    operation: &str,
    question: &impl Serialize,
    until: Instant,
) -> Result<T, Problem> {
    let body = serde_json::to_vec(question).map_err(|error| Problem::internal(error.to_string()))?;
    let call = Call::post(format!("/{operation}"), body.into());
    let response = call_volume(cluster, volume, Side::Inner, call, until).await?;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    let body = body.map_err(|error| Problem::internal(error.to_string()))?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body)
            .chars()
            .take(300)
            .collect::<String>();
        return Err(Problem::busy(format!("{operation}: {status}: {text}")));
    }
    serde_json::from_slice(&body).map_err(|error| Problem::internal(error.to_string()))
}
