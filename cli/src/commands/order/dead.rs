//! `imt order dead`: lists and retries dead letters, the messages to the warehouse that were given
//! up.

use super::each::{Request, post_each};
use super::{percent_encode, text};
use crate::cluster::NodeAddress;
use crate::error::CliError;
use crate::http::Api;
use crate::output::{self, OutputFormat, TableArgs};
use serde_json::Value;

/// Subcommands of `imt order dead`.
#[derive(clap::Subcommand)]
pub(crate) enum DeadCommand {
    /// List the dead letters with their order, kind of message and last error
    #[command(after_help = "Examples:\n  imt order dead list\n  imt order dead list --output json")]
    List {
        #[command(flatten)]
        node: NodeAddress,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Send dead letters again with a fresh count of tries.
    #[command(after_help = "Examples:\n  imt order dead retry 17 18\n  imt order dead retry --all")]
    Retry {
        /// Ids of the orders to retry
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        orders: Vec<String>,
        /// Retry all dead letters
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        node: NodeAddress,
    },
}

pub(super) async fn run(command: DeadCommand, output: OutputFormat) -> Result<(), CliError> {
    match command {
        DeadCommand::List { node, table } => list(&super::api(&node).await?, &table, output).await,
        DeadCommand::Retry { orders, node, .. } => retry(&super::api(&node).await?, &orders, output).await,
    }
}

/// Returns all dead letters. Reads the outbox of the cluster page by page.
async fn dead_letters(api: &Api) -> Result<Vec<Value>, CliError> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/outbox?limit=10000&cursor={}", percent_encode(&cursor));
        let page = api.get(&path).await?;
        let messages = page["messages"].as_array().into_iter().flatten();
        found.extend(messages.filter(|message| message["state"] == "dead").cloned());
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => return Ok(found),
        }
    }
}

async fn list(api: &Api, table: &TableArgs, output: OutputFormat) -> Result<(), CliError> {
    let messages = dead_letters(api).await?;
    if output == OutputFormat::Json {
        return output::print_json(&messages);
    }
    if messages.is_empty() {
        output::remark("there are no dead letters");
        return Ok(());
    }
    let columns = ["order", "message", "tries", "last error"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    let fields = ["order", "kind", "attempts", "last_error"];
    rows.extend(
        messages
            .iter()
            .map(|message| fields.map(|field| text(&message[field])).to_vec()),
    );
    output::print_text(&table.render(rows)?)
}

async fn retry(api: &Api, orders: &[String], output: OutputFormat) -> Result<(), CliError> {
    let dead = dead_letters(api).await?;
    let is_wanted =
        |message: &&Value| orders.is_empty() || orders.iter().any(|order| message["order"] == order.as_str());
    if let Some(order) = orders
        .iter()
        .find(|order| !dead.iter().any(|message| message["order"] == order.as_str()))
    {
        return Err(CliError::failed(format!(
            "order '{order}' has no dead letter at {}; see: imt order dead list",
            api.node()
        )));
    }
    let request = |message: &Value| {
        let (order, kind) = (text(&message["order"]), text(&message["kind"]));
        let path = format!("/outbox/{}/{kind}/retry", percent_encode(&order));
        Request {
            subject: format!("message '{kind}' of order {order}"),
            path,
        }
    };
    let outcomes = post_each(api, dead.iter().filter(is_wanted).map(request).collect()).await;
    match output {
        OutputFormat::Json => output::print_json(&outcomes.done)?,
        OutputFormat::Table if outcomes.done.is_empty() && outcomes.has_failed() => {}
        OutputFormat::Table => output::print_text(&format!(
            "{} will be sent again",
            output::count(outcomes.done.len(), "message")
        ))?,
    }
    outcomes.result("message", "sent again")
}
