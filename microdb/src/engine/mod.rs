//! State shared by all handles of one open database, and the path of a read.
//!
//! Order of locks:
//!
//! 1. `digests` (computing digests), `compacting`, `checkpointing`, `sealed` (sealing), `ddl`
//!    (creating and dropping tables).
//! 2. `writer` (writing and syncing the log).
//! 3. `core` (appending and publishing). Held for less than a microsecond per small commit. Never
//!    held during a call that waits for the disk, except for the creation of a segment.
//! 4. `catalog`. No lock is taken under it.
//!
//! `queue` (commit groups) is held alone, except for the slot of a member. Readers take none of
//! these locks.

pub(crate) mod background;
pub(crate) mod body;
pub(crate) mod catalog;
pub(crate) mod checkpoint;
pub(crate) mod commit;
pub(crate) mod compact;
pub(crate) mod counters;
pub(crate) mod digest_cache;
pub(crate) mod group;
pub(crate) mod group_writes;
pub(crate) mod histogram;
pub(crate) mod identity;
pub(crate) mod log;
pub(crate) mod log_order;
pub(crate) mod nesting;
pub(crate) mod read_ahead;
pub(crate) mod recovery_report;
pub(crate) mod segment_usage;
pub(crate) mod segments;
pub(crate) mod space;
pub(crate) mod tables;
pub(crate) mod version;

use std::collections::HashSet;
use std::sync::{Arc, RwLock};

use crate::directory::{Damage, KeyHash, Location};
use crate::engine::background::Background;
use crate::engine::catalog::{Catalog, TableCore};
use crate::engine::compact::Compaction;
use crate::engine::counters::Counters;
use crate::engine::digest_cache::DigestCache;
use crate::engine::group::Queue;
use crate::engine::identity::LocksCell;
use crate::engine::log::{Core, LogSize, Unmapped, Writer};
use crate::engine::read_ahead::DiskReads;
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::segments::{Segment, Segments};
use crate::engine::space::Space;
use crate::engine::version::Version;
use crate::error::{Error, Result};
use crate::format::names::Paths;
use crate::format::record::{Record, RecordKind};
use crate::format::{DatabaseId, LogPosition};
use crate::options::Options;
use crate::raw::epoch::{Guard, pin};
use crate::raw::fork::Birth;
use crate::raw::sigbus::any_cut;
use crate::raw::sync::{AtomicBool, AtomicU64, Condvar, Mutex, OnceLock, Ordering};
pub(crate) use crate::raw::sync::{lock, lock_briefly};
use crate::raw::tail::Spare;
use crate::seeded::seeded;
use crate::storage::StorageFile;
use crate::value::Value;

/// Number of times that a read starts over because compaction moved its record. Each time means
/// that a whole segment was compacted and removed during the read, so even a second time is very
/// unlikely.
const MOVED_TRIES: u32 = 16;

/// Largest log since the last checkpoint for which `close` writes no further checkpoint. Replaying
/// it takes about half a millisecond, not counting the directory.
const CLOSE_REPLAY_BYTES: u64 = 256 * 1024;

/// Largest part of the directory copied by a replay for which `close` writes no checkpoint.
/// Reading, verifying and copying it takes about a millisecond.
const CLOSE_COPY_BYTES: u64 = 2 << 20;

/// Upper bound for the bytes of the directory copied by one replayed record: a chunk of usual size.
const CHUNK_COPY_BYTES: u64 = 48 * 1024;

/// Number of keys in flight in `multi_get`. More than the processor can wait for at once, and few
/// enough for the first-level cache.
const STAGE_KEYS: usize = 64;

/// Purpose of a close, which decides if a checkpoint is worth its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closing {
    /// The next open should take about a millisecond.
    Usual,
    /// Another process opens the database at once and waits for both close and open.
    Quick,
}

/// One open database.
pub(crate) struct Engine {
    pub(crate) options: Options,
    pub(crate) paths: Paths,
    pub(crate) database: DatabaseId,
    pub(crate) hash_seed: [u8; 16],
    pub(crate) created_ms: u64,
    pub(crate) segments: Segments,
    pub(crate) catalog: RwLock<Catalog>,
    pub(crate) ddl: Mutex<()>,
    pub(crate) core: Mutex<Core>,
    pub(crate) writer: Mutex<Writer>,
    pub(crate) queue: Mutex<Queue>,
    /// Members of even and odd groups wait on different variables, so that a finished group wakes
    /// only its own members.
    pub(crate) group_done: [Condvar; 2],
    /// Enough members have arrived for the group whose leader is gathering.
    pub(crate) group_full: Condvar,
    /// No frame is waiting to be published. Used with `core`.
    pub(crate) quiet: Condvar,
    /// Version of the visible state, changed under `core`.
    pub(crate) version: Version,
    pub(crate) super_file: Option<Arc<dyn StorageFile>>,
    /// Durable frontier in packed form, for frame headers.
    pub(crate) frontier: AtomicU64,
    /// Bytes of the log ever appended, and the part of them handed to the operating system.
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) poison: OnceLock<Arc<Error>>,
    pub(crate) closed: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) recovery: RecoveryReport,
    /// Identity of the process that opened the database.
    pub(crate) birth: Birth,
    pub(crate) lock: LocksCell,
    pub(crate) unmapped: Unmapped,
    pub(crate) checkpointing: Mutex<()>,
    pub(crate) compacting: Mutex<Compaction>,
    pub(crate) background: Background,
    /// Segments known to have a complete seal. Held while sealing.
    pub(crate) sealed: Mutex<HashSet<u64>>,
    /// Segments in which compaction found damage, and which it skips since.
    pub(crate) damaged: Mutex<HashSet<u64>>,
    /// The digests computed last. Taken before `ddl`.
    pub(crate) digests: Mutex<Option<DigestCache>>,
    pub(crate) reads: DiskReads,
    /// Bounds for the size of the log.
    pub(crate) space: Space,
    /// Number of complete segments not written to their end.
    pub(crate) rolled_segments: std::sync::atomic::AtomicUsize,
    /// Memory for the next segment.
    pub(crate) spare: Arc<Spare>,
}

/// A verified record found by a lookup.
pub(crate) struct Found<'g> {
    pub(crate) location: Location,
    pub(crate) segment: &'g Arc<Segment>,
    pub(crate) record: Record<'g>,
}

impl Found<'_> {
    #[inline]
    pub(crate) fn value(&self) -> Value {
        let head = &self.record.head;
        self.piece(head.key_at + head.key_bytes, head.value_bytes)
    }

    #[inline]
    pub(crate) fn key(&self) -> Value {
        self.piece(self.record.head.key_at, self.record.head.key_bytes)
    }

    /// Returns `len` bytes of the record from its byte `at`.
    #[inline]
    fn piece(&self, at: usize, len: usize) -> Value {
        let offset = self.location.offset() + at as u32;
        if any_cut() && self.segment.is_cut() {
            return self.copied(at, len);
        }
        Value::new(self.segment.bytes_at(offset), len, self.segment, offset)
    }

    /// Nothing of a segment with a truncated file is shared.
    #[cold]
    fn copied(&self, at: usize, len: usize) -> Value {
        Value::copied(self.record.bytes.get(at..at + len).unwrap_or_default())
    }

    /// Checks that the bytes taken from the record were not in truncated pages of its file. Called
    /// after taking the bytes, since the file may be truncated at any moment.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if they were.
    #[inline(always)]
    pub(crate) fn check_uncut(&self) -> Result<()> {
        if any_cut() && self.segment.is_cut() {
            self.segment.verified(self.location.offset())?;
        }
        Ok(())
    }
}

impl Engine {
    /// Returns the hash under which directories store the key. The hash is keyed, so that nobody
    /// can choose colliding keys.
    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(siphasher::sip::SipHasher13::new_with_key(&self.hash_seed).hash(key))
    }

    /// Returns the value of `key`.
    #[inline]
    pub(crate) fn get(&self, table: &TableCore, key: &[u8]) -> Result<Option<Value>> {
        let guard = pin();
        match self.lookup(&guard, table, self.hash(key), key)? {
            Some(found) => {
                let value = found.value();
                found.check_uncut()?;
                Ok(Some(value))
            }
            None => Ok(None),
        }
    }

    /// Returns the live record of `key`.
    #[inline]
    pub(crate) fn lookup<'g>(
        &'g self,
        guard: &'g Guard,
        table: &'g TableCore,
        hash: KeyHash,
        key: &[u8],
    ) -> Result<Option<Found<'g>>> {
        self.check_readable(table)?;
        for _ in 0..MOVED_TRIES {
            let directory = table.directory.load(guard);
            let mut moved = None;
            let mut damaged = None;
            let candidates = directory.candidates(guard, hash);
            for location in candidates.map_err(|damage| self.directory_damage(damage))? {
                let Some(segment) = self.segments.load(guard).get(location) else {
                    moved = Some(location);
                    break;
                };
                segment.prefetch(location.offset());
                match segment.intact(location.offset()) {
                    Some(record) if is_key_of(&record, table.id, key) => {
                        return Ok(Some(Found {
                            location,
                            segment,
                            record,
                        }));
                    }
                    Some(_) => {}
                    None => damaged = Some((segment, location)),
                }
            }
            match (moved, damaged) {
                (None, None) => {
                    if any_cut() {
                        let uncut = directory.check_uncut(guard, hash);
                        uncut.map_err(|damage| self.directory_damage(damage))?;
                    }
                    return Ok(None);
                }
                // The damaged record may have been the one of this key.
                (None, Some((segment, location))) => return Err(segment.flaw(location.offset())),
                (Some(_), _) => {}
            }
        }
        Err(Error::corrupt(
            self.paths.root(),
            0,
            "directory slot",
            "a location in a live segment",
            "none",
        ))
    }

    /// Returns the values of many keys, in stages: buckets, records, values. Each stage prefetches
    /// for one key and continues with another instead of waiting.
    pub(crate) fn multi_get<K: AsRef<[u8]>>(
        &self,
        table: &TableCore,
        keys: &[K],
    ) -> Result<Vec<Option<Value>>> {
        self.check_readable(table)?;
        let mut values = Vec::with_capacity(keys.len());
        let mut hashes = [KeyHash(0); STAGE_KEYS];
        let mut places = [None; STAGE_KEYS];
        for keys in keys.chunks(STAGE_KEYS) {
            let guard = pin();
            let mut lookups = self.reads.lookups();
            let directory = table.directory.load(&guard);
            for (key, hash) in keys.iter().zip(&mut hashes) {
                *hash = self.hash(key.as_ref());
                directory.prefetch(&guard, *hash);
            }
            let segments = self.segments.load(&guard);
            for (hash, place) in hashes.iter().zip(&mut places).take(keys.len()) {
                let candidates = directory.candidates(&guard, *hash);
                *place = candidates.map_err(|damage| self.directory_damage(damage))?.next();
                if let Some(location) = *place
                    && let Some(segment) = segments.get(location)
                {
                    segment.prefetch(location.offset());
                    if lookups.ask_for_next() {
                        segment.will_look(location.offset());
                    }
                }
            }
            for ((key, hash), place) in keys.iter().zip(hashes).zip(places) {
                let key = key.as_ref();
                let Some(location) = place else {
                    if any_cut() {
                        let uncut = directory.check_uncut(&guard, hash);
                        uncut.map_err(|damage| self.directory_damage(damage))?;
                    }
                    values.push(None);
                    continue;
                };
                let segment = segments.get(location);
                let record = segment.and_then(|segment| segment.intact(location.offset()));
                let found = match segment.zip(record) {
                    Some((segment, record)) if is_key_of(&record, table.id, key) => Some(Found {
                        location,
                        segment,
                        record,
                    }),
                    // Another key with the same tag, a damaged record, or a record that moved in
                    // between. The full lookup decides.
                    _ => self.lookup(&guard, table, hash, key)?,
                };
                let value = found.as_ref().map(Found::value);
                if let Some(found) = found {
                    found.check_uncut()?;
                }
                values.push(value);
            }
        }
        Ok(values)
    }

    /// Returns the location of `key` in the directory and the length of its record. The key is
    /// compared without verifying the record, for writers that replace it anyway.
    pub(crate) fn locate(
        &self,
        guard: &Guard,
        table: &TableCore,
        hash: KeyHash,
        key: &[u8],
    ) -> Result<Option<(Location, usize)>> {
        let segments = self.segments.load(guard);
        let mut bytes = 0;
        let found = table.directory.load(guard).find(guard, hash, |location| {
            let Some(record) = segments
                .get(location)
                .and_then(|segment| segment.record(location.offset()))
            else {
                return Ok::<_, DirectoryError>(false);
            };
            bytes = record.head.bytes();
            Ok(record.head.table == table.id && record.key() == key)
        });
        match found {
            Ok(location) => Ok(location.map(|location| (location, bytes))),
            Err(DirectoryError(damage)) => Err(self.directory_damage(damage)),
        }
    }

    #[inline]
    fn check_readable(&self, table: &TableCore) -> Result<()> {
        self.check_process()?;
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        if table.is_dropped() {
            return Err(Error::TableDropped { name: table.name() });
        }
        Ok(())
    }

    /// Fails if writes are not accepted.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_process()?;
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        if self.options.read_only {
            return Err(Error::ReadOnly);
        }
        match self.poison.get() {
            Some(cause) if !seeded("poison-forgotten") => Err(Error::Poisoned { cause: cause.clone() }),
            _ => Ok(()),
        }
    }

    /// Refuses all writes from now on because of `error`, or of an earlier error.
    pub(crate) fn poisoned(&self, error: Error) -> Error {
        let error = match error {
            Error::Poisoned { cause } => cause,
            error => Arc::new(error),
        };
        Error::Poisoned {
            cause: self.poison.get_or_init(|| error).clone(),
        }
    }

    #[cold]
    pub(crate) fn directory_damage(&self, damage: Damage) -> Error {
        // Chunks are in a file only if the open found them there, in the checkpoint that it used.
        let path = self.paths.checkpoint(self.recovery.checkpoint);
        let (expected, found) = (
            format_args!("{:#x}", damage.expected),
            format_args!("{:#x}", damage.found),
        );
        Error::corrupt(&path, damage.offset, damage.field, expected, found)
    }

    /// Returns the amount of log that the next open would replay: everything after the moment of
    /// the last checkpoint.
    pub(crate) fn log_since_checkpoint(&self) -> LogSize {
        let core = lock_briefly(&self.core);
        if let Some(checkpointed) = core.checkpointed_size {
            return core.published_size.since(checkpointed);
        }
        drop(core);
        LogSize {
            bytes: self.log_bytes(),
            records: u64::MAX,
        }
    }

    /// Returns the sequence of the last visible commit.
    pub(crate) fn sequence(&self) -> u64 {
        lock(&self.core).published.sequence
    }

    /// Returns the durable frontier.
    pub(crate) fn frontier_position(&self) -> LogPosition {
        LogPosition::from_u64(self.frontier.load(Ordering::Acquire))
    }

    /// Writes and syncs buffered commits, and releases the lock. A second call has no effect.
    pub(crate) fn close(&self, closing: Closing) -> Result<()> {
        // Checked before any lock, since in a forked child a lock held by another thread stays
        // locked.
        self.check_process()?;
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.space.wake();
        // A commit that passed its checks earlier is published once this lock was taken. The
        // checkpoint below covers it.
        drop(self.lock_quiet());
        // Background work sees the closed flag and ends.
        let compacting = lock(&self.compacting);
        let checkpointing = lock(&self.checkpointing);
        let sealing = lock(&self.sealed);
        let result = self.close_log(closing);
        drop((compacting, checkpointing, sealing));
        drop(self.locks().take());
        result
    }

    /// Returns `true` if the next open replays `log` as fast as `closing` demands.
    fn replays_fast(&self, log: LogSize, closing: Closing) -> bool {
        if closing == Closing::Quick {
            return log.bytes <= CLOSE_REPLAY_BYTES;
        }
        let directory_bytes = self.directory_totals().1;
        let copied = log.records.saturating_mul(CHUNK_COPY_BYTES).min(directory_bytes);
        log.bytes <= CLOSE_REPLAY_BYTES && copied <= CLOSE_COPY_BYTES
    }

    fn close_log(&self, closing: Closing) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        if let Some(cause) = self.poison.get() {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        self.sync_log()?;
        if !self.replays_fast(self.log_since_checkpoint(), closing) {
            // A checkpoint that cannot be written (full disk) is not needed: the log is complete.
            if let Err(error @ Error::Poisoned { .. }) = self.checkpoint_now() {
                return Err(error);
            }
        }
        self.write_state(&[])?;
        self.cut_active();
        Ok(())
    }
}

/// The engine as held by handles of users. Dropping the last one closes the database. Background
/// work holds the bare engine, so it never keeps a database open.
pub(crate) struct Handle(Arc<Engine>);

impl Handle {
    pub(crate) fn new(engine: Engine) -> Arc<Self> {
        let engine = Arc::new(engine);
        engine.background.attach(&engine);
        engine.closed.store(false, Ordering::Release);
        Arc::new(Self(engine))
    }
}

impl std::ops::Deref for Handle {
    type Target = Engine;

    #[inline]
    fn deref(&self) -> &Engine {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // No caller is left to report an error to. Durable commits are safe, and the next open
        // judges the rest.
        let _ = self.0.close(Closing::Usual);
    }
}

/// Returns `true` if `record` is a put of this key.
#[inline]
pub(crate) fn is_key_of(record: &Record<'_>, table: u32, key: &[u8]) -> bool {
    record.head.table == table && record.head.kind == RecordKind::Put && record.key() == key
}

/// Carries a directory's damage through the error type of a closure.
struct DirectoryError(Damage);

impl From<Damage> for DirectoryError {
    fn from(damage: Damage) -> Self {
        Self(damage)
    }
}
