//! Scans of a folder with whole, incomplete, changing, hostile and implausibly named files.

use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::outbox::OutboxLimits;
use crate::runtime::clock::{Clock, StepWatch};
use crate::storage::owned_slots::Slots;
use crate::storage::volume::Volume;
use crate::storage::write_batch::WriteBatch;
use crate::volume::jobs::retention::{Removed, remove_expired};
use crate::volume::jobs::stat_import::watched::INCOMPLETE_TIMEOUT;
use crate::volume::state::VolumeState;

/// Time of the clock at the start of these tests, in UTC milliseconds: a moment in 2026.
const NOW_MS: u64 = 1_780_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// A scanner with a folder and a volume of its own, and a clock that only the test changes.
struct World {
    folder: tempfile::TempDir,
    _volume: tempfile::TempDir,
    clock: Arc<AtomicU64>,
    importer: Arc<Importer>,
    scanner: Scanner<Importer>,
}

impl World {
    fn new() -> World {
        let (folder, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let clock = Arc::new(AtomicU64::new(NOW_MS));
        let storage = Arc::new(Volume::open(volume.path()).unwrap());
        let slots = Arc::new(Slots::everything());
        let loaded = storage.load(&slots).unwrap();
        let manual = Clock::Manual(Arc::clone(&clock));
        let state = VolumeState::new(storage, slots, loaded, OutboxLimits::default(), manual, None);
        let counters = Arc::default();
        let importer = Importer::new(Arc::new(state), Arc::default(), Arc::clone(&counters));
        let importer = Arc::new(importer);
        let clock_of_scans = Clock::Manual(Arc::clone(&clock));
        let scanner = Scanner::new(
            folder.path().to_owned(),
            Arc::clone(&importer),
            counters,
            clock_of_scans,
        );
        World {
            folder,
            _volume: volume,
            clock,
            importer,
            scanner,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn append(&self, name: &str, text: &str) {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().append(true).open(self.path(name));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Returns the units sold of product 5.
    fn units(&self) -> u128 {
        self.importer.statistics.read().product(5).total_qty
    }

    async fn scan(&mut self, times: usize) {
        for _ in 0..times {
            self.scanner.scan().await;
        }
    }

    fn counters(&self) -> [u64; 3] {
        let counters = &self.scanner.counters;
        [
            &counters.stat_files,
            &counters.stat_files_waiting,
            &counters.stat_files_set_aside,
        ]
        .map(|counter| counter.load(Ordering::Relaxed))
    }
}

fn stat_name(at_ms: u64) -> String {
    format!("stat_{at_ms:015}.csv")
}

#[tokio::test]
async fn a_file_is_added_by_the_second_scan_that_sees_it_unchanged() {
    let mut world = World::new();
    let name = stat_name(NOW_MS);
    world.write(&name, "5,2,10\n");
    world.scan(1).await;
    assert_eq!((world.units(), world.counters()), (0, [0, 1, 0]));
    world.append(&name, "5,1,10\n");
    world.scan(1).await;
    assert_eq!(world.units(), 0, "the file changed between two scans");
    world.scan(1).await;
    assert_eq!((world.units(), world.counters()), (3, [1, 0, 0]));
    assert!(!world.path(&name).exists());
}

#[tokio::test]
async fn an_empty_file_is_added_once_it_has_lines() {
    let mut world = World::new();
    let name = stat_name(NOW_MS);
    world.write(&name, "");
    world.scan(4).await;
    assert!(world.path(&name).exists());
    assert!(!world.importer.state.storage.knows_stat_file(&name).unwrap());
    assert_eq!(world.counters(), [0, 1, 0]);
    world.append(&name, "5,7,10\n");
    world.scan(2).await;
    assert_eq!(world.units(), 7);
}

/// A writer that stalls may leave a last line without a line break. The partial line may look like
/// a different valid line.
#[tokio::test]
async fn a_file_with_an_incomplete_last_line_is_not_added() {
    let mut world = World::new();
    let name = stat_name(NOW_MS);
    world.write(&name, "5,11,1");
    world.scan(4).await;
    assert_eq!((world.units(), world.counters()), (0, [0, 1, 0]));
    world.write(&name, "5,1110,1\n");
    world.scan(2).await;
    assert_eq!((world.units(), world.counters()), (1_110, [1, 0, 0]));
}

#[tokio::test(start_paused = true)]
async fn an_incomplete_file_is_set_aside_whole_after_the_timeout() {
    let mut world = World::new();
    let (empty, unfinished) = (stat_name(NOW_MS), stat_name(NOW_MS + 1));
    world.write(&empty, "");
    world.write(&unfinished, "5,1,1\n5,2");
    world.scan(2).await;
    tokio::time::advance(INCOMPLETE_TIMEOUT - Duration::from_secs(1)).await;
    world.scan(1).await;
    assert_eq!(world.counters(), [0, 2, 0]);
    tokio::time::advance(Duration::from_secs(1)).await;
    world.scan(1).await;
    assert_eq!((world.units(), world.counters()), (0, [0, 0, 2]));
    let aside = std::fs::read_to_string(world.path(&format!("{unfinished}.rejected")));
    assert_eq!(aside.unwrap(), "5,1,1\n5,2");
    assert!(world.path(&format!("{empty}.rejected")).exists());
}

#[tokio::test]
async fn entries_that_are_no_regular_files_are_set_aside_unread() {
    let mut world = World::new();
    let names: Vec<String> = (0..5).map(|at| stat_name(NOW_MS + at)).collect();
    runtime::regular_file::tests::make_fifo(&world.path(&names[0]));
    std::fs::create_dir(world.path(&names[1])).unwrap();
    symlink(world.path(&names[2]), world.path(&names[2])).unwrap();
    symlink("/dev/zero", world.path(&names[3])).unwrap();
    world.write(&names[4], "5,3,1\n");
    world.scan(2).await;
    assert_eq!((world.units(), world.counters()), (3, [1, 0, 4]));
    for name in &names[..4] {
        let aside = world.path(&format!("{name}.rejected"));
        assert!(aside.symlink_metadata().is_ok(), "{name}");
    }
}

#[tokio::test]
async fn setting_a_file_aside_replaces_no_other_file() {
    let mut world = World::new();
    let name = stat_name(NOW_MS);
    for body in ["5,one,1\n", "5,two,1\n"] {
        world.write(&name, body);
        world.scan(2).await;
    }
    let read = |aside: &str| std::fs::read_to_string(world.path(&format!("{name}{aside}"))).unwrap();
    assert_eq!(read(".rejected"), "5,one,1\n");
    assert_eq!(read(".rejected.2"), "5,two,1\n");
}

#[tokio::test]
async fn a_file_changed_after_it_was_added_is_set_aside() {
    let mut world = World::new();
    let name = stat_name(NOW_MS);
    world.write(&name, "5,1,1\n");
    let found = folder::look(world.folder.path()).unwrap();
    let stamp = found[0].kind.unwrap();
    world.append(&name, "5,9,1\n");
    world
        .scanner
        .add(&name, stamp, b"5,1,1\n".to_vec())
        .await
        .unwrap();
    assert_eq!(world.units(), 1);
    let aside = std::fs::read_to_string(world.path(&format!("{name}.rejected")));
    assert_eq!(aside.unwrap(), "5,1,1\n5,9,1\n");
}

/// The result of a retention pass that removes the stored name of one file.
const ONE_NAME: Removed = Removed { answers: 0, names: 1 };

/// Runs one retention pass with a clock that has made no step.
async fn run_retention_once(state: &Arc<VolumeState>) -> Removed {
    let mut steps = StepWatch::new(&state.clock, Duration::from_millis(DAY_MS));
    remove_expired(state, &mut steps).await.unwrap()
}

#[tokio::test]
async fn a_name_far_ahead_of_the_clock_is_set_aside_and_later_files_are_added() {
    let mut world = World::new();
    let ahead = "stat_999999999999999.csv";
    world.write(ahead, "5,100,1\n");
    world.write(&stat_name(NOW_MS + DAY_MS), "5,1,1\n");
    world.scan(2).await;
    assert_eq!((world.units(), world.counters()), (1, [1, 0, 1]));
    assert!(world.path(&format!("{ahead}.rejected")).exists());
    // Eight days later, the stored name of the one file that was added is removed. Its name becomes
    // the mark.
    let later_ms = NOW_MS + 8 * DAY_MS;
    world.clock.store(later_ms, Ordering::Relaxed);
    assert_eq!(run_retention_once(&world.importer.state).await, ONE_NAME);
    world.write(&stat_name(later_ms), "5,2,1\n");
    world.scan(2).await;
    assert_eq!(world.units(), 3);
    world.write(&stat_name(NOW_MS), "5,50,1\n");
    world.scan(2).await;
    assert_eq!(world.units(), 3, "a file older than the mark is not added");
}

/// Earlier releases accepted a file name with any time. So the stored mark (the removed name with
/// the latest time) may be ahead of the clock, and must be ignored then.
#[tokio::test]
async fn a_mark_of_an_earlier_version_ahead_of_the_clock_does_not_block_later_files() {
    let mut world = World::new();
    let state = Arc::clone(&world.importer.state);
    let newest = "stat_999999999999999.csv";
    let commit = async |batch: WriteBatch| {
        let permit = state.storage.permit().await.unwrap();
        permit.send(batch).durable().await.unwrap();
    };
    let mut batch = WriteBatch::default();
    batch.stat_file(newest, NOW_MS - 8 * DAY_MS, &Default::default());
    commit(batch).await;
    assert_eq!(run_retention_once(&state).await, ONE_NAME);
    assert_eq!(state.storage.stat_files_forgotten().unwrap(), None);
    let mut batch = WriteBatch::default();
    batch.forget_stat_files([newest], Some(newest));
    commit(batch).await;
    world.write(&stat_name(NOW_MS), "5,2,1\n");
    world.scan(2).await;
    assert_eq!(world.units(), 2);
}

#[tokio::test]
async fn files_of_one_name_count_once_for_each_folder() {
    let world = World::new();
    let name = stat_name(NOW_MS);
    let add = async |folder: &str, body: &str| {
        let key = format!("{folder}/{name}");
        world.importer.add(&key, &name, body.as_bytes()).await.unwrap()
    };
    assert_eq!(add("ada-1", "5,2,10\n").await, Imported::Added);
    assert_eq!(add("bob-2", "5,7,10\n").await, Imported::Added);
    // The nodes of both folders send their files again, as if the answers had been lost.
    assert_eq!(add("ada-1", "5,2,10\n").await, Imported::Known);
    assert_eq!(add("bob-2", "5,7,10\n").await, Imported::Known);
    assert_eq!((world.units(), world.counters()), (9, [2, 0, 0]));
    let refused = add("cy-3", "5,x,10\n").await;
    assert!(
        matches!(&refused, Imported::Refused(reason) if reason.contains("line 1")),
        "{refused:?}"
    );
    assert_eq!(world.units(), 9);
}

#[tokio::test]
async fn files_that_arrive_at_the_same_time_all_count() {
    let world = World::new();
    let mut adding = tokio::task::JoinSet::new();
    for node in 0..20 {
        let importer = Arc::clone(&world.importer);
        adding.spawn(async move {
            let name = stat_name(NOW_MS);
            let key = format!("node-{node}/{name}");
            importer.add(&key, &name, b"5,1,10\n").await.unwrap()
        });
    }
    assert!(
        adding
            .join_all()
            .await
            .iter()
            .all(|fate| *fate == Imported::Added)
    );
    assert_eq!(world.units(), 20);
}

#[tokio::test]
async fn a_file_of_a_folder_is_refused_once_its_name_is_no_longer_stored() {
    let world = World::new();
    let name = stat_name(NOW_MS);
    let key = format!("ada-1/{name}");
    world.importer.add(&key, &name, b"5,1,10\n").await.unwrap();
    world.clock.store(NOW_MS + 8 * DAY_MS, Ordering::Relaxed);
    let mut steps = StepWatch::new(&world.importer.state.clock, Duration::from_millis(DAY_MS));
    remove_expired(&world.importer.state, &mut steps).await.unwrap();
    assert!(!world.importer.state.storage.knows_stat_file(&key).unwrap());
    let again = world.importer.add(&key, &name, b"5,1,10\n").await.unwrap();
    assert!(matches!(again, Imported::Refused(_)), "{again:?}");
    assert_eq!(world.units(), 1);
}
