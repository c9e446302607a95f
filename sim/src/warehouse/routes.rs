//! The warehouse's routes. The two routes of the contract parse a call, decide, write the decision
//! to the ledger, and answer with a delay.
//!
//! Delay and fault of a call are drawn from the id of the order and the number of the attempt, not
//! from the sequence in which calls arrive. So with the same seed and the same behaviour, the calls
//! of an order get the same delays and faults in every run.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Shared;
use super::behaviour::{CallBehaviour, Fault};
use super::books::{Announcement, Decision};
use super::stream::{AnswerFault, Control};
use crate::seed::{Dice, Purpose};
use crate::wire::{LedgerPage, Problem, Product, RefusalsPage, RestocksPage, WarehouseOrder};

/// Header with the sequence number of a delivery in the ledger.
const SEQUENCE: &str = "x-stock-sequence";
/// Header with the idempotency key of a call, by which a repetition is recognised.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Number of entries on a page of `/ledger`, `/restocks` or `/refusals`: the default, and the
/// maximum.
const PAGE_DEFAULT: usize = 1_000;
const PAGE_MAX: usize = 10_000;

/// Returns a router with all routes of the warehouse.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/order/new", post(announce))
        .route("/order/process_delivery", post(deliver))
        .route("/summary", get(summary))
        .route("/ledger", get(ledger))
        .route("/restocks", get(restocks))
        .route("/refusals", get(refusals))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "no-such-route",
                "the warehouse has no such route",
            )
        })
        .with_state(shared)
}

/// A call in progress, with a name such as `deliver KEY`. Another call of the same name is answered
/// 409 until this value is dropped, at the latest when the caller's connection ends.
struct InFlight {
    shared: Arc<Shared>,
    name: String,
}

impl InFlight {
    /// Claims a name. Returns `None` while another call of this name is in progress.
    fn claim(shared: &Arc<Shared>, name: String) -> Option<Self> {
        let is_free = shared.in_flight.lock().insert(name.clone());
        is_free.then(|| Self {
            shared: Arc::clone(shared),
            name,
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.in_flight.lock().remove(&self.name);
    }
}

/// Counts a refused call, and answers 409: an earlier try of the same call is still in progress.
fn in_progress(shared: &Shared, order: &str) -> Response {
    shared.counters.in_progress.fetch_add(1, Ordering::Relaxed);
    let detail = format!("an earlier call about order {order} is still being carried out");
    retry_later(problem(StatusCode::CONFLICT, "in-progress", &detail))
}

fn retry_later(mut response: Response) -> Response {
    let seconds = header::HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

/// The random delay and fault of one call.
struct Course {
    delay: Duration,
    fault: Option<Fault>,
}

impl Course {
    fn draw(behaviour: &CallBehaviour, mut dice: Dice) -> Self {
        Self {
            delay: behaviour.delay.draw(&mut dice),
            fault: behaviour.draw_fault(&mut dice),
        }
    }

    /// Returns `true` if the warehouse performs the call and the caller receives its answer.
    fn is_answered(&self) -> bool {
        self.fault.is_none_or(Fault::is_answered)
    }

    /// Returns `true` if the warehouse performs the call.
    fn acts(&self) -> bool {
        self.fault.is_none_or(Fault::acts)
    }

    /// Applies the fault of a call to its answer. Returns the answer to send.
    async fn end(&self, shared: &Shared, control: &Control, answer: Response) -> Response {
        let Some(fault) = self.fault else {
            return answer;
        };
        shared.counters.count_fault(fault.name());
        match fault {
            Fault::ResetBefore | Fault::ResetAfterActing => {
                control.reset();
                // The reset drops the connection, and with it this call, before an answer can be
                // written. This wait keeps the call open until the connection is dropped.
                shared.stopped().await;
                stopping()
            }
            Fault::TimeoutBefore | Fault::TimeoutAfterActing => {
                shared.counters.gateway_timeouts.fetch_add(1, Ordering::Relaxed);
                problem(
                    StatusCode::GATEWAY_TIMEOUT,
                    "gateway-timeout",
                    "the call may or may not have been carried out",
                )
            }
            Fault::Unavailable => retry_later(problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the warehouse is overloaded",
            )),
            Fault::DuplicateAnswer => {
                control.disturb(AnswerFault::Duplicate);
                answer
            }
            Fault::SlowDrip => {
                control.disturb(AnswerFault::Drip);
                answer
            }
        }
    }
}

async fn announce(
    State(shared): State<Arc<Shared>>,
    Extension(control): Extension<Control>,
    body: Bytes,
) -> Response {
    let order = match parse_order(&body, false) {
        Ok(order) => order,
        Err(malformed) => return malformed.into_response(&shared),
    };
    let Some(_in_flight) = InFlight::claim(&shared, format!("announce {}", order.id)) else {
        return in_progress(&shared, &order.id);
    };
    let attempt = shared.inside().books.count_announce_attempt(&order.id);
    let dice = Dice::for_order(shared.config.seed, Purpose::Announcement, &order.id, attempt);
    let course = Course::draw(&shared.behaviour().announce, dice);
    let answer = match course.acts() {
        true => act_announce(&shared, &order).await,
        false => StatusCode::OK.into_response(),
    };
    if answer.status() != StatusCode::OK {
        return answer;
    }
    if !pause(&shared, course.delay).await {
        return stopping();
    }
    course.end(&shared, &control, answer).await
}

/// Decides about an announcement, and writes a new one to the ledger. Confirms an announcement once
/// it is durable.
async fn act_announce(shared: &Shared, order: &WarehouseOrder) -> Response {
    let (decision, ticket) = {
        let mut inside = shared.inside();
        let decision = inside.books.announce(order);
        let ticket = match &decision {
            Announcement::Enter(entry) => inside.enter(entry),
            _ => inside.ledger.ticket(),
        };
        (decision, ticket)
    };
    if decision == Announcement::Conflict {
        shared.counters.conflicts.fetch_add(1, Ordering::Relaxed);
        return problem(
            StatusCode::CONFLICT,
            "conflict",
            &format!("order {} was announced before with other lines", order.id),
        );
    }
    match ticket.durable().await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, "ledger", &error.to_string()),
    }
}

async fn deliver(
    State(shared): State<Arc<Shared>>,
    Extension(control): Extension<Control>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let order = match parse_order(&body, true) {
        Ok(order) => order,
        Err(malformed) => return malformed.into_response(&shared),
    };
    let key = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok());
    // Without a key, a repetition cannot be distinguished from a second delivery, so no name is
    // claimed.
    let claim = key.map(|key| InFlight::claim(&shared, format!("deliver {key}")));
    if let Some(None) = claim {
        return in_progress(&shared, &order.id);
    }
    let attempt = shared.inside().books.count_delivery_attempt(&order.id);
    let dice = Dice::for_order(shared.config.seed, Purpose::Delivery, &order.id, attempt);
    let course = Course::draw(&shared.behaviour().deliver, dice);
    if !pause(&shared, course.delay).await {
        return stopping();
    }
    let answer = match course.acts() {
        true => act_deliver(&shared, &order, key, course.is_answered()).await,
        false => StatusCode::OK.into_response(),
    };
    course.end(&shared, &control, answer).await
}

/// Decides about a delivery, and writes a new delivery or a refusal to the ledger. Returns the
/// answer once the ledger is durable up to this decision. `is_answered` is `true` if the caller
/// will receive this answer, which then marks the delivery as confirmed.
async fn act_deliver(
    shared: &Shared,
    order: &WarehouseOrder,
    key: Option<&str>,
    is_answered: bool,
) -> Response {
    let (answer, ticket) = {
        let mut inside = shared.inside();
        let decision = inside.books.deliver(order, key);
        let ticket = match &decision {
            Decision::Deliver(entry) | Decision::Refuse(entry) => inside.enter(entry),
            _ => inside.ledger.ticket(),
        };
        let answer = match decision {
            Decision::Deliver(_) => {
                let sequence = inside.books.sequence();
                if is_answered {
                    let place = inside.books.counts().delivered - 1;
                    inside.books.answer(place as usize);
                }
                delivered(sequence)
            }
            Decision::Known(place, sequence) => {
                if is_answered && inside.books.answer(place) {
                    let repeated = &shared.counters.duplicates_after_answer;
                    repeated.fetch_add(1, Ordering::Relaxed);
                }
                delivered(sequence)
            }
            Decision::Conflict => {
                shared.counters.conflicts.fetch_add(1, Ordering::Relaxed);
                let id = &order.id;
                let detail = format!("order {id} was delivered before under this key with other lines");
                problem(StatusCode::CONFLICT, "conflict", &detail)
            }
            Decision::Refuse(_) => {
                tracing::warn!(
                    order = order.id,
                    store = order.store_id,
                    "delivery refused: out of stock"
                );
                let detail = format!("store {} has not the units of order {}", order.store_id, order.id);
                problem(StatusCode::CONFLICT, "out-of-stock", &detail)
            }
        };
        (answer, ticket)
    };
    match ticket.durable().await {
        Ok(()) => answer,
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, "ledger", &error.to_string()),
    }
}

fn delivered(sequence: u64) -> Response {
    (StatusCode::OK, [(SEQUENCE, sequence.to_string())]).into_response()
}

/// Waits for the delay of a call. Returns `false` if the warehouse stops during the wait.
async fn pause(shared: &Shared, duration: Duration) -> bool {
    if duration.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(duration) => true,
        () = shared.stopped() => false,
    }
}

fn stopping() -> Response {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "stopping",
        "the warehouse is stopping",
    )
}

async fn summary(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(shared.summary()).into_response()
}

/// Query parameters of a request for a page of a list.
#[derive(Debug, Deserialize)]
struct Page {
    limit: Option<usize>,
    cursor: Option<usize>,
}

impl Page {
    fn from(&self) -> usize {
        self.cursor.unwrap_or(0)
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }

    /// Returns the entries of this page, and the cursor of the next page if there are more entries.
    fn of<T: Clone>(&self, list: &[T]) -> (Vec<T>, Option<String>) {
        let page: Vec<T> = list
            .iter()
            .skip(self.from())
            .take(self.limit())
            .cloned()
            .collect();
        let next = self.next(page.len(), list.len());
        (page, next)
    }

    fn next(&self, shown: usize, total: usize) -> Option<String> {
        let end = self.from().saturating_add(shown);
        (end < total).then(|| end.to_string())
    }
}

async fn ledger(State(shared): State<Arc<Shared>>, Query(page): Query<Page>) -> Response {
    let inside = shared.inside();
    let deliveries = inside.books.deliveries(page.from(), page.limit());
    let next = page.next(deliveries.len(), inside.books.counts().delivered as usize);
    json(&LedgerPage { deliveries, next })
}

async fn restocks(State(shared): State<Arc<Shared>>, Query(page): Query<Page>) -> Response {
    let (restocks, next) = page.of(shared.inside().books.restocks());
    json(&RestocksPage { restocks, next })
}

async fn refusals(State(shared): State<Arc<Shared>>, Query(page): Query<Page>) -> Response {
    let (refusals, next) = page.of(shared.inside().books.refusals());
    json(&RefusalsPage { refusals, next })
}

fn json<T: Serialize>(value: &T) -> Response {
    axum::Json(value).into_response()
}

fn problem(status: StatusCode, kind: &str, detail: &str) -> Response {
    with_field(status, kind, detail, None)
}

fn with_field(status: StatusCode, kind: &str, detail: &str, field: Option<String>) -> Response {
    let body = Problem {
        kind: format!("urn:imt:warehouse:{kind}"),
        title: status.canonical_reason().unwrap_or("Error").to_owned(),
        status: status.as_u16(),
        detail: Some(detail.to_owned()),
        field,
    };
    let mut response = (status, axum::Json(body)).into_response();
    let content_type = header::HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// Error for a malformed body, with the name of the invalid field; `None` if the body is not JSON.
#[derive(Debug, PartialEq, Eq)]
struct Malformed {
    field: Option<String>,
    detail: String,
}

impl Malformed {
    fn into_response(self, shared: &Shared) -> Response {
        shared.counters.malformed.fetch_add(1, Ordering::Relaxed);
        with_field(StatusCode::BAD_REQUEST, "malformed", &self.detail, self.field)
    }
}

/// Parses an order field by field, so that the answer can name the invalid field. `payment` is
/// `true` for a delivery, which must have a transaction id.
fn parse_order(body: &[u8], payment: bool) -> Result<WarehouseOrder, Malformed> {
    let root: Value = serde_json::from_slice(body).map_err(|e| Malformed {
        field: None,
        detail: format!("the body is not JSON: {e}"),
    })?;
    let wrong = |field: &str, detail: &str| Malformed {
        field: Some(field.to_owned()),
        detail: format!("{field}: {detail}"),
    };
    let number = |value: &Value, field: &str, max: u64| {
        let number = value.as_u64().filter(|n| (1..=max).contains(n));
        number.ok_or_else(|| wrong(field, "must be a whole number from 1"))
    };
    let id = root["id"].as_str().filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| wrong("id", "must be a text that is not empty"))?;
    let products = root["products"].as_array().filter(|list| !list.is_empty());
    let products = products.ok_or_else(|| wrong("products", "must be a list that is not empty"))?;
    let products = products.iter().enumerate().map(|(index, product)| {
        let part = |name: &str| {
            number(
                &product[name],
                &format!("products[{index}].{name}"),
                u32::MAX.into(),
            )
        };
        Ok(Product {
            id: part("id")? as u32,
            quantity: part("quantity")? as u32,
        })
    });
    Ok(WarehouseOrder {
        id: id.to_owned(),
        products: products.collect::<Result<_, _>>()?,
        store_id: number(&root["store_id"], "store_id", u32::MAX.into())? as u32,
        transaction_id: match payment {
            true => Some(number(&root["transaction_id"], "transaction_id", u64::MAX)?),
            false => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_order_is_told_by_its_field() {
        let good = r#"{"id":"17","products":[{"id":812,"quantity":3}],"store_id":5,"transaction_id":4711}"#;
        let order = parse_order(good.as_bytes(), true).unwrap();
        assert_eq!((order.store_id, order.transaction_id), (5, Some(4711)));
        assert_eq!(parse_order(good.as_bytes(), false).unwrap().transaction_id, None);
        for (from, to, field) in [
            ("\"store_id\":5", "\"store_id\":null", "store_id"),
            ("\"store_id\":5,", "", "store_id"),
            ("\"id\":\"17\"", "\"id\":17", "id"),
            ("\"quantity\":3", "\"quantity\":-3", "products[0].quantity"),
            ("\"id\":812", "\"id\":5000000000", "products[0].id"),
            ("[{\"id\":812,\"quantity\":3}]", "[]", "products"),
            ("4711", "\"4711\"", "transaction_id"),
        ] {
            let body = good.replace(from, to);
            let malformed = parse_order(body.as_bytes(), true).unwrap_err();
            assert_eq!(malformed.field.as_deref(), Some(field), "{body}");
        }
        assert_eq!(parse_order(b"{", true).unwrap_err().field, None);
    }

    #[test]
    fn pages_join_to_the_whole_list() {
        let list: Vec<u32> = (0..25).collect();
        let mut cursor = None;
        let mut seen = Vec::new();
        loop {
            let page = Page {
                limit: Some(10),
                cursor,
            };
            let (part, next) = page.of(&list);
            seen.extend(part);
            match next {
                Some(next) => cursor = Some(next.parse().unwrap()),
                None => break,
            }
        }
        assert_eq!(seen, list);
    }
}
