//! Calls and connections between simulated processes.
//!
//! - A call or its answer is delayed, and sometimes lost. If the called process dies, the call ends
//!   with an error. This error may be lost like an answer.
//! - The frames of one connection arrive in order, late, twice, or not at all. Frames of two
//!   connections arrive in any order.
//! - A received call runs the same routes as a call over HTTP, except for those of the console. If
//!   the caller drops a call, the called process stops working on it a moment later.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::api::forward::Api;
use crate::api::host_names::HostNames;
use crate::api::routes::Target;
use crate::cluster::channel::{
    Dialer, Dialing, Frame, FrameSink, FrameSource, HEADER_BYTES, Link, LinkError, Transfer, open_header,
    serve,
};
use crate::cluster::peer_client::{NoAnswer, Sending, Transport, epoch_of};
use crate::simulation::world::World;

/// Number of frames that each end of a connection buffers in each direction, like the buffers of a
/// socket.
const FRAMES_BUFFERED: usize = 64;
/// Timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The network as used by the node `from`.
#[derive(Clone)]
pub(super) struct Net {
    pub(super) world: Arc<World>,
    pub(super) from: String,
}

impl Transport for Net {
    fn send(&self, address: SocketAddr, request: Request<Body>) -> Sending<'_> {
        Box::pin(carry(&self.world, &self.from, address, request))
    }
}

impl Dialer for Net {
    fn dial(&self, address: SocketAddr) -> Dialing {
        let net = self.clone();
        Box::pin(async move {
            let connecting = tokio::time::timeout(CONNECT_TIMEOUT, net.connect(address));
            let late = || Err(LinkError("no connection in time".to_owned()));
            connecting.await.unwrap_or_else(|_| late())
        })
    }
}

impl Net {
    async fn connect(self, address: SocketAddr) -> Result<Link, LinkError> {
        let world = &self.world;
        travel(world).await;
        let (to, process, cluster) = {
            let inside = world.inside();
            let id = inside.incarnations.iter().rposition(|one| one.address == address);
            let listens = id.and_then(|id| {
                let one = &inside.incarnations[id];
                Some((id, Arc::clone(&one.process), Arc::clone(one.cluster.as_ref()?)))
            });
            listens.ok_or(LinkError("connection refused".to_owned()))?
        };
        let (there, here) = (self.carry_frames(to, true), self.carry_frames(to, false));
        let link = Link {
            sink: Box::new(Sink(here.0)),
            source: Box::new(Source(there.1)),
        };
        // The result of `serve` is dropped, because the process that opened the connection also
        // sees how the connection ends.
        process.spawn(async move { drop(serve(link, cluster).await) });
        travel(world).await;
        Ok(Link {
            sink: Box::new(Sink(there.0)),
            source: Box::new(Source(here.1)),
        })
    }

    /// Creates one direction of a connection to the incarnation with the number `to`. `is_there` is
    /// `true` for the direction to that incarnation, and is only noted in the trace. Frames are
    /// delayed, lost or repeated on their way.
    fn carry_frames(&self, to: usize, is_there: bool) -> (mpsc::Sender<Frame>, mpsc::Receiver<Frame>) {
        let (sender, mut sent) = mpsc::channel::<Frame>(FRAMES_BUFFERED);
        let (deliver, receiver) = mpsc::channel(FRAMES_BUFFERED);
        let (world, from) = (Arc::clone(&self.world), self.from.clone());
        tokio::spawn(async move {
            while let Some(frame) = sent.recv().await {
                tokio::time::sleep(Duration::from_millis(time_on_the_way(&world))).await;
                // A process that has stopped gracefully has closed its connections.
                if world.inside().incarnations[to].cluster.is_none() {
                    return;
                }
                let luck = world.dice.between(0, 999);
                let (number, bytes) = (frame.number, frame.payload.len());
                world.note(|| format!("{from} {is_there} {to} frame {number}: {bytes} bytes, {luck}"));
                if luck < world.loss.load(Ordering::Relaxed) {
                    world.count("frames lost");
                    continue;
                }
                if luck >= 980 {
                    world.count("frames repeated");
                    let _ = deliver.send(frame.clone()).await;
                }
                if deliver.send(frame).await.is_err() {
                    return;
                }
            }
        });
        (sender, receiver)
    }
}

struct Sink(mpsc::Sender<Frame>);

impl FrameSink for Sink {
    fn send(&mut self, frame: Vec<u8>) -> Transfer<'_, Vec<u8>> {
        Box::pin(async move {
            let header = frame.first_chunk::<HEADER_BYTES>();
            let (length, number) = open_header(header.ok_or(LinkError("no header".to_owned()))?)?;
            let payload = Bytes::copy_from_slice(&frame[HEADER_BYTES..]);
            assert_eq!(payload.len(), length);
            let sent = self.0.send(Frame { number, payload }).await;
            sent.map_err(|_| LinkError("the connection broke".to_owned()))?;
            Ok(frame)
        })
    }
}

struct Source(mpsc::Receiver<Frame>);

impl FrameSource for Source {
    fn receive(&mut self) -> Transfer<'_, Option<Frame>> {
        Box::pin(async move { Ok(self.0.recv().await) })
    }
}

/// Delivers a call to the process at an address, and returns its answer.
pub(super) async fn carry(
    world: &Arc<World>,
    from: &str,
    address: SocketAddr,
    request: Request<Body>,
) -> Result<Response<Body>, NoAnswer> {
    let path = request.uri().path().to_owned();
    if let Some(epoch) = epoch_of(request.headers())
        && world.epoch().is_some_and(|now| now > epoch + 1)
    {
        world.count("calls routed several epochs behind");
    }
    travel(world).await;
    let (answer, answered) = oneshot::channel();
    let (to, handling) = {
        let inside = world.inside();
        let found = inside.incarnations.iter().rfind(|one| one.address == address);
        let found = found.and_then(|one| {
            Some((
                one.name.clone(),
                Arc::clone(&one.process),
                Arc::clone(one.cluster.as_ref()?),
            ))
        });
        drop(inside);
        let Some((name, process, cluster)) = found else {
            return Err(NoAnswer("connection refused".to_owned()));
        };
        let task = process.spawn(async move {
            let api = Api {
                cluster,
                console: None,
                cors: None,
                hosts: HostNames::default(),
            };
            let response = api.answer(Target::of(&request), request).await.map(Body::new);
            // The caller may no longer wait for the answer.
            let _ = answer.send(response);
        });
        (name, task.abort_handle())
    };
    let given_up = GivenUp {
        world: Arc::clone(world),
        handling,
    };
    let response = answered.await;
    drop(given_up);
    let status = response
        .as_ref()
        .map(|response| response.status().as_u16())
        .unwrap_or(0);
    world.note(|| format!("{from} -> {to} {path}: {status}"));
    travel(world).await;
    response.map_err(|_| NoAnswer("the connection broke".to_owned()))
}

/// Returns a random delay of the network in milliseconds.
fn time_on_the_way(world: &World) -> u64 {
    match world.dice.between(0, 999) {
        0..=1 => world.dice.between(1_000, 6_000),
        2..=29 => world.dice.between(10, 300),
        _ => world.dice.between(0, 3),
    }
}

/// Waits for the delay of a call, an answer, or one half of opening a connection. If it is lost,
/// waits forever.
async fn travel(world: &Arc<World>) {
    let wait_ms = time_on_the_way(world);
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    if world.dice.between(0, 999) < world.loss.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Aborts the work on a call, a moment after the caller has dropped the call.
struct GivenUp {
    world: Arc<World>,
    handling: AbortHandle,
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if self.handling.is_finished() {
            return;
        }
        let (handling, wait_ms) = (self.handling.clone(), self.world.dice.between(0, 20));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                handling.abort();
            });
        }
    }
}
