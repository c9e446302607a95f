//! The outbox: what the warehouse must be told, and when each message is tried next.
//!
//! A message is committed with the state change that calls for it and removed with the one that
//! answers it. The outbox is the schedule over those rows: in memory, without IO, driven by the
//! time that its caller gives. Each kind of message is a lane of its own, with its own bound of
//! calls in flight and its own circuit breaker, so that slow announcements do not hold up
//! deliveries. Within an order the state machine keeps the sequence.
//!
//! - Waits follow the monotonic clock. Rows and lists show the time of day (`clock`).
//! - No wait is longer than `OutboxLimits::backoff_max_ms`.
//! - A failed try waits for a random share of a doubling backoff (full jitter). After the last try
//!   the message is dead and stays for an operator.
//! - A message that fails again and again never keeps others from being tried (`queue`).
//!
//! Absent: tasks (`volume::jobs::dispatcher`), rows (`storage`).

mod circuit_breaker;
mod limits;
mod messages;
mod queue;
mod retry_budget;
mod schedule;
mod slow_start;
pub(crate) mod warehouse_client;

use serde::Serialize;

use crate::domain::order::OrderId;
pub use crate::outbox::limits::OutboxLimits;
use crate::outbox::messages::Slot;
use crate::outbox::queue::MessageQueue;
use crate::runtime::clock::Moment;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Take this order into preparation.
    Announce,
    /// Deliver this order.
    Deliver,
}

impl Kind {
    /// Both kinds, in the order in which they are sent.
    pub(crate) const ALL: [Kind; 2] = [Kind::Announce, Kind::Deliver];

    /// The name used in keys and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Announce => "announce",
            Kind::Deliver => "deliver",
        }
    }

    /// The kind of that name.
    pub(crate) fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether a message is still tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MessageState {
    /// It is tried until the warehouse answers.
    Waiting,
    /// It was given up; an operator may have it tried again.
    Dead,
}

/// The fate of a message so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Whether it is still tried.
    pub state: MessageState,
    /// Tries that failed.
    pub attempts: u32,
    /// UTC milliseconds of the next try.
    pub next_try_ms: u64,
    /// Why the last try failed.
    pub last_error: Option<Box<str>>,
}

impl Message {
    /// A message to be tried at once.
    pub(crate) fn new(now_ms: u64) -> Message {
        Message {
            state: MessageState::Waiting,
            attempts: 0,
            next_try_ms: now_ms,
            last_error: None,
        }
    }
}

/// The class of a failure: what it says about the warehouse and about the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No answer, or one that says that the warehouse cannot answer now.
    Unreachable,
    /// An answer that is an error of the warehouse.
    Error,
    /// The warehouse is still at work on an earlier try of the same message.
    InProgress,
    /// The warehouse will never understand the message as it is: it is dead at once.
    Malformed,
}

/// A call that failed: the message is tried again, or is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// The answer, or why there is none.
    pub(crate) reason: String,
    /// The wait that the warehouse asks for.
    pub(crate) retry_after_ms: Option<u64>,
}

impl Failure {
    /// A failure without a wish of the warehouse.
    pub(crate) fn new(kind: FailureKind, reason: impl Into<String>) -> Failure {
        Failure {
            kind,
            reason: reason.into(),
            retry_after_ms: None,
        }
    }
}

/// A message that is to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) order: OrderId,
    pub(crate) kind: Kind,
    /// True if the try is a probe of an open breaker.
    pub(crate) probe: bool,
    /// True if the message failed before.
    pub(crate) again: bool,
}

/// A message as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ListedMessage {
    /// The order.
    pub order: OrderId,
    /// What it says.
    pub kind: Kind,
    /// Whether it is still tried.
    pub state: MessageState,
    /// Tries that failed.
    pub attempts: u32,
    /// Why the last one did.
    pub last_error: Option<Box<str>>,
    /// UTC milliseconds of the next try.
    pub next_try_ms: u64,
}

/// The schedule of all messages of a volume.
#[derive(Debug)]
pub(crate) struct Outbox {
    limits: OutboxLimits,
    queues: [MessageQueue; 2],
    /// Time at which the courier looks again by itself, as it was last told.
    looks_again_ms: u64,
}

impl Outbox {
    /// Returns the schedule of a volume's messages.
    pub(crate) fn new(limits: OutboxLimits, messages: &[(OrderId, Kind, Message)], now: Moment) -> Outbox {
        let queue_of = |kind: Kind| {
            let of_kind = messages.iter().filter(|(_, of, _)| *of == kind);
            let slot_of = |message: &Message| slot(&limits, message, now);
            MessageQueue::of(
                of_kind
                    .map(|(order, _, message)| (order.clone(), slot_of(message)))
                    .collect(),
            )
        };
        Outbox {
            limits,
            queues: Kind::ALL.map(queue_of),
            looks_again_ms: u64::MAX,
        }
    }

    /// Puts a message in, or in place of the one that was there. Returns `true` if the courier is
    /// to be called for it. While all calls are taken, or the breaker is open, calling it for each
    /// order would only keep it from its work.
    pub(crate) fn set(&mut self, order: OrderId, kind: Kind, message: &Message, now: Moment) -> bool {
        let mut slot = slot(&self.limits, message, now);
        let queue = &mut self.queues[kind as usize];
        let ready_ms = if queue.has_room(&self.limits) {
            queue.breaker.ready_ms(slot.due_ms)
        } else {
            u64::MAX
        };
        slot.in_flight = queue.get(&order).is_some_and(|known| known.in_flight);
        let calls = slot.state == MessageState::Waiting && ready_ms < self.looks_again_ms;
        queue.set(order, slot);
        calls
    }

    /// Takes a message out: it was answered, or need not be sent any more.
    pub(crate) fn remove(&mut self, order: &OrderId, kind: Kind) {
        let queue = &mut self.queues[kind as usize];
        if let Some(slot) = queue.messages.remove(order) {
            queue.count_out(&slot);
        }
    }

    /// Puts a message of slots that are being migrated in, in place of its former version, or takes
    /// that out again. It is invisible until `put_in_force`.
    pub(crate) fn park(&mut self, order: OrderId, kind: Kind, message: Option<&Message>, now: Moment) {
        let limits = self.limits;
        let queue = &mut self.queues[kind as usize];
        let before = match message {
            None => queue.messages.remove(&order),
            Some(message) => {
                let mut slot = slot(&limits, message, now);
                queue.parked.all += 1;
                queue.parked.dead += usize::from(slot.state == MessageState::Dead);
                if slot.state == MessageState::Waiting {
                    queue.park(slot.due_ms, slot.attempts, order.clone());
                }
                slot.came_with = queue.arrivals + 1;
                queue.messages.insert(order, slot)
            }
        };
        if let Some(before) = before {
            queue.count_out(&before);
        }
    }

    /// Makes parked messages eligible for sending. O(1).
    pub(crate) fn put_in_force(&mut self) {
        self.queues.iter_mut().for_each(MessageQueue::put_in_force);
    }

    /// Forgets messages of orders that are elsewhere, those in the `at`th part of all; a call in
    /// flight lands as ever. Returns `false` if there is no such part.
    pub(crate) fn forget(&mut self, at: usize, stays: impl Fn(&OrderId) -> bool) -> bool {
        let mut is_part = false;
        for queue in &mut self.queues {
            for slot in queue.messages.forget(at, &stays).into_iter().flatten() {
                queue.count_out(&slot);
            }
            is_part = at < queue.messages.parts();
        }
        is_part
    }

    /// Forgets the schedule of parked messages, whose migration was undone.
    pub(crate) fn unpark(&mut self) {
        self.queues.iter_mut().for_each(MessageQueue::unpark);
    }

    /// Returns the next message to send now, counted as in flight; else the monotonic time at which
    /// to look again, if any.
    pub(crate) fn next(&mut self, now_ms: u64) -> Result<Job, Option<u64>> {
        let mut look_again: Option<u64> = None;
        for kind in [Kind::Deliver, Kind::Announce] {
            match self.queues[kind as usize].next(kind, &self.limits, now_ms) {
                Ok(job) => return Ok(job),
                Err(None) => {}
                Err(Some(at_ms)) => look_again = Some(look_again.map_or(at_ms, |known| known.min(at_ms))),
            }
        }
        self.looks_again_ms = look_again.unwrap_or(u64::MAX);
        Err(look_again)
    }

    /// Ends a call whose answer settles the message.
    pub(crate) fn answered(&mut self, job: &Job) {
        let queue = &mut self.queues[job.kind as usize];
        queue.land(job);
        queue.answered(job.kind, &self.limits);
    }

    /// Ends a call that failed. Returns the message as it now stands, to be written; `None` if the
    /// message is no longer wanted. `jitter` is a random share from 0 to 1 of the backoff.
    pub(crate) fn failed(
        &mut self,
        job: &Job,
        failure: &Failure,
        now: Moment,
        jitter: f64,
    ) -> Option<Message> {
        let queue = &mut self.queues[job.kind as usize];
        queue.land(job);
        let slot = queue.failed(job, failure, &self.limits, now.monotonic_ms, jitter)?;
        let message = Message {
            state: slot.state,
            attempts: slot.attempts,
            next_try_ms: now.wall_ms_of(slot.due_ms),
            last_error: slot.last_error.clone(),
        };
        // The caller of this calls the courier anyway.
        queue.set(job.order.clone(), slot);
        Some(message)
    }

    /// Ends a call that failed for a reason of our own: it is made again, and nothing is counted.
    pub(crate) fn put_back(&mut self, job: &Job, at_ms: u64) {
        let queue = &mut self.queues[job.kind as usize];
        queue.land(job);
        if job.probe {
            queue.breaker.probe_is_back();
        }
        if let Some(slot) = queue.get(&job.order) {
            slot.due_ms = at_ms;
            let attempts = slot.attempts;
            queue.push(at_ms, attempts, job.order.clone());
        }
    }

    /// Returns `true` if so many messages wait that new orders are turned away.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limits.waiting_max
    }

    /// Messages of both kinds, dead ones included.
    pub(crate) fn len(&self) -> usize {
        let in_force = self
            .queues
            .iter()
            .map(|queue| queue.messages.len() - queue.parked.all);
        in_force.sum()
    }

    /// Dead messages.
    pub(crate) fn dead(&self) -> usize {
        self.queues.iter().map(|queue| queue.dead).sum()
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.queues.iter().map(|queue| queue.in_flight).sum()
    }

    /// Returns `true` if the breaker of either kind is open.
    pub(crate) fn is_warehouse_away(&self) -> bool {
        self.queues.iter().any(|queue| queue.breaker.is_open())
    }

    /// Returns a message that is in force.
    pub(crate) fn get(&self, order: &OrderId, kind: Kind) -> Option<&Slot> {
        let queue = &self.queues[kind as usize];
        queue.messages.get(order).filter(|slot| !queue.is_parked(slot))
    }

    /// Returns the messages after `cursor` by order and kind, at most `limit`, ascending.
    pub(crate) fn page(
        &self,
        cursor: Option<&(OrderId, Kind)>,
        limit: usize,
        now: Moment,
    ) -> Vec<ListedMessage> {
        let all = Kind::ALL.into_iter().flat_map(|kind| {
            let queue = &self.queues[kind as usize];
            let in_force = queue.messages.iter().filter(|(_, slot)| !queue.is_parked(slot));
            in_force.map(move |(order, slot)| (order, kind, slot))
        });
        let after = all.filter(|(order, kind, _)| match cursor {
            Some((known, known_kind)) => (*order, kind) > (known, known_kind),
            None => true,
        });
        let smallest = smallest(after, limit, |(order, kind, _)| ((*order).clone(), *kind));
        let list = |(order, kind, slot): (&OrderId, Kind, &Slot)| ListedMessage {
            order: order.clone(),
            kind,
            state: slot.state,
            attempts: slot.attempts,
            last_error: slot.last_error.clone().or_else(|| self.held_up(kind)),
            next_try_ms: now.wall_ms_of(slot.due_ms),
        };
        smallest.into_iter().map(list).collect()
    }

    /// Returns why messages of a kind that never failed are not tried, while the breaker is open.
    fn held_up(&self, kind: Kind) -> Option<Box<str>> {
        let cause = self.queues[kind as usize].cause.as_deref()?;
        Some(format!("not tried yet, since other calls fail: {cause}").into())
    }
}

/// Returns a message of a row as it is kept in memory.
fn slot(limits: &OutboxLimits, message: &Message, now: Moment) -> Slot {
    Slot {
        state: message.state,
        attempts: message.attempts,
        due_ms: now.due_ms(message.next_try_ms, limits.backoff_max_ms),
        last_error: message.last_error.clone(),
        in_flight: false,
        answers_before: 0,
        came_with: 0,
    }
}

/// The `limit` smallest of many by key, ascending, without sorting them all.
pub(crate) fn smallest<T, K: Ord>(
    all: impl Iterator<Item = T>,
    limit: usize,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let mut all: Vec<T> = all.collect();
    if all.len() > limit && limit > 0 {
        all.select_nth_unstable_by_key(limit - 1, &key);
    }
    all.truncate(limit);
    all.sort_unstable_by_key(&key);
    all
}

#[cfg(test)]
mod clock_tests;
#[cfg(test)]
mod poison_tests;
#[cfg(test)]
mod tests;
