//! Shows a segment as its header and a list of its frames. Shows a frame or the record of a key as
//! it is on disk: its fields, and its bytes as hexadecimal digits.

use super::records::no_such_key;
use super::show::{Form, FormArgs, hex, plain_hex};
use super::{open, verdict};
use crate::error::CliError;
use crate::output::{self, OutputFormat};
use microdb::inspect::{self, Field, FrameView, RecordView};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Number of bytes in a line of a hex dump.
const LINE_BYTES: usize = 16;
/// Maximum number of bytes in the hex dump of a record. The decoded value above the dump is
/// complete.
const DUMP_BYTES_MAX: usize = 1024;

pub(super) fn segment(path: &Path, id: u64, output: OutputFormat) -> Result<ExitCode, CliError> {
    let view = read(path, id)?;
    let damage = view.damage();
    if output == OutputFormat::Json {
        let frames: Vec<_> = view.frames.iter().map(|frame| frame_json(frame, false)).collect();
        output::print_json(&json!({
            "path": view.path, "id": view.id, "bytes": view.bytes, "header": fields_json(&view.header), "header_damage": view.header_damage,
            "frames": frames, "gaps": view.gaps, "damage": damage,
        }))?;
        return Ok(verdict(damage.is_empty()));
    }
    let mut text = format!(
        "{}, {}\n\n{}",
        view.path.display(),
        output::bytes(view.bytes),
        fields_text(&view.header)
    );
    if let Some(damage) = &view.header_damage {
        text.push_str(&format!("DAMAGED: {damage}\n"));
    }
    let mut rows = vec![
        ["frame", "end", "kind", "sequence", "records", "bytes", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for frame in &view.frames {
        let wrong = frame
            .damage
            .iter()
            .cloned()
            .chain(frame.records.iter().filter_map(|record| {
                record
                    .damage
                    .as_ref()
                    .map(|damage| format!("record at {}: {damage}", record.offset))
            }));
        let wrong = wrong.collect::<Vec<_>>().join("; ");
        rows.push(vec![
            frame.offset.to_string(),
            frame.end.to_string(),
            frame.kind.to_owned(),
            frame.sequence.to_string(),
            frame.records.len().to_string(),
            (frame.end - frame.offset).to_string(),
            if wrong.is_empty() {
                wrong
            } else {
                format!("DAMAGED: {wrong}")
            },
        ]);
    }
    text.push_str(&format!("\n{}", output::table(&rows)));
    for gap in &view.gaps {
        text.push_str(&format!(
            "\nbytes {} to {} hold no frame that can be read: {}\n",
            gap.offset, gap.end, gap.reason
        ));
    }
    if damage.is_empty() && !view.gaps.is_empty() {
        text.push_str("these bytes follow the last frame: a footer, or in the last segment a commit that a crash cut off\n");
    }
    text.push_str(&format!(
        "\none frame with its bytes: imt db inspect {} --frame {id}:OFFSET",
        path.display()
    ));
    output::print_text(&text)?;
    Ok(verdict(damage.is_empty()))
}

pub(super) fn frame(
    path: &Path,
    (id, offset): (u64, u64),
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let view = read(path, id)?;
    let Some(frame) = view
        .frames
        .iter()
        .find(|frame| (frame.offset..frame.end).contains(&offset))
    else {
        let nearest = view
            .frames
            .iter()
            .min_by_key(|frame| frame.offset.abs_diff(offset));
        let nearest = nearest.map_or_else(String::new, |frame| {
            format!("; the nearest begins at {}", frame.offset)
        });
        return Err(CliError::failed(format!(
            "no frame of segment {id} holds byte {offset}{nearest} (--segment {id} lists all)"
        )));
    };
    if output == OutputFormat::Json {
        output::print_json(&frame_json(frame, true))?;
    } else {
        let mut text = format!(
            "{}, frame at {} to {}\n\n{}",
            view.path.display(),
            frame.offset,
            frame.end,
            fields_text(&frame.header)
        );
        if let Some(damage) = &frame.damage {
            text.push_str(&format!("DAMAGED: {damage}\n"));
        }
        let names = names(path);
        for record in &frame.records {
            text.push_str(&record_text(record, &names));
        }
        output::print_text(&text)?;
    }
    let sound = frame.damage.is_none() && frame.records.iter().all(|record| record.damage.is_none());
    Ok(verdict(sound))
}

pub(super) fn key(
    path: &Path,
    table: &str,
    key: &str,
    form: FormArgs,
    output: OutputFormat,
) -> Result<ExitCode, CliError> {
    let db = open::to_look(path)?;
    let bytes = form.form_in(&db, table).parse_key(table, key)?;
    let handle = open::table(&db, table)?;
    let located = handle
        .location(&bytes)
        .map_err(|error| open::refused(path, error))?;
    let Some(microdb::LogPosition { segment: id, offset }) = located else {
        return Err(no_such_key(&handle, table, key));
    };
    let view = read(path, id)?;
    let holds = |frame: &&FrameView| (frame.offset..frame.end).contains(&offset.into());
    let frame = view.frames.iter().find(holds);
    let record = frame.and_then(|frame| {
        frame
            .records
            .iter()
            .find(|record| record.offset == u64::from(offset))
    });
    let (Some(frame), Some(record)) = (frame, record) else {
        return Err(CliError::failed(format!(
            "cannot show the record of key '{key}': a compaction has moved it from {id}:{offset}; run the command again"
        )));
    };
    if output == OutputFormat::Json {
        output::print_json(
            &json!({ "segment": id, "frame": frame.offset, "sequence": frame.sequence, "record": record_json(record) }),
        )?;
    } else {
        let names = [(record.table, table.to_owned())].into();
        output::print_text(&format!(
            "the live record of '{key}' in '{table}': segment {id}, offset {offset}, frame at {} ({} {})\n{}",
            frame.offset,
            frame.kind,
            frame.sequence,
            record_text(record, &names)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path, id: u64) -> Result<inspect::SegmentView, CliError> {
    inspect::segment(path, id).map_err(|error| match &error {
        microdb::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let there = inspect::folder(path)
                .map(|folder| folder.segments)
                .unwrap_or_default();
            let there: Vec<String> = there.iter().map(|(id, _)| id.to_string()).collect();
            CliError::failed(format!(
                "{} has no segment {id}; there are {}",
                path.display(),
                there.join(", ")
            ))
        }
        _ => open::refused(path, error),
    })
}

/// Returns the names of all tables by their ids, or no names if the database cannot be opened.
fn names(path: &Path) -> std::collections::HashMap<u32, String> {
    let tables = open::try_to_look(path).map(|db| db.tables()).unwrap_or_default();
    tables.into_iter().map(|table| (table.id, table.name)).collect()
}

fn fields_text(fields: &[Field]) -> String {
    let mut rows = vec![
        ["offset", "field", "bytes", "meaning"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(fields.iter().map(|field| {
        vec![
            field.offset.to_string(),
            field.name.to_owned(),
            hex(&field.bytes),
            field.meaning.clone(),
        ]
    }));
    output::table(&rows)
}

fn record_text(record: &RecordView, names: &std::collections::HashMap<u32, String>) -> String {
    let name = match record.table {
        0 => "the catalog".to_owned(),
        id => names.get(&id).cloned().unwrap_or_else(|| format!("table {id}")),
    };
    let value = Form::KNOWN.value_text(&name, &record.key, &record.value);
    let state = record.damage.as_ref().map_or_else(
        || "checksum right".to_owned(),
        |damage| format!("DAMAGED: {damage}"),
    );
    format!(
        "\nrecord at {}: {} in {name}, {}, {state}\n  key    {}\n  value  {value}\n{}",
        record.offset,
        record.kind,
        output::count(record.bytes.len(), "byte"),
        Form::KNOWN.key(&name, &record.key),
        dump(record.offset, &record.bytes)
    )
}

/// Returns a hex dump of the first [`DUMP_BYTES_MAX`] bytes. `offset` is the position of the first
/// byte in the file.
fn dump(offset: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes[..bytes.len().min(DUMP_BYTES_MAX)]
        .chunks(LINE_BYTES)
        .enumerate()
    {
        let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let letters: String = line
            .iter()
            .map(|byte| {
                if (32..127).contains(byte) {
                    char::from(*byte)
                } else {
                    '.'
                }
            })
            .collect();
        let at = offset + (index * LINE_BYTES) as u64;
        text.push_str(&format!(
            "  {at:>9}  {:<width$}  {letters}\n",
            digits.join(" "),
            width = LINE_BYTES * 3 - 1
        ));
    }
    if bytes.len() > DUMP_BYTES_MAX {
        text.push_str(&format!(
            "  ... and {} more\n",
            output::count(bytes.len() - DUMP_BYTES_MAX, "byte")
        ));
    }
    text
}

fn fields_json(fields: &[Field]) -> serde_json::Value {
    fields
        .iter()
        .map(|field| json!({ "offset": field.offset, "field": field.name, "bytes": plain_hex(&field.bytes), "meaning": field.meaning }))
        .collect()
}

fn frame_json(frame: &FrameView, with_records: bool) -> serde_json::Value {
    let records: Vec<_> = if with_records {
        frame.records.iter().map(record_json).collect()
    } else {
        Vec::new()
    };
    json!({
        "offset": frame.offset, "end": frame.end, "kind": frame.kind, "sequence": frame.sequence, "header": fields_json(&frame.header),
        "record_count": frame.records.len(), "records": records, "damage": frame.damage,
    })
}

fn record_json(record: &RecordView) -> serde_json::Value {
    json!({
        "offset": record.offset, "kind": record.kind, "table": record.table, "key": Form::RAW.key("", &record.key),
        "value": Form::RAW.value("", &[], &record.value), "bytes": plain_hex(&record.bytes), "damage": record.damage,
    })
}
