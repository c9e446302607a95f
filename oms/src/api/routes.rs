//! The table of routes of the public API.
//!
//! Each request is matched with the table once, at the node where it arrives (`Target::of`).
//! Parsing, routing, metrics, the access log, probes and the API document all use the matching row.
//!
//! **Invariants**
//! - `ROUTES` is the only list of public paths, methods and query parameters.
//! - Metrics count requests by row, or in the time series `other`. So ids in paths create no new
//!   time series.
//! - Parsing the path that `Command::path` returns for a command gives an equal command.
//!
//! The console's page at `/` is not in the table, because it is not part of the API. Paths of calls
//! between nodes are in `cluster::peer_call`.

use std::sync::LazyLock;

use axum::http::{Method, Request, Uri};

use crate::api::console;
use crate::api::document::{self, Description};
use crate::api::params::{ListQuery, OrdersQuery};
use crate::api::problem::Problem;
use crate::api::request::{Command, List, NodeOperation, Operation, Parsed, VolumeOperation};
use crate::cluster::channel::message::Read;
use crate::cluster::peer_call::PeerCall;
use crate::domain::stock_snapshot::{PRODUCT_MAX, STORE_MAX};
use crate::runtime::metrics::RouteIndex;

/// Maximum number of segments of a path in the table.
pub(super) const SEGMENTS_MAX: usize = 4;

/// A row of the table of routes.
pub(crate) struct Route {
    method: Method,
    /// Segments of the path. A segment in braces is a path parameter.
    path: &'static [&'static str],
    /// The time series that counts the requests of this route.
    counted: Counted,
    handler: Handler,
    /// The description for the API document, including the query parameters.
    pub(super) about: &'static Description,
}

/// The time series that counts the requests of a route. Probes are also answered under overload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// Requests of the route are counted in a time series with the route's name.
    Itself,
    /// Requests of the route are counted in the time series `other`, which the totals of client
    /// requests exclude.
    Other,
    /// Requests of the route are counted in the time series `other`. They are answered even while
    /// too many requests are in progress, because probes matter most under overload.
    Probe,
}

/// The place where an operation is executed, and the parser of its values.
#[derive(Clone, Copy)]
enum Handler {
    /// Parses an operation that is executed at one volume. A stock upload is split: each volume
    /// executes the part with its stores.
    Volume(fn(&Parsed<'_>) -> Result<VolumeOperation, Problem>),
    /// Parses an operation that is executed at all volumes. Their responses are merged.
    List(fn(&Parsed<'_>) -> Result<List, Problem>),
    /// An operation that is executed at the node that receives the request.
    Node(NodeOperation),
}

const fn volume(
    method: Method,
    path: &'static [&'static str],
    parse: fn(&Parsed<'_>) -> Result<VolumeOperation, Problem>,
    about: &'static Description,
) -> Route {
    Route {
        method,
        path,
        counted: Counted::Itself,
        handler: Handler::Volume(parse),
        about,
    }
}

const fn list(
    path: &'static [&'static str],
    counted: Counted,
    parse: fn(&Parsed<'_>) -> Result<List, Problem>,
    about: &'static Description,
) -> Route {
    Route {
        method: Method::GET,
        path,
        counted,
        handler: Handler::List(parse),
        about,
    }
}

const fn node(
    path: &'static [&'static str],
    counted: Counted,
    operation: NodeOperation,
    about: &'static Description,
) -> Route {
    Route {
        method: Method::GET,
        path,
        counted,
        handler: Handler::Node(operation),
        about,
    }
}

const fn command(command: Command) -> VolumeOperation {
    VolumeOperation::Command(command)
}

const fn read(read: Read) -> VolumeOperation {
    VolumeOperation::Read(read)
}

/// All public routes. The table is searched from the start, so the most frequent routes come first.
static ROUTES: [Route; 23] = [
    volume(
        Method::POST,
        &["order"],
        |_| Ok(command(Command::Place)),
        &document::PLACE_ORDER,
    ),
    volume(
        Method::POST,
        &["order", "{id}", "payment-callback"],
        |path| Ok(command(Command::Pay(path.order(1)?))),
        &document::PAY_ORDER,
    ),
    volume(
        Method::GET,
        &["aggregate-stats", "{product}"],
        |path| {
            Ok(read(Read::ProductSales(path.number(
                1,
                "product",
                PRODUCT_MAX,
            )?)))
        },
        &document::PRODUCT_SALES,
    ),
    volume(
        Method::GET,
        &["order", "{id}"],
        |path| Ok(read(Read::Order(path.order(1)?))),
        &document::SHOW_ORDER,
    ),
    volume(
        Method::POST,
        &["order", "{id}", "cancel"],
        |path| Ok(command(Command::Cancel(path.order(1)?))),
        &document::CANCEL_ORDER,
    ),
    volume(
        Method::GET,
        &["order", "{id}", "history"],
        |path| Ok(read(Read::OrderHistory(path.order(1)?))),
        &document::ORDER_HISTORY,
    ),
    list(
        &["orders"],
        Counted::Itself,
        |path| Ok(List::Orders(OrdersQuery::parse(&path.values)?)),
        &document::LIST_ORDERS,
    ),
    volume(
        Method::PUT,
        &["stocks"],
        |_| Ok(VolumeOperation::ReplaceStock),
        &document::REPLACE_STOCK,
    ),
    volume(
        Method::PATCH,
        &["stocks"],
        |_| Ok(VolumeOperation::ChangeStock),
        &document::CHANGE_STOCK,
    ),
    list(
        &["stocks", "{product}"],
        Counted::Itself,
        |path| Ok(List::Product(path.number(1, "product", PRODUCT_MAX)?)),
        &document::PRODUCT_STOCK,
    ),
    volume(
        Method::GET,
        &["stores", "{store}"],
        |path| Ok(read(Read::StoreStock(path.number(1, "store", STORE_MAX)?))),
        &document::STORE_STOCK,
    ),
    volume(
        Method::GET,
        &["aggregate-stats"],
        |path| Ok(read(Read::TopSales(path.values.top()?))),
        &document::TOP_SALES,
    ),
    list(
        &["reservations"],
        Counted::Itself,
        |path| Ok(List::Reservations(ListQuery::by_order(&path.values)?)),
        &document::LIST_RESERVATIONS,
    ),
    list(
        &["outbox"],
        Counted::Itself,
        |path| Ok(List::Messages(ListQuery::by_message(&path.values)?)),
        &document::LIST_MESSAGES,
    ),
    volume(
        Method::POST,
        &["outbox", "{order}", "{kind}", "retry"],
        |path| {
            let kind = path.kind(2)?;
            Ok(command(Command::Retry(path.order(1)?, kind)))
        },
        &document::RETRY_MESSAGE,
    ),
    list(
        &["health"],
        Counted::Other,
        |_| Ok(List::Health),
        &document::HEALTH,
    ),
    node(
        &["health", "live"],
        Counted::Probe,
        NodeOperation::Live,
        &document::LIVE,
    ),
    node(
        &["health", "ready"],
        Counted::Probe,
        NodeOperation::Ready,
        &document::READY,
    ),
    node(
        &["metrics"],
        Counted::Probe,
        NodeOperation::Metrics,
        &document::METRICS,
    ),
    node(
        &["openapi.json"],
        Counted::Other,
        NodeOperation::OpenApi,
        &document::OPENAPI,
    ),
    node(&["ring"], Counted::Other, NodeOperation::Ring, &document::RING),
    node(
        &["console", "state"],
        Counted::Other,
        NodeOperation::ConsoleState,
        &document::CONSOLE_STATE,
    ),
    node(
        &["console", "events"],
        Counted::Other,
        NodeOperation::ConsoleEvents,
        &document::CONSOLE_EVENTS,
    ),
];

/// Names of the routes, such as `POST /order`, in the sequence of the table.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let name = |route: &Route| format!("{} {}", route.method, route.template());
    ROUTES.iter().map(name).collect()
});

/// Returns the names of all routes, in the sequence of the table.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(String::as_str)
}

/// Returns all routes.
pub(super) fn all() -> &'static [Route] {
    &ROUTES
}

impl Route {
    /// Returns the path with its parameters in braces, such as `/order/{id}`.
    pub(super) fn template(&self) -> String {
        format!("/{}", self.path.join("/"))
    }

    /// Returns the HTTP method of the route.
    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// Returns `true` if each request of the route concerns one volume. Then the response can name
    /// the node that serves the volume.
    pub(super) fn has_owner(&self) -> bool {
        // A stock upload concerns the volumes of all its stores.
        matches!(self.handler, Handler::Volume(_)) && self.path != ["stocks"]
    }

    /// Returns the names of the path parameters.
    pub(super) fn path_parameters(&self) -> impl Iterator<Item = &'static str> {
        let parameters = self.path.iter().filter_map(|segment| segment.strip_prefix('{'));
        parameters.filter_map(|segment| segment.strip_suffix('}'))
    }

    /// Returns `true` if a path, without its leading slash, matches the route. A segment for a path
    /// parameter must not be empty.
    fn fits(&self, path: &str) -> bool {
        let mut found = path.split('/');
        let fits_all = self.path.iter().all(|known| {
            found.next().is_some_and(|found| {
                if known.starts_with('{') {
                    !found.is_empty()
                } else {
                    *known == found
                }
            })
        });
        fits_all && found.next().is_none()
    }
}

/// The destination of a request, which depends on its method and path.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A route of the API, as an index into `ROUTES`.
    Route(usize),
    /// A call of another node or of a command of an operator, with a path under `/peer/`.
    Peer,
    /// The page of the web console at `/`.
    Page,
    /// No route matches. The problem is 404 or 405.
    Unknown(Problem),
}

impl Target {
    /// Returns the destination of a request. `HEAD` matches the routes of `GET`.
    pub(crate) fn of<B>(request: &Request<B>) -> Target {
        let (method, path) = (request.method(), request.uri().path());
        if PeerCall::is_path(path) {
            return Target::Peer;
        }
        let is_read = method == Method::GET || method == Method::HEAD;
        if path == "/" && is_read && console::is_page_wanted(request.headers()) {
            return Target::Page;
        }
        find(method, path).map_or_else(Target::Unknown, Target::Route)
    }

    /// Returns `true` if the request is answered even while too many requests are in progress.
    pub(crate) fn is_probe(&self) -> bool {
        matches!(self, Target::Route(at) if ROUTES[*at].counted == Counted::Probe)
    }

    /// Returns the index of the metric that counts the request.
    pub(crate) fn metric(&self) -> RouteIndex {
        match self {
            Target::Route(at) if ROUTES[*at].counted == Counted::Itself => RouteIndex::nth(*at),
            _ => RouteIndex::OTHER,
        }
    }

    /// Returns the name of the route, or a text for a request without a route, for the access log.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Target::Route(at) => &NAMES[*at],
            Target::Peer => "a call of another node",
            Target::Page => "GET /",
            Target::Unknown(_) => "an unknown path",
        }
    }
}

/// Parses the values of a request that matches the route at index `at` of the table.
pub(crate) fn parse(at: usize, uri: &Uri) -> Result<Operation, Problem> {
    let route = &ROUTES[at];
    let parsed = Parsed::of(route, uri)?;
    Ok(match route.handler {
        Handler::Volume(parse) => Operation::Volume(parse(&parsed)?),
        Handler::List(parse) => Operation::List(parse(&parsed)?),
        Handler::Node(operation) => Operation::Node(operation),
    })
}

/// Returns the index of the route that matches a method and a path. Fails with the problem 404, or
/// 405 if the path has only other methods. The path must not be percent-decoded yet.
fn find(method: &Method, path: &str) -> Result<usize, Problem> {
    let no_such_path = Problem::no_such_path;
    let path = path.strip_prefix('/').ok_or_else(no_such_path)?;
    let method = if *method == Method::HEAD {
        &Method::GET
    } else {
        method
    };
    let mut allowed = Vec::new();
    for (at, route) in ROUTES.iter().enumerate() {
        if !route.fits(path) {
            continue;
        }
        if route.method == *method {
            return Ok(at);
        }
        allowed.push(&route.method);
    }
    if allowed.is_empty() {
        return Err(no_such_path());
    }
    Err(Problem::method(&allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::order::OrderId;
    use crate::outbox::Kind;

    fn parsed(method: &Method, path: &str) -> Result<Operation, Problem> {
        let uri: Uri = path.parse().unwrap();
        parse(find(method, uri.path())?, &uri)
    }

    fn id(text: &str) -> OrderId {
        OrderId::parse(text).unwrap()
    }

    #[test]
    fn parse_decodes_path_and_query_values() {
        for (path, operation) in [
            ("/order/shop%3A1", read(Read::Order(id("shop:1")))),
            ("/order/shop:1", read(Read::Order(id("shop:1")))),
            ("/order/%61/history", read(Read::OrderHistory(id("a")))),
            ("/stores/%31", read(Read::StoreStock(1))),
            ("/aggregate-stats?top=%33", read(Read::TopSales(3))),
        ] {
            assert_eq!(
                parsed(&Method::GET, path),
                Ok(Operation::Volume(operation)),
                "{path}"
            );
        }
        let product = parsed(&Method::GET, "/stocks/%31%32");
        assert_eq!(product, Ok(Operation::List(List::Product(12))));
        let retry = parsed(&Method::POST, "/outbox/a%2Eb/%64eliver/retry");
        let expected = command(Command::Retry(id("a.b"), Kind::Deliver));
        assert_eq!(retry, Ok(Operation::Volume(expected)));
    }

    #[test]
    fn the_path_of_a_command_parses_to_the_same_command() {
        let order = || id("shop:1~2._-");
        for expected in [
            Command::Place,
            Command::Pay(order()),
            Command::Cancel(order()),
            Command::Retry(order(), Kind::Announce),
        ] {
            let path = expected.path();
            let found = parsed(&Method::POST, &path);
            assert_eq!(found, Ok(Operation::Volume(command(expected))), "{path}");
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
            let problem = serde_json::to_value(parsed(&method, path).unwrap_err()).unwrap();
            let found = (problem["status"].as_u64(), problem["field"].as_str());
            assert_eq!(found, (Some(status), field), "{method} {path}");
        }
        assert!(parsed(&Method::HEAD, "/orders?").is_ok());
    }

    #[test]
    fn an_unknown_path_names_the_api_document() {
        for path in ["/", "/docs", "//order/17", "/order/17/"] {
            let problem = parsed(&Method::GET, path).unwrap_err();
            assert!(problem.detail().contains("GET /openapi.json"), "{path}");
        }
        assert!(parsed(&Method::GET, "/openapi.json").is_ok());
    }

    #[test]
    fn requests_are_counted_by_route_for_every_id() {
        let name = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            let target = Target::of(&request);
            names()
                .enumerate()
                .find(|(at, _)| target.metric() == RouteIndex::nth(*at))
                .map(|(_, name)| name)
        };
        for (method, path, route) in [
            (Method::POST, "/order", Some("POST /order")),
            (
                Method::POST,
                "/order/17/payment-callback",
                Some("POST /order/{id}/payment-callback"),
            ),
            (Method::GET, "/order/18", Some("GET /order/{id}")),
            (Method::HEAD, "/order/18", Some("GET /order/{id}")),
            (Method::GET, "/stores/5", Some("GET /stores/{store}")),
            (Method::GET, "/etc/passwd", None),
            (Method::DELETE, "/order", None),
            (Method::GET, "/health", None),
            (Method::POST, "/peer/ping", None),
        ] {
            assert_eq!(name(method.clone(), path), route, "{method} {path}");
        }
    }

    #[test]
    fn probes_are_the_health_of_the_process_and_its_metrics() {
        let probes: Vec<String> = (0..ROUTES.len())
            .filter(|at| Target::Route(*at).is_probe())
            .map(|at| ROUTES[at].template())
            .collect();
        assert_eq!(probes, ["/health/live", "/health/ready", "/metrics"]);
    }
}
