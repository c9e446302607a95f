//! Two rings side by side: the one that a plan starts from, and the members that it leads to.
//!
//! A ring numbers its members by name and keeps its table column by column, for look-ups. Whoever plans needs one numbering
//! for the members of both rings, and all of a slot's replicas together. So here the table is renumbered and turned on
//! the way in, and on the way out again.

use alloc::vec;
use alloc::vec::Vec;

use crate::ring::{NONE, Node};
use crate::{Error, Member, NodeName, Ring, Slot};

/// The nodes of two rings numbered together, by name, and the older ring's table in these numbers, turned: a row of
/// replicas for each slot, since whoever plans looks at all of a slot's replicas together.
pub(crate) struct Union<'a> {
    pub(crate) names: Vec<&'a NodeName>,
    /// For each node its number in the target, if it is there.
    pub(crate) target: Vec<Option<Node>>,
    /// For each node its member, the target's if there is one.
    pub(crate) members: Vec<&'a Member>,
    /// For each node its weight in the older ring, if it is there.
    pub(crate) old: Vec<Option<u32>>,
    /// How many cells a row has.
    pub(crate) replication: usize,
    pub(crate) rows: Vec<Node>,
}

impl<'a> Union<'a> {
    pub(crate) fn of(ring: &'a Ring, target: &'a [Member]) -> Union<'a> {
        let mut union = Union {
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
            let number = union.names.len() as Node;
            let member = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(a), Some((_, b))) if a.name() < b.name() => *a,
                (Some(a), None) => *a,
                (_, Some((_, b))) => *b,
            };
            let in_old = old.next_if(|a| a.name() == member.name());
            numbers.extend(in_old.map(|_| number));
            union.old.push(in_old.map(Member::weight));
            let in_target = new
                .next_if(|(_, b)| b.name() == member.name())
                .map(|(index, _)| index as Node);
            union.names.push(member.name());
            union.target.push(in_target);
            union.members.push(if let Some(index) = in_target {
                &target[usize::from(index)]
            } else {
                member
            });
        }
        let columns = ring.cells.chunks_exact(ring.options.slots as usize);
        for (column, cells) in columns.enumerate() {
            for (row, &node) in union.rows.chunks_exact_mut(union.replication).zip(cells) {
                row[column] = numbers.get(usize::from(node)).copied().unwrap_or(NONE);
            }
        }
        union
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

    /// The ring after `ring`, with these members and rows.
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

    /// Rows as a ring's table, in the target's own numbers. A node that is not in the target becomes nobody, which a
    /// ring's check then finds.
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
