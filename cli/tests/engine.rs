//! Nodes with data folders of their own on a real engine: a primary and two synchronous standbys,
//! made by `imt engine demo`.
//!
//! These tests need an installed PostgreSQL server. PostgreSQL refuses to run as root, so if the
//! tests run as root, they need the right to start processes as another user.

use crate::support::{Answer, HANG, Server, http, imt, run, signal, stderr, stdout, try_http, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use tempfile::{TempDir, tempdir};

mod scale_out;
mod set_up;

const SAMPLE_STOCKS: &[u8] = include_bytes!("../../data/samples/stocks.csv");
const CSV: &[(&str, &str)] = &[("Content-Type", "text/csv")];
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// A primary and its standbys, stopped when dropped.
pub struct Engine {
    child: Child,
    pub url: String,
    /// Name and process id of each server.
    servers: Vec<(String, u32)>,
    log: Receiver<String>,
}

impl Engine {
    fn start() -> Engine {
        Engine::with_standbys(2)
    }

    pub fn with_standbys(standbys: usize) -> Engine {
        let standbys = standbys.to_string();
        let mut child = imt(&["engine", "demo", "--standbys", &standbys, "--output", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (send, log) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut text = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let described: Value = loop {
            let read = output.read_line(&mut text).unwrap();
            if let Ok(described) = serde_json::from_str(&text) {
                break described;
            }
            let said: Vec<String> = log.try_iter().collect();
            assert!(read > 0, "the engine did not start:\n{}", said.join("\n"));
        };
        let server = |server: &Value| {
            let process = server["process"].as_u64().unwrap();
            (server["name"].as_str().unwrap().to_owned(), process as u32)
        };
        Engine {
            child,
            url: described["url"].as_str().unwrap().to_owned(),
            servers: described["servers"]
                .as_array()
                .unwrap()
                .iter()
                .map(server)
                .collect(),
            log,
        }
    }

    /// Kills a server with `kill -9`. Its sessions end with it.
    pub fn kill(&self, name: &str) {
        let (_, process) = self.servers.iter().find(|(known, _)| known == name).unwrap();
        signal(*process, "KILL");
    }

    /// Runs a statement on the primary, and repeats it until it succeeds, because a failed primary
    /// must be replaced first. Returns the rows as lines, with `|` between values.
    pub fn ask(&self, sql: &str) -> String {
        let url = format!("{}?target_session_attrs=read-write&connect_timeout=5", self.url);
        let mut answer = None;
        until("a primary answers", || {
            let asked = Command::new("psql")
                .args([&url, "-XAtc", sql])
                .output()
                .expect("psql is installed beside the server");
            answer = asked.status.success().then(|| stdout(&asked));
            answer.is_some()
        });
        answer.unwrap().trim().to_owned()
    }

    /// Makes the engine record each later entry of the logs in the table `test_entries`. Entries
    /// leave `imt_log` a minute after their acknowledgement, so early entries of a long test are
    /// only in this table. Must be called before the first node starts, by a test that removes no
    /// volume.
    ///
    /// The number `at` gives the order of the insertions. An entry and its record are one
    /// transaction, so a fail-over keeps or loses both.
    pub fn record_entries(&self) {
        self.ask(
            "CREATE TABLE test_entries (at bigserial, volume text, seq bigint, epoch bigint); \
             CREATE FUNCTION test_record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO test_entries (volume, seq, epoch) VALUES (NEW.volume, NEW.seq, NEW.epoch); \
             RETURN NULL; END $$; \
             CREATE TRIGGER test_record AFTER INSERT ON imt_log \
             FOR EACH ROW EXECUTE FUNCTION test_record()",
        );
    }

    /// Returns the entries since [`Engine::record_entries`] that a former owner may have added, as
    /// lines: each entry that has an older epoch than the entry inserted before it in its volume,
    /// or another number than the next one. An entry in place of one that was removed from the log
    /// is one of them.
    pub fn unfenced_entries(&self) -> String {
        self.ask(
            "SELECT volume, seq FROM (SELECT volume, at, seq, epoch < lag(epoch) OVER log AS stale, \
             seq <> 1 + lag(seq, 1, 0::bigint) OVER log AS gap FROM test_entries \
             WINDOW log AS (PARTITION BY volume ORDER BY at)) entries WHERE stale OR gap ORDER BY at",
        )
    }

    /// Asserts that no former owner has added an entry since [`Engine::record_entries`]. Returns
    /// the number of recorded entries.
    pub fn assert_fenced(&self) -> u64 {
        assert_eq!(self.unfenced_entries(), "", "entries of former owners, or gaps");
        let entry = "SELECT volume, seq, epoch FROM";
        let unrecorded = self.ask(&format!("{entry} imt_log EXCEPT {entry} test_entries"));
        assert_eq!(unrecorded, "", "entries that were not recorded");
        self.ask("SELECT count(*) FROM test_entries").parse().unwrap()
    }

    pub fn wait_for_promotion(&self) {
        loop {
            let line = self.log.recv_timeout(HANG).expect("a standby is promoted");
            if line.contains("standby promoted") {
                return;
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

/// An engine, and the data folders of the nodes that a test starts on it.
struct World {
    engine: Engine,
    folders: TempDir,
}

impl World {
    fn new() -> World {
        World {
            engine: Engine::start(),
            folders: tempdir().unwrap(),
        }
    }

    fn start(&self, name: &str) -> Server {
        let folder = self.folders.path().join(name);
        let folder = folder.to_str().unwrap();
        let (warehouse, engine) = ("http://127.0.0.1:9", &self.engine.url);
        Server::node(name, folder, &["--warehouse", warehouse, "--engine", engine])
    }

    /// Starts three nodes, sends stock to them, and waits until the ring has all three as members.
    fn three(&self) -> [Server; 3] {
        let nodes = ["alpha", "beta", "gamma"].map(|name| self.start(name));
        self.fill(&nodes.each_ref());
        nodes
    }

    /// Sends stock to the cluster through the first of `nodes`, and waits until the ring of each
    /// node has all of `nodes` as members.
    fn fill(&self, nodes: &[&Server]) {
        let stock = http(&nodes[0].address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
        assert_eq!(stock.status, 200, "{}", stock.body);
        until("all have their shares", || {
            nodes.iter().all(|node| members(&node.address) == nodes.len())
        });
    }

    /// Returns the cluster's secret.
    fn secret(&self) -> String {
        let read = Command::new("psql")
            .args(["-At", "-c", "SELECT secret FROM imt_cluster", &self.engine.url])
            .output()
            .expect("psql is installed");
        stdout(&read).trim().to_owned()
    }

    fn listed(&self) -> Value {
        let listed = run(&["node", "list", "--output", "json", "--engine", &self.engine.url]);
        assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
        serde_json::from_str(&stdout(&listed)).unwrap()
    }

    /// Returns the state of each node by name.
    fn states(&self) -> Vec<(String, String)> {
        let listed = self.listed();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let state = |node: &Value| (text(&node["name"]), text(&node["state"]));
        listed.as_array().unwrap().iter().map(state).collect()
    }
}

pub fn members(at: &str) -> usize {
    try_http(at, "GET", "/ring", &[], b"")
        .map_or(0, |answer| answer.json()["members"].as_array().unwrap().len())
}

pub fn post(at: &str, path: &str, body: &Value) -> Answer {
    http(at, "POST", path, JSON, body.to_string().as_bytes())
}

/// Repeats a request while its response is 503, as a client should. Returns the first other
/// response.
pub fn patient(mut send: impl FnMut() -> Answer) -> Answer {
    let mut last = None;
    until("the cluster answers", || {
        let answer = send();
        let is_busy = answer.status == 503;
        if is_busy {
            assert!(answer.head.contains("retry-after"), "{}", answer.head);
        }
        last = Some(answer);
        !is_busy
    });
    last.unwrap()
}

/// Places orders, and returns their ids with the responses.
fn place(at: &str, prefix: &str, count: usize) -> Vec<(String, String)> {
    let order = |number: usize| {
        let id = format!("{prefix}{number}");
        let order = json!({"id": id, "products": [{"id": 1 + number % 5, "quantity": 1}]});
        let answer = patient(|| post(at, "/order", &order));
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
        (id, answer.body)
    };
    (0..count).map(order).collect()
}

/// Asserts that a node returns each of `orders` with its store and products, and that the node
/// lists each of them once and no others.
fn assert_there(at: &str, orders: &[(String, String)]) {
    for (id, taken) in orders {
        let answer = patient(|| http(at, "GET", &format!("/order/{id}"), &[], b""));
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
        let taken: Value = serde_json::from_str(taken).unwrap();
        assert_eq!(answer.json()["store_id"], taken["store_id"], "{id}");
        assert_eq!(answer.json()["products"], taken["products"], "{id}");
    }
    let listed = patient(|| http(at, "GET", "/orders?limit=1000", &[], b"")).json();
    let ids: Vec<&str> = listed["orders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|order| order["id"].as_str().unwrap())
        .collect();
    let once: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(once.len(), ids.len(), "an order is listed once");
    assert_eq!(
        once,
        orders.iter().map(|(id, _)| id.as_str()).collect(),
        "every order is listed"
    );
}

/// Waits until the console of a node shows the status of each node, and the node that serves each
/// volume. A volume counts only with its figures, which the console has from a node that has opened
/// the volume.
fn assert_console(at: &str, nodes: &[(&str, &str)], volumes: &[(&str, &str)]) {
    let pairs = |rows: &Value, value: fn(&Value) -> &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pair = |row: &Value| (text(&row["name"]), text(value(row)));
        rows.as_array().unwrap().iter().map(pair).collect()
    };
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let (nodes, volumes) = (owned(nodes), owned(volumes));
    let mut shown = Value::Null;
    let holds = || {
        shown = http(at, "GET", "/console/state", &[], b"").json();
        pairs(&shown["nodes"], |node| &node["status"]) == nodes
            && pairs(&shown["volumes"], |volume| match volume["figures"].is_null() {
                true => &Value::Null,
                false => &volume["node"],
            }) == volumes
    };
    until("the console shows the nodes and their volumes", holds);
    // A node that has ended has no figures and no address.
    let rows = shown["nodes"].as_array().unwrap().iter();
    for node in rows.filter(|node| node["status"] == "died") {
        assert_eq!(node["serves"], json!([]), "{node}");
        assert!(node["address"].is_null() && node["requests"].is_null(), "{node}");
    }
}

#[test]
#[ignore = "needs an engine"]
fn orders_survive_kills_of_a_node_of_the_coordinator_and_of_its_cache() {
    let world = World::new();
    let [alpha, beta, gamma] = world.three();
    let mut orders = place(&alpha.address, "before-", 60);
    for node in [&alpha, &beta, &gamma] {
        assert_there(&node.address, &orders);
    }
    beta.kill();
    orders.extend(place(&gamma.address, "after-beta-", 30));
    assert_there(&alpha.address, &orders);
    // Alpha was the first node, so it is the coordinator.
    alpha.kill();
    orders.extend(place(&gamma.address, "after-alpha-", 30));
    assert_there(&gamma.address, &orders);
    let states = world.states();
    assert_eq!(
        states,
        [("alpha", "gone"), ("beta", "gone"), ("gamma", "serving")]
            .map(|(name, state)| (name.to_owned(), state.to_owned()))
    );
    let listed = world.listed();
    assert_eq!(
        listed[2]["volumes"],
        json!(["alpha", "beta", "gamma"]),
        "{listed}"
    );
    assert_console(
        &gamma.address,
        &[("alpha", "died"), ("beta", "died"), ("gamma", "serving")],
        &[("alpha", "gamma"), ("beta", "gamma"), ("gamma", "gamma")],
    );
    // The engine has all data. The data folder of a node is only a cache.
    std::fs::remove_dir_all(world.folders.path().join("alpha")).unwrap();
    let [alpha, beta] = ["alpha", "beta"].map(|name| world.start(name));
    until("each serves its own volume", || {
        world.states().iter().all(|(_, state)| state == "serving")
    });
    for node in [&alpha, &beta, &gamma] {
        assert_there(&node.address, &orders);
        assert_console(
            &node.address,
            &["alpha", "beta", "gamma"].map(|name| (name, "serving")),
            &["alpha", "beta", "gamma"].map(|name| (name, name)),
        );
    }
    let plan = run(&["ring", "show", "--output", "json", "--engine", &world.engine.url]);
    assert_eq!(plan.status.code(), Some(0), "{}", stderr(&plan));
    for node in [gamma, beta, alpha] {
        assert_eq!(node.terminate().0, Some(0));
    }
}

#[test]
#[ignore = "needs an engine"]
fn orders_survive_the_end_of_the_primary_and_no_node_is_taken_for_gone() {
    let world = World::new();
    let [alpha, beta, gamma] = world.three();
    let mut orders = place(&alpha.address, "before-", 40);
    world.engine.kill("primary");
    world.engine.wait_for_promotion();
    orders.extend(place(&beta.address, "after-", 40));
    for node in [&alpha, &beta, &gamma] {
        assert_there(&node.address, &orders);
    }
    for node in [alpha, beta, gamma] {
        let (code, log) = node.terminate();
        assert_eq!(code, Some(0));
        let gone: Vec<&String> = log
            .iter()
            .filter(|line| line.contains("node went down"))
            .collect();
        // A node may report that another node went down only after its own stop has begun.
        let stop = log.iter().position(|line| line.contains("finishing requests"));
        let before = log.iter().position(|line| line.contains("node went down"));
        assert!(before.is_none() || before > stop, "{gone:?}");
    }
}

#[test]
#[ignore = "needs an engine"]
fn a_paused_node_loses_its_volume_and_gets_it_back_without_a_lost_order() {
    let world = World::new();
    let [alpha, beta, gamma] = world.three();
    let mut orders = place(&beta.address, "before-", 40);
    signal(gamma.id(), "STOP");
    // Some of these orders belong to the volume of the paused node.
    orders.extend(place(&alpha.address, "during-", 60));
    signal(gamma.id(), "CONT");
    orders.extend(place(&gamma.address, "after-", 40));
    until("it serves its volume again", || {
        let listed = world.listed();
        let node = listed
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["name"] == "gamma")
            .unwrap();
        node["state"] == "serving" && node["volumes"] == json!(["gamma"])
    });
    for node in [&alpha, &beta, &gamma] {
        assert_there(&node.address, &orders);
    }
}

#[test]
#[ignore = "needs an engine"]
fn a_node_stops_although_its_engine_is_gone() {
    let world = World::new();
    let node = world.start("alpha");
    world.fill(&[&node]);
    place(&node.address, "kept-", 10);
    for server in ["standby2", "standby1", "primary"] {
        world.engine.kill(server);
    }
    let (code, log) = node.terminate();
    assert_eq!(code, Some(0), "{log:?}");
}

#[test]
#[ignore = "needs an engine"]
fn a_name_is_taken_once_and_a_node_leaves_for_good() {
    let world = World::new();
    let [alpha, beta, gamma] = world.three();
    let orders = place(&alpha.address, "o", 40);
    let folder = world.folders.path().join("other");
    let second = run(&[
        "node",
        "start",
        "--name",
        "beta",
        "--data",
        folder.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--engine",
        &world.engine.url,
    ]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("a node named beta already runs"),
        "{}",
        stderr(&second)
    );
    let left = run(&["node", "leave", "gamma", "--engine", &world.engine.url]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert_eq!(gamma.ended(), Some(0));
    assert_there(&beta.address, &orders);
    let stopped = run(&["node", "stop", "alpha", "--engine", &world.engine.url]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    assert_there(&beta.address, &orders);
    drop(alpha);
}

#[test]
#[ignore = "needs an engine"]
fn engine_check_passes_a_sound_engine_and_names_each_fault() {
    let engine = Engine::start();
    let checked = run(&["engine", "check", &engine.url, "--output", "json"]);
    assert_eq!(
        checked.status.code(),
        Some(0),
        "{}{}",
        stdout(&checked),
        stderr(&checked)
    );
    let checks: Value = serde_json::from_str(&stdout(&checked)).unwrap();
    for subject in [
        "version", "primary", "pooler", "standbys", "fsync", "role", "tables", "fence", "latency",
    ] {
        let check = checks
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["subject"] == subject);
        let check = check.unwrap_or_else(|| panic!("{subject} is missing: {checks}"));
        assert_ne!(check["verdict"], "BAD", "{check}");
        if subject == "pooler" {
            let finding = "none in transaction mode was found";
            assert_eq!(check["finding"], finding, "{check}");
        }
    }
    // Another database of the same server has no tables of a cluster.
    let other = engine.url.replace("/postgres", "/template1");
    let checked = run(&["engine", "check", &other]);
    assert_eq!(checked.status.code(), Some(3), "{}", stdout(&checked));
    assert!(
        stdout(&checked).contains("run imt engine init"),
        "{}",
        stdout(&checked)
    );
    let started = run(&[
        "node",
        "start",
        "--name",
        "a",
        "--listen",
        "127.0.0.1:0",
        "--engine",
        &other,
    ]);
    assert_eq!(started.status.code(), Some(1));
    assert!(
        stderr(&started).contains("run imt engine init"),
        "{}",
        stderr(&started)
    );
}

/// A shop with a warehouse runs while nodes are killed, stopped, paused and removed.
#[test]
#[ignore = "needs an engine"]
fn an_audit_after_random_events_finds_nothing() {
    let engine = Engine::start();
    let folder = tempdir().unwrap();
    let args = [
        "sim",
        "chaos",
        "--plain",
        "--rate",
        "40",
        "--duration",
        "25s",
        "--every",
        "4s",
    ];
    let mut command: Command = imt(&[&args[..], &["--data", folder.path().to_str().unwrap()]].concat());
    let run = command.env("IMT_ENGINE", &engine.url).output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}{}", stdout(&run), stderr(&run));
}
