//! `imt order` against a running node, or against a server of the test: list, show, history, pay,
//! cancel, watch and retry of dead letters.

use crate::support::{Server, free_address, http, imt, run, stderr, stdout, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Output, Stdio};
use tempfile::{TempDir, tempdir};

/// A node with stock. No warehouse listens at the address that the node calls, unless the test
/// starts one there.
struct Shop {
    node: Server,
    warehouse: String,
    _data: TempDir,
}

impl Shop {
    fn start() -> Self {
        let data = tempdir().unwrap();
        let warehouse = free_address();
        let warehouse_url = format!("http://{warehouse}");
        let folder = data.path().to_str().unwrap();
        let node = Server::start(&[
            "node",
            "start",
            "-n",
            "alpha",
            "-d",
            folder,
            "-l",
            "127.0.0.1:0",
            "--warehouse",
            &warehouse_url,
        ]);
        let csv = [("Content-Type", "text/csv")];
        let stocks = include_bytes!("../../data/samples/stocks.csv");
        let answer = http(&node.address, "PUT", "/stocks", &csv, stocks);
        assert_eq!(answer.status, 200, "{}", answer.body);
        Self {
            node,
            warehouse,
            _data: data,
        }
    }

    fn place(&self, id: &str) {
        let order =
            json!({ "id": id, "products": [{ "id": 16, "quantity": 3 }, { "id": 18, "quantity": 1 }] });
        let headers = [("Content-Type", "application/json")];
        let answer = http(
            &self.node.address,
            "POST",
            "/order",
            &headers,
            order.to_string().as_bytes(),
        );
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    fn run(&self, args: &[&str]) -> Output {
        imt(&[&["order"], args].concat())
            .env("IMT_OMS", self.node.url())
            .output()
            .unwrap()
    }

    fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[args, &["-o", "json"]].concat())).unwrap()
    }

    fn warehouse_in_health(&self) -> String {
        let health = http(&self.node.address, "GET", "/health", &[], b"").json();
        health["warehouse"].as_str().unwrap().to_owned()
    }

    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = imt(&[&["order"], args].concat());
        command
            .env("IMT_OMS", self.node.url())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

#[test]
fn an_order_is_listed_shown_paid_cancelled_and_its_history_told() {
    let shop = Shop::start();
    for id in ["k1", "k2", "k3"] {
        shop.place(id);
    }
    let table = shop.done(&["list", "--fields", "order,state,store,products", "--no-header"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table.lines().next().unwrap().starts_with("k1  ") && table.contains("3x16 1x18"),
        "{table}"
    );
    let first = shop.run(&["list", "--limit", "2"]);
    assert_eq!(stdout(&first).lines().count(), 3);
    assert!(
        stderr(&first).contains("more than 2 orders"),
        "{}",
        stderr(&first)
    );
    assert_eq!(shop.json(&["list"]).as_array().unwrap().len(), 3);
    assert_eq!(shop.json(&["list", "--since", "1h", "--store", "999"]), json!([]));

    assert_eq!(shop.done(&["pay", "k1", "4711"]), "order k1 is paid\n");
    assert_eq!(
        shop.done(&["pay", "k1", "4711"]),
        "order k1 is paid\n",
        "a payment may be repeated"
    );
    let refused = shop.run(&["pay", "k1", "4712"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("already paid by transaction 4711"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(shop.done(&["cancel", "k2"]), "order k2 is cancelled\n");
    let some = shop.run(&["cancel", "k3", "nope", "k2"]);
    assert_eq!(some.status.code(), Some(1));
    assert_eq!(stdout(&some), "order k3 is cancelled\norder k2 is cancelled\n");
    assert!(
        stderr(&some).contains("1 order could not be cancelled"),
        "{}",
        stderr(&some)
    );
    assert_eq!(
        shop.json(&["list", "--state", "cancelled"])
            .as_array()
            .unwrap()
            .len(),
        2
    );

    let shown = shop.done(&["show", "k1"]);
    assert!(
        shown.contains("state        paid") && shown.contains("transaction  4711"),
        "{shown}"
    );
    let history = shop.done(&["history", "k1", "--fields", "event,detail", "--csv"]);
    assert_eq!(
        history,
        "event,detail\nreceived,\nreserved,store 1\npaid,transaction 4711\nrefund_wanted,transaction 4712\n"
    );
    for args in [
        &["show", "nope"][..],
        &["history", "nope"],
        &["watch", "nope"],
        &["cancel", "nope"],
    ] {
        let output = shop.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).contains("404: there is no "),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    let error: Value = serde_json::from_str(&stderr(&shop.run(&["show", "nope", "-o", "json"]))).unwrap();
    assert_eq!(error["error"]["problem"]["status"], 404, "{error}");
}

#[test]
fn an_unreachable_warehouse_is_reported_by_log_health_and_order_show() {
    let shop = Shop::start();
    shop.place("w2");
    until("the calls to the warehouse fail", || {
        shop.warehouse_in_health() == "failing"
    });
    // The neighbours by id have messages too, which `show` must leave out.
    for id in ["w1", "w20", "w3"] {
        shop.place(id);
    }
    let shown = shop.done(&["show", "w2"]);
    let lines: Vec<&str> = shown.lines().filter(|line| line.starts_with("message")).collect();
    assert_eq!(lines.len(), 1, "{shown}");
    for part in [
        "'announce' waits for the warehouse, ",
        " failed tries, last error: ",
    ] {
        assert!(lines[0].contains(part), "{part}: {shown}");
    }
    let order = shop.json(&["show", "w2"]);
    assert_eq!(order["messages"].as_array().unwrap().len(), 1, "{order}");
    assert_eq!(order["messages"][0]["order"], "w2", "{order}");
    assert!(order["messages"][0]["attempts"].as_u64() >= Some(3), "{order}");
    let answer = http(&shop.node.address, "GET", "/order/w2", &[], b"").json();
    assert_eq!(answer["messages"], Value::Null, "the API answers the order alone");

    let warehouse = std::net::TcpListener::bind(&shop.warehouse).unwrap();
    std::thread::spawn(move || {
        for stream in warehouse.incoming() {
            let mut stream = stream.unwrap();
            // The body is a JSON object, so the request ends with a brace. The end of the
            // connection after the answer lets the node connect again for its next call.
            let (mut request, mut part) = (Vec::new(), [0; 4_096]);
            while !request.ends_with(b"}") {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => request.extend_from_slice(&part[..count]),
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    until("the warehouse answers", || shop.warehouse_in_health() == "ok");
    until("the order is announced", || {
        shop.json(&["show", "w2"])["state"] == "announced"
    });
    let shown = shop.done(&["show", "w2"]);
    assert!(!shown.contains("message"), "{shown}");
    let (_, log) = shop.node.terminate();
    let said = |text: &str| log.iter().filter(|line| line.contains(text)).collect::<Vec<_>>();
    let warned = said("calls to the warehouse failed, retries continue");
    assert_eq!(warned.len(), 1, "{log:?}");
    let warehouse = format!("warehouse=\"http://{}\"", shop.warehouse);
    for part in ["WARN", "failures=3", "cause=", &warehouse] {
        assert!(warned[0].contains(part), "{part}: {}", warned[0]);
    }
    let answered = said("warehouse answered again");
    assert_eq!(answered.len(), 1, "{log:?}");
    assert!(answered[0].contains("INFO"), "{}", answered[0]);
}

#[test]
fn an_order_is_watched_until_it_has_ended() {
    let shop = Shop::start();
    shop.place("k1");
    let mut watch = shop.spawn(&["watch", "k1", "--until", "paid", "--interval", "50ms"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.next().unwrap().contains("received"));
    assert!(lines.next().unwrap().ends_with("reserved          store 1"));
    shop.done(&["pay", "k1", "4711"]);
    assert!(
        lines
            .next()
            .unwrap()
            .contains("paid              transaction 4711")
    );
    assert_eq!(watch.wait().unwrap().code(), Some(0));

    shop.place("k2");
    let late = shop.run(&["watch", "k2", "--timeout", "200ms", "--interval", "50ms"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(
        stderr(&late).contains("is reserved after 200ms, not delivered"),
        "{}",
        stderr(&late)
    );
    shop.done(&["cancel", "k2"]);
    let ended = shop.run(&["watch", "k2", "-o", "json"]);
    assert_eq!(
        ended.status.code(),
        Some(3),
        "it ended in another state: {}",
        stderr(&ended)
    );
    let events: Vec<Value> = stdout(&ended)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.last().unwrap()["event"], "cancelled");
    assert!(events.iter().all(|event| event["order"] == "k2"));
}

/// The server of this test ends the order before it answers the first request for the order. The
/// history has the last event from then on.
#[test]
fn the_last_event_of_a_watched_order_is_printed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut has_ended = false;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            let is_history = request[..length].starts_with(b"GET /order/17/history ");
            has_ended |= !is_history;
            let names = &["received", "cancelled"][..1 + usize::from(has_ended)];
            let events: Vec<Value> = names
                .iter()
                .map(|name| json!({ "at_ms": 1, "event": name }))
                .collect();
            let answer = match is_history {
                true => json!({ "events": events }).to_string(),
                false => json!({ "state": "cancelled" }).to_string(),
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
                answer.len()
            );
            let _ = stream.write_all(format!("{head}connection: close\r\n\r\n{answer}").as_bytes());
        }
    });
    let watched = run(&["order", "watch", "17", "-o", "json", "--oms", &url]);
    assert_eq!(watched.status.code(), Some(3), "{}", stderr(&watched));
    let events: Vec<Value> = stdout(&watched)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.last().unwrap()["event"], "cancelled", "{events:?}");
}

#[test]
fn new_orders_are_followed() {
    let shop = Shop::start();
    shop.place("old");
    let mut list = shop.spawn(&["list", "--follow", "--interval", "50ms", "--since", "1h"]);
    let mut lines = BufReader::new(list.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("order "));
    assert!(lines.next().unwrap().starts_with("old "));
    shop.place("new");
    assert!(lines.next().unwrap().starts_with("new "));
    list.kill().unwrap();
    list.wait().unwrap();
}

#[test]
fn a_watched_order_outlives_a_restart_of_its_node() {
    let shop = Shop::start();
    shop.place("k1");
    let mut watch = shop.spawn(&["watch", "k1", "--until", "paid", "--interval", "50ms"]);
    let mut lines = BufReader::new(watch.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.next().unwrap().contains("received"));
    let mut remarks = BufReader::new(watch.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let Shop { node, _data, .. } = shop;
    let address = node.address.clone();
    node.kill();
    assert!(remarks.next().unwrap().contains("asking again"));
    let folder = _data.path().to_str().unwrap();
    let node = Server::start(&["node", "start", "-n", "alpha", "-d", folder, "-l", &address]);
    let paid = || {
        run(&["order", "pay", "k1", "7", "--oms", &node.url()])
            .status
            .code()
            == Some(0)
    };
    until("the order is paid", paid);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

/// The server of this test answers each request with 404 and a page, as a file server does.
#[test]
fn a_server_that_is_no_node_is_recognized() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let page = "<h1>Not found</h1>";
            let head = format!(
                "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: {}\r\n",
                page.len()
            );
            let _ = stream.write_all(format!("{head}connection: close\r\n\r\n{page}").as_bytes());
        }
    });
    for command in [
        &["show", "17"][..],
        &["history", "17"],
        &["list"],
        &["cancel", "17"],
    ] {
        let output = run(&[&["order"], command, &["--oms", &url]].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let error = stderr(&output);
        assert!(
            error.contains("as no node does") && error.contains(&url),
            "{command:?}: {error}"
        );
    }
}

/// Starts a server that answers one request with each of `bodies`, and then refuses connections.
/// Returns its URL.
fn answer_a_few(bodies: Vec<String>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut listener = Some(listener);
        let count = bodies.len();
        for (at, body) in bodies.into_iter().enumerate() {
            let (mut stream, _) = listener.as_ref().unwrap().accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            if at + 1 == count {
                // The listener is closed before the last answer, so that the next connection is
                // refused.
                listener = None;
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            let _ =
                stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    url
}

#[test]
fn cancel_prints_the_orders_cancelled_before_the_node_went_away() {
    let cancelled = || vec![json!({ "id": "a", "state": "cancelled" }).to_string()];
    let url = answer_a_few(cancelled());
    let output = run(&["order", "cancel", "a", "b", "c", "--oms", &url]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert_eq!(stdout(&output), "order a is cancelled\n");
    let error = stderr(&output);
    assert!(
        error.contains("no node answers") && error.contains("order b may be cancelled or not; 1 further"),
        "{error}"
    );
    let url = answer_a_few(cancelled());
    let output = run(&["order", "cancel", "a", "b", "--oms", &url, "-o", "json"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    let done: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(done[0]["id"], "a");
    let error: Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!(error["error"]["exit_code"], 5);
}

#[test]
fn dead_retry_prints_the_number_of_messages_retried_before_the_node_went_away() {
    let dead = |order: &str| json!({ "order": order, "kind": "announce", "state": "dead" });
    let page = json!({ "messages": [dead("a"), dead("b"), dead("c")], "next": null });
    let url = answer_a_few(vec![page.to_string(), dead("a").to_string()]);
    let output = run(&["order", "dead", "retry", "--all", "--oms", &url]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert_eq!(stdout(&output), "1 message will be sent again\n");
    let error = stderr(&output);
    assert!(
        error.contains("message 'announce' of order b may be sent again or not"),
        "{error}"
    );
}
