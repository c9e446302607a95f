//! Sends one request for each of several orders or messages.
//!
//! Invariant: the successful requests are reported, even if another request fails.

use crate::error::CliError;
use crate::http::Api;
use crate::output;
use serde_json::Value;

/// A request `POST path` about an order or a message.
pub(super) struct Request {
    /// Name of the order or message in error messages, such as `order 17`.
    pub(super) subject: String,
    pub(super) path: String,
}

/// Outcomes of the requests.
#[derive(Default)]
pub(super) struct Outcomes {
    /// The responses of the requests that succeeded.
    pub(super) done: Vec<Value>,
    /// The subjects of the requests that the node refused, each with the error.
    refused: Vec<(String, CliError)>,
    /// The first error that is no refusal, with the subject of its request and the number of later
    /// requests, which were not sent.
    stopped: Option<(CliError, String, usize)>,
}

/// Sends the requests one after another. A refused request does not affect the others. Any other
/// error means that no complete answer came, or that the server is no node. Such an error ends the
/// sequence, because the next request would probably fail in the same way.
pub(super) async fn post_each(api: &Api, requests: Vec<Request>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let mut requests = requests.into_iter();
    while let Some(Request { subject, path }) = requests.next() {
        match api.post(&path, None).await {
            Ok(answer) => outcomes.done.push(answer),
            Err(error @ CliError::Refused { .. }) => outcomes.refused.push((subject, error)),
            Err(error) => {
                outcomes.stopped = Some((error, subject, requests.len()));
                break;
            }
        }
    }
    outcomes
}

impl Outcomes {
    /// Returns `true` if at least one request failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.refused.is_empty() || self.stopped.is_some()
    }

    /// Returns the error of the command, if any request failed. Call this after the successful
    /// requests were printed. `noun` and `action` name the subjects and the request in messages,
    /// such as `order` and `cancelled`.
    pub(super) fn result(self, noun: &str, action: &str) -> Result<(), CliError> {
        let Self {
            done,
            refused,
            stopped,
        } = self;
        let refused_count = refused.len();
        let first = refused.into_iter().next();
        match (stopped, first) {
            (None, None) => Ok(()),
            (None, Some((_, error))) if done.is_empty() && refused_count == 1 => Err(error),
            (None, Some((subject, error))) => Err(CliError::because(
                format!(
                    "{} could not be {action}, the first of them is {subject}",
                    output::count(refused_count, noun)
                ),
                error,
            )),
            (Some((error, _, 0)), None) if done.is_empty() => Err(error),
            (Some((error, subject, rest)), first) => {
                let mut note = format!("{subject} may be {action} or not");
                if rest > 0 {
                    note.push_str(&format!("; {} not sent", output::count(rest, "further request")));
                }
                if let Some((subject, _)) = first {
                    let count = output::count(refused_count, noun);
                    note.push_str(&format!("; {count} refused, the first of them is {subject}"));
                }
                Err(error.with_note(&note))
            }
        }
    }
}
