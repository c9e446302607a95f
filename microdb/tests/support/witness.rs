//! Writers that a crash may stop at any time, and a check of the commits found afterwards.
//!
//! Each writer has a separate table and numbers its commits. Commit N puts the number N under
//! several keys. The numbers promised as durable are kept outside of the database. The last number
//! found determines the whole expected content of the table. The last number found must not be
//! below the last promised number.

use std::collections::BTreeMap;

use microdb::{Db, Durability};

/// Number of concurrent writers.
pub(crate) const WRITERS: u64 = 3;
/// Number of keys that the first record of each commit overwrites in turn. The number is small, so
/// that segments fill up with dead records.
const KEYS: u64 = 50;

/// Commits until an operation fails. Calls `promise` with the number of a commit once this commit
/// and all earlier ones of the writer are known to be durable. Returns the error.
pub(crate) fn work(db: &Db, writer: u64, mut promise: impl FnMut(u64)) -> microdb::Error {
    let mut commits = || -> microdb::Result<()> {
        let table = db.table(&format!("writer {writer}"))?;
        let last = table.get("last")?.map_or(0, |value| number(&value));
        for number in last + 1.. {
            let mut batch = db.batch();
            for key in keys_of(number) {
                let value = format!("{number} {}", "x".repeat(number as usize % 300));
                batch.put(&table, key.to_string(), value);
            }
            batch.put(&table, "last", number.to_string());
            // Each commit of the first writer is durable. The other writers make their commits
            // durable with an occasional sync.
            if writer == 0 {
                batch.commit()?;
                promise(number);
            } else {
                batch.commit_with(Durability::Buffered)?;
                if number % (10 * writer) == 0 {
                    db.sync()?;
                    promise(number);
                }
            }
            if writer == 2 && number % 400 == 0 {
                db.compact()?;
            }
        }
        Ok(())
    };
    commits().expect_err("it continues until it fails")
}

/// Returns the keys that commit number `number` puts, besides the key `last`.
fn keys_of(number: u64) -> [u64; 2] {
    [number % KEYS, KEYS + number % 7]
}

/// Returns the commit number at the start of a value.
pub(crate) fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Checks that each table has exactly the first N commits of its writer, for some N that is not
/// below the promised number. Also checks that verification finds no damage.
pub(crate) fn check(db: &Db, promised: &BTreeMap<u64, u64>) -> Result<(), String> {
    for writer in 0..WRITERS {
        let promised = promised.get(&writer).copied().unwrap_or(0);
        check_writer(db, writer, promised).map_err(|error| format!("writer {writer}: {error}"))?;
    }
    let report = db.verify().map_err(|error| error.to_string())?;
    if report.is_sound() {
        Ok(())
    } else {
        Err(format!("{:?}", report.damage))
    }
}

fn check_writer(db: &Db, writer: u64, promised: u64) -> Result<(), String> {
    let Some(table) = db.get_table(&format!("writer {writer}")) else {
        return if promised == 0 {
            Ok(())
        } else {
            Err(format!("no table, and {promised} were promised"))
        };
    };
    let told = |error: microdb::Error| error.to_string();
    let last = table.get("last").map_err(told)?.map_or(0, |value| number(&value));
    if last < promised {
        return Err(format!("{last} commits, and {promised} were promised"));
    }
    let mut expected = BTreeMap::new();
    // Only the newest commits are visible, because later commits overwrite earlier ones.
    for number in last.saturating_sub(KEYS) + 1..=last {
        for key in keys_of(number) {
            expected.insert(key.to_string().into_bytes(), number);
        }
    }
    if last > 0 {
        expected.insert(b"last".to_vec(), last);
    }
    let mut found = BTreeMap::new();
    for record in &table {
        let (key, value) = record.map_err(told)?;
        found.insert(key.to_vec(), number(&value));
    }
    if found == expected {
        Ok(())
    } else {
        Err(format!("of {last} commits: {found:?}"))
    }
}
