//! The operations of the public API, and the parsing of their values.
//!
//! Every public request is parsed at the node where it arrives and before its body is read
//! (`routes`). The operation decides which volume answers, so a node routes by the same values that
//! the owner uses.
//!
//! **Invariants**
//! - An operation contains nothing of the client's headers. Calls between nodes are built from
//!   operations.
//! - Faults are checked in one order: path, method, query names, path values, query values.

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

/// Maximum number of characters of a client's text in an error.
const REPEATED_CHARS_MAX: usize = 60;

/// An operation that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// One volume answers, or each volume its part of a stock.
    Volume(VolumeOperation),
    /// The answers of all volumes are merged.
    List(List),
    /// The node that receives the request answers.
    Node(NodeOperation),
}

/// An operation at a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeOperation {
    /// A command to one order.
    Command(Command),
    /// A read.
    Read(Read),
    /// Replace the whole stock.
    ReplaceStock,
    /// Replace some quantities of the stock.
    ChangeStock,
}

/// An operation at the node that receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeOperation {
    /// The ring.
    Ring,
    /// Liveness probe: the process answers.
    Live,
    /// Readiness probe: the node can take orders.
    Ready,
    /// Metrics for Prometheus.
    Metrics,
    /// The OpenAPI document.
    OpenApi,
    /// The state of the cluster as it is now, for the web console.
    ConsoleState,
    /// The state and its changes, as server-sent events.
    ConsoleEvents,
}

/// A command to one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Place the order in the body.
    Place,
    /// Record a payment of the order.
    Pay(OrderId),
    /// Cancel the order.
    Cancel(OrderId),
    /// Retry a dead letter of the order.
    Retry(OrderId, Kind),
}

/// An operation with an answer that is merged from all volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Orders by time of arrival.
    Orders(OrdersQuery),
    /// Reservations by order.
    Reservations(ListQuery<OrderId>),
    /// Messages to the warehouse by order and kind.
    Messages(ListQuery<(OrderId, Kind)>),
    /// One product in all stores.
    Product(u32),
    /// Counts and states.
    Health,
}

/// The values of a request's path and query.
pub(super) struct Parsed<'a> {
    segments: [&'a str; SEGMENTS_MAX],
    pub(super) values: Values,
}

impl<'a> Parsed<'a> {
    /// Splits a path that fits a route, and checks the names of the query.
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

    /// Decodes a segment of the path.
    fn text(&self, at: usize) -> Result<Cow<'a, str>, Problem> {
        let decoded = percent_decode_str(self.segments[at]).decode_utf8();
        decoded.map_err(|_| Problem::field("path", "a segment of the path is not UTF-8 when decoded"))
    }

    /// Parses the order id in a segment.
    pub(super) fn order(&self, at: usize) -> Result<OrderId, Problem> {
        parse_id(&self.text(at)?)
    }

    /// Parses the kind of message in a segment.
    pub(super) fn kind(&self, at: usize) -> Result<Kind, Problem> {
        parse_kind(&self.text(at)?)
    }

    /// Parses a whole number in a segment, 1 to `largest`.
    pub(super) fn number(&self, at: usize, field: &str, largest: u32) -> Result<u32, Problem> {
        let number = self.text(at)?.parse().ok();
        let number = number.filter(|number| (1..=largest).contains(number));
        number.ok_or_else(|| Problem::field(field, format!("a {field} id is 1 to {largest}")))
    }
}

/// Returns the values of the query. Rejects a parameter that is unknown or appears twice.
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

/// Parses an order id from a path or body.
pub(super) fn parse_id(text: &str) -> Result<OrderId, Problem> {
    OrderId::parse(text).map_err(|reason| Problem::field("id", format!("the order id {reason}")))
}

/// Parses the name of a kind of message.
pub(super) fn parse_kind(text: &str) -> Result<Kind, Problem> {
    Kind::from_name(text).ok_or_else(|| Problem::field("kind", "must be announce or deliver"))
}

/// Returns the key that decides which volume answers a read.
pub(crate) fn routing_key(read: &Read) -> RoutingKey {
    match read {
        Read::Order(order) | Read::OrderHistory(order) => RoutingKey::Order(order.clone()),
        Read::StoreStock(store) => RoutingKey::Store(*store),
        Read::ProductSales(_) | Read::TopSales(_) => RoutingKey::Statistics,
    }
}

impl Command {
    /// Returns the path of the command. Ids and kinds need no percent encoding.
    pub(crate) fn path(&self) -> String {
        match self {
            Command::Place => "/order".to_owned(),
            Command::Pay(id) => format!("/order/{id}/payment-callback"),
            Command::Cancel(id) => format!("/order/{id}/cancel"),
            Command::Retry(id, kind) => format!("/outbox/{id}/{}/retry", kind.name()),
        }
    }
}
