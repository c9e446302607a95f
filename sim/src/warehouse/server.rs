//! The accept loop: plain TCP, HTTP/1 and HTTP/2, until the warehouse stops.
//!
//! An announced order is on its way for seconds, so an order management under load has thousands of
//! calls open here: HTTP/2 callers get as many streams as they need. Callers that never finish a
//! request head are let go.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use super::House;

/// A request head must be there within this; also how long a kept connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// After a stop, answers in flight have this long.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepting failed, most likely for want of descriptors: give connections that long to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Calls open at once on one HTTP/2 connection: 4 s of 4,000 orders a second.
const STREAMS_MAX: u32 = 16_384;

/// Serves until the house is told to stop, then lets calls in flight finish.
pub(super) async fn serve(listener: TcpListener, router: Router, house: Arc<House>) {
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
            () = house.stopped() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the warehouse cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are small and awaited one by one: never hold one back to fill a packet.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the warehouse ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(STOP_TIMEOUT, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("calls to the warehouse were still open when it stopped");
    }
}
