//! Rows that are written together or not at all, named by what they mean.

use std::collections::BTreeSet;

use crate::order::{Order, OrderId, State};
use crate::outbox::{Kind, Message};
use crate::rows::{self, Book};
use crate::sheet::Sheet;
use crate::stats::SumsByProduct;
use crate::stock::{Delivery, StockHead};

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
}

/// Every table with its name, in the order of their codes.
pub(crate) const TABLES: [(Table, &str); 9] = [
    (Table::Orders, "orders"),
    (Table::Arrivals, "arrivals"),
    (Table::Reservations, "reservations"),
    (Table::Outbox, "outbox"),
    (Table::Deliveries, "deliveries"),
    (Table::Stock, "stock"),
    (Table::Stats, "stats"),
    (Table::StatFiles, "stat_files"),
    (Table::Meta, "meta"),
];

/// Key of the products by row.
pub(crate) const CATALOGUE: &[u8] = b"catalogue";
/// Key of the volume's counters.
pub(crate) const BOOK: &[u8] = b"book";
/// Key of what is known of the snapshot in force.
pub(crate) const STOCK_HEAD: &[u8] = b"stock";

#[derive(Debug)]
pub(crate) enum Key {
    Order(OrderId),
    Bytes(Vec<u8>),
}

impl Key {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Key::Order(id) => id.as_bytes(),
            Key::Bytes(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) table: Table,
    pub(crate) key: Key,
    /// `None` removes the row.
    pub(crate) value: Option<Vec<u8>>,
}

/// Rows that are written together or not at all.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    rows: Vec<Row>,
    bytes: usize,
    arrived: Option<OrderId>,
    moved: Option<(Option<State>, State)>,
    stat_files: u64,
    expired_page: Option<u64>,
}

impl Changes {
    /// The rows, in the order in which they were put.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Bytes of all values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The order that arrives with these changes, if one does.
    pub(crate) fn arrived(&self) -> Option<&OrderId> {
        self.arrived.as_ref()
    }

    /// Carries the counters over these changes.
    pub(crate) fn count(&self, book: &mut Book) {
        if let Some((before, after)) = self.moved {
            if let Some(before) = before {
                let count = &mut book.orders[before as usize];
                *count = count.saturating_sub(1);
            }
            book.orders[after as usize] += 1;
        }
        book.stat_files += self.stat_files;
        book.expired_page = self.expired_page.unwrap_or(book.expired_page);
    }

    fn put(&mut self, table: Table, key: Key, value: Vec<u8>) {
        self.bytes += value.len();
        self.rows.push(Row {
            table,
            key,
            value: Some(value),
        });
    }

    fn remove(&mut self, table: Table, key: Key) {
        self.rows.push(Row {
            table,
            key,
            value: None,
        });
    }

    /// An order in its new form; `before` is the state that it leaves, none if it has just arrived.
    pub(crate) fn order(&mut self, order: &Order, before: Option<State>) {
        self.put(
            Table::Orders,
            Key::Order(order.id.clone()),
            rows::encode_order(order),
        );
        self.moved = Some((before, order.state));
        if before.is_none() {
            self.arrived = Some(order.id.clone());
        }
    }

    /// Units are set aside for an order.
    pub(crate) fn reserve(&mut self, order: &Order, store: u32) {
        let row = rows::encode_reservation(store, &order.lines);
        self.put(Table::Reservations, Key::Order(order.id.clone()), row);
    }

    /// Units are no longer set aside for an order.
    pub(crate) fn unreserve(&mut self, order: &OrderId) {
        self.remove(Table::Reservations, Key::Order(order.clone()));
    }

    /// The warehouse must be told something, or has not been told yet.
    pub(crate) fn message(&mut self, order: &OrderId, kind: Kind, message: &Message) {
        let key = Key::Bytes(rows::encode_message_key(order, kind));
        self.put(Table::Outbox, key, rows::encode_message(message));
    }

    /// The warehouse need not be told any more.
    pub(crate) fn forget_message(&mut self, order: &OrderId, kind: Kind) {
        self.remove(Table::Outbox, Key::Bytes(rows::encode_message_key(order, kind)));
    }

    /// Units left a store and no snapshot counts them yet.
    pub(crate) fn delivery(&mut self, order: &OrderId, delivery: &Delivery) {
        self.put(
            Table::Deliveries,
            Key::Order(order.clone()),
            rows::encode_delivery(delivery),
        );
    }

    /// A snapshot counts this delivery.
    pub(crate) fn forget_delivery(&mut self, order: &OrderId) {
        self.remove(Table::Deliveries, Key::Order(order.clone()));
    }

    /// A whole stock, in place of the one before, whose stores are `stores_before`.
    pub(crate) fn stock(&mut self, sheet: &Sheet, stores_before: &[u32]) {
        self.put(
            Table::Stock,
            Key::Bytes(CATALOGUE.to_vec()),
            rows::encode_catalogue(sheet.products()),
        );
        for column in sheet.columns() {
            let key = Key::Bytes(column.store.to_be_bytes().to_vec());
            self.put(Table::Stock, key, rows::encode_quantities(&column.quantities));
        }
        for store in stores_before {
            if !sheet.has_store(*store) {
                self.remove(Table::Stock, Key::Bytes(store.to_be_bytes().to_vec()));
            }
        }
    }

    /// Some stores of a stock that otherwise stays as it is; products that it did not have come last.
    pub(crate) fn stores(&mut self, sheet: &Sheet, touched: &BTreeSet<u32>) {
        self.put(
            Table::Stock,
            Key::Bytes(CATALOGUE.to_vec()),
            rows::encode_catalogue(sheet.products()),
        );
        for column in sheet
            .columns()
            .iter()
            .filter(|column| touched.contains(&column.store))
        {
            let key = Key::Bytes(column.store.to_be_bytes().to_vec());
            self.put(Table::Stock, key, rows::encode_quantities(&column.quantities));
        }
    }

    /// The age of the snapshot in force.
    pub(crate) fn stock_head(&mut self, head: &StockHead) {
        self.put(
            Table::Meta,
            Key::Bytes(STOCK_HEAD.to_vec()),
            rows::encode_stock_head(head),
        );
    }

    /// The sums that a statistics file leads to, with the name of the file.
    pub(crate) fn stat_file(&mut self, name: &str, added_at_ms: u64, sums: &SumsByProduct) {
        for (product, sums) in sums {
            let key = Key::Bytes(product.to_be_bytes().to_vec());
            self.put(Table::Stats, key, rows::encode_sums(sums));
        }
        let key = Key::Bytes(name.as_bytes().to_vec());
        self.put(Table::StatFiles, key, added_at_ms.to_be_bytes().to_vec());
        self.stat_files += 1;
    }

    /// Every order on the pages before this one has been looked at after its payment timeout.
    pub(crate) fn expired_to(&mut self, page: u64) {
        self.expired_page = Some(page);
    }
}
