//! The folder of a damaged database, as found: the id of the database, the segments of its log, and
//! their bytes as far as the disk can read them.
//!
//! - No file is trusted. SUPER may be lost; segments may be renamed, foreign or unreadable.
//! - No file is changed.
//!
//! Deliberately absent: frames, which are in `walk`.

use std::path::PathBuf;
use std::sync::Arc;

use super::manifest::{Loss, Manifest};
use crate::engine::Engine;
use crate::engine::segments::Segment;
use crate::error::{Error, Result};
use crate::format::checkpoint::{HEAD_BYTES, Head};
use crate::format::checksum::SegmentMask;
use crate::format::names::{self, Paths};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::{
    Frontier, HINT_BLOCK_BYTES, HINT_OFFSETS, SEGMENT_SPAN_MAX, STATE_BLOCK_BYTES, STATE_OFFSETS, State,
    decode_hint, newer_version,
};
use crate::format::{DatabaseId, FORMAT_VERSION, Flaw, LogPosition, SEGMENT_BYTES_LIMIT};
use crate::options::Options;
use crate::raw::map::Map;
use crate::storage::{OpenMode, Storage};

/// Number of bytes per read. After a failed read, the file is read in blocks of `BLOCK_BYTES`, the
/// usual block size of file systems.
const READ_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;

/// Part of the warning about a lost SUPER.
const NO_SUPER: &str = "without it the end of the log is unknown, so a lost end cannot be noticed";

/// A segment of the damaged log.
pub(super) struct SourceSegment {
    pub(super) segment: Arc<Segment>,
    /// Header of the segment, if it is valid.
    pub(super) header: Option<SegmentHeader>,
    /// Offset of the end of the frames, from the header of the next segment or the length of the
    /// file.
    pub(super) end: u32,
}

/// A list of the segments of the log, from SUPER or a checkpoint.
pub(super) struct Listed {
    /// Ids of the segments, sorted.
    pub(super) live: Vec<u64>,
    /// Segments with this or a higher id are not listed.
    pub(super) next_segment: u64,
}

impl Listed {
    /// Returns `true` if the segment is no part of the log, because compaction has removed it or no
    /// segment had this id.
    pub(super) fn is_removed(&self, id: u64) -> bool {
        id < self.next_segment && self.live.binary_search(&id).is_err()
    }
}

/// A file with the name of a segment: the id in its name, its path and its bytes.
type SourceFile = (u64, PathBuf, Arc<Map>);

/// Content of SUPER, the files of the log, and the generations of the checkpoints.
pub(super) struct Source {
    pub(super) database: DatabaseId,
    /// Newest state of SUPER that is valid and belongs to this database.
    pub(super) state: Option<State>,
    /// Highest durable frontier stated by SUPER, if there is one.
    pub(super) frontier: Option<Frontier>,
    /// Generations of the existing checkpoints, newest first.
    pub(super) checkpoints: Vec<u64>,
    /// Files with names of segments, sorted by the id in the name.
    files: Vec<SourceFile>,
}

impl Source {
    /// Reads the folder of a database.
    ///
    /// # Errors
    /// If the folder contains no valid part of a database: [`Error::Version`] if SUPER states a
    /// newer format, otherwise [`Error::NotADatabase`].
    pub(super) fn find(paths: &Paths, options: &Options, manifest: &mut Manifest) -> Result<Self> {
        let storage = options.storage.as_ref();
        let names = storage.list(&paths.log()).unwrap_or_default();
        let mut ids: Vec<u64> = names
            .iter()
            .filter_map(|name| names::parse_segment(name))
            .collect();
        ids.sort_unstable();
        let mut files = Vec::new();
        for id in ids {
            let path = paths.segment(id);
            match read_file(&path, options, manifest) {
                Ok(map) => files.push((id, path, map)),
                Err(error) => manifest.losses.push(Loss {
                    what: format!("cannot be read at all: {}", chain(&error)),
                    path,
                    ..Loss::default()
                }),
            }
        }
        let super_bytes = read_file(&paths.super_file(), options, manifest).ok();
        let names = storage.list(&paths.directory()).unwrap_or_default();
        let mut checkpoints: Vec<u64> = names
            .iter()
            .filter_map(|name| names::parse_checkpoint(name))
            .collect();
        checkpoints.sort_unstable_by(|one, two| two.cmp(one));
        let super_bytes = super_bytes.as_ref().and_then(|map| map.get(0, map.len()));
        let states = states(super_bytes.unwrap_or_default());
        let mut source = Self {
            database: DatabaseId([0; 16]),
            state: None,
            frontier: None,
            checkpoints,
            files,
        };
        let Some(database) = source.identify(&states, paths, storage) else {
            // Checked only if no valid file is found, because a damaged SUPER may state any
            // version.
            if let Some(found) = newer_version(&states) {
                return Err(Error::Version {
                    path: paths.super_file(),
                    found,
                    supported: FORMAT_VERSION,
                });
            }
            let path = paths.root().to_path_buf();
            return Err(Error::NotADatabase { path });
        };
        source.database = database;
        source.take_super(paths, super_bytes, states, manifest);
        Ok(source)
    }

    /// Returns the database id with the most votes: two for each valid segment header, one for each
    /// valid state in SUPER and each checkpoint with a valid head. Returns `None` without any vote.
    /// Without the id, no checksum of a frame can be verified.
    fn identify(
        &self,
        states: &[Result<State, Flaw>; 2],
        paths: &Paths,
        storage: &dyn Storage,
    ) -> Option<DatabaseId> {
        let mut votes: Vec<(DatabaseId, u32)> = Vec::new();
        let mut vote =
            |database: DatabaseId, weight: u32| match votes.iter_mut().find(|(id, _)| *id == database) {
                Some((_, votes)) => *votes += weight,
                None => votes.push((database, weight)),
            };
        for (id, _, map) in &self.files {
            if let Some(header) = whole_header(map, *id) {
                vote(header.database, 2);
            }
        }
        for state in states.iter().flatten() {
            vote(state.database, 1);
        }
        for generation in &self.checkpoints {
            let file = storage.open(&paths.checkpoint(*generation), OpenMode::Read);
            let mut head = [0; HEAD_BYTES];
            if file.is_ok_and(|file| file.read_at(&mut head, 0).is_ok_and(|read| read == HEAD_BYTES)) {
                let claimed = claimed_id(&head, 16);
                if let Some(database) = claimed.filter(|id| Head::decode(&head, *id, *generation).is_ok()) {
                    vote(database, 1);
                }
            }
        }
        votes
            .into_iter()
            .max_by_key(|(_, votes)| *votes)
            .map(|(database, _)| database)
    }

    fn take_super(
        &mut self,
        paths: &Paths,
        bytes: Option<&[u8]>,
        states: [Result<State, Flaw>; 2],
        manifest: &mut Manifest,
    ) {
        let path = paths.super_file();
        let Some(bytes) = bytes else {
            let path = path.display();
            manifest
                .warnings
                .push(format!("{path} is missing or cannot be read; {NO_SUPER}"));
            return;
        };
        let mut newest: Option<State> = None;
        for (number, state) in states.into_iter().enumerate() {
            match state {
                Ok(state) if state.database != self.database => {
                    let other = state.database;
                    manifest
                        .notes
                        .push(format!("{} is of another database, {other}", path.display()));
                }
                Ok(state) => {
                    if newest
                        .as_ref()
                        .is_none_or(|newest| newest.generation < state.generation)
                    {
                        newest = Some(state);
                    }
                }
                Err(flaw) => manifest.notes.push(format!(
                    "copy {} of the state in {} is damaged: {} should be {}, found {}",
                    number + 1,
                    path.display(),
                    flaw.field,
                    flaw.expected,
                    flaw.found
                )),
            }
        }
        if newest.is_none() {
            let path = path.display();
            manifest
                .warnings
                .push(format!("{path} has no usable content; {NO_SUPER}"));
        }
        self.frontier = newest.as_ref().map(|state| state.frontier);
        for offset in HINT_OFFSETS {
            let hint = decode_hint(block(bytes, offset, HINT_BLOCK_BYTES), self.database);
            if let Some((_, hint)) = hint
                && self.frontier.is_none_or(|known| hint.position > known.position)
            {
                self.frontier = Some(hint);
            }
        }
        self.state = newest;
    }

    /// Returns the list of segments in SUPER, or `known` if SUPER has no valid state: the list in
    /// the newest valid checkpoint.
    pub(super) fn listed(&self, known: Option<Listed>) -> Option<Listed> {
        let by_state = self.state.as_ref().map(|state| Listed {
            live: state.live.clone(),
            next_segment: state.next_segment,
        });
        by_state.or(known)
    }

    /// Returns the segments of the log, in order, without those that are no longer part of the log
    /// according to `listed`.
    pub(super) fn segments(
        &mut self,
        listed: Option<&Listed>,
        manifest: &mut Manifest,
    ) -> Vec<SourceSegment> {
        if listed.is_none() && !self.files.is_empty() {
            manifest.warnings.push(
                "neither SUPER nor a checkpoint says which segments belonged to the log: keys that were deleted may be back from segments that compaction had \
                 already emptied"
                    .to_owned(),
            );
        }
        let is_left = |id: u64| listed.is_some_and(|listed| listed.is_removed(id));
        let mut found: Vec<SourceSegment> = Vec::new();
        for (name_id, path, map) in std::mem::take(&mut self.files) {
            let header = whole_header(&map, name_id);
            if let Some(other) = header
                .map(|header| header.database)
                .filter(|id| *id != self.database)
            {
                manifest.notes.push(format!(
                    "{} belongs to another database, {other}: omitted",
                    path.display()
                ));
                continue;
            }
            let id = header.map_or(name_id, |header| header.id);
            if id != name_id {
                manifest.notes.push(format!(
                    "{} is segment {id}, under another's name",
                    path.display()
                ));
            }
            if is_left(id) {
                manifest.notes.push(format!(
                    "{} is no longer part of the log: omitted",
                    path.display()
                ));
                continue;
            }
            if found.iter().any(|known| known.segment.id == id) {
                manifest.notes.push(format!(
                    "{} is a second copy of segment {id}: omitted",
                    path.display()
                ));
                continue;
            }
            let mask = SegmentMask::new(self.database, id);
            let len = map.len() as u32;
            let segment = Arc::new(Segment::mapped(id, path, mask, map, len));
            found.push(SourceSegment {
                segment,
                header,
                end: len,
            });
        }
        found.sort_unstable_by_key(|segment| segment.segment.id);
        within_span(&mut found, manifest);
        set_ends(&mut found);
        found
    }
}

/// Omits segments with an id far from the median. In memory, the table of segments and the usage
/// counts have one entry for each id between the first and the last. So a forged id could require
/// too much memory.
fn within_span(found: &mut Vec<SourceSegment>, manifest: &mut Manifest) {
    let Some(middle) = found.get(found.len() / 2).map(|segment| segment.segment.id) else {
        return;
    };
    found.retain(|segment| {
        let near = segment.segment.id.abs_diff(middle) < SEGMENT_SPAN_MAX / 2;
        if !near {
            let path = segment.segment.path.display();
            manifest.notes.push(format!(
                "{path} has an id that is too far from the others': omitted"
            ));
        }
        near
    });
}

/// Sets the ends of segments. The header of each segment states the end of the previous segment's
/// frames. Bytes behind that end do not belong to the log.
fn set_ends(found: &mut [SourceSegment]) {
    for index in 1..found.len() {
        let previous = found[index].header.map(|header| header.previous_end);
        let before = &mut found[index - 1];
        if let Some(previous) = previous.filter(|previous| previous.segment == before.segment.id) {
            before.end = previous.offset;
        }
    }
}

/// Returns the header of a segment of any database. The header must be valid for the id in the
/// file's name, or for the id that the header states.
fn whole_header(map: &Map, id: u64) -> Option<SegmentHeader> {
    let bytes = map.get(0, SEGMENT_HEADER_BYTES as usize)?;
    let database = claimed_id(bytes, 16)?;
    let own_id = u64::from_le_bytes(*bytes.get(32..)?.first_chunk()?);
    [id, own_id]
        .into_iter()
        .find_map(|id| SegmentHeader::decode(bytes, database, id).ok())
}

fn claimed_id(bytes: &[u8], at: usize) -> Option<DatabaseId> {
    bytes.get(at..)?.first_chunk().map(|id| DatabaseId(*id))
}

fn block(bytes: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = (offset as usize).min(bytes.len());
    &bytes[start..(start + len).min(bytes.len())]
}

fn states(bytes: &[u8]) -> [Result<State, Flaw>; 2] {
    STATE_OFFSETS.map(|offset| State::decode(block(bytes, offset, STATE_BLOCK_BYTES)))
}

/// Returns the bytes of a file, at most as many as a segment can have. If a part is unreadable, the
/// file is copied into memory with zeros in place of that part. The manifest gets a note about the
/// part.
fn read_file(path: &std::path::Path, options: &Options, manifest: &mut Manifest) -> Result<Arc<Map>> {
    let file = options
        .storage
        .open(path, OpenMode::Read)
        .map_err(Error::io("cannot open", path))?;
    let len = file
        .len()
        .map_err(Error::io("cannot read", path))?
        .min(u64::from(SEGMENT_BYTES_LIMIT));
    let mut buffer = vec![0; READ_BYTES.min(len as usize)];
    let mut bad = false;
    let mut at = 0;
    while at < len && !bad {
        let piece = buffer.len().min((len - at) as usize);
        bad = file.read_at(&mut buffer[..piece], at).is_err();
        at += piece as u64;
    }
    if !bad {
        let map = options
            .map(file.as_ref(), len)
            .map_err(Error::io("cannot read", path))?;
        // Salvage reads the file from beginning to end, so the map is not marked for random reads.
        map.advise(false);
        return Ok(map);
    }
    let mut bytes = vec![0; len as usize];
    for (index, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
        let at = (index * BLOCK_BYTES) as u64;
        if let Err(error) = file.read_at(block, at) {
            block.fill(0);
            let end = at + block.len() as u64;
            manifest.notes.push(format!(
                "{}, bytes {at} to {end}: cannot be read: {error}",
                path.display()
            ));
        }
    }
    Ok(Arc::new(Map::of_bytes(&bytes)))
}

/// Returns the text of an error and of its causes, on one line.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Lists missing segments as losses. A segment is missing if `found` does not have it, although the
/// state in SUPER names it, or the segment is newer than that state and the header of the next
/// segment names it. Without a valid state in SUPER, no segment is listed.
pub(super) fn note_missing(
    engine: &Engine,
    source: &Source,
    found: &[SourceSegment],
    manifest: &mut Manifest,
) {
    let has = |id: u64| found.iter().any(|segment| segment.segment.id == id);
    let mut missing: Vec<u64> = Vec::new();
    let next = source.state.as_ref().map_or(0, |state| {
        missing.extend(state.live.iter().copied().filter(|id| !has(*id)));
        state.next_segment
    });
    for header in found.iter().filter_map(|segment| segment.header) {
        let LogPosition { segment, .. } = header.previous_end;
        if source.state.is_some() && segment >= next && segment != 0 && !has(segment) {
            missing.push(segment);
        }
    }
    missing.sort_unstable();
    missing.dedup();
    // The losses so far are the unreadable files.
    let is_listed = |id: u64| {
        let path = engine.paths.segment(id);
        manifest.losses.iter().any(|loss| loss.path == path)
    };
    missing.retain(|id| !is_listed(*id));
    for id in missing {
        let after = found
            .iter()
            .find(|segment| segment.segment.id > id)
            .and_then(|segment| segment.header);
        manifest.losses.push(Loss {
            path: engine.paths.segment(id),
            what: match after {
                Some(after) => format!("the file is missing; it ended with commit {}", after.sequence),
                None => "the file is missing".to_owned(),
            },
            ..Loss::default()
        });
    }
}
