//! The messages of a lane by order.
//!
//! In many small maps instead of one large one: none of them takes long to grow or to go through, and whoever does that
//! for all may let others in between.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::Message;
use crate::order::OrderId;

/// Maps; a million messages are 4,000 in each.
const PARTS: usize = 256;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) message: Message,
    pub(super) in_flight: bool,
    /// With the how-manieth slots it came; none is looked at before those are in force.
    pub(super) came_with: u64,
}

#[derive(Debug)]
pub(super) struct Messages {
    parts: Box<[HashMap<OrderId, Slot>]>,
    len: usize,
}

impl Default for Messages {
    fn default() -> Messages {
        Messages {
            parts: (0..PARTS).map(|_| HashMap::new()).collect(),
            len: 0,
        }
    }
}

fn part_of(order: &OrderId) -> usize {
    // Which map it is in need not be a secret: an order's place within it is.
    xxh3_64(order.as_bytes()) as usize % PARTS
}

impl Messages {
    /// With room for about so many.
    pub(super) fn with_room_for(count: usize) -> Messages {
        // Some parts get more than their share.
        let each = if count < PARTS { 0 } else { count / PARTS * 9 / 8 };
        Messages {
            parts: (0..PARTS).map(|_| HashMap::with_capacity(each)).collect(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn get(&self, order: &OrderId) -> Option<&Slot> {
        self.parts[part_of(order)].get(order)
    }

    pub(super) fn get_mut(&mut self, order: &OrderId) -> Option<&mut Slot> {
        self.parts[part_of(order)].get_mut(order)
    }

    pub(super) fn insert(&mut self, order: OrderId, slot: Slot) -> Option<Slot> {
        let before = self.parts[part_of(&order)].insert(order, slot);
        self.len += usize::from(before.is_none());
        before
    }

    pub(super) fn remove(&mut self, order: &OrderId) -> Option<Slot> {
        let slot = self.parts[part_of(order)].remove(order);
        self.len -= usize::from(slot.is_some());
        slot
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OrderId, &Slot)> {
        self.parts.iter().flatten()
    }

    /// Takes out, of the `at`th part, those that do not stay; none if there is no such part.
    pub(super) fn forget(&mut self, at: usize, stays: impl Fn(&OrderId) -> bool) -> Option<Vec<Slot>> {
        let part = self.parts.get_mut(at)?;
        let gone = part.extract_if(|order, _| !stays(order));
        let gone: Vec<Slot> = gone.map(|(_, slot)| slot).collect();
        self.len -= gone.len();
        Some(gone)
    }
}
