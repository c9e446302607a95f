//! The messages of one kind: the choice of the next message, and the consequences of a failure.
//!
//! Fresh messages (`Slot::attempts` is 0) and failed messages are two classes with separate
//! schedules, so that neither class can block the other.
//!
//! **Invariants**
//! - If both classes have a message that may be sent now, the classes take turns, for probes too.
//! - Failed messages use at most half of the permitted calls in flight, but at least one, and a
//!   budget of retries. A probe needs no budget while no other probe is in flight.
//! - If other messages were answered since a message last failed, the message itself is at fault
//!   for its next failure. The breaker counts this failure only if the call is a probe.
//! - A message becomes a dead letter if it is malformed or given up. A message that has used up its
//!   tries is given up if other messages were answered since that message last failed. The message
//!   is also given up if the breaker is closed and its last try was answered (the failure is not
//!   `FailureKind::Unreachable`). If the last answer was "in progress", the message is given up
//!   only if the try before was answered, too.
//!
//! Deliberately absent: rows, tasks and the HTTP client.

use crate::domain::order::OrderId;
use crate::outbox::circuit_breaker::{CircuitBreaker, Pass};
use crate::outbox::messages::{Messages, Slot};
use crate::outbox::retry_budget::{BUDGET_WAIT_MS, RetryBudget};
use crate::outbox::schedule::Schedule;
use crate::outbox::slow_start::SlowStart;
use crate::outbox::{Failure, FailureKind, Job, Kind, MessageState, OutboxLimits};

/// Number of counted failures in a row from which the calls count as failing, if the last of these
/// failed calls was a retry.
///
/// With few orders, the tries of one message reach this number within seconds. They reach the
/// number that opens the breaker (`OutboxLimits::breaker_failures`) only after minutes. At a high
/// rate, three first tries in a row may fail by chance, although the warehouse is healthy. Such a
/// warehouse usually answers other calls before the first retry, and an answer ends the row. So a
/// row counts as trouble only once its third or a later failure is that of a retry.
const FAILING_FROM: u32 = 3;

/// The class of a message: fresh or failed. Each class has a schedule of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RetryClass {
    /// Messages with `Slot::attempts` of 0.
    Fresh,
    /// Messages with `Slot::attempts` above 0, which failed before.
    #[default]
    Again,
}

impl RetryClass {
    /// Returns the class of a message with this number of failed tries.
    pub(super) fn of(attempts: u32) -> RetryClass {
        if attempts == 0 {
            RetryClass::Fresh
        } else {
            RetryClass::Again
        }
    }

    fn other(self) -> RetryClass {
        match self {
            RetryClass::Fresh => RetryClass::Again,
            RetryClass::Again => RetryClass::Fresh,
        }
    }
}

/// The queue of all messages of one kind.
#[derive(Debug, Default)]
pub(super) struct MessageQueue {
    pub(super) messages: Messages,
    /// Times of the next tries, by class. An entry is outdated, and is skipped, if its message was
    /// removed, is dead, in flight or parked, or has another class or `due_ms`.
    due: [Schedule; 2],
    /// Counts of parked messages, which belong to slots that are migrating to this volume.
    pub(super) parked: Parked,
    /// Number of migrations to this volume that were activated. A message with a higher
    /// `Slot::migration` is parked.
    pub(super) migrations: u64,
    pub(super) in_flight: usize,
    /// Number of calls in flight for messages that failed before.
    again_in_flight: usize,
    pub(super) dead: usize,
    pub(super) slow_start: SlowStart,
    pub(super) breaker: CircuitBreaker,
    budget: RetryBudget,
    /// No failed message is tried before this monotonic time in milliseconds, because the retry
    /// budget was used up. In the past, or 0, if failed messages need not wait.
    again_from_ms: u64,
    /// The class of the message that was sent last. `Again` before the first message.
    served: RetryClass,
    /// Order of the fresh message that was added last, until a probe takes it. This message is the
    /// best probe, because it resembles the next orders most.
    latest: Option<OrderId>,
    /// Number of answers that showed that the warehouse is reachable (`answered`). Wraps around.
    answers: u32,
    /// While the breaker is open, the reason of the last failure that `count_failure` counted.
    /// `None` while the breaker is closed.
    pub(super) cause: Option<Box<str>>,
    /// `true` after a failed retry that was at least the third counted failure in a row, until the
    /// next answer.
    pub(super) is_failing: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parked {
    pub(super) all: usize,
    pub(super) dead: usize,
}

impl MessageQueue {
    /// Creates a queue with these messages, none of them parked.
    pub(super) fn of(messages: Vec<(OrderId, Slot)>) -> MessageQueue {
        let mut queue = MessageQueue {
            messages: Messages::with_room_for(messages.len()),
            ..MessageQueue::default()
        };
        let mut due = [Vec::new(), Vec::new()];
        for (order, slot) in messages {
            match slot.state {
                MessageState::Waiting => {
                    due[RetryClass::of(slot.attempts) as usize].push((slot.due_ms, order.clone()));
                }
                MessageState::Dead => queue.dead += 1,
            }
            queue.messages.insert(order, slot);
        }
        // Each heap is built in one step, which takes less time than pushing the entries one by
        // one. This time matters, because the volume's orders wait while a process opens the
        // volume.
        queue.due = due.map(Schedule::of);
        queue
    }

    pub(super) fn is_parked(&self, slot: &Slot) -> bool {
        slot.migration > self.migrations
    }

    /// Returns a message. `None` if the message does not exist or is parked.
    pub(super) fn get(&mut self, order: &OrderId) -> Option<&mut Slot> {
        let migrations = self.migrations;
        let slot = self.messages.get_mut(order);
        slot.filter(|slot| slot.migration <= migrations)
    }

    /// Adds or replaces a message.
    pub(super) fn set(&mut self, order: OrderId, mut slot: Slot) {
        slot.migration = self.migrations;
        match slot.state {
            MessageState::Waiting => self.push(slot.due_ms, slot.attempts, order.clone()),
            MessageState::Dead => self.dead += 1,
        }
        if slot.state == MessageState::Waiting && slot.attempts == 0 {
            self.latest = Some(order.clone());
        }
        if let Some(before) = self.messages.insert(order, slot) {
            self.count_out(&before);
        }
    }

    /// Returns the orders with a waiting message that would never be sent, because the message is
    /// neither parked, scheduled nor in flight.
    #[cfg(test)]
    pub(super) fn unscheduled(&self) -> Vec<OrderId> {
        let waiting = self.messages.iter().filter(|(_, slot)| {
            slot.state == MessageState::Waiting && !slot.in_flight && !self.is_parked(slot)
        });
        let is_missing = |(order, slot): &(&OrderId, &Slot)| {
            let due = &self.due[RetryClass::of(slot.attempts) as usize];
            !due.has(slot.due_ms, order)
        };
        waiting
            .filter(is_missing)
            .map(|(order, _)| order.clone())
            .collect()
    }

    pub(super) fn push(&mut self, due_ms: u64, attempts: u32, order: OrderId) {
        self.due[RetryClass::of(attempts) as usize].push(due_ms, order);
    }

    pub(super) fn park(&mut self, due_ms: u64, attempts: u32, order: OrderId) {
        self.due[RetryClass::of(attempts) as usize].park(due_ms, order);
    }

    pub(super) fn unpark(&mut self) {
        self.due.iter_mut().for_each(Schedule::unpark);
    }

    pub(super) fn activate_parked(&mut self) {
        self.migrations += 1;
        self.dead += std::mem::take(&mut self.parked).dead;
        self.due.iter_mut().for_each(Schedule::activate_parked);
    }

    /// Subtracts a removed or replaced message from the counts.
    pub(super) fn count_out(&mut self, slot: &Slot) {
        let is_dead = usize::from(slot.state == MessageState::Dead);
        if self.is_parked(slot) {
            self.parked.all -= 1;
            self.parked.dead -= is_dead;
        } else {
            self.dead -= is_dead;
        }
    }

    pub(super) fn has_room(&self, limits: &OutboxLimits) -> bool {
        self.slow_start.has_room(self.in_flight, limits.in_flight_max)
    }

    /// Returns `true` if another call may be made for a message that failed before. Such calls may
    /// be half of the permitted calls in flight, but at least one. Calls for fresh messages are not
    /// counted here (see `has_room`).
    fn has_room_again(&self, limits: &OutboxLimits) -> bool {
        self.again_in_flight < (self.slow_start.room(limits.in_flight_max) / 2).max(1)
    }

    /// Returns the earliest time at which a message of a class is due. Drops the outdated entries
    /// before that of this message. `None` if no current entry is left.
    fn first(&mut self, class: RetryClass) -> Option<u64> {
        let migrations = self.migrations;
        let due = &mut self.due[class as usize];
        while let Some((due_ms, order)) = due.peek() {
            let is_current = self.messages.get_mut(order).is_some_and(|slot| {
                slot.state == MessageState::Waiting
                    && slot.due_ms == *due_ms
                    && RetryClass::of(slot.attempts) == class
                    && !slot.in_flight
                    && slot.migration <= migrations
            });
            if is_current {
                return Some(*due_ms);
            }
            due.pop();
        }
        None
    }

    /// Chooses the class of the next message. If no message may be sent now, returns `Err` with the
    /// earliest time at which one may, as far as known.
    fn choose(&mut self, limits: &OutboxLimits, now_ms: u64) -> Result<RetryClass, Option<u64>> {
        let fresh = self.first(RetryClass::Fresh);
        let again = self
            .first(RetryClass::Again)
            .filter(|_| self.has_room_again(limits))
            .map(|due_ms| due_ms.max(self.again_from_ms));
        let is_due = |due_ms: Option<u64>| due_ms.is_some_and(|due_ms| due_ms <= now_ms);
        match (is_due(fresh), is_due(again)) {
            (true, true) => Ok(self.served.other()),
            (true, false) => Ok(RetryClass::Fresh),
            (false, true) => Ok(RetryClass::Again),
            (false, false) => Err(fresh.into_iter().chain(again).min()),
        }
    }

    /// Returns the next message to send now and counts it as in flight. If no message can be sent
    /// now, returns the monotonic time at which to call `next` again, if such a time is known.
    pub(super) fn next(
        &mut self,
        kind: Kind,
        limits: &OutboxLimits,
        now_ms: u64,
    ) -> Result<Job, Option<u64>> {
        if !self.has_room(limits) {
            return Err(None);
        }
        loop {
            let class = self.choose(limits, now_ms)?;
            let probe = match self.breaker.pass(now_ms) {
                Pass::Free => false,
                Pass::Probe => true,
                Pass::At(at_ms) => return Err(Some(at_ms)),
                Pass::AfterProbe => return Err(None),
            };
            // If no other probe is in flight, this probe may retry a message without a budget,
            // because only a probe can detect the end of an outage.
            let is_free = probe && self.breaker.has_one_probe();
            self.budget.fill(limits, now_ms);
            if class == RetryClass::Fresh {
                self.budget.first_try(limits);
            } else if !is_free && !self.budget.allows_retry() {
                if probe {
                    self.breaker.cancel_probe();
                }
                self.again_from_ms = now_ms + BUDGET_WAIT_MS;
                continue;
            }
            self.served = class;
            if let Some(order) = self.take(class, probe) {
                return Ok(Job {
                    order,
                    kind,
                    probe,
                    again: class == RetryClass::Again,
                });
            }
        }
    }

    /// Removes the first message of a class from its schedule and counts it as in flight. For a
    /// probe with a fresh message, chooses the message of `latest` instead, if it is still waiting.
    fn take(&mut self, class: RetryClass, probe: bool) -> Option<OrderId> {
        let latest = self.latest.take_if(|_| probe && class == RetryClass::Fresh);
        let is_fresh =
            |slot: &&mut Slot| slot.state == MessageState::Waiting && slot.attempts == 0 && !slot.in_flight;
        let latest = latest.filter(|order| self.get(order).filter(is_fresh).is_some());
        let order = match latest {
            // The schedule still has an entry of this message. The entry is skipped while the
            // message is in flight.
            Some(order) => order,
            None => self.due[class as usize].pop()?.1,
        };
        self.get(&order)?.in_flight = true;
        self.in_flight += 1;
        self.again_in_flight += usize::from(class == RetryClass::Again);
        Some(order)
    }

    /// Returns `true` if the calls fail (`is_failing`) and a message is neither dead nor parked.
    pub(super) fn has_failing_calls(&self) -> bool {
        self.is_failing && self.messages.len() - self.parked.all > self.dead
    }

    /// Marks a call as ended.
    pub(super) fn land(&mut self, job: &Job) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.again_in_flight = self.again_in_flight.saturating_sub(usize::from(job.again));
        if let Some(slot) = self.get(&job.order) {
            slot.in_flight = false;
        }
    }

    /// Counts an answer that shows that the warehouse is reachable, and closes the breaker.
    pub(super) fn answered(&mut self, limits: &OutboxLimits) {
        self.breaker = CircuitBreaker::default();
        self.cause = None;
        self.is_failing = false;
        self.slow_start.answered(limits.in_flight_max);
        self.answers = self.answers.wrapping_add(1);
    }

    /// Counts a failed call. Returns the message with its new state and the time of its next try,
    /// or `None` if the message was removed or is parked.
    pub(super) fn failed(
        &mut self,
        job: &Job,
        failure: &Failure,
        limits: &OutboxLimits,
        now_ms: u64,
        jitter: f64,
    ) -> Option<Slot> {
        let answers = self.answers;
        let is_own = self
            .get(&job.order)
            .is_some_and(|slot| slot.attempts > 0 && slot.answers_before != answers);
        match failure.kind {
            // Such an answer shows that the warehouse has examined the message, so the warehouse is
            // reachable. A message that this node cannot build is treated in the same way.
            FailureKind::InProgress | FailureKind::Malformed => self.answered(limits),
            FailureKind::Unreachable | FailureKind::Error => {
                if job.probe || !is_own {
                    self.count_failure(job, failure, limits, now_ms);
                }
            }
        }
        let (answers, is_open) = (self.answers, self.breaker.is_open());
        let slot = self.get(&job.order)?;
        let attempts = slot.attempts.saturating_add(1);
        let may_give_up = match failure.kind {
            // Without an answer to another message in the meantime, the failure says nothing about
            // this message: the warehouse may be down. So an outage makes no dead letters, however
            // few orders there are.
            FailureKind::Unreachable => is_own,
            // The warehouse executes an earlier try to which it has not responded, such as one in
            // an outage. So an outage makes no dead letter of a message that the warehouse accepts.
            FailureKind::InProgress => !slot.unanswered,
            FailureKind::Error | FailureKind::Malformed => is_own || !is_open,
        };
        let is_given_up = attempts >= limits.tries_max && may_give_up;
        let is_dead = failure.kind == FailureKind::Malformed || is_given_up;
        let backoff_ms = (limits.backoff_ms(attempts) as f64 * jitter) as u64;
        let asked_ms = failure.retry_after_ms.unwrap_or(0);
        Some(Slot {
            state: if is_dead {
                MessageState::Dead
            } else {
                MessageState::Waiting
            },
            attempts,
            due_ms: now_ms + backoff_ms.max(asked_ms).min(limits.backoff_max_ms),
            last_error: Some(failure.reason.as_str().into()),
            in_flight: false,
            answers_before: answers,
            unanswered: failure.kind == FailureKind::Unreachable,
            migration: slot.migration,
        })
    }

    fn count_failure(&mut self, job: &Job, failure: &Failure, limits: &OutboxLimits, now_ms: u64) {
        self.breaker.failed(limits, failure, job.probe, now_ms);
        self.is_failing |= job.again && self.breaker.failures(limits) >= FAILING_FROM;
        if !self.breaker.is_open() {
            return;
        }
        self.cause = Some(failure.reason.as_str().into());
        self.slow_start.reset();
    }
}
