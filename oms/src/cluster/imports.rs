//! The target's side of a move: lay rows aside, compare, and take them in once the ring says so; and the source's
//! cleaning up after it.
//!
//! Rows that arrive lie in a table of their own, under `source, table, key`, where nothing looks at them; the note
//! `arriving` says which move they are of. When the volume is next furnished, the cluster's state decides: the move is
//! committed, and the rows are put where they belong, piece by piece, each piece taken out in the batch that puts it in; or the
//! move is under way, and they stay; or it was undone, and they are forgotten.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::exports::{END, HEAD_BYTES, Sum};
use super::{ClusterState, ExportRequest};
use crate::changes::{ARRIVING, CATALOGUE, Changes, PURGE, STATS_FORGOTTEN, STOCK_HEAD, TABLES, Table};
use crate::error::{StoreError, with_reasons};
use crate::process;
use crate::rows::{self, RowFault};
use crate::sheet::Sheet;
use crate::slots::Slots;
use crate::store::{Store, order_id, u32_key};

/// Rows laid aside, or taken in, by one batch.
const ROWS_A_BATCH: usize = 2_000;
/// Bytes of rows laid aside, or taken in, by one batch.
const BYTES_A_BATCH: usize = 1 << 20;
/// Longest key or value of a row: a store's column of a million products.
const FIELD_BYTES_MAX: usize = 16 << 20;

/// What is asked of a volume that gets slots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImportRequest {
    /// Where the source's node answers.
    pub(crate) address: SocketAddr,
    /// The source.
    pub(crate) volume: String,
    /// Tells the sources of one move apart.
    pub(crate) source: u8,
    /// What to ask of it.
    pub(crate) export: ExportRequest,
}

/// What was laid aside and compared.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Imported {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// Why slots could not be taken over.
#[derive(Debug)]
pub(crate) enum ImportError {
    Store(StoreError),
    Stream(String),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportError::Store(error) => f.write_str(&with_reasons(error)),
            ImportError::Stream(reason) => write!(f, "the copy of the slots is no good: {reason}"),
        }
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> ImportError {
        ImportError::Store(error)
    }
}

/// Lays aside what a source says, and compares what lies there with what it said.
pub(crate) async fn import<B>(
    store: &Arc<Store>,
    request: &ImportRequest,
    mut body: B,
) -> Result<Imported, ImportError>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    use http_body_util::BodyExt;
    let id = request.export.id.to_be_bytes();
    let note = store.note(ARRIVING)?;
    if note.as_deref() != Some(&id) {
        let clearing = Arc::clone(store);
        blocking(move || clearing.clear_arriving()).await?;
        let mut changes = Changes::default();
        changes.put_raw(Table::Meta, ARRIVING, &id);
        store.permit().await?.send(changes).durable().await?;
    }
    let mut reader = Reader::new(request.source);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ImportError::Stream(format!("it broke off: {error}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        bytes += piece.len() as u64;
        reader.feed(&piece)?;
        while let Some(rows) = reader.batch(false) {
            let store = Arc::clone(store);
            blocking(move || store.lay_aside(&rows)).await?;
        }
    }
    let rest = reader.batch(true);
    let Some(said) = reader.end else {
        return Err(ImportError::Stream("it ended before its end".to_owned()));
    };
    let (store, source) = (Arc::clone(store), request.source);
    let found = blocking(move || {
        if let Some(rows) = rest {
            store.lay_aside(&rows)?;
        }
        store.sync()?;
        let mut found = Sum::default();
        store.each_row(Table::Arriving, |key, value| {
            if let [of, table, key @ ..] = key
                && *of == source
            {
                found.add(*table, key, value);
            }
            Ok::<(), StoreError>(())
        })?;
        Ok(found)
    })
    .await?;
    if found != said {
        return Err(ImportError::Stream(format!(
            "{said:?} was said and {found:?} lies here"
        )));
    }
    Ok(Imported {
        rows: found.rows,
        bytes,
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    // A panic there has been reported; the volume is as good as closed to this caller.
    process::blocking(work).await.unwrap_or(Err(StoreError::Closed))
}

/// Rows under the keys under which they are laid aside.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Takes a stream apart.
struct Reader {
    source: u8,
    left: BytesMut,
    rows: Rows,
    bytes: usize,
    end: Option<Sum>,
}

impl Reader {
    fn new(source: u8) -> Reader {
        Reader {
            source,
            left: BytesMut::new(),
            rows: Vec::new(),
            bytes: 0,
            end: None,
        }
    }

    fn feed(&mut self, piece: &[u8]) -> Result<(), ImportError> {
        let wrong = |what: &str| Err(ImportError::Stream(what.to_owned()));
        self.left.extend_from_slice(piece);
        while let Some((head, rest)) = self.left.split_first_chunk::<HEAD_BYTES>() {
            if self.end.is_some() {
                return wrong("it goes on after its end");
            }
            let [table, k0, k1, k2, k3, v0, v1, v2, v3] = *head;
            let key_bytes = u32::from_le_bytes([k0, k1, k2, k3]) as usize;
            let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
            if key_bytes > FIELD_BYTES_MAX || value_bytes > FIELD_BYTES_MAX {
                return wrong("a row in it is too long");
            }
            if rest.len() < key_bytes + value_bytes {
                return Ok(());
            }
            self.left.advance(HEAD_BYTES);
            let key = self.left.split_to(key_bytes);
            let value = self.left.split_to(value_bytes);
            if table == END {
                let (Some(rows), Some(digest)) = (key.first_chunk::<8>(), key.last_chunk::<16>()) else {
                    return wrong("its end is too short");
                };
                self.end = Some(Sum {
                    rows: u64::from_le_bytes(*rows),
                    digest: u128::from_le_bytes(*digest),
                });
                continue;
            }
            let mut name = Vec::with_capacity(2 + key.len());
            name.extend_from_slice(&[self.source, table]);
            name.extend_from_slice(&key);
            self.bytes += name.len() + value.len();
            self.rows.push((name, value.to_vec()));
        }
        Ok(())
    }

    /// The rows read so far, if they are enough for a batch or the last.
    fn batch(&mut self, is_last: bool) -> Option<Rows> {
        let is_enough = self.rows.len() >= ROWS_A_BATCH || self.bytes >= BYTES_A_BATCH;
        (is_enough || (is_last && !self.rows.is_empty())).then(|| {
            self.bytes = 0;
            std::mem::take(&mut self.rows)
        })
    }
}

/// Brings a volume in line with the cluster's state before it is furnished; nobody else may be at work in it. True if orders of
/// slots that went away are still to be purged.
pub(crate) async fn settle(
    store: &Arc<Store>,
    slots: &Arc<Slots>,
    state: &ClusterState,
) -> Result<bool, StoreError> {
    let arriving = store
        .note(ARRIVING)?
        .and_then(|note| Some(u64::from_be_bytes(*note.first_chunk()?)));
    let under_way = state.moving.as_ref().map(|moving| moving.id);
    if let Some(id) = arriving.filter(|id| Some(*id) != under_way) {
        if id == state.committed {
            adopt(store, slots).await?;
        } else {
            let clearing = Arc::clone(store);
            blocking(move || clearing.clear_arriving()).await?;
        }
        let mut changes = Changes::default();
        changes.remove(Table::Meta, ARRIVING);
        store.permit().await?.send(changes).durable().await?;
    }
    let must_purge = store.note(PURGE)?.is_some();
    if must_purge {
        let (store, slots, handle) = (Arc::clone(store), Arc::clone(slots), Handle::current());
        blocking(move || purge_open(&store, &slots, &handle)).await?;
    }
    Ok(must_purge)
}

/// Puts what was laid aside where it belongs.
async fn adopt(store: &Arc<Store>, slots: &Arc<Slots>) -> Result<(), StoreError> {
    let (store, slots, handle) = (Arc::clone(store), Arc::clone(slots), Handle::current());
    blocking(move || {
        let mut sender = Sender::new(&store, &handle);
        let mut stock = ArrivedStock::default();
        store.each_row(Table::Arriving, |name, value| {
            let Some(([source, code], key)) = name.split_first_chunk::<2>() else {
                return Ok(());
            };
            let Some((table, table_name)) = TABLES.get(usize::from(*code)).copied() else {
                return Ok(());
            };
            let fault = |fault| broken(table_name, key, fault);
            match table {
                Table::Meta if key == STATS_FORGOTTEN => {}
                Table::Stock | Table::Meta => return stock.take(*source, table, key, value, name),
                Table::Orders => {
                    let id = order_id(key).map_err(fault)?;
                    let order = rows::decode_order(id, value).map_err(fault)?;
                    sender.changes.came(order.id.clone(), order.state);
                }
                Table::StatFiles => sender.changes.stat_files_moved(1),
                _ => {}
            }
            sender.changes.put_raw(table, key, value);
            sender.changes.remove(Table::Arriving, name);
            sender.send_if_full()
        })?;
        stock.put(&store, &slots, &mut sender.changes)?;
        sender.send()
    })
    .await
}

fn broken(table: &'static str, key: &[u8], fault: RowFault) -> StoreError {
    StoreError::Row {
        table,
        key: String::from_utf8_lossy(key).into_owned(),
        fault,
    }
}

/// Sends changes to the committer from a thread that may wait.
struct Sender<'a> {
    store: &'a Store,
    handle: &'a Handle,
    changes: Changes,
}

impl<'a> Sender<'a> {
    fn new(store: &'a Store, handle: &'a Handle) -> Sender<'a> {
        Sender {
            store,
            handle,
            changes: Changes::default(),
        }
    }

    fn send_if_full(&mut self) -> Result<(), StoreError> {
        if self.changes.rows().len() < 2 * ROWS_A_BATCH && self.changes.bytes() < BYTES_A_BATCH {
            return Ok(());
        }
        self.send()
    }

    fn send(&mut self) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut self.changes);
        self.handle.block_on(async {
            let ticket = self.store.permit().await?.send(changes);
            ticket.durable().await
        })
    }
}

/// The stock that arrived: columns by the catalogues of their sources.
#[derive(Default)]
struct ArrivedStock {
    catalogues: BTreeMap<u8, Vec<u32>>,
    columns: Vec<(u8, u32, Vec<i32>)>,
    heads: Vec<crate::stock::StockHead>,
    names: Vec<Vec<u8>>,
}

impl ArrivedStock {
    fn take(
        &mut self,
        source: u8,
        table: Table,
        key: &[u8],
        value: &[u8],
        name: &[u8],
    ) -> Result<(), StoreError> {
        let fault = |fault| broken("arriving", key, fault);
        self.names.push(name.to_vec());
        if table == Table::Meta {
            if key == STOCK_HEAD {
                self.heads.push(rows::decode_stock_head(value).map_err(fault)?);
            }
        } else if key == CATALOGUE {
            self.catalogues
                .insert(source, rows::decode_catalogue(value).map_err(fault)?);
        } else {
            let store = u32_key(key).map_err(fault)?;
            self.columns
                .push((source, store, rows::decode_quantities(value).map_err(fault)?));
        }
        Ok(())
    }

    /// Adds the stores to the stock that is here, under one catalogue.
    fn put(self, store: &Store, slots: &Slots, changes: &mut Changes) -> Result<(), StoreError> {
        // The stores that arrive are here by the ring, and may lie about from an earlier time: what arrived is newer.
        let mut sheet: Sheet = store.sheet(slots)?;
        let mut touched = std::collections::BTreeSet::new();
        for (source, id, quantities) in &self.columns {
            let products = self.catalogues.get(source).map_or(&[][..], Vec::as_slice);
            sheet.forget_store(*id);
            for (product, quantity) in products.iter().zip(quantities) {
                let cell = [*product, *id, (*quantity).max(0) as u32];
                sheet.set(cell).map_err(|_| {
                    let expected = "a cell within the limits";
                    broken("arriving", &id.to_be_bytes(), RowFault { offset: 0, expected })
                })?;
            }
            touched.insert(*id);
        }
        if !touched.is_empty() {
            changes.stores(&sheet, &touched);
        }
        let mut head = store.stock_head()?;
        for other in &self.heads {
            head = head.joined_with(other);
        }
        changes.stock_head(&head);
        for name in self.names {
            changes.remove(Table::Arriving, &name);
        }
        Ok(())
    }
}

/// Takes out what open orders and stores of other volumes' slots left behind; as much as is kept in memory, not more.
fn purge_open(store: &Store, slots: &Slots, handle: &Handle) -> Result<(), StoreError> {
    let mut sender = Sender::new(store, handle);
    let stays = |table: Table, key: &[u8], value: &[u8]| {
        Ok(match table {
            Table::Settlements => slots.has_order(&order_id(key)?),
            Table::Outbox => rows::decode_message_key(key).is_some_and(|(order, _)| slots.has_order(&order)),
            Table::Reservations => slots.has_store(rows::decode_reservation(order_id(key)?, value)?.store),
            Table::Deliveries => slots.has_store(rows::decode_delivery(value)?.store),
            Table::Stock => key == CATALOGUE || slots.has_store(u32_key(key)?),
            Table::Stats | Table::StatFiles => slots.has_statistics(),
            _ => true,
        })
    };
    for (table, name) in TABLES {
        if matches!(
            table,
            Table::Orders | Table::Arrivals | Table::Meta | Table::Arriving | Table::Answers
        ) {
            continue;
        }
        store.each_row(table, |key, value| {
            if stays(table, key, value).map_err(|fault| broken(name, key, fault))? {
                return Ok(());
            }
            if table == Table::StatFiles {
                sender.changes.stat_files_moved(-1);
            }
            sender.changes.remove(table, key);
            sender.send_if_full()
        })?;
    }
    sender.send()
}

/// Takes out the orders of other volumes' slots, and their places in the pages of arrivals, until told to stop; then
/// the note that there are any. May run beside everything else: nobody looks at these rows.
pub(crate) async fn purge_orders(
    store: Arc<Store>,
    slots: Arc<Slots>,
    is_stopped: impl Fn() -> bool + Send + 'static,
) -> Result<bool, StoreError> {
    let handle = Handle::current();
    blocking(move || {
        let mut sender = Sender::new(&store, &handle);
        let mut stopped = false;
        store.each_row(Table::Orders, |key, value| {
            let fault = |fault| broken("orders", key, fault);
            let id = order_id(key).map_err(fault)?;
            stopped = stopped || is_stopped();
            if stopped || slots.has_order(&id) {
                return Ok(());
            }
            let state = rows::decode_order(id.clone(), value).map_err(fault)?.state;
            sender.changes.went(&id, state);
            sender.send_if_full()
        })?;
        store.each_row(Table::Arrivals, |key, value| {
            stopped = stopped || is_stopped();
            if stopped {
                return Ok(());
            }
            let ids = rows::decode_arrivals(value).map_err(|fault| broken("arrivals", key, fault))?;
            let stay: Vec<_> = ids.iter().filter(|id| slots.has_order(id)).collect();
            if stay.len() == ids.len() {
                return Ok(());
            }
            if stay.is_empty() {
                sender.changes.remove(Table::Arrivals, key);
            } else {
                let mut page = Vec::new();
                rows::encode_arrivals(stay.into_iter(), &mut page);
                sender.changes.put_raw(Table::Arrivals, key, &page);
            }
            sender.send_if_full()
        })?;
        if !stopped {
            sender.changes.remove(Table::Meta, PURGE);
        }
        sender.send()?;
        Ok(!stopped)
    })
    .await
}
