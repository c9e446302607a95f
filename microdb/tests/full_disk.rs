//! Tests that `compact`, `clear` and `drop_table` free space on a disk without a free byte, and
//! never risk live records.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::sync::Arc;

use crate::support::cut::Cuts;
use crate::support::disk::Disk;
use crate::support::image::Image;
use crate::support::random::Random;
use crate::support::workload::{Change, Failure, Op, Run, Shape, key};
use microdb::{Db, Durability, Options, Table};

const ROOT: &str = "/db";
const VALUE_BYTES: usize = 1_000;
/// Number of keys, which are written in turn. So it is also the number of live records.
const KEYS: u32 = 20;
const CAPACITY: u64 = 1 << 20;

fn open(disk: &Disk) -> Db {
    let options = Options::new()
        .segment_bytes_first(64 * 1024)
        .segment_bytes_max(64 * 1024)
        .durability(Durability::Buffered)
        .background(false);
    options.storage(Arc::new(disk.clone())).open(ROOT).unwrap()
}

/// Puts records until the disk has no free byte. Returns the number of the last successful put.
fn fill(disk: &Disk, table: &Table, keys: u32) -> u32 {
    disk.set_capacity(CAPACITY);
    for number in 0_u32.. {
        let value = [number.to_be_bytes().as_slice(), &[7; VALUE_BYTES]].concat();
        if let Err(error) = table.put((number % keys).to_be_bytes(), value) {
            assert!(error.is_disk_full(), "{error}");
            disk.set_capacity(disk.image().used_bytes());
            return number - 1;
        }
    }
    unreachable!("the disk gets full")
}

/// Checks that each key has its newest value after put number `last`.
fn check(table: &Table, last: u32) {
    for number in last + 1 - KEYS..=last {
        let value = table.get((number % KEYS).to_be_bytes()).unwrap().unwrap();
        assert_eq!(value[..4], number.to_be_bytes());
    }
}

#[test]
fn compact_frees_dead_segments_on_a_disk_without_a_free_byte() {
    let disk = Disk::unrecorded(Image::default());
    let db = open(&disk);
    let table = db.table("t").unwrap();
    let last = fill(&disk, &table, KEYS);
    let report = db.compact().unwrap();
    assert!(report.segments_removed > 10, "{report:?}");
    assert!(disk.image().used_bytes() < CAPACITY / 4, "{report:?}");
    check(&table, last);
    let last = fill(&disk, &table, KEYS);
    check(&table, last);
    db.sync().unwrap();
    // The process is killed, and the next process opens the database.
    let disk = disk.kill();
    let db = open(&disk);
    check(&db.table("t").unwrap(), last);
}

#[test]
fn compact_keeps_the_space_it_freed_when_it_fails_later() {
    let disk = Disk::unrecorded(Image::default());
    let db = open(&disk);
    let table = db.table("t").unwrap();
    let last = fill(&disk, &table, KEYS);
    db.sync().unwrap();
    // A thread repeatedly limits the disk to its used bytes, like another process that uses up the
    // freed space. So the compaction may fail.
    let taken = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !taken.load(std::sync::atomic::Ordering::Relaxed) {
                disk.set_capacity(disk.image().used_bytes());
            }
        });
        let compacted = db.compact();
        taken.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(error) = compacted {
            assert!(error.is_disk_full(), "{error}");
        }
    });
    assert!(disk.image().used_bytes() < CAPACITY / 2, "dead segments are gone");
    check(&table, last);
    check(&open(&disk.kill()).table("t").unwrap(), last);
}

#[test]
fn clear_works_on_a_disk_without_a_free_byte_and_compact_frees_everything() {
    let disk = Disk::unrecorded(Image::default());
    let db = open(&disk);
    let table = db.table("t").unwrap();
    fill(&disk, &table, u32::MAX);
    table.clear().unwrap();
    db.compact().unwrap();
    assert!(disk.image().used_bytes() < CAPACITY / 4, "{}", db.stats());
    assert!(table.is_empty());
    let last = fill(&disk, &table, KEYS);
    check(&table, last);
}

#[test]
fn drop_table_works_on_a_disk_without_a_free_byte() {
    let disk = Disk::unrecorded(Image::default());
    let db = open(&disk);
    let (kept, dropped) = (db.table("kept").unwrap(), db.table("dropped").unwrap());
    kept.put("k", "v").unwrap();
    fill(&disk, &dropped, u32::MAX);
    db.drop_table("dropped").unwrap();
    db.compact().unwrap();
    assert!(disk.image().used_bytes() < CAPACITY / 4);
    let db = open(&disk.kill());
    assert_eq!(db.tables().len(), 1);
    assert_eq!(
        db.table("kept").unwrap().get("k").unwrap().as_deref(),
        Some(&b"v"[..])
    );
}

#[test]
fn clear_works_when_the_log_is_a_single_segment_that_fills_the_disk() {
    let disk = Disk::unrecorded(Image::default());
    let options = Options::new().segment_bytes_first(32 << 20).background(false);
    let options = options.durability(Durability::Buffered);
    let db = options.storage(Arc::new(disk.clone())).open(ROOT).unwrap();
    let table = db.table("t").unwrap();
    fill(&disk, &table, u32::MAX);
    assert_eq!(db.stats().segments.len(), 1);
    table.clear().unwrap();
    db.compact().unwrap();
    assert!(disk.image().used_bytes() < CAPACITY / 2, "{}", db.stats());
    table.put("k", "v").unwrap();
}

#[test]
fn a_power_cut_during_a_removal_on_a_full_disk_loses_nothing() {
    let mut disks = 0;
    for seed in 1..=6 {
        let (disk, shape) = (Disk::default(), Shape::small(seed % 2 == 0));
        let mut run = Run::open(disk.clone(), shape, &Run::nothing()).unwrap();
        disk.set_capacity(100_000);
        for number in 0.. {
            let value = vec![b'.'; 1_500];
            let durability = if number % 3 == 0 {
                Durability::Sync
            } else {
                Durability::Buffered
            };
            match run.try_step(&Op::Batch(
                vec![Change::Put(0, key(number % 6), value)],
                durability,
            )) {
                Ok(()) => {}
                Err(Failure::Refused(error)) if error.is_disk_full() => break,
                Err(failure) => panic!("seed {seed}: {failure}"),
            }
        }
        disk.set_capacity(disk.image().used_bytes());
        let from = disk.position();
        if seed > 3 {
            run.step(&Op::Clear(0)).unwrap();
        }
        run.step(&Op::Compact).unwrap();
        assert!(disk.image().used_bytes() < 60_000, "seed {seed}");
        let record = disk.record();
        let mut cuts = Cuts::new(&record);
        let mut random = Random::new(seed);
        loop {
            if cuts.at() >= from {
                for image in cuts.disks(&mut random, 8) {
                    disks += 1;
                    let next = Run::open(Disk::unrecorded(image), shape, run.allowed(cuts.at()));
                    next.unwrap_or_else(|error| panic!("seed {seed}, cut at {}: {error}", cuts.at()));
                }
            }
            if !cuts.step() {
                break;
            }
        }
    }
    assert!(disks > 500, "{disks} disks");
}
