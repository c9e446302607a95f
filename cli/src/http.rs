//! HTTP calls from commands to a running node.

use crate::error::CliError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::Duration;

/// Maximum size of a response. A page of 10,000 orders is about 2 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Timeout of a request to a node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Media type of the errors of a node.
const PROBLEM: &str = "application/problem+json";

/// Sends `GET base + path`. Returns the status and the body.
pub(crate) async fn get(base: &str, path: &str) -> Result<(StatusCode, Bytes), CliError> {
    let answer = exchange(base, Method::GET, path, &Extra::default()).await?;
    Ok((answer.status, answer.body))
}

/// The parts of a request that most requests do not have.
struct Extra<'a> {
    json: Option<&'a Value>,
    timeout: Duration,
}

impl Default for Extra<'_> {
    fn default() -> Self {
        Self {
            json: None,
            timeout: ANSWER_TIMEOUT,
        }
    }
}

/// A response.
struct Answer {
    status: StatusCode,
    content_type: String,
    body: Bytes,
}

/// Keeps connections between requests.
type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Client of the public API of a node.
pub(crate) struct Api {
    base: String,
    client: HttpClient,
}

impl Api {
    pub(crate) fn new(base: impl ToString) -> Self {
        Self {
            base: base.to_string().trim_end_matches('/').to_owned(),
            client: new_client(),
        }
    }

    /// Returns the address of the node.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Sends `GET path`. Returns the document of the response.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.call(Method::GET, path, None).await
    }

    /// Sends `POST path`. Returns the document of the response.
    pub(crate) async fn post(&self, path: &str, json: Option<&Value>) -> Result<Value, CliError> {
        self.call(Method::POST, path, json).await
    }

    async fn call(&self, method: Method, path: &str, json: Option<&Value>) -> Result<Value, CliError> {
        let extra = Extra {
            json,
            ..Extra::default()
        };
        let answer = exchange_by(&self.client, &self.base, method, path, &extra).await?;
        self.understand(path, &answer)
    }

    /// Returns the document of a success, or the error that a problem document describes. Any other
    /// response is not from a node.
    fn understand(&self, path: &str, answer: &Answer) -> Result<Value, CliError> {
        let (base, status) = (&self.base, answer.status);
        let stranger = || {
            CliError::failed(format!(
                "{base}{path} answered {status} as no node does; is it the address of a node? (--oms)"
            ))
        };
        let json: Value = serde_json::from_slice(&answer.body).map_err(|_| stranger())?;
        if status.is_success() {
            return Ok(json);
        }
        let detail = json["detail"]
            .as_str()
            .filter(|_| answer.content_type.starts_with(PROBLEM));
        let Some(detail) = detail else {
            return Err(stranger());
        };
        let message = format!("{base} answered {}: {detail}", status.as_u16());
        let problem = Box::new(json);
        Err(CliError::Refused { message, problem })
    }
}

fn new_client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

async fn exchange(base: &str, method: Method, path: &str, extra: &Extra<'_>) -> Result<Answer, CliError> {
    exchange_by(&new_client(), base, method, path, extra).await
}

async fn exchange_by(
    client: &HttpClient,
    base: &str,
    method: Method,
    path: &str,
    extra: &Extra<'_>,
) -> Result<Answer, CliError> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let uri: Uri = url
        .parse()
        .map_err(|error| CliError::Usage(format!("'{url}' is not a URL: {error}")))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(CliError::Usage(format!(
            "'{base}' is not the URL of a node; it looks like http://127.0.0.1:9090"
        )));
    }
    let mut request = Request::builder().method(method).uri(uri);
    if extra.json.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = extra
        .json
        .map(|json| Bytes::from(json.to_string()))
        .unwrap_or_default();
    let request = request
        .body(Full::new(body))
        .map_err(|error| CliError::because(format!("cannot ask {url}"), error))?;
    let exchange = async {
        let answer = client.request(request).await.map_err(|error| {
            let message =
                format!("no node answers at {base}; is it running? (imt node start, or imt sim run)");
            CliError::Unreachable {
                message,
                source: Box::new(error),
            }
        })?;
        let status = answer.status();
        let content_type = answer.headers().get(CONTENT_TYPE);
        let content_type = content_type
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let content_type = content_type.to_owned();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body =
            body.map_err(|error| CliError::failed(format!("the response of {url} ended early: {error}")))?;
        Ok(Answer {
            status,
            content_type,
            body: body.to_bytes(),
        })
    };
    tokio::time::timeout(extra.timeout, exchange)
        .await
        .unwrap_or_else(|late| {
            Err(CliError::Unreachable {
                message: format!("{url} did not answer within {:?}", extra.timeout),
                source: Box::new(late),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(status: u16, content_type: &str, body: &str) -> Result<Value, CliError> {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: content_type.to_owned(),
            body: Bytes::from(body.to_owned()),
        };
        Api::new("http://x").understand("/order/17", &answer)
    }

    #[test]
    fn only_a_problem_document_counts_as_the_error_of_a_node() {
        let problem = r#"{"detail":"there is no order 17"}"#;
        assert!(matches!(
            understood(404, "application/problem+json", problem),
            Err(CliError::Refused { message, .. }) if message.contains("there is no order 17")
        ));
        for (content_type, body) in [("text/html", "<h1>Not found</h1>"), ("application/json", problem)] {
            let error = understood(404, content_type, body).unwrap_err().to_string();
            assert!(error.contains("as no node does"), "{error}");
        }
        assert!(understood(200, "text/html", "<h1>Hello</h1>").is_err());
        assert_eq!(
            understood(200, "application/json", "{}").unwrap(),
            serde_json::json!({})
        );
    }
}
