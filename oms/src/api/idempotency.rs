//! `Idempotency-Key`: a request that is sent again gets the answer that it got, whatever it was
//! about.
//!
//! Orders and payments are idempotent by themselves: their id and content are the key. A client
//! that sends the header gets more: the very answer of the first time, kept for a day at least, and
//! a refusal if the key comes with another request. Answers that say what was done, or why it never
//! will be, are kept; faults of the request or of ours are not, so that the request can be mended
//! or tried again under its key.
//!
//! The answer is kept after what it tells of is durable. A crash in between leaves no answer, and
//! the request does what is already done once more: nothing, with the same answer.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body as HttpBody;

use crate::api::fast_path::{AnswerBody, Json};
use crate::api::problem::{Problem, REPLAYED};
use crate::api::request::Command;
use crate::api::{App, order_body, orders, reports};
use crate::control::handle::Call;
use crate::domain::order::{Line, OrderId};
use crate::outbox::Kind;
use crate::storage::codec::KeptAnswer;
use crate::storage::write_batch::WriteBatch;
use crate::volume::state::OrderError;

/// The client's name for a request.
pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest key in bytes: four times a UUID, and a row's key like any other.
pub(crate) const KEY_BYTES_MAX: usize = 255;

/// Keys whose first request is being answered.
#[derive(Default)]
pub(crate) struct InProgress(Mutex<HashSet<String>>);

/// A key whose request is being answered; free again when this is dropped.
struct Claim<'a> {
    of: &'a InProgress,
    key: &'a str,
}

impl InProgress {
    fn claim<'a>(&'a self, key: &'a str) -> Option<Claim<'a>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(key.to_owned()).then_some(Claim { of: self, key })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut keys = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.remove(self.key);
    }
}

/// A command with its body, parsed.
pub(crate) struct Commanded {
    pub(crate) order: OrderId,
    work: Work,
    path: String,
    key: Option<HeaderValue>,
    /// The body without its codings.
    body: Bytes,
}

enum Work {
    Place(Box<[Line]>),
    Pay(u64),
    Cancel,
    Retry(Kind),
}

impl Commanded {
    /// Reads the body of a command. The body of a command that needs none is read if it is part of
    /// what a key names.
    pub(crate) async fn read<B>(command: Command, headers: &HeaderMap, body: B) -> Result<Commanded, Problem>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let key = headers.get(KEY).map(check_key).transpose()?;
        let has_body = matches!(command, Command::Place | Command::Pay(_)) || key.is_some();
        let body = if has_body {
            order_body::read_small(headers, body).await?
        } else {
            Bytes::new()
        };
        let path = command.path();
        let (order, work) = match command {
            Command::Place => {
                let order = order_body::parse_order(&body)?;
                (order.id, Work::Place(order.lines))
            }
            Command::Pay(order) => (order, Work::Pay(order_body::parse_payment(&body)?)),
            Command::Cancel(order) => (order, Work::Cancel),
            Command::Retry(order, kind) => (order, Work::Retry(kind)),
        };
        Ok(Commanded {
            order,
            work,
            path,
            key,
            body,
        })
    }

    /// The same command as a call to another node.
    pub(crate) fn into_call(self) -> (OrderId, Call) {
        let call = Call {
            key: self.key,
            ..Call::post(self.path, self.body)
        };
        (self.order, call)
    }

    async fn carry_out(self, app: &App) -> Result<Json, Problem> {
        match self.work {
            Work::Place(lines) => orders::place(app, &self.order, lines).await,
            Work::Pay(transaction) => orders::pay(app, &self.order, transaction).await,
            Work::Cancel => orders::cancel(app, &self.order).await,
            Work::Retry(kind) => reports::retry(app, &self.order, kind).await,
        }
    }

    /// Carries the command out, or answers as before if its key was used before.
    pub(crate) async fn answer(self, app: &App) -> Result<Response<AnswerBody>, Problem> {
        let Some(key) = &self.key else {
            return Ok(self.carry_out(app).await?.into_short());
        };
        let key = key.to_str().unwrap_or_default().to_owned();
        let mut request = format!("POST {}\n", self.path).into_bytes();
        request.extend_from_slice(&self.body);
        let Some(_claim) = app.in_progress.claim(&key) else {
            let detail = "a request with this idempotency key is being answered; come back for its answer";
            return Err(Problem::conflict("key-in-progress", detail));
        };
        let order = self.order.clone();
        let is_here = app.state().slots.has_order(&order);
        if let Some(kept) = app.state().storage.kept_answer(&key)?.filter(|_| is_here) {
            if kept.request != request {
                let detail = "this idempotency key was used before for another request";
                return Err(Problem::conflict("key-reused", detail));
            }
            return Ok(replay(kept));
        }
        let response = match self.carry_out(app).await {
            Ok(json) => json.into_response(),
            Err(problem) => problem.into_response(),
        };
        let (mut head, body) = response.into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| Problem::internal(error.to_string()))?
            .to_bytes();
        if head.status.is_success() || head.status == StatusCode::CONFLICT {
            let kept = KeptAnswer {
                at_ms: app.state().clock.now_ms(),
                status: head.status.as_u16(),
                request,
                body: body.to_vec(),
            };
            keep(app, &key, &order, &kept).await;
        }
        // hyper counts what is sent; a length from before would only contradict it.
        head.headers.remove(axum::http::header::CONTENT_LENGTH);
        Ok(Response::from_parts(head, AnswerBody::Short(Full::new(body))))
    }
}

fn check_key(key: &HeaderValue) -> Result<HeaderValue, Problem> {
    let is_text = key.to_str().is_ok();
    if !is_text || key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = format!("must be 1 to {KEY_BYTES_MAX} visible characters");
        return Err(Problem::field("Idempotency-Key", detail));
    }
    Ok(key.clone())
}

async fn keep(app: &App, key: &str, order: &OrderId, kept: &KeptAnswer) {
    let state = app.state();
    let mut batch = WriteBatch::default();
    batch.keep_answer(key, kept);
    let outcome = async {
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            // An answer goes with its order: where that has gone, this one would be left behind.
            state.slots.check_order(order)?;
            batch.fence(state.slots.fence_of_order(order));
            permit.send(batch)
        };
        Ok::<(), OrderError>(ticket.durable().await?)
    };
    if let Err(error) = outcome.await {
        // What was done is done; sent again, the request finds that by itself.
        tracing::warn!(?error, "could not keep the answer of an idempotency key");
    }
}

fn replay(kept: KeptAnswer) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Short(Full::new(Bytes::from(kept.body))));
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    let content_type = if response.status().is_success() {
        "application/json"
    } else {
        "application/problem+json"
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
