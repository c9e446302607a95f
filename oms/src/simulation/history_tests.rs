//! The check notices each kind of mistake, and allows what unknown outcomes allow.

use serde_json::json;

use super::*;

fn order(state: &str, transaction: Option<u64>) -> Value {
    let mut order = json!({
        "id": "o1", "products": lines_of(1), "store_id": 3, "state": state, "created_at_ms": 50,
    });
    if let Some(transaction) = transaction {
        order["transaction_id"] = json!(transaction);
    }
    order
}

fn problem(slug: &str) -> Value {
    json!({"type": format!("urn:imt-order:problem:{slug}")})
}

/// A history in which each operation ends before the next begins, unless told otherwise.
#[derive(Default)]
struct Told(History);

impl Told {
    fn unknown(mut self, step: Step) -> Told {
        self.0.invoke(9, step);
        self
    }

    fn then(mut self, step: Step, status: u16, is_replayed: bool, body: Value) -> Told {
        let number = self.0.invoke(1, step.clone());
        let answer = Answer::read(&step, status, is_replayed, &body).unwrap();
        self.0.answer(number, answer.unwrap());
        self
    }

    fn placed(self) -> Told {
        self.then(Step::Place(1), 200, false, order("reserved", None))
    }

    fn paid(self, transaction: u64, is_replayed: bool) -> Told {
        let body = order("paid", Some(transaction));
        self.then(Step::Pay(transaction), 200, is_replayed, body)
    }

    fn shown(self, state: &str, transaction: Option<u64>) -> Told {
        self.then(Step::Read, 200, false, order(state, transaction))
    }

    fn absent(self) -> Told {
        self.then(Step::Read, 404, false, problem("not-found"))
    }

    fn is_linearizable(self) -> bool {
        self.0.check().is_ok()
    }
}

#[test]
fn the_life_of_an_order_is_linearizable() {
    let told = Told::default().absent().placed().shown("announced", None);
    let told = told.paid(7, false).shown("delivering", Some(7));
    let told = told.shown("delivered", Some(7)).paid(7, true);
    let told = told.then(Step::Cancel, 409, false, problem("refused"));
    assert!(told.is_linearizable());
    let cancelled = Told::default().placed().then(Step::Cancel, 200, false, json!({}));
    let refunded = cancelled.then(Step::Pay(8), 409, false, problem("refund-wanted"));
    assert!(refunded.is_linearizable());
}

#[test]
fn a_read_from_an_old_owner_is_noticed() {
    assert!(!Told::default().placed().absent().is_linearizable());
    let paid = || Told::default().placed().paid(7, false);
    assert!(!paid().shown("reserved", None).is_linearizable());
    let back = paid().shown("delivered", Some(7)).shown("delivering", Some(7));
    assert!(!back.is_linearizable());
}

#[test]
fn an_acknowledged_write_that_is_lost_is_noticed() {
    assert!(!Told::default().placed().placed().is_linearizable());
    let paid = Told::default().placed().paid(7, false).paid(7, true);
    assert!(!paid.paid(8, false).is_linearizable());
}

#[test]
fn a_repeated_command_that_is_carried_out_twice_is_noticed() {
    let paid = || Told::default().placed().paid(7, false);
    assert!(!paid().paid(7, false).is_linearizable());
    let refunded = paid().then(Step::Pay(7), 409, false, problem("refund-wanted"));
    assert!(!refunded.is_linearizable());
}

#[test]
fn an_operation_without_a_response_may_have_happened_at_any_later_time_or_never() {
    for told in [
        // Never.
        Told::default().unknown(Step::Place(1)).absent(),
        // At once, or after a read.
        Told::default().unknown(Step::Place(1)).shown("reserved", None),
        Told::default()
            .unknown(Step::Place(1))
            .absent()
            .shown("reserved", None),
        // A payment that is seen after the cancellation: the order is to be refunded.
        Told::default()
            .placed()
            .unknown(Step::Pay(7))
            .shown("reserved", None)
            .then(Step::Cancel, 200, false, json!({}))
            .shown("cancelled", None),
        // A first response that says that an unknown try came first.
        Told::default()
            .unknown(Step::Place(1))
            .then(Step::Place(1), 200, true, order("reserved", None)),
    ] {
        assert!(told.is_linearizable());
    }
    // It cannot happen before it was invoked, and not be undone.
    let early = Told::default().shown("reserved", None).unknown(Step::Place(1));
    assert!(!early.is_linearizable());
    let undone = Told::default()
        .unknown(Step::Place(1))
        .shown("reserved", None)
        .absent();
    assert!(!undone.is_linearizable());
}

#[test]
fn operations_that_overlap_may_happen_in_either_order() {
    let mut history = History::default();
    let place = history.invoke(1, Step::Place(1));
    let read = history.invoke(2, Step::Read);
    let again = history.invoke(3, Step::Read);
    let answer = |step: &Step, status, body| Answer::read(step, status, false, &body).unwrap().unwrap();
    history.answer(read, answer(&Step::Read, 404, problem("not-found")));
    history.answer(again, answer(&Step::Read, 200, order("reserved", None)));
    history.answer(place, answer(&Step::Place(1), 200, order("reserved", None)));
    history.check().unwrap();
    let late = history.invoke(2, Step::Read);
    history.answer(late, answer(&Step::Read, 404, problem("not-found")));
    let text = history.check().unwrap_err();
    assert!(text.contains("client 2 Read"), "{text}");
}

#[test]
fn responses_outside_of_the_contract_are_refused() {
    assert!(
        Answer::read(&Step::Read, 503, false, &json!({}))
            .unwrap()
            .is_none()
    );
    for (step, status, body) in [
        (Step::Read, 400, problem("malformed")),
        (Step::Place(1), 404, problem("not-found")),
        (Step::Place(1), 409, problem("refund-wanted")),
        (Step::Read, 200, order("lost", None)),
        (Step::Read, 421, problem("moved")),
    ] {
        Answer::read(&step, status, false, &body).unwrap_err();
    }
}
