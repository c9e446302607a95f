//! The source of a migration: sends the rows of some slots page by page, as the target requests
//! them.
//!
//! The first pages contain the rows of one snapshot of the volume, which a walk reads. The next
//! pages contain the rows that later commits have changed, which the change feed returns. The slots
//! are served at the same time. At the end of the copy, usually when few commits are left, the
//! target requests pages with `seal`. The source then rejects commits to these slots, waits for the
//! queued commits, and sends their rows.
//!
//! | field | bytes | meaning |
//! | --- | --- | --- |
//! | at end | 1 | 1 if the source met the end of the feed; 0 in pages of the walk |
//! | about | 8 | estimated number of rows of the slots; little-endian, as all numbers here |
//! | count, digest | 8, 16 | of the rows that follow |
//! | rows | | table (1; plus 128 for a removed row), key length (4), value length (4), key, value |
//!
//! **Invariants**
//! - The digest is the sum of the rows' hashes, so it does not depend on their order.
//! - Pages are numbered. The newest page is kept in memory, so that a lost answer can be repeated.
//! - The seal and the note that rows may have to be removed later become durable in one commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use imt_ring::{NodeName, Ring};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use crate::cluster::{SlotSet, slots_in};
use crate::domain::order::OrderId;
use crate::domain::stock_snapshot::PRODUCT_MAX;
use crate::error::StorageError;
use crate::runtime::seeded::seeded;
use crate::storage::change_feed::{Feed, RawRow, Walk};
use crate::storage::codec::{self, DecodeError};
use crate::storage::owned_slots::{self, Home, Slots};
use crate::storage::volume::Volume;
use crate::storage::write_batch::{CLEANUP, Table, WriteBatch};
use crate::volume::migration::target::blocking;
use crate::volume::remote_reservations::{RemoteReservation, RemoteReservations};
use crate::volume::state::VolumeState;

/// Size of the header of a page, in bytes.
const PAGE_HEAD_BYTES: usize = 1 + 8 + 8 + 16;
/// Size of the header of each row of a page, in bytes.
const ROW_HEAD_BYTES: usize = 9;
/// Added to the table code of a row in a page if the row was removed.
const REMOVED: u8 = 128;
/// Maximum number of rows of a page. A page of the feed may end within a commit. The target commits
/// a page of this size within milliseconds, so orders in the same group commit are hardly delayed.
const PAGE_ROWS_MAX: usize = 4_000;
/// Size of the keys and values at which a page is complete, in bytes. The last row may exceed this
/// size. Even so, a page is far below the limit of an answer between nodes.
const PAGE_BYTES: usize = 1 << 20;
/// Maximum number of rows read for one page of the walk, including rows of slots that do not
/// migrate.
const ROWS_READ_MAX: usize = 200_000;
/// Maximum size of a key or value, in bytes. A page with a larger key or value is rejected as
/// damaged. The largest rows are the catalogue and the quantities of a store, with four bytes for
/// each of `PRODUCT_MAX` products. The limit is four times as large, because a slot with a row
/// above the limit could not migrate. The generous limit costs no memory: a page is already in
/// memory when it is decoded.
const FIELD_BYTES_MAX: usize = 4 * ROW_BYTES_MAX;
/// Maximum size of a value that a volume stores, in bytes: four for each product, and a header.
const ROW_BYTES_MAX: usize = 4 * PRODUCT_MAX as usize + 16;

/// The request for a page, sent to the server of the source volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExportRequest {
    /// Id of the migration.
    pub(crate) id: u64,
    /// Name of the target volume.
    pub(crate) to: NodeName,
    /// The slots to copy, as ranges of first and last slot.
    pub(crate) slots: Vec<(u32, u32)>,
    /// Number of the requested page. The first page is 0.
    pub(crate) page: u64,
    /// `true` if the source must seal the slots before it makes the page.
    pub(crate) seal: bool,
}

/// Number and digest of rows, for the comparison of rows that were sent and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) rows: u64,
    pub(crate) digest: u128,
}

impl Sum {
    /// Adds a row to the number and the digest.
    pub(crate) fn add(&mut self, row: &RawRow) {
        let mut hash = Xxh3::new();
        hash.update(&[row.table as u8, u8::from(row.value.is_none())]);
        hash.update(&(row.key.len() as u64).to_le_bytes());
        hash.update(&row.key);
        hash.update(row.value.as_deref().unwrap_or_default());
        self.rows += 1;
        self.digest = self.digest.wrapping_add(hash.digest128());
    }
}

/// A page of rows for the target: the rows of the migrating slots, and those that any migration
/// copies (`Home::Copied` and `Home::Unknown`).
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) rows: Vec<RawRow>,
    pub(crate) at_end: bool,
    pub(crate) about: u64,
    pub(crate) sum: Sum,
}

impl Page {
    fn add(&mut self, row: RawRow) {
        self.sum.add(&row);
        self.rows.push(row);
    }

    fn encode(&self) -> Bytes {
        let bytes: usize = self.rows.iter().map(|row| ROW_HEAD_BYTES + row.bytes()).sum();
        let mut page = Vec::with_capacity(PAGE_HEAD_BYTES + bytes);
        page.push(u8::from(self.at_end));
        page.extend_from_slice(&self.about.to_le_bytes());
        page.extend_from_slice(&self.sum.rows.to_le_bytes());
        page.extend_from_slice(&self.sum.digest.to_le_bytes());
        for row in &self.rows {
            let removed = if row.value.is_none() { REMOVED } else { 0 };
            let value = row.value.as_deref().unwrap_or_default();
            page.push(row.table as u8 | removed);
            // Each length fits into 32 bits, because each row was written by a batch, and a batch
            // has at most 64 MiB.
            page.extend_from_slice(&(row.key.len() as u32).to_le_bytes());
            page.extend_from_slice(&(value.len() as u32).to_le_bytes());
            page.extend_from_slice(&row.key);
            page.extend_from_slice(value);
        }
        page.into()
    }

    /// Decodes a page and checks the number and the digest of its rows. The error is a description
    /// of the fault.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Page, String> {
        let wrong = |reason: &str| Err(reason.to_owned());
        let Some((head, mut rest)) = bytes.split_first_chunk::<PAGE_HEAD_BYTES>() else {
            return wrong("the page is shorter than its head");
        };
        let number = |at: usize| {
            head[at..at + 8]
                .iter()
                .rev()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        };
        let mut page = Page {
            at_end: head[0] == 1,
            about: number(1),
            ..Page::default()
        };
        let announced = Sum {
            rows: number(9),
            digest: u128::from(number(25)) << 64 | u128::from(number(17)),
        };
        while let Some((head, fields)) = rest.split_first_chunk::<ROW_HEAD_BYTES>() {
            let [code, k0, k1, k2, k3, v0, v1, v2, v3] = *head;
            let key_bytes = u32::from_le_bytes([k0, k1, k2, k3]) as usize;
            let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
            if key_bytes > FIELD_BYTES_MAX || value_bytes > FIELD_BYTES_MAX {
                return wrong("a row is too long");
            }
            let Some((fields, after)) = fields.split_at_checked(key_bytes + value_bytes) else {
                return wrong("a row ends early");
            };
            let Some(table) = Table::of_code(code & !REMOVED) else {
                return wrong("a row has an unknown table");
            };
            let (key, value) = fields.split_at(key_bytes);
            page.add(RawRow {
                table,
                key: key.to_vec(),
                value: (code & REMOVED == 0).then(|| value.to_vec()),
            });
            rest = after;
        }
        if !rest.is_empty() || page.sum != announced {
            return Err(format!(
                "the page announces {announced:?} but contains {:?}",
                page.sum
            ));
        }
        Ok(page)
    }
}

/// The outgoing copies of a volume, by target volume.
#[derive(Default)]
pub(crate) struct Exports(Mutex<BTreeMap<NodeName, Export>>);

/// An outgoing copy to one target volume, and the id of its migration. The id is outside the lock
/// of `outgoing`, so that it can be read while a page is being made.
#[derive(Clone)]
struct Export {
    id: u64,
    outgoing: Arc<tokio::sync::Mutex<Outgoing>>,
}

/// The state of an outgoing copy.
struct Outgoing {
    asked: Arc<SlotSet>,
    about: u64,
    reading: Option<Reading>,
    next: u64,
    last: Bytes,
}

/// The reading position of a copy in the rows of the source volume.
struct Reading {
    /// The walk over the snapshot. `None` once the walk has ended.
    walk: Option<Walk>,
    /// The change feed with the commits after the snapshot of the walk.
    feed: Feed,
    /// Reservations that remain in this volume: their orders migrate, but their stores do not.
    left_behind: RemoteReservations,
    /// `true` once the slots were sealed and all their rows were sent.
    is_over: bool,
}

/// The reason why a page cannot be sent.
#[derive(Debug, Error)]
pub(crate) enum ExportError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The requested page is neither the next page nor the last one sent, or an earlier request for
    /// a page did not end with a page: it was dropped, failed, or was out of turn itself.
    #[error("the copy of these slots was interrupted and must start again")]
    OutOfTurn,
}

impl Exports {
    fn all(&self) -> parking_lot::MutexGuard<'_, BTreeMap<NodeName, Export>> {
        self.0.lock()
    }

    /// Drops the outgoing copies of migrations that have ended. `version` is the version of the
    /// cluster's state, and `under_way` the id of the migration in this state. The copies of a
    /// migration with an id above `version` stay, because this state is too old to contain that
    /// migration.
    ///
    /// A copy of an ended migration is dropped even if a request is making a page of it. That
    /// request keeps the copy alive until its end.
    pub(crate) fn drop_ended(&self, version: u64, under_way: Option<u64>) {
        self.all()
            .retain(|_, export| export.id > version || Some(export.id) == under_way);
    }

    /// Returns the requested page. A repeated request for the newest page gets the bytes of that
    /// page again.
    pub(crate) async fn page(
        &self,
        state: &Arc<VolumeState>,
        request: &ExportRequest,
    ) -> Result<Bytes, ExportError> {
        // The slots can be sealed only after the owners of stores have written reservations for all
        // orders with borrowed units. So this volume stops borrowing for a while.
        state.suspend_borrowing();
        let known = self.all().get(&request.to).cloned();
        let known = match known {
            Some(export) if export.id == request.id => export,
            _ if request.page > 0 => return Err(ExportError::OutOfTurn),
            _ => {
                let fresh = Export {
                    id: request.id,
                    outgoing: Arc::new(tokio::sync::Mutex::new(Outgoing::begin(state, request).await?)),
                };
                self.all().insert(request.to.clone(), fresh.clone());
                fresh
            }
        };
        let mut outgoing = known.outgoing.lock().await;
        if request.page + 1 == outgoing.next {
            return Ok(outgoing.last.clone());
        }
        let Some(mut reading) = outgoing.reading.take().filter(|_| request.page == outgoing.next) else {
            return Err(ExportError::OutOfTurn);
        };
        let (asked, slots, about) = (
            Arc::clone(&outgoing.asked),
            Arc::clone(&state.slots),
            outgoing.about,
        );
        let is_sealed = request.seal;
        let made = blocking(move || {
            let mut page = reading.fill(&slots, &asked)?;
            page.about = about;
            reading.is_over = is_sealed && page.at_end;
            Ok((reading, page.encode()))
        });
        let (reading, page) = made.await?;
        outgoing.reading = Some(reading);
        outgoing.next += 1;
        outgoing.last = page.clone();
        Ok(page)
    }

    /// Returns the reservations that remain in this volume, although their orders migrate with the
    /// migration `id`. Returns `None` if a copy of this migration is not complete, or if the ring
    /// takes slots from this volume that were not copied. Ends the copies of this migration.
    pub(crate) async fn left_behind(
        &self,
        slots: &Slots,
        id: u64,
        ring: &Ring,
    ) -> Option<RemoteReservations> {
        let of_migration = |export: &&Export| export.id == id;
        let known: Vec<Export> = self.all().values().filter(of_migration).cloned().collect();
        let (mut left_behind, mut copied) = (RemoteReservations::default(), Vec::new());
        for export in known {
            let mut outgoing = export.outgoing.lock().await;
            let reading = outgoing.reading.take().filter(|reading| reading.is_over)?;
            if !seeded("left-behind-forgotten") {
                left_behind.join(reading.left_behind);
            }
            copied.push(Arc::clone(&outgoing.asked));
        }
        if slots
            .lost(ring)
            .any(|slot| !copied.iter().any(|copied| copied.has(slot)))
        {
            return None;
        }
        let volume = slots.volume();
        left_behind.retain_stores(|store| {
            ring.owner(owned_slots::of_store(ring, store))
                .is_ok_and(|owner| owner == volume)
        });
        Some(left_behind)
    }
}

impl Outgoing {
    async fn begin(state: &Arc<VolumeState>, request: &ExportRequest) -> Result<Outgoing, StorageError> {
        let asked = SlotSet::of(&request.slots, state.slots.ring().slots());
        let going = asked.len() as u64;
        let here = state.slots.ring().slots_of(state.slots.volume()).count().max(1) as u64;
        let storage: Arc<Volume> = Arc::clone(&state.storage);
        let (about, reading) = blocking(move || {
            let walk = storage.walk();
            let reading = Reading {
                feed: storage.feed(walk.sequence())?,
                walk: Some(walk),
                left_behind: RemoteReservations::default(),
                is_over: false,
            };
            Ok((storage.rows(), reading))
        })
        .await?;
        Ok(Outgoing {
            asked: Arc::new(asked),
            about: about * going / here,
            reading: Some(reading),
            next: 0,
            last: Bytes::new(),
        })
    }
}

/// Waits until the owners of the stores have written reservations for all orders with borrowed
/// units in slots that are to be sealed.
///
/// # Errors
/// `Busy` if an owner does not answer in time.
pub(crate) async fn enter_orders(state: &VolumeState, request: &ExportRequest) -> Result<(), StorageError> {
    let asked = SlotSet::of(&request.slots, state.slots.ring().slots());
    let goes = |order: &OrderId| asked.has(state.slots.slot_of_order(order));
    state.leave_no_order(goes).await
}

/// Seals slots for a migration. When this function returns `true`, all commits before the seal are
/// durable and visible to the change feed. Returns `false` and seals nothing if an order in these
/// slots has borrowed units without a reservation at the store's owner (see `enter_orders`), or
/// while slots are sealed for another migration. The end of that migration removes all seals.
pub(crate) async fn seal(state: &VolumeState, request: &ExportRequest) -> Result<bool, StorageError> {
    let asked = SlotSet::of(&request.slots, state.slots.ring().slots());
    let goes = |order: &OrderId| asked.has(state.slots.slot_of_order(order));
    let permit = state.storage.permit().await?;
    let ticket = {
        let _stock = state.stock();
        let is_other = |id| id != request.id && !seeded("seals-mixed");
        if state.slots.sealed_for().is_some_and(is_other) || state.allotments().any_unsettled(goes) {
            return Ok(false);
        }
        if !seeded("no-seal") {
            state.slots.seal(slots_in(&request.slots), request.id);
        }
        let mut batch = WriteBatch::default();
        batch.put_raw(Table::Meta, CLEANUP, &request.id.to_be_bytes());
        batch.set_ownership(state.slots.record());
        permit.send(batch)
    };
    ticket.durable().await?;
    Ok(true)
}

impl Reading {
    /// Returns the next rows for the target (see `Page`), first from the walk over the snapshot,
    /// then from the feed of later commits.
    fn fill(&mut self, slots: &Slots, asked: &SlotSet) -> Result<Page, StorageError> {
        let Reading {
            walk,
            feed,
            left_behind,
            ..
        } = self;
        let mut goes = |table: Table, key: &[u8], value: Option<&[u8]>| {
            let mut read = || {
                if table == Table::Reservations {
                    note_left_behind(left_behind, slots, asked, key, value)?;
                }
                slots.home_of(table, key, value)
            };
            Ok(match read().map_err(|fault| broken(table, key, fault))? {
                Home::Slot(slot) => asked.has(slot),
                Home::Copied | Home::Unknown => true,
                Home::Volume => false,
            })
        };
        let mut page = Page::default();
        // Keeps compaction from removing the log of all commits so far before the feed has read it,
        // however long the walk takes.
        feed.extend()?;
        if let Some(walking) = walk {
            let (mut bytes, mut rows_read) = (0, 0);
            while page.rows.len() < PAGE_ROWS_MAX && bytes < PAGE_BYTES && rows_read < ROWS_READ_MAX {
                rows_read += 1;
                let is_row = walking.step(|table, key, value| {
                    if goes(table, key, Some(value))? {
                        bytes += key.len() + value.len();
                        page.add(RawRow {
                            table,
                            key: key.to_vec(),
                            value: Some(value.to_vec()),
                        });
                    }
                    Ok(())
                })?;
                if !is_row {
                    *walk = None;
                    break;
                }
            }
            return Ok(page);
        }
        let mut changed = feed.read(PAGE_ROWS_MAX, PAGE_BYTES, goes)?;
        if seeded("feed-forgotten") {
            changed.rows.clear();
        }
        page.at_end = changed.at_end;
        changed.rows.into_iter().for_each(|row| page.add(row));
        Ok(page)
    }
}

/// Applies the row of a reservation to `left_behind`, if the order migrates and the store stays in
/// this volume. `value` is `None` if the row was removed.
fn note_left_behind(
    left_behind: &mut RemoteReservations,
    slots: &Slots,
    asked: &SlotSet,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), DecodeError> {
    let (order, store) = codec::decode_order_store_key(key)?;
    if !asked.has(slots.slot_of_order(&order))
        || asked.has(slots.slot_of_store(store))
        || !slots.has_store(store)
    {
        return Ok(());
    }
    match value {
        Some(value) => {
            let reservation = codec::decode_reservation(order.clone(), value)?;
            left_behind.insert(&order, store, RemoteReservation::of(&reservation));
        }
        None => drop(left_behind.remove(&order, store)),
    }
    Ok(())
}

pub(crate) fn broken(table: Table, key: &[u8], fault: DecodeError) -> StorageError {
    StorageError::Row {
        table: table.name(),
        key: String::from_utf8_lossy(key).into_owned(),
        fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::stock::CountedTo;
    use crate::domain::stock_snapshot::QUANTITY_MAX;

    fn row(table: Table, key: &[u8], value: Option<&[u8]>) -> RawRow {
        RawRow {
            table,
            key: key.to_vec(),
            value: value.map(<[u8]>::to_vec),
        }
    }

    fn rows() -> [RawRow; 4] {
        [
            row(Table::Orders, b"a", Some(b"b")),
            row(Table::Orders, b"ab", Some(b"")),
            row(Table::Orders, b"ab", None),
            row(Table::Outbox, b"a", Some(b"b")),
        ]
    }

    #[tokio::test]
    async fn a_busy_copy_is_kept_while_its_migration_goes_on() {
        let copying = || {
            let outgoing = Outgoing {
                asked: Arc::new(SlotSet::of(&[], 16)),
                about: 0,
                reading: None,
                next: 0,
                last: Bytes::new(),
            };
            Arc::new(tokio::sync::Mutex::new(outgoing))
        };
        let exports = Exports::default();
        for (to, id) in [("ended", 3), ("under-way", 5), ("unknown-yet", 8)] {
            let outgoing = copying();
            let to = NodeName::new(to).unwrap();
            exports.all().insert(to, Export { id, outgoing });
        }
        let known: Vec<Export> = exports.all().values().cloned().collect();
        let mut pages = Vec::new();
        for export in &known {
            // The held lock makes the copy busy: a page of it is being made.
            pages.push(export.outgoing.lock().await);
        }
        let left = || {
            let names: Vec<String> = exports.all().keys().map(ToString::to_string).collect();
            names.join(", ")
        };
        exports.drop_ended(7, Some(5));
        assert_eq!(left(), "under-way, unknown-yet");
        exports.drop_ended(8, None);
        assert_eq!(left(), "");
    }

    #[test]
    fn a_sum_ignores_the_order_of_rows_and_detects_every_change() {
        let rows = rows();
        let sum = |order: &[usize]| {
            let mut sum = Sum::default();
            order.iter().for_each(|at| sum.add(&rows[*at]));
            sum
        };
        assert_eq!(sum(&[0, 1, 2, 3]), sum(&[3, 2, 0, 1]));
        assert_ne!(
            sum(&[0]).digest,
            sum(&[1]).digest,
            "the border of key and value is part of the digest"
        );
        assert_ne!(sum(&[1]).digest, sum(&[2]).digest, "so is the removal of a row");
        assert_ne!(sum(&[0]).digest, sum(&[3]).digest, "so is the table");
    }

    #[test]
    fn a_page_survives_encoding_and_every_damaged_page_is_rejected() {
        let mut page = Page {
            at_end: true,
            about: 77,
            ..Page::default()
        };
        rows().into_iter().for_each(|row| page.add(row));
        let bytes = page.encode().to_vec();
        let again = Page::decode(&bytes).unwrap();
        assert_eq!((again.at_end, again.about, again.sum), (true, 77, page.sum));
        assert_eq!(again.rows, page.rows);
        for cut in 0..bytes.len() {
            assert!(Page::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 9..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            assert!(Page::decode(&bent).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_page_has_room_for_the_largest_rows_of_a_volume() {
        let products: Vec<u32> = (1..=PRODUCT_MAX).collect();
        let quantities = vec![QUANTITY_MAX as i32; products.len()];
        let counted_to = CountedTo::Delivery(Some(u64::MAX));
        let (mut catalogue, mut column) = (Vec::new(), Vec::new());
        codec::encode_catalogue(&products, &mut catalogue);
        codec::encode_quantities(counted_to, &quantities, &mut column);
        let mut page = Page::default();
        for value in [catalogue, column] {
            assert!(value.len() <= ROW_BYTES_MAX, "{}", value.len());
            page.add(row(Table::Stock, b"key", Some(&value)));
        }
        assert_eq!(Page::decode(&page.encode()).unwrap().rows, page.rows);
    }

    #[tokio::test]
    async fn pages_of_the_walk_and_of_the_feed_are_bounded_in_bytes() {
        const ROW_BYTES: usize = 300_000;
        const STORES: u32 = 24;
        let folder = tempfile::tempdir().unwrap();
        let storage = Volume::open(folder.path()).unwrap();
        let slots = Slots::everything();
        let all = slots.ring().slots();
        let asked = SlotSet::of(&[(0, all - 1)], all);
        let write = async |filling: u8| {
            // One commit has all rows, and changes one of them twice.
            let mut batch = WriteBatch::default();
            batch.put_raw(Table::Stock, &0_u32.to_be_bytes(), &[0; ROW_BYTES]);
            for store in 0..STORES {
                batch.put_raw(Table::Stock, &store.to_be_bytes(), &[filling; ROW_BYTES]);
            }
            let ticket = storage.permit().await.unwrap().send(batch);
            ticket.durable().await.unwrap();
        };
        write(1).await;
        let walk = storage.walk();
        let mut reading = Reading {
            feed: storage.feed(walk.sequence()).unwrap(),
            walk: Some(walk),
            left_behind: RemoteReservations::default(),
            is_over: false,
        };
        write(2).await;
        let mut copy = BTreeMap::new();
        loop {
            let page = reading.fill(&slots, &asked).unwrap();
            let bytes: usize = page.rows.iter().map(RawRow::bytes).sum();
            assert!(bytes < PAGE_BYTES + 4 + ROW_BYTES, "{bytes}");
            copy.extend(page.rows.into_iter().map(|row| (row.key, row.value)));
            if page.at_end {
                break;
            }
        }
        assert_eq!(copy.len(), STORES as usize);
        for (key, value) in copy {
            assert!(value.unwrap() == [2; ROW_BYTES], "{key:?}");
        }
    }
}
