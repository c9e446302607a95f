//! Encryption between nodes, commands that find nodes by the engine, statistics files of several
//! folders, copies of volumes, and volumes on two engines.

use super::{Engine, World, assert_there, members, patient, place, post};
use crate::support::{Server, free_address, http, run, signal, stderr, stdout, try_http, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::tempdir;

/// Returns an address of this machine that is not a loopback address. `connect` of a UDP socket
/// chooses this address and sends nothing.
fn outer_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("this machine has a network");
    socket.local_addr().unwrap().ip().to_string()
}

fn ok_json(args: &[&str]) -> Value {
    let output = run(&[args, &["--output", "json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn start(url: &str, folder: &Path, name: &str, more: &[&str]) -> Server {
    let folder = folder.to_str().unwrap();
    let named = ["node", "start", "--name", name, "--data", folder];
    let at = ["--warehouse", "http://127.0.0.1:9", "--engine", url];
    Server::start(&[&named[..], &at, more].concat())
}

#[test]
#[ignore = "needs an engine"]
fn nodes_on_other_addresses_encrypt_their_calls_and_refuse_plain_ones() {
    let world = World::new();
    let at = format!("{}:0", outer_address());
    let node = |name: &str, more: &[&str]| {
        let folder = world.folders.path().join(name);
        start(
            &world.engine.url,
            &folder,
            name,
            &[&["--listen", &at], more].concat(),
        )
    };
    let [alpha, beta] = ["alpha", "beta"].map(|name| node(name, &[]));
    world.fill(&[&alpha, &beta]);
    // About half of the orders and of the stock belong to beta, so alpha calls beta.
    let orders = place(&alpha.address, "o", 40);
    assert_there(&beta.address, &orders);
    // Commands also call the nodes on encrypted connections, and prove that they know the secret.
    let listed = world.listed();
    let states = listed.as_array().unwrap().iter().map(|node| &node["state"]);
    assert_eq!(states.collect::<Vec<_>>(), ["serving", "serving"]);
    // Even with the right secret, a plain connection from an address other than loopback is
    // refused.
    let secret = world.secret();
    let headers = [("X-Imt-Secret", secret.as_str())];
    let ping = http(&alpha.address, "POST", "/peer/ping", &headers, b"");
    assert_eq!(ping.status, 403, "{}", ping.body);
    assert!(ping.body.contains("must be encrypted"), "{}", ping.body);
    let plain = [
        "node",
        "list",
        "--engine",
        &world.engine.url,
        "--insecure-plaintext",
    ];
    let states = ok_json(&plain);
    assert_eq!(states[0]["state"], "not answering", "{states}");
    // A wrong secret is refused on an encrypted connection.
    let wrong = private_file(
        world.folders.path(),
        "wrong-secret",
        "0123456789abcdef0123456789abcdef",
    );
    let wrong = ["--secret-file", wrong.as_str()];
    let states = ok_json(&[&["node", "list", "--engine", &world.engine.url], &wrong[..]].concat());
    assert_eq!(states[0]["state"], "not answering", "{states}");
    // A node that does not encrypt cannot call the other nodes.
    let gamma = node("gamma", &["--insecure-plaintext"]);
    until("a node refuses the plain connection", || {
        // Gamma calls the owner of the order on a connection without encryption.
        let _ = try_http(&gamma.address, "GET", "/order/o1", &[], b"");
        alpha.said("refused an unencrypted connection") || beta.said("refused an unencrypted connection")
    });
    drop(gamma);
    assert_eq!(
        patient(|| http(&beta.address, "GET", "/order/o1", &[], b"")).status,
        200
    );
}

/// Writes a file that only its owner may read, and returns its path.
fn private_file(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, format!("{content}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs an engine"]
fn nodes_with_a_secret_file_call_each_other_at_their_advertised_addresses() {
    let world = World::new();
    let (url, folders) = (world.engine.url.as_str(), world.folders.path());
    let secret = private_file(folders, "secret", "fedcba9876543210fedcba9876543210");
    let given = ["--secret-file", secret.as_str()];
    // Each node listens on all interfaces, so the address on which it listens is no address at
    // which another node can reach it.
    let advertised = ["alpha", "beta"].map(|_| free_address().replace("127.0.0.1", &outer_address()));
    let node = |at: usize, name: &str| {
        let port = advertised[at].rsplit_once(':').unwrap().1;
        let listen = format!("0.0.0.0:{port}");
        let at = ["--listen", listen.as_str(), "--advertise", &advertised[at]];
        start(url, &folders.join(name), name, &[&at[..], &given].concat())
    };
    let (alpha, beta) = (node(0, "alpha"), node(1, "beta"));
    world.fill(&[&alpha, &beta]);
    let orders = place(&alpha.address, "o", 40);
    for node in [&alpha, &beta] {
        assert_there(&node.address, &orders);
    }
    assert_eq!(world.secret(), "", "the engine has no secret");
    let listed = ok_json(&[&["node", "list", "--engine", url], &given[..]].concat());
    for (at, name) in ["alpha", "beta"].into_iter().enumerate() {
        assert_eq!(listed[at]["state"], "serving", "{listed}");
        assert_eq!(listed[at]["address"], *advertised[at], "{listed}");
        assert_eq!(listed[at]["volumes"], json!([name]), "{listed}");
    }
    // A command without the file, and a node without it, name the missing flag.
    let unlisted = run(&["node", "list", "--engine", url]);
    assert_eq!(unlisted.status.code(), Some(2), "{}", stdout(&unlisted));
    assert!(
        stderr(&unlisted).contains("name its file with --secret-file"),
        "{}",
        stderr(&unlisted)
    );
    let at = ["--listen", "127.0.0.1:0", "--engine", url];
    let data = folders.join("gamma");
    let named = [
        "node",
        "start",
        "--name",
        "gamma",
        "--data",
        data.to_str().unwrap(),
    ];
    let started = run(&[&named[..], &at].concat());
    assert_eq!(started.status.code(), Some(1), "{}", stderr(&started));
    assert!(
        stderr(&started).contains("each node needs the same file"),
        "{}",
        stderr(&started)
    );
    // One node takes the volume of the other over, and gives it back.
    beta.kill();
    assert_there(&alpha.address, &orders);
    let beta = node(1, "beta");
    until("each serves its own volume", || {
        let listed = ok_json(&[&["node", "list", "--engine", url], &given[..]].concat());
        [0, 1]
            .iter()
            .all(|at| listed[at]["volumes"] == json!([listed[at]["name"]]))
    });
    assert_there(&beta.address, &orders);
    assert_eq!(world.secret(), "", "the engine has no secret");
}

#[test]
#[ignore = "needs an engine"]
fn commands_find_a_node_by_the_engine() {
    let world = World::new();
    let url = world.engine.url.as_str();
    let (warehouse, folder) = (free_address(), tempdir().unwrap());
    let called = format!("http://{warehouse}");
    let folder_of = |name: &str| folder.path().join(name);
    let nodes = ["alpha", "beta"].map(|name| {
        let (folder, at) = (folder_of(name), "127.0.0.1:0");
        let named = [
            "node",
            "start",
            "--name",
            name,
            "--data",
            folder.to_str().unwrap(),
        ];
        let placed = ["--listen", at, "--warehouse", &called, "--engine", url];
        Server::start(&[&named[..], &placed].concat())
    });
    until("both have their shares", || {
        nodes.iter().all(|node| members(&node.address) == 2)
    });
    let _warehouse = Server::start(&[
        "sim",
        "warehouse",
        "--listen",
        &warehouse,
        "--oms",
        &nodes[0].url(),
        "--data",
        folder_of("warehouse").to_str().unwrap(),
        "--profile",
        "fast",
    ]);
    until("the stock is applied", || {
        http(&nodes[0].address, "GET", "/health", &[], b"").json()["stock_snapshots"] != 0
    });
    for number in 0..10 {
        let order = json!({"id": format!("o{number}"), "products": [{"id": 7 + number, "quantity": 1}]});
        assert_eq!(patient(|| post(&nodes[1].address, "/order", &order)).status, 200);
    }
    let shown = ok_json(&["order", "show", "o3", "--engine", url]);
    assert_eq!(shown["id"], "o3");
    let listed = ok_json(&["order", "list", "--engine", url]);
    assert_eq!(listed.as_array().unwrap().len(), 10);
    let cancelled = ok_json(&["order", "cancel", "o4", "--engine", url]);
    assert_eq!(cancelled[0]["state"], "cancelled");
    assert_eq!(
        ok_json(&["order", "history", "o4", "--engine", url])["events"][0]["event"],
        "received"
    );
    assert_eq!(ok_json(&["order", "dead", "list", "--engine", url]), json!([]));
    assert_eq!(
        ok_json(&["node", "list", "--engine", url])
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(ok_json(&["ring", "check", "o3", "--engine", url])[0]["key"], "o3");
    assert_eq!(
        ok_json(&["node", "warehouse", "--engine", url])["warehouse"],
        called
    );
    // Without `--warehouse`, the audit reads the address of the warehouse from the engine.
    let audited = ok_json(&["audit", "--engine", url]);
    assert_eq!(audited["verdict"], "clean", "{audited}");
    // Commands work while one node runs. If no node runs, the error says so.
    let [alpha, beta] = nodes;
    alpha.kill();
    let shown = ok_json(&["order", "show", "o3", "--engine", url]);
    assert_eq!(shown["id"], "o3");
    beta.kill();
    until("no node beats", || {
        let output = run(&["order", "show", "o3", "--engine", url]);
        output.status.code() == Some(1) && stderr(&output).contains("no node runs")
    });
}

fn stat_file(folder: &Path, name: &str, units: u32) {
    let unfinished = folder.join("unfinished");
    std::fs::write(&unfinished, format!("5,{units},10\n")).unwrap();
    std::fs::rename(unfinished, folder.join(name)).unwrap();
}

fn units(at: &str) -> u64 {
    let answer = patient(|| http(at, "GET", "/aggregate-stats/5", &[], b""));
    answer.json()["total_qty"].as_u64().unwrap()
}

#[test]
#[ignore = "needs an engine"]
fn statistics_files_of_all_folders_count_once_also_after_their_volume_moved() {
    let world = World::new();
    let names = ["alpha", "beta"];
    let folders = names.map(|name| world.folders.path().join(name));
    let node = |at: usize| {
        let more = ["--listen", "127.0.0.1:0", "--stat-scan", "100ms"];
        start(&world.engine.url, &folders[at], names[at], &more)
    };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let name = format!("stat_{now_ms:015}.csv");
    let is_gone = |at: usize| !folders[at].join(&name).exists();
    let (alpha, beta) = (node(0), node(1));
    until("both have their shares", || {
        [&alpha, &beta].iter().all(|node| members(&node.address) == 2)
    });
    stat_file(&folders[0], &name, 2);
    stat_file(&folders[1], &name, 40);
    until("both files are added", || is_gone(0) && is_gone(1));
    for node in [&alpha, &beta] {
        assert_eq!(units(&node.address), 42);
    }
    // The same file appears again, as after a crash between its import and its deletion. It is not
    // counted twice.
    stat_file(&folders[0], &name, 2);
    until("the file is deleted", || is_gone(0));
    assert_eq!(units(&beta.address), 42);
    // One of the two volumes keeps the statistics. The nodes are paused in turn, and the other node
    // serves the volume of the paused one. The names of imported files move with the volume, so no
    // file is counted twice.
    for (at, here, there) in [(0, &alpha, &beta), (1, &beta, &alpha)] {
        signal(here.id(), "STOP");
        until("the other node answers for the statistics", || {
            try_http(&there.address, "GET", "/aggregate-stats/5", &[], b"")
                .is_some_and(|answer| answer.status == 200)
        });
        let known = 1 - at;
        stat_file(&folders[known], &name, 2);
        until("the file is deleted", || is_gone(known));
        assert_eq!(units(&there.address), 42);
        signal(here.id(), "CONT");
        until("each serves its own volume", || {
            world.states().iter().all(|(_, state)| state == "serving")
                && world.listed()[at]["volumes"] == json!([names[at]])
        });
    }
    // A node leaves, and its slots move.
    let left = run(&["node", "leave", "beta", "--engine", &world.engine.url]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert_eq!(beta.ended(), Some(0));
    assert_eq!(units(&alpha.address), 42);
    stat_file(&folders[0], &name, 2);
    until("the file is deleted", || is_gone(0));
    let beta = node(1);
    stat_file(&folders[1], &name, 40);
    until("the file is deleted", || is_gone(1));
    assert_eq!(units(&beta.address), 42);
    // Alpha still has a copy of beta's earlier volume. Alpha must not log that orders of this copy
    // may be lost.
    until("each has its share", || {
        [&alpha, &beta].iter().all(|node| members(&node.address) == 2)
    });
    let (code, log) = alpha.terminate();
    assert_eq!(code, Some(0));
    assert!(!log.iter().any(|line| line.contains("cache dropped")), "{log:#?}");
}

/// Sends a signal to a server of an engine and to its child processes, such as those of its
/// sessions.
fn signal_server(process: u32, name: &str) {
    signal(process, name);
    let sessions = Command::new("pgrep").args(["-P", &process.to_string()]).output();
    for session in stdout(&sessions.expect("pgrep is installed")).lines() {
        let sent = Command::new("kill").args([&format!("-{name}"), session]).output();
        // A failure of `kill` is ignored, because a session may have ended in between.
        drop(sent.unwrap());
    }
}

/// Returns the URL of an engine without its password, and the password.
fn split_password(url: &str) -> (String, String) {
    let (login, hosts) = url.split_once('@').unwrap();
    let (user, password) = login.rsplit_once(':').unwrap();
    (format!("{user}@{hosts}"), password.to_owned())
}

/// Returns the ids of those `orders` that the ring assigns to a volume.
fn ids_of(url: &str, volume: &str, orders: &[(String, String)]) -> Vec<String> {
    let ids: Vec<&str> = orders.iter().map(|(id, _)| id.as_str()).collect();
    let places = ok_json(&[&["ring", "check", "--engine", url], &ids[..]].concat());
    let places = places.as_array().unwrap().iter();
    let here = places.filter(|place| place["nodes"][0] == volume);
    here.map(|place| place["key"].as_str().unwrap().to_owned())
        .collect()
}

/// Returns the ids of the orders in a MicroDb folder, as `imt db` reads them.
fn stored_orders(folder: &Path) -> BTreeSet<String> {
    let folder = folder.to_str().unwrap();
    let scanned = run(&["db", "scan", folder, "orders", "--keys-only", "--output", "json"]);
    assert_eq!(scanned.status.code(), Some(0), "{}", stderr(&scanned));
    let lines = stdout(&scanned);
    let key = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        record["key"].as_str().unwrap().to_owned()
    };
    lines.lines().map(key).collect()
}

#[test]
#[ignore = "needs an engine"]
fn a_killed_node_continues_from_a_copy_that_was_rebuilt() {
    let world = World::new();
    let url = world.engine.url.as_str();
    let [alpha, beta, gamma] = world.three();
    let mut orders = place(&alpha.address, "before-", 60);
    let data = world.folders.path().join("beta");
    let copy = data.join("cache/beta/beta");
    let data = data.to_str().unwrap();
    let at = ["--node", "beta", "--data", data, "--engine", url];
    let rebuild = |volume: &str| run(&[&["volume", "rebuild", volume], &at[..]].concat());
    let (used, unknown) = (rebuild("beta"), rebuild("nobody"));
    for (refused, reason) in [
        (used, "is locked by process"),
        (unknown, "has no log of volume nobody"),
    ] {
        assert_eq!(refused.status.code(), Some(1), "{}", stdout(&refused));
        assert!(stderr(&refused).contains(reason), "{}", stderr(&refused));
    }
    beta.kill();
    orders.extend(place(&alpha.address, "after-", 30));
    let ids = ids_of(url, "beta", &orders);
    // A copy that is rebuilt lacks the newest entry of the log. These cancellations are the newest
    // ones, so the entries of the orders are before them.
    for id in &ids[..2] {
        let cancelled = patient(|| post(&gamma.address, &format!("/order/{id}/cancel"), &json!({})));
        assert_eq!(cancelled.status, 200, "{id}: {}", cancelled.body);
    }
    // The loss of an order does not change the position of the copy. So only a copy that is made
    // from the beginning has the order again.
    let folder = copy.to_str().unwrap();
    let kept = stored_orders(&copy).into_iter().next().expect("beta has orders");
    let deleted = run(&["db", "delete", folder, "orders", &kept]);
    assert_eq!(deleted.status.code(), Some(0), "{}", stderr(&deleted));
    assert!(!stored_orders(&copy).contains(&kept));
    let rebuilt = ok_json(&[&["volume", "rebuild", "beta"], &at[..]].concat());
    assert_eq!(rebuilt["volume"], "beta");
    assert!(rebuilt["rows"].as_u64() >= Some(ids.len() as u64), "{rebuilt}");
    assert_eq!(stored_orders(&copy), ids.into_iter().collect());

    let beta = world.start("beta");
    until("beta serves its volume again", || {
        let listed = world.listed();
        listed[1]["state"] == "serving" && listed[1]["volumes"] == json!(["beta"])
    });
    for node in [&alpha, &beta, &gamma] {
        assert_there(&node.address, &orders);
    }
    let mut log = beta.start_log.clone();
    let (code, rest) = beta.terminate();
    assert_eq!(code, Some(0));
    log.extend(rest);
    for complaint in ["cache dropped", "it is filled again", "unreadable"] {
        assert!(!log.iter().any(|line| line.contains(complaint)), "{log:#?}");
    }
}

#[test]
#[ignore = "needs an engine"]
fn volumes_spread_over_two_engines_and_one_that_is_away_stops_only_its_volumes() {
    let (world, second) = (World::new(), Engine::start());
    let url = world.engine.url.as_str();
    let (east, password) = split_password(&second.url);
    let passwords = private_file(world.folders.path(), "passwords", &format!("*:*:*:*:{password}"));
    let east = format!("{east}?passfile={passwords}");
    let alpha = world.start("alpha");
    let own = run(&["engine", "add", "own", url, "--engine", url]);
    assert!(stderr(&own).contains("a cluster of its own"), "{}", stderr(&own));
    ok_json(&["engine", "add", "east", &east, "--engine", url]);
    let beta = world.start("beta");
    world.fill(&[&alpha, &beta]);
    let engines = ok_json(&["engine", "list", "--engine", url]);
    let shown = |at: usize| {
        (
            &engines[at]["name"],
            &engines[at]["volumes"],
            &engines[at]["state"],
        )
    };
    assert_eq!(
        shown(0),
        (&json!("(first)"), &json!(["alpha"]), &json!("answers"))
    );
    assert_eq!(shown(1), (&json!("east"), &json!(["beta"]), &json!("answers")));
    assert!(!engines.to_string().contains(&password));
    let orders = place(&alpha.address, "o", 40);
    assert_there(&beta.address, &orders);
    let copy = world.folders.path().join("copy");
    let copied = ok_json(&[
        "volume",
        "export",
        "beta",
        copy.to_str().unwrap(),
        "--engine",
        url,
    ]);
    let [here, there] = ["alpha", "beta"].map(|volume| ids_of(url, volume, &orders));
    assert!(here.len() > 3 && there.len() > 3, "{here:?} {there:?}");
    // The copy has each acknowledged order of the volume and no other order.
    assert!(copied["rows"].as_u64() >= Some(there.len() as u64), "{copied}");
    assert_eq!(stored_orders(&copy), there.iter().cloned().collect());
    let copy = copy.to_str().unwrap();
    let inspected = ok_json(&["db", "inspect", copy]);
    let tables = inspected["tables"].as_array().unwrap();
    let table = tables.iter().find(|table| table["name"] == "orders").unwrap();
    assert_eq!(table["keys"], there.len(), "{inspected}");
    let read = ok_json(&["db", "get", copy, "orders", &there[0]]);
    assert_eq!(read["key"], *there[0], "{read}");
    for (_, process) in &second.servers {
        signal_server(*process, "STOP");
    }
    let cancel = |at: &str, id: &str| post(at, &format!("/order/{id}/cancel"), &json!({}));
    for id in &here {
        let answer = cancel(&alpha.address, id);
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
    }
    let refused = cancel(&alpha.address, &there[0]);
    assert_eq!(refused.status, 503, "{}", refused.body);
    for (_, process) in &second.servers {
        signal_server(*process, "CONT");
    }
    for id in &there {
        let answer = patient(|| cancel(&alpha.address, id));
        assert_eq!(answer.status, 200, "{id}: {}", answer.body);
    }
    assert!(world.states().iter().all(|(_, state)| state == "serving"));

    // Slots move between volumes on different engines.
    let left = run(&["node", "leave", "beta", "--engine", url]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert_eq!(beta.ended(), Some(0));
    assert_there(&alpha.address, &orders);
    let gamma = world.start("gamma");
    until("both have their shares", || {
        [&alpha, &gamma].iter().all(|node| members(&node.address) == 2)
    });
    let engines = ok_json(&["engine", "list", "--engine", url]);
    assert_eq!(engines[1]["volumes"], json!(["gamma"]));
    assert_there(&gamma.address, &orders);
    // The other node takes over a volume with its log on the second engine.
    gamma.kill();
    assert_there(&alpha.address, &orders);
}
