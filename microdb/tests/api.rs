//! Tests of the public interface on a real disk.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::path::Path;

use microdb::{Db, Durability, Error, Options, Sequence};

fn small() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(64 << 10)
}

fn contents(table: &microdb::Table) -> BTreeMap<Vec<u8>, Vec<u8>> {
    table
        .iter()
        .map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
        .collect()
}

fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            folder if folder.is_dir() => disk_bytes(&entry.path()),
            file => file.blocks() * 512,
        })
        .sum()
}

#[test]
fn a_put_survives_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    for durability in [Durability::Sync, Durability::Buffered] {
        let db = small().durability(durability).open(&path).unwrap();
        let table = db.table("events").unwrap();
        for number in 0..3_000u32 {
            table
                .put_with(
                    number.to_le_bytes(),
                    vec![number as u8; (number % 300) as usize],
                    Durability::Buffered,
                )
                .unwrap();
        }
        assert!(table.delete(7u32.to_le_bytes()).unwrap());
        assert!(!table.delete(7u32.to_le_bytes()).unwrap());
        table.put("", "empty key").unwrap();
        db.close().unwrap();
        assert!(matches!(table.put("a", "b"), Err(Error::Closed)));
        let db = small().open(&path).unwrap();
        assert!(db.recovery().clean, "{:?}", db.recovery());
        let table = db.table("events").unwrap();
        assert_eq!((table.len(), contents(&table).len()), (3_000, 3_000));
        for number in 0..3_000u32 {
            let value = table.get(number.to_le_bytes()).unwrap();
            let expected = (number != 7).then(|| vec![number as u8; (number % 300) as usize]);
            assert_eq!(value.map(Vec::from), expected);
        }
        assert_eq!(table.get("").unwrap().unwrap(), b"empty key");
    }
}

#[test]
fn a_batch_is_one_commit_over_tables() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path()).unwrap();
    let (one, two) = (db.table("one").unwrap(), db.table("two").unwrap());
    let before = db.sequence();
    let mut batch = db.batch();
    batch.put(&one, "a", "1");
    batch.put(&two, "a", "2");
    batch.put(&one, "b", "3");
    batch.delete(&one, "b");
    assert_eq!(batch.commit().unwrap(), before + 1);
    assert_eq!(one.get("a").unwrap().unwrap(), b"1");
    assert_eq!(two.get("a").unwrap().unwrap(), b"2");
    assert!(one.get("b").unwrap().is_none());
    let mut batch = db.batch();
    batch.put(&one, "c", "1");
    batch.put(&one, vec![0; 70_000], "1");
    assert!(matches!(batch.commit(), Err(Error::TooLarge { what: "key", .. })));
    assert!(one.get("c").unwrap().is_none());
    let other_folder = tempfile::tempdir().unwrap();
    let other = Db::open(other_folder.path()).unwrap();
    let mut batch = other.batch();
    batch.put(&one, "c", "1");
    assert!(matches!(batch.commit(), Err(Error::ForeignTable { .. })));
}

#[test]
fn tables_are_created_renamed_cleared_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let check = |db: &Db| {
        let names: Vec<_> = db
            .tables()
            .into_iter()
            .map(|table| (table.name, table.keys))
            .collect();
        assert_eq!(names, [("cleared".to_owned(), 1), ("new".to_owned(), 1)]);
    };
    {
        let db = Db::open(folder.path()).unwrap();
        let [old, cleared, dropped] = ["old", "cleared", "dropped"].map(|name| db.table(name).unwrap());
        for table in [&old, &cleared, &dropped] {
            table.put("k", "v").unwrap();
        }
        db.rename_table("old", "new").unwrap();
        assert_eq!(old.name(), "new");
        assert!(matches!(
            db.rename_table("new", "cleared"),
            Err(Error::TableExists { .. })
        ));
        cleared.put("l", "v").unwrap();
        cleared.clear().unwrap();
        assert!(cleared.is_empty() && cleared.get("k").unwrap().is_none());
        cleared.put("m", "v").unwrap();
        db.drop_table("dropped").unwrap();
        assert!(matches!(dropped.get("k"), Err(Error::TableDropped { .. })));
        assert!(matches!(dropped.put("k", "v"), Err(Error::TableDropped { .. })));
        assert!(matches!(db.drop_table("dropped"), Err(Error::NoSuchTable { .. })));
        assert!(matches!(db.table(""), Err(Error::Invalid { .. })));
        check(&db);
    }
    let db = Db::open(folder.path()).unwrap();
    check(&db);
    assert!(
        db.table("dropped").unwrap().is_empty(),
        "a new table of the same name begins empty"
    );
}

#[test]
fn one_process_writes_and_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert!(matches!(
        Options::new().create(false).open(&missing),
        Err(Error::NotADatabase { .. })
    ));
    assert!(matches!(
        Options::new().read_only(true).open(&missing),
        Err(Error::NotADatabase { .. })
    ));
    assert!(!missing.exists());
    let db = Db::open(folder.path()).unwrap();
    let Err(Error::Locked { holder, .. }) = Db::open(folder.path()) else {
        panic!("opened twice")
    };
    assert_eq!(holder, Some(std::process::id()));
    let table = db.table("t").unwrap();
    table.put("k", "v").unwrap();
    let reader = Options::new().read_only(true).open(folder.path()).unwrap();
    let seen = reader.table("t").unwrap();
    assert_eq!(seen.get("k").unwrap().unwrap(), b"v");
    assert!(matches!(seen.put("k", "w"), Err(Error::ReadOnly)));
    assert!(matches!(reader.table("u"), Err(Error::NoSuchTable { .. })));
    table.put("k", "w").unwrap();
    drop((db, table));
    Db::open(folder.path()).unwrap();
}

#[test]
fn snapshots_and_iterators_do_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let db = small()
        .durability(Durability::Buffered)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    (0..500u32).for_each(|key| table.put(key.to_le_bytes(), "old").unwrap());
    let (snapshot, iter) = (db.snapshot(), table.iter());
    for key in 0..1000u32 {
        table.put(key.to_le_bytes(), "new").unwrap();
    }
    table.delete(3u32.to_le_bytes()).unwrap();
    let later = db.table("later").unwrap();
    later.put("k", "v").unwrap();
    assert_eq!(iter.count(), 500);
    assert_eq!(
        (snapshot.len(&table).unwrap(), snapshot.len(&later).unwrap()),
        (500, 0)
    );
    assert_eq!(snapshot.get(&table, 3u32.to_le_bytes()).unwrap().unwrap(), b"old");
    assert!(snapshot.get(&table, 700u32.to_le_bytes()).unwrap().is_none());
    assert!(
        snapshot
            .iter(&table)
            .unwrap()
            .all(|record| record.unwrap().1 == b"old")
    );
    table.clear().unwrap();
    assert_eq!(snapshot.iter(&table).unwrap().count(), 500);
}

/// Error type of the calling program, to which errors of the engine are converted.
#[derive(PartialEq, Debug)]
enum Stop {
    Enough,
    Database(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Database(error.to_string())
    }
}

#[test]
fn for_each_record_matches_the_iterator_and_continues_after_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let db = small()
        .durability(Durability::Buffered)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    for key in 0..2_000u32 {
        table
            .put(key.to_le_bytes(), vec![key as u8; (key % 300) as usize])
            .unwrap();
    }
    let given: Vec<_> = table.iter().map(Result::unwrap).collect();
    let (mut visited, mut iter) = (Vec::new(), table.iter());
    let stopped = iter.for_each_record(|key, value| {
        visited.push((key.to_vec(), value.to_vec()));
        if visited.len() == 1_000 {
            return Err(Stop::Enough);
        }
        Ok(())
    });
    assert_eq!(stopped, Err(Stop::Enough));
    assert_eq!(visited.len(), 1_000);
    iter.for_each_record(|key, value| {
        visited.push((key.to_vec(), value.to_vec()));
        Ok::<_, Error>(())
    })
    .unwrap();
    assert_eq!(visited.len(), given.len());
    for ((key, value), (seen_key, seen_value)) in given.iter().zip(&visited) {
        assert_eq!((&key[..], &value[..]), (&seen_key[..], &seen_value[..]));
    }
}

#[test]
fn compare_and_swap_and_transactions_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let db = Options::new()
        .durability(Durability::Buffered)
        .transaction_tries(10_000)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    assert!(table.compare_and_swap("k", None::<&str>, Some("1")).unwrap());
    assert!(!table.compare_and_swap("k", None::<&str>, Some("2")).unwrap());
    assert!(!table.compare_and_swap("k", Some("2"), Some("3")).unwrap());
    assert!(table.compare_and_swap("k", Some("1"), None::<&str>).unwrap());
    assert!(table.get("k").unwrap().is_none());
    let number = |value: Option<microdb::Value>| {
        value.map_or(0, |value| u64::from_le_bytes(value[..].try_into().unwrap()))
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    let seen = db.transaction(|tx| {
                        let (a, b) = (number(tx.get(&table, "a")?), number(tx.get(&table, "b")?));
                        tx.put(&table, "a", (a + 1).to_le_bytes())?;
                        tx.put(&table, "b", (b + 1).to_le_bytes())?;
                        Ok::<_, Error>((a, b))
                    });
                    let (a, b) = seen.unwrap();
                    assert_eq!(a, b, "what commits saw one moment");
                    loop {
                        let old = table.get("c").unwrap();
                        let new = number(old.clone()) + 1;
                        if table.compare_and_swap("c", old, Some(new.to_le_bytes())).unwrap() {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(number(table.get("c").unwrap()), 1000);
    let a = number(table.get("a").unwrap());
    assert_eq!(number(table.get("b").unwrap()), a);
    let refused: Result<(), Stop> = db.transaction(|tx| {
        tx.put(&table, "a", "x")?;
        Err(Stop::Enough)
    });
    assert_eq!(refused, Err(Stop::Enough));
    assert_eq!(number(table.get("a").unwrap()), a);
}

#[test]
fn durable_commits_of_many_threads_share_syncs() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16u32 {
            let table = &table;
            scope.spawn(move || {
                for number in 0..20u32 {
                    table
                        .put((thread * 1000 + number).to_le_bytes(), [7; 50])
                        .unwrap();
                    assert!(
                        table
                            .get((thread * 1000 + number).to_le_bytes())
                            .unwrap()
                            .is_some()
                    );
                }
            });
        }
    });
    let stats = db.stats();
    assert_eq!(
        (stats.keys, stats.sequence, stats.durable_sequence),
        (321, Sequence(321), Sequence(321))
    );
    assert!(stats.groups <= 321);
}

#[test]
fn an_empty_database_is_small() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path()).unwrap();
    db.table("t").unwrap().put("k", "v").unwrap();
    drop(db);
    assert!(disk_bytes(folder.path()) < 1 << 20);
}

#[test]
fn large_values_and_batches_fit() {
    let folder = tempfile::tempdir().unwrap();
    let db = small()
        .durability(Durability::Buffered)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    let value: Vec<u8> = (0..3_000_000u32).map(|byte| byte as u8).collect();
    table.put("large", &value).unwrap();
    table.put("small", "v").unwrap();
    assert_eq!(table.get("large").unwrap().unwrap(), value);
    drop((db, table));
    let db = small().open(folder.path()).unwrap();
    let table = db.table("t").unwrap();
    assert_eq!(table.get("large").unwrap().unwrap(), value);
    assert_eq!(table.get("small").unwrap().unwrap(), b"v");
    assert!(matches!(
        table.put("k", vec![0; 40 << 20]),
        Err(Error::TooLarge { what: "value", .. })
    ));
}

#[test]
fn the_change_feed_proves_that_nothing_was_missed() {
    let folder = tempfile::tempdir().unwrap();
    let db = small()
        .durability(Durability::Buffered)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    for number in 0..300u32 {
        let mut batch = db.batch();
        batch.put(&table, (number % 50).to_le_bytes(), vec![7; 100]);
        batch.delete(&table, (number % 7).to_le_bytes());
        batch.commit().unwrap();
    }
    let changes: Vec<_> = db
        .changes_since(Sequence::ZERO)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(changes.len(), 301);
    let mut chain = 0;
    for (number, change) in changes.iter().enumerate() {
        assert_eq!(change.sequence, Sequence(number as u64 + 1));
        assert!(change.follows(chain));
        chain = change.chain;
    }
    let mut altered = changes[7].clone();
    altered.operations.pop();
    assert!(!altered.follows(changes[6].chain) && !changes[8].follows(changes[6].chain));
    let some: Vec<_> = db
        .changes_since(Sequence(290))
        .unwrap()
        .map(|change| change.unwrap().sequence)
        .collect();
    assert_eq!(some, (291..=301).map(Sequence).collect::<Vec<_>>());
    assert_eq!(db.changes_since(Sequence(301)).unwrap().count(), 0);
    db.compact().unwrap();
    assert!(matches!(
        db.changes_since(Sequence::ZERO),
        Err(Error::FeedGone { .. })
    ));
    table.put("k", "v").unwrap();
    let after: Vec<_> = db
        .changes_since(Sequence(301))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(after.len() == 1 && after[0].follows(chain));
}

#[test]
fn an_extended_feed_misses_nothing_while_the_log_is_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let db = small()
        .durability(Durability::Buffered)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    let mut feed = db.changes_since(db.sequence()).unwrap();
    let (mut seen, mut written) = (db.sequence(), db.sequence());
    for round in 0..40u32 {
        for number in 0..60u32 {
            table
                .put((number % 9).to_le_bytes(), vec![round as u8; 100])
                .unwrap();
            written = written.next();
        }
        feed.extend().unwrap();
        if round % 3 == 0 {
            db.compact().unwrap();
        }
        // In even rounds nothing is read, so the feed keeps the segments of all unread changes for
        // later rounds. In odd rounds at most 100 changes are read.
        let most = if round % 2 == 0 { 0 } else { 100 };
        for change in feed.by_ref().take(most) {
            seen = seen.next();
            assert_eq!(change.unwrap().sequence, seen);
        }
    }
    for change in feed.by_ref() {
        seen = seen.next();
        assert_eq!(change.unwrap().sequence, seen);
    }
    assert_eq!(seen, written);
    feed.extend().unwrap();
    assert!(feed.next().is_none());
    table.put("k", "v").unwrap();
    feed.extend().unwrap();
    assert_eq!(feed.next().unwrap().unwrap().sequence, written + 1);
}

#[test]
fn verification_lists_all_damage() {
    use std::os::unix::fs::FileExt;
    let folder = tempfile::tempdir().unwrap();
    let db = small()
        .durability(Durability::Buffered)
        .open(folder.path())
        .unwrap();
    let table = db.table("t").unwrap();
    (0..1000u32).for_each(|key| table.put(key.to_le_bytes(), [7; 100]).unwrap());
    db.checkpoint().unwrap();
    let report = db.verify().unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.records, report.slots), (1001, 1001));
    for (segment, offset) in [(1, 2000), (3, 5000)] {
        let path = folder.path().join(format!("log/{segment:010}.seg"));
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xEE; 3], offset).unwrap();
    }
    let report = db.verify().unwrap();
    assert!(report.damage.len() >= 2, "{report:?}");
    assert!(report.damage.iter().any(|line| line.contains("0000000001.seg")));
    assert!(report.damage.iter().any(|line| line.contains("0000000003.seg")));
}

#[test]
fn a_backup_is_a_database_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (live, backup) = (folder.path().join("live"), folder.path().join("backup"));
    let db = small().durability(Durability::Buffered).open(&live).unwrap();
    let table = db.table("t").unwrap();
    (0..1000u32).for_each(|key| table.put(key.to_le_bytes(), [7; 100]).unwrap());
    let expected = contents(&table);
    let report = db.backup_to(&backup).unwrap();
    assert!(
        report.segments_linked > 1 && report.segments_copied == 1,
        "{report:?}"
    );
    assert!(matches!(db.backup_to(&backup), Err(Error::Invalid { .. })));
    table.put("later", "v").unwrap();
    let copy = small().open(&backup).unwrap();
    assert!(copy.recovery().clean && copy.verify().unwrap().is_sound());
    let copied = copy.table("t").unwrap();
    assert_eq!(contents(&copied), expected);
    copied.clear().unwrap();
    copy.compact().unwrap();
    drop((copy, copied));
    assert_eq!(contents(&table).len(), 1001);
    db.compact().unwrap();
    assert!(db.verify().unwrap().is_sound());
    assert!(small().open(&backup).unwrap().table("t").unwrap().is_empty());
}

#[test]
fn space_is_bounded_once_background_work_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let segment_bytes = 64 * 1024;
    let options = Options::new()
        .durability(Durability::Buffered)
        .segment_bytes_max(segment_bytes);
    let db = options.open(folder.path()).unwrap();
    let table = db.table("rows").unwrap();
    // Each version writes the rows in a different order, so that the records of a segment do not
    // become dead one after the other. Each factor is coprime to the number of rows, so that every
    // row is written once.
    for (version, factor) in [1_u32, 3, 7, 9, 11, 13].into_iter().enumerate() {
        for row in 0..4_000_u32 {
            let key = row * factor % 4_000;
            table.put(key.to_be_bytes(), [version as u8; 100]).unwrap();
        }
    }
    db.wait_idle().unwrap();
    let stats = db.stats();
    let bound = stats.live_bytes * 3 / 2 + 2 * u64::from(segment_bytes);
    assert!(
        stats.log_bytes <= bound,
        "{} bytes of log for {} live",
        stats.log_bytes,
        stats.live_bytes
    );
    for record in &table {
        assert_eq!(*record.unwrap().1, [5; 100]);
    }
}
