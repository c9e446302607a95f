//! Examples of the schemas in the API document: one or more bodies of each JSON type.
//!
//! **Invariants**
//! - Every schema has an example. The first one is also the example of the bodies with this schema.
//! - The examples of a schema are valid, and show each of its properties at least once.
//!
//! The tests check both.

use serde_json::{Value, json};

use crate::api::problem::Kind;

/// Id of the order in most examples.
const ID: &str = "shop:17";
const RECEIVED_MS: u64 = 1_795_893_049_896;
const UPDATED_MS: u64 = 1_795_893_050_112;

/// Returns the examples of the schema with this name, none if the name is unknown.
pub(super) fn of(schema: &str) -> Vec<Value> {
    match schema {
        "OrderId" => vec![json!(ID)],
        "OrderState" => vec![json!("reserved")],
        "MessageKind" => vec![json!("deliver")],
        "MessageState" => vec![json!("waiting")],
        "ClusterStatus" | "WarehouseStatus" => vec![json!("ok")],
        "ProblemType" => vec![json!(Kind::InsufficientStock)],
        "Line" => vec![line()],
        "NewOrder" => vec![json!({"id": ID, "products": [line()]})],
        "Payment" => vec![json!({"transaction_id": 4_711})],
        "AcceptedOrder" => vec![
            json!({
                "id": ID,
                "products": [line()],
                "store_id": 5,
                "state": "reserved",
                "created_at_ms": RECEIVED_MS,
            }),
            json!({
                "id": ID,
                "products": [line()],
                "store_id": 5,
                "state": "paid",
                "transaction_id": 4_711,
                "created_at_ms": RECEIVED_MS,
            }),
        ],
        "Order" => vec![order()],
        "OrderPage" => vec![json!({"orders": [order()], "next": "paris~3.14"})],
        "OrderEvent" => events(),
        "History" => vec![json!({"id": ID, "events": events()})],
        "Message" => vec![message()],
        "MessagePage" => vec![json!({"messages": [message()], "next": null})],
        "RetriedMessage" => vec![json!({"order": ID, "kind": "deliver", "state": "waiting"})],
        "Reservation" => vec![reservation()],
        "ReservationPage" => vec![json!({"reservations": [reservation()], "next": null})],
        "Problem" => problems(),
        _ => of_stock_and_node(schema),
    }
}

fn of_stock_and_node(schema: &str) -> Vec<Value> {
    match schema {
        "Quantities" => vec![json!({"on_hand": 13, "reserved": 3, "available": 10})],
        "InStore" => vec![in_store()],
        "OfProduct" => vec![of_product()],
        "ProductStock" => vec![json!({"product": 812, "stores": [in_store()]})],
        "StoreStock" => vec![json!({"store": 5, "products": [of_product()]})],
        "SnapshotTaken" => vec![json!({"lines": 2, "stores": 1, "applied": true})],
        "ProductStats" => vec![json!({"ca": 5_600, "total_qty": 14, "mean_price": 400.0})],
        "Ranked" => vec![ranked()],
        "Ranking" => vec![json!({"products": [ranked()]})],
        "Probe" => vec![json!({"status": "ok"})],
        "RingHealth" => vec![ring()],
        "Health" => healths(),
        _ => Vec::new(),
    }
}

fn line() -> Value {
    json!({"id": 812, "quantity": 3})
}

fn order() -> Value {
    json!({
        "id": ID,
        "products": [line()],
        "store_id": 5,
        "state": "delivering",
        "transaction_id": 4_711,
        "refund_transaction_ids": [4_712],
        "created_at_ms": RECEIVED_MS,
        "updated_at_ms": UPDATED_MS,
    })
}

fn events() -> Vec<Value> {
    vec![
        json!({"at_ms": RECEIVED_MS, "event": "received"}),
        json!({"at_ms": RECEIVED_MS, "event": "reserved", "store_id": 5}),
        json!({"at_ms": UPDATED_MS, "event": "paid", "transaction_id": 4_711}),
        json!({"at_ms": UPDATED_MS, "event": "delivered", "stock_sequence": 4_713}),
        json!({"at_ms": UPDATED_MS, "event": "failed", "reason": "the store has no such product"}),
    ]
}

fn message() -> Value {
    json!({
        "order": ID,
        "kind": "deliver",
        "state": "waiting",
        "attempts": 2,
        "last_error": "the warehouse answered 504 Gateway Timeout",
        "next_try_ms": UPDATED_MS,
    })
}

fn reservation() -> Value {
    json!({"order": ID, "store": 5, "products": [line()]})
}

fn in_store() -> Value {
    json!({"store_id": 5, "on_hand": 13, "reserved": 3, "available": 10})
}

fn of_product() -> Value {
    json!({"product": 812, "on_hand": 13, "reserved": 3, "available": 10})
}

fn ranked() -> Value {
    json!({"product": 812, "ca": 5_600, "total_qty": 14, "mean_price": 400.0})
}

fn problems() -> Vec<Value> {
    let problem = |kind: Kind, detail: &str| {
        json!({
            "type": kind,
            "title": kind.texts().title,
            "status": kind.status().as_u16(),
            "detail": detail,
        })
    };
    let mut malformed = problem(
        Kind::Malformed,
        "products[0].quantity must be 1 to 1000000, not 0",
    );
    malformed["field"] = json!("products[0].quantity");
    let mut malformed_line = problem(Kind::MalformedLine, "line 2, column 5: no number");
    malformed_line["line"] = json!(2);
    malformed_line["column"] = json!(5);
    let mut partly_applied = problem(Kind::PartlyApplied, "the stock was applied in part");
    partly_applied["applied"] = json!([5]);
    partly_applied["failed"] = json!([6]);
    vec![
        problem(
            Kind::InsufficientStock,
            "no single store has 3 of product 812 for order shop:17",
        ),
        malformed,
        malformed_line,
        partly_applied,
    ]
}

fn ring() -> Value {
    json!({"epoch": 2, "members": {"paris": 8_192, "lyon": 8_192}})
}

fn healths() -> Vec<Value> {
    let healthy = json!({
        "status": "ok",
        "node": "paris",
        "epoch": 2,
        "orders": {"reserved": 3, "delivering": 1, "delivered": 40},
        "refunds_wanted": 0,
        "outbox": 4,
        "outbox_dead": 0,
        "outbox_in_flight": 4,
        "warehouse": "ok",
        "stock_snapshots": 12,
        "stat_files": 18,
        "stores": 200,
        "slots": 8_192,
        "transactors": 1,
        "transactor_panics": 0,
        "up_since_ms": RECEIVED_MS,
        "ring": ring(),
        "volumes": ["paris"],
    });
    let mut degraded = healthy.clone();
    degraded["status"] = json!("degraded");
    degraded["missing_volumes"] = json!({"lyon": "its database is not in the data folder"});
    degraded["unreachable"] = json!(["lyon"]);
    vec![healthy, degraded]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::document::document;
    use crate::api::order_body;
    use crate::domain::order::OrderId;

    /// Keywords of a schema that `check` checks, or that do not restrict a value.
    const KNOWN: [&str; 19] = [
        "$ref",
        "allOf",
        "oneOf",
        "enum",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "items",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "description",
        "format",
        "examples",
    ];

    /// Returns the schema that a reference names, or the schema itself.
    fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str();
        name.map_or(schema, |name| {
            document.pointer(name.trim_start_matches('#')).unwrap()
        })
    }

    /// Returns the properties of an object, with those of the schemas that it is composed of.
    fn properties<'a>(document: &'a Value, schema: &'a Value) -> Vec<(&'a str, &'a Value)> {
        let schema = resolved(document, schema);
        let own = schema["properties"].as_object().into_iter().flatten();
        let parts = schema["allOf"].as_array().into_iter().flatten();
        own.map(|(name, of)| (name.as_str(), of))
            .chain(parts.flat_map(|part| properties(document, part)))
            .collect()
    }

    fn type_of(value: &Value) -> &'static str {
        match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// Checks a value against a schema. A property that the schema does not have is a fault.
    fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
        if let Some(other) = schema["oneOf"].as_array() {
            let fitting = other.iter().filter(|one| check(document, one, value).is_ok());
            return match fitting.count() {
                1 => Ok(()),
                count => Err(format!("{value} fits {count} of {schema}")),
            };
        }
        let schema = resolved(document, schema);
        let unknown = schema.as_object().unwrap().keys().find(|keyword| {
            // `pattern` is only used by the id of an order, and the last test parses the id.
            !KNOWN.contains(&keyword.as_str()) && *keyword != "pattern" && *keyword != "example"
        });
        assert_eq!(unknown, None, "a keyword that this test does not check: {schema}");
        let fault = |what: &str| Err(format!("{what}: {value} for {schema}"));
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            several => several
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
        };
        let found = type_of(value);
        let is_number = found == "integer" && types.contains(&"number");
        if !types.is_empty() && !types.contains(&found) && !is_number {
            return fault("wrong type");
        }
        if let Some(known) = schema["enum"].as_array()
            && !known.contains(value)
        {
            return fault("unknown value");
        }
        let is_within = |low: &str, high: &str, size: f64| {
            schema[low].as_f64().is_none_or(|low| size >= low)
                && schema[high].as_f64().is_none_or(|high| size <= high)
        };
        match value {
            Value::Number(number) if !is_within("minimum", "maximum", number.as_f64().unwrap()) => {
                fault("outside of its range")
            }
            Value::String(text) if !is_within("minLength", "maxLength", text.chars().count() as f64) => {
                fault("wrong length")
            }
            Value::Array(entries) => {
                if !is_within("minItems", "maxItems", entries.len() as f64) {
                    return fault("wrong number of entries");
                }
                entries
                    .iter()
                    .try_for_each(|entry| check(document, &schema["items"], entry))
            }
            Value::Object(members) => {
                if let Some(names) = schema.get("propertyNames") {
                    let mut names_of = members.keys().map(|name| Value::from(name.as_str()));
                    names_of.try_for_each(|name| check(document, names, &name))?;
                }
                let known = properties(document, schema);
                for (name, member) in members {
                    let of = known.iter().find(|(known, _)| known == name).map(|(_, of)| *of);
                    let Some(of) = of.or(schema.get("additionalProperties")) else {
                        return fault(name);
                    };
                    check(document, of, member)?;
                }
                let parts = schema["allOf"].as_array().into_iter().flatten();
                let parts = parts.map(|part| resolved(document, part)).chain([schema]);
                let required = parts.flat_map(|part| part["required"].as_array().into_iter().flatten());
                match required
                    .filter_map(Value::as_str)
                    .find(|name| !members.contains_key(*name))
                {
                    Some(missing) => fault(missing),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    #[test]
    fn every_schema_has_valid_examples_that_show_all_its_properties() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        assert!(schemas.len() > 30);
        for (name, schema) in schemas {
            let examples = schema["examples"].as_array();
            let examples = examples.unwrap_or_else(|| panic!("{name} has no example"));
            assert!(schema["example"].is_null(), "{name}: a second kind of example");
            let mut shown = BTreeSet::new();
            for example in examples {
                let valid = check(&document, schema, example);
                assert_eq!(valid, Ok(()), "{name}: {example}");
                shown.extend(
                    example
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(key, _)| key.as_str()),
                );
            }
            let known: BTreeSet<&str> = properties(&document, schema)
                .into_iter()
                .map(|(name, _)| name)
                .collect();
            assert_eq!(shown, known, "{name}");
        }
    }

    #[test]
    fn an_example_with_a_fault_is_not_valid() {
        let document = document();
        let check =
            |schema: &str, value: Value| check(&document, &document["components"]["schemas"][schema], &value);
        for (schema, wrong) in [
            ("Line", json!({"id": 812})),
            ("Line", json!({"id": 812, "quantity": 0})),
            ("Line", json!({"id": 812, "quantity": "3"})),
            ("Line", json!({"id": 812, "quantity": 3, "price": 1})),
            ("OrderState", json!("lost")),
            ("NewOrder", json!({"id": "17", "products": []})),
            ("NewOrder", json!({"id": "", "products": [line()]})),
            ("Ranked", json!({"product": 812, "ca": 1, "total_qty": 1})),
            ("RingHealth", json!({"epoch": 2, "members": {"paris": "all"}})),
        ] {
            assert!(check(schema, wrong.clone()).is_err(), "{schema}: {wrong}");
        }
    }

    #[test]
    fn every_json_body_with_a_schema_has_an_example() {
        let document = document();
        let mut bodies = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let contents = [
                    &operation["requestBody"]["content"]["application/json"],
                    &operation["responses"]["200"]["content"]["application/json"],
                ];
                for content in contents
                    .into_iter()
                    .filter(|content| content["schema"]["$ref"].is_string())
                {
                    let example = &content["example"];
                    assert!(!example.is_null(), "{method} {path} has no example");
                    assert_eq!(
                        check(&document, &content["schema"], example),
                        Ok(()),
                        "{method} {path}"
                    );
                    bodies += 1;
                }
            }
        }
        assert!(bodies > 15, "{bodies}");
    }

    #[test]
    fn the_examples_of_requests_are_parsed_as_requests() {
        assert!(OrderId::parse(ID).is_ok());
        let body = |schema: &str| of(schema)[0].to_string();
        let order = order_body::parse_order(body("NewOrder").as_bytes()).unwrap();
        assert_eq!((order.id.as_str(), order.lines.len()), (ID, 1));
        let transaction = order_body::parse_payment(body("Payment").as_bytes()).unwrap();
        assert_eq!(transaction, 4_711);
    }
}
