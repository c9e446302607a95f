//! Verification: checks the log, its seals and the checkpoint, and compares the directory with the
//! log.
//!
//! A read verifies only one record. Verification covers all frames of all segments (dead records
//! too), the chain from commit to commit, and the checkpoint. It also checks that each slot of each
//! directory points to a valid record of its table.
//!
//! - Commits continue. Records appended after the start are not checked.
//! - No record is changed. Verification continues behind damage, as far as the start of the next
//!   frame is known.
//! - Damage of the checkpoint is listed separately, because no record is lost by it.
//!
//! Deliberately absent: repair (see `heal`).

use std::sync::Arc;

use serde::Serialize;

use crate::engine::log_order::Walk;
use crate::engine::segments::SegmentTable;
use crate::engine::{Engine, Handle, lock};
use crate::error::{Error, Result};
use crate::format::LogPosition;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::record::RecordKind;
use crate::format::segment::SegmentHeader;
use crate::format::super_block::Frontier;
use crate::raw::epoch::pin;
use crate::recover::log_reader::{SegmentFile, next_frame};
use crate::snapshot::Snapshot;

/// Result of [`Db::verify`](crate::Db::verify).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let report = db.verify()?;
/// println!("{} records in {} segments", report.records, report.segments);
/// println!("{} damaged places", report.damage.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Number of segments of the log that were verified.
    pub segments: u64,
    /// Number of complete frames that were found. Behind a damaged frame header, the frames of the
    /// segment are not counted.
    pub frames: u64,
    /// Number of records in these frames, live and dead.
    pub records: u64,
    /// Size of the verified log in bytes.
    pub log_bytes: u64,
    /// Number of directory slots that were checked.
    pub slots: u64,
    /// Number of segments with chunks that were compared with a seal.
    pub sealed_segments: u64,
    /// Number of complete segments without a valid seal. Their frames were verified too.
    pub unsealed_segments: u64,
    /// Descriptions of the damage of the log. If the list is not empty, records are lost or in
    /// doubt.
    pub damage: Vec<String>,
    /// Descriptions of the damage of the checkpoint. No record is lost, because the checkpoint is
    /// derived from the log. The checkpoint may be deleted while the database is closed. The next
    /// open then replays the whole log.
    pub derived_damage: Vec<String>,
    /// `true` if the file of the checkpoint was deleted. This is no damage, because an open replays
    /// the log instead. A read-only database that was opened from a checkpoint reports `false`,
    /// because a writer may remove this checkpoint.
    pub checkpoint_missing: bool,
}

impl VerifyReport {
    /// Returns `true` if no damage of the log or the checkpoint was found.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// assert!(db.verify()?.is_sound());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.derived_damage.is_empty()
    }

    fn note(&mut self, engine: &Engine, error: &Error) {
        let list = match error {
            Error::Corrupt { path, .. } | Error::Io { path, .. }
                if path.starts_with(engine.paths.directory()) =>
            {
                &mut self.derived_damage
            }
            _ => &mut self.damage,
        };
        // The directory in memory may read a chunk (a part of the hash table) from the file of the
        // checkpoint. Damage of such a chunk is found in the directory and in the checkpoint, but
        // is listed once.
        let text = error.to_string();
        if !list.contains(&text) {
            list.push(text);
        }
    }
}

/// Verifies a database. Calls `watch` with the number of verified bytes of the log and the number
/// of all its bytes.
pub(crate) fn verify(engine: &Arc<Handle>, mut watch: impl FnMut(u64, u64)) -> Result<VerifyReport> {
    engine.check_process()?;
    if engine.closed.load(std::sync::atomic::Ordering::Acquire) {
        return Err(Error::Closed);
    }
    if !engine.options.read_only {
        engine.sync_log()?;
    }
    let snapshot = Snapshot::of(engine);
    let (segments, ends, active) = {
        let core = lock(&engine.core);
        let guard = pin();
        let end = core.published.position;
        let ends: Vec<_> = core
            .usages
            .iter()
            .map(|(id, usage)| (id, if id == end.segment { end.offset } else { usage.end }))
            .collect();
        (engine.segments.load_arc(&guard), ends, end.segment)
    };
    let mut report = VerifyReport::default();
    let total = ends.iter().map(|(_, end)| u64::from(*end)).sum();
    let mut before = Frontier::default();
    for (id, end) in ends.into_iter().filter(|(_, end)| *end > 0) {
        watch(report.log_bytes, total);
        before = verify_segment(engine, &segments, id, end, before, &mut report);
        if id != active {
            verify_seal(engine, &segments, id, end, &mut report);
        }
    }
    watch(report.log_bytes, total);
    snapshot.verify_slots(&mut report);
    verify_checkpoint(engine, &mut report);
    Ok(report)
}

/// Verifies the newest checkpoint: loads it, and verifies each chunk of its directories.
fn verify_checkpoint(engine: &Engine, report: &mut VerifyReport) {
    let newest = || lock(&engine.writer).checkpoint;
    let mut checkpoint = newest();
    while checkpoint != 0 {
        let error = match engine.load_checkpoint(checkpoint) {
            Ok(loaded) => {
                for directory in &loaded.directories {
                    let view = directory.view(&pin());
                    for damage in (0..view.parts()).filter_map(|part| view.part(part).err()) {
                        report.note(engine, &engine.checkpoint_damage(checkpoint, damage));
                    }
                }
                return;
            }
            Err(error) => error,
        };
        let is_gone =
            matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
        if !is_gone {
            report.note(engine, &error);
            return;
        }
        let now = newest();
        if now == checkpoint {
            // A writer may remove the checkpoint from which this read-only database was opened.
            // Such a checkpoint is not reported as missing.
            report.checkpoint_missing = !engine.options.read_only || engine.recovery.checkpoint_unusable;
            return;
        }
        // Background work has replaced the checkpoint, so the new checkpoint is verified.
        checkpoint = now;
    }
}

/// Verifies the frames of one segment up to `end`. The log before the segment ends at `before`.
/// Returns the end of the frames, or the default position if that end is unknown.
fn verify_segment(
    engine: &Engine,
    segments: &SegmentTable,
    id: u64,
    end: u32,
    before: Frontier,
    report: &mut VerifyReport,
) -> Frontier {
    let Some(segment) = segments.by_id(id) else {
        let (path, expected) = (engine.paths.segment(id), "a file that is part of the log");
        report.note(engine, &Error::corrupt(&path, 0, "segment", expected, "none"));
        return Frontier::default();
    };
    report.segments += 1;
    report.log_bytes += u64::from(end);
    let header = match SegmentHeader::decode(segment.bytes_at(0), engine.database, id) {
        Ok(header) => header,
        Err(flaw) => {
            report.note(engine, &segment.damage(0, &flaw));
            return Frontier::default();
        }
    };
    let file = SegmentFile {
        segment: segment.clone(),
        header,
        sealed_end: Some(end),
    };
    if let Err(error) = file.check_follows(before) {
        report.note(engine, &error);
    }
    let mut at = file.start();
    while at.position.offset < end {
        match next_frame(&file, at) {
            Ok(frame) => {
                report.frames += 1;
                report.records += u64::from(frame.header.op_count);
                at = frame.end;
            }
            Err(flaw) => {
                report.note(engine, &segment.damage(at.position.offset, &flaw));
                match after_damage(&file, at) {
                    Some(next) => at = next,
                    // The start of the next frame is unknown. Live records after the damage are
                    // still checked through the directory.
                    None => return Frontier::default(),
                }
            }
        }
    }
    at
}

/// Compares the chunks of a segment with its seal.
fn verify_seal(engine: &Engine, segments: &SegmentTable, id: u64, end: u32, report: &mut VerifyReport) {
    let (Some(segment), Some(seal)) = (segments.by_id(id), engine.seal_of(id, end)) else {
        report.unsealed_segments += 1;
        return;
    };
    report.sealed_segments += 1;
    segment.begin_reading(0);
    for index in 0..seal.chunks.len() {
        let range = seal.range(index);
        segment.keep_reading(range.start, range.end);
        let bytes = segment.bytes_between(range.start, range.end);
        if !seal.is_chunk(index, &bytes) {
            let (path, at) = (&segment.path, range.start.into());
            let found = format_args!("others, up to byte {}", range.end);
            report.note(
                engine,
                &Error::corrupt(path, at, "chunk", "the bytes that were sealed", found),
            );
        }
    }
}

/// Returns the end of a damaged frame at position `at`, if the header of the frame is valid.
fn after_damage(file: &SegmentFile, at: Frontier) -> Option<Frontier> {
    let (segment, offset) = (&file.segment, at.position.offset);
    let header = FrameHeader::decode(segment.bytes_at(offset), segment.mask, offset).ok()?;
    let offset = offset
        .checked_add(FRAME_HEADER_BYTES)?
        .checked_add(header.body_bytes)?;
    let position = LogPosition {
        segment: segment.id,
        offset,
    };
    Some(Frontier {
        position,
        sequence: header.sequence,
        chain: header.chain,
    })
}

impl Snapshot {
    /// Verifies for every slot of every table that it points to a valid record of the table.
    fn verify_slots(&self, report: &mut VerifyReport) {
        let (engine, segments) = (self.engine(), self.segments());
        for (table, view) in self.views() {
            // A part of the directory may have been damaged since its first verification.
            view.verify_again();
            let mut walk = Walk::new(Some(view));
            while let Some(location) = walk.next(segments) {
                report.slots += 1;
                let checked = location
                    .map_err(|damage| engine.directory_damage(damage))
                    .and_then(|location| {
                        let segment = segments.find(location, engine.paths.root())?;
                        let record = segment.verified(location.offset())?;
                        if record.head.table == *table && record.head.kind == RecordKind::Put {
                            return Ok(());
                        }
                        let (path, at) = (&segment.path, location.offset().into());
                        let found = format_args!("{:?} of table {}", record.head.kind, record.head.table);
                        Err(Error::corrupt(
                            path,
                            at,
                            "record",
                            format_args!("a put of table {table}"),
                            found,
                        ))
                    });
                if let Err(error) = checked {
                    report.note(engine, &error);
                }
            }
        }
    }
}
