//! The base URL of the warehouse.
//!
//! The URL in a node's settings is checked when the node starts, so that a mistake is reported
//! then and not with the first order.
//!
//! **Invariant**: a `WarehouseUrl` has the scheme http and a host, and has no user, query or
//! fragment.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;
use thiserror::Error;

/// The base URL of the warehouse's routes: `http://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarehouseUrl {
    /// Scheme, host and port.
    origin: String,
    /// The path prefix of the routes, without a slash at its end.
    path: String,
}

/// The reason why a text is not a usable base URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}; write http://HOST:PORT")]
pub struct InvalidUrl(&'static str);

impl FromStr for WarehouseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<WarehouseUrl, InvalidUrl> {
        // The parser of `Uri` drops a fragment silently, so the text is searched for one first.
        if text.contains('#') {
            return Err(InvalidUrl("a fragment (#) is not allowed"));
        }
        let uri: Uri = text.parse().map_err(|_| InvalidUrl("this is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(_) => {
                return Err(InvalidUrl(
                    "only http is supported; for TLS put a proxy in between",
                ));
            }
            None => return Err(InvalidUrl("http:// is missing")),
        }
        if uri.query().is_some() {
            return Err(InvalidUrl("a query (?) is not allowed"));
        }
        let authority = uri.authority().ok_or(InvalidUrl("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(InvalidUrl(
                "user and password are not supported; put a proxy in between that adds them",
            ));
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(InvalidUrl("the host is missing"));
        }
        let port = authority.as_str().strip_prefix(host).unwrap_or_default();
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return Err(InvalidUrl("the port must be 1 to 65535"));
        }
        Ok(WarehouseUrl {
            origin: format!("http://{authority}"),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for WarehouseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

impl WarehouseUrl {
    /// Returns the URL of a route. The path of the route begins with a slash.
    pub(crate) fn with_path(&self, route: &'static str) -> Uri {
        // A plain path after a valid base URL is valid. If the URL were invalid, the call to the
        // warehouse would fail, because the default URL `/` has no host.
        format!("{self}{route}").parse().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_host_with_a_port_and_a_path() {
        for (text, shown, route) in [
            (
                "http://127.0.0.1:9091",
                "http://127.0.0.1:9091",
                "http://127.0.0.1:9091/order/new",
            ),
            ("http://wms/", "http://wms", "http://wms/order/new"),
            ("http://[::1]:80/", "http://[::1]:80", "http://[::1]:80/order/new"),
            (
                "http://wms:1/api/v2/",
                "http://wms:1/api/v2",
                "http://wms:1/api/v2/order/new",
            ),
            (
                "HTTP://wms:65535",
                "http://wms:65535",
                "http://wms:65535/order/new",
            ),
        ] {
            let url: WarehouseUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(url.with_path("/order/new").to_string(), route);
            assert_eq!(shown.parse(), Ok(url), "{text}");
        }
    }

    #[test]
    fn other_urls_are_rejected_with_the_reason() {
        for (text, reason) in [
            ("http://h:1/?x=1", "a query"),
            ("http://h:1?", "a query"),
            ("http://h:1/#x", "a fragment"),
            ("http://user:secret@h:1", "user and password"),
            ("http://user@h:1", "user and password"),
            ("https://h:1", "only http"),
            ("ftp://h", "only http"),
            ("h:1", "not a URL"),
            ("127.0.0.1:9091", "not a URL"),
            ("localhost", "http:// is missing"),
            ("/order", "http:// is missing"),
            ("http://", "not a URL"),
            ("http://:9091", "the host is missing"),
            ("http://h:0", "the port"),
            ("http://h:65536", "the port"),
            ("http://h:", "the port"),
            ("http://h:x", "not a URL"),
            ("http://h h", "not a URL"),
            ("", "not a URL"),
        ] {
            let error = text.parse::<WarehouseUrl>().unwrap_err().to_string();
            let is_refused = error.contains(reason)
                || (reason == "not a URL" && error.contains("is missing"))
                || (reason == "not a URL" && error.contains("the port"));
            assert!(is_refused, "{text}: {error}");
        }
    }
}
