//! `imt order`: what a node knows of an order.

use crate::error::CliError;
use crate::output::{self, OutputFormat};
use crate::{http, signals};
use hyper::StatusCode;
use serde_json::Value;
use std::process::ExitCode;

/// `imt order ...`
#[derive(clap::Subcommand)]
pub(crate) enum OrderCommand {
    /// Show one order: its state, its store, its products.
    #[command(after_help = "Examples:\n  imt order show 17\n  imt order show 17 --output json")]
    Show {
        /// The order's id.
        id: String,
        /// A node's address; any node answers for every order.
        #[arg(
            long,
            env = "IMT_OMS",
            default_value = "http://127.0.0.1:9090",
            value_name = "URL"
        )]
        oms: String,
    },
}

impl OrderCommand {
    pub(crate) fn run(self, output: OutputFormat) -> Result<ExitCode, CliError> {
        let Self::Show { id, oms } = self;
        let path = format!("/order/{}", percent_encode(&id));
        let (status, body) = signals::block_on(http::get(&oms, &path))?;
        let json: Value = serde_json::from_slice(&body).map_err(|error| {
            CliError::because(
                format!("{oms}{path} answered {status} without JSON; is it a node?"),
                error,
            )
        })?;
        match status {
            StatusCode::OK if output == OutputFormat::Json => output::print_json(&json)?,
            StatusCode::OK => output::print_text(&render(&json))?,
            StatusCode::NOT_FOUND => {
                return Err(CliError::failed(format!("there is no order '{id}' at {oms}")));
            }
            _ => {
                let detail = json["detail"].as_str().unwrap_or("no detail given");
                return Err(CliError::failed(format!("{oms} answered {status}: {detail}")));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// An order as text: a line a field, then its products.
fn render(order: &Value) -> String {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
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

/// Everything but unreserved characters as `%XX`, so that an id is always one path segment.
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

    #[test]
    fn an_id_stays_one_path_segment() {
        assert_eq!(percent_encode("a/../b c"), "a%2F..%2Fb%20c");
    }
}
