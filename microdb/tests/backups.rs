//! Tests of backups, salvage and healing: with folders inside each other, on read-only media, and
//! during the work of a writer.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::folder::copy_folder;
use microdb::storage::{OpenMode, OsStorage, Storage, StorageFile, StorageLock};
use microdb::{Db, Durability, Error, Options, diff, heal, salvage};
use tempfile::tempdir;

fn options() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(8192)
        .background(false)
}

/// Puts 200 records in several segments. The records of a later round replace those of an earlier
/// round.
fn fill(db: &Db, round: u32) {
    let table = db.table("events").unwrap();
    for number in 0..200_u32 {
        let value = format!("{round} {number} {}", "x".repeat(100));
        table
            .put_with(number.to_be_bytes(), value, Durability::Buffered)
            .unwrap();
    }
    db.sync().unwrap();
}

/// Returns all files and folders below a folder, at any depth.
fn names(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(names(&entry.path()));
        }
        found.insert(entry.path());
    }
    found
}

/// Asserts that a call was refused because one folder is the other one or is inside it.
fn is_refused<T: std::fmt::Debug>(result: microdb::Result<T>, how: &str) {
    match result {
        Err(Error::Invalid { reason, .. }) => assert!(reason.contains("lies within"), "{how}: {reason}"),
        other => panic!("{how}: {other:?}"),
    }
}

#[test]
fn a_copy_within_its_source_is_refused_by_every_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("db");
    let db = options().open(&path).unwrap();
    fill(&db, 1);
    let (link, deep) = (folder.path().join("link"), folder.path().join("deep"));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    std::os::unix::fs::symlink(path.join("log"), &deep).unwrap();
    let within = [
        path.clone(),
        path.join("here"),
        path.join("new/and/newer"),
        path.join("log/../here"),
        folder.path().join("elsewhere/../db/here"),
        link.join("here"),
        deep.join("here"),
    ];
    std::fs::create_dir(folder.path().join("elsewhere")).unwrap();
    for target in &within {
        let before = names(&path);
        is_refused(db.backup_to(target), &format!("backup to {}", target.display()));
        let view = options().read_only(true).open(&path).unwrap();
        is_refused(view.backup_to(target), &format!("view to {}", target.display()));
        is_refused(
            salvage(&path, target),
            &format!("salvage to {}", target.display()),
        );
        is_refused(
            salvage(&link, target),
            &format!("salvage of a link to {}", target.display()),
        );
        assert_eq!(names(&path), before, "{}", target.display());
    }
    // A sibling folder is accepted, even if its name begins with that of the database's folder.
    db.backup_to(folder.path().join("db-copy")).unwrap();
    db.close().unwrap();
    for backup in [path.join("log"), link.clone(), path.clone()] {
        is_refused(heal(&path, &backup), &format!("heal from {}", backup.display()));
    }
    salvage(&link, folder.path().join("saved")).unwrap();
    heal(&link, folder.path().join("db-copy")).unwrap();
}

#[test]
fn a_source_within_its_target_is_refused() {
    let folder = tempdir().unwrap();
    let (outer, inner) = (folder.path().join("outer"), folder.path().join("outer/db"));
    let db = options().open(&inner).unwrap();
    fill(&db, 1);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&outer, &link).unwrap();
    for target in [&outer, &link] {
        is_refused(db.backup_to(target), "backup around its source");
        is_refused(salvage(&inner, target), "salvage around its source");
    }
    db.close().unwrap();
    is_refused(heal(&inner, &outer), "heal from around");
}

/// A storage that behaves as if one folder were mounted read-only.
#[derive(Debug)]
struct ReadOnlyMount(PathBuf);

impl ReadOnlyMount {
    fn check(&self, path: &Path) -> io::Result<()> {
        if path.starts_with(&self.0) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }
}

impl Storage for ReadOnlyMount {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.check(path)?;
        OsStorage.create_folder(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn StorageFile>> {
        if mode != OpenMode::Read {
            self.check(path)?;
        }
        OsStorage.open(path, mode)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        OsStorage.list(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(from).and_then(|()| self.check(to))?;
        OsStorage.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check(path)?;
        OsStorage.remove(path)
    }

    fn hard_link(&self, _: &Path, _: &Path) -> io::Result<()> {
        // The read-only folder counts as another device, and hard links cannot cross devices.
        Err(io::ErrorKind::CrossesDevices.into())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        OsStorage.sync_folder(path)
    }

    fn is_within(&self, inner: &Path, outer: &Path) -> io::Result<bool> {
        OsStorage.is_within(inner, outer)
    }

    fn lock(&self, path: &Path) -> io::Result<Result<Box<dyn StorageLock>, Option<u32>>> {
        self.check(path)?;
        OsStorage.lock(path)
    }
}

#[test]
fn a_database_on_read_only_media_is_backed_up_whole() {
    let folder = tempdir().unwrap();
    let (path, copy) = (folder.path().join("db"), folder.path().join("copy"));
    let db = options().open(&path).unwrap();
    fill(&db, 1);
    db.checkpoint().unwrap();
    fill(&db, 2);
    // This copy looks like a database after a crash: its log continues after the checkpoint.
    let crashed = folder.path().join("crashed");
    copy_folder(&path, &crashed);
    db.close().unwrap();
    for (source, copy) in [(&path, copy), (&crashed, folder.path().join("copy of crashed"))] {
        let before = names(source);
        let media = Arc::new(ReadOnlyMount(source.clone()));
        let refused = options().storage(media.clone()).open(source).unwrap_err();
        assert!(
            matches!(&refused, Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem),
            "{refused:?}"
        );
        let view = options().storage(media).read_only(true).open(source).unwrap();
        let report = view.backup_to(&copy).unwrap();
        assert_eq!(report.sequence, view.sequence());
        assert_eq!(names(source), before);
        let backup = options().open(&copy).unwrap();
        assert!(backup.verify().unwrap().is_sound());
        assert_eq!((backup.id(), backup.sequence()), (view.id(), view.sequence()));
        let report = diff(&view, &backup, |_| std::ops::ControlFlow::Continue(())).unwrap();
        assert!(report.is_equal(), "{report:?}");
        backup.table("events").unwrap().put("one", "more").unwrap();
    }
}

#[test]
fn a_backup_beside_a_writer_has_the_moment_of_the_view_and_heals_the_original() {
    let folder = tempdir().unwrap();
    let (path, copy) = (folder.path().join("db"), folder.path().join("copy"));
    let db = options().open(&path).unwrap();
    fill(&db, 1);
    db.checkpoint().unwrap();
    fill(&db, 2);
    let view = options().read_only(true).open(&path).unwrap();
    let (sequence, records) = (view.sequence(), records(&view));
    let early = folder.path().join("early");
    view.backup_to(&early).unwrap();
    // Compaction removes most segments that the view needs, and a new checkpoint replaces the one
    // from which the view was opened.
    for round in 3..6 {
        fill(&db, round);
    }
    db.compact().unwrap();
    db.checkpoint().unwrap();
    view.backup_to(&copy).unwrap();
    for copy in [&early, &copy] {
        let backup = options().open(copy).unwrap();
        assert_eq!((backup.sequence(), backup.id()), (sequence, db.id()));
        assert!(backup.verify().unwrap().is_sound());
        assert_eq!(self::records(&backup), records);
    }
    // A segment that is also in the last backup is damaged, and then healed from that backup.
    let late = folder.path().join("late");
    options()
        .read_only(true)
        .open(&path)
        .unwrap()
        .backup_to(&late)
        .unwrap();
    db.close().unwrap();
    let mut segments: Vec<PathBuf> = names(&path.join("log")).into_iter().collect();
    segments.retain(|path| path.extension().is_some_and(|ending| ending == "seg"));
    let mut bytes = std::fs::read(&segments[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segments[0], bytes).unwrap();
    let report = heal(&path, &late).unwrap();
    assert!(report.chunks_healed == 1 && report.is_healed(), "{report}");
    assert!(options().open(&path).unwrap().verify().unwrap().is_sound());
}

#[test]
fn a_view_with_commits_behind_the_durable_frontier_is_backed_up() {
    let folder = tempdir().unwrap();
    let (path, copy) = (folder.path().join("db"), folder.path().join("copy"));
    // With one byte of buffer, each buffered commit is written to the file at once.
    let options = || {
        options()
            .segment_bytes_first(64 << 10)
            .segment_bytes_max(64 << 10)
            .buffer_bytes(1)
    };
    let db = options().open(&path).unwrap();
    fill(&db, 1);
    let table = db.table("events").unwrap();
    for number in 200..300_u32 {
        let value = format!("late {number} {}", "y".repeat(100));
        table
            .put_with(number.to_be_bytes(), value, Durability::Buffered)
            .unwrap();
    }
    // The map of the active segment ends at the durable frontier, within the backup's first piece.
    let view = options().read_only(true).open(&path).unwrap();
    assert_eq!(records(&view).len(), 300);
    view.backup_to(&copy).unwrap();
    assert_eq!(records(&options().open(&copy).unwrap()), records(&view));
}

fn records(db: &Db) -> Vec<(Vec<u8>, Vec<u8>)> {
    let table = db.get_table("events").unwrap();
    let mut records: Vec<_> = table
        .iter()
        .map(|record| record.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
        .collect();
    records.sort();
    records
}
