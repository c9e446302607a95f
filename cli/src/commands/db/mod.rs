//! `imt db`: look into a MicroDb database, read and change it, check it, copy it, repair it.
//!
//! What only looks opens read-only: it takes no lock, so it works while the database's process
//! runs, and it cannot change a byte. What damage there is, is told with file and byte, and with
//! what to do about it. A check that finds something ends with exit code 3, so that a script can
//! tell it from a check that could not be made.

mod bench;
mod copy;
mod import;
mod inspect;
mod open;
mod pieces;
mod records;
mod repair;
mod show;
mod space;
mod tail;
mod transfer;
mod verify;

use crate::error::CliError;
use crate::output::OutputFormat;
use std::path::PathBuf;
use std::process::ExitCode;

/// `imt db ...`
#[derive(clap::Subcommand)]
pub(crate) enum DbCommand {
    /// Show what a database holds: tables, segments, live and dead bytes, what recovery found.
    /// Changes nothing.
    #[command(after_help = "\
Works on a database in use (its last moment on disk is shown), and on one that does not open (what can be told of it is shown).

Exit codes: 0 no damage was met (only verify looks at every byte), 3 some was, 1 nothing could be looked at. A torn tail is no damage.

Examples:
  imt db inspect data/volumes/sim-master
  imt db inspect data/volumes/sim-master --output json
  imt db inspect data/shop --segment 3              all frames of a segment, with what is wrong with them
  imt db inspect data/shop --frame 3:96             one frame, its records, and its bytes field by field
  imt db inspect data/shop --key orders 17          where a key's record lies, and its bytes")]
    Inspect(inspect::InspectArgs),
    /// Check every checksum of every file, and the directory against the log. Changes nothing.
    #[command(after_help = "\
Exit codes: 0 sound, 3 damage was found (all of it is listed), 1 it could not be checked.

Examples:
  imt db verify data/volumes/sim-master
  imt db verify /backup/monday --output json")]
    Verify {
        /// The database's folder.
        path: PathBuf,
    },
    /// Rewrite live records and give back the space of dead ones. The database must not be in use.
    #[command(
        after_help = "Examples:\n  imt db compact data/volumes/sim-master --dry-run\n  imt db compact data/volumes/sim-master"
    )]
    Compact {
        /// The database's folder.
        path: PathBuf,
        /// Only say what could be given back; works on a database in use.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the database's figures, one a line. Changes nothing.
    #[command(
        after_help = "Examples:\n  imt db stats data/shop\n  imt db stats data/shop --output json | jq .stats.dead_bytes"
    )]
    Stats {
        /// The database's folder.
        path: PathBuf,
    },
    /// Measure the disk under a folder in a few seconds: syncs, puts, gets.
    #[command(
        after_help = "Example:\n  imt db bench data        a folder made there for the purpose, removed afterwards"
    )]
    Bench {
        /// A folder on the disk to measure; it must exist.
        folder: PathBuf,
    },
    /// Copy a database into a new folder, whole and durable.
    #[command(after_help = "\
On the same disk, complete segments become hard links: no time, no space, and no protection against that disk. Put backups on another one.
A database in use, or one that cannot be written, is copied as of one moment, with its id and its change history.

Examples:
  imt db backup data/volumes/sim-master /backup/monday
  imt db verify /backup/monday")]
    Backup {
        /// The database's folder.
        path: PathBuf,
        /// The new folder; it must not exist, or be empty.
        to: PathBuf,
    },
    /// Put a backup back: checks it, copies it, checks the copy.
    #[command(after_help = "Example:\n  imt db restore /backup/monday data/volumes/sim-master")]
    Restore {
        /// The backup's folder.
        backup: PathBuf,
        /// Where the database shall be; it must not exist, or be empty.
        to: PathBuf,
    },
    /// Copy all that is readable of a damaged database into a new one, and list what was lost.
    /// Never changes the source.
    #[command(after_help = "\
Exit codes: 0 nothing was lost, 3 something was (it is listed, and stands in SALVAGE.txt of the new folder), 1 it could not be done.

Example:
  imt db salvage data/volumes/alpha data/volumes/alpha-salvaged")]
    Salvage {
        /// The damaged database's folder.
        path: PathBuf,
        /// The new folder; it must not exist, or be empty.
        to: PathBuf,
    },
    /// Replace what is damaged in a database by the same bytes of a backup of it. The node must be
    /// stopped.
    #[command(after_help = "\
Only bytes go in of which the database itself proves that they are what was there (seals of its segments, the chain of its commits).

Exit codes: 0 nothing is damaged any more, 3 some of it could not be healed (it is listed), 1 it could not be done.

Example:
  imt db heal data/volumes/alpha --from /backup/alpha-monday && imt db verify data/volumes/alpha")]
    Heal {
        /// The damaged database's folder.
        path: PathBuf,
        /// The backup's folder.
        #[arg(long, value_name = "BACKUP")]
        from: PathBuf,
    },
    /// Compare two databases by digests, and list the keys that differ. Changes nothing.
    #[command(after_help = "\
Exit codes: 0 equal, 3 they differ, 1 it could not be told.

Examples:
  imt db diff data/volumes/alpha /backup/monday
  imt db diff data/a data/b --limit 1000 --output json")]
    Diff {
        /// The first database's folder.
        first: PathBuf,
        /// The second database's folder.
        second: PathBuf,
        /// List at most so many keys; all are counted.
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u64,
    },
    /// Print the value of a key. Changes nothing.
    #[command(
        after_help = "Examples:\n  imt db get data/volumes/sim-master orders 17        a node's row, decoded\n  imt db get data/shop events k1\n  imt db get data/shop events 6b31 --hex"
    )]
    Get {
        #[command(flatten)]
        place: records::Place,
        /// The key.
        key: String,
    },
    /// Set the value of a key. The database must not be in use.
    #[command(
        after_help = "In a node's database, a value that the node could not read is refused, unless --raw is given.\n\nExample:\n  imt db put data/shop events k1 'some value'"
    )]
    Put {
        #[command(flatten)]
        place: records::Place,
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
        place: records::Place,
        /// The key.
        key: String,
    },
    /// Print the records of a table, in no order. Changes nothing.
    #[command(
        after_help = "Examples:\n  imt db scan data/shop events --limit 20\n  imt db scan data/shop events --prefix k --output json"
    )]
    Scan {
        #[command(flatten)]
        place: records::Place,
        /// Only keys that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        /// At most so many records.
        #[arg(long, default_value_t = 1000, value_name = "N")]
        limit: usize,
    },
    /// Print the latest changes, and follow. Changes nothing.
    #[command(after_help = "\
Each change was held against the chain of the log: none was missed in between. With --output json, one change a line.

Examples:
  imt db tail data/volumes/sim-master                 the last 10 commits
  imt db tail data/volumes/sim-master --follow
  imt db tail data/shop --since 0 --output json       all that the log still has")]
    Tail(tail::TailArgs),
    /// Write all records as JSON lines. Changes nothing.
    #[command(after_help = "\
A line is {\"table\":T,\"key\":K,\"value\":V}. What is not UTF-8 text stands as hexadecimal digits under key_hex or value_hex. A table without
records is {\"table\":T}. The last line counts the records, so that an export cut short is noticed.

Examples:
  imt db export data/shop > shop.jsonl
  imt db export data/shop events orders --to shop.jsonl")]
    Export(transfer::ExportArgs),
    /// Read records from JSON lines, as export writes them. The database must not be in use.
    #[command(after_help = "\
Keys that are there already get the new value; other records of the tables stay. Several exports may follow on one another.
The lines of a file are all checked before anything is put. Those of a pipe are put in batches; one that was stopped can be run again.
With --clear, the tables that the lines name are replaced, all in one commit at the end: an import that fails changes nothing.

Examples:
  imt db import data/copy --create < shop.jsonl
  imt db import data/copy --from shop.jsonl --clear     replaces the tables")]
    Import(import::ImportArgs),
}

impl DbCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Inspect(args) => inspect::run(&args, output),
            Self::Verify { path } => verify::run(&path, output),
            Self::Compact { path, dry_run: true } => space::compact_dry(&path, output),
            Self::Compact { path, dry_run: false } => space::compact(&path, output),
            Self::Stats { path } => space::stats(&path, output),
            Self::Bench { folder } => bench::run(&folder, output),
            Self::Backup { path, to } => copy::backup(&path, &to, output),
            Self::Restore { backup, to } => copy::restore(&backup, &to, output),
            Self::Salvage { path, to } => repair::salvage(&path, &to, output),
            Self::Heal { path, from } => repair::heal(&path, &from, output),
            Self::Diff { first, second, limit } => repair::diff(&first, &second, limit, output),
            Self::Get { place, key } => records::get(&place, &key, output),
            Self::Put {
                place,
                key,
                value,
                create,
            } => records::put(&place, &key, &value, create),
            Self::Delete { place, key } => records::delete(&place, &key),
            Self::Scan { place, prefix, limit } => records::scan(&place, &prefix, limit, output),
            Self::Tail(args) => tail::run(&args, output),
            Self::Export(args) => transfer::export(&args),
            Self::Import(args) => import::import(&args, output),
        }
    }
}

/// Exit code of a check that found something.
pub(crate) const FOUND: u8 = 3;

/// The exit code of a check.
fn verdict(sound: bool) -> ExitCode {
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND)
    }
}
