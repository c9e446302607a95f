//! The work of a child process, and the start of such processes.
//!
//! An engine runs only in a child, so a crash of the engine does not end the parent.

use std::io::{BufRead as _, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use imt_benches::Outcome;
use imt_benches::data::{KEY_BYTES, Values, key};
use imt_benches::engines::{Access, Engine, EngineName, Records, Session, Setup, Unsupported};
use serde::{Deserialize, Serialize};

use crate::traced;

/// Size of a value in bytes.
const VALUE_BYTES: usize = 100;
/// Bound of the data for engines that choose the size of their memory map when they open. No
/// database of this program has more bytes of keys and values.
const DATA_BYTES: u64 = 16 << 20;

/// The work of a child.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Task {
    /// Stores new records in durable commits, and prints "stored" at the end.
    Fill {
        engine: EngineName,
        folder: PathBuf,
        records: Range<u64>,
        per_commit: u64,
        /// Compact the database after the first half of the records, if the engine can, and open it
        /// again for the second half.
        compact: bool,
        /// Leave the database open until the parent kills this process.
        until_killed: bool,
    },
    /// Opens a database, reads the expected records, and prints a [`Reading`].
    Read {
        engine: EngineName,
        folder: PathBuf,
        expected: Expected,
    },
    /// Installs the filter of [`traced`], opens a database, and obeys the [`Order`]s of the parent.
    Serve { engine: EngineName, folder: PathBuf },
}

/// A line from the parent to a serving child, as JSON.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Order {
    /// Store new records in one durable commit. The reply is a [`Reply`].
    Commit(Range<u64>),
    /// Read records. The reply is a [`Reading`].
    Read(Expected),
    /// Close the database. The reply is a [`Reply`].
    Close,
}

/// The reply to the open, to [`Order::Commit`] and to [`Order::Close`], as JSON: `None` for a
/// success, or the text of an error.
pub(crate) type Reply = Option<String>;

/// The records that a database must have, and those that it may have.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Expected {
    /// Records of acknowledged commits.
    pub(crate) sure: Vec<Range<u64>>,
    /// The records of commits that were not acknowledged. Of each range, all or no records should
    /// be present. A range is a commit, or one record if its commit may be present in part.
    pub(crate) unsure: Vec<Range<u64>>,
}

impl Expected {
    /// Returns the first `count` records as sure ones.
    pub(crate) fn first(count: u64) -> Self {
        let mut expected = Self::default();
        expected.add_sure(0..count);
        expected
    }

    /// Adds the records of an acknowledged commit.
    pub(crate) fn add_sure(&mut self, records: Range<u64>) {
        match self.sure.last_mut() {
            Some(last) if last.end == records.start => last.end = records.end,
            _ => self.sure.push(records),
        }
    }
}

/// The result of reading a database.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Reading {
    /// The error of the open or of the session. If it is set, nothing was read.
    pub(crate) refused: Option<String>,
    /// The engine's own statement that its open dropped data. `None` if the engine made none.
    pub(crate) dropped: Option<String>,
    /// Number of sure records with their value.
    pub(crate) right: u64,
    /// Number of records with another value than the one that was stored.
    pub(crate) wrong: u64,
    /// Number of sure records that the engine does not find.
    pub(crate) absent: u64,
    /// Number of reads that returned an error.
    pub(crate) errors: u64,
    /// Number of unsure ranges of which some but not all records were read with their value.
    pub(crate) partial: u64,
    /// The text of the first error of a read.
    pub(crate) first_error: Option<String>,
}

/// Returns the command that runs a task in a child.
pub(crate) fn command(task: &Task) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--child")
        .arg(serde_json::to_string(task)?)
        .env("RUST_BACKTRACE", "0");
    Ok(command)
}

/// Performs a task in this process.
pub(crate) fn run(task: Task) -> Outcome<()> {
    match task {
        Task::Fill {
            engine,
            folder,
            records,
            per_commit,
            compact,
            until_killed,
        } => {
            let mut db = engine.open(&folder, SETUP)?;
            if compact {
                // The first half is stored before the compaction and the second half after it.
                let middle = records.start.midpoint(records.end);
                fill(&*db, records.start..middle, per_commit)?;
                match db.compact() {
                    Err(error) if !error.is::<Unsupported>() => return Err(error),
                    _ => (),
                }
                drop(db);
                db = engine.open(&folder, SETUP)?;
                fill(&*db, middle..records.end, per_commit)?;
            } else {
                fill(&*db, records, per_commit)?;
            }
            say("stored")?;
            if until_killed {
                loop {
                    std::thread::park();
                }
            }
        }
        Task::Read {
            engine,
            folder,
            expected,
        } => {
            say(&serde_json::to_string(&open_and_read(
                engine, &folder, &expected,
            ))?)?;
            // The database is not closed: only its open and its reads are judged.
            std::process::exit(0);
        }
        Task::Serve { engine, folder } => serve(engine, &folder)?,
    }
    Ok(())
}

const SETUP: Setup = Setup {
    durable: true,
    data_bytes: DATA_BYTES,
};

fn say(line: &str) -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn fill(db: &dyn Engine, records: Range<u64>, per_commit: u64) -> Outcome<()> {
    let values = Values::new(VALUE_BYTES);
    let mut session = db.session(Access::ReadWrite)?;
    for from in records.clone().step_by(per_commit as usize) {
        commit(&mut *session, &values, from..(from + per_commit).min(records.end))?;
    }
    Ok(())
}

fn commit(session: &mut dyn Session, values: &Values, records: Range<u64>) -> Outcome<()> {
    let mut batch = Records::new(KEY_BYTES);
    for index in records {
        batch.push(&key(index), values.value(index, 0));
    }
    session.put_batch(&batch)
}

fn open_and_read(engine: EngineName, folder: &std::path::Path, expected: &Expected) -> Reading {
    let refused = |error: &dyn std::fmt::Display| Reading {
        refused: Some(error.to_string()),
        ..Reading::default()
    };
    // The engine stays open until the process ends.
    let db: &'static dyn Engine = match engine.open(folder, SETUP) {
        Ok(db) => Box::leak(db),
        Err(error) => return refused(&error),
    };
    match db.session(Access::ReadWrite) {
        Ok(mut session) => Reading {
            dropped: db.dropped(),
            ..read(&mut *session, expected)
        },
        Err(error) => refused(&error),
    }
}

fn read(session: &mut dyn Session, expected: &Expected) -> Reading {
    let values = Values::new(VALUE_BYTES);
    let mut reading = Reading::default();
    // Returns `Some(true)` if the record is present with its value, `Some(false)` if it is absent,
    // and `None` after an error or a wrong value.
    let mut found = |reading: &mut Reading, index: u64| {
        let mut is_right = true;
        let found = session.get(&key(index), &mut |value| {
            is_right = value == values.value(index, 0);
        });
        match found {
            Ok(true) if !is_right => reading.wrong += 1,
            Ok(present) => return Some(present),
            Err(error) => {
                reading.errors += 1;
                reading.first_error.get_or_insert_with(|| error.to_string());
            }
        }
        None
    };
    for index in expected.sure.iter().cloned().flatten() {
        match found(&mut reading, index) {
            Some(true) => reading.right += 1,
            Some(false) => reading.absent += 1,
            None => (),
        }
    }
    for commit in expected.unsure.iter().cloned() {
        let all = commit.end - commit.start;
        let present = commit.filter(|index| found(&mut reading, *index) == Some(true));
        let present = present.count() as u64;
        reading.partial += u64::from(present > 0 && present < all);
    }
    reading
}

fn serve(engine: EngineName, folder: &std::path::Path) -> Outcome<()> {
    // The parent listens only after it has read this number. The write of the number itself is not
    // suspended, because descriptor 1 is not trapped.
    say(&traced::install()?.to_string())?;
    let one_line = |error: &dyn std::fmt::Display| error.to_string().replace('\n', " ");
    let reply = |result: Outcome<()>| {
        let reply: Reply = result.err().map(|error| one_line(&error));
        say(&serde_json::to_string(&reply)?)
    };
    let db = match engine.open(folder, SETUP) {
        Ok(db) => db,
        Err(error) => return reply(Err(error)),
    };
    let mut session = db.session(Access::ReadWrite)?;
    let values = Values::new(VALUE_BYTES);
    reply(Ok(()))?;
    for line in std::io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Order::Commit(records) => reply(commit(&mut *session, &values, records))?,
            Order::Read(expected) => {
                say(&serde_json::to_string(&read(&mut *session, &expected))?)?;
            }
            Order::Close => break,
        }
    }
    drop(session);
    drop(db);
    reply(Ok(()))
}
