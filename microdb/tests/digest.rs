//! Compares digests and differences of databases with a full comparison, over random histories.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::support::random::Random;
use microdb::{Db, Difference, DifferenceKind, Durability, Options, diff};

type Contents = BTreeMap<(String, Vec<u8>), Vec<u8>>;
type Keys = Vec<(String, Vec<u8>, DifferenceKind)>;

fn options() -> Options {
    Options::new()
        .durability(Durability::Buffered)
        .segment_bytes_first(4096)
        .segment_bytes_max(16384)
        .background(false)
}

fn contents(db: &Db) -> Contents {
    let mut all = Contents::new();
    for info in db.tables() {
        for record in &db.table(&info.name).unwrap() {
            let (key, value) = record.unwrap();
            all.insert((info.name.clone(), key.to_vec()), value.to_vec());
        }
    }
    all
}

/// Returns all differences of two databases: as reported by `diff`, and as computed by a full
/// comparison.
fn differences(one: &Db, two: &Db) -> (Vec<Difference>, Keys) {
    let mut found = Vec::new();
    let report = diff(one, two, |difference| {
        found.push(difference.clone());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(report.differences(), found.len() as u64);
    assert!(!report.stopped);
    found.sort_by(|a, b| (&a.table, &a.key).cmp(&(&b.table, &b.key)));
    let (first, second) = (contents(one), contents(two));
    let mut expected = Vec::new();
    let keys: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    for name in keys {
        let kind = match (first.get(name), second.get(name)) {
            (Some(_), None) => DifferenceKind::OnlyInFirst,
            (None, Some(_)) => DifferenceKind::OnlyInSecond,
            (one, two) if one != two => DifferenceKind::Value,
            _ => continue,
        };
        expected.push((name.0.clone(), name.1.clone(), kind));
    }
    (found, expected)
}

fn key(random: &mut Random) -> Vec<u8> {
    format!("key {}", random.below(300)).into_bytes()
}

fn step(db: &Db, random: &mut Random) {
    let name = ["a", "b", "c"][random.index(3)];
    match random.below(100) {
        0 => _ = db.drop_table(name),
        1 => db.table(name).unwrap().clear().unwrap(),
        2 => _ = db.compact().unwrap(),
        3 => db.checkpoint().unwrap(),
        4 => _ = db.rename_table(name, "c"),
        5..=30 => _ = db.table(name).unwrap().delete(key(random)).unwrap(),
        31..=40 => {
            let mut batch = db.batch();
            let table = db.table(name).unwrap();
            for _ in 0..random.below(20) {
                let (key, len) = (key(random), random.index(3000));
                batch.put(&table, key, random.bytes(len));
            }
            batch.commit().unwrap();
        }
        _ => {
            let value = random.below(5).to_le_bytes();
            db.table(name).unwrap().put(key(random), value).unwrap();
        }
    }
}

#[test]
fn cached_digests_equal_fresh_ones_and_differ_with_the_contents() {
    for seed in 1..=5 {
        let mut random = Random::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let one = options().open(folder.path().join("one")).unwrap();
        let two = options().open(folder.path().join("two")).unwrap();
        for _ in 0..8 {
            for _ in 0..random.below(60) {
                step(if random.chance(1, 2) { &one } else { &two }, &mut random);
            }
            let digest = one.digest().unwrap();
            assert_eq!(digest.sequence, one.sequence());
            one.sync().unwrap();
            let fresh = options().read_only(true).open(one.path()).unwrap();
            assert_eq!(fresh.digest().unwrap(), digest, "seed {seed}");
            assert_eq!(digest.keys, contents(&one).len() as u64);
            let (found, expected) = differences(&one, &two);
            let found: Vec<_> = found
                .into_iter()
                .map(|one| (one.table, one.key, one.kind))
                .collect();
            assert_eq!(found, expected, "seed {seed}");
            let names = |db: &Db| {
                db.tables()
                    .into_iter()
                    .map(|table| table.name)
                    .collect::<Vec<_>>()
            };
            let equal = names(&one) == names(&two) && expected.is_empty();
            assert_eq!(two.digest().unwrap().root == digest.root, equal, "seed {seed}");
        }
    }
}

#[test]
fn equal_contents_have_equal_digests_whatever_the_history_and_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let one = options().open(folder.path().join("one")).unwrap();
    let two = options().open(folder.path().join("two")).unwrap();
    assert_eq!(
        one.digest().unwrap().root,
        two.digest().unwrap().root,
        "two empty ones"
    );
    two.table("other").unwrap();
    let (a, b) = (one.table("t").unwrap(), two.table("t").unwrap());
    for number in 0..5000_u32 {
        a.put(number.to_be_bytes(), [number as u8; 40]).unwrap();
        b.put((4999 - number).to_be_bytes(), [1; 3]).unwrap();
    }
    assert!(
        !diff(&one, &two, |_| ControlFlow::Continue(()))
            .unwrap()
            .is_equal()
    );
    for number in 0..5000_u32 {
        b.put(number.to_be_bytes(), [number as u8; 40]).unwrap();
    }
    two.drop_table("other").unwrap();
    let (first, second) = (one.digest().unwrap(), two.digest().unwrap());
    assert_eq!(
        (first.root, &first.tables, first.keys),
        (second.root, &second.tables, 5000)
    );
    assert!(
        diff(&one, &two, |_| ControlFlow::Continue(()))
            .unwrap()
            .is_equal()
    );
    // One key has a different value in the second database, so exactly one prefix differs.
    b.put(17_u32.to_be_bytes(), "else").unwrap();
    let report = diff(&one, &two, |difference| {
        assert_eq!(difference.key, 17_u32.to_be_bytes());
        ControlFlow::Continue(())
    });
    let report = report.unwrap();
    assert_eq!((report.values_differing, report.prefixes_differing), (1, 1));
    let prefix = microdb::digest_prefix(&17_u32.to_be_bytes());
    assert_eq!(
        first.tables[0].differing(&two.digest().unwrap().tables[0]),
        [prefix]
    );
}

#[test]
fn a_diff_stops_when_its_callback_returns_break() {
    let folder = tempfile::tempdir().unwrap();
    let one = options().open(folder.path().join("one")).unwrap();
    let two = options().open(folder.path().join("two")).unwrap();
    for number in 0..100_u32 {
        one.table("t").unwrap().put(number.to_be_bytes(), "v").unwrap();
    }
    let mut seen = 0;
    let report = diff(&one, &two, |_| {
        seen += 1;
        if seen == 10 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let report = report.unwrap();
    assert_eq!((seen, report.stopped, report.only_in_first), (10, true, 10));
    assert_eq!(report.tables_only_in_first, ["t"]);
}

#[test]
fn a_digest_of_a_damaged_record_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let db = options().open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    for number in 0..100_u32 {
        table.put(number.to_be_bytes(), [7; 100]).unwrap();
    }
    db.close().unwrap();
    let path = folder.path().join("log/0000000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(20).position(|window| window == [7; 20]).unwrap();
    bytes[at] ^= 1;
    // The file is sound during the open and damaged afterwards.
    let db = options().open(folder.path()).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let error = db.digest().unwrap_err();
    assert!(error.is_corrupt(), "{error}");
}

#[test]
fn a_diff_with_a_backup_compares_only_later_writes() {
    for seed in 1..=3 {
        let mut random = Random::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let db = options().open(folder.path().join("db")).unwrap();
        let table = db.table("a").unwrap();
        for number in 0..6000_u32 {
            table.put(format!("key {number}"), number.to_le_bytes()).unwrap();
        }
        db.checkpoint().unwrap();
        db.backup_to(folder.path().join("backup")).unwrap();
        let backup = options()
            .read_only(true)
            .open(folder.path().join("backup"))
            .unwrap();
        let report = diff(&db, &backup, |_| ControlFlow::Continue(())).unwrap();
        assert!(
            report.is_equal() && report.by_log && report.records_compared == 0,
            "{report:?}"
        );
        for round in 0..6 {
            for _ in 0..40 {
                match random.below(3) {
                    0 => _ = table.delete(key(&mut random)).unwrap(),
                    1 => table.put(key(&mut random), "changed").unwrap(),
                    _ => table.put(random.next().to_le_bytes(), "new").unwrap(),
                }
            }
            if round % 2 == 1 {
                db.compact().unwrap();
            }
            let mut found = Vec::new();
            let report = diff(&db, &backup, |difference| {
                found.push((difference.table.clone(), difference.key.clone(), difference.kind));
                ControlFlow::Continue(())
            });
            let report = report.unwrap();
            found.sort_by(|a, b| a.1.cmp(&b.1));
            let (_, expected) = differences(&db, &backup);
            assert_eq!(found, expected, "seed {seed} round {round}");
            assert!(
                round > 0 || report.by_log && report.records_compared <= 40,
                "{report:?}"
            );
        }
        // After a clear, the logs alone cannot show all differences, so the comparison by log is
        // not used.
        table.clear().unwrap();
        assert!(!diff(&db, &backup, |_| ControlFlow::Continue(())).unwrap().by_log);
    }
}
