//! `imt db import`: reads records from JSON lines in the format of `imt db export`.
//!
//! The message about a wrong line, a failed put or a failed commit tells which records are on disk,
//! as far as this is known. Invariants:
//!
//! - All lines of a regular file of `--from` are read and checked before the first record is put.
//! - Records are put in batches. The lines of standard input or of a pipe are checked only while
//!   the batches are put, so without `--clear` an error names the number of records that were put
//!   before the failure, or the maximum of this number.
//! - With `--clear`, records go to new tables, which replace the old ones in one commit at the end.
//!   An import that fails before this commit leaves the old tables as they were.
//! - A killed import with `--clear` may leave tables with names that begin with
//!   [`NEW_TABLE_PREFIX`]. The next import with `--clear` drops these tables.

use super::open;
use super::show::digits;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::{
    Batch, Db, Durability, Error, KEY_BYTES_MAX, Options, TABLE_NAME_BYTES_MAX, Table, VALUE_BYTES_MAX,
};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of keys and values after which a batch is committed.
const BATCH_BYTES: usize = 1 << 20;
/// Prefix of the names of tables that an import with `--clear` fills before it replaces the old
/// tables.
const NEW_TABLE_PREFIX: &str = "~imt-import-";

/// Arguments of `imt db import`.
#[derive(clap::Args)]
pub(crate) struct ImportArgs {
    /// Folder of the database
    path: PathBuf,
    /// Read this file instead of standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Create the database if it does not exist
    #[arg(long)]
    create: bool,
    /// Replace each table that the lines name, all in one commit at the end
    #[arg(long)]
    clear: bool,
    /// Accept an export that was cut short
    #[arg(long)]
    partial: bool,
}

/// A decoded line of an export.
enum Line {
    Record {
        table: String,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Table(String),
    End {
        records: u64,
    },
}

/// Reason why an import ended early.
enum Stop {
    /// The line with this number is invalid, for this reason.
    Line(u64, String),
    /// The line with this number cannot be read.
    Read(u64, std::io::Error),
    /// The input ended before the last line of an export.
    End(String),
    /// The database returned an error.
    Database(Error),
}

impl Stop {
    /// Returns the error to print. `state` is a sentence about the data on disk.
    fn told(self, path: &Path, state: &str) -> CliError {
        match self {
            Self::Line(number, reason) => {
                CliError::failed(format!("cannot import line {number}: {reason}; {state}"))
            }
            Self::Read(number, error) => {
                CliError::because(format!("cannot read line {number} of the export; {state}"), error)
            }
            Self::End(reason) => CliError::failed(format!("cannot import: {reason}; {state}")),
            Self::Database(error) => open::failed(path, state, error),
        }
    }
}

pub(super) fn import(args: &ImportArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let records = match &args.from {
        None => fill(args, std::io::stdin().lock())?,
        Some(path) => from_file(args, path)?,
    };
    match output {
        OutputFormat::Json => output::print_json(&json!({ "path": args.path, "records": records }))?,
        OutputFormat::Table => output::print_text(&format!(
            "{} put, durable in {}",
            output::count(records, "record"),
            args.path.display()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn from_file(args: &ImportArgs, path: &Path) -> Result<u64, CliError> {
    let unreadable = |error| CliError::because(format!("cannot read {}", path.display()), error);
    let mut file = File::open(path).map_err(unreadable)?;
    // A regular file is read twice: first to check all lines, then to put the records. A pipe can
    // be read only once.
    if file.metadata().map_err(unreadable)?.is_file() {
        let checked = read(args.partial, BufReader::new(&file), |_| Ok(()));
        checked.map_err(|stop| stop.told(&args.path, "nothing was changed"))?;
        file.rewind().map_err(unreadable)?;
    }
    fill(args, BufReader::new(file))
}

/// Puts all records of `lines` into the database, and closes it. Returns the number of records.
fn fill(args: &ImportArgs, lines: impl BufRead) -> Result<u64, CliError> {
    let options = Options::new()
        .create(args.create)
        .durability(Durability::Buffered);
    let db = options
        .open(&args.path)
        .map_err(|error| open::refused(&args.path, error))?;
    let mut import = Import::new(&db, args.clear);
    let read = import.drop_leftovers().map_err(Stop::Database).and_then(|()| {
        read(args.partial, lines, |line| {
            import.line(line).map_err(Stop::Database)
        })
    });
    match read {
        Ok(()) => {
            let records = import.records;
            import.finish(&args.path).map(|()| records)
        }
        Err(stop) => {
            let is_unknown = matches!(&stop, Stop::Database(error) if is_outcome_unknown(error));
            let state = import.give_up(is_unknown);
            Err(stop.told(&args.path, &state))
        }
    }
}

/// Reads lines and passes each to `take`, except empty ones. The input may consist of several
/// exports, one after another. Unless `partial` is set, fails if the input does not end with the
/// last line of an export, or if such a line has another number of records than were read.
fn read(
    partial: bool,
    lines: impl BufRead,
    mut take: impl FnMut(Line) -> Result<(), Stop>,
) -> Result<(), Stop> {
    // Both variables describe the present export: the number of its records read so far, and `true`
    // once its last line was read.
    let (mut records, mut is_whole) = (0, false);
    for (index, line) in lines.lines().enumerate() {
        let number = index as u64 + 1;
        let line = line.map_err(|error| Stop::Read(number, error))?;
        if line.trim().is_empty() {
            continue;
        }
        let line = parse(&line).map_err(|reason| Stop::Line(number, reason))?;
        is_whole = false;
        match &line {
            Line::Record { .. } => records += 1,
            Line::Table(_) => {}
            Line::End { records: expected } => {
                if *expected != records && !partial {
                    let reason = format!(
                        "the export that ends here had {}, {records} {} read: lines are missing or came twice (--partial takes it as it is)",
                        output::count(*expected, "record"),
                        if records == 1 { "was" } else { "were" },
                    );
                    return Err(Stop::Line(number, reason));
                }
                (records, is_whole) = (0, true);
            }
        }
        take(line)?;
    }
    if is_whole || partial {
        return Ok(());
    }
    Err(Stop::End(
        "the export has no last line: it was cut short (--partial takes it as it is)".to_owned(),
    ))
}

fn parse(line: &str) -> Result<Line, String> {
    let object: Map<String, Json> =
        serde_json::from_str(line).map_err(|error| format!("not a JSON object ({error})"))?;
    if let Some(records) = object.get("end").and_then(|end| end["records"].as_u64()) {
        return Ok(Line::End { records });
    }
    let table = object.get("table").and_then(Json::as_str);
    let table = table.ok_or_else(|| "the field table is missing".to_owned())?;
    check_name(table)?;
    let table = table.to_owned();
    match (
        field(&object, "key", KEY_BYTES_MAX)?,
        field(&object, "value", VALUE_BYTES_MAX)?,
    ) {
        (None, None) => Ok(Line::Table(table)),
        (Some(key), Some(value)) => Ok(Line::Record { table, key, value }),
        _ => Err("it has a key without a value, or a value without a key".to_owned()),
    }
}

/// Returns an error for a table name that MicroDb rejects, or that an import uses for its new
/// tables.
fn check_name(table: &str) -> Result<(), String> {
    let bytes = table.len();
    if bytes > TABLE_NAME_BYTES_MAX {
        return Err(format!(
            "table name of {bytes} bytes is over the limit of {TABLE_NAME_BYTES_MAX} bytes"
        ));
    }
    if table.is_empty() || table.chars().any(char::is_control) {
        return Err("the table's name is empty or has control characters".to_owned());
    }
    if table.starts_with(NEW_TABLE_PREFIX) {
        return Err(format!(
            "names of tables that begin with {NEW_TABLE_PREFIX} are reserved for imports with --clear"
        ));
    }
    Ok(())
}

/// Returns the key or value of a line, which is either text or hexadecimal digits. `name` is `key`
/// or `value`. Returns `None` if the line has neither form.
fn field(object: &Map<String, Json>, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, String> {
    let hex_name = format!("{name}_hex");
    let bytes = match (object.get(name), object.get(&hex_name)) {
        (None, None) => return Ok(None),
        (Some(Json::String(text)), None) => text.as_bytes().to_vec(),
        (None, Some(Json::String(text))) => {
            digits(text).ok_or_else(|| format!("{hex_name} is not hexadecimal"))?
        }
        (Some(_), Some(_)) => return Err(format!("{name} and {hex_name} exclude each other")),
        _ => return Err(format!("{name} is not a string")),
    };
    if bytes.len() > bytes_max {
        let len = bytes.len();
        return Err(format!(
            "{name} of {len} bytes is over the limit of {bytes_max} bytes"
        ));
    }
    Ok(Some(bytes))
}

/// State of an import while lines are read.
struct Import<'a> {
    db: &'a Db,
    /// `true` if new tables replace the old tables at the end of the import.
    clear: bool,
    /// The tables that records are put into, by the name that the lines give.
    tables: HashMap<String, Table>,
    batch: Batch,
    batch_bytes: usize,
    /// Number of records put, including those of the batch that is not committed yet.
    records: u64,
    /// Number of records in committed batches.
    committed: u64,
    display: Display,
}

impl<'a> Import<'a> {
    fn new(db: &'a Db, clear: bool) -> Self {
        Self {
            db,
            clear,
            tables: HashMap::new(),
            batch: db.batch(),
            batch_bytes: 0,
            records: 0,
            committed: 0,
            display: Display::new(0),
        }
    }

    /// Drops the new tables of this import, and those that an earlier import with `--clear` has
    /// left. Does nothing if this import runs without `--clear`.
    fn drop_leftovers(&self) -> Result<(), Error> {
        let tables = self.db.tables();
        let left = tables
            .iter()
            .filter(|table| table.name.starts_with(NEW_TABLE_PREFIX));
        for table in left.filter(|_| self.clear) {
            self.db.drop_table(&table.name)?;
        }
        Ok(())
    }

    fn line(&mut self, line: Line) -> Result<(), Error> {
        match line {
            Line::End { .. } => Ok(()),
            Line::Table(table) => self.table(&table).map(|_| ()),
            Line::Record { table, key, value } => {
                let table = self.table(&table)?;
                self.batch_bytes += key.len() + value.len();
                self.batch.put(&table, key, value);
                self.records += 1;
                if self.batch_bytes < BATCH_BYTES {
                    return Ok(());
                }
                self.commit()?;
                self.display.show(
                    0,
                    0,
                    &format!("{} written", output::count(self.committed, "record")),
                );
                Ok(())
            }
        }
    }

    fn table(&mut self, name: &str) -> Result<Table, Error> {
        if let Some(table) = self.tables.get(name) {
            return Ok(table.clone());
        }
        let table = if self.clear {
            self.db
                .table(&format!("{NEW_TABLE_PREFIX}{}", self.tables.len()))?
        } else {
            self.db.table(name)?
        };
        self.tables.insert(name.to_owned(), table.clone());
        Ok(table)
    }

    fn commit(&mut self) -> Result<(), Error> {
        let batch = std::mem::replace(&mut self.batch, self.db.batch());
        self.batch_bytes = 0;
        batch.commit()?;
        self.committed = self.records;
        Ok(())
    }

    /// Commits the last batch and makes all records durable. With `--clear`, replaces the old
    /// tables by the new ones. Then closes the database.
    fn finish(mut self, path: &Path) -> Result<(), CliError> {
        let put = self.commit().and_then(|()| self.db.sync());
        if let Err(error) = put {
            let state = self.give_up(is_outcome_unknown(&error));
            return Err(open::failed(path, &state, error));
        }
        if let Err(error) = self.replace() {
            let state = if is_outcome_unknown(&error) {
                // The database refuses further writes, so the new tables cannot be dropped. An
                // error of the close would only repeat `error`.
                let _ = self.db.clone().close();
                "it is not known whether the tables were replaced: look with imt db table list".to_owned()
            } else {
                self.give_up(false)
            };
            return Err(open::failed(path, &state, error));
        }
        let closed = self.db.clone().close();
        closed.map_err(|error| {
            let state = match self.records {
                1 => "the record was put and is durable".to_owned(),
                records => format!("all {records} records were put and are durable"),
            };
            open::failed(path, &state, error)
        })
    }

    fn replace(&self) -> Result<(), Error> {
        if !self.clear {
            return Ok(());
        }
        let pairs: Vec<_> = self
            .tables
            .iter()
            .map(|(name, table)| (table.name(), name))
            .collect();
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(new, old)| (new.as_str(), old.as_str()))
            .collect();
        self.db.replace_tables(&pairs)
    }

    /// Closes the database after a failed import. With `--clear`, drops the new tables before.
    /// Returns a sentence about the data on disk. `is_unknown` is `true` if a failed write may have
    /// reached the disk. No write before the replacement of the tables changes an old table, so the
    /// sentence does not depend on `is_unknown` with `--clear`.
    fn give_up(self, is_unknown: bool) -> String {
        if self.clear {
            let dropped = self.drop_leftovers().and_then(|()| self.db.sync());
            return match dropped.and_then(|()| self.db.clone().close()) {
                Ok(()) => "no table was changed".to_owned(),
                Err(_) => format!(
                    "no table was changed. New tables whose names begin with {NEW_TABLE_PREFIX} could not be dropped; the next import with --clear drops them"
                ),
            };
        }
        let is_durable = self.db.sync().and_then(|()| self.db.clone().close()).is_ok();
        // A failed batch that may have reached the disk counts, because its records may be there.
        let put = if is_unknown { self.records } else { self.committed };
        records_state(put, is_durable && !is_unknown)
    }
}

/// Returns `true` if the failed write that returned `error` may have reached the disk.
fn is_outcome_unknown(error: &Error) -> bool {
    matches!(error, Error::Poisoned { .. })
}

/// Returns a sentence about the records on disk after a failed import without `--clear`. `put` is
/// the number of records that were put, or the maximum of this number if `is_durable` is `false`.
fn records_state(put: u64, is_durable: bool) -> String {
    match (put, is_durable) {
        (0, _) => "no record was put".to_owned(),
        (1, true) => {
            "the first record was put and is durable, the later records were not put; a repeated import puts the first record again"
                .to_owned()
        }
        (1, false) => {
            "at most one record was put, and it is not known if it is durable; importing again puts it again"
                .to_owned()
        }
        (_, true) => format!(
            "the first {put} records were put and are durable, those behind them were not; importing again puts them again"
        ),
        (_, false) => format!(
            "up to {put} records were put, and it is not known how many of them are durable; importing again puts them again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(partial: bool, text: &str) -> Result<u64, String> {
        let mut records = 0;
        let read = read(partial, text.as_bytes(), |line| {
            records += u64::from(matches!(line, Line::Record { .. }));
            Ok(())
        });
        match read {
            Ok(()) => Ok(records),
            Err(Stop::Line(number, reason)) => Err(format!("{number} {reason}")),
            Err(Stop::Read(number, error)) => Err(format!("{number} {error}")),
            Err(Stop::End(reason)) => Err(reason),
            Err(Stop::Database(error)) => Err(error.to_string()),
        }
    }

    #[test]
    fn every_wrong_line_is_named_by_its_number() {
        let first = "{\"table\":\"t\",\"key\":\"k\",\"value\":\"v\"}\n\n";
        let long = "n".repeat(TABLE_NAME_BYTES_MAX + 1);
        let large = "k".repeat(KEY_BYTES_MAX + 1);
        for (line, reason) in [
            ("nonsense".to_owned(), "not a JSON object"),
            ("{\"key\":\"k\"}".to_owned(), "the field table is missing"),
            (format!("{{\"table\":\"{long}\"}}"), "table name of 256 bytes"),
            ("{\"table\":\"\"}".to_owned(), "empty or has control"),
            ("{\"table\":\"a\\nb\"}".to_owned(), "empty or has control"),
            ("{\"table\":\"~imt-import-0\"}".to_owned(), "reserved"),
            (
                "{\"table\":\"t\",\"key\":\"k\"}".to_owned(),
                "a value without a key",
            ),
            (
                "{\"table\":\"t\",\"key\":7,\"value\":\"v\"}".to_owned(),
                "key is not a string",
            ),
            (
                "{\"table\":\"t\",\"key_hex\":\"0g\",\"value\":\"v\"}".to_owned(),
                "key_hex is not hex",
            ),
            (
                format!("{{\"table\":\"t\",\"key\":\"{large}\",\"value\":\"v\"}}"),
                "key of 65536 bytes",
            ),
            (
                "{\"end\":{\"records\":2}}".to_owned(),
                "had 2 records, 1 was read",
            ),
        ] {
            let error = read_all(false, &format!("{first}{line}\n")).unwrap_err();
            assert!(
                error.starts_with("3 ") && error.contains(reason),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn a_failed_import_states_only_records_that_are_certain() {
        assert_eq!(records_state(0, false), "no record was put");
        assert!(records_state(7, true).starts_with("the first 7 records were put and are durable"));
        assert!(records_state(7, false).starts_with("up to 7 records were put, and it is not known"));
        let cause = std::sync::Arc::new(Error::Closed);
        assert!(is_outcome_unknown(&Error::Poisoned { cause }));
        assert!(!is_outcome_unknown(&Error::ReadOnly));
    }

    #[test]
    fn exports_that_follow_on_one_another_are_counted_apart() {
        let line = "{\"table\":\"t\",\"key\":\"k\",\"value\":\"v\"}\n";
        let one = format!("{line}{line}{{\"end\":{{\"records\":2}}}}\n");
        let two = format!("{line}{{\"end\":{{\"records\":1}}}}\n");
        assert_eq!(read_all(false, &format!("{one}{two}")), Ok(3));
        let short = read_all(false, &format!("{one}{line}")).unwrap_err();
        assert!(short.contains("cut short"), "{short}");
        assert_eq!(read_all(true, &format!("{one}{line}")), Ok(3));
        let wrong = read_all(false, &format!("{one}{line}{two}")).unwrap_err();
        assert!(
            wrong.starts_with("6 ") && wrong.contains("had 1 record, 2 were read"),
            "{wrong}"
        );
    }
}
