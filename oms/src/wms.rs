//! The client of the warehouse: one call per message, and what its answer means.
//!
//! A 2xx is done. A 409 is a refusal for good. A 400, 413, 415 or 422 will not get better by itself: the message is
//! dead at once, for an operator to look at. Everything else, a 504 or no answer above all, is an unknown
//! outcome: the call may have acted or not, so it is made again under the same idempotency key.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;

use crate::error::with_causes;
use crate::order::{Line, Order, OrderId};
use crate::outbox::Kind;

/// The delivery's number in the warehouse's ledger, in its answer.
const STOCK_SEQUENCE: &str = "x-stock-sequence";
/// Answers are empty or a short problem: more than this is not read.
const ANSWER_BYTES_MAX: usize = 16 * 1_024;
/// Longest time to a connection: the warehouse is a neighbour, not a stranger.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the warehouse made of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Done, with the number of the delivery if the warehouse says it.
    Done { sequence: Option<u64> },
    /// Refused for good.
    Refused { reason: String },
    /// Not done as far as is known; to be tried again, unless that is hopeless.
    Failed { reason: String, hopeless: bool },
}

/// Where the warehouse is and how long its answers may take.
#[derive(Clone, Debug)]
pub(crate) struct WmsConfig {
    pub(crate) base: Uri,
    pub(crate) announce_timeout: Duration,
    pub(crate) deliver_timeout: Duration,
    pub(crate) connections_max: usize,
}

/// A message on its way to the warehouse.
pub(crate) type Telling<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// The warehouse, however it is reached.
pub(crate) trait Warehouse: Send + Sync {
    /// Tells it about an order, once.
    fn tell<'a>(&'a self, kind: Kind, order: &'a Order) -> Telling<'a>;
}

/// A client of the warehouse, with a pool of connections.
pub(crate) struct Wms {
    client: Client<HttpConnector, Full<Bytes>>,
    announce: Uri,
    deliver: Uri,
    config: WmsConfig,
}

/// A warehouse address that is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoWarehouseUri(String);

impl fmt::Display for NoWarehouseUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not of the form http://HOST:PORT", self.0)
    }
}

/// An order as the warehouse reads it.
#[derive(Serialize)]
struct WmsOrder<'a> {
    id: &'a OrderId,
    products: &'a [Line],
    store_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<u64>,
}

impl Wms {
    /// A client of the warehouse at `config.base`.
    pub(crate) fn new(config: WmsConfig) -> Result<Wms, NoWarehouseUri> {
        let base = config.base.to_string();
        let at = |path: &str| -> Result<Uri, NoWarehouseUri> {
            let uri: Uri = format!("{}{path}", base.trim_end_matches('/'))
                .parse()
                .map_err(|_| NoWarehouseUri(base.clone()))?;
            let plain = uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty());
            if plain {
                Ok(uri)
            } else {
                Err(NoWarehouseUri(base.clone()))
            }
        };
        let (announce, deliver) = (at("/order/new")?, at("/order/process_delivery")?);
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(config.connections_max)
            .build(connector);
        Ok(Wms {
            client,
            announce,
            deliver,
            config,
        })
    }

    async fn tell_in_time(&self, kind: Kind, order: &Order) -> Answer {
        let (uri, limit) = match kind {
            Kind::Announce => (&self.announce, self.config.announce_timeout),
            Kind::Deliver => (&self.deliver, self.config.deliver_timeout),
        };
        match tokio::time::timeout(limit, self.call(kind, uri, order)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failed {
                reason: format!("no answer within {limit:?}"),
                hopeless: false,
            },
        }
    }

    async fn call(&self, kind: Kind, uri: &Uri, order: &Order) -> Answer {
        let request = match request(kind, uri, order) {
            Ok(request) => request,
            Err(reason) => {
                return Answer::Failed {
                    reason,
                    hopeless: true,
                };
            }
        };
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => {
                return Answer::Failed {
                    reason: with_causes(&error),
                    hopeless: false,
                };
            }
        };
        let (head, body) = response.into_parts();
        // Read to its end, so that the connection can serve the next call.
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let sequence = head
            .headers
            .get(STOCK_SEQUENCE)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        if head.status.is_success() {
            return Answer::Done { sequence };
        }
        let text = body.map(Collected::to_bytes).unwrap_or_default();
        let text: String = String::from_utf8_lossy(&text).chars().take(200).collect();
        let reason = if text.is_empty() {
            head.status.to_string()
        } else {
            format!("{}: {text}", head.status)
        };
        match head.status {
            StatusCode::CONFLICT => Answer::Refused { reason },
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY => Answer::Failed {
                reason,
                hopeless: true,
            },
            _ => Answer::Failed {
                reason,
                hopeless: false,
            },
        }
    }
}

impl Warehouse for Wms {
    fn tell<'a>(&'a self, kind: Kind, order: &'a Order) -> Telling<'a> {
        Box::pin(self.tell_in_time(kind, order))
    }
}

fn request(kind: Kind, uri: &Uri, order: &Order) -> Result<Request<Full<Bytes>>, String> {
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
    Request::builder()
        .method(Method::POST)
        .uri(uri.clone())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header("idempotency-key", format!("{}/{}", order.id, kind.name()))
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())
}
