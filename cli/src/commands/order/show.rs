//! `imt order show` and `imt order history`: print an order, with its messages to the warehouse, or
//! its events.

use super::{list_text, path, percent_encode, text, time};
use crate::error::CliError;
use crate::http::Api;
use crate::output::{self, OutputFormat, TableArgs};
use serde_json::Value;

pub(super) async fn order(api: &Api, id: &str, output: OutputFormat) -> Result<(), CliError> {
    let mut order = api.get(&path(id)).await?;
    // Only orders in these states have messages. A node reads its whole outbox to answer
    // `GET /outbox`, so the outbox is not requested for other orders.
    let has_messages = matches!(order["state"].as_str(), Some("reserved" | "paid" | "delivering"));
    let messages = if has_messages {
        messages(api, id).await
    } else {
        Ok(Vec::new())
    };
    match messages {
        Ok(messages) => order["messages"] = messages.into(),
        // The order is printed even if its messages cannot be read.
        Err(error) => {
            order["messages"] = Value::Null;
            output::remark(&format!(
                "cannot read the order's messages to the warehouse: {error}"
            ));
        }
    }
    output::print_either(output, &render(&order), &order)
}

/// Returns the messages of an order to the warehouse that are not confirmed, as `GET /outbox` lists
/// them.
async fn messages(api: &Api, id: &str) -> Result<Vec<Value>, CliError> {
    // An order has at most one message of each of the two kinds.
    let mut path = "/outbox?limit=2".to_owned();
    if let Some(before) = greatest_below(id) {
        let cursor = percent_encode(&format!("{before}/deliver"));
        path.push_str(&format!("&cursor={cursor}"));
    }
    let page = api.get(&path).await?;
    let listed = page["messages"].as_array().into_iter().flatten();
    Ok(listed.filter(|message| message["order"] == id).cloned().collect())
}

/// Characters of ids of orders, ascending.
const ID_CHARACTERS: &[u8] = b"-.0123456789:ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";
/// Maximum number of characters of the id of an order.
const ID_CHARACTERS_MAX: usize = 64;

/// Returns the greatest id of an order below `id`. Returns `None` if there is none, or if the last
/// character of `id` is not allowed in ids. The list of messages is sorted by id, so a page after
/// the returned id begins with the messages of `id`.
fn greatest_below(id: &str) -> Option<String> {
    let (rest, last) = id.split_at_checked(id.len().checked_sub(1)?)?;
    let place = ID_CHARACTERS
        .iter()
        .position(|known| last.as_bytes() == [*known])?;
    let below = match place.checked_sub(1) {
        // No id is between `rest` and `rest` with the smallest character.
        None => rest.to_owned(),
        Some(place) => {
            let start = format!("{rest}{}", char::from(ID_CHARACTERS[place]));
            format!("{start:~<ID_CHARACTERS_MAX$}")
        }
    };
    match below.as_str() {
        "" => None,
        // These two texts are not valid as ids, so the next smaller id is searched.
        "." | ".." => greatest_below(&below),
        _ => Some(below),
    }
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

/// Returns an order as text: one field per line, then a table of its products, then one line for
/// each of its messages.
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
    for message in order["messages"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.push(message_text(message));
    }
    lines.join("\n")
}

/// Returns a message to the warehouse as one line of text.
fn message_text(message: &Value) -> String {
    let kind = text(&message["kind"]);
    let tries = message["attempts"].as_u64().unwrap_or_default();
    let condition = if message["state"] == "dead" {
        "was given up"
    } else {
        "waits for the warehouse"
    };
    let tries = match tries {
        1 => "1 failed try".to_owned(),
        count => format!("{count} failed tries"),
    };
    let reason = match message["last_error"].as_str() {
        Some(error) => format!(", last error: {error}"),
        None => String::new(),
    };
    format!("message '{kind}' {condition}, {tries}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn greatest_below_leaves_no_id_between() {
        for (id, below) in [
            ("shop:17", format!("shop:16{}", "~".repeat(57))),
            ("a-", "a".to_owned()),
            ("0", format!(".{}", "~".repeat(63))),
            ("_", format!("Z{}", "~".repeat(63))),
            // `.` is no id, so the next smaller id is the one below `.`.
            (".-", format!("-{}", "~".repeat(63))),
            ("..-", format!(".-{}", "~".repeat(62))),
        ] {
            assert_eq!(greatest_below(id).as_ref(), Some(&below), "{id}");
            assert!(below.as_str() < id);
        }
        assert_eq!(greatest_below("-"), None);
        assert!(ID_CHARACTERS.is_sorted());
        let longest = format!("{}b", "a".repeat(63));
        assert_eq!(greatest_below(&longest), Some("a".repeat(64)));
        for character in ID_CHARACTERS {
            let id = format!("x{}", char::from(*character));
            assert!(imt_oms::order::OrderId::parse(&id).is_ok(), "{id}");
        }
    }

    #[test]
    fn a_message_is_shown_with_its_tries_and_its_last_error() {
        let message = |state: &str, attempts: u32, error: Value| {
            message_text(
                &json!({ "kind": "announce", "state": state, "attempts": attempts, "last_error": error }),
            )
        };
        assert_eq!(
            message("waiting", 7, json!("connection refused")),
            "message 'announce' waits for the warehouse, 7 failed tries, last error: connection refused"
        );
        assert_eq!(
            message("dead", 1, json!("400")),
            "message 'announce' was given up, 1 failed try, last error: 400"
        );
        assert_eq!(
            message("waiting", 0, Value::Null),
            "message 'announce' waits for the warehouse, 0 failed tries"
        );
    }

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
