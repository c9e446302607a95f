//! The storage trait on a disk in memory that writes down every call, and can fail.
//!
//! The disk shows what an operating system shows: everything written is read back at once, synced
//! or not. What is durable is not its business: it keeps the calls as [`Event`]s, and
//! [`super::cut::Cuts`] works out from them what a power cut would leave. [`Disk::kill`] is the
//! other crash, that of the process: the handles of the dead one fail from then on, its locks are
//! free, and what it wrote stays, unsynced as it was. A [`Fault`] makes the Nth call fail, and
//! `capacity` makes the disk small. Listings come in changing order, since the trait promises none.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use microdb::storage::{Mapping, OpenMode, Storage, StorageFile, StorageLock};

use super::image::{Content, FILE_BYTES_MAX, Image, Node, NodeId, names};

/// One call that changed the disk, or asked for what was changed to last.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write {
        file: NodeId,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    /// Blocks were reserved; the file has at least this length now.
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
    /// A sync that reported an error. The system has forgotten what was to be written, whether or
    /// not it reached the disk.
    SyncFileFailed {
        file: NodeId,
    },
    /// A name was given: file or folder made, or a second name for a file.
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
    /// The event on one short line.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Write { file, offset, bytes } => format!("write {file} at {offset}: {} bytes", bytes.len()),
            other => format!("{other:?}"),
        }
    }
}

/// What a name was given to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Made {
    NewFile,
    NewFolder,
    /// A file that had a name already.
    Link,
}

/// What a call is, for faults.
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

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultKind {
    /// EIO, of any call.
    Io,
    /// ENOSPC, of any call that can need room.
    Full,
    /// A write that stops half way and then says EIO.
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
            // By number, as the system says it: 28 is ENOSPC, 5 is EIO.
            Self::Full => io::Error::from_raw_os_error(28),
            Self::Io | Self::Short => io::Error::from_raw_os_error(5),
        }
    }
}

/// A call that will fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// Which of the calls that `kind` can hit, counted from 0 since the fault was set.
    pub(crate) at: u64,
    /// How many of them fail, from that one on.
    pub(crate) times: u64,
}

/// Syncs that are reported done and never happen: the engine with a sync forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lie {
    pub(crate) name: &'static str,
    /// Which files' syncs.
    pub(crate) file: fn(&Path) -> bool,
    /// Which folders' syncs.
    pub(crate) folder: fn(&Path) -> bool,
}

/// What happened on a disk: enough to build what a power cut would leave.
#[derive(Clone, Default)]
pub(crate) struct Record {
    /// What was durable at the start.
    pub(crate) base: Image,
    /// What was written before the start and not synced: by a process that died.
    pub(crate) before: Vec<Event>,
    pub(crate) events: Vec<Event>,
}

struct State {
    record: Record,
    live: Image,
    recording: bool,
    /// Counts processes that have died; handles of an earlier life are dead.
    life: u64,
    locks: HashSet<NodeId>,
    fault: Option<Fault>,
    /// Calls that the fault could hit, since it was set.
    calls: u64,
    hit: Option<Call>,
    lie: Option<Lie>,
    capacity: u64,
    listings: u64,
    maps: bool,
}

/// A disk; copies of the handle show the same one.
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
    /// A disk that holds `image`, all of it durable.
    pub(crate) fn of(image: Image) -> Self {
        Self::with_unsynced(image.clone(), Vec::new(), image)
    }

    /// A disk that shows `live`, of which `base` is durable and `before` is not.
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

    /// The same without a record of events: cheaper where nothing will be cut.
    pub(crate) fn unrecorded(image: Image) -> Self {
        let disk = Self::of(image);
        disk.guard().recording = false;
        disk
    }

    fn guard(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a process sees now.
    pub(crate) fn image(&self) -> Image {
        self.guard().live.clone()
    }

    /// How many events there were.
    pub(crate) fn position(&self) -> usize {
        self.guard().record.events.len()
    }

    /// All that happened so far.
    pub(crate) fn record(&self) -> Record {
        self.guard().record.clone()
    }

    /// Whether all that was there at the start was durable.
    pub(crate) fn began_settled(&self) -> bool {
        self.guard().record.before.is_empty()
    }

    /// The process dies here. Every handle so far fails from now on; the result belongs to the next
    /// process. A fault is the disk's, and stays.
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

    /// Makes a call fail; `None` ends it.
    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.guard();
        (state.fault, state.calls, state.hit) = (fault, 0, None);
    }

    /// From now on these syncs do nothing.
    pub(crate) fn set_lie(&self, lie: Lie) {
        self.guard().lie = Some(lie);
    }

    /// Ends the fault; what it has hit stays known.
    pub(crate) fn end_fault(&self) {
        self.guard().fault = None;
    }

    /// The call that the fault has hit, if any.
    pub(crate) fn hit(&self) -> Option<Call> {
        self.guard().hit
    }

    /// From now on the files may have this many bytes in all.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.guard().capacity = bytes;
    }

    /// Whether files can be mapped; without, the engine reads.
    pub(crate) fn set_maps(&self, maps: bool) {
        self.guard().maps = maps;
    }

    /// The state, if this handle is alive and the call does not fail.
    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, State>> {
        match self.call_or_harm(call)? {
            (state, None) => Ok(state),
            (_, Some(error)) => Err(error),
        }
    }

    /// The state, and the error with which the call is to end after it has done its damage.
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
    /// A write or reservation that ends at `end` finds room.
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

    /// Makes a node and gives it a name.
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
        // Growing this way reserves nothing, so it needs no room.
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
