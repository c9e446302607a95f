//! The rows of the engine table: the results with which the program `engine` compares microdb with
//! other engines (its rivals). Most rows have a goal for microdb's figure. The others are for
//! comparison.
//!
//! Goals are ratios to a rival or to a limit of the machine measured in the same run, or absolute
//! figures. Absolute goals are for figures that do not depend on the machine's speed (bytes,
//! counts) and for times and rates that users notice directly (time to open).

use crate::workloads::Workload;

/// The unit of a row's figures. The unit also decides if more or less is better.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Operations per second, shown in thousands; more is better.
    Rate,
    /// Milliseconds; less is better.
    Milliseconds,
    /// Seconds; less is better.
    Seconds,
    /// MiB; less is better.
    Mib,
    /// Bytes per key; less is better.
    BytesAKey,
    /// Flushes per put; less is better.
    Flushes,
    /// KiB read from the disk per get; less is better.
    KibAGet,
    /// Page faults with a disk read per get; less is better.
    FaultsAGet,
    /// A number without unit; less is better.
    Count,
}

impl Unit {
    /// Returns the name of the unit in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rate => "k/s",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::Mib => "MiB",
            Self::BytesAKey => "B/key",
            Self::Flushes => "a put",
            Self::KibAGet => "KiB a get",
            Self::FaultsAGet => "a get",
            Self::Count => "number",
        }
    }

    /// Formats a figure in this unit.
    #[must_use]
    pub fn show(self, value: f64) -> String {
        let value = if self == Self::Rate { value / 1e3 } else { value };
        match value {
            0.0.. if value >= 99.95 => format!("{value:.0}"),
            _ if value >= 9.995 => format!("{value:.1}"),
            _ if value >= 0.0995 => format!("{value:.2}"),
            _ => format!("{value:.3}"),
        }
    }

    /// Returns `true` if a larger figure is better.
    #[must_use]
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::Rate)
    }
}

/// The goal of microdb in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At least this factor times the figure of the best rival.
    TimesBest(f64),
    /// At least this factor times the figure of this rival.
    TimesRival(&'static str, f64),
    /// At least this factor times this limit of the machine (a name in `machine::LIMITS`), and a
    /// better figure than every rival.
    TimesLimitAndBest(&'static str, f64),
    /// At most this figure.
    AtMost(f64),
    /// At most this figure for 2,000,000 records, each with a key of 16 bytes and a value of 100
    /// bytes. For other loads, the limit is scaled in proportion to the bytes of all keys and
    /// values.
    AtMostScaled(f64),
    /// At least this figure.
    AtLeast(f64),
    /// No goal. The row is shown for comparison.
    None,
}

/// A row of the engine table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Identifier of the row in measurements and results.
    pub id: &'static str,
    /// The workload that measures the row.
    pub workload: Workload,
    /// The text of the row in the table.
    pub label: &'static str,
    /// The unit of the figures.
    pub unit: Unit,
    /// The goal of microdb in this row.
    pub goal: Goal,
}

const fn row(id: &'static str, workload: Workload, label: &'static str, unit: Unit, goal: Goal) -> Row {
    Row {
        id,
        workload,
        label,
        unit,
        goal,
    }
}

/// All rows of the engine table, in their order.
pub const ROWS: [Row; 36] = {
    use Goal::{AtLeast, AtMost, AtMostScaled, None, TimesBest, TimesLimitAndBest, TimesRival};
    use Unit::{BytesAKey, Count, FaultsAGet, Flushes, KibAGet, Mib, Milliseconds, Rate, Seconds};
    use Workload as W;
    [
        row(
            "load",
            W::Load,
            "load, batches of 1,000, one sync at the end",
            Rate,
            TimesBest(3.0),
        ),
        row("put-1", W::Put1, "buffered puts, 1 thread", Rate, TimesBest(2.5)),
        row("put-2", W::Put2, "buffered puts, 2 threads", Rate, TimesBest(2.0)),
        row(
            "durable-1",
            W::Durable1,
            "durable puts, 1 thread",
            Rate,
            TimesLimitAndBest("sync-in-place", 0.9),
        ),
        row(
            "durable-1-flushes",
            W::Durable1,
            "flushes of the same",
            Flushes,
            None,
        ),
        row(
            "durable-32",
            W::Durable32,
            "durable puts, 32 threads",
            Rate,
            TimesRival("rocksdb", 2.0),
        ),
        row(
            "durable-32-flushes",
            W::Durable32,
            "flushes of the same",
            Flushes,
            AtMost(0.04),
        ),
        row(
            "get-1",
            W::Get1,
            "random gets, 1 thread",
            Rate,
            TimesRival("lmdb", 1.7),
        ),
        row("get-1-read", W::Get1, "read from the disk for it", KibAGet, None),
        row(
            "get-1-faults",
            W::Get1,
            "disk reads through the map for it",
            FaultsAGet,
            AtMost(2.0),
        ),
        row(
            "get-2",
            W::Get2,
            "random gets, 2 threads",
            Rate,
            TimesRival("lmdb", 1.7),
        ),
        row(
            "multi-get",
            W::MultiGet,
            "`multi_get` of 64 keys, 1 thread",
            Rate,
            TimesRival("lmdb", 4.0),
        ),
        row(
            "absent",
            W::Absent,
            "gets of absent keys, 1 thread",
            Rate,
            TimesRival("candystore", 1.3),
        ),
        row(
            "ycsb-a",
            W::YcsbA,
            "YCSB A (50 % updates, zipf 0.99), 2 threads",
            Rate,
            TimesBest(5.0),
        ),
        row(
            "ycsb-b",
            W::YcsbB,
            "YCSB B (5 % updates, zipf 0.99), 2 threads",
            Rate,
            TimesBest(2.0),
        ),
        row(
            "open",
            W::Open,
            "clean open and first get",
            Milliseconds,
            AtMost(3.0),
        ),
        row(
            "open-killed",
            W::OpenKilled,
            "open after kill -9 and first get",
            Milliseconds,
            AtMost(60.0),
        ),
        row(
            "disk-loaded",
            W::Disk,
            "disk after load",
            Mib,
            AtMostScaled(260.0),
        ),
        row(
            "disk-overwritten",
            W::Disk,
            "disk after two overwrites",
            Mib,
            AtMostScaled(380.0),
        ),
        row(
            "disk-compacted",
            W::Disk,
            "disk after compaction",
            Mib,
            AtMostScaled(250.0),
        ),
        row(
            "memory",
            W::Memory,
            "memory for the index",
            BytesAKey,
            AtMost(12.0),
        ),
        row(
            "overwrite-peak",
            W::Overwrite,
            "peak disk during two overwrites at full speed",
            Mib,
            AtMostScaled(480.0),
        ),
        row(
            "overwrite-later",
            W::Overwrite,
            "disk one second after them",
            Mib,
            AtMostScaled(380.0),
        ),
        row(
            "close-open",
            W::CloseOpen,
            "open after a close at any moment, median of 100",
            Milliseconds,
            AtMost(3.0),
        ),
        row(
            "close-open-worst",
            W::CloseOpen,
            "the slowest of them",
            Milliseconds,
            AtMost(3.0),
        ),
        row(
            "hot-counter",
            W::HotCounter,
            "one counter, durable transactions, 32 threads",
            Rate,
            TimesRival("redb", 1.0),
        ),
        row(
            "hot-counter-refused",
            W::HotCounter,
            "transactions refused for a conflict",
            Count,
            AtMost(0.0),
        ),
        row("scan", W::Scan, "full scan", Rate, AtLeast(10e6)),
        row(
            "replace-sorted",
            W::ReplaceSorted,
            "all rows of 8 + 4 bytes replaced, sorted",
            Seconds,
            AtMost(0.35),
        ),
        row(
            "replace-shuffled",
            W::ReplaceShuffled,
            "the same, shuffled",
            Seconds,
            AtMost(0.35),
        ),
        row("load-16", W::Size16, "load, values of 16 B", Rate, None),
        row("get-16", W::Size16, "random gets, values of 16 B", Rate, None),
        row("load-1k", W::Size1k, "load, values of 1 KiB", Rate, None),
        row("get-1k", W::Size1k, "random gets, values of 1 KiB", Rate, None),
        row("load-64k", W::Size64k, "load, values of 64 KiB", Rate, None),
        row("get-64k", W::Size64k, "random gets, values of 64 KiB", Rate, None),
    ]
};
