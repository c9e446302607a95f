//! `imt db get`, `put`, `delete` and `scan`: read and write single records, and scan tables.

use super::open;
use super::show::{self, Form, FormArgs};
use crate::error::CliError;
use crate::output::{self, OutputFormat, TableArgs};
use microdb::{Db, Error, Table, Value};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A table of a database, and the format of keys and values on the command line.
#[derive(clap::Args)]
pub(crate) struct Place {
    /// Folder of the database
    path: PathBuf,
    /// Name of the table (see `imt db inspect`)
    table: String,
    #[command(flatten)]
    form: FormArgs,
}

pub(super) fn get(place: &Place, key: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    // A key that does not fit a flag is refused before the database is opened.
    place.form.form(None).parse_key(&place.table, key)?;
    let db = open::to_look(&place.path)?;
    let form = place.form.form_in(&db, &place.table);
    let bytes = form.parse_key(&place.table, key)?;
    let table = open::table(&db, &place.table)?;
    let value = table
        .get(&bytes)
        .map_err(|error| open::refused(&place.path, error))?;
    let Some(value) = value else {
        return Err(no_such_key(&table, &place.table, key));
    };
    let shown = form.value(&place.table, &bytes, &value);
    output::print_either(
        output,
        &show::row_lines(&show::dated(shown.clone())),
        &json!({ "key": key, "value": shown, "bytes": value.len() }),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the error for a key that the table does not have. If the first key of the table is no
/// plain text, the error advises `--key-type`, because a typed table encodes its keys.
pub(super) fn no_such_key(table: &Table, name: &str, key: &str) -> CliError {
    let is_text = |key: &Value| std::str::from_utf8(key).is_ok_and(|key| !key.contains(char::is_control));
    let first = table.keys().next().and_then(Result::ok);
    let advice = match first {
        Some(first) if !is_text(&first) => {
            "; its keys are not plain text (imt db scan shows some), so name their type with --key-type, such as string or u64"
        }
        _ => "",
    };
    CliError::failed(format!("the table '{name}' has no key '{key}'{advice}"))
}

pub(super) fn put(
    place: &Place,
    key: &str,
    value: &str,
    create: bool,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let form = place.form.form(None);
    // A key that does not fit a flag is refused before a database is created.
    form.parse_key(&place.table, key)?;
    let value = form.parse_value(value)?;
    let db = open::to_change(&place.path, create)?;
    let form = place.form.form_in(&db, &place.table);
    let bytes = form.parse_key(&place.table, key)?;
    if !place.form.is_raw() {
        check_row(&db, &place.table, key, &bytes, &value)?;
    }
    let length = value.len();
    let write = || {
        let table = match place.form.key_type() {
            Some(key_type) => key_type.table_with_keys(&db, &place.table)?,
            None => db.table(&place.table)?,
        };
        table.put(bytes, value)
    };
    write().map_err(|error| open::failed(&place.path, outcome("the record was not put", &error), error))?;
    close(db, &place.path, "the record was put, and is durable")?;
    if output == OutputFormat::Json {
        let table = &place.table;
        output::print_json(
            &json!({ "path": place.path, "table": table, "key": key, "bytes": length, "durable": true }),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns an error if the database belongs to a node and the node could not decode this row.
fn check_row(db: &Db, table: &str, key: &str, bytes: &[u8], value: &[u8]) -> Result<(), CliError> {
    if !open::is_of_node(db) {
        return Ok(());
    }
    let reason = match imt_oms::row_as_json(table, bytes, value) {
        Some(Ok(_)) => return Ok(()),
        Some(Err(fault)) => format!("the value is not a row of this table ({fault})"),
        None => format!("it has no rows with the key '{key}' that this imt knows"),
    };
    Err(CliError::failed(format!(
        "the table '{table}' belongs to a node: {reason}, and the node could not read it. Nothing was written; --raw writes the value unchecked"
    )))
}

pub(super) fn delete(place: &Place, key: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    // A key that does not fit a flag is refused before the database is opened.
    place.form.form(None).parse_key(&place.table, key)?;
    let db = open::to_change(&place.path, false)?;
    let form = place.form.form_in(&db, &place.table);
    let bytes = form.parse_key(&place.table, key)?;
    let table = open::table(&db, &place.table)?;
    let was_there = table
        .delete(bytes)
        .map_err(|error| open::failed(&place.path, outcome("nothing was deleted", &error), error))?;
    let missing = (!was_there).then(|| no_such_key(&table, &place.table, key));
    drop(table);
    let state = if was_there {
        "the record was deleted durably"
    } else {
        "nothing was deleted"
    };
    close(db, &place.path, state)?;
    if let Some(missing) = missing {
        return Err(missing);
    }
    if output == OutputFormat::Json {
        let table = &place.table;
        output::print_json(&json!({ "path": place.path, "table": table, "key": key, "deleted": true }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns a sentence about the data on disk after a failed write: `refused`, or a sentence that
/// the state of the data is unknown if the write poisoned the database.
pub(super) fn outcome<'a>(refused: &'a str, error: &Error) -> &'a str {
    match error {
        Error::Poisoned { .. } => {
            "it is not known whether the change reached the disk: look with imt db get or imt db table list"
        }
        _ => refused,
    }
}

fn close(db: Db, path: &Path, state: &str) -> Result<(), CliError> {
    let state = format!("{state}, but closing the database failed");
    db.close().map_err(|error| open::failed(path, &state, error))
}

/// Arguments of `imt db scan`.
#[derive(clap::Args)]
pub(crate) struct ScanArgs {
    #[command(flatten)]
    place: Place,
    /// Only keys that begin with this prefix
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Maximum number of records
    #[arg(short = 'n', long, default_value_t = 1000, value_name = "N")]
    limit: usize,
    /// Print the keys alone
    #[arg(long)]
    keys_only: bool,
    /// Print the number of records alone
    #[arg(long, conflicts_with_all = ["keys_only", "limit", "fields", "csv"])]
    count: bool,
    #[command(flatten)]
    table: TableArgs,
}

pub(super) fn scan(args: &ScanArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let place = &args.place;
    let db = open::to_look(&place.path)?;
    let form = place.form.form_in(&db, &place.table);
    let prefix = match args.prefix.as_str() {
        "" => Vec::new(),
        prefix => form.parse_key(&place.table, prefix)?,
    };
    let table = open::table(&db, &place.table)?;
    if args.count {
        let count = match prefix.is_empty() {
            true => table.len(),
            false => count(&table, prefix).map_err(|error| open::refused(&place.path, error))?,
        };
        output::print_either(
            output,
            &count.to_string(),
            &json!({ "table": place.table, "records": count }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut records = table.scan_prefix(prefix);
    let columns = if args.keys_only {
        &["key"][..]
    } else {
        &["key", "value"]
    };
    let mut rows = vec![columns.iter().map(ToString::to_string).collect::<Vec<_>>()];
    for record in records.by_ref().take(args.limit) {
        let (key, value) = record.map_err(|error| open::refused(&place.path, error))?;
        let line = Line {
            form,
            table: &place.table,
            key: &key,
            value: &value,
        };
        match output {
            // Each record is printed as soon as it is read, so that the memory in use does not grow
            // with the number of records.
            OutputFormat::Json => output::print_json_line(&line.json(args.keys_only))?,
            OutputFormat::Table => rows.push(line.cells(args)),
        }
    }
    if output == OutputFormat::Table {
        output::print_text(&args.table.render(rows)?)?;
    }
    if records.next().is_some() {
        output::remark(&format!(
            "there are more than {}; --limit N shows more",
            output::count(args.limit, "record")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn count(table: &Table, prefix: Vec<u8>) -> microdb::Result<u64> {
    let mut count = 0;
    for record in table.scan_prefix(prefix) {
        record?;
        count += 1;
    }
    Ok(count)
}

/// A record that a scan prints.
struct Line<'a> {
    form: Form,
    table: &'a str,
    key: &'a [u8],
    value: &'a [u8],
}

impl Line<'_> {
    fn json(&self, keys_only: bool) -> serde_json::Value {
        let key = self.form.key(self.table, self.key);
        match keys_only {
            true => json!({ "key": key }),
            false => json!({ "key": key, "value": self.form.value(self.table, self.key, self.value) }),
        }
    }

    fn cells(&self, args: &ScanArgs) -> Vec<String> {
        let mut cells = vec![self.form.key(self.table, self.key)];
        if !args.keys_only {
            let value = self.form.value_text(self.table, self.key, self.value);
            let width = output::width().filter(|_| !args.table.is_full());
            cells.push(width.map_or_else(|| value.clone(), |width| output::cut(&value, width)));
        }
        cells
    }
}
