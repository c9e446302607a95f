//! Models of the commit queue: choice of a leader, waiting, acknowledgement and visibility.

use std::sync::{Arc, Mutex, OnceLock};

use super::disk::{Disk, Image};
use super::{check, spawn};
use crate::{Db, Durability, Error, Options, Table};

/// Number of successful syncs of a disk that never fails: more than any model makes.
const ALL_SYNCS: u32 = 1_000;

fn open(disk: &Arc<Disk>) -> Db {
    let options = Options::new().background(false).storage(disk.clone());
    let options = options.segment_bytes_first(4096).segment_bytes_max(4096);
    options.open("/db").unwrap()
}

/// Returns the disk of a database with an empty table. The database's id is random, so the image is
/// made only once and is equal in every run of a model.
fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let made = Arc::new(Mutex::new(Image::new()));
        let result = made.clone();
        loom::model(move || {
            let result = result.clone();
            let made = spawn(move || {
                let disk = Disk::new(&Image::new(), ALL_SYNCS);
                let db = open(&disk);
                db.table("t").unwrap();
                db.close().unwrap();
                *result.lock().unwrap() = disk.after_a_cut();
            });
            made.join().unwrap();
        });
        Arc::into_inner(made).unwrap().into_inner().unwrap()
    })
}

/// Returns `true` if a database opened from the disk `left` has `key`.
fn survives(left: &Image, key: &str) -> bool {
    let db = open(&Disk::new(left, ALL_SYNCS));
    db.table("t").unwrap().get(key).unwrap().is_some()
}

/// Puts `key`. Returns the disk that a power cut would leave directly after the acknowledgement.
/// Returns `None` if the database is poisoned.
fn put(table: &Table, disk: &Disk, key: &str) -> Option<Image> {
    match table.put(key, "v") {
        Ok(()) => {
            assert!(
                table.get(key).unwrap().is_some(),
                "{key} is acknowledged and not seen"
            );
            Some(disk.after_a_cut())
        }
        Err(Error::Poisoned { .. }) => {
            assert!(table.get(key).unwrap().is_none(), "{key} is refused and seen");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Runs `count` concurrent writers, each with its own key. The first `syncs` syncs of the disk
/// succeed, and the next one fails. Returns the number of acknowledged keys.
fn writers(count: usize, syncs: u32) -> usize {
    let disk = Disk::new(image(), syncs);
    let db = open(&disk);
    let table = db.table("t").unwrap();
    let first = db.engine.sequence();
    let keys: &[&str] = &["a", "b", "c"];
    let others = keys[1..count].iter().map(|key| {
        let (table, disk) = (table.clone(), disk.clone());
        spawn(move || put(&table, &disk, key))
    });
    let others = others.collect::<Vec<_>>();
    let mut left = vec![put(&table, &disk, keys[0])];
    left.extend(others.into_iter().map(|other| other.join().unwrap()));
    for (key, left) in keys.iter().zip(&left) {
        if let Some(left) = left {
            assert!(survives(left, key), "{key} is acknowledged and not durable");
            assert!(table.get(key).unwrap().is_some(), "{key} is lost");
        }
    }
    let acknowledged = left.iter().flatten().count();
    let published = db.engine.sequence() - first;
    assert_eq!(published, acknowledged as u64, "commits are published, in order");
    if acknowledged < count {
        assert!(matches!(table.put("d", "v"), Err(Error::Poisoned { .. })));
    }
    acknowledged
}

#[test]
fn loom_two_durable_writers_are_acknowledged_once_durable() {
    check(3, || assert_eq!(writers(2, ALL_SYNCS), 2));
}

#[test]
fn loom_a_group_formed_during_a_sync_gets_a_leader() {
    check(2, || assert_eq!(writers(3, ALL_SYNCS), 3));
}

#[test]
fn loom_a_sync_that_fails_poisons_all_who_wait() {
    check(3, || assert_eq!(writers(2, 0), 0));
    // The first group is acknowledged and has one, two or three members. All later groups fail.
    check(2, || assert!((1..=3).contains(&writers(3, 1))));
}

#[test]
fn loom_a_reader_sees_a_durable_commit_only_once_it_is_durable_and_the_log_keeps_its_order() {
    check(3, || {
        let disk = Disk::new(image(), ALL_SYNCS);
        let db = open(&disk);
        let table = db.table("t").unwrap();
        let first = db.engine.sequence();
        let writer = spawn({
            let (table, disk) = (table.clone(), disk.clone());
            move || put(&table, &disk, "a")
        });
        // Depending on the order, this buffered commit precedes the durable commit, waits behind it
        // for the disk, or follows it.
        let before = db.engine.sequence();
        table.put_with("b", "v", Durability::Buffered).unwrap();
        assert!(db.engine.sequence() > before);
        let snapshot = db.snapshot();
        let seen = snapshot.get(&table, "a").unwrap().is_some();
        let left = disk.after_a_cut();
        assert!(snapshot.get(&table, "b").unwrap().is_some());
        assert_eq!(snapshot.get(&table, "a").unwrap().is_some(), seen, "one moment");
        assert!(!seen || survives(&left, "a"), "seen and not durable");
        assert!(survives(&writer.join().unwrap().unwrap(), "a"));
        assert_eq!(db.engine.sequence(), first + 2, "both are published");
    });
}

#[test]
fn loom_two_transactions_on_one_key_both_commit_and_are_durable() {
    check(2, || {
        let disk = Disk::new(image(), ALL_SYNCS);
        let db = open(&disk);
        let table = db.table("t").unwrap();
        let count = |db: &Db, table: &Table, disk: &Disk| {
            let count: crate::Result<u8> = db.transaction(|tx| {
                let count = tx.get(table, "count")?.map_or(0, |count| count[0]) + 1;
                tx.put(table, "count", [count])?;
                Ok(count)
            });
            (count.unwrap(), disk.after_a_cut())
        };
        let other = spawn({
            let (db, table, disk) = (db.clone(), table.clone(), disk.clone());
            move || count(&db, &table, &disk)
        });
        let own = count(&db, &table, &disk);
        let other = other.join().unwrap();
        assert_eq!(own.0 + other.0, 1 + 2, "one after the other");
        for (counted, left) in [own, other] {
            let db = open(&Disk::new(&left, ALL_SYNCS));
            let durable = db.table("t").unwrap().get("count").unwrap().unwrap();
            assert!(durable[0] >= counted, "acknowledged and not durable");
        }
    });
}
