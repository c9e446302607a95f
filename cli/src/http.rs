//! HTTP calls from commands to a running node.

use crate::error::CliError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// Maximum size of a response. A page of 10,000 orders is about 2 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Timeout of a request to a node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends `GET base + path`. Returns the status and the body.
pub(crate) async fn get(base: &str, path: &str) -> Result<(StatusCode, Bytes), CliError> {
    exchange(base, Method::GET, path, None, ANSWER_TIMEOUT).await
}

/// Sends `POST base + path` without a body. Returns the status and the body of the response.
pub(crate) async fn post(base: &str, path: &str) -> Result<(StatusCode, Bytes), CliError> {
    exchange(base, Method::POST, path, None, ANSWER_TIMEOUT).await
}

/// Sends `POST base + path` with the secret of the node's data folder. Returns the status and the
/// body of the response.
pub(crate) async fn post_as_node(
    base: &str,
    path: &str,
    secret: &str,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), CliError> {
    exchange(base, Method::POST, path, Some(secret), timeout).await
}

async fn exchange(
    base: &str,
    method: Method,
    path: &str,
    secret: Option<&str>,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), CliError> {
    let url = format!("{}{path}", base.trim_end_matches('/'));
    let uri: Uri = url
        .parse()
        .map_err(|error| CliError::Usage(format!("'{url}' is not a URL: {error}")))?;
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(CliError::Usage(format!(
            "'{base}' is not the URL of a node; it looks like http://127.0.0.1:9090"
        )));
    }
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(secret) = secret {
        request = request.header("x-imt-secret", secret);
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| CliError::because(format!("cannot ask {url}"), error))?;
    let exchange = async {
        let answer = client.request(request).await.map_err(|error| {
            CliError::because(
                format!("no node answers at {base}; is it running? (imt node start, or imt sim run)"),
                error,
            )
        })?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body =
            body.map_err(|error| CliError::failed(format!("the response of {url} ended early: {error}")))?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
        Err(CliError::failed(format!(
            "{url} did not answer within {timeout:?}"
        )))
    })
}
