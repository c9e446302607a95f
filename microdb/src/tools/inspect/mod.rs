//! Display of a database's files without opening the database: the content of SUPER, and segments
//! with their headers, frames and records.
//!
//! - Works on a database that cannot be opened.
//! - Takes no lock and changes nothing.
//! - Bytes that belong to no frame with a valid header are listed as gaps, with the reason. Zeros
//!   at the end of a segment are no gap.
//!
//! Deliberately absent: the directory. So live and dead records are not distinguished;
//! [`crate::Table::location`] finds the live record of a key.

mod decode;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::decode::{SEGMENT_FIELDS, fields, told, walk};
use crate::error::{Error, Result};
use crate::format::checksum::SegmentMask;
use crate::format::names::Paths;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::{
    HINT_BLOCK_BYTES, HINT_OFFSETS, STATE_BLOCK_BYTES, STATE_OFFSETS, State, decode_hint,
};
use crate::format::{DatabaseId, LogPosition, SEGMENT_BYTES_LIMIT, names};
use crate::sequence::Sequence;

/// One field of the format, as stored in a file.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let at = events.location("k")?.unwrap();
/// let view = microdb::inspect::segment(db.path(), at.segment)?;
/// for field in view.header {
///     println!("{:>6} {}: {}", field.offset, field.name, field.meaning);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Field {
    /// Offset of the field in the file.
    pub offset: u64,
    /// Name of the field, as in the format document.
    pub name: &'static str,
    /// Bytes of the field, as stored.
    pub bytes: Vec<u8>,
    /// Value of the field, as text.
    pub meaning: String,
}

/// A record of the log.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let at = events.location("k")?.unwrap();
/// let view = microdb::inspect::segment(db.path(), at.segment)?;
/// let records = view.frames.iter().flat_map(|frame| &frame.records);
/// assert!(records.into_iter().any(|record| record.key == b"k" && record.value == b"v"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RecordView {
    /// Offset of the record in the file.
    pub offset: u64,
    /// Kind of the record: "put", "delete" or "clear".
    pub kind: &'static str,
    /// Id of the table; 0 is the catalog.
    pub table: u32,
    /// Key of the record.
    pub key: Vec<u8>,
    /// Value of the record. For a delete or clear that compaction copied: the id of the segment to
    /// which the record was first written.
    pub value: Vec<u8>,
    /// All bytes of the record, as stored.
    pub bytes: Vec<u8>,
    /// Description of the damage of the record, or `None` for an intact record.
    pub damage: Option<String>,
}

/// A frame of the log: one atomic batch, or records copied by compaction.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let at = events.location("k")?.unwrap();
/// let view = microdb::inspect::segment(db.path(), at.segment)?;
/// for frame in view.frames {
///     println!("{} to {}: {}", frame.offset, frame.end, frame.kind);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FrameView {
    /// Offset of the frame in the file.
    pub offset: u64,
    /// Offset of the byte after the frame in the file.
    pub end: u64,
    /// Kind of the frame: "commit" for a batch, "relocation" for copies made by compaction.
    pub kind: &'static str,
    /// Sequence of the commit. For a relocation: the sequence of the last commit before it.
    pub sequence: Sequence,
    /// Header of the frame, field by field.
    pub header: Vec<Field>,
    /// Records of the frame, up to the first one that cannot be decoded.
    pub records: Vec<RecordView>,
    /// Description of the damage if the readable records do not match the record count and length
    /// in the header, otherwise `None`.
    pub damage: Option<String>,
}

/// Bytes that belong to no frame with a valid header.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let at = events.location("k")?.unwrap();
/// let view = microdb::inspect::segment(db.path(), at.segment)?;
/// for gap in view.gaps {
///     println!("{} to {}: {}", gap.offset, gap.end, gap.reason);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Gap {
    /// Offset of the first byte of the gap in the file.
    pub offset: u64,
    /// Offset of the byte after the gap in the file.
    pub end: u64,
    /// Reason why these bytes are no frame.
    pub reason: String,
}

/// A segment of the log, as stored in its file.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let at = events.location("k")?.unwrap();
/// let view = microdb::inspect::segment(db.path(), at.segment)?;
/// assert_eq!((view.id, view.header_damage), (at.segment, None));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SegmentView {
    /// Path of the segment's file.
    pub path: PathBuf,
    /// Id of the segment, from the name of the file.
    pub id: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Header of the segment, field by field.
    pub header: Vec<Field>,
    /// Description of the damage of the header, or `None` if the header is valid.
    pub header_damage: Option<String>,
    /// All frames that were found, in the order of the file.
    pub frames: Vec<FrameView>,
    /// Bytes before and between the frames, and bytes behind the last frame unless all are zero. In
    /// the last segment of the log, the bytes behind the last frame may be a commit cut off by a
    /// crash.
    pub gaps: Vec<Gap>,
}

impl SegmentView {
    /// Returns a description of each damage with its position. Bytes behind the last frame are not
    /// judged, because they may be a torn tail.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let segment = events.location("k")?.unwrap().segment;
    /// let view = microdb::inspect::segment(db.path(), segment)?;
    /// assert!(view.damage().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        let at = |offset: u64, what: &str| format!("{} at byte {offset}: {what}", self.path.display());
        let mut found: Vec<String> = self.header_damage.iter().map(|what| at(0, what)).collect();
        for frame in &self.frames {
            found.extend(frame.damage.iter().map(|what| at(frame.offset, what)));
            for record in &frame.records {
                found.extend(record.damage.iter().map(|what| at(record.offset, what)));
            }
        }
        let last = self.frames.last().map_or(0, |frame| frame.end);
        let between = self.gaps.iter().filter(|gap| gap.offset < last);
        found.extend(between.map(|gap| {
            at(
                gap.offset,
                &format!(
                    "{} bytes up to {} contain no frame: {}",
                    gap.end - gap.offset,
                    gap.end,
                    gap.reason
                ),
            )
        }));
        found
    }
}

/// Content of a database's folder, as far as it can be read without opening the database.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let view = microdb::inspect::folder(db.path())?;
/// assert!(view.missing.is_empty() && !view.segments.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FolderView {
    /// Id of the database in hexadecimal, from a valid state in SUPER, or else from the headers of
    /// the segments. `None` if none of these is valid.
    pub database: Option<String>,
    /// Time at which the database was created, in milliseconds since 1970, if a state in SUPER is
    /// valid.
    pub created_ms: Option<u64>,
    /// The two copies of the state in SUPER: their generation, or a description of the damage.
    pub states: Vec<std::result::Result<u64, String>>,
    /// Durable frontier: the highest position stated by SUPER, if a state in SUPER is valid.
    pub frontier: Option<LogPosition>,
    /// Generation of the checkpoint named by SUPER, or 0 for none, if a state in SUPER is valid.
    pub checkpoint: Option<u64>,
    /// Ids of existing segments with the lengths of their files in bytes, in ascending order.
    pub segments: Vec<(u64, u64)>,
    /// Ids of segments that SUPER names and that have no file. Empty if no state in SUPER is valid.
    pub missing: Vec<u64>,
    /// Generations of existing checkpoints with the lengths of their files in bytes, in ascending
    /// order.
    pub checkpoints: Vec<(u64, u64)>,
}

/// Reads SUPER and the lists of segments and checkpoints in the folder of a database.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let view = microdb::inspect::folder(db.path())?; // also of a database that does not open
/// assert_eq!(view.database, Some(db.id().to_string()));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotADatabase`] if the folder has neither SUPER nor segments; [`Error::Io`].
pub fn folder(path: impl AsRef<Path>) -> Result<FolderView> {
    let paths = Paths::new(path.as_ref());
    let super_file = paths.super_file();
    let bytes = match std::fs::read(&super_file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io("cannot read", &super_file)(error)),
    };
    let segments = listed(&paths.log(), names::parse_segment)?;
    if bytes.is_empty() && segments.is_empty() && !super_file.exists() {
        return Err(Error::NotADatabase {
            path: paths.root().to_path_buf(),
        });
    }
    let block = |offset: u64, len: usize| {
        let start = (offset as usize).min(bytes.len());
        &bytes[start..(start + len).min(bytes.len())]
    };
    let states = STATE_OFFSETS.map(|offset| State::decode(block(offset, STATE_BLOCK_BYTES)));
    let newest = states.iter().flatten().max_by_key(|state| state.generation);
    let frontier = newest.map(|state| {
        let hints = HINT_OFFSETS
            .iter()
            .filter_map(|offset| decode_hint(block(*offset, HINT_BLOCK_BYTES), state.database));
        hints
            .map(|(_, hint)| hint.position)
            .fold(state.frontier.position, Ord::max)
    });
    let database = newest
        .map(|state| state.database)
        .or_else(|| segments_id(&paths, &segments));
    let missing = |state: &State| {
        let there = |id: &u64| segments.iter().any(|(segment, _)| segment == id);
        state.live.iter().copied().filter(|id| !there(id)).collect()
    };
    Ok(FolderView {
        database: database.map(|database| database.to_string()),
        created_ms: newest.map(|state| state.created_ms),
        frontier,
        checkpoint: newest.map(|state| state.checkpoint),
        missing: newest.map(missing).unwrap_or_default(),
        states: states
            .iter()
            .map(|state| state.as_ref().map(|state| state.generation).map_err(told))
            .collect(),
        checkpoints: listed(&paths.directory(), names::parse_checkpoint)?,
        segments,
    })
}

/// Returns the files of a folder, sorted by number: for each file, its number and its length in
/// bytes. `parse` reads the number from the name; files without a number are skipped. Returns an
/// empty list if the folder does not exist.
fn listed(folder: &Path, parse: impl Fn(&str) -> Option<u64>) -> Result<Vec<(u64, u64)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("cannot list", folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("cannot list", folder))?;
        // A file that is removed during the listing has no metadata and is skipped.
        if let (Some(id), Ok(about)) = (entry.file_name().to_str().and_then(&parse), entry.metadata()) {
            found.push((id, about.len()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads the segment `id` of the database in the folder `path`. Finds all frames with a valid
/// header, including those with damaged records.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let at = events.location("k")?.unwrap();
/// let view = microdb::inspect::segment(db.path(), at.segment)?;
/// println!("{} frames", view.frames.len());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Io`] if the file cannot be read.
pub fn segment(path: impl AsRef<Path>, id: u64) -> Result<SegmentView> {
    let paths = Paths::new(path.as_ref());
    let file = paths.segment(id);
    let mut bytes = std::fs::read(&file).map_err(Error::io("cannot read", &file))?;
    let len = bytes.len() as u64;
    // No frame is beyond this limit, because offsets in the format have 26 bits.
    bytes.truncate(SEGMENT_BYTES_LIMIT as usize);
    // The header states the id of the database. If the header is damaged, the id is taken from
    // SUPER or from the other segments.
    let own = own_id(&bytes);
    let whole = own.map(|own| SegmentHeader::decode(&bytes, own, id));
    let header_damage = match whole {
        None => Some(format!("the file has {len} bytes, too few for a header")),
        Some(header) => header.err().as_ref().map(told),
    };
    let named = if header_damage.is_some() {
        super_id(&paths).or_else(|| segments_id(&paths, &listed(&paths.log(), names::parse_segment).ok()?))
    } else {
        None
    };
    let mask = SegmentMask::new(named.or(own).unwrap_or(DatabaseId([0; 16])), id);
    let mut view = SegmentView {
        path: file,
        id,
        bytes: len,
        header: fields(&bytes, 0, &SEGMENT_FIELDS),
        header_damage,
        frames: Vec::new(),
        gaps: Vec::new(),
    };
    walk(&bytes, mask, &mut view);
    Ok(view)
}

fn super_id(paths: &Paths) -> Option<DatabaseId> {
    let bytes = std::fs::read(paths.super_file()).ok()?;
    let state = |offset: &u64| State::decode(bytes.get(*offset as usize..)?.get(..STATE_BLOCK_BYTES)?).ok();
    STATE_OFFSETS.iter().find_map(state).map(|state| state.database)
}

/// Returns the id of the database that a segment's header states, or `None` if the file ends before
/// the end of the id. The header is not verified.
fn own_id(segment: &[u8]) -> Option<DatabaseId> {
    segment.get(16..)?.first_chunk().map(|id| DatabaseId(*id))
}

/// Returns the id of the database that most valid headers of segments state. A folder without SUPER
/// may have segments of another database, copied there by mistake.
fn segments_id(paths: &Paths, segments: &[(u64, u64)]) -> Option<DatabaseId> {
    let mut votes: HashMap<DatabaseId, usize> = HashMap::new();
    for (id, _) in segments {
        let mut header = [0; SEGMENT_HEADER_BYTES as usize];
        let read = std::fs::File::open(paths.segment(*id)).and_then(|mut file| file.read_exact(&mut header));
        if read.is_ok()
            && let Some(own) = own_id(&header)
            && SegmentHeader::decode(&header, own, *id).is_ok()
        {
            *votes.entry(own).or_default() += 1;
        }
    }
    let most = votes
        .into_iter()
        .max_by_key(|(database, votes)| (*votes, database.0));
    most.map(|(database, _)| database)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    #[test]
    fn what_was_written_is_shown_and_damage_is_named_where_it_is() {
        let folder_kept = tempfile::tempdir().unwrap();
        let path = folder_kept.path();
        let db = Options::new().background(false).open(path).unwrap();
        let table = db.table("t").unwrap();
        for number in 0..5 {
            table.put(format!("key {number}"), "value").unwrap();
        }
        table.delete("key 1").unwrap();
        let at = table.location("key 3").unwrap().unwrap();
        let (segment_id, offset) = (at.segment, at.offset);
        assert_eq!(table.location("key 1").unwrap(), None);
        db.close().unwrap();
        let seen = folder(path).unwrap();
        assert_eq!((seen.states[0].clone(), seen.missing.len()), (Ok(2), 0));
        let view = segment(path, segment_id).unwrap();
        assert_eq!(
            (view.frames.len(), view.gaps.len(), view.damage().len()),
            (7, 0, 0)
        );
        let record = view
            .frames
            .iter()
            .flat_map(|frame| &frame.records)
            .find(|record| record.offset == offset.into());
        assert_eq!(record.unwrap().key, b"key 3");
        assert_eq!(view.frames[6].records[0].kind, "delete");
        // One bit is flipped in a record, and another in the header of the next frame.
        let mut bytes = std::fs::read(&view.path).unwrap();
        bytes[offset as usize + 8] ^= 1;
        let header = view.frames[5].offset as usize;
        bytes[header + 20] ^= 1;
        std::fs::write(&view.path, &bytes).unwrap();
        let damage = segment(path, segment_id).unwrap().damage();
        assert_eq!(damage.len(), 2, "{damage:?}");
        assert!(damage[0].contains(&format!("at byte {offset}")), "{damage:?}");
        assert!(damage[1].contains(&format!("at byte {header}")), "{damage:?}");
    }

    #[test]
    fn the_id_of_a_database_without_super_comes_from_its_segments() {
        let folder_kept = tempfile::tempdir().unwrap();
        let path = folder_kept.path();
        let options = Options::new().background(false).segment_bytes_first(4_096);
        let db = options.open(path).unwrap();
        let table = db.table("t").unwrap();
        for number in 0..5 {
            table.put(format!("key {number}"), vec![7; 2_000]).unwrap();
        }
        let id = db.id().to_string();
        db.close().unwrap();
        std::fs::remove_file(Paths::new(path).super_file()).unwrap();
        let seen = folder(path).unwrap();
        assert!(seen.segments.len() > 1, "{:?}", seen.segments);
        assert_eq!((seen.database, seen.created_ms), (Some(id.clone()), None));
        // The id in a damaged header is replaced by that of the other segments, so the frames of
        // the segment are still found.
        let (first, _) = seen.segments[0];
        let view = segment(path, first).unwrap();
        assert!(!view.frames.is_empty());
        let mut bytes = std::fs::read(&view.path).unwrap();
        bytes[16] ^= 1;
        std::fs::write(&view.path, &bytes).unwrap();
        let damaged = segment(path, first).unwrap();
        assert!(damaged.header_damage.is_some());
        assert_eq!(damaged.frames.len(), view.frames.len());
        assert_eq!(folder(path).unwrap().database, Some(id));
        // Without a valid header of a segment, the id of the database is unknown.
        for (segment, _) in seen.segments {
            std::fs::write(Paths::new(path).segment(segment), [0; 200]).unwrap();
        }
        assert_eq!(folder(path).unwrap().database, None);
    }
}
