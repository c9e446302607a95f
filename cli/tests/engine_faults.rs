//! A shop on a real engine while nodes and servers of the engine fail.
//!
//! A shop front sends orders and payments all the time, to a node in which the test causes no
//! fault. The audit at the end of the front compares each acknowledged request with the nodes and
//! the warehouse. The audit reports lost orders and double deliveries. After each fault, all
//! entries of the volumes' logs are examined for entries of former owners, also those no longer in
//! the log.
//!
//! `IMT_ENGINE_ROUNDS=N` repeats all faults N times, each time on a new engine.

use crate::engine::{Engine, patient};
use crate::support::{Server, free_address, http, imt, run, signal, stdout, try_http, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::{TempDir, tempdir};

/// Number of standbys of the engine. A test kills one standby and the primary. A second standby is
/// then promoted, and needs the third one as its standby.
const STANDBYS: usize = 3;
/// Maximum number of pauses of one second. At least one of them must move no volume. A busy machine
/// may lengthen a pause, so one try is not enough.
const SHORT_PAUSES: usize = 5;
/// Maximum number of pauses that last until another node serves the volume. At least one of them
/// must stop the node during a commit.
const LONG_PAUSES: usize = 5;
/// Number of clients that keep a node committing.
const CLIENTS: usize = 8;

pub fn rounds() -> usize {
    std::env::var("IMT_ENGINE_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap())
}

/// The process of a shop front, killed when dropped.
struct Front(Child);

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the loops of clients when dropped, also after a failed assertion.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Nodes, a warehouse, and a shop front that sends requests until [`Shop::finish`].
pub struct Shop {
    pub engine: Engine,
    /// The node that the front calls.
    pub entry: Server,
    pub nodes: BTreeMap<&'static str, Server>,
    front: Front,
    _warehouse: Server,
    warehouse_url: String,
    /// IP address on which the nodes and the warehouse listen.
    host: String,
    folders: TempDir,
}

impl Shop {
    /// Starts the engine, the nodes one after another, the warehouse and the front. The first of
    /// `names` becomes the coordinator. Returns once every volume commits.
    pub fn start(host: &str, names: &[&'static str]) -> Shop {
        let engine = Engine::with_standbys(STANDBYS);
        engine.record_entries();
        let folders = tempdir().unwrap();
        let warehouse_address = free_address().replace("127.0.0.1", host);
        let warehouse_url = format!("http://{warehouse_address}");
        let node = |name| {
            Server::spawn(command(&args_of(
                name,
                &folders,
                host,
                &warehouse_url,
                &engine.url,
            )))
        };
        let nodes = names.iter().map(|name| (*name, node(*name))).collect();
        let entry = node("entry");
        let folder = |name: &str| folders.path().join(name).to_str().unwrap().to_owned();
        let (stored, own) = (folder("warehouse"), folder("front"));
        let served = ["sim", "warehouse", "--listen", &warehouse_address, "--oms"];
        let _warehouse = Server::start(
            &[
                &served[..],
                &[&entry.url(), "--data", &stored, "--profile", "fast"],
            ]
            .concat(),
        );
        let load = [
            "sim",
            "front",
            "--rate",
            "30",
            "--duration",
            "1day",
            "--plain",
            "--output",
            "json",
        ];
        let between = [
            "--oms",
            &entry.url(),
            "--warehouse",
            &warehouse_url,
            "--data",
            &own,
        ];
        let front = imt(&[&load[..], &between].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let shop = Shop {
            engine,
            entry,
            nodes,
            front: Front(front),
            _warehouse,
            warehouse_url,
            host: host.to_owned(),
            folders,
        };
        shop.wait_until_home();
        shop.wait_for_commits();
        shop
    }

    /// Returns the arguments of a node on an engine with this URL.
    pub fn node_args(&self, name: &str, host: &str, engine: &str) -> Vec<String> {
        args_of(name, &self.folders, host, &self.warehouse_url, engine)
    }

    fn start_node(&mut self, name: &'static str) {
        let args = self.node_args(name, &self.host, &self.engine.url);
        let node = Server::spawn(command(&args));
        self.nodes.insert(name, node);
    }

    fn listed(&self) -> Vec<Value> {
        let listed = run(&["node", "list", "--output", "json", "--engine", &self.engine.url]);
        match listed.status.code() {
            Some(0) => serde_json::from_str(&stdout(&listed)).unwrap(),
            // The command fails while the engine promotes a standby. The list is empty then.
            _ => Vec::new(),
        }
    }

    /// Waits until each node serves its own volume, and the node that the front calls can read all
    /// volumes.
    pub fn wait_until_home(&self) {
        let wanted = self.nodes.len() + 1;
        until("each node serves its own volume", || {
            let listed = self.listed();
            let home = listed.iter().filter(|node| {
                node["state"] == "serving" && node["volumes"] == json!([node["name"].as_str().unwrap()])
            });
            home.count() == wanted && self.answers()
        });
    }

    fn answers(&self) -> bool {
        let answer = try_http(&self.entry.address, "GET", "/reservations?limit=1", &[], b"");
        answer.is_some_and(|answer| answer.status == 200)
    }

    /// Waits until another node serves the volume of a node, and every volume answers.
    pub fn wait_until_taken(&self, name: &str) {
        let owner = format!("SELECT owner FROM imt_volume WHERE volume = '{name}'");
        until("another node has the volume", || self.engine.ask(&owner) != name);
        until("every volume answers", || self.answers());
    }

    /// Waits until the log of every volume has a new entry.
    pub fn wait_for_commits(&self) {
        let sql = "SELECT volume, max(seq) FROM imt_log GROUP BY volume";
        let read = || -> BTreeMap<String, u64> {
            let answer = self.engine.ask(sql);
            let entries = answer.lines().map(|line| line.split_once('|').unwrap());
            entries
                .map(|(volume, seq)| (volume.to_owned(), seq.parse().unwrap()))
                .collect()
        };
        let before = read();
        until("every volume commits", || {
            let now = read();
            before
                .iter()
                .all(|(volume, seq)| now.get(volume).is_some_and(|newer| newer > seq))
        });
    }

    /// Returns the epoch of each volume, which grows when another process begins to serve it.
    pub fn epochs(&self) -> String {
        self.engine
            .ask("SELECT volume, epoch FROM imt_volume ORDER BY volume")
    }

    fn coordinator(&self) -> String {
        let label = self.engine.ask("SELECT coordinator FROM imt_cluster");
        label.split_once('/').unwrap().0.to_owned()
    }

    fn kill_and_start(&mut self, name: &'static str) {
        self.nodes.remove(name).unwrap().kill();
        self.wait_until_taken(name);
        self.wait_for_commits();
        self.start_node(name);
        self.wait_until_home();
        self.engine.assert_fenced();
    }

    fn kill_coordinator(&mut self) {
        let before = self.coordinator();
        let name = *self
            .nodes
            .keys()
            .find(|name| **name == before)
            .expect("not the entry");
        self.nodes.remove(name).unwrap().kill();
        until("another node coordinates", || self.coordinator() != before);
        self.wait_until_taken(name);
        self.start_node(name);
        self.wait_until_home();
        self.engine.assert_fenced();
    }

    /// Pauses a node for one second, up to [`SHORT_PAUSES`] times. Asserts that at least one pause
    /// moves no volume.
    fn pause_shortly(&self, name: &str) {
        for _ in 0..SHORT_PAUSES {
            let before = self.epochs();
            signal(self.nodes[name].id(), "STOP");
            // This time is the length of the fault, not a wait for a condition.
            std::thread::sleep(Duration::from_secs(1));
            signal(self.nodes[name].id(), "CONT");
            self.wait_until_home();
            self.wait_for_commits();
            self.engine.assert_fenced();
            if self.epochs() == before {
                return;
            }
        }
        panic!("each of {SHORT_PAUSES} pauses of one second moved a volume");
    }

    /// Pauses a node while it commits, until another node serves its volume, up to [`LONG_PAUSES`]
    /// times. Asserts that no pause loses an acknowledged order, and that the node's commits are
    /// refused after at least one pause.
    fn pause_until_replaced(&self, name: &str) {
        let node = &self.nodes[name];
        for attempt in 0..LONG_PAUSES {
            // `said` discards the log lines of earlier pauses. Its result is not used, because no
            // line contains a line break.
            node.said("\n");
            let placed = self.load_across(name, attempt);
            self.wait_until_home();
            self.engine.assert_fenced();
            for id in placed {
                let found = patient(|| http(&self.entry.address, "GET", &format!("/order/{id}"), &[], b""));
                assert_eq!(found.status, 200, "acknowledged and lost: {id}");
            }
            if node.said("volume taken over by another process") {
                return;
            }
        }
        panic!("the node had no commit to make in {LONG_PAUSES} pauses");
    }

    /// Pauses a node until another node serves its volume and every volume has committed since.
    /// Clients send orders to the paused node from before the pause until its end. Returns the ids
    /// of the acknowledged orders.
    fn load_across(&self, name: &str, attempt: usize) -> Vec<String> {
        let (process, address) = (self.nodes[name].id(), &self.nodes[name].address);
        let is_over = AtomicBool::new(false);
        let order = |client: usize, number: usize| {
            let id = format!("pause-{attempt}-{client}-{number}");
            let body = json!({"id": id, "products": [{"id": 1, "quantity": 1}]}).to_string();
            let answer = try_http(address, "POST", "/order", &[], body.as_bytes());
            answer.is_some_and(|answer| answer.status == 200).then_some(id)
        };
        let client = |client| {
            let numbers = (0..).take_while(|_| !is_over.load(Ordering::Relaxed));
            numbers
                .filter_map(|number| order(client, number))
                .collect::<Vec<_>>()
        };
        let client = &client;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|number| scope.spawn(move || client(number)))
                .collect();
            let over = Over(&is_over);
            self.wait_for_commits();
            signal(process, "STOP");
            self.wait_until_taken(name);
            self.wait_for_commits();
            signal(process, "CONT");
            drop(over);
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap())
                .collect()
        })
    }

    /// Ends the front, and asserts that its audit found nothing.
    pub fn finish(mut self) {
        signal(self.front.0.id(), "INT");
        let mut output = String::new();
        let mut stdout = self.front.0.stdout.take().unwrap();
        stdout.read_to_string(&mut output).unwrap();
        let ended = self.front.0.wait().unwrap();
        let summary: Value = serde_json::from_str(&output).unwrap();
        let audit = &summary["audit"];
        assert_eq!(audit["findings"], json!([]), "{summary}");
        assert!(audit["orders_acknowledged"].as_u64() > Some(0), "{audit}");
        // Exit code 130 means interrupted. Findings of the audit would give another code.
        assert_eq!(ended.code(), Some(130), "{summary}");
        let entries = self.engine.assert_fenced();
        assert!(entries > 0, "no entry was recorded");
        println!(
            "{} requests, {} orders and {} payments acknowledged, errors {}; {entries} log entries",
            summary["requests"],
            audit["orders_acknowledged"],
            audit["payments_acknowledged"],
            summary["errors"]
        );
    }
}

/// Returns the command of the binary with these arguments.
pub fn command(args: &[String]) -> Command {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    imt(&args)
}

fn args_of(name: &str, folders: &TempDir, host: &str, warehouse: &str, engine: &str) -> Vec<String> {
    let folder = folders.path().join(name);
    let listen = format!("{host}:0");
    let folder = folder.to_str().unwrap();
    let named = [
        "node", "start", "--name", name, "--data", folder, "--listen", &listen,
    ];
    let about = ["--warehouse", warehouse, "--engine", engine];
    named.iter().chain(&about).map(|arg| (*arg).to_owned()).collect()
}

#[test]
#[ignore = "needs an engine"]
fn entries_of_a_former_owner_are_found_also_in_place_of_removed_ones() {
    let engine = Engine::with_standbys(0);
    engine.record_entries();
    let add = |seq: u64, epoch: u64| {
        let values = format!("('a', {seq}, {epoch}, '')");
        engine.ask(&format!(
            "INSERT INTO imt_log (volume, seq, epoch, body) VALUES {values}"
        ));
    };
    for (seq, epoch) in [(1, 1), (2, 1), (3, 2), (4, 4)] {
        add(seq, epoch);
    }
    assert_eq!(engine.assert_fenced(), 4);
    engine.ask("DELETE FROM imt_log WHERE seq < 4");
    assert_eq!(engine.assert_fenced(), 4);
    // The fence permits none of these entries: one of an older epoch, one of the present epoch in
    // place of a removed one, and one after a gap.
    for (seq, epoch) in [(5, 3), (2, 4), (6, 4)] {
        add(seq, epoch);
    }
    assert_eq!(engine.unfenced_entries(), "a|5\na|2\na|6");
}

#[test]
#[ignore = "needs an engine"]
fn the_audit_is_clean_after_kills_and_pauses_of_nodes_and_kills_of_servers() {
    for _ in 0..rounds() {
        let mut shop = Shop::start("127.0.0.1", &["alpha", "beta", "gamma"]);
        shop.kill_and_start("beta");
        shop.kill_coordinator();
        shop.pause_shortly("gamma");
        shop.pause_until_replaced("gamma");
        shop.engine.kill("standby3");
        shop.wait_for_commits();
        shop.engine.assert_fenced();
        let before = shop.epochs();
        shop.engine.kill("primary");
        shop.engine.wait_for_promotion();
        shop.wait_for_commits();
        shop.wait_until_home();
        shop.engine.assert_fenced();
        assert_eq!(
            shop.epochs(),
            before,
            "no node is taken for gone by the end of a primary"
        );
        shop.finish();
    }
}
