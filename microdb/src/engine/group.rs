//! Group commit: commits that wait at the same time share one sync of the disk.
//!
//! A durable commit joins the forming group. A waiting thread that finds no leader becomes the
//! leader of all waiting threads. The leader appends the frames of these members in order, and
//! syncs once if a member must be durable. The leader publishes the frames in the order of the log
//! and wakes the members.
//!
//! - While a group waits for the disk, its frames are in the log but not visible. Commits that
//!   arrive in this time, buffered or durable, join the next group.
//! - Readers see commits in the order of the log, and durable commits only once they are durable.
//!
//! # Turns
//!
//! A transaction that met a conflict may run again inside its group. After the frames of the
//! ordinary members are appended and before the sync, such transactions get turns, one after the
//! other, each in its own thread. During a turn no other commit is appended or published, and the
//! reads of the transaction include the earlier frames of the group. So the transaction meets no
//! conflict, unless two keys have equal 64-bit hashes. All turns of a group share its sync.
//!
//! - Progress: if the body of a transaction ends within the time limit of its turn, the transaction
//!   commits, or returns an error other than a conflict. Each lost turn doubles the limit for the
//!   next turn of the same transaction, up to a maximum.
//! - A slower body loses its turn once another waiting thread notices the delay, and that thread
//!   takes the group over. So a body that waits for a writer delays writers by little more than the
//!   limit, and never blocks them for good. A run that lost its turn can commit only like a run
//!   without a turn, with checks: as an ordinary member of a later group or, if it is buffered and
//!   no group is in flight, at once.
//! - A group has at most as many turns as members. The thread that ends the last turn syncs and
//!   publishes in place of the leader.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::body::Body;
use crate::engine::catalog::{CatalogChange, TableCore};
use crate::engine::commit::{Checks, Outcome};
use crate::engine::group_writes::GroupWrites;
use crate::engine::log::{Core, Place};
use crate::engine::{Engine, lock, lock_briefly};
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::raw::sync::{Condvar, Mutex, MutexGuard, wait_at_most, wait_while_at_most};
use crate::seeded::seeded;

/// A leader waits for late members for at most the duration of the last sync divided by this
/// number.
const GATHER_SHARE: u32 = 2;

/// Interval at which waiting threads check whether a turn is overdue.
const WATCH: Duration = Duration::from_millis(50);

/// State of group commit: the commits that wait for the next group, and the current group.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Vec<Request>,
    leading: bool,
    /// Number of the group that the waiting commits will form.
    group: usize,
    /// Number of members expected in the next group: the number of members of the last group, plus
    /// the number of commits that waited when that group finished.
    committers: usize,
    /// Duration of the last group's sync, or zero if that group needed none.
    sync_time: Duration,
    /// The current group, while one of its transactions has the turn.
    paused: Option<Group>,
}

impl Queue {
    /// Ends a turn that has exceeded its time limit. The transaction gets the result
    /// [`Committed::TurnLost`]. Returns the group of that transaction, which the caller must
    /// continue, or `None` if no turn is overdue.
    fn take_overdue(&mut self) -> Option<Group> {
        let mut overdue = self.paused.take_if(|paused| paused.is_overdue())?;
        if let Some(late) = overdue.running.take() {
            *lock(&late.answer.given) = Some(Committed::TurnLost);
            late.answer.wake.notify_one();
        }
        Some(overdue)
    }
}

#[cfg(all(test, not(loom)))]
impl Queue {
    /// Returns the number of commits that wait for the next group.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns `true` if a transaction has the turn.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }
}

/// A commit that joins a group.
pub(crate) struct Request {
    pub(crate) body: Body,
    pub(crate) tables: Vec<Arc<TableCore>>,
    pub(crate) durability: Durability,
    pub(crate) checks: Checks,
    pub(crate) change: Option<CatalogChange>,
    pub(crate) turn: Turn,
    pub(crate) answer: Arc<Answer>,
}

impl Request {
    /// Returns a request without records, without checks and without a change of the catalog.
    pub(crate) fn turn(durability: Durability, turn: Turn) -> Self {
        Self {
            body: Body::default(),
            tables: Vec::new(),
            durability,
            checks: Checks::none(),
            change: None,
            turn,
            answer: Arc::default(),
        }
    }
}

/// Condition under which a request gets a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// The request gets no turn. A conflict is returned as an error.
    Never,
    /// The request gets a turn with this time limit if its checks fail.
    OnConflict(Duration),
    /// The request gets a turn with this time limit in any case. It has no writes before the turn.
    Now(Duration),
}

impl Turn {
    fn limit(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::OnConflict(limit) | Self::Now(limit) => limit,
        }
    }
}

/// Holds the result of a group's member, and its record buffer, which the caller reuses. Empty
/// until the group has finished, or the member has lost its turn.
pub(crate) struct Answer {
    given: Mutex<Option<Committed>>,
    /// Wakes the thread of a request that may get a turn. Used with the mutex `Engine::queue`.
    wake: Condvar,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            given: Mutex::default(),
            wake: Condvar::new(),
        }
    }
}

impl Answer {
    fn give(&self, result: Result<Outcome>, body: Body) {
        *lock(&self.given) = Some(Committed::Done(result, body));
    }

    fn take(&self) -> Option<Committed> {
        lock(&self.given).take()
    }
}

/// Result of [`Engine::commit_in_group`].
pub(crate) enum Committed {
    /// The group has finished, or this process is a child that the body of the transaction has
    /// forked. Holds the result of the commit, and its record buffer, which the caller reuses.
    Done(Result<Outcome>, Body),
    /// The body of the transaction exceeded the time limit of its turn, and another thread has
    /// taken over its group. Nothing of the turn was appended.
    TurnLost,
}

/// The writes of a transaction that ran in its turn. `None` if the transaction has nothing to
/// commit, because it wrote nothing, failed, panicked, or read outdated data.
pub(crate) type Ran = Option<(Body, Vec<Arc<TableCore>>)>;

/// Runs the body of a transaction in its turn. The argument holds the earlier writes of the group.
pub(crate) type Runner<'a> = &'a mut dyn FnMut(Arc<GroupWrites>) -> Ran;

/// A group of commits that is being appended, synced and published together.
struct Group {
    number: usize,
    members: usize,
    writes: Arc<GroupWrites>,
    /// Members that are committed when the group finishes, unless its sync fails. They are in the
    /// order of the log. The place is `None` for a transaction with nothing to commit after its
    /// turn.
    passed: Vec<(Request, Option<Place>)>,
    /// Members that are not committed, each with its error, for example a failed check or a full
    /// disk. They are woken after the group is published, because only then a commit with which
    /// they conflict is certainly visible.
    refused: Vec<(Request, Error)>,
    turns: VecDeque<Request>,
    /// The transaction that has the turn.
    running: Option<Request>,
    deadline: Instant,
    /// Members that wait on a condition variable of their own and are woken separately.
    wakes: Vec<Arc<Answer>>,
}

/// Returns the error for each member of a group after the sync of the group failed with `error`.
fn not_synced(error: &Error) -> Error {
    match error {
        Error::Poisoned { cause } => Error::Poisoned { cause: cause.clone() },
        _ => Error::Closed,
    }
}

impl Group {
    fn is_turn_of(&self, answer: &Arc<Answer>) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|request| Arc::ptr_eq(&request.answer, answer))
    }

    /// Returns `true` if the current turn has exceeded its time limit. The model checker loom has
    /// no clock, so no turn is overdue under it.
    fn is_overdue(&self) -> bool {
        !cfg!(loom) && self.running.is_some() && Instant::now() >= self.deadline
    }
}

impl Engine {
    /// Commits `request` in a group. `runner` runs the body of the transaction if it gets a turn.
    /// `runner` is `None` if and only if `request.turn` is [`Turn::Never`].
    pub(crate) fn commit_in_group(&self, request: Request, mut runner: Option<Runner<'_>>) -> Committed {
        let answer = request.answer.clone();
        let mut queue = lock(&self.queue);
        queue.waiting.push(request);
        if queue.leading && queue.waiting.len() >= queue.committers {
            self.group_full.notify_one();
        }
        let group = queue.group;
        loop {
            if let Some(committed) = answer.take() {
                return committed;
            }
            let turn = queue.paused.as_ref().filter(|paused| paused.is_turn_of(&answer));
            if let Some(runner) = runner.as_mut()
                && let Some(writes) = turn.map(|paused| paused.writes.clone())
            {
                drop(queue);
                let ran = runner(writes);
                // The body may have forked, and this may be the child.
                if let Err(forked) = self.check_process() {
                    return Committed::Done(Err(forked), Body::default());
                }
                queue = lock(&self.queue);
                let Some(paused) = queue.paused.take_if(|paused| paused.is_turn_of(&answer)) else {
                    return Committed::TurnLost;
                };
                drop(queue);
                self.end_turn(paused, ran);
                queue = lock(&self.queue);
            } else if let Some(overdue) = queue.take_overdue() {
                drop(queue);
                self.go_on(overdue);
                queue = lock(&self.queue);
            } else if queue.leading {
                let condvar = match &runner {
                    Some(_) => &answer.wake,
                    None => &self.group_done[group % 2],
                };
                queue = wait_at_most(condvar, queue, WATCH);
            } else {
                queue.leading = !seeded("two-leaders");
                queue = self.gather(queue);
                queue.group += 1;
                let members = std::mem::take(&mut queue.waiting);
                drop(queue);
                let begun = self.begin(members, group);
                self.go_on(begun);
                queue = lock(&self.queue);
            }
        }
    }

    /// Waits for new commits of the threads that the last group has just woken. Without the wait,
    /// two groups of half the size would alternate, and twice as many syncs would be needed. The
    /// wait is at most half the time of the last sync, and ends once the expected number of members
    /// waits. A single committer does not wait.
    fn gather<'q>(&'q self, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        let bound = queue.sync_time / GATHER_SHARE;
        let incomplete = |queue: &mut Queue| queue.waiting.len() < queue.committers;
        wait_while_at_most(&self.group_full, &self.queue, queue, bound, incomplete)
    }

    /// Appends the frames of all `members` that pass their checks, in order.
    fn begin(&self, members: Vec<Request>, number: usize) -> Group {
        let mut group = Group {
            number,
            members: members.len(),
            writes: Arc::default(),
            passed: Vec::with_capacity(members.len()),
            refused: Vec::new(),
            turns: VecDeque::new(),
            running: None,
            deadline: Instant::now(),
            wakes: Vec::new(),
        };
        // The writes of a member are added to `group.writes` only if they may be looked up there:
        // by the checks of a later member, by a transaction that gets a turn, or, if a member
        // changes the catalog, by the test for dropped tables. Most groups need none of this.
        let last_checked = if members.iter().any(|member| member.turn != Turn::Never) {
            members.len()
        } else {
            let checked = members.iter().rposition(|member| !member.checks.is_empty());
            checked.unwrap_or(0)
        };
        let drops = members.iter().any(|member| member.change.is_some());
        let mut core = lock_briefly(&self.core);
        for (index, mut member) in members.into_iter().enumerate() {
            if member.turn != Turn::Never {
                group.wakes.push(member.answer.clone());
            }
            if let Turn::Now(_) = member.turn {
                group.turns.push_back(member);
                continue;
            }
            let remember = drops || index < last_checked;
            match self.append_member(&mut core, &mut group.writes, &mut member, remember) {
                Ok(place) => group.passed.push((member, Some(place))),
                Err(Error::Conflict { .. }) if member.turn != Turn::Never => group.turns.push_back(member),
                Err(error) => group.refused.push((member, error)),
            }
        }
        // Buffered commits join the next group from here until the frames are published.
        core.in_flight = !seeded("in-flight-forgotten");
        group
    }

    /// Appends the frame of a member if its checks hold. On an error no frame was appended.
    fn append_member(
        &self,
        core: &mut Core,
        writes: &mut Arc<GroupWrites>,
        member: &mut Request,
        remember: bool,
    ) -> Result<Place> {
        self.check_writable()?;
        for table in &member.tables {
            writes.check_not_dropped(table)?;
        }
        self.check_all(&member.checks, Some(writes))?;
        let place = self.append(core, &mut member.body)?;
        if remember && !seeded("keys-of-the-group-unchecked") {
            Arc::make_mut(writes).add(&member.body, &member.tables, member.change.as_ref(), place);
        }
        Ok(place)
    }

    /// Gives the turn to the next transaction of the group, or finishes the group.
    fn go_on(&self, mut group: Group) {
        let Some(next) = group.turns.pop_front() else {
            self.finish(group);
            return;
        };
        let answer = next.answer.clone();
        group.deadline = Instant::now() + next.turn.limit();
        group.running = Some(next);
        let mut queue = lock(&self.queue);
        queue.paused = Some(group);
        answer.wake.notify_one();
    }

    /// Appends the writes of the transaction that had the turn, and continues the group.
    fn end_turn(&self, mut group: Group, ran: Ran) {
        if let Some(mut member) = group.running.take() {
            match ran {
                None => group.passed.push((member, None)),
                Some((body, tables)) => {
                    (member.body, member.tables) = (body, tables);
                    // No other commit was appended during the turn, so the reads need no check.
                    member.checks = Checks::none();
                    let appended = self.warm(&member.body, &member.tables).and_then(|()| {
                        let mut core = lock_briefly(&self.core);
                        self.append_member(&mut core, &mut group.writes, &mut member, true)
                    });
                    match appended {
                        Ok(place) => group.passed.push((member, Some(place))),
                        Err(error) => group.refused.push((member, error)),
                    }
                }
            }
        }
        self.go_on(group);
    }

    /// Syncs the frames of the group if the commit of a member must be durable. Publishes the
    /// frames unless that sync failed, and wakes the members.
    fn finish(&self, group: Group) {
        let mut synced = Ok(());
        let mut sync_time = Duration::ZERO;
        let durable = |(member, place): &(Request, Option<Place>)| {
            place.is_some() && member.durability == Durability::Sync
        };
        let mut core = lock_briefly(&self.core);
        if group.passed.iter().any(durable) {
            drop(core);
            let started = Instant::now();
            synced = self.sync_log().map(|_| ());
            sync_time = started.elapsed();
            let appended = group.passed.iter().filter(|(_, place)| place.is_some());
            self.counters.group_commits.add(appended.count() as u64);
            // If the sync succeeded, the frames of the group are durable from here on.
            core = lock_briefly(&self.core);
        }
        core.in_flight = false;
        if core.quiet_waiters > 0 {
            self.quiet.notify_all();
        }
        self.counters.groups.add(1);
        let mut passed = group.passed;
        if seeded("published-out-of-order") {
            passed.reverse();
        }
        for (member, place) in passed {
            let published = match &synced {
                Err(error) if !seeded("failed-sync-acknowledged") => Err(not_synced(error)),
                // The commit of this member becomes visible here.
                _ => self.publish_member(&mut core, &member, place),
            };
            member.answer.give(published, member.body);
        }
        for (member, error) in group.refused {
            let error = synced.as_ref().err().map_or(error, not_synced);
            member.answer.give(Err(error), member.body);
        }
        drop(core);
        self.write_if_due();
        let mut queue = lock(&self.queue);
        queue.leading = false;
        queue.committers = group.members + queue.waiting.len();
        queue.sync_time = sync_time;
        self.group_done[group.number % 2].notify_all();
        group.wakes.iter().for_each(|answer| answer.wake.notify_one());
        // Wakes one waiting thread, so that the next group gets a leader.
        if let Some(first) = queue.waiting.first()
            && !seeded("wake-up-missed")
        {
            match first.turn {
                Turn::Never => self.group_done[(group.number + 1) % 2].notify_one(),
                Turn::OnConflict(_) | Turn::Now(_) => first.answer.wake.notify_one(),
            }
        }
    }

    fn publish_member(&self, core: &mut Core, member: &Request, place: Option<Place>) -> Result<Outcome> {
        let Some(place) = place else {
            let sequence = core.published.sequence;
            return Ok(Outcome {
                sequence,
                replaced: 0,
            });
        };
        let replaced = self.publish(core, &member.body, &member.tables, member.change.as_ref(), place)?;
        self.counters.commits.add(1);
        self.counters.records.add(member.body.ops.len() as u64);
        let sequence = place.end.sequence;
        Ok(Outcome { sequence, replaced })
    }

    /// Waits until no group is in flight. Returns with the commit lock held. All frames of the log
    /// are then published, unless a failed sync or publication has poisoned the database.
    pub(crate) fn lock_quiet(&self) -> MutexGuard<'_, Core> {
        let mut core = lock_briefly(&self.core);
        while core.in_flight {
            core.quiet_waiters += 1;
            core = wait_at_most(&self.quiet, core, WATCH);
            core.quiet_waiters -= 1;
            if core.in_flight {
                // The transaction in its turn may wait for this thread, and perhaps no member of a
                // group is waiting that could end the turn. So this thread ends the turn if it is
                // overdue.
                drop(core);
                let overdue = lock(&self.queue).take_overdue();
                overdue.into_iter().for_each(|overdue| self.go_on(overdue));
                core = lock_briefly(&self.core);
            }
        }
        core
    }
}
