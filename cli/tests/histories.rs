//! The histories of clients of four real nodes must be linearizable while nodes are killed, paused
//! and removed.
//!
//! The check is that of the simulation (`oms/src/simulation/history.rs`). The check is valid for
//! any timing of the processes, so the verdict on a history depends on no duration. A client that
//! waits too long gives up, and the outcome of its operation is unknown.
//!
//! In the first test, the nodes share a data folder. In the second one, which is ignored by
//! default, they share an engine (PostgreSQL servers). In the second test, a standby and the
//! primary are killed as well.
//!
//! With `IMT_HISTORY_ROUNDS=N`, the first test repeats the faults N times on the same nodes, and
//! the second test starts N times with new nodes and a new engine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop where it stands"
)]

#[path = "../../oms/src/simulation/history.rs"]
mod history;
use crate::engine::Engine;
use crate::support::{Server, http, run, stderr, stdout, try_http, until};
use history::{Answer, History, Step, lines_of};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::{TempDir, tempdir};

const NODES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
const CLIENTS: u64 = 8;
/// Number of orders on which the clients work at the same time.
const ORDERS_AT_ONCE: usize = 4;
/// Maximum number of operations on an order while faults happen. A last read with a response
/// follows at the end.
const STEPS_PER_ORDER: usize = 24;
/// Minimum number of operations that the clients begin during a pause of a node, and between the
/// beginnings of two faults.
const OPERATIONS_BETWEEN: u64 = 200;
/// Maximum time of each read of a response. A client gives up after a longer wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// Random numbers of a client, from a linear congruential generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn step(&mut self) -> Step {
        match self.below(100) {
            0..=29 => Step::Place(if self.below(10) == 0 { 2 } else { 1 }),
            30..=54 => Step::Pay(1 + u64::from(self.below(5) == 0)),
            55..=62 => Step::Cancel,
            _ => Step::Read,
        }
    }
}

#[derive(Default)]
struct Orders {
    histories: BTreeMap<u64, History>,
    /// Orders on which clients work at present, each with its number of further operations.
    open: Vec<(u64, usize)>,
    next: u64,
}

/// State that the clients share with the thread that causes the faults.
#[derive(Default)]
struct Shared {
    addresses: Mutex<BTreeMap<&'static str, String>>,
    orders: Mutex<Orders>,
    operations: AtomicU64,
    is_over: AtomicBool,
}

impl Shared {
    fn choose(&self, dice: &mut Dice) -> u64 {
        let mut orders = self.orders.lock().unwrap();
        while orders.open.len() < ORDERS_AT_ONCE {
            orders.next += 1;
            let order = orders.next;
            orders.open.push((order, STEPS_PER_ORDER));
        }
        let at = dice.below(ORDERS_AT_ONCE as u64) as usize;
        let (order, left) = &mut orders.open[at];
        let order = *order;
        *left -= 1;
        if *left == 0 {
            orders.open.swap_remove(at);
        }
        order
    }

    fn any_address(&self, dice: &mut Dice) -> String {
        let addresses = self.addresses.lock().unwrap();
        let at = dice.below(addresses.len() as u64) as usize;
        addresses.values().nth(at).unwrap().clone()
    }

    /// Carries out one operation on an order, and records it in the order's history. Returns `true`
    /// if a response came that tells the outcome.
    fn carry_out(&self, client: u64, dice: &mut Dice, order: u64, step: Step) -> bool {
        let address = self.any_address(dice);
        let number = {
            let mut orders = self.orders.lock().unwrap();
            let history = orders.histories.entry(order).or_default();
            history.invoke(client, step.clone())
        };
        self.operations.fetch_add(1, Ordering::Relaxed);
        let answer = exchange(&address, order, &step).and_then(|(status, is_replayed, body)| {
            let answer = Answer::read(&step, status, is_replayed, &body);
            answer.unwrap_or_else(|wrong| panic!("o{order}: {wrong}"))
        });
        let Some(answer) = answer else { return false };
        let mut orders = self.orders.lock().unwrap();
        orders.histories.entry(order).or_default().answer(number, answer);
        true
    }

    fn work(&self, client: u64) {
        let mut dice = Dice(client);
        while !self.is_over.load(Ordering::Relaxed) {
            let order = self.choose(&mut dice);
            let step = dice.step();
            self.carry_out(client, &mut dice, order, step);
        }
    }

    /// Waits until the clients have begun [`OPERATIONS_BETWEEN`] more operations.
    fn let_clients_work(&self) {
        let wanted = self.operations.load(Ordering::Relaxed) + OPERATIONS_BETWEEN;
        until("the clients work", || {
            self.operations.load(Ordering::Relaxed) >= wanted
        });
    }
}

/// Sends an operation. Returns the status, `true` if the node repeated the stored response to an
/// earlier request, and the body. Returns `None` if no complete response comes in time.
fn exchange(address: &str, order: u64, step: &Step) -> Option<(u16, bool, Value)> {
    let (method, path, body) = match step {
        Step::Place(content) => {
            let order = json!({"id": format!("o{order}"), "products": lines_of(*content)});
            ("POST", "/order".to_owned(), order.to_string())
        }
        Step::Pay(transaction) => {
            let payment = json!({"transaction_id": transaction}).to_string();
            ("POST", format!("/order/o{order}/payment-callback"), payment)
        }
        Step::Cancel => ("POST", format!("/order/o{order}/cancel"), String::new()),
        Step::Read => ("GET", format!("/order/o{order}"), String::new()),
    };
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    // A body that was cut off cannot be parsed. The exchange then has no response.
    let body = serde_json::from_str(body).ok()?;
    Some((
        status,
        head.to_lowercase().contains("idempotent-replayed: true"),
        body,
    ))
}

struct Cluster<'a> {
    data: TempDir,
    /// Engine that keeps the orders. `None` if the data folder keeps them.
    engine: Option<Engine>,
    servers: BTreeMap<&'static str, Server>,
    shared: &'a Shared,
}

impl<'a> Cluster<'a> {
    fn new(shared: &'a Shared, engine: Option<Engine>) -> Self {
        let mut cluster = Cluster {
            data: tempdir().unwrap(),
            engine,
            servers: BTreeMap::new(),
            shared,
        };
        NODES.into_iter().for_each(|name| cluster.start(name));
        cluster.wait_for_all();
        let stock: String = (1..=20).map(|store| format!("1,{store},1000\n")).collect();
        let address = cluster.servers["alpha"].address.clone();
        let csv = [("Content-Type", "text/csv")];
        let sent = http(&address, "PUT", "/stocks", &csv, stock.as_bytes());
        assert_eq!(sent.status, 200, "{}", sent.body);
        cluster
    }

    /// Returns the arguments that name the cluster in a command about the node `name`.
    fn place(&self, name: &str) -> Vec<String> {
        let shared = self.data.path();
        match &self.engine {
            None => vec!["--data".to_owned(), shared.to_str().unwrap().to_owned()],
            Some(engine) => {
                let own = shared.join(name).to_str().unwrap().to_owned();
                ["--data", &own, "--engine", &engine.url]
                    .map(str::to_owned)
                    .to_vec()
            }
        }
    }

    fn start(&mut self, name: &'static str) {
        let place = self.place(name);
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        let named = ["node", "start", "--name", name, "--listen", "127.0.0.1:0"];
        let warehouse = ["--warehouse", "http://127.0.0.1:9"];
        let server = Server::start(&[&named[..], &warehouse, &place].concat());
        let address = server.address.clone();
        self.servers.insert(name, server);
        self.shared.addresses.lock().unwrap().insert(name, address);
    }

    fn kill(&mut self, name: &'static str) {
        // Clients keep the address of the killed node, and their connections to it are refused.
        self.servers.remove(name).unwrap().kill();
    }

    fn signal(&self, name: &str, signal: &str) {
        let id = self.servers[name].id().to_string();
        let status = std::process::Command::new("kill").args([signal, &id]).status();
        assert!(status.unwrap().success());
    }

    /// Removes a node for good, and waits until its orders have moved.
    fn leave(&mut self, name: &'static str) {
        let place = self.place(name);
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        let left = run(&[&["node", "leave", name], &place[..]].concat());
        assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
        assert_eq!(self.servers.remove(name).unwrap().ended(), Some(0));
    }

    fn wait_for_all(&self) {
        until("every node has its share", || {
            self.servers.values().all(|server| {
                let ring = try_http(&server.address, "GET", "/ring", &[], b"");
                ring.is_some_and(|ring| ring.json()["members"].as_array().unwrap().len() == NODES.len())
            })
        });
    }

    fn is_gone(&self, name: &str) -> bool {
        let place = self.place(name);
        let place: Vec<&str> = place.iter().map(String::as_str).collect();
        let listed = run(&[&["node", "list", "--output", "json"], &place[..]].concat());
        let listed: Value = serde_json::from_str(&stdout(&listed)).unwrap_or_default();
        let mut nodes = listed.as_array().into_iter().flatten();
        nodes.any(|node| node["name"] == name && node["state"] == "gone")
    }

    /// Kills a standby and then the primary of the engine while the clients work. Of the two other
    /// standbys, one becomes the primary, and one remains as its standby.
    fn fail_over(&self) {
        let Some(engine) = &self.engine else { return };
        engine.kill("standby3");
        self.shared.let_clients_work();
        engine.kill("primary");
        self.shared.let_clients_work();
        engine.wait_for_promotion();
        self.shared.let_clients_work();
    }

    /// Kills, pauses and removes nodes while the clients work. In the first round, `alpha` is the
    /// coordinator, because it started first. So its kill also forces the choice of another
    /// coordinator.
    fn suffer(&mut self) {
        self.kill("beta");
        self.shared.let_clients_work();
        self.start("beta");
        self.signal("gamma", "-STOP");
        self.shared.let_clients_work();
        if self.engine.is_some() {
            until("the paused node is taken for gone", || self.is_gone("gamma"));
            self.shared.let_clients_work();
        }
        self.signal("gamma", "-CONT");
        self.leave("delta");
        self.shared.let_clients_work();
        self.start("delta");
        self.kill("alpha");
        self.shared.let_clients_work();
        self.start("alpha");
        self.wait_for_all();
        self.shared.let_clients_work();
    }
}

fn rounds() -> usize {
    std::env::var("IMT_HISTORY_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap())
}

#[test]
fn histories_of_clients_are_linearizable_while_nodes_are_killed_paused_and_removed() {
    let shared = Shared::default();
    let cluster = Cluster::new(&shared, None);
    check_histories(cluster, |cluster| (0..rounds()).for_each(|_| cluster.suffer()));
}

/// A killed server of an engine does not start again, so each round has a new engine.
#[test]
#[ignore = "needs an engine"]
fn histories_of_clients_are_linearizable_while_nodes_and_servers_of_an_engine_fail() {
    for _ in 0..rounds() {
        let shared = Shared::default();
        let cluster = Cluster::new(&shared, Some(Engine::with_standbys(3)));
        check_histories(cluster, |cluster| {
            cluster.suffer();
            cluster.fail_over();
        });
    }
}

/// Lets clients work while `faults` runs, and then checks the history of each order.
fn check_histories<'a>(mut cluster: Cluster<'a>, faults: impl FnOnce(&mut Cluster<'a>)) {
    let shared = cluster.shared;
    std::thread::scope(|scope| {
        for client in 1..=CLIENTS {
            scope.spawn(move || shared.work(client));
        }
        // A panic in `faults` is caught, because the clients stop only when `is_over` is set.
        let suffered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            faults(&mut cluster);
        }));
        shared.is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = suffered {
            std::panic::resume_unwind(panic);
        }
    });
    let orders: Vec<u64> = shared.orders.lock().unwrap().histories.keys().copied().collect();
    let mut dice = Dice(0);
    for order in &orders {
        until("the order can be read", || {
            shared.carry_out(0, &mut dice, *order, Step::Read)
        });
    }
    let histories = std::mem::take(&mut shared.orders.lock().unwrap().histories);
    for (order, history) in &histories {
        if let Err(text) = history.check() {
            panic!("the history of o{order} is not linearizable:\n{text}");
        }
    }
    let unknown: usize = histories.values().map(History::unknown).sum();
    println!(
        "{} histories, {} operations, {unknown} of them with an unknown outcome",
        histories.len(),
        shared.operations.load(Ordering::Relaxed)
    );
    assert!(unknown > 0, "the faults reach the clients");
}
