//! Tests that failing messages do not stop healthy messages. The tests with `Model` run a copy of
//! the dispatcher's loop against a model warehouse in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::*;

/// The reaction of the model warehouse to a message.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    Accepts,
    Fails(FailureKind),
}

/// The outbox under test and a model warehouse, with the history of all messages.
struct Model {
    outbox: Outbox,
    reaction: Box<dyn Fn(u32, u64) -> Reaction>,
    /// Time until the warehouse answers, in milliseconds, by reaction.
    latency_ms: fn(Reaction) -> u64,
    /// Calls in flight, earliest end first: the time of the end, the number of the message, and
    /// `probe` and `again` of the call's `Job`.
    calls: BinaryHeap<Reverse<(u64, u32, bool, bool)>>,
    arrived: BTreeMap<u32, u64>,
    /// Time at which each message was accepted.
    accepted: BTreeMap<u32, u64>,
    died: BTreeMap<u32, u64>,
    tries: BTreeMap<u32, u32>,
    dice: u64,
}

fn at(now_ms: u64) -> Moment {
    Moment {
        wall_ms: now_ms,
        monotonic_ms: now_ms,
    }
}

fn id(number: u32) -> OrderId {
    OrderId::parse(&number.to_string()).unwrap()
}

impl Model {
    fn new(reaction: impl Fn(u32, u64) -> Reaction + 'static, latency_ms: fn(Reaction) -> u64) -> Model {
        Model {
            outbox: Outbox::new(OutboxLimits::default(), &[], at(0)),
            reaction: Box::new(reaction),
            latency_ms,
            calls: BinaryHeap::new(),
            arrived: BTreeMap::new(),
            accepted: BTreeMap::new(),
            died: BTreeMap::new(),
            tries: BTreeMap::new(),
            dice: 7,
        }
    }

    /// Returns a random share from 0 to 1 (Knuth's MMIX generator).
    fn share(&mut self) -> f64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Runs arrivals, calls and answers until `end_ms`.
    fn run(&mut self, arrivals: &[(u64, u32)], end_ms: u64) {
        let mut arrivals = arrivals.iter().peekable();
        let mut now_ms = 0;
        while now_ms < end_ms {
            while let Some((at_ms, number)) = arrivals.next_if(|(at_ms, _)| *at_ms <= now_ms) {
                self.arrived.insert(*number, *at_ms);
                let message = Message::new(*at_ms);
                self.outbox.set(id(*number), Kind::Announce, &message, at(now_ms));
            }
            while let Some(call) = self.calls.peek().filter(|call| call.0.0 <= now_ms) {
                let Reverse((_, number, probe, again)) = *call;
                self.calls.pop();
                self.end_call(number, probe, again, now_ms);
            }
            let look_again = loop {
                match self.outbox.next(now_ms) {
                    Ok(job) => self.call(&job, now_ms),
                    Err(at_ms) => break at_ms,
                }
            };
            let next_call = self.calls.peek().map(|call| call.0.0);
            let next_arrival = arrivals.peek().map(|(at_ms, _)| *at_ms);
            let next = [look_again, next_call, next_arrival].into_iter().flatten().min();
            now_ms = next.unwrap_or(end_ms).max(now_ms + 1);
        }
    }

    fn call(&mut self, job: &Job, now_ms: u64) {
        let number: u32 = job.order.as_str().parse().unwrap();
        *self.tries.entry(number).or_default() += 1;
        let ends_ms = now_ms + (self.latency_ms)((self.reaction)(number, now_ms));
        self.calls.push(Reverse((ends_ms, number, job.probe, job.again)));
    }

    fn end_call(&mut self, number: u32, probe: bool, again: bool, now_ms: u64) {
        let job = Job {
            order: id(number),
            kind: Kind::Announce,
            probe,
            again,
        };
        match (self.reaction)(number, now_ms) {
            Reaction::Accepts => {
                self.outbox.answered(&job);
                self.outbox.remove(&job.order, job.kind);
                self.accepted.insert(number, now_ms);
            }
            Reaction::Fails(kind) => {
                let jitter = self.share();
                let failure = Failure::new(kind, "no");
                let message = self.outbox.failed(&job, &failure, at(now_ms), jitter).unwrap();
                if message.state == MessageState::Dead {
                    self.died.insert(number, now_ms);
                }
            }
        }
    }

    /// Returns the longest time from arrival to acceptance of a healthy message, in milliseconds.
    fn longest_wait_ms(&self, is_poisoned: impl Fn(u32) -> bool) -> u64 {
        let healthy = self.arrived.iter().filter(|(number, _)| !is_poisoned(**number));
        let waits = healthy.map(|(number, at_ms)| match self.accepted.get(number) {
            Some(accepted_ms) => accepted_ms - at_ms,
            None => panic!("message {number} was never accepted"),
        });
        waits.max().unwrap()
    }
}

/// Returns the times and numbers of arriving messages: 150 poisoned messages at time 0, then ten
/// healthy messages per second for a minute.
fn poison_first() -> Vec<(u64, u32)> {
    let poisoned = (0..150).map(|number| (0, number));
    let healthy = (0..600u32).map(|number| (100 + u64::from(number) * 100, 1_000 + number));
    poisoned.chain(healthy).collect()
}

#[test]
fn messages_answered_with_errors_delay_no_healthy_one_and_are_given_up() {
    let is_poisoned = |number: u32| number < 150;
    let reaction = move |number: u32, _: u64| {
        if is_poisoned(number) {
            Reaction::Fails(FailureKind::Error)
        } else {
            Reaction::Accepts
        }
    };
    let mut model = Model::new(reaction, |_| 20);
    model.run(&poison_first(), 600_000);
    let longest_ms = model.longest_wait_ms(is_poisoned);
    assert!(longest_ms <= 2_000, "a healthy message waited {longest_ms} ms");
    assert_eq!(model.died.len(), 150, "each poisoned message is given up");
    assert!(model.tries.values().all(|tries| *tries <= 9), "{:?}", model.tries);
    let last_ms = model.died.values().max().unwrap();
    assert!(*last_ms < 400_000, "the last one died at {last_ms}");
    assert!(!model.outbox.is_warehouse_away());
}

#[test]
fn messages_that_time_out_delay_no_healthy_one() {
    let is_poisoned = |number: u32| number < 150;
    let reaction = move |number: u32, _: u64| {
        if is_poisoned(number) {
            Reaction::Fails(FailureKind::Unreachable)
        } else {
            Reaction::Accepts
        }
    };
    let latency_ms = |reaction| match reaction {
        Reaction::Accepts => 200,
        Reaction::Fails(_) => 10_000,
    };
    let mut model = Model::new(reaction, latency_ms);
    // After the busy minute a healthy message arrives every ten seconds. Without a success in
    // between, the outbox would take the failures for an outage and would give up no message.
    let mut arrivals = poison_first();
    arrivals.extend((0..170u32).map(|number| (70_000 + u64::from(number) * 10_000, 10_000 + number)));
    model.run(&arrivals, 1_800_000);
    let longest_ms = model.longest_wait_ms(is_poisoned);
    // The longest wait is a probe that times out (10 s), the pause after it (at most 2 s), and the
    // call of the healthy message (0.2 s).
    assert!(longest_ms <= 13_000, "a healthy message waited {longest_ms} ms");
    assert_eq!(model.died.len(), 150, "each poisoned message is given up");
}

#[test]
fn a_healthy_message_among_poisoned_ones_is_found_while_the_breaker_is_open() {
    // The first 16 messages fail and open the breaker. The further messages arrive together 200 ms
    // later, and every tenth of them is healthy.
    let is_poisoned = |number: u32| !number.is_multiple_of(10) || number < 16;
    let reaction = move |number: u32, _: u64| {
        if is_poisoned(number) {
            Reaction::Fails(FailureKind::Error)
        } else {
            Reaction::Accepts
        }
    };
    let mut model = Model::new(reaction, |_| 50);
    let first = (0..16).map(|number| (0, number));
    let rest = (16..316).map(|number| (200, number));
    model.run(&first.chain(rest).collect::<Vec<_>>(), 600_000);
    let longest_ms = model.longest_wait_ms(is_poisoned);
    assert!(longest_ms <= 5_000, "a healthy message waited {longest_ms} ms");
}

#[test]
fn an_outage_with_error_answers_kills_no_message() {
    let outage_ms = 3_600_000;
    let reaction = move |_, now_ms| {
        if now_ms < outage_ms {
            Reaction::Fails(FailureKind::Error)
        } else {
            Reaction::Accepts
        }
    };
    let mut model = Model::new(reaction, |_| 50);
    let arrivals: Vec<(u64, u32)> = (0..200)
        .map(|number| (u64::from(number) * 1_000, number))
        .collect();
    model.run(&arrivals, 4_200_000);
    // The first messages may have used up their tries before the breaker opened.
    assert!(model.died.len() <= 2, "{} messages died", model.died.len());
    assert_eq!(model.accepted.len() + model.died.len(), 200);
    let tries: u32 = model.tries.values().sum();
    assert!(tries < 36_000 * 4, "{tries} tries in an hour");
}

#[test]
fn failed_messages_use_at_most_half_of_the_calls_in_flight() {
    let limits = OutboxLimits {
        in_flight_max: 10,
        retries_per_second: 1_000,
        ..OutboxLimits::default()
    };
    let again = |number: u32| {
        let message = Message {
            attempts: 1,
            ..Message::new(0)
        };
        (id(number), Kind::Announce, message)
    };
    let rows: Vec<_> = (0..100).map(again).collect();
    let mut outbox = Outbox::new(limits, &rows, at(0));
    let jobs: Vec<Job> = std::iter::from_fn(|| outbox.next(0).ok()).collect();
    assert_eq!(jobs.len(), 5);
    for number in 100..200 {
        outbox.set(id(number), Kind::Announce, &Message::new(0), at(0));
    }
    let fresh: Vec<Job> = std::iter::from_fn(|| outbox.next(0).ok()).collect();
    assert_eq!(fresh.len(), 5, "first tries use the other half");
    assert!(fresh.iter().all(|job| !job.again));
    outbox.put_back(&jobs[0], 0);
    assert!(outbox.next(0).unwrap().again, "the two classes take turns");
}

#[test]
fn probes_alternate_between_fresh_and_failed_messages() {
    let limits = OutboxLimits {
        breaker_failures: 4,
        ..OutboxLimits::default()
    };
    let mut outbox = Outbox::new(limits, &[], at(0));
    for number in 0..100 {
        outbox.set(id(number), Kind::Deliver, &Message::new(0), at(0));
    }
    let (mut now_ms, mut probes) = (0, Vec::new());
    while probes.len() < 10 {
        match outbox.next(now_ms) {
            Ok(job) => {
                if job.probe {
                    probes.push(job.again);
                }
                let failure = Failure::new(FailureKind::Unreachable, "connection refused");
                outbox.failed(&job, &failure, at(now_ms), 0.0).unwrap();
            }
            Err(at_ms) => now_ms = at_ms.unwrap(),
        }
    }
    for pair in probes.windows(2) {
        assert_ne!(pair[0], pair[1], "{probes:?}");
    }
    let waiting = outbox.page(None, 200, at(now_ms));
    let untried = waiting.iter().filter(|message| message.attempts == 0);
    for message in untried {
        let error = message.last_error.as_deref().unwrap();
        assert!(
            error.contains("connection refused"),
            "the list gives the reason: {error}"
        );
    }
}

#[test]
fn a_probe_of_a_fresh_message_takes_the_newest_one() {
    let limits = OutboxLimits {
        breaker_failures: 1,
        ..OutboxLimits::default()
    };
    let mut outbox = Outbox::new(limits, &[], at(0));
    outbox.set(id(0), Kind::Announce, &Message::new(0), at(0));
    let job = outbox.next(0).unwrap();
    let refused = Failure::new(FailureKind::Unreachable, "connection refused");
    outbox.failed(&job, &refused, at(0), 1.0).unwrap();
    for number in 1..=9 {
        outbox.set(id(number), Kind::Announce, &Message::new(0), at(0));
    }
    let probe = outbox.next(limits.probe_first_ms).unwrap();
    assert_eq!(
        (probe.probe, probe.order.as_str()),
        (true, "9"),
        "the newest order is the best probe"
    );
    outbox.answered(&probe);
    outbox.remove(&probe.order, probe.kind);
    let rest = std::iter::from_fn(|| outbox.next(limits.probe_first_ms).ok());
    let rest: Vec<String> = rest.map(|job| job.order.to_string()).collect();
    assert_eq!(
        rest,
        ["1", "2", "3", "4", "5", "6", "7", "8"],
        "the others keep their order"
    );
}
