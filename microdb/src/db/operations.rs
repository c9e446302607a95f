//! Operations on a whole database: views, batches, statistics, maintenance and comparison.
//!
//! - Each method delegates to the module that does the work.
//!
//! Deliberately absent: opening, closing and tables, which are in `db`.

use std::ops::ControlFlow;
use std::path::Path;

use super::Db;
use crate::batch::Batch;
use crate::engine::compact::CompactReport;
use crate::error::Result;
use crate::sequence::Sequence;
use crate::snapshot::Snapshot;
use crate::stats::Stats;
use crate::tools;
use crate::tools::backup::BackupReport;
use crate::tools::change_feed::Changes;
use crate::tools::diff::{DiffReport, Difference};
use crate::tools::digest::Digest;
use crate::tools::verify::{VerifyReport, verify};

impl Db {
    /// Returns a view of all tables at this moment. Commits wait while the view is taken, but not
    /// while it exists. In a forked child, all reads of the view fail with
    /// [`Error::Forked`](crate::Error::Forked).
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let snapshot = db.snapshot(); // of all tables
    /// events.put("k", "v")?;
    /// assert_eq!(snapshot.get(&events, "k")?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.engine)
    }

    /// Returns a new, empty batch.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let orders = db.table("orders")?;
    /// let mut batch = db.batch();
    /// batch.put(&orders, "17", "paid");
    /// batch.put(&events, "17", "was paid");
    /// batch.commit()?; // both records or none
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(&self.engine)
    }

    /// Returns statistics of the database at this moment. In a forked child, the fields that need a
    /// lock are 0 or empty: keys, bytes of log and directory, sequences, the durable frontier, the
    /// segments, and the number of damaged segments.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// println!("{} bytes a key in memory", db.stats().directory_bytes / db.stats().keys);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(&self.engine)
    }

    /// Verifies all segments with their seals, the directory, and the newest checkpoint. Unless the
    /// database is read-only, all earlier commits are made durable first.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// for damage in db.verify()?.damage {
    ///     println!("{damage}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) after a close.
    /// [`Error::Forked`](crate::Error::Forked) in a forked child.
    /// [`Error::Poisoned`](crate::Error::Poisoned) if a failure in this call or in an earlier one
    /// left the state of the disk unknown. Damage and unreadable files are not errors but part of
    /// the report.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.verify_with(|_, _| {})
    }

    /// Verifies the database like [`Db::verify`]. Calls `watch` before each segment and after the
    /// last one, with the number of verified bytes and the number of all bytes of the log.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let report = db.verify_with(|done, all| println!("{done} of {all} bytes"))?;
    /// assert!(report.is_sound());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Db::verify`].
    pub fn verify_with(&self, watch: impl FnMut(u64, u64)) -> Result<VerifyReport> {
        verify(&self.engine, watch)
    }

    /// Copies the database in its current state to the folder `path`, which must be missing or
    /// empty. A checkpoint is written first. The copy is durable on return and opens like any
    /// database. Commits continue during the copy. Compaction and checkpoints wait until the copy
    /// is complete. Complete segments are hard links instead of copies if the file system permits.
    ///
    /// The copy of a read-only database has the state in which the database was opened, and no hard
    /// links. No checkpoint is written. Such a copy can be made from read-only media, and while
    /// another process writes to the database.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// let copy = folder.path().join("copy");
    /// db.backup_to(&copy)?; // writers continue during the copy
    /// assert!(microdb::Db::open(copy)?.table("events")?.contains_key("k")?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if the path is empty, or if the folder is not
    /// empty, or is inside or around the folder of the database. [`Error::Io`](crate::Error::Io) if
    /// a file cannot be read or written. [`Error::Corrupt`](crate::Error::Corrupt) if the database
    /// is read-only and a segment cannot be read completely. After an error during the copy, the
    /// content of the folder may be incomplete or not durable. Further errors are those of
    /// [`Db::checkpoint`].
    pub fn backup_to(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        self.engine.backup_to(path.as_ref())
    }

    /// Returns the visible commits after `sequence`, in order. To continue later, call this method
    /// again with the sequence of the last commit received. [`Sequence::ZERO`] begins at the first
    /// commit.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// db.table("t")?.put("k", "v")?;
    /// let (mut sequence, mut chain) = (microdb::Sequence::ZERO, 0);
    /// for change in db.changes_since(sequence)? {
    ///     let change = change?;
    ///     assert!(change.follows(chain));
    ///     (sequence, chain) = (change.sequence, change.chain);
    /// }
    /// # assert_eq!(sequence, microdb::Sequence(2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::FeedGone`](crate::Error::FeedGone) if compaction has removed commits after
    /// `sequence`. [`Error::FeedAhead`](crate::Error::FeedAhead) if no commit has `sequence` yet;
    /// this error holds the sequence of the last commit. [`Error::Corrupt`](crate::Error::Corrupt)
    /// or [`Error::Io`](crate::Error::Io) if the header of a segment is damaged or unreadable.
    /// [`Error::Forked`](crate::Error::Forked) in a forked child.
    pub fn changes_since(&self, sequence: Sequence) -> Result<Changes> {
        Changes::since(&self.engine, sequence)
    }

    /// Returns the digests of all live records at this moment. Databases with the same tables and
    /// records have the same digests, even if their histories differ.
    ///
    /// The first call reads, verifies and hashes every record. A later call reads and verifies
    /// every record of the tables that were written since the previous call. Of these, it hashes
    /// only the records with the same [`crate::digest_prefix`] as a key written since. Everything
    /// is hashed again if the previous call failed, or if the commits since cannot be read, for
    /// example because compaction has removed them. The same holds if these commits have more
    /// records than the database has keys and more than [`crate::DIGEST_PREFIXES`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let one = microdb::Db::open(folder.path().join("1"))?;
    /// # let two = microdb::Db::open(folder.path().join("2"))?;
    /// one.table("t")?.put("k", "v")?;
    /// two.table("t")?.put("k", "old")?;
    /// assert_ne!(one.digest()?.root, two.digest()?.root);
    /// two.table("t")?.put("k", "v")?;
    /// assert_eq!(one.digest()?.root, two.digest()?.root);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if a live record or the directory is damaged,
    /// [`Error::Io`](crate::Error::Io) if the disk cannot read a record, and
    /// [`Error::Forked`](crate::Error::Forked) in a forked child.
    pub fn digest(&self) -> Result<Digest> {
        self.engine.digest()
    }

    /// Compacts the whole log. Copies the live records out of every segment with dead bytes, writes
    /// a checkpoint, and removes these segments. Commits and reads continue during the call.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// for _ in 0..100 {
    ///     events.put("k", "v")?;
    /// }
    /// let report = db.compact()?;
    /// assert!(report.bytes_after <= report.bytes_before);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corrupt`](crate::Error::Corrupt) if a record is damaged. The segment of that record
    /// is kept, and all other segments are compacted before the error is returned. Further errors
    /// are those of [`Db::checkpoint`] and [`Batch::commit`].
    pub fn compact(&self) -> Result<CompactReport> {
        self.engine.compact()
    }

    /// Runs the background work that is due (seals, compaction and a checkpoint), and returns when
    /// it is done. Commits and reads continue during the call and may cause further work.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// events.put("k", "v")?;
    /// db.wait_idle()?; // nothing is left to be done in the background
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Db::compact`]. A damaged record is no error here, because background
    /// compaction skips its segment.
    pub fn wait_idle(&self) -> Result<()> {
        self.engine.wait_idle()
    }
}

/// Finds the keys that differ between two databases. Calls `found` for each of them until `found`
/// returns [`ControlFlow::Break`]. Tables are matched by name.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let one = microdb::Db::open(folder.path().join("1"))?;
/// # let two = microdb::Db::open(folder.path().join("2"))?;
/// one.table("t")?.put("k", "v")?;
/// two.table("t")?.put("k", "w")?;
/// let report = microdb::diff(&one, &two, |difference| {
///     assert_eq!(difference.key, b"k");
///     std::ops::ControlFlow::Continue(())
/// })?;
/// assert_eq!(report.values_differing, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Corrupt`](crate::Error::Corrupt) if a record of either database is damaged, and the
/// other errors of [`Db::digest`].
pub fn diff(
    first: &Db,
    second: &Db,
    found: impl FnMut(&Difference) -> ControlFlow<()>,
) -> Result<DiffReport> {
    tools::diff::diff(&first.engine, &second.engine, found)
}
