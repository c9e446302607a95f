//! Errors of the engine. An error that concerns a file names the file and the evidence.
//!
//! - Damage on disk is [`Error::Corrupt`], and a fault of the operating system is [`Error::Io`].
//!   Either may be the cause of [`Error::Poisoned`]. The remedy for damage is a backup. Faults of
//!   the operating system require an administrator of the machine.
//! - The text of an error does not contain the text of its source. Print the chain of `source()`
//!   for the full cause.
//! - An operation that returns an error has changed no record, unless the documentation of the
//!   operation or of the error's variant says otherwise.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sequence::Sequence;

/// The result type of the engine.
///
/// ```
/// fn count(path: &std::path::Path) -> microdb::Result<u64> {
///     Ok(microdb::Db::open(path)?.table("events")?.len())
/// }
/// # let folder = tempfile::tempdir().unwrap();
/// # assert_eq!(count(folder.path()).unwrap(), 0);
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason of a failed operation.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path().join("shop"))?;
/// # let events = db.table("events")?;
/// match microdb::Db::open(db.path()) {
///     Err(microdb::Error::Locked { .. }) => println!("somebody has it open"),
///     Err(error) => println!("{error}"),
///     Ok(_) => unreachable!("one writer at a time"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Bytes on disk differ from the bytes that were written.
    Corrupt {
        /// The damaged or missing file, or the folder of the database if a slot of the directory
        /// points to a segment that does not exist.
        path: PathBuf,
        /// Offset of the damage in the file, in bytes.
        offset: u64,
        /// Name of the damaged field of the file format.
        field: &'static str,
        /// Expected content of the field.
        expected: String,
        /// Content of the field found on disk.
        found: String,
    },
    /// The operating system reported an error.
    Io {
        /// Attempted action, for example "cannot write".
        action: &'static str,
        /// File or folder on which the action failed.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A write or sync failed, in this call or an earlier one, or LOCK or SUPER was removed or
    /// replaced. Or a damaged checkpoint was found after a commit or a compaction had appended a
    /// frame. The state of the disk is unknown, so nothing more is written. Reads continue. Remove
    /// the cause, then reopen the database.
    Poisoned {
        /// The first error that poisoned the database.
        cause: Arc<Error>,
    },
    /// Another process, or another `Db` of this process, has the database open for writing.
    Locked {
        /// The file that is locked.
        path: PathBuf,
        /// Id of the process that holds the lock, if known.
        holder: Option<u32>,
    },
    /// The path holds no database, and none was to be created.
    NotADatabase {
        /// The folder in which no database was found.
        path: PathBuf,
    },
    /// The database has a newer format version than this build supports.
    Version {
        /// The file that contains the format version.
        path: PathBuf,
        /// Format version of the file.
        found: u32,
        /// Newest format version that this build can read.
        supported: u32,
    },
    /// In every permitted run of a transaction's body, other commits changed keys that the run had
    /// read, or the run exceeded the time limit of its turn. A record that compaction has moved may
    /// count as changed. A transaction begun with [`Db::begin`](crate::Db::begin) has one run.
    /// Inside the body, the error means that the current run has read outdated data. The body runs
    /// again unless this run was the last one permitted.
    Conflict {
        /// Number of runs of the body.
        tries: u32,
    },
    /// A key, value, batch, name or transaction exceeds its limit.
    TooLarge {
        /// The part that is too large: "key", "value", "batch", "table name", or the reads or
        /// writes of a transaction.
        what: &'static str,
        /// Size of the part in bytes.
        bytes: u64,
        /// Maximum size of the part in bytes.
        bytes_max: u64,
    },
    /// A stored key or value of a typed table does not decode as the requested type.
    Decode {
        /// Name of the table.
        table: String,
        /// The key of the record, in its stored encoding.
        key: Vec<u8>,
        /// Message of the decoder.
        reason: String,
    },
    /// A key or value of a typed table cannot be encoded, or could not be read back.
    Encode {
        /// Name of the table.
        table: String,
        /// Message of the encoder.
        reason: String,
    },
    /// An option or argument is invalid. Or another process created SUPER while this process was
    /// creating the database. Or the ids of segments or tables are used up, or the ids of the log's
    /// segments span too far.
    Invalid {
        /// Name of the option or argument, "log" for segments, "table" for tables, or "folder of a
        /// new database" for SUPER.
        what: &'static str,
        /// Reason of the refusal.
        reason: String,
    },
    /// There is no table with this name.
    NoSuchTable {
        /// Name of the table.
        name: String,
    },
    /// There is already a table with this name.
    TableExists {
        /// Name of the table.
        name: String,
    },
    /// The table was dropped after this handle to it was created.
    TableDropped {
        /// Name of the table before it was dropped.
        name: String,
    },
    /// The database was opened read-only.
    ReadOnly,
    /// The database was closed.
    Closed,
    /// The process is a forked child and the handle belongs to its parent. The child may open the
    /// database after the parent has closed it.
    Forked,
    /// A batch, transaction or snapshot was used with a table of another database, or of another
    /// opening of the same database.
    ForeignTable {
        /// Name of the table.
        name: String,
    },
    /// The body of a transaction wrote directly to its database, ran another
    /// [`Db::transaction`](crate::Db::transaction) on it, or called its `compact` or `wait_idle`.
    /// Or the bodies of transactions on more than four databases were nested.
    InTransaction,
    /// A change feed was requested from a sequence that is higher than the sequence of the last
    /// commit.
    FeedAhead {
        /// The requested sequence.
        asked: Sequence,
        /// Sequence of the last commit.
        last: Sequence,
    },
    /// Compaction has removed commits that a change feed requested.
    FeedGone {
        /// The requested sequence.
        asked: Sequence,
        /// The oldest sequence from which a feed can start.
        oldest: Sequence,
    },
}

impl Error {
    /// Returns a closure for `map_err` that adds the action and the path to an error of the
    /// operating system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Returns an [`Error::Corrupt`] at `offset` of `path`.
    pub(crate) fn corrupt(
        path: &Path,
        offset: u64,
        field: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Corrupt {
            path: path.to_path_buf(),
            offset,
            field,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// Returns `true` for [`Error::Corrupt`]: damage on disk, as opposed to a fault of the machine
    /// or a refused request. Returns `false` for [`Error::Poisoned`], even if its cause is damage.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// if let Err(error) = events.get("k") {
    ///     if error.is_corrupt() {
    ///         println!("{error}: restore a backup, or `imt db heal`");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    /// Returns `true` if the disk or a quota was full, also if that is the cause of
    /// [`Error::Poisoned`]. A poisoned database refuses all further writes. If a commit fails on a
    /// full disk without [`Error::Poisoned`], it has written nothing and can be repeated once there
    /// is room.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// if let Err(error) = events.put("k", "v") {
    ///     match error {
    ///         microdb::Error::Poisoned { .. } => println!("{error}"),
    ///         _ if error.is_disk_full() => println!("nothing was written; free space and retry"),
    ///         _ => println!("{error}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full_disk(source),
            Self::Poisoned { cause } => cause.is_disk_full(),
            _ => false,
        }
    }
}

/// Returns `true` if the disk or a quota was full.
pub(crate) fn is_full_disk(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt {
                path,
                offset,
                field,
                expected,
                found,
            } => write!(
                f,
                "{} is damaged at byte {offset}: {field} should be {expected}, found {found}",
                path.display()
            ),
            Self::Io { action, path, .. } => write!(f, "{action} {}", path.display()),
            Self::Poisoned { .. } => {
                f.write_str("an earlier write or sync failed and the database refuses further writes; remove the cause and reopen the database")
            }
            Self::Locked {
                path,
                holder: Some(holder),
            } => {
                write!(
                    f,
                    "{} is locked by process {holder}; stop that process, or open the database read-only",
                    path.display()
                )
            }
            Self::Locked { path, holder: None } => {
                write!(
                    f,
                    "{} is locked by another process; stop that process, or open the database read-only",
                    path.display()
                )
            }
            Self::NotADatabase { path } => write!(f, "{} holds no database", path.display()),
            Self::Version {
                path,
                found,
                supported,
            } => write!(
                f,
                "{} has format version {found}; this build reads up to version {supported}",
                path.display()
            ),
            Self::Conflict { tries } => {
                write!(
                    f,
                    "other commits changed keys that the transaction read, in each of its {tries} runs; retry"
                )
            }
            Self::TooLarge {
                what,
                bytes,
                bytes_max,
            } => {
                write!(
                    f,
                    "{what} of {bytes} bytes exceeds the limit of {bytes_max} bytes"
                )
            }
            Self::Decode { table, key, reason } => write!(
                f,
                "the record {} of table {table:?} does not decode as the requested type: {reason}",
                key.escape_ascii()
            ),
            Self::Encode { table, reason } => {
                write!(f, "a record for table {table:?} cannot be encoded: {reason}")
            }
            Self::Invalid { what, reason } => write!(f, "{what} is invalid: {reason}"),
            Self::NoSuchTable { name } => write!(f, "there is no table {name:?}"),
            Self::TableExists { name } => write!(f, "a table {name:?} already exists"),
            Self::TableDropped { name } => write!(f, "the table {name:?} was dropped"),
            Self::ReadOnly => f.write_str("the database was opened read-only"),
            Self::Closed => f.write_str("the database was closed"),
            Self::Forked => f.write_str(
                "the database was opened by the process that this one was forked from; open it here, \
                 after that process has closed it",
            ),
            Self::ForeignTable { name } => write!(f, "the table {name:?} belongs to another database"),
            Self::InTransaction => f.write_str(
                "the database cannot be written inside the body of a transaction; write through the transaction or after its end",
            ),
            Self::FeedAhead { asked, last } => {
                write!(f, "no commit has sequence {asked}; the last commit has {last}")
            }
            Self::FeedGone { asked, oldest } => {
                write!(
                    f,
                    "changes since sequence {asked} were removed by compaction; the oldest available start is {oldest}"
                )
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Poisoned { cause } => Some(cause.as_ref()),
            _ => None,
        }
    }
}
