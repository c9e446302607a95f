//! Handles the requests that other nodes send on the channel.
//!
//! A frame of the channel carries one or more requests. All reservations of a frame at one volume
//! are made in one pass over the stock and in one write batch. If this node serves the volume,
//! confirmations of reservations and recalls of lent units are applied at once and get no reply.
//! Every other request runs in a separate task. Group commit lets these tasks share a sync, as it
//! does for client requests.
//!
//! **Invariants**
//! - A request about a volume that this node does not serve gets `Moved` with the epoch of this
//!   node's topology.
//! - If this process loses the volume during a request, the reply is `Moved` too, and no data of
//!   the volume is sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use imt_ring::{Epoch, NodeName};
use tokio::time::Instant;

use crate::api::fast_path::Entrance;
use crate::api::idempotency::Commanded;
use crate::api::problem::REPLAYED;
use crate::cluster::channel::message::{HttpReply, OrderCommand, Question, Reply, Reserve};
use crate::cluster::channel::{Asked, Caller, Service};
use crate::control::handle::ClusterHandle;
use crate::runtime;
use crate::runtime::metrics::ChannelCounters;
use crate::runtime::trace::{self, Begun, FinishedSpan, SpanKind, SpanOutcome, TraceContext};
use crate::volume::questions::{self, VolumeReply};
use crate::volume::server::VolumeServer;

/// Maximum size of a response body on the channel, in bytes. The caller requests a larger response
/// to a read again over HTTP/2, where its transfer does not delay other messages.
const BODY_BYTES_MAX: usize = 256 << 10;

/// The reservations at one volume that the requests of one frame of the channel ask for.
struct Reserves {
    server: Arc<VolumeServer>,
    asked: Vec<Reserve>,
    /// The caller of each reservation in `asked`, and the trace context of the client's request if
    /// that request is traced.
    callers: Vec<(Caller, Option<TraceContext>)>,
}

impl Service for ClusterHandle {
    fn counters(&self) -> Arc<ChannelCounters> {
        Arc::clone(self.metrics.channel())
    }

    fn take(self: Arc<Self>, requests: Vec<Asked>) {
        let topology = self.topology();
        let epoch = topology.ring.epoch().0;
        let mut reserves: BTreeMap<NodeName, Reserves> = BTreeMap::new();
        for asked in requests {
            let server = topology.servers.get(&asked.volume);
            if server.is_none() || asked.epoch > epoch {
                self.look.notify_one();
            }
            let Some(server) = server else {
                asked.caller.answer(epoch, Reply::Moved);
                continue;
            };
            let (trace, question) = asked.question.untraced();
            match question {
                Question::Confirm(confirm) => {
                    server.app.state().confirm(&confirm);
                    asked.caller.forget();
                }
                Question::Recall(recall) => {
                    server.app.state().recall(&recall);
                    asked.caller.forget();
                }
                Question::Reserve(reserve) => {
                    let of_volume = reserves.entry(asked.volume).or_insert_with(|| Reserves {
                        server: Arc::clone(server),
                        asked: Vec::new(),
                        callers: Vec::new(),
                    });
                    of_volume.asked.push(reserve);
                    of_volume.callers.push((asked.caller, trace));
                }
                question => {
                    let (server, caller, until) = (Arc::clone(server), asked.caller, asked.until);
                    let asked_by = Epoch(asked.epoch);
                    runtime::spawn(async move {
                        if Instant::now() >= until && !matches!(question, Question::Settle { .. }) {
                            // The deadline has passed, so the sender no longer waits. Of the
                            // requests that run in a separate task, only a settlement is still
                            // executed. It must be executed at some time, and executing it again
                            // later changes nothing.
                            return caller.answer(epoch, Reply::Moved);
                        }
                        let answered = match trace {
                            Some(trace) => answer_traced(trace, &server, asked_by, question).await,
                            None => answer(&server, asked_by, question).await,
                        };
                        caller.answer(answered.epoch.unwrap_or(epoch), answered.reply);
                    });
                }
            }
        }
        for of_volume in reserves.into_values() {
            runtime::spawn(async move {
                let Reserves {
                    server,
                    asked,
                    callers,
                } = of_volume;
                let begun = Begun::now();
                let answers = server.app.state().reserve_all(asked).await;
                let is_ours = server.app.state().storage.is_ours();
                for ((caller, trace), answered) in callers.into_iter().zip(answers) {
                    let reply = answered.unwrap_or_else(Reply::from);
                    let reply = if is_ours { reply } else { Reply::Moved };
                    if let Some(parent) = trace {
                        finish_span("node reserve", parent, parent.child(), &server, begun, &reply);
                    }
                    caller.answer(epoch, reply);
                }
            });
        }
    }
}

/// Executes a request and records it as a span of the client request's trace.
async fn answer_traced(
    parent: TraceContext,
    server: &Arc<VolumeServer>,
    asked_by: Epoch,
    question: Question,
) -> VolumeReply {
    let span = parent.child();
    let begun = Begun::now();
    let name = match &question {
        Question::Command(_) => "node command",
        Question::Read(_) => "node read",
        Question::Settle { .. } => "node settle",
        _ => "node stock",
    };
    let answered = Box::pin(span.scope(answer(server, asked_by, question))).await;
    finish_span(name, parent, span, server, begun, &answered.reply);
    answered
}

/// Exports the trace span of an answered request.
fn finish_span(
    name: &'static str,
    parent: TraceContext,
    span: TraceContext,
    server: &VolumeServer,
    begun: Begun,
    reply: &Reply,
) {
    let finished = || FinishedSpan {
        name,
        kind: SpanKind::Server,
        context: span,
        parent: Some(parent.span),
        started: begun.started,
        took: begun.elapsed(),
        outcome: match reply {
            Reply::Http(http) => SpanOutcome::Status(http.status),
            _ => SpanOutcome::Answered,
        },
        attributes: vec![("imt.volume", server.volume.to_string())],
    };
    trace::finish(finished, span);
}

/// Executes a request about a volume that this node serves. `asked_by` is the epoch of the ring by
/// which the sender routed the request.
async fn answer(server: &Arc<VolumeServer>, asked_by: Epoch, question: Question) -> VolumeReply {
    match question {
        Question::Command(command) => command_here(server, command).await.into(),
        Question::Read(read) => {
            let answered = Entrance::of(&server.app).carry_out_read(&read);
            into_reply(answered.map(Body::new)).await.into()
        }
        question => questions::answer(server, asked_by, question).await,
    }
}

async fn command_here(server: &VolumeServer, command: OrderCommand) -> Reply {
    let response = match Commanded::from_message(command) {
        Ok(commanded) => Entrance::of(&server.app)
            .carry_out_command(&commanded)
            .await
            .map(Body::new),
        Err(problem) => problem.into_response(),
    };
    into_reply(response).await
}

/// Converts an HTTP response to a reply on the channel: `Moved` for status 421, and `TooLarge` for
/// a body of more than `BODY_BYTES_MAX`.
async fn into_reply(response: Response<Body>) -> Reply {
    let (head, body) = response.into_parts();
    if head.status == StatusCode::MISDIRECTED_REQUEST {
        return Reply::Moved;
    }
    let text = |name: HeaderName| {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        value.map(str::to_owned)
    };
    let (content_type, retry_after) = (text(CONTENT_TYPE), text(RETRY_AFTER));
    match axum::body::to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => Reply::Http(HttpReply {
            status: head.status.as_u16(),
            content_type,
            retry_after,
            replayed: head.headers.contains_key(REPLAYED),
            body,
        }),
        Err(_) => Reply::TooLarge,
    }
}

/// Converts a reply on the channel back to the HTTP response.
pub(crate) fn into_response(http: HttpReply) -> Response<Body> {
    let mut response = Response::new(Body::from(http.body));
    *response.status_mut() = StatusCode::from_u16(http.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let mut insert = |name: HeaderName, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    };
    insert(CONTENT_TYPE, http.content_type);
    insert(RETRY_AFTER, http.retry_after);
    insert(REPLAYED, http.replayed.then(|| "true".to_owned()));
    response
}
