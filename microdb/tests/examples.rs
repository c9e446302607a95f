//! Tests of the functions of the programs in `examples/`. Their `main` functions are not called.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]
#![cfg(feature = "bincode")]

#[path = "../examples/accounts.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod accounts;
#[path = "../examples/standby.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod standby;
#[path = "../examples/word_count.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod word_count;

use accounts::{Bank, TransferError};
use microdb::{Db, Error};

#[test]
fn word_count_continues_in_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let count = |text: &str| word_count::count(folder.path(), &mut text.as_bytes()).unwrap();
    assert_eq!(count("a b a\nb a"), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    assert_eq!(count("b b\n")[0], ("b".to_owned(), 4));
}

#[test]
fn accounts_keep_the_money_of_many_threads_and_refuse_by_their_own_error() {
    let folder = tempfile::tempdir().unwrap();
    let bank = Bank::open(folder.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    bank.pay_in("ann", 10).unwrap();
                    bank.transfer("ann", "bob", 7).unwrap();
                }
            });
        }
    });
    assert_eq!((bank.total().unwrap(), bank.transfers()), (1000, 100));
    let refused = bank.transfer("ann", "bob", 301);
    assert!(
        matches!(refused, Err(TransferError::TooLittle { has: 300 })),
        "{refused:?}"
    );
    assert_eq!((bank.total().unwrap(), bank.transfers()), (1000, 100));
}

#[test]
fn standby_follows_its_database_and_notices_another_history() {
    let folder = tempfile::tempdir().unwrap();
    let (first, other) = (folder.path().join("first"), folder.path().join("other"));
    let standby = folder.path().join("standby");
    let (db, stranger) = (Db::open(&first).unwrap(), Db::open(&other).unwrap());
    for db in [&db, &stranger] {
        db.table("t").unwrap().put("a", "1").unwrap();
    }
    let mut batch = db.batch();
    let table = db.table("t").unwrap();
    standby::follow(&db, &standby).unwrap();
    batch.put(&table, "b", "2");
    batch.delete(&table, "a");
    let sequence = batch.commit().unwrap();
    assert_eq!(standby::follow(&db, &standby).unwrap(), sequence);
    {
        let copy = Db::open(&standby).unwrap();
        let records = |db: &Db| {
            let records = db.table("t").unwrap().iter().collect::<microdb::Result<Vec<_>>>();
            records.unwrap()
        };
        assert_eq!(records(&copy), records(&db));
    }
    for number in 0..3 {
        stranger.table("t").unwrap().put("c", [number]).unwrap();
    }
    let refused = standby::follow(&stranger, &standby);
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}
