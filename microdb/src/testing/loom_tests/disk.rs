//! A disk for loom models: files in memory, with their current and their durable content. One sync
//! may fail.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::storage::{Mapping, OpenMode, Storage, StorageFile, StorageLock};

#[derive(Clone, Default, Debug)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
struct File {
    bytes: Mutex<Bytes>,
    /// Number of syncs that succeed before one fails. All files of the disk share this number.
    syncs_left: Arc<AtomicU32>,
}

/// The disk. Creations, renames and removals are durable at once, because these models test only
/// the order of threads.
#[derive(Debug)]
pub(super) struct Disk {
    files: Mutex<BTreeMap<PathBuf, Arc<File>>>,
    syncs_left: Arc<AtomicU32>,
}

/// Durable content of a disk by path, from which a new disk can be made.
pub(super) type Image = BTreeMap<PathBuf, Vec<u8>>;

impl Disk {
    /// Returns a disk with these files, all durable. The first `syncs` syncs succeed, the next one
    /// fails, and all later syncs succeed.
    pub(super) fn new(image: &Image, syncs: u32) -> Arc<Self> {
        let syncs_left = Arc::new(AtomicU32::new(syncs));
        let file = |bytes: &Vec<u8>| File {
            bytes: Mutex::new(Bytes {
                now: bytes.clone(),
                durable: bytes.clone(),
            }),
            syncs_left: syncs_left.clone(),
        };
        let files = image
            .iter()
            .map(|(path, bytes)| (path.clone(), Arc::new(file(bytes))));
        Arc::new(Self {
            files: Mutex::new(files.collect()),
            syncs_left,
        })
    }

    /// Returns the content after a power cut at this moment: the bytes that the last sync of each
    /// file covered.
    pub(super) fn after_a_cut(&self) -> Image {
        let files = self.files.lock().unwrap();
        let durable = |file: &File| file.bytes.lock().unwrap().durable.clone();
        files
            .iter()
            .map(|(path, file)| (path.clone(), durable(file)))
            .collect()
    }
}

#[derive(Debug)]
struct NoLock;

impl StorageLock for NoLock {}

impl Storage for Disk {
    fn create_folder(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let mut files = self.files.lock().unwrap();
        match (files.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(file), _) => Ok(file.clone()),
            (None, OpenMode::CreateNew) => {
                let file = Arc::new(File {
                    bytes: Mutex::default(),
                    syncs_left: self.syncs_left.clone(),
                });
                files.insert(path.to_owned(), file.clone());
                Ok(file)
            }
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let files = self.files.lock().unwrap();
        let names = files.keys().filter(|path| path.parent() == Some(folder));
        let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
        Ok(names.filter_map(name).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.files.lock().unwrap().remove(path);
        removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_folder(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        Ok(Ok(Box::new(NoLock)))
    }
}

impl StorageFile for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let held = self.bytes.lock().unwrap();
        let from = held.now.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(bytes.len());
        bytes[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset as usize + bytes.len();
        let now = &mut self.bytes.lock().unwrap().now;
        now.resize(now.len().max(end), 0);
        now[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let left = self.syncs_left.load(Ordering::Relaxed);
        if left == 0 {
            self.syncs_left.store(u32::MAX, Ordering::Relaxed);
            return Err(io::Error::other("the disk failed"));
        }
        self.syncs_left.store(left - 1, Ordering::Relaxed);
        let mut bytes = self.bytes.lock().unwrap();
        bytes.durable = bytes.now.clone();
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let now = &mut self.bytes.lock().unwrap().now;
        now.resize(now.len().max((offset + len) as usize), 0);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().now.resize(len as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().now.len() as u64)
    }

    fn map(&self, _len: u64) -> io::Result<Option<Mapping>> {
        Ok(None)
    }
}
