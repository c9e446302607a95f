//! Healing: finds damaged chunks of segments by their seals, and replaces them by chunks of a
//! backup with the same hash.
//!
//! - If the database has a seal of the segment, this seal decides: a chunk is written only if its
//!   bytes are exactly those that were sealed.
//! - A segment without a readable seal, such as the active segment, is judged by its frames.
//!   Damaged chunks are taken from the backup if afterwards all frames that the backup has are
//!   complete, and the chain links them to further frames of the segment, or to the end that the
//!   next segment or SUPER states.
//! - If a write does not complete, for example because of a crash, the chunk is still damaged. The
//!   next call of [`heal`] replaces it.
//! - The database must be closed. Its lock is held while segments are read and written.
//!
//! Deliberately absent: deletion, and any guess at content.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::engine::identity::hold;
use crate::engine::segments::Segment;
use crate::error::{Error, Result};
use crate::format::names::{self, Paths};
use crate::format::seal::{SEAL_CHUNK_BYTES, Seal};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::format::super_block::Frontier;
use crate::format::{DatabaseId, Flaw, SEGMENT_BYTES_LIMIT};
use crate::options::Options;
use crate::raw::map::Map;
use crate::recover::log_reader::{SegmentFile, next_frame};
use crate::recover::{Super, read_super, take_lock};
use crate::storage::{OpenMode, Storage, StorageFile};
use crate::tools::backup::check_apart;
use crate::tools::seal::read_seal;

/// Result for one damaged chunk, part of [`HealReport`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let copy = folder.path().join("copy");
/// db.backup_to(&copy)?;
/// let path = db.path().to_owned();
/// db.close()?;
/// for chunk in microdb::heal(path, copy)?.damaged {
///     println!("{} from {} to {}: {}", chunk.path.display(), chunk.from, chunk.to, chunk.reason);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct ChunkReport {
    /// File of the segment.
    pub path: PathBuf,
    /// Offset of the first byte of the chunk in the file.
    pub from: u64,
    /// Offset of the byte after the chunk in the file.
    pub to: u64,
    /// `true` if the chunk was damaged and now has its original content again.
    pub healed: bool,
    /// Reason why the chunk was not healed. Empty for a healed chunk.
    pub reason: String,
}

/// Result of [`heal`].
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put("k", "v")?;
/// let copy = folder.path().join("copy");
/// db.backup_to(&copy)?;
/// let path = db.path().to_owned();
/// db.close()?;
/// let report = microdb::heal(path, copy)?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct HealReport {
    /// Number of segments with chunks that were checked.
    pub segments_checked: u64,
    /// Number of chunks that were checked.
    pub chunks_checked: u64,
    /// Number of healed chunks.
    pub chunks_healed: u64,
    /// All damaged chunks, healed or not.
    pub damaged: Vec<ChunkReport>,
    /// Segments that were not changed and are not counted in `segments_checked`: they have no seal,
    /// and their frames show no damage or the backup cannot help. [`crate::Db::verify`] checks
    /// them.
    pub unsealed: Vec<PathBuf>,
}

impl HealReport {
    /// Returns `true` if all damaged chunks among the checked ones were healed.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?;
    /// let path = db.path().to_owned();
    /// db.close()?;
    /// assert!(microdb::heal(path, copy)?.is_healed());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_healed(&self) -> bool {
        self.damaged.iter().all(|chunk| chunk.healed)
    }
}

impl fmt::Display for HealReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chunks, segments) = (self.chunks_checked, self.segments_checked);
        writeln!(f, "checked {chunks} chunks of {segments} segments")?;
        if self.damaged.is_empty() {
            writeln!(f, "none is damaged")?;
        } else {
            let (healed, damaged) = (self.chunks_healed, self.damaged.len());
            writeln!(f, "healed {healed} of {damaged} damaged chunks")?;
        }
        for chunk in &self.damaged {
            let (path, from, to) = (chunk.path.display(), chunk.from, chunk.to);
            let outcome = if chunk.healed { "healed" } else { &chunk.reason };
            writeln!(f, "    {path}, bytes {from} to {to}: {outcome}")?;
        }
        for path in &self.unsealed {
            writeln!(f, "    {}: not sealed and not changed", path.display())?;
        }
        Ok(())
    }
}

/// Replaces damaged bytes in the segments of the database in `folder` by the original bytes, taken
/// from its backup. The database must be closed.
///
/// ```no_run
/// let report = microdb::heal("data/shop", "backup/shop")?;
/// println!("{report}");
/// assert!(microdb::Db::open("data/shop")?.verify()?.is_sound());
/// # Ok::<(), microdb::Error>(())
/// ```
///
/// # Errors
/// - [`Error::Locked`], [`Error::NotADatabase`] or [`Error::Version`].
/// - [`Error::Invalid`] if a path is empty, or if the backup belongs to another database, or is
///   inside or around the folder of the database.
/// - [`Error::Corrupt`] if SUPER of the database or of the backup is damaged. Use
///   [`salvage`](crate::salvage) for a database without a valid SUPER.
/// - [`Error::Io`] if SUPER or the folder of the log cannot be read, or a segment of the database
///   cannot be opened, written or synced.
///
/// Damage that cannot be healed is not an error but part of the report.
pub fn heal(folder: impl AsRef<Path>, backup: impl AsRef<Path>) -> Result<HealReport> {
    Options::new().heal(folder, backup)
}

impl Options {
    /// Like [`heal`](crate::heal), with the storage of these options for both folders.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?;
    /// let path = db.path().to_owned();
    /// db.close()?;
    /// microdb::Options::new().heal(path, copy)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`heal`](crate::heal).
    pub fn heal(&self, folder: impl AsRef<Path>, backup: impl AsRef<Path>) -> Result<HealReport> {
        let (paths, backup) = (Paths::new(folder.as_ref()), Paths::new(backup.as_ref()));
        let storage = hold(paths.root(), &self.storage)?;
        let storage = hold(backup.root(), &storage)?;
        let storage = storage.as_ref();
        check_apart(storage, paths.root(), backup.root(), "backup")?;
        let found = identity(&paths, storage)?;
        let database = found.state.database;
        let other = identity(&backup, storage)?.state.database;
        if other != database {
            let reason = format!(
                "{} belongs to database {other}, not {database}",
                backup.root().display()
            );
            return Err(Error::Invalid {
                what: "backup",
                reason,
            });
        }
        let mut lock = take_lock(&paths, storage)?;
        lock.take_super(&paths, storage)?;
        // A writer may have changed SUPER before the lock was acquired.
        let found = identity(&paths, storage)?;
        let live = found.state.live;
        let mut ids: Vec<u64> = storage
            .list(&paths.log())
            .map_err(Error::io("cannot list", &paths.log()))?
            .iter()
            .filter_map(|name| names::parse_segment(name))
            .chain(live.iter().copied())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let mut report = HealReport::default();
        let healing = Healing {
            storage,
            paths: &paths,
            backup: &backup,
            database,
            frontier: found.frontier,
        };
        for id in ids {
            healing.segment(id, live.contains(&id), &mut report)?;
        }
        Ok(report)
    }
}

/// Reads SUPER, which contains the id of the database and the list of its segments.
fn identity(paths: &Paths, storage: &dyn Storage) -> Result<Super> {
    let path = paths.super_file();
    let file = storage
        .open(&path, OpenMode::Read)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NotADatabase {
                path: paths.root().to_path_buf(),
            },
            _ => Error::io("cannot open", &path)(error),
        })?;
    read_super(&path, file.as_ref())
}

struct Healing<'a> {
    storage: &'a dyn Storage,
    paths: &'a Paths,
    backup: &'a Paths,
    database: DatabaseId,
    /// Durable frontier according to SUPER.
    frontier: Frontier,
}

impl Healing<'_> {
    fn segment(&self, id: u64, known: bool, report: &mut HealReport) -> Result<()> {
        let path = self.paths.segment(id);
        let file = match self.storage.open(&path, OpenMode::ReadWrite) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("cannot open", &path)(error)),
        };
        if file.is_none() && !known {
            return Ok(());
        }
        let Some((seal, damaged)) = self.reference(id, file.as_deref()) else {
            report.unsealed.push(path);
            return Ok(());
        };
        let file = match file {
            Some(file) => file,
            None => {
                let made = self.storage.open(&path, OpenMode::CreateNew);
                made.map_err(Error::io("cannot create", &path))?
            }
        };
        report.segments_checked += 1;
        let mut healed = false;
        for index in 0..seal.chunks.len() {
            report.chunks_checked += 1;
            let is_whole = match &damaged {
                Some(damaged) => !damaged.contains(&index),
                None => seal.is_chunk(index, &read(file.as_ref(), seal.range(index))),
            };
            if is_whole {
                continue;
            }
            let reason = self.chunk(&seal, index, file.as_ref(), &path)?;
            healed |= reason.is_none();
            report.chunks_healed += u64::from(reason.is_none());
            let range = seal.range(index);
            report.damaged.push(ChunkReport {
                path: path.clone(),
                from: range.start.into(),
                to: range.end.into(),
                healed: reason.is_none(),
                reason: reason.unwrap_or_default(),
            });
        }
        if healed {
            file.sync_data().map_err(Error::io("cannot sync", &path))?;
            let log = self.paths.log();
            self.storage
                .sync_folder(&log)
                .map_err(Error::io("cannot sync", &log))?;
        }
        Ok(())
    }

    /// Returns the seal with which the chunks of segment `id` are compared. Without a stored seal,
    /// returns a computed seal and the indices of the damaged chunks, which the frames have shown.
    /// Without a stored seal and without a file, returns a seal of the backup's copy. Without a
    /// stored seal, returns `None` if no damage is found, or if neither the frames nor the backup
    /// prove the original bytes.
    fn reference(&self, id: u64, file: Option<&dyn StorageFile>) -> Option<(Seal, Option<BTreeSet<usize>>)> {
        if let Some(seal) = self.seal(self.paths, id) {
            return Some((seal, None));
        }
        if let Some(file) = file {
            return self
                .by_frames(id, file)
                .map(|(seal, damaged)| (seal, Some(damaged)));
        }
        // The file is missing, so the backup's segment is the reference. Its frames must lead to
        // the anchor, a position known from the next segment or SUPER.
        let (backup, end) = self.whole_backup(id)?;
        let (.., met) = backup.walk_by(&self.anchor(id)?);
        met.then(|| (Seal::of(self.database, id, &backup.bytes[..end as usize]), None))
    }

    fn seal(&self, paths: &Paths, id: u64) -> Option<Seal> {
        let seal = read_seal(self.storage, &paths.seal(id)).ok()?;
        (seal.database == self.database && seal.segment == id).then_some(seal)
    }

    /// Returns the backup's copy of segment `id`, and the end of the complete frames in it.
    fn whole_backup(&self, id: u64) -> Option<(SegmentBytes, u32)> {
        let path = self.backup.segment(id);
        let file = self.storage.open(&path, OpenMode::Read).ok()?;
        let len = file.len().ok()?.min(u64::from(SEGMENT_BYTES_LIMIT));
        let bytes = read(file.as_ref(), 0..len as u32);
        let header = SegmentHeader::decode(&bytes, self.database, id).ok()?;
        let backup = SegmentBytes { path, header, bytes };
        let (end, _) = backup.walk();
        Some((backup, end))
    }

    /// Judges a segment without a seal. Returns the indices of the chunks to replace, so that all
    /// frames up to the backup's end are complete, and a seal of the result. Returns `None` if no
    /// damage is found, or if the backup has no readable copy. Also returns `None` if nothing
    /// proves that the backup has equal frames: commits made in an opened backup give it a history
    /// of its own.
    fn by_frames(&self, id: u64, file: &dyn StorageFile) -> Option<(Seal, BTreeSet<usize>)> {
        let (backup, backup_end) = self.whole_backup(id)?;
        let len = file.len().ok()?.min(u64::from(SEGMENT_BYTES_LIMIT)) as u32;
        let bytes = read(file, 0..len);
        let header = SegmentHeader::decode(&bytes, self.database, id);
        if header.as_ref().is_ok_and(|own| *own != backup.header) {
            return None;
        }
        let mut own = SegmentBytes {
            bytes,
            ..backup.clone()
        };
        if header.is_ok() && own.walk().1.is_none() {
            return None;
        }
        own.bytes.resize(own.bytes.len().max(backup_end as usize), 0);
        let mut replaced = BTreeSet::new();
        if header.is_err() {
            own.replace(0, &backup, backup_end, &mut replaced);
        }
        let anchor = self.anchor(id)?;
        loop {
            let (end, _, met) = own.walk_by(&anchor);
            if end >= backup_end {
                // The backup fits if further frames of this database continue it, or if its frames
                // lead to the anchor.
                let data = own.bytes.get(..backup_end as usize)?;
                let fits = (met || end > backup_end) && !replaced.is_empty();
                return fits.then(|| (Seal::of(self.database, id, data), replaced));
            }
            // The damage is somewhere in the frame that begins at `end`. So the first chunk from
            // there on that is not replaced yet is replaced.
            let mut rest = (end / SEAL_CHUNK_BYTES) as usize..backup_end.div_ceil(SEAL_CHUNK_BYTES) as usize;
            let next = rest.find(|index| !replaced.contains(index))?;
            own.replace(next, &backup, backup_end, &mut replaced);
        }
    }

    /// Returns a position in segment `id` with known sequence and chain: the end stated by the next
    /// segment's header, or the durable frontier.
    fn anchor(&self, id: u64) -> Option<Frontier> {
        let later = self.storage.list(&self.paths.log()).ok()?;
        let later = later
            .iter()
            .filter_map(|name| names::parse_segment(name))
            .filter(|later| *later > id)
            .min();
        let header = later.and_then(|later| {
            let file = self
                .storage
                .open(&self.paths.segment(later), OpenMode::Read)
                .ok()?;
            SegmentHeader::decode(
                &read(file.as_ref(), 0..SEGMENT_HEADER_BYTES),
                self.database,
                later,
            )
            .ok()
        });
        let by_header = header.map(|header| Frontier {
            position: header.previous_end,
            sequence: header.sequence,
            chain: header.chain,
        });
        by_header
            .into_iter()
            .chain([self.frontier])
            .find(|anchor| anchor.position.segment == id)
    }

    /// Heals one chunk. Returns `None` on success, or the reason why the chunk was not healed.
    fn chunk(
        &self,
        seal: &Seal,
        index: usize,
        file: &dyn StorageFile,
        path: &Path,
    ) -> Result<Option<String>> {
        let range = seal.range(index);
        let source = self.backup.segment(seal.segment);
        let Ok(backup) = self.storage.open(&source, OpenMode::Read) else {
            return Ok(Some("the backup does not have this segment".to_owned()));
        };
        let bytes = read(backup.as_ref(), range.clone());
        if !seal.is_chunk(index, &bytes) {
            return Ok(Some(
                "the chunk of the backup is damaged too, or has other content".to_owned(),
            ));
        }
        file.write_at(&bytes, range.start.into())
            .map_err(Error::io("cannot write", path))?;
        if !seal.is_chunk(index, &read(file, range)) {
            return Ok(Some(
                "it reads differently after the write; check the disk".to_owned(),
            ));
        }
        Ok(None)
    }
}

/// A segment read into memory.
#[derive(Clone)]
struct SegmentBytes {
    path: PathBuf,
    header: SegmentHeader,
    bytes: Vec<u8>,
}

impl SegmentBytes {
    /// Returns the end of the complete frames. Also returns the flaw of the next frame, if bytes
    /// other than zero follow.
    fn walk(&self) -> (u32, Option<Flaw>) {
        let (end, flaw, _) = self.walk_by(&Frontier::default());
        (end, flaw)
    }

    /// Like [`SegmentBytes::walk`]. The third value is `true` if a frame begins or ends at `anchor`
    /// with equal position, sequence and chain.
    fn walk_by(&self, anchor: &Frontier) -> (u32, Option<Flaw>, bool) {
        let (map, len) = (Arc::new(Map::of_bytes(&self.bytes)), self.bytes.len() as u32);
        let (mask, id) = (self.header.mask(), self.header.id);
        let segment = Segment::mapped(id, self.path.clone(), mask, map, len);
        let file = SegmentFile {
            segment: Arc::new(segment),
            header: self.header,
            sealed_end: None,
        };
        let mut end = file.start();
        let mut met = false;
        loop {
            met |= end == *anchor;
            match next_frame(&file, end) {
                Ok(frame) => end = frame.end,
                Err(flaw) => {
                    let offset = end.position.offset;
                    let written = self
                        .bytes
                        .get(offset as usize..)
                        .is_some_and(|rest| rest.iter().any(|byte| *byte != 0));
                    return (offset, Some(flaw).filter(|_| written), met);
                }
            }
        }
    }

    /// Copies the chunk at `index` from the backup, up to offset `end`.
    fn replace(&mut self, index: usize, backup: &Self, end: u32, replaced: &mut BTreeSet<usize>) {
        let start = index * SEAL_CHUNK_BYTES as usize;
        let end = (start + SEAL_CHUNK_BYTES as usize).min(end as usize);
        self.bytes[start..end].copy_from_slice(&backup.bytes[start..end]);
        replaced.insert(index);
    }
}

/// Returns the bytes of a range of a file. Fewer bytes are returned at the end of the file, and
/// none after an error.
fn read(file: &dyn StorageFile, range: std::ops::Range<u32>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    let read = file.read_at(&mut bytes, range.start.into()).unwrap_or(0);
    bytes.truncate(read);
    bytes
}
