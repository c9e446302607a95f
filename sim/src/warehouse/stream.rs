//! A connection with faults on demand: a reset, or an answer sent twice or byte by byte.
//!
//! Invariants:
//! - Without a fault, the stream passes all bytes through unchanged.
//! - A fault ends with the next flush. Over HTTP/1, this is the flush of one answer. Over HTTP/2,
//!   the fault also applies to answers of other calls that are flushed with it.
//! - A reset is a real TCP reset (RST, through a linger time of zero), like that of a dying server.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Sleep;

/// Pause between two bytes of a slow answer: an answer of 100 bytes takes 5 s.
const DRIP_PAUSE: Duration = Duration::from_millis(50);

/// Fault of the next answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum AnswerFault {
    None = 0,
    Duplicate = 1,
    Drip = 2,
}

/// Handle through which a route causes faults on its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Control(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    fault: AtomicU8,
    is_reset: std::sync::atomic::AtomicBool,
    reset: Notify,
}

impl Control {
    /// Sets the fault with which the next answer is sent.
    pub(super) fn disturb(&self, fault: AnswerFault) {
        self.0.fault.store(fault as u8, Ordering::Release);
    }

    /// Requests a reset of the connection. Answers that are not sent yet are never sent.
    pub(super) fn reset(&self) {
        self.0.is_reset.store(true, Ordering::Release);
        self.0.reset.notify_one();
    }

    /// Waits until a reset of the connection is requested.
    pub(super) async fn was_reset(&self) {
        self.0.reset.notified().await;
    }

    fn fault(&self) -> AnswerFault {
        match self.0.fault.load(Ordering::Acquire) {
            1 => AnswerFault::Duplicate,
            2 => AnswerFault::Drip,
            _ => AnswerFault::None,
        }
    }
}

/// A TCP stream with the faults of a [`Control`].
#[derive(Debug)]
pub(super) struct FaultyStream {
    stream: TcpStream,
    control: Control,
    /// Bytes that the HTTP server has written and that are not yet sent.
    held: Vec<u8>,
    /// `true` after `held` was changed to contain the answer twice, until the answer is flushed.
    duplicated: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl FaultyStream {
    pub(super) fn new(stream: TcpStream, control: Control) -> Self {
        Self {
            stream,
            control,
            held: Vec::new(),
            duplicated: false,
            pause: None,
        }
    }

    /// Sends the held bytes with the current fault.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let fault = self.control.fault();
        if fault == AnswerFault::Duplicate && !self.duplicated && !self.held.is_empty() {
            self.duplicated = true;
            self.held.extend_from_within(..);
        }
        while !self.held.is_empty() {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let piece = match fault {
                AnswerFault::Drip => 1,
                _ => self.held.len(),
            };
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held[..piece]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent);
            if fault == AnswerFault::Drip && !self.held.is_empty() {
                self.pause = Some(Box::pin(tokio::time::sleep(DRIP_PAUSE)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for FaultyStream {
    fn drop(&mut self) {
        if self.control.0.is_reset.load(Ordering::Acquire) {
            // An error means that the connection is already closed, so that no reset is needed.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.control.fault() == AnswerFault::None && this.held.is_empty() {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        }
        // The whole answer is held in memory. Answers are short: a head, and at most a problem (RFC
        // 9457) as body.
        this.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            ready!(this.poll_held(cx))?;
            this.duplicated = false;
            this.control.disturb(AnswerFault::None);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (FaultyStream, Control, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let control = Control::default();
        (FaultyStream::new(stream, control.clone()), control, client)
    }

    #[tokio::test]
    async fn an_answer_is_sent_twice_and_the_next_one_once() {
        let (mut stream, control, mut client) = pair().await;
        control.disturb(AnswerFault::Duplicate);
        stream.write_all(b"one ").await.unwrap();
        stream.write_all(b"answer;").await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(b"next").await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "one answer;one answer;next");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_arrives_whole_with_a_pause_behind_each_byte() {
        let (mut stream, control, mut client) = pair().await;
        control.disturb(AnswerFault::Drip);
        let begun = tokio::time::Instant::now();
        stream.write_all(b"0123456789").await.unwrap();
        stream.flush().await.unwrap();
        assert!(begun.elapsed() >= 9 * DRIP_PAUSE);
        drop(stream);
        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "0123456789");
    }

    #[tokio::test]
    async fn a_reset_reaches_the_other_side_as_a_reset() {
        let (stream, control, mut client) = pair().await;
        control.reset();
        control.was_reset().await;
        drop(stream);
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
