//! Tests of system calls that could not begin: a map that is refused, and an open without a free
//! descriptor. At most the operation that needed the call fails, and the database is not poisoned.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::other::{self, Other, say};
use crate::support::workload::chain;
use microdb::storage::{Mapping, OpenMode, OsStorage, Storage, StorageFile, StorageLock};
use microdb::{Db, Durability, Error, Options};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

const ENOMEM: i32 = 12;
const EMFILE: i32 = 24;

/// The real disk, which refuses to map files into memory while `refuses` is set.
#[derive(Clone, Debug)]
struct Unmappable {
    inner: Arc<dyn Storage>,
    refuses: Arc<AtomicBool>,
    maps: Arc<AtomicU64>,
}

impl Unmappable {
    fn new() -> Self {
        Self {
            inner: Arc::new(OsStorage),
            refuses: Arc::default(),
            maps: Arc::default(),
        }
    }
}

impl Storage for Unmappable {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.inner.create_folder(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        let (file, disk) = (self.inner.open(path, mode)?, self.clone());
        Ok(Arc::new(UnmappableFile { file, disk }))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.inner.list(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.hard_link(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_folder(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct UnmappableFile {
    file: Arc<dyn StorageFile>,
    disk: Unmappable,
}

impl StorageFile for UnmappableFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(bytes, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        if self.disk.refuses.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(ENOMEM));
        }
        self.disk.maps.fetch_add(1, Ordering::SeqCst);
        self.file.map(len)
    }
}

fn put(db: &Db, numbers: std::ops::Range<u32>, bytes: usize) -> microdb::Result<()> {
    let table = db.table("t")?;
    for number in numbers {
        table.put(number.to_le_bytes(), vec![number as u8; bytes])?;
    }
    Ok(())
}

fn check(db: &Db, numbers: std::ops::Range<u32>, bytes: usize) {
    let table = db.get_table("t").unwrap();
    for number in numbers {
        let value = table.get(number.to_le_bytes()).unwrap();
        assert!(
            value.as_deref() == Some(&vec![number as u8; bytes][..]),
            "record {number}"
        );
    }
}

/// Returns the system's error number of an IO error; `None` if the error has none. Panics for any
/// other error, also for a poisoned database.
fn number(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        other => panic!("{}", chain(other)),
    }
}

fn options() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .background(false)
}

#[test]
fn segment_that_cannot_be_mapped_is_read_from_memory_and_mapped_later() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Unmappable::new();
    let options = || options().storage(Arc::new(disk.clone()));
    for durability in [Durability::Sync, Durability::Buffered] {
        let path = folder.path().join(format!("{durability:?}"));
        let db = options().durability(durability).open(&path).unwrap();
        put(&db, 0..10, 900).unwrap();
        disk.refuses.store(true, Ordering::SeqCst);
        put(&db, 10..40, 900).unwrap();
        put(&db, 0..20, 900).unwrap();
        db.sync().unwrap();
        check(&db, 0..40, 900);
        db.checkpoint().unwrap();
        db.compact().unwrap();
        check(&db, 0..40, 900);
        let mapped = disk.maps.load(Ordering::SeqCst);
        disk.refuses.store(false, Ordering::SeqCst);
        put(&db, 40..41, 900).unwrap();
        db.sync().unwrap();
        let mapped = disk.maps.load(Ordering::SeqCst) - mapped;
        assert!(mapped > 5, "{mapped} segments were mapped later");
        check(&db, 0..41, 900);
        assert!(db.verify().unwrap().is_sound());
        db.close().unwrap();
        check(&options().open(&path).unwrap(), 0..41, 900);
    }
}

#[test]
fn segments_that_cannot_be_mapped_refuse_new_ones_before_they_fill_the_memory() {
    const VALUE: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let disk = Unmappable::new();
    let options = Options::new()
        .segment_bytes_first(8 << 20)
        .segment_bytes_max(8 << 20)
        .durability(Durability::Buffered)
        .background(false)
        .storage(Arc::new(disk.clone()));
    let db = options.open(folder.path().join("db")).unwrap();
    put(&db, 0..1, VALUE).unwrap();
    disk.refuses.store(true, Ordering::SeqCst);
    let mut end = 1;
    let error = loop {
        match put(&db, end..end + 1, VALUE) {
            Ok(()) => end += 1,
            Err(error) => break error,
        }
        assert!(end < 120, "nothing holds the memory");
    };
    assert_eq!(number(&error), Some(ENOMEM), "{}", chain(&error));
    assert!(end > 64, "refused after {end} MiB");
    check(&db, 0..end, VALUE);
    // The same handle works again once maps are possible.
    disk.refuses.store(false, Ordering::SeqCst);
    put(&db, end..end + 20, VALUE).unwrap();
    check(&db, 0..end + 20, VALUE);
    db.close().unwrap();
}

/// Entry point of the second process, which puts records while it has few free file descriptors.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((_, folder)) = other::part() else {
        return;
    };
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = |current| {
        let limit = Rlimit {
            current,
            maximum: hard,
        };
        setrlimit(Resource::Nofile, limit).unwrap();
    };
    for durability in [Durability::Sync, Durability::Buffered] {
        // Each case leaves a different number of free descriptors when the log needs the next
        // segment. A complete segment releases its descriptor once it is written and synced. So
        // with enough free descriptors no put is refused.
        for spare in SPARE {
            let path = folder.join(format!("{durability:?}-{spare}"));
            let options = || options().durability(durability);
            let db = options().open(&path).unwrap();
            put(&db, 0..1, 900).unwrap();
            limit(Some(256));
            let mut taken = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                taken.push(file);
            }
            taken.truncate(taken.len() - spare);
            let (mut end, mut refusals) = (1, 0);
            // The loop ends after three refusals, or after all puts. The handle must stay usable
            // after a refusal.
            while end < PUTS_MAX && refusals < 3 {
                let before = db.sequence();
                match put(&db, end..end + 1, 900) {
                    Ok(()) => end += 1,
                    Err(error) => {
                        assert_eq!(number(&error), Some(EMFILE), "{}", chain(&error));
                        assert_eq!(db.sequence(), before, "a refused put is no commit");
                        refusals += 1;
                    }
                }
            }
            check(&db, 0..end, 900);
            assert_eq!(db.get_table("t").unwrap().len(), u64::from(end), "nothing else");
            drop(taken);
            limit(hard);
            put(&db, end..end + 10, 900).unwrap();
            check(&db, 0..end + 10, 900);
            db.close().unwrap();
            let db = options().open(&path).unwrap();
            check(&db, 0..end + 10, 900);
            assert_eq!(db.get_table("t").unwrap().len(), u64::from(end) + 10);
            say(&format!("{durability:?} {spare} {refusals}"));
        }
    }
}

/// Number of puts after which a case ends, enough to fill about a hundred segments.
const PUTS_MAX: u32 = 400;
/// Numbers of free descriptors to test. With 40, no put is refused: at most 16 segments wait to be
/// written, and 16 wait to be synced.
const SPARE: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 40];

#[test]
fn process_at_its_limit_of_descriptors_goes_on_with_the_same_handle() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Other::start(ENTRY, "descriptors", folder.path());
    for durability in [Durability::Sync, Durability::Buffered] {
        for spare in SPARE {
            let said = other
                .said()
                .unwrap_or_else(|| panic!("nothing for {spare} spare ones"));
            let refusals = said.strip_prefix(&format!("{durability:?} {spare} ")).unwrap();
            match spare {
                0 => assert_eq!(refusals, "3", "{said}: a segment needs a descriptor"),
                40 => assert_eq!(refusals, "0", "{said}: enough for all segments"),
                _ => {}
            }
        }
    }
    other.ended_well();
}
