//! All outputs of one run must agree. The summary, `stats.csv`, `series.csv`, `histograms.csv`, the
//! report, the node's metrics, health and console, the warehouse and the audit give the same
//! figures.

use crate::support::{Server, free_address, http, imt, run, stderr, stdout, until};
use serde_json::Value;
use std::collections::BTreeMap;
use tempfile::tempdir;

/// Names of the routes: first in the summary, `series.csv` and `histograms.csv`, then in the
/// metrics, the console and the report.
const ROUTES: [(&str, &str); 4] = [
    ("stats", "GET /aggregate-stats/{product}"),
    ("order", "POST /order"),
    ("payment", "POST /order/{id}/payment-callback"),
    ("cancel", "POST /order/{id}/cancel"),
];

/// Numbers of responses of a route: successes, and responses of the classes 4xx and 5xx.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answers {
    good: u64,
    refused: u64,
    failed: u64,
}

impl Answers {
    fn add(&mut self, status: &str, count: u64) {
        match status.as_bytes().first() {
            Some(b'2') => self.good += count,
            Some(b'4') => self.refused += count,
            Some(b'5') => self.failed += count,
            _ => panic!("{status:?} is no status of this run"),
        }
    }

    fn all(self) -> u64 {
        self.good + self.refused + self.failed
    }
}

type ByRoute = BTreeMap<&'static str, Answers>;

fn of_log(text: &str) -> ByRoute {
    let mut routes = ByRoute::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(6, ',').collect();
        let route = match fields[2] {
            "/order" => "order",
            path if path.starts_with("/aggregate-stats/") => "stats",
            path if path.ends_with("/cancel") => "cancel",
            _ => "payment",
        };
        routes.entry(route).or_default().add(fields[5], 1);
    }
    routes
}

fn of_summary(summary: &Value) -> ByRoute {
    let mut routes = ByRoute::new();
    for route in summary["routes"].as_array().unwrap() {
        let (name, _) = ROUTES
            .into_iter()
            .find(|(name, _)| route["name"] == *name)
            .unwrap();
        let answers: &mut Answers = routes.entry(name).or_default();
        answers.good += route["ok"].as_u64().unwrap();
        for (reason, count) in route["errors"].as_object().unwrap() {
            answers.add(reason, count.as_u64().unwrap());
        }
        assert_eq!(route["requests"].as_u64().unwrap(), answers.all(), "{route}");
    }
    routes.retain(|_, answers| answers.all() > 0);
    routes
}

fn of_metrics(text: &str) -> ByRoute {
    let mut routes = ByRoute::new();
    for (name, route) in ROUTES {
        let start = format!("imt_requests_total{{route=\"{route}\",status=\"");
        for line in text.lines().filter_map(|line| line.strip_prefix(start.as_str())) {
            let (status, count) = line.split_once("\"} ").unwrap();
            let count = count.parse().unwrap();
            if count > 0 {
                routes.entry(name).or_default().add(status, count);
            }
        }
    }
    routes
}

/// Returns the responses by route, as the sum over all seconds that the console has recorded.
fn of_console(state: &Value) -> ByRoute {
    let mut routes = ByRoute::new();
    for sample in state["samples"].as_array().unwrap() {
        for (name, route) in ROUTES {
            let figures = &sample["routes"][route];
            let count = |field: &str| figures[field].as_u64().unwrap_or_default();
            let answers: &mut Answers = routes.entry(name).or_default();
            answers.refused += count("refused");
            answers.failed += count("failed");
            answers.good += count("requests") - count("refused") - count("failed");
        }
    }
    routes.retain(|_, answers| answers.all() > 0);
    routes
}

/// Returns the numbers of orders by state, without states that no order has.
fn states(orders: &Value) -> BTreeMap<String, u64> {
    let orders = orders.as_object().unwrap().iter();
    let orders = orders.map(|(state, count)| (state.clone(), count.as_u64().unwrap()));
    orders.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn summary_log_report_metrics_console_warehouse_and_audit_name_the_same_figures() {
    let folder = tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let (oms, store) = (free_address(), free_address());
    let (oms_url, store_url) = (format!("http://{oms}"), format!("http://{store}"));
    let _warehouse = Server::start(&[
        "sim",
        "warehouse",
        "--listen",
        &store,
        "--oms",
        &oms_url,
        "--data",
        data,
        "--profile",
        "fast",
    ]);
    let _node = Server::start(&[
        "node",
        "start",
        "--name",
        "alpha",
        "--data",
        data,
        "--listen",
        &oms,
        "--warehouse",
        &store_url,
    ]);
    let output = imt(&[
        "sim",
        "front",
        "--oms",
        &oms_url,
        "--warehouse",
        &store_url,
        "--data",
        data,
        "--duration",
        "3s",
        "--rate",
        "150",
        "--paid-twice",
        "20%",
        "--cancelled",
        "20%",
        "--never-paid",
        "10%",
        "--output",
        "json",
    ])
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();

    // Compares the numbers of requests by route and kind of response.
    let expected = of_summary(&summary);
    assert!(
        ROUTES.iter().all(|(name, _)| expected[name].good > 0),
        "{expected:?}"
    );
    let log = std::fs::read_to_string(folder.path().join("stats.csv")).unwrap();
    assert_eq!(of_log(&log), expected, "the log");
    let run_folder = summary["run_folder"].as_str().unwrap();
    let read = |file: &str| std::fs::read_to_string(format!("{run_folder}/{file}")).unwrap();
    assert_eq!(of_log(&read("stats.csv")), expected, "the log of the run folder");
    assert_eq!(
        of_metrics(&http(&oms, "GET", "/metrics", &[], b"").body),
        expected,
        "/metrics"
    );
    let mut state = Value::Null;
    until("the console has recorded the last second", || {
        state = http(&oms, "GET", "/console/state", &[], b"").json();
        of_console(&state) == expected
    });

    // Compares the numbers of orders by state.
    let orders = states(&summary["orders"]);
    assert_eq!(
        states(&http(&oms, "GET", "/health", &[], b"").json()["orders"]),
        orders,
        "/health"
    );
    assert_eq!(
        states(&state["volumes"][0]["figures"]["orders"]),
        orders,
        "the console"
    );
    let metrics = http(&oms, "GET", "/metrics", &[], b"").body;
    for (order_state, count) in &orders {
        let line = format!("imt_orders{{volume=\"alpha\",state=\"{order_state}\"}} {count}");
        assert!(
            metrics.lines().any(|known| known == line),
            "{line:?} is not in\n{metrics}"
        );
    }

    // The seconds of the time series add up to the numbers of requests. The histograms have each
    // request except those of the warm-up.
    let series = read("series.csv");
    let mut lines = series.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let names = lines.next().unwrap();
    let mut sums = vec![0_u64; names.len()];
    for line in lines {
        for (sum, value) in sums.iter_mut().zip(line) {
            *sum += value.parse::<u64>().unwrap();
        }
    }
    let sum = |name: &str| sums[names.iter().position(|known| *known == name).unwrap()];
    for (name, answers) in &expected {
        assert_eq!(
            sum(&format!("{name}_requests")),
            answers.all(),
            "{name} in series.csv"
        );
    }
    assert_eq!(sum("sent"), summary["requests"].as_u64().unwrap());
    let mut measured = BTreeMap::<&str, u64>::new();
    let histograms = read("histograms.csv");
    for line in histograms.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        *measured.entry(fields[0]).or_default() += fields[2].parse::<u64>().unwrap();
    }
    for route in summary["routes"].as_array().unwrap() {
        let name = route["name"].as_str().unwrap();
        assert_eq!(
            route["latency"]["count"], measured[name],
            "{name} in histograms.csv"
        );
    }

    // Compares the report, the warehouse and the audit.
    let output = run(&["sim", "report", "--data", data]);
    let page = std::fs::read_to_string(stdout(&output).trim()).unwrap();
    for (name, route) in ROUTES {
        let answers = expected[name];
        let (requests, errors) = (answers.all(), answers.refused + answers.failed);
        let row = format!("<th scope=\"row\">{route}</th><td>{requests}</td><td>{errors}</td>");
        assert!(page.contains(&row), "{row} is not in the page");
    }
    for (order_state, count) in &orders {
        let plural = if *count == 1 { "" } else { "s" };
        let bar = format!("{order_state} <em>{count} order{plural}</em>");
        assert!(page.contains(&bar), "{bar} is not in the page");
    }
    let delivered = orders["delivered"];
    assert_eq!(
        http(&store, "GET", "/summary", &[], b"").json()["delivered"],
        delivered
    );
    let output = run(&[
        "audit",
        "--oms",
        &oms_url,
        "--warehouse",
        &store_url,
        "--data",
        data,
        "--repeat",
        "0",
        "--output",
        "json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let audit: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(audit["deliveries"], delivered);
    assert_eq!(audit["orders"], orders.values().sum::<u64>());
    assert_eq!(audit["log_lines"], log.lines().count());
}
