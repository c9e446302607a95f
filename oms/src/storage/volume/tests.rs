//! Tests of the commit order, of groups, of a closed volume, and of the end of reservations.

use std::os::unix::fs::FileExt;

use super::*;
use crate::domain::order::Line;
use crate::storage::fence::{Fence, SlotOwnership};
use crate::storage::write_batch::WriteBatch;

/// Longest wait for an outcome, after which a test fails.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn delivery() -> Delivery {
    Delivery {
        store: 1,
        lines: [Line { id: 7, quantity: 1 }].into(),
        sequence: Some(1),
        ordinal: 0,
    }
}

#[tokio::test]
async fn batches_of_one_group_take_effect_in_order_of_submission() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let order = OrderId::parse("a").unwrap();
    for _ in 0..50 {
        let mut tickets = Vec::new();
        for step in 0..9 {
            let mut batch = WriteBatch::default();
            // The steps remove and write the row of one delivery in turn. The last step removes the
            // row.
            if step % 2 == 0 {
                batch.forget_delivery(&order, 1);
            } else {
                batch.delivery(&order, &delivery());
            }
            tickets.push(storage.permit().await.unwrap().send(batch));
        }
        for ticket in tickets {
            ticket.durable().await.unwrap();
        }
        assert_eq!(storage.load(&Slots::everything()).unwrap().deliveries.len(), 0);
    }
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn batches_of_tasks_that_are_ready_share_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Volume::open(folder.path()).unwrap());
    let counters = Arc::new(VolumeCounters::default());
    storage.count_commits(&counters);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let storage = Arc::clone(&storage);
        tasks.spawn(async move {
            let order = OrderId::parse(&format!("o{number}")).unwrap();
            let mut batch = WriteBatch::default();
            batch.delivery(&order, &delivery());
            let permit = storage.permit().await.unwrap();
            permit.send(batch).durable().await.unwrap();
        });
    }
    tasks.join_all().await;
    assert_eq!(counters.batches.load(Ordering::Relaxed), 50);
    assert_eq!(counters.commits.load(Ordering::Relaxed), 1);
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_group_without_a_durable_batch_is_not_counted_as_a_commit() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let counters = Arc::new(VolumeCounters::default());
    storage.count_commits(&counters);
    let counted = || {
        let [commits, batches] = [&counters.commits, &counters.batches];
        (commits.load(Ordering::Relaxed), batches.load(Ordering::Relaxed))
    };
    let commit = async |batch| storage.permit().await.unwrap().send(batch).durable().await;
    let mut batch = WriteBatch::default();
    batch.set_ownership(SlotOwnership(vec![7]));
    commit(batch).await.unwrap();
    assert_eq!(counted(), (1, 1));
    let mut batch = WriteBatch::default();
    batch.fence(Fence { slot: 0, epoch: 6 });
    assert!(matches!(commit(batch).await, Err(StorageError::Stale)));
    assert_eq!(
        counted(),
        (1, 1),
        "the fence rejected the only batch of the group"
    );
    // A database that has lost its lock accepts no more commits.
    std::fs::remove_file(folder.path().join("LOCK")).unwrap();
    let failed = commit(WriteBatch::default()).await;
    assert!(matches!(failed, Err(StorageError::Commit { .. })), "{failed:?}");
    assert_eq!(counted(), (1, 1), "the commit failed");
}

#[test]
fn a_volume_that_was_opened_without_a_runtime_commits_and_closes() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let mut batch = WriteBatch::default();
    batch.delivery(&OrderId::parse("a").unwrap(), &delivery());
    let mut ticket = storage.try_permit().unwrap().send(batch);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(ticket.answer()).unwrap();
    storage.close().unwrap();
}

/// Closes a volume while a permit is not used yet, uses the permit then, and returns the outcome.
async fn sent_after_the_end(storage: Arc<Volume>) -> Result<(), StorageError> {
    let permit = storage.try_permit()?;
    let closing = Arc::clone(&storage);
    let closed = tokio::task::spawn_blocking(move || closing.close()).await;
    closed.unwrap_or(Err(StorageError::Busy))?;
    let ticket = permit.send(WriteBatch::default());
    let outcome = tokio::time::timeout(PATIENCE, ticket.durable()).await;
    outcome.unwrap_or(Err(StorageError::Busy))
}

#[tokio::test]
async fn a_batch_with_a_permit_from_before_the_end_of_the_committer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Volume::open(folder.path()).unwrap());
    let outcome = sent_after_the_end(storage).await;
    assert!(matches!(outcome, Err(StorageError::Closed)), "{outcome:?}");
}

#[test]
fn a_late_batch_is_refused_also_without_a_runtime_at_the_opening() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Volume::open(folder.path()).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let outcome = runtime.block_on(sent_after_the_end(storage));
    assert!(matches!(outcome, Err(StorageError::Closed)), "{outcome:?}");
}

#[tokio::test]
async fn a_closed_volume_returns_closed_and_can_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Arc::new(Volume::open(folder.path()).unwrap());
    let again = Volume::open(folder.path()).err().unwrap();
    assert!(matches!(again, StorageError::Open { .. }), "{again}");
    let closing = Arc::clone(&storage);
    tokio::task::spawn_blocking(move || closing.close())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(storage.try_permit(), Err(StorageError::Closed)));
    assert!(matches!(
        storage.order(&OrderId::parse("a").unwrap()),
        Err(StorageError::Closed)
    ));
    Volume::open(folder.path()).unwrap();
}

#[tokio::test]
async fn only_the_first_of_several_removals_ends_a_reservation() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let order = OrderId::parse("a").unwrap();
    let lines = [Line { id: 7, quantity: 1 }];
    for _ in 0..50 {
        // The committer may commit these batches as one group or as several groups. The outcome of
        // each removal must be the same in both cases.
        let mut tickets = Vec::new();
        for is_put in [true, false, false, true, true, false, false] {
            let mut batch = WriteBatch::default();
            if is_put {
                batch.reserve_for(&order, 1, &lines, None);
            } else {
                batch.unreserve(&order, 1);
            }
            tickets.push(storage.permit().await.unwrap().send(batch));
        }
        let mut ended = Vec::new();
        for mut ticket in tickets {
            ended.push(ticket.answer().await.unwrap().reservations_ended);
        }
        assert_eq!(ended, [true, true, false, true, true, true, false]);
    }
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}

/// Changes a byte of the reservation's value in the log, or changes it back.
fn flip_reservation(folder: &Path, order: &OrderId) {
    let key = [order.as_bytes(), b"/1"].concat();
    for entry in std::fs::read_dir(folder.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(key.len()).position(|window| window == key) {
            let at = at + key.len();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[!bytes[at]], at as u64).unwrap();
            return;
        }
    }
    panic!("the reservation is in no file of {}", folder.display());
}

/// Units are released only if the commit found their reservation. With an unreadable row, the
/// committer cannot know that, so it must not guess.
#[tokio::test]
async fn a_batch_that_removes_an_unreadable_reservation_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Volume::open(folder.path()).unwrap();
    let order = OrderId::parse("order-with-a-damaged-row").unwrap();
    let other = OrderId::parse("other").unwrap();
    let lines = [Line { id: 7, quantity: 1 }];
    let mut batch = WriteBatch::default();
    batch.reserve_for(&order, 1, &lines, None);
    storage
        .permit()
        .await
        .unwrap()
        .send(batch)
        .durable()
        .await
        .unwrap();
    let unreserve = || {
        let mut batch = WriteBatch::default();
        batch.unreserve(&order, 1);
        batch
    };
    // An open after a checkpoint does not read the row. So the first look-up finds the damage.
    let closing = tokio::task::spawn_blocking(move || {
        storage.checkpoint()?;
        storage.close()
    });
    closing.await.unwrap().unwrap();
    flip_reservation(folder.path(), &order);
    let storage = Volume::open(folder.path()).unwrap();
    let counters = Arc::new(VolumeCounters::default());
    storage.count_commits(&counters);
    let mut batch = WriteBatch::default();
    batch.delivery(&other, &delivery());
    // The committer may commit these batches as one group or as several groups.
    let mut tickets = Vec::new();
    for batch in [unreserve(), batch, unreserve()] {
        tickets.push(storage.permit().await.unwrap().send(batch));
    }
    for (at, mut ticket) in tickets.into_iter().enumerate() {
        let outcome = ticket.answer().await;
        if at == 1 {
            assert!(outcome.unwrap().reservations_ended);
        } else {
            assert!(matches!(outcome, Err(StorageError::Read { .. })), "{outcome:?}");
        }
    }
    flip_reservation(folder.path(), &order);
    for expected in [true, false] {
        let mut ticket = storage.permit().await.unwrap().send(unreserve());
        assert_eq!(ticket.answer().await.unwrap().reservations_ended, expected);
    }
    let batches = counters.batches.load(Ordering::Relaxed);
    assert_eq!(batches, 3, "the failed batches are not counted");
    tokio::task::spawn_blocking(move || storage.close())
        .await
        .unwrap()
        .unwrap();
}
