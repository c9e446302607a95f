//! `imt order cancel` and `imt order pay`: send a command to orders.

use super::{path, text};
use crate::error::CliError;
use crate::http::Api;
use crate::output::{self, OutputFormat};
use serde_json::{Value, json};

/// Cancels the orders `ids`. If a node refuses some of them, the others are cancelled all the same,
/// and the error names the first one refused.
pub(super) async fn cancel(api: &Api, ids: &[String], output: OutputFormat) -> Result<(), CliError> {
    let (mut cancelled, mut failed) = (Vec::new(), Vec::new());
    for id in ids {
        match api.post(&format!("{}/cancel", path(id)), None).await {
            Ok(order) => cancelled.push(order),
            Err(error @ CliError::Refused { .. }) => failed.push((id, error)),
            // No node answers, or the server is no node. The next order would fail in the same way.
            Err(error) => return Err(error),
        }
    }
    match output {
        OutputFormat::Json => output::print_json(&cancelled)?,
        OutputFormat::Table => {
            for order in &cancelled {
                output::print_text(&state_line(order))?;
            }
        }
    }
    let count = failed.len();
    match failed.into_iter().next() {
        None => Ok(()),
        Some((_, error)) if ids.len() == 1 => Err(error),
        Some((id, error)) => Err(CliError::because(
            format!(
                "{} could not be cancelled, the first of them is {id}",
                output::count(count, "order")
            ),
            error,
        )),
    }
}

pub(super) async fn pay(api: &Api, id: &str, transaction: u64, output: OutputFormat) -> Result<(), CliError> {
    let payment = json!({ "transaction_id": transaction });
    let order = api
        .post(&format!("{}/payment-callback", path(id)), Some(&payment))
        .await?;
    output::print_either(output, &state_line(&order), &order)
}

fn state_line(order: &Value) -> String {
    format!("order {} is {}", text(&order["id"]), text(&order["state"]))
}
