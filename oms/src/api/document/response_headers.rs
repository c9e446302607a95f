//! The headers of responses in the API document, and for each header the responses that may carry
//! it.
//!
//! **Invariant**: every header of a response to a documented route is listed here, except two
//! groups. The integration tests over HTTP compare the headers of each response with this list.
//!
//! The two groups are the headers of HTTP itself (`Content-Type`, `Content-Length`, `Date`,
//! `Connection`, `Transfer-Encoding`), and the CORS headers. Only a node with `--cors-origin` adds
//! CORS headers.

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::api::document::operations::{CONSOLE_EVENTS, CONSOLE_STATE};
use crate::api::document::{Kind, any_text};
use crate::api::routes::Route;

/// A header of responses, as the API document describes it.
struct ResponseHeader {
    name: &'static str,
    about: &'static str,
    schema: fn() -> Value,
    /// Returns `true` if a response of the route with this status and these kinds of problems can
    /// carry the header.
    belongs_to: fn(&Route, StatusCode, &[Kind]) -> bool,
}

static HEADERS: [ResponseHeader; 10] = [
    ResponseHeader {
        name: "X-Request-Id",
        about: "The `X-Request-Id` of the request, or a new one. The access log has it too.",
        schema: any_text,
        belongs_to: |_, _, _| true,
    },
    ResponseHeader {
        name: "X-Imt-Owner",
        about: "Address (`HOST:PORT`) of the node that owns the order, store or statistics. A single \
                node omits it. A client may send later requests for the same key there directly.",
        schema: any_text,
        belongs_to: |route, _, _| route.has_owner(),
    },
    ResponseHeader {
        name: "Idempotent-Replayed",
        about: "`true` if this repeats the answer to an earlier request.",
        schema: || json!({"type": "string", "enum": ["true"]}),
        belongs_to: |route, status, _| *route.method() == Method::POST && is_kept(status),
    },
    ResponseHeader {
        name: "Retry-After",
        about: "Seconds to wait before the request is repeated.",
        schema: || json!({"type": "integer", "minimum": 1}),
        belongs_to: |_, status, _| status == StatusCode::SERVICE_UNAVAILABLE,
    },
    ResponseHeader {
        name: "Accept-Encoding",
        about: "The content codings that a request body may have.",
        schema: any_text,
        belongs_to: |_, _, kinds| kinds.contains(&Kind::Encoding),
    },
    ResponseHeader {
        name: "ETag",
        about: "Tag of the document. It changes whenever the document does.",
        schema: || json!({"type": "string", "pattern": "^W/\"[^\"]+\"$"}),
        belongs_to: |route, status, _| route.about.answer.has_tag && is_read(status),
    },
    ResponseHeader {
        name: "Cache-Control",
        about: "`no-cache`: a cache asks with the tag each time. `no-store`: nothing is cached.",
        schema: any_text,
        belongs_to: |route, status, _| {
            let is_console = [CONSOLE_STATE.id, CONSOLE_EVENTS.id].contains(&route.about.id);
            (route.about.answer.has_tag || is_console) && is_read(status)
        },
    },
    ResponseHeader {
        name: "X-Accel-Buffering",
        about: "`no`: a reverse proxy sends each event at once.",
        schema: any_text,
        belongs_to: |route, status, _| route.about.id == CONSOLE_EVENTS.id && is_read(status),
    },
    ResponseHeader {
        name: "Content-Encoding",
        about: "`gzip`, if the body is long and the request accepts gzip.",
        schema: || json!({"type": "string", "enum": ["gzip"]}),
        belongs_to: |_, status, _| status != StatusCode::NOT_MODIFIED,
    },
    ResponseHeader {
        name: "Vary",
        about: "Request headers that decide the form of the response, such as `Accept-Encoding`.",
        schema: any_text,
        belongs_to: |_, status, _| status != StatusCode::NOT_MODIFIED,
    },
];

/// Returns `true` if the response of an executed command with this status is stored under its
/// idempotency key.
fn is_kept(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::CONFLICT
}

fn is_read(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::NOT_MODIFIED
}

/// Describes all response headers for `components` of the API document.
pub(super) fn components() -> Value {
    let described = HEADERS.iter().map(|header| {
        let document = json!({"description": header.about, "schema": (header.schema)()});
        (header.name.to_owned(), document)
    });
    Value::Object(described.collect())
}

/// Returns references to the headers that a response of a route with this status can carry. `kinds`
/// are the kinds of problems that the response may describe.
pub(super) fn of_response(route: &Route, status: StatusCode, kinds: &[Kind]) -> Value {
    let carried = HEADERS
        .iter()
        .filter(|header| (header.belongs_to)(route, status, kinds));
    let reference = |header: &ResponseHeader| {
        let reference = json!({"$ref": format!("#/components/headers/{}", header.name)});
        (header.name.to_owned(), reference)
    };
    Value::Object(carried.map(reference).collect::<Map<String, Value>>())
}
