//! Identity: a database is the opened folder and its lock, never a path.
//!
//! - Opening a database keeps its folder open (`Storage::hold_folder`). Renaming the database, a
//!   `chdir`, a changed symbolic link or another database under the old path have no effect.
//! - LOCK is checked after the syncs that make commits durable. LOCK and SUPER are checked before
//!   each new segment, checkpoint, seal and state of SUPER. If either file was removed or replaced,
//!   the database is poisoned and acknowledges no further commits. SUPER is locked too, so that a
//!   second opener that creates a new LOCK is refused.
//! - In a forked child, reads, writes and maintenance through an inherited handle fail with
//!   `Error::Forked`, also reads of a snapshot, iterator or change feed that was created before the
//!   fork. Values taken before the fork stay readable. The handle writes, removes and unlocks
//!   nothing, not even when dropped.
//! - In a forked child, no call through an inherited handle waits for a lock, because a lock that
//!   another thread held at the fork stays locked. A call that cannot return an error returns only
//!   values that need no lock, or a value without content: no table, no statistics, the sequence 0.
//! - A file with the name of a segment is removed only if its header has the id of this database,
//!   or if it is empty or begins with zeros. A file with the name of a checkpoint is kept if it
//!   belongs to another database. If the name of a new segment is already taken, the engine uses
//!   the next id.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, MutexGuard};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::format::DatabaseId;
use crate::format::checkpoint::CHECKPOINT_MAGIC;
use crate::format::names::Paths;
use crate::format::segment::SEGMENT_MAGIC;
use crate::raw::sync::ignore_poison;
use crate::seeded::seeded;
use crate::storage::{OpenMode, Storage, StorageLock};

/// Number of bytes at the start of a segment or checkpoint that hold its identity: magic bytes,
/// version, checksum and database id.
const IDENTITY_BYTES: usize = 32;
/// Offset of the database id in a segment or checkpoint.
const DATABASE_AT: usize = 16;

/// The locks of the process that has the database open for writing.
#[derive(Debug)]
pub(crate) struct Locks {
    lock: Box<dyn StorageLock>,
    super_file: Option<Box<dyn StorageLock>>,
}

/// The locks while the database is open for writing, `None` otherwise. This is the mutex of `std`
/// even under loom, because no thread waits for another thread while holding it.
pub(crate) type LocksCell = std::sync::Mutex<Option<Locks>>;

impl Locks {
    /// Locks the file LOCK of the database. Fails with [`Error::Locked`] if another opener has the
    /// lock.
    pub(crate) fn take(paths: &Paths, storage: &dyn Storage) -> Result<Self> {
        let lock = take(&paths.lock(), storage)?;
        Ok(Self {
            lock,
            super_file: None,
        })
    }

    /// Locks SUPER, which must exist.
    pub(crate) fn take_super(&mut self, paths: &Paths, storage: &dyn Storage) -> Result<()> {
        self.super_file = Some(take(&paths.super_file(), storage)?);
        Ok(())
    }
}

fn take(path: &Path, storage: &dyn Storage) -> Result<Box<dyn StorageLock>> {
    match storage.lock(path).map_err(Error::io("cannot lock", path))? {
        // The file is checked after locking: if it was removed between opening and locking, the
        // lock excludes no other process.
        Ok(lock) => lock
            .check()
            .map(|()| lock)
            .map_err(Error::io("cannot lock", path)),
        Err(holder) => Err(Error::Locked {
            path: path.to_path_buf(),
            holder,
        }),
    }
}

/// Refuses an empty path, because an empty path joined with a file name would name a file of the
/// working folder.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::Invalid {
            what: "path",
            reason: "the path is empty; use \".\" for the working folder".to_owned(),
        });
    }
    Ok(())
}

/// Returns a storage that keeps the folder `root` open, or `storage` itself if its `hold_folder`
/// returns `None`.
///
/// # Errors
/// [`Error::NotADatabase`] if the folder does not exist, [`Error::Invalid`] for the empty path, and
/// [`Error::Io`].
pub(crate) fn hold(root: &Path, storage: &Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
    check_path(root)?;
    match storage.hold_folder(root) {
        Ok(held) => Ok(held.unwrap_or_else(|| storage.clone())),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::NotADatabase {
            path: root.to_path_buf(),
        }),
        Err(error) => Err(Error::io("cannot open", root)(error)),
    }
}

/// Returns a storage that keeps the folder `root` open, like [`hold`]. Creates the folder if it
/// does not exist.
pub(crate) fn hold_new(root: &Path, storage: &Arc<dyn Storage>) -> Result<Arc<dyn Storage>> {
    check_path(root)?;
    let make = || {
        storage
            .create_folder(root)
            .map_err(Error::io("cannot create", root))
    };
    make()?;
    match hold(root, storage) {
        // After its creation, the folder was removed or renamed, or the path is relative and the
        // working folder changed. So the folder is created once more.
        Err(Error::NotADatabase { .. }) => {
            make()?;
            hold(root, storage)
        }
        held => held,
    }
}

/// Returns `true` if the file at `path` may be removed as a segment of `database`: its header has
/// the id of the database, or the file is empty or begins with zeros. Segments of other databases
/// and foreign files are kept.
pub(crate) fn is_own_segment(storage: &dyn Storage, path: &Path, database: DatabaseId) -> Result<bool> {
    let head = match read_head(storage, path)? {
        Head::Bytes(head) => head,
        // The result is `true` for a missing file. The caller then tries to remove the file, and
        // the removal reports that the file is missing.
        Head::Missing => return Ok(true),
        Head::NoFile => return Ok(false),
    };
    let is_empty = head.iter().all(|byte| *byte == 0);
    let is_ours = head.starts_with(&SEGMENT_MAGIC) && head.get(DATABASE_AT..) == Some(&database.0[..]);
    Ok(is_empty || is_ours)
}

/// Returns `true` if `path` leads to a checkpoint of another database than `database`, or to a
/// folder or a named pipe.
pub(crate) fn is_foreign_checkpoint(
    storage: &dyn Storage,
    path: &Path,
    database: DatabaseId,
) -> Result<bool> {
    let head = match read_head(storage, path)? {
        Head::Bytes(head) => head,
        Head::Missing => return Ok(false),
        Head::NoFile => return Ok(true),
    };
    let other = head
        .get(DATABASE_AT..)
        .filter(|_| head.starts_with(&CHECKPOINT_MAGIC));
    Ok(other.is_some_and(|other| other != database.0))
}

/// The result of reading the first bytes of a file.
enum Head {
    Bytes(Vec<u8>),
    Missing,
    /// The path leads to a folder or a named pipe. No database creates these under the name of a
    /// segment or checkpoint.
    NoFile,
}

fn read_head(storage: &dyn Storage, path: &Path) -> Result<Head> {
    let file = match storage.open(path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Head::Missing),
        Err(error) => return Err(Error::io("cannot open", path)(error)),
    };
    let mut head = vec![0; IDENTITY_BYTES];
    match file.read_at(&mut head, 0) {
        Ok(read) => {
            head.truncate(read);
            Ok(Head::Bytes(head))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotSeekable | ErrorKind::IsADirectory) => {
            Ok(Head::NoFile)
        }
        Err(error) => Err(Error::io("cannot read", path)(error)),
    }
}

impl Engine {
    /// Fails with [`Error::Forked`] in a forked child of the process that opened the database. Each
    /// public method calls this before it takes a lock of the database.
    #[inline]
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.birth.is_here() || seeded("fork-unnoticed") {
            Ok(())
        } else {
            Err(Error::Forked)
        }
    }

    /// Poisons the database if the file LOCK was removed or replaced, since another process may
    /// have opened the database.
    pub(crate) fn check_lock(&self) -> Result<()> {
        self.check_locks(|locks| locks.lock.check())
    }

    /// Poisons the database if LOCK or SUPER was removed or replaced, like [`Engine::check_lock`].
    pub(crate) fn check_identity(&self) -> Result<()> {
        self.check_locks(|locks| {
            locks.lock.check()?;
            locks.super_file.as_ref().map_or(Ok(()), |file| file.check())
        })
    }

    fn check_locks(&self, check: impl FnOnce(&Locks) -> std::io::Result<()>) -> Result<()> {
        self.check_process()?;
        // A database that is read-only, closed, or still being opened, has no locks here.
        let checked = self.locks().as_ref().map_or(Ok(()), check);
        let lost = Error::io("cannot continue to write to", self.paths.root());
        checked.map_err(|error| self.poisoned(lost(error)))
    }

    /// Returns the locks, which are `None` unless the database is open for writing.
    pub(crate) fn locks(&self) -> MutexGuard<'_, Option<Locks>> {
        ignore_poison(self.lock.lock())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ops::ControlFlow;

    use crate::engine::lock;
    use crate::raw::fork::{fork, wait};
    use crate::raw::sync::ignore_poison;
    use crate::{Options, Sequence, diff};

    #[test]
    fn no_call_in_a_forked_child_waits_for_a_lock_that_was_held_at_the_fork() {
        let folder = tempfile::tempdir().unwrap();
        let db = Options::new()
            .background(false)
            .open(folder.path().join("db"))
            .unwrap();
        let table = db.table("t").unwrap();
        table.put("k", "v").unwrap();
        let (snapshot, mut records) = (db.snapshot(), table.iter());
        let mut changes = db.changes_since(Sequence::ZERO).unwrap();
        let engine = &db.engine;
        // The guards stay locked in the child, like those of another thread of its parent.
        let guards = (lock(&engine.ddl), lock(&engine.writer), lock(&engine.core));
        let more = (lock(&engine.queue), lock(&engine.damaged), lock(&engine.digests));
        let names = (
            ignore_poison(engine.catalog.write()),
            ignore_poison(table.core.name.write()),
        );
        let child = fork(|| {
            let mut transaction = db.begin();
            let refused = [
                db.table("t").map(drop),
                db.sync(),
                db.checkpoint(),
                db.verify().map(drop),
                db.digest().map(drop),
                diff(&db, &db, |_| ControlFlow::Continue(())).map(drop),
                db.changes_since(Sequence::ZERO).map(drop),
                db.batch().commit().map(drop),
                db.transaction(|_| Ok(())),
                transaction.get(&table, "k").map(drop),
                transaction.commit().map(drop),
                table.put("k", "w"),
                table.clear(),
                table.iter().for_each_record(|_, _| Ok(())),
                records.for_each_record(|_, _| Ok(())),
                snapshot.get(&table, "k").map(drop),
                db.snapshot().len(&table).map(drop),
                changes.extend(),
                db.clone().close(),
            ];
            let is_empty = table.name().is_empty()
                && db.tables().is_empty()
                && db.get_table("t").is_none()
                && db.sequence() == Sequence::ZERO
                && db.stats().segments.is_empty();
            is_empty && refused.iter().all(Result::is_err)
        });
        drop((guards, more, names));
        assert!(wait(child));
    }
}
