//! `imt db verify`: checks every checksum, with progress. If damage or another version keeps a
//! database from being opened, the damage in SUPER and in each segment is listed.

use super::{inspect, open, verdict};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::progress::Display;
use microdb::inspect::FolderView;
use microdb::{Db, Error};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Damage as text, and the numbers of segments, frames, records, log bytes and directory slots that
/// were checked.
#[derive(Default)]
struct Findings {
    segments: u64,
    frames: u64,
    records: u64,
    bytes: u64,
    slots: u64,
    damage: Vec<String>,
    /// Damage in the checkpoint, which can be rebuilt from the log.
    derived: Vec<String>,
    checkpoint_missing: bool,
    /// Reason why the database cannot be opened. `None` if it opens.
    closed: Option<String>,
}

pub(super) fn run(path: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let started = Instant::now();
    let mut findings = match open::try_to_look(path) {
        Ok(db) => of_open(path, &db).map_err(|error| open::refused(path, error))?,
        Err(error @ (Error::Corrupt { .. } | Error::Version { .. })) => {
            of_files(path, &error).map_err(|error| open::refused(path, error))?
        }
        Err(error) => return Err(open::refused(path, error)),
    };
    let seconds = started.elapsed().as_secs_f64();
    // The same damage may be found twice, by reading a record's frame and by following the
    // directory to the record.
    let mut seen = std::collections::HashSet::new();
    findings.damage.retain(|damage| seen.insert(damage.clone()));
    print(path, &findings, seconds, output)?;
    Ok(verdict(findings.damage.is_empty() && findings.derived.is_empty()))
}

fn of_open(path: &Path, db: &Db) -> microdb::Result<Findings> {
    let mut display = Display::new(1);
    let report = db.verify_with(|done, total| {
        let text = format!("{} of {} verified", output::bytes(done), output::bytes(total));
        display.show(done, total, &text);
    })?;
    // The file SUPER has two copies of its state. MicroDb uses a valid copy without reporting
    // damage in the other copy, so both copies are checked here.
    let mut damage = of_super(path, &inspect::settled_folder(path)?);
    damage.extend(report.damage);
    Ok(Findings {
        segments: report.segments,
        frames: report.frames,
        records: report.records,
        bytes: report.log_bytes,
        slots: report.slots,
        damage,
        derived: report.derived_damage,
        checkpoint_missing: report.checkpoint_missing,
        closed: None,
    })
}

/// Returns the damage in the two copies of the state that the file SUPER has.
fn of_super(path: &Path, folder: &FolderView) -> Vec<String> {
    let file = path.join("SUPER");
    let states = folder.states.iter().enumerate();
    let damage = states.filter_map(|(copy, state)| {
        let damage = state.as_ref().err()?;
        Some(format!(
            "{}: copy {} of the state: {damage}",
            file.display(),
            copy + 1
        ))
    });
    damage.collect()
}

/// Checks SUPER and each segment of a database that cannot be opened, and lists the segments
/// without a file. `why` is the error of the failed open.
fn of_files(path: &Path, why: &Error) -> microdb::Result<Findings> {
    let folder = microdb::inspect::folder(path)?;
    let mut findings = Findings {
        closed: Some(why.to_string()),
        damage: of_super(path, &folder),
        ..Findings::default()
    };
    for id in &folder.missing {
        findings.damage.push(format!(
            "segment {id} is part of the log, and its file is not there"
        ));
    }
    let total = folder.segments.iter().map(|(_, bytes)| bytes).sum();
    let mut display = Display::new(total);
    for (id, bytes) in &folder.segments {
        display.show(findings.bytes, total, &format!("segment {id}"));
        let segment = microdb::inspect::segment(path, *id)?;
        findings.segments += 1;
        findings.frames += segment.frames.len() as u64;
        findings.records += segment
            .frames
            .iter()
            .map(|frame| frame.records.len() as u64)
            .sum::<u64>();
        findings.bytes += bytes;
        findings.damage.extend(segment.damage());
    }
    // The error of opening may describe damage that the check of a segment has found too. Such
    // damage is listed once.
    let is_met = match why {
        Error::Corrupt { path, offset, .. } => {
            let place = format!("{} at byte {offset}:", path.display());
            findings.damage.iter().any(|damage| damage.starts_with(&place))
        }
        _ => false,
    };
    if !is_met {
        findings.damage.insert(0, why.to_string());
    }
    Ok(findings)
}

fn print(path: &Path, findings: &Findings, seconds: f64, output: OutputFormat) -> Result<(), CliError> {
    let Findings {
        segments,
        frames,
        records,
        bytes,
        slots,
        damage,
        derived,
        checkpoint_missing,
        closed,
    } = findings;
    if output == OutputFormat::Json {
        return output::print_json(&json!({
            "path": path, "sound": damage.is_empty() && derived.is_empty(), "opens": closed.is_none(), "segments": segments, "frames": frames, "records": records,
            "log_bytes": bytes, "slots": slots, "seconds": seconds, "damage": damage,
            "derived_damage": derived, "checkpoint_missing": checkpoint_missing,
        }));
    }
    let speed = output::bytes((*bytes as f64 / seconds.max(1e-9)) as u64);
    let mut text = format!(
        "{}, {}, {}, {} verified in {seconds:.2} s ({speed}/s); {} of the directory followed to the record\n",
        output::count(*segments, "segment"),
        output::count(*frames, "frame"),
        output::count(*records, "record"),
        output::bytes(*bytes),
        output::count(*slots, "key")
    );
    if *checkpoint_missing {
        text.push_str(
            "the checkpoint was deleted, which is no damage: the log is replayed on open, and the next checkpoint takes its place\n",
        );
    }
    text.push_str(&match (damage.is_empty(), derived.is_empty()) {
        (true, true) => "sound: no damage anywhere".to_owned(),
        (true, false) => derived_text(path, derived),
        (false, _) => damage_text(path, damage, derived, closed.is_some()),
    });
    output::print_text(&text)
}

fn listed(damage: &[String]) -> String {
    let lines = damage.iter().enumerate();
    lines
        .map(|(number, damage)| format!("{:>4}. {damage}\n", number + 1))
        .collect()
}

/// Returns the report for a database that has damage only in its checkpoint.
fn derived_text(path: &Path, derived: &[String]) -> String {
    let (places, place) = (output::count(derived.len(), "place"), path.display());
    format!(
        "DAMAGED in {places}, all of it in the checkpoint:\n{}\nNo record is damaged. The checkpoint is derived from the log:\n\
         - Stop the node, delete the file that is named above, and start the node: opening replays the log and makes another one.\n\
         - Then verify again: imt db verify {place}",
        listed(derived)
    )
}

fn damage_text(path: &Path, damage: &[String], derived: &[String], is_closed: bool) -> String {
    let place = path.display();
    let mut text = format!(
        "DAMAGED in {}:\n{}",
        output::count(damage.len(), "place"),
        listed(damage)
    );
    if !derived.is_empty() {
        text.push_str(&format!(
            "and in the checkpoint, which is derived from the log and may be deleted while the node is stopped:\n{}",
            listed(derived)
        ));
    }
    text.push_str("\nWhat to do:\n");
    text.push_str(if is_closed {
        "- The database does not open, so that nothing gets worse: its files are as they were.\n"
    } else {
        "- The database opens: reads of damaged records give an error, all others are right. Stop its node before repairing.\n"
    });
    text.push_str(&format!(
        "- Copy the folder elsewhere before anything else, and look at the disk (dmesg, smartctl).\n\
         - With a backup: imt db heal {place} --from BACKUP restores the original bytes where they can be proven; then verify again.\n\
         - If that is not enough: imt db restore BACKUP NEW_FOLDER. `imt db diff NEW_FOLDER {place}` lists the differences if {place} opens.\n\
         - Without a backup: imt db salvage {place} NEW_FOLDER saves all readable records, and lists the losses.\n\
         - To see the bytes: imt db inspect {place} --segment N"
    ));
    text
}
