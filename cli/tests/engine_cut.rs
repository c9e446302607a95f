//! The network between a node and its engine is cut. The other nodes and the clients still reach
//! that node.
//!
//! The node runs in a network namespace with two cables: one to the engine, and one to the other
//! nodes. The engine listens on the machine's loopback interface, which the namespace cannot reach.
//! So a relay outside of the namespace forwards the node's connections to the engine. The test
//! needs root.
//!
//! `IMT_ENGINE_ROUNDS=N` cuts the cable to the engine N times.

use crate::engine::patient;
use crate::engine_faults::{Shop, command, rounds};
use crate::support::{Server, http, stderr, try_http};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

/// Number of orders that the test places in each round, and cancels while the node is without its
/// engine.
const ORDERS: usize = 12;

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("ip is installed");
    assert!(done.status.success(), "ip {}: {}", args.join(" "), stderr(&done));
}

/// A pair of virtual interfaces, one of them in the namespace.
struct Cable {
    /// Name of the interface outside of the namespace.
    name: String,
    /// Address of the interface outside of the namespace.
    outside: String,
    /// Address of the interface in the namespace.
    inside: String,
}

impl Cable {
    /// Returns a cable that does not exist yet. `network` is the first half of its addresses. RFC
    /// 2544 reserves 198.18 and 198.19 for benchmarks, so no network in use should have these
    /// addresses.
    fn new(kind: &str, network: &str) -> Cable {
        let process = std::process::id();
        let address = |end| format!("{network}.{}.{end}", process % 256);
        Cable {
            name: format!("{kind}{process}"),
            outside: address(1),
            inside: address(2),
        }
    }

    fn lay(&self, namespace: &str) {
        let peer = format!("{}b", self.name);
        let pair = ["link", "add", &self.name, "type", "veth", "peer", "name", &peer];
        ip(&[&pair[..], &["netns", namespace]].concat());
        ip(&[
            "address",
            "add",
            &format!("{}/24", self.outside),
            "dev",
            &self.name,
        ]);
        ip(&["link", "set", &self.name, "up"]);
        let address = format!("{}/24", self.inside);
        ip(&["-n", namespace, "address", "add", &address, "dev", &peer]);
        ip(&["-n", namespace, "link", "set", &peer, "up"]);
    }
}

/// A namespace with two cables, removed when dropped.
struct Namespace {
    name: String,
    engine: Cable,
    nodes: Cable,
}

impl Namespace {
    fn create() -> Namespace {
        let namespace = Namespace {
            name: format!("imt{}", std::process::id()),
            engine: Cable::new("ie", "198.18"),
            nodes: Cable::new("in", "198.19"),
        };
        ip(&["netns", "add", &namespace.name]);
        namespace.engine.lay(&namespace.name);
        namespace.nodes.lay(&namespace.name);
        namespace
    }

    /// Cuts the cable to the engine (`down`), or mends it (`up`).
    fn set_engine(&self, state: &str) {
        ip(&["link", "set", &self.engine.name, state]);
    }

    /// Returns a command that runs `command` in the namespace.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside
            .args(["netns", "exec", &self.name])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for cable in [&self.engine, &self.nodes] {
            let _ = Command::new("ip").args(["link", "delete", &cable.name]).output();
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Forwards connections to `port` of the address `address` to the same port of the loopback
/// interface.
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

/// Starts a thread that forwards bytes from `from` to `to` until either connection is closed.
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
fn a_node_without_its_engine_returns_no_old_state_and_serves_again_afterwards() {
    let network = Namespace::create();
    let mut shop = Shop::start(&network.nodes.outside, &["alpha"]);
    let reached = &network.engine.outside;
    for port in ports(&shop.engine.url) {
        relay(reached, port);
    }
    // TLS is turned off, because the servers of `imt engine demo` have none. Connections to an
    // address other than loopback use TLS by default.
    let url = format!(
        "{}?sslmode=disable",
        shop.engine.url.replace("127.0.0.1", reached)
    );
    let node = command(&shop.node_args("cut", &network.nodes.inside, &url));
    shop.nodes.insert("cut", Server::spawn(network.inside(&node)));
    shop.wait_until_home();
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
            // The node without its engine may answer, because it reads an order of another volume
            // at the node that serves that volume.
            let there = try_http(&address, "GET", &format!("/order/{id}"), &[], b"");
            let there = there.expect("the other cable is not cut");
            match there.status {
                200 => assert_eq!(there.json()["state"], now.json()["state"], "an old state of {id}"),
                status => assert_eq!(status, 503, "{id}: {}", there.body),
            }
            answered += usize::from(there.status == 200);
        }
        println!("{answered} of {ORDERS} orders were read at the node without its engine");
        network.set_engine("up");
        shop.wait_until_home();
        shop.engine.assert_fenced();
    }
    shop.finish();
}
