//! A simulated engine in memory: three servers, of which one is the primary and the others are
//! standbys.
//!
//! The engine has the faults of a real engine (PostgreSQL with standbys). The engine loses
//! statements and answers, stalls commits and fails over. The engine also runs two primaries at
//! once, forgets commits that no standby had, and reports success with a warning after a cancelled
//! wait for a standby. A statement may check its conditions when it begins and write later, as at
//! the isolation level "read committed".
//!
//! **Invariants**
//! - A commit is acknowledged once a standby has it. A standby that is promoted has every
//!   acknowledged commit.
//! - A commit that waits for a standby is invisible, and a statement that writes the same row waits
//!   for this commit. `engine_server` lists the exceptions.
//! - A statement continues at the server, even if its client has given up.
//!
//! | part | content |
//! | --- | --- |
//! | `engine` | the three servers with their faults, and the course of a statement |
//! | `engine_server` | one server: rows, changes, locks |
//! | `engine_tables` | the rows with the cluster's state and its nodes |
//! | `engine_client` | a connection |
//! | `engine_log`, `engine_membership` | the statements of the nodes: on a log, on the tables |
//!
//! Deliberately absent: SQL, and reads from standbys.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::runtime::simulated::Dice;
use crate::simulation::engine_client::SimClient;
use crate::simulation::engine_log::SimLog;
use crate::simulation::engine_server::{Role, Server, Statement, Write};
use crate::simulation::engine_tables::{ClusterRow, TableStatement};

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

/// The result of a statement at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The statement has written, or affected no row. The number is 0 for no row, the new epoch for
    /// `Statement::Raise`, the version that a beat returns, and 1 for other statements.
    Rows(u64),
    /// The statement has written, with a number as in `Rows`, but its wait for a standby was
    /// cancelled.
    Warned(u64),
    /// The statement was cancelled before its write, because of a timeout.
    Cancelled,
    /// The statement was refused because of a conflict with another transaction.
    Conflict,
}

pub(super) struct Inside {
    pub(super) servers: Vec<Server>,
    /// Index of the server that became a primary last. It has every acknowledged commit.
    present: usize,
    is_failing_over: bool,
    /// Number of lost messages between clients and servers per thousand.
    loss: u64,
    /// Number of statements per thousand that are stalled for 100 ms to `STALL_MAX_MS`.
    stalls: u64,
    /// Time for which the next write is stalled, if set. With a name, only a write about the volume
    /// or node of this name is stalled.
    stalls_next: Option<(Option<String>, Duration)>,
    /// Number of replacements of the cluster's state that are refused with a conflict.
    conflicts: u32,
}

/// The simulated engine.
pub(crate) struct SimEngine {
    inside: Mutex<Inside>,
    /// Wakes waiting statements in the order in which they began to wait. A watch channel of tokio
    /// would wake the statements in random order.
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
                present: 0,
                is_failing_over: false,
                loss: 0,
                stalls: 0,
                stalls_next: None,
                conflicts: 0,
            }),
            changed: Notify::new(),
            dice,
        })
    }

    /// Returns a client for the log of a volume.
    pub(crate) fn log(self: &Arc<Self>, volume: &str) -> SimLog {
        self.log_at(0, volume)
    }

    /// Returns a client for the log of a volume. `host` is the server that the client tries first.
    pub(super) fn log_at(self: &Arc<Self>, host: usize, volume: &str) -> SimLog {
        SimLog::new(SimClient::new(Arc::clone(self), host), volume)
    }

    /// Returns the row with the cluster's state, as the present primary shows it.
    pub(super) fn cluster(&self) -> Option<ClusterRow> {
        let inside = self.inside();
        let server = &inside.servers[inside.present];
        server.data.tables.cluster(&server.waiting).cloned()
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

    /// Stalls the next write between the begin of its statement and its effect. A condition that
    /// the statement checks only at the begin may no longer hold at its effect.
    pub(crate) fn stall_next(&self, wait: Duration) {
        self.inside().stalls_next = Some((None, wait));
    }

    /// Stalls the next write about the volume or node of this name.
    pub(crate) fn stall_next_of(&self, name: &str, wait: Duration) {
        self.inside().stalls_next = Some((Some(name.to_owned()), wait));
    }

    /// Refuses this number of replacements of the cluster's state with a conflict, as PostgreSQL
    /// does at an isolation level above "read committed".
    pub(crate) fn conflict_next(&self, conflicts: u32) {
        self.inside().conflicts = conflicts;
    }

    /// Returns `true` if a statement is to be refused with a conflict.
    fn conflicts(&self, statement: &Statement) -> bool {
        let mut inside = self.inside();
        let is_meant = matches!(statement, Statement::Table(TableStatement::NextState { .. }));
        if !is_meant || inside.conflicts == 0 {
            return false;
        }
        inside.conflicts -= 1;
        true
    }

    /// Returns the time between the begin of a statement and its write.
    fn pause(&self, name: &str) -> Duration {
        let (next, stalls) = {
            let mut inside = self.inside();
            let is_meant = |of: &Option<String>| of.as_ref().is_none_or(|of| of == name);
            let next = inside.stalls_next.take_if(|(of, _)| is_meant(of));
            (next, inside.stalls)
        };
        if let Some((_, wait)) = next {
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
    /// old primary continues without standbys for a while instead. Does nothing during another
    /// fail-over, or while no primary runs.
    pub(crate) async fn fail_over(self: &Arc<Self>, keeps_two: bool) {
        let (promotion_ms, return_ms) = (self.dice.between(100, 2_500), self.dice.between(500, 5_000));
        self.fail_over_within(keeps_two, promotion_ms, return_ms).await;
    }

    /// Fails over like `fail_over`. The standby is promoted after `promotion_ms`, and the old
    /// primary becomes a standby `return_ms` later. In half of the cases all waits for standbys are
    /// cancelled first, and the old primary becomes a standby 20 ms later than that.
    pub(super) async fn fail_over_within(
        self: &Arc<Self>,
        keeps_two: bool,
        promotion_ms: u64,
        return_ms: u64,
    ) {
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
        tokio::time::sleep(Duration::from_millis(promotion_ms)).await;
        let new = {
            let mut inside = self.inside();
            let ready = (0..SERVERS).filter(|at| *at != old && inside.servers[*at].is_up);
            let new = ready
                .max_by_key(|at| inside.servers[*at].changes.len())
                .unwrap_or(old);
            inside.present = new;
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

    /// Ends the process of a server.
    pub(super) fn end_server(&self, at: usize) {
        {
            let server = &mut self.inside().servers[at];
            server.is_up = false;
            server.start += 1;
        }
        self.notify();
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

    /// Executes a statement at a server, about the volume or node with this name. Returns `None` if
    /// the statement gets no answer, because the server accepts no writes, or has ended, restarted
    /// or been reset.
    pub(super) async fn write(
        self: &Arc<Self>,
        at: usize,
        name: &str,
        statement: &Statement,
    ) -> Option<Reply> {
        let cancelled_at = Instant::now() + STATEMENT_TIMEOUT;
        let (start, seen) = {
            let inside = self.inside();
            let server = &inside.servers[at];
            if !server.is_up || server.role != Role::Primary {
                return None;
            }
            // A statement sees the rows as they were when it began.
            let Some(seen) = server.begin(name, statement) else {
                return Some(Reply::Rows(0));
            };
            (server.start, seen)
        };
        if self.conflicts(statement) {
            return Some(Reply::Conflict);
        }
        let stalled = timeout_at(cancelled_at, tokio::time::sleep(self.pause(name)));
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
                match inside.servers[at].try_write(name, statement, seen) {
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
