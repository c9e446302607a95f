//! Checks that the histories of clients are linearizable, order by order.
//!
//! A history has the invocation and the response of every operation, in the order in which the
//! clients saw them. The search looks for an order of the operations that respects real time and
//! that the specification allows: the algorithm of Wing and Gong with the memory of Lowe ("Testing
//! for linearizability", 2017). A test compares its verdicts with those of `stateright`, which has
//! no memory and takes hours for some histories of 13 operations.
//!
//! **Invariants**
//! - The specification is written from the promises to clients (docs/operations.md). It shares no
//!   code with the order's state machine.
//! - An operation without a response may have happened at any time after its invocation, or never.
//! - The state of the specification is the set of all orders that are possible: the choice of the
//!   store and the steps of the warehouse are not visible to clients.
//!
//! Deliberately absent: expiry, and refusals by the warehouse. The runs have neither.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

/// An operation on one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Places the order with one of several contents.
    Place(u8),
    /// Pays it by a transaction.
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
    /// There is no such order.
    Absent,
}

/// A response, as far as it binds the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    kind: Kind,
    /// `true` if the response says that the operation had been done before.
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

    /// Reads a response. `None` if it does not say whether the operation happened.
    ///
    /// # Errors
    /// Text about a response that no history may have.
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

/// Returns the lines of a content: its number of units of product 1.
pub(crate) fn lines_of(content: u8) -> Value {
    serde_json::json!([{"id": 1, "quantity": content}])
}

fn content_of(products: &Value) -> Option<u8> {
    let content = u8::try_from(products[0]["quantity"].as_u64()?).ok()?;
    (*products == lines_of(content)).then_some(content)
}

/// An order that is possible after the operations until now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    content: u8,
    phase: Phase,
    /// `None` until a response shows it. A rejected order never has one.
    store: Option<u64>,
    has_store: bool,
    created_at_ms: Option<u64>,
    transaction: Option<u64>,
    /// `true` if the transaction paid the order, and is not just to be refunded.
    has_bought: bool,
    extra: Vec<u64>,
    was_cancelled: bool,
}

/// The result of an operation on one possible order.
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

    /// Returns the order after the next step of the warehouse, if one can follow.
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

    /// Returns all effects that an operation may have on an order, or on an absent one.
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

    /// Returns `true` if the order is as a response shows it. Values that no earlier response has
    /// shown are bound from now on.
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
    /// Returns the order after a response, if the response can follow from this effect.
    fn after(mut self, answer: &Answer) -> Option<Option<Order>> {
        let says_how_often = matches!(
            answer.kind,
            Kind::Placed | Kind::NoStore | Kind::Paid | Kind::RefundWanted
        );
        // A node repeats a request if the answer was lost. So a first effect may be answered as a
        // repetition, and never the other way round.
        let is_possible = self.kind == answer.kind
            && (self.is_first || answer.is_replayed || !says_how_often)
            && self.order.as_mut().is_none_or(|order| order.takes(answer));
        is_possible.then_some(self.order)
    }
}

/// All orders that are possible after the operations until now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Possible(BTreeSet<Option<Order>>);

impl Possible {
    /// The order has not been placed.
    fn nothing() -> Possible {
        Possible(BTreeSet::from([None]))
    }

    /// Returns these orders and those that steps of the warehouse make of them.
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
    /// Returns the orders that are possible after an operation without a response.
    fn unanswered(&self, step: &Step) -> Possible {
        let effects = self.effects(step).into_iter();
        Possible(effects.map(|effect| effect.order).collect())
    }

    /// Returns the orders that are possible after an operation and its response. There is none if
    /// the response contradicts the operations before it.
    fn answered(&self, step: &Step, answer: &Answer) -> Possible {
        let effects = self.effects(step).into_iter();
        Possible(effects.filter_map(|effect| effect.after(answer)).collect())
    }
}

/// The search for an order of the operations of a history.
struct Search<'a> {
    operations: Vec<&'a Operation>,
    /// Sets of operations that were carried out, with the orders that were possible then. None of
    /// them leads to the end.
    seen: BTreeSet<(u64, Possible)>,
}

impl Search<'_> {
    /// Returns `true` if the operations that are not among `done` have an order that goes on from
    /// there. `done` has a bit for each operation.
    fn goes_on(&mut self, done: u64, possible: &Possible) -> bool {
        let left: Vec<usize> = (0..self.operations.len())
            .filter(|number| done & (1 << number) == 0)
            .collect();
        let ends = left.iter().filter_map(|number| {
            let answered = self.operations[*number].answered.as_ref();
            answered.map(|(ended, _)| *ended)
        });
        // An operation comes before all that were invoked after its end.
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
                // Of equal operations without a response, the first can take the place of any
                // other. Without this rule the number of states doubles with each of them.
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

/// One operation of a history. The times are places in the sequence of all events of the order.
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
    /// Records an invocation. Returns its number for `answer`.
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

    /// Records a response.
    pub(crate) fn answer(&mut self, number: usize, answer: Answer) {
        self.operations[number].answered = Some((self.events, answer));
        self.events += 1;
    }

    /// Returns the number of operations without a response.
    pub(crate) fn unknown(&self) -> usize {
        let unknown = self.operations.iter().filter(|one| one.answered.is_none());
        unknown.count()
    }

    /// Returns the operations that the check needs. A read without a response says nothing. A read
    /// that lasts longer than another with the same response may happen together with that one.
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

    /// Checks the history.
    ///
    /// # Errors
    /// The operations as text, if no order of them explains the responses.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.search().0 {
            Ok(())
        } else {
            Err(self.to_text())
        }
    }

    /// Returns the verdict, and the number of states that the search has visited in vain.
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
