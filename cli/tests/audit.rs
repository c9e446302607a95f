//! `imt audit` against the processes of a node and a simulated warehouse, and the warehouse's
//! address that all nodes of a cluster share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop where it stands"
)]

use crate::support::{Answer, Server, free_address, http, run, stderr, stdout, until};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::tempdir;

const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

fn post(at: &str, path: &str, body: &Value) -> Answer {
    http(at, "POST", path, JSON, body.to_string().as_bytes())
}

/// Starts a node, and a warehouse that sends stock to the node. The node calls the address
/// `called`, or the warehouse if `called` is `None`.
fn shop(data: &Path, called: Option<&str>) -> (Server, Server) {
    let folder = data.to_str().unwrap();
    let (oms, warehouse) = (free_address(), free_address());
    let node = Server::node(
        "alpha",
        folder,
        &[
            "--listen",
            &oms,
            "--warehouse",
            called.unwrap_or(&format!("http://{warehouse}")),
        ],
    );
    let warehouse = Server::start(&[
        "sim",
        "warehouse",
        "--listen",
        &warehouse,
        "--oms",
        &node.url(),
        "--data",
        folder,
        "--profile",
        "fast",
    ]);
    until("the first stock is applied", || {
        http(&node.address, "GET", "/health", &[], b"").json()["stock_snapshots"] == 1
    });
    (node, warehouse)
}

fn place(node: &Server, id: u64) {
    let order = json!({"id": id.to_string(), "products": [{"id": 7 + id % 50, "quantity": 1}]});
    assert_eq!(post(&node.address, "/order", &order).status, 200);
}

fn audit(data: &Path, node: &Server, more: &[&str]) -> std::process::Output {
    let folder = data.to_str().unwrap();
    run(&[&["audit", "--oms", &node.url(), "--data", folder], more].concat())
}

#[test]
fn an_audit_is_clean_then_finds_and_explains_a_delivery_that_nobody_ordered() {
    let data = tempdir().unwrap();
    let (node, warehouse) = shop(data.path(), None);
    for id in 1..=5 {
        place(&node, id);
        let paid = post(
            &node.address,
            &format!("/order/{id}/payment-callback"),
            &json!({"transaction_id": 100 + id}),
        );
        assert_eq!(paid.status, 200);
    }
    place(&node, 6);
    // The command reads the address of the warehouse from the data folder.
    let clean = audit(data.path(), &node, &[]);
    assert_eq!(
        clean.status.code(),
        Some(0),
        "{}{}",
        stdout(&clean),
        stderr(&clean)
    );
    for part in [
        "verdict    CLEAN",
        "6 orders, 5 deliveries, 1 reservation",
        "6 histories",
    ] {
        assert!(stdout(&clean).contains(part), "{part}:\n{}", stdout(&clean));
    }
    assert!(!stdout(&clean).contains('\x1b'), "no colours in a pipe");

    let store = http(&node.address, "GET", "/stores/1", &[], b"").json();
    let products = store["products"].as_array().unwrap();
    let there = products
        .iter()
        .find(|product| product["available"].as_i64() > Some(0));
    let product = there.unwrap()["product"].clone();
    let order = json!({
        "id": "intruder", "products": [{"id": product, "quantity": 1}], "store_id": 1, "transaction_id": 9,
    });
    let delivered = post(&warehouse.address, "/order/process_delivery", &order);
    assert_eq!(delivered.status, 200, "{}", delivered.body);
    let wrong = audit(data.path(), &node, &["--output", "json"]);
    assert_eq!(wrong.status.code(), Some(3), "{}", stderr(&wrong));
    let document: Value = serde_json::from_str(&stdout(&wrong)).unwrap();
    assert_eq!(document["verdict"], "wrong");
    let findings = document["findings"].as_array().unwrap();
    let unknown = json!({"finding": "delivered_unknown", "order": "intruder"});
    assert!(findings.contains(&unknown), "{findings:?}");
    let explained = document["explained"]["intruder"].to_string();
    assert!(
        explained.contains(&format!("1 x product {product} from store 1 for payment 9")),
        "{explained}"
    );

    warehouse.kill();
    let away = audit(data.path(), &node, &["--wait", "0s"]);
    assert_eq!(away.status.code(), Some(5), "{}", stderr(&away));
    assert!(stderr(&away).contains("no verdict"), "{}", stderr(&away));
}

/// Requests in the log that another node has answered are not in the counters of the audited node.
#[test]
fn a_log_is_compared_with_the_counters_of_a_single_node_only() {
    let (data, other_data) = (tempdir().unwrap(), tempdir().unwrap());
    let (alpha, warehouse) = shop(data.path(), None);
    let beta = Server::node("beta", data.path().to_str().unwrap(), &[]);
    until("beta has its share", || {
        [&alpha, &beta].iter().all(|node| {
            let ring = http(&node.address, "GET", "/ring", &[], b"").json();
            ring["members"].as_array().unwrap().len() == 2
        })
    });
    place(&alpha, 1);
    place(&beta, 2);
    place(&beta, 3);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now.unwrap().as_millis();
    let lines: String = (1..=3)
        .map(|id| format!("{id},{now_ms},/order,3,ok,200\n"))
        .collect();
    let log = data.path().join("stats.csv");
    std::fs::write(&log, lines).unwrap();
    let assert_clean = |output: std::process::Output| {
        let said = format!("{}{}", stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{said}");
    };

    // A data folder of another cluster has one node.
    let other = Server::node("gamma", other_data.path().to_str().unwrap(), &[]);
    let (log, warehouse) = (log.to_str().unwrap(), warehouse.url());
    let more = ["--requests", log, "--warehouse", &warehouse, "--repeat", "0"];
    assert_clean(audit(other_data.path(), &alpha, &more));
    drop(other);

    // The stopped node has no description.
    let stopped = run(&["node", "stop", "beta", "--data", data.path().to_str().unwrap()]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    until("alpha serves both volumes", || {
        http(&alpha.address, "GET", "/reservations?limit=1", &[], b"").status == 200
    });
    assert_clean(audit(data.path(), &alpha, &["--repeat", "0"]));
}

#[test]
fn messages_that_wait_for_an_absent_warehouse_are_no_finding() {
    let data = tempdir().unwrap();
    // Nothing listens at the warehouse's address that the node calls.
    let (node, warehouse) = shop(data.path(), Some("http://127.0.0.1:9"));
    for id in 1..=30 {
        place(&node, id);
    }
    until("the circuit breaker is open", || {
        http(&node.address, "GET", "/health", &[], b"").json()["warehouse"] == "away"
    });
    let url = warehouse.url();
    let output = audit(data.path(), &node, &["--wait", "1s", "--warehouse", &url]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    for part in [
        "waiting    30 messages, because the warehouse is away",
        "verdict    CLEAN",
    ] {
        assert!(stdout(&output).contains(part), "{part}:\n{}", stdout(&output));
    }
    let (_, log) = node.terminate();
    let opened: Vec<&String> = log
        .iter()
        .filter(|line| line.contains("circuit breaker opened"))
        .collect();
    assert_eq!(opened.len(), 1, "{log:?}");
    for part in ["WARN", "warehouse=\"http://127.0.0.1:9\"", "volume=alpha"] {
        assert!(opened[0].contains(part), "{part}: {}", opened[0]);
    }
}

#[test]
fn all_nodes_call_one_warehouse_until_it_is_changed_for_all() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let shown = |more: &[&str]| run(&[&["node", "warehouse"], more, &["--data", folder]].concat());
    let alpha = Server::node("alpha", folder, &["--warehouse", "http://127.0.0.1:9"]);
    let beta = Server::node("beta", folder, &[]);
    assert_eq!(stdout(&shown(&[])), "http://127.0.0.1:9\n");

    let other = "http://127.0.0.1:10";
    let refused = run(&[
        "node",
        "start",
        "--name",
        "gamma",
        "--data",
        folder,
        "--listen",
        "127.0.0.1:0",
        "--warehouse",
        other,
    ]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    for part in [
        "http://127.0.0.1:9,",
        other,
        "imt node warehouse http://127.0.0.1:10",
    ] {
        assert!(stderr(&refused).contains(part), "{part}: {}", stderr(&refused));
    }

    let changed = shown(&[other]);
    assert_eq!(changed.status.code(), Some(0), "{}", stderr(&changed));
    assert_eq!(stdout(&changed), format!("{other}\n"));
    for node in [&alpha, &beta] {
        until("the node follows the change", || {
            node.said("warehouse changed from=http://127.0.0.1:9 to=http://127.0.0.1:10")
        });
    }
    drop((alpha, beta));
    let gone = shown(&["http://127.0.0.1:11"]);
    assert_eq!(gone.status.code(), Some(1), "no node runs: {}", stderr(&gone));
    drop(Server::node("beta", folder, &[]));
    assert_eq!(
        stdout(&shown(&[])),
        format!("{other}\n"),
        "the stored address stays"
    );
}
