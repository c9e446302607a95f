//! Folders that are kept open, and system calls relative to them.
//!
//! - A path below a held folder is resolved from the folder's open handle, one name at a time.
//! - Subfolders are kept open from their first use.
//!
//! Deliberately absent: paths with more than two names below a held folder, because a database has
//! none. The operating system resolves such paths.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::lock::{FolderLock, lock_file};
use super::{FILE_MODE, FOLDER_MODE, OsFile, OsStorage, repeated};
use crate::raw::sync::ignore_poison;
use crate::storage::{OpenMode, Storage, StorageFile, StorageLock};

/// The files of the operating system, with some folders held open.
///
/// If a path is below several held folders, the held folder with the longest path is used.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldFolders(Vec<Arc<HeldFolder>>);

/// An open folder, and the subfolders that were used.
#[derive(Debug)]
pub(super) struct HeldFolder {
    /// Path at which the folder was opened.
    path: PathBuf,
    handle: Arc<File>,
    /// Open subfolders by name. A later sync of such a subfolder needs no new descriptor, so it
    /// cannot fail for lack of descriptors.
    subfolders: Mutex<BTreeMap<PathBuf, Arc<File>>>,
    pub(super) lock: Mutex<Weak<FolderLock>>,
}

/// The folder to which a path of a system call is relative.
#[derive(Debug)]
pub(super) enum Base {
    Held(Arc<File>),
    /// The working folder, for paths outside of held folders.
    Working,
}

impl AsFd for Base {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(folder) => folder.as_fd(),
            Self::Working => CWD,
        }
    }
}

impl HeldFolder {
    pub(super) fn handle(&self) -> &Arc<File> {
        &self.handle
    }

    fn subfolder(&self, name: &OsStr) -> io::Result<Arc<File>> {
        let mut known = ignore_poison(self.subfolders.lock());
        if let Some(folder) = known.get(Path::new(name)) {
            return Ok(folder.clone());
        }
        let folder = Arc::new(open_folder(&*self.handle, Path::new(name))?);
        known.insert(name.into(), folder.clone());
        Ok(folder)
    }
}

fn names_in(folder: &File) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    // A new handle is opened, because the clones of one handle share the position at which the next
    // name is read.
    let handle = open_folder(folder, Path::new("."))?;
    for entry in Dir::new(handle)? {
        // Files of a database have UTF-8 names, so any other name is foreign.
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn open_folder(base: impl AsFd, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = open_without_trace(base, path, flags, Mode::empty())?;
    Ok(folder.into())
}

/// Opens a file so that reads do not change its access time, if the process may request this. After
/// an ordinary open, the first read after each write would change the access time, and might wait
/// milliseconds for the file system's journal. If the file is a named pipe, the open does not wait
/// for a writer.
pub(super) fn open_without_trace(
    base: impl AsFd,
    path: &Path,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let open = |flags| retry_on_intr(|| rustix::fs::openat(&base, path, flags, mode));
    let flags = flags | OFlags::NONBLOCK;
    match open(flags | OFlags::NOATIME) {
        // Only the owner of a file may use `NOATIME`.
        Err(Errno::PERM) => open(flags),
        opened => opened,
    }
}

/// Returns device and inode of a file. All hard links and bind mounts of a file have equal values.
fn identity_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Returns the nearest existing file or folder at or above `path`, with symbolic links resolved.
fn existing_ancestor(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for folder in path.ancestors() {
        match folder.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

impl HeldFolders {
    /// Returns the held folder that contains `path`, and the names of the path below it: one or two
    /// names, or none for the folder itself. Returns `None` if no held folder contains `path`, or
    /// only with more names.
    fn find<'p>(&self, path: &'p Path) -> Option<(&Arc<HeldFolder>, Vec<&'p OsStr>)> {
        let below = |held: &Arc<HeldFolder>| {
            let names = path.strip_prefix(&held.path).ok()?;
            let names = names.components().map(|part| match part {
                Component::Normal(name) => Some(name),
                _ => None,
            });
            names.collect::<Option<Vec<_>>>().filter(|names| names.len() <= 2)
        };
        let found = self.0.iter().filter_map(|held| Some((held, below(held)?)));
        found.max_by_key(|(held, _)| held.path.as_os_str().len())
    }

    /// Returns the base folder and the relative path for a system call on `path`.
    fn at<'p>(&self, path: &'p Path) -> io::Result<(Base, &'p Path)> {
        let Some((held, names)) = self.find(path) else {
            return Ok((Base::Working, path));
        };
        match names[..] {
            [folder, name] => Ok((Base::Held(held.subfolder(folder)?), Path::new(name))),
            [name] => Ok((Base::Held(held.handle.clone()), Path::new(name))),
            _ => Ok((Base::Held(held.handle.clone()), Path::new("."))),
        }
    }

    /// Returns an open handle of the folder at `path`.
    fn folder(&self, path: &Path) -> io::Result<Arc<File>> {
        match self.find(path) {
            Some((held, names)) if names.is_empty() => Ok(held.handle.clone()),
            Some((held, names)) if names.len() == 1 => held.subfolder(names[0]),
            _ => {
                let (base, path) = self.at(path)?;
                open_folder(base, path).map(Arc::new)
            }
        }
    }
}

impl Storage for HeldFolders {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let Some((held, names)) = self.find(path) else {
            return OsStorage.create_folder(path);
        };
        let [name] = names[..] else {
            return if names.is_empty() {
                Ok(())
            } else {
                OsStorage.create_folder(path)
            };
        };
        let mode = Mode::from_raw_mode(FOLDER_MODE);
        match retry_on_intr(|| rustix::fs::mkdirat(&*held.handle, name, mode)) {
            // If the name exists and is no folder, `subfolder` fails.
            Ok(()) | Err(Errno::EXIST) => held.subfolder(name).map(drop),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let (base, name) = self.at(path)?;
        let file = match mode {
            OpenMode::Read => {
                let flags = OFlags::CLOEXEC | OFlags::RDONLY;
                open_without_trace(base, name, flags, Mode::empty())?
            }
            OpenMode::ReadWrite => {
                let flags = OFlags::CLOEXEC | OFlags::RDWR;
                open_without_trace(base, name, flags, Mode::empty())?
            }
            OpenMode::CreateNew => {
                let flags = OFlags::CLOEXEC | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
                let permissions = Mode::from_raw_mode(FILE_MODE);
                retry_on_intr(|| rustix::fs::openat(&base, name, flags, permissions))?
            }
        };
        Ok(Arc::new(OsFile::new(file.into())))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let folder = self.folder(folder)?;
        repeated(|| names_in(&folder))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_base, from), (to_base, to)) = (self.at(from)?, self.at(to)?);
        Ok(retry_on_intr(|| {
            rustix::fs::renameat(&from_base, from, &to_base, to)
        })?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (base, name) = self.at(path)?;
        Ok(retry_on_intr(|| {
            rustix::fs::unlinkat(&base, name, AtFlags::empty())
        })?)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_base, from), (to_base, to)) = (self.at(from)?, self.at(to)?);
        let flags = AtFlags::empty();
        Ok(retry_on_intr(|| {
            rustix::fs::linkat(&from_base, from, &to_base, to, flags)
        })?)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let folder = self.folder(path)?;
        repeated(|| folder.sync_all())
    }

    fn is_within(&self, inner: &Path, outer: &Path) -> io::Result<bool> {
        // Paths are compared by name first, because this storage resolves a path below a held
        // folder from that folder, even if the path of the folder leads to another one by now.
        if inner.starts_with(outer) {
            return Ok(true);
        }
        let outer = match self.folder(outer) {
            Ok(outer) => identity_of(&outer.metadata()?),
            // `outer` does not exist or is no folder, so it contains nothing.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        for folder in existing_ancestor(inner)?.ancestors() {
            if identity_of(&std::fs::metadata(folder)?) == outer {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        let held = self.find(path).filter(|(_, names)| names.len() == 1);
        let (base, name) = self.at(path)?;
        lock_file(held.map(|(held, _)| held), base, name)
    }

    fn hold_folder(&self, folder: &Path) -> io::Result<Option<Arc<dyn Storage>>> {
        let handle = Arc::new(open_folder(CWD, folder)?);
        let mut folders = self.clone();
        folders.0.retain(|held| held.path != folder);
        folders.0.push(Arc::new(HeldFolder {
            path: folder.to_owned(),
            handle,
            subfolders: Mutex::default(),
            lock: Mutex::default(),
        }));
        Ok(Some(Arc::new(folders)))
    }
}
