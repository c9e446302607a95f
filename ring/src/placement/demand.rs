//! Queues of the nodes that lack slots, ordered by relative need: first by zone, then by node
//! within a zone.
//!
//! The quota of a node or zone is the number of slots that it must hold. Its relative need is the
//! number of slots that it still lacks, divided by its quota. Taking the node with the largest
//! relative need interleaves all nodes evenly. Nodes of equal relative need are taken in a
//! pseudo-random order.
//!
//! So, as far as zones and weights permit, any two nodes hold about as many slots in common as any
//! other two. When a node leaves, the others then become primaries of its slots in about equal
//! parts.
//!
//! A large zone has a quota above half of all slots. If a large zone needs a replica of every slot
//! that is still to be filled, this zone is taken before all others, because otherwise it could not
//! meet its quota. So filling an empty ring always meets every quota.
//!
//! Filling a new ring of 65,536 slots and three replicas takes a node from these queues 196,608
//! times. So entries are changed in place, and a relative need is computed once per change.

use alloc::collections::BinaryHeap;
use alloc::collections::binary_heap::PeekMut;
use alloc::vec;
use alloc::vec::Vec;

use super::scatter;
use super::zones::Zones;
use crate::ring::Node;

/// An entry of a queue: a node or a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Sort key. The upper 64 bits are the relative need at the time when the entry was queued or
    /// updated. The lower 64 bits order entries of equal relative need.
    key: u128,
    index: usize,
}

impl Entry {
    fn new(ratio: u64, tie: u64, index: usize) -> Entry {
        Entry {
            key: u128::from(ratio) << 64 | u128::from(tie),
            index,
        }
    }

    fn ratio(&self) -> u64 {
        (self.key >> 64) as u64
    }

    fn tie(&self) -> u64 {
        self.key as u64
    }
}

/// Present need and quota of each node, or of each zone.
struct Level {
    need: Vec<u64>,
    quota: Vec<u64>,
    /// Quotient of `need` and `quota`, with 32 fractional bits. It is 0 if and only if the need is
    /// 0.
    ratio: Vec<u64>,
}

impl Level {
    fn new(need: Vec<u64>, quota: Vec<u64>) -> Level {
        let ratio = vec![0; need.len()];
        let mut level = Level { need, quota, ratio };
        (0..level.need.len()).for_each(|index| level.divide(index));
        level
    }

    fn divide(&mut self, index: usize) {
        self.ratio[index] = (self.need[index] << 32) / self.quota[index].max(1);
    }

    fn less(&mut self, index: usize) {
        self.need[index] -= 1;
        self.divide(index);
    }

    fn more(&mut self, index: usize) {
        self.need[index] += 1;
        self.divide(index);
    }

    fn entry(&self, index: usize, slot: usize) -> Option<Entry> {
        (self.need[index] > 0).then(|| Entry::new(self.ratio[index], scatter(slot, index), index))
    }

    /// Updates or removes outdated entries at the front of the queue, and returns the first entry
    /// with an up-to-date need.
    fn first<'q>(&self, queue: &'q mut BinaryHeap<Entry>) -> Option<PeekMut<'q, Entry>> {
        loop {
            let first = *queue.peek()?;
            let ratio = self.ratio[first.index];
            if first.ratio() == ratio && ratio > 0 {
                return queue.peek_mut();
            }
            set_first(
                queue.peek_mut()?,
                (ratio > 0).then(|| Entry::new(ratio, first.tie(), first.index)),
            );
        }
    }
}

/// Replaces the first entry of a queue, or removes it if `entry` is `None`.
fn set_first(mut first: PeekMut<'_, Entry>, entry: Option<Entry>) {
    match entry {
        Some(entry) => *first = entry,
        None => drop(PeekMut::pop(first)),
    }
}

pub(super) struct Demand<'z> {
    zones: &'z Zones<'z>,
    node: Level,
    zone: Level,
    /// Sum of the needs of all nodes.
    left: u64,
    nodes_of: Vec<BinaryHeap<Entry>>,
    queue: BinaryHeap<Entry>,
    /// Zones with a quota above half of all slots. Only these zones are checked by
    /// [`Demand::urgent`]. All quotas add up to at most the slots times the replicas of a slot, so
    /// there are fewer such zones than twice the number of replicas.
    large: Vec<usize>,
    /// Buffer for entries that a search passes over and queues again at its end. The buffer is a
    /// field so that its memory is reused.
    passed: Vec<Entry>,
    passed_zones: Vec<Entry>,
}

impl<'z> Demand<'z> {
    /// Builds the queues.
    ///
    /// `need` is the number of slots that each node is to get, `quota` the number that each should
    /// hold. `slots` is the number of slots of the ring.
    pub(super) fn new(zones: &'z Zones<'z>, need: Vec<u64>, quota: &[u64], slots: usize) -> Demand<'z> {
        let left = need.iter().sum();
        let node = Level::new(need, quota.to_vec());
        let (mut need, mut quota) = (vec![0; zones.count], vec![0; zones.count]);
        let mut nodes_of = vec![BinaryHeap::new(); zones.count];
        for (index, &its_zone) in zones.of.iter().enumerate() {
            need[its_zone] += node.need[index];
            quota[its_zone] += node.quota[index];
            nodes_of[its_zone].extend(node.entry(index, 0));
        }
        let zone = Level::new(need, quota);
        let all = 0..zones.count;
        Demand {
            zones,
            queue: all.clone().filter_map(|index| zone.entry(index, 0)).collect(),
            large: all
                .filter(|&index| zone.quota[index] * 2 > slots as u64)
                .collect(),
            node,
            zone,
            left,
            nodes_of,
            passed: Vec::new(),
            passed_zones: Vec::new(),
        }
    }

    /// Returns `true` if no node needs a slot.
    pub(super) fn is_met(&self) -> bool {
        self.left == 0
    }

    /// Returns `true` if no node can enter `set`, the holders of a slot, in place of `leaves`. Only
    /// two reasons are checked, because their check is cheap: no zone is queued, or replicas must
    /// be in distinct zones and the set already has a node in the only zone that is queued.
    pub(super) fn is_hopeless(&self, set: &[Node], leaves: Node) -> bool {
        match self.queue.peek() {
            Some(only) if self.queue.len() == 1 && self.zones.distinct() => {
                !self.zones.zone_fits(set, leaves, only.index)
            }
            first => first.is_none(),
        }
    }

    /// Takes a node that may enter `set`, the holders of `slot`, in place of `leaves`. A large zone
    /// that needs a replica of all remaining slots comes first, then the zone with the largest
    /// relative need. In the zone, the node with the largest relative need is taken.
    ///
    /// `slots_left` is the number of slots that still have vacancies, `slot` included; with
    /// [`u64::MAX`], no large zone comes first. If a large zone comes first, only its nodes are
    /// tried.
    pub(super) fn take(&mut self, slot: usize, set: &[Node], leaves: Node, slots_left: u64) -> Option<Node> {
        if let Some(zone) = self.urgent(set, leaves, slots_left) {
            return self.take_in(zone, slot, set, leaves);
        }
        let mut taken = None;
        while let Some(zone) = self.zone.first(&mut self.queue).map(|first| first.index) {
            taken = self.take_in(zone, slot, set, leaves);
            let Some(first) = self.queue.peek_mut() else { break };
            if taken.is_some() {
                set_first(first, self.zone.entry(zone, slot));
                break;
            }
            self.passed_zones.push(PeekMut::pop(first));
        }
        self.queue.extend(self.passed_zones.drain(..));
        taken
    }

    /// Reverts a [`Demand::take`] that returned `node`.
    pub(super) fn put_back(&mut self, node: Node, slot: usize) {
        let (node, zone) = (usize::from(node), self.zones.of[usize::from(node)]);
        self.node.more(node);
        self.zone.more(zone);
        self.left += 1;
        // The needs have just grown by 1. A need that is now 1 was 0 before, and a node or zone
        // with need 0 has no entry in its queue. So an entry is added. Existing entries are updated
        // when they reach the front.
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
        let distinct = self.zones.distinct();
        if distinct && !self.zones.zone_fits(set, leaves, zone) {
            return None;
        }
        let queue = &mut self.nodes_of[zone];
        let mut taken = None;
        while let Some(first) = self.node.first(queue) {
            let (index, node) = (first.index, first.index as Node);
            if set.iter().all(|&held| held != node) && (distinct || self.zones.fits(set, leaves, node)) {
                self.node.less(index);
                self.zone.less(zone);
                self.left -= 1;
                set_first(first, self.node.entry(index, slot));
                taken = Some(node);
                break;
            }
            self.passed.push(PeekMut::pop(first));
        }
        queue.extend(self.passed.drain(..));
        taken
    }
}
