//! A volume that this process serves: its rooms, the tasks that work in them, and its routes.
//!
//! A post is furnished from its volume for one ring. When the ring gives the volume other slots, the post is closed down (what
//! is queued becomes durable, what comes later is refused) and another one is furnished over the same open volume.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use imt_ring::{Epoch, NodeName, Ring};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::among::{self, Far};
use crate::api::{self, App, Entrance};
use crate::changes::Changes;
use crate::clock::Clock;
use crate::cluster::{self, ClusterState};
use crate::desk::Desk;
use crate::error::{NodeError, StoreError};
use crate::metrics::Metrics;
use crate::node::NodeConfig;
use crate::process;
use crate::slots::Slots;
use crate::stats::Statistics;
use crate::store::Store;
use crate::transactor::Transactors;
use crate::wms::Warehouse;
use crate::{courier, expiry, stat_files, sweep};

/// What all posts of a node share.
pub(crate) struct Kit {
    pub(crate) config: NodeConfig,
    pub(crate) wms: Arc<dyn Warehouse>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
}

/// One volume, served.
pub(crate) struct Post {
    pub(crate) volume: NodeName,
    pub(crate) app: Arc<App>,
    /// The way in to the public routes, about this volume.
    pub(crate) entrance: Entrance,
    ring: Arc<Ring>,
    /// True once nothing of an earlier ring lies about in the volume.
    settled: Arc<AtomicBool>,
    stop: watch::Sender<bool>,
    working: Mutex<Vec<JoinHandle<()>>>,
    purging: Mutex<Option<JoinHandle<()>>>,
}

impl Post {
    /// Furnishes a post over an open volume.
    pub(crate) async fn furnish(
        kit: &Kit,
        volume: &NodeName,
        store: Arc<Store>,
        state: &ClusterState,
        ring: &Arc<Ring>,
        far: Arc<dyn Far>,
    ) -> Result<Arc<Post>, NodeError> {
        let slots = Arc::new(Slots::of(Arc::clone(ring), volume));
        let must_purge = cluster::settle(&store, &slots, state).await?;
        let (limits, clock) = (kit.config.outbox, kit.clock.clone());
        let opened = Arc::clone(&slots);
        let furnished = process::blocking(move || {
            let mut loaded = store.load(&opened)?;
            let statistics = Statistics::new(std::mem::take(&mut loaded.sums));
            tracing::debug!(
                reservations = loaded.reservations.len(),
                messages = loaded.messages.len(),
                deliveries = loaded.deliveries.len(),
                "the volume was read"
            );
            let desk = Desk::new(store, opened, loaded, limits, clock, Some(far));
            Ok::<_, StoreError>((desk, statistics))
        });
        let (desk, statistics) = furnished.await.unwrap_or(Err(StoreError::Closed))?;
        let transactors = Transactors::new(Arc::new(desk));
        let statistics = Arc::new(RwLock::new(statistics));
        let app = Arc::new(App::new(
            volume.to_string(),
            Arc::clone(&transactors),
            Arc::clone(&statistics),
            Arc::clone(&kit.metrics),
        ));
        let (stop, stopped) = watch::channel(false);
        let post = Post {
            volume: volume.clone(),
            entrance: api::routes(Arc::clone(&app)),
            app,
            ring: Arc::clone(ring),
            settled: Arc::new(AtomicBool::new(!must_purge)),
            stop,
            working: Mutex::default(),
            purging: Mutex::default(),
        };
        post.begin(kit, &slots, &statistics, &stopped);
        if must_purge {
            post.purge(slots, stopped);
        }
        Ok(Arc::new(post))
    }

    fn begin(
        &self,
        kit: &Kit,
        slots: &Slots,
        statistics: &Arc<RwLock<Statistics>>,
        stopped: &watch::Receiver<bool>,
    ) {
        let transactors = &self.app.transactors;
        let desk = self.app.desk();
        let mut working = self.working();
        working.push(process::spawn(courier::carry(
            Arc::clone(transactors),
            Arc::clone(&kit.wms),
            stopped.clone(),
        )));
        working.push(process::spawn(expiry::expire_always(
            Arc::clone(transactors),
            kit.config.payment_timeout,
            stopped.clone(),
        )));
        working.push(process::spawn(sweep::sweep_always(
            Arc::clone(desk),
            stopped.clone(),
        )));
        if slots.has_statistics() && !kit.config.stat_scan_every.is_zero() {
            working.push(process::spawn(stat_files::scan_always(
                kit.config.data.clone(),
                kit.config.stat_scan_every,
                Arc::clone(desk),
                Arc::clone(statistics),
                stopped.clone(),
            )));
        }
        if let Some(far) = desk.far() {
            working.push(process::spawn(among::settle_always(
                Arc::clone(desk),
                Arc::clone(far),
                stopped.clone(),
            )));
        }
    }

    fn purge(&self, slots: Arc<Slots>, stopped: watch::Receiver<bool>) {
        let (store, settled) = (Arc::clone(&self.app.desk().store), Arc::clone(&self.settled));
        let volume = self.volume.clone();
        *self.purging() = Some(process::spawn(async move {
            match cluster::purge_orders(store, slots, move || *stopped.borrow()).await {
                Ok(is_done) => settled.store(is_done, Ordering::Release),
                Err(error) => {
                    tracing::error!(%volume, %error, "orders that went elsewhere cannot be purged");
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

    /// The ring that it was furnished for.
    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// The epoch of the ring that it was furnished for, once nothing of an earlier one lies about.
    pub(crate) fn settled_epoch(&self) -> Option<Epoch> {
        self.settled.load(Ordering::Acquire).then(|| self.ring.epoch())
    }

    /// Takes no more steps: what is queued becomes durable, what comes later is refused, the tasks end.
    pub(crate) async fn rest(&self) {
        let desk = self.app.desk();
        {
            let _stock = desk.stock();
            desk.slots.seal_all();
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
            // It works in a thread of its own, by slots that are no longer: it must have ended before there are others.
            let _ = task.await;
        }
        if let Ok(permit) = desk.store.permit().await {
            // Comes after all that was queued. A failure has been told to those whom it concerns.
            let _ = permit.send(Changes::default()).durable().await;
        }
    }

    /// Rests, then lets go of the volume.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.rest().await;
        let store = Arc::clone(&self.app.desk().store);
        process::blocking(move || store.close())
            .await
            .unwrap_or(Err(StoreError::Closed))
    }
}
