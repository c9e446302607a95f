//! `imt order watch`: prints the events of an order as they happen.

use super::{path, show, text, time};
use crate::args;
use crate::cluster::NodeAddress;
use crate::error::CliError;
use crate::exit::Exit;
use crate::http::Api;
use crate::output::{self, OutputFormat};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use imt_oms::order::State;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// HTTP status of a node that cannot answer at present, for example while the order is moved.
const UNAVAILABLE: u64 = 503;

/// Parses the name of the state to wait for.
fn state() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(State::ALL.map(State::name))
}

/// Arguments of `imt order watch`.
#[derive(clap::Args)]
pub(crate) struct WatchArgs {
    /// Id of the order
    id: String,
    /// State to wait for
    #[arg(long, default_value = "delivered", value_name = "STATE", value_parser = state(), hide_possible_values = true)]
    until: String,
    /// Maximum time to wait [default: unlimited]
    #[arg(long, value_name = "TIME", value_parser = args::positive_duration)]
    timeout: Option<Duration>,
    /// Time between two polls, at least 50ms
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = args::interval)]
    interval: Duration,
    #[command(flatten)]
    node: NodeAddress,
}

pub(super) async fn run(args: &WatchArgs, output: OutputFormat) -> Result<ExitCode, CliError> {
    let api = super::api(&args.node).await?;
    let mut watch = Watch {
        args,
        api: &api,
        printed: 0,
        state: String::new(),
        output,
    };
    let Some(timeout) = args.timeout else {
        return watch.follow().await;
    };
    match tokio::time::timeout(timeout, watch.follow()).await {
        Ok(ended) => ended,
        Err(_) if watch.state.is_empty() => Err(CliError::failed(format!(
            "order '{}' was not found within {timeout:?}",
            args.id
        ))),
        Err(_) => Err(CliError::failed(format!(
            "order '{}' is {} after {timeout:?}, not {}",
            args.id, watch.state, args.until
        ))),
    }
}

/// State of `imt order watch` between two polls.
struct Watch<'a> {
    args: &'a WatchArgs,
    api: &'a Api,
    /// Number of events that were printed.
    printed: usize,
    /// Latest known state of the order. Empty before the first response.
    state: String,
    output: OutputFormat,
}

impl Watch<'_> {
    /// Polls the order until it has had the wanted state, or has ended.
    async fn follow(&mut self) -> Result<ExitCode, CliError> {
        let mut is_away = false;
        loop {
            match self.poll().await {
                Ok(Some(exit)) => return Ok(exit.into()),
                Ok(None) => is_away = false,
                Err(error) if !self.state.is_empty() && is_passing(&error) => {
                    if !is_away {
                        output::remark(&format!("{error}; asking again"));
                    }
                    is_away = true;
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(self.args.interval).await;
        }
    }

    /// Reads the order and prints its new events. Returns an exit code if the order has had the
    /// wanted state, or if it has ended. Returns `None` otherwise.
    async fn poll(&mut self) -> Result<Option<Exit>, CliError> {
        let path = path(&self.args.id);
        // The history is read after the order, so that it has the event that led to the order's
        // state.
        let order = self.api.get(&path).await?;
        let history = self.api.get(&format!("{path}/history")).await?;
        let events = history["events"].as_array().cloned().unwrap_or_default();
        self.state = text(&order["state"]);
        for event in events.iter().skip(self.printed) {
            self.print(event)?;
        }
        self.printed = self.printed.max(events.len());
        let has_passed = events
            .iter()
            .any(|event| event["event"] == self.args.until.as_str());
        Ok(match State::from_name(&self.state) {
            _ if self.state == self.args.until || has_passed => Some(Exit::Done),
            Some(state) if state == State::Received || state.holds_reservation() => None,
            _ => Some(Exit::Found),
        })
    }

    fn print(&self, event: &Value) -> Result<(), CliError> {
        if self.output == OutputFormat::Json {
            let mut line = json!({ "order": self.args.id });
            if let (Some(line), Some(event)) = (line.as_object_mut(), event.as_object()) {
                line.extend(event.clone());
            }
            return output::print_json_line(&line);
        }
        let line = format!(
            "{}  {:<16}  {}",
            time(&event["at_ms"]),
            text(&event["event"]),
            show::detail(event)
        );
        output::print_text(line.trim_end())
    }
}

/// Returns `true` for an error that may end without action by the user, for example because a node
/// restarts.
fn is_passing(error: &CliError) -> bool {
    match error {
        CliError::Unreachable { .. } => true,
        CliError::Refused { problem, .. } => problem["status"] == UNAVAILABLE,
        _ => false,
    }
}
