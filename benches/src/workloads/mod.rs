//! The workloads. Each runs in a process of its own and returns a measurement for each row of the
//! table that it measures.
//!
//! The loaded database is the result of [`Workload::Load`]. Reading workloads use the loaded
//! database, and workloads that change it get a copy. All others start with an empty folder.

mod bounds;
mod rates;
mod watch;
mod whole;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use self::watch::{Spent, Watch};
use crate::Outcome;
use crate::data::{KEY_BYTES, Values};
use crate::engines::{Engine, EngineName, Setup, Unsupported};

/// Sizes in bytes of the key (product and store) and the value (quantity) of a row, in the
/// workloads that replace all rows. The stock of the order management has such rows.
const ROW_BYTES: (usize, usize) = (8, 4);

/// The workloads, with their names on the command line.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Store all records in batches of at most 1,000 in an empty database, with one sync at the
    /// end.
    Load,
    /// Single buffered puts into an empty database, one thread.
    #[value(name = "put-1")]
    #[serde(rename = "put-1")]
    Put1,
    /// Single buffered puts into an empty database, two threads.
    #[value(name = "put-2")]
    #[serde(rename = "put-2")]
    Put2,
    /// Durable puts, one thread.
    #[value(name = "durable-1")]
    #[serde(rename = "durable-1")]
    Durable1,
    /// Durable puts, 32 threads.
    #[value(name = "durable-32")]
    #[serde(rename = "durable-32")]
    Durable32,
    /// Random gets, one thread.
    #[value(name = "get-1")]
    #[serde(rename = "get-1")]
    Get1,
    /// Random gets, two threads.
    #[value(name = "get-2")]
    #[serde(rename = "get-2")]
    Get2,
    /// Random gets, 64 keys per call, one thread.
    MultiGet,
    /// Gets of absent keys, one thread.
    Absent,
    /// YCSB A: half reads, half updates, zipf 0.99, two threads.
    YcsbA,
    /// YCSB B: 95 % reads, 5 % updates, zipf 0.99, two threads.
    YcsbB,
    /// Open a cleanly closed database and read one record.
    Open,
    /// Open after kill -9 of a process that made up to 200,000 overwrites and synced the first half
    /// of them, and read one record.
    OpenKilled,
    /// Disk usage after load, after overwriting everything twice, and after compaction.
    Disk,
    /// Peak disk usage while everything is overwritten twice at full speed, and the usage one
    /// second later.
    Overwrite,
    /// Open, write for a random time and close, 100 times.
    CloseOpen,
    /// One counter incremented in durable transactions by 32 threads.
    HotCounter,
    /// Memory (or file size) of the index.
    Memory,
    /// Read every record once.
    Scan,
    /// Replace all rows of 8 + 4 bytes in one durable commit, in key order.
    ReplaceSorted,
    /// Replace all rows of 8 + 4 bytes in one durable commit, in random order.
    ReplaceShuffled,
    /// Load and random gets, values of 16 bytes.
    #[value(name = "size-16")]
    #[serde(rename = "size-16")]
    Size16,
    /// Load and random gets, values of 1 KiB.
    #[value(name = "size-1k")]
    #[serde(rename = "size-1k")]
    Size1k,
    /// Load and random gets, values of 64 KiB.
    #[value(name = "size-64k")]
    #[serde(rename = "size-64k")]
    Size64k,
}

/// The database with which a workload starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Start {
    /// No database. The workload creates one in an empty folder.
    Empty,
    /// The loaded database. The workload does not change its records.
    Loaded,
    /// A copy of the loaded database.
    Copy,
}

impl Workload {
    /// Returns the database with which the workload starts.
    #[must_use]
    pub const fn start(self) -> Start {
        match self {
            Self::Get1 | Self::Get2 | Self::MultiGet | Self::Absent | Self::Open | Self::Scan => {
                Start::Loaded
            }
            Self::YcsbA | Self::YcsbB | Self::OpenKilled | Self::Disk | Self::Overwrite | Self::CloseOpen => {
                Start::Copy
            }
            _ => Start::Empty,
        }
    }

    /// Returns the name of the workload on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// The task that the parent gives to one child process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Task {
    /// The engine to measure.
    pub engine: EngineName,
    /// The workload to run.
    pub workload: Workload,
    /// `true` to overwrite records and then wait until the parent kills this process, instead of
    /// measuring (the preparation of [`Workload::OpenKilled`]).
    pub until_killed: bool,
    /// Folder with the engine's database.
    pub folder: PathBuf,
    /// Number of records that the database has, or that the workload loads.
    pub records: u64,
    /// Size of a value in bytes.
    pub value_bytes: usize,
    /// Time for which operations are repeated to measure their rate, in seconds. Puts end earlier
    /// if all records are stored.
    pub seconds: f64,
    /// Number of the repetition, which is part of the seed of the random choices. So a repetition
    /// draws other records than an earlier repetition, and does not find all of them in the caches.
    pub repetition: u64,
}

impl Task {
    fn open(&self, durable: bool) -> Outcome<Box<dyn Engine>> {
        let data_bytes = self.records * (KEY_BYTES + self.value_bytes) as u64;
        self.engine.open(&self.folder, Setup { durable, data_bytes })
    }

    fn values(&self) -> Values {
        Values::new(self.value_bytes)
    }
}

/// The figure of one row, measured by one child.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measurement {
    /// Identifier of the row of the table.
    pub row: String,
    /// The figure, in the row's unit.
    pub value: f64,
    /// Processor time of the child per operation, in microseconds. `None` unless the figure is a
    /// rate.
    pub cpu_us: Option<f64>,
    /// Share of the machine's processors that others used ([`Spent::others`]). Only rates and the
    /// times of [`Workload::Open`], [`Workload::OpenKilled`] and the replacements have it.
    pub others: Option<f64>,
    /// Peak anonymous memory of the process, in MiB; see [`crate::peaks`]. The parent measures it,
    /// so it is `None` in the answer of the child.
    #[serde(default)]
    pub peak_anonymous_mib: Option<f64>,
    /// Peak disk usage of the database's folder, in MiB; see [`crate::peaks`]. The parent measures
    /// it, so it is `None` in the answer of the child.
    #[serde(default)]
    pub peak_disk_mib: Option<f64>,
}

impl Measurement {
    fn plain(row: &str, value: f64) -> Self {
        Self {
            row: row.to_owned(),
            value,
            cpu_us: None,
            others: None,
            peak_anonymous_mib: None,
            peak_disk_mib: None,
        }
    }

    /// Creates a measurement in operations per second.
    fn rate(row: &str, operations: u64, spent: &Spent) -> Self {
        Self {
            row: row.to_owned(),
            value: operations as f64 / spent.seconds,
            cpu_us: Some(spent.cpu_seconds * 1e6 / operations.max(1) as f64),
            others: Some(spent.others),
            ..Self::plain(row, 0.0)
        }
    }

    /// Creates a measurement of the time of the whole work, in seconds.
    fn seconds(row: &str, spent: &Spent) -> Self {
        Self {
            row: row.to_owned(),
            value: spent.seconds,
            others: Some(spent.others),
            ..Self::plain(row, 0.0)
        }
    }
}

/// The answer of a child to its task.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The measured figures.
    Measured(Vec<Measurement>),
    /// The engine does not support this workload, for this reason.
    Unsupported(String),
}

/// Runs a task in this process. Does not return after the writes of [`Task::until_killed`].
///
/// # Errors
/// Returns the engine's error, or an error if the work has a wrong result, such as an absent record
/// or a wrong value.
pub fn run(task: &Task) -> Outcome<Answer> {
    if task.until_killed {
        return whole::write_until_killed(task);
    }
    let measured = match task.workload {
        Workload::Load => whole::load(task),
        Workload::Put1 => rates::put(task, "put-1", 1, false),
        Workload::Put2 => rates::put(task, "put-2", 2, false),
        Workload::Durable1 => rates::put(task, "durable-1", 1, true),
        Workload::Durable32 => rates::put(task, "durable-32", 32, true),
        Workload::Get1 => rates::get(task, "get-1", 1),
        Workload::Get2 => rates::get(task, "get-2", 2),
        Workload::MultiGet => rates::multi_get(task),
        Workload::Absent => rates::absent(task),
        Workload::YcsbA => rates::ycsb(task, "ycsb-a", 50),
        Workload::YcsbB => rates::ycsb(task, "ycsb-b", 5),
        Workload::Open => whole::open(task, "open"),
        Workload::OpenKilled => whole::open(task, "open-killed"),
        Workload::Disk => whole::disk(task),
        Workload::Overwrite => bounds::overwrite(task),
        Workload::CloseOpen => bounds::close_open(task),
        Workload::HotCounter => rates::hot_counter(task),
        Workload::Memory => whole::memory(task),
        Workload::Scan => whole::scan(task),
        Workload::ReplaceSorted => whole::replace(task, "replace-sorted", false),
        Workload::ReplaceShuffled => whole::replace(task, "replace-shuffled", true),
        Workload::Size16 => whole::size(task, "16", 16),
        Workload::Size1k => whole::size(task, "1k", 1 << 10),
        Workload::Size64k => whole::size(task, "64k", 64 << 10),
    };
    match measured {
        Ok(measurements) => Ok(Answer::Measured(measurements)),
        Err(error) => match error.downcast::<Unsupported>() {
            Ok(unsupported) => Ok(Answer::Unsupported(unsupported.0.to_owned())),
            Err(error) => Err(error),
        },
    }
}
