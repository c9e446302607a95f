//! The real disk: implements the storage traits by calls of the operating system.
//!
//! - A database is the folder that was opened, not the folder that its path names later. So the
//!   engine works with [`HeldFolders`], which keeps the folder open and resolves paths relative to
//!   the open folder (`openat` and similar calls). If the folder is renamed, the engine continues
//!   to write in it. Another database at the old path is left alone.
//! - Paths outside of held folders are resolved by the operating system.
//! - A system call that a signal interrupted is repeated.
//!
//! Deliberately absent: direct IO and asynchronous IO.

mod held;
mod lock;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;

use self::held::HeldFolders;
use super::{Mapping, OpenMode, Storage, StorageFile, StorageLock};
use crate::raw::map::Map;

/// Permissions of new folders and files. Only the owner has access, because a database may hold
/// confidential data.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The files of the operating system.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// use microdb::storage::OsStorage;
/// let db = microdb::Options::new().storage(std::sync::Arc::new(OsStorage)).open(folder.path())?;
/// # drop(db);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct OsStorage;

#[derive(Debug)]
struct OsFile {
    file: File,
    /// Last known length of the file in bytes, or 0 if no length is known. If the known length is
    /// not below the length of a requested map, the map needs no system call for the length.
    len: AtomicU64,
}

impl OsFile {
    fn new(file: File) -> Self {
        Self {
            file,
            len: AtomicU64::new(0),
        }
    }
}

/// Returns an implementation without held folders, which resolves every path by the operating
/// system.
fn unheld() -> HeldFolders {
    HeldFolders::default()
}

impl Storage for OsStorage {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        repeated(|| DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        unheld().open(path, mode)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        unheld().list(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        unheld().rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        unheld().remove(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        unheld().hard_link(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        unheld().sync_folder(path)
    }

    fn is_within(&self, inner: &Path, outer: &Path) -> io::Result<bool> {
        unheld().is_within(inner, outer)
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        unheld().lock(path)
    }

    fn hold_folder(&self, folder: &Path) -> io::Result<Option<Arc<dyn Storage>>> {
        unheld().hold_folder(folder)
    }
}

/// Calls `call` again as long as a signal interrupts it.
fn repeated<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl StorageFile for OsFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match repeated(|| self.file.read_at(&mut bytes[done..], offset + done as u64))? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // `write_all_at` repeats interrupted calls.
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        repeated(|| self.file.sync_data())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        let allocated = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len)
        });
        match allocated {
            Ok(()) => Ok(()),
            // On a file system without fallocate, written zeros reserve the blocks too, but more
            // slowly. Bytes before the end of the file may be data, so no zeros are written there.
            // The engine leaves no holes in its files, so those bytes have their blocks already.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = vec![0; 1 << 20];
                let (mut at, end) = (offset.max(self.len()?), offset + len);
                while at < end {
                    let step = (end - at).min(zeros.len() as u64);
                    self.file.write_all_at(&zeros[..step as usize], at)?;
                    at += step;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // The known length is reset first, because a call that fails may still have truncated the
        // file.
        self.len.store(0, Ordering::Relaxed);
        repeated(|| self.file.set_len(len))
    }

    fn len(&self) -> io::Result<u64> {
        let len = repeated(|| self.file.metadata())?.len();
        self.len.store(len, Ordering::Relaxed);
        Ok(len)
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        if self.len.load(Ordering::Relaxed) < len && self.len()? < len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than the requested map",
            ));
        }
        let map = repeated(|| Map::of_file(&self.file, len))?;
        Ok(Some(Mapping(Arc::new(map))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn reads_leave_no_trace_in_the_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "four").unwrap();
        // With the default mount option `relatime`, a read updates an access time that is older
        // than the last change.
        let accessed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let times = std::fs::FileTimes::new().set_accessed(accessed);
        for path in [path.as_path(), folder.path()] {
            File::open(path).unwrap().set_times(times).unwrap();
        }
        let file = OsStorage.open(&path, OpenMode::Read).unwrap();
        file.read_at(&mut [0; 4], 0).unwrap();
        let map = file.map(4).unwrap().unwrap();
        assert_eq!(map.0.get(0, 4).unwrap(), b"four");
        assert_eq!(OsStorage.list(folder.path()).unwrap(), ["file"]);
        for path in [path.as_path(), folder.path()] {
            assert_eq!(std::fs::metadata(path).unwrap().accessed().unwrap(), accessed);
        }
    }

    #[test]
    fn a_map_ends_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = OsStorage
            .open(&folder.path().join("file"), OpenMode::CreateNew)
            .unwrap();
        file.write_at(b"four", 0).unwrap();
        assert_eq!(file.len().unwrap(), 4);
        assert_eq!(file.map(5).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.map(4).unwrap().unwrap().0.get(0, 4).unwrap(), b"four");
        file.set_len(2).unwrap();
        assert_eq!(file.map(4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.write_at(b"more", 2).unwrap();
        assert_eq!(file.map(6).unwrap().unwrap().0.get(0, 6).unwrap(), b"fomore");
    }
}
