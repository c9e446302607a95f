//! Power cuts after commits that happen during a checkpoint. Before each call to the disk that
//! opens, renames or removes a checkpoint file or syncs the folder of the checkpoints, another
//! thread commits until the log has a new segment.
//!
//! The campaign of `power_cut.rs` has only one thread. These power cuts find faults in work that
//! one thread begins and another thread makes durable. A second test replaces a checkpoint while a
//! reader opens it.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::support::cut::Cuts;
use crate::support::disk::Disk;
use crate::support::image::Image;
use crate::support::random::Random;
use crate::support::workload::{ROOT, chain};
use microdb::storage::{OpenMode, Storage, StorageFile, StorageLock};
use microdb::{Db, Durability, Options, Sequence};

const DISKS: usize = 12;

/// A disk that lets another thread work on a database before each call that opens, renames or
/// removes a checkpoint file or syncs the folder of the checkpoints.
#[derive(Clone, Debug)]
struct Beside {
    disk: Disk,
    db: Arc<Mutex<Option<Db>>>,
    work: fn(&Db),
}

/// Commits more records than a segment can hold.
fn fill_a_segment(db: &Db) {
    let table = db.table("beside").unwrap();
    for _ in 0..4 {
        let number = db.sequence().next();
        let mut batch = db.batch();
        batch.put(&table, number.to_string(), vec![number.0 as u8; 1500]);
        batch.commit_with(Durability::Buffered).unwrap();
    }
}

impl Beside {
    fn before(&self, path: &Path) {
        let of_checkpoint = path.components().any(|part| part.as_os_str() == "directory");
        // The handle is taken out during the work. So the calls of that work do not start further
        // work.
        let db = self.db.lock().unwrap().take_if(|_| of_checkpoint);
        let Some(db) = db else { return };
        let worked = std::thread::scope(|scope| scope.spawn(|| (self.work)(&db)).join());
        worked.unwrap();
        *self.db.lock().unwrap() = Some(db);
    }
}

impl Storage for Beside {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.create_folder(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        self.before(path);
        self.disk.open(path, mode)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.disk.list(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(from);
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(path);
        self.disk.remove(path)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.hard_link(from, to)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.before(path);
        self.disk.sync_folder(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.disk.lock(path)
    }
}

fn options(storage: Arc<dyn Storage>) -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .buffer_bytes(100_000)
        .background(false)
        .storage(storage)
}

#[test]
fn commits_beside_a_checkpoint_are_a_prefix_after_any_cut() {
    let disk = Disk::default();
    let beside = Beside {
        disk: disk.clone(),
        db: Arc::default(),
        work: fill_a_segment,
    };
    let db = options(Arc::new(beside.clone())).open(ROOT).unwrap();
    let table = db.table("beside").unwrap();
    let first = db.sequence().next();
    table.put(first.to_string(), vec![first.0 as u8; 1500]).unwrap();
    // For each sync: the number of the disk's events at its end, and the last commit that is
    // durable from that event on.
    let mut durable = vec![(disk.position(), first)];
    for _ in 0..3 {
        *beside.db.lock().unwrap() = Some(db.clone());
        db.checkpoint().unwrap();
        let others = beside.db.lock().unwrap().take();
        assert!(others.is_some());
        drop(others);
        db.compact().unwrap();
        db.sync().unwrap();
        durable.push((disk.position(), db.sequence()));
    }
    let record = disk.record();
    let mut cuts = Cuts::new(&record);
    let mut random = Random::new(3);
    let mut disks = 0;
    loop {
        let at = cuts.at();
        let promised = durable.iter().rev().find(|(from, _)| *from <= at);
        for image in cuts.disks(&mut random, DISKS) {
            disks += 1;
            let promised = promised.map(|(_, sequence)| *sequence);
            check(image, promised.unwrap_or(Sequence::ZERO), first)
                .unwrap_or_else(|error| panic!("cut {at} of {}: {error}", record.events.len()));
        }
        if !cuts.step() {
            break;
        }
    }
    println!("cuts beside a checkpoint: {disks} disks");
}

/// Checks that the database on the disk has all commits up to some sequence number, at least up to
/// `promised`. Also checks that work can continue.
fn check(image: Image, promised: Sequence, first: Sequence) -> Result<(), String> {
    let storage = Arc::new(Disk::unrecorded(image));
    let told = |error: microdb::Error| chain(&error);
    let db = options(storage.clone()).open(ROOT).map_err(told)?;
    let last = db.sequence();
    if last < promised {
        return Err(format!("{last} commits, {promised} were promised"));
    }
    if let Some(table) = db.get_table("beside") {
        for number in first.0..=last.0 {
            let value = table.get(number.to_string()).map_err(told)?;
            if value.as_deref() != Some(&vec![number as u8; 1500][..]) {
                return Err(format!("commit {number} of {last} is not there"));
            }
        }
    }
    db.table("after")
        .and_then(|table| table.put("k", "v"))
        .map_err(told)?;
    db.close().map_err(told)?;
    options(storage).open(ROOT).map(drop).map_err(told)
}

#[test]
fn a_reader_of_a_removed_checkpoint_takes_the_next_one() {
    let disk = Disk::default();
    let db = options(Arc::new(disk.clone())).open(ROOT).unwrap();
    db.table("beside").unwrap().put("key", "value").unwrap();
    db.checkpoint().unwrap();
    let once = |db: &Db| {
        let table = db.table("beside").unwrap();
        if table.get("new").unwrap().is_none() {
            table.put("new", "value").unwrap();
            db.checkpoint().unwrap();
        }
    };
    let beside = Beside {
        disk,
        db: Arc::new(Mutex::new(Some(db.clone()))),
        work: once,
    };
    let reader = options(Arc::new(beside)).read_only(true).open(ROOT).unwrap();
    let recovery = reader.recovery();
    assert!(!recovery.checkpoint_unusable, "{recovery:?}");
    assert_eq!((recovery.checkpoint, reader.sequence()), (2, db.sequence()));
    assert!(reader.get_table("beside").unwrap().contains_key("new").unwrap());
}
