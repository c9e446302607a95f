//! A volume that this process serves: its rooms, the tasks that work in them, and its routes.
//!
//! A post is furnished from its volume when that is opened. When the ring gives the volume other
//! slots, the post follows: what came is taken into the rooms, what went is forgotten (`handover`),
//! and everybody else is served meanwhile. Only slots for which it finds nothing prepared make it
//! close down (what is queued becomes durable, what comes later is refused) and be furnished anew.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use imt_ring::{Epoch, NodeName, Ring, Slot};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api::{App, Entrance, Problem};
use crate::cluster::{Authority, ClusterState};
use crate::domain::sales::Statistics;
use crate::error::{NodeError, StorageError};
use crate::node::NodeConfig;
use crate::outbox::warehouse_client::Warehouse;
use crate::runtime;
use crate::runtime::clock::Clock;
use crate::runtime::metrics::Metrics;
use crate::storage::owned_slots::Slots;
use crate::storage::volume::Volume;
use crate::storage::write_batch::{PURGE, Table, WriteBatch};
use crate::volume::jobs::stat_import::Scanner;
use crate::volume::jobs::{dispatcher, expiry, retention};
use crate::volume::migration::cleanup::{self, StaleRows};
use crate::volume::migration::source::{self, ExportRequest, Exports};
use crate::volume::migration::target::{self, Imported, Incoming, Progress, StagedRows};
use crate::volume::remote_stock::{self, RemoteVolumes};
use crate::volume::state::VolumeState;
use crate::volume::transactor::Transactors;

/// What all posts of a node share.
pub(crate) struct NodeContext {
    pub(crate) config: NodeConfig,
    pub(crate) wms: Arc<dyn Warehouse>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
}

async fn is_under_way(authority: &Arc<dyn Authority>, id: u64) -> Result<bool, Problem> {
    let cluster_state = authority
        .read()
        .await
        .map_err(|error| Problem::internal(error.to_string()))?;
    Ok(cluster_state.moving.is_some_and(|moving| moving.id == id))
}

/// One volume, served.
pub(crate) struct VolumeServer {
    pub(crate) volume: NodeName,
    pub(crate) app: Arc<App>,
    /// The way in to the public routes, about this volume.
    pub(crate) entrance: Entrance,
    /// Slots on their way to other volumes.
    pub(crate) exports: Exports,
    /// Slots on their way here.
    pub(crate) incoming: tokio::sync::Mutex<Option<Incoming>>,
    /// How far that is.
    pub(crate) progress: Mutex<Progress>,
    /// How fast they may come.
    pub(crate) move_rows_per_second: Option<u64>,
    /// True while the volume has just what its ring gives it, and nothing else lies about in it.
    settled: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    working: Mutex<Vec<JoinHandle<()>>>,
    purging: Mutex<Option<JoinHandle<()>>>,
}

impl VolumeServer {
    /// Furnishes a post over an open volume.
    pub(crate) async fn start(
        context: &NodeContext,
        volume: &NodeName,
        storage: Arc<Volume>,
        cluster_state: &ClusterState,
        ring: &Arc<Ring>,
        remote: Arc<dyn RemoteVolumes>,
    ) -> Result<Arc<VolumeServer>, NodeError> {
        let record = storage.slot_ownership();
        let slots = Arc::new(Slots::of(Arc::clone(ring), volume, record.as_ref()));
        let mut stale_rows = target::settle(&storage, cluster_state.committed).await?;
        if record.is_some_and(|record| record.slots().any(|slot| !slots.has(Slot(slot)))) {
            // The volume had slots, when it was last open, that went elsewhere without it: they
            // must not come back as they were.
            stale_rows.get_or_insert(StaleRows::Counted);
        }
        if let Some(moving) = &cluster_state.moving {
            // A copy of these may have been made before the volume was last closed: nothing may be
            // added to it.
            let volume = slots.volume();
            let goes = |slot: &u32| moving.next.owner(Slot(*slot)).is_ok_and(|owner| owner != volume);
            slots.seal((0..ring.slots()).filter(goes), moving.id);
        }
        if storage
            .slot_ownership()
            .is_none_or(|record| record != slots.record())
        {
            let mut batch = WriteBatch::default();
            batch.set_ownership(slots.record());
            if stale_rows == Some(StaleRows::Counted) {
                // Once the record is this one, nothing else tells of what lies about.
                batch.put_raw(Table::Meta, PURGE, &cluster_state.version.to_be_bytes());
            }
            storage.permit().await?.send(batch).durable().await?;
        }
        let (limits, clock) = (context.config.outbox, context.clock.clone());
        let opened = Arc::clone(&slots);
        let started = runtime::blocking(move || {
            let mut loaded = storage.load(&opened)?;
            let statistics = Statistics::new(std::mem::take(&mut loaded.sums));
            tracing::debug!(
                reservations = loaded.reservations.len(),
                messages = loaded.messages.len(),
                deliveries = loaded.deliveries.len(),
                "the volume was read"
            );
            let state = VolumeState::new(storage, opened, loaded, limits, clock, Some(remote));
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
            entrance: Entrance::new(Arc::clone(&app)),
            app,
            exports: Exports::default(),
            incoming: tokio::sync::Mutex::default(),
            progress: Mutex::default(),
            move_rows_per_second: context.config.move_rows_per_second,
            settled: Arc::new(AtomicBool::new(stale_rows.is_none())),
            stop,
            working: Mutex::default(),
            purging: Mutex::default(),
        };
        server.begin(context, &statistics, &stopped);
        if let Some(stale_rows) = stale_rows {
            server.purge(stale_rows);
        }
        Ok(Arc::new(server))
    }

    fn begin(
        &self,
        context: &NodeContext,
        statistics: &Arc<RwLock<Statistics>>,
        stopped: &watch::Receiver<bool>,
    ) {
        let transactors = &self.app.transactors;
        let state = self.app.state();
        let mut working = self.working();
        working.push(runtime::spawn(dispatcher::carry(
            Arc::clone(transactors),
            Arc::clone(&context.wms),
            stopped.clone(),
        )));
        working.push(runtime::spawn(expiry::expire_always(
            Arc::clone(transactors),
            context.config.payment_timeout,
            stopped.clone(),
        )));
        working.push(runtime::spawn(retention::sweep_always(
            Arc::clone(state),
            stopped.clone(),
        )));
        if !context.config.stat_scan_every.is_zero() {
            let scanner = Scanner::new(
                context.config.data.clone(),
                Arc::clone(state),
                Arc::clone(statistics),
                Arc::clone(&self.app.counters),
            );
            let scanning = scanner.run(context.config.stat_scan_every, stopped.clone());
            working.push(runtime::spawn(scanning));
        }
        if let Some(remote) = state.any_far() {
            working.push(runtime::spawn(remote_stock::settle_always(
                Arc::clone(state),
                Arc::clone(remote),
                stopped.clone(),
            )));
        }
    }

    fn purge(&self, stale_rows: StaleRows) {
        self.settled.store(false, Ordering::Release);
        let state = Arc::clone(self.app.state());
        let (settled, stopped) = (Arc::clone(&self.settled), self.stop.subscribe());
        let volume = self.volume.clone();
        *self.purging() = Some(runtime::spawn(async move {
            state.forget_messages().await;
            match cleanup::purge(&state.storage, &state.slots, stale_rows, || *stopped.borrow()).await {
                Ok(is_done) => settled.store(is_done, Ordering::Release),
                Err(StorageError::Closed) => {}
                Err(error) => {
                    tracing::error!(%volume, %error, "what went elsewhere cannot be purged");
                }
            }
        }));
    }

    fn working(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn purging(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.purging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ring that it follows.
    pub(crate) fn ring(&self) -> Arc<Ring> {
        self.app.state().slots.ring()
    }

    /// The epoch of the ring that it follows, once nothing of an earlier one lies about.
    pub(crate) fn settled_epoch(&self) -> Option<Epoch> {
        let is_settled = self.settled.load(Ordering::Acquire);
        is_settled.then(|| self.app.state().slots.ring().epoch())
    }

    /// How much of the slots that are on their way here has come.
    pub(crate) fn progress(&self) -> Progress {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn nothing_came(&self) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.copied = Imported::default();
    }

    /// Gets ready for the slots of a move, if that is under way.
    pub(crate) async fn expect(&self, authority: &Arc<dyn Authority>, id: u64) -> Result<(), Problem> {
        let mut incoming = self.incoming.lock().await;
        if incoming.as_ref().is_some_and(|incoming| incoming.id == id) {
            return Ok(());
        }
        if !self.settled.load(Ordering::Acquire) {
            return Err(Problem::busy("something of an earlier move lies about here"));
        }
        *incoming = Some(Incoming::new(id));
        self.nothing_came();
        // Asked after this is known to be expected: if the move is over by then, the keeper has
        // looked, or will not look any more.
        if is_under_way(authority, id).await? {
            self.settled.store(false, Ordering::Release);
            target::hold_expiry(&self.app.state().storage);
            return Ok(());
        }
        *incoming = None;
        Err(Problem::conflict("no-such-move", "the move is over"))
    }

    /// Seals slots that go away.
    pub(crate) async fn seal(
        &self,
        authority: &Arc<dyn Authority>,
        request: &ExportRequest,
    ) -> Result<(), Problem> {
        let state = self.app.state();
        self.settled.store(false, Ordering::Release);
        source::seal(state, request).await?;
        // Asked after the seal, as in `expect`.
        if is_under_way(authority, request.id).await? {
            return Ok(());
        }
        self.unseal().await?;
        Err(Problem::conflict("no-such-move", "the move is over"))
    }

    /// What was sealed stays here after all.
    pub(crate) async fn unseal(&self) -> Result<(), StorageError> {
        let state = self.app.state();
        let permit = state.storage.permit().await?;
        let ticket = {
            let _stock = state.stock();
            state.slots.unseal();
            let mut batch = WriteBatch::default();
            batch.remove(Table::Meta, PURGE);
            batch.set_ownership(state.slots.record());
            permit.send(batch)
        };
        ticket.durable().await?;
        if self.incoming.lock().await.is_none() && self.purging().as_ref().is_none_or(JoinHandle::is_finished)
        {
            self.settled.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Undoes what is under way here of moves other than the one that the state speaks of.
    pub(crate) async fn undo(&self, cluster_state: &ClusterState) -> Result<(), StorageError> {
        let under_way = cluster_state.moving.as_ref().map(|moving| moving.id);
        self.exports.keep_only(under_way);
        let dropped = {
            let mut incoming = self.incoming.lock().await;
            let is_over = |incoming: &mut Incoming| {
                incoming.id <= cluster_state.version && Some(incoming.id) != under_way
            };
            incoming.take_if(is_over)
        };
        if dropped.is_some() {
            tracing::info!(volume = %self.volume, "the move was undone; what had come of it is taken out");
            self.end_of_arrival();
            self.app.state().outbox().unpark();
            self.purge(StaleRows::NeverInForce);
        }
        let sealed_for = self.app.state().slots.sealed_for();
        // A state that was read before the slots were sealed says nothing about the move that they
        // are sealed for.
        if sealed_for.is_some_and(|id| id <= cluster_state.version && Some(id) != under_way) {
            self.unseal().await?;
            tracing::info!(volume = %self.volume, "the move was undone");
        }
        Ok(())
    }

    fn end_of_arrival(&self) {
        self.app
            .state()
            .storage
            .first_inactive_page
            .store(u64::MAX, Ordering::Release);
        self.nothing_came();
    }

    /// Takes in the slots that a move brought. False if there are some for which nothing is
    /// prepared here.
    pub(crate) async fn take_in(
        &self,
        cluster_state: &ClusterState,
        ring: &Arc<Ring>,
    ) -> Result<bool, StorageError> {
        let state = self.app.state();
        let (gets, loses) = state.slots.differences(ring);
        if !gets {
            return Ok(true);
        }
        let came = self
            .incoming
            .lock()
            .await
            .take_if(|incoming| incoming.id == cluster_state.committed);
        let Some(mut came) = came.filter(|_| !loses) else {
            return Ok(false);
        };
        let begun = Instant::now();
        let at_rest = self.app.stock_at_rest().await;
        let (storage, note, staged) = (Arc::clone(&state.storage), came.note, came.staged.take());
        let staged = target::blocking(move || match staged {
            Some(staged) if staged.fits(&storage)? => Ok(staged),
            // A snapshot was put in force here since it was read.
            _ => StagedRows::read(&storage, &note),
        });
        let staged = staged.await?;
        let ready = Instant::now();
        let sums = std::mem::take(&mut came.state.sums);
        let gets_statistics = !state.slots.has_statistics();
        let permit = state.storage.permit().await?;
        let ticket = {
            // Whoever adds to them looks at the slots first, under a lock that is held while they
            // change.
            let mut statistics = self
                .app
                .statistics
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let ticket = state.take_in(ring, &mut came.state, staged, permit);
            if gets_statistics && state.slots.has_statistics() {
                statistics.replace_all(sums);
            }
            ticket
        };
        drop(at_rest);
        tracing::debug!(volume = %self.volume, ready_ms = (ready - begun).as_millis(), locked_ms = ready.elapsed().as_millis(), "slots are in force");
        self.end_of_arrival();
        let settled = Arc::clone(&self.settled);
        let volume = self.volume.clone();
        runtime::spawn(async move {
            // The rows are in force by the state; this is only the counts and the notes, which
            // every step that follows comes after.
            match ticket.durable().await {
                Ok(()) => settled.store(true, Ordering::Release),
                Err(error) => tracing::error!(%volume, %error, "what came could not be noted to be in force"),
            }
            tracing::debug!(%volume, after_ms = begun.elapsed().as_millis(), "that slots are in force is durable");
            came.state.forget().await;
        });
        Ok(true)
    }

    /// Lets go of the slots that a move took away. False if there are some that were not copied
    /// from here.
    pub(crate) async fn let_go(
        &self,
        cluster_state: &ClusterState,
        ring: &Arc<Ring>,
    ) -> Result<bool, StorageError> {
        let state = self.app.state();
        let (_, loses) = state.slots.differences(ring);
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
        let at_rest = self.app.stock_at_rest().await;
        let begun = Instant::now();
        {
            let mut statistics = self
                .app
                .statistics
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            state.let_go(ring, left_behind);
            if !state.slots.has_statistics() {
                statistics.replace_all(Default::default());
            }
        }
        drop(at_rest);
        tracing::debug!(volume = %self.volume, locked_ms = begun.elapsed().as_millis(), "slots have gone");
        if loses {
            self.purge(StaleRows::Counted);
        }
        Ok(true)
    }

    /// Writes down what would else be replayed when the volume is opened again. It is served
    /// meanwhile.
    pub(crate) async fn checkpoint(&self) -> Result<(), StorageError> {
        let storage = Arc::clone(&self.app.state().storage);
        target::blocking(move || storage.checkpoint()).await
    }

    /// Takes no more steps: what is queued becomes durable, what comes later is refused, the tasks
    /// end.
    pub(crate) async fn rest(&self) {
        let state = self.app.state();
        {
            let _stock = state.stock();
            state.slots.seal_all();
        }
        let _ = self.stop.send(true);
        let working = std::mem::take(&mut *self.working());
        for task in working {
            // What it queued is queued, what it waits for is refused from here on.
            task.abort();
            let _ = task.await;
        }
        let purging = self.purging().take();
        if let Some(task) = purging {
            // It works in a thread of its own, by slots that are no longer: it must have ended
            // before there are others.
            let _ = task.await;
        }
        if let Ok(permit) = state.storage.permit().await {
            // Comes after all that was queued. A failure has been told to those whom it concerns.
            let _ = permit.send(WriteBatch::default()).durable().await;
        }
    }

    /// Rests, then lets go of the volume.
    pub(crate) async fn close(&self) -> Result<(), StorageError> {
        self.rest().await;
        let storage = Arc::clone(&self.app.state().storage);
        runtime::blocking(move || storage.close())
            .await
            .unwrap_or(Err(StorageError::Closed))
    }
}
