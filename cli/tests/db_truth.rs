//! Messages of `imt db` about the data on disk must be true. The tests compare such messages with
//! the database on disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{imt, run, stderr, stdout};
use microdb::{Db, Options};
use tempfile::{TempDir, tempdir};

/// Creates a database with two tables of three records each.
fn shop() -> (TempDir, PathBuf) {
    let kept = tempdir().unwrap();
    let path = kept.path().join("shop");
    let db = Options::new().background(false).open(&path).unwrap();
    for table in ["events", "others"] {
        for number in 0..3 {
            db.table(table)
                .unwrap()
                .put(format!("old-{number}"), "old")
                .unwrap();
        }
    }
    db.close().unwrap();
    (kept, path)
}

/// Returns the records of all tables, as text.
fn content(path: &Path) -> BTreeMap<String, BTreeMap<String, String>> {
    let db = Options::new().read_only(true).open(path).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let records = |name: &str| {
        let table = db.get_table(name).unwrap();
        table
            .iter()
            .map(|record| record.map(|(key, value)| (text(&key), text(&value))).unwrap())
            .collect()
    };
    let tables = db.tables().into_iter();
    tables
        .map(|table| (table.name.clone(), records(&table.name)))
        .collect()
}

fn line(table: &str, key: &str) -> String {
    format!("{{\"table\":\"{table}\",\"key\":\"{key}\",\"value\":\"new\"}}\n")
}

fn end(records: u64) -> String {
    format!("{{\"end\":{{\"records\":{records}}}}}\n")
}

/// Runs `imt db import` with `lines`, from a file or through a pipe.
fn import(path: &Path, lines: &str, piped: bool, options: &[&str]) -> Output {
    let db = path.to_str().unwrap();
    if !piped {
        let file = path.with_extension("jsonl");
        std::fs::write(&file, lines).unwrap();
        return run(&[&["db", "import", db, "--from", file.to_str().unwrap()], options].concat());
    }
    let mut child = imt(&[&["db", "import", db], options].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The write may fail, because a failed import does not read the rest of the pipe.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

/// Asserts that a command failed and that its error contains these parts.
fn fails(output: &Output, parts: &[&str]) {
    let told = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in parts {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
}

#[test]
fn an_import_that_fails_changes_no_table_and_says_so() {
    let (_kept, path) = shop();
    let before = content(&path);
    let long = "k".repeat(70_000);
    let bad = [
        ("nonsense\n".to_owned(), "line 11: not a JSON object"),
        (
            line("events", &long),
            "line 11: key of 70000 bytes is over the limit",
        ),
        (line(&"t".repeat(300), "k"), "line 11: table name of 300 bytes"),
        (
            end(12),
            "line 11: the export that ends here had 12 records, 10 were read",
        ),
    ];
    let first: String = (0..10)
        .map(|number| line("events", &format!("new-{number}")))
        .collect();
    for (bad, reason) in bad {
        let lines = format!("{first}{bad}{}", end(11));
        fails(
            &import(&path, &lines, false, &[]),
            &[reason, "nothing was changed"],
        );
        fails(
            &import(&path, &lines, false, &["--clear"]),
            &[reason, "nothing was changed"],
        );
        fails(
            &import(&path, &lines, true, &["--clear"]),
            &[reason, "no table was changed"],
        );
        fails(&import(&path, &lines, true, &[]), &[reason, "no record was put"]);
        assert_eq!(content(&path), before, "{reason}");
    }
    let cut = import(&path, &first, true, &["--clear"]);
    fails(&cut, &["cut short", "no table was changed"]);
    assert_eq!(content(&path), before);
}

#[test]
fn an_import_through_a_pipe_counts_the_records_that_are_in_the_database() {
    let (_kept, path) = shop();
    // A batch has 1 MiB, so some batches are committed before the import meets the invalid line.
    let value = "v".repeat(100_000);
    let lines: String = (0..25)
        .map(|number| format!("{{\"table\":\"large\",\"key\":\"{number:02}\",\"value\":\"{value}\"}}\n"))
        .collect();
    let output = import(&path, &format!("{lines}nonsense\n"), true, &[]);
    let put = content(&path)["large"].len();
    assert!((1..25).contains(&put), "{put}");
    let told = format!("the first {put} records were put and are durable");
    fails(&output, &["line 26: not a JSON object", &told]);
}

#[test]
fn an_import_with_clear_replaces_the_named_tables_and_no_others() {
    let (_kept, path) = shop();
    let others = content(&path)["others"].clone();
    // A killed import with `--clear` may leave a table with this name. The imports below must drop
    // the table.
    let db = Db::open(&path).unwrap();
    db.table("~imt-import-0").unwrap().put("left", "over").unwrap();
    db.close().unwrap();
    for piped in [false, true] {
        let lines = format!(
            "{}{}{{\"table\":\"fresh\"}}\n{}",
            line("events", "a"),
            line("events", "b"),
            end(2)
        );
        let output = import(&path, &lines, piped, &["--clear"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let content = content(&path);
        let names: Vec<_> = content.keys().map(String::as_str).collect();
        assert_eq!(names, ["events", "fresh", "others"]);
        let keys: Vec<_> = content["events"].keys().map(String::as_str).collect();
        assert_eq!(keys, ["a", "b"]);
        assert_eq!(content["others"], others);
    }
    let db = path.to_str().unwrap();
    assert_eq!(run(&["db", "verify", db]).status.code(), Some(0));
}

#[test]
fn exports_that_follow_on_one_another_are_imported() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    let events = stdout(&run(&["db", "export", db, "events"]));
    let others = stdout(&run(&["db", "export", db, "others"]));
    let copy = path.with_file_name("copy");
    let output = import(&copy, &format!("{events}{others}"), false, &["--create"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(content(&copy), content(&path));
}

#[test]
fn a_copy_into_its_own_source_is_refused_and_copies_nothing() {
    let (kept, path) = shop();
    let link = kept.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let source = text(&path);
    let count = || run_find(kept.path());
    let before = count();
    for target in [path.join("here"), path.join("a/../b"), link.join("here")] {
        let target = text(&target);
        for command in ["restore", "backup"] {
            let output = run(&["db", command, &source, &target]);
            fails(&output, &["lies within", "Nothing was copied"]);
        }
        fails(
            &run(&["db", "salvage", &source, &target]),
            &["cannot salvage", "nothing was changed"],
        );
        assert_eq!(count(), before, "{target}");
    }
    let output = run(&["db", "heal", &source, "--from", &text(&link)]);
    fails(&output, &["nothing was changed"]);
}

/// Returns the number of files and folders at all levels below a folder, including the folder
/// itself.
fn run_find(folder: &Path) -> usize {
    let output = Command::new("find").arg(folder).output().unwrap();
    output.stdout.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn a_damaged_checkpoint_is_distinguished_from_damaged_records() {
    let (_kept, path) = shop();
    let open = Options::new().background(false).open(&path).unwrap();
    open.checkpoint().unwrap();
    open.close().unwrap();
    let db = path.to_str().unwrap();
    let checkpoint = std::fs::read_dir(path.join("directory"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let whole = std::fs::read(&checkpoint).unwrap();
    let mut rotten = whole.clone();
    rotten[20] ^= 1;
    std::fs::write(&checkpoint, &rotten).unwrap();
    let output = run(&["db", "verify", db]);
    assert_eq!(output.status.code(), Some(3));
    let told = stdout(&output);
    assert!(
        told.contains("all of it in the checkpoint") && told.contains("No record is damaged"),
        "{told}"
    );
    assert!(!told.contains("dmesg") && !told.contains("salvage"), "{told}");
    // A user who follows the advice deletes the checkpoint. A missing checkpoint is no damage, even
    // if the folder has the file of another checkpoint, which SUPER does not name.
    std::fs::remove_file(&checkpoint).unwrap();
    let other = path.join("directory/0000000099.idx");
    for has_other in [false, true] {
        if has_other {
            std::fs::write(&other, &whole).unwrap();
        }
        for command in ["verify", "inspect"] {
            let output = run(&["db", command, db]);
            assert_eq!(output.status.code(), Some(0), "{command}: {}", stdout(&output));
        }
    }
    std::fs::remove_file(&other).unwrap();
    assert!(stdout(&run(&["db", "verify", db])).contains("the checkpoint was deleted, which is no damage"));
    std::fs::write(&checkpoint, &whole).unwrap();
    assert!(stdout(&run(&["db", "verify", db])).contains("sound"));
}

#[test]
fn put_refuses_a_row_that_the_node_could_not_read() {
    let kept = tempdir().unwrap();
    let path = kept.path().join("volume");
    let db = Options::new().background(false).open(&path).unwrap();
    for table in ["orders", "arrivals", "meta"] {
        db.table(table).unwrap();
    }
    db.close().unwrap();
    let text = path.to_str().unwrap();
    for (table, key) in [
        ("orders", "99"),
        ("stock", "abc"),
        ("arrivals", "1"),
        ("other", "k"),
    ] {
        fails(
            &run(&["db", "put", text, table, key, "hello"]),
            &["the node could not read it", "Nothing was written"],
        );
    }
    assert!(content(&path).values().all(BTreeMap::is_empty));
    assert_eq!(
        run(&["db", "put", text, "orders", "99", "hello", "--raw"])
            .status
            .code(),
        Some(0)
    );
    assert_eq!(content(&path)["orders"]["99"], "hello");
    // A table `orders` in a database that is not a node's may have any values.
    let (_kept, path) = shop();
    let text = path.to_str().unwrap();
    assert_eq!(
        run(&["db", "put", text, "orders", "99", "hello"]).status.code(),
        Some(0)
    );
}

#[test]
fn tail_refuses_an_interval_that_would_be_a_busy_loop() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    for interval in ["0s", "49ms"] {
        let output = run(&["db", "tail", db, "--follow", "--interval", interval]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("at least 50ms"), "{}", stderr(&output));
    }
}

#[test]
fn figures_are_those_of_the_database_and_ids_read_the_same_everywhere() {
    let (_kept, path) = shop();
    let db = path.to_str().unwrap();
    let stats = stdout(&run(&["db", "stats", db]));
    assert!(
        stats.contains("live_bytes") && !stats.contains("durable_commit_ns"),
        "{stats}"
    );
    let inspected = stdout(&run(&["db", "inspect", db]));
    assert!(inspected.contains("keys       6 in 2 tables"), "{inspected}");
    let id = Db::open(&path).unwrap().id().to_string();
    let segment = stdout(&run(&["db", "inspect", db, "--segment", "1"]));
    let row = segment.lines().find(|line| line.contains(" database ")).unwrap();
    assert_eq!(row.matches(&id).count(), 2, "{row}");
}

#[test]
#[ignore = "needs root"]
fn a_database_on_a_read_only_mount_is_backed_up() {
    let (kept, path) = shop();
    let mounted = kept.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    let mount = |args: &[&str]| {
        let output = Command::new(args[0]).args(&args[1..]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    };
    let (source, target) = (path.to_str().unwrap(), mounted.to_str().unwrap());
    mount(&["mount", "--bind", source, target]);
    mount(&["mount", "-o", "remount,bind,ro", target]);
    let copy = kept.path().join("copy");
    let output = run(&["db", "backup", target, copy.to_str().unwrap()]);
    // The new folder is inside the source, although the path of the source leads through another
    // mount. So the restore must be refused.
    let within = run(&["db", "restore", target, path.join("here").to_str().unwrap()]);
    mount(&["umount", target]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("cannot be written"),
        "{}",
        stdout(&output)
    );
    fails(&within, &["lies within"]);
    assert_eq!(content(&copy), content(&path));
    assert_eq!(
        run(&["db", "verify", copy.to_str().unwrap()]).status.code(),
        Some(0)
    );
}
