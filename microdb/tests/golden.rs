//! Tests of compatibility: databases written by earlier builds are read correctly.
//!
//! `data/golden/microdb-1` was written before segments had seals. `data/golden/microdb-1-sealed`
//! was written by `make_golden`. After an addition to the format, add the name of a new folder to
//! `GOLDEN` and run `make_golden` by hand. It writes the last folder of `GOLDEN`.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::path::{Path, PathBuf};

use microdb::{Durability, Options};

/// Names of the golden folders, the newest last. Each addition to the format has a folder.
const GOLDEN: [&str; 2] = ["microdb-1", "microdb-1-sealed"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../data/golden")
        .join(name)
}

/// Returns key and value of record number `number`. Every seventh record is deleted in the golden
/// databases.
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
    let path = golden(GOLDEN[GOLDEN.len() - 1]);
    let db = options.durability(Durability::Buffered).open(&path).unwrap();
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
    db.checkpoint().unwrap();
    drop((plain, typed));
    db.close().unwrap();
    std::fs::remove_file(path.join("LOCK")).unwrap();
}

#[test]
fn databases_of_version_1_read_as_they_were_written() {
    for name in GOLDEN {
        reads_as_it_was_written(name);
    }
}

fn reads_as_it_was_written(name: &str) {
    let db = Options::new().read_only(true).open(golden(name)).unwrap();
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
    assert_eq!(
        (report.sealed_segments > 0, report.unsealed_segments > 0),
        (name != GOLDEN[0], name == GOLDEN[0])
    );
}

#[test]
fn seals_match_the_described_format() {
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut seals = 0;
    for entry in std::fs::read_dir(golden(GOLDEN[1]).join("log")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "seal") {
            seals += 1;
            let (seal, segment) = (
                std::fs::read(&path).unwrap(),
                std::fs::read(path.with_extension("seg")).unwrap(),
            );
            assert_eq!(
                (&seal[..8], number(&seal, 8), number(&seal, 12)),
                (&b"mdb-seal"[..], 1, 65_536)
            );
            assert_eq!(
                (&seal[16..32], &seal[32..40]),
                (&segment[16..32], &segment[32..40]),
                "database and segment"
            );
            assert_eq!(
                (number(&seal, 40), number(&seal, 44)),
                (segment.len(), segment.len().div_ceil(65_536))
            );
            let mut root = blake3::Hasher::new();
            root.update(&seal[..48]).update(&seal[80..]);
            assert_eq!(root.finalize().as_bytes()[..], seal[48..80]);
            for (chunk, hash) in segment.chunks(65_536).zip(seal[80..].chunks(32)) {
                assert_eq!(blake3::hash(chunk).as_bytes()[..], *hash);
            }
            assert_eq!(seal.len(), 80 + 32 * segment.len().div_ceil(65_536));
        }
    }
    assert!(seals > 0);
}
