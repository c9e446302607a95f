//! Whole copies: `backup` and `restore`.

use super::open;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::{Db, Durability, Error, Options};
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of records written to a copy as one batch: few enough to keep memory small, enough that batches cost nothing.
const BATCH_BYTES: usize = 1 << 20;

pub(super) fn backup(path: &Path, to: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    check_free(to)?;
    match Options::new().create(false).background(false).open(path) {
        Ok(db) => {
            let made = db.backup_to(to).and_then(|report| db.close().map(|()| report));
            let report = made.map_err(|error| open::refused(path, error))?;
            match output {
                OutputFormat::Json => {
                    output::print_json(
                        &json!({ "path": path, "to": to, "in_use": false, "report": report }),
                    )?;
                }
                OutputFormat::Table => output::print_text(&format!(
                    "backed up to {} as of commit {}: {} segments linked, {} copied ({}). Check it: imt db verify {}{}",
                    to.display(),
                    report.sequence,
                    report.segments_linked,
                    report.segments_copied,
                    output::bytes(report.bytes_copied),
                    to.display(),
                    if report.segments_linked > 0 {
                        "\nlinked segments share this disk with the original: keep another copy elsewhere"
                    } else {
                        ""
                    },
                ))?,
            }
        }
        Err(Error::Locked { .. }) => copy_in_use(path, to, output)?,
        Err(error) => return Err(open::refused(path, error)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies all records of one moment of a database that another process writes.
fn copy_in_use(path: &Path, to: &Path, output: OutputFormat) -> Result<(), CliError> {
    let source = open::to_look(path)?;
    let copied = copy_records(&source, to);
    let records = copied.map_err(|error| open::refused(to, error))?;
    let sequence = source.sequence();
    match output {
        OutputFormat::Json => output::print_json(
            &json!({ "path": path, "to": to, "in_use": true, "records": records, "sequence": sequence }),
        ),
        OutputFormat::Table => output::print_text(&format!(
            "the database is in use, so its {records} records as of commit {sequence} were copied to {}: a database of its own, without the change history (to restore; nothing can be healed from it). Check it: imt db diff {} {}",
            to.display(),
            path.display(),
            to.display()
        )),
    }
}

fn copy_records(source: &Db, to: &Path) -> microdb::Result<u64> {
    let target = Options::new().durability(Durability::Buffered).open(to)?;
    let snapshot = source.snapshot();
    let total = source.tables().iter().map(|table| table.keys).sum();
    let (mut display, mut done) = (Display::new(total), 0);
    for info in source.tables() {
        let (Some(from), into) = (source.existing_table(&info.name), target.table(&info.name)?) else {
            continue;
        };
        let (mut batch, mut bytes) = (target.batch(), 0);
        for record in snapshot.iter(&from)? {
            let (key, value) = record?;
            bytes += key.len() + value.len();
            batch.put(&into, &key[..], &value[..]);
            done += 1;
            if bytes >= BATCH_BYTES {
                batch.commit()?;
                (batch, bytes) = (target.batch(), 0);
                display.show(done, total, &format!("{done} of {total} records copied"));
            }
        }
        batch.commit()?;
    }
    target.sync()?;
    target.close()?;
    Ok(done)
}

pub(super) fn restore(backup: &Path, to: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    check_free(to)?;
    let sequence = verified(backup, "the backup")?;
    // Under another name first: a restore that was stopped is never taken for a database.
    let mut unfinished = to.as_os_str().to_owned();
    unfinished.push(".restoring");
    let unfinished = PathBuf::from(unfinished);
    if unfinished.exists() {
        return Err(CliError::failed(format!(
            "{} is there: a restore was stopped, or runs now. Remove it if none runs, and try again",
            unfinished.display()
        )));
    }
    let bytes = copy_files(backup, &unfinished).map_err(|error| {
        CliError::because(
            format!("cannot copy to {}; remove it and try again", unfinished.display()),
            error,
        )
    })?;
    verified(&unfinished, "the copy")?;
    let parent = to
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let named = fs::rename(&unfinished, to).and_then(|()| File::open(parent)?.sync_all());
    named.map_err(|error| {
        CliError::because(
            format!("cannot rename {} to {}", unfinished.display(), to.display()),
            error,
        )
    })?;
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

/// Verifies a database; gives its sequence.
fn verified(path: &Path, what: &str) -> Result<u64, CliError> {
    let db = open::to_look(path)?;
    let mut display = Display::new(1);
    let report = db.verify_with(|done, total| {
        display.show(done, total, &format!("{what}: {} verified", output::bytes(done)));
    });
    let report = report.map_err(|error| open::refused(path, error))?;
    match report.damage.first() {
        None => Ok(db.sequence()),
        Some(damage) => Err(CliError::failed(format!(
            "{what} is damaged, nothing was put in place: {damage} (imt db verify {} lists all)",
            path.display()
        ))),
    }
}

/// Copies all files but the lock, durably. How many bytes.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<u64> {
    fs::create_dir_all(to)?;
    let mut bytes = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            bytes += copy_files(&entry.path(), &target)?;
        } else if entry.file_name() != "LOCK" {
            bytes += fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()?;
    Ok(bytes)
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
