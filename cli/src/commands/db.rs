//! `imt db`: look into a MicroDb database, read and change it, compact it.
//!
//! What only looks opens read-only: it takes no lock, so it works while the database's process runs, and it cannot
//! change a byte.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Db, Options, Table};
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `imt db ...`
#[derive(clap::Subcommand)]
pub(crate) enum DbCommand {
    /// Show what a database holds: tables, segments, live and dead bytes, what recovery found. Changes nothing.
    #[command(after_help = "Examples:\n  imt db inspect data/volumes/sim-master\n  imt db inspect data/volumes/sim-master --output json")]
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
    #[command(after_help = "Examples:\n  imt db get data/shop events k1\n  imt db get data/shop events 6b31 --hex")]
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
    #[command(after_help = "Examples:\n  imt db scan data/shop events --limit 20\n  imt db scan data/shop events --prefix k --output json")]
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
            Self::Put { place, key, value, create } => put(&place, &key, &value, create)?,
            Self::Delete { place, key } => return delete(&place, &key),
            Self::Scan { place, prefix, limit } => scan(&place, &prefix, limit, output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
