//! The client of the warehouse: one call for each try of a message, and the interpretation of the
//! answer.
//!
//! The contract is `docs/warehouse.md`; `meaning` implements its table of statuses.
//!
//! **Invariants**
//! - A call without a clear answer may have had an effect, so the call is repeated with the same
//!   idempotency key.
//! - Only an answer that is explicitly a final refusal makes an order fail.
//!
//! Deliberately absent: retries and their times (see the parent module).

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::domain::order::{Line, Order, OrderId};
use crate::domain::warehouse_url::WarehouseUrl;
use crate::error::with_causes;
use crate::outbox::{Failure, FailureKind, Kind};
use crate::runtime::trace;

/// Name of the response header with the warehouse's number of the delivery.
const STOCK_SEQUENCE: &str = "x-stock-sequence";
/// Maximum size of an answer's body in bytes. Answers are empty or a short problem. A longer body
/// is treated as empty.
const ANSWER_BYTES_MAX: usize = 16 * 1_024;
/// Maximum time to connect to the warehouse, which usually is in the same network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Problem types of a final refusal (the last part of the `type` member, RFC 9457).
const FINAL_REFUSALS: [&str; 2] = ["out-of-stock", "refused"];
/// Problem types of the answer that an earlier try of the same call is still in progress.
const IN_PROGRESS: [&str; 2] = ["in-progress", "key-in-progress"];
/// Maximum number of characters of an answer's body that are kept as the reason of a failure or
/// refusal.
const REASON_CHARS_MAX: usize = 200;

/// The meaning of the warehouse's answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The warehouse executed the call. `sequence` is the number of the delivery, if the warehouse
    /// sends one.
    Done { sequence: Option<u64> },
    /// The warehouse refused the order permanently.
    Refused { reason: String },
    /// The call failed or got no answer. The warehouse may have executed the call.
    Failed(Failure),
}

/// The address of the warehouse and the limits of calls to it.
#[derive(Clone, Debug)]
pub(crate) struct WmsConfig {
    pub(crate) base: WarehouseUrl,
    pub(crate) announce_timeout: Duration,
    pub(crate) deliver_timeout: Duration,
    pub(crate) connections_max: usize,
}

/// The future of one call to the warehouse.
pub(crate) type SendFuture<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Access to the warehouse. The simulation has another implementation.
pub(crate) trait Warehouse: Send + Sync {
    /// Sends a message about an order once, without a retry.
    fn send<'a>(&'a self, kind: Kind, order: &'a Order) -> SendFuture<'a>;

    /// Returns the URL of the warehouse to which further messages are sent, for logs and traces.
    fn address(&self) -> String;

    /// Sends all further messages to the warehouse at this URL, if it is valid. Calls in flight end
    /// at the former URL.
    fn follow(&self, warehouse: &str);
}

/// A client of the warehouse, with a pool of connections.
pub(crate) struct Wms {
    client: Client<HttpConnector, Full<Bytes>>,
    routes: RwLock<Routes>,
    config: WmsConfig,
}

/// The base URL of the warehouse and the URLs of its two routes.
#[derive(Clone)]
struct Routes {
    base: WarehouseUrl,
    announce: Uri,
    deliver: Uri,
}

impl Routes {
    fn of(base: WarehouseUrl) -> Routes {
        Routes {
            announce: base.with_path("/order/new"),
            deliver: base.with_path("/order/process_delivery"),
            base,
        }
    }
}

/// The body of a request to the warehouse.
#[derive(Serialize)]
struct WmsOrder<'a> {
    id: &'a OrderId,
    products: &'a [Line],
    store_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<u64>,
}

impl Wms {
    /// Returns a client of the warehouse at `config.base`.
    pub(crate) fn new(config: WmsConfig) -> Wms {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(config.connections_max)
            .build(connector);
        Wms {
            client,
            routes: RwLock::new(Routes::of(config.base.clone())),
            config,
        }
    }

    fn routes(&self) -> Routes {
        self.routes.read().clone()
    }

    async fn send_with_timeout(&self, kind: Kind, order: &Order) -> Answer {
        let routes = self.routes();
        let (uri, limit) = match kind {
            Kind::Announce => (routes.announce, self.config.announce_timeout),
            Kind::Deliver => (routes.deliver, self.config.deliver_timeout),
        };
        match tokio::time::timeout(limit, self.call(kind, uri, order)).await {
            Ok(answer) => answer,
            Err(_) => failed(FailureKind::Unreachable, format!("no answer within {limit:?}")),
        }
    }

    async fn call(&self, kind: Kind, uri: Uri, order: &Order) -> Answer {
        let request = match request(kind, uri, order) {
            Ok(request) => request,
            Err(reason) => return failed(FailureKind::Malformed, reason),
        };
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return failed(FailureKind::Unreachable, with_causes(&error)),
        };
        let (head, body) = response.into_parts();
        // The body is read to its end if it is short enough, so that the connection can serve the
        // next call.
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        meaning(head.status, &head.headers, &body)
    }
}

fn failed(kind: FailureKind, reason: impl Into<String>) -> Answer {
    Answer::Failed(Failure::new(kind, reason))
}

/// The member of a problem (RFC 9457) that decides the meaning of an answer.
#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: String,
}

/// Returns the name of a problem: the last part of its type, such as `out-of-stock` of
/// `urn:x:out-of-stock`. `None` if the body is not JSON with a type as text.
fn problem_name(body: &[u8]) -> Option<String> {
    let problem: Problem = serde_json::from_slice(body).ok()?;
    let name = problem.kind.rsplit([':', '/', '#']).next()?;
    Some(name.to_owned())
}

/// Returns the wait that the header `Retry-After` requests, in milliseconds. `None` without a
/// number of seconds. A date is ignored, because a date would make the wait depend on two wall
/// clocks.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(text.trim().parse::<u64>().ok()?.saturating_mul(1_000))
}

/// Returns the meaning of an answer by the table in `docs/warehouse.md`.
fn meaning(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    if status.is_success() {
        let sequence = headers.get(STOCK_SEQUENCE);
        let sequence = sequence.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        return Answer::Done { sequence };
    }
    let text = String::from_utf8_lossy(body);
    let text: String = text.chars().take(REASON_CHARS_MAX).collect();
    let reason = if text.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {text}")
    };
    let name = problem_name(body).unwrap_or_default();
    let asks_to_retry = headers.contains_key(RETRY_AFTER);
    let is_final = FINAL_REFUSALS.contains(&name.as_str()) && !asks_to_retry;
    let is_in_progress = IN_PROGRESS.contains(&name.as_str());
    let kind = match status {
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY if is_final => {
            return Answer::Refused { reason };
        }
        StatusCode::CONFLICT if asks_to_retry => FailureKind::InProgress,
        _ if is_in_progress && status.is_client_error() => FailureKind::InProgress,
        StatusCode::UNPROCESSABLE_ENTITY if asks_to_retry => FailureKind::Error,
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => FailureKind::Malformed,
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => FailureKind::Unreachable,
        _ => FailureKind::Error,
    };
    Answer::Failed(Failure {
        kind,
        reason,
        retry_after_ms: retry_after_ms(headers),
    })
}

impl Warehouse for Wms {
    fn send<'a>(&'a self, kind: Kind, order: &'a Order) -> SendFuture<'a> {
        Box::pin(self.send_with_timeout(kind, order))
    }

    fn address(&self) -> String {
        self.routes().base.to_string()
    }

    fn follow(&self, warehouse: &str) {
        if self.routes().base.to_string() == warehouse {
            return;
        }
        match warehouse.parse::<WarehouseUrl>() {
            Ok(base) => {
                tracing::info!(from = %self.address(), to = %base, "warehouse changed");
                *self.routes.write() = Routes::of(base);
            }
            // Only a cluster state that was edited by hand can have an invalid URL.
            Err(error) => tracing::error!(warehouse, %error, "the cluster's warehouse is not a URL"),
        }
    }
}

fn request(kind: Kind, uri: Uri, order: &Order) -> Result<Request<Full<Bytes>>, String> {
    let transaction_id = if kind == Kind::Deliver {
        order.transaction
    } else {
        None
    };
    let body = WmsOrder {
        id: &order.id,
        products: &order.lines,
        store_id: order.store,
        transaction_id,
    };
    let body = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
    let mut request = Request::builder().method(Method::POST).uri(uri);
    if let Some(trace) = trace::current() {
        request = request.header(trace::TRACEPARENT, trace.to_string());
    }
    request
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header("idempotency-key", format!("{}/{}", order.id, kind.name()))
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
