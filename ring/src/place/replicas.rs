//! Two replicas or more: which nodes hold each slot.
//!
//! A slot's holders are a set here; which of them is primary, and in which order the copies stand, comes last. Every change of
//! a set is a transfer of data, so there is one only where a node leaves, a zone's rule is broken, or a quota is not met.

use alloc::vec;
use alloc::vec::Vec;

use super::demand::Demand;
use super::zones::Zones;
use super::{primaries, scatter, Placed, Problem};
use crate::ring::{Node, NONE};

struct Work<'p> {
    problem: &'p Problem,
    zones: &'p Zones<'p>,
    /// `depth` nodes for each slot, [`NONE`] where there is a vacancy; never a node twice.
    sets: Vec<Node>,
    /// For each slot its primary as long as it stays.
    primary: Vec<Node>,
    /// For each node how many slots it holds, and how many it should.
    held: Vec<u64>,
    quota: Vec<u64>,
}

pub(super) fn place(problem: &Problem) -> Placed {
    let zones = Zones::new(problem);
    if zones.depth == 0 {
        return Placed { cells: vec![NONE; problem.cells.len()], minimum: 0 };
    }
    let mut work = Work::keep_what_may_stay(problem, &zones);
    work.quota = zones.quotas(problem, &work.held);
    let minimum = work.needs().iter().sum();
    work.fill_vacancies();
    work.give_primaries_to_newcomers();
    work.give_to_the_needy();
    work.give_in_chains();
    let primary = primaries::choose(problem, &work.sets, zones.depth, core::mem::take(&mut work.primary));
    Placed { cells: work.into_cells(&primary), minimum }
}

impl<'p> Work<'p> {
    /// The sets without those who leave, and without replicas that the rule of zones no longer allows.
    fn keep_what_may_stay(problem: &'p Problem, zones: &'p Zones<'p>) -> Work<'p> {
        let (slots, depth) = (problem.slots, zones.depth);
        let mut work = Work {
            problem,
            zones,
            sets: vec![NONE; slots * depth],
            primary: vec![NONE; slots],
            held: vec![0; problem.weights.len()],
            quota: Vec::new(),
        };
        let may_stay = |slot: usize, column: usize, node: Node| {
            problem.weights.get(usize::from(node)).is_some_and(|&weight| weight > 0)
                || (column == 0 && problem.pinned[slot])
        };
        for slot in 0..slots {
            let holders = problem.cells.iter().copied().skip(slot).step_by(slots).enumerate();
            let mut kept = 0;
            // The primary comes first, so it is the last to be dropped for a zone.
            for (column, node) in holders.filter(|&(column, node)| may_stay(slot, column, node)) {
                let set = &mut work.sets[slot * depth..(slot + 1) * depth];
                if kept == depth || !zones.fits(set, NONE, node) {
                    continue;
                }
                set[kept] = node;
                kept += 1;
                work.held[usize::from(node)] += 1;
                if column == 0 {
                    work.primary[slot] = node;
                }
            }
        }
        work
    }

    fn set(&self, slot: usize) -> &[Node] {
        &self.sets[slot * self.zones.depth..(slot + 1) * self.zones.depth]
    }

    fn needs(&self) -> Vec<u64> {
        self.quota.iter().zip(&self.held).map(|(quota, held)| quota.saturating_sub(*held)).collect()
    }

    fn excess(&self, node: Node) -> u64 {
        self.held[usize::from(node)].saturating_sub(self.quota[usize::from(node)])
    }

    /// Puts `to` in the place of `from` ([`NONE`]: of a vacancy).
    fn replace(&mut self, slot: usize, from: Node, to: Node) {
        let depth = self.zones.depth;
        let set = &mut self.sets[slot * depth..(slot + 1) * depth];
        if let Some(cell) = set.iter_mut().find(|cell| **cell == from) {
            *cell = to;
            self.held[usize::from(to)] += 1;
            if from != NONE {
                self.held[usize::from(from)] -= 1;
            }
        }
    }

    fn fill_vacancies(&mut self) {
        let depth = self.zones.depth;
        let mut left = self.sets.chunks_exact(depth).filter(|set| set.contains(&NONE)).count() as u64;
        let mut demand = Demand::new(self.zones, self.needs(), &self.quota, self.problem.slots);
        for slot in 0..self.problem.slots {
            let vacancies = self.set(slot).iter().filter(|node| **node == NONE).count();
            for _ in 0..vacancies {
                let taken = demand.take(slot, self.set(slot), NONE, left);
                if let Some(node) = taken.or_else(|| self.least_loaded(slot)) {
                    self.replace(slot, NONE, node);
                }
            }
            left -= u64::from(vacancies > 0);
        }
    }

    /// Who bears a slot best when nobody that needs one may take it; a later step evens it out.
    fn least_loaded(&self, slot: usize) -> Option<Node> {
        let set = self.set(slot);
        let nodes = (0..self.held.len()).filter(|&node| self.problem.weights[node] > 0);
        let outside = nodes.filter(|&node| !set.contains(&(node as Node)));
        let load = |&node: &usize| {
            let breaks_rule = !self.zones.fits(set, NONE, node as Node);
            (breaks_rule, (self.held[node] << 32) / self.quota[node].max(1), scatter(slot, node))
        };
        outside.min_by_key(load).map(|node| node as Node)
    }

    /// The slots in an order that has nothing to do with their numbers, so that changes are spread over all.
    fn scattered_slots(&self) -> impl Iterator<Item = usize> + use<> {
        // Odd, so that with a power of two it comes to every slot; near the golden ratio, so that it spreads evenly.
        const STEP: usize = 40_503;
        let slots = self.problem.slots;
        let start = self.held.len().wrapping_mul(STEP) % slots;
        (0..slots).map(move |index| (start + index * STEP) % slots)
    }

    /// A node that has just joined takes its primaries straight from those who have too many: they pass with the
    /// data, and whoever gave one need not be sent another replica for it.
    fn give_primaries_to_newcomers(&mut self) {
        let mut primaries = vec![0u64; self.held.len()];
        for &node in self.primary.iter().filter(|node| **node != NONE) {
            primaries[usize::from(node)] += 1;
        }
        let quota = self.problem.primary_quotas();
        let need = |(node, need): (usize, u64)| {
            let lacks = quota[node].saturating_sub(primaries[node]);
            if self.problem.joins[node] { need.min(lacks) } else { 0 }
        };
        let needs = self.needs().into_iter().enumerate().map(need).collect();
        let mut demand = Demand::new(self.zones, needs, &quota, self.problem.slots);
        for slot in self.scattered_slots() {
            if demand.is_met() {
                return;
            }
            let from = self.primary[slot];
            if from == NONE || self.problem.pinned[slot] || self.excess(from) == 0 {
                continue;
            }
            if primaries[usize::from(from)] <= quota[usize::from(from)] {
                continue;
            }
            if let Some(to) = demand.take(slot, self.set(slot), from, u64::MAX) {
                self.replace(slot, from, to);
                self.primary[slot] = to;
                primaries[usize::from(from)] -= 1;
                primaries[usize::from(to)] += 1;
            }
        }
    }

    /// Copies pass from nodes above their quota to nodes below it.
    fn give_to_the_needy(&mut self) {
        let mut demand = Demand::new(self.zones, self.needs(), &self.quota, self.problem.slots);
        for slot in self.scattered_slots() {
            if demand.is_met() {
                return;
            }
            for index in 0..self.zones.depth {
                let from = self.set(slot)[index];
                if from == NONE || from == self.primary[slot] || self.excess(from) == 0 {
                    continue;
                }
                if let Some(to) = demand.take(slot, self.set(slot), from, u64::MAX) {
                    self.replace(slot, from, to);
                }
            }
        }
    }

    fn give_in_chains(&mut self) {}

    /// The table: the primary first, each copy where it stood before if it can, newcomers in the gaps.
    fn into_cells(self, primary: &[Node]) -> Vec<Node> {
        let (slots, depth) = (self.problem.slots, self.zones.depth);
        let mut cells = vec![NONE; self.problem.cells.len()];
        for (slot, &primary) in primary.iter().enumerate() {
            let set = self.set(slot);
            cells[slot] = primary;
            let stays = |node: Node| node != NONE && node != primary && set.contains(&node);
            for column in 1..depth {
                let node = self.problem.cells[column * slots + slot];
                if stays(node) {
                    cells[column * slots + slot] = node;
                }
            }
            let mut column = 1;
            for &node in set.iter().filter(|node| **node != NONE && **node != primary) {
                if (1..depth).any(|column| cells[column * slots + slot] == node) {
                    continue;
                }
                while column < depth && cells[column * slots + slot] != NONE {
                    column += 1;
                }
                if column < depth {
                    cells[column * slots + slot] = node;
                }
            }
            if !self.zones.distinct() {
                self.zones_first(&mut cells, slot);
            }
        }
        cells
    }

    /// Brings replicas in zones not yet seen before the others, so that the first few cover as many zones as they can.
    fn zones_first(&self, cells: &mut [Node], slot: usize) {
        let (slots, depth) = (self.problem.slots, self.zones.depth);
        let mut column = 1;
        for candidate in 1..depth {
            let zone = |column: usize| {
                let node = cells[column * slots + slot];
                (node != NONE).then(|| self.zones.of[usize::from(node)])
            };
            if (0..column).all(|earlier| zone(earlier) != zone(candidate)) {
                cells.swap(column * slots + slot, candidate * slots + slot);
                column += 1;
            }
        }
    }
}
