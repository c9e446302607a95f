//! State shared by all handles of one open database.
//!
//! Order in which a thread takes the locks once the database is open:
//!
//! 1. `digests` (computing digests), `compacting`, `checkpointing`, `sealed` (sealing), `ddl`
//!    (creating, renaming, clearing and dropping tables).
//! 2. `writer` (writing and syncing the log).
//! 3. `core` (appending and publishing). The lock is held for less than a microsecond per small
//!    commit. While it is held, the only calls to the disk create a segment (or remove it again if
//!    its blocks cannot be allocated), allocate or cut blocks of the active segment, and check LOCK
//!    and SUPER.
//! 4. `catalog` (names of tables). While it is held, only the lock of a table's name is taken.
//!
//! The locks of the segment table (`segments`), of the locked files (`lock`), of `damaged` and of
//! `space` may be taken at any place in this order. While one of them is held, no other lock of the
//! engine is taken.
//!
//! No other lock is taken while `queue` (commit groups) is held, except for the mutex of the result
//! of a group's member. `get` and `multi_get` of a table take none of these locks. The creation of
//! a snapshot or iterator takes `core` for a moment.

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
pub(crate) mod read;
pub(crate) mod read_ahead;
pub(crate) mod recovery_report;
pub(crate) mod segment_usage;
pub(crate) mod segments;
pub(crate) mod space;
pub(crate) mod tables;
pub(crate) mod version;

use std::collections::HashSet;
use std::sync::{Arc, RwLock};

pub(crate) use self::read::{Found, is_key_of};
use crate::directory::{CUT, Damage, KeyHash, UNREAD};
use crate::engine::background::{Background, RunningJobs};
use crate::engine::catalog::Catalog;
use crate::engine::compact::Compaction;
use crate::engine::counters::Counters;
use crate::engine::digest_cache::DigestCache;
use crate::engine::group::Queue;
use crate::engine::identity::LocksCell;
use crate::engine::log::{Core, LogSize, Unmapped, Writer};
use crate::engine::read_ahead::DiskReads;
use crate::engine::recovery_report::RecoveryReport;
use crate::engine::segments::Segments;
use crate::engine::space::Space;
use crate::engine::version::Version;
use crate::error::{Error, Result};
use crate::format::names::Paths;
use crate::format::{DatabaseId, LogPosition};
use crate::options::Options;
use crate::raw::fork::Birth;
use crate::raw::reclaim;
use crate::raw::sync::{AtomicBool, AtomicU64, Condvar, Mutex, OnceLock, Ordering};
pub(crate) use crate::raw::sync::{lock, lock_briefly};
use crate::raw::tail::Spare;
use crate::seeded::seeded;
use crate::storage::{OpenMode, StorageFile};

/// Number of bytes of log since the last checkpoint above which every `close` writes a checkpoint.
/// Replaying 256 KiB of log takes about a millisecond of processor time, without the time for
/// copying directory chunks. Measurements: 0.7 ms for 1,900 records, 1.3 ms for 7,900 records.
const CLOSE_REPLAY_BYTES: u64 = 256 * 1024;

/// Number of bytes of the directory that the replay of the next open may copy. If the estimate for
/// a close with [`Closing::Usual`] is higher, that close writes a checkpoint. Reading, verifying
/// and copying 2 MiB takes about a millisecond.
const CLOSE_COPY_BYTES: u64 = 2 << 20;

/// Estimated number of bytes of the directory that the replay of one record copies: a chunk of
/// usual size. The estimate is too high if several records change the same chunk.
const CHUNK_COPY_BYTES: u64 = 48 * 1024;

/// Purpose of a close, which determines when `close` writes a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closing {
    /// `close` writes a checkpoint if the replay of the next open would otherwise take more than
    /// about a millisecond.
    Usual,
    /// Another process waits to open the database, so the time of `close` matters too. `close`
    /// writes a checkpoint only if the log since the last checkpoint has more than
    /// [`CLOSE_REPLAY_BYTES`].
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
    /// Condition variables of the groups with even and with odd numbers, for members that get no
    /// turn. With two of them, a finished group wakes all of its members, and of the next group
    /// only one to lead it.
    pub(crate) group_done: [Condvar; 2],
    /// Signals the leader that is gathering members: enough of them have joined its group.
    pub(crate) group_full: Condvar,
    /// Signals that `Core::in_flight` has become `false`. Used with the mutex `core`.
    pub(crate) quiet: Condvar,
    /// Version of the visible state, changed only while the mutex `core` is held.
    pub(crate) version: Version,
    pub(crate) super_file: Option<Arc<dyn StorageFile>>,
    /// Durable frontier, packed into 64 bits. Each frame header contains the frontier that was
    /// known when the frame was appended.
    pub(crate) frontier: AtomicU64,
    /// Number of bytes of the log that the open replayed or that were appended since.
    /// `written_bytes` is the number of those bytes that were handed to the operating system.
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
    /// Segments known to have a complete seal. This mutex is held while segments are sealed.
    pub(crate) sealed: Mutex<HashSet<u64>>,
    /// Segments in which compaction found damage, or with usage counts found wrong. Background
    /// compaction skips them until the next open.
    pub(crate) damaged: Mutex<HashSet<u64>>,
    /// The most recently computed digests. This mutex is locked before `ddl`.
    pub(crate) digests: Mutex<Option<DigestCache>>,
    pub(crate) reads: DiskReads,
    /// Bounds of the size of the log, and the commits that wait for space.
    pub(crate) space: Space,
    /// Number of complete segments that are not yet written and cut to their length.
    pub(crate) rolled_segments: std::sync::atomic::AtomicUsize,
    /// Memory of a complete segment that is not read any more, kept for the next segment.
    pub(crate) spare: Arc<Spare>,
}

impl Engine {
    /// Returns the hash by which directories find the key. The hash uses the secret seed of the
    /// database, so that nobody can choose colliding keys.
    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(siphasher::sip::SipHasher13::new_with_key(&self.hash_seed).hash(key))
    }

    /// Returns an error if the database accepts no writes: it is closed, read-only or poisoned, or
    /// this process is a forked child.
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

    /// Poisons the database, so that it refuses all further writes. Returns [`Error::Poisoned`].
    /// Its cause is the first error that poisoned the database, which may be `error`.
    pub(crate) fn poisoned(&self, error: Error) -> Error {
        let error = match error {
            Error::Poisoned { cause } => cause,
            error => Arc::new(error),
        };
        Error::Poisoned {
            cause: self.poison.get_or_init(|| error).clone(),
        }
    }

    /// Returns the error for damage in a directory in use.
    #[cold]
    pub(crate) fn directory_damage(&self, damage: Damage) -> Error {
        // The directories in use read chunks only from the checkpoint that the open used. So the
        // error names the file of that checkpoint.
        self.checkpoint_damage(self.recovery.checkpoint, damage)
    }

    /// Returns the error for damage in a directory that is read from the checkpoint `generation`.
    #[cold]
    pub(crate) fn checkpoint_damage(&self, generation: u64, damage: Damage) -> Error {
        let path = self.paths.checkpoint(generation);
        if damage.field == CUT {
            let file = self.options.storage.open(&path, OpenMode::Read);
            let found = match file.and_then(|file| file.len()) {
                Ok(len) if len >= damage.expected => {
                    let expected = "the bytes that were written";
                    return Error::corrupt(&path, damage.offset, UNREAD, expected, "nothing");
                }
                Ok(len) => format!("{len} bytes"),
                Err(error) => format!("a file that cannot be read: {error}"),
            };
            let expected = format_args!("{} bytes", damage.expected);
            return Error::corrupt(&path, damage.offset, damage.field, expected, found);
        }
        let (expected, found) = (
            format_args!("{:#x}", damage.expected),
            format_args!("{:#x}", damage.found),
        );
        Error::corrupt(&path, damage.offset, damage.field, expected, found)
    }

    /// Returns the amount of log that the next open would replay: everything after the moment of
    /// the last checkpoint. If SUPER names no checkpoint because of a full disk, returns the size
    /// of the whole log, and `u64::MAX` as the unknown number of records.
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

    /// Writes and syncs buffered commits, writes a checkpoint if `closing` requires it, and unlocks
    /// the database. A later call, or a call while another thread closes, returns at once.
    pub(crate) fn close(&self, closing: Closing) -> Result<()> {
        // The process is checked before any lock is taken: in a forked child, a lock that another
        // thread held at the fork stays locked.
        self.check_process()?;
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.space.wake();
        // Once `lock_quiet` has returned, each commit that found the database open is published,
        // unless its sync failed. So the checkpoint below contains it.
        drop(self.lock_quiet());
        // These locks are held during compactions, checkpoints and sealing, so the close waits
        // until these operations end. Compactions and sealing end early, because they see the
        // closed flag.
        let compacting = lock(&self.compacting);
        let checkpointing = lock(&self.checkpointing);
        let sealing = lock(&self.sealed);
        let result = self.close_log(closing);
        drop((compacting, checkpointing, sealing));
        drop(self.locks().take());
        result
    }

    /// Returns `true` if the next open can replay `log` in the time that `closing` permits, so that
    /// no checkpoint is needed.
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
            // An error that does not poison the database, such as a full disk, is ignored, because
            // the next open can replay the log instead.
            if let Err(error @ Error::Poisoned { .. }) = self.checkpoint_now() {
                return Err(error);
            }
        }
        self.write_state(&[])?;
        self.cut_active();
        Ok(())
    }
}

/// The engine as users of the crate hold it, in an `Arc`. Dropping the last reference closes the
/// database. Background jobs hold the [`Engine`] itself, so they never keep a database open.
pub(crate) struct Handle {
    engine: Arc<Engine>,
    /// Declared last, so that it is dropped after `engine`.
    _end: End,
}

/// The field of [`Handle`] that is dropped last. Its drop returns the maps and the memory of the
/// database to the system before the drop of the [`Handle`] ends. Otherwise another thread would
/// return the memory later. While that thread did so, the next open in this process would wait for
/// the locks of the address space and of the allocator. Segments that a value still shares stay
/// mapped.
struct End {
    birth: Birth,
    jobs: Arc<RunningJobs>,
}

impl Drop for End {
    fn drop(&mut self) {
        // The threads that run the jobs of the parent do not exist in a forked child, so waiting
        // for a job that was running at the fork would never end.
        if self.birth.is_here() {
            // A running job may hold the last reference to the engine. So only after all jobs have
            // ended, the engine has certainly been dropped.
            self.jobs.wait_for_end();
            reclaim::finish();
        }
    }
}

impl Handle {
    pub(crate) fn new(engine: Engine) -> Arc<Self> {
        let engine = Arc::new(engine);
        engine.background.attach(&engine);
        engine.closed.store(false, Ordering::Release);
        let end = End {
            birth: engine.birth,
            jobs: engine.background.running.clone(),
        };
        Arc::new(Self { engine, _end: end })
    }
}

impl std::ops::Deref for Handle {
    type Target = Engine;

    #[inline]
    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // An error of `close` is ignored, because a drop cannot return it. Durable commits are
        // safe, and the next open recovers as many of the other commits as are complete.
        let _ = self.engine.close(Closing::Usual);
    }
}
