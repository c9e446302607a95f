//! The console's page: one HTML document with inline style and script, compiled into the program.
//!
//! Invariants:
//! - The page loads nothing from other hosts. Its Content-Security-Policy allows its one style and
//!   its one script by their hashes, images in `data:` URLs, and requests to the node that sent the
//!   page.
//! - Only a `GET` or `HEAD` of `/` with `text/html` in `Accept` (weight above 0) gets the page. A
//!   `GET` or `HEAD` of `/` without that value gets 404, as on a node without a console.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::api::AnswerBody;

const TEMPLATE: &str = include_str!("assets/console.html");
const STYLE: &str = include_str!("assets/console.css");
const SCRIPTS: [&str; 4] = [
    include_str!("assets/base.js"),
    include_str!("assets/draw.js"),
    include_str!("assets/order.js"),
    include_str!("assets/console.js"),
];

/// The page with the headers that are computed from its text.
struct Page {
    body: Bytes,
    tag: HeaderValue,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let script = format!("\"use strict\";\n{}", SCRIPTS.concat());
    let text = TEMPLATE.replace("{style}", STYLE).replace("{script}", &script);
    // The node compresses the response for some clients. So two responses with this tag may differ
    // in their bytes, and the tag is weak.
    let tag = format!("W/\"{}\"", &hash(&text)[..16]);
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(&script),
    );
    let header =
        |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    Page {
        body: Bytes::from(text),
        tag: header(&tag),
        policy: header(&policy),
    }
});

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

/// Returns `true` if `Accept` names `text/html` with a weight above 0.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter();
    let texts = accepted.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse::<f32>().ok());
        is_html && weight.is_none_or(|weight| weight > 0.0)
    })
}

/// Returns the page, or 304 if `If-None-Match` names its current tag or `*`.
pub(super) fn answer(headers: &HeaderMap) -> Response<AnswerBody> {
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let is_known = known.is_some_and(|known| {
        let mut tags = known.split(',').map(str::trim);
        tags.any(|tag| tag == "*" || PAGE.tag.to_str().is_ok_and(|ours| tag == ours))
    });
    let body = if is_known { Bytes::new() } else { PAGE.body.clone() };
    let mut response = Response::new(AnswerBody::Long(Body::from(body)));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, PAGE.policy.clone());
    headers.insert(ETAG, PAGE.tag.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_names_html_gets_the_page() {
        for (accept, is_page) in [
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                true,
            ),
            ("application/json, TEXT/HTML; q=0.4", true),
            ("text/html;q=0", false),
            ("*/*", false),
            ("application/json", false),
            ("text/htmlx", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(is_wanted(&headers), is_page, "{accept}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[test]
    fn the_page_holds_all_its_parts_and_names_no_other_host() {
        let text = std::str::from_utf8(&PAGE.body).unwrap();
        assert!(text.contains(STYLE) && SCRIPTS.iter().all(|script| text.contains(script)));
        assert!(!text.contains("{style}") && !text.contains("{script}"));
        // The address of the SVG name space is an identifier that browsers never fetch.
        let addresses = text.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http://", "https://", "//cdn", "@import", "url(http"] {
            assert!(!addresses.contains(outside), "{outside}");
        }
        // The page's Content-Security-Policy forbids inline style and script attributes. The script
        // must never parse text as HTML, because data could then inject markup.
        for refused in [
            " style=\"",
            " onclick=",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
        ] {
            assert!(!text.contains(refused), "{refused}");
        }
        assert_eq!(text.matches("</script").count(), 1);
        assert_eq!(text.matches("</style").count(), 1);
    }
}
