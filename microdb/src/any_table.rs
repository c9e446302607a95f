//! Tables of bytes and typed tables, as one trait.
//!
//! - [`AnyTable`] is the trait of the table arguments of batches, transactions and snapshots.
//!   [`KeyFor`] and [`ValueFor`] are the traits of the key and value arguments.
//! - The table's type determines the accepted types of keys and values: bytes for a [`Table`],
//!   borrowed keys and values for a [`TypedTable`](crate::TypedTable).
//!
//! Deliberately absent: implementations outside of this crate.

use std::borrow::Cow;

use crate::error::Result;
use crate::snapshot::Iter;
use crate::table::Table;
use crate::value::Value;

/// Prevents implementations of [`AnyTable`] outside of this crate: other crates cannot name the
/// trait `Sealed`.
pub(crate) mod sealed {
    pub trait Sealed {}
}

/// A table of bytes or a typed table. Batches, transactions and snapshots accept both.
///
/// ```
/// # fn main() -> microdb::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let db = microdb::Db::open(folder.path())?;
/// let (stock, events) = (db.typed_table::<u32, u16>("stock")?, db.table("events")?);
/// let mut batch = db.batch();
/// batch.put(&stock, &812, &3);
/// batch.put(&events, "812", "three arrived");
/// batch.commit()?;
/// let snapshot = db.snapshot();
/// assert_eq!(snapshot.get(&stock, &812)?, Some(3));
/// assert_eq!(snapshot.get(&events, "812")?.unwrap(), "three arrived");
/// # Ok(())
/// # }
/// ```
pub trait AnyTable: sealed::Sealed {
    /// Type of the keys that reads return.
    type Key;
    /// Type of the values that reads return.
    type Value;
    /// Iterator over keys and values.
    type Iter: Iterator<Item = Result<(Self::Key, Self::Value)>>;

    /// Returns the table of bytes that holds the records.
    fn raw(&self) -> &Table;

    #[doc(hidden)]
    fn value_of(&self, key: &[u8], value: Value) -> Result<Self::Value>;

    #[doc(hidden)]
    fn records_of(&self, records: Iter) -> Self::Iter;
}

/// A key that can be passed for a table of type `T`.
///
/// Anything that is [`AsRef<[u8]>`](AsRef) is a key of a [`Table`]. A reference to `K`, or to a
/// borrowed form of it such as `str` for `String`, is a key of a
/// [`TypedTable<K, V>`](crate::TypedTable).
pub trait KeyFor<T: AnyTable> {
    #[doc(hidden)]
    fn key_bytes(&self, table: &T) -> Result<Cow<'_, [u8]>>;
}

/// A value that can be passed for a table of type `T`. The accepted types follow the rules of
/// [`KeyFor`], with `V` in place of `K`.
pub trait ValueFor<T: AnyTable> {
    #[doc(hidden)]
    fn value_bytes(&self, table: &T) -> Result<Cow<'_, [u8]>>;
}

impl sealed::Sealed for Table {}

impl AnyTable for Table {
    type Key = Value;
    type Value = Value;
    type Iter = Iter;

    #[inline]
    fn raw(&self) -> &Table {
        self
    }

    #[inline]
    fn value_of(&self, _key: &[u8], value: Value) -> Result<Value> {
        Ok(value)
    }

    fn records_of(&self, records: Iter) -> Iter {
        records
    }
}

impl<A: AsRef<[u8]>> KeyFor<Table> for A {
    #[inline]
    fn key_bytes(&self, _table: &Table) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(self.as_ref()))
    }
}

impl<A: AsRef<[u8]>> ValueFor<Table> for A {
    #[inline]
    fn value_bytes(&self, _table: &Table) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(self.as_ref()))
    }
}
