//! Locks on files and folders, and the check that a path still leads to the opened file.
//!
//! **Invariants**
//! - The kernel releases a lock when the process that holds it ends in any way.
//! - `OpenPath::check` detects by device and inode numbers that a path no longer leads to the
//!   opened file or folder.
//!
//! The meaning of each lock is defined in `local`. The content of files is handled in `files`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cluster::local::files::failed;
use crate::error::NodeError;
use crate::runtime::regular_file;

/// An open file or folder, and the path that was used to open it.
pub(super) struct OpenPath {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl OpenPath {
    pub(super) fn folder(path: &Path) -> Result<OpenPath, NodeError> {
        Ok(OpenPath {
            file: File::open(path).map_err(failed("open", path))?,
            path: path.to_owned(),
        })
    }

    /// Fails if the path now leads to another file or does not exist.
    pub(super) fn check(&self) -> Result<(), NodeError> {
        let identity = |of: std::fs::Metadata| (of.dev(), of.ino());
        let ours = self.file.metadata().map(identity);
        let named = std::fs::metadata(&self.path).map(identity);
        match (ours, named) {
            (Ok(ours), Ok(named)) if ours == named => Ok(()),
            (Ok(_), Ok(_)) => Err(self.lost("it was replaced while this node ran")),
            (Ok(_), Err(error)) if error.kind() == ErrorKind::NotFound => {
                Err(self.lost("it was removed or renamed while this node ran"))
            }
            (Err(error), _) | (_, Err(error)) => Err(failed("check", &self.path)(error)),
        }
    }

    fn lost(&self, reason: &'static str) -> NodeError {
        failed("continue with", &self.path)(std::io::Error::other(reason))
    }
}

/// An exclusive lock on a folder, held until the value is dropped. On a file system that cannot
/// lock folders, the value has no effect.
pub(super) struct FolderLock(File);

impl FolderLock {
    pub(super) fn take(folder: &Path) -> Result<FolderLock, NodeError> {
        let file = File::open(folder).map_err(failed("open", folder))?;
        // The loop repeats an interrupted call. Other errors are ignored, because some file systems
        // cannot lock folders. Then only the checks of `replace_state` protect the state.
        while let Err(error) = file.lock()
            && error.kind() == ErrorKind::Interrupted
        {}
        Ok(FolderLock(file))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing the file might not release the lock. A child process that is being started shares
        // the open file and would keep the lock.
        let _ = self.0.unlock();
    }
}

/// Opens a lock file, and creates it if it does not exist.
pub(super) fn open_lock(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    regular_file::open_with(options.write(true).create(true).truncate(false), path)
}

/// Takes the exclusive lock of a file, and creates the file if it does not exist. Returns `None` if
/// the file is locked already.
pub(super) fn lock(path: &Path) -> Result<Option<OpenPath>, NodeError> {
    let file = open_lock(path).map_err(failed("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(OpenPath {
            path: path.to_owned(),
            file,
        })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(failed("lock", path)(source)),
    }
}

/// Returns `true` if a process, also this one, holds the exclusive lock of this file. Returns
/// `false` also if the file does not exist or cannot be opened.
pub(super) fn is_held(path: &Path) -> bool {
    let file = regular_file::open_with(OpenOptions::new().read(true), path);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
