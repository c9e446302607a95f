//! Compatibility: a database that an earlier build wrote is read as it was meant.
//!
//! `data/golden/microdb-1` was written by `make_golden`, which is run by hand when the format gets a new version (and then makes the next folder: old ones stay).
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::{Path, PathBuf};

use microdb::{Durability, Options};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/golden/microdb-1")
}

/// Key and value number `number`; every seventh is deleted.
fn record(number: u32) -> ([u8; 4], Vec<u8>) {
    (
        number.to_be_bytes(),
        (0..number).map(|byte| (byte * 7 + number) as u8).collect(),
    )
}

#[test]
#[ignore = "writes the golden database"]
fn make_golden() {
    let options = Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(8192)
        .background(false);
    let db = options.durability(Durability::Buffered).open(golden()).unwrap();
    let (plain, typed) = (
        db.table("plain").unwrap(),
        db.typed_table::<(u32, String), Option<i64>>("typed").unwrap(),
    );
    for number in 0..150 {
        let (key, value) = record(number);
        plain.put(key, value).unwrap();
        if number == 100 {
            db.compact().unwrap();
        }
    }
    for number in (0..150).step_by(7) {
        plain.delete(record(number).0).unwrap();
    }
    typed.put(&(17, "order".to_owned()), &Some(-5)).unwrap();
    db.close().unwrap();
    std::fs::remove_file(golden().join("LOCK")).unwrap();
}

#[test]
fn a_database_of_version_1_reads_as_it_was_written() {
    let db = Options::new().read_only(true).open(golden()).unwrap();
    assert!(
        db.recovery().clean && db.recovery().checkpoint > 0,
        "{:?}",
        db.recovery()
    );
    let names: Vec<_> = db.tables().into_iter().map(|table| table.name).collect();
    assert_eq!(names, ["plain", "typed"]);
    let plain = db.table("plain").unwrap();
    for number in 0..150 {
        let (key, value) = record(number);
        let expected = (number % 7 != 0).then_some(value);
        assert_eq!(plain.get(key).unwrap().as_deref(), expected.as_deref());
    }
    let typed = db.typed_table::<(u32, String), Option<i64>>("typed").unwrap();
    assert_eq!(typed.get(&(17, "order".to_owned())).unwrap(), Some(Some(-5)));
    let report = db.verify().unwrap();
    assert!(report.is_sound() && report.records > 150, "{report:?}");
}
