//! `export` and `import`: all records as JSON lines.
//!
//! A line is an object with `table`, and `key` and `value`, or `key_hex` and `value_hex` where the bytes are not UTF-8 text; a line with a
//! table alone stands for a table without records. The last line, `{"end":{"records":N}}`, tells a whole export from one that was cut short.

use super::{open, show};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::{Db, Durability, Options, Table};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Bytes of records committed at once.
const BATCH_BYTES: usize = 1 << 20;
/// Records between two looks at the progress display.
const SHOW_EVERY: u64 = 4096;

/// `imt db export`
#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    /// The database's folder.
    path: PathBuf,
    /// Only these tables.
    tables: Vec<String>,
    /// Write to this file instead of standard output; it must not exist.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// `imt db import`
#[derive(clap::Args)]
pub(crate) struct ImportArgs {
    /// The database's folder.
    path: PathBuf,
    /// Read this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Make the database where there is none.
    #[arg(long)]
    create: bool,
    /// Empty each table that the lines name before the first record is put there.
    #[arg(long)]
    clear: bool,
    /// Take an export that was cut short.
    #[arg(long)]
    partial: bool,
}

pub(super) fn export(args: &ExportArgs) -> Result<ExitCode, CliError> {
    let db = open::to_look(&args.path)?;
    let tables = if args.tables.is_empty() {
        db.tables()
            .into_iter()
            .filter_map(|info| db.existing_table(&info.name))
            .collect()
    } else {
        args.tables
            .iter()
            .map(|name| open::table(&db, name))
            .collect::<Result<Vec<_>, _>>()?
    };
    let written = match &args.to {
        None => write_records(args, &db, &tables, &mut BufWriter::new(std::io::stdout().lock())),
        Some(path) => {
            let file = File::create_new(path);
            let file =
                file.map_err(|error| CliError::because(format!("cannot make {}", path.display()), error))?;
            let mut out = BufWriter::new(file);
            let written = write_records(args, &db, &tables, &mut out);
            let synced = out
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)
                .and_then(|file| file.sync_all());
            synced.map_err(|error| CliError::because(format!("cannot write {}", path.display()), error))?;
            written
        }
    };
    written.map(|()| ExitCode::SUCCESS)
}

fn write_records(args: &ExportArgs, db: &Db, tables: &[Table], out: &mut impl Write) -> Result<(), CliError> {
    let told = |error: std::io::Error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::BrokenPipe,
        _ => CliError::because("cannot write the export", error),
    };
    let snapshot = db.snapshot();
    let refused = |error| open::refused(&args.path, error);
    let mut count = |table| snapshot.len(table).map_err(refused);
    let total: u64 = tables.iter().map(&mut count).sum::<Result<u64, _>>()?;
    let (mut display, mut done) = (Display::new(total), 0);
    for table in tables {
        let name = table.name();
        if count(table)? == 0 {
            writeln!(out, "{}", json!({ "table": name })).map_err(told)?;
        }
        for record in snapshot.iter(table).map_err(refused)? {
            let (key, value) = record.map_err(refused)?;
            let mut line = Map::new();
            line.insert("table".to_owned(), json!(name));
            insert(&mut line, "key", &key);
            insert(&mut line, "value", &value);
            writeln!(out, "{}", Json::Object(line)).map_err(told)?;
            done += 1;
            if done % SHOW_EVERY == 0 {
                display.show(done, total, &format!("{done} of {total} records written"));
            }
        }
    }
    writeln!(out, "{}", json!({ "end": { "records": done } }))
        .and_then(|()| out.flush())
        .map_err(told)
}

fn insert(line: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line.insert(name.to_owned(), json!(text)),
        Err(_) => line.insert(format!("{name}_hex"), json!(show::hex(bytes))),
    };
}

pub(super) fn import(args: &ImportArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let options = Options::new()
        .create(args.create)
        .durability(Durability::Buffered);
    let db = options
        .open(&args.path)
        .map_err(|error| open::refused(&args.path, error))?;
    let records = match &args.from {
        None => read_records(args, &db, std::io::stdin().lock()),
        Some(path) => {
            let file = File::open(path)
                .map_err(|error| CliError::because(format!("cannot read {}", path.display()), error))?;
            read_records(args, &db, BufReader::new(file))
        }
    }?;
    match output {
        OutputFormat::Json => output::print_json(&json!({ "path": args.path, "records": records }))?,
        OutputFormat::Table => output::print_text(&format!(
            "{records} records put, durable in {}",
            args.path.display()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn read_records(args: &ImportArgs, db: &Db, lines: impl BufRead) -> Result<u64, CliError> {
    let refused = |error| open::refused(&args.path, error);
    let mut tables: HashMap<String, Table> = HashMap::new();
    let (mut batch, mut bytes, mut records, mut end) = (db.batch(), 0, 0u64, None);
    let mut display = Display::new(0);
    for (index, line) in lines.lines().enumerate() {
        let number = index + 1;
        let line = line.map_err(|error| CliError::because(format!("cannot read line {number}"), error))?;
        if line.is_empty() {
            continue;
        }
        let told = |what: &str| {
            CliError::failed(format!(
                "line {number}: {what}; {records} records before it were put, and importing again puts them again"
            ))
        };
        let object: Map<String, Json> =
            serde_json::from_str(&line).map_err(|error| told(&format!("not a JSON object ({error})")))?;
        if let Some(count) = object.get("end").and_then(|end| end["records"].as_u64()) {
            end = Some(count);
            continue;
        }
        let name = object
            .get("table")
            .and_then(Json::as_str)
            .ok_or_else(|| told("the field table is missing"))?;
        if !tables.contains_key(name) {
            let table = db.table(name).map_err(refused)?;
            if args.clear {
                table.clear().map_err(refused)?;
            }
            tables.insert(name.to_owned(), table);
        }
        let (key, value) = (field(&object, "key"), field(&object, "value"));
        let (key, value) = match (
            key.map_err(|what| told(&what))?,
            value.map_err(|what| told(&what))?,
        ) {
            (None, None) => continue,
            (Some(key), Some(value)) => (key, value),
            _ => return Err(told("key and value stand together, or neither")),
        };
        bytes += key.len() + value.len();
        batch.put(&tables[name], key, value);
        records += 1;
        if bytes >= BATCH_BYTES {
            batch.commit().map_err(refused)?;
            (batch, bytes) = (db.batch(), 0);
            display.show(0, 0, &format!("{records} records put"));
        }
    }
    batch.commit().map_err(refused)?;
    db.sync().map_err(refused)?;
    db.clone().close().map_err(refused)?;
    match end {
        Some(count) if count == records => Ok(records),
        _ if args.partial => Ok(records),
        Some(count) => Err(CliError::failed(format!(
            "the export had {count} records, {records} were read and put; lines are missing (--partial takes it as it is)"
        ))),
        None => Err(CliError::failed(format!(
            "the export has no last line: it was cut short. {records} records were put (--partial takes it as it is)"
        ))),
    }
}

/// A key or value of a line: text, or hexadecimal digits.
fn field(object: &Map<String, Json>, name: &str) -> Result<Option<Vec<u8>>, String> {
    let hex_name = format!("{name}_hex");
    match (object.get(name), object.get(&hex_name)) {
        (None, None) => Ok(None),
        (Some(Json::String(text)), None) => Ok(Some(text.as_bytes().to_vec())),
        (None, Some(Json::String(digits))) => show::from_hex(digits)
            .map(Some)
            .map_err(|_| format!("{hex_name} is not hexadecimal")),
        (Some(_), Some(_)) => Err(format!("{name} and {hex_name} exclude each other")),
        _ => Err(format!("{name} is not a string")),
    }
}
