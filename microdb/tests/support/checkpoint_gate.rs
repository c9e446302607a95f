//! The real disk with a gate in front of new files in folders called `directory`, which are the
//! checkpoints of a database and of its backups. On a disk with free space, an open database
//! removes a segment only after a new checkpoint. So while the gate is closed, no segment is
//! removed.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use microdb::storage::{OpenMode, OsStorage, Storage, StorageFile, StorageLock};

#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    /// Returns the number of calls that wait at the gate.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        *self.is_closed.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.is_closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.is_closed.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        drop(self.opened.wait_while(closed, |closed| *closed));
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct GatedStorage(pub(crate) Arc<Gate>);

impl Storage for GatedStorage {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        OsStorage.create_folder(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let is_checkpoint = path.parent().is_some_and(|folder| folder.ends_with("directory"));
        if is_checkpoint && mode == OpenMode::CreateNew {
            self.0.pass();
        }
        OsStorage.open(path, mode)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        OsStorage.list(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsStorage.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsStorage.remove(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsStorage.hard_link(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        OsStorage.sync_folder(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        OsStorage.lock(path)
    }
}
