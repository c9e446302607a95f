//! Tests that the check detects each kind of mistake and accepts unknown outcomes.

use serde_json::json;
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

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

/// A history in which each operation with a response ends before the next begins.
#[derive(Default)]
struct Sequence(History);

impl Sequence {
    fn unknown(mut self, step: Step) -> Sequence {
        self.0.invoke(9, step);
        self
    }

    fn then(mut self, step: Step, status: u16, is_replayed: bool, body: Value) -> Sequence {
        let number = self.0.invoke(1, step.clone());
        let answer = Answer::read(&step, status, is_replayed, &body).unwrap();
        self.0.answer(number, answer.unwrap());
        self
    }

    fn placed(self) -> Sequence {
        self.then(Step::Place(1), 200, false, order("reserved", None))
    }

    fn paid(self, transaction: u64, is_replayed: bool) -> Sequence {
        let body = order("paid", Some(transaction));
        self.then(Step::Pay(transaction), 200, is_replayed, body)
    }

    fn shown(self, state: &str, transaction: Option<u64>) -> Sequence {
        self.then(Step::Read, 200, false, order(state, transaction))
    }

    fn absent(self) -> Sequence {
        self.then(Step::Read, 404, false, problem("not-found"))
    }

    fn is_linearizable(&self) -> bool {
        self.0.check().is_ok()
    }
}

#[test]
fn the_life_of_an_order_is_linearizable() {
    let sequence = Sequence::default().absent().placed().shown("announced", None);
    let sequence = sequence.paid(7, false).shown("delivering", Some(7));
    let sequence = sequence.shown("delivered", Some(7)).paid(7, true);
    let sequence = sequence.then(Step::Cancel, 409, false, problem("refused"));
    assert!(sequence.is_linearizable());
    let cancelled = Sequence::default()
        .placed()
        .then(Step::Cancel, 200, false, json!({}));
    let refunded = cancelled.then(Step::Pay(8), 409, false, problem("refund-wanted"));
    assert!(refunded.is_linearizable());
}

#[test]
fn a_read_from_an_old_owner_is_noticed() {
    assert!(!Sequence::default().placed().absent().is_linearizable());
    let paid = || Sequence::default().placed().paid(7, false);
    assert!(!paid().shown("reserved", None).is_linearizable());
    let back = paid().shown("delivered", Some(7)).shown("delivering", Some(7));
    assert!(!back.is_linearizable());
}

#[test]
fn an_acknowledged_write_that_is_lost_is_noticed() {
    assert!(!Sequence::default().placed().placed().is_linearizable());
    let paid = Sequence::default().placed().paid(7, false).paid(7, true);
    assert!(!paid.paid(8, false).is_linearizable());
}

#[test]
fn a_repeated_command_that_is_carried_out_twice_is_noticed() {
    let paid = || Sequence::default().placed().paid(7, false);
    assert!(!paid().paid(7, false).is_linearizable());
    let refunded = paid().then(Step::Pay(7), 409, false, problem("refund-wanted"));
    assert!(!refunded.is_linearizable());
}

#[test]
fn an_operation_without_a_response_may_have_happened_at_any_later_time_or_never() {
    for sequence in [
        // The `Place` without a response was never executed.
        Sequence::default().unknown(Step::Place(1)).absent(),
        // In the next two histories, the `Place` without a response was executed before the first
        // read, or between the two reads.
        Sequence::default()
            .unknown(Step::Place(1))
            .shown("reserved", None),
        Sequence::default()
            .unknown(Step::Place(1))
            .absent()
            .shown("reserved", None),
        // The payment without a response is not executed before the last read, which follows the
        // cancellation.
        Sequence::default()
            .placed()
            .unknown(Step::Pay(7))
            .shown("reserved", None)
            .then(Step::Cancel, 200, false, json!({}))
            .shown("cancelled", None),
        // The first response reports a repetition, because the earlier `Place` without a response
        // was executed.
        Sequence::default()
            .unknown(Step::Place(1))
            .then(Step::Place(1), 200, true, order("reserved", None)),
    ] {
        assert!(sequence.is_linearizable());
    }
    // An operation cannot be executed before its invocation, and its effect cannot be undone.
    let early = Sequence::default()
        .shown("reserved", None)
        .unknown(Step::Place(1));
    assert!(!early.is_linearizable());
    let undone = Sequence::default()
        .unknown(Step::Place(1))
        .shown("reserved", None)
        .absent();
    assert!(!undone.is_linearizable());
}

/// Maximum number of states that the search of the next test may visit. If each of several equal
/// operations without a response were tried, the search would visit a million states.
const STATES_MAX: usize = 20_000;

#[test]
fn many_operations_without_a_response_are_decided_in_few_states() {
    let mut sequence = Sequence::default().placed();
    for _ in 0..4 {
        for step in [
            Step::Place(1),
            Step::Place(2),
            Step::Pay(1),
            Step::Pay(2),
            Step::Cancel,
        ] {
            sequence = sequence.unknown(step);
        }
    }
    // No sequence of the operations explains the last response. So the search cannot end early, and
    // visits every state that its rules do not exclude.
    let (is_linearizable, states) = sequence.absent().0.search();
    assert!(!is_linearizable);
    assert!(states < STATES_MAX, "{states} states");
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

impl SequentialSpec for Possible {
    type Op = Step;
    type Ret = Answer;

    /// Executes an operation without a response. The returned value has no meaning.
    fn invoke(&mut self, step: &Step) -> Answer {
        *self = self.unanswered(step);
        Answer::of_kind(Kind::Absent, false)
    }

    fn is_valid_step(&mut self, step: &Step, answer: &Answer) -> bool {
        *self = self.answered(step, answer);
        !self.0.is_empty()
    }
}

/// Returns the verdict of stateright. The tester of stateright gets a separate thread for each
/// operation, because a thread cannot continue after an operation without a response.
fn is_linearizable_by_stateright(history: &History) -> bool {
    let mut events = Vec::new();
    for (number, operation) in history.operations.iter().enumerate() {
        events.push((operation.invoked, number, None));
        if let Some((ended, answer)) = &operation.answered {
            events.push((*ended, number, Some(answer)));
        }
    }
    events.sort_by_key(|(at, ..)| *at);
    let mut tester = LinearizabilityTester::new(Possible::nothing());
    for (_, number, answer) in events {
        let recorded = match answer {
            None => tester.on_invoke(number, history.operations[number].step.clone()),
            Some(answer) => tester.on_return(number, answer.clone()),
        };
        recorded.unwrap();
    }
    tester.is_consistent()
}

/// A linear congruential generator.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        let (factor, more) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
        self.0 = self.0.wrapping_mul(factor).wrapping_add(more);
        (self.0 >> 33) as usize % limit
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

fn answer_of(effect: &Effect) -> Answer {
    let mut answer = Answer::of_kind(effect.kind, !effect.is_first);
    let Some(order) = &effect.order else { return answer };
    if matches!(effect.kind, Kind::Placed | Kind::Paid | Kind::Shown) {
        answer.store = order.has_store.then_some(3);
        answer.created_at_ms = Some(50);
        answer.transaction = order.transaction.filter(|_| effect.kind != Kind::Placed);
    }
    if effect.kind == Kind::Shown {
        answer.phase = Some(order.phase);
        answer.content = Some(order.content);
        answer.refunds = Some(order.refunds());
    }
    answer
}

/// Returns a history of up to seven overlapping operations. Each operation is executed when it
/// ends. Some responses are lost, and some are changed or replaced by an earlier response.
fn random_history(dice: &mut Dice) -> History {
    let (mut history, mut order) = (History::default(), None::<Order>);
    let (mut open, mut answers): (Vec<usize>, Vec<Answer>) = (Vec::new(), Vec::new());
    let mut left = 2 + dice.below(6);
    while left > 0 || !open.is_empty() {
        if left > 0 && (open.is_empty() || dice.one_in(2)) {
            left -= 1;
            let steps = [
                Step::Place(1),
                Step::Place(2),
                Step::Pay(1),
                Step::Pay(2),
                Step::Cancel,
                Step::Read,
            ];
            let step = steps[[0, 0, 0, 1, 2, 2, 3, 4, 5, 5, 5][dice.below(11)]].clone();
            open.push(history.invoke(1, step));
            continue;
        }
        let number = open.swap_remove(dice.below(open.len()));
        let mut effects = Order::effects(order.as_ref(), &history.operations[number].step);
        let effect = effects.swap_remove(dice.below(effects.len()));
        let mut answer = answer_of(&effect);
        order = effect.order;
        if let Some(next) = order
            .as_ref()
            .and_then(Order::advanced)
            .filter(|_| dice.one_in(3))
        {
            order = Some(next);
        }
        answers.push(answer.clone());
        match dice.below(8) {
            0 => continue,
            1 => answer = answers[dice.below(answers.len())].clone(),
            2 => answer.is_replayed ^= true,
            _ => {}
        }
        history.answer(number, answer);
    }
    history
}

#[test]
fn the_search_agrees_with_stateright_on_random_histories() {
    let mut dice = Dice(1);
    let mut verdicts = [0; 2];
    for _ in 0..3_000 {
        let history = random_history(&mut dice);
        let is_linearizable = history.check().is_ok();
        let expected = is_linearizable_by_stateright(&history);
        assert_eq!(is_linearizable, expected, "{}", history.to_text());
        verdicts[usize::from(is_linearizable)] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > 500), "{verdicts:?}");
}
