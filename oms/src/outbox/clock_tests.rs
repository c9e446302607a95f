//! Tests of waits: no step of the wall clock delays a message by more than the longest backoff, and
//! a wait requested by the warehouse is kept up to the longest backoff.

use super::*;

const WALL_MS: u64 = 1_700_000_000_000;

fn moment(monotonic_ms: u64, step_s: i64) -> Moment {
    Moment {
        wall_ms: (WALL_MS + monotonic_ms).saturating_add_signed(step_s * 1_000),
        monotonic_ms,
    }
}

fn id(number: u32) -> OrderId {
    OrderId::parse(&number.to_string()).unwrap()
}

fn refused() -> Failure {
    Failure::new(FailureKind::Unreachable, "connection refused")
}

#[test]
fn a_clock_step_during_a_backoff_delays_no_message() {
    for step_s in [-86_400, -600, 600, 86_400] {
        let limits = OutboxLimits::default();
        let mut outbox = Outbox::new(limits, &[], moment(0, 0));
        outbox.set(id(1), Kind::Announce, &Message::new(WALL_MS), moment(0, 0));
        let job = outbox.next(0).unwrap();
        let message = outbox.failed(&job, &refused(), moment(10, 0), 1.0).unwrap();
        assert_eq!(message.next_try_ms, WALL_MS + 1_010);
        // The clock steps, and a new order arrives.
        let placed = moment(20, step_s);
        outbox.set(id(2), Kind::Announce, &Message::new(placed.wall_ms), placed);
        assert_eq!(outbox.next(20).unwrap().order, id(2), "step {step_s}");
        assert_eq!(outbox.next(20), Err(Some(1_010)), "step {step_s}");
        assert_eq!(outbox.next(1_010).unwrap().order, id(1), "step {step_s}");
    }
}

#[test]
fn an_order_placed_just_before_the_clock_steps_back_is_sent_soon() {
    let limits = OutboxLimits::default();
    let mut outbox = Outbox::new(limits, &[], moment(0, 0));
    // The message is created before the clock step and reaches the outbox after the step.
    outbox.set(id(1), Kind::Announce, &Message::new(WALL_MS), moment(5, -600));
    let look_again = outbox.next(5).unwrap_err().unwrap();
    assert_eq!(
        look_again,
        5 + limits.backoff_max_ms,
        "no wait is longer than the longest backoff"
    );
    assert!(outbox.next(look_again).is_ok());
}

#[test]
fn an_open_breaker_ignores_clock_steps() {
    for step_s in [-86_400, -600, 600] {
        let limits = OutboxLimits {
            breaker_failures: 1,
            ..OutboxLimits::default()
        };
        let mut outbox = Outbox::new(limits, &[], moment(0, 0));
        outbox.set(id(1), Kind::Deliver, &Message::new(WALL_MS), moment(0, 0));
        let job = outbox.next(0).unwrap();
        outbox.failed(&job, &refused(), moment(0, 0), 0.0).unwrap();
        let placed = moment(1, step_s);
        outbox.set(id(2), Kind::Deliver, &Message::new(placed.wall_ms), placed);
        assert_eq!(outbox.next(1), Err(Some(limits.probe_first_ms)), "step {step_s}");
        assert!(outbox.next(limits.probe_first_ms).unwrap().probe, "step {step_s}");
    }
}

#[test]
fn a_row_written_by_a_fast_clock_waits_at_most_the_longest_backoff() {
    let limits = OutboxLimits::default();
    let row = |next_try_ms: u64, attempts: u32| Message {
        attempts,
        ..Message::new(next_try_ms)
    };
    let year_ms = 365 * 86_400_000;
    let rows = [
        (id(1), Kind::Announce, row(WALL_MS + year_ms, 3)),
        (id(2), Kind::Announce, row(WALL_MS - year_ms, 3)),
        (id(3), Kind::Announce, row(u64::MAX, 1)),
    ];
    let mut outbox = Outbox::new(limits, &rows, moment(0, 0));
    outbox.park(
        id(4),
        Kind::Announce,
        Some(&row(WALL_MS + year_ms, 0)),
        moment(0, 0),
    );
    outbox.activate_parked();
    assert_eq!(outbox.next(0).unwrap().order, id(2));
    assert_eq!(outbox.next(0), Err(Some(limits.backoff_max_ms)));
    let sent = std::iter::from_fn(|| outbox.next(limits.backoff_max_ms).ok()).count();
    assert_eq!(sent, 3);
    let listed = outbox.page(None, 9, moment(0, 0));
    let due: Vec<u64> = listed.iter().map(|message| message.next_try_ms).collect();
    let latest = WALL_MS + limits.backoff_max_ms;
    assert_eq!(
        due,
        [latest, WALL_MS, latest, latest],
        "the list shows the real time of each try"
    );
}

#[test]
fn the_requested_wait_is_kept_up_to_the_longest_backoff() {
    let limits = OutboxLimits::default();
    for (retry_after_ms, jitter, wait_ms) in [
        (None, 0.0, 0),
        (Some(0), 0.5, 500),
        (Some(5_000), 0.0, 5_000),
        (Some(5_000), 1.0, 5_000),
        (Some(86_400_000), 0.0, limits.backoff_max_ms),
        (Some(u64::MAX), 1.0, limits.backoff_max_ms),
    ] {
        let mut outbox = Outbox::new(limits, &[], moment(0, 0));
        outbox.set(id(1), Kind::Announce, &Message::new(WALL_MS), moment(0, 0));
        let job = outbox.next(0).unwrap();
        let failure = Failure {
            retry_after_ms,
            ..Failure::new(FailureKind::InProgress, "409 Conflict")
        };
        let message = outbox.failed(&job, &failure, moment(0, 0), jitter).unwrap();
        assert_eq!(message.next_try_ms, WALL_MS + wait_ms, "{retry_after_ms:?}");
    }
}

#[test]
fn probes_keep_the_wait_requested_by_the_warehouse() {
    let limits = OutboxLimits {
        breaker_failures: 1,
        ..OutboxLimits::default()
    };
    let mut outbox = Outbox::new(limits, &[], moment(0, 0));
    for number in 0..2 {
        outbox.set(id(number), Kind::Announce, &Message::new(WALL_MS), moment(0, 0));
    }
    let job = outbox.next(0).unwrap();
    let busy = Failure {
        retry_after_ms: Some(30_000),
        ..Failure::new(FailureKind::Unreachable, "503 Service Unavailable")
    };
    outbox.failed(&job, &busy, moment(0, 0), 0.0).unwrap();
    assert_eq!(outbox.next(0), Err(Some(30_000)));
    assert!(outbox.next(30_000).unwrap().probe);
}
