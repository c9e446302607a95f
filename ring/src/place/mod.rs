//! Who gets which slot: the decision behind a plan.
//!
//! With one replica ([`single`]) shares are exact and moves are the fewest possible. With more, four steps, in the order
//! in which data should count:
//! 1. what must go goes: nodes that leave, too many replicas, two in one zone ([`replicas`]);
//! 2. vacancies are filled by the nodes that are short of their quota, largest relative need first ([`demand`]);
//! 3. nodes above their quota give to nodes below it, so that long histories stay balanced ([`replicas`]);
//! 4. primaries are chosen among those that hold the data, by shortest exchanges ([`primaries`]).
//!
//! All of it is whole numbers and fixed orders: the same question has the same answer everywhere.

mod demand;
mod primaries;
mod replicas;
mod single;
mod zones;

use alloc::vec;
use alloc::vec::Vec;

use crate::quota::{Claim, Share, shares, whole};
use crate::ring::{NONE, Node};
use crate::union::Union;
use crate::{Member, Ring, Slot, ZoneName};

/// What is to be decided, in the numbers of old and new nodes together.
pub(crate) struct Problem<'u> {
    pub(crate) slots: usize,
    /// How many cells a row has.
    pub(crate) replication: usize,
    /// For each node its weight in the target; 0 also for those that leave.
    pub(crate) weights: Vec<u64>,
    /// For each node whether it is in the target.
    pub(crate) stays: Vec<bool>,
    /// For each node whether it is new in the target.
    pub(crate) joins: Vec<bool>,
    /// For each node whether it is new, or has more weight than it had: it may become the primary of slots that
    /// the same plan brings to it.
    pub(crate) grows: Vec<bool>,
    /// For each node its zone, counted from 0; nodes that name none have one of their own.
    pub(crate) zones: Vec<usize>,
    /// Who holds what now: a row of `replication` cells for each slot, the primary first.
    pub(crate) rows: &'u [Node],
    /// For each slot whether its owner may not change.
    pub(crate) pinned: Vec<bool>,
}

/// What was decided.
pub(crate) struct Placed {
    /// The new table, in the form of [`Problem::rows`].
    pub(crate) rows: Vec<Node>,
    /// The fewest transfers that give every node its quota.
    pub(crate) minimum: u64,
}

impl<'u> Problem<'u> {
    pub(crate) fn new(ring: &Ring, union: &'u Union<'_>, pins: &[Slot]) -> Problem<'u> {
        let stays: Vec<bool> = union.target.iter().map(Option::is_some).collect();
        let weight = |(member, stays): (&&Member, &bool)| if *stays { u64::from(member.weight()) } else { 0 };
        let grows = |(member, old): (&&Member, &Option<u32>)| old.is_none_or(|old| member.weight() > old);
        let slots = ring.options.slots as usize;
        let mut pinned = vec![false; slots];
        for pin in pins {
            pinned[pin.0 as usize] = true;
        }
        let mut names: Vec<&ZoneName> = union.members.iter().filter_map(|member| member.zone()).collect();
        names.sort_unstable();
        names.dedup();
        let mut zones = names.len();
        let mut zone = |member: &&Member| match member.zone().and_then(|zone| names.binary_search(&zone).ok())
        {
            Some(zone) => zone,
            None => {
                zones += 1;
                zones - 1
            }
        };
        Problem {
            slots,
            replication: usize::from(ring.options.replication),
            weights: union.members.iter().zip(&stays).map(weight).collect(),
            zones: union.members.iter().map(&mut zone).collect(),
            joins: union.old.iter().map(Option::is_none).collect(),
            grows: union.members.iter().zip(&union.old).map(grows).collect(),
            stays,
            rows: &union.rows,
            pinned,
        }
    }

    /// What each node may claim of the primaries.
    fn primary_claims(&self) -> Vec<Claim> {
        let claim = |&weight: &u64| Claim {
            weight,
            lower: 0,
            upper: self.slots as u64,
            held: 0,
        };
        let mut claims: Vec<Claim> = self.weights.iter().map(claim).collect();
        for (slot, &pinned) in self.pinned.iter().enumerate() {
            let node = self.owner(slot);
            if node != NONE && self.stays[usize::from(node)] {
                claims[usize::from(node)].held += 1;
                claims[usize::from(node)].lower += u64::from(pinned);
            }
        }
        claims
    }

    /// How many primaries each node should have, and of which exact share that is the whole.
    pub(crate) fn primary_quotas(&self) -> (Vec<u64>, Vec<Share>) {
        let claims = self.primary_claims();
        let shares = shares(self.slots as u64, &claims);
        (whole(self.slots as u64, &claims, &shares), shares)
    }

    /// Who holds a slot now.
    pub(crate) fn row(&self, slot: usize) -> &[Node] {
        &self.rows[slot * self.replication..][..self.replication]
    }

    /// Whose primary a slot is now.
    pub(crate) fn owner(&self, slot: usize) -> Node {
        self.rows[slot * self.replication]
    }

    /// Whether a node holds a replica of a slot now, so that it need not be brought there.
    #[expect(
        clippy::manual_contains,
        reason = "rows are a few cells long, and a search made for long slices takes several times as long"
    )]
    pub(crate) fn held_before(&self, slot: usize, node: Node) -> bool {
        self.row(slot).iter().any(|&held| held == node)
    }
}

/// Decides.
pub(crate) fn place(problem: &Problem<'_>) -> Placed {
    if problem.replication == 1 {
        single::place(problem)
    } else {
        replicas::place(problem)
    }
}

/// The table with `node` as the primary of `slot`, and nothing else changed that need not be. The old primary becomes a copy
/// in place of another, unless zones (or a single replica) forbid it.
pub(crate) fn pin(problem: &Problem<'_>, slot: usize, node: Node) -> Placed {
    let mut rows = problem.rows.to_vec();
    let before = problem.row(slot);
    let row = &mut rows[slot * problem.replication..][..problem.replication];
    if let Some(held) = before.iter().position(|held| *held == node) {
        row.swap(0, held);
        return Placed { rows, minimum: 0 };
    }
    let zones = zones::Zones::new(problem);
    let drops = |&index: &usize| zones.fits(before, before[index], node);
    let empty = before.iter().position(|held| *held == NONE);
    if let Some(index) = empty.or_else(|| (1..problem.replication).rev().find(drops)) {
        row[index] = before[0];
    }
    row[0] = node;
    Placed { rows, minimum: 1 }
}

/// Scatters what would otherwise follow a pattern: a fixed mixing of 64 bits (the finalizer of SplitMix64), not a
/// source of randomness.
pub(crate) fn scatter(slot: usize, node: usize) -> u64 {
    let mut x = ((slot as u64) << 32 | node as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
