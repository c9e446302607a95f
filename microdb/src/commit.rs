//! Commits: one order for all, one sync for many.
//!
//! A buffered commit takes the commit lock, appends and publishes. A durable one joins the forming group; whoever finds no leader
//! becomes the leader of all who wait, appends their frames in order, syncs once, publishes, and wakes them. While a group waits
//! for the disk its frames are in the log but not visible, so whatever comes then, buffered or durable, joins
//! the next group: readers see commits in the order of the log, and durable ones only once they are durable.
//!
//! A commit may carry checks (compare-and-swap, transactions): keys whose location must be what it was when they were read.
//! They are made under the commit lock, where nothing can change; a key touched earlier in the same group fails them.

use std::collections::HashSet;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::{Body, Op};
use crate::catalog::TableCore;
use crate::directory::{Directory, KeyHash, Location};
use crate::engine::{Engine, lock, lock_briefly};
use crate::error::{Error, Result};
use crate::format::record::RecordKind;
use crate::log::{Core, Place};
use crate::options::Durability;
use crate::raw::epoch::{Guard, pin};
use crate::read_ahead::Lookups;
use crate::reclaim;
use crate::sync::{Mutex, MutexGuard, wait_while_at_most};

/// A key whose location must not have changed since it was read.
#[derive(Clone)]
pub(crate) struct Check {
    pub(crate) table: Arc<TableCore>,
    pub(crate) hash: KeyHash,
    pub(crate) key: Vec<u8>,
    pub(crate) expected: Option<Location>,
}

/// What became of a commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) sequence: u64,
    /// How many of its records replaced or removed one.
    pub(crate) replaced: u32,
}

/// How many operations ahead a chunk is made ready for changes, a bucket in it is asked for, and the record that it leads to: a miss of the caches and of the page tables takes as long as many operations.
const CHUNK_AHEAD: usize = 48;
/// See [`CHUNK_AHEAD`].
const BUCKET_AHEAD: usize = 32;
/// See [`CHUNK_AHEAD`].
const RECORD_AHEAD: usize = 16;

/// Records published under one pin. The chunks of the directory that they replace can be freed only after it, and a batch
/// of millions would replace all of them several times.
const PINNED_RECORDS: usize = 4096;

/// Bodies up to this many records are looked up before the lock is taken; of larger ones the first would be forgotten before their turn.
const WARM_RECORDS: usize = 512;

/// A leader waits for late members at most this share (one in so many) of the time that a sync takes.
const GATHER_SHARE: u32 = 2;

/// The durable commits that wait.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: Vec<Request>,
    leading: bool,
    /// Number of the group that is forming.
    group: usize,
    /// How many committers were seen at work around the last group: its members, and who came while it waited for the disk.
    committers: usize,
    /// How long the last group waited for the disk.
    sync_time: Duration,
}

struct Request {
    body: Body,
    tables: Vec<Arc<TableCore>>,
    durability: Durability,
    checks: Vec<Check>,
    answer: Arc<Answer>,
}

/// Where a leader leaves what became of a member, and its body, whose memory is used again.
#[derive(Default)]
struct Answer(Mutex<Option<(Result<Outcome>, Body)>>);

impl Answer {
    fn give(&self, result: Result<Outcome>, body: Body) {
        *lock(&self.0) = Some((result, body));
    }

    fn take(&self) -> Option<(Result<Outcome>, Body)> {
        lock(&self.0).take()
    }
}

impl Engine {
    /// Commits `body`, whose records name `tables` by index, if all `checks` hold ([`Error::Conflict`] if not).
    /// The body can be committed again after an error.
    pub(crate) fn commit(
        &self,
        body: &mut Body,
        tables: &[Arc<TableCore>],
        durability: Durability,
        checks: Vec<Check>,
    ) -> Result<Outcome> {
        self.check_writable()?;
        if let Some(table) = tables.iter().find(|table| table.is_dropped()) {
            return Err(Error::TableDropped { name: table.name() });
        }
        self.warm(body, tables)?;
        if durability == Durability::Buffered {
            let mut core = lock_briefly(&self.core);
            if !core.in_flight {
                self.check_writable()?;
                self.check_all(&checks, &HashSet::new())?;
                let place = self.append(&mut core, body)?;
                let replaced = self.publish(&mut core, body, tables, place)?;
                drop(core);
                self.counters.commits.add(1);
                self.counters.records.add(body.ops.len() as u64);
                self.write_if_due();
                return Ok(Outcome {
                    sequence: place.end.sequence,
                    replaced,
                });
            }
        }
        let answer = Arc::new(Answer::default());
        let request = Request {
            body: std::mem::take(body),
            tables: tables.to_vec(),
            durability,
            checks,
            answer: answer.clone(),
        };
        // Timed only where a disk is waited for: what a buffered commit takes is not much more than looking at the clock twice.
        let started = (durability == Durability::Sync).then(Instant::now);
        let (result, used) = self.commit_in_group(request, &answer);
        if let Some(started) = started {
            let ns = started.elapsed().as_nanos() as u64;
            self.counters.durable_commit_ns.add(ns);
        }
        *body = used;
        result
    }

    /// Looks each key's slot up before any lock is taken: brings it and what it leads to near, and meets damage in the directory while the commit can
    /// still be refused.
    fn warm(&self, body: &Body, tables: &[Arc<TableCore>]) -> Result<()> {
        let guard = pin();
        let ops = || {
            body.ops
                .iter()
                .take(WARM_RECORDS)
                .filter(|op| op.kind != RecordKind::Clear)
        };
        let directory = |op: &Op| tables[op.table as usize].directory.load(&guard);
        ops().for_each(|op| directory(op).prefetch(&guard, op.hash));
        let segments = self.segments.load(&guard);
        for op in ops() {
            let candidates = directory(op).candidates(&guard, op.hash);
            let mut candidates = candidates.map_err(|damage| self.directory_damage(damage))?;
            match candidates.next() {
                Some(location) => {
                    if let Some(segment) = segments.get(location) {
                        segment.prefetch_key(location.offset());
                    }
                }
                None => directory(op).prefetch_room(&guard, op.hash),
            }
        }
        Ok(())
    }

    fn commit_in_group(&self, request: Request, answer: &Answer) -> (Result<Outcome>, Body) {
        let mut queue = lock(&self.queue);
        queue.waiting.push(request);
        if queue.leading && queue.waiting.len() >= queue.committers {
            self.group_full.notify_one();
        }
        let group = queue.group;
        loop {
            if let Some(answer) = answer.take() {
                return answer;
            }
            if queue.leading {
                let waited = self.group_done[group % 2].wait(queue);
                queue = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.leading = true;
            queue = self.gather(queue);
            queue.group += 1;
            let members = std::mem::take(&mut queue.waiting);
            let count = members.len();
            drop(queue);
            let sync_time = self.lead(members);
            queue = lock(&self.queue);
            queue.leading = false;
            queue.committers = count + queue.waiting.len();
            queue.sync_time = sync_time;
            self.group_done[group % 2].notify_all();
            if !queue.waiting.is_empty() {
                self.group_done[(group + 1) % 2].notify_one();
            }
        }
    }

    /// Waits a moment for the members of the last group, who have only just been woken: without, two half groups would take turns for ever, and
    /// each commit cost twice the syncs. Never longer than a share of what a sync takes, and not at all for a single committer.
    fn gather<'q>(&'q self, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        let bound = queue.sync_time / GATHER_SHARE;
        let incomplete = |queue: &mut Queue| queue.waiting.len() < queue.committers;
        wait_while_at_most(&self.group_full, &self.queue, queue, bound, incomplete)
    }

    /// Commits all `members`, in order. How long the disk took.
    fn lead(&self, members: Vec<Request>) -> Duration {
        let mut core = lock_briefly(&self.core);
        let mut touched = HashSet::new();
        let mut appended = Vec::with_capacity(members.len());
        for mut member in members {
            let checked = self
                .check_writable()
                .and_then(|()| self.check_all(&member.checks, &touched));
            match checked.and_then(|()| self.append(&mut core, &mut member.body)) {
                Ok(place) => {
                    let tables = &member.tables;
                    touched.extend(
                        member
                            .body
                            .ops
                            .iter()
                            .map(|op| (tables[op.table as usize].id, op.hash.0)),
                    );
                    appended.push((member, place));
                }
                Err(error) => member.answer.give(Err(error), member.body),
            }
        }
        let mut synced = Ok(());
        let mut sync_time = Duration::ZERO;
        if appended
            .iter()
            .any(|(member, _)| member.durability == Durability::Sync)
        {
            core.in_flight = true;
            drop(core);
            let started = Instant::now();
            synced = self.sync_log().map(|_| ());
            sync_time = started.elapsed();
            self.counters.group_commits.add(appended.len() as u64);
            // Durable from here.
            core = lock_briefly(&self.core);
            core.in_flight = false;
        }
        self.counters.groups.add(1);
        for (member, place) in appended {
            let Request {
                body, tables, answer, ..
            } = member;
            let published = match &synced {
                // Visible from here.
                Ok(()) => self.publish(&mut core, &body, &tables, place),
                Err(Error::Poisoned { cause }) => Err(Error::Poisoned { cause: cause.clone() }),
                Err(_) => Err(Error::Closed),
            };
            self.counters.commits.add(1);
            self.counters.records.add(body.ops.len() as u64);
            let sequence = place.end.sequence;
            answer.give(published.map(|replaced| Outcome { sequence, replaced }), body);
        }
        drop(core);
        self.write_if_due();
        sync_time
    }

    /// Whether all keys are where they were, at one moment.
    pub(crate) fn check_now(&self, checks: &[Check]) -> Result<()> {
        let _core = lock_briefly(&self.core);
        self.check_all(checks, &HashSet::new())
    }

    /// Whether all keys are where they were; one that is in `touched` is not.
    fn check_all(&self, checks: &[Check], touched: &HashSet<(u32, u64)>) -> Result<()> {
        if checks.is_empty() {
            return Ok(());
        }
        let guard = pin();
        for check in checks {
            // Verified, as the read was that it repeats: of a damaged record nobody can say whose it is.
            let unchanged = !touched.contains(&(check.table.id, check.hash.0))
                && self
                    .lookup(&guard, &check.table, check.hash, &check.key)?
                    .map(|found| found.location)
                    == check.expected;
            if !unchanged {
                return Err(Error::Conflict { tries: 1 });
            }
        }
        Ok(())
    }

    /// Points the directories to an appended frame's records. Returns how many records were replaced or removed.
    fn publish(&self, core: &mut Core, body: &Body, tables: &[Arc<TableCore>], place: Place) -> Result<u32> {
        let mut replaced = 0;
        for ops in body.ops.chunks(PINNED_RECORDS) {
            replaced += self.publish_piece(core, body, ops, tables, place)?;
        }
        core.published = place.end;
        reclaim::request();
        Ok(replaced)
    }

    /// Publishes some of a body's records, under one pin.
    fn publish_piece(
        &self,
        core: &mut Core,
        body: &Body,
        ops: &[Op],
        tables: &[Arc<TableCore>],
        place: Place,
    ) -> Result<u32> {
        let guard = pin();
        let mut replaced = 0;
        let key = |index: usize| {
            let op = ops.get(index)?;
            Some((&*tables[op.table as usize], op.hash))
        };
        // One alone has nothing ahead of it, and was looked up a moment ago.
        let mut ahead = (ops.len() > 1).then(|| LookAhead::new(self, &guard, key));
        for (index, op) in ops.iter().enumerate() {
            let hint = match &mut ahead {
                Some(ahead) => ahead.step(index, key),
                None => self.look_ahead(&guard, &tables[op.table as usize], op.hash),
            };
            if op.superseded {
                // Nobody may see it: the batch is what its last word for each key says.
                if op.kind == RecordKind::Delete {
                    let at = Location::new(place.segment, place.body_at + op.at);
                    core.accounts.add_tombstone(at, op.bytes as usize);
                }
                continue;
            }
            let table = &tables[op.table as usize];
            let at = Location::new(place.segment, place.body_at + op.at);
            let record = Applied {
                kind: op.kind,
                hash: op.hash,
                key: body.key(op),
                at,
                bytes: op.bytes as usize,
            };
            // What fails here is a directory that was whole a moment ago: stop before it gets worse.
            let applied = self.apply(&guard, core, table, &record, hint);
            replaced += u32::from(applied.map_err(|error| self.poisoned(error))?);
        }
        Ok(replaced)
    }

    /// Makes one record of the log effective: in the directory and in the accounts. Whether it replaced or removed one.
    /// The same for a fresh commit and for replay. `hint` is where its key's last record may lie.
    #[inline]
    pub(crate) fn apply(
        &self,
        guard: &Guard,
        core: &mut Core,
        table: &TableCore,
        record: &Applied<'_>,
        hint: Option<Location>,
    ) -> Result<bool> {
        let Applied {
            kind,
            hash,
            key,
            at,
            bytes,
        } = *record;
        if kind == RecordKind::Clear {
            table.directory.replace(Arc::new(Directory::new()), guard);
            core.accounts.drop_table(table.id);
            core.accounts.add_tombstone(at, bytes);
            return Ok(true);
        }
        let directory = table.directory.load(guard);
        let damaged = |damage| self.directory_damage(damage);
        if kind == RecordKind::Put
            && let Some(old) = hint
            && let Some(old_bytes) = self.bytes_of_key_at(guard, table, old, key)
            && directory.relocate(guard, hash, old, at).map_err(damaged)?
        {
            core.accounts.add_live(at, table.id, bytes);
            core.accounts.sub_live(old, table.id, old_bytes);
            return Ok(true);
        }
        let old = self.locate(guard, table, hash, key)?;
        if kind == RecordKind::Put {
            match old {
                Some((old, _)) => {
                    let moved = directory.relocate(guard, hash, old, at).map_err(damaged)?;
                    assert!(moved, "found under the same lock");
                }
                None => directory.insert(guard, hash, at).map_err(damaged)?,
            }
            core.accounts.add_live(at, table.id, bytes);
        } else {
            if let Some((old, _)) = old {
                let removed = directory.remove(guard, hash, old).map_err(damaged)?;
                assert!(removed, "found under the same lock");
            }
            core.accounts.add_tombstone(at, bytes);
        }
        if let Some((old, old_bytes)) = old {
            core.accounts.sub_live(old, table.id, old_bytes);
        }
        Ok(old.is_some())
    }
}

/// Looks ahead of a row of operations, in stages: first has a key's chunk made ready, then asks for its bucket, later for the memory that the bucket leads to. What the second stage
/// saw is remembered for the operation's turn; it may be out of date then, never wrong about whose it is without the key telling.
pub(crate) struct LookAhead<'a> {
    engine: &'a Engine,
    guard: &'a Guard,
    lookups: Lookups<'a>,
    /// Of the next operations.
    seen: [Option<Location>; RECORD_AHEAD],
}

impl<'a> LookAhead<'a> {
    /// Looks at the first ones. `key` gives the table and hash of the operation at an index.
    pub(crate) fn new<'t>(
        engine: &'a Engine,
        guard: &'a Guard,
        key: impl Fn(usize) -> Option<(&'t TableCore, KeyHash)>,
    ) -> Self {
        let mut ahead = Self {
            engine,
            guard,
            lookups: engine.reads.lookups(),
            seen: [None; RECORD_AHEAD],
        };
        for (table, hash) in (0..CHUNK_AHEAD).map_while(&key) {
            table.directory.load(guard).thaw(guard, hash);
        }
        for (table, hash) in (1..BUCKET_AHEAD).map_while(&key) {
            table.directory.load(guard).prefetch(guard, hash);
        }
        for index in 0..RECORD_AHEAD {
            let Some((table, hash)) = key(index) else { break };
            let seen = engine.look_ahead(guard, table, hash);
            ahead.ask_disk(seen);
            ahead.seen[index] = seen;
        }
        ahead
    }

    /// Asks for the page of a record that will be looked at, if that seems worth it.
    #[inline]
    fn ask_disk(&mut self, seen: Option<Location>) {
        if self.lookups.ask_for_next()
            && let Some(location) = seen
            && let Some(segment) = self.engine.segments.load(self.guard).get(location)
        {
            segment.will_look(location.offset());
        }
    }

    /// Where the operation at `index`, whose turn it is, may find its key's last record.
    #[inline]
    pub(crate) fn step<'t>(
        &mut self,
        index: usize,
        key: impl Fn(usize) -> Option<(&'t TableCore, KeyHash)>,
    ) -> Option<Location> {
        if let Some((table, hash)) = key(index + CHUNK_AHEAD) {
            table.directory.load(self.guard).thaw(self.guard, hash);
        }
        if let Some((table, hash)) = key(index + BUCKET_AHEAD) {
            table.directory.load(self.guard).prefetch(self.guard, hash);
        }
        let later = key(index + RECORD_AHEAD)
            .and_then(|(table, hash)| self.engine.look_ahead(self.guard, table, hash));
        self.ask_disk(later);
        std::mem::replace(&mut self.seen[index % RECORD_AHEAD], later)
    }
}

impl Engine {
    /// Asks for the memory that a key's bucket, by now at hand, leads to: its record, or the room that a new key will need.
    #[inline]
    fn look_ahead(&self, guard: &Guard, table: &TableCore, hash: KeyHash) -> Option<Location> {
        let directory = table.directory.load(guard);
        // Damage is met again, and told, when the operation's turn has come.
        let seen = directory.candidates(guard, hash).ok()?.next();
        match seen {
            Some(location) => {
                if let Some(segment) = self.segments.load(guard).get(location) {
                    segment.prefetch_key(location.offset());
                }
            }
            None => directory.prefetch_room(guard, hash),
        }
        seen
    }

    /// Length of the record at `location` if it is of this key, without verifying it, as in `locate`.
    #[inline]
    fn bytes_of_key_at(
        &self,
        guard: &Guard,
        table: &TableCore,
        location: Location,
        key: &[u8],
    ) -> Option<usize> {
        let record = self
            .segments
            .load(guard)
            .get(location)?
            .record(location.offset())?;
        (record.head.table == table.id && record.key() == key).then_some(record.head.bytes())
    }
}

/// A record at its place in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied<'a> {
    pub(crate) kind: RecordKind,
    pub(crate) hash: KeyHash,
    pub(crate) key: &'a [u8],
    pub(crate) at: Location,
    pub(crate) bytes: usize,
}
