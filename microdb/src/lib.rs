//! An embedded key-value engine for point access: a log of records is the only truth, a hash
//! directory finds them.
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
//! - [`Db`] is the folder, [`Table`] and [`TypedTable`] what lies in it, [`Batch`] and
//!   [`Db::transaction`] change several records at once, [`Snapshot`] is a view of one moment. All
//!   are cheap to clone and usable from any thread.
//! - Every read verifies a checksum. It gives the right value, absence, or an error that names the
//!   damage.
//! - One process writes (file lock); others may open the same folder read-only.
//! - [`heal`] mends damage from a backup, [`salvage`] saves what is left, [`Db::digest`] and
//!   [`diff`] tell whether and where two databases differ.
//! - A handler for SIGBUS is put in place with the first file that is mapped: a file that a
//!   stranger cuts short reads as damage then. It passes on whatever is not ours.
//! - Deliberately absent: order among keys, networking, asynchrony, threads of its own for an idle
//!   database.

mod accounts;
mod background;
mod backup;
mod batch;
#[cfg(feature = "bench")]
mod bench_format;
mod catalog;
mod checkpoint;
mod checksum;
mod codec;
mod commit;
mod compact;
mod db;
mod diff;
mod diff_log;
mod digest;
#[allow(
    dead_code,
    reason = "whole by themselves; their tests and benchmarks use the rest"
)]
mod directory;
mod engine;
#[cfg(not(loom))]
#[cfg(test)]
mod engine_tests;
mod error;
mod feed;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
#[cfg(not(loom))]
#[cfg(test)]
mod group_tests;
mod group_writes;
mod heal;
mod histogram;
mod identity;
pub mod inspect;
mod log;
#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
mod nesting;
mod options;
mod places;
mod pool;
#[allow(
    dead_code,
    reason = "whole by themselves; their tests and benchmarks use the rest"
)]
mod raw;
mod read_ahead;
mod reclaim;
mod recover;
mod replay;
mod round_trip;
mod salvage;
mod seal;
mod seeded;
mod segments;
mod snapshot;
mod space;
mod stats;
pub mod storage;
mod sync;
mod table;
mod transaction;
mod typed;
mod value;
mod verify;
mod version;

pub use backup::BackupReport;
pub use batch::Batch;
pub use compact::CompactReport;
pub use db::Db;
pub use diff::{DiffReport, Difference, DifferenceKind, diff};
pub use digest::{DIGEST_PREFIXES, Digest, DigestHash, TableDigest, digest_prefix};
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench_support {
    //! What the micro-benchmarks reach.
    pub use crate::bench_format::{BenchBody, decode};
    pub use crate::directory::bench_support::*;
}
pub use error::{Error, Result};
pub use feed::{Change, Changes, Operation};
pub use format::{DatabaseId, LogPosition};
pub use heal::{ChunkReport, HealReport, heal};
pub use histogram::Histogram;
pub use options::{
    BATCH_BYTES_MAX, Durability, KEY_BYTES_MAX, Options, TABLE_NAME_BYTES_MAX, VALUE_BYTES_MAX,
};
pub use recover::RecoveryReport;
pub use salvage::{KeyName, Loss, Manifest, SalvagedTable, salvage};
pub use snapshot::{Iter, Snapshot};
pub use stats::{SegmentStats, Stats, TableInfo};
pub use table::Table;
pub use transaction::Transaction;
pub use typed::TypedTable;
pub use value::Value;
pub use verify::VerifyReport;
