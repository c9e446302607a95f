//! Routes every public request: to the volume that owns its data, on this node or another node, to
//! all volumes (`fan_out`), or to this node itself.
//!
//! A request is parsed first (`routes`), so a malformed request gets the same response with any
//! number of nodes. While this node serves the only volume and no slots move, the operation reads
//! the body as it arrives. Otherwise a body is read completely first. So the call can be repeated
//! within `ROUTING_TIMEOUT` while another process takes over the volume or a slot moves. If its
//! body is read first, a stock upload is split by `stock_fan_out`, with a separate timeout.
//!
//! **Invariants**
//! - Commands and reads for another node are sent over the channel, built from the parsed
//!   operation. Of a client's headers they contain only a checked `Idempotency-Key` and the context
//!   of its trace.
//! - A response to a read that is too long for the channel is requested again over HTTP/2. Stock
//!   uploads and lists always use HTTP/2.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use axum::response::IntoResponse;
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use imt_ring::NodeName;
use tokio::time::Instant;

use crate::api::content::RequestBody;
use crate::api::cors::{Cors, is_foreign};
use crate::api::fast_path::{AnswerBody, Entrance};
use crate::api::host_names::HostNames;
use crate::api::idempotency::Commanded;
use crate::api::problem::{Kind, Problem, REPLAYED};
use crate::api::request::{NodeOperation, Operation, VolumeOperation, routing_key};
use crate::api::routes::{self, Target};
use crate::api::{
    Console, document, fan_out, gzip, internal, node_status, peer_channel, ring_document, stock_fan_out,
};
use crate::cluster::channel::message::{Question, Read, Reply};
use crate::cluster::peer_call::{PeerCall, VolumeCall};
use crate::cluster::peer_client::{EPOCH, NoAnswer, epoch_of};
use crate::control::errand::{Attempt, Destination, Errand};
use crate::control::handle::{ClusterHandle, ROUTING_TIMEOUT};
use crate::control::topology::{Topology, VolumeLocation};
use crate::domain::routing_key::RoutingKey;
use crate::volume::server::VolumeServer;

/// Response header with the address of the node that owns the order, store or statistics of a
/// request. Clients may send later requests for the same key directly to that address.
pub(crate) const OWNER: HeaderName = HeaderName::from_static("x-imt-owner");

/// Headers that are copied from the response of another node (over HTTP/2) into the response of
/// this node.
const ANSWERED: [HeaderName; 4] = [CONTENT_TYPE, RETRY_AFTER, REPLAYED, EPOCH];

/// The HTTP API of a node.
pub(crate) struct Api {
    pub(crate) cluster: Arc<ClusterHandle>,
    /// The web console; `None` in the simulation tests.
    pub(crate) console: Option<Arc<Console>>,
    /// The CORS rules; `None` if the operator allows no origins.
    pub(crate) cors: Option<Cors>,
    /// The host names by which a browser may reach this node.
    pub(crate) hosts: HostNames,
}

impl Api {
    /// Answers a request. Refuses a request of a browser if the rules for hosts or origins forbid
    /// it, and applies the CORS rules if there are any. None of these concern calls under `/peer/`.
    pub(crate) async fn answer(
        &self,
        target: Target,
        request: Request<impl RequestBody>,
    ) -> Response<AnswerBody> {
        if !matches!(target, Target::Peer) {
            if self.hosts.is_foreign(&request) {
                let reason = "a browser may not reach this node by this host name";
                return refusal(Problem::new(Kind::ForeignHost, reason));
            }
            if is_foreign(self.cors.as_ref(), &request) {
                let reason = "web pages of this origin may not call the API";
                return refusal(Problem::new(Kind::ForeignOrigin, reason));
            }
        }
        match &self.cors {
            Some(cors) if !matches!(target, Target::Peer) => {
                let answer = |request| {
                    let target = target.clone();
                    async move { Ok(self.answer_target(target, request).await) }
                };
                // The future is boxed, so that the futures of nodes without CORS rules stay small.
                Box::pin(cors.answer(request, answer)).await
            }
            _ => self.answer_target(target, request).await,
        }
    }

    async fn answer_target(
        &self,
        target: Target,
        request: Request<impl RequestBody>,
    ) -> Response<AnswerBody> {
        let (head, body) = request.into_parts();
        let answer = match target {
            Target::Peer => {
                // The future is boxed, so that the futures of client requests stay small.
                let answer = Box::pin(internal::answer(self, &head, Body::new(body))).await;
                return answer.map(AnswerBody::Long);
            }
            Target::Route(at) => self.answer_route(at, &head.uri, &head.headers, body).await,
            Target::Page if self.console.is_some() => Console::page(&head.headers),
            Target::Page => refusal(Problem::no_such_path()),
            Target::Unknown(problem) => refusal(problem),
        };
        let answer = gzip::pack(answer, &head.headers).await;
        if head.method == Method::HEAD {
            without_body(answer)
        } else {
            answer
        }
    }

    async fn answer_route(
        &self,
        at: usize,
        uri: &Uri,
        headers: &HeaderMap,
        body: impl RequestBody,
    ) -> Response<AnswerBody> {
        let cluster = &self.cluster;
        let answer = match routes::parse(at, uri) {
            Ok(Operation::Volume(operation)) => {
                return answer_at_volume(cluster, operation, headers, body).await;
            }
            Ok(Operation::List(list)) => {
                fan_out::list(cluster, &list, Instant::now() + ROUTING_TIMEOUT).await
            }
            Ok(Operation::Node(operation)) => return self.answer_here(operation, headers).await,
            Err(problem) => Err(problem),
        };
        answer.map_or_else(refusal, |answer| answer.map(AnswerBody::Long))
    }

    /// Executes an operation that needs no volume, on the node that received the request.
    async fn answer_here(&self, operation: NodeOperation, headers: &HeaderMap) -> Response<AnswerBody> {
        let cluster = &self.cluster;
        let no_console = || refusal(Problem::no_such_path());
        let answer = match (operation, &self.console) {
            (NodeOperation::Ring, _) => ring_document::answer(&cluster.topology(), headers),
            (NodeOperation::Live, _) => node_status::live(),
            (NodeOperation::Ready, _) => {
                node_status::ready(cluster).unwrap_or_else(IntoResponse::into_response)
            }
            (NodeOperation::Metrics, _) => node_status::metrics(cluster),
            (NodeOperation::OpenApi, _) => document::answer(),
            (NodeOperation::ConsoleState, Some(console)) => return Box::pin(console.state(headers)).await,
            (NodeOperation::ConsoleEvents, Some(console)) => return console.events(headers),
            (NodeOperation::ConsoleState | NodeOperation::ConsoleEvents, None) => return no_console(),
        };
        answer.map(AnswerBody::Long)
    }
}

/// Returns a problem as a response.
pub(crate) fn refusal(problem: Problem) -> Response<AnswerBody> {
    problem.into_response().map(AnswerBody::Long)
}

async fn answer_at_volume(
    cluster: &Arc<ClusterHandle>,
    operation: VolumeOperation,
    headers: &HeaderMap,
    body: impl RequestBody,
) -> Response<AnswerBody> {
    let topology = cluster.topology();
    if let Some(server) = &topology.alone {
        let answer = Entrance::of(&server.app).answer(operation, headers, body).await;
        if answer.status() != StatusCode::MISDIRECTED_REQUEST {
            return answer;
        }
        // The operation may have consumed the body as it arrived, so the request cannot be sent to
        // another node. A read could be sent, but is refused in the same way, and the client
        // repeats it.
        let reason = "the order or store is being moved to another node";
        return refusal(Problem::not_here(cluster.me.as_str(), reason));
    }
    drop(topology);
    let answer = answer_among(cluster, operation, headers, body).await;
    answer.unwrap_or_else(refusal)
}

async fn answer_among(
    cluster: &Arc<ClusterHandle>,
    operation: VolumeOperation,
    headers: &HeaderMap,
    body: impl RequestBody,
) -> Result<Response<AnswerBody>, Problem> {
    let long = |answer: Response<Body>| answer.map(AnswerBody::Long);
    let (key, errand) = match operation {
        VolumeOperation::Command(command) => {
            let commanded = Commanded::read(command, headers, body).await?;
            let key = RoutingKey::Order(commanded.order().clone());
            (key, ClientErrand::Command(commanded))
        }
        VolumeOperation::Read(read) => (routing_key(&read), ClientErrand::Read(read)),
        VolumeOperation::ReplaceStock => {
            let answered = stock_fan_out::replace(cluster, headers, Body::new(body)).await;
            return answered.map(long);
        }
        VolumeOperation::ChangeStock => {
            let answered = stock_fan_out::change(cluster, headers, Body::new(body)).await;
            return answered.map(long);
        }
    };
    if let Some(response) = answer_of_this_node(cluster, &key, &errand).await {
        return Ok(response);
    }
    let until = Instant::now() + ROUTING_TIMEOUT;
    let volume = |topology: &Topology| topology.volume_of(&key);
    let performed = cluster.perform(volume, &errand, until).await;
    let (mut response, volume) = performed.map_err(|undelivered| Problem::from(undelivered).for_client())?;
    name_owner(&mut response, &cluster.topology(), &volume);
    Ok(long(response))
}

/// Executes a request once if this node serves its volume. Returns `None` if this node does not
/// serve the volume now, or if the slot or the volume moves. In these cases the caller routes the
/// request with `ClusterHandle::perform`.
///
/// Requests of clients that send each request to its owner end here. So this function neither boxes
/// the response nor waits for changes of the topology.
async fn answer_of_this_node(
    cluster: &Arc<ClusterHandle>,
    key: &RoutingKey,
    errand: &ClientErrand,
) -> Option<Response<AnswerBody>> {
    let topology = cluster.topology();
    let volume = topology.volume_of(key)?;
    let VolumeLocation::Here(server) = topology.locate(&volume) else {
        return None;
    };
    let mut response = errand.execute(server).await;
    if response.status() == StatusCode::MISDIRECTED_REQUEST {
        return None;
    }
    name_owner(&mut response, &topology, &volume);
    Some(response)
}

/// Adds the header `X-Imt-Owner` to a response: the address of the node that serves the volume.
/// Adds nothing if the topology does not have that address.
fn name_owner<B>(response: &mut Response<B>, topology: &Topology, volume: &NodeName) {
    if let Some(address) = topology.owner_header(volume) {
        response.headers_mut().insert(OWNER, address.clone());
    }
}

/// A client's request that concerns one volume.
enum ClientErrand {
    Command(Commanded),
    Read(Read),
}

impl ClientErrand {
    /// Executes the request at a volume of this node.
    async fn execute(&self, server: &VolumeServer) -> Response<AnswerBody> {
        let entrance = Entrance::of(&server.app);
        match self {
            ClientErrand::Command(commanded) => entrance.carry_out_command(commanded).await,
            ClientErrand::Read(read) => entrance.carry_out_read(read),
        }
    }
}

impl Errand for ClientErrand {
    type Outcome = Response<Body>;

    async fn here(&self, to: &Destination<'_>, server: &Arc<VolumeServer>) -> Attempt<Response<Body>> {
        attempt(self.execute(server).await.map(Body::new), to.epoch())
    }

    async fn there(
        &self,
        to: &Destination<'_>,
        address: SocketAddr,
    ) -> Result<Attempt<Response<Body>>, NoAnswer> {
        let question = match self {
            ClientErrand::Command(commanded) => Question::Command(commanded.to_message()),
            ClientErrand::Read(read) => Question::Read(read.clone()),
        };
        let answer = to.request(address, question).await?;
        let response = match (answer.reply, self) {
            (Reply::Moved, _) => return Ok(Attempt::Moved { epoch: answer.epoch }),
            (Reply::Http(http), _) => peer_channel::into_response(http),
            (Reply::TooLarge, ClientErrand::Read(read)) => {
                let question = serde_json::to_vec(read).map_err(|error| NoAnswer(error.to_string()))?;
                let errand = VolumeErrand::new(VolumeCall::Read, question.into());
                return errand.there(to, address).await;
            }
            (Reply::Busy(reason) | Reply::Failed(reason), _) => Problem::busy(reason).into_response(),
            _ => Problem::internal("another node gave an answer of another kind").into_response(),
        };
        Ok(attempt(response, answer.epoch))
    }
}

/// A call to a volume, sent over HTTP/2 if another node serves the volume.
pub(crate) struct VolumeErrand {
    call: VolumeCall,
    query: String,
    body: Bytes,
}

impl VolumeErrand {
    /// Creates a call with a body and without a query.
    pub(crate) fn new(call: VolumeCall, body: Bytes) -> VolumeErrand {
        VolumeErrand {
            call,
            query: String::new(),
            body,
        }
    }

    /// Sets the query string of the call.
    pub(crate) fn with_query(mut self, query: String) -> VolumeErrand {
        self.query = query;
        self
    }
}

impl Errand for VolumeErrand {
    type Outcome = Response<Body>;

    async fn here(&self, to: &Destination<'_>, server: &Arc<VolumeServer>) -> Attempt<Response<Body>> {
        let body = Body::from(self.body.clone());
        let response = internal::inner(to.cluster, server, self.call, &self.query, body).await;
        attempt(response, to.epoch())
    }

    async fn there(
        &self,
        to: &Destination<'_>,
        address: SocketAddr,
    ) -> Result<Attempt<Response<Body>>, NoAnswer> {
        let mut path = PeerCall::Volume(to.volume.clone(), self.call).to_string();
        if !self.query.is_empty() {
            path = format!("{path}?{}", self.query);
        }
        let headers = HeaderMap::from_iter([(EPOCH, HeaderValue::from(to.epoch()))]);
        let body = Body::from(self.body.clone());
        let peers = &to.cluster.peers;
        let answer = peers
            .call(address, Method::POST, &path, &headers, body, to.until)
            .await?;
        let mut response = Response::new(Body::from(answer.body));
        *response.status_mut() = answer.status;
        for name in ANSWERED {
            if let Some(value) = answer.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(attempt(response, to.epoch()))
    }
}

/// Classifies a response as the result of an attempt. Status 421 means that the slot or its volume
/// moved. The epoch of the refusal is the epoch in the response's headers, or `epoch` without such
/// a header.
fn attempt(response: Response<Body>, epoch: u64) -> Attempt<Response<Body>> {
    if response.status() == StatusCode::MISDIRECTED_REQUEST {
        let epoch = epoch_of(response.headers()).unwrap_or(epoch);
        return Attempt::Moved { epoch };
    }
    Attempt::Done(response)
}

/// Sends a call to the volume that `volume` chooses, on this node or another node. Repeats the call
/// while the volume moves or does not answer, until the deadline `until`. Fails earlier if `volume`
/// returns `None`, if this node must serve the volume but the volume is missing, or if the volume's
/// node answers neither calls nor pings.
pub(crate) async fn call_volume(
    cluster: &Arc<ClusterHandle>,
    volume: impl Fn(&Topology) -> Option<NodeName>,
    errand: VolumeErrand,
    until: Instant,
) -> Result<Response<Body>, Problem> {
    let (response, _) = cluster.perform(volume, &errand, until).await?;
    Ok(response)
}

/// Returns the response to `HEAD`: the headers of the response to `GET`, without its body.
fn without_body(answer: Response<AnswerBody>) -> Response<AnswerBody> {
    let (mut head, body) = answer.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, AnswerBody::Long(Body::empty()))
}
