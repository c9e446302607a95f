//! With `--route`, the shop front sends requests directly to the nodes that own their orders or the
//! statistics. Nodes forward the other requests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop where it stands"
)]

use crate::support::{Server, free_address, run, stderr, stdout};
use serde_json::Value;
use tempfile::tempdir;

fn summary(args: &[&str]) -> Value {
    let output = run(&[args, &["--output", "json"]].concat());
    let told = format!("{}\n{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{told}");
    serde_json::from_str(&stdout(&output)).expect("standard output is one JSON document")
}

#[test]
fn a_routed_shop_loses_nothing_while_its_nodes_are_killed_and_removed() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let summary = summary(&[
        "sim",
        "chaos",
        "--route",
        "--nodes",
        "2",
        "--every",
        "1s",
        "--rate",
        "40",
        "--duration",
        "10s",
        "--data",
        folder,
    ]);
    let routing = &summary["routing"];
    let count = |name: &str| routing[name].as_u64().unwrap();
    assert!(count("direct") > 0 && count("reads") > 1, "{routing}");
    // Requests that met a killed node were sent again, so no request failed.
    assert!(count("resent") > 0, "{routing}");
    assert_eq!(summary["errors"], serde_json::json!({}), "{summary}");
    let events = summary["node_events"].as_array().unwrap();
    assert!(!events.is_empty(), "{summary}");
    for events in events {
        let times = events["times_ms"].as_array().unwrap();
        assert_eq!(events["count"], times.len(), "{events}");
        assert!(times.contains(&events["longest_ms"]), "{events}");
    }
    assert_eq!(summary["still_up"], serde_json::json!([]), "{summary}");
}

#[test]
fn a_front_alone_calls_the_owners_of_two_nodes() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let warehouse_address = free_address();
    let node = |name: &str| {
        let warehouse = format!("http://{warehouse_address}");
        Server::node(name, folder, &["--warehouse", &warehouse])
    };
    let nodes = [node("alpha"), node("beta")];
    let warehouse = Server::start(&[
        "sim",
        "warehouse",
        "--listen",
        &warehouse_address,
        "--oms",
        &nodes[0].url(),
        "--data",
        folder,
        "--profile",
        "fast",
    ]);
    let shop = tempdir().unwrap();
    let front = |more: &[&str]| {
        let usual = [
            "sim",
            "front",
            "--oms",
            &nodes[0].url(),
            "--warehouse",
            &warehouse.url(),
            "--duration",
            "2s",
            "--rate",
            "50",
            "--data",
            shop.path().to_str().unwrap(),
        ];
        summary(&[&usual, more].concat())
    };
    let routed = front(&["--route"]);
    let (requests, direct) = (&routed["requests"], &routed["routing"]["direct"]);
    assert!(direct.as_u64().unwrap() > 0, "{routed}");
    let forwarded = routed["routing"]["forwarded"].as_u64().unwrap();
    assert_eq!(
        requests.as_u64().unwrap(),
        direct.as_u64().unwrap() + forwarded,
        "{routed}"
    );
    assert!(front(&[]).get("routing").is_none());
}
