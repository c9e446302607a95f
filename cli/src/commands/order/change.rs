//! `imt order cancel` and `imt order pay`: send a command to orders.

use super::each::{Request, post_each};
use super::{path, text};
use crate::error::CliError;
use crate::http::Api;
use crate::output::{self, OutputFormat};
use serde_json::{Value, json};

/// Cancels the orders `ids`. If the node refuses some of them, the others are still tried. The
/// cancelled orders are printed, even if the command fails.
pub(super) async fn cancel(api: &Api, ids: &[String], output: OutputFormat) -> Result<(), CliError> {
    let request = |id: &String| Request {
        subject: format!("order {id}"),
        path: format!("{}/cancel", path(id)),
    };
    let outcomes = post_each(api, ids.iter().map(request).collect()).await;
    match output {
        OutputFormat::Json => output::print_json(&outcomes.done)?,
        OutputFormat::Table => {
            for order in &outcomes.done {
                output::print_text(&state_line(order))?;
            }
        }
    }
    outcomes.result("order", "cancelled")
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
