//! `imt order`: shows an order of a node, and lists and retries the dead letters of orders.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::{http, signals};
use hyper::StatusCode;
use hyper::body::Bytes;
use imt_sim::Endpoint;
use serde_json::Value;
use std::process::ExitCode;

/// `imt order ...`
#[derive(clap::Subcommand)]
pub(crate) enum OrderCommand {
    /// Show the state, the store and the products of an order.
    #[command(after_help = "Examples:\n  imt order show 17\n  imt order show 17 --output json")]
    Show {
        /// Id of the order
        id: String,
        #[command(flatten)]
        node: NodeAddress,
    },
    /// List and retry dead letters: messages to the warehouse that were given up.
    #[command(subcommand)]
    Dead(DeadCommand),
}

/// `imt order dead ...`
#[derive(clap::Subcommand)]
pub(crate) enum DeadCommand {
    /// List the dead letters with their order, message and last error.
    #[command(after_help = "Examples:\n  imt order dead list\n  imt order dead list --output json")]
    List {
        #[command(flatten)]
        node: NodeAddress,
    },
    /// Send dead letters again with a fresh count of tries.
    #[command(after_help = "Examples:\n  imt order dead retry 17 18\n  imt order dead retry --all")]
    Retry {
        /// Orders to retry
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        orders: Vec<String>,
        /// Retry all dead letters
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        node: NodeAddress,
    },
}

/// Address of the node to ask.
#[derive(clap::Args)]
pub(crate) struct NodeAddress {
    /// Address of a node; any node answers for every order
    #[arg(
        long,
        env = "IMT_OMS",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    oms: Endpoint,
}

impl OrderCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        match self {
            Self::Show { id, node } => signals::block_on(show(&id, &node.oms.to_string(), output)),
            Self::Dead(DeadCommand::List { node }) => {
                signals::block_on(list_dead(&node.oms.to_string(), output))
            }
            Self::Dead(DeadCommand::Retry { orders, node, .. }) => {
                signals::block_on(retry_dead(&orders, &node.oms.to_string(), output))
            }
        }
    }
}

/// Returns the JSON of a response. A response that is no success becomes an error with its detail.
fn understood(oms: &str, path: &str, (status, body): (StatusCode, Bytes)) -> Result<Value, CliError> {
    let json: Value = serde_json::from_slice(&body).map_err(|error| {
        CliError::because(
            format!("{oms}{path} answered {status} without JSON; is it a node?"),
            error,
        )
    })?;
    if status.is_success() {
        return Ok(json);
    }
    let detail = json["detail"].as_str().unwrap_or("no detail given");
    Err(CliError::failed(format!("{oms} answered {status}: {detail}")))
}

async fn show(id: &str, oms: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    let path = format!("/order/{}", percent_encode(id));
    let answer = http::get(oms, &path).await?;
    if answer.0 == StatusCode::NOT_FOUND {
        return Err(CliError::failed(format!("there is no order '{id}' at {oms}")));
    }
    let json = understood(oms, &path, answer)?;
    match output {
        OutputFormat::Json => output::print_json(&json)?,
        OutputFormat::Table => output::print_text(&render(&json))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns all dead letters of a node, read page by page.
async fn dead_messages(oms: &str) -> Result<Vec<Value>, CliError> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/outbox?limit=10000&cursor={}", percent_encode(&cursor));
        let page = understood(oms, &path, http::get(oms, &path).await?)?;
        let messages = page["messages"].as_array().into_iter().flatten();
        found.extend(messages.filter(|message| message["state"] == "dead").cloned());
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return Ok(found),
        }
    }
}

async fn list_dead(oms: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    let messages = dead_messages(oms).await?;
    if output == OutputFormat::Json {
        output::print_json(&messages)?;
        return Ok(ExitCode::SUCCESS);
    }
    if messages.is_empty() {
        output::print_text("no dead messages")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![
        ["order", "message", "tries", "last error"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(messages.iter().map(|message| {
        ["order", "kind", "attempts", "last_error"]
            .map(|field| text(&message[field]))
            .to_vec()
    }));
    output::print_text(&output::table(&rows))?;
    Ok(ExitCode::SUCCESS)
}

async fn retry_dead(orders: &[String], oms: &str, output: OutputFormat) -> Result<ExitCode, CliError> {
    let dead = dead_messages(oms).await?;
    let is_wanted =
        |message: &&Value| orders.is_empty() || orders.iter().any(|order| message["order"] == order.as_str());
    if let Some(order) = orders
        .iter()
        .find(|order| !dead.iter().any(|message| message["order"] == order.as_str()))
    {
        return Err(CliError::failed(format!(
            "order '{order}' has no dead message at {oms}; see: imt order dead list"
        )));
    }
    let mut retried = Vec::new();
    for message in dead.iter().filter(is_wanted) {
        let (order, kind) = (text(&message["order"]), text(&message["kind"]));
        let path = format!("/outbox/{}/{kind}/retry", percent_encode(&order));
        retried.push(understood(oms, &path, http::post(oms, &path).await?)?);
    }
    match output {
        OutputFormat::Json => output::print_json(&retried)?,
        OutputFormat::Table => output::print_text(&format!("{} messages will be sent again", retried.len()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the value of a field as text.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the values of a list as text, separated by commas.
fn list(value: &Value) -> String {
    let values: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    if values.is_empty() {
        text(&Value::Null)
    } else {
        values.join(", ")
    }
}

/// Returns an order as text: one field per line, then its products.
fn render(order: &Value) -> String {
    let time = |value: &Value| {
        value.as_u64().map_or_else(
            || "-".to_owned(),
            |ms| {
                humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms))
                    .to_string()
            },
        )
    };
    let mut lines = vec![
        format!("order        {}", text(&order["id"])),
        format!("state        {}", text(&order["state"])),
        format!("store        {}", text(&order["store_id"])),
        format!("transaction  {}", text(&order["transaction_id"])),
        format!("to refund    {}", list(&order["refund_transaction_ids"])),
        format!("created      {}", time(&order["created_at_ms"])),
        format!("updated      {}", time(&order["updated_at_ms"])),
        String::new(),
    ];
    let mut rows = vec![vec!["product".to_owned(), "quantity".to_owned()]];
    for product in order["products"].as_array().into_iter().flatten() {
        rows.push(vec![text(&product["id"]), text(&product["quantity"])]);
    }
    lines.push(output::table(&rows));
    lines.join("\n")
}

/// Replaces everything but unreserved characters by `%XX`, so that an id is always one path
/// segment.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The simulators do not depend on the order management, so only this crate can compare both.
    #[test]
    fn the_audit_knows_every_state_of_an_order() {
        for state in imt_oms::order::State::ALL {
            let text = format!("\"{}\"", state.name());
            let read: imt_sim::wire::OrderState = serde_json::from_str(&text).unwrap();
            assert_eq!(read.name(), state.name());
            if state != imt_oms::order::State::Received {
                assert_eq!(read.is_open(), state.holds_reservation(), "{state}");
            }
        }
    }

    #[test]
    fn an_id_stays_one_path_segment() {
        assert_eq!(percent_encode("a/../b c"), "a%2F..%2Fb%20c");
    }
}
