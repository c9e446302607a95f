//! HTTP calls from commands to a running node, with the HTTP client of the crate `imt-sim`.

use crate::error::CliError;
use imt_sim::Endpoint;
use imt_sim::client::{Answer, Client, Failure, FailureKind};
use serde_json::Value;
use std::time::Duration;

/// Maximum time for a node to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Media type of a node's error responses.
const PROBLEM: &str = "application/problem+json";

/// Sends `GET path` to a node on a new connection. Returns any complete response, also one with the
/// status of an error.
pub(crate) async fn get(node: &Endpoint, path: &str) -> Result<Answer, CliError> {
    let client = Client::new(node.clone(), ANSWER_TIMEOUT);
    let answer = client.get(path).await;
    answer.map_err(|failure| unanswered(&client, path, failure))
}

/// Returns the error for a request without a complete response.
fn unanswered(client: &Client, path: &str, failure: Failure) -> CliError {
    let node = client.endpoint();
    let message = match failure.kind {
        FailureKind::TimedOut => format!("{node}{path} did not answer within {:?}", client.timeout()),
        FailureKind::Closed => format!("{node}{path}: the connection closed before the response was whole"),
        FailureKind::Refused | FailureKind::Other => {
            format!("no node answers at {node}; is it running? (imt node start, or imt sim run)")
        }
    };
    CliError::Unreachable {
        message,
        source: Box::new(failure),
    }
}

/// Client of the public API of a node. Keeps connections between requests.
pub(crate) struct Api {
    client: Client,
}

impl Api {
    pub(crate) fn new(node: &Endpoint) -> Self {
        Self {
            client: Client::new(node.clone(), ANSWER_TIMEOUT),
        }
    }

    /// Returns the address of the node.
    pub(crate) fn node(&self) -> &Endpoint {
        self.client.endpoint()
    }

    /// Sends `GET path`. Returns the JSON document in the response.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, CliError> {
        let answer = self.client.get(path).await;
        self.understand(path, answer)
    }

    /// Sends `POST path`. Returns the JSON document in the response.
    pub(crate) async fn post(&self, path: &str, json: Option<&Value>) -> Result<Value, CliError> {
        let answer = match json {
            Some(json) => self.client.post_json(path, json.to_string().into()).await,
            None => self.client.post(path, None).await,
        };
        self.understand(path, answer)
    }

    /// Returns the JSON document of a successful response, or the error that a problem document
    /// describes. Any other response is an error too, because no node would send it.
    fn understand(&self, path: &str, answer: Result<Answer, Failure>) -> Result<Value, CliError> {
        let answer = answer.map_err(|failure| unanswered(&self.client, path, failure))?;
        let (node, status) = (self.node(), answer.status);
        let stranger = || {
            CliError::failed(format!(
                "{node}{path} answered {status} as no node does; is it the address of a node? (--oms)"
            ))
        };
        let json: Value = serde_json::from_slice(&answer.body).map_err(|_| stranger())?;
        if answer.is_success() {
            return Ok(json);
        }
        let content_type = answer.headers.get("content-type");
        let is_problem = content_type.is_some_and(|value| value.as_bytes().starts_with(PROBLEM.as_bytes()));
        let detail = json["detail"].as_str().filter(|_| is_problem);
        let Some(detail) = detail else {
            return Err(stranger());
        };
        let message = format!("{node} answered {status}: {detail}");
        let problem = Box::new(json);
        Err(CliError::Refused { message, problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(status: u16, content_type: &str, body: &str) -> Result<Value, CliError> {
        let mut answer = Answer {
            status,
            body: body.to_owned().into(),
            headers: Default::default(),
        };
        answer
            .headers
            .insert("content-type", content_type.parse().unwrap());
        Api::new(&"http://x".parse().unwrap()).understand("/order/17", Ok(answer))
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
