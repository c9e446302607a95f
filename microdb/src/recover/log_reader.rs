//! Reading of the log: finds the segments that belong to it, and reads its frames one by one.
//!
//! - Segments named by the state in SUPER must exist.
//! - Later segments are found by their headers. Each header states the end of the previous segment.
//! - All other segment files are foreign, have a damaged header, follow a missing segment, or
//!   remain from a creation or removal that a crash or an error ended.
//! - A frame is complete if its header, its records and its link to the previous frame are valid.
//!   The link is the sequence of the commit and the chain, a checksum over all commits so far.
//!
//! Deliberately absent: changes of files or of the engine.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::segments::Segment;
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, FrameKind};
use crate::format::names;
use crate::format::record::Record;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::{Frontier, SEGMENT_SPAN_MAX, State};
use crate::format::{Flaw, LogPosition, SEGMENT_BYTES_LIMIT};
use crate::raw::tail::TailBuffer;
use crate::seeded::seeded;
use crate::storage::{OpenMode, read_up_to};

/// A segment of the log with its decoded header.
pub(crate) struct SegmentFile {
    pub(crate) segment: Arc<Segment>,
    pub(crate) header: SegmentHeader,
    /// Offset of the end of the segment's frames, if known from the header of a later segment, from
    /// the length of the file or from the usage counts.
    pub(crate) sealed_end: Option<u32>,
}

impl SegmentFile {
    /// Returns the position of the first frame, with sequence and chain of the log before it.
    pub(crate) fn start(&self) -> Frontier {
        let position = LogPosition {
            segment: self.id(),
            offset: SEGMENT_HEADER_BYTES,
        };
        Frontier {
            position,
            sequence: self.header.sequence,
            chain: self.header.chain,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.header.id
    }

    /// Compares `end`, the end of the log before this segment, with the end that the segment's
    /// header states. Fails if the positions are equal and sequence or chain differ. In that case
    /// files of two histories were mixed, for example of a database and of a copy that was written
    /// to. No checksum notices the mixture, because all checksums of such files are valid.
    pub(crate) fn check_follows(&self, end: Frontier) -> Result<()> {
        let start = self.start();
        let (found, expected) = ((start.sequence, start.chain), (end.sequence, end.chain));
        if self.header.previous_end != end.position || found == expected || seeded("segments-unchained") {
            return Ok(());
        }
        let (path, field) = (&self.segment.path, "sequence and chain of a segment");
        Err(Error::corrupt(
            path,
            48,
            field,
            format_args!("{expected:x?}"),
            format_args!("{found:x?}"),
        ))
    }
}

/// All segments of the log, in order, the other files with the name of a segment, and the seals
/// without a segment.
pub(crate) struct Scan {
    pub(crate) segments: Vec<SegmentFile>,
    /// Lower bound for the id of the next segment: no known segment of this database has this id or
    /// a higher one. Files without a valid segment header are ignored here, because their ids may
    /// be far beyond the span of a log.
    pub(crate) next_segment: u64,
    /// Durable frontier according to SUPER.
    pub(crate) frontier: Frontier,
    /// Files that are no part of the log and do not prove that the log is incomplete. Their header
    /// is damaged, or names another previous segment than the last one found.
    unreadable: Vec<(u64, PathBuf)>,
    /// Number of bytes, without trailing zeros, in the files of `unreadable` with a damaged header.
    pub(crate) unreadable_bytes: u64,
    /// Ids and files of all entries that `segments` had before replay shortened it to the end of
    /// the log.
    all: Vec<(u64, PathBuf)>,
    /// Files with an id below `State::next_segment` that the state in SUPER does not list. They are
    /// not part of the log.
    leftovers: Vec<PathBuf>,
    /// Files with ids from `next_segment` in SUPER up to that of the frontier's segment, without a
    /// valid header of this database. They are damage, unless the header of a later segment shows
    /// that the log skipped their ids: the writer skips the id of a name that is taken.
    suspects: Vec<(u64, Error)>,
    /// Seal files without a segment file.
    pub(crate) orphans: Vec<PathBuf>,
}

/// Finds the segments of the log. Fails if the folder contradicts `state` or `frontier`.
pub(crate) fn scan_segments(engine: &Engine, state: &State, frontier: Frontier) -> Result<Scan> {
    let storage = engine.options.storage.as_ref();
    let folder = engine.paths.log();
    let listed = storage.list(&folder).map_err(Error::io("cannot list", &folder))?;
    let mut ids: Vec<u64> = listed
        .iter()
        .filter_map(|name| names::parse_segment(name))
        .collect();
    ids.sort_unstable();
    let mut scan = Scan {
        segments: Vec::new(),
        next_segment: state.next_segment,
        frontier,
        unreadable: Vec::new(),
        unreadable_bytes: 0,
        all: Vec::new(),
        leftovers: Vec::new(),
        suspects: Vec::new(),
        orphans: Vec::new(),
    };
    let seals = listed.iter().filter_map(|name| names::parse_seal(name));
    let orphans = seals.filter(|id| ids.binary_search(id).is_err());
    scan.orphans = orphans.map(|id| engine.paths.seal(id)).collect();
    if let Some(missing) = state.live.iter().find(|id| ids.binary_search(id).is_err()) {
        let path = engine.paths.segment(*missing);
        return Err(Error::corrupt(&path, 0, "segment", "a file", "no file"));
    }
    for id in ids {
        let path = engine.paths.segment(id);
        if id < state.next_segment && state.live.binary_search(&id).is_err() {
            scan.leftovers.push(path);
            continue;
        }
        scan.add(engine, id, path, id < state.next_segment)?;
    }
    if let Some((_, damage)) = scan.suspects.pop() {
        return Err(damage);
    }
    if let (Some(first), Some(last)) = (scan.segments.first(), scan.segments.last())
        && last.id() - first.id() >= SEGMENT_SPAN_MAX
    {
        // In memory, the table of segments and the usage counts have one entry for each id between
        // the first and the last. The limit bounds this memory even if a forged file has a huge id.
        let (path, first) = (engine.paths.segment(last.id()), first.id());
        return Err(Error::corrupt(
            &path,
            40,
            "segment id",
            format_args!("less than {SEGMENT_SPAN_MAX} above {first}"),
            last.id(),
        ));
    }
    if frontier.position.segment > scan.segments.last().map_or(0, SegmentFile::id) {
        let path = engine.paths.segment(frontier.position.segment);
        let expected = format!("a durable log up to {}", frontier.position);
        return Err(Error::corrupt(
            &path,
            0,
            "segment",
            expected,
            "no segment that reaches that position",
        ));
    }
    Ok(scan)
}

impl Scan {
    /// Adds the file with the name of segment `id` to the log or to a list of other files. Ignores
    /// a folder with such a name behind the segment of the durable frontier. `known` is `true` if
    /// the state in SUPER names the segment. Otherwise `id` is not below `State::next_segment`.
    fn add(&mut self, engine: &Engine, id: u64, path: PathBuf, known: bool) -> Result<()> {
        let mode = if engine.options.read_only {
            OpenMode::Read
        } else {
            OpenMode::ReadWrite
        };
        // A foreign folder with the name of a segment beyond the durable frontier is ignored. The
        // writer skips its name.
        let is_foreign = |error: &std::io::Error| {
            error.kind() == ErrorKind::IsADirectory && !known && id > self.frontier.position.segment
        };
        let file = match engine.options.storage.open(&path, mode) {
            Err(error) if is_foreign(&error) => return Ok(()),
            file => file.map_err(Error::io("cannot open", &path))?,
        };
        let len = file.len().map_err(Error::io("cannot read", &path))?;
        // Frames end below `SEGMENT_BYTES_LIMIT`, so bytes behind this limit are never read.
        let len = len.min(u64::from(SEGMENT_BYTES_LIMIT));
        // In a read-only open, a writer may still truncate the blocks allocated behind the durable
        // frontier. Bytes there are copied, because reading them through a map could raise SIGBUS.
        let final_bytes = match self.frontier.position {
            LogPosition { segment, offset } if segment == id => len.min(offset.into()),
            LogPosition { segment, .. } if segment < id => 0,
            _ => len,
        };
        let map_bytes = if engine.options.read_only {
            final_bytes
        } else {
            len
        };
        let map = engine.options.map(file.as_ref(), map_bytes);
        let map = map.map_err(Error::io("cannot map", &path))?;
        let rest = match read_up_to(file.as_ref(), map_bytes, len - map_bytes) {
            Err(error) if is_foreign(&error) => return Ok(()),
            rest => rest.map_err(Error::io("cannot read", &path))?,
        };
        // The header is read from the file, because the operating system would read ahead much more
        // for a read of the map.
        let head = read_up_to(file.as_ref(), 0, len.min(SEGMENT_HEADER_BYTES.into()));
        let head = head.map_err(Error::io("cannot read", &path))?;
        let header = match SegmentHeader::decode(&head, engine.database, id) {
            Ok(header) => header,
            Err(flaw) => {
                let at = flaw.at.into();
                let damage = || Error::corrupt(&path, at, flaw.field, flaw.expected, flaw.found);
                if known {
                    return Err(damage());
                }
                if id <= self.frontier.position.segment {
                    self.suspects.push((id, damage()));
                    return Ok(());
                }
                let bytes = map.get(0, map.len()).filter(|bytes| !bytes.is_empty());
                self.unreadable_bytes += significant(bytes.unwrap_or(&rest));
                self.unreadable.push((id, path));
                return Ok(());
            }
        };
        self.next_segment = self.next_segment.max(id + 1);
        let mask = header.mask();
        let mut segment = Segment::mapped(id, path.clone(), mask, map, map_bytes as u32);
        if !rest.is_empty() {
            let tail = TailBuffer::of_bytes(&rest).map_err(Error::io("cannot get memory for", &path))?;
            segment = segment.with_tail(tail);
        }
        let segment = Arc::new(segment.in_storage(&engine.options.storage));
        let previous = header.previous_end;
        if let Some(before) = self.segments.last_mut() {
            if previous.segment == before.id() {
                before.sealed_end = Some(previous.offset);
            } else if known && previous.segment < id {
                // Compaction removed the segments between `before` and `id`. So `before` is
                // complete, and its file was cut to the end of its frames.
                before.sealed_end = Some(before.segment.end());
            }
        }
        if !known && self.segments.last().map_or(0, SegmentFile::id) != previous.segment {
            // The header names another previous segment than the last one found.
            let was_durable =
                header.frontier.segment >= previous.segment || self.frontier.position.segment >= id;
            if let Some((_, damage)) = self.suspects.pop() {
                return Err(damage);
            }
            if was_durable && previous != LogPosition::default() {
                let found = format!("segment {id} continues from {previous}");
                let missing = engine.paths.segment(previous.segment);
                return Err(Error::corrupt(
                    &missing,
                    0,
                    "segment",
                    "a file that is part of the log",
                    found,
                ));
            }
            self.unreadable.push((id, path));
            return Ok(());
        }
        self.suspects.retain(|(suspect, _)| *suspect < previous.segment);
        self.all.push((id, path));
        self.segments.push(SegmentFile {
            segment,
            header,
            sealed_end: None,
        });
        Ok(())
    }

    /// Checks that the log may end at position `at`, where `flaw` was found. Fails if a durable
    /// frontier beyond `at` is known. Fails too if bytes of the segment of `at` could not be read,
    /// because the disk failed or another program truncated the file.
    pub(crate) fn check_not_durable(&self, at: LogPosition, flaw: &Flaw) -> Result<()> {
        let mut frontier = self.frontier.position;
        for file in self.segments.iter().filter(|file| file.id() >= at.segment) {
            if file.id() > at.segment {
                frontier = frontier.max(file.header.frontier);
            }
            let start = if file.id() == at.segment {
                at.offset
            } else {
                SEGMENT_HEADER_BYTES
            };
            frontier = frontier.max(highest_frontier(&file.segment, start));
        }
        let segment = self.segments.iter().find(|file| file.id() == at.segment);
        let segment = segment.map(|file| &file.segment);
        // Bytes that the disk cannot read are no torn tail, because a later read may succeed.
        let unreadable = segment.is_some_and(|segment| segment.is_cut());
        let unreadable = unreadable && !seeded("unreadable-tail");
        if frontier <= at && !unreadable || seeded("frontier-check") {
            return Ok(());
        }
        Err(segment.map_or_else(
            || Error::corrupt(Path::new(""), 0, flaw.field, &flaw.expected, &flaw.found),
            |segment| segment.damage(at.offset, flaw),
        ))
    }

    /// Returns the number of bytes behind `offset` of the segment at `index` and in all later
    /// segments. The zeros at the end of each of these segments are not counted.
    pub(crate) fn bytes_behind(&self, index: usize, offset: u32) -> u64 {
        let rest = |file: &SegmentFile, from| significant(file.segment.bytes_at(from));
        let later = self.segments.iter().skip(index + 1).map(|file| rest(file, 0));
        self.segments.get(index).map_or(0, |file| rest(file, offset)) + later.sum::<u64>()
    }

    /// Returns `true` if the folder contains segment files that do not belong to the log.
    pub(crate) fn has_leftovers(&self) -> bool {
        !self.leftovers.is_empty() || !self.unreadable.is_empty()
    }

    /// Returns the files to remove if the log ends in segment `last`: later segments, and files
    /// that do not belong to the log.
    pub(crate) fn to_remove(&self, last: u64) -> Vec<PathBuf> {
        let later = self
            .all
            .iter()
            .filter(|(id, _)| *id > last)
            .chain(&self.unreadable);
        later
            .map(|(_, path)| path)
            .chain(&self.leftovers)
            .cloned()
            .collect()
    }
}

/// Returns the length of `bytes` without trailing zeros. Tests whole pages for zeros, which is fast
/// for many zeros.
fn significant(bytes: &[u8]) -> u64 {
    let mut len = bytes.len();
    for page in bytes.rchunks(4096) {
        if page.iter().fold(0, |all, byte| all | byte) != 0 {
            let last = page.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            return (len - page.len() + last + 1) as u64;
        }
        len -= page.len();
    }
    0
}

/// Returns the highest durable frontier stated by any frame header at or behind offset `from`, or
/// the position (0, 0) if no header is found. Tries every byte as the start of a header, because
/// lengths cannot be trusted behind a flaw.
pub(crate) fn highest_frontier(segment: &Segment, from: u32) -> LogPosition {
    let bytes = segment.bytes_at(from);
    let bytes = &bytes[..significant(bytes) as usize];
    let mut highest = LogPosition::default();
    for at in 0..bytes.len() {
        if bytes[at] == FRAME_MAGIC[0]
            && let Ok(header) = FrameHeader::decode(&bytes[at..], segment.mask, from + at as u32)
        {
            highest = highest.max(header.frontier);
        }
    }
    highest
}

/// A frame with valid header and records, which is linked to the previous frame.
pub(crate) struct Frame<'a> {
    pub(crate) header: FrameHeader,
    /// Position directly after the frame, with the sequence and the chain of the log there.
    pub(crate) end: Frontier,
    body: &'a [u8],
    body_at: u32,
}

impl<'a> Frame<'a> {
    /// Returns the records of the frame with their offsets in the segment.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u32, Record<'a>)> + use<'a> {
        let (mut body, mut at) = (self.body, self.body_at);
        std::iter::from_fn(move || {
            let record = Record::parse(body)?;
            let offset = at;
            at += record.bytes.len() as u32;
            body = body.get(record.bytes.len()..)?;
            Some((offset, record))
        })
    }
}

/// Returns the frame that begins at `end`, if the frame is complete: its header, its records, and
/// its link to the previous frame are valid.
pub(crate) fn next_frame(file: &SegmentFile, end: Frontier) -> Result<Frame<'_>, Flaw> {
    let (mask, offset) = (file.segment.mask, end.position.offset);
    let bytes = file.segment.bytes_at(offset);
    let header = FrameHeader::decode(bytes, mask, offset)?;
    let body_at = offset + FRAME_HEADER_BYTES;
    if offset == SEGMENT_HEADER_BYTES {
        file.segment.begin_reading(offset);
    }
    file.segment
        .keep_reading(offset, body_at.saturating_add(header.body_bytes));
    let rest = bytes.get(FRAME_HEADER_BYTES as usize..).unwrap_or_default();
    let Some(body) = rest.get(..header.body_bytes as usize) else {
        return Err(Flaw::short("frame body", header.body_bytes as usize, rest.len()));
    };
    let link = match header.kind {
        FrameKind::Commit => {
            let sequence = end.sequence.wrapping_add(1);
            (
                sequence,
                checksum::chain(end.chain, sequence, header.body_crc, header.op_count),
            )
        }
        FrameKind::Relocation => (end.sequence, end.chain),
    };
    if (header.sequence, header.chain) != link && !seeded("chain-check") {
        let (expected, found) = (
            format_args!("{link:x?}"),
            format_args!("{:x?}", (header.sequence, header.chain)),
        );
        return Err(Flaw::new(16, "frame sequence and chain", expected, found));
    }
    let position = LogPosition {
        segment: end.position.segment,
        offset: body_at + header.body_bytes,
    };
    let frame = Frame {
        header,
        body,
        body_at,
        end: Frontier {
            position,
            sequence: link.0,
            chain: link.1,
        },
    };
    if !seeded("body-check") {
        check_body(&frame, file)?;
    }
    Ok(frame)
}

fn check_body(frame: &Frame<'_>, file: &SegmentFile) -> Result<(), Flaw> {
    let (mut crc, mut count, mut at) = (0, 0u32, frame.body_at);
    for (offset, record) in frame.records() {
        record.verify(file.segment.mask, offset).map_err(|flaw| Flaw {
            at: offset - frame.body_at + FRAME_HEADER_BYTES,
            ..flaw
        })?;
        crc = checksum::crc_append(crc, &record.content_crc().to_le_bytes());
        count += 1;
        at = offset + record.bytes.len() as u32;
    }
    let end = frame.body_at + frame.header.body_bytes;
    if (crc, count, at) != (frame.header.body_crc, frame.header.op_count, end) {
        let expected = format!(
            "{} records, crc {:08x}",
            frame.header.op_count, frame.header.body_crc
        );
        return Err(Flaw::new(
            0,
            "frame body",
            expected,
            format_args!("{count} records, crc {crc:08x}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_are_not_counted_however_many_pages_they_fill() {
        for len in [1, 2, 4095, 4096, 4097, 9000, 12_288] {
            for last in [0, 1, 4094, 4095, 4096, 4097, 8191, 8192, 12_287] {
                let mut bytes = vec![0; len];
                assert_eq!(significant(&bytes), 0);
                // Two bytes get the same value, so they cancel each other in an XOR. A test of
                // pages by XOR instead of OR would fail here.
                for at in [last, last / 2] {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = 5;
                    }
                }
                let expected = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
                assert_eq!(significant(&bytes), expected as u64, "{len} {last}");
            }
        }
    }
}
