//! Several nodes on one data folder, as real processes: they share the orders, and what one had lives on when it dies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop where it stands"
)]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Answer, Server, http, run, stderr, stdout, try_http, until};
use tempfile::{TempDir, tempdir};

const SAMPLE_STOCKS: &[u8] = include_bytes!("../../data/samples/stocks.csv");
const CSV: &[(&str, &str)] = &[("Content-Type", "text/csv")];
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// A data folder, and nodes on it that no warehouse answers.
struct World {
    data: TempDir,
}

impl World {
    fn new() -> World {
        World {
            data: tempdir().unwrap(),
        }
    }

    fn folder(&self) -> &str {
        self.data.path().to_str().unwrap()
    }

    fn start(&self, name: &str) -> Server {
        Server::start(&[
            "node",
            "start",
            "--name",
            name,
            "--data",
            self.folder(),
            "--listen",
            "127.0.0.1:0",
            "--warehouse",
            "http://127.0.0.1:9",
        ])
    }

    fn nodes(&self, rest: &[&str]) -> std::process::Output {
        run(&[&["node"], rest, &["--data", self.folder()]].concat())
    }
}

fn post(at: &str, path: &str, body: &Value) -> Answer {
    http(at, "POST", path, JSON, body.to_string().as_bytes())
}

/// Products of the sample that have much stock.
fn products() -> Vec<u64> {
    let rows = std::str::from_utf8(SAMPLE_STOCKS).unwrap();
    let mut units = std::collections::BTreeMap::<u64, u64>::new();
    for line in rows.lines() {
        let fields: Vec<u64> = line.split(',').map(|field| field.parse().unwrap()).collect();
        *units.entry(fields[0]).or_default() += fields[2];
    }
    let mut products: Vec<(u64, u64)> = units
        .into_iter()
        .map(|(product, units)| (units, product))
        .collect();
    products.sort_unstable_by(|one, other| other.cmp(one));
    products.into_iter().map(|(_, product)| product).collect()
}

/// Places orders that must be taken; gives their ids with the answers.
fn place(at: &str, prefix: &str, count: usize) -> Vec<(String, String)> {
    let products = products();
    let order = |number: usize| {
        let id = format!("{prefix}{number}");
        let product = products[number % products.len().min(20)];
        let order = json!({"id": id, "products": [{"id": product, "quantity": 1}]});
        let answer = post(at, "/order", &order);
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
        (id, answer.body)
    };
    (0..count).map(order).collect()
}

/// Every order is there, as it was taken, whomever one asks.
fn assert_there(at: &str, orders: &[(String, String)]) {
    for (id, taken) in orders {
        let answer = http(at, "GET", &format!("/order/{id}"), &[], b"");
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
        let taken: Value = serde_json::from_str(taken).unwrap();
        assert_eq!(answer.json()["store_id"], taken["store_id"], "{id}");
        assert_eq!(answer.json()["products"], taken["products"], "{id}");
    }
}

/// The ids of all orders, page by page.
fn listed(at: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = http(at, "GET", &format!("/orders?limit=37{cursor}"), &[], b"").json();
        ids.extend(
            page["orders"]
                .as_array()
                .unwrap()
                .iter()
                .map(|order| order["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

fn assert_lists(at: &str, orders: &[(String, String)]) {
    let ids = listed(at);
    let once: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(once.len(), ids.len(), "an order is listed once");
    assert_eq!(
        once,
        orders.iter().map(|(id, _)| id).collect(),
        "every order is listed"
    );
    let held = http(at, "GET", "/reservations?limit=10000", &[], b"").json();
    let held: Vec<&str> = held["reservations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|held| held["order"].as_str().unwrap())
        .collect();
    let distinct: BTreeSet<&&str> = held.iter().collect();
    assert_eq!(distinct.len(), held.len(), "an order holds units once");
    assert_eq!(held.len(), orders.len(), "every order holds units");
}

fn members(at: &str) -> usize {
    try_http(at, "GET", "/ring", &[], b"")
        .map_or(0, |answer| answer.json()["members"].as_array().unwrap().len())
}

#[test]
fn two_nodes_share_the_orders_and_those_of_a_killed_one_live_on() {
    let world = World::new();
    let alpha = world.start("alpha");
    let stock = http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    let mut orders = place(&alpha.address, "before-", 60);

    let beta = world.start("beta");
    until("beta has its share", || {
        members(&beta.address) == 2 && members(&alpha.address) == 2
    });
    assert_there(&alpha.address, &orders);
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);

    // Whoever takes it, an order goes where it belongs; the same order again is the same order.
    orders.extend(place(&beta.address, "between-", 60));
    let (id, taken) = &orders[70];
    let again: Value = serde_json::from_str(taken).unwrap();
    let again = json!({"id": id, "products": again["products"]});
    assert_eq!(post(&alpha.address, "/order", &again).body, *taken);
    assert_lists(&alpha.address, &orders);
    let shares = |at: &str| {
        http(at, "GET", "/health", &[], b"").json()["slots"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((shares(&alpha.address), shares(&beta.address)), (8_192, 8_192));

    // Stock for stores of both, in one body; what is reserved stays reserved.
    let stock = http(&beta.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    assert_lists(&alpha.address, &orders);
    let bad = http(&beta.address, "PUT", "/stocks", CSV, b"1,1,5\n2,2,many\n");
    assert_eq!(
        (bad.status, &bad.json()["line"]),
        (400, &json!(2)),
        "{}",
        bad.body
    );

    beta.kill();
    assert_there(&alpha.address, &orders);
    assert_lists(&alpha.address, &orders);
    orders.extend(place(&alpha.address, "after-", 20));
    for (id, _) in &orders {
        let paid = post(
            &alpha.address,
            &format!("/order/{id}/payment-callback"),
            &json!({"transaction_id": 7}),
        );
        assert_eq!(paid.status, 200, "{id}: {}", paid.body);
    }

    // Under its name again, it gets its volume back; nothing is copied.
    let beta = world.start("beta");
    assert_eq!(shares(&beta.address), 8_192);
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);

    // The coordinator, too, may die.
    alpha.kill();
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);
    assert_eq!(beta.terminate().0, Some(0));
}

#[test]
fn a_node_that_leaves_for_good_gives_everything_away() {
    let world = World::new();
    let alpha = world.start("alpha");
    http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    let beta = world.start("beta");
    let gamma = world.start("gamma");
    until("three nodes share", || members(&alpha.address) == 3);
    let orders = place(&gamma.address, "o", 60);

    let listed = world.nodes(&["list"]);
    assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
    for word in ["alpha", "beta", "gamma", "serving", "5461"] {
        assert!(
            stdout(&listed).contains(word),
            "{word} is missing:\n{}",
            stdout(&listed)
        );
    }

    let left = world.nodes(&["leave", "beta"]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert_eq!(beta.ended(), Some(0), "the process ends by itself");
    assert!(!world.data.path().join("volumes/beta").exists());
    assert_there(&alpha.address, &orders);
    assert_lists(&gamma.address, &orders);

    let stopped = world.nodes(&["stop", "alpha"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    assert_eq!(alpha.ended(), Some(0));
    assert_lists(&gamma.address, &orders);
    let left = world.nodes(&["leave", "alpha"]);
    assert_eq!(
        left.status.code(),
        Some(0),
        "a node that is away can leave, too: {}",
        stderr(&left)
    );
    assert_lists(&gamma.address, &orders);
    let last = world.nodes(&["leave", "gamma"]);
    assert_eq!(last.status.code(), Some(1), "{}", stdout(&last));
    assert_eq!(gamma.terminate().0, Some(0));
}

#[test]
fn a_shop_among_nodes_that_are_killed_stopped_and_taken_away_loses_nothing() {
    let world = World::new();
    let output = run(&[
        "sim",
        "chaos",
        "--nodes",
        "2",
        "--every",
        "1s",
        "--rate",
        "40",
        "--duration",
        "10s",
        "--data",
        world.folder(),
    ]);
    let told = format!("{}\n{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("clean"), "{told}");
}
