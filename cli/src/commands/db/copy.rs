//! `imt db backup` and `imt db restore`: copies of whole databases.

use super::open;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::storage::{OsStorage, Storage};
use microdb::{BackupReport, Db, Error, Options};
use serde_json::json;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Mode in which a backup has opened its source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The source is open for writing, because no other process has the database open for writing.
    Own,
    /// The source is open read-only, because another process has the database open for writing.
    InUse,
    /// The source is open read-only, because its files cannot be written.
    ReadOnly,
}

pub(super) fn backup(path: &Path, to: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    check_free(to)?;
    check_apart(path, to)?;
    let (db, source) = open_source(path).map_err(|error| open::refused(path, error))?;
    let (report, closed) = match db.backup_to(to) {
        Ok(report) => (report, db.close()),
        Err(error) => return Err(open::failed(path, &unfinished_state(to), error)),
    };
    // The backup is complete and durable even if closing the source fails.
    match output {
        OutputFormat::Json => output::print_json(&json!({
            "path": path, "to": to, "in_use": source == Source::InUse, "read_only": source == Source::ReadOnly,
            "report": report,
        }))?,
        OutputFormat::Table => output::print_text(&backup_text(source, &report, to))?,
    }
    closed.map_err(|error| {
        let state = format!(
            "the backup in {} is complete and durable, but closing the database failed",
            to.display()
        );
        open::failed(path, &state, error)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn open_source(path: &Path) -> microdb::Result<(Db, Source)> {
    let source = match Options::new().create(false).background(false).open(path) {
        Ok(db) => return Ok((db, Source::Own)),
        Err(Error::Locked { .. }) => Source::InUse,
        Err(Error::Io { source, .. })
            if matches!(
                source.kind(),
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied
            ) =>
        {
            Source::ReadOnly
        }
        Err(error) => return Err(error),
    };
    Ok((open::try_to_look(path)?, source))
}

fn backup_text(source: Source, report: &BackupReport, to: &Path) -> String {
    let how = match source {
        Source::Own => "",
        Source::InUse => " (the database is in use: its state on the disk was copied)",
        Source::ReadOnly => " (the database cannot be written: it was copied as it is)",
    };
    let links = if report.segments_linked > 0 {
        "\nlinked segments share this disk with the original: keep another copy elsewhere"
    } else {
        ""
    };
    format!(
        "backed up to {} as of commit {}{how}: {} linked, {} copied ({}). Check it: imt db verify {}{links}",
        to.display(),
        report.sequence,
        output::count(report.segments_linked, "segment"),
        report.segments_copied,
        output::bytes(report.bytes_copied),
        to.display(),
    )
}

/// Returns a sentence about the original and the folder `to` after a failed copy.
fn unfinished_state(to: &Path) -> String {
    let left = fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some());
    if left {
        let to = to.display();
        format!(
            "the original was not changed. {to} holds an unfinished copy, which is no database: remove it"
        )
    } else {
        "the original was not changed, and nothing was copied".to_owned()
    }
}

pub(super) fn restore(backup: &Path, to: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    check_free(to)?;
    check_apart(backup, to)?;
    let db = open::to_look(backup)?;
    verify(&db, "the backup").map_err(|error| error.told(backup, "nothing was restored"))?;
    // The copy gets its final name last. So a restore that fails or is killed leaves no unverified
    // database under that name.
    let mut unfinished = to.as_os_str().to_owned();
    unfinished.push(".restoring");
    let unfinished = PathBuf::from(unfinished);
    if unfinished.exists() {
        return Err(CliError::failed(format!(
            "{} is there: a restore was stopped, or runs now. Remove it if none runs, and try again",
            unfinished.display()
        )));
    }
    let state = format!(
        "nothing was restored. Remove {}, and try again",
        unfinished.display()
    );
    let copied = db.backup_to(&unfinished);
    let report = copied.map_err(|error| open::failed(backup, &state, error))?;
    let copy = open::try_to_look(&unfinished).map_err(|error| open::failed(&unfinished, &state, error))?;
    verify(&copy, "the copy").map_err(|error| error.told(&unfinished, &state))?;
    put_in_place(&unfinished, to, &state)?;
    let (sequence, bytes) = (report.sequence, report.bytes_copied);
    match output {
        OutputFormat::Json => {
            output::print_json(&json!({ "backup": backup, "to": to, "sequence": sequence, "bytes": bytes }))?;
        }
        OutputFormat::Table => output::print_text(&format!(
            "restored {} ({}) as of commit {sequence}; the backup and the copy were verified",
            to.display(),
            output::bytes(bytes)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Renames a verified copy to its final name, and syncs the parent folder so that the name is
/// durable.
fn put_in_place(unfinished: &Path, to: &Path, state: &str) -> Result<(), CliError> {
    fs::rename(unfinished, to).map_err(|error| {
        let (unfinished, to) = (unfinished.display(), to.display());
        CliError::because(format!("cannot rename {unfinished} to {to}; {state}"), error)
    })?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let synced = File::open(parent.unwrap_or(Path::new("."))).and_then(|parent| parent.sync_all());
    synced.map_err(|error| {
        let message = format!(
            "{} is restored and verified, but its name may not survive a power cut: the folder above it cannot be synced",
            to.display()
        );
        CliError::because(message, error)
    })
}

/// Reason why the verification of a database failed.
enum Unsound {
    Damage(String),
    Refused(Error),
}

impl Unsound {
    fn told(self, path: &Path, state: &str) -> CliError {
        let path_text = path.display();
        match self {
            Self::Damage(damage) => CliError::failed(format!(
                "{path_text} is damaged: {damage} (imt db verify {path_text} lists all); {state}"
            )),
            Self::Refused(error) => open::failed(path, state, error),
        }
    }
}

/// Verifies a database. The progress display shows `label`.
fn verify(db: &Db, label: &str) -> Result<(), Unsound> {
    let mut display = Display::new(1);
    let report = db.verify_with(|done, total| {
        display.show(done, total, &format!("{label}: {} verified", output::bytes(done)));
    });
    match report.map_err(Unsound::Refused)?.damage.into_iter().next() {
        None => Ok(()),
        Some(damage) => Err(Unsound::Damage(damage)),
    }
}

/// Refuses two folders that are the same folder, or of which one is inside the other. Otherwise the
/// files of one database would be in the folder of the other.
fn check_apart(source: &Path, to: &Path) -> Result<(), CliError> {
    for (inner, outer) in [(to, source), (source, to)] {
        let is_within = OsStorage.is_within(inner, outer);
        let (inner, outer) = (inner.display(), outer.display());
        if is_within.map_err(|error| CliError::because(format!("cannot look at {inner}"), error))? {
            return Err(CliError::failed(format!(
                "{inner} lies within {outer}; name a folder apart from it. Nothing was copied"
            )));
        }
    }
    Ok(())
}

fn check_free(to: &Path) -> Result<(), CliError> {
    let taken = fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        return Err(CliError::failed(format!(
            "{} is not empty; name a new folder, or move this one away",
            to.display()
        )));
    }
    Ok(())
}
