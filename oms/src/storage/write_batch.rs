//! Rows that are written together or not at all, named by what they mean.

use std::collections::BTreeSet;

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
}

impl Table {
    /// True if its rows go with slots.
    pub(crate) fn moves(self) -> bool {
        !matches!(self, Table::Arrivals | Table::Meta | Table::Arriving)
    }

    /// The table of a code.
    pub(crate) fn of_code(code: u8) -> Option<Table> {
        TABLES.get(usize::from(code)).map(|(table, _)| *table)
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        TABLES[self as usize].1
    }
}

/// Every table with its name, in the order of their codes.
pub(crate) const TABLES: [(Table, &str); 12] = [
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
];

/// Key of the products by row.
pub(crate) const CATALOGUE: &[u8] = b"catalogue";
/// Key of the volume's counters.
pub(crate) const COUNTERS: &[u8] = b"book";
/// Key of what is known of the snapshot in force.
pub(crate) const STOCK_HEAD: &[u8] = b"stock";
/// Key of the move whose rows arrive, with what they will add to the counts (`volume::migration`).
pub(crate) const ARRIVING: &[u8] = b"arriving";
/// Key of the volume's own record of its slots.
pub(crate) const SLOTS: &[u8] = b"slots";
/// Key that is there while rows of other volumes' slots may lie in this one.
pub(crate) const PURGE: &[u8] = b"purge";
/// Key of the newest statistics file whose name is no longer kept.
pub(crate) const STATS_FORGOTTEN: &[u8] = b"stat_files_forgotten";

/// A part of a snapshot that is written at a time: orders that come meanwhile share its sync, and a
/// disk takes this much in about the time that a sync takes in any case. Tests have small stocks,
/// and more places to die at.
const PART_BYTES: usize = if cfg!(test) { 16 } else { 128 * 1_024 };

/// Changes of a volume's counters by orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OrderCounts {
    /// Orders in each state, by the state's place in `State::ALL`.
    pub(crate) by_state: [i64; State::ALL.len()],
    /// Payments to be refunded beside the one that paid an order.
    pub(crate) extra_payments: i64,
}

impl OrderCounts {
    /// Counts an order once more (`times` 1) or once less (-1).
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

/// A row: where its key and value lie in the changes' buffer.
#[derive(Clone, Copy, Debug)]
struct Span {
    table: Table,
    removes: bool,
    key: u32,
    value: u32,
    end: u32,
}

/// A row as it is to be written.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) table: Table,
    pub(crate) key: &'a [u8],
    /// `None` removes the row.
    pub(crate) value: Option<&'a [u8]>,
}

/// Rows that are written together or not at all.
#[derive(Debug, Default)]
pub(crate) struct WriteBatch {
    rows: Vec<Span>,
    /// Keys and values of all rows, one after the other: two allocations a change, however many
    /// rows it has.
    bytes: Vec<u8>,
    arrived: Option<OrderId>,
    moved: Option<(Option<State>, State)>,
    extra_payments: i64,
    stat_files: i64,
    expired_page: Option<u64>,
    /// What must be the volume's for these changes to happen: an order's slot and a store's,
    /// mostly.
    fences: [Option<Fence>; 2],
    /// What only a few changes have.
    rare: Option<Box<Rare>>,
}

/// What the changes of stock, and of slots that come and go, have beside the usual.
#[derive(Debug, Default)]
struct Rare {
    fences: Vec<Fence>,
    /// The volume's slots from here on.
    record: Option<SlotOwnership>,
    /// Orders that come from another volume, for a page of arrivals; counted once they are in
    /// force.
    came: Vec<OrderId>,
    /// Counts of orders that came from other volumes, less those that went there.
    migrated: OrderCounts,
}

impl WriteBatch {
    /// No changes yet, with room for those of an order that arrives.
    pub(crate) fn of_order() -> WriteBatch {
        WriteBatch {
            rows: Vec::with_capacity(4),
            bytes: Vec::with_capacity(256),
            ..WriteBatch::default()
        }
    }

    /// The rows, in the order in which they were put.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|span| Row {
            table: span.table,
            key: &self.bytes[span.key as usize..span.value as usize],
            value: (!span.removes).then(|| &self.bytes[span.value as usize..span.end as usize]),
        })
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The orders that arrive with these changes.
    pub(crate) fn arrived(&self) -> impl Iterator<Item = &OrderId> {
        let came = self.rare.iter().flat_map(|rare| &rare.came);
        self.arrived.iter().chain(came)
    }

    /// Carries the counters over these changes.
    pub(crate) fn count(&self, counters: &mut Counters) {
        if let Some((before, after)) = self.moved {
            if let Some(before) = before {
                let count = &mut counters.orders[before as usize];
                *count = count.saturating_sub(1);
            }
            counters.orders[after as usize] += 1;
        }
        if let Some(rare) = &self.rare {
            for (count, more) in counters.orders.iter_mut().zip(rare.migrated.by_state) {
                *count = count.saturating_add_signed(more);
            }
            let more = rare.migrated.extra_payments;
            counters.extra_payments = counters.extra_payments.saturating_add_signed(more);
        }
        counters.extra_payments = counters.extra_payments.saturating_add_signed(self.extra_payments);
        counters.stat_files = counters.stat_files.saturating_add_signed(self.stat_files);
        counters.expired_page = self.expired_page.unwrap_or(counters.expired_page);
    }

    /// Adds a row whose value `write` appends to the buffer.
    fn put(&mut self, table: Table, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) {
        self.row(table, |bytes| bytes.extend_from_slice(key), Some(write));
    }

    /// A row as it lay in another volume.
    pub(crate) fn put_raw(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put(table, key, |row| row.extend_from_slice(value));
    }

    /// Takes a row out.
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
        // A change is far below 4 GiB: a batch of the volume holds 64 MiB.
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

    /// Writes an order; `before` is its former version, none if it has just arrived.
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

    /// Units are set aside for an order.
    pub(crate) fn reserve(&mut self, order: &Order, store: u32) {
        self.reserve_for(&order.id, store, &order.lines, None);
    }

    /// Units are set aside for an order, by its own step or by a request of another volume.
    pub(crate) fn reserve_for(&mut self, order: &OrderId, store: u32, lines: &[Line], nonce: Option<u64>) {
        self.row(
            Table::Reservations,
            |key| codec::encode_held_key(order, store, key),
            Some(|row: &mut Vec<u8>| codec::encode_reservation(store, lines, nonce, row)),
        );
    }

    /// Another volume must be told what became of units that are set aside there.
    pub(crate) fn settlement(&mut self, order: &OrderId, settlement: &Settlement) {
        self.put(Table::Settlements, order.as_bytes(), |row| {
            codec::encode_settlement(settlement, row);
        });
    }

    /// The other volume knows what became of its units.
    pub(crate) fn forget_settlement(&mut self, order: &OrderId) {
        self.remove(Table::Settlements, order.as_bytes());
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// An order comes from another volume; its row is put beside this.
    pub(crate) fn came(&mut self, order: OrderId) {
        self.rare().came.push(order);
    }

    /// Counts orders that came from other volumes.
    pub(crate) fn adopted(&mut self, counts: &OrderCounts) {
        self.rare().migrated.add(counts);
    }

    /// Counts an order no longer that went to another volume; its row is removed beside this.
    pub(crate) fn went(&mut self, order: &Order) {
        self.rare().migrated.count(order, -1);
    }

    /// These changes are refused unless that slot is the volume's.
    pub(crate) fn fence(&mut self, fence: Fence) {
        match self.fences.iter_mut().find(|free| free.is_none()) {
            Some(free) => *free = Some(fence),
            None => self.rare().fences.push(fence),
        }
    }

    /// The slots that these changes speak for.
    pub(crate) fn fences(&self) -> impl Iterator<Item = Fence> {
        let more = self.rare.iter().flat_map(|rare| &rare.fences);
        self.fences.iter().flatten().chain(more).copied()
    }

    /// From these changes on the volume has just these slots.
    pub(crate) fn own(&mut self, record: SlotOwnership) {
        self.put(Table::Meta, SLOTS, |row| row.extend_from_slice(&record.encode()));
        self.rare().record = Some(record);
    }

    /// The volume's slots from these changes on, if they say so.
    pub(crate) fn record(&self) -> Option<&SlotOwnership> {
        self.rare.as_ref()?.record.as_ref()
    }

    /// True if there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// So many statistics files came with the statistics from another volume, or went with them.
    pub(crate) fn stat_files_moved(&mut self, count: i64) {
        self.stat_files += count;
    }

    /// Units of a store are no longer set aside for an order. Whether they were is told with the
    /// answer (`Durable`).
    pub(crate) fn unreserve(&mut self, order: &OrderId, store: u32) {
        self.row(
            Table::Reservations,
            |key| codec::encode_held_key(order, store, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// The warehouse must be told something, or has not been told yet.
    pub(crate) fn message(&mut self, order: &OrderId, kind: Kind, message: &Message) {
        self.row(
            Table::Outbox,
            |key| codec::encode_message_key(order, kind, key),
            Some(|row: &mut Vec<u8>| codec::encode_message(message, row)),
        );
    }

    /// The warehouse need not be told any more.
    pub(crate) fn forget_message(&mut self, order: &OrderId, kind: Kind) {
        self.row(
            Table::Outbox,
            |key| codec::encode_message_key(order, kind, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// Units left a store and no snapshot counts them yet.
    pub(crate) fn delivery(&mut self, order: &OrderId, delivery: &Delivery) {
        self.row(
            Table::Deliveries,
            |key| codec::encode_held_key(order, delivery.store, key),
            Some(|row: &mut Vec<u8>| codec::encode_delivery(delivery, row)),
        );
    }

    /// A snapshot counts this delivery.
    pub(crate) fn forget_delivery(&mut self, order: &OrderId, store: u32) {
        self.row(
            Table::Deliveries,
            |key| codec::encode_held_key(order, store, key),
            None::<fn(&mut Vec<u8>)>,
        );
    }

    /// A whole stock, in place of the one before, whose stores are `stores_before`.
    pub(crate) fn stock(&mut self, snapshot: &StockSnapshot, stores_before: &[u32]) {
        self.catalogue(snapshot.products());
        snapshot.each_store(|store, quantities| self.store(store, quantities, snapshot.counted_to(store)));
        for store in stores_before {
            if !snapshot.has_store(*store) {
                self.remove(Table::Stock, &store.to_be_bytes());
            }
        }
    }

    /// Some stores of a stock that otherwise stays as it is; products that it did not have come
    /// last.
    pub(crate) fn stores(&mut self, snapshot: &StockSnapshot, touched: &BTreeSet<u32>) {
        self.catalogue(snapshot.products());
        snapshot.each_store(|store, quantities| {
            if touched.contains(&store) {
                self.store(store, quantities, snapshot.counted_to(store));
            }
        });
    }

    /// Products by row.
    pub(crate) fn catalogue(&mut self, products: &[u32]) {
        self.put(Table::Stock, CATALOGUE, |row| {
            codec::encode_catalogue(products, row);
        });
    }

    /// The stores of a whole stock, in parts of a bounded size. For a stock that has the products
    /// and stores of the one before it in the same rows: only then is each part whole by itself.
    pub(crate) fn stock_in_parts(snapshot: &StockSnapshot) -> Vec<WriteBatch> {
        let mut parts = vec![WriteBatch::default()];
        snapshot.each_store(|store, quantities| {
            if let Some(part) = parts.last_mut() {
                part.store(store, quantities, snapshot.counted_to(store));
                if part.bytes() >= PART_BYTES {
                    parts.push(WriteBatch::default());
                }
            }
        });
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// A store's quantities by row.
    pub(crate) fn column(&mut self, column: &Column) {
        self.store(column.store, &column.quantities, column.counted_to);
    }

    fn store(&mut self, store: u32, quantities: &[i32], counted_to: CountedTo) {
        self.put(Table::Stock, &store.to_be_bytes(), |row| {
            codec::encode_quantities(counted_to, quantities, row);
        });
    }

    /// The age of the snapshot in force.
    pub(crate) fn stock_head(&mut self, head: &StockHead) {
        self.put(Table::Meta, STOCK_HEAD, |row| codec::encode_stock_head(head, row));
    }

    /// The sums that a statistics file leads to, with the name of the file.
    pub(crate) fn stat_file(&mut self, name: &str, added_at_ms: u64, sums: &SumsByProduct) {
        for (product, sums) in sums {
            self.put(Table::Stats, &product.to_be_bytes(), |row| {
                codec::encode_sums(sums, row);
            });
        }
        self.put(Table::StatFiles, name.as_bytes(), |row| {
            row.extend_from_slice(&added_at_ms.to_be_bytes());
        });
        self.stat_files += 1;
    }

    /// Forgets names of statistics files; `mark` is the newest name forgotten so far
    /// (`stat_import::name`).
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

    /// The answer of an idempotency key.
    pub(crate) fn keep_answer(&mut self, key: &str, answer: &KeptAnswer) {
        self.put(Table::Answers, key.as_bytes(), |row| {
            codec::encode_answer(answer, row);
        });
    }

    /// An idempotency key was kept long enough.
    pub(crate) fn forget_answer(&mut self, key: &[u8]) {
        self.remove(Table::Answers, key);
    }

    /// Every order on the pages before this one has been looked at after its payment timeout.
    pub(crate) fn expired_to(&mut self, page: u64) {
        self.expired_page = Some(page);
    }
}
