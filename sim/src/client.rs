//! A small HTTP client for the shop front, the simulated warehouse, the audit and the commands of
//! `imt`.
//!
//! Invariants:
//! - Every call has a deadline, so that no call stays in flight for ever. Every answer has a
//!   maximum size.
//! - A failed call has one of four kinds of failure. The report of a run counts the failures by
//!   kind.
//! - This client sends no request twice. If the server has closed a pooled connection before a byte
//!   of the request was written, the request is sent on another connection.
//!
//! Absent on purpose: redirects, TLS, proxies.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Body;
use hyper::{HeaderMap, Method, Request, Uri, header};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Maximum size of an answer's body in bytes. The largest usual answer, a page of 10,000 orders,
/// has about 2 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Name of the response header with the address of the node that owns the order, the store or the
/// statistics that the request is about.
const OWNER: &str = "x-imt-owner";

/// Address of a server: `http://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    authority: String,
}

impl Endpoint {
    /// Returns the full address of a path that begins with `/`.
    fn uri(&self, path: &str) -> Result<Uri> {
        format!("http://{}{path}", self.authority)
            .parse()
            .map_err(|_| Error::Address {
                given: path.to_owned(),
                problem: "not a path",
            })
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self> {
        let wrong = |problem| Error::Address {
            given: given.to_owned(),
            problem,
        };
        // The parser of `Uri` drops a fragment without an error, so a fragment is rejected here.
        if given.contains('#') {
            return Err(wrong("it has a fragment (#)"));
        }
        let uri: Uri = given.parse().map_err(|_| wrong("not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(_) => return Err(wrong("only http is spoken")),
            None => return Err(wrong("http:// is missing")),
        }
        if uri.query().is_some() {
            return Err(wrong("it has a query (?)"));
        }
        if uri.path() != "/" {
            return Err(wrong("it has a path"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("user and password are not supported"));
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        let port = authority.as_str().strip_prefix(host).unwrap_or_default();
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
        if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
            return Err(wrong("the port must be 1 to 65535"));
        }
        Ok(Self {
            authority: authority.to_string(),
        })
    }
}

impl From<std::net::SocketAddr> for Endpoint {
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            authority: address.to_string(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// Reason for which a call has no complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// The connection was refused.
    Refused,
    /// The connection was closed before the whole answer arrived. The server may have performed the
    /// call.
    Closed,
    /// The connection was not established in time, or the whole answer did not arrive in time. The
    /// server may have performed the call.
    TimedOut,
    /// The call failed for another reason. The server may have performed the call.
    Other,
}

impl FailureKind {
    /// Returns a short reason without commas, the same as in `stats.csv`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Refused => "connection refused",
            Self::Closed => "connection closed",
            Self::TimedOut => "timed out",
            Self::Other => "failed",
        }
    }
}

/// A call without a complete answer.
#[derive(Debug, thiserror::Error)]
pub struct Failure {
    /// The kind of the failure.
    pub kind: FailureKind,
    /// Messages of the error and its causes, outermost first; empty if the deadline of the call
    /// passed.
    pub detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            f.write_str(self.kind.reason())
        } else {
            write!(f, "{} ({})", self.kind.reason(), self.detail)
        }
    }
}

impl Failure {
    fn timed_out() -> Self {
        Self {
            kind: FailureKind::TimedOut,
            detail: String::new(),
        }
    }

    /// Builds a failure from an error and its causes. The kind of the failure is that of the
    /// innermost cause with a known kind, or `Other` if no cause has one.
    fn new(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut kind = FailureKind::Other;
        let mut detail = String::new();
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                use std::io::ErrorKind;
                kind = match io.kind() {
                    ErrorKind::ConnectionRefused => FailureKind::Refused,
                    ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof => FailureKind::Closed,
                    ErrorKind::TimedOut => FailureKind::TimedOut,
                    _ => kind,
                };
            } else if let Some(hyper) = error.downcast_ref::<hyper::Error>()
                && (hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed())
            {
                kind = FailureKind::Closed;
            }
            if !detail.is_empty() {
                detail.push_str(": ");
            }
            detail.push_str(&error.to_string());
            cause = error.source();
        }
        Self { kind, detail }
    }
}

/// A complete answer: status, body and headers.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// The body, not decoded.
    pub body: Bytes,
    /// The headers of the answer.
    pub headers: HeaderMap,
}

impl Answer {
    /// Returns the address of the node that owns the order, the store or the statistics that the
    /// request is about; `None` if the answer has no valid header `x-imt-owner`.
    pub fn owner(&self) -> Option<Endpoint> {
        let address = self.headers.get(OWNER)?.to_str().ok()?;
        format!("http://{address}").parse().ok()
    }

    /// Returns `true` for a status from 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Returns at most 300 characters of the first line of the body, for an error message. If the
    /// body begins with `<`, it is a page for browsers, and a description of the page is returned
    /// instead.
    pub fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        if text.trim_start().starts_with('<') {
            return "with an HTML or XML page".to_owned();
        }
        text.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(300)
            .collect()
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = UnsyncBoxBody<Bytes, BodyError>;

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpConnector, AnyBody>,
    endpoint: Endpoint,
    timeout: Duration,
}

impl Client {
    /// Returns a client with a deadline of `timeout` for each call, from the connection to the end
    /// of the answer.
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // The servers close an idle connection after 30 s or more. A request that is written at
            // that moment would fail, so the client closes idle connections earlier.
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Self {
            http,
            endpoint,
            timeout,
        }
    }

    /// Returns the server's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the deadline of each call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Returns a client of another server with the same deadline. The two clients share one pool of
    /// connections.
    pub(crate) fn at(&self, endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            ..self.clone()
        }
    }

    /// Sends `POST path` with `body` as JSON, or `GET path` if `body` is `None`.
    ///
    /// # Errors
    /// [`Failure`] if there is no complete answer, for one of the reasons in [`FailureKind`].
    pub(crate) async fn exchange(&self, path: &str, body: Option<Bytes>) -> Result<Answer, Failure> {
        match body {
            Some(body) => self.post_json(path, body).await,
            None => self.get(path).await,
        }
    }

    /// Sends `GET path`.
    ///
    /// # Errors
    /// [`Failure`] if there is no complete answer, for one of the reasons in [`FailureKind`].
    pub async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.get_with(path, None).await
    }

    /// Sends `GET path` with an optional further header.
    ///
    /// # Errors
    /// [`Failure`] if there is no complete answer, for one of the reasons in [`FailureKind`].
    pub(crate) async fn get_with(
        &self,
        path: &str,
        extra: Option<(&'static str, &str)>,
    ) -> Result<Answer, Failure> {
        let mut request = self.request(Method::GET, path);
        if let Some((name, value)) = extra {
            request = request.header(name, value);
        }
        self.call(request, Empty::new().map_err(Into::into).boxed_unsync())
            .await
    }

    /// Sends `POST path` without a body, with an optional further header.
    ///
    /// # Errors
    /// [`Failure`] if there is no complete answer, for one of the reasons in [`FailureKind`].
    pub async fn post(&self, path: &str, extra: Option<(&'static str, &str)>) -> Result<Answer, Failure> {
        let mut request = self.request(Method::POST, path);
        if let Some((name, value)) = extra {
            request = request.header(name, value);
        }
        self.call(request, Empty::new().map_err(Into::into).boxed_unsync())
            .await
    }

    /// Sends `POST path` with a JSON body.
    ///
    /// # Errors
    /// [`Failure`] if there is no complete answer, for one of the reasons in [`FailureKind`].
    pub async fn post_json(&self, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let request = self
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/json");
        self.call(request, Full::new(body).map_err(Into::into).boxed_unsync())
            .await
    }

    /// Sends `PUT path` with a CSV body, which may have any length and is sent in chunks, and with
    /// one further header.
    pub(crate) async fn put_csv<B>(
        &self,
        path: &str,
        extra: (&'static str, u64),
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let request = self
            .request(Method::PUT, path)
            .header(header::CONTENT_TYPE, "text/csv")
            .header(extra.0, extra.1);
        self.call(request, body.map_err(Into::into).boxed_unsync()).await
    }

    /// Sends `GET path` and parses the answer as JSON.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if there is no answer. [`Error::Answer`] if the status is not 200 or
    /// the body cannot be parsed as `T`.
    pub async fn get_json<T: DeserializeOwned>(&self, who: &'static str, path: &str) -> Result<T> {
        let answer = self.get(path).await.map_err(|failure| Error::Unreachable {
            who,
            address: self.endpoint.to_string(),
            problem: failure.to_string(),
        })?;
        let wrong = |problem: String| Error::Answer {
            route: format!("GET {}{path}", self.endpoint),
            problem: format!("{problem}; expected 200 and JSON of {who}, so check the address"),
        };
        if answer.status != 200 {
            return Err(wrong(format!("{} {}", answer.status, answer.excerpt())));
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            let problem = format!("200 {}: {error}", answer.excerpt());
            wrong(problem)
        })
    }

    /// Sends `GET path` with the entity tag of an earlier answer, if there is one. Returns the
    /// answer, parsed as JSON, and its tag; `None` if the server answers 304, because nothing has
    /// changed.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if there is no answer. [`Error::Answer`] if the status is neither 200
    /// nor 304, or the body cannot be parsed as `T`.
    pub(crate) async fn get_unless<T: DeserializeOwned>(
        &self,
        path: &str,
        tag: Option<&str>,
    ) -> Result<Option<(T, Option<String>)>> {
        let mut request = self.request(Method::GET, path);
        if let Some(tag) = tag {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let empty = Empty::new().map_err(Into::into).boxed_unsync();
        let answer = self
            .call(request, empty)
            .await
            .map_err(|failure| Error::Unreachable {
                who: "the order management",
                address: self.endpoint.to_string(),
                problem: failure.to_string(),
            })?;
        let wrong = |problem| Error::Answer {
            route: format!("GET {}{path}", self.endpoint),
            problem,
        };
        let tag = answer.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
        match answer.status {
            200 => match serde_json::from_slice(&answer.body) {
                Ok(value) => Ok(Some((value, tag.map(str::to_owned)))),
                Err(error) => Err(wrong(error.to_string())),
            },
            304 => Ok(None),
            status => Err(wrong(format!("{status} {}", answer.excerpt()))),
        }
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder().method(method);
        match self.endpoint.uri(path) {
            Ok(uri) => request.uri(uri),
            // The path is no valid URI. The builder stores this error and returns it when `call`
            // adds the body.
            Err(_) => request.uri(path),
        }
    }

    async fn call(&self, request: hyper::http::request::Builder, body: AnyBody) -> Result<Answer, Failure> {
        let request = request.body(body).map_err(|e| Failure::new(&e))?;
        let exchange = async {
            let answer = self.http.request(request).await.map_err(|e| Failure::new(&e))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| Failure::new(&*e))?;
            Ok(Answer {
                status: head.status.as_u16(),
                body: body.to_bytes(),
                headers: head.headers,
            })
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(Failure::timed_out()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_http_host_and_port() {
        let good: Endpoint = "http://127.0.0.1:9090".parse().unwrap();
        assert_eq!(good.to_string(), "http://127.0.0.1:9090");
        assert_eq!(
            "http://shop:1/".parse::<Endpoint>().unwrap().to_string(),
            "http://shop:1"
        );
        for (given, problem) in [
            ("https://127.0.0.1:9090", "only http"),
            ("127.0.0.1:9090", "http:// is missing"),
            ("http://127.0.0.1:9090/order", "has a path"),
            ("http://127.0.0.1:9090/?x=1", "has a query"),
            ("http://127.0.0.1:9090?", "has a query"),
            ("http://127.0.0.1:9090/#x", "has a fragment"),
            ("http://user:secret@127.0.0.1:9090", "user and password"),
            ("http://127.0.0.1:70000", "the port"),
            ("http://127.0.0.1:0", "the port"),
            ("http://127.0.0.1:", "the port"),
            ("http://:9090", "the host is missing"),
            ("", "not a URL"),
        ] {
            let error = given.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(problem), "{given}: {error}");
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_is_refused() {
        // The listener is dropped at once, so the port is free and very probably nobody listens on
        // it.
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let client = Client::new(address.into(), Duration::from_secs(5));
        let failure = client.get("/health").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    }

    #[tokio::test]
    async fn an_answer_of_another_server_names_the_address_and_the_expected_server() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            let page = b"HTTP/1.1 501 No\r\ncontent-length: 15\r\n\r\n<!DOCTYPE HTML>";
            stream.write_all(page).await.unwrap();
        });
        let client = Client::new(address.into(), Duration::from_secs(60));
        let error = client.get_json::<serde_json::Value>("the warehouse", "/ledger");
        let error = error.await.unwrap_err().to_string();
        let expected = "501 with an HTML or XML page; expected 200 and JSON of the warehouse";
        let route = format!("GET http://{address}/ledger: unexpected answer: {expected}");
        assert!(error.starts_with(&route), "{error}");
    }
}
