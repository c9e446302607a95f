//! FIFOs that other programs put into the data folder must not block a node, and a FIFO in place of
//! `imt.toml` must not block a command. Requests from web pages of another origin are refused
//! unless `--cors-origin` names the origin.

use std::path::Path;

use crate::support::{Server, http, imt, run, stderr, try_http, until};
use tempfile::tempdir;

fn make_fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

fn start(data: &Path, name: &str, more: &[&str]) -> Server {
    let data = data.to_str().unwrap();
    let usual = [
        "node",
        "start",
        "--name",
        name,
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
        "--stat-scan",
        "50ms",
    ];
    Server::start(&[&usual, more].concat())
}

#[test]
fn a_fifo_in_the_data_folder_stops_neither_statistics_nor_the_process() {
    let data = tempdir().unwrap();
    make_fifo(&data.path().join("stat_001700000000000.csv"));
    let alpha = start(data.path(), "alpha", &[]);
    std::fs::write(data.path().join("stat_001700000000001.csv"), "5,3,10\n").unwrap();
    let units = || http(&alpha.address, "GET", "/aggregate-stats/5", &[], b"").json()["total_qty"].clone();
    until("the file beside the FIFO counts", || units() == 3);
    assert!(data.path().join("stat_001700000000000.csv.rejected").exists());
    // The reconciler of each node reads the descriptions of all nodes at least once a second. A
    // FIFO in place of a description must not block the reconciler.
    make_fifo(&data.path().join("nodes/gamma.json"));
    make_fifo(&data.path().join("nodes/delta.json"));
    make_fifo(&data.path().join("nodes/delta.lock"));
    let beta = start(data.path(), "beta", &[]);
    until("beta joins", || {
        try_http(&beta.address, "GET", "/ring", &[], b"")
            .is_some_and(|answer| answer.json()["members"].as_array().unwrap().len() == 2)
    });
    assert_eq!(beta.terminate().0, Some(0));
    assert_eq!(alpha.terminate().0, Some(0));
}

#[test]
fn an_imt_toml_that_is_a_fifo_is_refused_without_waiting() {
    let folder = tempdir().unwrap();
    make_fifo(&folder.path().join("imt.toml"));
    let refused = imt(&["config", "show"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("regular file"), "{}", stderr(&refused));
}

#[test]
fn a_page_of_another_origin_is_allowed_only_if_its_origin_is_named() {
    let data = tempdir().unwrap();
    let closed = start(data.path(), "alpha", &[]);
    let open = start(
        data.path(),
        "beta",
        &["--cors-origin", "https://shop.example,http://127.0.0.1:3000"],
    );
    let ask = |at: &Server, method: &str, origin: &str| {
        let headers = [("Origin", origin), ("Access-Control-Request-Method", "POST")];
        http(&at.address, method, "/order", &headers, b"")
    };
    let allows = "access-control-allow-origin: https://shop.example";
    for method in ["OPTIONS", "POST"] {
        assert!(ask(&open, method, "https://shop.example").head.contains(allows));
        for (at, origin) in [(&open, "https://evil.example"), (&closed, "https://shop.example")] {
            let answer = ask(at, method, origin);
            // Without this refusal, any web page could place orders: for a body of the type
            // `text/plain`, a browser sends no preflight request.
            assert_eq!(answer.status == 403, method == "POST", "{}", answer.head);
            assert!(
                !answer.head.contains("access-control-allow-origin"),
                "{}",
                answer.head
            );
        }
    }
    let preflight = ask(&open, "OPTIONS", "https://shop.example");
    assert_eq!(preflight.status, 200);
    assert!(preflight.head.contains("idempotency-key"), "{}", preflight.head);
    assert_eq!(ask(&closed, "OPTIONS", "https://shop.example").status, 405);
    let refused = run(&[
        "node",
        "start",
        "--cors-origin",
        "*",
        "--data",
        data.path().to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
}
