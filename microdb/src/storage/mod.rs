//! The traits through which the engine reaches the disk.
//!
//! - The engine accesses the files of a database only through [`Storage`] and [`StorageFile`]. So a
//!   test can replace the disk, and cut the power, fill the disk or damage it at any call. The only
//!   exception is [`crate::inspect`], which reads files of the operating system directly.
//! - Implementations need to promise no more than POSIX does: data is durable after `sync_data`, a
//!   name after `sync_folder`, and nothing earlier.
//! - [`OsStorage`] is the real disk.
//!
//! Deliberately absent: caching, and any dependence on the format.

mod os;

pub use os::OsStorage;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::raw::map::Map;

/// Mode of opening a file.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// use microdb::storage::{OpenMode, OsStorage, Storage};
/// let file = OsStorage.open(&folder.path().join("file"), OpenMode::CreateNew)?;
/// assert!(file.is_empty()?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// The file must exist and is only read.
    Read,
    /// The file must exist. The handle can also write.
    ReadWrite,
    /// The file must not exist. It is created, readable and writable by its owner only (0600).
    CreateNew,
}

/// A file system, or a replacement that behaves like one.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// use microdb::storage::{OpenMode, OsStorage, Storage};
/// let storage: &dyn Storage = &OsStorage;
/// storage.open(&folder.path().join("file"), OpenMode::CreateNew)?.sync_data()?;
/// storage.sync_folder(folder.path())?; // the name is durable only now
/// assert_eq!(storage.list(folder.path())?, ["file"]);
/// # Ok(())
/// # }
/// ```
pub trait Storage: Debug + Send + Sync {
    /// Creates a folder (0700) and its missing ancestors. Succeeds if the folder exists.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn create_folder(&self, path: &Path) -> io::Result<()>;

    /// Opens a file for reading or writing, as `mode` says.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, and other errors of the operating system.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>>;

    /// Returns the names of the files and folders in a folder, in any order. Names that are not
    /// UTF-8 are left out.
    ///
    /// # Errors
    /// `NotFound` if the folder does not exist, and other errors of the operating system.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Renames a file and replaces an existing file at `to`. The new name is durable after
    /// `sync_folder`.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the name of a file. Open handles and maps of the file stay readable. The removal is
    /// durable after `sync_folder`.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name. Fails with `Unsupported` in a storage without hard links. The
    /// caller then copies the file.
    ///
    /// # Errors
    /// `Unsupported`, and other errors of the operating system.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Returns `true` if `inner` is the folder `outer` or is inside it, even if one path leads
    /// through a symbolic link or a mount. `inner` need not exist. A storage with symbolic links or
    /// mounts must resolve them. The default compares only the names in the two paths.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn is_within(&self, inner: &Path, outer: &Path) -> io::Result<bool> {
        Ok(inner.starts_with(outer))
    }

    /// Acquires the exclusive lock on the file at `path`, and creates the file if necessary. The
    /// lock is held as long as the returned value lives. Returns `Ok(Err(holder))` if another
    /// process, or another caller in this process, has the lock. `holder` is the process id of the
    /// holder, if known.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>>;

    /// Opens a folder and keeps it open. In the returned storage, paths below `folder` name files
    /// of this folder, even after the folder was renamed or its path leads to another folder.
    /// Returns `None`, the default, for a storage in which a path always names the same folder.
    ///
    /// # Errors
    /// `NotFound`, and other errors of the operating system.
    fn hold_folder(&self, folder: &Path) -> io::Result<Option<Arc<dyn Storage>>> {
        let _ = folder;
        Ok(None)
    }
}

/// A held lock. Dropping it releases the lock.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// use microdb::storage::{OsStorage, Storage};
/// let path = folder.path().join("LOCK");
/// let held = OsStorage.lock(&path)?;
/// assert!(held.is_ok());
/// assert!(OsStorage.lock(&path)?.is_err(), "somebody has it");
/// # Ok(())
/// # }
/// ```
pub trait StorageLock: Debug + Send + Sync {
    /// Fails if the lock no longer protects anything: its file was removed or replaced, or the
    /// current process is a forked child of the process that acquired the lock. The default never
    /// fails.
    ///
    /// # Errors
    /// The reason, or errors of the operating system.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }
}

/// An open file.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// use microdb::storage::{OpenMode, OsStorage, Storage};
/// let file = OsStorage.open(&folder.path().join("file"), OpenMode::CreateNew)?;
/// file.write_at(b"log", 0)?;
/// file.sync_data()?;
/// assert_eq!(file.len()?, 3);
/// # Ok(())
/// # }
/// ```
pub trait StorageFile: Debug + Send + Sync {
    /// Reads into `bytes` from `offset` on. Returns the number of bytes read, which is less than
    /// requested only at the end of the file.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`, and extends the file if necessary.
    ///
    /// # Errors
    /// Errors of the operating system. An unknown part of the bytes may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes written data durable, and also the length of the file if it changed.
    ///
    /// # Errors
    /// Errors of the operating system. The call must not be repeated after an error, because data
    /// may be lost already.
    fn sync_data(&self) -> io::Result<()>;

    /// Reserves blocks for `len` bytes at `offset`, so that a write there cannot fail because the
    /// disk is full. Extends the file if necessary; new bytes read as zeros.
    ///
    /// # Errors
    /// `StorageFull`, and other errors of the operating system.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Truncates or extends the file.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns the length of the file in bytes.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn len(&self) -> io::Result<u64>;

    /// Returns `true` if the file has no bytes.
    ///
    /// # Errors
    /// Errors of the operating system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Maps the first `len` bytes for reading. Returns `None` for a storage without maps. The
    /// engine then reads the bytes into memory.
    ///
    /// # Errors
    /// If the file is shorter than `len`, and errors of the operating system.
    fn map(&self, len: u64) -> io::Result<Option<Mapping>>;
}

/// Bytes of a file, mapped for reading.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// use microdb::storage::{OpenMode, OsStorage, Storage};
/// let file = OsStorage.open(&folder.path().join("file"), OpenMode::CreateNew)?;
/// file.write_at(b"log", 0)?;
/// assert!(file.map(3)?.is_some(), "another storage may have no maps; reads copy then");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Mapping(pub(crate) Arc<Map>);

impl Mapping {
    /// Returns a copy of `bytes` as a mapping, for storages in memory.
    ///
    /// ```
    /// let mapping = microdb::storage::Mapping::of_bytes(b"log"); // for a disk in memory
    /// # drop(mapping);
    /// ```
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Arc::new(Map::of_bytes(bytes)))
    }
}

/// Returns the first `len` bytes of a file: mapped if the storage can map, otherwise read into
/// memory.
pub(crate) fn map_or_read(file: &dyn StorageFile, len: u64) -> io::Result<Arc<Map>> {
    if let Some(mapping) = file.map(len)? {
        return Ok(mapping.0);
    }
    Ok(Arc::new(Map::of_bytes(&read_exact(file, 0, len)?)))
}

/// Reads `len` bytes at `offset`, or fewer at the end of the file.
pub(crate) fn read_up_to(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?];
    if !bytes.is_empty() {
        let read = file.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
    }
    Ok(bytes)
}

/// Reads exactly `len` bytes at `offset`. Fails with `UnexpectedEof` if the file ends before.
pub(crate) fn read_exact(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(bytes)
}
