//! Encryption between nodes.

use super::{World, assert_there, patient, place};
use crate::support::{Server, http, run, stderr, stdout, try_http, until};
use serde_json::Value;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Returns an address of this machine that is not a loopback one. Nothing is sent to find it.
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
    // Half of the orders, and of the stock, belong to the other node.
    let orders = place(&alpha.address, "o", 40);
    assert_there(&beta.address, &orders);
    // Commands prove the secret on an encrypted connection as well.
    let listed = world.listed();
    let states = listed.as_array().unwrap().iter().map(|node| &node["state"]);
    assert_eq!(states.collect::<Vec<_>>(), ["serving", "serving"]);
    // The right secret is refused on a plain connection from such an address.
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
    // Another secret is refused on an encrypted connection.
    let wrong = world.folders.path().join("wrong-secret");
    std::fs::write(&wrong, "a secret of another cluster\n").unwrap();
    std::fs::set_permissions(&wrong, PermissionsExt::from_mode(0o600)).unwrap();
    let wrong = ["--secret-file", wrong.to_str().unwrap()];
    let states = ok_json(&[&["node", "list", "--engine", &world.engine.url], &wrong[..]].concat());
    assert_eq!(states[0]["state"], "not answering", "{states}");
    // A node that encrypts nothing cannot join the others' calls.
    let gamma = node("gamma", &["--insecure-plaintext"]);
    until("a node refuses the plain connection", || {
        // The node asks the owner of the order, in plain text.
        let _ = try_http(&gamma.address, "GET", "/order/o1", &[], b"");
        alpha.said("refused an unencrypted connection") || beta.said("refused an unencrypted connection")
    });
    drop(gamma);
    assert_eq!(
        patient(|| http(&beta.address, "GET", "/order/o1", &[], b"")).status,
        200
    );
}
