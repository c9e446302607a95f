//! Tests of the meaning of each answer: the table in `docs/warehouse.md`.

use super::*;

/// Returns the meaning of an answer with this status, problem type and `Retry-After`.
fn read(status: u16, problem: &str, retry_after: Option<&'static str>) -> Answer {
    let mut headers = HeaderMap::new();
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    let body = match problem {
        "" => Vec::new(),
        name => format!(r#"{{"type":"{name}","title":"No"}}"#).into_bytes(),
    };
    meaning(StatusCode::from_u16(status).unwrap(), &headers, &body)
}

fn kind(answer: Answer) -> &'static str {
    match answer {
        Answer::Done { .. } => "done",
        Answer::Refused { .. } => "refused",
        Answer::Failed(failure) => match failure.kind {
            FailureKind::Unreachable => "unreachable",
            FailureKind::Error => "error",
            FailureKind::InProgress => "in progress",
            FailureKind::Malformed => "malformed",
        },
    }
}

#[test]
fn each_status_and_problem_type_has_one_meaning() {
    for (status, problem, retry_after, meaning) in [
        (200, "", None, "done"),
        (201, "", None, "done"),
        (204, "", None, "done"),
        (409, "urn:imt:warehouse:out-of-stock", None, "refused"),
        (409, "https://wms.example/problems/refused", None, "refused"),
        (409, "https://wms.example/problems#refused", None, "refused"),
        (422, "urn:x:out-of-stock", None, "refused"),
        (409, "urn:x:out-of-stock", Some("30"), "in progress"),
        (422, "urn:x:out-of-stock", Some("30"), "error"),
        (409, "", None, "error"),
        (409, "about:blank", None, "error"),
        (409, "urn:x:not-out-of-stock", None, "error"),
        (409, "", Some("1"), "in progress"),
        (409, "", Some("Wed, 21 Oct 2026 07:28:00 GMT"), "in progress"),
        (409, "urn:imt:warehouse:in-progress", None, "in progress"),
        (409, "urn:imt-order:problem:key-in-progress", None, "in progress"),
        (425, "urn:x:in-progress", None, "in progress"),
        (400, "", None, "malformed"),
        (400, "urn:x:out-of-stock", None, "malformed"),
        (413, "", None, "malformed"),
        (415, "", None, "malformed"),
        (422, "", None, "malformed"),
        (301, "", None, "error"),
        (401, "", None, "error"),
        (403, "urn:x:refused", None, "error"),
        (404, "", None, "error"),
        (405, "", None, "error"),
        (410, "", None, "error"),
        (500, "", None, "error"),
        (500, "urn:x:refused", None, "error"),
        (501, "", None, "error"),
        (408, "", None, "unreachable"),
        (429, "", Some("5"), "unreachable"),
        (502, "", None, "unreachable"),
        (503, "", None, "unreachable"),
        (504, "", None, "unreachable"),
    ] {
        assert_eq!(
            kind(read(status, problem, retry_after)),
            meaning,
            "{status} {problem} {retry_after:?}"
        );
    }
}

#[test]
fn the_wait_requested_by_the_warehouse_is_read() {
    for (text, wait_ms) in [
        (Some("5"), Some(5_000)),
        (Some(" 7 "), Some(7_000)),
        (Some("0"), Some(0)),
        (Some("18446744073709551615"), Some(u64::MAX)),
        (Some("soon"), None),
        (Some("-1"), None),
        (Some("Wed, 21 Oct 2026 07:28:00 GMT"), None),
        (None, None),
    ] {
        let Answer::Failed(failure) = read(503, "", text) else {
            panic!("{text:?}");
        };
        assert_eq!(failure.retry_after_ms, wait_ms, "{text:?}");
    }
}

#[test]
fn a_body_that_is_not_a_problem_changes_nothing() {
    let headers = HeaderMap::new();
    for body in [
        "",
        "out-of-stock",
        "[]",
        r#"{"type":7}"#,
        r#"{"kind":"urn:x:refused"}"#,
        "{\"type\":",
    ] {
        let answer = meaning(StatusCode::CONFLICT, &headers, body.as_bytes());
        assert_eq!(kind(answer), "error", "{body}");
    }
    let long = "x".repeat(10_000);
    let Answer::Failed(failure) = meaning(StatusCode::BAD_REQUEST, &headers, long.as_bytes()) else {
        panic!("a 400 is a failure");
    };
    assert!(failure.reason.len() < 300, "{}", failure.reason.len());
}
