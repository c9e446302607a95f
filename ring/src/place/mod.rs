//! Who gets which slot: the decision behind a plan.

mod single;

use alloc::vec::Vec;

use crate::plan::Union;
use crate::quota::{Claim, quotas};
use crate::ring::{NONE, Node};
use crate::{Ring, Slot};

/// What is to be decided, in the numbers of old and new nodes together.
pub(crate) struct Problem {
    pub slots: usize,
    /// For each node its weight in the target; 0 also for those that leave.
    pub weights: Vec<u64>,
    /// For each node whether it is in the target.
    pub stays: Vec<bool>,
    /// Who holds what now: a column of `slots` cells for each replica.
    pub cells: Vec<Node>,
    /// For each slot whether its owner may not change.
    pub pinned: Vec<bool>,
}

/// What was decided.
pub(crate) struct Placed {
    pub cells: Vec<Node>,
    pub minimum: u64,
}

impl Problem {
    pub(crate) fn new(ring: &Ring, union: &Union<'_>, pins: &[Slot]) -> Problem {
        let weight = |(member, target): (&&crate::Member, &Option<Node>)| {
            if target.is_some() {
                u64::from(member.weight())
            } else {
                0
            }
        };
        let slots = ring.options.slots as usize;
        let mut pinned = alloc::vec![false; slots];
        for pin in pins {
            pinned[pin.0 as usize] = true;
        }
        Problem {
            slots,
            weights: union.members.iter().zip(&union.target).map(weight).collect(),
            stays: union.target.iter().map(Option::is_some).collect(),
            cells: union.cells.clone(),
            pinned,
        }
    }

    /// How many primaries each node should have.
    pub(crate) fn primary_quotas(&self) -> Vec<u64> {
        let claim = |&weight: &u64| Claim {
            weight,
            lower: 0,
            upper: self.slots as u64,
            held: 0,
        };
        let mut claims: Vec<Claim> = self.weights.iter().map(claim).collect();
        for (&node, &pinned) in self.cells.iter().zip(&self.pinned) {
            if node != NONE && self.stays[usize::from(node)] {
                claims[usize::from(node)].held += 1;
                claims[usize::from(node)].lower += u64::from(pinned);
            }
        }
        quotas(self.slots as u64, &claims)
    }
}

pub(crate) fn place(problem: &Problem) -> Placed {
    single::place(problem)
}
