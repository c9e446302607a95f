//! Tests that a database with foreign files, pipes or folders in its folders stays usable: no
//! record changes, and the ids of later segments do not jump to the id in a foreign name.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::Path;

use microdb::{Db, Options};

fn fill(db: &Db, number: u8) {
    let table = db.table("t").unwrap();
    for key in 0..100_u32 {
        table.put(key.to_be_bytes(), [number; 100]).unwrap();
    }
}

fn check(db: &Db, number: u8) {
    let table = db.table("t").unwrap();
    for key in 0..100_u32 {
        let value = table.get(key.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value[..], [number; 100]);
    }
}

fn open(path: &Path) -> Db {
    let options = Options::new().segment_bytes_first(4096).segment_bytes_max(4096);
    let options = options.durability(microdb::Durability::Buffered);
    options.background(false).open(path).unwrap()
}

/// Opens, writes, compacts and checkpoints a database with the foreign file `name` in its folder.
fn go_on_beside(name: &str, content: impl Fn(&Path) -> Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let db = open(path);
    fill(&db, 1);
    db.checkpoint().unwrap();
    let last = db.stats().segments.last().unwrap().id;
    db.close().unwrap();
    let content = content(path);
    std::fs::write(path.join(name), content).unwrap();
    for number in 2..5 {
        let db = open(path);
        check(&db, number - 1);
        fill(&db, number);
        db.compact().unwrap();
        db.checkpoint().unwrap();
        check(&db, number);
        let id = db.stats().segments.last().unwrap().id;
        assert!(id < last + 1_000, "{name}: segment {id} behind segment {last}");
        db.close().unwrap();
        let names = std::fs::read_dir(path.join("directory")).unwrap();
        assert_eq!(names.count(), 1, "{name}: one checkpoint");
    }
}

#[test]
fn a_stray_segment_far_ahead_does_not_end_writing() {
    for name in [
        "log/0000070000.seg",
        "log/0000065536.seg",
        "log/9999999999.seg",
        "log/18446744073709551615.seg",
    ] {
        go_on_beside(name, |_| Vec::new());
        go_on_beside(name, |_| b"no segment at all".to_vec());
        // The foreign file is a copy of a segment of this database under a wrong name.
        go_on_beside(name, |path| {
            std::fs::read(path.join("log/0000000001.seg")).unwrap()
        });
    }
}

#[test]
fn a_stray_segment_right_ahead_does_not_end_writing() {
    let segment_count = 5;
    for id in 1..segment_count + 20 {
        let name = format!("log/{:010}.seg", id);
        if id > segment_count {
            go_on_beside(&name, |_| vec![0; 5_000]);
        }
    }
}

#[test]
fn stray_checkpoints_seals_and_temporary_files_do_not_end_writing() {
    for name in [
        "directory/0000000009.idx",
        "directory/9999999999.idx",
        "directory/18446744073709551615.idx",
        "directory/0000000003.tmp",
        "directory/18446744073709551615.tmp",
        "log/0000070000.seal",
        "log/18446744073709551615.seal",
        "log/0000000007.tmp",
        "log/notes.txt",
        "SUPER.tmp",
    ] {
        go_on_beside(name, |_| Vec::new());
        go_on_beside(name, |_| vec![0xA5; 10_000]);
    }
}

/// Opens, writes and checkpoints a database with something that is no regular file in its folder.
fn works_beside(name: &str, make: impl Fn(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path());
    fill(&db, 1);
    db.checkpoint().unwrap();
    db.close().unwrap();
    make(&folder.path().join(name));
    for number in 2..5 {
        let db = open(folder.path());
        check(&db, number - 1);
        fill(&db, number);
        db.checkpoint().unwrap();
        db.close().unwrap();
        let reader = Options::new().read_only(true).open(folder.path()).unwrap();
        check(&reader, number);
    }
    assert!(folder.path().join(name).exists(), "{name} is foreign and is kept");
}

#[test]
fn pipes_and_folders_with_names_of_a_database_stop_nothing() {
    let pipe = |path: &Path| {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    for name in ["log/0000070000.seg", "directory/0000000900.idx"] {
        works_beside(name, pipe);
        works_beside(name, |path| std::fs::create_dir(path).unwrap());
    }
}

#[test]
fn segments_behind_one_that_cannot_be_sealed_are_sealed() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(folder.path());
    let seal = |id: u64| folder.path().join(format!("log/{id:010}.seal"));
    std::fs::create_dir(seal(1)).unwrap();
    let table = db.table("t").unwrap();
    for key in 0..20_u32 {
        table.put(key.to_be_bytes(), [1; 1000]).unwrap();
    }
    db.sync().unwrap();
    db.wait_idle().unwrap();
    let stats = db.stats();
    let ids: Vec<u64> = stats.segments.iter().map(|segment| segment.id).collect();
    assert!(ids.len() > 3 && ids[0] == 1, "{ids:?}");
    for id in &ids[1..ids.len() - 1] {
        assert!(seal(*id).is_file(), "segment {id} of {ids:?}");
    }
}
