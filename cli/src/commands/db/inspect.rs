//! `imt db inspect`: shows a database on one page, even if it is damaged or in use.

use super::show::{FormArgs, Histogram, bar};
use super::{FOUND, inspect_parts, open, verdict};
use crate::args;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::{Db, Error, RecoveryReport, Stats, inspect};
use serde_json::{Map, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Maximum number of keys of a database for which sizes are counted even without `--sizes`.
/// Counting the sizes of this number of keys takes about a second.
const SIZES_KEYS_MAX: u64 = 1_000_000;
/// Maximum number of segments in the list of segments. The middle of a longer list is left out.
const SEGMENT_ROWS: usize = 40;

/// Arguments of `imt db inspect`.
#[derive(clap::Args)]
pub(crate) struct InspectArgs {
    /// Folder of the database
    path: PathBuf,
    /// Show the frames of this segment
    #[arg(long, value_name = "N", group = "piece")]
    segment: Option<u64>,
    /// Show the frame at this location, with its bytes
    #[arg(long, value_name = "SEGMENT:OFFSET", group = "piece", value_parser = args::frame)]
    frame: Option<(u64, u64)>,
    /// Show the location of a key's record, with its bytes
    #[arg(long, num_args = 2, value_names = ["TABLE", "KEY"], group = "piece")]
    key: Option<Vec<String>>,
    #[command(flatten)]
    form: FormArgs,
    /// Count the sizes of all keys and values; reads all records
    #[arg(long)]
    sizes: bool,
}

pub(super) fn run(args: &InspectArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let path = &args.path;
    if let Some(id) = args.segment {
        return inspect_parts::segment(path, id, output);
    }
    if let Some(place) = args.frame {
        return inspect_parts::frame(path, place, output);
    }
    if let Some([table, key]) = args.key.as_deref() {
        return inspect_parts::key(path, table, key, args.form, output);
    }
    match open::try_to_look(path) {
        Ok(db) => whole(&db, args, output),
        Err(error @ Error::Corrupt { .. }) => damaged(path, error, output),
        Err(error) => Err(open::refused(path, error)),
    }
}

/// Shows a database that could be opened.
fn whole(db: &Db, args: &InspectArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let path = &args.path;
    let (stats, tables, recovery) = (db.stats(), db.tables(), db.recovery());
    let folder = settled_folder(path).map_err(|error| open::refused(path, error))?;
    let sizes = if args.sizes || stats.keys <= SIZES_KEYS_MAX {
        sizes(db).map_err(|error| open::refused(path, error))?
    } else {
        Map::new()
    };
    let damage = damage_met(path, &folder, recovery, &sizes);
    let age_s = checkpoint_age(path, recovery.checkpoint);
    let fill = directory_fill(&stats);
    if output == OutputFormat::Json {
        output::print_json(&json!({
            "path": path, "created_ms": folder.created_ms, "stats": stats, "tables": tables, "recovery": recovery,
            "checkpoint_age_s": age_s, "directory_fill": fill, "sizes": sizes, "damage": damage,
        }))?;
        return Ok(verdict(damage.is_empty()));
    }
    let mut text = head(path, (&stats, tables.len()), recovery, &folder, age_s);
    let mut rows = vec![
        ["table", "keys", "live", "mean record"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(tables.iter().map(|table| {
        vec![
            table.name.clone(),
            table.keys.to_string(),
            output::bytes(table.live_bytes),
            output::bytes(table.live_bytes / table.keys.max(1)),
        ]
    }));
    text.push_str(&format!("\n{}\n{}", output::table(&rows), segments(&stats)));
    for (what, counted) in &sizes {
        if let Ok(counted) = serde_json::from_value::<Vec<u64>>(counted["counts"].clone()) {
            text.push_str(&format!(
                "\n{what}, bytes\n{}",
                Histogram::from_counts(counted).lines()
            ));
        }
    }
    if sizes.is_empty() {
        text.push_str("\nsizes are not counted of so many keys (--sizes does)");
    }
    if !damage.is_empty() {
        text.push_str(&format!(
            "\n\nDAMAGED in {}, met on the way:\n",
            output::count(damage.len(), "place")
        ));
        for damage in &damage {
            text.push_str(&format!("- {damage}\n"));
        }
        let place = path.display();
        text.push_str(&format!(
            "imt db verify {place} reads every byte, and lists the remedies."
        ));
    }
    output::print_text(&text)?;
    Ok(verdict(damage.is_empty()))
}

/// Returns a view of the database's folder. The file SUPER has two copies of the database's state.
/// While one of them looks damaged, the folder is read again, up to three times in all, because
/// another process may be writing that copy.
pub(super) fn settled_folder(path: &Path) -> microdb::Result<inspect::FolderView> {
    const LOOKS: u32 = 3;
    let mut folder = inspect::folder(path)?;
    for _ in 1..LOOKS {
        if folder.states.iter().all(Result::is_ok) {
            break;
        }
        folder = inspect::folder(path)?;
    }
    Ok(folder)
}

/// Returns the damage that this command found although the database opens.
fn damage_met(
    path: &Path,
    folder: &inspect::FolderView,
    recovery: &RecoveryReport,
    sizes: &Map<String, serde_json::Value>,
) -> Vec<String> {
    let states = folder.states.iter().enumerate().filter_map(|(copy, state)| {
        let damage = state.as_ref().err()?;
        let file = path.join("SUPER");
        Some(format!(
            "{}, copy {} of the state: {damage}; the other one is used",
            file.display(),
            copy + 1
        ))
    });
    let mut found: Vec<String> = states.collect();
    if recovery.checkpoint_unusable && has_named_checkpoint(folder) {
        let folder = path.join("directory");
        found.push(format!(
            "{}: the checkpoint is damaged; no record is lost, the log is read instead",
            folder.display()
        ));
    }
    match sizes.get("damaged").and_then(serde_json::Value::as_u64) {
        None | Some(0) => {}
        Some(records) => found.push(format!(
            "{}, or parts of the directory, give an error when they are read",
            output::count(records, "record")
        )),
    }
    found
}

/// Returns `true` if the checkpoint that SUPER names has a file. A user may delete a checkpoint,
/// because the next open replays the log instead. So a missing checkpoint is no damage, even if the
/// files of other checkpoints exist.
fn has_named_checkpoint(folder: &inspect::FolderView) -> bool {
    let mut checkpoints = folder.checkpoints.iter();
    checkpoints.any(|(generation, _)| folder.checkpoint == Some(*generation))
}

fn head(
    path: &Path,
    (stats, names): (&Stats, usize),
    recovery: &RecoveryReport,
    folder: &inspect::FolderView,
    age_s: Option<u64>,
) -> String {
    let checkpoint = match (recovery.checkpoint, age_s) {
        (0, _) if recovery.checkpoint_unusable => {
            "the one that SUPER names is missing or damaged; the whole log was replayed, nothing is lost"
                .to_owned()
        }
        (0, _) => "none yet: the whole log is replayed on open".to_owned(),
        (generation, age) => {
            let age = age.map_or_else(String::new, |age| {
                format!(
                    ", written {} ago",
                    humantime::format_duration(std::time::Duration::from_secs(age))
                )
            });
            format!(
                "number {generation}{age}; {} of the log behind it",
                output::bytes(recovery.bytes_replayed)
            )
        }
    };
    // MicroDb counts the name of each table as a key, because its catalog has a record for the
    // table.
    let keys = stats.keys.saturating_sub(names as u64);
    format!(
        "database   {}\nid         {}\ncreated    {}\nsequence   {} (durable to {}, frontier {})\nkeys       {keys} in {}\nlog        {} in {}\n           {} live {}, {} dead\ndirectory  {} of memory, {:.1} bytes a key, {:.0} % full\ncheckpoint {checkpoint}\nrecovery   {}\n",
        path.display(),
        stats.database,
        folder
            .created_ms
            .map_or_else(|| "unknown".to_owned(), output::date),
        stats.sequence,
        stats.durable_sequence,
        stats.frontier,
        output::count(names, "table"),
        output::bytes(stats.log_bytes),
        output::count(stats.segments.len(), "segment"),
        output::bytes(stats.live_bytes),
        bar(stats.live_bytes as f64 / stats.log_bytes.max(1) as f64, 30),
        output::bytes(stats.dead_bytes),
        output::bytes(stats.directory_bytes),
        stats.directory_bytes as f64 / stats.keys.max(1) as f64,
        directory_fill(stats) * 100.0,
        recovery_text(path, recovery),
    )
}

/// Returns the share of the directory's bytes that used slots take. Each key uses one slot of 8
/// bytes.
fn directory_fill(stats: &Stats) -> f64 {
    (stats.keys * 8) as f64 / stats.directory_bytes.max(1) as f64
}

fn segments(stats: &Stats) -> String {
    let mut rows = vec![
        ["segment", "state", "bytes", "live", "tombstones", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    let (count, half) = (stats.segments.len(), SEGMENT_ROWS / 2);
    for (index, segment) in stats.segments.iter().enumerate() {
        if count > SEGMENT_ROWS && (half..count - half).contains(&index) {
            if index == half {
                rows.push(vec!["...".to_owned(), format!("{} more", count - SEGMENT_ROWS)]);
            }
            continue;
        }
        rows.push(vec![
            segment.id.to_string(),
            // A database that is open read-only reports every segment as sealed, even the last one,
            // to which new frames are appended.
            match segment.sealed {
                true if segment.id != stats.frontier.segment => "sealed",
                true => "last",
                false => "active",
            }
            .to_owned(),
            output::bytes(segment.bytes),
            output::bytes(segment.live_bytes),
            output::bytes(segment.tombstone_bytes),
            bar(segment.live_bytes as f64 / segment.bytes.max(1) as f64, 20),
        ]);
    }
    output::table(&rows)
}

/// Counts the sizes of all keys and values. Unreadable records are counted as damaged.
fn sizes(db: &Db) -> microdb::Result<Map<String, serde_json::Value>> {
    let (mut keys, mut values, mut damaged) = (Histogram::default(), Histogram::default(), 0);
    let snapshot = db.snapshot();
    for table in db.tables().iter().filter_map(|info| db.get_table(&info.name)) {
        for record in snapshot.iter(&table)? {
            match record {
                Ok((key, value)) => {
                    keys.add(key.len());
                    values.add(value.len());
                }
                Err(_) => damaged += 1,
            }
        }
    }
    let mut sizes = Map::new();
    sizes.insert("keys".to_owned(), json!(keys));
    sizes.insert("values".to_owned(), json!(values));
    sizes.insert("damaged".to_owned(), json!(damaged));
    Ok(sizes)
}

/// Returns the age of a checkpoint in seconds, according to the modification time of its file.
/// Returns `None` if this time cannot be read or is in the future.
fn checkpoint_age(path: &Path, generation: u64) -> Option<u64> {
    let file = path.join(format!("directory/{generation:010}.idx"));
    let age = std::fs::metadata(file).ok()?.modified().ok()?.elapsed().ok()?;
    Some(age.as_secs())
}

/// Returns the id of the process that has the database open for writing. The file LOCK names it.
/// Returns `None` if LOCK cannot be read or names no process, or if the named process does not have
/// LOCK open, as far as its open files can be read.
fn user(path: &Path) -> Option<u32> {
    let lock = path.join("LOCK").canonicalize().ok()?;
    let process: u32 = std::fs::read_to_string(&lock).ok()?.trim().parse().ok()?;
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let mut open = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    open.any(|file| file == lock).then_some(process)
}

/// Returns in one line the work that recovery has to do at the next open, or the process that has
/// the database open now.
fn recovery_text(path: &Path, recovery: &RecoveryReport) -> String {
    if let Some(process) = user(path) {
        return format!("not now: process {process} has it open; this is what it has written so far");
    }
    if recovery.clean {
        return "not needed: the database was closed cleanly".to_owned();
    }
    let dropped = match recovery.dropped_bytes {
        0 => "nothing has to be dropped".to_owned(),
        bytes => format!(
            "{} of an unfinished commit behind the durable frontier will be dropped: it was never acknowledged as durable",
            output::bytes(bytes)
        ),
    };
    format!(
        "needed on the next open, unless a process has it open now: {} to replay, {dropped}",
        output::count(recovery.frames_replayed, "frame")
    )
}

/// Shows the files of a database that could not be opened because of damage.
fn damaged(path: &Path, error: Error, output: OutputFormat) -> Result<ExitCode, CliError> {
    let folder = inspect::folder(path).map_err(|error| open::refused(path, error))?;
    let mut segments = Vec::new();
    for (id, bytes) in &folder.segments {
        let segment = inspect::segment(path, *id).map_err(|error| open::refused(path, error))?;
        let records: usize = segment.frames.iter().map(|frame| frame.records.len()).sum();
        let damage = segment.damage();
        segments.push(json!({ "id": id, "bytes": bytes, "frames": segment.frames.len(), "records": records, "damage": damage }));
    }
    if output == OutputFormat::Json {
        output::print_json(
            &json!({ "path": path, "opens": false, "error": error.to_string(), "folder": folder, "segments": segments }),
        )?;
        return Ok(ExitCode::from(FOUND));
    }
    let mut text = format!(
        "database   {}\nDOES NOT OPEN: {error}\n\nWhat its files tell:\n",
        path.display()
    );
    for (copy, state) in folder.states.iter().enumerate() {
        let state = state.as_ref().map_or_else(
            |damage| format!("DAMAGED: {damage}"),
            |generation| format!("whole, generation {generation}"),
        );
        text.push_str(&format!("SUPER, copy {}  {state}\n", copy + 1));
    }
    if let Some(database) = &folder.database {
        text.push_str(&format!("id             {database}\n"));
    }
    if let Some(frontier) = folder.frontier {
        text.push_str(&format!(
            "durable to     {frontier} (everything before it was acknowledged)\n"
        ));
    }
    text.push_str(&format!("checkpoints    {}\n", folder.checkpoints.len()));
    if !folder.missing.is_empty() {
        text.push_str(&format!("MISSING        segments {:?}\n", folder.missing));
    }
    let mut rows = vec![
        ["segment", "bytes", "frames", "records", "state"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for segment in &segments {
        let damage = segment["damage"].as_array().map_or(0, Vec::len);
        let state = if damage == 0 {
            "whole".to_owned()
        } else {
            format!("DAMAGED in {}", output::count(damage, "place"))
        };
        let bytes = output::bytes(segment["bytes"].as_u64().unwrap_or(0));
        rows.push(vec![
            segment["id"].to_string(),
            bytes,
            segment["frames"].to_string(),
            segment["records"].to_string(),
            state,
        ]);
    }
    let place = path.display();
    text.push_str(&format!(
        "\n{}\nNothing was changed. imt db verify {place} lists all damage and the remedies; imt db salvage {place} NEW_FOLDER saves all readable records.",
        output::table(&rows)
    ));
    output::print_text(&text)?;
    Ok(ExitCode::from(FOUND))
}
