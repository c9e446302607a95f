//! Options of an open database, each with the reason for its default.
//!
//! - An option applies to one open of a database. No option is stored in the database.
//! - Before anything is opened, `check` refuses values that cannot work.
//!
//! Deliberately absent: tuning of the hash directory, which adapts to the number of keys.

use std::io;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::SEGMENT_BYTES_LIMIT;
use crate::raw::map::Map;
use crate::raw::sigbus;
use crate::storage::{OsStorage, Storage, StorageFile, map_or_read};

/// The moment at which a commit is acknowledged.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// events.put_with("k", "v", microdb::Durability::Buffered)?; // microseconds
/// events.put_with("k", "v", microdb::Durability::Sync)?; // a sync of the disk
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// A commit is acknowledged once it survives power loss. Concurrent commits share one sync of
    /// the disk.
    #[default]
    Sync,
    /// A commit is acknowledged once it is visible to readers. A crash of the process or the
    /// machine loses at most the latest commits: the surviving commits are always a prefix of all
    /// commits. [`crate::Db::sync`] makes all earlier commits durable.
    ///
    /// If a process ends without closing or dropping its handles, commits can be lost as in a
    /// crash. Rust never drops a `static`, and `std::process::exit` drops nothing. Call
    /// [`crate::Db::close`] or [`crate::Db::sync`] before the process ends.
    Buffered,
}

/// Settings for opening a database.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let db = microdb::Options::new()
///     .durability(microdb::Durability::Buffered)
///     .segment_bytes_max(8 << 20)
///     .open(folder.path().join("events"))?;
/// # db.close()
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) durability: Durability,
    pub(crate) create: bool,
    pub(crate) read_only: bool,
    pub(crate) segment_bytes_first: u32,
    pub(crate) segment_bytes_max: u32,
    pub(crate) buffer_bytes: u64,
    pub(crate) checkpoint_log_bytes: u64,
    pub(crate) background: bool,
    pub(crate) compaction_dead_percent: u32,
    pub(crate) compaction_bytes_per_second: Option<u64>,
    pub(crate) transaction_tries: u32,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) sigbus_handler: bool,
    pub(crate) storage: Arc<dyn Storage>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Sync,
            create: true,
            read_only: false,
            // The first segment is small, so that thousands of small databases in one process take
            // little memory and disk space.
            segment_bytes_first: 256 * 1024,
            // This size bounds the memory of the active segment, and is the unit in which space is
            // freed. Once the ids of the segments span more than 16,384 (256 GiB of log), new
            // segments are larger.
            segment_bytes_max: 16 << 20,
            // A write call of this size carries a few thousand small records, so the fixed cost of
            // the call is negligible.
            buffer_bytes: 256 * 1024,
            // Replaying 32 MiB of log takes tens of milliseconds.
            checkpoint_log_bytes: 32 << 20,
            background: true,
            // At a lower percentage, compaction would copy more than two live bytes for each dead
            // byte that it frees. With one third of dead bytes, the log has 1.5 times the size of
            // its live bytes.
            compaction_dead_percent: 33,
            compaction_bytes_per_second: None,
            // After some conflicts, the body of a transaction runs while no other commit is made.
            // Such a run has a time limit. The limit doubles after each run that exceeds it, and
            // reaches its maximum long before the 64th run. A body that exceeds the maximum is a
            // mistake of the caller.
            transaction_tries: 64,
            memory_bytes: None,
            sigbus_handler: true,
            storage: Arc::new(OsStorage),
        }
    }
}

impl Options {
    /// Returns the default options: commits are durable, a missing database is created, and
    /// compaction runs in the background.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Durability of commits for which the caller specifies none. Default: [`Durability::Sync`].
    /// Commits that create, rename, clear or drop tables are always durable.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().durability(microdb::Durability::Buffered).open(path)?;
    /// db.table("events")?.put("k", "v")?; // without waiting for the disk
    /// db.sync()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Creates a missing database if `true`, unless the open is read-only. Default: `true`.
    ///
    /// The name of a new database is durable on return, unless the process may write but not read
    /// the folder above it (mode `-wx`). In that case, a power cut can lose the whole new database.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let opened = microdb::Options::new().create(false).open(path);
    /// assert!(matches!(opened, Err(microdb::Error::NotADatabase { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// If `true`, opens the database without taking its lock and without changing its files, even
    /// while another process writes. Reads return the state at the time of opening. Default:
    /// `false`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let writer = microdb::Db::open(&path)?;
    /// writer.table("events")?.put("k", "v")?;
    /// // From another process, too.
    /// let reader = microdb::Options::new().read_only(true).open(&path)?;
    /// assert!(reader.table("events")?.contains_key("k")?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Size of the first segment, in bytes: 4 KiB to 64 MiB. The size doubles with each further
    /// segment. [`Options::segment_bytes_max`] limits all of them. Default: 256 KiB.
    #[must_use]
    pub fn segment_bytes_first(mut self, bytes: u32) -> Self {
        self.segment_bytes_first = bytes;
        self
    }

    /// Maximum size of a segment, in bytes: 4 KiB to 64 MiB. Default: 16 MiB.
    ///
    /// The frames appended to the active segment are in memory. A frame that does not fit gets a
    /// larger segment. Once the ids of the segments span more than 16,384, new segments may have up
    /// to 64 MiB.
    #[must_use]
    pub fn segment_bytes_max(mut self, bytes: u32) -> Self {
        self.segment_bytes_max = bytes;
        self
    }

    /// Number of unwritten bytes of the log in memory at which all unwritten bytes are handed to
    /// the operating system. More bytes may collect while another thread writes. Default: 256 KiB.
    #[must_use]
    pub fn buffer_bytes(mut self, bytes: u64) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Growth of the log, in bytes, after which a checkpoint is written. If the value is less than
    /// twice the size of the directory, twice that size is used instead. The option limits the time
    /// of an open after a crash, because such an open replays the log since the last checkpoint.
    /// Commits continue while a checkpoint is being written. Default: 32 MiB.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// // An open replays about this much log, or twice the size of the directory if that is more.
    /// let db = microdb::Options::new().checkpoint_log_bytes(4 << 20).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn checkpoint_log_bytes(mut self, bytes: u64) -> Self {
        self.checkpoint_log_bytes = bytes;
        self
    }

    /// Runs checkpoints, compaction, sealing and delayed writes of buffered commits in the
    /// background if `true`, on a thread pool shared by all databases of the process. If `false`,
    /// checkpoints are written only on request and on close, and compaction runs only on request.
    /// Buffered commits then stay in memory until [`Options::buffer_bytes`] or four complete
    /// segments are unwritten, or the log is synced. Commits are never delayed to bound the size of
    /// the log. Default: `true`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().background(false).open(path)?;
    /// db.wait_idle()?; // runs the background work that is due
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Percentage of dead bytes in the complete segments of the log at which background compaction
    /// starts. Compaction begins with the segments that have the largest share of dead bytes, and
    /// ends below this percentage. Default: 33.
    ///
    /// A higher value makes updates cheaper, since segments have fewer live records when they are
    /// compacted, but uses more disk.
    ///
    /// If compaction falls behind, commits are slowed. A commit waits if it would make the log
    /// larger than a limit: the size at which compaction starts, plus 15 % of the live bytes, plus
    /// two segments. The log may still grow further, because some commits do not wait: commits that
    /// create, rename, clear or drop tables, those of transactions that run while other writers
    /// wait, and all commits during a backup or [`crate::Db::compact`]. A commit stops waiting
    /// after one second, or later if a compaction on its own thread ends later. After a compaction
    /// that freed nothing, commits do not wait until the log has grown by about one segment.
    #[must_use]
    pub fn compaction_dead_percent(mut self, percent: u32) -> Self {
        self.compaction_dead_percent = percent;
        self
    }

    /// Maximum number of bytes per second copied by background compaction. `None` (the default)
    /// means no limit. [`Options::open`] refuses 0, because compaction would never end.
    /// [`crate::Db::compact`] and [`crate::Db::wait_idle`] are not limited, nor is a commit that
    /// compacts because it waits for space.
    #[must_use]
    pub fn compaction_bytes_per_second(mut self, bytes: Option<u64>) -> Self {
        self.compaction_bytes_per_second = bytes;
        self
    }

    /// Maximum number of runs of a transaction's body before the transaction fails with
    /// [`Error::Conflict`]. Default: 64.
    ///
    /// With [`Durability::Sync`], two runs are enough for a body that takes less than a
    /// millisecond: no other commit is made during the second run, so that run meets no conflict.
    /// If the maximum is one run, every conflict is reported to the caller.
    #[must_use]
    pub fn transaction_tries(mut self, tries: u32) -> Self {
        self.transaction_tries = tries;
        self
    }

    /// Maximum size of a log, in bytes, that fits in the cache of the operating system. A larger
    /// log is read page by page. A smaller log is read with the read-ahead of its device, which
    /// fills the cache sooner. Default (`None`): half of the memory available to the machine or to
    /// the control group of the process.
    ///
    /// The option limits nothing. It states how much of the log the cache may keep beside other
    /// programs.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// // Other programs need the rest of the memory.
    /// let db = microdb::Options::new().memory_bytes(Some(2 << 30)).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn memory_bytes(mut self, bytes: Option<u64>) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Installs the handler for SIGBUS when a file is mapped, if `true`. Default: `true`.
    ///
    /// The process has one handler for all its databases. The handler lets a read of a mapped file
    /// that another program has cut short, or that the disk cannot read, return [`Error::Corrupt`]
    /// or [`Error::Io`]. Every other SIGBUS keeps its effect, such as a call of the handler that
    /// was installed before.
    ///
    /// If `false`, this database installs nothing, and a read of such a file ends the process by
    /// SIGBUS unless the program handles the signal itself. Choose `false` where another library
    /// handles the signal, or where the policy of the process forbids handlers. A handler stays
    /// installed once any other database of the process has installed it.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().sigbus_handler(false).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sigbus_handler(mut self, install: bool) -> Self {
        self.sigbus_handler = install;
        self
    }

    /// Maps a file for reading, or reads it if the storage has no maps. The first map of each
    /// segment and checkpoint of an open database is made by this function. So, unless the option
    /// `sigbus_handler` is `false`, the handler for SIGBUS is installed before any map is read.
    pub(crate) fn map(&self, file: &dyn StorageFile, len: u64) -> io::Result<Arc<Map>> {
        let map = map_or_read(file, len)?;
        if self.sigbus_handler && map.is_mapped() {
            sigbus::install();
        }
        Ok(map)
    }

    /// Replaces the access to the disk, for example by a test fixture that injects faults. Default:
    /// [`OsStorage`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// use microdb::storage::OsStorage;
    /// let storage = std::sync::Arc::new(OsStorage); // the default
    /// let db = microdb::Options::new().storage(storage).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = storage;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |what, reason: &str| {
            Err(Error::Invalid {
                what,
                reason: reason.to_owned(),
            })
        };
        if !(4096..=SEGMENT_BYTES_LIMIT).contains(&self.segment_bytes_max) {
            return invalid("segment_bytes_max", "it must be 4 KiB to 64 MiB");
        }
        if !(4096..=SEGMENT_BYTES_LIMIT).contains(&self.segment_bytes_first) {
            return invalid("segment_bytes_first", "it must be 4 KiB to 64 MiB");
        }
        if !(1..=100).contains(&self.compaction_dead_percent) {
            return invalid("compaction_dead_percent", "it must be 1 to 100");
        }
        if self.compaction_bytes_per_second == Some(0) {
            let reason = "compaction would never end; use None for no limit, or background(false) for no background compaction";
            return invalid("compaction_bytes_per_second", reason);
        }
        if self.transaction_tries == 0 {
            return invalid("transaction_tries", "the body of a transaction would never run");
        }
        Ok(())
    }
}
