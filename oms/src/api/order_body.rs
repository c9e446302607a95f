//! The JSON bodies of orders and payments.
//!
//! A valid body is parsed in one typed pass. Only a rejected body is parsed a second time, slowly,
//! to name the wrong field: `products[1].quantity`, not "invalid type at column 40".
//!
//! **Invariants**
//! - Every rejected body gets a 400 that names the field, or says why the body is not JSON.
//! - Whole numbers are exact: a number that a JSON reader with doubles would round is rejected.
//!
//! Deliberately absent: schema validation by a library. The typed pass is on the hot path of
//! orders.

use std::borrow::Cow;
use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Bytes, BytesMut};
use hyper::body::Body;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::api::content::{self, Pieces};
use crate::api::params::EXACT_MAX;
use crate::api::problem::Problem;
use crate::api::request::parse_id;
use crate::domain::order::{Line, OrderId};
use crate::domain::stock_snapshot::PRODUCT_MAX;

/// Maximum size of the body of an order or payment, in bytes. A hundred products take 4 KB.
pub(super) const JSON_BYTES_MAX: usize = 64 * 1_024;
/// Maximum number of products of one order.
const ORDER_LINES_MAX: usize = 100;
/// Maximum number of units of one order line.
const ORDER_QUANTITY_MAX: u64 = 1_000_000;
/// Reads a whole body of at most `JSON_BYTES_MAX`.
pub(super) async fn read_small<B>(headers: &HeaderMap, body: B) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    let mut whole = BytesMut::new();
    if headers.contains_key(CONTENT_ENCODING) {
        let take = |piece: &[u8]| {
            whole.extend_from_slice(piece);
            Ok(())
        };
        content::read(headers, body, JSON_BYTES_MAX, take).await?;
        return Ok(whole.freeze());
    }
    content::check_length(headers, JSON_BYTES_MAX)?;
    let mut pieces = Pieces::of(body, JSON_BYTES_MAX);
    let Some(first) = pieces.next().await? else {
        return Ok(Bytes::new());
    };
    // Nearly every order arrives in one piece, which is used without a copy.
    if pieces.is_at_end() {
        return Ok(first);
    }
    let Some(second) = pieces.next().await? else {
        return Ok(first);
    };
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(piece) = pieces.next().await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

#[derive(Deserialize)]
struct WireOrder<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    products: Vec<WireLine>,
}

struct WireLine {
    id: u64,
    quantity: u64,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum LineField {
    Id,
    Quantity,
    #[serde(other)]
    Other,
}

/// Written by hand, because the derived implementation also accepts the array `[812,3]`.
impl<'de> Deserialize<'de> for WireLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WireLine, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = WireLine;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with id and quantity")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WireLine, A::Error> {
                let (mut id, mut quantity) = (None, None);
                while let Some(name) = map.next_key()? {
                    let (field, name) = match name {
                        LineField::Id => (&mut id, "id"),
                        LineField::Quantity => (&mut quantity, "quantity"),
                        LineField::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    let Whole(value) = map.next_value()?;
                    if field.replace(value).is_some() {
                        return Err(A::Error::duplicate_field(name));
                    }
                }
                let id = id.ok_or_else(|| A::Error::missing_field("id"))?;
                let quantity = quantity.ok_or_else(|| A::Error::missing_field("quantity"))?;
                Ok(WireLine { id, quantity })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[derive(Deserialize)]
struct WirePayment {
    transaction_id: Whole,
}

/// A whole number in either JSON form: `12` and `12.0` are the same number.
struct Whole(u64);

/// 2^53. Above this, several whole numbers share one float.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whole, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Whole, E> {
                Ok(Whole(value))
            }

            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Whole, E> {
                let is_whole = value.fract() == 0.0 && (0.0..=WHOLE_FLOAT_MAX).contains(&value);
                let refused = || E::invalid_type(serde::de::Unexpected::Float(value), &self);
                is_whole.then_some(Whole(value as u64)).ok_or_else(refused)
            }
        }

        deserializer.deserialize_u64(Number)
    }
}

fn is_whole(value: &Value) -> bool {
    serde_json::from_value::<Whole>(value.clone()).is_ok()
}

/// A parsed order request.
#[derive(Debug)]
pub(super) struct NewOrder {
    pub(super) id: OrderId,
    pub(super) lines: Box<[Line]>,
}

/// Parses `{"id":"17","products":[{"id":812,"quantity":3}]}`.
pub(super) fn parse_order(body: &[u8]) -> Result<NewOrder, Problem> {
    let wire: WireOrder<'_> = object(body).map_err(|error| diagnose_order(body, &error))?;
    let id = parse_id(&wire.id)?;
    if wire.products.is_empty() {
        return Err(Problem::field(
            "products",
            "an order must have at least one product",
        ));
    }
    if wire.products.len() > ORDER_LINES_MAX {
        return Err(Problem::field(
            "products",
            format!("an order has at most {ORDER_LINES_MAX} products"),
        ));
    }
    let mut lines = Vec::with_capacity(wire.products.len());
    for (at, line) in wire.products.iter().enumerate() {
        if line.id == 0 || line.id > u64::from(PRODUCT_MAX) {
            let detail = format!("a product id is 1 to {PRODUCT_MAX}");
            return Err(Problem::field(format!("products[{at}].id"), detail));
        }
        if line.quantity == 0 || line.quantity > ORDER_QUANTITY_MAX {
            let detail = format!("a quantity is 1 to {ORDER_QUANTITY_MAX}");
            return Err(Problem::field(format!("products[{at}].quantity"), detail));
        }
        lines.push(Line {
            id: line.id as u32,
            quantity: line.quantity as u32,
        });
    }
    Ok(NewOrder {
        id,
        lines: lines.into(),
    })
}

/// Parses `{"transaction_id":4711}`.
pub(super) fn parse_payment(body: &[u8]) -> Result<u64, Problem> {
    let wire: WirePayment = object(body).map_err(|error| {
        let value = match any_json(body) {
            Ok(value) => value,
            Err(problem) => return problem,
        };
        match field_of(&value, "transaction_id") {
            Err(problem) => problem,
            Ok(None) => Problem::field("transaction_id", "the field is missing"),
            Ok(Some(found)) if !is_whole(found) => wrong_transaction(),
            Ok(Some(_)) => Problem::body(error.to_string()),
        }
    })?;
    let transaction = wire.transaction_id.0;
    // A client that reads numbers as doubles would refund another transaction.
    let is_exact = transaction <= EXACT_MAX;
    is_exact.then_some(transaction).ok_or_else(wrong_transaction)
}

fn wrong_transaction() -> Problem {
    let detail = format!("must be a whole number, 0 to {EXACT_MAX}");
    Problem::field("transaction_id", detail)
}

/// Parses a JSON object. Two checks precede serde: a derived struct would also accept an array of
/// its fields, and serde_json would not validate UTF-8 inside ignored fields.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> serde_json::Result<T> {
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(serde_json::Error::custom("the body must be a JSON object"));
    }
    serde_json::from_str(std::str::from_utf8(body).map_err(serde_json::Error::custom)?)
}

fn any_json(body: &[u8]) -> Result<Value, Problem> {
    if body.is_empty() {
        return Err(Problem::body("the body is empty; it must be a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Problem::body(format!("the body is not JSON: {error}")))
}

fn field_of<'a>(value: &'a Value, name: &str) -> Result<Option<&'a Value>, Problem> {
    match value {
        Value::Object(fields) => Ok(fields.get(name)),
        _ => Err(Problem::body("the body must be a JSON object")),
    }
}

/// Returns a problem that names the wrong field of a rejected order.
fn diagnose_order(body: &[u8], error: &serde_json::Error) -> Problem {
    let find = || -> Result<(), Problem> {
        let value = any_json(body)?;
        match field_of(&value, "id")? {
            None | Some(Value::Null) => return Err(Problem::field("id", "Missing order ID")),
            Some(Value::String(_)) => {}
            Some(_) => return Err(Problem::field("id", "must be a string")),
        }
        let products = match field_of(&value, "products")? {
            None => return Err(Problem::field("products", "the field is missing")),
            Some(Value::Array(products)) => products,
            Some(_) => return Err(Problem::field("products", "must be an array")),
        };
        for (at, line) in products.iter().enumerate() {
            let Value::Object(line) = line else {
                return Err(Problem::field(format!("products[{at}]"), "must be an object"));
            };
            for name in ["id", "quantity"] {
                let field = format!("products[{at}].{name}");
                match line.get(name) {
                    None => return Err(Problem::field(field, "the field is missing")),
                    Some(number) if !is_whole(number) => {
                        return Err(Problem::field(field, "must be a whole positive number"));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    };
    // The second pass finds no fault in some rejected bodies, such as one with a duplicate field.
    find().err().unwrap_or_else(|| Problem::body(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(body: &str) -> String {
        serde_json::to_string(&parse_order(body.as_bytes()).unwrap_err()).unwrap()
    }

    #[test]
    fn parse_order_names_the_wrong_field() {
        let long_id = format!(
            r#"{{"id":"{}","products":[{{"id":1,"quantity":1}}]}}"#,
            "x".repeat(65)
        );
        let many = format!(
            r#"{{"id":"1","products":[{}]}}"#,
            vec![r#"{"id":1,"quantity":1}"#; 101].join(",")
        );
        let deep = "[".repeat(10_000);
        for (body, expected) in [
            ("", "the body is empty"),
            ("{", "not JSON"),
            ("[]", "must be a JSON object"),
            ("17", "must be a JSON object"),
            (deep.as_str(), "not JSON"),
            (r#"{"products":[]}"#, "Missing order ID"),
            (r#"{"id":null,"products":[]}"#, "Missing order ID"),
            (
                r#"{"id":17,"products":[{"id":1,"quantity":1}]}"#,
                r#""field":"id""#,
            ),
            (
                r#"{"id":"","products":[{"id":1,"quantity":1}]}"#,
                r#""field":"id""#,
            ),
            (
                r#"{"id":"a/b","products":[{"id":1,"quantity":1}]}"#,
                r#""field":"id""#,
            ),
            (
                r#"{"id":"..","products":[{"id":1,"quantity":1}]}"#,
                r#""field":"id""#,
            ),
            (long_id.as_str(), r#""field":"id""#),
            (r#"{"id":"1"}"#, r#""field":"products""#),
            (r#"{"id":"1","products":[]}"#, r#""field":"products""#),
            (r#"{"id":"1","products":{}}"#, r#""field":"products""#),
            (many.as_str(), r#""field":"products""#),
            (
                r#"{"id":"1","products":[{"id":1,"quantity":1},7]}"#,
                r#""field":"products[1]""#,
            ),
            (
                r#"{"id":"1","products":[{"id":1,"quantity":1},{"id":2}]}"#,
                r#""field":"products[1].quantity""#,
            ),
            (
                r#"{"id":"1","products":[{"id":1,"quantity":0}]}"#,
                r#""field":"products[0].quantity""#,
            ),
            (
                r#"{"id":"1","products":[{"id":1,"quantity":-1}]}"#,
                r#""field":"products[0].quantity""#,
            ),
            (
                r#"{"id":"1","products":[{"id":1,"quantity":1.5}]}"#,
                r#""field":"products[0].quantity""#,
            ),
            (
                r#"{"id":"1","products":[{"id":1,"quantity":1e99}]}"#,
                r#""field":"products[0].quantity""#,
            ),
            (
                r#"{"id":"1","products":[{"id":"1","quantity":1}]}"#,
                r#""field":"products[0].id""#,
            ),
            (r#"["1",[{"id":1,"quantity":1}]]"#, "must be a JSON object"),
            (r#"{"id":"1","products":[[1,1]]}"#, r#""field":"products[0]""#),
            (
                r#"{"id":"1","products":[{"id":0,"quantity":1}]}"#,
                r#""field":"products[0].id""#,
            ),
            (
                r#"{"id":"1","products":[{"id":1000001,"quantity":1}]}"#,
                r#""field":"products[0].id""#,
            ),
            (
                r#"{"id":"1","id":"2","products":[{"id":1,"quantity":1}]}"#,
                "duplicate field",
            ),
        ] {
            let found = fault(body);
            assert!(found.contains(expected), "{body:.60}: {found}");
            assert!(found.contains(r#""status":400"#), "{found}");
        }
    }

    #[test]
    fn bodies_with_invalid_utf8_in_any_place_are_rejected() {
        for body in [
            &b"{\"id\":\"\xff\",\"products\":[{\"id\":1,\"quantity\":1}]}"[..],
            b"{\"id\":\"1\",\"products\":[{\"id\":1,\"quantity\":1}],\"note\":\"\xf1\"}",
            b"{\"id\":\"1\",\"products\":[{\"id\":1,\"quantity\":1,\"\xf1\":0}]}",
        ] {
            let fault = serde_json::to_string(&parse_order(body).unwrap_err()).unwrap();
            assert!(fault.contains("not JSON") && fault.contains("column"), "{fault}");
        }
        assert!(parse_payment(b"{\"transaction_id\":1,\"note\":\"\xf1\"}").is_err());
    }

    #[test]
    fn bodies_of_the_original_system_are_accepted_and_inexact_numbers_rejected() {
        let order =
            parse_order(br#"{"id":"17","products":[{"id":812,"quantity":3},{"id":44,"quantity":1}]}"#)
                .unwrap();
        assert_eq!(order.id.as_str(), "17");
        assert_eq!(
            *order.lines,
            [Line { id: 812, quantity: 3 }, Line { id: 44, quantity: 1 }]
        );
        assert_eq!(parse_payment(br#"{"transaction_id":4711}"#).unwrap(), 4711);
        assert_eq!(parse_payment(br#"{"transaction_id":4711.0}"#).unwrap(), 4711);
        let largest = br#"{"transaction_id":9007199254740991}"#;
        assert_eq!(parse_payment(largest).unwrap(), EXACT_MAX);
        for body in [
            "",
            "{}",
            "[]",
            "[1]",
            r#"{"transaction_id":"1"}"#,
            r#"{"transaction_id":-1}"#,
            r#"{"transaction_id":0.5}"#,
            r#"{"transaction_id":1e300}"#,
            r#"{"transaction_id":null}"#,
            r#"{"transaction_id":9007199254740992}"#,
            r#"{"transaction_id":9007199254740992.0}"#,
            r#"{"transaction_id":18446744073709551615}"#,
        ] {
            assert!(parse_payment(body.as_bytes()).is_err(), "{body}");
        }
    }
}
