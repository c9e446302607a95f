//! The assignment of slots to nodes, on which each plan is based.
//!
//! With one replica ([`single`]), each node gets its quota with the fewest possible moves. With
//! several replicas, the assignment is computed in four steps:
//! 1. Replicas that may not stay are removed: those on nodes that leave or have weight 0 (unless
//!    pinned), those beyond the number of replicas, and those that break the zone rule
//!    ([`replicas`]).
//! 2. Vacancies are filled, if possible with nodes below their quota, largest relative need first
//!    ([`demand`]).
//! 3. Nodes above their quota give slots to nodes below it, so that a ring stays balanced after
//!    many changes ([`replicas`]).
//! 4. A primary is chosen among the holders of each slot, if possible one that has the data
//!    already. Then nodes exchange primaries along shortest chains, so that each has its share as
//!    far as pins and the placed data permit ([`primaries`]).
//!
//! All arithmetic is in whole numbers and all orders are fixed. So equal input gives an equal
//! assignment in every process.

mod demand;
mod primaries;
mod replicas;
mod single;
mod zones;

use alloc::vec;
use alloc::vec::Vec;

use crate::merged::Merged;
use crate::quota::{Claim, Share, shares, whole};
use crate::ring::{NONE, Node};
use crate::{Member, Ring, Slot, ZoneName};

/// The input of an assignment. The target is the membership that the assignment is made for. Nodes
/// of the ring and of the target are numbered together.
pub(crate) struct Problem<'u> {
    pub(crate) slots: usize,
    /// Number of cells in a row, one for each replica.
    pub(crate) replication: usize,
    /// Weight of each node in the target, or 0 for a node that leaves.
    pub(crate) weights: Vec<u64>,
    /// `true` for each node that is a member of the target.
    pub(crate) stays: Vec<bool>,
    /// `true` for each node that is not a member of the ring yet.
    pub(crate) joins: Vec<bool>,
    /// `true` for each node that is new or has gained weight. Only such a node may become the
    /// primary of a slot that the plan itself copies to it, unless a pin asks for this node or the
    /// slot loses all its holders.
    pub(crate) grows: Vec<bool>,
    /// Zone of each node, counted from 0. A node without a zone has a zone of its own.
    pub(crate) zones: Vec<usize>,
    /// Present holders of each slot: a row of `replication` cells per slot, the primary first.
    pub(crate) rows: &'u [Node],
    /// `true` for each slot with a pinned owner. All `false` in the plan of a pin, which does not
    /// use this field.
    pub(crate) pinned: Vec<bool>,
}

/// The computed assignment.
pub(crate) struct Placed {
    /// The new table, in the form of [`Problem::rows`].
    pub(crate) rows: Vec<Node>,
    /// Smallest number of transfers that gives every node its quota. For [`pin`], the number of
    /// transfers that the pin needs.
    pub(crate) minimum: u64,
}

impl<'u> Problem<'u> {
    pub(crate) fn new(ring: &Ring, merged: &'u Merged<'_>, pins: &[Slot]) -> Problem<'u> {
        let stays: Vec<bool> = merged.target.iter().map(Option::is_some).collect();
        let weight = |(member, stays): (&&Member, &bool)| if *stays { u64::from(member.weight()) } else { 0 };
        let grows = |(member, old): (&&Member, &Option<u32>)| old.is_none_or(|old| member.weight() > old);
        let slots = ring.options.slots as usize;
        let mut pinned = vec![false; slots];
        for pin in pins {
            pinned[pin.0 as usize] = true;
        }
        let mut names: Vec<&ZoneName> = merged.members.iter().filter_map(|member| member.zone()).collect();
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
            weights: merged.members.iter().zip(&stays).map(weight).collect(),
            zones: merged.members.iter().map(&mut zone).collect(),
            joins: merged.old.iter().map(Option::is_none).collect(),
            grows: merged.members.iter().zip(&merged.old).map(grows).collect(),
            stays,
            rows: &merged.rows,
            pinned,
        }
    }

    /// Returns weight, bounds and present primaries of each node.
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

    /// Returns the number of primaries that each node should have, and the exact shares of
    /// primaries.
    pub(crate) fn primary_quotas(&self) -> (Vec<u64>, Vec<Share>) {
        let claims = self.primary_claims();
        let shares = shares(self.slots as u64, &claims);
        (whole(self.slots as u64, &claims, &shares), shares)
    }

    /// Returns the present holders of a slot.
    pub(crate) fn row(&self, slot: usize) -> &[Node] {
        &self.rows[slot * self.replication..][..self.replication]
    }

    /// Returns the present primary of a slot.
    pub(crate) fn owner(&self, slot: usize) -> Node {
        self.rows[slot * self.replication]
    }

    /// Returns `true` if the node holds a replica of the slot now. The slot's data then need not be
    /// copied to the node.
    #[expect(
        clippy::manual_contains,
        reason = "rows are a few cells long, and a search made for long slices takes several times as long"
    )]
    pub(crate) fn held_before(&self, slot: usize, node: Node) -> bool {
        self.row(slot).iter().any(|&held| held == node)
    }
}

/// Computes the new assignment.
pub(crate) fn place(problem: &Problem<'_>) -> Placed {
    if problem.replication == 1 {
        single::place(problem)
    } else {
        replicas::place(problem)
    }
}

/// Returns the table with `node` as primary of `slot` and the fewest other changes. If `node` has a
/// copy, it swaps roles with the old primary. Otherwise the old primary fills an empty cell. If
/// there is none, the old primary replaces a copy, unless zones or a single replica forbid this.
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

/// Mixes a slot and a node into 64 bits by a fixed function, the finalizer of SplitMix64, to break
/// patterns. Equal arguments give equal results.
pub(crate) fn scatter(slot: usize, node: usize) -> u64 {
    let mut x = ((slot as u64) << 32 | node as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
