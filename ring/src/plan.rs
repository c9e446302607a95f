//! What would move: the difference between a ring and its successor, made from exactly one ring and fitting no other.
//!
//! A plan is data: it can be shown, sent and stored, and [`Ring::apply`] trusts nothing in it. It is one step, not
//! many: first the data of all moves with `transfer` is brought to where it goes, then the new ring takes over
//! at once. So with two replicas or more, whoever becomes a slot's primary holds its data by then, and unless
//! it has just joined, it held it already before the plan was made.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::member::in_order;
use crate::place::{self, Problem};
use crate::ring::{NONE, Node};
use crate::union::Union;
use crate::{Balance, Digest, Epoch, Error, Member, NodeName, Ring, Slot};

/// Neighbouring slots, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SlotRange {
    /// The first slot.
    pub first: Slot,
    /// The last slot.
    pub last: Slot,
}

impl SlotRange {
    /// How many slots.
    #[must_use]
    pub fn count(&self) -> u32 {
        (self.last.0.saturating_sub(self.first.0)).saturating_add(1)
    }

    /// Each of the slots.
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

/// The place of a node among a slot's replicas. As text `primary`, `copy-1`, `copy-2` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub enum Role {
    /// The owner.
    Primary,
    /// A copy, counted from 1.
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

/// The text is not a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseRoleError;

impl fmt::Display for ParseRoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a role is primary, copy-1, copy-2 and so on")
    }
}

impl core::error::Error for ParseRoleError {}

/// One step of a plan: a role in a range of slots passes from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct Move {
    /// The slots.
    pub slots: SlotRange,
    /// What passes.
    pub role: Role,
    /// Who has it now; nobody in a ring that begins or gets more replicas.
    pub from: Option<NodeName>,
    /// Who gets it; nobody when there are no longer enough nodes for this replica.
    pub to: Option<NodeName>,
    /// Whether `to` holds nothing of these slots yet, so that their data must be brought to it.
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

/// What leads from one ring to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Plan {
    /// The epoch of the ring that it was made from.
    pub from_epoch: Epoch,
    /// The digest of the ring that it was made from.
    pub from_digest: Digest,
    /// The digest of the ring that it leads to.
    pub to_digest: Digest,
    /// The members of the ring that it leads to, by name.
    pub members: Vec<Member>,
    /// The pinned slots of the ring that it leads to, ascending; the pins of nodes that leave are gone.
    pub pins: Vec<Slot>,
    /// What passes from whom to whom, by role and slot.
    pub moves: Vec<Move>,
    /// How many slots' data moves, each replica counted: the sum over all moves with `transfer`.
    pub moved: u32,
    /// The least that any plan would move that gives each node its share, within one slot.
    pub minimum: u32,
    /// How evenly the ring that it leads to is spread.
    pub balance: Balance,
}

impl Plan {
    /// Whether nothing moves at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// The plan to a target that is already in order and checked.
    fn to_target(ring: &Ring, target: Vec<Member>) -> Result<Plan, Error> {
        if target.is_empty() && !ring.members.is_empty() {
            return Err(Error::NoMembers);
        }
        let union = Union::of(ring, &target);
        let gone = |pin: &&Slot| union.target[usize::from(union.owner(**pin))].is_some();
        let pins: Vec<Slot> = ring.pins.iter().filter(gone).copied().collect();
        let problem = Problem::new(ring, &union, &pins);
        let placed = place::place(&problem);
        Plan::between(ring, &union, &target, pins, &placed.rows, placed.minimum)
    }

    /// The plan from a ring to a table that is already decided.
    fn between(
        ring: &Ring,
        union: &Union<'_>,
        members: &[Member],
        pins: Vec<Slot>,
        rows: &[Node],
        minimum: u64,
    ) -> Result<Plan, Error> {
        let next = union.successor(ring, members.to_vec(), rows, pins.clone())?;
        let moves = difference(union, rows);
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

/// The cells that differ, neighbours drawn together.
fn difference(union: &Union<'_>, rows: &[Node]) -> Vec<Move> {
    let mut moves: Vec<Move> = Vec::new();
    for column in 0..union.replication {
        let mut last: Option<(Node, Node, bool)> = None;
        let pairs = union
            .rows
            .chunks_exact(union.replication)
            .zip(rows.chunks_exact(union.replication));
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
                    from: union.name(from).cloned(),
                    to: union.name(to).cloned(),
                    transfer,
                }),
            }
            last = Some((from, to, transfer));
        }
    }
    moves
}

impl Ring {
    /// The ring that a plan from an empty one leads to, without the plan: all of it would be moves from nobody.
    pub(crate) fn begun(empty: &Ring, members: Vec<Member>) -> Result<Ring, Error> {
        let union = Union::of(empty, &members);
        let placed = place::place(&Problem::new(empty, &union, &[]));
        union.successor(empty, members.clone(), &placed.rows, Vec::new())
    }

    /// What would move to make the target the ring's members, with their weights and zones. The same ring and target
    /// (in any order) give the same plan everywhere.
    ///
    /// # Errors
    /// A target that [`Ring::bootstrap`] would refuse, or an empty one while there are members.
    pub fn plan(&self, target: &[Member]) -> Result<Plan, Error> {
        Plan::to_target(self, in_order(target.iter().cloned())?)
    }

    /// [`Ring::plan`] with one member more, or with another weight or zone if it is there already.
    ///
    /// # Errors
    /// As [`Ring::plan`].
    pub fn plan_join(&self, member: Member) -> Result<Plan, Error> {
        let others = self.members.iter().filter(|other| other.name() != member.name());
        Plan::to_target(self, in_order(others.cloned().chain([member.clone()]))?)
    }

    /// [`Ring::plan`] with one member less.
    ///
    /// # Errors
    /// [`Error::UnknownNode`] if it is no member, [`Error::NoMembers`] if it is the last; or as [`Ring::plan`].
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

    /// A plan that makes a node the owner of a slot, and keeps it so whatever later plans do, as long as the node is a
    /// member. Nothing else moves; the next [`Ring::plan`] evens out what the pin took or gave.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`] or [`Error::UnknownNode`].
    pub fn pin(&self, slot: Slot, name: &NodeName) -> Result<Plan, Error> {
        let node = self
            .node(name)
            .ok_or_else(|| Error::UnknownNode { name: name.clone() })?;
        self.owner(slot)?;
        let union = Union::of(self, &self.members);
        let mut pins = self.pins.clone();
        if let Err(index) = pins.binary_search(&slot) {
            pins.insert(index, slot);
        }
        let placed = place::pin(&Problem::new(self, &union, &[]), slot.0 as usize, node);
        Plan::between(self, &union, &self.members, pins, &placed.rows, placed.minimum)
    }

    /// A plan that takes the pin off a slot. Nothing moves; the next [`Ring::plan`] is free to.
    ///
    /// # Errors
    /// [`Error::UnknownSlot`]; a slot that is not pinned is none.
    pub fn unpin(&self, slot: Slot) -> Result<Plan, Error> {
        self.owner(slot)?;
        let union = Union::of(self, &self.members);
        let pins = self.pins.iter().filter(|pin| **pin != slot).copied().collect();
        Plan::between(self, &union, &self.members, pins, &union.rows, 0)
    }

    /// The next ring, one epoch later. The same plan can be applied only to the ring that it was made from.
    ///
    /// # Errors
    /// [`Error::StalePlan`] and [`Error::OtherRing`] if this is not that ring; others if the plan was tampered with.
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
        let union = Union::of(self, &members);
        let mut rows = union.rows.clone();
        for step in &plan.moves {
            self.apply_move(&union, &mut rows, step)?;
        }
        let next = union.successor(self, members.clone(), &rows, plan.pins.clone())?;
        if next.digest() != plan.to_digest {
            return Err(Error::BadPlan {
                promised: plan.to_digest,
                reached: next.digest(),
            });
        }
        Ok(next)
    }

    fn apply_move(&self, union: &Union<'_>, rows: &mut [Node], step: &Move) -> Result<(), Error> {
        let bad = |slot, reason| Err(Error::BadMove { slot, reason });
        let (slots, column) = (self.options.slots as usize, step.role.column());
        let (first, last) = (step.slots.first.0 as usize, step.slots.last.0 as usize);
        if first > last || last >= slots || column >= usize::from(self.options.replication) {
            return bad(step.slots.first, "the ring has no such slots or role");
        }
        let (Some(from), Some(to)) = (union.node(&step.from), union.node(&step.to)) else {
            return bad(
                step.slots.first,
                "a node is neither in the ring nor in the plan's members",
            );
        };
        let rows = rows.chunks_exact_mut(union.replication).enumerate();
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
