//! A storage that stops one thread at a chosen call to the disk until the test releases it.
//!
//! The test arms the gate for a thread and the number of a call. The thread stops before that call,
//! and still holds all locks that it has acquired in the engine. During the stop, the test commits
//! or closes the database. Calls that create a segment or allocate blocks are not counted: the
//! engine makes most of them under the commit lock, so no commit could happen during the stop.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use microdb::storage::{Mapping, OpenMode, Storage, StorageFile, StorageLock};

#[derive(Debug, Default)]
struct State {
    /// The thread to stop, and its number of counted calls before the stop; `None` for an open
    /// gate.
    armed: Option<(ThreadId, u64)>,
    /// Number of counted calls of the armed thread while the gate is armed.
    calls: u64,
    is_held: bool,
    /// `true` once the armed thread has finished its work, stopped or not.
    is_done: bool,
    /// Number of bytes that all threads have requested by read calls since the gate was created or
    /// last armed.
    read_bytes: u64,
    /// Number of writes, syncs, renames, removals, links and changes of a length by the armed
    /// thread, while the gate is armed.
    changes: u64,
}

/// A storage behind a gate. Clones of the handle share the gate.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    storage: Arc<dyn Storage>,
    state: Arc<(Mutex<State>, Condvar)>,
}

/// Guard that opens the gate when the armed thread's work ends or panics.
struct Done<'a>(&'a Gate);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_done = true;
        state.armed = None;
        self.0.state.1.notify_all();
    }
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn StorageFile>,
    gate: Gate,
}

impl Gate {
    /// Returns an open gate in front of `storage`.
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self {
            storage,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, condition: impl Fn(&State) -> bool) {
        let held = self.state();
        drop(self.state.1.wait_while(held, |state| !condition(state)));
    }

    /// Arms the gate for this thread and runs `work`, which stops before its counted call with the
    /// index `at` (from 0). Returns the number of the counted calls of `work`. If `work` was
    /// stopped, the call at the stop is the last one that is counted.
    pub(crate) fn run_held_at(&self, at: u64, work: impl FnOnce()) -> u64 {
        *self.state() = State {
            armed: Some((std::thread::current().id(), at)),
            ..State::default()
        };
        let _done = Done(self);
        work();
        self.state().calls
    }

    /// Waits until the armed thread has been stopped or has finished its work. Returns `true` if it
    /// has been stopped.
    pub(crate) fn wait_for_held(&self) -> bool {
        self.wait_until(|state| state.is_held || state.is_done);
        self.state().is_held
    }

    /// Returns the number of writes, syncs, renames, removals, links and changes of a length by the
    /// armed thread, while the gate is armed.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Returns the number of bytes that all threads have requested by read calls since the gate was
    /// created or last armed. Reads through maps are not counted.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.state().read_bytes
    }

    /// Releases the stopped thread.
    pub(crate) fn release(&self) {
        self.state().armed = None;
        self.state.1.notify_all();
    }

    fn pass_to_change(&self) {
        let mut state = self.state();
        let is_counted = state
            .armed
            .is_some_and(|(thread, _)| thread == std::thread::current().id());
        state.changes += u64::from(is_counted);
        drop(state);
        self.pass();
    }

    fn pass(&self) {
        let mut state = self.state();
        let Some((thread, at)) = state.armed else { return };
        if thread != std::thread::current().id() {
            return;
        }
        state.calls += 1;
        if state.calls == at + 1 {
            state.is_held = true;
            self.state.1.notify_all();
            drop(state);
            self.wait_until(|state| state.armed.is_none());
        }
    }

    fn file(&self, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        let gate = self.clone();
        Arc::new(GatedFile { file, gate })
    }
}

impl Storage for Gate {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.pass();
        self.storage.create_folder(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        if mode != OpenMode::CreateNew || path.extension().is_none_or(|ending| ending != "seg") {
            self.pass();
        }
        self.storage.open(path, mode).map(|file| self.file(file))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.pass();
        self.storage.list(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass_to_change();
        self.storage.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass_to_change();
        self.storage.remove(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass_to_change();
        self.storage.hard_link(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.pass_to_change();
        self.storage.sync_folder(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.pass();
        self.storage.lock(path)
    }
}

impl StorageFile for GatedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.gate.pass();
        self.gate.state().read_bytes += bytes.len() as u64;
        self.file.read_at(bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass_to_change();
        self.file.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.gate.pass_to_change();
        self.file.sync_data()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate.pass_to_change();
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.gate.pass();
        self.file.len()
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        self.gate.pass();
        self.file.map(len)
    }
}
