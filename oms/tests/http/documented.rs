//! The headers of responses, compared with the API document.
//!
//! The client of all tests (`Shop`) passes each of its responses to `check`. A test of this module
//! shows that every documented header occurs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{World, order_body};
use crate::pair::{Pair, stock};

/// Headers of HTTP itself, which an API document does not list.
const OF_HTTP: [&str; 5] = [
    "connection",
    "content-length",
    "content-type",
    "date",
    "transfer-encoding",
];

/// Statuses with which hyper answers before a request reaches a route.
const OF_HYPER: [u16; 2] = [414, 431];

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_slice(&imt_oms::api_document()).unwrap());

/// Returns the names of the headers that the API document lists for a response, in lower case.
/// `None` if the document has no such path or method, or if hyper answers with this status.
///
/// # Panics
/// If the document lists no such status for the route.
fn documented(method: &str, path: &str, status: u16) -> Option<BTreeSet<String>> {
    let path = path.split('?').next().unwrap();
    let method = method.to_lowercase().replace("head", "get");
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let fits = |template: &str| {
        let (known, found): (Vec<&str>, Vec<&str>) =
            (template.split('/').collect(), path.split('/').collect());
        known.len() == found.len()
            && known
                .iter()
                .zip(&found)
                .all(|(known, found)| known == found || (known.starts_with('{') && !found.is_empty()))
    };
    let exact = paths.get(path);
    let operations = exact.or_else(|| paths.iter().find(|(template, _)| fits(template)).map(|(_, o)| o))?;
    let operation = operations.get(&method).filter(|_| !OF_HYPER.contains(&status))?;
    let response = &operation["responses"][status.to_string()];
    assert!(response.is_object(), "{method} {path} documents no {status}");
    let headers = response["headers"].as_object().unwrap().keys();
    Some(headers.map(|name| name.to_lowercase()).collect())
}

/// Checks that the API document lists every header of a response.
pub(crate) fn check(method: &str, path: &str, status: u16, headers: &HeaderMap) {
    let Some(documented) = documented(method, path, status) else {
        return;
    };
    for name in headers.keys().map(HeaderName::as_str) {
        // The headers of CORS belong to the Fetch standard. The introduction of the document names
        // these headers.
        let is_known =
            OF_HTTP.contains(&name) || name.starts_with("access-control-") || documented.contains(name);
        assert!(
            is_known,
            "{method} {path}: {status} with the header {name}, which is not documented"
        );
    }
}

#[tokio::test]
async fn every_documented_header_occurs() {
    let pair = Pair::start().await;
    let shop = &pair.alpha;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut note = |headers: &HeaderMap| seen.extend(headers.keys().map(|name| name.as_str().to_owned()));
    note(&shop.stocks(&stock(100), None).await.headers);
    note(&shop.order("h-1", &[(1, 1)]).await.headers);
    note(&shop.order("h-1", &[(1, 1)]).await.headers);
    let coded = [("content-encoding", "br")];
    let refused = shop
        .send("POST", "/order", &coded, order_body("h-2", &[(1, 1)]))
        .await;
    assert_eq!(refused.status, 415);
    note(&refused.headers);
    note(&shop.get("/ring").await.headers);
    let packs = [("accept-encoding", "gzip")];
    note(&shop.send("GET", "/openapi.json", &packs, "").await.headers);
    pair.stop().await;
    let world = World::start().await;
    // The console serves a limited number of streams, and answers one more with 503.
    let mut open = Vec::new();
    while open.last().is_none_or(|last: &Opened| last.status == 200) {
        let opened = Opened::begin(world.node.address(), "/console/events").await;
        check("GET", "/console/events", opened.status, &opened.headers);
        note(&opened.headers);
        open.push(opened);
    }
    world.node.stop().await.unwrap();
    let documented = DOCUMENT["components"]["headers"].as_object().unwrap().keys();
    for name in documented {
        assert!(
            seen.contains(&name.to_lowercase()),
            "{name} was never seen: {seen:?}"
        );
    }
}

/// A response with an unread body. Dropping this value closes the connection.
struct Opened {
    status: u16,
    headers: HeaderMap,
    _stream: TcpStream,
}

impl Opened {
    async fn begin(address: SocketAddr, path: &str) -> Opened {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let header = |(name, value): (&str, &str)| -> (HeaderName, HeaderValue) {
            (name.parse().unwrap(), value.parse().unwrap())
        };
        Opened {
            status,
            headers: lines.map(header).collect(),
            _stream: stream,
        }
    }
}
