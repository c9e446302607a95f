//! `imt db`: inspects, reads, changes, checks, copies and repairs a MicroDb database.
//!
//! Invariants:
//! - The commands `inspect`, `verify`, `space`, `stats`, `diff`, `get`, `scan`, `tail`, `export`,
//!   `table list` and `compact --dry-run` only read, so they cannot change a byte of the database.
//!   They acquire no lock, so they also work while another process has the database open.
//! - Damage is reported with its file and its byte offset, as far as they are known. The command
//!   `imt db verify` also lists the remedies.
//! - A check that finds damage, or a difference between two databases, ends with exit code 3. A
//!   check that cannot be carried out ends with another code.

mod bench;
mod copy;
mod import;
mod inspect;
mod inspect_parts;
mod key_types;
mod open;
mod records;
mod repair;
mod show;
mod space;
mod space_report;
mod tables;
mod tail;
mod transfer;
mod verify;

use crate::error::CliError;
use crate::output::OutputFormat;
use std::path::PathBuf;
use std::process::ExitCode;

/// Subcommands of `imt db`.
#[derive(clap::Subcommand)]
pub(crate) enum DbCommand {
    /// Show a database: tables, segments, live and dead bytes, findings of recovery. Changes
    /// nothing.
    #[command(after_help = "\
Works on a database in use (its latest state on disk is shown), and on one
that does not open (its readable parts are shown).

Exit codes: 0 no damage found (only verify reads every byte), 3 damage found,
1 nothing could be read. A torn tail is no damage.

Examples:
  imt db inspect data/volumes/sim-master
  imt db inspect data/volumes/sim-master --output json
  imt db inspect data/shop --segment 3         the frames of a segment
  imt db inspect data/shop --frame 3:96        a frame, field by field
  imt db inspect data/shop --key orders 17     place and bytes of a record")]
    Inspect(inspect::InspectArgs),
    /// Check every checksum of every file, and the directory against the log. Changes nothing.
    #[command(after_help = "\
Exit codes: 0 sound, 3 damage was found (all of it is listed), 1 it could not
be checked.

Examples:
  imt db verify data/volumes/sim-master
  imt db verify /backup/monday --output json")]
    Verify {
        /// Folder of the database
        path: PathBuf,
    },
    /// Show the use of space on one page: dead bytes by table, largest keys and values, time of the
    /// next open. Reads all records; changes nothing.
    #[command(after_help = "\
Exit codes: 0 all records were read, 3 some records cannot be read, 1 the
report failed.

Examples:
  imt db space data/volumes/sim-master
  imt db space data/shop --largest 20")]
    Space(space_report::SpaceArgs),
    /// Rewrite live records and free the space of dead ones. The database must not be in use.
    #[command(after_help = "\
Examples:
  imt db compact data/volumes/sim-master --dry-run
  imt db compact data/volumes/sim-master")]
    Compact {
        /// Folder of the database
        path: PathBuf,
        /// Only show the space that can be freed; works on a database in use
        #[arg(long)]
        dry_run: bool,
    },
    /// Print counts and sizes (keys, live bytes, dead bytes), one per line. Changes nothing.
    #[command(after_help = "\
Examples:
  imt db stats data/shop
  imt db stats data/shop --output json | jq .stats.dead_bytes")]
    Stats {
        /// Folder of the database
        path: PathBuf,
    },
    /// Measure the disk under a folder in a few seconds: syncs, puts, gets.
    #[command(after_help = "\
Example:
  imt db bench data       in a folder of its own there, removed afterwards")]
    Bench {
        /// Existing folder on the disk to measure
        folder: PathBuf,
    },
    /// Copy a database, complete and durable, to a new folder.
    #[command(after_help = "\
On the same disk, complete segments become hard links: no time, no space, and
no protection against that disk. Put backups on another one. A database in
use, or one that cannot be written, is copied as of one moment, with its id
and its change history.

Examples:
  imt db backup data/volumes/sim-master /backup/monday
  imt db verify /backup/monday")]
    Backup {
        /// Folder of the database
        path: PathBuf,
        /// New folder; it must not exist, or be empty
        to: PathBuf,
    },
    /// Restore a backup: check it, copy it, check the copy.
    #[command(after_help = "\
Example:
  imt db restore /backup/monday data/volumes/sim-master")]
    Restore {
        /// Folder of the backup
        backup: PathBuf,
        /// New folder of the database; it must not exist, or be empty
        to: PathBuf,
    },
    /// Copy all readable records of a damaged database to a new one, and list the losses. Never
    /// changes the source.
    #[command(after_help = "\
Exit codes: 0 nothing was lost, 3 something was lost (listed here and in
SALVAGE.txt of the new folder), 1 the salvage failed.

Example:
  imt db salvage data/volumes/alpha data/volumes/alpha-salvaged")]
    Salvage {
        /// Folder of the damaged database
        path: PathBuf,
        /// New folder; it must not exist, or be empty
        to: PathBuf,
    },
    /// Replace damaged bytes of a database by the same bytes of a backup of it. The node must be
    /// stopped.
    #[command(after_help = "\
Bytes are replaced only if the database proves that they are the original ones
(seals of its segments, chain of its commits).

Exit codes: 0 no damage is left, 3 some damage could not be healed (it is
listed), 1 the command failed.

Example:
  imt db heal data/volumes/alpha --from /backup/alpha-monday")]
    Heal {
        /// Folder of the damaged database
        path: PathBuf,
        /// Folder of the backup
        #[arg(long, value_name = "BACKUP")]
        from: PathBuf,
    },
    /// Compare two databases by digests, and list the keys that differ. Changes nothing.
    #[command(after_help = "\
Exit codes: 0 equal, 3 they differ, 1 they could not be compared.

Examples:
  imt db diff data/volumes/alpha /backup/monday
  imt db diff data/a data/b --limit 1000 --output json")]
    Diff {
        /// Folder of the first database
        first: PathBuf,
        /// Folder of the second database
        second: PathBuf,
        /// Maximum number of listed keys; all are counted
        #[arg(short = 'n', long, default_value_t = 50, value_name = "N")]
        limit: u64,
    },
    /// Print the value of a key. Changes nothing.
    #[command(after_help = "\
Rows of a node's tables are decoded, and so are strings and numbers that are
keys of a typed table. Other bytes are shown as text, or as hexadecimal digits
behind 0x. A key is accepted in the form in which a scan shows it.

Examples:
  imt db get data/volumes/sim-master orders 17      a node's row
  imt db get data/shop events k1
  imt db get data/shop users ann --value-type u64   row of a typed table
  imt db get data/shop events 0x6b31")]
    Get {
        #[command(flatten)]
        place: records::Place,
        /// Key to read
        #[arg(allow_negative_numbers = true)]
        key: String,
    },
    /// Set the value of a key. The database must not be in use.
    #[command(after_help = "\
In a node's database, a value that the node could not read is refused, unless
--raw is given. --create creates a missing table. With --key-type string, u8,
u64 or i64, the new table records the type of its keys, and later commands
need no --key-type.

Examples:
  imt db put data/shop events k1 'some value'
  imt db put data/shop users 7 0x2a --key-type u64 --create")]
    Put {
        #[command(flatten)]
        place: records::Place,
        /// Key to set
        #[arg(allow_negative_numbers = true)]
        key: String,
        /// New value
        #[arg(allow_negative_numbers = true)]
        value: String,
        /// Create the database if it does not exist
        #[arg(long)]
        create: bool,
    },
    /// Delete a key. The database must not be in use.
    #[command(after_help = "Example:\n  imt db delete data/shop events k1")]
    Delete {
        #[command(flatten)]
        place: records::Place,
        /// Key to delete
        #[arg(allow_negative_numbers = true)]
        key: String,
    },
    /// Print the records of a table in no particular order. Changes nothing.
    #[command(after_help = "\
On a terminal, long cells are cut to its width (--full prints them whole).

Examples:
  imt db scan data/shop events --limit 20
  imt db scan data/shop events --prefix k --output json
  imt db scan data/shop events --count
  imt db scan data/shop users --keys-only")]
    Scan(records::ScanArgs),
    /// List, rename, clear and drop tables.
    #[command(subcommand)]
    Table(tables::TableCommand),
    /// Print the latest changes, and follow new ones. Changes nothing.
    #[command(after_help = "\
Each change is checked against the hash chain of the log, so that none is
missed. With --output json, one change per line.

Examples:
  imt db tail data/volumes/sim-master             the last 10 commits
  imt db tail data/volumes/sim-master --follow
  imt db tail data/volumes/sim-master --key 17    of key 17, all tables
  imt db tail data/shop --since 0 --output json   all changes in the log")]
    Tail(tail::TailArgs),
    /// Write all records as JSON lines. Changes nothing.
    #[command(after_help = "\
A line is {\"table\":T,\"key\":K,\"value\":V}. Bytes that are not UTF-8 text are
hexadecimal digits in key_hex or value_hex. A table without records is
{\"table\":T}. The last line counts the records, so that an export cut short is
noticed.

Examples:
  imt db export data/shop > shop.jsonl
  imt db export data/shop events orders --to shop.jsonl")]
    Export(transfer::ExportArgs),
    /// Read records from JSON lines in the format of export. The database must not be in use.
    #[command(after_help = "\
Existing keys get the new value; other records of the tables stay. The input
may be several exports, one after another. All lines of a regular file of
--from are checked before the first record is put. The lines of standard
input or of a pipe are put in batches while they are read; a stopped import
can be repeated. With --clear, the tables that the lines name are replaced in
one commit at the end, so an import that fails before it changes nothing.

Examples:
  imt db import data/copy --create --from shop.jsonl
  imt db import data/copy --clear --from shop.jsonl
  imt db export data/shop | imt db import data/copy --create")]
    Import(import::ImportArgs),
}

impl DbCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Inspect(args) => inspect::run(&args, output),
            Self::Verify { path } => verify::run(&path, output),
            Self::Space(args) => space_report::run(&args, output),
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
            } => records::put(&place, &key, &value, create, output),
            Self::Delete { place, key } => records::delete(&place, &key, output),
            Self::Scan(args) => records::scan(&args, output),
            Self::Table(command) => command.run(output),
            Self::Tail(args) => tail::run(&args, output),
            Self::Export(args) => transfer::export(&args, output),
            Self::Import(args) => import::import(&args, output),
        }
    }
}

/// Exit code of a check that found damage or a difference.
pub(crate) const FOUND: u8 = 3;

/// Returns the exit code of a check: success if nothing was found, else [`FOUND`].
fn verdict(sound: bool) -> ExitCode {
    if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND)
    }
}
