//! Tests of identity: a handle writes only to the database that it opened, and only one process
//! writes to a database.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::other::{self, Other, say};
use crate::support::workload::chain;
use microdb::fuzzing::{fork, wait};
use microdb::{Db, Durability, Error, Options, Sequence};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

/// Maximum time to wait for an event, longer than any awaited event takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .background(false)
}

fn put(db: &Db, numbers: std::ops::Range<u32>) -> microdb::Result<()> {
    let table = db.table("t")?;
    for number in numbers {
        table.put(number.to_le_bytes(), vec![number as u8; 900])?;
    }
    Ok(())
}

fn check(path: &Path, numbers: std::ops::Range<u32>) {
    let db = options().create(false).open(path).unwrap();
    let table = db.get_table("t").unwrap();
    for number in numbers {
        let value = table.get(number.to_le_bytes()).unwrap();
        assert_eq!(
            value.as_deref(),
            Some(&[number as u8; 900][..]),
            "record {number}"
        );
    }
    assert!(db.verify().unwrap().is_sound());
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// Polls `done` until it returns `true`. Returns `false` if it has not done so within the maximum
/// time.
fn until(mut done: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Entry point of the second process that a test starts. Tests that fork run here, because a child
/// of a process with many threads could inherit locked mutexes. A test that changes the working
/// folder runs here too, because all threads of a process share this folder.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((part, folder)) = other::part() else {
        return;
    };
    match part.as_str() {
        "inherit" => inherit(&folder),
        "background" => background(&folder),
        "working folder" => working_folder(&folder),
        other => panic!("no part is called {other}"),
    }
    say("done");
}

fn play(part: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Other::start(ENTRY, part, folder.path());
    assert_eq!(other.said().as_deref(), Some("done"), "{part}");
    other.ended_well();
}

#[test]
fn successor_under_the_old_name_is_left_alone_by_a_renamed_database() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("db"), folder.path().join("moved"));
    let first = options().open(&path).unwrap();
    put(&first, 0..3).unwrap();
    std::fs::rename(&path, &moved).unwrap();
    let second = options().open(&path).unwrap();
    put(&second, 100..120).unwrap();
    put(&first, 3..40).unwrap();
    first.checkpoint().unwrap();
    first.compact().unwrap();
    put(&second, 120..140).unwrap();
    first.close().unwrap();
    second.close().unwrap();
    check(&moved, 0..40);
    check(&path, 100..140);
}

#[test]
fn relative_path_means_the_folder_that_was_opened_after_a_chdir() {
    play("working folder");
}

fn working_folder(folder: &Path) {
    let (one, two) = (folder.join("one"), folder.join("two"));
    for folder in [&one, &two] {
        std::fs::create_dir(folder).unwrap();
    }
    std::env::set_current_dir(&two).unwrap();
    let other = options().open("data").unwrap();
    put(&other, 100..104).unwrap();
    other.close().unwrap();
    let before = files(&two.join("data/log"));
    std::env::set_current_dir(&one).unwrap();
    let db = options().open("data").unwrap();
    put(&db, 0..3).unwrap();
    std::env::set_current_dir(&two).unwrap();
    put(&db, 3..40).unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    assert_eq!(files(&two.join("data/log")), before);
    check(&one.join("data"), 0..40);
    check(&two.join("data"), 100..104);
}

#[test]
fn name_of_the_next_segment_that_is_taken_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let db = options().open(&other).unwrap();
    put(&db, 0..20).unwrap();
    db.close().unwrap();
    let foreign = std::fs::read(other.join("log/0000000003.seg")).unwrap();
    // Without `with_state`, the database is left as after a kill of its process. Then the states in
    // SUPER name none of the segments that were begun beside the foreign files, but a hint has its
    // frontier in the last of these segments. With `with_state`, the database has a checkpoint and
    // is closed.
    for with_state in [false, true] {
        let path = folder.path().join(format!("db {with_state}"));
        let db = options().open(&path).unwrap();
        put(&db, 0..1).unwrap();
        let taken = [
            (2, foreign.as_slice()),
            (3, b"a stranger's notes"),
            (5, &[7; 5000][..]),
            (6, b""),
        ];
        let name = |id: u32| path.join(format!("log/{id:010}.seg"));
        for (id, bytes) in taken {
            std::fs::write(name(id), bytes).unwrap();
        }
        put(&db, 1..40).unwrap();
        if with_state {
            db.checkpoint().unwrap();
            db.close().unwrap();
        } else {
            // The copy looks like a database after `kill -9`: in its SUPER, only the hints are up
            // to date.
            let copy = folder.path().join("copy");
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .args([&path, &copy])
                .status();
            assert!(copied.unwrap().success());
            drop(db);
            std::fs::remove_dir_all(&path).unwrap();
            std::fs::rename(&copy, &path).unwrap();
        }
        check(&path, 0..40);
        check(&path, 0..40);
        for (id, bytes) in taken {
            // An empty file contains nothing of another program, so the engine may replace it.
            if id != 6 {
                assert!(
                    std::fs::read(name(id)).unwrap() == bytes,
                    "segment {id}, {with_state}"
                );
            }
        }
    }
}

#[test]
fn checkpoint_and_seal_of_another_database_are_neither_removed_nor_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("db"), folder.path().join("other"));
    for (path, count) in [(&path, 1), (&other, 12)] {
        let db = options().open(path).unwrap();
        put(&db, 0..count).unwrap();
        db.close().unwrap();
    }
    let stranger = |kind: &str| {
        let folder = other.join(kind);
        let mut entries: Vec<_> = files(&folder).into_iter().collect();
        entries.retain(|(path, _)| path.extension().is_some_and(|end| end == "idx" || end == "seal"));
        entries.pop()
    };
    let db = options().open(&other).unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    let (_, checkpoint) = stranger("directory").unwrap();
    let (_, seal) = stranger("log").unwrap();
    let places = [
        ("directory/0000000001.idx", &checkpoint),
        ("directory/0000000002.idx", &checkpoint),
        ("log/0000000002.seal", &seal),
    ];
    let db = options().open(&path).unwrap();
    put(&db, 1..20).unwrap();
    for (name, bytes) in places {
        std::fs::write(path.join(name), bytes).unwrap();
    }
    db.checkpoint().unwrap();
    put(&db, 20..30).unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    check(&path, 0..30);
    for (name, bytes) in places {
        assert!(std::fs::read(path.join(name)).unwrap() == *bytes, "{name}");
    }
}

#[test]
fn second_writer_is_refused_after_the_lock_was_removed_and_the_first_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let db = options().open(&path).unwrap();
    put(&db, 0..3).unwrap();
    std::fs::remove_file(path.join("LOCK")).unwrap();
    assert!(matches!(options().open(&path), Err(Error::Locked { .. })));
    let error = put(&db, 3..4).unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{}", chain(&error));
    assert!(chain(&error).contains("LOCK was removed"), "{}", chain(&error));
    assert!(db.checkpoint().is_err() && db.sync().is_err() && db.close().is_err());
    check(&path, 0..3);
}

#[test]
fn buffered_commits_notice_a_removed_lock_at_the_next_segment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let db = options().durability(Durability::Buffered).open(&path).unwrap();
    put(&db, 0..1).unwrap();
    std::fs::remove_file(path.join("LOCK")).unwrap();
    let error = put(&db, 1..20).unwrap_err();
    assert!(chain(&error).contains("LOCK was removed"), "{}", chain(&error));
}

#[test]
fn second_writer_is_refused_by_super_where_the_files_were_moved_to_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("db"), folder.path().join("moved"));
    let created = options().open(&path).unwrap();
    put(&created, 0..3).unwrap();
    created.close().unwrap();
    for opened_anew in [true, false] {
        let db = if opened_anew {
            options().open(&path).unwrap()
        } else {
            std::fs::remove_dir_all(&path).unwrap();
            options().open(&path).unwrap()
        };
        std::fs::create_dir(&moved).unwrap();
        for name in ["SUPER", "log", "directory"] {
            std::fs::rename(path.join(name), moved.join(name)).unwrap();
        }
        match options().open(&moved) {
            Err(Error::Locked { path, .. }) => assert!(path.ends_with("SUPER"), "{}", path.display()),
            other => panic!("{other:?}"),
        }
        let error = db.checkpoint().unwrap_err();
        assert!(chain(&error).contains("SUPER was removed"), "{}", chain(&error));
        drop(db);
        std::fs::remove_dir_all(&moved).unwrap();
    }
}

#[test]
fn lock_file_with_a_strangers_contents_is_kept_and_still_locks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("LOCK"), "do not touch\n").unwrap();
    let db = options().open(&path).unwrap();
    put(&db, 0..9).unwrap();
    assert!(matches!(
        options().open(&path),
        Err(Error::Locked { holder: None, .. })
    ));
    db.close().unwrap();
    assert_eq!(
        std::fs::read_to_string(path.join("LOCK")).unwrap(),
        "do not touch\n"
    );
    check(&path, 0..9);
}

#[test]
fn empty_path_is_refused_and_leaves_nothing() {
    let before = files(Path::new("."));
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path().join("db")).unwrap();
    let refused = [
        Db::open("").map(drop),
        options().read_only(true).open("").map(drop),
        db.backup_to("").map(drop),
        microdb::salvage(folder.path().join("db"), "").map(drop),
        microdb::heal("", folder.path().join("db")).map(drop),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        match result {
            Err(Error::Invalid { what: "path", reason }) => assert!(reason.contains("empty"), "{reason}"),
            other => panic!("case {number}: {other:?}"),
        }
    }
    assert_eq!(files(Path::new(".")), before);
    for name in ["log", "directory"] {
        assert!(!Path::new(name).exists(), "{name}");
    }
}

#[test]
fn handle_inherited_by_a_forked_child_is_refused_and_changes_nothing() {
    play("inherit");
}

fn inherit(folder: &Path) {
    let path = folder.join("db");
    let db = options().durability(Durability::Buffered).open(&path).unwrap();
    put(&db, 0..3).unwrap();
    let before = files(&path.join("log"));
    let table = db.get_table("t").unwrap();
    let held = (db.snapshot(), table.iter(), db.changes_since(Sequence::ZERO));
    let mut last = Some((db, table, held));
    let refused = |done: microdb::Result<()>| matches!(done, Err(Error::Forked));
    let child = fork(|| {
        // These are the only handles in the child. Dropping them must not close the database of
        // the parent.
        let (db, table, (snapshot, mut records, changes)) = last.take().unwrap();
        let mut changes = changes.unwrap();
        let typed: microdb::TypedTable<u32, u32> = microdb::TypedTable::new(table.clone());
        let reads_of = |snapshot: &microdb::Snapshot| {
            [
                snapshot.get(&table, "k").map(drop),
                snapshot.contains_key(&table, "k").map(drop),
                snapshot.iter(&table).map(drop),
                snapshot.len(&table).map(drop),
            ]
        };
        let reads = [reads_of(&snapshot), reads_of(&db.snapshot())]
            .into_iter()
            .flatten();
        let mut begun = db.begin();
        let once = |mut items: [Option<microdb::Result<()>>; 2]| {
            items[1].is_none() && items[0].take().is_some_and(refused)
        };
        let is_refused_once = once([(); 2].map(|()| records.next().map(|item| item.map(drop))))
            && once([(); 2].map(|()| changes.next().map(|item| item.map(drop))))
            && table.iter().map(|item| refused(item.map(drop))).eq([true])
            && typed.keys().map(|item| refused(item.map(drop))).eq([true]);
        let stats = db.stats();
        let has_no_content = db.tables().is_empty()
            && db.get_table("t").is_none()
            && db.sequence() == Sequence::ZERO
            && stats.keys == 0
            && stats.sequence == Sequence::ZERO
            && stats.segments.is_empty();
        let calls = [
            changes.extend(),
            begun.get(&table, "k").map(drop),
            begun.put(&table, "k", "v"),
            begun.delete(&table, "k"),
            begun.commit().map(drop),
            db.begin().commit().map(drop),
            db.transaction(|_| Ok(())),
            db.batch().commit().map(drop),
            db.table("t").map(drop),
            db.typed_table::<u32, u32>("t").map(drop),
            typed.get(&1).map(drop),
            typed.update(&1, |value| value).map(drop),
            table.compare_and_swap("k", None::<&str>, Some("v")).map(drop),
            table.clear(),
            table.iter().for_each_record(|_, _| Ok(())),
            db.wait_idle(),
            microdb::diff(&db, &db, |_| std::ops::ControlFlow::Continue(())).map(drop),
            table.put("k", "v"),
            table.get("k").map(drop),
            table.delete("k").map(drop),
            table.multi_get(&["k"]).map(drop),
            db.table("new").map(drop),
            db.drop_table("t"),
            db.sync(),
            db.checkpoint(),
            db.compact().map(drop),
            db.verify().map(drop),
            db.digest().map(drop),
            db.changes_since(Sequence::ZERO).map(drop),
            db.backup_to(folder.join("copy")).map(drop),
            db.transaction(|tx| tx.get(&table, "k").map(drop)),
            db.clone().close(),
        ];
        drop((snapshot, records, changes, typed, table, db));
        is_refused_once
            && has_no_content
            && calls.into_iter().chain(reads).all(refused)
            && matches!(options().open(&path), Err(Error::Locked { .. }))
    });
    assert!(wait(child));
    assert!(
        matches!(options().open(&path), Err(Error::Locked { .. })),
        "unlocked by the child"
    );
    assert!(files(&path.join("log")) == before && !folder.join("copy").exists());
    let (db, table, held) = last.take().unwrap();
    drop((table, held));
    put(&db, 3..20).unwrap();
    // The child inherits the open lock file. After the parent has closed the database, this file
    // must not keep the database locked.
    let child = fork(|| until(|| matches!(options().open(&path), Ok(db) if put(&db, 20..30).is_ok())));
    db.close().unwrap();
    assert!(wait(child));
    check(&path, 0..30);
}

#[test]
fn database_opened_by_a_forked_child_has_its_background_work() {
    play("background");
}

fn background(folder: &Path) {
    let works = |name: &str| {
        let options = Options::new()
            .durability(Durability::Buffered)
            .checkpoint_log_bytes(20_000);
        let db = options
            .buffer_bytes(1000)
            .segment_bytes_first(4096)
            .segment_bytes_max(4096);
        let db = db.open(folder.join(name)).unwrap();
        let mut number = 0;
        until(|| {
            put(&db, number..number + 20).unwrap();
            number = (number + 20) % 100;
            let stats = db.stats();
            stats.checkpoints > 2 && stats.segments_removed > 2
        })
    };
    assert!(works("parent"));
    let child = fork(|| {
        let grandchild = fork(|| works("grandchild"));
        works("child") && wait(grandchild)
    });
    assert!(works("parent, beside its child"));
    assert!(wait(child));
}
