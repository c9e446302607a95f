//! What the warehouse must be told, and when it is tried next.
//!
//! A message is committed with the state change that calls for it and removed with the one that answers it; this is
//! the schedule over those rows, in memory, pure and driven by the time it is given. Each kind of message is a lane of
//! its own, with its own bound of calls in flight and its own breaker, so that slow announcements do not hold up
//! deliveries. Within an order the state machine keeps the sequence: it asks for delivery only once the
//! announcement is confirmed.
//!
//! A failed try waits for a random share of a doubling backoff (full jitter); after the last try the message is
//! dead and stays for an operator. A breaker opens when many tries in a row fail, and then lets one probe through
//! at a time: a warehouse that is away costs a few messages a try, not all of them all their tries.
//! Absent on purpose: HTTP (`wms`), tasks (`courier`), rows (`store`).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use serde::Serialize;

use crate::order::OrderId;

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

/// How messages are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Tries before a message is dead.
    pub tries_max: u32,
    /// Longest wait after the first failed try; it doubles with each further one.
    pub backoff_first_ms: u64,
    /// Longest wait after any failed try.
    pub backoff_max_ms: u64,
    /// Calls of each kind in flight at a time.
    pub in_flight_max: usize,
    /// Messages that may wait before new orders are turned away.
    pub waiting_max: usize,
    /// Second and further tries allowed for a hundred first ones: a warehouse in trouble is not given more to do by our
    /// asking again.
    pub retry_percent: u32,
    /// Second and further tries a second that are allowed all the same, and saved up to ten seconds' worth.
    pub retries_per_second: u32,
    /// Failed tries in a row that open a breaker.
    pub breaker_failures: u32,
    /// How long an open breaker waits before its first probe; it doubles with each failed one.
    pub probe_first_ms: u64,
    /// Longest wait between probes.
    pub probe_max_ms: u64,
}

impl Default for OutboxLimits {
    fn default() -> OutboxLimits {
        OutboxLimits {
            tries_max: 8,
            backoff_first_ms: 1_000,
            backoff_max_ms: 60_000,
            // A thousand orders a second at four seconds a call, and some room to catch up.
            in_flight_max: 6_400,
            // About 150 bytes each: an hour of the warehouse away at 250 orders a second.
            waiting_max: 1_000_000,
            // A warehouse on a good day needs seven in a hundred.
            retry_percent: 20,
            retries_per_second: 20,
            // One answer in fifteen is a 504 on a good day: sixteen in a row are no accident.
            breaker_failures: 16,
            probe_first_ms: 250,
            probe_max_ms: 2_000,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Closed {
        failures: u32,
    },
    Open {
        until_ms: u64,
        wait_ms: u64,
        probing: bool,
    },
}

#[derive(Debug)]
struct Slot {
    message: Message,
    in_flight: bool,
}

#[derive(Debug)]
struct Lane {
    messages: HashMap<OrderId, Slot>,
    /// When to look at which message; an entry whose time is not its message's is passed over.
    due: BinaryHeap<Reverse<(u64, OrderId)>>,
    in_flight: usize,
    dead: usize,
    breaker: Breaker,
    budget: Budget,
}

/// How many tries may be made again now.
#[derive(Debug, Default)]
struct Budget {
    /// In hundredths of a try.
    saved: u64,
    filled_at_ms: Option<u64>,
}

impl Budget {
    /// Adds what time brings, up to ten seconds' worth; the first look finds it full.
    fn fill(&mut self, limits: &OutboxLimits, now_ms: u64) {
        let full = u64::from(limits.retries_per_second) * 10 * 100;
        let since_ms = match self.filled_at_ms {
            None => u64::MAX,
            Some(at_ms) => now_ms.saturating_sub(at_ms),
        };
        let brought = since_ms.saturating_mul(u64::from(limits.retries_per_second)) / 10;
        if brought > 0 {
            self.saved = self.saved.max(full.min(self.saved.saturating_add(brought)));
            self.filled_at_ms = Some(now_ms);
        }
    }

    fn first_try(&mut self, limits: &OutboxLimits) {
        // A busy hour does not pay for a flood of repetitions later.
        let most = 100 * 100 + u64::from(limits.retries_per_second) * 10 * 100;
        self.saved = (self.saved + u64::from(limits.retry_percent)).min(most);
    }

    fn allows_retry(&mut self) -> bool {
        let allows = self.saved >= 100;
        if allows {
            self.saved -= 100;
        }
        allows
    }
}

/// How long a try waits that the budget does not allow yet.
const BUDGET_WAIT_MS: u64 = 500;

impl Default for Lane {
    fn default() -> Lane {
        let breaker = Breaker::Closed { failures: 0 };
        Lane {
            messages: HashMap::new(),
            due: BinaryHeap::new(),
            in_flight: 0,
            dead: 0,
            breaker,
            budget: Budget::default(),
        }
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
    pub(crate) fn new(limits: OutboxLimits, messages: Vec<(OrderId, Kind, Message)>) -> Outbox {
        let mut outbox = Outbox {
            limits,
            lanes: [Lane::default(), Lane::default()],
            looks_again_ms: u64::MAX,
        };
        for (order, kind, message) in messages {
            // The courier looks by itself when it starts.
            let _ = outbox.set(order, kind, message);
        }
        outbox
    }

    /// Puts a message in, or in place of what was known of it. True if the courier is to be called for it: while all
    /// calls are taken, or the warehouse is away, calling it for each order would only keep it from its work.
    pub(crate) fn set(&mut self, order: OrderId, kind: Kind, message: Message) -> bool {
        let lane = &mut self.lanes[kind as usize];
        let ready_ms = match lane.breaker {
            _ if lane.in_flight >= self.limits.in_flight_max => u64::MAX,
            Breaker::Closed { .. } => message.next_try_ms,
            Breaker::Open { probing: true, .. } => u64::MAX,
            Breaker::Open { until_ms, .. } => until_ms.max(message.next_try_ms),
        };
        let calls = message.state == MessageState::Waiting && ready_ms < self.looks_again_ms;
        let in_flight = match lane.messages.get(&order) {
            Some(slot) => {
                lane.dead -= usize::from(slot.message.state == MessageState::Dead);
                slot.in_flight
            }
            None => false,
        };
        match message.state {
            MessageState::Waiting => lane.due.push(Reverse((message.next_try_ms, order.clone()))),
            MessageState::Dead => lane.dead += 1,
        }
        lane.messages.insert(order, Slot { message, in_flight });
        calls
    }

    /// Takes a message out: it was answered, or need not be sent any more.
    pub(crate) fn remove(&mut self, order: &OrderId, kind: Kind) {
        let lane = &mut self.lanes[kind as usize];
        if let Some(slot) = lane.messages.remove(order) {
            lane.dead -= usize::from(slot.message.state == MessageState::Dead);
        }
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
        if lane.in_flight >= self.limits.in_flight_max {
            return Err(None);
        }
        while let Some(Reverse((at_ms, order))) = lane.due.peek() {
            let at_ms = *at_ms;
            let slot = lane.messages.get_mut(order);
            let current = slot.filter(|slot| {
                slot.message.state == MessageState::Waiting
                    && slot.message.next_try_ms == at_ms
                    && !slot.in_flight
            });
            let Some(slot) = current else {
                lane.due.pop();
                continue;
            };
            if at_ms > now_ms {
                return Err(Some(at_ms));
            }
            let probe = match &mut lane.breaker {
                Breaker::Closed { .. } => false,
                Breaker::Open { probing: true, .. } => return Err(None),
                Breaker::Open { until_ms, .. } if *until_ms > now_ms => return Err(Some(*until_ms)),
                Breaker::Open { probing, .. } => {
                    *probing = true;
                    true
                }
            };
            let order = order.clone();
            lane.due.pop();
            lane.budget.fill(&self.limits, now_ms);
            if slot.message.attempts == 0 {
                lane.budget.first_try(&self.limits);
            } else if !probe && !lane.budget.allows_retry() {
                // Only in memory: after a restart it is simply due.
                slot.message.next_try_ms = now_ms + BUDGET_WAIT_MS;
                lane.due.push(Reverse((slot.message.next_try_ms, order)));
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
        self.lanes[job.kind as usize].breaker = Breaker::Closed { failures: 0 };
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
        // A plain refusal is an answer: the warehouse is there.
        lane.breaker = match lane.breaker {
            _ if hopeless => Breaker::Closed { failures: 0 },
            Breaker::Closed { failures } if failures + 1 < limits.breaker_failures => Breaker::Closed {
                failures: failures + 1,
            },
            Breaker::Closed { .. } => Breaker::Open {
                until_ms: now_ms + limits.probe_first_ms,
                wait_ms: limits.probe_first_ms,
                probing: false,
            },
            Breaker::Open { wait_ms, .. } if job.probe => {
                let wait_ms = (wait_ms * 2).min(limits.probe_max_ms);
                Breaker::Open {
                    until_ms: now_ms + wait_ms,
                    wait_ms,
                    probing: false,
                }
            }
            // It was on its way when the breaker opened.
            open @ Breaker::Open { .. } => open,
        };
        let slot = lane.messages.get(&job.order)?;
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
        if let (true, Breaker::Open { probing, .. }) = (job.probe, &mut lane.breaker) {
            *probing = false;
        }
        if let Some(slot) = lane.messages.get_mut(&job.order) {
            slot.message.next_try_ms = at_ms;
            lane.due.push(Reverse((at_ms, job.order.clone())));
        }
    }

    fn land(&mut self, job: &Job) {
        let lane = &mut self.lanes[job.kind as usize];
        lane.in_flight = lane.in_flight.saturating_sub(1);
        if let Some(slot) = lane.messages.get_mut(&job.order) {
            slot.in_flight = false;
        }
    }

    /// True if so many messages wait that new orders are turned away.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limits.waiting_max
    }

    /// Messages of both kinds, dead ones included.
    pub(crate) fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.messages.len()).sum()
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
        self.lanes
            .iter()
            .any(|lane| matches!(lane.breaker, Breaker::Open { .. }))
    }

    /// What is known of a message.
    pub(crate) fn get(&self, order: &OrderId, kind: Kind) -> Option<&Message> {
        self.lanes[kind as usize]
            .messages
            .get(order)
            .map(|slot| &slot.message)
    }

    /// All messages after `cursor` by order and kind, at most `limit`, ascending.
    pub(crate) fn page(&self, cursor: Option<&(OrderId, Kind)>, limit: usize) -> Vec<ListedMessage> {
        let all = Kind::ALL.into_iter().flat_map(|kind| {
            self.lanes[kind as usize]
                .messages
                .iter()
                .map(move |(order, slot)| (order, kind, &slot.message))
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
mod tests {
    use super::*;

    fn id(number: u32) -> OrderId {
        OrderId::parse(&number.to_string()).unwrap()
    }

    fn outbox(limits: OutboxLimits) -> Outbox {
        Outbox::new(limits, Vec::new())
    }

    fn fail(outbox: &mut Outbox, job: &Job, now_ms: u64) -> Message {
        outbox.failed(job, "504", false, now_ms, 1.0).unwrap()
    }

    #[test]
    fn a_message_is_tried_eight_times_with_doubling_waits_and_then_dead() {
        let limits = OutboxLimits {
            breaker_failures: 100,
            ..OutboxLimits::default()
        };
        let mut outbox = outbox(limits);
        outbox.set(id(1), Kind::Announce, Message::new(0));
        let mut now_ms = 0;
        let mut waits = Vec::new();
        loop {
            let job = outbox.next(now_ms).unwrap();
            assert_eq!(outbox.next(now_ms), Err(None), "a message is in flight once");
            let message = fail(&mut outbox, &job, now_ms);
            if message.state == MessageState::Dead {
                assert_eq!(
                    (message.attempts, message.last_error.as_deref()),
                    (8, Some("504"))
                );
                break;
            }
            assert_eq!(
                outbox.next(message.next_try_ms - 1),
                Err(Some(message.next_try_ms))
            );
            waits.push(message.next_try_ms - now_ms);
            now_ms = message.next_try_ms;
        }
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000]);
        assert_eq!(outbox.next(u64::MAX), Err(None));
        assert_eq!((outbox.len(), outbox.dead()), (1, 1));
        outbox.set(id(1), Kind::Announce, Message::new(now_ms));
        assert!(outbox.next(now_ms).is_ok(), "an operator may have it tried again");
        assert_eq!(outbox.dead(), 0);
    }

    #[test]
    fn a_warehouse_that_is_away_costs_few_messages_a_try() {
        let limits = OutboxLimits {
            in_flight_max: 10,
            ..OutboxLimits::default()
        };
        let mut outbox = outbox(limits);
        for number in 0..10_000 {
            outbox.set(id(number), Kind::Announce, Message::new(0));
        }
        let mut tries = 0;
        let mut now_ms = 0;
        while now_ms < 60_000 {
            match outbox.next(now_ms) {
                Ok(job) => {
                    tries += 1;
                    fail(&mut outbox, &job, now_ms);
                }
                Err(at_ms) => now_ms = at_ms.unwrap(),
            }
        }
        assert!(tries < 60, "{tries} tries in a minute");
        assert!(outbox.is_warehouse_away());
        assert_eq!(outbox.dead(), 0);
        // It comes back: the first answer opens the way for all.
        let probe = outbox.next(now_ms).unwrap();
        assert!(probe.probe);
        assert_eq!(outbox.next(now_ms), Err(None), "one probe at a time");
        outbox.answered(&probe);
        outbox.remove(&probe.order, probe.kind);
        assert!(!outbox.is_warehouse_away());
        let sent = std::iter::from_fn(|| outbox.next(now_ms).ok()).count();
        assert_eq!(sent, 10);
    }

    #[test]
    fn tries_made_again_are_a_share_of_first_ones_and_first_ones_never_wait_for_them() {
        let limits = OutboxLimits {
            retry_percent: 20,
            retries_per_second: 10,
            breaker_failures: 1_000_000,
            tries_max: 1_000_000,
            backoff_max_ms: 1,
            ..OutboxLimits::default()
        };
        let mut outbox = outbox(limits);
        let (mut first, mut again) = (0u64, 0u64);
        // A hundred new messages a second for a minute, and every call fails.
        for second in 0..60u64 {
            for number in 0..100 {
                let order = id((second * 100 + number) as u32);
                let _ = outbox.set(order, Kind::Announce, Message::new(second * 1_000));
            }
            let mut now_ms = second * 1_000;
            let mut new = 0;
            while now_ms < (second + 1) * 1_000 {
                match outbox.next(now_ms) {
                    Ok(job) => {
                        let tries = outbox.get(&job.order, job.kind).unwrap().attempts;
                        if tries == 0 {
                            new += 1;
                        } else {
                            again += 1;
                        }
                        fail(&mut outbox, &job, now_ms);
                    }
                    Err(at_ms) => now_ms = at_ms.unwrap_or(u64::MAX).max(now_ms + 1),
                }
            }
            assert_eq!(new, 100, "second {second}");
            first += new;
        }
        // Ten seconds' worth at the start, ten a second, and a fifth of the first ones.
        let allowed = 100 + 60 * 10 + first / 5;
        assert!(again <= allowed + 1, "{again} of {allowed}");
        assert!(again * 10 >= allowed * 9, "{again} of {allowed}");
    }

    #[test]
    fn the_courier_is_called_only_for_what_it_could_send_before_it_looks_again() {
        let limits = OutboxLimits {
            in_flight_max: 1,
            breaker_failures: 1,
            ..OutboxLimits::default()
        };
        let mut outbox = outbox(limits);
        assert_eq!(outbox.next(0), Err(None));
        assert!(outbox.set(id(1), Kind::Announce, Message::new(0)), "it sleeps");
        let job = outbox.next(0).unwrap();
        assert_eq!(outbox.next(0), Err(None));
        assert!(
            !outbox.set(id(2), Kind::Announce, Message::new(0)),
            "all calls are taken"
        );
        assert!(
            outbox.set(id(2), Kind::Deliver, Message::new(0)),
            "the other lane is free"
        );
        fail(&mut outbox, &job, 0);
        let delivery = outbox.next(0).unwrap();
        outbox.answered(&delivery);
        outbox.remove(&delivery.order, delivery.kind);
        assert_eq!(outbox.next(0), Err(Some(250)), "the breaker is open");
        assert!(!outbox.set(id(3), Kind::Announce, Message::new(0)));
        assert!(outbox.set(id(3), Kind::Deliver, Message::new(0)));
    }

    #[test]
    fn slow_announcements_leave_room_for_deliveries() {
        let limits = OutboxLimits {
            in_flight_max: 2,
            ..OutboxLimits::default()
        };
        let mut outbox = outbox(limits);
        for number in 0..3 {
            outbox.set(id(number), Kind::Announce, Message::new(0));
        }
        let first = outbox.next(0).unwrap();
        outbox.next(0).unwrap();
        assert_eq!(outbox.next(0), Err(None));
        outbox.set(id(9), Kind::Deliver, Message::new(0));
        assert_eq!(outbox.next(0).unwrap().kind, Kind::Deliver);
        outbox.answered(&first);
        outbox.remove(&first.order, first.kind);
        assert!(outbox.next(0).is_ok());
    }

    #[test]
    fn a_message_removed_while_in_flight_leaves_nothing_behind() {
        let mut outbox = outbox(OutboxLimits::default());
        outbox.set(id(1), Kind::Announce, Message::new(0));
        let job = outbox.next(0).unwrap();
        outbox.remove(&id(1), Kind::Announce);
        assert_eq!(outbox.failed(&job, "late", false, 5, 0.5), None);
        assert_eq!(
            (outbox.len(), outbox.in_flight(), outbox.next(u64::MAX)),
            (0, 0, Err(None))
        );
    }

    #[test]
    fn pages_walk_all_messages_once_in_order() {
        let mut outbox = outbox(OutboxLimits::default());
        for number in 0..25 {
            outbox.set(id(number), Kind::Announce, Message::new(0));
            outbox.set(id(number), Kind::Deliver, Message::new(0));
        }
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = outbox.page(cursor.as_ref(), 7);
            let Some(last) = page.last() else { break };
            cursor = Some((last.order.clone(), last.kind));
            seen.extend(page.into_iter().map(|message| (message.order, message.kind)));
        }
        assert_eq!(seen.len(), 50);
        assert!(seen.is_sorted());
    }
}
