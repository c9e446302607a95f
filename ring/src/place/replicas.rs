//! Two replicas or more: which nodes hold each slot.
//!
//! A slot's holders are a set here; which of them is primary, and in which order the copies stand, comes last. Every change of
//! a set is a transfer of data, so there is one only where a node leaves, a zone's rule is broken, or a quota is not met.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use super::demand::Demand;
use super::zones::Zones;
use super::{Placed, Problem, primaries, scatter};
use crate::REPLICATION_MAX;
use crate::ring::{NONE, Node};

/// What a node gives when it has too much.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Giving {
    /// Copies only, so that no slot changes its primary.
    Copies,
    /// Primaries too: a copy is promoted in their place.
    All,
}

/// Offers looked at for one chain: about one in three fits.
const LOOKS_PER_CHAIN: usize = 32;
/// Offers looked at in all, for each slot: bounds the time of a plan whose zones allow no chain at all.
const LOOKS_PER_SLOT: usize = 4;

struct Work<'p> {
    problem: &'p Problem<'p>,
    zones: &'p Zones<'p>,
    /// As many cells for each slot as the problem's rows have: first `depth` nodes, [`NONE`] where there is a vacancy, never
    /// a node twice; what is beyond is not used.
    sets: Vec<Node>,
    /// For each slot its primary as long as it stays.
    primary: Vec<Node>,
    /// The slots with vacancies at first, ascending.
    vacant: Vec<usize>,
    /// For each node how many slots it holds, and how many it should.
    held: Vec<u64>,
    quota: Vec<u64>,
}

pub(super) fn place(problem: &Problem<'_>) -> Placed {
    let zones = Zones::new(problem);
    if zones.depth == 0 {
        return Placed {
            rows: vec![NONE; problem.rows.len()],
            minimum: 0,
        };
    }
    let mut work = Work::keep_what_may_stay(problem, &zones);
    work.quota = zones.quotas(problem, &work.held);
    let minimum = work.needs().iter().sum();
    work.fill_vacancies();
    let (primary_quotas, primary_shares) = problem.primary_quotas();
    work.give_primaries_to_newcomers(&primary_quotas);
    work.give_to_the_needy(Giving::Copies);
    work.give_to_the_needy(Giving::All);
    work.give_in_chains();
    let primary = primaries::choose(
        problem,
        &work.sets,
        core::mem::take(&mut work.primary),
        &primary_shares,
    );
    Placed {
        rows: work.into_rows(&primary),
        minimum,
    }
}

impl<'p> Work<'p> {
    /// The sets without those who leave, and without replicas that the rule of zones no longer allows.
    fn keep_what_may_stay(problem: &'p Problem<'p>, zones: &'p Zones<'p>) -> Work<'p> {
        let (slots, depth) = (problem.slots, zones.depth);
        let mut work = Work {
            problem,
            zones,
            sets: vec![NONE; problem.rows.len()],
            primary: vec![NONE; slots],
            vacant: Vec::new(),
            held: vec![0; problem.weights.len()],
            quota: Vec::new(),
        };
        let weighs = |node: Node| {
            problem
                .weights
                .get(usize::from(node))
                .is_some_and(|&weight| weight > 0)
        };
        let rows = problem.rows.chunks_exact(problem.replication);
        let sets = work.sets.chunks_exact_mut(problem.replication);
        for (slot, (row, set)) in rows.zip(sets).enumerate() {
            // Most slots may stay as they are.
            if depth == row.len() && row.iter().all(|&node| weighs(node)) && zones.hold(row) {
                set.copy_from_slice(row);
                row.iter().for_each(|&node| work.held[usize::from(node)] += 1);
                work.primary[slot] = row[0];
                continue;
            }
            let mut kept = 0;
            // The primary comes first, so it is the last to be dropped for a zone.
            for (column, &node) in row.iter().enumerate() {
                let may_stay = weighs(node) || (column == 0 && problem.pinned[slot]);
                if !may_stay || kept == depth || !zones.fits(&set[..kept], NONE, node) {
                    continue;
                }
                set[kept] = node;
                kept += 1;
                work.held[usize::from(node)] += 1;
                if column == 0 {
                    work.primary[slot] = node;
                }
            }
            if kept < depth {
                work.vacant.push(slot);
            }
        }
        work
    }

    fn set(&self, slot: usize) -> &[Node] {
        &self.sets[slot * self.problem.replication..][..self.zones.depth]
    }

    fn needs(&self) -> Vec<u64> {
        self.quota
            .iter()
            .zip(&self.held)
            .map(|(quota, held)| quota.saturating_sub(*held))
            .collect()
    }

    fn excess(&self, node: Node) -> u64 {
        self.held[usize::from(node)].saturating_sub(self.quota[usize::from(node)])
    }

    fn is_content(&self, node: Node) -> bool {
        self.held[usize::from(node)] == self.quota[usize::from(node)]
    }

    /// Puts `to` in the place of `from` ([`NONE`]: of a vacancy). If that was the primary, another is chosen later,
    /// among those that hold the data.
    fn replace(&mut self, slot: usize, from: Node, to: Node) {
        if from != NONE && self.primary[slot] == from {
            self.primary[slot] = NONE;
        }
        let set = &mut self.sets[slot * self.problem.replication..][..self.zones.depth];
        if let Some(cell) = set.iter_mut().find(|cell| **cell == from) {
            *cell = to;
            self.held[usize::from(to)] += 1;
            if from != NONE {
                self.held[usize::from(from)] -= 1;
            }
        }
    }

    fn fill_vacancies(&mut self) {
        let vacant = core::mem::take(&mut self.vacant);
        let mut demand = Demand::new(self.zones, self.needs(), &self.quota, self.problem.slots);
        for (index, &slot) in vacant.iter().enumerate() {
            let slots_left = (vacant.len() - index) as u64;
            let vacancies = self.set(slot).iter().filter(|node| **node == NONE).count();
            for _ in 0..vacancies {
                let taken = demand.take(slot, self.set(slot), NONE, slots_left);
                if let Some(node) = taken.or_else(|| self.least_loaded(slot)) {
                    self.replace(slot, NONE, node);
                }
            }
        }
    }

    /// Who bears a slot best when nobody that needs one may take it; a later step evens it out.
    fn least_loaded(&self, slot: usize) -> Option<Node> {
        let set = self.set(slot);
        let nodes = (0..self.held.len()).filter(|&node| self.problem.weights[node] > 0);
        let outside = nodes.filter(|&node| !set.contains(&(node as Node)));
        let load = |&node: &usize| {
            let breaks_rule = !self.zones.fits(set, NONE, node as Node);
            (
                breaks_rule,
                (self.held[node] << 32) / self.quota[node].max(1),
                scatter(slot, node),
            )
        };
        outside.min_by_key(load).map(|node| node as Node)
    }

    /// The slots in an order that has nothing to do with their numbers, so that changes are spread over all.
    fn scattered_slots(&self) -> impl Iterator<Item = usize> + use<> {
        // Odd, so that with a power of two it comes to every slot; near the golden ratio, so that it spreads evenly.
        const STEP: usize = 40_503;
        let (slots, start) = (self.problem.slots, self.held.len().wrapping_mul(STEP));
        // A mask, since they are a power of two.
        (0..slots).map(move |index| start.wrapping_add(index * STEP) & (slots - 1))
    }

    /// A node that has just joined takes its primaries straight from those who have too many: they pass with the
    /// data, and whoever gave one need not be sent another replica for it.
    fn give_primaries_to_newcomers(&mut self, quota: &[u64]) {
        if !self.problem.joins.contains(&true) {
            return;
        }
        let mut primaries = vec![0u64; self.held.len()];
        for &node in self.primary.iter().filter(|node| **node != NONE) {
            primaries[usize::from(node)] += 1;
        }
        let need = |(node, need): (usize, u64)| {
            let lacks = quota[node].saturating_sub(primaries[node]);
            if self.problem.joins[node] {
                need.min(lacks)
            } else {
                0
            }
        };
        let needs = self.needs().into_iter().enumerate().map(need).collect();
        let mut demand = Demand::new(self.zones, needs, quota, self.problem.slots);
        for slot in self.scattered_slots() {
            if demand.is_met() {
                return;
            }
            let from = self.primary[slot];
            let gives = from != NONE
                && self.excess(from) > 0
                && primaries[usize::from(from)] > quota[usize::from(from)]
                && !demand.is_hopeless(self.set(slot), from)
                && self.may_give(slot, from, Giving::All);
            if !gives {
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

    /// Replicas pass from nodes above their quota to nodes below it.
    fn give_to_the_needy(&mut self, giving: Giving) {
        let mut demand = Demand::new(self.zones, self.needs(), &self.quota, self.problem.slots);
        for slot in self.scattered_slots() {
            if demand.is_met() {
                return;
            }
            for index in 0..self.zones.depth {
                let from = self.set(slot)[index];
                if from == NONE || self.excess(from) == 0 || demand.is_hopeless(self.set(slot), from) {
                    continue;
                }
                if !self.may_give(slot, from, giving) {
                    continue;
                }
                if let Some(to) = demand.take(slot, self.set(slot), from, u64::MAX) {
                    self.replace(slot, from, to);
                }
            }
        }
    }

    /// Where zones keep a needy node from everything that others have too much of, a third stands between: it takes a
    /// slot from one that has too many, and gives another to the needy one.
    fn give_in_chains(&mut self) {
        let mut demand = Demand::new(self.zones, self.needs(), &self.quota, self.problem.slots);
        if demand.is_met() {
            return;
        }
        let mut offers = self.offers();
        let mut looks_left = self.problem.slots * LOOKS_PER_SLOT;
        for slot in self.scattered_slots() {
            for index in 0..self.zones.depth {
                let between = self.set(slot)[index];
                if looks_left == 0 || demand.is_met() {
                    return;
                }
                if between == NONE
                    || !self.is_content(between)
                    || demand.is_hopeless(self.set(slot), between)
                    || !self.may_give(slot, between, Giving::All)
                {
                    continue;
                }
                let Some(needy) = demand.take(slot, self.set(slot), between, u64::MAX) else {
                    continue;
                };
                // In the same zone the third would meet what keeps the needy one out.
                let helps = self.zones.of[usize::from(needy)] != self.zones.of[usize::from(between)];
                let offer = helps
                    .then(|| self.offer_to(between, slot, &mut offers, &mut looks_left))
                    .flatten();
                match offer {
                    Some((other, from)) => {
                        self.replace(slot, between, needy);
                        self.replace(other, from, between);
                    }
                    None => demand.put_back(needy, slot),
                }
            }
        }
    }

    /// What those above their quota may give.
    fn offers(&self) -> VecDeque<(usize, Node)> {
        let gives = |slot: usize, node: Node| {
            node != NONE && self.excess(node) > 0 && self.may_give(slot, node, Giving::All)
        };
        let of_slot = |slot: usize| {
            let given = self
                .set(slot)
                .iter()
                .copied()
                .filter(move |&node| gives(slot, node));
            given.map(move |node| (slot, node))
        };
        self.scattered_slots().flat_map(of_slot).collect()
    }

    /// Whether a node of a slot's set may be replaced: never a pinned primary, nor the last that holds the data.
    fn may_give(&self, slot: usize, node: Node, giving: Giving) -> bool {
        let primary = node == self.primary[slot];
        if node == NONE || (primary && (giving == Giving::Copies || self.problem.pinned[slot])) {
            return false;
        }
        let keeps = |other: &Node| *other != node && *other != NONE && self.problem.held_before(slot, *other);
        self.set(slot).iter().any(keeps) || !self.problem.held_before(slot, node)
    }

    /// An offer that a node can take, removed from the list.
    fn offer_to(
        &self,
        node: Node,
        not_in: usize,
        offers: &mut VecDeque<(usize, Node)>,
        looks_left: &mut usize,
    ) -> Option<(usize, Node)> {
        for _ in 0..offers.len().min(*looks_left).min(LOOKS_PER_CHAIN) {
            *looks_left -= 1;
            let (slot, from) = offers.pop_front()?;
            if self.excess(from) == 0 {
                continue;
            }
            let set = self.set(slot);
            // Chains since the list was made may have changed the slot.
            let stands = set.contains(&from) && self.may_give(slot, from, Giving::All);
            if stands && slot != not_in && !set.contains(&node) && self.zones.fits(set, from, node) {
                return Some((slot, from));
            }
            offers.push_back((slot, from));
        }
        None
    }

    /// The table: the primary first, each copy where it stood before if it can, newcomers in the gaps.
    fn into_rows(mut self, primary: &[Node]) -> Vec<Node> {
        let replication = self.problem.replication;
        let mut rows = core::mem::take(&mut self.sets);
        let before = self.problem.rows.chunks_exact(replication).zip(primary);
        for (row, (before, &primary)) in rows.chunks_exact_mut(replication).zip(before) {
            // Most slots are as they were.
            if before[0] != primary || !before.iter().eq(&*row) {
                order(row, before, primary, self.zones.depth);
            }
            if !self.zones.distinct() {
                self.zones_first(&mut row[..self.zones.depth]);
            }
        }
        rows
    }

    /// Brings replicas in zones not yet seen before the others, so that the first few cover as many zones as they can.
    fn zones_first(&self, row: &mut [Node]) {
        let zone = |node: Node| (node != NONE).then(|| self.zones.of[usize::from(node)]);
        let mut column = 1;
        for candidate in 1..row.len() {
            if (0..column).all(|earlier| zone(row[earlier]) != zone(row[candidate])) {
                row.swap(column, candidate);
                column += 1;
            }
        }
    }
}

/// Puts a slot's set in the order of its row.
fn order(row: &mut [Node], before: &[Node], primary: Node, depth: usize) {
    let mut set = [NONE; REPLICATION_MAX as usize];
    set[..row.len()].copy_from_slice(row);
    let stays = |node: Node| node != NONE && node != primary && set.contains(&node);
    row.fill(NONE);
    row[0] = primary;
    for (cell, &node) in row[..depth].iter_mut().zip(before).skip(1) {
        if stays(node) {
            *cell = node;
        }
    }
    for node in set {
        if node == NONE || row.contains(&node) {
            continue;
        }
        if let Some(gap) = row[1..depth].iter_mut().find(|cell| **cell == NONE) {
            *gap = node;
        }
    }
}
