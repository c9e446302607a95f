//! `imt db space`: reports on one page the use of space by each table.
//!
//! Invariants:
//! - The live bytes of a table come from MicroDb's counters. Its total bytes are the sum of its
//!   records in the log. The difference is the dead bytes: replaced and deleted records,
//!   tombstones and clear markers.
//! - A segment that a compaction removes while the report is made is left out. The report gives the
//!   number of such segments.

use super::key_types::DataType;
use super::show::{FormArgs, bar};
use super::{open, verdict};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::{Db, Stats, TableInfo, inspect};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Id of MicroDb's catalog, the table with the names of all tables.
const CATALOG: u32 = 0;

/// Arguments of `imt db space`.
#[derive(clap::Args)]
pub(crate) struct SpaceArgs {
    /// Folder of the database
    path: PathBuf,
    /// Number of listed keys and of listed values
    #[arg(short = 'n', long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(..=1000))]
    largest: u16,
    #[command(flatten)]
    form: FormArgs,
}

/// Use of space by one table.
#[derive(Serialize)]
struct TableSpace {
    table: String,
    keys: u64,
    live_bytes: u64,
    dead_bytes: u64,
    mean_record_bytes: u64,
}

/// One of the largest keys or values, with its table and sizes.
#[derive(Serialize)]
struct Large {
    table: String,
    key: String,
    key_bytes: usize,
    value_bytes: usize,
}

/// The report that the command prints. It is also the document of `--output json`.
#[derive(Serialize)]
struct Report {
    path: PathBuf,
    log_bytes: u64,
    live_bytes: u64,
    dead_bytes: u64,
    /// Bytes of the log outside the records that were read: headers and footers of frames and
    /// segments, unreadable bytes, and segments that were left out.
    frame_bytes: u64,
    /// Total size of all files in the database's folder, in bytes.
    folder_bytes: u64,
    directory_bytes: u64,
    bytes_to_free_at_most: u64,
    tables: Vec<TableSpace>,
    /// Bytes in the log that belong to dropped tables.
    dropped_tables_bytes: u64,
    largest_keys: Vec<Large>,
    largest_values: Vec<Large>,
    unreadable_records: u64,
    segments_left_out: u64,
    next_open_ms: f64,
    next_open_replays_bytes: u64,
}

pub(super) fn run(args: &SpaceArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let path = &args.path;
    let started = Instant::now();
    let db = open::to_look(path)?;
    let open_ms = started.elapsed().as_secs_f64() * 1_000.0;
    let report = report(args, &db, open_ms).map_err(|error| open::refused(path, error))?;
    output::print_either(output, &text(&report), &report)?;
    Ok(verdict(report.unreadable_records == 0))
}

fn report(args: &SpaceArgs, db: &Db, next_open_ms: f64) -> microdb::Result<Report> {
    let (stats, tables, recovery) = (db.stats(), db.tables(), db.recovery());
    let logged = Logged::read(&args.path, &stats)?;
    let largest = Largest::read(args, db, &tables)?;
    let space = |table: &TableInfo| TableSpace {
        table: table.name.clone(),
        keys: table.keys,
        live_bytes: table.live_bytes,
        dead_bytes: logged.of(table.id).saturating_sub(table.live_bytes),
        mean_record_bytes: table.live_bytes / table.keys.max(1),
    };
    let is_dropped = |id: &u32| *id != CATALOG && !tables.iter().any(|table| table.id == *id);
    let dropped = logged.bytes.iter().filter(|(id, _)| is_dropped(id));
    Ok(Report {
        path: args.path.clone(),
        log_bytes: stats.log_bytes,
        live_bytes: stats.live_bytes,
        dead_bytes: stats.dead_bytes,
        frame_bytes: stats.log_bytes.saturating_sub(logged.bytes.values().sum()),
        folder_bytes: folder_bytes(&args.path),
        directory_bytes: stats.directory_bytes,
        bytes_to_free_at_most: freed(&stats),
        tables: tables.iter().map(space).collect(),
        dropped_tables_bytes: dropped.map(|(_, bytes)| bytes).sum(),
        largest_keys: largest.keys,
        largest_values: largest.values,
        unreadable_records: largest.unreadable,
        segments_left_out: logged.left_out,
        next_open_ms,
        next_open_replays_bytes: recovery.bytes_replayed,
    })
}

/// Returns the maximum number of bytes that a compaction would free.
fn freed(stats: &Stats) -> u64 {
    let dead = stats
        .segments
        .iter()
        .map(|segment| segment.bytes - segment.live_bytes.min(segment.bytes));
    dead.sum()
}

/// Bytes of all records in the log, live and dead, by the id of the table.
#[derive(Default)]
struct Logged {
    bytes: HashMap<u32, u64>,
    left_out: u64,
}

impl Logged {
    fn read(path: &Path, stats: &Stats) -> microdb::Result<Self> {
        let mut logged = Self::default();
        let (mut display, mut done) = (Display::new(stats.log_bytes), 0);
        for segment in &stats.segments {
            let text = format!(
                "{} of {} read",
                output::bytes(done),
                output::bytes(stats.log_bytes)
            );
            display.show(done, stats.log_bytes, &text);
            done += segment.bytes;
            match inspect::segment(path, segment.id) {
                Ok(view) => {
                    for record in view.frames.iter().flat_map(|frame| &frame.records) {
                        *logged.bytes.entry(record.table).or_default() += record.bytes.len() as u64;
                    }
                }
                Err(microdb::Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    logged.left_out += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(logged)
    }

    fn of(&self, table: u32) -> u64 {
        self.bytes.get(&table).copied().unwrap_or(0)
    }
}

/// The largest keys and the largest values of all tables, and the number of unreadable records.
#[derive(Default)]
struct Largest {
    keys: Vec<Large>,
    values: Vec<Large>,
    unreadable: u64,
}

/// Candidate for the largest keys or values: the size to compare, the other size, the index of the
/// table, and the key. `Reverse` puts the smallest candidate at the top of the heap, where it can
/// be removed.
type Candidate = Reverse<(usize, usize, usize, Vec<u8>)>;

impl Largest {
    fn read(args: &SpaceArgs, db: &Db, tables: &[TableInfo]) -> microdb::Result<Self> {
        let limit = usize::from(args.largest);
        let (mut keys, mut values) = (BinaryHeap::<Candidate>::new(), BinaryHeap::<Candidate>::new());
        let mut unreadable = 0;
        let snapshot = db.snapshot();
        for (at, info) in tables.iter().enumerate() {
            let Some(table) = db.get_table(&info.name) else {
                continue;
            };
            for record in snapshot.iter(&table)? {
                let Ok((key, value)) = record else {
                    unreadable += 1;
                    continue;
                };
                keep(&mut keys, limit, (key.len(), value.len()), at, &key);
                keep(&mut values, limit, (value.len(), key.len()), at, &key);
            }
        }
        let form = |at: usize| args.form.form(DataType::of_keys(&tables[at]));
        let large = |at: usize, key: &[u8], key_bytes, value_bytes| Large {
            table: tables[at].name.clone(),
            key: form(at).key(&tables[at].name, key),
            key_bytes,
            value_bytes,
        };
        let sorted = |heap: BinaryHeap<Candidate>| heap.into_sorted_vec().into_iter();
        Ok(Self {
            keys: sorted(keys)
                .map(|Reverse((key_bytes, value_bytes, at, key))| large(at, &key, key_bytes, value_bytes))
                .collect(),
            values: sorted(values)
                .map(|Reverse((value_bytes, key_bytes, at, key))| large(at, &key, key_bytes, value_bytes))
                .collect(),
            unreadable,
        })
    }
}

/// Adds a candidate to the heap, which keeps only the `limit` largest ones.
fn keep(
    heap: &mut BinaryHeap<Candidate>,
    limit: usize,
    (size, other): (usize, usize),
    at: usize,
    key: &[u8],
) {
    let is_larger = || heap.peek().is_none_or(|Reverse((smallest, ..))| size > *smallest);
    if heap.len() < limit || (limit > 0 && is_larger()) {
        heap.push(Reverse((size, other, at, key.to_vec())));
    }
    if heap.len() > limit {
        heap.pop();
    }
}

/// Returns the total size of all files in a folder and its subfolders. A file or folder that cannot
/// be read counts as 0.
fn folder_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => folder_bytes(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    // The sum saturates, because sparse files may have any size.
    bytes.fold(0, u64::saturating_add)
}

fn text(report: &Report) -> String {
    let bytes = output::bytes;
    let share = |part: u64| part as f64 * 100.0 / report.log_bytes.max(1) as f64;
    let mut text = format!(
        "database   {}\nfiles      {}\nlog        {}\n  live     {} ({:.0} %) {}\n  dead     {} ({:.0} %), {} of it in headers of frames and segments\n\
         compaction frees up to {} (imt db compact)\ndirectory  {} of memory\nnext open  {:.0} ms, as long as this one took; {} of log are replayed\n",
        report.path.display(),
        bytes(report.folder_bytes),
        bytes(report.log_bytes),
        bytes(report.live_bytes),
        share(report.live_bytes),
        bar(report.live_bytes as f64 / report.log_bytes.max(1) as f64, 30),
        bytes(report.dead_bytes),
        share(report.dead_bytes),
        bytes(report.frame_bytes),
        bytes(report.bytes_to_free_at_most),
        bytes(report.directory_bytes),
        report.next_open_ms,
        bytes(report.next_open_replays_bytes),
    );
    let columns = ["table", "keys", "live", "dead", "log", "mean record"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    for table in &report.tables {
        rows.push(vec![
            table.table.clone(),
            table.keys.to_string(),
            bytes(table.live_bytes),
            bytes(table.dead_bytes),
            format!(
                "{:.0} %",
                share(table.live_bytes.saturating_add(table.dead_bytes))
            ),
            bytes(table.mean_record_bytes),
        ]);
    }
    if report.dropped_tables_bytes > 0 {
        let dead = report.dropped_tables_bytes;
        rows.push(vec![
            "(dropped tables)".to_owned(),
            "0".to_owned(),
            bytes(0),
            bytes(dead),
            format!("{:.0} %", share(dead)),
            "-".to_owned(),
        ]);
    }
    text.push_str(&format!("\n{}", output::table(&rows)));
    for (name, list) in [("keys", &report.largest_keys), ("values", &report.largest_values)] {
        if list.is_empty() {
            continue;
        }
        let mut rows = vec![
            ["table", "key bytes", "value bytes", "key"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(list.iter().map(|large| {
            vec![
                large.table.clone(),
                large.key_bytes.to_string(),
                large.value_bytes.to_string(),
                large.key.clone(),
            ]
        }));
        text.push_str(&format!("\nlargest {name}\n{}", output::table(&rows)));
    }
    if report.segments_left_out > 0 {
        text.push_str(&format!(
            "\n{} left out: a compaction removed them meanwhile\n",
            output::count(report.segments_left_out, "segment")
        ));
    }
    if report.unreadable_records > 0 {
        let records = output::count(report.unreadable_records, "record");
        let path = report.path.display();
        text.push_str(&format!(
            "\nDAMAGED: {records} cannot be read; imt db verify {path} lists the damage\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_in_order() {
        let mut heap = BinaryHeap::new();
        for (at, size) in [3, 9, 1, 7, 9, 2].into_iter().enumerate() {
            keep(&mut heap, 3, (size, 0), at, b"k");
        }
        let sizes: Vec<usize> = heap
            .into_sorted_vec()
            .into_iter()
            .map(|Reverse((size, ..))| size)
            .collect();
        assert_eq!(sizes, [9, 9, 7]);
        let mut none = BinaryHeap::new();
        keep(&mut none, 0, (5, 0), 0, b"k");
        assert!(none.is_empty());
    }
}
