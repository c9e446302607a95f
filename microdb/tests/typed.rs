//! Tests of typed tables: a put refuses a key or value that could not be read back. Also tests of
//! size limits, changed types and undecodable values.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]
#![cfg(feature = "bincode")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;

use microdb::{Db, Error};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::{TempDir, tempdir};

fn open() -> (TempDir, Db) {
    let folder = tempdir().unwrap();
    let db = Db::open(folder.path().join("db")).unwrap();
    (folder, db)
}

/// Checks that puts of `value` are refused and store nothing. Returns the reason of the refusal.
fn refused<V: Serialize + DeserializeOwned>(db: &Db, value: &V) -> String {
    let table = db.typed_table::<u32, V>("refused").unwrap();
    for _ in 0..2 {
        // The same handle refuses the value each time.
        let Err(Error::Encode { reason, .. }) = table.put(&1, value) else {
            panic!("a {} was taken", std::any::type_name::<V>());
        };
        let mut batch = db.batch();
        batch.put(&table, &1, value);
        assert!(matches!(batch.commit(), Err(Error::Encode { .. })), "{reason}");
        assert!(table.is_empty());
    }
    let Err(Error::Encode { reason, .. }) = table.put(&1, value) else {
        unreachable!("refused twice before");
    };
    reason
}

/// Checks that a value is accepted and read back unchanged.
fn taken<V: Serialize + DeserializeOwned + PartialEq + Debug>(db: &Db, value: V) {
    let table = db.typed_table::<u32, V>("taken").unwrap();
    for _ in 0..2 {
        table.put(&1, &value).unwrap();
        assert_eq!(table.get(&1).unwrap().as_ref(), Some(&value));
    }
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Default)]
struct Sparse {
    #[serde(default, skip_serializing_if = "is_zero")]
    count: u8,
    list: Vec<u8>,
}

fn is_zero(count: &u8) -> bool {
    *count == 0
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct SparseTuple(#[serde(skip_serializing_if = "is_zero")] u8, Vec<u8>);

#[derive(Serialize, Deserialize, PartialEq, Debug)]
enum SparseVariant {
    Named {
        #[serde(default, skip_serializing_if = "is_zero")]
        count: u8,
        list: Vec<u8>,
    },
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct OneWay {
    #[serde(skip_serializing, default)]
    count: u8,
    list: Vec<u8>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(untagged)]
enum Untagged {
    Number(u32),
    Text(String),
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(tag = "kind")]
enum Tagged {
    Number { value: u32 },
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(tag = "kind", content = "content")]
enum Adjacent {
    Number(u32),
    Named { value: u32 },
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Flat {
    #[serde(flatten)]
    rest: BTreeMap<String, u32>,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
enum Often {
    Plain(u32),
    Rare(Untagged),
}

#[test]
fn put_refuses_an_omitted_field() {
    let (_folder, db) = open();
    // The bytes of the first two values equal those of a complete value with other content. So the
    // fault is not visible in the bytes alone.
    let list = || vec![0];
    for reason in [
        refused(
            &db,
            &Sparse {
                count: 0,
                list: list(),
            },
        ),
        refused(
            &db,
            &SparseVariant::Named {
                count: 0,
                list: list(),
            },
        ),
        refused(&db, &Sparse::default()),
    ] {
        assert!(reason.contains("the field count is left out"), "{reason}");
    }
    for reason in [
        refused(&db, &SparseTuple(0, list())),
        refused(&db, &SparseTuple(0, vec![1, 9])),
        refused(
            &db,
            &OneWay {
                count: 7,
                list: list(),
            },
        ),
        refused(
            &db,
            &OneWay {
                count: 7,
                list: vec![5],
            },
        ),
    ] {
        assert!(reason.contains("could not be read back"), "{reason}");
    }
    // Complete values of two of these types are accepted, also by a handle that has refused a
    // value.
    taken(
        &db,
        Sparse {
            count: 7,
            list: list(),
        },
    );
    taken(&db, SparseTuple(7, list()));
    let table = db.typed_table::<u32, SparseTuple>("mixed").unwrap();
    for round in 0..3 {
        table.put(&1, &SparseTuple(7, list())).unwrap();
        assert!(table.put(&1, &SparseTuple(0, list())).is_err(), "round {round}");
        assert_eq!(table.get(&1).unwrap(), Some(SparseTuple(7, list())));
    }
}

#[test]
fn put_refuses_types_that_need_a_self_describing_encoding() {
    let (_folder, db) = open();
    for reason in [
        refused(&db, &Untagged::Number(7)),
        refused(&db, &Untagged::Text("seven".to_owned())),
        refused(&db, &Tagged::Number { value: 7 }),
        refused(&db, &vec![(7_u8, Some(Untagged::Number(7)))]),
        refused(&db, &Adjacent::Number(1)),
        refused(&db, &vec![Adjacent::Named { value: 2 }]),
    ] {
        assert!(reason.contains("self-describing"), "{reason}");
    }
    let flat = Flat {
        rest: BTreeMap::from([("a".to_owned(), 1)]),
    };
    let reason = refused(&db, &flat);
    assert!(reason.contains("without a known length"), "{reason}");
}

#[test]
fn put_refuses_a_variant_after_its_siblings_were_accepted() {
    let (_folder, db) = open();
    let table = db.typed_table::<u32, Vec<Often>>("often").unwrap();
    for number in 0..3 {
        table
            .put(&1, &vec![Often::Plain(number), Often::Plain(0)])
            .unwrap();
        let rare = vec![Often::Plain(number), Often::Rare(Untagged::Number(1))];
        assert!(matches!(table.put(&1, &rare), Err(Error::Encode { .. })));
        table.put(&1, &Vec::new()).unwrap();
    }
}

#[test]
fn put_refuses_a_key_that_could_not_be_read_back() {
    let (_folder, db) = open();
    let table = db.typed_table::<Untagged, u32>("keys").unwrap();
    assert!(matches!(
        table.put(&Untagged::Number(1), &1),
        Err(Error::Encode { .. })
    ));
    let table = db.typed_table::<Sparse2, u32>("keys").unwrap();
    assert!(matches!(
        table.put(&Sparse2 { count: 0, number: 1 }, &1),
        Err(Error::Encode { .. })
    ));
    assert!(table.raw().is_empty());
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Sparse2 {
    #[serde(default, skip_serializing_if = "is_zero")]
    count: u8,
    number: u32,
}

#[test]
fn values_of_every_kind_that_serde_knows_are_read_back() {
    let (_folder, db) = open();
    taken(
        &db,
        (
            true,
            'x',
            -1_i8,
            -2_i16,
            -3_i32,
            -4_i64,
            -5_i128,
            1.5_f32,
            f64::MAX,
        ),
    );
    taken(
        &db,
        (u8::MAX, u16::MAX, u32::MAX, u64::MAX, u128::MAX, (), [1_u8; 32]),
    );
    taken(&db, (Some(Some(1)), None::<u8>, Some(None::<u8>), Some(())));
    taken(
        &db,
        (String::from("text"), Vec::<String>::new(), vec![vec![1], vec![]]),
    );
    taken(&db, (0..1000).collect::<HashSet<u32>>());
    taken(
        &db,
        (0..1000)
            .map(|n| (n.to_string(), n))
            .collect::<HashMap<String, i64>>(),
    );
    taken(&db, BTreeMap::from([(1, vec![Some("a".to_owned())])]));
    taken(&db, std::time::Duration::from_nanos(1_500_000_000));
    taken(&db, std::time::UNIX_EPOCH + std::time::Duration::from_secs(1));
    taken(&db, std::net::IpAddr::from([127, 0, 0, 1]));
    taken(&db, std::ops::Bound::Included(7));
    taken(&db, Result::<u8, String>::Err("no".to_owned()));
    taken(&db, std::path::PathBuf::from("a/b"));
    taken(&db, std::num::NonZeroU8::new(7));
}

/// A text that is converted to lower case when it is deserialized.
#[derive(PartialEq, Debug)]
struct Lower(String);

impl Serialize for Lower {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Lower {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.to_lowercase()))
    }
}

#[test]
fn a_type_that_normalises_on_reading_is_accepted() {
    let (_folder, db) = open();
    let table = db.typed_table::<u32, Lower>("lower").unwrap();
    table.put(&1, &Lower("ABC".to_owned())).unwrap();
    assert_eq!(table.get(&1).unwrap(), Some(Lower("abc".to_owned())));
}

#[test]
fn the_limit_of_a_value_is_the_same_for_writing_and_reading() {
    let (_folder, db) = open();
    // The vector has 8.5 million numbers. Each needs 16 bytes in memory and one byte on disk.
    let table = db.typed_table::<u32, Vec<u128>>("large").unwrap();
    table.put(&1, &vec![1; 8_500_000]).unwrap();
    assert_eq!(table.get(&1).unwrap().unwrap().len(), 8_500_000);
    let largest = microdb::VALUE_BYTES_MAX - 5;
    let table = db.typed_table::<u32, String>("largest").unwrap();
    table.put(&1, &"x".repeat(largest)).unwrap();
    assert_eq!(table.get(&1).unwrap().unwrap().len(), largest);
    assert!(matches!(
        table.put(&1, &"x".repeat(largest + 1)),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn changed_types_follow_the_documented_rule() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    enum Before {
        One(u16),
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    enum After {
        Renamed(u64),
        Two { value: i16 },
    }
    let (_folder, db) = open();
    let before = db.typed_table::<u16, Before>("values").unwrap();
    before.put(&1000, &Before::One(2000)).unwrap();
    let after = db.typed_table::<u64, After>("values").unwrap();
    assert_eq!(after.get(&1000).unwrap(), Some(After::Renamed(2000)));
    after.put(&2, &After::Two { value: -1 }).unwrap();
    assert!(matches!(before.get(&2), Err(Error::Decode { .. })));
    // A change from unsigned to signed numbers is not permitted: the unsigned 6 is read as the
    // signed 3, without an error.
    db.typed_table::<u16, u32>("signs").unwrap().put(&1, &6).unwrap();
    assert_eq!(
        db.typed_table::<u16, i32>("signs").unwrap().get(&1).unwrap(),
        Some(3)
    );
}

#[test]
fn typed_tables_report_values_that_do_not_decode() {
    let (_folder, db) = open();
    let orders = db.typed_table::<String, (u32, Vec<u16>)>("orders").unwrap();
    let id = "17".to_owned();
    orders.put(&id, &(3, vec![1, 2])).unwrap();
    assert_eq!(orders.get(&id).unwrap(), Some((3, vec![1, 2])));
    assert_eq!(
        orders.iter().collect::<Result<Vec<_>, _>>().unwrap(),
        [(id.clone(), (3, vec![1, 2]))]
    );
    let wrong = db.typed_table::<String, u64>("orders").unwrap();
    let Err(Error::Decode { table, .. }) = wrong.get(&id) else {
        panic!("decoded")
    };
    assert_eq!(table, "orders");
    assert!(orders.delete(&id).unwrap() && orders.is_empty());
}
