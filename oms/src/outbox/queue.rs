//! The messages of one kind: which of them is sent next, and what follows from a failure.
//!
//! Messages that were never tried and messages that failed before stand in two queues. Both make
//! progress whatever happens to the other:
//! - where both have a message that is due, they take turns, probes of an open breaker included;
//! - messages that failed before use at most half of the calls in flight, and a budget of tries;
//! - a failure counts for the breaker only if nothing else was answered since the message failed
//!   before: a message that fails while others succeed is at fault itself;
//! - a message dies of its own tries only. While the breaker is open and nothing is answered, the
//!   warehouse is at fault, and no message is given up.

use crate::domain::order::OrderId;
use crate::outbox::circuit_breaker::{CircuitBreaker, Pass};
use crate::outbox::messages::{Messages, Slot};
use crate::outbox::retry_budget::{BUDGET_WAIT_MS, RetryBudget};
use crate::outbox::schedule::Schedule;
use crate::outbox::slow_start::SlowStart;
use crate::outbox::{Failure, FailureKind, Job, Kind, MessageState, OutboxLimits};

/// The two queues of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RetryClass {
    /// Messages that were never tried.
    Fresh,
    /// Messages that failed before.
    #[default]
    Again,
}

impl RetryClass {
    /// Returns the queue of a message with that many failed tries.
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

/// The messages of one kind.
#[derive(Debug, Default)]
pub(super) struct MessageQueue {
    pub(super) messages: Messages,
    /// The order of tries, by queue. An entry whose time is not its message's is skipped.
    due: [Schedule; 2],
    /// Messages of slots that are being migrated to this volume.
    pub(super) parked: Parked,
    /// Number of migrations that brought messages.
    pub(super) arrivals: u64,
    pub(super) in_flight: usize,
    /// Calls in flight for messages that failed before.
    again_in_flight: usize,
    pub(super) dead: usize,
    pub(super) slow_start: SlowStart,
    pub(super) breaker: CircuitBreaker,
    budget: RetryBudget,
    /// No message that failed before is tried before this time, for want of budget.
    again_from_ms: u64,
    /// The queue that was served last.
    served: RetryClass,
    /// The message that came last: the probe that says most about new orders.
    latest: Option<OrderId>,
    /// Calls that the warehouse settled; wraps around.
    answers: u32,
    /// The failure that keeps the breaker open.
    pub(super) cause: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parked {
    pub(super) all: usize,
    pub(super) dead: usize,
}

impl MessageQueue {
    /// Returns a lane with these messages, all in force.
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
        // Each queue is built at once: a node that takes over a volume with many open orders makes
        // them wait for this.
        queue.due = due.map(Schedule::of);
        queue
    }

    pub(super) fn is_parked(&self, slot: &Slot) -> bool {
        slot.came_with > self.arrivals
    }

    /// Returns a message that is in force.
    pub(super) fn get(&mut self, order: &OrderId) -> Option<&mut Slot> {
        let arrivals = self.arrivals;
        let slot = self.messages.get_mut(order);
        slot.filter(|slot| slot.came_with <= arrivals)
    }

    /// Puts a message in, or in place of the one that was there.
    pub(super) fn set(&mut self, order: OrderId, mut slot: Slot) {
        slot.came_with = self.arrivals;
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

    pub(super) fn push(&mut self, due_ms: u64, attempts: u32, order: OrderId) {
        self.due[RetryClass::of(attempts) as usize].push(due_ms, order);
    }

    pub(super) fn park(&mut self, due_ms: u64, attempts: u32, order: OrderId) {
        self.due[RetryClass::of(attempts) as usize].park(due_ms, order);
    }

    pub(super) fn unpark(&mut self) {
        self.due.iter_mut().for_each(Schedule::unpark);
    }

    pub(super) fn put_in_force(&mut self) {
        self.arrivals += 1;
        self.dead += std::mem::take(&mut self.parked).dead;
        self.due.iter_mut().for_each(Schedule::put_in_force);
    }

    /// Counts a message that was removed.
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

    /// Returns `true` if a message that failed before may be tried beside those in flight.
    fn has_room_again(&self, limits: &OutboxLimits) -> bool {
        self.again_in_flight < (self.slow_start.room(limits.in_flight_max) / 2).max(1)
    }

    /// Returns the time of a queue's first try; entries that are out of date are dropped.
    fn first(&mut self, class: RetryClass) -> Option<u64> {
        let arrivals = self.arrivals;
        let due = &mut self.due[class as usize];
        while let Some((due_ms, order)) = due.peek() {
            let is_current = self.messages.get_mut(order).is_some_and(|slot| {
                slot.state == MessageState::Waiting
                    && slot.due_ms == *due_ms
                    && RetryClass::of(slot.attempts) == class
                    && !slot.in_flight
                    && slot.came_with <= arrivals
            });
            if is_current {
                return Some(*due_ms);
            }
            due.pop();
        }
        None
    }

    /// Chooses the queue that is served next; `Err` with the time at which one has a try, if any.
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

    /// Returns the next message to send now, counted as in flight; else the time at which to look
    /// again, if any.
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
            // The only probe is always allowed: it is how the end of an outage is found.
            let is_free = probe && self.breaker.has_one_probe();
            self.budget.fill(limits, now_ms);
            if class == RetryClass::Fresh {
                self.budget.first_try(limits);
            } else if !is_free && !self.budget.allows_retry() {
                if probe {
                    self.breaker.probe_is_back();
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

    /// Takes the first message of a queue out, or as a probe the message that came last.
    fn take(&mut self, class: RetryClass, probe: bool) -> Option<OrderId> {
        let latest = self.latest.take_if(|_| probe && class == RetryClass::Fresh);
        let is_fresh =
            |slot: &&mut Slot| slot.state == MessageState::Waiting && slot.attempts == 0 && !slot.in_flight;
        let latest = latest.filter(|order| self.get(order).filter(is_fresh).is_some());
        let order = match latest {
            // Its entry in the schedule is out of date from here on.
            Some(order) => order,
            None => self.due[class as usize].pop()?.1,
        };
        self.get(&order)?.in_flight = true;
        self.in_flight += 1;
        self.again_in_flight += usize::from(class == RetryClass::Again);
        Some(order)
    }

    /// Ends a call.
    pub(super) fn land(&mut self, job: &Job) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.again_in_flight = self.again_in_flight.saturating_sub(usize::from(job.again));
        if let Some(slot) = self.get(&job.order) {
            slot.in_flight = false;
        }
    }

    /// Counts a call that the warehouse settled: it is there.
    pub(super) fn answered(&mut self, kind: Kind, limits: &OutboxLimits) {
        if self.breaker.is_open() {
            tracing::info!(
                kind = kind.name(),
                "circuit breaker closed: the warehouse answers again"
            );
        }
        self.breaker = CircuitBreaker::default();
        self.cause = None;
        self.slow_start.answered(limits.in_flight_max);
        self.answers = self.answers.wrapping_add(1);
    }

    /// Counts a call that failed. Returns the message's slot as it is now, if the message is still
    /// wanted; its state and the time of its next try follow from `backoff_ms`.
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
            // The warehouse is there and has an opinion.
            FailureKind::InProgress | FailureKind::Malformed => self.answered(job.kind, limits),
            FailureKind::Unreachable | FailureKind::Error => {
                if job.probe || !is_own {
                    self.count_failure(job, failure, limits, now_ms);
                }
            }
        }
        let (answers, is_open) = (self.answers, self.breaker.is_open());
        let slot = self.get(&job.order)?;
        let attempts = slot.attempts.saturating_add(1);
        let is_given_up = attempts >= limits.tries_max && (is_own || !is_open);
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
            came_with: slot.came_with,
        })
    }

    fn count_failure(&mut self, job: &Job, failure: &Failure, limits: &OutboxLimits, now_ms: u64) {
        let was_open = self.breaker.is_open();
        self.breaker.failed(limits, failure, job.probe, now_ms);
        if !self.breaker.is_open() {
            return;
        }
        if !was_open {
            tracing::warn!(
                kind = job.kind.name(),
                failures = limits.breaker_failures,
                cause = failure.reason,
                "circuit breaker opened: calls to the warehouse fail"
            );
        }
        self.cause = Some(failure.reason.as_str().into());
        self.slow_start.shut();
    }
}
