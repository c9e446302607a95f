//! The outbox: the messages to the warehouse and the time of each next try.
//!
//! A message is a row that is committed with the change of the order that requires the message. The
//! row is removed by the commit that records the warehouse's final answer or makes the message
//! needless. This module is the schedule of these rows in memory. The module has no IO and gets the
//! time from its caller. Each kind of message has a separate queue, limit of calls in flight and
//! circuit breaker, so that slow announcements do not delay deliveries.
//!
//! **Invariants**
//! - Waits follow the monotonic clock. Stored rows and lists for operators have the time of day
//!   (`runtime::clock`).
//! - After a failed try, a message waits for a random share of a doubling backoff (full jitter), or
//!   longer if the warehouse requests it, but at most `OutboxLimits::backoff_max_ms`. The breaker,
//!   the retry budget and the limits of calls may delay the next try further.
//! - A malformed message, or one that is given up after its last permitted try (`queue`), is a dead
//!   letter. It is not sent until an operator retries it.
//! - A message that fails repeatedly does not block other messages (`queue`).
//!
//! Deliberately absent: tasks (`volume::jobs::dispatcher`), rows (`storage`), and the sequence of
//! the messages of one order (`domain::order`).

mod circuit_breaker;
mod limits;
mod messages;
mod queue;
mod retry_budget;
mod schedule;
mod slow_start;
pub(crate) mod warehouse_client;

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::order::OrderId;
pub use crate::outbox::limits::OutboxLimits;
use crate::outbox::messages::Slot;
use crate::outbox::queue::MessageQueue;
use crate::runtime::clock::Moment;

/// The kind of a message: the request that it makes to the warehouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MessageKind)]
pub(crate) enum Kind {
    /// The message asks the warehouse to prepare the order.
    Announce,
    /// The message asks the warehouse to deliver the order.
    Deliver,
}

impl Kind {
    /// Both kinds, in the sequence in which the messages of one order are sent.
    pub(crate) const ALL: [Kind; 2] = [Kind::Announce, Kind::Deliver];

    /// Returns the name of the kind in keys and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Announce => "announce",
            Kind::Deliver => "deliver",
        }
    }

    /// Returns the kind with this name. `None` for another name.
    pub(crate) fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MessageState {
    /// The message waits for its first or next try, or a call is in flight. The state ends with a
    /// final answer of the warehouse, when the order no longer needs the message, or when the
    /// message becomes a dead letter.
    Waiting,
    /// The message is a dead letter: it is not sent again until an operator retries it.
    Dead,
}

/// The stored part of a message: its state and its tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The state of the message.
    pub state: MessageState,
    /// Number of failed tries since the message was added or an operator retried it.
    pub attempts: u32,
    /// UTC milliseconds of the next try. Without a meaning for a dead letter.
    pub next_try_ms: u64,
    /// Reason of the last failure. `None` if no try has failed.
    pub last_error: Option<Box<str>>,
}

impl Message {
    /// Returns a message without failed tries that is due at `now_ms`.
    pub(crate) fn new(now_ms: u64) -> Message {
        Message {
            state: MessageState::Waiting,
            attempts: 0,
            next_try_ms: now_ms,
            last_error: None,
        }
    }
}

/// The class of a failure. The class decides if the circuit breaker counts the failure and if the
/// message is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The warehouse gave no answer, or an answer that means "not available now".
    Unreachable,
    /// The warehouse answered with an error of its own (such as status 500), or with a status that
    /// shows a wrong URL or setting (such as 404). Or the answer decides nothing, such as status
    /// 409 with an unknown problem type.
    Error,
    /// The warehouse still processes an earlier try of the same message, or requests a later try by
    /// status 409 with `Retry-After`.
    InProgress,
    /// The request is invalid: the warehouse rejects it, or it cannot be built. The message becomes
    /// a dead letter immediately.
    Malformed,
}

/// The condition of the calls of one kind. The worse condition is the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CallHealth {
    /// Neither `Failing` nor `Away` applies. For example, the last call was answered, or no call
    /// was made yet.
    Answered,
    /// A failed retry was at least the third failure in a row, no answer came since, and a message
    /// still waits. Calls are still made (`queue`).
    Failing,
    /// The circuit breaker is open: only probes are sent.
    Away,
}

/// A failed call to the warehouse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// The warehouse's answer, or the reason why there is none.
    pub(crate) reason: String,
    /// The wait requested by the warehouse (`Retry-After`).
    pub(crate) retry_after_ms: Option<u64>,
}

impl Failure {
    /// Returns a failure without a requested wait.
    pub(crate) fn new(kind: FailureKind, reason: impl Into<String>) -> Failure {
        Failure {
            kind,
            reason: reason.into(),
            retry_after_ms: None,
        }
    }
}

/// A message to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) order: OrderId,
    pub(crate) kind: Kind,
    /// `true` if the try is a probe while the breaker is open.
    pub(crate) probe: bool,
    /// `true` if the message failed before (`RetryClass::Again`).
    pub(crate) again: bool,
}

/// A message in a list for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Message)]
pub(crate) struct ListedMessage {
    /// The order.
    pub order: OrderId,
    /// The kind of the message.
    pub kind: Kind,
    /// The state of the message.
    pub state: MessageState,
    /// Number of failed tries.
    pub attempts: u32,
    /// Reason of the last failure. For an untried message that waits because other calls fail, the
    /// reason of their last failure.
    #[schema(value_type = Option<String>, required = true)]
    pub last_error: Option<Box<str>>,
    /// UTC milliseconds of the next try.
    pub next_try_ms: u64,
}

/// The schedule of all messages of a volume.
#[derive(Debug)]
pub(crate) struct Outbox {
    limits: OutboxLimits,
    queues: [MessageQueue; 2],
    /// Monotonic time at which the dispatcher calls `next` again without a wake-up: the time in the
    /// last `Err` of `next`. `u64::MAX` if there is none.
    next_wake_ms: u64,
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
            next_wake_ms: u64::MAX,
        }
    }

    /// Adds or replaces a message. Returns `true` if the dispatcher must be woken. While the
    /// maximum number of calls is in flight or only probes are sent, the dispatcher is not woken
    /// for a message that it could not send.
    pub(crate) fn set(&mut self, order: OrderId, kind: Kind, message: &Message, now: Moment) -> bool {
        let mut slot = slot(&self.limits, message, now);
        let queue = &mut self.queues[kind as usize];
        let ready_ms = if queue.has_room(&self.limits) {
            queue.breaker.ready_ms(slot.due_ms)
        } else {
            u64::MAX
        };
        slot.in_flight = queue.get(&order).is_some_and(|known| known.in_flight);
        let calls = slot.state == MessageState::Waiting && ready_ms < self.next_wake_ms;
        queue.set(order, slot);
        calls
    }

    /// Removes a message that was answered or is no longer needed. Does nothing if the message does
    /// not exist.
    pub(crate) fn remove(&mut self, order: &OrderId, kind: Kind) {
        let queue = &mut self.queues[kind as usize];
        if let Some(slot) = queue.messages.remove(order) {
            queue.count_out(&slot);
        }
    }

    /// Adds, replaces or (with `None`) removes a message of an order that is migrating to this
    /// volume. The message is invisible until `activate_parked`.
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
                slot.migration = queue.migrations + 1;
                queue.messages.insert(order, slot)
            }
        };
        if let Some(before) = before {
            queue.count_out(&before);
        }
    }

    /// Makes parked messages eligible for sending, after the migration of their orders is
    /// committed. Takes constant time, unless `schedule::MIGRATED_MAX` earlier migrations still
    /// have scheduled messages.
    pub(crate) fn activate_parked(&mut self) {
        self.queues.iter_mut().for_each(MessageQueue::activate_parked);
    }

    /// Removes the messages of orders for which `stays` returns `false`: their migration away was
    /// committed, or their migration to this volume was undone. The messages are divided in parts
    /// (`messages`), and one call handles the part with the index `at`. Calls in flight end as
    /// usual. Returns `false` if no part has this index.
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

    /// Drops the schedule of parked messages after their migration was undone.
    pub(crate) fn unpark(&mut self) {
        self.queues.iter_mut().for_each(MessageQueue::unpark);
    }

    /// Returns the next message to send now and counts it as in flight. If no message can be sent
    /// now, returns the monotonic time at which to call `next` again, if such a time is known.
    pub(crate) fn next(&mut self, now_ms: u64) -> Result<Job, Option<u64>> {
        let mut look_again: Option<u64> = None;
        for kind in [Kind::Deliver, Kind::Announce] {
            match self.queues[kind as usize].next(kind, &self.limits, now_ms) {
                Ok(job) => return Ok(job),
                Err(None) => {}
                Err(Some(at_ms)) => look_again = Some(look_again.map_or(at_ms, |known| known.min(at_ms))),
            }
        }
        self.next_wake_ms = look_again.unwrap_or(u64::MAX);
        Err(look_again)
    }

    /// Ends a call that got a final answer.
    pub(crate) fn answered(&mut self, job: &Job) {
        let queue = &mut self.queues[job.kind as usize];
        queue.land(job);
        queue.answered(&self.limits);
    }

    /// Ends a failed call. Returns the changed message, which the caller writes, or `None` if the
    /// message was removed or is parked. `jitter` is a random share of the backoff, from 0 to 1.
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
        // No wake-up is needed here, because the dispatcher is woken after every call that ended.
        queue.set(job.order.clone(), slot);
        Some(message)
    }

    /// Ends a call without a result: the call was not made, or this node could not store its
    /// answer. The message is due again at `at_ms`, and no try is counted.
    pub(crate) fn put_back(&mut self, job: &Job, at_ms: u64) {
        let queue = &mut self.queues[job.kind as usize];
        queue.land(job);
        if job.probe {
            queue.breaker.cancel_probe();
        }
        if let Some(slot) = queue.get(&job.order) {
            slot.due_ms = at_ms;
            let attempts = slot.attempts;
            queue.push(at_ms, attempts, job.order.clone());
        }
    }

    /// Returns `true` if the outbox has at least `OutboxLimits::messages_max` messages, dead
    /// letters included. In that case the caller rejects new orders.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limits.messages_max
    }

    /// Returns the number of messages of both kinds, dead letters included and parked messages
    /// excluded.
    pub(crate) fn len(&self) -> usize {
        let in_force = self
            .queues
            .iter()
            .map(|queue| queue.messages.len() - queue.parked.all);
        in_force.sum()
    }

    /// Returns the number of dead letters, parked ones excluded.
    pub(crate) fn dead(&self) -> usize {
        self.queues.iter().map(|queue| queue.dead).sum()
    }

    /// Returns the number of calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.queues.iter().map(|queue| queue.in_flight).sum()
    }

    /// Returns the condition of the calls of this kind.
    pub(crate) fn call_health(&self, kind: Kind) -> CallHealth {
        let queue = &self.queues[kind as usize];
        match (queue.breaker.is_open(), queue.has_failing_calls()) {
            (true, _) => CallHealth::Away,
            (false, true) => CallHealth::Failing,
            (false, false) => CallHealth::Answered,
        }
    }

    /// Returns the worse condition of the two kinds.
    pub(crate) fn warehouse_health(&self) -> CallHealth {
        let [announce, deliver] = Kind::ALL.map(|kind| self.call_health(kind));
        announce.max(deliver)
    }

    /// Returns the number of counted failures in a row of calls of this kind, but at most the
    /// number that opens the breaker.
    pub(crate) fn failures(&self, kind: Kind) -> u32 {
        self.queues[kind as usize].breaker.failures(&self.limits)
    }

    /// Returns `true` if the breaker of either kind is open.
    pub(crate) fn is_warehouse_away(&self) -> bool {
        self.warehouse_health() == CallHealth::Away
    }

    /// Returns the orders with a waiting message that would never be sent, because the message is
    /// neither parked, scheduled nor in flight.
    #[cfg(test)]
    pub(crate) fn unscheduled(&self) -> Vec<OrderId> {
        self.queues.iter().flat_map(MessageQueue::unscheduled).collect()
    }

    /// Returns a message. `None` if the message does not exist or is parked.
    pub(crate) fn get(&self, order: &OrderId, kind: Kind) -> Option<&Slot> {
        let queue = &self.queues[kind as usize];
        queue.messages.get(order).filter(|slot| !queue.is_parked(slot))
    }

    /// Returns at most `limit` messages after `cursor`, ascending by order and kind. Parked
    /// messages are left out. Without a cursor, begins with the first message.
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
            last_error: slot.last_error.clone().or_else(|| self.breaker_cause(kind)),
            next_try_ms: now.wall_ms_of(slot.due_ms),
        };
        smallest.into_iter().map(list).collect()
    }

    /// Returns the reason why untried messages of this kind wait while the breaker is open. `None`
    /// while the breaker is closed.
    fn breaker_cause(&self, kind: Kind) -> Option<Box<str>> {
        let cause = self.queues[kind as usize].cause.as_deref()?;
        Some(format!("not tried yet, since other calls fail: {cause}").into())
    }
}

/// Converts the row of a message into its form in memory.
fn slot(limits: &OutboxLimits, message: &Message, now: Moment) -> Slot {
    Slot {
        state: message.state,
        attempts: message.attempts,
        due_ms: now.due_ms(message.next_try_ms, limits.backoff_max_ms),
        last_error: message.last_error.clone(),
        in_flight: false,
        answers_before: 0,
        unanswered: true,
        migration: 0,
    }
}

/// Returns the `limit` smallest elements by key, ascending, without sorting the other elements.
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
