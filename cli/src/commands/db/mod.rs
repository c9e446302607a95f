//! `imt db`: look into a MicroDb database, read and change it, compact it.
//!
//! What only looks opens read-only: it takes no lock, so it works while the database's process runs, and it cannot
//! change a byte.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Db, Options, RecoveryReport, Table};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `imt db ...`
#[derive(clap::Subcommand)]
pub(crate) enum DbCommand {
    /// Show what a database holds: tables, segments, live and dead bytes, what recovery found. Changes nothing.
    #[command(
        after_help = "Examples:\n  imt db inspect data/volumes/sim-master\n  imt db inspect data/volumes/sim-master --output json"
    )]
    Inspect {
        /// The database's folder.
        path: PathBuf,
    },
    /// Rewrite live records and give back the space of dead ones. The database must not be in use.
    #[command(after_help = "Example:\n  imt db compact data/volumes/sim-master")]
    Compact {
        /// The database's folder.
        path: PathBuf,
    },
    /// Print the value of a key. Changes nothing.
    #[command(
        after_help = "Examples:\n  imt db get data/shop events k1\n  imt db get data/shop events 6b31 --hex"
    )]
    Get {
        #[command(flatten)]
        place: Place,
        /// The key.
        key: String,
    },
    /// Set the value of a key. The database must not be in use.
    #[command(after_help = "Example:\n  imt db put data/shop events k1 'some value'")]
    Put {
        #[command(flatten)]
        place: Place,
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// Make the database where there is none.
        #[arg(long)]
        create: bool,
    },
    /// Delete a key. The database must not be in use.
    #[command(after_help = "Example:\n  imt db delete data/shop events k1")]
    Delete {
        #[command(flatten)]
        place: Place,
        /// The key.
        key: String,
    },
    /// Print the records of a table, in no order. Changes nothing.
    #[command(
        after_help = "Examples:\n  imt db scan data/shop events --limit 20\n  imt db scan data/shop events --prefix k --output json"
    )]
    Scan {
        #[command(flatten)]
        place: Place,
        /// Only keys that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// At most so many records.
        #[arg(long, default_value_t = 1000, value_name = "N")]
        limit: usize,
    },
}

/// A table of a database, and how its keys and values are written here.
#[derive(clap::Args)]
pub(crate) struct Place {
    /// The database's folder.
    path: PathBuf,
    /// The table's name (`imt db inspect` lists them).
    table: String,
    /// Keys and values are given and printed as hexadecimal digits.
    #[arg(long)]
    hex: bool,
}

impl DbCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Inspect { path } => inspect(&path, output)?,
            Self::Compact { path } => compact(&path, output)?,
            Self::Get { place, key } => return get(&place, &key, output),
            Self::Put {
                place,
                key,
                value,
                create,
            } => put(&place, &key, &value, create)?,
            Self::Delete { place, key } => return delete(&place, &key),
            Self::Scan { place, prefix, limit } => scan(&place, &prefix, limit, output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A database that is only looked at.
fn open_to_look(path: &Path) -> Result<Db, CliError> {
    Options::new()
        .read_only(true)
        .open(path)
        .map_err(|error| refused(path, error))
}

/// A database that is to be changed.
fn open_to_change(path: &Path, create: bool) -> Result<Db, CliError> {
    Options::new()
        .create(create)
        .open(path)
        .map_err(|error| refused(path, error))
}

/// An error of the engine, with what to do about it.
fn refused(path: &Path, error: microdb::Error) -> CliError {
    let place = path.display();
    match &error {
        microdb::Error::Locked { holder, .. } => {
            let holder = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
            CliError::failed(format!(
                "the database {place} is in use{holder}; stop that process first, or only look: inspect, get and scan work meanwhile"
            ))
        }
        microdb::Error::NotADatabase { .. } => CliError::failed(format!(
            "there is no database at {place}; a node's is at DATA/volumes/NAME (imt db put --create makes a new one)"
        )),
        _ => CliError::because(format!("the database {place} cannot be used"), error),
    }
}

fn existing_table(db: &Db, place: &Place) -> Result<Table, CliError> {
    db.existing_table(&place.table).ok_or_else(|| {
        let names: Vec<String> = db.tables().into_iter().map(|table| table.name).collect();
        let has = if names.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        CliError::failed(format!(
            "the database {} has no table '{}'; {has}",
            place.path.display(),
            place.table
        ))
    })
}

/// A key or value from the command line.
fn parse_bytes(text: &str, hex: bool) -> Result<Vec<u8>, CliError> {
    if !hex {
        return Ok(text.as_bytes().to_vec());
    }
    let wrong = || {
        CliError::Usage(format!(
            "'{text}' is not an even number of hexadecimal digits (as --hex asks)"
        ))
    };
    if !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let pair = |at: usize| {
        text.get(at..at + 2)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(wrong)
    };
    (0..text.len()).step_by(2).map(pair).collect()
}

/// Bytes as text where they are printable text, else (or if asked for) as hexadecimal digits.
fn show_bytes(bytes: &[u8], hex: bool) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !hex && !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn get(place: &Place, key: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    let db = open_to_look(&place.path)?;
    let table = existing_table(&db, place)?;
    let value = table
        .get(parse_bytes(key, place.hex)?)
        .map_err(|error| refused(&place.path, error))?;
    let Some(value) = value else {
        return Err(CliError::failed(format!(
            "the table '{}' has no key '{key}'",
            place.table
        )));
    };
    match output {
        OutputFormat::Json => output::print_json(
            &json!({ "key": key, "value": show_bytes(&value, place.hex), "bytes": value.len() }),
        )?,
        OutputFormat::Table => output::print_text(&show_bytes(&value, place.hex))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn put(place: &Place, key: &str, value: &str, create: bool) -> Result<(), CliError> {
    let (key, value) = (parse_bytes(key, place.hex)?, parse_bytes(value, place.hex)?);
    let db = open_to_change(&place.path, create)?;
    let write = || {
        db.table(&place.table)?.put(key, value)?;
        db.close()
    };
    write().map_err(|error| refused(&place.path, error))
}

fn delete(place: &Place, key: &str) -> Result<ExitCode, CliError> {
    let bytes = parse_bytes(key, place.hex)?;
    let db = open_to_change(&place.path, false)?;
    let table = existing_table(&db, place)?;
    let was_there = table.delete(bytes).map_err(|error| refused(&place.path, error))?;
    db.close().map_err(|error| refused(&place.path, error))?;
    if was_there {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::failed(format!(
        "the table '{}' has no key '{key}'; nothing was deleted",
        place.table
    )))
}

fn scan(place: &Place, prefix: &str, limit: usize, output: OutputFormat) -> Result<(), CliError> {
    let prefix = parse_bytes(prefix, place.hex)?;
    let db = open_to_look(&place.path)?;
    let table = existing_table(&db, place)?;
    let mut records = table.scan_prefix(prefix);
    let mut rows = vec![vec!["key".to_owned(), "value".to_owned()]];
    for record in records.by_ref().take(limit) {
        let (key, value) = record.map_err(|error| refused(&place.path, error))?;
        rows.push(vec![show_bytes(&key, place.hex), show_bytes(&value, place.hex)]);
    }
    match output {
        // One document a line, so that a scan of any length can be piped.
        OutputFormat::Json => {
            let lines: Vec<String> = rows[1..]
                .iter()
                .map(|row| json!({ "key": row[0], "value": row[1] }).to_string())
                .collect();
            output::print_text(&lines.join("\n"))
        }
        OutputFormat::Table => {
            output::print_text(&output::table(&rows))?;
            if records.next().is_some() {
                tracing::warn!("there are more than {limit} records; --limit N shows more");
            }
            Ok(())
        }
    }
}

fn inspect(path: &Path, output: OutputFormat) -> Result<(), CliError> {
    let db = open_to_look(path)?;
    let (stats, tables, recovery) = (db.stats(), db.tables(), db.recovery());
    if output == OutputFormat::Json {
        let report: Json = json!({ "path": path, "stats": stats, "tables": tables, "recovery": recovery });
        return output::print_json(&report);
    }
    let mut text = format!(
        "database   {}\nid         {}\nsequence   {} (durable to {})\nkeys       {}\nlog        {} in {} segments, {} live, {} dead\ndirectory  {} of memory\nrecovery   {}\n",
        path.display(),
        stats.database,
        stats.sequence,
        stats.durable_sequence,
        stats.keys,
        output::bytes(stats.log_bytes),
        stats.segments.len(),
        output::bytes(stats.live_bytes),
        output::bytes(stats.dead_bytes),
        output::bytes(stats.directory_bytes),
        recovery_text(recovery),
    );
    let mut rows = vec![["table", "keys", "live"].map(str::to_owned).to_vec()];
    rows.extend(tables.iter().map(|table| {
        vec![
            table.name.clone(),
            table.keys.to_string(),
            output::bytes(table.live_bytes),
        ]
    }));
    text.push_str(&format!("\n{}", output::table(&rows)));
    let mut rows = vec![
        ["segment", "state", "bytes", "live", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(stats.segments.iter().map(|segment| {
        let state = if segment.sealed { "sealed" } else { "active" };
        let share = segment.live_bytes as f64 / segment.bytes.max(1) as f64;
        vec![
            segment.id.to_string(),
            state.to_owned(),
            output::bytes(segment.bytes),
            output::bytes(segment.live_bytes),
            bar(share, 20),
        ]
    }));
    text.push_str(&format!("\n{}", output::table(&rows)));
    output::print_text(&text)
}

/// What opening found, in a line.
fn recovery_text(recovery: &RecoveryReport) -> String {
    if recovery.clean {
        return "not needed: the database was closed cleanly".to_owned();
    }
    let dropped = match recovery.dropped_bytes {
        0 => "nothing had to be dropped".to_owned(),
        bytes => format!(
            "{} of an unfinished commit behind the durable frontier are left out",
            output::bytes(bytes)
        ),
    };
    format!(
        "in use, or ended without a clean close: {} frames replayed, {dropped}",
        recovery.frames_replayed
    )
}

/// A share of one as a bar: `#` live, `.` dead.
fn bar(share: f64, width: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(width - full))
}

fn compact(path: &Path, output: OutputFormat) -> Result<(), CliError> {
    let db = open_to_change(path, false)?;
    let compacted = db.compact().and_then(|report| db.close().map(|()| report));
    let report = compacted.map_err(|error| refused(path, error))?;
    match output {
        OutputFormat::Json => output::print_json(&report),
        OutputFormat::Table => output::print_text(&format!(
            "log {} -> {}: {} records ({}) copied, {} segments removed",
            output::bytes(report.bytes_before),
            output::bytes(report.bytes_after),
            report.records_copied,
            output::bytes(report.bytes_copied),
            report.segments_removed,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_goes_both_ways_and_wrong_digits_are_usage_errors() {
        assert_eq!(parse_bytes("00ffA0", true).unwrap(), [0, 255, 160]);
        assert_eq!(show_bytes(&[0, 255, 160], false), "00ffa0");
        for wrong in ["0", "0g", "é"] {
            assert!(
                matches!(parse_bytes(wrong, true), Err(CliError::Usage(_))),
                "{wrong}"
            );
        }
        assert_eq!(show_bytes("käse".as_bytes(), false), "käse");
    }
}
