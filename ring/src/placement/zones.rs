//! The zone rule, and the quotas that follow from the rule.
//!
//! The `depth` replicas of a slot cover `needed` distinct zones: the smaller one of `depth` and the
//! number of zones that have a node with a weight above 0. If there are enough such zones, each
//! replica is in another zone. Otherwise every such zone has at least one replica of each slot. A
//! pin may break this rule.
//!
//! So a zone holds at most `slots x (depth - needed + 1)` replicas (fewer if it has fewer nodes),
//! and at least `slots` if every zone is needed. A zone with a larger share by weight gets that
//! maximum, and the other zones share the rest. Such quotas can always be met, by McNaughton's
//! wrap-around rule: zone by zone, the largest remainder first.

use alloc::vec;
use alloc::vec::Vec;

use super::Problem;
use crate::REPLICATION_MAX;
use crate::quota::{Claim, quotas};
use crate::ring::{NONE, Node};

pub(super) struct Zones<'p> {
    /// Zone of each node.
    pub(super) of: &'p [usize],
    pub(super) count: usize,
    /// Number of replicas of each slot: the requested number, or the number of nodes with a weight
    /// above 0 if that is smaller.
    pub(super) depth: usize,
    /// Number of distinct zones that the replicas of a slot must cover.
    needed: usize,
}

impl<'p> Zones<'p> {
    pub(super) fn new(problem: &'p Problem<'_>) -> Zones<'p> {
        let count = problem.zones.iter().max().map_or(0, |last| last + 1);
        let mut takes_part = vec![false; count];
        let mut nodes = 0;
        for (&zone, _) in problem
            .zones
            .iter()
            .zip(&problem.weights)
            .filter(|(_, weight)| **weight > 0)
        {
            takes_part[zone] = true;
            nodes += 1;
        }
        let depth = problem.replication.min(nodes);
        let needed = depth.min(takes_part.iter().filter(|takes_part| **takes_part).count());
        Zones {
            of: &problem.zones,
            count,
            depth,
            needed,
        }
    }

    /// Returns `true` if a zone may occur only once in a slot. Then only the zone of a node decides
    /// if the node fits a slot.
    pub(super) fn distinct(&self) -> bool {
        self.depth == self.needed
    }

    /// Returns `true` if `set`, all holders of a slot, keeps the zone rule.
    pub(super) fn hold(&self, set: &[Node]) -> bool {
        if !self.distinct() {
            return self.fits(set, NONE, NONE);
        }
        let zone = |node: Node| self.of[usize::from(node)];
        let mut rest = set;
        while let Some((&node, others)) = rest.split_first() {
            if others.iter().any(|&other| zone(other) == zone(node)) {
                return false;
            }
            rest = others;
        }
        true
    }

    /// Returns `true` if the zone rule holds, or can still be met, after `leaves` has left `set`,
    /// the holders of a slot, and `enters` has entered it. [`NONE`] stands for no node. If
    /// [`Zones::distinct`] returns `true`, only the zone of `enters` is checked.
    pub(super) fn fits(&self, set: &[Node], leaves: Node, enters: Node) -> bool {
        if self.distinct() {
            return enters == NONE || self.zone_fits(set, leaves, self.of[usize::from(enters)]);
        }
        let mut seen = [usize::MAX; REPLICATION_MAX as usize + 1];
        let (mut nodes, mut distinct) = (0, 0);
        for &node in set
            .iter()
            .chain([&enters])
            .filter(|&&node| node != NONE && node != leaves)
        {
            let zone = self.of[usize::from(node)];
            nodes += 1;
            if !seen[..distinct].contains(&zone) {
                seen[distinct] = zone;
                distinct += 1;
            }
        }
        nodes <= self.depth && distinct + (self.depth - nodes) >= self.needed
    }

    /// Returns `true` if `set` without `leaves` has no node in `zone`. If [`Zones::distinct`]
    /// returns `true`, this is the whole zone rule for a node of `zone` that enters `set`.
    pub(super) fn zone_fits(&self, set: &[Node], leaves: Node, zone: usize) -> bool {
        !set.iter()
            .any(|&node| node != NONE && node != leaves && self.of[usize::from(node)] == zone)
    }

    /// Returns the number of replicas that each node should hold, primaries and copies together.
    /// `held` is the number that each node has kept so far in this plan.
    pub(super) fn quotas(&self, problem: &Problem<'_>, held: &[u64]) -> Vec<u64> {
        let slots = problem.slots as u64;
        let most = (self.depth - self.needed + 1) as u64;
        let mut claims = vec![
            Claim {
                weight: 0,
                lower: 0,
                upper: 0,
                held: 0
            };
            self.count
        ];
        let mut takes_part = vec![0u64; self.count];
        let pinned = pinned(problem);
        for (node, &zone) in self.of.iter().enumerate() {
            claims[zone].weight += problem.weights[node];
            claims[zone].held += held[node];
            claims[zone].lower += pinned[node];
            takes_part[zone] += u64::from(problem.weights[node] > 0);
        }
        let parts = takes_part.iter().filter(|&&nodes| nodes > 0).count();
        for (claim, &nodes) in claims.iter_mut().zip(&takes_part) {
            claim.upper = (slots * most.min(nodes)).max(claim.lower);
            if nodes > 0 && parts == self.needed {
                claim.lower = claim.lower.max(slots);
            }
        }
        let of_zones = quotas(slots * self.depth as u64, &claims);
        let mut nodes_of = vec![Vec::new(); self.count];
        for (node, &zone) in self.of.iter().enumerate() {
            nodes_of[zone].push(node);
        }
        let mut result = vec![0; held.len()];
        for (nodes, &quota) in nodes_of.iter().zip(&of_zones) {
            let claim = |&node: &usize| {
                let upper = if problem.weights[node] > 0 {
                    slots
                } else {
                    pinned[node]
                };
                Claim {
                    weight: problem.weights[node],
                    lower: pinned[node],
                    upper,
                    held: held[node],
                }
            };
            let claims: Vec<Claim> = nodes.iter().map(claim).collect();
            for (&node, quota) in nodes.iter().zip(quotas(quota, &claims)) {
                result[node] = quota;
            }
        }
        result
    }
}

fn pinned(problem: &Problem<'_>) -> Vec<u64> {
    let mut counts = vec![0; problem.weights.len()];
    for (slot, _) in problem.pinned.iter().enumerate().filter(|(_, pinned)| **pinned) {
        counts[usize::from(problem.owner(slot))] += 1;
    }
    counts
}
