//! Parses a public request into an operation with decoded parameters and checked query values.
//!
//! Every public request is parsed here first, at the node where it arrives and before its body is
//! read. The operation decides which volume answers, so a node routes by the same values that the
//! owner uses.
//!
//! **Invariants**
//! - `ROUTES` is the only table of public paths, methods and query parameters.
//! - An operation contains nothing of the client's headers. Calls between nodes are built from
//!   operations.
//! - Parsing the path of an operation gives the same operation.
//! - Faults are checked in one order: path, method, query names, path values, query values.

use std::borrow::Cow;

use axum::extract::Query;
use axum::http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::api::params::{ListQuery, OrdersQuery, Values};
use crate::api::problem::Problem;
use crate::domain::order::OrderId;
use crate::domain::routing_key::RoutingKey;
use crate::domain::stock_snapshot::{PRODUCT_MAX, STORE_MAX};
use crate::outbox::Kind;

/// Maximum number of segments of a public path.
const SEGMENTS_MAX: usize = 4;
/// Maximum number of characters of a client's text in an error.
const REPEATED_CHARS_MAX: usize = 60;

/// An operation that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A command to one order.
    Command(Command),
    /// Replace the whole stock.
    ReplaceStock,
    /// Replace some quantities of the stock.
    ChangeStock,
    /// The current state of an order.
    ShowOrder(OrderId),
    /// The events of an order.
    OrderHistory(OrderId),
    /// The stock of one store.
    StoreStock(u32),
    /// The sales of one product.
    ProductSales(u32),
    /// The products that sold best.
    TopSales(usize),
    /// An operation that concerns every volume.
    List(List),
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
    /// Data of the web console.
    Console(ConsoleView),
}

/// The data of the web console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleView {
    /// The state of the cluster as it is now.
    State,
    /// The state and its changes, as server-sent events.
    Events,
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

/// The names of the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    PlaceOrder,
    PayOrder,
    ProductSales,
    ShowOrder,
    CancelOrder,
    OrderHistory,
    ListOrders,
    ReplaceStock,
    ChangeStock,
    ProductStock,
    StoreStock,
    TopSales,
    ListReservations,
    ListMessages,
    RetryMessage,
    Health,
    Live,
    Ready,
    Metrics,
    OpenApi,
    Ring,
    ConsoleState,
    ConsoleEvents,
}

/// A row of the table of routes.
struct Route {
    name: Name,
    method: Method,
    /// Segments of the path. A segment in braces is a parameter.
    path: &'static [&'static str],
    /// Query parameters.
    query: &'static [&'static str],
}

const fn route(
    name: Name,
    method: Method,
    path: &'static [&'static str],
    query: &'static [&'static str],
) -> Route {
    Route {
        name,
        method,
        path,
        query,
    }
}

const PAGE: &[&str] = &["limit", "cursor"];

/// All public routes, the most used ones first, since they are searched in this order.
static ROUTES: [Route; 23] = [
    route(Name::PlaceOrder, Method::POST, &["order"], &[]),
    route(
        Name::PayOrder,
        Method::POST,
        &["order", "{id}", "payment-callback"],
        &[],
    ),
    route(
        Name::ProductSales,
        Method::GET,
        &["aggregate-stats", "{product}"],
        &[],
    ),
    route(Name::ShowOrder, Method::GET, &["order", "{id}"], &[]),
    route(Name::CancelOrder, Method::POST, &["order", "{id}", "cancel"], &[]),
    route(
        Name::OrderHistory,
        Method::GET,
        &["order", "{id}", "history"],
        &[],
    ),
    route(
        Name::ListOrders,
        Method::GET,
        &["orders"],
        &["state", "store", "since", "limit", "cursor"],
    ),
    route(Name::ReplaceStock, Method::PUT, &["stocks"], &[]),
    route(Name::ChangeStock, Method::PATCH, &["stocks"], &[]),
    route(Name::ProductStock, Method::GET, &["stocks", "{product}"], &[]),
    route(Name::StoreStock, Method::GET, &["stores", "{store}"], &[]),
    route(Name::TopSales, Method::GET, &["aggregate-stats"], &["top"]),
    route(Name::ListReservations, Method::GET, &["reservations"], PAGE),
    route(Name::ListMessages, Method::GET, &["outbox"], PAGE),
    route(
        Name::RetryMessage,
        Method::POST,
        &["outbox", "{order}", "{kind}", "retry"],
        &[],
    ),
    route(Name::Health, Method::GET, &["health"], &[]),
    route(Name::Live, Method::GET, &["health", "live"], &[]),
    route(Name::Ready, Method::GET, &["health", "ready"], &[]),
    route(Name::Metrics, Method::GET, &["metrics"], &[]),
    route(Name::OpenApi, Method::GET, &["openapi.json"], &[]),
    route(Name::Ring, Method::GET, &["ring"], &[]),
    route(Name::ConsoleState, Method::GET, &["console", "state"], &[]),
    route(Name::ConsoleEvents, Method::GET, &["console", "events"], &[]),
];

impl Route {
    fn matches(&self, segments: &[&str]) -> bool {
        let fits = |(known, found): (&&str, &&str)| {
            if known.starts_with('{') {
                !found.is_empty()
            } else {
                known == found
            }
        };
        self.path.len() == segments.len() && self.path.iter().zip(segments).all(fits)
    }

    /// Finds the route of a method and an undecoded path. `HEAD` finds the route of `GET`.
    fn find<'a>(
        method: &Method,
        path: &'a str,
    ) -> Result<(&'static Route, [&'a str; SEGMENTS_MAX]), Problem> {
        let mut segments = [""; SEGMENTS_MAX];
        let mut count = 0;
        for segment in path.strip_prefix('/').ok_or_else(no_such_path)?.split('/') {
            *segments.get_mut(count).ok_or_else(no_such_path)? = segment;
            count += 1;
        }
        let method = if *method == Method::HEAD {
            &Method::GET
        } else {
            method
        };
        let mut allowed = Vec::new();
        for route in &ROUTES {
            if !route.matches(&segments[..count]) {
                continue;
            }
            if route.method == *method {
                return Ok((route, segments));
            }
            allowed.push(&route.method);
        }
        if allowed.is_empty() {
            return Err(no_such_path());
        }
        Err(Problem::method(&allowed))
    }

    /// Returns the values of the query. Rejects a parameter that is unknown or appears twice.
    fn values(&self, uri: &Uri) -> Result<Values, Problem> {
        if uri.query().is_none_or(str::is_empty) {
            return Ok(Values::default());
        }
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
        let Query(pairs) = pairs.map_err(|fault| Problem::field("query", fault.body_text()))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !self.query.contains(&name.as_str()) {
                let detail = if self.query.is_empty() {
                    "this path takes no query parameter".to_owned()
                } else {
                    format!(
                        "unknown query parameter; this path takes {}",
                        self.query.join(", ")
                    )
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
}

fn no_such_path() -> Problem {
    Problem::not_found("there is no such path")
}

/// Decodes a segment of a path.
fn decode(segment: &str) -> Result<Cow<'_, str>, Problem> {
    let decoded = percent_decode_str(segment).decode_utf8();
    decoded.map_err(|_| Problem::field("path", "a segment of the path is not UTF-8 when decoded"))
}

/// Parses an order id from a path or body.
pub(super) fn parse_id(text: &str) -> Result<OrderId, Problem> {
    OrderId::parse(text).map_err(|reason| Problem::field("id", format!("the order id {reason}")))
}

/// Parses a whole number of a path, 1 to `largest`.
fn parse_number(field: &str, text: &str, largest: u32) -> Result<u32, Problem> {
    let number = text.parse().ok().filter(|number| (1..=largest).contains(number));
    number.ok_or_else(|| Problem::field(field, format!("a {field} id is 1 to {largest}")))
}

/// Parses the name of a kind of message.
pub(super) fn parse_kind(text: &str) -> Result<Kind, Problem> {
    Kind::from_name(text).ok_or_else(|| Problem::field("kind", "must be announce or deliver"))
}

impl Operation {
    /// Parses the method, path and query of a request.
    pub(crate) fn parse(method: &Method, uri: &Uri) -> Result<Operation, Problem> {
        let (route, segments) = Route::find(method, uri.path())?;
        let values = route.values(uri)?;
        let text = |at: usize| decode(segments[at]);
        let order = |at: usize| parse_id(&text(at)?);
        let product = || parse_number("product", &text(1)?, PRODUCT_MAX);
        Ok(match route.name {
            Name::PlaceOrder => Operation::Command(Command::Place),
            Name::PayOrder => Operation::Command(Command::Pay(order(1)?)),
            Name::CancelOrder => Operation::Command(Command::Cancel(order(1)?)),
            Name::RetryMessage => {
                let kind = parse_kind(&text(2)?)?;
                Operation::Command(Command::Retry(order(1)?, kind))
            }
            Name::ReplaceStock => Operation::ReplaceStock,
            Name::ChangeStock => Operation::ChangeStock,
            Name::ShowOrder => Operation::ShowOrder(order(1)?),
            Name::OrderHistory => Operation::OrderHistory(order(1)?),
            Name::StoreStock => Operation::StoreStock(parse_number("store", &text(1)?, STORE_MAX)?),
            Name::ProductSales => Operation::ProductSales(product()?),
            Name::TopSales => Operation::TopSales(values.top()?),
            Name::ListOrders => Operation::List(List::Orders(OrdersQuery::parse(&values)?)),
            Name::ListReservations => Operation::List(List::Reservations(ListQuery::by_order(&values)?)),
            Name::ListMessages => Operation::List(List::Messages(ListQuery::by_message(&values)?)),
            Name::ProductStock => Operation::List(List::Product(product()?)),
            Name::Health => Operation::List(List::Health),
            Name::Live => Operation::Live,
            Name::Ready => Operation::Ready,
            Name::Metrics => Operation::Metrics,
            Name::OpenApi => Operation::OpenApi,
            Name::Ring => Operation::Ring,
            Name::ConsoleState => Operation::Console(ConsoleView::State),
            Name::ConsoleEvents => Operation::Console(ConsoleView::Events),
        })
    }

    /// Returns `true` if the request must be answered even when too many requests are in progress.
    pub(crate) fn is_probe(method: &Method, path: &str) -> bool {
        let found = Route::find(method, path);
        found.is_ok_and(|(route, _)| matches!(route.name, Name::Live | Name::Ready | Name::Metrics))
    }

    /// Returns `true` if the volume of a cluster with one volume executes the operation itself.
    pub(crate) fn is_of_one_volume(&self) -> bool {
        let is_stock = matches!(self, Operation::ReplaceStock | Operation::ChangeStock);
        is_stock || matches!(self, Operation::Command(_)) || self.is_forwarded()
    }

    fn is_forwarded(&self) -> bool {
        matches!(
            self,
            Operation::ShowOrder(_)
                | Operation::OrderHistory(_)
                | Operation::StoreStock(_)
                | Operation::ProductSales(_)
                | Operation::TopSales(_)
        )
    }

    /// Returns the key that decides which volume answers, and the path of the call between nodes.
    /// `None` if the operation is not forwarded unchanged.
    pub(crate) fn forwarded(&self) -> Option<(RoutingKey, String)> {
        Some(match self {
            Operation::ShowOrder(id) => (RoutingKey::Order(id.clone()), format!("/order/{id}")),
            Operation::OrderHistory(id) => (RoutingKey::Order(id.clone()), format!("/order/{id}/history")),
            Operation::StoreStock(store) => (RoutingKey::Store(*store), format!("/stores/{store}")),
            Operation::ProductSales(product) => {
                (RoutingKey::Statistics, format!("/aggregate-stats/{product}"))
            }
            Operation::TopSales(top) => (RoutingKey::Statistics, format!("/aggregate-stats?top={top}")),
            _ => return None,
        })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn parse(method: Method, path: &str) -> Result<Operation, Problem> {
        Operation::parse(&method, &path.parse().unwrap())
    }

    fn id(text: &str) -> OrderId {
        OrderId::parse(text).unwrap()
    }

    #[test]
    fn parse_decodes_path_and_query_values() {
        for (path, operation) in [
            ("/order/shop%3A1", Operation::ShowOrder(id("shop:1"))),
            ("/order/shop:1", Operation::ShowOrder(id("shop:1"))),
            ("/order/%61/history", Operation::OrderHistory(id("a"))),
            ("/stores/%31", Operation::StoreStock(1)),
            ("/stocks/%31%32", Operation::List(List::Product(12))),
            ("/aggregate-stats?top=%33", Operation::TopSales(3)),
        ] {
            assert_eq!(parse(Method::GET, path), Ok(operation), "{path}");
        }
        let retry = parse(Method::POST, "/outbox/a%2Eb/%64eliver/retry");
        let expected = Command::Retry(id("a.b"), Kind::Deliver);
        assert_eq!(retry, Ok(Operation::Command(expected)));
    }

    #[test]
    fn the_path_of_an_operation_parses_to_the_same_operation() {
        let order = || id("shop:1~2._-");
        for operation in [
            Operation::ShowOrder(order()),
            Operation::OrderHistory(order()),
            Operation::StoreStock(7),
            Operation::ProductSales(8),
            Operation::TopSales(9),
        ] {
            let (_, path) = operation.forwarded().unwrap();
            assert_eq!(parse(Method::GET, &path), Ok(operation), "{path}");
        }
        for command in [
            Command::Place,
            Command::Pay(order()),
            Command::Cancel(order()),
            Command::Retry(order(), Kind::Announce),
        ] {
            let path = command.path();
            assert_eq!(
                parse(Method::POST, &path),
                Ok(Operation::Command(command)),
                "{path}"
            );
        }
    }

    #[test]
    fn parse_rejects_unknown_paths_methods_and_parameters() {
        for (method, path, status, field) in [
            (Method::GET, "/", 404, None),
            (Method::GET, "//order/17", 404, None),
            (Method::GET, "/order/", 404, None),
            (Method::GET, "/order/17/", 404, None),
            (Method::GET, "/%6frder/17", 404, None),
            (Method::GET, "/order/a/b/c/d/e", 404, None),
            (Method::GET, "/order", 405, None),
            (Method::HEAD, "/order", 405, None),
            (Method::OPTIONS, "/orders", 405, None),
            (Method::GET, "/order/%ff", 400, Some("path")),
            (Method::GET, "/order/%2e%2e", 400, Some("id")),
            (Method::GET, "/stores/0", 400, Some("store")),
            (Method::GET, "/orders?status=paid", 400, Some("status")),
            (Method::GET, "/orders?limit=1&limit=2", 400, Some("limit")),
            (Method::GET, "/orders?cursor=b~%20", 400, Some("cursor")),
            (Method::GET, "/order/17?x", 400, Some("x")),
            (Method::POST, "/order?id=17", 400, Some("id")),
        ] {
            let problem = serde_json::to_value(parse(method.clone(), path).unwrap_err()).unwrap();
            let found = (problem["status"].as_u64(), problem["field"].as_str());
            assert_eq!(found, (Some(status), field), "{method} {path}");
        }
        assert!(parse(Method::HEAD, "/orders?").is_ok());
    }

    #[test]
    fn the_openapi_document_lists_exactly_the_routes_and_query_parameters_of_the_table() {
        let document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let named = |place: &str| -> Vec<String> {
                    let all = operation["parameters"].as_array().into_iter().flatten();
                    all.filter(|parameter| parameter["in"] == place)
                        .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
                        .collect()
                };
                let in_path: Vec<&str> = path
                    .split('/')
                    .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                    .collect();
                assert_eq!(named("path"), in_path, "{method} {path}");
                documented.insert((method.to_uppercase(), path.clone(), named("query")));
            }
        }
        let known = ROUTES.iter().map(|route| {
            let path = format!("/{}", route.path.join("/"));
            let query = route.query.iter().map(|name| (*name).to_owned()).collect();
            (route.method.to_string(), path, query)
        });
        assert_eq!(documented, known.collect());
    }
}
