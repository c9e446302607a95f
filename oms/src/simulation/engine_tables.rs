//! The tables of a cluster in the simulated engine: a row with the state, and a row for each node.
//!
//! **Invariants**
//! - A statement sees the rows as they were when it began. It locks the newest version of its row,
//!   and checks its conditions again on that version.
//! - So a beat that waited returns the later of two versions: `must_know` as of its write, and the
//!   version of the state as of its begin.
//!
//! Deliberately absent: the statements of clients (`engine_membership`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::engine::beat::Beat;
use crate::cluster::engine::tables::Look;
use crate::cluster::{ClusterState, NodeInfo};
use crate::simulation::engine_server::{Change, Version, Write, is_locked, visible};

/// The row of a node.
#[derive(Clone, Debug)]
pub(super) struct NodeRow {
    pub(super) beat: Beat,
    pub(super) card: Option<NodeInfo>,
    /// The version of the state that the node must know before a beat extends its lease.
    must_know: u64,
}

/// The row with the cluster's state.
#[derive(Clone, Debug)]
pub(super) struct ClusterRow {
    pub(super) state: Arc<ClusterState>,
    pub(super) coordinator: String,
    pub(super) secret: String,
}

/// A write to the tables.
#[derive(Clone, Debug)]
pub(super) enum TableChange {
    /// The new row of a node; `None` for a deletion.
    Node(String, Option<NodeRow>),
    Cluster(ClusterRow),
    /// A commit without a change of data.
    Probe,
}

/// A statement that writes to the tables. The name of its node is passed with the statement.
#[derive(Clone, Debug)]
pub(super) enum TableStatement {
    Beat {
        beat: Beat,
        card: Option<NodeInfo>,
    },
    Demand {
        last: Beat,
        version: u64,
    },
    AddNode {
        incarnation: i64,
    },
    ReplaceNode {
        former: Beat,
        incarnation: i64,
    },
    RemoveNode {
        last: Beat,
    },
    NextState {
        state: Arc<ClusterState>,
        coordinator: String,
        former: String,
    },
    Probe,
}

/// The rows of one server. Each row has at most one version that waits for a standby, and the last
/// version before that one. Older versions are not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    nodes: BTreeMap<String, Vec<Version<Option<NodeRow>>>>,
    cluster: Vec<Version<ClusterRow>>,
    probes: Vec<Version<()>>,
}

fn add<T>(versions: &mut Vec<Version<T>>, at: usize, value: T) {
    if versions.len() > 1 {
        versions.remove(0);
    }
    versions.push(Version { at, value });
}

impl Tables {
    pub(super) fn make(&mut self, at: usize, change: &TableChange) {
        match change {
            TableChange::Node(name, row) => {
                add(self.nodes.entry(name.clone()).or_default(), at, row.clone());
            }
            TableChange::Cluster(row) => add(&mut self.cluster, at, row.clone()),
            TableChange::Probe => add(&mut self.probes, at, ()),
        }
    }

    fn versions(&self, name: &str) -> &[Version<Option<NodeRow>>] {
        self.nodes.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the visible row of a node.
    pub(super) fn node(&self, waiting: &BTreeSet<usize>, name: &str) -> Option<&NodeRow> {
        visible(self.versions(name), waiting)?.as_ref()
    }

    /// Returns the visible row with the state.
    pub(super) fn cluster(&self, waiting: &BTreeSet<usize>) -> Option<&ClusterRow> {
        visible(&self.cluster, waiting)
    }

    pub(super) fn has_state(&self) -> bool {
        !self.cluster.is_empty()
    }

    pub(super) fn is_state_locked(&self, waiting: &BTreeSet<usize>) -> bool {
        is_locked(&self.cluster, waiting)
    }

    /// Returns the result of a look: the version of the state, the coordinator, and the beats and
    /// descriptions (`NodeInfo`) of all nodes. The result is empty before the first state.
    pub(super) fn look(&self, waiting: &BTreeSet<usize>) -> Look {
        let mut look = Look::default();
        let Some(cluster) = self.cluster(waiting) else {
            return look;
        };
        look.version = cluster.state.version;
        look.coordinator.clone_from(&cluster.coordinator);
        for name in self.nodes.keys() {
            let Some(row) = self.node(waiting, name) else {
                continue;
            };
            look.beats.insert(name.clone(), row.beat.clone());
            if let Some(card) = &row.card {
                look.cards.insert(name.clone(), card.clone());
            }
        }
        look
    }

    /// Finds the row of a statement. Returns `None` if the statement affects no row. Otherwise
    /// returns the version of the state that the statement sees.
    pub(super) fn begin(
        &self,
        waiting: &BTreeSet<usize>,
        name: &str,
        statement: &TableStatement,
    ) -> Option<u64> {
        let cluster = self.cluster(waiting);
        let finds = match statement {
            TableStatement::AddNode { .. } | TableStatement::Probe => true,
            TableStatement::NextState { state, former, .. } => {
                cluster.is_some_and(|row| row.is_before(state, former))
            }
            statement => self.node(waiting, name).is_some_and(|row| row.fits(statement)),
        };
        finds.then(|| cluster.map_or(0, |row| row.state.version))
    }

    /// Returns the change that a statement makes, and the number in its reply. For a beat, the
    /// number is the version that the beat returns. `seen` is the result of `begin`.
    pub(super) fn change(
        &self,
        waiting: &BTreeSet<usize>,
        name: &str,
        statement: &TableStatement,
        seen: u64,
    ) -> Result<(Change, u64), Write> {
        if let TableStatement::Probe = statement {
            let is_free = !is_locked(&self.probes, waiting);
            let probe = (Change::Table(TableChange::Probe), 1);
            return is_free.then_some(probe).ok_or(Write::Locked);
        }
        if let TableStatement::NextState {
            state,
            coordinator,
            former,
        } = statement
        {
            if is_locked(&self.cluster, waiting) {
                return Err(Write::Locked);
            }
            let newest = self.cluster.last().map(|version| &version.value);
            let newest = newest.filter(|row| row.is_before(state, former));
            let mut row = newest.ok_or(Write::NoRow)?.clone();
            row.state = Arc::clone(state);
            row.coordinator.clone_from(coordinator);
            return Ok((Change::Table(TableChange::Cluster(row)), 1));
        }
        if is_locked(self.versions(name), waiting) {
            return Err(Write::Locked);
        }
        let newest = self.versions(name).last();
        let newest = newest.and_then(|version| version.value.clone());
        let change = |row| Change::Table(TableChange::Node(name.to_owned(), row));
        if let TableStatement::AddNode { incarnation } = statement {
            if newest.is_some() {
                return Err(Write::NoRow);
            }
            return Ok((change(Some(NodeRow::first(*incarnation, 0))), 1));
        }
        let mut row = newest.filter(|row| row.fits(statement)).ok_or(Write::NoRow)?;
        Ok(match statement {
            TableStatement::Beat { beat, card } => {
                row.beat = beat.clone();
                row.card.clone_from(card);
                let version = row.must_know.max(seen);
                (change(Some(row)), version)
            }
            TableStatement::Demand { version, .. } => {
                row.must_know = row.must_know.max(*version);
                (change(Some(row)), 1)
            }
            TableStatement::ReplaceNode { incarnation, .. } => {
                (change(Some(NodeRow::first(*incarnation, row.must_know))), 1)
            }
            _ => (change(None), 1),
        })
    }
}

impl NodeRow {
    fn first(incarnation: i64, must_know: u64) -> NodeRow {
        NodeRow {
            beat: Beat {
                incarnation,
                number: 1,
            },
            card: None,
            must_know,
        }
    }

    /// Returns `true` if this row meets the conditions of a statement.
    fn fits(&self, statement: &TableStatement) -> bool {
        match statement {
            TableStatement::Beat { beat, .. } => self.beat.incarnation == beat.incarnation,
            TableStatement::Demand { last, .. } | TableStatement::RemoveNode { last } => self.beat == *last,
            TableStatement::ReplaceNode { former, .. } => self.beat == *former,
            _ => false,
        }
    }
}

impl ClusterRow {
    /// Returns `true` if `next` has the version after this row's state, and `former` is this row's
    /// coordinator.
    fn is_before(&self, next: &ClusterState, former: &str) -> bool {
        self.state.version + 1 == next.version && self.coordinator == former
    }
}
