//! Requests of browsers for pages of other origins (CORS). By default, such a page can neither read
//! a response nor change anything.
//!
//! The API has no authentication. So a page of an allowed origin can place and cancel orders at
//! each node that allows the origin and that the user's browser can reach.
//!
//! **Invariants**
//! - A request that may change something is refused if its page has neither an allowed origin nor
//!   the address of the request as its origin. A browser sends some requests of any page, such as a
//!   POST of plain text, without asking the node first.
//! - The operator lists each allowed origin. The wildcard `*` is rejected.
//! - Responses to requests of other nodes never contain CORS headers.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HOST, ORIGIN, RETRY_AFTER};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::api::fast_path::AnswerBody;
use crate::api::forward::OWNER;
use crate::api::problem::REPLAYED;
use crate::error::NodeError;

/// Time for which a browser may cache the answer to a preflight request.
const PREFLIGHT_KEPT: Duration = Duration::from_secs(60 * 60);
/// A request header that a page may send. The others are `REQUEST_ID`, `STOCK_AS_OF`,
/// `Content-Type` and `Content-Encoding`.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const STOCK_AS_OF: HeaderName = HeaderName::from_static("x-stock-as-of");

/// The CORS rules for requests to the public routes.
pub(crate) struct Cors {
    layer: CorsLayer,
    allowed: Vec<HeaderValue>,
}

impl Cors {
    /// Returns the rules for the given origins, or `None` if `origins` is empty.
    pub(crate) fn of(origins: &[String]) -> Result<Option<Cors>, NodeError> {
        if origins.is_empty() {
            return Ok(None);
        }
        let refused = |reason| NodeError::Config {
            setting: "cors_origin",
            reason,
        };
        let allowed: Result<Vec<HeaderValue>, NodeError> = origins
            .iter()
            .map(|origin| parse_origin(origin).map_err(refused))
            .collect();
        let allowed = allowed?;
        let layer = CorsLayer::new()
            .allow_origin(AllowOrigin::list(allowed.clone()))
            .allow_methods([
                Method::GET,
                Method::HEAD,
                Method::POST,
                Method::PUT,
                Method::PATCH,
            ])
            .allow_headers([
                CONTENT_TYPE,
                CONTENT_ENCODING,
                IDEMPOTENCY_KEY,
                REQUEST_ID,
                STOCK_AS_OF,
            ])
            .expose_headers([ALLOW, ETAG, OWNER, RETRY_AFTER, REPLAYED, REQUEST_ID])
            .max_age(PREFLIGHT_KEPT);
        Ok(Some(Cors { layer, allowed }))
    }

    /// Answers an `OPTIONS` request as a preflight request. Calls `answer` for any other request,
    /// and adds the CORS headers to the response.
    pub(crate) async fn answer<B, F>(
        &self,
        request: Request<B>,
        answer: impl FnMut(Request<B>) -> F,
    ) -> Response<AnswerBody>
    where
        F: Future<Output = Result<Response<AnswerBody>, Infallible>>,
    {
        let Ok(response) = self.layer.layer(service_fn(answer)).oneshot(request).await;
        response
    }
}

/// Returns `true` if the request may change something, and a browser sent it for a page that may
/// not change anything. Other clients send no header `Origin`.
pub(crate) fn is_foreign<B>(cors: Option<&Cors>, request: &Request<B>) -> bool {
    let Some(origin) = request.headers().get(ORIGIN) else {
        return false;
    };
    if request.method().is_safe() || cors.is_some_and(|cors| cors.allowed.contains(origin)) {
        return false;
    }
    // HTTP/2 has the address of the request in the URI.
    let in_uri = request.uri().authority().map(Authority::as_str);
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let of_page = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    match (in_uri.or(host), of_page) {
        (Some(host), Some((_, of_page))) => !host.eq_ignore_ascii_case(of_page),
        _ => true,
    }
}

impl Default for AnswerBody {
    fn default() -> AnswerBody {
        AnswerBody::Short(Full::default())
    }
}

/// Parses an origin: scheme, host, and optionally a port, in lower case. Browsers leave out the
/// default port of the scheme, so an origin with it matches no request.
pub(crate) fn parse_origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = |reason: &str| format!("'{text}' is not an origin such as https://shop.example: {reason}");
    if text == "*" {
        return Err(wrong("name each origin; the API has no authentication"));
    }
    let uri: Uri = text.parse().map_err(|_| wrong("it is not a URL"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong("scheme or host is missing"));
    };
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(wrong("the host is missing, or a user name is present"));
    }
    let origin = format!("{scheme}://{authority}").to_lowercase();
    if origin != text {
        return Err(wrong("it must be in lower case and end after the host or port"));
    }
    HeaderValue::from_str(text).map_err(|_| wrong("it contains a character that is not allowed in headers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_node_and_of_allowed_origins_may_change_anything() {
        let cors = Cors::of(&["https://shop.example".to_owned()]).unwrap();
        let request = |method: &str, uri: &str, origin: &str| {
            let request = Request::builder().method(method).uri(uri);
            let request = request.header(HOST, "127.0.0.1:9090");
            request.header(ORIGIN, origin).body(()).unwrap()
        };
        for (origin, is_refused) in [
            ("https://evil.example", true),
            ("null", true),
            ("http://127.0.0.1:9091", true),
            ("http://127.0.0.1:9090", false),
            ("https://shop.example", false),
        ] {
            let post = request("POST", "/order", origin);
            assert_eq!(is_foreign(cors.as_ref(), &post), is_refused, "{origin}");
            let get = request("GET", "/order/1", origin);
            assert!(!is_foreign(cors.as_ref(), &get), "{origin}");
        }
        let allowed = request("POST", "/order", "https://shop.example");
        assert!(is_foreign(None, &allowed), "no origin is allowed");
        let http2 = request(
            "PUT",
            "http://node.example:9090/stocks",
            "http://node.example:9090",
        );
        assert!(!is_foreign(None, &http2));
        let without = Request::builder().method("POST").uri("/order").body(()).unwrap();
        assert!(!is_foreign(None, &without), "no browser sent it");
    }

    #[test]
    fn parse_origin_accepts_only_scheme_host_and_port() {
        for origin in ["https://shop.example", "http://127.0.0.1:3000", "http://[::1]:80"] {
            assert_eq!(parse_origin(origin).unwrap(), origin);
        }
        for text in [
            "*",
            "null",
            "",
            "shop.example",
            "https://",
            "https://shop.example/",
            "https://shop.example/path",
            "https://shop.example?x=1",
            "https://ann@shop.example",
            "HTTPS://Shop.Example",
        ] {
            parse_origin(text).unwrap_err();
        }
    }
}
