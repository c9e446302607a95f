//! The client for calls to other nodes. Frequent small requests use the channel. Large transfers
//! and cluster operations use HTTP/2. Both authenticate by the cluster's secret. `Protection`
//! decides which connections are encrypted.
//!
//! All calls to a node share one connection of each kind. A failed call returns its reason, and the
//! caller decides whether to retry.
//!
//! **Silent nodes.** If a call with a timeout of at least 2 s has no answer half a second before
//! its timeout, the node is pinged. If the ping is not answered in time either, the node is
//! *silent* until it answers a ping. Usually its process is paused or hangs, while the cluster
//! still treats the node as running.
//! - For one second after the failed ping, calls to the node fail at once.
//! - After that second, a call to the node is preceded by another ping. So a silent node delays a
//!   request by half a second instead of the caller's whole timeout.
//! - An unanswered ping stays open for 30 s. If the process continues in this time, it answers the
//!   open ping. Then calls are sent to the node again without a further delay.
//!
//! A node that refuses connections is not silent, because its process has ended. Another node
//! usually takes over its volumes before the callers' timeouts.
//!
//! The choice of the node and retries are in `control::errand`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use imt_ring::NodeName;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::cluster::channel::message::{Answer as ChannelAnswer, Question, Request as ChannelRequest};
use crate::cluster::channel::{Channels, Dialer, PeerKey, Protection, Unanswered};
use crate::cluster::peer_call::{PING, PeerCall, VolumeQuestion};
use crate::cluster::peer_connector::PeerConnector;
use crate::config::PeerEncryption;
use crate::error::with_causes;
use crate::runtime;
use crate::runtime::metrics::ChannelCounters;
use crate::runtime::trace::{self, Begun, FinishedSpan, SpanKind, SpanOutcome, TraceContext};

/// Header with the cluster's secret. On unencrypted connections, a node accepts calls under
/// `/peer/` only with this header.
pub(crate) const SECRET: HeaderName = HeaderName::from_static("x-imt-secret");
/// Header with the epoch of a ring. A `VolumeErrand` contains the epoch of the ring by which its
/// volume was chosen. A refusal with status 421 contains the epoch of the refusing node's ring.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("x-imt-epoch");
/// Time after a failed ping during which calls to the silent node fail at once.
const SILENCE_DURATION: Duration = Duration::from_secs(1);
/// Longest wait for the answer to a ping, after which the node is silent.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// Time after which an unanswered ping is dropped. A process that was paused for a shorter time
/// still answers it.
const PING_OPEN_MAX: Duration = Duration::from_secs(30);
/// Minimum timeout of a call for which the node is pinged if no answer arrives. With a shorter
/// timeout, a missing answer does not suggest a silent node.
const PINGED_TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// Maximum size in bytes of a response body that is read as a whole. A page of 10,000 orders has
/// some megabytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Returns the epoch in the headers of a call or of a refusal. `None` if the header is missing or
/// is not a number.
pub(crate) fn epoch_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok()
}

/// The reason why a call got no usable answer. The other node may still have executed the call.
#[derive(Clone, Debug)]
pub(crate) struct NoAnswer(pub(crate) String);

/// A response with its whole body.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The future of a call in flight.
pub(crate) type Sending<'a> = Pin<Box<dyn Future<Output = Result<Response<Body>, NoAnswer>> + Send + 'a>>;

/// Sends calls to other nodes and returns their responses.
///
/// A call or its response may be lost, and the caller cannot tell which. If the future is dropped,
/// the other node may still execute the call.
pub(crate) trait Transport: Send + Sync {
    /// Sends a call and returns its response, with a body that is still arriving.
    fn send(&self, address: SocketAddr, request: Request<Body>) -> Sending<'_>;
}

/// The transport over HTTP/2. `protection` decides which connections are encrypted.
pub(crate) struct Http {
    client: Client<PeerConnector, Body>,
    protection: Protection,
}

impl Http {
    /// Creates a transport without open connections.
    pub(crate) fn new(secret: &str, protection: Protection) -> Http {
        let connector = PeerConnector {
            key: PeerKey::derive(secret),
            protection: protection.clone(),
        };
        let client = Client::builder(TokioExecutor::new())
            .http2_only(true)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Http { client, protection }
    }
}

impl Transport for Http {
    fn send(&self, address: SocketAddr, mut request: Request<Body>) -> Sending<'_> {
        if self.protection.is_needed(address.ip()) {
            // An encrypted connection has proven the secret in its handshake, so the secret is not
            // sent.
            request.headers_mut().remove(SECRET);
        }
        Box::pin(async move {
            let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
            *request.uri_mut() = format!("http://{address}{path}")
                .parse()
                .map_err(|error| NoAnswer(format!("{path} is not a valid path: {error}")))?;
            match self.client.request(request).await {
                Ok(response) => Ok(response.map(Body::new)),
                Err(error) => Err(NoAnswer(with_causes(&error))),
            }
        })
    }
}

/// A client by which programs other than nodes, such as the command line, call nodes.
pub struct NodeClient {
    http: Http,
    secret: HeaderValue,
}

impl NodeClient {
    /// Creates a client that authenticates with the cluster's secret.
    ///
    /// # Errors
    /// Returns an error if encryption cannot be set up, for example without a key pair.
    pub fn new(secret: &str, encryption: PeerEncryption) -> Result<NodeClient, NodeUnreachable> {
        let protection = Protection::new(encryption).map_err(|error| NodeUnreachable(error.to_string()))?;
        Ok(NodeClient {
            http: Http::new(secret, protection),
            secret: secret_header(secret),
        })
    }

    /// Sends `POST path` to a node, and returns status and body of the response.
    ///
    /// # Errors
    /// Returns an error if the path is invalid, or if no complete response of at most 64 MiB
    /// arrives within the timeout.
    pub async fn post(
        &self,
        address: SocketAddr,
        path: &str,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), NodeUnreachable> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path
            .parse()
            .map_err(|error| NodeUnreachable(format!("{path} is no path: {error}")))?;
        request.headers_mut().insert(SECRET, self.secret.clone());
        let exchange = async {
            let sent = self.http.send(address, request).await;
            let (head, body) = sent.map_err(|error| NodeUnreachable(error.0))?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| NodeUnreachable(format!("the answer broke off: {error}")))?;
            Ok((head.status, body.to_bytes()))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(NodeUnreachable(format!("no answer within {timeout:?}"))))
    }
}

/// The reason why no client could be created, or why a call to a node has no complete response.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeUnreachable(String);

fn secret_header(secret: &str) -> HeaderValue {
    let mut secret = HeaderValue::from_str(secret).unwrap_or(HeaderValue::from_static("-"));
    secret.set_sensitive(true);
    secret
}

/// The client of this node for calls to other nodes.
pub(crate) struct Peers {
    transport: Arc<dyn Transport>,
    channels: Channels,
    secret: HeaderValue,
    silent: Arc<Silent>,
}

/// The silent nodes by address, each with the time until which calls to it fail at once.
#[derive(Default)]
struct Silent(Mutex<HashMap<SocketAddr, Instant>>);

impl Silent {
    fn nodes(&self) -> MutexGuard<'_, HashMap<SocketAddr, Instant>> {
        self.0.lock()
    }
}

impl Peers {
    /// Creates a client that uses `transport` for HTTP/2 and `dialer` for the channel.
    pub(crate) fn new(
        transport: impl Transport + 'static,
        dialer: impl Dialer + 'static,
        secret: &str,
        counters: Arc<ChannelCounters>,
    ) -> Peers {
        Peers {
            transport: Arc::new(transport),
            channels: Channels::new(dialer, counters),
            secret: secret_header(secret),
            silent: Arc::default(),
        }
    }

    /// Returns `true` if the node at this address is silent.
    pub(crate) fn is_silent(&self, address: SocketAddr) -> bool {
        self.silent.nodes().contains_key(&address)
    }

    /// Pings a node. If no answer arrives within `PING_TIMEOUT`, marks the node as silent and
    /// returns `false`. Any result of the transport counts as an answer, such as a refused
    /// connection.
    async fn ping(&self, address: SocketAddr) -> bool {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(PING);
        request.headers_mut().insert(SECRET, self.secret.clone());
        let (transport, silent) = (Arc::clone(&self.transport), Arc::clone(&self.silent));
        let asking = runtime::spawn(async move {
            let answered = tokio::time::timeout(PING_OPEN_MAX, transport.send(address, request)).await;
            if answered.is_ok() {
                silent.nodes().remove(&address);
            }
        });
        let is_answered = tokio::time::timeout(PING_TIMEOUT, asking).await.is_ok();
        if !is_answered {
            let until = Instant::now() + SILENCE_DURATION;
            self.silent.nodes().insert(address, until);
        }
        is_answered
    }

    /// Fails at once during `SILENCE_DURATION` after a failed ping to the node. After that time, a
    /// silent node is pinged again, and the check fails if this ping fails too.
    async fn check(&self, address: SocketAddr) -> Result<(), NoAnswer> {
        let known = self.silent.nodes().get(&address).copied();
        let may_answer = match known {
            None => true,
            Some(until) => Instant::now() >= until && self.ping(address).await,
        };
        let silent = || NoAnswer("it does not answer: its process is paused or hangs".to_owned());
        may_answer.then_some(()).ok_or_else(silent)
    }

    /// Sends a call over HTTP/2. The caller reads the body of the response as it arrives. `until`
    /// limits only the wait for the head of the response.
    pub(crate) async fn open(
        &self,
        address: SocketAddr,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Body,
        until: Instant,
    ) -> Result<Response<Body>, NoAnswer> {
        self.check(address).await?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path
            .parse()
            .map_err(|error| NoAnswer(format!("{path} is not a valid path: {error}")))?;
        *request.headers_mut() = headers.clone();
        let head = request.headers_mut();
        head.insert(SECRET, self.secret.clone());
        if let Some(trace) = trace::current()
            && let Ok(value) = HeaderValue::try_from(trace.to_string())
        {
            head.insert(trace::TRACEPARENT, value);
        }
        let sending = self.transport.send(address, request);
        self.answered_by(address, until, sending).await
    }

    /// Waits for an answer until `until`. If no answer has arrived `PING_TIMEOUT` before `until`,
    /// the node is pinged to find out if it is silent. A wait that is shorter than
    /// `PINGED_TIMEOUT_MIN` has no ping.
    async fn answered_by<T>(
        &self,
        address: SocketAddr,
        until: Instant,
        answering: impl Future<Output = Result<T, NoAnswer>>,
    ) -> Result<T, NoAnswer> {
        let left = until.saturating_duration_since(Instant::now());
        let late = || NoAnswer(format!("no answer within {} ms", left.as_millis()));
        if left < PINGED_TIMEOUT_MIN {
            return tokio::time::timeout_at(until, answering)
                .await
                .unwrap_or_else(|_| Err(late()));
        }
        let mut answering = std::pin::pin!(answering);
        if let Ok(answered) = tokio::time::timeout_at(until - PING_TIMEOUT, &mut answering).await {
            return answered;
        }
        // Either this call is slow or the node is silent. The ping distinguishes the two cases.
        let last = tokio::time::timeout_at(until, answering);
        let (answered, _) = tokio::join!(last, self.ping(address));
        answered.unwrap_or_else(|_| Err(late()))
    }

    /// Sends a request about a volume over the channel, and waits for the answer. `epoch` is the
    /// epoch of the ring by which the caller chose the node.
    pub(crate) async fn request(
        &self,
        address: SocketAddr,
        volume: &NodeName,
        epoch: u64,
        question: Question,
        until: Instant,
    ) -> Result<ChannelAnswer, NoAnswer> {
        self.check(address).await?;
        let left = until.saturating_duration_since(Instant::now());
        let begun = Begun::now();
        let parent = trace::current();
        let span = parent.map(TraceContext::child);
        let question = match span {
            Some(span) => Question::Traced(span, Box::new(question)),
            None => question,
        };
        let request = ChannelRequest {
            id: 0,
            volume: volume.clone(),
            epoch,
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            question,
        };
        let connection = self.channels.connection(address);
        let asking = async {
            connection
                .ask(request)
                .await
                .map_err(|unanswered| match unanswered {
                    Unanswered::Busy => NoAnswer("too many requests to it are waiting".to_owned()),
                    Unanswered::TooLarge => {
                        NoAnswer("the request is larger than a message on the channel may be".to_owned())
                    }
                    Unanswered::Broken(reason) => NoAnswer(reason),
                })
        };
        let answered = self.answered_by(address, until, asking).await;
        if let Some((span, parent)) = span.zip(parent) {
            let finished = || FinishedSpan {
                name: "call of another node",
                kind: SpanKind::Client,
                context: span,
                parent: Some(parent.span),
                started: begun.started,
                took: begun.elapsed(),
                outcome: match &answered {
                    Ok(_) => SpanOutcome::Answered,
                    Err(_) => SpanOutcome::Unanswered,
                },
                attributes: vec![
                    ("server.address", address.to_string()),
                    ("imt.volume", volume.to_string()),
                ],
            };
            trace::finish(finished, span);
        }
        answered
    }

    /// Sends a request that has no answer over the channel, usually in the frame of a later request
    /// with an answer. Without a later request, it may wait for ever. The request may be lost.
    pub(crate) fn tell(&self, address: SocketAddr, volume: &NodeName, epoch: u64, question: Question) {
        let request = ChannelRequest::without_answer(volume, epoch, question);
        // The request may be lost in any case, so a failure to send it is ignored.
        let _ = self.channels.connection(address).tell(&request);
    }

    /// Sends a request that has no answer over the channel at once. The request may be lost.
    pub(crate) fn tell_now(&self, address: SocketAddr, volume: &NodeName, epoch: u64, question: Question) {
        let request = ChannelRequest::without_answer(volume, epoch, question);
        let _ = self.channels.connection(address).tell_now(&request);
    }

    /// Sends a call over HTTP/2 and reads the whole response.
    pub(crate) async fn call(
        &self,
        address: SocketAddr,
        method: Method,
        path: &str,
        headers: &HeaderMap,
        body: Body,
        until: Instant,
    ) -> Result<Answer, NoAnswer> {
        let response = self.open(address, method, path, headers, body, until).await?;
        let (head, body) = response.into_parts();
        let whole = Limited::new(body, ANSWER_BYTES_MAX).collect();
        let whole = tokio::time::timeout_at(until, whole)
            .await
            .map_err(|_| NoAnswer("the end of the answer did not arrive in time".to_owned()))?;
        let body = whole.map_err(|error| NoAnswer(format!("the answer broke off: {error}")))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    /// Sends a question about a volume to the node at `address`, over HTTP/2.
    pub(crate) async fn ask_volume<Q: VolumeQuestion>(
        &self,
        address: SocketAddr,
        volume: &NodeName,
        question: &Q,
        patience: Duration,
    ) -> Result<Q::Answer, NoAnswer> {
        let call = PeerCall::Volume(volume.clone(), Q::CALL);
        self.ask(address, &call, question, patience).await
    }

    /// Sends a question as JSON over HTTP/2, and decodes the JSON response.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        address: SocketAddr,
        call: &PeerCall,
        question: &impl Serialize,
        patience: Duration,
    ) -> Result<T, NoAnswer> {
        let body = serde_json::to_vec(question).map_err(|error| NoAnswer(error.to_string()))?;
        let json = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let until = Instant::now() + patience;
        let path = call.to_string();
        let answer = self
            .call(address, Method::POST, &path, &json, body.into(), until)
            .await?;
        if !answer.status.is_success() {
            let text: String = String::from_utf8_lossy(&answer.body).chars().take(300).collect();
            return Err(NoAnswer(format!("{}: {text}", answer.status)));
        }
        serde_json::from_slice(&answer.body).map_err(|error| NoAnswer(error.to_string()))
    }
}
