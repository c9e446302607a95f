//! Backups: a complete copy of a database that is being written to.
//!
//! - Complete segments never change again. So a backup contains hard links to them if the file
//!   system permits it, and else copies. The active segment and the checkpoint are always copied.
//! - A link and the original share their bytes, so they share damage too. To protect from failing
//!   disks, a backup must be on another disk, where everything is copied.
//! - A database that is open read-only is copied as its reader sees it: its segments are copied
//!   from memory (maps, and bytes that the open has copied), and no segment is linked. Maps stay
//!   readable even if a writer removes the files.
//! - No record of the original is changed. A backup writes a new checkpoint and missing seals into
//!   an original that is open for writing.
//!
//! Deliberately absent: incremental backups. Hard links make a full backup cheap.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::engine::identity::{check_path, hold_new};
use crate::engine::log::write_state_blocks;
use crate::engine::segments::Segment;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::names::Paths;
use crate::format::super_block::{Frontier, SUPER_BYTES, State};
use crate::raw::epoch::pin;
use crate::recover;
use crate::seeded::seeded;
use crate::sequence::Sequence;
use crate::storage::{OpenMode, Storage};

/// Number of bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Content of a backup, returned by [`Db::backup_to`](crate::Db::backup_to).
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// let report = db.backup_to(folder.path().join("copy"))?;
/// println!("{} segments linked, {} copied", report.segments_linked, report.segments_copied);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// Sequence of the last commit in the backup.
    pub sequence: Sequence,
    /// Number of segments that are hard links to segments of the original.
    pub segments_linked: u64,
    /// Number of segments that were copied byte for byte.
    pub segments_copied: u64,
    /// Number of bytes of segments and of the checkpoint that were copied.
    pub bytes_copied: u64,
}

impl Engine {
    /// Copies the database to the folder `path`.
    pub(crate) fn backup_to(&self, path: &Path) -> Result<BackupReport> {
        check_path(path)?;
        let to = Paths::new(path);
        if self.options.read_only {
            self.check_process()?;
            if self.closed.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
            let storage = self.hold_target(&to)?;
            return self.backup_of_view(storage.as_ref(), &to);
        }
        self.check_writable()?;
        // While `_hold` exists, commits do not wait at the maximum size of the log, because a
        // backup may take long.
        let _hold = self.space.hold();
        let _no_compaction = lock(&self.compacting);
        let _no_checkpoint = lock(&self.checkpointing);
        self.check_writable()?;
        let storage = self.hold_target(&to)?;
        self.checkpoint_now()?;
        self.backup(storage.as_ref(), &to)
    }

    /// Creates and holds the folder of a backup. Refuses a folder that is not empty, or is inside
    /// or around the database's folder.
    fn hold_target(&self, to: &Paths) -> Result<Arc<dyn Storage>> {
        if !seeded("backup-within-itself") {
            check_apart(
                self.options.storage.as_ref(),
                self.paths.root(),
                to.root(),
                "backup folder",
            )?;
        }
        let storage = hold_new(to.root(), &self.options.storage)?;
        let names = storage.list(to.root());
        if !names.map_err(Error::io("cannot list", to.root()))?.is_empty() {
            let reason = format!("{} is not empty", to.root().display());
            return Err(Error::Invalid {
                what: "backup folder",
                reason,
            });
        }
        Ok(storage)
    }

    fn create_folders(storage: &dyn Storage, to: &Paths) -> Result<()> {
        for folder in [to.log(), to.directory()] {
            let created = storage.create_folder(&folder);
            created.map_err(Error::io("cannot create", &folder))?;
        }
        Ok(())
    }

    /// Makes durable the names in the folders `log` and `directory` of a backup, and the name of
    /// the backup's folder. `write_backup_super` syncs the names in the backup's folder itself.
    fn sync_names(storage: &dyn Storage, to: &Paths) -> Result<()> {
        for folder in [to.log(), to.directory()] {
            let synced = storage.sync_folder(&folder);
            synced.map_err(Error::io("cannot sync", &folder))?;
        }
        // The backup's folder and its ancestors may be new, so their names are synced too.
        if seeded("backup-unsynced-name") {
            return Ok(());
        }
        recover::sync_ancestors(to, storage)
    }

    fn backup(&self, storage: &dyn Storage, to: &Paths) -> Result<BackupReport> {
        Self::create_folders(storage, to)?;
        let frontier = self.sync_log()?;
        let (segments, next_segment) = {
            let core = lock(&self.core);
            let end = frontier.position;
            let segments: Vec<(u64, bool)> = core
                .usages
                .iter()
                .map(|(id, _)| (id, id < end.segment))
                .filter(|(id, _)| *id <= end.segment)
                .collect();
            (segments, core.next_segment)
        };
        let mut report = BackupReport {
            sequence: Sequence(frontier.sequence),
            ..BackupReport::default()
        };
        // An error is ignored, because a backup needs no seals. They can be computed from the
        // copied segments.
        let _ = self.seal_segments();
        for (id, complete) in &segments {
            if *complete && self.seal_of(*id, self.segment_end(*id)).is_some() {
                let (from, target) = (self.paths.seal(*id), to.seal(*id));
                // A failed copy is ignored: the seal can be computed again from its segment.
                if storage.hard_link(&from, &target).is_err() {
                    let _ = copy(storage, &from, &target, u64::MAX);
                }
            }
            let (from, target) = (self.paths.segment(*id), to.segment(*id));
            if *complete && storage.hard_link(&from, &target).is_ok() {
                report.segments_linked += 1;
                continue;
            }
            let bytes_max = if *complete {
                u64::MAX
            } else {
                frontier.position.offset.into()
            };
            report.bytes_copied += copy(storage, &from, &target, bytes_max)?;
            report.segments_copied += 1;
        }
        let checkpoint = lock(&self.writer).checkpoint;
        let (from, target) = (self.paths.checkpoint(checkpoint), to.checkpoint(checkpoint));
        report.bytes_copied += copy(storage, &from, &target, u64::MAX)?;
        Self::sync_names(storage, to)?;
        let live = segments.into_iter().map(|(id, _)| id).collect();
        self.write_backup_super(storage, to, &frontier, live, next_segment, checkpoint)?;
        Ok(report)
    }

    /// Copies the state that a read-only database sees, which is that of its opening.
    fn backup_of_view(&self, storage: &dyn Storage, to: &Paths) -> Result<BackupReport> {
        Self::create_folders(storage, to)?;
        let (end, next_segment) = {
            let core = lock(&self.core);
            (core.published, core.next_segment)
        };
        let mut report = BackupReport {
            sequence: Sequence(end.sequence),
            ..BackupReport::default()
        };
        let table = self.segments.load_arc(&pin());
        let segments = || table.iter().filter(|segment| segment.id <= end.position.segment);
        for segment in segments() {
            let is_last = segment.id == end.position.segment;
            let len = if is_last {
                end.position.offset
            } else {
                self.segment_end(segment.id)
            };
            report.bytes_copied += copy_segment(storage, segment, len, &to.segment(segment.id))?;
            report.segments_copied += 1;
            // A failed copy is ignored: the seal can be computed again from its segment.
            if !is_last && self.seal_of(segment.id, len).is_some() {
                let _ = copy(
                    storage,
                    &self.paths.seal(segment.id),
                    &to.seal(segment.id),
                    u64::MAX,
                );
            }
        }
        let checkpoint = self.copy_checkpoint(storage, to, &mut report);
        Self::sync_names(storage, to)?;
        let live = segments().map(|segment| segment.id).collect();
        self.write_backup_super(storage, to, &end, live, next_segment, checkpoint)?;
        Ok(report)
    }

    /// Copies the checkpoint from which the database was opened. Returns its generation, or 0 if
    /// there was no such checkpoint or its copy failed, for example because a writer has removed
    /// the file. Opening the backup then replays its whole log.
    fn copy_checkpoint(&self, storage: &dyn Storage, to: &Paths, report: &mut BackupReport) -> u64 {
        let generation = self.recovery.checkpoint;
        if generation == 0 {
            return 0;
        }
        let target = to.checkpoint(generation);
        match copy(storage, &self.paths.checkpoint(generation), &target, u64::MAX) {
            Ok(bytes) => {
                report.bytes_copied += bytes;
                generation
            }
            Err(_) => {
                // A failed removal is ignored. SUPER of the backup will name no checkpoint, so a
                // remaining part of the file is not used.
                let _ = storage.remove(&target);
                0
            }
        }
    }

    /// Writes SUPER of the backup. Called last, because SUPER makes the folder a database.
    fn write_backup_super(
        &self,
        storage: &dyn Storage,
        to: &Paths,
        frontier: &Frontier,
        live: Vec<u64>,
        next_segment: u64,
        checkpoint: u64,
    ) -> Result<()> {
        let state = State {
            database: self.database,
            hash_seed: self.hash_seed,
            // The generation of a new database, so that the next open syncs the names in the
            // folder.
            generation: 1,
            created_ms: self.created_ms,
            checkpoint,
            frontier: *frontier,
            next_segment,
            live,
        };
        let (temporary, path) = (to.super_temporary(), to.super_file());
        let file = storage
            .open(&temporary, OpenMode::CreateNew)
            .map_err(Error::io("cannot create", &temporary))?;
        let written = file
            .allocate(0, SUPER_BYTES as u64)
            .and_then(|()| write_state_blocks(file.as_ref(), &state))
            .and_then(|()| storage.sync_folder(to.root()))
            .and_then(|()| storage.rename(&temporary, &path))
            .and_then(|()| storage.sync_folder(to.root()));
        written.map_err(Error::io("cannot write", &path))
    }
}

/// Fails if one of two folders contains the other. Otherwise a backup would copy itself, and a
/// salvage would read its own output.
pub(crate) fn check_apart(
    storage: &dyn Storage,
    source: &Path,
    target: &Path,
    what: &'static str,
) -> Result<()> {
    for (inner, outer) in [(target, source), (source, target)] {
        let within = storage.is_within(inner, outer);
        if within.map_err(Error::io("cannot inspect", inner))? {
            let reason = format!("{} lies within {}", inner.display(), outer.display());
            return Err(Error::Invalid { what, reason });
        }
    }
    Ok(())
}

/// Writes the first `len` bytes of a segment to a new file and syncs the file. Returns `len`.
fn copy_segment(storage: &dyn Storage, segment: &Arc<Segment>, len: u32, to: &Path) -> Result<u64> {
    let target = storage
        .open(to, OpenMode::CreateNew)
        .map_err(Error::io("cannot create", to))?;
    segment.begin_reading(0);
    let mut at = 0;
    while at < len {
        let end = len.min(at.saturating_add(COPY_BYTES as u32));
        segment.keep_reading(at, end);
        let bytes = segment.bytes_between(at, end);
        // If the file was truncated while mapped, or the disk cannot read a page of it, the missing
        // bytes read as zeros and must not be copied.
        if bytes.len() < (end - at) as usize || segment.is_cut() {
            let (expected, found) = (format_args!("{len} bytes"), "fewer");
            return Err(Error::corrupt(
                &segment.path,
                at.into(),
                "length of the segment",
                expected,
                found,
            ));
        }
        let written = target.write_at(&bytes, at.into());
        written.map_err(Error::io("cannot write", to))?;
        at = end;
    }
    if segment.is_cut() {
        let (expected, found) = (format_args!("{len} bytes"), "fewer");
        return Err(Error::corrupt(
            &segment.path,
            0,
            "length of the segment",
            expected,
            found,
        ));
    }
    target.sync_data().map_err(Error::io("cannot sync", to))?;
    Ok(len.into())
}

/// Copies up to `bytes_max` bytes of a file to a new file and syncs the new file. Returns the
/// number of copied bytes.
fn copy(storage: &dyn Storage, from: &Path, to: &Path, bytes_max: u64) -> Result<u64> {
    let source = storage
        .open(from, OpenMode::Read)
        .map_err(Error::io("cannot open", from))?;
    let target = storage
        .open(to, OpenMode::CreateNew)
        .map_err(Error::io("cannot create", to))?;
    let bytes = source
        .len()
        .map_err(Error::io("cannot read", from))?
        .min(bytes_max);
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < bytes {
        let piece = (bytes - at).min(COPY_BYTES as u64) as usize;
        let read = source
            .read_at(&mut buffer[..piece], at)
            .map_err(Error::io("cannot read", from))?;
        if read == 0 {
            return Err(Error::io("cannot read", from)(
                std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        target
            .write_at(&buffer[..read], at)
            .map_err(Error::io("cannot write", to))?;
        at += read as u64;
    }
    target.sync_data().map_err(Error::io("cannot sync", to))?;
    Ok(bytes)
}
