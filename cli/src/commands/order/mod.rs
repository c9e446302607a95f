//! `imt order`: lists, shows, pays, cancels and watches orders, and retries dead letters.
//!
//! Every command asks the public API of one node, which answers for the orders of all nodes. The
//! user gives the address of the node, or the engine that lists the nodes. Without either, the node
//! at the default address is asked.

mod change;
mod dead;
mod each;
mod list;
mod show;
mod watch;

use crate::cluster::NodeAddress;
use crate::error::CliError;
use crate::http::Api;
use crate::output::{OutputFormat, TableArgs};
use crate::{output, signals};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::process::ExitCode;

/// Maximum id of a transaction. JSON readers that use floating point represent all integers up to
/// this number exactly.
const TRANSACTION_MAX: u64 = (1 << 53) - 1;

/// Subcommands of `imt order`.
#[derive(clap::Subcommand)]
pub(crate) enum OrderCommand {
    /// List orders, the oldest first.
    #[command(after_help = "\
Examples:
  imt order list
  imt order list --state refund_wanted --since 1h
  imt order list --follow                     new orders, until Ctrl-C
  imt order list --engine postgres://imt@db1,db2/shop
  imt order list --fields order,state --csv > orders.csv

Exit codes: 0 done, 1 failed, 2 wrong usage, 5 no node answers.")]
    List(list::ListArgs),
    /// Show the state, the store, the products and the waiting messages of an order.
    #[command(after_help = "\
Examples:
  imt order show 17
  imt order show 17 --output json

Exit codes: 0 done, 1 no such order, 2 wrong usage, 5 no node answers.")]
    Show {
        /// Id of the order
        id: String,
        #[command(flatten)]
        node: NodeAddress,
    },
    /// Show the events of an order, the oldest first.
    #[command(after_help = "\
Examples:
  imt order history 17
  imt order history 17 --output json

Exit codes: 0 done, 1 no such order, 2 wrong usage, 5 no node answers.")]
    History {
        /// Id of the order
        id: String,
        #[command(flatten)]
        node: NodeAddress,
        #[command(flatten)]
        table: TableArgs,
    },
    /// Cancel orders as a customer does. An order in delivery cannot be cancelled.
    #[command(after_help = "\
Examples:
  imt order cancel 17
  imt order cancel 17 18 19

Every order is tried, until no node answers. Exit codes: 0 all are cancelled,
1 some could not be, 2 wrong usage, 5 no node answers.")]
    Cancel {
        /// Ids of the orders
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        node: NodeAddress,
    },
    /// Record the payment of an order, as the payment service does.
    #[command(after_help = "\
Example:
  imt order pay 17 4711

The same payment may be repeated. Exit codes: 0 the order is paid, 1 refused
(a payment of an order that has ended is recorded for a refund), 2 wrong
usage, 5 no node answers.")]
    Pay {
        /// Id of the order
        id: String,
        /// Id of the transaction at the payment service
        #[arg(value_name = "TRANSACTION", value_parser = clap::value_parser!(u64).range(..=TRANSACTION_MAX))]
        transaction: u64,
        #[command(flatten)]
        node: NodeAddress,
    },
    /// Print the events of an order as they happen, until it has ended.
    #[command(after_help = "\
Examples:
  imt order watch 17
  imt order watch 17 --until paid --timeout 1m && imt order show 17

A node that does not answer is asked again, once the order was found.
Exit codes: 0 the order reached the state, 1 there is no such order or the
time is over, 2 wrong usage, 3 the order ended in another state, 5 no node
answers, 130 interrupted.")]
    Watch(watch::WatchArgs),
    /// List and retry dead letters: messages to the warehouse that were given up.
    #[command(subcommand)]
    Dead(dead::DeadCommand),
}

/// Returns a client for the API of the node that the flags name.
async fn api(node: &NodeAddress) -> Result<Api, CliError> {
    Ok(Api::new(&node.endpoint().await?))
}

impl OrderCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        signals::block_on(async move {
            match self {
                Self::List(args) => list::run(&args, output).await?,
                Self::Show { id, node } => show::order(&api(&node).await?, &id, output).await?,
                Self::History { id, node, table } => {
                    show::history(&api(&node).await?, &id, &table, output).await?;
                }
                Self::Cancel { ids, node } => change::cancel(&api(&node).await?, &ids, output).await?,
                Self::Pay {
                    id,
                    transaction,
                    node,
                } => change::pay(&api(&node).await?, &id, transaction, output).await?,
                Self::Watch(args) => return watch::run(&args, output).await,
                Self::Dead(command) => dead::run(command, output).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

/// Returns the value of a JSON field as text, or `-` for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns the values of a JSON list as text, separated by commas, or `-` if there are none.
fn list_text(value: &Value) -> String {
    let values: Vec<String> = value.as_array().into_iter().flatten().map(text).collect();
    if values.is_empty() {
        text(&Value::Null)
    } else {
        values.join(", ")
    }
}

/// Returns a time of the API, in milliseconds since 1970, as a date, or `-` if there is no time.
fn time(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(&Value::Null), output::date)
}

/// Returns the path of an order in the API.
fn path(id: &str) -> String {
    format!("/order/{}", percent_encode(id))
}

/// Characters that are percent-encoded in a path or query: all but the unreserved ones of RFC 3986.
/// So an id is always one path segment.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(super) fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the audit of `imt-sim` knows the name of each state of `imt-oms`, and takes
    /// exactly the states with a reservation for open. For `received`, only the name is checked.
    /// The test is in this crate, because `imt-sim` does not depend on `imt-oms`.
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
