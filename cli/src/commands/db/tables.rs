//! `imt db table`: lists, renames, clears and drops tables.
//!
//! Invariant: a table with records is cleared or dropped only with `--yes`, and a table of a node's
//! database is changed only with `--raw`.

use super::open;
use super::records::outcome;
use crate::error::CliError;
use crate::output::{self, OutputFormat, TableArgs};
use microdb::Db;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Subcommands of `imt db table`.
#[derive(clap::Subcommand)]
pub(crate) enum TableCommand {
    /// List the tables with their keys and bytes. Changes nothing.
    #[command(after_help = "Example:\n  imt db table list data/volumes/sim-master")]
    List {
        /// Folder of the database
        path: PathBuf,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Rename a table in one durable commit. The new name must be free.
    #[command(after_help = "Example:\n  imt db table rename data/shop events events-2026")]
    Rename {
        #[command(flatten)]
        change: Change,
        /// New name
        to: String,
    },
    /// Remove all records of a table in one durable commit. The empty table remains.
    #[command(after_help = "Example:\n  imt db table clear data/shop events --yes")]
    Clear {
        #[command(flatten)]
        change: Change,
        /// Clear the table although it has records
        #[arg(long)]
        yes: bool,
    },
    /// Remove a table with all its records in one durable commit.
    #[command(after_help = "Example:\n  imt db table drop data/shop events --yes")]
    Drop {
        #[command(flatten)]
        change: Change,
        /// Drop the table although it has records
        #[arg(long)]
        yes: bool,
    },
}

/// The table to change, and the flag that permits a change of a node's table.
#[derive(clap::Args)]
pub(crate) struct Change {
    /// Folder of the database
    path: PathBuf,
    /// Name of the table
    name: String,
    /// Permit a change of a table in a node's database
    #[arg(long)]
    raw: bool,
}

impl TableCommand {
    pub(super) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::List { path, table } => list(&path, &table, output)?,
            Self::Rename { change, to } => {
                let db = change.open()?;
                if db.get_table(&to).is_some() {
                    return Err(CliError::failed(format!(
                        "there is a table '{to}' already; nothing was renamed"
                    )));
                }
                let renamed = db.rename_table(&change.name, &to);
                let text = format!("table {} is now called {to}", change.name);
                change.finish(db, renamed, output, ("renamed", &text))?;
            }
            Self::Clear { change, yes } => {
                let db = change.open()?;
                let keys = change.confirmed(&db, yes, "clear")?;
                let cleared = open::table(&db, &change.name)?.clear();
                let text = format!("table {} is empty; it had {keys}", change.name);
                change.finish(db, cleared, output, ("cleared", &text))?;
            }
            Self::Drop { change, yes } => {
                let db = change.open()?;
                let keys = change.confirmed(&db, yes, "drop")?;
                let dropped = db.drop_table(&change.name);
                let text = format!("table {} is dropped; it had {keys}", change.name);
                change.finish(db, dropped, output, ("dropped", &text))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Change {
    /// Opens the database for writing. Fails if the table does not exist, or if the database is a
    /// node's and `--raw` is missing.
    fn open(&self) -> Result<Db, CliError> {
        let db = open::to_change(&self.path, false)?;
        open::table(&db, &self.name)?;
        if open::is_of_node(&db) && !self.raw {
            return Err(CliError::failed(format!(
                "the database {} is a node's, which needs its tables. Nothing was changed; --raw changes them anyway",
                self.path.display()
            )));
        }
        Ok(db)
    }

    /// Returns the number of keys as text. Fails if the table has keys and the user did not give
    /// `--yes`.
    fn confirmed(&self, db: &Db, yes: bool, verb: &str) -> Result<String, CliError> {
        let keys = open::table(db, &self.name)?.len();
        let text = output::count(keys, "key");
        if keys > 0 && !yes {
            return Err(CliError::Usage(format!(
                "table '{}' has {text}; --yes is needed to {verb} it. Nothing was changed",
                self.name
            )));
        }
        Ok(text)
    }

    fn finish(
        &self,
        db: Db,
        changed: microdb::Result<()>,
        output: OutputFormat,
        (done, text): (&str, &str),
    ) -> Result<(), CliError> {
        let path = &self.path;
        changed.map_err(|error| {
            let refused = format!("table '{}' was not {done}", self.name);
            open::failed(path, outcome(&refused, &error), error)
        })?;
        db.close().map_err(|error| {
            let state = format!(
                "table '{}' was {done} durably, but closing the database failed",
                self.name
            );
            open::failed(path, &state, error)
        })?;
        output::print_either(
            output,
            text,
            &json!({ "path": path, "table": self.name, "change": done }),
        )
    }
}

fn list(path: &Path, args: &TableArgs, output: OutputFormat) -> Result<(), CliError> {
    let tables = open::to_look(path)?.tables();
    if output == OutputFormat::Json {
        return output::print_json(&tables);
    }
    let mut rows = vec![["table", "keys", "live bytes"].map(str::to_owned).to_vec()];
    rows.extend(tables.iter().map(|table| {
        vec![
            table.name.clone(),
            table.keys.to_string(),
            output::bytes(table.live_bytes),
        ]
    }));
    output::print_text(&args.render(rows)?)
}
