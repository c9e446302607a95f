//! Tests of the web console over HTTP: the page, the state, and the stream of events.
//! `cli/tests/console.rs` tests the page in a browser.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::common::{Shop, World, until};
use crate::pair::Pair;

const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

/// An open stream of events.
struct Events {
    reader: BufReader<TcpStream>,
    status: u16,
}

/// One event of a stream.
struct Event {
    name: String,
    id: String,
    data: Value,
}

impl Events {
    async fn open(address: SocketAddr, last: Option<&str>) -> Events {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let last = last.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
        let head = format!("GET /console/events HTTP/1.1\r\nhost: {address}\r\n{last}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).await.unwrap();
        }
        Events { reader, status }
    }

    /// Returns the next event. `None` at the end of the stream. Skips the lines that frame the
    /// chunks of the body.
    async fn next(&mut self) -> Option<Event> {
        let (mut name, mut id) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).await.unwrap_or(0) == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => name = text.to_owned(),
                Some(("id", text)) => id = text.to_owned(),
                Some(("data", text)) => {
                    let data = serde_json::from_str(text).unwrap();
                    return Some(Event { name, id, data });
                }
                _ => {}
            }
        }
    }

    /// Returns the next event for which `fits` returns `true`.
    async fn find(&mut self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let found = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            loop {
                let event = self.next().await.expect("the stream goes on");
                if fits(&event) {
                    return event;
                }
            }
        });
        found
            .await
            .unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }
}

fn node<'a>(state: &'a Value, name: &str) -> &'a Value {
    let nodes = state["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|node| node["name"] == name);
    found.unwrap_or(&Value::Null)
}

fn has_event(state: &Value, kind: &str, node: &str) -> bool {
    let mut events = state["events"].as_array().unwrap().iter();
    events.any(|event| event["kind"] == kind && event["node"] == node)
}

/// Returns the number of requests of a route, summed over all samples in a state of the console.
fn requests(state: &Value, route: &str) -> u64 {
    let samples = state["samples"].as_array().unwrap().iter();
    samples
        .filter_map(|sample| sample["routes"][route]["requests"].as_u64())
        .sum()
}

async fn state(shop: &Shop) -> Value {
    let reply = shop.get("/console/state").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["cache-control"], "no-store");
    reply.json()
}

#[tokio::test]
async fn a_browser_reaches_a_node_only_by_a_name_of_the_node() {
    let world = World::start().await;
    let shop = &world.shop;
    let (foreign, browser) = (("host", "evil.example:9090"), ("accept-language", "en"));
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/console/state"),
        ("GET", "/order/1"),
        ("POST", "/order/1/cancel"),
        ("GET", "/health/live"),
    ] {
        let reply = shop.send(method, path, &[HTML, foreign, browser], "").await;
        assert_eq!(reply.status, 403, "{method} {path}");
        assert_eq!(reply.json()["type"], "urn:imt-order:problem:foreign-host");
    }
    // A page loaded under the foreign name has the same origin as the requested address. So a check
    // of the header `Origin` alone would permit its request.
    let origin = ("origin", "http://evil.example:9090");
    let reply = shop.send("POST", "/order/1/cancel", &[foreign, origin], "").await;
    assert_eq!(reply.status, 403);
    let named = ("host", "localhost:9090");
    for headers in [&[foreign][..], &[browser], &[named, browser]] {
        let reply = shop.send("GET", "/console/state", headers, "").await;
        assert_eq!(reply.status, 200, "{headers:?}");
    }
}

#[tokio::test]
async fn only_browsers_get_the_page() {
    let world = World::start().await;
    let shop = &world.shop;
    let page = shop.send("GET", "/", &[HTML], "").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.body.starts_with(b"<!DOCTYPE html>"));
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    let tag = page.headers["etag"].to_str().unwrap();
    let known = shop.send("GET", "/", &[HTML, ("if-none-match", tag)], "").await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    let other = shop
        .send("GET", "/", &[HTML, ("if-none-match", "\"x\"")], "")
        .await;
    assert_eq!(other.status, 200);
    let head = shop.send("HEAD", "/", &[HTML], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(
        head.headers["content-length"],
        page.body.len().to_string().as_str()
    );
    let packed = shop
        .send("GET", "/", &[HTML, ("accept-encoding", "gzip")], "")
        .await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.body.len() * 2 < page.body.len());
    let before = shop.get("/no-such-path").await;
    for (method, accept) in [("GET", "*/*"), ("GET", "application/json"), ("POST", "text/html")] {
        let refused = shop.send(method, "/", &[("accept", accept)], "").await;
        assert_eq!(refused.status, 404, "{method} {accept}");
        assert_eq!(refused.body, before.body, "{method} {accept}");
    }
    world.node.stop().await.unwrap();
}

#[tokio::test]
async fn the_state_counts_orders_and_requests() {
    let world = World::start().await;
    let shop = &world.shop;
    shop.stocks("1,1,100\n", None).await;
    for id in ["a", "b", "c"] {
        assert_eq!(shop.order(id, &[(1, 1)]).await.status, 200);
    }
    assert_eq!(shop.order("d", &[(2, 1)]).await.status, 409);
    until("the requests to be in a second", async || {
        requests(&state(shop).await, "POST /order") == 4
    })
    .await;
    let state = state(shop).await;
    assert_eq!(state["node"], "test");
    assert_eq!(state["ring"]["runs"], serde_json::json!([[0, 16_384]]));
    assert_eq!(node(&state, "test")["status"], "serving");
    let figures = &state["volumes"][0]["figures"];
    let orders = figures["orders"].as_object().unwrap();
    let total: u64 = orders.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!((total, orders["rejected"].as_u64()), (4, Some(1)));
    assert_eq!(figures["warehouse_away"], false);
    let samples = state["samples"].as_array().unwrap().iter();
    let refused = samples.filter_map(|sample| sample["clients"]["refused"].as_u64());
    assert_eq!(refused.sum::<u64>(), 1);
    assert_eq!(shop.get("/console/state?x=1").await.status, 400);
    assert_eq!(shop.get("/console/nothing").await.status, 404);
    for path in ["/console/state", "/console/events"] {
        let refused = shop.send("POST", path, &[], "").await;
        assert_eq!(
            (refused.status, &refused.headers["allow"]),
            (405, &"GET, HEAD".parse().unwrap())
        );
    }
    world.node.stop().await.unwrap();
}

#[tokio::test]
async fn figures_are_for_nodes_with_the_secret_only() {
    let world = World::start().await;
    let refused = world.shop.send("POST", "/peer/console", &[], "{}").await;
    assert_eq!(refused.status, 403);
    world.node.stop().await.unwrap();
}

#[tokio::test]
async fn a_stream_sends_seconds_and_ends_with_the_node() {
    let world = World::start().await;
    let mut events = Events::open(world.node.address(), None).await;
    assert_eq!(events.status, 200);
    let first = events.next().await.unwrap();
    assert_eq!(
        (first.name.as_str(), first.data["ring"]["epoch"].as_u64()),
        ("state", Some(1))
    );
    world.shop.order("a", &[(1, 1)]).await;
    let counted = |event: &Event| requests(&event.data, "POST /order") == 1;
    let counting = events.find("the order to be counted", counted).await;
    assert!(counting.data.get("ring").is_none(), "the ring is sent once");
    // A stream that continues after a known id repeats only a few seconds, and sends the ring
    // again.
    let mut again = Events::open(world.node.address(), Some(&counting.id)).await;
    let continued = again.next().await.unwrap();
    assert!(continued.data["samples"].as_array().unwrap().len() <= 5);
    assert!(continued.data["ring"].is_object());
    let stopping = world.node.stop();
    let ending = async {
        for stream in [&mut events, &mut again] {
            stream.find("the end", |event| event.name == "end").await;
            assert!(stream.next().await.is_none());
        }
    };
    let (stopped, ()) = tokio::join!(stopping, ending);
    stopped.unwrap();
}

#[tokio::test]
async fn streams_are_bounded_and_a_closed_one_makes_room() {
    let world = World::start().await;
    let address = world.node.address();
    let mut open = Vec::new();
    loop {
        let events = Events::open(address, None).await;
        if events.status != 200 {
            assert_eq!(events.status, 503);
            break;
        }
        open.push(events);
    }
    assert_eq!(open.len(), 32);
    let refused = world.shop.get("/console/events").await;
    assert_eq!(
        (refused.status, refused.headers.contains_key("retry-after")),
        (503, true)
    );
    open.pop();
    until("a stream to be free", async || {
        Events::open(address, None).await.status == 200
    })
    .await;
    drop(open);
    world.node.stop().await.unwrap();
}

#[tokio::test]
async fn each_node_shows_all_nodes_and_names_a_silent_one() {
    let pair = Pair::start().await;
    pair.beta.stocks("1,1,100\n", None).await;
    for id in ["a", "b", "c", "d", "e"] {
        assert_eq!(pair.beta.order(id, &[(1, 1)]).await.status, 200);
    }
    // Each request is counted at the node that receives it, and every node shows all counts.
    until("alpha to show the requests to beta", async || {
        requests(&state(&pair.alpha).await, "POST /order") == 5
    })
    .await;
    let both = state(&pair.alpha).await;
    for name in ["alpha", "beta"] {
        assert_eq!(node(&both, name)["status"], "serving");
    }
    assert!(has_event(&both, "node-joined", "beta"));
    let volumes = both["volumes"].as_array().unwrap();
    let of = |volume: &Value| {
        let orders = volume["figures"]["orders"].as_object().unwrap();
        orders.values().map(|count| count.as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(volumes.iter().map(of).sum::<u64>(), 5);
    let paused = pair.beta_node.pause().await;
    until("beta to be shown as silent", async || {
        node(&state(&pair.alpha).await, "beta")["status"] == "silent"
    })
    .await;
    drop(paused);
    until("beta to be shown as serving", async || {
        node(&state(&pair.alpha).await, "beta")["status"] == "serving"
    })
    .await;
    pair.stop().await;
}
