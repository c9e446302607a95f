//! A shop on real processes in which nodes lend each other units of a popular store, while nodes
//! are killed, stopped, paused and removed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop where it stands"
)]

use crate::support::{run, stderr, stdout};
use serde_json::Value;
use tempfile::tempdir;

/// Nearly all orders are for product 1, so the first store with this product is hot: each volume
/// places more orders in it than the 64 a second from which units are borrowed. The store has so
/// many units that some can be lent.
#[test]
fn orders_take_lent_units_while_nodes_are_killed_and_stopped_and_nothing_is_lost() {
    let data = tempdir().unwrap();
    let output = run(&[
        "sim",
        "chaos",
        "--nodes",
        "1",
        "--every",
        "2s",
        "--units",
        "50000",
        "--stores",
        "8",
        "--zipf",
        "4",
        "--basket",
        "1",
        "--orders",
        "100%",
        "--rate",
        "200",
        "--duration",
        "14s",
        "--data",
        data.path().to_str().unwrap(),
        "--output",
        "json",
    ]);
    let told = format!("{}\n{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{told}");
    let summary: Value =
        serde_json::from_str(&stdout(&output)).expect("standard output is one JSON document");
    assert_eq!(summary["audit"]["findings"], serde_json::json!([]), "{told}");
    let borrowed = summary["orders_from_borrowed_units"].as_u64().unwrap();
    assert!(borrowed > 0, "{told}");
    let events = summary["node_events"].as_array().unwrap();
    for kind in ["kill", "stop"] {
        assert!(events.iter().any(|event| event["kind"] == kind), "{kind}: {told}");
    }
    assert_eq!(summary["warehouse"]["units"], 50_000, "{told}");
}
