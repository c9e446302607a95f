//! Locks of the operating system.
//!
//! - A lock is a `flock`, which belongs to the open file. Two opens in one process exclude each
//!   other, and the kernel releases the lock once no process has the open file any more.
//! - The lock of a file protects nothing once the file was removed and created again. So the held
//!   folder itself is locked first: it cannot be replaced without replacing the database in it. A
//!   second opener is refused even if the lock file was replaced, unless the file system cannot
//!   lock folders.
//! - After a fork, parent and child share the open file and its lock. If the child closes the file,
//!   the parent keeps the lock. If the child unlocked the file, the parent would lose the lock. So
//!   only the process that acquired a lock unlocks it.
//!
//! Deliberately absent: timeouts and leases.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::FILE_MODE;
use super::held::{Base, HeldFolder, open_without_trace};
use crate::raw::fork::Birth;
use crate::raw::sync::ignore_poison;
use crate::seeded::seeded;
use crate::storage::StorageLock;

/// Length of the process id in a lock file, including the line end, in bytes. The id is padded with
/// zeros, so that a new id covers the former id. Truncating the file instead could wait
/// milliseconds for the file system's journal, if other writes keep it busy.
const NOTE_BYTES: usize = 11;

/// A locked folder. The locks of several files in the folder share it.
#[derive(Debug)]
pub(super) struct FolderLock {
    _lock: FileLock,
}

/// A locked open file.
#[derive(Debug)]
struct FileLock {
    file: Arc<File>,
    birth: Birth,
}

impl FileLock {
    /// Locks `file`. Returns `None` if another open file has the lock.
    fn take(file: Arc<File>) -> io::Result<Option<Self>> {
        match retry_on_intr(|| rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(Some(Self {
                file,
                birth: Birth::now(),
            })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing the file would not suffice. A child that another thread has just forked shares
        // the open file until it executes its own program, and the lock would last as long.
        if self.birth.is_here() {
            let _ = rustix::fs::flock(&*self.file, FlockOperation::Unlock);
        }
    }
}

/// Lock of a file, and of the held folder that contains the file.
#[derive(Debug)]
struct OsLock {
    lock: FileLock,
    /// Declared after `lock`, so that the file is unlocked before the folder. `None` if the file is
    /// not directly in a held folder, or if the file system cannot lock folders.
    _folder: Option<Arc<FolderLock>>,
    base: Base,
    name: PathBuf,
    identity: Identity,
}

/// Device and inode, which identify a file independent of its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl StorageLock for OsLock {
    fn check(&self) -> io::Result<()> {
        if !self.lock.birth.is_here() {
            return Err(io::Error::other("the lock belongs to another process"));
        }
        let name = self.name.display();
        let gone = |how: &str| {
            let reason = format!("{name} was {how} while the database was open");
            Err(io::Error::other(reason))
        };
        match retry_on_intr(|| rustix::fs::statat(&self.base, &self.name, AtFlags::empty())) {
            Ok(stat) if Identity::of(&stat) == self.identity => Ok(()),
            Ok(_) => gone("replaced"),
            Err(Errno::NOENT) => gone("removed"),
            Err(error) => Err(error.into()),
        }
    }
}

/// Locks the file `name` in `base`, after locking the folder `held`, if there is one. If another
/// opener has locked the folder or the file, returns `Ok(Err(holder))` with the process id of the
/// holder, if known.
pub(super) fn lock_file(
    held: Option<&Arc<HeldFolder>>,
    base: Base,
    name: &Path,
) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
    let folder = match held
        .filter(|_| !seeded("folder-unlocked"))
        .map(|held| lock_folder(held))
    {
        None => None,
        Some(folder) => match folder? {
            Ok(folder) => folder,
            // The folder is in use by another opener, so this function returns before it creates a
            // lock file.
            Err(Busy) => return Ok(Err(holder(&base, name))),
        },
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(FILE_MODE);
    let file: File = open_without_trace(&base, name, flags, mode)?.into();
    let stat = retry_on_intr(|| rustix::fs::fstat(&file))?;
    let Some(lock) = FileLock::take(Arc::new(file))? else {
        return Ok(Err(holder(&base, name)));
    };
    note_holder(&lock.file);
    Ok(Ok(Box::new(OsLock {
        lock,
        _folder: folder,
        base,
        name: name.to_owned(),
        identity: Identity::of(&stat),
    })))
}

/// Result of a lock attempt while another open file has the lock.
struct Busy;

/// Locks the folder itself, or shares the lock that `held` already has. Returns `Ok(Ok(None))` if
/// the file system cannot lock folders.
fn lock_folder(held: &HeldFolder) -> io::Result<Result<Option<Arc<FolderLock>>, Busy>> {
    let mut known = ignore_poison(held.lock.lock());
    if let Some(lock) = known.upgrade() {
        return Ok(Ok(Some(lock)));
    }
    match FileLock::take(held.handle().clone()) {
        Ok(Some(lock)) => {
            let lock = Arc::new(FolderLock { _lock: lock });
            *known = Arc::downgrade(&lock);
            Ok(Ok(Some(lock)))
        }
        Ok(None) => Ok(Err(Busy)),
        // NFS locks only files that are open for writing, and a folder cannot be opened for
        // writing.
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::BADF | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => Ok(Ok(None)),
            _ => Err(error),
        },
    }
}

/// Returns the process id of the holder, read from the lock file, or `None` if the file cannot be
/// read or contains no process id.
fn holder(base: impl AsFd, name: &Path) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = open_without_trace(base, name, flags, Mode::empty()).ok()?;
    let (note, len) = read_note(&file.into()).ok()?;
    std::str::from_utf8(note.get(..len)?).ok()?.trim().parse().ok()
}

fn read_note(file: &File) -> io::Result<([u8; NOTE_BYTES + 1], usize)> {
    let mut note = [0; NOTE_BYTES + 1];
    let len = super::repeated(|| file.read_at(&mut note, 0))?;
    Ok((note, len))
}

/// Writes the id of this process to the lock file, for the error message of the next opener. Only
/// an empty file, or one that contains a process id, is written. Any other file, such as SUPER, is
/// not changed.
fn note_holder(file: &File) {
    let Ok((note, len)) = read_note(file) else {
        // The disk cannot read the file. The lock is valid without the process id.
        return;
    };
    let own = own_note();
    if note.get(..len) == Some(own.as_bytes()) {
        // An earlier open of this process wrote the id. Another write could wait for the file
        // system's journal.
        return;
    }
    let is_note = match note.get(..len) {
        Some([digits @ .., b'\n']) => digits.iter().all(u8::is_ascii_digit),
        Some([]) => true,
        _ => false,
    };
    if !is_note {
        return;
    }
    // Not synced, because only error messages use the process id. An error is ignored for the same
    // reason: a database on a full disk must open, so that records can be deleted.
    let _ = file.write_all_at(own.as_bytes(), 0);
}

fn own_note() -> String {
    format!("{:0digits$}\n", std::process::id(), digits = NOTE_BYTES - 1)
}

#[cfg(test)]
mod tests {
    use super::super::OsStorage;
    use super::*;
    use crate::storage::Storage;

    #[test]
    fn released_lock_is_free_though_a_child_still_has_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        let file = Arc::new(File::create(&path).unwrap());
        let child = file.try_clone().unwrap();
        let lock = FileLock::take(file).unwrap().unwrap();
        assert!(OsStorage.lock(&path).unwrap().is_err());
        drop(lock);
        assert!(OsStorage.lock(&path).unwrap().is_ok());
        drop(child);
    }

    #[test]
    fn lock_of_a_held_folder_survives_the_removal_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        let hold = || OsStorage.hold_folder(folder.path()).unwrap().unwrap();
        let first = hold();
        let held = first.lock(&path).unwrap().unwrap();
        held.check().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(hold().lock(&path).unwrap().is_err());
        assert!(!path.exists(), "a refused opener makes no file");
        let error = held.check().unwrap_err().to_string();
        assert!(error.contains("LOCK was removed"), "{error}");
        std::fs::write(&path, "").unwrap();
        let error = held.check().unwrap_err().to_string();
        assert!(error.contains("LOCK was replaced"), "{error}");
        drop(held);
        assert!(hold().lock(&path).unwrap().is_ok());
    }

    #[test]
    fn contents_of_a_strangers_lock_file_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        for contents in ["a stranger's notes\n", "17 and more", "17", "123456789012\n"] {
            std::fs::write(&path, contents).unwrap();
            drop(OsStorage.lock(&path).unwrap().unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), contents);
        }
        for contents in ["", "17\n", "4294967295\n"] {
            std::fs::write(&path, contents).unwrap();
            drop(OsStorage.lock(&path).unwrap().unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), own_note());
            assert_eq!(
                holder(File::open(folder.path()).unwrap(), Path::new("LOCK")),
                Some(std::process::id())
            );
        }
    }

    /// A sealed file in memory refuses the write of the process id, as a full disk does.
    #[test]
    fn a_lock_is_taken_though_its_file_cannot_grow() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use std::os::fd::AsRawFd;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        let file = memfd_create("LOCK", MemfdFlags::ALLOW_SEALING).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", file.as_raw_fd()), &path).unwrap();
        assert!(OsStorage.lock(&path).unwrap().is_ok());
    }

    #[test]
    fn the_note_of_an_earlier_open_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        drop(OsStorage.lock(&path).unwrap().unwrap());
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        File::open(&path).unwrap().set_modified(long_ago).unwrap();
        drop(OsStorage.lock(&path).unwrap().unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), own_note());
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), long_ago);
    }
}
