//! The web console of a node: a page at `/`, its data, and the stream of changes.
//!
//! - The console only reads. No route of it changes anything.
//! - Each node records its own requests and the events of the cluster at all times. Other nodes are
//!   asked for their figures only while a page is open, by one task for all pages.
//! - At most `STREAMS_MAX` streams are open. A stream ends when the node begins to stop.
//! - Memory is bounded: `SECONDS_KEPT` seconds, `EVENTS_KEPT` events, one message a stream.
//! - No topology is held across a wait: a move waits for topologies that are in use.
//!
//! Absent: users and sessions. The console is as reachable as the API is, on the same listener.

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

/// Streams that may be open at a time: a page has one, and a browser opens six to one host.
const STREAMS_MAX: usize = 32;
/// Longest wait for another node's figures: within the second in which they are shown.
const FIGURES_TIMEOUT: Duration = Duration::from_millis(700);
/// Age at which figures are asked for again by a page that opens.
const FIGURES_FRESH: Duration = Duration::from_millis(500);

/// Tells the streams that there is something to send.
#[derive(Clone, Copy, Debug, Default)]
struct Signal {
    /// True once the node stops.
    is_closed: bool,
}

/// The console of this node.
pub(crate) struct Console {
    cluster: Arc<ClusterHandle>,
    clock: Clock,
    /// Tells this process from an earlier one of the same node.
    incarnation: u64,
    recorder: Mutex<Recorder>,
    /// Events of the volumes that are served here, for other nodes.
    volume_log: Mutex<Log>,
    overview: Mutex<Overview>,
    /// Held while the nodes are asked; the moment of the last answers.
    collected: tokio::sync::Mutex<Option<Instant>>,
    signals: watch::Sender<Signal>,
    streams: Arc<Semaphore>,
}

impl Console {
    /// A console that knows nothing yet; `run` fills it.
    pub(crate) fn new(cluster: Arc<ClusterHandle>, clock: Clock) -> Arc<Console> {
        Arc::new(Console {
            cluster,
            clock,
            // 0 stands for no process.
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

    /// Records until the node stops; then ends the streams.
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

    /// Logs the changes of the cluster since the last look.
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

    /// Records the last second and the changes of the volumes that are served here.
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
            // A volume that was just opened reports its faults, and not its earlier dead letters.
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

    /// This node's answer to another one, or to itself.
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

    /// Asks all nodes for their figures, and wakes the streams.
    async fn collect(&self) {
        let mut collected = self.collected.lock().await;
        let (nodes, addresses) = self.others();
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
        let own = self.figures(&self.overview().question(me));
        {
            let mut overview = self.overview();
            overview.keep(&nodes);
            overview.hear(me, Ok(own), true);
            for (node, answer) in answers {
                overview.hear(&node, answer, false);
            }
        }
        *collected = Some(Instant::now());
        drop(collected);
        self.signals.send_modify(|_| {});
    }

    /// All nodes that live, and the addresses of the others.
    fn others(&self) -> (BTreeSet<NodeName>, Vec<(NodeName, SocketAddr)>) {
        let topology = self.cluster.topology();
        let nodes: BTreeSet<NodeName> = topology.state.serving.values().cloned().collect();
        let others = nodes.iter().filter(|node| **node != self.cluster.me);
        let address = |node: &NodeName| Some((node.clone(), topology.node_infos.get(node)?.address));
        (nodes.clone(), others.filter_map(address).collect())
    }

    /// Asks all nodes unless they were asked a moment ago.
    async fn refresh(&self) {
        let is_fresh = {
            let collected = self.collected.lock().await;
            collected.is_some_and(|at| at.elapsed() < FIGURES_FRESH)
        };
        if !is_fresh {
            self.collect().await;
        }
    }

    /// The state as JSON, from a cursor on.
    fn render(&self, cursor: &mut Cursor) -> Result<Vec<u8>, serde_json::Error> {
        let topology = self.cluster.topology();
        let overview = self.overview();
        let mut state = overview.state(&topology, self.cluster.trouble(), self.clock.now_ms(), cursor);
        state.cursor = stream::cursor_text(cursor, self.incarnation);
        serde_json::to_vec(&state)
    }

    /// Returns the page itself, or 304 to a client that has it.
    pub(crate) fn page(headers: &HeaderMap) -> Response<AnswerBody> {
        page::answer(headers)
    }

    /// Answers `GET /console/events`.
    pub(crate) fn events(self: &Arc<Self>, headers: &HeaderMap) -> Response<AnswerBody> {
        stream::answer(self, headers)
    }

    /// Answers `GET /console/state` with the whole state, or with the changes since the cursor that
    /// a client shows.
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
