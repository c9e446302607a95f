//! The choice of the primary among the replicas of each slot.
//!
//! A primary stays while it can. A slot without a primary goes to the holder of its data with the
//! largest need. Then roles pass along shortest chains of slots (`a` gives one to `b`, which gives
//! another to `c`) while a node has more than the ceiling of its share or less than the floor. This
//! is maximum flow by Dinic's algorithm over the nodes, with an edge for each slot. No data moves
//! in this step.

use alloc::vec;
use alloc::vec::Vec;

use super::{Problem, scatter};
use crate::quota::Share;
use crate::ring::{NONE, Node};

pub(super) struct Primaries<'p> {
    problem: &'p Problem<'p>,
    /// A row for each slot, as long as the problem's rows: first the set in any order, then empty
    /// cells.
    sets: &'p [Node],
    /// Primary of each slot.
    primary: Vec<Node>,
    /// Present number of primaries of each node, and its bounds.
    count: Vec<u64>,
    floor: Vec<u64>,
    ceiling: Vec<u64>,
    /// Slots by primary. A slot that has passed to another node is skipped when it is met.
    slots_of: Vec<Vec<u32>>,
}

/// The purpose of an exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Nodes above their ceiling give to nodes below theirs.
    FromAbove,
    /// Nodes below their floor take from nodes above theirs.
    ToBelow,
}

/// Chooses a primary for each slot among the nodes of its set. `before` has the current primary of
/// each slot, and [`NONE`] for a slot that lost its primary.
pub(super) fn choose(problem: &Problem<'_>, sets: &[Node], before: Vec<Node>, shares: &[Share]) -> Vec<Node> {
    let nodes = problem.weights.len();
    let mut primaries = Primaries {
        problem,
        sets,
        primary: before,
        count: vec![0; nodes],
        floor: shares.iter().map(|share| share.floor).collect(),
        ceiling: shares.iter().map(Share::ceiling).collect(),
        slots_of: Vec::new(),
    };
    for &node in primaries.primary.iter().filter(|node| **node != NONE) {
        primaries.count[usize::from(node)] += 1;
    }
    primaries.fill();
    if primaries.is_even() {
        return primaries.primary;
    }
    // Room for some slots more, which other nodes pass on.
    primaries.slots_of = primaries
        .count
        .iter()
        .map(|&count| Vec::with_capacity(count as usize + 8))
        .collect();
    for (slot, &node) in primaries
        .primary
        .iter()
        .enumerate()
        .filter(|(_, node)| **node != NONE)
    {
        primaries.slots_of[usize::from(node)].push(slot as u32);
    }
    primaries.even(Round::FromAbove);
    primaries.even(Round::ToBelow);
    primaries.primary
}

impl Primaries<'_> {
    fn is_even(&self) -> bool {
        (0..self.count.len()).all(|node| (self.floor[node]..=self.ceiling[node]).contains(&self.count[node]))
    }

    fn set(&self, slot: usize) -> &[Node] {
        &self.sets[slot * self.problem.replication..][..self.problem.replication]
    }

    fn fill(&mut self) {
        for slot in 0..self.primary.len() {
            if self.primary[slot] != NONE {
                continue;
            }
            let set = self
                .set(slot)
                .split(|node| *node == NONE)
                .next()
                .unwrap_or_default();
            let had = |node: &&Node| self.problem.held_before(slot, **node);
            let need = |node: &&Node| {
                let node = usize::from(**node);
                let lacks = self.ceiling[node].saturating_sub(self.count[node]);
                ((lacks << 32) / self.ceiling[node].max(1), scatter(slot, node))
            };
            let chosen = set
                .iter()
                .filter(had)
                .max_by_key(need)
                .or_else(|| set.iter().max_by_key(need));
            if let Some(&node) = chosen.filter(|node| **node != NONE) {
                self.primary[slot] = node;
                self.count[usize::from(node)] += 1;
            }
        }
    }

    fn bound(&self, node: usize, round: Round) -> u64 {
        match round {
            Round::FromAbove => self.ceiling[node],
            Round::ToBelow => self.floor[node],
        }
    }

    fn gives(&self, node: usize, round: Round) -> bool {
        self.count[node] > self.bound(node, round)
    }

    fn takes(&self, node: usize, round: Round) -> bool {
        self.lacks(node, round) > 0
    }

    fn lacks(&self, node: usize, round: Round) -> u64 {
        self.bound(node, round).saturating_sub(self.count[node])
    }

    /// Returns `true` if the slot may pass from its primary to another node of its set that holds
    /// the data already.
    fn may_pass(&self, slot: usize, to: Node) -> bool {
        to != NONE
            && to != self.primary[slot]
            && !self.problem.pinned[slot]
            && (self.problem.grows[usize::from(to)] || self.problem.held_before(slot, to))
    }

    /// Exchanges roles until no giving node can reach a taking node.
    fn even(&mut self, round: Round) {
        let nodes = self.count.len();
        let mut wanted: u64 = (0..nodes).map(|node| self.lacks(node, round)).sum();
        while wanted > 0 {
            let Some(level) = self.levels(round) else { return };
            let mut next = vec![0; nodes];
            let before = wanted;
            for node in 0..nodes {
                while wanted > 0 && self.gives(node, round) && self.exchange(node, &level, &mut next, round) {
                    wanted -= 1;
                }
            }
            if wanted == before {
                return;
            }
        }
    }

    /// Returns the distance of each node from a giving node, up to the nearest taking node, or
    /// `None` if no taking node can be reached.
    fn levels(&self, round: Round) -> Option<Vec<u32>> {
        let nodes = self.count.len();
        let mut level = vec![u32::MAX; nodes];
        let mut queue: Vec<usize> = (0..nodes).filter(|&node| self.gives(node, round)).collect();
        for &node in &queue {
            level[node] = 0;
        }
        let (mut head, mut nearest) = (0, u32::MAX);
        while let Some(&from) = queue.get(head) {
            head += 1;
            if level[from] >= nearest {
                break;
            }
            for &slot in &self.slots_of[from] {
                let slot = slot as usize;
                if usize::from(self.primary[slot]) != from {
                    continue;
                }
                for &to in self.set(slot) {
                    let node = usize::from(to);
                    if to == NONE || level[node] != u32::MAX {
                        continue;
                    }
                    let takes = self.takes(node, round);
                    // A path beyond the distance of the nearest taking node is never shortest.
                    if (nearest != u32::MAX && !takes) || !self.may_pass(slot, to) {
                        continue;
                    }
                    level[node] = level[from] + 1;
                    queue.push(node);
                    if takes {
                        nearest = level[node];
                    }
                }
            }
        }
        let takes = |node: usize| self.takes(node, round);
        for (node, level) in level.iter_mut().enumerate() {
            if *level == nearest && !takes(node) {
                *level = u32::MAX;
            }
        }
        (nearest != u32::MAX).then_some(level)
    }

    /// Passes one primary along one chain, level by level, from a giving node to a taking node.
    fn exchange(&mut self, from: usize, level: &[u32], next: &mut [usize], round: Round) -> bool {
        let mut chain: Vec<(usize, Node)> = Vec::new();
        let mut node = from;
        loop {
            if !chain.is_empty() && self.takes(node, round) {
                for (slot, to) in chain {
                    self.primary[slot] = to;
                    self.slots_of[usize::from(to)].push(slot as u32);
                }
                self.count[from] -= 1;
                self.count[node] += 1;
                return true;
            }
            match self.step(node, level, next) {
                Some((slot, to)) => {
                    chain.push((slot, to));
                    node = usize::from(to);
                }
                None => {
                    // Dead end: no chain of this round leads through this node.
                    next[node] = usize::MAX;
                    if chain.pop().is_none() {
                        return false;
                    }
                    node = chain.last().map_or(from, |&(_, to)| usize::from(to));
                }
            }
        }
    }

    /// Returns the next slot that `node` could give to a node one level further.
    fn step(&self, node: usize, level: &[u32], next: &mut [usize]) -> Option<(usize, Node)> {
        while let Some(&slot) = self.slots_of[node].get(next[node]) {
            let slot = slot as usize;
            if usize::from(self.primary[slot]) == node {
                let further = |to: &&Node| {
                    let index = usize::from(**to);
                    **to != NONE
                        && level[index] == level[node] + 1
                        && next[index] != usize::MAX
                        && self.may_pass(slot, **to)
                };
                if let Some(&to) = self.set(slot).iter().find(further) {
                    return Some((slot, to));
                }
            }
            next[node] += 1;
        }
        None
    }
}
