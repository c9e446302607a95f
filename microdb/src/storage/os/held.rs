//! Folders that are kept open, and system calls relative to them.
//!
//! - A path below a held folder is resolved from its handle, one name at a time.
//! - Subfolders are kept open from their first use.
//!
//! Deliberately absent: deeper paths than a database has.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
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
/// If a path is below several held folders, the longest one wins.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldFolders(Vec<Arc<HeldFolder>>);

/// An open folder and its subfolders that were used.
#[derive(Debug)]
pub(super) struct HeldFolder {
    /// Path by which the folder was opened.
    path: PathBuf,
    handle: Arc<File>,
    /// Subfolders by name. A held descriptor cannot be refused later for lack of descriptors.
    subfolders: Mutex<BTreeMap<PathBuf, Arc<File>>>,
    pub(super) lock: Mutex<Weak<FolderLock>>,
}

/// A folder to which paths are relative.
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
    for entry in Dir::read_from(folder)? {
        // Names of databases are UTF-8, so any other name is foreign.
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
    let folder = retry_on_intr(|| rustix::fs::openat(&base, path, flags, Mode::empty()))?;
    Ok(folder.into())
}

/// Returns device and inode of a file, which are the same through links and bind mounts.
fn identity_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Returns the nearest existing folder at or above `path`, with links resolved.
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
    /// Returns the held folder that contains `path`, and the names below it: one or two, or none
    /// for the folder itself.
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

    /// Returns the folder and the name for a system call on `path`.
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
            // Opening fails if the existing file is not a folder.
            Ok(()) | Err(Errno::EXIST) => held.subfolder(name).map(drop),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let flags = OFlags::CLOEXEC
            | match mode {
                OpenMode::Read => OFlags::RDONLY,
                OpenMode::ReadWrite => OFlags::RDWR,
                OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
        let (base, name) = self.at(path)?;
        let permissions = Mode::from_raw_mode(FILE_MODE);
        let file = retry_on_intr(|| rustix::fs::openat(&base, name, flags, permissions))?;
        Ok(Arc::new(OsFile(file.into())))
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
        // Compared by name as well: in this storage such a path is below the held folder.
        if inner.starts_with(outer) {
            return Ok(true);
        }
        let outer = match self.folder(outer) {
            Ok(outer) => identity_of(&outer.metadata()?),
            // A missing folder contains nothing.
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
