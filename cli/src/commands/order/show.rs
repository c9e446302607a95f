//! `imt order show` and `imt order history`: print an order or its events.

use super::{list_text, path, text, time};
use crate::error::CliError;
use crate::http::Api;
use crate::output::{self, OutputFormat, TableArgs};
use serde_json::Value;

pub(super) async fn order(api: &Api, id: &str, output: OutputFormat) -> Result<(), CliError> {
    let order = api.get(&path(id)).await?;
    output::print_either(output, &render(&order), &order)
}

pub(super) async fn history(
    api: &Api,
    id: &str,
    table: &TableArgs,
    output: OutputFormat,
) -> Result<(), CliError> {
    let history = api.get(&format!("{}/history", path(id))).await?;
    if output == OutputFormat::Json {
        return output::print_json(&history);
    }
    let mut rows = vec![["time", "event", "detail"].map(str::to_owned).to_vec()];
    let events = history["events"].as_array().into_iter().flatten();
    rows.extend(events.map(|event| vec![time(&event["at_ms"]), text(&event["event"]), detail(event)]));
    output::print_text(&table.render(rows)?)
}

/// Returns the store, transaction, delivery and reason of an event, as far as it has them, as one
/// line of text.
pub(super) fn detail(event: &Value) -> String {
    let fields = [
        ("store_id", "store"),
        ("transaction_id", "transaction"),
        ("stock_sequence", "delivery"),
        ("reason", "reason"),
    ];
    let present = fields.iter().filter(|(field, _)| !event[*field].is_null());
    let words = present.map(|(field, word)| format!("{word} {}", text(&event[*field])));
    words.collect::<Vec<_>>().join(", ")
}

/// Returns an order as text: one field per line, then a table of its products.
fn render(order: &Value) -> String {
    let mut lines = vec![
        format!("order        {}", text(&order["id"])),
        format!("state        {}", text(&order["state"])),
        format!("store        {}", text(&order["store_id"])),
        format!("transaction  {}", text(&order["transaction_id"])),
        format!("to refund    {}", list_text(&order["refund_transaction_ids"])),
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_shown_with_the_fields_that_it_has() {
        assert_eq!(
            detail(&json!({ "event": "paid", "transaction_id": 4711 })),
            "transaction 4711"
        );
        assert_eq!(
            detail(&json!({ "event": "failed", "store_id": 3, "reason": "unknown product" })),
            "store 3, reason unknown product"
        );
        assert_eq!(detail(&json!({ "event": "received", "at_ms": 7 })), "");
    }
}
