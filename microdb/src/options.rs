//! Every limit and every choice, each with its reason.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::SEGMENT_BYTES_LIMIT;
use crate::storage::{OsStorage, Storage};

/// When a commit is acknowledged.
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
    /// Once it survives power loss. Commits made at the same time share one sync of the disk.
    #[default]
    Sync,
    /// Once readers see it. A crash of the process or the machine loses at most the latest commits,
    /// never one from the middle: what survives is a prefix of what was committed.
    /// [`crate::Db::sync`] makes all of it durable.
    ///
    /// The end of a process counts as a crash if no handle was closed or dropped. Rust never drops
    /// a `static`, and `std::process::exit` drops nothing: call [`crate::Db::close`] or
    /// [`crate::Db::sync`] before.
    Buffered,
}

/// How to open a database.
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
    pub(crate) storage: Arc<dyn Storage>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Sync,
            create: true,
            read_only: false,
            // A quarter of a megabyte: thousands of small databases in one test or one node stay
            // cheap.
            segment_bytes_first: 256 * 1024,
            // The memory of the active segment, and the unit in which space is freed. 16,384 of
            // them hold 256 GiB.
            segment_bytes_max: 16 << 20,
            // One write call for a few thousand records: its fixed cost disappears, and little
            // waits in memory.
            buffer_bytes: 256 * 1024,
            // Replaying this much takes tens of milliseconds.
            checkpoint_log_bytes: 32 << 20,
            background: true,
            // Below a third of dead bytes, copying costs more than it frees; live x 1.5 is the
            // promise.
            compaction_dead_percent: 33,
            compaction_bytes_per_second: None,
            // The time limit of a turn has been at its maximum for long: a body that is slower is a
            // fault of its own.
            transaction_tries: 64,
            memory_bytes: None,
            storage: Arc::new(OsStorage),
        }
    }
}

impl Options {
    /// The defaults: durable, created if missing, compacted in the background.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// When commits without a durability of their own are acknowledged. Default:
    /// [`Durability::Sync`].
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

    /// Whether a missing database is created. Default: yes.
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

    /// Opens without the lock and without changing a byte, also while another process writes. The
    /// view is that of the moment of opening. Default: no.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let writer = microdb::Db::open(&path)?;
    /// writer.table("events")?.put("k", "v")?;
    /// let reader = microdb::Options::new().read_only(true).open(&path)?; // from another process, too
    /// assert!(reader.table("events")?.contains_key("k")?);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Size of the first segment, in bytes; each next one is twice as large up to the maximum.
    /// Default: 256 KiB.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().segment_bytes_first(64 * 1_024).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn segment_bytes_first(mut self, bytes: u32) -> Self {
        self.segment_bytes_first = bytes;
        self
    }

    /// Size of the largest segments, in bytes: 4 KiB to 64 MiB. A larger frame still gets a segment
    /// that holds it, and a log of more than 16,384 segments gets segments of up to 64 MiB. The
    /// active segment is in memory. Default: 16 MiB.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().segment_bytes_max(16 * 1_024 * 1_024).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn segment_bytes_max(mut self, bytes: u32) -> Self {
        self.segment_bytes_max = bytes;
        self
    }

    /// How many bytes of buffered commits wait in memory before they are handed to the operating
    /// system. Default: 256 KiB.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().buffer_bytes(1_024 * 1_024).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn buffer_bytes(mut self, bytes: u64) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// A checkpoint is written once the log has grown by this many bytes since the last one, or by
    /// twice the size of the directory if that is more. Bounds the time of an open after a crash.
    /// Default: 32 MiB.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().checkpoint_log_bytes(4 * 1_024 * 1_024).open(path)?; // opening replays no more
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn checkpoint_log_bytes(mut self, bytes: u64) -> Self {
        self.checkpoint_log_bytes = bytes;
        self
    }

    /// Whether checkpoints and compactions happen by themselves, on a pool that all databases of
    /// the process share. Without, they happen when asked for and on close, and commits are never
    /// held back to keep the log small. Default: yes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().background(false).open(path)?;
    /// db.wait_idle()?; // what would else be done in the background
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn background(mut self, background: bool) -> Self {
        self.background = background;
        self
    }

    /// Share of dead bytes in the log, in percent, from which the background compacts: the segments
    /// with the most dead bytes first, until the share is below that again. More makes updates
    /// cheaper, since what waits longer has less alive in it, and takes more disk. Commits are
    /// slowed, and wait at last, before the log is larger than that share permits plus 15 % of the
    /// live bytes and two segments. Default: 33.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().compaction_dead_percent(30).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn compaction_dead_percent(mut self, percent: u32) -> Self {
        self.compaction_dead_percent = percent;
        self
    }

    /// Maximum number of bytes that background compaction copies in a second. `None` (the default)
    /// means no limit. 0 is refused by [`Options::open`]: compaction would never end.
    /// [`crate::Db::compact`] and [`crate::Db::settle`] are not limited.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().compaction_bytes_per_second(Some(20_000_000)).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn compaction_bytes_per_second(mut self, bytes: Option<u64>) -> Self {
        self.compaction_bytes_per_second = bytes;
        self
    }

    /// Maximum number of times that the body of a transaction runs before the transaction fails
    /// with [`Error::Conflict`]. Default: 64. Two are enough for a body that takes less than a
    /// millisecond: its second run meets no conflict. With one, each conflict is reported.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().transaction_tries(100).open(path)?;
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn transaction_tries(mut self, tries: u32) -> Self {
        self.transaction_tries = tries;
        self
    }

    /// How much of the log, in bytes, the operating system's cache can hold. A log that is larger
    /// is read page by page, a smaller one with the read-ahead of its device, which fills the cache
    /// sooner. Default (`None`): half of the memory that is available, or that the process' control
    /// group may have.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// let db = microdb::Options::new().memory_bytes(Some(2 << 30)).open(path)?; // the rest belongs to others
    /// # drop(db);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn memory_bytes(mut self, bytes: Option<u64>) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// The disk. Tests put their own behind it. Default: [`OsStorage`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("shop");
    /// use microdb::storage::OsStorage;
    /// let db = microdb::Options::new().storage(std::sync::Arc::new(OsStorage)).open(path)?; // the default
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
            return invalid("segment_bytes_max", "a segment has 4 KiB to 64 MiB");
        }
        if !(4096..=SEGMENT_BYTES_LIMIT).contains(&self.segment_bytes_first) {
            return invalid("segment_bytes_first", "a segment has 4 KiB to 64 MiB");
        }
        if !(1..=100).contains(&self.compaction_dead_percent) {
            return invalid("compaction_dead_percent", "a share is 1 to 100 percent");
        }
        if self.compaction_bytes_per_second == Some(0) {
            let reason =
                "compaction would never end; use None for no limit, or background(false) for none at all";
            return invalid("compaction_bytes_per_second", reason);
        }
        if self.transaction_tries == 0 {
            return invalid("transaction_tries", "nothing is ever tried");
        }
        Ok(())
    }
}
