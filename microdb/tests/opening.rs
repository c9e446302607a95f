//! What an opening does while others work beside it, and where it may not look.
//!
//! A disk in memory stands under a storage that does something of its own at chosen calls: it lets a writer go on each time a reader has listed the log, or refuses folders. So
//! each of the cases that chance brings about in `kill.rs` is met for certain.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

mod support;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use microdb::storage::{OpenMode, Storage, StorageFile, StorageLock};
use microdb::{Db, Error, Options};
use support::disk::Disk;
use support::image::Image;
use support::workload::ROOT;

type Hook = dyn FnMut(&Disk) + Send;

/// A disk, and what happens at some of its calls.
struct Watched {
    disk: Disk,
    /// Each time the log's folder is listed: once in each look at the log.
    listed: Mutex<Box<Hook>>,
    /// What is said where folders above the database's are to be synced.
    above: Option<io::ErrorKind>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disk.fmt(f)
    }
}

impl Storage for Watched {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.create_folder(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.disk.open(path, mode)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names = self.disk.list(folder);
        if folder.ends_with("log") {
            (self.listed.lock().unwrap())(&self.disk);
        }
        names
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.hard_link(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let is_above = Path::new(ROOT).starts_with(path) && path != Path::new(ROOT);
        match self.above {
            Some(kind) if is_above => Err(kind.into()),
            _ => self.disk.sync_folder(path),
        }
    }
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.disk.lock(path)
    }
}

fn options(storage: Arc<dyn Storage>) -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .background(false)
        .storage(storage)
}

fn watched(disk: Disk, listed: Box<Hook>) -> Options {
    let (listed, above) = (Mutex::new(listed), None);
    options(Arc::new(Watched { disk, listed, above }))
}

fn bytes(image: &Image, path: &str) -> Vec<u8> {
    let node = image.find(&Path::new(ROOT).join(path)).unwrap();
    image.file(node).bytes()
}

fn overwrite(disk: &Disk, path: &str, bytes: &[u8]) {
    let file = disk.open(&Path::new(ROOT).join(path), OpenMode::ReadWrite);
    file.unwrap().write_at(bytes, 0).unwrap();
}

/// Ten keys, each written in its segment.
fn write(db: &Db, byte: u8) {
    let table = db.table("t").unwrap();
    for key in 0..10u8 {
        table.put([key], vec![byte; 3000]).unwrap();
    }
}

fn is_whole(db: &Db, byte: u8) -> bool {
    let table = db.existing_table("t").unwrap();
    (0..10u8).all(|key| table.get([key]).unwrap().as_deref() == Some(&[byte; 3000][..]))
}

/// A disk with a database whose log has been compacted, and SUPER as it was before that: it names segments that are gone.
fn gone_on() -> (Disk, Vec<u8>) {
    let disk = Disk::default();
    let db = options(Arc::new(disk.clone())).open(ROOT).unwrap();
    write(&db, 1);
    db.checkpoint().unwrap();
    let before = bytes(&disk.image(), "SUPER");
    write(&db, 2);
    db.compact().unwrap();
    db.checkpoint().unwrap();
    db.close().unwrap();
    (disk, before)
}

#[test]
fn a_reader_looks_again_when_the_writer_has_gone_on_beside_it() {
    let (disk, before) = gone_on();
    let now = bytes(&disk.image(), "SUPER");
    overwrite(&disk, "SUPER", &before);
    assert!(
        options(Arc::new(disk.clone()))
            .read_only(true)
            .open(ROOT)
            .is_err()
    );
    let mut looks = 0;
    let once = move |disk: &Disk| {
        looks += 1;
        assert!(looks <= 2, "it has what it needs");
        overwrite(disk, "SUPER", &now);
    };
    let db = watched(disk, Box::new(once)).read_only(true).open(ROOT).unwrap();
    assert!(is_whole(&db, 2));
}

#[test]
fn a_reader_beside_a_writer_that_never_rests_gives_up_with_what_it_met() {
    let (disk, before) = gone_on();
    // Always new, and always of a log that is gone.
    let supers = [before, bytes(&disk.image(), "SUPER")];
    let segment = disk
        .list(&Path::new(ROOT).join("log"))
        .unwrap()
        .into_iter()
        .filter(|name| name.ends_with(".seg"))
        .max()
        .unwrap();
    disk.remove(&Path::new(ROOT).join("log").join(&segment)).unwrap();
    let looks = Arc::new(Mutex::new(0));
    let seen = looks.clone();
    let always = move |disk: &Disk| {
        let mut looks = seen.lock().unwrap();
        *looks += 1;
        assert!(*looks < 100, "it never gives up");
        overwrite(disk, "SUPER", &supers[(*looks + 1) % 2]);
    };
    let error = watched(disk, Box::new(always)).read_only(true).open(ROOT);
    assert!(error.as_ref().is_err_and(Error::is_corrupt), "{error:?}");
    assert!(*looks.lock().unwrap() > 2);
}

#[test]
fn damage_is_told_at_the_first_look_where_nobody_writes() {
    let (disk, _) = gone_on();
    let mut image = disk.image();
    // In the middle of the oldest segment.
    let (_, node) = image
        .files()
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"))
        .min()
        .unwrap();
    image.file_mut(node).flip(8 * 1000);
    for (path, node) in image.files() {
        // From the log, and not from the checkpoint.
        if path.parent().is_some_and(|folder| folder.ends_with("directory")) {
            image.file_mut(node).flip(8 * 20);
        }
    }
    for read_only in [true, false] {
        let looks = Arc::new(Mutex::new(0));
        let seen = looks.clone();
        let count = move |_: &Disk| *seen.lock().unwrap() += 1;
        let disk = Disk::of(image.clone());
        let error = watched(disk, Box::new(count)).read_only(read_only).open(ROOT);
        assert!(error.as_ref().is_err_and(Error::is_corrupt), "{error:?}");
        assert_eq!(*looks.lock().unwrap(), 1, "read-only: {read_only}");
    }
}

#[test]
fn folders_above_that_may_not_be_synced_keep_no_database_from_being_made() {
    use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, ReadOnlyFilesystem};
    for (kind, is_fine) in [
        (PermissionDenied, true),
        (ReadOnlyFilesystem, true),
        (InvalidInput, true),
        (NotFound, false),
    ] {
        let disk = Disk::default();
        let storage = Watched {
            disk,
            listed: Mutex::new(Box::new(|_| {})),
            above: Some(kind),
        };
        match options(Arc::new(storage)).open(ROOT) {
            Ok(db) => {
                assert!(is_fine, "{kind}");
                write(&db, 1);
                assert!(is_whole(&db, 1));
            }
            Err(Error::Io { source, .. }) => assert!(!is_fine && source.kind() == kind, "{source}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn names(disk: &Disk, folder: &str) -> Vec<String> {
    let mut names = disk.list(&Path::new(ROOT).join(folder)).unwrap();
    names.sort();
    names
}

fn create(disk: &Disk, path: &str, bytes: &[u8]) {
    let file = disk.open(&Path::new(ROOT).join(path), OpenMode::CreateNew);
    file.unwrap().write_at(bytes, 0).unwrap();
}

#[test]
fn what_a_crash_left_of_checkpoints_goes_and_what_is_none_of_ours_stays() {
    let (disk, _) = gone_on();
    let own = names(&disk, "directory");
    for name in [
        "0000000001.idx",
        "0000000099.idx",
        "0000000099.tmp",
        "notes.txt",
        "7.idx",
    ] {
        create(&disk, &format!("directory/{name}"), b"of no use");
    }
    let all = names(&disk, "directory");
    let open = |read_only| options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
    assert!(is_whole(&open(true).unwrap(), 2));
    assert_eq!(names(&disk, "directory"), all, "a reader changes nothing");
    let db = open(false).unwrap();
    assert!(is_whole(&db, 2) && db.recovery().clean && !db.recovery().checkpoint_unusable);
    let mut left = [own.as_slice(), &["notes.txt".into(), "7.idx".into()]].concat();
    left.sort();
    assert_eq!(names(&disk, "directory"), left);
    db.close().unwrap();

    // A damaged one is kept for who wants to look at it.
    overwrite(&disk, &format!("directory/{}", own[0]), &[0x55; 64]);
    create(&disk, "directory/0000000099.tmp", b"of no use");
    let reader = open(true).unwrap();
    assert!(is_whole(&reader, 2) && reader.recovery().checkpoint_unusable);
    let db = open(false).unwrap();
    assert!(is_whole(&db, 2) && db.recovery().checkpoint_unusable);
    assert_eq!(names(&disk, "directory"), left);
}

#[test]
fn segments_and_seals_that_a_crash_left_behind_go() {
    let disk = Disk::default();
    let db = options(Arc::new(disk.clone())).open(ROOT).unwrap();
    write(&db, 1);
    db.checkpoint().unwrap();
    let before = disk.image();
    let old = names(&disk, "log");
    write(&db, 2);
    db.compact().unwrap();
    db.close().unwrap();
    let own = names(&disk, "log");
    let gone: Vec<_> = old.iter().filter(|name| !own.contains(name)).collect();
    assert!(gone.len() > 2, "{gone:?}");
    for name in gone {
        create(
            &disk,
            &format!("log/{name}"),
            &bytes(&before, &format!("log/{name}")),
        );
    }
    create(&disk, "log/0000000777.seal", b"of no segment");
    create(&disk, "log/notes.txt", b"of somebody");
    let all = names(&disk, "log");
    let open = |read_only| options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
    assert!(is_whole(&open(true).unwrap(), 2));
    assert_eq!(names(&disk, "log"), all, "a reader changes nothing");
    let db = open(false).unwrap();
    assert!(is_whole(&db, 2));
    assert!(db.recovery().dropped_bytes == 0, "{:?}", db.recovery());
    db.close().unwrap();
    // The seals of segments that went just now are found without them by the next opening.
    drop(open(false).unwrap());
    let left = names(&disk, "log");
    assert!(own.iter().all(|name| left.contains(name)), "{left:?}");
    let others: Vec<_> = left.iter().filter(|name| !own.contains(name)).collect();
    assert_eq!(others, ["notes.txt"]);
}

#[test]
fn a_segment_in_front_of_the_checkpoint_is_as_long_as_the_checkpoint_knows_it() {
    let (disk, _) = gone_on();
    let db = options(Arc::new(disk.clone()))
        .read_only(true)
        .open(ROOT)
        .unwrap();
    let recovery = db.recovery();
    assert!(
        recovery.checkpoint > 0 && recovery.frames_replayed == 0,
        "{recovery:?}"
    );
    drop(db);
    let name = names(&disk, "log")
        .into_iter()
        .find(|name| name.ends_with(".seg"));
    let path = format!("log/{}", name.unwrap());
    let whole = bytes(&disk.image(), &path);
    let file = disk
        .open(&Path::new(ROOT).join(&path), OpenMode::ReadWrite)
        .unwrap();
    for len in [whole.len() - 1, whole.len() / 2] {
        file.set_len(len as u64).unwrap();
        for read_only in [true, false] {
            let opened = options(Arc::new(disk.clone())).read_only(read_only).open(ROOT);
            let Err(Error::Corrupt {
                path: named, field, ..
            }) = &opened
            else {
                panic!("{opened:?}")
            };
            assert_eq!((named, *field), (&Path::new(ROOT).join(&path), "segment length"));
        }
    }
    file.write_at(&whole, 0).unwrap();
    assert!(is_whole(&options(Arc::new(disk)).open(ROOT).unwrap(), 2));
}
