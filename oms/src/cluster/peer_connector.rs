//! Opens connections for HTTP/2 to nodes. `Protection` decides which of them are encrypted.
//! Encrypted connections begin with the proofs of `channel::handshake`.
//!
//! **Invariants**
//! - On an encrypted connection both ends have proven the cluster's secret before the first call.
//!   Calls on such a connection do not contain the secret.
//!
//! The pool of connections is that of `hyper_util`. Timeouts of calls are in `peer_client`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tower::Service;

use crate::cluster::channel::{LinkError, PeerKey, Protection, Purpose, connect};

/// Opens connections to nodes. The URIs must have an IP address and a port, not a host name.
#[derive(Clone)]
pub(crate) struct PeerConnector {
    pub(crate) key: PeerKey,
    pub(crate) protection: Protection,
}

impl Service<Uri> for PeerConnector {
    type Response = TokioIo<PeerStream>;
    type Error = LinkError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, LinkError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let address: SocketAddr = authority
                .parse()
                .map_err(|error| LinkError(format!("'{authority}' is no address: {error}")))?;
            let stream = connect(address).await?;
            let PeerConnector { key, protection } = connector;
            Ok(TokioIo::new(if protection.is_needed(address.ip()) {
                let encrypted = protection.connect(stream, Purpose::Http, &key).await?;
                PeerStream::Encrypted(Box::new(encrypted))
            } else {
                PeerStream::Plain(stream)
            }))
        })
    }
}

/// A connection to a node.
pub(crate) enum PeerStream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Connection for PeerStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            PeerStream::Encrypted(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            PeerStream::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            PeerStream::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            PeerStream::Plain(stream) => stream.is_write_vectored(),
            PeerStream::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            PeerStream::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PeerStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            PeerStream::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
