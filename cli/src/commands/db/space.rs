//! `imt db compact` and `imt db stats`: free the space of dead records, and print MicroDb's
//! counters.

use super::open;
use super::show::bar;
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use serde_json::{Value as Json, json};
use std::path::Path;
use std::process::ExitCode;

/// Figures about the work of the process that has the database open. `imt db stats` leaves them
/// out, because it has just opened the database, and they are still zero or empty.
const OF_PROCESS: [&str; 13] = [
    "buffered_bytes",
    "commits",
    "records",
    "groups",
    "syncs",
    "checkpoints",
    "segments_removed",
    "relocated_bytes",
    "write_stalls",
    "write_stall_ns",
    "group_commits",
    "sync_ns",
    "durable_commit_ns",
];

pub(super) fn compact(path: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let db = open::to_change(path, false)?;
    let report = db.compact().map_err(|error| {
        let state =
            "no record was lost; some segments may be compacted already, damaged ones were left as they are";
        open::failed(path, state, error)
    })?;
    db.close().map_err(|error| {
        open::failed(
            path,
            "its log was compacted, but closing the database failed",
            error,
        )
    })?;
    match output {
        OutputFormat::Json => output::print_json(&report)?,
        OutputFormat::Table => output::print_text(&format!(
            "log {} -> {}: {} ({}) copied, {} removed",
            output::bytes(report.bytes_before),
            output::bytes(report.bytes_after),
            output::count(report.records_copied, "record"),
            output::bytes(report.bytes_copied),
            output::count(report.segments_removed, "segment"),
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Estimates the bytes that a compaction would copy, and the maximum that it would free, from the
/// usage of each segment.
pub(super) fn compact_dry(path: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let stats = open::to_look(path)?.stats();
    let dead = |segment: &&microdb::SegmentStats| segment.live_bytes < segment.bytes;
    let victims: Vec<_> = stats.segments.iter().filter(dead).collect();
    let copied: u64 = victims.iter().map(|segment| segment.live_bytes).sum();
    let freed: u64 = victims
        .iter()
        .map(|segment| segment.bytes - segment.live_bytes)
        .sum();
    if output == OutputFormat::Json {
        output::print_json(&json!({
            "log_bytes": stats.log_bytes, "segments": victims, "bytes_to_copy": copied, "bytes_to_free_at_most": freed,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![
        ["segment", "bytes", "live", "tombstones", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(victims.iter().map(|segment| {
        vec![
            segment.id.to_string(),
            output::bytes(segment.bytes),
            output::bytes(segment.live_bytes),
            output::bytes(segment.tombstone_bytes),
            bar(segment.live_bytes as f64 / segment.bytes.max(1) as f64, 20),
        ]
    }));
    output::print_text(&format!(
        "{}\nnothing was changed. A compaction would rewrite {}: copy {}, and give back up to {} of the log's {} (frame headers and tombstones that are still needed stay)",
        output::table(&rows),
        output::count(victims.len(), "segment"),
        output::bytes(copied),
        output::bytes(freed),
        output::bytes(stats.log_bytes),
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn stats(path: &Path, output: OutputFormat) -> Result<ExitCode, CliError> {
    let db = open::to_look(path)?;
    let (mut stats, tables) = (json!(db.stats()), db.tables());
    if let Some(figures) = stats.as_object_mut() {
        figures.retain(|name, _| !OF_PROCESS.contains(&name.as_str()));
        // MicroDb also counts the names of tables as keys. The sum over all tables has only the
        // user's keys.
        let keys: u64 = tables.iter().map(|table| table.keys).sum();
        figures.insert("keys".to_owned(), json!(keys));
    }
    let document = json!({ "path": path, "stats": stats, "tables": tables });
    if output == OutputFormat::Json {
        output::print_json(&document)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["figure", "value"].map(str::to_owned).to_vec()];
    let figures = document["stats"].as_object().into_iter().flatten();
    // Lists of objects are left out, because `imt db inspect` shows them.
    for (name, value) in
        figures.filter(|(_, value)| !matches!(value, Json::Array(list) if list.iter().any(Json::is_object)))
    {
        let text = match value {
            Json::String(text) => text.clone(),
            value => value.to_string(),
        };
        rows.push(vec![name.clone(), text]);
    }
    for table in tables {
        rows.push(vec![
            format!("table {}: keys", table.name),
            table.keys.to_string(),
        ]);
        rows.push(vec![
            format!("table {}: live bytes", table.name),
            table.live_bytes.to_string(),
        ]);
    }
    output::print_text(&output::table(&rows))?;
    Ok(ExitCode::SUCCESS)
}
