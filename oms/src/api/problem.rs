//! Error responses in the format `application/problem+json` (RFC 9457).
//!
//! **Invariants**
//! - `type` and `field` are stable names for programs. `detail` is text for people and may change.
//! - Every 503 response has a `Retry-After` header.
//! - The cause of every problem of the kind `Internal` is logged when the problem is created.

mod kind;

use axum::http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderName, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

pub(crate) use crate::api::problem::kind::Kind;
use crate::control::errand::Undelivered;
use crate::domain::csv::CsvError;
use crate::error::{StorageError, with_causes};
use crate::volume::server::MigrationError;
use crate::volume::state::OrderError;

/// End of a detail: the request has changed nothing.
const NOTHING_CHANGED: &str = "; nothing was changed";

/// An error response. The content is boxed, so that a `Result` with a problem stays small.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Problem(Box<Report>);

/// An error answer (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Report {
    /// The kind of problem, for programs: `urn:imt-order:problem:NAME`. `docs/errors.md` explains
    /// each name.
    #[serde(rename = "type")]
    kind: Kind,
    /// The kind of problem, for people.
    #[schema(example = "Insufficient stock")]
    title: &'static str,
    /// The status of the answer.
    #[schema(example = 409)]
    status: u16,
    /// A sentence about this request, for people.
    detail: String,
    /// Name of the invalid value: a member of the body such as `products[0].quantity`, a parameter
    /// of the path or the query, or a header.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// Number of the invalid line of a CSV body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    /// Column of the fault in the invalid line of a CSV body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    /// If a stock was applied in part: the stores for which a volume confirmed the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<Vec<u32>>,
    /// If a stock was applied in part: the stores that no volume confirmed. Their stock may have
    /// changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<Vec<u32>>,
    #[serde(skip)]
    replayed: bool,
    /// A response header that the kind of problem requires, such as `Allow` for 405.
    #[serde(skip)]
    header: Option<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// Returns a problem of a kind, with the status of that kind.
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem(Box::new(Report {
            kind,
            title: kind.texts().title,
            status: kind.status().as_u16(),
            detail: detail.into(),
            field: None,
            line: None,
            column: None,
            applied: None,
            failed: None,
            replayed: false,
            header: None,
        }))
    }

    /// Returns the problem 400: a value of the body, path, query or a header is invalid.
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Problem {
        let mut problem = Problem::body(detail);
        problem.0.field = Some(field.into());
        problem
    }

    /// Returns the problem 400: the body as a whole is invalid.
    pub(crate) fn body(detail: impl Into<String>) -> Problem {
        Problem::new(Kind::Malformed, detail)
    }

    /// Returns the problem 400: a line of a CSV body is invalid.
    pub(crate) fn csv(fault: CsvError) -> Problem {
        let detail = format!("{fault}; nothing of the body was applied");
        let mut problem = Problem::new(Kind::MalformedLine, detail);
        problem.0.line = Some(fault.line);
        problem.0.column = Some(fault.column);
        problem
    }

    /// Returns the problem 404: the path, or the order, store, product or message that it names,
    /// does not exist.
    pub(crate) fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(Kind::NotFound, detail)
    }

    /// Returns the problem 404 of a path that the API does not have. Names the API document,
    /// because a client that is not a browser gets no page at `/` that leads to it.
    pub(crate) fn no_such_path() -> Problem {
        Problem::not_found("there is no such path; GET /openapi.json describes all paths")
    }

    /// Returns the problem 405: the path exists only for other methods, which the header `Allow`
    /// lists.
    pub(crate) fn method(allowed: &[&Method]) -> Problem {
        let mut problem = Problem::new(Kind::Method, "the path exists, but not for this method");
        let mut names: Vec<&str> = allowed.iter().map(|method| method.as_str()).collect();
        if allowed.contains(&&Method::GET) {
            names.push("HEAD");
        }
        let names = HeaderValue::try_from(names.join(", "));
        problem.0.header = names.ok().map(|names| (ALLOW, names));
        problem
    }

    /// Returns the problem 408: the body did not arrive in time.
    pub(crate) fn slow_body() -> Problem {
        let detail = "the body stopped arriving, or arrives too slowly; nothing of it was applied";
        Problem::new(Kind::SlowBody, detail)
    }

    /// Returns the problem 413: the body is larger than the route allows.
    pub(crate) fn too_large(limit: usize) -> Problem {
        Problem::new(Kind::TooLarge, format!("the body is larger than {limit} bytes"))
    }

    /// Returns the problem 415: the content coding of the body is not supported, or the body has
    /// too many layers of gzip.
    pub(crate) fn encoding() -> Problem {
        let detail = "a body may be sent without a coding or as gzip";
        let mut problem = Problem::new(Kind::Encoding, detail);
        problem.0.header = Some((ACCEPT_ENCODING, HeaderValue::from_static("gzip, identity")));
        problem
    }

    /// Returns the problem for a stock upload that failed after some volumes applied their parts or
    /// may have applied them. `applied` has the stores of the confirmed parts, and `failed` all
    /// other stores of the upload. `status` is 503, or the status with which a volume rejected its
    /// part.
    pub(crate) fn partly_applied(
        status: StatusCode,
        reason: &str,
        applied: Vec<u32>,
        failed: Vec<u32>,
    ) -> Problem {
        let detail = format!(
            "the stock was applied in part ({} stores, {} others not confirmed): {reason}; send it again",
            applied.len(),
            failed.len()
        );
        let mut problem = Problem::new(Kind::PartlyApplied, detail);
        problem.0.status = status.as_u16();
        problem.0.applied = Some(applied);
        problem.0.failed = Some(failed);
        problem
    }

    /// Returns the problem 415: stock must be sent as CSV, not as a form.
    pub(crate) fn content_type(found: &str) -> Problem {
        let detail =
            format!("stock is sent as text/csv, not as {found}; with curl, add -H 'Content-Type: text/csv'");
        Problem::new(Kind::ContentType, detail)
    }

    /// Returns the problem 503: the client may retry later.
    pub(crate) fn busy(detail: impl Into<String>) -> Problem {
        Problem::new(Kind::Busy, detail)
    }

    /// Returns the problem 421: the data of the request is at another volume or node now, or on its
    /// way there. The node that received the client's request routes it again or responds 503.
    pub(crate) fn moved() -> Problem {
        let detail = "the order or store is being moved to another node; retry";
        Problem::new(Kind::Moved, detail)
    }

    /// Returns the problem 503: the node that serves the order or store does not respond, or the
    /// order or store is moving to another node.
    pub(crate) fn not_here(node: &str, reason: &str) -> Problem {
        let detail = format!("the node {node}, which serves this order or store, does not answer: {reason}");
        Problem::new(Kind::NotServedHere, detail)
    }

    /// Returns the problem 500: a fault of this node. Logs the cause, because the description of
    /// this kind of problem refers the client to the node's log.
    pub(crate) fn internal(cause: impl Into<String>) -> Problem {
        let cause = cause.into();
        tracing::error!(error = cause, "request failed");
        Problem::new(Kind::Internal, cause)
    }

    /// Returns `true` for the kind `Moved`, after which the request must be routed again.
    pub(crate) fn is_moved(&self) -> bool {
        self.0.kind == Kind::Moved
    }

    /// Returns the problem for the response to a client. `Moved` is a kind of problem between
    /// nodes, and becomes `NotServedHere` (503). Any other problem is unchanged.
    pub(crate) fn for_client(self) -> Problem {
        if self.is_moved() {
            Problem::new(Kind::NotServedHere, self.0.detail)
        } else {
            self
        }
    }

    /// Returns the detail, the sentence for people about this request.
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Returns the detail for a request that was executed in part: without the sentence that
    /// nothing was changed.
    pub(crate) fn detail_in_part(&self) -> &str {
        let detail = &self.0.detail;
        detail.strip_suffix(NOTHING_CHANGED).unwrap_or(detail)
    }

    /// Marks the problem as a repetition of the response to an earlier request, if `replayed` is
    /// `true`.
    pub(crate) fn replayed(mut self, replayed: bool) -> Problem {
        self.0.replayed = replayed;
        self
    }
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Problem {
        match error {
            StorageError::Busy | StorageError::EngineAway => Problem::busy(error.to_string()),
            StorageError::Closed | StorageError::Stale => Problem::moved(),
            error if error.is_full_disk() => Problem::busy(format!("the disk is full{NOTHING_CHANGED}")),
            error => Problem::internal(with_causes(&error)),
        }
    }
}

impl From<Undelivered> for Problem {
    fn from(undelivered: Undelivered) -> Problem {
        match undelivered {
            Undelivered::Gone => Problem::moved(),
            Undelivered::Unanswered { node, reason } => Problem::not_here(&node, &reason),
        }
    }
}

impl From<MigrationError> for Problem {
    fn from(error: MigrationError) -> Problem {
        match error {
            MigrationError::CleaningUp => Problem::busy(error.to_string()),
            MigrationError::Over => Problem::new(Kind::NoSuchMove, error.to_string()),
            MigrationError::Cluster(error) => Problem::internal(with_causes(&error)),
            MigrationError::Storage(error) => error.into(),
        }
    }
}

impl From<OrderError> for Problem {
    fn from(fault: OrderError) -> Problem {
        match fault {
            OrderError::Unknown | OrderError::NoMessage => Problem::not_found(fault.to_string()),
            OrderError::Refused(_) => Problem::new(Kind::Refused, fault.to_string()),
            OrderError::Moved => Problem::moved(),
            OrderError::Away(detail) => Problem::busy(detail),
            OrderError::Busy(detail) => Problem::busy(detail),
            OrderError::Storage(error) => error.into(),
            OrderError::Interrupted => Problem::internal(fault.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // The report contains only texts and numbers, so serialization cannot fail. If it failed,
        // the response would have an empty body.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.0.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some((name, value)) = &self.0.header {
            headers.insert(name, value.clone());
        }
        response
    }
}

/// Response header that marks a repetition of the response to an earlier request.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Collects the field `error` of each logged line.
    #[derive(Clone, Default)]
    struct LoggedErrors(Arc<Mutex<Vec<String>>>);

    impl Visit for LoggedErrors {
        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == "error" {
                self.0.lock().unwrap().push(value.to_owned());
            }
        }

        fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
    }

    impl Subscriber for LoggedErrors {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn the_cause_of_every_internal_error_is_logged_once() {
        let logged = LoggedErrors::default();
        let row = StorageError::Log {
            entry: 7,
            reason: "its bytes cannot be read".to_owned(),
        };
        let problems = tracing::subscriber::with_default(logged.clone(), || {
            [
                Problem::internal("a task panicked"),
                OrderError::Interrupted.into(),
                row.into(),
                Problem::busy("no fault of this node"),
            ]
        });
        let causes: Vec<&str> = problems[..3].iter().map(Problem::detail).collect();
        assert_eq!(*logged.0.lock().unwrap(), causes);
    }

    #[test]
    fn a_client_gets_no_problem_of_calls_between_nodes_for_a_move() {
        let problem = Problem::moved().for_client();
        assert_eq!((problem.0.kind, problem.0.status), (Kind::NotServedHere, 503));
        assert_eq!(problem.detail(), Problem::moved().detail());
        let other = Problem::no_such_path();
        assert_eq!(other.clone().for_client(), other);
    }
}
