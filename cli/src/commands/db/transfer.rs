//! `imt db export`: writes the records of all tables, or of the named ones, as JSON lines.
//!
//! Format:
//! - A line is an object with `table`, `key` and `value`. Bytes that are not UTF-8 text are in
//!   `key_hex` or `value_hex`.
//! - A line with `table` alone stands for a table without records.
//! - The last line, `{"end":{"records":N}}`, distinguishes a complete export from a truncated one.

use super::{open, show};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::{Db, Table};
use serde_json::{Map, Value as Json, json};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Number of records between two updates of the progress display.
const SHOW_EVERY: u64 = 4096;

/// Arguments of `imt db export`.
#[derive(clap::Args)]
pub(crate) struct ExportArgs {
    /// Folder of the database
    path: PathBuf,
    /// Tables to export [default: all]
    tables: Vec<String>,
    /// Write to this file instead of standard output; it must not exist
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

pub(super) fn export(args: &ExportArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let db = open::to_look(&args.path)?;
    let tables = if args.tables.is_empty() {
        db.tables()
            .into_iter()
            .filter_map(|info| db.get_table(&info.name))
            .collect()
    } else {
        args.tables
            .iter()
            .map(|name| open::table(&db, name))
            .collect::<Result<Vec<_>, _>>()?
    };
    match &args.to {
        None => _ = write_records(args, &db, &tables, &mut BufWriter::new(std::io::stdout().lock()))?,
        Some(path) => {
            let records = write_file(args, &db, &tables, path)?;
            let text = format!(
                "{} written to {}",
                output::count(records, "record"),
                path.display()
            );
            let json = json!({ "path": args.path, "to": path, "records": records });
            output::print_either(output, &text, &json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes an export to a new file. Removes the file if the export fails. Returns the number of
/// records.
fn write_file(args: &ExportArgs, db: &Db, tables: &[Table], path: &Path) -> Result<u64, CliError> {
    let file = File::create_new(path);
    let file = file.map_err(|error| CliError::because(format!("cannot make {}", path.display()), error))?;
    let mut out = BufWriter::new(file);
    let written = write_records(args, db, tables, &mut out).and_then(|records| {
        let synced = out.get_ref().sync_all();
        synced
            .map(|()| records)
            .map_err(|error| CliError::because(format!("cannot write {}", path.display()), error))
    });
    if written.is_err() {
        // An unfinished file would keep the next export from creating a file of this name.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_records(
    args: &ExportArgs,
    db: &Db,
    tables: &[Table],
    out: &mut impl Write,
) -> Result<u64, CliError> {
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
        .map_err(told)?;
    Ok(done)
}

fn insert(line: &mut Map<String, Json>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => line.insert(name.to_owned(), json!(text)),
        Err(_) => line.insert(format!("{name}_hex"), json!(show::plain_hex(bytes))),
    };
}
