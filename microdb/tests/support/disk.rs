//! A disk in memory that implements the storage trait, records every change and sync, and can fail.
//!
//! - The disk behaves like an operating system: written bytes are read back at once, synced or not.
//! - Changes and syncs are recorded as [`Event`]s, from which [`super::cut::Cuts`] derives the
//!   disks after a power cut.
//! - [`Disk::kill`] is a crash of the process. The handles of the process fail from then on, and
//!   its locks are released. The writes of the process stay visible, and unsynced writes stay
//!   unsynced.
//! - A [`Fault`] makes one or more calls fail, a [`Lie`] makes syncs do nothing, and `capacity`
//!   limits the total size to which writes and reservations can extend the files.
//! - Each listing rotates its names by another number of places, because the trait promises no
//!   order.
//!
//! Deliberately absent: durability, which only the module `cut` computes.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use microdb::storage::{Mapping, OpenMode, Storage, StorageFile, StorageLock};

use super::image::{Content, FILE_BYTES_MAX, Image, Node, NodeId, names};

/// A change of the disk, or a sync that succeeded or failed.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write {
        file: NodeId,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    /// Blocks were reserved, and the file has at least the length `end`.
    Allocate {
        file: NodeId,
        end: u64,
    },
    SetLen {
        file: NodeId,
        len: u64,
    },
    SyncFile {
        file: NodeId,
    },
    /// A sync of a file that reported an error. The operating system has dropped the dirty pages,
    /// written or not.
    SyncFileFailed {
        file: NodeId,
    },
    /// A name was created: for a new file, for a new folder, or as a second name of a file.
    Enter {
        folder: NodeId,
        name: String,
        node: NodeId,
        made: Made,
    },
    Leave {
        folder: NodeId,
        name: String,
    },
    Rename {
        from: (NodeId, String),
        to: (NodeId, String),
        node: NodeId,
    },
    SyncFolder {
        folder: NodeId,
    },
}

impl Event {
    /// Returns the event as a short text of one line.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Write { file, offset, bytes } => format!("write {file} at {offset}: {} bytes", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

/// Kind of the file or folder that got a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Made {
    NewFile,
    NewFolder,
    /// A file that already had another name.
    Link,
}

/// Kind of a call to the disk, to select the calls that a fault hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    CreateFolder,
    Open,
    Create,
    List,
    Rename,
    Remove,
    Link,
    SyncFolder,
    Lock,
    Read,
    Map,
    Len,
    Write,
    Sync,
    Allocate,
    SetLen,
}

/// The way in which a call to the disk fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultKind {
    /// Error EIO, for any call.
    Io,
    /// Error ENOSPC, for any call that can need space.
    Full,
    /// A write stops half way and then returns EIO.
    Short,
}

impl FaultKind {
    fn hits(self, call: Call) -> bool {
        use Call::{Allocate, Create, CreateFolder, Link, Lock, Rename, SetLen, Sync, SyncFolder, Write};
        match self {
            Self::Io => true,
            Self::Full => matches!(
                call,
                Write | Allocate | SetLen | Create | CreateFolder | Rename | Link | Lock | Sync | SyncFolder
            ),
            Self::Short => call == Write,
        }
    }

    fn error(self) -> io::Error {
        match self {
            // The numbers are those of the operating system: 28 is ENOSPC, 5 is EIO.
            Self::Full => io::Error::from_raw_os_error(28),
            Self::Io | Self::Short => io::Error::from_raw_os_error(5),
        }
    }
}

/// A fault: one or more calls that will fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// Index of the first failing call, from 0, among the calls that `kind` can hit since the fault
    /// was set.
    pub(crate) at: u64,
    /// Number of failing calls, beginning with the call at index `at`.
    pub(crate) times: u64,
}

/// Syncs that report success and do nothing. A test with such syncs must find lost commits or a
/// broken backup, as with an engine that forgot a sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lie {
    pub(crate) name: &'static str,
    /// Selects the files for which a sync does nothing.
    pub(crate) file: fn(&Path) -> bool,
    /// Selects the folders for which a sync does nothing.
    pub(crate) folder: fn(&Path) -> bool,
}

/// All events of a disk, from which the result of a power cut can be built.
#[derive(Clone, Default)]
pub(crate) struct Record {
    /// Durable content when the recording began.
    pub(crate) base: Image,
    /// Unsynced events of a crashed process, from before the recording.
    pub(crate) before: Vec<Event>,
    pub(crate) events: Vec<Event>,
}

struct State {
    record: Record,
    live: Image,
    recording: bool,
    /// Number of crashed processes so far. Handles of crashed processes fail.
    life: u64,
    locks: HashSet<NodeId>,
    fault: Option<Fault>,
    /// Number of calls that the fault could have hit since it was set.
    calls: u64,
    hit: Option<Call>,
    lie: Option<Lie>,
    capacity: u64,
    listings: u64,
    maps: bool,
}

/// A handle of a disk. Clones of a handle share the disk.
#[derive(Clone)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    life: u64,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Disk").field(&self.guard().live).finish()
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::of(Image::default())
    }
}

impl Disk {
    /// Returns a disk with the content `image`, all of it durable.
    pub(crate) fn of(image: Image) -> Self {
        Self::with_unsynced(image.clone(), Vec::new(), image)
    }

    /// Returns a disk with the visible content `live`. Its content `base` is durable, and the
    /// events `before` are unsynced.
    pub(crate) fn with_unsynced(base: Image, before: Vec<Event>, live: Image) -> Self {
        let state = State {
            record: Record {
                base,
                before,
                events: Vec::new(),
            },
            live,
            recording: true,
            life: 0,
            locks: HashSet::new(),
            fault: None,
            calls: 0,
            hit: None,
            lie: None,
            capacity: u64::MAX,
            listings: 0,
            maps: true,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            life: 0,
        }
    }

    /// Returns a disk that records no events. Such a disk is cheaper, for tests without a power
    /// cut.
    pub(crate) fn unrecorded(image: Image) -> Self {
        let disk = Self::of(image);
        disk.guard().recording = false;
        disk
    }

    fn guard(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the content of the disk as a process sees it now.
    pub(crate) fn image(&self) -> Image {
        self.guard().live.clone()
    }

    /// Returns the number of recorded events.
    pub(crate) fn position(&self) -> usize {
        self.guard().record.events.len()
    }

    /// Returns the recorded events, with the durable content and the unsynced events of the time at
    /// which the recording began.
    pub(crate) fn record(&self) -> Record {
        self.guard().record.clone()
    }

    /// Returns `true` if the disk had no unsynced events when the recording began.
    pub(crate) fn began_settled(&self) -> bool {
        self.guard().record.before.is_empty()
    }

    /// Crashes the process. Every earlier handle fails from now on. The returned handle belongs to
    /// the next process. A fault of the disk stays.
    pub(crate) fn kill(&self) -> Self {
        let mut state = self.guard();
        state.life += 1;
        state.locks.clear();
        let life = state.life;
        drop(state);
        Self {
            state: self.state.clone(),
            life,
        }
    }

    /// Sets the fault of the disk; `None` removes it.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.guard();
        (state.fault, state.calls, state.hit) = (fault, 0, None);
    }

    /// Makes the syncs selected by `lie` do nothing from now on.
    pub(crate) fn set_lie(&self, lie: Lie) {
        self.guard().lie = Some(lie);
    }

    /// Removes the fault. [`Disk::hit`] still returns the call that it hit.
    pub(crate) fn end_fault(&self) {
        self.guard().fault = None;
    }

    /// Returns the kind of the first call that the fault hit; `None` if it has hit no call.
    pub(crate) fn hit(&self) -> Option<Call> {
        self.guard().hit
    }

    /// Refuses writes and reservations that would extend all files together beyond `bytes`, from
    /// now on.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.guard().capacity = bytes;
    }

    /// Permits or refuses maps of files. Without maps, the engine uses read calls.
    pub(crate) fn set_maps(&self, maps: bool) {
        self.guard().maps = maps;
    }

    /// Returns the state for a call. Fails if the process of this handle has crashed, or if the
    /// fault hits the call.
    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        match self.call_or_harm(call)? {
            (state, None) => Ok(state),
            (_, Some(error)) => Err(error),
        }
    }

    /// Returns the state for a call. If the fault hits the call, also returns the error for the
    /// caller to return after the call's partial effect.
    fn call_or_harm(&self, call: Call) -> io::Result<(MutexGuard<'_, State>, Option<io::Error>)> {
        let mut state = self.guard();
        if state.life != self.life {
            return Err(io::Error::other("this process is dead"));
        }
        if let Some(fault) = state.fault
            && fault.kind.hits(call)
        {
            let number = state.calls;
            state.calls += 1;
            if number >= fault.at && number - fault.at < fault.times {
                state.hit.get_or_insert(call);
                return Ok((state, Some(fault.kind.error())));
            }
        }
        Ok((state, None))
    }

    fn handle(&self, node: NodeId) -> Arc<dyn StorageFile> {
        Arc::new(DiskFile {
            disk: self.clone(),
            node,
        })
    }
}

impl State {
    fn push(&mut self, event: Event) {
        if self.recording {
            self.record.events.push(event);
        }
    }
}

impl State {
    /// Fails if a write or reservation up to `end` would exceed the maximum size of a file or the
    /// capacity of the disk.
    fn room(&self, file: NodeId, end: u64) -> io::Result<()> {
        if end > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let grows = end.saturating_sub(self.live.file(file).len());
        if grows > 0 && self.capacity != u64::MAX && self.live.used_bytes() + grows > self.capacity {
            return Err(FaultKind::Full.error());
        }
        Ok(())
    }

    /// Creates a file or folder with a name.
    fn enter(&mut self, folder: NodeId, name: String, node: Node) -> NodeId {
        let made = if matches!(node, Node::Folder(_)) {
            Made::NewFolder
        } else {
            Made::NewFile
        };
        let node = self.live.add(node);
        self.live.folder_mut(folder).insert(name.clone(), node);
        self.push(Event::Enter {
            folder,
            name,
            node,
            made,
        });
        node
    }
}

impl Storage for Disk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call(Call::CreateFolder)?;
        let mut folder = super::image::ROOT;
        for name in names(path) {
            folder = match state.live.folder(folder).get(&name).copied() {
                Some(node) if state.live.is_folder(node) => node,
                Some(_) => return Err(io::ErrorKind::AlreadyExists.into()),
                None => state.enter(folder, name, Node::Folder(BTreeMap::new())),
            };
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        if mode == OpenMode::CreateNew {
            let mut state = self.call(Call::Create)?;
            let (folder, name) = state.live.parent(path)?;
            if state.live.folder(folder).contains_key(&name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let node = state.enter(folder, name, Node::File(Content::default()));
            return Ok(self.handle(node));
        }
        let state = self.call(Call::Open)?;
        let node = state.live.find(path)?;
        if state.live.is_folder(node) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(self.handle(node))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut state = self.call(Call::List)?;
        let node = state.live.find(folder)?;
        if !state.live.is_folder(node) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let mut names: Vec<String> = state.live.folder(node).keys().cloned().collect();
        state.listings += 1;
        let shift = state.listings as usize % names.len().max(1);
        names.rotate_left(shift);
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call(Call::Rename)?;
        let from = state.live.parent(from)?;
        let to = state.live.parent(to)?;
        let node = *state
            .live
            .folder(from.0)
            .get(&from.1)
            .ok_or(io::ErrorKind::NotFound)?;
        state.live.folder_mut(from.0).remove(&from.1);
        state.live.folder_mut(to.0).insert(to.1.clone(), node);
        state.push(Event::Rename { from, to, node });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call(Call::Remove)?;
        let (folder, name) = state.live.parent(path)?;
        let node = *state
            .live
            .folder(folder)
            .get(&name)
            .ok_or(io::ErrorKind::NotFound)?;
        if state.live.is_folder(node) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.live.folder_mut(folder).remove(&name);
        state.push(Event::Leave { folder, name });
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call(Call::Link)?;
        let node = state.live.find(from)?;
        let (folder, name) = state.live.parent(to)?;
        if state.live.folder(folder).contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.live.folder_mut(folder).insert(name.clone(), node);
        state.push(Event::Enter {
            folder,
            name,
            node,
            made: Made::Link,
        });
        Ok(())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call(Call::SyncFolder)?;
        let folder = state.live.find(path)?;
        if !state.live.is_folder(folder) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if state.lie.is_none_or(|lie| !(lie.folder)(path)) {
            state.push(Event::SyncFolder { folder });
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        let mut state = self.call(Call::Lock)?;
        let (folder, name) = state.live.parent(path)?;
        let node = match state.live.folder(folder).get(&name).copied() {
            Some(node) => node,
            None => state.enter(folder, name, Node::File(Content::default())),
        };
        if !state.locks.insert(node) {
            return Ok(Err(Some(1)));
        }
        Ok(Ok(Box::new(DiskLock {
            disk: self.clone(),
            node,
        })))
    }
}

struct DiskLock {
    disk: Disk,
    node: NodeId,
}

impl std::fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskLock({})", self.node)
    }
}

impl StorageLock for DiskLock {}

impl Drop for DiskLock {
    fn drop(&mut self) {
        let mut state = self.disk.guard();
        if state.life == self.disk.life {
            state.locks.remove(&self.node);
        }
    }
}

struct DiskFile {
    disk: Disk,
    node: NodeId,
}

impl std::fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskFile({})", self.node)
    }
}

impl StorageFile for DiskFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.disk.call(Call::Read)?;
        Ok(state.live.file(self.node).read(offset, bytes))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, error) = self.disk.call_or_harm(Call::Write)?;
        let short = state.fault.is_some_and(|fault| fault.kind == FaultKind::Short);
        let bytes = match error {
            Some(error) if !short => return Err(error),
            Some(_) => &bytes[..bytes.len() / 2],
            None => bytes,
        };
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        state.room(self.node, end)?;
        state.live.file_mut(self.node).write(offset, bytes);
        state.push(Event::Write {
            file: self.node,
            offset,
            bytes: bytes.into(),
        });
        error.map_or(Ok(()), Err)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut state, error) = self.disk.call_or_harm(Call::Sync)?;
        let forgotten = state.lie.is_some_and(|lie| {
            let files = state.live.files();
            files
                .iter()
                .any(|(path, node)| *node == self.node && (lie.file)(path))
        });
        match error {
            None if forgotten => {}
            None => state.push(Event::SyncFile { file: self.node }),
            Some(_) => state.push(Event::SyncFileFailed { file: self.node }),
        }
        error.map_or(Ok(()), Err)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.disk.call(Call::Allocate)?;
        let end = offset.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        state.room(self.node, end)?;
        let file = state.live.file_mut(self.node);
        file.set_len(file.len().max(end));
        state.push(Event::Allocate { file: self.node, end });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.call(Call::SetLen)?;
        // Setting the length reserves no blocks, so the capacity is not checked.
        if len > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        state.live.file_mut(self.node).set_len(len);
        state.push(Event::SetLen { file: self.node, len });
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.disk.call(Call::Len)?;
        Ok(state.live.file(self.node).len())
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        let state = self.disk.call(Call::Map)?;
        if !state.maps {
            return Ok(None);
        }
        let file = state.live.file(self.node);
        if file.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; len as usize];
        file.read(0, &mut bytes);
        Ok(Some(Mapping::of_bytes(&bytes)))
    }
}
