//! Handles `GET /console/events`: sends the state as server-sent events.
//!
//! A stream sends the state when it begins, about once a second, and at each change of the cluster.
//! A page that reconnects names the last event id that it received. Its new stream continues with
//! the seconds and events after that id, and repeats the last `SECONDS_REPEATED` seconds. If
//! another process sent that id, the new stream begins with the whole state.
//!
//! Invariants:
//! - At most a few messages of each stream wait in memory. While a client does not read, its stream
//!   renders no further states. The next one contains all changes since the last rendered one. The
//!   stream of a client that reads nothing for `READ_WITHIN` ends, also if the client keeps its
//!   connection alive.
//! - A stream without new data sends a comment every `HEARTBEAT`, so that both sides notice a dead
//!   connection.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response};
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use tokio::sync::OwnedSemaphorePermit;

use super::{AnswerBody, Console, Cursor};
use crate::api::forward::refusal;
use crate::api::problem::Problem;
use crate::runtime;

/// Time without new data after which a stream sends a comment.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Longest time until a client has read enough that the next message can be queued.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// Pause in milliseconds before a browser reconnects, sent as the `retry` field.
const RETRY_MS: u64 = 1_000;
/// Request header with the id of the last event that the client received.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Response header that tells proxies such as nginx not to buffer the stream.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Begins a stream, or returns 503 if `STREAMS_MAX` streams are open.
pub(super) fn answer(console: &Arc<Console>, headers: &HeaderMap) -> Response<AnswerBody> {
    let Ok(permit) = Arc::clone(&console.streams).try_acquire_owned() else {
        return refusal(Problem::busy("too many consoles are open on this node"));
    };
    let cursor = last_event(headers, console.incarnation);
    // The channel has room for one message.
    let (sender, channel) = Channel::<Bytes, axum::Error>::new(1);
    runtime::spawn(feed(
        Arc::clone(console),
        sender,
        cursor.unwrap_or_default(),
        permit,
    ));
    let mut response = Response::new(AnswerBody::Long(Body::new(channel)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// Returns the cursor in the request's `Last-Event-ID`, or `None` if the header is absent or
/// malformed, or another process sent the id.
pub(super) fn last_event(headers: &HeaderMap, incarnation: u64) -> Option<Cursor> {
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    last.and_then(|id| parse_id(id, incarnation))
}

/// Returns a cursor as text for clients that poll: the event id, followed by the epoch of the ring
/// that the client has.
pub(super) fn cursor_text(cursor: &Cursor, incarnation: u64) -> String {
    let epoch = cursor.epoch.unwrap_or_default();
    format!("{}-{epoch}", id_of(cursor, incarnation))
}

/// Sends states until the client disconnects or the node stops.
async fn feed(
    console: Arc<Console>,
    mut sender: Sender<Bytes, axum::Error>,
    mut cursor: Cursor,
    _permit: OwnedSemaphorePermit,
) {
    let mut signals = console.signals.subscribe();
    let begin = format!("retry: {RETRY_MS}\n\n");
    if !send(&mut sender, Bytes::from(begin)).await {
        return;
    }
    console.refresh().await;
    loop {
        let is_closed = signals.borrow_and_update().is_closed;
        let Ok(state) = console.render(&mut cursor) else {
            return;
        };
        let id = id_of(&cursor, console.incarnation);
        if !send(&mut sender, message("state", &id, &state)).await {
            return;
        }
        if is_closed {
            send(&mut sender, message("end", &id, b"{}")).await;
            return;
        }
        loop {
            tokio::select! {
                changed = signals.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = tokio::time::sleep(HEARTBEAT) => {
                    if !send(&mut sender, Bytes::from_static(b": nothing new\n\n")).await {
                        return;
                    }
                }
            }
        }
    }
}

/// Queues a message for the client. Returns `false` if the client has disconnected, or does not
/// read.
async fn send(sender: &mut Sender<Bytes, axum::Error>, message: Bytes) -> bool {
    let sent = tokio::time::timeout(READ_WITHIN, sender.send_data(message)).await;
    matches!(sent, Ok(Ok(())))
}

/// Encodes one server-sent event. `data` is JSON, which escapes line ends within strings, so it is
/// one line.
fn message(name: &str, id: &str, data: &[u8]) -> Bytes {
    let mut message = format!("event: {name}\nid: {id}\ndata: ").into_bytes();
    message.extend_from_slice(data);
    message.extend_from_slice(b"\n\n");
    Bytes::from(message)
}

/// Returns an event id: the process, the newest second and the newest event.
fn id_of(cursor: &Cursor, incarnation: u64) -> String {
    format!("{incarnation:x}-{}-{}", cursor.second, cursor.event)
}

/// Parses an event id into a cursor. Returns `None` if the id is malformed or another process sent
/// it. If the id has no epoch, the client gets the ring again.
fn parse_id(id: &str, incarnation: u64) -> Option<Cursor> {
    let mut parts = id.split('-');
    let process = u64::from_str_radix(parts.next()?, 16).ok()?;
    let second = parts.next()?.parse().ok()?;
    let event = parts.next()?.parse().ok()?;
    let epoch = parts.next().map(str::parse).transpose().ok()?;
    (process == incarnation && parts.next().is_none()).then_some(Cursor { epoch, second, event })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_names_the_process_the_second_and_the_event() {
        let cursor = Cursor {
            epoch: Some(3),
            second: 1_700_000_000,
            event: 12,
        };
        let id = id_of(&cursor, 0xABC);
        assert_eq!(id, "abc-1700000000-12");
        let again = Cursor {
            epoch: None,
            ..cursor
        };
        assert_eq!(parse_id(&id, 0xABC), Some(again));
        assert_eq!(parse_id(&id, 0xABD), None);
        let text = cursor_text(&cursor, 0xABC);
        assert_eq!(text, "abc-1700000000-12-3");
        assert_eq!(parse_id(&text, 0xABC), Some(cursor));
        for text in [
            "",
            "abc",
            "abc-1",
            "abc-1-2-3-4",
            "abc-1-2-x",
            "abc--1-2",
            "abc-x-2",
            "\u{fc}-1-2",
        ] {
            assert_eq!(parse_id(text, 0xABC), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_if_its_client_reads_nothing() {
        let (mut sender, _unread) = Channel::<Bytes, axum::Error>::new(1);
        let message = || Bytes::from_static(b"data: {}\n\n");
        assert!(
            send(&mut sender, message()).await,
            "the channel has room for one message"
        );
        assert!(!send(&mut sender, message()).await);
    }

    #[test]
    fn a_message_is_one_event() {
        let text = message("state", "a-1-2", b"{\"a\":\"\\n\"}");
        assert_eq!(&text[..], b"event: state\nid: a-1-2\ndata: {\"a\":\"\\n\"}\n\n");
    }
}
