//! Who is short of slots, largest relative need first: zone by zone, and within a zone node by node.
//!
//! Taking in proportion to what is still needed interleaves all nodes evenly, and equal needs are drawn in a
//! scattered order, so that any two nodes share about as many slots as any other two: when one leaves, its slots find
//! new primaries among all the others. A zone that must be in every slot still to come is taken before all others;
//! with that, filling an empty ring always meets every quota.

use alloc::collections::BinaryHeap;
use alloc::vec;
use alloc::vec::Vec;

use super::scatter;
use super::zones::Zones;
use crate::ring::Node;

/// `need` over `quota` in 32 binary digits, the tie-break, and who it is.
type Entry = (u64, u64, usize);

pub(super) struct Demand<'z> {
    zones: &'z Zones<'z>,
    node: Level,
    zone: Level,
    nodes_of: Vec<BinaryHeap<Entry>>,
    queue: BinaryHeap<Entry>,
    /// Zones that may come to be needed in every slot left: more than half of all slots. Few: replicas x 2.
    large: Vec<usize>,
    /// Put back after each search; kept to be used again.
    passed: Vec<Entry>,
}

/// What is needed and what was wanted at first, of nodes or of zones.
struct Level {
    need: Vec<u64>,
    quota: Vec<u64>,
}

impl Level {
    fn ratio(&self, index: usize) -> u64 {
        (self.need[index] << 32) / self.quota[index].max(1)
    }

    fn entry(&self, index: usize, slot: usize) -> Option<Entry> {
        (self.need[index] > 0).then(|| (self.ratio(index), scatter(slot, index), index))
    }

    /// The neediest, its entry brought up to date if its need has changed since it was queued.
    fn pop(&self, queue: &mut BinaryHeap<Entry>) -> Option<Entry> {
        loop {
            let (ratio, tie, index) = queue.pop()?;
            if ratio == self.ratio(index) && ratio > 0 {
                return Some((ratio, tie, index));
            }
            queue.extend((self.need[index] > 0).then(|| (self.ratio(index), tie, index)));
        }
    }
}

impl<'z> Demand<'z> {
    /// `need`: how many slots each node lacks; `quota`: how many it should have; `slots`: how many there are in all.
    pub(super) fn new(zones: &'z Zones<'z>, need: Vec<u64>, quota: &[u64], slots: usize) -> Demand<'z> {
        let node = Level {
            need,
            quota: quota.to_vec(),
        };
        let mut zone = Level {
            need: vec![0; zones.count],
            quota: vec![0; zones.count],
        };
        let mut nodes_of = vec![BinaryHeap::new(); zones.count];
        for (index, &its_zone) in zones.of.iter().enumerate() {
            zone.need[its_zone] += node.need[index];
            zone.quota[its_zone] += node.quota[index];
            nodes_of[its_zone].extend(node.entry(index, 0));
        }
        let queue = (0..zones.count)
            .filter_map(|index| zone.entry(index, 0))
            .collect();
        let large = (0..zones.count)
            .filter(|&index| zone.quota[index] * 2 > slots as u64)
            .collect();
        Demand {
            zones,
            node,
            zone,
            nodes_of,
            queue,
            large,
            passed: Vec::new(),
        }
    }

    /// Whether nobody needs anything.
    pub(super) fn is_met(&mut self) -> bool {
        let Demand { zone, queue, .. } = self;
        match zone.pop(queue) {
            None => true,
            Some(entry) => {
                queue.push(entry);
                false
            }
        }
    }

    /// The neediest node that may enter the set when `leaves` leaves it. `slots_left` counts the slots that
    /// still come, this one included, when each of them has vacancies.
    pub(super) fn take(&mut self, slot: usize, set: &[Node], leaves: Node, slots_left: u64) -> Option<Node> {
        if let Some(zone) = self.urgent(set, leaves, slots_left) {
            return self.take_in(zone, slot, set, leaves);
        }
        let mut passed = core::mem::take(&mut self.passed);
        let mut taken = None;
        while let Some(entry) = self.zone.pop(&mut self.queue) {
            let zone = entry.2;
            taken = self.take_in(zone, slot, set, leaves);
            if taken.is_some() {
                self.queue.extend(self.zone.entry(zone, slot));
                break;
            }
            passed.push(entry);
        }
        self.queue.extend(passed.drain(..));
        self.passed = passed;
        taken
    }

    /// Undoes a [`Demand::take`].
    pub(super) fn put_back(&mut self, node: Node, slot: usize) {
        let (node, zone) = (usize::from(node), self.zones.of[usize::from(node)]);
        self.node.need[node] += 1;
        self.zone.need[zone] += 1;
        // Whoever needed nothing has no entry; the others' entries are brought up to date when they are met.
        if self.node.need[node] == 1 {
            self.nodes_of[zone].extend(self.node.entry(node, slot));
        }
        if self.zone.need[zone] == 1 {
            self.queue.extend(self.zone.entry(zone, slot));
        }
    }

    fn urgent(&self, set: &[Node], leaves: Node, slots_left: u64) -> Option<usize> {
        let urgent = |&zone: &usize| {
            self.zone.need[zone] >= slots_left
                && self.zone.need[zone] > 0
                && self.zones.zone_fits(set, leaves, zone)
        };
        self.large.iter().copied().find(urgent)
    }

    fn take_in(&mut self, zone: usize, slot: usize, set: &[Node], leaves: Node) -> Option<Node> {
        if self.zones.distinct() && !self.zones.zone_fits(set, leaves, zone) {
            return None;
        }
        let queue = &mut self.nodes_of[zone];
        let mut passed = Vec::new();
        let mut taken = None;
        while let Some(entry) = self.node.pop(queue) {
            let node = entry.2 as Node;
            if !set.contains(&node) && self.zones.fits(set, leaves, node) {
                self.node.need[entry.2] -= 1;
                self.zone.need[zone] -= 1;
                queue.extend(self.node.entry(entry.2, slot));
                taken = Some(node);
                break;
            }
            passed.push(entry);
        }
        queue.extend(passed);
        taken
    }
}
