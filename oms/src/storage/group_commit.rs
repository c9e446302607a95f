//! Makes changes durable, as many at once as wait.
//!
//! One thread per volume takes changes from a bounded queue in the order of their submission,
//! commits all that wait as one batch with one sync, and answers each. Callers on the runtime wait
//! without holding a thread. When the queue is full they are told so instead of piling up in
//! memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::error::StorageError;
use crate::storage::volume::VolumeTables;
use crate::storage::write_batch::WriteBatch;

/// Changes that may wait for the committer. At a few hundred bytes each this is a few megabytes;
/// beyond it callers are told to come back.
const QUEUE_CHANGES_MAX: usize = 8_192;
/// Rows that one commit gathers: past a few thousand, sharing a sync gains nothing and delays the
/// first.
const GROUP_ROWS_MAX: usize = 8_192;
/// Changes of more bytes than this are a commit of their own, so that a snapshot does not swell a
/// group.
const ALONE_BYTES: usize = 256 * 1_024;

type Waiting = oneshot::Sender<Result<Durable, StorageError>>;

/// What is known of changes that are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Durable {
    /// Every reservation that they end was there, and ended with them. If not, its units were given
    /// back before and are not to be given back again.
    pub(crate) has_ended: bool,
}

/// What became of the changes of a group, named by their places in it.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// They spoke for slots that are not the volume's.
    pub(crate) refused: Vec<usize>,
    /// They were to end a reservation that was not there.
    pub(crate) unfounded: Vec<usize>,
}

enum Submission {
    Commit { batch: WriteBatch, answer: Waiting },
    Stop,
}

/// The way to the committer.
pub(crate) struct Queue(mpsc::Sender<Submission>);

impl Queue {
    /// A place, or `Busy` if there is none now.
    pub(crate) fn try_permit(&self) -> Result<Permit<'_>, StorageError> {
        self.0.try_reserve().map(Permit).map_err(|full| match full {
            mpsc::error::TrySendError::Full(()) => StorageError::Busy,
            mpsc::error::TrySendError::Closed(()) => StorageError::Closed,
        })
    }

    /// A place, waited for.
    pub(crate) async fn permit(&self) -> Result<Permit<'_>, StorageError> {
        self.0
            .reserve()
            .await
            .map(Permit)
            .map_err(|_| StorageError::Closed)
    }

    /// Changes that wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.0.max_capacity() - self.0.capacity()
    }

    /// Ends the committer after all that was queued before. Blocks.
    pub(crate) fn stop(&self) {
        #[cfg(test)]
        if crate::runtime::simulated::Process::current().is_some() {
            let _ = self.0.try_send(Submission::Stop);
            return;
        }
        // A committer that has ended already is what is wanted.
        let _ = self.0.blocking_send(Submission::Stop);
    }
}

/// A place in the committer's queue.
pub(crate) struct Permit<'a>(mpsc::Permit<'a, Submission>);

impl Permit<'_> {
    /// Queues changes; they are committed in the order of these calls.
    pub(crate) fn send(self, batch: WriteBatch) -> Ticket {
        let (answer, ticket) = oneshot::channel();
        self.0.send(Submission::Commit { batch, answer });
        Ticket(ticket)
    }
}

/// The promise of an answer once changes are durable.
pub(crate) struct Ticket(oneshot::Receiver<Result<Durable, StorageError>>);

impl Ticket {
    /// Waits until the changes are durable, or could not be made so.
    pub(crate) async fn durable(mut self) -> Result<(), StorageError> {
        self.answer().await.map(drop)
    }

    /// As `durable`, for one who may stop waiting and wait again; to be called until it has
    /// answered.
    pub(crate) async fn answer(&mut self) -> Result<Durable, StorageError> {
        (&mut self.0).await.unwrap_or(Err(StorageError::Closed))
    }
}

/// Who commits: a thread, or a task of the simulation.
pub(crate) enum Worker {
    Thread(JoinHandle<()>),
    #[cfg(test)]
    Task,
}

impl Worker {
    /// Waits for its end. What a task has not committed by then is refused.
    pub(crate) fn join(self) {
        match self {
            // If it panicked it has said so.
            Worker::Thread(thread) => drop(thread.join()),
            #[cfg(test)]
            Worker::Task => {}
        }
    }
}

/// Starts the committer of a volume.
pub(super) fn start(volume: Arc<VolumeTables>) -> std::io::Result<(Queue, Worker)> {
    let (queue, waiting) = mpsc::channel(QUEUE_CHANGES_MAX);
    let committer = Committer {
        volume,
        waiting,
        too_large: None,
        runtime: Handle::try_current().ok(),
    };
    #[cfg(test)]
    if let Some(process) = crate::runtime::simulated::Process::current() {
        process.spawn(committer.run_as_task(process.dice().clone()));
        return Ok((Queue(queue), Worker::Task));
    }
    let thread = std::thread::Builder::new()
        .name("committer".to_owned())
        .spawn(move || committer.run())?;
    Ok((Queue(queue), Worker::Thread(thread)))
}

struct Committer {
    volume: Arc<VolumeTables>,
    waiting: mpsc::Receiver<Submission>,
    /// Changes that came up while a group was gathered and that are to be a commit of their own.
    too_large: Option<(WriteBatch, Waiting)>,
    /// Where the callers run, if that is one place.
    runtime: Option<Handle>,
}

impl Committer {
    fn run(mut self) {
        let mut stopping = false;
        let (mut group, mut answers) = (Vec::new(), Vec::new());
        while !stopping {
            match self.waiting.blocking_recv() {
                Some(Submission::Commit { batch, answer }) => {
                    answers.push(answer);
                    stopping = self.gather(&mut group, &mut answers, batch);
                }
                Some(Submission::Stop) | None => break,
            }
            self.commit_and_answer(&mut group, &mut answers);
            if let Some((batch, answer)) = self.too_large.take() {
                self.commit_and_answer(&mut vec![batch], &mut vec![answer]);
            }
        }
    }

    /// As `run`, in virtual time: the process may die before rows are durable, and after it before
    /// anybody is told.
    #[cfg(test)]
    async fn run_as_task(mut self, dice: crate::runtime::simulated::Dice) {
        let pause = |dice: &crate::runtime::simulated::Dice| {
            tokio::time::sleep(std::time::Duration::from_millis(dice.between(0, 2)))
        };
        self.runtime = None;
        let mut stopping = false;
        while !stopping {
            let (mut group, mut answers) = (Vec::new(), Vec::new());
            match self.waiting.recv().await {
                Some(Submission::Commit { batch, answer }) => {
                    answers.push(answer);
                    pause(&dice).await;
                    stopping = self.gather(&mut group, &mut answers, batch);
                }
                Some(Submission::Stop) | None => break,
            }
            let alone = self.too_large.take();
            let alone = alone.map(|(batch, answer)| (vec![batch], vec![answer]));
            for (group, answers) in std::iter::once((group, answers)).chain(alone) {
                let outcome = self.volume.commit(&group);
                self.volume.failed.store(outcome.is_err(), Ordering::Relaxed);
                pause(&dice).await;
                answer_each(answers, &outcome);
            }
        }
    }

    /// Adds everything that waits to the group; true if the committer is to stop after it.
    fn gather(&mut self, group: &mut Vec<WriteBatch>, answers: &mut Vec<Waiting>, first: WriteBatch) -> bool {
        let mut rows = first.rows().len();
        let alone = first.bytes() > ALONE_BYTES;
        group.push(first);
        while !alone && rows < GROUP_ROWS_MAX {
            match self.waiting.try_recv() {
                Ok(Submission::Commit { batch, answer }) if batch.bytes() > ALONE_BYTES => {
                    self.too_large = Some((batch, answer));
                    return false;
                }
                Ok(Submission::Commit { batch, answer }) => {
                    rows += batch.rows().len();
                    group.push(batch);
                    answers.push(answer);
                }
                Ok(Submission::Stop) => return true,
                Err(_) => break,
            }
        }
        false
    }

    fn commit_and_answer(&mut self, group: &mut Vec<WriteBatch>, answers: &mut Vec<Waiting>) {
        let outcome = self.volume.commit(group);
        if let Err(error) = &outcome {
            let error = crate::error::with_reasons(error);
            tracing::error!(error, batch = group.len(), "could not make changes durable");
        }
        self.volume.failed.store(outcome.is_err(), Ordering::Relaxed);
        let (group, answers) = (std::mem::take(group), std::mem::take(answers));
        let answer_all = move || {
            answer_each(answers, &outcome);
            drop(group);
        };
        match &self.runtime {
            // Waking a task from outside of its runtime takes a lock and often a call of the
            // kernel; so the runtime is woken once, and wakes the others itself. What the callers
            // allocated is freed by their threads too.
            Some(runtime) => drop(runtime.spawn(async move { answer_all() })),
            None => answer_all(),
        }
    }
}

/// Tells everybody what became of their changes; a commit that happened may have refused some.
fn answer_each(answers: Vec<Waiting>, outcome: &Result<Committed, StorageError>) {
    for (at, answer) in answers.into_iter().enumerate() {
        let outcome = match outcome {
            Ok(committed) if committed.refused.contains(&at) => Err(StorageError::Stale),
            Ok(committed) => Ok(Durable {
                has_ended: !committed.unfounded.contains(&at),
            }),
            Err(error) => Err(error.clone()),
        };
        // Nobody may be waiting any more: the caller went away, its changes stay.
        let _ = answer.send(outcome);
    }
}
