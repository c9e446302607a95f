//! The last step of an open: applies the result of replay to the engine and brings the files into
//! agreement with it.
//!
//! - Everything that replay made visible is durable before an open for writing returns.
//! - A file is removed only after a state in SUPER that does not name the file is durable.
//!
//! Deliberately absent: decisions about damage, which are in `replay`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::replay::Cut;
use super::{FIRST_GENERATION, sync_root};
use crate::engine::identity::{is_foreign_checkpoint, is_own_segment};
use crate::engine::log::{Active, Pending};
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::{LogPosition, names};
use crate::raw::tail::TailWriter;
use crate::recover::log_reader::{Scan, SegmentFile};
use crate::seeded::seeded;
use crate::storage::{OpenMode, StorageFile};

/// Prepares the engine to continue the log at the end that replay found. Changes no file.
pub(super) fn adopt(engine: &Engine, scan: &Scan, cut: &Cut) -> Result<()> {
    let mut core = lock(&engine.core);
    core.end = cut.end;
    core.published = cut.end;
    if !seeded("segment-id-reused") {
        core.next_segment = core.next_segment.max(scan.next_segment);
    }
    let Some(last) = cut.segment.and_then(|index| scan.segments.get(index)) else {
        return Ok(());
    };
    let max = engine.options.segment_bytes_max;
    core.segment_bytes_next = last.header.data_bytes_max.saturating_mul(2).min(max);
    let end = cut.end.position.offset;
    if cut.torn && !engine.options.read_only {
        // The file will be truncated at the end of the log, so mapped bytes beyond it must not be
        // read any more.
        engine.segments.put(Arc::new(last.segment.cut_to(end)));
    }
    if engine.options.read_only || cut.torn || last.sealed_end.is_some() || end >= last.header.data_bytes_max
    {
        return Ok(());
    }
    // The last segment has room, so the log continues in it.
    let room = (last.header.data_bytes_max - end) as usize;
    let tail = TailWriter::with_capacity(room, end, &engine.spare)
        .map_err(Error::io("cannot get memory for", &last.segment.path))?;
    let segment = Arc::new(last.segment.cut_to(end).with_tail(tail.buffer().clone()));
    let file = open_to_write(engine, &segment.path)?;
    engine.segments.put(segment.clone());
    let mut writer = lock(&engine.writer);
    writer.pending.push_back(Pending {
        segment: segment.clone(),
        file: file.clone(),
        written: end,
        sealed_end: None,
        // Not dirty, because the bytes found in the segment are durable, or `settle` syncs them
        // before the open returns.
        dirty: false,
        cut: false,
    });
    // The segment is active again. The end 0 excludes it from compaction, which works only on
    // complete segments.
    core.usages.set_end(segment.id, 0);
    core.active = Some(Active {
        segment,
        file,
        tail,
        base: end,
        allocated: end,
    });
    Ok(())
}

/// Opens a segment file for writing, after replay.
fn open_to_write(engine: &Engine, path: &Path) -> Result<Arc<dyn StorageFile>> {
    let file = engine.options.storage.open(path, OpenMode::ReadWrite);
    file.map_err(Error::io("cannot open", path))
}

/// Removes from the folder `directory` the temporary files, and the checkpoints that SUPER does not
/// name. A crash may have left them. Keeps checkpoints of another database, folders and pipes.
fn remove_other_checkpoints(engine: &Engine, report: &RecoveryReport) -> Result<()> {
    let (storage, folder) = (engine.options.storage.as_ref(), engine.paths.directory());
    for name in storage.list(&folder).map_err(Error::io("cannot list", &folder))? {
        // If the checkpoint named by SUPER was unusable, this open keeps all checkpoints for
        // inspection.
        let named = names::parse_checkpoint(&name)
            .is_some_and(|generation| generation == report.checkpoint || report.checkpoint_unusable);
        if !named && (names::parse_checkpoint(&name).is_some() || name.ends_with(names::TEMPORARY)) {
            let path = folder.join(&name);
            if is_foreign_checkpoint(storage, &path, engine.database)? {
                continue;
            }
            storage.remove(&path).map_err(Error::io("cannot remove", &path))?;
        }
    }
    Ok(())
}

/// Brings the files into the state found by replay. Makes the log durable, cuts the torn tail off,
/// and removes own files that are no longer part of the log.
pub(super) fn settle(
    engine: &Engine,
    scan: &Scan,
    cut: &Cut,
    report: &RecoveryReport,
    damaged: bool,
) -> Result<()> {
    let storage = engine.options.storage.as_ref();
    let frontier = lock(&engine.writer).frontier;
    // Bytes found beyond the frontier become visible by this open, so they must be made durable
    // first.
    for segment in &scan.segments {
        let path = &segment.segment.path;
        let is_torn = segment.id() == cut.end.position.segment && cut.torn;
        let is_fresh =
            segment.id() >= frontier.position.segment && (cut.end.position > frontier.position || cut.torn);
        if !is_torn && !is_fresh {
            continue;
        }
        let file = open_to_write(engine, path)?;
        if is_torn && !seeded("tail-not-cut") {
            file.set_len(cut.end.position.offset.into())
                .map_err(Error::io("cannot cut", path))?;
        }
        if is_fresh {
            if !seeded("not-written-again") {
                write_again(segment, file.as_ref(), frontier.position, cut.end.position)?;
            }
            file.sync_data().map_err(Error::io("cannot sync", path))?;
        }
    }
    let log = engine.paths.log();
    if !report.clean || scan.has_leftovers() {
        storage
            .sync_folder(&log)
            .map_err(Error::io("cannot sync", &log))?;
    }
    if lock(&engine.writer).state_generation == FIRST_GENERATION {
        // The process that created the database may have died before the name of SUPER was durable
        // in its folder.
        sync_root(&engine.paths, storage)?;
    }
    lock(&engine.writer).frontier = cut.end;
    engine
        .frontier
        .store(cut.end.position.to_u64(), Ordering::Release);
    let doomed = scan.to_remove(cut.end.position.segment);
    if damaged || cut.torn || !doomed.is_empty() {
        // The process that wrote the current state of SUPER may have died before it synced the
        // state. After a power cut, the older state would be valid again. So files that the older
        // state names are kept until the state written here is durable.
        engine.write_state(&[])?;
    }
    for path in doomed {
        if !is_own_segment(storage, &path, engine.database)? {
            continue;
        }
        storage.remove(&path).map_err(Error::io("cannot remove", &path))?;
    }
    for path in &scan.orphans {
        // A seal has no meaning without its segment. A failed removal is harmless: nothing reads
        // the seal, and the next open for writing tries again.
        let _ = storage.remove(path);
    }
    remove_other_checkpoints(engine, report)
}

/// Writes the bytes of a segment that replay found between the positions `from` and `to` once more,
/// so that the next sync covers them. The reason is that their first sync may have failed. In that
/// case the operating system still shows the bytes but considers them written, and a sync alone
/// would not write them again.
fn write_again(
    segment: &SegmentFile,
    file: &dyn StorageFile,
    from: LogPosition,
    to: LogPosition,
) -> Result<()> {
    let piece = &segment.segment;
    let start = if segment.id() == from.segment {
        from.offset
    } else {
        0
    };
    let end = if segment.id() == to.segment {
        to.offset
    } else {
        piece.end()
    };
    let bytes = piece.bytes_at(start);
    let len = bytes.len().min(end.saturating_sub(start) as usize);
    let written = file.write_at(&bytes[..len], start.into());
    written.map_err(Error::io("cannot write", &piece.path))
}
