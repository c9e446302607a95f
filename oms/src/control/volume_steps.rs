//! The steps of the reconciler on single volumes: opening, a change of slots, closing.
//!
//! A step may wait for the engine of its volume, which may be away for a long time. So each step
//! runs in a task of its own. The reconciler waits for the steps of a pass for a limited time, and
//! gets the outcome of a late step when the step ends.
//!
//! **Invariants**
//! - A volume has at most one step at a time.
//! - While a node runs, no step is dropped in the middle: an activation has taken the incoming
//!   rows out of the server, and a restart has sealed all slots of the old server. Only the start
//!   of the first server of an open volume is dropped if the engine stops answering. Then the
//!   volume is closed, and opened again later.
//! - A volume that was opened and is not served is closed and released in the same step: it waits
//!   for the end of a migration, its server did not start, or it is not assigned to this node any
//!   more. A volume that was assigned to this node again counts as such.
//! - At the stop of a node, a step that does not end is dropped. The next server of the volume
//!   finds in the volume's rows all that is still to be done, as after a crash.
//!
//! Deliberately absent: the choice of the steps (`reconciler`) and of the volumes that are opened
//! next (`openings`).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use imt_ring::{NodeName, Ring};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::cluster::{ClusterState, Expected, Volumes};
use crate::config::NodeContext;
use crate::control::handle::ClusterHandle;
use crate::control::openings::Engine;
use crate::control::remote_volumes::RemoteVolumeClient;
use crate::error::{NodeError, StorageError, with_causes};
use crate::runtime;
use crate::runtime::watch;
use crate::storage::volume::Volume;
use crate::volume::migration::target::staged_migration;
use crate::volume::server::VolumeServer;

/// Pause between two checks of the engine while the first server of an open volume starts. An
/// engine that does not answer at two checks in a row may stay away for long.
const START_PATIENCE: Duration = Duration::from_secs(1);
/// Pause before a failed release or removal of a volume is repeated. It doubles with each failure,
/// up to `DEPARTURE_PAUSE_MAX`, because a removal of many rows is work for the engine.
const DEPARTURE_PAUSE: Duration = Duration::from_secs(1);
const DEPARTURE_PAUSE_MAX: Duration = Duration::from_secs(64);

/// The values that the steps of one pass use.
#[derive(Clone)]
pub(super) struct Inputs {
    pub(super) cluster: Arc<ClusterHandle>,
    pub(super) context: Arc<NodeContext>,
    pub(super) volumes: Arc<dyn Volumes>,
    pub(super) state: Arc<ClusterState>,
    pub(super) ring: Arc<Ring>,
}

/// A volume that this node no longer serves, until it is closed, released and, if its node has left
/// the cluster, removed.
pub(super) struct Departure {
    /// The server of the volume. `None` once the volume is closed.
    pub(super) server: Option<Arc<VolumeServer>>,
    is_released: bool,
    /// The error of the close, if it failed. The lock of the volume is released in any case.
    pub(super) fault: Option<NodeError>,
    /// Number of attempts to release or remove the volume that failed.
    pub(super) failures: u32,
    /// Time before which no further attempt is made.
    pub(super) due: Instant,
    /// Time at which the departure began.
    pub(super) begun: Instant,
}

impl Departure {
    /// Begins the departure of a volume with this server.
    pub(super) fn of(server: Arc<VolumeServer>) -> Departure {
        let now = Instant::now();
        Departure {
            server: Some(server),
            is_released: false,
            fault: None,
            failures: 0,
            due: now,
            begun: now,
        }
    }

    fn fail(&mut self) {
        let pause = DEPARTURE_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures += 1;
        self.due = Instant::now() + pause.min(DEPARTURE_PAUSE_MAX);
    }
}

/// The outcome of a step without an error.
pub(super) enum Outcome {
    /// The volume is served by this server from now on.
    Served(Arc<VolumeServer>),
    /// The volume cannot be opened yet.
    NotYet,
    /// The cluster's state no longer assigns the volume to this node, or has assigned the volume
    /// to this node again since the step began. The volume is closed and released.
    Elsewhere,
    /// The volume is closed, released and, if that was requested, removed. Contains the error of
    /// the close, if it failed.
    Departed(Option<NodeError>),
    /// The volume is closed. It could not be released or removed, so that is to be repeated.
    Remains(Departure),
}

/// The kind of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Opens a volume of this engine that the state assigned to this node at the version `since`.
    Opening { since: u64, engine: Engine },
    /// Changes the slots of a served volume.
    Serving,
    /// Closes, releases and removes a volume.
    Departing,
}

/// The end of a step.
pub(super) struct End {
    pub(super) volume: NodeName,
    pub(super) kind: Kind,
    pub(super) outcome: Result<Outcome, NodeError>,
}

/// The open database of a volume, once its step has opened it.
pub(super) type Place = Arc<OnceLock<Arc<Volume>>>;

struct Step {
    kind: Kind,
    abort: AbortHandle,
    storage: Place,
    /// `true` once a pass has given up the wait for the step.
    is_late: bool,
}

/// The steps that are under way, at most one for each volume.
pub(super) struct Steps {
    under_way: BTreeMap<NodeName, Step>,
    /// Outcomes of steps. At most one for each step under way, so their number is bounded.
    outcomes: mpsc::UnboundedReceiver<(NodeName, Result<Outcome, NodeError>)>,
    sender: mpsc::UnboundedSender<(NodeName, Result<Outcome, NodeError>)>,
}

impl Steps {
    /// Returns a set without steps.
    pub(super) fn new() -> Steps {
        let (sender, outcomes) = mpsc::unbounded_channel();
        Steps {
            under_way: BTreeMap::new(),
            outcomes,
            sender,
        }
    }

    /// Returns `true` if no step is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Returns `true` if a step of the volume is under way. No other step may begin then.
    pub(super) fn is_busy(&self, volume: &NodeName) -> bool {
        self.under_way.contains_key(volume)
    }

    /// Returns `true` if a step under way may have the local copy of the volume open. A departure
    /// of a closed volume has not.
    pub(super) fn need_copy(&self, volume: &NodeName) -> bool {
        let step = self.under_way.get(volume);
        step.is_some_and(|step| step.kind != Kind::Departing || step.storage.get().is_some())
    }

    /// Returns the number of openings under way for the volumes of an engine.
    pub(super) fn openings_at(&self, engine: &Engine) -> usize {
        let is_at = |step: &&Step| matches!(&step.kind, Kind::Opening { engine: at, .. } if at == engine);
        self.under_way.values().filter(is_at).count()
    }

    fn begin(
        &mut self,
        volume: NodeName,
        kind: Kind,
        storage: Place,
        work: impl Future<Output = Result<Outcome, NodeError>> + Send + 'static,
    ) {
        let task = runtime::spawn(work);
        let step = Step {
            kind,
            abort: task.abort_handle(),
            storage,
            is_late: false,
        };
        let (sender, name) = (self.sender.clone(), volume.clone());
        runtime::spawn(async move {
            // There is no result if the step panicked, which has been logged, or was dropped.
            let outcome = task.await.unwrap_or(Err(StorageError::Closed.into()));
            // The send fails if the reconciler has ended.
            let _ = sender.send((name, outcome));
        });
        self.under_way.insert(volume, step);
    }

    /// Begins to open a volume of this engine.
    pub(super) fn open(&mut self, inputs: Inputs, volume: NodeName, engine: Engine) {
        let since = inputs.state.since(&volume);
        let (kind, place) = (Kind::Opening { since, engine }, Place::default());
        let opening = open(inputs, volume.clone(), Arc::clone(&place));
        self.begin(volume, kind, place, opening);
    }

    /// Begins to activate slots that the ring adds to a volume.
    pub(super) fn gain(&mut self, inputs: Inputs, server: &Arc<VolumeServer>) {
        let gaining = gain(inputs, Arc::clone(server));
        self.begin(server.volume.clone(), Kind::Serving, place_of(server), gaining);
    }

    /// Begins to release slots that the ring takes from a volume, to undo ended migrations, and to
    /// restart the server if it must be restarted.
    pub(super) fn settle(&mut self, inputs: Inputs, server: &Arc<VolumeServer>) {
        let settling = settle(inputs, Arc::clone(server));
        self.begin(server.volume.clone(), Kind::Serving, place_of(server), settling);
    }

    /// Begins to close, release and, with `removes`, remove a volume. A removal in an engine ends
    /// early when `stop` becomes `true`.
    pub(super) fn depart(
        &mut self,
        volumes: Arc<dyn Volumes>,
        volume: NodeName,
        departure: Departure,
        removes: bool,
        stop: watch::Receiver<bool>,
    ) {
        let place = departure.server.as_ref().map(place_of).unwrap_or_default();
        let departing = depart(volumes, volume.clone(), departure, removes, stop);
        self.begin(volume, Kind::Departing, place, departing);
    }

    fn end(&mut self, (volume, outcome): (NodeName, Result<Outcome, NodeError>)) -> Option<End> {
        let step = self.under_way.remove(&volume)?;
        Some(End {
            volume,
            kind: step.kind,
            outcome,
        })
    }

    /// Returns the end of the next step that ends. Waits without end if no step is under way.
    /// Cancellation safe.
    pub(super) async fn next(&mut self) -> Option<End> {
        let ended = self.outcomes.recv().await?;
        self.end(ended)
    }

    /// Returns the end of the next step that ends, as long as a step is under way that no earlier
    /// call has given up. At the time `until`, or once `stop` is `true`, gives up the steps under
    /// way and returns `None`. They go on (`next`).
    pub(super) async fn next_until(&mut self, until: Instant, stop: &watch::Receiver<bool>) -> Option<End> {
        let mut stop = stop.clone();
        while self.under_way.values().any(|step| !step.is_late) {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                end = self.next() => if end.is_some() {
                    return end;
                },
                () = tokio::time::sleep_until(until) => break,
            }
        }
        for (volume, step) in &mut self.under_way {
            if !std::mem::replace(&mut step.is_late, true) {
                tracing::debug!(%volume, kind = ?step.kind, "step on a volume goes on in later passes");
            }
        }
        None
    }

    /// Makes the commits of a volume fail that its engine does not answer, so that the step of the
    /// volume ends. The volume must be closed afterwards.
    pub(super) fn stop_waiting(&self, volume: &NodeName) {
        let step = self.under_way.get(volume);
        if let Some(storage) = step.and_then(|step| step.storage.get()) {
            storage.stop_waiting();
        }
    }

    /// Makes the commits of all steps fail that an engine does not answer, and drops the openings
    /// that have not opened their volume.
    pub(super) fn hurry(&self) {
        for step in self.under_way.values() {
            match step.storage.get() {
                Some(storage) => storage.stop_waiting(),
                None if step.kind != Kind::Departing => step.abort.abort(),
                None => {}
            }
        }
    }

    /// Drops all steps except for departures, of which each part has a bound.
    pub(super) fn drop_all(&self) {
        for step in self
            .under_way
            .values()
            .filter(|step| step.kind != Kind::Departing)
        {
            step.abort.abort();
        }
    }
}

fn place_of(server: &Arc<VolumeServer>) -> Place {
    Arc::new(OnceLock::from(Arc::clone(&server.app.state().storage)))
}

/// Returns `true` if a server does not follow this ring yet.
pub(super) fn is_behind(server: &VolumeServer, ring: &Arc<Ring>) -> bool {
    !Arc::ptr_eq(&server.ring(), ring)
}

/// Restarts a volume server after a change of its slots that it cannot apply while it runs. Returns
/// the new server. After an error the old server serves nothing, and must be restarted again.
async fn restart(inputs: &Inputs, server: &VolumeServer) -> Result<Arc<VolumeServer>, NodeError> {
    let volume = &server.volume;
    tracing::info!(%volume, "volume server restarted");
    server.quiesce().await;
    let storage = Arc::clone(&server.app.state().storage);
    let remote = RemoteVolumeClient::of(&inputs.cluster, volume);
    VolumeServer::start(
        &inputs.context,
        volume,
        storage,
        &inputs.state,
        &inputs.ring,
        remote,
    )
    .await
}

async fn gain(inputs: Inputs, server: Arc<VolumeServer>) -> Result<Outcome, NodeError> {
    let server = match server.activate_slots(&inputs.state, &inputs.ring).await? {
        true => server,
        false => restart(&inputs, &server).await?,
    };
    Ok(Outcome::Served(server))
}

async fn settle(inputs: Inputs, server: Arc<VolumeServer>) -> Result<Outcome, NodeError> {
    let mut served = Arc::clone(&server);
    match settle_slots(&inputs, &mut served).await {
        Err(error) if Arc::ptr_eq(&server, &served) => return Err(error),
        // The former server serves nothing any more. The next pass repeats the rest of this step.
        Err(error) => {
            let (volume, error) = (&served.volume, with_causes(&error));
            tracing::warn!(%volume, error, "slots of a restarted volume not settled yet");
        }
        Ok(()) => {}
    }
    Ok(Outcome::Served(served))
}

/// Settles the slots of a volume as `Steps::settle` says. Replaces `server` at each restart.
async fn settle_slots(inputs: &Inputs, server: &mut Arc<VolumeServer>) -> Result<(), NodeError> {
    let Inputs { state, ring, .. } = inputs;
    if server.must_restart_now().await {
        *server = restart(inputs, server).await?;
    }
    if is_behind(server, ring) {
        // A release would let the server own the added slots without their rows.
        if server.app.state().slots.differences(ring).adds {
            return Ok(());
        }
        if !server.release_slots(state, ring).await? {
            *server = restart(inputs, server).await?;
        }
    }
    server.undo(state).await?;
    Ok(())
}

async fn open(inputs: Inputs, volume: NodeName, place: Place) -> Result<Outcome, NodeError> {
    let expected = match inputs.state.ring.member(&volume) {
        Some(_) => Expected::Existing,
        None => Expected::MaybeNew,
    };
    let opened = Arc::clone(&inputs.volumes).open(volume.clone(), expected).await?;
    let Some(storage) = opened else {
        return Ok(Outcome::NotYet);
    };
    let storage = Arc::new(storage);
    let _ = place.set(Arc::clone(&storage));
    let started = start(&inputs, &volume, &storage).await;
    if matches!(started, Ok(Outcome::Served(_))) {
        return started;
    }
    // The volume is not served, so it must not stay locked, and its next server must not wait.
    let closed = close(storage).await;
    release(inputs.volumes, &volume).await;
    let outcome = started?;
    closed?;
    Ok(outcome)
}

/// Waits for the start of the first server of an open volume. Fails if a commit of the start waits
/// for the engine of the volume at two checks in a row (`Volume::check_engine`). No task has been
/// started then, and the volume must be closed.
async fn unless_away<T>(
    start: impl Future<Output = T>,
    mut check_engine: impl FnMut() -> Result<(), StorageError>,
) -> Result<T, StorageError> {
    let mut start = std::pin::pin!(start);
    let mut was_away = false;
    loop {
        if let Ok(started) = tokio::time::timeout(START_PATIENCE, &mut start).await {
            return Ok(started);
        }
        match check_engine() {
            Err(error) if was_away => return Err(error),
            checked => was_away = checked.is_err(),
        }
    }
}

async fn close(storage: Arc<Volume>) -> Result<(), StorageError> {
    let closed = runtime::blocking(move || storage.close()).await;
    closed.unwrap_or(Err(StorageError::Closed))
}

/// Releases a volume that was opened and not served. If that fails, the next server waits until the
/// lease of this process has ended.
async fn release(volumes: Arc<dyn Volumes>, volume: &NodeName) {
    if let Err(error) = volumes.release(volume.clone()).await {
        tracing::debug!(%volume, error = with_causes(&error), "volume not released");
    }
}

/// Starts the server of an open volume, unless the volume belongs to another node or waits for the
/// end of a migration.
async fn start(inputs: &Inputs, volume: &NodeName, storage: &Arc<Volume>) -> Result<Outcome, NodeError> {
    let Inputs {
        cluster,
        context,
        state,
        ring,
        ..
    } = inputs;
    // The state is read again, because it may have changed while the volume was being opened. In a
    // data folder, no other process can open the volume from here on.
    let now = cluster.authority.read().await?;
    if now.version != state.version {
        cluster.look.notify_one();
    }
    let is_same = now.since(volume) == state.since(volume);
    if now.serving.get(volume) != Some(&cluster.me) || !is_same {
        return Ok(Outcome::Elsewhere);
    }
    // The volume may contain staged rows of a migration that is neither committed nor undone. Such
    // rows may be neither served nor removed, because a coordinator that does not know of this
    // restart may still commit the migration. So the volume is closed again until the migration has
    // ended.
    let under_way = now.moving.as_ref().map(|moving| moving.id);
    if under_way.is_some() && staged_migration(storage).await? == under_way {
        return Ok(Outcome::NotYet);
    }
    let ring = if now.ring == **ring {
        Arc::clone(ring)
    } else {
        Arc::new(now.ring.clone())
    };
    let remote = RemoteVolumeClient::of(cluster, volume);
    let starting = VolumeServer::start(context, volume, Arc::clone(storage), &now, &ring, remote);
    let started = unless_away(starting, || storage.check_engine()).await;
    if started.is_err() {
        tracing::warn!(%volume, "volume closed again: its engine stopped answering while the volume was opened");
    }
    let server = started??;
    if *volume != cluster.me {
        tracing::info!(%volume, "volume taken over");
    }
    Ok(Outcome::Served(server))
}

async fn depart(
    volumes: Arc<dyn Volumes>,
    volume: NodeName,
    mut departure: Departure,
    removes: bool,
    mut stop: watch::Receiver<bool>,
) -> Result<Outcome, NodeError> {
    if let Some(server) = departure.server.take() {
        let has_ended = server.app.state().storage.has_ended();
        match server.close().await {
            Err(error) if has_ended => {
                tracing::warn!(%volume, error = with_causes(&error), "lost volume not closed cleanly");
            }
            Err(error) => departure.fault = Some(error.into()),
            Ok(()) => {}
        }
    }
    let failed = |mut departure: Departure, error: &NodeError| {
        let error = with_causes(error);
        if departure.failures == 0 {
            tracing::warn!(%volume, error, "closed volume not released or removed yet");
        } else {
            tracing::debug!(%volume, error, "closed volume not released or removed yet");
        }
        departure.fail();
        Outcome::Remains(departure)
    };
    if !departure.is_released {
        if let Err(error) = Arc::clone(&volumes).release(volume.clone()).await {
            return Ok(failed(departure, &error));
        }
        departure.is_released = true;
    }
    if !removes {
        if !*stop.borrow() {
            tracing::info!(%volume, "volume handed over");
        }
        return Ok(Outcome::Departed(departure.fault));
    }
    let is_local = volumes.are_local();
    let removed = tokio::select! {
        biased;
        // In an engine, a removal that was begun takes place completely or not at all, and may be
        // repeated. Files must be removed completely before the name of the node is free.
        _ = stop.wait_for(|stop| *stop), if !is_local => return Ok(Outcome::Departed(departure.fault)),
        removed = volumes.remove(volume.clone()) => removed,
    };
    if let Err(error) = removed {
        return Ok(failed(departure, &error));
    }
    tracing::info!(%volume, "volume removed, its node left");
    Ok(Outcome::Departed(departure.fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_is_given_up_if_its_engine_does_not_answer_at_two_checks_in_a_row() {
        let mut answers = [false, true, false, false].into_iter();
        let check = || match answers.next().unwrap() {
            true => Ok(()),
            false => Err(StorageError::EngineAway),
        };
        let given_up = unless_away(std::future::pending::<()>(), check).await;
        assert!(matches!(given_up, Err(StorageError::EngineAway)));
        assert_eq!(answers.next(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_start_is_not_given_up_while_its_engine_answers() {
        let mut checks = 0;
        let start = async {
            tokio::time::sleep(START_PATIENCE * 10).await;
            7
        };
        let check = || {
            checks += 1;
            Ok(())
        };
        assert!(matches!(unless_away(start, check).await, Ok(7)));
        assert!(checks > 2);
    }
}
