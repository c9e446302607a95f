//! The changed cells of the stock, for the copies that other nodes keep.
//!
//! Each request of a copy has the copy's generation and the number of changes that the copy has
//! applied. The answer has the cells of all later changes with their present quantities. So a
//! repeated or lost answer does no harm. If a copy lacks more changes than are recorded, or is of
//! an earlier generation, the other node reads the whole stock again.
//!
//! **Invariants**
//! - Changes are recorded only between `follow` and `unfollow`.
//! - At most `CHANGES_MAX` changes are kept.

use std::collections::VecDeque;

/// Maximum number of recorded changes. At four bytes each they take one megabyte, and cover some
/// seconds at full load. A copy that lacks more changes reads the whole stock.
const CHANGES_MAX: usize = if cfg!(test) { 64 } else { 256 << 10 };

/// A moment of the stock: the generation, and the number of changes recorded so far in all
/// generations. The generation grows whenever the layout or all quantities change, and when
/// recording starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    pub(crate) generation: u64,
    pub(crate) changes: u64,
}

/// The record of the newest changes.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    is_followed: bool,
    now: Moment,
    /// Cells of the newest changes, oldest first.
    cells: VecDeque<u32>,
}

impl Journal {
    /// Records a change of a cell between `follow` and `unfollow`. Does nothing at other times.
    pub(crate) fn note(&mut self, cell: usize) {
        if !self.is_followed {
            return;
        }
        if self.cells.len() == CHANGES_MAX {
            self.cells.pop_front();
        }
        self.cells.push_back(cell as u32);
        self.now.changes += 1;
    }

    /// Starts a new generation, after the layout or all quantities have changed.
    pub(crate) fn begin_generation(&mut self) {
        self.now.generation += 1;
        self.cells.clear();
    }

    /// Starts recording changes. Does nothing if changes are already recorded.
    pub(crate) fn follow(&mut self) {
        if !self.is_followed {
            self.is_followed = true;
            // Changes before this call were not recorded, so `since` must refuse earlier moments.
            self.begin_generation();
        }
    }

    /// Stops recording changes and drops the recorded changes. The generation and the number of
    /// changes stay.
    pub(crate) fn unfollow(&mut self) {
        *self = Journal {
            now: self.now,
            ..Journal::default()
        };
    }

    /// Returns the present moment.
    pub(crate) fn now(&self) -> Moment {
        self.now
    }

    /// Returns the cells that changed after a moment, ascending and without duplicates. `None` if
    /// not all of these changes are recorded: after `unfollow`, in another generation, or after
    /// more than `CHANGES_MAX` changes.
    pub(crate) fn since(&self, then: Moment) -> Option<Vec<u32>> {
        let count = self.now.changes.checked_sub(then.changes)? as usize;
        if !self.is_followed || then.generation != self.now.generation || count > self.cells.len() {
            return None;
        }
        let mut cells: Vec<u32> = self.cells.range(self.cells.len() - count..).copied().collect();
        cells.sort_unstable();
        cells.dedup();
        Some(cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_changed_cell_is_named_once_and_older_changes_are_not() {
        let mut journal = Journal::default();
        journal.follow();
        journal.note(9);
        let then = journal.now();
        for cell in [5, 3, 5, 5] {
            journal.note(cell);
        }
        assert_eq!(journal.since(then), Some(vec![3, 5]));
        assert_eq!(journal.since(journal.now()), Some(vec![]));
    }

    #[test]
    fn a_follower_too_far_behind_gets_no_incomplete_list_of_changes() {
        let mut journal = Journal::default();
        journal.follow();
        let then = journal.now();
        (0..CHANGES_MAX).for_each(|cell| journal.note(cell));
        assert_eq!(journal.since(then).unwrap().len(), CHANGES_MAX);
        journal.note(0);
        assert_eq!(journal.since(then), None);
    }

    #[test]
    fn another_generation_and_a_pause_in_following_are_never_bridged() {
        let mut journal = Journal::default();
        journal.note(1);
        assert_eq!(journal.since(journal.now()), None, "nobody follows");
        journal.follow();
        let then = journal.now();
        journal.begin_generation();
        assert_eq!(journal.since(then), None);
        let then = journal.now();
        journal.unfollow();
        journal.note(2);
        journal.follow();
        assert_eq!(journal.since(then), None);
        let ahead = Moment {
            changes: journal.now().changes + 1,
            ..journal.now()
        };
        assert_eq!(journal.since(ahead), None);
    }
}
