//! `imt node leave`: nodes that leave for good, and leaves that cannot be completed. A command that
//! cannot complete a leave ends and gives the reason. A first node of weight 0 does not start.

use std::process::Output;

use crate::support::{Server, begun_order, run, stderr, stdout, try_http, until};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

fn folder(data: &TempDir) -> &str {
    data.path().to_str().unwrap()
}

fn start(data: &TempDir, name: &str, weight: &str) -> Server {
    Server::node(name, folder(data), &["--weight", weight])
}

fn members(at: &Server) -> usize {
    try_http(&at.address, "GET", "/ring", &[], b"")
        .map_or(0, |answer| answer.json()["members"].as_array().unwrap().len())
}

fn leave(data: &TempDir, name: &str, timeout: &str) -> Output {
    run(&[
        "node",
        "leave",
        name,
        "--timeout",
        timeout,
        "--data",
        folder(data),
    ])
}

fn signal(server: &Server, name: &str) {
    let sent = std::process::Command::new("kill")
        .args([&format!("-{name}"), &server.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_first_node_of_weight_zero_is_refused_before_anything_starts() {
    let data = tempdir().unwrap();
    let at = data.path().join("shop");
    let args = [
        "node",
        "start",
        "--weight",
        "0",
        "--name",
        "alpha",
        "--listen",
        "127.0.0.1:0",
        "--data",
    ];
    let refused = run(&[&args[..], &[at.to_str().unwrap()]].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("weight"), "{}", stderr(&refused));
    assert!(!at.exists(), "nothing was made");
}

#[test]
fn the_last_node_with_a_weight_cannot_leave() {
    let data = tempdir().unwrap();
    let alpha = start(&data, "alpha", "1");
    let beta = start(&data, "beta", "0");
    until("beta is a member", || members(&alpha) == 2 && members(&beta) == 2);
    let left = leave(&data, "alpha", "1min");
    assert_eq!(left.status.code(), Some(1), "{}", stdout(&left));
    assert!(stderr(&left).contains("weight 0"), "{}", stderr(&left));
}

#[test]
fn a_leave_that_times_out_gives_the_reason_and_can_be_repeated() {
    let data = tempdir().unwrap();
    let alpha = start(&data, "alpha", "1");
    let beta = start(&data, "beta", "1");
    until("beta has its share", || {
        members(&alpha) == 2 && members(&beta) == 2
    });
    signal(&beta, "STOP");
    let left = leave(&data, "beta", "4s");
    assert_eq!(left.status.code(), Some(1), "{}", stdout(&left));
    assert!(
        stderr(&left).contains("beta") && stderr(&left).contains("does not answer"),
        "it says who does not answer: {}",
        stderr(&left)
    );
    signal(&beta, "CONT");
    // The first request is still valid, so beta may have left before the second one.
    let left = leave(&data, "beta", "2min");
    let has_left = stderr(&left).contains("is no node of the ring");
    assert!(left.status.success() || has_left, "{}", stderr(&left));
    assert_eq!(members(&alpha), 1);
}

#[test]
fn the_coordinators_log_distinguishes_a_stop_from_a_leave() {
    let data = tempdir().unwrap();
    let alpha = start(&data, "alpha", "1");
    let beta = start(&data, "beta", "1");
    until("beta has its share", || {
        members(&alpha) == 2 && members(&beta) == 2
    });
    let stopped = run(&["node", "stop", "beta", "--data", folder(&data)]);
    assert_eq!(stopped.status.code(), Some(0), "{}", stderr(&stopped));
    until("the stop is logged", || alpha.said("node stopped node=beta"));
    assert_eq!(members(&alpha), 2, "a stopped node is still a member");
    let beta = start(&data, "beta", "1");
    until("beta is back", || members(&beta) == 2);
    let left = leave(&data, "beta", "2min");
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    until("the leave is logged", || alpha.said("node left node=beta"));
}

#[test]
fn a_leave_waits_for_the_end_of_the_process() {
    let data = tempdir().unwrap();
    let alpha = start(&data, "alpha", "1");
    let beta = Server::node("beta", folder(&data), &["--drain-timeout", "2s"]);
    until("beta has its share", || {
        members(&alpha) == 2 && members(&beta) == 2
    });
    // The node is no longer listed while it waits for the end of this request.
    let request = begun_order(&beta.address);
    let left = run(&["node", "leave", "beta", "-d", folder(&data), "-o", "json"]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    let left: Value = serde_json::from_str(&stdout(&left)).unwrap();
    assert_eq!(left["process_ended"], true, "{left}");
    let name = imt_ring::NodeName::new("beta").unwrap();
    assert!(!imt_oms::is_node_running(data.path(), &name));
    drop(request);
}

#[test]
fn a_killed_node_is_not_listed_after_it_has_left() {
    let data = tempdir().unwrap();
    let alpha = start(&data, "alpha", "1");
    let beta = start(&data, "beta", "1");
    until("beta has its share", || {
        members(&alpha) == 2 && members(&beta) == 2
    });
    beta.kill();
    let list = || stdout(&run(&["node", "list", "--data", folder(&data)]));
    assert!(list().contains("beta"), "it is still a member: {}", list());
    let left = leave(&data, "beta", "2min");
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert!(!list().contains("beta"), "{}", list());
    assert_eq!(alpha.terminate().0, Some(0));
    assert!(!list().contains("beta"), "{}", list());
}
