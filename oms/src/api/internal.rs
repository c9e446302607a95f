//! Handles the calls of other nodes and of operators' commands over HTTP/2 (`cluster::peer_call`).
//!
//! **Invariants**
//! - A call without the cluster's secret is refused before its body is read. On an encrypted
//!   connection the handshake has proven the secret, so its calls need not contain it. In a
//!   cluster on an engine, an unencrypted call from another machine is refused even with the
//!   secret, unless the operator allows such calls.
//! - A call about a volume that this node does not serve gets 421 with the epoch of this node's
//!   ring. A node that has an older epoch than the other reads the cluster's state again, and the
//!   caller may repeat the call.
//! - If this process loses a volume during a call, the result is discarded and the response is 421.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use imt_ring::NodeName;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::api::fan_out::{AskHealth, AskMessages, AskOrders, AskProduct, AskReservations};
use crate::api::fast_path::Entrance;
use crate::api::forward::{Api, VolumeErrand, call_volume};
use crate::api::health::VolumeHealth;
use crate::api::orders::{self, json};
use crate::api::problem::{Kind, Problem};
use crate::api::stock_upload::BeginStock;
use crate::api::{order_body, reports, stat_files, stock_query, stock_upload};
use crate::cluster::Event;
use crate::cluster::channel::message::Read;
use crate::cluster::peer_call::{PeerCall, VolumeCall, VolumeQuestion};
use crate::cluster::peer_client::{EPOCH, SECRET, epoch_of};
use crate::control::coordinator::AskEpoch;
use crate::control::handle::ClusterHandle;
use crate::control::topology::Topology;
use crate::domain::warehouse_url::InvalidUrl;
use crate::postgres::{EngineUrl, InvalidEngineUrl};
use crate::volume::migration::source::{ExportError, ExportRequest};
use crate::volume::migration::target::{self, AskProgress, ImportRequest};
use crate::volume::server::VolumeServer;

/// Maximum number of characters that an error quotes from a response with an error status.
const REFUSAL_CHARS_MAX: usize = 300;

/// Progress of the migration of slots to a volume, or the sum over several volumes, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Number of rows copied so far.
    pub rows: u64,
    /// Estimated number of rows of the whole migration; 0 if no migration is in progress.
    pub rows_expected: u64,
}

impl CopyProgress {
    pub(super) fn of(server: &VolumeServer) -> CopyProgress {
        let copied = server.progress().copied;
        CopyProgress {
            rows: copied.rows,
            rows_expected: copied.about,
        }
    }
}

impl std::iter::Sum for CopyProgress {
    fn sum<I: Iterator<Item = CopyProgress>>(parts: I) -> CopyProgress {
        parts.fold(CopyProgress::default(), |sum, part| CopyProgress {
            rows: sum.rows + part.rows,
            rows_expected: sum.rows_expected + part.rows_expected,
        })
    }
}

/// The state of a node, as commands for operators show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// The volumes that the node serves, with the number of slots of each.
    pub volumes: BTreeMap<String, usize>,
    /// Number of orders in the volumes that the node serves.
    pub orders: u64,
    /// Number of requests about orders, stock, messages and statistics that the node answered since
    /// its start: of all routes of the metrics but `other`.
    pub requests: u64,
    /// Average number of these requests per second over the last ten to eleven seconds, or since
    /// the node's start if that is later.
    pub requests_per_second: f64,
    /// Number of slots of every volume in the ring, by name.
    pub slots: BTreeMap<String, usize>,
    /// The node that is assigned to serve each volume, by name of the volume.
    pub serving: BTreeMap<String, String>,
    /// Nodes that are leaving the cluster permanently.
    pub leaving: Vec<String>,
    /// The reason why the coordinator cannot take its next step now, such as a failed migration.
    /// `None` if there is no such reason, or if the node is not the coordinator.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Volumes that are assigned to the node and have no database (with an engine: no log in the
    /// engine), each with the reason as text.
    #[serde(default)]
    pub missing: BTreeMap<String, String>,
    /// `true` while a move of slots is under way in the cluster.
    pub moving: bool,
    /// Progress of the migration of slots to the volumes of this node.
    pub copy: CopyProgress,
    /// Epoch of the current ring.
    pub epoch: u64,
}

/// The kind of connection over which a request arrived, stored as an extension of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An encrypted connection. The other end has proven that it knows the cluster's secret.
    Proven,
    /// An unencrypted connection that is allowed: within the machine, between nodes that share a
    /// data folder, or with `--insecure-plaintext`.
    Plain,
    /// An unencrypted connection from another machine, although the settings require encryption.
    Exposed,
}

/// Handles a call of another node or of an operator's command. Refuses the call if it does not
/// prove knowledge of the cluster's secret, or if it must be encrypted and is not.
pub(crate) async fn answer(api: &Api, head: &Parts, body: Body) -> Response<Body> {
    let answered = match check_secret(&api.cluster, head) {
        Ok(()) => answer_node(api, head, body).await,
        Err(problem) => Err(problem),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Refuses a request that does not prove knowledge of the cluster's secret, or that must be
/// encrypted and is not.
fn check_secret(cluster: &ClusterHandle, head: &Parts) -> Result<(), Problem> {
    match head.extensions.get::<Origin>() {
        Some(Origin::Proven) => return Ok(()),
        Some(Origin::Exposed) => {
            return Err(Problem::new(
                Kind::NodesOnly,
                "calls of other machines must be encrypted; --insecure-plaintext is for all nodes and \
                 commands, or for none",
            ));
        }
        Some(Origin::Plain) | None => {}
    }
    let shown = head.headers.get(SECRET).map(HeaderValue::as_bytes);
    let known = cluster.membership.secret().as_bytes();
    if bool::from(shown.unwrap_or_default().ct_eq(known)) {
        return Ok(());
    }
    Err(Problem::new(Kind::NodesOnly, "this is for nodes only"))
}

async fn answer_node(api: &Api, head: &Parts, body: Body) -> Result<Response<Body>, Problem> {
    let cluster = &api.cluster;
    let no_such_path = || Problem::not_found("there is no such path between nodes");
    match PeerCall::parse(head.uri.path()).ok_or_else(no_such_path)? {
        PeerCall::Volume(volume, call) => return answer_volume(cluster, &volume, call, head, body).await,
        PeerCall::Node => return Ok(json(&report(cluster))),
        PeerCall::Console => {
            let console = api.console.as_ref().ok_or_else(no_such_path)?;
            return Ok(json(&console.figures(&question(body).await?)));
        }
        PeerCall::Ping => {}
        PeerCall::State => cluster.look.notify_one(),
        PeerCall::Hello => {
            let _ = cluster.events.send(Event::Hello);
        }
        PeerCall::Leave(node) => {
            let _ = cluster.events.send(Event::Leave(node));
        }
        PeerCall::Warehouse => {
            let named = head.uri.query().unwrap_or_default();
            let named = named
                .parse()
                .map_err(|error: InvalidUrl| Problem::field("warehouse", error.to_string()))?;
            let _ = cluster.events.send(Event::Warehouse(named));
        }
        PeerCall::Engine(name) => {
            let url = percent_decode_str(head.uri.query().unwrap_or_default()).decode_utf8();
            let url = url.map_err(|error| Problem::field("engine", error.to_string()))?;
            // `EngineUrl` omits its password when it is displayed, so the password is not stored
            // even if the sender included it.
            let url: EngineUrl = url
                .parse()
                .map_err(|error: InvalidEngineUrl| Problem::field("engine", error.to_string()))?;
            let _ = cluster
                .events
                .send(Event::Engine(name.to_string(), url.to_string()));
        }
        PeerCall::Stop => {
            cluster.asked_to_stop.send_replace(true);
        }
    }
    Ok(json(&true))
}

async fn answer_volume(
    cluster: &Arc<ClusterHandle>,
    volume: &NodeName,
    call: VolumeCall,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let (epoch, server) = {
        let topology = cluster.topology();
        (topology.ring.epoch().0, topology.servers.get(volume).cloned())
    };
    if server.is_none() || epoch_of(&head.headers) > Some(epoch) {
        cluster.look.notify_one();
    }
    let Some(server) = server else {
        return Ok(with_epoch(Problem::moved().into_response(), epoch));
    };
    let query = head.uri.query().unwrap_or_default();
    let answer = inner(cluster, &server, call, query, body).await;
    Ok(with_epoch(answer, epoch))
}

/// Adds the epoch of this node's ring to a refusal with status 421.
fn with_epoch(mut answer: Response<Body>, epoch: u64) -> Response<Body> {
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
        copy: topology
            .servers
            .values()
            .map(|server| CopyProgress::of(server))
            .sum(),
        epoch: topology.ring.epoch().0,
    }
}

/// Executes a call at a volume that this process serves.
pub(crate) async fn inner(
    cluster: &Arc<ClusterHandle>,
    server: &Arc<VolumeServer>,
    call: VolumeCall,
    query: &str,
    body: Body,
) -> Response<Body> {
    let answered = operate(cluster, server, call, query, body).await;
    // Each part of a stock is answered after its commit, which a former owner cannot make. So its
    // answer is true even if the volume was lost afterwards.
    if call != VolumeCall::Stock && !server.app.state().storage.is_ours() {
        // This process lost the volume during the call, so data that was read may be outdated.
        return Problem::moved().into_response();
    }
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// Reads the JSON body of a call.
async fn question<Q: DeserializeOwned>(body: Body) -> Result<Q, Problem> {
    let body = order_body::read_small(&HeaderMap::new(), body).await?;
    serde_json::from_slice(&body).map_err(|error| Problem::body(error.to_string()))
}

/// Renders the answer to the question type `Q` as JSON.
fn reply<Q>(answer: &Q::Answer) -> Response<Body>
where
    Q: VolumeQuestion,
    Q::Answer: Serialize,
{
    json(answer)
}

async fn operate(
    cluster: &Arc<ClusterHandle>,
    server: &Arc<VolumeServer>,
    call: VolumeCall,
    query: &str,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let app = &server.app;
    Ok(match call {
        VolumeCall::Stock => stock_upload::take_part(app, query, body).await?.into_response(),
        VolumeCall::Read => {
            let read: Read = question(body).await?;
            Entrance::of(app).carry_out_read(&read).map(Body::new)
        }
        VolumeCall::BeginStock => reply::<BeginStock>(&stock_upload::begin(app, &question(body).await?)?),
        VolumeCall::Orders => reply::<AskOrders>(&orders::page(app, question(body).await?).await?),
        VolumeCall::Reservations => {
            let AskReservations(ask) = question(body).await?;
            reply::<AskReservations>(&reports::reservations(app, &ask).await?)
        }
        VolumeCall::Messages => {
            let AskMessages(ask) = question(body).await?;
            reply::<AskMessages>(&reports::messages(app, &ask)?)
        }
        VolumeCall::Product => {
            let AskProduct(product) = question(body).await?;
            reply::<AskProduct>(&stock_query::product(app, product)?)
        }
        VolumeCall::Health => reply::<AskHealth>(&VolumeHealth::of(app)),
        VolumeCall::Epoch => reply::<AskEpoch>(&server.settled_epoch().map(|epoch| epoch.0)),
        VolumeCall::Progress => reply::<AskProgress>(&server.progress()),
        VolumeCall::Import => {
            let request: ImportRequest = question(body).await?;
            server.expect(&cluster.authority, request.id).await?;
            let copied = target::import(&cluster.peers, server, &request).await;
            let copied = copied.map_err(|error| Problem::internal(error.to_string()))?;
            reply::<ImportRequest>(&copied)
        }
        VolumeCall::StatFile => json(&stat_files::take(app, query, body).await?),
        VolumeCall::Export => export(cluster, server, &question(body).await?).await?,
    })
}

async fn export(
    cluster: &Arc<ClusterHandle>,
    server: &Arc<VolumeServer>,
    request: &ExportRequest,
) -> Result<Response<Body>, Problem> {
    if request.seal {
        // Requests that began while this volume was the only volume of the cluster read their body
        // as it arrives. They cannot be repeated at another node, so the seal waits until they have
        // ended, for a bounded time.
        cluster.earlier_requests().await;
        server.seal(&cluster.authority, request).await?;
    }
    match server.exports.page(server.app.state(), request).await {
        Ok(page) => Ok(Response::new(Body::from(page))),
        Err(ExportError::Storage(error)) => Err(error.into()),
        Err(error @ ExportError::OutOfTurn) => Err(Problem::new(Kind::NoSuchCopy, error.to_string())),
    }
}

/// Sends a question to the volume that `volume` chooses, on this node or another node. Repeats the
/// question while the volume moves or does not answer, until the deadline `until`. Fails earlier in
/// the cases of `call_volume`, or if the volume responds with an error status other than 421.
pub(crate) async fn ask_volume<Q: VolumeQuestion>(
    cluster: &Arc<ClusterHandle>,
    volume: impl Fn(&Topology) -> Option<NodeName>,
    question: &Q,
    until: Instant,
) -> Result<Q::Answer, Problem> {
    let body = serde_json::to_vec(question).map_err(|error| Problem::internal(error.to_string()))?;
    let errand = VolumeErrand::new(Q::CALL, body.into());
    let response = call_volume(cluster, volume, errand, until).await?;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await;
    let body = body.map_err(|error| Problem::internal(error.to_string()))?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body);
        let text: String = text.chars().take(REFUSAL_CHARS_MAX).collect();
        return Err(Problem::busy(format!("{}: {status}: {text}", Q::CALL.name())));
    }
    serde_json::from_slice(&body).map_err(|error| Problem::internal(error.to_string()))
}
