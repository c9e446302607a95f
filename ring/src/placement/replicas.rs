//! The set of nodes that hold each slot, in a ring with two replicas or more.
//!
//! The holders of a slot are a set in this module. The primary and the order of the copies are
//! chosen last. Every node that enters a set causes a transfer of data. So a set changes for four
//! reasons only: a node leaves or gets weight 0, the number of replicas is wrong, the zone rule
//! (replicas in as many zones as possible) is broken, or a quota is not met.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use super::demand::Demand;
use super::zones::Zones;
use super::{Placed, Problem, primaries, scatter};
use crate::REPLICATION_MAX;
use crate::ring::{NONE, Node};

/// The replicas that a node above its quota may give away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Giving {
    /// Only copies, so that no slot changes its primary.
    Copies,
    /// Copies and primaries. If a primary is given away, another holder gets its role.
    All,
}

/// Maximum number of offers examined for one chain. An offer is a slot that a node above its quota
/// may give away. A chain passes replicas through a third node. About one offer in three fits, so
/// 32 offers nearly always include one that fits.
const LOOKS_PER_CHAIN: usize = 32;
/// Maximum number of offers examined in all chains of a plan, divided by the number of slots. The
/// limit bounds the time of a plan in which zones permit no chain.
const LOOKS_PER_SLOT: usize = 4;

struct Work<'p> {
    problem: &'p Problem<'p>,
    zones: &'p Zones<'p>,
    /// A row for each slot, as long as the problem's rows. The first `depth` cells are distinct
    /// nodes, or [`NONE`] for a vacancy. Later cells are unused.
    sets: Vec<Node>,
    /// Primary of each slot, or [`NONE`] once the primary has left the set.
    primary: Vec<Node>,
    /// Slots that had vacancies after the removals, ascending.
    vacant: Vec<usize>,
    /// Number of slots that each node holds, and the number that it should hold.
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
    /// Returns the sets without the replicas that may not stay: those on nodes that leave or have
    /// weight 0 (unless pinned), those beyond `depth`, and those that break the zone rule.
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
            // Fast path: most sets stay as they are.
            if depth == row.len() && row.iter().all(|&node| weighs(node)) && zones.hold(row) {
                set.copy_from_slice(row);
                row.iter().for_each(|&node| work.held[usize::from(node)] += 1);
                work.primary[slot] = row[0];
                continue;
            }
            let mut kept = 0;
            // The primary comes first, so the zone rule removes other replicas before the primary.
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

    /// Replaces `from` by `to` in the set of a slot, or fills a vacancy if `from` is [`NONE`]. If
    /// `from` was the primary, the slot has no primary until the caller or the module `primaries`
    /// chooses one.
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

    /// Returns the node that fills a vacancy for which [`Demand::take`] has no node: the one that
    /// holds the smallest multiple of its quota. The zone rule is ignored only if every candidate
    /// breaks it. Returns `None` if there is no candidate.
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

    /// Returns the slots in an order without relation to their numbers, so that changes spread over
    /// the whole ring.
    fn scattered_slots(&self) -> impl Iterator<Item = usize> + use<> {
        // An odd step visits every slot, because the number of slots is a power of two. The ratio
        // of step and 65,536 is near the golden ratio, so visits spread evenly.
        const STEP: usize = 40_503;
        let (slots, start) = (self.problem.slots, self.held.len().wrapping_mul(STEP));
        // A mask replaces the modulo by a power of two.
        (0..slots).map(move |index| start.wrapping_add(index * STEP) & (slots - 1))
    }

    /// Gives joining nodes primaries directly from nodes that have too many primaries and too many
    /// replicas. The role and the data pass together, and the former owner, which is above its
    /// quota, needs no other slot in return.
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

    /// Passes replicas from nodes above their quota to nodes below their quota, as far as zones
    /// permit.
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

    /// Passes replicas through a third node to a needy node (a node below its quota) that could
    /// take no replica directly. The third node takes a slot from a node above its quota, and gives
    /// another slot to the needy node.
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
                // The zone rule treats all nodes of a zone alike. So a third node in the zone of
                // the needy node could not take the replicas that the needy node cannot take.
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

    /// Returns all offers: pairs of a slot and a node above its quota that may give the slot away.
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

    /// Returns `true` if `node` may leave the set of the slot. The last holder of the data and a
    /// pinned primary may not leave. With [`Giving::Copies`], no primary may leave.
    fn may_give(&self, slot: usize, node: Node, giving: Giving) -> bool {
        let primary = node == self.primary[slot];
        if node == NONE || (primary && (giving == Giving::Copies || self.problem.pinned[slot])) {
            return false;
        }
        let keeps = |other: &Node| *other != node && *other != NONE && self.problem.held_before(slot, *other);
        self.set(slot).iter().any(keeps) || !self.problem.held_before(slot, node)
    }

    /// Removes from `offers` an offer that `node` can take, and returns the offer. Offers of the
    /// slot `not_in` are excluded. Returns `None` if no offer fits among those that the limits
    /// allow to examine. Examined offers of nodes that are no longer above their quota are removed
    /// too.
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
            // An earlier chain may have changed the slot, so the offer is checked again.
            let stands = set.contains(&from) && self.may_give(slot, from, Giving::All);
            if stands && slot != not_in && !set.contains(&node) && self.zones.fits(set, from, node) {
                return Some((slot, from));
            }
            offers.push_back((slot, from));
        }
        None
    }

    /// Builds the table. In each row the primary comes first, copies keep their former cells if
    /// possible, and new nodes fill the gaps.
    fn into_rows(mut self, primary: &[Node]) -> Vec<Node> {
        let replication = self.problem.replication;
        let mut rows = core::mem::take(&mut self.sets);
        let before = self.problem.rows.chunks_exact(replication).zip(primary);
        for (row, (before, &primary)) in rows.chunks_exact_mut(replication).zip(before) {
            // Fast path: most rows stay as they are.
            if before[0] != primary || !before.iter().eq(&*row) {
                order(row, before, primary, self.zones.depth);
            }
            if !self.zones.distinct() {
                self.zones_first(&mut row[..self.zones.depth]);
            }
        }
        rows
    }

    /// Moves a replica forward in the row if no earlier replica is in its zone, so that the first
    /// replicas cover as many zones as possible.
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

/// Puts the set of a slot into the order of a table row: the primary first, then copies in their
/// former cells if possible, and new nodes in the gaps.
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
