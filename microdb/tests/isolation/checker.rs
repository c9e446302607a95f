//! A checker of strict serializability that is independent of the engine.
//!
//! A [`History`] has the operations as seen by their callers, and the order of the commits. The
//! order may come from any source: if the checker finds no fault, the order proves that the history
//! is strictly serializable.
//!
//! 1. Each committed write is in the order, and no refused write is. Each value that was read was
//!    committed.
//! 2. Commits are ordered as in real time. For each operation without a commit, the checker finds
//!    the earliest point between two commits at which its reads hold. The point must not be before
//!    an operation that ended before this operation began, nor after the commit of an operation
//!    that began after this operation had ended.
//! 3. The graph of dependencies has no cycle (Adya 1999; Elle, Kingsbury and Alvaro 2020). There is
//!    an edge from A to B if A wrote a version that B read (*wr*) or replaced (*ww*), if A read a
//!    version that B replaced (*rw*), or if A ended before B began (*real time*).
//!
//! A value is written once in a history, so a read of a value identifies its version. A read that
//! found the key absent, or that only found it present, does not. The version of such a read is
//! chosen by the point of its operation.
//!
//! A batch becomes visible to point reads key by key. So a point read may see a batch of several
//! keys *early*: a later point read of another key may miss this batch, but no commit before it.
//! The checker does not order these two reads.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fmt::Write as _;

/// Id of a table and number of a key in it.
pub(crate) type Key = (u32, u8);

/// Result of reading a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Value(u64),
    Absent,
    /// The key exists, and the caller does not know its value.
    Present,
}

/// An operation as seen by its caller: one atomic step at some time between `begin` and `end`.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) name: String,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    pub(crate) reads: Vec<(Key, Seen)>,
    /// `true` for a read of one key by `get`, `contains_key` or `multi_get` of a table, outside of
    /// snapshots and transactions.
    pub(crate) is_point_read: bool,
    /// The last write of each key; `None` stands for absence. A clear writes absence to each key of
    /// its table.
    pub(crate) writes: Vec<(Key, Option<u64>)>,
    /// `true` if the operation was acknowledged. A refused operation must have no effect.
    pub(crate) committed: bool,
}

/// Operations and the order of their commits, as described in the module's header.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) ops: Vec<Op>,
    /// Indices into `ops` of the operations with writes, in the order of their commits.
    pub(crate) order: Vec<usize>,
}

/// Numbers of operations, commits and dependencies in a history without faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) operations: usize,
    pub(crate) commits: usize,
    pub(crate) dependencies: usize,
}

#[derive(Clone, Copy, Debug)]
struct Version {
    /// Number of the commit that wrote this version, from 1; 0 for the state before all commits.
    position: usize,
    writer: Option<usize>,
    value: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Why {
    /// The first operation wrote the version that the second one read.
    Read(Key),
    /// The first operation wrote the version that the second one replaced.
    Replaced(Key),
    /// The first operation read the version that the second one replaced.
    Overwritten(Key),
    /// The first operation ended before the second one began. Edges from and to the nodes for ends
    /// of operations have this reason too.
    RealTime,
}

struct Checker<'a> {
    history: &'a History,
    /// For each operation, the number of its commit; 0 for an operation without a commit.
    positions: Vec<usize>,
    versions: HashMap<Key, Vec<Version>>,
    /// Edges by node. The first nodes are the operations. The other nodes are extra nodes for ends
    /// of operations.
    edges: Vec<Vec<(usize, Why)>>,
    /// For each operation, its key if it is a point read and if the last commit before its point
    /// wrote the version that it read, in a batch of several keys. Point reads of other keys may
    /// see this batch later.
    early: Vec<Option<Key>>,
    faults: Vec<String>,
}

const INITIAL: [Version; 1] = [Version {
    position: 0,
    writer: None,
    value: None,
}];

/// Checks a history. Returns its counts.
///
/// # Errors
/// A readable list of the last twelve faults, if there are any faults.
pub(crate) fn check(history: &History) -> Result<Summary, String> {
    let mut checker = Checker {
        history,
        positions: vec![0; history.ops.len()],
        versions: HashMap::new(),
        edges: vec![Vec::new(); history.ops.len()],
        early: vec![None; history.ops.len()],
        faults: Vec::new(),
    };
    checker.order();
    checker.order_is_in_real_time();
    checker.dependencies();
    let dependencies = checker.edges.iter().map(Vec::len).sum();
    checker.real_time();
    if let Some(cycle) = checker.cycle() {
        checker.faults.push(cycle);
    }
    if checker.faults.is_empty() {
        return Ok(Summary {
            operations: history.ops.len(),
            commits: history.order.len(),
            dependencies,
        });
    }
    let (shown, all) = (checker.faults.len().min(12), checker.faults.len());
    Err(format!(
        "{all} faults, of which the last {shown}:\n{}",
        checker.faults[all - shown..].join("\n")
    ))
}

fn name(key: Key) -> String {
    format!("t{}/k{}", key.0, key.1)
}

impl Checker<'_> {
    fn describe(&self, index: usize) -> String {
        let op = &self.history.ops[index];
        format!("#{index} {} [{}..{}]", op.name, op.begin, op.end)
    }

    fn versions(&self, key: Key) -> &[Version] {
        self.versions.get(&key).map_or(&INITIAL, Vec::as_slice)
    }

    /// Numbers the commits, lists the versions of each key, and checks that the order has exactly
    /// the acknowledged writes.
    fn order(&mut self) {
        for (before, index) in self.history.order.iter().enumerate() {
            let (op, position) = (&self.history.ops[*index], before + 1);
            if !op.committed {
                let fault = format!("{} was refused, and is committed", self.describe(*index));
                self.faults.push(fault);
            }
            self.positions[*index] = position;
            for (key, value) in &op.writes {
                let versions = self.versions.entry(*key).or_insert_with(|| INITIAL.to_vec());
                versions.push(Version {
                    position,
                    writer: Some(*index),
                    value: *value,
                });
            }
        }
        for (index, op) in self.history.ops.iter().enumerate() {
            if op.committed && !op.writes.is_empty() && self.positions[index] == 0 {
                let fault = format!("{} was acknowledged, and is not committed", self.describe(index));
                self.faults.push(fault);
            }
        }
    }

    /// Checks that the order of the commits does not contradict real time.
    fn order_is_in_real_time(&mut self) {
        let ops = &self.history.ops;
        let mut by_begin = self.history.order.clone();
        by_begin.sort_unstable_by_key(|index| ops[*index].begin);
        let mut by_end = by_begin.clone();
        by_end.sort_unstable_by_key(|index| ops[*index].end);
        let (mut ended, mut last) = (0, None);
        for index in by_begin {
            while let Some(earlier) = by_end.get(ended).filter(|it| ops[**it].end < ops[index].begin) {
                last = last.max(Some((self.positions[*earlier], *earlier)));
                ended += 1;
            }
            if let Some((position, earlier)) = last.filter(|(position, _)| *position > self.positions[index])
            {
                let (later, earlier) = (self.describe(index), self.describe(earlier));
                let at = self.positions[index];
                let fault =
                    format!("{earlier} ended before {later} began, and its commit {position} is behind {at}");
                self.faults.push(fault);
            }
        }
    }

    /// Finds the version that each read saw, and adds the edges *wr*, *ww* and *rw* between the
    /// operations.
    fn dependencies(&mut self) {
        let keys: Vec<Key> = self.versions.keys().copied().collect();
        for key in keys {
            let writers: Vec<_> = self.versions(key).iter().filter_map(|it| it.writer).collect();
            for pair in writers.windows(2) {
                self.edges[pair[0]].push((pair[1], Why::Replaced(key)));
            }
        }
        let moments = self.moments();
        for (index, moment) in moments.into_iter().enumerate() {
            let op = &self.history.ops[index];
            // Reads of refused operations are included, because they must not see a state that
            // never existed.
            for (key, seen) in op.reads.clone() {
                if let Some(version) = self.version_of(index, key, seen, moment) {
                    self.add_read(index, key, version);
                }
            }
        }
    }

    fn add_read(&mut self, index: usize, key: Key, version: usize) {
        let versions = self.versions(key);
        let (writer, next) = (
            versions[version].writer,
            versions.get(version + 1).and_then(|next| next.writer),
        );
        if let Some(writer) = writer.filter(|writer| *writer != index) {
            self.edges[writer].push((index, Why::Read(key)));
        }
        if let Some(next) = next.filter(|next| *next != index) {
            self.edges[index].push((next, Why::Overwritten(key)));
        }
    }

    /// Returns the index of the version that a read saw. If no version fits, adds a fault and
    /// returns `None`.
    fn version_of(&mut self, index: usize, key: Key, seen: Seen, moment: usize) -> Option<usize> {
        let versions = self.versions(key);
        let now = versions.partition_point(|it| it.position <= moment) - 1;
        if holds(versions[now], seen) {
            return Some(now);
        }
        let found = match seen {
            Seen::Value(_) => versions.iter().position(|it| holds(*it, seen)),
            // The nearest version that fits: the last one at or before `moment`, else the first one
            // after it.
            _ => versions[..=now]
                .iter()
                .rposition(|it| holds(*it, seen))
                .or_else(|| versions.iter().position(|it| holds(*it, seen))),
        };
        if found.is_none() {
            let what = format!(
                "{} read {} = {seen:?}, which nobody committed",
                self.describe(index),
                name(key)
            );
            self.faults.push(what);
        }
        found
    }

    /// Returns, for each operation, the number of commits before its own commit or, without a
    /// commit, before the point at which its reads hold. If there is no such point, adds a fault.
    /// Also fills `early`.
    fn moments(&mut self) -> Vec<usize> {
        let history = self.history;
        let mut moments: Vec<usize> = self.positions.iter().map(|it| it.saturating_sub(1)).collect();
        let ops = &history.ops;
        let mut by_begin: Vec<usize> = (0..ops.len()).collect();
        by_begin.sort_unstable_by_key(|index| ops[*index].begin);
        // For each position in `by_begin`: the smallest commit number of the operations from that
        // position on.
        let mut first_commits = vec![usize::MAX; by_begin.len() + 1];
        for (at, index) in by_begin.iter().enumerate().rev() {
            let own = Some(self.positions[*index]).filter(|position| *position > 0);
            first_commits[at] = own.unwrap_or(usize::MAX).min(first_commits[at + 1]);
        }
        let (mut running, mut floors) = (
            BinaryHeap::<Reverse<(u64, usize, Option<Key>)>>::new(),
            Floors::default(),
        );
        for index in &by_begin {
            let op = &ops[*index];
            while let Some(Reverse((_, sees, early))) = running
                .peek()
                .filter(|Reverse((end, ..))| *end < op.begin)
                .copied()
            {
                floors.raise(sees, early);
                running.pop();
            }
            if self.positions[*index] > 0 {
                running.push(Reverse((op.end, self.positions[*index], None)));
                continue;
            }
            let floor = floors.of(op);
            let later = by_begin.partition_point(|other| ops[*other].begin <= op.end);
            let bound = first_commits[later].saturating_sub(1).min(history.order.len());
            let moment = self.earliest_moment(&op.reads, floor);
            moments[*index] = match moment {
                Some(moment) if moment <= bound => moment,
                _ => {
                    let what = format!(
                        "{} fits no moment between commit {floor} and {bound}: {}",
                        self.describe(*index),
                        self.show_reads(&op.reads, floor)
                    );
                    self.faults.push(what);
                    floor.min(bound)
                }
            };
            self.early[*index] = self.key_seen_early(op, moments[*index]);
            running.push(Reverse((op.end, moments[*index], self.early[*index])));
        }
        moments
    }

    /// Returns the key of a point read at `moment` if its version was written by commit number
    /// `moment`, and this commit wrote further keys. Returns `None` for any other operation.
    fn key_seen_early(&self, op: &Op, moment: usize) -> Option<Key> {
        let (key, _) = *op.reads.first().filter(|_| op.is_point_read)?;
        let writer = self
            .versions(key)
            .iter()
            .find(|version| version.position == moment)?
            .writer?;
        (self.history.ops[writer].writes.len() > 1).then_some(key)
    }

    /// Returns a text with each read that does not hold at `moment`, and the versions around that
    /// point.
    fn show_reads(&self, reads: &[(Key, Seen)], moment: usize) -> String {
        let mut text = String::new();
        for (key, seen) in reads {
            let versions = self.versions(*key);
            let now = versions.partition_point(|it| it.position <= moment) - 1;
            if holds(versions[now], *seen) {
                continue;
            }
            let _ = write!(text, "\n    {} = {seen:?}; versions:", name(*key));
            for version in &versions[now.saturating_sub(1)..versions.len().min(now + 3)] {
                let writer = version
                    .writer
                    .map_or_else(String::new, |writer| self.describe(writer));
                let _ = write!(text, " {}: {:?} {writer};", version.position, version.value);
            }
        }
        text
    }

    /// Returns the first point at or after `from` at which all reads hold. `None` if there is none.
    fn earliest_moment(&self, reads: &[(Key, Seen)], from: usize) -> Option<usize> {
        let mut moment = from;
        loop {
            let mut moved = false;
            for (key, seen) in reads {
                let versions = self.versions(*key);
                let now = versions.partition_point(|it| it.position <= moment) - 1;
                let next = now + versions[now..].iter().position(|it| holds(*it, *seen))?;
                if next > now {
                    moment = versions[next].position;
                    moved = true;
                }
            }
            if !moved {
                return Some(moment);
            }
        }
    }

    /// Adds the edges of real time. A point read that saw a batch early is ordered before later
    /// operations of other kinds and later point reads of its own key, but not before point reads
    /// of other keys.
    fn real_time(&mut self) {
        let ops = &self.history.ops;
        let all: Vec<usize> = (0..ops.len()).collect();
        let (point_reads, others): (Vec<_>, Vec<_>) =
            all.iter().copied().partition(|index| ops[*index].is_point_read);
        let (early, punctual): (Vec<_>, Vec<_>) = all
            .iter()
            .copied()
            .partition(|index| self.early[*index].is_some());
        let mut early_by_key = HashMap::<Key, Vec<usize>>::new();
        for index in early {
            early_by_key.entry(ops[index].reads[0].0).or_default().push(index);
        }
        self.add_chain(all, &others);
        self.add_chain(punctual, &point_reads);
        for (key, early) in early_by_key {
            let of_key = point_reads
                .iter()
                .copied()
                .filter(|index| ops[*index].reads[0].0 == key);
            self.add_chain(early, &of_key.collect::<Vec<_>>());
        }
    }

    /// Adds a path from each operation A of `earlier` to each operation of `later` that began after
    /// A had ended. The paths share a chain of extra nodes, one for the end of each operation of
    /// `earlier`, ordered by time.
    fn add_chain(&mut self, mut earlier: Vec<usize>, later: &[usize]) {
        let ops = &self.history.ops;
        earlier.sort_unstable_by_key(|index| ops[*index].end);
        let first = self.edges.len();
        self.edges.resize(first + earlier.len(), Vec::new());
        for (at, index) in earlier.iter().enumerate() {
            self.edges[*index].push((first + at, Why::RealTime));
            if at > 0 {
                self.edges[first + at - 1].push((first + at, Why::RealTime));
            }
        }
        for index in later {
            let ended = earlier.partition_point(|other| ops[*other].end < ops[*index].begin);
            if ended > 0 {
                self.edges[first + ended - 1].push((*index, Why::RealTime));
            }
        }
    }

    /// Returns a description of a shortest cycle through one of the first 64 operations that are on
    /// a cycle; `None` if no operation is.
    fn cycle(&self) -> Option<String> {
        let ops = self.history.ops.len();
        let cyclic = self.nodes_on_cycles();
        let starts = cyclic.iter().filter(|node| **node < ops).take(64);
        let path = starts
            .filter_map(|start| self.path_back(*start))
            .min_by_key(Vec::len)?;
        let mut steps = Vec::new();
        let mut from = None;
        for (node, why) in &path {
            if *node >= ops {
                continue;
            }
            if let Some(from) = from {
                steps.push(self.step(from, *node, *why));
            }
            from = Some(*node);
        }
        Some(format!(
            "a cycle of {} operations:\n  {}",
            steps.len(),
            steps.join("\n  ")
        ))
    }

    fn step(&self, from: usize, to: usize, why: Why) -> String {
        let (from, to) = (self.describe(from), self.describe(to));
        match why {
            Why::Read(key) => format!("{from} wrote {}, which {to} read", name(key)),
            Why::Replaced(key) => format!("{from} wrote {}, which {to} replaced", name(key)),
            Why::Overwritten(key) => format!("{from} read {}, which {to} replaced", name(key)),
            Why::RealTime => format!("{from} ended before {to} began"),
        }
    }

    /// Returns a shortest path from a node to itself, with the reason of each step; `None` if the
    /// node is on no cycle.
    fn path_back(&self, start: usize) -> Option<Vec<(usize, Why)>> {
        let mut came: HashMap<usize, (usize, Why)> = HashMap::new();
        let mut next = VecDeque::from([start]);
        while let Some(node) = next.pop_front() {
            for (to, why) in &self.edges[node] {
                if *to == start {
                    let mut path = vec![(start, *why)];
                    let mut at = node;
                    while at != start {
                        let (before, why) = came[&at];
                        path.push((at, why));
                        at = before;
                    }
                    path.push((start, Why::RealTime));
                    path.reverse();
                    return Some(path);
                }
                if !came.contains_key(to) {
                    came.insert(*to, (node, *why));
                    next.push_back(*to);
                }
            }
        }
        None
    }

    /// Returns the nodes of all strongly connected components with more than one node, by the
    /// algorithm of Tarjan (1972) without recursion.
    fn nodes_on_cycles(&self) -> Vec<usize> {
        const NEW: usize = usize::MAX;
        let count = self.edges.len();
        let (mut index, mut low) = (vec![NEW; count], vec![0; count]);
        let (mut stack, mut on_stack, mut next) = (Vec::new(), vec![false; count], 0);
        let mut cyclic = Vec::new();
        for root in 0..count {
            if index[root] != NEW {
                continue;
            }
            let mut calls = vec![(root, 0)];
            while let Some((node, edge)) = calls.pop() {
                if edge == 0 {
                    (index[node], low[node]) = (next, next);
                    next += 1;
                    stack.push(node);
                    on_stack[node] = true;
                }
                if let Some((to, _)) = self.edges[node].get(edge) {
                    calls.push((node, edge + 1));
                    if index[*to] == NEW {
                        calls.push((*to, 0));
                    } else if on_stack[*to] {
                        low[node] = low[node].min(index[*to]);
                    }
                    continue;
                }
                if low[node] == index[node] {
                    let from = stack.iter().rposition(|it| *it == node).unwrap();
                    let component = stack.split_off(from);
                    component.iter().for_each(|it| on_stack[*it] = false);
                    if component.len() > 1 {
                        cyclic.extend(component);
                    }
                }
                if let Some((parent, _)) = calls.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
            }
        }
        cyclic.sort_unstable();
        cyclic
    }
}

/// Minimum numbers of commits that an operation must see, because of operations that ended before
/// the operation began.
#[derive(Default)]
struct Floors {
    /// Minimum number of commits that a point read of any key must see.
    point_reads: usize,
    /// Minimum number of commits that a point read of the given key must see, if above
    /// `point_reads`.
    by_key: HashMap<Key, usize>,
    /// Minimum number of commits that an operation must see if it is no point read.
    others: usize,
}

impl Floors {
    /// Raises the minimums because of an operation that has ended. `sees` is the number of commits
    /// that the operation saw. If it was a point read that saw the last of these commits early,
    /// `early` is the key.
    fn raise(&mut self, sees: usize, early: Option<Key>) {
        self.others = self.others.max(sees);
        let Some(key) = early else {
            self.point_reads = self.point_reads.max(sees);
            return;
        };
        self.point_reads = self.point_reads.max(sees - 1);
        let of_key = self.by_key.entry(key).or_default();
        *of_key = sees.max(*of_key);
    }

    fn of(&self, op: &Op) -> usize {
        match op.reads.first().filter(|_| op.is_point_read) {
            Some((key, _)) => self
                .by_key
                .get(key)
                .map_or(self.point_reads, |it| self.point_reads.max(*it)),
            None => self.others,
        }
    }
}

fn holds(version: Version, seen: Seen) -> bool {
    match seen {
        Seen::Value(value) => version.value == Some(value),
        Seen::Absent => version.value.is_none(),
        Seen::Present => version.value.is_some(),
    }
}
