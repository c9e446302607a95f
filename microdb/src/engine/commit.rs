//! Commits: one order for all.
//!
//! A buffered commit takes the commit lock, appends and publishes. A durable one joins a group
//! ([`crate::engine::group`]).
//!
//! A commit may carry checks (compare-and-swap, transactions): keys that must still have the
//! records that were read, or still be absent. Checks are made under the commit lock, where nothing
//! can change. A key that an earlier commit of the same group writes, and each key of a table that
//! it clears or drops, fails its check. A commit to a dropped table is refused under the same lock,
//! so no acknowledged record is in a dropped table.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::directory::{Directory, KeyHash, Location};
use crate::engine::body::{Body, Op};
use crate::engine::catalog::{CatalogChange, TableCore};
use crate::engine::group::{Committed, Request, Runner, Turn};
use crate::engine::group_writes::GroupWrites;
use crate::engine::log::{Core, Place};
use crate::engine::nesting;
use crate::engine::read_ahead::Lookups;
use crate::engine::{Engine, lock_briefly};
use crate::error::{Error, Result};
use crate::format::record::RecordKind;
use crate::options::Durability;
use crate::raw::epoch::{Guard, pin};
use crate::raw::reclaim;
use crate::seeded::seeded;

/// A key whose location must not have changed since it was read.
#[derive(Clone)]
pub(crate) struct Check {
    pub(crate) table: Arc<TableCore>,
    pub(crate) hash: KeyHash,
    pub(crate) key: Vec<u8>,
    pub(crate) expected: Option<Location>,
}

/// The reads that a commit depends on.
#[derive(Clone, Default)]
pub(crate) struct Checks {
    /// Version of the visible state at which all of them held.
    pub(crate) version: u64,
    pub(crate) keys: Vec<Check>,
}

impl Checks {
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The result of a commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) sequence: u64,
    /// How many of its records replaced or removed one.
    pub(crate) replaced: u32,
}

/// How many operations ahead a chunk is made ready for changes, a bucket in it is asked for, and
/// the record that it leads to: a miss of the caches and of the page tables takes as long as many
/// operations.
const CHUNK_AHEAD: usize = 48;
/// See [`CHUNK_AHEAD`].
const BUCKET_AHEAD: usize = 32;
/// See [`CHUNK_AHEAD`].
const RECORD_AHEAD: usize = 16;

/// Records published under one pin. The chunks of the directory that they replace can be freed only
/// after it, and a batch of millions would replace all of them several times.
const PINNED_RECORDS: usize = 4096;

/// Bodies up to this many records are looked up before the lock is taken; of larger ones the first
/// would be forgotten before their turn.
const WARM_RECORDS: usize = 512;

impl Engine {
    /// Commits `body`, whose records name `tables` by index, if all `checks` hold
    /// ([`Error::Conflict`] if not). The body can be committed again after an error.
    pub(crate) fn commit(
        &self,
        body: &mut Body,
        tables: &[Arc<TableCore>],
        durability: Durability,
        checks: Checks,
    ) -> Result<Outcome> {
        self.prepare(body, tables)?;
        if durability == Durability::Buffered
            && let Some(outcome) = self.commit_at_once(body, tables, &checks)?
        {
            return Ok(outcome);
        }
        let request = Request {
            body: std::mem::take(body),
            tables: tables.to_vec(),
            checks,
            ..Request::turn(durability, Turn::Never)
        };
        self.commit_and_wait(body, request)
    }

    /// Commits a change of the catalog, durably.
    pub(crate) fn commit_change(
        &self,
        mut body: Body,
        tables: Vec<Arc<TableCore>>,
        change: Option<CatalogChange>,
    ) -> Result<()> {
        self.prepare(&body, &tables)?;
        let request = Request {
            body: std::mem::take(&mut body),
            tables,
            change,
            ..Request::turn(Durability::Sync, Turn::Never)
        };
        self.commit_and_wait(&mut body, request).map(|_| ())
    }

    /// Commits a transaction with a group; `runner` runs its body if it has a turn.
    pub(crate) fn commit_transaction(&self, request: Request, runner: Runner<'_>) -> Committed {
        let durable = request.durability == Durability::Sync;
        self.timed(durable, || self.commit_in_group(request, Some(runner)))
    }

    /// Commits a transaction with a group, without a turn.
    pub(crate) fn commit_without_turn(&self, request: Request) -> Committed {
        let durable = request.durability == Durability::Sync;
        self.timed(durable, || self.commit_in_group(request, None))
    }

    fn commit_and_wait(&self, body: &mut Body, request: Request) -> Result<Outcome> {
        let durable = request.durability == Durability::Sync;
        match self.timed(durable, || self.commit_in_group(request, None)) {
            Committed::Done(result, used) => {
                *body = used;
                result
            }
            Committed::TurnLost => Err(Error::Conflict { tries: 1 }),
        }
    }

    /// Measures durable commits only: a buffered one takes not much longer than two looks at the
    /// clock.
    fn timed<T>(&self, durable: bool, commit: impl FnOnce() -> T) -> T {
        let started = durable.then(Instant::now);
        let result = commit();
        if let Some(started) = started {
            let ns = started.elapsed().as_nanos() as u64;
            self.counters.durable_commit_ns.add(ns);
        }
        result
    }

    /// Makes the checks of a commit that need no lock.
    pub(crate) fn prepare(&self, body: &Body, tables: &[Arc<TableCore>]) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_writable()?;
        tables.iter().try_for_each(|table| table.check_not_dropped())?;
        if self.unmapped.is_full() {
            self.map_again();
        }
        self.warm(body, tables)
    }

    /// Commits without a group, visible at once. `None` if a group is in flight: the commit may not
    /// be seen before it.
    pub(crate) fn commit_at_once(
        &self,
        body: &mut Body,
        tables: &[Arc<TableCore>],
        checks: &Checks,
    ) -> Result<Option<Outcome>> {
        let mut core = lock_briefly(&self.core);
        if core.in_flight {
            return Ok(None);
        }
        self.check_writable()?;
        // A table may have been dropped since the checks without the lock.
        tables.iter().try_for_each(|table| table.check_not_dropped())?;
        self.check_all(checks, None)?;
        let place = self.append(&mut core, body)?;
        let replaced = self.publish(&mut core, body, tables, None, place)?;
        drop(core);
        self.counters.commits.add(1);
        self.counters.records.add(body.ops.len() as u64);
        self.write_if_due();
        Ok(Some(Outcome {
            sequence: place.end.sequence,
            replaced,
        }))
    }

    /// Looks each key's slot up before any lock is taken: brings it and what it leads to near, and
    /// meets damage in the directory while the commit can still be refused.
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

    /// Checks that all keys have the records that were read, or are still absent, also after
    /// `writes`.
    ///
    /// # Errors
    /// [`Error::Conflict`] if one has not.
    pub(crate) fn check_all(&self, checks: &Checks, writes: Option<&GroupWrites>) -> Result<()> {
        if checks.is_empty() {
            return Ok(());
        }
        let guard = pin();
        // Nothing was published since the reads: they still hold in what is visible.
        let is_current = self.version.is_still(checks.version);
        for check in &checks.keys {
            let touched = writes.is_some_and(|writes| writes.touches(check.table.id, check.hash));
            let holds = !touched && (is_current || self.is_as_read(&guard, check)?);
            let passes = holds || check.expected.is_none() && seeded("absent-keys-unchecked");
            if !passes {
                return Err(Error::Conflict { tries: 1 });
            }
        }
        Ok(())
    }

    /// Returns `true` if a key has the record that was read, or is still absent. The record is
    /// verified, as in the read: nobody can tell the key of a damaged record.
    pub(crate) fn is_as_read(&self, guard: &Guard, check: &Check) -> Result<bool> {
        let found = self.lookup(guard, &check.table, check.hash, &check.key)?;
        Ok(found.map(|found| found.location) == check.expected)
    }

    /// Makes an appended frame visible, whole. Returns the number of records that were replaced or
    /// removed.
    pub(crate) fn publish(
        &self,
        core: &mut Core,
        body: &Body,
        tables: &[Arc<TableCore>],
        change: Option<&CatalogChange>,
        place: Place,
    ) -> Result<u32> {
        self.version.begin();
        let published = self.point_to(core, body, tables, place);
        if published.is_ok()
            && let Some(change) = change
        {
            let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
            catalog.apply(change);
        }
        self.version.end();
        published
    }

    /// Points the directories to an appended frame's records. Returns how many records were
    /// replaced or removed.
    fn point_to(&self, core: &mut Core, body: &Body, tables: &[Arc<TableCore>], place: Place) -> Result<u32> {
        let mut replaced = 0;
        for ops in body.ops.chunks(PINNED_RECORDS) {
            replaced += self.point_some_to(core, body, ops, tables, place)?;
        }
        core.publish(place, body.ops.len());
        reclaim::request();
        Ok(replaced)
    }

    /// Points the directories to some of a body's records, under one pin.
    fn point_some_to(
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
                    core.usages.add_tombstone(at, op.bytes as usize);
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
            // What fails here is a directory that was whole a moment ago: stop before it gets
            // worse.
            let applied = self.apply(&guard, core, table, &record, hint);
            replaced += u32::from(applied.map_err(|error| self.poisoned(error))?);
        }
        Ok(replaced)
    }

    /// Makes one record of the log effective: in the directory and in the accounts. Whether it
    /// replaced or removed one. The same for a fresh commit and for replay. `hint` is where its
    /// key's last record may lie.
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
            core.usages.drop_table(table.id);
            core.usages.add_tombstone(at, bytes);
            return Ok(true);
        }
        let directory = table.directory.load(guard);
        let damaged = |damage| self.directory_damage(damage);
        if kind == RecordKind::Put
            && let Some(old) = hint
            && let Some(old_bytes) = self.bytes_of_key_at(guard, table, old, key)
            && directory.relocate(guard, hash, old, at).map_err(damaged)?
        {
            core.usages.add_live(at, table.id, bytes);
            core.usages.sub_live(old, table.id, old_bytes);
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
            core.usages.add_live(at, table.id, bytes);
        } else {
            if let Some((old, _)) = old {
                let removed = directory.remove(guard, hash, old).map_err(damaged)?;
                assert!(removed, "found under the same lock");
            }
            core.usages.add_tombstone(at, bytes);
        }
        if let Some((old, old_bytes)) = old {
            core.usages.sub_live(old, table.id, old_bytes);
        }
        Ok(old.is_some())
    }
}

/// Looks ahead of a row of operations, in stages: first has a key's chunk made ready, then asks for
/// its bucket, later for the memory that the bucket leads to. What the second stage saw is
/// remembered for the operation's turn; it may be out of date then, never wrong about whose it is
/// without the key telling.
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
    /// Asks for the memory that a key's bucket, by now at hand, leads to: its record, or the room
    /// that a new key will need.
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

    /// Length of the record at `location` if it is of this key, without verifying it, as in
    /// `locate`.
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
