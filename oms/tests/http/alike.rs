//! Tests that one node alone and a pair of nodes give equal answers. Requests generated from the
//! OpenAPI document are sent to both clusters, and the answers are compared.
//!
//! `IMT_ALIKE_REQUESTS=N` sets the number of requests for each seed, and `IMT_ALIKE_SEEDS=N` the
//! number of seeds.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::SystemTime;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::json;

use crate::common::{Mood, Reply, Shop, Warehouse, until};
use crate::pair::{Pair, named};
use crate::requests::{Generator, PLACED, PRODUCTS, Request, STORES};

/// Headers of answers that are compared, because a client acts on them.
const COMPARED: [&str; 8] = [
    "content-type",
    "content-encoding",
    "retry-after",
    "allow",
    "accept-encoding",
    "idempotent-replayed",
    "vary",
    "location",
];

/// JSON members with values that are not compared, because they differ between two nodes or
/// moments, such as times, names, the ring, and the progress of the outbox.
const VARYING: [&str; 16] = [
    "created_at_ms",
    "updated_at_ms",
    "at_ms",
    "next_try_ms",
    "up_since_ms",
    "attempts",
    "last_error",
    "node",
    "epoch",
    "slots",
    "volumes",
    "ring",
    "outbox_in_flight",
    "outbox_dead",
    "warehouse",
    "transactors",
];

/// Metric of the orders that took borrowed units, with a sample for each volume.
const BORROWED: &str = "imt_orders_from_borrowed_units_total{";

/// JSON as text with its members in their original order, without the values of the members in
/// `VARYING` and of cursors that name volumes.
struct Compared(String);

impl<'de> Deserialize<'de> for Compared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Compared, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = Compared;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Compared, E> {
                Ok(Compared(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Compared, E> {
                Ok(Compared(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Compared, E> {
                Ok(Compared(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Compared, E> {
                Ok(Compared(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Compared, E> {
                Ok(Compared(json!(value).to_string()))
            }

            fn visit_unit<E>(self) -> Result<Compared, E> {
                Ok(Compared("null".to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Compared, A::Error> {
                let mut text = "[".to_owned();
                while let Some(Compared(value)) = values.next_element()? {
                    text.push_str(&value);
                    text.push(',');
                }
                Ok(Compared(text + "]"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Compared, A::Error> {
                let mut text = "{".to_owned();
                while let Some((name, Compared(value))) = map.next_entry::<String, Compared>()? {
                    // The cursor of a list of orders names volumes, which differ between the two
                    // clusters.
                    let is_cursor = name == "next" && value.contains('.') && value.contains('~');
                    let value = if is_cursor {
                        "cursor"
                    } else if VARYING.contains(&name.as_str()) {
                        "varies"
                    } else {
                        &value
                    };
                    let _ = write!(text, "{name}:{value},");
                }
                Ok(Compared(text + "}"))
            }
        }

        deserializer.deserialize_any(Values)
    }
}

/// Returns the part of an answer that must be equal in both clusters.
fn compared(request: &Request, reply: &Reply) -> String {
    let mut text = reply.status.to_string();
    for name in COMPARED {
        if let Some(value) = reply.headers.get(name) {
            let _ = write!(text, "\n  {name}: {}", value.to_str().unwrap());
        }
    }
    let mut body = reply.body.to_vec();
    if reply
        .headers
        .get("content-encoding")
        .is_some_and(|coding| coding == "gzip")
    {
        // An answer to HEAD has no body.
        if !body.is_empty() {
            let mut plain = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&body[..]), &mut plain).unwrap();
            body = plain;
        }
    }
    let path = request.path.split('?').next().unwrap();
    // Counters and the assignment of slots differ between the two clusters.
    let is_of_cluster = reply.status == 200 && matches!(path, "/metrics" | "/ring");
    let body = match serde_json::from_slice::<Compared>(&body) {
        _ if is_of_cluster => "of the cluster".to_owned(),
        Ok(Compared(body)) => body,
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    let _ = write!(text, "\n  {body}");
    text
}

/// Waits until the clock shows a later millisecond than `at_ms`, so that orders of two nodes have
/// distinct times of arrival.
pub(crate) async fn later_than(at_ms: u64) {
    let now_ms = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_millis() as u64
    };
    while now_ms() <= at_ms {
        tokio::task::yield_now().await;
    }
}

async fn send(shop: &Shop, request: &Request) -> Reply {
    let headers: Vec<(&str, &str)> = request
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let body = request.body.clone();
    let reply = shop.send(&request.method, &request.path, &headers, body).await;
    if request.method == "POST" {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        later_than(now.unwrap().as_millis() as u64).await;
    }
    reply
}

/// A single node and a pair with equal stock and equal orders.
struct Both {
    alone: Shop,
    alone_node: imt_oms::Node,
    alone_warehouse: Warehouse,
    pair: Pair,
    _data: tempfile::TempDir,
}

impl Both {
    async fn start() -> Both {
        Both::start_with(false, 50).await
    }

    /// Starts the nodes with this number of units of each product in each store. `allotments` is
    /// `true` if the nodes of the pair lend each other units.
    async fn start_with(allotments: bool, units: u32) -> Both {
        let data = tempfile::tempdir().unwrap();
        let alone_warehouse = Warehouse::start().await;
        let alone_node = imt_oms::Node::start(named("alone", data.path(), &alone_warehouse));
        let alone_node = alone_node.await.unwrap();
        let both = Both {
            alone: Shop::at(alone_node.address()),
            alone_node,
            alone_warehouse,
            pair: Pair::start_with(|config| config.allotments = allotments).await,
            _data: data,
        };
        for warehouse in [&both.alone_warehouse, &both.pair.warehouse] {
            // No message to the warehouse succeeds, so only clients change orders.
            warehouse.mood.send(Mood::TimesOut).unwrap();
        }
        both.put_stock(units).await;
        for shop in [&both.alone, &both.pair.alpha] {
            for id in PLACED {
                let reply = shop.order(id, &[(1, 2)]).await;
                assert_eq!(reply.status, 200);
                later_than(reply.json()["created_at_ms"].as_u64().unwrap()).await;
            }
        }
        both
    }

    async fn put_stock(&self, units: u32) {
        let mut stock = String::new();
        for store in 1..=STORES {
            for product in 1..=PRODUCTS {
                stock.push_str(&format!("{product},{store},{units}\n"));
            }
        }
        for shop in [&self.alone, &self.pair.alpha] {
            assert_eq!(shop.stocks(&stock, None).await.status, 200);
        }
    }

    /// Returns the number of orders of the pair that took borrowed units.
    async fn borrowed(&self) -> u64 {
        let mut sum = 0;
        for shop in self.pair.shops() {
            let metrics = shop.get("/metrics").await;
            let text = String::from_utf8_lossy(&metrics.body).into_owned();
            let of_volumes = text.lines().filter(|line| line.starts_with(BORROWED));
            let counts = of_volumes.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
            sum += counts.sum::<u64>();
        }
        sum
    }

    /// Places many orders at once at both nodes of the pair, until some of them take borrowed
    /// units. Then places the same orders at the single node, in the same order of arrival.
    async fn lend(&self, round: u64) {
        let before = self.borrowed().await;
        let mut placed = BTreeMap::new();
        let mut burst = 0;
        until("orders to take borrowed units", async || {
            burst += 1;
            let orders = (0..100).map(|number| async move {
                let id = format!("hot-{round}-{burst}-{number}");
                let lines = [(1 + number % PRODUCTS, 1)];
                let shop = self.pair.shops()[number as usize / 50];
                let reply = shop.order(&id, &lines).await;
                assert_eq!(reply.status, 200, "{id}");
                (id, lines)
            });
            placed.extend(futures_util::future::join_all(orders).await);
            self.borrowed().await > before
        })
        .await;
        // Orders that arrive in one millisecond are listed by volume.
        for id in self.listed(&format!("hot-{round}-")).await {
            let lines = placed.remove(&id).unwrap();
            let reply = self.alone.order(&id, &lines).await;
            assert_eq!(reply.status, 200, "{id}");
            later_than(reply.json()["created_at_ms"].as_u64().unwrap()).await;
        }
        assert!(placed.is_empty(), "{placed:?}");
    }

    /// Returns the ids of the pair's orders that begin with `prefix`, in the order of the list.
    async fn listed(&self, prefix: &str) -> Vec<String> {
        let (mut ids, mut path) = (Vec::new(), "/orders".to_owned());
        loop {
            let page = self.pair.alpha.get(&path).await.json();
            let orders = page["orders"].as_array().unwrap().iter();
            let of_page = orders.map(|order| order["id"].as_str().unwrap().to_owned());
            ids.extend(of_page.filter(|id| id.starts_with(prefix)));
            match page["next"].as_str() {
                Some(next) => path = format!("/orders?cursor={next}"),
                None => return ids,
            }
        }
    }

    /// Waits until the single node and both nodes of the pair report equal quantities of all
    /// products. An order that took borrowed units lowers the available quantities of its store
    /// up to 200 ms later.
    async fn wait_for_equal_stock(&self) {
        for product in 1..=PRODUCTS {
            let path = format!("/stocks/{product}");
            until("the quantities to be equal", async || {
                let alone = self.alone.get(&path).await.body;
                let of_pair = [
                    self.pair.alpha.get(&path).await.body,
                    self.pair.beta.get(&path).await.body,
                ];
                of_pair.iter().all(|body| *body == alone)
            })
            .await;
        }
    }

    /// Sends a request to the single node and to one node of the pair. Then sends it again to the
    /// single node, and to the other node of the pair. `is_first_alpha` is `true` if alpha gets the
    /// request before beta. Returns the single node's last status, and the differences between the
    /// answers.
    async fn compare(&self, request: &Request, is_first_alpha: bool) -> (u16, Vec<String>) {
        let mut shops = self.pair.shops();
        if !is_first_alpha {
            shops.reverse();
        }
        let (mut status, mut differences) = (0, Vec::new());
        for (shop, name) in shops.into_iter().zip(["first", "again"]) {
            let reply = send(&self.alone, request).await;
            status = reply.status;
            let alone = compared(request, &reply);
            let pair = compared(request, &send(shop, request).await);
            if alone != pair {
                let head = format!("{} {}", request.method, request.path);
                let headers: Vec<String> = request
                    .headers
                    .iter()
                    .map(|(name, value)| format!("{name}: {value:.60}"))
                    .collect();
                let body = String::from_utf8_lossy(&request.body);
                differences.push(format!(
                    "{name}: {head}\n  {headers:?}\n  {body:.200}\nalone {alone:.600}\npair {pair:.600}\n"
                ));
            }
        }
        (status, differences)
    }
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_and_a_pair_give_the_same_answers() {
    let requests = number("IMT_ALIKE_REQUESTS", 600);
    for seed in 1..=number("IMT_ALIKE_SEEDS", 1) {
        let both = Both::start().await;
        let document = both.alone.get("/openapi.json").await.json();
        let mut generator = Generator::new(document, seed);
        let mut differences = Vec::new();
        let mut statuses = BTreeMap::<u16, u64>::new();
        for number in 0..requests {
            let request = generator.next();
            let (status, differs) = both.compare(&request, number % 2 == 0).await;
            *statuses.entry(status).or_default() += 1;
            differences.extend(differs);
        }
        println!("seed {seed}: {requests} requests, answers by status {statuses:?}");
        let count = differences.len();
        let shown = differences.join("\n");
        assert_eq!(count, 0, "seed {seed}: {count} differences\n{shown:.20000}");
        for status in [200, 400, 404, 405, 409, 413, 415] {
            assert!(
                statuses.contains_key(&status),
                "no request was answered with {status}"
            );
        }
        both.pair.stop().await;
        both.alone_node.stop().await.unwrap();
    }
}

/// The known exception are the available quantities of stores, which follow an order with borrowed
/// units up to 200 ms later. So the test waits for equal quantities before it sends a request that
/// can show them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_and_a_pair_that_lends_units_give_the_same_answers() {
    /// Units of each product in each store, of which a node may lend many.
    const UNITS: u32 = 100_000;
    /// Number of generated requests between two bursts of orders.
    const REQUESTS: u64 = 30;
    let both = Both::start_with(true, UNITS).await;
    let document = both.alone.get("/openapi.json").await.json();
    let mut generator = Generator::new(document, 7);
    let mut differences = Vec::new();
    let mut borrowed = 0;
    for round in 0..number("IMT_ALIKE_ROUNDS", 6) {
        both.lend(round).await;
        for number in 0..REQUESTS {
            let is_first_alpha = number % 2 == 0;
            // The store stays hot, so this order takes borrowed units if its volume has some.
            let body = crate::common::order_body(&format!("cold-{round}-{number}"), &[(1, 2)]);
            let order = Request {
                method: "POST".to_owned(),
                path: "/order".to_owned(),
                headers: vec![("content-type".to_owned(), "application/json".to_owned())],
                body: body.into(),
            };
            differences.extend(both.compare(&order, is_first_alpha).await.1);
            let request = generator.next();
            let shows_stock = request.path.contains("/stock") || request.path.contains("/store");
            if shows_stock {
                both.wait_for_equal_stock().await;
            }
            differences.extend(both.compare(&request, is_first_alpha).await.1);
            if request.method == "PUT" {
                both.put_stock(UNITS).await;
            }
        }
        borrowed = both.borrowed().await;
    }
    println!("{borrowed} orders of the pair took borrowed units");
    let count = differences.len();
    let shown = differences.join("\n");
    assert_eq!(count, 0, "{count} differences\n{shown:.20000}");
    both.wait_for_equal_stock().await;
    both.pair.stop().await;
    both.alone_node.stop().await.unwrap();
}
