//! A plan: the difference between a ring and its successor. A plan is made from exactly one ring
//! and can be applied to no other.
//!
//! A plan is data: it can be shown, sent and stored, and [`Ring::apply`] checks everything in it. A
//! plan is carried out as a whole. First the data of all moves with `transfer` is copied, then the
//! new ring replaces the old one at once. So the new primary of a slot has the data when it becomes
//! the primary.
//!
//! With two replicas or more, the new primary had the data even before the plan was made, unless
//! this node joins, gains weight or gets a pin, or the slot loses all its holders.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::member::in_order;
use crate::merged::Merged;
use crate::placement::{self, Problem};
use crate::ring::{NONE, Node};
use crate::{Balance, Digest, Epoch, Error, Member, NodeName, Ring, Slot};

/// A range of consecutive slots, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SlotRange {
    /// The first slot.
    pub first: Slot,
    /// The last slot.
    pub last: Slot,
}

impl SlotRange {
    /// Returns the number of slots.
    #[must_use]
    pub fn count(&self) -> u32 {
        (self.last.0.saturating_sub(self.first.0)).saturating_add(1)
    }

    /// Returns an iterator over the slots.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + use<> {
        (self.first.0..=self.last.0).map(Slot)
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(f)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The position of a node among the replicas of a slot. Its text form is `primary`, `copy-1`,
/// `copy-2` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub enum Role {
    /// The owner of the slot.
    Primary,
    /// A copy of the slot, counted from 1.
    Copy(u8),
}

impl Role {
    fn of_column(column: usize) -> Role {
        if column == 0 {
            Role::Primary
        } else {
            Role::Copy(column as u8)
        }
    }

    fn column(self) -> usize {
        match self {
            Role::Primary => 0,
            Role::Copy(index) => usize::from(index),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Primary => f.pad("primary"),
            Role::Copy(index) => f.pad(&alloc::format!("copy-{index}")),
        }
    }
}

impl FromStr for Role {
    type Err = ParseRoleError;
    fn from_str(text: &str) -> Result<Role, ParseRoleError> {
        if text == "primary" {
            return Ok(Role::Primary);
        }
        let index = text.strip_prefix("copy-").and_then(|index| index.parse().ok());
        index
            .filter(|&index| index > 0)
            .map(Role::Copy)
            .ok_or(ParseRoleError)
    }
}

impl TryFrom<String> for Role {
    type Error = ParseRoleError;
    fn try_from(text: String) -> Result<Role, ParseRoleError> {
        text.parse()
    }
}

impl From<Role> for String {
    fn from(role: Role) -> String {
        role.to_string()
    }
}

/// The error for a text that is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseRoleError;

impl fmt::Display for ParseRoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a role is primary, copy-1, copy-2 and so on")
    }
}

impl core::error::Error for ParseRoleError {}

/// One move of a plan: a role in a range of slots passes from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Move {
    /// Slots of the move.
    pub slots: SlotRange,
    /// The role that changes its node.
    pub role: Role,
    /// Node that has the role now, or `None` if the ring is empty or the replica is new.
    pub from: Option<NodeName>,
    /// Node that gets the role, or `None` if too few nodes with a weight above 0 remain for this
    /// replica.
    pub to: Option<NodeName>,
    /// `true` if `to` holds no replica of these slots now, so that their data must be copied to it.
    pub transfer: bool,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |node: &Option<NodeName>| node.as_ref().map_or("nobody".to_string(), ToString::to_string);
        write!(
            f,
            "slots {}: {} from {} to {}",
            self.slots,
            self.role,
            name(&self.from),
            name(&self.to)
        )?;
        f.write_str(if self.transfer { ", data moves" } else { "" })
    }
}

/// The moves from one ring to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Plan {
    /// Epoch of the ring that the plan was made from.
    pub from_epoch: Epoch,
    /// Digest of the ring that the plan was made from.
    pub from_digest: Digest,
    /// Digest of the ring that the plan leads to.
    pub to_digest: Digest,
    /// Members of the ring that the plan leads to, sorted by name.
    pub members: Vec<Member>,
    /// Pinned slots of the ring that the plan leads to, ascending. A pinned slot keeps its owner
    /// (see [`Ring::pin`]). If the owner leaves, the slot loses its pin.
    pub pins: Vec<Slot>,
    /// The moves, sorted by role and slot.
    pub moves: Vec<Move>,
    /// Number of slot replicas that are copied: the total number of slots in all moves with
    /// `transfer`.
    pub moved: u32,
    /// Smallest number of copied slot replicas with which any plan could give each node its share,
    /// within one slot. In a plan of [`Ring::pin`] or [`Ring::unpin`], the number that this change
    /// alone needs.
    pub minimum: u32,
    /// Evenness of the ring that the plan leads to.
    pub balance: Balance,
}

impl Plan {
    /// Returns `true` if the plan has no moves.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// Makes the plan to the members `target`, which [`in_order`] has sorted and checked.
    fn to_target(ring: &Ring, target: Vec<Member>) -> Result<Plan, Error> {
        if target.is_empty() && !ring.members.is_empty() {
            return Err(Error::NoMembers);
        }
        let merged = Merged::of(ring, &target);
        let gone = |pin: &&Slot| merged.target[usize::from(merged.owner(**pin))].is_some();
        let pins: Vec<Slot> = ring.pins.iter().filter(gone).copied().collect();
        let problem = Problem::new(ring, &merged, &pins);
        let placed = placement::place(&problem);
        Plan::between(ring, &merged, &target, pins, &placed.rows, placed.minimum)
    }

    /// Makes the plan from a ring to the assignment in `rows`.
    fn between(
        ring: &Ring,
        merged: &Merged<'_>,
        members: &[Member],
        pins: Vec<Slot>,
        rows: &[Node],
        minimum: u64,
    ) -> Result<Plan, Error> {
        let next = merged.successor(ring, members.to_vec(), rows, pins.clone())?;
        let moves = difference(merged, rows);
        let moved = moves
            .iter()
            .filter(|step| step.transfer)
            .map(|step| step.slots.count())
            .sum();
        Ok(Plan {
            from_epoch: ring.epoch,
            from_digest: ring.digest(),
            to_digest: next.digest(),
            members: members.to_vec(),
            pins,
            moves,
            moved,
            minimum: minimum as u32,
            balance: next.balance(),
        })
    }
}

/// Returns the moves for all cells that differ. Equal changes of consecutive slots are one move.
fn difference(merged: &Merged<'_>, rows: &[Node]) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    for column in 0..merged.replication {
        let mut last: Option<(Node, Node, bool)> = None;
        let pairs = merged
            .rows
            .chunks_exact(merged.replication)
            .zip(rows.chunks_exact(merged.replication));
        for (slot, (before, after)) in pairs.enumerate() {
            let (from, to) = (before[column], after[column]);
            if from == to {
                last = None;
                continue;
            }
            let transfer = to != NONE && !before.contains(&to);
            match (moves.last_mut(), last) {
                (Some(step), Some(same)) if same == (from, to, transfer) => {
                    step.slots.last = Slot(slot as u32);
                }
                _ => moves.push(Move {
                    slots: SlotRange {
                        first: Slot(slot as u32),
                        last: Slot(slot as u32),
                    },
                    role: Role::of_column(column),
                    from: merged.name(from).cloned(),
                    to: merged.name(to).cloned(),
                    transfer,
                }),
            }
            last = Some((from, to, transfer));
        }
    }
    moves
}

impl Ring {
    /// Makes the first ring from an empty ring. No plan is made, because no move of such a plan
    /// would have a source.
    pub(crate) fn begun(empty: &Ring, members: Vec<Member>) -> Result<Ring, Error> {
        let merged = Merged::of(empty, &members);
        let placed = placement::place(&Problem::new(empty, &merged, &[]));
        merged.successor(empty, members.clone(), &placed.rows, Vec::new())
    }

    /// Plans the moves to a target set of members, with their weights and zones. Equal rings and
    /// targets give equal plans in every process, for any order of the members.
    ///
    /// # Errors
    /// The errors of [`Ring::bootstrap`] for the target, and [`Error::NoMembers`] if the target is
    /// empty while the ring has members. [`Error::EpochsExhausted`] if the ring is at its last
    /// epoch.
    pub fn plan(&self, target: &[Member]) -> Result<Plan, Error> {
        Plan::to_target(self, in_order(target.iter().cloned())?)
    }

    /// Plans for one more member, or for another weight or zone of a present member.
    ///
    /// # Errors
    /// The errors of [`Ring::plan`].
    pub fn plan_join(&self, member: Member) -> Result<Plan, Error> {
        let others = self.members.iter().filter(|other| other.name() != member.name());
        Plan::to_target(self, in_order(others.cloned().chain([member.clone()]))?)
    }

    /// Plans for the removal of one member.
    ///
    /// # Errors
    /// [`Error::UnknownNode`] if the node is not a member, [`Error::NoMembers`] if it is the last
    /// member, and the errors of [`Ring::plan`].
    pub fn plan_leave(&self, name: &NodeName) -> Result<Plan, Error> {
        if self.node(name).is_none() {
            return Err(Error::UnknownNode { name: name.clone() });
        }
        Plan::to_target(
            self,
            in_order(
                self.members
                    .iter()
                    .filter(|member| member.name() != name)
                    .cloned(),
            )?,
        )
    }

    /// Plans to make a node the owner of a slot. Later plans keep this owner as long as the node is
    /// a member, until the slot is unpinned or pinned to another node. This plan moves no other
    /// slot. The next [`Ring::plan`] restores the balance.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`], [`Error::UnknownNode`] or [`Error::EpochsExhausted`].
    pub fn pin(&self, slot: Slot, name: &NodeName) -> Result<Plan, Error> {
        let node = self
            .node(name)
            .ok_or_else(|| Error::UnknownNode { name: name.clone() })?;
        self.owner(slot)?;
        let merged = Merged::of(self, &self.members);
        let mut pins = self.pins.clone();
        if let Err(index) = pins.binary_search(&slot) {
            pins.insert(index, slot);
        }
        let placed = placement::pin(&Problem::new(self, &merged, &[]), slot.0 as usize, node);
        Plan::between(self, &merged, &self.members, pins, &placed.rows, placed.minimum)
    }

    /// Plans to remove the pin of a slot. This plan moves no slot; the next [`Ring::plan`] may move
    /// `slot`. If `slot` has no pin, the plan changes only the epoch.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`], [`Error::Empty`] if the ring has no members, or
    /// [`Error::EpochsExhausted`].
    pub fn unpin(&self, slot: Slot) -> Result<Plan, Error> {
        self.owner(slot)?;
        let merged = Merged::of(self, &self.members);
        let pins = self.pins.iter().filter(|pin| **pin != slot).copied().collect();
        Plan::between(self, &merged, &self.members, pins, &merged.rows, 0)
    }

    /// Makes the next ring, one epoch later. A plan can be applied only to the ring from which it
    /// was made.
    ///
    /// # Errors
    /// [`Error::StalePlan`] or [`Error::OtherRing`] if the plan was made from another ring.
    /// [`Error::BadMove`], [`Error::BadPlan`] or another error if the plan was changed after it was
    /// made.
    pub fn apply(&self, plan: &Plan) -> Result<Ring, Error> {
        if plan.from_epoch != self.epoch {
            return Err(Error::StalePlan {
                plan: plan.from_epoch,
                ring: self.epoch,
            });
        }
        if plan.from_digest != self.digest() {
            return Err(Error::OtherRing {
                plan: plan.from_digest,
                ring: self.digest(),
            });
        }
        let members = in_order(plan.members.iter().cloned())?;
        let merged = Merged::of(self, &members);
        let mut rows = merged.rows.clone();
        for step in &plan.moves {
            self.apply_move(&merged, &mut rows, step)?;
        }
        let next = merged.successor(self, members.clone(), &rows, plan.pins.clone())?;
        if next.digest() != plan.to_digest {
            return Err(Error::BadPlan {
                promised: plan.to_digest,
                reached: next.digest(),
            });
        }
        Ok(next)
    }

    fn apply_move(&self, merged: &Merged<'_>, rows: &mut [Node], step: &Move) -> Result<(), Error> {
        let bad = |slot, reason| Err(Error::BadMove { slot, reason });
        let (slots, column) = (self.options.slots as usize, step.role.column());
        let (first, last) = (step.slots.first.0 as usize, step.slots.last.0 as usize);
        if first > last || last >= slots || column >= usize::from(self.options.replication) {
            return bad(step.slots.first, "the ring has no such slots or role");
        }
        let (Some(from), Some(to)) = (merged.node(&step.from), merged.node(&step.to)) else {
            return bad(
                step.slots.first,
                "a node is neither in the ring nor in the plan's members",
            );
        };
        let rows = rows.chunks_exact_mut(merged.replication).enumerate();
        for (slot, row) in rows.take(last + 1).skip(first) {
            let cell = &mut row[column];
            if *cell != from {
                return bad(
                    Slot(slot as u32),
                    "the role is not with the node that the plan takes it from",
                );
            }
            *cell = to;
        }
        Ok(())
    }
}
