//! Converts the volume's values to JSON and its keys to and from text, for tools that inspect a
//! volume's database.
//!
//! `codec` and `write_batch` define the layout of the rows. Deliberately absent: writing of rows.

use imt_ring::NodeName;
use serde_json::{Value, json};

use crate::domain::loans::lines_of;
use crate::domain::order::{Event, Line, Order, OrderId, State};
use crate::domain::stock::CountedTo;
use crate::outbox::MessageState;
use crate::storage::codec::{self, DecodeError};
use crate::storage::write_batch::{BORROWER, CATALOGUE, COUNTERS, STOCK_HEAD};

/// Returns a row of a volume as JSON. `None` for tables and keys without a JSON form.
///
/// # Errors
/// [`DecodeError`] if the value cannot be decoded.
pub fn row_as_json(table: &str, key: &[u8], value: &[u8]) -> Option<Result<Value, DecodeError>> {
    let id = || OrderId::parse(std::str::from_utf8(key).ok()?).ok();
    let row = match table {
        "orders" => codec::decode_order(id()?, value).map(|order| order_as_json(&order)),
        "arrivals" => codec::decode_arrivals(value).map(|ids| json!({ "orders": ids })),
        "loans" => codec::decode_loan(value).map(|loan| {
            json!({
                "incarnation": loan.incarnation,
                "sequence": loan.sequence,
                "products": lines_as_json(&lines_of(&loan)),
                "granted": lines_as_json(&loan.granted),
            })
        }),
        "meta" if key == BORROWER => {
            codec::decode_incarnation(value).map(|incarnation| json!({ "incarnation": incarnation }))
        }
        "reservations" | "spent" => codec::decode_reservation(codec::decode_order_store_key(key).ok()?.0, value)
            .map(|row| json!({ "store": row.store, "products": lines_as_json(&row.lines), "nonce": row.nonce })),
        "outbox" => codec::decode_message(value).map(|message| {
            json!({
                "state": if message.state == MessageState::Dead { "dead" } else { "waiting" },
                "attempts": message.attempts,
                "next_try_ms": message.next_try_ms,
                "last_error": message.last_error,
            })
        }),
        "deliveries" => codec::decode_delivery(value).map(|row| {
            json!({ "store": row.store, "products": lines_as_json(&row.lines), "sequence": row.sequence })
        }),
        "stock" if key == CATALOGUE => codec::decode_catalogue(value).map(|products| json!({ "products": products })),
        "stock" => codec::decode_quantities(value).map(|(counted_to, quantities)| match counted_to {
            CountedTo::OfVolume => json!({ "quantities": quantities }),
            CountedTo::Delivery(sequence) => json!({ "counted_to": sequence, "quantities": quantities }),
        }),
        "stats" => codec::decode_sums(value)
            .map(|sums| json!({ "ca": sums.revenue.to_string(), "total_qty": sums.units.to_string() })),
        "stat_files" => codec::decode_import_time(value).map(|at_ms| json!({ "imported_at_ms": at_ms })),
        "meta" if key == COUNTERS => codec::decode_counters(value).map(|counters| counters_as_json(&counters)),
        "meta" if key == STOCK_HEAD => codec::decode_stock_head(value).map(|head| {
            json!({ "newest_as_of": head.newest_as_of, "counted_to": head.counted_to, "snapshots": head.snapshots })
        }),
        _ => return None,
    };
    Some(row)
}

/// Returns the key of a store, a product or a page of arrivals (a row in `arrivals`) as a decimal
/// number, and the key of a loan as `STORE/BORROWER`. Returns `None` for all other keys.
pub fn key_as_text(table: &str, key: &[u8]) -> Option<String> {
    match table {
        "stock" if key != CATALOGUE => Some(u32::from_be_bytes(key.try_into().ok()?).to_string()),
        "loans" => codec::decode_loan_key(key)
            .ok()
            .map(|(store, borrower)| format!("{store}/{borrower}")),
        "stats" => Some(u32::from_be_bytes(key.try_into().ok()?).to_string()),
        "arrivals" => Some(u64::from_be_bytes(key.try_into().ok()?).to_string()),
        _ => None,
    }
}

/// Parses a text such as [`key_as_text`] returns into the key. `None` for a text that cannot be
/// parsed, or for a table other than `stock`, `stats`, `arrivals` and `loans`.
pub fn key_from_text(table: &str, text: &str) -> Option<Vec<u8>> {
    match table {
        "stock" | "stats" => Some(text.parse::<u32>().ok()?.to_be_bytes().to_vec()),
        "arrivals" => Some(text.parse::<u64>().ok()?.to_be_bytes().to_vec()),
        "loans" => {
            let (store, borrower) = text.split_once('/')?;
            let mut key = Vec::new();
            codec::encode_loan_key(store.parse().ok()?, &NodeName::new(borrower).ok()?, &mut key);
            Some(key)
        }
        _ => None,
    }
}

fn lines_as_json(lines: &[Line]) -> Value {
    lines
        .iter()
        .map(|line| json!({ "id": line.id, "quantity": line.quantity }))
        .collect()
}

fn order_as_json(order: &Order) -> Value {
    let events = order.history.iter().map(|entry| {
        let mut event = json!({ "at_ms": entry.at_ms });
        let (name, detail) = match &entry.event {
            Event::Reserved { store } => ("reserved", Some(("store", json!(store)))),
            Event::Rejected => ("rejected", None),
            Event::Announced => ("announced", None),
            Event::Paid { transaction } => ("paid", Some(("transaction", json!(transaction)))),
            Event::DeliveryStarted => ("delivery_started", None),
            Event::Delivered { sequence } => ("delivered", Some(("sequence", json!(sequence)))),
            Event::Cancelled => ("cancelled", None),
            Event::Expired => ("expired", None),
            Event::Failed { reason } => ("failed", Some(("reason", json!(reason)))),
            Event::RefundWanted { transaction } => {
                ("refund_wanted", Some(("transaction", json!(transaction))))
            }
        };
        event["event"] = json!(name);
        if let Some((field, value)) = detail {
            event[field] = value;
        }
        event
    });
    json!({
        "id": order.id,
        "state": order.state.name(),
        "products": lines_as_json(&order.lines),
        "store": order.store,
        "transaction": order.transaction,
        "history": events.collect::<Vec<_>>(),
    })
}

fn counters_as_json(counters: &codec::Counters) -> Value {
    let states = State::ALL
        .iter()
        .zip(counters.orders)
        .filter(|(_, count)| *count > 0);
    let orders: serde_json::Map<String, Value> = states
        .map(|(state, count)| (state.name().to_owned(), json!(count)))
        .collect();
    json!({ "orders": orders, "next_page": counters.next_page, "expired_page": counters.expired_page, "stat_files": counters.stat_files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shown_with_their_fields_and_other_bytes_are_rejected() {
        let lines = [Line { id: 812, quantity: 3 }];
        let order = Order::place(OrderId::parse("17").unwrap(), Box::new(lines), Some(4), 1000);
        let mut row = Vec::new();
        codec::encode_order(&order, &mut row);
        let shown = row_as_json("orders", b"17", &row).unwrap().unwrap();
        assert_eq!(
            (&shown["state"], &shown["store"]),
            (&json!("reserved"), &json!(4))
        );
        assert_eq!(shown["history"][0]["event"], "reserved");
        assert!(row_as_json("orders", b"17", b"no order").unwrap().is_err());
        assert!(row_as_json("events", b"17", &row).is_none());
        let imported = row_as_json("stat_files", b"alpha/stat_1.csv", &1_700_u64.to_be_bytes());
        assert_eq!(imported.unwrap().unwrap(), json!({ "imported_at_ms": 1_700 }));
        assert!(
            row_as_json("stat_files", b"alpha/stat_1.csv", b"short")
                .unwrap()
                .is_err()
        );
        assert_eq!(
            key_as_text("stats", &key_from_text("stats", "812").unwrap()).as_deref(),
            Some("812")
        );
    }
}
