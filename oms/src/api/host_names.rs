//! The names by which a browser may reach a node.
//!
//! The owner of a domain can make its name lead to the address of a node (DNS rebinding). For the
//! browser, the owner's page and the node then have the same origin, so the rules for other origins
//! (`cors`) do not apply. The header `Host` of such a request has the name of the owner's domain.
//!
//! **Invariants**
//! - A request of a browser that names a host is refused unless the host is an IP address, a name
//!   without a dot, a name below `localhost`, the advertised host of this node, the name of its
//!   machine, or the host of an allowed origin. The owner of a domain controls none of these names.
//! - Requests of other clients are not checked.

use axum::http::header::{ACCEPT_LANGUAGE, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderName, Request};

/// A header that browsers send with each request over an encrypted or local connection.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The host names of a node, in lower case and without ports.
#[derive(Default)]
pub(crate) struct HostNames(Vec<String>);

impl HostNames {
    /// Returns the names in `hosts`. Each entry of `hosts` is a host with or without a port.
    /// Malformed and empty entries are left out.
    pub(crate) fn of<'a>(hosts: impl IntoIterator<Item = &'a str>) -> HostNames {
        let names = hosts.into_iter().filter_map(|host| {
            let host: Authority = host.parse().ok()?;
            Some(normal(host.host()))
        });
        HostNames(names.filter(|name| !name.is_empty()).collect())
    }

    /// Returns `true` if a browser sent the request to a host name that a stranger may control, or
    /// to a malformed one. Returns `false` for a request without a host.
    pub(crate) fn is_foreign<B>(&self, request: &Request<B>) -> bool {
        // A page cannot prevent its browser from sending `Accept-Language`. The other headers are
        // missing in some requests, such as a `GET` of the page's own origin.
        let headers = request.headers();
        let is_browser = [ACCEPT_LANGUAGE, ORIGIN, SEC_FETCH_SITE]
            .iter()
            .any(|name| headers.contains_key(name));
        if !is_browser {
            return false;
        }
        // HTTP/2 has the host of the request in the URI.
        if let Some(host) = request.uri().authority() {
            return !self.has(host);
        }
        let Some(host) = headers.get(HOST) else {
            return false;
        };
        Authority::try_from(host.as_bytes()).map_or(true, |host| !self.has(&host))
    }

    fn has(&self, host: &Authority) -> bool {
        let name = normal(host.host());
        // Of host names, only IPv6 addresses have brackets. A name with a number as its last part
        // is an IPv4 address for a browser, or invalid.
        let last = name.rsplit('.').next().unwrap_or_default();
        name.starts_with('[')
            || !name.contains('.')
            || !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())
            || last == "localhost"
            || self.0.contains(&name)
    }
}

/// Returns a host name in lower case and without the dot that may end it.
fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_reaches_the_node_only_by_names_that_no_stranger_controls() {
        let names = HostNames::of(["n1.shop.example:9090", "Build.Example", "https://", ""]);
        let request = |host: &str, header: &HeaderName| {
            let request = Request::builder().uri("/order/1").header(HOST, host);
            request.header(header, "x").body(()).unwrap()
        };
        for (host, is_refused) in [
            ("127.0.0.1:9090", false),
            ("[::1]:9090", false),
            ("localhost:9090", false),
            ("shop.localhost", false),
            ("oms:9090", false),
            ("n1.shop.example:9090", false),
            ("N1.Shop.Example.", false),
            ("build.example:80", false),
            ("evil.example:9090", true),
            ("n1.shop.example.evil.example", true),
            ("127.0.0.1.evil.example", true),
            ("localhost.evil.example", true),
            ("evil.example.:9090", true),
            ("evil.example..", true),
            ("not a host", true),
        ] {
            for header in [ACCEPT_LANGUAGE, ORIGIN, SEC_FETCH_SITE] {
                let refused = names.is_foreign(&request(host, &header));
                assert_eq!(refused, is_refused, "{host} with {header}");
            }
            let curl = request(host, &HeaderName::from_static("accept"));
            assert!(!names.is_foreign(&curl), "{host} without a browser");
        }
        let http2 = Request::get("http://evil.example:9090/").header(ACCEPT_LANGUAGE, "en");
        assert!(names.is_foreign(&http2.body(()).unwrap()));
        let http1_0 = Request::get("/").header(ACCEPT_LANGUAGE, "en");
        assert!(!names.is_foreign(&http1_0.body(()).unwrap()), "no host");
    }
}
