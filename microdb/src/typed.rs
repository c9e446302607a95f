//! Typed tables: serde types over a table of bytes.
//!
//! - A put refuses every value that could not be read back, with the reason.
//! - The bytes are those of bincode's standard configuration, so the table can also be read as
//!   bytes.
//!
//! Deliberately absent: a schema on disk. The types of a table are known only to the program.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::format::codec;
use crate::format::round_trip::{self, KnownShapes, Part};
use crate::options::Durability;
use crate::table::Table;

/// A table with keys of type `K` and values of type `V`, encoded by bincode (standard
/// configuration).
///
/// # Types
///
/// The encoding stores no types and no field names. A put checks that the value can be read back,
/// and otherwise refuses with [`Error::Encode`] and the reason. Refused are:
///
/// - omitted fields: `skip_serializing_if`, and `skip_serializing` without `skip_deserializing`.
///   Use an `Option`, which takes one byte.
/// - types that need a self-describing encoding: untagged, internally and adjacently tagged enums,
///   `serde_json::Value`. Use plain enums, or store a string.
/// - maps and sequences of unknown length, for example those of `flatten`.
///
/// Values of up to [`crate::VALUE_BYTES_MAX`] encoded bytes can be written and read.
///
/// The check reads back each new shape of a value once per handle and its clones. A shape is the
/// set of variants, of `Some` and `None`, and of the kinds of its fields. Keep a handle instead of
/// requesting one before each put. The check may miss a `Deserialize` that refuses, by content, a
/// value of its own `Serialize`. [`TypedTable::get`] then returns [`Error::Decode`].
///
/// # Changing types
///
/// The database does not store the types of a table. A table opened with other types returns
/// [`Error::Decode`] where the bytes do not fit, and **another value where they do**: a `u32` of 6
/// is read as an `i32` of 3. The rule is:
///
/// - Allowed: new variants at the end of an enum; new names of types, fields and variants; a wider
///   integer of the same sign (`u16` to `u64`, `i16` to `i64`). `u8` and `i8` cannot be widened,
///   because they have their own encoding.
/// - Everything else needs a new table, or a version in the type: an enum with one variant per
///   version of the value.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path())?;
/// let stock = db.typed_table::<(u32, u16), u16>("stock")?;
/// stock.put(&(812, 5), &3)?;
/// assert_eq!(stock.get(&(812, 5))?, Some(3));
/// # Ok(())
/// # }
/// ```
pub struct TypedTable<K, V> {
    raw: Table,
    /// Shapes of keys and values that were read back successfully.
    known: Arc<KnownShapes>,
    types: PhantomData<Types<K, V>>,
}

/// Initial capacity for an encoded key or value, enough for most without growing.
const ENCODED_BYTES_USUAL: usize = 64;

/// Names both types without owning either, so that a table is `Send` and `Sync` for all types.
type Types<K, V> = (fn() -> K, fn() -> V);

impl<K, V> Clone for TypedTable<K, V> {
    fn clone(&self) -> Self {
        Self {
            raw: self.raw.clone(),
            known: self.known.clone(),
            types: PhantomData,
        }
    }
}

impl<K, V> std::fmt::Debug for TypedTable<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TypedTable({:?})", self.raw.name())
    }
}

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> TypedTable<K, V> {
    pub(crate) fn new(raw: Table) -> Self {
        Self {
            raw,
            known: Arc::default(),
            types: PhantomData,
        }
    }

    /// Returns the underlying table of bytes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// assert_eq!(stock.raw().name(), "stock");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn raw(&self) -> &Table {
        &self.raw
    }

    /// Returns the value of `key`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// assert_eq!(stock.get(&812)?, Some(3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::get`], and [`Error::Decode`] if the stored value is not a `V`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let key = self.encode_key(key)?;
        self.raw
            .get(&key)?
            .map(|value| self.decode(&key, &value))
            .transpose()
    }

    /// Returns `true` if the table has a value for `key`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// assert!(stock.contains_key(&812)?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::get`].
    pub fn contains_key(&self, key: &K) -> Result<bool> {
        self.raw.contains_key(self.encode_key(key)?)
    }

    /// Puts a value with the durability of the database's options.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?; // durable when this returns
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::put`], and [`Error::Encode`] if the value cannot be encoded.
    pub fn put(&self, key: &K, value: &V) -> Result<()> {
        let (key, value) = self.encode_both(key, value)?;
        self.raw.put(key, value)
    }

    /// Puts a value with the given durability.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put_with(&812, &3, microdb::Durability::Buffered)?;
    /// db.sync()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`TypedTable::put`].
    pub fn put_with(&self, key: &K, value: &V, durability: Durability) -> Result<()> {
        let (key, value) = self.encode_both(key, value)?;
        self.raw.put_with(key, value, durability)
    }

    /// Deletes a key. Returns `true` if the key existed.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// assert!(stock.delete(&812)?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::delete`].
    pub fn delete(&self, key: &K) -> Result<bool> {
        self.raw.delete(self.encode_key(key)?)
    }

    /// Returns an iterator over all records at this moment, in no particular order.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// for record in stock.iter() {
    ///     assert_eq!(record?, (812, 3));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = Result<(K, V)>> + use<K, V> {
        let table = self.clone();
        self.raw.iter().map(move |record| {
            let (key, value) = record?;
            Ok((table.decode(&key, &key)?, table.decode(&key, &value)?))
        })
    }

    /// Returns the number of keys.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// assert_eq!(stock.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn len(&self) -> u64 {
        self.raw.len()
    }

    /// Returns `true` if the table has no keys.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// assert!(stock.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Returns the encoded bytes of a key, as stored in the table of bytes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// let key = stock.encode_key(&812)?;
    /// assert!(stock.raw().contains_key(key)?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Encode`] if the key cannot be encoded.
    pub fn encode_key(&self, key: &K) -> Result<Vec<u8>> {
        self.encode(key, Part::Key)
    }

    /// Decodes a value from its stored bytes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path().join("shop"))?;
    /// # let events = db.table("events")?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// let (key, value) = stock.raw().iter().next().unwrap()?;
    /// assert_eq!(stock.decode_value(&key, &value)?, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if the bytes are not a `V`.
    pub fn decode_value(&self, key: &[u8], value: &[u8]) -> Result<V> {
        self.decode(key, value)
    }

    pub(crate) fn encode_both(&self, key: &K, value: &V) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok((self.encode(key, Part::Key)?, self.encode(value, Part::Value)?))
    }

    fn encode<T: Serialize + DeserializeOwned>(&self, value: &T, part: Part) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ENCODED_BYTES_USUAL);
        let encoded = round_trip::encode(value, part, &self.known, &mut bytes);
        encoded.map_err(|reason| Error::Encode {
            table: self.raw.name(),
            reason,
        })?;
        Ok(bytes)
    }

    fn decode<T: DeserializeOwned>(&self, key: &[u8], bytes: &[u8]) -> Result<T> {
        let wanted = std::any::type_name::<T>();
        codec::decode(bytes).map_err(|reason| Error::Decode {
            table: self.raw.name(),
            key: key.to_vec(),
            reason: format!("as {wanted}: {reason}"),
        })
    }
}
