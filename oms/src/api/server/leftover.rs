//! Handles the unread part of an HTTP/1 request's body after the response is known.
//!
//! A response may be known before the body was read, for example because the route is unknown or a
//! header is invalid. The connection can carry the next request only after the rest of the body. If
//! the server closed the connection at once, a client that has just sent its next request would get
//! no response to it. A client that is still sending the body could even lose the response to the
//! first request.
//!
//! **Invariants**
//! - Without a header `Expect`, a short rest of the body is read and dropped before the response is
//!   sent: at most `REST_BYTES_MAX` bytes, for at most `REST_TIME_MAX`.
//! - Otherwise the response has the header `Connection: close`, so that the client opens a new
//!   connection.
//!
//! HTTP/2 requests are not handled here, because each of them has a separate stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::header::{CONNECTION, EXPECT};
use axum::http::{HeaderValue, Request, Response, Version};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;

/// Maximum size in bytes of an unread rest of a body that is read and dropped.
const REST_BYTES_MAX: usize = 256 << 10;
/// Longest time for reading the rest of a body.
const REST_TIME_MAX: Duration = Duration::from_millis(200);

/// The body of a request. When it is dropped, its unread rest is passed to its [`Leftover`].
pub(super) struct WatchedBody {
    /// `None` only while `drop` runs.
    body: Option<Incoming>,
    has_ended: bool,
    rest: Option<Arc<Mutex<Option<Incoming>>>>,
}

/// Receives the unread rest of a request's body once the handler has dropped the body.
pub(super) struct Leftover {
    rest: Option<Arc<Mutex<Option<Incoming>>>>,
    /// `true` if the request has the header `Expect`, so the client sends the body only after `100
    /// Continue`.
    waits_for_continue: bool,
}

/// Wraps the body of a request, so that its unread rest can be handled once the response is known.
pub(super) fn watch(request: Request<Incoming>) -> (Request<WatchedBody>, Leftover) {
    let is_watched = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
    let rest = is_watched.then(Arc::default);
    let leftover = Leftover {
        rest: rest.clone(),
        waits_for_continue: request.headers().contains_key(EXPECT),
    };
    let watched = request.map(|body| WatchedBody {
        body: Some(body),
        has_ended: false,
        rest,
    });
    (watched, leftover)
}

impl Leftover {
    /// Reads the rest of the body, or sets `Connection: close` on the response if the rest is too
    /// long or slow, or if the client waits for `100 Continue`.
    pub(super) async fn settle<B>(self, response: &mut Response<B>) {
        let Some(body) = self.rest.and_then(|rest| rest.lock().take()) else {
            return;
        };
        // With `Expect: 100-continue`, reading would make hyper ask the client to send the body.
        let is_read = !self.waits_for_continue
            && tokio::time::timeout(REST_TIME_MAX, read_rest(body))
                .await
                .unwrap_or(false);
        if !is_read {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Reads and drops a body to its end. Returns `false` if the body is too long or the connection
/// fails.
async fn read_rest(mut body: Incoming) -> bool {
    let mut left = REST_BYTES_MAX;
    if body.size_hint().lower() > left as u64 {
        return false;
    }
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return false;
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(bytes) else {
            return false;
        };
        left = rest;
    }
    true
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None) = polled {
            self.has_ended = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::new, Body::size_hint)
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if let (Some(rest), Some(body)) = (&self.rest, self.body.take())
            && !self.has_ended
            && !body.is_end_stream()
        {
            *rest.lock() = Some(body);
        }
    }
}
