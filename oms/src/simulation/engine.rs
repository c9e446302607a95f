//! A simulated engine in memory: three servers, of which one is the primary and the others are
//! standbys.
//!
//! The engine has the faults of a real engine (PostgreSQL with standbys). The engine loses answers,
//! stalls commits and fails over. The engine also runs two primaries at once, forgets commits that
//! no standby had, and reports success after a cancelled wait for a standby. A statement checks its
//! conditions when it begins and writes later, as at the isolation level "read committed".
//!
//! **Invariants**
//! - A commit is acknowledged once a standby has it. A standby that is promoted has every
//!   acknowledged commit.
//! - A commit that waits for a standby is invisible. A statement that writes the same row waits for
//!   this commit.
//! - A statement continues at the server, even if its client has given up.
//!
//! Deliberately absent: SQL, and reads from standbys.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::runtime::seeded::seeded;
use crate::runtime::simulated::Dice;
use crate::simulation::engine_log::SimLog;
use crate::storage::log::{Entry, Head, LastWords};

/// Longest time for which a statement waits for a row that another statement has locked.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time from the start of a statement to its write, as with the setting
/// `statement_timeout`. The time includes the wait for a locked row. The time excludes the wait for
/// a standby, because a commit that waits for a standby is not cancelled.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest random stall of a statement, in milliseconds. Some statements are written just before
/// `STATEMENT_TIMEOUT`, and some are cancelled.
const STALL_MAX_MS: u64 = 6_000;
pub(super) const SERVERS: usize = 3;

/// A write, as the servers replicate it.
#[derive(Clone, Debug)]
enum Change {
    Volume {
        volume: String,
        head: Head,
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
        last: u64,
    },
    Remove {
        volume: String,
    },
}

/// A version of a row, with the index of the change that wrote it.
#[derive(Clone, Debug)]
struct Version<T> {
    at: usize,
    value: T,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Data {
    heads: BTreeMap<String, Vec<Version<Head>>>,
    entries: BTreeMap<(String, u64), Version<Entry>>,
    pub(super) rows: BTreeMap<(String, u8, Vec<u8>), Vec<u8>>,
}

impl Data {
    fn make(&mut self, at: usize, change: &Change) {
        match change {
            Change::Volume { volume, head } => {
                let versions = self.heads.entry(volume.clone()).or_default();
                versions.push(Version { at, value: *head });
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
                if let Some(versions) = self.heads.get_mut(volume)
                    && let Some(last) = versions.last().map(|version| version.value)
                {
                    let value = Head {
                        kept_from: *kept_from,
                        ..last
                    };
                    versions.push(Version { at, value });
                }
            }
            Change::Trim { volume, last } => {
                self.entries.retain(|(of, seq), _| of != volume || seq > last);
            }
            Change::Remove { volume } => {
                self.heads.remove(volume);
                self.entries.retain(|(of, _), _| of != volume);
                self.rows.retain(|(of, ..), _| of != volume);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    /// The server is a copy of the server with this index. `None` while the standby is cut off.
    Standby(Option<usize>),
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) role: Role,
    pub(super) is_up: bool,
    /// `true` for a standby that receives no changes now.
    is_paused: bool,
    /// Number of starts of the server. A statement ends without an answer if the server has started
    /// again since the statement began.
    start: u64,
    changes: Vec<Arc<Change>>,
    pub(super) data: Data,
    /// Indexes of changes of this server that wait for a standby. These changes are invisible.
    waiting: BTreeSet<usize>,
    /// Indexes of changes that waited for a standby until the wait was cancelled.
    cancelled: BTreeSet<usize>,
}

impl Server {
    fn new(role: Role) -> Server {
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

    fn write(&mut self, change: Arc<Change>) -> usize {
        let at = self.changes.len();
        self.data.make(at, &change);
        self.changes.push(change);
        at
    }

    /// Replaces the changes and data of this server by those of another server.
    fn reset_to(&mut self, changes: Vec<Arc<Change>>) {
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
    fn restart(&mut self) {
        self.start += 1;
        self.waiting.clear();
        self.cancelled.clear();
    }

    pub(super) fn head(&self, volume: &str) -> Option<Head> {
        let versions = self.data.heads.get(volume)?;
        let visible = versions
            .iter()
            .rev()
            .find(|version| !self.waiting.contains(&version.at));
        visible.map(|version| version.value)
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
}

/// A statement that writes.
#[derive(Clone, Debug)]
pub(super) enum Statement {
    Append {
        entry: Entry,
        behind: Option<(u64, u64)>,
    },
    Create,
    Raise {
        since: u64,
        until: u64,
    },
    Checkpoint {
        from: u64,
        to: u64,
        words: Arc<LastWords>,
    },
    Trim {
        last: u64,
    },
    Remove,
}

/// The result of a statement at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The statement affected this number of rows. For `Statement::Raise`, the number is the new
    /// epoch.
    Rows(u64),
    /// The statement affected this number of rows, but its wait for a standby was cancelled.
    Warned(u64),
    /// The statement was cancelled before its write, because of a timeout.
    Cancelled,
}

/// The result of one attempt to write.
enum Write {
    Written(usize, u64),
    NoRow,
    Locked,
}

pub(super) struct Inside {
    pub(super) servers: Vec<Server>,
    is_failing_over: bool,
    /// Number of lost messages per thousand.
    loss: u64,
    /// Number of statements per thousand that are stalled for 100 ms to `STALL_MAX_MS`.
    stalls: u64,
    /// Time for which the next write is stalled, if set.
    stalls_next: Option<Duration>,
}

/// The simulated engine.
pub(crate) struct SimEngine {
    inside: Mutex<Inside>,
    /// Wakes waiting statements in the order in which they began to wait. A watch channel would
    /// wake the statements in random order.
    changed: Notify,
    dice: Dice,
}

impl SimEngine {
    pub(crate) fn new(dice: Dice) -> Arc<SimEngine> {
        let mut servers = vec![Server::new(Role::Primary)];
        servers.resize_with(SERVERS, || Server::new(Role::Standby(Some(0))));
        Arc::new(SimEngine {
            inside: Mutex::new(Inside {
                servers,
                is_failing_over: false,
                loss: 0,
                stalls: 0,
                stalls_next: None,
            }),
            changed: Notify::new(),
            dice,
        })
    }

    /// Returns a client for the log of a volume.
    pub(crate) fn log(self: &Arc<Self>, volume: &str) -> SimLog {
        SimLog::new(Arc::clone(self), volume)
    }

    pub(crate) fn dice(&self) -> &Dice {
        &self.dice
    }

    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock()
    }

    fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Sets the number of lost messages and of stalled statements per thousand.
    pub(crate) fn set_faults(&self, loss: u64, stalls: u64) {
        let mut inside = self.inside();
        inside.loss = loss;
        inside.stalls = stalls;
    }

    pub(super) fn loses(&self) -> bool {
        let loss = self.inside().loss;
        loss > 0 && self.dice.between(0, 999) < loss
    }

    /// Stalls the next write between the check of its conditions and its effect.
    pub(crate) fn stall_next(&self, wait: Duration) {
        self.inside().stalls_next = Some(wait);
    }

    fn pause(&self) -> Duration {
        let (next, stalls) = {
            let mut inside = self.inside();
            (inside.stalls_next.take(), inside.stalls)
        };
        if let Some(wait) = next {
            return wait;
        }
        if stalls > 0 && self.dice.between(0, 999) < stalls {
            return Duration::from_millis(self.dice.between(100, STALL_MAX_MS));
        }
        Duration::from_millis(self.dice.between(0, 2))
    }

    /// Pauses the standbys, so that commits wait for them. Ends the pause if `paused` is `false`.
    pub(crate) fn pause_standbys(self: &Arc<Self>, paused: bool) {
        let primary = {
            let mut inside = self.inside();
            for server in &mut inside.servers {
                server.is_paused = paused && server.role != Role::Primary;
            }
            inside
                .servers
                .iter()
                .position(|server| server.role == Role::Primary && server.is_up)
        };
        if let Some(primary) = primary {
            self.replicate(primary);
        }
    }

    /// Sends the changes of a server to its standbys, after short random delays.
    fn replicate(self: &Arc<Self>, from: usize) {
        for to in 0..SERVERS {
            let engine = Arc::clone(self);
            let wait = Duration::from_millis(self.dice.between(0, 4));
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                engine.deliver(from, to);
            });
        }
    }

    fn deliver(&self, from: usize, to: usize) {
        let mut inside = self.inside();
        let receives = {
            let (source, target) = (&inside.servers[from], &inside.servers[to]);
            source.is_up && target.is_up && !target.is_paused && target.role == Role::Standby(Some(from))
        };
        if !receives {
            return;
        }
        let known = inside.servers[to].changes.len();
        let new: Vec<_> = inside.servers[from].changes[known..].to_vec();
        for change in new {
            inside.servers[to].write(change);
        }
        drop(inside);
        self.notify();
    }

    /// Cancels the waits for standbys at every server.
    pub(crate) fn cancel_waits(&self) {
        for server in &mut self.inside().servers {
            let waiting = server.waiting.clone();
            server.cancelled.extend(waiting);
        }
        self.notify();
    }

    /// Restarts the process of the primary, which keeps all its changes.
    pub(crate) fn restart_primary(self: &Arc<Self>) {
        let at = {
            let mut inside = self.inside();
            let at = inside
                .servers
                .iter()
                .position(|server| server.role == Role::Primary && server.is_up);
            if let Some(at) = at {
                inside.servers[at].restart();
            }
            at
        };
        self.notify();
        if let Some(at) = at {
            self.replicate(at);
        }
    }

    /// Promotes the standby with the most changes, and kills the old primary. With `keeps_two`, the
    /// old primary continues without standbys for a while instead.
    pub(crate) async fn fail_over(self: &Arc<Self>, keeps_two: bool) {
        let old = {
            let mut inside = self.inside();
            let old = inside
                .servers
                .iter()
                .position(|server| server.role == Role::Primary && server.is_up);
            let Some(old) = old.filter(|_| !inside.is_failing_over) else {
                return;
            };
            inside.is_failing_over = true;
            for server in &mut inside.servers {
                if server.role == Role::Standby(Some(old)) {
                    server.role = Role::Standby(None);
                }
            }
            if !keeps_two {
                inside.servers[old].is_up = false;
                inside.servers[old].start += 1;
            }
            old
        };
        self.notify();
        let (promotion_ms, return_ms) = (self.dice.between(100, 2_500), self.dice.between(500, 5_000));
        tokio::time::sleep(Duration::from_millis(promotion_ms)).await;
        let new = {
            let mut inside = self.inside();
            let ready = (0..SERVERS).filter(|at| *at != old && inside.servers[*at].is_up);
            let new = ready
                .max_by_key(|at| inside.servers[*at].changes.len())
                .unwrap_or(old);
            inside.servers[new].role = Role::Primary;
            inside.servers[new].is_paused = false;
            for at in (0..SERVERS).filter(|at| *at != old && *at != new) {
                // Changes of this standby that the new primary lacks were never acknowledged.
                let changes = inside.servers[new].changes.clone();
                inside.servers[at].reset_to(changes);
                inside.servers[at].role = Role::Standby(Some(new));
            }
            new
        };
        self.notify();
        tokio::time::sleep(Duration::from_millis(return_ms)).await;
        if self.dice.between(0, 1) == 1 {
            self.cancel_waits();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        {
            let mut inside = self.inside();
            let changes = inside.servers[new].changes.clone();
            let server = &mut inside.servers[old];
            server.reset_to(changes);
            server.role = Role::Standby(Some(new));
            server.is_up = true;
            inside.is_failing_over = false;
        }
        self.notify();
        self.replicate(new);
    }

    /// Returns `true` while a fail-over is under way.
    pub(crate) fn is_failing_over(&self) -> bool {
        self.inside().is_failing_over
    }

    /// Returns the number of the primary's changes, as the position of a backup.
    pub(crate) fn backup(&self) -> usize {
        let inside = self.inside();
        let primary = inside.servers.iter().find(|server| server.role == Role::Primary);
        primary.map_or(0, |server| server.changes.len())
    }

    /// Resets every server to the state at a backup.
    pub(crate) fn restore(&self, backup: usize) {
        let mut inside = self.inside();
        let primary = inside.servers.iter().find(|server| server.role == Role::Primary);
        let changes = primary.map_or_else(Vec::new, |server| server.changes[..backup].to_vec());
        for server in &mut inside.servers {
            server.reset_to(changes.clone());
        }
        drop(inside);
        self.notify();
    }

    /// Tries to write at a server. The caller has checked the conditions that a statement checks
    /// when it begins.
    fn try_write(inside: &mut Inside, at: usize, volume: &str, statement: &Statement) -> Write {
        let server = &mut inside.servers[at];
        let newest = server
            .data
            .heads
            .get(volume)
            .and_then(|versions| versions.last())
            .cloned();
        let is_locked = newest
            .as_ref()
            .is_some_and(|version| server.waiting.contains(&version.at));
        let newest = newest.map(|version| version.value);
        let (change, rows) = match statement {
            Statement::Append { entry, .. } => {
                let mut entry = entry.clone();
                if seeded("engine-no-fence") {
                    entry.seq = server.entries(volume).next_back().map_or(0, |last| last.seq) + 1;
                }
                match server.data.entries.get(&(volume.to_owned(), entry.seq)) {
                    Some(version) if server.waiting.contains(&version.at) => return Write::Locked,
                    Some(_) => return Write::NoRow,
                    None => {}
                }
                let volume = volume.to_owned();
                (Change::Append { volume, entry }, 1)
            }
            _ if is_locked => return Write::Locked,
            Statement::Create => {
                if newest.is_some() {
                    return Write::NoRow;
                }
                let head = Head {
                    epoch: 0,
                    kept_from: 1,
                };
                let volume = volume.to_owned();
                (Change::Volume { volume, head }, 1)
            }
            Statement::Raise { since, until } => {
                let Some(head) = newest.filter(|head| head.epoch < *until) else {
                    return Write::NoRow;
                };
                let epoch = (head.epoch + 1).max(*since);
                let volume = volume.to_owned();
                let head = Head { epoch, ..head };
                (Change::Volume { volume, head }, epoch)
            }
            Statement::Checkpoint { from, to, words } => {
                if newest.is_none_or(|head| head.kept_from != *from) {
                    return Write::NoRow;
                }
                let (volume, words) = (volume.to_owned(), Arc::clone(words));
                let kept_from = *to;
                (
                    Change::Checkpoint {
                        volume,
                        kept_from,
                        words,
                    },
                    1,
                )
            }
            Statement::Trim { last } => {
                let kept_from = newest.map_or(0, |head| head.kept_from);
                let last = (*last).min(kept_from.saturating_sub(2));
                let volume = volume.to_owned();
                (Change::Trim { volume, last }, 1)
            }
            Statement::Remove => {
                let volume = volume.to_owned();
                (Change::Remove { volume }, 1)
            }
        };
        let index = server.write(Arc::new(change));
        server.waiting.insert(index);
        Write::Written(index, rows)
    }

    /// Executes a statement at a server. `None` means that the connection broke.
    pub(super) async fn write(
        self: &Arc<Self>,
        at: usize,
        volume: &str,
        statement: &Statement,
    ) -> Option<Reply> {
        let cancelled_at = Instant::now() + STATEMENT_TIMEOUT;
        let start = {
            let inside = self.inside();
            let server = &inside.servers[at];
            if !server.is_up || server.role != Role::Primary {
                return None;
            }
            // A statement sees the rows as they were when it began.
            if let Statement::Append { entry, behind } = statement {
                let is_owner = server.head(volume).is_some_and(|head| head.epoch == entry.epoch);
                let is_behind = behind.is_none_or(|(seq, epoch)| {
                    server
                        .entry(volume, seq)
                        .is_some_and(|before| before.epoch == epoch)
                });
                if !(is_owner || seeded("engine-no-fence")) || !is_behind {
                    return Some(Reply::Rows(0));
                }
            }
            server.start
        };
        let stalled = timeout_at(cancelled_at, tokio::time::sleep(self.pause()));
        if stalled.await.is_err() {
            return Some(Reply::Cancelled);
        }
        let deadline = cancelled_at.min(Instant::now() + LOCK_TIMEOUT);
        let (index, rows) = loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut inside = self.inside();
                if inside.servers[at].start != start || !inside.servers[at].is_up {
                    return None;
                }
                match SimEngine::try_write(&mut inside, at, volume, statement) {
                    Write::Written(index, rows) => break (index, rows),
                    Write::NoRow => return Some(Reply::Rows(0)),
                    Write::Locked => {}
                }
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Some(Reply::Cancelled);
            }
        };
        self.replicate(at);
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut inside = self.inside();
                if inside.servers[at].start != start || !inside.servers[at].is_up {
                    return None;
                }
                let has =
                    |server: &Server| server.role == Role::Standby(Some(at)) && server.changes.len() > index;
                let is_durable = inside.servers.iter().any(has);
                let is_cancelled = inside.servers[at].cancelled.contains(&index);
                if is_durable || is_cancelled {
                    inside.servers[at].waiting.remove(&index);
                    drop(inside);
                    self.notify();
                    return Some(if is_durable {
                        Reply::Rows(rows)
                    } else {
                        Reply::Warned(rows)
                    });
                }
            }
            changed.await;
        }
    }
}
