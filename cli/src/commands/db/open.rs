//! Opens databases for commands, and turns errors of MicroDb into messages, most of them with a
//! remedy.

use crate::error::CliError;
use microdb::{Db, Error, Options, Table};
use std::path::Path;

/// Names of tables that every node's database has. Another database is unlikely to have all three.
const NODE_TABLES: [&str; 3] = ["orders", "arrivals", "meta"];

/// Returns `true` if the database is the volume of a node, judged by its tables.
pub(super) fn is_of_node(db: &Db) -> bool {
    NODE_TABLES.iter().all(|name| db.get_table(name).is_some())
}

/// Opens a database read-only. Turns an error of MicroDb into an error to print.
pub(super) fn to_look(path: &Path) -> Result<Db, CliError> {
    try_to_look(path).map_err(|error| refused(path, error))
}

/// Opens a database read-only. Returns MicroDb's error unchanged, for callers that handle it.
pub(super) fn try_to_look(path: &Path) -> microdb::Result<Db> {
    Options::new().read_only(true).open(path)
}

/// Opens a database for writing. With `create`, creates the database if it does not exist.
pub(super) fn to_change(path: &Path, create: bool) -> Result<Db, CliError> {
    Options::new()
        .create(create)
        .open(path)
        .map_err(|error| refused(path, error))
}

/// Returns the error to print after a failed action that has changed nothing in the database.
pub(super) fn refused(path: &Path, error: Error) -> CliError {
    failed(path, "nothing was changed", error)
}

/// Returns the error to print for an error of MicroDb, with a remedy if one is known. `state` is a
/// sentence about the data on disk. The message lacks this sentence if the database is in use, does
/// not exist or has a newer version, because the database was not opened then.
pub(super) fn failed(path: &Path, state: &str, error: Error) -> CliError {
    let place = path.display();
    let full = error.is_disk_full();
    match &error {
        Error::Locked { holder, .. } => {
            let holder = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
            CliError::failed(format!(
                "the database {place} is in use{holder}; stop that process first, or only look: all commands of `imt db` that change nothing work meanwhile, and so does backup"
            ))
        }
        Error::NotADatabase { .. } => CliError::failed(format!(
            "there is no database at {place}; a node's is at DATA/volumes/NAME (put and import make a new one with --create)"
        )),
        Error::Corrupt { path: file, .. } if file.starts_with(path.join("directory")) => {
            let file = file.display();
            CliError::because(
                format!(
                    "the checkpoint of the database {place} is damaged; {state}. No record is damaged: stop the node, delete {file}, and opening replays the log"
                ),
                error,
            )
        }
        Error::Corrupt { .. } => CliError::because(
            format!(
                "the database {place} is damaged; {state}. `imt db verify {place}` lists the damage; restore a backup (`imt db restore`), or save the readable records (`imt db salvage {place} NEW_FOLDER`)"
            ),
            error,
        ),
        Error::Version { .. } => CliError::because(
            format!("the database {place} was written by a newer imt; use that one"),
            error,
        ),
        _ if full => {
            let disk = of_path(&error).unwrap_or(path).display();
            let message = format!(
                "the disk of {disk} is full; {state}. Nothing that was acknowledged is lost; free some space and try again"
            );
            CliError::because(message, error)
        }
        Error::Io { source, path: at, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied && at.starts_with(path) =>
        {
            CliError::because(
                format!(
                    "the database {place} belongs to somebody else; {state}. Run this as the user that the node runs as"
                ),
                error,
            )
        }
        _ => CliError::because(format!("the database {place} cannot be used; {state}"), error),
    }
}

/// Returns the path that the operating system could not access, if the error has such a path.
fn of_path(error: &Error) -> Option<&Path> {
    match error {
        Error::Io { path, .. } => Some(path),
        Error::Poisoned { cause } => of_path(cause),
        _ => None,
    }
}

/// Returns the table called `name`. If it does not exist, the error lists the tables that exist.
pub(super) fn table(db: &Db, name: &str) -> Result<Table, CliError> {
    db.get_table(name).ok_or_else(|| {
        let names: Vec<String> = db.tables().into_iter().map(|table| table.name).collect();
        let has = if names.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        CliError::failed(format!(
            "the database {} has no table '{name}'; {has}",
            db.path().display()
        ))
    })
}
