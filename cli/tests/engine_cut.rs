//! A node whose network to the engine is cut, while the one to the other nodes and to clients goes
//! on. The node is in a network namespace, so the test needs root.
//!
//! Two cables lead to the namespace: one to the engine and one to the other nodes. The engine
//! listens on the loopback interface, so a relay at the cable's end passes the connections on.

use crate::engine::patient;
use crate::engine_faults::{Shop, command, rounds};
use crate::support::{Server, http, try_http};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

const ORDERS: usize = 12;

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("ip is installed");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {}: {said}", args.join(" "));
}

/// A namespace with two cables, removed when dropped.
struct Namespace {
    name: String,
    /// The ends of the cables outside, and the addresses outside and inside. The addresses are of
    /// the networks that are reserved for measurements.
    engine: [String; 3],
    nodes: [String; 3],
}

impl Namespace {
    fn create() -> Namespace {
        let process = std::process::id();
        let (name, part) = (format!("imt{process}"), process % 256);
        let cable = |kind: &str, second: u8| {
            let [outside, inside] = [1, 2].map(|end| format!("198.{second}.{part}.{end}"));
            [format!("{kind}{process}"), outside, inside]
        };
        let namespace = Namespace {
            engine: cable("ie", 18),
            nodes: cable("in", 19),
            name,
        };
        ip(&["netns", "add", &namespace.name]);
        for [end, outside, inside] in [&namespace.engine, &namespace.nodes] {
            let other = format!("{end}b");
            ip(&[
                "link",
                "add",
                end,
                "type",
                "veth",
                "peer",
                "name",
                &other,
                "netns",
                &namespace.name,
            ]);
            ip(&["address", "add", &format!("{outside}/24"), "dev", end]);
            ip(&["link", "set", end, "up"]);
            let within = ["-n", &namespace.name];
            ip(&[
                &within[..],
                &["address", "add", &format!("{inside}/24"), "dev", &other],
            ]
            .concat());
            ip(&[&within[..], &["link", "set", &other, "up"]].concat());
        }
        namespace
    }

    /// Cuts the cable to the engine, or mends it.
    fn set_engine(&self, state: &str) {
        ip(&["link", "set", &self.engine[0], state]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for [end, ..] in [&self.engine, &self.nodes] {
            let _ = Command::new("ip").args(["link", "delete", end]).output();
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Passes connections to a port of this address on to the same port of the loopback interface.
fn relay(address: &str, port: u16) {
    let listener = TcpListener::bind((address, port)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            pass(stream.try_clone().unwrap(), server.try_clone().unwrap());
            pass(server, stream);
        }
    });
}

/// Passes bytes on until one side ends.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = to.set_nodelay(true);
    thread::spawn(move || {
        let mut bytes = [0; 16 * 1_024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Returns the ports of a URL with several hosts.
fn ports(url: &str) -> Vec<u16> {
    let (_, hosts) = url.split_once('@').unwrap();
    let (hosts, _) = hosts.split_once('/').unwrap();
    let port = |host: &str| host.rsplit_once(':').unwrap().1.parse().unwrap();
    hosts.split(',').map(port).collect()
}

#[test]
#[ignore = "needs an engine and root"]
fn a_node_without_its_engine_answers_nothing_old_and_comes_back() {
    let network = Namespace::create();
    let mut shop = Shop::start(&network.nodes[1], &["alpha"]);
    let reached = &network.engine[1];
    for port in ports(&shop.engine.url) {
        relay(reached, port);
    }
    // Connections that leave the loopback interface use TLS by default.
    let url = format!(
        "{}?sslmode=disable",
        shop.engine.url.replace("127.0.0.1", reached)
    );
    let args = shop.node_args("cut", &network.nodes[2], &url);
    let node = command(&args);
    let mut inside = Command::new("ip");
    inside
        .args(["netns", "exec", &network.name])
        .arg(node.get_program())
        .args(node.get_args());
    for (name, value) in node.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    shop.nodes.insert("cut", Server::spawn(inside));
    shop.open();
    for round in 0..rounds() {
        let entry = shop.entry.address.clone();
        let place = |number| {
            let id = format!("cut-{round}-{number}");
            let order = json!({"id": id, "products": [{"id": 1, "quantity": 1}]}).to_string();
            let answer = patient(|| http(&entry, "POST", "/order", &[], order.as_bytes()));
            assert!(matches!(answer.status, 200 | 409), "{id}: {}", answer.body);
            id
        };
        let ids: Vec<String> = (0..ORDERS).map(place).collect();
        network.set_engine("down");
        shop.wait_until_taken("cut");
        shop.wait_for_commits();
        let (mut answered, address) = (0, shop.nodes["cut"].address.clone());
        for id in &ids {
            let cancelled = patient(|| http(&entry, "POST", &format!("/order/{id}/cancel"), &[], b""));
            assert!(matches!(cancelled.status, 200 | 409), "{id}: {}", cancelled.body);
            let now = patient(|| http(&entry, "GET", &format!("/order/{id}"), &[], b""));
            // The node is reached, but does not know that it still owns the order.
            let there = try_http(&address, "GET", &format!("/order/{id}"), &[], b"");
            let there = there.expect("the cable to the nodes is whole");
            match there.status {
                200 => assert_eq!(there.json()["state"], now.json()["state"], "{id} is old"),
                status => assert_eq!(status, 503, "{id}: {}", there.body),
            }
            answered += usize::from(there.status == 200);
        }
        println!("{answered} of {ORDERS} orders were read through the node without its engine");
        network.set_engine("up");
        shop.wait_until_home();
    }
    shop.finish();
}
