//! What the warehouse must be told, and when it is tried next.
//!
//! A message is committed with the state change that calls for it and removed with the one that answers it; this is
//! the schedule over those rows, in memory, pure and driven by the time it is given. Each kind of message is a lane of
//! its own, with its own bound of calls in flight and its own breaker, so that slow announcements do not hold up
//! deliveries. Within an order the state machine keeps the sequence: it asks for delivery only once the
//! announcement is confirmed.
//!
//! A failed try waits for a random share of a doubling backoff (full jitter); after the last try the message is
//! dead and stays for an operator. A lane starts with few calls at a time and gets more with each answer. A breaker opens when many tries in a row fail, and then lets one probe through
//! at a time: a warehouse that is away costs a few messages a try, not all of them all their tries.
//! Absent on purpose: HTTP (`wms`), tasks (`courier`), rows (`store`).

mod breaker;
mod budget;
mod limits;
mod messages;
mod schedule;
mod window;

use serde::Serialize;

use crate::order::OrderId;
use breaker::{Breaker, Pass};
use budget::{BUDGET_WAIT_MS, Budget};
pub use limits::OutboxLimits;
use messages::{Messages, Slot};
use schedule::Schedule;
use window::Window;

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

/// A message that is to be sent now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) order: OrderId,
    pub(crate) kind: Kind,
    /// The try of a lane whose breaker is open.
    pub(crate) probe: bool,
}

#[derive(Debug, Default)]
struct Lane {
    messages: Messages,
    /// An entry whose time is not its message's is passed over.
    due: Schedule,
    /// Messages of slots that are on their way here.
    parked: Parked,
    /// How often slots came.
    arrivals: u64,
    in_flight: usize,
    dead: usize,
    window: Window,
    breaker: Breaker,
    budget: Budget,
}

#[derive(Clone, Copy, Debug, Default)]
struct Parked {
    all: usize,
    dead: usize,
}

impl Lane {
    fn is_parked(&self, slot: &Slot) -> bool {
        slot.came_with > self.arrivals
    }

    /// What is known of a message that is in force.
    fn get(&mut self, order: &OrderId) -> Option<&mut Slot> {
        let arrivals = self.arrivals;
        let slot = self.messages.get_mut(order);
        slot.filter(|slot| slot.came_with <= arrivals)
    }

    /// A message is not there any more.
    fn count_out(&mut self, slot: &Slot) {
        let is_dead = usize::from(slot.message.state == MessageState::Dead);
        if self.is_parked(slot) {
            self.parked.all -= 1;
            self.parked.dead -= is_dead;
        } else {
            self.dead -= is_dead;
        }
    }

    fn has_room(&self, limits: &OutboxLimits) -> bool {
        self.window.has_room(self.in_flight, limits.in_flight_max)
    }

    /// The warehouse answered: it is there.
    fn answered(&mut self, limits: &OutboxLimits) {
        self.breaker = Breaker::default();
        self.window.answered(limits.in_flight_max);
    }
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
    lanes: [Lane; 2],
    /// When the courier looks again by itself, as it was last told.
    looks_again_ms: u64,
}

impl Outbox {
    /// The schedule that the volume's rows make.
    pub(crate) fn new(limits: OutboxLimits, messages: &[(OrderId, Kind, Message)]) -> Outbox {
        // All at once: a node that takes over a volume with many open orders has them wait for this.
        let lane_of = |kind: Kind| {
            let of_kind = messages.iter().filter(|(_, of, _)| *of == kind);
            let mut lane = Lane {
                messages: Messages::with_room_for(of_kind.clone().count()),
                ..Lane::default()
            };
            let mut due = Vec::new();
            for (order, _, message) in of_kind {
                match message.state {
                    MessageState::Waiting => due.push((message.next_try_ms, order.clone())),
                    MessageState::Dead => lane.dead += 1,
                }
                let slot = Slot {
                    message: message.clone(),
                    in_flight: false,
                    came_with: 0,
                };
                lane.messages.insert(order.clone(), slot);
            }
            lane.due = Schedule::of(due);
            lane
        };
        Outbox {
            limits,
            lanes: Kind::ALL.map(lane_of),
            looks_again_ms: u64::MAX,
        }
    }

    /// Puts a message in, or in place of what was known of it. True if the courier is to be called for it: while all
    /// calls are taken, or the warehouse is away, calling it for each order would only keep it from its work.
    pub(crate) fn set(&mut self, order: OrderId, kind: Kind, message: Message) -> bool {
        let lane = &mut self.lanes[kind as usize];
        let ready_ms = if lane.has_room(&self.limits) {
            lane.breaker.ready_ms(message.next_try_ms)
        } else {
            u64::MAX
        };
        let calls = message.state == MessageState::Waiting && ready_ms < self.looks_again_ms;
        let in_flight = lane.get(&order).is_some_and(|slot| slot.in_flight);
        match message.state {
            MessageState::Waiting => lane.due.push(message.next_try_ms, order.clone()),
            MessageState::Dead => lane.dead += 1,
        }
        let slot = Slot {
            message,
            in_flight,
            came_with: lane.arrivals,
        };
        if let Some(before) = lane.messages.insert(order, slot) {
            lane.count_out(&before);
        }
        calls
    }

    /// Takes a message out: it was answered, or need not be sent any more.
    pub(crate) fn remove(&mut self, order: &OrderId, kind: Kind) {
        let lane = &mut self.lanes[kind as usize];
        if let Some(slot) = lane.messages.remove(order) {
            lane.count_out(&slot);
        }
    }

    /// Puts a message of slots that are on their way in, in place of what came of it before, or takes that out again. It is as if it
    /// were not there until `put_in_force`.
    pub(crate) fn park(&mut self, order: OrderId, kind: Kind, message: Option<Message>) {
        let lane = &mut self.lanes[kind as usize];
        let before = match message {
            None => lane.messages.remove(&order),
            Some(message) => {
                lane.parked.all += 1;
                lane.parked.dead += usize::from(message.state == MessageState::Dead);
                if message.state == MessageState::Waiting {
                    lane.due.park(message.next_try_ms, order.clone());
                }
                let slot = Slot {
                    message,
                    in_flight: false,
                    came_with: lane.arrivals + 1,
                };
                lane.messages.insert(order, slot)
            }
        };
        if let Some(before) = before {
            lane.count_out(&before);
        }
    }

    /// Has what was parked sent. Takes no longer for many messages than for few.
    pub(crate) fn put_in_force(&mut self) {
        for lane in &mut self.lanes {
            lane.arrivals += 1;
            lane.dead += std::mem::take(&mut lane.parked).dead;
            lane.due.put_in_force();
        }
    }

    /// Forgets messages of orders that are elsewhere, those in the `at`th part of all; a call in flight lands as ever. False if
    /// there is no such part.
    pub(crate) fn forget(&mut self, at: usize, stays: impl Fn(&OrderId) -> bool) -> bool {
        let mut is_part = false;
        for lane in &mut self.lanes {
            for slot in lane.messages.forget(at, &stays).into_iter().flatten() {
                lane.count_out(&slot);
            }
            is_part = at < lane.messages.parts();
        }
        is_part
    }

    /// Nothing comes after all: what is parked is to be forgotten, and its schedule is.
    pub(crate) fn unpark(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.due.unpark());
    }

    /// The next message to send now, counted as in flight; else the time at which to look again, if any.
    pub(crate) fn next(&mut self, now_ms: u64) -> Result<Job, Option<u64>> {
        let mut look_again: Option<u64> = None;
        for kind in [Kind::Deliver, Kind::Announce] {
            match self.next_of(kind, now_ms) {
                Ok(job) => return Ok(job),
                Err(None) => {}
                Err(Some(at_ms)) => look_again = Some(look_again.map_or(at_ms, |known| known.min(at_ms))),
            }
        }
        self.looks_again_ms = look_again.unwrap_or(u64::MAX);
        Err(look_again)
    }

    fn next_of(&mut self, kind: Kind, now_ms: u64) -> Result<Job, Option<u64>> {
        let lane = &mut self.lanes[kind as usize];
        if !lane.has_room(&self.limits) {
            return Err(None);
        }
        let arrivals = lane.arrivals;
        while let Some((at_ms, order)) = lane.due.peek() {
            let at_ms = *at_ms;
            let slot = lane.messages.get_mut(order);
            let current = slot.filter(|slot| {
                slot.message.state == MessageState::Waiting
                    && slot.message.next_try_ms == at_ms
                    && !slot.in_flight
                    && slot.came_with <= arrivals
            });
            let Some(slot) = current else {
                lane.due.pop();
                continue;
            };
            if at_ms > now_ms {
                return Err(Some(at_ms));
            }
            let probe = match lane.breaker.pass(now_ms) {
                Pass::Free => false,
                Pass::Probe => true,
                Pass::At(at_ms) => return Err(Some(at_ms)),
                Pass::AfterProbe => return Err(None),
            };
            let order = order.clone();
            lane.due.pop();
            lane.budget.fill(&self.limits, now_ms);
            if slot.message.attempts == 0 {
                lane.budget.first_try(&self.limits);
            } else if !probe && !lane.budget.allows_retry() {
                // Only in memory: after a restart it is simply due.
                slot.message.next_try_ms = now_ms + BUDGET_WAIT_MS;
                lane.due.push(slot.message.next_try_ms, order);
                continue;
            }
            slot.in_flight = true;
            lane.in_flight += 1;
            return Ok(Job { order, kind, probe });
        }
        Err(None)
    }

    /// A call of a job ended with an answer that settles the message, whatever it says.
    pub(crate) fn answered(&mut self, job: &Job) {
        self.land(job);
        self.lanes[job.kind as usize].answered(&self.limits);
    }

    /// A call of a job failed. Returns the message as it now stands, to be written; `jitter` is a random share
    /// from 0 to 1 of the backoff. `None` if the message is no longer wanted.
    pub(crate) fn failed(
        &mut self,
        job: &Job,
        reason: &str,
        hopeless: bool,
        now_ms: u64,
        jitter: f64,
    ) -> Option<Message> {
        self.land(job);
        let limits = self.limits;
        let lane = &mut self.lanes[job.kind as usize];
        if hopeless {
            // A plain refusal is an answer, too.
            lane.answered(&limits);
        } else {
            lane.breaker.failed(&limits, job.probe, now_ms);
            if lane.breaker.is_open() {
                lane.window.shut();
            }
        }
        let slot = lane.get(&job.order)?;
        let attempts = slot.message.attempts + 1;
        let dead = hopeless || attempts >= limits.tries_max;
        let longest = limits
            .backoff_first_ms
            .saturating_mul(1 << (attempts - 1).min(32))
            .min(limits.backoff_max_ms);
        let message = Message {
            state: if dead {
                MessageState::Dead
            } else {
                MessageState::Waiting
            },
            attempts,
            next_try_ms: now_ms + (longest as f64 * jitter) as u64,
            last_error: Some(reason.into()),
        };
        // Whoever reports a failed call calls the courier anyway.
        let _ = self.set(job.order.clone(), job.kind, message.clone());
        Some(message)
    }

    /// A job ended without the warehouse having a part in it: it is tried again, and nothing is counted.
    pub(crate) fn put_back(&mut self, job: &Job, at_ms: u64) {
        self.land(job);
        let lane = &mut self.lanes[job.kind as usize];
        if job.probe {
            lane.breaker.probe_is_back();
        }
        if let Some(slot) = lane.get(&job.order) {
            slot.message.next_try_ms = at_ms;
            lane.due.push(at_ms, job.order.clone());
        }
    }

    fn land(&mut self, job: &Job) {
        let lane = &mut self.lanes[job.kind as usize];
        lane.in_flight = lane.in_flight.saturating_sub(1);
        if let Some(slot) = lane.get(&job.order) {
            slot.in_flight = false;
        }
    }

    /// True if so many messages wait that new orders are turned away.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limits.waiting_max
    }

    /// Messages of both kinds, dead ones included.
    pub(crate) fn len(&self) -> usize {
        let in_force = self
            .lanes
            .iter()
            .map(|lane| lane.messages.len() - lane.parked.all);
        in_force.sum()
    }

    /// Dead messages.
    pub(crate) fn dead(&self) -> usize {
        self.lanes.iter().map(|lane| lane.dead).sum()
    }

    /// Calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.in_flight).sum()
    }

    /// True if the breaker of either kind is open.
    pub(crate) fn is_warehouse_away(&self) -> bool {
        self.lanes.iter().any(|lane| lane.breaker.is_open())
    }

    /// What is known of a message.
    pub(crate) fn get(&self, order: &OrderId, kind: Kind) -> Option<&Message> {
        let lane = &self.lanes[kind as usize];
        let slot = lane.messages.get(order).filter(|slot| !lane.is_parked(slot));
        slot.map(|slot| &slot.message)
    }

    /// All messages after `cursor` by order and kind, at most `limit`, ascending.
    pub(crate) fn page(&self, cursor: Option<&(OrderId, Kind)>, limit: usize) -> Vec<ListedMessage> {
        let all = Kind::ALL.into_iter().flat_map(|kind| {
            let lane = &self.lanes[kind as usize];
            let in_force = lane.messages.iter().filter(|(_, slot)| !lane.is_parked(slot));
            in_force.map(move |(order, slot)| (order, kind, &slot.message))
        });
        let after = all.filter(|(order, kind, _)| match cursor {
            Some((known, known_kind)) => (*order, kind) > (known, known_kind),
            None => true,
        });
        let smallest = smallest(after, limit, |(order, kind, _)| ((*order).clone(), *kind));
        let list = |(order, kind, message): (&OrderId, Kind, &Message)| ListedMessage {
            order: order.clone(),
            kind,
            state: message.state,
            attempts: message.attempts,
            last_error: message.last_error.clone(),
            next_try_ms: message.next_try_ms,
        };
        smallest.into_iter().map(list).collect()
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
mod tests;
