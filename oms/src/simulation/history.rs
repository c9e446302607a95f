//! Checks that the histories of clients are linearizable, order by order.
//!
//! A history has the invocation of every operation, and its response if there was one, in the order
//! in which the clients saw them. The search looks for a sequential execution of the operations
//! that respects real time and that the specification allows. The algorithm is that of Wing and
//! Gong, with Lowe's memory of visited states ("Testing for linearizability", 2017). A test
//! compares the verdicts of the search with those of `stateright`, which has no such memory and
//! takes hours for some histories of 13 operations.
//!
//! **Invariants**
//! - The specification is written from the promises to clients (docs/operations.md). It shares no
//!   code with the order's state machine.
//! - An operation without a response may have been executed at any time after its invocation, or
//!   never. A status of 429 or 5xx counts as no response.
//! - The state of the specification is the set of all possible states of the order, because the
//!   choice of the store and the steps of the warehouse are not visible to clients.
//!
//! Deliberately absent: expiry, and refusals by the warehouse. The simulations with `clients` have
//! neither.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

/// An operation on one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Places the order with this content, which is the number of units.
    Place(u8),
    /// Pays the order with this transaction.
    Pay(u64),
    Cancel,
    Read,
}

/// State of an order as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Reserved,
    Announced,
    Paid,
    Delivering,
    Delivered,
    Rejected,
    Cancelled,
    RefundWanted,
}

impl Phase {
    fn from_name(name: &str) -> Option<Phase> {
        Some(match name {
            "reserved" => Phase::Reserved,
            "announced" => Phase::Announced,
            "paid" => Phase::Paid,
            "delivering" => Phase::Delivering,
            "delivered" => Phase::Delivered,
            "rejected" => Phase::Rejected,
            "cancelled" => Phase::Cancelled,
            "refund_wanted" => Phase::RefundWanted,
            _ => return None,
        })
    }
}

/// Kind of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Placed,
    NoStore,
    Paid,
    RefundWanted,
    Cancelled,
    Shown,
    /// The order does not allow the operation.
    Refused,
    /// The order does not exist.
    Absent,
}

/// A response, with the values that the specification checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    kind: Kind,
    /// `true` if the response reports that the operation was executed before.
    is_replayed: bool,
    content: Option<u8>,
    phase: Option<Phase>,
    store: Option<u64>,
    transaction: Option<u64>,
    refunds: Option<Vec<u64>>,
    created_at_ms: Option<u64>,
}

impl Answer {
    fn of_kind(kind: Kind, is_replayed: bool) -> Answer {
        Answer {
            kind,
            is_replayed,
            content: None,
            phase: None,
            store: None,
            transaction: None,
            refunds: None,
            created_at_ms: None,
        }
    }

    /// Parses a response. Returns `None` if the response leaves open whether the operation was
    /// executed.
    ///
    /// # Errors
    /// A description of the response, if this operation may not get it.
    pub(crate) fn read(
        step: &Step,
        status: u16,
        is_replayed: bool,
        body: &Value,
    ) -> Result<Option<Answer>, String> {
        let problem = body["type"].as_str().and_then(|kind| kind.rsplit(':').next());
        let kind = match (step, status, problem) {
            (_, 429 | 500..=599, _) => return Ok(None),
            (Step::Place(_), 200, _) => Kind::Placed,
            (Step::Place(_), 409, Some("insufficient-stock")) => Kind::NoStore,
            (Step::Pay(_), 200, _) => Kind::Paid,
            (Step::Pay(_), 409, Some("refund-wanted")) => Kind::RefundWanted,
            (Step::Cancel, 200, _) => Kind::Cancelled,
            (Step::Read, 200, _) => Kind::Shown,
            (Step::Place(_) | Step::Pay(_) | Step::Cancel, 409, Some("refused")) => Kind::Refused,
            (Step::Pay(_) | Step::Cancel | Step::Read, 404, _) => Kind::Absent,
            _ => return Err(format!("{step:?} is answered by {status} {body}")),
        };
        let mut answer = Answer::of_kind(kind, is_replayed);
        if status == 200 && kind != Kind::Cancelled {
            answer.store = body["store_id"].as_u64();
            answer.transaction = body["transaction_id"].as_u64();
            answer.created_at_ms = body["created_at_ms"].as_u64();
        }
        if kind == Kind::Shown {
            let refunds = body["refund_transaction_ids"].as_array();
            let refunds = refunds.map(Vec::as_slice).unwrap_or_default().iter();
            answer.refunds = Some(refunds.filter_map(Value::as_u64).collect());
            answer.phase = body["state"].as_str().and_then(Phase::from_name);
            answer.content = content_of(&body["products"]);
            if answer.phase.is_none() || answer.content.is_none() {
                return Err(format!("an order is shown as {body}"));
            }
        }
        Ok(Some(answer))
    }
}

/// Returns the lines of an order with this content, which is the number of units of product 1.
pub(crate) fn lines_of(content: u8) -> Value {
    serde_json::json!([{"id": 1, "quantity": content}])
}

fn content_of(products: &Value) -> Option<u8> {
    let content = u8::try_from(products[0]["quantity"].as_u64()?).ok()?;
    (*products == lines_of(content)).then_some(content)
}

/// A possible state of the order after the operations so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    content: u8,
    phase: Phase,
    /// The store of the order. `None` until a response shows the store. Always `None` for a
    /// rejected order.
    store: Option<u64>,
    has_store: bool,
    created_at_ms: Option<u64>,
    transaction: Option<u64>,
    /// `true` if the transaction paid the order, even if the order was cancelled afterwards.
    /// `false` if the transaction came too late, or there is none.
    has_bought: bool,
    extra: Vec<u64>,
    was_cancelled: bool,
}

/// The result of an operation on one possible state of the order.
struct Effect {
    order: Option<Order>,
    kind: Kind,
    /// `true` if the operation changed the order.
    is_first: bool,
}

impl Order {
    fn placed(content: u8, has_store: bool) -> Order {
        Order {
            content,
            phase: if has_store {
                Phase::Reserved
            } else {
                Phase::Rejected
            },
            store: None,
            has_store,
            created_at_ms: None,
            transaction: None,
            has_bought: false,
            extra: Vec::new(),
            was_cancelled: false,
        }
    }

    /// Returns the order after the next step of the warehouse. `None` if no step can follow.
    fn advanced(&self) -> Option<Order> {
        let phase = match self.phase {
            Phase::Reserved => Phase::Announced,
            Phase::Paid => Phase::Delivering,
            Phase::Delivering => Phase::Delivered,
            _ => return None,
        };
        Some(Order {
            phase,
            ..self.clone()
        })
    }

    fn unchanged(&self, kind: Kind) -> Effect {
        Effect {
            order: Some(self.clone()),
            kind,
            is_first: false,
        }
    }

    fn pay(&self, transaction: u64) -> Effect {
        let mut order = self.clone();
        match (self.transaction, self.phase) {
            (Some(paid_by), _) if paid_by == transaction && self.has_bought => {
                return self.unchanged(Kind::Paid);
            }
            (Some(paid_by), _) if paid_by == transaction || self.extra.contains(&transaction) => {
                return self.unchanged(Kind::RefundWanted);
            }
            (Some(_), _) => order.extra.push(transaction),
            (None, Phase::Reserved | Phase::Announced) => {
                order.transaction = Some(transaction);
                order.has_bought = true;
                order.phase = match self.phase {
                    Phase::Reserved => Phase::Paid,
                    _ => Phase::Delivering,
                };
            }
            (None, _) => {
                order.transaction = Some(transaction);
                order.phase = Phase::RefundWanted;
            }
        }
        let is_bought = self.transaction.is_none() && order.has_bought;
        Effect {
            order: Some(order),
            kind: if is_bought { Kind::Paid } else { Kind::RefundWanted },
            is_first: true,
        }
    }

    fn cancel(&self) -> Effect {
        let phase = match self.phase {
            Phase::Reserved | Phase::Announced => Phase::Cancelled,
            Phase::Paid => Phase::RefundWanted,
            _ if self.was_cancelled => return self.unchanged(Kind::Cancelled),
            _ => return self.unchanged(Kind::Refused),
        };
        Effect {
            order: Some(Order {
                phase,
                was_cancelled: true,
                ..self.clone()
            }),
            kind: Kind::Cancelled,
            is_first: true,
        }
    }

    /// Returns all effects that an operation may have on an order. `None` is an order that was not
    /// placed.
    fn effects(order: Option<&Order>, step: &Step) -> Vec<Effect> {
        let Some(order) = order else {
            let Step::Place(content) = step else {
                return vec![Effect {
                    order: None,
                    kind: Kind::Absent,
                    is_first: false,
                }];
            };
            let placed = |has_store, kind| Effect {
                order: Some(Order::placed(*content, has_store)),
                kind,
                is_first: true,
            };
            return vec![placed(true, Kind::Placed), placed(false, Kind::NoStore)];
        };
        vec![match step {
            Step::Place(content) if *content != order.content => order.unchanged(Kind::Refused),
            Step::Place(_) if order.has_store => order.unchanged(Kind::Placed),
            Step::Place(_) => order.unchanged(Kind::NoStore),
            Step::Pay(transaction) => order.pay(*transaction),
            Step::Cancel => order.cancel(),
            Step::Read => order.unchanged(Kind::Shown),
        }]
    }

    fn refunds(&self) -> Vec<u64> {
        let own = self.transaction.filter(|_| self.phase == Phase::RefundWanted);
        own.into_iter().chain(self.extra.iter().copied()).collect()
    }

    /// Returns `true` if a response fits this state of the order. Values that no earlier response
    /// has shown are recorded and compared with later responses.
    fn takes(&mut self, answer: &Answer) -> bool {
        let binds = |known: &mut Option<u64>, shown: u64| *known.get_or_insert(shown) == shown;
        let is_bound = answer
            .created_at_ms
            .is_none_or(|shown| binds(&mut self.created_at_ms, shown))
            && answer
                .store
                .is_none_or(|shown| self.has_store && binds(&mut self.store, shown));
        let is_paid_so = answer.kind != Kind::Paid || answer.transaction == self.transaction;
        let is_shown_so = answer.kind != Kind::Shown
            || answer.store.is_some() == self.has_store
                && answer.transaction == self.transaction
                && answer.content == Some(self.content)
                && answer.phase == Some(self.phase)
                && answer.refunds.as_ref() == Some(&self.refunds());
        is_bound && is_paid_so && is_shown_so
    }
}

impl Effect {
    /// Returns the order after a response. `None` if the response cannot follow from this effect.
    fn after(mut self, answer: &Answer) -> Option<Option<Order>> {
        let says_how_often = matches!(
            answer.kind,
            Kind::Placed | Kind::NoStore | Kind::Paid | Kind::RefundWanted
        );
        // A node repeats a request to another node if the answer was lost. So the first execution
        // may be reported as a repetition, but a repetition is never reported as the first
        // execution.
        let is_possible = self.kind == answer.kind
            && (self.is_first || answer.is_replayed || !says_how_often)
            && self.order.as_mut().is_none_or(|order| order.takes(answer));
        is_possible.then_some(self.order)
    }
}

/// All possible states of the order after the operations so far. `None` is the state before the
/// order is placed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Possible(BTreeSet<Option<Order>>);

impl Possible {
    /// Returns the state in which the order has not been placed.
    fn nothing() -> Possible {
        Possible(BTreeSet::from([None]))
    }

    /// Returns these states and all states that follow from them by steps of the warehouse.
    fn with_steps_of_the_warehouse(&self) -> BTreeSet<Option<Order>> {
        let mut all = self.0.clone();
        let mut new: Vec<Order> = self.0.iter().flatten().cloned().collect();
        while let Some(order) = new.pop() {
            if let Some(next) = order.advanced()
                && all.insert(Some(next.clone()))
            {
                new.push(next);
            }
        }
        all
    }

    fn effects(&self, step: &Step) -> Vec<Effect> {
        let possible = self.with_steps_of_the_warehouse();
        let effects = possible.iter().map(|order| Order::effects(order.as_ref(), step));
        effects.flatten().collect()
    }
}

impl Possible {
    /// Returns the possible states after an operation that was executed and has no response.
    fn unanswered(&self, step: &Step) -> Possible {
        let effects = self.effects(step).into_iter();
        Possible(effects.map(|effect| effect.order).collect())
    }

    /// Returns the possible states after an operation and its response. The set is empty if the
    /// response contradicts the earlier operations.
    fn answered(&self, step: &Step, answer: &Answer) -> Possible {
        let effects = self.effects(step).into_iter();
        Possible(effects.filter_map(|effect| effect.after(answer)).collect())
    }
}

/// The search for a sequential execution of the operations of a history.
struct Search<'a> {
    operations: Vec<&'a Operation>,
    /// Visited pairs: a set of executed operations, and the states that were possible after them.
    /// The search does not continue again from a visited pair.
    seen: BTreeSet<(u64, Possible)>,
}

impl Search<'_> {
    /// Returns `true` if some sequence of the remaining operations explains their responses,
    /// beginning with these possible states. `done` has one bit for each operation, which is set if
    /// the operation was executed.
    fn goes_on(&mut self, done: u64, possible: &Possible) -> bool {
        let left: Vec<usize> = (0..self.operations.len())
            .filter(|number| done & (1 << number) == 0)
            .collect();
        let ends = left.iter().filter_map(|number| {
            let answered = self.operations[*number].answered.as_ref();
            answered.map(|(ended, _)| *ended)
        });
        // An operation that has ended comes before all operations that were invoked after its end.
        // So the next operation must have been invoked before the earliest end of all remaining
        // operations.
        let Some(first_end) = ends.min() else {
            return true;
        };
        if !self.seen.insert((done, possible.clone())) {
            return false;
        }
        let mut tried_unanswered = Vec::new();
        for number in left {
            let Operation {
                step,
                invoked,
                answered,
                ..
            } = self.operations[number];
            if *invoked > first_end {
                continue;
            }
            if answered.is_none() {
                // Equal operations without a response are interchangeable, so only the first of
                // them is tried. Without this rule, each of them would double the number of states.
                if tried_unanswered.contains(&step) {
                    continue;
                }
                tried_unanswered.push(step);
            }
            let next = match answered {
                Some((_, answer)) => possible.answered(step, answer),
                None => possible.unanswered(step),
            };
            let has_no_use = answered.is_none() && next == *possible;
            if !next.0.is_empty() && !has_no_use && self.goes_on(done | 1 << number, &next) {
                return true;
            }
        }
        false
    }
}

/// One operation of a history. Times are positions in the sequence of all invocations and
/// responses.
#[derive(Clone, Debug)]
struct Operation {
    client: u64,
    step: Step,
    invoked: usize,
    /// The response and its time; `None` if the outcome is unknown.
    answered: Option<(usize, Answer)>,
}

/// The history of one order.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    operations: Vec<Operation>,
    events: usize,
}

impl History {
    /// Records an invocation. Returns the number of the operation, for `answer`.
    pub(crate) fn invoke(&mut self, client: u64, step: Step) -> usize {
        self.operations.push(Operation {
            client,
            step,
            invoked: self.events,
            answered: None,
        });
        self.events += 1;
        self.operations.len() - 1
    }

    /// Records the response of the operation with this number.
    pub(crate) fn answer(&mut self, number: usize, answer: Answer) {
        self.operations[number].answered = Some((self.events, answer));
        self.events += 1;
    }

    /// Returns the number of operations with an unknown outcome.
    pub(crate) fn unknown(&self) -> usize {
        let unknown = self.operations.iter().filter(|one| one.answered.is_none());
        unknown.count()
    }

    /// Returns the operations that the check needs. A read without a response is left out, because
    /// it proves nothing. A read is also left out if another read with the same response began
    /// later and ended earlier, because both may have been executed at the same moment.
    fn essential(&self) -> Vec<&Operation> {
        let needed = |one: &&Operation| {
            let Some((ended, answer)) = &one.answered else {
                return one.step != Step::Read;
            };
            let is_within = |other: &Operation| {
                let within = other.answered.as_ref();
                one.invoked < other.invoked
                    && within.is_some_and(|(other_ended, other)| other_ended < ended && other == answer)
            };
            let reads = self.operations.iter().filter(|other| other.step == Step::Read);
            one.step != Step::Read || !reads.into_iter().any(is_within)
        };
        self.operations.iter().filter(needed).collect()
    }

    /// Checks that the history is linearizable.
    ///
    /// # Errors
    /// The operations as text, if no sequence of them explains the responses.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.search().0 {
            Ok(())
        } else {
            Err(self.to_text())
        }
    }

    /// Returns the verdict, and the number of pairs in `Search::seen`.
    fn search(&self) -> (bool, usize) {
        let operations = self.essential();
        assert!(operations.len() < u64::BITS as usize, "the history is too long");
        let mut search = Search {
            operations,
            seen: BTreeSet::new(),
        };
        let is_linearizable = search.goes_on(0, &Possible::nothing());
        (is_linearizable, search.seen.len())
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for Operation {
            client,
            step,
            invoked,
            answered,
        } in &self.operations
        {
            // Writing to a String cannot fail.
            let _ = match answered {
                Some((ended, answer)) => {
                    writeln!(
                        text,
                        "{invoked:>3} to {ended:>3}: client {client} {step:?}: {answer:?}"
                    )
                }
                None => writeln!(text, "{invoked:>3} to    : client {client} {step:?}: unknown"),
            };
        }
        text
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
