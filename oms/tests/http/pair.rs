//! Tests of two nodes on one data folder, from the view of clients.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;

use imt_oms::{Node, NodeConfig};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::common::{Mood, Shop, Warehouse, config, order_body, until};

/// A node on a separate thread, which can be paused like a process under SIGSTOP. The socket of a
/// paused node accepts connections, but no request is answered.
pub(crate) struct Pausable {
    pub address: SocketAddr,
    pauses: mpsc::UnboundedSender<Pause>,
    thread: Option<JoinHandle<()>>,
}

/// A request to pause a node. The node sends a message on `begun`, and then blocks until the sender
/// of `end` is dropped.
struct Pause {
    begun: std_mpsc::Sender<()>,
    end: std_mpsc::Receiver<()>,
}

/// A paused node. Dropping this value resumes the node.
pub(crate) struct Paused {
    _resume: std_mpsc::Sender<()>,
}

impl Pausable {
    pub(crate) fn start(config: NodeConfig) -> Pausable {
        let (pauses, mut pauses_received) = mpsc::unbounded_channel::<Pause>();
        let (ready, address) = std_mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let node = Node::start(config).await.unwrap();
                ready.send(node.address()).unwrap();
                while let Some(pause) = pauses_received.recv().await {
                    pause.begun.send(()).unwrap();
                    // Blocks the only worker thread of the node's runtime until the sender is
                    // dropped.
                    let _ = pause.end.recv();
                }
                node.stop().await.unwrap();
            });
        });
        Pausable {
            address: address.recv().unwrap(),
            pauses,
            thread: Some(thread),
        }
    }

    pub(crate) async fn pause(&self) -> Paused {
        let (begun, has_begun) = std_mpsc::channel();
        let (_resume, end) = std_mpsc::channel();
        assert!(self.pauses.send(Pause { begun, end }).is_ok());
        let waited = tokio::task::spawn_blocking(move || has_begun.recv());
        waited.await.unwrap().unwrap();
        Paused { _resume }
    }

    /// Stops the node for good.
    pub(crate) async fn stop(mut self) {
        drop(self.pauses);
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(|| thread.join())
            .await
            .unwrap()
            .unwrap();
    }
}

/// Two nodes on one data folder.
pub(crate) struct Pair {
    pub alpha: Shop,
    pub beta: Shop,
    pub beta_node: Pausable,
    pub warehouse: Warehouse,
    alpha_node: Node,
    _data: tempfile::TempDir,
}

pub(crate) fn named(name: &str, data: &Path, warehouse: &Warehouse) -> NodeConfig {
    let usual = config(data, &warehouse.url());
    NodeConfig {
        name: name.to_owned(),
        // An order that takes borrowed units lowers the available quantities of its store with a
        // delay, and tests compare these quantities with those of a single node.
        allotments: false,
        outbox: imt_oms::OutboxLimits {
            // A failed message is not retried within a test.
            backoff_first_ms: 3_600_000,
            backoff_max_ms: 3_600_000,
            ..usual.outbox
        },
        ..usual
    }
}

impl Pair {
    pub(crate) async fn start() -> Pair {
        Pair::start_with(|_| ()).await
    }

    /// Starts two nodes after `change` has changed the configuration of each.
    pub(crate) async fn start_with(change: impl Fn(&mut NodeConfig)) -> Pair {
        let data = tempfile::tempdir().unwrap();
        let warehouse = Warehouse::start().await;
        let of_node = |name| {
            let mut config = named(name, data.path(), &warehouse);
            change(&mut config);
            config
        };
        let alpha_node = Node::start(of_node("alpha")).await.unwrap();
        let beta_config = of_node("beta");
        let started = tokio::task::spawn_blocking(|| Pausable::start(beta_config));
        let beta_node = started.await.unwrap();
        let alpha = Shop::at(alpha_node.address());
        let beta = Shop::at(beta_node.address);
        for shop in [&alpha, &beta] {
            until("both nodes to have their share", async || {
                let members = shop.get("/health").await.json()["ring"]["members"].clone();
                members.as_object().is_some_and(|members| members.len() == 2)
            })
            .await;
        }
        Pair {
            alpha,
            beta,
            beta_node,
            warehouse,
            alpha_node,
            _data: data,
        }
    }

    pub(crate) fn shops(&self) -> [&Shop; 2] {
        [&self.alpha, &self.beta]
    }

    pub(crate) async fn stop(self) {
        self.beta_node.stop().await;
        self.alpha_node.stop().await.unwrap();
    }
}

/// Returns a stock snapshot: `quantity` units of each of the products 1 and 2 in each of the stores
/// 1 to 40. Each node owns some of these stores.
pub(crate) fn stock(quantity: u32) -> String {
    (1..=40)
        .map(|store| format!("1,{store},{quantity}\n2,{store},{quantity}\n"))
        .collect()
}

async fn on_hand(shop: &Shop) -> Vec<(u64, u64)> {
    let stores = shop.get("/stocks/1").await.json()["stores"].clone();
    let quantity = |store: &Value| {
        (
            store["store_id"].as_u64().unwrap(),
            store["on_hand"].as_u64().unwrap(),
        )
    };
    stores.as_array().unwrap().iter().map(quantity).collect()
}

fn stores(list: &Value) -> Vec<u64> {
    let list = list
        .as_array()
        .unwrap_or_else(|| panic!("no list of stores: {list}"));
    list.iter().map(|store| store.as_u64().unwrap()).collect()
}

#[tokio::test]
async fn lists_of_a_pair_accept_the_methods_and_headers_that_a_single_node_accepts() {
    let pair = Pair::start().await;
    pair.alpha.stocks(&stock(100), None).await;
    for number in 0..30 {
        let id = format!("list-{number}");
        assert_eq!(pair.alpha.order(&id, &[(1, 1)]).await.status, 200);
    }
    for shop in pair.shops() {
        for path in ["/orders", "/reservations", "/outbox", "/health", "/stocks/1"] {
            let plain = shop.get(path).await;
            assert_eq!(plain.status, 200, "{path}");
            for (name, value) in [
                ("accept-encoding", "gzip"),
                ("accept", "text/html"),
                ("if-none-match", "*"),
                ("range", "bytes=0-1"),
                ("expect", "100-continue"),
                ("content-encoding", "br"),
                ("te", "trailers"),
                ("x-large", &"x".repeat(20_000)),
            ] {
                let reply = shop.send("GET", path, &[(name, value)], "").await;
                assert_eq!(reply.status, 200, "{path} with {name}");
                let is_packed = reply.headers.contains_key("content-encoding");
                assert!(!is_packed || name == "accept-encoding", "{path} with {name}");
            }
            let head = shop.send("HEAD", path, &[], "").await;
            assert_eq!((head.status, head.body.len()), (200, 0), "HEAD {path}");
            assert_eq!(head.headers["content-type"], plain.headers["content-type"]);
        }
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_request_with_an_encoded_path_or_a_large_head_is_routed_to_its_order() {
    let pair = Pair::start().await;
    // No message to the warehouse succeeds, so only clients change orders.
    pair.warehouse.mood.send(Mood::TimesOut).unwrap();
    pair.alpha.stocks(&stock(100), None).await;
    let large = [("x-large", &*"x".repeat(20_000))];
    for number in 0..12 {
        let id = format!("shop:{number}");
        assert_eq!(pair.beta.order(&id, &[(1, 1)]).await.status, 200);
        let encoded = format!("/order/shop%3A{number}");
        for shop in pair.shops() {
            let plain = shop.get(&format!("/order/{id}")).await;
            assert_eq!(plain.status, 200, "{id}");
            assert_eq!(shop.get(&encoded).await.body, plain.body, "{encoded}");
            let history = shop.get(&format!("{encoded}/history")).await;
            assert_eq!(history.status, 200, "{encoded}/history");
            let reply = shop.send("GET", &encoded, &large, "").await;
            assert_eq!(reply.status, 200, "{encoded} with a large head");
            let paid = shop.pay(&format!("shop%3A{number}"), 7).await;
            assert_eq!(paid.status, 200, "{encoded}");
        }
    }
    for shop in pair.shops() {
        for store in 1..=9 {
            let path = format!("/stores/%3{store}");
            assert_eq!(shop.get(&path).await.status, 200, "{path}");
        }
        let cursor = shop.get("/orders?cursor=b~%20").await;
        assert_eq!((cursor.status, &cursor.json()["field"]), (400, &json!("cursor")));
    }
    pair.stop().await;
}

#[tokio::test]
async fn orders_of_two_nodes_are_listed_in_order_of_arrival() {
    let pair = Pair::start().await;
    pair.alpha.stocks(&stock(100), None).await;
    let mut placed = Vec::new();
    for number in 0..30 {
        let id = format!("arrival-{}", (number * 7) % 30);
        let reply = pair.shops()[number % 2].order(&id, &[(1, 1)]).await;
        assert_eq!(reply.status, 200);
        let created = reply.json()["created_at_ms"].as_u64().unwrap();
        crate::alike::later_than(created).await;
        placed.push(id);
    }
    for shop in pair.shops() {
        let mut listed = Vec::new();
        let mut path = "/orders?limit=4".to_owned();
        loop {
            let page = shop.get(&path).await.json();
            let orders = page["orders"].as_array().unwrap().iter();
            listed.extend(orders.map(|order| order["id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => path = format!("/orders?limit=4&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(listed, placed);
    }
    pair.stop().await;
}

#[tokio::test]
async fn internal_headers_in_client_requests_are_ignored() {
    let pair = Pair::start().await;
    pair.alpha.stocks(&stock(100), None).await;
    let before = on_hand(&pair.alpha).await;
    for shop in pair.shops() {
        for headers in [
            &[("x-imt-part", "1")][..],
            &[
                ("x-imt-part", "1"),
                ("x-imt-epoch", "2"),
                ("x-imt-arrival", "1.0"),
            ],
            &[("x-imt-deadline-ms", "0")],
            &[("x-imt-secret", "guessed")],
        ] {
            let empty = shop.send("PUT", "/stocks", headers, "").await;
            assert_eq!(empty.status, 400, "{headers:?}: {:?}", empty.body);
            assert_eq!(on_hand(shop).await, before, "{headers:?}");
            let order = shop.send("GET", "/orders", headers, "").await;
            assert_eq!(order.status, 200, "{headers:?}");
        }
        for path in [
            "/peer/stop",
            "/peer/volume/alpha/stock?is_whole=true&epoch=2",
            "/peer/volume/alpha/read",
        ] {
            let reply = shop.send("POST", path, &[("x-imt-secret", "guessed")], "").await;
            assert_eq!(reply.status, 403, "{path}");
        }
    }
    assert_eq!(on_hand(&pair.beta).await, before);
    pair.stop().await;
}

#[tokio::test]
async fn stock_is_rejected_as_a_whole_while_a_node_does_not_answer() {
    let pair = Pair::start().await;
    assert_eq!(pair.alpha.stocks(&stock(5), Some(1)).await.status, 200);
    let before = on_hand(&pair.alpha).await;
    assert_eq!(before.len(), 40);
    let paused = pair.beta_node.pause().await;
    let put = pair.alpha.stocks(&stock(6), Some(2)).await;
    assert_eq!(put.status, 503, "{:?}", put.body);
    assert!(put.headers.contains_key("retry-after"));
    let patch = pair.alpha.send("PATCH", "/stocks", &[], stock(7)).await;
    assert_eq!(patch.status, 503, "{:?}", patch.body);
    for reply in [put, patch] {
        assert!(reply.json().get("applied").is_none(), "{:?}", reply.body);
    }
    drop(paused);
    until("the node to answer again", async || {
        pair.alpha.get("/stocks/1").await.status == 200
    })
    .await;
    assert_eq!(on_hand(&pair.alpha).await, before, "nothing was applied");
    assert_eq!(pair.alpha.stocks(&stock(6), Some(2)).await.status, 200);
    assert!(
        on_hand(&pair.beta)
            .await
            .iter()
            .all(|(_, quantity)| *quantity == 6)
    );
    pair.stop().await;
}

#[tokio::test]
async fn stock_applied_in_part_is_answered_with_the_changed_stores() {
    let pair = Pair::start().await;
    assert_eq!(pair.alpha.stocks(&stock(5), Some(1)).await.status, 200);
    // Alpha requests the body once both nodes have agreed to take the stock. Beta is paused before
    // the body is sent.
    let upload = pair.alpha.begin_stocks().await;
    let paused = pair.beta_node.pause().await;
    let reply = upload.finish(&stock(6)).await;
    assert_eq!(reply.status, 503, "{:?}", reply.body);
    let problem = reply.json();
    let (applied, failed) = (stores(&problem["applied"]), stores(&problem["failed"]));
    assert!(problem["type"].as_str().unwrap().ends_with("partly-applied"));
    assert!(!applied.is_empty() && !failed.is_empty(), "{problem}");
    let mut all = [applied.clone(), failed].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=40).collect::<Vec<u64>>());
    drop(paused);
    until("the node to answer again", async || {
        pair.alpha.get("/stocks/1").await.status == 200
    })
    .await;
    for (store, quantity) in on_hand(&pair.alpha).await {
        if applied.contains(&store) {
            assert_eq!(quantity, 6, "store {store} was applied");
        }
    }
    pair.stop().await;
}

#[tokio::test]
async fn only_one_request_waits_for_a_node_that_does_not_answer() {
    let pair = Pair::start().await;
    pair.alpha.stocks(&stock(100), None).await;
    let mut ids = Vec::new();
    for number in 0..12 {
        let id = format!("away-{number}");
        assert_eq!(pair.alpha.order(&id, &[(1, 1)]).await.status, 200);
        ids.push(id);
    }
    let paused = pair.beta_node.pause().await;
    let mut calls = 0;
    let mut reasons = Vec::new();
    for id in ids.iter().cycle().take(60) {
        let reply = pair.alpha.get(&format!("/order/{id}")).await;
        if reply.status == 200 {
            continue;
        }
        assert_eq!(reply.status, 503, "{:?}", reply.body);
        assert_eq!(reply.headers["retry-after"], "1");
        calls += 1;
        reasons.push(reply.json()["detail"].as_str().unwrap().to_owned());
    }
    let waited = reasons
        .iter()
        .filter(|reason| reason.contains("no answer within"));
    let waited = waited.count();
    assert!(calls > 20, "{calls}: the paused node owns some of the orders");
    assert_eq!(waited, 1, "one request waits, and the others get its result");
    drop(paused);
    for id in &ids {
        until("the order to be answered again", async || {
            pair.alpha.get(&format!("/order/{id}")).await.status == 200
        })
        .await;
    }
    pair.stop().await;
}

#[tokio::test]
async fn the_stored_answer_of_a_key_is_returned_through_the_other_node() {
    let pair = Pair::start().await;
    pair.warehouse.mood.send(Mood::TimesOut).unwrap();
    pair.alpha.stocks(&stock(100), None).await;
    for number in 0..8 {
        let id = format!("key:{number}");
        let key = format!("key-{number}");
        let headers = [("idempotency-key", key.as_str())];
        let body = order_body(&id, &[(1, 1)]);
        let first = pair.alpha.send("POST", "/order", &headers, body.clone()).await;
        assert_eq!(first.status, 200);
        let again = pair.beta.send("POST", "/order", &headers, body).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
        assert_eq!(again.headers["idempotent-replayed"], "true");
        let key = format!("cancel-{number}");
        let cancel = [("idempotency-key", key.as_str())];
        let path = format!("/order/key%3A{number}/cancel");
        let first = pair.beta.send("POST", &path, &cancel, "").await;
        let again = pair
            .alpha
            .send("POST", &format!("/order/{id}/cancel"), &cancel, "")
            .await;
        assert_eq!((first.status, again.status), (200, 200));
        assert_eq!(again.headers["idempotent-replayed"], "true");
    }
    pair.stop().await;
}

#[tokio::test]
async fn a_new_stock_decides_over_the_next_order_at_either_node() {
    let pair = Pair::start().await;
    for round in 0..30u64 {
        // In each round another store is the only store with units. Either node may own that store.
        let only = round * 7 % 40 + 1;
        let quantity = |store: u64| if store == only { 100 } else { 0 };
        let csv: String = (1..=40)
            .map(|store| format!("1,{store},{}\n", quantity(store)))
            .collect();
        if round % 2 == 0 {
            assert_eq!(pair.beta.stocks(&csv, None).await.status, 200);
        } else {
            let patched = pair.alpha.send("PATCH", "/stocks", &[], csv).await;
            assert_eq!(patched.status, 200, "{:?}", patched.body);
        }
        for order in 0..4 {
            for (name, shop) in ["alpha", "beta"].into_iter().zip(pair.shops()) {
                let reply = shop.order(&format!("{name}-{round}-{order}"), &[(1, 1)]).await;
                assert_eq!(reply.status, 200, "round {round}: {:?}", reply.body);
                assert_eq!(reply.json()["store_id"], only, "round {round}");
            }
        }
    }
    pair.stop().await;
}

#[tokio::test]
async fn the_last_units_of_a_store_are_sold_once_through_either_node() {
    let pair = Pair::start().await;
    // No message to the warehouse succeeds, so orders keep their reservations.
    pair.warehouse.mood.send(Mood::TimesOut).unwrap();
    let csv: String = (1..=40).map(|store| format!("1,{store},3\n")).collect();
    assert_eq!(pair.alpha.stocks(&csv, None).await.status, 200);
    let asking = (0..150).map(|number| {
        let shop = pair.shops()[number % 2];
        async move {
            // With so many orders for the same units, the search for a store may lose the units to
            // other orders again and again. Then the node answers 503, and the test repeats the
            // order.
            loop {
                let reply = shop.order(&format!("last-{number}"), &[(1, 1)]).await;
                if reply.status != 503 {
                    return reply;
                }
            }
        }
    });
    let mut placed = std::collections::BTreeMap::new();
    let mut refused = 0;
    for reply in futures_util::future::join_all(asking).await {
        match reply.status {
            200 => {
                *placed
                    .entry(reply.json()["store_id"].as_u64().unwrap())
                    .or_insert(0) += 1;
            }
            409 => refused += 1,
            _ => panic!("{:?}", reply.body),
        }
    }
    assert_eq!(refused, 30);
    assert_eq!(placed, (1..=40).map(|store| (store, 3)).collect());
    pair.stop().await;
}

#[tokio::test]
async fn a_connection_that_cannot_prove_the_secret_is_closed_without_an_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pair = Pair::start().await;
    let mut stream = tokio::net::TcpStream::connect(pair.beta_node.address)
        .await
        .unwrap();
    stream.write_all(b"IMT-PEER/3\n").await.unwrap();
    stream.write_all(&[7; 32]).await.unwrap();
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).await.unwrap();
    stream.write_all(&[7; 32]).await.unwrap();
    let mut rest = Vec::new();
    // The connection may end normally or with a reset.
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
    assert_eq!(pair.beta.get("/health").await.status, 200);
    pair.stop().await;
}
