//! Iteration over the decoded records of a typed table.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TypedTable;
use super::codec::Codec;
use crate::error::Result;
use crate::snapshot::Iter;

/// Iterator over the keys and values of a typed table at one moment, in no particular order.
///
/// After an error the iterator continues with the next record.
pub struct TypedIter<K, V, C> {
    table: TypedTable<K, V, C>,
    records: Iter,
}

impl<K, V, C> TypedIter<K, V, C> {
    pub(super) fn new(table: TypedTable<K, V, C>, records: Iter) -> Self {
        Self { table, records }
    }
}

impl<K, V, C> Iterator for TypedIter<K, V, C>
where
    K: Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned,
    C: Codec,
{
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.records.next()?;
        Some(record.and_then(|(key, value)| {
            let decoded = self.table.decode_key(&key)?;
            Ok((decoded, self.table.decode_value(&key, &value)?))
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.records.size_hint()
    }
}

impl<K, V, C> std::fmt::Debug for TypedIter<K, V, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {:?}", self.records, self.table)
    }
}
