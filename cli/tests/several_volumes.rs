//! A node serves more than one volume, or cannot serve a volume that it should. Probes, metrics and
//! lists must cover all volumes. Each node of a pair refuses invalid uploads of stock.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::OnceLock;

use crate::support::{Answer, Server, http, run, stderr, stdout, try_http, until};
use serde_json::json;
use tempfile::{TempDir, tempdir};

const SAMPLE_STOCKS: &[u8] = include_bytes!("../../data/samples/stocks.csv");
const CSV: &[(&str, &str)] = &[("Content-Type", "text/csv")];
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

fn folder(data: &TempDir) -> &str {
    data.path().to_str().unwrap()
}

/// Returns the URL of a warehouse that answers 500 to every call, so that messages become dead
/// letters. All nodes of a data folder have the same warehouse.
fn failing_warehouse() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let head = "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\n";
                let _ = stream.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes());
            }
        });
        url
    })
}

fn start(data: &TempDir, name: &str) -> Server {
    start_with(data, name, &[])
}

fn start_with(data: &TempDir, name: &str, more: &[&str]) -> Server {
    let usual = [
        "--warehouse",
        failing_warehouse(),
        "--stat-scan",
        "50ms",
        "--warehouse-tries",
        "1",
    ];
    Server::node(name, folder(data), &[&usual[..], more].concat())
}

fn get(at: &Server, path: &str) -> Answer {
    http(&at.address, "GET", path, &[], b"")
}

fn post(at: &Server, path: &str, body: &serde_json::Value) -> Answer {
    http(&at.address, "POST", path, JSON, body.to_string().as_bytes())
}

fn members(at: &Server) -> usize {
    try_http(&at.address, "GET", "/ring", &[], b"")
        .map_or(0, |answer| answer.json()["members"].as_array().unwrap().len())
}

/// Starts two nodes, and sends stock and 40 orders to the first one. Each node owns some of the
/// orders.
fn pair(data: &TempDir) -> (Server, Server) {
    let alpha = start(data, "alpha");
    let beta = start(data, "beta");
    until("both have a share", || {
        members(&alpha) == 2 && members(&beta) == 2
    });
    let stock = http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    let first = std::str::from_utf8(SAMPLE_STOCKS).unwrap().lines();
    let product: u64 = first
        .filter(|line| !line.ends_with(",0"))
        .find_map(|line| line.split(',').next()?.parse().ok())
        .unwrap();
    for number in 0..40 {
        let order = json!({"id": format!("o{number}"), "products": [{"id": product, "quantity": 1}]});
        let answer = post(&alpha, "/order", &order);
        assert!(matches!(answer.status, 200 | 409), "{}", answer.body);
    }
    (alpha, beta)
}

/// Returns the values in `/metrics`, by the name of the metric with its labels. Asserts that each
/// name with labels occurs once, that each metric has one type, and that a metric is a counter if
/// and only if its name ends in `_total`.
fn series(at: &Server) -> BTreeMap<String, f64> {
    let answer = get(at, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(
        answer.head.contains("text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    let mut found = BTreeMap::new();
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let before = found.insert(name.to_owned(), value.parse().unwrap());
        assert_eq!(before, None, "{name} is there twice");
    }
    for family in found.keys().map(|name| name.split('{').next().unwrap()) {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| family.strip_suffix(suffix))
            .unwrap_or(family);
        let heads = answer.body.matches(&format!("# TYPE {base} ")).count();
        assert_eq!(heads, 1, "{base} has one TYPE");
        let counts = answer.body.contains(&format!("# TYPE {base} counter"));
        assert_eq!(counts, base.ends_with("_total"), "{base}");
    }
    found
}

fn orders(series: &BTreeMap<String, f64>, volume: &str) -> f64 {
    let begin = format!("imt_orders{{volume=\"{volume}\",");
    let of_volume = series.iter().filter(|(name, _)| name.starts_with(&begin));
    of_volume.map(|(_, value)| value).sum()
}

const OF_A_VOLUME: [&str; 10] = [
    "imt_outbox_messages",
    "imt_outbox_dead",
    "imt_outbox_in_flight",
    "imt_warehouse_away",
    "imt_commit_queue",
    "imt_transactors",
    "imt_volume_ready",
    "imt_transactor_panics_total",
    "imt_stock_snapshots_total",
    "imt_stat_files_total",
];

#[test]
fn metrics_cover_every_served_volume_and_counters_never_decrease() {
    let data = tempdir().unwrap();
    let (alpha, beta) = pair(&data);
    let count = |at: &Server| orders(&series(at), "alpha") + orders(&series(at), "beta");
    let all = count(&alpha) + count(&beta);
    assert!(orders(&series(&alpha), "alpha") > 0.0 && orders(&series(&beta), "beta") > 0.0);
    assert_eq!(orders(&series(&alpha), "beta"), 0.0, "it is served elsewhere");
    let before = series(&alpha);

    let mut counters: BTreeMap<String, f64> = BTreeMap::new();
    let mut check = |now: &BTreeMap<String, f64>| {
        for (name, value) in now.iter().filter(|(name, _)| name.contains("_total")) {
            let known = counters.insert(name.clone(), *value);
            assert!(
                known.is_none_or(|known| known <= *value),
                "{name}: {known:?}, {value}"
            );
        }
    };
    check(&before);
    beta.kill();
    until("alpha serves both", || count(&alpha) == all);
    let both = series(&alpha);
    check(&both);
    for family in OF_A_VOLUME {
        for volume in ["alpha", "beta"] {
            let name = format!("{family}{{volume=\"{volume}\"}}");
            assert!(both.contains_key(&name), "{name} is missing");
        }
    }
    let of_alpha = before
        .iter()
        .filter(|(name, _)| name.contains("volume=\"alpha\""));
    for (name, value) in of_alpha.filter(|(name, _)| name.starts_with("imt_orders")) {
        assert_eq!(
            both[name], *value,
            "{name}: the take-over changes nothing of alpha's"
        );
    }
    assert_eq!(get(&alpha, "/health/ready").status, 200);
    let stock = http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    check(&series(&alpha));
    let taken = series(&alpha)["imt_stock_snapshots_total{volume=\"beta\"}"];
    assert_eq!(taken, 1.0);

    // Beta takes its volume back, is killed, and alpha takes the volume over again. The counters of
    // alpha's process do not begin at zero again.
    let beta = start(&data, "beta");
    until("beta serves its own", || orders(&series(&alpha), "beta") == 0.0);
    check(&series(&alpha));
    beta.kill();
    until("alpha serves both again", || count(&alpha) == all);
    check(&series(&alpha));
    assert_eq!(series(&alpha)["imt_stock_snapshots_total{volume=\"beta\"}"], 1.0);

    // Lists of orders include both volumes, too.
    let listed = get(&alpha, "/orders?limit=10000").json();
    let page = listed["orders"].as_array().unwrap().len() as f64;
    let rest = listed["next"].as_str().map_or(0.0, |next| {
        let more = get(&alpha, &format!("/orders?limit=10000&cursor={next}")).json();
        more["orders"].as_array().unwrap().len() as f64
    });
    assert_eq!(page + rest, all);
    let dead = || {
        let listed = run(&["order", "dead", "list", "--oms", &alpha.url(), "--output", "json"]);
        serde_json::from_str::<serde_json::Value>(&stdout(&listed)).unwrap()
    };
    let health = get(&alpha, "/health").json();
    assert_eq!(health["volumes"], json!(["alpha", "beta"]));
    until("every message is dead", || {
        let sum: f64 = ["alpha", "beta"]
            .iter()
            .map(|volume| series(&alpha)[&format!("imt_outbox_dead{{volume=\"{volume}\"}}")])
            .sum();
        sum > 0.0 && dead().as_array().is_some_and(|dead| dead.len() as f64 == sum)
    });
}

#[test]
fn a_volume_whose_folder_is_missing_is_named_and_not_replaced_by_an_empty_one() {
    let data = tempdir().unwrap();
    let (alpha, beta) = pair(&data);
    let ids: Vec<String> = (0..40).map(|number| format!("/order/o{number}")).collect();
    let known: Vec<u16> = ids.iter().map(|path| get(&alpha, path).status).collect();
    assert_eq!(beta.terminate().0, Some(0));
    assert_eq!(alpha.terminate().0, Some(0));
    let (volume, elsewhere) = (data.path().join("volumes/beta"), data.path().join("unmounted"));
    std::fs::rename(&volume, &elsewhere).unwrap();

    // The node beta does not start if the folder of its volume is missing. The error names the
    // folder.
    let own = run(&[
        "node",
        "start",
        "--name",
        "beta",
        "--data",
        folder(&data),
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!(own.status.code(), Some(1), "{}", stderr(&own));
    assert!(stderr(&own).contains("volumes/beta"), "{}", stderr(&own));

    let alpha = start(&data, "alpha");
    until("alpha finds the volume missing", || {
        get(&alpha, "/health").json()["missing_volumes"]["beta"].is_string()
    });
    assert_eq!(get(&alpha, "/health").json()["status"], "degraded");
    let ready = get(&alpha, "/health/ready");
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("volume beta"), "{}", ready.body);
    assert_eq!(series(&alpha)["imt_volume_ready{volume=\"beta\"}"], 0.0);
    assert_eq!(series(&alpha)["imt_volume_ready{volume=\"alpha\"}"], 1.0);
    let listed = stdout(&run(&["node", "list", "--data", folder(&data)]));
    assert!(
        listed.contains("degraded") && listed.contains("volumes/beta"),
        "{listed}"
    );
    assert!(!volume.join("SUPER").exists(), "no database in its place");
    let left = run(&[
        "node",
        "leave",
        "beta",
        "--timeout",
        "100ms",
        "--data",
        folder(&data),
    ]);
    assert_eq!(
        left.status.code(),
        Some(1),
        "its orders are not there to be moved"
    );

    // If a disk is not mounted, the folder of its volume is empty. Alpha must not create a database
    // there.
    std::fs::create_dir_all(&volume).unwrap();
    assert_eq!(get(&alpha, "/health/ready").status, 503);
    std::fs::remove_dir_all(&volume).unwrap();
    std::fs::rename(&elsewhere, &volume).unwrap();
    until("the volume is served again", || {
        get(&alpha, "/health/ready").status == 200
    });
    let again: Vec<u16> = ids.iter().map(|path| get(&alpha, path).status).collect();
    assert_eq!(again, known);
}

#[test]
fn a_number_of_a_delivery_from_the_far_future_is_refused_by_a_pair_too() {
    let data = tempdir().unwrap();
    let (alpha, beta) = pair(&data);
    for at in [&alpha, &beta] {
        let headers = [CSV[0], ("X-Stock-As-Of", "18446744073709551615")];
        let refused = http(&at.address, "PUT", "/stocks", &headers, SAMPLE_STOCKS);
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert_eq!(refused.json()["field"], "X-Stock-As-Of");
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        let refused = http(&at.address, "PUT", "/stocks", &form, b"1,1,1\n");
        assert_eq!(refused.status, 415, "{}", refused.body);
        let taken = http(
            &at.address,
            "PUT",
            "/stocks",
            &[CSV[0], ("X-Stock-As-Of", "9")],
            SAMPLE_STOCKS,
        );
        assert_eq!(taken.status, 200, "{}", taken.body);
    }
}
