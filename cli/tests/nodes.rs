//! Runs several nodes as real processes on one data folder. The nodes share the orders, and the
//! volume of a killed node stays available.

use crate::support::{Answer, Server, begun_order, http, run, stderr, stdout, try_http, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tempfile::{TempDir, tempdir};

const SAMPLE_STOCKS: &[u8] = include_bytes!("../../data/samples/stocks.csv");
const CSV: &[(&str, &str)] = &[("Content-Type", "text/csv")];
const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// A data folder in which a test starts nodes. There is no warehouse.
struct World {
    data: TempDir,
}

impl World {
    fn new() -> World {
        World {
            data: tempdir().unwrap(),
        }
    }

    fn folder(&self) -> &str {
        self.data.path().to_str().unwrap()
    }

    fn start(&self, name: &str) -> Server {
        self.start_with(name, &[])
    }

    fn start_with(&self, name: &str, more: &[&str]) -> Server {
        let warehouse = ["--warehouse", "http://127.0.0.1:9"];
        Server::node(name, self.folder(), &[&warehouse[..], more].concat())
    }

    fn listed(&self) -> String {
        let listed = self.nodes(&["list"]);
        assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
        stdout(&listed)
    }

    fn nodes(&self, rest: &[&str]) -> std::process::Output {
        run(&[&["node"], rest, &["--data", self.folder()]].concat())
    }
}

fn post(at: &str, path: &str, body: &Value) -> Answer {
    http(at, "POST", path, JSON, body.to_string().as_bytes())
}

/// Returns all products of the sample file, those with the most units first.
fn products() -> Vec<u64> {
    let rows = std::str::from_utf8(SAMPLE_STOCKS).unwrap();
    let mut units = std::collections::BTreeMap::<u64, u64>::new();
    for line in rows.lines() {
        let fields: Vec<u64> = line.split(',').map(|field| field.parse().unwrap()).collect();
        *units.entry(fields[0]).or_default() += fields[2];
    }
    let mut products: Vec<(u64, u64)> = units
        .into_iter()
        .map(|(product, units)| (units, product))
        .collect();
    products.sort_unstable_by(|one, other| other.cmp(one));
    products.into_iter().map(|(_, product)| product).collect()
}

/// Places orders, and asserts that each is accepted. Returns their ids with the responses.
fn place(at: &str, prefix: &str, count: usize) -> Vec<(String, String)> {
    let products = products();
    let order = |number: usize| {
        let id = format!("{prefix}{number}");
        let product = products[number % products.len().min(20)];
        let order = json!({"id": id, "products": [{"id": product, "quantity": 1}]});
        let answer = post(at, "/order", &order);
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
        (id, answer.body)
    };
    (0..count).map(order).collect()
}

/// Asserts that a node returns each of `orders` with its store and products.
fn assert_there(at: &str, orders: &[(String, String)]) {
    for (id, taken) in orders {
        let answer = http(at, "GET", &format!("/order/{id}"), &[], b"");
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
        let taken: Value = serde_json::from_str(taken).unwrap();
        assert_eq!(answer.json()["store_id"], taken["store_id"], "{id}");
        assert_eq!(answer.json()["products"], taken["products"], "{id}");
    }
}

/// Returns the ids of all orders that a node lists, read page by page.
fn listed(at: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = http(at, "GET", &format!("/orders?limit=37{cursor}"), &[], b"");
        assert_eq!(page.status, 200, "{}", page.body);
        let page = page.json();
        ids.extend(
            page["orders"]
                .as_array()
                .unwrap()
                .iter()
                .map(|order| order["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

fn assert_lists(at: &str, orders: &[(String, String)]) {
    let ids = listed(at);
    let once: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(once.len(), ids.len(), "an order is listed once");
    assert_eq!(
        once,
        orders.iter().map(|(id, _)| id).collect(),
        "every order is listed"
    );
    let held = http(at, "GET", "/reservations?limit=10000", &[], b"").json();
    let held: Vec<&str> = held["reservations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|held| held["order"].as_str().unwrap())
        .collect();
    let distinct: BTreeSet<&&str> = held.iter().collect();
    assert_eq!(distinct.len(), held.len(), "an order holds units once");
    assert_eq!(held.len(), orders.len(), "every order holds units");
}

fn members(at: &str) -> usize {
    try_http(at, "GET", "/ring", &[], b"")
        .map_or(0, |answer| answer.json()["members"].as_array().unwrap().len())
}

#[test]
fn two_nodes_share_the_orders_and_those_of_a_killed_one_live_on() {
    let world = World::new();
    let alpha = world.start("alpha");
    let stock = http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    let mut orders = place(&alpha.address, "before-", 60);

    let beta = world.start("beta");
    until("beta has its share", || {
        members(&beta.address) == 2 && members(&alpha.address) == 2
    });
    assert_there(&alpha.address, &orders);
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);

    // Any node accepts any order. A repeated order gets the same response.
    orders.extend(place(&beta.address, "between-", 60));
    let (id, taken) = &orders[70];
    let again: Value = serde_json::from_str(taken).unwrap();
    let again = json!({"id": id, "products": again["products"]});
    assert_eq!(post(&alpha.address, "/order", &again).body, *taken);
    assert_lists(&alpha.address, &orders);
    let shares = |at: &str| {
        http(at, "GET", "/health", &[], b"").json()["slots"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((shares(&alpha.address), shares(&beta.address)), (8_192, 8_192));

    // One request has stock for stores of both nodes. Reserved units stay reserved.
    let stock = http(&beta.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    assert_lists(&alpha.address, &orders);
    let bad = http(&beta.address, "PUT", "/stocks", CSV, b"1,1,5\n2,2,many\n");
    assert_eq!(
        (bad.status, &bad.json()["line"]),
        (400, &json!(2)),
        "{}",
        bad.body
    );

    beta.kill();
    assert_there(&alpha.address, &orders);
    assert_lists(&alpha.address, &orders);
    orders.extend(place(&alpha.address, "after-", 20));
    for (id, _) in &orders {
        let paid = post(
            &alpha.address,
            &format!("/order/{id}/payment-callback"),
            &json!({"transaction_id": 7}),
        );
        assert_eq!(paid.status, 200, "{id}: {}", paid.body);
    }

    // A node that starts again under its name serves its volume again, and no rows are copied.
    let beta = world.start("beta");
    assert_eq!(shares(&beta.address), 8_192);
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);

    // Alpha, the coordinator, is killed as well. Beta serves all orders alone.
    alpha.kill();
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);
    assert_eq!(beta.terminate().0, Some(0));
}

/// Starts a node with orders, and a second node to which slots move slowly. Returns while rows are
/// being copied.
fn slowly_moving() -> (World, Server, Server, Vec<(String, String)>) {
    let world = World::new();
    let alpha = world.start("alpha");
    http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    let orders = place(&alpha.address, "o", 40);
    let beta = world.start_with("beta", &["--move-rows-per-second", "15"]);
    until("slots move", || world.listed().contains("moving: "));
    (world, alpha, beta, orders)
}

/// Changes that clients make through either node during a migration are kept.
#[test]
fn migration_keeps_changes_made_while_slots_are_copied() {
    let (world, alpha, beta, mut orders) = slowly_moving();
    assert_eq!(members(&alpha.address), 1, "the ring is as it was");
    orders.extend(place(&beta.address, "meanwhile-", 40));
    let paid = |at: &Server, id: &str| {
        let path = format!("/order/{id}/payment-callback");
        let paid = post(&at.address, &path, &json!({"transaction_id": 7}));
        assert_eq!(paid.status, 200, "{id}: {}", paid.body);
    };
    orders.iter().step_by(2).for_each(|(id, _)| paid(&alpha, id));
    assert_lists(&beta.address, &orders);
    until("beta has its share", || {
        members(&beta.address) == 2 && members(&alpha.address) == 2
    });
    assert_there(&alpha.address, &orders);
    assert_there(&beta.address, &orders);
    assert_lists(&alpha.address, &orders);
    for (at, (id, _)) in orders.iter().enumerate() {
        let state = http(&beta.address, "GET", &format!("/order/{id}"), &[], b"").json()["state"].clone();
        assert_eq!(state == "paid", at % 2 == 0, "{id} is {state}");
        paid(&beta, id);
    }
    let count = |at: &Server| http(&at.address, "GET", "/health", &[], b"").json()["orders"].clone();
    until("all are counted once", || {
        count(&alpha)["paid"] == json!(orders.len())
    });
    assert_eq!(count(&beta), count(&alpha));
    drop(world);
}

/// Kills the node `name` during a migration, starts it again, and asserts that no order is lost.
fn kill_during_migration(name: &str) {
    let (world, alpha, beta, mut orders) = slowly_moving();
    let (dead, other) = if name == "alpha" {
        (alpha, beta)
    } else {
        (beta, alpha)
    };
    dead.kill();
    // The other node answers for all orders. That node has taken over the volume of the killed
    // node, or all slots are still in its own volume.
    orders.extend(place(&other.address, "after-", 20));
    assert_there(&other.address, &orders);
    assert_lists(&other.address, &orders);
    let again = world.start(name);
    until("both have their share", || {
        members(&again.address) == 2 && members(&other.address) == 2
    });
    assert_there(&again.address, &orders);
    assert_lists(&other.address, &orders);
}

#[test]
fn migration_survives_a_kill_of_its_source_and_coordinator() {
    kill_during_migration("alpha");
}

#[test]
fn migration_survives_a_kill_of_its_target() {
    kill_during_migration("beta");
}

#[test]
fn nodes_join_and_leave_during_a_migration() {
    let (world, alpha, beta, orders) = slowly_moving();
    let gamma = world.start("gamma");
    assert_there(&gamma.address, &orders);
    gamma.kill();
    let left = world.nodes(&["leave", "beta"]);
    assert!(
        matches!(left.status.code(), Some(0 | 1)),
        "it has no slots yet, or gives them back: {}",
        stderr(&left)
    );
    assert_there(&alpha.address, &orders);
    let gamma = world.start("gamma");
    until("gamma has its share", || {
        let ring = http(&gamma.address, "GET", "/ring", &[], b"").body;
        ring.contains("gamma")
    });
    assert_there(&gamma.address, &orders);
    assert_lists(&alpha.address, &orders);
    drop(beta);
}

/// Sends a signal to a process.
fn signal(server: &Server, name: &str) {
    let status = std::process::Command::new("kill")
        .args([&format!("-{name}"), &server.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_stop_of_a_paused_node_names_the_node_and_its_process() {
    let world = World::new();
    let alpha = world.start("alpha");
    signal(&alpha, "STOP");
    let stop = world.nodes(&["stop", "alpha"]);
    assert_eq!(stop.status.code(), Some(5), "{}", stderr(&stop));
    let process = format!("node 'alpha' (process {}) does not answer", alpha.id());
    assert!(stderr(&stop).contains(&process), "{}", stderr(&stop));
    let stranger = world.nodes(&["stop", "gamma"]);
    assert_eq!(stranger.status.code(), Some(1));
    assert!(
        stderr(&stranger).contains("running are alpha"),
        "{}",
        stderr(&stranger)
    );
}

/// Another node takes the volume over before the stopped node finishes its requests. The node can
/// be started again as soon as the command has ended.
#[test]
fn a_stop_waits_for_the_end_of_the_process() {
    let world = World::new();
    let alpha = world.start("alpha");
    let beta = world.start_with("beta", &["--drain-timeout", "2s"]);
    until("beta has its share", || {
        members(&alpha.address) == 2 && members(&beta.address) == 2
    });
    let request = begun_order(&beta.address);
    let stopped = world.nodes(&["stop", "beta"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    assert_eq!(stdout(&stopped), "node 'beta' has stopped\n");
    let name = imt_ring::NodeName::new("beta").unwrap();
    assert!(!imt_oms::is_node_running(world.data.path(), &name));
    drop(request);
    drop(world.start("beta"));
}

#[test]
fn a_request_that_every_node_refuses_gives_the_answer() {
    let world = World::new();
    let _alpha = world.start("alpha");
    std::fs::write(world.data.path().join("secret"), "0".repeat(64)).unwrap();
    let refused = world.nodes(&["warehouse", "http://127.0.0.1:8"]);
    assert_eq!(refused.status.code(), Some(1), "{}", stdout(&refused));
    let error = stderr(&refused);
    assert!(error.contains("node 'alpha' answers 403"), "{error}");
    assert!(!error.contains("no node answers"), "{error}");
}

#[test]
fn a_paused_node_is_listed_as_not_answering_and_resumes() {
    let world = World::new();
    let alpha = world.start("alpha");
    http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    let beta = world.start("beta");
    until("beta has its share", || members(&alpha.address) == 2);
    let orders = place(&alpha.address, "o", 12);
    signal(&beta, "STOP");
    let get = |id: &str| http(&alpha.address, "GET", &format!("/order/{id}"), &[], b"");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let asked: Vec<_> = orders.iter().map(|(id, _)| scope.spawn(|| get(id))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    let (here, there): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!here.is_empty() && !there.is_empty(), "both have some");
    for answer in there {
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(
            answer.body.contains("beta"),
            "it says who does not answer: {}",
            answer.body
        );
    }
    let listed = world.listed();
    let of_beta = listed.lines().find(|line| line.starts_with("beta")).unwrap();
    assert!(of_beta.contains("not answering"), "{listed}");
    signal(&beta, "CONT");
    until("beta answers again", || {
        world.listed().matches("serving").count() == 2
    });
    assert_there(&alpha.address, &orders);
    assert_there(&beta.address, &orders);
    assert_lists(&beta.address, &orders);
}

/// When an order moves, the stored response for its idempotency key moves with it.
#[test]
fn an_idempotency_key_moves_with_its_order() {
    let world = World::new();
    let alpha = world.start("alpha");
    http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    let product = products()[0];
    let send = |at: &Server, number: u32, quantity: u32| {
        let key = format!("key-{number}");
        let headers = [JSON[0], ("Idempotency-Key", key.as_str())];
        let order = json!({"id": format!("k{number}"), "products": [{"id": product, "quantity": quantity}]});
        http(
            &at.address,
            "POST",
            "/order",
            &headers,
            order.to_string().as_bytes(),
        )
    };
    let first: Vec<String> = (0..10).map(|number| send(&alpha, number, 1).body).collect();
    let beta = world.start("beta");
    until("beta has its share", || {
        members(&alpha.address) == 2 && members(&beta.address) == 2
    });
    for (number, first) in (0..).zip(&first) {
        for at in [&alpha, &beta] {
            let again = send(at, number, 1);
            assert_eq!((again.status, &again.body), (200, first));
            assert!(again.head.contains("idempotent-replayed: true"), "{}", again.head);
            assert_eq!(send(at, number, 2).status, 409, "the key of another request");
        }
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn an_old_disk_under_a_reused_name_restores_no_old_state() {
    let world = World::new();
    let alpha = world.start("alpha");
    http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    let beta = world.start("beta");
    until("beta has its share", || members(&alpha.address) == 2);
    let orders = place(&alpha.address, "o", 40);
    let stopped = world.nodes(&["stop", "beta"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    assert_eq!(beta.ended(), Some(0));
    // Alpha serves beta's volume now. The copy made here lacks the changes that alpha makes later.
    let (volume, old) = (
        world.data.path().join("volumes/beta"),
        world.data.path().join("old"),
    );
    copy_folder(&volume, &old);
    let cancelled = |id: &str| post(&alpha.address, &format!("/order/{id}/cancel"), &json!({}));
    orders
        .iter()
        .for_each(|(id, _)| assert_eq!(cancelled(id).status, 200, "{id}"));
    let left = world.nodes(&["leave", "beta"]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    until("the volume is gone", || !volume.exists());
    copy_folder(&old, &volume);
    let beta = world.start("beta");
    until("beta has a share again", || {
        members(&alpha.address) == 2 && members(&beta.address) == 2
    });
    for (id, _) in &orders {
        for at in [&alpha, &beta] {
            let order = http(&at.address, "GET", &format!("/order/{id}"), &[], b"").json();
            assert_eq!(order["state"], "cancelled", "{id}");
        }
    }
    let held = http(&beta.address, "GET", "/reservations", &[], b"").json();
    assert_eq!(held["reservations"], json!([]), "cancelled orders hold no units");
    assert_eq!(listed(&beta.address).len(), orders.len());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let world = World::new();
    let alpha = world.start("alpha");
    let taken = run(&[
        "node",
        "start",
        "--name",
        "beta",
        "--data",
        world.folder(),
        "--listen",
        &alpha.address,
    ]);
    assert_eq!(taken.status.code(), Some(1), "{}", stderr(&taken));
    assert!(stderr(&taken).contains(&alpha.address), "{}", stderr(&taken));
}

/// A file system of 3 MiB, mounted at a folder. Unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(folder: std::path::PathBuf) -> SmallDisk {
        std::fs::create_dir_all(&folder).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(&folder)
            .status();
        assert!(
            mounted.unwrap().success(),
            "a small disk needs the right to mount"
        );
        SmallDisk(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A lazy unmount (`-l`) succeeds even if a process still has a file open.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_of_the_target_leaves_slots_at_their_source() {
    let world = World::new();
    let _disk = SmallDisk::at(world.data.path().join("volumes/beta"));
    let alpha = world.start("alpha");
    // The share of this stock that moves to the node beta does not fit on its disk.
    let mut wide = String::new();
    for store in 1..=200 {
        (1..=10_000).for_each(|product| wide.push_str(&format!("{product},{store},{}\n", 70_000 + product)));
    }
    let stock = http(&alpha.address, "PUT", "/stocks", CSV, wide.as_bytes());
    assert_eq!(stock.status, 200, "{}", stock.body);
    let orders = place(&alpha.address, "o", 20);
    let beta = world.start("beta");
    until("the move was given up", || alpha.said("migration failed"));
    assert_eq!(members(&alpha.address), 1);
    assert_there(&alpha.address, &orders);
    assert_lists(&beta.address, &orders);
    beta.kill();
    assert_lists(&alpha.address, &orders);
}

#[test]
fn a_leaving_node_hands_over_all_its_slots_and_orders() {
    let world = World::new();
    let alpha = world.start("alpha");
    http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    let beta = world.start("beta");
    let gamma = world.start("gamma");
    until("three nodes share", || members(&alpha.address) == 3);
    let orders = place(&gamma.address, "o", 60);

    let listed = world.nodes(&["list"]);
    assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
    for word in ["alpha", "beta", "gamma", "serving", "5461"] {
        assert!(
            stdout(&listed).contains(word),
            "{word} is missing:\n{}",
            stdout(&listed)
        );
    }

    let left = world.nodes(&["leave", "beta"]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert!(!stdout(&left).contains("not ended"), "{}", stdout(&left));
    let listed = world.nodes(&["list"]);
    assert!(!stdout(&listed).contains("beta"), "{}", stdout(&listed));
    assert_eq!(beta.ended(), Some(0), "the process ends by itself");
    assert!(!world.data.path().join("volumes/beta").exists());
    until("the others know it", || {
        members(&alpha.address) == 2 && members(&gamma.address) == 2
    });
    assert_there(&alpha.address, &orders);
    assert_lists(&gamma.address, &orders);

    let stopped = world.nodes(&["stop", "alpha"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    assert_eq!(alpha.ended(), Some(0));
    assert_lists(&gamma.address, &orders);
    let left = world.nodes(&["leave", "alpha"]);
    assert_eq!(
        left.status.code(),
        Some(0),
        "a node that is away can leave, too: {}",
        stderr(&left)
    );
    until("gamma knows it", || members(&gamma.address) == 1);
    assert_lists(&gamma.address, &orders);
    let last = world.nodes(&["leave", "gamma"]);
    assert_eq!(last.status.code(), Some(1), "{}", stdout(&last));
    assert_eq!(gamma.terminate().0, Some(0));
}

#[test]
fn a_shop_loses_nothing_while_nodes_are_killed_stopped_and_removed() {
    let world = World::new();
    let output = run(&[
        "sim",
        "chaos",
        "--nodes",
        "2",
        "--every",
        "1s",
        "--rate",
        "40",
        "--duration",
        "10s",
        "--data",
        world.folder(),
        "--quiet",
    ]);
    let told = format!("{}\n{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("clean"), "{told}");
    assert!(
        stdout(&output).contains("\n  events     ") && stdout(&output).contains(", answered again after "),
        "{told}"
    );
    // With --quiet, the nodes do not warn about each other.
    assert!(!stderr(&output).contains("WARN"), "{told}");
}
