//! A volume server: one volume that this process serves, with its state and its jobs.
//!
//! **Invariants**
//! - The state in memory is loaded when the server starts. When the ring changes, the server
//!   activates and releases slots (`handover`) and continues to serve all its other slots.
//! - A server first prepares for a migration (`incoming` or a seal), and then checks that the
//!   migration is still under way. Both steps are finished even if the request is dropped. So no
//!   preparation for an ended migration remains.
//! - If a ring changes slots for which the server has not prepared, or both adds and removes slots,
//!   the server stops, and a new server is started from the volume. The same happens if the commit
//!   of activated slots fails.
//! - A step of a migration with a failed commit, for example on a full disk, is repeated. The
//!   reconciler repeats the removal of seals, and the cleanup that of stale rows.
//!
//! Deliberately absent: the choice of the volumes to serve, which the reconciler applies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use imt_ring::{Epoch, NodeName, Ring, Slot};
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::{Authority, ClusterState};
use crate::config::NodeContext;
use crate::domain::sales::Statistics;
use crate::error::{NodeError, StorageError};
use crate::runtime;
use crate::runtime::seeded::seeded;
use crate::runtime::watch;
use crate::storage::owned_slots::Slots;
use crate::storage::volume::Volume;
use crate::storage::write_batch::{CLEANUP, Table, WriteBatch};
use crate::volume::app::App;
use crate::volume::jobs::stat_import::Scanner;
use crate::volume::jobs::{dispatcher, expiry, retention};
use crate::volume::migration::cleanup::{self, StaleRows};
use crate::volume::migration::source::{self, ExportRequest, Exports};
use crate::volume::migration::staged_rows::StagedRows;
use crate::volume::migration::target::{self, Imported, Incoming, Progress};
use crate::volume::remote_stock::{self, RemoteVolumes};
use crate::volume::state::VolumeState;
use crate::volume::transactor::Transactors;
use crate::volume::{borrowing, lending};

/// Longest time for which the close of a volume waits for the cleanup and the queued writes.
/// Usually only an engine that does not answer takes that long.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// Pause before the cleanup is repeated after an error, such as a full disk.
const CLEANUP_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The reason why a volume cannot take part in a migration now.
#[derive(Debug, Error)]
pub(crate) enum MigrationError {
    #[error("the rows of an earlier migration are still being removed")]
    CleaningUp,
    #[error("the migration has ended")]
    Over,
    /// The cluster's state could not be read.
    #[error(transparent)]
    Cluster(NodeError),
    /// The volume could not be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

async fn is_under_way(authority: &Arc<dyn Authority>, id: u64) -> Result<bool, MigrationError> {
    let cluster_state = authority.read().await.map_err(MigrationError::Cluster)?;
    Ok(cluster_state.moving.is_some_and(|moving| moving.id == id))
}

/// Seals the slots that the migration under way takes from a volume. Returns `true` if there are
/// such slots, and `false` if not, or if no migration is under way.
///
/// The rows of these slots may have been copied completely before the volume was closed. A further
/// commit would be missing in the copy.
fn seal_leaving(slots: &Slots, cluster_state: &ClusterState) -> bool {
    let Some(moving) = &cluster_state.moving else {
        return false;
    };
    let leaving: Vec<u32> = slots.lost(&moving.next).map(|slot| slot.0).collect();
    if leaving.is_empty() {
        return false;
    }
    slots.seal(leaving.into_iter(), moving.id);
    true
}

/// One volume that is being served.
pub(crate) struct VolumeServer {
    pub(crate) volume: NodeName,
    pub(crate) app: Arc<App>,
    /// The copies of slots to other volumes.
    pub(crate) exports: Exports,
    /// The copy of slots to this volume. `None` unless the server has prepared for a migration that
    /// brings slots to this volume (`expect`).
    pub(crate) incoming: tokio::sync::Mutex<Option<Incoming>>,
    /// Progress of the copy in `incoming`, readable without its lock.
    pub(crate) progress: Mutex<Progress>,
    /// Maximum rate of the copy in `incoming`, from all sources together, in rows per second.
    /// `None` means unlimited.
    pub(crate) move_rows_per_second: Option<u64>,
    /// `true` while the volume owns exactly the slots that the server's ring assigns to it, and has
    /// neither staged rows nor rows that a cleanup must remove. `false` while the server is
    /// prepared for a migration, as a target or as a source with sealed slots.
    is_clean: Arc<AtomicBool>,
    /// `true` if the commit of activated slots failed, so that the stored ownership lacks slots
    /// that are active in memory.
    must_restart: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    working: Mutex<Vec<JoinHandle<()>>>,
    cleaning: Mutex<Option<JoinHandle<()>>>,
}

impl VolumeServer {
    /// Starts the server of an open volume.
    pub(crate) async fn start(
        context: &NodeContext,
        volume: &NodeName,
        storage: Arc<Volume>,
        cluster_state: &ClusterState,
        ring: &Arc<Ring>,
        remote: Arc<dyn RemoteVolumes>,
    ) -> Result<Arc<VolumeServer>, NodeError> {
        storage.count_commits(&context.metrics.of_volume(volume.as_str()));
        // An earlier volume server of this open volume may have limited expiry (`pause_expiry`) for
        // a migration that has ended since.
        storage.first_inactive_page.store(u64::MAX, Ordering::Release);
        let record = storage.slot_ownership();
        let slots = Arc::new(Slots::of(Arc::clone(ring), volume, record.as_ref()));
        let mut stale_rows = target::resolve_unfinished(&storage, cluster_state.committed).await?;
        let is_sealed = seal_leaving(&slots, cluster_state);
        if is_sealed {
            // No migration begins while there are stale rows, so the note about stale rows was
            // written by the seal. The note must stay until the migration ends. A cleanup would
            // find no stale rows now and would remove the note, so none is started.
            stale_rows = stale_rows.filter(|rows| *rows != StaleRows::Counted);
        }
        if record.is_some_and(|record| record.slots().any(|slot| !slots.has(Slot(slot)))) {
            // The volume owned slots that migrated while it was closed. Their rows are outdated and
            // must be removed.
            stale_rows.get_or_insert(StaleRows::Counted);
        }
        if storage
            .slot_ownership()
            .is_none_or(|record| record != slots.record())
        {
            let mut batch = WriteBatch::default();
            batch.set_ownership(slots.record());
            if stale_rows == Some(StaleRows::Counted) || is_sealed {
                // The new slot ownership replaces the only evidence of the stale rows, so the note
                // about them is written in the same batch. Sealed slots leave stale rows if their
                // migration is committed.
                batch.put_raw(Table::Meta, CLEANUP, &cluster_state.version.to_be_bytes());
            }
            storage.permit().await?.send(batch).durable().await?;
        }
        let (limits, clock) = (context.config.outbox, context.clock.clone());
        let (opened, lends) = (Arc::clone(&slots), context.config.allotments);
        let started = runtime::blocking(move || {
            let mut loaded = storage.load(&opened)?;
            let statistics = Statistics::new(std::mem::take(&mut loaded.sums));
            tracing::debug!(
                reservations = loaded.reservations.len(),
                messages = loaded.messages.len(),
                deliveries = loaded.deliveries.len(),
                "volume loaded"
            );
            let state = VolumeState::new(storage, opened, loaded, limits, clock, Some(remote));
            state.set_allotments(lends);
            Ok::<_, StorageError>((state, statistics))
        });
        let (state, statistics) = started.await.unwrap_or(Err(StorageError::Closed))?;
        let counters = context.metrics.of_volume(volume.as_str());
        let transactors = Transactors::counting(Arc::new(state), counters);
        let statistics = Arc::new(RwLock::new(statistics));
        let app = Arc::new(App::new(
            volume.to_string(),
            Arc::clone(&transactors),
            Arc::clone(&statistics),
            &context.metrics,
        ));
        let (stop, stopped) = watch::channel(false);
        let server = VolumeServer {
            volume: volume.clone(),
            app,
            exports: Exports::default(),
            incoming: tokio::sync::Mutex::default(),
            progress: Mutex::default(),
            move_rows_per_second: context.config.move_rows_per_second,
            is_clean: Arc::new(AtomicBool::new(stale_rows.is_none() && !is_sealed)),
            must_restart: Arc::default(),
            stop,
            working: Mutex::default(),
            cleaning: Mutex::default(),
        };
        server.begin(context, &stopped);
        if let Some(stale_rows) = stale_rows {
            server.start_cleanup(stale_rows);
        }
        Ok(Arc::new(server))
    }

    fn begin(&self, context: &NodeContext, stopped: &watch::Receiver<bool>) {
        let transactors = &self.app.transactors;
        let state = self.app.state();
        let mut working = self.working();
        working.push(runtime::spawn(dispatcher::run(
            Arc::clone(transactors),
            Arc::clone(&context.wms),
            stopped.clone(),
        )));
        working.push(runtime::spawn(expiry::run(
            Arc::clone(transactors),
            context.config.payment_timeout,
            stopped.clone(),
        )));
        working.push(runtime::spawn(retention::run(Arc::clone(state), stopped.clone())));
        // With an engine, each node has a folder of its own. A task of the node scans it, not the
        // servers of its volumes.
        let has_shared_folder = context.config.engine.is_none();
        if has_shared_folder && !context.config.stat_scan_every.is_zero() {
            let scanner = Scanner::new(
                context.config.data.clone(),
                Arc::clone(&self.app.stat_files),
                Arc::clone(&self.app.counters),
                context.clock.clone(),
            );
            let scanning = scanner.run(context.config.stat_scan_every, stopped.clone());
            working.push(runtime::spawn(scanning));
        }
        if let Some(remote) = state.remote_client() {
            working.push(runtime::spawn(remote_stock::settle_always(
                Arc::clone(state),
                Arc::clone(remote),
                stopped.clone(),
            )));
            let lending = lending::lend_always(Arc::clone(state), Arc::clone(remote), stopped.clone());
            working.push(runtime::spawn(lending));
            let borrowing = borrowing::borrow_always(Arc::clone(state), Arc::clone(remote), stopped.clone());
            working.push(runtime::spawn(borrowing));
        }
    }

    fn start_cleanup(&self, stale_rows: StaleRows) {
        self.is_clean.store(false, Ordering::Release);
        let state = Arc::clone(self.app.state());
        let (is_clean, mut stopped) = (Arc::clone(&self.is_clean), self.stop.subscribe());
        let volume = self.volume.clone();
        *self.cleaning() = Some(runtime::spawn(async move {
            state.forget_messages().await;
            let mut has_failed = false;
            loop {
                let is_stopped = || *stopped.borrow();
                match cleanup::remove_stale_rows(&state.storage, &state.slots, stale_rows, is_stopped).await {
                    Ok(is_done) => {
                        is_clean.store(is_done, Ordering::Release);
                        return;
                    }
                    Err(StorageError::Closed) => return,
                    Err(_) if seeded("cleanup-not-repeated") => return,
                    // Without the cleanup, this volume takes part in no further migration.
                    Err(error) => {
                        if !std::mem::replace(&mut has_failed, true) {
                            tracing::error!(%volume, %error, "stale rows not removed, retries continue");
                        }
                    }
                }
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                    () = tokio::time::sleep(CLEANUP_RETRY_PAUSE) => {}
                }
            }
        }));
    }

    fn working(&self) -> parking_lot::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.working.lock()
    }

    fn cleaning(&self) -> parking_lot::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.cleaning.lock()
    }

    /// Returns the ring that this server follows.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        self.app.state().slots.ring()
    }

    /// Returns the epoch of the ring that this server follows. `None` while the volume is prepared
    /// for a migration or removes rows of an earlier one (`is_clean` is `false`).
    pub(crate) fn settled_epoch(&self) -> Option<Epoch> {
        let is_clean = self.is_clean.load(Ordering::Acquire);
        is_clean.then(|| self.app.state().slots.ring().epoch())
    }

    /// Returns `true` if this server must be replaced by a new one, because the commit of activated
    /// slots failed and the volume can commit again.
    pub(crate) async fn must_restart_now(&self) -> bool {
        if !self.must_restart() {
            return false;
        }
        let storage = &self.app.state().storage;
        let Ok(permit) = storage.permit().await else {
            return false;
        };
        permit.send(WriteBatch::default()).durable().await.is_ok()
    }

    /// Returns `true` if the commit of activated slots failed.
    pub(crate) fn must_restart(&self) -> bool {
        self.must_restart.load(Ordering::Acquire)
    }

    /// Returns `true` if slots are sealed for a migration that has ended in `cluster_state`, so
    /// that `undo` must remove the seals.
    pub(crate) fn has_outdated_seals(&self, cluster_state: &ClusterState) -> bool {
        self.outdated_seals(cluster_state).is_some()
    }

    /// Returns the id of the ended migration for which slots are sealed.
    fn outdated_seals(&self, cluster_state: &ClusterState) -> Option<u64> {
        let under_way = cluster_state.moving.as_ref().map(|moving| moving.id);
        // A cluster state that is older than the seal may not contain the migration yet, so such a
        // state does not undo the seal.
        let sealed_for = self.app.state().slots.sealed_for();
        sealed_for.filter(|id| *id <= cluster_state.version && Some(*id) != under_way)
    }

    /// Returns the progress of the copy to this volume.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.lock().clone()
    }

    fn reset_progress(&self) {
        let mut progress = self.progress.lock();
        progress.copied = Imported::default();
    }

    /// Prepares for the incoming slots of a migration, if this migration is under way. The work is
    /// finished even if the caller is dropped.
    pub(crate) async fn expect(
        self: &Arc<Self>,
        authority: &Arc<dyn Authority>,
        id: u64,
    ) -> Result<(), MigrationError> {
        let (server, authority) = (Arc::clone(self), Arc::clone(authority));
        let expected = runtime::to_completion(async move { server.expect_now(&authority, id).await });
        expected.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn expect_now(&self, authority: &Arc<dyn Authority>, id: u64) -> Result<(), MigrationError> {
        let mut incoming = self.incoming.lock().await;
        if *self.stop.borrow() {
            return Err(MigrationError::Over);
        }
        if incoming.as_ref().is_some_and(|incoming| incoming.id == id) {
            return Ok(());
        }
        if !self.is_clean.load(Ordering::Acquire) {
            return Err(MigrationError::CleaningUp);
        }
        *incoming = Some(Incoming::new(id));
        self.reset_progress();
        // The check must come after `incoming` is set. If the migration ended before, the
        // reconciler did not see this `incoming`, so it is removed here. It is removed after an
        // error too: otherwise the next call would return at once, although `is_clean` is true and
        // expiry is not paused.
        let under_way = is_under_way(authority, id).await;
        if !matches!(under_way, Ok(true)) {
            *incoming = None;
            return under_way.and(Err(MigrationError::Over));
        }
        self.is_clean.store(false, Ordering::Release);
        target::pause_expiry(&self.app.state().storage);
        Ok(())
    }

    /// Seals slots that migrate to another volume. The work is finished even if the caller is
    /// dropped.
    pub(crate) async fn seal(
        self: &Arc<Self>,
        authority: &Arc<dyn Authority>,
        request: &ExportRequest,
    ) -> Result<(), MigrationError> {
        let (server, authority, request) = (Arc::clone(self), Arc::clone(authority), request.clone());
        let sealed = runtime::to_completion(async move { server.seal_now(&authority, &request).await });
        sealed.await.unwrap_or(Err(StorageError::Closed.into()))
    }

    async fn seal_now(
        &self,
        authority: &Arc<dyn Authority>,
        request: &ExportRequest,
    ) -> Result<(), MigrationError> {
        if *self.stop.borrow() {
            return Err(MigrationError::Over);
        }
        let state = self.app.state();
        source::enter_orders(state, request).await?;
        let was_clean = self.is_clean.swap(false, Ordering::AcqRel);
        let sealed = source::seal(state, request).await;
        if was_clean && !matches!(sealed, Ok(true)) && !state.slots.some_sealed() {
            // Nothing was sealed, so no later `unseal` would restore `is_clean`. If it was `false`,
            // a concurrent `unseal` may have set it since.
            self.is_clean.store(true, Ordering::Release);
        }
        if !sealed? {
            return Err(StorageError::Busy.into());
        }
        // A concurrent call that sealed nothing may have restored `is_clean`.
        self.is_clean.store(false, Ordering::Release);
        // The check must come after the seal. If the migration ended before, the reconciler did not
        // see this seal, so the seal is removed here. If the commit of the seal failed or the
        // cluster's state cannot be read, the seal remains: a repeated request must not remove the
        // seal of a migration that is being committed. The reconciler removes the seal once the
        // migration has ended (`has_outdated_seals`).
        if is_under_way(authority, request.id).await? {
            return Ok(());
        }
        self.unseal(request.id).await?;
        Err(MigrationError::Over)
    }

    /// Removes all seals, unless slots are sealed for another migration than the one with this id,
    /// or this server is stopping. The slots stay in this volume.
    async fn unseal(&self, id: u64) -> Result<(), StorageError> {
        let state = self.app.state();
        let is_other = || state.slots.sealed_for().is_some_and(|known| known != id);
        let permit = state.storage.permit().await?;
        // The volume may be being closed. Then its next server decides about the seals by the
        // cluster's state.
        let ticket = {
            let _stock = state.stock();
            if *self.stop.borrow() || is_other() {
                return Ok(());
            }
            // Another call may have removed the seals in memory after a repeated seal was queued.
            // So the stored ownership is written even if no slot is sealed.
            let mut batch = WriteBatch::default();
            batch.remove(Table::Meta, CLEANUP);
            batch.set_ownership(state.slots.record_without_seals());
            permit.send(batch)
        };
        // Until this commit, the stored ownership rejects all commits to the sealed slots. After an
        // error the seals remain, so that the next pass of the reconciler tries again.
        if seeded("unsealed-early") {
            state.slots.unseal();
        }
        ticket.durable().await?;
        {
            let _stock = state.stock();
            // Another call may have removed the seals during the commit, and the next migration may
            // have sealed slots since.
            if *self.stop.borrow() || (is_other() && !seeded("seals-mixed")) {
                return Ok(());
            }
            state.slots.unseal();
        }
        let has_incoming = self.incoming.lock().await.is_some();
        let _stock = state.stock();
        if !has_incoming
            && !state.slots.some_sealed()
            && self.cleaning().as_ref().is_none_or(JoinHandle::is_finished)
        {
            self.is_clean.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Undoes the local steps of all migrations with an id up to the version of `cluster_state`,
    /// except for the migration that is under way in this state.
    pub(crate) async fn undo(&self, cluster_state: &ClusterState) -> Result<(), StorageError> {
        let under_way = cluster_state.moving.as_ref().map(|moving| moving.id);
        self.exports.drop_ended(cluster_state.version, under_way);
        let dropped = {
            let mut incoming = self.incoming.lock().await;
            let is_over = |incoming: &mut Incoming| {
                incoming.id <= cluster_state.version && Some(incoming.id) != under_way
            };
            incoming.take_if(is_over)
        };
        if dropped.is_some() {
            tracing::info!(volume = %self.volume, "migration undone; its staged rows are being removed");
            self.end_staging();
            self.app.state().outbox().unpark();
            self.start_cleanup(StaleRows::NeverActive);
        }
        if let Some(id) = self.outdated_seals(cluster_state) {
            self.unseal(id).await?;
            tracing::info!(volume = %self.volume, "migration undone; its slots are unsealed");
        }
        Ok(())
    }

    fn end_staging(&self) {
        self.app
            .state()
            .storage
            .first_inactive_page
            .store(u64::MAX, Ordering::Release);
        self.reset_progress();
    }

    /// Activates the slots that a committed migration copied to this volume. Does nothing and
    /// returns `true` if the new ring adds no slot. Returns `false` if nothing is prepared for the
    /// new slots, or if the ring also takes slots away.
    pub(crate) async fn activate_slots(
        &self,
        cluster_state: &ClusterState,
        ring: &Arc<Ring>,
    ) -> Result<bool, StorageError> {
        let state = self.app.state();
        let changes = state.slots.differences(ring);
        if !changes.adds {
            return Ok(true);
        }
        let arrived = self
            .incoming
            .lock()
            .await
            .take_if(|incoming| incoming.id == cluster_state.committed);
        let Some(mut arrived) = arrived.filter(|_| !changes.removes) else {
            return Ok(false);
        };
        let begun = Instant::now();
        let uploads_locked = self.app.lock_stock_uploads().await;
        let (storage, note, staged) = (Arc::clone(&state.storage), arrived.note, arrived.staged.take());
        let staged = target::blocking(move || match staged {
            Some(staged) if staged.fits(&storage)? => Ok(staged),
            // If a stock upload has changed the products or the stock head since the staged rows
            // were rearranged, they are rearranged again.
            _ => StagedRows::read(&storage, &note),
        });
        let staged = staged.await?;
        let ready = Instant::now();
        let sums = std::mem::take(&mut arrived.state.sums);
        let gets_statistics = !state.slots.has_statistics();
        let permit = state.storage.permit().await?;
        let ticket = {
            // The import of a statistics file reads the version of the slots and then the sums.
            // Under this lock both change together, so the import never adds a file to the sums of
            // an earlier version.
            let mut statistics = self.app.statistics.write();
            let ticket = state.activate_slots(ring, &mut arrived.state, staged, permit);
            if gets_statistics && state.slots.has_statistics() {
                statistics.replace_all(sums);
            }
            ticket
        };
        drop(uploads_locked);
        tracing::debug!(volume = %self.volume, ready_ms = (ready - begun).as_millis(), locked_ms = ready.elapsed().as_millis(), "slots activated");
        self.end_staging();
        let (is_clean, must_restart) = (Arc::clone(&self.is_clean), Arc::clone(&self.must_restart));
        let volume = self.volume.clone();
        runtime::spawn(async move {
            // In memory the slots are already active. This commit adds the counts of their rows to
            // the counters and removes the note about staged rows. All later commits are queued
            // after it.
            match ticket.durable().await {
                Ok(()) => is_clean.store(true, Ordering::Release),
                Err(error) => {
                    tracing::error!(%volume, %error, "activation of slots not committed");
                    must_restart.store(!seeded("activation-not-repeated"), Ordering::Release);
                }
            }
            tracing::debug!(%volume, after_ms = begun.elapsed().as_millis(), "activation of slots durable");
            arrived.state.drop_slowly().await;
        });
        Ok(true)
    }

    /// Applies the new ring, and releases the slots that a committed migration copied from this
    /// volume. Returns `false` if the new ring takes slots from this volume that were not copied
    /// completely.
    pub(crate) async fn release_slots(
        &self,
        cluster_state: &ClusterState,
        ring: &Arc<Ring>,
    ) -> Result<bool, StorageError> {
        let state = self.app.state();
        let loses = state.slots.differences(ring).removes;
        let left_behind = if loses {
            let known = self
                .exports
                .left_behind(&state.slots, cluster_state.committed, ring)
                .await;
            let Some(known) = known else {
                return Ok(false);
            };
            Some(known)
        } else {
            None
        };
        let uploads_locked = self.app.lock_stock_uploads().await;
        let begun = Instant::now();
        {
            let mut statistics = self.app.statistics.write();
            state.release_slots(ring, left_behind);
            if !state.slots.has_statistics() {
                statistics.replace_all(Default::default());
            }
        }
        drop(uploads_locked);
        tracing::debug!(volume = %self.volume, locked_ms = begun.elapsed().as_millis(), "slots released");
        if loses {
            self.start_cleanup(StaleRows::Counted);
        }
        Ok(true)
    }

    /// Writes a checkpoint of the database, so that the next open replays little of microdb's own
    /// log. Requests are served during the checkpoint.
    pub(crate) async fn checkpoint(&self) -> Result<(), StorageError> {
        let storage = Arc::clone(&self.app.state().storage);
        target::blocking(move || storage.checkpoint()).await
    }

    /// Stops all work on the volume: seals all slots, ends the jobs, and waits for the cleanup and
    /// for the queued writes, also while the engine does not answer. Otherwise the next server of
    /// the open volume would load its state without writes that become durable later.
    pub(crate) async fn quiesce(&self) {
        self.end_jobs().await;
        self.finish_cleanup().await;
        self.finish_writes().await;
    }

    /// Seals all slots and ends the jobs.
    async fn end_jobs(&self) {
        let state = self.app.state();
        // `stop` is set before the seal, because `unseal` removes seals only while `stop` is not
        // set. So the end of a migration does not remove this seal.
        let _ = self.stop.send(true);
        {
            let _stock = state.stock();
            state.slots.seal_all();
        }
        let working = std::mem::take(&mut *self.working());
        for task in working {
            // Writes that the job has queued are still committed. Further steps of orders would be
            // rejected anyway, because all slots are sealed.
            task.abort();
            let _ = task.await;
        }
    }

    /// Waits for the cleanup.
    async fn finish_cleanup(&self) {
        let cleaning = self.cleaning().take();
        if let Some(task) = cleaning {
            // The cleanup removes rows by the slots of this server, so it must end before the next
            // server of the volume, which may have other slots, starts.
            let _ = task.await;
        }
    }

    /// Waits for the queued writes.
    async fn finish_writes(&self) {
        let state = self.app.state();
        // `incoming` is locked while a page is stored, so this line waits for that page. Later
        // pages are rejected.
        drop(self.incoming.lock().await.take());
        if let Ok(permit) = state.storage.permit().await {
            // This empty batch is committed after all queued batches. If one of them fails, its own
            // caller gets the error.
            let _ = permit.send(WriteBatch::default()).durable().await;
        }
    }

    /// Stops all work on the volume and closes it. Writes that an engine does not acknowledge
    /// within `CLOSE_WAIT` are abandoned: the rows may or may not be in the log.
    pub(crate) async fn close(&self) -> Result<(), StorageError> {
        self.end_jobs().await;
        let storage = Arc::clone(&self.app.state().storage);
        let finishing = async {
            self.finish_cleanup().await;
            // An engine that does not answer now may never confirm the queued writes.
            if storage.check_engine().is_ok() {
                self.finish_writes().await;
            }
        };
        if tokio::time::timeout(CLOSE_WAIT, finishing).await.is_err() {
            tracing::warn!(volume = %self.volume, "volume is closed while writes wait");
        }
        runtime::blocking(move || storage.close())
            .await
            .unwrap_or(Err(StorageError::Closed))
    }
}
