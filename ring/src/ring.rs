//! The ring: an immutable table of slots and owners, with members, epoch and digest.
//!
//! Invariants. [`Ring::from_parts`] checks all of them, except for the order of the members, which
//! its callers ensure:
//! - Members are sorted by name, and no name occurs twice.
//! - Every slot has an owner unless the ring has no members.
//! - The replicas of a slot are distinct members, the primary first. Empty cells come last.
//! - Pinned slots are sorted, occur once each, and have an owner.
//!
//! The table is stored by column: all primaries, then all first copies, and so on. So a look-up of
//! an owner reads only the column of primaries.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::encode;
use crate::member::{check_members, in_order};
use crate::{Digest, Error, KeyHash, Member, NodeName, Options, SLOTS_MAX, Slot};

/// Index of a member, by which the table names it. Members are indexed in the order of their names.
pub(crate) type Node = u16;
/// Marks a cell without a node.
pub(crate) const NONE: Node = Node::MAX;

/// Version of a ring: 1 for the first ring, and one more for each successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Epoch(pub u64);

impl Epoch {
    pub(crate) fn next(self) -> Result<Epoch, Error> {
        self.0.checked_add(1).map(Epoch).ok_or(Error::EpochsExhausted)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The location of a key, returned by [`Ring::locate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Location<'a> {
    /// Slot of the key.
    pub slot: Slot,
    /// Owner (primary) of the slot.
    pub owner: &'a NodeName,
    /// Epoch of the ring that located the key.
    pub epoch: Epoch,
}

/// An assignment of slots to nodes. See the [crate] for an introduction.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring {
    pub(crate) options: Options,
    /// Number of bits by which a hash is shifted right to get its slot.
    shift: u32,
    pub(crate) epoch: Epoch,
    pub(crate) members: Vec<Member>,
    /// The table: `replication` columns of `slots` cells each, one column behind the other.
    pub(crate) cells: Vec<Node>,
    /// Pinned slots (see [`Ring::pin`]), ascending.
    pub(crate) pins: Vec<Slot>,
    digest: Digest,
}

impl Ring {
    /// Creates the first ring, with epoch 1, from members in any order. Without members, creates
    /// the empty ring, a valid ring in which no key has an owner.
    ///
    /// # Errors
    /// Options outside of their limits, a duplicate name, too many members, or members of weight 0
    /// only.
    pub fn bootstrap(members: impl IntoIterator<Item = Member>, options: Options) -> Result<Ring, Error> {
        options.check()?;
        let cells = vec![NONE; options.slots as usize * usize::from(options.replication)];
        let empty = Ring::from_parts(options, Epoch(0), Vec::new(), cells, Vec::new())?;
        Ring::begun(&empty, in_order(members)?)
    }

    /// Creates a ring from parts of any source. The members must be sorted by name. Fails if the
    /// parts break another invariant.
    pub(crate) fn from_parts(
        options: Options,
        epoch: Epoch,
        members: Vec<Member>,
        cells: Vec<Node>,
        pins: Vec<Slot>,
    ) -> Result<Ring, Error> {
        options.check()?;
        check_members(&members)?;
        let shift = u64::BITS - options.slots.trailing_zeros();
        let mut ring = Ring {
            options,
            shift,
            epoch,
            members,
            cells,
            pins,
            digest: Digest(0),
        };
        ring.check()?;
        ring.digest = Digest::of(&encode::content(&ring));
        Ok(ring)
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |slot: usize, reason| {
            Err(Error::BadMove {
                slot: Slot(slot as u32),
                reason,
            })
        };
        let slots = self.options.slots as usize;
        if self.cells.len() != slots * usize::from(self.options.replication) {
            return bad(0, "the table has not one cell for each slot and replica");
        }
        if !self.is_table_sound()
            && let Some((slot, reason)) = (0..slots).find_map(|slot| Some((slot, self.slot_problem(slot)?)))
        {
            return bad(slot, reason);
        }
        if let Some(pair) = self.pins.windows(2).find(|pair| pair[0] >= pair[1]) {
            return bad(pair[1].0 as usize, "pinned slots are not in order, each once");
        }
        match self.pins.last() {
            Some(&last) if last.0 >= self.options.slots => Err(self.unknown(last)),
            Some(&last) if self.members.is_empty() => bad(last.0 as usize, "it is pinned, but has no owner"),
            _ => Ok(()),
        }
    }

    /// Returns `true` if no slot breaks an invariant. The loops check the rules of
    /// [`Ring::slot_problem`] by column and without branches, so that compilers vectorise them.
    fn is_table_sound(&self) -> bool {
        let members = self.members.len();
        let known = |sound, node: &Node| sound & ((*node == NONE) | (usize::from(*node) < members));
        let owned = |sound, node: &Node| sound & ((*node != NONE) | (members == 0));
        let mut columns = self.cells.chunks_exact(self.options.slots as usize);
        let mut sound = self.cells.iter().fold(true, known);
        sound &= columns
            .clone()
            .next()
            .unwrap_or_default()
            .iter()
            .fold(true, owned);
        while let Some(earlier) = columns.next() {
            for later in columns.clone() {
                let apart = |sound, (earlier, later): (&Node, &Node)| {
                    sound & ((*later == NONE) | ((*earlier != NONE) & (earlier != later)))
                };
                sound &= earlier.iter().zip(later).fold(true, apart);
            }
        }
        sound
    }

    /// Returns the invariant that a slot breaks, or `None`.
    fn slot_problem(&self, slot: usize) -> Option<&'static str> {
        let column = self.options.slots as usize;
        let row: Vec<Node> = self.cells.iter().copied().skip(slot).step_by(column).collect();
        let unknown = |node: Node| node != NONE && usize::from(node) >= self.members.len();
        let (&primary, copies) = row.split_first()?;
        if primary == NONE && !self.members.is_empty() {
            return Some("it has no owner");
        }
        if unknown(primary) {
            return Some("its owner is not a member");
        }
        let copies = copies.iter().enumerate().filter(|(_, node)| **node != NONE);
        copies.into_iter().find_map(|(index, &node)| {
            let earlier = &row[..=index];
            if unknown(node) {
                Some("a copy is on a node that is not a member")
            } else if earlier.contains(&NONE) {
                Some("its replicas have a gap")
            } else {
                earlier
                    .contains(&node)
                    .then_some("a node holds two replicas of it")
            }
        })
    }

    fn unknown(&self, slot: Slot) -> Error {
        Error::UnknownSlot {
            slot,
            slots: self.options.slots,
        }
    }

    /// Returns the slot of a key: the top bits of its hash.
    #[inline(always)]
    #[must_use]
    pub fn slot_of(&self, key: &[u8]) -> Slot {
        Slot((self.options.key_hash.hash(key) >> self.shift) as u32)
    }

    /// Returns the location of a key: its slot, the owner, and the ring's epoch.
    ///
    /// # Errors
    /// [`Error::Empty`] if the ring has no members.
    #[inline(always)] // Inlined for the reason given at `KeyHash::hash`.
    pub fn locate(&self, key: &[u8]) -> Result<Location<'_>, Error> {
        let slot = self.slot_of(key);
        match self.node_at(slot) {
            Some(member) => Ok(Location {
                slot,
                owner: member.name(),
                epoch: self.epoch,
            }),
            None => Err(Error::Empty),
        }
    }

    /// Returns the owner (primary) of a slot.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`] if the ring has no such slot, [`Error::Empty`] if it has no members.
    pub fn owner(&self, slot: Slot) -> Result<&NodeName, Error> {
        if slot.0 >= self.options.slots {
            return Err(self.unknown(slot));
        }
        self.node_at(slot).map(Member::name).ok_or(Error::Empty)
    }

    #[inline]
    fn node_at(&self, slot: Slot) -> Option<&Member> {
        // An empty cell is `NONE`, which is larger than the index of any member.
        self.members.get(usize::from(*self.cells.get(slot.0 as usize)?))
    }

    /// Returns up to `n` nodes that hold a slot: the primary, then its copies. The nodes are
    /// distinct, and in distinct zones if there are enough zones and no pin forbids this. Returns
    /// fewer nodes if the ring has fewer replicas ([`Options::replication`]) or fewer nodes of a
    /// weight above 0.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`] if the ring has no such slot, [`Error::Empty`] if it has no members.
    pub fn replicas(&self, slot: Slot, n: usize) -> Result<impl Iterator<Item = &NodeName>, Error> {
        self.owner(slot)?;
        let column = self.options.slots as usize;
        let cells = self
            .cells
            .get(slot.0 as usize..)
            .unwrap_or_default()
            .iter()
            .step_by(column);
        Ok(cells
            .take(n)
            .filter_map(|&node| self.members.get(usize::from(node)))
            .map(Member::name))
    }

    /// Returns the members, sorted by name.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the member with this name, or `None`.
    #[must_use]
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        self.node(name)
            .and_then(|node| self.members.get(usize::from(node)))
    }

    pub(crate) fn node(&self, name: &NodeName) -> Option<Node> {
        self.members
            .binary_search_by(|member| member.name().cmp(name))
            .ok()
            .map(|index| index as Node)
    }

    /// Returns the version of this ring.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the digest, which identifies the whole content of the ring.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.options.slots
    }

    /// Returns the requested number of replicas of a slot, primary included
    /// ([`Options::replication`]). A ring with fewer nodes of a weight above 0 has fewer replicas.
    #[must_use]
    pub fn replication(&self) -> u8 {
        self.options.replication
    }

    /// Returns the function from a key to its hash.
    #[must_use]
    pub fn key_hash(&self) -> KeyHash {
        self.options.key_hash
    }

    /// Returns the pinned slots, ascending.
    #[must_use]
    pub fn pins(&self) -> &[Slot] {
        &self.pins
    }

    /// Returns the slots that a node owns as primary, ascending. Returns no slots for a node that
    /// is not a member.
    pub fn slots_of(&self, name: &NodeName) -> impl Iterator<Item = Slot> + '_ {
        let node = self.node(name).unwrap_or(NONE);
        let primaries = self.cells.iter().take(self.options.slots as usize).enumerate();
        primaries
            .filter(move |&(_, &owner)| owner == node && node != NONE)
            .map(|(slot, _)| Slot(slot as u32))
    }

    /// Creates a ring with twice as many slots, one epoch later. Slot `s` becomes `2s` and `2s +
    /// 1`, and no key changes its node. A pinned slot becomes two pinned slots.
    ///
    /// # Errors
    /// [`Error::Slots`] if the new ring would have more than [`SLOTS_MAX`], and
    /// [`Error::EpochsExhausted`].
    pub fn double(&self) -> Result<Ring, Error> {
        if self.options.slots >= SLOTS_MAX {
            return Err(Error::Slots {
                slots: self.options.slots.saturating_mul(2),
            });
        }
        let options = self.options.slots(self.options.slots * 2);
        let cells = self.cells.iter().flat_map(|&node| [node, node]).collect();
        let pins = self
            .pins
            .iter()
            .flat_map(|pin| [Slot(pin.0 * 2), Slot(pin.0 * 2 + 1)])
            .collect();
        Ring::from_parts(options, self.epoch.next()?, self.members.clone(), cells, pins)
    }

    /// Encodes the whole ring as bytes. The encoding has a version, ends with a digest, and is
    /// equal on every machine.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode::encode(self)
    }

    /// Decodes bytes written by [`Ring::encode`].
    ///
    /// # Errors
    /// [`Error::Decode`], which names the wrong field. No input makes this function panic, or
    /// allocate more memory than the largest ring needs.
    pub fn decode(bytes: &[u8]) -> Result<Ring, Error> {
        Ok(encode::decode(bytes)?)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("epoch", &self.epoch.0)
            .field("digest", &self.digest)
            .field("slots", &self.options.slots)
            .field("replication", &self.options.replication)
            .field("key_hash", &self.options.key_hash)
            .field("members", &self.members)
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}
