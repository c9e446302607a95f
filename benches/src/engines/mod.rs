//! One small trait over all engines, and a file for each.
//!
//! An [`Engine`] is an open database with one table of bytes; a [`Session`] is what one thread uses
//! of it, so that an engine can keep what its users would keep (a read transaction, a prepared
//! statement, a connection). Every engine gets the settings that its own documentation gives for
//! the durability asked, no compression (the values cannot be compressed), and a cache that holds
//! the whole data set. What an engine cannot do is [`Unsupported`].

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

/// Memory given to an engine's own cache, if it has one: more than the 2,000,000 records need, so
/// that nobody's figure is one of cache misses against the page cache.
#[cfg(any(feature = "fjall", feature = "redb", feature = "rocksdb", feature = "sqlite"))]
const CACHE_BYTES: usize = 1 << 30;

/// The engines.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// Ours.
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
    /// All engines of this build, ours first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// The name in tables and on the command line.
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

    /// The packages whose versions describe the engine.
    #[must_use]
    pub const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Microdb => &["microdb"],
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

    /// Opens, or creates, the engine's database in `folder`.
    ///
    /// # Errors
    /// The engine's own.
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

/// What an engine should know when it opens.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Each put is on the device before it returns; otherwise only [`Engine::sync`] promises that.
    pub durable: bool,
    /// Bytes of keys and values that will be stored at most, for engines that must size a map.
    pub data_bytes: u64,
}

/// An engine cannot do what a row asks: the table shows "-".
#[derive(Debug)]
pub struct Unsupported(pub &'static str);

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unsupported {}

/// What a thread will do in its session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Only read, and nobody writes meanwhile: one long view may be kept.
    Read,
    /// Read and write: each read must see all writes acknowledged before it.
    ReadWrite,
}

/// An open database with one table of bytes.
pub trait Engine: Sync {
    /// A thread's way in.
    ///
    /// # Errors
    /// The engine's own.
    fn session(&self, access: Access) -> Outcome<Box<dyn Session + '_>>;

    /// Makes everything acknowledged so far durable.
    ///
    /// # Errors
    /// The engine's own.
    fn sync(&self) -> Outcome<()>;

    /// Waits until background work that earlier writes left behind is done, so that rows which read
    /// do not compete with it.
    ///
    /// # Errors
    /// The engine's own.
    fn settle(&self) -> Outcome<()> {
        Ok(())
    }

    /// Gives back the space of what was overwritten, as far as the engine can, and waits for it.
    ///
    /// # Errors
    /// The engine's own, or [`Unsupported`].
    fn compact(&mut self) -> Outcome<()>;

    /// Bytes that the engine keeps to find records, where it says so.
    fn index_bytes(&self) -> Option<u64> {
        None
    }

    /// Flushes of the device so far, where the engine says so.
    fn flushes(&self) -> Option<u64> {
        None
    }
}

/// What one thread uses of an engine.
pub trait Session {
    /// Stores one record as a commit of its own, with the durability of the [`Setup`].
    ///
    /// # Errors
    /// The engine's own.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<()>;

    /// Stores records as one atomic commit where the engine has such, with the durability of the
    /// [`Setup`].
    ///
    /// # Errors
    /// The engine's own.
    fn put_batch(&mut self, records: &Records<'_>) -> Outcome<()>;

    /// Reads one record; `visit` sees the value if there is one.
    ///
    /// # Errors
    /// The engine's own.
    fn get(&mut self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Outcome<bool>;

    /// Adds one to the number (8 bytes, little-endian) that a record holds, in a transaction that
    /// reads and writes it, with the durability of the [`Setup`]. Returns `false` if the engine
    /// refused because of a conflict.
    ///
    /// # Errors
    /// The engine's own; [`Unsupported`] where it has no transactions, or none in this kind of
    /// database.
    fn add_one(&mut self, _key: &[u8]) -> Outcome<bool> {
        Err(Unsupported("has no transactions here").into())
    }

    /// Reads many records; `visit` sees each one's position and value, if there is one.
    ///
    /// # Errors
    /// The engine's own.
    fn multi_get(&mut self, keys: &[Key], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Outcome<()> {
        for (position, key) in keys.iter().enumerate() {
            if !self.get(key, &mut |value| visit(position, Some(value)))? {
                visit(position, None);
            }
        }
        Ok(())
    }

    /// Reads every record once, in the engine's own order.
    ///
    /// # Errors
    /// The engine's own.
    fn scan(&mut self, visit: &mut dyn FnMut(&[u8], &[u8])) -> Outcome<()>;
}

/// Returns the number in a value of 8 bytes, plus one.
///
/// # Errors
/// If the value has another length.
pub fn plus_one(value: Option<&[u8]>) -> Outcome<[u8; 8]> {
    let bytes = value.and_then(|value| value.try_into().ok());
    let number = u64::from_le_bytes(bytes.ok_or("the counter is no number of 8 bytes")?);
    Ok((number + 1).to_le_bytes())
}

/// Records to store together. Borrowed from wherever they lie, so that no engine's batch pays for
/// another's form.
#[derive(Debug, Default)]
pub struct Records<'a> {
    keys: Vec<u8>,
    key_bytes: usize,
    values: Vec<&'a [u8]>,
}

impl<'a> Records<'a> {
    /// No records yet; each key will have `key_bytes`.
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

    /// Forgets the records, keeps the memory.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
    }

    /// How many records.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The records in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &'a [u8])> {
        self.keys
            .chunks_exact(self.key_bytes)
            .zip(self.values.iter().copied())
    }
}
