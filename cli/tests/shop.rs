//! The shop as its users see it: in one process, in three processes of which one is killed, and
//! with the requests of the original system, from which this project grew.

use crate::support::{Server, free_address, http, imt, run, stderr, stdout, try_http, until};
use serde_json::json;
use std::process::Stdio;
use tempfile::tempdir;

const SAMPLE_STOCKS: &[u8] = include_bytes!("../../data/samples/stocks.csv");

#[test]
fn the_shop_runs_and_its_audit_is_clean() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let args = [
        "sim",
        "run",
        "--duration",
        "3s",
        "--rate",
        "60",
        "--data",
        folder,
        "--port",
        "0",
        "--warehouse-port",
        "0",
    ];
    let output = run(&args);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}\n{}",
        stdout(&output),
        stderr(&output)
    );
    for word in ["p50", "p99", "max", "delivered", "snapshot", "audit", "clean"] {
        assert!(
            stdout(&output).to_lowercase().contains(word),
            "the summary lacks {word}:\n{}",
            stdout(&output)
        );
    }
    assert_stats_csv(&std::fs::read_to_string(data.path().join("stats.csv")).unwrap());

    // The second run uses the same folder, with the stock and the orders of the first run.
    let output = run(&[&args[..], &["--output", "json"]].concat());
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}\n{}",
        stdout(&output),
        stderr(&output)
    );
    let summary: serde_json::Value =
        serde_json::from_str(&stdout(&output)).expect("standard output is one JSON document");
    let sum = |orders: &serde_json::Value| -> u64 {
        let counts = orders.as_object().unwrap().values();
        counts.map(|count| count.as_u64().unwrap()).sum()
    };
    let (of_run, of_folder) = (sum(&summary["orders"]), sum(&summary["data_folder"]["orders"]));
    assert!(
        of_run > 0 && of_run < of_folder,
        "counts are of this run: {of_run} of {of_folder}"
    );

    assert_eq!(
        summary["data_folder"]["warehouse"]["delivered"], summary["audit"]["deliveries"],
        "the counts are those of after the audit"
    );

    let runs = std::fs::read_dir(data.path().join("runs")).unwrap();
    let runs: Vec<_> = runs.map(|run| run.unwrap().path()).collect();
    assert_eq!(runs.len(), 2, "a folder for each run");
    for run in &runs {
        assert_stats_csv(&std::fs::read_to_string(run.join("stats.csv")).unwrap());
        for file in [
            "run.json",
            "series.csv",
            "events.csv",
            "histograms.csv",
            "summary.json",
        ] {
            assert!(run.join(file).is_file(), "{}/{file}", run.display());
        }
    }
    assert_reports(folder, &runs);
}

/// Asserts that `imt sim report` draws the newest run, that `imt sim compare` compares `runs`, and
/// that a report on an unknown run fails.
fn assert_reports(folder: &str, runs: &[std::path::PathBuf]) {
    let output = run(&["sim", "report", "--data", folder]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let page = std::fs::read_to_string(stdout(&output).trim()).unwrap();
    assert!(page.contains("</html>") && page.matches("<svg").count() >= 5);
    let [first, second] = runs else {
        panic!("{runs:?}");
    };
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    let output = run(&["sim", "compare", first, second]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("order p99"), "{}", stdout(&output));
    let output = run(&["sim", "report", "never", "--data", folder]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("never"), "{}", stderr(&output));
}

#[test]
fn a_missed_threshold_is_exit_code_four_and_a_kept_one_is_not() {
    for (condition, code) in [("requests(all) > 0", 4), ("findings > 0", 0)] {
        let data = tempdir().unwrap();
        let folder = data.path().to_str().unwrap();
        let output = run(&[
            "sim",
            "run",
            "--duration",
            "2s",
            "--rate",
            "30",
            "--data",
            folder,
            "--port",
            "0",
            "--warehouse-port",
            "0",
            "--warehouse-profile",
            "fast",
            "--fail-if",
            condition,
        ]);
        let told = format!("{}\n{}", stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(condition) && told.contains("--seed 1"), "{told}");
        // Without a terminal, the run prints a progress line of at most 78 columns each second.
        let lines = stderr(&output);
        let lines: Vec<&str> = lines.lines().filter(|line| line.contains("/s p99")).collect();
        assert!(!lines.is_empty(), "{told}");
        assert!(lines.iter().all(|line| line.chars().count() <= 78), "{lines:?}");
    }
}

/// Asserts that each line is `REQUEST_ID,TIMESTAMP_MS,PATH,DURATION_MS,ok|ko,STATUS_OR_REASON`. The
/// request id of a payment is the id of its order plus 900,000,000.
fn assert_stats_csv(text: &str) {
    let mut payments = 0;
    assert!(
        text.lines().count() >= 150,
        "a request every 1/60 s for 3 s, and the payments: {}",
        text.lines().count()
    );
    for line in text.lines() {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), 6, "{line}");
        let id: u64 = fields[0].parse().unwrap();
        fields[1].parse::<u64>().unwrap();
        fields[3].parse::<f64>().unwrap();
        assert!(matches!(fields[4], "ok" | "ko"), "{line}");
        match fields[2] {
            "/order" => {}
            path if path.starts_with("/aggregate-stats/") => {}
            path => {
                assert_eq!(
                    path,
                    format!("/order/{}/payment-callback", id - 900_000_000),
                    "{line}"
                );
                payments += 1;
            }
        }
    }
    assert!(payments > 0, "some orders were paid");
}

#[test]
fn killing_the_node_halfway_loses_nothing() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let warehouse_data = data.path().join("warehouse-side");
    let front_data = data.path().join("front-side");

    // The node and the warehouse need each other's address before they start. The node starts
    // first. The node gets the address of a free port, on which the warehouse listens later.
    let warehouse_address = free_address();
    let node_args = |listen: &str| {
        [
            "node",
            "start",
            "--name",
            "alpha",
            "--data",
            folder,
            "--listen",
            listen,
            "--warehouse",
        ]
        .iter()
        .map(ToString::to_string)
        .chain([format!("http://{warehouse_address}")])
        .collect::<Vec<_>>()
    };
    let start_node =
        |listen: &str| Server::start(&node_args(listen).iter().map(String::as_str).collect::<Vec<_>>());
    let node = start_node("127.0.0.1:0");
    let node_address = node.address.clone();
    let warehouse = Server::start(&[
        "sim",
        "warehouse",
        "--listen",
        &warehouse_address,
        "--oms",
        &node.url(),
        "--data",
        warehouse_data.to_str().unwrap(),
    ]);
    let snapshots = |at: &str| {
        try_http(at, "GET", "/health", &[], b"")
            .map_or(0, |answer| answer.json()["stock_snapshots"].as_u64().unwrap())
    };
    until("the first stock snapshot is in", || snapshots(&node_address) > 0);

    let front = imt(&[
        "sim",
        "front",
        "--rate",
        "100",
        "--duration",
        "8s",
        "--oms",
        &node.url(),
        "--warehouse",
        &warehouse.url(),
        "--data",
        front_data.to_str().unwrap(),
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();

    // The node is killed when orders are in several states and some orders are paid.
    until("some orders are paid", || {
        let health = http(&node_address, "GET", "/health", &[], b"").json();
        ["paid", "delivering", "delivered"]
            .iter()
            .any(|state| health["orders"][state].as_u64().unwrap_or(0) > 0)
    });
    node.kill();
    let node = start_node(&node_address);

    let output = front.wait_with_output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}\n{}",
        stdout(&output),
        stderr(&output)
    );
    assert!(
        stdout(&output).to_lowercase().contains("clean"),
        "{}",
        stdout(&output)
    );
    assert_eq!(node.terminate().0, Some(0));
    assert_eq!(warehouse.terminate().0, Some(0));
}

#[test]
fn requests_of_the_original_get_the_documented_responses() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    // No warehouse listens at this address. Orders are still accepted.
    let node = Server::node("alpha", folder, &["--warehouse", "http://127.0.0.1:9"]);
    let at = node.address.as_str();
    let json_type: &[(&str, &str)] = &[("Content-Type", "application/json")];
    let post =
        |path: &str, body: &serde_json::Value| http(at, "POST", path, json_type, body.to_string().as_bytes());

    let answer = http(
        at,
        "PUT",
        "/stocks",
        &[("Content-Type", "text/csv")],
        SAMPLE_STOCKS,
    );
    assert_eq!(answer.status, 200, "{}", answer.body);

    // Finds a row of the sample with more than one unit in stock.
    let rows = std::str::from_utf8(SAMPLE_STOCKS).unwrap();
    let row = rows
        .lines()
        .map(|line| {
            line.split(',')
                .map(|field| field.parse::<u64>().unwrap())
                .collect::<Vec<_>>()
        })
        .find(|row| row[2] > 1)
        .unwrap();
    let order = json!({"id": "17", "products": [{"id": row[0], "quantity": 1}]});
    let first = post("/order", &order);
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.json()["id"], "17");
    assert_eq!(first.json()["state"], "reserved");
    assert!(first.json()["store_id"].is_u64());
    let again = post("/order", &order);
    assert_eq!(
        (again.status, &again.body),
        (200, &first.body),
        "the same order again: the same answer"
    );
    let other = post(
        "/order",
        &json!({"id": "17", "products": [{"id": row[0], "quantity": 2}]}),
    );
    assert_eq!(other.status, 409, "{}", other.body);
    let too_many = post(
        "/order",
        &json!({"id": "18", "products": [{"id": row[0], "quantity": 1_000_000}]}),
    );
    assert_eq!(too_many.status, 409, "{}", too_many.body);
    assert!(
        too_many.head.contains("application/problem+json"),
        "{}",
        too_many.head
    );

    for (body, field) in [
        (json!({"products": [{"id": 1, "quantity": 1}]}), "id"),
        (json!({"id": "19", "products": [{"id": 1}]}), "quantity"),
        (json!({"id": "19", "products": "none"}), "products"),
    ] {
        let answer = post("/order", &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        assert!(
            answer.body.contains(field),
            "the field {field} should be named: {}",
            answer.body
        );
    }

    let paid = post("/order/17/payment-callback", &json!({"transaction_id": 4711}));
    assert_eq!(paid.status, 200, "{}", paid.body);
    let again = post("/order/17/payment-callback", &json!({"transaction_id": 4711}));
    assert_eq!((again.status, &again.body), (200, &paid.body));
    assert_eq!(
        post("/order/17/payment-callback", &json!({"transaction_id": 4712})).status,
        409
    );
    assert_eq!(
        post("/order/none/payment-callback", &json!({"transaction_id": 4711})).status,
        404
    );

    let answer = http(at, "GET", "/order/17", &[], b"");
    assert_eq!(
        (answer.status, &answer.json()["transaction_id"]),
        (200, &json!(4711))
    );
    assert_eq!(http(at, "GET", "/order/none", &[], b"").status, 404);
    let stats = http(at, "GET", "/aggregate-stats/812", &[], b"");
    assert_eq!(
        (stats.status, &stats.json()["ca"], &stats.json()["total_qty"]),
        (200, &json!(0), &json!(0))
    );
    assert_eq!(stats.json()["mean_price"].as_f64(), Some(0.0));

    let bad = http(
        at,
        "PUT",
        "/stocks",
        &[("Content-Type", "text/csv")],
        b"1,1,5\n2,1,many\n",
    );
    assert_eq!(bad.status, 400);
    assert!(bad.body.contains('2'), "the line should be named: {}", bad.body);

    // `imt order show` prints the same order.
    let output = run(&["order", "show", "17", "--oms", &node.url()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("4711"), "{}", stdout(&output));
    let output = run(&["order", "show", "none", "--oms", &node.url()]);
    assert_eq!(output.status.code(), Some(1));
    let output = run(&["ring", "show", "--data", folder]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("alpha"), "{}", stdout(&output));
}

#[test]
fn a_run_names_the_nodes_that_it_did_not_start_and_that_still_run() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let warehouse = free_address();
    let (_, port) = warehouse.rsplit_once(':').unwrap();
    let joined = Server::node("w", folder, &["--warehouse", &format!("http://{warehouse}")]);
    let output = run(&[
        "sim",
        "run",
        "--duration",
        "2s",
        "--rate",
        "30",
        "--data",
        folder,
        "--port",
        "0",
        "--warehouse-port",
        port,
        "--warehouse-profile",
        "fast",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let shown = format!("still up   w at {}; stop it with", joined.address);
    assert!(stdout(&output).contains(&shown), "{}", stdout(&output));
    let stopped = run(&["node", "stop", "w", "--data", folder]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
}
