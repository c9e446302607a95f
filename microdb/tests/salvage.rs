//! Tests of salvage: after damage, readable records are saved, no wrong value is saved, and the
//! manifest tells if anything is missing.

#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::disk::Disk;
use crate::support::image::{Content, Image};
use crate::support::random::Random;
use crate::support::workload::{Change, Model, Op, ROOT, Run, Shape, chain, read, shown};
use microdb::{Durability, Error, Manifest, Options, Sequence, salvage};

const SAVED: &str = "/data/saved";

/// A closed database, its content, and every pair of key and value that it ever contained.
struct Subject {
    shape: Shape,
    image: Image,
    model: Model,
    ever: BTreeSet<(Vec<u8>, Vec<u8>)>,
}

fn subject(seed: u64) -> Subject {
    let mut random = Random::new(seed);
    let shape = Shape::draw(&mut random);
    let mut run = Run::open(Disk::default(), shape, &Run::nothing()).unwrap();
    let mut ever = BTreeSet::new();
    for number in 0..40 {
        let op = Op::draw_alone(&mut random, number);
        run.step(&op).unwrap();
        if let Op::Batch(changes, _) = op {
            ever.extend(changes.into_iter().filter_map(|change| match change {
                Change::Put(_, key, value) => Some((key, value)),
                Change::Delete(..) => None,
            }));
        }
    }
    run.close().unwrap();
    let model = Model::clone(&run.last().model);
    Subject {
        shape,
        image: run.disk.image(),
        model,
        ever,
    }
}

fn files(image: &Image) -> Vec<(PathBuf, usize)> {
    image
        .files()
        .into_iter()
        .filter(|(path, node)| image.file(*node).len() > 0 && !path.ends_with("LOCK"))
        .collect()
}

/// Salvages a damaged copy of the subject. Returns the manifest and the salvaged content, or `None`
/// if nothing of a database was left.
fn saved(subject: &Subject, image: Image, what: &str) -> Option<(Manifest, Model)> {
    let before = image.clone();
    let disk = Disk::unrecorded(image);
    let manifest = match subject.shape.options(&disk).salvage(ROOT, SAVED) {
        Ok(manifest) => manifest,
        Err(Error::NotADatabase { .. }) => return None,
        Err(error) => panic!("{what}: {}", chain(&error)),
    };
    let after = disk.image();
    for (path, node) in before.files() {
        let now = after.file(after.find(&path).unwrap());
        assert!(now == before.file(node), "{what}: {} was changed", path.display());
    }
    let db = subject.shape.options(&disk).open(SAVED).unwrap();
    let model = read(&db).unwrap();
    assert!(db.verify().unwrap().is_sound());
    let records: usize = model.values().map(std::collections::BTreeMap::len).sum();
    assert_eq!(manifest.records, records as u64);
    for records in model.values() {
        for (key, value) in records {
            let known = subject.ever.contains(&(key.clone(), value.clone()));
            assert!(
                known,
                "{what}: {} never had this value\n{manifest}",
                key.escape_ascii()
            );
        }
    }
    Some((manifest, model))
}

/// Checks the salvage after one damage: if the saved content differs from the original one,
/// `is_complete` of the manifest must return `false`.
fn judge(subject: &Subject, image: Image, what: &str) {
    let Some((manifest, model)) = saved(subject, image, what) else {
        return;
    };
    if model != subject.model {
        assert!(
            !manifest.is_complete(),
            "{what}: something is missing and not on the list\n{manifest}"
        );
    }
}

#[test]
fn a_sound_database_is_copied_whole() {
    for seed in 1..=20 {
        let subject = subject(seed);
        let (manifest, model) = saved(&subject, subject.image.clone(), "nothing").unwrap();
        assert!(manifest.is_complete(), "{manifest}");
        let (found, expected) = (shown(&model), shown(&subject.model));
        assert!(
            model == subject.model,
            "seed {seed}: {found}\n{expected}\n{manifest}"
        );
        assert!(manifest.notes.is_empty(), "{manifest}");
    }
}

#[test]
fn every_loss_of_one_damage_is_listed() {
    for seed in 1..=6 {
        let subject = subject(seed);
        let mut random = Random::new(seed);
        for (path, node) in files(&subject.image) {
            let bytes = subject.image.file(node).bytes();
            let with = |bytes: &[u8]| {
                let mut image = subject.image.clone();
                *image.file_mut(node) = Content::of(bytes);
                image
            };
            let name = path.display();
            for _ in 0..120 {
                let mut damaged = bytes.clone();
                let at = random.index(damaged.len());
                damaged[at] ^= 1 << random.below(8);
                judge(
                    &subject,
                    with(&damaged),
                    &format!("seed {seed}: a bit of byte {at} of {name}"),
                );
            }
            for _ in 0..25 {
                let (at, len) = (random.index(bytes.len()), 1 + random.index(600));
                let mut damaged = bytes.clone();
                let end = (at + len).min(bytes.len());
                let rubbish = random.chance(1, 2);
                damaged[at..end]
                    .iter_mut()
                    .for_each(|byte| *byte = if rubbish { random.next() as u8 } else { 0 });
                judge(
                    &subject,
                    with(&damaged),
                    &format!("seed {seed}: bytes {at} to {end} of {name}"),
                );
                judge(
                    &subject,
                    with(&bytes[..at]),
                    &format!("seed {seed}: {name} cut to {at}"),
                );
            }
            let mut image = subject.image.clone();
            let (folder, entry) = image.parent(&path).unwrap();
            image.folder_mut(folder).remove(&entry);
            judge(&subject, image, &format!("seed {seed}: without {name}"));
        }
    }
}

/// A record that compaction has copied has no sequence number of its own, so no gap in the numbers
/// reveals its loss. The manifest must still list a truncated segment.
#[test]
fn a_segment_truncated_anywhere_is_listed() {
    for seed in 1..=60 {
        let subject = subject(seed);
        let mut random = Random::new(seed);
        let segments = files(&subject.image)
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"));
        for (path, node) in segments {
            let bytes = subject.image.file(node).bytes();
            let anywhere = std::iter::repeat_with(|| random.index(bytes.len())).take(6);
            for at in [0, 68, 96, 97].into_iter().chain(anywhere) {
                let mut image = subject.image.clone();
                *image.file_mut(node) = Content::of(&bytes[..at.min(bytes.len())]);
                let name = path.display();
                judge(&subject, image, &format!("seed {seed}: {name} cut to {at}"));
            }
        }
    }
}

#[test]
fn many_damages_at_once_give_no_wrong_value() {
    for seed in 1..=40 {
        let subject = subject(seed % 8);
        let mut random = Random::new(seed);
        let mut image = subject.image.clone();
        for (_, node) in files(&subject.image) {
            if random.chance(2, 3) {
                let mut bytes = image.file(node).bytes();
                for _ in 0..1 + random.below(6) {
                    let at = random.index(bytes.len());
                    let end = (at + random.index(100)).min(bytes.len());
                    bytes[at..end]
                        .iter_mut()
                        .for_each(|byte| *byte = random.next() as u8);
                }
                *image.file_mut(node) = Content::of(&bytes);
            }
        }
        _ = saved(&subject, image, &format!("seed {seed}"));
    }
}

/// Creates a database on the real disk: 100 keys, one of them overwritten and one deleted, a
/// checkpoint, and then a further put. Returns its path.
fn shop(folder: &Path) -> PathBuf {
    let path = folder.join("shop");
    let options = Options::new().segment_bytes_first(64 << 10).background(false);
    let db = options.durability(Durability::Buffered).open(&path).unwrap();
    let table = db.table("stock").unwrap();
    for number in 0..100 {
        table
            .put(format!("key {number}"), format!("first value of {number}"))
            .unwrap();
    }
    table.put("key 7", "SECOND-OF-7").unwrap();
    table.delete("key 8").unwrap();
    db.checkpoint().unwrap();
    table.put("key 9", "LATE-OF-9").unwrap();
    db.close().unwrap();
    path
}

/// Flips a bit at `behind` bytes after the start of the first occurrence of `text`.
fn damage(path: &Path, text: &str, behind: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .unwrap();
    bytes[at + behind] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_lost_record_and_its_stale_value_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    damage(&path.join("log/0000000001.seg"), "SECOND-OF-7", 2);
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    assert_eq!(manifest.losses.len(), 1, "{manifest}");
    let loss = &manifest.losses[0];
    assert_eq!(
        (loss.records_lost, loss.live_records_lost, &loss.tables[..]),
        (Some(1), Some(1), &["stock".to_owned()][..])
    );
    assert_eq!(loss.sequences, Some((Sequence(102), Sequence(102))));
    assert_eq!(loss.keys[0].key, b"key 7");
    assert_eq!(
        (manifest.stale_keys, &manifest.stale[0].key[..]),
        (1, &b"key 7"[..])
    );
    let text = std::fs::read_to_string(folder.path().join("saved/SALVAGE.txt")).unwrap();
    assert!(text.contains("key 7") && text.contains("commit 102"), "{text}");
    let db = microdb::Db::open(folder.path().join("saved")).unwrap();
    let table = db.table("stock").unwrap();
    assert_eq!(table.len(), 99);
    assert_eq!(
        table.get("key 7").unwrap().as_deref(),
        Some(&b"first value of 7"[..])
    );
    assert_eq!(table.get("key 9").unwrap().as_deref(), Some(&b"LATE-OF-9"[..]));
}

#[test]
fn commits_in_a_segment_that_compaction_removed_are_not_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop");
    let options = Options::new().segment_bytes_first(4096).segment_bytes_max(4096);
    let options = options.durability(Durability::Buffered).background(false);
    let db = options.open(&path).unwrap();
    let table = db.table("stock").unwrap();
    let segment_count = || db.stats().segments.len();
    for number in (0..).take_while(|_| segment_count() < 2) {
        table.put(format!("key {number}"), [1; 500]).unwrap();
    }
    for _ in (0..).take_while(|_| segment_count() < 5) {
        table.put("overwritten", [2; 500]).unwrap();
    }
    db.wait_idle().unwrap();
    db.checkpoint().unwrap();
    let ids: Vec<u64> = db.stats().segments.iter().map(|segment| segment.id).collect();
    assert!(
        ids[0] == 1 && ids.windows(2).any(|two| two[0] + 1 < two[1]),
        "{ids:?}"
    );
    let records = table.len();
    drop(table);
    db.close().unwrap();
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    assert!(
        manifest.is_complete() && manifest.records == records,
        "{manifest}"
    );
    // The same gap behind a damaged segment is listed with the damage.
    for id in &ids[..ids.len() - 1] {
        let segment = path.join(format!("log/{id:010}.seg"));
        let whole = std::fs::read(&segment).unwrap();
        std::fs::write(&segment, &whole[..whole.len() - 100]).unwrap();
        let manifest = salvage(&path, folder.path().join(format!("without-{id}"))).unwrap();
        assert!(!manifest.is_complete(), "{manifest}");
        std::fs::write(&segment, &whole).unwrap();
    }
}

/// A table without a known name is named after its id, and another table may have that name.
#[test]
fn a_table_without_a_name_is_not_merged_with_a_table_that_has_the_fallback_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop");
    let db = Options::new().background(false).open(&path).unwrap();
    // The first two tables have the ids 1 and 2.
    db.table("recovered-2").unwrap().put("key", "named").unwrap();
    db.table("NAMELESS").unwrap().put("key", "nameless").unwrap();
    db.close().unwrap();
    damage(&path.join("log/0000000001.seg"), "NAMELESS", 0);
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    let db = microdb::Db::open(folder.path().join("saved")).unwrap();
    let names: Vec<_> = db.tables().into_iter().map(|table| table.name).collect();
    assert_eq!(names.len(), 2, "{names:?}\n{manifest}");
    let values: BTreeSet<_> = names
        .iter()
        .map(|name| db.table(name).unwrap().get("key").unwrap().unwrap().to_vec())
        .collect();
    assert_eq!(values, BTreeSet::from([b"named".to_vec(), b"nameless".to_vec()]));
}

#[test]
fn a_lost_file_is_listed_once() {
    for is_unreadable in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = shop(folder.path());
        let segment = path.join("log/0000000001.seg");
        std::fs::remove_file(&segment).unwrap();
        if is_unreadable {
            // A link to itself cannot be opened.
            std::os::unix::fs::symlink(&segment, &segment).unwrap();
        }
        let manifest = salvage(&path, folder.path().join("saved")).unwrap();
        let lost: Vec<_> = manifest.losses.iter().map(|loss| &loss.path).collect();
        assert_eq!(lost, [&segment], "{manifest}");
        assert!(manifest.losses[0].sequences.is_some(), "{manifest}");
    }
}

#[test]
fn missing_commits_are_listed_with_the_lost_file_and_not_with_a_later_damaged_commit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop");
    let options = Options::new().segment_bytes_first(64 << 10).background(false);
    let db = options.durability(Durability::Buffered).open(&path).unwrap();
    let table = db.table("stock").unwrap();
    for number in 0..24 {
        let value = format!("<{number}>").repeat(2_000);
        table.put(format!("key {number}"), value).unwrap();
    }
    db.close().unwrap();
    let lost = path.join("log/0000000002.seg");
    let (before, after) = (path.join("log/0000000001.seg"), path.join("log/0000000003.seg"));
    let holds = |file: &Path, number: &u64| {
        let bytes = std::fs::read(file).unwrap();
        let key = format!("key {number}<");
        bytes.windows(key.len()).any(|window| window == key.as_bytes())
    };
    let last = (0..24).rfind(|number| holds(&before, number)).unwrap();
    let first = (0..24).find(|number| holds(&after, number)).unwrap();
    assert!(first > last + 1);
    std::fs::remove_file(&lost).unwrap();
    damage(&after, &format!("key {first}<"), 400);
    // A segment with a valid header would show the missing commits itself.
    let mut bytes = std::fs::read(&after).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&after, bytes).unwrap();
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    // The creation of the table is commit 1.
    let commit = |number: u64| Sequence(number + 2);
    let of = |file: &Path| {
        let loss = manifest.losses.iter().find(|loss| loss.path == file);
        loss.unwrap_or_else(|| panic!("{manifest}")).sequences
    };
    let missing = Some((commit(last + 1), commit(first - 1)));
    assert_eq!(of(&lost), missing, "{manifest}");
    assert_eq!(of(&after), Some((commit(first), commit(first))), "{manifest}");
}

#[test]
fn the_manifest_counts_the_lost_keys_that_it_does_not_list() {
    const RECORDS: usize = 2_200;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop");
    let options = Options::new().segment_bytes_first(1 << 20).background(false);
    let db = options.open(&path).unwrap();
    let (table, mut batch) = (db.table("stock").unwrap(), db.batch());
    for number in 0..RECORDS {
        batch.put(&table, format!("key {number:04}"), format!("value {number:04}"));
    }
    batch.commit().unwrap();
    drop(table);
    db.close().unwrap();
    // Salvage knows the key of a damaged record only if the record is followed by a readable one or
    // by the end of its frame.
    let segment = path.join("log/0000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let mut damaged = 0;
    for at in 0..bytes.len() - 10 {
        if bytes[at..].starts_with(b"value ") && bytes[at + 9].is_multiple_of(2) {
            bytes[at] ^= 4;
            damaged += 1;
        }
    }
    assert_eq!(damaged, RECORDS / 2);
    std::fs::write(&segment, bytes).unwrap();
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    let [loss] = &manifest.losses[..] else {
        panic!("{manifest}");
    };
    assert_eq!((loss.keys.len(), loss.keys_left_off), (1_000, 100), "{manifest}");
    let text = manifest.to_string();
    assert!(text.contains(" and 1080 more"), "{text}");
}

#[test]
fn a_lost_deletion_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    let segment = path.join("log/0000000001.seg");
    let bytes = std::fs::read(&segment).unwrap();
    // The last occurrence of the key is its tombstone.
    let at = bytes.windows(5).rposition(|window| window == b"key 8").unwrap();
    let mut damaged = bytes.clone();
    damaged[at - 60..at + 5].fill(0);
    std::fs::write(&segment, damaged).unwrap();
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    let stale: Vec<_> = manifest.stale.iter().map(|stale| &stale.key[..]).collect();
    assert!(stale.contains(&&b"key 8"[..]), "{manifest}");
    // Without the checkpoint, salvage cannot know that a tombstone is lost. So the manifest only
    // warns.
    std::fs::remove_dir_all(path.join("directory")).unwrap();
    let manifest = salvage(&path, folder.path().join("again")).unwrap();
    assert!(
        manifest.stale.is_empty() && !manifest.warnings.is_empty(),
        "{manifest}"
    );
}

#[test]
fn records_behind_a_damaged_frame_header_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    damage(&path.join("log/0000000001.seg"), "LATE-OF-9", 0);
    let text = "key 50first";
    let segment = path.join("log/0000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .unwrap();
    // The key begins after 48 bytes of frame header and 7 bytes of record header, so `at - 40` is
    // in the frame header.
    bytes[at - 40] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    let loss = &manifest.losses[0];
    assert_eq!(
        (loss.records_recovered, loss.sequences),
        (1, Some((Sequence(52), Sequence(52)))),
        "{manifest}"
    );
    assert_eq!(manifest.losses[1].keys[0].key, b"key 9");
    let db = microdb::Db::open(folder.path().join("saved")).unwrap();
    assert!(db.table("stock").unwrap().contains_key("key 50").unwrap());
}

#[test]
fn the_log_alone_is_sufficient() {
    let folder = tempfile::tempdir().unwrap();
    let path = shop(folder.path());
    std::fs::remove_file(path.join("SUPER")).unwrap();
    std::fs::remove_dir_all(path.join("directory")).unwrap();
    let manifest = salvage(&path, folder.path().join("saved")).unwrap();
    assert!(manifest.losses.is_empty() && manifest.records == 99, "{manifest}");
    assert!(matches!(
        salvage(folder.path().join("none"), folder.path().join("x")),
        Err(Error::NotADatabase { .. })
    ));
    assert!(matches!(
        salvage(&path, folder.path().join("saved")),
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(
        salvage(&path, path.join("within")),
        Err(Error::Invalid { .. })
    ));
}
