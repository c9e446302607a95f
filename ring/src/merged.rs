//! Two sets of members in one numbering: those of the ring from which a plan starts, and those of
//! its target.
//!
//! A ring numbers its members in the order of their names and stores its table by column, for
//! look-ups. Planning needs one numbering for the members of both sets, and the replicas of a slot
//! next to each other. This module converts the table of a ring to that form, and the planned table
//! back.

use alloc::vec;
use alloc::vec::Vec;

use crate::ring::{NONE, Node};
use crate::{Error, Member, NodeName, Ring, Slot};

/// The nodes of a ring and of a plan's target, numbered together by name. Contains the ring's table
/// in these numbers, as a row of replicas for each slot.
pub(crate) struct Merged<'a> {
    pub(crate) names: Vec<&'a NodeName>,
    /// Index of each node among the target's members, or `None` for a node that leaves.
    pub(crate) target: Vec<Option<Node>>,
    /// Member of each node: that of the target, or that of the ring if the node leaves.
    pub(crate) members: Vec<&'a Member>,
    /// Weight of each node in the ring, or `None` for a node that joins.
    pub(crate) old: Vec<Option<u32>>,
    /// Number of cells in a row, one for each replica.
    pub(crate) replication: usize,
    pub(crate) rows: Vec<Node>,
}

impl<'a> Merged<'a> {
    pub(crate) fn of(ring: &'a Ring, target: &'a [Member]) -> Merged<'a> {
        let mut merged = Merged {
            names: Vec::new(),
            target: Vec::new(),
            members: Vec::new(),
            old: Vec::new(),
            replication: usize::from(ring.options.replication),
            rows: vec![NONE; ring.cells.len()],
        };
        let mut numbers: Vec<Node> = Vec::with_capacity(ring.members.len());
        let (mut old, mut new) = (
            ring.members.iter().peekable(),
            target.iter().enumerate().peekable(),
        );
        loop {
            let number = merged.names.len() as Node;
            let member = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(a), Some((_, b))) if a.name() < b.name() => *a,
                (Some(a), None) => *a,
                (_, Some((_, b))) => *b,
            };
            let in_old = old.next_if(|a| a.name() == member.name());
            numbers.extend(in_old.map(|_| number));
            merged.old.push(in_old.map(Member::weight));
            let in_target = new
                .next_if(|(_, b)| b.name() == member.name())
                .map(|(index, _)| index as Node);
            merged.names.push(member.name());
            merged.target.push(in_target);
            merged.members.push(if let Some(index) = in_target {
                &target[usize::from(index)]
            } else {
                member
            });
        }
        let columns = ring.cells.chunks_exact(ring.options.slots as usize);
        for (column, cells) in columns.enumerate() {
            for (row, &node) in merged.rows.chunks_exact_mut(merged.replication).zip(cells) {
                row[column] = numbers.get(usize::from(node)).copied().unwrap_or(NONE);
            }
        }
        merged
    }

    pub(crate) fn owner(&self, slot: Slot) -> Node {
        self.rows[slot.0 as usize * self.replication]
    }

    pub(crate) fn name(&self, node: Node) -> Option<&'a NodeName> {
        self.names.get(usize::from(node)).copied()
    }

    pub(crate) fn node(&self, name: &Option<NodeName>) -> Option<Node> {
        match name {
            None => Some(NONE),
            Some(name) => self.names.binary_search(&name).ok().map(|index| index as Node),
        }
    }

    /// Makes the successor of `ring` with these members, rows and pins.
    pub(crate) fn successor(
        &self,
        ring: &Ring,
        members: Vec<Member>,
        rows: &[Node],
        pins: Vec<Slot>,
    ) -> Result<Ring, Error> {
        Ring::from_parts(
            ring.options,
            ring.epoch.next()?,
            members,
            self.renumber(rows),
            pins,
        )
    }

    /// Converts rows to a ring's table, in the numbers of the target. If a row still contains a
    /// node that is not in the target, the cell becomes [`NONE`]. The new ring then fails its
    /// check, or has another digest than the plan states.
    fn renumber(&self, rows: &[Node]) -> Vec<Node> {
        let numbers: Vec<Node> = self.target.iter().map(|target| target.unwrap_or(NONE)).collect();
        let mut cells = Vec::with_capacity(rows.len());
        for column in 0..self.replication {
            let of_column = rows.iter().skip(column).step_by(self.replication);
            cells.extend(of_column.map(|&node| numbers.get(usize::from(node)).copied().unwrap_or(NONE)));
        }
        cells
    }
}
