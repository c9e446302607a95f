//! Cross-origin requests of browsers (CORS). By default, responses have no CORS headers, so
//! browsers let no page of another origin read them.
//!
//! The API has no authentication. So a page of an allowed origin can place and cancel orders at any
//! node that the user's browser can reach.
//!
//! **Invariants**
//! - The operator lists each allowed origin. The wildcard `*` is rejected.
//! - Responses to requests of other nodes never contain CORS headers.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, ETAG, RETRY_AFTER};
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
pub(crate) struct Cors(CorsLayer);

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
        let layer = CorsLayer::new()
            .allow_origin(AllowOrigin::list(allowed?))
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
        Ok(Some(Cors(layer)))
    }

    /// Answers an `OPTIONS` request as a preflight request. For any other request it calls `answer`
    /// and adds the CORS headers to the response.
    pub(crate) async fn answer<B, F>(
        &self,
        request: Request<B>,
        answer: impl FnMut(Request<B>) -> F,
    ) -> Response<AnswerBody>
    where
        F: Future<Output = Result<Response<AnswerBody>, Infallible>>,
    {
        let Ok(response) = self.0.layer(service_fn(answer)).oneshot(request).await;
        response
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
