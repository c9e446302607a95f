//! Tests that the statistics of many tables in one log are kept separately.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use microdb::{Db, Durability, Options};

const TABLES: u32 = 300;

fn live_bytes(db: &Db) -> u64 {
    db.tables().iter().map(|table| table.live_bytes).sum()
}

#[test]
fn tables_tells_keys_and_bytes_of_each_of_many_tables() {
    let folder = tempfile::tempdir().unwrap();
    let options = || Options::new().durability(Durability::Buffered).background(false);
    let db = options().open(folder.path()).unwrap();
    // Tables are created in ascending order and written in another order. So the table ids of the
    // records in a segment are in no particular order.
    for number in 0..TABLES {
        db.table(&format!("t{number:03}")).unwrap();
    }
    for round in 0..3 {
        for number in (0..TABLES).map(|number| (number * 173 + round) % TABLES) {
            let table = db.table(&format!("t{number:03}")).unwrap();
            for key in 0..=number % 5 {
                table.put(key.to_be_bytes(), vec![7; number as usize]).unwrap();
            }
        }
    }
    let check = |db: &Db, gone: Option<u32>| {
        let tables = db.tables();
        let numbers = (0..TABLES).filter(|number| Some(*number) != gone);
        assert_eq!(tables.len(), numbers.clone().count());
        for (info, number) in tables.iter().zip(numbers) {
            let keys = u64::from(number % 5 + 1);
            assert_eq!((info.name.clone(), info.keys), (format!("t{number:03}"), keys));
            let least = keys * u64::from(number + 4);
            let most = least + keys * 16;
            assert!((least..=most).contains(&info.live_bytes), "{info:?}");
        }
    };
    check(&db, None);
    let before = live_bytes(&db);
    db.drop_table("t007").unwrap();
    check(&db, Some(7));
    assert!(live_bytes(&db) < before);
    db.compact().unwrap();
    check(&db, Some(7));
    db.close().unwrap();
    check(&options().open(folder.path()).unwrap(), Some(7));
}
