//! A write batch: rows that become durable together or not at all, with their fence.
//!
//! Most methods are named by the meaning of the rows that they add. All keys and values share one
//! buffer, because every order creates a batch, and each allocation would delay the order.
//!
//! Deliberately absent: the layout of the values (`codec`) and the commit (`group_commit`).

use std::collections::BTreeSet;

use imt_ring::NodeName;

use crate::domain::loans::Loan;
use crate::domain::order::{Line, Order, OrderId, State};
use crate::domain::sales::SumsByProduct;
use crate::domain::settlement::Settlement;
use crate::domain::stock::{CountedTo, Delivery, StockHead};
use crate::domain::stock_snapshot::{Column, StockSnapshot};
use crate::outbox::{Kind, Message};
use crate::storage::codec::{self, Counters, KeptAnswer};
use crate::storage::fence::{Fence, SlotOwnership};

/// The tables of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Orders,
    Arrivals,
    Reservations,
    Outbox,
    Deliveries,
    Stock,
    Stats,
    StatFiles,
    Meta,
    Answers,
    Settlements,
    Arriving,
    Loans,
    Spent,
}

impl Table {
    /// Returns `true` if rows of the table move with slots. A few rows of `meta`, for which the
    /// result is `false`, move too (`owned_slots::home_of`).
    pub(crate) fn moves(self) -> bool {
        !matches!(
            self,
            Table::Arrivals | Table::Meta | Table::Arriving | Table::Spent
        )
    }

    /// Returns the table with this code. `None` if no table has the code.
    pub(crate) fn of_code(code: u8) -> Option<Table> {
        TABLES.get(usize::from(code)).map(|(table, _)| *table)
    }

    /// Returns the name of the table.
    pub(crate) fn name(self) -> &'static str {
        TABLES[self as usize].1
    }
}

/// All tables with their names, in the order of their codes.
pub(crate) const TABLES: [(Table, &str); 14] = [
    (Table::Orders, "orders"),
    (Table::Arrivals, "arrivals"),
    (Table::Reservations, "reservations"),
    (Table::Outbox, "outbox"),
    (Table::Deliveries, "deliveries"),
    (Table::Stock, "stock"),
    (Table::Stats, "stats"),
    (Table::StatFiles, "stat_files"),
    (Table::Meta, "meta"),
    (Table::Answers, "answers"),
    (Table::Settlements, "settlements"),
    (Table::Arriving, "arriving"),
    (Table::Loans, "loans"),
    (Table::Spent, "spent"),
];

/// Key, in the table `stock`, of the product ids in the order of the rows of the stock matrix.
pub(crate) const CATALOGUE: &[u8] = b"catalogue";
/// Key, in the table `meta`, of the volume's counters.
pub(crate) const COUNTERS: &[u8] = b"book";
/// Key, in the table `meta`, of the facts about the current stock snapshot (`StockHead`).
pub(crate) const STOCK_HEAD: &[u8] = b"stock";
/// Key, in the table `meta`, of the note about staged rows. The note names their migration, and has
/// the changes that activation makes to the volume's counters (`volume::migration`).
pub(crate) const ARRIVING: &[u8] = b"arriving";
/// Key, in the table `meta`, of the volume's slot ownership.
pub(crate) const SLOTS: &[u8] = b"slots";
/// Key, in the table `meta`, of the note about rows of slots that the volume does not own. The
/// volume may have such rows now, or gets them if the migration of its sealed slots is committed.
pub(crate) const CLEANUP: &[u8] = b"purge";
/// Key, in the table `meta`, of the volume's incarnation as a borrower: a number that grows with
/// each server of the volume that borrows units.
pub(crate) const BORROWER: &[u8] = b"borrower";
/// Key, in the table `meta`, of the mark: of all names of statistics files that the retention job
/// has removed, the plausible name with the latest time in it (`stat_import::name`).
pub(crate) const STATS_FORGOTTEN: &[u8] = b"stat_files_forgotten";

/// Size in bytes at which a part of a stock snapshot is complete. A disk writes such a part in
/// about the time of a sync, so orders that share its sync are hardly delayed. Tests have small
/// stocks and use small parts, so that a crash can happen between many parts.
const PART_BYTES: usize = if cfg!(test) { 16 } else { 128 * 1_024 };

/// Changes of a volume's counters of orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OrderCounts {
    /// For each state in the order of `State::ALL`, the change of the number of orders.
    pub(crate) by_state: [i64; State::ALL.len()],
    /// Change of the number of payments that came after the first payment of their order. Each of
    /// them needs a refund.
    pub(crate) extra_payments: i64,
}

impl OrderCounts {
    /// Counts an order `times` times. With -1, subtracts the order.
    pub(crate) fn count(&mut self, order: &Order, times: i64) {
        self.by_state[order.state as usize] += times;
        self.extra_payments += times * order.extra_payments.len() as i64;
    }

    fn add(&mut self, other: &OrderCounts) {
        for (count, more) in self.by_state.iter_mut().zip(other.by_state) {
            *count += more;
        }
        self.extra_payments += other.extra_payments;
    }
}

/// The position of a row's key and value in the shared buffer.
#[derive(Clone, Copy, Debug)]
struct Span {
    table: Table,
    removes: bool,
    key: u32,
    value: u32,
    end: u32,
}

/// A row to be written or removed.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) table: Table,
    pub(crate) key: &'a [u8],
    /// `None` removes the row.
    pub(crate) value: Option<&'a [u8]>,
}

/// Rows that become durable together or not at all.
#[derive(Debug, Default)]
pub(crate) struct WriteBatch {
    rows: Vec<Span>,
    /// Keys and values of all rows, one after the other in one buffer, so that a batch needs few
    /// allocations.
    bytes: Vec<u8>,
    arrived: Option<OrderId>,
    moved: Option<(Option<State>, State)>,
    extra_payments: i64,
    stat_files: i64,
    expired_page: Option<u64>,
    /// Slots that the volume must own at commit: usually those of an order and of a store.
    fences: [Option<Fence>; 2],
    /// Further fences and the fields of migrations, allocated only for batches that need them.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    fences: Vec<Fence>,
    /// The slot ownership after this batch. `None` if the batch does not change it.
    record: Option<SlotOwnership>,
    /// Ids of orders that came from another volume, for the page of arrivals (a row in `arrivals`)
    /// of this commit. The counters include these orders only after activation.
    migrated_in: Vec<OrderId>,
    /// Change of the volume's counters by orders that came from other volumes or moved to other
    /// volumes.
    counts: OrderCounts,
}

/// A part of a stock snapshot: the quantities of some stores.
#[derive(Debug, Default)]
pub(crate) struct StockPart {
    pub(crate) stores: Vec<u32>,
    pub(crate) batch: WriteBatch,
}

impl WriteBatch {
    /// Creates an empty batch with enough capacity for the rows of a new order with few lines.
    pub(crate) fn of_order() -> WriteBatch {
        WriteBatch {
            rows: Vec::with_capacity(4),
            bytes: Vec::with_capacity(256),
            ..WriteBatch::default()
        }
    }

    /// Returns the rows in the order of their insertion.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|span| Row {
            table: span.table,
            key: &self.bytes[span.key as usize..span.value as usize],
            value: (!span.removes).then(|| &self.bytes[span.value as usize..span.end as usize]),
        })
    }

    /// Returns the size of all keys and values in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the ids that this batch adds to the page of arrivals (a row in `arrivals`) of its
    /// commit.
    pub(crate) fn arrived(&self) -> impl Iterator<Item = &OrderId> {
        let migrated_in = self.rare.iter().flat_map(|rare| &rare.migrated_in);
        self.arrived.iter().chain(migrated_in)
    }

    /// Adds the changes of the batch to the counters, and sets the progress of expiry if the batch
    /// contains it (`expired_to`).
    pub(crate) fn count(&self, counters: &mut Counters) {
        if let Some((before, after)) = self.moved {
            if let Some(before) = before {
                let count = &mut counters.orders[before as usize];
                *count = count.saturating_sub(1);
            }
            counters.orders[after as usize] += 1;
        }
        if let Some(rare) = &self.rare {
            for (count, more) in counters.orders.iter_mut().zip(rare.counts.by_state) {
                *count = count.saturating_add_signed(more);
            }
            let more = rare.counts.extra_payments;
            counters.extra_payments = counters.extra_payments.saturating_add_signed(more);
        }
        counters.extra_payments = counters.extra_payments.saturating_add_signed(self.extra_payments);
        counters.stat_files = counters.stat_files.saturating_add_signed(self.stat_files);
        counters.expired_page = self.expired_page.unwrap_or(counters.expired_page);
    }

    /// Adds a row. `write` appends its value to the buffer.
    fn put(&mut self, table: Table, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        self.row(table, |bytes| bytes.extend_from_slice(key), Some(write));
    }

    /// Adds a row with an encoded value, such as a row copied from another volume.
    pub(crate) fn put_raw(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put(table, key, |row| row.extend_from_slice(value));
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) {
        self.row(
            table,
            |bytes| bytes.extend_from_slice(key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    fn row(
        &mut self,
        table: Table,
        write_key: impl FnOnce(&mut Vec<u8>),
        write: Option<impl FnOnce(&mut Vec<u8>)>,
    ) {
        // Offsets fit into 32 bits, because a batch of the volume has at most 64 MiB.
        let key = self.bytes.len() as u32;
        write_key(&mut self.bytes);
        let value = self.bytes.len() as u32;
        let removes = write.is_none();
        if let Some(write) = write {
            write(&mut self.bytes);
        }
        self.rows.push(Span {
            table,
            removes,
            key,
            value,
            end: self.bytes.len() as u32,
        });
    }

    /// Writes an order. `before` is its former version, or `None` for a new order.
    pub(crate) fn order(&mut self, order: &Order, before: Option<&Order>) {
        self.put(Table::Orders, order.id.as_bytes(), |row| {
            codec::encode_order(order, row);
        });
        self.moved = Some((before.map(|before| before.state), order.state));
        let extra_before = before.map_or(0, |before| before.extra_payments.len());
        self.extra_payments = order.extra_payments.len() as i64 - extra_before as i64;
        if before.is_none() {
            self.arrived = Some(order.id.clone());
        }
    }

    /// Adds the reservation of an order of this volume in a store of this volume.
    pub(crate) fn reserve(&mut self, order: &Order, store: u32) {
        self.reserve_for(&order.id, store, &order.lines, None);
    }

    /// Adds a reservation. The nonce is a random number of the order's volume, or `None` if the
    /// order was placed in this volume.
    pub(crate) fn reserve_for(&mut self, order: &OrderId, store: u32, lines: &[Line], nonce: Option<u64>) {
        self.row(
            Table::Reservations,
            |key| codec::encode_order_store_key(order, store, key),
            Some(|row: &mut Vec<u8>| codec::encode_reservation(store, lines, nonce, row)),
        );
    }

    /// Adds to the table `spent` the units that an order of this volume took from an allotment.
    pub(crate) fn spend(&mut self, order: &OrderId, store: u32, lines: &[Line], nonce: u64) {
        self.row(
            Table::Spent,
            |key| codec::encode_order_store_key(order, store, key),
            Some(|row: &mut Vec<u8>| codec::encode_reservation(store, lines, Some(nonce), row)),
        );
    }

    /// Removes the units of an order from `spent`, because the store's owner has written the
    /// reservation of the order.
    pub(crate) fn forget_spent(&mut self, order: &OrderId, store: u32) {
        self.row(
            Table::Spent,
            |key| codec::encode_order_store_key(order, store, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// Writes a loan of a store's units to another volume.
    pub(crate) fn loan(&mut self, store: u32, borrower: &NodeName, loan: &Loan) {
        self.row(
            Table::Loans,
            |key| codec::encode_loan_key(store, borrower, key),
            Some(|row: &mut Vec<u8>| codec::encode_loan(loan, row)),
        );
    }

    /// Removes a loan.
    pub(crate) fn forget_loan(&mut self, store: u32, borrower: &NodeName) {
        self.row(
            Table::Loans,
            |key| codec::encode_loan_key(store, borrower, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// Writes the incarnation of this volume as a borrower: a number that grows with each server of
    /// the volume that borrows units.
    pub(crate) fn borrower(&mut self, incarnation: u64) {
        self.put(Table::Meta, BORROWER, |row| {
            codec::encode_incarnation(incarnation, row);
        });
    }

    /// Adds a settlement to be sent to the volume of the store.
    pub(crate) fn settlement(&mut self, order: &OrderId, settlement: &Settlement) {
        self.put(Table::Settlements, order.as_bytes(), |row| {
            codec::encode_settlement(settlement, row);
        });
    }

    /// Removes a settlement that the volume of the store has confirmed.
    pub(crate) fn forget_settlement(&mut self, order: &OrderId) {
        self.remove(Table::Settlements, order.as_bytes());
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Adds an order that came from another volume to the page of arrivals (a row in `arrivals`) of
    /// this commit. The caller adds the order's own row.
    pub(crate) fn add_arrival(&mut self, order: OrderId) {
        self.rare().migrated_in.push(order);
    }

    /// Adds the counts of orders that came from other volumes and are now activated.
    pub(crate) fn add_counts(&mut self, counts: &OrderCounts) {
        self.rare().counts.add(counts);
    }

    /// Subtracts an order that moved to another volume from the counters. The caller removes the
    /// order's row.
    pub(crate) fn subtract_order(&mut self, order: &Order) {
        self.rare().counts.count(order, -1);
    }

    /// Adds a fence. The commit rejects the batch if the volume's slot ownership does not admit the
    /// fence (`SlotOwnership::admits`).
    pub(crate) fn fence(&mut self, fence: Fence) {
        match self.fences.iter_mut().find(|free| free.is_none()) {
            Some(free) => *free = Some(fence),
            None => self.rare().fences.push(fence),
        }
    }

    /// Returns the fences of the batch.
    pub(crate) fn fences(&self) -> impl Iterator<Item = Fence> {
        let more = self.rare.iter().flat_map(|rare| &rare.fences);
        self.fences.iter().flatten().chain(more).copied()
    }

    /// Sets the slots that the volume owns after this batch.
    pub(crate) fn set_ownership(&mut self, record: SlotOwnership) {
        self.put(Table::Meta, SLOTS, |row| row.extend_from_slice(&record.encode()));
        self.rare().record = Some(record);
    }

    /// Returns the slot ownership after this batch. `None` if the batch does not change it.
    pub(crate) fn record(&self) -> Option<&SlotOwnership> {
        self.rare.as_ref()?.record.as_ref()
    }

    /// Returns `true` if the batch neither writes nor removes rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds `count` to the number of statistics files. `count` is positive if the statistics moved
    /// to this volume, and negative if they left.
    pub(crate) fn stat_files_moved(&mut self, count: i64) {
        self.stat_files += count;
    }

    /// Removes a reservation. The outcome of the commit (`Durable`) says if the reservation
    /// existed.
    pub(crate) fn unreserve(&mut self, order: &OrderId, store: u32) {
        self.row(
            Table::Reservations,
            |key| codec::encode_order_store_key(order, store, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// Adds or replaces a message to the warehouse.
    pub(crate) fn message(&mut self, order: &OrderId, kind: Kind, message: &Message) {
        self.row(
            Table::Outbox,
            |key| codec::encode_message_key(order, kind, key),
            Some(|row: &mut Vec<u8>| codec::encode_message(message, row)),
        );
    }

    /// Removes a message to the warehouse that its order does not need.
    pub(crate) fn forget_message(&mut self, order: &OrderId, kind: Kind) {
        self.row(
            Table::Outbox,
            |key| codec::encode_message_key(order, kind, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// Adds a delivery that no stock snapshot reflects yet.
    pub(crate) fn delivery(&mut self, order: &OrderId, delivery: &Delivery) {
        self.row(
            Table::Deliveries,
            |key| codec::encode_order_store_key(order, delivery.store, key),
            Some(|row: &mut Vec<u8>| codec::encode_delivery(delivery, row)),
        );
    }

    /// Removes a delivery that a stock snapshot reflects.
    pub(crate) fn forget_delivery(&mut self, order: &OrderId, store: u32) {
        self.row(
            Table::Deliveries,
            |key| codec::encode_order_store_key(order, store, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// Replaces the whole stock. `stores_before` are the stores of the former stock. Their rows are
    /// removed if the new stock lacks them.
    pub(crate) fn stock(&mut self, snapshot: &StockSnapshot, stores_before: &[u32]) {
        self.catalogue(snapshot.products());
        snapshot.each_store(|store, quantities| self.store(store, quantities, snapshot.counted_to(store)));
        for store in stores_before {
            if !snapshot.has_store(*store) {
                self.remove(Table::Stock, &store.to_be_bytes());
            }
        }
    }

    /// Replaces the quantities of the stores in `touched`. In `snapshot`, new products come after
    /// the products of the former stock, so the rows of other stores stay valid.
    pub(crate) fn stores(&mut self, snapshot: &StockSnapshot, touched: &BTreeSet<u32>) {
        self.catalogue(snapshot.products());
        snapshot.each_store(|store, quantities| {
            if touched.contains(&store) {
                self.store(store, quantities, snapshot.counted_to(store));
            }
        });
    }

    /// Writes the product ids in the order of the rows of the stock matrix.
    pub(crate) fn catalogue(&mut self, products: &[u32]) {
        self.put(Table::Stock, CATALOGUE, |row| {
            codec::encode_catalogue(products, row);
        });
    }

    /// Returns the quantities of all stores as batches of a bounded size. Use this only if
    /// the former stock has the same stores, and the same products in the same order. Otherwise a
    /// crash between two parts would leave an invalid stock.
    pub(crate) fn stock_in_parts(snapshot: &StockSnapshot) -> Vec<StockPart> {
        let mut parts = vec![StockPart::default()];
        snapshot.each_store(|store, quantities| {
            if let Some(part) = parts.last_mut() {
                part.stores.push(store);
                part.batch.store(store, quantities, snapshot.counted_to(store));
                if part.batch.bytes() >= PART_BYTES {
                    parts.push(StockPart::default());
                }
            }
        });
        parts.retain(|part| !part.stores.is_empty());
        parts
    }

    /// Writes the quantities of one store.
    pub(crate) fn column(&mut self, column: &Column) {
        self.store(column.store, &column.quantities, column.counted_to);
    }

    fn store(&mut self, store: u32, quantities: &[i32], counted_to: CountedTo) {
        self.put(Table::Stock, &store.to_be_bytes(), |row| {
            codec::encode_quantities(counted_to, quantities, row);
        });
    }

    /// Writes the facts about the current stock snapshot.
    pub(crate) fn stock_head(&mut self, head: &StockHead) {
        self.put(Table::Meta, STOCK_HEAD, |row| codec::encode_stock_head(head, row));
    }

    /// Writes the sums of products after a statistics file was added, and the key of the file
    /// (`importer`).
    pub(crate) fn stat_file(&mut self, name: &str, added_at_ms: u64, sums: &SumsByProduct) {
        for (product, sums) in sums {
            self.put(Table::Stats, &product.to_be_bytes(), |row| {
                codec::encode_sums(sums, row);
            });
        }
        self.put(Table::StatFiles, name.as_bytes(), |row| {
            codec::encode_import_time(added_at_ms, row);
        });
        self.stat_files += 1;
    }

    /// Removes stored keys of statistics files (`importer`). `mark` is, of the names in all keys
    /// removed so far, the plausible one with the latest time in it (`stat_import::name`). With
    /// `None`, the stored mark stays.
    pub(crate) fn forget_stat_files<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        mark: Option<&str>,
    ) {
        for name in names {
            self.remove(Table::StatFiles, name.as_bytes());
        }
        if let Some(mark) = mark {
            self.put(Table::Meta, STATS_FORGOTTEN, |row| {
                row.extend_from_slice(mark.as_bytes());
            });
        }
    }

    /// Stores the response for an idempotency key.
    pub(crate) fn keep_answer(&mut self, key: &str, answer: &KeptAnswer) {
        self.put(Table::Answers, key.as_bytes(), |row| {
            codec::encode_answer(answer, row);
        });
    }

    /// Removes the response of an idempotency key.
    pub(crate) fn forget_answer(&mut self, key: &[u8]) {
        self.remove(Table::Answers, key);
    }

    /// Records that the expiry job has finished all pages of arrivals (rows in `arrivals`) before
    /// `page`.
    pub(crate) fn expired_to(&mut self, page: u64) {
        self.expired_page = Some(page);
    }
}
