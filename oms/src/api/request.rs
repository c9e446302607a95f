//! The operations of the public API, and the parsers of their values.
//!
//! Every public request is parsed to an operation at the node where it arrives, before its body is
//! read (`routes`). The parsed values (for a new order, the id in its body) decide which volume
//! executes the operation. The owner of the data gets these parsed values. So both nodes interpret
//! a request alike.
//!
//! **Invariants**
//! - An operation contains no header of the client. Calls between nodes are built from operations.
//!   A command also brings its body and idempotency key, and a stock upload its body and delivery
//!   number.
//! - Requests are checked in a fixed order: path, method, query names, path values, query values.

use std::borrow::Cow;

use axum::extract::Query;
use axum::http::Uri;
use percent_encoding::percent_decode_str;

use crate::api::params::{ListQuery, OrdersQuery, Values};
use crate::api::problem::Problem;
use crate::api::routes::{Route, SEGMENTS_MAX};
use crate::cluster::channel::message::Read;
use crate::domain::order::OrderId;
use crate::domain::routing_key::RoutingKey;
use crate::outbox::Kind;

/// Maximum number of characters that an error quotes from a client's text.
const REPEATED_CHARS_MAX: usize = 60;

/// An operation that a client can request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// An operation that one volume executes. A stock upload is split: each volume applies the part
    /// with its stores.
    Volume(VolumeOperation),
    /// A read that merges the responses of all volumes.
    List(List),
    /// An operation that is executed by the node that receives the request.
    Node(NodeOperation),
}

/// An operation that is executed at a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeOperation {
    /// A command that changes one order.
    Command(Command),
    /// A read of an order, a store or the statistics.
    Read(Read),
    /// Replaces the whole stock.
    ReplaceStock,
    /// Replaces some quantities of the stock.
    ChangeStock,
}

/// An operation that is executed by the node that receives the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeOperation {
    /// Reads the ring document.
    Ring,
    /// Liveness probe: succeeds while the process runs.
    Live,
    /// Readiness probe: succeeds if the node accepts orders.
    Ready,
    /// Reads the metrics for Prometheus.
    Metrics,
    /// Reads the OpenAPI document.
    OpenApi,
    /// Reads the current state of the cluster, for the web console.
    ConsoleState,
    /// Follows the state of the cluster as server-sent events, for the web console.
    ConsoleEvents,
}

/// A command that changes one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Places the order that the request's body contains.
    Place,
    /// Records the payment of an order.
    Pay(OrderId),
    /// Cancels an order.
    Cancel(OrderId),
    /// Retries a dead letter of an order.
    Retry(OrderId, Kind),
}

/// A read that merges the responses of all volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Orders, merged by time of arrival (`fan_out::merge_orders`).
    Orders(OrdersQuery),
    /// Reservations, sorted by order id.
    Reservations(ListQuery<OrderId>),
    /// Messages to the warehouse, sorted by order id and kind.
    Messages(ListQuery<(OrderId, Kind)>),
    /// The stock of one product in all stores.
    Product(u32),
    /// The summed counts and states for `GET /health`.
    Health,
}

/// The path segments and query values of a request that matches a route.
pub(super) struct Parsed<'a> {
    segments: [&'a str; SEGMENTS_MAX],
    pub(super) values: Values,
}

impl<'a> Parsed<'a> {
    /// Splits the path of a request that matches a route, and checks the names of the query
    /// parameters.
    pub(super) fn of(route: &Route, uri: &'a Uri) -> Result<Parsed<'a>, Problem> {
        let mut segments = [""; SEGMENTS_MAX];
        let path = uri.path();
        let found = path.strip_prefix('/').unwrap_or(path).split('/');
        segments.iter_mut().zip(found).for_each(|(to, from)| *to = from);
        Ok(Parsed {
            segments,
            values: values(route, uri)?,
        })
    }

    /// Returns the percent-decoded path segment at an index.
    fn text(&self, at: usize) -> Result<Cow<'a, str>, Problem> {
        let decoded = percent_decode_str(self.segments[at]).decode_utf8();
        decoded.map_err(|_| Problem::field("path", "a segment of the path is not UTF-8 when decoded"))
    }

    /// Parses a path segment as an order id.
    pub(super) fn order(&self, at: usize) -> Result<OrderId, Problem> {
        parse_id(&self.text(at)?)
    }

    /// Parses a path segment as a kind of outbox message.
    pub(super) fn kind(&self, at: usize) -> Result<Kind, Problem> {
        parse_kind(&self.text(at)?)
    }

    /// Parses a path segment as a whole number from 1 to `largest`.
    pub(super) fn number(&self, at: usize, field: &str, largest: u32) -> Result<u32, Problem> {
        let number = self.text(at)?.parse().ok();
        let number = number.filter(|number| (1..=largest).contains(number));
        number.ok_or_else(|| Problem::field(field, format!("a {field} id is 1 to {largest}")))
    }
}

/// Returns the decoded query parameters. Rejects a parameter that the route does not have or that
/// appears twice.
fn values(route: &Route, uri: &Uri) -> Result<Values, Problem> {
    if uri.query().is_none_or(str::is_empty) {
        return Ok(Values::default());
    }
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let Query(pairs) = pairs.map_err(|fault| Problem::field("query", fault.body_text()))?;
    for (at, (name, _)) in pairs.iter().enumerate() {
        let known = route.about.query;
        if !known.iter().any(|parameter| parameter.name == name) {
            let detail = if known.is_empty() {
                "this path takes no query parameter".to_owned()
            } else {
                let names: Vec<&str> = known.iter().map(|parameter| parameter.name).collect();
                format!("unknown query parameter; this path takes {}", names.join(", "))
            };
            let name: String = name.chars().take(REPEATED_CHARS_MAX).collect();
            return Err(Problem::field(name, detail));
        }
        if pairs[..at].iter().any(|(before, _)| before == name) {
            return Err(Problem::field(name, "the query parameter appears twice"));
        }
    }
    Ok(Values(pairs))
}

/// Parses an order id from a path or a body.
pub(super) fn parse_id(text: &str) -> Result<OrderId, Problem> {
    OrderId::parse(text).map_err(|reason| Problem::field("id", format!("the order id {reason}")))
}

/// Parses the name of a kind of outbox message.
pub(super) fn parse_kind(text: &str) -> Result<Kind, Problem> {
    Kind::from_name(text).ok_or_else(|| Problem::field("kind", "must be announce or deliver"))
}

/// Returns the key that decides which volume executes a read.
pub(crate) fn routing_key(read: &Read) -> RoutingKey {
    match read {
        Read::Order(order) | Read::OrderHistory(order) => RoutingKey::Order(order.clone()),
        Read::StoreStock(store) => RoutingKey::Store(*store),
        Read::ProductSales(_) | Read::TopSales(_) => RoutingKey::Statistics,
    }
}

impl Command {
    /// Returns the URL path of the command. Order ids and kinds contain only characters that need
    /// no percent encoding.
    pub(crate) fn path(&self) -> String {
        match self {
            Command::Place => "/order".to_owned(),
            Command::Pay(id) => format!("/order/{id}/payment-callback"),
            Command::Cancel(id) => format!("/order/{id}/cancel"),
            Command::Retry(id, kind) => format!("/outbox/{id}/{}/retry", kind.name()),
        }
    }
}
