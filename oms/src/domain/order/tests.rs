//! Tests of an order: the outcome of every pair of state and command, and the refunds.

use super::*;

const TRANSACTION: u64 = 7;

fn id() -> OrderId {
    OrderId::parse("17").unwrap()
}

fn lines() -> Box<[Line]> {
    [Line { id: 812, quantity: 3 }].into()
}

/// Returns an order in this state, with a history that leads to this state. The history has a
/// payment only if the state requires one. No history leads to `Received`, so this state is set
/// directly.
fn in_state(state: State) -> Order {
    let reserved = Event::Reserved { store: 5 };
    let paid = Event::Paid {
        transaction: TRANSACTION,
    };
    let failed = Event::Failed {
        reason: "no".to_owned(),
    };
    let events = match state {
        State::Received => {
            return Order {
                state,
                ..Order::place(id(), lines(), None, 1)
            };
        }
        State::Reserved => vec![reserved],
        State::Announced => vec![reserved, Event::Announced],
        State::Paid => vec![reserved, paid],
        State::Delivering => vec![reserved, Event::Announced, paid, Event::DeliveryStarted],
        State::Delivered => {
            vec![
                reserved,
                Event::Announced,
                paid,
                Event::DeliveryStarted,
                Event::Delivered { sequence: Some(9) },
            ]
        }
        State::Rejected => vec![Event::Rejected],
        State::Cancelled => vec![reserved, Event::Cancelled],
        State::Expired => vec![reserved, Event::Announced, Event::Expired],
        State::Failed => vec![reserved, failed],
        State::RefundWanted => vec![
            reserved,
            Event::Expired,
            Event::RefundWanted {
                transaction: TRANSACTION,
            },
        ],
    };
    let history = events
        .into_iter()
        .enumerate()
        .map(|(at, event)| Entry {
            at_ms: at as u64,
            event,
        })
        .collect();
    let order = Order::from_history(id(), lines(), history);
    assert_eq!(order.state, state);
    order
}

fn commands() -> [Command; 8] {
    let reason = || "no".to_owned();
    [
        Command::Pay {
            transaction: TRANSACTION,
        },
        Command::Pay {
            transaction: TRANSACTION + 1,
        },
        Command::ConfirmAnnouncement,
        Command::RefuseAnnouncement { reason: reason() },
        Command::ConfirmDelivery { sequence: Some(9) },
        Command::RefuseDelivery { reason: reason() },
        Command::Cancel,
        Command::Expire,
    ]
}

/// Returns the order's state after the command. `+8` is appended if the order was already paid and
/// payment 8 is kept in addition. Returns `=` if the command causes no event and `!` if the command
/// is refused.
fn outcome(state: State, command: &Command) -> String {
    let order = in_state(state);
    match decide(&order, command) {
        Err(_) => "!".to_owned(),
        Ok(events) if events.is_empty() => "=".to_owned(),
        Ok(events) => {
            let mut after = order;
            after.apply(events, 100);
            let extra: String = after.extra_payments.iter().map(|one| format!("+{one}")).collect();
            format!("{}{extra}", after.state.name())
        }
    }
}

#[test]
fn every_pair_of_state_and_command_has_its_outcome() {
    #[rustfmt::skip]
    let expected = [
        // Columns: state, pay 7, pay 8, announcement confirmed, announcement refused, delivery
        // confirmed, delivery refused, cancel, expire.
        (State::Received,     ["!",             "!",            "=",         "=",             "=",         "=",       "!",             "="]),
        (State::Reserved,     ["paid",          "paid",         "announced", "failed",        "=",         "=",       "cancelled",     "expired"]),
        (State::Announced,    ["delivering",    "delivering",   "=",         "=",             "=",         "=",       "cancelled",     "expired"]),
        (State::Paid,         ["=",             "paid+8",       "delivering", "refund_wanted", "=",        "=",       "refund_wanted", "="]),
        (State::Delivering,   ["=",             "delivering+8", "=",         "=",             "delivered", "refund_wanted", "!",       "="]),
        (State::Delivered,    ["=",             "delivered+8",  "=",         "=",             "=",         "=",       "!",             "="]),
        (State::Rejected,     ["refund_wanted", "refund_wanted", "=",        "=",             "=",         "=",       "!",             "="]),
        (State::Cancelled,    ["refund_wanted", "refund_wanted", "=",        "=",             "=",         "=",       "=",             "="]),
        (State::Expired,      ["refund_wanted", "refund_wanted", "=",        "=",             "=",         "=",       "!",             "="]),
        (State::Failed,       ["refund_wanted", "refund_wanted", "=",        "=",             "=",         "=",       "!",             "="]),
        (State::RefundWanted, ["=",             "refund_wanted+8", "=",      "=",             "=",         "=",       "!",             "="]),
    ];
    assert_eq!(expected.len(), State::ALL.len());
    for (state, outcomes) in expected {
        for (command, expected) in commands().iter().zip(outcomes) {
            assert_eq!(outcome(state, command), expected, "{state}: {command:?}");
        }
    }
}

#[test]
fn a_repeated_command_causes_no_event() {
    for state in State::ALL {
        for command in commands() {
            let mut order = in_state(state);
            let Ok(events) = decide(&order, &command) else {
                continue;
            };
            order.apply(events, 100);
            assert_eq!(decide(&order, &command), Ok(Vec::new()), "{state}: {command:?}");
        }
    }
}

/// Tries payments before and after the end of an order, and further payments.
#[test]
fn every_payment_that_buys_nothing_becomes_a_wanted_refund() {
    let pay = |transaction| Command::Pay { transaction };
    let refuse = || Command::RefuseDelivery {
        reason: "out of stock".to_owned(),
    };
    let refuse_announcement = || Command::RefuseAnnouncement {
        reason: "unknown product".to_owned(),
    };
    for (begin, commands, refunds) in [
        (State::Reserved, vec![pay(1), Command::Cancel], vec![1]),
        (State::Reserved, vec![pay(1), refuse_announcement()], vec![1]),
        (State::Reserved, vec![refuse_announcement(), pay(1)], vec![1]),
        (State::Reserved, vec![Command::Cancel, pay(1), pay(2)], vec![1, 2]),
        (State::Announced, vec![Command::Expire, pay(1)], vec![1]),
        (State::Announced, vec![pay(1), refuse()], vec![1]),
        (
            State::Announced,
            vec![pay(1), pay(2), refuse(), pay(2)],
            vec![1, 2],
        ),
        (
            State::Announced,
            vec![pay(1), pay(2), Command::ConfirmDelivery { sequence: None }],
            vec![2],
        ),
        (State::Rejected, vec![pay(1), pay(1)], vec![1]),
        (
            State::Announced,
            vec![pay(1), Command::ConfirmDelivery { sequence: None }],
            vec![],
        ),
    ] {
        let mut order = in_state(begin);
        for command in &commands {
            let events = decide(&order, command).unwrap();
            order.apply(events, 100);
        }
        let found: Vec<u64> = order.refunds().collect();
        assert_eq!(found, refunds, "{begin}: {commands:?}");
        let again = Order::from_history(order.id.clone(), order.lines.clone(), order.history.clone());
        assert_eq!(again, order, "{begin}: {commands:?}");
    }
}

#[test]
fn extra_payments_are_kept_up_to_a_bound() {
    let mut order = in_state(State::Delivered);
    for transaction in 1_000..1_000 + EXTRA_PAYMENTS_MAX as u64 {
        let events = decide(&order, &Command::Pay { transaction }).unwrap();
        order.apply(events, 100);
    }
    let one_more = Command::Pay { transaction: 5_000 };
    assert_eq!(decide(&order, &one_more), Err(Refusal::TooManyPayments));
    let known = Command::Pay { transaction: 1_000 };
    assert_eq!(
        decide(&order, &known),
        Ok(Vec::new()),
        "a known payment is still accepted"
    );
    assert_eq!(order.state, State::Delivered);
}

#[test]
fn units_are_reserved_exactly_while_the_order_is_open() {
    let open = [State::Reserved, State::Announced, State::Paid, State::Delivering];
    for state in State::ALL {
        assert_eq!(state.holds_reservation(), open.contains(&state), "{state}");
    }
}

#[test]
fn times_in_a_history_never_decrease() {
    let mut order = Order::place(id(), lines(), Some(5), 1_000);
    order.apply(vec![Event::Announced], 10);
    assert_eq!((order.created_at_ms(), order.updated_at_ms()), (1_000, 1_000));
}

#[test]
fn the_same_order_again_is_accepted_and_other_lines_are_refused() {
    let order = in_state(State::Delivered);
    assert_eq!(order.placed_again(&lines()), Ok(()));
    assert_eq!(
        order.placed_again(&[Line { id: 812, quantity: 4 }]),
        Err(Refusal::OtherContent)
    );
}

#[test]
fn ids_that_need_encoding_in_a_path_are_refused() {
    for good in ["17", "a", "A-b_c.d~e:f", &"x".repeat(64)] {
        assert_eq!(OrderId::parse(good).unwrap().as_str(), good);
    }
    for bad in ["", ".", "..", "a/b", "a b", "é", "a\n", "a%20", &"x".repeat(65)] {
        assert!(OrderId::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn from_name_reverses_name() {
    for state in State::ALL {
        assert_eq!(State::from_name(state.name()), Some(state));
        assert_eq!(
            serde_json::to_string(&state).unwrap(),
            format!("\"{}\"", state.name())
        );
    }
}
