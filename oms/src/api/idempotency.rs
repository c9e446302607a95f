//! `Idempotency-Key`: a repeated request with this header gets the stored answer of the first one.
//!
//! Orders and payments are idempotent without the header, by their id and content. A client that
//! sends a key also gets the identical answer, stored for at least a day, and a 409 if the key is
//! used for another request.
//!
//! **Invariants**
//! - Only final answers are stored: successes and conflicts (409). After any other error the client
//!   may correct the request, or retry it, under the same key.
//! - An answer is stored after its effects are durable. A crash in between loses only the answer:
//!   the repeated request finds its effects done and gets the same answer.
//! - Two requests with one key are never in progress at one volume at the same time.

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

/// Header with the client's key.
pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Maximum length of a key in bytes. A UUID has 36.
pub(crate) const KEY_BYTES_MAX: usize = 255;

/// Keys of the requests in progress.
#[derive(Default)]
pub(crate) struct InProgress(Mutex<HashSet<String>>);

/// Reserves a key while its request is in progress. Dropping the claim frees the key.
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

/// A command with its parsed body.
pub(crate) struct Commanded {
    pub(crate) order: OrderId,
    work: Work,
    path: String,
    key: Option<HeaderValue>,
    /// The body, decoded from its content codings.
    body: Bytes,
}

enum Work {
    Place(Box<[Line]>),
    Pay(u64),
    Cancel,
    Retry(Kind),
}

impl Commanded {
    /// Reads and parses the body of a command. With a key, the body of a command without content is
    /// read too, because the key is bound to it.
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

    /// Converts the command to a call to another node.
    pub(crate) fn into_call(self) -> (OrderId, Call) {
        let call = Call {
            key: self.key,
            ..Call::post(self.path, self.body)
        };
        (self.order, call)
    }

    async fn execute(self, app: &App) -> Result<Json, Problem> {
        match self.work {
            Work::Place(lines) => orders::place(app, &self.order, lines).await,
            Work::Pay(transaction) => orders::pay(app, &self.order, transaction).await,
            Work::Cancel => orders::cancel(app, &self.order).await,
            Work::Retry(kind) => reports::retry(app, &self.order, kind).await,
        }
    }

    /// Executes the command, or returns the stored answer of its key.
    pub(crate) async fn answer(self, app: &App) -> Result<Response<AnswerBody>, Problem> {
        let Some(key) = &self.key else {
            return Ok(self.execute(app).await?.into_short());
        };
        let key = key.to_str().unwrap_or_default().to_owned();
        let mut request = format!("POST {}\n", self.path).into_bytes();
        request.extend_from_slice(&self.body);
        let Some(_claim) = app.in_progress.claim(&key) else {
            let detail = "a request with this idempotency key is in progress; retry later for its answer";
            return Err(Problem::conflict("key-in-progress", detail));
        };
        let order = self.order.clone();
        let is_here = app.state().slots.has_order(&order);
        if let Some(kept) = app.state().storage.kept_answer(&key)?.filter(|_| is_here) {
            if kept.request != request {
                let detail = "this idempotency key was used for another request; use a new key";
                return Err(Problem::conflict("key-reused", detail));
            }
            return Ok(replay(kept));
        }
        let response = match self.execute(app).await {
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
        // hyper sets the length of the body itself. A second header could contradict it.
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
            // A stored answer migrates with its order. Without this check it could be written after
            // the order has left this volume.
            state.slots.check_order(order)?;
            batch.fence(state.slots.fence_of_order(order));
            permit.send(batch)
        };
        Ok::<(), OrderError>(ticket.durable().await?)
    };
    if let Err(error) = outcome.await {
        // The command itself is durable, so a repeated request finds it done even without the
        // stored answer.
        tracing::warn!(?error, "answer of an idempotency key not stored");
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
