//! The target's side of a move: rows are asked for page by page, laid where they belong, compared,
//! and in force once the ring says so.
//!
//! Nobody looks at rows of slots that are elsewhere, so most rows are laid in place at once; stock
//! lies aside until its products are those of this volume (`arrived_stock`). Each page is one
//! commit, with a note that says which move its rows are of and what they will add to the volume's
//! counts. Every page is compared twice, by count and digest: as it came, and as it lies here. What
//! will be in memory is made ready there (`Arrived`), so that putting it in force takes
//! milliseconds however long the copy took. A move that is undone leaves rubbish, which is purged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cluster::SlotSet;
use crate::control::handle::ClusterHandle;
use crate::domain::stock::StockHead;
use crate::error::{StorageError, with_reasons};
use crate::runtime;
use crate::storage::change_feed::RawRow;
use crate::storage::codec::{self, DecodeError};
use crate::storage::owned_slots::Home;
use crate::storage::volume::Volume;
use crate::storage::write_batch::{ARRIVING, OrderCounts, STATS_FORGOTTEN, Table, WriteBatch};
use crate::volume::migration::source::{ExportRequest, Page, Sum, broken};
use crate::volume::migration::staged_state::StagedState;
use crate::volume::migration::staged_stock::StagedStock;
use crate::volume::server::VolumeServer;
use crate::volume::state::VolumeState;

/// How long a page may take to come: a source reads it in milliseconds.
const PAGE_PATIENCE: Duration = Duration::from_secs(20);

/// What is asked of a volume that gets slots.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImportRequest {
    /// Where the source's node answers.
    pub(crate) address: SocketAddr,
    /// The source.
    pub(crate) volume: String,
    /// Tells the sources of one move apart.
    pub(crate) source: u8,
    /// The move.
    pub(crate) id: u64,
    /// The slots, as runs.
    pub(crate) slots: Vec<(u32, u32)>,
    /// The slots are to be sealed, and the rest to be copied.
    pub(crate) seal: bool,
}

/// What was copied and compared so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Imported {
    pub(crate) rows: u64,
    pub(crate) about: u64,
    pub(crate) bytes: u64,
}

/// How far a volume is with the slots that are on their way to it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) copied: Imported,
    /// Sources that are being copied from right now: whoever waits for another one waits in vain.
    pub(crate) importing: BTreeSet<u8>,
}

/// Says in a volume's progress that a source is being copied from.
struct Importing<'a> {
    progress: &'a Mutex<Progress>,
    source: u8,
}

impl<'a> Importing<'a> {
    fn begin(progress: &'a Mutex<Progress>, source: u8) -> Importing<'a> {
        lock(progress).importing.insert(source);
        Importing { progress, source }
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        lock(self.progress).importing.remove(&self.source);
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why slots could not be taken over.
#[derive(Debug)]
pub(crate) enum ImportError {
    Storage(StorageError),
    Copy(String),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportError::Storage(error) => f.write_str(&with_reasons(error)),
            ImportError::Copy(reason) => write!(f, "the copy of the slots is no good: {reason}"),
        }
    }
}

impl From<StorageError> for ImportError {
    fn from(error: StorageError) -> ImportError {
        ImportError::Storage(error)
    }
}

/// Slots on their way to a volume.
pub(crate) struct Incoming {
    pub(crate) id: u64,
    pub(crate) state: StagedState,
    pub(crate) note: ArrivingNote,
    /// What lies aside, once nothing more comes.
    pub(crate) staged: Option<StagedRows>,
    sources: BTreeMap<u8, Source>,
}

#[derive(Default)]
struct Source {
    next: u64,
    /// What comes from it.
    slots: SlotSet,
    copied: Imported,
    begun: Option<Instant>,
}

/// Which move's rows lie in a volume, and what they add to its counts once they are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ArrivingNote {
    pub(crate) id: u64,
    pub(crate) orders: OrderCounts,
    pub(crate) stat_files: i64,
}

/// Bytes of a note before it counted payments to be refunded: the move, a count for each of 11
/// states, and the statistics files.
const NOTE_BYTES_V1: usize = 13 * 8;

impl ArrivingNote {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.id.to_be_bytes().to_vec();
        let others = [self.stat_files, self.orders.extra_payments];
        for count in self.orders.by_state.iter().chain(&others) {
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<ArrivingNote, DecodeError> {
        let mut numbers = bytes
            .chunks(8)
            .map(|number| Some(u64::from_be_bytes(number.try_into().ok()?)));
        let mut next = || {
            numbers.next().flatten().ok_or(DecodeError {
                offset: 0,
                expected: "a move and what its rows add to the counts",
            })
        };
        let mut note = ArrivingNote {
            id: next()?,
            ..ArrivingNote::default()
        };
        for count in &mut note.orders.by_state {
            *count = next()?.cast_signed();
        }
        note.stat_files = next()?.cast_signed();
        // A note of an earlier version ends here.
        if bytes.len() > NOTE_BYTES_V1 {
            note.orders.extra_payments = next()?.cast_signed();
        }
        Ok(note)
    }

    /// The note of a volume, if rows of a move lie in it.
    pub(crate) fn of(storage: &Volume) -> Result<Option<ArrivingNote>, StorageError> {
        let note = storage.note(ARRIVING)?;
        note.map(|note| ArrivingNote::decode(&note))
            .transpose()
            .map_err(|fault| broken(Table::Meta, ARRIVING, fault))
    }

    /// Has what arrived counted from here on, and the note gone.
    pub(crate) fn adopt(&self, batch: &mut WriteBatch) {
        batch.add_counts(&self.orders);
        batch.stat_files_moved(self.stat_files);
        batch.remove(Table::Meta, ARRIVING);
    }
}

impl Incoming {
    /// Nothing has come yet of this move.
    pub(crate) fn new(id: u64) -> Incoming {
        let note = ArrivingNote {
            id,
            ..ArrivingNote::default()
        };
        Incoming {
            id,
            note,
            state: StagedState::default(),
            staged: None,
            sources: BTreeMap::new(),
        }
    }

    /// What has come so far, of all sources.
    pub(crate) fn copied(&self) -> Imported {
        let add = |sum: Imported, source: &Source| Imported {
            rows: sum.rows + source.copied.rows,
            about: sum.about + source.copied.about,
            bytes: sum.bytes + source.copied.bytes,
        };
        self.sources.values().fold(Imported::default(), add)
    }
}

/// Copies until nothing is left for now; called again, it goes on from there. With `seal` it is the
/// end of the copy.
pub(crate) async fn import(
    cluster: &Arc<ClusterHandle>,
    server: &Arc<VolumeServer>,
    request: &ImportRequest,
) -> Result<Imported, ImportError> {
    let _importing = Importing::begin(&server.progress, request.source);
    let first = next_page(server, request).await?;
    let mut page = fetch(cluster, server, request, first).await?;
    for number in first.. {
        if page.at_end {
            let copied = lay(server, request, number, page).await?;
            if request.seal {
                fit_stock(server, request.id).await?;
            }
            return Ok(copied);
        }
        // The source reads the next page while this one becomes durable.
        let (copied, next) = tokio::join!(
            lay(server, request, number, page),
            fetch(cluster, server, request, number + 1)
        );
        keep_pace(server, request.source, copied?).await;
        page = next?;
    }
    Err(gone())
}

fn gone() -> ImportError {
    ImportError::Copy("the move is over".to_owned())
}

/// The number of the page that comes next from a source.
async fn next_page(server: &VolumeServer, request: &ImportRequest) -> Result<u64, ImportError> {
    let mut incoming = server.incoming.lock().await;
    match incoming.as_mut().filter(|incoming| incoming.id == request.id) {
        Some(incoming) => {
            let source = incoming.sources.entry(request.source).or_insert_with(|| Source {
                slots: SlotSet::of(&request.slots, server.ring().slots()),
                ..Source::default()
            });
            source.begun.get_or_insert_with(Instant::now);
            Ok(source.next)
        }
        None => Err(gone()),
    }
}

async fn fetch(
    cluster: &ClusterHandle,
    server: &VolumeServer,
    request: &ImportRequest,
    page: u64,
) -> Result<Page, ImportError> {
    let export = ExportRequest {
        id: request.id,
        to: server.volume.to_string(),
        slots: request.slots.clone(),
        page,
        seal: request.seal,
    };
    let wrong = |reason: String| ImportError::Copy(format!("{}: {reason}", request.volume));
    let question = serde_json::to_vec(&export).map_err(|error| wrong(error.to_string()))?;
    let path = format!("/peer/volume/{}/inner/export", request.volume);
    let until = Instant::now() + PAGE_PATIENCE;
    let answer = cluster
        .peers
        .call(
            request.address,
            Method::POST,
            &path,
            &HeaderMap::new(),
            question.into(),
            until,
        )
        .await
        .map_err(|error| wrong(error.0))?;
    if !answer.status.is_success() {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(wrong(format!("{}: {text}", answer.status)));
    }
    Page::decode(&answer.body).map_err(wrong)
}

/// Waits if rows come faster than they may.
async fn keep_pace(server: &VolumeServer, source: u8, copied: Imported) {
    let Some(rows_per_second) = server.move_rows_per_second else {
        return;
    };
    let begun = {
        let incoming = server.incoming.lock().await;
        let source = incoming
            .as_ref()
            .and_then(|incoming| incoming.sources.get(&source));
        source.and_then(|source| source.begun)
    };
    if let Some(begun) = begun {
        let due = Duration::from_secs_f64(copied.rows as f64 / rows_per_second.max(1) as f64);
        tokio::time::sleep_until(begun + due).await;
    }
}

/// Lays a page's rows where they belong, durably, and compares.
async fn lay(
    server: &VolumeServer,
    request: &ImportRequest,
    number: u64,
    page: Page,
) -> Result<Imported, ImportError> {
    let state = server.app.state();
    let mut guard = server.incoming.lock().await;
    // Held until the page is durable: whoever ends the move waits for that.
    let Some(incoming) = guard.as_mut().filter(|incoming| incoming.id == request.id) else {
        return Err(gone());
    };
    let source = incoming.sources.entry(request.source).or_default();
    if source.next != number {
        return Err(ImportError::Copy("pages came out of turn".to_owned()));
    }
    let (note, tag, laying) = (incoming.note, request.source, Arc::clone(state));
    let (page, laid) = blocking(move || {
        let laid = Laid::of(&laying, &page, tag, note)?;
        Ok((page, laid))
    })
    .await?;
    let Laid { batch, note, written } = laid;
    if !batch.is_empty() {
        state.storage.permit().await?.send(batch).durable().await?;
    }
    let reading = Arc::clone(&state.storage);
    let (page, lies, expected) = blocking(move || {
        let (mut lies, mut expected) = (Sum::default(), Sum::default());
        for (row, key) in page.rows.iter().zip(&written) {
            let Some(place) = key else { continue };
            expected.add(row);
            let value = reading.raw(place.0, place.1.as_deref().unwrap_or(&row.key))?;
            lies.add(&RawRow {
                table: row.table,
                key: row.key.clone(),
                value,
            });
        }
        Ok((page, lies, expected))
    })
    .await?;
    if lies != expected {
        return Err(ImportError::Copy(format!(
            "{expected:?} was written and {lies:?} lies here"
        )));
    }
    incoming.note = note;
    incoming.staged = None;
    let source = incoming.sources.entry(request.source).or_default();
    source.next += 1;
    source.copied.rows += page.rows.len() as u64;
    source.copied.about = page.about.max(source.copied.rows);
    source.copied.bytes += page.rows.iter().map(|row| row.bytes() as u64).sum::<u64>();
    let copied = source.copied;
    for row in &page.rows {
        incoming.state.take(state, &source.slots, row)?;
    }
    lock(&server.progress).copied = incoming.copied();
    Ok(copied)
}

/// Where a row was laid: its table, and its key if that is not the row's own.
type Written = Option<(Table, Option<Vec<u8>>)>;

/// A page as it is to be committed.
struct Laid {
    batch: WriteBatch,
    note: ArrivingNote,
    written: Vec<Written>,
}

impl Laid {
    fn of(state: &VolumeState, page: &Page, source: u8, note: ArrivingNote) -> Result<Laid, StorageError> {
        let mut laid = Laid {
            batch: WriteBatch::default(),
            note,
            written: Vec::with_capacity(page.rows.len()),
        };
        for row in &page.rows {
            let written = laid.row(state, row, source)?;
            laid.written.push(written);
        }
        if !laid.batch.is_empty() {
            laid.batch.put_raw(Table::Meta, ARRIVING, &laid.note.encode());
        }
        Ok(laid)
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
                // A key that was used here too, for an order that is here: that answer stays.
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
            let id = crate::storage::volume::order_id(key)?;
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

/// What lies aside, as it is to be put in force.
#[derive(Default)]
pub(crate) struct StagedRows {
    pub(crate) stock: StagedStock,
    pub(crate) batch: WriteBatch,
    /// The volume's products and what is known of its snapshot, to which it was fitted.
    fitted_to: (Vec<u32>, StockHead),
}

impl StagedRows {
    /// Reads what lies aside of a volume and fits it in; nothing of it is in force before its
    /// changes are committed.
    pub(crate) fn read(storage: &Volume, note: &ArrivingNote) -> Result<StagedRows, StorageError> {
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
        note.adopt(&mut batch);
        Ok(StagedRows {
            stock,
            batch,
            fitted_to,
        })
    }

    /// True if the volume's stock still has the products and the age that this was fitted to.
    pub(crate) fn fits(&self, storage: &Volume) -> Result<bool, StorageError> {
        Ok(self.fitted_to == (storage.catalogue()?, storage.stock_head()?))
    }
}

/// Reads what lies aside, for when it will be in force; refuses slots whose stores would make the
/// stock too large, before it is too late to refuse them.
async fn fit_stock(server: &VolumeServer, id: u64) -> Result<(), ImportError> {
    let mut guard = server.incoming.lock().await;
    let Some(incoming) = guard.as_mut().filter(|incoming| incoming.id == id) else {
        return Err(gone());
    };
    let state = server.app.state();
    let (storage, note, stores) = (
        Arc::clone(&state.storage),
        incoming.note,
        state.stock().stores().len(),
    );
    let staged = blocking(move || StagedRows::read(&storage, &note)).await?;
    staged.stock.check(stores).map_err(ImportError::Copy)?;
    incoming.staged = Some(staged);
    Ok(())
}

/// The move of which rows lie in a volume that is not served yet.
pub(crate) async fn arriving_of(storage: &Arc<Volume>) -> Result<Option<u64>, StorageError> {
    let reading = Arc::clone(storage);
    let note = blocking(move || ArrivingNote::of(&reading)).await?;
    Ok(note.map(|note| note.id))
}

/// Brings what a crash left of a move in line with the cluster's state, before a volume is
/// furnished; nobody else may be at work in it. Says whether rubbish lies in the volume, and
/// whether it was counted.
pub(crate) async fn settle(
    storage: &Arc<Volume>,
    committed: u64,
) -> Result<Option<crate::volume::migration::cleanup::StaleRows>, StorageError> {
    use crate::volume::migration::cleanup::StaleRows;
    let reading = Arc::clone(storage);
    let note = blocking(move || ArrivingNote::of(&reading)).await?;
    let must_purge = storage.note(crate::storage::write_batch::PURGE)?.is_some();
    match note {
        Some(note) if note.id == committed => {
            let reading = Arc::clone(storage);
            let staged = blocking(move || StagedRows::read(&reading, &note)).await?;
            storage.permit().await?.send(staged.batch).durable().await?;
            Ok(must_purge.then_some(StaleRows::Counted))
        }
        Some(_) => Ok(Some(StaleRows::NeverInForce)),
        None => Ok(must_purge.then_some(StaleRows::Counted)),
    }
}

/// Where expiry must stop while orders arrive: it would pass over those that are not in force yet.
pub(crate) fn hold_expiry(storage: &Volume) {
    storage
        .first_inactive_page
        .store(storage.counters().next_page, Ordering::Release);
}

/// Does something where a thread may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    // A panic there has been reported; the volume is as good as closed to this caller.
    runtime::blocking(work).await.unwrap_or(Err(StorageError::Closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_again_what_was_written_and_a_broken_one_is_refused() {
        let mut note = ArrivingNote {
            id: 7,
            stat_files: 3,
            ..ArrivingNote::default()
        };
        note.orders.by_state[4] = -5;
        note.orders.by_state[10] = 1 << 40;
        note.orders.extra_payments = -2;
        let bytes = note.encode();
        assert_eq!(ArrivingNote::decode(&bytes).unwrap(), note);
        let mut earlier = note;
        earlier.orders.extra_payments = 0;
        assert_eq!(ArrivingNote::decode(&bytes[..NOTE_BYTES_V1]).unwrap(), earlier);
        for cut in (0..bytes.len()).filter(|cut| *cut != NOTE_BYTES_V1) {
            assert!(ArrivingNote::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
