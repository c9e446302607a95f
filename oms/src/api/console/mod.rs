//! The web console of a node: a page at `/`, its data as JSON, and a stream of changes.
//!
//! - The console is read-only. None of its routes changes any state.
//! - Each node always records its own requests and the events of the cluster. Figures of other
//!   nodes are requested only while a stream is open (for all streams together), when a stream
//!   begins, and for `GET /console/state`.
//! - At most `STREAMS_MAX` streams are open. All streams end once the node begins to stop.
//! - Memory is bounded: each list has at most `SECONDS_KEPT` seconds or `EVENTS_KEPT` events, and a
//!   few messages wait for each stream.
//! - No topology is held across an `await`. A move of slots from the only volume of a cluster
//!   waits, for at most two seconds, until the topologies in which that volume was the only one are
//!   released.
//!
//! Absent: users and sessions. The console uses the listener of the API, so every client of the API
//! can read it.

mod events;
mod figures;
mod page;
mod samples;
mod state;
mod stream;

pub(super) use page::is_wanted as is_page_wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response};
use imt_ring::NodeName;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::fast_path::AnswerBody;
use crate::api::forward::refusal;
use crate::api::problem::Problem;
use crate::cluster::peer_call::PeerCall;
use crate::control::handle::ClusterHandle;
use crate::runtime;
use crate::runtime::clock::Clock;
use crate::runtime::watch;
use events::{Log, Scene, VolumeScene};
use figures::{AskFigures, NodeFigures, VolumeFigures};
use samples::Recorder;
use state::{Cursor, Overview};

/// Maximum number of open streams. Each page has one stream, and a browser opens at most six
/// connections to a host. So at least five browsers can show the console at the same time.
const STREAMS_MAX: usize = 32;
/// Longest wait for the figures of another node. The wait is shorter than a second, because the
/// figures are requested once a second.
const FIGURES_TIMEOUT: Duration = Duration::from_millis(700);
/// Maximum age of the collected figures that a new stream or `GET /console/state` shows. Older
/// figures are requested again.
const FIGURES_FRESH: Duration = Duration::from_millis(500);

/// Notifies the streams of new data or of the stop of the node.
#[derive(Clone, Copy, Debug, Default)]
struct Signal {
    /// `true` once the node begins to stop.
    is_closed: bool,
}

/// The console's data and streams on this node.
pub(crate) struct Console {
    cluster: Arc<ClusterHandle>,
    clock: Clock,
    /// Random number of this process. It differs from that of earlier processes of the same node.
    incarnation: u64,
    recorder: Mutex<Recorder>,
    /// Events of the volumes that this node serves or served. Other nodes read them through
    /// [`Console::figures`].
    volume_log: Mutex<Log>,
    overview: Mutex<Overview>,
    /// The time of the last collection of figures. The lock is held during a collection, so that
    /// only one collection runs at a time.
    collected: tokio::sync::Mutex<Option<Instant>>,
    signals: watch::Sender<Signal>,
    streams: Arc<Semaphore>,
}

impl Console {
    /// Creates a console without data. [`Console::run`] records the data.
    pub(crate) fn new(cluster: Arc<ClusterHandle>, clock: Clock) -> Arc<Console> {
        Arc::new(Console {
            cluster,
            clock,
            // `AskFigures::incarnation` is 0 before the first response, so no process may have that
            // number.
            incarnation: runtime::random_u64().max(1),
            recorder: Mutex::default(),
            volume_log: Mutex::default(),
            overview: Mutex::default(),
            collected: tokio::sync::Mutex::default(),
            signals: watch::Sender::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        })
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock()
    }

    fn volume_log(&self) -> MutexGuard<'_, Log> {
        self.volume_log.lock()
    }

    fn overview(&self) -> MutexGuard<'_, Overview> {
        self.overview.lock()
    }

    /// Records requests and events, and collects figures while a stream is open, until the node
    /// stops. Then ends the streams.
    pub(crate) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut scene = Scene::of(&self.cluster.topology());
        let mut volumes = BTreeMap::new();
        let mut collecting = JoinSet::new();
        loop {
            let changes = self.cluster.topology_changed();
            self.look(&mut scene);
            let to_next = 1_000 - self.clock.now_ms() % 1_000;
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                () = changes => {}
                () = tokio::time::sleep(Duration::from_millis(to_next)) => {
                    self.tick(&mut volumes);
                    while collecting.try_join_next().is_some() {}
                    if self.signals.receiver_count() > 0 && collecting.is_empty() {
                        let console = Arc::clone(&self);
                        collecting.spawn(async move { console.collect().await });
                    }
                }
            }
        }
        self.signals.send_modify(|signal| signal.is_closed = true);
    }

    /// Logs the changes of the cluster since `scene`, replaces `scene` by the present state, and
    /// notifies the streams. Does nothing if the cluster is unchanged.
    fn look(&self, scene: &mut Scene) {
        let now = {
            let topology = self.cluster.topology();
            if scene.is_of(&topology) {
                return;
            }
            Scene::of(&topology)
        };
        let at_ms = self.clock.now_ms();
        let mut overview = self.overview();
        for event in events::differences(scene, &now, at_ms) {
            overview.log.push(event);
        }
        drop(overview);
        *scene = now;
        self.signals.send_modify(|_| {});
    }

    /// Records the requests since the previous tick, and logs the changes of the volumes that this
    /// node serves.
    fn tick(&self, volumes: &mut BTreeMap<NodeName, VolumeScene>) {
        let now_ms = self.clock.now_ms();
        self.recorder()
            .record(now_ms / 1_000, self.cluster.metrics.counts());
        let figures = VolumeFigures::of_all(&self.cluster.topology());
        let mut seen = BTreeMap::new();
        for figures in figures {
            let Ok(volume) = NodeName::new(&figures.volume) else {
                continue;
            };
            let now = figures.scene();
            // For a volume that the previous tick did not see, a present fault or open circuit
            // breaker is logged. Its present dead letters are not, because they are not new.
            let before = volumes.remove(&volume).unwrap_or_else(|| VolumeScene {
                dead_letters: now.dead_letters,
                ..VolumeScene::default()
            });
            for event in events::volume_differences(&self.cluster.me, &volume, &before, &now, now_ms) {
                self.volume_log().push(event.clone());
                self.overview().log.push(event);
            }
            seen.insert(volume, now);
        }
        *volumes = seen;
    }

    /// Returns this node's volumes, and the recorded seconds and events after those that the
    /// request names. If the request names another incarnation, all kept events are returned.
    pub(super) fn figures(&self, ask: &AskFigures) -> NodeFigures {
        let since = if ask.incarnation == self.incarnation {
            ask.event
        } else {
            0
        };
        let missing = self.cluster.missing().clone();
        NodeFigures {
            incarnation: self.incarnation,
            volumes: VolumeFigures::of_all(&self.cluster.topology()),
            missing: missing
                .into_iter()
                .map(|(volume, reason)| (volume.to_string(), reason))
                .collect(),
            samples: self.recorder().since(ask.second),
            events: self.volume_log().since(since).cloned().collect(),
        }
    }

    /// Collects the figures of this node and, by requests, those of the other nodes. Then notifies
    /// the streams.
    async fn collect(&self) {
        let mut collected = self.collected.lock().await;
        let (nodes, addresses) = self.others();
        let has_address = |node: &NodeName| addresses.iter().any(|(known, _)| known == node);
        let without_address: Vec<NodeName> = nodes
            .iter()
            .filter(|node| **node != self.cluster.me && !has_address(node))
            .cloned()
            .collect();
        let mut asked = JoinSet::new();
        for (node, address) in addresses {
            let question = self.overview().question(&node);
            let peers = Arc::clone(&self.cluster.peers);
            asked.spawn(async move {
                let answer =
                    peers.ask::<NodeFigures>(address, &PeerCall::Console, &question, FIGURES_TIMEOUT);
                (node, answer.await.map_err(|reason| reason.0))
            });
        }
        let answers = asked.join_all().await;
        let me = &self.cluster.me;
        let question = self.overview().question(me);
        let own = self.figures(&question);
        {
            let mut overview = self.overview();
            overview.keep(&nodes);
            overview.hear(me, Ok(own), true);
            for (node, answer) in answers {
                overview.hear(&node, answer, false);
            }
            for node in without_address {
                overview.hear(
                    &node,
                    Err("the address of the node is not known".to_owned()),
                    false,
                );
            }
        }
        *collected = Some(Instant::now());
        drop(collected);
        self.signals.send_modify(|_| {});
    }

    /// Returns the names of all nodes that are assigned to serve a volume. Also returns the known
    /// addresses of these nodes, except that of this node.
    fn others(&self) -> (BTreeSet<NodeName>, Vec<(NodeName, SocketAddr)>) {
        let topology = self.cluster.topology();
        let nodes: BTreeSet<NodeName> = topology.state.serving.values().cloned().collect();
        let others = nodes.iter().filter(|node| **node != self.cluster.me);
        let address = |node: &NodeName| Some((node.clone(), topology.node_infos.get(node)?.address));
        (nodes.clone(), others.filter_map(address).collect())
    }

    /// Collects the figures of all nodes unless that was done within the last `FIGURES_FRESH`.
    async fn refresh(&self) {
        let is_fresh = {
            let collected = self.collected.lock().await;
            collected.is_some_and(|at| at.elapsed() < FIGURES_FRESH)
        };
        if !is_fresh {
            self.collect().await;
        }
    }

    /// Renders the changes since a cursor as JSON, and advances the cursor to the newest state.
    fn render(&self, cursor: &mut Cursor) -> Result<Vec<u8>, serde_json::Error> {
        let topology = self.cluster.topology();
        let overview = self.overview();
        let mut state = overview.state(&topology, self.cluster.trouble(), self.clock.now_ms(), cursor);
        state.cursor = stream::cursor_text(cursor, self.incarnation);
        serde_json::to_vec(&state)
    }

    /// Returns the console's page, or 304 to a client that has the current version cached.
    pub(crate) fn page(headers: &HeaderMap) -> Response<AnswerBody> {
        page::answer(headers)
    }

    /// Handles `GET /console/events`.
    pub(crate) fn events(self: &Arc<Self>, headers: &HeaderMap) -> Response<AnswerBody> {
        stream::answer(self, headers)
    }

    /// Handles `GET /console/state`. The response is the whole state, or the changes since the
    /// cursor in the request's `Last-Event-ID` header if this process sent that cursor.
    pub(crate) async fn state(&self, headers: &HeaderMap) -> Response<AnswerBody> {
        self.refresh().await;
        let mut cursor = stream::last_event(headers, self.incarnation).unwrap_or_default();
        match self.render(&mut cursor) {
            Ok(body) => {
                let mut response = Response::new(AnswerBody::Long(Body::from(body)));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                response
            }
            Err(error) => refusal(Problem::internal(error.to_string())),
        }
    }
}
