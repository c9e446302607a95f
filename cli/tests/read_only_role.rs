//! Commands on an engine by roles that may only read its tables.
//!
//! The test needs an installed PostgreSQL server, as the tests in `engine.rs` do.

use crate::engine::Engine;
use crate::support::{Server, http, run, stderr, stdout};
use serde_json::{Value, json};
use std::process::Output;
use tempfile::tempdir;

/// Roles of the test, each with the columns of `imt_cluster` that it may read.
const ROLES: [(&str, &str); 2] = [
    ("observer", "(one, version, state, coordinator)"),
    ("operator", "(one, version, state, coordinator, secret)"),
];

fn json_of(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
#[ignore = "needs an engine"]
fn only_commands_that_send_the_secret_need_the_right_to_read_it() {
    let (engine, folder) = (Engine::with_standbys(1), tempdir().unwrap());
    let more = ["--warehouse", "http://127.0.0.1:9", "--engine", &engine.url];
    let node = Server::node("alpha", folder.path().to_str().unwrap(), &more);
    let stocks = include_bytes!("../../data/samples/stocks.csv");
    let stock = http(
        &node.address,
        "PUT",
        "/stocks",
        &[("Content-Type", "text/csv")],
        stocks,
    );
    assert_eq!(stock.status, 200, "{}", stock.body);
    for (role, columns) in ROLES {
        engine.ask(&format!("CREATE ROLE {role} LOGIN PASSWORD 'reads'"));
        engine.ask(&format!("GRANT SELECT {columns} ON imt_cluster TO {role}"));
        engine.ask(&format!("GRANT SELECT ON imt_node TO {role}"));
    }
    let (_, hosts) = engine.url.split_once('@').unwrap();
    let [observer, operator] = ROLES.map(|(role, _)| format!("postgres://{role}:reads@{hosts}"));
    let run_as = |url: &str, args: &[&str]| run(&[args, &["--output", "json", "--engine", url]].concat());
    for url in [&observer, &operator] {
        assert_eq!(json_of(&run_as(url, &["order", "list"])), json!([]));
        assert_eq!(json_of(&run_as(url, &["ring", "check", "o3"]))[0]["key"], "o3");
        let warehouse = json_of(&run_as(url, &["node", "warehouse"]));
        assert_eq!(warehouse["warehouse"], "http://127.0.0.1:9");
    }
    assert_eq!(
        json_of(&run_as(&operator, &["node", "list"]))[0]["state"],
        "serving"
    );
    // Without the secret, the error must not say that no node answers.
    for args in [
        &["node", "list"][..],
        &["node", "stop", "alpha"],
        &["node", "warehouse", "http://127.0.0.1:8"],
    ] {
        let refused = run_as(&observer, args);
        assert_eq!(refused.status.code(), Some(1), "{args:?}: {}", stdout(&refused));
        let error = stderr(&refused);
        assert!(
            error.contains("cannot read the secret of the nodes"),
            "{args:?}: {error}"
        );
        assert!(error.contains("permission denied"), "{args:?}: {error}");
    }
}
