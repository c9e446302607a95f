//! The gate: takes every public request to the volume that answers it, on this node or another.
//!
//! A request is parsed first (`request`), so it is refused alike however many nodes there are.
//! While this node serves the only volume, the operation is carried out with the body as it
//! arrives. Otherwise the body is read first (stock is split by `stock_fan_out`), so that the call
//! can be repeated: a volume that changes hands, or a slot that moves, is waited for within
//! `ROUTING_TIMEOUT`.
//!
//! Commands and reads go to another node on the channel, built from an operation. Of a client's
//! head they carry nothing but a checked `Idempotency-Key`. Answers that are too long for the
//! channel, and what nodes ask of each other beside orders and stock, go over HTTP/2.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use imt_ring::NodeName;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::api::cors::Cors;
use crate::api::fast_path::AnswerBody;
use crate::api::idempotency::Commanded;
use crate::api::problem::{Problem, REPLAYED};
use crate::api::request::Operation;
use crate::api::{
    SNAPSHOTS_ARRIVING_MAX, fan_out, gzip, health, internal, node_status, peer_channel, ring_document,
    stock_fan_out,
};
use crate::cluster::channel::message::{Question, Reply};
use crate::cluster::peer_client::{NoAnswer, Peers};
use crate::cluster::{Authority, Event, Membership};
use crate::control::stock_copies::StockCopies;
use crate::control::topology::{Topology, VolumeLocation};
use crate::domain::routing_key::RoutingKey;
use crate::runtime::metrics::Metrics;
use crate::volume::server::VolumeServer;

/// How long a request may wait for the volume that answers it.
pub(crate) const ROUTING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait before a refused call is tried again although nothing is known to have changed.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long requests that were routed by an earlier view are waited for before slots are sealed.
const OLD_VIEWS: Duration = Duration::from_secs(2);

/// The epoch of the ring that a call was routed by, or that it was refused by.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("x-imt-epoch");

/// The address of the node that owns the order, store or statistics of a request. Clients may send
/// their next request about it there.
pub(crate) const OWNER: HeaderName = HeaderName::from_static("x-imt-owner");

/// The way in.
pub(crate) struct ClusterHandle {
    pub(crate) me: NodeName,
    pub(crate) peers: Arc<Peers>,
    pub(crate) membership: Arc<dyn Membership>,
    pub(crate) authority: Arc<dyn Authority>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started: Instant,
    /// Tells the coordinator's task of this process something.
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// Tells the keeper to look at the state.
    pub(crate) look: Notify,
    /// True once this node was asked to stop.
    pub(crate) asked_to_stop: watch::Sender<bool>,
    /// Origins that browsers may call from.
    cors: Option<Cors>,
    /// The reason why the coordinator, if it is in this process, cannot move slots now.
    trouble: Mutex<Option<String>>,
    /// Volumes that this node is to serve and whose folder is missing, with the reason in words.
    missing: Mutex<BTreeMap<NodeName, String>>,
    /// Rows that a move has copied and has to copy, about, if this process coordinates one.
    progress: Mutex<Option<(u64, u64)>>,
    topology: RwLock<Arc<Topology>>,
    earlier: Mutex<Vec<Weak<Topology>>>,
    changed: Notify,
    /// Bounds the stocks that arrive at a time while there are several volumes.
    pub(crate) snapshot_turns: Semaphore,
    /// Copies of the stock of volumes that other nodes serve.
    pub(crate) stock_copies: StockCopies,
}

/// Headers of an owner's answer that reach the client.
const ANSWERED: [HeaderName; 4] = [CONTENT_TYPE, RETRY_AFTER, REPLAYED, EPOCH];

/// A call about a volume that can be repeated.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// The path and query within the volume.
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

impl Call {
    /// A call that only reads.
    pub(crate) fn get(path: String) -> Call {
        Call {
            method: Method::GET,
            path,
            body: Bytes::new(),
        }
    }

    /// A call with a body.
    pub(crate) fn post(path: String, body: Bytes) -> Call {
        Call {
            method: Method::POST,
            body,
            ..Call::get(path)
        }
    }

    /// The whole head of the call but for what `Peers` adds.
    fn headers(&self, topology: &Topology) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(EPOCH, HeaderValue::from(topology.ring.epoch().0));
        headers
    }
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

/// What is asked of a volume.
enum Errand<'a> {
    Call(Side, &'a Call),
    Command(&'a Commanded),
    /// The path of a public operation that reads.
    Read(&'a str),
    Question(&'a Question),
}

/// The answer to an errand.
enum Outcome {
    Response(Response),
    Reply(Reply),
}

impl Outcome {
    /// The epoch of the ring by which it was refused, if it has to be asked elsewhere.
    fn refused_by(&self, epoch: u64) -> Option<u64> {
        match self {
            Outcome::Response(response) if response.status() == StatusCode::MISDIRECTED_REQUEST => {
                Some(epoch_of(response.headers()).unwrap_or(epoch))
            }
            Outcome::Reply(Reply::Moved) => Some(epoch),
            _ => None,
        }
    }
}

/// A call that no volume answered.
pub(crate) struct Unanswered {
    pub(crate) reason: String,
    /// True if the node does not answer at all, or the volume is missing: waiting for it is of no
    /// use.
    pub(crate) is_silent: bool,
    /// True if the call may have been carried out.
    pub(crate) was_sent: bool,
}

impl ClusterHandle {
    /// A gate with a first view.
    pub(crate) fn new(
        topology: Topology,
        peers: Arc<Peers>,
        membership: Arc<dyn Membership>,
        authority: Arc<dyn Authority>,
        metrics: Arc<Metrics>,
        cors: Option<Cors>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Arc<ClusterHandle> {
        Arc::new(ClusterHandle {
            me: topology.me.clone(),
            peers,
            membership,
            authority,
            metrics,
            started: Instant::now(),
            events,
            look: Notify::new(),
            asked_to_stop: watch::Sender::new(false),
            cors,
            trouble: Mutex::default(),
            missing: Mutex::default(),
            progress: Mutex::default(),
            topology: RwLock::new(Arc::new(topology)),
            earlier: Mutex::default(),
            changed: Notify::new(),
            snapshot_turns: Semaphore::new(SNAPSHOTS_ARRIVING_MAX),
            stock_copies: StockCopies::default(),
        })
    }

    /// How far a move has come that this process coordinates: rows copied, and how many there are,
    /// about.
    pub(crate) fn progress(&self) -> std::sync::MutexGuard<'_, Option<(u64, u64)>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the reason why slots that should move do not, if this process coordinates.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone()
    }

    /// Sets the reason why slots that should move do not. Returns `true` if that is a new reason.
    pub(crate) fn set_trouble(&self, reason: Option<String>) -> bool {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *trouble != reason;
        *trouble = reason;
        is_new
    }

    /// The volumes that this node is to serve and whose folder is missing, with the reason.
    pub(crate) fn missing(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, String>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster as it is seen now.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on requests are routed by this view.
    pub(crate) fn publish(&self, topology: Topology) {
        let topology = Arc::new(topology);
        let before = {
            let mut current = self.topology.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, topology)
        };
        if before.alone.is_some() {
            let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
            earlier.retain(|topology| topology.strong_count() > 0);
            earlier.push(Arc::downgrade(&before));
        }
        drop(before);
        self.changed.notify_waiters();
    }

    /// The next change of the view after this call.
    pub(crate) fn batch(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Waits for requests that went straight to the one post there was: they cannot be asked again.
    pub(crate) async fn earlier_requests(&self) {
        let until = Instant::now() + OLD_VIEWS;
        let under_way = || {
            let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
            earlier.iter().any(|topology| topology.strong_count() > 0)
        };
        while under_way() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Answers a request, also of another origin if that is allowed.
    pub(crate) async fn answer<B>(
        self: &Arc<Self>,
        request: axum::http::Request<B>,
    ) -> axum::http::Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display + Into<axum::BoxError>,
    {
        match &self.cors {
            Some(cors) if !request.uri().path().starts_with("/peer/") => {
                let answer = move |request| async move { Ok(self.answer_request(request).await) };
                // On the heap, so that nodes without these rules have no larger futures.
                Box::pin(cors.answer(request, answer)).await
            }
            _ => self.answer_request(request).await,
        }
    }

    async fn answer_request<B>(
        self: &Arc<Self>,
        request: axum::http::Request<B>,
    ) -> axum::http::Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display + Into<axum::BoxError>,
    {
        if request.uri().path().starts_with("/peer/") {
            let answer = internal::answer(self, request.map(Body::new)).await;
            return answer.map(AnswerBody::Long);
        }
        let (head, body) = request.into_parts();
        let answer = match Operation::parse(&head.method, &head.uri) {
            Ok(operation) => self.answer_operation(operation, &head.headers, body).await,
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
        self: &Arc<Self>,
        operation: Operation,
        headers: &HeaderMap,
        body: B,
    ) -> axum::http::Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Display + Into<axum::BoxError>,
    {
        let topology = self.topology();
        if let Some(server) = topology.alone.as_ref().filter(|_| operation.is_of_one_volume()) {
            let answer = server.entrance.answer(operation, headers, body).await;
            if answer.status() != StatusCode::MISDIRECTED_REQUEST {
                return answer;
            }
            // The body was read as it arrived, so the call cannot be repeated elsewhere.
            let reason = "the order or store is being moved to another node";
            let refusal = Problem::not_here(self.me.as_str(), reason).into_response();
            return refusal.map(AnswerBody::Long);
        }
        drop(topology);
        let answer = self.answer_among(operation, headers, Body::new(body)).await;
        answer
            .unwrap_or_else(Problem::into_response)
            .map(AnswerBody::Long)
    }

    async fn answer_among(
        self: &Arc<Self>,
        operation: Operation,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Problem> {
        if let Some((key, path)) = operation.forwarded() {
            let until = Instant::now() + ROUTING_TIMEOUT;
            return self.response_by_owner(&key, &Errand::Read(&path), until).await;
        }
        match operation {
            Operation::Command(command) => {
                let commanded = Commanded::read(command, headers, body).await?;
                let until = Instant::now() + ROUTING_TIMEOUT;
                let key = RoutingKey::Order(commanded.order().clone());
                self.response_by_owner(&key, &Errand::Command(&commanded), until)
                    .await
            }
            Operation::ReplaceStock => stock_fan_out::replace(self, headers, body).await,
            Operation::ChangeStock => stock_fan_out::change(self, headers, body).await,
            Operation::List(list) => fan_out::list(self, &list, Instant::now() + ROUTING_TIMEOUT).await,
            Operation::Ring => Ok(ring_document::answer(&self.topology(), headers)),
            Operation::Live => Ok(node_status::live()),
            Operation::Ready => node_status::ready(self),
            Operation::Metrics => Ok(node_status::metrics(self)),
            Operation::OpenApi => Ok(health::openapi()),
            _ => Err(Problem::internal("the operation has no place")),
        }
    }

    /// Returns the owner's response with the owner's address in the header `OWNER`.
    async fn response_by_owner(
        self: &Arc<Self>,
        key: &RoutingKey,
        errand: &Errand<'_>,
        until: Instant,
    ) -> Result<Response, Problem> {
        let volume = |topology: &Topology| topology.volume_of(key);
        match self.forward(volume, errand, until).await? {
            (Outcome::Response(mut response), volume) => {
                if let Some(address) = self.topology().owner_header(&volume) {
                    response.headers_mut().insert(OWNER, address.clone());
                }
                Ok(response)
            }
            (Outcome::Reply(reply), _) => Err(unexpected(reply)),
        }
    }

    async fn response_to(
        self: &Arc<Self>,
        volume: impl Fn(&Topology) -> Option<NodeName>,
        errand: &Errand<'_>,
        until: Instant,
    ) -> Result<Response, Problem> {
        match self.forward(volume, errand, until).await? {
            (Outcome::Response(response), _) => Ok(response),
            (Outcome::Reply(reply), _) => Err(unexpected(reply)),
        }
    }

    /// Makes a call at a volume, wherever that is.
    pub(crate) async fn forward_to(
        self: &Arc<Self>,
        volume: impl Fn(&Topology) -> Option<NodeName>,
        side: Side,
        call: &Call,
        until: Instant,
    ) -> Result<Response, Problem> {
        self.response_to(volume, &Errand::Call(side, call), until).await
    }

    /// Asks a volume, wherever it is, on the channel. Returns the volume that answered, too.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        volume: impl Fn(&Topology) -> Option<NodeName>,
        question: &Question,
        until: Instant,
    ) -> Result<(Reply, NodeName), Problem> {
        match self.forward(volume, &Errand::Question(question), until).await? {
            (Outcome::Reply(Reply::Busy(reason) | Reply::Failed(reason)), _) => Err(Problem::busy(reason)),
            (Outcome::Reply(reply), volume) => Ok((reply, volume)),
            (Outcome::Response(response), _) => Err(Problem::busy(format!("{}", response.status()))),
        }
    }

    /// Carries an errand to a volume; if that changes its place meanwhile, to where it is then.
    async fn forward(
        self: &Arc<Self>,
        volume: impl Fn(&Topology) -> Option<NodeName>,
        errand: &Errand<'_>,
        until: Instant,
    ) -> Result<(Outcome, NodeName), Problem> {
        loop {
            let batch = self.batch();
            let topology = self.topology();
            let mut is_silent = false;
            let reason = match volume(&topology) {
                // It is no volume of the ring any more: whoever chose it must choose again.
                None => return Err(Problem::moved()),
                Some(volume) => match self.try_errand(&topology, &volume, errand, until).await {
                    Ok((outcome, epoch)) => match outcome.refused_by(epoch) {
                        None => return Ok((outcome, volume)),
                        Some(epoch) if epoch > topology.ring.epoch().0 => {
                            "it has another place by a newer ring".to_owned()
                        }
                        Some(_) => "it is changing its place".to_owned(),
                    },
                    Err(unanswered) => {
                        is_silent = unanswered.is_silent;
                        unanswered.reason
                    }
                },
            };
            if is_silent || Instant::now() >= until {
                let node = volume(&topology).and_then(|volume| topology.state.serving.get(&volume).cloned());
                let node = node.map_or_else(|| "(none)".to_owned(), |node| node.to_string());
                return Err(Problem::not_here(&node, &reason));
            }
            drop(topology);
            self.look.notify_one();
            tokio::select! {
                biased;
                () = batch => {}
                () = tokio::time::sleep(TRY_AGAIN) => {}
            }
        }
    }

    /// Carries an errand out once, by this view. Returns the epoch of the answer, too.
    async fn try_errand(
        self: &Arc<Self>,
        topology: &Topology,
        volume: &NodeName,
        errand: &Errand<'_>,
        until: Instant,
    ) -> Result<(Outcome, u64), Unanswered> {
        let epoch = topology.ring.epoch().0;
        if let Errand::Call(side, call) = errand {
            let response = self.attempt(topology, volume, *side, call, until).await?;
            return Ok((Outcome::Response(response), epoch));
        }
        let (node, address) = match self.whereabouts(topology, volume)? {
            Whereabouts::Here(server) => return Ok((carry_out_here(server, topology, errand).await, epoch)),
            Whereabouts::There(node, address) => (node, address),
        };
        let question = match errand {
            Errand::Command(commanded) => Question::Command(commanded.to_message()),
            Errand::Read(path) => Question::Read((*path).to_owned()),
            Errand::Question(question) => (*question).clone(),
            Errand::Call(..) => return Ok((Outcome::Reply(Reply::TooLarge), epoch)),
        };
        let asked = self.peers.request(address, volume, epoch, question, until).await;
        let answer = asked.map_err(|NoAnswer(reason)| Unanswered {
            reason: format!("{node}: {reason}"),
            is_silent: self.peers.is_silent(address),
            was_sent: true,
        })?;
        let outcome = match (answer.reply, errand) {
            (Reply::Http(http), _) => Outcome::Response(peer_channel::into_response(http)),
            (Reply::TooLarge, Errand::Read(path)) => {
                let call = Call::get((*path).to_owned());
                Outcome::Response(self.attempt(topology, volume, Side::Public, &call, until).await?)
            }
            (reply, _) => Outcome::Reply(reply),
        };
        Ok((outcome, answer.epoch))
    }

    /// Where a volume is, or why it is nowhere.
    fn whereabouts<'a>(
        &self,
        topology: &'a Topology,
        volume: &NodeName,
    ) -> Result<Whereabouts<'a>, Unanswered> {
        let unanswered = |reason: String, is_silent| Unanswered {
            reason,
            is_silent,
            was_sent: false,
        };
        match topology.locate(volume) {
            VolumeLocation::Here(server) => Ok(Whereabouts::Here(server)),
            VolumeLocation::There { node, address } => Ok(Whereabouts::There(node, address)),
            VolumeLocation::Nowhere(node) => {
                if let Some(reason) = self.missing().get(volume) {
                    return Err(unanswered(format!("volume {volume}: {reason}"), true));
                }
                let node = node.map_or("nobody yet", NodeName::as_str);
                Err(unanswered(format!("{volume} is to be served by {node}"), false))
            }
        }
    }

    /// Makes a call once, by this view.
    pub(crate) async fn attempt(
        self: &Arc<Self>,
        topology: &Topology,
        volume: &NodeName,
        side: Side,
        call: &Call,
        until: Instant,
    ) -> Result<Response, Unanswered> {
        let (node, address) = match self.whereabouts(topology, volume)? {
            Whereabouts::Here(server) if side == Side::Public => {
                return Ok(answer_here(server, topology, call).await);
            }
            Whereabouts::Here(server) => {
                let body = Body::from(call.body.clone());
                return Ok(internal::inner(self, server, &call.path, body).await);
            }
            Whereabouts::There(node, address) => (node, address),
        };
        let path = format!("/peer/volume/{volume}/{}{}", side.segment(), call.path);
        let body = Body::from(call.body.clone());
        let answer = self
            .peers
            .call(
                address,
                call.method.clone(),
                &path,
                &call.headers(topology),
                body,
                until,
            )
            .await;
        match answer {
            Ok(answer) => {
                let mut response = (answer.status, answer.body).into_response();
                let headers = response.headers_mut();
                headers.remove(CONTENT_TYPE);
                for name in ANSWERED {
                    if let Some(value) = answer.headers.get(&name) {
                        headers.insert(name, value.clone());
                    }
                }
                Ok(response)
            }
            Err(NoAnswer(reason)) => Err(Unanswered {
                reason: format!("{node}: {reason}"),
                is_silent: self.peers.is_silent(address),
                was_sent: true,
            }),
        }
    }
}

/// Where a volume is.
enum Whereabouts<'a> {
    Here(&'a Arc<VolumeServer>),
    There(&'a NodeName, std::net::SocketAddr),
}

/// An answer that does not belong to what was asked.
fn unexpected(reply: Reply) -> Problem {
    match reply {
        Reply::Busy(reason) | Reply::Failed(reason) => Problem::busy(reason),
        _ => Problem::internal("another node gave an answer of another kind"),
    }
}

/// Carries an errand out at a volume that is served here.
async fn carry_out_here(server: &Arc<VolumeServer>, topology: &Topology, errand: &Errand<'_>) -> Outcome {
    match errand {
        Errand::Command(commanded) => {
            let answered = server.entrance.carry_out_command(commanded).await;
            Outcome::Response(answered.map(Body::new))
        }
        Errand::Read(path) => {
            Outcome::Response(answer_here(server, topology, &Call::get((*path).to_owned())).await)
        }
        Errand::Question(question) => {
            let (_, reply) = peer_channel::answer(server, (*question).clone()).await;
            Outcome::Reply(reply)
        }
        Errand::Call(_, call) => Outcome::Response(answer_here(server, topology, call).await),
    }
}

/// Answers a call about a volume that is served here.
async fn answer_here(server: &VolumeServer, topology: &Topology, call: &Call) -> Response {
    let path = call.path.parse();
    let operation = path
        .map_err(|_| Problem::field("path", "is none"))
        .and_then(|path| Operation::parse(&call.method, &path));
    match operation {
        Ok(operation) => {
            let body = Body::from(call.body.clone());
            let answer = server
                .entrance
                .answer(operation, &call.headers(topology), body)
                .await;
            answer.map(Body::new)
        }
        Err(problem) => problem.into_response(),
    }
}

/// The answer to `HEAD`: that to `GET` without its body.
pub(crate) fn without_body(answer: axum::http::Response<AnswerBody>) -> axum::http::Response<AnswerBody> {
    let (mut head, body) = answer.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    axum::http::Response::from_parts(head, AnswerBody::Long(Body::empty()))
}

/// The epoch that a call or an answer speaks of.
pub(crate) fn epoch_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok()
}
