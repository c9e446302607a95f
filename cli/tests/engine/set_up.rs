//! The commands of the guide that prepare an engine: the statements for the role and the database,
//! `imt engine init`, `imt engine check`, and further engines.

use super::{CSV, Engine, SAMPLE_STOCKS, assert_there, members, place};
use crate::support::markdown::blocks;
use crate::support::{Server, http, run, stderr, stdout, until};
use serde_json::{Value, json};
use tempfile::tempdir;

const GUIDE: &str = include_str!("../../../docs/scale-out.md");
/// Role of the test. The guide calls it `imt`, which is the superuser of `imt engine demo`.
const ROLE: &str = "keeper";

/// Runs `imt engine check`. Returns its exit code and the checks.
fn check(url: &str) -> (Option<i32>, Vec<Value>) {
    let checked = run(&["engine", "check", url, "--output", "json"]);
    let checks = serde_json::from_str(&stdout(&checked));
    let checks = checks.unwrap_or_else(|error| panic!("{error}: {}", stderr(&checked)));
    (checked.status.code(), checks)
}

/// Returns the verdict and the finding of a check.
fn found<'a>(checks: &'a [Value], subject: &str) -> (&'a str, &'a str) {
    let check = checks.iter().find(|check| check["subject"] == subject);
    let check = check.unwrap_or_else(|| panic!("{subject} is missing: {checks:#?}"));
    (
        check["verdict"].as_str().unwrap(),
        check["finding"].as_str().unwrap(),
    )
}

fn init(url: &str) {
    let created = run(&["engine", "init", url]);
    assert_eq!(created.status.code(), Some(0), "{}", stderr(&created));
    let next = "is ready; next: imt engine check URL";
    assert!(stdout(&created).contains(next), "{}", stdout(&created));
}

#[test]
#[ignore = "needs an engine"]
fn the_role_of_the_guide_prepares_an_engine_and_runs_nodes_on_it() {
    let (engine, folder) = (Engine::start(), tempdir().unwrap());
    let guide = blocks(GUIDE);
    let mut sql = guide
        .iter()
        .filter(|block| block.text.contains("CREATE DATABASE"));
    let sql = &sql.next().expect("the guide creates a database").text;
    for statement in sql.split(';').filter(|statement| !statement.trim().is_empty()) {
        engine.ask(&statement.replace("imt", ROLE).replace("'...'", "'guide'"));
    }
    engine.ask(&format!("CREATE DATABASE east OWNER {ROLE}"));
    let rights =
        format!("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = '{ROLE}'");
    assert_eq!(engine.ask(&rights), "f");
    let (_, hosts) = engine.url.split_once('@').unwrap();
    let hosts = hosts.strip_suffix("/postgres").unwrap();
    let [shop, east] = ["shop", "east"].map(|database| format!("postgres://{ROLE}:guide@{hosts}/{database}"));

    // Without `imt engine init`, the check names the missing tables and settings.
    let (code, checks) = check(&shop);
    assert_eq!(code, Some(3), "{checks:#?}");
    for subject in ["role", "tables"] {
        let (verdict, finding) = found(&checks, subject);
        assert_eq!(verdict, "BAD", "{finding}");
        assert!(finding.ends_with("run imt engine init"), "{finding}");
    }
    init(&shop);
    init(&shop);
    let (code, checks) = check(&shop);
    assert_eq!(code, Some(0), "{checks:#?}");
    for (subject, finding) in [
        ("version", "PostgreSQL "),
        ("primary", "127.0.0.1:"),
        ("pooler", "none in transaction mode was found"),
        ("standbys", "2 synchronous now"),
        ("fsync", "fsync is on"),
        ("full pages", "full_page_writes is on"),
        (
            "role",
            "synchronous_commit on, lock_timeout 2000 ms, statement_timeout 5000 ms",
        ),
        ("tables", "layout "),
        ("fence", "entries of a former owner are refused"),
    ] {
        let (verdict, text) = found(&checks, subject);
        assert_eq!(verdict, "ok", "{subject}: {text}");
        assert!(text.starts_with(finding), "{subject}: {text}");
    }
    // A busy machine may be slow, so the verdict about the latency can be a warning.
    assert!(found(&checks, "latency").1.contains("ms (median)"), "{checks:#?}");
    assert_eq!(checks.len(), 10, "{checks:#?}");
    // Without pg_monitor, the role does not see the state of the standbys.
    engine.ask(&format!("REVOKE pg_monitor FROM {ROLE}"));
    let (code, checks) = check(&shop);
    let (verdict, finding) = found(&checks, "standbys");
    assert_eq!((code, verdict), (Some(0), "warning"), "{finding}");
    assert!(finding.contains("grant it pg_monitor"), "{finding}");

    let node = |name: &str| {
        let data = folder.path().join(name);
        let more = ["--warehouse", "http://127.0.0.1:9", "--engine", &shop];
        Server::node(name, data.to_str().unwrap(), &more)
    };
    let alpha = node("alpha");
    let stock = http(&alpha.address, "PUT", "/stocks", CSV, SAMPLE_STOCKS);
    assert_eq!(stock.status, 200, "{}", stock.body);
    let orders = place(&alpha.address, "o", 20);
    assert_eq!(alpha.terminate().0, Some(0));
    // The node reads its orders from the engine, without its local copy.
    std::fs::remove_dir_all(folder.path().join("alpha")).unwrap();
    let alpha = node("alpha");
    assert_there(&alpha.address, &orders);

    // The volume of a further node goes to the further engine.
    init(&east);
    let added = run(&["engine", "add", "east", &east, "--engine", &shop]);
    assert_eq!(added.status.code(), Some(0), "{}", stderr(&added));
    let beta = node("beta");
    until("both have their shares", || {
        [&alpha, &beta].iter().all(|node| members(&node.address) == 2)
    });
    assert_there(&beta.address, &orders);
    let listed = run(&["engine", "list", "--engine", &shop, "--output", "json"]);
    assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
    let listed: Value = serde_json::from_str(&stdout(&listed)).unwrap();
    for (at, name, volume) in [(0, "(first)", "alpha"), (1, "east", "beta")] {
        assert_eq!(listed[at]["name"], name, "{listed}");
        assert_eq!(listed[at]["state"], "answers", "{listed}");
        assert_eq!(listed[at]["volumes"], json!([volume]), "{listed}");
    }
    for node in [beta, alpha] {
        assert_eq!(node.terminate().0, Some(0));
    }
}

/// Changes a setting of the server, or resets it if `value` is `None`. Waits until the server has
/// read the change.
fn set(engine: &Engine, name: &str, value: Option<&str>) {
    let before = engine.ask(&format!("SHOW {name}"));
    engine.ask(&match value {
        Some(value) => format!("ALTER SYSTEM SET {name} = '{value}'"),
        None => format!("ALTER SYSTEM RESET {name}"),
    });
    engine.ask("SELECT pg_reload_conf()");
    until("the server has read its settings", || {
        engine.ask(&format!("SHOW {name}")) != before
    });
}

#[test]
#[ignore = "needs an engine"]
fn engine_check_names_settings_of_the_server_and_of_the_role_that_endanger_commits() {
    let engine = Engine::with_standbys(1);
    let url = engine.url.as_str();
    for (setting, value, subject, wanted, expected) in [
        ("fsync", "off", "fsync", (3, "BAD"), "fsync is off: a crash"),
        (
            "full_page_writes",
            "off",
            "full pages",
            (3, "BAD"),
            "full_page_writes is off: a crash",
        ),
        (
            "synchronous_standby_names",
            "",
            "standbys",
            (0, "warning"),
            "synchronous_standby_names is empty: the loss of this machine loses",
        ),
    ] {
        set(&engine, setting, Some(value));
        let (code, checks) = check(url);
        let (verdict, finding) = found(&checks, subject);
        assert_eq!(
            (code, verdict),
            (Some(wanted.0), wanted.1),
            "{setting}: {finding}"
        );
        assert!(finding.starts_with(expected), "{finding}");
        set(&engine, setting, None);
        let (code, checks) = check(url);
        assert_eq!((code, found(&checks, subject).0), (Some(0), "ok"), "{checks:#?}");
    }
    // The settings of the role are removed. Nodes refuse to start until they are set again.
    engine.ask("ALTER ROLE imt IN DATABASE postgres RESET ALL");
    let (code, checks) = check(url);
    let (verdict, finding) = found(&checks, "role");
    assert_eq!((code, verdict), (Some(3), "BAD"), "{finding}");
    let fault = "lock_timeout is 0 ms, and must be 1 to 30000 ms";
    assert!(
        finding.starts_with(fault) && finding.ends_with("run imt engine init"),
        "{finding}"
    );
    let folder = tempdir().unwrap();
    let named = [
        "node",
        "start",
        "--name",
        "alpha",
        "--data",
        folder.path().to_str().unwrap(),
    ];
    let started = run(&[&named[..], &["--listen", "127.0.0.1:0", "--engine", url]].concat());
    assert_eq!(started.status.code(), Some(1), "{}", stderr(&started));
    assert!(stderr(&started).contains(fault), "{}", stderr(&started));
    init(url);
    let (code, checks) = check(url);
    assert_eq!((code, found(&checks, "role").0), (Some(0), "ok"), "{checks:#?}");
}

#[test]
#[ignore = "needs an engine"]
fn engine_check_says_that_commits_wait_for_a_standby_that_does_not_exist() {
    let engine = Engine::with_standbys(1);
    let url = engine.url.as_str();
    let assert_waits = |verdict: &str, expected: &str| {
        let (code, checks) = check(url);
        assert_eq!(code, Some(3), "{checks:#?}");
        let (found_verdict, finding) = found(&checks, "standbys");
        assert_eq!(found_verdict, verdict, "{finding}");
        assert!(finding.contains(expected), "{finding}");
        let (verdict, finding) = found(&checks, "commits");
        assert_eq!(verdict, "BAD", "{finding}");
        assert!(
            finding.starts_with("a test commit was not acknowledged"),
            "{finding}"
        );
    };
    set(&engine, "synchronous_standby_names", Some("nobody"));
    until("the standby is not synchronous", || {
        engine.ask("SELECT sync_state FROM pg_stat_replication") == "async"
    });
    // The second check meets the waiting commit of the first one.
    for _ in 0..2 {
        assert_waits("BAD", "'nobody' names none of the 1 connected standbys");
    }
    set(&engine, "synchronous_standby_names", None);
    until("the standby is synchronous", || {
        engine.ask("SELECT sync_state FROM pg_stat_replication") == "quorum"
    });
    // The test commit of an earlier check still waits until the standby reports its position, which
    // it does at least every 10 s.
    until("commits are acknowledged", || check(url).0 == Some(0));
    // The standby is named, and has ended.
    engine.kill("standby1");
    until("the standby has ended", || {
        engine.ask("SELECT count(*) FROM pg_stat_replication") == "0"
    });
    assert_waits("warning", "is set and no standby is connected");
    // No check leaves an entry behind.
    assert_eq!(engine.ask("SELECT count(*) FROM imt_volume"), "0");
}

#[test]
#[ignore = "needs an engine"]
fn engine_check_warns_of_an_engine_without_a_standby() {
    let engine = Engine::with_standbys(0);
    let (code, checks) = check(&engine.url);
    let (verdict, finding) = found(&checks, "standbys");
    assert_eq!((code, verdict), (Some(0), "warning"), "{finding}");
    assert!(
        finding.starts_with("synchronous_standby_names is empty"),
        "{finding}"
    );
}
