//! `imt db get`, `put`, `delete` and `scan`: single records and scans.

use super::open;
use super::show::Form;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Db, Error};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tables of every node's database. Another database is unlikely to have all of them.
const NODE_TABLES: [&str; 3] = ["orders", "arrivals", "meta"];

/// A table of a database, and the format of its keys and values on the command line.
#[derive(clap::Args)]
pub(crate) struct Place {
    /// Folder of the database
    path: PathBuf,
    /// Name of the table (see `imt db inspect`)
    table: String,
    /// Read and print keys and values as hexadecimal digits
    #[arg(long)]
    hex: bool,
    /// Do not decode the rows of a node's tables
    #[arg(long)]
    raw: bool,
}

impl Place {
    fn form(&self) -> Form {
        Form::new(self.hex, self.raw)
    }
}

pub(super) fn get(place: &Place, key: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    let db = open::to_look(&place.path)?;
    let (table, form) = (open::table(&db, &place.table)?, place.form());
    let bytes = form.parse_key(&place.table, key)?;
    let value = table
        .get(&bytes)
        .map_err(|error| open::refused(&place.path, error))?;
    let Some(value) = value else {
        return Err(CliError::failed(format!(
            "the table '{}' has no key '{key}'",
            place.table
        )));
    };
    let shown = form.value(&place.table, &bytes, &value);
    match output {
        OutputFormat::Json => {
            output::print_json(&json!({ "key": key, "value": shown, "bytes": value.len() }))?;
        }
        OutputFormat::Table => match &shown {
            serde_json::Value::String(text) => output::print_text(text)?,
            row => output::print_json(row)?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn put(place: &Place, key: &str, value: &str, create: bool) -> Result<ExitCode, CliError> {
    let form = place.form();
    let (bytes, value) = (form.parse_key(&place.table, key)?, form.parse_value(value)?);
    let db = open::to_change(&place.path, create)?;
    if !place.raw {
        check_row(&db, &place.table, key, &bytes, &value)?;
    }
    let write = || db.table(&place.table)?.put(bytes, value);
    write().map_err(|error| open::failed(&place.path, outcome("the record was not put", &error), error))?;
    close(db, &place.path, "the record was put, and is durable")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns an error for a row of a node's database that the node could not decode.
fn check_row(db: &Db, table: &str, key: &str, bytes: &[u8], value: &[u8]) -> Result<(), CliError> {
    if NODE_TABLES.iter().any(|name| db.get_table(name).is_none()) {
        return Ok(());
    }
    let reason = match imt_oms::row_as_json(table, bytes, value) {
        Some(Ok(_)) => return Ok(()),
        Some(Err(fault)) => format!("the value is no row of it ({fault})"),
        None => format!("it has no rows with the key '{key}' that this imt knows"),
    };
    Err(CliError::failed(format!(
        "the table '{table}' is a node's: {reason}, and the node could not read it. Nothing was put; --raw puts it as it is"
    )))
}

pub(super) fn delete(place: &Place, key: &str) -> Result<ExitCode, CliError> {
    let bytes = place.form().parse_key(&place.table, key)?;
    let db = open::to_change(&place.path, false)?;
    let table = open::table(&db, &place.table)?;
    let was_there = table
        .delete(bytes)
        .map_err(|error| open::failed(&place.path, outcome("nothing was deleted", &error), error))?;
    let state = if was_there {
        "the record was deleted durably"
    } else {
        "nothing was deleted"
    };
    close(db, &place.path, state)?;
    if was_there {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::failed(format!(
        "the table '{}' has no key '{key}'; nothing was deleted",
        place.table
    )))
}

/// Returns the state after a failed write. After a failed sync, the state is unknown.
fn outcome(refused: &'static str, error: &Error) -> &'static str {
    match error {
        Error::Poisoned { .. } => "it is not known whether the change reached the disk: look with imt db get",
        _ => refused,
    }
}

fn close(db: Db, path: &Path, state: &str) -> Result<(), CliError> {
    let state = format!("{state}, but closing the database failed");
    db.close().map_err(|error| open::failed(path, &state, error))
}

pub(super) fn scan(
    place: &Place,
    prefix: &str,
    limit: usize,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let form = place.form();
    let prefix = if prefix.is_empty() {
        Vec::new()
    } else {
        form.parse_key(&place.table, prefix)?
    };
    let db = open::to_look(&place.path)?;
    let table = open::table(&db, &place.table)?;
    let mut records = table.scan_prefix(prefix);
    let mut rows = vec![vec!["key".to_owned(), "value".to_owned()]];
    for record in records.by_ref().take(limit) {
        let (key, value) = record.map_err(|error| open::refused(&place.path, error))?;
        let shown = form.key(&place.table, &key);
        match output {
            // Each document is printed when its record is read, so that a scan of any length can be
            // piped.
            OutputFormat::Json => {
                let value = form.value(&place.table, &key, &value);
                output::print_text(&json!({ "key": shown, "value": value }).to_string())?;
            }
            OutputFormat::Table => rows.push(vec![shown, form.value_text(&place.table, &key, &value)]),
        }
    }
    if output == OutputFormat::Table {
        output::print_text(&output::table(&rows))?;
    }
    if records.next().is_some() {
        tracing::warn!("there are more than {limit} records; --limit N shows more");
    }
    Ok(ExitCode::SUCCESS)
}
