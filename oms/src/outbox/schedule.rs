//! When to look at which message of a lane.
//!
//! Messages that come with slots are parked until the slots are in force. Their schedule then
//! stands beside the one that is there: to put two large ones together takes time, to look at the
//! first entries of a few does not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::domain::order::OrderId;

/// Schedules that stand beside each other at most.
const APART_MAX: usize = 8;

type Due = BinaryHeap<Reverse<(u64, OrderId)>>;

/// Times and orders, those to be looked at first coming first.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    own: Due,
    came: Vec<Due>,
    parked: Due,
}

impl Schedule {
    pub(super) fn of(due: Vec<(u64, OrderId)>) -> Schedule {
        Schedule {
            own: due.into_iter().map(Reverse).collect::<Vec<_>>().into(),
            ..Schedule::default()
        }
    }

    pub(super) fn push(&mut self, at_ms: u64, order: OrderId) {
        self.own.push(Reverse((at_ms, order)));
    }

    /// Adds what is not to be looked at before `put_in_force`.
    pub(super) fn park(&mut self, at_ms: u64, order: OrderId) {
        self.parked.push(Reverse((at_ms, order)));
    }

    /// Drops what is parked.
    pub(super) fn unpark(&mut self) {
        self.parked = Due::default();
    }

    /// Has what was parked looked at with the rest.
    pub(super) fn put_in_force(&mut self) {
        self.came.retain(|due| !due.is_empty());
        let parked = std::mem::take(&mut self.parked);
        match self.came.get_mut(APART_MAX - 1) {
            Some(last) => last.extend(parked),
            None => self.came.push(parked),
        }
    }

    fn first(&self) -> Option<(usize, &(u64, OrderId))> {
        let all = std::iter::once(&self.own).chain(&self.came).enumerate();
        let firsts = all.filter_map(|(at, due)| Some((at, &due.peek()?.0)));
        firsts.min_by_key(|(_, first)| *first)
    }

    /// What is to be looked at first.
    pub(super) fn peek(&self) -> Option<&(u64, OrderId)> {
        self.first().map(|(_, first)| first)
    }

    /// Takes that out.
    pub(super) fn pop(&mut self) -> Option<(u64, OrderId)> {
        let (at, _) = self.first()?;
        let due = if at == 0 {
            &mut self.own
        } else {
            self.came.get_mut(at - 1)?
        };
        due.pop().map(|first| first.0)
    }
}
