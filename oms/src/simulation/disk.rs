//! The simulated disk: files in memory, below the real microdb.
//!
//! **Invariants**
//! - Written bytes outlive the process that wrote them, like bytes in a page cache.
//! - A lock ends when its process dies. On a disk that all nodes share, a lock also ends when its
//!   process loses its lease. A dead process can write nothing. On a shared disk, neither can a
//!   process without its lease.
//! - While the disk is full, no file grows and none is created. While it copies on write too, no
//!   file can be written at all.
//!
//! Deliberately absent: power cuts, which the tests of microdb cover.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use microdb::storage::{Mapping, OpenMode, Storage, StorageFile, StorageLock};
use parking_lot::{Mutex, MutexGuard};

use crate::runtime::simulated::Process;

type Bytes = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct Inside {
    files: BTreeMap<PathBuf, Bytes>,
    locks: BTreeMap<PathBuf, Owner>,
    locks_taken: u64,
}

/// The process that owns a lock. `None` for code outside of a simulated process, such as a test.
/// `turn` is the number of this acquisition among all acquisitions of locks.
struct Owner {
    turn: u64,
    process: Option<Arc<Process>>,
}

impl Owner {
    fn is_gone(&self, disk: &Disk) -> bool {
        self.process
            .as_ref()
            .is_some_and(|process| disk.has_lost(process))
    }
}

/// The room on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Room {
    Plenty,
    /// No file can grow, but existing bytes can be overwritten.
    Full,
    /// No file can be written, as on a full file system that copies each written block.
    FullForOverwrites,
}

/// The disk with all files of all nodes.
#[derive(Clone)]
pub(super) struct Disk {
    inside: Arc<Mutex<Inside>>,
    room: Arc<AtomicU8>,
    /// `true` if each node has separate folders, as behind an engine. Then a process that has lost
    /// its lease can still write to its folders.
    is_private: bool,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    pub(super) fn new(is_private: bool) -> Disk {
        Disk {
            inside: Arc::default(),
            room: Arc::new(AtomicU8::new(Room::Plenty as u8)),
            is_private,
        }
    }

    fn has_lost(&self, process: &Process) -> bool {
        process.is_dead() || (process.is_fenced() && !self.is_private)
    }

    fn check_life(&self, process: Option<&Arc<Process>>) -> io::Result<()> {
        match process {
            Some(process) if self.has_lost(process) => {
                Err(io::Error::other("the process has lost its volume"))
            }
            _ => Ok(()),
        }
    }

    /// Sets the room on the disk.
    pub(super) fn set_room(&self, room: Room) {
        self.room.store(room as u8, Ordering::Relaxed);
    }

    /// Removes a folder with its content.
    pub(super) fn remove_folder(&self, folder: &Path) {
        let mut inside = self.inside();
        inside.files.retain(|path, _| !path.starts_with(folder));
    }

    /// Returns an error if a file may not be written now. `grows` is `true` if the file is created
    /// or becomes longer.
    fn check_room(&self, grows: bool) -> io::Result<()> {
        let room = self.room.load(Ordering::Relaxed);
        if room == Room::FullForOverwrites as u8 || (grows && room == Room::Full as u8) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn create_folder(&self, _: &Path) -> io::Result<()> {
        self.check_life(Process::current().as_ref())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let process = Process::current();
        self.check_life(process.as_ref())?;
        let mut inside = self.inside();
        let known = inside.files.get(path).map(Arc::clone);
        let bytes = match (known, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(bytes), _) => bytes,
            (None, OpenMode::CreateNew) => {
                self.check_room(true)?;
                let bytes = Bytes::default();
                inside.files.insert(path.to_owned(), Arc::clone(&bytes));
                bytes
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Opened {
            disk: self.clone(),
            process,
            bytes,
        }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let inside = self.inside();
        let names = inside.files.keys().filter(|path| path.parent() == Some(folder));
        let names = names.filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check_life(Process::current().as_ref())?;
        let mut inside = self.inside();
        let bytes = inside.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inside.files.insert(to.to_owned(), bytes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check_life(Process::current().as_ref())?;
        let removed = self.inside().files.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn hard_link(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.check_life(Process::current().as_ref())
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.check_life(Process::current().as_ref())?;
        let mut inside = self.inside();
        if inside.locks.get(path).is_some_and(|owner| !owner.is_gone(self)) {
            return Ok(Err(None));
        }
        inside.locks_taken += 1;
        let turn = inside.locks_taken;
        let process = Process::current();
        inside.locks.insert(path.to_owned(), Owner { turn, process });
        Ok(Ok(Box::new(HeldLock {
            disk: self.clone(),
            path: path.to_owned(),
            turn,
        })))
    }
}

struct HeldLock {
    disk: Disk,
    path: PathBuf,
    turn: u64,
}

impl fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldLock({})", self.path.display())
    }
}

impl StorageLock for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let mut inside = self.disk.inside();
        // Another process may have taken the lock after the process of this guard died or lost its
        // lease.
        if inside
            .locks
            .get(&self.path)
            .is_some_and(|owner| owner.turn == self.turn)
        {
            inside.locks.remove(&self.path);
        }
    }
}

struct Opened {
    disk: Disk,
    process: Option<Arc<Process>>,
    bytes: Bytes,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl Opened {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock()
    }

    fn grow(&self, bytes: &mut Vec<u8>, len: usize) -> io::Result<()> {
        self.disk.check_room(len > bytes.len())?;
        if len > bytes.len() {
            bytes.resize(len, 0);
        }
        Ok(())
    }
}

impl StorageFile for Opened {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes();
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        self.disk.check_life(self.process.as_ref())?;
        let mut bytes = self.bytes();
        let end = offset as usize + new.len();
        self.grow(&mut bytes, end)?;
        bytes[offset as usize..end].copy_from_slice(new);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.check_life(self.process.as_ref())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.disk.check_life(self.process.as_ref())?;
        let mut bytes = self.bytes();
        self.grow(&mut bytes, (offset + len) as usize)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.check_life(self.process.as_ref())?;
        let mut bytes = self.bytes();
        self.grow(&mut bytes, len as usize)?;
        bytes.truncate(len as usize);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        let bytes = self.bytes();
        match bytes.get(..len as usize) {
            Some(bytes) => Ok(Some(Mapping::of_bytes(bytes))),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
