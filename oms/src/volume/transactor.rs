//! Transactors (actors): each serializes all commands of one order.
//!
//! The first request for an idle order runs in the task of its sender. So the usual order needs no
//! task of its own, and no memory after the request is answered. Further requests that arrive
//! during that time wait in the order's mailbox. A new task then executes them one by one and ends
//! when the mailbox is empty.
//!
//! **Invariants**
//! - An order has at most one transactor. A mailbox is filled and removed under the same lock, so
//!   no request is lost between the end of one transactor and the start of the next.
//! - If the sender disconnects while its rows are being committed, a task finishes the step.
//! - A panic is caught around each step. The order stays in its last durable state, and the next
//!   step reads the order from the volume.
//! - Requests for an order with repeated panics are rejected for some time, which doubles with each
//!   further panic up to a minute. Other orders are not affected.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::order::{Command, Line, Order, OrderId};
use crate::outbox::{Kind, Message};
use crate::runtime;
use crate::runtime::metrics::VolumeCounters;
use crate::storage::group_commit::Permit;
use crate::volume::state::{Begun, OrderError, Outcome, Pending, RemotePlacement, VolumeState};
use crate::volume::store_search::{PLACE_TRIES, STOCK_CHANGES, Searched};

/// Maximum number of waiting requests of one order. Clients that work correctly never have so many
/// requests for one order.
const MAILBOX_MESSAGES_MAX: usize = 64;
/// Number of shards of the registry of transactors, each with its own lock, so that requests on
/// different threads rarely contend.
const SHARDS: usize = 64;
/// Number of panics in a row after which requests for an order are rejected for some time. After
/// fewer panics the order is served, because the cause may have passed.
const PANICS_BEFORE_SUSPENSION: u32 = 3;
/// Time for which requests for an order are rejected after `PANICS_BEFORE_SUSPENSION` panics. The
/// time doubles with each further panic.
const SUSPENSION_FIRST_MS: u64 = 1_000;
/// Longest time for which requests for an order are rejected.
const SUSPENSION_MAX_MS: u64 = 60_000;
/// Maximum number of orders for which panics are counted. If more orders panic, the cause is not in
/// single orders, and the suspension of single orders would not help.
const TROUBLED_MAX: usize = 1_024;

/// A request to an order's transactor.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Place this order, or repeat the answer of its first placement.
    Place(Box<[Line]>),
    /// Place this order after an earlier try of the client's request. That try may have reserved
    /// the units.
    PlaceAgain(Box<[Line]>),
    /// Execute this command.
    Command(Command),
    /// Record the failed attempts of a message to the warehouse.
    Note(Kind, Message),
    /// Make a dead letter (a message that is no longer sent) a waiting message again.
    Retry(Kind),
    /// Remove a message that the order does not need.
    Drop(Kind),
    /// Return the current state of the order.
    Look,
    #[cfg(test)]
    Panic,
    /// Panic before the step, as the search for a store could.
    #[cfg(test)]
    PanicInSearch,
}

impl Ask {
    /// Returns `true` for a request that waits for room in the commit queue, such as an answer of
    /// the warehouse. Requests of customers are rejected if the commit queue is full.
    fn waits_for_room(&self) -> bool {
        !matches!(
            self,
            Ask::Place(_)
                | Ask::PlaceAgain(_)
                | Ask::Look
                | Ask::Command(Command::Pay { .. } | Command::Cancel)
        )
    }
}

struct Envelope {
    ask: Ask,
    answer: oneshot::Sender<Result<Outcome, OrderError>>,
}

/// Requests that wait for a running transactor. An empty mailbox allocates no memory.
type Mailbox = VecDeque<Envelope>;

/// The number of panics in steps of one order, and the suspension of the order.
#[derive(Clone, Copy, Default)]
struct Trouble {
    panics: u32,
    suspended_until: Option<Instant>,
}

/// The running transactors of a volume, each with its mailbox.
pub(crate) struct Transactors {
    state: Arc<VolumeState>,
    shards: Vec<Mutex<HashMap<OrderId, Mailbox>>>,
    hasher: RandomState,
    counters: Arc<VolumeCounters>,
    troubled: Mutex<HashMap<OrderId, Trouble>>,
    /// Number of orders in `troubled`. While it is 0, requests do not lock `troubled`.
    troubles: AtomicUsize,
}

impl Transactors {
    /// Creates an empty registry of transactors for a volume.
    #[cfg(test)]
    pub(crate) fn new(state: Arc<VolumeState>) -> Arc<Transactors> {
        Transactors::counting(state, Arc::default())
    }

    /// Creates an empty registry that counts panics in `counters`.
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

    /// Returns the state of the volume.
    pub(crate) fn state(&self) -> &Arc<VolumeState> {
        &self.state
    }

    /// Returns the number of running transactors.
    pub(crate) fn at_work(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Returns the number of steps that ended in a panic.
    pub(crate) fn panics(&self) -> u64 {
        self.counters.transactor_panics.load(Ordering::Relaxed)
    }

    /// Executes a request at the order's transactor. If the order is idle, the caller's task
    /// becomes the transactor. Otherwise the request waits in the mailbox, or fails with `Busy` if
    /// the mailbox is full. Requests for a suspended order fail with `Busy` too.
    pub(crate) async fn ask(self: &Arc<Self>, id: &OrderId, ask: Ask) -> Result<Outcome, OrderError> {
        self.check_trouble(id)?;
        match self.enter(id, ask)? {
            Entered::Free(ask) => {
                let mut turn = Turn::of(Arc::clone(self), id.clone());
                turn.execute(ask).await
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
                Err(OrderError::Busy("too many requests are waiting for this order"))
            }
            Some(mailbox) => {
                let (answer, receiver) = oneshot::channel();
                mailbox.push_back(Envelope { ask, answer });
                Ok(Entered::Busy(receiver))
            }
        }
    }

    fn shard(&self, id: &OrderId) -> MutexGuard<'_, HashMap<OrderId, Mailbox>> {
        self.shards[self.hasher.hash_one(id) as usize % SHARDS].lock()
    }

    /// Returns an error if the order panicked repeatedly and is still suspended.
    fn check_trouble(&self, id: &OrderId) -> Result<(), OrderError> {
        if self.troubles.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        match self.troubled.lock().get(id) {
            Some(trouble)
                if trouble
                    .suspended_until
                    .is_some_and(|until| until > Instant::now()) =>
            {
                Err(OrderError::Busy(
                    "this order fails again and again and is suspended for a while; retry later",
                ))
            }
            _ => Ok(()),
        }
    }

    fn panicked(&self, id: &OrderId) {
        self.counters.transactor_panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(order = %id, "transactor panicked; the next request restarts it");
        let mut troubled = self.troubled.lock();
        if troubled.len() == TROUBLED_MAX && !troubled.contains_key(id) {
            return;
        }
        let trouble = troubled.entry(id.clone()).or_default();
        trouble.panics += 1;
        if let Some(more) = trouble.panics.checked_sub(PANICS_BEFORE_SUSPENSION) {
            let suspension_ms = (SUSPENSION_FIRST_MS << more.min(16)).min(SUSPENSION_MAX_MS);
            trouble.suspended_until = Some(Instant::now() + Duration::from_millis(suspension_ms));
        }
        self.troubles.store(troubled.len(), Ordering::Relaxed);
    }

    fn succeeded(&self, id: &OrderId) {
        if self.troubles.load(Ordering::Relaxed) > 0 {
            let mut troubled = self.troubled.lock();
            troubled.remove(id);
            self.troubles.store(troubled.len(), Ordering::Relaxed);
        }
    }
}

enum Entered {
    /// The order was idle. The caller is now its transactor.
    Free(Ask),
    /// The order's transactor is running in another task and will send the answer.
    Busy(oneshot::Receiver<Result<Outcome, OrderError>>),
}

/// The right to work on an order. If a `Turn` is dropped with queued rows (`Work::pending`) or
/// waiting requests, a task is spawned that completes the work.
struct Turn(Option<Work>);

impl Turn {
    fn of(transactors: Arc<Transactors>, id: OrderId) -> Turn {
        Turn(Some(Work {
            transactors,
            id,
            known: None,
            pending: None,
            is_registered: true,
        }))
    }

    async fn execute(&mut self, ask: Ask) -> Result<Outcome, OrderError> {
        match &mut self.0 {
            Some(work) => work.execute(ask).await,
            None => Err(OrderError::Interrupted),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut work) = self.0.take() else { return };
        if work.pending.is_none() && work.remove_if_idle() {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(_) => drop(runtime::spawn(work.run())),
            // No runtime is running, so nothing can complete the work.
            Err(_) => drop(work),
        }
    }
}

/// The result of one attempt to execute a request.
enum Ended {
    Done(Outcome),
    /// The store for a new order must be searched again (see `Begun::SearchAgain`).
    SearchAgain(Box<[Line]>),
}

/// The work on one order, owned by one task at a time.
struct Work {
    transactors: Arc<Transactors>,
    id: OrderId,
    known: Option<Arc<Order>>,
    pending: Option<Pending>,
    /// `true` while the registry has a mailbox for this work.
    is_registered: bool,
}

impl Drop for Work {
    /// Removes the mailbox if the work has not ended, for example because of a panic outside of a
    /// step. The waiting callers get an error, because the senders of their answers are dropped.
    fn drop(&mut self) {
        if self.is_registered {
            let left = self.transactors.shard(&self.id).remove(&self.id);
            drop(left);
        }
    }
}

impl Work {
    /// Removes the order from the registry and returns `true` if no request is waiting. Requests
    /// are added under the same lock, so no request is lost.
    fn remove_if_idle(&mut self) -> bool {
        let mut shard = self.transactors.shard(&self.id);
        let is_idle = shard.get(&self.id).is_none_or(VecDeque::is_empty);
        if is_idle {
            shard.remove(&self.id);
        }
        drop(shard);
        self.is_registered &= !is_idle;
        is_idle
    }

    /// Finishes a pending step, executes the requests in the mailbox, and returns when the mailbox
    /// is empty.
    async fn run(mut self) {
        if self.pending.is_some() {
            // The caller of the pending step has disconnected, but the step must be finished.
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
                self.is_registered = false;
                return;
            };
            let outcome = self.execute(ask).await;
            // The send fails if the caller has disconnected. The executed request remains valid.
            let _ = answer.send(outcome);
        }
    }

    async fn execute(&mut self, ask: Ask) -> Result<Outcome, OrderError> {
        let outcome = self.step(ask).await;
        self.remember(&outcome);
        outcome
    }

    fn remember(&mut self, outcome: &Result<Outcome, OrderError>) {
        if !matches!(outcome, Err(OrderError::Interrupted)) {
            self.transactors.succeeded(&self.id);
        }
        // After a failed step, `known` is empty, so the next step reads the order from the volume.
        self.known = outcome.as_ref().ok().map(|outcome| Arc::clone(&outcome.order));
    }

    async fn step(&mut self, mut ask: Ask) -> Result<Outcome, OrderError> {
        let is_repeated = matches!(ask, Ask::PlaceAgain(_));
        for _ in 0..PLACE_TRIES {
            match self.try_step(ask).await? {
                Ended::Done(outcome) => return Ok(outcome),
                Ended::SearchAgain(lines) if is_repeated => ask = Ask::PlaceAgain(lines),
                Ended::SearchAgain(lines) => ask = Ask::Place(lines),
            }
        }
        Err(OrderError::Busy(STOCK_CHANGES))
    }

    async fn try_step(&mut self, ask: Ask) -> Result<Ended, OrderError> {
        let state = Arc::clone(&self.transactors.state);
        #[cfg(test)]
        assert!(!matches!(ask, Ask::PanicInSearch), "requested by a test");
        let permit = if ask.waits_for_room() {
            Some(state.storage.permit().await?)
        } else {
            None
        };
        let remote = state.remote();
        let Searched { here, elsewhere } = match (&ask, remote) {
            (Ask::Place(lines), Some(remote)) => {
                state
                    .reserve_elsewhere(remote.as_ref(), &self.id, lines, false)
                    .await?
            }
            (Ask::PlaceAgain(lines), Some(remote)) => {
                state
                    .reserve_elsewhere(remote.as_ref(), &self.id, lines, true)
                    .await?
            }
            _ => Searched::default(),
        };
        let placement = RemotePlacement {
            were_asked: remote.is_some(),
            asked_below: here,
            reserved: elsewhere,
        };
        let known = self.known.take();
        match self.guarded(|| begin(&state, &self.id, known, ask, placement, permit))? {
            Begun::Done(outcome) => Ok(Ended::Done(outcome)),
            Begun::SearchAgain(lines) => Ok(Ended::SearchAgain(lines)),
            Begun::Pending(pending) => {
                self.pending = Some(pending);
                let outcome = self.settle().await?;
                if elsewhere.is_some_and(|reserved| reserved.is_lent) {
                    let counters = &self.transactors.counters;
                    counters
                        .orders_from_borrowed_units
                        .fetch_add(1, Ordering::Relaxed);
                }
                if let (Some(reserved), Some(remote)) =
                    (elsewhere.filter(|reserved| !reserved.is_lent), remote)
                {
                    remote.confirm(&self.id, reserved.nonce, reserved.store);
                }
                Ok(Ended::Done(outcome))
            }
        }
    }

    /// Waits until the commit of the pending step has succeeded or failed, and finishes the step.
    /// Cancellation safe: a dropped call may be repeated.
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

    /// Runs a step and turns a panic into `OrderError::Interrupted`.
    fn guarded<T>(&self, step: impl FnOnce() -> Result<T, OrderError>) -> Result<T, OrderError> {
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(done) => done,
            Err(_) => {
                self.transactors.panicked(&self.id);
                Err(OrderError::Interrupted)
            }
        }
    }
}

/// Begins a request on an order. Reads the order from the volume unless `known` is given.
fn begin(
    state: &VolumeState,
    id: &OrderId,
    known: Option<Arc<Order>>,
    ask: Ask,
    placement: RemotePlacement,
    permit: Option<Permit<'_>>,
) -> Result<Begun, OrderError> {
    state.slots.check_order(id)?;
    let known = match known {
        Some(order) => Some(order),
        None => state.storage.order(id)?.map(Arc::new),
    };
    match (ask, known) {
        (Ask::Place(lines) | Ask::PlaceAgain(lines), None) => state.place(id, lines, placement),
        (Ask::Place(lines) | Ask::PlaceAgain(lines), Some(order)) => match order.placed_again(&lines) {
            Ok(()) => Ok(Begun::Done(Outcome {
                order,
                repeated: true,
            })),
            Err(refusal) => Err(OrderError::Refused(refusal)),
        },
        (Ask::Command(command), Some(order)) => state.command(order, &command, permit),
        (Ask::Note(kind, message), Some(order)) => state.note_attempts(order, kind, &message, permit),
        (Ask::Retry(kind), Some(order)) => state.retry_message(order, kind, permit),
        (Ask::Drop(kind), Some(order)) => state.drop_message(order, kind, permit),
        (Ask::Look, Some(order)) => Ok(Begun::Done(Outcome {
            order,
            repeated: true,
        })),
        #[cfg(test)]
        (Ask::Panic | Ask::PanicInSearch, _) => panic!("requested by a test"),
        (_, None) => Err(OrderError::Unknown),
    }
}

#[cfg(test)]
pub(crate) mod tests;
