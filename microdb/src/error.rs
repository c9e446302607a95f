//! Every way in which the engine can refuse, with place and evidence.
//!
//! An error says what was wrong, where, and what was found there, so that a person can act on it
//! without a debugger. `Display` never repeats the source: print the chain (`source()`) to see it
//! all. Damage is always [`Error::Corrupt`]; faults of the operating system are always
//! [`Error::Io`]; the two are never mixed, since the first wants a backup and the second a look at
//! the machine.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The engine's result.
///
/// ```
/// fn count(path: &std::path::Path) -> microdb::Result<u64> {
///     Ok(microdb::Db::open(path)?.table("events")?.len())
/// }
/// # let folder = tempfile::tempdir().unwrap();
/// # assert_eq!(count(folder.path()).unwrap(), 0);
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
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
    /// Bytes on disk are not what was written there.
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// Which field of the format.
        field: &'static str,
        /// What should stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The operating system refused.
    Io {
        /// What was being done, as in "cannot write".
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A write or sync failed before; what reached the disk is unknown, so nothing more is written.
    /// Reads go on. Reopen the database once the cause is removed.
    Poisoned {
        /// The first failure.
        cause: Arc<Error>,
    },
    /// Another process (or another `Db` of this one) has the database open for writing.
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Process id of the holder, if it is known.
        holder: Option<u32>,
    },
    /// There is no database at this path, and creating one was not asked for.
    NotADatabase {
        /// The folder that was looked at.
        path: PathBuf,
    },
    /// The database was written by a newer version of the format.
    Version {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this build can read.
        supported: u32,
    },
    /// A commit of others changed a key that a transaction has read, in each of the runs that it
    /// may have. Inside a body: this run is outdated, and the body will run again.
    Conflict {
        /// Number of runs.
        tries: u32,
    },
    /// Something is larger than a limit of the format or of the options.
    TooLarge {
        /// The part that is too large: "key", "value", "batch", "table name", a transaction's reads
        /// or writes.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        bytes_max: u64,
    },
    /// A key or value of a typed table does not decode as the type asked for.
    Decode {
        /// The table.
        table: String,
        /// The key, as stored.
        key: Vec<u8>,
        /// What the decoder said.
        reason: String,
    },
    /// A key or value of a typed table cannot be encoded.
    Encode {
        /// The table.
        table: String,
        /// What the encoder said.
        reason: String,
    },
    /// An option or argument makes no sense.
    Invalid {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// No table has this name.
    NoSuchTable {
        /// The name.
        name: String,
    },
    /// A table has this name already.
    TableExists {
        /// The name.
        name: String,
    },
    /// The table behind this handle was dropped.
    TableDropped {
        /// The name it had.
        name: String,
    },
    /// The database was opened read-only.
    ReadOnly,
    /// The database was closed.
    Closed,
    /// This process is a forked child, and the handle belongs to its parent. Open the database in
    /// the child, once the parent has closed it.
    Forked,
    /// A batch names a table of another database.
    ForeignTable {
        /// The table.
        name: String,
    },
    /// A write through the database inside the body of a transaction on it, or a transaction inside
    /// another one.
    InTransaction,
    /// A change feed asked for commits after a sequence that no commit has yet.
    FeedAhead {
        /// The sequence asked for.
        asked: u64,
        /// The last sequence.
        last: u64,
    },
    /// The log no longer reaches back to the sequence that a change feed asked for.
    FeedGone {
        /// The sequence asked for.
        asked: u64,
        /// The oldest one that can be had.
        oldest: u64,
    },
    /// The caller's own code refused inside a transaction.
    Refused {
        /// In its words.
        reason: String,
    },
}

impl Error {
    /// Builds the closure that `map_err` wants around a call of the operating system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Damage at `offset` of `path`.
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

    /// Whether this is damage on disk (as against a fault of the machine or a refused request).
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

    /// Whether the disk was full.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// if let Err(error) = events.put("k", "v") {
    ///     if error.is_disk_full() {
    ///         println!("nothing was written; it can be tried again once there is room");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            Self::Poisoned { cause } => cause.is_disk_full(),
            _ => false,
        }
    }
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
                f.write_str("the database refuses writes since an earlier write or sync failed; reopen it")
            }
            Self::Locked {
                path,
                holder: Some(holder),
            } => {
                write!(
                    f,
                    "{} is held by process {holder}: one process at a time writes",
                    path.display()
                )
            }
            Self::Locked { path, holder: None } => {
                write!(
                    f,
                    "{} is held by another process: one at a time writes",
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
                    "the transaction met other writers in each of its {tries} tries"
                )
            }
            Self::TooLarge {
                what,
                bytes,
                bytes_max,
            } => {
                write!(
                    f,
                    "{what} of {bytes} bytes is over the limit of {bytes_max} bytes"
                )
            }
            Self::Decode { table, key, reason } => write!(
                f,
                "the record {} of table {table:?} does not decode as the type asked for: {reason}",
                key.escape_ascii()
            ),
            Self::Encode { table, reason } => {
                write!(f, "a record for table {table:?} cannot be encoded: {reason}")
            }
            Self::Invalid { what, reason } => write!(f, "{what} is invalid: {reason}"),
            Self::NoSuchTable { name } => write!(f, "there is no table {name:?}"),
            Self::TableExists { name } => write!(f, "there is a table {name:?} already"),
            Self::TableDropped { name } => write!(f, "the table {name:?} was dropped"),
            Self::ReadOnly => f.write_str("the database was opened read-only"),
            Self::Closed => f.write_str("the database was closed"),
            Self::Forked => f.write_str(
                "the database was opened by the process that this one was forked from; open it here, \
                 after that process has closed it",
            ),
            Self::ForeignTable { name } => write!(f, "the table {name:?} belongs to another database"),
            Self::InTransaction => f.write_str(
                "the database cannot be written inside the body of a transaction; write through the transaction, or after it",
            ),
            Self::FeedAhead { asked, last } => {
                write!(f, "no commit has sequence {asked}; the last one has {last}")
            }
            Self::FeedGone { asked, oldest } => {
                write!(
                    f,
                    "changes since sequence {asked} were compacted away; the oldest kept is {oldest}"
                )
            }
            Self::Refused { reason } => f.write_str(reason),
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
