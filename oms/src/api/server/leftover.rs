//! The part of a request's body that its answer did not need, over HTTP/1.
//!
//! An answer may be known before the body was read: the route is unknown, or a header is wrong. The
//! connection can take the next request only after the rest of the body. If the server closed the
//! connection at once, a client that sends its next request at that moment would get no answer, and
//! one that still sends the body could lose the answer itself.
//!
//! **Invariants**
//! - A short rest is read and dropped before the answer, at most `REST_BYTES_MAX` and for
//!   `REST_TIME_MAX`.
//! - Any other answer says `Connection: close`, so that the client uses a new connection.
//!
//! Deliberately absent: HTTP/2, in which each request has a stream of its own.

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

/// Maximum number of bytes that are read and dropped.
const REST_BYTES_MAX: usize = 256 << 10;
/// Longest time for reading them.
const REST_TIME_MAX: Duration = Duration::from_millis(200);

/// The body of a request. Its unread rest goes to its [`Leftover`].
pub(super) struct WatchedBody {
    /// `None` only while it is dropped.
    body: Option<Incoming>,
    has_ended: bool,
    rest: Option<Arc<Mutex<Option<Incoming>>>>,
}

/// The rest of a body, once the request is answered.
pub(super) struct Leftover {
    rest: Option<Arc<Mutex<Option<Incoming>>>>,
    /// `true` if the client sends the body only when it is asked to.
    waits_for_continue: bool,
}

/// Watches the body of a request.
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
    /// Reads the rest of the body, or lets the response close the connection.
    pub(super) async fn settle<B>(self, response: &mut Response<B>) {
        let Some(body) = self.rest.and_then(|rest| rest.lock().take()) else {
            return;
        };
        // Reading would ask the client for the body.
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

/// Reads a body to its end. Returns `false` if it is too long or fails.
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
