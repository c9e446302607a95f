//! Random work on a database, and the model of its permitted states.
//!
//! - A [`Run`] executes operations on a [`Disk`] and keeps a *history*: the model after each
//!   commit.
//! - At events of the disk, a [`Mark`] names the states that a crash may leave: from the last
//!   commit acknowledged as durable to the last commit attempted.
//! - Each put of a run writes a different value, so that an old value is not mistaken for a new
//!   one.
//!
//! Deliberately absent: threads, so that the same seed makes the same calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use microdb::{Db, Durability, Options, Sequence};

use super::copies::{Backup, Follower};
use super::disk::Disk;
use super::random::Random;

/// Folder of the database. Neither this folder nor its parent exists at first.
pub(crate) const ROOT: &str = "/data/shop";
/// Number of keys. The number is small, so that keys are often overwritten and deleted.
pub(crate) const KEYS: u64 = 10;
const TABLES: [&str; 3] = ["orders", "stocks", "stats"];

/// Content of a database: the records of each table, by the table's name.
pub(crate) type Model = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Content of the database after one commit, or before the first one, with the sequence number of
/// the last commit.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) sequence: Sequence,
    pub(crate) model: Arc<Model>,
}

/// States that a crash may leave from event `at` on, until the event of the next mark: the points
/// `low` to `high` of history number `history`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    at: usize,
    history: usize,
    low: usize,
    high: usize,
}

/// Options of the database. Segments are small, and the other limits often are, so that little work
/// reaches them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    segment_bytes_max: u32,
    buffer_bytes: u64,
    checkpoint_log_bytes: u64,
    pub(crate) maps: bool,
}

impl Shape {
    pub(crate) fn draw(random: &mut Random) -> Self {
        Self {
            segment_bytes_max: [4096, 4096, 8192, 16384][random.index(4)],
            buffer_bytes: [0, 300, 2000, 100_000][random.index(4)],
            checkpoint_log_bytes: [2000, 10_000, 1 << 20][random.index(3)],
            maps: random.chance(1, 2),
        }
    }

    /// Returns options with the smallest segments, and with several buffered commits per write.
    pub(crate) fn small(maps: bool) -> Self {
        Self {
            segment_bytes_max: 4096,
            buffer_bytes: 2000,
            checkpoint_log_bytes: 1 << 20,
            maps,
        }
    }

    /// Returns the engine's options for `disk`, and permits or refuses maps on `disk`. There is no
    /// background work, so that the same seed makes the same calls.
    pub(crate) fn options(&self, disk: &Disk) -> Options {
        disk.set_maps(self.maps);
        Options::new()
            .segment_bytes_first(4096)
            .segment_bytes_max(self.segment_bytes_max)
            .buffer_bytes(self.buffer_bytes)
            .checkpoint_log_bytes(self.checkpoint_log_bytes)
            .background(false)
            .storage(Arc::new(disk.clone()))
    }
}

/// One change of a batch, with the index of its table.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(usize, Vec<u8>, Vec<u8>),
    Delete(usize, Vec<u8>),
}

/// A step of a run: an action of the database's user, or a crash.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Batch(Vec<Change>, Durability),
    Make(usize),
    Drop(usize),
    Clear(usize),
    Rename(usize, usize),
    Sync,
    Checkpoint,
    Compact,
    /// Makes a backup to a new folder.
    Backup,
    /// Reads the change feed from its beginning, and from the position that the [`Follower`] (a
    /// copy) has reached.
    Feed,
    /// Closes the database and opens it again.
    Reopen,
    /// Crashes the process. A new process opens the database.
    Kill,
}

impl Op {
    /// Returns a random operation.
    pub(crate) fn draw(random: &mut Random, number: u64) -> Self {
        Self::draw_of(random, number, 43)
    }

    /// Returns a random operation without backups and feeds, for tests that damage only one
    /// database.
    pub(crate) fn draw_alone(random: &mut Random, number: u64) -> Self {
        Self::draw_of(random, number, 40)
    }

    fn draw_of(random: &mut Random, number: u64, kinds: u64) -> Self {
        match random.below(kinds) {
            0..22 => {
                let count = if random.chance(1, 3) {
                    2 + random.below(5)
                } else {
                    1
                };
                let durability = if random.chance(1, 2) {
                    Durability::Sync
                } else {
                    Durability::Buffered
                };
                let changes = (0..count)
                    .map(|part| change(random, number * 100 + part))
                    .collect();
                Self::Batch(changes, durability)
            }
            22..25 => Self::Make(random.index(TABLES.len())),
            25 => Self::Drop(random.index(TABLES.len())),
            26 => Self::Clear(random.index(TABLES.len())),
            27 => Self::Rename(random.index(TABLES.len()), random.index(TABLES.len())),
            28..31 => Self::Sync,
            31..33 => Self::Checkpoint,
            33..35 => Self::Compact,
            35..38 => Self::Reopen,
            38..40 => Self::Kill,
            40 => Self::Backup,
            _ => Self::Feed,
        }
    }
}

fn change(random: &mut Random, number: u64) -> Change {
    let table = if random.chance(2, 3) {
        0
    } else {
        random.index(TABLES.len())
    };
    let key = key(random.below(KEYS));
    if random.chance(1, 4) {
        return Change::Delete(table, key);
    }
    let len = [8, 20, 100, 511, 1500][random.index(5)];
    let mut value = format!("value {number} ").into_bytes();
    value.resize(len.max(value.len()), b'.');
    Change::Put(table, key, value)
}

pub(crate) fn key(number: u64) -> Vec<u8> {
    // The keys have different lengths, including zero.
    format!("{number}").repeat(number as usize).into_bytes()
}

/// Returns the whole content of a database, read by iteration. Checks that single reads and the
/// length of each table agree with the iteration.
pub(crate) fn read(db: &Db) -> microdb::Result<Model> {
    let mut model = Model::new();
    for info in db.tables() {
        let table = db.table(&info.name)?;
        let mut records = BTreeMap::new();
        for record in &table {
            let (key, value) = record?;
            let twice = records.insert(key.to_vec(), value.to_vec());
            assert!(twice.is_none(), "iteration shows a key twice");
        }
        assert_eq!(
            table.len(),
            records.len() as u64,
            "the length of table {}",
            info.name
        );
        for key in (0..KEYS).map(key) {
            let value = table.get(&key)?;
            assert_eq!(
                value.as_deref(),
                records.get(&key).map(Vec::as_slice),
                "get against iteration"
            );
        }
        model.insert(info.name, records);
    }
    Ok(model)
}

/// Reason for which an operation failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine returned an error, which is permitted if the disk fails.
    Refused(microdb::Error),
    /// The engine broke a promise. The text describes it.
    Wrong(String),
}

impl From<microdb::Error> for Failure {
    fn from(error: microdb::Error) -> Self {
        Self::Refused(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => f.write_str(&chain(error)),
            Self::Wrong(reason) => f.write_str(reason),
        }
    }
}

/// One run of operations on a database, with its recorded histories and marks.
pub(crate) struct Run {
    pub(crate) disk: Disk,
    shape: Shape,
    db: Option<Db>,
    histories: Vec<Vec<Point>>,
    marks: Vec<Mark>,
    low: usize,
    /// All backups of the run, complete or incomplete.
    pub(crate) backups: Vec<Backup>,
    /// A copy that follows the change feed. `None` until an [`Op::Feed`] has read the feed from its
    /// beginning. `None` again after a crash that lost commits of the copy, and once the log has
    /// neither the next changes of the copy nor the first commits.
    follower: Option<Follower>,
    /// `true` if the log may no longer have all commits from the first on.
    compacted: bool,
}

impl Run {
    /// Opens the database on `disk`, which may be new or left by a crash. The database must be in
    /// one of the states `allowed`. The error describes the violation.
    pub(crate) fn open(disk: Disk, shape: Shape, allowed: &[Point]) -> Result<Self, String> {
        Self::try_open(disk, shape, allowed).map_err(|failure| format!("open: {failure}"))
    }

    /// Like [`Run::open`], on a disk that may fail.
    pub(crate) fn try_open(disk: Disk, shape: Shape, allowed: &[Point]) -> Result<Self, Failure> {
        let mut run = Self {
            compacted: disk.position() > 0 || !disk.image().files().is_empty(),
            disk,
            shape,
            db: None,
            histories: vec![allowed.to_vec()],
            marks: Vec::new(),
            low: 0,
            backups: Vec::new(),
            follower: None,
        };
        run.mark();
        run.reopen()?;
        Ok(run)
    }

    /// Returns the permitted states of a database that does not exist yet.
    pub(crate) fn nothing() -> Vec<Point> {
        vec![Point {
            sequence: Sequence::ZERO,
            model: Arc::default(),
        }]
    }

    pub(crate) fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    /// Returns `true` if the database is open. The database is not open after a close or a failed
    /// open.
    pub(crate) fn is_open(&self) -> bool {
        self.db.is_some()
    }

    pub(crate) fn history(&self) -> &[Point] {
        self.histories.last().unwrap()
    }

    pub(crate) fn last(&self) -> &Point {
        self.history().last().unwrap()
    }

    fn mark(&mut self) {
        let (history, high) = (self.histories.len() - 1, self.history().len() - 1);
        self.marks.push(Mark {
            at: self.disk.position(),
            history,
            low: self.low,
            high,
        });
    }

    /// Returns the states that a crash after the first `at` events may leave.
    pub(crate) fn allowed(&self, at: usize) -> &[Point] {
        let mark = self.marks.iter().rev().find(|mark| mark.at <= at).unwrap();
        &self.histories[mark.history][mark.low..=mark.high]
    }

    /// Records that all commits so far are acknowledged as durable.
    fn durable(&mut self) {
        self.low = self.history().len() - 1;
        self.mark();
    }

    /// Opens the database and compares it with the permitted states. The state found becomes the
    /// end of the history. This state is durable, because an open makes the content durable before
    /// it is visible.
    pub(crate) fn reopen(&mut self) -> Result<(), Failure> {
        let db = self.shape.options(&self.disk).open(ROOT)?;
        let found = self.found(&db).map_err(Failure::Wrong)?;
        let mut history = self.history().to_vec();
        history.truncate(found + 1);
        self.histories.push(history);
        self.low = found;
        if self
            .follower
            .as_ref()
            .is_some_and(|follower| follower.sequence > db.sequence())
        {
            // The follower has applied commits that were visible but not durable, and that the
            // crash has lost.
            self.follower = None;
        }
        self.db = Some(db);
        self.mark();
        Ok(())
    }

    /// Returns the index of the history's point that the newly opened database matches.
    fn found(&self, db: &Db) -> Result<usize, String> {
        let model = read(db).map_err(|error| format!("read: {}", chain(&error)))?;
        let sequence = db.sequence();
        if db.recovery().sequence != sequence {
            return Err(format!(
                "recovery says {:?}, the database {sequence}",
                db.recovery()
            ));
        }
        let found = self
            .history()
            .iter()
            .skip(self.low)
            .position(|point| *point.model == model);
        let Some(found) = found.map(|index| index + self.low) else {
            let known = self.history().iter().position(|point| *point.model == model);
            let allowed: Vec<_> = self.history()[self.low..]
                .iter()
                .map(|point| point.sequence)
                .collect();
            return Err(format!(
                "found sequence {sequence} (state {known:?} of the history), allowed are {} to {}, sequences {allowed:?}\n\
                 found {}\nallowed first {}\nallowed last {}\n{:?}",
                self.low,
                self.history().len() - 1,
                shown(&model),
                shown(&self.history()[self.low].model),
                shown(&self.last().model),
                db.recovery(),
            ));
        };
        // Commits without a change leave equal contents, which differ only in their sequence
        // numbers.
        let same = |point: &Point| point.sequence == sequence && *point.model == model;
        let exact = self.history().iter().skip(found).position(same);
        exact
            .map(|index| index + found)
            .ok_or_else(|| format!("the state of point {found} with sequence {sequence}"))
    }

    /// Closes the database, which makes all commits durable.
    pub(crate) fn close(&mut self) -> Result<(), Failure> {
        let db = self.db.take().unwrap();
        db.close()?;
        self.durable();
        Ok(())
    }

    /// Executes one operation on a disk that does not fail. The error describes the broken promise.
    pub(crate) fn step(&mut self, op: &Op) -> Result<(), String> {
        self.try_step(op).map_err(|failure| format!("{op:?}: {failure}"))
    }

    /// Like [`Run::step`], on a disk that may fail.
    pub(crate) fn try_step(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Reopen => {
                self.close()?;
                self.reopen()
            }
            Op::Kill => {
                let next = self.disk.kill();
                self.db = None;
                self.disk = next;
                self.reopen()
            }
            Op::Feed => self.feed(),
            _ => Ok(self.change(op)?),
        }
    }

    /// Checks that the change feed matches the commits, from the beginning and for the follower.
    fn feed(&mut self) -> Result<(), Failure> {
        let db = self.db().clone();
        let model = self.last().model.clone();
        let mut fresh = Follower::default();
        let from_the_start = fresh.catch_up(&db, &model)?;
        if !from_the_start && !self.compacted {
            return Err(Failure::Wrong(
                "the feed has no beginning, and nothing was compacted".to_owned(),
            ));
        }
        let goes_on = match &mut self.follower {
            Some(follower) => Some(follower.catch_up(&db, &model)?),
            None => None,
        };
        if goes_on == Some(false) && !self.compacted {
            let reason = "the feed goes on too late, and nothing was compacted".to_owned();
            return Err(Failure::Wrong(reason));
        }
        if goes_on != Some(true) {
            self.follower = from_the_start.then_some(fresh);
        }
        Ok(())
    }

    fn change(&mut self, op: &Op) -> microdb::Result<()> {
        let (db, before) = (self.db().clone(), self.last().model.clone());
        let has = |table: &usize| before.contains_key(TABLES[*table]);
        match op {
            Op::Batch(changes, durability) => self.batch(changes, *durability)?,
            Op::Make(table) if !has(table) => {
                let name = TABLES[*table];
                self.commit(
                    true,
                    |model| _ = model.insert(name.to_owned(), BTreeMap::new()),
                    || db.table(name).map(drop),
                )?;
            }
            Op::Drop(table) if has(table) => {
                let name = TABLES[*table];
                self.commit(true, |model| _ = model.remove(name), || db.drop_table(name))?;
            }
            Op::Clear(table) if has(table) => {
                let name = TABLES[*table];
                let clear = |model: &mut Model| model.get_mut(name).unwrap().clear();
                self.commit(true, clear, || db.table(name)?.clear())?;
            }
            Op::Rename(from, to) if has(from) && !has(to) => {
                let (from, to) = (TABLES[*from], TABLES[*to]);
                let rename = |model: &mut Model| {
                    let records = model.remove(from).unwrap();
                    model.insert(to.to_owned(), records);
                };
                self.commit(true, rename, || db.rename_table(from, to))?;
            }
            Op::Sync => {
                db.sync()?;
                self.durable();
            }
            // Checkpoint and compaction do not change the content, also with a power cut during
            // their work.
            Op::Checkpoint => db.checkpoint()?,
            Op::Compact => {
                self.compacted = true;
                db.compact()?;
            }
            Op::Backup => {
                let number = self.backups.len();
                // No folder is used twice in this process, because the disk may still have a backup
                // of an earlier run that a crash has ended.
                static BACKUPS: AtomicU64 = AtomicU64::new(0);
                let path = format!("/copies/{}", BACKUPS.fetch_add(1, Ordering::Relaxed));
                self.backups
                    .push(Backup::begun(&path, self.last(), self.disk.position()));
                db.backup_to(&path)?;
                self.backups[number].done(self.disk.position());
                // The content of the backup is durable, so the same content of the original must be
                // durable too.
                self.durable();
            }
            Op::Make(_) | Op::Drop(_) | Op::Clear(_) | Op::Rename(..) | Op::Feed | Op::Reopen | Op::Kill => {}
        }
        assert_eq!(db.sequence(), self.last().sequence);
        Ok(())
    }

    /// Executes and records a commit. From its beginning on, the commit may survive a crash. If
    /// `durable` is `true`, it must survive once it is acknowledged.
    fn commit(
        &mut self,
        durable: bool,
        change: impl FnOnce(&mut Model),
        commit: impl FnOnce() -> microdb::Result<()>,
    ) -> microdb::Result<()> {
        let last = self.last();
        let (sequence, mut model) = (last.sequence + 1, (*last.model).clone());
        change(&mut model);
        self.histories.last_mut().unwrap().push(Point {
            sequence,
            model: Arc::new(model),
        });
        self.mark();
        let committed = commit();
        if committed
            .as_ref()
            .is_err_and(|error| !matches!(error, microdb::Error::Poisoned { .. }))
        {
            // The commit was refused and the handle is not poisoned. So nothing of the commit may
            // ever be visible.
            let mut history = self.history().to_vec();
            history.pop();
            self.histories.push(history);
            self.mark();
        }
        committed?;
        if durable {
            self.durable();
        }
        Ok(())
    }

    fn batch(&mut self, changes: &[Change], durability: Durability) -> microdb::Result<()> {
        let used: BTreeSet<usize> = changes.iter().map(Change::table).collect();
        for table in &used {
            if !self.last().model.contains_key(TABLES[*table]) {
                self.change(&Op::Make(*table))?;
            }
        }
        let db = self.db().clone();
        let mut batch = db.batch();
        for change in changes {
            let table = db.table(TABLES[change.table()])?;
            match change {
                Change::Put(_, key, value) => batch.put(&table, key, value),
                Change::Delete(_, key) => batch.delete(&table, key),
            }
        }
        let apply = |model: &mut Model| changes.iter().for_each(|change| change.apply(model));
        self.commit(durability == Durability::Sync, apply, || {
            batch.commit_with(durability).map(drop)
        })
    }
}

impl Change {
    fn table(&self) -> usize {
        match self {
            Self::Put(table, ..) | Self::Delete(table, _) => *table,
        }
    }

    fn apply(&self, model: &mut Model) {
        let records = model.get_mut(TABLES[self.table()]).unwrap();
        match self {
            Self::Put(_, key, value) => _ = records.insert(key.clone(), value.clone()),
            Self::Delete(_, key) => _ = records.remove(key),
        }
    }
}

/// Returns the text of an error and of all its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// Returns a model as a short text: keys with the beginnings of their values.
pub(crate) fn shown(model: &Model) -> String {
    let records = |records: &BTreeMap<Vec<u8>, Vec<u8>>| {
        let record = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            format!(
                "{}={}",
                key.escape_ascii(),
                value[..value.len().min(14)].escape_ascii()
            )
        };
        records.iter().map(record).collect::<Vec<_>>().join(" ")
    };
    model
        .iter()
        .map(|(name, table)| format!("{name}{{{}}}", records(table)))
        .collect::<Vec<_>>()
        .join(" ")
}
