//! The HTTP server: accepts connections and recognizes their protocol. Clients use HTTP/1.1 or
//! HTTP/2 without TLS. Nodes use the channel or HTTP/2. In a cluster on an engine, both are
//! encrypted between machines unless the operator turns the encryption off.
//!
//! **Invariants**
//! - The numbers of connections and of HTTP requests in progress are bounded. Above the bound of
//!   requests, only health probes and metrics are served. Other requests get status 503.
//! - A connection is closed if its first bytes or, with HTTP/1.1, its next complete request head do
//!   not arrive within `HEAD_TIMEOUT`.
//! - An HTTP connection is closed if a write to its socket makes no progress for `WRITE_PAUSE_MAX`,
//!   because the client reads nothing. An HTTP/2 connection is also closed if its client does not
//!   answer pings.
//! - During a stop the server accepts no new connections and finishes the requests in progress.
//!   Requests that outlast the drain timeout are cut off.
//!
//! Deliberately absent: TLS and authentication for clients, and routing. The timeouts of bodies are
//! in `content`.

mod leftover;
mod stream;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderName, HeaderValue, Request, Response};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::forward::Api;
use crate::api::internal::Origin;
use crate::api::routes::Target;
use crate::api::server::leftover::WatchedBody;
use crate::api::server::stream::WriteTimeout;
use crate::api::{AnswerBody, Problem};
use crate::cluster::channel::{self, LinkError, PREFACE, PeerKey, Protection, Purpose, Service, TLS_BEGINS};
use crate::config::ServerLimits;
use crate::runtime;
use crate::runtime::trace::{self, FinishedSpan, RequestSpan, SpanKind, SpanOutcome};
use crate::runtime::watch;

/// Longest wait for the first bytes of a connection and, with HTTP/1.1, for each complete request
/// head, beginning when the connection is ready for a request. With HTTP/2, interval of pings.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without progress of a write after which the connection is closed, because the client does
/// not read its response.
const WRITE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pause after a failed accept. Usually the process has used up its file descriptors. Without the
/// pause, the loop would retry at once and occupy a processor core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum size of an HTTP/2 request head in bytes. A typical head has a few hundred bytes. A
/// connection can have hundreds of streams, each with a head, so this limit bounds its memory.
const HTTP2_HEAD_BYTES_MAX: u32 = 16 * 1_024;
/// Maximum size of the read buffer of an HTTP/1.1 connection in bytes. The buffer limits both the
/// request head and each read of a body. With a limit as low as `HTTP2_HEAD_BYTES_MAX`, a stock
/// upload would need four times as many reads. A connection has only one head at a time, so the
/// higher limit is no danger.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1_024;
/// Time without requests in progress after which a stop treats all responses as sent.
const LAST_ANSWERS_TIME: Duration = Duration::from_millis(200);
/// Interval at which a stop checks for requests in progress.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// First bytes of a connection that uses HTTP/2 without TLS. No HTTP/1.1 method begins with these
/// three bytes.
const HTTP2_BEGINS: &[u8] = b"PRI";
/// Number of first bytes of a connection that distinguish HTTP/1.1, HTTP/2 and the channel. TLS is
/// recognized by the first byte alone.
const BEGIN_BYTES: usize = HTTP2_BEGINS.len();

/// Header with the id of a request, copied to the response. The server keeps the id that a client
/// sends, and generates one for all other requests.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The `tracing` target of the access log. At debug level every HTTP request is logged. At info
/// level, the log has about one client request in `ACCESS_SAMPLE`, every slow client request, and
/// every client request that failed with a 5xx status other than 503.
const ACCESS: &str = "imt_oms::access";
/// At info level, a client request is logged if its number is a multiple of this number. Requests
/// are numbered in the order of their arrival, including those between nodes. At full load, a log
/// line for each request would cost more than the request.
const ACCESS_SAMPLE: u64 = 1_000;
/// Duration from which a request is logged as slow. The duration includes the time in which the
/// client sends the body.
const SLOW: Duration = Duration::from_secs(1);

/// The values for serving one connection. All connections share them, except for `origin`.
#[derive(Clone)]
struct ConnectionHandler {
    api: Arc<Api>,
    requests: Arc<Semaphore>,
    seen: Arc<AtomicU64>,
    /// First part of the request ids that this process generates; random for each process.
    process: u64,
    protection: Protection,
    /// The kind of the connection over which the requests arrive.
    origin: Origin,
    /// `true` once this process has refused an unencrypted channel of a node on another machine.
    has_refused: Arc<AtomicBool>,
}

impl ConnectionHandler {
    fn key(&self) -> PeerKey {
        PeerKey::derive(self.api.cluster.membership.secret())
    }

    fn service(&self) -> Arc<dyn Service> {
        Arc::clone(&self.api.cluster) as Arc<dyn Service>
    }

    /// Returns the error for an unencrypted channel from a node on another machine. Logs a warning
    /// for the first such connection of this process only.
    fn refusal(&self) -> LinkError {
        if !self.has_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "refused an unencrypted connection of another node; --insecure-plaintext is for all nodes or \
                 for none"
            );
        }
        LinkError("the connection is not encrypted".to_owned())
    }

    /// Returns the request id for a request number. This process generates no id twice.
    fn request_id(&self, number: u64) -> HeaderValue {
        let id = format!("{:x}-{number:x}", self.process);
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from(number))
    }

    async fn answer(self, mut request: Request<Incoming>) -> Result<Response<AnswerBody>, Infallible> {
        let begun = Instant::now();
        let target = Target::of(&request);
        let (metric, name) = (target.metric(), target.name());
        let is_between_nodes = matches!(target, Target::Peer);
        if is_between_nodes {
            request.extensions_mut().insert(self.origin);
        }
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        let logs_all = tracing::enabled!(target: ACCESS, tracing::Level::DEBUG);
        let access = (logs_all || !is_between_nodes && number.is_multiple_of(ACCESS_SAMPLE))
            .then(|| format!("{} {}", request.method(), request.uri()));
        let given = request.headers().get(REQUEST_ID).cloned();
        let id = given.unwrap_or_else(|| self.request_id(number));
        // Health probes and metrics are answered even while too many requests are in progress,
        // because they matter most under overload.
        let is_probe = target.is_probe();
        let turn = self.requests.try_acquire().ok();
        let (request, leftover) = leftover::watch(request);
        let header = request.headers().get(trace::TRACEPARENT);
        let span = trace::begin(header.map(HeaderValue::as_bytes)).filter(|_| !is_probe);
        let mut response = match span {
            _ if turn.is_none() && !is_probe => {
                drop(request);
                let busy = Problem::busy("too many requests are in progress");
                busy.into_response().map(AnswerBody::Long)
            }
            // The future is boxed, so that the futures of untraced requests stay small.
            Some(span) => Box::pin(self.answer_traced(span, name, target, request)).await,
            None => self.api.answer(target, request).await,
        };
        let took = begun.elapsed();
        let status = response.status().as_u16();
        self.api.cluster.metrics.count(metric, status, took);
        // Calls between nodes are logged only at debug level, because the node that received the
        // client's request logs that request.
        if logs_all || !is_between_nodes {
            let trace_id = span.map(|span| span.context.trace_id());
            log_access(&Answered {
                request: access.as_deref(),
                route: name,
                logs_all,
                is_between_nodes,
                id: &id,
                trace_id: trace_id.as_deref(),
                status,
                took,
            });
        }
        leftover.settle(&mut response).await;
        response.headers_mut().insert(REQUEST_ID, id);
        Ok(response)
    }

    /// Answers a request and records it as a span of a trace.
    async fn answer_traced(
        &self,
        span: RequestSpan,
        name: &'static str,
        target: Target,
        request: Request<WatchedBody>,
    ) -> Response<AnswerBody> {
        let (started, begun) = (SystemTime::now(), Instant::now());
        let response = span.context.scope(self.api.answer(target, request)).await;
        let status = response.status().as_u16();
        let finished = || FinishedSpan {
            name,
            kind: SpanKind::Server,
            context: span.context,
            parent: span.parent,
            started,
            took: begun.elapsed(),
            outcome: SpanOutcome::Status(status),
            attributes: Vec::new(),
        };
        trace::finish(finished, span.context);
        response
    }
}

/// An answered request for `log_access`: the values of its line in the access log, and two flags
/// that choose the level of the line.
struct Answered<'a> {
    /// Method and URI. `None` if the access log is not at debug level and the request is not one
    /// of the requests that the access log samples.
    request: Option<&'a str>,
    /// Name of the route, such as `GET /order/{id}`.
    route: &'static str,
    /// `true` if the access log is at debug level.
    logs_all: bool,
    is_between_nodes: bool,
    id: &'a HeaderValue,
    /// The id of the request's trace. `None` if the request is not traced.
    trace_id: Option<&'a str>,
    status: u16,
    took: Duration,
}

fn log_access(answered: &Answered<'_>) {
    let Answered { status, took, .. } = *answered;
    let is_notable = status >= 500 && status != 503 || took >= SLOW;
    if answered.request.is_none() && !is_notable {
        return;
    }
    let took_us = took.as_micros() as u64;
    let (id, trace_id) = (answered.id.to_str().unwrap_or("not ASCII"), answered.trace_id);
    let request = answered.request.unwrap_or(answered.route);
    if answered.logs_all && (answered.is_between_nodes || !is_notable) {
        tracing::debug!(target: ACCESS, request, id, status, took_us, trace_id);
    } else {
        tracing::info!(target: ACCESS, request, id, status, took_us, trace_id);
    }
}

/// Serves connections until `stop` becomes true, and then drains. Returns the number of requests
/// that outlasted the drain timeout and were cut off.
pub(crate) async fn serve(
    listener: TcpListener,
    api: Api,
    limits: ServerLimits,
    protection: Protection,
    mut stop: watch::Receiver<bool>,
    drain_timeout: Duration,
) -> usize {
    let handler = ConnectionHandler {
        api: Arc::new(api),
        requests: Arc::new(Semaphore::new(limits.requests_max)),
        seen: Arc::default(),
        process: runtime::random_u64(),
        protection,
        origin: Origin::Plain,
        has_refused: Arc::default(),
    };
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let (cut, cutting) = watch::channel(false);
    loop {
        let (stream, peer, place) = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let watcher = graceful.watcher();
        let stops = Stops {
            stop: stop.clone(),
            cut: cutting.clone(),
        };
        tokio::spawn(serve_connection(
            stream,
            peer,
            place,
            handler.clone(),
            watcher,
            stops,
        ));
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = idle(&handler.requests, limits.requests_max) => {}
        () = tokio::time::sleep(drain_timeout) => {}
    }
    let in_progress = limits.requests_max - handler.requests.available_permits();
    let _ = cut.send(true);
    in_progress
}

/// Waits until no request has been in progress for `LAST_ANSWERS_TIME`, so that the last responses
/// are sent. Connections without a complete request do not extend the wait. The check takes no
/// permit, so requests that arrive in the meantime are still answered.
async fn idle(requests: &Semaphore, requests_max: usize) {
    let is_idle = || requests.available_permits() == requests_max;
    let mut since = tokio::time::Instant::now();
    while since.elapsed() < LAST_ANSWERS_TIME {
        if !is_idle() {
            since = tokio::time::Instant::now();
        }
        tokio::time::sleep(IDLE_CHECK_INTERVAL).await;
    }
}

/// The signals that end a connection: `stop` while its protocol is not known yet, and `cut` while
/// its requests are served.
struct Stops {
    stop: watch::Receiver<bool>,
    cut: watch::Receiver<bool>,
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        // An error is impossible, because the semaphore is never closed.
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            continue;
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    _place: OwnedSemaphorePermit,
    mut handler: ConnectionHandler,
    watcher: Watcher,
    mut stops: Stops,
) {
    // Nagle's algorithm would delay short responses.
    let _ = stream.set_nodelay(true);
    let protocol = tokio::select! {
        begins = tokio::time::timeout(HEAD_TIMEOUT, Protocol::of(&stream)) => match begins {
            Ok(Ok(protocol)) => protocol,
            Ok(Err(_)) | Err(_) => return,
        },
        // No request was read from the connection yet, so a stop may close it.
        _ = stops.stop.wait_for(|stop| *stop) => return,
    };
    let is_exposed = protocol != Protocol::Tls && handler.protection.is_needed(peer.ip());
    if is_exposed {
        handler.origin = Origin::Exposed;
    }
    let ended = match protocol {
        Protocol::Peer if is_exposed => Err(handler.refusal()),
        Protocol::Peer => serve_peer(stream, &handler, stops).await,
        Protocol::Tls => serve_encrypted(stream, handler, watcher, stops).await,
        Protocol::Http1 | Protocol::Http2 => {
            serve_http(stream, protocol, handler, watcher, stops).await;
            Ok(())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection of another node ended early");
    }
}

/// Serves HTTP/1.1 or HTTP/2 on a connection.
async fn serve_http<S>(
    stream: S,
    protocol: Protocol,
    handler: ConnectionHandler,
    watcher: Watcher,
    stops: Stops,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |request| handler.clone().answer(request));
    let stream = TokioIo::new(WriteTimeout::new(stream, WRITE_PAUSE_MAX));
    let ended = if protocol == Protocol::Http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(HEAD_TIMEOUT))
            .max_header_list_size(HTTP2_HEAD_BYTES_MAX);
        run(builder.serve_connection(stream, service), watcher, stops).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HTTP1_BUFFER_BYTES_MAX);
        run(builder.serve_connection(stream, service), watcher, stops).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

/// Encrypts a connection and checks the other end's proof that it knows the cluster's secret. Then
/// serves the connection.
async fn serve_encrypted(
    stream: TcpStream,
    mut handler: ConnectionHandler,
    watcher: Watcher,
    mut stops: Stops,
) -> Result<(), LinkError> {
    let key = handler.key();
    let (stream, purpose) = handler.protection.accept(stream, &key).await?;
    handler.origin = Origin::Proven;
    match purpose {
        Purpose::Http => {
            serve_http(stream, Protocol::Http2, handler, watcher, stops).await;
            Ok(())
        }
        Purpose::Channel => {
            tokio::select! {
                ended = channel::serve_encrypted(stream, handler.service()) => ended,
                _ = stops.cut.wait_for(|cut| *cut) => Ok(()),
            }
        }
    }
}

/// Serves an HTTP connection until it ends or is cut off.
async fn run<C: GracefulConnection>(
    connection: C,
    watcher: Watcher,
    mut stops: Stops,
) -> Result<(), C::Error> {
    tokio::select! {
        ended = watcher.watch(connection) => ended,
        _ = stops.cut.wait_for(|cut| *cut) => Ok(()),
    }
}

/// Serves the unencrypted channel of another node until that node disconnects, or until this node
/// cuts its connections at the end of its drain.
async fn serve_peer(
    stream: TcpStream,
    handler: &ConnectionHandler,
    mut stops: Stops,
) -> Result<(), LinkError> {
    let key = handler.key();
    tokio::select! {
        ended = channel::serve_stream(stream, &key, handler.service()) => ended,
        _ = stops.cut.wait_for(|cut| *cut) => Ok(()),
    }
}

/// The protocol of a connection, recognized by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
    /// The channel between nodes, without encryption.
    Peer,
    /// The channel or HTTP/2 between nodes, encrypted with TLS.
    Tls,
}

impl Protocol {
    /// Returns the protocol of a connection, without consuming its first bytes.
    async fn of(stream: &TcpStream) -> std::io::Result<Protocol> {
        let mut begin = [0u8; BEGIN_BYTES];
        loop {
            let seen = stream.peek(&mut begin).await?;
            if seen == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(protocol) = Protocol::beginning_with(&begin[..seen]) {
                return Ok(protocol);
            }
            // One or two bytes may belong to several protocols. `peek` returns at once while bytes
            // are available, so without this pause the loop would spin.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns the protocol that begins with `bytes`, or `None` if more bytes are needed.
    fn beginning_with(bytes: &[u8]) -> Option<Protocol> {
        if bytes.first() == Some(&TLS_BEGINS) {
            return Some(Protocol::Tls);
        }
        let known = [
            (HTTP2_BEGINS, Protocol::Http2),
            (&PREFACE[..BEGIN_BYTES], Protocol::Peer),
        ];
        let fits = known.into_iter().find(|(begin, _)| begin.starts_with(bytes));
        match fits {
            None => Some(Protocol::Http1),
            Some((begin, protocol)) => (begin.len() == bytes.len()).then_some(protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_recognized_by_their_first_three_bytes() {
        for (bytes, protocol) in [
            (&b"P"[..], None),
            (b"PR", None),
            (b"PRI", Some(Protocol::Http2)),
            (b"POS", Some(Protocol::Http1)),
            (b"PUT", Some(Protocol::Http1)),
            (b"G", Some(Protocol::Http1)),
            (b"IM", None),
            (b"IMT", Some(Protocol::Peer)),
            (b"IMP", Some(Protocol::Http1)),
            (b"\x16", Some(Protocol::Tls)),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
        ] {
            assert_eq!(Protocol::beginning_with(bytes), protocol, "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_still_admits_requests_and_waits_for_them() {
        let requests = Semaphore::new(2);
        let last = requests.try_acquire().unwrap();
        let idle = idle(&requests, 2);
        tokio::pin!(idle);
        assert!(
            tokio::time::timeout(LAST_ANSWERS_TIME * 3, &mut idle)
                .await
                .is_err()
        );
        let other = requests
            .try_acquire()
            .expect("a forwarded request is admitted during the drain");
        drop(last);
        assert!(
            tokio::time::timeout(LAST_ANSWERS_TIME * 3, &mut idle)
                .await
                .is_err()
        );
        drop(other);
        assert!(
            tokio::time::timeout(LAST_ANSWERS_TIME / 2, &mut idle)
                .await
                .is_err()
        );
        drop(
            requests
                .try_acquire()
                .expect("a request is admitted while the last answer is sent"),
        );
        idle.await;
    }
}
