//! The log of a volume in an engine: one entry per group commit, with all rows of the group.
//!
//! A volume has a log only behind an engine. Without one, microdb's own log makes a commit durable.
//!
//! | part | content |
//! | --- | --- |
//! | `Log` | the statements, one round trip each; in an engine (`engine`) or in the simulation |
//! | `body` | the bytes of an entry, with the chain |
//! | `writer` | appends: repeats, finds out, confirms |
//! | `takeover` | the beginning of an ownership: epoch, own entry |
//! | `cache` | the local database as a copy of the log's prefix |
//!
//! **Invariants**
//! - An entry is appended only under the volume's epoch and directly behind an entry that exists.
//!   So a former owner appends nothing, and a log has no gap.
//! - An entry counts once the engine has acknowledged it, or an entry behind it. A found entry
//!   alone may be on one machine only.
//! - A result that did not arrive is *unknown*. It is found out by repeating, never guessed.
//! - A server that shows an older log than this process knows may be a primary that was left
//!   behind. Only one that shows it again and again has lost entries.
//! - The chain of an entry covers all entries before it. A copy of the log is compared by it.
//!
//! Deliberately absent: SQL of membership and of the cluster's state (`cluster::engine`).

pub(crate) mod body;
pub(crate) mod cache;
pub(crate) mod engine;
pub(crate) mod takeover;
pub(crate) mod writer;

use std::pin::Pin;

use bytes::Bytes;
use thiserror::Error;

use crate::storage::log::body::Chain;
use crate::storage::write_batch::Table;

/// An entry's place in the log, and the chain up to it. The default is the place before the first
/// entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Number of the entry; the first one is 1.
    pub(crate) seq: u64,
    /// The epoch of its writer.
    pub(crate) epoch: u64,
    /// The chain in its header.
    pub(crate) chain: Chain,
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    pub(crate) body: Bytes,
}

/// The engine's record of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The epoch of the newest owner.
    pub(crate) epoch: u64,
    /// First entry that the engine's rows may lack.
    pub(crate) kept_from: u64,
}

/// The reason why a statement has no result.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LogError {
    /// The statement has no effect, because it was not sent or was refused.
    #[error("the engine cannot be used: {0}")]
    Away(String),
    /// The statement may have been executed, and its effect may be on the primary only.
    #[error("the engine did not answer: {0}")]
    Unknown(String),
}

/// A row of an engine's table of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineRow<'a> {
    pub(crate) table: Table,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// The future result of a statement.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LogError>> + Send + 'a>>;

/// The last words of a part of the log: the final value of each row that it writes.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    pub(crate) puts: Vec<(Table, Vec<u8>, Vec<u8>)>,
    pub(crate) deletes: Vec<(Table, Vec<u8>)>,
}

/// The statements on one volume in an engine.
pub(crate) trait Log: Send {
    /// Appends an entry under the epoch of the entry. `behind` is the place and epoch of the entry
    /// before it, `None` for the first one. Returns `false` if the place is taken, the volume has
    /// another epoch, or the entry before it does not exist.
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool>;

    /// Returns the entry at a place. The entry may be on one machine only.
    fn look(&mut self, seq: u64) -> Answer<'_, Option<Entry>>;

    /// Returns the position of the newest entry, the default without entries.
    fn newest(&mut self) -> Answer<'_, Position>;

    /// Returns the record of the volume, if it exists.
    fn head(&mut self) -> Answer<'_, Option<Head>>;

    /// Creates the record of a new volume, unless it exists.
    fn create(&mut self) -> Answer<'_, ()>;

    /// Makes `owner` the owner under a new epoch of at least `since` and below `until`. Returns the
    /// epoch, or `None` if a newer owner has taken the volume or the volume does not exist.
    fn raise<'a>(&'a mut self, owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>>;

    /// Returns some entries behind `after` up to `last`, in order.
    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>>;

    /// Passes every row of the volume to `take`, until `take` returns `false`.
    fn rows<'a>(&'a mut self, take: &'a mut (dyn FnMut(EngineRow<'_>) -> bool + Send)) -> Answer<'a, ()>;

    /// Replaces rows by the last words of the entries before `to`, and sets `kept_from` from `from`
    /// to `to`, together. Returns `false` and changes nothing if `kept_from` is not `from`.
    fn checkpoint<'a>(&'a mut self, from: u64, to: u64, words: &'a LastWords) -> Answer<'a, bool>;

    /// Removes entries up to `last`, but none behind `kept_from - 2`. The entry before `kept_from`
    /// stays, because its chain begins that of the following entries.
    fn trim(&mut self, last: u64) -> Answer<'_, u64>;

    /// Makes the next statement use another server of the engine, because this one answered with
    /// old rows.
    fn next_host(&mut self);

    /// Removes the volume with its log and rows.
    fn remove(&mut self) -> Answer<'_, ()>;
}
