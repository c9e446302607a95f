//! The times of the next tries of one class of messages.
//!
//! Messages of migrating slots are parked until the slots are activated. Afterwards, the heap of
//! parked messages is kept beside the existing heaps (up to `MIGRATED_MAX`). Merging two large
//! heaps takes time, while comparing the first entries of a few heaps does not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::domain::order::OrderId;

/// Maximum number of heaps that migrations add. Further migrations extend the last of these heaps.
const MIGRATED_MAX: usize = 8;

type Due = BinaryHeap<Reverse<(u64, OrderId)>>;

/// Times of next tries with their orders, earliest first.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    own: Due,
    migrated: Vec<Due>,
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

    /// Adds an entry that stays invisible until `activate_parked`.
    pub(super) fn park(&mut self, at_ms: u64, order: OrderId) {
        self.parked.push(Reverse((at_ms, order)));
    }

    /// Drops all parked entries.
    pub(super) fn unpark(&mut self) {
        self.parked = Due::default();
    }

    /// Makes parked entries visible.
    pub(super) fn activate_parked(&mut self) {
        self.migrated.retain(|due| !due.is_empty());
        let parked = std::mem::take(&mut self.parked);
        match self.migrated.get_mut(MIGRATED_MAX - 1) {
            Some(last) => last.extend(parked),
            None => self.migrated.push(parked),
        }
    }

    /// Returns `true` if an order is scheduled for the time `at_ms`.
    #[cfg(test)]
    pub(super) fn has(&self, at_ms: u64, order: &OrderId) -> bool {
        let all = std::iter::once(&self.own).chain(&self.migrated).flatten();
        all.into_iter()
            .any(|Reverse(due)| due.0 == at_ms && due.1 == *order)
    }

    fn first(&self) -> Option<(usize, &(u64, OrderId))> {
        let all = std::iter::once(&self.own).chain(&self.migrated).enumerate();
        let firsts = all.filter_map(|(at, due)| Some((at, &due.peek()?.0)));
        firsts.min_by_key(|(_, first)| *first)
    }

    /// Returns the earliest entry, parked entries excluded.
    pub(super) fn peek(&self) -> Option<&(u64, OrderId)> {
        self.first().map(|(_, first)| first)
    }

    /// Removes and returns the earliest entry, parked entries excluded.
    pub(super) fn pop(&mut self) -> Option<(u64, OrderId)> {
        let (at, _) = self.first()?;
        let due = if at == 0 {
            &mut self.own
        } else {
            self.migrated.get_mut(at - 1)?
        };
        due.pop().map(|first| first.0)
    }
}
