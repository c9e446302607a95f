//! Calls between processes: late, now and then lost on the way there or back, broken off when the
//! other side dies.
//!
//! A call ends up in the same gate, and in the same routes, as one that comes over HTTP. Whoever
//! gives a call up has it given up at the other side a moment later, wherever it is by then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::cluster::peer_client::{NoAnswer, Sending, Transport};
use crate::control::handle::epoch_of;
use crate::simulation::world::World;

/// The way out of one node.
pub(super) struct Net {
    pub(super) world: Arc<World>,
    pub(super) from: String,
}

impl Transport for Net {
    fn send(&self, address: SocketAddr, request: Request<Body>) -> Sending<'_> {
        Box::pin(carry(&self.world, &self.from, address, request))
    }
}

/// Takes a call to whoever answers at that address.
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
            let response = cluster.answer(request).await.map(Body::new);
            // Whoever called may not wait any more.
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

/// Some time; for ever, if the message gets lost.
async fn travel(world: &Arc<World>) {
    let wait_ms = match world.dice.between(0, 999) {
        0..=1 => world.dice.between(1_000, 6_000),
        2..=29 => world.dice.between(10, 300),
        _ => world.dice.between(0, 3),
    };
    tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    if world.dice.between(0, 999) < world.loss.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Ends what a call began, a moment after nobody waits for it any more.
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
