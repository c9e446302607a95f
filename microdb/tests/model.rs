//! Compares the engine with a plain map, over random histories: operations, batches, table changes,
//! snapshots, compactions, checkpoints, reopenings with and without the checkpoint.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::path::Path;

use microdb::{Db, Durability, Options, Snapshot, Table};

type Model = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// A small random generator (SplitMix64), so that a seed gives the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn key(&mut self) -> Vec<u8> {
        self.below(200).to_string().into_bytes()
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.below(20) {
            0 => self.below(6000),
            1..5 => self.below(300),
            _ => self.below(40),
        };
        vec![self.next() as u8; len as usize]
    }
}

fn options(seed: u64) -> Options {
    Options::new()
        .durability(Durability::Buffered)
        .segment_bytes_first(4096)
        .segment_bytes_max(16 << 10)
        .buffer_bytes(seed % 3 * 2000)
        .checkpoint_log_bytes(20_000)
        .background(seed.is_multiple_of(2))
        // For every third seed, the configured memory is so small that the log soon exceeds it.
        .memory_bytes(Some(if seed.is_multiple_of(3) { 15_000 } else { u64::MAX }))
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn check_table(
    model: Option<&BTreeMap<Vec<u8>, Vec<u8>>>,
    records: impl Iterator<Item = microdb::Result<(microdb::Value, microdb::Value)>>,
) {
    let found: BTreeMap<Vec<u8>, Vec<u8>> = records
        .map(|r| r.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap())
        .collect();
    assert!(model.cloned().unwrap_or_default() == found, "{:?}", found.keys());
}

fn check(db: &Db, model: &Model) {
    let names: Vec<_> = db.tables().into_iter().map(|table| table.name).collect();
    assert_eq!(names, model.keys().cloned().collect::<Vec<_>>());
    for (name, records) in model {
        let table = db.get_table(name).unwrap();
        assert_eq!(table.len(), records.len() as u64);
        check_table(Some(records), table.iter());
        let keys: Vec<_> = (0..200u64).map(|key| key.to_string()).collect();
        for (key, value) in keys.iter().zip(table.multi_get(&keys).unwrap()) {
            assert_eq!(
                value.as_deref(),
                records.get(key.as_bytes()).map(|value| &value[..]),
                "{name} {key}"
            );
        }
    }
    let stats = db.stats();
    for segment in &stats.segments {
        assert!(
            segment.live_bytes + segment.tombstone_bytes <= segment.bytes,
            "{segment:?}"
        );
    }
}

fn forget_checkpoints(path: &Path) {
    for entry in std::fs::read_dir(path.join("directory")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// A snapshot, its expected content, and the tables that existed when it was taken.
type Taken = (Snapshot, Model, Vec<(String, Table)>);

fn run(seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(seed);
    let mut model = Model::new();
    let mut db = options(seed).open(folder.path()).unwrap();
    let mut snapshots: Vec<Taken> = Vec::new();
    for _ in 0..400 {
        let name = NAMES[random.below(3) as usize];
        let table = db.table(name).unwrap();
        let records = model.entry(name.to_owned()).or_default();
        match random.below(100) {
            0..55 => {
                let (key, value) = (random.key(), random.value());
                table.put(&key, &value).unwrap();
                records.insert(key, value);
            }
            55..70 => {
                let key = random.key();
                assert_eq!(table.delete(&key).unwrap(), records.remove(&key).is_some());
            }
            70..80 => {
                let mut batch = db.batch();
                for _ in 0..random.below(30) {
                    let key = random.key();
                    if random.below(3) == 0 {
                        batch.delete(&table, &key);
                        records.remove(&key);
                    } else {
                        let value = random.value();
                        batch.put(&table, &key, &value);
                        records.insert(key, value);
                    }
                }
                batch.commit().unwrap();
            }
            80 => {
                table.clear().unwrap();
                records.clear();
            }
            81 => {
                db.drop_table(name).unwrap();
                model.remove(name);
            }
            82 => {
                let records = model.remove(name).unwrap();
                let to = format!("renamed {}", random.below(2));
                if model.contains_key(&to) {
                    db.drop_table(&to).unwrap();
                }
                db.rename_table(name, &to).unwrap();
                model.insert(to, records);
            }
            83..85 => {
                let tables = model
                    .keys()
                    .map(|name| (name.clone(), db.table(name).unwrap()))
                    .collect();
                snapshots.push((db.snapshot(), model.clone(), tables));
            }
            85..87 => _ = db.compact().unwrap(),
            87..89 => db.checkpoint().unwrap(),
            89..91 => db.sync().unwrap(),
            91..93 => {
                snapshots.clear();
                drop((db, table));
                if random.below(2) == 0 {
                    forget_checkpoints(folder.path());
                }
                db = options(seed).open(folder.path()).unwrap();
                check(&db, &model);
            }
            _ => {
                let key = random.key();
                assert_eq!(
                    table.get(&key).unwrap().as_deref(),
                    records.get(&key).map(|value| &value[..])
                );
            }
        }
    }
    check(&db, &model);
    for (snapshot, model, tables) in &snapshots {
        for (name, table) in tables {
            check_table(model.get(name), snapshot.iter(table).unwrap());
        }
    }
    snapshots.clear();
    for forget in [false, true] {
        drop(db);
        if forget {
            forget_checkpoints(folder.path());
        }
        db = options(seed).open(folder.path()).unwrap();
        assert!(
            db.recovery().clean && db.recovery().dropped_bytes == 0,
            "{:?}",
            db.recovery()
        );
        check(&db, &model);
    }
}

#[test]
fn random_histories_agree_with_a_map() {
    let seed = std::env::var("MODEL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let count = std::env::var("MODEL_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(24);
    for seed in seed.map_or(0..count, |seed| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "MODEL_SEED={seed} repeats it");
    }
}
