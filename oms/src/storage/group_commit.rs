//! Group commit: one thread per volume makes waiting batches durable, many of them with one sync,
//! or with one entry of the volume's log in an engine.
//!
//! A commit costs as much processor time as several orders: two thread switches and a sync. So the
//! first batch does not wake the thread at once. `Bell` wakes it once the tasks that are ready to
//! run queue no further batches. No timer delays a commit, so a batch that is alone waits for these
//! tasks only.
//!
//! **Invariants**
//! - Batches are committed in the order of their submission.
//! - The queue is bounded. If it is full, a caller gets `Busy` or waits for a permit.
//! - Callers wait for a permit and for the outcome of a batch without blocking a thread of the
//!   runtime.
//! - Each queued batch gets an outcome. A batch that the committer never took gets `Closed`, also
//!   if it was queued with a permit after the end of the committer. A batch that the committer took
//!   and did not answer, because of a panic, gets `EngineAway`: it may have been committed.
//!
//! Deliberately absent: the content of the batches (`write_batch`) and the fence (`fence`).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::error::StorageError;
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::storage::log::writer::LogWriter;
use crate::storage::tables::VolumeTables;
use crate::storage::write_batch::WriteBatch;

/// Maximum number of waiting batches. With a few hundred bytes per batch, they use a few megabytes.
const QUEUE_CHANGES_MAX: usize = 8_192;
/// Number of rows at which a group is complete. With more than a few thousand rows, a shared sync
/// saves nothing more, and the first batch is delayed.
const GROUP_ROWS_MAX: usize = 8_192;
/// Size of a group in bytes from which no more batches are added. Behind an engine, a group becomes
/// one entry of the log, and an entry of more than 64 MiB could never be appended.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Batches above this size in bytes are committed alone. Otherwise a large batch, such as a whole
/// stock, would delay the other batches of its group.
const ALONE_BYTES: usize = 256 * 1_024;

type Waiting = oneshot::Sender<Result<Durable, StorageError>>;

/// The callers of the batches that the committer has taken from its queue. If the committer panics,
/// their batches may have been committed, so the callers must not learn that nothing was written.
#[derive(Default)]
struct Answers(Vec<Waiting>);

impl Answers {
    /// Sends each caller the outcome of its batch. Some batches may be missing in a successful
    /// commit: the fence rejected them, or a reservation that they remove could not be read.
    fn send(mut self, outcome: &Result<Committed, StorageError>) {
        for (at, answer) in self.0.drain(..).enumerate() {
            let outcome = match outcome {
                Ok(committed) => committed.outcome(at),
                Err(error) => Err(error.clone()),
            };
            // The send fails if the caller no longer waits. The batch of such a caller stays
            // committed.
            let _ = answer.send(outcome);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for answer in self.0.drain(..) {
            let _ = answer.send(Err(StorageError::EngineAway));
        }
    }
}

/// The outcome of a durable batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Durable {
    /// `true` if every reservation that the batch removes existed. `false` if one of them did not
    /// exist, for example because an earlier batch has removed it. The units of such a reservation
    /// are already released, so the caller must not release them again.
    pub(crate) reservations_ended: bool,
}

/// The outcome of a group. Batches are identified by their index in the group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Committed {
    /// Batches with a fence that the volume's slot ownership does not admit.
    pub(crate) rejected: Vec<usize>,
    /// Batches that remove a reservation that cannot be read. Nothing of these batches was written.
    pub(crate) failed: Vec<(usize, StorageError)>,
    /// Batches that were to remove a reservation that did not exist. Their other rows were written.
    pub(crate) without_reservation: Vec<usize>,
}

impl Committed {
    /// Returns the number of durable batches in a group of `batches` batches.
    pub(crate) fn durable(&self, batches: usize) -> usize {
        batches - self.rejected.len() - self.failed.len()
    }

    /// Returns the outcome of the batch at index `at`.
    fn outcome(&self, at: usize) -> Result<Durable, StorageError> {
        if self.rejected.contains(&at) {
            return Err(StorageError::Stale);
        }
        match self.failed.iter().find(|(failed, _)| *failed == at) {
            Some((_, error)) => Err(error.clone()),
            None => Ok(Durable {
                reservations_ended: !self.without_reservation.contains(&at),
            }),
        }
    }
}

enum Submission {
    Commit { batch: WriteBatch, answer: Waiting },
    Stop,
}

/// The sending side of the committer's queue.
pub(crate) struct Queue {
    submissions: mpsc::Sender<Submission>,
    bell: Arc<Bell>,
}

impl Queue {
    fn permit_of<'a>(&'a self, place: mpsc::Permit<'a, Submission>) -> Permit<'a> {
        Permit {
            place,
            bell: &self.bell,
        }
    }

    /// Returns a permit, `Busy` if the queue is full, or `Closed` if the committer has ended.
    pub(crate) fn try_permit(&self) -> Result<Permit<'_>, StorageError> {
        let place = self.submissions.try_reserve().map_err(|full| match full {
            mpsc::error::TrySendError::Full(()) => StorageError::Busy,
            mpsc::error::TrySendError::Closed(()) => StorageError::Closed,
        })?;
        Ok(self.permit_of(place))
    }

    /// Waits for a permit. Returns `Closed` if the committer has ended.
    pub(crate) async fn permit(&self) -> Result<Permit<'_>, StorageError> {
        let place = self.submissions.reserve().await;
        place
            .map(|place| self.permit_of(place))
            .map_err(|_| StorageError::Closed)
    }

    /// Returns the number of waiting batches, including permits that are not used yet.
    pub(crate) fn waiting(&self) -> usize {
        self.submissions.max_capacity() - self.submissions.capacity()
    }

    /// Makes the committer stop after all batches queued so far. Blocks while the queue is full,
    /// but does not wait until the committer has stopped.
    pub(crate) fn stop(&self) {
        #[cfg(test)]
        if runtime::simulated::Process::current().is_some() {
            let _ = self.submissions.try_send(Submission::Stop);
            return;
        }
        // `blocking_send` needs space in the queue. The queue may be full while the thread waits
        // for the bell, so the bell is rung first.
        self.bell.ring();
        // The send fails if the committer has stopped already.
        let _ = self.submissions.blocking_send(Submission::Stop);
        self.bell.end();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.bell.end();
    }
}

/// A reserved place in the committer's queue.
pub(crate) struct Permit<'a> {
    place: mpsc::Permit<'a, Submission>,
    bell: &'a Bell,
}

impl Permit<'_> {
    /// Queues a batch. Batches are committed in the order of these calls. If the committer has
    /// ended since the permit was given, the outcome of the batch is `Closed`.
    pub(crate) fn send(self, batch: WriteBatch) -> Ticket {
        let (answer, ticket) = oneshot::channel();
        self.place.send(Submission::Commit { batch, answer });
        self.bell.call();
        Ticket(ticket)
    }
}

/// Wakes the committer's thread when batches wait.
///
/// A runtime task rings the bell once for all batches queued since its last ring. Before each ring,
/// it yields to the tasks that are ready to run, as long as they queue further batches
/// (`runtime::gather`). So these batches join the same group.
#[derive(Default)]
struct Bell {
    /// `true` from the first queued batch until the runtime task rings the bell.
    is_called: AtomicBool,
    /// Number of batches that were queued so far.
    queued: AtomicUsize,
    /// `true` from a ring of the bell until the thread looks into the queue.
    has_rung: AtomicBool,
    has_ended: AtomicBool,
    called: Notify,
    /// `true` if there is no runtime task to ring the bell. Each queued batch then wakes the thread
    /// itself.
    is_direct: AtomicBool,
    /// The committer's thread. Not set in the simulation, where the committer is a task.
    thread: OnceLock<Thread>,
}

impl Bell {
    /// Requests a ring of the bell for a batch that was just queued.
    fn call(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        if self.is_direct.load(Ordering::Acquire) {
            self.ring();
        } else if !self.is_called.swap(true, Ordering::AcqRel) {
            self.called.notify_one();
        }
    }

    fn ring(&self) {
        self.has_rung.store(true, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Ends the runtime task of the bell, and ends the thread as soon as the queue is empty.
    fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.called.notify_one();
        self.ring();
    }
}

/// The runtime task that rings the bell.
struct Ringer(Arc<Bell>);

impl Ringer {
    /// Rings the bell for queued batches until `Bell::end` is called.
    async fn run(self) {
        let bell = &self.0;
        while !bell.has_ended.load(Ordering::Acquire) {
            bell.called.notified().await;
            runtime::gather(|| bell.queued.load(Ordering::Relaxed)).await;
            // The flag is cleared before the thread reads the queue. So a batch that the thread
            // misses sets the flag again and causes another ring.
            bell.is_called.store(false, Ordering::Release);
            bell.ring();
        }
    }
}

impl Drop for Ringer {
    /// Makes each batch wake the thread itself. The runtime may end before the volume is closed,
    /// and then this task can no longer ring.
    fn drop(&mut self) {
        self.0.is_direct.store(true, Ordering::Release);
        self.0.ring();
    }
}

/// Receives the outcome of a queued batch.
pub(crate) struct Ticket(oneshot::Receiver<Result<Durable, StorageError>>);

impl Ticket {
    /// Waits until the batch is durable or has failed.
    pub(crate) async fn durable(mut self) -> Result<(), StorageError> {
        self.answer().await.map(drop)
    }

    /// Waits until the batch is durable or has failed, and returns the outcome. Cancellation safe:
    /// a dropped call may be repeated. Do not call this function again after it has returned.
    pub(crate) async fn answer(&mut self) -> Result<Durable, StorageError> {
        (&mut self.0).await.unwrap_or(Err(StorageError::Closed))
    }
}

/// The committer's thread, or its task in the simulation.
pub(crate) enum Worker {
    Thread(JoinHandle<()>),
    #[cfg(test)]
    Task,
}

impl Worker {
    /// Waits until the thread has ended. Returns at once for a task of the simulation.
    pub(crate) fn join(self) {
        match self {
            // A panic of the thread has already been reported.
            Worker::Thread(thread) => drop(thread.join()),
            #[cfg(test)]
            Worker::Task => {}
        }
    }
}

/// Starts the committer of a volume.
pub(super) fn start(volume: Arc<VolumeTables>, log: Option<LogWriter>) -> std::io::Result<(Queue, Worker)> {
    let (submissions, waiting) = mpsc::channel(QUEUE_CHANGES_MAX);
    let runtime = Handle::try_current().ok();
    let bell = Arc::new(Bell {
        is_direct: AtomicBool::new(runtime.is_none()),
        ..Bell::default()
    });
    let committer = Committer {
        volume,
        log,
        waiting,
        too_large: None,
        bell: Arc::clone(&bell),
        has_more: false,
        runtime: runtime.clone(),
    };
    let queue = Queue {
        submissions,
        bell: Arc::clone(&bell),
    };
    #[cfg(test)]
    if let Some(process) = runtime::simulated::Process::current() {
        process.spawn(committer.run_as_task(process.dice().clone()));
        return Ok((queue, Worker::Task));
    }
    let thread = std::thread::Builder::new()
        .name("committer".to_owned())
        .spawn(move || committer.run())?;
    // No batch is queued before this function returns, so the bell is not rung before the thread is
    // set.
    let _ = bell.thread.set(thread.thread().clone());
    if let Some(runtime) = runtime {
        runtime.spawn(Ringer(bell).run());
    }
    Ok((queue, Worker::Thread(thread)))
}

struct Committer {
    volume: Arc<VolumeTables>,
    /// The writer of the volume's log. `None` without an engine.
    log: Option<LogWriter>,
    waiting: mpsc::Receiver<Submission>,
    /// A batch above `ALONE_BYTES` that was found while a group was gathered, to be committed alone
    /// after the group.
    too_large: Option<(WriteBatch, Waiting)>,
    bell: Arc<Bell>,
    /// `true` if the queue may still hold batches for which the bell has already rung.
    has_more: bool,
    /// The runtime in which the volume was opened, if any. It runs the tasks that answer the
    /// callers, and the commits to the volume's log.
    runtime: Option<Handle>,
}

impl Committer {
    fn run(mut self) {
        let mut stopping = false;
        let (mut group, mut answers) = (Vec::new(), Answers::default());
        while !stopping {
            match self.next() {
                Some(Submission::Commit { batch, answer }) => {
                    answers.0.push(answer);
                    stopping = self.gather(&mut group, &mut answers, batch);
                }
                Some(Submission::Stop) | None => break,
            }
            self.commit_and_answer(&mut group, &mut answers);
            if let Some((batch, answer)) = self.too_large.take() {
                self.commit_and_answer(&mut vec![batch], &mut Answers(vec![answer]));
            }
        }
    }

    /// Returns the next submission: the first batch of a group, or `Stop`. Waits for the bell if no
    /// batch for which it rang is left. Returns `None` once the bell has ended and the queue is
    /// empty.
    fn next(&mut self) -> Option<Submission> {
        loop {
            let has_ended = self.bell.has_ended.load(Ordering::Acquire);
            let has_rung = self.bell.has_rung.swap(false, Ordering::AcqRel);
            if !(has_rung || has_ended || self.has_more) {
                std::thread::park();
                continue;
            }
            // The flag `has_ended` was read before the queue. So all batches that were queued
            // before `Bell::end` was called are returned first.
            match self.waiting.try_recv() {
                Ok(submission) => {
                    self.has_more = true;
                    return Some(submission);
                }
                Err(_) if has_ended => return None,
                Err(_) => self.has_more = false,
            }
        }
    }

    /// Runs the committer as a task in virtual time. The simulated process may die before a commit,
    /// or between a commit and the answers to its callers.
    #[cfg(test)]
    async fn run_as_task(mut self, dice: runtime::simulated::Dice) {
        let pause = |dice: &runtime::simulated::Dice| {
            // One pause in twenty may take up to 40 ms, like a sync of a disk under load.
            let max_ms = if dice.between(0, 19) == 0 { 40 } else { 2 };
            tokio::time::sleep(std::time::Duration::from_millis(dice.between(0, max_ms)))
        };
        self.runtime = None;
        let mut stopping = false;
        while !stopping {
            let (mut group, mut answers) = (Vec::new(), Answers::default());
            match self.waiting.recv().await {
                Some(Submission::Commit { batch, answer }) => {
                    answers.0.push(answer);
                    pause(&dice).await;
                    stopping = self.gather(&mut group, &mut answers, batch);
                }
                Some(Submission::Stop) | None => break,
            }
            let alone = self.too_large.take();
            let alone = alone.map(|(batch, answer)| (vec![batch], Answers(vec![answer])));
            for (group, answers) in std::iter::once((group, answers)).chain(alone) {
                let outcome = match &mut self.log {
                    Some(log) => self.volume.commit_logged(log, &group).await,
                    None => self.volume.commit(&group),
                };
                self.note(&outcome, group.len());
                pause(&dice).await;
                answers.send(&outcome);
            }
        }
    }

    /// Adds `first` and waiting batches to the group, until the group has `GROUP_ROWS_MAX` rows or
    /// `GROUP_BYTES_MAX` bytes, a batch above `ALONE_BYTES` comes, or no batch waits. A `first`
    /// above `ALONE_BYTES` stays alone. Returns `true` if `Stop` was received, so the committer
    /// must stop after this group.
    fn gather(&mut self, group: &mut Vec<WriteBatch>, answers: &mut Answers, first: WriteBatch) -> bool {
        let (mut rows, mut bytes) = (first.rows().len(), first.bytes());
        let alone = first.bytes() > ALONE_BYTES;
        group.push(first);
        while !alone && rows < GROUP_ROWS_MAX && bytes < GROUP_BYTES_MAX {
            match self.waiting.try_recv() {
                Ok(Submission::Commit { batch, answer }) if batch.bytes() > ALONE_BYTES => {
                    self.too_large = Some((batch, answer));
                    return false;
                }
                Ok(Submission::Commit { batch, answer }) => {
                    rows += batch.rows().len();
                    bytes += batch.bytes();
                    group.push(batch);
                    answers.0.push(answer);
                }
                Ok(Submission::Stop) => return true,
                Err(_) => {
                    self.has_more = false;
                    break;
                }
            }
        }
        false
    }

    /// Counts the batches of the group that became durable. Records if the commit failed because of
    /// the local database. `EngineAway` and `Stale` (taken over by another process) are not
    /// failures of the local database.
    fn note(&self, outcome: &Result<Committed, StorageError>, batches: usize) {
        for (_, error) in outcome.iter().flat_map(|committed| &committed.failed) {
            let error = crate::error::with_causes(error);
            tracing::error!(error, "write refused: a reservation that it ends cannot be read");
        }
        match outcome {
            Ok(committed) if committed.durable(batches) > 0 => {
                self.volume.failed.store(false, Ordering::Relaxed);
            }
            // Nothing was written, so the outcome says nothing about the local database.
            Err(StorageError::EngineAway) if seeded("engine-away-is-failure") => {
                self.volume.failed.store(true, Ordering::Relaxed);
            }
            Ok(_) | Err(StorageError::EngineAway | StorageError::Stale) => {}
            Err(error) => {
                let error = crate::error::with_causes(error);
                tracing::error!(error, batches, "commit failed");
                self.volume.failed.store(true, Ordering::Relaxed);
            }
        }
        // A group without a durable batch wrote nothing, so there was no sync.
        let durable = match outcome {
            Ok(committed) => committed.durable(batches),
            Err(_) => 0,
        };
        if let Some(counters) = self.volume.commit_counters.get().filter(|_| durable > 0) {
            counters.commits.fetch_add(1, Ordering::Relaxed);
            counters.batches.fetch_add(durable as u64, Ordering::Relaxed);
        }
    }

    fn commit_and_answer(&mut self, group: &mut Vec<WriteBatch>, answers: &mut Answers) {
        let outcome = match (&mut self.log, &self.runtime) {
            (None, _) => self.volume.commit(group),
            (Some(log), Some(runtime)) => runtime.block_on(self.volume.commit_logged(log, group)),
            (Some(_), None) => Err(StorageError::EngineAway),
        };
        self.note(&outcome, group.len());
        let (group, answers) = (std::mem::take(group), std::mem::take(answers));
        let answer_all = move || {
            answers.send(&outcome);
            drop(group);
        };
        match &self.runtime {
            // Waking a task from another thread takes a lock and often a system call. So the
            // committer wakes one task, and that task answers all callers. The task also frees the
            // memory of the batches on a thread of the runtime.
            Some(runtime) => drop(runtime.spawn(async move { answer_all() })),
            None => answer_all(),
        }
    }
}

impl Drop for Committer {
    /// Refuses the batches that are still queued, and those that come later with permits given
    /// earlier. A queue without a receiver would keep a later batch, and its caller would wait
    /// until the volume is dropped.
    fn drop(&mut self) {
        let (_, none) = mpsc::channel(1);
        let mut waiting = std::mem::replace(&mut self.waiting, none);
        waiting.close();
        loop {
            match waiting.try_recv() {
                Ok(refused) => drop(refused),
                // There are no more batches, and no permits.
                Err(mpsc::error::TryRecvError::Disconnected) => return,
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        // The caller with a permit may wait for the end of this thread before it uses the permit,
        // so this thread does not wait for the permit.
        let runtime = self.runtime.take().or_else(|| Handle::try_current().ok());
        if let Some(runtime) = runtime {
            drop(runtime.spawn(async move { while waiting.recv().await.is_some() {} }));
            return;
        }
        let thread = std::thread::Builder::new().name("committer end".to_owned());
        // If no thread can be started, the caller gets its outcome once the volume is dropped.
        drop(thread.spawn(move || while waiting.blocking_recv().is_some() {}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_that_was_taken_and_not_answered_may_have_been_committed() {
        let (answer, ticket) = oneshot::channel();
        drop(Answers(vec![answer]));
        let outcome = Ticket(ticket).durable().await;
        assert!(matches!(outcome, Err(StorageError::EngineAway)), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_batch_that_was_never_taken_is_refused() {
        let (answer, ticket) = oneshot::channel();
        let batch = WriteBatch::default();
        drop(Submission::Commit { batch, answer });
        let outcome = Ticket(ticket).durable().await;
        assert!(matches!(outcome, Err(StorageError::Closed)), "{outcome:?}");
    }
}
