//! Copies of a database during a run: backups, and a follower of the change feed.
//!
//! - A complete backup opens with the content that the database had when the backup began,
//!   independent of later events of the disk and later commits to the original. An incomplete
//!   backup opens with that content, or its SUPER is missing or damaged.
//! - A follower applies the change feed and must have the content of the database. The chain values
//!   of the changes prove that none of them is missing.

use std::collections::BTreeMap;

use microdb::{Db, Error, Operation, Sequence};

use super::disk::Disk;
use super::workload::{Failure, Model, Point, Shape, chain, read, shown};

/// A complete or incomplete backup that was made during a run.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    path: String,
    point: Point,
    /// Number of events of the disk at the beginning of the backup, and at its completion. `done`
    /// is `None` for an incomplete backup.
    begun: usize,
    done: Option<usize>,
}

impl Backup {
    pub(crate) fn begun(path: &str, point: &Point, at: usize) -> Self {
        Self {
            path: path.to_owned(),
            point: point.clone(),
            begun: at,
            done: None,
        }
    }

    pub(crate) fn done(&mut self, at: usize) {
        self.done = Some(at);
    }

    /// Checks the backup on a disk after a power cut that followed the first `at` events of the
    /// run. A backup that had not begun by then is not checked.
    pub(crate) fn check(&self, disk: &Disk, shape: Shape, at: usize) -> Result<(), String> {
        if at < self.begun {
            return Ok(());
        }
        let done = self.done.is_some_and(|done| done <= at);
        let opened = shape.options(disk).read_only(true).create(false).open(&self.path);
        let told = |error: &Error| format!("the backup {} (done: {done}): {}", self.path, chain(error));
        let db = match opened {
            Ok(db) => db,
            Err(Error::NotADatabase { .. } | Error::Corrupt { field: "SUPER", .. }) if !done => return Ok(()),
            Err(error) => return Err(told(&error)),
        };
        let model = read(&db).map_err(|error| told(&error))?;
        if (db.sequence(), &model) == (self.point.sequence, &*self.point.model) {
            return Ok(());
        }
        Err(format!(
            "the backup {} (done: {done}) has sequence {} and {}; it was made of {} and {}",
            self.path,
            db.sequence(),
            shown(&model),
            self.point.sequence,
            shown(&self.point.model),
        ))
    }
}

/// A copy of the database that is maintained only from its change feed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    pub(crate) sequence: Sequence,
    chain: u64,
    tables: BTreeMap<u32, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Follower {
    /// Applies the feed up to its end and compares the result with `model`. Returns `false` if the
    /// log no longer has the changes after the follower's position.
    pub(crate) fn catch_up(&mut self, db: &Db, model: &Model) -> Result<bool, Failure> {
        let changes = match db.changes_since(self.sequence) {
            Ok(changes) => changes,
            Err(Error::FeedGone { asked, oldest }) if asked == self.sequence && oldest > asked => {
                return Ok(false);
            }
            Err(error) => return Err(Failure::Wrong(format!("the feed: {}", chain(&error)))),
        };
        for change in changes {
            let change = change.map_err(|error| Failure::Wrong(format!("the feed: {}", chain(&error))))?;
            if change.sequence != self.sequence + 1 || !change.follows(self.chain) {
                let reason = format!("the feed goes from {} to {change:?}", self.sequence);
                return Err(Failure::Wrong(reason));
            }
            (self.sequence, self.chain) = (change.sequence, change.chain);
            for operation in change.operations {
                self.apply(operation);
            }
        }
        if self.sequence == db.sequence() && self.model() == *model {
            return Ok(true);
        }
        Err(Failure::Wrong(format!(
            "the feed ends with {} and {}; the database has {} and {}",
            self.sequence,
            shown(&self.model()),
            db.sequence(),
            shown(model),
        )))
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Put { table, key, value } => {
                self.tables.entry(table).or_default().insert(key, value);
            }
            Operation::Delete { table, key } => {
                self.tables.entry(table).or_default().remove(&key);
            }
            Operation::Clear { table } => {
                self.tables.remove(&table);
            }
            other => panic!("an operation that this follower does not know: {other:?}"),
        }
    }

    /// Returns the tables by name. Table 0 maps names to table ids.
    fn model(&self) -> Model {
        let names = self.tables.get(&0).cloned().unwrap_or_default();
        let named = |(name, id): (Vec<u8>, Vec<u8>)| {
            let id = u32::from_le_bytes(*id.first_chunk().unwrap());
            let records = self.tables.get(&id).cloned().unwrap_or_default();
            (String::from_utf8(name).unwrap(), records)
        };
        names.into_iter().map(named).collect()
    }
}
