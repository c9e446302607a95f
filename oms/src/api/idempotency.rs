//! Implements the header `Idempotency-Key`: a repeated request with the same key gets the stored
//! response to the first request.
//!
//! Orders and payments are idempotent without the header, by their id and content. A client that
//! sends a key gets the stored status and body again, for at least a day. While a volume stores a
//! response, it answers a request with the same key and another path or body with 409. Other
//! volumes do not know the key.
//!
//! **Invariants**
//! - Only final responses of commands are stored: successes and conflicts (409). After any other
//!   error the client may correct or repeat the request under the same key.
//! - A response is stored after the effects of its request are durable. A crash between these two
//!   commits loses only the stored response. The repeated request then has no further effect. A
//!   repeated order or payment even gets an equal response.
//! - Two requests with one key are never in progress at one volume at the same time. A request with
//!   a key is in progress until its response is stored, even if the client disconnects before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};

use crate::api::content::RequestBody;
use crate::api::fast_path::{AnswerBody, Json};
use crate::api::problem::{Kind, Problem, REPLAYED};
use crate::api::request::Command;
use crate::api::{order_body, orders, reports};
use crate::cluster::channel::message::{Keyed, OrderCommand, OrderWork};
use crate::domain::order::OrderId;
use crate::runtime::seeded::seeded;
use crate::runtime::{self, trace};
use crate::storage::codec::KeptAnswer;
use crate::storage::write_batch::WriteBatch;
use crate::volume::app::App;
use crate::volume::state::OrderError;

/// The request header with the client's idempotency key.
pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Maximum length of an idempotency key in bytes. A UUID has 36 bytes.
pub(crate) const KEY_BYTES_MAX: usize = 255;

/// A command of a client with its parsed body. Commands are idempotent: a command that is executed
/// again has no further effect.
pub(crate) struct Commanded {
    command: OrderCommand,
    /// `true` once this node has tried to execute the command, here or at another node.
    was_tried: AtomicBool,
}

impl Commanded {
    fn new(command: OrderCommand) -> Commanded {
        Commanded {
            command,
            was_tried: AtomicBool::new(false),
        }
    }

    /// Notes a try of the command. Returns `true` if this node tried the command before, or if the
    /// node that sent the command did.
    fn note_try(&self) -> bool {
        let was_tried = self.was_tried.swap(true, Ordering::Relaxed) || self.command.is_repeated;
        was_tried && !seeded("repeat-not-noted")
    }

    /// Reads and parses the body of a command. With an idempotency key, the body is also read for
    /// commands without content, because the key is bound to the path and the body.
    pub(crate) async fn read(
        command: Command,
        headers: &HeaderMap,
        body: impl RequestBody,
    ) -> Result<Commanded, Problem> {
        let key = headers.get(KEY).map(check_key).transpose()?;
        let has_body = matches!(command, Command::Place | Command::Pay(_)) || key.is_some();
        let body = if has_body {
            order_body::read_small(headers, body).await?
        } else {
            Bytes::new()
        };
        // The path is needed only with a key: it is stored, to recognize another request under the
        // same key.
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
        Ok(Commanded::new(OrderCommand {
            order,
            work,
            is_repeated: false,
            keyed,
        }))
    }

    /// Returns a command that another node has parsed, after checking its idempotency key again.
    pub(super) fn from_message(command: OrderCommand) -> Result<Commanded, Problem> {
        if let Some(keyed) = &command.keyed {
            let key = HeaderValue::from_str(&keyed.key);
            check_key(&key.map_err(|_| Problem::field("Idempotency-Key", "is not a header's value"))?)?;
        }
        Ok(Commanded::new(command))
    }

    /// Returns the id of the order that the command concerns.
    pub(crate) fn order(&self) -> &OrderId {
        &self.command.order
    }

    /// Returns the command as a message for the channel to another node, and notes the try.
    pub(crate) fn to_message(&self) -> OrderCommand {
        OrderCommand {
            is_repeated: self.note_try(),
            ..self.command.clone()
        }
    }

    /// Executes the command, or returns the response that is stored under its idempotency key.
    /// Besides the problems of the command, returns a problem if a request with this key is in
    /// progress, or if the key was used for another request.
    pub(crate) async fn answer(&self, app: &Arc<App>) -> Result<Response<AnswerBody>, Problem> {
        let OrderCommand {
            order, work, keyed, ..
        } = &self.command;
        app.state().traced_orders.note(order);
        let Some(Keyed { key, path, body }) = keyed else {
            return Ok(execute(app, order, work, self.note_try()).await?.into_short());
        };
        let mut request = format!("POST {path}\n").into_bytes();
        request.extend_from_slice(body);
        let Some(claim) = app.in_progress.claim(key) else {
            let detail = "a request with this idempotency key is in progress; retry later for its answer";
            return Err(Problem::new(Kind::KeyInProgress, detail));
        };
        let is_here = app.state().slots.has_order(order);
        if let Some(kept) = app.state().storage.kept_answer(key)?.filter(|_| is_here) {
            if kept.request != request {
                let detail = "this idempotency key was used for another request; use a new key";
                return Err(Problem::new(Kind::KeyReused, detail));
            }
            return Ok(replay(kept));
        }
        let is_repeated = self.note_try();
        let (app, key) = (Arc::clone(app), key.clone());
        let (order, work) = (order.clone(), work.clone());
        // If the client disconnects, this future is dropped, but the step of the order goes on. So
        // a separate task holds the claim until the response is stored.
        let finishing = async move {
            let _claim = claim;
            let executed = execute(&app, &order, &work, is_repeated).await;
            answer_and_keep(&app, &key, &order, request, executed).await
        };
        let finished = match trace::current() {
            Some(context) => runtime::to_completion(context.scope(finishing)).await,
            None => runtime::to_completion(finishing).await,
        };
        // There is no result if the task panicked, or if this process is stopping.
        finished.unwrap_or_else(|| Err(Problem::internal("the request was not finished")))
    }
}

/// Executes the work of a command. `is_repeated` is `true` if an earlier try of the command may
/// have had an effect.
async fn execute(app: &App, order: &OrderId, work: &OrderWork, is_repeated: bool) -> Result<Json, Problem> {
    match work {
        OrderWork::Place(lines) => orders::place(app, order, lines.clone(), is_repeated).await,
        OrderWork::Pay(transaction) => orders::pay(app, order, *transaction).await,
        OrderWork::Cancel => orders::cancel(app, order).await,
        OrderWork::Retry(kind) => reports::retry(app, order, *kind).await,
    }
}

/// Renders the response to an executed command, and stores a final response under the idempotency
/// key. `request` is the client's request, as it is stored with the response.
async fn answer_and_keep(
    app: &App,
    key: &str,
    order: &OrderId,
    request: Vec<u8>,
    executed: Result<Json, Problem>,
) -> Result<Response<AnswerBody>, Problem> {
    let response = match executed {
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
    // hyper sets `Content-Length` from the body. A second header could contradict it.
    head.headers.remove(axum::http::header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, AnswerBody::Short(Full::new(body))))
}

fn check_key(key: &HeaderValue) -> Result<String, Problem> {
    match key.to_str() {
        // `to_str` accepts a tab, which the API document does not.
        Ok(text) if (1..=KEY_BYTES_MAX).contains(&text.len()) && !text.contains('\t') => Ok(text.to_owned()),
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
            // A stored response migrates with its order. Without this check the response could be
            // stored after the order's slot has left this volume.
            state.slots.check_order(order)?;
            batch.fence(state.slots.fence_of_order(order));
            permit.send(batch)
        };
        Ok::<(), OrderError>(ticket.durable().await?)
    };
    if let Err(error) = outcome.await {
        // The command is already durable. So a repeated request has no further effect even without
        // the stored response.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::Line;
    use crate::volume::transactor::tests::{close, transactors};

    #[tokio::test]
    async fn a_key_stays_claimed_until_the_answer_is_stored_even_without_the_client() {
        let folder = tempfile::tempdir().unwrap();
        let transactors = transactors(folder.path(), 5).await;
        let app = Arc::new(App::of(&transactors));
        let place = |body: &'static str| {
            Commanded::new(OrderCommand {
                order: OrderId::parse("17").unwrap(),
                work: OrderWork::Place([Line { id: 7, quantity: 1 }].into()),
                is_repeated: false,
                keyed: Some(Keyed {
                    key: "k".to_owned(),
                    path: "/order".to_owned(),
                    body: Bytes::from_static(body.as_bytes()),
                }),
            })
        };
        // The future of the answer is polled once and then dropped, as if the client had
        // disconnected.
        let first = place("first");
        tokio::select! {
            biased;
            _ = first.answer(&app) => panic!("answered before the commit"),
            () = std::future::ready(()) => {}
        }
        assert!(app.in_progress.claim("k").is_none(), "the key is free");
        loop {
            let Err(refusal) = place("second").answer(&app).await else {
                panic!("another request with the key was executed");
            };
            let detail = refusal.detail();
            if detail.contains("was used for another request") {
                break;
            }
            assert!(detail.contains("is in progress"), "{detail}");
            tokio::task::yield_now().await;
        }
        let Ok(again) = place("first").answer(&app).await else {
            panic!("the stored answer is missing");
        };
        assert_eq!(again.status(), StatusCode::OK);
        assert!(again.headers().contains_key(REPLAYED));
        close(transactors).await;
    }

    #[test]
    fn a_command_that_was_tried_says_so_to_the_next_node() {
        let tried = |is_repeated| {
            let command = Commanded::new(OrderCommand {
                order: OrderId::parse("a").unwrap(),
                work: OrderWork::Cancel,
                is_repeated,
                keyed: None,
            });
            [(); 2].map(|()| command.to_message().is_repeated)
        };
        assert_eq!(tried(false), [false, true]);
        assert_eq!(tried(true), [true, true]);
    }
}
