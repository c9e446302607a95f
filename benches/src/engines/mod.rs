//! Traits over all engines, and a module with their implementations for each engine.
//!
//! An [`Engine`] is an open database with one table of byte keys and values. A [`Session`] is the
//! part of an engine that one thread uses. So an engine can keep a read transaction, a prepared
//! statement or a connection for each thread, as applications do.
//!
//! **Invariants**
//! - Every engine gets the settings that its documentation recommends for the wanted durability.
//! - No engine compresses, because the values cannot be compressed.
//! - An engine with a cache of its own gets one that holds the whole data set of a default run.
//! - An engine returns [`Unsupported`] for work that it cannot do.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::data::Key;

#[cfg(feature = "candystore")]
mod candystore;
#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "lmdb")]
mod lmdb;
mod microdb;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "sqlite")]
mod sqlite;

/// Size of an engine's own cache in bytes, if the engine has one. The cache has room for more than
/// the 2,000,000 records of a default run, so that its size limits no figure of such a run.
#[cfg(any(feature = "fjall", feature = "redb", feature = "rocksdb", feature = "sqlite"))]
const CACHE_BYTES: usize = 1 << 30;

/// The engines of this build.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// The engine of this project.
    Microdb,
    /// LMDB, through `heed`.
    #[cfg(feature = "lmdb")]
    Lmdb,
    /// RocksDB.
    #[cfg(feature = "rocksdb")]
    Rocksdb,
    /// candystore.
    #[cfg(feature = "candystore")]
    Candystore,
    /// redb.
    #[cfg(feature = "redb")]
    Redb,
    /// fjall.
    #[cfg(feature = "fjall")]
    Fjall,
    /// SQLite, through `rusqlite`.
    #[cfg(feature = "sqlite")]
    Sqlite,
}

impl EngineName {
    /// Returns all engines of this build, microdb first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Returns the name in tables and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Microdb => "microdb",
            #[cfg(feature = "lmdb")]
            Self::Lmdb => "lmdb",
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => "rocksdb",
            #[cfg(feature = "candystore")]
            Self::Candystore => "candystore",
            #[cfg(feature = "redb")]
            Self::Redb => "redb",
            #[cfg(feature = "fjall")]
            Self::Fjall => "fjall",
            #[cfg(feature = "sqlite")]
            Self::Sqlite => "sqlite",
        }
    }

    /// Returns `true` if a batch of the engine is one atomic commit.
    #[must_use]
    pub const fn has_batches(self) -> bool {
        match self {
            #[cfg(feature = "candystore")]
            Self::Candystore => false,
            _ => true,
        }
    }

    /// Returns the names of the packages that the report lists with their versions for this engine.
    #[must_use]
    pub const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Microdb => &["imt-microdb"],
            #[cfg(feature = "lmdb")]
            Self::Lmdb => &["heed", "lmdb-master-sys"],
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => &["rocksdb", "librocksdb-sys"],
            #[cfg(feature = "candystore")]
            Self::Candystore => &["candystore"],
            #[cfg(feature = "redb")]
            Self::Redb => &["redb"],
            #[cfg(feature = "fjall")]
            Self::Fjall => &["fjall"],
            #[cfg(feature = "sqlite")]
            Self::Sqlite => &["rusqlite", "libsqlite3-sys"],
        }
    }

    /// Opens or creates the engine's database in `folder`.
    ///
    /// # Errors
    /// Returns an error if the folder cannot be created, or the engine's error.
    pub fn open(self, folder: &Path, setup: Setup) -> Outcome<Box<dyn Engine>> {
        std::fs::create_dir_all(folder)?;
        Ok(match self {
            Self::Microdb => Box::new(microdb::Microdb::open(folder, setup)?),
            #[cfg(feature = "lmdb")]
            Self::Lmdb => Box::new(lmdb::Lmdb::open(folder, setup)?),
            #[cfg(feature = "rocksdb")]
            Self::Rocksdb => Box::new(rocksdb::Rocksdb::open(folder, setup)?),
            #[cfg(feature = "candystore")]
            Self::Candystore => Box::new(candystore::Candystore::open(folder, setup)?),
            #[cfg(feature = "redb")]
            Self::Redb => Box::new(redb::Redb::open(folder, setup)?),
            #[cfg(feature = "fjall")]
            Self::Fjall => Box::new(fjall::Fjall::open(folder, setup)?),
            #[cfg(feature = "sqlite")]
            Self::Sqlite => Box::new(sqlite::Sqlite::open(folder, setup)?),
        })
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Settings for opening an engine.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// `true` if every commit must be durable when it returns. Otherwise a commit must be durable
    /// only after a later [`Engine::sync`].
    pub durable: bool,
    /// Maximum size of all keys and values in bytes, for an engine that chooses the size of its
    /// memory map when it opens.
    pub data_bytes: u64,
}

/// The reason why an engine cannot do some work. The report has no figure for this work.
#[derive(Debug)]
pub struct Unsupported(pub &'static str);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unsupported {}

/// The kind of access that a session needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Only reads, while no thread writes. The session may keep one long read transaction.
    Read,
    /// Reads and writes. Each read must see all writes that were acknowledged before.
    ReadWrite,
}

/// An open database with one table of byte keys and values.
pub trait Engine: Sync {
    /// Opens a session for one thread.
    ///
    /// # Errors
    /// Returns the engine's error.
    fn session(&self, access: Access) -> Outcome<Box<dyn Session + '_>>;

    /// Makes all acknowledged writes durable.
    ///
    /// # Errors
    /// Returns the engine's error.
    fn sync(&self) -> Outcome<()>;

    /// Waits until the background work of earlier writes is done, so that this work does not slow
    /// the measured reads. Does nothing for an engine that has no call for such a wait.
    ///
    /// # Errors
    /// Returns the engine's error.
    fn wait_idle(&self) -> Outcome<()> {
        Ok(())
    }

    /// Frees the space of overwritten records as far as the engine can, and waits until this work
    /// is done. LMDB frees the space of its old file only when the engine is dropped.
    ///
    /// # Errors
    /// Returns the engine's error, or [`Unsupported`].
    fn compact(&mut self) -> Outcome<()>;

    /// Returns the engine's own statement that its open dropped data, if it makes one.
    fn dropped(&self) -> Option<String> {
        None
    }

    /// Returns the size of the engine's index in bytes, if the engine reports it.
    fn index_bytes(&self) -> Option<u64> {
        None
    }

    /// Returns the number of flushes to the disk since the open, if the engine reports it.
    fn flushes(&self) -> Option<u64> {
        None
    }
}

/// The part of an engine that one thread uses.
pub trait Session {
    /// Stores one record in its own commit, with the durability of the [`Setup`].
    ///
    /// # Errors
    /// Returns the engine's error, or [`Unsupported`] if the value is too large for the engine.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()>;

    /// Stores records in one atomic commit, with the durability of the [`Setup`]. An engine without
    /// atomic batches stores them one by one.
    ///
    /// # Errors
    /// Returns the engine's error, or [`Unsupported`] if a value is too large for the engine.
    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()>;

    /// Reads one record and passes its value to `visit`. Returns `false` if the record does not
    /// exist.
    ///
    /// # Errors
    /// Returns the engine's error.
    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool>;

    /// Adds one to the number (8 bytes, little-endian) in a record. Read and write are one
    /// transaction, with the durability of the [`Setup`]. Returns `false` if the engine rejected
    /// the transaction because of a conflict.
    ///
    /// # Errors
    /// Returns the engine's error, or [`Unsupported`] if the engine has no transactions, or none in
    /// the kind of database that the benchmark opens. An engine may also return an error if the
    /// record has no number of 8 bytes.
    fn add_one(&mut self, _key: &[u8]) -> Outcome<bool> {
        Err(Unsupported("has no transactions here").into())
    }

    /// Reads many records. For each key, passes its position in `keys` and its value to `visit`, or
    /// `None` if the record does not exist.
    ///
    /// # Errors
    /// Returns the engine's error.
    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Outcome<()> {
        for (position, key) in keys.iter().enumerate() {
            if !self.get(key, &mut |value| visit(position, Some(value)))? {
                visit(position, None);
            }
        }
        Ok(())
    }

    /// Reads every record once, in the order that the engine prefers.
    ///
    /// # Errors
    /// Returns the engine's error, or [`Unsupported`] if the engine needs a session with
    /// [`Access::Read`] for a scan.
    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()>;
}

/// Returns the number in a value of 8 bytes (little-endian), plus one, in the same form.
///
/// # Errors
/// Returns an error if the value is absent or has another length.
pub fn plus_one(value: Option<&[u8]>) -> Outcome<[u8; 8]> {
    let bytes = value.and_then(|value| value.try_into().ok());
    let number = u64::from_le_bytes(bytes.ok_or("the counter is not a number of 8 bytes")?);
    Ok((number + 1).to_le_bytes())
}

/// Records to store in one commit. Values are borrowed, so that no engine pays for an additional
/// copy.
#[derive(Debug, Default)]
pub struct Records<'a> {
    keys: Vec<u8>,
    key_bytes: usize,
    values: Vec<&'a [u8]>,
}

impl<'a> Records<'a> {
    /// Creates an empty list. Each key has `key_bytes` bytes.
    #[must_use]
    pub const fn new(key_bytes: usize) -> Self {
        Self {
            keys: Vec::new(),
            key_bytes,
            values: Vec::new(),
        }
    }

    /// Adds a record.
    pub fn push(&mut self, key: &[u8], value: &'a [u8]) {
        debug_assert_eq!(key.len(), self.key_bytes);
        self.keys.extend_from_slice(key);
        self.values.push(value);
    }

    /// Removes all records and keeps the allocated memory.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    /// Returns the number of records.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns `true` if there are no records.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns the records in the order of their insertion.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &'a [u8])> {
        self.keys
            .chunks_exact(self.key_bytes)
            .zip(self.values.iter().copied())
    }
}
