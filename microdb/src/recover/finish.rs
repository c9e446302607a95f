//! After replay: the log's end is taken over, and the disk left as it was understood.

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
use crate::storage::{OpenMode, StorageFile};

/// Takes over the log's end as replay found it.
pub(super) fn adopt(engine: &Engine, scan: &Scan, cut: &Cut) -> Result<()> {
    let mut core = lock(&engine.core);
    core.end = cut.end;
    core.published = cut.end;
    core.next_segment = core.next_segment.max(scan.next_segment);
    let Some(last) = cut.segment.and_then(|index| scan.segments.get(index)) else {
        return Ok(());
    };
    let max = engine.options.segment_bytes_max;
    core.segment_bytes_next = last.header.data_bytes_max.saturating_mul(2).min(max);
    let end = cut.end.position.offset;
    if cut.torn && !engine.options.read_only {
        // The file is cut, so what was mapped behind the end must not be looked at any more, not
        // even in passing.
        engine.segments.put(Arc::new(last.segment.cut_to(end)));
    }
    if engine.options.read_only || cut.torn || last.sealed_end.is_some() || end >= last.header.data_bytes_max
    {
        return Ok(());
    }
    // The log goes on where it ended.
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
        // What was found in it is synced before the opening is done.
        dirty: false,
        cut: false,
    });
    // Its account is open again: only complete segments are compacted.
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

/// Opens a segment whose bytes will change.
fn open_to_write(engine: &Engine, path: &Path) -> Result<Arc<dyn StorageFile>> {
    let file = engine.options.storage.open(path, OpenMode::ReadWrite);
    file.map_err(Error::io("cannot open", path))
}

/// Removes what a crash left of checkpoints that SUPER does not name.
fn remove_other_checkpoints(engine: &Engine, report: &RecoveryReport) -> Result<()> {
    let (storage, folder) = (engine.options.storage.as_ref(), engine.paths.directory());
    for name in storage.list(&folder).map_err(Error::io("cannot list", &folder))? {
        // A damaged one is kept for who wants to look at it, until the next one takes its place.
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

/// Leaves the disk as replay understood it: what was found made durable, the tail cut off,
/// leftovers removed.
pub(super) fn settle(
    engine: &Engine,
    scan: &Scan,
    cut: &Cut,
    report: &RecoveryReport,
    damaged: bool,
) -> Result<()> {
    let storage = engine.options.storage.as_ref();
    let frontier = lock(&engine.writer).frontier;
    // What lies beyond the frontier is visible from now on, so it has to stay.
    for segment in &scan.segments {
        let path = &segment.segment.path;
        let is_torn = segment.id() == cut.end.position.segment && cut.torn;
        let is_fresh =
            segment.id() >= frontier.position.segment && (cut.end.position > frontier.position || cut.torn);
        if !is_torn && !is_fresh {
            continue;
        }
        let file = open_to_write(engine, path)?;
        if is_torn {
            file.set_len(cut.end.position.offset.into())
                .map_err(Error::io("cannot cut", path))?;
        }
        if is_fresh {
            write_again(segment, file.as_ref(), frontier.position, cut.end.position)?;
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
        // The process that made the database may have died before SUPER's name was durable.
        sync_root(&engine.paths, storage)?;
    }
    lock(&engine.writer).frontier = cut.end;
    engine
        .frontier
        .store(cut.end.position.to_u64(), Ordering::Release);
    let doomed = scan.to_remove(cut.end.position.segment);
    if damaged || cut.torn || !doomed.is_empty() {
        // The state that we go by may be the last words of a process whose sync of them failed, or
        // never came. Until a state is durable that does without them, nothing may go that an older
        // one would miss.
        engine.write_state(&[])?;
    }
    for path in doomed {
        if !is_own_segment(storage, &path, engine.database)? {
            continue;
        }
        storage.remove(&path).map_err(Error::io("cannot remove", &path))?;
    }
    for path in &scan.orphans {
        // Seals of segments that are gone: of no meaning.
        let _ = storage.remove(path);
    }
    remove_other_checkpoints(engine, report)
}

/// Writes once more what was found from `from` to `to`, so that the next sync covers it. Its first
/// sync may have failed: then the system shows the bytes, takes them for written, and would not
/// write them again by itself.
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
