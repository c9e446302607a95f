//! Retention: removes stored responses of idempotency keys after a day, and names of statistics
//! files a week after the file was added.
//!
//! **Invariants**
//! - The age of a file's name is measured from the addition of the file, not from the time in the
//!   name.
//! - Of the plausible removed names, the one with the latest time remains as a mark
//!   (`stat_import::name`). A file with a time up to that of the mark and without a stored name may
//!   have been added before. Such a file is renamed and not added, because adding it twice would be
//!   worse.
//! - A step of the clock while this job runs does not shorten the time for which a response is
//!   stored.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{StorageError, with_causes};
use crate::runtime;
use crate::runtime::clock::{StepWatch, Watched};
use crate::runtime::watch;
use crate::storage::write_batch::WriteBatch;
use crate::volume::jobs::stat_import::name::next_mark;
use crate::volume::state::VolumeState;

/// Interval between two passes that remove expired rows.
const PASS_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Minimum time for which a response is stored, in milliseconds.
const ANSWERS_KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// Time for which the name of an added statistics file is stored, in milliseconds. The name is
/// needed if a crash prevented the deletion of the added file. The next scan finds that file again
/// within minutes, so a week is long enough.
const STAT_NAMES_KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// Maximum number of rows removed by one commit. With more rows, orders that share the sync of the
/// commit would be delayed.
const ROWS_AT_ONCE: usize = 1_000;

/// Removes expired rows at each interval until `stop` becomes `true`.
pub(crate) async fn run(state: Arc<VolumeState>, mut stop: watch::Receiver<bool>) {
    let mut steps = StepWatch::new(&state.clock, Duration::from_millis(ANSWERS_KEPT_MS));
    loop {
        match remove_expired(&state, &mut steps).await {
            Ok(removed) if removed == Removed::default() => {}
            Ok(Removed { answers, names }) => {
                tracing::info!(answers, names, "expired answers and file names removed");
            }
            Err(StorageError::Closed) => {}
            Err(error) => tracing::warn!(error = with_causes(&error), "removal of expired rows failed"),
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(PASS_INTERVAL) => {}
        }
    }
}

/// Returns the range of times of the responses to keep, in UTC milliseconds.
///
/// After a step of the clock forward, responses look older than they are. So for a day, the step is
/// subtracted from the clock. A response with a time in the future was stored while the clock was
/// ahead. Once the clock has been watched for a day without a step back, such a response is at
/// least a day old and is removed.
fn answers_kept(watched: Watched) -> RangeInclusive<u64> {
    let trusted_ms = watched.wall_ms.saturating_sub(watched.forward_ms);
    let last_ms = if watched.is_steady {
        watched.wall_ms
    } else {
        u64::MAX
    };
    trusted_ms.saturating_sub(ANSWERS_KEPT_MS)..=last_ms
}

/// Number of removed rows of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// Number of removed responses of idempotency keys.
    pub(crate) answers: usize,
    /// Number of removed names of statistics files.
    pub(crate) names: usize,
}

/// Removes the responses with times outside of `answers_kept`, and the names of statistics files
/// that are older than `STAT_NAMES_KEPT_MS`.
pub(crate) async fn remove_expired(
    state: &Arc<VolumeState>,
    steps: &mut StepWatch,
) -> Result<Removed, StorageError> {
    let watched = steps.read_clock(&state.clock);
    let now_ms = watched.wall_ms;
    let looking = Arc::clone(state);
    let looked = runtime::blocking(move || {
        let answers = looking.storage.answers_outside(&answers_kept(watched))?;
        let kept_from_ms = now_ms.saturating_sub(STAT_NAMES_KEPT_MS);
        let names = match looking.slots.has_statistics() {
            true => looking.storage.stat_files_before(kept_from_ms)?,
            // Only the volume that owns the statistics removes the names.
            false => Vec::new(),
        };
        Ok((answers, names))
    });
    // If the search panicked, nothing is removed in this pass. The panic has been logged.
    let (answers, names): (Vec<Vec<u8>>, Vec<String>) =
        looked.await.unwrap_or_else(|_| Ok((Vec::new(), Vec::new())))?;
    for part in answers.chunks(ROWS_AT_ONCE) {
        let mut batch = WriteBatch::default();
        part.iter().for_each(|key| batch.forget_answer(key));
        state.storage.permit().await?.send(batch).durable().await?;
    }
    for part in names.chunks(ROWS_AT_ONCE) {
        let part = || part.iter().map(String::as_str);
        let mark = state.storage.stat_files_forgotten()?;
        let mut batch = WriteBatch::default();
        batch.forget_stat_files(part(), next_mark(mark.as_deref(), part(), now_ms));
        state.storage.permit().await?.send(batch).durable().await?;
    }
    Ok(Removed {
        answers: answers.len(),
        names: names.len(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::domain::sales::SumsByProduct;
    use crate::outbox::OutboxLimits;
    use crate::runtime::clock::Clock;
    use crate::storage::codec::KeptAnswer;
    use crate::storage::owned_slots::Slots;
    use crate::storage::volume::Volume;

    async fn commit(state: &VolumeState, batch: WriteBatch) {
        let permit = state.storage.permit().await.unwrap();
        permit.send(batch).durable().await.unwrap();
    }

    #[test]
    fn answers_are_kept_for_a_day_despite_steps_of_the_clock() {
        let day_ms = ANSWERS_KEPT_MS;
        let kept = |wall_ms, forward_ms, is_steady| {
            answers_kept(Watched {
                wall_ms,
                forward_ms,
                is_steady,
            })
        };
        assert_eq!(kept(10 * day_ms, 0, false), 9 * day_ms..=u64::MAX);
        assert_eq!(kept(10 * day_ms, 3 * day_ms, false), 6 * day_ms..=u64::MAX);
        assert_eq!(kept(10 * day_ms, 0, true), 9 * day_ms..=10 * day_ms);
        assert_eq!(kept(5, day_ms, false), 0..=u64::MAX);
    }

    #[tokio::test]
    async fn answers_expire_after_a_day_and_names_after_a_week_and_the_newest_removed_name_remains() {
        let folder = tempfile::tempdir().unwrap();
        let now_ms = Arc::new(AtomicU64::new(1_000_000));
        let storage = Volume::open(folder.path()).unwrap();
        let slots = Arc::new(Slots::everything());
        let loaded = storage.load(&slots).unwrap();
        let clock = Clock::Manual(Arc::clone(&now_ms));
        let state = VolumeState::new(
            Arc::new(storage),
            slots,
            loaded,
            OutboxLimits::default(),
            clock,
            None,
        );
        let state = Arc::new(state);
        let mut batch = WriteBatch::default();
        let kept = KeptAnswer {
            at_ms: 1_000_000,
            status: 200,
            request: b"POST /order\n{}".to_vec(),
            body: b"{}".to_vec(),
        };
        batch.keep_answer("k", &kept);
        for name in ["stat_000000000000001.csv", "stat_000000000000002.csv"] {
            batch.stat_file(name, 1_000_000, &SumsByProduct::new());
        }
        batch.stat_file("stat_000000000000009.csv", 900_000_000, &SumsByProduct::new());
        commit(&state, batch).await;
        let watch = || StepWatch::new(&state.clock, Duration::from_millis(ANSWERS_KEPT_MS));
        let removed = remove_expired(&state, &mut watch()).await.unwrap();
        assert_eq!(removed, Removed::default());
        assert_eq!(state.storage.kept_answer("k").unwrap(), Some(kept));

        now_ms.store(1_000_000 + STAT_NAMES_KEPT_MS + 1, Ordering::Relaxed);
        let removed = remove_expired(&state, &mut watch()).await.unwrap();
        assert_eq!(removed, Removed { answers: 1, names: 2 });
        assert_eq!(state.storage.kept_answer("k").unwrap(), None);
        let known = |number: u32| {
            state
                .storage
                .knows_stat_file(&format!("stat_{number:015}.csv"))
                .unwrap()
        };
        assert_eq!([known(1), known(2), known(9)], [false, false, true]);
        let forgotten = state.storage.stat_files_forgotten().unwrap();
        assert_eq!(forgotten.as_deref(), Some("stat_000000000000002.csv"));
        tokio::task::spawn_blocking(move || state.storage.close())
            .await
            .unwrap()
            .unwrap();
    }
}
