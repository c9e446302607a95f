//! Takes every public request to the volume that answers it, on this node or another.
//!
//! A request is parsed first (`request`), so it is refused alike however many nodes there are.
//! While this node serves the only volume, the operation is carried out with the body as it
//! arrives. Otherwise the body is read first (stock is split by `stock_fan_out`), so that the errand
//! can be repeated while a volume changes hands or a slot moves, within `ROUTING_TIMEOUT`.
//!
//! **Invariants**
//! - Commands and reads go to another node on the channel, built from an operation. Of a client's
//!   headers they contain nothing but a checked `Idempotency-Key`.
//! - Answers that are too long for the channel go over HTTP/2, and so do calls of nodes that
//!   concern neither orders nor stock.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use imt_ring::NodeName;
use tokio::time::Instant;

use crate::api::fast_path::{AnswerBody, Entrance};
use crate::api::idempotency::Commanded;
use crate::api::problem::{Problem, REPLAYED};
use crate::api::request::Operation;
use crate::api::{fan_out, gzip, health, internal, node_status, orders, peer_channel, stock_fan_out};
use crate::cluster::channel::message::{Question, Reply};
use crate::cluster::peer_client::{EPOCH, NoAnswer, epoch_of};
use crate::control::errand::{Attempt, Destination, Errand};
use crate::control::handle::{ClusterHandle, ROUTING_TIMEOUT};
use crate::control::topology::Topology;
use crate::domain::routing_key::RoutingKey;
use crate::volume::server::VolumeServer;

/// Headers of an owner's answer that reach the client.
const ANSWERED: [HeaderName; 4] = [CONTENT_TYPE, RETRY_AFTER, REPLAYED, EPOCH];

/// Answers a request.
pub(crate) async fn answer<B>(
    cluster: &Arc<ClusterHandle>,
    request: Request<B>,
) -> axum::http::Response<AnswerBody>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display + Into<axum::BoxError>,
{
    if request.uri().path().starts_with("/peer/") {
        let answer = internal::answer(cluster, request.map(Body::new)).await;
        return answer.map(AnswerBody::Long);
    }
    let (head, body) = request.into_parts();
    let answer = match Operation::parse(&head.method, &head.uri) {
        Ok(operation) => answer_operation(cluster, operation, &head.headers, body).await,
        Err(problem) => problem.into_response().map(AnswerBody::Long),
    };
    let answer = gzip::pack(answer, &head.headers).await;
    if head.method == Method::HEAD {
        without_body(answer)
    } else {
        answer
    }
}

async fn answer_operation<B>(
    cluster: &Arc<ClusterHandle>,
    operation: Operation,
    headers: &HeaderMap,
    body: B,
) -> axum::http::Response<AnswerBody>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Display + Into<axum::BoxError>,
{
    let topology = cluster.topology();
    if let Some(server) = topology.alone.as_ref().filter(|_| operation.is_of_one_volume()) {
        let answer = Entrance::of(&server.app).answer(operation, headers, body).await;
        if answer.status() != StatusCode::MISDIRECTED_REQUEST {
            return answer;
        }
        // The body was read as it arrived, so the call cannot be repeated elsewhere.
        let reason = "the order or store is being moved to another node";
        let refusal = Problem::not_here(cluster.me.as_str(), reason).into_response();
        return refusal.map(AnswerBody::Long);
    }
    drop(topology);
    let answer = answer_among(cluster, operation, headers, Body::new(body)).await;
    answer
        .unwrap_or_else(Problem::into_response)
        .map(AnswerBody::Long)
}

async fn answer_among(
    cluster: &Arc<ClusterHandle>,
    operation: Operation,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if let Some((key, path)) = operation.forwarded() {
        let until = Instant::now() + ROUTING_TIMEOUT;
        let volume = |topology: &Topology| topology.volume_of(&key);
        let (response, _) = cluster.carry(volume, &ClientErrand::Read(&path), until).await?;
        return Ok(response);
    }
    match operation {
        Operation::Command(command) => {
            let commanded = Commanded::read(command, headers, body).await?;
            let until = Instant::now() + ROUTING_TIMEOUT;
            let key = RoutingKey::Order(commanded.order().clone());
            let volume = |topology: &Topology| topology.volume_of(&key);
            let errand = ClientErrand::Command(&commanded);
            let (response, _) = cluster.carry(volume, &errand, until).await?;
            Ok(response)
        }
        Operation::ReplaceStock => stock_fan_out::replace(cluster, headers, body).await,
        Operation::ChangeStock => stock_fan_out::change(cluster, headers, body).await,
        Operation::List(list) => fan_out::list(cluster, &list, Instant::now() + ROUTING_TIMEOUT).await,
        Operation::Ring => Ok(orders::json(&*cluster.topology().ring)),
        Operation::Live => Ok(node_status::live()),
        Operation::Ready => node_status::ready(cluster),
        Operation::Metrics => Ok(node_status::metrics(cluster)),
        Operation::OpenApi => Ok(health::openapi()),
        _ => Err(Problem::internal("the operation has no place")),
    }
}

/// A client's request to one volume.
enum ClientErrand<'a> {
    Command(&'a Commanded),
    /// The path of an operation that reads.
    Read(&'a str),
}

impl Errand for ClientErrand<'_> {
    type Outcome = Response;

    async fn here(&self, to: &Destination<'_>, server: &Arc<VolumeServer>) -> Attempt<Response> {
        let response = match self {
            ClientErrand::Command(commanded) => {
                let answered = Entrance::of(&server.app).carry_out_command(commanded).await;
                answered.map(Body::new)
            }
            ClientErrand::Read(path) => answer_here(server, to, &Call::get((*path).to_owned())).await,
        };
        attempt(response, to.epoch())
    }

    async fn there(&self, to: &Destination<'_>, address: SocketAddr) -> Result<Attempt<Response>, NoAnswer> {
        let question = match self {
            ClientErrand::Command(commanded) => Question::Command(commanded.to_message()),
            ClientErrand::Read(path) => Question::Read((*path).to_owned()),
        };
        let answer = to.request(address, question).await?;
        let response = match (answer.reply, self) {
            (Reply::Moved, _) => return Ok(Attempt::Moved { epoch: answer.epoch }),
            (Reply::Http(http), _) => peer_channel::into_response(http),
            (Reply::TooLarge, ClientErrand::Read(path)) => {
                let call = Call::get((*path).to_owned());
                return VolumeCall {
                    side: Side::Public,
                    call,
                }
                .there(to, address)
                .await;
            }
            (Reply::Busy(reason) | Reply::Failed(reason), _) => Problem::busy(reason).into_response(),
            _ => Problem::internal("another node gave an answer of another kind").into_response(),
        };
        Ok(attempt(response, answer.epoch))
    }
}

/// A call about a volume that can be repeated.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// The path and query within the volume.
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

impl Call {
    /// Returns a call that only reads.
    pub(crate) fn get(path: String) -> Call {
        Call {
            method: Method::GET,
            path,
            body: Bytes::new(),
        }
    }

    /// Returns a call with a body.
    pub(crate) fn post(path: String, body: Bytes) -> Call {
        Call {
            method: Method::POST,
            body,
            ..Call::get(path)
        }
    }
}

/// Returns all headers of a call, except those that `Peers` adds.
fn headers(to: &Destination<'_>) -> HeaderMap {
    HeaderMap::from_iter([(EPOCH, HeaderValue::from(to.epoch()))])
}

/// The part of a volume's routes that a call is made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Operations of the public API.
    Public,
    /// Operations between nodes.
    Inner,
}

impl Side {
    fn segment(self) -> &'static str {
        match self {
            Side::Public => "public",
            Side::Inner => "inner",
        }
    }
}

/// A call over HTTP/2 to a volume.
pub(crate) struct VolumeCall {
    pub(crate) side: Side,
    pub(crate) call: Call,
}

impl Errand for VolumeCall {
    type Outcome = Response;

    async fn here(&self, to: &Destination<'_>, server: &Arc<VolumeServer>) -> Attempt<Response> {
        let response = match self.side {
            Side::Public => answer_here(server, to, &self.call).await,
            Side::Inner => {
                let body = Body::from(self.call.body.clone());
                internal::inner(to.cluster, server, &self.call.path, body).await
            }
        };
        attempt(response, to.epoch())
    }

    async fn there(&self, to: &Destination<'_>, address: SocketAddr) -> Result<Attempt<Response>, NoAnswer> {
        let VolumeCall { side, call } = self;
        let path = format!("/peer/volume/{}/{}{}", to.volume, side.segment(), call.path);
        let body = Body::from(call.body.clone());
        let method = call.method.clone();
        let peers = &to.cluster.peers;
        let answer = peers
            .call(address, method, &path, &headers(to), body, to.until)
            .await?;
        let mut response = (answer.status, answer.body).into_response();
        let headers = response.headers_mut();
        headers.remove(CONTENT_TYPE);
        for name in ANSWERED {
            if let Some(value) = answer.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Ok(attempt(response, to.epoch()))
    }
}

/// Returns a response as the result of a try. A refusal without an epoch is by the ring of `epoch`.
fn attempt(response: Response, epoch: u64) -> Attempt<Response> {
    if response.status() == StatusCode::MISDIRECTED_REQUEST {
        let epoch = epoch_of(response.headers()).unwrap_or(epoch);
        return Attempt::Moved { epoch };
    }
    Attempt::Done(response)
}

/// Makes a call at a volume, wherever it is.
pub(crate) async fn call_volume(
    cluster: &Arc<ClusterHandle>,
    volume: impl Fn(&Topology) -> Option<NodeName>,
    side: Side,
    call: Call,
    until: Instant,
) -> Result<Response, Problem> {
    let (response, _) = cluster.carry(volume, &VolumeCall { side, call }, until).await?;
    Ok(response)
}

/// Answers a public call about a volume that is served here.
async fn answer_here(server: &VolumeServer, to: &Destination<'_>, call: &Call) -> Response {
    let path = call.path.parse();
    let operation = path
        .map_err(|_| Problem::field("path", "is not a path"))
        .and_then(|path| Operation::parse(&call.method, &path));
    match operation {
        Ok(operation) => {
            let body = Body::from(call.body.clone());
            let answer = Entrance::of(&server.app)
                .answer(operation, &headers(to), body)
                .await;
            answer.map(Body::new)
        }
        Err(problem) => problem.into_response(),
    }
}

/// Returns the answer to `HEAD`: the answer to `GET` without its body.
pub(crate) fn without_body(answer: axum::http::Response<AnswerBody>) -> axum::http::Response<AnswerBody> {
    let (mut head, body) = answer.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    axum::http::Response::from_parts(head, AnswerBody::Long(Body::empty()))
}
