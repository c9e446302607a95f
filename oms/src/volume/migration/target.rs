//! The target of a migration: requests rows page by page, stages and compares them, and activates
//! them once the ring gives their slots to this volume.
//!
//! **Invariants**
//! - The rows of a page are stored by one commit (`staged_rows`). Once this work has begun, it is
//!   completed even if the request ends.
//! - Each page is compared twice by count and digest: as received, and as stored.
//! - The state in memory is prepared during the copy (`StagedState`). So the time of activation
//!   hardly grows with the number of open orders.
//! - The staged rows of a migration that is undone are removed by `cleanup`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::{HeaderMap, Method};
use imt_ring::NodeName;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::Instant;

use crate::cluster::SlotSet;
use crate::cluster::peer_call::{PeerCall, VolumeCall, VolumeQuestion};
use crate::cluster::peer_client::Peers;
use crate::error::{StorageError, with_causes};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::storage::change_feed::RawRow;
use crate::storage::volume::Volume;
use crate::storage::write_batch::CLEANUP;
use crate::volume::migration::cleanup::StaleRows;
use crate::volume::migration::source::{ExportRequest, Page, Sum};
use crate::volume::migration::staged_rows::{StagedPage, StagedRows, StagingNote};
use crate::volume::migration::staged_state::StagedState;
use crate::volume::server::VolumeServer;

/// Timeout of a request for a page. A source usually makes a page within milliseconds.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// The request to copy slots, sent to the server of the target volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImportRequest {
    /// Address of the node that serves the source volume.
    pub(crate) address: SocketAddr,
    /// Name of the source volume.
    pub(crate) volume: NodeName,
    /// Number of this pair of source and target volume in the migration.
    pub(crate) source: u8,
    /// Id of the migration.
    pub(crate) id: u64,
    /// The slots to copy, as ranges of first and last slot.
    pub(crate) slots: Vec<(u32, u32)>,
    /// `true` if the source must seal the slots and the copy must be completed.
    pub(crate) seal: bool,
}

impl VolumeQuestion for ImportRequest {
    const CALL: VolumeCall = VolumeCall::Import;
    type Answer = Imported;
}

/// The request for the progress of the copy to a volume.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct AskProgress;

impl VolumeQuestion for AskProgress {
    const CALL: VolumeCall = VolumeCall::Progress;
    type Answer = Progress;
}

/// The rows that were copied to a volume and compared so far: from one source in the answer to an
/// `ImportRequest`, from all sources in `Progress`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Imported {
    pub(crate) rows: u64,
    /// Estimated number of rows of the whole copy.
    pub(crate) about: u64,
    pub(crate) bytes: u64,
}

/// The progress of the copy to a volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) copied: Imported,
    /// Numbers of the sources from which a copy is running. A caller that waits for the copy from a
    /// source can stop waiting if the number of that source is missing here.
    pub(crate) importing: BTreeSet<u8>,
}

/// A guard that keeps the number of a source in `Progress::importing` until the guard is dropped.
struct Importing<'a> {
    progress: &'a Mutex<Progress>,
    source: u8,
}

impl<'a> Importing<'a> {
    fn begin(progress: &'a Mutex<Progress>, source: u8) -> Importing<'a> {
        progress.lock().importing.insert(source);
        Importing { progress, source }
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.progress.lock().importing.remove(&self.source);
    }
}

/// The reason why slots could not be copied.
#[derive(Debug, Error)]
pub(crate) enum ImportError {
    #[error("{}", with_causes(.0))]
    Storage(#[from] StorageError),
    #[error("the copy of the slots failed: {0}")]
    Copy(String),
}

/// The incoming copy of a migration, from all of its sources.
pub(crate) struct Incoming {
    pub(crate) id: u64,
    pub(crate) state: StagedState,
    pub(crate) note: StagingNote,
    /// The staged rows of stock, rearranged once the copy is complete. `None` before that.
    pub(crate) staged: Option<StagedRows>,
    sources: BTreeMap<u8, Source>,
    /// The time at which the copy from the first source began.
    begun: Option<Instant>,
}

#[derive(Default)]
struct Source {
    next: u64,
    /// The slots that come from this source.
    slots: SlotSet,
    copied: Imported,
}

impl Incoming {
    /// Creates the incoming copy of a migration, without any rows.
    pub(crate) fn new(id: u64) -> Incoming {
        let note = StagingNote {
            id,
            ..StagingNote::default()
        };
        Incoming {
            id,
            note,
            state: StagedState::default(),
            staged: None,
            sources: BTreeMap::new(),
            begun: None,
        }
    }

    /// Returns the sum of the rows copied so far from all sources.
    pub(crate) fn copied(&self) -> Imported {
        let add = |sum: Imported, source: &Source| Imported {
            rows: sum.rows + source.copied.rows,
            about: sum.about + source.copied.about,
            bytes: sum.bytes + source.copied.bytes,
        };
        self.sources.values().fold(Imported::default(), add)
    }

    /// Returns the time at which the rows copied so far, from all sources together, would have
    /// arrived at the given rate. `None` before the copy has begun.
    fn due(&self, rows_per_second: u64) -> Option<Instant> {
        let seconds = self.copied().rows as f64 / rows_per_second.max(1) as f64;
        self.begun.map(|begun| begun + Duration::from_secs_f64(seconds))
    }
}

/// Copies rows until the source has no further rows at the moment. A later call continues at the
/// next page. With `seal`, the source has sealed the slots, so the copy is then complete.
pub(crate) async fn import(
    peers: &Peers,
    server: &Arc<VolumeServer>,
    request: &ImportRequest,
) -> Result<Imported, ImportError> {
    let _importing = Importing::begin(&server.progress, request.source);
    let first = next_page(server, request).await?;
    let mut page = fetch(peers, server, request, first).await?;
    for number in first.. {
        if page.at_end {
            let copied = store_page(server, request, number, page).await?;
            if request.seal {
                fit_stock(server, request.id).await?;
            }
            return Ok(copied);
        }
        // The next page is requested while the current page is being committed.
        let (copied, next) = tokio::join!(
            store_page(server, request, number, page),
            fetch(peers, server, request, number + 1)
        );
        copied?;
        keep_pace(server).await;
        page = next?;
    }
    Err(migration_ended())
}

fn migration_ended() -> ImportError {
    ImportError::Copy("the migration has ended".to_owned())
}

/// Returns the number of the next page to request from a source.
async fn next_page(server: &VolumeServer, request: &ImportRequest) -> Result<u64, ImportError> {
    let mut incoming = server.incoming.lock().await;
    match incoming.as_mut().filter(|incoming| incoming.id == request.id) {
        Some(incoming) => {
            let source = incoming.sources.entry(request.source).or_insert_with(|| Source {
                slots: SlotSet::of(&request.slots, server.ring().slots()),
                ..Source::default()
            });
            let next = source.next;
            incoming.begun.get_or_insert_with(Instant::now);
            Ok(next)
        }
        None => Err(migration_ended()),
    }
}

async fn fetch(
    peers: &Peers,
    server: &VolumeServer,
    request: &ImportRequest,
    page: u64,
) -> Result<Page, ImportError> {
    let export = ExportRequest {
        id: request.id,
        to: server.volume.clone(),
        slots: request.slots.clone(),
        page,
        seal: request.seal,
    };
    let wrong = |reason: String| ImportError::Copy(format!("{}: {reason}", request.volume));
    let question = serde_json::to_vec(&export).map_err(|error| wrong(error.to_string()))?;
    let path = PeerCall::Volume(request.volume.clone(), VolumeCall::Export).to_string();
    let until = Instant::now() + PAGE_TIMEOUT;
    let answer = peers
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

/// Waits if the rows of all sources arrived faster than the configured maximum rate.
async fn keep_pace(server: &VolumeServer) {
    let Some(rows_per_second) = server.move_rows_per_second else {
        return;
    };
    let due = {
        let incoming = server.incoming.lock().await;
        incoming
            .as_ref()
            .and_then(|incoming| incoming.due(rows_per_second))
    };
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

/// Commits the rows of a page, reads them back, and compares them with the page.
///
/// The work is finished even if the request is dropped. Otherwise the lock of `incoming` could be
/// released before the rows are durable. If the migration was undone then, the cleanup could run
/// before these rows are stored, and leave them behind.
async fn store_page(
    server: &Arc<VolumeServer>,
    request: &ImportRequest,
    number: u64,
    page: Page,
) -> Result<Imported, ImportError> {
    if seeded("page-dropped") {
        return store_page_locked(server, request, number, page).await;
    }
    let (server, request) = (Arc::clone(server), request.clone());
    let storing = async move { store_page_locked(&server, &request, number, page).await };
    let stored = runtime::to_completion(storing).await;
    // `storing` returns nothing if it panicked. The panic has been logged, and the caller gets the
    // error of a closed volume.
    stored.unwrap_or(Err(ImportError::Storage(StorageError::Closed)))
}

async fn store_page_locked(
    server: &VolumeServer,
    request: &ImportRequest,
    number: u64,
    page: Page,
) -> Result<Imported, ImportError> {
    let state = server.app.state();
    let mut guard = server.incoming.lock().await;
    // This function holds the lock of `incoming` until the page is durable. The end of a migration
    // needs the lock, so it waits for the page.
    let Some(incoming) = guard.as_mut().filter(|incoming| incoming.id == request.id) else {
        return Err(migration_ended());
    };
    let source = incoming.sources.entry(request.source).or_default();
    if source.next != number {
        return Err(ImportError::Copy("pages arrived out of order".to_owned()));
    }
    let (note, tag, staging) = (incoming.note, request.source, Arc::clone(state));
    let (page, staged) = blocking(move || {
        let staged = StagedPage::of(&staging, &page, tag, note)?;
        Ok((page, staged))
    })
    .await?;
    let StagedPage { batch, note, written } = staged;
    if !batch.is_empty() {
        state.storage.permit().await?.send(batch).durable().await?;
    }
    let reading = Arc::clone(&state.storage);
    let (page, stored, expected) = blocking(move || {
        let (mut stored, mut expected) = (Sum::default(), Sum::default());
        for (row, key) in page.rows.iter().zip(&written) {
            let Some(place) = key else { continue };
            expected.add(row);
            let value = reading.raw(place.0, place.1.as_deref().unwrap_or(&row.key))?;
            stored.add(&RawRow {
                table: row.table,
                key: row.key.clone(),
                value,
            });
        }
        Ok((page, stored, expected))
    })
    .await?;
    if stored != expected {
        return Err(ImportError::Copy(format!(
            "{expected:?} was written, but {stored:?} is stored"
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
    server.progress.lock().copied = incoming.copied();
    Ok(copied)
}

/// Prepares the staged rows of stock for activation. Returns an error if the stock would become too
/// large, while the migration can still be undone.
async fn fit_stock(server: &VolumeServer, id: u64) -> Result<(), ImportError> {
    let mut guard = server.incoming.lock().await;
    let Some(incoming) = guard.as_mut().filter(|incoming| incoming.id == id) else {
        return Err(migration_ended());
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

/// Returns the id of the migration that staged rows in a volume. `None` if the volume has no staged
/// rows.
pub(crate) async fn staged_migration(storage: &Arc<Volume>) -> Result<Option<u64>, StorageError> {
    let reading = Arc::clone(storage);
    let note = blocking(move || StagingNote::of(&reading)).await?;
    Ok(note.map(|note| note.id))
}

/// Activates the staged rows of an unfinished migration if its id is `committed`, the id of the
/// migration that led to the cluster's current ring (`ClusterState::committed`). Call this before
/// the volume is served. Returns the kind of the volume's stale rows, or `None` if there can be
/// none.
pub(crate) async fn resolve_unfinished(
    storage: &Arc<Volume>,
    committed: u64,
) -> Result<Option<StaleRows>, StorageError> {
    let reading = Arc::clone(storage);
    let note = blocking(move || StagingNote::of(&reading)).await?;
    let must_clean_up = storage.note(CLEANUP)?.is_some();
    match note {
        Some(note) if note.id == committed => {
            let reading = Arc::clone(storage);
            let staged = blocking(move || StagedRows::read(&reading, &note)).await?;
            storage.permit().await?.send(staged.batch).durable().await?;
            Ok(must_clean_up.then_some(StaleRows::Counted))
        }
        Some(_) => Ok(Some(StaleRows::NeverActive)),
        None => Ok(must_clean_up.then_some(StaleRows::Counted)),
    }
}

/// Limits expiry to the current pages of arrivals, because later pages may list staged orders.
/// Expiry skips orders that are not active, and never returns to a finished page. So it would miss
/// these orders.
pub(crate) fn pause_expiry(storage: &Volume) {
    storage
        .first_inactive_page
        .store(storage.counters().next_page, Ordering::Release);
}

/// Runs work on a blocking thread. Returns `Closed` if the work panics.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    // There is no result if `work` panicked. The panic has been logged, and the caller gets the
    // error of a closed volume.
    runtime::blocking(work).await.unwrap_or(Err(StorageError::Closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_of_a_migration_share_the_rate_of_the_copy() {
        let mut incoming = Incoming::new(1);
        assert_eq!(incoming.due(100), None);
        let begun = Instant::now();
        incoming.begun = Some(begun);
        for source in 0..3 {
            let copied = Imported {
                rows: 100,
                ..Imported::default()
            };
            let source_state = Source {
                copied,
                ..Source::default()
            };
            incoming.sources.insert(source, source_state);
        }
        assert_eq!(incoming.due(100), Some(begun + Duration::from_secs(3)));
    }
}
