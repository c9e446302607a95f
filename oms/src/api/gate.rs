//! The gate: takes every request to where its subject lives, on this node or another.
//!
//! While there is one volume and it is here, a request goes straight to its routes. Else its body is read first (small
//! ones only; stock is taken apart by `spread`), so that it can be asked again elsewhere: a volume that changes hands or a slot
//! that moves is waited for within the call's deadline, and every call that is repeated is one that may be.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use imt_ring::NodeName;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::cors::Cors;
use super::lane::AnswerBody;
use super::lists;
use super::problem::Problem;
use super::{body, node_status, peer, spread};
use crate::cluster::{Authority, Event, Membership};
use crate::metrics::Metrics;
use crate::peers::{DEADLINE, NoAnswer, Peers};
use crate::router::{self, Place, Subject, View};

/// How long a request may wait for what it is about.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait before a refused call is tried again although nothing is known to have changed.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// How long requests that were routed by an earlier view are waited for before slots are sealed.
const OLD_VIEWS: Duration = Duration::from_secs(2);

/// The epoch of the ring that a call was routed by, or that it was refused by.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("x-imt-epoch");

/// The way in.
pub(crate) struct Gate {
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
    view: RwLock<Arc<View>>,
    earlier: Mutex<Vec<Weak<View>>>,
    changed: Notify,
}

/// A request that can be made again.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path_and_query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Call {
    /// A call that only looks.
    pub(crate) fn get(path_and_query: String) -> Call {
        Call {
            method: Method::GET,
            path_and_query,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    fn of(parts: &Parts, body: Bytes) -> Call {
        let mut headers = parts.headers.clone();
        // These are about the caller's connection; the next one makes its own.
        for name in [HOST, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
            headers.remove(name);
        }
        let path = parts.uri.path_and_query();
        Call {
            method: parts.method.clone(),
            path_and_query: path.map_or_else(|| "/".to_owned(), ToString::to_string),
            headers,
            body,
        }
    }

    fn request(&self) -> Result<Request, Problem> {
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self
            .path_and_query
            .parse()
            .map_err(|_| Problem::field("path", "is none"))?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

impl Gate {
    /// A gate with a first view.
    pub(crate) fn new(
        view: View,
        peers: Arc<Peers>,
        membership: Arc<dyn Membership>,
        authority: Arc<dyn Authority>,
        metrics: Arc<Metrics>,
        cors: Option<Cors>,
        events: mpsc::UnboundedSender<Event>,
    ) -> Arc<Gate> {
        Arc::new(Gate {
            me: view.me.clone(),
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
            view: RwLock::new(Arc::new(view)),
            earlier: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// How far a move has come that this process coordinates: rows copied, and how many there are, about.
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
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From here on requests are routed by this view.
    pub(crate) fn publish(&self, view: View) {
        let view = Arc::new(view);
        let before = {
            let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, view)
        };
        if before.alone.is_some() {
            let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
            earlier.retain(|view| view.strong_count() > 0);
            earlier.push(Arc::downgrade(&before));
        }
        drop(before);
        self.changed.notify_waiters();
    }

    /// The next change of the view after this call.
    pub(crate) fn changes(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Waits for requests that went straight to the one post there was: they cannot be asked again.
    pub(crate) async fn earlier_requests(&self) {
        let until = Instant::now() + OLD_VIEWS;
        let under_way = || {
            let earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
            earlier.iter().any(|view| view.strong_count() > 0)
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
            let answer = peer::answer(self, request.map(Body::new)).await;
            return answer.map(AnswerBody::Long);
        }
        if node_status::is_about_the_node(request.uri().path()) {
            let answer = node_status::answer(self, request.map(Body::new)).await;
            return answer.map(AnswerBody::Long);
        }
        let view = self.view();
        if let Some(post) = &view.alone {
            let answer = post.entrance.clone().answer(request).await;
            if answer.status() != StatusCode::MISDIRECTED_REQUEST {
                return answer;
            }
            // It was read as it came, so it cannot be asked again elsewhere.
            let reason = "it is changing its place; ask again";
            let refusal = Problem::not_here(self.me.as_str(), reason).into_response();
            return refusal.map(AnswerBody::Long);
        }
        drop(view);
        let answer = self.answer_among(request.map(Body::new)).await;
        answer
            .unwrap_or_else(Problem::into_response)
            .map(AnswerBody::Long)
    }

    async fn answer_among(self: &Arc<Self>, request: Request) -> Result<Response, Problem> {
        let until = deadline(request.headers());
        let (parts, body) = request.into_parts();
        let mut subject = Subject::of(&parts.method, parts.uri.path());
        if subject == Subject::AllStores {
            return spread::stock(self, &parts.method, &parts.headers, body).await;
        }
        let body = body::read_small(&parts.headers, body).await?;
        if subject == Subject::OrderInBody {
            // Any post says what is wrong with a body that names no order.
            subject = router::order_in(&body).map_or(Subject::Nothing, Subject::Order);
        }
        let call = Call::of(&parts, body);
        match subject {
            Subject::List(list) => lists::list(self, list, &call, until).await,
            Subject::Ring => Ok(super::orders::json(&*self.view().ring)),
            subject => self.carry(&subject, &call, until).await,
        }
    }

    /// Makes a call where its subject is; if that changes meanwhile, where it is then.
    pub(crate) async fn carry(
        self: &Arc<Self>,
        subject: &Subject,
        call: &Call,
        until: Instant,
    ) -> Result<Response, Problem> {
        self.carry_to(|view| view.volume_of(subject), "public", call, until)
            .await
    }

    /// Makes a call at a volume, wherever that is.
    pub(crate) async fn carry_to(
        self: &Arc<Self>,
        volume: impl Fn(&View) -> Option<NodeName>,
        side: &str,
        call: &Call,
        until: Instant,
    ) -> Result<Response, Problem> {
        loop {
            let changes = self.changes();
            let view = self.view();
            let reason = match volume(&view) {
                // It is no volume of the ring any more: whoever chose it must choose again.
                None => return Err(Problem::moved()),
                Some(volume) => match self.attempt(&view, &volume, side, call, until).await? {
                    Ok(response) if response.status() != StatusCode::MISDIRECTED_REQUEST => {
                        return Ok(response);
                    }
                    Ok(response) if epoch_of(response.headers()) > Some(view.ring.epoch().0) => {
                        "it has another place by a newer ring".to_owned()
                    }
                    Ok(_) => "it is changing its place".to_owned(),
                    Err(NoAnswer(reason)) => reason,
                },
            };
            if Instant::now() >= until {
                let node = volume(&view).and_then(|volume| view.state.serving.get(&volume).cloned());
                let node = node.map_or_else(|| "(none)".to_owned(), |node| node.to_string());
                return Err(Problem::not_here(&node, &reason));
            }
            drop(view);
            self.look.notify_one();
            tokio::select! {
                biased;
                () = changes => {}
                () = tokio::time::sleep(TRY_AGAIN) => {}
            }
        }
    }

    /// Makes a call at a volume where this view has it.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        view: &View,
        volume: &NodeName,
        side: &str,
        call: &Call,
        until: Instant,
    ) -> Result<Result<Response, NoAnswer>, Problem> {
        let mut call = call.clone();
        call.headers.insert(EPOCH, HeaderValue::from(view.ring.epoch().0));
        let call = &call;
        let (node, address) = match view.place(volume) {
            Place::Here(post) if side == "public" => {
                return Ok(Ok(post
                    .entrance
                    .clone()
                    .answer(call.request()?)
                    .await
                    .map(Body::new)));
            }
            Place::Here(post) => {
                let operation = call.path_and_query.trim_start_matches('/');
                return Ok(Ok(peer::inner(self, post, operation, &call.body).await));
            }
            Place::There { node, address } => (node, address),
            Place::Nowhere(node) => {
                if let Some(reason) = self.missing().get(volume) {
                    return Ok(Err(NoAnswer(format!("volume {volume}: {reason}"))));
                }
                let node = node.map_or("nobody yet", NodeName::as_str);
                return Ok(Err(NoAnswer(format!("{volume} is to be served by {node}"))));
            }
        };
        let path = format!("/peer/volume/{volume}/{side}{}", call.path_and_query);
        let body = Body::from(call.body.clone());
        let answer = self
            .peers
            .call(address, call.method.clone(), &path, &call.headers, body, until)
            .await;
        Ok(match answer {
            Ok(answer) => {
                let mut response = (answer.status, answer.body).into_response();
                for (name, value) in &answer.headers {
                    if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
                        response.headers_mut().insert(name, value.clone());
                    }
                }
                Ok(response)
            }
            Err(NoAnswer(reason)) => Err(NoAnswer(format!("{node}: {reason}"))),
        })
    }
}

/// The epoch that a call or an answer speaks of.
pub(crate) fn epoch_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok()
}

/// When the caller of a request no longer waits.
pub(crate) fn deadline(headers: &HeaderMap) -> Instant {
    let said = headers
        .get(DEADLINE)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_millis);
    Instant::now() + said.map_or(PATIENCE, |said| said.min(PATIENCE))
}
