//! Tests of the schedule of messages in virtual time.

use super::*;

fn id(number: u32) -> OrderId {
    OrderId::parse(&number.to_string()).unwrap()
}

fn outbox(limits: OutboxLimits) -> Outbox {
    Outbox::new(limits, &[], at(0))
}

/// Returns a moment with equal times on both clocks.
fn at(now_ms: u64) -> Moment {
    Moment {
        wall_ms: now_ms,
        monotonic_ms: now_ms,
    }
}

fn set(outbox: &mut Outbox, order: OrderId, kind: Kind, message: Message) -> bool {
    outbox.set(order, kind, &message, at(0))
}

fn park(outbox: &mut Outbox, order: OrderId, kind: Kind, message: Option<Message>) {
    outbox.park(order, kind, message.as_ref(), at(0));
}

fn unreachable() -> Failure {
    Failure::new(FailureKind::Unreachable, "504")
}

fn fail(outbox: &mut Outbox, job: &Job, now_ms: u64) -> Message {
    outbox.failed(job, &unreachable(), at(now_ms), 1.0).unwrap()
}

/// Reports that the warehouse answered a call with status 500.
fn refuse(outbox: &mut Outbox, job: &Job, now_ms: u64) -> Message {
    let error = Failure::new(FailureKind::Error, "500");
    outbox.failed(job, &error, at(now_ms), 1.0).unwrap()
}

#[test]
fn a_message_is_tried_eight_times_with_doubling_waits_and_is_then_dead() {
    let limits = OutboxLimits {
        breaker_failures: 100,
        ..OutboxLimits::default()
    };
    let mut outbox = outbox(limits);
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    let mut now_ms = 0;
    let mut waits = Vec::new();
    loop {
        let job = outbox.next(now_ms).unwrap();
        assert_eq!(outbox.next(now_ms), Err(None), "a message is in flight once");
        let message = refuse(&mut outbox, &job, now_ms);
        if message.state == MessageState::Dead {
            assert_eq!(
                (message.attempts, message.last_error.as_deref()),
                (8, Some("500"))
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
    set(&mut outbox, id(1), Kind::Announce, Message::new(now_ms));
    assert!(outbox.next(now_ms).is_ok(), "an operator can retry it");
    assert_eq!(outbox.dead(), 0);
}

#[test]
fn an_outage_makes_no_dead_letter_of_a_single_message() {
    let mut outbox = outbox(OutboxLimits::default());
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    let mut now_ms = 0;
    let mut tries = 0;
    // The warehouse is away for a day, and there is no other order.
    while now_ms < 24 * 3_600_000 {
        match outbox.next(now_ms) {
            Ok(job) => {
                assert_eq!(fail(&mut outbox, &job, now_ms).state, MessageState::Waiting);
                tries += 1;
            }
            Err(at_ms) => now_ms = at_ms.unwrap(),
        }
    }
    assert!(tries > 100, "{tries} tries");
    // Once the warehouse has answered the message of order 2, the next failure of the message of
    // order 1 counts against that message, which becomes a dead letter.
    set(&mut outbox, id(2), Kind::Announce, Message::new(now_ms));
    loop {
        match outbox.next(now_ms) {
            Ok(job) if job.order == id(2) => {
                outbox.answered(&job);
                outbox.remove(&job.order, job.kind);
            }
            Ok(job) => {
                if fail(&mut outbox, &job, now_ms).state == MessageState::Dead {
                    break;
                }
            }
            Err(at_ms) => now_ms = at_ms.unwrap(),
        }
    }
    assert_eq!((outbox.len(), outbox.dead()), (1, 1));
}

#[test]
fn a_message_in_progress_after_an_outage_is_tried_again() {
    let mut outbox = outbox(OutboxLimits::default());
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    let mut now_ms = 0;
    let mut next = |outbox: &mut Outbox| {
        loop {
            match outbox.next(now_ms) {
                Ok(job) => return (job, now_ms),
                Err(at_ms) => now_ms = at_ms.unwrap(),
            }
        }
    };
    for _ in 0..20 {
        let (job, now_ms) = next(&mut outbox);
        fail(&mut outbox, &job, now_ms);
    }
    let in_progress = Failure::new(FailureKind::InProgress, "409");
    let states: Vec<MessageState> = (0..2)
        .map(|_| {
            let (job, now_ms) = next(&mut outbox);
            outbox.failed(&job, &in_progress, at(now_ms), 1.0).unwrap().state
        })
        .collect();
    // The second answer shows that an earlier try does not end.
    assert_eq!(states, [MessageState::Waiting, MessageState::Dead]);
}

#[test]
fn calls_count_as_failing_from_the_third_failed_try_until_an_answer() {
    use CallHealth::{Answered, Failing};
    let mut outbox = outbox(OutboxLimits::default());
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    let mut now_ms = 0;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let job = outbox.next(now_ms).unwrap();
        now_ms = fail(&mut outbox, &job, now_ms).next_try_ms;
        seen.push(outbox.call_health(Kind::Announce));
    }
    assert_eq!(seen, [Answered, Answered, Failing, Failing]);
    assert_eq!(outbox.failures(Kind::Announce), 4);
    assert_eq!(
        outbox.call_health(Kind::Deliver),
        Answered,
        "each kind is counted alone"
    );
    assert_eq!(outbox.warehouse_health(), Failing, "the worse of the two kinds");
    let job = outbox.next(now_ms).unwrap();
    outbox.answered(&job);
    outbox.remove(&job.order, job.kind);
    assert_eq!(outbox.warehouse_health(), Answered);
}

#[test]
fn calls_of_a_removed_message_do_not_fail() {
    let mut outbox = outbox(OutboxLimits::default());
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    let mut now_ms = 0;
    for _ in 0..3 {
        let job = outbox.next(now_ms).unwrap();
        now_ms = fail(&mut outbox, &job, now_ms).next_try_ms;
    }
    assert_eq!(outbox.warehouse_health(), CallHealth::Failing);
    // The order is cancelled, so no call will show that the warehouse answers again.
    outbox.remove(&id(1), Kind::Announce);
    assert_eq!(outbox.warehouse_health(), CallHealth::Answered);
}

#[test]
fn failed_first_tries_do_not_mark_the_warehouse_as_failing() {
    let mut outbox = outbox(OutboxLimits::default());
    for number in 0..5 {
        set(&mut outbox, id(number), Kind::Announce, Message::new(0));
    }
    // A healthy warehouse fails single calls. Here four first tries fail in a row, and an answer
    // follows before one of them is repeated.
    for _ in 0..4 {
        let job = outbox.next(0).unwrap();
        fail(&mut outbox, &job, 0);
        assert_eq!(outbox.warehouse_health(), CallHealth::Answered);
    }
    let answered = outbox.next(0).unwrap();
    outbox.answered(&answered);
    outbox.remove(&answered.order, answered.kind);
    let repeated = outbox.next(1_000).unwrap();
    fail(&mut outbox, &repeated, 1_000);
    assert_eq!(outbox.warehouse_health(), CallHealth::Answered);
}

#[test]
fn an_unreachable_warehouse_costs_few_tries() {
    let limits = OutboxLimits {
        in_flight_max: 10,
        ..OutboxLimits::default()
    };
    let mut outbox = outbox(limits);
    for number in 0..10_000 {
        set(&mut outbox, id(number), Kind::Announce, Message::new(0));
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
    // After the outage, the first answer closes the breaker for all messages of this kind.
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
fn retries_are_a_share_of_first_tries_which_never_wait() {
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
    // A hundred new messages per second for a minute. Every call fails.
    for second in 0..60u64 {
        for number in 0..100 {
            let order = id((second * 100 + number) as u32);
            let _ = set(&mut outbox, order, Kind::Announce, Message::new(second * 1_000));
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
    // The budget permits the retries of ten seconds at the start, then ten retries per second, and
    // one retry for every five first tries.
    let allowed = 100 + 60 * 10 + first / 5;
    assert!(again <= allowed + 1, "{again} of {allowed}");
    assert!(again * 10 >= allowed * 9, "{again} of {allowed}");
}

#[test]
fn the_dispatcher_is_woken_only_for_messages_that_it_can_send() {
    let limits = OutboxLimits {
        in_flight_max: 1,
        breaker_failures: 1,
        ..OutboxLimits::default()
    };
    let mut outbox = outbox(limits);
    assert_eq!(outbox.next(0), Err(None));
    assert!(
        set(&mut outbox, id(1), Kind::Announce, Message::new(0)),
        "the dispatcher sleeps"
    );
    let job = outbox.next(0).unwrap();
    assert_eq!(outbox.next(0), Err(None));
    assert!(
        !set(&mut outbox, id(2), Kind::Announce, Message::new(0)),
        "all calls are in use"
    );
    assert!(
        set(&mut outbox, id(2), Kind::Deliver, Message::new(0)),
        "the other queue is free"
    );
    fail(&mut outbox, &job, 0);
    let delivery = outbox.next(0).unwrap();
    outbox.answered(&delivery);
    outbox.remove(&delivery.order, delivery.kind);
    assert_eq!(outbox.next(0), Err(Some(250)), "the breaker is open");
    assert!(!set(&mut outbox, id(3), Kind::Announce, Message::new(0)));
    assert!(set(&mut outbox, id(3), Kind::Deliver, Message::new(0)));
}

#[test]
fn slow_announcements_leave_room_for_deliveries() {
    let limits = OutboxLimits {
        in_flight_max: 2,
        ..OutboxLimits::default()
    };
    let mut outbox = outbox(limits);
    for number in 0..3 {
        set(&mut outbox, id(number), Kind::Announce, Message::new(0));
    }
    let first = outbox.next(0).unwrap();
    outbox.next(0).unwrap();
    assert_eq!(outbox.next(0), Err(None));
    set(&mut outbox, id(9), Kind::Deliver, Message::new(0));
    assert_eq!(outbox.next(0).unwrap().kind, Kind::Deliver);
    outbox.answered(&first);
    outbox.remove(&first.order, first.kind);
    assert!(outbox.next(0).is_ok());
}

#[test]
fn a_message_removed_in_flight_leaves_no_trace() {
    let mut outbox = outbox(OutboxLimits::default());
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    let job = outbox.next(0).unwrap();
    outbox.remove(&id(1), Kind::Announce);
    assert_eq!(outbox.failed(&job, &unreachable(), at(5), 0.5), None);
    assert_eq!(
        (outbox.len(), outbox.in_flight(), outbox.next(u64::MAX)),
        (0, 0, Err(None))
    );
}

#[test]
fn pages_list_every_message_once_in_order() {
    let mut outbox = outbox(OutboxLimits::default());
    for number in 0..25 {
        set(&mut outbox, id(number), Kind::Announce, Message::new(0));
        set(&mut outbox, id(number), Kind::Deliver, Message::new(0));
    }
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = outbox.page(cursor.as_ref(), 7, at(0));
        let Some(last) = page.last() else { break };
        cursor = Some((last.order.clone(), last.kind));
        seen.extend(page.into_iter().map(|message| (message.order, message.kind)));
    }
    assert_eq!(seen.len(), 50);
    assert!(seen.is_sorted());
}

#[test]
fn a_long_outbox_starts_slowly() {
    let mut outbox = outbox(OutboxLimits::default());
    for number in 0..20_000 {
        set(&mut outbox, id(number), Kind::Announce, Message::new(0));
    }
    let send = |outbox: &mut Outbox| -> Vec<Job> { std::iter::from_fn(|| outbox.next(0).ok()).collect() };
    let first = send(&mut outbox);
    assert_eq!(first.len(), 256, "no answer has arrived yet");
    for job in &first {
        outbox.answered(job);
        outbox.remove(&job.order, Kind::Announce);
    }
    let second = send(&mut outbox);
    assert_eq!(second.len(), 3 * 256, "each answer permits two more calls");
    let mut flying = second;
    for _ in 0..3 {
        for job in &flying {
            outbox.answered(job);
            outbox.remove(&job.order, Kind::Announce);
        }
        flying = send(&mut outbox);
    }
    assert_eq!(
        flying.len(),
        OutboxLimits::default().in_flight_max,
        "the limit also applies"
    );
    for job in flying.iter().take(16) {
        fail(&mut outbox, job, 0);
    }
    assert!(outbox.is_warehouse_away());
    for job in flying.iter().skip(16) {
        outbox.put_back(job, 0);
    }
    let probe = outbox.next(10_000).unwrap();
    assert!(probe.probe);
    outbox.answered(&probe);
    let after = std::iter::from_fn(|| outbox.next(10_000).ok()).count();
    assert_eq!(after, 258, "after an outage the calls start slowly again");
}

#[test]
fn parked_messages_are_invisible_until_they_are_activated() {
    let mut outbox = outbox(OutboxLimits::default());
    let dead = Message {
        state: MessageState::Dead,
        ..Message::new(0)
    };
    let all = |outbox: &Outbox| outbox.page(None, 100, at(0)).len();
    // A message with its next try in a minute migrates to another volume and back, unchanged.
    set(&mut outbox, id(1), Kind::Announce, Message::new(60_000));
    for at in 0.. {
        if !outbox.forget(at, |_| false) {
            break;
        }
    }
    assert_eq!((outbox.len(), all(&outbox)), (0, 0));
    park(&mut outbox, id(1), Kind::Announce, Some(Message::new(60_000)));
    park(&mut outbox, id(2), Kind::Deliver, Some(Message::new(5)));
    park(&mut outbox, id(3), Kind::Announce, Some(Message::new(7)));
    park(&mut outbox, id(3), Kind::Announce, Some(dead.clone()));
    park(&mut outbox, id(4), Kind::Announce, Some(dead));
    park(&mut outbox, id(4), Kind::Announce, None);
    set(&mut outbox, id(5), Kind::Announce, Message::new(9));
    assert_eq!((outbox.len(), outbox.dead(), all(&outbox)), (1, 0, 1));
    assert_eq!(outbox.get(&id(2), Kind::Deliver), None);
    assert_eq!(outbox.next(70_000).unwrap().order, id(5));
    assert_eq!(
        outbox.next(70_000),
        Err(None),
        "the outdated schedule entry of the first stay is ignored"
    );
    outbox.activate_parked();
    assert_eq!((outbox.len(), outbox.dead(), all(&outbox)), (4, 1, 4));
    let mut sent = Vec::new();
    while let Ok(job) = outbox.next(70_000) {
        sent.push((job.order.clone(), job.kind));
        outbox.answered(&job);
        outbox.remove(&job.order, job.kind);
    }
    assert_eq!(sent, [(id(2), Kind::Deliver), (id(1), Kind::Announce)]);
    assert_eq!((outbox.len(), outbox.dead()), (2, 1), "one in flight, one dead");
}

#[test]
fn an_undone_migration_leaves_no_parked_message() {
    let mut outbox = outbox(OutboxLimits::default());
    let kept = |order: &OrderId| *order == id(7);
    set(&mut outbox, id(7), Kind::Announce, Message::new(50));
    for number in 10..500 {
        let mut message = Message::new(1);
        if number % 3 == 0 {
            message.state = MessageState::Dead;
        }
        park(
            &mut outbox,
            id(number),
            Kind::ALL[number as usize % 2],
            Some(message),
        );
    }
    outbox.unpark();
    for at in 0.. {
        if !outbox.forget(at, kept) {
            break;
        }
    }
    outbox.activate_parked();
    assert_eq!((outbox.len(), outbox.dead()), (1, 0));
    assert_eq!(outbox.next(20), Err(Some(50)));
}

#[test]
fn schedules_of_several_migrations_are_served_in_one_order() {
    let mut outbox = outbox(OutboxLimits::default());
    let mut expected = Vec::new();
    for arrival in 0..20_u32 {
        for number in 0..5 {
            let at_ms = u64::from(number * 37 % 5 * 100 + arrival);
            let order = id(arrival * 5 + number);
            park(
                &mut outbox,
                order.clone(),
                Kind::Announce,
                Some(Message::new(at_ms)),
            );
            expected.push((at_ms, order));
        }
        outbox.activate_parked();
    }
    expected.sort();
    for (at_ms, order) in expected {
        assert_eq!(outbox.next(at_ms).unwrap().order, order);
    }
    assert_eq!(outbox.next(u64::MAX), Err(None));
}

#[test]
fn dead_letters_count_for_the_maximum_number_of_messages() {
    let limits = OutboxLimits {
        messages_max: 2,
        tries_max: 1,
        breaker_failures: 100,
        ..OutboxLimits::default()
    };
    let mut outbox = outbox(limits);
    for number in 1..=2 {
        assert!(!outbox.is_full());
        set(&mut outbox, id(number), Kind::Announce, Message::new(0));
        let job = outbox.next(0).unwrap();
        assert_eq!(refuse(&mut outbox, &job, 0).state, MessageState::Dead);
    }
    assert!(outbox.is_full() && outbox.dead() == 2);
    // Once the warehouse has confirmed a retried message, there is room for an order.
    set(&mut outbox, id(1), Kind::Announce, Message::new(0));
    assert!(outbox.is_full());
    let job = outbox.next(0).unwrap();
    outbox.answered(&job);
    outbox.remove(&job.order, job.kind);
    assert!(!outbox.is_full());
}
