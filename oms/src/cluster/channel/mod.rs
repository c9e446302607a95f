//! The channel between nodes: long-lived connections with typed binary messages. Each pair of nodes
//! has at most one connection in each direction.
//!
//! A node opens a connection to each node to which it sends requests, at the port of that node's
//! API. Both ends prove that they know the cluster's secret (`handshake`). The node that opened the
//! connection sends requests. The other node sends answers on the same connection, in any order.
//!
//! Messages that wait while a frame is written share the next frame (`queue`). The receiver gets
//! all requests of a frame together (`serving`). So under load many messages share each system
//! call, each wake-up and each commit.
//!
//! `Protection` decides which connections are encrypted (`tls`).
//!
//! **Invariants**
//! - Every queue is bounded. A full queue of requests refuses further requests. A full queue of
//!   answers ends the connection after the frame that is being written.
//! - A repeated frame is dropped, and a missing frame ends the connection (`frame`).
//! - Requests are idempotent, so a caller that gets no answer may send its request again.
//!
//! The simulation replaces `Dialer`, `FrameSink` and `FrameSource` by versions that delay, repeat
//! and lose frames.
//!
//! Deliberately absent: routing and retries (`control::errand`), and large transfers, which use
//! HTTP/2.

mod connection;
mod frame;
mod handshake;
pub(crate) mod message;
mod queue;
mod serving;
mod tls;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub(crate) use crate::cluster::channel::connection::{Connection, Unanswered};
#[cfg(test)]
pub(crate) use crate::cluster::channel::frame::{Frame, HEADER_BYTES, Transfer, open as open_header};
pub(crate) use crate::cluster::channel::frame::{FrameSink, FrameSource};
pub(crate) use crate::cluster::channel::handshake::{PREFACE, PeerKey};
pub(crate) use crate::cluster::channel::serving::{Asked, Caller, Service, serve};
pub(crate) use crate::cluster::channel::tls::{Protection, Purpose, TLS_BEGINS};

use crate::cluster::channel::frame::{ByteSink, ByteSource};
use crate::runtime;
use crate::runtime::metrics::ChannelCounters;

/// Longest time for opening a TCP connection. Half a second is much longer than a round trip
/// between nodes.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The reason why a connection ended or was not opened, or why `Protection::new` failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub(crate) struct LinkError(pub(crate) String);

impl From<std::io::Error> for LinkError {
    fn from(error: std::io::Error) -> LinkError {
        LinkError(error.to_string())
    }
}

impl From<wire::WireError> for LinkError {
    fn from(error: wire::WireError) -> LinkError {
        LinkError(error.to_string())
    }
}

/// The sending and the receiving half of an open connection.
pub(crate) struct Link {
    pub(crate) sink: Box<dyn FrameSink>,
    pub(crate) source: Box<dyn FrameSource>,
}

/// The future of a connection that is being opened.
pub(crate) type Dialing = Pin<Box<dyn Future<Output = Result<Link, LinkError>> + Send>>;

/// Opens connections to other nodes.
pub(crate) trait Dialer: Send + Sync {
    /// Opens a connection to the node at an address.
    fn dial(&self, address: SocketAddr) -> Dialing;
}

/// Opens TCP connections and runs the handshake on them.
pub(crate) struct TcpDialer {
    key: PeerKey,
    protection: Protection,
}

impl TcpDialer {
    /// Creates a dialer that proves knowledge of `secret`. `protection` decides which connections
    /// are encrypted.
    pub(crate) fn new(secret: &str, protection: Protection) -> TcpDialer {
        TcpDialer {
            key: PeerKey::derive(secret),
            protection,
        }
    }
}

impl Dialer for TcpDialer {
    fn dial(&self, address: SocketAddr) -> Dialing {
        let (key, protection) = (self.key.clone(), self.protection.clone());
        Box::pin(async move {
            let mut stream = connect(address).await?;
            if protection.is_needed(address.ip()) {
                let stream = protection.connect(stream, Purpose::Channel, &key).await?;
                return Ok(link(tokio::io::split(stream)));
            }
            handshake::initiate(&mut stream, &key, &[]).await?;
            Ok(link(stream.into_split()))
        })
    }
}

/// Opens a TCP connection to a node, without a handshake.
pub(crate) async fn connect(address: SocketAddr) -> Result<TcpStream, LinkError> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
    let Ok(stream) = connecting.await else {
        return Err(LinkError("no connection in time".to_owned()));
    };
    let stream = stream?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn link<R, W>((reader, writer): (R, W)) -> Link
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    Link {
        sink: Box::new(ByteSink(writer)),
        source: Box::new(ByteSource::new(reader)),
    }
}

/// Serves an unencrypted connection that another node opened: runs the handshake, and then answers
/// requests until the connection ends.
pub(crate) async fn serve_stream(
    mut stream: TcpStream,
    key: &PeerKey,
    service: Arc<dyn Service>,
) -> Result<(), LinkError> {
    handshake::accept(&mut stream, key, &[]).await?;
    serve(link(stream.into_split()), service).await
}

/// Serves an encrypted connection of another node until it ends. The caller has already checked the
/// other node's proof.
pub(crate) async fn serve_encrypted<S>(stream: S, service: Arc<dyn Service>) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    serve(link(tokio::io::split(stream)), service).await
}

/// The connections that this node has opened, by the address of the other node.
pub(crate) struct Channels {
    dialer: Arc<dyn Dialer>,
    connections: Mutex<BTreeMap<SocketAddr, Arc<Connection>>>,
    counters: Arc<ChannelCounters>,
}

impl Channels {
    /// Creates an empty set of connections.
    pub(crate) fn new(dialer: impl Dialer + 'static, counters: Arc<ChannelCounters>) -> Channels {
        Channels {
            dialer: Arc::new(dialer),
            connections: Mutex::default(),
            counters,
        }
    }

    /// Returns the connection to a node. If there is none, or it has ended, returns a new one,
    /// which is opened in the background.
    pub(crate) fn connection(&self, address: SocketAddr) -> Arc<Connection> {
        let mut connections = self.connections.lock();
        if let Some(known) = connections.get(&address).filter(|known| !known.has_ended()) {
            return Arc::clone(known);
        }
        // A restarted node may have another address. Without this line the ended connection to the
        // former address would stay in the map forever.
        connections.retain(|_, known| !known.has_ended());
        let connection = Connection::new(&self.counters);
        connections.insert(address, Arc::clone(&connection));
        let opening = self.dialer.dial(address);
        runtime::spawn(Arc::clone(&connection).run(opening));
        connection
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        let connections = self.connections.get_mut();
        connections.values().for_each(|connection| connection.close());
    }
}

#[cfg(test)]
mod tests;
