//! The log of a volume in an engine. A group commit appends one entry with its rows.
//!
//! A volume has such a log only behind an engine. Without an engine, microdb's own log makes a
//! commit durable.
//!
//! | part | content |
//! | --- | --- |
//! | `Log` | trait of the statements on a log, implemented by `engine` and by the simulation |
//! | `body` | the bytes of an entry, with the chain |
//! | `writer` | appends entries, and repeats an append until its outcome is known |
//! | `takeover` | the start of an ownership: raises the epoch, appends an empty entry |
//! | `cache` | the local database as a copy of the beginning of the log |
//!
//! **Invariants**
//! - An entry is appended only under the volume's epoch and, except for the first entry, directly
//!   after an existing entry. So a statement that a former owner sends after a takeover appends
//!   nothing, and a log has no gap.
//! - An entry is durable once the engine has acknowledged it or a later entry. An entry that was
//!   only read may exist on one machine only.
//! - If no result of a statement arrives, its outcome is *unknown*. The writer repeats an append
//!   until its outcome is known or the volume is closed.
//! - A decision from several reads either reads them in one transaction (each part of `Log::rows`),
//!   compares chains between them (`cache`, between the parts of a copy), or is
//!   checked by the statement that carries it out (`Log::append`, `Log::checkpoint`), or is
//!   confirmed (`Log::confirm`). Two statements may reach two servers, because a fail-over can
//!   happen between them.
//! - A server that shows an older log than this process knows may be an old primary, which a
//!   fail-over left behind. So a writer and a follower read many times before they treat entries as
//!   lost. A writer that is being stopped reads once. A new owner also reads once, after the server
//!   has acknowledged the entry of the takeover.
//! - The chain of an entry covers all entries before it. So comparing one chain compares a whole
//!   copy with the log.
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

use crate::error::DecodeError;
use crate::storage::log::body::{CHAIN_BYTES, Chain, chain_in};
use crate::storage::write_batch::Table;

/// Identifies an entry of a log. The default value is the position before the first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Number of the entry. The first entry has the number 1.
    pub(crate) seq: u64,
    /// The epoch of the owner that wrote the entry.
    pub(crate) epoch: u64,
    /// The chain in the header of the entry: a hash over the log up to this entry.
    pub(crate) chain: Chain,
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    pub(crate) body: Bytes,
}

/// An entry of a log without its rows: its number, its epoch and the leading bytes of its body.
/// These bytes have the chain, a hash over the number, the epoch, the rows and all entries before.
/// So the `EntryHead` identifies the entry, and its size does not depend on that of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryHead {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    /// The first `CHAIN_BYTES` bytes of the body.
    pub(crate) bytes: Bytes,
}

impl EntryHead {
    /// Returns the head of `entry`.
    pub(crate) fn of(entry: &Entry) -> EntryHead {
        EntryHead {
            seq: entry.seq,
            epoch: entry.epoch,
            bytes: entry.body.slice(..CHAIN_BYTES.min(entry.body.len())),
        }
    }

    /// Returns the position of the entry, or an error if this program cannot read the bytes.
    pub(crate) fn position(&self) -> Result<Position, DecodeError> {
        Ok(Position {
            seq: self.seq,
            epoch: self.epoch,
            chain: chain_in(&self.bytes)?,
        })
    }
}

/// The engine's record of a volume (its row in `imt_volume`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The epoch of the latest owner.
    pub(crate) epoch: u64,
    /// Number of the first entry that a checkpoint has not copied to the engine's table of rows.
    pub(crate) kept_from: u64,
}

/// The reason why a statement has no usable result.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LogError {
    /// The statement was not sent, was refused, or returned data that cannot be used, such as a log
    /// without expected entries. A statement that was not sent or was refused has no effect.
    #[error("the engine cannot be used: {0}")]
    Away(String),
    /// The statement may have been executed, and its effect may be on the primary only.
    #[error("the engine did not answer: {0}")]
    Unknown(String),
}

/// A part of a volume's rows in the engine's table of rows (`imt_row`).
#[derive(Clone, Debug)]
pub(crate) struct RowsPart {
    /// The head of the last entry that the rows contain. `None` if no checkpoint was made yet.
    pub(crate) last: Option<EntryHead>,
    /// The table, key and value of each row, in ascending order of the tables' codes and the keys.
    pub(crate) rows: Vec<(Table, Vec<u8>, Vec<u8>)>,
}

/// A future that returns the result of a statement.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LogError>> + Send + 'a>>;

/// The last value of each row that a part of the log writes, and the keys of the rows that it
/// removes.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    pub(crate) puts: Vec<(Table, Vec<u8>, Vec<u8>)>,
    pub(crate) deletes: Vec<(Table, Vec<u8>)>,
}

impl LastWords {
    /// Returns the size of the keys and values in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let puts = self.puts.iter().map(|(_, key, value)| key.len() + value.len());
        puts.chain(self.deletes.iter().map(|(_, key)| key.len())).sum()
    }
}

/// The statements on one volume in an engine.
pub(crate) trait Log: Send {
    /// Appends an entry under its epoch. `behind` has the number and epoch of the previous entry,
    /// and is `None` for the first entry. Returns `false` if the number is taken, the volume does
    /// not exist or has another epoch, or the previous entry does not exist.
    fn append<'a>(&'a mut self, entry: &'a Entry, behind: Option<(u64, u64)>) -> Answer<'a, bool>;

    /// Returns the head of the entry with the number `seq`, if the log has the entry. This entry
    /// may exist on one machine only.
    fn look(&mut self, seq: u64) -> Answer<'_, Option<EntryHead>>;

    /// Returns the position of the newest entry, or the default if the log is empty.
    fn newest(&mut self) -> Answer<'_, Position>;

    /// Returns the engine's record of the volume, if it exists.
    fn head(&mut self) -> Answer<'_, Option<Head>>;

    /// Returns the name of the node that took the volume over last. `None` if this node has
    /// released the volume, if no node ever took it over, or if the volume does not exist. The
    /// answer may come from an old primary, unless `confirm` follows and returns `true`.
    fn owner(&mut self) -> Answer<'_, Option<String>>;

    /// Commits without a change of data. Returns `true` if the commit was acknowledged on the
    /// connection of the previous call. Then the answer of that call is not from an old primary.
    fn confirm(&mut self) -> Answer<'_, bool>;

    /// Records that the owner with this epoch answers no request of the volume any more. Has no
    /// effect if the volume has another epoch.
    fn release(&mut self, epoch: u64) -> Answer<'_, ()>;

    /// Creates the engine's record of a new volume, unless it exists. Rows and entries that a
    /// removed volume of the name has left are removed first.
    fn create(&mut self) -> Answer<'_, ()>;

    /// Makes `owner` the owner if the volume's epoch is below `until`. The new epoch is higher than
    /// the former one and at least `since`. Returns the new epoch, or `None` if a newer owner has
    /// taken the volume or the volume does not exist.
    fn raise<'a>(&'a mut self, owner: &'a str, since: u64, until: u64) -> Answer<'a, Option<u64>>;

    /// Returns entries after the number `after` up to `last`, in order, beginning with the first
    /// such entry in the log. May leave out later entries, but is empty only if the log has none.
    fn tail(&mut self, after: u64, last: u64) -> Answer<'_, Vec<Entry>>;

    /// Returns a bounded part of the volume's rows in the engine's table of rows: the first rows
    /// after the row `after`, or the first rows of all. The part is empty only if no row is left.
    /// Rows and head are of one moment and of one server. Two parts may be of two moments. Fails if
    /// the volume does not exist.
    fn rows<'a>(&'a mut self, after: Option<(Table, &'a [u8])>) -> Answer<'a, RowsPart>;

    /// Writes `words`, the last values of the entries from `from` to `last`, to the engine's rows.
    /// Sets `kept_from` to the number after `last` in the same transaction. Returns `false` and
    /// changes nothing if `kept_from` is not `from`, or if the server has another entry in place of
    /// `last` or none. The chain of `last` also covers the entries before. So a server that has
    /// other entries than those from which `words` were made changes nothing.
    fn checkpoint<'a>(&'a mut self, from: u64, last: &'a Position, words: &'a LastWords) -> Answer<'a, bool>;

    /// Removes a bounded part of the entries after the number `after` up to `last`, beginning with
    /// the first, but none after `kept_from - 2`. The entry before `kept_from` stays, because the
    /// chain of the next entry is computed from it. Removes nothing if the volume has another epoch
    /// than `epoch`. Returns the number of the last removed entry, or `None` if no entry is left to
    /// remove.
    fn trim(&mut self, epoch: u64, after: u64, last: u64) -> Answer<'_, Option<u64>>;

    /// Makes the next statement use the next host of the engine's URL, for example because the
    /// current host answered with old rows.
    fn next_host(&mut self);

    /// Removes the volume from the engine, with its log and rows. Has no effect if the volume has
    /// another epoch: a newer owner has taken the volume, or a new volume has its name. If a
    /// removal was not completed, the volume counts as missing, and the call can be repeated.
    fn remove(&mut self, epoch: u64) -> Answer<'_, ()>;
}
