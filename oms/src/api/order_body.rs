//! Parses the JSON bodies of orders and payments.
//!
//! A valid body is parsed in one typed pass. A body that this pass rejects is parsed a second time
//! by a parser that tracks the path of each value. So the problem can name the invalid field, such
//! as `products[1].quantity`.
//!
//! **Invariants**
//! - A body that cannot be parsed or has an invalid value gets a 400 that names the field or states
//!   the fault of the body.
//! - An id or quantity is rejected if it is not whole, or if a JSON reader with `f64` numbers would
//!   round it. The values of unknown fields are ignored.
//!
//! Schema validation by a library is absent, because parsing is on the hot path of orders.

use std::borrow::Cow;
use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Bytes, BytesMut};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use crate::api::content::{self, Pieces, RequestBody};
use crate::api::params::EXACT_MAX;
use crate::api::problem::Problem;
use crate::api::request::parse_id;
use crate::domain::order::{Line, OrderId};
use crate::domain::stock_snapshot::PRODUCT_MAX;

/// Maximum size in bytes of a small body: of an order, a payment, any other command with an
/// idempotency key, or a question of another node. An order with 100 products takes about 4 KB.
pub(super) const JSON_BYTES_MAX: usize = 64 * 1_024;
/// Maximum number of products of one order.
const ORDER_LINES_MAX: usize = 100;
/// Maximum number of units of one order line.
const ORDER_QUANTITY_MAX: u64 = 1_000_000;

/// Reads a whole body of at most `JSON_BYTES_MAX` bytes into memory.
pub(super) async fn read_small(headers: &HeaderMap, body: impl RequestBody) -> Result<Bytes, Problem> {
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
    // Nearly every order arrives in one piece, which is returned without a copy.
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

/// A new order.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewOrder)]
pub(super) struct WireOrder<'a> {
    /// The id of the order.
    #[serde(borrow)]
    #[schema(value_type = OrderId)]
    id: Cow<'a, str>,
    /// The products.
    #[schema(value_type = Vec<Line>, min_items = 1, max_items = 100)]
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

/// Implemented by hand, because a derived implementation would also accept the array `[812,3]`.
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

/// A payment.
#[derive(Deserialize, ToSchema)]
#[schema(as = Payment)]
pub(super) struct WirePayment {
    /// Id of the payment's transaction, for a possible refund. Every JSON reader represents numbers
    /// up to the maximum exactly.
    #[schema(value_type = u64, maximum = 9_007_199_254_740_991_u64, example = 4_711)]
    transaction_id: Whole,
}

/// A whole number that may be written in JSON as `12` or as `12.0`.
struct Whole(u64);

/// 2^53. From this number on, several whole numbers have the same `f64`.
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

/// The parsed and checked body of a request to place an order.
#[derive(Debug)]
pub(super) struct NewOrder {
    pub(super) id: OrderId,
    pub(super) lines: Box<[Line]>,
}

/// Parses the body of an order, such as `{"id":"17","products":[{"id":812,"quantity":3}]}`.
pub(super) fn parse_order(body: &[u8]) -> Result<NewOrder, Problem> {
    let wire: WireOrder<'_> = object(body)?;
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

/// Parses the body of a payment, such as `{"transaction_id":4711}`, and returns the transaction id.
pub(super) fn parse_payment(body: &[u8]) -> Result<u64, Problem> {
    let WirePayment { transaction_id } = object(body)?;
    // A client that reads JSON numbers as `f64` would round the id and refund another transaction.
    if transaction_id.0 > EXACT_MAX {
        let detail = format!("must be a whole number, 0 to {EXACT_MAX}");
        return Err(Problem::field("transaction_id", detail));
    }
    Ok(transaction_id.0)
}

/// Parses a JSON object. An array is rejected, because a derived struct would accept an array of
/// its fields. UTF-8 is validated before parsing, because serde_json does not validate ignored
/// fields.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    if body.is_empty() {
        return Err(Problem::body("the body is empty; it must be a JSON object"));
    }
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(not_an_object());
    }
    match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text).map_err(|_| diagnose::<T>(text)),
        Err(error) => Err(Problem::body(format!(
            "the body is not JSON: it is not UTF-8 after column {}",
            error.valid_up_to()
        ))),
    }
}

fn not_an_object() -> Problem {
    Problem::body("the body must be a JSON object")
}

/// Returns the problem of a rejected body. The problem names the invalid field, or states the fault
/// of the body as a whole.
fn diagnose<'a, T: Deserialize<'a>>(text: &'a str) -> Problem {
    let mut json = serde_json::Deserializer::from_str(text);
    let error = match serde_path_to_error::deserialize::<_, T>(&mut json) {
        Err(error) => error,
        // The object itself is valid, so the body was rejected because of text after the object.
        Ok(_) => return Problem::body("the body is not JSON: there is more after the object"),
    };
    let path = error.path().to_string();
    let error = error.into_inner();
    let reason = error.to_string();
    if !error.is_data() {
        return Problem::body(format!("the body is not JSON: {reason}"));
    }
    // The problem names the field, so serde's suffix with line and column is removed.
    let reason = reason.split(" at line ").next().unwrap_or_default();
    let missing = reason.strip_prefix("missing field `");
    let missing = missing.and_then(|name| name.strip_suffix('`'));
    let field = match (missing, path.as_str()) {
        (Some(name), ".") => name.to_owned(),
        (Some(name), path) => format!("{path}.{name}"),
        (None, ".") if reason.starts_with("invalid type") => return not_an_object(),
        (None, ".") => return Problem::body(reason),
        (None, path) => path.to_owned(),
    };
    let is_null = reason.starts_with("invalid type: null");
    match missing {
        // The system that IMT Order replaces responded with this text, and clients may depend on
        // it.
        _ if field == "id" && (missing.is_some() || is_null) => Problem::field(field, "Missing order ID"),
        Some(_) => Problem::field(field, "the field is missing"),
        None => Problem::field(field, reason),
    }
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
        let deep_field = format!("{{\"note\":{deep}");
        for (body, expected) in [
            ("", "the body is empty"),
            ("{", "not JSON"),
            ("[]", "must be a JSON object"),
            ("17", "must be a JSON object"),
            (deep.as_str(), "must be a JSON object"),
            (deep_field.as_str(), "not JSON"),
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
            (r#"{"id":"1","products":[{"id":1,"quantity":1}]} x"#, "not JSON"),
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
