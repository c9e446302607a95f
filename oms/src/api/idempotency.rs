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
use crate::cluster::channel::message::{Keyed, OrderCommand, OrderWork};
use crate::domain::order::OrderId;
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

/// A command with its body, parsed. It may be carried out more than once.
pub(crate) struct Commanded(OrderCommand);

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
        // Only a key needs the request as it was sent.
        let path = key.as_ref().map(|_| command.path());
        let (order, work) = match command {
            Command::Place => {
                let order = order_body::parse_order(&body)?;
                (order.id, OrderWork::Place(order.lines))
            }
            Command::Pay(order) => (order, OrderWork::Pay(order_body::parse_payment(&body)?)),
            Command::Cancel(order) => (order, OrderWork::Cancel),
            Command::Retry(order, kind) => (order, OrderWork::Retry(kind)),
        };
        let keyed = key.zip(path).map(|(key, path)| Keyed { key, path, body });
        Ok(Commanded(OrderCommand { order, work, keyed }))
    }

    /// A command that another node has read. Its key is checked again.
    pub(super) fn from_message(command: OrderCommand) -> Result<Commanded, Problem> {
        if let Some(keyed) = &command.keyed {
            let key = HeaderValue::from_str(&keyed.key);
            check_key(&key.map_err(|_| Problem::field("Idempotency-Key", "is not a header's value"))?)?;
        }
        Ok(Commanded(command))
    }

    /// The order that it is about.
    pub(crate) fn order(&self) -> &OrderId {
        &self.0.order
    }

    /// The same command for another node.
    pub(crate) fn to_message(&self) -> OrderCommand {
        self.0.clone()
    }

    async fn carry_out(&self, app: &App) -> Result<Json, Problem> {
        let order = &self.0.order;
        match &self.0.work {
            OrderWork::Place(lines) => orders::place(app, order, lines.clone()).await,
            OrderWork::Pay(transaction) => orders::pay(app, order, *transaction).await,
            OrderWork::Cancel => orders::cancel(app, order).await,
            OrderWork::Retry(kind) => reports::retry(app, order, *kind).await,
        }
    }

    /// Carries the command out, or answers as before if its key was used before.
    pub(crate) async fn answer(&self, app: &App) -> Result<Response<AnswerBody>, Problem> {
        let Some(Keyed { key, path, body }) = &self.0.keyed else {
            return Ok(self.carry_out(app).await?.into_short());
        };
        let mut request = format!("POST {path}\n").into_bytes();
        request.extend_from_slice(body);
        let Some(_claim) = app.in_progress.claim(key) else {
            let detail = "a request with this idempotency key is being answered; come back for its answer";
            return Err(Problem::conflict("key-in-progress", detail));
        };
        let order = &self.0.order;
        let is_here = app.state().slots.has_order(order);
        if let Some(kept) = app.state().storage.kept_answer(key)?.filter(|_| is_here) {
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
            keep(app, key, order, &kept).await;
        }
        // hyper counts what is sent; a length from before would only contradict it.
        head.headers.remove(axum::http::header::CONTENT_LENGTH);
        Ok(Response::from_parts(head, AnswerBody::Short(Full::new(body))))
    }
}

fn check_key(key: &HeaderValue) -> Result<String, Problem> {
    match key.to_str() {
        Ok(text) if (1..=KEY_BYTES_MAX).contains(&text.len()) => Ok(text.to_owned()),
        _ => {
            let detail = format!("must be 1 to {KEY_BYTES_MAX} visible characters");
            Err(Problem::field("Idempotency-Key", detail))
        }
    }
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
