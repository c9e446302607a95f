//! The accept loop: serves HTTP/1 and HTTP/2 over plain TCP until the warehouse stops.
//!
//! In the profile `original` (`behaviour.rs`), an announcement takes seconds. So an order
//! management under load has thousands of open calls to this server. A caller with HTTP/2 can open
//! up to `STREAMS_MAX` streams on a connection. An HTTP/1 connection that does not complete a
//! request head in time is closed.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

use super::Shared;
use super::stream::{Control, FaultyStream};

/// Maximum time to receive a request head over HTTP/1, and maximum idle time of a kept HTTP/1
/// connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time to complete the calls in flight after a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept. The usual cause is a lack of file descriptors. During the pause
/// other connections can close and free their descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum number of open calls on one HTTP/2 connection: enough for 4,000 announcements per second
/// that take 4 s each.
const STREAMS_MAX: u32 = 16_384;

/// Accepts connections until the warehouse stops, then completes the calls in flight, for at most
/// [`STOP_TIMEOUT`].
pub(super) async fn serve(listener: TcpListener, router: Router, shared: Arc<Shared>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stopped() => break,
        };
        match accepted {
            Ok((stream, _)) => open(stream, &builder, &graceful, &router, &shared),
            Err(error) => {
                tracing::warn!(%error, "the warehouse cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("calls to the warehouse were still open when it stopped");
    }
}

/// Serves one connection in a new task, or resets it if the warehouse is unreachable
/// (`Behaviour::is_away`).
fn open(
    stream: TcpStream,
    builder: &Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    router: &Router,
    shared: &Arc<Shared>,
) {
    let control = Control::default();
    if shared.behaviour().is_away {
        control.reset();
        shared.counters.count_fault("away");
        return drop(FaultyStream::new(stream, control));
    }
    // Answers are small, and callers wait for each of them. So no answer is held back to fill a
    // packet. An error is ignored, because it only makes answers slower.
    let _ = stream.set_nodelay(true);
    let service = router.clone().layer(Extension(control.clone()));
    let connection = builder
        .serve_connection(
            TokioIo::new(FaultyStream::new(stream, control.clone())),
            TowerToHyperService::new(service),
        )
        .into_owned();
    let connection = graceful.watch(connection);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the warehouse ended");
            },
            () = control.was_reset() => {}
            // A warehouse that becomes unreachable also resets its open connections. The mark must
            // be set before `select!` drops the connection.
            () = async { shared.went_away().await; control.reset() } => {}
        }
    });
}
