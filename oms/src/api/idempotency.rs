//! `Idempotency-Key`: a request that is sent again gets the answer that it got, whatever it was about.
//!
//! Orders and payments are idempotent by themselves: their id and content are the key. A client that sends the header gets more: the
//! very answer of the first time, kept for a day at least, and a refusal if the key comes with another request.
//! Answers that say what was done, or why it never will be, are kept; faults of the request or of ours are not, so that the
//! request can be mended or tried again under its key.
//!
//! The answer is kept after what it tells of is durable. A crash in between leaves no answer, and the request does what is
//! already done once more: nothing, with the same answer.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body as HttpBody;
use tower::ServiceExt;

use super::lane::AnswerBody;
use super::problem::{Problem, REPLAYED};
use super::{App, body};
use crate::changes::Changes;
use crate::desk::Fault;
use crate::order::OrderId;
use crate::router;
use crate::rows::KeptAnswer;

/// The client's name for a request.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest key in bytes: four times a UUID, and a row's key like any other.
const KEY_BYTES_MAX: usize = 255;

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

/// Answers a request with a key: as before, or for the first time.
pub(super) async fn answer<B>(app: &App, routes: axum::Router, head: Parts, body: B) -> Response<AnswerBody>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    match answer_once(app, routes, head, body).await {
        Ok(response) => response,
        Err(problem) => problem.into_response().map(AnswerBody::Long),
    }
}

async fn answer_once<B>(
    app: &App,
    routes: axum::Router,
    head: Parts,
    body: B,
) -> Result<Response<AnswerBody>, Problem>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    let key = key_of(&head.headers)?;
    let body = body::read_small(&head.headers, body).await?;
    let mut request = format!("{} {}\n", head.method, head.uri).into_bytes();
    request.extend_from_slice(&body);
    let Some(_claim) = app.in_progress.claim(&key) else {
        let detail = "a request with this idempotency key is being answered; come back for its answer";
        return Err(Problem::conflict("key-in-progress", detail));
    };
    let order = router::order_of(&request);
    let is_here = order
        .as_ref()
        .is_none_or(|order| app.desk().slots.has_order(order));
    if let Some(kept) = app.desk().store.kept_answer(&key)?.filter(|_| is_here) {
        if kept.request != request {
            let detail = "this idempotency key was used before for another request";
            return Err(Problem::conflict("key-reused", detail));
        }
        return Ok(replay(kept));
    }
    let Ok(response) = routes.oneshot(Request::from_parts(head, Body::from(body))).await;
    let (mut head, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| Problem::internal(error.to_string()))?
        .to_bytes();
    if head.status.is_success() || head.status == StatusCode::CONFLICT {
        let kept = KeptAnswer {
            at_ms: app.desk().clock.now_ms(),
            status: head.status.as_u16(),
            request,
            body: body.to_vec(),
        };
        keep(app, &key, order.as_ref(), &kept).await;
    }
    // hyper counts what is sent; a length from before would only contradict it.
    head.headers.remove(axum::http::header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, AnswerBody::Short(Full::new(body))))
}

fn key_of(headers: &HeaderMap) -> Result<String, Problem> {
    let key = headers.get(KEY).and_then(|key| key.to_str().ok()).unwrap_or("");
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = format!("must be 1 to {KEY_BYTES_MAX} visible characters");
        return Err(Problem::field("Idempotency-Key", detail));
    }
    Ok(key.to_owned())
}

async fn keep(app: &App, key: &str, order: Option<&OrderId>, kept: &KeptAnswer) {
    let desk = app.desk();
    let mut changes = Changes::default();
    changes.keep_answer(key, kept);
    let outcome = async {
        let permit = desk.store.permit().await?;
        let ticket = {
            let _stock = desk.stock();
            // An answer goes with its order: where that has gone, this one would be left behind.
            if let Some(order) = order {
                desk.slots.check_order(order)?;
                changes.fence(desk.slots.fence_of_order(order));
            }
            permit.send(changes)
        };
        Ok::<(), Fault>(ticket.durable().await?)
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
