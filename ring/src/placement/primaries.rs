//! The choice of the primary among the replicas of each slot.
//!
//! A primary keeps its role if possible. In a slot without a primary, the role goes to a node of
//! the slot's new set: the one with the largest need among those that have the data already, or
//! among all if none has.
//!
//! Then some nodes may have more primaries than the ceiling of their share, or fewer than its
//! floor. Roles pass from node to node along shortest chains: `a` gives one slot to `b`, which
//! gives another slot to `c`. This is maximum flow by Dinic's algorithm over the nodes, with an
//! edge for each slot. No data moves in this step.

use alloc::vec;
use alloc::vec::Vec;

use super::{Problem, scatter};
use crate::quota::Share;
use crate::ring::{NONE, Node};

pub(super) struct Primaries<'p> {
    problem: &'p Problem<'p>,
    /// A row for each slot, as long as the rows of the problem: first the nodes of its set in any
    /// order, then empty cells.
    sets: &'p [Node],
    /// Primary of each slot.
    primary: Vec<Node>,
    /// Number of primaries that each node has so far in this plan, and floor and ceiling of its
    /// exact share.
    count: Vec<u64>,
    floor: Vec<u64>,
    ceiling: Vec<u64>,
    /// Slots by primary. A slot that has passed to another node stays in the list of the former
    /// primary and is skipped there.
    slots_of: Vec<Vec<u32>>,
}

/// The purpose of a round of exchanges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Nodes above their ceiling give to nodes below their ceiling.
    FromAbove,
    /// Nodes above their floor give to nodes below their floor.
    ToBelow,
}

/// Chooses a primary for each slot among the nodes of its set. `before` has the primary that each
/// slot has so far in this plan, and [`NONE`] for a slot that has lost its primary.
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
    // Room for eight more slots, because other nodes may pass slots to the node.
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

    /// Returns `true` if the role of primary of `slot` may pass to `to`. The slot must not be
    /// pinned, and `to` must hold the data already, be new or have gained weight.
    fn may_pass(&self, slot: usize, to: Node) -> bool {
        to != NONE
            && to != self.primary[slot]
            && !self.problem.pinned[slot]
            && (self.problem.grows[usize::from(to)] || self.problem.held_before(slot, to))
    }

    /// Exchanges roles until no node that gives can reach a node that takes.
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

    /// Returns for each node the length of the shortest chain from a node that gives. The value is
    /// `u32::MAX` for nodes that no chain reaches, and for nodes farther away than the nearest node
    /// that takes. At the distance of that node, the value is `u32::MAX` for nodes that do not
    /// take. Returns `None` if no node that takes can be reached.
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
                    // Once a node that takes was found, `node` is at least as far away as that
                    // node. So `node` is on no shortest chain unless it takes itself.
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

    /// Passes the role of primary along a chain of nodes, level by level, from `from` to a node
    /// that takes. Each node of the chain gives a slot of its own to the next one. Returns `false`
    /// if there is no such chain.
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
                    // A dead end: with the present levels, no further chain leads through `node`.
                    next[node] = usize::MAX;
                    if chain.pop().is_none() {
                        return false;
                    }
                    node = chain.last().map_or(from, |&(_, to)| usize::from(to));
                }
            }
        }
    }

    /// Returns the next slot that `node` could give to a node of the next level, and that other
    /// node.
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
