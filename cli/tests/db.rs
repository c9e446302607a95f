//! `imt db` on healthy, open, crashed and damaged databases. Checks output, exit codes, and that
//! reading commands change no byte.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::{imt, run, stderr, stdout};
use microdb::{Db, Durability, Options};
use serde_json::Value as Json;
use tempfile::{TempDir, tempdir};

/// Creates a database with several tables and segments, in which some records are dead.
fn shop() -> (TempDir, PathBuf) {
    let kept = tempdir().unwrap();
    let path = kept.path().join("shop");
    let db = options().open(&path).unwrap();
    fill(&db, 1);
    fill(&db, 2);
    db.close().unwrap();
    (kept, path)
}

fn options() -> Options {
    Options::new()
        .segment_bytes_first(8192)
        .segment_bytes_max(8192)
        .background(false)
}

fn fill(db: &Db, round: u64) {
    let events = db.table("events").unwrap();
    for number in 0..100 {
        let value = format!(
            "{{\"round\":{round},\"number\":{number},\"text\":\"{}\"}}",
            "z".repeat(200)
        );
        events
            .put_with(format!("event-{number}"), value, Durability::Buffered)
            .unwrap();
    }
    db.table("bytes")
        .unwrap()
        .put([0, 255, round as u8], [1, 2, 0xff])
        .unwrap();
    db.table("empty").unwrap();
}

fn json(args: &[&str]) -> Json {
    let output = run(&[args, &["--output", "json"]].concat());
    serde_json::from_str(&stdout(&output))
        .unwrap_or_else(|error| panic!("{args:?}: {error}: {} {}", stdout(&output), stderr(&output)))
}

fn code(args: &[&str]) -> i32 {
    let output = run(args);
    assert!(
        !stderr(&output).contains("panicked"),
        "{args:?}: {}",
        stderr(&output)
    );
    output.status.code().unwrap()
}

/// Returns all files of a database with their bytes, except the file LOCK.
fn bytes(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(bytes(&entry.path()));
        } else if entry.file_name() != "LOCK" {
            found.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
    found
}

/// Returns the segment files of a database with their bytes.
fn segments(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = bytes(&path.join("log"));
    found.retain(|(file, _)| file.extension().is_some_and(|extension| extension == "seg"));
    found
}

/// Returns the arguments of commands that change nothing.
fn looks<'a>(db: &'a str, other: &'a str) -> Vec<Vec<&'a str>> {
    vec![
        vec!["db", "inspect", db],
        vec!["db", "inspect", db, "--segment", "1"],
        vec!["db", "inspect", db, "--frame", "1:96"],
        vec!["db", "verify", db],
        vec!["db", "stats", db],
        vec!["db", "compact", db, "--dry-run"],
        vec!["db", "scan", db, "events"],
        vec!["db", "tail", db],
        vec!["db", "export", db],
        vec!["db", "diff", db, other],
    ]
}

#[test]
fn read_only_commands_work_on_a_database_in_use_and_change_no_byte() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    let open = options().open(&path).unwrap();
    fill(&open, 3);
    open.sync().unwrap();
    let before = bytes(&path);
    for args in looks(db, db) {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(!stdout(&output).is_empty());
    }
    let seen = json(&["db", "get", db, "events", "event-5"]);
    assert!(seen["value"].as_str().unwrap().contains("\"round\":3"));
    let place = json(&["db", "inspect", db, "--key", "events", "event-5"]);
    assert_eq!(place["record"]["key"], "event-5");
    assert_eq!(bytes(&path), before, "looking changed something");
    // A backup of a database in use has the same records.
    let copy = path.with_file_name("copy");
    let copy = copy.to_str().unwrap();
    assert_eq!(json(&["db", "backup", db, copy])["in_use"], true);
    assert_eq!(code(&["db", "diff", db, copy]), 0);
    // Commands that change the database are refused, because another process has it open. The error
    // names that process.
    for args in [&["db", "compact", db][..], &["db", "import", db]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains(&std::process::id().to_string()),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_backup_is_verified_restored_and_equal() {
    let (_kept, path) = shop();
    let (backup, restored) = (path.with_file_name("backup"), path.with_file_name("restored"));
    let (db, backup, restored) = (
        path.to_str().unwrap(),
        backup.to_str().unwrap(),
        restored.to_str().unwrap(),
    );
    assert_eq!(json(&["db", "backup", db, backup])["in_use"], false);
    assert_eq!(code(&["db", "backup", db, backup]), 1, "the folder is taken");
    assert_eq!(json(&["db", "verify", backup])["sound"], true);
    assert_eq!(code(&["db", "put", db, "events", "event-1", "changed"]), 0);
    assert_eq!(code(&["db", "delete", db, "events", "event-2"]), 0);
    assert_eq!(code(&["db", "put", db, "events", "new", "value"]), 0);
    assert_eq!(code(&["db", "restore", backup, restored]), 0);
    let found = json(&["db", "diff", db, restored]);
    assert_eq!(found["equal"], false);
    let mut keys: Vec<String> = found["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| format!("{} {}", key["key"], key["kind"]))
        .collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "\"event-1\" \"value\"",
            "\"event-2\" \"only_in_second\"",
            "\"new\" \"only_in_first\""
        ]
    );
    assert_eq!(code(&["db", "diff", db, restored]), 3);
    assert_eq!(code(&["db", "diff", backup, restored]), 0);
}

#[test]
fn an_export_imports_to_the_same_database_and_a_truncated_one_is_rejected() {
    let (kept, path) = shop();
    let (file, copy) = (kept.path().join("all.jsonl"), kept.path().join("copy"));
    let (db, file, copy) = (
        path.to_str().unwrap(),
        file.to_str().unwrap(),
        copy.to_str().unwrap(),
    );
    assert_eq!(code(&["db", "export", db, "--to", file]), 0);
    assert_eq!(
        code(&["db", "import", copy, "--from", file]),
        1,
        "nothing is made without being asked"
    );
    assert_eq!(
        json(&["db", "import", copy, "--from", file, "--create"])["records"],
        102
    );
    assert_eq!(code(&["db", "diff", db, copy]), 0);
    let text = std::fs::read_to_string(file).unwrap();
    assert!(
        text.contains("\"key_hex\":\"00ff01\"") && text.contains("{\"table\":\"empty\"}"),
        "{text}"
    );
    // An import through a pipe fails if the line that ends the export is missing.
    let short = &text[..text.rfind("{\"end\"").unwrap()];
    let mut child = imt(&["db", "import", copy])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(short.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cut short"), "{}", stderr(&output));
    // The error of an import names the invalid line.
    std::fs::write(
        file,
        "{\"table\":\"t\",\"key\":\"k\",\"value\":\"v\"}\n{\"table\":\"t\",\"key\":7}\n",
    )
    .unwrap();
    let output = run(&["db", "import", copy, "--from", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("line 2: key is not a string"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_change_feed_is_followed_beside_the_writer() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    let all = stdout(&run(&["db", "tail", db, "--since", "0", "--output", "json"]));
    let lines: Vec<Json> = all
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["operations"][0]["do"], "table");
    assert!(
        lines
            .windows(2)
            .all(|two| two[0]["sequence"].as_u64().unwrap() + 1 == two[1]["sequence"].as_u64().unwrap())
    );
    assert_eq!(
        stdout(&run(&["db", "tail", db, "--last", "3"])).lines().count(),
        3
    );
    let open = options().open(&path).unwrap();
    let mut child = imt(&["db", "tail", db, "--last", "1", "--follow", "--interval", "50ms"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    lines.next().unwrap().unwrap();
    open.table("events").unwrap().put("news", "of today").unwrap();
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .ends_with("put    events news of today")
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_torn_tail_is_distinguished_from_damage() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    // A crash may leave the first bytes of a frame after the end of the log.
    let last = segments(&path).pop().unwrap();
    let half = [&last.1[..], &[0xF7, b'm', b'd', 0xB1, 1, 2, 3]].concat();
    std::fs::write(&last.0, &half).unwrap();
    let output = run(&["db", "inspect", db]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("never acknowledged as durable"),
        "{}",
        stdout(&output)
    );
    assert_eq!(code(&["db", "verify", db]), 0);
    assert_eq!(std::fs::read(&last.0).unwrap(), half, "looking repairs nothing");
    // A changed byte in the middle of the log is damage.
    std::fs::write(&last.0, &last.1).unwrap();
    let (file, mut rotten) = segments(&path).swap_remove(2);
    let at = rotten.len() / 2;
    rotten[at] ^= 0x10;
    std::fs::write(&file, &rotten).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let output = run(&["db", "verify", db]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stdout(&output).contains(name) && stdout(&output).contains("salvage"),
        "{}",
        stdout(&output)
    );
    let found = json(&["db", "verify", db]);
    assert_eq!(found["sound"], false);
    let id = name.trim_end_matches(".seg").trim_start_matches('0');
    let output = run(&["db", "inspect", db, "--segment", id]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stdout(&output).contains("DAMAGED"), "{}", stdout(&output));
    // A database cannot be opened if the header of a durable segment is damaged. The error names
    // the remedy.
    rotten[0] ^= 1;
    std::fs::write(&file, &rotten).unwrap();
    let output = run(&["db", "inspect", db]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stdout(&output).contains("DOES NOT OPEN"), "{}", stdout(&output));
    let output = run(&["db", "get", db, "events", "event-1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("imt db verify") && stderr(&output).contains("salvage"),
        "{}",
        stderr(&output)
    );
    let saved = path.with_file_name("saved");
    let saved = saved.to_str().unwrap();
    assert_eq!(code(&["db", "salvage", db, saved]), 3);
    assert_eq!(code(&["db", "verify", saved]), 0);
    // The segments of a database without SUPER still state its id.
    let id = json(&["db", "inspect", saved])["stats"]["database"].to_string();
    std::fs::remove_file(Path::new(saved).join("SUPER")).unwrap();
    let output = run(&["db", "inspect", saved]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let shown = format!("id             {}\n", id.trim_matches('"'));
    assert!(stdout(&output).contains(&shown), "{id}: {}", stdout(&output));
}

#[test]
fn inspect_reports_damage_in_its_output_and_its_exit_code() {
    let (_kept, path) = shop();
    options().open(&path).unwrap().checkpoint().unwrap();
    let db = path.to_str().unwrap();
    assert_eq!(code(&["db", "inspect", db]), 0);
    let checkpoint = std::fs::read_dir(path.join("directory")).unwrap().next();
    let checkpoint = checkpoint.unwrap().unwrap().path();
    // The sixth segment has live records: events of the second round, which no later put replaced.
    let segment = segments(&path).swap_remove(5).0;
    // A database opens although a copy of its state in the file SUPER, its checkpoint or a live
    // record is damaged.
    for (file, at, told) in [
        (path.join("SUPER"), 30, "copy 1 of the state"),
        (checkpoint, 20, "the log is read instead"),
        (segment, 4000, "give an error when they are read"),
    ] {
        let whole = std::fs::read(&file).unwrap();
        let mut rotten = whole.clone();
        // Two bytes are changed, so that at least one of them is outside the header of a frame. A
        // read of a record does not use that header and would not find damage in it.
        rotten[at] ^= 1;
        rotten[at + 60] ^= 1;
        std::fs::write(&file, rotten).unwrap();
        let output = run(&["db", "inspect", db]);
        assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
        assert!(stdout(&output).contains(told), "{}", stdout(&output));
        let damage = &json(&["db", "inspect", db])["damage"];
        assert_eq!(damage.as_array().unwrap().len(), 1, "{damage}");
        assert_eq!(code(&["db", "verify", db]), 3, "{told}");
        // The exit code of `space` is 3 only if a live record cannot be read. Damage of SUPER or of
        // the checkpoint leaves it 0.
        let expected = if told.ends_with("when they are read") {
            3
        } else {
            0
        };
        assert_eq!(code(&["db", "space", db]), expected, "{told}");
        std::fs::write(&file, whole).unwrap();
        assert_eq!(code(&["db", "inspect", db]), 0);
    }
}

#[test]
fn stats_and_bench_leave_no_files() {
    let (kept, path) = shop();
    let db = path.to_str().unwrap();
    assert!(json(&["db", "stats", db])["stats"]["log_bytes"].as_u64().unwrap() > 0);
    let plan = json(&["db", "compact", db, "--dry-run"]);
    assert!(plan["bytes_to_free_at_most"].as_u64().unwrap() > 10_000, "{plan}");
    assert_eq!(code(&["db", "compact", db]), 0);
    assert!(json(&["db", "stats", db])["stats"]["log_bytes"].as_u64() < plan["log_bytes"].as_u64());
    let before = std::fs::read_dir(kept.path()).unwrap().count();
    let rates = json(&["db", "bench", kept.path().to_str().unwrap()]);
    assert!(
        rates["durable_puts_per_second"].as_f64().unwrap() > 0.0,
        "{rates}"
    );
    assert_eq!(std::fs::read_dir(kept.path()).unwrap().count(), before);
}

#[test]
fn damage_is_healed_from_a_backup() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    let backup = path.with_file_name("backup");
    let backup = backup.to_str().unwrap();
    assert_eq!(code(&["db", "backup", db, backup]), 0);
    let (file, mut rotten) = segments(&path).swap_remove(2);
    let at = rotten.len() / 2;
    rotten[at] ^= 0x10;
    // The backup may share this file by a hard link. A new file keeps the damage out of the backup.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &rotten).unwrap();
    assert_eq!(code(&["db", "verify", db]), 3);
    let report = json(&["db", "heal", db, "--from", backup]);
    assert_eq!(report["chunks_healed"], 1, "{report}");
    assert_eq!(code(&["db", "verify", db]), 0);
    let again = run(&["db", "heal", db, "--from", backup]);
    assert_eq!(again.status.code(), Some(0));
    assert!(stdout(&again).contains("none is damaged"), "{}", stdout(&again));
}

#[test]
fn more_changes_than_the_log_has_are_the_oldest_that_are_left() {
    let kept = tempdir().unwrap();
    let path = kept.path().join("shop");
    let db = options().open(&path).unwrap();
    let events = db.table("events").unwrap();
    for number in 0..100 {
        events.put("newest", format!("{number:01000}")).unwrap();
    }
    db.compact().unwrap();
    events.put("newest", "after the compaction").unwrap();
    db.close().unwrap();
    let path = path.to_str().unwrap();
    let removed = run(&["db", "tail", path, "--since", "0"]);
    assert_eq!(removed.status.code(), Some(1), "{}", stdout(&removed));
    let left = run(&["db", "tail", path, "--last", "1000000"]);
    assert_eq!(left.status.code(), Some(0), "{}", stderr(&left));
    assert!(
        stdout(&left).contains("after the compaction"),
        "{}",
        stdout(&left)
    );
}
