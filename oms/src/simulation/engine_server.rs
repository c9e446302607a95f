//! One server of the simulated engine: its rows, the changes that it replicates, and the effect of
//! a statement.
//!
//! **Invariants**
//! - A change that waits for a standby is invisible to reads, and its row is locked for other
//!   writes. Exceptions: the rows of a checkpoint, and the removals of `Trim` and `Remove`, are
//!   visible at once. `Trim` and `Remove` lock nothing.
//! - A statement on the cluster's tables finds its row as it was when the statement began. Before
//!   the write, it checks its conditions again on the newest version of the row, as PostgreSQL
//!   does.
//! - An append checks the epoch of the volume and the previous entry when it begins. At its write,
//!   it only checks that its number is free. Other statements about a volume check their conditions
//!   at the write.
//!
//! Deliberately absent: time, faults and the waits for standbys (`engine`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::runtime::seeded::seeded;
use crate::simulation::engine_tables::{ClusterRow, TableChange, TableStatement, Tables};
use crate::storage::log::{Entry, EntryHead, Head, LastWords, Position};

/// The engine's record of a volume, with the node that took the volume over last. The name is empty
/// before the first takeover, and once that node has released the volume.
#[derive(Clone, Debug)]
pub(super) struct OwnedHead {
    pub(super) head: Head,
    pub(super) owner: String,
}

/// A write, as the servers replicate it.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Volume {
        volume: String,
        head: OwnedHead,
    },
    /// Creates a volume, and removes rows and entries that a removed volume of the name has left.
    Create {
        volume: String,
    },
    Append {
        volume: String,
        entry: Entry,
    },
    Checkpoint {
        volume: String,
        kept_from: u64,
        words: Arc<LastWords>,
    },
    Trim {
        volume: String,
        after: u64,
        last: u64,
    },
    Remove {
        volume: String,
    },
    /// The first state of a cluster, and its first volume.
    First {
        volume: String,
        row: ClusterRow,
    },
    Table(TableChange),
}

/// A version of a row, with the index of the change that wrote it.
#[derive(Clone, Debug)]
pub(super) struct Version<T> {
    pub(super) at: usize,
    pub(super) value: T,
}

/// Returns the newest version that does not wait for a standby.
pub(super) fn visible<'a, T>(versions: &'a [Version<T>], waiting: &BTreeSet<usize>) -> Option<&'a T> {
    let mut newest_first = versions.iter().rev();
    let found = newest_first.find(|version| !waiting.contains(&version.at));
    found.map(|version| &version.value)
}

/// Returns `true` if the newest version waits for a standby.
pub(super) fn is_locked<T>(versions: &[Version<T>], waiting: &BTreeSet<usize>) -> bool {
    let newest = versions.last();
    newest.is_some_and(|version| waiting.contains(&version.at))
}

fn created() -> OwnedHead {
    let head = Head {
        epoch: 0,
        kept_from: 1,
    };
    OwnedHead {
        head,
        owner: String::new(),
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    heads: BTreeMap<String, Vec<Version<OwnedHead>>>,
    entries: BTreeMap<(String, u64), Version<Entry>>,
    pub(super) rows: BTreeMap<(String, u8, Vec<u8>), Vec<u8>>,
    pub(super) tables: Tables,
}

impl Data {
    fn add_head(&mut self, at: usize, volume: &str, value: OwnedHead) {
        let versions = self.heads.entry(volume.to_owned()).or_default();
        versions.push(Version { at, value });
    }

    fn remove(&mut self, volume: &str) {
        self.heads.remove(volume);
        self.entries.retain(|(of, _), _| of != volume);
        self.rows.retain(|(of, ..), _| of != volume);
    }

    fn make(&mut self, at: usize, change: &Change) {
        match change {
            Change::Volume { volume, head } => self.add_head(at, volume, head.clone()),
            Change::Create { volume } => {
                self.remove(volume);
                self.add_head(at, volume, created());
            }
            Change::Append { volume, entry } => {
                let value = entry.clone();
                self.entries
                    .insert((volume.clone(), entry.seq), Version { at, value });
            }
            Change::Checkpoint {
                volume,
                kept_from,
                words,
            } => {
                for (table, key, value) in &words.puts {
                    self.rows
                        .insert((volume.clone(), *table as u8, key.clone()), value.clone());
                }
                for (table, key) in &words.deletes {
                    self.rows.remove(&(volume.clone(), *table as u8, key.clone()));
                }
                let newest = self.heads.get(volume).and_then(|versions| versions.last());
                if let Some(mut value) = newest.map(|version| version.value.clone()) {
                    value.head.kept_from = *kept_from;
                    self.add_head(at, volume, value);
                }
            }
            Change::Trim { volume, after, last } => {
                self.entries
                    .retain(|(of, seq), _| of != volume || seq <= after || seq > last);
            }
            Change::Remove { volume } => self.remove(volume),
            Change::First { volume, row } => {
                self.tables.make(at, &TableChange::Cluster(row.clone()));
                if !self.heads.contains_key(volume) {
                    self.add_head(at, volume, created());
                }
            }
            Change::Table(change) => self.tables.make(at, change),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    /// A copy of the server with this index. `None` while the standby is cut off.
    Standby(Option<usize>),
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) role: Role,
    pub(super) is_up: bool,
    /// `true` for a standby that receives no changes now.
    pub(super) is_paused: bool,
    /// A number that grows whenever the server ends, restarts or is reset. A statement ends without
    /// an answer if the number has grown since the statement began.
    pub(super) start: u64,
    pub(super) changes: Vec<Arc<Change>>,
    pub(super) data: Data,
    /// Indexes of changes of this server that wait for a standby. Most of these changes are
    /// invisible (see the invariants of this module).
    pub(super) waiting: BTreeSet<usize>,
    /// Indexes of changes that waited for a standby until the wait was cancelled.
    pub(super) cancelled: BTreeSet<usize>,
}

impl Server {
    pub(super) fn new(role: Role) -> Server {
        Server {
            role,
            is_up: true,
            is_paused: false,
            start: 0,
            changes: Vec::new(),
            data: Data::default(),
            waiting: BTreeSet::new(),
            cancelled: BTreeSet::new(),
        }
    }

    pub(super) fn write(&mut self, change: Arc<Change>) -> usize {
        let at = self.changes.len();
        self.data.make(at, &change);
        self.changes.push(change);
        at
    }

    /// Replaces the changes of this server by `changes`, and its data by their result. All its
    /// statements end.
    pub(super) fn reset_to(&mut self, changes: Vec<Arc<Change>>) {
        self.start += 1;
        self.data = Data::default();
        for (at, change) in changes.iter().enumerate() {
            self.data.make(at, change);
        }
        self.changes = changes;
        self.waiting.clear();
        self.cancelled.clear();
    }

    /// Restarts the server after a crash. All statements end, and every change becomes visible.
    pub(super) fn restart(&mut self) {
        self.start += 1;
        self.waiting.clear();
        self.cancelled.clear();
    }

    fn owned_head(&self, volume: &str) -> Option<&OwnedHead> {
        visible(self.data.heads.get(volume)?, &self.waiting)
    }

    pub(super) fn head(&self, volume: &str) -> Option<Head> {
        self.owned_head(volume).map(|owned| owned.head)
    }

    /// Returns the name of the owner of a volume. Empty if the volume has no owner or does not
    /// exist.
    pub(super) fn owner(&self, volume: &str) -> String {
        let owned = self.owned_head(volume);
        owned.map(|owned| owned.owner.clone()).unwrap_or_default()
    }

    pub(super) fn entry(&self, volume: &str, seq: u64) -> Option<Entry> {
        let version = self.data.entries.get(&(volume.to_owned(), seq))?;
        (!self.waiting.contains(&version.at)).then(|| version.value.clone())
    }

    pub(super) fn entries(&self, volume: &str) -> impl DoubleEndedIterator<Item = &Entry> {
        let all = self
            .data
            .entries
            .range((volume.to_owned(), 0)..=(volume.to_owned(), u64::MAX));
        all.filter(|(_, version)| !self.waiting.contains(&version.at))
            .map(|(_, version)| &version.value)
    }

    /// Checks the conditions that a statement checks when it begins. Returns `None` if the
    /// statement affects no row. Otherwise returns the version of the cluster's state that it sees,
    /// or 0 for a statement about a volume.
    pub(super) fn begin(&self, name: &str, statement: &Statement) -> Option<u64> {
        match statement {
            Statement::Append { entry, behind } => {
                let is_owner = self.head(name).is_some_and(|head| head.epoch == entry.epoch);
                let is_behind = behind.is_none_or(|(seq, epoch)| {
                    self.entry(name, seq).is_some_and(|before| before.epoch == epoch)
                });
                ((is_owner || seeded("engine-no-fence")) && is_behind).then_some(0)
            }
            Statement::Table(statement) => self.data.tables.begin(&self.waiting, name, statement),
            _ => Some(0),
        }
    }

    /// Tries to write. The caller has called `begin`, and `seen` is its result.
    pub(super) fn try_write(&mut self, name: &str, statement: &Statement, seen: u64) -> Write {
        let change = match statement {
            Statement::Table(statement) => self.data.tables.change(&self.waiting, name, statement, seen),
            Statement::First { row } if !self.data.tables.has_state() => {
                let (volume, row) = (name.to_owned(), row.clone());
                Ok((Change::First { volume, row }, 1))
            }
            Statement::First { .. } if self.data.tables.is_state_locked(&self.waiting) => Err(Write::Locked),
            Statement::First { .. } => Err(Write::NoRow),
            _ => self.change_of_volume(name, statement),
        };
        match change {
            Ok((change, rows)) => {
                let index = self.write(Arc::new(change));
                self.waiting.insert(index);
                Write::Written(index, rows)
            }
            Err(unwritten) => unwritten,
        }
    }

    /// Returns the change that a statement about a volume makes, and the number in its reply.
    fn change_of_volume(&self, volume: &str, statement: &Statement) -> Result<(Change, u64), Write> {
        let versions = self.data.heads.get(volume).map_or(&[][..], Vec::as_slice);
        let newest = versions.last().map(|version| version.value.clone());
        let volume = volume.to_owned();
        if let Statement::Append { entry, .. } = statement {
            let mut entry = entry.clone();
            if seeded("engine-no-fence") {
                entry.seq = self.entries(&volume).next_back().map_or(0, |last| last.seq) + 1;
            }
            return match self.data.entries.get(&(volume.clone(), entry.seq)) {
                Some(version) if self.waiting.contains(&version.at) => Err(Write::Locked),
                Some(_) => Err(Write::NoRow),
                None => Ok((Change::Append { volume, entry }, 1)),
            };
        }
        if is_locked(versions, &self.waiting) {
            return Err(Write::Locked);
        }
        match statement {
            Statement::Create if newest.is_some() => Err(Write::NoRow),
            Statement::Create => Ok((Change::Create { volume }, 1)),
            Statement::Raise { owner, since, until } => {
                let newest = newest.filter(|newest| newest.head.epoch < *until);
                let mut head = newest.ok_or(Write::NoRow)?;
                head.head.epoch = (head.head.epoch + 1).max(*since);
                head.owner.clone_from(owner);
                let epoch = head.head.epoch;
                Ok((Change::Volume { volume, head }, epoch))
            }
            Statement::Release { epoch } => {
                let newest =
                    newest.filter(|newest| newest.head.epoch == *epoch || seeded("engine-late-release"));
                let mut head = newest.ok_or(Write::NoRow)?;
                head.owner.clear();
                Ok((Change::Volume { volume, head }, 1))
            }
            Statement::Checkpoint { from, last, words } => {
                let is_from = newest.is_some_and(|newest| newest.head.kept_from == *from);
                let entry = self.entry(&volume, last.seq);
                let is_same = entry.is_some_and(|entry| EntryHead::of(&entry).position() == Ok(*last));
                if !is_from || !(is_same || seeded("engine-checkpoint-of-another-server")) {
                    return Err(Write::NoRow);
                }
                let (words, kept_from) = (Arc::clone(words), last.seq + 1);
                Ok((
                    Change::Checkpoint {
                        volume,
                        kept_from,
                        words,
                    },
                    1,
                ))
            }
            Statement::Trim { epoch, after, last } => {
                let newest = newest.filter(|newest| newest.head.epoch == *epoch);
                let kept_from = newest.ok_or(Write::NoRow)?.head.kept_from;
                let (after, last) = (*after, (*last).min(kept_from.saturating_sub(2)));
                Ok((Change::Trim { volume, after, last }, 1))
            }
            Statement::Remove { epoch } => match newest {
                Some(newest) if newest.head.epoch == *epoch => Ok((Change::Remove { volume }, 1)),
                _ => Err(Write::NoRow),
            },
            // `try_write` and the begin of this function handle the other statements.
            _ => Err(Write::NoRow),
        }
    }
}

/// A statement that writes. The name of its volume or node is passed with the statement.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    Append {
        entry: Entry,
        behind: Option<(u64, u64)>,
    },
    Create,
    Raise {
        owner: String,
        since: u64,
        until: u64,
    },
    Release {
        epoch: u64,
    },
    Checkpoint {
        from: u64,
        last: Position,
        words: Arc<LastWords>,
    },
    Trim {
        epoch: u64,
        after: u64,
        last: u64,
    },
    Remove {
        epoch: u64,
    },
    /// Writes the first state of a cluster.
    First {
        row: ClusterRow,
    },
    Table(TableStatement),
}

/// The result of one attempt to write.
pub(super) enum Write {
    /// The change with the first number as its index was written. The second number is that of
    /// `Reply::Rows`.
    Written(usize, u64),
    NoRow,
    Locked,
}
