//! Replay: applies the records of the log, frame by frame, up to the last complete frame.
//!
//! - Of all records of a key, the latest record in the log wins.
//! - The only exception is a clear marker (the record of a cleared table) that compaction has
//!   copied. In a replay of the whole log, such a marker clears only records in segments older than
//!   the segment to which it was first written. Behind a checkpoint it clears nothing.
//! - The bytes behind the last complete frame are rot if a durable frontier behind that frame is
//!   known. Otherwise they are a torn tail, unless the disk cannot read them.
//!
//! Deliberately absent: writes to the disk.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::warm::Warmer;
use crate::directory::{KeyHash, Location};
use crate::engine::catalog::{CATALOG_TABLE, TableCore};
use crate::engine::checkpoint::Loaded;
use crate::engine::commit::{Applied, LookAhead};
use crate::engine::log::Core;
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameKind};
use crate::format::key_codec::KeyCodec;
use crate::format::record::{Record, RecordKind};
use crate::format::super_block::Frontier;
use crate::format::usage::SegmentUsage;
use crate::raw::epoch::{Guard, pin};
use crate::raw::sync::ignore_poison;
use crate::recover::log_reader::{Frame, Scan, SegmentFile, next_frame};

/// The point at which the log ends after replay.
pub(super) struct Cut {
    pub(super) end: Frontier,
    /// Index in `Scan::segments` of the segment in which the log ends, or `None` for an empty log.
    pub(super) segment: Option<usize>,
    /// `true` if replay stopped at an incomplete frame, and there are bytes behind the end (besides
    /// zeros), later segments, or segment files outside of the log. In this case nothing is
    /// appended to the segment in which the log ends.
    pub(super) torn: bool,
}

/// Adds the tables of a checkpoint to the engine, and the usage of each segment: its end, its live
/// bytes by table, and its bytes of tombstones. Returns the position of the log at which the
/// checkpoint was taken.
fn install(engine: &Engine, core: &mut Core, loaded: Loaded) -> Frontier {
    let Loaded {
        block, directories, ..
    } = loaded;
    let mut catalog = ignore_poison(engine.catalog.write());
    for (table, directory) in block.tables.iter().zip(directories) {
        let table = TableCore::with_directory(table.id, &table.name, directory);
        catalog.by_id.insert(table.id, Arc::new(table));
    }
    catalog.next_id = catalog.next_id.max(block.next_table);
    for (id, usage) in block.usages {
        core.usages.open(id, usage);
    }
    core.next_segment = core.next_segment.max(block.next_segment);
    block.at
}

/// Replays the log behind the checkpoint, or the whole log without one, up to the last complete
/// frame.
pub(super) fn replay(
    engine: &Engine,
    scan: &mut Scan,
    loaded: Option<Loaded>,
    report: &mut RecoveryReport,
) -> Result<Cut> {
    let mut core = lock(&engine.core);
    let checkpoint = loaded.map_or(Frontier::default(), |loaded| install(engine, &mut core, loaded));
    let mut rules = Rules {
        rebuild: report.checkpoint == 0,
        ..Rules::default()
    };
    let mut cut = Cut {
        end: checkpoint,
        segment: None,
        torn: false,
    };
    let complete = scan
        .segments
        .partition_point(|segment| segment.id() < checkpoint.position.segment);
    for (index, segment) in scan.segments[..complete].iter().enumerate() {
        check_complete(segment, &core)?;
        cut.segment = Some(index);
    }
    let complete_segments = scan.segments[..complete].iter();
    engine
        .segments
        .put_all(complete_segments.map(|file| file.segment.clone()));
    for index in complete..scan.segments.len() {
        let segment = &scan.segments[index];
        engine.segments.put(segment.segment.clone());
        cut.segment = Some(index);
        let mut start = checkpoint;
        if segment.id() == checkpoint.position.segment {
            // The log up to the checkpoint was durable before the checkpoint was written.
            check_length(segment, checkpoint.position.offset)?;
        } else {
            segment.check_follows(cut.end)?;
            core.usages.open(segment.id(), SegmentUsage::counting());
            start = segment.start();
        }
        let (end, stopped) = replay_segment(engine, &mut core, segment, start, &mut rules, report)?;
        check_frontier(segment, end, scan.frontier)?;
        cut.end = end;
        core.usages.set_end(segment.id(), end.position.offset);
        let Some(flaw) = stopped else { continue };
        // No complete frame follows. The checks below decide if the log may end here.
        let at = end.position;
        scan.check_not_durable(at, &flaw)?;
        let is_last = index + 1 == scan.segments.len();
        let dropped = scan.bytes_behind(index, at.offset);
        cut.torn = dropped > 0 || !is_last || scan.has_leftovers();
        report.dropped_bytes += dropped;
        scan.segments.truncate(index + 1);
        break;
    }
    let last = cut.segment.map_or(0, |index| scan.segments[index].id());
    if last < checkpoint.position.segment {
        let path = engine.paths.segment(checkpoint.position.segment);
        return Err(Error::corrupt(
            &path,
            0,
            "segment",
            "a file from which the log continues after the checkpoint",
            "no file",
        ));
    }
    report.dropped_bytes += scan.unreadable_bytes;
    rules.clear_old(engine, &mut core)?;
    Ok(cut)
}

/// Fails if `end` is at the position of `known`, the frontier in SUPER, but has another sequence or
/// chain.
fn check_frontier(segment: &SegmentFile, end: Frontier, known: Frontier) -> Result<()> {
    if end.position != known.position || end == known {
        return Ok(());
    }
    let (offset, field) = (end.position.offset, "sequence and chain of the log");
    let (expected, found) = ((known.sequence, known.chain), (end.sequence, end.chain));
    let path = &segment.segment.path;
    Err(Error::corrupt(
        path,
        offset.into(),
        field,
        format_args!("{expected:x?}"),
        format_args!("{found:x?}"),
    ))
}

/// Checks a segment that precedes the position of the checkpoint. Fails if the checkpoint does not
/// list the segment, or recorded a greater length.
fn check_complete(segment: &SegmentFile, core: &Core) -> Result<()> {
    match core.usages.get(segment.id()) {
        Some(usage) => check_length(segment, usage.end),
        None => Err(Error::corrupt(
            &segment.segment.path,
            0,
            "segment",
            "one that the checkpoint knows",
            "an unknown one",
        )),
    }
}

/// Fails if a segment has less than `least` bytes.
fn check_length(segment: &SegmentFile, least: u32) -> Result<()> {
    let (found, path) = (segment.segment.end(), &segment.segment.path);
    if found >= least {
        return Ok(());
    }
    let (expected, found_bytes) = (
        format_args!("at least {least} bytes"),
        format_args!("{found} bytes"),
    );
    Err(Error::corrupt(
        path,
        found.into(),
        "segment length",
        expected,
        found_bytes,
    ))
}

/// State that replay keeps from record to record, for the treatment of copied clear markers.
#[derive(Default)]
pub(crate) struct Rules {
    /// `true` if the whole log is replayed, without a checkpoint.
    rebuild: bool,
    /// Copied clear markers: the id of the table, and of the segment to which the marker was first
    /// written.
    clears: Vec<(u32, u64)>,
}

impl Rules {
    /// Returns the rules for a log that is replayed from its beginning.
    pub(crate) fn whole_log() -> Self {
        Self {
            rebuild: true,
            ..Self::default()
        }
    }

    /// Applies one record. `hint` is the probable location of the key's previous record, if such a
    /// location was found ahead.
    pub(crate) fn apply(
        &mut self,
        engine: &Engine,
        guard: &Guard,
        core: &mut Core,
        replayed: &Replayed<'_>,
        hint: Option<Location>,
    ) -> Result<()> {
        let Replayed {
            record, table, at, ..
        } = replayed;
        let bytes = record.bytes.len();
        if replayed.frame == FrameKind::Relocation && record.head.kind == RecordKind::Clear {
            // A copied marker must not clear records that were put after the marker was first
            // written. `clear_old` clears the older records at the end of replay.
            core.usages.add_tombstone(*at, bytes);
            if let Some(origin) = record.value().first_chunk().filter(|_| self.rebuild) {
                self.clears.push((table.id, u64::from_le_bytes(*origin)));
            }
            return Ok(());
        }
        let applied = Applied {
            kind: record.head.kind,
            hash: replayed.hash,
            key: record.key(),
            at: *at,
            bytes,
        };
        engine.apply(guard, core, table, &applied, hint).map(|_| ())
    }

    /// Removes the records that copied clear markers clear: those in segments older than the
    /// segment to which the marker was first written. Replay has added such records to the
    /// directory if compaction has removed the original marker.
    pub(crate) fn clear_old(&self, engine: &Engine, core: &mut Core) -> Result<()> {
        let guard = pin();
        let damaged = |damage| engine.directory_damage(damage);
        for (table, origin) in &self.clears {
            let Some(table) = engine.table_by_id(*table) else {
                continue;
            };
            let segments = engine.segments.load(&guard);
            let directory = table.directory.load(&guard);
            for location in directory.view(&guard).iter() {
                let location = location.map_err(damaged)?;
                let segment = segments.find(location, engine.paths.root())?;
                if segment.id < *origin {
                    let record = segment.verified(location.offset())?;
                    directory
                        .remove(&guard, engine.hash(record.key()), location)
                        .map_err(damaged)?;
                    core.usages.sub_live(location, table.id, record.bytes.len());
                }
            }
        }
        Ok(())
    }
}

type Stopped = Option<crate::format::Flaw>;

/// Number of waiting records from which they are applied together. These groups span frames, so
/// that memory can be prefetched even if frames are small.
const REPLAY_RECORDS: usize = 1024;

/// Verified records that have not been applied yet.
#[derive(Default)]
struct Waiting<'a> {
    records: Vec<Replayed<'a>>,
}

/// A record of a complete frame, with its table, hash and location.
pub(crate) struct Replayed<'a> {
    frame: FrameKind,
    record: Record<'a>,
    table: Arc<TableCore>,
    hash: KeyHash,
    at: Location,
}

impl<'a> Replayed<'a> {
    pub(crate) fn new(
        engine: &Engine,
        frame: FrameKind,
        record: Record<'a>,
        table: Arc<TableCore>,
        at: Location,
    ) -> Self {
        Self {
            frame,
            record,
            table,
            hash: engine.hash(record.key()),
            at,
        }
    }
}

impl Waiting<'_> {
    /// Applies the waiting records in order, and prefetches the memory that the records behind the
    /// current one will access.
    fn apply(&mut self, engine: &Engine, core: &mut Core, rules: &mut Rules) -> Result<()> {
        // The pin covers this group of records only, so that replaced chunks can be freed before
        // the next group.
        let guard = &pin();
        let key = |index: usize| {
            let record = self.records.get(index)?;
            Some((&*record.table, record.hash))
        };
        let mut ahead = LookAhead::new(engine, guard, key);
        for index in 0..self.records.len() {
            let hint = ahead.step(index, key);
            rules.apply(engine, guard, core, &self.records[index], hint)?;
        }
        self.records.clear();
        Ok(())
    }
}

/// Replays one segment from `end` on. Returns the end of its complete frames. Also returns the flaw
/// at which reading stopped, or `None` at [`SegmentFile::sealed_end`].
fn replay_segment(
    engine: &Engine,
    core: &mut Core,
    segment: &SegmentFile,
    mut end: Frontier,
    rules: &mut Rules,
    report: &mut RecoveryReport,
) -> Result<(Frontier, Stopped)> {
    let mut catalog = ignore_poison(engine.catalog.write());
    let mut waiting = Waiting::default();
    let mut table: Option<Arc<TableCore>> = None;
    let warmer = Warmer::new(engine, &catalog);
    let stopped = read_frames(segment, end, &warmer, |frames| {
        for frame in frames {
            for (offset, record) in frame.records() {
                let id = record.head.table;
                let table = match &table {
                    Some(table) if table.id == id => table,
                    _ => table.insert(catalog.table_or_new(id).clone()),
                };
                let at = Location::new(segment.id(), offset);
                waiting.records.push(Replayed::new(
                    engine,
                    frame.header.kind,
                    record,
                    table.clone(),
                    at,
                ));
                report.records_replayed += 1;
            }
            if waiting.records.len() >= REPLAY_RECORDS {
                waiting.apply(engine, core, rules)?;
            }
            report.frames_replayed += 1;
            end = frame.end;
            report.bytes_replayed += u64::from(FRAME_HEADER_BYTES + frame.header.body_bytes);
        }
        Ok(())
    })?;
    waiting.apply(engine, core, rules)?;
    Ok((end, stopped))
}

/// Minimum number of remaining bytes for which a second thread reads and verifies frames ahead of
/// the thread that applies them.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// Maximum number of frames in a piece. The reading thread hands the frames to the applying thread
/// in pieces.
const PIECE_FRAMES: usize = 4096;
/// Number of bytes in the bodies of frames from which a piece is complete and handed over.
const PIECE_BYTES: u32 = 1 << 20;

/// Passes the complete frames behind `end` to `apply`, in order. Returns `None` at
/// [`SegmentFile::sealed_end`], or the flaw found where no complete frame follows. If much remains
/// to be read, a second thread reads and verifies frames ahead of `apply`.
fn read_frames<'a>(
    segment: &'a SegmentFile,
    end: Frontier,
    warmer: &Warmer<'_>,
    mut apply: impl FnMut(Vec<Frame<'a>>) -> Result<()>,
) -> Result<Stopped> {
    segment.segment.begin_reading(end.position.offset);
    let mut reader = Reader { segment, end };
    if segment.segment.bytes_at(end.position.offset).len() < READ_AHEAD_BYTES {
        return reader.read(apply);
    }
    std::thread::scope(|scope| {
        let (sender, pieces) = sync_channel(2);
        let ahead = Reader { ..reader };
        let spawned =
            std::thread::Builder::new().spawn_scoped(scope, move || ahead.send_all(&sender, warmer));
        if spawned.is_err() {
            return reader.read(apply);
        }
        for (frames, stopped) in pieces {
            apply(frames)?;
            warmer.piece_is_done();
            if let Some(stopped) = stopped {
                return Ok(stopped);
            }
        }
        unreachable!("the reader reports its end unless it panicked")
    })
}

/// A piece of a segment: some frames. The second field is set only in the last piece of the
/// segment. It is the flaw at which reading stopped, or `None` at [`SegmentFile::sealed_end`].
type Piece<'a> = (Vec<Frame<'a>>, Option<Stopped>);

/// Reads the frames of a segment in pieces, from `end` on.
struct Reader<'a> {
    segment: &'a SegmentFile,
    end: Frontier,
}

impl<'a> Reader<'a> {
    /// Reads all remaining frames and passes them to `apply` on this thread.
    fn read(&mut self, mut apply: impl FnMut(Vec<Frame<'a>>) -> Result<()>) -> Result<Stopped> {
        loop {
            let (frames, stopped) = self.piece();
            apply(frames)?;
            if let Some(stopped) = stopped {
                return Ok(stopped);
            }
        }
    }

    /// Reads all remaining frames and sends them to another thread, until that thread stops
    /// receiving.
    fn send_all(mut self, pieces: &SyncSender<Piece<'a>>, warmer: &Warmer<'_>) {
        for number in 1.. {
            let piece = self.piece();
            let last = piece.1.is_some();
            let keys = warmer.keys_of(&piece.0);
            if pieces.send(piece).is_err() {
                return;
            }
            warmer.warm(&keys, number);
            if last {
                return;
            }
        }
    }

    fn piece(&mut self) -> Piece<'a> {
        let (mut frames, mut bytes) = (Vec::new(), 0);
        while frames.len() < PIECE_FRAMES && bytes < PIECE_BYTES {
            if self.segment.sealed_end == Some(self.end.position.offset) {
                return (frames, Some(None));
            }
            match next_frame(self.segment, self.end) {
                Ok(frame) => {
                    self.end = frame.end;
                    bytes = bytes.saturating_add(frame.header.body_bytes);
                    frames.push(frame);
                }
                Err(flaw) => return (frames, Some(Some(flaw))),
            }
        }
        (frames, None)
    }
}

/// Sets the names and key codecs of tables from the catalog. Removes tables without a name, which
/// were dropped.
pub(super) fn name_tables(engine: &Engine) -> Result<()> {
    let mut catalog = ignore_poison(engine.catalog.write());
    let guard = pin();
    let own = catalog.table_or_new(CATALOG_TABLE).clone();
    let segments = engine.segments.load(&guard);
    let view = own.directory.load(&guard).view(&guard);
    let mut named = std::collections::HashMap::new();
    for location in view.iter() {
        let location = location.map_err(|damage| engine.directory_damage(damage))?;
        let segment = segments.find(location, engine.paths.root())?;
        let record = segment.verified(location.offset())?;
        let id = record.value().first_chunk().map(|id| u32::from_le_bytes(*id));
        let (Some(id), Ok(name)) = (id, std::str::from_utf8(record.key())) else {
            let found = record.key().escape_ascii();
            let (path, at) = (&segment.path, location.offset().into());
            return Err(Error::corrupt(
                path,
                at,
                "catalog record",
                "a name and an id",
                found,
            ));
        };
        let table = catalog.table_or_new(id).clone();
        table.set_name(name);
        if let Some(codec) = KeyCodec::decode(record.value()) {
            let _ = table.key_codec.set(codec);
        }
        named.insert(name.to_owned(), table);
    }
    let kept: std::collections::HashSet<u32> = named
        .values()
        .map(|table| table.id)
        .chain([CATALOG_TABLE])
        .collect();
    catalog.by_id.retain(|id, _| kept.contains(id));
    catalog.by_name = named;
    drop(catalog);
    // Also removes the counts of tables that exist only in usage counts. Earlier versions accepted
    // commits after the drop of a table, which left such counts.
    lock(&engine.core).usages.retain_tables(|id| kept.contains(&id));
    Ok(())
}
