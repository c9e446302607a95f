//! Rows of incoming slots, as stored in the target volume before their activation.
//!
//! Most rows are written to their own tables at once, because no request reads rows of slots that
//! another volume owns. Rows of the tables `Stock` and `Meta` are written to the table `Arriving`.
//! Before activation, the stock is rearranged in the order of this volume's products
//! (`StagedStock`).
//!
//! **Invariants**
//! - The rows of a page are stored by one commit, with a note that has the migration's id and the
//!   changes that activation will make to the volume's counters.
//! - No row is active before the ring gives its slot to this volume. Activation then queues the
//!   batch of `StagedRows`, and every later step of an order in these slots is committed after that
//!   batch.

use crate::domain::stock::StockHead;
use crate::error::{DecodeError, StorageError};
use crate::storage::change_feed::RawRow;
use crate::storage::codec;
use crate::storage::owned_slots::Home;
use crate::storage::volume::{Volume, order_id};
use crate::storage::write_batch::{ARRIVING, OrderCounts, STATS_FORGOTTEN, Table, WriteBatch};
use crate::volume::migration::source::{Page, broken};
use crate::volume::migration::staged_stock::StagedStock;
use crate::volume::state::VolumeState;

/// The note about staged rows: the id of their migration, and the changes that activation will make
/// to the volume's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StagingNote {
    pub(crate) id: u64,
    pub(crate) orders: OrderCounts,
    pub(crate) stat_files: i64,
}

/// Size in bytes of a note of earlier releases: the id of the migration, a count for each of 11
/// order states, and the number of statistics files. Such a note has no number of extra payments.
const NOTE_BYTES_V1: usize = 13 * 8;

impl StagingNote {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.to_be_bytes().to_vec();
        let others = [self.stat_files, self.orders.extra_payments];
        for count in self.orders.by_state.iter().chain(&others) {
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<StagingNote, DecodeError> {
        let mut numbers = bytes
            .chunks(8)
            .map(|number| Some(u64::from_be_bytes(number.try_into().ok()?)));
        let mut next = || {
            numbers.next().flatten().ok_or(DecodeError {
                offset: 0,
                expected: "the id of a migration and its counts",
            })
        };
        let mut note = StagingNote {
            id: next()?,
            ..StagingNote::default()
        };
        for count in &mut note.orders.by_state {
            *count = next()?.cast_signed();
        }
        note.stat_files = next()?.cast_signed();
        // A note of an earlier release ends here.
        if bytes.len() > NOTE_BYTES_V1 {
            note.orders.extra_payments = next()?.cast_signed();
        }
        Ok(note)
    }

    /// Returns the note of a volume, or `None` if the volume has no staged rows.
    pub(crate) fn of(storage: &Volume) -> Result<Option<StagingNote>, StorageError> {
        let note = storage.note(ARRIVING)?;
        note.map(|note| StagingNote::decode(&note))
            .transpose()
            .map_err(|fault| broken(Table::Meta, ARRIVING, fault))
    }

    /// Adds to a batch the changes of the volume's counters, and the removal of this note.
    pub(crate) fn activate(&self, batch: &mut WriteBatch) {
        batch.add_counts(&self.orders);
        batch.stat_files_moved(self.stat_files);
        batch.remove(Table::Meta, ARRIVING);
    }
}

/// The location of a stored row: its table, and its key if it differs from the key in the page.
/// `None` if the row was not stored.
pub(super) type Written = Option<(Table, Option<Vec<u8>>)>;

/// A page of rows, prepared for its commit in the target volume.
pub(super) struct StagedPage {
    pub(super) batch: WriteBatch,
    pub(super) note: StagingNote,
    /// The location of each row of the page, in the sequence of the page.
    pub(super) written: Vec<Written>,
}

impl StagedPage {
    /// Prepares a page that came from the source with the number `source`. `note` is the note of
    /// all earlier pages.
    pub(super) fn of(
        state: &VolumeState,
        page: &Page,
        source: u8,
        note: StagingNote,
    ) -> Result<StagedPage, StorageError> {
        let mut staged = StagedPage {
            batch: WriteBatch::default(),
            note,
            written: Vec::with_capacity(page.rows.len()),
        };
        for row in &page.rows {
            let written = staged.row(state, row, source)?;
            staged.written.push(written);
        }
        if !staged.batch.is_empty() {
            staged.batch.put_raw(Table::Meta, ARRIVING, &staged.note.encode());
        }
        Ok(staged)
    }

    fn row(&mut self, state: &VolumeState, row: &RawRow, source: u8) -> Result<Written, StorageError> {
        let (table, key, value) = (row.table, row.key.as_slice(), row.value.as_deref());
        match table {
            Table::Stock | Table::Meta => {
                let mut name = vec![source, table as u8];
                name.extend_from_slice(key);
                self.put(Table::Arriving, &name, value);
                return Ok(Some((Table::Arriving, Some(name))));
            }
            Table::Orders => self.order(state, key, value)?,
            Table::StatFiles => {
                let is_known = state.storage.raw(table, key)?.is_some();
                self.note.stat_files += i64::from(value.is_some()) - i64::from(is_known);
            }
            Table::Answers => {
                // The copied row is the stored response to a request with an `Idempotency-Key`.
                // This volume may have its own row under this key, for a request about one of its
                // own orders or about no order. That row is kept, and the copied row is skipped.
                // The removal of a row that this volume lacks is skipped, too.
                let known = state.storage.raw(table, key)?;
                let home = state.slots.home_of(table, key, known.as_deref());
                let home = home.map_err(|fault| broken(table, key, fault))?;
                let is_ours = match home {
                    Home::Slot(slot) => state.slots.has(slot),
                    Home::Unknown => value.is_none(),
                    _ => true,
                };
                if is_ours {
                    return Ok(None);
                }
            }
            _ => {}
        }
        self.put(table, key, value);
        Ok(Some((table, None)))
    }

    fn order(&mut self, state: &VolumeState, key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        let decode = |value: &[u8]| {
            let id = order_id(key)?;
            codec::decode_order(id, value)
        };
        let decode = |value: &[u8]| decode(value).map_err(|fault| broken(Table::Orders, key, fault));
        let known = state.storage.raw(Table::Orders, key)?;
        if let Some(known) = &known {
            self.note.orders.count(&decode(known)?, -1);
        }
        if let Some(value) = value {
            let order = decode(value)?;
            self.note.orders.count(&order, 1);
            if known.is_none() {
                self.batch.add_arrival(order.id);
            }
        }
        Ok(())
    }

    fn put(&mut self, table: Table, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.batch.put_raw(table, key, value),
            None => self.batch.remove(table, key),
        }
    }
}

/// The staged rows of stock, rearranged in the order of this volume's products and ready for
/// activation.
#[derive(Default)]
pub(crate) struct StagedRows {
    pub(crate) stock: StagedStock,
    pub(crate) batch: WriteBatch,
    /// The product ids and the stock head of the volume for which the rows were rearranged.
    fitted_to: (Vec<u32>, StockHead),
}

impl StagedRows {
    /// Reads the staged rows of a volume and rearranges the stock in the order of the volume's
    /// products. Activation commits `batch`.
    pub(crate) fn read(storage: &Volume, note: &StagingNote) -> Result<StagedRows, StorageError> {
        let mut batch = WriteBatch::default();
        let mut stock = StagedStock::default();
        let fitted_to = (storage.catalogue()?, storage.stock_head()?);
        storage.each_row(Table::Arriving, |name, value| {
            batch.remove(Table::Arriving, name);
            let Some(([source, code], key)) = name.split_first_chunk::<2>() else {
                return Ok(());
            };
            match Table::of_code(*code) {
                Some(Table::Meta) if key == STATS_FORGOTTEN => batch.put_raw(Table::Meta, key, value),
                Some(table) => {
                    let taken = stock.take(*source, table, key, value);
                    taken.map_err(|fault| broken(Table::Arriving, key, fault))?;
                }
                None => {}
            }
            Ok::<(), StorageError>(())
        })?;
        stock.fit(storage, &mut batch)?;
        note.activate(&mut batch);
        Ok(StagedRows {
            stock,
            batch,
            fitted_to,
        })
    }

    /// Returns `true` if the volume's product ids and stock head have not changed since `read`.
    pub(crate) fn fits(&self, storage: &Volume) -> Result<bool, StorageError> {
        Ok(self.fitted_to == (storage.catalogue()?, storage.stock_head()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_survives_encoding_and_a_truncated_one_is_rejected() {
        let mut note = StagingNote {
            id: 7,
            stat_files: 3,
            ..StagingNote::default()
        };
        note.orders.by_state[4] = -5;
        note.orders.by_state[10] = 1 << 40;
        note.orders.extra_payments = -2;
        let bytes = note.encode();
        assert_eq!(StagingNote::decode(&bytes).unwrap(), note);
        let mut earlier = note;
        earlier.orders.extra_payments = 0;
        assert_eq!(StagingNote::decode(&bytes[..NOTE_BYTES_V1]).unwrap(), earlier);
        for cut in (0..bytes.len()).filter(|cut| *cut != NOTE_BYTES_V1) {
            assert!(StagingNote::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
