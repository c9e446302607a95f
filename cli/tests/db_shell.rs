//! `imt db` as a user runs it in a shell: typed keys, hexadecimal digits after `0x`, scans, changes
//! of tables, use of space, rows of a node, keys of lost records, and differences.

use crate::support::{Server, http, run, stderr, stdout, until};
use microdb::{Db, Options};
use serde_json::Value as Json;
use std::path::PathBuf;
use tempfile::{TempDir, tempdir};

fn done(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

fn json(args: &[&str]) -> Json {
    serde_json::from_str(&done(&[args, &["-o", "json"]].concat())).unwrap()
}

/// Creates a database with two typed tables, and a table of bytes with many dead records.
fn library() -> (TempDir, PathBuf) {
    let kept = tempdir().unwrap();
    let path = kept.path().join("library");
    let db = Db::open(&path).unwrap();
    let users = db.typed_table::<String, u64>("users").unwrap();
    users.put(&"ann".to_owned(), &300).unwrap();
    users.put(&"bob".to_owned(), &7).unwrap();
    db.typed_table::<i64, String>("debts")
        .unwrap()
        .put(&-5, &"rent".to_owned())
        .unwrap();
    let events = db.table("events").unwrap();
    for round in 0..20 {
        events
            .put("page", format!("{round}{}", "x".repeat(2_000)))
            .unwrap();
    }
    events.put([0, 255], "bytes").unwrap();
    db.close().unwrap();
    (kept, path)
}

#[test]
fn rows_of_typed_tables_are_found_by_the_type_of_their_key() {
    let (_kept, path) = library();
    let db = path.to_str().unwrap();
    // The database records that the keys of this table are strings.
    assert_eq!(
        done(&["db", "get", db, "users", "ann", "--value-type", "u64"]),
        "300\n"
    );
    assert_eq!(
        done(&["db", "get", db, "debts", "-5", "--value-type", "string"]),
        "rent\n"
    );
    let keys = done(&["db", "scan", db, "debts", "--keys-only", "--no-header"]);
    assert_eq!(keys, "-5\n");
    let tailed = done(&["db", "tail", db, "--table", "users", "--since", "0"]);
    assert!(tailed.contains("put    users ann "), "{tailed}");
    let located = done(&["db", "inspect", db, "--key", "users", "bob"]);
    assert!(located.contains("the live record of 'bob'"), "{located}");
    // A type on the command line takes precedence over the recorded one.
    let missing = run(&["db", "get", db, "users", "ann", "--key-type", "text"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("--key-type"), "{}", stderr(&missing));
    let typed = ["--key-type", "string", "--value-type", "u64"];
    assert_eq!(
        done(&[&["db", "get", db, "users", "ann"][..], &typed].concat()),
        "300\n"
    );
    let mut lines: Vec<String> = done(&[&["db", "scan", db, "users", "--no-header"][..], &typed].concat())
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, ["ann  300", "bob    7"]);
    assert_eq!(
        done(&[
            "db",
            "get",
            db,
            "debts",
            "-5",
            "-k",
            "i64",
            "--value-type",
            "string"
        ]),
        "rent\n"
    );
    assert_eq!(
        done(&[
            "db",
            "put",
            db,
            "users",
            "cid",
            "65536",
            "-k",
            "string",
            "--value-type",
            "u64"
        ]),
        ""
    );
    let open = Options::new().read_only(true).open(&path).unwrap();
    let users = open.typed_table::<String, u64>("users").unwrap();
    assert_eq!(users.get(&"cid".to_owned()).unwrap(), Some(65_536));
    let wrong = run(&["db", "get", db, "users", "x", "--key-type", "u64"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn keys_are_read_in_the_form_in_which_a_scan_shows_them() {
    let (_kept, path) = library();
    let db = path.to_str().unwrap();
    let keys = done(&["db", "scan", db, "events", "--keys-only", "--no-header"]);
    let mut keys: Vec<&str> = keys.lines().collect();
    keys.sort();
    assert_eq!(keys, ["0x00ff", "page"]);
    assert_eq!(done(&["db", "get", db, "events", "0x00ff"]), "bytes\n");
    assert_eq!(
        json(&["db", "get", db, "users", "0x03616e6e"])["value"],
        "0xfb2c01"
    );
    assert_eq!(done(&["db", "scan", db, "events", "--count"]), "2\n");
    assert_eq!(
        done(&["db", "scan", db, "events", "--count", "--prefix", "pa"]),
        "1\n"
    );
    let csv = done(&[
        "db",
        "scan",
        db,
        "users",
        "--csv",
        "-k",
        "string",
        "--value-type",
        "u64",
    ]);
    assert!(
        csv.starts_with("key,value\n") && csv.contains("ann,300\n"),
        "{csv}"
    );
    let first = run(&["db", "scan", db, "users", "-n", "1"]);
    assert!(
        stderr(&first).contains("more than 1 record;"),
        "{}",
        stderr(&first)
    );
    let put = json(&["db", "put", db, "events", "k", "v"]);
    assert_eq!((&put["key"], &put["durable"]), (&"k".into(), &true.into()));
    assert_eq!(json(&["db", "delete", db, "events", "k"])["deleted"], true);
}

#[test]
fn tables_are_renamed_cleared_and_dropped_with_a_confirmation() {
    let (_kept, path) = library();
    let db = path.to_str().unwrap();
    assert_eq!(json(&["db", "table", "list", db]).as_array().unwrap().len(), 3);
    assert!(done(&["db", "table", "rename", db, "debts", "dues"]).contains("now called dues"));
    for (args, code, names) in [
        (
            &["db", "table", "rename", db, "debts", "x"][..],
            1,
            "has no table 'debts'",
        ),
        (&["db", "table", "rename", db, "dues", "users"], 1, "already"),
        (&["db", "table", "clear", db, "users"], 2, "has 2 keys; --yes"),
        (&["db", "table", "drop", db, "dues"], 2, "has 1 key; --yes"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(stderr(&output).contains(names), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(
        done(&["db", "table", "clear", db, "users", "--yes"]),
        "table users is empty; it had 2 keys\n"
    );
    assert_eq!(
        json(&["db", "table", "drop", db, "dues", "--yes"])["change"],
        "dropped"
    );
    assert_eq!(
        done(&["db", "table", "drop", db, "users"]),
        "table users is dropped; it had 0 keys\n"
    );
    let left: Vec<Json> = serde_json::from_value(json(&["db", "table", "list", db])).unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["name"], "events");
}

#[test]
fn the_report_on_space_has_dead_bytes_by_table_and_the_largest_records() {
    let (_kept, path) = library();
    let db = path.to_str().unwrap();
    done(&["db", "table", "drop", db, "debts", "--yes"]);
    let report = json(&["db", "space", db, "-n", "2", "--key-type", "string"]);
    let table = |name: &str| {
        let tables = report["tables"].as_array().unwrap();
        tables
            .iter()
            .find(|table| table["table"] == name)
            .unwrap()
            .clone()
    };
    let dead = table("events")["dead_bytes"].as_u64().unwrap();
    assert!(
        (38_000..60_000).contains(&dead),
        "19 of 20 pages of 2 kB are dead: {report}"
    );
    assert_eq!(table("users")["dead_bytes"], 0, "{report}");
    assert!(report["dropped_tables_bytes"].as_u64().unwrap() > 0, "{report}");
    let parts: u64 = ["live_bytes", "dead_bytes"]
        .iter()
        .map(|part| report[*part].as_u64().unwrap())
        .sum();
    assert_eq!(report["log_bytes"], parts);
    let values = report["largest_values"].as_array().unwrap();
    assert_eq!(values.len(), 2);
    assert_eq!(
        (&values[0]["table"], &values[0]["key"]),
        (&"events".into(), &"page".into())
    );
    let text = done(&["db", "space", db]);
    assert!(
        text.contains("next open") && text.contains("(dropped tables)"),
        "{text}"
    );
    assert!(text.lines().count() < 40, "one page: {text}");
}

#[test]
fn a_node_s_rows_are_shown_with_dates_and_its_tables_are_protected() {
    let data = tempdir().unwrap();
    let folder = data.path().to_str().unwrap();
    let node = Server::start(&["node", "start", "-n", "alpha", "-d", folder, "-l", "127.0.0.1:0"]);
    let csv = [("Content-Type", "text/csv")];
    let stocks = include_bytes!("../../data/samples/stocks.csv");
    assert_eq!(http(&node.address, "PUT", "/stocks", &csv, stocks).status, 200);
    let order = br#"{"id":"k17","products":[{"id":16,"quantity":3}]}"#;
    let answer = || {
        http(
            &node.address,
            "POST",
            "/order",
            &[("Content-Type", "application/json")],
            order,
        )
    };
    until("the order is accepted", || answer().status == 200);
    let volume = data.path().join("volumes/alpha");
    let volume = volume.to_str().unwrap();
    let row = done(&["db", "get", volume, "orders", "k17"]);
    assert!(
        row.contains("state        reserved\n") && row.contains("history\n"),
        "{row}"
    );
    assert!(
        row.contains("Z  reserved") && !row.contains("at_ms\":"),
        "times are dates: {row}"
    );
    let raw = json(&["db", "get", volume, "orders", "k17"]);
    assert!(
        raw["value"]["history"][0]["at_ms"].is_u64(),
        "programs get numbers: {raw}"
    );
    let tail = done(&["db", "tail", volume, "--since", "0", "--key", "k17"]);
    assert!(
        tail.contains("put    orders k17 ") && tail.contains("reservations k17/1"),
        "{tail}"
    );
    assert!(!tail.contains(" stock "), "{tail}");
    assert_eq!(node.terminate().0, Some(0));
    for args in [
        &["db", "put", volume, "orders", "99", "hello"][..],
        &["db", "table", "drop", volume, "orders", "--yes"],
        &["db", "table", "clear", volume, "stats", "--yes"],
        &["db", "table", "rename", volume, "orders", "old"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("--raw"), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(done(&["db", "scan", volume, "orders", "--count"]), "1\n");
}

#[test]
fn salvage_names_the_lost_keys() {
    let kept = tempdir().unwrap();
    let path = kept.path().join("shop");
    let db = Options::new().background(false).open(&path).unwrap();
    let events = db.table("events").unwrap();
    for number in 0..10 {
        events.put(format!("event-{number}"), "z".repeat(500)).unwrap();
    }
    db.checkpoint().unwrap();
    db.close().unwrap();
    let segment = std::fs::read_dir(path.join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let segment = segment
        .filter(|file| file.extension().is_some_and(|end| end == "seg"))
        .min()
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let key = bytes.windows(7).position(|window| window == b"event-4").unwrap();
    bytes[key + 300] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let saved = kept.path().join("saved");
    let output = run(&["db", "salvage", path.to_str().unwrap(), saved.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let text = stdout(&output);
    let listed = text.split("lost keys, as far as they are known:").nth(1);
    assert!(
        listed.is_some_and(|listed| listed.contains("events event-4")),
        "{text}"
    );
}

#[test]
fn a_difference_of_typed_tables_names_the_key_as_get_reads_it() {
    let kept = tempdir().unwrap();
    let paths = ["one", "two"].map(|name| kept.path().join(name));
    for (path, value) in paths.iter().zip(["a", "b"]) {
        let db = Options::new().background(false).open(path).unwrap();
        let names = db.typed_table::<u64, String>("names").unwrap();
        // The encoding of 49 is the byte of the digit 1.
        names.put(&49, &value.to_owned()).unwrap();
        db.close().unwrap();
    }
    let [one, two] = paths.each_ref().map(|path| path.to_str().unwrap());
    let output = run(&["db", "diff", one, two]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("names 49"), "{text}");
    done(&["db", "get", one, "names", "49"]);
}

#[test]
fn a_table_that_put_creates_knows_the_type_of_its_keys() {
    let kept = tempdir().unwrap();
    let path = kept.path().join("new");
    let db = path.to_str().unwrap();
    let typed = ["--key-type", "string", "--value-type", "u64", "--create"];
    done(&[&["db", "put", db, "users", "ann", "300"], &typed[..]].concat());
    done(&["db", "put", db, "users", "bob", "0x07"]);
    for (key, value) in [("ann", "300\n"), ("bob", "7\n")] {
        assert_eq!(
            done(&["db", "get", db, "users", key, "--value-type", "u64"]),
            value
        );
    }
    // The library reads the table as a typed table.
    let db = Db::open(&path).unwrap();
    let users = db.typed_table::<String, u64>("users").unwrap();
    assert_eq!(users.get("ann").unwrap(), Some(300));
}
