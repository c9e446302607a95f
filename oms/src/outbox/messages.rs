//! The messages of one kind in memory, by order id.
//!
//! The messages are in many small maps instead of one large map, because growing or scanning a
//! small map takes little time. A caller of `forget` can release its lock between two maps.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::order::OrderId;
use crate::outbox::MessageState;

/// Number of maps. With a million messages, each map has about 4,000.
const PARTS: usize = 256;

/// A message in memory, with its schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) state: MessageState,
    /// Number of failed tries since the message was added or an operator retried it.
    pub(crate) attempts: u32,
    /// Monotonic time of the next try, in milliseconds.
    pub(super) due_ms: u64,
    /// Reason of the last failure. `None` if no try has failed.
    pub(super) last_error: Option<Box<str>>,
    pub(super) in_flight: bool,
    /// The value of `MessageQueue::answers` at the last failure of this message.
    pub(super) answers_before: u32,
    /// `true` if the last try failed with `FailureKind::Unreachable`, or if this process knows of
    /// no try, such as after a restart. The warehouse may then still execute an earlier try.
    pub(super) unanswered: bool,
    /// Number of migrations to this volume that must be activated before the message is sent. While
    /// it is higher than `MessageQueue::migrations`, the message is parked.
    pub(super) migration: u64,
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
    // This hash needs no secret seed. If a client chooses ids that all belong to one part, only
    // that part becomes large. Inside a part, the map hashes its keys with a random seed.
    xxh3_64(order.as_bytes()) as usize % PARTS
}

impl Messages {
    /// Returns an empty set with room for about `count` messages.
    pub(super) fn with_room_for(count: usize) -> Messages {
        // Parts are not equally full, so each part gets an eighth more room than the average.
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

    /// Removes the messages of orders for which `stays` returns `false` from the map with the index
    /// `at`, and returns them. Returns `None` if no map has this index.
    pub(super) fn forget(&mut self, at: usize, stays: impl Fn(&OrderId) -> bool) -> Option<Vec<Slot>> {
        let part = self.parts.get_mut(at)?;
        let gone = part.extract_if(|order, _| !stays(order));
        let gone: Vec<Slot> = gone.map(|(_, slot)| slot).collect();
        self.len -= gone.len();
        Some(gone)
    }
}
