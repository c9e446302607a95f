//! The real disk with an action before the Nth call of the engine.
//!
//! Calls that only read or map an open file, or read its length, are not counted. The actions of
//! the tests change folders and names, which does not change the results of these calls.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use microdb::storage::{Mapping, OpenMode, OsStorage, Storage, StorageFile, StorageLock};

type Strike = Box<dyn FnOnce() + Send>;

/// Counts calls, and performs its action once, at the call with the index `at` (from 0).
pub(crate) struct Trigger {
    calls: AtomicU64,
    at: u64,
    strike: Mutex<Option<Strike>>,
}

impl std::fmt::Debug for Trigger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trigger({})", self.at)
    }
}

impl Trigger {
    pub(crate) fn new(at: u64, strike: impl FnOnce() + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            calls: AtomicU64::new(0),
            at,
            strike: Mutex::new(Some(Box::new(strike))),
        })
    }

    /// Returns `true` once the action has begun.
    pub(crate) fn has_struck(&self) -> bool {
        self.strike.lock().unwrap().is_none()
    }

    fn call(&self) {
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.at {
            let strike = self.strike.lock().unwrap().take();
            strike.into_iter().for_each(|strike| strike());
        }
    }
}

/// A storage that triggers an action at one of its calls.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    inner: Arc<dyn Storage>,
    trigger: Arc<Trigger>,
}

impl Struck {
    pub(crate) fn storage(trigger: &Arc<Trigger>) -> Arc<dyn Storage> {
        Arc::new(Self {
            inner: Arc::new(OsStorage),
            trigger: trigger.clone(),
        })
    }
}

impl Storage for Struck {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.trigger.call();
        self.inner.create_folder(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.trigger.call();
        let (file, trigger) = (self.inner.open(path, mode)?, self.trigger.clone());
        Ok(Arc::new(StruckFile { file, trigger }))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.trigger.call();
        self.inner.list(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.trigger.call();
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.trigger.call();
        self.inner.remove(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.trigger.call();
        self.inner.hard_link(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.trigger.call();
        self.inner.sync_folder(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.trigger.call();
        self.inner.lock(path)
    }
    fn hold_folder(&self, folder: &Path) -> io::Result<Option<Arc<dyn Storage>>> {
        self.trigger.call();
        let held = self.inner.hold_folder(folder)?;
        Ok(held.map(|inner| -> Arc<dyn Storage> {
            let trigger = self.trigger.clone();
            Arc::new(Self { inner, trigger })
        }))
    }
}

#[derive(Debug)]
struct StruckFile {
    file: Arc<dyn StorageFile>,
    trigger: Arc<Trigger>,
}

impl StorageFile for StruckFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.trigger.call();
        self.file.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.trigger.call();
        self.file.sync_data()
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.trigger.call();
        self.file.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.trigger.call();
        self.file.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        self.file.map(len)
    }
}
