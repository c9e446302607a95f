//! One transactor per order: whoever owns the order while there is something to do.
//!
//! The first message for an order makes its sender the order's transactor: it reads the order from
//! the volume and carries the message out in its own task, so that the usual order costs no task,
//! no hand-over and no memory once it is answered. Messages that come meanwhile wait in the order's
//! mailbox; when the first is answered, a task of its own carries them out one by one, and rests
//! (ends) as soon as the mailbox is empty. Mailboxes are filled and closed under one lock, so no
//! message falls between rest and start. A sender that goes away while its rows are being made
//! durable leaves the order to a task that finishes what was begun.
//!
//! A panic loses nothing: it is caught around each step, the order is as it last became durable,
//! and the next message starts anew. An order whose steps panic again and again is left alone for a
//! while, longer each time, and harms nobody else.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::order::{Command, Line, Order, OrderId};
use crate::outbox::{Kind, Message};
use crate::runtime;
use crate::runtime::metrics::VolumeCounters;
use crate::storage::group_commit::Permit;
use crate::volume::state::{Begun, OrderError, Outcome, Pending, VolumeState};

/// Messages that may wait for one order. Nobody has more to say to one order at a time; more is an
/// attack or a bug.
const MAILBOX_MESSAGES_MAX: usize = 64;
/// Parts of the registry, each with a lock of its own, so that starts on different threads rarely
/// meet.
const SHARDS: usize = 64;
/// Panics of one order before it is left alone: the first may have been chance.
const PANICS_AT_ONCE: u32 = 3;
/// How long an order is left alone after that; it doubles with each further panic.
const REST_FIRST_MS: u64 = 1_000;
/// Longest time that an order is left alone.
const REST_MAX_MS: u64 = 60_000;
/// Orders whose panics are remembered: more than a few mean that not the orders are at fault.
const TROUBLED_MAX: usize = 1_024;

/// What is asked of an order's transactor.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Take this order, or answer as when it was taken.
    Place(Box<[Line]>),
    /// Carry this command out.
    Command(Command),
    /// Write down how a message to the warehouse fares.
    Note(Kind, Message),
    /// Have a dead message tried again.
    Retry(Kind),
    /// Say how it stands.
    Look,
    #[cfg(test)]
    Panic,
}

impl Ask {
    /// What the public asks may be turned away; what the warehouse answered waits for a place in
    /// the committer's queue.
    fn waits_for_room(&self) -> bool {
        !matches!(
            self,
            Ask::Place(_) | Ask::Look | Ask::Command(Command::Pay { .. } | Command::Cancel)
        )
    }
}

struct Envelope {
    ask: Ask,
    answer: oneshot::Sender<Result<Outcome, OrderError>>,
}

/// What waits for a transactor that is at work; empty most of the time, and then without memory of
/// its own.
type Mailbox = VecDeque<Envelope>;

/// An order whose steps panicked.
#[derive(Clone, Copy, Default)]
struct Trouble {
    panics: u32,
    rests_until: Option<Instant>,
}

/// The transactors that are at work.
pub(crate) struct Transactors {
    state: Arc<VolumeState>,
    shards: Vec<Mutex<HashMap<OrderId, Mailbox>>>,
    hasher: RandomState,
    counters: Arc<VolumeCounters>,
    troubled: Mutex<HashMap<OrderId, Trouble>>,
    /// Orders in `troubled`, so that nobody locks it while there is no trouble.
    troubles: AtomicUsize,
}

impl Transactors {
    /// No transactors yet, over the rooms of a volume.
    #[cfg(test)]
    pub(crate) fn new(state: Arc<VolumeState>) -> Arc<Transactors> {
        Transactors::counting(state, Arc::default())
    }

    /// No transactors yet; their panics are added to these counters.
    pub(crate) fn counting(state: Arc<VolumeState>, counters: Arc<VolumeCounters>) -> Arc<Transactors> {
        Arc::new(Transactors {
            state,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            counters,
            troubled: Mutex::default(),
            troubles: AtomicUsize::new(0),
        })
    }

    /// The rooms that the transactors work in.
    pub(crate) fn state(&self) -> &Arc<VolumeState> {
        &self.state
    }

    /// How many transactors are at work now.
    pub(crate) fn at_work(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// How many steps ended in a panic.
    pub(crate) fn panics(&self) -> u64 {
        self.counters.transactor_panics.load(Ordering::Relaxed)
    }

    /// Has an order's transactor carry something out: this task itself if the order is at rest,
    /// else whoever is at work on it.
    pub(crate) async fn ask(self: &Arc<Self>, id: &OrderId, ask: Ask) -> Result<Outcome, OrderError> {
        self.check_trouble(id)?;
        match self.enter(id, ask)? {
            Entered::Free(ask) => {
                let mut turn = Turn::of(Arc::clone(self), id.clone());
                turn.carry_out(ask).await
            }
            Entered::Busy(answer) => answer.await.unwrap_or(Err(OrderError::Interrupted)),
        }
    }

    fn enter(&self, id: &OrderId, ask: Ask) -> Result<Entered, OrderError> {
        let mut shard = self.shard(id);
        match shard.get_mut(id) {
            None => {
                shard.insert(id.clone(), Mailbox::new());
                Ok(Entered::Free(ask))
            }
            Some(mailbox) if mailbox.len() == MAILBOX_MESSAGES_MAX => {
                Err(OrderError::Busy("too many requests wait for this order"))
            }
            Some(mailbox) => {
                let (answer, receiver) = oneshot::channel();
                mailbox.push_back(Envelope { ask, answer });
                Ok(Entered::Busy(receiver))
            }
        }
    }

    fn shard(&self, id: &OrderId) -> MutexGuard<'_, HashMap<OrderId, Mailbox>> {
        lock(&self.shards[self.hasher.hash_one(id) as usize % SHARDS])
    }

    /// Turns away what is asked of an order that is left alone.
    fn check_trouble(&self, id: &OrderId) -> Result<(), OrderError> {
        if self.troubles.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        match lock(&self.troubled).get(id) {
            Some(trouble) if trouble.rests_until.is_some_and(|until| until > Instant::now()) => Err(
                OrderError::Busy("this order fails again and again and is left alone for a while"),
            ),
            _ => Ok(()),
        }
    }

    fn panicked(&self, id: &OrderId) {
        self.counters.transactor_panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(order = %id, "the order's transactor panicked; its next message starts it anew");
        let mut troubled = lock(&self.troubled);
        if troubled.len() == TROUBLED_MAX && !troubled.contains_key(id) {
            return;
        }
        let trouble = troubled.entry(id.clone()).or_default();
        trouble.panics += 1;
        if let Some(more) = trouble.panics.checked_sub(PANICS_AT_ONCE) {
            let rest_ms = (REST_FIRST_MS << more.min(16)).min(REST_MAX_MS);
            trouble.rests_until = Some(Instant::now() + Duration::from_millis(rest_ms));
        }
        self.troubles.store(troubled.len(), Ordering::Relaxed);
    }

    fn went_well(&self, id: &OrderId) {
        if self.troubles.load(Ordering::Relaxed) > 0 {
            let mut troubled = lock(&self.troubled);
            troubled.remove(id);
            self.troubles.store(troubled.len(), Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Entered {
    /// The order was at rest: it is the asker's now.
    Free(Ask),
    /// Its transactor will answer.
    Busy(oneshot::Receiver<Result<Outcome, OrderError>>),
}

/// The right to work on an order. However it is dropped, nothing that was begun is left half done
/// and nothing that waits is forgotten: a task of its own goes on if there is anything left.
struct Turn(Option<Work>);

impl Turn {
    fn of(transactors: Arc<Transactors>, id: OrderId) -> Turn {
        Turn(Some(Work {
            transactors,
            id,
            known: None,
            pending: None,
        }))
    }

    async fn carry_out(&mut self, ask: Ask) -> Result<Outcome, OrderError> {
        match &mut self.0 {
            Some(work) => work.carry_out(ask).await,
            None => Err(OrderError::Interrupted),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(work) = self.0.take() else { return };
        if work.pending.is_none() && work.rests() {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(_) => drop(runtime::spawn(work.go_on())),
            // The runtime is gone, and everybody with it; whoever waits is told by the loss of the
            // answer's sender.
            Err(_) => work.forget(),
        }
    }
}

/// An order at work: owned by one task at a time.
struct Work {
    transactors: Arc<Transactors>,
    id: OrderId,
    known: Option<Arc<Order>>,
    pending: Option<Pending>,
}

impl Work {
    /// Takes the order out of the registry if nothing waits for it. Messages are put in under the
    /// same lock, so none is left behind.
    fn rests(&self) -> bool {
        let mut shard = self.transactors.shard(&self.id);
        let is_idle = shard.get(&self.id).is_none_or(VecDeque::is_empty);
        if is_idle {
            shard.remove(&self.id);
        }
        is_idle
    }

    fn forget(&self) {
        let left = self.transactors.shard(&self.id).remove(&self.id);
        drop(left);
    }

    /// Finishes what was begun, answers the mailbox, rests.
    async fn go_on(mut self) {
        if self.pending.is_some() {
            // Its asker has gone; what follows from it has not.
            let outcome = self.settle().await;
            self.remember(&outcome);
        }
        loop {
            let next = {
                let mut shard = self.transactors.shard(&self.id);
                let next = shard.get_mut(&self.id).and_then(VecDeque::pop_front);
                if next.is_none() {
                    shard.remove(&self.id);
                }
                next
            };
            let Some(Envelope { ask, answer }) = next else {
                return;
            };
            let outcome = self.carry_out(ask).await;
            // Nobody may be waiting any more; what was done stays done.
            let _ = answer.send(outcome);
        }
    }

    async fn carry_out(&mut self, ask: Ask) -> Result<Outcome, OrderError> {
        let outcome = self.step(ask).await;
        self.remember(&outcome);
        outcome
    }

    fn remember(&mut self, outcome: &Result<Outcome, OrderError>) {
        // What a failed step left is read anew, not guessed.
        self.known = outcome.as_ref().ok().map(|outcome| Arc::clone(&outcome.order));
    }

    async fn step(&mut self, ask: Ask) -> Result<Outcome, OrderError> {
        let state = Arc::clone(&self.transactors.state);
        let permit = if ask.waits_for_room() {
            Some(state.storage.permit().await?)
        } else {
            None
        };
        let remote = state.remote();
        let looked = remote.is_some();
        let there = match (&ask, remote) {
            (Ask::Place(lines), Some(remote)) => state.look_among(remote.as_ref(), &self.id, lines).await?,
            _ => None,
        };
        let known = self.known.take();
        let store = there.map(|there| there.store);
        match self.guarded(|| begin(&state, &self.id, known, ask, (store, looked), permit))? {
            Begun::Done(outcome) => Ok(outcome),
            Begun::Pending(pending) => {
                self.pending = Some(pending);
                let outcome = self.settle().await?;
                if let (Some(there), Some(remote)) = (there, remote) {
                    remote.confirm(&self.id, there.nonce, there.store);
                }
                Ok(outcome)
            }
        }
    }

    /// Waits until what was begun is durable, and finishes it. May be dropped and called again
    /// until then.
    async fn settle(&mut self) -> Result<Outcome, OrderError> {
        let Some(pending) = &mut self.pending else {
            return Err(OrderError::Interrupted);
        };
        let durable = pending.ticket.answer().await;
        let Some(pending) = self.pending.take() else {
            return Err(OrderError::Interrupted);
        };
        self.guarded(|| self.transactors.state.finish(pending, durable))
    }

    /// Does something that may panic, without being taken down by it.
    fn guarded<T>(&self, step: impl FnOnce() -> Result<T, OrderError>) -> Result<T, OrderError> {
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(done) => {
                self.transactors.went_well(&self.id);
                done
            }
            Err(_) => {
                self.transactors.panicked(&self.id);
                Err(OrderError::Interrupted)
            }
        }
    }
}

/// Begins what is asked of an order, reading it first unless it is known.
fn begin(
    state: &VolumeState,
    id: &OrderId,
    known: Option<Arc<Order>>,
    ask: Ask,
    (there, looked): (Option<u32>, bool),
    permit: Option<Permit<'_>>,
) -> Result<Begun, OrderError> {
    state.slots.check_order(id)?;
    let known = match known {
        Some(order) => Some(order),
        None => state.storage.order(id)?.map(Arc::new),
    };
    match (ask, known) {
        (Ask::Place(lines), None) => state.place(id, lines, there, looked).map(Begun::Pending),
        (Ask::Place(lines), Some(order)) => match order.placed_again(&lines) {
            Ok(()) => Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            })),
            Err(refusal) => Err(OrderError::Refused(refusal)),
        },
        (Ask::Command(command), Some(order)) => state.command(order, &command, permit),
        (Ask::Note(kind, message), Some(order)) => state.note_message(order, kind, &message, permit),
        (Ask::Retry(kind), Some(order)) => state.retry_message(order, kind, permit),
        (Ask::Look, Some(order)) => Ok(Begun::Done(Outcome {
            order,
            repeated: true,
        })),
        #[cfg(test)]
        (Ask::Panic, _) => panic!("asked to"),
        (_, None) => Err(OrderError::Unknown),
    }
}

#[cfg(test)]
mod tests;
