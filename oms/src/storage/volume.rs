//! The database of one volume: opens and closes it, and reads its rows.
//!
//! | table | key | value (`codec`) |
//! | --- | --- | --- |
//! | `orders` | order id | lines and history of the order |
//! | `arrivals` | page, u64 big-endian | ids of the orders that one commit added, new or copied |
//! | `reservations` | order id `/` store | store, lines; a nonce for an order of another volume |
//! | `outbox` | order id `/` kind | state and tries of a message |
//! | `deliveries` | order id `/` store | delivered units that no stock snapshot reflects yet |
//! | `stock` | `catalogue` | product ids, in the order of the rows of the stock matrix |
//! | `stock` | store, u32 big-endian | quantities in that order; the last delivery they reflect |
//! | `stats` | product, u32 big-endian | units sold and revenue of the product |
//! | `stat_files` | key of a file (`importer`) | time of the import; kept for a week |
//! | `answers` | idempotency key | the request and its response, kept for a day or longer |
//! | `settlements` | order id | the end of a reservation in a store of another volume |
//! | `loans` | store, u32 big-endian, borrower | units of the store lent to another volume |
//! | `spent` | order id `/` store | units of an allotment that an order took; see below |
//! | `arriving` | source, table, key | staged rows of `stock` and `meta` (`volume::migration`) |
//! | `meta` | see `write_batch`, `log::cache` | single rows, such as counters and slot ownership |
//!
//! A nonce is a random number of the volume that placed the order. A row in `spent` is removed
//! after the owner of the store has written a reservation for the order.
//!
//! **Invariants**
//! - Apart from a migration and its cleanup, a reservation is removed by a step of its order in
//!   this volume, by the settlement of its order, or after the order's volume answered that no
//!   order needs the units.
//! - A message exists while its order needs the warehouse to receive it, also as a dead letter. A
//!   settlement exists until the volume of the store has confirmed it.
//! - Pages of arrivals list the orders of the volume by the time at which they came to this volume.
//! - Readers see durable rows only. Rows of slots that moved away may still exist. Methods with a
//!   parameter `slots` skip such rows, and callers of the other methods use `Slots`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use imt_ring::NodeName;

use crate::domain::loans::Loan;
use crate::domain::order::{Order, OrderId};
use crate::domain::sales::SumsByProduct;
use crate::domain::settlement::Settlement;
use crate::domain::stock::{Delivery, Reservation, StockHead};
use crate::domain::stock_snapshot::{Column, StockSnapshot};
use crate::error::StorageError;
use crate::outbox::{Kind, Message};
use crate::runtime::metrics::VolumeCounters;
use crate::runtime::seeded::seeded;
use crate::storage::codec::{self, Counters, DecodeError, KeptAnswer};
use crate::storage::fence::SlotOwnership;
use crate::storage::group_commit::{self, Permit, Queue};
use crate::storage::log::cache::Cache;
use crate::storage::log::writer::{LogStatus, LogWriter};
use crate::storage::owned_slots::Slots;
use crate::storage::tables::VolumeTables;
use crate::storage::write_batch::{BORROWER, CATALOGUE, STATS_FORGOTTEN, STOCK_HEAD, TABLES, Table};

/// The rows that a volume server keeps in memory, as read when it starts.
pub(crate) struct Loaded {
    pub(crate) snapshot: StockSnapshot,
    pub(crate) stock_head: StockHead,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) deliveries: Vec<(OrderId, Delivery)>,
    pub(crate) messages: Vec<(OrderId, Kind, Message)>,
    pub(crate) settlements: Vec<(OrderId, Settlement)>,
    /// Units of the volume's stores lent to other volumes.
    pub(crate) loans: BTreeMap<(u32, NodeName), Loan>,
    /// Units that orders took from allotments. The owners of the stores may not have entered these
    /// orders yet.
    pub(crate) spent: Vec<Reservation>,
    /// The last incarnation of the volume as a borrower: a number that grows with each server of
    /// the volume that borrows units. 0 if no server has borrowed units yet.
    pub(crate) borrower: u64,
    pub(crate) sums: SumsByProduct,
}

/// An open volume with its committer.
pub(crate) struct Volume {
    pub(super) volume: Arc<VolumeTables>,
    queue: Queue,
    committer: Mutex<Option<group_commit::Worker>>,
    /// First page of arrivals that may list staged orders of a migration, which are not active yet.
    /// `u64::MAX` without such a migration.
    pub(crate) first_inactive_page: AtomicU64,
    /// The right to serve the volume. `None` if the lock of the open database gives this right.
    lease: Option<Lease>,
    /// The state of the writer of the volume's log. `None` without an engine.
    log_status: Option<Arc<LogStatus>>,
}

/// A function that returns `true` while this process has the right to serve the volume.
type Lease = Box<dyn Fn() -> bool + Send + Sync>;

impl Volume {
    /// Opens or creates the volume in `folder` and starts its committer.
    pub(crate) fn open(folder: &Path) -> Result<Volume, StorageError> {
        Volume::open_by(microdb::Options::new(), folder)
    }

    /// Opens the volume in `folder` and starts its committer. Fails if the folder has no volume.
    pub(crate) fn open_existing(folder: &Path) -> Result<Volume, StorageError> {
        Volume::open_by(microdb::Options::new().create(false), folder)
    }

    /// Opens or creates the volume with these options of the database, such as a simulated disk.
    pub(crate) fn open_by(options: microdb::Options, folder: &Path) -> Result<Volume, StorageError> {
        let tables = Arc::new(VolumeTables::open(options, folder)?);
        Volume::start(tables, None)
    }

    /// Opens a volume behind an engine. `cache` has the rows of all log entries, and `log` has the
    /// right to append to the log.
    pub(crate) fn behind_log(cache: Cache, log: LogWriter) -> Result<Volume, StorageError> {
        Volume::start(cache.0, Some(log))
    }

    fn start(tables: Arc<VolumeTables>, log: Option<LogWriter>) -> Result<Volume, StorageError> {
        let log_status = log.as_ref().map(|log| Arc::clone(log.status()));
        let started = group_commit::start(Arc::clone(&tables), log);
        let (queue, thread) = started.map_err(|source| StorageError::Thread {
            source: Arc::new(source),
        })?;
        Ok(Volume {
            volume: tables,
            queue,
            committer: Mutex::new(Some(thread)),
            first_inactive_page: AtomicU64::new(u64::MAX),
            lease: None,
            log_status,
        })
    }

    /// Sets the counters in which later commits of this volume are counted. Only the first call has
    /// an effect.
    pub(crate) fn count_commits(&self, counters: &Arc<VolumeCounters>) {
        let _ = self.volume.commit_counters.set(Arc::clone(counters));
    }

    /// Returns the volume with a lease that is valid while `lease` returns `true`.
    pub(crate) fn leased_while(self, lease: impl Fn() -> bool + Send + Sync + 'static) -> Volume {
        Volume {
            lease: Some(Box::new(lease)),
            ..self
        }
    }

    /// Returns `true` if no other process can be serving the volume yet. Call this after a read and
    /// before responding: the lease may have been lost in between. Commits do not need this check,
    /// because a commit of a former owner is rejected.
    pub(crate) fn is_ours(&self) -> bool {
        seeded("reads-not-fenced") || (self.lease.as_ref().is_none_or(|lease| lease()) && !self.has_ended())
    }

    /// Returns `true` once a volume behind an engine can no longer commit, for example because
    /// another process has taken it over. The volume can then only be closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.log_status.as_ref().is_some_and(|status| status.has_ended())
    }

    /// Returns an error while a commit waits for an engine that does not answer or refuses
    /// statements, or, with an engine, for space on the local disk.
    pub(crate) fn check_engine(&self) -> Result<(), StorageError> {
        match &self.log_status {
            // After the end of the log, commits fail at once, for a reason of their own.
            Some(status) if status.is_away() && !status.has_ended() => Err(StorageError::EngineAway),
            _ => Ok(()),
        }
    }

    /// Returns a permit to submit a batch, `Busy` if the queue is full, `Closed` if the volume is
    /// closed, or the error of `check_engine`.
    pub(crate) fn try_permit(&self) -> Result<Permit<'_>, StorageError> {
        self.check_engine()?;
        self.queue.try_permit()
    }

    /// Waits for a permit to submit a batch, also while the engine does not answer.
    pub(crate) async fn permit(&self) -> Result<Permit<'_>, StorageError> {
        self.queue.permit().await
    }

    /// Returns the number of batches that wait for the committer, including permits that are not
    /// used yet.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// Makes the queued batches fail as soon as the engine does not answer a statement, instead of
    /// waiting for the engine. The volume must be closed afterwards. Has no effect without an
    /// engine.
    pub(crate) fn stop_waiting(&self) {
        if let Some(status) = &self.log_status {
            status.stop_waiting();
        }
    }

    /// Commits the queued batches, closes the database and releases its lock, even if other
    /// references to the volume exist. If the engine does not answer, the queued batches fail.
    /// Blocks.
    pub(crate) fn close(&self) -> Result<(), StorageError> {
        self.stop_waiting();
        self.queue.stop();
        let thread = self.committer.lock().take();
        if let Some(thread) = thread {
            thread.join();
        }
        self.volume.close()
    }

    /// Writes a checkpoint of the database, so that the next open replays little of microdb's own
    /// log. Blocks.
    pub(crate) fn checkpoint(&self) -> Result<(), StorageError> {
        self.volume.checkpoint()
    }

    /// Returns the durable state of an order. `None` if the volume has no row of the order.
    pub(crate) fn order(&self, id: &OrderId) -> Result<Option<Order>, StorageError> {
        let row = self
            .volume
            .table(Table::Orders)
            .get(id.as_bytes())
            .map_err(reading("orders"))?;
        let Some(row) = row else { return Ok(None) };
        let order =
            codec::decode_order(id.clone(), &row).map_err(|fault| broken("orders", id.as_bytes(), fault))?;
        Ok(Some(order))
    }

    /// Returns the ids on a page of arrivals. The list is empty if the page does not exist.
    pub(crate) fn arrivals(&self, page: u64) -> Result<Vec<OrderId>, StorageError> {
        let key = page.to_be_bytes();
        let row = self
            .volume
            .table(Table::Arrivals)
            .get(key)
            .map_err(reading("arrivals"))?;
        let Some(row) = row else { return Ok(Vec::new()) };
        codec::decode_arrivals(&row).map_err(|fault| broken("arrivals", &key, fault))
    }

    /// Returns `true` if the key of a statistics file (`importer`) is stored: the file was added,
    /// and retention has not removed the key.
    pub(crate) fn knows_stat_file(&self, name: &str) -> Result<bool, StorageError> {
        let row = self
            .volume
            .table(Table::StatFiles)
            .get(name.as_bytes())
            .map_err(reading("stat_files"))?;
        Ok(row.is_some())
    }

    /// Returns the keys (`importer`) of statistics files added before a time (UTC milliseconds).
    pub(crate) fn stat_files_before(&self, before_ms: u64) -> Result<Vec<String>, StorageError> {
        let names = self.scan(Table::StatFiles, |key, value| {
            let is_old = codec::decode_import_time(value)? < before_ms;
            Ok(is_old.then(|| String::from_utf8_lossy(key).into_owned()))
        })?;
        Ok(names.into_iter().flatten().collect())
    }

    /// Returns the mark (`stat_import::name`): of the plausible names of statistics files that the
    /// retention job has removed, the one with the latest time in it. Earlier releases may have
    /// stored an implausible name. `None` if no mark is stored.
    pub(crate) fn stat_files_forgotten(&self) -> Result<Option<String>, StorageError> {
        let row = self.volume.table(Table::Meta).get(STATS_FORGOTTEN);
        let row = row.map_err(reading("meta"))?;
        Ok(row.map(|name| String::from_utf8_lossy(&name).into_owned()))
    }

    /// Returns the stored response of an idempotency key. `None` if no response is stored.
    pub(crate) fn kept_answer(&self, key: &str) -> Result<Option<KeptAnswer>, StorageError> {
        let row = self.volume.table(Table::Answers).get(key.as_bytes());
        let Some(row) = row.map_err(reading("answers"))? else {
            return Ok(None);
        };
        let answer = codec::decode_answer(&row);
        answer
            .map(Some)
            .map_err(|fault| broken("answers", key.as_bytes(), fault))
    }

    /// Returns the idempotency keys with a response from a time outside `kept` (UTC milliseconds).
    pub(crate) fn answers_outside(&self, kept: &RangeInclusive<u64>) -> Result<Vec<Vec<u8>>, StorageError> {
        let keys = self.scan(Table::Answers, |key, value| {
            let at_ms = codec::decode_answer(value)?.at_ms;
            Ok((!kept.contains(&at_ms)).then(|| key.to_vec()))
        })?;
        Ok(keys.into_iter().flatten().collect())
    }

    /// Returns `true` if the local database failed in the last commit, or rejects its rows now
    /// because the disk is full.
    pub(crate) fn has_failed(&self) -> bool {
        self.volume.failed.load(Ordering::Relaxed)
    }

    /// Returns the volume's slot ownership as of the last commit. `None` if no commit has ever set
    /// it.
    pub(crate) fn slot_ownership(&self) -> Option<SlotOwnership> {
        self.volume.record().clone()
    }

    /// Returns the volume's counters as of the last commit.
    pub(crate) fn counters(&self) -> Counters {
        *self.volume.counters()
    }

    /// Returns all reservations in the stores of these slots, unordered.
    pub(crate) fn reservations(&self, slots: &Slots) -> Result<Vec<Reservation>, StorageError> {
        let mut all = self.scan(Table::Reservations, |key, value| {
            let (order, _) = codec::decode_order_store_key(key)?;
            codec::decode_reservation(order, value)
        })?;
        all.retain(|reservation| slots.has_store(reservation.store));
        Ok(all)
    }

    /// Returns the reservations of the first `limit` orders after the order `after` (or from the
    /// start), by order: the reservations in the stores of these slots, and the units that orders
    /// of this volume took from allotments. The scan keeps at most `limit` orders in memory.
    pub(crate) fn first_reservations(
        &self,
        slots: &Slots,
        after: Option<&OrderId>,
        limit: usize,
    ) -> Result<BTreeMap<OrderId, Vec<Reservation>>, StorageError> {
        let mut first = BTreeMap::<OrderId, Vec<Reservation>>::new();
        for table in [Table::Reservations, Table::Spent] {
            self.each_row(table, |key, value| {
                let fault = |fault| broken(table.name(), key, fault);
                let (order, store) = codec::decode_order_store_key(key).map_err(fault)?;
                let is_here = table == Table::Spent || slots.has_store(store);
                let is_after = after.is_none_or(|after| order > *after);
                let last = first.last_key_value().map(|(last, _)| last);
                let is_first = first.len() < limit || last.is_some_and(|last| order <= *last);
                if is_here && is_after && is_first {
                    let reservation = codec::decode_reservation(order.clone(), value).map_err(fault)?;
                    first.entry(order).or_default().push(reservation);
                    if first.len() > limit {
                        first.pop_last();
                    }
                }
                Ok::<(), StorageError>(())
            })?;
        }
        Ok(first)
    }

    /// Returns the units that orders of this volume took from allotments, unordered. The stores'
    /// volumes may not have entered these orders yet.
    pub(crate) fn spent(&self) -> Result<Vec<Reservation>, StorageError> {
        self.scan(Table::Spent, |key, value| {
            let (order, _) = codec::decode_order_store_key(key)?;
            codec::decode_reservation(order, value)
        })
    }

    /// Returns `true` if an engine keeps the log of the volume. A commit without an answer then may
    /// have become durable.
    pub(crate) fn is_behind_log(&self) -> bool {
        self.log_status.is_some()
    }

    /// Returns the product ids in the order of the rows of the stock matrix. The list is empty if
    /// no stock was ever stored.
    pub(crate) fn catalogue(&self) -> Result<Vec<u32>, StorageError> {
        let row = self.volume.table(Table::Stock).get(CATALOGUE);
        match row.map_err(reading("stock"))? {
            None => Ok(Vec::new()),
            Some(row) => codec::decode_catalogue(&row).map_err(|fault| broken("stock", CATALOGUE, fault)),
        }
    }

    /// Returns the durable quantities of the stores in `stores`. Stores without a row are omitted.
    pub(crate) fn snapshot_of(&self, stores: &BTreeSet<u32>) -> Result<StockSnapshot, StorageError> {
        let mut columns = Vec::with_capacity(stores.len());
        for store in stores {
            let key = store.to_be_bytes();
            let row = self.volume.table(Table::Stock).get(key);
            if let Some(row) = row.map_err(reading("stock"))? {
                let decoded = codec::decode_quantities(&row);
                let (counted_to, quantities) = decoded.map_err(|fault| broken("stock", &key, fault))?;
                columns.push(Column {
                    store: *store,
                    quantities,
                    counted_to,
                });
            }
        }
        Ok(StockSnapshot::from_rows(self.catalogue()?, columns))
    }

    /// Returns the durable stock of the stores in the slots that `slots` owns.
    pub(crate) fn snapshot(&self, slots: &Slots) -> Result<StockSnapshot, StorageError> {
        let products = self.catalogue()?;
        let columns = self.scan(Table::Stock, |key, value| {
            if key == CATALOGUE {
                return Ok(None);
            }
            let store = u32_key(key)?;
            if !slots.has_store(store) {
                return Ok(None);
            }
            let (counted_to, quantities) = codec::decode_quantities(value)?;
            Ok(Some(Column {
                store,
                quantities,
                counted_to,
            }))
        })?;
        Ok(StockSnapshot::from_rows(
            products,
            columns.into_iter().flatten().collect(),
        ))
    }

    /// Returns the facts about the current stock snapshot, such as the number of the last delivery
    /// that the snapshot reflects. Returns the default values if no facts are stored.
    pub(crate) fn stock_head(&self) -> Result<StockHead, StorageError> {
        match self.note(STOCK_HEAD)? {
            None => Ok(StockHead::default()),
            Some(row) => codec::decode_stock_head(&row).map_err(|fault| broken("meta", STOCK_HEAD, fault)),
        }
    }

    /// Reads the rows that a volume server with these slots keeps in memory. The time depends on
    /// the open orders, the stock, the statistics and the deliveries that no stock snapshot
    /// reflects yet, but not on the number of all orders.
    pub(crate) fn load(&self, slots: &Slots) -> Result<Loaded, StorageError> {
        let stock_head = self.stock_head()?;
        let mut deliveries = self.scan(Table::Deliveries, |key, value| {
            Ok((
                codec::decode_order_store_key(key)?.0,
                codec::decode_delivery(value)?,
            ))
        })?;
        deliveries.retain(|(_, delivery)| slots.has_store(delivery.store));
        let mut messages = self.scan(Table::Outbox, |key, value| {
            let known = codec::decode_message_key(key).ok_or(DecodeError {
                offset: 0,
                expected: "a message key",
            })?;
            Ok((known.0, known.1, codec::decode_message(value)?))
        })?;
        messages.retain(|(order, ..)| slots.has_order(order));
        let mut settlements = self.scan(Table::Settlements, |key, value| {
            Ok((order_id(key)?, codec::decode_settlement(value)?))
        })?;
        settlements.retain(|(order, _)| slots.has_order(order));
        let mut loans = BTreeMap::new();
        self.each_row(Table::Loans, |key, value| {
            let row = || Ok((codec::decode_loan_key(key)?, codec::decode_loan(value)?));
            let (at, loan) = row().map_err(|fault| broken("loans", key, fault))?;
            if slots.has_store(at.0) {
                loans.insert(at, loan);
            }
            Ok::<(), StorageError>(())
        })?;
        let borrower = match self.note(BORROWER)? {
            None => 0,
            Some(row) => codec::decode_incarnation(&row).map_err(|fault| broken("meta", BORROWER, fault))?,
        };
        let mut sums = SumsByProduct::new();
        if slots.has_statistics() {
            let rows = self.scan(Table::Stats, |key, value| {
                Ok((u32_key(key)?, codec::decode_sums(value)?))
            })?;
            sums.extend(rows);
        }
        Ok(Loaded {
            snapshot: self.snapshot(slots)?,
            stock_head,
            reservations: self.reservations(slots)?,
            deliveries,
            messages,
            settlements,
            loans,
            spent: self.spent()?,
            borrower,
            sums,
        })
    }

    /// Returns the value of a row of the table `meta`. `None` if the row does not exist.
    pub(crate) fn note(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.volume.meta(key)
    }

    /// Passes every row of a table to `take`, unordered, as of one moment. Rows of slots that the
    /// volume does not own are included.
    pub(crate) fn each_row<E: From<StorageError>>(
        &self,
        table: Table,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = TABLES[table as usize].1;
        for record in self.volume.table(table) {
            let (key, value) = record.map_err(reading(name)).map_err(E::from)?;
            take(&key, &value)?;
        }
        Ok(())
    }

    fn scan<T>(
        &self,
        table: Table,
        mut read: impl FnMut(&[u8], &[u8]) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, StorageError> {
        let name = TABLES[table as usize].1;
        let mut found = Vec::new();
        for record in self.volume.table(table) {
            let (key, value) = record.map_err(reading(name))?;
            found.push(read(&key, &value).map_err(|fault| broken(name, &key, fault))?);
        }
        Ok(found)
    }
}

/// Parses the order id in a key.
pub(crate) fn order_id(key: &[u8]) -> Result<OrderId, DecodeError> {
    let fault = DecodeError {
        offset: 0,
        expected: "an order id as key",
    };
    let text = std::str::from_utf8(key).map_err(|_| fault.clone())?;
    OrderId::parse(text).map_err(|_| fault)
}

/// Parses a key of four bytes, big-endian: a store or a product.
pub(crate) fn u32_key(key: &[u8]) -> Result<u32, DecodeError> {
    let key = key.try_into().map_err(|_| DecodeError {
        offset: 0,
        expected: "a key of four bytes",
    })?;
    Ok(u32::from_be_bytes(key))
}

pub(super) fn reading(table: &'static str) -> impl Fn(microdb::Error) -> StorageError {
    move |source| match source {
        microdb::Error::Closed => StorageError::Closed,
        source => StorageError::Read {
            table,
            source: Arc::new(source),
        },
    }
}

pub(super) fn broken(table: &'static str, key: &[u8], fault: DecodeError) -> StorageError {
    StorageError::Row {
        table,
        key: String::from_utf8_lossy(key).into_owned(),
        fault,
    }
}

#[cfg(test)]
mod tests;
