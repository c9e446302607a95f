//! An embedded key-value engine for point access. An append-only log holds all records. A hash
//! directory in memory finds the record of a key.
//!
//! ```
//! # fn main() -> microdb::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("shop");
//! let db = microdb::Db::open(path)?;
//! let events = db.table("events")?;
//! events.put("k", "v")?; // durable: it survives power loss from here on
//! assert_eq!(events.get("k")?.as_deref(), Some(&b"v"[..]));
//! let mut batch = db.batch(); // all or nothing, over any tables
//! batch.put(&events, "a", "1");
//! batch.delete(&events, "k");
//! batch.commit()?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Db`] is an open database, [`Table`] and [`TypedTable`] are its tables. [`Batch`] and
//!   [`Db::transaction`] change several records at once. [`Snapshot`] is a view of one moment.
//!   Batches, transactions and snapshots accept both kinds of tables.
//! - Handles of databases, tables and snapshots are cheap to clone and usable from any thread.
//! - Every read of a record verifies its checksum. A read returns the right value, absence, or an
//!   error that names the damage.
//! - One process writes, protected by a file lock. Other processes may open the same folder
//!   read-only.
//! - [`heal`] replaces damaged bytes by those of a backup, and [`salvage`] copies all readable
//!   records to a new database. [`Db::digest`] and [`diff`] find the differences between two
//!   databases.
//! - When the first file is mapped, a handler for SIGBUS is installed, so that a file truncated by
//!   another program reads as damage. A SIGBUS raised by an access to other memory keeps its
//!   effect, such as a call of the handler that was installed before. [`Options::sigbus_handler`]
//!   can prevent the installation.
//! - The feature `bincode`, on by default, provides the default encoding of typed tables. Without
//!   this feature, the program must provide a [`Codec`] of its own.
//! - Deliberately absent: key order, networking, asynchrony, and threads for an idle database.

mod any_table;
mod batch;
mod db;
#[allow(
    dead_code,
    reason = "a complete data structure; tests and benchmarks use the functions that the engine does not"
)]
mod directory;
mod engine;
mod error;
mod format;
mod options;
#[allow(
    dead_code,
    reason = "a complete data structure; tests and benchmarks use the functions that the engine does not"
)]
mod raw;
mod recover;
mod seeded;
mod sequence;
mod snapshot;
mod stats;
pub mod storage;
mod table;
mod testing;
mod tools;
mod transaction;
mod typed;
mod value;

pub use any_table::{AnyTable, KeyFor, ValueFor};
pub use batch::Batch;
pub use db::{Db, diff};
pub use engine::compact::CompactReport;
pub use engine::digest_cache::DigestHash;
pub use tools::backup::BackupReport;
pub use tools::diff::{DiffReport, Difference, DifferenceKind};
pub use tools::digest::{DIGEST_PREFIXES, Digest, TableDigest, digest_prefix};
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench_support {
    //! Items used by the micro-benchmarks.
    pub use crate::directory::bench_support::*;
    pub use crate::testing::bench_format::{BenchBody, decode};
}
pub use engine::histogram::Histogram;
pub use engine::recovery_report::RecoveryReport;
pub use error::{Error, Result};
pub use format::key_codec::KeyCodec;
pub use format::{
    BATCH_BYTES_MAX, DatabaseId, KEY_BYTES_MAX, LogPosition, TABLE_NAME_BYTES_MAX, VALUE_BYTES_MAX,
};
pub use options::{Durability, Options};
pub use sequence::Sequence;
pub use snapshot::{Iter, Snapshot};
pub use stats::{SegmentStats, Stats, TableInfo};
pub use table::Table;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use testing::fuzzing;
pub use tools::change_feed::{Change, Changes, Operation};
pub use tools::heal::{ChunkReport, HealReport, heal};
pub use tools::inspect;
pub use tools::salvage::{KeyName, Loss, Manifest, SalvagedTable, salvage};
pub use tools::verify::VerifyReport;
pub use transaction::Transaction;
pub use typed::codec::{Bincode, Codec, CodecError};
pub use typed::{TypedIter, TypedTable};
pub use value::Value;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
