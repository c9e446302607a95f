//! The real disk.
//!
//! - A database is the folder that was opened, not the folder that its path names later. So the
//!   engine works with [`HeldFolders`], which keeps the folder open and resolves paths relative to
//!   that handle (`openat` and its relatives). A renamed database is written under its new name.
//!   Another database under the old name is left alone.
//! - Paths outside of held folders are resolved by the system.
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

use rustix::fs::FallocateFlags;

use self::held::HeldFolders;
use super::{Mapping, OpenMode, Storage, StorageFile, StorageLock};
use crate::raw::map::Map;

/// Only the owner has access, since a database may hold confidential data.
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
struct OsFile(File);

/// Returns the same calls without a held folder.
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

/// Repeats `call` as long as signals interrupt it.
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
            match repeated(|| self.0.read_at(&mut bytes[done..], offset + done as u64))? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // Repeats interrupted calls by itself.
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        repeated(|| self.0.sync_data())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        let allocated = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.0, FallocateFlags::empty(), offset, len)
        });
        match allocated {
            Ok(()) => Ok(()),
            // On a file system without fallocate, zeros reserve the blocks as well, only slower.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = vec![0; 1 << 20];
                let (mut at, end) = (offset.max(self.len()?), offset + len);
                while at < end {
                    let step = (end - at).min(zeros.len() as u64);
                    self.0.write_all_at(&zeros[..step as usize], at)?;
                    at += step;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        repeated(|| self.0.set_len(len))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(repeated(|| self.0.metadata())?.len())
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        let map = repeated(|| Map::of_file(&self.0, len))?;
        // Advised until the size of the log is known, so that reading the header of each file does
        // not read megabytes.
        map.advise(true);
        Ok(Some(Mapping(Arc::new(map))))
    }
}
