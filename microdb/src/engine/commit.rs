//! Commits. All commits have one order, which is their order in the log.
//!
//! - A buffered commit takes the commit lock, appends and publishes. A durable commit joins a group
//!   ([`crate::engine::group`]). So does a buffered commit while a group is in flight, or if its
//!   transaction gets a turn.
//! - A commit may carry checks (compare-and-swap, transactions): keys that must have the same
//!   record as when they were read, or must still be absent. Checks run under the commit lock, so
//!   no other commit can change a key between its check and the append.
//! - A check also fails if an earlier commit of the same group writes the key, or clears or drops
//!   its table.
//! - A commit to a dropped table is refused under the same lock, so that no record is acknowledged
//!   after its table was dropped.
//!
//! Deliberately absent: IO. `log` writes and syncs.

use std::sync::Arc;
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
use crate::raw::sync::ignore_poison;
use crate::seeded::seeded;

/// A key that a commit depends on, and the location of its record when the key was read. The
/// location is `None` if the key was absent.
#[derive(Clone)]
pub(crate) struct Check {
    pub(crate) table: Arc<TableCore>,
    pub(crate) hash: KeyHash,
    pub(crate) key: Vec<u8>,
    pub(crate) expected: Option<Location>,
}

/// The reads on which a commit depends.
#[derive(Clone, Default)]
pub(crate) struct Checks {
    /// All reads are valid while the visible state has this version. For reads from a snapshot it
    /// is `u64::MAX`, which the visible state never has.
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

/// Result of a commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) sequence: u64,
    /// Number of records of the commit that replaced or removed an earlier record. A clear marker
    /// counts as one.
    pub(crate) replaced: u32,
}

/// Distance, in operations, at which the directory chunk of a later operation's key is made
/// writable (copied if necessary). A miss in the processor's caches and in its cache of page
/// addresses (TLB) takes as long as this many operations.
const CHUNK_AHEAD: usize = 48;
/// Distance, in operations, at which the directory bucket of a later operation's key is prefetched
/// into the processor's cache.
const BUCKET_AHEAD: usize = 32;
/// Distance, in operations, at which the present record of a later operation's key is prefetched
/// into the processor's cache.
const RECORD_AHEAD: usize = 16;

/// Maximum number of records published under one pin. Publishing replaces chunks (parts of the
/// directory) by larger ones, and a replaced chunk is freed only after the pin ends. A batch of
/// millions of records may replace every chunk several times, so one pin for the whole batch would
/// keep much memory allocated.
const PINNED_RECORDS: usize = 4096;

/// Maximum number of records of a body that are looked up before the commit lock is taken. With
/// more records, the processor's caches would evict the first ones before they are published.
const WARM_RECORDS: usize = 512;

impl Engine {
    /// Commits `body` if all `checks` hold, and fails with [`Error::Conflict`] if one does not. The
    /// records of `body` refer to `tables` by index. The caller can reuse the buffer `body`
    /// afterwards.
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

    /// Commits durably a change of the catalog, or the clearing of a table (without `change`).
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

    /// Commits a transaction in a group. `runner` runs the body of the transaction again if the
    /// transaction gets a turn (see [`crate::engine::group`]).
    pub(crate) fn commit_transaction(&self, request: Request, runner: Runner<'_>) -> Committed {
        let durable = request.durability == Durability::Sync;
        self.timed(durable, || self.commit_in_group(request, Some(runner)))
    }

    /// Commits a transaction in a group. A conflict is returned as an error, because the
    /// transaction gets no turn (see [`crate::engine::group`]).
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

    /// Runs `commit`, and records its duration if `durable`. Buffered commits are not measured,
    /// because they take hardly longer than reading the clock twice.
    fn timed<T>(&self, durable: bool, commit: impl FnOnce() -> T) -> T {
        let started = durable.then(Instant::now);
        let result = commit();
        if let Some(started) = started {
            let ns = started.elapsed().as_nanos() as u64;
            self.counters.durable_commit_ns.add(ns);
        }
        result
    }

    /// Performs the steps of a commit that do not need the commit lock. Fails early if the commit
    /// is certain to be refused, for example because a table was dropped. Loads into the
    /// processor's caches the memory that the commit will access.
    pub(crate) fn prepare(&self, body: &Body, tables: &[Arc<TableCore>]) -> Result<()> {
        nesting::check_outside(self)?;
        self.check_writable()?;
        tables.iter().try_for_each(|table| table.check_not_dropped())?;
        if self.unmapped.is_full() {
            self.map_again();
        }
        self.warm(body, tables)
    }

    /// Commits `body` without a group and makes it visible immediately. Returns `None` if a group
    /// is in flight (see `Core::in_flight`), because this commit must not become visible before
    /// that group.
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
        // A table may have been dropped since `prepare` checked it without the lock.
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

    /// Prepares the directory for a commit before the commit lock is taken. Look-ups of the first
    /// keys fill the caches. Each chunk that the commit changes is copied to memory if it is in a
    /// checkpoint, and the copy verifies it. So damage in the directory is found while the commit
    /// can still be refused.
    pub(crate) fn warm(&self, body: &Body, tables: &[Arc<TableCore>]) -> Result<()> {
        let guard = pin();
        let (first, later) = body.ops.split_at(body.ops.len().min(WARM_RECORDS));
        let is_key = |op: &&Op| op.kind != RecordKind::Clear;
        let directory = |op: &Op| tables[op.table as usize].directory.load(&guard);
        let damaged = |damage| self.directory_damage(damage);
        for op in first.iter().filter(is_key) {
            directory(op).prefetch(&guard, op.hash);
        }
        let segments = self.segments.load(&guard);
        for op in first.iter().filter(is_key) {
            // The copy verifies the chunk. It is made before the look-up, so that the look-up need
            // not verify the chunk too.
            let is_put = op.kind == RecordKind::Put;
            if is_put {
                directory(op).prepare(&guard, op.hash).map_err(damaged)?;
            }
            let candidates = directory(op).candidates(&guard, op.hash);
            let found = candidates.map_err(damaged)?.next();
            match found {
                Some(location) => {
                    if let Some(segment) = segments.get(location) {
                        segment.prefetch_key(location.offset());
                    }
                }
                None => directory(op).prefetch_room(&guard, op.hash),
            }
            // The deletion of an absent key changes no chunk, so no chunk is prepared for it.
            if found.is_some() && !is_put {
                directory(op).prepare(&guard, op.hash).map_err(damaged)?;
            }
        }
        for op in later.iter().filter(is_key) {
            directory(op).prepare(&guard, op.hash).map_err(damaged)?;
        }
        Ok(())
    }

    /// Checks that all keys still have the records that were read, or are still absent. `writes`
    /// are the commits of the same group that are not visible yet, or `None` for a commit without a
    /// group. They must not touch the keys.
    ///
    /// # Errors
    /// [`Error::Conflict`] if a key has changed or `writes` touch it, and the errors of a look-up.
    pub(crate) fn check_all(&self, checks: &Checks, writes: Option<&GroupWrites>) -> Result<()> {
        if checks.is_empty() {
            return Ok(());
        }
        let guard = pin();
        // If no commit was published since the reads, the visible state of the keys is unchanged.
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

    /// Returns `true` if a key has the record that was read, at the same location, or is still
    /// absent. So a record that compaction has moved counts as changed. The checksum of the record
    /// is verified again, because the key of a damaged record cannot be trusted.
    pub(crate) fn is_as_read(&self, guard: &Guard, check: &Check) -> Result<bool> {
        let found = self.lookup(guard, &check.table, check.hash, &check.key)?;
        Ok(found.map(|found| found.location) == check.expected)
    }

    /// Makes an appended frame visible. Snapshots, iterators and transactions see all of its
    /// records or none. Returns the number of replaced or removed records. After an error, the
    /// database is poisoned, and some of the records may be visible.
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
            let mut catalog = ignore_poison(self.catalog.write());
            catalog.apply(change);
        }
        self.version.end();
        published
    }

    /// Points the directories to the records of an appended frame. Returns the number of replaced
    /// or removed records.
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
        // With a single operation, there is no later operation to prefetch for.
        let mut ahead = (ops.len() > 1).then(|| LookAhead::new(self, &guard, key));
        for (index, op) in ops.iter().enumerate() {
            let hint = match &mut ahead {
                Some(ahead) => ahead.step(index, key),
                None => self.look_ahead(&guard, &tables[op.table as usize], op.hash),
            };
            if op.superseded {
                // The directory never points to a superseded record, because a batch makes only the
                // last record of each key visible.
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
            // An error means that a chunk of the directory was damaged in the checkpoint after
            // `warm` had verified it. The frame is in the log, but visible only in part, so the
            // database is poisoned.
            let applied = self.apply(&guard, core, table, &record, hint);
            replaced += u32::from(applied.map_err(|error| self.poisoned(error))?);
        }
        Ok(replaced)
    }

    /// Applies one record of the log to the directory and the usage counts, for fresh commits and
    /// for replay. Returns `true` for a clear marker, and if the record replaced or removed another
    /// record. `hint` is the probable location of the key's present record, or `None` if that is
    /// unknown or the key is probably absent.
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
            if seeded("cleared-directory-kept") {
                std::mem::forget(table.directory.load_arc(guard));
            }
            table.directory.replace(Arc::new(Directory::new()), guard);
            // Hands the old directory to the collector now. Otherwise it would stay in memory if
            // this thread makes no further call.
            guard.flush();
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

/// Loads into the processor's caches the memory that a sequence of operations will access, in three
/// stages. The first copies the directory chunk of a key for writing, unless it is writable
/// already. The second prefetches the bucket in the chunk, and the third the record to which the
/// bucket points. The location of that record is kept for the operation. The kept location may be
/// outdated, but the key comparison prevents its use for another key.
pub(crate) struct LookAhead<'a> {
    engine: &'a Engine,
    guard: &'a Guard,
    lookups: Lookups<'a>,
    /// Locations found by the third stage for the next operations, by index modulo `RECORD_AHEAD`.
    seen: [Option<Location>; RECORD_AHEAD],
}

impl<'a> LookAhead<'a> {
    /// Performs the three stages for the first operations. `key` returns the table and the key hash
    /// of the operation at an index, or `None` after the last operation.
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

    /// Requests the page of a later operation's record from the disk if a recent round of look-ups
    /// waited for the disk.
    #[inline]
    fn ask_disk(&mut self, seen: Option<Location>) {
        if self.lookups.ask_for_next()
            && let Some(location) = seen
            && let Some(segment) = self.engine.segments.load(self.guard).get(location)
        {
            segment.will_look(location.offset());
        }
    }

    /// Advances to the operation at `index`. Returns the probable location of the present record of
    /// the operation's key, or `None` if the key was probably absent or its directory chunk is
    /// damaged.
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
    /// Prefetches memory into the processor's cache: the first candidate for the record of a key,
    /// or the bucket for a new key. Returns the location of that candidate, or `None` without one.
    #[inline]
    fn look_ahead(&self, guard: &Guard, table: &TableCore, hash: KeyHash) -> Option<Location> {
        let directory = table.directory.load(guard);
        // Damage is ignored here. The execution of the operation finds and reports it.
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

    /// Returns the length of the record at `location` if it is a record of `key` in `table`. The
    /// checksum of the record is not verified, as in [`Engine::locate`].
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

/// A record and its position in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied<'a> {
    pub(crate) kind: RecordKind,
    pub(crate) hash: KeyHash,
    pub(crate) key: &'a [u8],
    pub(crate) at: Location,
    pub(crate) bytes: usize,
}
