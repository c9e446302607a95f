//! Typed tables: serde types over a table of bytes.
//!
//! - The codec is a parameter of the table. The default is bincode, behind a feature.
//! - Unless the codec is self-describing, a put of a value with a new shape (see [`TypedTable`])
//!   fails with a reason if the value cannot be read back.
//! - The table can also be read as bytes.
//!
//! Deliberately absent: a schema on disk. Scans by prefix are absent too, because a prefix of an
//! encoded key has no useful meaning.

#[cfg(feature = "bincode")]
mod bincode;
pub(crate) mod codec;
mod iter;
#[cfg(feature = "bincode")]
mod key_text;
mod round_trip;

use std::borrow::{Borrow, Cow};
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::codec::{Bincode, Codec};
pub use self::iter::TypedIter;
use self::round_trip::{KnownShapes, Part};
use crate::any_table::{AnyTable, KeyFor, ValueFor, sealed};
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::snapshot::Iter;
use crate::table::Table;
use crate::value::Value;

/// A table with keys of type `K` and values of type `V`, encoded by the codec `C`.
///
/// Keys and values are passed as references. A borrowed form is accepted too: `&str` for `String`,
/// `&[T]` for `Vec<T>`. Its encoding must equal that of the owned form.
///
/// # Types
///
/// The default encoding, [`Bincode`], stores no types and no field names. So a put checks that a
/// value can be read back, and otherwise fails with [`Error::Encode`] and the reason. A put
/// refuses:
///
/// - omitted fields: `skip_serializing_if`, and `skip_serializing` without `skip_deserializing`.
///   Use an `Option`, which takes one byte.
/// - types that need a self-describing encoding: untagged, internally and adjacently tagged enums,
///   `serde_json::Value`. Use plain enums, store a string, or use a codec that is
///   [self-describing](Codec::SELF_DESCRIBING).
/// - maps and sequences of unknown length, for example of a struct with `flatten`.
///
/// Values of up to [`crate::VALUE_BYTES_MAX`] encoded bytes can be written and read.
///
/// A put reads a value back if its shape is new: if the value has a choice that is new to the table
/// handle and its clones. The choices of a value are its enum variants, `Some` or `None`, and the
/// kinds of its fields, each with its place in the value. Keep a handle instead of requesting a new
/// one before each put. The check may miss a `Deserialize` that refuses a value of its own
/// `Serialize` because of the value's content. [`TypedTable::get`] then returns [`Error::Decode`].
///
/// # Changing types
///
/// The types of a table are not checked when the table is opened. If a table is opened with other
/// types, a read of bytes that do not fit returns [`Error::Decode`]. **Bytes that fit are read as
/// another value**: a `u32` of 6 is read as an `i32` of 3. The rule for [`Bincode`] is:
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
/// let stock = db.typed_table::<(String, u16), u32>("stock")?;
/// stock.put(&("lamp".to_owned(), 5), &3)?;
/// stock.update(&("lamp".to_owned(), 5), |units| Some(units.unwrap_or(0) + 2))?;
/// for record in &stock {
///     let ((product, store), units) = record?;
///     assert_eq!((product.as_str(), store, units), ("lamp", 5, 5));
/// }
/// # Ok(())
/// # }
/// ```
pub struct TypedTable<K, V, C = Bincode> {
    raw: Table,
    /// Shapes of keys and values that were read back successfully. Clones of the table share them.
    known: Arc<KnownShapes>,
    types: PhantomData<Types<K, V, C>>,
}

/// Initial capacity in bytes of the buffer for an encoded key or value. Most keys and values need
/// no more.
const ENCODED_BYTES_USUAL: usize = 64;

/// A type that names `K`, `V` and `C` without owning values of them. So a table is `Send` and
/// `Sync` for all types.
type Types<K, V, C> = (fn() -> K, fn() -> V, fn() -> C);

impl<K, V, C> Clone for TypedTable<K, V, C> {
    fn clone(&self) -> Self {
        Self {
            raw: self.raw.clone(),
            known: self.known.clone(),
            types: PhantomData,
        }
    }
}

impl<K, V, C> std::fmt::Debug for TypedTable<K, V, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TypedTable({:?})", self.raw.name())
    }
}

impl<K, V, C> TypedTable<K, V, C>
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
    C: Codec,
{
    /// Returns the typed form of a table of bytes. The stored keys and values must be encodings of
    /// `K` and `V`.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// # db.typed_table::<u32, u16>("stock")?;
    /// // Unlike `typed_table`, this does not create a missing table.
    /// if let Some(table) = db.get_table("stock") {
    ///     let stock = microdb::TypedTable::<u32, u16>::new(table);
    ///     println!("{:?}", stock.get(&812)?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(raw: Table) -> Self {
        Self {
            raw,
            known: Arc::default(),
            types: PhantomData,
        }
    }

    /// Returns the underlying table of bytes.
    #[must_use]
    pub fn raw(&self) -> &Table {
        &self.raw
    }

    /// Returns the name of the table.
    #[must_use]
    pub fn name(&self) -> String {
        self.raw.name()
    }

    /// Returns the value of `key`, or `None` if the key is absent.
    ///
    /// # Errors
    /// The errors of [`Table::get`], [`Error::Encode`] if the key cannot be encoded or read back,
    /// and [`Error::Decode`] if the stored value is not a `V`.
    pub fn get<Q>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        let key = self.encode_key(key)?;
        let value = self.raw.get(&key)?;
        value.map(|value| self.decode(&key, &value)).transpose()
    }

    /// Returns the values of several keys, like [`Table::multi_get`].
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// assert_eq!(stock.multi_get(&[811, 812])?, [None, Some(3)]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`TypedTable::get`].
    pub fn multi_get<'q, Q>(&self, keys: impl IntoIterator<Item = &'q Q>) -> Result<Vec<Option<V>>>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized + 'q,
    {
        let keys = keys.into_iter().map(|key| self.encode_key(key));
        let keys = keys.collect::<Result<Vec<_>>>()?;
        let values = self.raw.multi_get(&keys)?;
        let values = keys.iter().zip(values);
        values
            .map(|(key, value)| value.map(|value| self.decode(key, &value)).transpose())
            .collect()
    }

    /// Returns `true` if the table has a value for `key`.
    ///
    /// # Errors
    /// The errors of [`Table::get`], and [`Error::Encode`] if the key cannot be encoded or read
    /// back.
    pub fn contains_key<Q>(&self, key: &Q) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.raw.contains_key(self.encode_key(key)?)
    }

    /// Puts a value with the durability of the database's options.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let names = db.typed_table::<String, String>("names")?;
    /// names.put("ann", "Ann Archer")?; // borrowed forms of `String`
    /// assert_eq!(names.get("ann")?.as_deref(), Some("Ann Archer"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`Table::put`], and [`Error::Encode`] if the key or the value cannot be
    /// encoded or read back.
    pub fn put<Q, W>(&self, key: &Q, value: &W) -> Result<()>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
        V: Borrow<W>,
        W: Serialize + ?Sized,
    {
        self.raw.put(self.encode_key(key)?, self.encode_value(value)?)
    }

    /// Puts a value with the given durability.
    ///
    /// # Errors
    /// The errors of [`TypedTable::put`].
    pub fn put_with<Q, W>(&self, key: &Q, value: &W, durability: Durability) -> Result<()>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
        V: Borrow<W>,
        W: Serialize + ?Sized,
    {
        let (key, value) = (self.encode_key(key)?, self.encode_value(value)?);
        self.raw.put_with(key, value, durability)
    }

    /// Deletes a key. Returns `true` if the key existed.
    ///
    /// # Errors
    /// The errors of [`Table::delete`], and [`Error::Encode`] if the key cannot be encoded or read
    /// back.
    pub fn delete<Q>(&self, key: &Q) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.raw.delete(self.encode_key(key)?)
    }

    /// Deletes a key with the given durability. Returns `true` if the key existed.
    ///
    /// # Errors
    /// The errors of [`TypedTable::delete`].
    pub fn delete_with<Q>(&self, key: &Q, durability: Durability) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.raw.delete_with(self.encode_key(key)?, durability)
    }

    /// Replaces the value of `key` by `new` if the current value equals `expected`. As `expected`
    /// or `new`, `None` stands for an absent key. Returns `true` if the value was as expected, or
    /// `false` without a change.
    ///
    /// Compares decoded values. So types with several encodings of one value, such as hash maps,
    /// can be swapped too.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let owners = db.typed_table::<u32, String>("owners")?;
    /// assert!(owners.compare_and_swap(&7, None, Some(&"me".to_owned()))?);
    /// assert!(!owners.compare_and_swap(&7, None, Some(&"you".to_owned()))?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`TypedTable::put`] and [`TypedTable::get`].
    pub fn compare_and_swap<Q>(&self, key: &Q, expected: Option<&V>, new: Option<&V>) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
        V: PartialEq,
    {
        let key = self.encode_key(key)?;
        let new = new.map(|new| self.encode_value(new)).transpose()?;
        loop {
            let current = self.raw.get(&key)?;
            let decoded = current.as_deref().map(|value| self.decode::<V>(&key, value));
            if decoded.transpose()?.as_ref() != expected {
                return Ok(false);
            }
            // Another commit may change the value after this read. Then the comparison is repeated.
            // The repetition cannot block all threads, because the other commit succeeded.
            if self
                .raw
                .compare_and_swap(&key, current.as_deref(), new.as_deref())?
            {
                return Ok(true);
            }
        }
    }

    /// Returns an iterator over all records at this moment, in no particular order.
    #[must_use]
    pub fn iter(&self) -> TypedIter<K, V, C> {
        self.records_of(self.raw.iter())
    }

    /// Returns an iterator over all keys, like [`Table::keys`]. Values are not decoded.
    pub fn keys(&self) -> impl Iterator<Item = Result<K>> + use<K, V, C> {
        let table = self.clone();
        self.raw
            .keys()
            .map(move |key| key.and_then(|key| table.decode_key(&key)))
    }

    /// Returns an iterator over all values, like [`Table::values`]. Keys are not decoded.
    pub fn values(&self) -> impl Iterator<Item = Result<V>> + use<K, V, C> {
        let table = self.clone();
        self.raw.iter().map(move |record| {
            let (key, value) = record?;
            table.decode_value(&key, &value)
        })
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.raw.len()
    }

    /// Returns `true` if the table has no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Removes all records without reading them, like [`Table::clear`].
    ///
    /// # Errors
    /// The errors of [`Table::clear`].
    pub fn clear(&self) -> Result<()> {
        self.raw.clear()
    }

    /// Returns the encoded bytes of a key, as stored in the table of bytes.
    ///
    /// ```
    /// # fn main() -> microdb::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let db = microdb::Db::open(folder.path())?;
    /// let stock = db.typed_table::<u32, u16>("stock")?;
    /// stock.put(&812, &3)?;
    /// let location = stock.raw().location(stock.encode_key(&812)?)?;
    /// println!("the record is at {}", location.unwrap());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Encode`] if the key cannot be encoded or read back.
    pub fn encode_key<Q>(&self, key: &Q) -> Result<Vec<u8>>
    where
        K: Borrow<Q>,
        Q: Serialize + ?Sized,
    {
        self.encode::<K, Q>(key, Part::Key)
    }

    /// Returns the encoded bytes of a value.
    pub(crate) fn encode_value<W>(&self, value: &W) -> Result<Vec<u8>>
    where
        V: Borrow<W>,
        W: Serialize + ?Sized,
    {
        self.encode::<V, W>(value, Part::Value)
    }

    /// Decodes a key from its stored bytes.
    ///
    /// # Errors
    /// [`Error::Decode`] if the bytes are not a `K`.
    pub fn decode_key(&self, key: &[u8]) -> Result<K> {
        self.decode(key, key)
    }

    /// Decodes the value of the stored `key` from its stored bytes.
    ///
    /// # Errors
    /// [`Error::Decode`] if the bytes are not a `V`.
    pub fn decode_value(&self, key: &[u8], value: &[u8]) -> Result<V> {
        self.decode(key, value)
    }

    fn encode<T, Q>(&self, value: &Q, part: Part) -> Result<Vec<u8>>
    where
        T: Serialize + DeserializeOwned,
        Q: Serialize + ?Sized,
    {
        let mut bytes = Vec::with_capacity(ENCODED_BYTES_USUAL);
        let encoded = if C::SELF_DESCRIBING {
            C::encode(value, &mut bytes).map_err(|error| error.to_string())
        } else {
            round_trip::encode::<C, T, Q>(value, part, &self.known, &mut bytes)
        };
        encoded.map_err(|reason| Error::Encode {
            table: self.raw.name(),
            reason,
        })?;
        Ok(bytes)
    }

    fn decode<T: DeserializeOwned>(&self, key: &[u8], bytes: &[u8]) -> Result<T> {
        let wanted = std::any::type_name::<T>();
        C::decode(bytes).map_err(|reason| Error::Decode {
            table: self.raw.name(),
            key: key.to_vec(),
            reason: format!("as {wanted}: {reason}"),
        })
    }
}

impl<K, V, C> sealed::Sealed for TypedTable<K, V, C> {}

impl<K, V, C> AnyTable for TypedTable<K, V, C>
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
    C: Codec,
{
    type Key = K;
    type Value = V;
    type Iter = TypedIter<K, V, C>;

    fn raw(&self) -> &Table {
        &self.raw
    }

    fn value_of(&self, key: &[u8], value: Value) -> Result<V> {
        self.decode(key, &value)
    }

    fn records_of(&self, records: Iter) -> TypedIter<K, V, C> {
        TypedIter::new(self.clone(), records)
    }
}

impl<K, V, C, Q> KeyFor<TypedTable<K, V, C>> for &Q
where
    K: Borrow<Q> + Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
    C: Codec,
    Q: Serialize + ?Sized,
{
    fn key_bytes(&self, table: &TypedTable<K, V, C>) -> Result<Cow<'_, [u8]>> {
        table.encode_key(*self).map(Cow::Owned)
    }
}

impl<K, V, C, W> ValueFor<TypedTable<K, V, C>> for &W
where
    K: Serialize + DeserializeOwned,
    V: Borrow<W> + Serialize + DeserializeOwned,
    C: Codec,
    W: Serialize + ?Sized,
{
    fn value_bytes(&self, table: &TypedTable<K, V, C>) -> Result<Cow<'_, [u8]>> {
        table.encode_value(*self).map(Cow::Owned)
    }
}

impl<K, V, C> IntoIterator for &TypedTable<K, V, C>
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
    C: Codec,
{
    type Item = Result<(K, V)>;
    type IntoIter = TypedIter<K, V, C>;

    fn into_iter(self) -> TypedIter<K, V, C> {
        self.iter()
    }
}
