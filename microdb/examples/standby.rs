//! Keeps a second database in step with a first one: a backup to begin with, then the change feed.
//! The chain of the feed proves that no commit between two applied ones is missing.
//!
//!     cargo run --example standby -- FOLDER STANDBY

use std::path::Path;

use microdb::{Db, Error, Operation, Options, Sequence};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(folder), Some(standby)) = (args.next(), args.next()) else {
        return Err("usage: standby FOLDER STANDBY".into());
    };
    // The first database is opened read-only, so that this program can run beside its writer.
    let first = Options::new().read_only(true).open(folder)?;
    let applied = follow(&first, Path::new(&standby))?;
    println!("the standby is at commit {applied}");
    Ok(())
}

/// Table of the standby with its position: the sequence and the chain of the last applied commit.
/// The position is written in one batch with the puts and deletions of the commit.
const POSITION: &str = "standby position";

/// Brings the records of the standby in `folder` to the state of `first`. Drops and renames of
/// tables are not applied. Returns the sequence of the last applied commit.
///
/// # Errors
/// [`Error::FeedGone`] if the standby is too old for the feed: remove `folder`, and call the
/// function again. [`Error::Invalid`] if a change does not follow the last applied one. Errors of
/// both databases.
pub(crate) fn follow(first: &Db, folder: &Path) -> microdb::Result<Sequence> {
    if !folder.exists() {
        let report = first.backup_to(folder)?;
        let standby = Db::open(folder)?;
        // The feed continues after the last commit of the backup. The chain is unknown until the
        // first change is read.
        let position = standby.typed_table::<(), (u64, Option<u64>)>(POSITION)?;
        position.put(&(), &(report.sequence.0, None))?;
    }
    let standby = Db::open(folder)?;
    let position = standby.typed_table::<(), (u64, Option<u64>)>(POSITION)?;
    let (mut sequence, mut chain) = position.get(&())?.unwrap_or_default();
    let names = first.tables().into_iter().map(|table| (table.id, table.name));
    let names: std::collections::HashMap<u32, String> = names.collect();
    for change in first.changes_since(Sequence(sequence))? {
        let change = change?;
        if chain.is_some_and(|chain| !change.follows(chain)) {
            return Err(Error::Invalid {
                what: "standby",
                reason: "the first database has another history".to_owned(),
            });
        }
        let mut batch = standby.batch();
        for operation in &change.operations {
            match operation {
                Operation::Put { table, key, value } => {
                    if let Some(name) = names.get(table) {
                        batch.put(&standby.table(name)?, key, value);
                    }
                }
                Operation::Delete { table, key } => {
                    if let Some(name) = names.get(table) {
                        batch.delete(&standby.table(name)?, key);
                    }
                }
                // A clear is a commit of its own, and harmless if it is repeated after a crash.
                Operation::Clear { table } => {
                    if let Some(name) = names.get(table) {
                        standby.table(name)?.clear()?;
                    }
                }
                // Later versions of the engine may add kinds of changes, which this program
                // ignores.
                _ => {}
            }
        }
        (sequence, chain) = (change.sequence.0, Some(change.chain));
        batch.put(&position, &(), &(sequence, chain));
        batch.commit()?;
    }
    standby.close()?;
    Ok(Sequence(sequence))
}
