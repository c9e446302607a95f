//! Backups: a database of its own, made while this one is written to.
//!
//! Complete segments never change again, so a backup on the same file system gets them as hard links, at no cost in space or time; only the active segment and
//! the checkpoint are copied. A link shares its bytes with the original, and so its rot: a backup against failing disks belongs on another one, where all
//! is copied.

use std::path::Path;

use serde::Serialize;

use crate::db::Db;
use crate::engine::{Engine, lock};
use crate::error::{Error, Result};
use crate::format::names::Paths;
use crate::format::super_block::{Frontier, SUPER_BYTES, State};
use crate::identity::{check_path, hold_new};
use crate::log::write_state_blocks;
use crate::recover;
use crate::storage::{OpenMode, Storage};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// What a backup holds; see [`Db::backup_to`].
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
    /// The last commit in it.
    pub sequence: u64,
    /// Segments that are links to the original's.
    pub segments_linked: u64,
    /// Segments that were copied.
    pub segments_copied: u64,
    /// Bytes copied.
    pub bytes_copied: u64,
}

impl Db {
    /// Makes a copy of the database, as it is now, in the folder `path`, which must not exist or be empty. It is durable when this
    /// returns, and opens like any database. Commits go on meanwhile; compaction waits.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?; // writers go on meanwhile
    /// assert!(microdb::Db::open(copy)?.table("events")?.contains_key("k")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the folder is not empty, or is the database's own; [`Error::Io`], after which the folder holds no database.
    pub fn backup_to(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        let (engine, path) = (&self.engine, path.as_ref());
        check_path(path)?;
        engine.check_writable()?;
        if path.starts_with(engine.paths.root()) {
            // Also by name alone: within this storage, that path is the folder that was opened.
            let reason = format!("{} lies within the database", path.display());
            return Err(Error::Invalid {
                what: "backup folder",
                reason,
            });
        }
        // Commits do not wait for a backup, however long it takes.
        let _hold = engine.space.hold();
        let _no_compaction = lock(&engine.compacting);
        let _no_checkpoint = lock(&engine.checkpointing);
        engine.check_writable()?;
        engine.checkpoint_now()?;
        engine.backup(&Paths::new(path))
    }
}

impl Engine {
    fn backup(&self, to: &Paths) -> Result<BackupReport> {
        // The folder of the backup is held as well: what is written belongs together.
        let storage = hold_new(to.root(), &self.options.storage)?;
        let storage = storage.as_ref();
        let names = storage.list(to.root());
        if !names.map_err(Error::io("cannot list", to.root()))?.is_empty() {
            let reason = format!("{} is not empty", to.root().display());
            return Err(Error::Invalid {
                what: "backup folder",
                reason,
            });
        }
        for folder in [to.log(), to.directory()] {
            storage
                .create_folder(&folder)
                .map_err(Error::io("cannot create", &folder))?;
        }
        let frontier = self.sync_log()?;
        let (segments, next_segment) = {
            let core = lock(&self.core);
            let end = frontier.position;
            let segments: Vec<(u64, bool)> = core
                .accounts
                .iter()
                .map(|(id, _)| (id, id < end.segment))
                .filter(|(id, _)| *id <= end.segment)
                .collect();
            (segments, core.next_segment)
        };
        let mut report = BackupReport {
            sequence: frontier.sequence,
            ..BackupReport::default()
        };
        let _ = self.seal_segments();
        for (id, complete) in &segments {
            if *complete && self.seal_of(*id, self.segment_end(*id)).is_some() {
                let (from, target) = (self.paths.seal(*id), to.seal(*id));
                // Derived: a backup without it is as good, and gets its own when it is opened.
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
        for folder in [to.log(), to.directory()] {
            storage
                .sync_folder(&folder)
                .map_err(Error::io("cannot sync", &folder))?;
        }
        // The folder itself, and those above it, may have been made just now.
        recover::sync_ancestors(to, storage)?;
        let live = segments.into_iter().map(|(id, _)| id).collect();
        self.write_backup_super(storage, to, &frontier, live, next_segment, checkpoint)?;
        Ok(report)
    }

    /// The last file: with it, the folder is a database.
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
            // As if just made: the next open sees to the names above it.
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

/// Copies a file, up to `bytes_max` bytes, durably. Returns how many it were.
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
