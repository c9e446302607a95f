//! Tests of typed tables beside tables of bytes: the same operations, in batches, transactions and
//! snapshots, with borrowed keys, other codecs, and the recorded encoding of the keys.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]
#![cfg(feature = "bincode")]

use std::collections::{BTreeMap, HashMap};

use microdb::{Codec, CodecError, Db, Durability, Error, Options, TypedTable, salvage};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::{TempDir, tempdir};

fn open() -> (TempDir, Db) {
    let folder = tempdir().unwrap();
    let options = Options::new().durability(Durability::Buffered);
    let db = options.open(folder.path().join("db")).unwrap();
    (folder, db)
}

#[test]
fn typed_table_does_all_that_a_table_of_bytes_does() {
    let (_folder, db) = open();
    let table = db.typed_table::<String, u32>("t").unwrap();
    table.put("a", &1).unwrap();
    table.put_with("b", &2, Durability::Sync).unwrap();
    table.put(&"c".to_owned(), &3).unwrap();
    assert_eq!((table.name().as_str(), table.len()), ("t", 3));
    assert_eq!(
        table.multi_get(["c", "x", "a"]).unwrap(),
        [Some(3), None, Some(1)]
    );
    assert!(table.contains_key("a").unwrap() && !table.contains_key("x").unwrap());
    let mut keys = table.keys().collect::<microdb::Result<Vec<_>>>().unwrap();
    keys.sort();
    assert_eq!(keys, ["a", "b", "c"]);
    assert_eq!(table.values().map(Result::unwrap).sum::<u32>(), 6);
    let mut pairs = BTreeMap::new();
    for record in &table {
        let (key, value) = record.unwrap();
        pairs.insert(key, value);
    }
    assert_eq!(
        pairs,
        BTreeMap::from([("a".into(), 1), ("b".into(), 2), ("c".into(), 3)])
    );
    assert!(!table.compare_and_swap("a", Some(&2), Some(&9)).unwrap());
    assert!(table.compare_and_swap("a", Some(&1), Some(&9)).unwrap());
    assert!(table.compare_and_swap("a", Some(&9), None).unwrap());
    assert!(table.compare_and_swap("a", None, None).unwrap());
    assert_eq!(table.get("a").unwrap(), None);
    assert_eq!(table.take("b").unwrap(), Some(2));
    assert_eq!(table.take("b").unwrap(), None);
    assert!(table.delete_with("c", Durability::Sync).unwrap() && !table.delete("c").unwrap());
    table.put("d", &4).unwrap();
    table.clear().unwrap();
    assert!(table.is_empty());
}

#[test]
fn swap_compares_values_whose_encoding_is_not_fixed() {
    let (_folder, db) = open();
    let table = db.typed_table::<u8, HashMap<u32, u32>>("t").unwrap();
    let map = || (0..50).map(|n| (n, n)).collect::<HashMap<u32, u32>>();
    table.put(&1, &map()).unwrap();
    // Equal maps usually iterate in different orders, so their encoded bytes differ.
    for _ in 0..20 {
        assert!(table.compare_and_swap(&1, Some(&map()), Some(&map())).unwrap());
    }
    assert!(!table.compare_and_swap(&1, Some(&HashMap::new()), None).unwrap());
}

#[test]
fn both_kinds_of_tables_share_batches_transactions_and_snapshots() {
    let (_folder, db) = open();
    let stock = db.typed_table::<(String, u16), u32>("stock").unwrap();
    let log = db.table("log").unwrap();
    let lamp = || ("lamp".to_owned(), 5);
    let mut batch = db.batch();
    batch.put(&stock, &lamp(), &3);
    batch.put(&log, "1", b"three arrived".to_vec());
    batch.put(&stock, &("gone".to_owned(), 1), &1);
    batch.delete(&stock, &("gone".to_owned(), 1));
    batch.commit().unwrap();
    let before = db.snapshot();
    let left = db.transaction(|tx| {
        let left = tx.get(&stock, &lamp())?.unwrap() - 1;
        tx.put(&stock, &lamp(), &left)?;
        tx.put(&log, "2", format!("{left} left"))?;
        assert_eq!(tx.get(&stock, &lamp())?, Some(left), "its own write");
        assert!(tx.contains_key(&log, "2")? && !tx.contains_key(&stock, &("gone".to_owned(), 1))?);
        Ok::<_, Error>(left)
    });
    assert_eq!(left.unwrap(), 2);
    assert_eq!(before.get(&stock, &lamp()).unwrap(), Some(3));
    assert_eq!(before.get(&log, "1").unwrap().unwrap(), "three arrived");
    assert!(!before.contains_key(&log, "2").unwrap() && before.contains_key(&stock, &lamp()).unwrap());
    assert_eq!((before.len(&stock).unwrap(), before.len(&log).unwrap()), (1, 1));
    let records = before.iter(&stock).unwrap().collect::<microdb::Result<Vec<_>>>();
    assert_eq!(records.unwrap(), [(lamp(), 3)]);
    assert_eq!(stock.get(&lamp()).unwrap(), Some(2));
}

#[test]
fn refused_value_fails_the_batch_and_the_transaction() {
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u32),
    }
    let (_folder, db) = open();
    let table = db.typed_table::<u8, Untagged>("t").unwrap();
    let other = db.table("other").unwrap();
    let mut batch = db.batch();
    batch.put(&other, "k", "v");
    batch.put(&table, &1, &Untagged::Number(1));
    batch.put(&other, "l", "v");
    assert!(matches!(batch.commit(), Err(Error::Encode { .. })));
    let refused = db.transaction(|tx| {
        tx.put(&other, "k", "v")?;
        tx.put(&table, &1, &Untagged::Number(1))
    });
    assert!(matches!(refused, Err(Error::Encode { .. })));
    assert!(other.is_empty() && table.is_empty());
}

/// A key type with a borrowed form that is encoded differently, against the contract of borrowed
/// keys.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Named {
    name: String,
}

impl std::borrow::Borrow<u8> for Named {
    fn borrow(&self) -> &u8 {
        self.name.as_bytes().first().unwrap()
    }
}

#[test]
fn a_borrowed_key_that_does_not_decode_as_the_key_type_is_rejected() {
    let (_folder, db) = open();
    let table = db.typed_table::<Named, u8>("t").unwrap();
    assert!(matches!(table.put(&7_u8, &1), Err(Error::Encode { .. })));
    assert!(matches!(table.get(&7_u8), Err(Error::Encode { .. })));
    assert!(table.is_empty());
}

#[test]
fn borrowed_forms_of_keys_and_values_find_what_the_owned_ones_have_stored() {
    let (_folder, db) = open();
    let lists = db.typed_table::<Vec<u16>, Vec<u8>>("lists").unwrap();
    lists.put(&vec![1, 2], &vec![7]).unwrap();
    assert_eq!(lists.get(&[1, 2][..]).unwrap(), Some(vec![7]));
    lists.put(&[1, 2][..], &[8, 9][..]).unwrap();
    assert_eq!(lists.get(&vec![1, 2]).unwrap(), Some(vec![8, 9]));
    assert_eq!(lists.len(), 1);
    let boxed = db.typed_table::<Box<str>, u8>("boxed").unwrap();
    boxed.put("a", &1).unwrap();
    assert_eq!(boxed.get(&Box::from("a")).unwrap(), Some(1));
}

#[test]
fn update_of_one_key_by_many_threads_loses_nothing_and_deletes_on_none() {
    for durability in [Durability::Sync, Durability::Buffered] {
        let folder = tempdir().unwrap();
        let db = Options::new().durability(durability).open(folder.path()).unwrap();
        let counters = db.typed_table::<String, u64>("counters").unwrap();
        let raw = db.table("raw").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let new = counters.update("hot", |count| Some(count.unwrap_or(0) + 1));
                        assert!(new.unwrap().is_some());
                        raw.update("hot", |text| {
                            let mut text = text.map_or(Vec::new(), Vec::from);
                            text.push(b'x');
                            Some(text)
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(counters.get("hot").unwrap(), Some(200));
        assert_eq!(raw.get("hot").unwrap().unwrap(), "x".repeat(200));
        assert_eq!(counters.update("hot", |_| None).unwrap(), None);
        assert!(counters.is_empty());
        let before = db.sequence();
        assert_eq!(counters.update("hot", |_| None).unwrap(), None);
        assert_eq!(raw.take("absent").unwrap(), None);
        assert_eq!(db.sequence(), before, "nothing is written for an absent key");
    }
}

#[test]
fn take_gives_each_value_to_one_of_several_workers() {
    let (_folder, db) = open();
    let jobs = db.table("jobs").unwrap();
    for job in 0..100_u32 {
        jobs.put(job.to_le_bytes(), job.to_le_bytes()).unwrap();
    }
    let taken = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for job in 0..100_u32 {
                    if let Some(value) = jobs.take(job.to_le_bytes()).unwrap() {
                        taken.lock().unwrap().push(Vec::from(value));
                    }
                }
            });
        }
    });
    let mut taken = taken.into_inner().unwrap();
    taken.sort();
    taken.dedup();
    assert_eq!((taken.len(), jobs.len()), (100, 0));
}

/// A codec that stores keys and values as JSON text.
struct Json;

impl Codec for Json {
    const NAME: &'static str = "json";
    const SELF_DESCRIBING: bool = true;

    fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(serde_json::to_writer(to, value)?)
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct User {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[test]
fn another_codec_stores_its_own_bytes_and_may_omit_fields() {
    let (_folder, db) = open();
    let users: TypedTable<u32, User, Json> = db.typed_table_with("users").unwrap();
    let ann = || User {
        name: "Ann".to_owned(),
        note: None,
    };
    users.put(&7, &ann()).unwrap();
    assert_eq!(users.raw().get("7").unwrap().unwrap(), r#"{"name":"Ann"}"#);
    assert_eq!(users.get(&7).unwrap(), Some(ann()));
    users.raw().put("8", "[]").unwrap();
    let error = users.get(&8).unwrap_err();
    assert!(
        matches!(&error, Error::Decode { table, .. } if table == "users"),
        "{error}"
    );
    assert!(users.iter().any(|record| record.is_err()) && users.iter().any(|record| record.is_ok()));
    // The default codec refuses a value with an omitted field, which the JSON codec accepts.
    let refused = db.typed_table::<u32, User>("others").unwrap().put(&7, &ann());
    assert!(matches!(refused, Err(Error::Encode { .. })));
}

#[test]
fn encoding_of_keys_is_known_after_reopening_renaming_and_salvage() {
    let (folder, db) = open();
    let path = folder.path().join("db");
    db.table("bytes").unwrap().put("k", "v").unwrap();
    let stock = db.typed_table::<(String, u16), u32>("stock").unwrap();
    stock.put(&("lamp".to_owned(), 5), &3).unwrap();
    db.typed_table_with::<u32, u32, Json>("json").unwrap();
    let check = |db: &Db, stock: &str| {
        let tables = db.tables();
        let of = |name: &str| tables.iter().find(|table| table.name == name).unwrap();
        assert_eq!(of("bytes").keys_as, None);
        let json = of("json").keys_as.clone().unwrap();
        assert_eq!((json.codec.as_str(), json.type_name.as_str()), ("json", "u32"));
        assert_eq!(
            json.text_of(b"7"),
            None,
            "only the default encoding is understood"
        );
        let keys_as = of(stock).keys_as.clone().unwrap();
        let key = db.get_table(stock).unwrap().keys().next().unwrap().unwrap();
        assert_eq!(keys_as.text_of(&key).as_deref(), Some(r#"("lamp", 5)"#));
    };
    check(&db, "stock");
    db.rename_table("stock", "old stock").unwrap();
    db.close().unwrap();
    let db = Db::open(&path).unwrap();
    check(&db, "old stock");
    // The encoding of the keys must also be restored from a checkpoint, not only from the log.
    db.checkpoint().unwrap();
    db.replace_tables(&[("old stock", "stock")]).unwrap();
    db.compact().unwrap();
    db.close().unwrap();
    check(&Db::open(&path).unwrap(), "stock");
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    assert!(manifest.is_complete(), "{manifest}");
    check(&Db::open(folder.path().join("saved")).unwrap(), "stock");
}
