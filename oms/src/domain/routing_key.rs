//! The key that decides which volume answers a request: an order, a store, or the statistics.
//!
//! The row of an idempotency key has a request and its response, and migrates with the slot of the
//! order that the request is about. So this module also finds the order in a stored request.
//!
//! Deliberately absent: the slot of a key (`storage::owned_slots`) and the node of a slot
//! (`control::topology`).

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::domain::order::OrderId;

/// The part of a request that decides which volume answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RoutingKey {
    /// The order with this id.
    Order(OrderId),
    /// The store with this number.
    Store(u32),
    /// The sales statistics of all products.
    Statistics,
}

/// The body of an order, of which only the id is parsed. The id alone decides the slot.
#[derive(Deserialize)]
struct OnlyId<'a> {
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
}

/// Returns the order id in the body of an order. `None` if the body has no valid id.
fn order_in(body: &[u8]) -> Option<OrderId> {
    let only: OnlyId<'_> = serde_json::from_slice(body).ok()?;
    OrderId::parse(&only.id).ok()
}

/// Returns the order that a stored request is about. `None` if it is about no order. `request` has
/// the method, path and body (`codec::KeptAnswer`).
///
/// Earlier versions of this program stored the path as the client had encoded it, so the id is
/// decoded here.
pub(crate) fn order_of(request: &[u8]) -> Option<OrderId> {
    let end = request.iter().position(|byte| *byte == b'\n')?;
    let (method, path) = std::str::from_utf8(&request[..end]).ok()?.split_once(' ')?;
    if method != "POST" {
        return None;
    }
    let path = path.split('?').next()?;
    let mut segments = path.strip_prefix('/')?.split('/');
    match (segments.next()?, segments.next()) {
        ("order", None) => order_in(&request[end + 1..]),
        ("order" | "outbox", Some(id)) => {
            let id = percent_decode_str(id).decode_utf8().ok()?;
            OrderId::parse(&id).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_request_names_its_order() {
        let of = |request: &[u8]| order_of(request).map(|order| order.to_string());
        assert_eq!(
            of(b"POST /order\n{\"id\":\"17\",\"products\":[]}").as_deref(),
            Some("17")
        );
        assert_eq!(of(b"POST /order/4/payment-callback\n{}").as_deref(), Some("4"));
        assert_eq!(of(b"POST /outbox/5/announce/retry\n").as_deref(), Some("5"));
        assert_eq!(
            of(b"POST /order/shop%3A1/cancel?x=y\n").as_deref(),
            Some("shop:1")
        );
        assert_eq!(of(b"POST /order/shop:1/cancel\n").as_deref(), Some("shop:1"));
        for request in [&b"POST /order\nno JSON"[..], b"POST /stocks\n", b"no line", b""] {
            assert_eq!(of(request), None);
        }
    }
}
