//! Tests of the test disk. After a power cut, synced changes are on every possible disk. Unsynced
//! changes are on some of these disks and not on others. Kills, locks and faults are tested too.

use std::path::Path;

use crate::support::cut::Cuts;
use crate::support::disk::{Disk, Fault, FaultKind};
use crate::support::image::Image;
use crate::support::random::Random;
use microdb::storage::{OpenMode, Storage};

/// Returns up to 200 disks that a power cut after the last event of `disk` can leave.
fn disks_at_the_end(disk: &Disk) -> Vec<Image> {
    let record = disk.record();
    let mut cuts = Cuts::new(&record);
    while cuts.step() {}
    cuts.disks(&mut Random::new(1), 200)
}

fn bytes(image: &Image, path: &str) -> Option<Vec<u8>> {
    image
        .find(Path::new(path))
        .ok()
        .map(|node| image.file(node).bytes())
}

#[test]
fn writes_are_read_back_and_a_dead_process_reads_nothing() {
    let disk = Disk::default();
    disk.create_folder(Path::new("/a/b")).unwrap();
    let file = disk.open(Path::new("/a/b/f"), OpenMode::CreateNew).unwrap();
    file.write_at(b"hello", 4094).unwrap();
    let mut read = [1; 10];
    assert_eq!(file.read_at(&mut read, 4092).unwrap(), 7);
    assert_eq!(&read[..7], b"\0\0hello");
    file.set_len(4096).unwrap();
    file.set_len(4100).unwrap();
    assert_eq!(file.read_at(&mut read, 4094).unwrap(), 6);
    assert_eq!(&read[..6], b"he\0\0\0\0");
    assert!(disk.open(Path::new("/a/b/f"), OpenMode::CreateNew).is_err());
    disk.rename(Path::new("/a/b/f"), Path::new("/a/g")).unwrap();
    assert_eq!(disk.list(Path::new("/a/b")).unwrap(), Vec::<String>::new());
    let next = disk.kill();
    assert!(file.len().is_err() && disk.list(Path::new("/a")).is_err());
    assert_eq!(
        next.open(Path::new("/a/g"), OpenMode::Read)
            .unwrap()
            .len()
            .unwrap(),
        4100
    );
}

#[test]
fn one_lock_at_a_time_and_death_frees_it() {
    let disk = Disk::default();
    let lock = disk.lock(Path::new("/LOCK")).unwrap().unwrap();
    assert!(disk.lock(Path::new("/LOCK")).unwrap().is_err());
    drop(lock);
    let lock = disk.lock(Path::new("/LOCK")).unwrap().unwrap();
    let next = disk.kill();
    let _held = next.lock(Path::new("/LOCK")).unwrap().unwrap();
    drop(lock);
    assert!(
        next.lock(Path::new("/LOCK")).unwrap().is_err(),
        "the dead one's lock is not the new one's"
    );
}

#[test]
fn a_file_needs_its_own_sync_and_its_folders() {
    for (sync_file, sync_folder) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = Disk::default();
        let file = disk.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
        file.write_at(&[7; 2000], 0).unwrap();
        if sync_file {
            file.sync_data().unwrap();
        }
        if sync_folder {
            disk.sync_folder(Path::new("/")).unwrap();
        }
        let disks = disks_at_the_end(&disk);
        let there = disks.iter().filter(|image| bytes(image, "/f").is_some()).count();
        let whole = disks
            .iter()
            .filter(|image| bytes(image, "/f") == Some(vec![7; 2000]))
            .count();
        assert_eq!(there == disks.len(), sync_folder, "{there} of {}", disks.len());
        assert_eq!(whole == there, sync_file);
        assert!(whole > 0 && (sync_file || whole < there));
        assert_eq!(disks.len() == 1, sync_file && sync_folder);
    }
}

#[test]
fn unsynced_writes_are_kept_lost_reordered_and_torn() {
    let disk = Disk::default();
    let file = disk.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
    file.allocate(0, 4096).unwrap();
    file.sync_data().unwrap();
    disk.sync_folder(Path::new("/")).unwrap();
    file.write_at(&[1; 1024], 0).unwrap();
    file.write_at(&[2; 1024], 2048).unwrap();
    let seen: Vec<Vec<u8>> = disks_at_the_end(&disk)
        .iter()
        .map(|image| bytes(image, "/f").unwrap())
        .collect();
    let count = |bytes: &[u8], value| bytes.iter().filter(|byte| **byte == value).count();
    let some = |ones: &dyn Fn(usize) -> bool, twos: &dyn Fn(usize) -> bool| {
        seen.iter()
            .any(|bytes| ones(count(bytes, 1)) && twos(count(bytes, 2)))
    };
    assert!(some(&|n| n == 0, &|n| n == 0) && some(&|n| n == 1024, &|n| n == 1024));
    assert!(some(&|n| n == 0, &|n| n == 1024), "the later without the earlier");
    assert!(some(&|n| n == 512, &|_| true), "a sector of two");
    assert!(some(&|n| n % 512 != 0, &|_| true), "torn within a sector");
    assert!(
        seen.iter()
            .all(|bytes| bytes.len() == 4096 && bytes.iter().all(|byte| *byte <= 2))
    );
}

#[test]
fn old_blocks_show_through_a_length_without_its_bytes() {
    let disk = Disk::of(Image::of_files([("/old", [9u8; 4096].as_slice())]));
    let file = disk.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
    disk.sync_folder(Path::new("/")).unwrap();
    file.write_at(&[1; 4096], 0).unwrap();
    let disks = disks_at_the_end(&disk);
    let shows = |image: &&Image| {
        bytes(image, "/f")
            .unwrap()
            .windows(512)
            .any(|bytes| bytes == [9; 512])
    };
    assert!(disks.iter().any(|image| shows(&image)));
}

#[test]
fn a_rename_leaves_the_old_file_or_the_new_one() {
    let disk = Disk::of(Image::of_files([("/f", b"old".as_slice())]));
    let file = disk.open(Path::new("/f.tmp"), OpenMode::CreateNew).unwrap();
    file.write_at(b"new", 0).unwrap();
    file.sync_data().unwrap();
    disk.rename(Path::new("/f.tmp"), Path::new("/f")).unwrap();
    let found: Vec<_> = disks_at_the_end(&disk)
        .iter()
        .map(|image| bytes(image, "/f").unwrap())
        .collect();
    assert!(found.contains(&b"old".to_vec()) && found.contains(&b"new".to_vec()));
    assert!(found.iter().all(|bytes| bytes == b"old" || bytes == b"new"));
    disk.sync_folder(Path::new("/")).unwrap();
    assert!(
        disks_at_the_end(&disk)
            .iter()
            .all(|image| bytes(image, "/f").unwrap() == b"new")
    );
}

#[test]
fn writes_of_a_killed_process_are_visible_and_not_durable() {
    let disk = Disk::default();
    disk.open(Path::new("/f"), OpenMode::CreateNew)
        .unwrap()
        .write_at(&[1; 100], 0)
        .unwrap();
    let record = disk.record();
    let mut cuts = Cuts::new(&record);
    while cuts.step() {}
    let killed = cuts.killed();
    assert!(!killed.began_settled());
    assert_eq!(bytes(&killed.image(), "/f").unwrap(), vec![1; 100]);
    let file = killed.open(Path::new("/f"), OpenMode::ReadWrite).unwrap();
    assert!(
        disks_at_the_end(&killed)
            .iter()
            .any(|image| bytes(image, "/f").is_none())
    );
    file.sync_data().unwrap();
    killed.sync_folder(Path::new("/")).unwrap();
    assert!(
        disks_at_the_end(&killed)
            .iter()
            .all(|image| bytes(image, "/f").unwrap() == [1; 100])
    );
}

#[test]
fn a_failed_sync_may_lose_writes_for_good() {
    let disk = Disk::default();
    let file = disk.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
    disk.sync_folder(Path::new("/")).unwrap();
    for sector in 0..16 {
        file.write_at(&[1; 512], sector * 512).unwrap();
    }
    disk.set_fault(Some(Fault {
        kind: FaultKind::Io,
        at: 0,
        times: 1,
    }));
    assert!(file.sync_data().is_err());
    assert!(disk.hit().is_some());
    file.sync_data().unwrap();
    assert_eq!(
        bytes(&disk.image(), "/f").unwrap(),
        vec![1; 16 * 512],
        "the page cache still shows it"
    );
    for image in disks_at_the_end(&disk) {
        assert!(bytes(&image, "/f").unwrap() != vec![1; 16 * 512]);
    }
}

#[test]
fn faults_hit_the_call_they_are_set_on() {
    let disk = Disk::default();
    let file = disk.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
    disk.set_fault(Some(Fault {
        kind: FaultKind::Short,
        at: 1,
        times: 1,
    }));
    file.write_at(&[1; 100], 0).unwrap();
    assert_eq!(file.write_at(&[2; 100], 100).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(file.len().unwrap(), 150);
    disk.set_fault(Some(Fault {
        kind: FaultKind::Full,
        at: 0,
        times: 2,
    }));
    assert_eq!(
        file.read_at(&mut [0; 10], 0).unwrap(),
        10,
        "reading needs no room"
    );
    assert_eq!(
        file.allocate(0, 10).unwrap_err().kind(),
        std::io::ErrorKind::StorageFull
    );
    assert!(file.write_at(b"x", 0).is_err());
    file.write_at(b"x", 0).unwrap();
    disk.set_fault(None);
    disk.set_capacity(200);
    file.write_at(&[1; 200], 0).unwrap();
    assert_eq!(
        file.write_at(b"x", 200).unwrap_err().kind(),
        std::io::ErrorKind::StorageFull
    );
}
