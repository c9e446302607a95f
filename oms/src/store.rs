//! The volume: which rows a node keeps, and how they become durable. The only file that names microdb.
//!
//! | table | key | value (`rows`) |
//! | --- | --- | --- |
//! | `orders` | order id | lines and history of the order |
//! | `arrivals` | page, u64 big-endian | ids of the orders that one commit brought, so that all orders can be paged through in order of arrival |
//! | `reservations` | order id | store and lines set aside; there exactly while the order's state holds them |
//! | `outbox` | order id `/` kind | attempts and fate of a message; there exactly while the warehouse must be told |
//! | `deliveries` | order id | what left a store and is not counted by the snapshot in force |
//! | `stock` | `catalogue`, or store u32 big-endian | products by row, or a store's quantities by row |
//! | `stats` | product u32 big-endian | sums of the product |
//! | `stat_files` | file name | when it was added; never removed, so a file that comes back is known |
//! | `meta` | `book`, `stock` | counters of the volume, age of the snapshot in force |
//!
//! Changes that belong together are one `Changes`. One thread per volume takes them from a bounded queue, makes all
//! that wait one batch, commits it durably and answers: many callers share a sync, no runtime thread waits for
//! a disk, and readers see only what is durable. The order of submission is the order of commit.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use microdb::Db;
use tokio::sync::{mpsc, oneshot};

use crate::error::StoreError;
use crate::order::{Order, OrderId, State};
use crate::outbox::{Kind, Message};
use crate::rows::{self, Book, RowFault};
use crate::sheet::{Column, Sheet};
use crate::stats::SumsByProduct;
use crate::stock::{Delivery, Reservation, StockHead};

/// Changes that may wait for the committer. At 64 bytes and a few hundred of rows each this is a few megabytes;
/// beyond it callers are told to come back.
const QUEUE_CHANGES_MAX: usize = 8_192;
/// Rows that one commit gathers: past a few thousand, sharing a sync gains nothing and delays the first.
const GROUP_ROWS_MAX: usize = 8_192;
/// Changes of more bytes than this are a commit of their own, so that a snapshot does not swell a group.
const ALONE_BYTES: usize = 256 * 1_024;

/// The tables of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
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

const TABLES: [(Table, &str); 9] = [
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

const CATALOGUE: &[u8] = b"catalogue";
const BOOK: &[u8] = b"book";
const STOCK_HEAD: &[u8] = b"stock";

#[derive(Debug)]
enum Key {
    Order(OrderId),
    Bytes(Vec<u8>),
}

impl Key {
    fn bytes(&self) -> &[u8] {
        match self {
            Key::Order(id) => id.as_bytes(),
            Key::Bytes(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Row {
    table: Table,
    key: Key,
    /// `None` removes the row.
    value: Option<Vec<u8>>,
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

enum Submission {
    Commit {
        changes: Changes,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Stop,
}

/// A place in the committer's queue.
pub(crate) struct Permit<'a>(mpsc::Permit<'a, Submission>);

impl Permit<'_> {
    /// Queues changes; they are committed in the order of these calls.
    pub(crate) fn send(self, changes: Changes) -> Ticket {
        let (answer, ticket) = oneshot::channel();
        self.0.send(Submission::Commit { changes, answer });
        Ticket(ticket)
    }
}

/// The promise of an answer once changes are durable.
pub(crate) struct Ticket(oneshot::Receiver<Result<(), StoreError>>);

impl Ticket {
    /// Waits until the changes are durable, or could not be made so.
    pub(crate) async fn durable(self) -> Result<(), StoreError> {
        self.0.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// What a node keeps in memory of its volume.
pub(crate) struct Loaded {
    pub(crate) sheet: Sheet,
    pub(crate) stock_head: StockHead,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) deliveries: Vec<(OrderId, Delivery)>,
    pub(crate) messages: Vec<(OrderId, Kind, Message)>,
    pub(crate) sums: SumsByProduct,
}

/// One volume, open.
pub(crate) struct Store {
    volume: Arc<Volume>,
    queue: mpsc::Sender<Submission>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

/// What readers and the committer share.
struct Volume {
    db: Db,
    handles: Vec<microdb::Table>,
    book: Mutex<Book>,
}

impl Volume {
    fn table(&self, table: Table) -> &microdb::Table {
        &self.handles[table as usize]
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        // The book is plain numbers, replaced whole: a panic elsewhere cannot leave it half changed.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the volume in `folder`, making it if it is not there, and starts its committer.
    pub(crate) fn open(folder: &Path) -> Result<Store, StoreError> {
        let opening = |source: microdb::Error| StoreError::Open {
            folder: folder.to_owned(),
            source: Arc::new(source),
        };
        let db = Db::open(folder).map_err(opening)?;
        let mut handles = Vec::with_capacity(TABLES.len());
        for (at, (table, name)) in TABLES.into_iter().enumerate() {
            debug_assert_eq!(at, table as usize);
            handles.push(db.table(name).map_err(opening)?);
        }
        let volume = Volume {
            db,
            handles,
            book: Mutex::new(Book::default()),
        };
        if let Some(row) = volume.table(Table::Meta).get(BOOK).map_err(reading("meta"))? {
            *volume.book() = rows::decode_book(&row).map_err(|fault| broken("meta", BOOK, fault))?;
        }
        let volume = Arc::new(volume);
        let (queue, waiting) = mpsc::channel(QUEUE_CHANGES_MAX);
        let committer = Committer {
            volume: Arc::clone(&volume),
            waiting,
            too_large: None,
        };
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || committer.run());
        let thread = thread.map_err(|source| StoreError::Thread {
            source: Arc::new(source),
        })?;
        Ok(Store {
            volume,
            queue,
            committer: Mutex::new(Some(thread)),
        })
    }

    /// A place in the committer's queue, or `Busy` if there is none now.
    pub(crate) fn try_permit(&self) -> Result<Permit<'_>, StoreError> {
        self.queue.try_reserve().map(Permit).map_err(|full| match full {
            mpsc::error::TrySendError::Full(()) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(()) => StoreError::Closed,
        })
    }

    /// A place in the committer's queue, waited for.
    pub(crate) async fn permit(&self) -> Result<Permit<'_>, StoreError> {
        self.queue
            .reserve()
            .await
            .map(Permit)
            .map_err(|_| StoreError::Closed)
    }

    /// Commits what is queued, closes the volume and lets go of its lock, whoever still holds this. Blocks.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        // A queue that is closed or full of work still ends: the committer leaves when it meets the stop.
        let _ = self.queue.blocking_send(Submission::Stop);
        let thread = self
            .committer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        self.volume
            .db
            .clone()
            .close()
            .map_err(|source| StoreError::Commit {
                source: Arc::new(source),
            })
    }

    /// An order, as it last became durable.
    pub(crate) fn order(&self, id: &OrderId) -> Result<Option<Order>, StoreError> {
        let row = self
            .volume
            .table(Table::Orders)
            .get(id.as_bytes())
            .map_err(reading("orders"))?;
        let Some(row) = row else { return Ok(None) };
        let order =
            rows::decode_order(id.clone(), &row).map_err(|fault| broken("orders", id.as_bytes(), fault))?;
        Ok(Some(order))
    }

    /// The ids that arrived with one commit; none if there is no such page.
    pub(crate) fn arrivals(&self, page: u64) -> Result<Vec<OrderId>, StoreError> {
        let key = page.to_be_bytes();
        let row = self
            .volume
            .table(Table::Arrivals)
            .get(key)
            .map_err(reading("arrivals"))?;
        let Some(row) = row else { return Ok(Vec::new()) };
        rows::decode_arrivals(&row).map_err(|fault| broken("arrivals", &key, fault))
    }

    /// True if a statistics file of that name was added before.
    pub(crate) fn knows_stat_file(&self, name: &str) -> Result<bool, StoreError> {
        let row = self
            .volume
            .table(Table::StatFiles)
            .get(name.as_bytes())
            .map_err(reading("stat_files"))?;
        Ok(row.is_some())
    }

    /// The volume's counters as of the last commit.
    pub(crate) fn book(&self) -> Book {
        *self.volume.book()
    }

    /// All reservations, in no order.
    pub(crate) fn reservations(&self) -> Result<Vec<Reservation>, StoreError> {
        self.scan(Table::Reservations, |key, value| {
            let order = order_id(key)?;
            rows::decode_reservation(order, value)
        })
    }

    /// The stock of the snapshot in force.
    pub(crate) fn sheet(&self) -> Result<Sheet, StoreError> {
        let row = self
            .volume
            .table(Table::Stock)
            .get(CATALOGUE)
            .map_err(reading("stock"))?;
        let Some(row) = row else {
            return Ok(Sheet::default());
        };
        let products = rows::decode_catalogue(&row).map_err(|fault| broken("stock", CATALOGUE, fault))?;
        let columns = self.scan(Table::Stock, |key, value| {
            if key == CATALOGUE {
                return Ok(None);
            }
            let store = u32_key(key)?;
            Ok(Some(Column {
                store,
                quantities: rows::decode_quantities(value)?,
            }))
        })?;
        Ok(Sheet::from_rows(
            products,
            columns.into_iter().flatten().collect(),
        ))
    }

    /// Reads what a node keeps in memory. Takes time with open orders and products, not with all orders.
    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        let row = self
            .volume
            .table(Table::Meta)
            .get(STOCK_HEAD)
            .map_err(reading("meta"))?;
        let stock_head = match row {
            None => StockHead::default(),
            Some(row) => rows::decode_stock_head(&row).map_err(|fault| broken("meta", STOCK_HEAD, fault))?,
        };
        Ok(Loaded {
            sheet: self.sheet()?,
            stock_head,
            reservations: self.reservations()?,
            deliveries: self.scan(Table::Deliveries, |key, value| {
                Ok((order_id(key)?, rows::decode_delivery(value)?))
            })?,
            messages: self.scan(Table::Outbox, |key, value| {
                let known = rows::decode_message_key(key).ok_or(RowFault {
                    offset: 0,
                    expected: "a message key",
                })?;
                Ok((known.0, known.1, rows::decode_message(value)?))
            })?,
            sums: self
                .scan(Table::Stats, |key, value| {
                    Ok((u32_key(key)?, rows::decode_sums(value)?))
                })?
                .into_iter()
                .collect(),
        })
    }

    fn scan<T>(
        &self,
        table: Table,
        mut read: impl FnMut(&[u8], &[u8]) -> Result<T, RowFault>,
    ) -> Result<Vec<T>, StoreError> {
        let name = TABLES[table as usize].1;
        let mut found = Vec::new();
        for record in self.volume.table(table) {
            let (key, value) = record.map_err(reading(name))?;
            found.push(read(&key, &value).map_err(|fault| broken(name, &key, fault))?);
        }
        Ok(found)
    }
}

fn order_id(key: &[u8]) -> Result<OrderId, RowFault> {
    let fault = RowFault {
        offset: 0,
        expected: "an order id as key",
    };
    let text = std::str::from_utf8(key).map_err(|_| fault.clone())?;
    OrderId::parse(text).map_err(|_| fault)
}

fn u32_key(key: &[u8]) -> Result<u32, RowFault> {
    let key = key.try_into().map_err(|_| RowFault {
        offset: 0,
        expected: "a key of four bytes",
    })?;
    Ok(u32::from_be_bytes(key))
}

fn reading(table: &'static str) -> impl Fn(microdb::Error) -> StoreError {
    move |source| match source {
        microdb::Error::Closed => StoreError::Closed,
        source => StoreError::Read {
            table,
            source: Arc::new(source),
        },
    }
}

fn broken(table: &'static str, key: &[u8], fault: RowFault) -> StoreError {
    StoreError::Row {
        table,
        key: String::from_utf8_lossy(key).into_owned(),
        fault,
    }
}

/// Makes queued changes durable, as many at once as wait.
struct Committer {
    volume: Arc<Volume>,
    waiting: mpsc::Receiver<Submission>,
    /// Changes that came up while a group was gathered and that are to be a commit of their own.
    too_large: Option<(Changes, oneshot::Sender<Result<(), StoreError>>)>,
}

impl Committer {
    fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let mut group = Vec::new();
            match self.waiting.blocking_recv() {
                Some(Submission::Commit { changes, answer }) => {
                    stopping = self.gather(&mut group, changes, answer);
                }
                Some(Submission::Stop) | None => break,
            }
            self.commit_and_answer(group);
            if let Some(alone) = self.too_large.take() {
                self.commit_and_answer(vec![alone]);
            }
        }
    }

    /// Adds everything that waits to the group; true if the committer is to stop after it.
    fn gather(
        &mut self,
        group: &mut Vec<(Changes, oneshot::Sender<Result<(), StoreError>>)>,
        changes: Changes,
        answer: oneshot::Sender<Result<(), StoreError>>,
    ) -> bool {
        let mut rows = changes.rows.len();
        let alone = changes.bytes > ALONE_BYTES;
        group.push((changes, answer));
        while !alone && rows < GROUP_ROWS_MAX {
            match self.waiting.try_recv() {
                Ok(Submission::Commit { changes, answer }) if changes.bytes > ALONE_BYTES => {
                    self.too_large = Some((changes, answer));
                    return false;
                }
                Ok(Submission::Commit { changes, answer }) => {
                    rows += changes.rows.len();
                    group.push((changes, answer));
                }
                Ok(Submission::Stop) => return true,
                Err(_) => break,
            }
        }
        false
    }

    fn commit_and_answer(&mut self, group: Vec<(Changes, oneshot::Sender<Result<(), StoreError>>)>) {
        let outcome = self.commit(&group).map_err(|source| StoreError::Commit {
            source: Arc::new(source),
        });
        if let Err(error) = &outcome {
            tracing::error!(%error, changes = group.len(), "could not make changes durable");
        }
        for (_, answer) in group {
            // Nobody may be waiting any more: the caller went away, its changes stay.
            let _ = answer.send(outcome.clone());
        }
    }

    fn commit(
        &self,
        group: &[(Changes, oneshot::Sender<Result<(), StoreError>>)],
    ) -> Result<(), microdb::Error> {
        let mut book = *self.volume.book();
        let mut arrived = Vec::new();
        let mut batch = self.volume.db.batch();
        for (changes, _) in group {
            for row in &changes.rows {
                let table = self.volume.table(row.table);
                match &row.value {
                    Some(value) => batch.put(table, row.key.bytes(), value),
                    None => batch.delete(table, row.key.bytes()),
                };
            }
            arrived.extend(changes.arrived.as_ref());
            if let Some((before, after)) = changes.moved {
                if let Some(before) = before {
                    book.orders[before as usize] = book.orders[before as usize].saturating_sub(1);
                }
                book.orders[after as usize] += 1;
            }
            book.stat_files += changes.stat_files;
            book.expired_page = changes.expired_page.unwrap_or(book.expired_page);
        }
        if !arrived.is_empty() {
            let page = book.next_page.to_be_bytes();
            batch.put(
                self.volume.table(Table::Arrivals),
                page,
                rows::encode_arrivals(arrived.into_iter()),
            );
            book.next_page += 1;
        }
        batch.put(self.volume.table(Table::Meta), BOOK, rows::encode_book(&book));
        // Durable from here, and visible with it: a sync commit is published after its sync.
        batch.commit()?;
        *self.volume.book() = book;
        Ok(())
    }
}
